//! Rollups while they are being made: by several replicas, under writers, and cut off anywhere.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use usage_service::model::{Dimension, Metric};
use usage_service::store::{Sealed, Store};

use crate::events::{NOON, SECOND, always, request, seal_all, write_new};
use crate::{Bench, reference};

const HOUR: i64 = 3_600 * SECOND;

/// The `n`th request, somewhere in four days.
fn scattered(n: u64) -> usage_service::model::NewRequest {
    request(NOON - (n as i64 * 7_919) % 96 * HOUR - n as i64 * SECOND, n)
}

async fn count(store: &Store) -> u64 {
    let window = always();
    store.totals(&window, &[window.start_us, window.end_us]).await.unwrap()[0].totals.requests
}

pub(crate) async fn assert_consistent(store: &Store) {
    let mut day = store.day_from(i64::MIN).await.unwrap();
    let mut compared = 0;
    while let Some(start) = day {
        let checked = store.check_day(start, false).await.unwrap();
        assert_eq!(checked.differing, 0);
        compared += checked.segments;
        day = store.day_from(start + 24 * HOUR).await.unwrap();
    }
    assert!(compared > 0, "there was nothing to compare");
}

pub(crate) async fn acknowledged_requests_are_counted_once_while_replicas_seal(bench: Bench) {
    const WRITERS: u64 = 3;
    const GROUPS: u64 = 25;
    const SIZE: u64 = 20;
    let replicas = [bench.replica().await, bench.replica().await];
    let acknowledged = AtomicU64::new(0);
    let submitted = AtomicU64::new(0);
    let writing = AtomicBool::new(true);
    let writers = async {
        let write = |writer: u64| {
            let (store, acknowledged, submitted) = (&replicas[writer as usize % 2], &acknowledged, &submitted);
            async move {
                for group in 0..GROUPS {
                    let first = (writer * GROUPS + group) * SIZE;
                    submitted.fetch_add(SIZE, Ordering::SeqCst);
                    write_new(store, (first..first + SIZE).map(scattered)).await;
                    acknowledged.fetch_add(SIZE, Ordering::SeqCst);
                }
            }
        };
        futures::future::join_all((0..WRITERS).map(write)).await;
        writing.store(false, Ordering::SeqCst);
    };
    let seal = |store: &Store| {
        let (store, writing) = (store.clone(), &writing);
        async move {
            let mut sealed = 0;
            while writing.load(Ordering::SeqCst) {
                if let Sealed::Deltas { deltas, .. } = store.seal().await.unwrap() {
                    sealed += deltas;
                }
                tokio::task::yield_now().await;
            }
            sealed
        }
    };
    let read = |store: &Store| {
        let (store, writing, acknowledged, submitted) = (store.clone(), &writing, &acknowledged, &submitted);
        async move {
            while writing.load(Ordering::SeqCst) {
                let least = acknowledged.load(Ordering::SeqCst);
                let found = count(&store).await;
                let most = submitted.load(Ordering::SeqCst);
                assert!((least..=most).contains(&found), "{found} requests, and {least} to {most} were written");
            }
        }
    };
    let ((), a, b, (), ()) =
        tokio::join!(writers, seal(&replicas[0]), seal(&replicas[1]), read(&replicas[0]), read(&replicas[1]));
    assert!(a + b > 0, "something was sealed meanwhile");

    let all: Vec<_> = (0..WRITERS * GROUPS * SIZE).map(scattered).collect();
    for _ in 0..2 {
        let expected = reference::metrics(&all);
        for store in &replicas {
            let ranked = store.breakdown(&always(), &[Dimension::User], Metric::Cost, 3).await.unwrap();
            assert_eq!(ranked.overall, expected);
            assert_consistent(store).await;
        }
        seal_all(&replicas[0]).await;
    }
}

