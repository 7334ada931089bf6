//! One model of time for both services: which window is asked about, in which
//! zone, and where its buckets begin.

mod bucket;
mod text;

use activity_proto::common::v1 as proto;
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, TimeZone};
use chrono_tz::Tz;

pub use bucket::{Bucket, bucket_edges, bucket_floor};
pub use text::{Stamp, rfc3339};

use crate::clock;
use crate::error::{Error, Reason, Result};

const HOUR_US: i64 = 3_600 * clock::MICROS_PER_SECOND;
const DAY_US: i64 = 24 * HOUR_US;

/// What a range that is left out means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenMissing {
    /// The 24 hours before now: for queries.
    Last24Hours,
    /// An error: for exports.
    Refuse,
}

/// A window of time that is settled: half open, `start_us` ≤ t < `end_us`, and
/// the zone that decides where its days, weeks and months begin.
///
/// `start_us` ≤ `end_us` always; an empty window is allowed and holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// First microsecond inside.
    pub start_us: i64,
    /// First microsecond after.
    pub end_us: i64,
    /// IANA zone.
    pub zone: Tz,
}

impl Resolved {
    /// The window of the same length directly before, in the same zone; also for
    /// calendar presets, so that two periods of equal length are compared. Shorter
    /// only where the year 1 cuts it: what begins before has no timestamp.
    #[must_use]
    pub fn previous(&self) -> Self {
        Self {
            start_us: self.start_us.saturating_sub(self.end_us - self.start_us).max(clock::FIRST_US),
            end_us: self.start_us,
            zone: self.zone,
        }
    }

    /// The interval as every answer carries it.
    pub fn to_interval(&self) -> proto::Interval {
        proto::Interval { start: Some(clock::to_timestamp(self.start_us)), end: Some(clock::to_timestamp(self.end_us)) }
    }

    /// Whether nothing can lie in it.
    pub fn is_empty(&self) -> bool {
        self.start_us >= self.end_us
    }
}

/// Settles a `TimeRange` against the server's clock.
///
/// Errors name the field below `time_range`: an unknown zone is
/// `UNKNOWN_TIME_ZONE`, a start after the end or an unspecified preset is
/// `INVALID_ARGUMENT`, an absent start (or range, with [`WhenMissing::Refuse`])
/// is `REQUIRED`.
pub fn resolve(range: Option<&proto::TimeRange>, now_us: i64, when_missing: WhenMissing) -> Result<Resolved> {
    use proto::TimeRangePreset as Preset;
    use proto::time_range::Range;

    let zone = zone(range.map_or("", |range| range.time_zone.as_str()))?;
    let (start_us, end_us) = match range.and_then(|range| range.range.as_ref()) {
        None if when_missing == WhenMissing::Refuse => return Err(Error::required("time_range")),
        None => (now_us - DAY_US, now_us),
        Some(Range::Preset(number)) => {
            let today = || local(now_us, zone).date();
            let start_us = match Preset::try_from(*number) {
                Ok(Preset::LastHour) => now_us - HOUR_US,
                Ok(Preset::Last24Hours) => now_us - DAY_US,
                Ok(Preset::Last7Days) => now_us - 7 * DAY_US,
                Ok(Preset::Last30Days) => now_us - 30 * DAY_US,
                Ok(Preset::Today) => day_start(today(), zone),
                Ok(Preset::MonthToDate) => day_start(first_of_month(today(), 1), zone),
                Ok(Preset::QuarterToDate) => day_start(first_of_month(today(), 3), zone),
                Ok(Preset::Unspecified) | Err(_) => {
                    return Err(Error::invalid(
                        "time_range.preset",
                        format!(
                            "time_range.preset is {number}, allowed are the values of TimeRangePreset but UNSPECIFIED"
                        ),
                    ));
                }
            };
            (start_us, now_us)
        }
        Some(Range::Interval(interval)) => {
            let start = interval.start.as_ref().ok_or_else(|| Error::required("time_range.interval.start"))?;
            let start_us = clock::from_timestamp("time_range.interval.start", start)?;
            let end_us = match &interval.end {
                Some(end) => clock::from_timestamp("time_range.interval.end", end)?,
                None => now_us,
            };
            if start_us > end_us {
                return Err(Error::invalid(
                    "time_range.interval",
                    format!("time_range.interval starts at {}, after its end {}", rfc3339(start_us), rfc3339(end_us)),
                ));
            }
            (start_us, end_us)
        }
    };
    Ok(Resolved { start_us, end_us, zone })
}

