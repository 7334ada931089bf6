//! `AuditTrustService`.

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_trust_service_server::AuditTrustService;
use audit_proof::PinnedKey;
use service_core::auth::Caller;
use service_core::error::{Error, Result};
use tonic::{Request, Response, Status};

use crate::checkpoint::{Checkpoint, KeyKind, Note, VerifierKey};
use crate::convert;
use crate::merkle::{Hash, TileId, TilePath, WIDTH};
use crate::prover::Prover;
use crate::signer::Signer;
use crate::store::{self, Store};

/// Proves the log.
#[derive(Debug)]
pub(crate) struct TrustService {
    store: Store,
    prover: Prover,
}

impl TrustService {
    pub(crate) fn new(store: Store, prover: Prover) -> Self {
        Self { store, prover }
    }

    /// What signs.
    fn signer(&self) -> Result<&Signer> {
        let why = "this service signs no checkpoints: on PostgreSQL log.folder says where they are kept";
        self.prover.signer().ok_or_else(|| Error::NotFound(why.to_owned()))
    }
}

/// Whose log, if the caller may see it.
fn seen(caller: &Caller, instance_id: &str) -> Result<()> {
    convert::instance_id("instance_id", instance_id)?;
    caller.may_see("instance_id", [instance_id])
}

/// A size that was asked for, or all of the log.
fn within(field: &str, asked: Option<u64>, least: u64, size: u64) -> Result<u64> {
    match asked {
        None => Ok(size),
        Some(asked) if (least..=size).contains(&asked) => Ok(asked),
        Some(asked) => {
            let message = format!("{field} is {asked}, allowed are {least} to {size}, the entries there are");
            Err(Error::invalid(field, message))
        }
    }
}

fn bytes(hashes: Vec<Hash>) -> Vec<Vec<u8>> {
    hashes.into_iter().map(Vec::from).collect()
}

#[tonic::async_trait]
impl AuditTrustService for TrustService {
    async fn get_checkpoint(
        &self,
        request: Request<proto::GetCheckpointRequest>,
    ) -> Result<Response<proto::GetCheckpointResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        seen(&caller, &request.instance_id)?;
        let found = self.signer()?.checkpoint(caller.access(), &request.instance_id, request.min_size).await?;
        let note = found.ok_or_else(|| {
            let least = request.min_size.unwrap_or(1);
            Error::NotFound(format!("no checkpoint of this log is over {least} entries or more yet"))
        })?;
        let text = note.parse::<Note>().map_err(Error::internal)?;
        let checkpoint = Checkpoint::parse(text.text()).map_err(Error::internal)?;
        Ok(Response::new(proto::GetCheckpointResponse {
            note,
            tree_size: Some(checkpoint.size),
            root_hash: checkpoint.root.to_vec(),
        }))
    }

    async fn list_keys(
        &self,
        request: Request<proto::ListKeysRequest>,
    ) -> Result<Response<proto::ListKeysResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        seen(&caller, &request.instance_id)?;
        let current: Vec<String> = self.signer()?.verifiers().iter().map(ToString::to_string).collect();
        let signed = self.store.signed_by(caller.access(), &request.instance_id).await?;
        let key = |signed: crate::store::SignedBy| -> Result<proto::LogKey> {
            let key: VerifierKey = signed.key.parse().map_err(Error::internal)?;
            let kind = match key.kind() {
                KeyKind::Log => proto::KeyKind::Log,
                KeyKind::Witness => proto::KeyKind::Witness,
            };
            let is_current = current.contains(&signed.key);
            // One that signs is good for what it will sign as well.
            let last_size = if is_current { u64::MAX } else { signed.last_size };
            let sizes = signed.first_size..=last_size;
            Ok(proto::LogKey {
                kind: kind.into(),
                first_size: Some(signed.first_size),
                last_size: Some(signed.last_size),
                current: is_current,
                verifier_key: signed.key,
                pin: PinnedKey { key, log: Some(request.instance_id.clone()), sizes }.to_string(),
            })
        };
        let keys = signed.into_iter().map(key).collect::<Result<_>>()?;
        Ok(Response::new(proto::ListKeysResponse { keys }))
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<proto::GetInclusionProofRequest>,
    ) -> Result<Response<proto::GetInclusionProofResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let instance_id = request.instance_id.as_str();
        seen(&caller, instance_id)?;
        let sequence = request.sequence.ok_or_else(|| Error::required("sequence"))?;
        let head = self.prover.head(caller.access(), instance_id).await?;
        if sequence >= head.size {
            let message = format!("there is no entry with sequence {sequence} in this log, which has {}", head.size);
            return Err(Error::NotFound(message).into());
        }
        let tree_size = within("tree_size", request.tree_size, sequence + 1, head.size)?;
        let proven = self.prover.inclusion(caller.access(), instance_id, sequence, tree_size, &head).await?;
        Ok(Response::new(proto::GetInclusionProofResponse {
            sequence: Some(sequence),
            tree_size: Some(tree_size),
            leaf_hash: proven.leaf.to_vec(),
            hashes: bytes(proven.hashes),
            root_hash: proven.root.to_vec(),
        }))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<proto::GetConsistencyProofRequest>,
    ) -> Result<Response<proto::GetConsistencyProofResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let instance_id = request.instance_id.as_str();
        seen(&caller, instance_id)?;
        let old_size = request.old_size.ok_or_else(|| Error::required("old_size"))?;
        let head = self.prover.head(caller.access(), instance_id).await?;
        within("old_size", Some(old_size), 0, head.size)?;
        let new_size = within("new_size", request.new_size, old_size, head.size)?;
        let (hashes, root) = self.prover.consistency(caller.access(), instance_id, old_size, new_size, &head).await?;
        Ok(Response::new(proto::GetConsistencyProofResponse {
            old_size: Some(old_size),
            new_size: Some(new_size),
            hashes: bytes(hashes),
            new_root_hash: root.to_vec(),
        }))
    }

    async fn read_tile(
        &self,
        request: Request<proto::ReadTileRequest>,
    ) -> Result<Response<proto::ReadTileResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        seen(&caller, &request.instance_id)?;
        let level = match u8::try_from(request.level) {
            Ok(level @ 0..=7) => level,
            _ => {
                let message = format!("level is {}, allowed are 0 to 7", request.level);
                return Err(Error::invalid("level", message).into());
            }
        };
        let width = match u64::from(request.width) {
            0 => WIDTH,
            width @ 1..=WIDTH => width,
            width => {
                let message = format!("width is {width}, allowed are 1 to {WIDTH}, or 0 for {WIDTH}");
                return Err(Error::invalid("width", message).into());
            }
        };
        let id = TileId { level, index: request.index };
        // A partial tile is one of 1 to 255 hashes.
        let path = TilePath { id, partial: u8::try_from(width).ok() };
        let tile = self.store.tile(caller.access(), &request.instance_id, id, width).await.map_err(store::lost)?;
        let tile = tile.ok_or_else(|| Error::NotFound(format!("the log of this instance has no {path} yet")))?;
        Ok(Response::new(proto::ReadTileResponse { hashes: tile.to_bytes(), path: path.to_string() }))
    }
}
