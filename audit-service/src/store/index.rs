//! The inverted index, made behind the writers.
//!
//! ```text
//! log      0 ─────────── 4,096 ─────────── 8,192 ──────▶ head
//! index    [   block 0   ][    block 1    ][ part ]┆
//!                                         through ─┘      what lies behind it is scanned
//! ```
//!
//! A block is a pure function of its entries, and is written, with how far the index goes, in one transaction: a
//! crash between two blocks costs nothing, and two replicas that make the same block write the same. The last block
//! of a quiet log is written in part and again as it grows, so that many small logs need no long scan.
//!
//! An index can only narrow a search: it is never asked whether an entry matches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait as _, TransactionTrait as _, Value};
use service_core::database::Engine;
use service_core::error::Result;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::postings::Builder;
use super::{LogWalk, Store, placeholders, signed, unsigned};
use crate::filter;

/// Entries in a block.
pub const BLOCK_ENTRIES: u64 = 4_096;
/// Bytes of a key in `audit_index_blocks.keys`: the time and the id of an entry.
pub(super) const KEY_BYTES: usize = 24;

/// Entries that a part of a block must have more than its last version, at least.
const MIN_GROWTH: u64 = 64;
/// Without a commit for so long, parts of blocks are written too.
const QUIET: Duration = Duration::from_millis(500);
/// While writers are busy, the indexer works one part of the time in so many.
const SHARE: u32 = 4;
/// Between two passes, at least: looking for work costs something too.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a failed pass is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// How far a log's index lies behind.
#[derive(Debug, Clone)]
pub(super) struct Behind {
    pub(super) instance_id: String,
    pub(super) head: u64,
    /// Everything below is in the index.
    pub(super) through: u64,
}

/// The task that makes the index.
#[derive(Debug)]
pub struct Indexer {
    store: Store,
    wake: Arc<Notify>,
}

impl Indexer {
    /// An indexer that looks for work whenever it is woken.
    pub fn new(store: Store, wake: Arc<Notify>) -> Self {
        Self { store, wake }
    }

    /// Works until the server stops.
    pub async fn run(self, shutdown: CancellationToken) {
        // At start there may be work that was left.
        let mut quiet = false;
        loop {
            // What is cut off in the middle is rolled back and done again.
            let pause = match shutdown.run_until_cancelled(self.pass(quiet)).await {
                None => return,
                Some(Ok(worked)) => (worked * (SHARE - 1)).max(PAUSE),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the index falls behind; answers scan meanwhile");
                    RETRY
                }
            };
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            // After a quiet pass there is nothing to do until somebody writes.
            let patience = if quiet { Duration::MAX } else { QUIET };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => quiet = false,
                () = tokio::time::sleep(patience) => quiet = true,
            }
        }
    }

    /// Writes a whole block, if there is one to write, and says how long that took. A quiet pass writes all there is.
    async fn pass(&self, quiet: bool) -> Result<Duration> {
        if quiet {
            self.store.index_all().await?;
            return Ok(Duration::ZERO);
        }
        let begun = Instant::now();
        for log in self.store.behind(&[]).await? {
            if log.head - log.through / self.store.block_entries * self.store.block_entries >= self.store.block_entries
            {
                self.store.index_block(&log).await?;
                // There may be more.
                self.wake.notify_one();
                return Ok(begun.elapsed());
            }
        }
        Ok(Duration::ZERO)
    }
}

impl Store {
    /// Brings the index up to date, but for what is too little to be worth it.
    pub async fn index_all(&self) -> Result<()> {
        for mut log in self.behind(&[]).await? {
            while self.is_worth(&log) {
                let through = self.index_block(&log).await?;
                if through == log.through {
                    // Another replica is at it.
                    break;
                }
                log.through = through;
            }
        }
        Ok(())
    }

    /// A whole block always; a part of one when it has grown by half, so that no entry is indexed often.
    fn is_worth(&self, log: &Behind) -> bool {
        let begin = log.through / self.block_entries * self.block_entries;
        let growth = log.head.saturating_sub(log.through);
        growth > 0 && (log.head - begin >= self.block_entries || growth >= MIN_GROWTH.max((log.through - begin) / 2))
    }

    /// The logs whose index lies behind; of all instances or of these.
    pub(super) async fn behind(&self, instances: &[String]) -> Result<Vec<Behind>> {
        let logs = self.index_heads(instances).await?;
        Ok(logs.into_iter().filter(|log| log.through < log.head).collect())
    }

