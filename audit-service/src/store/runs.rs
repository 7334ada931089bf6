//! Runs: the immutable pieces of the index, and what is not in one yet.
//!
//! ```text
//! audit_index_runs   a run: its number, state, entries, and the times between which they occurred
//! audit_index        its parts: keys in order, fences (the first key of each part of keys), shards of postings
//! audit_index_heads  how far each log is in runs
//!
//! state   building ──all parts are there──▶ live ──merged into a greater one──▶ superseded ──later──▶ gone
//! ```
//!
//! A run holds entries of any logs, in the order of (`occurred_at`, `id`); an entry is in one live run or in none. It
//! becomes live, its log's heads move, and the runs it was made of are superseded in one transaction; before that
//! nobody sees its parts, so they are written in pieces that don't keep writers waiting. A superseded run stays for
//! longer than a search may last. A crash leaves a run that is building: it goes like a superseded one.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait as _, DatabaseTransaction, QueryResult, Value};
use service_core::clock;
use service_core::database::{Engine, begin};
use service_core::error::{Error, Result};
use uuid::Uuid;

use super::{Store, placeholders, signed, unsigned};
use crate::event::Key;

/// Keys in a part of them.
pub(super) const CHUNK: u64 = 128;
const KEY_BYTES: usize = 24;
/// The first part of keys.
const KEYS: i64 = 1 << 32;
/// The part with the first key of each part of keys.
pub(super) const FENCES: i64 = 1 << 33;

const BUILDING: i32 = 0;
const LIVE: i32 = 1;
const SUPERSEDED: i32 = 2;

/// Parts that are read by one statement.
pub(super) const PAIRS: usize = 128;
/// Bytes of parts in one transaction: about five milliseconds of the writer.
const PIECE_BYTES: usize = 512 * 1024;
/// Rows in one INSERT.
const ROWS: usize = 32;
/// How long a run that is not live is kept, and how long a search may go on reading the runs that it saw.
const GRACE_US: i64 = 120 * clock::MICROS_PER_SECOND;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a run may be building.
const ABANDONED_US: i64 = 3_600 * clock::MICROS_PER_SECOND;
/// Parts that are deleted at once.
const DELETED: u64 = 64;

/// A live run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) id: i64,
    pub(super) entries: u64,
    /// The least and the greatest time in it.
    pub(super) first_us: i64,
    pub(super) last_us: i64,
    /// Intents whose outcome was not there when this was last looked at.
    pub(super) unsettled: u64,
}

/// How far a log's index lies behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Behind {
    pub(super) instance_id: String,
    /// Everything below is in runs.
    pub(super) through: u64,
    pub(super) head: u64,
}

/// The index at one moment: each entry is in one of the runs or behind.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    taken: Instant,
    /// In the order in which they were made.
    pub(super) runs: Vec<Run>,
    pub(super) behind: Vec<Behind>,
}

impl Snapshot {
    /// Entries that are in no run.
    pub(super) fn entries_behind(&self) -> u64 {
        self.behind.iter().map(|log| log.head - log.through).sum()
    }

    /// An error once runs that were live then may be gone: their terms would be missed.
    pub(super) fn still_holds(&self) -> Result<()> {
        match self.taken.elapsed() < PATIENCE {
            true => Ok(()),
            false => Err(Error::DeadlineExceeded("the search takes too long; ask for a shorter range".into())),
        }
    }
}

