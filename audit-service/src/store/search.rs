//! Lists with a filter: candidates from the index and from the scan of what it does not hold yet, in order, each
//! checked again when it is read.
//!
//! ```text
//! blocks, nearest first ──open when they may hold the next──▶ heap of keys ──in order──▶ rows ──check──▶ out
//! entries not yet indexed ──scan, check───────────────────────────▲
//! ```
//!
//! The next key on the heap is the next of the list once every block that may hold a nearer one has been opened. So
//! a page opens few blocks where many entries match, and every block where hardly any does, several at a time.
//!
//! How far the index goes is read first. What is indexed meanwhile is left out of the blocks, for the scan has it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use sea_orm::Value;
use service_core::error::{Error, Result};
use uuid::Uuid;

use super::index::KEY_BYTES;
use super::postings::{Places, any_of, shard};
use super::walk::OPEN_INTENT;
use super::{LogWalk, Order, Range, Row, Store, placeholders, signed, unsigned};
use crate::event::{Entry, Key};
use crate::filter::Filter;

/// Rows that are read at once.
const ROWS: usize = 64;
/// Blocks that are opened at once, at most.
const MAX_BLOCKS: usize = 64;
/// With so few candidates in a block their keys are read from the entries, not from the block's list of all.
const FEW: u64 = 16;
/// Above these a walk over time is quicker than to scan what is not indexed.
const MAX_SCAN_ENTRIES: u64 = 20_000;
const MAX_SCAN_LOGS: usize = 500;

/// A candidate: the nearest is the greatest.
type Candidate = (Rank, usize, u64);
/// A key, turned so that the nearest in the list's order is the greatest.
type Rank = (i64, u128);

/// A block of the index that overlaps the range.
#[derive(Debug)]
struct Block {
    log: usize,
    number: u64,
    /// The nearest time in it, turned like a rank.
    nearest: i64,
}

/// A list by the index.
pub(super) struct Search<'a> {
    filter: &'a Filter,
    terms: Vec<Vec<u64>>,
    range: Range,
    order: Order,
    after: Option<Key>,
    settled: bool,
    /// Instances, and how far their index goes.
    logs: Vec<(String, u64)>,
    /// The farthest first.
    blocks: Vec<Block>,
    open_at_once: usize,
    heap: BinaryHeap<Candidate>,
    rows: std::vec::IntoIter<(Row, Entry)>,
}

impl<'a> Search<'a> {
    /// A search, if the index is of use for this filter; it holds all entries that match and were stored before.
    pub(super) async fn new(
        store: &Store,
        filter: &'a Filter,
        range: Range,
        order: Order,
        after: Option<Key>,
        settled: bool,
    ) -> Result<Option<Self>> {
        let instances = filter.instance_ids.values();
        let terms = filter.terms();
        if terms.is_empty() && instances.is_empty() {
            return Ok(None);
        }
        let logs = store.index_heads(instances).await?;
        let behind = logs.iter().filter(|log| log.through < log.head);
        let scan: u64 = behind.clone().map(|log| log.head - log.through).sum();
        if scan > MAX_SCAN_ENTRIES || behind.count() > MAX_SCAN_LOGS {
            return Ok(None);
        }
        let mut search = Self {
            filter,
            terms,
            range,
            order,
            after,
            settled,
            logs: logs.iter().map(|log| (log.instance_id.clone(), log.through)).collect(),
            blocks: Vec::new(),
            open_at_once: 1,
            heap: BinaryHeap::new(),
            rows: Vec::new().into_iter(),
        };
        search.find_blocks(store).await?;
        for (at, log) in logs.iter().enumerate().filter(|(_, log)| log.through < log.head) {
            search.scan(store, at, LogWalk::new(log.instance_id.as_str(), log.through, u64::MAX)).await?;
        }
        Ok(Some(search))
    }

    /// The next entry of the list.
    pub(super) async fn next(&mut self, store: &Store) -> Result<Option<(Row, Entry)>> {
        loop {
            if let Some(next) = self.rows.next() {
                return Ok(Some(next));
            }
            let mut wanted = Vec::new();
            while wanted.len() < ROWS {
                self.open_nearer(store).await?;
                match self.heap.pop() {
                    Some((_, log, sequence)) => wanted.push((log, sequence)),
                    None => break,
                }
            }
            if wanted.is_empty() {
                return Ok(None);
            }
            self.rows = self.fetch(store, &wanted).await?.into_iter();
        }
    }

    /// Whether so many of all entries are candidates that a walk over all is quicker than to read them one by one.
    pub(super) async fn is_dense(&self, store: &Store) -> Result<bool> {
        let sample = &self.blocks[self.blocks.len().saturating_sub(MAX_BLOCKS)..];
        let candidates: u64 = self.places(store, sample).await?.iter().map(|(_, places)| places.count()).sum();
        let entries = sample.len() as u64 * store.block_entries;
        let ours: u64 = self.logs.iter().map(|(_, through)| through).sum();
        let sum = "SELECT CAST(COALESCE(SUM(next_sequence), 0) AS BIGINT) FROM audit_log_heads";
        let rows = store.read(sum, Vec::new()).await?;
        let all = rows.first().map_or(Ok(0), |row| unsigned(row.try_get_by_index(0)?))?;
        // candidates / entries × ours / all, above one in eight.
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        Ok(share(candidates, entries) * share(ours, all) > 0.125)
    }

