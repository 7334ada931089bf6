//! `AuditIngestService`.

mod proven;

use std::pin::Pin;

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_ingest_service_server::AuditIngestService;
use activity_proto::common::v1::DroppedRange;
use futures::Stream;
use service_core::auth::Caller;
use service_core::clock;
use service_core::error::{Error, Result, Violation};
use service_core::ingest_stream::{self, StreamOptions};
use service_core::telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::convert;
use crate::ingest::{Checked, Ingest, Settling};
use crate::prover::{Place, Prover};
use crate::store::EventResult;

use proven::{Answered, prove, proven_later};

const MAX_EVENTS: usize = 1_000;
const MAX_DROPPED: usize = 1_000;
/// Events checked before others on the same thread get their turn.
const TURN: usize = 128;

/// Takes events in.
#[derive(Debug)]
pub(crate) struct IngestService {
    ingest: Ingest,
    prover: Prover,
    options: StreamOptions,
    metrics: Metrics,
    shutdown: CancellationToken,
}

impl IngestService {
    /// The service over a writer. Streams end when `shutdown` is cancelled.
    pub(crate) fn new(
        ingest: Ingest,
        prover: Prover,
        options: StreamOptions,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Self {
        Self { ingest, prover, options, metrics, shutdown }
    }
}

#[tonic::async_trait]
impl AuditIngestService for IngestService {
    async fn record_events(
        &self,
        request: Request<proto::RecordEventsRequest>,
    ) -> Result<Response<proto::RecordEventsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let proto::RecordEventsRequest { events, with_proofs } = request.into_inner();
        let answering = submit(&self.ingest, &caller, events, Vec::new(), with_proofs).await?;
        let Answered { mut answer, places } = answering.answer(&self.metrics).await?;
        prove(&mut answer.receipts, &places, &self.prover, caller.access(), &self.shutdown).await;
        Ok(Response::new(answer))
    }

    type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<proto::StreamEventsResponse, Status>> + Send>>;

    async fn stream_events(
        &self,
        request: Request<Streaming<proto::StreamEventsRequest>>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let caller = Caller::of(&request)?;
        let (ingest, metrics) = (self.ingest.clone(), self.metrics.clone());
        let access = caller.access().clone();
        let answers = ingest_stream::run(
            request,
            self.options,
            self.shutdown.clone(),
            |batch: &proto::StreamEventsRequest| batch.batch_id,
            move |batch: proto::StreamEventsRequest| {
                let (ingest, caller, metrics) = (ingest.clone(), caller.clone(), metrics.clone());
                async move {
                    let batch_id = batch.batch_id;
                    let answering = submit(&ingest, &caller, batch.events, batch.dropped, batch.with_proofs).await?;
                    Ok(async move { Ok((batch_id, answering.answer(&metrics).await?)) })
                }
            },
        );
        let stream = proven_later(answers, self.prover.clone(), access, self.shutdown.clone());
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Checks a batch and hands what is good of it to the writer.
async fn submit(
    ingest: &Ingest,
    caller: &Caller,
    events: Vec<proto::AuditEvent>,
    dropped: Vec<DroppedRange>,
    with_proofs: bool,
) -> Result<Answering> {
    at_most("events", events.len(), MAX_EVENTS)?;
    at_most("dropped ranges", dropped.len(), MAX_DROPPED)?;
    let ids = events.iter().map(|event| event.id.clone()).collect();
    let instances = with_proofs.then(|| events.iter().map(|event| event.instance_id.clone()).collect());
    let now_us = clock::now_us();
    let mut checked = Checked::default();
    checked.batch.recorded_by = caller.subject().to_owned();
    for (at, event) in events.into_iter().enumerate() {
        checked.push(convert::event(event, now_us).and_then(|event| {
            caller.may_write("instance_id", &event.instance_id)?;
            Ok(event)
        }));
        if at % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
    }
    let mut refused_ranges = Vec::new();
    for (at, range) in dropped.into_iter().enumerate() {
        match convert::dropped(at, range) {
            Ok(range) => checked.batch.dropped.push(range),
            // The events of the batch are good without it.
            Err(violation) => refused_ranges.push(violation),
        }
    }
    let ahead = checked.batch.events.iter().filter(|event| event.occurred_at_us > now_us).count();
    Ok(Answering { ids, instances, ahead, refused_ranges, settling: ingest.submit(checked).await? })
}

fn at_most(what: &str, given: usize, allowed: usize) -> Result<()> {
    if given <= allowed {
        return Ok(());
    }
    Err(Error::TooLarge(format!("the batch has {given} {what}, allowed are {allowed}")))
}

/// A batch whose answer is on its way.
struct Answering {
    /// As they came, for the receipts.
    ids: Vec<String>,
    /// Whose log each is for, where proofs are asked for.
    instances: Option<Vec<String>>,
    /// Those that happened later than now.
    ahead: usize,
    refused_ranges: Vec<Violation>,
    settling: Settling,
}

impl Answering {
    async fn answer(self, metrics: &Metrics) -> Result<Answered> {
        let results = self.settling.settled().await?;
        let (mut accepted, mut duplicates) = (0, 0);
        let mut rejected = Vec::new();
        let mut receipts = Vec::with_capacity(results.len());
        let mut places = Vec::new();
        // At most 1,000 events, so an index fits.
        for ((index, id), result) in (0_u32..).zip(self.ids).zip(results) {
            match result {
                EventResult::Stored { sequence, leaf_hash, duplicate } => {
                    if let Some(instances) = &self.instances {
                        let instance_id = instances[index as usize].clone();
                        places.push(Place { instance_id, sequence, leaf: leaf_hash });
                    }
                    *(if duplicate { &mut duplicates } else { &mut accepted }) += 1;
                    receipts.push(proto::Receipt {
                        index: Some(index),
                        id,
                        sequence: Some(sequence),
                        duplicate,
                        leaf_hash: leaf_hash.to_vec(),
                        proof: None,
                    });
                }
                EventResult::Rejected(violation) => rejected.push(refusal(Some(index), violation)),
            }
        }
        // A range has no index among the events; the field says which it is.
        rejected.extend(self.refused_ranges.into_iter().map(|violation| refusal(None, violation)));
        metrics.answered(accepted, duplicates, rejected.iter().map(proto::RejectedEvent::reason));
        metrics.ahead(self.ahead);
        let (accepted, duplicate) = (Some(accepted), Some(duplicates));
        Ok(Answered { answer: proto::RecordEventsResponse { accepted, duplicate, rejected, receipts }, places })
    }
}

fn refusal(index: Option<u32>, violation: Violation) -> proto::RejectedEvent {
    proto::RejectedEvent { index, reason: violation.reason.into(), message: violation.message, field: violation.field }
}
