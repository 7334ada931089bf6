//! What holds of any bytes: bodies that run under proptest in every run of the tests, and under a fuzzer in `fuzz/`.
//! None may panic but by its own assertions.

use std::collections::HashSet;

use activity_proto::audit::v1 as proto;
use activity_proto::common::v1 as common;
use prost::Message;
use service_core::error::{Error, Reason, Result, Violation};
use service_core::page;
use service_core::time_range::{self, WhenMissing};
use testkit::{assert_cell, assert_refusal, csv_rows};

use super::query::{Position, log_scope};
use crate::canonical::{self, Line, Prefix};
use crate::csv;
use crate::event::{Entry, Event};
use crate::filter::{self, Filter, Stages};
use crate::{convert, export};

/// The clock of the bodies: 2026-01-05T12:00:00Z.
pub const NOW_US: i64 = 1_767_614_400_000_000;

fn refused(violation: &Violation) {
    assert_ne!(violation.reason, Reason::Unspecified);
    // An event that is too large as a whole has no field.
    match violation.reason {
        Reason::TooLarge => testkit::assert_harmless(&violation.message),
        _ => assert_refusal(&violation.field, &violation.message),
    }
}

fn checked<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => return Some(value),
        Err(Error::Invalid(violation)) => refused(&violation),
        Err(error) => panic!("a request is refused by its fields, not with {error:?}"),
    }
    None
}

/// An encoded `AuditEvent`: refused by a field; or its canonical form, its lines and its answer say all of it. Returns
/// whether it was accepted.
pub fn event(bytes: &[u8]) -> bool {
    let Ok(wire) = proto::AuditEvent::decode(bytes) else { return false };
    let event = match convert::event(wire, NOW_US) {
        Ok(event) => event,
        Err(violation) => {
            refused(&violation);
            return false;
        }
    };
    let entry = Entry { event, sequence: u64::MAX, recorded_at_us: NOW_US, recorded_by: "writer\u{202e}".into() };
    let leaf_hash = canonical_form(&entry);
    line_of_csv(&entry, &leaf_hash);

    index_finds(&entry);
    // What is read is what was written, and may be written again.
    let answer = convert::entry(entry.clone(), leaf_hash.to_vec()).encode_to_vec();
    let again = proto::AuditEvent::decode(answer.as_slice()).map(|wire| convert::event(wire, NOW_US));
    assert_eq!(again, Ok(Ok(entry.event)));
    true
}

fn canonical_form(entry: &Entry) -> [u8; 32] {
    let prefix = Prefix::new(&entry.event);
    let (line, leaf_hash) = prefix.finish(entry.sequence, entry.recorded_at_us, &entry.recorded_by);
    assert!(!line.contains(['\n', '\r', '\0']), "{line:?} is one line");
    assert_eq!(canonical::leaf_hash(&line), leaf_hash);
    assert_eq!(canonical::parse(&line).as_ref().map_err(ToString::to_string), Ok(entry));
    // Another writer of JSON, which sorts members too, writes the same.
    let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
    assert_eq!(value.to_string(), line);
    // The numbers of a producer are no part of the content, and everything else is.
    let other = |change: &dyn Fn(&mut Event)| {
        let mut event = entry.event.clone();
        change(&mut event);
        Prefix::new(&event).content_hash
    };
    assert_eq!(other(&|event| event.producer = None), prefix.content_hash);
    assert_ne!(other(&|event| event.reason.push('x')), prefix.content_hash);
    assert_ne!(other(&|event| event.actor.display_name.push('x')), prefix.content_hash);
    leaf_hash
}

/// A filter for what an entry is matches it, and each of its lists has a term of the entry's line.
fn index_finds(entry: &Entry) {
    let event = &entry.event;
    let filter = Filter::of(event);
    assert!(filter.matches(event) && Filter::everything().matches(event));
    let line = canonical::to_string(entry);
    let mut terms = HashSet::new();
    filter::terms(&Line::new(&line).unwrap_or_else(|error| panic!("{error}")), &mut |term| {
        terms.insert(term);
    });
    assert!(filter.terms().iter().all(|list| list.iter().any(|term| terms.contains(term))), "{filter:?} of {line}");
}

