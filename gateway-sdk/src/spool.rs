//! The spool: every event on the local disk's side of this process before `record` returns.
//!
//! ```text
//! record ─encode, CRC─▶ [lock: place, number] ─copy, length─▶ segment in memory ═ kernel ═▶ disk
//!                            │ full                               │              syncer
//!                            ▼                                    ▼
//!                       next segment ◀─make, fault in─ keeper    take ─▶ sender ─▶ in flight
//!                                                        ▲ ▲                          │
//!             read back, once out of memory ─────────────┘ └── remove ◀── settle ◀────┘
//! ```
//!
//! # What is promised
//!
//! - **Usage survives the death of the process at any instant.** A segment is a file mapped
//!   into memory: once the event is copied, it is the kernel's, whatever becomes of this
//!   process, and no system call was made for it. Against the death of the *machine* it is
//!   synced every [`sync interval`](Settings::sync).
//! - **Audit survives the machine too**: `record` returns after a sync that began when its
//!   event was written; all callers that wait at the time share it.
//! - **Delivered until acknowledged**, in the order of numbers but for what is fresh. What a
//!   service did not acknowledge is sent again, by this process or the next one with the same
//!   folder; the event's id makes the service store it once. A number is given to one event for
//!   ever.
//! - **Neither a backlog nor what is fresh waits for all of the other**: see *Read*.
//! - **Bounded** on disk by [`Settings::limit`], in memory by four mapped segments and one
//!   that is being read.
//! - **Damage costs what is damaged**: every frame stands for itself.
//!
//! # Format
//!
//! [`format`](self::format): segments of equal length, named by rising numbers, each with a
//! header that says whose numbers its events have, frames, and a seal once it is done.
//! [`ledger`]: how far things are acknowledged, and what was dropped and not yet reported.
//! [`files`]: where they lie.
//!
//! # Write
//!
//! 1. The event is encoded and its CRC begun, without a lock.
//! 2. Under the lock, which is never held across a system call: a place in the segment and the
//!    next number. So numbers rise in the order of places.
//! 3. Without the lock: CRC, number and event are copied, then the length is stored. **That is
//!    the commit**; `record` returns.
//! 4. Audit: the caller asks the syncer ([`sync`]), and waits.
//!
//! The keeper, a thread, has the next segment ready: made in full, with all its blocks (no
//! hole that a full disk could not fill), zeros, mapped, and every page touched. When it
//! can't, because the disk is full, broken or silent, `usage().record` waits for it once, at
//! most [`PATIENCE`], and from then on drops at once, until the disk answers; audit is told.
//! Dropped events have numbers too, so that the service can be told which.
//!
//! # Read and acknowledge
//!
//! There is one reader, the sender. It reads from the oldest segment on. Of usage, while there
//! is a backlog, it takes every second batch from what this process records meanwhile: from its
//! last two segments. So a fresh event waits for two segments and what is in flight at most, with
//! as many events of the backlog between them, and the backlog has at least every second batch.
//! Where a service takes less than twice what is recorded, segments fall behind and are backlog
//! from then on. Audit is read in order alone: an outcome does not overtake its intent, and a day
//! of it is short.
//!
//! From a mapped segment it copies frames up to the first whose length is not there; a segment
//! that is in memory no more is read by the keeper, as a whole, and each frame's CRC is checked. A
//! batch is of one segment. When the service has answered for all events of a sealed segment,
//! the keeper writes the ledger and then removes the file.
//!
//! # Full
//!
//! Before a segment that would pass the limit: usage drops the oldest segment of which nothing
//! is in flight, notes its numbers in the ledger, and then removes the file; audit, and
//! `record_wait`, get no room until the service has acknowledged some. The same when the disk
//! is full before the limit is reached.
//!
//! # Recover
//!
//! | the process died | found at the next start | what is done |
//! | --- | --- | --- |
//! | while a segment was made | no header, or no frames | removed |
//! | after a number was given, before the length was stored | zeros, perhaps an event without its length, and frames of other threads behind it | nobody was told of that event: its number is reported as dropped |
//! | the same in the first place of a segment | zeros at its front, and the number that it began with | reported |
//! | the same in the last place | a torn tail | cut: it ends at the last whole frame; reported where the next segment begins with a later number, else nobody knows of it |
//! | after the length | a frame | delivered |
//! | after the service's answer, before the ledger | an old cursor | sent again, stored once |
//! | after the ledger, before the removal | segments below the cursor, or whose numbers it has as dropped | removed |
//! | in the middle of writing the ledger | a torn slot | the one before counts |
//! | after a refusal, before it was written to `rejected.jsonl` | the event, unacknowledged | sent, refused, and written down again |
//! | the same, while that file can't be written to | the event's segment, and an old cursor | the same |
//! | while closing | a segment without a seal | walked, as after any death |
//! | on a disk that is full | no room for a segment | what is there is delivered, and makes room; nothing is taken until there is some |
//! | *the machine* died | pages of zeros, torn frames | what is whole is delivered; the numbers of the rest stay missing, and are not passed off as dropped |
//! | *the disk* has damaged something | a CRC that does not fit | the segment is kept in `damaged`, the rest of it delivered, the loss counted |
//! | *the disk* can't read a segment | an I/O error | opening fails; later it is tried some times more, and then as above |
//! | the machine has no descriptor or no memory to read one | another error | opening fails; later it is tried until it can be read |
//!
//! A sync that fails is not tried again on its file: the kernel may have thrown the pages away
//! and forget that it did. Every caller with an event in it is told, also those that ask later;
//! the segment gets no more events, and the next go to a new file. What is in it is sent all the
//! same: from memory where the sender is near, and where it is behind from what the disk gives
//! back, of which each frame is checked.
//!
//! Two processes can't share a spool: it is locked, and the second is refused. Clocks don't
//! matter: an epoch is larger than all that the folder has seen.

