//! The right edge of a tree: all that it takes to add leaves to it and to know its root.

use super::tile::HEIGHT;
use super::{Hash, empty_root, node_hash};

/// The roots of the perfect subtrees that a tree of this size is made of, the largest first: one for each bit of the
/// size that is set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The frontier of a tree of this size, if there are as many peaks as it has.
    pub fn new(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (peaks.len() == size.count_ones() as usize).then_some(Self { size, peaks })
    }

    /// The same from the bytes of [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Option<Self> {
        let (peaks, rest) = bytes.as_chunks::<32>();
        rest.is_empty().then(|| Self::new(size, peaks.to_vec()))?
    }

    /// The peaks, one after another.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.peaks.concat()
    }

    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The peaks, the largest first.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Adds a leaf: over many leaves, that is one node hash each. If it makes a tile of leaves full, gives the root over
    /// that.
    pub fn push(&mut self, leaf: Hash) -> Option<Hash> {
        let (mut peak, mut tile) = (leaf, None);
        for height in 1..=self.size.trailing_ones() {
            // As many peaks as bits are set, so there is one for each.
            if let Some(left) = self.peaks.pop() {
                peak = node_hash(&left, &peak);
            }
            if height == HEIGHT {
                tile = Some(peak);
            }
        }
        self.peaks.push(peak);
        self.size += 1;
        tile
    }

    /// Adds a perfect subtree of `2^height` leaves: where the size is a multiple of that.
    pub fn push_subtree(&mut self, height: u32, root: Hash) {
        let mut peak = root;
        let leaves = 1 << height;
        for _ in 0..(self.size >> height).trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                peak = node_hash(&left, &peak);
            }
        }
        self.peaks.push(peak);
        self.size += leaves;
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        root_of(&self.peaks)
    }

    /// Whether the tree ends with the leaves of the other one: which begins, in this one, at a multiple of a power of two
    /// that is larger than it.
    pub fn ends_with(&self, end: &Self) -> bool {
        self.peaks.ends_with(&end.peaks)
    }
}

impl FromIterator<Hash> for Frontier {
    fn from_iter<T: IntoIterator<Item = Hash>>(leaves: T) -> Self {
        let mut frontier = Self::default();
        for leaf in leaves {
            frontier.push(leaf);
        }
        frontier
    }
}

/// Puts the roots of neighbouring subtrees together, from the right: each is at least as large as all behind it.
pub(super) fn root_of(peaks: &[Hash]) -> Hash {
    let mut from_the_right = peaks.iter().rev();
    let Some(last) = from_the_right.next() else { return empty_root() };
    from_the_right.fold(*last, |right, left| node_hash(left, &right))
}
