//! Receipts that carry their proof. What is stored is acknowledged whatever happens here: a receipt without a proof is one
//! too, and its writer asks again by sending the same event.
//!
//! ```text
//! places ─▶ by log ─▶ a checkpoint over all of them ─▶ lines, and hashes in its tree ─▶ checked ─▶ receipts
//!                     (signed within a second)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use service_core::auth::Access;
use service_core::error::Result;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, Prover, tree_of};
use crate::canonical;
use crate::merkle::{Hash, verify_inclusion};
use crate::store::{self, LogWalk, damaged};

/// Proofs of one answer, which clients take up to 4 MiB of if nobody has told them otherwise.
const ROOM_BYTES: usize = 3 * 1024 * 1024;
/// What a proof takes beside its texts and hashes.
const OWN_BYTES: usize = 64;

/// Where an entry is of which its writer wants the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) instance_id: String,
    pub(crate) sequence: u64,
    pub(crate) leaf: Hash,
}

/// The proof of a receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// The entry's line; empty where it is archived.
    pub(crate) line: String,
    /// A checkpoint over it.
    pub(crate) note: Arc<str>,
    /// The proof in the checkpoint's tree.
    pub(crate) hashes: Vec<Hash>,
}

impl Receipt {
    fn bytes(&self) -> usize {
        OWN_BYTES + self.line.len() + self.note.len() + self.hashes.len() * (size_of::<Hash>() + 2)
    }
}

impl Prover {
    /// The proofs of these places, in their order, as far as there are any in time and they have room.
    pub(crate) async fn receipts(
        &self,
        access: &Access,
        places: &[Place],
        stop: &CancellationToken,
    ) -> Vec<Option<Receipt>> {
        let mut receipts: Vec<Option<Receipt>> = places.iter().map(|_| None).collect();
        let mut by_log: BTreeMap<&str, Vec<(usize, &Place)>> = BTreeMap::new();
        for (at, place) in places.iter().enumerate() {
            by_log.entry(&place.instance_id).or_default().push((at, place));
        }
        let (deadline, mut room) = (Instant::now() + PATIENCE, ROOM_BYTES);
        for (instance_id, mut own) in by_log {
            own.sort_unstable_by_key(|(_, place)| place.sequence);
            let size = own.last().map_or(0, |(_, last)| last.sequence + 1);
            let proven = match self.signed(access, instance_id, size, deadline, stop).await {
                Ok(Some(note)) => self.prove_each(access, instance_id, &note, &own, &mut room).await,
                Ok(None) => Ok(Vec::new()),
                Err(error) => Err(error),
            };
            match proven {
                Ok(proven) => proven.into_iter().for_each(|(at, receipt)| receipts[at] = Some(receipt)),
                Err(error) => tracing::warn!(instance_id, %error, "receipts go out without proofs"),
            }
        }
        receipts
    }

    /// Proves places of one log, sorted, under a checkpoint over all of them.
    async fn prove_each(
        &self,
        access: &Access,
        instance_id: &str,
        note: &str,
        own: &[(usize, &Place)],
        room: &mut usize,
    ) -> Result<Vec<(usize, Receipt)>> {
        let (note, tree) = (Arc::<str>::from(note), tree_of(note)?);
        let (mut rows, mut proven) = (self.rows(access), Vec::with_capacity(own.len()));
        // What follows one another is read at once; an event may be in a batch twice.
        for run in own.chunk_by(|(_, one), (_, next)| next.sequence <= one.sequence + 1) {
            let lines = self.lines(access, instance_id, run, *room).await?;
            for (at, Place { sequence, leaf, .. }) in run {
                let line = lines.get(sequence).cloned().unwrap_or_default();
                let hashes = rows.hashes(instance_id, *sequence, tree.size).await?;
                let as_it_was = line.is_empty() || canonical::leaf_hash(&line) == *leaf;
                if !as_it_was || verify_inclusion(*sequence, tree.size, leaf, &hashes, &tree.root).is_err() {
                    return Err(store::lost(damaged(
                        instance_id,
                        &format!("entry {sequence} is not as it was signed"),
                    )));
                }
                let receipt = Receipt { line, note: note.clone(), hashes };
                let Some(left) = room.checked_sub(receipt.bytes()) else { return Ok(proven) };
                *room = left;
                proven.push((*at, receipt));
            }
        }
        Ok(proven)
    }

    /// The lines of entries that follow one another: of those that are here as many as have room, and one.
    async fn lines(
        &self,
        access: &Access,
        instance_id: &str,
        run: &[(usize, &Place)],
        room: usize,
    ) -> Result<HashMap<u64, String>> {
        let (mut lines, mut bytes) = (HashMap::new(), 0);
        let Some(((_, first), (_, last))) = run.first().zip(run.last()) else { return Ok(lines) };
        let mut walk = LogWalk::new(access, instance_id, first.sequence, last.sequence + 1);
        while bytes <= room {
            let rows = walk.next(&self.store).await?;
            if rows.is_empty() {
                break;
            }
            bytes += rows.iter().map(|row| row.canonical.len()).sum::<usize>();
            lines.extend(rows.into_iter().map(|row| (row.sequence, row.canonical)));
        }
        Ok(lines)
    }
}
