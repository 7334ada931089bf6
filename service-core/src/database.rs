//! Connecting to SQLite or PostgreSQL, migrating, and asking whether it lives.
//!
//! | | SQLite | PostgreSQL |
//! | --- | --- | --- |
//! | writer | one connection | a small pool |
//! | reader | a pool of read-only connections | a pool |
//! | probe | one connection for reading | the same |
//! | checker | one connection for reading, for longer | one connection for reading |
//! | durable | WAL, `synchronous=FULL` | `synchronous_commit` at least on; `fsync` is the server's |
//! | a statement's time | limited for readers | limited |
//! | processes | one holds the file (`PATH.lock`) | any number |
//! | migration | under the file's lock | under an advisory lock, by an account of its own if there is one |
//! | exports | read like everything else | from a streaming replica, if there is one |
//! | many machines | no | on Citus: this is its coordinator |
//!
//! Begin a transaction on SQLite with `BEGIN IMMEDIATE`: a deferred one that
//! reads first cannot become a writer once another connection has written.

mod begin;
mod citus;
mod migrate;
mod replica;

use std::fs::File;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, SqlxPostgresConnector, SqlxSqliteConnector, Statement};
use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::config::{ConfigError, DatabaseConfig, DatabaseUrl, millis};
use crate::error::{Error, Result};

pub use begin::{begin, begin_postgres, begin_snapshot};
pub use citus::{Distributed, Spread};
pub use migrate::Grant;

/// How long SQLite waits for a lock that another connection holds.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a start waits for the process before it to let go of the file.
const FILE_LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// SQLite's page cache of the writer, in KiB (negative in the pragma).
const SQLITE_CACHE_KIB: u32 = 16 * 1024;
/// The same of each reader: an export's pages go round all of them, and fill every cache there is.
const SQLITE_READER_CACHE_KIB: u32 = 4 * 1024;
/// Size to which SQLite's log is cut after a checkpoint.
const SQLITE_LOG_BYTES: u32 = 64 * 1024 * 1024;
/// Pages in SQLite's log at which a commit also writes them into the file (16 MiB): a page that many commits change
/// is then written there once.
const SQLITE_CHECKPOINT_PAGES: u32 = 4_096;
/// On SQLite, where time is that of all statements between two uses of a connection, a check has that of so many.
const SQLITE_CHECK_STATEMENTS: u32 = 24;
/// Steps of SQLite's machine between two looks at the clock: about a millisecond.
const SQLITE_STEPS: i32 = 10_000;

/// What a session of PostgreSQL sets for itself: the server notices within a
/// minute that we are gone (the power, the network), and lets go of our locks.
const POSTGRES_KEEPALIVES: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "30"), ("tcp_keepalives_interval", "10"), ("tcp_keepalives_count", "3")];
/// Turns `synchronous_commit = off` on, and keeps every other value as it is:
/// with it off, what was acknowledged may be lost.
const POSTGRES_DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') = 'off'";

/// Name of the seal key in `service_state`.
const SEAL_KEY: &str = "seal_key";
/// Name of the row that a probe of the writer rewrites.
const PROBE_KEY: &str = "probe";

/// Which engine is behind a [`Database`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// An embedded file.
    Sqlite,
    /// A server.
    Postgres,
}

/// The open database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    /// For writing.
    pub writer: DatabaseConnection,
    /// For reading; on SQLite it cannot write.
    pub reader: DatabaseConnection,
    /// One more connection for reading, opened when it is first used: for checks that a service makes by itself, in many
    /// statements of one snapshot. Callers have all readers meanwhile.
    pub checker: DatabaseConnection,
    /// Which engine it is.
    pub engine: Engine,
    /// One more connection for reading, that only the probe uses: all readers at
    /// work is load, not an outage.
    probe: DatabaseConnection,
    replica: Option<replica::Replica>,
    url: DatabaseUrl,
    /// Who migrates, if it is not the account of `url`.
    migrator_url: Option<DatabaseUrl>,
    /// Shards of a table, if this is a Citus cluster.
    citus_shards: Option<NonZeroU32>,
    tls: Tls,
    /// Held while any clone lives: one process for each SQLite file.
    _lock: Option<Arc<File>>,
}

