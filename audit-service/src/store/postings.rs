//! Which entries of a block have which terms, as stored: a small sorted dictionary in front of bit sets or lists.
//!
//! ```text
//! entries u32 │ terms u32 │ hash u64 × terms │ end u32 × terms │ posting × terms
//! ```
//!
//! A posting is a list of u16 places in the block, or, where that would be as long, a bit for each entry. All
//! numbers are little-endian.

use std::collections::BTreeMap;

/// The shard that holds a term, of 64: a query reads only the shards of its own terms.
pub(super) fn shard(term: u64) -> i64 {
    i64::from((term >> 58) as u8)
}

/// Places in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places(Vec<u64>);

impl Places {
    /// No place.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// The first `count` places.
    pub(super) fn first(count: u64) -> Self {
        let mut places = Self::none();
        (0..count).for_each(|place| places.add(place));
        places
    }

    fn add(&mut self, place: u64) {
        let word = (place / 64) as usize;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (place % 64);
    }

    /// Keeps what is in both.
    pub(super) fn and(&mut self, other: &Self) {
        self.0.truncate(other.0.len());
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own &= other);
    }

    /// Adds what is in the other.
    pub(super) fn or(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own |= other);
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        let places = |(at, word): (usize, &u64)| {
            let (at, word) = (at as u64 * 64, *word);
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at + bit)
        };
        self.0.iter().enumerate().flat_map(places)
    }
}

/// The terms of a block in the making.
#[derive(Debug, Default)]
pub(super) struct Builder {
    entries: u32,
    shards: BTreeMap<i64, BTreeMap<u64, Vec<u16>>>,
}

impl Builder {
    /// Adds the next entry's terms.
    pub(super) fn push(&mut self, terms: &[u64]) {
        // Blocks have at most 4,096 entries.
        let place = self.entries as u16;
        for term in terms {
            self.shards.entry(shard(*term)).or_default().entry(*term).or_default().push(place);
        }
        self.entries += 1;
    }

    /// The stored form of each shard that has terms.
    pub(super) fn finish(self) -> Vec<(i64, Vec<u8>)> {
        let entries = self.entries;
        self.shards.into_iter().map(|(shard, terms)| (shard, encode(entries, &terms))).collect()
    }
}

fn encode(entries: u32, terms: &BTreeMap<u64, Vec<u16>>) -> Vec<u8> {
    let bits = (entries as usize).div_ceil(8);
    let mut out = Vec::with_capacity(8 + terms.len() * 14);
    out.extend_from_slice(&entries.to_le_bytes());
    out.extend_from_slice(&(terms.len() as u32).to_le_bytes());
    for term in terms.keys() {
        out.extend_from_slice(&term.to_le_bytes());
    }
    let mut end = 0_u32;
    for places in terms.values() {
        end += (places.len() * 2).min(bits) as u32;
        out.extend_from_slice(&end.to_le_bytes());
    }
    for places in terms.values() {
        if places.len() * 2 < bits {
            places.iter().for_each(|place| out.extend_from_slice(&place.to_le_bytes()));
        } else {
            let begin = out.len();
            out.resize(begin + bits, 0);
            places.iter().for_each(|place| out[begin + usize::from(place / 8)] |= 1 << (place % 8));
        }
    }
    out
}

/// The places of the entries that have any of these terms; `None` where the bytes are not a shard.
pub(super) fn any_of(shard: &[u8], terms: &[u64]) -> Option<Places> {
    let entries = u32_at(shard, 0)? as usize;
    let count = u32_at(shard, 4)? as usize;
    let hashes = shard.get(8..8 + count * 8)?;
    let ends = shard.get(8 + count * 8..8 + count * 12)?;
    let postings = shard.get(8 + count * 12..)?;
    let mut found = Places::none();
    for term in terms {
        let mut low = 0;
        let mut high = count;
        while low < high {
            let middle = low + (high - low) / 2;
            if u64_at(hashes, middle * 8)? < *term { low = middle + 1 } else { high = middle }
        }
        if low == count || u64_at(hashes, low * 8)? != *term {
            continue;
        }
        let begin = if low == 0 { 0 } else { u32_at(ends, low * 4 - 4)? as usize };
        let posting = postings.get(begin..u32_at(ends, low * 4)? as usize)?;
        found.or(&decode(posting, entries));
    }
    Some(found)
}

fn decode(posting: &[u8], entries: usize) -> Places {
    let mut places = Places::none();
    if posting.len() == entries.div_ceil(8) {
        for word in posting.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            places.0.push(u64::from_le_bytes(bytes));
        }
    } else {
        for place in posting.chunks_exact(2) {
            places.add(u64::from(u16::from_le_bytes([place[0], place[1]])));
        }
    }
    places
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_stored_is_found(
            entries in prop::collection::vec(prop::collection::btree_set(0_u64..40, 0..8), 1..300),
            wanted in prop::collection::vec(0_u64..50, 1..5),
        ) {
            let mut builder = Builder::default();
            for terms in &entries {
                builder.push(&terms.iter().copied().collect::<Vec<_>>());
            }
            let shards = builder.finish();
            prop_assert!(shards.len() <= 1);
            let found: Vec<u64> = shards.first().map_or(Vec::new(), |(_, bytes)| any_of(bytes, &wanted).unwrap().iter().collect());
            let wanted: BTreeSet<u64> = wanted.into_iter().collect();
            let expected: Vec<u64> =
                (0..).zip(&entries).filter(|(_, terms)| !terms.is_disjoint(&wanted)).map(|(place, _)| place).collect();
            prop_assert_eq!(&found, &expected);
        }
    }

    #[test]
    fn shards_hold_their_own_terms() {
        let terms = [0, 1 << 58, u64::MAX];
        let mut builder = Builder::default();
        builder.push(&terms);
        let shards = builder.finish();
        assert_eq!(shards.iter().map(|(shard, _)| *shard).collect::<Vec<_>>(), [0, 1, 63]);
        for (term, (_, bytes)) in terms.iter().zip(&shards) {
            assert_eq!(any_of(bytes, &[*term]).unwrap(), Places::first(1));
        }
        assert_eq!(any_of(&shards[0].1, &[5]).unwrap().count(), 0);
    }

    #[test]
    fn damaged_bytes_are_not_read() {
        let mut builder = Builder::default();
        builder.push(&[1, 2]);
        let bytes = builder.finish().remove(0).1;
        for cut in 0..bytes.len() {
            let _ = any_of(&bytes[..cut], &[1, 2]);
        }
        assert_eq!(any_of(&bytes[..20], &[1]), None);
    }
}