impl Store {
    /// One statement, so one moment.
    pub(super) async fn index_snapshot(&self) -> Result<Snapshot> {
        let sql = format!(
            "SELECT run, entries, first_occurred_at, last_occurred_at, unsettled, '' FROM audit_index_runs \
             WHERE state = {LIVE} \
             UNION ALL \
             SELECT 0, COALESCE(i.indexed_through, 0), h.next_sequence, h.archived_through, 0, h.instance_id \
             FROM audit_log_heads h LEFT JOIN audit_index_heads i ON i.instance_id = h.instance_id \
             WHERE COALESCE(i.indexed_through, 0) < h.next_sequence"
        );
        let mut snapshot = Snapshot { taken: Instant::now(), runs: Vec::new(), behind: Vec::new() };
        for row in self.read(sql, Vec::new()).await? {
            let id: i64 = row.try_get_by_index(0)?;
            let entries = unsigned(row.try_get_by_index(1)?)?;
            let third = row.try_get_by_index(2)?;
            if id == 0 {
                let instance_id = row.try_get_by_index(5)?;
                // What is archived is searched no more: it needs no index.
                let through = entries.max(unsigned(row.try_get_by_index(3)?)?);
                snapshot.behind.push(Behind { instance_id, through, head: unsigned(third)? });
                continue;
            }
            let unsettled = unsigned(row.try_get_by_index(4)?)?;
            let last_us = row.try_get_by_index(3)?;
            snapshot.runs.push(Run { id, entries, first_us: third, last_us, unsettled });
        }
        snapshot.runs.sort_unstable_by_key(|run| run.id);
        Ok(snapshot)
    }

    /// Parts of runs; those that are not there are left out.
    pub(super) async fn parts(&self, wanted: &[(i64, i64)]) -> Result<HashMap<(i64, i64), Vec<u8>>> {
        let mut found = HashMap::with_capacity(wanted.len());
        for wanted in wanted.chunks(PAIRS) {
            // Few sizes, so that the statements stay prepared; there is no run 0.
            let size = wanted.len().next_power_of_two();
            let rows: Vec<String> = (0..size)
                .map(|at| format!("(CAST(${} AS BIGINT), CAST(${} AS BIGINT))", at * 2 + 1, at * 2 + 2))
                .collect();
            let sql = format!(
                "WITH wanted (run, part) AS (VALUES {}) SELECT p.run, p.part, p.bytes \
                 FROM wanted w CROSS JOIN audit_index p WHERE p.run = w.run AND p.part = w.part",
                rows.join(",")
            );
            let none = std::iter::repeat_n(&(0, 0), size - wanted.len());
            let values = wanted.iter().chain(none).flat_map(|(run, part)| [Value::from(*run), Value::from(*part)]);
            for row in self.read(sql, values.collect()).await? {
                found.insert((row.try_get_by_index(0)?, row.try_get_by_index(1)?), row.try_get_by_index(2)?);
            }
        }
        Ok(found)
    }

