//! Written events: every rule that the contract has for them.

use std::net::IpAddr;

use activity_proto::audit::v1 as proto;
use activity_proto::common::v1 as common;
use prost::Message as _;
use serde::de::IgnoredAny;
use service_core::clock;
use service_core::error::{Reason, Violation};
use uuid::Uuid;

use super::{MAX_NAME_BYTES, MAX_TEXT_BYTES, is_action_part, json_pointer, required, shown, text};
use crate::event::{Actor, ActorKind, Change, Dropped, Event, Operation, Outcome, Producer, Resource, Stage};
use crate::time::rfc3339;

/// How deep a JSON text may nest.
const MAX_JSON_DEPTH: usize = 128;
const MAX_EVENT_BYTES: usize = 64 * 1024;
const MAX_RESOURCES: usize = 100;
const MAX_CHANGES: usize = 1_000;

/// 2000-01-01T00:00:00Z.
const EARLIEST_US: i64 = 946_684_800_000_000;
/// How far ahead of the server's clock a writer's may be.
const MAX_AHEAD_US: i64 = 5 * 60 * clock::MICROS_PER_SECOND;
/// How far the id's time may be from the event's.
const MAX_ID_SKEW_US: i64 = 24 * 3_600 * clock::MICROS_PER_SECOND;

/// Checks an event and settles its defaults.
pub(crate) fn event(wire: proto::AuditEvent, now_us: i64) -> Result<Event, Violation> {
    let bytes = wire.encoded_len();
    if bytes > MAX_EVENT_BYTES {
        let message = format!("the event has {bytes} bytes, allowed are {MAX_EVENT_BYTES}");
        return Err(Violation::new(Reason::TooLarge, "", message));
    }
    let occurred_at_us = occurred_at(wire.occurred_at.as_ref(), now_us)?;
    let id = id(&wire.id, occurred_at_us)?;
    required(|| "instance_id".into(), &wire.instance_id, MAX_NAME_BYTES)?;
    let actor = actor(wire.actor)?;
    action(&wire.action)?;
    let resources = resources(wire.resources)?;
    let outcome = match wire.outcome {
        0 => return Err(Violation::required("outcome")),
        number => Outcome::from_number(number).ok_or_else(|| unknown("outcome", number, "Outcome"))?,
    };
    text(|| "reason".into(), &wire.reason, MAX_TEXT_BYTES)?;
    let changes = changes(wire.changes)?;
    if !wire.details_json.is_empty() {
        json(|| "details_json".into(), &wire.details_json)?;
    }
    text(|| "request_id".into(), &wire.request_id, MAX_NAME_BYTES)?;
    Ok(Event {
        id,
        occurred_at_us,
        instance_id: wire.instance_id,
        actor,
        action: wire.action,
        resources,
        outcome,
        reason: wire.reason,
        changes,
        details_json: wire.details_json,
        request_id: wire.request_id,
        operation: wire.operation.map(operation).transpose()?.flatten(),
        producer: wire.producer.map(|producer| numbers("producer", producer)).transpose()?,
    })
}

fn occurred_at(wire: Option<&prost_types::Timestamp>, now_us: i64) -> Result<i64, Violation> {
    let wire = wire.ok_or_else(|| Violation::required("occurred_at"))?;
    let us = clock::from_timestamp("occurred_at", wire)?;
    let latest = now_us.saturating_add(MAX_AHEAD_US);
    if (EARLIEST_US..=latest).contains(&us) {
        return Ok(us);
    }
    let message = format!(
        "occurred_at is {}, allowed are {} to {} (five minutes ahead of the server's clock)",
        rfc3339(us),
        rfc3339(EARLIEST_US),
        rfc3339(latest)
    );
    Err(Violation::new(Reason::TimeOutOfBounds, "occurred_at", message))
}

