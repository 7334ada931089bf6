//! Which entries of a run have which terms, as stored: small sorted dictionaries in front of lists or bit sets.
//!
//! ```text
//! shard    terms u32 │ term u64 × terms │ end u32 × terms │ posting × terms
//! posting  0, distances of ranks as LEB128 │ 1, a bit for each rank │ 2: in a row of its own, being long
//! ```
//!
//! An entry's rank is its place in the run by (`occurred_at`, `id`). A term's shard follows from its kind, its upper
//! bits, and how many entries the run has, so that a query reads little else than what it asks for. All numbers are
//! little-endian.

use crate::filter::{Kind, TERM_BITS};

/// A posting longer than this has a row of its own.
const LARGE_BYTES: usize = 8 * 1024;
const LIST: u8 = 0;
const BITS: u8 = 1;
const APART: u8 = 2;
/// Bits of a shard's number below the kind.
const SHARD_BITS: u32 = 12;

/// How many upper bits of a term tell its shard.
fn shard_bits(kind: u64, entries: u64) -> u32 {
    let fewer = match kind {
        kind if kind == Kind::Word as u64 => 8,
        kind if kind == Kind::Resource as u64 => 10,
        kind if kind == Kind::Actor as u64 || kind == Kind::ActorId as u64 => 11,
        _ => 13,
    };
    entries.max(1).ilog2().saturating_sub(fewer).min(SHARD_BITS)
}

/// The part of a run that holds the shard of a term.
pub(super) fn shard_part(term: u64, entries: u64) -> i64 {
    let kind = term >> TERM_BITS;
    let bits = shard_bits(kind, entries);
    ((kind << SHARD_BITS) | ((term & ((1 << TERM_BITS) - 1)) >> (TERM_BITS - bits))).cast_signed()
}

/// The part of a run that holds a posting by itself. Far away from all others, for a kind is not zero.
pub(super) fn own_part(term: u64) -> i64 {
    term.cast_signed()
}

/// Into how many groups the shards of a kind fall, if they are to be the same groups in runs of these sizes.
pub(super) fn shard_groups(kind: Kind, sizes: impl Iterator<Item = u64>) -> u64 {
    1 << sizes.map(|entries| shard_bits(kind as u64, entries)).min().unwrap_or(0)
}

/// The parts of a run, half open, that hold a group of a kind's shards.
pub(super) fn shards_of(kind: Kind, entries: u64, groups: u64, group: u64) -> (i64, i64) {
    let shards = (1 << shard_bits(kind as u64, entries)) / groups;
    let begin = ((kind as u64) << SHARD_BITS) + group * shards;
    (begin.cast_signed(), (begin + shards).cast_signed())
}

/// Ranks in a run, as a bit set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places(Vec<u64>);

impl Places {
    /// None of so many.
    pub(super) fn none(entries: u64) -> Self {
        Self(vec![0; entries.div_ceil(64) as usize])
    }

    /// All of so many.
    pub(super) fn all(entries: u64) -> Self {
        let mut places = Self(vec![u64::MAX; entries.div_ceil(64) as usize]);
        places.keep(0, entries);
        places
    }

    /// Forgets what is not in `from..to`.
    pub(super) fn keep(&mut self, from: u64, to: u64) {
        for (at, word) in self.0.iter_mut().enumerate() {
            let begin = at as u64 * 64;
            let below = |end: u64| match end.saturating_sub(begin) {
                0 => 0,
                bits @ 1..64 => (1 << bits) - 1,
                _ => u64::MAX,
            };
            *word &= below(to) & !below(from);
        }
    }