fn line_of_csv(entry: &Entry, leaf_hash: &[u8]) {
    let mut file = String::new();
    csv::push_header(&mut file);
    let line = canonical::to_string(entry);
    let read = Line::new(&line);
    assert!(read.is_ok_and(|line| csv::push_entry(&mut file, &line, leaf_hash).is_ok()));
    let rows = csv_rows(&file).unwrap_or_default();
    let [header, cells] = rows.as_slice() else { panic!("{} rows in {file:?}", rows.len()) };
    assert_eq!(header.len(), cells.len());
    let event = &entry.event;
    for (name, text) in [
        ("instance_id", &event.instance_id),
        ("actor_id", &event.actor.id),
        ("actor_display_name", &event.actor.display_name),
        ("actor_user_agent", &event.actor.user_agent),
        ("action", &event.action),
        ("reason", &event.reason),
        ("resource_name", &event.resources[0].name),
        ("details_json", &event.details_json),
        ("request_id", &event.request_id),
        ("recorded_by", &entry.recorded_by),
    ] {
        let at = header.iter().position(|column| column == name);
        assert_cell(&cells[at.unwrap_or_else(|| panic!("no column {name}"))], text);
    }
}

/// An encoded request of a query's type (`ListEntriesRequest`): refused by a field, or understood. Returns whether it
/// was understood.
pub fn query(name: &str, bytes: &[u8]) -> bool {
    let range = |range: Option<&common::TimeRange>, missing| checked(time_range::resolve(range, NOW_US, missing));
    let filter = |filter, stages| checked(convert::filter(filter, stages)).map(bounded);
    let decoded = || -> Result<Option<()>, prost::DecodeError> {
        Ok(match name {
            "ListEntriesRequest" => {
                let request = proto::ListEntriesRequest::decode(bytes)?;
                let size = checked(page::page_size(request.page_size));
                assert!(size.is_none_or(|size| (1..=1_000).contains(&size)));
                let order = checked(convert::order(request.order));
                let range = range(request.time_range.as_ref(), WhenMissing::Last24Hours);
                filter(request.filter, Stages::Settled).and(size).and(order).and(range).map(|_| ())
            }
            "ListFacetsRequest" => {
                let request = proto::ListFacetsRequest::decode(bytes)?;
                let range = range(request.time_range.as_ref(), WhenMissing::Last24Hours);
                filter(request.filter, Stages::Settled).and(range).map(|_| ())
            }
            "TailEntriesRequest" => {
                let request = proto::TailEntriesRequest::decode(bytes)?;
                let instance = checked(convert::instance_id("instance_id", &request.instance_id));
                filter(request.filter, Stages::All).and(instance)
            }
            "ExportEntriesRequest" => {
                use proto::export_entries_request::Range;
                let request = proto::ExportEntriesRequest::decode(bytes)?;
                let range = match request.range {
                    None => None,
                    Some(Range::TimeRange(of)) => range(Some(&of), WhenMissing::Refuse).map(|_| ()),
                    Some(Range::SequenceRange(of)) => checked(log_scope(of)).map(|_| ()),
                };
                filter(request.filter, Stages::All).and(range)
            }
            _ => panic!("{name} is no query"),
        })
    };
    decoded().is_ok_and(|understood| understood.is_some())
}

/// What a filter costs whoever asks is bounded.
fn bounded(filter: Filter) {
    let lists =
        [&filter.actors, &filter.resources, &filter.resource_types, &filter.instance_ids, &filter.changed_paths];
    assert!(lists.iter().all(|list| list.values().len() <= 1_000));
    assert!(filter.words.len() <= filter::MAX_WORDS && filter.words.iter().all(|word| !word.is_empty()));
}

/// Numbers that a producer says it has dropped.
pub fn dropped(bytes: &[u8]) -> bool {
    let Ok(wire) = common::DroppedRange::decode(bytes) else { return false };
    match convert::dropped(7, wire) {
        Ok(range) => {
            assert!(range.first <= range.last && !range.producer_id.is_empty());
            true
        }
        Err(violation) => {
            refused(&violation);
            false
        }
    }
}

/// The payload of a token, as one of another version may be: refused, or read as it is written.
pub fn tokens(payload: &[u8]) {
    if let Some((range, key)) = checked(Position::read(payload)) {
        assert_eq!(Position::write(range, key), payload);
    }
    if let Some(written) = checked(export::rewritten(payload)) {
        assert_eq!(checked(export::rewritten(&written)), Some(written.clone()), "written once more it is the same");
    }
}