pub(crate) async fn a_sealing_that_is_cut_off_anywhere_has_happened_or_not(bench: Bench) {
    let store = &bench.store;
    let mut all = Vec::new();
    let (mut cut_off, mut whole) = (0, 0);
    for round in 0.. {
        let more: Vec<_> = (round * 10..round * 10 + 10).map(scattered).collect();
        write_new(store, more.clone()).await;
        all.extend(more);
        // From "not begun" on, until it is long enough for all of it on this machine.
        let patience = Duration::from_micros(300 * (round + 1) * (round + 1));
        match tokio::time::timeout(patience, store.seal()).await {
            Ok(sealed) => {
                sealed.unwrap();
                whole += 1;
            }
            Err(_) => cut_off += 1,
        }
        assert_eq!(count(store).await, all.len() as u64, "after {patience:?}");
        if whole == 3 {
            break;
        }
    }
    assert!(cut_off > 3, "{cut_off} sealings were cut off");
    assert_consistent(store).await;
    seal_all(store).await;
    assert_consistent(store).await;
    let ranked = store.breakdown(&always(), &[Dimension::User], Metric::Cost, 3).await.unwrap();
    assert_eq!(ranked.overall, reference::metrics(&all));
}

pub(crate) async fn late_requests_of_many_days_are_sealed_in_short_steps(bench: Bench) {
    let store = &bench.store;
    // One group, of which each request is of another quarter of an hour, over 20 days and two instances.
    let all: Vec<_> = (0..400)
        .map(|n| {
            let late = request(NOON - n as i64 * 71 * 60 * SECOND, n);
            crate::events::changed(&late, |event| event.instance_id = format!("instance-{}", n % 2))
        })
        .collect();
    write_new(store, all.clone()).await;
    let expected = reference::metrics(&all);
    let mut steps = 0;
    loop {
        let ranked = store.breakdown(&always(), &[Dimension::Instance], Metric::Cost, 3).await.unwrap();
        assert_eq!(ranked.overall, expected, "after {steps} steps");
        match store.seal().await.unwrap() {
            Sealed::Nothing => break,
            Sealed::Elsewhere => {}
            Sealed::Deltas { segments, .. } => {
                assert!(segments <= 256, "{segments} segments in one step");
                steps += 1;
            }
        }
    }
    assert!(steps > 2, "{steps} steps");
    assert_consistent(store).await;
}

/// "Until now" ends in a quarter that has all of the last minutes' traffic, of which next to nothing is behind the end.
pub(crate) async fn an_end_that_cuts_a_quarter_is_answered_without_the_requests_before_it(bench: Bench) {
    const MINUTE: i64 = 60 * SECOND;
    let store = &bench.store;
    let of = |user: &str, minutes: i64, n: u64| {
        crate::events::changed(&request(NOON + minutes * MINUTE, n), |event| event.user_id = user.to_owned())
    };
    let requests = vec![
        of("early", -20, 1),
        of("before", 1, 2),
        of("before", 4, 3),
        of("both", 3, 4),
        // On the end: behind it.
        of("both", 5, 5),
        of("behind", 8, 6),
        of("next", 15, 7),
    ];
    let window = crate::events::scope(NOON - HOUR, NOON + 5 * MINUTE);
    let assert_answers = async |all: &[usage_service::model::NewRequest]| {
        let inside = reference::within(all, &window);
        let edges = [NOON - HOUR, NOON, NOON + 5 * MINUTE];
        assert_eq!(store.totals(&window, &edges).await.unwrap(), reference::buckets(&inside, &edges));
        for keys in [&[Dimension::User][..], &[Dimension::Model, Dimension::User]] {
            let found = store.breakdown(&window, keys, Metric::Cost, 2).await.unwrap();
            let expected = reference::ranked(&inside, keys, Metric::Cost, 2, &[window.start_us, window.end_us]);
            assert_eq!((found.rows, found.other, found.groups), (expected.rows, expected.other, expected.groups));
        }
        let facets = store.facets(&window, 10).await.unwrap();
        let users = facets.into_iter().find(|(dimension, ..)| *dimension == Dimension::User).unwrap();
        assert_eq!(users.2, reference::metrics(inside).unique_users);
    };
    write_new(store, requests[..5].to_vec()).await;
    assert_answers(&requests[..5]).await;
    seal_all(store).await;
    assert_answers(&requests[..5]).await;
    write_new(store, requests[5..].to_vec()).await;
    assert_answers(&requests).await;
    if bench.citus_shards().is_none() {
        let sql = format!("DELETE FROM usage_requests WHERE occurred_at < {}", NOON + 5 * MINUTE);
        bench.execute(&sql).await;
        assert_answers(&requests).await;
        seal_all(store).await;
        assert_answers(&requests).await;
    }
}
