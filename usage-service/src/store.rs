//! Storage: SQLite or PostgreSQL, one schema, the same answers. The only module
//! that names sea-orm or SQL.
//!
//! ```text
//! usage_requests     a row a request        key id; (occurred_at, id); (user_id, occurred_at, id)
//! usage_charges      what rows refer to: the price that made a cost, or why there is none
//! usage_producers    what rows refer to: one SDK instance and epoch
//! usage_producer_numbers  which numbers of a producer are there, as bitmaps
//! usage_dropped      numbers that producers say they have dropped
//! usage_deltas, usage_segments, usage_spans, usage_values, usage_rollup    sums made ahead (`rollup`)
//! usage_retention    from when on requests and rollups are kept (`retention`)
//! ```
//!
//! - **Written once.** Rows are only inserted. `id` is unique; what an insert skips
//!   is looked up and told apart. A producer's number belongs to one row (`write`).
//! - **A partition a day** on PostgreSQL, by the time in the ids (`partitions`).
//! - **One snapshot an answer.** Every answer is one statement, or one read
//!   transaction (`totals`, `page`).
//! - **Commit numbers.** Every transaction marks its rows with a number, such that
//!   an export can be frozen: see [`Store::watermark`].

mod cells;
mod citus;
mod coverage;
mod entity;
mod migration;
mod page;
mod partitions;
mod retention;
mod rollup;
mod scope;
mod totals;
mod watermark;
mod write;

use std::sync::Arc;

use sea_orm::{DatabaseTransaction, DbBackend};
use service_core::config::{DatabaseConfig, DatabaseUrl};
use service_core::database::{Database, Engine, begin, begin_snapshot, connect};
use service_core::error::{Error, Result};
use tokio::sync::{Semaphore, SemaphorePermit};

pub use citus::DISTRIBUTED;
pub use page::Order;
pub(crate) use page::{Next, Page};
pub use retention::{Kept, Swept, Window};
pub use rollup::{Backlog, Checked, Sealed};
pub use totals::Facet;
pub use write::Batch;

/// Readers that totals and groups leave to what is answered quickly.
const QUICK_READERS: u32 = 2;

/// The open store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    db: Database,
    /// What is in memory of the segments.
    rollup: Arc<rollup::Rollup>,
    /// Which partitions there are.
    partitions: Arc<partitions::Partitions>,
    /// Turns of reads over many rows.
    turns: Arc<Semaphore>,
    /// Whether requests are spread over a cluster.
    spread: bool,
}

impl Store {
    /// Connects and brings the schema up to date.
    ///
    /// Sections of rollups take at most `cache_bytes` of memory.
    pub async fn open(url: &DatabaseUrl, config: &DatabaseConfig, cache_bytes: usize) -> anyhow::Result<Self> {
        let db = connect(url, config).await?;
        db.migrate::<migration::Migrator>(migration::GRANTS).await?;
        db.distribute(DISTRIBUTED).await?;
        let turns = Arc::new(Semaphore::new(config.readers.get().saturating_sub(QUICK_READERS).max(1) as usize));
        let rollup = Arc::new(rollup::Rollup::new(cache_bytes));
        let partitions = Arc::new(partitions::Partitions::new());
        Ok(Self { db, rollup, partitions, turns, spread: config.citus_shards.is_some() })
    }

    /// The key under which this deployment's tokens are sealed.
    pub async fn seal_key(&self) -> Result<[u8; 32]> {
        self.db.seal_key().await
    }

    /// Whether reading works.
    pub async fn probe_reader(&self) -> Result<()> {
        self.db.probe_reader().await
    }

    /// The database itself, for its health.
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// The same store for an export that has just been frozen, or resumed: it reads
    /// from a replica, if there is one that has come so far.
    #[must_use]
    pub async fn for_export(&self) -> Self {
        Self { db: self.db.for_export().await, ..self.clone() }
    }

    /// Closes the pools, after what is in use.
    pub async fn close(self) {
        self.db.close().await;
    }

    fn backend(&self) -> DbBackend {
        match self.db.engine {
            Engine::Sqlite => DbBackend::Sqlite,
            Engine::Postgres => DbBackend::Postgres,
        }
    }

    /// Waits until a read over many rows may begin: there are fewer turns than
    /// readers, so that a page or an export never waits behind totals alone.
    async fn turn(&self) -> Result<SemaphorePermit<'_>> {
        self.turns.acquire().await.map_err(|_| Error::ShuttingDown)
    }

    /// A transaction whose statements all see the same snapshot.
    async fn snapshot(&self) -> Result<DatabaseTransaction> {
        match self.db.engine {
            // A deferred transaction takes its snapshot with its first read.
            Engine::Sqlite => begin(&self.db.reader).await,
            Engine::Postgres => begin_snapshot(&self.db.reader).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use service_core::auth::Access;

    use super::*;
    use crate::model::{Filter, Scope};

    #[tokio::test]
    async fn pages_are_read_while_totals_wait_for_their_turn() {
        let folder = tempfile::tempdir().expect("a folder");
        let three = std::num::NonZeroU32::new(3).expect("not zero");
        let config = DatabaseConfig { readers: three, ..DatabaseConfig::default() };
        let url = DatabaseUrl::sqlite(folder.path().join("usage.db"));
        let store = Store::open(&url, &config, 1 << 20).await.expect("opens");
        let scope = Scope {
            start_us: 0,
            end_us: i64::MAX,
            access: Access::unrestricted(),
            filter: Filter::default(),
            watermark: None,
        };

        let turn = store.turn().await.expect("the one turn");
        let mut totals = Box::pin(store.totals(&scope, &[0, i64::MAX]));
        tokio::select! {
            biased;
            _ = &mut totals => panic!("there is one turn"),
            page = store.requests(&scope, Order::OldestFirst, None, 1) => assert_eq!(page.expect("a page"), []),
        }
        drop(turn);
        assert_eq!(totals.await.expect("totals").len(), 1);
    }
}