    fn rank(&self, key: Key) -> Rank {
        match self.order {
            Order::NewestFirst => (key.occurred_at_us, key.id.as_u128()),
            Order::OldestFirst => (!key.occurred_at_us, !key.id.as_u128()),
        }
    }

    fn is_ahead(&self, key: Key) -> bool {
        self.range.contains(key.occurred_at_us) && self.after.is_none_or(|after| self.rank(key) < self.rank(after))
    }

    async fn find_blocks(&mut self, store: &Store) -> Result<()> {
        // Of what lies behind the position there is no block to open either.
        let mut range = self.range;
        match (self.order, self.after) {
            (Order::NewestFirst, Some(after)) => {
                range.end_us = range.end_us.min(after.occurred_at_us.saturating_add(1))
            }
            (Order::OldestFirst, Some(after)) => range.start_us = range.start_us.max(after.occurred_at_us),
            (_, None) => {}
        }
        let instances = self.filter.instance_ids.values();
        let only = match instances.len() {
            0 => String::new(),
            count => format!("AND instance_id IN ({})", placeholders(3, count)),
        };
        let sql = format!(
            "SELECT instance_id, block, first_occurred_at, last_occurred_at FROM audit_index_blocks \
             WHERE last_occurred_at >= $1 AND first_occurred_at < $2 {only}"
        );
        let mut values: Vec<Value> = vec![range.start_us.into(), range.end_us.into()];
        values.extend(instances.iter().map(|instance| Value::from(instance.as_str())));
        let logs: HashMap<&str, usize> =
            self.logs.iter().enumerate().map(|(at, (instance, _))| (instance.as_str(), at)).collect();
        let mut blocks = Vec::new();
        for row in store.read(sql, values).await? {
            let instance: String = row.try_get_by_index(0)?;
            let nearest = match self.order {
                Order::NewestFirst => row.try_get_by_index(3)?,
                Order::OldestFirst => !row.try_get_by_index::<i64>(2)?,
            };
            // A log that is new since: the scan of nobody, and stored after we were asked.
            if let Some(log) = logs.get(instance.as_str()) {
                blocks.push(Block { log: *log, number: unsigned(row.try_get_by_index(1)?)?, nearest });
            }
        }
        blocks.sort_unstable_by_key(|block| (block.nearest, block.log, Reverse(block.number)));
        self.blocks = blocks;
        Ok(())
    }

    async fn scan(&mut self, store: &Store, log: usize, mut walk: LogWalk) -> Result<()> {
        loop {
            let rows = walk.next(store).await?;
            if rows.is_empty() {
                return Ok(());
            }
            for row in rows {
                if self.is_ahead(row.key) && self.filter.matches(&row.entry()?.event) {
                    self.heap.push((self.rank(row.key), log, row.sequence));
                }
            }
        }
    }

    /// Opens blocks until none is left that may hold a nearer key than the heap's first.
    async fn open_nearer(&mut self, store: &Store) -> Result<()> {
        loop {
            let first = self.heap.peek().map(|((time, _), _, _)| *time);
            match self.blocks.last() {
                Some(block) if first.is_none_or(|first| block.nearest >= first) => {}
                _ => return Ok(()),
            }
            let rest = self.blocks.len().saturating_sub(self.open_at_once);
            let opened = self.blocks.split_off(rest);
            // Where hardly anything matches, more at a time.
            self.open_at_once = (self.open_at_once * 2).min(MAX_BLOCKS);
            for (at, places) in self.places(store, &opened).await? {
                self.push_block(store, &opened[at], &places).await?;
            }
        }
    }

