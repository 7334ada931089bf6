//! Citus. What its rules are about is checked always, without a cluster: on the schema, and on every statement that
//! the suite makes the store send. On a cluster, if there is one (`TEST_CITUS_URL`), the suite itself runs (`main`),
//! and what only a cluster can show.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use service_core::config::{ConfigError, DatabaseConfig, DatabaseUrl};
use service_core::error::Error;
use testkit::{Citus, Postgres};
use usage_service::model::{Dimension, Metric, NewRequest, Outcome};
use usage_service::store::{Order, Sealed, Store};

use crate::events::{NOON, SECOND, always, batch, numbered, request, scope, seal_all, write, write_new};
use crate::rollups::assert_consistent;
use crate::{Bench, reference};

mod rules;
mod schema;
mod statements;

/// As few as are of use with two workers.
const SHARDS: Option<NonZeroU32> = NonZeroU32::new(4);

const PATIENCE: Duration = Duration::from_secs(60);

impl Bench {
    /// With what must be told that it is no longer needed.
    pub(crate) async fn citus() -> (Self, Citus) {
        let citus = Citus::create().await;
        let config = DatabaseConfig { citus_shards: SHARDS, ..DatabaseConfig::default() };
        let url = DatabaseUrl::new(citus.url()).unwrap();
        let store = crate::open(&url, &config).await;
        (Self { store, url, config, _folder: None }, citus)
    }
}

async fn refused(url: &str, config: &DatabaseConfig) -> String {
    let error = Store::open(&DatabaseUrl::new(url).unwrap(), config, 1 << 20).await.unwrap_err();
    assert!(error.downcast_ref::<ConfigError>().is_some(), "{error:#}");
    format!("{error:#}")
}

#[tokio::test]
async fn every_statement_of_the_suite_is_one_that_citus_takes() {
    if Postgres::skipped() {
        return;
    }
    let server = statements::Listening::start().await;
    crate::every_behaviour(async || server.bench().await).await;
    let bench = server.bench().await;
    everything_else(&bench.store).await;

    let columns = statements::columns(bench.url.expose()).await;
    let sent = server.sent();
    let distinct: BTreeSet<&str> = sent.iter().map(|(_, sql)| sql.as_str()).collect();
    // That it was listening at all: each kind of access is among them.
    for part in [
        "INSERT INTO usage_requests",
        "JOIN usage_requests",
        "INSERT INTO usage_charges",
        "INSERT INTO usage_producers",
        "FROM \"usage_charges\"",
        "OVER ()",
        "GROUP BY",
        "DELETE FROM usage_deltas",
        "usage_add_partition",
        "REPEATABLE READ",
    ] {
        assert!(distinct.iter().any(|sql| sql.contains(part)), "{part} was not among {} statements", distinct.len());
    }
    let wrong = statements::wrong(&sent, &columns);
    assert!(wrong.is_empty(), "of {} statements:\n{}", distinct.len(), wrong.join("\n"));
}

/// What no behaviour of the suite asks for.
async fn everything_else(store: &Store) {
    let requests: Vec<NewRequest> =
        (0..50).map(|n| numbered(&request(NOON - n * 900 * SECOND, n as u64), 1, n)).collect();
    write_new(store, requests).await;
    store.make_partitions_ahead().await.unwrap();
    store.seal_key().await.unwrap();
    store.probe_reader().await.unwrap();
    store.database().probe_writer().await.unwrap();
    store.facets(&always(), 5).await.unwrap();
    store.kept().await.unwrap();
    while store.seal().await.unwrap() != Sealed::Nothing {}
    let day = store.day_from(i64::MIN).await.unwrap().unwrap();
    assert_eq!(store.check_day(day, true).await.unwrap().differing, 0);
}

