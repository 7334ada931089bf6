//! Which entries of runs a query may want: bit sets by rank, from few and bulky reads.
//!
//! A term is in one shard of each run, so a list of few values costs few rows a run however many entries there are,
//! and a list of a thousand no more than all shards of its kind. Short lists go first; a run in which nothing is left
//! is asked no more. As ranks are in the order of keys, the range, and the position behind which a page begins, are
//! a range of ranks.

use std::collections::{BTreeMap, HashMap};

use service_core::error::Result;
use uuid::Uuid;

use super::postings::{Places, Posting, Shard, own_part, shard_part};
use super::runs::{CHUNK, FENCES, PAIRS, Run, chunk_part, damaged, keys_of};
use super::{Order, Range, Store};
use crate::event::Key;
use crate::filter::{Filter, SETTLED, Stages};

/// What is asked for.
#[derive(Debug)]
pub(super) struct Query<'a> {
    pub(super) filter: &'a Filter,
    pub(super) order: Order,
    /// The keys inside, half open.
    pub(super) from: Key,
    pub(super) to: Key,
    /// One of each list; short lists first.
    terms: Vec<Vec<u64>>,
    /// Leave out intents whose outcome is there.
    pub(super) settled: bool,
}

impl<'a> Query<'a> {
    /// Of a list that goes on behind `after`.
    pub(super) fn new(filter: &'a Filter, range: Range, order: Order, after: Option<Key>) -> Self {
        let mut from = Key { occurred_at_us: range.start_us, id: Uuid::nil() };
        let mut to = Key { occurred_at_us: range.end_us, id: Uuid::nil() };
        match (order, after) {
            (Order::NewestFirst, Some(after)) => to = to.min(after),
            (Order::OldestFirst, Some(after)) => from = from.max(next_key(after)),
            (_, None) => {}
        }
        let mut terms = filter.terms();
        terms.sort_by_key(Vec::len);
        Self { filter, order, from, to, terms, settled: filter.stages == Stages::Settled }
    }

    /// Whether a key is inside.
    pub(super) fn contains(&self, key: Key) -> bool {
        self.from <= key && key < self.to
    }

    /// Whether a run may have a key inside.
    pub(super) fn overlaps(&self, run: &Run) -> bool {
        self.from < self.to && self.from.occurred_at_us <= run.last_us && run.first_us <= self.to.occurred_at_us
    }

    fn holds(&self, run: &Run) -> bool {
        self.from <= Key { occurred_at_us: run.first_us, id: Uuid::nil() }
            && Key { occurred_at_us: run.last_us, id: Uuid::max() } < self.to
    }
}

/// The least key above.
pub(super) fn next_key(key: Key) -> Key {
    match key.id.as_u128().checked_add(1) {
        Some(id) => Key { id: Uuid::from_u128(id), ..key },
        None => Key { occurred_at_us: key.occurred_at_us.saturating_add(1), id: Uuid::nil() },
    }
}

impl Store {
    /// What a query may want of each run: everything that matches, and of what does not only intents whose outcome is
    /// there; where `settled` are left out, only those whose outcome came late.
    pub(super) async fn candidates(&self, query: &Query<'_>, runs: &[Run], settled: bool) -> Result<Vec<Places>> {
        let mut places: Vec<Places> = runs.iter().map(|run| Places::all(run.entries)).collect();
        let mut lists = &query.terms[..];
        while !lists.is_empty() {
            // As many lists as are read at once, one at least.
            let alive = places.iter().filter(|places| !places.is_empty()).count();
            let (mut count, mut terms) = (0, 0);
            while let Some(list) = lists.get(count) {
                terms += list.len();
                if count > 0 && terms * alive > PAIRS {
                    break;
                }
                count += 1;
            }
            self.narrow(runs, &mut places, &lists[..count]).await?;
            lists = &lists[count..];
        }
        if query.settled && settled {
            self.leave_out_settled(runs, &mut places).await?;
        }
        self.leave_out_outside(query, runs, &mut places).await?;
        Ok(places)
    }

