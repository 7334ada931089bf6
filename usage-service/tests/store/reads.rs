//! Reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use usage_service::answer::Metrics;
use usage_service::model::{Dimension, Filter, Metric, Position, Scope};
use usage_service::store::{Order, Store};
use uuid::Uuid;

use crate::events::{NOON, SECOND, always, changed, priced, request, scope, sealed, write_new};
use crate::{Bench, reference};

async fn walk(store: &Store, scope: &Scope, order: Order, page: usize) -> Vec<Uuid> {
    let mut ids = Vec::new();
    let mut after = None;
    loop {
        let found = store.requests(scope, order, after, page).await.unwrap();
        ids.extend(found.iter().map(|request| request.event.id));
        let Some(last) = found.last().filter(|_| found.len() == page) else { return ids };
        after = Some(Position { occurred_at_us: last.event.occurred_at_us, id: last.event.id });
    }
}

pub(crate) async fn pages_walk_through_ties_in_both_orders(bench: Bench) {
    // Seven requests in each of six moments; ids fall where times rise.
    let all: Vec<_> = (0..42_u64).map(|n| request(NOON + (n / 7) as i64, 1_000 - n)).collect();
    write_new(&bench.store, all.iter().rev().cloned()).await;
    let mut expected: Vec<_> = all.iter().map(|r| (r.event.occurred_at_us, r.event.id)).collect();
    expected.sort();
    let ascending: Vec<_> = expected.iter().map(|(_, id)| *id).collect();
    let descending: Vec<_> = ascending.iter().rev().copied().collect();
    for page in [1, 2, 7, 10, 41, 42, 43] {
        assert_eq!(walk(&bench.store, &always(), Order::OldestFirst, page).await, ascending, "{page}");
        assert_eq!(walk(&bench.store, &always(), Order::NewestFirst, page).await, descending, "{page}");
    }
    // A page in the middle of a tie goes on behind it, whatever arrives before it.
    let first = bench.store.requests(&always(), Order::NewestFirst, None, 10).await.unwrap();
    let last = first.last().unwrap();
    let after = Some(Position { occurred_at_us: last.event.occurred_at_us, id: last.event.id });
    write_new(&bench.store, [request(NOON + 5, 5_000), request(NOON + 99, 5_001)]).await;
    let rest = bench.store.requests(&always(), Order::NewestFirst, after, 100).await.unwrap();
    let rest: Vec<_> = rest.iter().map(|request| request.event.id).collect();
    assert_eq!(rest, descending[10..]);
}

pub(crate) async fn late_events_are_in_every_answer_at_once(bench: Bench) {
    let store = &bench.store;
    let mut all = Vec::new();
    for round in 0..5_u64 {
        // Each round is a day older than the one before.
        let late: Vec<_> = (0..10).map(|n| request(NOON - round as i64 * 86_400 * SECOND, round * 10 + n)).collect();
        write_new(store, late.clone()).await;
        all.extend(late);
        let expected = reference::metrics(&all);
        assert_eq!(store.totals(&always(), &[0, i64::MAX]).await.unwrap(), [expected]);
        let ranked = store.breakdown(&always(), &[Dimension::User], Metric::Cost, 3).await.unwrap();
        assert_eq!(ranked.overall, expected);
        assert_eq!(walk(store, &always(), Order::NewestFirst, 7).await.len(), all.len());
    }
}

pub(crate) async fn nothing_is_an_answer_too(bench: Bench) {
    let store = &bench.store;
    write_new(store, [request(NOON, 1)]).await;
    for empty in [scope(NOON, NOON), scope(NOON + 1, NOON + 2), scope(NOON - 5, NOON)] {
        let edges = [empty.start_us, empty.end_us];
        assert_eq!(store.totals(&empty, &edges).await.unwrap(), [Metrics::default()]);
        let ranked = store.breakdown(&empty, &[Dimension::User, Dimension::Status], Metric::Cost, 5).await.unwrap();
        assert_eq!((ranked.rows.len(), ranked.other, ranked.groups), (0, None, 0));
        assert_eq!(ranked.total, [Metrics::default()]);
        let series = store.series(&empty, &[], Metric::Cost, 5, &edges, |_| Ok(())).await.unwrap();
        assert_eq!(series.rows[0].buckets, [Metrics::default()]);
        let series = store.series(&empty, &[Dimension::User], Metric::Cost, 5, &edges, |_| Ok(())).await.unwrap();
        assert!(series.rows.is_empty() && series.other.is_none());
        let facets = store.facets(&empty, 5).await.unwrap();
        assert!(facets.iter().all(|(_, values, distinct)| values.is_empty() && *distinct == 0));
        assert!(store.requests(&empty, Order::NewestFirst, None, 5).await.unwrap().is_empty());
    }
    let found = store.totals(&scope(NOON, NOON + 1), &[NOON, NOON + 1]).await.unwrap();
    assert_eq!(found[0].totals.requests, 1);
}