/// An IANA zone by name, in any case; empty is UTC.
fn zone(name: &str) -> Result<Tz> {
    if name.is_empty() {
        return Ok(Tz::UTC);
    }
    Tz::from_str_insensitive(name).map_err(|_| {
        // The name is the client's own; a hostile length is not worth repeating.
        let shown: String = name.chars().take(64).collect();
        Error::invalid_because(
            Reason::UnknownTimeZone,
            "time_range.time_zone",
            format!("time_range.time_zone is {shown:?}, allowed are IANA names such as \"Europe/Berlin\""),
        )
    })
}

/// The first day of the block of `months` months that holds `date`.
fn first_of_month(date: NaiveDate, months: u32) -> NaiveDate {
    let month = date.month0() / months * months + 1;
    NaiveDate::from_ymd_opt(date.year(), month, 1).unwrap_or(date)
}

/// The clock on the wall in `zone`. Saturates at the ends of the calendar.
fn local(us: i64, zone: Tz) -> NaiveDateTime {
    let utc = naive_utc(us);
    zone.from_utc_datetime(&utc).naive_local()
}

fn naive_utc(us: i64) -> NaiveDateTime {
    DateTime::from_timestamp_micros(us).unwrap_or_default().naive_utc()
}

/// The first instant of a day in a zone.
///
/// Where the clock goes back over midnight that is the first of two midnights;
/// where it skips midnight (or, in Apia in 2011, the whole day), it is the
/// instant at which it jumped.
fn day_start(date: NaiveDate, zone: Tz) -> i64 {
    let midnight = date.and_time(chrono::NaiveTime::MIN);
    if let Some(time) = midnight.and_local_timezone(zone).earliest() {
        return time.timestamp_micros();
    }
    // In a gap: the jump lies within two days of the same digits read as UTC, and
    // before it the wall clock is behind `midnight`, after it beyond.
    let around = midnight.and_utc().timestamp();
    let (mut before, mut after) = (around - 172_800, around + 172_800);
    while after - before > 1 {
        let middle = before + (after - before) / 2;
        if local(middle * clock::MICROS_PER_SECOND, zone) < midnight {
            before = middle;
        } else {
            after = middle;
        }
    }
    after * clock::MICROS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::time_range::Range;
    use proto::{Interval, TimeRange, TimeRangePreset as Preset};

    fn us(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).expect("RFC 3339").timestamp_micros()
    }

    fn preset(preset: Preset, zone: &str) -> TimeRange {
        TimeRange { range: Some(Range::Preset(preset as i32)), time_zone: zone.into() }
    }

    fn interval(start: Option<&str>, end: Option<&str>) -> TimeRange {
        let stamp = |text: &str| clock::to_timestamp(us(text));
        TimeRange {
            range: Some(Range::Interval(Interval { start: start.map(stamp), end: end.map(stamp) })),
            time_zone: String::new(),
        }
    }

    fn window(range: &TimeRange, now: &str) -> (String, String) {
        let resolved = resolve(Some(range), us(now), WhenMissing::Refuse).expect("resolves");
        (rfc3339(resolved.start_us), rfc3339(resolved.end_us))
    }

    const NOW: &str = "2024-05-15T10:30:00.123456Z";

    #[test]
    fn presets_end_now() {
        let table = [
            (Preset::LastHour, "", "2024-05-15T09:30:00.123456Z"),
            (Preset::Last24Hours, "", "2024-05-14T10:30:00.123456Z"),
            (Preset::Last7Days, "", "2024-05-08T10:30:00.123456Z"),
            (Preset::Last30Days, "", "2024-04-15T10:30:00.123456Z"),
            (Preset::Today, "", "2024-05-15T00:00:00.000000Z"),
            (Preset::Today, "Asia/Kathmandu", "2024-05-14T18:15:00.000000Z"),
            (Preset::Today, "pacific/auckland", "2024-05-14T12:00:00.000000Z"),
            (Preset::MonthToDate, "Europe/Berlin", "2024-04-30T22:00:00.000000Z"),
            (Preset::QuarterToDate, "", "2024-04-01T00:00:00.000000Z"),
            (Preset::QuarterToDate, "America/New_York", "2024-04-01T04:00:00.000000Z"),
        ];
        for (name, zone, start) in table {
            let (from, to) = window(&preset(name, zone), NOW);
            assert_eq!((from.as_str(), to.as_str()), (start, NOW), "{name:?} {zone}");
        }
    }

    #[test]
    fn a_month_begins_before_the_clocks_changed() {
        let (start, _) = window(&preset(Preset::MonthToDate, "Europe/Berlin"), "2024-03-31T12:00:00Z");
        assert_eq!(start, "2024-02-29T23:00:00.000000Z");
    }

    #[test]
    fn a_missing_end_is_now_and_a_missing_range_the_last_day_or_refused() {
        let (start, end) = window(&interval(Some("2024-05-01T00:00:00Z"), None), NOW);
        assert_eq!((start.as_str(), end.as_str()), ("2024-05-01T00:00:00.000000Z", NOW));
        for missing in [None, Some(&TimeRange::default())] {
            let last = resolve(missing, us(NOW), WhenMissing::Last24Hours).expect("default");
            assert_eq!(rfc3339(last.start_us), "2024-05-14T10:30:00.123456Z");
            let error = resolve(missing, us(NOW), WhenMissing::Refuse).expect_err("required");
            assert_eq!(error.reason(), Reason::Required);
        }
    }

    #[test]
    fn wrong_ranges_are_refused_with_field_and_reason() {
        let backwards = interval(Some("2024-05-02T00:00:00Z"), Some("2024-05-01T00:00:00Z"));
        let table = [
            (preset(Preset::Unspecified, ""), "time_range.preset", Reason::InvalidArgument),
            (preset(Preset::Today, "Mars/Olympus"), "time_range.time_zone", Reason::UnknownTimeZone),
            (interval(None, None), "time_range.interval.start", Reason::Required),
            (interval(Some("2030-01-01T00:00:00Z"), None), "time_range.interval", Reason::InvalidArgument),
            (backwards, "time_range.interval", Reason::InvalidArgument),
        ];
        for (range, field, reason) in table {
            let error = resolve(Some(&range), us(NOW), WhenMissing::Last24Hours).expect_err(field);
            let Error::Invalid(violation) = error else { panic!("{field}: not a violation") };
            assert_eq!((violation.field.as_str(), violation.reason), (field, reason));
        }
    }

    #[test]
    fn the_previous_window_has_the_same_length_and_touches() {
        let (same, empty) = ("2024-05-01T00:00:00Z", interval(Some(NOW), Some(NOW)));
        let window = resolve(Some(&interval(Some(same), None)), us(NOW), WhenMissing::Refuse).expect("ok");
        let previous = window.previous();
        assert_eq!(previous.end_us, window.start_us);
        assert_eq!(previous.end_us - previous.start_us, window.end_us - window.start_us);
        let empty = resolve(Some(&empty), us(NOW), WhenMissing::Refuse).expect("empty is allowed");
        assert!(empty.is_empty() && empty.previous().is_empty());
    }

    #[test]
    fn the_previous_window_stays_in_the_calendar() {
        let first = "0001-01-01T00:00:00Z";
        for (start, previous) in
            [(first, first), ("0500-01-01T00:00:00Z", first), ("6000-01-01T00:00:00Z", "2000-12-31T00:00:00Z")]
        {
            let window =
                resolve(Some(&interval(Some(start), Some("9999-01-01T00:00:00Z"))), us(NOW), WhenMissing::Refuse);
            let window = window.expect("ok").previous();
            assert_eq!((window.start_us, window.end_us), (us(previous), us(start)), "{start}");
            let stamp = window.to_interval().start.expect("set");
            assert_eq!(clock::from_timestamp("start", &stamp), Ok(us(previous)));
        }
    }

    #[test]
    fn times_are_written_as_the_calendar_says() {
        let day = 86_400_000_000_i64;
        let times = (-400..400).map(|n: i64| n * 211 * day + n * 12_345_678_901);
        let ends =
            [i64::MIN, i64::MAX, 0, -1, 253_402_300_799_999_999, 253_402_300_800_000_000, -62_167_219_200_000_001];
        for us in times.chain(ends) {
            let expected = DateTime::from_timestamp_micros(us)
                .map_or_else(|| format!("{us} microseconds"), |time| time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
            assert_eq!(rfc3339(us), expected, "{us}");
        }
    }

    #[test]
    fn days_begin_where_the_zone_says() {
        let table = [
            // Midnight is skipped: the clock jumps from 24:00 to 01:00.
            ("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00:00.000000Z"),
            // Midnight comes twice: the day begins with the first.
            ("America/Havana", "2023-11-05", "2023-11-05T04:00:00.000000Z"),
            // The clock goes back to 23:00 as the day is to begin.
            ("America/Sao_Paulo", "2018-02-18", "2018-02-18T03:00:00.000000Z"),
            // A day that was left out begins, and ends, at the jump.
            ("Pacific/Apia", "2011-12-30", "2011-12-30T10:00:00.000000Z"),
            ("Pacific/Apia", "2011-12-31", "2011-12-30T10:00:00.000000Z"),
        ];
        for (zone, date, start) in table {
            let zone: Tz = zone.parse().expect("zone");
            let date: NaiveDate = date.parse().expect("date");
            assert_eq!(rfc3339(day_start(date, zone)), start, "{zone} {date}");
        }
    }
}