/// Opens the pools. Creates the SQLite file and its folder if they are missing.
///
/// Errors are for the operator, at start: they say what was tried.
pub async fn connect(url: &DatabaseUrl, config: &DatabaseConfig) -> anyhow::Result<Database> {
    let opened = match url.sqlite_path() {
        Some(_) => match only_on_postgres(config) {
            Some(key) => {
                let why = format!("database.{key} is set, which is for PostgreSQL only; database_url is {url}");
                return Err(ConfigError::Refused(why).into());
            }
            None => connect_sqlite(url, config).await,
        },
        None => connect_postgres(url, config).await,
    };
    opened.with_context(|| format!("cannot open database {url}"))
}

fn only_on_postgres(config: &DatabaseConfig) -> Option<&'static str> {
    let set = [
        ("reader_url", config.reader_url.is_some()),
        ("migrator_url", config.migrator_url.is_some()),
        ("citus_shards", config.citus_shards.is_some()),
    ];
    set.into_iter().find(|(_, set)| *set).map(|(key, _)| key)
}

async fn connect_sqlite(url: &DatabaseUrl, config: &DatabaseConfig) -> anyhow::Result<Database> {
    let path = url.sqlite_path().ok_or_else(|| anyhow!("not a SQLite URL"))?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        tokio::fs::create_dir_all(folder)
            .await
            .with_context(|| format!("cannot create folder {}", folder.display()))?;
    }
    let lock = lock_file(&path.with_added_extension("lock")).await?;

    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(SQLITE_BUSY_TIMEOUT)
        .pragma("cache_size", format!("-{SQLITE_CACHE_KIB}"))
        // Sorting large exports must not grow the process.
        .pragma("temp_store", "file")
        // The log keeps its greatest size otherwise, long after what made it grow.
        .pragma("journal_size_limit", SQLITE_LOG_BYTES.to_string())
        .pragma("wal_autocheckpoint", SQLITE_CHECKPOINT_PAGES.to_string())
        // The text of a bulk insert is long, and metrics count its time.
        .disable_statement_logging();
    // For files that are made from now on: what is removed can be given back in
    // small steps, without writing the whole file anew. To say so writes to the file,
    // so a reader that says it when it is opened gets between a writer's reading and
    // its writing.
    let writing = options.clone().auto_vacuum(SqliteAutoVacuum::Incremental);
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .acquire_timeout(millis(config.acquire_timeout_ms))
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(writing)
        .await?;
    let options = options.pragma("query_only", "ON").pragma("cache_size", format!("-{SQLITE_READER_CACHE_KIB}"));
    let limit = millis(config.statement_timeout_ms);
    let readers = |connections: u32, limit: Duration| {
        SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(millis(config.acquire_timeout_ms))
            // The first for a new connection, the second for one that was idle.
            .after_connect(move |connection, _| Box::pin(limit_reading(connection, limit)))
            .before_acquire(move |connection, _| {
                Box::pin(async move { limit_reading(connection, limit).await.map(|()| true) })
            })
    };
    let reader = readers(config.readers.get(), limit).connect_with(options.clone()).await?;
    let checker = readers(1, limit * SQLITE_CHECK_STATEMENTS).connect_lazy_with(options.clone());
    let probe = readers(1, limit).connect_with(options).await?;
    Ok(Database {
        writer: SqlxSqliteConnector::from_sqlx_sqlite_pool(writer),
        reader: SqlxSqliteConnector::from_sqlx_sqlite_pool(reader),
        checker: SqlxSqliteConnector::from_sqlx_sqlite_pool(checker),
        probe: SqlxSqliteConnector::from_sqlx_sqlite_pool(probe),
        engine: Engine::Sqlite,
        replica: None,
        url: url.clone(),
        migrator_url: None,
        citus_shards: None,
        tls: Tls::AsSaid,
        _lock: Some(Arc::new(lock)),
    })
}

/// Ends what the next user of a connection reads when it takes longer than `limit`:
/// SQLite would finish a query that nobody waits for any more, and keep a reader.
async fn limit_reading(connection: &mut SqliteConnection, limit: Duration) -> Result<(), sqlx::Error> {
    let begun = Instant::now();
    connection.lock_handle().await?.set_progress_handler(SQLITE_STEPS, move || begun.elapsed() < limit);
    Ok(())
}

/// Takes the lock that says "one process uses this file". The system frees it
/// when the process ends, however it ends.
async fn lock_file(path: &std::path::Path) -> anyhow::Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let deadline = tokio::time::Instant::now() + FILE_LOCK_PATIENCE;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(lock = %path.display(), "another process uses the database; waiting for its end");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                bail!("another process uses it ({} is locked); only PostgreSQL can be shared", path.display())
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

