//! Opening a spool: the lock, the name to number under, and what an earlier process has left.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;

use super::files::{Disk, Files, is_damage, is_full, make_folder, name};
use super::format::{FRAMES, Frames, Header, Item, MAX_SEGMENT, Seal, Start, seed};
use super::ledger::Ledger;
use super::state::{Entry, Source, State, Trash};
use super::{Settings, Spool};
use crate::error::Error;
use crate::feed::MAX_EVENT_BYTES;
use crate::id;
use crate::queue::frame::{Dropped, Numbering};
use crate::random;

/// Held while any of a folder's spools is in use.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "the lock ends with the open file")] File);

#[cfg(test)]
impl Lock {
    pub(super) fn of(file: File) -> Self {
        Self(file)
    }
}

/// A spool's folder, locked.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    lock: Arc<Lock>,
    pub(crate) producer_id: String,
    /// Larger than any that was used in this folder before.
    pub(crate) epoch: u64,
}

/// Bytes of the file `producer`, blanks at its end included: a name has up to 256, which escapes can double.
const PRODUCER_LEN: usize = 1024;

fn failed(path: &Path, what: &str, error: &io::Error) -> Error {
    Error::Spool { folder: path.to_owned(), message: format!("{what}: {error}") }
}

impl Folder {
    /// Makes it if it is missing. Refuses one that somebody else has open.
    pub(crate) fn open(path: &Path, producer_id: Option<&str>) -> Result<Self, Error> {
        make_folder(path).map_err(|error| failed(path, "the folder can't be made", &error))?;
        let lock = lock(path)?;
        let failed = |error| failed(path, "the file `producer` can't be read or written", &error);
        let (known, latest) = read_producer(path).map_err(failed)?;
        let producer_id = producer_id.map(str::to_owned).or(known).unwrap_or_else(|| Uuid::now_v7().to_string());
        // The clock may have been set back.
        let epoch = id::now_micros().max(latest.saturating_add(1));
        // Before any number of it is given.
        write_producer(path, &producer_id, epoch).map_err(failed)?;
        Ok(Self { path: path.to_owned(), lock: Arc::new(lock), producer_id, epoch })
    }

    /// One service's spool, with its threads started.
    pub(crate) fn spool<T: Send + 'static>(&self, settings: Settings) -> Result<Arc<Spool<T>>, Error> {
        let folder = self.path.join(settings.service);
        let opened = Disk::open(folder.clone()).and_then(|disk| {
            Spool::open(settings, &folder, Arc::new(disk), (&self.producer_id, self.epoch), boot(), &self.lock)
        });
        opened.map_err(|error| failed(&folder, "the spool can't be opened", &error))
    }
}

fn lock(path: &Path) -> Result<Lock, Error> {
    let name = path.join("lock");
    let open = || fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name);
    let mut file = open().map_err(|error| failed(path, "the file `lock` can't be opened", &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.take(32).read_to_string(&mut holder);
            return Err(Error::SpoolInUse { folder: path.to_owned(), process: holder.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(failed(path, "the folder can't be locked", &error)),
    }
    // For whoever is refused; the lock holds without it.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(Lock(file))
}

fn read_producer(path: &Path) -> io::Result<(Option<String>, u64)> {
    let text = match fs::read(path.join("producer")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, 0)),
        Err(error) => return Err(error),
    };
    // Of a file that something else has spoilt: a new name, so that no number is given twice.
    let value: Value = serde_json::from_slice(&text).unwrap_or_default();
    let id = value["id"].as_str().filter(|id| !id.is_empty() && id.len() <= 256).map(str::to_owned);
    Ok((id, value["epoch"].as_u64().unwrap_or_default()))
}

fn write_producer(path: &Path, id: &str, epoch: u64) -> io::Result<()> {
    let new = path.join("producer.new");
    let text = json!({ "id": id, "epoch": epoch }).to_string();
    write_over(&new, &text)?;
    fs::rename(&new, path.join("producer"))?;
    File::open(path)?.sync_all()?;
    // Room for the next one: what is spooled can be delivered on a full disk, and makes room.
    if let Err(error) = write_over(&new, "") {
        tracing::debug!(%error, "no room is kept for the next producer");
    }
    Ok(())
}

/// Over what is there, so that a full disk does not matter.
fn write_over(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(format!("{text:PRODUCER_LEN$}").as_bytes())?;
    file.set_len(PRODUCER_LEN as u64)?;
    file.sync_all()
}

/// A number of this run of the machine; 0 where there is none.
fn boot() -> u64 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Uuid::parse_str(text.trim()).map_or(0, |id| id.as_u64_pair().0)
}

/// What an earlier process has left.
struct Left {
    ledger: Ledger,
    entries: VecDeque<Entry>,
    next_number: u64,
    bytes: u64,
    errors: u64,
    /// Segments to remove once the ledger has which of their numbers never were.
    trash: Vec<Trash>,
}

