//! Numbers that nobody needs to guess wrong: for jitter, ids and the marks of files. They are
//! the standard library's, whose hashers have keys of the operating system, a new one each:
//! six crates less than a generator of our own choice.

use std::hash::{BuildHasher as _, RandomState};

/// 64 bits.
pub(crate) fn bits() -> u64 {
    RandomState::new().hash_one(())
}

/// From 0 to below 1.
pub(crate) fn unit() -> f64 {
    // As many bits as a float has: every one of them counts alike.
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_is_set_in_some_and_they_are_spread_evenly() {
        let all: std::collections::BTreeSet<u64> = (0..10_000).map(|_| bits()).collect();
        assert_eq!(all.len(), 10_000);
        for bit in 0..64 {
            let set = all.iter().filter(|bits| *bits >> bit & 1 == 1).count();
            assert!((4_500..5_500).contains(&set), "bit {bit} is set in {set} of 10,000");
        }
        assert!((0..1_000).map(|_| unit()).all(|unit| (0.0..1.0).contains(&unit)));
    }
}
