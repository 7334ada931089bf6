//! Retention: what is older than it is to be kept goes to the archive, with its proofs, and is then removed here.
//!
//! ```text
//! due entries of a log ─▶ plan (where the segment ends) ─▶ lines and manifest written ─▶ read back, verified
//!                                                                                              │
//!      removed in small steps, but for what is held ◀── one transaction: an entry, the segment, the horizon
//! ```
//!
//! What is due is the beginning of a log, by the time at which its entries were recorded. Killed at any moment:
//!
//! | killed | what is there | at the next start |
//! | --- | --- | --- |
//! | before the plan is stored | nothing | begins anew |
//! | before or while objects are written | maybe an object that nobody counts on | the same segment is made again, and what is there must be it |
//! | before the transaction commits | both objects, nothing removed | they are read back and verified, then counted |
//! | after it, or between steps of removing | each entry here, or in the archive, or in both | removing goes on |
//!
//! What is held, or not removed yet, is in both. Nothing is ever in neither: an entry is removed only below the horizon,
//! which moves only behind a segment that was read back, and the database itself sees to both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::{IntCounterVec, IntGauge, Opts};
use service_core::auth::Access;
use service_core::clock;
use service_core::error::{Error, Result};
use service_core::telemetry::Metrics;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::archive::{
    Archive, Built, Manifest, Proof, SegmentBuilder, data_name, hex, manifest_name, needed_tiles, segment_name, sha256,
};
use crate::checkpoint::{Checkpoint, Note};
use crate::config::RetentionConfig;
use crate::event::{Actor, ActorKind, Event, Outcome, Resource};
use crate::ingest::Followers;
use crate::merkle::{Frontier, Hash, Plan};
use crate::store::{Kept, LogWalk, NewSegment, Row, Store, Told, damaged};

/// The action of the entry that tells of a segment.
pub const ARCHIVED: &str = "audit_log.entries_archived";
/// Who records it.
pub(crate) const RECORDED_BY: &str = "audit-service";

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(3_600);
/// Before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// Between two steps of removing, at least; or as long as the last one took, so that writers have half of the time.
const PAUSE: Duration = Duration::from_millis(5);
const DAY_US: i64 = 86_400 * clock::MICROS_PER_SECOND;
/// Which lock of the database says that somebody archives.
const LEADER: i64 = 0x6175_6469_7461_7263;

/// What retention goes by that is not its own.
pub trait Surroundings: std::fmt::Debug + Send + Sync {
    /// The time by which entries get due.
    fn now_us(&self) -> i64;

    /// Retention has done this for a log, and nothing of what comes next.
    fn reached(&self, step: Step);
}

/// Where retention stands, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Where the next segment ends is stored.
    Planned,
    /// Its lines are in the archive.
    LinesWritten,
    /// So is its manifest.
    ManifestWritten,
    /// Both were read back, and the entry that tells of them is stored.
    Recorded,
    /// Some of its entries are removed here.
    Swept,
}

/// The machine's clock, and nobody who wants to know.
#[derive(Debug, Clone, Copy)]
pub struct Real;

impl Surroundings for Real {
    fn now_us(&self) -> i64 {
        clock::now_us()
    }

    fn reached(&self, _: Step) {}
}

/// The task that lets go of what is old.
#[derive(Debug)]
pub struct Retention {
    days: Option<u32>,
    origin: String,
    store: Store,
    followers: Followers,
    surroundings: Arc<dyn Surroundings>,
    /// A hold was released.
    released: Arc<Notify>,
}

impl Retention {
    /// Retention of the logs of a store that nobody serves, into its archive, which is not told who signs.
    pub fn alone(config: &RetentionConfig, origin: &str, store: Store, surroundings: Arc<dyn Surroundings>) -> Self {
        Self::new(config, origin, store, Followers::nobody(), surroundings, Arc::default())
    }

    /// Retention of a store's logs, into its archive.
    pub(crate) fn new(
        config: &RetentionConfig,
        origin: &str,
        store: Store,
        followers: Followers,
        surroundings: Arc<dyn Surroundings>,
        released: Arc<Notify>,
    ) -> Self {
        let days = config.days.map(std::num::NonZeroU32::get);
        Self { days, origin: origin.to_owned(), store, followers, surroundings, released }
    }

    /// Works until `stop`: at the start, every hour, and when a hold was released.
    pub(crate) fn run(self, metrics: &Metrics, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let counts = Counts::new(metrics);
        async move {
            let work = async {
                loop {
                    let failed = self.pass(&counts).await.is_err();
                    counts.failing.set(i64::from(failed));
                    let pause = sleep(if failed { AGAIN } else { INTERVAL });
                    tokio::select! {
                        () = pause => {}
                        () = self.released.notified() => {}
                    }
                }
            };
            // Every step is whole or not at all, and what is left is found at the next start.
            let _ = stop.run_until_cancelled(work).await;
        }
    }