#[tokio::test]
async fn a_statement_that_citus_does_not_take_is_found() {
    if Postgres::skipped() {
        return;
    }
    let url = Postgres::shared().await.create_database().await;
    crate::open(&DatabaseUrl::new(&*url).unwrap(), &DatabaseConfig::default()).await.close().await;
    let columns = statements::columns(&url).await;
    let bad = [
        ("SELECT id FROM usage_requests WHERE occurred_at > $1 FOR UPDATE", "locks rows"),
        ("SELECT c.id FROM usage_charges c WHERE c.id = 1 FOR SHARE", "locks rows"),
        (
            "SELECT r.id, (SELECT book_version FROM usage_charges WHERE usage_charges.id = r.charge_ref) FROM usage_requests r",
            "correlated",
        ),
        (
            "SELECT id FROM usage_charges WHERE NOT EXISTS (SELECT 1 FROM usage_requests WHERE charge_ref = usage_charges.id)",
            "correlated",
        ),
        (
            "DELETE FROM usage_charges c WHERE NOT EXISTS (SELECT 1 FROM usage_requests r WHERE r.charge_ref = c.id)",
            "correlated",
        ),
        (
            "SELECT start_us FROM usage_spans WHERE EXISTS (SELECT 1 FROM usage_requests WHERE occurred_at >= start_us)",
            "correlated",
        ),
        ("SELECT d.data FROM usage_deltas d JOIN usage_requests r ON r.commit_number = d.commit_number", "coordinator"),
        ("SELECT 1 FROM usage_requests, usage_retention WHERE occurred_at < requests_before", "coordinator"),
        ("DELETE FROM usage_requests USING usage_retention WHERE occurred_at < requests_before", "coordinator"),
        ("DELETE FROM usage_requests WHERE ctid IN (SELECT ctid FROM usage_requests LIMIT 10)", "system column"),
        ("SELECT tableoid, id FROM usage_requests", "system column"),
        ("UPDATE usage_requests SET id = $1 WHERE id = $2", "changes the distribution column"),
        ("INSERT INTO usage_requests (occurred_at) VALUES ($1)", "without naming the distribution column"),
        (
            "INSERT INTO usage_requests (id) SELECT * FROM UNNEST($1::uuid[]) AS rows ON CONFLICT DO NOTHING",
            "RETURNING",
        ),
        (
            "INSERT INTO usage_requests (id) SELECT * FROM UNNEST($1::uuid[]) AS rows ON CONFLICT (request_id) DO NOTHING RETURNING id",
            "conflict target",
        ),
        ("SELECT c.id FROM usage_charges c LEFT JOIN usage_requests r ON r.charge_ref = c.id", "outer join"),
        ("SELECT id FROM usage_requests_default", "partition"),
        ("SELECT c.id FROM usage_charges c, LATERAL (SELECT id FROM usage_requests r LIMIT 1) x", "LATERAL"),
        ("WITH RECURSIVE a AS (SELECT id FROM usage_requests) SELECT * FROM a", "recursive"),
        ("SELECT user_id, COUNT(*) FROM usage_requests GROUP BY ROLLUP (user_id)", "grouping sets"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT id FROM usage_requests", "no statement"),
        ("PREPARE TRANSACTION 'x'", ""),
        ("CREATE TEMP TABLE t AS SELECT * FROM usage_requests", "no statement"),
        ("LOCK TABLE usage_requests", ""),
        ("TRUNCATE usage_requests", "no statement"),
    ];
    for (sql, word) in bad {
        let found = rules::violations(sql, &columns);
        assert!(found.iter().any(|why| why.contains(word)), "{sql}: {found:?}");
    }
    let good = [
        "SELECT r.id FROM usage_requests r LEFT JOIN usage_charges c ON c.id = r.charge_ref WHERE (r.occurred_at, r.id) < ($1, $2)",
        "SELECT id FROM usage_requests WHERE occurred_at < (SELECT requests_before FROM usage_retention)",
        "SELECT 1 FROM usage_segments s JOIN usage_spans p ON p.start_us = s.start_us FOR UPDATE",
        "SELECT start_us FROM usage_spans p WHERE EXISTS (SELECT 1 FROM usage_segments s WHERE s.start_us = p.start_us)",
    ];
    for sql in good {
        assert_eq!(rules::violations(sql, &columns), [""; 0], "{sql}");
    }
    let sent = ["BEGIN", "SELECT id FROM usage_requests", "SELECT usage_drop_partition($1)", "COMMIT"];
    let sent = sent.map(|sql| (7, sql.to_owned()));
    assert_eq!(statements::wrong(&sent, &columns).len(), 1);
}

#[tokio::test]
async fn the_schema_is_one_that_citus_can_spread_and_another_is_found() {
    if Postgres::skipped() {
        return;
    }
    let bench = Bench::postgres().await;
    bench.store.make_partitions_ahead().await.unwrap();
    assert_eq!(schema::violations(bench.url.expose()).await, [""; 0]);
    let bad = [
        (
            "ALTER TABLE usage_requests_default ADD CONSTRAINT bad UNIQUE (producer_ref, producer_sequence)",
            "unique index",
        ),
        (
            "CREATE TRIGGER bad BEFORE INSERT ON usage_charges FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "triggers",
        ),
        ("CREATE RULE bad AS ON DELETE TO usage_producers DO INSTEAD NOTHING", "rules"),
        ("ALTER TABLE usage_requests ADD FOREIGN KEY (commit_number) REFERENCES usage_deltas", "foreign key"),
        ("CREATE SEQUENCE bad; ALTER TABLE usage_requests ALTER charge_ref SET DEFAULT nextval('bad')", "sequence"),
        ("ALTER TABLE usage_charges ADD COLUMN bad BIGINT GENERATED ALWAYS AS IDENTITY", "sequence"),
        ("ALTER TABLE usage_requests ENABLE ROW LEVEL SECURITY", "row security"),
        ("CREATE VIEW bad AS SELECT * FROM usage_requests", "depends"),
        (
            "CREATE FUNCTION usage_bad() RETURNS int LANGUAGE plpgsql AS 'BEGIN DELETE FROM usage_requests WHERE ctid IS NULL; RETURN 1; END'",
            "functions",
        ),
    ];
    for (sql, word) in bad {
        let bench = Bench::postgres().await;
        bench.execute(sql).await;
        let found = schema::violations(bench.url.expose()).await;
        assert!(found.iter().any(|why| why.contains(word)), "{sql}: {found:?}");
    }
}

#[tokio::test]
async fn what_is_no_cluster_is_refused() {
    let config = DatabaseConfig { citus_shards: SHARDS, ..DatabaseConfig::default() };
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}", folder.path().join("usage.db").display());
    let why = refused(&sqlite, &config).await;
    assert!(why.contains("citus_shards") && why.contains("PostgreSQL only"), "{why}");
    if !Postgres::skipped() {
        let url = Postgres::shared().await.create_database().await;
        let why = refused(&url, &config).await;
        assert!(why.contains("citus_shards is 4") && why.contains("no extension citus"), "{why}");
    }
    if !Citus::skipped() {
        let citus = Citus::create().await;
        let why = refused(&citus.worker_url(0), &config).await;
        assert!(why.contains("is a worker"), "{why}");
        citus.execute("CREATE TABLE usage_charges (id BIGINT PRIMARY KEY); SELECT create_distributed_table('usage_charges', 'id')").await;
        citus.drop_database().await;
    }
}

