//! Entries as RFC 4180: a header, CRLF, a line an entry with every field.
//!
//! A cell that a spreadsheet would run as a formula gets a leading apostrophe, which makes it text.

use serde::Serialize;
use service_core::csv::push_cell;

use crate::canonical::{Line, LineChange, LineResource, Text};

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
    out.push_str(END);
}

/// Appends an entry's line. What canonical JSON has as text goes out as it is.
pub(crate) fn push_entry(out: &mut String, entry: &Line<'_>, leaf_hash: &[u8]) -> Result<(), serde_json::Error> {
    let first = entry.resources.first();
    let others = json(entry.resources.iter().skip(1).map(Other::from))?;
    let changes = json(entry.changes.iter().map(Changed::from))?;
    let operation = entry.operation.as_ref();
    let producer = entry.producer.as_ref();
    push_line(
        out,
        [
            &*entry.instance_id,
            &entry.sequence,
            &entry.id,
            &entry.occurred_at,
            &entry.recorded_at,
            &entry.recorded_by,
            &entry.actor.id,
            &entry.actor.kind,
            &entry.actor.display_name,
            &entry.actor.ip_address,
            &entry.actor.user_agent,
            &entry.actor.on_behalf_of,
            &entry.action,
            &entry.outcome,
            &entry.reason,
            first.map_or("", |resource| &resource.kind),
            first.map_or("", |resource| &resource.id),
            first.map_or("", |resource| &resource.name),
            &others,
            &changes,
            &entry.details_json,
            &entry.request_id,
            operation.map_or("", |operation| &operation.id),
            operation.map_or("", |operation| &operation.stage),
            producer.map_or("", |producer| &producer.id),
            producer.map_or("", |producer| &producer.epoch),
            producer.map_or("", |producer| &producer.sequence),
        ],
    );
    out.push(',');
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
    out.extend(leaf_hash.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
    out.push_str(END);
    Ok(())
}

/// Further resources in a cell; members sorted.
#[derive(Serialize)]
struct Other<'a> {
    id: &'a str,
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
}

impl<'a> From<&'a LineResource<'_>> for Other<'a> {
    fn from(resource: &'a LineResource<'_>) -> Self {
        Self { id: &resource.id, name: &resource.name, kind: &resource.kind }
    }
}

/// Changes in a cell; members sorted.
#[derive(Serialize)]
struct Changed<'a> {
    new: Option<&'a str>,
    old: Option<&'a str>,
    path: &'a str,
}

impl<'a> From<&'a LineChange<'_>> for Changed<'a> {
    fn from(change: &'a LineChange<'_>) -> Self {
        let text = |value: &'a Option<Text<'_>>| value.as_ref().map(|text| &*text.0);
        Self { new: text(&change.new_value), old: text(&change.old_value), path: &change.path }
    }
}

/// A JSON list, or nothing for an empty one.
fn json<T: Serialize>(mut list: impl ExactSizeIterator<Item = T>) -> Result<String, serde_json::Error> {
    match list.len() {
        0 => Ok(String::new()),
        _ => serde_json::to_string(&list.by_ref().collect::<Vec<_>>()),
    }
}

/// Ends a line.
const END: &str = "\r\n";

fn push_line<'a>(out: &mut String, cells: impl IntoIterator<Item = &'a str>) {
    for (at, cell) in cells.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        push_cell(out, cell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_of_csv_gets_every_column() {
        let mut out = String::new();
        push_header(&mut out);
        let entry = crate::canonical::fixtures::full();
        let line = crate::canonical::to_string(&entry);
        push_entry(&mut out, &Line::new(&line).unwrap(), &[0xab; 32]).unwrap();
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
