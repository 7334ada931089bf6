//! A spool over real files, with faults put between, and what a test does with it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use activity_proto::usage::v1::UsageEvent;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use tempfile::TempDir;
use tokio::sync::OwnedMutexGuard;

use super::super::files::{Disk, Files};
use super::super::format::{FRAMES, Frames, Header, Item};
use super::super::map::{Live, Reserved};
use super::super::open::Lock;
use super::super::{Settings, Spool};
use super::LONG;
use crate::ErrorReason;
use crate::config::{OnPressure, SpoolPressure};
use crate::error::Rejection;
use crate::queue::frame::{first_event, frame_start};
use crate::queue::{Settled, Taken};

pub(super) const SEGMENT: usize = 64 * 1024;
pub(super) const SEGMENTS: usize = 8;
pub(super) const LIMIT: u64 = (SEGMENT * SEGMENTS) as u64;

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    Create,
    Sync,
    Ledger,
    Read,
    Remove,
    Reject,
}

/// How often each fails from now on, and how often it was asked for.
#[derive(Debug, Default)]
struct Plan {
    failing: [AtomicU32; 6],
    asked: [AtomicU64; 6],
    broken: [AtomicU64; 6],
    /// Files that syncs were for.
    synced: Mutex<Vec<u64>>,
    /// Numbers of the events that were in a file when a sync of it began.
    on_disk: Mutex<BTreeSet<u64>>,
    /// Held, syncs hang.
    syncing: Arc<tokio::sync::Mutex<()>>,
    /// While there is one, each of what is refused is written down once the test says so.
    rejecting: Mutex<Option<Receiver<()>>>,
}

impl Plan {
    fn ask(&self, fault: Fault) -> io::Result<()> {
        self.asked[fault as usize].fetch_add(1, SeqCst);
        if fault == Fault::Sync {
            drop(self.syncing.blocking_lock());
        }
        if fault == Fault::Reject
            && let Some(gate) = &*self.rejecting.lock().unwrap()
        {
            // An error is a gate that is open for good.
            let _ = gate.recv();
        }
        let fails = self.failing[fault as usize].fetch_update(SeqCst, SeqCst, |n| match n {
            0 => None,
            u32::MAX => Some(n),
            n => Some(n - 1),
        });
        self.broken[fault as usize].fetch_add(u64::from(fails.is_ok()), SeqCst);
        match (fails, fault) {
            (Err(_), _) => Ok(()),
            (Ok(_), Fault::Create) => Err(io::Error::from_raw_os_error(28)),
            (Ok(_), _) => Err(io::Error::from_raw_os_error(5)),
        }
    }
}

#[derive(Debug)]
struct Faulty {
    disk: Disk,
    plan: Arc<Plan>,
}

/// What a sync that begins now brings to the disk at least.
fn whole(file: &File) -> Vec<u64> {
    let mut bytes = vec![0; SEGMENT];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let salt = Header::decode(&bytes).unwrap().salt;
    let frames = Frames::new(&bytes, salt, None, SEGMENT);
    // Collected at once: what is found borrows the bytes.
    let mut found = Vec::new();
    for item in frames {
        if let Item::Event { sequence, .. } = item {
            found.push(sequence);
        }
    }
    found
}

fn inode(file: &File) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.metadata().unwrap().ino()
}

