//! The loop of a bidirectional ingest stream, the same for every kind of event.
//!
//! Batches are read, handed to the writer and answered in their order, with a
//! bounded number in progress:
//!
//! ```text
//! client ──batch──▶ read ──submit──▶ [in progress, ≤ max_batches] ──answer──▶ client
//! ```
//!
//! - The stream reads no further while `max_batches` are in progress, or while
//!   the client doesn't take its answers, or is ahead of `per_second` by a second's
//!   worth: HTTP/2 flow control then slows it.
//! - `batch_id` rises by one from 1; another one ends the stream with
//!   `BATCH_OUT_OF_ORDER`, after the answers to what came before.
//! - A batch that cannot be decoded ends the stream likewise.
//! - A batch that fails ends the stream in its place: no answer to a later batch
//!   goes out, for the client would take it for the one that is due.
//! - When the server stops, the stream reads no further, sends the answers to
//!   all it has read, and ends with `SHUTTING_DOWN`. The same after `lifetime`
//!   (the stream then ends with OK: nothing went wrong, the client reconnects),
//!   and after `idle` without a batch (`DEADLINE_EXCEEDED`).
//! - Nothing here is a task of its own: what was submitted belongs to the writer
//!   and is committed even when the client, and with it this stream, vanishes;
//!   what was not yet submitted was never acknowledged and is sent again.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesOrdered, Stream};
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::auth::Room;
use crate::config::{IngestConfig, millis};
use crate::error::{Error, Reason, Result};

/// By how much a stream may be ahead of its rate.
const BURST: Duration = Duration::from_secs(1);

/// Limits of one ingest stream.
#[derive(Debug, Clone, Copy)]
pub struct StreamOptions {
    /// Batches in progress at once.
    pub max_batches: usize,
    /// Batches in a second; a faster client is slowed.
    pub per_second: u32,
    /// Time without a batch after which the stream ends.
    pub idle: Duration,
    /// Time after which the stream ends in any case.
    pub lifetime: Duration,
}

impl From<&IngestConfig> for StreamOptions {
    fn from(config: &IngestConfig) -> Self {
        Self {
            max_batches: config.stream_batches.get(),
            per_second: config.stream_batches_per_second.get(),
            idle: millis(config.stream_idle_ms),
            lifetime: millis(config.stream_lifetime_ms),
        }
    }
}

/// Runs an ingest stream; the result is the body of the response.
///
/// `request` has the `tonic::Streaming` of the call.
/// `batch_id` reads the number of a batch. `submit` validates a batch and hands
/// it to the writer (it waits while the queue is full), and resolves to a future
/// of the response that settles the batch; see
/// [`GroupCommit::submit`](crate::group_commit::GroupCommit::submit). An error of
/// either ends the stream; events that are refused one by one are part of the
/// response.
pub fn run<Req, Resp, Submit, Submitting, Settling>(
    request: tonic::Request<impl Stream<Item = Result<Req, Status>> + Send + Unpin + 'static>,
    options: StreamOptions,
    shutdown: CancellationToken,
    batch_id: impl Fn(&Req) -> u64 + Send + 'static,
    submit: Submit,
) -> impl Stream<Item = Result<Resp, Status>> + Send + 'static
where
    Req: Send + 'static,
    Resp: Send + 'static,
    Submit: Fn(Req) -> Submitting + Send + 'static,
    Submitting: Future<Output = Result<Settling>> + Send + 'static,
    Settling: Future<Output = Result<Resp>> + Send + 'static,
{
    let room = request.extensions().get::<Arc<Room>>().cloned();
    let mut requests = request.into_inner();
    let share = Duration::from_secs(1) / options.per_second.max(1);
    async_stream::stream! {
        // When the batches so far will have had their share of time (GCRA).
        let mut due = Instant::now();
        let end_of_life = Instant::now() + options.lifetime;
        let mut in_progress = FuturesOrdered::new();
        let mut expected: u64 = 1;
        let mut idle_since = Instant::now();

        // Ends with what the client is told after its last answer.
        let ending: Result<(), Status> = 'reading: loop {
            // What is being submitted is not abandoned while answers go out.
            let request = tokio::select! {
                biased;
                Some(settled) = in_progress.next(), if !in_progress.is_empty() => {
                    idle_since = Instant::now();
                    match settled {
                        Ok(response) => yield Ok(response),
                        Err(error) => {
                            yield Err(Status::from(error));
                            return;
                        }
                    }
                    continue;
                }
                () = shutdown.cancelled() => break Err(Error::ShuttingDown.into()),
                () = sleep_until(end_of_life) => break Ok(()),
                () = sleep_until(idle_since + options.idle), if in_progress.is_empty() => {
                    let text = format!("no batch for {} s", options.idle.as_secs());
                    break Err(Error::DeadlineExceeded(text).into());
                }
                request = read(&mut requests, due.checked_sub(BURST)), if in_progress.len() < options.max_batches.max(1) => {
                    match request {
                        Some(Ok(request)) => request,
                        None => break Ok(()),
                        // tonic's own status; the server's layer sets its code right.
                        Some(Err(status)) => break Err(status),
                    }
                }
            };
            idle_since = Instant::now();
            due = due.max(idle_since) + share;
            // Kept until the batch is answered.
            let in_flight = room.as_ref().and_then(|room| room.take());
            let given = batch_id(&request);
            if given != expected {
                break Err(Error::invalid_because(
                    Reason::BatchOutOfOrder,
                    "batch_id",
                    format!("batch_id is {given}, expected was {expected}; it rises by one from 1 on each stream"),
                )
                .into());
            }
            expected += 1;

            let mut submitting = Box::pin(submit(request));
            loop {
                tokio::select! {
                    biased;
                    submitted = &mut submitting => {
                        match submitted {
                            Ok(settling) => in_progress.push_back(async move {
                                let _in_flight = in_flight;
                                settling.await
                            }.boxed()),
                            Err(error) => break 'reading Err(Status::from(error)),
                        }
                        break;
                    }
                    Some(settled) = in_progress.next(), if !in_progress.is_empty() => {
                        match settled {
                            Ok(response) => yield Ok(response),
                            Err(error) => {
                                yield Err(Status::from(error));
                                return;
                            }
                        }
                    }
                }
            }
        };

        // Answers to all that was handed over come before the end.
        while let Some(settled) = in_progress.next().await {
            match settled {
                Ok(response) => yield Ok(response),
                Err(error) => {
                    yield Err(Status::from(error));
                    return;
                }
            }
        }
        if let Err(status) = ending {
            yield Err(status);
        }
    }
}

/// The next batch, not before a time.
async fn read<T>(requests: &mut (impl Stream<Item = T> + Unpin), not_before: Option<Instant>) -> Option<T> {
    if let Some(at) = not_before.filter(|at| *at > Instant::now()) {
        sleep_until(at).await;
    }
    requests.next().await
}

#[cfg(test)]
mod tests;
