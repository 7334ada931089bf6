//! The columns of `usage_requests`, in the order in which they are bound.

/// Beside `recorded_at` and `commit_number`, which all rows of a group share.
pub(super) const COLUMNS: [&str; 31] = [
    "id",
    "occurred_at",
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
    "other_units",
    "latency_us",
    "time_to_first_token_us",
    "service_tier",
    "processing",
    "request_id",
    "labels",
    "price_conditions",
    "cost_nanos",
    "charge_ref",
    "producer_ref",
    "producer_sequence",
    "content_hash",
    "recorded_by",
];

/// Their types where they are sent as arrays.
pub(super) const POSTGRES_TYPES: [&str; 31] = [
    "uuid", "int8", "text", "text", "text", "text", "text", "text", "text", "int2", "text", "int4", "int4", "int4",
    "int4", "int4", "int4", "text", "int8", "int8", "text", "text", "text", "text", "text", "int8", "int8", "int8",
    "int8", "bytea", "text",
];

/// A map in its one form: a JSON object without blanks, or nothing.
pub(super) fn map<V: serde::Serialize>(
    map: &std::collections::BTreeMap<String, V>,
) -> Result<String, serde_json::Error> {
    if map.is_empty() {
        return Ok(String::new());
    }
    serde_json::to_string(map)
}

/// A count of one event, which is at most 1,000,000,000.
pub(super) fn count(value: i64) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