/// Any text in the place of a stored line: unreadable, or an entry whose own line is read as the same.
pub fn line(text: &str) -> bool {
    // The cheaper reader of facets may take more, and must not fail otherwise.
    let counted = canonical::counted(text);
    let Ok(entry) = canonical::parse(text) else { return false };
    assert!(counted.is_ok_and(|counted| counted.action == entry.event.action));
    let written = canonical::to_string(&entry);
    assert_eq!(canonical::parse(&written).map_err(|why| why.to_string()), Ok(entry));
    true
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use testkit::Messages;

    use super::*;
    use crate::canonical::fixtures;

    fn messages() -> Messages {
        Messages::new(activity_proto::FILE_DESCRIPTOR_SET, NOW_US / 1_000_000)
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..600)
    }

    /// Runs a body that says whether it got through to the end; it must be so, and not so, for a good many.
    fn both_ways(least: u32, body: impl Fn(&[u8]) -> bool) {
        let (through, refused) = (Cell::new(0), Cell::new(0));
        let config = ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let ran = runner.run(&bytes(), |bytes| {
            let count = if body(&bytes) { &through } else { &refused };
            count.set(count.get() + 1);
            Ok(())
        });
        ran.unwrap_or_else(|why| panic!("{why}"));
        assert!(through.get() >= least && refused.get() >= least, "{} and {}", through.get(), refused.get());
    }

    #[test]
    fn events_are_refused_by_a_field_or_kept_whole_in_every_form() {
        let messages = messages();
        both_ways(100, |bytes| event(&messages.message(".activity.audit.v1.AuditEvent", bytes)));
    }

    #[test]
    fn queries_are_refused_by_a_field_or_understood_within_bounds() {
        let messages = messages();
        for name in ["ListEntriesRequest", "ListFacetsRequest", "TailEntriesRequest", "ExportEntriesRequest"] {
            both_ways(100, |bytes| query(name, &messages.message(&format!(".activity.audit.v1.{name}"), bytes)));
        }
    }

    #[test]
    fn dropped_ranges_are_refused_by_a_field_or_run_forwards() {
        let messages = messages();
        both_ways(100, |bytes| dropped(&messages.message(".activity.common.v1.DroppedRange", bytes)));
    }

    #[test]
    fn stored_lines_that_were_changed_are_unreadable_or_say_what_they_say() {
        let lines = [fixtures::minimal(), fixtures::full(), fixtures::unicode(), fixtures::escapes()];
        let lines = lines.map(|entry| canonical::to_string(&entry));
        both_ways(20, |bytes| {
            let [which, at @ .., with] = bytes else { return false };
            let mut text: Vec<char> = lines[usize::from(*which) % lines.len()].chars().collect();
            for at in at.iter().take(3) {
                let at = usize::from(*at) * text.len() / 256;
                text[at] = char::from(*with);
            }
            line(&text.into_iter().collect::<String>())
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

        #[test]
        fn raw_bytes_are_no_trouble(bytes in bytes()) {
            event(&bytes);
            dropped(&bytes);
            for name in ["ListEntriesRequest", "ListFacetsRequest", "TailEntriesRequest", "ExportEntriesRequest"] {
                query(name, &bytes);
            }
            line(&String::from_utf8_lossy(&bytes));
            tokens(&bytes);
        }

        #[test]
        fn payloads_of_tokens_are_read_as_they_are_written(
            position in proptest::collection::vec(any::<u8>(), 38..43),
            from in any::<u64>(),
            entries in any::<u64>(),
            cut in 0..600_usize,
            state in proptest::collection::vec(any::<u8>(), 104),
        ) {
            tokens(&position);
            let saved = serde_json::json!({
                "scope": { "Log": { "instance_id": "prod", "from": from, "to": u64::MAX } },
                "after": null, "entries": entries, "sha256": state.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), "heads": { "Here": { "prod": from } },
            });
            let saved = saved.to_string();
            tokens(saved.as_bytes());
            tokens(&saved.as_bytes()[..cut.min(saved.len())]);
        }
    }
}