    /// The candidates of blocks that have any, by the block's place in the list.
    async fn places(&self, store: &Store, blocks: &[Block]) -> Result<Vec<(usize, Places)>> {
        let mut found = Vec::new();
        let mut by_log: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, block) in blocks.iter().enumerate() {
            by_log.entry(block.log).or_default().push(at);
        }
        for (log, ats) in by_log {
            let (instance, through) = &self.logs[log];
            let postings = self.postings(store, instance, ats.iter().map(|at| blocks[*at].number)).await?;
            for at in ats {
                let number = blocks[at].number;
                let indexed = through.saturating_sub(number * store.block_entries).min(store.block_entries);
                let mut places = Places::first(indexed);
                for list in &self.terms {
                    places.and(&one_of(list, |shard| postings.get(&(number, shard)).map(Vec::as_slice))?);
                }
                if places.count() > 0 {
                    found.push((at, places));
                }
            }
        }
        Ok(found)
    }

    /// The shards of our terms, of these blocks of a log.
    async fn postings(
        &self,
        store: &Store,
        instance: &str,
        blocks: impl Iterator<Item = u64>,
    ) -> Result<HashMap<(u64, i64), Vec<u8>>> {
        let mut shards: Vec<i64> = self.terms.iter().flatten().copied().map(shard).collect();
        shards.sort_unstable();
        shards.dedup();
        let blocks: Vec<i64> = blocks.map(signed).collect();
        if shards.is_empty() {
            return Ok(HashMap::new());
        }
        let sql = format!(
            "SELECT block, shard, postings FROM audit_index WHERE instance_id = $1 AND shard IN ({}) AND block IN ({})",
            placeholders(2, shards.len()),
            placeholders(2 + shards.len(), blocks.len())
        );
        let mut values = vec![Value::from(instance)];
        values.extend(shards.into_iter().chain(blocks).map(Value::from));
        let posting = |row: &sea_orm::QueryResult| {
            Ok(((unsigned(row.try_get_by_index(0)?)?, row.try_get_by_index(1)?), row.try_get_by_index(2)?))
        };
        store.read(sql, values).await?.iter().map(posting).collect()
    }

    /// Puts the candidates of a block on the heap.
    async fn push_block(&mut self, store: &Store, block: &Block, places: &Places) -> Result<()> {
        let instance = self.logs[block.log].0.as_str();
        let begin = block.number * store.block_entries;
        let keys: Vec<(Key, u64)> = if places.count() <= FEW {
            let sequences: Vec<u64> = places.iter().map(|place| begin + place).collect();
            let sql = format!(
                "SELECT occurred_at, id, sequence FROM audit_entries WHERE instance_id = $1 AND sequence IN ({})",
                placeholders(2, sequences.len())
            );
            let key = |row: &sea_orm::QueryResult| {
                let key = Key { occurred_at_us: row.try_get_by_index(0)?, id: row.try_get_by_index(1)? };
                Ok((key, unsigned(row.try_get_by_index(2)?)?))
            };
            store.read(sql, by_sequence(instance, &sequences)).await?.iter().map(key).collect::<Result<_>>()?
        } else {
            let sql = "SELECT keys FROM audit_index_blocks WHERE instance_id = $1 AND block = $2";
            let rows = store.read(sql, vec![instance.into(), signed(block.number).into()]).await?;
            let keys: Vec<u8> = rows.first().map_or(Ok(Vec::new()), |row| row.try_get_by_index(0))?;
            let key = |place: u64| Some((key_at(&keys, place as usize)?, begin + place));
            places.iter().map(key).collect::<Option<_>>().ok_or_else(|| damaged("keys"))?
        };
        for (key, sequence) in keys {
            if self.is_ahead(key) {
                self.heap.push((self.rank(key), block.log, sequence));
            }
        }
        Ok(())
    }

    /// Reads candidates and checks them; those that match, in the order in which they were asked for.
    async fn fetch(&self, store: &Store, wanted: &[(usize, u64)]) -> Result<Vec<(Row, Entry)>> {
        let mut by_log: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for (log, sequence) in wanted {
            by_log.entry(*log).or_default().push(*sequence);
        }
        let open = if self.settled { OPEN_INTENT } else { "" };
        let columns = Row::COLUMNS;
        let mut found = HashMap::new();
        for (log, sequences) in by_log {
            let list = placeholders(2, sequences.len());
            let sql = format!(
                "SELECT {columns} FROM audit_entries e WHERE e.instance_id = $1 AND e.sequence IN ({list}) {open}"
            );
            for row in store.read(sql, by_sequence(&self.logs[log].0, &sequences)).await? {
                let row = Row::from_result(&row)?;
                let entry = row.entry()?;
                if self.filter.matches(&entry.event) {
                    found.insert((log, row.sequence), (row, entry));
                }
            }
        }
        Ok(wanted.iter().filter_map(|place| found.remove(place)).collect())
    }
}

fn by_sequence(instance: &str, sequences: &[u64]) -> Vec<Value> {
    let sequences = sequences.iter().map(|sequence| Value::from(signed(*sequence)));
    std::iter::once(Value::from(instance)).chain(sequences).collect()
}

/// The places that have any term of a list.
fn one_of<'p>(list: &[u64], postings: impl Fn(i64) -> Option<&'p [u8]>) -> Result<Places> {
    let mut by_shard: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
    for term in list {
        by_shard.entry(shard(*term)).or_default().push(*term);
    }
    let mut found = Places::none();
    for (shard, terms) in by_shard {
        if let Some(bytes) = postings(shard) {
            found.or(&any_of(bytes, &terms).ok_or_else(|| damaged("postings"))?);
        }
    }
    Ok(found)
}

fn key_at(keys: &[u8], place: usize) -> Option<Key> {
    let key = keys.get(place * KEY_BYTES..(place + 1) * KEY_BYTES)?;
    let (time, id) = key.split_first_chunk::<8>()?;
    Some(Key { occurred_at_us: i64::from_be_bytes(*time), id: Uuid::from_slice(id).ok()? })
}

fn damaged(what: &str) -> Error {
    Error::internal(anyhow::anyhow!("the index holds damaged {what}; it can be made anew from the entries"))
}
