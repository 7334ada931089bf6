//! JSON lines, with the names of the contract as the JSON of protocol buffers has
//! them: lowerCamelCase, 64-bit integers as strings, full enum names, times as RFC
//! 3339.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use service_core::time_range::rfc3339;

use crate::answer;
use crate::model::{Charge, StoredRequest, Tokens};
use crate::money;

/// A `UsageRequest`, with its event's fields beside its own.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request<'a> {
    id: String,
    occurred_at: String,
    instance_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    team_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_key_id: &'a str,
    provider: &'a str,
    requested_model: &'a str,
    model: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    operation: &'a str,
    tokens: TokenCounts,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    other_units: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_to_first_token: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_tier: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    processing: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    producer: Option<Producer<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    price_conditions: &'a BTreeMap<String, String>,
    recorded_at: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    recorded_by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<Price<'a>>,
    #[serde(serialize_with = "text")]
    total_tokens: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    unpriced_reason: &'a str,
}

#[derive(Debug, Serialize)]
struct Producer<'a> {
    id: &'a str,
    #[serde(serialize_with = "text")]
    epoch: i64,
    #[serde(serialize_with = "text")]
    sequence: i64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Price<'a> {
    book_version: &'a str,
    provider: &'a str,
    model: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenCounts {
    #[serde(serialize_with = "text")]
    input_uncached: i64,
    #[serde(serialize_with = "text")]
    input_cache_read: i64,
    #[serde(serialize_with = "text")]
    input_cache_write: i64,
    #[serde(serialize_with = "text")]
    input_cache_write_1h: i64,
    #[serde(serialize_with = "text")]
    output: i64,
    #[serde(serialize_with = "text")]
    output_reasoning: i64,
}

/// A row of the shapes that are groups.
#[derive(Debug, Serialize)]
pub(super) struct Group<'a> {
    /// `GROUP`, `OTHER` or `TOTAL`.
    pub(super) row: &'static str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(super) keys: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interval: Option<Interval>,
    pub(super) metrics: Metrics,
}

#[derive(Debug, Serialize)]
pub(super) struct Interval {
    start: String,
    end: String,
}

impl Interval {
    pub(super) fn new(start_us: i64, end_us: i64) -> Self {
        Self { start: rfc3339(start_us), end: rfc3339(end_us) }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metrics {
    #[serde(serialize_with = "text")]
    requests: u64,
    #[serde(serialize_with = "text")]
    failed_requests: u64,
    #[serde(serialize_with = "text")]
    total_tokens: i64,
    tokens: TokenCounts,
    cost: String,
    #[serde(serialize_with = "text")]
    unique_users: u64,
    #[serde(serialize_with = "text")]
    unique_models: u64,
    #[serde(serialize_with = "text")]
    unpriced_requests: u64,
    #[serde(serialize_with = "text")]
    unpriced_tokens: i64,
}

impl From<&answer::Metrics> for Metrics {
    fn from(metrics: &answer::Metrics) -> Self {
        let totals = &metrics.totals;
        Self {
            requests: totals.requests,
            failed_requests: totals.failed_requests,
            total_tokens: totals.tokens.total(),
            tokens: (&totals.tokens).into(),
            cost: money::text(totals.cost_nanos),
            unique_users: metrics.unique_users,
            unique_models: metrics.unique_models,
            unpriced_requests: totals.unpriced_requests,
            unpriced_tokens: totals.unpriced_tokens,
        }
    }
}

impl From<&Tokens> for TokenCounts {
    fn from(tokens: &Tokens) -> Self {
        Self {
            input_uncached: tokens.input_uncached,
            input_cache_read: tokens.input_cache_read,
            input_cache_write: tokens.input_cache_write,
            input_cache_write_1h: tokens.input_cache_write_1h,
            output: tokens.output,
            output_reasoning: tokens.output_reasoning,
        }
    }
}

impl<'a> From<&'a StoredRequest> for Request<'a> {
    fn from(stored: &'a StoredRequest) -> Self {
        let (price, unpriced_reason) = match &stored.charge {
            Charge::Priced { price, .. } => {
                let price = Price {
                    book_version: &price.book_version,
                    provider: &price.provider,
                    model: &price.model,
                    detail: &price.detail,
                };
                (Some(price), "")
            }
            Charge::Unpriced(reason) => (None, reason.as_str()),
        };
        let event = &stored.event;
        Self {
            id: event.id.hyphenated().to_string(),
            occurred_at: rfc3339(event.occurred_at_us),
            instance_id: &event.instance_id,
            user_id: &event.user_id,
            team_id: &event.team_id,
            api_key_id: &event.api_key_id,
            provider: &event.provider,
            requested_model: &event.requested_model,
            model: &event.model,
            status: event.status.name(),
            operation: &event.operation,
            tokens: (&event.tokens).into(),
            other_units: event.other_units.iter().map(|(unit, count)| (unit.as_str(), count.to_string())).collect(),
            latency: event.latency_us.map(duration),
            time_to_first_token: event.time_to_first_token_us.map(duration),
            service_tier: &event.service_tier,
            processing: &event.processing,
            request_id: &event.request_id,
            labels: &event.labels,
            producer: event.producer.as_ref().map(|producer| Producer {
                id: &producer.id,
                epoch: producer.epoch,
                sequence: producer.sequence,
            }),
            price_conditions: &event.price_conditions,
            recorded_at: rfc3339(stored.recorded_at_us),
            recorded_by: &stored.recorded_by,
            cost: stored.charge.cost_nanos().map(|nanos| money::text(nanos.into())),
            price,
            total_tokens: event.tokens.total(),
            unpriced_reason,
        }
    }
}

/// Writes a value as a line.
pub(super) fn line(value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    serde_json::to_writer(&mut *out, value)?;
    out.push(b'\n');
    Ok(())
}

fn text<T: std::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Microseconds, never negative: `1.500000s`.
fn duration(us: i64) -> String {
    format!("{}.{:06}s", us / 1_000_000, us % 1_000_000)
}