    /// All parts of a run from one to before another, in order.
    pub(super) async fn parts_between(&self, run: i64, from: i64, to: i64) -> Result<Vec<(i64, Vec<u8>)>> {
        let sql = "SELECT part, bytes FROM audit_index WHERE run = $1 AND part >= $2 AND part < $3 ORDER BY part";
        let part = |row: &QueryResult| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?));
        self.read(sql, vec![run.into(), from.into(), to.into()]).await?.iter().map(part).collect()
    }

    /// The keys at these ranks of runs, in this order.
    pub(super) async fn keys_at(&self, wanted: &[(i64, u64)]) -> Result<Vec<Key>> {
        let mut chunks: Vec<(i64, i64)> = wanted.iter().map(|(run, rank)| (*run, chunk_part(rank / CHUNK))).collect();
        chunks.dedup();
        let found = self.parts(&chunks).await?;
        let key =
            |(run, rank): &(i64, u64)| key_at(found.get(&(*run, chunk_part(rank / CHUNK)))?, (rank % CHUNK) as usize);
        wanted.iter().map(|wanted| key(wanted).ok_or_else(|| damaged("keys"))).collect()
    }

    /// Deletes some of what belongs to runs that are live no more, or never became so; whether there may be more.
    pub(super) async fn forget_runs(&self) -> Result<bool> {
        let now = self.now();
        let old = format!(
            "(state = {SUPERSEDED} AND since < {now} - {GRACE_US} OR state = {BUILDING} AND since < {now} - {ABANDONED_US})"
        );
        let rows =
            self.read(format!("SELECT run FROM audit_index_runs WHERE {old} ORDER BY run LIMIT 1"), Vec::new()).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        let run: i64 = row.try_get_by_index(0)?;
        // First, so that it cannot become live with a part of its parts.
        let sql = format!("UPDATE audit_index_runs SET state = {SUPERSEDED}, since = 0 WHERE {old} AND run = $1");
        self.db.writer.execute_raw(self.statement(sql, [run.into()])).await?;
        let values = || vec![Value::from(run), Value::from(signed(DELETED))];
        let parts = "DELETE FROM audit_index WHERE run = $1 AND part IN \
                     (SELECT part FROM audit_index WHERE run = $1 ORDER BY part LIMIT $2)";
        if self.db.writer.execute_raw(self.statement(parts, values())).await?.rows_affected() == 0 {
            let own = format!("DELETE FROM audit_index_runs WHERE run = $1 AND state = {SUPERSEDED}");
            self.db.writer.execute_raw(self.statement(own, [run.into()])).await?;
        }
        Ok(true)
    }

    /// Replaces a live run's posting of settled intents.
    pub(super) async fn save_settled(&self, run: i64, part: i64, posting: Vec<u8>, unsettled: u64) -> Result<()> {
        let transaction = begin(&self.db.writer).await?;
        let sql = "INSERT INTO audit_index (run, part, bytes) VALUES ($1, $2, $3) \
                   ON CONFLICT (run, part) DO UPDATE SET bytes = excluded.bytes";
        transaction.execute_raw(self.statement(sql, [run.into(), part.into(), posting.into()])).await?;
        let now = self.now();
        let sql =
            format!("UPDATE audit_index_runs SET unsettled = $2, since = {now} WHERE run = $1 AND state = {LIVE}");
        let values = [run.into(), signed(unsettled).into()];
        // A run that is live no more is read for a while; its own posting may as well be newer.
        transaction.execute_raw(self.statement(sql, values)).await?;
        Ok(transaction.commit().await?)
    }
}

/// What a new run takes the place of.
pub(super) enum Origin<'a> {
    /// Entries that were in none: of each log from one sequence to before another.
    Logs(&'a [Behind]),
    /// Other runs.
    Runs(&'a [Run]),
}

/// Writes a run in pieces.
pub(super) struct RunWriter<'a> {
    store: &'a Store,
    run: Option<i64>,
    pending: Vec<(i64, Vec<u8>)>,
    bytes: usize,
}

