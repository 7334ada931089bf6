//! The task that carries one service's queue to it.
//!
//! ```text
//!            ┌───────────── in flight, in order ─────────────┐
//! queue ───▶ │ not yet sent on this stream │ sent, no answer │ ───▶ settled
//!            └───────▲─────────────────────┴───────┬─────────┘
//!                    └──── the stream ended ───────┘
//! ```
//!
//! One stream, up to `window` batches in flight, answers in the order of the batches.
//! When a stream ends, whatever was sent without an answer is sent again first, on the
//! next one; ids make it exact. What is taken from the queue is bounded by the window,
//! and nothing is taken while there is no stream, so a service that is away costs no
//! more memory than the queue may have.
//!
//! **A batch that can't be taken at all** (a status that blames what was sent) ends the
//! stream, and any batch under way may be the cause. They are then sent one at a time;
//! one that ends the stream alone is split in two, down to the single event at fault,
//! which is given up: counted as rejected, told to `on_rejected`, its number reported
//! as dropped. All others arrive, in order.
//!
//! **A defect may be the service's** (its database is set up wrongly), and then every event
//! would be given up, one by one. So between two failures of an event another batch has to
//! get through, one that is behind it; as long as none does, nothing is given up:
//!
//! ```text
//! event ─▶ INTERNAL   another ─▶ taken   event ─▶ INTERNAL   another ─▶ taken   event ─▶ INTERNAL: given up
//!                     another ─▶ INTERNAL: kept, and tried again ever more slowly
//! ```
//!
//! What goes ahead so is not settled, but sent again in its turn: ids make it exact, and what
//! is settled stays a beginning of the queue.

mod batch;
mod codec;

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use self::batch::Batch;
use self::codec::{BatchCodec, Outbound};
use crate::ErrorReason;
use crate::credentials::{Access, Ticket};
use crate::error::{Rejection, describe};
use crate::outbox::Outbox;
use crate::queue::Settled;
use crate::random;
use crate::retry::{Backoff, Verdict, classify};

/// After so many defects alone, a batch is taken apart, and a single event given up, if others
/// got through in between.
const MAX_DEFECTS: u32 = 3;

/// What differs between the two services' streams.
pub(crate) trait Lane: Sized + Send + Sync + 'static {
    /// For logs and errors.
    const NAME: &'static str;
    /// The stream's method.
    const PATH: &'static str;
    /// The number of the event's `producer` field.
    const PRODUCER_FIELD: u32;
    /// What travels beside an event.
    type Extra: Send + 'static;
    /// An event's proof of storage.
    type Receipt: Send + 'static;
    /// The stream's response.
    type Answer: Message + Default + 'static;

    /// What a response says.
    fn read(answer: Self::Answer) -> Answer<Self>;
    /// Tells whoever waits for the event.
    fn settle(extra: Self::Extra, outcome: Result<Self::Receipt, Rejection>);
    /// Hands a refused event to the application.
    fn on_rejected(&self, event: &[u8], rejection: Rejection);
}

/// A response, the same for both services.
#[derive(Debug)]
pub(crate) struct Answer<L: Lane> {
    pub(crate) batch_id: u64,
    pub(crate) duplicates: u32,
    /// By index in the batch.
    pub(crate) rejected: Vec<(usize, Rejection)>,
    /// By index in the batch; empty where the service gives none.
    pub(crate) receipts: Vec<(usize, L::Receipt)>,
}

/// How the sender behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) window: usize,
    pub(crate) ack_timeout: Duration,
    pub(crate) backoff: Backoff,
    pub(crate) drop_grace: Duration,
}

/// How a stream came to its end without a failure.
enum Over {
    /// The queue is closed, and everything in it settled.
    Settled,
    /// Its token is to be renewed, or the service is elsewhere now: another one goes on.
    Renewal,
}

