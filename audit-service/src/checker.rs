//! Whether the logs are as they were written: looked at every two seconds, in samples every hour, and all of it once a
//! day.
//!
//! ```text
//! every 2 s   where each log ends: by its head, by its entries, by what was signed       one statement for all logs
//! every hour  the newest tiles and some of the others, up to the head's root            a part of a second a log
//! once a day  every entry, its line, its hash, its columns, every tile, every root      a fifth of one core at most
//! ```
//!
//! Entries are looked at here and their hashes in the archive's place; of the archive itself a segment a log and hour.
//! What is found is named in the service's log, counted, and turns the health of whoever takes events in; a damaged log
//! takes no more, others do. A log is well again when a check of all of it finds nothing, which a start begins anew.
//! A damaged archive is named and counted, and looked at again until it is as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use audit_proof::{NotBelieved, PinnedKey, signed_by};
use prometheus::{IntCounterVec, IntGauge, Opts};
use service_core::auth::Access;
use service_core::clock;
use service_core::error::{Error, Result};
use service_core::telemetry::Metrics;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::checkpoint::{Checkpoint, Note};
use crate::merkle::{Frontier, Hash, Tile, TileId, WIDTH};
use crate::prover::Prover;
use crate::signer::Signer;
use crate::store::{CheckKind, Found, LogEnd, Segment, Store, TreeHead, tiles_of};

/// Between two looks at the ends of logs, at most.
const WATCH: Duration = Duration::from_secs(2);
const HOUR: Duration = Duration::from_secs(3_600);
/// From the start to the first check of everything, and between two of them.
const FIRST_WHOLE: Duration = Duration::from_secs(600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Tiles of a sample: of one log beside its newest, and of all.
const SAMPLED: u64 = 8;
const SAMPLED_IN_ALL: u64 = 1_024;
/// Findings of one log that are kept; of more, the number.
const KEPT: usize = 100;
/// Notes of checkpoints that are read at once.
const NOTES: u64 = 100;
/// How much longer than a step took nothing is done.
const REST: u32 = 4;

/// What was signed, as is known outside the database, and by which keys.
#[derive(Debug, Clone, Default)]
pub struct Trusted {
    /// Keys of the log. Of checkpoints in the database those count that they have signed, as far as each is good.
    pub keys: Vec<PinnedKey>,
    /// Checkpoints that were kept elsewhere, with their instance.
    pub kept: Vec<(String, Checkpoint)>,
}

impl Trusted {
    /// Takes a note that was kept elsewhere; whether one of the keys has signed it.
    ///
    /// # Errors
    /// What is no note of a checkpoint, has a signature that does not hold, or is signed by a key that is not good for it.
    pub fn keep(&mut self, note: &str) -> anyhow::Result<bool> {
        let note: Note = note.parse()?;
        let checkpoint = Checkpoint::parse(note.text())?;
        match signed_by(&self.keys, &note, &checkpoint) {
            Ok(signers) => self.kept.push((signers.instance, checkpoint)),
            Err(NotBelieved::Nobody) => return Ok(false),
            Err(why) => return Err(why.into()),
        }
        Ok(true)
    }

    /// What a note says, if it is of this instance's log and one of the keys has signed it.
    fn read(&self, instance_id: &str, note: &str) -> Option<Checkpoint> {
        let note: Note = note.parse().ok()?;
        let checkpoint = Checkpoint::parse(note.text()).ok()?;
        let signers = signed_by(&self.keys, &note, &checkpoint).ok()?;
        (signers.instance == instance_id).then_some(checkpoint)
    }
}

/// What a check of one log came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Entries that were looked at.
    pub entries: u64,
    /// Checkpoints whose roots were compared.
    pub checkpoints: u64,
    /// What is not as it was written, the first of it.
    pub found: Vec<Found>,
    /// How much of that there is.
    pub count: u64,
}

impl Checked {
    fn keep(&mut self, found: Vec<Found>) {
        self.count += found.len() as u64;
        let room = KEPT - self.found.len().min(KEPT);
        self.found.extend(found.into_iter().take(room));
    }

    /// In one sentence; `None` where nothing was found.
    pub fn told(&self) -> Option<String> {
        let first = self.found.first()?;
        match self.count - 1 {
            0 => Some(first.what.clone()),
            more => Some(format!("{}, and {more} findings more", first.what)),
        }
    }
}

