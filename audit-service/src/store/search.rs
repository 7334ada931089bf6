//! Lists with a filter: candidates of all runs merged in the order of the list, and what matches of the entries that
//! are in no run yet; each checked again when it is read.
//!
//! ```text
//! runs, nearest first ──open when they may hold the next──▶ candidates ──keys──▶ heap ──in order──▶ rows ──check──▶ out
//! entries in no run ──look, parse, check──────────────────────────────────────────▲
//! ```
//!
//! The next key on the heap is the next of the list once every run that may hold a nearer one has been opened. So a
//! page of what is frequent opens few runs, and what is rare or nowhere costs a few rows for each run, of which there
//! are some thirty for ten million entries.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use sea_orm::Value;
use service_core::error::{Error, Result};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::candidates::{Cursor, Query, next_key};
use super::lines::Lines;
use super::runs::{Run, Snapshot};
use super::settle::OPEN_INTENT;
use super::{Order, Row, Store, placeholders};
use crate::canonical;
use crate::event::{Entry, Key};
use crate::filter::Needles;

/// Rows that are read at once.
const ROWS: usize = 64;
/// Of the entries in no run, so many times as many as are wanted are kept at first: some may be settled.
const SPARE: usize = 2;
/// Runs that are opened at once: first, and at most.
const FIRST_RUNS: usize = 2;
const MAX_RUNS: usize = 16;

/// A key, turned so that the nearest in the list's order is the greatest.
type Rank = (i64, u128);
/// A candidate: of which cursor, if of one.
type Candidate = (Rank, Option<usize>);

/// A list by the index.
pub(super) struct Search<'a> {
    query: Query<'a>,
    snapshot: Snapshot,
    /// Those not opened yet, the farthest first.
    runs: Vec<Run>,
    open_at_once: usize,
    /// Opened runs in which there are candidates.
    cursors: Vec<Cursor>,
    /// Those of which no key was read yet, with the nearest time that one may have; the farthest first.
    unread: Vec<(i64, usize)>,
    read_at_once: usize,
    /// Whether settled intents are left out before rows are read: once many of these were in vain.
    leaves_out_settled: bool,
    heap: BinaryHeap<Candidate>,
    /// The keys, half open, of entries in no run that may match and are not on the heap: the farthest.
    unscanned: Option<(Key, Key)>,
    rows: std::vec::IntoIter<(Row, Entry)>,
    /// How many rows somebody still wants, as far as we know.
    wanted: usize,
}

impl<'a> Search<'a> {
    /// A search in what was there at the moment of `snapshot`, for somebody who wants about `wanted` entries.
    pub(super) async fn new(store: &Store, query: Query<'a>, snapshot: Snapshot, wanted: usize) -> Result<Self> {
        let runs = snapshot.runs.iter().filter(|run| query.overlaps(run)).cloned().collect();
        let unscanned = (query.from < query.to && !snapshot.behind.is_empty()).then_some((query.from, query.to));
        let mut search = Self {
            query,
            snapshot,
            runs,
            open_at_once: FIRST_RUNS,
            cursors: Vec::new(),
            unread: Vec::new(),
            read_at_once: 1,
            leaves_out_settled: false,
            heap: BinaryHeap::new(),
            unscanned,
            rows: Vec::new().into_iter(),
            wanted,
        };
        let order = search.query.order;
        search.runs.sort_unstable_by_key(|run| (nearest(run, order), run.id));
        search.scan(store, wanted.max(ROWS).saturating_mul(SPARE)).await?;
        Ok(search)
    }

    /// The next entry of the list.
    pub(super) async fn next(&mut self, store: &Store) -> Result<Option<(Row, Entry)>> {
        loop {
            if let Some(next) = self.rows.next() {
                return Ok(Some(next));
            }
            self.snapshot.still_holds()?;
            let count = self.wanted.clamp(ROWS / 8, ROWS);
            let mut wanted = Vec::with_capacity(count);
            while wanted.len() < count {
                self.open_nearer(store).await?;
                if self.is_unscanned_next() {
                    self.scan(store, usize::MAX).await?;
                    continue;
                }
                let Some(((_, id), cursor)) = self.heap.pop() else { break };
                wanted.push(match self.query.order {
                    Order::NewestFirst => Uuid::from_u128(id),
                    Order::OldestFirst => Uuid::from_u128(!id),
                });
                if let Some(at) = cursor {
                    self.advance(store, at).await?;
                }
            }
            if wanted.is_empty() {
                return Ok(None);
            }
            let rows = store.matching_of(&self.query, &wanted).await?;
            self.wanted = self.wanted.saturating_sub(rows.len());
            if rows.len() * 2 < wanted.len() {
                self.leave_out_settled(store).await?;
            }
            self.rows = rows.into_iter();
        }
    }

