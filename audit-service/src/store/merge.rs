//! Many small runs into a greater one, so that a search has few to look into.
//!
//! ```text
//! entries of a run   ── less than a block ──┬── 8 blocks ──┬── 64 blocks ──┬── more: left as it is
//! runs of a class       8 become one        │  8 become one │  8 become one │
//! ```
//!
//! A merge never has all of its runs in memory: keys are merged as they are read, and then the terms, some shards of
//! each run at a time. What it holds throughout is the new rank of each entry.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use service_core::error::Result;

use super::Store;
use super::index::settled_part;
use super::postings::{Posting, Shard, ShardBuilder, each_rank, own_part, shard_groups, shards_of};
use super::runs::{CHUNK, KeyBuilder, Origin, PAIRS, Run, RunWriter, chunk_part, damaged, keys_of};
use crate::event::Key;
use crate::filter::Kind;

/// Runs of a class that are made into one.
const FAN: usize = 8;
/// How many a class may have while there are entries to index, for that should not wait.
const MAX_RUNS: usize = 3 * FAN;
/// Classes that are merged.
const CLASSES: u32 = 3;
/// Entries whose shards are read at once, about.
const SHARDS_OF: u64 = 65_536;
/// Parts of keys that are read at once, of a run.
const CHUNKS: u64 = 8;

/// The runs that should be merged next, if any; `busy` while there is something to index.
pub(super) fn due(runs: &[Run], block_entries: u64, busy: bool) -> Option<Vec<Run>> {
    let crowd = if busy { MAX_RUNS } else { FAN };
    (0..CLASSES).find_map(|class| {
        let bound = |class: u32| block_entries * (FAN as u64).pow(class);
        let least = if class == 0 { 0 } else { bound(class - 1) };
        let members: Vec<&Run> = runs.iter().filter(|run| (least..bound(class)).contains(&run.entries)).collect();
        if members.len() < crowd {
            return None;
        }
        // The oldest, until they make a run of the next class: so none grows without bounds.
        let mut entries = 0;
        let merged = members.into_iter().take(FAN).take_while(|run| {
            let wanted = entries < bound(class);
            entries += run.entries;
            wanted
        });
        Some(merged.cloned().collect())
    })
}

impl Store {
    /// Makes one run of several; false where another replica was quicker.
    pub(super) async fn merge(&self, runs: &[Run]) -> Result<bool> {
        let mut writer = RunWriter::new(self);
        let ranks = self.merge_keys(runs, &mut writer).await?;
        let mut unsettled = 0;
        let mut settled = Vec::new();
        for (run, ranks) in runs.iter().zip(&ranks) {
            let (own, open) = self.settled_now(run).await?;
            unsettled += open;
            settled.extend(own.into_iter().filter_map(|rank| ranks.get(rank as usize)));
        }
        writer.push(settled_part(settled)).await?;
        let entries = runs.iter().map(|run| run.entries).sum();
        let mut shards = ShardBuilder::new(entries);
        for kind in Kind::OF_ENTRIES {
            let most = (entries / SHARDS_OF).max(1).next_power_of_two();
            let groups = shard_groups(kind, runs.iter().map(|run| run.entries)).min(most);
            for group in 0..groups {
                self.merge_shards(runs, &ranks, (kind, groups, group), &mut shards).await?;
                writer.push(shards.take()).await?;
                tokio::task::yield_now().await;
            }
        }
        writer.push(shards.finish()).await?;
        let first_us = runs.iter().map(|run| run.first_us).min().unwrap_or(0);
        let last_us = runs.iter().map(|run| run.last_us).max().unwrap_or(0);
        writer.finish(&Run { id: 0, entries, first_us, last_us, unsettled }, Origin::Runs(runs)).await
    }

