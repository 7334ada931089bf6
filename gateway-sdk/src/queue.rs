//! The bounded queue between `record` and a service's sender.
//!
//! ```text
//! record ──encode──▶ [lock: number, append] ──▶ chunks ──take──▶ sender ──▶ in flight
//!                          │ full                                   │
//!                          └─▶ oldest dropped ──▶ dropped ranges ───┘ settle
//! ```
//!
//! Events lie encoded, one behind the other, in chunks that are batches already: a
//! record is a copy of some 200 bytes under a short lock, without an allocation of its
//! own, and taking a batch moves a chunk. Numbers are given under the same lock, so
//! the events of a chunk have consecutive ones, and the oldest is always at the front.
//!
//! The bounds hold for what is queued. Beyond it there is in memory what the sender
//! has in flight (a bounded number of batches), and in the first chunk what was
//! dropped from it and not yet given back (less than a batch).

pub(crate) mod frame;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::frame::{Dropped, Numbering};
use crate::stats::{ServiceStats, Waiting};

/// How many dropped ranges go with one batch; the contract's limit.
pub(crate) const MAX_RANGES: usize = 1_000;
/// How many buffers of settled batches are kept for reuse.
const MAX_SPARE: usize = 4;

/// What the queue holds at most, and how it is cut into batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
    pub(crate) batch_events: usize,
    pub(crate) batch_bytes: usize,
    pub(crate) linger: Duration,
}

/// Why an event was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No room, and nothing may be dropped for it.
    Full { events: usize, bytes: usize },
    /// The disk under a spool does not do what it should, by its own words.
    Disk(String),
    /// The SDK was shut down.
    Closed,
}

/// A run of frames with consecutive numbers. `T` is what travels beside each event.
#[derive(Debug)]
struct Chunk<T> {
    first_sequence: u64,
    frames: Vec<u8>,
    /// Bytes at the front of `frames` that were dropped.
    start: usize,
    /// One for each event.
    extras: VecDeque<T>,
    since: Instant,
}

/// An event that was taken, but for its bytes.
#[derive(Debug)]
pub(crate) struct Item<T> {
    pub(crate) sequence: u64,
    /// Who waits for it, where somebody does.
    pub(crate) extra: Option<T>,
}

/// What the sender takes: a batch.
#[derive(Debug)]
pub(crate) struct Taken<T> {
    pub(crate) frames: Vec<u8>,
    /// Bytes at the front of `frames` that are not part of it.
    pub(crate) start: usize,
    /// One for each event, with rising numbers.
    pub(crate) events: VecDeque<Item<T>>,
    /// Whose numbers they are.
    pub(crate) who: Arc<Numbering>,
    /// The segment of a spool that all of them are in; 0 in memory.
    pub(crate) segment: u64,
    /// Numbers to report as dropped.
    pub(crate) dropped: Vec<Dropped>,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    pub(crate) acknowledged: usize,
    pub(crate) duplicates: usize,
    pub(crate) rejected: usize,
    /// Dropped ranges that the service now knows of.
    pub(crate) reports: usize,
    /// As in [`Taken`].
    pub(crate) segment: u64,
    /// The number of the batch's last event, where it has one.
    pub(crate) last: Option<u64>,
    /// The batch's buffer, for reuse.
    pub(crate) buffer: Option<Vec<u8>>,
}

#[derive(Debug)]
struct State<T> {
    chunks: VecDeque<Chunk<T>>,
    events: usize,
    bytes: usize,
    next_sequence: u64,
    /// Dropped and not yet taken by the sender, in ascending order.
    dropped: VecDeque<Dropped>,
    /// The lowest number that the sender holds unsettled.
    in_flight_from: Option<u64>,
    reports_in_flight: usize,
    /// Numbers below this are wanted out without linger.
    hurry: u64,
    closed: bool,
    orphaned: bool,
    spare: Vec<Vec<u8>>,
    stats: ServiceStats,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    limits: Limits,
    numbering: Arc<Numbering>,
    state: Mutex<State<T>>,
    /// Something for the sender: the first event, a full batch, a flush, the close.
    ready: Notify,
    /// Somebody wants things out now: the sender cuts its wait short.
    pub(crate) nudge: Notify,
    /// Room was made.
    room: Notify,
    /// Events were settled or dropped.
    progress: Notify,
    /// The last handle is gone.
    pub(crate) orphan: Notify,
}

