//! The set of numbers that a producer has given in one epoch, in blocks of 65,536.
//!
//! A number that is there and comes again with an id that is not known is a conflict; for that the set is enough, and
//! it costs one small row a group of events where a unique index would cost an entry an event. Numbers in a row
//! take no more room than their ends.

mod covered;

pub use covered::{Covered, Covering, MAX_RANGES, Ranges};

use roaring::RoaringBitmap;

/// The block that holds a number: the numbers from `block << 16` on.
pub fn block_of(number: u64) -> u64 {
    number >> 16
}

/// The numbers of one block.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Numbers(RoaringBitmap);

impl Numbers {
    /// Adds a number of this block; false if it was there.
    pub fn insert(&mut self, number: u64) -> bool {
        self.0.insert((number & 0xffff) as u32)
    }

    /// Whether a number of this block is there.
    pub fn contains(&self, number: u64) -> bool {
        self.0.contains((number & 0xffff) as u32)
    }

    /// The highest number of this block, which is the one given.
    pub fn highest(&self, block: u64) -> Option<u64> {
        self.0.max().map(|number| block << 16 | u64::from(number))
    }

    /// The stored form. That of no numbers is never empty.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut set = self.0.clone();
        set.optimize();
        let mut bytes = Vec::with_capacity(set.serialized_size());
        // Writing to a Vec cannot fail.
        let _ = set.serialize_into(&mut bytes);
        bytes
    }

    /// Reads the stored form; no bytes are no numbers.
    pub fn from_bytes(bytes: &[u8]) -> std::io::Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
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
        assert!(numbers.contains(7) && !numbers.contains(8));
        assert!(numbers.insert((1 << 16) - 1));
        assert_eq!([0, 65_535, 65_536, u64::MAX].map(block_of), [0, 0, 1, (1 << 48) - 1]);
    }

    #[test]
    fn numbers_in_a_row_take_little_room() {
        let mut numbers = Numbers::default();
        for number in 0..60_000 {
            numbers.insert(number);
        }
        let bytes = numbers.to_bytes();
        assert!(bytes.len() < 64, "{} bytes", bytes.len());
        assert_eq!(Numbers::from_bytes(&bytes).expect("its own form"), numbers);
    }

    #[test]
    fn no_bytes_are_no_numbers() {
        assert_eq!(Numbers::from_bytes(&[]).expect("empty"), Numbers::default());
        assert!(!Numbers::default().to_bytes().is_empty());
    }
}