impl<T: Send + 'static> Spool<T> {
    pub(super) fn open(
        settings: Settings,
        folder: &Path,
        files: Arc<dyn Files>,
        (producer, epoch): (&str, u64),
        boot: u64,
        lock: &Arc<Lock>,
    ) -> io::Result<Arc<Self>> {
        let left = recover(&settings, &*files, boot)?;
        let header = Header { number: left.next_number, salt: random::bits(), boot, epoch, producer: producer.into() };
        let mut state = State::new(left.entries, left.ledger.dropped.clone(), left.next_number, left.bytes);
        state.stats.disk_errors = left.errors;
        state.ledger_stale = !left.trash.is_empty();
        state.trash = left.trash;
        // Here and not by the keeper, so that a folder which can't be written to is known at once.
        match files.create(&header, settings.segment, settings.durable) {
            Ok(first) => state.first(first, settings.segment as u64),
            // What is there can be delivered all the same, which may be what makes room.
            Err(error) if is_full(&error) => {
                tracing::error!(service = settings.service, folder = %folder.display(), %error,
                    "no room for a segment; nothing is taken until there is");
                state.stats.disk_errors += 1;
                state.no_next_segment(&error);
            }
            Err(error) => return Err(error),
        }
        let spool = Arc::new(Self {
            who: Arc::new(Numbering::new(settings.producer_field, producer, epoch)),
            seed: seed(header.salt),
            header,
            settings,
            folder: folder.to_owned(),
            files,
            state: Mutex::new(state),
            work: Condvar::new(),
            sync_work: Condvar::new(),
            made: Condvar::new(),
            room: Notify::new(),
            ready: Notify::new(),
            nudge: Notify::new(),
            progress: Notify::new(),
            orphan: Notify::new(),
            over: Notify::new(),
        });
        spool.start(left.ledger, Arc::clone(lock))?;
        Ok(spool)
    }
}

/// Looks at the first page of each segment, and at all of those that were not sealed: at most
/// three of a process.
fn recover(settings: &Settings, files: &dyn Files, boot: u64) -> io::Result<Left> {
    let ledger = Ledger::decode(&files.read_ledger()?, settings.producer_field);
    // Above all that the ledger knows of, whose files may be gone: how far one segment is
    // acknowledged must never be taken for another's.
    let next_number = ledger.last_segment().saturating_add(1);
    let mut left = Left { next_number, ledger, entries: VecDeque::new(), bytes: 0, errors: 0, trash: Vec::new() };
    let mut before: Option<Ends> = None;
    for (number, bytes) in files.segments()? {
        left.next_number = left.next_number.max(number.saturating_add(1));
        if number < left.ledger.cursor.0 {
            files.remove(number)?;
            continue;
        }
        let previous = before.take();
        match look(settings, files, boot, number, bytes, &left) {
            Ok(Looked { entry, ends }) => {
                left.note_between(previous.as_ref(), ends.as_ref());
                let unsealed = ends.as_ref().is_some_and(|ends| !ends.sealed);
                before = ends;
                match entry {
                    Some(entry) => left.entries.push_back(entry),
                    None if unsealed => left.trash.push(Trash { number, bytes, damaged: false, failed: false }),
                    None => {
                        files.remove(number)?;
                        continue;
                    }
                }
                left.bytes += bytes;
            }
            // The application is there to be told, and nothing is lost yet.
            Err(error) if !is_damage(&error) => {
                let name = name(number);
                let message = format!("{name} can't be read: {error}; without it, the rest can be delivered");
                return Err(io::Error::new(error.kind(), message));
            }
            Err(error) => {
                tracing::error!(service = settings.service, segment = number, %error,
                    "a spooled segment can't be read; it is kept in the spool's folder `damaged`");
                // How many events were in it nobody knows.
                left.errors += 1;
                files.set_aside(number)?;
            }
        }
    }
    Ok(left)
}

/// What was found in one segment.
#[derive(Default)]
struct Looked {
    /// Absent where nothing in it is to be delivered.
    entry: Option<Entry>,
    /// Absent where nothing was ever written to it.
    ends: Option<Ends>,
}

/// Which numbers a segment has been given.
struct Ends {
    segment: u64,
    who: Arc<Numbering>,
    /// Written in this run of the machine, which has lost no page of it.
    same_boot: bool,
    sealed: bool,
    /// Absent where nobody has said it.
    first: Option<u64>,
    /// One more than that of its last whole frame; absent where there was an event behind.
    next: Option<u64>,
}