mod files;
mod format;
mod keeper;
mod ledger;
mod map;
mod open;
mod state;
mod sync;
mod take;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::files::Files;
use self::format::{Header, Start, body_crc, frame_crc};
pub(crate) use self::open::{Folder, read_any};
use self::state::{Entry, Letter, Source, State};
use crate::config::OnPressure;
use crate::error::Rejection;
use crate::id;
use crate::queue::frame::{Dropped, Numbering};
use crate::queue::{Refused, Settled};
use crate::stats::{ServiceStats, Waiting};

/// How long `usage().record` waits at most for a segment that isn't ready; see [`Spool`]. Far
/// more than a disk that works and a machine that is busy need, so that neither loses an event.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a spool is and does; see [`Builder::spool`](crate::Builder::spool).
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) service: &'static str,
    /// Bytes of segments on disk.
    pub(crate) limit: u64,
    /// Bytes of one segment.
    pub(crate) segment: usize,
    /// Sync before `record` returns, and not at intervals.
    pub(crate) durable: bool,
    pub(crate) sync: Duration,
    pub(crate) batch_events: usize,
    pub(crate) batch_bytes: usize,
    pub(crate) linger: Duration,
    /// The largest event.
    pub(crate) max_body: usize,
    /// Number of the event's `producer` field.
    pub(crate) producer_field: u32,
    pub(crate) on_pressure: OnPressure,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Spool<T> {
    settings: Settings,
    folder: PathBuf,
    files: Arc<dyn Files>,
    who: Arc<Numbering>,
    header: Header,
    seed: u32,
    state: Mutex<State<T>>,
    /// Work for the keeper, and for the syncer.
    work: Condvar,
    sync_work: Condvar,
    /// A next segment, for callers that block.
    made: Condvar,
    /// A next segment, or none to be had, for callers that don't.
    room: Notify,
    /// Something for the sender.
    ready: Notify,
    pub(crate) nudge: Notify,
    /// Events were settled or dropped.
    progress: Notify,
    pub(crate) orphan: Notify,
    /// The keeper has ended.
    over: Notify,
}