    fn rank(&self, key: Key) -> Rank {
        match self.query.order {
            Order::NewestFirst => (key.occurred_at_us, key.id.as_u128()),
            Order::OldestFirst => (!key.occurred_at_us, !key.id.as_u128()),
        }
    }

    /// Puts what matches of the entries that are in no run on the heap; if it is more than `most`, the nearest.
    ///
    /// Once so many are found, the database leaves out what is farther than they are: a page that is full soon costs
    /// a look at the times of the rest.
    async fn scan(&mut self, store: &Store, most: usize) -> Result<()> {
        let Some((from, to)) = self.unscanned.take() else { return Ok(()) };
        let mut needles = Needles::new(self.query.filter);
        let last_us = |(_, to): (Key, Key)| to.occurred_at_us;
        let first_us = |(from, _): (Key, Key)| from.occurred_at_us;
        let mut near = (from, to);
        let order = self.query.order;
        let mut next = spawn_next(store, Lines::between(&self.snapshot.behind, first_us(near), last_us(near), order));
        let mut found: BinaryHeap<Reverse<Rank>> = BinaryHeap::new();
        loop {
            let (mut lines, text) = next.await.map_err(Error::internal)?;
            let Some(text) = text? else { break };
            // The next are on their way while these are looked at.
            lines.narrow(first_us(near), last_us(near));
            next = spawn_next(store, lines);
            for line in text.lines().filter(|line| needles.may_match(line)) {
                let event = canonical::parse(line).map_err(Error::internal)?.event;
                let key = Key { occurred_at_us: event.occurred_at_us, id: event.id };
                if key < near.0 || near.1 <= key || !self.query.filter.matches(&event) {
                    continue;
                }
                found.push(Reverse(self.rank(key)));
                if found.len() > most {
                    found.pop();
                    if let Some(Reverse(farthest)) = found.peek() {
                        (near, self.unscanned) = self.parted((from, to), *farthest);
                    }
                }
            }
        }
        self.heap.extend(found.into_iter().map(|Reverse(rank)| (rank, None)));
        Ok(())
    }

    /// The keys as near as a rank, and those farther.
    fn parted(&self, (from, to): (Key, Key), (time, id): Rank) -> ((Key, Key), Option<(Key, Key)>) {
        match self.query.order {
            Order::NewestFirst => {
                let farthest = Key { occurred_at_us: time, id: Uuid::from_u128(id) };
                ((farthest, to), Some((from, farthest)))
            }
            Order::OldestFirst => {
                let behind = next_key(Key { occurred_at_us: !time, id: Uuid::from_u128(!id) });
                ((from, behind), Some((behind, to)))
            }
        }
    }

    /// Whether what was left out of a scan may hold the next.
    fn is_unscanned_next(&self) -> bool {
        let Some((from, to)) = self.unscanned else { return false };
        let first = self.heap.peek().map(|(rank, _)| *rank);
        first.is_none_or(|first| match self.query.order {
            Order::NewestFirst => first < self.rank(to),
            Order::OldestFirst => first < self.rank(from),
        })
    }

    /// Opens runs, and reads their keys, until none is left that may hold a nearer key than the heap's first.
    async fn open_nearer(&mut self, store: &Store) -> Result<()> {
        let order = self.query.order;
        loop {
            let first = self.heap.peek().map(|((time, _), _)| *time);
            let run = self.runs.last().map(|run| nearest(run, order));
            let unread = self.unread.last().map(|(nearest, _)| *nearest);
            if run.max(unread).is_none_or(|nearest| first.is_some_and(|first| nearest < first)) {
                return Ok(());
            }
            if run > unread { self.open(store).await? } else { self.read_keys(store).await? }
        }
    }

