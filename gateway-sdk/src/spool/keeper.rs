//! The keeper: a thread that does everything to files but to sync them.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Spool;
use super::files::{is_damage, is_disk, is_full};
use super::format::{Header, MAX_SEGMENT, Seal};
use super::ledger::Ledger;
use super::map::Live;
use super::open::Lock;
use super::state::{Letter, Source, State, Trash};
use crate::config::SpoolPressure;
use crate::queue::frame::Dropped;

/// How often the ledger is written at most while events are acknowledged.
const LEDGER_EVERY: Duration = Duration::from_millis(100);
/// When a disk that failed is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a disk that can't read a segment is asked for it. It then counts as damaged, so
/// that it does not hold up all that is behind it.
const READS: u32 = 5;
/// When to look again for a thread that has a place and has not yet written to it.
const SOON: Duration = Duration::from_millis(1);
/// How long the end waits for such threads.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// What the keeper does in one round, outside of the lock.
#[derive(Default)]
struct Errands {
    graves: Vec<Source>,
    letters: Vec<Letter>,
    trash: Vec<Trash>,
    load: Option<u64>,
    /// Segments to seal: all their frames are written.
    quiet: Vec<(u64, Arc<Live>, Seal)>,
    /// How far things were when the letters were taken: what was refused below is among them.
    ledger: Option<Balance>,
    /// A next segment, whose number this is.
    make: Option<u64>,
}

/// What goes into the ledger.
struct Balance {
    cursor: (u64, u64),
    ahead: Vec<(u64, u64)>,
    dropped: Vec<Dropped>,
}

/// What the keeper remembers from round to round.
struct Keeper {
    ledger: Ledger,
    ledger_at: Instant,
    retry_at: Option<Instant>,
    /// Segments that could not be removed, or may not yet, and when to try again.
    stuck: Vec<Trash>,
    stuck_until: Instant,
    unread: Option<Unread>,
}

/// A segment that could not be read, how often, and when to try again.
struct Unread {
    number: u64,
    times: u32,
    until: Instant,
}

