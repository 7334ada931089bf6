//! What holds of any bytes: bodies that run under proptest in every run of the
//! tests, and under a fuzzer in `fuzz/`. None may panic but by its own assertions.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use activity_proto::common::v1 as common;
use activity_proto::usage::v1 as proto;
use prost::Message;
use service_core::error::{Error, Reason, Result, Violation};
use service_core::page;
use service_core::time_range::{self, WhenMissing};
use testkit::{assert_cell, assert_refusal, csv_rows};

use super::query::{breakdown_limit, pack, series_limit, unpack};
use crate::export::{self, Format, Progress};
use crate::model::{Charge, Filter, RequestRow, StoredRequest};
use crate::pricing::PriceBook;
use crate::{convert, ingest};

/// The clock of the bodies: 2026-01-05T12:00:00Z.
pub const NOW_US: i64 = 1_767_614_400_000_000;

static BOOK: LazyLock<PriceBook> = LazyLock::new(|| match PriceBook::load(None) {
    Ok(book) => book,
    Err(why) => panic!("the shipped book: {why}"),
});

fn refused(violation: &Violation) {
    assert_ne!(violation.reason, Reason::Unspecified);
    assert_refusal(&violation.field, &violation.message);
}

fn checked<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => return Some(value),
        Err(Error::Invalid(violation)) => refused(&violation),
        Err(error) => panic!("a request is refused by its fields, not with {error:?}"),
    }
    None
}

/// An encoded `UsageEvent`: refused by a field; or priced, answered and exported with
/// all of it. Returns whether it was accepted.
pub fn event(bytes: &[u8]) -> bool {
    let Ok(wire) = proto::UsageEvent::decode(bytes) else { return false };
    let (event, content_hash) = match convert::event(wire, NOW_US) {
        Ok(checked) => checked,
        Err(violation) => {
            refused(&violation);
            return false;
        }
    };
    let priced = ingest::priced(event.clone(), content_hash, &BOOK);
    if let Charge::Priced { cost_nanos, .. } = &priced.charge {
        assert!(*cost_nanos >= 0, "{priced:?}");
    }
    let stored = StoredRequest {
        event: priced.event,
        recorded_at_us: NOW_US,
        recorded_by: "=writer\u{202e}".into(),
        charge: priced.charge,
    };
    lines(&stored);
    // What is read is what was written, and may be written again.
    let answer = convert::request(stored).encode_to_vec();
    let again = proto::UsageEvent::decode(answer.as_slice()).map(|wire| convert::event(wire, NOW_US));
    let (again, hash_again) = match again {
        Ok(Ok(checked)) => checked,
        other => panic!("{other:?}"),
    };
    assert_eq!(again, event);
    // The producer is no part of the content, and everything else is.
    let hash_of = |event: proto::UsageEvent| convert::event(event, NOW_US).map(|(_, hash)| hash);
    let mut told = proto::UsageEvent::decode(bytes).unwrap_or_default();
    told.producer = None;
    assert_eq!(hash_of(told.clone()), Ok(content_hash));
    told.request_id = if told.request_id == "x" { "y" } else { "x" }.to_owned();
    assert_ne!(hash_of(told), Ok(content_hash));
    assert_eq!(hash_again, content_hash);
    true
}

/// A map as it is stored: a JSON object, or nothing.
fn map<V: serde::Serialize>(map: &BTreeMap<String, V>) -> String {
    if map.is_empty() { String::new() } else { serde_json::to_string(map).unwrap_or_default() }
}

