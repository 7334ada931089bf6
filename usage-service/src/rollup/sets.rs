//! A set of ids for each row of a section.

use super::Malformed;
use super::bytes::Reader;
use super::column::{Column, Rows};
use super::distinct::{Distinct, each_bit};

/// A set of ids for each row: of many as bits, so that sets are united a word at a
/// time, of few as a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sets {
    /// Where a row's ids end; they begin where those of the row before end.
    ends: Vec<u32>,
    ids: Column,
    /// The same for words of bits.
    bit_ends: Vec<u32>,
    bits: Vec<u64>,
}

/// The stretch of a row.
#[inline]
fn stretch(ends: &[u32], row: usize) -> std::ops::Range<usize> {
    let start = row.checked_sub(1).map_or(0, |before| ends[before] as usize);
    start..ends[row] as usize
}

impl Sets {
    /// Adds the set of the next row: ids that rise.
    pub(super) fn push(&mut self, ids: &[u32]) {
        let words = ids.last().map_or(0, |last| *last as usize / 64 + 1);
        // A word takes 8 bytes, an id 2 or 4.
        if words > 0 && words * 2 <= ids.len() {
            let start = self.bits.len();
            self.bits.resize(start + words, 0);
            ids.iter().for_each(|id| self.bits[start + *id as usize / 64] |= 1 << (id % 64));
        } else {
            ids.iter().for_each(|id| self.ids.push((*id).into()));
        }
        // All sets together have no more ids than the full section has rows.
        self.ends.push(self.ids.len() as u32);
        self.bit_ends.push(self.bits.len() as u32);
    }

    pub(super) fn finish(mut self) -> Self {
        self.ends.shrink_to_fit();
        self.bit_ends.shrink_to_fit();
        self.ids.shrink();
        self.bits.shrink_to_fit();
        self
    }

    /// Adds the ids of a row to a set.
    #[inline]
    pub(super) fn add_to(&self, row: usize, set: &mut Distinct) {
        self.ids.each_id(&Rows::Range(stretch(&self.ends, row)), |_, id| set.insert(id));
        set.unite_bits(&self.bits[stretch(&self.bit_ends, row)]);
    }

    /// The ids of a row, rising, behind those that are there.
    pub(super) fn append(&self, row: usize, into: &mut Vec<u32>) {
        self.ids.each_id(&Rows::Range(stretch(&self.ends, row)), |_, id| into.push(id));
        each_bit(&self.bits[stretch(&self.bit_ends, row)], |id| into.push(id));
    }

    /// Calls with every id of every row.
    pub(super) fn each_id(&self, mut call: impl FnMut(u32)) {
        self.ids.each_id(&Rows::Range(0..self.ids.len()), |_, id| call(id));
        for row in 0..self.bit_ends.len() {
            each_bit(&self.bits[stretch(&self.bit_ends, row)], &mut call);
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for ends in [&self.ends, &self.bit_ends] {
            let mut lengths = Column::default();
            (0..ends.len()).for_each(|row| lengths.push(stretch(ends, row).len() as i128));
            lengths.write(out);
        }
        self.ids.write(out);
        self.bits.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    pub(super) fn read(reader: &mut Reader<'_>, rows: usize) -> Result<Self, Malformed> {
        let mut ends = || {
            let lengths = Column::read_ids(reader, rows)?;
            let mut ends = Vec::with_capacity(rows);
            let mut end = 0_u32;
            for row in 0..rows {
                end = end.checked_add(lengths.id(row)).ok_or(Malformed("sets have too many members"))?;
                ends.push(end);
            }
            Ok((ends, end as usize))
        };
        let ((ends, ids), (bit_ends, words)) = (ends()?, ends()?);
        let ids = Column::read_ids(reader, ids)?;
        let bits = reader.take(words.checked_mul(8).ok_or(Malformed("sets have too many members"))?)?;
        let bits = bits.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let sets = Self { ends, ids, bit_ends, bits };
        for row in 0..rows {
            let mut before = None;
            for place in stretch(&sets.ends, row) {
                let id = sets.ids.id(place);
                if before.is_some_and(|before| before >= id) {
                    return Err(Malformed("a set's ids don't rise"));
                }
                before = Some(id);
            }
            if stretch(&sets.bit_ends, row).len() > MAX_WORDS {
                return Err(Malformed("ids have at most 32 bits"));
            }
        }
        Ok(sets)
    }

    pub(super) fn bytes(&self) -> usize {
        (self.ends.len() + self.bit_ends.len()) * size_of::<u32>() + self.ids.bytes() + self.bits.len() * 8
    }
}

/// Words of bits for all ids of 32 bits.
const MAX_WORDS: usize = 1 << 26;
