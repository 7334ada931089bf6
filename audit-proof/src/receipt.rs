//! A receipt that carries its proof: an entry, against a checkpoint by a pinned key. No server is asked.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::checkpoint::{Checkpoint, Note, WrongCheckpoint, WrongNote};
use crate::merkle::{self, Hash, leaf_hash, verify_inclusion};
use crate::pinned::{NotBelieved, PinnedKey, Signers, signed_by};

/// What a receipt proves an entry with.
#[derive(Debug, Clone, Copy)]
pub struct Proof<'a> {
    /// The entry's canonical JSON, as a line of an export.
    pub entry_json: &'a str,
    /// The signed note of a checkpoint.
    pub checkpoint: &'a str,
    /// The inclusion proof in the checkpoint's tree, from the leaf up.
    pub hashes: &'a [Vec<u8>],
}

/// An entry that is as it was signed.
#[derive(Debug, Clone, PartialEq)]
pub struct ProvenEntry {
    /// Whose log it is in.
    pub instance: String,
    /// Its place there.
    pub sequence: u64,
    /// Its leaf hash.
    pub leaf_hash: Hash,
    /// Entries of the checkpoint that it is under.
    pub tree_size: u64,
    /// When a pinned witness has cosigned that: seconds since 1970.
    pub cosigned_at_s: Option<u64>,
    /// What it says, by the names of canonical JSON.
    pub members: BTreeMap<String, Value>,
}

/// Checks that an entry is in the log that its checkpoint signs, at the place that it says.
///
/// It proves what the entry says; whether that is what its writer sent, is the writer's to compare.
pub fn verify(keys: &[PinnedKey], proof: Proof<'_>) -> Result<ProvenEntry, NotProven> {
    let members: BTreeMap<String, Value> = serde_json::from_str(proof.entry_json).map_err(|_| NotProven::Entry)?;
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    let sequence = text("sequence").and_then(|text| text.parse().ok()).ok_or(NotProven::Entry)?;
    let says = text("instanceId").ok_or(NotProven::Entry)?;
    let note: Note = proof.checkpoint.parse()?;
    let checkpoint = Checkpoint::parse(note.text())?;
    let Signers { instance, at_s } = signed_by(keys, &note, &checkpoint)?;
    if says != instance {
        return Err(NotProven::OtherLog { says: says.to_owned(), instance });
    }
    let hashes = proof.hashes.iter().map(|hash| Hash::try_from(hash.as_slice()));
    let hashes = hashes.collect::<Result<Vec<_>, _>>().map_err(|_| NotProven::Tree(merkle::NotProven::Length))?;
    let leaf_hash = leaf_hash(proof.entry_json.as_bytes());
    verify_inclusion(sequence, checkpoint.size, &leaf_hash, &hashes, &checkpoint.root)?;
    Ok(ProvenEntry { instance, sequence, leaf_hash, tree_size: checkpoint.size, cosigned_at_s: at_s, members })
}

