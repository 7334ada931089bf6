//! Tiles: 256 hashes of one level at a time (C2SP tlog-tiles).
//!
//! At level 0 they are leaf hashes; at each level above, each is the root over a full tile of the level below. A tile is
//! full or, at the right edge, partial; once it is full it never changes.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::{Frontier, Hash};

/// Hashes of a full tile.
pub const WIDTH: u64 = 256;
/// Levels of the tree from one level of tiles to the next.
pub(super) const HEIGHT: u32 = 8;
/// Levels of tiles that a tree of fewer than 2^64 leaves has.
const LEVELS: u8 = 8;

/// Which tile of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    /// Its level: 0 to 7.
    pub level: u8,
    /// Its place in its level.
    pub index: u64,
}

impl TileId {
    /// Hashes of this level that a tree has in all: of the leaves at level 0, of full tiles of the level below above.
    pub fn hashes(level: u8, size: u64) -> u64 {
        size.checked_shr(u32::from(level) * HEIGHT).unwrap_or(0)
    }

    /// Hashes that this tile has in a tree of this size: 0 to 256.
    pub fn width(self, size: u64) -> u64 {
        let first = self.index.saturating_mul(WIDTH);
        Self::hashes(self.level, size).saturating_sub(first).min(WIDTH)
    }

    /// The hashes of its level, by their place, that are in it when it is full.
    pub fn places(self) -> Range<u64> {
        let first = self.index.saturating_mul(WIDTH);
        first..first.saturating_add(WIDTH)
    }

    /// The tiles of this level that are full in a tree of the second size and were not in one of the first.
    pub fn completed(level: u8, old_size: u64, new_size: u64) -> Range<u64> {
        Self::hashes(level, old_size) / WIDTH..Self::hashes(level, new_size) / WIDTH
    }

    /// The levels that tiles of a tree of this size have.
    pub fn levels(size: u64) -> Range<u8> {
        0..(0..LEVELS).take_while(|level| Self::hashes(*level, size) > 0).count() as u8
    }
}

/// The hashes of a tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    hashes: Vec<Hash>,
}

impl Tile {
    /// A tile of these hashes: 1 to 256 of them.
    pub fn new(hashes: Vec<Hash>) -> Result<Self, WrongTile> {
        match hashes.len() as u64 {
            1..=WIDTH => Ok(Self { hashes }),
            _ => Err(WrongTile(hashes.len() * 32)),
        }
    }

    /// The same from its bytes, which are the hashes one after another.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WrongTile> {
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(WrongTile(bytes.len()));
        }
        Self::new(hashes.to_vec())
    }

    /// The hashes one after another: 8,192 bytes of a full tile.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.hashes.concat()
    }

    /// The hashes.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Whether there are 256.
    pub fn is_full(&self) -> bool {
        self.hashes.len() as u64 == WIDTH
    }

    /// The root of the tree over the hashes: what stands for a full tile in the level above.
    pub fn root(&self) -> Hash {
        subtree_root(&self.hashes)
    }
}

/// The root over neighbouring hashes of one level.
pub(super) fn subtree_root(hashes: &[Hash]) -> Hash {
    hashes.iter().copied().collect::<Frontier>().root()
}

/// Bytes that are no tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tile has {0} bytes, allowed are 32 to 8192 in steps of 32")]
pub struct WrongTile(usize);

/// The path of a tile below the log's prefix, as in `tile/0/x001/x234/067` or `tile/1/000.p/17`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TilePath {
    /// Which tile.
    pub id: TileId,
    /// Its hashes, if it is partial: 1 to 255.
    pub partial: Option<u8>,
}

impl fmt::Display for TilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/{}/", self.id.level)?;
        let mut groups = vec![self.id.index % 1_000];
        let mut rest = self.id.index / 1_000;
        while rest > 0 {
            groups.push(rest % 1_000);
            rest /= 1_000;
        }
        for group in groups.iter().skip(1).rev() {
            write!(f, "x{group:03}/")?;
        }
        write!(f, "{:03}", groups[0])?;
        match self.partial {
            Some(width) => write!(f, ".p/{width}"),
            None => Ok(()),
        }
    }
}

impl FromStr for TilePath {
    type Err = WrongPath;

    /// Reads exactly what is written: there is one path for each tile.
    fn from_str(path: &str) -> Result<Self, WrongPath> {
        let parse = || {
            let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
            let (index, partial) = match rest.split_once(".p/") {
                Some((index, width)) => (index, Some(width.parse().ok().filter(|width| *width > 0)?)),
                None => (rest, None),
            };
            let digits: String = index.split('/').map(|group| group.strip_prefix('x').unwrap_or(group)).collect();
            let id = TileId { level: level.parse().ok().filter(|level| *level < LEVELS)?, index: digits.parse().ok()? };
            let parsed = Self { id, partial };
            (parsed.to_string() == path).then_some(parsed)
        };
        parse().ok_or(WrongPath)
    }
}

/// Text that is no path of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the path of a tile, such as tile/0/x001/x234/067 or tile/1/000.p/17")]
pub struct WrongPath;
