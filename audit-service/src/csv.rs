//! Entries as RFC 4180: a header, CRLF, a line an entry with every field.
//!
//! A cell that a spreadsheet would run as a formula gets a leading apostrophe, which makes it text.

use service_core::csv::push_cell;

use crate::event::Entry;
use crate::time::rfc3339;

const COLUMNS: &[&str] = &[
    "instance_id",
    "sequence",
    "id",
    "occurred_at",
    "recorded_at",
    "recorded_by",
    "actor_id",
    "actor_kind",
    "actor_display_name",
    "actor_ip_address",
    "actor_user_agent",
    "actor_on_behalf_of",
    "action",
    "outcome",
    "reason",
    "resource_type",
    "resource_id",
    "resource_name",
    "other_resources_json",
    "changes_json",
    "details_json",
    "request_id",
    "operation_id",
    "operation_stage",
    "producer_id",
    "producer_epoch",
    "producer_sequence",
    "leaf_hash",
];

/// Appends the header line.
pub(crate) fn push_header(out: &mut String) {
    push_line(out, COLUMNS.iter().copied());
}

/// Appends an entry's line.
pub(crate) fn push_entry(out: &mut String, entry: &Entry, leaf_hash: &[u8]) {
    let event = &entry.event;
    let first = event.resources.first();
    let others: Vec<_> = event
        .resources
        .iter()
        .skip(1)
        .map(|resource| serde_json::json!({"type": resource.kind, "id": resource.id, "name": resource.name}))
        .collect();
    let changes: Vec<_> = event
        .changes
        .iter()
        .map(|change| serde_json::json!({"path": change.path, "old": change.old_value, "new": change.new_value}))
        .collect();
    let json = |list: Vec<serde_json::Value>| match list.is_empty() {
        true => String::new(),
        false => serde_json::Value::Array(list).to_string(),
    };
    let operation = event.operation.as_ref();
    let producer = event.producer.as_ref();
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
    let hash: String = leaf_hash.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
    push_line(
        out,
        [
            event.instance_id.as_str(),
            &entry.sequence.to_string(),
            &event.id.to_string(),
            &rfc3339(event.occurred_at_us),
            &rfc3339(entry.recorded_at_us),
            &entry.recorded_by,
            &event.actor.id,
            event.actor.kind.map_or("", |kind| kind.name()),
            &event.actor.display_name,
            &event.actor.ip_address,
            &event.actor.user_agent,
            &event.actor.on_behalf_of,
            &event.action,
            event.outcome.name(),
            &event.reason,
            first.map_or("", |resource| &resource.kind),
            first.map_or("", |resource| &resource.id),
            first.map_or("", |resource| &resource.name),
            &json(others),
            &json(changes),
            &event.details_json,
            &event.request_id,
            operation.map_or("", |operation| &operation.id),
            operation.map_or("", |operation| operation.stage.name()),
            producer.map_or("", |producer| &producer.id),
            &producer.map_or(String::new(), |producer| producer.epoch.to_string()),
            &producer.map_or(String::new(), |producer| producer.sequence.to_string()),
            &hash,
        ],
    );
}

fn push_line<'a>(out: &mut String, cells: impl IntoIterator<Item = &'a str>) {
    for (at, cell) in cells.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        push_cell(out, cell);
    }
    out.push_str("\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_of_csv_gets_every_column() {
        let mut out = String::new();
        push_header(&mut out);
        let entry = crate::canonical::fixtures::full();
        push_entry(&mut out, &entry, &[0xab; 32]);
        let mut reader = ::csv::ReaderBuilder::new().from_reader(out.as_bytes());
        assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>(), COLUMNS);
        let record = reader.records().next().unwrap().unwrap();
        let get = |name: &str| record.get(COLUMNS.iter().position(|column| *column == name).unwrap()).unwrap();
        assert_eq!(get("reason"), entry.event.reason);
        assert_eq!(get("details_json"), entry.event.details_json);
        assert_eq!(get("actor_display_name"), entry.event.actor.display_name);
        assert_eq!(get("leaf_hash"), "ab".repeat(32));
        let changes: serde_json::Value = serde_json::from_str(get("changes_json")).unwrap();
        assert_eq!(changes[0]["new"], entry.event.changes[0].new_value.clone().unwrap());
    }
}
