//! What is known of a spool's segments, under its one lock.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;

use tokio::time::Instant;

use super::format::Seal;
use super::map::Live;
use super::sync::{Broken, Waiter};
use crate::queue::frame::{Dropped, Numbering};
use crate::queue::{MAX_RANGES, Refused};
use crate::stats::{ServiceStats, Waiting};

/// Lines for `rejected.jsonl` that wait for a disk; beyond it they are only counted.
const MAX_LETTERS: usize = 1_000;
/// And how many bytes of them.
pub(super) const MAX_LETTER_BYTES: usize = 4 * 1024 * 1024;

/// Where the events of a segment are read from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// Mapped, and perhaps still written to.
    Live(Arc<Live>),
    /// On disk.
    File,
    /// Read back.
    Loaded(Arc<Vec<u8>>),
}

/// A segment with events that are not settled.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) who: Arc<Numbering>,
    pub(super) salt: u64,
    pub(super) source: Source,
    /// Of the file.
    pub(super) bytes: u64,
    /// Where the reader is.
    pub(super) at: usize,
    /// The number of its first event.
    pub(super) first: u64,
    /// Numbers below were read, or settled before.
    pub(super) next: u64,
    /// Numbers below are settled.
    pub(super) settled: u64,
    /// Absent while it is written to.
    pub(super) seal: Option<Seal>,
    /// Events not yet read, and events in flight.
    pub(super) unread: u64,
    pub(super) in_flight: u64,
    /// Whether its process died before it was sealed, in this run of the machine: only then is a
    /// number without an event one of an event that never was.
    pub(super) unfinished: bool,
    pub(super) damaged: bool,
    /// Everything that can be read was.
    pub(super) read: bool,
}

#[derive(Debug)]
pub(super) struct State<T> {
    /// Oldest first; the last one is written to while there is a `current`.
    pub(super) entries: VecDeque<Entry>,
    pub(super) current: Option<Arc<Live>>,
    /// Made, and not yet in use.
    pub(super) spare: Option<(u64, Arc<Live>)>,
    /// The number of the one that the keeper is at.
    pub(super) making: Option<u64>,
    pub(super) next_number: u64,
    pub(super) next_sequence: u64,
    /// Who waits for an event of this process, by its number.
    pub(super) waiters: HashMap<u64, T>,
    /// Since when the oldest unread event of the current segment waits.
    pub(super) since: Instant,
    /// The segment that the reader is copying from.
    pub(super) reading: Option<u64>,
    /// Whose turn it is, where there is a backlog.
    pub(super) fresh_is_next: bool,
    /// Dropped and not yet taken by the sender, and taken and not yet settled.
    pub(super) dropped: VecDeque<Dropped>,
    pub(super) reports: VecDeque<Dropped>,
    /// Numbers below this are wanted out without linger.
    pub(super) hurry: u64,
    pub(super) closed: bool,
    pub(super) orphaned: bool,
    /// Nothing is sent any more: the threads end; and the keeper has.
    pub(super) ending: bool,
    pub(super) ended: bool,

    /// The limit is reached, and nothing may be dropped for a next segment.
    pub(super) full: bool,
    /// The last event to come may push out the oldest.
    pub(super) dropping: bool,
    /// Callers that wait for room and want the oldest dropped for it.
    pub(super) droppers: usize,
    /// A next segment was waited for in vain.
    pub(super) stalled: bool,
    /// Why there is no next segment.
    pub(super) trouble: Option<String>,
    /// Bytes of all segments on disk.
    pub(super) bytes: u64,
    pub(super) pressed: bool,
    /// The keeper waits for something to do.
    pub(super) idle: bool,
    /// For the keeper: a segment to read, segments that are no longer written to, those to
    /// remove, what is to be let go outside of the lock, and lines for `rejected.jsonl`.
    pub(super) load: Option<u64>,
    pub(super) sealing: Vec<(u64, Arc<Live>, Seal)>,
    pub(super) trash: Vec<Trash>,
    pub(super) graves: Vec<Source>,
    pub(super) letters: Vec<Letter>,
    pub(super) ledger_stale: bool,
    /// For the syncer: who waits, and segments that were left behind unsynced.
    pub(super) sync_waiters: Vec<Waiter>,
    pub(super) unsynced: Vec<Unsynced>,
    /// How far the current segment is synced.
    pub(super) synced_to: usize,
    pub(super) broken: Broken,
    pub(super) stats: ServiceStats,
}

