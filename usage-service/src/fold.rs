//! The one fold behind every total: summary, breakdown and series.
//!
//! Storage hands over *cells*: sums of requests that agree in bucket, group keys,
//! user, model and in whether they have a price. The fold adds cells up into
//! groups and buckets. It is exact whatever the order and the cut of the cells:
//! counts and money are integers (money in `i128`), and distinct users and models
//! are sets. So `rows + other = total`, and buckets add up to the summary, by
//! construction: they are sums of the same cells.

use std::collections::HashMap;

use crate::model::{Metric, Tokens};

/// The sums of a set of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// All requests.
    pub requests: u64,
    /// Those with another status than OK.
    pub failed_requests: u64,
    /// Tokens by kind. A sum stays in range for 9,000,000,000 requests of the
    /// largest size.
    pub tokens: Tokens,
    /// The cost of all priced requests.
    pub cost_nanos: i128,
    /// Requests without a known price.
    pub unpriced_requests: u64,
    /// Their tokens.
    pub unpriced_tokens: i64,
}

impl Totals {
    /// Adds the sums of other requests.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed_requests += other.failed_requests;
        self.tokens.input_uncached += other.tokens.input_uncached;
        self.tokens.input_cache_read += other.tokens.input_cache_read;
        self.tokens.input_cache_write += other.tokens.input_cache_write;
        self.tokens.input_cache_write_1h += other.tokens.input_cache_write_1h;
        self.tokens.output += other.tokens.output;
        self.tokens.output_reasoning += other.tokens.output_reasoning;
        self.cost_nanos += other.cost_nanos;
        self.unpriced_requests += other.unpriced_requests;
        self.unpriced_tokens += other.unpriced_tokens;
    }

    /// What a ranking compares.
    pub fn metric(&self, metric: Metric) -> i128 {
        match metric {
            Metric::Requests => i128::from(self.requests),
            Metric::Tokens => i128::from(self.tokens.total()),
            Metric::Cost => self.cost_nanos,
        }
    }
}

/// The totals of a set of requests, as they are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metrics {
    /// The sums.
    pub totals: Totals,
    /// Distinct users; requests without a user count for none.
    pub unique_users: u64,
    /// Distinct served models.
    pub unique_models: u64,
}

/// The sums of requests that agree in everything an answer tells apart.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    /// Which bucket; 0 where there is one.
    pub bucket: usize,
    /// The group's keys.
    pub keys: &'a [&'a str],
    /// Their user; empty for none.
    pub user: &'a str,
    /// Their served model.
    pub model: &'a str,
    /// Their sums.
    pub totals: Totals,
}

/// A set of small numbers that is only ever added to and counted. A vector that
/// is sorted now and then: a hash set for each point of a series would cost ten
/// times the memory.
#[derive(Debug, Clone, Default)]
struct Distinct {
    values: Vec<u32>,
    compact_at: usize,
}

impl Distinct {
    fn insert(&mut self, value: u32) {
        self.values.push(value);
        if self.values.len() > self.compact_at {
            self.compact();
        }
    }

    fn extend(&mut self, other: &Self) {
        self.values.extend_from_slice(&other.values);
        if self.values.len() > self.compact_at {
            self.compact();
        }
    }

    fn compact(&mut self) {
        self.values.sort_unstable();
        self.values.dedup();
        self.compact_at = (self.values.len() * 2).max(32);
    }

    fn count(mut self) -> u64 {
        self.compact();
        self.values.len() as u64
    }
}

/// Sums and sets of one group in one bucket.
#[derive(Debug, Clone, Default)]
struct Accumulator {
    totals: Totals,
    users: Distinct,
    models: Distinct,
}

impl Accumulator {
    fn merge(&mut self, other: &Self) {
        self.totals.add(&other.totals);
        self.users.extend(&other.users);
        self.models.extend(&other.models);
    }

    fn finish(self) -> Metrics {
        Metrics { totals: self.totals, unique_users: self.users.count(), unique_models: self.models.count() }
    }
}

/// Texts as numbers, so that sets and keys are small.
#[derive(Debug, Default)]
struct Interner {
    numbers: HashMap<Box<str>, u32>,
}

impl Interner {
    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        // Four thousand million distinct texts don't fit into memory.
        let number = self.numbers.len() as u32;
        self.numbers.insert(text.into(), number);
        number
    }

    /// The texts by number.
    fn into_texts(self) -> Vec<Box<str>> {
        let mut texts: Vec<(u32, Box<str>)> = self.numbers.into_iter().map(|(text, number)| (number, text)).collect();
        texts.sort_unstable_by_key(|(number, _)| *number);
        texts.into_iter().map(|(_, text)| text).collect()
    }
}

