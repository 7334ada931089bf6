//! Each rule of the contract, by an event that breaks it and one that just keeps it.

use super::*;

const NOW_US: i64 = 1_800_000_000_000_000;

fn stamp(us: i64) -> Option<prost_types::Timestamp> {
    Some(clock::to_timestamp(us))
}

fn uuid_at(us: i64) -> Uuid {
    let millis = u128::from((us / 1_000).unsigned_abs());
    Uuid::from_u128((millis << 80) | 0x7abc_8def_0123_4567_89ab)
}

fn good() -> proto::AuditEvent {
    proto::AuditEvent {
        id: uuid_at(NOW_US).to_string(),
        occurred_at: stamp(NOW_US),
        instance_id: "prod".into(),
        actor: Some(proto::Actor { id: "u".into(), ..Default::default() }),
        action: "model.enabled".into(),
        resources: vec![proto::Resource { r#type: "model".into(), id: "m".into(), name: String::new() }],
        outcome: 1,
        ..Default::default()
    }
}

fn with(change: impl FnOnce(&mut proto::AuditEvent)) -> proto::AuditEvent {
    let mut wire = good();
    change(&mut wire);
    wire
}

#[track_caller]
fn refused(reason: Reason, field: &str, change: impl FnOnce(&mut proto::AuditEvent)) -> String {
    let violation = event(with(change), NOW_US).expect_err("refused");
    assert_eq!((violation.reason, violation.field.as_str()), (reason, field), "{violation}");
    violation.message
}

#[track_caller]
fn accepted(change: impl FnOnce(&mut proto::AuditEvent)) -> Event {
    event(with(change), NOW_US).expect("accepted")
}

#[test]
fn required_fields_are_named() {
    refused(Reason::Required, "id", |event| event.id.clear());
    refused(Reason::Required, "occurred_at", |event| event.occurred_at = None);
    refused(Reason::Required, "instance_id", |event| event.instance_id.clear());
    refused(Reason::Required, "actor", |event| event.actor = None);
    refused(Reason::Required, "actor.id", |event| event.actor = Some(proto::Actor::default()));
    refused(Reason::Required, "action", |event| event.action.clear());
    refused(Reason::Required, "resources", |event| event.resources.clear());
    refused(Reason::Required, "resources[0].type", |event| event.resources[0].r#type.clear());
    refused(Reason::Required, "resources[0].id", |event| event.resources[0].id.clear());
    refused(Reason::Required, "outcome", |event| event.outcome = 0);
    refused(Reason::Required, "operation.id", |event| {
        event.operation = Some(proto::Operation { id: String::new(), stage: 2 });
    });
    refused(Reason::Required, "producer.id", |event| {
        event.producer = Some(common::Producer { sequence: Some(1), ..Default::default() });
    });
    refused(Reason::Required, "producer.sequence", |event| {
        event.producer = Some(common::Producer { id: "p".into(), ..Default::default() });
    });
}

#[test]
fn ids_are_uuids_of_version_7_near_the_time() {
    for bad in ["42", "{01935a6e-4c00-7000-8000-000000000001}", "01935a6e4c0070008000000000000001", "ä"] {
        refused(Reason::InvalidId, "id", |event| event.id = bad.into());
    }
    refused(Reason::InvalidId, "id", |event| {
        event.id = Uuid::from_u128(uuid_at(NOW_US).as_u128() ^ (3 << 76)).to_string()
    });
    refused(Reason::InvalidId, "id", |event| {
        event.id = Uuid::from_u128(uuid_at(NOW_US).as_u128() ^ (1 << 63)).to_string()
    });
    for skew in [MAX_ID_SKEW_US, -MAX_ID_SKEW_US] {
        accepted(|event| event.id = uuid_at(NOW_US + skew).to_string());
        refused(Reason::InvalidId, "id", |event| event.id = uuid_at(NOW_US + skew + skew.signum() * 1_000).to_string());
    }
    refused(Reason::InvalidId, "id", |event| event.id = "ffffffff-ffff-7fff-bfff-ffffffffffff".into());
    let upper = accepted(|event| event.id = event.id.to_uppercase());
    assert_eq!(upper.id.to_string(), good().id);
}

#[test]
fn times_have_bounds() {
    let at = |us: i64| {
        move |event: &mut proto::AuditEvent| {
            event.occurred_at = stamp(us);
            event.id = uuid_at(us).to_string();
        }
    };
    accepted(at(EARLIEST_US));
    accepted(at(NOW_US + MAX_AHEAD_US));
    refused(Reason::TimeOutOfBounds, "occurred_at", at(EARLIEST_US - 1));
    refused(Reason::TimeOutOfBounds, "occurred_at", at(NOW_US + MAX_AHEAD_US + 1));
    refused(Reason::InvalidArgument, "occurred_at", |event| {
        event.occurred_at = Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: -1 });
    });
    let truncated = accepted(|event| {
        event.occurred_at = Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 999_999 });
    });
    assert_eq!(truncated.occurred_at_us, 1_800_000_000_000_999);
}

#[test]
fn actions_are_two_parts_in_lower_snake_case() {
    for bad in [
        "Enable Model",
        "model",
        "model.",
        ".enabled",
        "model.enabled.now",
        "Model.enabled",
        "1x.y",
        "a.b-c",
        "a._b",
        "ä.b",
    ] {
        refused(Reason::InvalidAction, "action", |event| event.action = bad.into());
    }
    for good in ["a.b", "mcp_oauth_client.secret_2_rotated"] {
        accepted(|event| event.action = good.into());
    }
}

