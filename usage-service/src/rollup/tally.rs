//! The one fold behind every total: adds up sections and rows by group and bucket.
//!
//! It is exact whatever the order and the cut: sums are whole numbers of 128 bits
//! in the end, users and models are sets. So `rows + other = total`, and buckets
//! add up to the summary, by construction.

use super::column::Rows;
use super::distinct::Distinct;
use super::index::{GroupKey, Index};
use super::question::{BATCH, Question, Sieve};
use super::section::{Section, counts};
use super::{FullRow, MEASURES, MODEL, Malformed, OutOfRange, Overlay, USER, measure};
use crate::answer::{Group, Metrics, Ranked, Totals};
use crate::model::{Dimension, Metric, Tokens};

/// The groups that rank highest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranking {
    /// Their keys, best first; places beyond the question's keys are 0.
    pub(crate) chosen: Vec<GroupKey>,
    /// How many groups there are in all.
    pub(crate) groups: u64,
}

/// Finds the groups that rank highest over all buckets.
#[derive(Debug)]
pub(crate) struct Ranker {
    dimensions: Vec<Dimension>,
    sieve: Sieve,
    /// What is summed up: tokens are of four kinds.
    measures: &'static [usize],
    index: Index,
    groups: Vec<GroupKey>,
    sums: Vec<i128>,
}

/// Beside ids that are known, so many are looked up in a table: those that only
/// this answer has met.
const HEADROOM: u32 = 1024;

impl Ranker {
    /// No group yet. The overlay says about how many ids there are.
    pub(crate) fn new(question: &Question, order_by: Metric, overlay: &Overlay) -> Self {
        let mut bounds = [1; 3];
        for (bound, dimension) in bounds.iter_mut().zip(&question.keys) {
            *bound = overlay.len(*dimension).saturating_add(HEADROOM);
        }
        let measures: &[usize] = match order_by {
            Metric::Requests => &[measure::REQUESTS],
            Metric::Tokens => {
                &[measure::INPUT_UNCACHED, measure::INPUT_CACHE_READ, measure::INPUT_CACHE_WRITE, measure::OUTPUT]
            }
            Metric::Cost => &[measure::COST_NANOS],
        };
        Self {
            dimensions: question.keys.clone(),
            sieve: Sieve::new(question),
            measures,
            index: Index::new(bounds),
            groups: Vec::new(),
            sums: Vec::new(),
        }
    }

    /// Adds a segment's section: of the question's cut, or a full one.
    ///
    /// # Errors
    ///
    /// A section that lacks a key that is asked for.
    pub(crate) fn add_section(&mut self, instance: u32, section: &Section) -> Result<(), Malformed> {
        let Self { sieve, measures, index, groups, sums, .. } = self;
        let mut slots = [0; BATCH];
        sieve.each_batch(instance, section, |keys, rows| {
            let mut slot = |key| slot(index, groups, sums, key);
            match keys.single() {
                Some(key) => slots[..rows.len()].fill(slot(key)),
                None => keys.each(rows, |place, key| slots[place] = slot(key)),
            }
            for (column, _) in measures.iter().map(|measure| section.measure(*measure)) {
                if !column.is_zero() {
                    column.each_wide(rows, |place, value| sums[slots[place] as usize] += value);
                }
            }
        })
    }

    /// Adds a row of a delta, or a raw one.
    pub(crate) fn add_row(&mut self, instance: u32, row: &FullRow) {
        if let Some(key) = self.sieve.group(instance, row) {
            let slot = slot(&mut self.index, &mut self.groups, &mut self.sums, key);
            self.sums[slot as usize] += self.measures.iter().map(|at| i128::from(row.measures[*at])).sum::<i128>();
        }
    }

    /// The groups by rank: highest first, ties in the ascending order of the keys'
    /// texts, byte by byte; at most `limit`.
    pub(crate) fn finish(self, overlay: &Overlay, limit: usize) -> Ranking {
        let (rows, groups) = self.finish_with_sums(overlay, limit);
        Ranking { chosen: rows.into_iter().map(|(_, key)| key).collect(), groups }
    }