    /// Finds the candidates of the nearest runs.
    async fn open(&mut self, store: &Store) -> Result<()> {
        let order = self.query.order;
        let opened = self.runs.split_off(self.runs.len().saturating_sub(self.open_at_once));
        // Where hardly anything matches, more at a time.
        self.open_at_once = (self.open_at_once * 2).min(MAX_RUNS);
        let places = store.candidates(&self.query, &opened, self.leaves_out_settled).await?;
        for (run, places) in opened.iter().zip(places).filter(|(_, places)| !places.is_empty()) {
            self.unread.push((nearest(run, order), self.cursors.len()));
            self.cursors.push(Cursor::new(run, places, order));
        }
        self.unread.sort_unstable();
        Ok(())
    }

    /// Reads the first keys of the nearest candidates.
    async fn read_keys(&mut self, store: &Store) -> Result<()> {
        let chosen = self.unread.split_off(self.unread.len().saturating_sub(self.read_at_once));
        self.read_at_once = (self.read_at_once * 2).min(MAX_RUNS);
        let chosen: Vec<usize> = chosen.into_iter().map(|(_, at)| at).collect();
        let cursors = self.cursors.iter_mut().enumerate().filter(|(at, _)| chosen.contains(at));
        store.fill(&mut cursors.map(|(_, cursor)| cursor).collect::<Vec<_>>(), self.query.order).await?;
        chosen.into_iter().for_each(|at| self.push_next(at));
        Ok(())
    }

    /// Leaves settled intents out of what is left.
    async fn leave_out_settled(&mut self, store: &Store) -> Result<()> {
        if self.query.settled && !self.leaves_out_settled {
            self.leaves_out_settled = true;
            for cursor in &mut self.cursors {
                store
                    .leave_out_settled(std::slice::from_ref(&cursor.run), std::slice::from_mut(&mut cursor.places))
                    .await?;
            }
        }
        Ok(())
    }

    /// Puts the next candidate of a cursor on the heap.
    async fn advance(&mut self, store: &Store, at: usize) -> Result<()> {
        if self.cursors[at].is_dry() {
            store.fill(&mut [&mut self.cursors[at]], self.query.order).await?;
        }
        self.push_next(at);
        Ok(())
    }

    fn push_next(&mut self, at: usize) {
        if let Some(key) = self.cursors[at].pop() {
            self.heap.push((self.rank(key), Some(at)));
        }
    }
}

/// Reads the next lines, whether or not somebody waits.
fn spawn_next(store: &Store, mut lines: Lines) -> JoinHandle<(Lines, Result<Option<String>>)> {
    let store = store.clone();
    tokio::spawn(async move {
        let text = lines.next(&store).await;
        (lines, text)
    })
}

/// The nearest time in a run, turned like a rank.
fn nearest(run: &Run, order: Order) -> i64 {
    match order {
        Order::NewestFirst => run.last_us,
        Order::OldestFirst => !run.first_us,
    }
}

impl Store {
    /// Of these entries, those that match, in the same order.
    async fn matching_of(&self, query: &Query<'_>, ids: &[Uuid]) -> Result<Vec<(Row, Entry)>> {
        let open = if query.settled { OPEN_INTENT } else { "" };
        let mut found = HashMap::with_capacity(ids.len());
        for row in self.rows_of(ids, open).await? {
            let entry = row.entry()?;
            if query.filter.matches(&entry.event) {
                found.insert(row.key.id, (row, entry));
            }
        }
        Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
    }

    /// The entries with these ids, in no order.
    pub(super) async fn rows_of(&self, ids: &[Uuid], only: &str) -> Result<Vec<Row>> {
        let Some(last) = ids.last() else { return Ok(Vec::new()) };
        // Few sizes, so that the statements stay prepared.
        let size = ids.len().next_power_of_two();
        let columns = Row::COLUMNS;
        let sql = format!("SELECT {columns} FROM audit_entries e WHERE e.id IN ({}) {only}", placeholders(1, size));
        let ids = ids.iter().chain(std::iter::repeat_n(last, size - ids.len())).map(|id| Value::from(*id));
        self.read(sql, ids.collect()).await?.iter().map(Row::from_result).collect()
    }
}
