//! The indexer keeps up, and what it makes stays small in number.

use service_core::config::{DatabaseConfig, DatabaseUrl};
use uuid::Uuid;

use super::*;
use crate::event::Event;
use crate::ingest::Batch;

async fn open(folder: &tempfile::TempDir, block_entries: u64) -> Store {
    let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
    Store::open(&url, &DatabaseConfig::default()).await.unwrap().with_block_entries(block_entries)
}

fn event(number: u128, logs: u128) -> Event {
    let event = crate::canonical::fixtures::full().event;
    Event { id: Uuid::from_u128(number), instance_id: format!("log-{}", number % logs), producer: None, ..event }
}

async fn write(store: &Store, numbers: std::ops::Range<u128>, logs: u128) {
    let events = numbers.map(|number| event(number, logs).into()).collect();
    store.write(&[Batch { events, ..Batch::default() }]).await.unwrap();
}

async fn entries_behind(store: &Store) -> u64 {
    store.index_snapshot().await.unwrap().entries_behind()
}

#[tokio::test]
async fn in_steady_traffic_many_logs_do_not_stay_behind_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    in_steady_traffic_many_logs_do_not_stay_behind(open(&folder, 16).await).await;
}

/// There the right to make the index is taken and left for each pass.
#[tokio::test]
async fn in_steady_traffic_many_logs_do_not_stay_behind_on_postgres() {
    if !testkit::Postgres::skipped() {
        let url = DatabaseUrl::new(testkit::Postgres::shared().await.create_database().await).unwrap();
        let store = Store::open(&url, &DatabaseConfig::default()).await.unwrap().with_block_entries(16);
        in_steady_traffic_many_logs_do_not_stay_behind(store).await;
    }
}

async fn in_steady_traffic_many_logs_do_not_stay_behind(store: Store) {
    // Ten logs, none of which has much.
    write(&store, 0..100, 10).await;
    let indexer = Indexer::new(store.clone(), Arc::default());
    let (mut left, mut merges) = (Vec::new(), Merges::default());
    for _ in 0..8 {
        // Never quiet.
        indexer.pass(false, &mut merges).await.unwrap();
        left.push(entries_behind(&store).await);
    }
    assert_eq!(left, [84, 68, 52, 36, 20, 4, 4, 4]);
}

#[tokio::test]
async fn runs_stay_few() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, 2).await;
    for part in 0..40 {
        write(&store, part * 10..part * 10 + 10, 3).await;
        store.index_all().await.unwrap();
    }
    let snapshot = store.index_snapshot().await.unwrap();
    assert!(snapshot.entries_behind() < 2);
    assert_eq!(snapshot.runs.iter().map(|run| run.entries).sum::<u64>() + snapshot.entries_behind(), 400);
    // Of 2, 16 and 128: at most seven of each, and what is greater.
    assert!(snapshot.runs.len() <= 23, "{:?}", snapshot.runs);
    assert!(snapshot.runs.iter().any(|run| run.entries >= 128), "{:?}", snapshot.runs);
}

#[tokio::test]
async fn two_replicas_index_each_entry_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, 16).await;
    write(&store, 0..100, 3).await;
    let snapshot = store.index_snapshot().await.unwrap();
    assert!(store.index_some(&snapshot).await.unwrap());
    // Another that saw the same.
    assert!(!store.index_some(&snapshot).await.unwrap());
    store.index_all().await.unwrap();
    let snapshot = store.index_snapshot().await.unwrap();
    let runs = &snapshot.runs[..2];
    assert!(store.merge(runs).await.unwrap());
    assert!(!store.merge(runs).await.unwrap());
    let entries: u64 = store.index_snapshot().await.unwrap().runs.iter().map(|run| run.entries).sum();
    assert_eq!(entries + entries_behind(&store).await, 100);
}

#[test]
fn the_indexer_takes_more_of_the_time_the_farther_it_lies_behind() {
    let worked = Duration::from_secs(1);
    assert_eq!(pause(worked, 1_000, false), worked * 3);
    assert_eq!(pause(worked, 60_000, false), worked);
    assert_eq!(pause(worked, 100_000, false), Duration::ZERO);
    assert_eq!(pause(worked, 1_000, true), Duration::ZERO);
    assert_eq!(pause(Duration::ZERO, 1_000, false), PAUSE);
}

#[tokio::test]
async fn a_merge_that_fails_is_left_alone_for_a_while_and_entries_are_indexed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, 4).await;
    let mut merges = Merges::default();
    let indexer = Indexer::new(store.clone(), Arc::default());
    // Runs of one entry, as long as none are merged: eight of them are too many.
    for number in 0..8 {
        write(&store, number..number + 1, 1).await;
        assert!(store.index_some(&store.index_snapshot().await.unwrap()).await.unwrap());
    }
    let sql = "DELETE FROM audit_index WHERE run = 3";
    store.db.writer.execute_raw(store.statement(sql, [])).await.unwrap();
    write(&store, 8..100, 1).await;
    let mut failures = 0;
    for _ in 0..200 {
        match indexer.pass(true, &mut merges).await {
            Ok(Pass::Idle) => break,
            Ok(Pass::Worked { .. }) => {}
            Err(_) => failures += 1,
        }
    }
    assert_eq!((failures, entries_behind(&store).await), (1, 0));
    assert!(!merges.may());
    // Each failure in a row makes the pause twice as long, to a bound.
    let pauses: Vec<u64> = (0..9)
        .map(|_| {
            merges.failed();
            merges.paused.unwrap().1.as_secs()
        })
        .collect();
    assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
}
