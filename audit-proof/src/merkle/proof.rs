//! Proofs: that an entry is in a tree, and that a tree began as another one.
//!
//! A proof is planned without any hash, as the ranges of leaves whose roots it consists of; the plan says which tiles it
//! needs, and with these it becomes hashes. Ranges begin at a multiple of a power of two that is no smaller than they
//! are, so each is made of perfect subtrees, and each of these lies within one tile.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::frontier::root_of;
use super::tile::{HEIGHT, Tile, TileId, WIDTH, subtree_root};
use super::{Hash, empty_root, node_hash};

/// What a proof consists of, before its hashes are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Of the tree in which it is a proof.
    size: u64,
    /// Leaves whose root is a hash of the proof, in the proof's order.
    ranges: Vec<Range<u64>>,
}

impl Plan {
    /// That the leaf at `index` is in the tree of `size` leaves (RFC 6962, section 2.1.1).
    pub fn inclusion(index: u64, size: u64) -> Result<Self, Unprovable> {
        if index >= size {
            return Err(Unprovable::Index { index, size });
        }
        let mut ranges = Vec::new();
        let (mut begin, mut end) = (0, size);
        while end - begin > 1 {
            let middle = begin + split(end - begin);
            if index < middle {
                ranges.push(middle..end);
                end = middle;
            } else {
                ranges.push(begin..middle);
                begin = middle;
            }
        }
        ranges.reverse();
        Ok(Self { size, ranges })
    }

    /// That the tree of `size` leaves began as the one of `old_size` (RFC 6962, section 2.1.2). The proof for nothing,
    /// and for the same tree, is empty.
    pub fn consistency(old_size: u64, size: u64) -> Result<Self, Unprovable> {
        if old_size > size {
            return Err(Unprovable::Sizes { old_size, size });
        }
        let mut ranges = Vec::new();
        if old_size == 0 || old_size == size {
            return Ok(Self { size, ranges });
        }
        let (mut begin, mut end) = (0, size);
        while old_size != end {
            let middle = begin + split(end - begin);
            if old_size <= middle {
                ranges.push(middle..end);
                end = middle;
            } else {
                ranges.push(begin..middle);
                begin = middle;
            }
        }
        // The whole of the old tree is known to whoever asks; a part of it is not.
        if begin > 0 {
            ranges.push(begin..end);
        }
        ranges.reverse();
        Ok(Self { size, ranges })
    }

    /// The root of the tree itself, as if it were a proof of one hash. Of no tree without leaves.
    pub fn root(size: u64) -> Self {
        let whole = 0..size;
        Self { size, ranges: if size > 0 { vec![whole] } else { Vec::new() } }
    }

    /// The peaks of the tree, as a [`Frontier`](super::Frontier) has them.
    pub fn peaks(size: u64) -> Self {
        let leaves = |subtree: Perfect| subtree.index << subtree.height..(subtree.index + 1) << subtree.height;
        Self { size, ranges: perfect_subtrees(&(0..size)).map(leaves).collect() }
    }

    /// The tiles that it needs, each with as many hashes as it has in the tree.
    pub fn tiles(&self) -> BTreeSet<TileId> {
        self.ranges.iter().flat_map(perfect_subtrees).map(|subtree| subtree.tile().0).collect()
    }

    /// The hashes of the proof.
    pub fn prove(&self, tiles: &TileSet) -> Result<Vec<Hash>, Unprovable> {
        let root = |range: &Range<u64>| {
            let peaks = perfect_subtrees(range).map(|subtree| tiles.root_of(subtree)).collect::<Result<Vec<_>, _>>()?;
            Ok(root_of(&peaks))
        };
        self.ranges.iter().map(root).collect()
    }

    /// Of the tree in which it is a proof.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// The largest power of two that is smaller than `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

/// `2^height` leaves from a multiple of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Perfect {
    height: u32,
    index: u64,
}

impl Perfect {
    /// The tile that holds it, and which of its hashes.
    fn tile(self) -> (TileId, Range<usize>) {
        let (level, within) = (self.height / HEIGHT, self.height % HEIGHT);
        let first = self.index << within;
        // Eight levels of tiles at most; 256 places in one.
        let (id, at) = (TileId { level: level as u8, index: first / WIDTH }, (first % WIDTH) as usize);
        (id, at..at + (1 << within))
    }
}

/// The perfect subtrees of a range, the largest first.
fn perfect_subtrees(range: &Range<u64>) -> impl Iterator<Item = Perfect> + use<> {
    let (mut begin, end) = (range.start, range.end);
    std::iter::from_fn(move || {
        let height = (end - begin).checked_ilog2()?;
        let subtree = Perfect { height, index: begin >> height };
        begin += 1 << height;
        Some(subtree)
    })
}

