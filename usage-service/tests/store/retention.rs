//! Retention: what is removed counts as removed at once, its sums stay, nobody is stopped, and nothing comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use service_core::clock;
use service_core::error::{Error, Result};
use usage_service::model::{Dimension, Filter, Metric, NewRequest, Outcome, Position, Scope};
use usage_service::store::{Checked, Kept, Order, Store};

use crate::events::{NOON, SECOND, changed, numbered, request, scope, seal_all, write, write_new};
use crate::{Bench, reference};

const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
const MIDNIGHT: i64 = NOON - DAY / 2;

/// Over ten days, the last of them the one of `MIDNIGHT`.
fn ten_days(requests: u64) -> Vec<NewRequest> {
    let at = |n: u64| MIDNIGHT - 9 * DAY + (n as i64 * 7_919 * SECOND) % (10 * DAY);
    (0..requests).map(|n| request(at(n) + n as i64, n)).collect()
}

async fn total(store: &Store, start_us: i64, end_us: i64) -> Result<u64> {
    let totals = store.totals(&scope(start_us, end_us), &[start_us, end_us]).await?;
    Ok(totals[0].totals.requests)
}

fn out_of_range<T>(answer: Result<T>, from: &str) {
    match answer {
        Err(Error::OutOfRange(why)) => assert!(why.contains(from), "{why}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it is answered"),
    }
}

/// Everything that rollups answer, over days before and after the horizon.
async fn assert_answers(store: &Store, all: &[NewRequest]) {
    let all: Vec<&NewRequest> = all.iter().collect();
    let days: Vec<i64> = (-9..=1).map(|day| MIDNIGHT + day * DAY).collect();
    let quarters = [days[0] + HOUR / 4, days[3] + HOUR / 2, days[9] + HOUR];
    for edges in [&days[..], &quarters] {
        let window = scope(edges[0], edges[edges.len() - 1]);
        let within = reference::within(&all.iter().copied().cloned().collect::<Vec<_>>(), &window).len() as u64;
        let totals = store.totals(&window, edges).await.unwrap();
        assert_eq!(totals, reference::buckets(&all, edges));
        assert_eq!(totals.iter().map(|bucket| bucket.totals.requests).sum::<u64>(), within);
        let inside: Vec<&NewRequest> = all
            .iter()
            .copied()
            .filter(|request| (window.start_us..window.end_us).contains(&request.event.occurred_at_us))
            .collect();
        let keys = [Dimension::User, Dimension::ApiKey];
        let ranked = store.series(&window, &keys, Metric::Cost, 3, edges, |_| Ok(())).await.unwrap();
        let expected = reference::ranked(&inside, &keys, Metric::Cost, 3, edges);
        assert_eq!((ranked.rows, ranked.other), (expected.rows, expected.other));
    }
}

pub(crate) async fn sums_of_removed_requests_stay(bench: Bench) {
    let store = &bench.store;
    let other = bench.replica().await;
    assert_eq!(store.newest_request().await.unwrap(), None);
    let all = ten_days(2_000);
    write_new(store, all.iter().take(1_500).cloned()).await;
    seal_all(store).await;
    // These are not in segments when the horizon moves.
    write_new(store, all.iter().skip(1_500).cloned()).await;
    assert_answers(store, &all).await;
    assert_eq!(store.newest_request().await.unwrap(), all.iter().map(|request| request.event.occurred_at_us).max());

    let from = MIDNIGHT - 4 * DAY;
    // In the middle of the day: it is kept as a whole.
    let kept = store.retain(from + 13 * HOUR, None).await.unwrap();
    assert_eq!(kept, Kept { requests_from_us: from, rollups_from_us: i64::MIN });
    for store in [store, &other] {
        assert_eq!(store.kept().await.unwrap(), kept);
        assert_answers(store, &all).await;
        refuses_what_needs_requests(store, from, "2026-01-01T00:00:00.000000Z").await;
    }
    store.sweep().await.unwrap();
    assert_eq!(store.backlog().await.unwrap().deltas, 0, "rows go after their deltas are in segments");
    // The time of an id is within a day of its request's, so on PostgreSQL one more day is there.
    let left = format!("SELECT COUNT(*) FROM usage_requests WHERE occurred_at < {}", from - DAY);
    assert_eq!(bench.number(&left).await, 0);
    for store in [store, &other] {
        assert_answers(store, &all).await;
        refuses_what_needs_requests(store, from, "2026-01-01T00:00:00.000000Z").await;
    }
    let kept_requests = all.iter().filter(|request| request.event.occurred_at_us >= from).count();
    let page = store.requests(&scope(from, i64::MAX), Order::NewestFirst, None, 9_999).await.unwrap();
    assert_eq!(page.len(), kept_requests);

    // A horizon does not go back, and what is swept stays so.
    assert_eq!(store.retain(from - 3 * DAY, None).await.unwrap(), kept);
    assert_eq!(store.sweep().await.unwrap().requests, 0);
    drop(other);
    assert_answers(&bench.reopened().await.store, &all).await;
}