fn lines(stored: &StoredRequest) {
    let event = &stored.event;
    let maps = (map(&event.other_units), map(&event.labels), map(&event.price_conditions));
    let row = RequestRow {
        id: event.id,
        occurred_at_us: event.occurred_at_us,
        recorded_at_us: stored.recorded_at_us,
        recorded_by: &stored.recorded_by,
        instance_id: &event.instance_id,
        user_id: &event.user_id,
        team_id: &event.team_id,
        api_key_id: &event.api_key_id,
        provider: &event.provider,
        requested_model: &event.requested_model,
        model: &event.model,
        status: event.status,
        operation: &event.operation,
        tokens: event.tokens,
        other_units: &maps.0,
        latency_us: event.latency_us,
        time_to_first_token_us: event.time_to_first_token_us,
        service_tier: &event.service_tier,
        processing: &event.processing,
        request_id: &event.request_id,
        labels: &maps.1,
        price_conditions: &maps.2,
        charge: match &stored.charge {
            Charge::Priced { cost_nanos, price } => Ok((*cost_nanos, price)),
            Charge::Unpriced(reason) => Err(reason.as_str()),
        },
        producer: event.producer.as_ref().map(|producer| (producer, producer.sequence)),
    };
    assert!(StoredRequest::try_from(&row).is_ok_and(|again| again == *stored));
    let mut file = Vec::new();
    export::requests_header(Format::Csv, &mut file);
    assert!(export::request(Format::Csv, &row, &mut file).is_ok());
    let text = String::from_utf8_lossy(&file);
    let rows = csv_rows(&text).unwrap_or_default();
    let [header, cells] = rows.as_slice() else { panic!("{} rows in {text:?}", rows.len()) };
    assert_eq!(header.len(), cells.len());
    for (name, written) in [
        ("instance_id", &event.instance_id),
        ("user_id", &event.user_id),
        ("api_key_id", &event.api_key_id),
        ("provider", &event.provider),
        ("requested_model", &event.requested_model),
        ("model", &event.model),
        ("operation", &event.operation),
        ("request_id", &event.request_id),
        ("recorded_by", &stored.recorded_by),
    ] {
        let at = header.iter().position(|column| column == name);
        assert_cell(&cells[at.unwrap_or_else(|| panic!("no column {name}"))], written);
    }

    let mut line = Vec::new();
    assert!(export::request(Format::Jsonl, &row, &mut line).is_ok());
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    let json: serde_json::Value = serde_json::from_slice(&line).unwrap_or_default();
    assert_eq!(json["userId"].as_str().unwrap_or_default(), event.user_id);
    assert_eq!(json["model"].as_str(), Some(event.model.as_str()));
}

/// An encoded request of a query's type (`GetSummaryRequest`): refused by a field, or
/// understood. Returns whether it was understood.
pub fn query(name: &str, bytes: &[u8]) -> bool {
    let range = |range: &Option<common::TimeRange>, missing| {
        checked(time_range::resolve(range.as_ref(), NOW_US, missing)).inspect(|range| {
            assert!(range.previous().end_us == range.start_us);
        })
    };
    let last_day = WhenMissing::Last24Hours;
    let filter = |filter: &Option<proto::UsageFilter>| checked(convert::filter(filter.as_ref())).map(bounded);
    let decoded = || -> Result<Option<()>, prost::DecodeError> {
        Ok(match name {
            "GetSummaryRequest" => {
                let request = proto::GetSummaryRequest::decode(bytes)?;
                filter(&request.filter).and(range(&request.time_range, last_day)).map(|_| ())
            }
            "ListBreakdownRequest" => {
                let request = proto::ListBreakdownRequest::decode(bytes)?;
                let keys = checked(convert::dimensions(&request.group_by, true));
                assert!(keys.as_ref().is_none_or(|keys| (1..=3).contains(&keys.len())));
                let ranked = checked(convert::metric(request.order_by)).and(checked(breakdown_limit(request.limit)));
                filter(&request.filter).and(range(&request.time_range, last_day)).and(keys).and(ranked).map(|_| ())
            }
            "GetTimeSeriesRequest" => {
                let request = proto::GetTimeSeriesRequest::decode(bytes)?;
                let keys = checked(convert::dimensions(&request.group_by, false));
                let ranked = checked(convert::metric(request.order_by)).and(checked(series_limit(request.limit)));
                let range = range(&request.time_range, last_day);
                let edges = checked(convert::bucket(request.bucket)).zip(range).and_then(|(bucket, range)| {
                    checked(time_range::bucket_edges(&range, bucket, 10_000)).inspect(|edges| {
                        assert!(edges.len() <= 10_001 && edges.is_sorted());
                        assert_eq!((edges.first(), edges.last()), (Some(&range.start_us), Some(&range.end_us)));
                    })
                });
                filter(&request.filter).and(keys).and(ranked).and(edges).map(|_| ())
            }
            "ListRequestsRequest" => {
                let request = proto::ListRequestsRequest::decode(bytes)?;
                let size = checked(page::page_size(request.page_size));
                assert!(size.is_none_or(|size| (1..=1_000).contains(&size)));
                filter(&request.filter).and(range(&request.time_range, last_day)).and(size).map(|_| ())
            }
            "ExportUsageRequest" => {
                let request = proto::ExportUsageRequest::decode(bytes)?;
                let shape = checked(convert::shape(request.shape)).and(checked(convert::format(request.format)));
                filter(&request.filter).and(range(&request.time_range, WhenMissing::Refuse)).and(shape).map(|_| ())
            }
            "EstimateCostRequest" => {
                let request = proto::EstimateCostRequest::decode(bytes)?;
                checked(convert::estimate_usage(&request, NOW_US)).map(|usage| {
                    let units = request.other_units.iter().map(|(unit, count)| (unit.as_str(), *count));
                    let condition = |name: &str| request.price_conditions.get(name).map(String::as_str);
                    let answer = convert::estimate(BOOK.estimate(&usage, units, condition));
                    assert!(answer.cost.is_some() == answer.unpriced_reason.is_empty());
                })
            }
            _ => panic!("{name} is no query"),
        })
    };
    decoded().is_ok_and(|understood| understood.is_some())
}