    /// How far the logs and their indexes go; of all instances or of these.
    pub(super) async fn index_heads(&self, instances: &[String]) -> Result<Vec<Behind>> {
        let only = match instances.len() {
            0 => String::new(),
            count => format!("WHERE h.instance_id IN ({})", placeholders(1, count)),
        };
        let sql = format!(
            "SELECT h.instance_id, h.next_sequence, COALESCE(i.indexed_through, 0) FROM audit_log_heads h \
             LEFT JOIN audit_index_heads i ON i.instance_id = h.instance_id {only}"
        );
        let values: Vec<Value> = instances.iter().map(|instance| instance.as_str().into()).collect();
        let log = |row: &sea_orm::QueryResult| {
            Ok(Behind {
                instance_id: row.try_get_by_index(0)?,
                head: unsigned(row.try_get_by_index(1)?)?,
                through: unsigned(row.try_get_by_index(2)?)?,
            })
        };
        self.read(sql, values).await?.iter().map(log).collect()
    }

    /// Makes and writes the block that holds the first entry that is not indexed, as far as the log goes; returns how
    /// far the index now goes. Reads and builds before it takes the writer.
    async fn index_block(&self, log: &Behind) -> Result<u64> {
        let block = log.through / self.block_entries;
        let begin = block * self.block_entries;
        let mut walk = LogWalk::new(log.instance_id.as_str(), begin, begin + self.block_entries);
        let mut builder = Builder::default();
        let mut keys = Vec::new();
        let mut times: Option<(i64, i64)> = None;
        let mut through = begin;
        loop {
            let rows = walk.next(self).await?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                builder.push(&filter::terms(&row.entry()?.event));
                let us = row.key.occurred_at_us;
                keys.extend_from_slice(&us.to_be_bytes());
                keys.extend_from_slice(row.key.id.as_bytes());
                times = Some(times.map_or((us, us), |(first, last)| (first.min(us), last.max(us))));
                through = row.sequence + 1;
            }
            tokio::task::yield_now().await;
        }
        let Some((first_us, last_us)) = times.filter(|_| through > log.through) else {
            return Ok(log.through);
        };
        let instance = || Value::from(log.instance_id.as_str());
        let block = signed(block);

        // Deferred on SQLite, where nobody else writes; so it cannot lose the race for the lock.
        let transaction = self.db.writer.begin().await?;
        let head = self.statement(
            "INSERT INTO audit_index_heads (instance_id, indexed_through) VALUES ($1, 0) \
             ON CONFLICT (instance_id) DO NOTHING",
            [instance()],
        );
        transaction.execute_raw(head).await?;
        let lock = if self.db.engine == Engine::Postgres { "FOR UPDATE" } else { "" };
        let sql = format!("SELECT indexed_through FROM audit_index_heads WHERE instance_id = $1 {lock}");
        let row = transaction.query_one_raw(self.statement(sql, [instance()])).await?;
        let stored = row.map_or(Ok(0), |row| unsigned(row.try_get_by_index(0)?))?;
        if stored != log.through {
            // Another replica was quicker; what it wrote may be more.
            transaction.rollback().await?;
            return Ok(log.through);
        }
        let shards = builder.finish();
        let rows: Vec<String> = (0..shards.len()).map(|row| format!("({})", placeholders(row * 4 + 1, 4))).collect();
        let sql = format!(
            "INSERT INTO audit_index (instance_id, shard, block, postings) VALUES {} \
             ON CONFLICT (instance_id, shard, block) DO UPDATE SET postings = excluded.postings",
            rows.join(",")
        );
        let row = |(shard, postings): (i64, Vec<u8>)| [instance(), shard.into(), block.into(), postings.into()];
        transaction.execute_raw(self.statement(sql, shards.into_iter().flat_map(row))).await?;
        let sql = "INSERT INTO audit_index_blocks \
             (instance_id, block, entries, first_occurred_at, last_occurred_at, keys) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (instance_id, block) DO UPDATE SET entries = excluded.entries, \
             first_occurred_at = excluded.first_occurred_at, last_occurred_at = excluded.last_occurred_at, \
             keys = excluded.keys";
        let entries = Value::from(signed(through - begin));
        let values = [instance(), block.into(), entries, first_us.into(), last_us.into(), keys.into()];
        transaction.execute_raw(self.statement(sql, values)).await?;
        let sql = "UPDATE audit_index_heads SET indexed_through = $2 WHERE instance_id = $1";
        transaction.execute_raw(self.statement(sql, [instance(), signed(through).into()])).await?;
        transaction.commit().await?;
        Ok(through)
    }
}
