//! What is refused, with which reason and field; and what is the same event.

use activity_proto::common::v1::Producer;
use activity_proto::usage::v1::{RequestStatus, Tokens, UsageEvent};
use prost_types::{Duration, Timestamp};
use service_core::error::Reason;

use super::*;

const NOW_US: i64 = 1_767_614_400_000_000;

fn good() -> UsageEvent {
    UsageEvent {
        id: "019b8e2b-9000-7000-8000-000000000001".into(),
        occurred_at: Some(Timestamp { seconds: 1_767_614_400, nanos: 0 }),
        instance_id: "eu".into(),
        provider: "openai".into(),
        requested_model: "gpt-4o".into(),
        status: RequestStatus::Ok.into(),
        ..UsageEvent::default()
    }
}

fn id_at(us: i64) -> String {
    let millis = u128::from((us / 1_000).unsigned_abs());
    Uuid::from_u128((millis << 80) | (7 << 76) | (2 << 62)).to_string()
}

type Spoil = fn(&mut UsageEvent);

#[test]
fn bad_events_are_refused_with_field_and_reason() {
    let cases: &[(Spoil, Reason, &str)] = &[
        (|e| e.id.clear(), Reason::Required, "id"),
        (|e| e.id = "42".into(), Reason::InvalidId, "id"),
        (|e| e.id = "019b8e2b900070008000000000000001".into(), Reason::InvalidId, "id"),
        (|e| e.id = "{019b8e2b-9000-7000-8000-00000000000".into(), Reason::InvalidId, "id"),
        (|e| e.id = "019b8e2b-9000-4000-8000-000000000001".into(), Reason::InvalidId, "id"),
        (|e| e.id = "019b8e2b-9000-7000-0000-000000000001".into(), Reason::InvalidId, "id"),
        (|e| e.id = id_at(NOW_US + MAX_ID_SKEW_US + 1_000), Reason::InvalidId, "id"),
        (|e| e.id = id_at(NOW_US - MAX_ID_SKEW_US - 1_000), Reason::InvalidId, "id"),
        (|e| e.occurred_at = None, Reason::Required, "occurred_at"),
        (
            |e| e.occurred_at = Some(Timestamp { seconds: 946_684_799, nanos: 0 }),
            Reason::TimeOutOfBounds,
            "occurred_at",
        ),
        (
            |e| e.occurred_at = Some(Timestamp { seconds: 1_767_614_701, nanos: 0 }),
            Reason::TimeOutOfBounds,
            "occurred_at",
        ),
        (|e| e.occurred_at = Some(Timestamp { seconds: 0, nanos: -1 }), Reason::TimeOutOfBounds, "occurred_at"),
        (|e| e.instance_id.clear(), Reason::Required, "instance_id"),
        (|e| e.provider.clear(), Reason::Required, "provider"),
        (|e| e.requested_model.clear(), Reason::Required, "requested_model"),
        (|e| e.user_id = "x".repeat(257), Reason::InvalidArgument, "user_id"),
        (|e| e.model = "a\u{0}".into(), Reason::InvalidArgument, "model"),
        (|e| e.request_id = "a\u{9b}".into(), Reason::InvalidArgument, "request_id"),
        (|e| e.status = 0, Reason::Required, "status"),
        (|e| e.status = 6, Reason::InvalidArgument, "status"),
        (
            |e| e.tokens = Some(Tokens { output: Some(-1), ..Tokens::default() }),
            Reason::InvalidArgument,
            "tokens.output",
        ),
        (
            |e| e.tokens = Some(Tokens { input_cache_read: Some(1_000_000_001), ..Tokens::default() }),
            Reason::InvalidArgument,
            "tokens.input_cache_read",
        ),
        (
            |e| e.tokens = Some(Tokens { input_cache_write_1h: Some(1), ..Tokens::default() }),
            Reason::InvalidArgument,
            "tokens.input_cache_write_1h",
        ),
        (
            |e| e.tokens = Some(Tokens { output: Some(1), output_reasoning: Some(2), ..Tokens::default() }),
            Reason::InvalidArgument,
            "tokens.output_reasoning",
        ),
        (|e| e.other_units = [("web_searches".to_owned(), -1)].into(), Reason::InvalidArgument, "other_units"),
        (|e| e.other_units = [(String::new(), 1)].into(), Reason::InvalidArgument, "other_units"),
        (|e| e.other_units = (0..33).map(|n| (n.to_string(), 1)).collect(), Reason::InvalidArgument, "other_units"),
        (|e| e.labels = (0..17).map(|n| (n.to_string(), String::new())).collect(), Reason::InvalidArgument, "labels"),
        (|e| e.labels = [("k".to_owned(), "\n".to_owned())].into(), Reason::InvalidArgument, "labels"),
        (
            |e| e.price_conditions = (0..9).map(|n| (n.to_string(), String::new())).collect(),
            Reason::InvalidArgument,
            "price_conditions",
        ),
        (|e| e.latency = Some(Duration { seconds: -1, nanos: 0 }), Reason::InvalidArgument, "latency"),
        (|e| e.latency = Some(Duration { seconds: 604_800, nanos: 1_000 }), Reason::InvalidArgument, "latency"),
        (
            |e| e.time_to_first_token = Some(Duration { seconds: 0, nanos: -1 }),
            Reason::InvalidArgument,
            "time_to_first_token",
        ),
        (
            |e| e.time_to_first_token = Some(Duration { seconds: i64::MAX, nanos: 0 }),
            Reason::InvalidArgument,
            "time_to_first_token",
        ),
        (|e| e.producer = Some(Producer::default()), Reason::Required, "producer.sequence"),
        (|e| e.producer = Some(Producer { sequence: Some(1), ..Producer::default() }), Reason::Required, "producer.id"),
        (
            |e| e.producer = Some(Producer { id: "p".into(), epoch: u64::MAX, sequence: Some(1) }),
            Reason::InvalidArgument,
            "producer.epoch",
        ),
    ];
    for (index, (spoil, reason, field)) in cases.iter().enumerate() {
        let mut bad = good();
        spoil(&mut bad);
        let violation = event(bad, NOW_US).expect_err(field);
        assert_eq!((violation.reason, violation.field.as_str()), (*reason, *field), "case {index}");
        assert!(violation.message.len() < 300, "{}", violation.message);
        assert!(!violation.message.chars().any(char::is_control), "{}", violation.message);
    }
}