impl<'a> RunWriter<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, run: None, pending: Vec::new(), bytes: 0 }
    }

    /// Adds parts, each once.
    pub(super) async fn push(&mut self, parts: impl IntoIterator<Item = (i64, Vec<u8>)>) -> Result<()> {
        for (part, bytes) in parts {
            self.bytes += bytes.len();
            self.pending.push((part, bytes));
            if self.bytes >= PIECE_BYTES {
                let transaction = self.write_pending().await?;
                transaction.commit().await?;
            }
        }
        Ok(())
    }

    async fn write_pending(&mut self) -> Result<DatabaseTransaction> {
        let store = self.store;
        // Deferred on SQLite, where nobody else writes; so it cannot lose the race for the lock.
        let transaction = begin(&store.db.writer).await?;
        let run = match self.run {
            Some(run) => run,
            None => {
                // Two replicas that take the same number at once: the later fails, and begins anew.
                let sql = format!(
                    "INSERT INTO audit_index_runs (run, state, since, entries, first_occurred_at, last_occurred_at, \
                     unsettled) SELECT COALESCE(MAX(run), 0) + 1, {BUILDING}, {}, 0, 0, 0, 0 FROM audit_index_runs \
                     RETURNING run",
                    store.now()
                );
                let row = transaction.query_one_raw(store.statement(sql, [])).await?;
                let row = row.ok_or_else(|| Error::internal(anyhow::anyhow!("a new run has no number")))?;
                row.try_get_by_index(0)?
            }
        };
        self.run = Some(run);
        self.bytes = 0;
        let pending = std::mem::take(&mut self.pending);
        for rows in pending.chunks(ROWS) {
            let lines: Vec<String> = (0..rows.len()).map(|row| format!("({})", placeholders(row * 3 + 1, 3))).collect();
            let sql = format!("INSERT INTO audit_index (run, part, bytes) VALUES {}", lines.join(","));
            let values = rows.iter().flat_map(|(part, bytes)| [run.into(), (*part).into(), bytes.clone().into()]);
            transaction.execute_raw(store.statement(sql, values)).await?;
        }
        Ok(transaction)
    }

    /// Writes what is left and makes the run live; false where another replica was quicker.
    pub(super) async fn finish(mut self, run: &Run, origin: Origin<'_>) -> Result<bool> {
        let store = self.store;
        let transaction = self.write_pending().await?;
        let unchanged = match origin {
            Origin::Logs(logs) => store.move_heads(&transaction, logs).await?,
            Origin::Runs(runs) => store.supersede(&transaction, runs).await?,
        };
        if !unchanged {
            transaction.rollback().await?;
            return Ok(false);
        }
        let sql = format!(
            "UPDATE audit_index_runs SET state = {LIVE}, since = {}, entries = $2, first_occurred_at = $3, \
             last_occurred_at = $4, unsettled = $5 WHERE run = $1 AND state = {BUILDING}",
            store.now()
        );
        let values = [
            self.run.into(),
            signed(run.entries).into(),
            run.first_us.into(),
            run.last_us.into(),
            signed(run.unsettled).into(),
        ];
        if transaction.execute_raw(store.statement(sql, values)).await?.rows_affected() != 1 {
            // It took so long that it was tidied away.
            transaction.rollback().await?;
            return Ok(false);
        }
        transaction.commit().await?;
        Ok(true)
    }
}

impl Store {
    /// Moves logs' heads to where a new run goes; false where they are not where it begins.
    async fn move_heads(&self, transaction: &DatabaseTransaction, logs: &[Behind]) -> Result<bool> {
        const LOGS: usize = 200;
        let mut logs: Vec<&Behind> = logs.iter().collect();
        // In order, so that two replicas never wait for each other in a ring.
        logs.sort_unstable_by(|a, b| a.instance_id.cmp(&b.instance_id));
        for logs in logs.chunks(LOGS) {
            let rows: Vec<String> = (0..logs.len()).map(|log| format!("(${}, 0)", log + 1)).collect();
            let sql = format!(
                "INSERT INTO audit_index_heads (instance_id, indexed_through) VALUES {} ON CONFLICT DO NOTHING",
                rows.join(",")
            );
            let names = || logs.iter().map(|log| Value::from(log.instance_id.as_str()));
            transaction.execute_raw(self.statement(sql, names())).await?;
            let sql = format!(
                "SELECT instance_id, indexed_through, (SELECT archived_through FROM audit_log_heads h \
                 WHERE h.instance_id = audit_index_heads.instance_id) FROM audit_index_heads \
                 WHERE instance_id IN ({}) ORDER BY instance_id {}",
                placeholders(1, logs.len()),
                self.for_update()
            );
            let mut stored: HashMap<String, u64> = HashMap::new();
            for row in transaction.query_all_raw(self.statement(sql, names())).await? {
                let (through, archived): (i64, Option<i64>) = (row.try_get_by_index(1)?, row.try_get_by_index(2)?);
                stored.insert(row.try_get_by_index(0)?, unsigned(through.max(archived.unwrap_or(0)))?);
            }
            if logs.iter().any(|log| stored.get(&log.instance_id) != Some(&log.through)) {
                return Ok(false);
            }
            let rows: Vec<String> =
                (0..logs.len()).map(|log| format!("(${}, CAST(${} AS BIGINT))", log * 2 + 1, log * 2 + 2)).collect();
            let sql = format!(
                "INSERT INTO audit_index_heads (instance_id, indexed_through) VALUES {} \
                 ON CONFLICT (instance_id) DO UPDATE SET indexed_through = excluded.indexed_through",
                rows.join(",")
            );
            let values = logs.iter().flat_map(|log| [Value::from(log.instance_id.as_str()), signed(log.head).into()]);
            transaction.execute_raw(self.statement(sql, values)).await?;
        }
        Ok(true)
    }

