//! `UsageIngestService`: each event of a batch is checked alone; those that pass
//! go to the writer together, and the answer tells them apart by their index.

use activity_proto::common::v1::{DroppedRange, ErrorReason};
use activity_proto::usage::v1 as proto;
use futures::Stream;
use proto::usage_ingest_service_server::UsageIngestService;
use service_core::auth::Caller;
use service_core::clock;
use service_core::error::{Error, Reason, Result, Violation};
use service_core::ingest_stream;
use service_core::time_range::rfc3339;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use crate::convert;
use crate::ingest;
use crate::model::Outcome;
use crate::store::Batch;

/// Events, and dropped ranges, in one batch.
const MAX_BATCH: usize = 1_000;

#[derive(Debug)]
pub(super) struct Ingest(pub(super) Shared);

/// What became of a batch.
struct Settled {
    accepted: u32,
    duplicate: u32,
    rejected: Vec<proto::RejectedEvent>,
}

impl Shared {
    /// Checks a batch and hands it to the writer.
    async fn settle(
        &self,
        caller: &Caller,
        events: Vec<proto::UsageEvent>,
        dropped: Vec<DroppedRange>,
    ) -> Result<impl Future<Output = Result<Settled>> + Send + use<>> {
        at_most("events", events.len())?;
        at_most("dropped", dropped.len())?;
        let now_us = clock::now_us();
        let mut batch = Batch {
            requests: Vec::with_capacity(events.len()),
            dropped: Vec::with_capacity(dropped.len()),
            recorded_by: caller.subject().to_owned(),
        };
        let mut indexes = Vec::with_capacity(events.len());
        let mut rejected = Vec::new();
        for (index, event) in (0_u32..).zip(events) {
            let checked = convert::event(event, now_us).and_then(|(event, content_hash)| {
                caller.may_write("instance_id", &event.instance_id)?;
                Ok((event, content_hash))
            });
            match checked {
                Ok((event, content_hash)) => {
                    indexes.push(index);
                    batch.requests.push(ingest::priced(event, content_hash, &self.book));
                }
                Err(violation) => rejected.push(rejection(Some(index), violation)),
            }
        }
        for (number, range) in dropped.into_iter().enumerate() {
            match convert::dropped(range) {
                Ok(range) => batch.dropped.push(range),
                Err(violation) => rejected.push(rejection(None, violation.within(&format!("dropped[{number}]")))),
            }
        }
        let ahead = batch.requests.iter().filter(|request| request.event.occurred_at_us > now_us).count();
        let pending = ingest::submit(&self.writer, batch).await?;
        let metrics = self.metrics.clone();
        Ok(async move {
            let mut settled = Settled { accepted: 0, duplicate: 0, rejected };
            for (index, outcome) in indexes.into_iter().zip(pending.await?) {
                settled.count(index, outcome);
            }
            settled.rejected.sort_by_key(|rejected| rejected.index.unwrap_or(u32::MAX));
            let reasons = settled.rejected.iter().map(proto::RejectedEvent::reason);
            metrics.answered(settled.accepted, settled.duplicate, reasons);
            metrics.ahead(ahead);
            Ok(settled)
        })
    }
}

/// A range has no index among the events; its field says which it is.
fn rejection(index: Option<u32>, violation: Violation) -> proto::RejectedEvent {
    proto::RejectedEvent { index, reason: violation.reason.into(), message: violation.message, field: violation.field }
}

impl Settled {
    fn count(&mut self, index: u32, outcome: Outcome) {
        let kept_from;
        let (reason, field, message) = match outcome {
            Outcome::Accepted => {
                self.accepted += 1;
                return;
            }
            Outcome::Duplicate => {
                self.duplicate += 1;
                return;
            }
            Outcome::IdConflict => (
                ErrorReason::IdConflict,
                "id",
                "id is known with other content, which stays; a new event needs an id of its own",
            ),
            Outcome::ProducerConflict => (
                ErrorReason::ProducerConflict,
                "producer.sequence",
                "producer.sequence is known in this epoch with another id; a new event needs a number of its own",
            ),
            Outcome::BeforeRetention { kept_from_us } => {
                kept_from = format!(
                    "occurred_at lies in what retention has removed, allowed is {} and later",
                    rfc3339(kept_from_us)
                );
                (ErrorReason::BeforeRetention, "occurred_at", kept_from.as_str())
            }
        };
        self.rejected.push(rejection(Some(index), Violation::new(reason, field, message)));
    }
}

fn at_most(field: &str, given: usize) -> Result<()> {
    if given > MAX_BATCH {
        return Err(Error::invalid_because(
            Reason::TooLarge,
            field,
            format!("{field} has {given} entries, allowed are {MAX_BATCH} a batch"),
        ));
    }
    Ok(())
}

#[tonic::async_trait]
impl UsageIngestService for Ingest {
    async fn record_usage(
        &self,
        request: Request<proto::RecordUsageRequest>,
    ) -> Result<Response<proto::RecordUsageResponse>, Status> {
        let caller = Caller::of(&request)?;
        let settled = self.0.settle(&caller, request.into_inner().events, Vec::new()).await?.await?;
        Ok(Response::new(proto::RecordUsageResponse {
            accepted: Some(settled.accepted),
            duplicate: Some(settled.duplicate),
            rejected: settled.rejected,
        }))
    }

    type StreamUsageStream = std::pin::Pin<Box<dyn Stream<Item = Result<proto::StreamUsageResponse, Status>> + Send>>;

    async fn stream_usage(
        &self,
        request: Request<Streaming<proto::StreamUsageRequest>>,
    ) -> Result<Response<Self::StreamUsageStream>, Status> {
        let caller = Caller::of(&request)?;
        let shared = self.0.clone();
        let answers = ingest_stream::run(
            request,
            self.0.stream,
            self.0.shutdown.clone(),
            |request: &proto::StreamUsageRequest| request.batch_id,
            move |request| {
                let (shared, caller) = (shared.clone(), caller.clone());
                async move {
                    let pending = shared.settle(&caller, request.events, request.dropped).await?;
                    Ok(async move {
                        let settled = pending.await?;
                        Ok(proto::StreamUsageResponse {
                            batch_id: request.batch_id,
                            accepted: Some(settled.accepted),
                            duplicate: Some(settled.duplicate),
                            rejected: settled.rejected,
                        })
                    })
                }
            },
        );
        Ok(Response::new(Box::pin(answers)))
    }
}