    /// Keeps what is in both.
    pub(super) fn and(&mut self, other: &Self) {
        self.0.truncate(other.0.len());
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own &= other);
    }

    /// Forgets what is in the other.
    pub(super) fn and_not(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own &= !other);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets one.
    pub(super) fn remove(&mut self, rank: u64) {
        if let Some(word) = self.0.get_mut((rank / 64) as usize) {
            *word &= !(1 << (rank % 64));
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The first that is `from` or more.
    pub(super) fn next_up(&self, from: u64) -> Option<u64> {
        let mut at = (from / 64) as usize;
        let mut word = self.0.get(at)? & (u64::MAX << (from % 64));
        while word == 0 {
            at += 1;
            word = *self.0.get(at)?;
        }
        Some(at as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// The last that is less than `below`.
    pub(super) fn next_down(&self, below: u64) -> Option<u64> {
        let below = below.min(self.0.len() as u64 * 64);
        let last = below.checked_sub(1)?;
        let mut at = (last / 64) as usize;
        let mut word = self.0[at] & (u64::MAX >> (63 - last % 64));
        while word == 0 {
            at = at.checked_sub(1)?;
            word = self.0[at];
        }
        Some(at as u64 * 64 + 63 - u64::from(word.leading_zeros()))
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        std::iter::successors(self.next_up(0), |rank| self.next_up(rank + 1))
    }

    /// Adds the ranks of a posting; `None` where it is damaged.
    pub(super) fn add(&mut self, posting: &[u8]) -> Option<()> {
        if let Some(words) = bit_words(posting) {
            for (at, word) in words.enumerate() {
                match self.0.get_mut(at) {
                    Some(own) => *own |= word,
                    // The last word may be longer than the run.
                    None if word == 0 => {}
                    None => return None,
                }
            }
            return Some(());
        }
        let places = &mut self.0;
        let mut inside = true;
        each_rank(posting, |rank| match places.get_mut((rank / 64) as usize) {
            Some(word) => *word |= 1 << (rank % 64),
            None => inside = false,
        })?;
        inside.then_some(())
    }

    /// How many ranks of a posting are among these, and one of them.
    pub(super) fn count_of(&self, posting: &[u8]) -> Option<(u64, u64)> {
        let (mut count, mut sample) = (0, 0);
        if let Some(words) = bit_words(posting) {
            for (at, (word, own)) in words.zip(&self.0).enumerate() {
                let both = word & own;
                if both != 0 {
                    count += u64::from(both.count_ones());
                    sample = at as u64 * 64 + u64::from(both.trailing_zeros());
                }
            }
            return Some((count, sample));
        }
        each_rank(posting, |rank| {
            if self.0.get((rank / 64) as usize).is_some_and(|word| word >> (rank % 64) & 1 == 1) {
                count += 1;
                sample = rank;
            }
        })?;
        Some((count, sample))
    }
}

/// The words of a posting that is a bit set.
fn bit_words(posting: &[u8]) -> Option<impl Iterator<Item = u64>> {
    let (BITS, bits) = posting.split_first().map(|(tag, bits)| (*tag, bits))? else { return None };
    Some(bits.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    }))
}

/// Tells each rank of a posting, in order; `None` where it is damaged.
pub(super) fn each_rank(posting: &[u8], mut tell: impl FnMut(u64)) -> Option<()> {
    if let Some(words) = bit_words(posting) {
        for (at, mut word) in words.enumerate() {
            while word != 0 {
                tell(at as u64 * 64 + u64::from(word.trailing_zeros()));
                word &= word - 1;
            }
        }
        return Some(());
    }
    let (LIST, bytes) = posting.split_first().map(|(tag, bytes)| (*tag, bytes))? else { return None };
    let (mut rank, mut distance, mut shift) = (0_u64, 0_u64, 0_u32);
    for byte in bytes {
        distance |= u64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            rank = rank.checked_add(distance)?;
            tell(rank);
            (distance, shift) = (0, 0);
        }
    }
    (shift == 0).then_some(())
}

/// Writes a posting of these ranks, which rise.
pub(super) fn encode(ranks: &[u32], out: &mut Vec<u8>) {
    let begin = out.len();
    let bits = ranks.last().map_or(0, |last| *last as usize / 8 + 1);
    out.push(LIST);
    let mut before = 0;
    for rank in ranks {
        let mut distance = rank - before;
        before = *rank;
        while distance >= 0x80 {
            out.push(distance as u8 | 0x80);
            distance >>= 7;
        }
        out.push(distance as u8);
        if out.len() - begin > bits + 1 {
            // A bit for each is shorter.
            out.truncate(begin);
            out.push(BITS);
            out.resize(begin + 1 + bits, 0);
            for rank in ranks {
                out[begin + 1 + *rank as usize / 8] |= 1 << (rank % 8);
            }
            return;
        }
    }
}

