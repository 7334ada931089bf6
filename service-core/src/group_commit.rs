//! Group commit: many submitters, one writer, one transaction for what has
//! gathered, an answer to each batch once its transaction is durable.
//!
//! A transaction costs about the same whether it carries one batch or fifty: the
//! fsync dominates. So the writer takes everything that waits, and while it
//! commits, the next group gathers by itself:
//!
//! ```text
//! submitters   a ──┐        b ─┐ c ─┐ d ─┐              e ──┐
//! queue            │           ├────┴────┤                  │
//! writer    idle   [commit a]──┘         [commit b c d]     [commit e]
//! answers                    a                        b c d          e
//!           time ─────────────────────────────────────────────────────▶
//! ```
//!
//! - **Idle**: a batch that finds the writer idle is committed at once.
//! - **Busy**: if the last group carried several batches and has just been
//!   answered, its senders are about to come back with their next ones, and the
//!   writer waits up to `max_delay` until as many batches, or `max_items`, are
//!   there. A lone sender, whose groups are of one batch, never waits.
//! - **Bounded**: at most `max_queued_items` wait in the queue; further
//!   submitters wait their turn, in order, and through them the HTTP/2 window of
//!   their client. A batch larger than the queue takes the whole of it.
//! - **Answers**: in the order of the group, after the commit, one for each batch.
//! - **A submitter that vanishes** changes nothing: the batch it has handed over
//!   is committed, the answer goes nowhere, and its resend is a duplicate.
//! - **A conflict** ([`Error::Contention`]) is tried again inside, a few times.
//! - **A defect or a panic** in the commit function fails its group, not the
//!   writer; a group of several batches is first tried again one by one, so that
//!   one bad batch doesn't fail its neighbours. That is safe because a commit is
//!   a transaction, and writing an event twice stores it once.
//! - **Health**: the writer is its own witness ([`GroupCommit::vouches`]): a probe
//!   that has to wait behind its transactions would take load for an outage.
//! - **Stop**: [`GroupCommit::close`] refuses new batches, commits and answers all
//!   that were handed over, and returns when the writer is done.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{IngestConfig, millis};
use crate::error::{Error, Result, panic_error};
use crate::telemetry::metrics::{GroupMetrics, Metrics};

/// Tries of one group that meets conflicts.
const CONFLICT_TRIES: u32 = 5;
/// Pause before the second try; doubles with each further one.
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);
/// Batches in one group, whatever their size: bounds the answers to send.
const MAX_GROUP_BATCHES: usize = 1_024;

/// Limits of a [`GroupCommit`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Items (events) in one transaction; a single batch may be larger.
    pub max_items: usize,
    /// How long a busy writer waits for more.
    pub max_delay: Duration,
    /// Items that may wait in the queue.
    pub max_queued_items: usize,
    /// Time for one transaction.
    pub commit_timeout: Duration,
}

impl From<&IngestConfig> for Options {
    fn from(config: &IngestConfig) -> Self {
        Self {
            max_items: config.group_events.get(),
            max_delay: Duration::from_millis(config.group_delay_ms),
            max_queued_items: config.queue_events.get(),
            commit_timeout: millis(config.commit_timeout_ms),
        }
    }
}

/// The handle: cheap to clone, for every submitter.
pub struct GroupCommit<B, R> {
    queue: mpsc::UnboundedSender<Job<B, R>>,
    room: Arc<Semaphore>,
    capacity: u32,
    closing: CancellationToken,
    writer: TaskTracker,
    metrics: GroupMetrics,
    witness: Arc<Witness>,
}

impl<B, R> Clone for GroupCommit<B, R> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            room: self.room.clone(),
            capacity: self.capacity,
            closing: self.closing.clone(),
            writer: self.writer.clone(),
            metrics: self.metrics.clone(),
            witness: self.witness.clone(),
        }
    }
}

impl<B, R> std::fmt::Debug for GroupCommit<B, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupCommit")
            .field("capacity", &self.capacity)
            .field("room", &self.room.available_permits())
            .finish_non_exhaustive()
    }
}

/// What the writer has last seen of storage.
#[derive(Debug)]
pub(crate) struct Witness {
    commit_timeout: Duration,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Begin of the transaction that runs.
    running: Option<Instant>,
    /// End of the last one that was stored.
    stored: Option<Instant>,
    /// Whether the last one failed.
    failed: bool,
}

impl Witness {
    fn update(&self, change: impl FnOnce(&mut Seen)) {
        // A poisoned lock is no matter: each field is whole by itself.
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// See [`GroupCommit::vouches`].
    pub(crate) fn vouches(&self, within: Duration) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |begun: Option<Instant>| begun.map_or(Duration::MAX, |begun| begun.elapsed());
        !seen.failed && (since(seen.stored) < within || since(seen.running) < self.commit_timeout)
    }
}