async fn refuses_what_needs_requests(store: &Store, from: i64, shown: &str) {
    let before = scope(from - 1, from + DAY);
    out_of_range(store.requests(&before, Order::NewestFirst, None, 5).await, shown);
    out_of_range(store.totals(&before, &[from - 1, from + DAY]).await, shown);
    out_of_range(store.facets(&before, 5).await, shown);
    let minutes = [from - HOUR, from - HOUR + 60 * SECOND, from];
    let window = scope(minutes[0], minutes[2]);
    out_of_range(store.series(&window, &[], Metric::Cost, 5, &minutes, |_| Ok(())).await, shown);
    let labels = Filter { labels: [("a".to_owned(), "b".to_owned())].into(), ..Filter::default() };
    let labelled = Scope { filter: labels, ..scope(from - DAY, from) };
    out_of_range(store.totals(&labelled, &[from - DAY, from]).await, shown);
    out_of_range(store.breakdown(&labelled, &[Dimension::User], Metric::Cost, 5).await, shown);
    out_of_range(store.facets(&labelled, 5).await, shown);
    let frozen = Scope { watermark: Some(i64::MAX), ..scope(from - DAY, from) };
    out_of_range(store.totals(&frozen, &[from - DAY, from]).await, shown);
    // An export that has come this far has all that is left of it.
    let after = Some(Position { occurred_at_us: from, id: uuid::Uuid::nil() });
    store.requests(&before, Order::OldestFirst, after, 5).await.unwrap();
    // The same questions, of what is kept.
    store.requests(&scope(from, from + 1), Order::NewestFirst, None, 5).await.unwrap();
    store.totals(&scope(from, from + 1), &[from, from + 1]).await.unwrap();
    // Nothing is asked about.
    assert_eq!(total(store, from - 7, from - 7).await.unwrap(), 0);
}

pub(crate) async fn events_before_the_horizon_are_refused(bench: Bench) {
    let store = &bench.store;
    let other = bench.replica().await;
    let from = MIDNIGHT;
    let old = [numbered(&request(from - 1, 1), 1, 1), numbered(&request(from - DAY, 2), 1, 2)];
    write_new(store, old.clone()).await;
    store.retain(from, None).await.unwrap();
    let refused = Outcome::BeforeRetention { kept_from_us: from };
    let table = |first: u64| {
        [
            // Stored once, and late: known or not, whoever asks.
            (old[0].clone(), refused),
            (changed(&old[1], |event| event.user_id = "else".into()), refused),
            (request(from - 2 * DAY, first), refused),
            (numbered(&request(from - 1, first + 1), 1, 3), refused),
            // The first moment that is kept; and a number that a refused event had is free.
            (request(from + first as i64, first + 2), Outcome::Accepted),
            (numbered(&request(from + 2, first + 3), first as i64, 3), Outcome::Accepted),
        ]
    };
    for (store, first) in [(store, 10), (&other, 20)] {
        let (events, expected): (Vec<_>, Vec<_>) = table(first).into_iter().unzip();
        assert_eq!(write(store, events).await, expected);
    }
    store.sweep().await.unwrap();
    // Its first telling is gone: it is no new one all the same.
    for store in [store, &other] {
        assert_eq!(write(store, old.clone()).await, [refused; 2]);
    }
    assert_eq!(total(store, 0, i64::MAX).await.unwrap(), 6, "two before the horizon, four after");
    assert_eq!(store.requests(&scope(from, i64::MAX), Order::OldestFirst, None, 9).await.unwrap().len(), 4);
}

