//! Sets of small numbers that are only ever added to and counted.

/// Shorter lists aren't worth sorting.
const MIN_LIST: usize = 8;
/// So many words of bits are fine for any set that isn't short: a kilobyte.
const MIN_WORDS: usize = 128;

/// A set of ids: bits for the low ones, a list for those beyond. It starts as a
/// list, which is sorted now and then; once bits would be no larger than the list
/// they take it in. So a set of few takes little among many ids, and a set of many
/// takes a bit for each id there is.
#[derive(Debug, Clone, Default)]
pub(super) struct Distinct {
    bits: Vec<u64>,
    /// Ids beyond the bits, some more than once.
    list: Vec<u32>,
    compact_at: usize,
}

impl Distinct {
    #[inline]
    pub(super) fn insert(&mut self, id: u32) {
        match self.bits.get_mut(id as usize / 64) {
            // Without asking whether it is there already: wrong guesses cost more.
            Some(word) => *word |= 1 << (id % 64),
            None => self.push(id),
        }
    }

    #[inline(never)]
    fn push(&mut self, id: u32) {
        self.list.push(id);
        if self.list.len() > self.compact_at.max(MIN_LIST) {
            self.compact();
        }
    }

    /// Adds another set.
    pub(super) fn unite(&mut self, other: &Self) {
        self.unite_bits(&other.bits);
        other.list.iter().for_each(|id| self.insert(*id));
    }

    /// Adds the ids whose bits are set.
    pub(super) fn unite_bits(&mut self, bits: &[u64]) {
        if bits.len() > self.bits.len() {
            self.grow(bits.len());
        }
        for (word, other) in self.bits.iter_mut().zip(bits) {
            *word |= other;
        }
    }

    pub(super) fn count(mut self) -> u64 {
        self.compact();
        let ones: u64 = self.bits.iter().map(|word| u64::from(word.count_ones())).sum();
        ones + self.list.len() as u64
    }

    /// The ids, rising.
    pub(super) fn into_ids(mut self) -> Vec<u32> {
        self.compact();
        let mut ids = Vec::new();
        each_bit(&self.bits, |id| ids.push(id));
        ids.append(&mut self.list);
        ids
    }

    /// Sorts the list, and turns it into bits where those are smaller.
    fn compact(&mut self) {
        self.list.sort_unstable();
        self.list.dedup();
        if let Some(last) = self.list.last() {
            let words = *last as usize / 64 + 1;
            // A word takes as much as two ids.
            if (words - self.bits.len()) * 2 <= self.list.len().max(2 * MIN_WORDS) {
                self.grow(words);
            }
        }
        self.compact_at = self.list.len() * 2;
    }

    /// Takes the ids of the list that come into reach.
    fn grow(&mut self, words: usize) {
        self.bits.resize(words, 0);
        for id in std::mem::take(&mut self.list) {
            match self.bits.get_mut(id as usize / 64) {
                Some(word) => *word |= 1 << (id % 64),
                None => self.list.push(id),
            }
        }
    }
}

/// Calls with the ids whose bits are set, rising. Of the first 2³² bits.
pub(super) fn each_bit(bits: &[u64], mut call: impl FnMut(u32)) {
    for (place, word) in bits.iter().enumerate() {
        let mut word = *word;
        while word != 0 {
            call(place as u32 * 64 + word.trailing_zeros());
            word &= word - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ids() -> impl Strategy<Value = Vec<u32>> {
        prop_oneof![
            prop::collection::vec(0..50_u32, 0..300),
            prop::collection::vec(0..5_000_u32, 0..2_000),
            prop::collection::vec(any::<u32>(), 0..200),
            prop::collection::vec(prop_oneof![0..500_u32, any::<u32>()], 0..2_000),
        ]
    }

    proptest! {
        #[test]
        fn a_set_is_a_set(left in ids(), right in ids()) {
            let mut distinct = Distinct::default();
            left.iter().for_each(|id| distinct.insert(*id));
            let mut other = Distinct::default();
            right.iter().for_each(|id| other.insert(*id));
            distinct.unite(&other);
            let set: BTreeSet<u32> = left.into_iter().chain(right).collect();
            prop_assert_eq!(distinct.clone().count(), set.len() as u64);
            prop_assert_eq!(distinct.into_ids(), set.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn memory_follows_the_distinct_values() {
        let mut few = Distinct::default();
        let mut many = Distinct::default();
        for round in 0..100_000_u32 {
            few.insert(u32::MAX - round % 77 * 1_000_000);
            many.insert(round % 10_000);
            assert!(few.list.capacity() <= 512 && few.bits.is_empty());
        }
        assert_eq!(few.count(), 77);
        assert_eq!((many.list.len(), many.bits.len()), (0, 10_000 / 64 + 1));
        assert_eq!(many.count(), 10_000);
    }
}
