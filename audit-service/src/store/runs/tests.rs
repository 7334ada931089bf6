//! What is live no more goes, in the end, and nothing else does.

use service_core::config::{DatabaseConfig, DatabaseUrl};

use super::*;
use crate::event::Event;
use crate::ingest::Batch;

async fn open(folder: &tempfile::TempDir) -> Store {
    let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
    Store::open(&url, &DatabaseConfig::default()).await.unwrap().with_block_entries(8)
}

async fn write(store: &Store, numbers: std::ops::Range<u128>) {
    let event = crate::canonical::fixtures::full().event;
    let events = numbers.map(|number| Event { id: Uuid::from_u128(number), producer: None, ..event.clone() }.into());
    store.write(&[Batch { events: events.collect(), ..Batch::default() }]).await.unwrap();
}

/// Of how many runs the database holds rows, and parts.
async fn held(store: &Store) -> (i64, i64) {
    let sql = "SELECT (SELECT COUNT(*) FROM audit_index_runs), (SELECT COUNT(DISTINCT run) FROM audit_index)";
    let rows = store.read(sql, Vec::new()).await.unwrap();
    (rows[0].try_get_by_index(0).unwrap(), rows[0].try_get_by_index(1).unwrap())
}

async fn grow_old(store: &Store) {
    let sql = format!("UPDATE audit_index_runs SET since = since - {ABANDONED_US}");
    store.db.writer.execute_raw(store.statement(sql, Vec::new())).await.unwrap();
}

#[tokio::test]
async fn superseded_and_abandoned_runs_go_when_they_are_old() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    write(&store, 0..200).await;
    store.index_all().await.unwrap();
    let live = store.index_snapshot().await.unwrap().runs.len() as i64;
    // One that a crash left.
    let mut writer = RunWriter::new(&store);
    writer.push([(7, vec![1])]).await.unwrap();
    writer.write_pending().await.unwrap().commit().await.unwrap();
    let all = held(&store).await;
    assert!(all.0 > live + 1, "{all:?}");
    assert!(!store.forget_runs().await.unwrap());
    assert_eq!(held(&store).await, all);

    grow_old(&store).await;
    while store.forget_runs().await.unwrap() {}
    assert_eq!(held(&store).await, (live, live));
    // What took so long cannot become live any more.
    let run = Run { id: 0, entries: 1, first_us: 0, last_us: 0, unsettled: 0 };
    assert!(!writer.finish(&run, Origin::Logs(&[])).await.unwrap());
    assert_eq!(held(&store).await, (live, live));
}