/// What a filter costs whoever asks is bounded.
fn bounded(filter: Filter) {
    let Filter { instance_ids, user_ids, team_ids, api_key_ids, providers, models, statuses, labels } = filter;
    for list in [instance_ids, user_ids, team_ids, api_key_ids, providers, models] {
        assert!(list.len() <= 1_000 && list.iter().all(|value| value.len() <= 256));
    }
    assert!(statuses.len() <= 1_000 && labels.len() <= 16);
}

/// Numbers that a producer says it has dropped.
pub fn dropped(bytes: &[u8]) -> bool {
    let Ok(wire) = common::DroppedRange::decode(bytes) else { return false };
    match convert::dropped(wire) {
        Ok(range) => {
            assert!(0 <= range.first_sequence && range.first_sequence <= range.last_sequence && range.epoch >= 0);
            true
        }
        Err(violation) => {
            refused(&violation);
            false
        }
    }
}

/// The payload of a token, as one of another version may be: refused, or read as it is
/// written.
pub fn tokens(payload: &[u8]) {
    if let Some((start_us, end_us, position)) = checked(unpack(payload)) {
        assert_eq!(pack(start_us, end_us, position), payload);
    }
    if let Some(progress) = checked(Progress::from_bytes(payload)) {
        assert_eq!(progress.sha256().len(), 32);
        let written = progress.to_bytes();
        let again = checked(Progress::from_bytes(&written));
        assert_eq!(again.map(|progress| progress.to_bytes()), Some(written));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use testkit::Messages;

    use super::*;

    const QUERIES: [&str; 6] = [
        "GetSummaryRequest",
        "ListBreakdownRequest",
        "GetTimeSeriesRequest",
        "ListRequestsRequest",
        "ExportUsageRequest",
        "EstimateCostRequest",
    ];

    fn messages() -> Messages {
        Messages::new(activity_proto::FILE_DESCRIPTOR_SET, NOW_US / 1_000_000)
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..600)
    }

    /// Runs a body that says whether it got through to the end; it must be so, and not
    /// so, for a good many.
    fn both_ways(least: u32, body: impl Fn(&[u8]) -> bool) {
        let (through, refused) = (Cell::new(0), Cell::new(0));
        let config = ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() };
        let ran = TestRunner::new(config).run(&bytes(), |bytes| {
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
        both_ways(50, |bytes| event(&messages.message(".activity.usage.v1.UsageEvent", bytes)));
    }

    #[test]
    fn queries_are_refused_by_a_field_or_understood_within_bounds() {
        let messages = messages();
        for name in QUERIES {
            both_ways(50, |bytes| query(name, &messages.message(&format!(".activity.usage.v1.{name}"), bytes)));
        }
    }

    #[test]
    fn dropped_ranges_are_refused_by_a_field_or_run_forwards() {
        let messages = messages();
        both_ways(50, |bytes| dropped(&messages.message(".activity.common.v1.DroppedRange", bytes)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) })]

        #[test]
        fn raw_bytes_are_no_trouble(bytes in bytes()) {
            event(&bytes);
            dropped(&bytes);
            for name in QUERIES {
                query(name, &bytes);
            }
            tokens(&bytes);
        }

        #[test]
        fn payloads_of_tokens_are_read_as_they_are_written(
            position in proptest::collection::vec(any::<u8>(), 38..43),
            hashed in proptest::collection::vec(any::<u8>(), 0..200),
            spoilt in any::<(u16, u8)>(),
        ) {
            tokens(&position);
            let mut progress = Progress::new(1, 2, 3);
            progress.bytes(&hashed);
            let mut payload = progress.to_bytes();
            tokens(&payload);
            let at = usize::from(spoilt.0) % payload.len();
            payload[at] ^= spoilt.1;
            tokens(&payload);
        }
    }
}
