//! The rows of the shape `REQUESTS`.

use service_core::error::{Error, Result};
use service_core::time_range::rfc3339;

use super::csv::Line;
use super::{Format, json};
use crate::model::{Charge, StoredRequest};
use crate::money;

const COLUMNS: [&str; 35] = [
    "id",
    "occurred_at",
    "recorded_at",
    "instance_id",
    "user_id",
    "team_id",
    "api_key_id",
    "provider",
    "requested_model",
    "model",
    "status",
    "operation",
    "input_uncached",
    "input_cache_read",
    "input_cache_write",
    "input_cache_write_1h",
    "output",
    "output_reasoning",
    "total_tokens",
    "other_units",
    "cost",
    "currency_code",
    "price_book_version",
    "price_provider",
    "price_model",
    "price_detail",
    "unpriced_reason",
    "latency_seconds",
    "time_to_first_token_seconds",
    "service_tier",
    "processing",
    "request_id",
    "labels",
    "price_conditions",
    "producer",
];

/// What comes before the first row.
pub(crate) fn requests_header(format: Format, out: &mut Vec<u8>) {
    if format == Format::Csv {
        let mut line = Line::new(out);
        for column in COLUMNS {
            line.plain(column);
        }
        line.end();
    }
}

/// One request.
pub(crate) fn request(format: Format, stored: &StoredRequest, out: &mut Vec<u8>) -> Result<()> {
    match format {
        Format::Jsonl => json::line(&json::Request::from(stored), out).map_err(Error::internal),
        Format::Csv => csv(stored, out).map_err(Error::internal),
    }
}

fn csv(stored: &StoredRequest, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let event = &stored.event;
    let tokens = &event.tokens;
    let mut line = Line::new(out);
    line.plain(event.id.hyphenated())
        .plain(rfc3339(event.occurred_at_us))
        .plain(rfc3339(stored.recorded_at_us))
        .text(&event.instance_id)
        .text(&event.user_id)
        .text(&event.team_id)
        .text(&event.api_key_id)
        .text(&event.provider)
        .text(&event.requested_model)
        .text(&event.model)
        .plain(event.status.name())
        .text(&event.operation)
        .plain(tokens.input_uncached)
        .plain(tokens.input_cache_read)
        .plain(tokens.input_cache_write)
        .plain(tokens.input_cache_write_1h)
        .plain(tokens.output)
        .plain(tokens.output_reasoning)
        .plain(tokens.total())
        .text(&map(&event.other_units)?);
    match &stored.charge {
        Charge::Priced { cost_nanos, price } => line
            .plain(money::text((*cost_nanos).into()))
            .plain(money::CURRENCY)
            .text(&price.book_version)
            .text(&price.provider)
            .text(&price.model)
            .text(&price.detail)
            .plain(""),
        Charge::Unpriced(reason) => {
            line.plain("").plain(money::CURRENCY).plain("").plain("").plain("").plain("").text(reason)
        }
    };
    line.optional(event.latency_us.map(seconds))
        .optional(event.time_to_first_token_us.map(seconds))
        .text(&event.service_tier)
        .text(&event.processing)
        .text(&event.request_id)
        .text(&map(&event.labels)?)
        .text(&map(&event.price_conditions)?);
    match &event.producer {
        Some(producer) => line.text(&format!("{}/{}/{}", producer.id, producer.epoch, producer.sequence)),
        None => line.plain(""),
    };
    line.end();
    Ok(())
}

/// A JSON object, or nothing.
fn map<V: serde::Serialize>(map: &std::collections::BTreeMap<String, V>) -> Result<String, serde_json::Error> {
    if map.is_empty() {
        return Ok(String::new());
    }
    serde_json::to_string(map)
}

/// Microseconds, never negative, as seconds.
fn seconds(us: i64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}