/// Checks all of every log once, in the order of their names; hands what came of each to `report`. What is wrong with one
/// keeps no other from being checked.
///
/// # Errors
///
/// Which logs there are cannot be read.
pub async fn check_all(
    store: &Store,
    trusted: &Trusted,
    mut report: impl FnMut(&str, Result<&Checked, &Error>),
) -> Result<bool> {
    let mut well = true;
    let mut instances: BTreeSet<String> = store.all_heads(&Access::unrestricted()).await?.into_keys().collect();
    // A log that is not there any more was signed.
    instances.extend(trusted.kept.iter().map(|(instance, _)| instance.clone()));
    for instance in instances {
        let checked = check_log(store, &instance, trusted, true, 0).await;
        well &= checked.as_ref().is_ok_and(|checked| checked.count == 0);
        report(&instance, checked.as_ref());
    }
    Ok(well)
}

/// Checks all of a log, and so many times longer than that takes nothing.
async fn check_log(store: &Store, instance_id: &str, trusted: &Trusted, segments: bool, rest: u32) -> Result<Checked> {
    let everything = Access::unrestricted();
    let mut checked = Checked::default();
    let head = match store.tree_head(&everything, instance_id).await {
        Ok(head) => head.unwrap_or(TreeHead { size: 0, root: crate::merkle::empty_root() }),
        Err(error) => return damage(error, &mut checked).map(|()| checked),
    };
    let mut roots = Roots::new(instance_id, trusted);
    let (mut frontier, mut above) = (Frontier::default(), Vec::new());
    let mut proven = 0;
    for index in 0..tiles_of(head.size) {
        let begun = Instant::now();
        let mut found = Vec::new();
        for leaf in store.check_tile(instance_id, index, head.size, &mut found).await? {
            let full = frontier.push(leaf);
            if let Some(root) = full {
                check_above(store, instance_id, root, &mut above, &mut found).await?;
            }
            let size = frontier.size();
            while let Some(signed) = roots.at(store, size).await? {
                checked.checkpoints += 1;
                if signed != frontier.root() {
                    let what = format!("entries {proven} to {} are not those that were signed", size - 1);
                    found.push(Found::new(proven..size, what));
                }
                proven = size;
            }
        }
        found.sort_by_key(|found| found.sequences.start);
        checked.keep(found);
        checked.entries = frontier.size();
        if segments {
            checked.keep(check_segments(store, instance_id, index, head.size).await?);
        }
        if rest > 0 {
            sleep(begun.elapsed() * rest).await;
        }
    }
    if frontier.root() != head.root {
        let what = format!("its head is not over its {} entries", head.size);
        checked.keep(vec![Found::new(0..head.size, what)]);
    }
    let ends = store.log_end(instance_id).await?;
    if let Some(what) = ends.as_ref().and_then(wrong_end) {
        // Those that are missing were named.
        let behind = ends.is_some_and(|end| end.behind_last > end.entries);
        checked.keep(if behind { vec![Found::new(head.size..head.size + 1, what)] } else { Vec::new() });
    }
    if let Some(signed) = roots.beyond(head.size) {
        let what = format!("entries {} to {} are missing: it was signed with {signed}", head.size, signed - 1);
        checked.keep(vec![Found::new(head.size..signed, what)]);
    }
    Ok(checked)
}

/// What is damaged is found, not failed at.
fn damage(error: Error, checked: &mut Checked) -> Result<()> {
    match crate::store::lost(error) {
        Error::DataLoss(what) => {
            checked.keep(vec![Found::new(0..0, what)]);
            Ok(())
        }
        error => Err(error),
    }
}

/// Compares the tiles above one of leaves that is full, as far as they get full by it.
async fn check_above(
    store: &Store,
    instance_id: &str,
    root: Hash,
    above: &mut Vec<(u64, Vec<Hash>)>,
    found: &mut Vec<Found>,
) -> Result<()> {
    let mut root = root;
    for level in 1_u8.. {
        let at = usize::from(level) - 1;
        if above.len() <= at {
            above.push((0, Vec::new()));
        }
        let (index, hashes) = &mut above[at];
        hashes.push(root);
        if (hashes.len() as u64) < WIDTH {
            return Ok(());
        }
        let id = TileId { level, index: *index };
        let tile = Tile::new(std::mem::take(hashes)).map_err(Error::internal)?;
        *index += 1;
        root = tile.root();
        if store.stored_tile(instance_id, id).await? != Some((tile, root)) {
            let leaves = WIDTH.pow(u32::from(level) + 1);
            let sequences = id.index * leaves..(id.index + 1) * leaves;
            let (first, last) = (sequences.start, sequences.end - 1);
            found.push(Found::new(
                sequences,
                format!("the tile of level {level} over entries {first} to {last} is missing or was changed"),
            ));
        }
    }
    Ok(())
}

