//! Time as both services keep it: microseconds since the Unix epoch, UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

use crate::error::Violation;

/// Microseconds in one second.
pub const MICROS_PER_SECOND: i64 = 1_000_000;

/// The first and the last second that `google.protobuf.Timestamp` allows
/// (years 1 to 9999).
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The first microsecond that `google.protobuf.Timestamp` allows.
pub const FIRST_US: i64 = *TIMESTAMP_SECONDS.start() * MICROS_PER_SECOND;

/// The server's clock. Zero if the clock stands before 1970.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// A wire timestamp, truncated (towards the past) to microseconds.
///
/// `field` names the field in the violation when it is out of the range that
/// protobuf allows.
pub fn from_timestamp(field: &str, timestamp: &Timestamp) -> Result<i64, Violation> {
    if !TIMESTAMP_SECONDS.contains(&timestamp.seconds) {
        return Err(Violation::invalid(
            field,
            format!("{field} has seconds {}, allowed are the years 1 to 9999", timestamp.seconds),
        ));
    }
    if !(0..1_000_000_000).contains(&timestamp.nanos) {
        return Err(Violation::invalid(
            field,
            format!("{field} has nanos {}, allowed are 0 to 999999999", timestamp.nanos),
        ));
    }
    Ok(timestamp.seconds * MICROS_PER_SECOND + i64::from(timestamp.nanos / 1_000))
}

/// Microseconds as a wire timestamp.
pub fn to_timestamp(us: i64) -> Timestamp {
    Timestamp {
        seconds: us.div_euclid(MICROS_PER_SECOND),
        // A remainder below a million, times a thousand, fits an i32.
        nanos: (us.rem_euclid(MICROS_PER_SECOND) * 1_000) as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seconds: i64, nanos: i32) -> Timestamp {
        Timestamp { seconds, nanos }
    }

    #[test]
    fn nanoseconds_are_truncated_towards_the_past() {
        assert_eq!(from_timestamp("t", &stamp(1, 999_999_999)), Ok(1_999_999));
        assert_eq!(from_timestamp("t", &stamp(-1, 999)), Ok(-1_000_000));
        assert_eq!(from_timestamp("t", &stamp(-1, 1_999)), Ok(-999_999));
    }

    #[test]
    fn microseconds_survive_the_wire() {
        for us in [0, 1, -1, 1_700_000_000_123_456, -62_135_596_800_000_000] {
            assert_eq!(from_timestamp("t", &to_timestamp(us)), Ok(us));
        }
    }

    #[test]
    fn timestamps_outside_the_calendar_are_refused() {
        for bad in
            [stamp(i64::MAX, 0), stamp(i64::MIN, 0), stamp(253_402_300_800, 0), stamp(0, -1), stamp(0, 1_000_000_000)]
        {
            assert_eq!(from_timestamp("t", &bad).expect_err("refused").field, "t");
        }
    }
}
