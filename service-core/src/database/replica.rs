//! A streaming replica, from which exports are read.
//!
//! An export is frozen at a point of the primary. The replica may serve it as soon as
//! it has replayed the primary's log up to what was flushed after that: everything
//! that the primary has shown to anybody by then.
//!
//! ```text
//! primary   frozen at n ── flushed up to L ──────────────▶
//! replica   ………………………………………… replayed up to L ── pages of the export
//! ```
//!
//! If it does not come that far in time, or is away, or is none any more, the primary
//! serves the export. One whose replica goes away in the middle breaks off, and its
//! client resumes.

use std::time::Duration;

use anyhow::anyhow;
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};
use sqlx::postgres::PgPool;
use tokio::time::{Instant, timeout_at};

use super::{Database, Tls, postgres_options, postgres_pool};
use crate::config::{DatabaseConfig, DatabaseUrl, millis};
use crate::error::{Error, Result};

/// The pause between two looks at the replica at least, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// How far the log is flushed. Not how far it is inserted: that may lie behind the
/// header of a page of which the replica sees nothing until there is a record on it.
const FLUSHED: &str = "SELECT pg_current_wal_flush_lsn()::text";
const REPLAYED: &str =
    "SELECT pg_is_in_recovery(), COALESCE(pg_last_wal_replay_lsn() >= CAST($1 AS text)::pg_lsn, false)";

#[derive(Debug, Clone)]
pub(super) struct Replica {
    pool: PgPool,
    url: DatabaseUrl,
    patience: Duration,
}

impl Replica {
    /// Connects when it is first used: a replica that is away keeps no service from
    /// starting.
    pub(super) fn new(url: &DatabaseUrl, config: &DatabaseConfig, tls: Tls) -> anyhow::Result<Self> {
        let options = postgres_options(url, config.export_timeout_ms.get(), tls)?;
        let pool = postgres_pool(config.exporters.get(), config).connect_lazy_with(options);
        Ok(Self { pool, url: url.clone(), patience: millis(config.replica_wait_ms) })
    }

    pub(super) fn url(&self) -> &DatabaseUrl {
        &self.url
    }

    pub(super) fn into_connection(self) -> DatabaseConnection {
        SqlxPostgresConnector::from_sqlx_postgres_pool(self.pool)
    }

    /// Waits until everything that `primary` has shown by now can be read here.
    async fn caught_up(&self, primary: &PgPool) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        let late = || Error::storage_unavailable(anyhow!("it is behind for {} ms", self.patience.as_millis()));
        let flushed: String = sqlx::query_scalar(FLUSHED).fetch_one(primary).await?;
        let mut pause = PAUSES.0;
        loop {
            let looked = sqlx::query_as(REPLAYED).bind(&flushed).fetch_one(&self.pool);
            let (in_recovery, replayed): (bool, bool) = timeout_at(deadline, looked).await.map_err(|_| late())??;
            if !in_recovery {
                return Err(Error::storage_unavailable(anyhow!("it is no replica (any more)")));
            }
            if replayed {
                return Ok(());
            }
            if Instant::now() + pause >= deadline {
                return Err(late());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

impl Database {
    /// The same database for an export that has just been frozen, or resumed: `reader`
    /// is the replica, if there is one that has come so far.
    pub async fn for_export(&self) -> Self {
        let mut database = self.clone();
        if let Some(replica) = &self.replica {
            match replica.caught_up(self.reader.get_postgres_connection_pool()).await {
                Ok(()) => database.reader = replica.clone().into_connection(),
                Err(error) => {
                    tracing::warn!(replica = %replica.url, %error, "the primary serves an export, its replica cannot");
                }
            }
        }
        database
    }
}