#[test]
fn what_is_at_a_limit_is_accepted() {
    let mut largest = good();
    largest.user_id = "x".repeat(256);
    largest.id = id_at(NOW_US - MAX_ID_SKEW_US);
    largest.other_units = (0..32).map(|n| (n.to_string(), MAX_COUNT)).collect();
    largest.labels = (0..16).map(|n| (n.to_string(), "ü".repeat(128))).collect();
    largest.latency = Some(Duration { seconds: 604_800, nanos: 999 });
    let (event, _) = event(largest, NOW_US).expect("accepted");
    assert_eq!(event.latency_us, Some(MAX_DURATION_US));
    assert_eq!(event.model, "gpt-4o");
}

#[test]
fn only_content_changes_the_hash() {
    let hash = |change: fn(&mut UsageEvent)| {
        let mut changed = good();
        change(&mut changed);
        event(changed, NOW_US).expect("good").1
    };
    let plain = hash(|_| ());
    let same: [fn(&mut UsageEvent); 6] = [
        |e| e.id = e.id.to_uppercase(),
        |e| e.model = e.requested_model.clone(),
        |e| e.tokens = Some(Tokens::default()),
        |e| e.tokens = Some(Tokens { output: Some(0), ..Tokens::default() }),
        |e| e.occurred_at = Some(Timestamp { seconds: 1_767_614_400, nanos: 999 }),
        |e| e.producer = Some(Producer { id: "p".into(), epoch: 1, sequence: Some(1) }),
    ];
    for change in same {
        assert_eq!(hash(change), plain);
    }
    let other: [fn(&mut UsageEvent); 6] = [
        |e| e.model = "gpt-4".into(),
        |e| e.user_id = "u".into(),
        |e| e.tokens = Some(Tokens { output: Some(1), ..Tokens::default() }),
        |e| e.occurred_at = Some(Timestamp { seconds: 1_767_614_400, nanos: 1_000 }),
        |e| e.latency = Some(Duration { seconds: 0, nanos: 0 }),
        |e| e.labels = [("k".to_owned(), String::new())].into(),
    ];
    for change in other {
        assert_ne!(hash(change), plain);
    }
}