#[tokio::test]
async fn a_database_with_rows_is_spread_once_and_keeps_them() {
    if Citus::skipped() {
        return;
    }
    let citus = Citus::create().await;
    let url = DatabaseUrl::new(citus.url()).unwrap();
    let alone = crate::open(&url, &DatabaseConfig::default()).await;
    alone.make_partitions_ahead().await.unwrap();
    let requests =
        |first: u64| (first..first + 300).map(|n| numbered(&request(NOON - n as i64 * SECOND, n), 1, n as i64));
    write_new(&alone, requests(0)).await;
    seal_all(&alone).await;
    write_new(&alone, requests(300)).await;
    let before = alone.requests(&always(), Order::OldestFirst, None, 1_000).await.unwrap();
    alone.close().await;

    // Three replicas start at once.
    let config = DatabaseConfig { citus_shards: SHARDS, ..DatabaseConfig::default() };
    let (a, b, c) = tokio::join!(crate::open(&url, &config), crate::open(&url, &config), crate::open(&url, &config));
    for store in [&a, &b, &c] {
        assert_eq!(store.requests(&always(), Order::OldestFirst, None, 1_000).await.unwrap(), before);
    }
    let again = write(&b, requests(0)).await;
    assert!(again.iter().all(|outcome| *outcome == Outcome::Duplicate), "{again:?}");
    write_new(&c, requests(600)).await;
    assert_eq!(count(&a).await, 900);
    assert_consistent(&a).await;
    for store in [a, b, c] {
        store.close().await;
    }
    let spread = citus.texts("SELECT table_name::text || ' ' || citus_table_type FROM citus_tables ORDER BY 1").await;
    let top: Vec<&str> =
        spread.iter().map(String::as_str).filter(|table| !table.starts_with("usage_requests_")).collect();
    assert_eq!(top, ["usage_charges reference", "usage_producers reference", "usage_requests distributed"]);
    // Nothing is left where it was.
    let left = citus
        .texts(
            "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND pg_relation_size(oid) > 0 \
             AND (relname LIKE 'usage\\_requests%' OR relname IN ('usage_charges', 'usage_producers'))",
        )
        .await;
    assert_eq!(left, [""; 0]);
    citus.drop_database().await;
}