/// Replicas write the same events, some of them twice, while the horizon moves over them and all before it is
/// removed: what was accepted is counted once, whether it is still there or not.
pub(crate) async fn what_is_accepted_is_counted_once_while_rows_are_removed(bench: Bench) {
    let all = ten_days(1_600);
    let done = AtomicBool::new(false);
    let replicas = [bench.replica().await, bench.replica().await];
    let writer = |replica: usize| {
        let (store, all) = (&replicas[replica], &all);
        async move {
            let mut accepted = 0;
            for round in 0..2 {
                for group in all.chunks(40 + replica * 9) {
                    let outcomes = write(store, group.iter().cloned()).await;
                    accepted += outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
                    let known = |outcome: &Outcome| {
                        matches!(outcome, Outcome::Accepted | Outcome::Duplicate | Outcome::BeforeRetention { .. })
                    };
                    assert!(outcomes.iter().all(known), "round {round}: {outcomes:?}");
                }
            }
            accepted as u64
        }
    };
    let writers = async {
        let (first, second) = tokio::join!(writer(0), writer(1));
        done.store(true, Ordering::SeqCst);
        first + second
    };
    let remover = async {
        for day in -8..=0 {
            bench.store.retain(MIDNIGHT + day * DAY, None).await.unwrap();
            bench.store.sweep().await.unwrap();
        }
    };
    let reader = async {
        let mut seen = 0;
        while !done.load(Ordering::SeqCst) {
            let now = total(&bench.store, 0, i64::MAX).await.unwrap();
            assert!(now >= seen, "{now} after {seen}");
            seen = now;
        }
    };
    let (accepted, (), ()) = tokio::join!(writers, remover, reader);
    assert_eq!(total(&bench.store, 0, i64::MAX).await.unwrap(), accepted);
    let of_the_last_day = all.iter().filter(|request| request.event.occurred_at_us >= MIDNIGHT).count() as u64;
    assert!(accepted >= of_the_last_day, "the last day is never removed: {accepted}");
    bench.store.sweep().await.unwrap();
    for store in &replicas {
        assert_eq!(total(store, 0, i64::MAX).await.unwrap(), accepted);
    }
    assert_checked(&bench.store).await;
}

/// All days that can be compared are equal, and those before the horizon are none of them.
async fn assert_checked(store: &Store) {
    let kept = store.kept().await.unwrap();
    let mut day = store.day_from(i64::MIN).await.unwrap();
    while let Some(start) = day {
        assert!(start >= kept.requests_from_us);
        assert_eq!(store.check_day(start, true).await.unwrap().differing, 0);
        day = store.day_from(start + DAY).await.unwrap();
    }
    for before in 1..12 {
        let removed = store.check_day(kept.requests_from_us - before * DAY, true).await.unwrap();
        assert_eq!(removed, Checked::default(), "there is nothing to compare with");
    }
}

/// Cut off after any time: the next one finishes it.
pub(crate) async fn a_removal_that_is_cut_off_is_finished_by_the_next(mut bench: Bench) {
    let all = ten_days(3_000);
    write_new(&bench.store, all.clone()).await;
    // The horizon moved, and then the process was gone.
    bench.store.retain(MIDNIGHT - 2 * DAY, None).await.unwrap();
    bench = bench.reopened().await;
    assert_answers(&bench.store, &all).await;
    let mut patience = Duration::from_millis(1);
    while tokio::time::timeout(patience, bench.store.sweep()).await.is_err() {
        patience *= 2;
        bench = bench.reopened().await;
        assert_answers(&bench.store, &all).await;
    }
    let left = format!("SELECT COUNT(*) FROM usage_requests WHERE occurred_at < {}", MIDNIGHT - 3 * DAY);
    assert_eq!(bench.number(&left).await, 0);
    assert_answers(&bench.store, &all).await;
    assert_checked(&bench.store).await;
}

pub(crate) async fn sums_are_removed_after_their_time(bench: Bench) {
    let store = &bench.store;
    let other = bench.replica().await;
    let all = ten_days(1_000);
    write_new(store, all.clone()).await;
    seal_all(store).await;
    assert_answers(&other, &all).await;
    let (requests, rollups) = (MIDNIGHT - 3 * DAY, MIDNIGHT - 6 * DAY);
    let kept = store.retain(requests, Some(rollups)).await.unwrap();
    assert_eq!(kept, Kept { requests_from_us: requests, rollups_from_us: rollups });
    let shown = "usage is kept from 2025-12-30T00:00:00.000000Z";
    let expected = all.iter().filter(|request| request.event.occurred_at_us >= rollups).count() as u64;
    for swept in [false, true] {
        for store in [store, &other] {
            out_of_range(total(store, rollups - DAY, rollups).await, shown);
            out_of_range(total(store, rollups - 1, i64::MAX).await, shown);
            out_of_range(store.facets(&scope(rollups - HOUR, requests), 5).await, shown);
            assert_eq!(total(store, rollups, i64::MAX).await.unwrap(), expected, "swept: {swept}");
        }
        store.sweep().await.unwrap();
    }
    for table in ["usage_spans", "usage_segments"] {
        let sql = |sign: &str| format!("SELECT COUNT(*) FROM {table} WHERE start_us {sign} {rollups}");
        assert_eq!(bench.number(&sql("<")).await, 0);
        assert!(bench.number(&sql(">=")).await > 0);
    }
    // Sums are never kept for less time than what they are sums of.
    let kept = store.retain(requests + DAY, Some(requests + 2 * DAY)).await.unwrap();
    assert_eq!(kept, Kept { requests_from_us: requests + DAY, rollups_from_us: requests + DAY });
    assert_checked(store).await;
    drop(other);
    let reopened = bench.reopened().await;
    out_of_range(total(&reopened.store, rollups, i64::MAX).await, "usage is kept from 2026-01-03");
}

