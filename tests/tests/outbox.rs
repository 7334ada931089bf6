//! A change and its audit event are committed together, and the event arrives once, whoever dies in between.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::{AuditEntry, ListEntriesRequest};
use e2e::sandbox::database_url;
use e2e::{Engine, Sandbox};
use gateway_outbox::{Error, Relay, Relayed, create_table, enqueue};
use gateway_sdk::{Actor, AuditEvent, GatewaySdk, Resource};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TransactionTrait};
use testkit::ChildProcess;

const PATIENCE: Duration = Duration::from_secs(60);

/// The platform's database, with a table of its own beside the outbox.
async fn platform(engine: Engine, sandbox: &Sandbox) -> (String, DatabaseConnection) {
    let url = database_url(engine, &sandbox.folder, "platform").await;
    let url = if engine == Engine::Sqlite { format!("{url}?mode=rwc") } else { url };
    let db = Database::connect(&url).await.unwrap();
    create_table(&db).await.unwrap();
    create_table(&db).await.unwrap();
    db.execute_unprepared("CREATE TABLE changes (id VARCHAR(36) NOT NULL)").await.unwrap();
    (url, db)
}

fn sdk(sandbox: &Sandbox) -> GatewaySdk {
    GatewaySdk::builder()
        .audit_endpoint(sandbox.audit.address())
        .instance("eu-1")
        .audit_timeout(Duration::from_secs(2))
        .backoff(Duration::from_millis(5), Duration::from_millis(50))
        .build()
        .unwrap()
}

fn event(n: usize) -> AuditEvent {
    AuditEvent::builder(Actor::user("alice"), "model.enabled", Resource::new("model", format!("m-{n:04}"))).build()
}

/// A change with its event, committed or not.
async fn change(db: &DatabaseConnection, event: AuditEvent, commit: bool) {
    let transaction = db.begin().await.unwrap();
    transaction.execute_unprepared(&format!("INSERT INTO changes VALUES ('{}')", event.id())).await.unwrap();
    enqueue(&transaction, event).await.unwrap();
    if commit { transaction.commit().await.unwrap() } else { transaction.rollback().await.unwrap() }
}

async fn column(db: &DatabaseConnection, query: &str) -> Vec<String> {
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), query)).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

async fn waiting(db: &DatabaseConnection) -> usize {
    column(db, "SELECT CAST(position AS VARCHAR(20)) FROM audit_outbox WHERE rejected IS NULL").await.len()
}

/// In the order of the log.
async fn log(sandbox: &Sandbox) -> Vec<AuditEntry> {
    let mut client = AuditQueryServiceClient::new(sandbox.audit.channel());
    let mut request = ListEntriesRequest { page_size: 1_000, ..ListEntriesRequest::default() };
    let mut entries = Vec::new();
    loop {
        let answer = client.list_entries(request.clone()).await.unwrap().into_inner();
        entries.extend(answer.entries);
        if answer.next_page_token.is_empty() {
            entries.sort_by_key(|entry| entry.sequence);
            return entries;
        }
        request.page_token = answer.next_page_token;
    }
}