    /// The same with what they were ranked by, and how many groups there are in all.
    pub(crate) fn finish_with_sums(self, overlay: &Overlay, limit: usize) -> (Vec<(i128, GroupKey)>, u64) {
        let groups = self.groups.len() as u64;
        let mut rows: Vec<(i128, GroupKey)> = self.sums.into_iter().zip(self.groups).collect();
        let compare = |a: &(i128, GroupKey), b: &(i128, GroupKey)| {
            let texts = |key: &GroupKey| {
                let mut texts = [""; 3];
                for ((text, dimension), id) in texts.iter_mut().zip(&self.dimensions).zip(key) {
                    *text = overlay.text(*dimension, *id);
                }
                texts
            };
            b.0.cmp(&a.0).then_with(|| texts(&a.1).cmp(&texts(&b.1)))
        };
        // There may be as many groups as requests: only what is answered is sorted.
        if limit < rows.len() {
            rows.select_nth_unstable_by(limit, compare);
            rows.truncate(limit);
        }
        rows.sort_unstable_by(compare);
        (rows, groups)
    }
}

/// The place of a group's sum; a new one if need be.
#[inline]
fn slot(index: &mut Index, groups: &mut Vec<GroupKey>, sums: &mut Vec<i128>, key: GroupKey) -> u32 {
    // Groups are fewer than rows, and those don't fit into memory before 32 bits.
    let next = groups.len() as u32;
    let slot = index.get_or_insert(key, next);
    if slot == next {
        groups.push(key);
        sums.push(0);
    }
    slot
}

/// Adds up groups, and everything else as one.
#[derive(Debug)]
pub(crate) struct Tally {
    dimensions: Vec<Dimension>,
    sieve: Sieve,
    buckets: usize,
    chosen: Vec<GroupKey>,
    index: Index,
    /// A cell for each bucket and, in it, for each chosen group and all others.
    sums: Sums,
    users: Vec<Distinct>,
    models: Vec<Distinct>,
    /// Whether groups are told apart, and there are others than the chosen.
    grouped: bool,
    others: bool,
}

impl Tally {
    /// Nothing yet. Tells the `chosen` groups apart, and adds all others up as
    /// one; without `chosen` there is only the total. (Without keys everything is
    /// of one group, `[0; 3]`.)
    pub(crate) fn new(question: &Question, chosen: Option<&[GroupKey]>) -> Self {
        let grouped = chosen.is_some();
        let chosen = chosen.unwrap_or_default().to_vec();
        let bounds = std::array::from_fn(|at| chosen.iter().map(|key| key[at].saturating_add(1)).max().unwrap_or(1));
        let mut index = Index::new(bounds);
        for (slot, key) in chosen.iter().enumerate() {
            index.get_or_insert(*key, slot as u32);
        }
        let cells = (chosen.len() + 1) * question.buckets;
        Self {
            dimensions: question.keys.clone(),
            sieve: Sieve::new(question),
            buckets: question.buckets,
            chosen,
            index,
            sums: Sums::new(cells),
            users: vec![Distinct::default(); cells],
            models: vec![Distinct::default(); cells],
            grouped,
            others: false,
        }
    }

    /// Adds a segment's section to a bucket: of the question's cut, or a full one.
    ///
    /// # Errors
    ///
    /// A section that lacks a key that is asked for.
    ///
    /// # Panics
    ///
    /// If there is no such bucket.
    pub(crate) fn add_section(&mut self, bucket: usize, instance: u32, section: &Section) -> Result<(), Malformed> {
        let stride = self.chosen.len() + 1;
        let cells = bucket * stride..(bucket + 1) * stride;
        let Self { sieve, index, sums, grouped, others, .. } = self;
        let (users, models) = (&mut self.users[cells.clone()], &mut self.models[cells.clone()]);
        let last = stride - 1;
        let in_reach: [bool; MEASURES] = std::array::from_fn(|measure| sums.admit(measure, section.measure(measure).1));
        let mut slots = [0; BATCH];
        sieve.each_batch(instance, section, |keys, rows| {
            let slots = &mut slots[..rows.len()];
            let single = if *grouped { keys.single() } else { Some(NOBODY) };
            match single {
                Some(key) => slots.fill(index.get(key).map_or(last, |slot| slot as usize)),
                None => keys.each(rows, |place, key| {
                    slots[place] = index.get(key).map_or(last, |slot| slot as usize);
                }),
            }
            *others |= slots.contains(&last);
            for (measure, near) in in_reach.into_iter().enumerate() {
                sums.add(measure, near, &cells, section, rows, slots);
            }
            for (of, sets) in [(USER, &mut *users), (MODEL, &mut *models)] {
                match (section.sets(of), section.key(of)) {
                    (Some(members), _) => rows.iter().zip(&*slots).for_each(|(row, slot)| {
                        members.add_to(row as usize, &mut sets[*slot]);
                    }),
                    (None, Some(column)) => column.each_id(rows, |place, id| {
                        if counts(of, id) {
                            sets[slots[place]].insert(id);
                        }
                    }),
                    (None, None) => {}
                }
            }
        })
    }