/// The segments of the archive that begin in a tile. One that cannot be read keeps no other from being checked.
async fn check_segments(store: &Store, instance_id: &str, index: u64, end: u64) -> Result<Vec<Found>> {
    let places = TileId { level: 0, index }.places();
    // Each has an entry at least.
    let segments = store.segments(&Access::unrestricted(), instance_id, places.start, WIDTH as usize + 1).await?;
    let mut found = Vec::new();
    for Segment { sequences, place, .. } in segments {
        if !places.contains(&sequences.start) || sequences.start >= end {
            continue;
        }
        match store.check_segment(instance_id, sequences.start).await {
            Ok(of_segment) => found.extend(of_segment),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let (first, last) = (sequences.start, sequences.end - 1);
                let what = format!(
                    "the archive's segment of entries {first} to {last}, {place}, cannot be read: {error}: {cause}"
                );
                found.push(Found::new(sequences, what));
            }
        }
    }
    Ok(found)
}

/// Roots that were signed of one log, in the order of their sizes: those that were kept elsewhere and those of the
/// database.
struct Roots<'a> {
    instance_id: &'a str,
    trusted: &'a Trusted,
    /// By size, the first last.
    kept: Vec<(u64, Hash)>,
    notes: Vec<(u64, Hash)>,
    read_to: Option<u64>,
    largest: u64,
}

impl<'a> Roots<'a> {
    fn new(instance_id: &'a str, trusted: &'a Trusted) -> Self {
        let of_log = trusted.kept.iter().filter(|(instance, signed)| instance == instance_id && signed.size > 0);
        let mut kept: Vec<(u64, Hash)> = of_log.map(|(_, signed)| (signed.size, signed.root)).collect();
        kept.sort_unstable_by_key(|(size, _)| std::cmp::Reverse(*size));
        let largest = kept.first().map_or(0, |(size, _)| *size);
        Self { instance_id, trusted, kept, notes: Vec::new(), read_to: Some(0), largest }
    }

    /// The next root over so many entries.
    async fn at(&mut self, store: &Store, size: u64) -> Result<Option<Hash>> {
        while self.notes.is_empty()
            && let Some(after) = self.read_to
            && after < size
        {
            let notes = store.checkpoints_above(self.instance_id, after, NOTES).await?;
            let signed = notes.iter().filter_map(|note| self.trusted.read(self.instance_id, note));
            let mut signed: Vec<(u64, Hash)> = signed.map(|signed| (signed.size, signed.root)).collect();
            // Which sizes they are of is the database's word where nobody has signed them.
            let sizes = notes.iter().filter_map(|note| Checkpoint::parse(note.parse::<Note>().ok()?.text()).ok());
            self.read_to = match sizes.map(|checkpoint| checkpoint.size).max() {
                Some(last) if last > after && notes.len() as u64 == NOTES => Some(last),
                _ => None,
            };
            signed.retain(|(size, _)| *size > after);
            signed.sort_unstable_by_key(|(size, _)| std::cmp::Reverse(*size));
            self.largest = self.largest.max(signed.first().map_or(0, |(size, _)| *size));
            self.notes = signed;
        }
        for list in [&mut self.kept, &mut self.notes] {
            while list.last().is_some_and(|(next, _)| *next < size) {
                list.pop();
            }
            if let Some((_, root)) = list.pop_if(|(next, _)| *next == size) {
                return Ok(Some(root));
            }
        }
        Ok(None)
    }

    /// How many entries were signed, if that is more than there are.
    fn beyond(&self, size: u64) -> Option<u64> {
        Some(self.largest).filter(|largest| *largest > size)
    }
}

/// Checks, beside whatever else goes on.
#[derive(Debug)]
pub(crate) struct Checker {
    store: Store,
    signer: Option<Signer>,
    prover: Prover,
    watch: Duration,
    gauges: Gauges,
}

impl Checker {
    pub(crate) fn new(store: Store, signer: Option<Signer>, prover: Prover, metrics: &Metrics) -> Self {
        let watch = signer.as_ref().map_or(WATCH, |signer| WATCH.min(signer.silence()));
        Self { store, signer, prover, watch, gauges: Gauges::new(metrics) }
    }