/// A line for `rejected.jsonl`, and the segment that its event is in.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) segment: u64,
    pub(super) line: Vec<u8>,
}

/// A segment that is done with.
#[derive(Debug)]
pub(super) struct Trash {
    pub(super) number: u64,
    pub(super) bytes: u64,
    pub(super) damaged: bool,
    /// It could not be removed.
    pub(super) failed: bool,
}

/// A segment that was left behind before all of it was synced.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) number: u64,
    pub(super) file: Arc<File>,
    /// The numbers of its events are below.
    pub(super) next: u64,
}

impl Entry {
    /// Whether there is anything to read, or to find out about.
    pub(super) fn has_something(&self) -> bool {
        self.seal.is_some() || self.unread > 0
    }

    fn is_settled(&self) -> bool {
        self.read && self.in_flight == 0
    }
}

impl<T> State<T> {
    /// With segments from before, oldest first.
    pub(super) fn new(entries: VecDeque<Entry>, dropped: Vec<Dropped>, next_number: u64, bytes: u64) -> Self {
        let recovered = entries.iter().map(|entry| entry.unread).sum();
        Self {
            entries,
            current: None,
            spare: None,
            making: None,
            next_number,
            next_sequence: 0,
            waiters: HashMap::new(),
            since: Instant::now(),
            reading: None,
            fresh_is_next: false,
            dropped: dropped.into(),
            reports: VecDeque::new(),
            hurry: 0,
            closed: false,
            orphaned: false,
            ending: false,
            ended: false,
            full: false,
            dropping: false,
            droppers: 0,
            stalled: false,
            trouble: None,
            bytes,
            pressed: false,
            idle: false,
            load: None,
            sealing: Vec::new(),
            trash: Vec::new(),
            graves: Vec::new(),
            letters: Vec::new(),
            ledger_stale: false,
            sync_waiters: Vec::new(),
            unsynced: Vec::new(),
            synced_to: 0,
            broken: Broken::default(),
            stats: ServiceStats { recovered, ..ServiceStats::default() },
        }
    }

    /// Where what is fresh is read: in the first that is not read of this process's last two
    /// segments. Two, so that nothing is left behind in one that is full.
    pub(super) fn fresh(&self, who: &Arc<Numbering>) -> Option<usize> {
        let last_two = self.entries.len().saturating_sub(2)..self.entries.len();
        let mut own = last_two.filter(|index| Arc::ptr_eq(&self.entries[*index].who, who));
        own.find(|index| !self.entries[*index].read && self.entries[*index].has_something())
    }

    /// The segment that was made when the spool was opened.
    pub(super) fn first(&mut self, made: Live, bytes: u64) {
        self.spare = Some((self.next_number, Arc::new(made)));
        self.next_number += 1;
        self.bytes += bytes;
    }

    /// There is no next segment, and callers are told why. Whether that is news.
    pub(super) fn no_next_segment(&mut self, why: &std::io::Error) -> bool {
        self.stalled = true;
        self.trouble.replace(why.to_string()).is_none()
    }

    /// Nothing more is written to the current segment.
    pub(super) fn leave_current(&mut self, sync: bool) {
        let Some(live) = self.current.take() else {
            return;
        };
        let Some(entry) = self.entries.back_mut() else {
            return;
        };
        let seal =
            Seal { events: live.events(), end: live.tail() as u32, first: entry.first, next: self.next_sequence };
        entry.seal = Some(seal);
        // All of it was read already; what is in flight is waited for.
        entry.read = entry.unread == 0;
        if sync {
            let file = Arc::clone(live.file());
            self.unsynced.push(Unsynced { number: entry.number, file, next: seal.next });
        }
        self.sealing.push((entry.number, live, seal));
        self.remove_settled();
    }

