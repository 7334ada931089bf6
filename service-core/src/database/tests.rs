//! Both engines for real: files in a temporary folder, a PostgreSQL server.

use std::num::NonZeroU64;

use futures::future::join_all;
use sea_orm::{DbErr, DeriveMigrationName, TransactionTrait as _};
use sea_orm_migration::{MigrationTrait, MigratorTrait, SchemaManager, async_trait::async_trait};
use testkit::Postgres;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[derive(DeriveMigrationName)]
struct First;

#[async_trait]
impl MigrationTrait for First {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let sql = "CREATE TABLE sample (id BIGINT PRIMARY KEY, text TEXT)";
        manager.get_connection().execute_unprepared(sql).await?;
        Ok(())
    }
}

/// Doesn't ask for a transaction.
#[derive(DeriveMigrationName)]
struct Bare;

#[async_trait]
impl MigrationTrait for Bare {
    async fn up(&self, _: &SchemaManager) -> Result<(), DbErr> {
        Ok(())
    }
}

struct Careless;

impl MigratorTrait for Careless {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(First), Box::new(Bare)]
    }
}

struct Old;

impl MigratorTrait for Old {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![]
    }
}

struct New;

impl MigratorTrait for New {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(First)]
    }
}

fn config() -> DatabaseConfig {
    let quick = NonZeroU64::new(200).expect("not zero");
    DatabaseConfig { statement_timeout_ms: quick, write_timeout_ms: quick, ..DatabaseConfig::default() }
}

async fn open(url: &DatabaseUrl) -> Database {
    connect(url, &config()).await.expect("connected")
}

async fn postgres() -> Option<DatabaseUrl> {
    if Postgres::skipped() {
        return None;
    }
    let url = Postgres::shared().await.create_database().await;
    Some(DatabaseUrl::new(url).expect("valid"))
}

async fn text(connection: &DatabaseConnection, sql: &str) -> String {
    let pool = connection.get_sqlite_connection_pool();
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.expect("answered")
}

#[tokio::test]
async fn sqlite_is_made_with_its_folder_and_is_durable() {
    let folder = tempfile::tempdir().expect("folder");
    let database = open(&DatabaseUrl::sqlite(folder.path().join("a/b/sample.db"))).await;
    assert_eq!(text(&database.writer, "PRAGMA journal_mode").await, "wal");
    for (pragma, value) in [
        ("synchronous", "2"),
        ("busy_timeout", "5000"),
        ("query_only", "0"),
        ("journal_size_limit", "67108864"),
        ("auto_vacuum", "2"),
    ] {
        let sql =
            format!("SELECT CAST(({pragma}) AS TEXT) FROM pragma_{pragma}").replace("(busy_timeout)", "(timeout)");
        assert_eq!(text(&database.writer, &sql).await, value, "{pragma}");
    }
    assert_eq!(text(&database.reader, "SELECT CAST(query_only AS TEXT) FROM pragma_query_only").await, "1");
}