    /// Checks until `stop`. It only reads.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let work = async { tokio::join!(self.watch(), self.deeper()) };
        let _ = stop.run_until_cancelled(work).await;
    }

    async fn watch(&self) {
        let mut ticks = tokio::time::interval(self.watch);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look().await {
                let cause = std::error::Error::source(&error);
                tracing::warn!(%error, ?cause, "where logs end is not known");
            }
        }
    }

    /// Looks at where every log ends.
    async fn look(&self) -> Result<()> {
        let now_s = clock::now_us().max(0).unsigned_abs() / 1_000_000;
        let damaged = self.store.damages();
        let (mut unsigned, mut oldest_s, mut after) = (0_u64, now_s, String::new());
        let mut known = BTreeMap::new();
        loop {
            let page = self.store.log_ends(&after).await?;
            let Some(last) = page.last() else { break };
            after.clone_from(&last.instance_id);
            for end in &page {
                let found = wrong_end(end);
                if found.is_some() || damaged.contains_key(&(end.instance_id.clone(), CheckKind::End)) {
                    self.store.checked(&end.instance_id, CheckKind::End, found.as_deref());
                }
                unsigned = unsigned.saturating_add(end.entries.saturating_sub(end.signed));
                if end.cosigned_at_s > 0 {
                    oldest_s = oldest_s.min(end.cosigned_at_s);
                }
            }
            if let Some(signer) = &self.signer {
                signer.sweep(&page);
                if let Err(error) = signer.follow(&page).await {
                    tracing::warn!(%error, "what other replicas have signed is not known");
                }
                known.extend(page.into_iter().map(|end| (end.instance_id, end.entries)));
            }
        }
        if let Some(signer) = &self.signer {
            signer.sweep_lost(&known);
            self.gauges.forked.set(i64::from(signer.check().is_err()));
            self.gauges.unsigned.set(i64::try_from(unsigned).unwrap_or(i64::MAX));
            self.gauges.age.set(i64::try_from(now_s.saturating_sub(oldest_s)).unwrap_or(i64::MAX));
        }
        let logs: BTreeSet<String> = self.store.damages().into_keys().map(|(instance, _)| instance).collect();
        self.gauges.damaged.set(i64::try_from(logs.len()).unwrap_or(i64::MAX));
        Ok(())
    }

    async fn deeper(&self) {
        let mut whole_at = Instant::now() + FIRST_WHOLE;
        // Of each log, a segment of the archive that is damaged.
        let mut broken = BTreeMap::new();
        loop {
            self.pass(CheckKind::Sample).await;
            self.look_into_archive(&mut broken).await;
            let hour = Instant::now() + HOUR;
            while Instant::now() < hour {
                sleep(whole_at.min(hour).saturating_duration_since(Instant::now())).await;
                if Instant::now() >= whole_at {
                    self.pass(CheckKind::Whole).await;
                    whole_at = Instant::now() + DAY;
                }
            }
        }
    }

    /// Checks every log, some of it or all.
    async fn pass(&self, kind: CheckKind) {
        let heads = match self.store.all_heads(&Access::unrestricted()).await {
            Ok(heads) => heads,
            Err(error) => return tracing::warn!(%error, "which logs there are is not known"),
        };
        let each = (SAMPLED_IN_ALL / (heads.len() as u64).max(1)).min(SAMPLED);
        for instance_id in heads.keys() {
            let checked = match kind {
                CheckKind::Whole => {
                    let trusted = self.signer.as_ref().map(Signer::trusted).unwrap_or_default();
                    check_log(&self.store, instance_id, &trusted, false, REST).await
                }
                _ => self.sample(instance_id, each).await,
            };
            let outcome = match checked {
                Ok(checked) => {
                    for found in &checked.found {
                        tracing::error!(instance_id, found = found.what, "found by a check of the log");
                    }
                    let told = checked.told();
                    if told.is_some() || kind == CheckKind::Whole {
                        self.store.checked(instance_id, kind, told.as_deref());
                    }
                    if told.is_some() { "damaged" } else { "well" }
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error);
                    tracing::warn!(instance_id, %error, ?cause, "the log could not be checked");
                    "failed"
                }
            };
            let kind = if kind == CheckKind::Whole { "whole" } else { "sample" };
            self.gauges.checks.with_label_values(&[kind, outcome]).inc();
        }
        tracing::debug!(logs = heads.len(), ?kind, "logs were checked");
    }

    /// Checks the newest tiles of a log and some others.
    async fn sample(&self, instance_id: &str, others: u64) -> Result<Checked> {
        let everything = Access::unrestricted();
        let mut checked = Checked::default();
        let head = match self.store.tree_head(&everything, instance_id).await {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(checked),
            Err(error) => return damage(error, &mut checked).map(|()| checked),
        };
        let tiles = tiles_of(head.size);
        let mut sample: BTreeSet<u64> = (tiles.saturating_sub(2)..tiles).collect();
        sample.extend((0..others).map(|_| random() % tiles));
        for index in sample {
            let begun = Instant::now();
            let mut found = Vec::new();
            let leaves = self.store.check_tile(instance_id, index, head.size, &mut found).await?;
            checked.entries += leaves.len() as u64;
            // Up to the head's root; of a tile in which something was found that is told already.
            if found.is_empty() {
                let first = index * WIDTH;
                let proven = self.prover.inclusion(&everything, instance_id, first, head.size, &head).await;
                if let Err(error) = proven {
                    damage(error, &mut checked)?;
                }
            }
            checked.keep(found);
            sleep(begun.elapsed() * REST).await;
        }
        Ok(checked)
    }

    /// Checks a segment of each log's archive: any, or the one that was found damaged.
    async fn look_into_archive(&self, broken: &mut BTreeMap<String, u64>) {
        let heads = match self.store.all_heads(&Access::unrestricted()).await {
            Ok(heads) => heads,
            Err(error) => return tracing::warn!(%error, "which logs there are is not known"),
        };
        for (instance_id, entries) in heads {
            let sequence = broken.get(&instance_id).copied().unwrap_or_else(|| random() % entries.max(1));
            let outcome = match self.store.check_segment(&instance_id, sequence).await {
                Ok(found) => {
                    match &found {
                        Some(found) => broken.insert(instance_id.clone(), found.sequences.start),
                        None => broken.remove(&instance_id),
                    };
                    self.store.checked(
                        &instance_id,
                        CheckKind::Archive,
                        found.as_ref().map(|found| found.what.as_str()),
                    );
                    if found.is_some() { "damaged" } else { "well" }
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error);
                    tracing::warn!(instance_id, %error, ?cause, "the log's archive could not be checked");
                    "failed"
                }
            };
            self.gauges.checks.with_label_values(&["archive", outcome]).inc();
        }
    }
}

