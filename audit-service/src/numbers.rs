//! The set of numbers that a producer has given in one epoch, in blocks of 65,536.
//!
//! A number that is there and comes again with an id that is not known is a conflict; for that the set is enough, and
//! it costs one small row a group of events where a unique index would cost an entry an event. Numbers in a row
//! take no more room than their ends.

use roaring::RoaringBitmap;

use crate::event::Producer;

/// Which part of which set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NumberBlock {
    /// Who numbers.
    pub producer_id: String,
    /// In which epoch.
    pub epoch: u64,
    /// The numbers from `block << 16` on.
    pub block: u64,
}

impl NumberBlock {
    /// The block that holds an event's number.
    pub(crate) fn of(producer: &Producer) -> Self {
        Self { producer_id: producer.id.clone(), epoch: producer.epoch, block: producer.sequence >> 16 }
    }
}

/// The numbers of one block.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Numbers(RoaringBitmap);

impl Numbers {
    /// Adds a number of this block; false if it was there.
    pub(crate) fn insert(&mut self, number: u64) -> bool {
        self.0.insert((number & 0xffff) as u32)
    }

    /// The stored form.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut set = self.0.clone();
        set.optimize();
        let mut bytes = Vec::with_capacity(set.serialized_size());
        // Writing to a Vec cannot fail.
        let _ = set.serialize_into(&mut bytes);
        bytes
    }

    /// Reads the stored form.
    pub(crate) fn from_bytes(bytes: &[u8]) -> std::io::Result<Self> {
        RoaringBitmap::deserialize_from(bytes).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once() {
        let mut numbers = Numbers::default();
        assert!(numbers.insert(7));
        assert!(!numbers.insert(7));
        assert!(numbers.insert((1 << 16) - 1));
    }

    #[test]
    fn numbers_in_a_row_take_little_room() {
        let mut numbers = Numbers::default();
        for number in 0..60_000 {
            numbers.insert(number);
        }
        let bytes = numbers.to_bytes();
        assert!(bytes.len() < 64, "{} bytes", bytes.len());
        assert_eq!(Numbers::from_bytes(&bytes).unwrap(), numbers);
    }
}
