//! Where buckets begin. Made in one place, so that every chart cuts time alike.
//!
//! Hours and minutes follow the clock on the wall: in Kathmandu (+05:45) they
//! begin at :15 UTC. Where the clocks change, the instant of the change is an
//! edge of its own if it is not one already, so that no bucket mixes two
//! offsets: the hour that comes twice is two buckets, and in Lord Howe, whose
//! summer time is half an hour, one bucket of that day is half an hour long.
//! Days, weeks (from Monday) and months are 23, 24 or 25 hours and their sums.

use chrono::{Datelike, Days, Months, NaiveDate, TimeZone};
use chrono_tz::Tz;

use super::{Resolved, day_start, local, naive_utc};
use crate::clock::MICROS_PER_SECOND;
use crate::error::{Error, Reason, Result};

/// The width of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bucket {
    /// Minutes of the wall clock.
    Minute,
    /// Hours of the wall clock.
    Hour,
    /// Calendar days.
    Day,
    /// Weeks from Monday.
    Week,
    /// Calendar months.
    Month,
}

/// From the finest to the coarsest.
const ALL: [Bucket; 5] = [Bucket::Minute, Bucket::Hour, Bucket::Day, Bucket::Week, Bucket::Month];

impl Bucket {
    /// The name as in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minute => "MINUTE",
            Self::Hour => "HOUR",
            Self::Day => "DAY",
            Self::Week => "WEEK",
            Self::Month => "MONTH",
        }
    }
}

/// The edges of the buckets of a range: the range's start, every bucket boundary
/// inside it, and the range's end. Strictly rising; bucket `i` is
/// `edges[i]..edges[i + 1]`, and together they are exactly the range. The first
/// and the last may be parts of a bucket; [`bucket_floor`] says where the first
/// would have begun. An empty range has one edge and no bucket.
///
/// With more than `max` buckets it fails with `TOO_MANY_POINTS`, naming the
/// bucket that would fit.
pub fn bucket_edges(range: &Resolved, bucket: Bucket, max: usize) -> Result<Vec<i64>> {
    if let Some(edges) = edges_within(range, bucket, max) {
        return Ok(edges);
    }
    let fits = ALL
        .into_iter()
        .filter(|coarser| *coarser > bucket)
        .find(|coarser| edges_within(range, *coarser, max).is_some());
    let advice = match fits {
        Some(fits) => format!("BUCKET_{} would fit", fits.name()),
        None => "no bucket would fit; narrow the range or ask for fewer groups".to_owned(),
    };
    Err(Error::invalid_because(
        Reason::TooManyPoints,
        "bucket",
        format!("bucket BUCKET_{} gives more than {max} points for each series; {advice}", bucket.name()),
    ))
}

/// The start of the bucket that holds `us`.
pub fn bucket_floor(us: i64, bucket: Bucket, zone: Tz) -> i64 {
    match bucket {
        Bucket::Minute => clock_floor(us, 60, zone),
        Bucket::Hour => clock_floor(us, 3_600, zone),
        Bucket::Day | Bucket::Week | Bucket::Month => day_start(first_day(local(us, zone).date(), bucket), zone),
    }
}

fn edges_within(range: &Resolved, bucket: Bucket, max: usize) -> Option<Vec<i64>> {
    let mut edges = vec![range.start_us];
    let mut at = range.start_us;
    while at < range.end_us {
        if edges.len() > max {
            return None;
        }
        at = next_edge(at, bucket, range.zone).min(range.end_us);
        edges.push(at);
    }
    Some(edges)
}

/// The first edge after `us`; always later than `us`.
fn next_edge(us: i64, bucket: Bucket, zone: Tz) -> i64 {
    match bucket {
        Bucket::Minute => next_clock_edge(us, 60, zone),
        Bucket::Hour => next_clock_edge(us, 3_600, zone),
        Bucket::Day | Bucket::Week | Bucket::Month => {
            let mut first = first_day(local(us, zone).date(), bucket);
            // More than one step only where a zone left out whole days.
            loop {
                let Some(next) = (match bucket {
                    Bucket::Month => first.checked_add_months(Months::new(1)),
                    Bucket::Week => first.checked_add_days(Days::new(7)),
                    _ => first.checked_add_days(Days::new(1)),
                }) else {
                    return i64::MAX;
                };
                let edge = day_start(next, zone);
                if edge > us {
                    return edge;
                }
                first = next;
            }
        }
    }
}

/// The first day of the bucket that holds a day.
fn first_day(date: NaiveDate, bucket: Bucket) -> NaiveDate {
    let back = match bucket {
        Bucket::Month => date.day0(),
        Bucket::Week => date.weekday().num_days_from_monday(),
        _ => 0,
    };
    date.checked_sub_days(Days::new(u64::from(back))).unwrap_or(date)
}

/// Seconds that the wall clock is ahead of UTC at an instant.
fn offset_seconds(us: i64, zone: Tz) -> i64 {
    let utc = naive_utc(us);
    let local = zone.from_utc_datetime(&utc).naive_local();
    (local - utc).num_seconds()
}