/// One batch on its way. The room it takes in the queue is given back when a
/// group takes the job apart.
struct Job<B, R> {
    batch: B,
    items: usize,
    reply: oneshot::Sender<Result<R>>,
    _room: OwnedSemaphorePermit,
}

/// What a submitter waits on: the answer to its batch, once it is durable.
#[derive(Debug)]
pub struct Pending<R>(oneshot::Receiver<Result<R>>);

impl<R> Future for Pending<R> {
    type Output = Result<R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The writer answers every job it has; a reply that is dropped means that
        // the runtime goes down.
        self.0.poll_unpin(cx).map(|answer| answer.unwrap_or(Err(Error::ShuttingDown)))
    }
}

impl<B, R> GroupCommit<B, R>
where
    B: Send + Sync + 'static,
    R: Send + 'static,
{
    /// Starts the writer. `commit` writes all batches of a group in one
    /// transaction and returns one answer for each, in their order. It may be
    /// called again with the same batches (see the module), so it must be
    /// idempotent; and it must not keep them beyond its return.
    pub fn spawn<F, Fut>(metrics: &Metrics, options: Options, commit: F) -> Self
    where
        F: Fn(Arc<Vec<B>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<R>>> + Send + 'static,
    {
        let capacity = options.max_queued_items.clamp(1, Semaphore::MAX_PERMITS);
        let capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
        let room = Arc::new(Semaphore::new(capacity as usize));
        // Unbounded in type only: every job in it holds its part of `room`.
        let (queue, jobs) = mpsc::unbounded_channel();
        let closing = CancellationToken::new();
        let metrics = metrics.group().clone();
        let witness = Arc::new(Witness { commit_timeout: options.commit_timeout, seen: Mutex::default() });
        let writer = TaskTracker::new();
        writer.spawn(
            Writer {
                jobs,
                held: None,
                commit,
                options,
                closing: closing.clone(),
                metrics: metrics.clone(),
                witness: witness.clone(),
            }
            .run(),
        );
        writer.close();
        Self { queue, room, capacity, closing, writer, metrics, witness }
    }

    /// Hands a batch of `items` events to the writer; waits while the queue is
    /// full. What it returns resolves when the batch is durable, or has failed.
    ///
    /// Dropping the first future gives up the place in the queue, and nothing is
    /// stored; once it has resolved the batch is the writer's.
    pub async fn submit(&self, batch: B, items: usize) -> Result<Pending<R>> {
        let wanted = u32::try_from(items).unwrap_or(u32::MAX);
        let room = self
            .room
            .clone()
            .acquire_many_owned(wanted.clamp(1, self.capacity))
            .await
            .map_err(|_| Error::ShuttingDown)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { batch, items, reply, _room: room };
        self.metrics.queued(items);
        if self.queue.send(job).is_err() {
            self.metrics.taken(items);
            return Err(Error::ShuttingDown);
        }
        Ok(Pending(answer))
    }

    /// [`GroupCommit::submit`] and the wait for its answer in one.
    pub async fn commit(&self, batch: B, items: usize) -> Result<R> {
        self.submit(batch, items).await?.await
    }

    /// Whether the writer has proved that writing works, so that nobody need try:
    /// it stored something less than `within` ago, or a transaction runs that may
    /// still take its time, and the last one that ended did not fail.
    pub fn vouches(&self, within: Duration) -> bool {
        self.witness.vouches(within)
    }

    pub(crate) fn witness(&self) -> Arc<Witness> {
        self.witness.clone()
    }

    /// Refuses new batches and waits until all that were handed over are answered.
    pub async fn close(&self) {
        self.room.close();
        self.closing.cancel();
        self.writer.wait().await;
    }
}

/// The one task that writes.
struct Writer<B, R, F> {
    jobs: mpsc::UnboundedReceiver<Job<B, R>>,
    /// Taken from the queue, but too large for the group it would have joined.
    held: Option<Job<B, R>>,
    commit: F,
    options: Options,
    closing: CancellationToken,
    metrics: GroupMetrics,
    witness: Arc<Witness>,
}

impl<B, R, F, Fut> Writer<B, R, F>
where
    B: Send + Sync + 'static,
    R: Send + 'static,
    F: Fn(Arc<Vec<B>>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<R>>> + Send + 'static,
{
    async fn run(mut self) {
        let mut last_group = 1;
        while let Some(group) = self.gather(last_group).await {
            last_group = group.len();
            let items: usize = group.iter().map(|job| job.items).sum();
            self.metrics.taken(items);
            let (batches, replies): (Vec<B>, Vec<_>) = group.into_iter().map(|job| (job.batch, job.reply)).unzip();
            let begun = Instant::now();
            self.settle(batches, replies).await;
            self.metrics.committed(last_group, items, begun.elapsed());
        }
    }

    /// The next group; `None` when closed and drained.
    async fn gather(&mut self, last_group: usize) -> Option<Vec<Job<B, R>>> {
        let begun = Instant::now();
        let first = match self.held.take() {
            Some(job) => job,
            None => self.next().await?,
        };
        let now = Instant::now();
        let idle = now - begun > self.options.max_delay;
        let awaited = if idle { 1 } else { last_group };
        let deadline = now + self.options.max_delay;

        let mut items = first.items;
        let mut group = vec![first];
        while items < self.options.max_items && group.len() < MAX_GROUP_BATCHES {
            let job = match self.jobs.try_recv() {
                Ok(job) => job,
                Err(_) if group.len() >= awaited => break,
                Err(_) => match timeout_at(deadline, self.next()).await {
                    Ok(Some(job)) => job,
                    Ok(None) | Err(_) => break,
                },
            };
            if items + job.items > self.options.max_items {
                self.held = Some(job);
                break;
            }
            items += job.items;
            group.push(job);
        }
        Some(group)
    }

    /// The next job; `None` when the queue is closed, by [`GroupCommit::close`] or
    /// because every handle is gone, and empty.
    async fn next(&mut self) -> Option<Job<B, R>> {
        tokio::select! {
            biased;
            job = self.jobs.recv() => job,
            () = self.closing.cancelled() => {
                // A submitter that has room but has not sent yet is refused here.
                self.jobs.close();
                self.jobs.recv().await
            }
        }
    }

    /// Commits a group and answers each of its batches.
    async fn settle(&self, batches: Vec<B>, replies: Vec<oneshot::Sender<Result<R>>>) {
        let batches = Arc::new(batches);
        let error = match self.attempt(batches.clone()).await {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // The submitter may be gone; the batch is stored all the same.
                    let _ = reply.send(Ok(answer));
                }
                return;
            }
            Err(error) => error,
        };
        let alone = match error {
            Error::Internal(_) if replies.len() > 1 => Arc::try_unwrap(batches).ok(),
            _ => None,
        };
        let Some(alone) = alone else {
            for reply in replies {
                let _ = reply.send(Err(error.clone()));
            }
            return;
        };
        tracing::error!(%error, batches = replies.len(), "a group failed; its batches are tried one by one");
        for (batch, reply) in alone.into_iter().zip(replies) {
            let answer =
                self.attempt(Arc::new(vec![batch])).await.and_then(|mut answers| answers.pop().ok_or_else(no_answer));
            let _ = reply.send(answer);
        }
    }

    /// One transaction, again while it meets conflicts; the witness sees how it ends.
    async fn attempt(&self, batches: Arc<Vec<B>>) -> Result<Vec<R>> {
        let outcome = self.tries(batches).await;
        self.witness.update(|seen| {
            seen.running = None;
            seen.failed = outcome.is_err();
            if outcome.is_ok() {
                seen.stored = Some(Instant::now());
            }
        });
        outcome
    }

    async fn tries(&self, batches: Arc<Vec<B>>) -> Result<Vec<R>> {
        let mut pause = CONFLICT_PAUSE;
        for _ in 1..CONFLICT_TRIES {
            match self.once(batches.clone()).await {
                Err(Error::Contention(cause)) => {
                    tracing::debug!(%cause, "conflict, trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                outcome => return outcome,
            }
        }
        self.once(batches).await
    }

    async fn once(&self, batches: Arc<Vec<B>>) -> Result<Vec<R>> {
        let expected = batches.len();
        self.witness.update(|seen| seen.running = Some(Instant::now()));
        let commit = AssertUnwindSafe(async { (self.commit)(batches).await }).catch_unwind();
        let answers = match timeout(self.options.commit_timeout, commit).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(panic)) => return Err(Error::internal(panic_error("commit", &*panic))),
            Err(_) => {
                return Err(Error::storage_unavailable(anyhow::anyhow!(
                    "a transaction took longer than {:?}",
                    self.options.commit_timeout
                )));
            }
        };
        if answers.len() == expected { Ok(answers) } else { Err(no_answer()) }
    }
}

fn no_answer() -> Error {
    Error::internal(anyhow::anyhow!("a commit did not answer each of its batches"))
}

#[cfg(test)]
mod tests;
