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
mod turns;
mod watermark;
mod write;

use std::sync::Arc;

use sea_orm::{DatabaseConnection, DatabaseTransaction, DbBackend};
use service_core::config::{DatabaseConfig, DatabaseUrl};
use service_core::database::{Database, Engine, begin, begin_snapshot, connect};
use service_core::error::Result;
use turns::{Reading, Turn, Turns};

pub use citus::DISTRIBUTED;
pub use page::Order;
pub(crate) use page::{Next, Page};
pub use retention::{Kept, Swept, Window};
pub use rollup::{Backlog, Checked, Sealed};
pub use totals::Facet;
pub use write::Batch;

/// The open store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    db: Database,
    /// What is in memory of the segments.
    rollup: Arc<rollup::Rollup>,
    /// Which partitions there are.
    partitions: Arc<partitions::Partitions>,
    /// Turns of reads over many rows.
    turns: Arc<Turns>,
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
        let turns = Arc::new(Turns::new(config.readers.get()));
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

    /// A transaction whose statements all see the same snapshot.
    async fn snapshot(&self, of: &DatabaseConnection) -> Result<DatabaseTransaction> {
        match self.db.engine {
            // A deferred transaction takes its snapshot with its first read.
            Engine::Sqlite => begin(of).await,
            Engine::Postgres => begin_snapshot(of).await,
        }
    }

    /// The same by a reader, in a turn.
    async fn reading(&self, turn: Option<&Turn>) -> Result<Reading> {
        Ok(Reading::new(self.snapshot(&self.db.reader).await?, turn.cloned()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;
    use sea_orm::ConnectionTrait as _;
    use service_core::auth::Access;

    use super::*;
    use crate::model::{Filter, Scope};

    #[tokio::test]
    async fn only_what_may_look_at_any_number_of_requests_waits_for_others_that_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let four = std::num::NonZeroU32::new(4).expect("not zero");
        let config = DatabaseConfig { readers: four, ..DatabaseConfig::default() };
        let url = DatabaseUrl::sqlite(folder.path().join("usage.db"));
        let store = Store::open(&url, &config, 1 << 20).await.expect("opens");
        // A day of 2026, which sums answer.
        let (all, day) = (Access::unrestricted, [1_767_571_200_000_000, 1_767_657_600_000_000]);
        let caller: Arc<str> = "caller".into();
        let scope = |access, filter| Scope {
            start_us: day[0],
            end_us: day[1],
            access,
            filter,
            watermark: None,
            caller: Arc::clone(&caller),
        };
        let of_team = scope(all(), Filter { team_ids: vec!["t".into()], ..Filter::default() });
        let of_label = scope(all(), Filter { labels: [("k".into(), "v".into())].into(), ..Filter::default() });
        let of_instance = scope(all().to_instances(["eu"]), Filter::default());
        let of_user = scope(all(), Filter { user_ids: vec!["ada".into()], ..Filter::default() });
        let everything = scope(all(), Filter::default());
        let exported = Scope { watermark: Some(1), ..everything.clone() };

        let turn = store.turns.requests(&caller).await.expect("the one turn");
        let waits = async {
            tokio::select! {
                page = store.requests(&of_team, Order::NewestFirst, None, 1) => format!("{page:?}"),
                page = store.requests(&of_instance, Order::NewestFirst, None, 1) => format!("{page:?}"),
                page = store.export_page(&exported, Next { after: None, limit: 1 }) => format!("{page:?}"),
                totals = store.totals(&of_label, &day) => format!("{totals:?}"),
            }
        };
        let goes_on = async {
            for scope in [&everything, &of_user, &scope(all().to_user("ada"), Filter::default())] {
                assert_eq!(store.requests(scope, Order::NewestFirst, None, 1).await.expect("a page"), []);
            }
            assert_eq!(store.totals(&of_team, &day).await.expect("totals").len(), 1);
        };
        tokio::select! {
            biased;
            early = waits => panic!("there is one turn: {early}"),
            () = goes_on => {}
        }
        drop(turn);
        assert_eq!(store.totals(&of_label, &day).await.expect("totals").len(), 1);
    }

    #[tokio::test]
    async fn a_turn_lasts_as_long_as_the_statement_of_a_reader_that_has_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let (three, limit) = (3.try_into().expect("not zero"), 2_000.try_into().expect("not zero"));
        let config = DatabaseConfig { readers: three, statement_timeout_ms: limit, ..DatabaseConfig::default() };
        let mut engines = vec![(
            DatabaseUrl::sqlite(folder.path().join("usage.db")),
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n",
        )];
        if !testkit::Postgres::skipped() {
            let url = testkit::Postgres::shared().await.create_database().await;
            engines.push((DatabaseUrl::new(url).expect("valid"), "SELECT pg_sleep(60)"));
        }
        for (url, endless) in engines {
            let store = Store::open(&url, &config, 1 << 20).await.expect("opens");
            let reading = store.reading(Some(&store.turns.sums().await.expect("the one turn"))).await.expect("begun");
            let statement = reading.execute_unprepared(endless);
            let left = tokio::time::timeout(Duration::from_millis(50), statement).await;
            assert!(left.is_err(), "it runs: {left:?}");
            drop(reading);
            assert!(store.turns.sums().now_or_never().is_none(), "its connection is at work");
            // Until the statement's time is over.
            store.turns.sums().await.expect("the turn again");
        }
    }
}