impl<T> Spool<T> {
    /// No code that can panic midway runs under the lock, so a poisoned one still guards a
    /// sound state.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// Takes an encoded event, and lets the oldest be dropped for it where the spool is full.
    pub(crate) fn push_dropping(&self, body: &[u8]) -> Result<(), Refused> {
        let crc = body_crc(self.seed, body);
        let mut state = self.lock();
        loop {
            state.dropping = true;
            match self.place(state, body, crc, &mut None) {
                Placed::Done(_) => return Ok(()),
                Placed::Closed => return Err(Refused::Closed),
                Placed::NoRoom(back) => state = back,
            }
            if state.stalled {
                let sequence = state.next_sequence;
                state.next_sequence += 1;
                state.stats.recorded += 1;
                state.note_dropped(&self.who, sequence, sequence, 1);
                drop(state);
                self.progress.notify_waiters();
                self.ready.notify_one();
                return Ok(());
            }
            self.work.notify_one();
            state.droppers += 1;
            let (back, waited) = self.made.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.droppers -= 1;
            if waited.timed_out() && state.spare.is_none() {
                state.stalled = true;
            }
        }
    }

    /// Takes an encoded event once there is room; gives its number.
    pub(crate) async fn push_waiting(
        &self,
        body: &[u8],
        mut extra: Option<T>,
        deadline: Instant,
    ) -> Result<u64, Refused> {
        let crc = body_crc(self.seed, body);
        loop {
            let room = self.room.notified();
            let mut room = std::pin::pin!(room);
            // Registered before looking, so that room made in between is not missed.
            room.as_mut().enable();
            // In a block of its own: the lock is not held over an await.
            let refused = {
                let mut state = self.lock();
                // Unless somebody else waits who wants just that.
                state.dropping = state.droppers > 0;
                match self.place(state, body, crc, &mut extra) {
                    Placed::Done(sequence) => return Ok(sequence),
                    Placed::Closed => return Err(Refused::Closed),
                    Placed::NoRoom(state) => {
                        self.work.notify_one();
                        state.no_room()
                    }
                }
            };
            // Audit is told at once that it is not recorded; whoever waits for room waits.
            if self.settings.durable
                && let Some(refused) = refused
            {
                return Err(refused);
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                let state = self.lock();
                return Err(state.no_room().unwrap_or_else(|| state.full()));
            }
        }
    }