    /// Marks runs that a new one holds; false where they are live no more.
    async fn supersede(&self, transaction: &DatabaseTransaction, runs: &[Run]) -> Result<bool> {
        let list = placeholders(1, runs.len());
        let ids = || runs.iter().map(|run| Value::from(run.id));
        let sql = format!(
            "SELECT run FROM audit_index_runs WHERE run IN ({list}) AND state = {LIVE} ORDER BY run {}",
            self.for_update()
        );
        if transaction.query_all_raw(self.statement(sql, ids())).await?.len() != runs.len() {
            return Ok(false);
        }
        let now = self.now();
        let sql = format!("UPDATE audit_index_runs SET state = {SUPERSEDED}, since = {now} WHERE run IN ({list})");
        transaction.execute_raw(self.statement(sql, ids())).await?;
        Ok(true)
    }

    /// The database's clock, in microseconds, as SQL. Those of replicas may be apart by more than a run is kept.
    fn now(&self) -> &'static str {
        match self.db.engine {
            Engine::Sqlite => "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)",
            Engine::Postgres => "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)",
        }
    }

    fn for_update(&self) -> &'static str {
        match self.db.engine {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR UPDATE",
        }
    }
}

/// The part of a run with the keys of a chunk.
pub(super) fn chunk_part(chunk: u64) -> i64 {
    KEYS + signed(chunk)
}

/// Adds a key to a part of keys.
pub(super) fn push_key(part: &mut Vec<u8>, key: Key) {
    part.extend_from_slice(&key.occurred_at_us.to_be_bytes());
    part.extend_from_slice(key.id.as_bytes());
}

/// The key at a place in a part of keys.
pub(super) fn key_at(part: &[u8], place: usize) -> Option<Key> {
    let key = part.get(place * KEY_BYTES..(place + 1) * KEY_BYTES)?;
    let (time, id) = key.split_first_chunk::<8>()?;
    Some(Key { occurred_at_us: i64::from_be_bytes(*time), id: Uuid::from_slice(id).ok()? })
}

/// All keys of a part of them.
pub(super) fn keys_of(part: &[u8]) -> impl Iterator<Item = Key> {
    (0..part.len() / KEY_BYTES).filter_map(|place| key_at(part, place))
}

/// Collects the keys of a new run, in order, into parts.
#[derive(Debug, Default)]
pub(super) struct KeyBuilder {
    chunk: Vec<u8>,
    fences: Vec<u8>,
    chunks: u64,
}

impl KeyBuilder {
    /// Adds the next key; a part when one is full.
    pub(super) fn push(&mut self, key: Key) -> Option<(i64, Vec<u8>)> {
        if self.chunk.is_empty() {
            push_key(&mut self.fences, key);
        }
        push_key(&mut self.chunk, key);
        (self.chunk.len() == CHUNK as usize * KEY_BYTES).then(|| self.end_chunk())
    }

    fn end_chunk(&mut self) -> (i64, Vec<u8>) {
        self.chunks += 1;
        (chunk_part(self.chunks - 1), std::mem::take(&mut self.chunk))
    }

    /// The parts that are left.
    pub(super) fn finish(mut self) -> Vec<(i64, Vec<u8>)> {
        let mut parts = Vec::new();
        if !self.chunk.is_empty() {
            parts.push(self.end_chunk());
        }
        parts.push((FENCES, self.fences));
        parts
    }
}

/// A part of the index that cannot be read.
pub(super) fn damaged(what: &str) -> Error {
    Error::internal(anyhow::anyhow!("the index holds damaged {what}; it can be made anew from the entries"))
}

#[cfg(test)]
mod tests;
