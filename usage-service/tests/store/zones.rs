//! Buckets in zones whose clocks change, and whose hours begin at odd minutes.

use chrono::{DateTime, Datelike as _, Timelike as _};
use chrono_tz::Tz;
use service_core::time_range::{Bucket, Resolved, bucket_edges};
use usage_service::model::{Dimension, Metric};

use crate::events::{SECOND, request, scope, write_new};
use crate::{Bench, reference};

/// What the wall clock shows at the start of the bucket that holds a moment, and
/// how far the zone then is from UTC.
fn label(at_us: i64, bucket: Bucket, zone: Tz) -> (i32, u32, u32, u32, u32, i64) {
    let local = DateTime::from_timestamp_micros(at_us).unwrap().with_timezone(&zone);
    let offset = (local.naive_local() - local.naive_utc()).num_seconds();
    let (y, m, d) = (local.year(), local.month(), local.day());
    match bucket {
        Bucket::Minute => (y, m, d, local.hour(), local.minute(), offset),
        Bucket::Hour => (y, m, d, local.hour(), 0, offset),
        Bucket::Day => (y, m, d, 0, 0, 0),
        Bucket::Week => (local.iso_week().year(), local.iso_week().week(), 0, 0, 0, 0),
        Bucket::Month => (y, m, 0, 0, 0, 0),
    }
}

pub(crate) async fn buckets_follow_the_clock_of_the_zone(bench: Bench) {
    let day = 86_400 * SECOND;
    let us = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
    let cases = [
        ("Europe/Berlin", "2024-03-31T01:00:00Z"),
        ("Europe/Berlin", "2024-10-27T01:00:00Z"),
        ("Australia/Lord_Howe", "2024-04-06T15:00:00Z"),
        ("Australia/Lord_Howe", "2024-10-05T15:30:00Z"),
        ("Asia/Kathmandu", "2024-06-01T00:00:00Z"),
        ("America/St_Johns", "2024-03-10T05:30:00Z"),
        ("America/St_Johns", "2024-11-03T04:30:00Z"),
        ("UTC", "2024-02-29T12:00:00Z"),
    ];
    for (number, (name, middle)) in (0_u64..).zip(cases) {
        let zone: Tz = name.parse().unwrap();
        let middle = us(middle);
        // Every 17 minutes over six days, and at each edge and just before it.
        let mut all: Vec<_> =
            (0..508).map(|n| request(middle - 3 * day + n as i64 * 17 * 60 * SECOND, number * 10_000 + n)).collect();
        let edge_cases = (0..48_i64)
            .flat_map(|half| [middle + (half - 24) * 1_800 * SECOND, middle + (half - 24) * 1_800 * SECOND - 1]);
        all.extend(edge_cases.zip(5_000..).map(|(at, n)| request(at, number * 10_000 + n)));
        write_new(&bench.store, all.clone()).await;

        // A window that begins and ends anywhere.
        let window = Resolved { start_us: middle - 2 * day - 12_345_678, end_us: middle + 2 * day + 1, zone };
        let scope = scope(window.start_us, window.end_us);
        let inside = reference::within(&all, &scope);
        for bucket in [Bucket::Minute, Bucket::Hour, Bucket::Day, Bucket::Week, Bucket::Month] {
            let edges = bucket_edges(&window, bucket, 10_000).unwrap();
            assert_eq!((edges[0], *edges.last().unwrap()), (window.start_us, window.end_us));
            let keys = [Dimension::User];
            let series = bench.store.series(&scope, &keys, Metric::Requests, 3, &edges, |_| Ok(())).await.unwrap();
            let expected = reference::ranked(&inside, &keys, Metric::Requests, 3, &edges);
            assert_eq!((series.rows, series.other), (expected.rows, expected.other), "{name} {bucket:?}");
            assert_eq!(series.overall, reference::metrics(inside.iter().copied()));

            // The wall clock agrees: one bucket is one label, and a label one bucket.
            let labels: Vec<_> = edges.windows(2).map(|edge| label(edge[0], bucket, zone)).collect();
            assert!(labels.windows(2).all(|pair| pair[0] != pair[1]), "{name} {bucket:?}");
            for request in &inside {
                let at = request.event.occurred_at_us;
                let index = edges.partition_point(|edge| *edge <= at) - 1;
                assert_eq!(label(at, bucket, zone), labels[index], "{name} {bucket:?} {at}");
            }
        }
    }
}
