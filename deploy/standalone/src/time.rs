//! Time as the demo reckons it: microseconds since the epoch, UTC.

use chrono::{DateTime, Datelike, Utc};
use prost_types::Timestamp;
use uuid::Uuid;

/// A second in microseconds.
pub const SECOND_US: i64 = 1_000_000;
/// A minute in microseconds.
pub const MINUTE_US: i64 = 60 * SECOND_US;
/// An hour in microseconds.
pub const HOUR_US: i64 = 60 * MINUTE_US;
/// A day in microseconds.
pub const DAY_US: i64 = 24 * HOUR_US;

/// Now.
pub fn now_us() -> i64 {
    Utc::now().timestamp_micros()
}

/// On the wire.
pub fn timestamp(us: i64) -> Timestamp {
    Timestamp {
        seconds: us.div_euclid(SECOND_US),
        // Below 10⁹.
        nanos: (us.rem_euclid(SECOND_US) * 1_000) as i32,
    }
}

/// From the wire, truncated.
pub fn micros(timestamp: &Timestamp) -> i64 {
    timestamp.seconds * SECOND_US + i64::from(timestamp.nanos / 1_000)
}

/// As text in one of chrono's formats.
pub fn text(us: i64, format: &str) -> String {
    DateTime::<Utc>::from_timestamp_micros(us)
        .map_or_else(|| format!("{us} microseconds"), |time| time.format(format).to_string())
}

/// RFC 3339 with whole seconds or microseconds, as needed: what grpcurl takes.
pub fn rfc3339(us: i64) -> String {
    if us.rem_euclid(SECOND_US) == 0 { text(us, "%Y-%m-%dT%H:%M:%SZ") } else { text(us, "%Y-%m-%dT%H:%M:%S%.6fZ") }
}

/// 0 for Monday, in UTC.
pub fn day_of_week(us: i64) -> u32 {
    DateTime::<Utc>::from_timestamp_micros(us).map_or(0, |time| time.weekday().num_days_from_monday())
}

/// A UUIDv7 of that time whose other bits are the given ones: the same event has
/// the same id whenever it is made.
pub fn uuid_v7(us: i64, bits: [u8; 10]) -> Uuid {
    let millis = u64::try_from(us.div_euclid(1_000)).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &bits).into_uuid()
}