    /// Archives and removes what is due, once; for tests, and whoever has no server.
    pub async fn once(&self) -> Result<()> {
        self.pass(&Counts::new(&Metrics::new("audit"))).await
    }

    /// The first failure, if there is one: that of one log keeps no other from its turn.
    async fn pass(&self, counts: &Counts) -> Result<()> {
        let mut outcome = Ok(());
        let mut told = |instance_id: Option<&str>, result: Result<()>| {
            if let Err(error) = result {
                let cause = std::error::Error::source(&error);
                tracing::error!(instance_id, %error, ?cause, "retention failed and will be tried again");
                outcome = std::mem::replace(&mut outcome, Ok(())).and(Err(error));
            }
        };
        // Also where nothing is configured any more: what was begun is finished, and what is held no longer goes.
        match self.store.unswept().await {
            Ok(instances) => {
                for instance in instances {
                    told(Some(&instance), self.sweep(&instance, counts).await);
                }
            }
            Err(error) => told(None, Err(error)),
        }
        if let (Some(days), Some(archive)) = (self.days, self.store.archive()) {
            match self.store.all_heads(&Access::unrestricted()).await {
                Ok(heads) => {
                    for instance in heads.keys() {
                        told(Some(instance), self.archive(archive, instance, days, counts).await);
                    }
                }
                Err(error) => told(None, Err(error)),
            }
        }
        outcome
    }

    /// Archives and removes what is due of a log, segment by segment.
    async fn archive(&self, archive: &Archive, instance_id: &str, days: u32, counts: &Counts) -> Result<()> {
        loop {
            self.followers.check()?;
            let Some(lead) = self.store.lead(LEADER).await? else { return Ok(()) };
            let segment = self.segment(archive, instance_id, days).await;
            lead.end().await?;
            let Some(entries) = segment? else { return Ok(()) };
            counts.entries.with_label_values(&["archived"]).inc_by(entries);
            self.sweep(instance_id, counts).await?;
        }
    }

    /// Removes what is archived of a log and not held.
    async fn sweep(&self, instance_id: &str, counts: &Counts) -> Result<()> {
        loop {
            let begun = Instant::now();
            let Some(lead) = self.store.lead(LEADER).await? else { return Ok(()) };
            let swept = self.store.sweep(instance_id).await;
            lead.end().await?;
            let swept = swept?;
            counts.entries.with_label_values(&["removed"]).inc_by(swept.removed);
            if swept.removed > 0 {
                self.surroundings.reached(Step::Swept);
            }
            if swept.done {
                return Ok(());
            }
            sleep(begun.elapsed().max(PAUSE)).await;
        }
    }

