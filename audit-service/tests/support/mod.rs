//! What the tests of the store share: an engine to run on, events to write, and a second opinion on filters.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, unused_macros, reason = "a test")]

pub mod reference;

use std::sync::atomic::{AtomicU64, Ordering};

use audit_service::event::{Actor, Event, Operation, Outcome, Producer, Resource, Stage};
use audit_service::filter::Filter;
use audit_service::ingest::Batch;
use audit_service::store::{EventResult, Order, Range, Row, Sought, Store};
use service_core::auth::Access;
use service_core::config::{DatabaseConfig, DatabaseUrl};
use uuid::Uuid;

/// Runs each test on SQLite, and on PostgreSQL where it is installed.
macro_rules! on_both_engines {
    ($($test:ident,)+) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(&super::Home::new(super::Engine::Sqlite).await).await;
            })+
        }
        mod postgres {
            $(#[tokio::test]
            async fn $test() {
                if !testkit::Postgres::skipped() {
                    super::$test(&super::Home::new(super::Engine::Postgres).await).await;
                }
            })+
        }
    };
}

/// 2026-01-01T00:00:00Z.
pub const T0: i64 = 1_767_225_600_000_000;
/// Everything that the tests write.
pub const ALL: Range = Range { start_us: T0 - 1_000_000_000, end_us: T0 + 1_000_000_000_000 };

/// All times.
pub const EVER: Range = Range { start_us: i64::MIN, end_us: i64::MAX };

/// Which database a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// A database of the test's own.
#[derive(Debug)]
pub struct Home {
    pub engine: Engine,
    pub url: DatabaseUrl,
    _folder: Option<tempfile::TempDir>,
}

impl Home {
    pub async fn new(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
                Self { engine, url, _folder: Some(folder) }
            }
            Engine::Postgres => {
                let url = testkit::Postgres::shared().await.create_database().await;
                Self { engine, url: DatabaseUrl::new(url).unwrap(), _folder: None }
            }
        }
    }

    pub async fn open(&self) -> Store {
        Store::open(&self.url, &DatabaseConfig::default()).await.unwrap()
    }
}

/// A different number each time: ids of one test process never meet.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A UUIDv7 of a time.
pub fn id_at(us: i64) -> Uuid {
    let millis = u128::from((us / 1_000).unsigned_abs());
    let number = u128::from(NEXT.fetch_add(1, Ordering::Relaxed));
    Uuid::from_u128((millis << 80) | (0x7 << 76) | (0x2 << 62) | number)
}

/// An event at a time, in the instance `prod`.
pub fn event(us: i64) -> Event {
    Event {
        id: id_at(us),
        occurred_at_us: us,
        instance_id: "prod".into(),
        actor: Actor { id: "u-1".into(), display_name: "Ada".into(), ..Actor::default() },
        action: "model.enabled".into(),
        resources: vec![Resource { kind: "model".into(), id: "m-1".into(), name: "GPT-4o".into() }],
        outcome: Outcome::Success,
        reason: String::new(),
        changes: Vec::new(),
        details_json: String::new(),
        request_id: String::new(),
        operation: None,
        producer: None,
    }
}

/// The same, changed.
pub fn event_with(us: i64, change: impl FnOnce(&mut Event)) -> Event {
    let mut event = event(us);
    change(&mut event);
    event
}

pub fn staged(us: i64, operation: &str, stage: Stage) -> Event {
    event_with(us, |event| event.operation = Some(Operation { id: operation.into(), stage }))
}

pub fn numbered(us: i64, producer: &str, epoch: u64, sequence: u64) -> Event {
    event_with(us, |event| event.producer = Some(Producer { id: producer.into(), epoch, sequence }))
}

pub fn batch(events: impl IntoIterator<Item = Event>) -> Batch {
    Batch { events: events.into_iter().map(Into::into).collect(), ..Batch::default() }
}

/// Writes one batch.
pub async fn write(store: &Store, events: impl IntoIterator<Item = Event>) -> Vec<EventResult> {
    store.write(&[batch(events)]).await.unwrap().results.remove(0)
}

/// The access of who sees everything.
pub fn full() -> Access {
    Access::unrestricted()
}

/// The row with an id.
pub async fn found(store: &Store, id: Uuid) -> Option<Row> {
    match store.by_id(&full(), id).await.unwrap() {
        Sought::Found(row) => Some(*row),
        Sought::Nowhere => None,
        other => panic!("{other:?}"),
    }
}

/// The sequence that an event was given, if it was stored by this write.
pub fn accepted(result: &EventResult) -> u64 {
    match result {
        EventResult::Stored { sequence, duplicate: false, .. } => *sequence,
        other => panic!("not accepted: {other:?}"),
    }
}

/// All ids of a list, read in pages.
pub async fn ids(store: &Store, filter: &Filter, range: Range, order: Order, page: usize) -> Vec<Uuid> {
    ids_within(store, &full(), filter, range, order, page).await
}

/// The same of what may be seen.
pub async fn ids_within(
    store: &Store,
    access: &Access,
    filter: &Filter,
    range: Range,
    order: Order,
    page: usize,
) -> Vec<Uuid> {
    let mut ids = Vec::new();
    let mut after = None;
    loop {
        let page = store.list(access, filter, range, order, after, page, 1 << 20).await.unwrap();
        ids.extend(page.entries.iter().map(|(entry, _)| entry.event.id));
        after = page.next;
        if after.is_none() {
            return ids;
        }
    }
}
