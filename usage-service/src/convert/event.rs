//! A usage event as it comes: checked, and made canonical.
//!
//! Canonical means that two tellings of the same event are the same bytes: the id
//! in lower case, times cut to microseconds, defaults left out, `model` filled in.
//! The hash of these bytes, without `producer`, tells a repeat from a conflict.

use std::collections::BTreeMap;

use activity_proto::usage::v1 as proto;
use prost::Message as _;
use service_core::clock;
use service_core::error::{Reason, Violation};
use service_core::time_range::rfc3339;
use sha2::{Digest as _, Sha256};
use uuid::{Uuid, Variant};

use crate::model::{Event, Producer, Status, Tokens};

/// Longest id or name, in bytes.
const MAX_TEXT: usize = 256;
/// Largest count of tokens or units in one event.
const MAX_COUNT: i64 = 1_000_000_000;
const MAX_OTHER_UNITS: usize = 32;
const MAX_LABELS: usize = 16;
const MAX_PRICE_CONDITIONS: usize = 8;
/// 2000-01-01T00:00:00Z.
const EARLIEST_US: i64 = 946_684_800_000_000;
/// How far a writer's clock may be ahead of ours.
const MAX_AHEAD_US: i64 = 5 * 60 * clock::MICROS_PER_SECOND;
/// How far the time in an id may be from the event's.
const MAX_ID_SKEW_US: i64 = 24 * 3_600 * clock::MICROS_PER_SECOND;
const MAX_DURATION_US: i64 = 7 * 24 * 3_600 * clock::MICROS_PER_SECOND;

/// A checked event and its content hash, or what is wrong with it first.
pub(crate) fn event(mut event: proto::UsageEvent, now_us: i64) -> Result<(Event, [u8; 32]), Violation> {
    let id = id(&event.id)?;
    let occurred_at = event.occurred_at.as_ref().ok_or_else(|| Violation::required("occurred_at"))?;
    let occurred_at_us = clock::from_timestamp("occurred_at", occurred_at)
        .map_err(|violation| Violation { reason: Reason::TimeOutOfBounds, ..violation })?;
    check_time(occurred_at_us, now_us)?;
    check_id_time(id, occurred_at_us)?;

    let required = [
        ("instance_id", &event.instance_id),
        ("provider", &event.provider),
        ("requested_model", &event.requested_model),
    ];
    for (field, value) in required {
        if value.is_empty() {
            return Err(Violation::required(field));
        }
        text(field, value)?;
    }
    let optional = [
        ("user_id", &event.user_id),
        ("team_id", &event.team_id),
        ("api_key_id", &event.api_key_id),
        ("model", &event.model),
        ("operation", &event.operation),
        ("service_tier", &event.service_tier),
        ("processing", &event.processing),
        ("request_id", &event.request_id),
    ];
    for (field, value) in optional {
        text(field, value)?;
    }
    let status = match i64::from(event.status) {
        0 => return Err(Violation::required("status")),
        number => Status::from_number(number).ok_or_else(|| {
            Violation::invalid("status", format!("status is {number}, allowed are the values of RequestStatus, 1 to 5"))
        })?,
    };
    let tokens = tokens(event.tokens.as_ref())?;
    other_units(&event.other_units)?;
    texts("labels", &event.labels, MAX_LABELS)?;
    texts("price_conditions", &event.price_conditions, MAX_PRICE_CONDITIONS)?;
    let latency_us = duration("latency", event.latency.as_ref())?;
    let time_to_first_token_us = duration("time_to_first_token", event.time_to_first_token.as_ref())?;
    let producer = event.producer.take().map(producer).transpose()?;

    event.id = id.hyphenated().to_string();
    event.occurred_at = Some(clock::to_timestamp(occurred_at_us));
    if event.model.is_empty() {
        event.model.clone_from(&event.requested_model);
    }
    event.tokens = canonical_tokens(&tokens);
    event.latency = latency_us.map(super::answer::duration);
    event.time_to_first_token = time_to_first_token_us.map(super::answer::duration);
    let content_hash = Sha256::digest(event.encode_to_vec()).into();

    let event = Event {
        id,
        occurred_at_us,
        instance_id: event.instance_id,
        user_id: event.user_id,
        team_id: event.team_id,
        api_key_id: event.api_key_id,
        provider: event.provider,
        requested_model: event.requested_model,
        model: event.model,
        status,
        operation: event.operation,
        tokens,
        other_units: event.other_units,
        latency_us,
        time_to_first_token_us,
        service_tier: event.service_tier,
        processing: event.processing,
        request_id: event.request_id,
        labels: event.labels,
        price_conditions: event.price_conditions,
        producer,
    };
    Ok((event, content_hash))
}