    /// Adds a row of a delta, or a raw one, to a bucket.
    ///
    /// # Panics
    ///
    /// If there is no such bucket.
    pub(crate) fn add_row(&mut self, bucket: usize, instance: u32, row: &FullRow) {
        let Some(key) = self.sieve.group(instance, row) else {
            return;
        };
        let key = if self.grouped { key } else { NOBODY };
        let last = self.chosen.len();
        let slot = self.index.get(key).map_or(last, |slot| slot as usize);
        self.others |= slot == last;
        let cell = bucket * (last + 1) + slot;
        self.sums.add_row(cell, row);
        if counts(USER, row.keys[USER]) {
            self.users[cell].insert(row.keys[USER]);
        }
        self.models[cell].insert(row.keys[MODEL]);
    }

    /// The chosen groups in their order, the others, and the total. `groups` is
    /// how many there are in all: handed on.
    ///
    /// # Errors
    ///
    /// A sum that the answer has no room for.
    pub(crate) fn finish(self, overlay: &Overlay, groups: u64) -> Result<Ranked, OutOfRange> {
        let stride = self.chosen.len() + 1;
        let cells: Vec<Cell> = self
            .users
            .into_iter()
            .zip(self.models)
            .enumerate()
            .map(|(cell, (users, models))| Cell { sums: self.sums.get(cell), users, models })
            .collect();
        let mut total = Vec::with_capacity(self.buckets);
        let mut overall = Cell::default();
        for bucket in cells.chunks(stride) {
            let mut sum = Cell::default();
            bucket.iter().for_each(|cell| sum.add(cell));
            overall.add(&sum);
            total.push(sum.finish()?);
        }
        let mut columns: Vec<Vec<Metrics>> = vec![Vec::with_capacity(self.buckets); stride];
        for (at, cell) in cells.into_iter().enumerate() {
            columns[at % stride].push(cell.finish()?);
        }
        let other = columns.pop().filter(|_| self.grouped && self.others);
        let text = |(dimension, id): (&Dimension, &u32)| overlay.text(*dimension, *id).to_owned();
        let keys = |key: &GroupKey| self.dimensions.iter().zip(key).map(text).collect();
        let rows = self.chosen.iter().zip(columns);
        let rows = rows.map(|(key, buckets)| Group { keys: keys(key), buckets }).collect();
        Ok(Ranked { rows, other, total, overall: overall.finish()?, groups })
    }
}

/// The key under which everything goes when no groups are told apart: none is
/// chosen, so it is among the others.
const NOBODY: GroupKey = [u32::MAX; 3];

/// Sums by measure and cell. They are of 64 bits, and bounds are kept of what
/// they may have come to: before one could pass 63 bits all go over into 128.
#[derive(Debug)]
struct Sums {
    cells: usize,
    near: Vec<i64>,
    bounds: [i64; MEASURES],
    /// Made when it is needed: hardly ever.
    far: Vec<i128>,
}

impl Sums {
    fn new(cells: usize) -> Self {
        Self { cells, near: vec![0; MEASURES * cells], bounds: [0; MEASURES], far: Vec::new() }
    }