fn clock_floor(us: i64, width_seconds: i64, zone: Tz) -> i64 {
    let width = width_seconds * MICROS_PER_SECOND;
    let offset = offset_seconds(us, zone) * MICROS_PER_SECOND;
    let floor = (us + offset).div_euclid(width) * width - offset;
    match change_within(floor, us, zone) {
        Some(change) => change,
        None => floor,
    }
}

fn next_clock_edge(us: i64, width_seconds: i64, zone: Tz) -> i64 {
    let width = width_seconds * MICROS_PER_SECOND;
    let offset = offset_seconds(us, zone) * MICROS_PER_SECOND;
    let next = ((us + offset).div_euclid(width) + 1) * width - offset;
    match change_within(us, next, zone) {
        Some(change) => change,
        None => next,
    }
}

/// The instant in (from, to] at which the offset changes, if it differs at the
/// two ends. They are at most an hour apart, and no zone changes twice in one.
fn change_within(from: i64, to: i64, zone: Tz) -> Option<i64> {
    let old = offset_seconds(from, zone);
    if offset_seconds(to, zone) == old {
        return None;
    }
    // Changes fall on whole seconds.
    let (mut before, mut after) = (from.div_euclid(MICROS_PER_SECOND), to.div_euclid(MICROS_PER_SECOND));
    while after - before > 1 {
        let middle = before + (after - before) / 2;
        if offset_seconds(middle * MICROS_PER_SECOND, zone) == old {
            before = middle;
        } else {
            after = middle;
        }
    }
    Some(after * MICROS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time_range::rfc3339;
    use chrono::DateTime;
    use proptest::prelude::*;

    fn us(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).expect("RFC 3339").timestamp_micros()
    }

    fn range(start: &str, end: &str, zone: &str) -> Resolved {
        Resolved { start_us: us(start), end_us: us(end), zone: zone.parse().expect("zone") }
    }

    fn edges(start: &str, end: &str, zone: &str, bucket: Bucket) -> Vec<String> {
        bucket_edges(&range(start, end, zone), bucket, 10_000)
            .expect("fits")
            .into_iter()
            .map(|edge| rfc3339(edge).replace(":00.000000Z", "Z"))
            .collect()
    }

    #[test]
    fn the_range_is_cut_at_both_ends() {
        assert_eq!(
            edges("2024-05-15T10:30:00Z", "2024-05-15T12:10:00Z", "UTC", Bucket::Hour),
            ["2024-05-15T10:30Z", "2024-05-15T11:00Z", "2024-05-15T12:00Z", "2024-05-15T12:10Z"]
        );
        assert_eq!(edges("2024-05-15T10:30:00Z", "2024-05-15T10:30:00Z", "UTC", Bucket::Day).len(), 1);
    }

    #[test]
    fn hours_in_kathmandu_begin_a_quarter_past_in_utc() {
        assert_eq!(
            edges("2024-05-15T00:00:00Z", "2024-05-15T02:00:00Z", "Asia/Kathmandu", Bucket::Hour),
            ["2024-05-15T00:00Z", "2024-05-15T00:15Z", "2024-05-15T01:15Z", "2024-05-15T02:00Z"]
        );
        assert_eq!(
            edges("2024-05-14T18:15:00Z", "2024-05-16T18:15:00Z", "Asia/Kathmandu", Bucket::Day),
            ["2024-05-14T18:15Z", "2024-05-15T18:15Z", "2024-05-16T18:15Z"]
        );
    }

    #[test]
    fn days_have_23_and_25_hours_when_clocks_change() {
        let hours = |start, end, zone| edges(start, end, zone, Bucket::Hour).len() - 1;
        assert_eq!(hours("2024-03-30T23:00:00Z", "2024-03-31T22:00:00Z", "Europe/Berlin"), 23);
        assert_eq!(hours("2024-10-26T22:00:00Z", "2024-10-27T23:00:00Z", "Europe/Berlin"), 25);
        assert_eq!(
            edges("2024-10-25T22:00:00Z", "2024-10-28T23:00:00Z", "Europe/Berlin", Bucket::Day),
            ["2024-10-25T22:00Z", "2024-10-26T22:00Z", "2024-10-27T23:00Z", "2024-10-28T23:00Z"]
        );
    }

    #[test]
    fn the_half_hour_of_lord_howe_is_a_bucket_of_its_own() {
        // 02:00+11 becomes 01:30+10:30: 01:30 to 02:00 comes a second time.
        assert_eq!(
            edges("2024-04-06T14:00:00Z", "2024-04-06T16:30:00Z", "Australia/Lord_Howe", Bucket::Hour),
            ["2024-04-06T14:00Z", "2024-04-06T15:00Z", "2024-04-06T15:30Z", "2024-04-06T16:30Z"]
        );
        // 02:00+10:30 becomes 02:30+11: what is left of the hour is half of it.
        assert_eq!(
            edges("2024-10-05T14:30:00Z", "2024-10-05T17:00:00Z", "Australia/Lord_Howe", Bucket::Hour),
            ["2024-10-05T14:30Z", "2024-10-05T15:30Z", "2024-10-05T16:00Z", "2024-10-05T17:00Z"]
        );
        assert_eq!(
            edges("2024-04-05T13:00:00Z", "2024-04-07T13:30:00Z", "Australia/Lord_Howe", Bucket::Day),
            ["2024-04-05T13:00Z", "2024-04-06T13:00Z", "2024-04-07T13:30Z"]
        );
    }

    #[test]
    fn weeks_begin_on_monday_and_months_on_the_first() {
        assert_eq!(
            edges("2024-05-15T00:00:00Z", "2024-05-28T00:00:00Z", "UTC", Bucket::Week),
            ["2024-05-15T00:00Z", "2024-05-20T00:00Z", "2024-05-27T00:00Z", "2024-05-28T00:00Z"]
        );
        assert_eq!(
            edges("2023-12-31T00:00:00Z", "2024-03-01T05:00:00Z", "America/New_York", Bucket::Month),
            ["2023-12-31T00:00Z", "2024-01-01T05:00Z", "2024-02-01T05:00Z", "2024-03-01T05:00Z"]
        );
    }

    #[test]
    fn a_day_that_a_zone_left_out_makes_no_bucket() {
        assert_eq!(
            edges("2011-12-29T10:00:00Z", "2011-12-31T10:00:00Z", "Pacific/Apia", Bucket::Day),
            ["2011-12-29T10:00Z", "2011-12-30T10:00Z", "2011-12-31T10:00Z"]
        );
    }

    #[test]
    fn too_many_points_name_the_bucket_that_fits() {
        let year = range("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "UTC");
        let message = |bucket, max| {
            let error = bucket_edges(&year, bucket, max).expect_err("too many");
            assert_eq!(error.reason(), Reason::TooManyPoints);
            error.to_string()
        };
        assert!(message(Bucket::Minute, 10_000).ends_with("; BUCKET_HOUR would fit"));
        assert!(message(Bucket::Minute, 366).ends_with("; BUCKET_DAY would fit"));
        assert!(message(Bucket::Hour, 12).ends_with("; BUCKET_MONTH would fit"));
        assert!(message(Bucket::Hour, 11).contains("no bucket would fit"));
        assert_eq!(bucket_edges(&year, Bucket::Day, 366).expect("exactly fits").len(), 367);
    }

    #[test]
    fn a_bucket_floor_is_where_the_bucket_began() {
        let table = [
            ("2024-05-15T10:30:30Z", Bucket::Minute, "UTC", "2024-05-15T10:30:00Z"),
            ("2024-05-15T10:30:30Z", Bucket::Hour, "Asia/Kathmandu", "2024-05-15T10:15:00Z"),
            ("2024-04-06T15:10:00Z", Bucket::Hour, "Australia/Lord_Howe", "2024-04-06T15:00:00Z"),
            ("2024-05-15T10:30:30Z", Bucket::Day, "America/New_York", "2024-05-15T04:00:00Z"),
            ("2024-05-15T10:30:30Z", Bucket::Week, "UTC", "2024-05-13T00:00:00Z"),
            ("2024-05-15T10:30:30Z", Bucket::Month, "Europe/Berlin", "2024-04-30T22:00:00Z"),
        ];
        for (at, bucket, zone, floor) in table {
            assert_eq!(bucket_floor(us(at), bucket, zone.parse().expect("zone")), us(floor), "{at} {bucket:?}");
        }
    }

    proptest! {
        /// Edges rise, cover the range exactly, and no bucket mixes two periods.
        #[test]
        fn buckets_partition_any_range(
            start in 946_684_800_i64..1_900_000_000,
            length in 0_i64..40 * 86_400,
            zone in prop::sample::select(vec![
                "UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu",
                "America/Sao_Paulo", "America/Havana", "Pacific/Apia", "America/St_Johns",
                "Africa/Casablanca", "Asia/Beirut", "Antarctica/Troll",
            ]),
            bucket in prop::sample::select(ALL[1..].to_vec()),
        ) {
            let zone: Tz = zone.parse().expect("zone");
            let range = Resolved {
                start_us: start * MICROS_PER_SECOND,
                end_us: (start + length) * MICROS_PER_SECOND,
                zone,
            };
            let edges = bucket_edges(&range, bucket, 10_000).expect("40 days of hours fit");
            prop_assert_eq!(edges.first().copied(), Some(range.start_us));
            prop_assert_eq!(edges.last().copied(), Some(range.end_us));
            for pair in edges.windows(2) {
                prop_assert!(pair[0] < pair[1]);
                let floor = bucket_floor(pair[0], bucket, zone);
                prop_assert!(floor <= pair[0]);
                prop_assert_eq!(bucket_floor(pair[1] - 1, bucket, zone), floor);
            }
        }
    }
}
