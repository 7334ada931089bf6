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
//! of a quiet log is written in part and again as it grows, so that many small logs need no long scan; and so is that
//! of a busy one where all logs together lie too far behind, for searches scan that.
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

/// Blocks' worth of entries that all logs together may lie behind, and how many logs may, before parts of blocks are
/// written in traffic too. Far below what a search is ready to scan.
const MAX_BEHIND_BLOCKS: u64 = 2;
const MAX_BEHIND_LOGS: usize = 250;
/// Entries that a part of a block must have more than its last version, at least.
const MIN_GROWTH: u64 = 64;
/// Without a commit for so long, parts of blocks are written too.
const QUIET: Duration = Duration::from_millis(500);
/// While writers are busy, the indexer works one part of the time in so many.
const SHARE: u32 = 4;
/// Between two passes, at least: looking for work costs something too.
const PAUSE: Duration = Duration::from_millis(100);
/// How often heads of old exports are forgotten, at most; also how long the indexer sleeps where nobody writes.
const TIDY: Duration = Duration::from_secs(60);
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
        let mut tidied: Option<Instant> = None;
        loop {
            if tidied.is_none_or(|tidied| tidied.elapsed() >= TIDY) {
                tidied = Some(Instant::now());
                match shutdown.run_until_cancelled(self.store.forget_frozen()).await {
                    None => return,
                    Some(Ok(())) => {}
                    Some(Err(error)) => tracing::warn!(%error, "the heads of old exports are not forgotten yet"),
                }
            }
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
            // After a quiet pass there is nothing to index until somebody writes.
            let patience = if quiet { TIDY } else { QUIET };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => quiet = false,
                () = tokio::time::sleep(patience) => quiet = true,
            }
        }
    }

    /// Writes one block, if there is one that should not wait, and says how long that took. A quiet pass writes all
    /// there is.
    async fn pass(&self, quiet: bool) -> Result<Duration> {
        if quiet {
            self.store.index_all().await?;
            return Ok(Duration::ZERO);
        }
        let begun = Instant::now();
        if !self.store.index_urgent().await? {
            return Ok(Duration::ZERO);
        }
        // There may be more.
        self.wake.notify_one();
        Ok(begun.elapsed())
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
        // Too little in each of very many is too much in all. What comes meanwhile is for the next pass.
        for _ in 0..self.behind(&[]).await?.len() {
            if !self.index_urgent().await? {
                break;
            }
        }
        Ok(())
    }

    /// Writes the block that should wait least, if any should not: that of the log that lies behind most, where all together lie too
    /// far behind, or else a whole one. Whether it wrote one.
    async fn index_urgent(&self) -> Result<bool> {
        let logs = self.behind(&[]).await?;
        let growth = |log: &&Behind| log.head - log.through;
        let too_far = logs.len() > MAX_BEHIND_LOGS
            || logs.iter().map(|log| growth(&log)).sum::<u64>() > MAX_BEHIND_BLOCKS * self.block_entries;
        let least_patient =
            if too_far { logs.iter().max_by_key(growth) } else { logs.iter().find(|log| self.is_whole(log)) };
        match least_patient {
            Some(log) => Ok(self.index_block(log).await? > log.through),
            None => Ok(false),
        }
    }

    /// Whether the block with the first entry that is not indexed is full.
    fn is_whole(&self, log: &Behind) -> bool {
        log.head - log.through / self.block_entries * self.block_entries >= self.block_entries
    }

    /// A whole block always; a part of one when it has grown by half, so that no entry is indexed often.
    fn is_worth(&self, log: &Behind) -> bool {
        let begin = log.through / self.block_entries * self.block_entries;
        let growth = log.head.saturating_sub(log.through);
        growth > 0 && (self.is_whole(log) || growth >= MIN_GROWTH.max((log.through - begin) / 2))
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

#[cfg(test)]
mod tests {
    use service_core::config::{DatabaseConfig, DatabaseUrl};
    use uuid::Uuid;

    use super::*;
    use crate::event::Event;
    use crate::ingest::Batch;

    #[tokio::test]
    async fn in_steady_traffic_many_logs_do_not_stay_behind() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
        let store = Store::open(&url, &DatabaseConfig::default()).await.unwrap().with_block_entries(16);
        let event = crate::canonical::fixtures::full().event;
        // Ten logs, none of which has a whole block.
        let event = |number: u128| Event {
            id: Uuid::from_u128(number),
            instance_id: format!("log-{}", number % 10),
            producer: None,
            ..event.clone()
        };
        let events = (0..100).map(|number| event(number).into()).collect();
        store.write(&[Batch { events, ..Batch::default() }]).await.unwrap();

        let indexer = Indexer::new(store.clone(), Arc::default());
        let mut left = Vec::new();
        for _ in 0..10 {
            // Never quiet.
            indexer.pass(false).await.unwrap();
            left.push(store.behind(&[]).await.unwrap().iter().map(|log| log.head - log.through).sum::<u64>());
        }
        // A log at a time, until no more is behind than two blocks hold.
        assert_eq!(left, [90, 80, 70, 60, 50, 40, 30, 30, 30, 30]);
    }
}
