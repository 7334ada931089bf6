//! The reader: from segments to batches for the sender.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Spool;
use super::format::{FRAMES, Frames, Item as Found};
use super::map::Live;
use super::state::{Source, State};
use crate::queue::frame::Numbering;
use crate::queue::{Item, Taken};

/// When to look again where a caller has a place and has not yet written to it.
const SOON: Duration = Duration::from_millis(1);

pub(super) enum Take<T> {
    Now(Taken<T>),
    /// Something was found out; look again.
    Again,
    At(Instant),
    Empty,
    Never,
}

/// What is to be copied, and from where.
struct Job {
    number: u64,
    source: Source,
    who: Arc<Numbering>,
    salt: u64,
    at: usize,
    first: u64,
    next: u64,
    /// Where the segment ends, where that is known.
    end: Option<usize>,
}

/// What was copied.
struct Copied {
    frames: Vec<u8>,
    numbers: Vec<u64>,
    at: usize,
    next: u64,
    /// Numbers that are not there, and whether a length is missing; see [`Found::Gap`].
    gaps: Vec<((u64, u64), bool)>,
    /// Nothing is behind it.
    end: bool,
}

impl<T> Take<T> {
    /// Of two that have nothing yet, when to look again.
    fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::At(one), Self::At(other)) => Self::At(one.min(other)),
            (Self::At(at), _) | (_, Self::At(at)) => Self::At(at),
            (take, _) => take,
        }
    }
}

impl<T> Spool<T> {
    /// The next batch: of a segment that is full, or full itself, or lingered over, or
    /// hurried. `None` once closed and empty. May be dropped at any await without loss.
    pub(crate) async fn next(&self) -> Option<Taken<T>> {
        loop {
            let ready = self.ready.notified();
            match self.try_take() {
                Take::Now(taken) => return Some(taken),
                Take::Again => {}
                Take::Never => return None,
                Take::At(at) => drop(tokio::time::timeout_at(at, ready).await),
                Take::Empty => ready.await,
            }
        }
    }

    pub(super) fn try_take(&self) -> Take<T> {
        let job = match self.job(&mut self.lock()) {
            Ok(job) => job,
            Err(take) => return take,
        };
        // Without the lock: nobody else moves the reader, and the segment stays while it is
        // being read.
        let copied = match &job.source {
            Source::Live(live) => self.copy_live(&job, live),
            Source::Loaded(bytes) => self.copy_loaded(&job, bytes),
            Source::File => return Take::Empty,
        };
        self.taken(job, copied)
    }

    /// Where to read next, or what to do instead: by turns of the backlog and of what is fresh,
    /// where there is both.
    fn job(&self, state: &mut State<T>) -> Result<Job, Take<T>> {
        let oldest = state.entries.iter().position(|entry| !entry.read);
        let Some(oldest) = oldest.filter(|index| state.entries[*index].has_something()) else {
            return Err(match (state.dropped.is_empty(), state.closed) {
                (false, _) => Take::Now(self.reports(state)),
                (true, true) => Take::Never,
                (true, false) => Take::Empty,
            });
        };
        let fresh = state.fresh(&self.who).filter(|fresh| *fresh > oldest && !self.settings.durable);
        let Some(fresh) = fresh else { return self.job_of(state, oldest) };
        let (first, second) = if state.fresh_is_next { (fresh, oldest) } else { (oldest, fresh) };
        match self.job_of(state, first) {
            Ok(job) => {
                state.fresh_is_next = first == oldest;
                Ok(job)
            }
            // It is being read back, or lingers: no reason to hold up the other.
            Err(take) => self.job_of(state, second).map_err(|other| take.sooner(other)),
        }
    }

    /// What there is to read of a segment.
    fn job_of(&self, state: &mut State<T>, index: usize) -> Result<Job, Take<T>> {
        let entry = &state.entries[index];
        if entry.seal.is_none() {
            let full = entry.unread >= self.settings.batch_events as u64;
            let hurried = state.closed || entry.next < state.hurry;
            let due = state.since + self.settings.linger;
            if !full && !hurried && due > Instant::now() {
                return Err(Take::At(due));
            }
        }
        let number = entry.number;
        if matches!(entry.source, Source::File) {
            if state.load != Some(number) {
                state.load = Some(number);
                self.work.notify_one();
            }
            return Err(Take::Empty);
        }
        let job = Job {
            number,
            source: entry.source.clone(),
            who: Arc::clone(&entry.who),
            salt: entry.salt,
            at: entry.at,
            first: entry.first,
            next: entry.next,
            end: entry.seal.map(|seal| seal.end as usize),
        };
        state.reading = Some(number);
        Ok(job)
    }

