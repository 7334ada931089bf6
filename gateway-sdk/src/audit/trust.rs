//! Proofs of the audit log.

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_trust_service_client::AuditTrustServiceClient;
use tonic::transport::Channel;

use super::Audit;
use crate::error::Error;
use crate::query::MAX_ANSWER_BYTES;

impl Audit {
    /// The newest checkpoint of a log, or the oldest one over at least `min_size` entries: a
    /// signed note (c2sp.org/tlog-checkpoint). Not checked here: that takes a key which does not
    /// come from the server.
    ///
    /// # Errors
    ///
    /// [`Error::Service`] with the reason `NotFound` where there is none yet; as all queries.
    pub async fn checkpoint(
        &self,
        instance: impl Into<String>,
        min_size: Option<u64>,
    ) -> Result<proto::GetCheckpointResponse, Error> {
        let question = proto::GetCheckpointRequest { instance_id: instance.into(), min_size };
        let ask = |channel, request| async { client(channel).get_checkpoint(request).await };
        self.reader.call(question, ask).await
    }

    /// The keys that have signed a log's checkpoints.
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn signing_keys(&self, instance: impl Into<String>) -> Result<Vec<proto::LogKey>, Error> {
        let question = proto::ListKeysRequest { instance_id: instance.into() };
        let ask = |channel, request| async { client(channel).list_keys(request).await };
        Ok(self.reader.call(question, ask).await?.keys)
    }

    /// That the entry at a place is in the tree of `tree_size` entries, or of all that are
    /// there now (RFC 6962, section 2.1.1).
    ///
    /// The answer is not checked here: that takes a root which does not come from the
    /// server that is to be checked.
    ///
    /// # Errors
    ///
    /// [`Error::Service`] with the reason `NotFound` where there is no such entry; as all
    /// queries.
    pub async fn inclusion_proof(
        &self,
        instance: impl Into<String>,
        sequence: u64,
        tree_size: Option<u64>,
    ) -> Result<proto::GetInclusionProofResponse, Error> {
        let instance_id = instance.into();
        let question = proto::GetInclusionProofRequest { instance_id, sequence: Some(sequence), tree_size };
        let ask = |channel, request| async { client(channel).get_inclusion_proof(request).await };
        self.reader.call(question, ask).await
    }

    /// That the tree of `new_size` entries, or of all that are there now, began as the one of
    /// `old_size` (RFC 6962, section 2.1.2). Not checked here either.
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn consistency_proof(
        &self,
        instance: impl Into<String>,
        old_size: u64,
        new_size: Option<u64>,
    ) -> Result<proto::GetConsistencyProofResponse, Error> {
        let instance_id = instance.into();
        let question = proto::GetConsistencyProofRequest { instance_id, old_size: Some(old_size), new_size };
        let ask = |channel, request| async { client(channel).get_consistency_proof(request).await };
        self.reader.call(question, ask).await
    }

    /// The first `width` hashes of a tile of the log's tree (c2sp.org/tlog-tiles): up to 256,
    /// each of 32 bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Service`] with the reason `NotFound` where the tree does not have so many
    /// hashes yet; as all queries.
    pub async fn tile(
        &self,
        instance: impl Into<String>,
        level: u8,
        index: u64,
        width: u16,
    ) -> Result<proto::ReadTileResponse, Error> {
        let instance_id = instance.into();
        let question = proto::ReadTileRequest { instance_id, level: level.into(), index, width: width.into() };
        let ask = |channel, request| async { client(channel).read_tile(request).await };
        self.reader.call(question, ask).await
    }
}

fn client(channel: Channel) -> AuditTrustServiceClient<Channel> {
    AuditTrustServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}
