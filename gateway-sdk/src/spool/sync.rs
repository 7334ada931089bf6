//! The syncer: a thread that waits for the disk, for all who ask at the time.
//!
//! **A sync covers what was written before it began.** A caller whose frame has its place, and
//! is not written yet, may be in the midst of a segment that is being synced. So a segment
//! counts as synced only if it was quiet before: every frame that had a place was written. A
//! caller asks after it has written, and is told by a sync that began after it asked.

use std::sync::{Arc, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Spool;
use super::map::Live;
use super::state::{State, Unsynced};
use crate::queue::Refused;

/// Who waits for a sync, and the number of the event that it waits for.
#[derive(Debug)]
pub(super) struct Waiter {
    sequence: u64,
    tell: oneshot::Sender<Result<(), String>>,
}

/// Events that a sync has failed for.
#[derive(Debug, Default)]
pub(super) struct Broken {
    /// Numbers below are in the segment, or before it.
    below: u64,
    why: String,
}

/// What one round syncs, as it was when the round began.
struct Round {
    waiters: Vec<Waiter>,
    /// Segments that were left behind, and whether they were quiet.
    left: Vec<(Unsynced, bool)>,
    current: Option<Current>,
}

struct Current {
    number: u64,
    live: Arc<Live>,
    tail: usize,
    quiet: bool,
}

impl<T: Send + 'static> Spool<T> {
    /// Waits until an event that was pushed is on the disk.
    pub(crate) async fn synced(&self, sequence: u64, deadline: Instant) -> Result<(), Refused> {
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.ending {
                return Err(Refused::Closed);
            }
            state.sync_waiters.push(Waiter { sequence, tell });
        }
        self.sync_work.notify_one();
        match tokio::time::timeout_at(deadline, told).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(message))) => Err(Refused::Disk(message)),
            Ok(Err(_)) => Err(Refused::Closed),
            Err(_) => Err(Refused::Disk("a sync has not come to an end in time".to_owned())),
        }
    }

    pub(super) fn sync_until_the_end(&self) {
        let mut state = self.lock();
        loop {
            if state.ending {
                // Told by their closed channels.
                let waiters = std::mem::take(&mut state.sync_waiters);
                drop(state);
                drop(waiters);
                return;
            }
            if self.settings.durable && state.sync_waiters.is_empty() {
                state = self.sync_work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if !self.settings.durable {
                let waited = self.sync_work.wait_timeout(state, self.settings.sync);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if state.ending {
                    continue;
                }
            }
            let round = self.round(&mut state);
            drop(state);
            self.sync(round);
            state = self.lock();
        }
    }

    fn round(&self, state: &mut State<T>) -> Round {
        let waiters = std::mem::take(&mut state.sync_waiters);
        let left = std::mem::take(&mut state.unsynced).into_iter();
        // What the service has needs no sync.
        let left = left.filter(|segment| state.entries.iter().any(|entry| entry.number == segment.number));
        let left = left.map(|segment| {
            let quiet = state.is_quiet(segment.number);
            (segment, quiet)
        });
        let left = left.collect();
        let pending = |entry: &&super::Entry| self.settings.durable || entry.unread + entry.in_flight > 0;
        let current = state.current.as_ref().zip(state.entries.back().filter(pending));
        let current = current.map(|(live, entry)| Current {
            number: entry.number,
            live: Arc::clone(live),
            // Places are given under the lock: these two are of one moment.
            tail: live.tail(),
            quiet: live.is_quiet(),
        });
        Round { waiters, left, current: current.filter(|current| current.tail > state.synced_to) }
    }

    /// Syncs each segment by itself, and tells who waits for it: what becomes of one is
    /// nothing to the events of another.
    fn sync(&self, round: Round) {
        let Round { waiters, left, current } = round;
        for (segment, quiet) in left {
            match self.files.sync_file(&segment.file) {
                Ok(()) if quiet => {}
                Ok(()) => self.lock().unsynced.push(segment),
                Err(error) => self.sync_failed(segment.next, &error),
            }
        }
        if let Some(Current { number, live, tail, quiet }) = current {
            // Of audit a segment's name was synced when it was made.
            let names = || if self.settings.durable { Ok(()) } else { self.files.sync_folder() };
            let synced = self.files.sync_live(&live, tail).and_then(|()| names());
            let mut state = self.lock();
            let same = state.current.as_ref().is_some_and(|now| Arc::ptr_eq(now, &live));
            match synced {
                Ok(()) if same && quiet => state.synced_to = tail,
                Ok(()) => {}
                Err(error) => {
                    let below = state.give_up_on(number, same);
                    drop(state);
                    self.sync_failed(below, &error);
                    self.work.notify_one();
                }
            }
        }
        let state = self.lock();
        let told: Vec<_> = waiters
            .into_iter()
            .map(|Waiter { sequence, tell }| {
                let broken = sequence < state.broken.below;
                (tell, if broken { Err(state.broken.why.clone()) } else { Ok(()) })
            })
            .collect();
        drop(state);
        for (tell, result) in told {
            // Nobody waits any more where `record` timed out or was dropped.
            let _ = tell.send(result);
        }
    }

    /// Callers that have not asked yet are told as well: their events are of numbers below.
    fn sync_failed(&self, below: u64, error: &std::io::Error) {
        self.failed("a sync", error);
        let broken = &mut self.lock().broken;
        *broken = Broken { below: broken.below.max(below), why: format!("a sync failed: {error}") };
    }
}

impl<T> State<T> {
    /// Whether every frame of a segment that was left is written.
    fn is_quiet(&self, number: u64) -> bool {
        // What the keeper has sealed was.
        !self.sealing.iter().any(|(sealing, live, _)| *sealing == number && !live.is_quiet())
    }

    /// After a sync that failed: the segment gets no more events, and no more syncs. Gives the
    /// number that its events are below.
    fn give_up_on(&mut self, number: u64, is_current: bool) -> u64 {
        if is_current {
            self.leave_current(false);
            return self.next_sequence;
        }
        let index = self.unsynced.iter().position(|segment| segment.number == number);
        index.map_or(self.next_sequence, |index| self.unsynced.swap_remove(index).next)
    }
}