async fn connect_postgres(url: &DatabaseUrl, config: &DatabaseConfig) -> anyhow::Result<Database> {
    for (key, other) in [("reader_url", &config.reader_url), ("migrator_url", &config.migrator_url)] {
        if other.as_ref().is_some_and(|other| other.sqlite_path().is_some()) {
            let why = format!("database.{key} is a SQLite file, allowed is postgres://USER@HOST/DATABASE");
            return Err(ConfigError::Refused(why).into());
        }
    }
    let session = citus::session(config);
    let tls = tls_of(url, config).await?;
    let writing = postgres_options(url, config.write_timeout_ms.get(), tls)?.options(session.iter().copied());
    let reading = postgres_options(url, config.statement_timeout_ms.get(), tls)?.options(session.iter().copied());
    let writer = postgres_pool(config.writers.get(), config).connect_with(writing).await?;
    warn_without_fsync(&writer).await?;
    citus::check(&writer, url, config).await?;
    let reader = postgres_pool(config.readers.get(), config).connect_with(reading.clone()).await?;
    let checker = postgres_pool(1, config).connect_lazy_with(reading.clone());
    let probe = postgres_pool(1, config).connect_with(reading).await?;
    Ok(Database {
        writer: SqlxPostgresConnector::from_sqlx_postgres_pool(writer),
        reader: SqlxPostgresConnector::from_sqlx_postgres_pool(reader),
        checker: SqlxPostgresConnector::from_sqlx_postgres_pool(checker),
        probe: SqlxPostgresConnector::from_sqlx_postgres_pool(probe),
        engine: Engine::Postgres,
        replica: config.reader_url.as_ref().map(|url| replica::Replica::new(url, config, tls)).transpose()?,
        url: url.clone(),
        migrator_url: config.migrator_url.clone(),
        citus_shards: config.citus_shards,
        tls,
        _lock: None,
    })
}

/// Whether a URL's `sslmode` is taken at its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    AsSaid,
    /// But `prefer`, the default, is no TLS.
    NotWherePreferred,
}

/// Where TLS is merely preferred and does not work, we do without, as PostgreSQL's own library does: it protects from
/// nobody who can change what is sent. Citus lets nodes offer it with a certificate of X.509's first version, which
/// cannot be read here.
async fn tls_of(url: &DatabaseUrl, config: &DatabaseConfig) -> anyhow::Result<Tls> {
    let options = |tls| postgres_options(url, config.statement_timeout_ms.get(), tls);
    if !matches!(options(Tls::AsSaid)?.get_ssl_mode(), PgSslMode::Prefer) {
        return Ok(Tls::AsSaid);
    }
    let attempt = async |options: PgConnectOptions| -> sqlx::Result<()> {
        let connection = options.connect();
        let connection = tokio::time::timeout(millis(config.acquire_timeout_ms), connection);
        connection.await.map_err(|_| sqlx::Error::PoolTimedOut)??.close().await
    };
    // What else may be wrong, the pools will say.
    let Err(refused @ (sqlx::Error::Tls(_) | sqlx::Error::Io(_))) = attempt(options(Tls::AsSaid)?).await else {
        return Ok(Tls::AsSaid);
    };
    if attempt(options(Tls::NotWherePreferred)?).await.is_err() {
        return Ok(Tls::AsSaid);
    }
    tracing::warn!(database = %url, %refused, "TLS does not work with this server: going on without (sslmode=prefer)");
    Ok(Tls::NotWherePreferred)
}

fn postgres_pool(connections: u32, config: &DatabaseConfig) -> PgPoolOptions {
    PgPoolOptions::new().max_connections(connections).acquire_timeout(millis(config.acquire_timeout_ms)).after_connect(
        |connection, _| Box::pin(async { sqlx::query(POSTGRES_DURABLE).execute(connection).await.map(|_| ()) }),
    )
}

/// Says loudly that a server without `fsync` loses data; no session can set it.
async fn warn_without_fsync(pool: &PgPool) -> anyhow::Result<()> {
    let fsync: String = sqlx::query_scalar("SELECT current_setting('fsync')").fetch_one(pool).await?;
    if fsync != "on" {
        tracing::error!(fsync, "PostgreSQL runs without fsync: what was acknowledged may be lost with its machine");
    }
    Ok(())
}

