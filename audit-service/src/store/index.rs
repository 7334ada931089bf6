//! The inverted index, made behind the writers.
//!
//! ```text
//! logs     ══════════════════════════════════╪═══▶ heads
//! runs     [      a million or more      ][ … ][ ][]┆
//!                                    through ─────┘      what lies behind it is scanned
//! ```
//!
//! What lies behind in all logs together is put into a new run, and eight runs of a size into a greater one
//! (`merge`), so that ten million entries are in some thirty runs whatever the number of logs. Everything is read and
//! made before the writer is taken, and written in small pieces. A crash costs the run that was being made.
//!
//! While writers are busy, the indexer takes a part of the time that rises with how far it lies behind: searches scan
//! what it has not done.
//!
//! An index can only narrow a search: it is never asked whether an entry matches.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait as _, DatabaseTransaction};
use service_core::database::{Engine, begin};
use service_core::error::{Error, Result};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Store;
use super::lines::Lines;
use super::merge;
use super::postings::{ShardBuilder, encode, own_part};
use super::runs::{KeyBuilder, Origin, Run, RunWriter, Snapshot};
use super::settle::Intent;
use crate::canonical::Line;
use crate::event::Key;
use crate::filter::{self, SETTLED};

/// Entries in a run that is made from the logs, at most.
pub const BLOCK_ENTRIES: u64 = 16_384;

/// Entries that all logs together may lie behind while writers are busy, and how many logs may: far below what a
/// search scans in a few milliseconds.
const MAX_BEHIND: u64 = 2_048;
const MAX_BEHIND_LOGS: usize = 250;
/// Entries that may lie behind while nobody writes.
const MAX_BEHIND_QUIET: u64 = 64;
/// Without a commit for so long, what is left is put into a run too.
const QUIET: Duration = Duration::from_millis(500);
/// While writers are busy, the indexer works one part of the time in so many if less than this lies behind; beyond
/// the last, all of it.
const SHARES: [(u64, u32); 2] = [(BLOCK_ENTRIES, 4), (4 * BLOCK_ENTRIES, 2)];
/// Between two passes, at least: looking for work costs something too.
const PAUSE: Duration = Duration::from_millis(100);
/// How often what nobody needs any more is tidied away, at most; also how long the indexer sleeps where nobody
/// writes.
const TIDY: Duration = Duration::from_secs(60);
/// How long a failed pass is left alone.
const RETRY: Duration = Duration::from_secs(1);
/// How long runs are not merged after a merge that failed: at first, and at most. What would fail again must not keep
/// entries from being indexed, nor the machine at work.
const MERGE_RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// Between two deletions.
const TIDY_PAUSE: Duration = Duration::from_millis(20);

/// Which lock of the database says that somebody makes the index.
const LEADER: i64 = 0x6175_6469_7469_6478;

/// The task that makes the index.
#[derive(Debug)]
pub struct Indexer {
    store: Store,
    wake: Arc<Notify>,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// There was nothing to do, or another replica is at it.
    Idle,
    /// So many entries lay behind when it began.
    Worked { behind: u64 },
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
        let mut merges = Merges::default();
        let mut tidied: Option<Instant> = None;
        loop {
            if tidied.is_none_or(|tidied| tidied.elapsed() >= TIDY) {
                tidied = Some(Instant::now());
                match shutdown.run_until_cancelled(self.tidy()).await {
                    None => return,
                    Some(Ok(())) => {}
                    Some(Err(error)) => tracing::warn!(%error, "what nobody needs any more is not tidied away yet"),
                }
            }
            let begun = Instant::now();
            // What is cut off in the middle is done again.
            let (pause, patience) = match shutdown.run_until_cancelled(self.pass(quiet, &mut merges)).await {
                None => return,
                Some(Ok(Pass::Worked { behind })) => (pause(begun.elapsed(), behind, quiet), Duration::ZERO),
                // After a quiet pass there is nothing to index until somebody writes.
                Some(Ok(Pass::Idle)) => (PAUSE, if quiet { TIDY } else { QUIET }),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the index falls behind; answers scan meanwhile");
                    (RETRY, Duration::ZERO)
                }
            };
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => quiet = false,
                () = tokio::time::sleep(patience) => quiet |= !patience.is_zero(),
            }
        }
    }

    /// Makes or merges one run, if that should not wait.
    async fn pass(&self, quiet: bool, merges: &mut Merges) -> Result<Pass> {
        let Some(lead) = self.store.lead(LEADER).await? else { return Ok(Pass::Idle) };
        let pass = self.store.index_step(quiet, merges).await;
        lead.end().await?;
        pass
    }

    async fn tidy(&self) -> Result<()> {
        self.store.forget_frozen().await?;
        let Some(lead) = self.store.lead(LEADER).await? else { return Ok(()) };
        self.store.settle_again().await?;
        while self.store.forget_runs().await? {
            tokio::time::sleep(TIDY_PAUSE).await;
        }
        lead.end().await
    }
}

