//! SQLite's log goes into the file beside the writer.
//!
//! A commit that finds the log long would write it into the file itself, and everybody who waits for that commit, or
//! for the next one, would wait for some tens of milliseconds more. So another connection does it while commits go on:
//!
//! ```text
//! log      ─────────────── PAGES ──▶ grows on ──────────┐   begins anew
//! beside           [ writes most of it into the file ]  │
//! writer   [c][c][c][c][c][c][c][c][c][c][c][c][c][c][c][the rest][c][c]
//! ```
//!
//! The log begins anew only where all of it is in the file, nobody writes, and nobody reads what is in it: the writer
//! does the rest, which is what was committed meanwhile, and as long as somebody reads it is tried again. Whatever fails
//! here is done by a commit once the log is several times as long.

use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{Connection as _, Executor as _, Row as _, SqliteConnection};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Pages of the log that are worth being written (16 MiB): a page that many commits change is then written once.
const PAGES: i64 = 4_096;
/// Pages in the log at which a commit does it after all.
pub(super) const MOST_PAGES: u32 = 8 * PAGES as u32;
/// How soon the log is looked at again while it grows, after it was written, and while it is left alone.
const BUSY: Duration = Duration::from_millis(50);
const WRITTEN: Duration = Duration::from_millis(200);
const IDLE: Duration = Duration::from_secs(1);

/// The task that does it, until it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Checkpoints {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Checkpoints {
    /// Starts it with a connection of its own.
    pub(super) async fn start(options: &SqliteConnectOptions, writer: SqlitePool) -> sqlx::Result<Self> {
        let connection = SqliteConnection::connect_with(options).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(run(connection, writer, stop.clone()));
        tasks.close();
        Ok(Self { stop, tasks })
    }

    /// Returns when nothing is under way any more.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run(mut connection: SqliteConnection, writer: SqlitePool, stop: CancellationToken) {
    let mut before = 0;
    let mut pause = IDLE;
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        // What has begun is not broken off: the connection would be of no use afterwards.
        pause = match checkpoint(&mut connection, &writer).await {
            Ok(log) if log == before => IDLE,
            Ok(log) => {
                before = log;
                if log >= PAGES { WRITTEN } else { BUSY }
            }
            Err(sqlx::Error::PoolClosed) => break,
            Err(error) => {
                tracing::warn!(%error, "SQLite's log stays as long as it is for now");
                IDLE
            }
        };
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "closing a connection to the database");
    }
}

/// Writes the log into the file if it is long; how long it is.
async fn checkpoint(connection: &mut SqliteConnection, writer: &SqlitePool) -> sqlx::Result<i64> {
    let state = connection.fetch_one("PRAGMA wal_checkpoint(NOOP)").await?;
    let (log, done): (i64, i64) = (state.try_get(1)?, state.try_get(2)?);
    if log >= PAGES && done < log {
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").await?;
        writer.acquire().await?.execute("PRAGMA wal_checkpoint(PASSIVE)").await?;
    }
    Ok(log)
}