    /// Gives up the oldest segment that nothing is in flight of. Whether there was one.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let reading = self.reading;
        let idle = |entry: &Entry| entry.seal.is_some() && entry.in_flight == 0 && reading != Some(entry.number);
        let Some(index) = self.entries.iter().position(idle) else {
            return false;
        };
        let Some(entry) = self.entries.remove(index) else {
            return false;
        };
        if self.load == Some(entry.number) {
            self.load = None;
        }
        if let Some(seal) = entry.seal
            && entry.unread > 0
            && entry.next < seal.next
        {
            self.note_dropped(&entry.who, entry.next, seal.next - 1, entry.unread);
        }
        self.discard(entry);
        true
    }

    /// Numbers that are not sent, and how many events had them.
    pub(super) fn note_dropped(&mut self, who: &Arc<Numbering>, first: u64, last: u64, events: u64) {
        Dropped::note(&mut self.dropped, who, first, last);
        self.stats.dropped += events;
        self.ledger_stale = true;
    }

    /// Keeps a line until the disk takes it, while there is room for it.
    pub(super) fn keep_letter(&mut self, letter: Letter) {
        let waiting: usize = self.letters.iter().map(|letter| letter.line.len()).sum();
        if self.letters.len() < MAX_LETTERS && waiting + letter.line.len() <= MAX_LETTER_BYTES {
            self.letters.push(letter);
        } else {
            self.stats.disk_errors += 1;
        }
    }

    /// Ranges for one batch to report.
    pub(super) fn take_dropped(&mut self) -> Vec<Dropped> {
        let count = self.dropped.len().min(MAX_RANGES);
        let taken: Vec<Dropped> = self.dropped.drain(..count).collect();
        self.reports.extend(taken.iter().cloned());
        taken
    }

    /// Lets go of segments that are done with. Whether there were any.
    pub(super) fn remove_settled(&mut self) -> bool {
        let mut any = false;
        while let Some(index) = self.entries.iter().position(Entry::is_settled) {
            if let Some(entry) = self.entries.remove(index) {
                self.discard(entry);
            }
            any = true;
        }
        any
    }

    fn discard(&mut self, entry: Entry) {
        let Entry { number, bytes, damaged, .. } = entry;
        self.trash.push(Trash { number, bytes, damaged, failed: false });
        self.graves.push(entry.source);
        self.ledger_stale = true;
    }

    /// Below what everything is acknowledged: a segment, and a number in it.
    pub(super) fn cursor(&self) -> (u64, u64) {
        match self.entries.front() {
            Some(entry) => (entry.number, entry.settled),
            None => {
                let spare = self.spare.as_ref().map(|(number, _)| *number);
                (spare.or(self.making).unwrap_or(self.next_number), 0)
            }
        }
    }

    /// Segments above that one of which some is acknowledged, and below which number.
    pub(super) fn ahead(&self) -> Vec<(u64, u64)> {
        let behind = self.entries.iter().skip(1).filter(|entry| entry.settled > entry.first);
        behind.map(|entry| (entry.number, entry.settled)).collect()
    }

    /// Why there is no room, where it is not only that the keeper is at it.
    pub(super) fn no_room(&self) -> Option<Refused> {
        match &self.trouble {
            Some(why) => Some(Refused::Disk(why.clone())),
            None => self.full.then(|| self.full()),
        }
    }

    pub(super) fn full(&self) -> Refused {
        Refused::Full { events: self.unread() as usize, bytes: self.bytes as usize }
    }

    pub(super) fn unread(&self) -> u64 {
        self.entries.iter().map(|entry| entry.unread).sum()
    }

    pub(super) fn is_settled(&self, who: &Arc<Numbering>, target: u64) -> bool {
        let open = |entry: &Entry| {
            entry.unread + entry.in_flight > 0 && (!Arc::ptr_eq(&entry.who, who) || entry.settled < target)
        };
        !self.entries.iter().any(open) && self.dropped.is_empty() && self.reports.is_empty()
    }

    pub(super) fn waiting(&self) -> Waiting {
        Waiting {
            queued: self.unread(),
            in_flight: self.stats.in_flight,
            dropped_reports: (self.dropped.len() + self.reports.len()) as u64,
        }
    }
}