/// Refuses what is too long or holds control characters. Those include U+0000,
/// which PostgreSQL would refuse with the whole batch.
pub(crate) fn text(field: &str, value: &str) -> Result<(), Violation> {
    if value.len() > MAX_TEXT {
        return Err(Violation::invalid(field, format!("{field} has {} bytes, allowed are {MAX_TEXT}", value.len())));
    }
    if let Some(control) = value.chars().find(|c| c.is_control()) {
        return Err(Violation::invalid(
            field,
            format!("{field} holds the control character U+{:04X}, allowed is text without any", u32::from(control)),
        ));
    }
    Ok(())
}

fn id(text: &str) -> Result<Uuid, Violation> {
    let refused = |what: &str| {
        // Whatever it is, it isn't an id: a short look is enough.
        let shown: String = text.chars().take(40).collect();
        Violation::new(
            Reason::InvalidId,
            "id",
            format!("id is {shown:?}, {what}; allowed is a UUIDv7 such as 0190163d-8694-739b-aea5-966c26f8ad91"),
        )
    };
    if text.is_empty() {
        return Err(Violation::required("id"));
    }
    // The length leaves only the form with hyphens.
    let id = match Uuid::try_parse(text) {
        Ok(id) if text.len() == 36 => id,
        _ => return Err(refused("not a UUID in the usual form")),
    };
    if id.get_version_num() != 7 || id.get_variant() != Variant::RFC4122 {
        return Err(refused("not of version 7"));
    }
    Ok(id)
}

fn check_time(occurred_at_us: i64, now_us: i64) -> Result<(), Violation> {
    let latest_us = now_us.saturating_add(MAX_AHEAD_US);
    if (EARLIEST_US..=latest_us).contains(&occurred_at_us) {
        return Ok(());
    }
    Err(Violation::new(
        Reason::TimeOutOfBounds,
        "occurred_at",
        format!(
            "occurred_at is {}, allowed is {} to {}",
            rfc3339(occurred_at_us),
            rfc3339(EARLIEST_US),
            rfc3339(latest_us)
        ),
    ))
}

fn check_id_time(id: Uuid, occurred_at_us: i64) -> Result<(), Violation> {
    // The first 48 bits are milliseconds since the epoch (RFC 9562).
    let id_us = (id.as_u128() >> 80) as i64 * 1_000;
    if (id_us - occurred_at_us).abs() <= MAX_ID_SKEW_US {
        return Ok(());
    }
    Err(Violation::new(
        Reason::InvalidId,
        "id",
        format!(
            "id has the time {}, allowed is up to 24 hours from occurred_at {}",
            rfc3339(id_us),
            rfc3339(occurred_at_us)
        ),
    ))
}

fn count(field: &str, value: i64) -> Result<i64, Violation> {
    if (0..=MAX_COUNT).contains(&value) {
        return Ok(value);
    }
    Err(Violation::invalid(field, format!("{field} is {value}, allowed are 0 to {MAX_COUNT}")))
}

/// The counts of a message, absent ones as zero.
pub(super) fn tokens(message: Option<&proto::Tokens>) -> Result<Tokens, Violation> {
    let Some(message) = message else {
        return Ok(Tokens::default());
    };
    let read = |field, value: Option<i64>| count(field, value.unwrap_or(0));
    let tokens = Tokens {
        input_uncached: read("tokens.input_uncached", message.input_uncached)?,
        input_cache_read: read("tokens.input_cache_read", message.input_cache_read)?,
        input_cache_write: read("tokens.input_cache_write", message.input_cache_write)?,
        input_cache_write_1h: read("tokens.input_cache_write_1h", message.input_cache_write_1h)?,
        output: read("tokens.output", message.output)?,
        output_reasoning: read("tokens.output_reasoning", message.output_reasoning)?,
    };
    let parts = [
        (
            "tokens.input_cache_write_1h",
            tokens.input_cache_write_1h,
            "tokens.input_cache_write",
            tokens.input_cache_write,
        ),
        ("tokens.output_reasoning", tokens.output_reasoning, "tokens.output", tokens.output),
    ];
    for (field, part, whole_field, whole) in parts {
        if part > whole {
            return Err(Violation::invalid(
                field,
                format!("{field} is {part}, allowed is up to {whole_field}, of which it is a part: {whole}"),
            ));
        }
    }
    Ok(tokens)
}