/// What is wrong where a log ends.
fn wrong_end(end: &LogEnd) -> Option<String> {
    let LogEnd { entries, behind_last, .. } = *end;
    match behind_last.cmp(&entries) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Less => Some(format!("entries {behind_last} to {} are missing at its end", entries - 1)),
        std::cmp::Ordering::Greater => {
            Some(format!("entries {entries} to {} were put behind its end", behind_last - 1))
        }
    }
}

/// A number that is another one each time.
fn random() -> u64 {
    // The lower half of a version 7 is random but for two bits.
    Uuid::now_v7().as_u64_pair().1
}

/// | name | labels | what |
/// | --- | --- | --- |
/// | `activity_log_damaged` | | logs that a check found damaged, or their archive |
/// | `activity_log_forked` | | 1 when a log does not begin as it was signed: nothing is written any more |
/// | `activity_log_unsigned_entries` | | entries under no checkpoint yet |
/// | `activity_log_checkpoint_age_seconds` | | since the newest checkpoint of a log was signed, of the log where that is longest |
/// | `activity_log_checks_total` | kind: sample, whole, archive; outcome: well, damaged, failed | checks of a log |
#[derive(Debug)]
struct Gauges {
    damaged: IntGauge,
    forked: IntGauge,
    unsigned: IntGauge,
    age: IntGauge,
    checks: IntCounterVec,
}

impl Gauges {
    fn new(metrics: &Metrics) -> Self {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("service", "audit");
        let gauge = |name: &str, help: &str| made(IntGauge::with_opts(opts(name, help)));
        let checks = opts("activity_log_checks_total", "checks of a log, by what came of them");
        let gauges = Self {
            damaged: gauge("activity_log_damaged", "logs that are damaged, or their archive"),
            forked: gauge("activity_log_forked", "1 when a log does not begin as it was signed"),
            unsigned: gauge("activity_log_unsigned_entries", "entries under no checkpoint yet"),
            age: gauge("activity_log_checkpoint_age_seconds", "since the newest checkpoint of a log, the longest"),
            checks: made(IntCounterVec::new(checks, &["kind", "outcome"])),
        };
        for collector in [&gauges.damaged, &gauges.forked, &gauges.unsigned, &gauges.age] {
            made(metrics.registry().register(Box::new(collector.clone())));
        }
        made(metrics.registry().register(Box::new(gauges.checks.clone())));
        gauges
    }
}

/// Names and help are constants: that they are accepted, each test that starts a server shows.
#[expect(clippy::expect_used, reason = "the arguments are constants, and well-formed")]
fn made<T>(made: prometheus::Result<T>) -> T {
    made.expect("metrics are well-formed and registered once")
}