async fn everything(engine: Engine) {
    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    let (url, db) = platform(engine, &sandbox).await;
    let sdk = sdk(&sandbox);
    let relay = Relay::new(db.clone(), sdk.audit().clone()).batch(7).interval(Duration::from_millis(10));

    // What was rolled back is not sent, and what the service would refuse is refused before the commit.
    for n in 0..30 {
        change(&db, event(n), n % 3 != 2).await;
    }
    let transaction = db.begin().await.unwrap();
    let bad = AuditEvent::builder(Actor::user("alice"), "Enabled", Resource::new("model", "m"));
    assert!(matches!(enqueue(&transaction, bad).await, Err(Error::Event(_))));
    // Nor is what is not committed yet; dropped, it is rolled back.
    enqueue(&transaction, event(99)).await.unwrap();
    if engine == Engine::Postgres {
        assert_eq!(relay.round().await.unwrap().delivered, 7);
    }
    drop(transaction);
    while relay.round().await.unwrap() != Relayed::default() {}
    assert_eq!(waiting(&db).await, 0);
    let names = |entries: &[AuditEntry]| entries.iter().map(|entry| entry.resources[0].id.clone()).collect::<Vec<_>>();
    let committed: Vec<_> = (0..30).filter(|n| n % 3 != 2).map(|n| format!("m-{n:04}")).collect();
    assert_eq!(names(&log(&sandbox).await), committed, "each once, in order");

    // The service away, rows stay; a relay that dies after sending leaves them to the next, and they are stored once.
    sandbox.audit.kill();
    let again = event(100);
    for _ in 0..2 {
        // The same one is taken once.
        change(&db, again.clone(), true).await;
    }
    change(&db, event(101), true).await;
    let before = sdk.stats().audit.recorded;
    for _ in 0..3 {
        let Err(Error::NotDelivered { waiting: 2, .. }) = relay.round().await else { panic!("the service is away") };
    }
    assert_eq!(sdk.stats().audit.recorded - before, 2, "no row is handed over twice");
    assert_eq!(waiting(&db).await, 2);
    sandbox.audit.start_again().await;
    sdk.audit().record(again).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(relay.run(async { drop(stopped.await) }));
    testkit::eventually(PATIENCE, async || waiting(&db).await == 0).await;
    stop.send(()).unwrap();
    running.await.unwrap();
    assert_eq!(names(&log(&sandbox).await)[20..], ["m-0100", "m-0101"]);

    // A row that is none, and one that the service refuses, hold up no other.
    let values = match db.get_database_backend() {
        DbBackend::Postgres => "(gen_random_uuid(), '\\xFF'), (gen_random_uuid(), '')",
        _ => "(randomblob(16), x'FF'), (randomblob(16), x'')",
    };
    db.execute_unprepared(&format!("INSERT INTO audit_outbox (event_id, event) VALUES {values}")).await.unwrap();
    change(&db, event(102), true).await;
    let relayed = Relay::new(db.clone(), sdk.audit().clone()).round().await.unwrap();
    assert_eq!((relayed.delivered, relayed.rejected), (1, 2));
    let why = column(&db, "SELECT rejected FROM audit_outbox ORDER BY position").await;
    assert_eq!(why[0], "the row is no event");
    assert!(why[1].contains("actor"), "{why:?}");

    // A platform that is killed at some instant: what it committed is told, and nothing else.
    let mut command = Command::new(env!("CARGO_BIN_EXE_outbox"));
    let mut child = ChildProcess::start(command.args([url.as_str(), sandbox.audit.address()]));
    testkit::eventually(PATIENCE, async || child.lines().len() > 60).await;
    child.kill();
    child.exited(PATIENCE).await;
    testkit::eventually(PATIENCE, async || {
        let relay = Relay::new(db.clone(), sdk.audit().clone());
        matches!(relay.round().await, Ok(relayed) if relayed == Relayed::default())
    })
    .await;
    let ids: Vec<String> = log(&sandbox).await.into_iter().map(|entry| entry.id).collect();
    let told: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(told.len(), ids.len());
    let changes = column(&db, "SELECT id FROM changes").await;
    assert_eq!(told, changes.iter().collect(), "both or neither");
    let printed: Vec<String> =
        child.lines().iter().filter_map(|line| Some(line.strip_prefix("committed ")?.to_owned())).collect();
    assert!(printed.len() > 20 && printed.iter().filter(|id| id.len() == 36).all(|id| told.contains(id)));
}

#[tokio::test]
async fn a_change_and_its_event_are_both_or_neither_on_sqlite() {
    everything(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_change_and_its_event_are_both_or_neither_on_postgres() {
    everything(Engine::Postgres).await;
}

#[tokio::test]
async fn relays_on_postgres_share_the_rows_and_none_is_sent_twice() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let (_, db) = platform(Engine::Postgres, &sandbox).await;
    let transaction = db.begin().await.unwrap();
    for n in 0..400 {
        enqueue(&transaction, event(n)).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let sdks: Vec<GatewaySdk> = (0..4).map(|_| sdk(&sandbox)).collect();
    let relays: Vec<_> = sdks
        .iter()
        .map(|sdk| {
            let relay = Relay::new(db.clone(), sdk.audit().clone()).batch(20).interval(Duration::from_millis(5));
            tokio::spawn(relay.run(std::future::pending()))
        })
        .collect();
    testkit::eventually(PATIENCE, async || waiting(&db).await == 0).await;
    relays.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(log(&sandbox).await.len(), 400);
    let stats: Vec<_> = sdks.iter().map(|sdk| sdk.stats().audit).collect();
    assert_eq!(stats.iter().map(|stats| stats.acknowledged).sum::<u64>(), 400);
    assert!(stats.iter().filter(|stats| stats.acknowledged > 0).count() > 1, "{stats:?}");
}
