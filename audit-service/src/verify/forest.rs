//! The leaves of a log that are there, in whatever order they come, as the roots of perfect subtrees: of a whole log a
//! hash or two for each doubling of its size, and as many more for each gap.
//!
//! A subtree is not made across a size at which a root is wanted, so that it can be made up from what is left. Beside its
//! root each has the times at which its first and last entries were recorded, by which they must be in order.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::merkle::{Frontier, Hash, node_hash};

/// Neighbouring leaves, as many as a power of two, from a multiple of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subtree {
    height: u32,
    root: Hash,
    /// When the first and the last of them were recorded.
    recorded_us: (i64, i64),
}

impl Subtree {
    pub(super) fn leaf(root: Hash, recorded_us: i64) -> Self {
        Self { height: 0, root, recorded_us: (recorded_us, recorded_us) }
    }

    fn leaves(&self) -> u64 {
        1 << self.height
    }
}

/// The leaves that are there.
#[derive(Debug, Default)]
pub(super) struct Forest {
    /// By their first leaf.
    subtrees: BTreeMap<u64, Subtree>,
    cuts: BTreeSet<u64>,
    /// Entries that say they were recorded before the one before them: the first ones, and how many.
    pub(super) back_dated: BackDated,
}

/// Entries whose time is before that of the entry before them.
#[derive(Debug, Default)]
pub(super) struct BackDated {
    pub(super) first: BTreeSet<u64>,
    pub(super) count: u64,
}

/// Back-dated entries that are named.
const NAMED: usize = 5;

impl BackDated {
    fn check(&mut self, before: &Subtree, sequence: u64, after: &Subtree) {
        if after.recorded_us.0 < before.recorded_us.1 {
            self.count += 1;
            self.first.insert(sequence);
            if self.first.len() > NAMED {
                self.first.pop_last();
            }
        }
    }
}

impl Forest {
    /// A root will be wanted over so many leaves. Told before the leaves beside it are there.
    pub(super) fn cut(&mut self, size: u64) {
        self.cuts.insert(size);
    }

    /// The first leaf that is there.
    pub(super) fn first(&self) -> Option<u64> {
        self.subtrees.first_key_value().map(|(first, _)| *first)
    }

    /// Adds a leaf; whether it was not there yet.
    pub(super) fn insert(&mut self, index: u64, leaf: Subtree) -> bool {
        if let Some((first, subtree)) = self.subtrees.range(..=index).next_back()
            && index - first < subtree.leaves()
        {
            return false;
        }
        let (mut first, mut subtree) = (index, leaf);
        // No tree has leaves up to the end of the numbers, and no height comes near 64.
        while subtree.height < 62 {
            let leaves = subtree.leaves();
            let (left, right) = match first & leaves {
                0 => (first, first.saturating_add(leaves)),
                _ => (first - leaves, first),
            };
            let sibling = if left == first { right } else { left };
            let Some(other) = self.subtrees.get(&sibling).filter(|other| other.height == subtree.height) else { break };
            if self.cuts.contains(&right) {
                break;
            }
            let (one, two) = if left == first { (subtree, *other) } else { (*other, subtree) };
            self.back_dated.check(&one, right, &two);
            self.subtrees.remove(&sibling);
            first = left;
            subtree = Subtree {
                height: subtree.height + 1,
                root: node_hash(&one.root, &two.root),
                recorded_us: (one.recorded_us.0, two.recorded_us.1),
            };
        }
        self.subtrees.insert(first, subtree);
        true
    }

    /// Adds neighbouring leaves of which some may be there; those that are there and are others, by where they lie.
    pub(super) fn fill(&mut self, first: u64, leaves: &[Subtree]) -> Vec<Range<u64>> {
        let end = first.saturating_add(leaves.len() as u64);
        let there: Vec<(u64, Subtree)> = self.subtrees.range(first..end).map(|(at, subtree)| (*at, *subtree)).collect();
        let mut others = Vec::new();
        for (at, subtree) in there {
            let range = (at - first) as usize..(at - first + subtree.leaves()) as usize;
            let root = leaves.get(range).map(|leaves| leaves.iter().map(|leaf| leaf.root).collect::<Frontier>().root());
            if root != Some(subtree.root) {
                others.push(at..at + subtree.leaves());
            }
        }
        for (at, leaf) in (first..).zip(leaves) {
            self.insert(at, *leaf);
        }
        others
    }