#[tokio::test]
async fn other_accounts_migrate_and_serve() {
    if Citus::skipped() {
        return;
    }
    let citus = Citus::create().await;
    let (owner, server) = (citus.role("owner"), citus.role("server"));
    citus
        .execute(&format!(
            "CREATE ROLE {owner} LOGIN; CREATE ROLE {server} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}"
        ))
        .await;
    let config = DatabaseConfig {
        citus_shards: SHARDS,
        migrator_url: Some(DatabaseUrl::new(citus.url_as(&owner)).unwrap()),
        ..DatabaseConfig::default()
    };
    let url = DatabaseUrl::new(citus.url_as(&server)).unwrap();
    for start in 0..2 {
        let store = crate::open(&url, &config).await;
        store.make_partitions_ahead().await.unwrap();
        write_new(&store, (start * 50..start * 50 + 50).map(|n| numbered(&request(NOON - n as i64, n), 1, n as i64)))
            .await;
        seal_all(&store).await;
        assert_eq!(
            store.requests(&always(), Order::NewestFirst, None, 1_000).await.unwrap().len(),
            start as usize * 50 + 50
        );
        assert_consistent(&store).await;
        store.close().await;
    }
    citus.drop_database().await;
}

#[tokio::test]
async fn a_worker_that_goes_away_stops_writers_and_loses_nothing() {
    if Citus::skipped() {
        return;
    }
    let citus = Citus::create_behind_proxies().await;
    let config = DatabaseConfig { citus_shards: SHARDS, ..DatabaseConfig::default() };
    let url = DatabaseUrl::new(citus.url()).unwrap();
    let replicas =
        [crate::open(&url, &config).await, crate::open(&url, &config).await, crate::open(&url, &config).await];
    // All write the same: what one has been told is stored is a repeat for the others.
    let group =
        |n: u64| (n * 20..n * 20 + 20).map(|n| numbered(&request(NOON - n as i64 * 60 * SECOND, n), 1, n as i64));
    const GROUPS: u64 = 30;
    let away = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let writer = |store: &Store| {
        let (store, away, done) = (store.clone(), &away, &done);
        async move {
            let mut accepted = 0;
            for n in 0..GROUPS {
                // As a client does.
                let outcomes = loop {
                    match store.write(&[batch(group(n))]).await {
                        Ok(outcomes) => break outcomes.concat(),
                        Err(Error::StorageUnavailable(_)) => _ = away.fetch_add(1, Ordering::SeqCst),
                        Err(Error::Contention(_)) => {}
                        Err(other) => panic!("{other}: {other:?}"),
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                };
                let known = |outcome: &Outcome| matches!(outcome, Outcome::Accepted | Outcome::Duplicate);
                assert!(outcomes.iter().all(known), "{outcomes:?}");
                accepted += outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
                done.fetch_add(1, Ordering::SeqCst);
            }
            accepted
        }
    };
    let seen = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let trouble = async {
        for worker in 0..2 {
            let before = seen(&done);
            testkit::eventually(PATIENCE, async || seen(&done) > before + 5).await;
            let failed = seen(&away);
            citus.cut(worker);
            testkit::eventually(PATIENCE, async || seen(&away) > failed).await;
            // What is on the coordinator alone is still answered.
            seal_all(&replicas[0]).await;
            let window = scope(0, NOON + 3_600 * SECOND);
            let totals =
                replicas[1].totals(&window, &[window.start_us, window.end_us]).await.unwrap()[0].totals.requests;
            assert!(totals >= before * 20 / 3, "{totals} requests after {before} groups");
            // And again: for some seconds.
            testkit::eventually(PATIENCE, async || seen(&away) > failed + 20).await;
            citus.mend(worker);
        }
    };
    let (a, b, c, ()) = tokio::join!(writer(&replicas[0]), writer(&replicas[1]), writer(&replicas[2]), trouble);

    // An answer that was lost with its connection is told as a repeat.
    assert!(a + b + c <= GROUPS as usize * 20, "{a} + {b} + {c} were told as new");
    assert_eq!(count(&replicas[0]).await, GROUPS * 20);
    let all: Vec<NewRequest> = (0..GROUPS).flat_map(group).collect();
    seal_all(&replicas[1]).await;
    for store in replicas {
        let ranked = store.breakdown(&always(), &[Dimension::User], Metric::Cost, 3).await.unwrap();
        assert_eq!(ranked.overall, reference::metrics(&all));
        assert_eq!(store.requests(&always(), Order::NewestFirst, None, 1_000).await.unwrap().len(), all.len());
        assert_consistent(&store).await;
        store.close().await;
    }
    citus.drop_database().await;
}

async fn count(store: &Store) -> u64 {
    store.totals(&always(), &[0, i64::MAX]).await.unwrap()[0].totals.requests
}
