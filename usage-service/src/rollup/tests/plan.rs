//! Plans: every microsecond of every bucket is read exactly once.

use chrono::{Duration, NaiveDate, NaiveTime, TimeZone as _};
use chrono_tz::Tz;
use proptest::prelude::*;

use super::super::{Level, Plan, Span, plan};

/// Zones with half hours, quarters, and clocks that change.
const ZONES: [&str; 6] =
    ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Europe/Berlin", "America/New_York"];

/// Edges of days in a zone.
fn days(zone: Tz, first: NaiveDate, count: i64) -> Vec<i64> {
    (0..=count)
        .filter_map(|day| {
            let midnight = (first + Duration::days(day)).and_time(NaiveTime::MIN);
            zone.from_local_datetime(&midnight).earliest()
        })
        .map(|time| time.timestamp_micros())
        .collect()
}

fn edges() -> impl Strategy<Value = Vec<i64>> {
    let base = 1_700_000_000_000_000_i64;
    let anything = prop::collection::btree_set(-400_000_000_000..400_000_000_000_i64, 2..12)
        .prop_map(move |edges| edges.into_iter().map(|edge| base + edge).collect::<Vec<_>>());
    let short = prop::collection::btree_set(0..1_800_000_000_i64, 2..6)
        .prop_map(move |edges| edges.into_iter().map(|edge| base + edge).collect::<Vec<_>>());
    let early = prop::collection::btree_set(-90_000_000_000..90_000_000_000_i64, 2..5)
        .prop_map(|edges| edges.into_iter().collect::<Vec<_>>());
    let zoned = (prop::sample::select(&ZONES[..]), 0..800_i64, 1..20_i64, 0..80_000_000_000_i64, any::<bool>())
        .prop_map(|(zone, day, count, odd, ragged)| {
            let first = NaiveDate::from_ymd_opt(2025, 1, 1).expect("a day") + Duration::days(day);
            let mut edges = days(zone.parse().expect("a zone"), first, count);
            if ragged {
                edges[0] += odd;
                if let Some(last) = edges.last_mut() {
                    *last += odd / 3;
                }
            }
            edges
        });
    let minutes = (0..10_000_i64, 2..200_i64).prop_map(move |(start, count)| {
        (0..=count).map(|minute| base + (start + minute) * 60_000_000).collect::<Vec<_>>()
    });
    prop_oneof![anything, short, early, zoned, minutes]
}

/// What is read for each bucket, in the order of time.
fn pieces(plan: &Plan, buckets: usize) -> Vec<Vec<(i64, i64)>> {
    let mut pieces = vec![Vec::new(); buckets];
    for (bucket, span) in &plan.spans {
        pieces[*bucket].push((span.start_us, span.end_us()));
    }
    for part in &plan.raw {
        assert_eq!((part.edges.first(), part.edges.last()), (Some(&part.start_us), Some(&part.end_us)));
        for (at, pair) in part.edges.windows(2).enumerate() {
            pieces[part.first_bucket + at].push((pair[0], pair[1]));
        }
    }
    pieces.iter_mut().for_each(|pieces| pieces.sort_unstable());
    pieces
}

proptest! {
    #[test]
    fn every_bucket_is_covered_exactly_once(edges in edges()) {
        let plan = plan(&edges);
        for (bucket, pieces) in pieces(&plan, edges.len() - 1).into_iter().enumerate() {
            let mut at = edges[bucket];
            for (start, end) in pieces {
                prop_assert_eq!(start, at);
                prop_assert!(end > start);
                at = end;
            }
            prop_assert_eq!(at, edges[bucket + 1]);
        }
    }

    #[test]
    fn spans_are_the_coarsest_that_fit(edges in edges()) {
        for (bucket, span) in plan(&edges).spans {
            prop_assert_eq!(span.start_us.rem_euclid(span.level.width_us()), 0);
            for level in Level::ALL.into_iter().filter(|level| *level > span.level) {
                let coarser = Span::at(level, span.start_us);
                prop_assert!(coarser.start_us < edges[bucket] || coarser.end_us() > edges[bucket + 1]);
            }
        }
    }

    #[test]
    fn raw_parts_are_short_and_joined(edges in edges()) {
        let plan = plan(&edges);
        for part in &plan.raw {
            for pair in part.edges.windows(2) {
                prop_assert!(pair[1] - pair[0] < 2 * Level::Quarter.width_us());
            }
            // No whole quarter of one bucket is read raw.
            for pair in part.edges.windows(2) {
                let first = Level::Quarter.start_of(pair[0] - 1) + Level::Quarter.width_us();
                prop_assert!(first + Level::Quarter.width_us() > pair[1]);
            }
        }
        for pair in plan.raw.windows(2) {
            prop_assert!(pair[0].end_us < pair[1].start_us);
        }
    }

    #[test]
    fn a_quarter_has_a_bucket_where_spans_cover_it(edges in edges()) {
        let plan = plan(&edges);
        let quarter_us = Level::Quarter.width_us();
        let mut quarter = Level::Quarter.start_of(edges[0]) - quarter_us;
        while quarter <= edges[edges.len() - 1] {
            let covering = plan.spans.iter().find(|(_, span)| span.start_us <= quarter && quarter < span.end_us());
            prop_assert_eq!(plan.bucket_of(quarter), covering.map(|(bucket, _)| *bucket));
            quarter += quarter_us;
        }
    }
}

#[test]
fn a_month_in_a_half_hour_zone_reads_days_but_for_its_ends() {
    let edges = [1_700_000_000_000_000 - 1_700_000_000_000_000 % 86_400_000_000 + 66_600_000_000; 1];
    let edges = [edges[0], edges[0] + 30 * 86_400_000_000];
    let plan = plan(&edges);
    let count = |level| plan.spans.iter().filter(|(_, span)| span.level == level).count();
    // From 18:30 on: two quarters, five hours, days, 18 hours, two quarters.
    assert_eq!((count(Level::Quarter), count(Level::Hour), count(Level::Day)), (4, 23, 29));
    assert!(plan.raw.is_empty());
}

#[test]
fn no_window_is_no_plan() {
    for edges in [&[][..], &[5], &[7, 7]] {
        let plan = plan(edges);
        assert!(plan.spans.is_empty() && plan.raw.is_empty());
        assert_eq!(plan.bucket_of(0), None);
    }
}

#[test]
fn the_ends_of_time_are_survived() {
    assert!(plan(&[i64::MIN, i64::MIN + 5]).spans.is_empty());
    assert!(plan(&[i64::MAX - 5, i64::MAX]).spans.is_empty());
}
