//! What a producer's numbers cover: each from the first asked for to the last is received, dropped or missing.
//!
//! ```text
//! received   0‥4      8‥9                      the stored blocks, in their order
//! dropped         5‥6   9‥10                   what the producer reports, in any order, also twice
//! covered    r r r r r d d m r r d             received wins over dropped; the rest is missing
//! ```
//!
//! Blocks come one by one, and no more of them is kept than counts and the first ranges: memory is bounded whatever
//! the numbers are. Numbers between two blocks are never counted one by one: they may be most of 2⁶⁴.

use roaring::RoaringBitmap;

use super::Numbers;

/// Ranges of a kind that are shown.
pub const MAX_RANGES: usize = 100;

/// Numbers of one kind, as they come: in order, and none twice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges {
    /// How many numbers.
    pub count: u64,
    /// The first of their ranges, both ends included.
    pub shown: Vec<(u64, u64)>,
    /// Whether there are others.
    pub more: bool,
    /// The lowest and the highest number.
    pub ends: Option<(u64, u64)>,
}

impl Ranges {
    fn push(&mut self, first: u64, last: u64) {
        // All 2⁶⁴ of them would be one too many.
        self.count = self.count.saturating_add(last - first).saturating_add(1);
        self.ends = Some((self.ends.map_or(first, |(lowest, _)| lowest), last));
        let has_room = self.shown.len() < MAX_RANGES;
        match self.shown.last_mut() {
            Some(range) if range.1.checked_add(1) == Some(first) => range.1 = last,
            _ if has_room => self.shown.push((first, last)),
            _ => self.more = true,
        }
    }
}

/// What became of the numbers of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Covered {
    /// Their events are stored.
    pub received: Ranges,
    /// Nothing is known of them.
    pub missing: Ranges,
    /// Their producer has dropped them, and said so.
    pub dropped: Ranges,
    /// The last number that was looked at, if any was.
    pub through: Option<u64>,
}

/// The same, while blocks come.
#[derive(Debug)]
pub struct Covering {
    /// Disjoint, in order.
    dropped: Vec<(u64, u64)>,
    /// The number that is looked at next; none when the last one was.
    next: Option<u64>,
    last: u64,
    covered: Covered,
}

impl Covering {
    /// Begins to look at the numbers from `first` through `last`, of which some were dropped.
    pub fn new(first: u64, last: u64, mut dropped: Vec<(u64, u64)>) -> Self {
        dropped.sort_unstable();
        dropped.dedup_by(|next, range| {
            let joined = next.0 <= range.1.saturating_add(1);
            if joined {
                range.1 = range.1.max(next.1);
            }
            joined
        });
        Self { dropped, next: (first <= last).then_some(first), last, covered: Covered::default() }
    }

    /// Looks at a block, and at what lies between it and the one before.
    pub fn block(&mut self, block: u64, numbers: &Numbers) {
        let (first, last) = (block << 16, block << 16 | 0xffff);
        if let Some(before) = first.checked_sub(1) {
            self.without_numbers(before.min(self.last));
        }
        let Some(from) = self.next.filter(|next| *next <= last) else { return };
        let to = last.min(self.last);
        if (from, to) == (first, last) && numbers.0.len() == 1 << 16 {
            self.covered.received.push(from, to);
        } else {
            self.with_numbers(first, from, to, numbers);
        }
        self.looked_at(to);
    }

    fn with_numbers(&mut self, block_first: u64, from: u64, to: u64, numbers: &Numbers) {
        // Within a block, so both fit.
        let place = |number: u64| (number - block_first) as u32;
        let asked: RoaringBitmap =
            [place(from)..=place(to)].into_iter().fold(RoaringBitmap::new(), |mut set, range| {
                set.insert_range(range);
                set
            });
        let received = &numbers.0 & &asked;
        let mut dropped = RoaringBitmap::new();
        for (first, last) in of(&self.dropped, from, to) {
            dropped.insert_range(place(first)..=place(last));
        }
        dropped -= &received;
        let missing = asked - &received - &dropped;
        let Covered { received: all_received, missing: all_missing, dropped: all_dropped, .. } = &mut self.covered;
        for (set, ranges) in [(received, all_received), (missing, all_missing), (dropped, all_dropped)] {
            let mut set = set.iter();
            while let Some(range) = set.next_range() {
                ranges.push(block_first + u64::from(*range.start()), block_first + u64::from(*range.end()));
            }
        }
    }

    /// Looks at numbers of which none was received, through this one.
    fn without_numbers(&mut self, through: u64) {
        let Some(mut from) = self.next.filter(|next| *next <= through) else { return };
        let dropped = std::mem::take(&mut self.dropped);
        for (first, last) in of(&dropped, from, through) {
            if from < first {
                self.covered.missing.push(from, first - 1);
            }
            self.covered.dropped.push(first, last);
            match last.checked_add(1) {
                Some(next) => from = next,
                None => return self.looked_at(through),
            }
        }
        self.dropped = dropped;
        if from <= through {
            self.covered.missing.push(from, through);
        }
        self.looked_at(through);
    }

    fn looked_at(&mut self, through: u64) {
        self.covered.through = Some(through);
        self.next = through.checked_add(1).filter(|next| *next <= self.last);
    }

