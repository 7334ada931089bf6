//! Proofs from the tree as it is stored. Each is checked before it is given, against the log's own head and the entry
//! itself: what was changed in the database is told as `DATA_LOSS`, and not proven.
//!
//! ```text
//! entry ─▶ its line's hash ─ is it the leaf? ─┐
//! tiles ─▶ proof, root of the size asked for ─┴─ does it lead there, and that on to the head's root? ─▶ answer
//! ```

mod receipts;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use service_core::auth::Access;
use service_core::error::{Error, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::canonical;
use crate::checkpoint::{Checkpoint, Note};
use crate::merkle::{Hash, NotProven, Plan, TileSet, Unprovable, empty_root, verify_consistency, verify_inclusion};
use crate::signer::Signer;
use crate::store::{self, Heads, LogWalk, Store, TreeHead, damaged};

pub(crate) use receipts::Place;

/// Logs of an export's end that are connected with checkpoints.
const CONNECTED: usize = 1_000;
/// Tiles that are kept for the next proofs: half a megabyte.
const TILES: usize = 64;
/// How long the end of an export, or a receipt, waits for what is being signed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks, for what another replica signs.
const PAUSE: Duration = Duration::from_millis(250);

/// Proves. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Prover {
    store: Store,
    signer: Option<Signer>,
}

/// That an entry is in a tree.
#[derive(Debug)]
pub(crate) struct Inclusion {
    /// Its leaf hash.
    pub(crate) leaf: Hash,
    /// The proof.
    pub(crate) hashes: Vec<Hash>,
    /// The tree's root.
    pub(crate) root: Hash,
}

/// What connects the first entries of a log with a checkpoint over as many or more.
#[derive(Debug)]
pub(crate) struct Connected {
    /// The root over them.
    pub(crate) root: Hash,
    /// The checkpoint.
    pub(crate) note: String,
    /// The proof that its tree began as theirs.
    pub(crate) consistency: Vec<Hash>,
}

impl Prover {
    pub(crate) fn new(store: Store, signer: Option<Signer>) -> Self {
        Self { store, signer }
    }

    /// Proofs of the entries of an export.
    pub(crate) fn rows(&self, access: &Access) -> Rows {
        Rows { store: self.store.clone(), access: access.clone(), tiles: BTreeMap::new() }
    }

