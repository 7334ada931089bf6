//! Entries for tests: the least that is allowed, everything at once, and text that is hard to write.

use uuid::Uuid;

use crate::event::{Actor, ActorKind, Change, Entry, Event, Operation, Outcome, Producer, Resource, Stage};

/// Only what is required.
pub(crate) fn minimal() -> Entry {
    Entry {
        event: Event {
            id: Uuid::from_u128(0x0193_5a6e_4c00_7000_8000_0000_0000_0001),
            occurred_at_us: 1_732_320_000_000_000,
            instance_id: "prod-eu".into(),
            actor: Actor { id: "u-1".into(), ..Actor::default() },
            action: "model.enabled".into(),
            resources: vec![Resource { kind: "model".into(), id: "m-1".into(), name: String::new() }],
            outcome: Outcome::Success,
            reason: String::new(),
            changes: Vec::new(),
            details_json: String::new(),
            request_id: String::new(),
            operation: None,
            producer: None,
        },
        sequence: 0,
        recorded_at_us: 1_732_320_000_000_001,
        recorded_by: String::new(),
    }
}

/// Every field.
pub(crate) fn full() -> Entry {
    Entry {
        event: Event {
            actor: Actor {
                id: "u-1".into(),
                kind: Some(ActorKind::ServiceAccount),
                display_name: "Ada, \"the first\"".into(),
                ip_address: "2001:db8::1".into(),
                user_agent: "curl/8.5.0".into(),
                on_behalf_of: "u-2".into(),
            },
            action: "user.role_changed".into(),
            resources: vec![
                Resource { kind: "user".into(), id: "u-3".into(), name: "zoe@example.com".into() },
                Resource { kind: "team".into(), id: "t-1".into(), name: String::new() },
            ],
            outcome: Outcome::Denied,
            reason: "TICKET-42; see the runbook".into(),
            changes: vec![
                Change {
                    path: "/role".into(),
                    old_value: Some("\"member\"".into()),
                    new_value: Some("\"admin\"".into()),
                },
                Change { path: "/limits/a~1b".into(), old_value: None, new_value: Some("9007199254740993".into()) },
                Change { path: "/gone".into(), old_value: Some("{\"b\":1, \"a\":[ ]}".into()), new_value: None },
                Change { path: String::new(), old_value: None, new_value: None },
            ],
            details_json: "{\"k\":\"v\"}".into(),
            request_id: "req-7".into(),
            operation: Some(Operation { id: "op-9".into(), stage: Stage::Outcome }),
            producer: Some(Producer { id: "gateway-1".into(), epoch: u64::MAX, sequence: 9_007_199_254_740_993 }),
            ..minimal().event
        },
        sequence: u64::MAX,
        recorded_at_us: 1_732_320_001_999_999,
        recorded_by: "writer@example.com".into(),
    }
}

/// Text of several scripts, with what JSON escapes and what it does not.
pub(crate) fn unicode() -> Entry {
    let mut entry = minimal();
    entry.event.actor.display_name = "Žofie 東京 👩‍🚀 \u{feff}\u{2028}\u{202e}x/\\ ﬁ é".into();
    entry.event.resources[0].name = "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ＝1".into();
    entry.event.producer = Some(Producer { id: "p".into(), epoch: 0, sequence: 0 });
    entry.event.operation = Some(Operation { id: "ö".into(), stage: Stage::Single });
    entry
}

/// What RFC 8785 escapes, in the one place where it can come: white space and escapes of a JSON text.
pub(crate) fn escapes() -> Entry {
    let mut entry = minimal();
    entry.event.details_json = "{\r\n\t\"quote\\\"\": \"\\u0000\\b\\f \u{7f}\u{80}\"\n}".into();
    entry.event.changes =
        vec![Change { path: "/\"q\"\\".into(), old_value: Some(" null\n".into()), new_value: Some("\"\\\\\"".into()) }];
    entry
}
