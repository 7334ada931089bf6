//! The manifest of a segment: what is in it, and the proof that these entries are those of the log.
//!
//! ```text
//! lines ─▶ leaf hashes ─▶ full tiles of leaves ┐
//! manifest ─▶ tiles at its edges and above ────┴─▶ an inclusion proof a tile ─▶ root ─▶ checkpoint
//! ```

use std::str::FromStr as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::segment::{Built, Lines};
use super::{hex, sha256};
use crate::canonical;
use crate::checkpoint::{Checkpoint, Note};
use crate::event::Entry;
use crate::merkle::{
    Frontier, Hash, Plan, Tile, TileId, TilePath, TileSet, WIDTH, verify_consistency, verify_inclusion,
};
use crate::time::rfc3339;

/// What kind of manifest it is.
const FORMAT: &str = "activity-audit-archive/1";

/// A manifest. Numbers are texts, as in canonical JSON; hashes of objects are hex, those of the tree base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    format: String,
    /// Name of the log, without the instance.
    pub origin: String,
    /// Whose log.
    pub instance_id: String,
    /// First sequence inside.
    #[serde(with = "text")]
    pub first_sequence: u64,
    /// First sequence after.
    #[serde(with = "text")]
    pub end_sequence: u64,
    /// Of the entries: when the first and the last one was recorded, and occurred.
    pub first_recorded_at: String,
    /// The last one.
    pub last_recorded_at: String,
    /// When the first one occurred.
    pub first_occurred_at: String,
    /// When the last one did.
    pub last_occurred_at: String,
    /// The object with the lines.
    pub data: Object,
    /// SHA-256 over the lines, each with its line feed.
    pub lines_sha256: String,
    /// The tree in which the proof is.
    #[serde(with = "text")]
    pub tree_size: u64,
    /// Its root.
    pub root: String,
    /// The peaks of the tree over all entries before `end_sequence`: from them whoever has only the entries behind
    /// comes to every later root.
    pub frontier: String,
    /// Tiles of the tree, but for those that the lines make full.
    pub tiles: Vec<StoredTile>,
    /// A signed note over that tree, where the log is signed.
    pub checkpoint: Option<String>,
}

/// An object of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// Its size.
    #[serde(with = "text")]
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// A tile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTile {
    /// As in C2SP tlog-tiles.
    pub path: String,
    /// One after another.
    pub hashes: String,
}

/// A segment that is not what its manifest, or the log, says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(String);

fn broken(what: impl Into<String>) -> Broken {
    Broken(what.into())
}

/// What a manifest is made of, beside the lines.
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) tree_size: u64,
    pub(crate) root: Hash,
    pub(crate) frontier: Frontier,
    pub(crate) tiles: Vec<(TileId, Tile)>,
    pub(crate) checkpoint: Option<String>,
}

impl Manifest {
    pub(crate) fn new(origin: &str, instance_id: &str, first: u64, data: String, built: &Built, proof: Proof) -> Self {
        let time = |us: Option<i64>| rfc3339(us.unwrap_or(0));
        let (recorded, occurred) = (built.recorded_us, built.occurred_us);
        let tile = |(id, tile): (TileId, Tile)| {
            let path = TilePath { id, partial: u8::try_from(tile.hashes().len()).ok() };
            StoredTile { path: path.to_string(), hashes: BASE64.encode(tile.to_bytes()) }
        };
        Self {
            format: FORMAT.to_owned(),
            origin: origin.to_owned(),
            instance_id: instance_id.to_owned(),
            first_sequence: first,
            end_sequence: first + built.leaves.len() as u64,
            first_recorded_at: time(recorded.map(|times| times.0)),
            last_recorded_at: time(recorded.map(|times| times.1)),
            first_occurred_at: time(occurred.map(|times| times.0)),
            last_occurred_at: time(occurred.map(|times| times.1)),
            data: Object { name: data, bytes: built.data.len() as u64, sha256: hex(&sha256(&built.data)) },
            lines_sha256: hex(&built.lines_sha256),
            tree_size: proof.tree_size,
            root: BASE64.encode(proof.root),
            frontier: BASE64.encode(proof.frontier.to_bytes()),
            tiles: proof.tiles.into_iter().map(tile).collect(),
            checkpoint: proof.checkpoint,
        }
    }