impl Left {
    /// A thread had the last place of a segment and died before it had written to it, and others
    /// went on in the next one: its number is in neither.
    fn note_between(&mut self, before: Option<&Ends>, after: Option<&Ends>) {
        let (Some(before), Some(after)) = (before, after) else { return };
        let adjoin = before.segment + 1 == after.segment && before.who == after.who;
        let (Some(first), Some(next)) = (before.next, after.first) else { return };
        if !(adjoin && before.same_boot && after.same_boot && first < next) {
            return;
        }
        let gap = Dropped { who: Arc::clone(&before.who), first, last: next - 1 };
        if !self.ledger.dropped.contains(&gap) {
            self.ledger.dropped.push(gap);
        }
    }
}

/// One segment.
fn look(settings: &Settings, files: &dyn Files, boot: u64, number: u64, bytes: u64, left: &Left) -> io::Result<Looked> {
    let page = files.read(number, FRAMES)?;
    let Some(header) = Header::decode(&page) else {
        // The process died before there could be an event in it.
        if page.len() < FRAMES || page.iter().all(|byte| *byte == 0) {
            return Ok(Looked::default());
        }
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no header of this version"));
    };
    let ledger = &left.ledger;
    let from = ledger.settled_in(number);
    let start = Start::decode(&page, header.salt);
    let sealed = Seal::decode(&page, header.salt);
    let mut next = sealed.map(|seal| seal.next);
    let (unread, seal) = match sealed {
        Some(seal) if from <= seal.first => (u64::from(seal.events), seal),
        _ => {
            let bytes = files.read(number, MAX_SEGMENT)?;
            let (unread, seal) = walk(&bytes, header.salt, start, from, settings.max_body);
            // A length is written last: there was an event.
            let cut = bytes.get(seal.end as usize..seal.end as usize + 4).is_some_and(|length| length != [0; 4]);
            if cut && seal.events == 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no frame is whole"));
            }
            next = next.or((!cut).then_some(seal.next));
            (unread, seal)
        }
    };
    // Consecutive segments share it.
    let known = left.entries.back().map(|entry| Arc::clone(&entry.who));
    let who = known.filter(|who| who.id() == header.producer && who.epoch() == header.epoch);
    let who = who.unwrap_or_else(|| Arc::new(Numbering::new(settings.producer_field, &header.producer, header.epoch)));
    let same_boot = header.boot != 0 && header.boot == boot;
    let first = sealed.map(|seal| seal.first).or(start.map(|start| start.0));
    let known = first.is_some() || seal.events > 0;
    let ends = known.then(|| Ends {
        segment: number,
        who: Arc::clone(&who),
        same_boot,
        sealed: sealed.is_some(),
        first,
        next,
    });
    let settled = seal.first.max(from);
    let given_up =
        |range: &Dropped| range.who == who && range.first <= settled && range.last >= seal.next.saturating_sub(1);
    if unread == 0 || ledger.dropped.iter().any(given_up) {
        return Ok(Looked { entry: None, ends });
    }
    let entry = Entry {
        number,
        who,
        salt: header.salt,
        source: Source::File,
        bytes,
        at: FRAMES,
        first: seal.first,
        next: settled,
        settled,
        seal: Some(seal),
        unread,
        in_flight: 0,
        unfinished: same_boot && sealed.is_none(),
        damaged: false,
        read: false,
    };
    Ok(Looked { entry: Some(entry), ends })
}

/// What is in a segment's bytes: how many events from a number on, and its seal.
fn walk(bytes: &[u8], salt: u64, start: Option<Start>, from: u64, max_body: usize) -> (u64, Seal) {
    let first = start.map(|start| start.0);
    let mut seal = Seal { end: FRAMES as u32, ..Seal::default() };
    (seal.first, seal.next) = (first.unwrap_or_default(), first.unwrap_or_default());
    let mut wanted = 0;
    let mut frames = Frames::new(bytes, salt, first.map(|first| (FRAMES, first)), max_body);
    while let Some(item) = frames.next() {
        if let Item::Event { sequence, .. } = item {
            if seal.events == 0 {
                seal.first = first.unwrap_or(sequence);
            }
            seal.events += 1;
            seal.next = sequence.saturating_add(1);
            wanted += u64::from(sequence >= from);
        }
        seal.end = frames.at as u32;
    }
    (wanted, seal)
}

/// Bytes as each of the files: how much was found in them.
pub(crate) fn read_any(bytes: &[u8]) -> usize {
    let ledger = Ledger::decode(bytes, 20);
    let header = Header::decode(bytes);
    let salt = header.as_ref().map_or(0, |header| header.salt);
    let seal = Seal::decode(bytes, salt);
    // As a segment is read from its front, and as it is read on.
    let (wanted, walked) = walk(bytes, salt, Start::decode(bytes, salt), 0, MAX_EVENT_BYTES);
    let rest = Frames::new(bytes, salt, Some((walked.end as usize, walked.next)), MAX_EVENT_BYTES).count();
    ledger.dropped.len() + usize::from(seal.is_some()) + wanted as usize + rest
}
