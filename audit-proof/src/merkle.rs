//! The Merkle tree over a log, without a database: RFC 6962 hashing with SHA-256, C2SP tlog-tiles, proofs.
//!
//! ```text
//! leaf hashes ─▶ Frontier        what a writer needs: the peaks of the tree, a hash for each bit of its size
//!            └─▶ tiles           what a reader needs: 256 hashes at a time, from which any proof is put together
//! plan of a proof (ranges of leaves) ─▶ which tiles ─▶ TileSet ─▶ the proof's hashes ─▶ verify_…
//! ```
//!
//! Sources: [RFC 6962], section 2.1; [RFC 9162], sections 2.1.3.2 and 2.1.4.2, for the verification; [tlog-tiles].
//!
//! [RFC 6962]: https://www.rfc-editor.org/rfc/rfc6962
//! [RFC 9162]: https://www.rfc-editor.org/rfc/rfc9162
//! [tlog-tiles]: https://c2sp.org/tlog-tiles

mod frontier;
mod proof;
mod tile;

use sha2::{Digest as _, Sha256};

pub use frontier::Frontier;
pub use proof::{NotProven, Plan, TileSet, Unprovable, verify_consistency, verify_inclusion};
pub use tile::{Tile, TileId, TilePath, WIDTH, WrongPath, WrongTile};

/// A SHA-256.
pub type Hash = [u8; 32];

/// First byte of what a leaf hash is over.
pub const LEAF: [u8; 1] = [0];
/// First byte of what the hash of two hashes is over.
const NODE: [u8; 1] = [1];

/// The hash of a leaf.
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new().chain_update(LEAF).chain_update(leaf).finalize().into()
}

/// The hash of what stands over two subtrees.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut data = [0; 65];
    data[0] = NODE[0];
    data[1..33].copy_from_slice(left);
    data[33..].copy_from_slice(right);
    Sha256::digest(data).into()
}

/// The root of the tree without leaves.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

#[cfg(test)]
mod tests;