    /// Archives the next segment of a log; how many entries it has, if any are due.
    async fn segment(&self, archive: &Archive, instance_id: &str, days: u32) -> Result<Option<u64>> {
        let Some(kept) = self.store.kept(&Access::unrestricted(), instance_id).await? else { return Ok(None) };
        let first = kept.archived_through;
        let Some(built) = self.due(instance_id, &kept, days).await? else { return Ok(None) };
        let end = first + built.leaves.len() as u64;
        if kept.planned_through <= first && !self.store.plan_segment(instance_id, first, end).await? {
            return Ok(None);
        }
        self.surroundings.reached(Step::Planned);

        let place = segment_name(&self.origin, instance_id, first, end);
        let proof = self.proof(instance_id, &kept, first, end).await?;
        let manifest = Manifest::new(&self.origin, instance_id, first, data_name(&place), &built, proof);
        let bytes = manifest.to_bytes().map_err(Error::internal)?;
        let (entries, lines_sha256) = (end - first, built.lines_sha256);
        let occurred_us = built.occurred_us.unwrap_or_default();
        // What is read back is what counts from here on.
        let data = archive.put(&data_name(&place), built.data).await?;
        self.surroundings.reached(Step::LinesWritten);
        let bytes = archive.put(&manifest_name(&place), bytes).await?;
        self.surroundings.reached(Step::ManifestWritten);
        let segment = NewSegment {
            instance_id: instance_id.to_owned(),
            first,
            end,
            occurred_us,
            place,
            data_bytes: data.len() as u64,
            data_sha256: sha256(&data),
            lines_sha256,
            manifest_sha256: sha256(&bytes),
        };
        let frontier = self.verify(&segment, bytes, data).await?;

        self.followers.check()?;
        let event = told_of(&segment, archive, &frontier, days);
        match self.store.write_told(event, RECORDED_BY, &Told::Segment(&segment)).await {
            Ok((_, heads)) => self.followers.moved(&heads),
            // Another replica has told of it.
            Err(Error::Contention(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
        tracing::info!(instance_id, first, end, place = segment.place, "entries are archived");
        self.surroundings.reached(Step::Recorded);
        Ok(Some(entries))
    }

    /// The lines of the next segment: what is due, or what was planned.
    async fn due(&self, instance_id: &str, kept: &Kept, days: u32) -> Result<Option<Built>> {
        let first = kept.archived_through;
        let planned = Some(kept.planned_through).filter(|end| *end > first);
        let before_us = self.surroundings.now_us().saturating_sub(i64::from(days).saturating_mul(DAY_US));
        let to = match planned {
            Some(planned) => planned,
            None => self.signed(instance_id, kept).await?,
        };
        let mut walk = LogWalk::new(&Access::unrestricted(), instance_id, first, to);
        let mut making = Making { builder: SegmentBuilder::new().map_err(Error::internal)?, own: true, done: false };
        while !making.done {
            let rows = walk.next(&self.store).await?;
            if rows.is_empty() {
                break;
            }
            // Packing takes milliseconds, in which nobody else could use the thread.
            let (instance, whole) = (instance_id.to_owned(), planned.is_some());
            let taken = tokio::task::spawn_blocking(move || {
                making.take(&instance, first, &rows, (!whole).then_some(before_us)).map(|()| making)
            });
            making = taken.await.map_err(Error::internal)??;
        }
        let Making { builder, own, .. } = making;
        let end = first + builder.entries();
        match planned {
            Some(planned) if planned != end => Err(damaged(instance_id, &format!("entry {end} is missing"))),
            // What archiving itself has written would be told by one more entry, and so on.
            None if own => Ok(None),
            _ => builder.finish().map(Some).map_err(Error::internal),
        }
    }

    /// Entries of a log that are under a checkpoint, or all where none are made.
    async fn signed(&self, instance_id: &str, kept: &Kept) -> Result<u64> {
        let Some(signer) = self.followers.signer() else { return Ok(kept.head.size) };
        let newest = signer.checkpoint(&Access::unrestricted(), instance_id, None).await?;
        let size = |note: String| Ok(checkpoint_of(&note)?.size.min(kept.head.size));
        newest.map_or(Ok(0), size)
    }

    /// What proves a segment: tiles of the tree that was signed, or of the present one where nothing is.
    async fn proof(&self, instance_id: &str, kept: &Kept, first: u64, end: u64) -> Result<Proof> {
        let access = Access::unrestricted();
        let (checkpoint, tree_size, root) = match self.followers.signer() {
            None => (None, kept.head.size, kept.head.root),
            Some(signer) => {
                let unsigned =
                    || Error::storage_unavailable(anyhow::anyhow!("no checkpoint is over {end} entries yet"));
                let note = signer.checkpoint(&access, instance_id, Some(end)).await?.ok_or_else(unsigned)?;
                let signed = checkpoint_of(&note)?;
                (Some(note), signed.size, signed.root)
            }
        };
        let mut tiles = Vec::new();
        for id in needed_tiles(first, end, tree_size) {
            let tile = self.store.tile(&access, instance_id, id, id.width(tree_size)).await?;
            tiles.push((id, tile.ok_or_else(|| damaged(instance_id, &format!("{id:?} is missing")))?));
        }
        let plan = Plan::peaks(end);
        let peaks = plan.prove(&self.store.tiles(&access, instance_id, &plan).await?).map_err(Error::internal)?;
        let frontier = Frontier::new(end, peaks).ok_or_else(|| damaged(instance_id, "its tree has no peaks"))?;
        Ok(Proof { tree_size, root, frontier, tiles, checkpoint })
    }

    /// Checks what the archive has of a segment: that it is of these entries, and that they are those of the log.
    async fn verify(&self, segment: &NewSegment, manifest: Vec<u8>, data: Vec<u8>) -> Result<Frontier> {
        let wrong = |what: &str| {
            let place = &segment.place;
            Error::internal(anyhow::anyhow!("the archive has something else as segment {place}: {what}"))
        };
        let manifest = Manifest::parse(&manifest).map_err(|error| wrong(&error.to_string()))?;
        if (&manifest.origin, &manifest.instance_id) != (&self.origin, &segment.instance_id)
            || (manifest.first_sequence, manifest.end_sequence) != (segment.first, segment.end)
            || manifest.data.name != data_name(&segment.place)
            || manifest.lines_sha256 != hex(&segment.lines_sha256)
        {
            return Err(wrong("its manifest is of other entries"));
        }
        if manifest.root().ok() != self.root(&segment.instance_id, manifest.tree_size).await? {
            return Err(wrong("its tree is another one"));
        }
        let checked =
            tokio::task::spawn_blocking(move || manifest.verify(data, |_, _| ()).and_then(|()| manifest.frontier()));
        checked.await.map_err(Error::internal)?.map_err(|error| wrong(&error.to_string()))
    }

    /// The root over the first entries of a log.
    async fn root(&self, instance_id: &str, size: u64) -> Result<Option<Hash>> {
        let plan = Plan::root(size);
        let tiles = self.store.tiles(&Access::unrestricted(), instance_id, &plan).await?;
        Ok(plan.prove(&tiles).map_err(Error::internal)?.first().copied())
    }
}

fn checkpoint_of(note: &str) -> Result<Checkpoint> {
    let note: Note = note.parse().map_err(Error::internal)?;
    Checkpoint::parse(note.text()).map_err(Error::internal)
}

/// A segment in the making.
struct Making {
    builder: SegmentBuilder,
    /// Whether all entries so far are our own.
    own: bool,
    done: bool,
}

impl Making {
    /// Takes rows; without a time all of them.
    fn take(&mut self, instance_id: &str, first: u64, rows: &[Row], before_us: Option<i64>) -> Result<()> {
        for row in rows {
            let next = first + self.builder.entries();
            let entry = row.entry()?;
            if before_us.is_some_and(|before_us| entry.recorded_at_us >= before_us || self.builder.is_full()) {
                self.done = true;
                return Ok(());
            }
            if row.sequence != next || row.leaf_hash != crate::canonical::leaf_hash(&row.canonical) {
                return Err(damaged(instance_id, &format!("entry {next} is missing or was changed")));
            }
            self.own &= entry.event.action == ARCHIVED;
            self.builder.push(&row.canonical, &entry).map_err(Error::internal)?;
        }
        Ok(())
    }
}

/// The entry that tells of a segment.
fn told_of(segment: &NewSegment, archive: &Archive, frontier: &Frontier, days: u32) -> Event {
    let NewSegment { first, end, place, .. } = segment;
    let peaks: Vec<String> = frontier.peaks().iter().map(|peak| hex(peak)).collect();
    let details = serde_json::json!({
        "first_sequence": first.to_string(),
        "end_sequence": end.to_string(),
        "entries": (end - first).to_string(),
        "archive": archive.shown(),
        "lines": data_name(place),
        "lines_sha256": hex(&segment.lines_sha256),
        "object_sha256": hex(&segment.data_sha256),
        "manifest": manifest_name(place),
        "manifest_sha256": hex(&segment.manifest_sha256),
        "frontier": peaks,
    });
    Event {
        id: Uuid::now_v7(),
        occurred_at_us: clock::now_us(),
        instance_id: segment.instance_id.clone(),
        actor: Actor { id: RECORDED_BY.to_owned(), kind: Some(ActorKind::System), ..Actor::default() },
        action: ARCHIVED.to_owned(),
        resources: vec![Resource {
            kind: "audit_segment".to_owned(),
            id: format!("{first}-{end}"),
            name: String::new(),
        }],
        outcome: Outcome::Success,
        reason: format!("retention.days is {days}"),
        changes: Vec::new(),
        details_json: details.to_string(),
        request_id: String::new(),
        operation: None,
        producer: None,
    }
}

/// | name | labels | what |
/// | --- | --- | --- |
/// | `activity_retention_entries_total` | what: archived, removed | entries that are in segments, and that are here no more |
/// | `activity_retention_failing` | | 1 while the last look failed: what is due is still here |
#[derive(Debug)]
struct Counts {
    entries: IntCounterVec,
    failing: IntGauge,
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("service", "audit");
        let entries = opts("activity_retention_entries_total", "entries that retention archived and removed");
        let failing = opts("activity_retention_failing", "1 while what is due cannot be archived or removed");
        let counts =
            Self { entries: made(IntCounterVec::new(entries, &["what"])), failing: made(IntGauge::with_opts(failing)) };
        made(metrics.registry().register(Box::new(counts.entries.clone())));
        made(metrics.registry().register(Box::new(counts.failing.clone())));
        counts
    }
}

/// Names and help are constants: that they are accepted, each test that starts a server shows.
#[expect(clippy::expect_used, reason = "the arguments are constants, and well-formed")]
fn made<T>(made: prometheus::Result<T>) -> T {
    made.expect("metrics are well-formed and registered once")
}