#[tokio::test]
async fn a_reader_of_sqlite_cannot_write() {
    let folder = tempfile::tempdir().expect("folder");
    let database = open(&DatabaseUrl::sqlite(folder.path().join("sample.db"))).await;
    database.migrate::<New>(&[]).await.expect("migrated");
    let refused = database.reader.execute_unprepared("INSERT INTO sample VALUES (1, '')").await;
    assert!(matches!(Error::from(refused.expect_err("refused")), Error::StorageUnavailable(_)));
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_shows_in_the_probe() {
    let folder = tempfile::tempdir().expect("folder");
    let database = open(&DatabaseUrl::sqlite(folder.path().join("sample.db"))).await;
    database.migrate::<New>(&[]).await.expect("migrated");
    database.probe_writer().await.expect("room");
    database.writer.execute_unprepared("PRAGMA max_page_count = 1").await.expect("set");
    let big = "INSERT INTO sample VALUES (1, hex(zeroblob(1000000)))";
    let refused = database.writer.execute_unprepared(big).await.expect_err("full");
    assert!(matches!(Error::from(refused), Error::StorageUnavailable(_)));
    database.probe_reader().await.expect("reading goes on");
}

#[tokio::test]
async fn the_seal_key_is_made_once() {
    let folder = tempfile::tempdir().expect("folder");
    let url = DatabaseUrl::sqlite(folder.path().join("sample.db"));
    let mut keys = Vec::new();
    for _ in 0..2 {
        let database = open(&url).await;
        database.migrate::<New>(&[]).await.expect("migrated");
        keys.push(database.seal_key().await.expect("key"));
        keys.push(database.seal_key().await.expect("key"));
        database.close().await;
    }
    assert!(keys.iter().all(|key| *key == keys[0] && *key != [0; 32]));
    let other = open(&DatabaseUrl::sqlite(folder.path().join("other.db"))).await;
    other.migrate::<New>(&[]).await.expect("migrated");
    assert_ne!(other.seal_key().await.expect("key"), keys[0]);
}

#[tokio::test]
async fn a_newer_schema_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let mut urls = vec![DatabaseUrl::sqlite(folder.path().join("sample.db"))];
    urls.extend(postgres().await);
    for url in urls {
        let database = open(&url).await;
        database.migrate::<New>(&[]).await.expect("migrated");
        database.migrate::<New>(&[]).await.expect("migrated already");
        let error = database.migrate::<Old>(&[]).await.expect_err("refused");
        let text = format!("{error:#}");
        assert!(text.contains("a newer version wrote it"), "{text}");
        database.probe_reader().await.expect("alive");
        database.probe_writer().await.expect("alive");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sqlite_file_belongs_to_one_process() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("sample.db.lock");
    let first = lock_file(&path).await.expect("free");
    let error = lock_file(&path).await.expect_err("taken");
    assert!(error.to_string().contains("another process uses it"), "{error}");
    drop(first);
    lock_file(&path).await.expect("free again");
}

#[tokio::test]
async fn replicas_that_start_together_migrate_once_and_share_the_key() {
    let Some(url) = postgres().await else { return };
    let keys = join_all((0..4).map(|_| async {
        let database = open(&url).await;
        database.migrate::<New>(&[]).await.expect("migrated");
        database.seal_key().await.expect("key")
    }))
    .await;
    assert!(keys.iter().all(|key| *key == keys[0]));
}

#[tokio::test]
async fn errors_of_postgres_are_classified() {
    let Some(url) = postgres().await else { return };
    let database = open(&url).await;
    let fails = async |sql: &str| {
        let error = database.writer.execute_unprepared(sql).await;
        Error::from(error.expect_err("fails"))
    };
    let raise = |state| format!("DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$");
    assert!(matches!(fails("SELECT pg_sleep(60)").await, Error::DeadlineExceeded(_)));
    assert!(matches!(fails(&raise("40001")).await, Error::Contention(_)));
    assert!(matches!(fails(&raise("40P01")).await, Error::Contention(_)));
    assert!(matches!(fails(&raise("53100")).await, Error::StorageUnavailable(_)));
    assert!(matches!(fails("SELECT * FROM nowhere").await, Error::Internal(_)));
    let gone = fails("SELECT pg_terminate_backend(pg_backend_pid())").await;
    assert!(matches!(gone, Error::StorageUnavailable(_)), "{gone:?}");
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_named_without_its_password() {
    let port = testkit::free_port();
    let url = DatabaseUrl::new(format!("postgres://me:hunter2@127.0.0.1:{port}/x")).expect("valid");
    let error = connect(&url, &config()).await.expect_err("nobody listens");
    let text = format!("{error:#}");
    assert!(text.starts_with(&format!("cannot open database postgres://me@127.0.0.1:{port}/x")), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn readers_that_are_all_at_work_are_no_outage() {
    let folder = tempfile::tempdir().expect("folder");
    let mut urls = vec![DatabaseUrl::sqlite(folder.path().join("sample.db"))];
    urls.extend(postgres().await);
    for url in urls {
        let config = DatabaseConfig { acquire_timeout_ms: NonZeroU64::new(500).expect("not zero"), ..config() };
        let database = connect(&url, &DatabaseConfig { readers: 1.try_into().expect("not zero"), ..config })
            .await
            .expect("connected");
        database.migrate::<New>(&[]).await.expect("migrated");
        let _held = database.reader.begin().await.expect("the only reader");
        database.reader.begin().await.expect_err("no other");
        database.probe_reader().await.expect("alive");
    }
}

#[tokio::test]
async fn a_migration_without_a_transaction_is_refused_before_any_runs() {
    let folder = tempfile::tempdir().expect("folder");
    let database = open(&DatabaseUrl::sqlite(folder.path().join("sample.db"))).await;
    let error = database.migrate::<Careless>(&[]).await.expect_err("refused");
    assert!(format!("{error:#}").contains("use_transaction"), "{error:#}");
    assert_eq!(
        text(&database.writer, "SELECT CAST(count(*) AS TEXT) FROM sqlite_master WHERE name = 'sample'").await,
        "0"
    );
}

#[tokio::test]
async fn an_endless_query_ends_and_its_connection_lives_on() {
    let folder = tempfile::tempdir().expect("folder");
    let one = DatabaseConfig { readers: 1.try_into().expect("not zero"), ..config() };
    let url = DatabaseUrl::sqlite(folder.path().join("sample.db"));
    let database = connect(&url, &one).await.expect("connected");
    let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT CAST(max(i) AS TEXT) FROM n";
    // The first time on a new connection, the second on a used one.
    for _ in 0..2 {
        let error = database.reader.execute_unprepared(endless).await.expect_err("interrupted");
        assert!(matches!(Error::from(error), Error::DeadlineExceeded(_)));
        let long = endless.replace("FROM n)", "FROM n WHERE i < 10000)");
        assert_eq!(text(&database.reader, &long).await, "10000");
    }
}

#[tokio::test]
async fn a_check_on_sqlite_has_the_time_of_many_statements() {
    let folder = tempfile::tempdir().expect("folder");
    // 200 ms.
    let database = open(&DatabaseUrl::sqlite(folder.path().join("sample.db"))).await;
    let short = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) SELECT max(i) FROM n";
    for (connection, lasts) in [(&database.reader, false), (&database.checker, true)] {
        let snapshot = begin(connection).await.expect("begun");
        let begun = Instant::now();
        let mut outcome = Ok(());
        while outcome.is_ok() && begun.elapsed() < Duration::from_millis(400) {
            outcome = snapshot.execute_unprepared(short).await.map(drop);
        }
        assert_eq!(outcome.is_ok(), lasts, "{outcome:?}");
    }
}

async fn setting(connection: &DatabaseConnection, name: &str) -> String {
    let pool = connection.get_postgres_connection_pool();
    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(pool).await.expect("answered")
}

#[tokio::test]
async fn postgres_acknowledges_what_is_durable_even_where_it_is_set_not_to() {
    for (server, ours) in [("off", "on"), ("on", "on"), ("local", "local"), ("remote_apply", "remote_apply")] {
        let Some(url) = postgres().await else { return };
        let database = open(&url).await;
        let sql = format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = {server}', current_database()); END $$"
        );
        database.writer.execute_unprepared(&sql).await.expect("set");
        database.close().await;
        assert_eq!(setting(&open(&url).await.writer, "synchronous_commit").await, ours, "{server}");
    }
}

#[tokio::test]
async fn a_transaction_that_stands_still_on_postgres_is_ended() {
    let Some(url) = postgres().await else { return };
    let database = open(&url).await;
    assert_eq!(setting(&database.writer, "tcp_keepalives_idle").await, "30", "a peer that is gone is noticed");
    let held = database.writer.begin().await.expect("begun");
    held.execute_unprepared("SELECT pg_advisory_xact_lock(1)").await.expect("locked");
    let free = async || {
        let pool = database.reader.get_postgres_connection_pool();
        let free: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(1)").fetch_one(pool).await.expect("answered");
        free
    };
    testkit::eventually(Duration::from_secs(20), free).await;
    let error = held.execute_unprepared("SELECT 1").await.expect_err("ended");
    assert!(matches!(Error::from(error), Error::StorageUnavailable(_)));
}

/// Whether exports are read from the replica, and how many rows they see.
async fn exported(database: &Database) -> (bool, i64) {
    let pool = database.for_export().await.reader.get_postgres_connection_pool().clone();
    sqlx::query_as("SELECT pg_is_in_recovery(), count(*) FROM sample").fetch_one(&pool).await.expect("answered")
}

#[tokio::test]
async fn exports_are_read_from_a_replica_as_soon_as_it_has_all_of_them_and_else_from_the_primary() {
    if Postgres::skipped() {
        return;
    }
    let primary = Postgres::start_with(testkit::Durability::Relaxed).await;
    let replica = Postgres::start_replica_of(&primary).await;
    let url = primary.create_database().await;
    let reader_url = DatabaseUrl::new(replica.replica_url(&url)).expect("valid");
    let replica_wait_ms = NonZeroU64::new(1_000).expect("not zero");
    let config = DatabaseConfig { reader_url: Some(reader_url.clone()), replica_wait_ms, ..config() };
    let database = connect(&DatabaseUrl::new(url).expect("valid"), &config).await.expect("connected");
    database.migrate::<New>(&[]).await.expect("migrated");
    testkit::eventually(Duration::from_secs(20), async || exported(&database).await.0).await;
    let insert = async || database.writer.execute_unprepared("INSERT INTO sample SELECT count(*) FROM sample").await;

    for rows in 1..=20 {
        insert().await.expect("inserted");
        let (at_replica, seen) = exported(&database).await;
        assert_eq!(seen, rows);
        assert!(at_replica || rows == 1, "the replica follows at once");
    }
    // Behind, and not coming.
    let peer = sqlx::PgPool::connect(reader_url.expose()).await.expect("connected");
    sqlx::query("SELECT pg_wal_replay_pause()").execute(&peer).await.expect("paused");
    insert().await.expect("inserted");
    assert_eq!(exported(&database).await, (false, 21));
    sqlx::query("SELECT pg_wal_replay_resume()").execute(&peer).await.expect("resumed");
    testkit::eventually(Duration::from_secs(20), async || exported(&database).await == (true, 21)).await;
    // Away, and back.
    replica.crash().await;
    insert().await.expect("inserted");
    assert_eq!(exported(&database).await, (false, 22));
    replica.start_again().await;
    testkit::eventually(Duration::from_secs(20), async || exported(&database).await == (true, 22)).await;
    // A primary of its own now: what it holds is not ours any more.
    sqlx::query("SELECT pg_promote()").execute(&peer).await.expect("promoted");
    assert_eq!(exported(&database).await, (false, 22));
    peer.close().await;
    database.close().await;
}

#[tokio::test]
async fn urls_that_only_postgres_knows_are_refused_elsewhere() {
    let folder = tempfile::tempdir().expect("folder");
    let sqlite = DatabaseUrl::sqlite(folder.path().join("sample.db"));
    let postgres = DatabaseUrl::new("postgres://me:hunter2@127.0.0.1:1/x").expect("valid");
    let with = |url: &DatabaseUrl| {
        [
            ("reader_url", DatabaseConfig { reader_url: Some(url.clone()), ..config() }),
            ("migrator_url", DatabaseConfig { migrator_url: Some(url.clone()), ..config() }),
        ]
    };
    for (ours, other) in [(&sqlite, &postgres), (&postgres, &sqlite)] {
        for (key, config) in with(other) {
            let error = connect(ours, &config).await.expect_err("refused");
            let text = format!("{error:#}");
            assert!(text.contains(&format!("database.{key} is ")), "{text}");
            assert!(error.chain().any(|cause| cause.is::<ConfigError>()), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}

/// A server that offers TLS with which nothing can be done, and is well without.
async fn behind_useless_tls(port: u16) -> u16 {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut first = [0; 8];
                client.read_exact(&mut first).await.unwrap();
                if first == SSL_REQUEST {
                    return client.write_all(b"S nobody can read this certificate").await.unwrap();
                }
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                server.write_all(&first).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    own
}

#[tokio::test]
async fn tls_that_does_not_work_is_done_without_only_where_it_is_merely_preferred() {
    if Postgres::skipped() {
        return;
    }
    let server = Postgres::shared().await;
    let direct = server.create_database().await;
    let port = behind_useless_tls(server.port()).await;
    let url = direct.replace(&format!(":{}/", server.port()), &format!(":{port}/"));
    assert_ne!(url, direct);
    let open = async |mode: &str| connect(&DatabaseUrl::new(format!("{url}{mode}")).unwrap(), &config()).await;
    for mode in ["", "?sslmode=prefer", "?sslmode=disable"] {
        let db = open(mode).await.unwrap();
        db.migrate::<New>(&[]).await.unwrap();
        db.probe_writer().await.unwrap();
        db.close().await;
    }
    for mode in ["?sslmode=require", "?sslmode=verify-full"] {
        assert!(open(mode).await.is_err(), "{mode}");
    }
}