/// Zero and absent are the same, so neither is written.
fn canonical_tokens(tokens: &Tokens) -> Option<proto::Tokens> {
    let some = |count: i64| (count != 0).then_some(count);
    (*tokens != Tokens::default()).then(|| proto::Tokens {
        input_uncached: some(tokens.input_uncached),
        input_cache_read: some(tokens.input_cache_read),
        input_cache_write: some(tokens.input_cache_write),
        input_cache_write_1h: some(tokens.input_cache_write_1h),
        output: some(tokens.output),
        output_reasoning: some(tokens.output_reasoning),
    })
}

/// Checks the names and counts of other units.
pub(super) fn other_units(units: &BTreeMap<String, i64>) -> Result<(), Violation> {
    at_most("other_units", units.len(), MAX_OTHER_UNITS)?;
    for (unit, value) in units {
        name("other_units", unit)?;
        count("other_units", *value)?;
    }
    Ok(())
}

/// Checks the conditions of a price.
pub(super) fn price_conditions(conditions: &BTreeMap<String, String>) -> Result<(), Violation> {
    texts("price_conditions", conditions, MAX_PRICE_CONDITIONS)
}

fn texts(field: &str, map: &BTreeMap<String, String>, max: usize) -> Result<(), Violation> {
    at_most(field, map.len(), max)?;
    for (key, value) in map {
        name(field, key)?;
        text(field, value)?;
    }
    Ok(())
}

fn name(field: &str, key: &str) -> Result<(), Violation> {
    if key.is_empty() {
        return Err(Violation::invalid(
            field,
            format!("{field} has an empty key, allowed are keys of 1 to {MAX_TEXT} bytes"),
        ));
    }
    text(field, key)
}

/// Refuses a list of too many entries: the field is wrong, and sending less of it is the caller's to decide. (A whole
/// batch over its limit is `TOO_LARGE`, which tells an SDK to split it.)
pub(crate) fn at_most(field: &str, given: usize, max: usize) -> Result<(), Violation> {
    if given > max {
        return Err(Violation::invalid(field, format!("{field} has {given} entries, allowed are {max}")));
    }
    Ok(())
}

fn duration(field: &str, message: Option<&prost_types::Duration>) -> Result<Option<i64>, Violation> {
    let Some(message) = message else {
        return Ok(None);
    };
    let nanos_fit = (0..1_000_000_000).contains(&message.nanos);
    let us = message
        .seconds
        .checked_mul(clock::MICROS_PER_SECOND)
        .and_then(|us| us.checked_add(i64::from(message.nanos / 1_000)))
        .filter(|us| nanos_fit && (0..=MAX_DURATION_US).contains(us));
    match us {
        Some(us) => Ok(Some(us)),
        None => Err(Violation::invalid(
            field,
            format!("{field} is {} s and {} ns, allowed is 0 to 7 days", message.seconds, message.nanos),
        )),
    }
}

fn producer(message: activity_proto::common::v1::Producer) -> Result<Producer, Violation> {
    let sequence = message.sequence.ok_or_else(|| Violation::required("producer.sequence"))?;
    producer_name(&message.id, "producer.id")?;
    Ok(Producer {
        id: message.id,
        epoch: number("producer.epoch", message.epoch)?,
        sequence: number("producer.sequence", sequence)?,
    })
}

pub(super) fn producer_name(id: &str, field: &str) -> Result<(), Violation> {
    if id.is_empty() {
        return Err(Violation::required(field));
    }
    text(field, id)
}

/// Databases count to 2⁶³ − 1; so do we.
pub(super) fn number(field: &str, value: u64) -> Result<i64, Violation> {
    i64::try_from(value)
        .map_err(|_| Violation::invalid(field, format!("{field} is {value}, allowed are 0 to {}", i64::MAX)))
}

#[cfg(test)]
mod tests;