/// `timeout_ms` is for a statement, and for a transaction between two of them: one
/// whose process stands still must not hold its locks. 0 is no limit.
fn postgres_options(url: &DatabaseUrl, timeout_ms: u64, tls: Tls) -> anyhow::Result<PgConnectOptions> {
    // The parse error may hold parts of the URL, and so of the password.
    let options =
        PgConnectOptions::from_str(url.expose()).map_err(|_| anyhow!("{url} cannot be parsed as a PostgreSQL URL"))?;
    let options = match (tls, options.get_ssl_mode()) {
        (Tls::NotWherePreferred, PgSslMode::Prefer) => options.ssl_mode(PgSslMode::Disable),
        _ => options,
    };
    Ok(options
        .application_name("activity")
        .options(["statement_timeout", "idle_in_transaction_session_timeout"].map(|limit| (limit, timeout_ms)))
        .options(POSTGRES_KEEPALIVES)
        .disable_statement_logging())
}

impl Database {
    /// A connection of another account to the same database, for what only that account may do. PostgreSQL only.
    pub async fn connect_as(&self, url: &DatabaseUrl, config: &DatabaseConfig) -> anyhow::Result<DatabaseConnection> {
        let options = postgres_options(url, config.write_timeout_ms.get(), self.tls)?;
        let connected = postgres_pool(1, config).connect_with(options).await;
        let pool = connected.with_context(|| format!("cannot open database {url}"))?;
        Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
    }

    /// The 32 bytes under which page and resume tokens of this deployment are
    /// sealed: made at the first start, the same for all replicas ever after.
    pub async fn seal_key(&self) -> Result<[u8; 32]> {
        // Two random UUIDs hold 244 random bits; the hash spreads them.
        let mut hash = Sha256::new();
        hash.update(uuid::Uuid::new_v4());
        hash.update(uuid::Uuid::new_v4());
        let fresh: [u8; 32] = hash.finalize().into();
        self.writer
            .execute_raw(self.statement(
                "INSERT INTO service_state (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING",
                [SEAL_KEY.into(), fresh.to_vec().into()],
            ))
            .await?;
        let row = self
            .writer
            .query_one_raw(self.statement("SELECT value FROM service_state WHERE key = $1", [SEAL_KEY.into()]))
            .await?
            .ok_or_else(|| Error::internal(anyhow!("the seal key is not there after it was stored")))?;
        let value: Vec<u8> = row.try_get("", "value")?;
        <[u8; 32]>::try_from(value)
            .map_err(|value| Error::internal(anyhow!("the seal key has {} bytes, not 32", value.len())))
    }

    /// Whether reading works: for the health of services that read.
    pub async fn probe_reader(&self) -> Result<()> {
        self.probe
            .query_one_raw(self.statement("SELECT 1 FROM service_state WHERE key = $1", [SEAL_KEY.into()]))
            .await?;
        Ok(())
    }

    /// Whether a write becomes durable: for the health of services that write.
    /// It notices a full or read-only disk, which reading does not.
    pub async fn probe_writer(&self) -> Result<()> {
        let now = crate::clock::now_us().to_be_bytes().to_vec();
        self.writer
            .execute_raw(self.statement(
                "INSERT INTO service_state (key, value) VALUES ($1, $2) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                [PROBE_KEY.into(), now.into()],
            ))
            .await?;
        Ok(())
    }

    /// Closes the pools: waits for what is in use, checkpoints SQLite's log.
    pub async fn close(self) {
        // An error here has nobody left to act on it; committed is committed.
        let replica = self.replica.map(replica::Replica::into_connection);
        for connection in [Some(self.probe), Some(self.checker), replica, Some(self.reader)].into_iter().flatten() {
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "closing the database");
            }
        }
        // Not left to the last connection's own end: that is its thread's, and the process may be gone before.
        if self.engine == Engine::Sqlite
            && let Err(error) = self.writer.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await
        {
            tracing::warn!(%error, "the log stays beside the database's file");
        }
        if let Err(error) = self.writer.close().await {
            tracing::warn!(%error, "closing the database");
        }
    }

    fn statement<const N: usize>(&self, sql: &str, values: [sea_orm::Value; N]) -> Statement {
        let backend = match self.engine {
            Engine::Sqlite => DbBackend::Sqlite,
            Engine::Postgres => DbBackend::Postgres,
        };
        Statement::from_sql_and_values(backend, sql, values)
    }
}

#[cfg(test)]
mod tests;