fn id(wire: &str, occurred_at_us: i64) -> Result<Uuid, Violation> {
    if wire.is_empty() {
        return Err(Violation::required("id"));
    }
    let refused = |why: String| Violation::new(Reason::InvalidId, "id", why);
    let usual = || refused(format!("id is {:?}, allowed is a UUIDv7 of 36 characters", shown(wire)));
    // The parser also takes braces, a URN and no hyphens at all.
    let id = Uuid::try_parse(wire).ok().filter(|_| wire.len() == 36).ok_or_else(usual)?;
    if id.get_version_num() != 7 || id.get_variant() != uuid::Variant::RFC4122 {
        return Err(usual());
    }
    // The first 48 bits are milliseconds since the epoch, which fit when multiplied.
    let made_us = (id.as_u128() >> 80) as i64 * 1_000;
    if (made_us - occurred_at_us).abs() <= MAX_ID_SKEW_US {
        return Ok(id);
    }
    Err(refused(format!(
        "id has the time {}, allowed are 24 hours around occurred_at {}",
        clock_text(made_us),
        rfc3339(occurred_at_us)
    )))
}

/// A time that the client chose freely: it may lie beyond the calendar that our own format is for.
fn clock_text(us: i64) -> String {
    if us < 253_402_300_800 * clock::MICROS_PER_SECOND { rfc3339(us) } else { format!("{us} microseconds") }
}

fn actor(wire: Option<proto::Actor>) -> Result<Actor, Violation> {
    let wire = wire.ok_or_else(|| Violation::required("actor"))?;
    required(|| "actor.id".into(), &wire.id, MAX_NAME_BYTES)?;
    let kind = match wire.kind {
        0 => None,
        number => Some(ActorKind::from_number(number).ok_or_else(|| unknown("actor.kind", number, "ActorKind"))?),
    };
    text(|| "actor.display_name".into(), &wire.display_name, MAX_NAME_BYTES)?;
    text(|| "actor.user_agent".into(), &wire.user_agent, MAX_TEXT_BYTES)?;
    text(|| "actor.on_behalf_of".into(), &wire.on_behalf_of, MAX_NAME_BYTES)?;
    if !wire.ip_address.is_empty() && wire.ip_address.parse::<IpAddr>().is_err() {
        let message = format!("actor.ip_address is {:?}, allowed is an IPv4 or IPv6 address", shown(&wire.ip_address));
        return Err(Violation::invalid("actor.ip_address", message));
    }
    Ok(Actor {
        id: wire.id,
        kind,
        display_name: wire.display_name,
        ip_address: wire.ip_address,
        user_agent: wire.user_agent,
        on_behalf_of: wire.on_behalf_of,
    })
}

/// The resource whose actions are entries of the service's own.
const OWN: &str = "audit_log";

fn action(wire: &str) -> Result<(), Violation> {
    required(|| "action".into(), wire, MAX_NAME_BYTES)?;
    match wire.split_once('.') {
        // What such an entry says, the service does: nobody else is believed.
        Some((OWN, verb)) if is_action_part(verb) => {
            let message = format!("action is {:?}, and actions of {OWN} are those of the service alone", shown(wire));
            Err(Violation::new(Reason::InvalidAction, "action", message))
        }
        Some((resource, verb)) if is_action_part(resource) && is_action_part(verb) => Ok(()),
        _ => {
            let message = format!(
                "action is {:?}, allowed is <resource>.<verb> in lower snake case, such as model.enabled",
                shown(wire)
            );
            Err(Violation::new(Reason::InvalidAction, "action", message))
        }
    }
}