impl Files for Faulty {
    fn segments(&self) -> io::Result<Vec<(u64, u64)>> {
        self.disk.segments()
    }
    fn create(&self, header: &Header, len: usize, durable: bool) -> io::Result<Live> {
        self.plan.ask(Fault::Create)?;
        self.disk.create(header, len, durable)
    }
    fn read(&self, number: u64, most: usize) -> io::Result<Vec<u8>> {
        self.plan.ask(Fault::Read)?;
        self.disk.read(number, most)
    }
    fn remove(&self, number: u64) -> io::Result<()> {
        self.plan.ask(Fault::Remove)?;
        self.disk.remove(number)
    }
    fn set_aside(&self, number: u64) -> io::Result<()> {
        self.plan.ask(Fault::Remove)?;
        self.disk.set_aside(number)
    }
    fn sync_live(&self, live: &Live, to: usize) -> io::Result<()> {
        self.plan.synced.lock().unwrap().push(inode(live.file()));
        self.plan.ask(Fault::Sync)?;
        let whole = whole(live.file());
        self.disk.sync_live(live, to)?;
        self.plan.on_disk.lock().unwrap().extend(whole);
        Ok(())
    }
    fn sync_file(&self, file: &File) -> io::Result<()> {
        self.plan.synced.lock().unwrap().push(inode(file));
        self.plan.ask(Fault::Sync)?;
        let whole = whole(file);
        self.disk.sync_file(file)?;
        self.plan.on_disk.lock().unwrap().extend(whole);
        Ok(())
    }
    fn sync_folder(&self) -> io::Result<()> {
        self.disk.sync_folder()
    }
    fn read_ledger(&self) -> io::Result<Vec<u8>> {
        self.disk.read_ledger()
    }
    fn write_ledger(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.plan.ask(Fault::Ledger) {
            // Short: half of it is there.
            self.disk.write_ledger(at, &bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        self.disk.write_ledger(at, bytes)
    }
    fn append_rejected(&self, lines: &[u8]) -> io::Result<()> {
        if let Err(error) = self.plan.ask(Fault::Reject) {
            // Short.
            self.disk.append_rejected(&lines[..lines.len() / 2])?;
            return Err(error);
        }
        self.disk.append_rejected(lines)
    }
}

/// A folder, and the plan of what fails in it.
pub(super) struct Harness {
    folder: Arc<TempDir>,
    settings: Settings,
    plan: Arc<Plan>,
    boot: u64,
    lives: AtomicU64,
}

impl Harness {
    pub(super) fn new() -> Self {
        Self::with_limit(LIMIT)
    }

    pub(super) fn with_limit(limit: u64) -> Self {
        Self {
            folder: Arc::new(tempfile::tempdir().unwrap()),
            settings: Settings {
                service: "usage",
                limit,
                segment: SEGMENT,
                durable: false,
                sync: Duration::from_millis(50),
                batch_events: 100,
                batch_bytes: 128 * 1024,
                linger: Duration::ZERO,
                max_body: 64 * 1024,
                producer_field: 20,
                on_pressure: OnPressure::default(),
            },
            plan: Arc::default(),
            boot: 77,
            lives: AtomicU64::new(0),
        }
    }

    pub(super) fn durable() -> Self {
        let mut harness = Self::with_limit(1 << 30);
        harness.settings.durable = true;
        harness
    }

    pub(super) fn on_pressure(mut self, callback: impl Fn(SpoolPressure) + Send + Sync + 'static) -> Self {
        self.settings.on_pressure = OnPressure::new(callback);
        self
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("usage")
    }

    /// In epoch 1, 2, and so on.
    pub(super) fn open(&self) -> Opened {
        self.try_open().unwrap()
    }

    pub(super) fn try_open(&self) -> io::Result<Opened> {
        let epoch = self.lives.fetch_add(1, SeqCst) + 1;
        let disk = Disk::open(self.path()).unwrap();
        let files = Arc::new(Faulty { disk, plan: Arc::clone(&self.plan) });
        let lock = Arc::new(Lock::of(tempfile::tempfile().unwrap()));
        let spool = Spool::open(self.settings.clone(), &self.path(), files, ("p", epoch), self.boot, &lock)?;
        Ok(Opened { spool, folder: Arc::clone(&self.folder) })
    }

    /// The files as they are at this moment, in a folder of their own: what a process that is
    /// killed now leaves to the next.
    pub(super) fn crash(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&self.path(), &folder.path().join("usage"));
        Self {
            folder: Arc::new(folder),
            settings: self.settings.clone(),
            plan: Arc::default(),
            boot: self.boot,
            lives: AtomicU64::new(self.lives.load(SeqCst)),
        }
    }

    /// The machine is another run of itself.
    pub(super) fn reboot(mut self) -> Self {
        self.boot += 1;
        self
    }

    pub(super) fn fail(&self, fault: Fault, times: u32) {
        self.plan.failing[fault as usize].store(times, SeqCst);
    }

    pub(super) fn count(&self, fault: Fault) -> u64 {
        self.plan.asked[fault as usize].load(SeqCst)
    }

    pub(super) fn was_broken(&self, fault: Fault) -> bool {
        self.plan.broken[fault as usize].load(SeqCst) > 0
    }

    pub(super) fn segments(&self) -> Vec<u64> {
        segments(&self.path())
    }

    /// Turns a bit; whether it is one of a frame, and not of the header.
    pub(super) fn flip(&self, number: u64, at: proptest::sample::Index, bit: u8) -> bool {
        let mut hit = 0;
        self.edit(number, |bytes| {
            hit = at.index(bytes.len().max(1));
            if let Some(byte) = bytes.get_mut(hit) {
                *byte ^= 1 << bit;
            }
        });
        hit >= FRAMES
    }

    /// Syncs hang as long as this is held; they are counted before.
    pub(super) fn hold_syncs(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.plan.syncing).try_lock_owned().unwrap()
    }