/// Waits until the service is elsewhere.
async fn moved(line: &mut watch::Receiver<Channel>) {
    if line.changed().await.is_err() {
        std::future::pending().await
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// See the module's documentation.
pub(crate) struct Sender<L: Lane> {
    lane: L,
    queue: Arc<Outbox<L::Extra>>,
    line: watch::Receiver<Channel>,
    access: Access,
    options: Options,
    in_flight: VecDeque<Batch<L::Extra>>,
    /// How many at the front of `in_flight` were sent on this stream.
    sent: usize,
    /// Number of the last batch sent on this stream.
    last_id: u64,
    /// How many at the front of `in_flight` may be to blame, and go one at a time.
    suspects: usize,
    /// Where the front of `in_flight` has changed places with a batch that goes ahead of it.
    ahead: Option<usize>,
    /// How many did, of this front; and whether the last of them failed.
    probes: usize,
    probe_failed: bool,
    /// Failures since the last answer.
    attempt: u32,
    /// Those of them that were refusals of the credentials.
    refusals: u32,
    /// Since when an answer is awaited.
    waiting_since: Instant,
    streams: u64,
}

impl<L: Lane> Sender<L> {
    pub(crate) fn new(
        lane: L,
        queue: Arc<Outbox<L::Extra>>,
        line: watch::Receiver<Channel>,
        access: Access,
        options: Options,
    ) -> Self {
        Self {
            lane,
            queue,
            line,
            access,
            options,
            in_flight: VecDeque::new(),
            sent: 0,
            last_id: 0,
            suspects: 0,
            ahead: None,
            probes: 0,
            probe_failed: false,
            attempt: 0,
            refusals: 0,
            waiting_since: Instant::now(),
            streams: 0,
        }
    }

    /// Runs until the queue is closed and everything is settled, or, once the last
    /// handle is gone, for the grace that was set.
    pub(crate) async fn run(self) {
        let queue = Arc::clone(&self.queue);
        let grace = self.options.drop_grace;
        let orphaned = async {
            queue.orphaned().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            () = self.deliver() => return,
            () = orphaned => {}
        }
        let waiting = queue.waiting();
        tracing::warn!(
            service = L::NAME,
            queued = waiting.queued,
            in_flight = waiting.in_flight,
            spooled = queue.is_durable(),
            "the SDK was dropped without shutdown; events that are not spooled are lost"
        );
    }

    async fn deliver(mut self) {
        loop {
            if self.in_flight.is_empty() {
                match self.queue.next().await {
                    Some(taken) => self.in_flight.push_back(taken.into()),
                    None => return,
                }
            }
            self.let_another_go_ahead();
            let mut ticket = Ticket::default();
            let status = match self.stream(&mut ticket).await {
                Ok(Over::Settled) => return,
                // The next one goes with a new token, or to a new address.
                Ok(Over::Renewal) => continue,
                Err(status) => self.access.judge(status, ticket),
            };
            let verdict = classify(&status);
            self.note_failure(&status, verdict);
            self.probe_failed = self.back_in_order();
            let blamed = self.probe_failed || self.blame(verdict, &status);
            self.sent = 0;
            if self.in_flight.is_empty() && !blamed {
                // An idle stream ended: nothing to hurry for.
                continue;
            }
            let attempt = if verdict == Verdict::Refresh { self.refusals } else { self.attempt };
            let delay = self.options.backoff.after(verdict, attempt, random::unit());
            self.refusals = self.refusals.saturating_add(u32::from(verdict == Verdict::Refresh));
            self.attempt = self.attempt.saturating_add(1);
            // A flush or shutdown cuts the wait short; the service's own wish stands.
            let asked = matches!(verdict, Verdict::Retry { after: Some(_) });
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.queue.nudged(), if !asked => {}
                // Whoever asked for it is not whom we ask next.
                () = moved(&mut self.line) => {}
            }
        }
    }

    fn note_failure(&self, status: &Status, verdict: Verdict) {
        let reason = format!("{:?}: {}", status.code(), describe(status));
        if self.in_flight.is_empty() {
            // An idle stream may end.
            tracing::debug!(service = L::NAME, ?verdict, reason, "stream ended");
        } else if matches!(verdict, Verdict::Hold | Verdict::Refresh) && (self.refusals > 0 || verdict == Verdict::Hold)
        {
            // Every time, which is seldom: this waits for somebody to put it right.
            let waiting = self.queue.waiting();
            tracing::error!(
                service = L::NAME,
                reason,
                queued = waiting.queued,
                in_flight = waiting.in_flight,
                "the service refuses this writer; nothing is thrown away, and nothing is delivered"
            );
        } else if self.attempt == 0 {
            // Once an outage, not once an attempt.
            tracing::warn!(service = L::NAME, ?verdict, reason, "stream ended");
        } else {
            tracing::debug!(service = L::NAME, ?verdict, reason, "stream ended");
        }
        self.queue.note_stream(Err((reason, matches!(verdict, Verdict::Hold | Verdict::Refresh))));
    }

    /// One stream, from opening it to its end.
    async fn stream(&mut self, ticket: &mut Ticket) -> Result<Over, Status> {
        let (requests, mut outbound) = mpsc::channel::<Outbound>(self.options.window);
        self.sent = 0;
        self.last_id = 0;
        // Before the stream opens, for a service that answers the headers only after
        // the first batch.
        self.send_waiting(&requests)?;
        let outbound = futures::stream::poll_fn(move |cx| outbound.poll_recv(cx));
        let mut grpc = Grpc::new(self.line.borrow_and_update().clone());
        let access = self.access.clone();
        let opening = async {
            let mut request = Request::new(outbound);
            *ticket = access.attach(&mut request).await?;
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            let path = PathAndQuery::from_static(L::PATH);
            grpc.streaming(request, path, BatchCodec::<L::Answer>(PhantomData)).await
        };
        let opened = tokio::select! {
            opened = timeout(self.options.ack_timeout, opening) => opened,
            // Nobody need answer any more where it was.
            () = moved(&mut self.line) => return Ok(Over::Renewal),
        };
        let mut answers =
            opened.map_err(|_| Status::deadline_exceeded("the stream did not open in time"))??.into_inner();
        self.queue.note_stream(Ok(self.streams > 0));
        self.streams += 1;
        let mut closed = false;
        // From when on nothing more is sent, so that the token's or the address's successor can
        // take over.
        let mut renewing = false;
        loop {
            if closed && self.in_flight.is_empty() {
                return Ok(Over::Settled);
            }
            if renewing && self.sent == 0 {
                return Ok(Over::Renewal);
            }
            let room = !renewing && self.sent == self.in_flight.len() && self.sent < self.window();
            let deadline = self.waiting_since + self.options.ack_timeout;
            tokio::select! {
                biased;
                answer = answers.message() => match answer? {
                    Some(answer) => {
                        self.settle_front(L::read(answer))?;
                        // What was refused has a report to be sent, also once nothing else comes.
                        closed = false;
                    }
                    None => return Err(Status::unavailable("the service ended the stream")),
                },
                () = until(ticket.renew_at), if !renewing => renewing = true,
                () = moved(&mut self.line), if !renewing => renewing = true,
                taken = self.queue.next(), if room && !closed => match taken {
                    Some(taken) => self.in_flight.push_back(taken.into()),
                    None => closed = true,
                },
                () = tokio::time::sleep_until(deadline), if self.sent > 0 => {
                    return Err(Status::deadline_exceeded("no acknowledgement in time"));
                }
            }
            if !renewing {
                self.send_waiting(&requests)?;
            }
        }
    }

    fn window(&self) -> usize {
        if self.suspects > 0 { 1 } else { self.options.window }
    }

    /// Sends what is in flight and not yet sent, as far as the window lets.
    fn send_waiting(&mut self, requests: &mpsc::Sender<Outbound>) -> Result<(), Status> {
        while self.sent < self.window().min(self.in_flight.len()) {
            let outbound = self.in_flight[self.sent].outbound(self.last_id + 1);
            // The channel holds as many as the window, so it is never full.
            if requests.try_send(outbound).is_err() {
                return Err(Status::unavailable("the stream takes no more batches"));
            }
            if self.sent == 0 {
                self.waiting_since = Instant::now();
            }
            self.last_id += 1;
            self.sent += 1;
        }
        Ok(())
    }

    /// An answer settles the oldest batch that was sent.
    fn settle_front(&mut self, answer: Answer<L>) -> Result<(), Status> {
        let expected = self.last_id + 1 - self.sent as u64;
        if self.sent == 0 || answer.batch_id != expected {
            let got = answer.batch_id;
            return Err(Status::unavailable(format!("batch {got} was answered where {expected} was due")));
        }
        self.sent -= 1;
        (self.attempt, self.refusals) = (0, 0);
        self.waiting_since = Instant::now();
        if self.back_in_order() {
            // The service is well. This one is settled in its turn.
            if let Some(front) = self.in_flight.front_mut() {
                front.vouched = true;
            }
            return Ok(());
        }
        let Some(batch) = self.in_flight.pop_front() else {
            return Ok(());
        };
        self.suspects = self.suspects.saturating_sub(1);
        self.probes = 0;

        let events = batch.events.len();
        let rejections = answer.rejected;
        let rejections: Vec<_> = rejections.into_iter().filter(|r| r.0 < events).collect();
        for (index, rejection) in &rejections {
            if let Some(event) = batch.event(*index) {
                self.queue.keep_rejected(batch.segment, event, rejection);
                self.lane.on_rejected(event, rejection.clone());
            }
            // Its number will never be there, and is no loss. But for one that another event has.
            if let Some(refused) = batch.events.get(*index)
                && rejection.reason != ErrorReason::ProducerConflict
            {
                self.queue.report_dropped(&batch.who, refused.sequence);
            }
        }
        let rejected = rejections.len();
        let settled = Settled {
            acknowledged: events - rejected,
            duplicates: answer.duplicates as usize,
            rejected,
            reports: batch.dropped.len(),
            segment: batch.segment,
            last: batch.events.back().map(|event| event.sequence),
            // Shared still where the stream that sent it lingers: then it is let go.
            buffer: Arc::try_unwrap(batch.payload).ok().map(|p| p.frames),
        };
        // Counted before anybody is told: who has an answer finds it in the counters.
        self.queue.settle(settled, self.lowest());
        let mut extras: Vec<Option<L::Extra>> = batch.events.into_iter().map(|event| event.extra).collect();
        let outcomes = rejections
            .into_iter()
            .map(|(index, rejection)| (index, Err(rejection)))
            .chain(answer.receipts.into_iter().map(|(i, r)| (i, Ok(r))));
        for (index, outcome) in outcomes {
            if let Some(extra) = extras.get_mut(index).and_then(Option::take) {
                L::settle(extra, outcome);
            }
        }
        Ok(())
    }

    /// The lowest number in flight.
    fn lowest(&self) -> Option<u64> {
        self.in_flight.iter().find_map(|batch| batch.events.front()).map(|event| event.sequence)
    }

    /// Before an event that has met a defect is tried again, lets another batch go ahead of it, if
    /// there is one: each time another one, for one alone may meet a defect too.
    fn let_another_go_ahead(&mut self) {
        // After one that failed it is the event's turn: that may have been its own failure.
        let failed = std::mem::take(&mut self.probe_failed);
        if failed || !self.in_flight.front().is_some_and(Batch::is_doubted) {
            return;
        }
        let all_went = self.in_flight.len() <= self.probes + 1;
        if all_went
            && self.in_flight.len() <= self.options.window
            && let Some(Some(taken)) = self.queue.next().now_or_never()
        {
            self.in_flight.push_back(taken.into());
        }
        let others = self.in_flight.len() - 1;
        if others > 0 {
            let at = 1 + self.probes % others;
            self.probes += 1;
            self.in_flight.swap(0, at);
            self.ahead = Some(at);
        }
    }

    /// Undoes that. Whether there was anything to undo.
    fn back_in_order(&mut self) -> bool {
        let Some(at) = self.ahead.take() else {
            return false;
        };
        self.in_flight.swap(0, at);
        true
    }

    /// Finds out, step by step, which event a stream can't be carried on with.
    /// Whether a step was made.
    fn blame(&mut self, verdict: Verdict, status: &Status) -> bool {
        if self.sent == 0 || !matches!(verdict, Verdict::Permanent | Verdict::Defect) {
            return false;
        }
        if self.sent > 1 {
            self.suspects = self.suspects.max(self.sent);
            return true;
        }
        let Some(front) = self.in_flight.front_mut() else {
            return false;
        };
        self.suspects = self.suspects.max(1);
        if verdict == Verdict::Defect {
            // It may be the service, whatever it is sent.
            if front.is_doubted() {
                return true;
            }
            front.defects += 1;
            front.vouched = false;
            if front.defects < MAX_DEFECTS {
                return true;
            }
        }
        let Some(front) = self.in_flight.pop_front() else {
            return false;
        };
        self.probes = 0;
        if front.is_single() {
            self.suspects -= 1;
            self.give_up(front, status);
        } else {
            let (head, rest) = front.split();
            self.in_flight.push_front(rest);
            self.in_flight.push_front(head);
            self.suspects += 1;
        }
        true
    }

    fn give_up(&mut self, batch: Batch<L::Extra>, status: &Status) {
        let rejection = Rejection::from_status(status);
        let first = batch.events.front().map(|event| event.sequence);
        if let (Some(event), Some(sequence)) = (batch.event(0), first) {
            tracing::error!(service = L::NAME, %rejection, "an event can't be delivered");
            self.queue.keep_rejected(batch.segment, event, &rejection);
            self.lane.on_rejected(event, rejection.clone());
            self.queue.report_dropped(&batch.who, sequence);
        } else {
            tracing::error!(service = L::NAME, %rejection, ranges = ?batch.dropped,
                "a report of dropped events can't be delivered");
        }
        let settled = Settled {
            rejected: batch.events.len(),
            reports: batch.dropped.len(),
            segment: batch.segment,
            last: first,
            ..Settled::default()
        };
        self.queue.settle(settled, self.lowest());
        for extra in batch.events.into_iter().filter_map(|event| event.extra) {
            L::settle(extra, Err(rejection.clone()));
        }
    }
}

impl<L: Lane> Drop for Sender<L> {
    /// However it ended, its runtime's end among it: nothing more is sent.
    fn drop(&mut self) {
        self.queue.end();
    }
}