fn resources(wire: Vec<proto::Resource>) -> Result<Vec<Resource>, Violation> {
    if wire.is_empty() {
        return Err(Violation::required("resources"));
    }
    at_most("resources", wire.len(), MAX_RESOURCES)?;
    wire.into_iter()
        .enumerate()
        .map(|(at, wire)| {
            let field = |name: &'static str| move || format!("resources[{at}].{name}");
            required(field("type"), &wire.r#type, MAX_NAME_BYTES)?;
            required(field("id"), &wire.id, MAX_NAME_BYTES)?;
            text(field("name"), &wire.name, MAX_NAME_BYTES)?;
            Ok(Resource { kind: wire.r#type, id: wire.id, name: wire.name })
        })
        .collect()
}

fn changes(wire: Vec<proto::Change>) -> Result<Vec<Change>, Violation> {
    at_most("changes", wire.len(), MAX_CHANGES)?;
    wire.into_iter()
        .enumerate()
        .map(|(at, wire)| {
            let field = |name: &'static str| move || format!("changes[{at}].{name}");
            json_pointer(field("path"), &wire.path)?;
            for (name, value) in [("old_value", &wire.old_value), ("new_value", &wire.new_value)] {
                if let Some(value) = value {
                    json(field(name), value)?;
                }
            }
            Ok(Change { path: wire.path, old_value: wire.old_value, new_value: wire.new_value })
        })
        .collect()
}

/// Absent and empty are the same: an event that stands alone.
fn operation(wire: proto::Operation) -> Result<Option<Operation>, Violation> {
    text(|| "operation.id".into(), &wire.id, MAX_NAME_BYTES)?;
    let stage = match wire.stage {
        0 => Stage::Single,
        number => Stage::from_number(number).ok_or_else(|| unknown("operation.stage", number, "Stage"))?,
    };
    match (wire.id.is_empty(), stage) {
        (true, Stage::Single) => Ok(None),
        (true, Stage::Intent | Stage::Outcome) => Err(Violation::required("operation.id")),
        (false, stage) => Ok(Some(Operation { id: wire.id, stage })),
    }
}

fn numbers(field: &str, wire: common::Producer) -> Result<Producer, Violation> {
    required(|| format!("{field}.id"), &wire.id, MAX_NAME_BYTES)?;
    let sequence = wire.sequence.ok_or_else(|| Violation::required(format!("{field}.sequence")))?;
    Ok(Producer { id: wire.id, epoch: wire.epoch, sequence })
}

/// Checks a range of numbers that a producer dropped, the one at a place of its batch.
pub(crate) fn dropped(at: usize, wire: common::DroppedRange) -> Result<Dropped, Violation> {
    let field = |name: &str| format!("dropped[{at}].{name}");
    let producer = wire.producer.ok_or_else(|| Violation::required(field("producer")))?;
    required(|| field("producer.id"), &producer.id, MAX_NAME_BYTES)?;
    let first = wire.first_sequence.ok_or_else(|| Violation::required(field("first_sequence")))?;
    let last = wire.last_sequence.ok_or_else(|| Violation::required(field("last_sequence")))?;
    if last < first {
        let field = field("last_sequence");
        let message = format!("{field} is {last}, allowed is {first} (first_sequence) or more");
        return Err(Violation::invalid(field, message));
    }
    Ok(Dropped { producer_id: producer.id, epoch: producer.epoch, first, last })
}

/// Checks that a value is one JSON text. It is kept as it came.
fn json(field: impl Fn() -> String, value: &str) -> Result<(), Violation> {
    let why = match serde_json::from_str::<IgnoredAny>(value) {
        Ok(IgnoredAny) if depth(value) <= MAX_JSON_DEPTH => return Ok(()),
        Ok(IgnoredAny) => format!("at most {MAX_JSON_DEPTH} deep"),
        Err(error) => error.to_string(),
    };
    let field = field();
    let message = format!("{field} is {:?}, allowed is a JSON text: {why}", shown(value));
    Err(Violation::new(Reason::InvalidJson, field, message))
}

/// How deep the arrays and objects of a JSON text are within each other. Readers of the log recurse.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    deepest
}

fn at_most(field: &str, given: usize, allowed: usize) -> Result<(), Violation> {
    if given <= allowed {
        return Ok(());
    }
    Err(Violation::invalid(field, format!("{field} has {given} items, allowed are {allowed}")))
}

fn unknown(field: &str, number: i32, name: &str) -> Violation {
    Violation::invalid(field, format!("{field} is {number}, allowed are the values of {name}"))
}

#[cfg(test)]
mod tests;
