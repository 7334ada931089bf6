//! Numbers of commits: what lets an export see one set of rows for ever.
//!
//! SQLite has one writer, so numbers rise in the order of commits. PostgreSQL has
//! many, which take their numbers in one order and commit in another; a writer
//! holds a shared lock from before it takes its number until it has committed,
//! and a watermark is a number taken under the exclusive lock:
//!
//! ```text
//! writer a    [shared ─ number 7 ────── commit]
//! writer b         [shared ─ number 8 ─ commit]
//! watermark               waits for both ──────[exclusive ─ number 9]
//! writer c                                      waits ───────────────[shared ─ number 10 ─ commit]
//! ```
//!
//! Everything below 9 is then committed, and nothing below 9 comes later. Writers
//! don't wait for one another, only for the moment in which an export opens.

use sea_orm::{ConnectionTrait as _, Statement, TransactionTrait as _};
use service_core::database::Engine;
use service_core::error::{Error, Result};

use super::Store;

/// Key of the advisory lock: "usagecmt" in ASCII.
pub(super) const COMMIT_LOCK: i64 = 0x7573_6167_6563_6d74;

impl Store {
    /// A number such that all rows up to it are committed, and none comes later.
    pub async fn watermark(&self) -> Result<i64> {
        let read = |sql| Statement::from_string(self.backend(), sql);
        let row = match self.db.engine {
            Engine::Sqlite => self.db.reader.query_one_raw(read("SELECT last FROM usage_commits")).await?,
            Engine::Postgres => {
                let transaction = self.db.writer.begin().await?;
                transaction
                    .execute_raw(Statement::from_sql_and_values(
                        self.backend(),
                        "SELECT pg_advisory_xact_lock($1)",
                        [COMMIT_LOCK.into()],
                    ))
                    .await?;
                let row = transaction.query_one_raw(read("SELECT nextval('usage_commit_number')")).await?;
                transaction.commit().await?;
                row
            }
        };
        let row = row.ok_or_else(|| Error::internal(anyhow::anyhow!("no commit number")))?;
        Ok(row.try_get_by_index(0)?)
    }
}
