//! Answers whose receipts carry proofs: of a single batch the answer itself, of a batch on a stream a second one, so that
//! no acknowledgement waits for a signature.
//!
//! ```text
//! batches ─▶ ingest_stream ─▶ answers, in order ─────────────────┬─▶ client
//!                                └─▶ proving, ≤ MAX_PROVING ─────┘   (receipts again, with proofs)
//! ```

use activity_proto::audit::v1 as proto;
use futures::stream::{FuturesUnordered, Stream, StreamExt as _};
use service_core::auth::Access;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::prover::{Place, Prover};

/// Batches of a stream that wait for a checkpoint; with more, its answers wait too, and it is read no further.
const MAX_PROVING: usize = 16;

/// What became of a batch.
pub(super) struct Answered {
    pub(super) answer: proto::RecordEventsResponse,
    /// Where each of its receipts is, if proofs are asked for.
    pub(super) places: Vec<Place>,
}

/// Gives receipts their proofs, as far as there are any in time. What they tell is stored, whatever comes of it.
pub(super) async fn prove(
    receipts: &mut [proto::Receipt],
    places: &[Place],
    prover: &Prover,
    access: &Access,
    stop: &CancellationToken,
) {
    for (receipt, proven) in receipts.iter_mut().zip(prover.receipts(access, places, stop).await) {
        receipt.proof = proven.map(|proven| proto::ReceiptProof {
            entry_json: proven.line,
            checkpoint: proven.note.to_string(),
            hashes: proven.hashes.into_iter().map(Vec::from).collect(),
        });
    }
}

/// The responses to a stream's batches: each answer at once, and those with proofs when they are there.
pub(super) fn proven_later(
    answers: impl Stream<Item = Result<(u64, Answered), Status>> + Send + 'static,
    prover: Prover,
    access: Access,
    stop: CancellationToken,
) -> impl Stream<Item = Result<proto::StreamEventsResponse, Status>> + Send + 'static {
    async_stream::stream! {
        let mut answers = std::pin::pin!(answers.fuse());
        let mut proving = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(answered) = answers.next(), if proving.len() < MAX_PROVING => match answered {
                    Ok((batch_id, Answered { answer, places })) => {
                        if !places.is_empty() {
                            proving.push(second(batch_id, answer.receipts.clone(), places, &prover, &access, &stop));
                        }
                        yield Ok(first(batch_id, answer));
                    }
                    Err(status) => {
                        yield Err(status);
                        return;
                    }
                },
                Some(proven) = proving.next() => yield Ok(proven),
                else => return,
            }
        }
    }
}

fn first(batch_id: u64, answer: proto::RecordEventsResponse) -> proto::StreamEventsResponse {
    let proto::RecordEventsResponse { accepted, duplicate, rejected, receipts } = answer;
    proto::StreamEventsResponse { batch_id, accepted, duplicate, rejected, receipts }
}

async fn second(
    batch_id: u64,
    mut receipts: Vec<proto::Receipt>,
    places: Vec<Place>,
    prover: &Prover,
    access: &Access,
    stop: &CancellationToken,
) -> proto::StreamEventsResponse {
    prove(&mut receipts, &places, prover, access, stop).await;
    proto::StreamEventsResponse { batch_id, receipts, ..Default::default() }
}