impl<T> Queue<T> {
    pub(crate) fn new(limits: Limits, numbering: Numbering) -> Self {
        Self {
            limits,
            numbering: Arc::new(numbering),
            state: Mutex::new(State {
                chunks: VecDeque::new(),
                events: 0,
                bytes: 0,
                next_sequence: 0,
                dropped: VecDeque::new(),
                in_flight_from: None,
                reports_in_flight: 0,
                hurry: 0,
                closed: false,
                orphaned: false,
                spare: Vec::new(),
                stats: ServiceStats::default(),
            }),
            ready: Notify::new(),
            nudge: Notify::new(),
            room: Notify::new(),
            progress: Notify::new(),
            orphan: Notify::new(),
        }
    }

    /// No code that can panic midway runs under the lock, so a poisoned one still
    /// guards a sound state.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an encoded event, dropping the oldest to make room.
    pub(crate) fn push_dropping(&self, body: &[u8], extra: T) -> Result<(), Refused> {
        let frame_len = self.numbering.frame_len(body.len());
        let mut state = self.lock();
        let mut dropped = false;
        while !state.closed && !state.has_room(&self.limits, frame_len) && state.drop_oldest(&self.numbering) {
            dropped = true;
        }
        let result = self.append(&mut state, body, frame_len, extra);
        drop(state);
        if dropped {
            self.progress.notify_waiters();
        }
        self.after_push(result)
    }

    /// Takes an encoded event if there is room.
    pub(crate) fn push(&self, body: &[u8], extra: T) -> Result<(), Refused> {
        let frame_len = self.numbering.frame_len(body.len());
        let result = self.append(&mut self.lock(), body, frame_len, extra);
        self.after_push(result)
    }

    /// Takes an encoded event once there is room.
    pub(crate) async fn push_waiting(&self, body: &[u8], deadline: Instant) -> Result<(), Refused>
    where
        T: Default,
    {
        loop {
            let room = self.room.notified();
            let mut room = std::pin::pin!(room);
            // Registered before looking, so that room made in between is not missed.
            room.as_mut().enable();
            match self.push(body, T::default()) {
                Err(full @ Refused::Full { .. }) => {
                    if tokio::time::timeout_at(deadline, room).await.is_err() {
                        return Err(full);
                    }
                }
                result => return result,
            }
        }
    }