    /// Checks the order of what lies side by side and was not put together.
    pub(super) fn check_order(&mut self) {
        let mut before: Option<(u64, Subtree)> = None;
        for (first, subtree) in &self.subtrees {
            if let Some((begin, before)) = &before
                && begin + before.leaves() == *first
            {
                self.back_dated.check(before, *first, subtree);
            }
            before = Some((*first, *subtree));
        }
    }

    /// The subtrees in order: where each begins, where it ends, its height and its root.
    pub(super) fn subtrees(&self) -> impl Iterator<Item = (Range<u64>, u32, Hash)> {
        self.subtrees.iter().map(|(first, subtree)| (*first..first + subtree.leaves(), subtree.height, subtree.root))
    }

    /// How many subtrees it is made of.
    pub(super) fn len(&self) -> usize {
        self.subtrees.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaf(index: u64) -> Subtree {
        Subtree::leaf(crate::merkle::leaf_hash(&index.to_be_bytes()), index.cast_signed())
    }

    /// The root over the first leaves, if they are all there.
    fn root(forest: &Forest, size: u64) -> Option<Hash> {
        let mut frontier = Frontier::default();
        for (range, height, root) in forest.subtrees().take_while(|(range, ..)| range.end <= size) {
            if range.start != frontier.size() {
                return None;
            }
            frontier.push_subtree(height, root);
        }
        (frontier.size() == size).then(|| frontier.root())
    }

    proptest! {
        #[test]
        fn roots_are_those_of_the_leaves_in_any_order(
            order in Just((0..200_u64).collect::<Vec<_>>()).prop_shuffle(),
            size in 1..=200_u64,
            cuts in proptest::collection::btree_set(0..=200_u64, 0..6),
            absent in proptest::option::of(0..200_u64),
        ) {
            let mut forest = Forest::default();
            cuts.iter().for_each(|cut| forest.cut(*cut));
            for index in order.into_iter().filter(|index| *index < size && Some(*index) != absent) {
                prop_assert!(forest.insert(index, leaf(index)));
                prop_assert!(!forest.insert(index, leaf(index)));
            }
            for cut in cuts.iter().copied().chain([size]).filter(|cut| *cut <= size) {
                let whole = absent.is_none_or(|absent| absent >= cut);
                let expected: Frontier = (0..cut).map(|index| leaf(index).root).collect();
                prop_assert_eq!(root(&forest, cut), whole.then(|| expected.root()));
            }
            prop_assert!(forest.len() <= 16 * (cuts.len() + 2), "{}", forest.len());
            forest.check_order();
            prop_assert_eq!(forest.back_dated.count, 0);
        }

        #[test]
        fn an_entry_that_is_before_the_one_before_it_is_found_wherever_it_lies(
            order in Just((0..100_u64).collect::<Vec<_>>()).prop_shuffle(), back in 1..100_u64,
        ) {
            let mut forest = Forest::default();
            forest.cut(37);
            for index in order {
                let at = if index == back { index - 1 } else { index };
                let recorded_us = 10 * at.cast_signed() - i64::from(index == back);
                forest.insert(index, Subtree::leaf(leaf(index).root, recorded_us));
            }
            forest.check_order();
            prop_assert_eq!((forest.back_dated.count, forest.back_dated.first), (1, BTreeSet::from([back])));
        }
    }

    #[test]
    fn what_fills_gaps_is_compared_with_what_is_there() {
        let mut forest = Forest::default();
        [4, 9].into_iter().for_each(|cut| forest.cut(cut));
        for index in [0, 1, 4, 5, 7, 9, 10] {
            forest.insert(index, leaf(index));
        }
        let mut leaves: Vec<Subtree> = (4..9).map(leaf).collect();
        leaves[3] = leaf(99);
        assert_eq!(forest.fill(4, &leaves), vec![Range { start: 7, end: 8 }]);
        assert_eq!(forest.fill(2, &[leaf(2), leaf(3)]), []);
        let expected: Frontier = (0..11).map(|index| leaf(index).root).collect();
        assert_eq!(root(&forest, 11), Some(expected.root()));
    }
}