/// Tiles of one tree, from which proofs are put together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TileSet {
    tiles: BTreeMap<TileId, Tile>,
}

impl TileSet {
    /// Adds a tile.
    pub fn insert(&mut self, id: TileId, tile: Tile) {
        self.tiles.insert(id, tile);
    }

    /// Whether it has a tile.
    pub fn has(&self, id: TileId) -> bool {
        self.tiles.contains_key(&id)
    }

    /// Tiles in it.
    pub fn len(&self) -> usize {
        self.tiles.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.tiles.is_empty()
    }

    fn root_of(&self, subtree: Perfect) -> Result<Hash, Unprovable> {
        let (id, places) = subtree.tile();
        let hashes = self.tiles.get(&id).and_then(|tile| tile.hashes().get(places));
        hashes.map(subtree_root).ok_or(Unprovable::NoTile(id))
    }
}

impl Extend<TileSet> for TileSet {
    fn extend<T: IntoIterator<Item = TileSet>>(&mut self, sets: T) {
        sets.into_iter().for_each(|set| self.tiles.extend(set.tiles));
    }
}

/// Why there is no proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unprovable {
    /// No such leaf.
    #[error("index is {index}, allowed are those below the tree's size, {size}")]
    Index {
        /// The leaf.
        index: u64,
        /// Leaves in the tree.
        size: u64,
    },
    /// The older tree is the larger one.
    #[error("the older size is {old_size}, allowed are those up to the newer one, {size}")]
    Sizes {
        /// Leaves in the older tree.
        old_size: u64,
        /// Leaves in the newer tree.
        size: u64,
    },
    /// A tile, or hashes of it, are missing.
    #[error("tile {} of level {} is missing or too short", .0.index, .0.level)]
    NoTile(TileId),
}

/// Checks that a leaf is in a tree (RFC 9162, section 2.1.3.2).
pub fn verify_inclusion(index: u64, size: u64, leaf: &Hash, proof: &[Hash], root: &Hash) -> Result<(), NotProven> {
    if index >= size {
        return Err(NotProven::Impossible);
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(NotProven::Length);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            // A left node that is the last one, and so not the first, has no sibling until it is a right one.
            let up = node.trailing_zeros();
            (node, last) = (node >> up, last >> up);
        } else {
            hash = node_hash(&hash, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    match (last == 0, hash == *root) {
        (false, _) => Err(NotProven::Length),
        (true, false) => Err(NotProven::Root),
        (true, true) => Ok(()),
    }
}

/// Checks that a tree began as another one (RFC 9162, section 2.1.4.2).
pub fn verify_consistency(
    old_size: u64,
    size: u64,
    old_root: &Hash,
    root: &Hash,
    proof: &[Hash],
) -> Result<(), NotProven> {
    if old_size > size {
        return Err(NotProven::Impossible);
    }
    if old_size == 0 || old_size == size {
        let known = if old_size == 0 { empty_root() } else { *root };
        return match (proof.is_empty(), *old_root == known && (size > 0 || *root == known)) {
            (false, _) => Err(NotProven::Length),
            (true, false) => Err(NotProven::Root),
            (true, true) => Ok(()),
        };
    }
    // A tree that is perfect is a subtree of the newer one, and its root begins the proof, which need not say it.
    let (first, rest) = match old_size.is_power_of_two() {
        true => (old_root, proof),
        false => proof.split_first().ok_or(NotProven::Length)?,
    };
    let (mut node, mut last) = (old_size - 1, size - 1);
    let up = node.trailing_ones();
    (node, last) = (node >> up, last >> up);
    let (mut old, mut new) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return Err(NotProven::Length);
        }
        if node & 1 == 1 || node == last {
            (old, new) = (node_hash(sibling, &old), node_hash(sibling, &new));
            let up = node.trailing_zeros();
            (node, last) = (node >> up, last >> up);
        } else {
            new = node_hash(&new, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    match (last == 0, old == *old_root && new == *root) {
        (false, _) => Err(NotProven::Length),
        (true, false) => Err(NotProven::Root),
        (true, true) => Ok(()),
    }
}

/// Why a proof does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotProven {
    /// No tree of this size has such a leaf, or is newer than the other one.
    #[error("the sizes or the index are impossible")]
    Impossible,
    /// Too many hashes, or too few.
    #[error("the proof has too many hashes or too few")]
    Length,
    /// It leads to another root.
    #[error("the proof leads to another root")]
    Root,
}