    fn after_push(&self, result: Result<bool, Refused>) -> Result<(), Refused> {
        if result? {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Whether the sender has to hear of it.
    fn append(&self, state: &mut State<T>, body: &[u8], frame_len: usize, extra: T) -> Result<bool, Refused> {
        if state.closed {
            return Err(Refused::Closed);
        }
        if !state.has_room(&self.limits, frame_len) {
            return Err(Refused::Full { events: state.events, bytes: state.bytes });
        }
        let limits = &self.limits;
        let fits = |chunk: &Chunk<T>| {
            chunk.extras.len() < limits.batch_events && chunk.frames.len() + frame_len <= limits.batch_bytes
        };
        let first = state.events == 0;
        let open = state.chunks.back().is_some_and(fits);
        if !open {
            let frames = state.spare.pop().unwrap_or_default();
            state.chunks.push_back(Chunk {
                first_sequence: state.next_sequence,
                frames,
                start: 0,
                extras: VecDeque::new(),
                since: Instant::now(),
            });
        }
        let sequence = state.next_sequence;
        let mut full = false;
        if let Some(chunk) = state.chunks.back_mut() {
            let before = chunk.frames.len();
            self.numbering.put_event(&mut chunk.frames, body, sequence);
            chunk.extras.push_back(extra);
            full = chunk.extras.len() == limits.batch_events;
            state.bytes += chunk.frames.len() - before;
        }
        state.events += 1;
        state.next_sequence += 1;
        state.stats.recorded += 1;
        // The first event starts the linger; a batch that is full, or was closed by
        // this event, ends it.
        Ok(first || full || !open)
    }

    /// Counts an event that was never queued: over the size limit, or too late.
    pub(crate) fn count_untaken(&self, rejected: bool) {
        let stats = &mut self.lock().stats;
        stats.recorded += 1;
        *(if rejected { &mut stats.rejected } else { &mut stats.dropped }) += 1;
    }

    /// The next batch: full, or lingered over, or hurried. `None` once closed and
    /// empty. May be dropped at any await without loss.
    pub(crate) async fn next(&self) -> Option<Taken<T>> {
        loop {
            let ready = self.ready.notified();
            let wait = match self.try_take() {
                Take::Now(taken) => {
                    self.room.notify_waiters();
                    return Some(taken);
                }
                Take::Never => return None,
                Take::At(at) => Some(at),
                Take::Empty => None,
            };
            match wait {
                Some(at) => drop(tokio::time::timeout_at(at, ready).await),
                None => ready.await,
            }
        }
    }

    fn try_take(&self) -> Take<T> {
        let mut state = self.lock();
        let Some(front) = state.chunks.front() else {
            return match (state.dropped.is_empty(), state.closed) {
                (false, _) => Take::Now(state.take_reports(&self.numbering)),
                (true, true) => Take::Never,
                (true, false) => Take::Empty,
            };
        };
        let due = front.since + self.limits.linger;
        let whole = state.chunks.len() > 1 || front.extras.len() >= self.limits.batch_events;
        let hurried = state.closed || front.first_sequence < state.hurry;
        if whole || hurried || due <= Instant::now() { state.take_chunk(&self.numbering) } else { Take::At(due) }
    }

    /// Notes what became of a batch; `from` is the lowest number still unsettled.
    pub(crate) fn settle(&self, settled: Settled, from: Option<u64>) {
        let mut state = self.lock();
        state.stats.note_settled(&settled);
        state.reports_in_flight = state.reports_in_flight.saturating_sub(settled.reports);
        state.in_flight_from = from;
        if let Some(mut buffer) = settled.buffer
            && state.spare.len() < MAX_SPARE
        {
            buffer.clear();
            state.spare.push(buffer);
        }
        drop(state);
        self.progress.notify_waiters();
    }

    /// Notes that an event that was taken is given up by this side, and has to be
    /// reported as dropped.
    pub(crate) fn report_dropped(&self, sequence: u64) {
        Dropped::note(&mut self.lock().dropped, &self.numbering, sequence, sequence);
        self.ready.notify_one();
    }

    /// A stream that opened, and whether again; or why one ended, and whether this client was refused.
    pub(crate) fn note_stream(&self, opened: Result<bool, (String, bool)>) {
        self.lock().stats.note_stream(opened);
    }

    /// Waits until everything recorded so far is settled, or the deadline.
    pub(crate) async fn flush(&self, deadline: Instant) -> Waiting {
        let target = {
            let mut state = self.lock();
            state.hurry = state.next_sequence;
            state.next_sequence
        };
        self.ready.notify_one();
        self.nudge.notify_waiters();
        loop {
            let progress = self.progress.notified();
            let mut progress = std::pin::pin!(progress);
            progress.as_mut().enable();
            if self.lock().is_settled(target) {
                return Waiting::default();
            }
            if tokio::time::timeout_at(deadline, progress).await.is_err() {
                return self.lock().waiting();
            }
        }
    }

    /// Takes no more events; what is queued is still sent.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_one();
        self.room.notify_waiters();
    }

    /// The last handle is gone: closes, and lets the sender know.
    pub(crate) fn orphan(&self) {
        self.lock().orphaned = true;
        self.close();
        self.orphan.notify_one();
    }

    /// Frees what is left after the sender has ended; the counters keep telling of it.
    pub(crate) fn abandon(&self) {
        let chunks = std::mem::take(&mut self.lock().chunks);
        // Outside of the lock: whoever waits for these events is woken here.
        drop(chunks);
        self.progress.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn is_orphaned(&self) -> bool {
        self.lock().orphaned
    }

    pub(crate) fn waiting(&self) -> Waiting {
        self.lock().waiting()
    }

    pub(crate) fn stats(&self) -> ServiceStats {
        let state = self.lock();
        let mut stats = state.stats.clone();
        stats.queued = state.events as u64;
        stats.queued_bytes = state.bytes as u64;
        stats
    }
}

enum Take<T> {
    Now(Taken<T>),
    At(Instant),
    Empty,
    Never,
}

impl<T> State<T> {
    fn has_room(&self, limits: &Limits, frame_len: usize) -> bool {
        self.events < limits.events && self.bytes + frame_len <= limits.bytes
    }

    /// Whether there was one.
    fn drop_oldest(&mut self, who: &Arc<Numbering>) -> bool {
        let Some(chunk) = self.chunks.front_mut() else {
            return false;
        };
        let frames = &chunk.frames[chunk.start..];
        let len = frame::first_event(frames).map_or(frames.len(), |event| event.end);
        let sequence = chunk.first_sequence;
        chunk.start += len;
        chunk.first_sequence += 1;
        chunk.extras.pop_front();
        let empty = chunk.extras.is_empty();
        self.events -= 1;
        self.bytes -= len;
        self.stats.dropped += 1;
        if empty && let Some(mut chunk) = self.chunks.pop_front() {
            chunk.frames.clear();
            if self.spare.len() < MAX_SPARE {
                self.spare.push(chunk.frames);
            }
        }
        Dropped::note(&mut self.dropped, who, sequence, sequence);
        true
    }

    fn take_chunk(&mut self, who: &Arc<Numbering>) -> Take<T> {
        let Some(chunk) = self.chunks.pop_front() else {
            return Take::Empty;
        };
        let dropped = self.take_dropped();
        self.events -= chunk.extras.len();
        self.bytes -= chunk.frames.len() - chunk.start;
        self.stats.in_flight += chunk.extras.len() as u64;
        self.in_flight_from.get_or_insert(chunk.first_sequence);
        let events = (chunk.first_sequence..).zip(chunk.extras);
        let events = events.map(|(sequence, extra)| Item { sequence, extra: Some(extra) }).collect();
        Take::Now(Taken { frames: chunk.frames, start: chunk.start, events, who: Arc::clone(who), segment: 0, dropped })
    }

    /// A batch without events, for reports alone.
    fn take_reports(&mut self, who: &Arc<Numbering>) -> Taken<T> {
        let dropped = self.take_dropped();
        Taken { frames: Vec::new(), start: 0, events: VecDeque::new(), who: Arc::clone(who), segment: 0, dropped }
    }

    fn take_dropped(&mut self) -> Vec<Dropped> {
        let count = self.dropped.len().min(MAX_RANGES);
        self.reports_in_flight += count;
        self.dropped.drain(..count).collect()
    }

    fn is_settled(&self, target: u64) -> bool {
        let queued_from = self.chunks.front().map(|chunk| chunk.first_sequence);
        let from = self.in_flight_from.or(queued_from);
        from.is_none_or(|from| from >= target) && self.dropped.is_empty() && self.reports_in_flight == 0
    }

    fn waiting(&self) -> Waiting {
        Waiting {
            queued: self.events as u64,
            in_flight: self.stats.in_flight,
            dropped_reports: (self.dropped.len() + self.reports_in_flight) as u64,
        }
    }
}

#[cfg(test)]
mod tests;