    /// What signs, if anything does.
    pub(crate) fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }

    /// Where a log stands.
    pub(crate) async fn head(&self, access: &Access, instance_id: &str) -> Result<TreeHead> {
        let head = self.store.tree_head(access, instance_id).await.map_err(store::lost)?;
        Ok(head.unwrap_or(TreeHead { size: 0, root: empty_root() }))
    }

    /// That an entry is in the tree over the first entries of a log: more than its sequence, at most as many as the head's.
    pub(crate) async fn inclusion(
        &self,
        access: &Access,
        instance_id: &str,
        sequence: u64,
        size: u64,
        head: &TreeHead,
    ) -> Result<Inclusion> {
        let wrong = |how: String| store::lost(damaged(instance_id, &how));
        let leaf = self.store.leaf_at(access, instance_id, sequence).await?;
        let leaf = leaf.ok_or_else(|| wrong(format!("entry {sequence} is missing")))?;
        let row = LogWalk::new(access, instance_id, sequence, sequence + 1).next(&self.store).await?;
        if row.first().is_some_and(|row| canonical::leaf_hash(&row.canonical) != leaf) {
            return Err(wrong(format!("entry {sequence} was changed")));
        }
        let root = self.root(access, instance_id, size, head).await?;
        let hashes = self.prove(access, instance_id, Plan::inclusion(sequence, size)).await?;
        verify_inclusion(sequence, size, &leaf, &hashes, &root)
            .map_err(|why| wrong(format!("its tree is not over entry {sequence} as it is: {why}")))?;
        Ok(Inclusion { leaf, hashes, root })
    }

    /// That the tree of a size began as the one of a smaller size, and the root of the larger one.
    pub(crate) async fn consistency(
        &self,
        access: &Access,
        instance_id: &str,
        old_size: u64,
        size: u64,
        head: &TreeHead,
    ) -> Result<(Vec<Hash>, Hash)> {
        let old_root = self.root(access, instance_id, old_size, head).await?;
        let root = self.root(access, instance_id, size, head).await?;
        let hashes = self.prove(access, instance_id, Plan::consistency(old_size, size)).await?;
        verify_consistency(old_size, size, &old_root, &root, &hashes)
            .map_err(|why| not_one_tree(instance_id, old_size, size, why))?;
        Ok((hashes, root))
    }

    /// The root over the first entries of a log, which is on the way to the head's.
    async fn root(&self, access: &Access, instance_id: &str, size: u64, head: &TreeHead) -> Result<Hash> {
        let root = self.prove(access, instance_id, Ok(Plan::root(size))).await?.first().copied();
        let root = root.unwrap_or_else(empty_root);
        let on = self.prove(access, instance_id, Plan::consistency(size, head.size)).await?;
        verify_consistency(size, head.size, &root, &head.root, &on)
            .map_err(|why| not_one_tree(instance_id, size, head.size, why))?;
        Ok(root)
    }

    /// Sizes were checked, so a tile that is missing has been taken away.
    async fn prove(&self, access: &Access, instance_id: &str, plan: Result<Plan, Unprovable>) -> Result<Vec<Hash>> {
        let plan = plan.map_err(Error::internal)?;
        let tiles = self.store.tiles(access, instance_id, &plan).await.map_err(store::lost)?;
        plan.prove(&tiles).map_err(|why| store::lost(damaged(instance_id, &why.to_string())))
    }

    /// Connects heads with checkpoints, as far as these are signed in time. A head that does not lead to one is left out:
    /// the export holds what was found, and that it is damaged is in the service's log.
    pub(crate) async fn connect(
        &self,
        access: &Access,
        heads: &Heads,
        stop: &CancellationToken,
    ) -> Result<BTreeMap<String, Connected>> {
        let mut connected = BTreeMap::new();
        let deadline = Instant::now() + PATIENCE;
        for (instance_id, size) in heads.iter().take(CONNECTED) {
            let note = match self.signed(access, instance_id, (*size).max(1), deadline, stop).await {
                Ok(note) => note,
                Err(error) => {
                    tracing::warn!(instance_id, %error, "an export ends without a checkpoint");
                    None
                }
            };
            let Some(note) = note else { continue };
            let tree = tree_of(&note)?;
            match self.beginning(access, instance_id, *size, &tree).await {
                Ok((root, consistency)) => {
                    connected.insert(instance_id.clone(), Connected { root, note, consistency });
                }
                // Which was told.
                Err(Error::DataLoss(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(connected)
    }

    /// The note of a checkpoint of a log over at least so many entries: once it is there, `None` if that is too late or
    /// nothing is signed.
    async fn signed(
        &self,
        access: &Access,
        instance_id: &str,
        size: u64,
        deadline: Instant,
        stop: &CancellationToken,
    ) -> Result<Option<String>> {
        let Some(signer) = &self.signer else { return Ok(None) };
        loop {
            // From before the look, so that what is signed between the two wakes it.
            let signed = signer.signed();
            let found = signer.checkpoint(access, instance_id, Some(size)).await?;
            if found.is_some() || Instant::now() >= deadline || stop.is_cancelled() {
                return Ok(found);
            }
            tokio::select! {
                () = signed => {}
                () = tokio::time::sleep_until(deadline.min(Instant::now() + PAUSE)) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// The root over the first entries of a log, and the proof that what was signed began so.
    async fn beginning(
        &self,
        access: &Access,
        instance_id: &str,
        size: u64,
        signed: &TreeHead,
    ) -> Result<(Hash, Vec<Hash>)> {
        let root = self.root(access, instance_id, size, signed).await?;
        Ok((root, self.prove(access, instance_id, Plan::consistency(size, signed.size)).await?))
    }
}

/// Proofs of many entries of some logs, as lines of JSON. They are of the tree as it is stored, whatever an entry's line
/// is now: who has the line, and the root from elsewhere, finds out.
#[derive(Debug)]
pub(crate) struct Rows {
    store: Store,
    access: Access,
    /// Tiles of neighbours are the same ones.
    tiles: BTreeMap<String, TileSet>,
}

/// A line of proofs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RowProof<'a> {
    instance_id: &'a str,
    sequence: String,
    hashes: Vec<String>,
}

impl Rows {
    /// A line for each of these places, of the proof in the tree over the log's head.
    pub(crate) async fn prove(&mut self, heads: &Heads, places: Vec<(String, u64)>) -> Result<Vec<u8>> {
        let mut lines = Vec::new();
        for (instance_id, sequence) in places {
            let size = heads.get(&instance_id).copied().unwrap_or_default();
            let hashes = self.hashes(&instance_id, sequence, size).await?;
            let hashes = hashes.iter().map(|hash| BASE64.encode(hash)).collect();
            let line = RowProof { instance_id: &instance_id, sequence: sequence.to_string(), hashes };
            serde_json::to_writer(&mut lines, &line).map_err(Error::internal)?;
            lines.push(b'\n');
        }
        Ok(lines)
    }

    /// The proof of an entry in the tree of a size, which is the same at each call for a log.
    async fn hashes(&mut self, instance_id: &str, sequence: u64, size: u64) -> Result<Vec<Hash>> {
        let plan = Plan::inclusion(sequence, size).map_err(Error::internal)?;
        if self.tiles.values().map(TileSet::len).sum::<usize>() > TILES {
            self.tiles.clear();
        }
        let tiles = self.tiles.entry(instance_id.to_owned()).or_default();
        for id in plan.tiles() {
            if !tiles.has(id) {
                let tile = self.store.tile(&self.access, instance_id, id, id.width(size)).await;
                if let Some(tile) = tile.map_err(store::lost)? {
                    tiles.insert(id, tile);
                }
            }
        }
        plan.prove(tiles).map_err(|why| store::lost(damaged(instance_id, &why.to_string())))
    }
}

/// What a signed note says of its tree.
fn tree_of(note: &str) -> Result<TreeHead> {
    let note = note.parse::<Note>().map_err(Error::internal)?;
    let signed = Checkpoint::parse(note.text()).map_err(Error::internal)?;
    Ok(TreeHead { size: signed.size, root: signed.root })
}

fn not_one_tree(instance_id: &str, old_size: u64, size: u64, why: NotProven) -> Error {
    store::lost(damaged(
        instance_id,
        &format!("its tree over {size} entries did not begin as the one over {old_size}: {why}"),
    ))
}
