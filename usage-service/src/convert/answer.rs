//! What goes out: totals, groups, requests. Every count is set, zeros included.

use activity_proto::common::v1 as common;
use activity_proto::usage::v1 as proto;
use service_core::clock;

use crate::answer;
use crate::model::{Charge, Dimension, StoredRequest, Tokens};
use crate::money;

/// `currency_code` of every answer.
pub(crate) fn currency() -> String {
    money::CURRENCY.to_owned()
}

/// An interval between two moments.
pub(crate) fn interval(start_us: i64, end_us: i64) -> common::Interval {
    common::Interval { start: Some(clock::to_timestamp(start_us)), end: Some(clock::to_timestamp(end_us)) }
}

/// Totals.
pub(crate) fn metrics(metrics: &answer::Metrics) -> proto::Metrics {
    let totals = &metrics.totals;
    proto::Metrics {
        requests: Some(totals.requests),
        failed_requests: Some(totals.failed_requests),
        // A sum of counts is never negative.
        total_tokens: Some(totals.tokens.total().unsigned_abs()),
        tokens: Some(tokens(&totals.tokens)),
        cost: Some(money::text(totals.cost_nanos)),
        unique_users: Some(metrics.unique_users),
        unique_models: Some(metrics.unique_models),
        unpriced_requests: Some(totals.unpriced_requests),
        unpriced_tokens: Some(totals.unpriced_tokens.unsigned_abs()),
    }
}

fn tokens(tokens: &Tokens) -> proto::Tokens {
    proto::Tokens {
        input_uncached: Some(tokens.input_uncached),
        input_cache_read: Some(tokens.input_cache_read),
        input_cache_write: Some(tokens.input_cache_write),
        input_cache_write_1h: Some(tokens.input_cache_write_1h),
        output: Some(tokens.output),
        output_reasoning: Some(tokens.output_reasoning),
    }
}

/// A row of a breakdown.
pub(crate) fn breakdown_row(group: &answer::Group) -> proto::BreakdownRow {
    proto::BreakdownRow { keys: group.keys.clone(), metrics: group.buckets.first().map(metrics) }
}

/// A series: one point for each bucket between two edges.
pub(crate) fn series(keys: Vec<String>, edges: &[i64], buckets: &[answer::Metrics]) -> proto::Series {
    let points = edges.windows(2).zip(buckets);
    proto::Series { keys, points: points.map(|(edge, bucket)| point(edge[0], edge[1], bucket)).collect() }
}

/// One point.
fn point(start_us: i64, end_us: i64, bucket: &answer::Metrics) -> proto::Point {
    proto::Point { interval: Some(interval(start_us, end_us)), metrics: Some(metrics(bucket)) }
}

/// The values of one dimension.
pub(crate) fn facet(dimension: Dimension, values: Vec<(String, u64)>, distinct: u64) -> proto::Facet {
    let number = match dimension {
        Dimension::User => proto::Dimension::User,
        Dimension::Team => proto::Dimension::Team,
        Dimension::Model => proto::Dimension::Model,
        Dimension::Provider => proto::Dimension::Provider,
        Dimension::ApiKey => proto::Dimension::ApiKey,
        Dimension::Instance => proto::Dimension::Instance,
        Dimension::Status => proto::Dimension::Status,
    };
    proto::Facet {
        dimension: number.into(),
        values: values.into_iter().map(|(value, count)| proto::FacetValue { value, count: Some(count) }).collect(),
        distinct: Some(distinct),
    }
}

/// A request as it is kept.
pub(crate) fn request(stored: StoredRequest) -> proto::UsageRequest {
    let total_tokens = stored.event.tokens.total();
    let (cost, price, unpriced_reason) = match stored.charge {
        Charge::Priced { cost_nanos, price } => {
            let price = proto::AppliedPrice {
                book_version: price.book_version,
                provider: price.provider,
                model: price.model,
                detail: price.detail,
            };
            (Some(money::text(cost_nanos.into())), Some(price), String::new())
        }
        Charge::Unpriced(reason) => (None, None, reason),
    };
    let event = stored.event;
    proto::UsageRequest {
        id: event.id.hyphenated().to_string(),
        occurred_at: Some(clock::to_timestamp(event.occurred_at_us)),
        instance_id: event.instance_id,
        user_id: event.user_id,
        team_id: event.team_id,
        api_key_id: event.api_key_id,
        provider: event.provider,
        requested_model: event.requested_model,
        model: event.model,
        status: i32::from(event.status.number()),
        operation: event.operation,
        tokens: Some(tokens(&event.tokens)),
        other_units: event.other_units,
        latency: event.latency_us.map(duration),
        time_to_first_token: event.time_to_first_token_us.map(duration),
        service_tier: event.service_tier,
        processing: event.processing,
        request_id: event.request_id,
        labels: event.labels,
        price_conditions: event.price_conditions,
        producer: event.producer.map(|producer| common::Producer {
            id: producer.id,
            // Stored numbers are never negative.
            epoch: producer.epoch.unsigned_abs(),
            sequence: Some(producer.sequence.unsigned_abs()),
        }),
        recorded_at: Some(clock::to_timestamp(stored.recorded_at_us)),
        recorded_by: stored.recorded_by,
        cost,
        price,
        total_tokens: Some(total_tokens),
        unpriced_reason,
    }
}

/// Microseconds, never negative, as a wire duration.
pub(super) fn duration(us: i64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: us / clock::MICROS_PER_SECOND,
        // A remainder below a million, times a thousand, fits an i32.
        nanos: (us % clock::MICROS_PER_SECOND * 1_000) as i32,
    }
}