pub(crate) async fn labels_match_exactly(bench: Bench) {
    let texts = ["", "a", "b", "\"", "\\", "\\\"", "a\":\"b", ",\"a\":\"b\"", "{\"a\":\"b\"}", "%", "_", "ü", "A"];
    let mut all = Vec::new();
    for key in texts.iter().filter(|text| !text.is_empty()) {
        for value in texts {
            all.push(changed(&request(NOON, all.len() as u64), |event| {
                event.labels = [((*key).to_owned(), value.to_owned()), ("zone".to_owned(), "z".to_owned())].into();
            }));
        }
    }
    all.push(request(NOON, 9_999));
    write_new(&bench.store, all.clone()).await;
    for key in texts {
        for value in texts {
            let labels = [(key.to_owned(), value.to_owned())].into();
            let scope = Scope { filter: Filter { labels, ..Filter::default() }, ..always() };
            let found = bench.store.totals(&scope, &[0, i64::MAX]).await.unwrap();
            assert_eq!(found, [reference::metrics(reference::within(&all, &scope))], "{key:?} {value:?}");
        }
    }
    let labels = [("a".to_owned(), "b".to_owned()), ("zone".to_owned(), "z".to_owned())].into();
    let scope = Scope { filter: Filter { labels, ..Filter::default() }, ..always() };
    assert_eq!(bench.store.totals(&scope, &[0, i64::MAX]).await.unwrap()[0].totals.requests, 1);
}

pub(crate) async fn text_of_all_scripts_is_kept_apart(bench: Bench) {
    // Equal to the eye or to a collation, and not the same text.
    let names =
        ["é", "e\u{301}", "E", "e", "ß", "ss", "ﬁ", "fi", "Zoë 🦀", "%", "'; DROP TABLE usage_requests; --", ""];
    let all: Vec<_> = names
        .iter()
        .zip(0..)
        .map(|(name, n)| changed(&request(NOON, n), |event| event.user_id = (*name).to_owned()))
        .collect();
    write_new(&bench.store, all.clone()).await;
    let requests: Vec<_> = all.iter().collect();
    let expected = reference::ranked(&requests, &[Dimension::User], Metric::Requests, 100, &[0, i64::MAX]);
    let ranked = bench.store.breakdown(&always(), &[Dimension::User], Metric::Requests, 100).await.unwrap();
    assert_eq!(ranked.rows, expected.rows);
    for name in names {
        let filter = Filter { user_ids: vec![name.to_owned()], ..Filter::default() };
        let found = bench.store.requests(&Scope { filter, ..always() }, Order::OldestFirst, None, 10).await.unwrap();
        assert_eq!(found.len(), 1, "{name:?}");
        assert_eq!(found[0].event.user_id, name);
    }
}

pub(crate) async fn sums_beyond_64_bits_are_exact(bench: Bench) {
    let all: Vec<_> = (0..50)
        .map(|n| {
            let mut event = request(NOON + n as i64, n).event;
            event.tokens.input_uncached = 1_000_000_000;
            event.tokens.output = 1_000_000_000;
            sealed(event, priced(i64::MAX - n as i64))
        })
        .collect();
    write_new(&bench.store, all.clone()).await;
    let found = bench.store.totals(&always(), &[0, i64::MAX]).await.unwrap();
    assert_eq!(found, [reference::metrics(&all)]);
    assert_eq!(found[0].totals.cost_nanos, 50 * i128::from(i64::MAX) - 49 * 25);
    assert_eq!(found[0].totals.tokens.total(), 100_000_000_000);
}

pub(crate) async fn a_watermark_holds_while_writers_go_on(bench: Bench) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..3_u64 {
        let store = bench.replica().await;
        let stop = Arc::clone(&stop);
        writers.push(tokio::spawn(async move {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                let first = writer * 1_000_000 + written;
                // Late and new ones in turns, so that every window grows.
                write_new(&store, (first..first + 20).map(|n| request(NOON - (n % 7) as i64, n))).await;
                written += 20;
            }
            written
        }));
    }
    let mut frozen = Vec::new();
    for _ in 0..25 {
        let watermark = Some(bench.store.watermark().await.unwrap());
        let scope = Scope { watermark, ..always() };
        let seen = bench.store.totals(&scope, &[0, i64::MAX]).await.unwrap();
        frozen.push((scope, seen));
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    for (scope, seen) in frozen {
        assert_eq!(bench.store.totals(&scope, &[0, i64::MAX]).await.unwrap(), seen);
    }
    // And everything that was acknowledged is below a new one.
    let watermark = Some(bench.store.watermark().await.unwrap());
    let all = bench.store.totals(&Scope { watermark, ..always() }, &[0, i64::MAX]).await.unwrap();
    assert_eq!(all[0].totals.requests, written);
}

pub(crate) async fn a_writer_that_hangs_holds_up_watermarks_and_no_writers(bench: Bench) {
    use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
    if bench.url.sqlite_path().is_some() {
        // One writer: nobody else is there to hang.
        return;
    }
    let peer = sea_orm::Database::connect(bench.url.expose()).await.unwrap();
    let hanging = peer.begin().await.unwrap();
    // The key is "usagecmt" in ASCII.
    hanging.execute_unprepared("SELECT pg_advisory_xact_lock_shared(x'7573616765636d74'::int8)").await.unwrap();

    let mut watermark = Box::pin(bench.store.watermark());
    let writing = async {
        for n in 0..20 {
            write_new(&bench.store, [request(NOON, n)]).await;
        }
    };
    tokio::select! {
        biased;
        number = &mut watermark => panic!("{number:?}, with a writer that may still commit below it"),
        () = writing => {}
    }
    hanging.rollback().await.unwrap();
    let watermark = Some(watermark.await.unwrap());
    write_new(&bench.store, [request(NOON, 20)]).await;
    let scope = Scope { watermark, ..always() };
    let seen = bench.store.totals(&scope, &[0, i64::MAX]).await.unwrap();
    assert!(seen[0].totals.requests <= 20, "the last came later");
}