    /// What is refused is written down once for each message, and freely once the sender is gone.
    pub(super) fn hold_rejects(&self) -> Sender<()> {
        let (pass, gate) = std::sync::mpsc::channel();
        *self.plan.rejecting.lock().unwrap() = Some(gate);
        pass
    }

    /// The events in `rejected.jsonl`.
    pub(super) fn rejected(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.path().join("rejected.jsonl")).unwrap_or_default();
        let events = text.lines().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let event = BASE64_STANDARD.decode(line["event"].as_str()?).unwrap();
            Some(UsageEvent::decode(event.as_slice()).unwrap().id.parse().unwrap())
        });
        events.collect()
    }

    /// Whether a sync began after an event was written, and succeeded.
    pub(super) fn is_on_disk(&self, sequence: u64) -> bool {
        self.plan.on_disk.lock().unwrap().contains(&sequence)
    }

    pub(super) fn synced(&self) -> Vec<u64> {
        self.plan.synced.lock().unwrap().clone()
    }

    pub(super) fn edit(&self, number: u64, edit: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path().join(format!("{number:020}.segment"));
        let mut bytes = std::fs::read(&path).unwrap();
        edit(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }
}

fn segments(path: &Path) -> Vec<u64> {
    let numbers = std::fs::read_dir(path)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".segment")?.parse().ok());
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    // As at one moment: a segment that is removed was acknowledged or dropped in the ledger,
    // so the ledger is read after the segments.
    let mut entries: Vec<_> = std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else if let Ok(bytes) = std::fs::read(&path) {
            std::fs::write(to.join(name), bytes).unwrap();
        }
    }
}

/// An open spool; dropped, it ends as with its process.
pub(super) struct Opened {
    spool: Arc<Spool<u64>>,
    folder: Arc<TempDir>,
}

impl Deref for Opened {
    type Target = Spool<u64>;
    fn deref(&self) -> &Spool<u64> {
        &self.spool
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.spool.end();
    }
}

/// What is there of a spool's files.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) segments: Vec<u64>,
    pub(super) bytes: u64,
    pub(super) damaged: usize,
}

/// What was taken until there was nothing more.
#[derive(Debug, Default)]
pub(super) struct TakenAll {
    pub(super) batches: Vec<Taken<u64>>,
    /// Epoch, first, last.
    pub(super) dropped: Vec<(u64, u64, u64)>,
}

impl TakenAll {
    pub(super) fn bodies(&self) -> Vec<u64> {
        self.batches.iter().flat_map(bodies).collect()
    }

    /// Epoch and number of each event.
    pub(super) fn numbers(&self) -> Vec<(u64, u64)> {
        let numbers = |batch: &Taken<u64>| -> Vec<(u64, u64)> {
            batch.events.iter().map(|event| (batch.who.epoch(), event.sequence)).collect()
        };
        self.batches.iter().flat_map(numbers).collect()
    }
}

impl Opened {
    pub(super) fn arc(&self) -> Arc<Spool<u64>> {
        Arc::clone(&self.spool)
    }

    /// Everything that waits now, and every report.
    pub(super) async fn take_all(&self) -> TakenAll {
        let mut all = TakenAll::default();
        let mut since = std::time::Instant::now();
        while {
            let state = self.lock();
            state.unread() > 0 || !state.dropped.is_empty()
        } {
            // What can't be read stops waiting without ever coming.
            let Ok(taken) = tokio::time::timeout(Duration::from_millis(50), self.next()).await else {
                assert!(since.elapsed() < LONG, "nothing comes: {:?}", self.lock());
                continue;
            };
            since = std::time::Instant::now();
            let taken = taken.unwrap();
            all.dropped.extend(taken.dropped.iter().map(|range| (range.who.epoch(), range.first, range.last)));
            all.batches.push(taken);
        }
        all
    }