#[test]
fn texts_have_limits_and_no_control_characters() {
    accepted(|event| event.instance_id = "é".repeat(128));
    refused(Reason::InvalidArgument, "instance_id", |event| event.instance_id = "é".repeat(128) + "x");
    accepted(|event| event.reason = "r".repeat(1_024));
    refused(Reason::InvalidArgument, "reason", |event| event.reason = "r".repeat(1_025));
    for control in ['\0', '\n', '\u{7f}', '\u{85}'] {
        refused(Reason::InvalidArgument, "reason", |event| event.reason = format!("a{control}b"));
        refused(Reason::InvalidArgument, "actor.display_name", |event| {
            event.actor = Some(proto::Actor { id: "u".into(), display_name: control.into(), ..Default::default() });
        });
        refused(Reason::InvalidArgument, "resources[0].name", |event| event.resources[0].name = control.into());
    }
    let message = refused(Reason::InvalidArgument, "request_id", |event| event.request_id = "\0".into());
    assert!(message.contains("U+0000"), "{message}");
}

#[test]
fn addresses_are_ipv4_or_ipv6() {
    let at = |address: &str| {
        let address = address.to_owned();
        |event: &mut proto::AuditEvent| event.actor.as_mut().unwrap().ip_address = address
    };
    for good in ["", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"] {
        accepted(at(good));
    }
    for bad in ["192.0.2", "192.0.2.1:80", "localhost", "2001:db8::1%eth0", " 192.0.2.1"] {
        refused(Reason::InvalidArgument, "actor.ip_address", at(bad));
    }
}

#[test]
fn paths_are_json_pointers_and_values_json() {
    let change = |path: &str, value: Option<&str>| {
        let change = proto::Change { path: path.into(), old_value: None, new_value: value.map(str::to_owned) };
        move |event: &mut proto::AuditEvent| event.changes = vec![proto::Change::default(), change]
    };
    for good in ["", "/", "/a/b", "/a~0b~1c", "/ü"] {
        accepted(change(good, None));
    }
    for bad in ["limits.rpm", "a", "/a~", "/a~2"] {
        refused(Reason::InvalidJsonPointer, "changes[1].path", change(bad, None));
    }
    for good in ["1", " null\n", "\"on\"", "{\"a\":[1,2]}", "1e400", "\"\\u0000\""] {
        accepted(change("/a", Some(good)));
    }
    let deep = "[".repeat(100_000);
    for bad in ["on", "", "{", "1 2", "\"\t\"", "\"\0\"", "NaN", "'a'", deep.get(..10_000).unwrap()] {
        refused(Reason::InvalidJson, "changes[1].new_value", change("/a", Some(bad)));
    }
    refused(Reason::InvalidJson, "details_json", |event| event.details_json = "{a:1}".into());
}

#[test]
fn unknown_enum_values_are_refused() {
    refused(Reason::InvalidArgument, "outcome", |event| event.outcome = 99);
    refused(Reason::InvalidArgument, "actor.kind", |event| event.actor.as_mut().unwrap().kind = -1);
    refused(Reason::InvalidArgument, "operation.stage", |event| {
        event.operation = Some(proto::Operation { id: "o".into(), stage: 4 });
    });
}

#[test]
fn an_operation_has_a_stage_and_an_empty_one_is_none() {
    let with = |id: &str, stage| {
        let operation = proto::Operation { id: id.into(), stage };
        accepted(|event| event.operation = Some(operation)).operation
    };
    assert_eq!(with("", 0), None);
    assert_eq!(with("", 1), None);
    assert_eq!(with("o", 0).unwrap().stage, Stage::Single);
    assert_eq!(with("o", 3).unwrap().stage, Stage::Outcome);
}

#[test]
fn lists_and_events_have_limits() {
    let resource = good().resources[0].clone();
    accepted(|event| event.resources = vec![resource.clone(); 100]);
    refused(Reason::InvalidArgument, "resources", |event| event.resources = vec![resource; 101]);
    accepted(|event| event.changes = vec![proto::Change::default(); 1_000]);
    refused(Reason::InvalidArgument, "changes", |event| event.changes = vec![proto::Change::default(); 1_001]);
    let room = MAX_EVENT_BYTES - good().encoded_len() - 4;
    let details = format!("\"{}\"", "x".repeat(room - 2));
    let full = with(|event| event.details_json = details.clone());
    assert_eq!(full.encoded_len(), MAX_EVENT_BYTES);
    event(full, NOW_US).expect("accepted");
    refused(Reason::TooLarge, "", |event| event.details_json = details + " ");
}

#[test]
fn dropped_ranges_are_checked() {
    let range = |first, last| common::DroppedRange {
        producer: Some(common::Producer { id: "p".into(), ..Default::default() }),
        first_sequence: first,
        last_sequence: last,
    };
    assert_eq!(dropped(0, range(Some(3), Some(3))).unwrap().last, 3);
    for (bad, field) in [
        (range(Some(3), Some(2)), "dropped[0].last_sequence"),
        (range(None, Some(2)), "dropped[0].first_sequence"),
        (range(Some(3), None), "dropped[0].last_sequence"),
        (common::DroppedRange { producer: None, ..range(Some(1), Some(1)) }, "dropped[0].producer"),
    ] {
        assert_eq!(dropped(0, bad).expect_err("refused").field, field);
    }
}