    /// Makes room for sums within a bound. Not for those that have none: these
    /// must be added to the far ones.
    fn admit(&mut self, measure: usize, bound: Option<i64>) -> bool {
        let Some(bound) = bound else {
            return false;
        };
        match self.bounds[measure].checked_add(bound) {
            Some(both) => self.bounds[measure] = both,
            None => {
                let range = measure * self.cells..(measure + 1) * self.cells;
                self.make_far();
                for (far, near) in self.far[range.clone()].iter_mut().zip(&mut self.near[range]) {
                    *far += i128::from(std::mem::take(near));
                }
                self.bounds[measure] = bound;
            }
        }
        true
    }

    fn make_far(&mut self) {
        if self.far.is_empty() {
            self.far = vec![0; self.near.len()];
        }
    }

    /// Adds a measure of some rows to the cells of their slots, in 64 bits where
    /// that was admitted.
    fn add(
        &mut self,
        measure: usize,
        near: bool,
        cells: &std::ops::Range<usize>,
        section: &Section,
        rows: &Rows<'_>,
        slots: &[usize],
    ) {
        let (column, _) = section.measure(measure);
        if column.is_zero() {
            return;
        }
        let range = measure * self.cells + cells.start..measure * self.cells + cells.end;
        if !near {
            self.make_far();
            let sums = &mut self.far[range];
            return column.each_wide(rows, |place, value| sums[slots[place]] += value);
        }
        let sums = &mut self.near[range];
        match slots {
            // Runs of one group are the rule where most groups are others.
            [first, ..] if slots.iter().all(|slot| slot == first) => {
                let mut sum = 0;
                column.each(rows, |_, value| sum += value);
                sums[*first] += sum;
            }
            _ => column.each(rows, |place, value| sums[slots[place]] += value),
        }
    }

    fn add_row(&mut self, cell: usize, row: &FullRow) {
        for (measure, value) in row.measures.iter().enumerate().filter(|(_, value)| **value != 0) {
            let at = measure * self.cells + cell;
            if self.admit(measure, value.checked_abs()) {
                self.near[at] += value;
            } else {
                self.make_far();
                self.far[at] += i128::from(*value);
            }
        }
    }

    fn get(&self, cell: usize) -> [i128; MEASURES] {
        std::array::from_fn(|measure| {
            let at = measure * self.cells + cell;
            i128::from(self.near[at]) + self.far.get(at).copied().unwrap_or(0)
        })
    }
}

/// A cell on its way into the answer.
#[derive(Debug, Default)]
struct Cell {
    sums: [i128; MEASURES],
    users: Distinct,
    models: Distinct,
}

impl Cell {
    fn add(&mut self, other: &Self) {
        for (sum, other) in self.sums.iter_mut().zip(other.sums) {
            *sum += other;
        }
        self.users.unite(&other.users);
        self.models.unite(&other.models);
    }

    fn finish(self) -> Result<Metrics, OutOfRange> {
        Ok(Metrics {
            totals: totals(&self.sums)?,
            unique_users: self.users.count(),
            unique_models: self.models.count(),
        })
    }
}

/// Sums as they are answered.
///
/// # Errors
///
/// A count below zero or beyond 64 bits, tokens beyond 63.
pub(crate) fn totals(sums: &[i128; MEASURES]) -> Result<Totals, OutOfRange> {
    let count = |measure: usize| u64::try_from(sums[measure]).map_err(|_| OutOfRange);
    let tokens = |measure: usize| i64::try_from(sums[measure]).map_err(|_| OutOfRange);
    Ok(Totals {
        requests: count(measure::REQUESTS)?,
        failed_requests: count(measure::FAILED_REQUESTS)?,
        tokens: Tokens {
            input_uncached: tokens(measure::INPUT_UNCACHED)?,
            input_cache_read: tokens(measure::INPUT_CACHE_READ)?,
            input_cache_write: tokens(measure::INPUT_CACHE_WRITE)?,
            input_cache_write_1h: tokens(measure::INPUT_CACHE_WRITE_1H)?,
            output: tokens(measure::OUTPUT)?,
            output_reasoning: tokens(measure::OUTPUT_REASONING)?,
        },
        cost_nanos: sums[measure::COST_NANOS],
        unpriced_requests: count(measure::UNPRICED_REQUESTS)?,
        unpriced_tokens: tokens(measure::UNPRICED_TOKENS)?,
    })
}