/// A request is the label's and the text's size, so that there is something to give back.
pub(crate) async fn space_is_given_back(bench: Bench) {
    let Some(path) = bench.url.sqlite_path() else {
        return days_of_postgres_go_as_a_whole(bench).await;
    };
    let large = |n: u64| {
        changed(&request(MIDNIGHT - 5 * DAY + n as i64, n), |event| {
            event.labels = (0..8).map(|k| (format!("{k}"), "x".repeat(250))).collect();
        })
    };
    for group in 0..10 {
        write_new(&bench.store, (group * 500..(group + 1) * 500).map(large)).await;
    }
    write_new(&bench.store, [request(MIDNIGHT, 9_999)]).await;
    bench.store.retain(MIDNIGHT, None).await.unwrap();
    let swept = bench.store.sweep().await.unwrap();
    assert_eq!((swept.requests, swept.busy), (5_000, 0));
    assert!(swept.pages > 2_000, "{swept:?}");
    let bench = bench.reopened().await;
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes < 2 << 20, "{bytes}");
    assert_eq!(total(&bench.store, 0, i64::MAX).await.unwrap(), 5_001);
}

async fn days_of_postgres_go_as_a_whole(bench: Bench) {
    let store = &bench.store;
    let today = clock::now_us().div_euclid(DAY) * DAY;
    // A day has its own partition while it is not too long ago.
    write_new(store, (0..10).map(|day| request(today - day * DAY, day as u64))).await;
    let days = "SELECT COUNT(*) FROM pg_inherits WHERE inhparent = 'usage_requests'::regclass";
    let before = bench.number(days).await;
    store.retain(today - 3 * DAY, None).await.unwrap();
    let swept = store.sweep().await.unwrap();
    // Those of nine to five days ago: the one before the horizon may hold ids of requests after it.
    assert_eq!((swept.partitions, swept.requests, swept.busy), (5, 0, 0));
    assert_eq!(bench.number(days).await, before - 5);
    assert_eq!(bench.number("SELECT COUNT(*) FROM usage_requests").await, 5);
    assert_eq!(store.requests(&scope(today - 3 * DAY, i64::MAX), Order::NewestFirst, None, 99).await.unwrap().len(), 4);
    assert_eq!(total(store, 0, i64::MAX).await.unwrap(), 10);
    assert_eq!(total(store, today - 9 * DAY, today - 3 * DAY).await.unwrap(), 6);
}

/// How long it takes PostgreSQL to let go of a day; a million requests with FULL=1. Writers write meanwhile.
#[tokio::test]
async fn a_day_of_postgres_is_gone_in_less_than_a_second() {
    if testkit::Postgres::skipped() {
        return;
    }
    let bench = Bench::postgres().await;
    let requests: i64 = if std::env::var_os("FULL").is_some() { 1_000_000 } else { 20_000 };
    let today = clock::now_us().div_euclid(DAY) * DAY;
    let day = today - 5 * DAY;
    write_new(&bench.store, [request(day, 0), request(today, 1)]).await;
    // The rest is made of the first one.
    let fill = format!(
        "INSERT INTO usage_requests SELECT (merged).* FROM (SELECT jsonb_populate_record(kept, jsonb_build_object(\
         'id', (lpad(to_hex({day} / 1000 + n / 20), 12, '0') || '7000' || '8' || lpad(to_hex(n), 15, '0')), \
         'occurred_at', {day} + n * 50)) AS merged \
         FROM usage_requests AS kept, generate_series(1, {requests} - 1) AS n WHERE kept.occurred_at = {day}) AS rows"
    );
    bench.execute(&fill).await;
    let count = format!("SELECT COUNT(*) FROM usage_requests WHERE occurred_at < {today}");
    assert_eq!(bench.number(&count).await, requests);

    let done = AtomicBool::new(false);
    let writer = async {
        let mut slowest = Duration::ZERO;
        for n in 2.. {
            let begun = Instant::now();
            write_new(&bench.store, [request(today + n as i64, n)]).await;
            slowest = slowest.max(begun.elapsed());
            if done.load(Ordering::SeqCst) {
                break;
            }
        }
        slowest
    };
    let remover = async {
        bench.store.retain(today - 2 * DAY, None).await.unwrap();
        let begun = Instant::now();
        let swept = bench.store.sweep().await.unwrap();
        let took = begun.elapsed();
        done.store(true, Ordering::SeqCst);
        (swept, took)
    };
    let (slowest, (swept, took)) = tokio::join!(writer, remover);
    println!("a day of {requests} requests removed in {took:?}; slowest write meanwhile {slowest:?}");
    assert_eq!(swept.partitions, 1);
    assert_eq!(bench.number(&count).await, 0);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(bench.store.kept().await.unwrap().requests_from_us, today - 2 * DAY);
    assert!(total(&bench.store, 0, i64::MAX).await.unwrap() >= 2);
}