/// A group with its totals in every bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// A value for each dimension.
    pub keys: Vec<String>,
    /// One a bucket.
    pub buckets: Vec<Metrics>,
}

/// The groups that rank highest, all others, and everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranked {
    /// The groups that rank highest, best first.
    pub rows: Vec<Group>,
    /// All others together; none when there are none.
    pub other: Option<Vec<Metrics>>,
    /// Everything, one a bucket.
    pub total: Vec<Metrics>,
    /// Everything, all buckets together.
    pub overall: Metrics,
    /// How many groups there are in all.
    pub groups: u64,
}

/// Most keys a cell has.
const MAX_KEYS: usize = 3;
type Key = [u32; MAX_KEYS];

/// Which groups are told apart.
#[derive(Debug)]
enum Groups {
    /// All that come.
    All,
    /// Those that rank highest, found before; the rest is `other`.
    Chosen,
}

/// Adds cells up.
#[derive(Debug)]
pub struct Fold {
    buckets: usize,
    key_count: usize,
    groups: Groups,
    texts: Interner,
    users: Interner,
    models: Interner,
    index: HashMap<Key, usize>,
    rows: Vec<Vec<Accumulator>>,
    other: Option<Vec<Accumulator>>,
}

impl Fold {
    /// A fold over so many buckets and keys (at most three), one group for each
    /// set of keys that comes.
    pub fn new(buckets: usize, key_count: usize) -> Self {
        debug_assert!(key_count <= MAX_KEYS);
        Self {
            buckets,
            key_count,
            groups: Groups::All,
            texts: Interner::default(),
            users: Interner::default(),
            models: Interner::default(),
            index: HashMap::new(),
            rows: Vec::new(),
            other: None,
        }
    }

    /// A fold that tells only these groups apart and adds the rest up as `other`.
    pub fn of_groups(buckets: usize, chosen: &[Vec<String>]) -> Self {
        let mut fold = Self::new(buckets, chosen.first().map_or(0, Vec::len));
        for keys in chosen {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let key = fold.key(&keys);
            fold.index.insert(key, fold.rows.len());
            fold.rows.push(vec![Accumulator::default(); buckets]);
        }
        fold.groups = Groups::Chosen;
        fold
    }

    fn key(&mut self, keys: &[&str]) -> Key {
        let mut key = [0; MAX_KEYS];
        for (slot, text) in key.iter_mut().zip(keys) {
            *slot = self.texts.number(text);
        }
        key
    }

    /// The row of a group. Of keys that are in none of the chosen groups nothing
    /// is kept: there may be any number of them.
    fn row(&mut self, keys: &[&str]) -> Option<usize> {
        match self.groups {
            Groups::All => {
                let key = self.key(keys);
                let next = self.rows.len();
                let row = *self.index.entry(key).or_insert(next);
                if row == next {
                    self.rows.push(vec![Accumulator::default(); self.buckets]);
                }
                Some(row)
            }
            Groups::Chosen => {
                let mut key = [0; MAX_KEYS];
                for (slot, text) in key.iter_mut().zip(keys) {
                    *slot = *self.texts.numbers.get(*text)?;
                }
                self.index.get(&key).copied()
            }
        }
    }

    /// Adds one cell.
    pub fn add(&mut self, cell: &Cell<'_>) {
        let row = self.row(cell.keys);
        let buckets = match row {
            Some(row) => &mut self.rows[row],
            None => self.other.get_or_insert_with(|| vec![Accumulator::default(); self.buckets]),
        };
        let into = &mut buckets[cell.bucket];
        into.totals.add(&cell.totals);
        if !cell.user.is_empty() {
            into.users.insert(self.users.number(cell.user));
        }
        into.models.insert(self.models.number(cell.model));
    }

    /// The totals of everything, one a bucket.
    pub fn totals(self) -> Vec<Metrics> {
        let mut total = vec![Accumulator::default(); self.buckets];
        for row in self.rows.iter().chain(&self.other) {
            merge(&mut total, row);
        }
        finish(total)
    }