    pub(super) fn settle_batch(&self, batch: &Taken<u64>) {
        self.settle(Settled {
            acknowledged: batch.events.len(),
            reports: batch.dropped.len(),
            segment: batch.segment,
            last: batch.events.back().map(|event| event.sequence),
            ..Settled::default()
        });
    }

    /// Settles a batch in which one event is refused for good, as the sender does.
    pub(super) fn refuse(&self, batch: &Taken<u64>, index: usize) {
        let frames = &batch.frames[batch.start..];
        let frames = &frames[frame_start(frames, index)..];
        let rejection = Rejection { reason: ErrorReason::InvalidId, message: "bad".into(), field: "id".into() };
        self.keep_rejected(batch.segment, &frames[first_event(frames).unwrap()], &rejection);
        self.report_dropped(&batch.who, batch.events[index].sequence);
        self.settle(Settled {
            acknowledged: batch.events.len() - 1,
            rejected: 1,
            reports: batch.dropped.len(),
            segment: batch.segment,
            last: batch.events.back().map(|event| event.sequence),
            ..Settled::default()
        });
    }

    /// Settles everything, and reads on until nothing is left.
    pub(super) async fn settle_all(&self, taken: TakenAll) {
        for batch in &taken.batches {
            self.settle_batch(batch);
        }
        assert!(self.flush(super::soon()).await.is_empty());
    }

    pub(super) fn files(&self) -> Seen {
        let path = self.folder.path().join("usage");
        let segments = segments(&path);
        let bytes = (segments.len() * SEGMENT) as u64;
        Seen { segments, bytes, damaged: std::fs::read_dir(path.join("damaged")).unwrap().count() }
    }

    /// Waits for files to be as the keeper will have them.
    pub(super) async fn until_files(&self, condition: impl Fn(&Seen) -> bool) -> Seen {
        let since = std::time::Instant::now();
        loop {
            let seen = self.files();
            if condition(&seen) {
                return seen;
            }
            assert!(since.elapsed() < LONG, "never: {seen:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the keeper has nothing to do.
    pub(super) async fn until_idle(&self) {
        let since = std::time::Instant::now();
        while {
            let state = self.lock();
            !state.idle || state.ledger_stale || state.spare.is_none()
        } {
            assert!(since.elapsed() < LONG);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until no segment is being read back.
    pub(super) async fn until_loaded(&self) {
        let since = std::time::Instant::now();
        while self.lock().load.is_some() {
            assert!(since.elapsed() < LONG);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(super) async fn shutdown(&self) {
        self.ended().await;
        assert!(self.lock().ended);
    }

    /// Leaves the current segment for the next, as if it were full.
    pub(super) async fn leave(&self) {
        self.until_idle().await;
        assert!(self.rotate(&mut self.lock()));
    }

    /// Gives an event a number and a place, and goes no further.
    pub(super) fn place_without_writing(&self, len: usize) -> (Reserved, u64) {
        self.try_place(len).unwrap()
    }

    /// The same, where there is room.
    pub(super) fn try_place(&self, len: usize) -> Option<(Reserved, u64)> {
        let mut state = self.lock();
        let place = state.current.as_ref()?.reserve(len)?;
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        state.entries.back_mut().unwrap().unread += 1;
        Some((place, sequence))
    }
}

/// A usage event that carries a number, of a length that depends on it.
pub(super) fn body(n: u64) -> Vec<u8> {
    let pad = "x".repeat((n % 97) as usize);
    UsageEvent { id: n.to_string(), user_id: pad, ..UsageEvent::default() }.encode_to_vec()
}

/// The numbers that a batch's events carry, checked against those they were given.
pub(super) fn bodies(batch: &Taken<u64>) -> Vec<u64> {
    let frames = &batch.frames[batch.start..];
    let events: VecDeque<u64> = (0..batch.events.len())
        .map(|index| {
            let frames = &frames[frame_start(frames, index)..];
            let event = UsageEvent::decode(&frames[first_event(frames).unwrap()]).unwrap();
            let n = event.id.parse().unwrap();
            let producer = event.producer.unwrap();
            assert_eq!((producer.epoch, producer.sequence), (batch.who.epoch(), Some(batch.events[index].sequence)));
            assert_eq!(event.user_id.len() as u64, n % 97);
            n
        })
        .collect();
    events.into()
}