    /// Reads a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, Broken> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| broken(format!("no manifest: {error}")))?;
        if manifest.format != FORMAT {
            return Err(broken(format!("its format is {:?}, known is {FORMAT:?}", manifest.format)));
        }
        let (first, end, size) = (manifest.first_sequence, manifest.end_sequence, manifest.tree_size);
        match first < end && end <= size {
            true => Ok(manifest),
            false => Err(broken(format!("it is of entries {first} to before {end} of a tree over {size}"))),
        }
    }

    pub(crate) fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Entries in it.
    pub fn entries(&self) -> u64 {
        self.end_sequence - self.first_sequence
    }

    /// The peaks behind its last entry.
    pub fn frontier(&self) -> Result<Frontier, Broken> {
        let peaks = BASE64.decode(&self.frontier).ok();
        let frontier = peaks.and_then(|peaks| Frontier::from_bytes(self.end_sequence, &peaks));
        frontier.ok_or_else(|| broken("its frontier is none of a tree of its size"))
    }

    /// Checks that an object has the lines that the manifest tells, that these are entries of the tree whose root it
    /// names, each in its place, and that its checkpoint is of that tree; gives each line to `each`, and its entry.
    ///
    /// Who signed the checkpoint is for those to check who have the key.
    pub fn verify(&self, data: Vec<u8>, mut each: impl FnMut(&str, &Entry)) -> Result<(), Broken> {
        if data.len() as u64 != self.data.bytes || hex(&sha256(&data)) != self.data.sha256 {
            return Err(broken("its lines are not those whose SHA-256 it has"));
        }
        let mut lines = Lines::new(data).map_err(|error| broken(error.to_string()))?;
        let mut hash = Sha256::new();
        let mut leaves = Vec::new();
        while let Some(line) = lines.next().map_err(|error| broken(format!("its lines cannot be read: {error}")))? {
            let sequence = self.first_sequence + leaves.len() as u64;
            hash.update(line.as_bytes());
            hash.update(b"\n");
            let entry = canonical::parse(&line).map_err(|error| broken(format!("entry {sequence}: {error}")))?;
            if entry.sequence != sequence || entry.event.instance_id != self.instance_id {
                return Err(broken(format!("where entry {sequence} should be is another one")));
            }
            leaves.push(canonical::leaf_hash(&line));
            each(&line, &entry);
        }
        if leaves.len() as u64 != self.entries() || hex(&hash.finalize()) != self.lines_sha256 {
            return Err(broken("its lines are not those that it counted"));
        }
        self.verify_leaves(&leaves)
    }

    fn verify_leaves(&self, leaves: &[Hash]) -> Result<(), Broken> {
        let root = self.root()?;
        let tiles = self.tiles_with(leaves)?;
        let unproven = |sequence: u64| broken(format!("entries from {sequence} on are not those of the log"));
        let mut sequence = self.first_sequence;
        while sequence < self.end_sequence {
            // The proof of one is over all of its tile.
            let leaf = leaves[(sequence - self.first_sequence) as usize];
            let plan = Plan::inclusion(sequence, self.tree_size).map_err(|_| unproven(sequence))?;
            let proof = plan.prove(&tiles).map_err(|error| broken(error.to_string()))?;
            verify_inclusion(sequence, self.tree_size, &leaf, &proof, &root).map_err(|_| unproven(sequence))?;
            sequence = (sequence / WIDTH + 1) * WIDTH;
        }
        let (end, size) = (self.end_sequence, self.tree_size);
        let plan = Plan::consistency(end, size).map_err(|error| broken(error.to_string()))?;
        let proof = plan.prove(&tiles).map_err(|error| broken(error.to_string()))?;
        verify_consistency(end, size, &self.frontier()?.root(), &root, &proof)
            .map_err(|_| broken("its frontier is not of its tree"))?;
        match self.signed()? {
            Some(signed) if signed.size != size || signed.root != root => {
                Err(broken("its checkpoint is not of its tree"))
            }
            _ => Ok(()),
        }
    }

    /// What its checkpoint says, if it has one.
    pub fn signed(&self) -> Result<Option<Checkpoint>, Broken> {
        let checkpoint = |note: &String| {
            let note: Note = note.parse().ok()?;
            Checkpoint::parse(note.text()).ok()
        };
        let signed =
            self.checkpoint.as_ref().map(|note| checkpoint(note).ok_or_else(|| broken("it has no checkpoint")));
        signed.transpose()
    }

    /// The root of the tree in which it proves its entries.
    pub(crate) fn root(&self) -> Result<Hash, Broken> {
        let root = BASE64.decode(&self.root).ok().and_then(|root| root.try_into().ok());
        root.ok_or_else(|| broken("its root has not 32 bytes"))
    }

    /// Its tiles, and those that its leaves make full. Leaves that both tell are the same.
    fn tiles_with(&self, leaves: &[Hash]) -> Result<TileSet, Broken> {
        let mut tiles = TileSet::default();
        for stored in &self.tiles {
            let id = TilePath::from_str(&stored.path).map_err(|error| broken(error.to_string()))?.id;
            let hashes = BASE64.decode(&stored.hashes).ok().and_then(|bytes| Tile::from_bytes(&bytes).ok());
            let tile = hashes.ok_or_else(|| broken(format!("{} cannot be read", stored.path)))?;
            if id.level == 0 {
                let places = id.places().start..id.places().start + tile.hashes().len() as u64;
                for (place, hash) in places.zip(tile.hashes()) {
                    let at = place.checked_sub(self.first_sequence).and_then(|at| leaves.get(at as usize));
                    if at.is_some_and(|leaf| leaf != hash) {
                        return Err(broken(format!("entry {place} is not the one of the log")));
                    }
                }
            }
            tiles.insert(id, tile);
        }
        for index in full_tiles(self.first_sequence, self.end_sequence) {
            let id = TileId { level: 0, index };
            let first = (id.places().start - self.first_sequence) as usize;
            let hashes = leaves.get(first..first + WIDTH as usize).map(<[Hash]>::to_vec).unwrap_or_default();
            tiles.insert(id, Tile::new(hashes).map_err(|error| broken(error.to_string()))?);
        }
        Ok(tiles)
    }
}

/// The tiles of leaves that lie wholly between two sequences, by their index.
fn full_tiles(first: u64, end: u64) -> std::ops::Range<u64> {
    first.div_ceil(WIDTH)..end / WIDTH
}

/// The tiles that a manifest needs.
pub(crate) fn needed_tiles(first: u64, end: u64, tree_size: u64) -> Vec<TileId> {
    let mut needed = std::collections::BTreeSet::new();
    let ones = std::iter::once(first).chain((first / WIDTH + 1..end.div_ceil(WIDTH)).map(|tile| tile * WIDTH));
    for sequence in ones {
        // Below the size, as all are.
        needed.extend(Plan::inclusion(sequence, tree_size).iter().flat_map(Plan::tiles));
    }
    needed.extend(Plan::consistency(end, tree_size).iter().flat_map(Plan::tiles));
    let full = full_tiles(first, end);
    needed.retain(|id| id.level > 0 || !full.contains(&id.index));
    needed.into_iter().collect()
}

/// Numbers as texts.
mod text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