/// When runs may be merged.
#[derive(Debug, Default)]
struct Merges {
    /// After a failure: not before, and how long the pause was.
    paused: Option<(Instant, Duration)>,
}

impl Merges {
    fn may(&self) -> bool {
        self.paused.is_none_or(|(until, _)| Instant::now() >= until)
    }

    fn failed(&mut self) {
        let pause = self.paused.map_or(MERGE_RETRY.0, |(_, pause)| (pause * 2).min(MERGE_RETRY.1));
        self.paused = Some((Instant::now() + pause, pause));
    }
}

/// How long to leave the machine to others after so much work.
fn pause(worked: Duration, behind: u64, quiet: bool) -> Duration {
    let share = SHARES.iter().find(|(least, _)| behind < *least).map_or(1, |(_, share)| *share);
    match share {
        _ if quiet => Duration::ZERO,
        1 => Duration::ZERO,
        share => (worked * (share - 1)).max(PAUSE),
    }
}

/// Held while a replica does what one alone should.
#[derive(Debug)]
pub(crate) struct Lead {
    /// Its end lets go of the lock.
    transaction: Option<DatabaseTransaction>,
}

impl Lead {
    /// Lets go at once. One that is dropped lets go when its connection is next looked at, and until then nobody
    /// leads.
    pub(crate) async fn end(self) -> Result<()> {
        match self.transaction {
            Some(transaction) => Ok(transaction.rollback().await?),
            None => Ok(()),
        }
    }
}

impl Store {
    /// The right to do something, by its lock, unless another replica has it. It saves work that would be thrown away;
    /// that two never do the same is seen to when they commit.
    pub(crate) async fn lead(&self, lock: i64) -> Result<Option<Lead>> {
        let has_two = match self.db.engine {
            Engine::Sqlite => false,
            Engine::Postgres => self.reader().get_postgres_connection_pool().options().get_max_connections() > 1,
        };
        if !has_two {
            // Nobody else to lead, or no connection to read by while one holds the lock.
            return Ok(Some(Lead { transaction: None }));
        }
        let transaction = begin(self.reader()).await?;
        let sql = "SELECT pg_try_advisory_xact_lock($1)";
        let row = transaction.query_one_raw(self.statement(sql, [lock.into()])).await?;
        let leads = row.map_or(Ok(false), |row| row.try_get_by_index(0))?;
        let lead = Lead { transaction: Some(transaction) };
        if leads {
            return Ok(Some(lead));
        }
        lead.end().await?;
        Ok(None)
    }

    /// Brings the index up to date, but for what is too little to be worth it.
    pub async fn index_all(&self) -> Result<()> {
        let mut merges = Merges::default();
        while self.index_step(true, &mut merges).await? != Pass::Idle {}
        Ok(())
    }

    /// Makes or merges one run, whichever should wait least.
    async fn index_step(&self, quiet: bool, merges: &mut Merges) -> Result<Pass> {
        let snapshot = self.index_snapshot().await?;
        let behind = snapshot.entries_behind();
        let patience = if quiet { MAX_BEHIND_QUIET } else { MAX_BEHIND }.min(self.block_entries);
        let indexes = behind >= patience || snapshot.behind.len() > MAX_BEHIND_LOGS;
        let due = merges.may().then(|| merge::due(&snapshot.runs, self.block_entries, indexes)).flatten();
        let worked = match due {
            Some(runs) => match self.merge(&runs).await {
                Ok(merged) => {
                    merges.paused = None;
                    merged
                }
                Err(error) => {
                    merges.failed();
                    return Err(error);
                }
            },
            None if indexes => self.index_some(&snapshot).await?,
            None => false,
        };
        Ok(if worked { Pass::Worked { behind } } else { Pass::Idle })
    }