    /// Keeps what has a term of each list.
    async fn narrow(&self, runs: &[Run], places: &mut [Places], lists: &[Vec<u64>]) -> Result<()> {
        // Which shard is wanted for which terms of which lists.
        let mut wants: BTreeMap<(usize, i64), Vec<(usize, u64)>> = BTreeMap::new();
        for (at, run) in runs.iter().enumerate().filter(|(at, _)| !places[*at].is_empty()) {
            for (list, terms) in lists.iter().enumerate() {
                for term in terms {
                    wants.entry((at, shard_part(*term, run.entries))).or_default().push((list, *term));
                }
            }
        }
        let wants: Vec<_> = wants.into_iter().collect();
        let mut found: HashMap<(usize, usize), Places> = HashMap::new();
        let mut apart: Vec<(usize, usize, u64)> = Vec::new();
        for wants in wants.chunks(PAIRS) {
            let pairs: Vec<(i64, i64)> = wants.iter().map(|((at, part), _)| (runs[*at].id, *part)).collect();
            let parts = self.parts(&pairs).await?;
            for (((at, _), wanted), pair) in wants.iter().zip(&pairs) {
                let Some(bytes) = parts.get(pair) else { continue };
                let shard = Shard::read(bytes).ok_or_else(|| damaged("shards"))?;
                for (list, term) in wanted {
                    match shard.find(*term).ok_or_else(|| damaged("shards"))? {
                        Some(Posting::Here(posting)) => add(&mut found, (*at, *list), runs[*at].entries, posting)?,
                        Some(Posting::Apart) => apart.push((*at, *list, *term)),
                        None => {}
                    }
                }
            }
        }
        for apart in apart.chunks(PAIRS) {
            let pairs: Vec<(i64, i64)> = apart.iter().map(|(at, _, term)| (runs[*at].id, own_part(*term))).collect();
            let parts = self.parts(&pairs).await?;
            for ((at, list, _), pair) in apart.iter().zip(&pairs) {
                let posting = parts.get(pair).ok_or_else(|| damaged("postings"))?;
                add(&mut found, (*at, *list), runs[*at].entries, posting)?;
            }
        }
        for (at, places) in places.iter_mut().enumerate().filter(|(_, places)| !places.is_empty()) {
            for list in 0..lists.len() {
                match found.get(&(at, list)) {
                    Some(found) => places.and(found),
                    None => places.clear(),
                }
            }
        }
        Ok(())
    }

    /// Leaves out intents whose outcome was there when their run was last looked at.
    pub(super) async fn leave_out_settled(&self, runs: &[Run], places: &mut [Places]) -> Result<()> {
        let pairs: Vec<(i64, i64)> = runs
            .iter()
            .zip(places.iter())
            .filter(|(_, places)| !places.is_empty())
            .map(|(run, _)| (run.id, own_part(SETTLED)))
            .collect();
        let parts = self.parts(&pairs).await?;
        for (run, places) in runs.iter().zip(places) {
            if let Some(posting) = parts.get(&(run.id, own_part(SETTLED))) {
                let mut settled = Places::none(run.entries);
                settled.add(posting).ok_or_else(|| damaged("postings"))?;
                places.and_not(&settled);
            }
        }
        Ok(())
    }