impl<T: Send + 'static> Spool<T> {
    /// Starts both threads.
    pub(super) fn start(self: &Arc<Self>, ledger: Ledger, lock: Arc<Lock>) -> std::io::Result<()> {
        let thread = |name: &str| {
            std::thread::Builder::new().name(format!("{name}-{}", self.settings.service)).stack_size(512 * 1024)
        };
        let spool = Arc::clone(self);
        thread("syncer").spawn(move || spool.sync_until_the_end())?;
        let spool = Arc::clone(self);
        let keeping = thread("keeper").spawn(move || {
            spool.keep(ledger);
            // Only now may another open the folder.
            drop(lock);
            spool.lock().ended = true;
            spool.over.notify_waiters();
        });
        if keeping.is_err() {
            self.end();
        }
        keeping.map(drop)
    }

    fn keep(&self, ledger: Ledger) {
        let now = Instant::now();
        let stuck = Vec::new();
        let mut keeper = Keeper { ledger, ledger_at: now, retry_at: None, stuck, stuck_until: now, unread: None };
        loop {
            let (errands, ending) = self.wait_for_errands(&mut keeper);
            if ending {
                return self.finish(&mut keeper);
            }
            self.run(errands, &mut keeper);
            self.press();
        }
    }

    /// What there is to do, once there is something; and whether it is the last.
    fn wait_for_errands(&self, keeper: &mut Keeper) -> (Errands, bool) {
        let mut state = self.lock();
        loop {
            if state.ending {
                return (Errands::default(), true);
            }
            let now = Instant::now();
            let idle = keeper.retry_at.is_some_and(|at| at > now);
            let unread = keeper.unread.as_ref().filter(|unread| state.load == Some(unread.number));
            let unread = unread.map(|unread| unread.until).filter(|until| *until > now);
            let mut errands = Errands {
                graves: std::mem::take(&mut state.graves),
                trash: std::mem::take(&mut state.trash),
                load: state.load.filter(|_| unread.is_none()),
                ..Errands::default()
            };
            if now >= keeper.stuck_until {
                errands.trash.append(&mut keeper.stuck);
            }
            (errands.quiet, state.sealing) =
                std::mem::take(&mut state.sealing).into_iter().partition(|(_, live, _)| live.is_quiet());
            if !idle {
                errands.letters = std::mem::take(&mut state.letters);
                errands.make = self.wants_segment(&mut state);
                // What is dropped for it goes with this round.
                errands.trash.append(&mut state.trash);
                errands.graves.append(&mut state.graves);
                let due = now >= keeper.ledger_at + LEDGER_EVERY;
                errands.ledger = (state.ledger_stale && (due || !errands.trash.is_empty())).then(|| state.balance());
            }
            keeper.keep_back(&state.letters, &mut errands.trash);
            if errands.is_any() {
                return (errands, false);
            }
            let soon = (!state.sealing.is_empty()).then_some(now + SOON);
            let ledger = (state.ledger_stale && !idle).then_some(keeper.ledger_at + LEDGER_EVERY);
            let stuck = (!keeper.stuck.is_empty()).then_some(keeper.stuck_until);
            let retry = keeper.retry_at.filter(|_| idle);
            let until = [soon, ledger, stuck, unread, retry].into_iter().flatten().min();
            state = self.wait(state, until.map(|at| at.saturating_duration_since(now)));
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State<T>>, most: Option<Duration>) -> MutexGuard<'a, State<T>> {
        state.idle = true;
        let mut state = match most {
            Some(most) => self.work.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0,
            None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
        state.idle = false;
        state
    }

    /// The number of a segment to make, if one is wanted and may be. Drops the oldest where
    /// that is how room is made.
    fn wants_segment(&self, state: &mut State<T>) -> Option<u64> {
        if state.spare.is_some() || state.closed {
            return None;
        }
        let len = self.settings.segment as u64;
        // What is in the trash is as good as gone.
        let held = |state: &State<T>| state.bytes - state.trash.iter().map(|trash| trash.bytes).sum::<u64>();
        while held(state) + len > self.settings.limit {
            if !self.may_drop(state) || !state.drop_oldest() {
                if !std::mem::replace(&mut state.full, true) {
                    self.room.notify_waiters();
                }
                return None;
            }
            self.dropped();
        }
        let number = state.next_number;
        state.next_number += 1;
        state.making = Some(number);
        state.bytes += len;
        Some(number)
    }

    /// The reader may have been waiting for what is gone, and has something to report.
    fn dropped(&self) {
        self.ready.notify_one();
        self.progress.notify_waiters();
    }

    fn may_drop(&self, state: &State<T>) -> bool {
        state.dropping && !self.settings.durable
    }

    fn run(&self, errands: Errands, keeper: &mut Keeper) {
        drop(errands.graves);
        self.bring_in_order(errands.letters, errands.ledger, errands.trash, keeper);
        for (_, live, seal) in &errands.quiet {
            live.seal(seal, self.header.salt);
        }
        if !errands.quiet.is_empty() {
            self.unmap();
        }
        if let Some(number) = errands.load {
            self.load(number, keeper);
        }
        if let Some(number) = errands.make {
            self.make(number, keeper);
        }
    }

    /// What was refused first, then how far things are, then what is done with. As long as a
    /// refusal is not written down, its event must be found again: the ledger stays as it is, and
    /// so does the segment.
    fn bring_in_order(
        &self,
        letters: Vec<Letter>,
        ledger: Option<Balance>,
        mut trash: Vec<Trash>,
        keeper: &mut Keeper,
    ) {
        match self.write_rejected(letters, keeper) {
            Ok(()) => {
                if let Some(balance) = ledger {
                    self.write_ledger(balance, keeper);
                }
            }
            Err(letters) => {
                keeper.keep_back(&letters, &mut trash);
                let mut state = self.lock();
                state.ledger_stale |= ledger.is_some();
                for letter in std::mem::replace(&mut state.letters, letters) {
                    state.keep_letter(letter);
                }
            }
        }
        self.remove(trash, keeper);
    }

    /// Gives back what could not be written.
    fn write_rejected(&self, letters: Vec<Letter>, keeper: &mut Keeper) -> Result<(), Vec<Letter>> {
        if letters.is_empty() {
            return Ok(());
        }
        let lines: Vec<&[u8]> = letters.iter().map(|letter| letter.line.as_slice()).collect();
        if let Err(error) = self.files.append_rejected(&lines.concat()) {
            self.failed("writing rejected events", &error);
            keeper.retry_at = Some(Instant::now() + RETRY);
            return Err(letters);
        }
        Ok(())
    }

    fn write_ledger(&self, balance: Balance, keeper: &mut Keeper) {
        let Balance { cursor, ahead, dropped } = balance;
        (keeper.ledger.cursor, keeper.ledger.ahead, keeper.ledger.dropped) = (cursor, ahead, dropped);
        keeper.ledger_at = Instant::now();
        let (at, slot) = keeper.ledger.encode();
        if let Err(error) = self.files.write_ledger(at, &slot) {
            // An old one is as good, but for dropped numbers, which then show as missing.
            self.failed("writing the ledger", &error);
            self.lock().ledger_stale = true;
            keeper.retry_at = Some(Instant::now() + RETRY);
        }
    }

    fn remove(&self, trash: Vec<Trash>, keeper: &mut Keeper) {
        let mut freed = 0;
        for mut trash in trash {
            let Trash { number, bytes, damaged, .. } = trash;
            let removed = if damaged { self.files.set_aside(number) } else { self.files.remove(number) };
            if let Err(error) = removed {
                // Once is enough to tell.
                if !std::mem::replace(&mut trash.failed, true) {
                    self.failed("removing a segment", &error);
                }
                // It stays counted, and is tried again; at the latest by the next start.
                keeper.stuck.push(trash);
                keeper.stuck_until = Instant::now() + RETRY;
            } else {
                freed += bytes;
            }
        }
        if freed > 0 {
            let mut state = self.lock();
            state.bytes -= freed;
            state.full = false;
        }
    }

    /// Segments that are done are read from their files, but for those that the reader is in.
    fn unmap(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let oldest = state.entries.iter().find(|entry| !entry.read).map(|entry| entry.number);
        let fresh = state.fresh(&self.who).map(|index| state.entries[index].number);
        let mut kept: Vec<u64> = [oldest, fresh, state.reading].into_iter().flatten().collect();
        kept.extend(state.sealing.iter().map(|(number, ..)| *number));
        let done = state.entries.iter_mut().filter(|entry| {
            entry.seal.is_some() && matches!(entry.source, Source::Live(_)) && !kept.contains(&entry.number)
        });
        let mapped: Vec<Source> = done.map(|entry| std::mem::replace(&mut entry.source, Source::File)).collect();
        drop(guard);
        drop(mapped);
    }

    fn load(&self, number: u64, keeper: &mut Keeper) {
        let read = self.files.read(number, MAX_SEGMENT);
        let before = keeper.unread.take().filter(|unread| unread.number == number);
        let times = before.map_or(0, |unread| unread.times) + 1;
        if let Err(error) = &read
            && !(is_damage(error) || is_disk(error) && times >= READS)
        {
            keeper.unread = Some(Unread { number, times, until: Instant::now() + RETRY });
            // Once is enough to tell.
            if times == 1 {
                self.failed("reading a segment back", error);
            }
            return;
        }
        let mut state = self.lock();
        // It may have been dropped meanwhile.
        if state.load != Some(number) {
            return;
        }
        state.load = None;
        let Some(entry) = state.entries.iter_mut().find(|entry| entry.number == number) else {
            return;
        };
        match read {
            Ok(bytes) => entry.source = Source::Loaded(Arc::new(bytes)),
            Err(error) => {
                (entry.read, entry.damaged) = (true, true);
                let lost = std::mem::take(&mut entry.unread);
                state.stats.damaged += lost;
                state.remove_settled();
                drop(state);
                self.failed("reading a segment back, for the last time,", &error);
            }
        }
        self.ready.notify_one();
        self.progress.notify_waiters();
    }

    fn make(&self, number: u64, keeper: &mut Keeper) {
        let header = Header { number, ..self.header.clone() };
        let made = self.files.create(&header, self.settings.segment, self.settings.durable);
        let mut state = self.lock();
        state.making = None;
        match made {
            Ok(live) => {
                state.spare = Some((number, Arc::new(live)));
                (state.trouble, state.stalled, state.full) = (None, false, false);
                keeper.retry_at = None;
            }
            Err(error) => {
                state.bytes -= self.settings.segment as u64;
                // Room is made where that is allowed, and the next round tries again at once.
                if is_full(&error) && self.may_drop(&state) && state.drop_oldest() {
                    self.dropped();
                } else {
                    keeper.retry_at = Some(Instant::now() + RETRY);
                    if state.no_next_segment(&error) {
                        drop(state);
                        self.failed("making a segment", &error);
                    }
                }
            }
        }
        self.made.notify_all();
        self.room.notify_waiters();
        self.progress.notify_waiters();
    }

    pub(super) fn failed(&self, what: &str, error: &std::io::Error) {
        tracing::error!(service = self.settings.service, folder = %self.folder.display(), %error, "{what} failed");
        self.lock().stats.disk_errors += 1;
    }

    /// Tells the application once when the limit comes near, and again after it had been far.
    fn press(&self) {
        let pressure = {
            let mut state = self.lock();
            let (bytes, limit) = (state.bytes, self.settings.limit);
            // Rounded, so that the last segment which fits is near in any case.
            let near = bytes + self.settings.segment as u64 > limit || bytes >= limit / 5 * 4;
            let far = bytes < limit / 10 * 7;
            if state.pressed || !near {
                state.pressed &= !far;
                return;
            }
            state.pressed = true;
            SpoolPressure { service: self.settings.service, events: state.unread(), bytes, limit }
        };
        tracing::warn!(
            service = pressure.service,
            bytes = pressure.bytes,
            limit = pressure.limit,
            "the spool is nearly full"
        );
        self.settings.on_pressure.call(pressure);
    }

    /// Brings everything in order for the next process.
    fn finish(&self, keeper: &mut Keeper) {
        let since = Instant::now();
        let mut state = self.lock();
        state.leave_current(true);
        while since.elapsed() < LAST_WRITES && !state.sealing.iter().all(|(_, live, _)| live.is_quiet()) {
            state = self.wait(state, Some(SOON));
        }
        let sealing = std::mem::take(&mut state.sealing);
        let unsynced = std::mem::take(&mut state.unsynced);
        let letters = std::mem::take(&mut state.letters);
        let balance = state.balance();
        let spare = state.spare.take();
        if let Some((number, _)) = &spare {
            let bytes = self.settings.segment as u64;
            state.trash.push(Trash { number: *number, bytes, damaged: false, failed: false });
        }
        let mut trash = std::mem::take(&mut state.trash);
        drop(state);
        trash.append(&mut keeper.stuck);
        drop(spare);
        for (_, live, seal) in sealing {
            if live.is_quiet() {
                live.seal(&seal, self.header.salt);
            }
        }
        for segment in unsynced {
            if let Err(error) = self.files.sync_file(&segment.file) {
                self.failed("the last sync", &error);
            }
        }
        self.bring_in_order(letters, Some(balance), trash, keeper);
    }
}

impl Keeper {
    /// Puts segments aside that refused events are in which are not written down.
    fn keep_back(&mut self, unwritten: &[Letter], trash: &mut Vec<Trash>) {
        let holds = |trash: &mut Trash| unwritten.iter().any(|letter| letter.segment == trash.number);
        let kept: Vec<Trash> = trash.extract_if(.., holds).collect();
        if !kept.is_empty() {
            self.stuck.extend(kept);
            self.stuck_until = Instant::now() + RETRY;
        }
    }
}

impl<T> State<T> {
    fn balance(&mut self) -> Balance {
        self.ledger_stale = false;
        let dropped = self.reports.iter().chain(&self.dropped).cloned().collect();
        Balance { cursor: self.cursor(), ahead: self.ahead(), dropped }
    }
}

impl Errands {
    fn is_any(&self) -> bool {
        let Self { graves, letters, trash, load, quiet, ledger, make } = self;
        ledger.is_some()
            || load.is_some()
            || make.is_some()
            || !(graves.is_empty() && letters.is_empty() && trash.is_empty() && quiet.is_empty())
    }
}