    /// A batch without events, for reports alone.
    fn reports(&self, state: &mut State<T>) -> Taken<T> {
        Taken {
            frames: Vec::new(),
            start: 0,
            events: VecDeque::new(),
            who: Arc::clone(&self.who),
            segment: 0,
            dropped: state.take_dropped(),
        }
    }

    fn copy_live(&self, job: &Job, live: &Live) -> Copied {
        let mut copied = Copied::from(job);
        while let Some((sequence, body, end)) = live.frame(copied.at) {
            if !self.put(&mut copied, job, sequence, body) {
                return copied;
            }
            copied.at = end;
        }
        copied.end = job.end.is_some_and(|end| copied.at >= end);
        copied
    }

    fn copy_loaded(&self, job: &Job, bytes: &[u8]) -> Copied {
        let mut copied = Copied::from(job);
        // From the front also what was acknowledged to the process before is looked at.
        let next = if job.at > FRAMES { job.next } else { job.first };
        let mut frames = Frames::new(bytes, job.salt, Some((job.at, next)), self.settings.max_body);
        while let Some(found) = frames.next() {
            match found {
                // Acknowledged to the process before.
                Found::Event { sequence, .. } if sequence < job.next => {}
                Found::Event { sequence, body } => {
                    if !self.put(&mut copied, job, sequence, body) {
                        return copied;
                    }
                }
                Found::Gap { numbers: (_, next), unfinished } => {
                    // Without what was settled before.
                    copied.gaps.push(((copied.next, next), unfinished));
                    copied.next = copied.next.max(next);
                }
            }
            copied.at = frames.at;
        }
        copied.end = true;
        copied
    }

    /// Whether the event still fits the batch.
    fn put(&self, copied: &mut Copied, job: &Job, sequence: u64, body: &[u8]) -> bool {
        let full = copied.numbers.len() >= self.settings.batch_events
            || copied.frames.len() + job.who.frame_len(body.len()) > self.settings.batch_bytes;
        if full {
            return false;
        }
        job.who.put_event(&mut copied.frames, body, sequence);
        copied.numbers.push(sequence);
        copied.next = sequence.saturating_add(1);
        true
    }

    /// Notes what was read, and makes a batch of it.
    fn taken(&self, job: Job, copied: Copied) -> Take<T> {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.reading = None;
        let events = copied.numbers.len() as u64;
        let Some(entry) = state.entries.iter_mut().find(|entry| entry.number == job.number) else {
            return Take::Again;
        };
        (entry.at, entry.next) = (copied.at, copied.next);
        entry.unread = entry.unread.saturating_sub(events);
        entry.in_flight += events;
        // A seal is only written once every frame is.
        let never_was = entry.unfinished;
        entry.damaged |= copied.gaps.iter().any(|(_, unfinished)| !(*unfinished && never_was));
        if copied.end {
            entry.read = true;
            // Its seal, or the walk when it was opened, had counted more.
            entry.damaged |= entry.unread > 0;
            state.stats.damaged += std::mem::take(&mut entry.unread);
            state.graves.push(std::mem::replace(&mut entry.source, Source::File));
            if entry.damaged {
                tracing::error!(
                    service = self.settings.service,
                    segment = job.number,
                    damaged = state.stats.damaged,
                    "part of a spooled segment can't be read; it is kept in the spool's folder `damaged`"
                );
            }
        }
        state.stats.in_flight += events;
        for ((first, next), unfinished) in copied.gaps {
            // Given a number, and killed before the event was there.
            if unfinished && never_was && first < next {
                state.note_dropped(&job.who, first, next - 1, 0);
            }
        }
        let progress = copied.end;
        if progress {
            state.remove_settled();
            self.work.notify_one();
        }
        let ours = Arc::ptr_eq(&job.who, &self.who);
        let mut extra = |sequence| ours.then(|| state.waiters.remove(&sequence)).flatten();
        let events: VecDeque<_> =
            copied.numbers.into_iter().map(|sequence| Item { sequence, extra: extra(sequence) }).collect();
        if events.is_empty() {
            // Somebody has a place and has not written to it yet.
            let take = if progress { Take::Again } else { Take::At(Instant::now() + SOON) };
            drop(guard);
            self.progress.notify_waiters();
            return take;
        }
        let dropped = state.take_dropped();
        // A batch that took part of what waits starts the next one's linger.
        state.since = Instant::now();
        Take::Now(Taken { frames: copied.frames, start: 0, events, who: job.who, segment: job.number, dropped })
    }
}

impl From<&Job> for Copied {
    fn from(job: &Job) -> Self {
        Self { frames: Vec::new(), numbers: Vec::new(), at: job.at, next: job.next, gaps: Vec::new(), end: false }
    }
}