/// Why an entry is not proven.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotProven {
    /// Not a line of an export.
    #[error("the entry is no JSON object with an instanceId and a sequence")]
    Entry,
    /// Not a signed note.
    #[error("the checkpoint: {0}")]
    Note(#[from] WrongNote),
    /// Not a note of a checkpoint.
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] WrongCheckpoint),
    /// A checkpoint that is not to be believed.
    #[error("the checkpoint: {0}")]
    NotBelieved(#[from] NotBelieved),
    /// A checkpoint of another log.
    #[error("the checkpoint is of the log of {instance:?}, and the entry says that it is of {says:?}")]
    OtherLog {
        /// What the entry says.
        says: String,
        /// Whose log was signed.
        instance: String,
    },
    /// Another entry, another place, or another tree.
    #[error("it is not the entry that was signed: {0}")]
    Tree(#[from] merkle::NotProven),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{KeyKind, SigningKey};
    use crate::merkle::{Frontier, Plan, Tile, TileId, TileSet};

    const SIZE: u64 = 7;

    fn line(sequence: u64) -> String {
        format!(r#"{{"id":"{sequence}","instanceId":"eu 1","sequence":"{sequence}"}}"#)
    }

    /// A log of seven entries, signed.
    fn signed(origin: &str) -> (SigningKey, String) {
        let key = SigningKey::generate("o", KeyKind::Log).unwrap().0;
        let root = (0..SIZE).map(|at| leaf_hash(line(at).as_bytes())).collect::<Frontier>().root();
        let text = Checkpoint { origin: origin.to_owned(), size: SIZE, root }.text();
        let note = Note::new(text.clone(), vec![key.sign(&text, 0)]).unwrap().to_string();
        (key, note)
    }

    fn hashes(sequence: u64) -> Vec<Vec<u8>> {
        let leaves = (0..SIZE).map(|at| leaf_hash(line(at).as_bytes())).collect();
        let mut tiles = TileSet::default();
        tiles.insert(TileId { level: 0, index: 0 }, Tile::new(leaves).unwrap());
        let proof = Plan::inclusion(sequence, SIZE).unwrap().prove(&tiles).unwrap();
        proof.into_iter().map(Vec::from).collect()
    }

    #[test]
    fn an_entry_is_proven_and_with_one_bit_changed_it_is_not() {
        let (key, note) = signed("o/eu 1");
        let keys = [PinnedKey::from(key.verifier().clone())];
        for sequence in 0..SIZE {
            let (line, hashes) = (line(sequence), hashes(sequence));
            let proof = Proof { entry_json: &line, checkpoint: &note, hashes: &hashes };
            let proven = verify(&keys, proof).unwrap();
            assert_eq!((proven.instance.as_str(), proven.sequence, proven.tree_size), ("eu 1", sequence, SIZE));
            let flipped = |bytes: &[u8], bit: usize| {
                let mut bytes = bytes.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            for bit in 0..line.len() * 8 {
                let Ok(line) = String::from_utf8(flipped(line.as_bytes(), bit)) else { continue };
                assert!(verify(&keys, Proof { entry_json: &line, ..proof }).is_err(), "{line}");
            }
            for bit in 0..note.len() * 8 {
                let Ok(note) = String::from_utf8(flipped(note.as_bytes(), bit)) else { continue };
                assert!(verify(&keys, Proof { checkpoint: &note, ..proof }).is_err(), "{note}");
            }
            for bit in 0..hashes.len() * 256 {
                let mut hashes = hashes.clone();
                hashes[bit / 256] = flipped(&hashes[bit / 256], bit % 256);
                assert!(verify(&keys, Proof { hashes: &hashes, ..proof }).is_err(), "{bit}");
            }
        }
    }

    #[test]
    fn what_is_of_another_log_place_or_key_is_not_proven() {
        let ((key, note), (other_key, of_other)) = (signed("o/eu 1"), signed("o/eu 2"));
        let pin =
            |key: &SigningKey, sizes: &str| -> PinnedKey { format!("{}{sizes}", key.verifier()).parse().unwrap() };
        let (line, hashes, keys) = (line(3), hashes(3), [pin(&key, ""), pin(&other_key, "")]);
        let short = [vec![0; 31]];
        let proof = Proof { entry_json: &line, checkpoint: &note, hashes: &hashes };
        let why = |keys: &[PinnedKey], proof| verify(keys, proof).unwrap_err().to_string();
        assert!(why(&keys, Proof { checkpoint: &of_other, ..proof }).contains("\"eu 2\""));
        assert!(why(&keys[1..], proof).contains("no key that is pinned"));
        assert!(why(&[pin(&key, "@-6")], proof).contains("is good for 0-6"));
        assert!(why(&keys, Proof { hashes: &hashes[1..], ..proof }).contains("too many hashes or too few"));
        assert!(why(&keys, Proof { hashes: &short, ..proof }).contains("too many hashes or too few"));
        assert!(why(&keys, Proof { entry_json: "[]", ..proof }).contains("instanceId"));
        assert!(why(&keys, Proof { checkpoint: "", ..proof }).contains("not a signed note"));
    }
}
