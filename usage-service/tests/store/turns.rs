//! Reads that take long, and those that must not wait for them.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use futures::future::join_all;
use service_core::config::DatabaseConfig;
use usage_service::model::{Filter, NewRequest, Scope};
use usage_service::store::{Order, Store};

use crate::Bench;
use crate::events::{NOON, SECOND, always, changed, request, scope, seal_all, write_new};

/// How long a read takes that takes long, at least.
const LONG: Duration = Duration::from_secs(2);

/// The labels that all requests have: as many as there may be, as long as they may be, and of letters that keep a search
/// for one of them busy.
fn labels() -> BTreeMap<String, String> {
    (0..16).map(|n| (format!("{}{n:02}", "{".repeat(254)), "{".repeat(256))).collect()
}

fn labelled(n: u64) -> NewRequest {
    changed(&request(NOON + n as i64, n), |event| event.labels = labels())
}

/// Finds nothing, after a search for all labels but one in each request.
fn nothing() -> Scope {
    let mut labels = labels();
    labels.values_mut().next_back().unwrap().push('x');
    Scope { filter: Filter { labels, ..Filter::default() }, ..always() }
}

/// Both ways to look at every request: a page, and totals.
async fn look(store: &Store) {
    let nothing = nothing();
    let page = store.requests(&nothing, Order::NewestFirst, None, 1);
    let edges = [nothing.start_us, nothing.end_us];
    let _ = futures::join!(page, store.totals(&nothing, &edges));
}

async fn quick(store: &Store) {
    let hour = scope(NOON - 1_800 * SECOND, NOON + 1_800 * SECOND);
    let of_user = Filter { user_ids: vec!["user-1".into()], ..Filter::default() };
    assert_eq!(store.requests(&hour, Order::NewestFirst, None, 1).await.unwrap().len(), 1);
    let of_user = Scope { filter: of_user, ..hour.clone() };
    assert_eq!(store.requests(&of_user, Order::NewestFirst, None, 1).await.unwrap().len(), 1);
    let totals = store.totals(&hour, &[hour.start_us, hour.end_us]).await.unwrap();
    assert!(totals[0].totals.requests > 0);
    store.watermark().await.unwrap();
}

pub(crate) async fn quick_reads_wait_neither_for_long_ones_nor_for_those_that_were_left(bench: Bench) {
    let mut stored = 0;
    let mut took = Duration::ZERO;
    while took < LONG {
        let more = 250.max(stored);
        write_new(&bench.store, (stored..stored + more).map(labelled)).await;
        stored += more;
        let begun = Instant::now();
        assert_eq!(bench.store.requests(&nothing(), Order::NewestFirst, None, 1).await.unwrap(), []);
        took = begun.elapsed();
    }
    seal_all(&bench.store).await;
    let four = 4.try_into().unwrap();
    // A quick one that finds no connection does not wait until a long one has ended.
    let half = NonZeroU64::new(u64::try_from(took.as_millis() / 2).unwrap()).unwrap();
    let config = DatabaseConfig { readers: four, acquire_timeout_ms: half, ..DatabaseConfig::default() };
    let bench = bench.reopened_as(config).await;
    let store = &bench.store;

    // The engine goes on with each that is left.
    for _ in 0..6 {
        let looks = join_all((0..4).map(|_| look(store)));
        assert!(tokio::time::timeout(Duration::from_millis(50), looks).await.is_err(), "that took no time");
        quick(store).await;
    }
    tokio::select! {
        biased;
        _ = join_all((0..8).map(|_| look(store))) => panic!("that took no time"),
        () = quick(store) => {}
    }
}
