//! Numbers of commits: what lets an export see one set of rows for ever.
//!
//! SQLite has one writer, so numbers rise in the order of commits. PostgreSQL has
//! many, which take their numbers in one order and commit in another; a writer
//! holds a shared lock from before it takes its number until it has committed. A
//! watermark is a number of its own, and then waits for those who held the lock
//! when it had it:
//!
//! ```text
//! writer a    [shared ─ number 7 ────── commit]
//! writer b         [shared ─ number 8 ─ commit]
//! watermark                    number 9, waits for both ─┤ done
//! writer c                         [shared ─ number 10 ─ commit]
//! ```
//!
//! Everything below 9 is then committed, and nothing below 9 comes later: who
//! takes the lock after that gets a higher number. Nobody ever asks for the lock
//! exclusively, since all writers would queue behind that: one that hangs would
//! stop them all as soon as an export opens. Now it only holds up exports, which
//! give up after a while.

use std::collections::HashSet;
use std::time::Duration;

use sea_orm::{ConnectionTrait as _, Statement};
use service_core::database::Engine;
use service_core::error::{Error, Result};
use tokio::time::Instant;

use super::Store;

/// Key of the advisory lock: "usagecmt" in ASCII.
pub(super) const COMMIT_LOCK: i64 = 0x7573_6167_6563_6d74;

/// How long a watermark waits for writers. A commit takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two looks at least, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// The transactions that hold the lock. The two halves of its key are columns of
/// their own.
const HOLDERS: &str = "
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (classid::int8 << 32) | objid::int8 = $1";

impl Store {
    /// A number such that all rows up to it are committed, and none comes later.
    pub async fn watermark(&self) -> Result<i64> {
        match self.db.engine {
            Engine::Sqlite => self.commit_number("SELECT last FROM usage_commits").await,
            Engine::Postgres => {
                let number = self.commit_number("SELECT nextval('usage_commit_number')").await?;
                self.wait_for_writers(PATIENCE).await?;
                Ok(number)
            }
        }
    }

    async fn commit_number(&self, sql: &str) -> Result<i64> {
        let row = self.db.reader.query_one_raw(Statement::from_string(self.backend(), sql)).await?;
        let row = row.ok_or_else(|| Error::internal(anyhow::anyhow!("no commit number")))?;
        Ok(row.try_get_by_index(0)?)
    }

    /// Waits until all transactions that hold the lock now have ended; others may
    /// come and go.
    async fn wait_for_writers(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut writers = self.lock_holders().await?;
        let mut pause = PAUSES.0;
        while !writers.is_empty() {
            if Instant::now() >= deadline {
                return Err(Error::storage_unavailable(anyhow::anyhow!(
                    "no watermark: transactions {writers:?} have not ended for {} s",
                    patience.as_secs()
                )));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
            let holders = self.lock_holders().await?;
            writers.retain(|writer| holders.contains(writer));
        }
        Ok(())
    }

    async fn lock_holders(&self) -> Result<HashSet<String>> {
        let holders = Statement::from_sql_and_values(self.backend(), HOLDERS, [COMMIT_LOCK.into()]);
        let rows = self.db.reader.query_all_raw(holders).await?;
        Ok(rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?)
    }
}