/// Makes the shards of a run. Terms come in order.
#[derive(Debug)]
pub(super) struct ShardBuilder {
    entries: u64,
    part: i64,
    terms: Vec<(u64, u32)>,
    postings: Vec<u8>,
    /// Parts that are done.
    done: Vec<(i64, Vec<u8>)>,
}

impl ShardBuilder {
    pub(super) fn new(entries: u64) -> Self {
        Self { entries, part: 0, terms: Vec::new(), postings: Vec::new(), done: Vec::new() }
    }

    /// Adds a term, greater than those before, and the ranks that have it.
    pub(super) fn push(&mut self, term: u64, ranks: &[u32]) {
        let part = shard_part(term, self.entries);
        if part != self.part {
            self.end_shard();
            self.part = part;
        }
        let begin = self.postings.len();
        encode(ranks, &mut self.postings);
        if self.postings.len() - begin > LARGE_BYTES {
            self.done.push((own_part(term), self.postings.split_off(begin)));
            self.postings.push(APART);
        }
        self.terms.push((term, self.postings.len() as u32));
    }

    fn end_shard(&mut self) {
        if self.terms.is_empty() {
            return;
        }
        let mut bytes = Vec::with_capacity(4 + self.terms.len() * 12 + self.postings.len());
        bytes.extend_from_slice(&(self.terms.len() as u32).to_le_bytes());
        self.terms.iter().for_each(|(term, _)| bytes.extend_from_slice(&term.to_le_bytes()));
        self.terms.iter().for_each(|(_, end)| bytes.extend_from_slice(&end.to_le_bytes()));
        bytes.append(&mut self.postings);
        self.terms.clear();
        self.done.push((self.part, bytes));
    }

    /// The parts that are done.
    pub(super) fn take(&mut self) -> Vec<(i64, Vec<u8>)> {
        std::mem::take(&mut self.done)
    }

    /// The parts that are left.
    pub(super) fn finish(mut self) -> Vec<(i64, Vec<u8>)> {
        self.end_shard();
        self.done
    }
}

/// Where a term's posting is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Posting<'a> {
    /// Here.
    Here(&'a [u8]),
    /// In a part of its own.
    Apart,
}

/// A shard as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shard<'a> {
    terms: &'a [[u8; 8]],
    ends: &'a [[u8; 4]],
    postings: &'a [u8],
}

impl<'a> Shard<'a> {
    /// `None` where the bytes are not a shard.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        let (terms, rest) = rest.split_at_checked(count.checked_mul(8)?)?;
        let (ends, postings) = rest.split_at_checked(count * 4)?;
        Some(Self { terms: terms.as_chunks().0, ends: ends.as_chunks().0, postings })
    }

    /// A term's posting, if it has one; the outer `None` where the shard is damaged.
    pub(super) fn find(&self, term: u64) -> Option<Option<Posting<'a>>> {
        match self.terms.binary_search_by_key(&term, |bytes| u64::from_le_bytes(*bytes)) {
            Ok(at) => self.posting(at).map(Some),
            Err(_) => Some(None),
        }
    }

    fn posting(&self, at: usize) -> Option<Posting<'a>> {
        let end = |at: usize| u32::from_le_bytes(self.ends[at]) as usize;
        let begin = if at == 0 { 0 } else { end(at - 1) };
        let posting = self.postings.get(begin..end(at))?;
        Some(if posting.first()? == &APART { Posting::Apart } else { Posting::Here(posting) })
    }

    /// All terms and their postings, in order; `None` where the shard is damaged.
    pub(super) fn iter(self) -> impl Iterator<Item = Option<(u64, Posting<'a>)>> {
        (0..self.terms.len()).map(move |at| Some((u64::from_le_bytes(self.terms[at]), self.posting(at)?)))
    }
}

#[cfg(test)]
mod tests;