    /// Puts an event into the current segment, or the next one. `extra` is taken with it.
    fn place<'a>(
        &self,
        mut state: MutexGuard<'a, State<T>>,
        body: &[u8],
        crc: u32,
        extra: &mut Option<T>,
    ) -> Placed<'a, T> {
        if state.closed {
            return Placed::Closed;
        }
        let mut place = state.current.as_ref().and_then(|live| live.reserve(body.len()));
        if place.is_none() && self.rotate(&mut state) {
            place = state.current.as_ref().and_then(|live| live.reserve(body.len()));
        }
        let Some(place) = place else {
            return Placed::NoRoom(state);
        };
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        state.stats.recorded += 1;
        if let Some(extra) = extra.take() {
            state.waiters.insert(sequence, extra);
        }
        let unread = state.entries.back_mut().map_or(0, |entry| {
            entry.unread += 1;
            entry.unread
        });
        // The first event starts the linger, a full batch ends it.
        let tell = unread == 1 || unread == self.settings.batch_events as u64;
        if unread == 1 {
            state.since = Instant::now();
        }
        drop(state);
        place.write(sequence, frame_crc(crc, body.len() as u32, sequence), body);
        if tell {
            self.ready.notify_one();
        }
        Placed::Done(sequence)
    }

    /// Leaves the current segment for the spare one. Whether there was one.
    fn rotate(&self, state: &mut State<T>) -> bool {
        let Some((number, live)) = state.spare.take() else {
            return false;
        };
        state.leave_current(true);
        live.begin(Start(state.next_sequence), self.header.salt);
        state.entries.push_back(Entry {
            number,
            who: Arc::clone(&self.who),
            salt: self.header.salt,
            source: Source::Live(Arc::clone(&live)),
            bytes: self.settings.segment as u64,
            at: format::FRAMES,
            first: state.next_sequence,
            next: state.next_sequence,
            settled: state.next_sequence,
            seal: None,
            unread: 0,
            in_flight: 0,
            unfinished: false,
            damaged: false,
            read: false,
        });
        state.current = Some(live);
        state.synced_to = format::FRAMES;
        self.work.notify_one();
        true
    }

    /// Nobody waits for this event's receipt any more.
    pub(crate) fn forget(&self, sequence: u64) {
        let waiter = self.lock().waiters.remove(&sequence);
        drop(waiter);
    }

    /// Counts an event that was never spooled: over the size limit, or too late.
    pub(crate) fn count_untaken(&self, rejected: bool) {
        let stats = &mut self.lock().stats;
        stats.recorded += 1;
        *(if rejected { &mut stats.rejected } else { &mut stats.dropped }) += 1;
    }

    /// Notes what became of a batch.
    pub(crate) fn settle(&self, settled: Settled) {
        let mut state = self.lock();
        state.stats.note_settled(&settled);
        let (was_stale, mut removable) = (state.ledger_stale, false);
        let reports = settled.reports.min(state.reports.len());
        state.reports.drain(..reports);
        state.ledger_stale |= reports > 0;
        if let Some(last) = settled.last
            && let Some(entry) = state.entries.iter_mut().find(|entry| entry.number == settled.segment)
        {
            let events = (settled.acknowledged + settled.rejected) as u64;
            entry.in_flight = entry.in_flight.saturating_sub(events);
            entry.settled = entry.settled.max(last.saturating_add(1));
            state.ledger_stale = true;
            removable = state.remove_settled();
        }
        // Once the keeper knows that the ledger is stale, it comes by itself.
        if removable || state.ledger_stale && !was_stale {
            self.work.notify_one();
        }
        drop(state);
        self.progress.notify_waiters();
    }

    /// Notes that an event that was taken is given up by this side, and has to be reported.
    pub(crate) fn report_dropped(&self, who: &Arc<Numbering>, sequence: u64) {
        let mut state = self.lock();
        Dropped::note(&mut state.dropped, who, sequence, sequence);
        state.ledger_stale = true;
        drop(state);
        self.work.notify_one();
        self.ready.notify_one();
    }

    /// Writes an event of a segment that was refused for good, and why, to `rejected.jsonl`. It is
    /// in the keeper's hands before the event counts as settled.
    pub(crate) fn keep_rejected(&self, segment: u64, event: &[u8], rejection: &Rejection) {
        let mut line = json!({
            "at_us": id::now_micros(),
            "service": self.settings.service,
            "reason": rejection.reason.as_str_name().trim_start_matches("ERROR_REASON_"),
            "field": rejection.field,
            "message": rejection.message,
            "event": BASE64_STANDARD.encode(event),
        })
        .to_string();
        line.push('\n');
        self.lock().keep_letter(Letter { segment, line: line.into_bytes() });
        self.work.notify_one();
    }

    pub(crate) fn note_stream(&self, opened: Result<bool, (String, bool)>) {
        self.lock().stats.note_stream(opened);
    }

    /// Waits until everything recorded so far, and before, is settled, or the deadline.
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
            if self.lock().is_settled(&self.who, target) {
                return Waiting::default();
            }
            if tokio::time::timeout_at(deadline, progress).await.is_err() {
                return self.lock().waiting();
            }
        }
    }

    /// Takes no more events; what is spooled is still sent.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_one();
        self.room.notify_waiters();
        self.made.notify_all();
    }

    pub(crate) fn orphan(&self) {
        self.lock().orphaned = true;
        self.close();
        self.orphan.notify_one();
    }

    /// Nothing is sent any more: what is there stays for the next process.
    pub(crate) fn end(&self) {
        self.close();
        let waiters = {
            let mut state = self.lock();
            state.ending = true;
            std::mem::take(&mut state.waiters)
        };
        // Outside of the lock: whoever waits for these events is woken here.
        drop(waiters);
        self.work.notify_one();
        self.sync_work.notify_one();
        self.progress.notify_waiters();
    }

    /// As [`end`](Self::end), and waits until the folder is free.
    pub(crate) async fn ended(&self) {
        self.end();
        loop {
            let over = self.over.notified();
            let mut over = std::pin::pin!(over);
            over.as_mut().enable();
            if self.lock().ended {
                return;
            }
            // A disk that hangs must not hang its user.
            if tokio::time::timeout(Duration::from_secs(5), over).await.is_err() {
                return;
            }
        }
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
        stats.queued = state.unread();
        stats.spool_bytes = state.bytes;
        stats.spool_limit = self.settings.limit;
        stats
    }
}

/// What came of trying to place an event.
enum Placed<'a, T> {
    Done(u64),
    Closed,
    NoRoom(MutexGuard<'a, State<T>>),
}

#[cfg(test)]
mod tests;