    /// Writes the keys of all runs in order; the new rank of each entry, by run and rank.
    async fn merge_keys(&self, runs: &[Run], writer: &mut RunWriter<'_>) -> Result<Vec<Vec<u32>>> {
        let mut readers: Vec<KeyReader> = runs.iter().map(KeyReader::new).collect();
        let mut ranks: Vec<Vec<u32>> = runs.iter().map(|run| Vec::with_capacity(run.entries as usize)).collect();
        let mut heap: BinaryHeap<Reverse<(Key, usize)>> = BinaryHeap::new();
        for (at, reader) in readers.iter_mut().enumerate() {
            heap.extend(reader.next(self).await?.map(|key| Reverse((key, at))));
        }
        let mut keys = KeyBuilder::default();
        let mut next = 0;
        while let Some(Reverse((key, at))) = heap.pop() {
            ranks[at].push(next);
            next += 1;
            if let Some(part) = keys.push(key) {
                writer.push([part]).await?;
                tokio::task::yield_now().await;
            }
            heap.extend(readers[at].next(self).await?.map(|key| Reverse((key, at))));
        }
        writer.push(keys.finish()).await?;
        match runs.iter().zip(&ranks).all(|(run, ranks)| run.entries == ranks.len() as u64) {
            true => Ok(ranks),
            false => Err(damaged("keys")),
        }
    }

    /// Merges a group of the shards of a kind.
    async fn merge_shards(
        &self,
        runs: &[Run],
        ranks: &[Vec<u32>],
        (kind, groups, group): (Kind, u64, u64),
        shards: &mut ShardBuilder,
    ) -> Result<()> {
        let mut parts = Vec::new();
        for (at, run) in runs.iter().enumerate() {
            let (from, to) = shards_of(kind, run.entries, groups, group);
            parts.extend(self.parts_between(run.id, from, to).await?.into_iter().map(|(_, bytes)| (at, bytes)));
        }
        let mut postings: Vec<(u64, usize, Posting<'_>)> = Vec::new();
        let mut apart: Vec<(i64, i64)> = Vec::new();
        for (at, bytes) in &parts {
            for found in Shard::read(bytes).ok_or_else(|| damaged("shards"))?.iter() {
                let (term, posting) = found.ok_or_else(|| damaged("shards"))?;
                if posting == Posting::Apart {
                    apart.push((runs[*at].id, own_part(term)));
                }
                postings.push((term, *at, posting));
            }
        }
        let mut large: HashMap<(i64, i64), Vec<u8>> = HashMap::new();
        for apart in apart.chunks(PAIRS) {
            large.extend(self.parts(apart).await?);
        }
        postings.sort_unstable_by_key(|(term, at, _)| (*term, *at));
        let mut of_term: Vec<u32> = Vec::new();
        for same in postings.chunk_by(|a, b| a.0 == b.0) {
            of_term.clear();
            for (term, at, posting) in same {
                let bytes = match posting {
                    Posting::Here(bytes) => *bytes,
                    Posting::Apart => large.get(&(runs[*at].id, own_part(*term))).ok_or_else(|| damaged("postings"))?,
                };
                let mut inside = true;
                each_rank(bytes, |rank| match ranks[*at].get(rank as usize) {
                    Some(rank) => of_term.push(*rank),
                    None => inside = false,
                })
                .filter(|()| inside)
                .ok_or_else(|| damaged("postings"))?;
            }
            of_term.sort_unstable();
            shards.push(same[0].0, &of_term);
        }
        Ok(())
    }
}

/// Reads the keys of a run in order.
struct KeyReader {
    run: i64,
    chunks: u64,
    next_chunk: u64,
    keys: std::vec::IntoIter<Key>,
}

impl KeyReader {
    fn new(run: &Run) -> Self {
        Self { run: run.id, chunks: run.entries.div_ceil(CHUNK), next_chunk: 0, keys: Vec::new().into_iter() }
    }

    async fn next(&mut self, store: &Store) -> Result<Option<Key>> {
        if let Some(key) = self.keys.next() {
            return Ok(Some(key));
        }
        let end = self.chunks.min(self.next_chunk + CHUNKS);
        if self.next_chunk == end {
            return Ok(None);
        }
        let parts = store.parts_between(self.run, chunk_part(self.next_chunk), chunk_part(end)).await?;
        self.next_chunk = end;
        self.keys = parts.iter().flat_map(|(_, bytes)| keys_of(bytes)).collect::<Vec<_>>().into_iter();
        Ok(self.keys.next())
    }
}
