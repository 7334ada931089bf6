//! The rows of the shape `REQUESTS`.

use uuid::Uuid;

use super::csv::Line;
use crate::model::RequestRow;
use crate::money;

const COLUMNS: [&str; 36] = [
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
    "recorded_by",
];

/// The header of CSV.
pub(super) fn header(out: &mut Vec<u8>) {
    let mut line = Line::new(out);
    for column in COLUMNS {
        line.word(column);
    }
    line.end();
}

/// One request as a line of CSV.
pub(super) fn line(request: &RequestRow<'_>, out: &mut Vec<u8>) {
    let tokens = &request.tokens;
    let mut line = Line::new(out);
    line.word(request.id.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
        .time(request.occurred_at_us)
        .time(request.recorded_at_us)
        .text(request.instance_id)
        .text(request.user_id)
        .text(request.team_id)
        .text(request.api_key_id)
        .text(request.provider)
        .text(request.requested_model)
        .text(request.model)
        .word(request.status.name())
        .text(request.operation)
        .number(tokens.input_uncached)
        .number(tokens.input_cache_read)
        .number(tokens.input_cache_write)
        .number(tokens.input_cache_write_1h)
        .number(tokens.output)
        .number(tokens.output_reasoning)
        .number(tokens.total())
        .text(request.other_units);
    match request.charge {
        Ok((cost_nanos, price)) => line
            .parts(cost_nanos, money::DIGITS, false)
            .word(money::CURRENCY)
            .text(&price.book_version)
            .text(&price.provider)
            .text(&price.model)
            .text(&price.detail)
            .nothing(1),
        Err(reason) => line.nothing(1).word(money::CURRENCY).nothing(4).text(reason),
    };
    for us in [request.latency_us, request.time_to_first_token_us] {
        match us {
            // As seconds.
            Some(us) => line.parts(us, 6, true),
            None => line.nothing(1),
        };
    }
    line.text(request.service_tier)
        .text(request.processing)
        .text(request.request_id)
        .text(request.labels)
        .text(request.price_conditions);
    match request.producer {
        Some((producer, sequence)) => line.text(&format!("{}/{}/{sequence}", producer.id, producer.epoch)),
        None => line.nothing(1),
    };
    line.text(request.recorded_by).end();
}