    /// Whether a block may still tell something.
    pub fn is_open(&self) -> bool {
        self.next.is_some()
    }

    /// All blocks have come.
    pub fn finish(mut self) -> Covered {
        self.without_numbers(self.last);
        self.covered
    }

    /// There may be more blocks, at which nobody looks.
    pub fn stop(self) -> Covered {
        self.covered
    }
}

/// What of some ranges lies between two numbers.
fn of(ranges: &[(u64, u64)], from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let start = ranges.partition_point(|(_, last)| *last < from);
    let within = ranges[start..].iter().take_while(move |(first, _)| *first <= to);
    within.map(move |(first, last)| ((*first).max(from), (*last).min(to)))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::numbers::block_of;

    fn blocks(numbers: &BTreeSet<u64>) -> BTreeMap<u64, Numbers> {
        let mut blocks: BTreeMap<u64, Numbers> = BTreeMap::new();
        for number in numbers {
            blocks.entry(block_of(*number)).or_default().insert(*number);
        }
        blocks
    }

    fn covered(first: u64, last: u64, received: &BTreeSet<u64>, dropped: &[(u64, u64)]) -> Covered {
        let mut covering = Covering::new(first, last, dropped.to_vec());
        for (block, numbers) in blocks(received) {
            covering.block(block, &numbers);
        }
        covering.finish()
    }

    fn ranges(numbers: impl Iterator<Item = u64>) -> Ranges {
        let mut ranges = Ranges::default();
        numbers.for_each(|number| ranges.push(number, number));
        ranges
    }

    #[test]
    fn each_number_is_received_dropped_or_missing() {
        let received = BTreeSet::from([0, 1, 2, 3, 4, 8, 9]);
        let covered = covered(0, 10, &received, &[(9, 10), (5, 5), (5, 6)]);
        assert_eq!(covered.received.shown, [(0, 4), (8, 9)]);
        assert_eq!(covered.dropped.shown, [(5, 6), (10, 10)]);
        assert_eq!(covered.missing.shown, [(7, 7)]);
        assert_eq!((covered.received.count, covered.dropped.count, covered.missing.count), (7, 3, 1));
        assert_eq!((covered.received.ends, covered.through), (Some((0, 9)), Some(10)));
    }

    #[test]
    fn the_ends_of_all_numbers_are_reached_at_once() {
        let all = covered(0, u64::MAX, &BTreeSet::from([0, u64::MAX]), &[(1 << 20, (1 << 40) - 1)]);
        assert_eq!(all.received.shown, [(0, 0), (u64::MAX, u64::MAX)]);
        assert_eq!(all.dropped.count, (1 << 40) - (1 << 20));
        assert_eq!(all.missing.shown, [(1, (1 << 20) - 1), (1 << 40, u64::MAX - 1)]);
        let none = covered(0, u64::MAX, &BTreeSet::new(), &[(0, u64::MAX), (3, u64::MAX)]);
        assert_eq!((none.dropped.shown, none.dropped.count), (vec![(0, u64::MAX)], u64::MAX));
        assert_eq!(covered(5, 4, &BTreeSet::from([4, 5]), &[(4, 5)]), Covered::default());
    }

    #[test]
    fn whole_blocks_are_one_range() {
        let received: BTreeSet<u64> = (0..3 << 16).filter(|number| *number != 70_000).collect();
        let covered = covered(0, (3 << 16) - 1, &received, &[]);
        assert_eq!(covered.received.shown, [(0, 69_999), (70_001, (3 << 16) - 1)]);
        assert_eq!(covered.missing.shown, [(70_000, 70_000)]);
    }

    #[test]
    fn what_is_shown_is_bounded_and_what_is_counted_is_not() {
        let received: BTreeSet<u64> = (0..1_000).map(|number| number * 2).collect();
        let covered = covered(0, 1_998, &received, &[]);
        assert_eq!((covered.received.shown.len(), covered.received.count, covered.received.more), (100, 1_000, true));
        assert_eq!((covered.missing.shown.len(), covered.missing.count, covered.missing.more), (100, 999, true));
        assert_eq!(covered.received.ends, Some((0, 1_998)));
    }

    proptest! {
        #[test]
        fn any_numbers_are_covered_as_one_by_one(
            received in prop::collection::btree_set(prop_oneof![0_u64..40, 65_500_u64..65_600, 131_000_u64..131_100], 0..60),
            dropped in prop::collection::vec((0_u64..131_100, 0_u64..90), 0..8),
            (first, last) in (0_u64..131_200, 0_u64..131_200),
        ) {
            let dropped: Vec<(u64, u64)> = dropped.into_iter().map(|(first, more)| (first, first + more)).collect();
            let was_dropped = |number: &u64| dropped.iter().any(|(first, last)| (first..=last).contains(&number));
            let covered = covered(first, last, &received, &dropped);
            prop_assert_eq!(covered.received, ranges(received.iter().copied().filter(|number| (first..=last).contains(number))));
            prop_assert_eq!(covered.dropped, ranges((first..=last).filter(|n| was_dropped(n) && !received.contains(n))));
            prop_assert_eq!(covered.missing, ranges((first..=last).filter(|n| !was_dropped(n) && !received.contains(n))));
            prop_assert_eq!(covered.through, (first <= last).then_some(last));
        }
    }
}