    /// The groups by rank: by the metric over all buckets, highest first, ties in
    /// the ascending order of the keys; at most `limit`, the rest as `other`.
    pub fn rank(self, order_by: Metric, limit: usize) -> Ranked {
        let texts = self.texts.into_texts();
        let mut rows: Vec<(i128, Vec<&str>, usize)> = self
            .index
            .iter()
            .map(|(key, row)| {
                let keys = key[..self.key_count].iter().map(|number| &*texts[*number as usize]).collect();
                let metric = self.rows[*row].iter().map(|bucket| bucket.totals.metric(order_by)).sum();
                (metric, keys, *row)
            })
            .collect();
        rows.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));

        let groups = rows.len() as u64;
        let mut accumulators: Vec<Option<Vec<Accumulator>>> = self.rows.into_iter().map(Some).collect();
        let mut total = vec![Accumulator::default(); self.buckets];
        let mut other = self.other;
        if let Some(other) = &other {
            merge(&mut total, other);
        }
        let mut ranked = Vec::with_capacity(rows.len().min(limit));
        for (place, (_, keys, row)) in rows.into_iter().enumerate() {
            // Each row is in the index once.
            let Some(buckets) = accumulators[row].take() else {
                continue;
            };
            merge(&mut total, &buckets);
            if place < limit {
                ranked.push(Group { keys: keys.into_iter().map(str::to_owned).collect(), buckets: finish(buckets) });
            } else {
                let other = other.get_or_insert_with(|| vec![Accumulator::default(); self.buckets]);
                merge(other, &buckets);
            }
        }
        let mut overall = Accumulator::default();
        for bucket in &total {
            overall.merge(bucket);
        }
        Ranked { rows: ranked, other: other.map(finish), total: finish(total), overall: overall.finish(), groups }
    }
}

fn merge(into: &mut [Accumulator], from: &[Accumulator]) {
    for (into, from) in into.iter_mut().zip(from) {
        into.merge(from);
    }
}

fn finish(buckets: Vec<Accumulator>) -> Vec<Metrics> {
    buckets.into_iter().map(Accumulator::finish).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell<'a>(keys: &'a [&'a str], user: &'a str, model: &'a str, cost: i128) -> Cell<'a> {
        Cell { bucket: 0, keys, user, model, totals: Totals { requests: 1, cost_nanos: cost, ..Totals::default() } }
    }

    #[test]
    fn rows_and_other_are_the_total() {
        let mut fold = Fold::new(1, 1);
        for (team, user, model, cost) in
            [("a", "u1", "m1", 5), ("b", "u1", "m2", 5), ("c", "u2", "m1", 1), ("d", "", "m3", 0)]
        {
            fold.add(&cell(&[team], user, model, cost));
        }
        let ranked = fold.rank(Metric::Cost, 2);
        let keys: Vec<_> = ranked.rows.iter().map(|row| row.keys[0].as_str()).collect();
        assert_eq!(keys, ["a", "b"], "ties are in the order of the keys");
        let other = ranked.other.expect("two groups are left")[0];
        assert_eq!((other.unique_users, other.unique_models), (1, 2));
        assert_eq!(other.totals.cost_nanos, 1);
        let total = ranked.total[0];
        assert_eq!((total.unique_users, total.unique_models), (2, 3));
        assert_eq!((total.totals.requests, total.totals.cost_nanos), (4, 11));
        assert_eq!(ranked.groups, 4);
    }

    #[test]
    fn chosen_groups_keep_their_buckets_and_the_rest_is_other() {
        let chosen = [vec!["x".to_owned()]];
        let mut fold = Fold::of_groups(2, &chosen);
        fold.add(&cell(&["y"], "u", "m", 100));
        assert_eq!(fold.texts.numbers.len(), 1, "memory doesn't follow the other groups");
        fold.add(&Cell { bucket: 1, ..cell(&["x"], "u", "m", 1) });
        let ranked = fold.rank(Metric::Cost, 1);
        let costs =
            |buckets: &[Metrics]| -> Vec<i128> { buckets.iter().map(|bucket| bucket.totals.cost_nanos).collect() };
        assert_eq!(costs(&ranked.rows[0].buckets), [0, 1]);
        assert_eq!(costs(&ranked.other.expect("y")), [100, 0]);
        assert_eq!(costs(&ranked.total), [100, 1]);
    }

    #[test]
    fn distinct_counts_survive_many_repeats() {
        let mut distinct = Distinct::default();
        for round in 0..10_000_u32 {
            distinct.insert(round % 77);
            assert!(distinct.values.len() <= 200, "memory follows the distinct values");
        }
        assert_eq!(distinct.count(), 77);
    }
}