    /// Puts entries that lie behind into a new run, those of the logs that lie behind most first; false where another
    /// replica was quicker.
    async fn index_some(&self, snapshot: &Snapshot) -> Result<bool> {
        let mut logs = snapshot.behind.clone();
        logs.sort_unstable_by_key(|log| std::cmp::Reverse(log.head - log.through));
        let mut room = self.block_entries;
        logs.retain_mut(|log| {
            log.head = log.head.min(log.through + room);
            room -= log.head - log.through;
            log.head > log.through
        });
        let mut builder = RunBuilder::default();
        let mut lines = Lines::new(&logs);
        let mut next = lines.next(self).await?;
        while let Some(text) = next {
            // Read on while what was read is parsed, on a thread that nobody else waits for.
            let parsed = tokio::task::spawn_blocking(move || {
                text.lines().try_for_each(|line| builder.push(line)).map(|()| builder)
            });
            next = lines.next(self).await?;
            builder = parsed.await.map_err(Error::internal)??;
        }
        let expected: u64 = logs.iter().map(|log| log.head - log.through).sum();
        if builder.keys.len() as u64 != expected {
            let error = anyhow::anyhow!("the logs hold {} entries where {expected} should be", builder.keys.len());
            return Err(Error::internal(error));
        }
        let intents = std::mem::take(&mut builder.intents);
        let settled = self.settled_of(&intents).await?;
        let unsettled = (intents.len() - settled.len()) as u64;
        // Sorting takes some milliseconds, in which nobody else could use the thread.
        let made = tokio::task::spawn_blocking(move || builder.finish(settled, unsettled)).await;
        let (run, parts) = made.map_err(Error::internal)?;
        let mut writer = RunWriter::new(self);
        writer.push(parts).await?;
        writer.finish(&run, Origin::Logs(&logs)).await
    }
}

/// A run in the making.
#[derive(Default)]
struct RunBuilder {
    /// Keys, and the places at which they came.
    keys: Vec<(Key, u32)>,
    /// Terms, and the places of entries that have them; some more than once.
    terms: Vec<(u64, u32)>,
    intents: Vec<Intent>,
}

impl RunBuilder {
    fn push(&mut self, line: &str) -> Result<()> {
        let line = Line::new(line).map_err(Error::internal)?;
        let place = self.keys.len() as u32;
        self.keys.push((line.key().map_err(Error::internal)?, place));
        filter::terms(&line, &mut |term| self.terms.push((term, place)));
        self.intents.extend(Intent::of_line(&line, place as usize));
        Ok(())
    }

    /// The run, and its parts.
    fn finish(mut self, settled: Vec<usize>, unsettled: u64) -> (Run, Vec<(i64, Vec<u8>)>) {
        self.keys.sort_unstable();
        let mut ranks = vec![0_u32; self.keys.len()];
        let mut keys = KeyBuilder::default();
        let mut parts = Vec::new();
        for (rank, (key, place)) in self.keys.iter().enumerate() {
            ranks[*place as usize] = rank as u32;
            parts.extend(keys.push(*key));
        }
        parts.extend(keys.finish());
        self.terms.iter_mut().for_each(|(_, place)| *place = ranks[*place as usize]);
        self.terms.sort_unstable();
        self.terms.dedup();
        let entries = self.keys.len() as u64;
        let mut shards = ShardBuilder::new(entries);
        let mut of_term = Vec::new();
        for same in self.terms.chunk_by(|a, b| a.0 == b.0) {
            of_term.clear();
            of_term.extend(same.iter().map(|(_, rank)| *rank));
            shards.push(same[0].0, &of_term);
        }
        parts.extend(shards.finish());
        let settled: HashSet<u32> = settled.into_iter().map(|place| ranks[place]).collect();
        parts.extend(settled_part(settled.into_iter().collect()));
        let time = |key: Option<&(Key, u32)>| key.map_or(0, |(key, _)| key.occurred_at_us);
        let (first_us, last_us) = (time(self.keys.first()), time(self.keys.last()));
        (Run { id: 0, entries, first_us, last_us, unsettled }, parts)
    }
}

/// The part of a run that tells its settled intents, if it has any.
pub(super) fn settled_part(mut ranks: Vec<u32>) -> Option<(i64, Vec<u8>)> {
    if ranks.is_empty() {
        return None;
    }
    ranks.sort_unstable();
    let mut posting = Vec::new();
    encode(&ranks, &mut posting);
    Some((own_part(SETTLED), posting))
}

#[cfg(test)]
mod tests;
