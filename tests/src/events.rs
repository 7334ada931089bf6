//! Well-formed events, for tests to write as they are or to spoil one field of.

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::{Actor, ActorKind, AuditEvent, Change, Outcome, Resource};
use activity_proto::usage::v1::{RequestStatus, Tokens, UsageEvent};
use prost_types::Timestamp;
use uuid::Uuid;

/// A UUIDv7 whose time is `at` and whose other bits are `n`: the same arguments make the same id.
pub fn id(at: SystemTime, n: u64) -> String {
    let millis = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let value = (millis << 80) | (7 << 76) | (2 << 62) | u128::from(n);
    Uuid::from_u128(value).to_string()
}

/// The `n`th of a row of requests, a millisecond apart and ending before `end`; costs are known.
pub fn usage(end: SystemTime, n: u64) -> UsageEvent {
    let at = end - Duration::from_millis(n);
    UsageEvent {
        id: id(at, n),
        occurred_at: Some(Timestamp::from(at)),
        instance_id: "eu-1".into(),
        user_id: format!("user-{}", n % 17),
        team_id: format!("team-{}", n % 3),
        api_key_id: format!("key-{}", n % 29),
        provider: "openai".into(),
        requested_model: if n.is_multiple_of(2) { "gpt-4o" } else { "gpt-4o-mini" }.into(),
        status: RequestStatus::Ok.into(),
        tokens: Some(Tokens {
            input_uncached: Some(100 + i64::try_from(n % 1000).unwrap()),
            output: Some(10),
            ..Tokens::default()
        }),
        ..UsageEvent::default()
    }
}

/// The `n`th of a row of administrative actions, a millisecond apart and ending before `end`.
pub fn audit(end: SystemTime, n: u64) -> AuditEvent {
    let at = end - Duration::from_millis(n);
    AuditEvent {
        id: id(at, n),
        occurred_at: Some(Timestamp::from(at)),
        instance_id: "eu-1".into(),
        actor: Some(Actor {
            id: format!("admin-{}", n % 7),
            kind: ActorKind::User.into(),
            display_name: format!("admin{}@example.com", n % 7),
            ..Actor::default()
        }),
        action: if n.is_multiple_of(2) { "model.enabled" } else { "model.disabled" }.into(),
        resources: vec![Resource {
            r#type: "model".into(),
            id: format!("model-{}", n % 40),
            name: format!("Model {}", n % 40),
        }],
        outcome: Outcome::Success.into(),
        reason: format!("ticket OPS-{n}"),
        changes: vec![Change {
            path: "/enabled".into(),
            old_value: Some((n % 2 == 1).to_string()),
            new_value: Some(n.is_multiple_of(2).to_string()),
        }],
        ..AuditEvent::default()
    }
}