    async fn leave_out_outside(&self, query: &Query<'_>, runs: &[Run], places: &mut [Places]) -> Result<()> {
        let cut: Vec<usize> =
            (0..runs.len()).filter(|at| !places[*at].is_empty() && !query.holds(&runs[*at])).collect();
        let fences = self.parts(&cut.iter().map(|at| (runs[*at].id, FENCES)).collect::<Vec<_>>()).await?;
        // The chunk in which each bound lies: the last that begins before it.
        let mut bounds = Vec::new();
        for at in cut {
            let id = runs[at].id;
            let fences = fences.get(&(id, FENCES)).ok_or_else(|| damaged("fences"))?;
            let chunk = |bound: Key| (keys_of(fences).take_while(|first| *first < bound).count() as u64).checked_sub(1);
            bounds.push((at, chunk(query.from), chunk(query.to)));
        }
        let mut pairs: Vec<(i64, i64)> = Vec::new();
        for (at, from, to) in &bounds {
            pairs.extend([from, to].into_iter().flatten().map(|chunk| (runs[*at].id, chunk_part(*chunk))));
        }
        let parts = self.parts(&pairs).await?;
        for (at, from, to) in bounds {
            let rank = |chunk: Option<u64>, bound: Key| {
                let Some(chunk) = chunk else { return Ok(0) };
                let keys = parts.get(&(runs[at].id, chunk_part(chunk))).ok_or_else(|| damaged("keys"))?;
                Ok::<_, service_core::error::Error>(
                    chunk * CHUNK + keys_of(keys).take_while(|key| *key < bound).count() as u64,
                )
            };
            places[at].keep(rank(from, query.from)?, rank(to, query.to)?);
        }
        Ok(())
    }
}

fn add(found: &mut HashMap<(usize, usize), Places>, of: (usize, usize), entries: u64, posting: &[u8]) -> Result<()> {
    let places = found.entry(of).or_insert_with(|| Places::none(entries));
    places.add(posting).ok_or_else(|| damaged("postings"))
}

/// The keys of candidates, read in bulk as they are needed.
#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) run: Run,
    pub(super) places: Places,
    /// Where the next candidate is looked for: below it for the newest, from it on for the oldest.
    next: u64,
    /// The next keys, the nearest last.
    keys: Vec<Key>,
    ahead: usize,
}

impl Cursor {
    /// A cursor over candidates of a run.
    pub(super) fn new(run: &Run, places: Places, order: Order) -> Self {
        let next = match order {
            Order::NewestFirst => run.entries,
            Order::OldestFirst => 0,
        };
        Self { run: run.clone(), places, next, keys: Vec::new(), ahead: FIRST_AHEAD }
    }

    /// The nearest, which is then taken.
    pub(super) fn pop(&mut self) -> Option<Key> {
        self.keys.pop()
    }

    /// Whether the next key has to be read.
    pub(super) fn is_dry(&self) -> bool {
        self.keys.is_empty()
    }

    /// The ranks whose keys are to be read next.
    fn ranks(&mut self, order: Order) -> Vec<u64> {
        let mut ranks = Vec::new();
        while ranks.len() < self.ahead {
            let rank = match order {
                Order::NewestFirst => self.places.next_down(self.next),
                Order::OldestFirst => self.places.next_up(self.next),
            };
            let Some(rank) = rank else { break };
            ranks.push(rank);
            self.next = match order {
                Order::NewestFirst => rank,
                Order::OldestFirst => rank + 1,
            };
        }
        self.ahead = (self.ahead * 2).min(MAX_AHEAD);
        ranks
    }
}

/// Keys that are read ahead of their use.
const FIRST_AHEAD: usize = 8;
const MAX_AHEAD: usize = 64;

impl Store {
    /// Reads the next keys of dry cursors.
    pub(super) async fn fill(&self, cursors: &mut [&mut Cursor], order: Order) -> Result<()> {
        let mut wanted: Vec<(i64, u64)> = Vec::new();
        let mut counts = Vec::with_capacity(cursors.len());
        for cursor in cursors.iter_mut() {
            let ranks = cursor.ranks(order);
            counts.push(ranks.len());
            wanted.extend(ranks.into_iter().map(|rank| (cursor.run.id, rank)));
        }
        let mut keys = self.keys_at(&wanted).await?.into_iter();
        for (cursor, count) in cursors.iter_mut().zip(counts) {
            cursor.keys = keys.by_ref().take(count).collect();
            cursor.keys.reverse();
        }
        Ok(())
    }
}
