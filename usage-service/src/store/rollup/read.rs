//! One answer's view of the segments: everything in it is of one snapshot.
//!
//! Which segments there are, the process knows in memory as of a version; a view asks the snapshot for its version,
//! and for what changed since. Their sections come from the cache, or in a few statements from the snapshot. The
//! deltas come from the snapshot always: they are small and short-lived.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::TryStreamExt as _;
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbBackend, Statement, StreamTrait as _, Value};
use service_core::error::{Error, Result};

use super::fold::Wish;
use super::{Known, Place, Rollup};
use crate::model::Dimension;
use crate::rollup::{Block, Cut, Delta, KEYS, Level, Span, Values, blocks};
use crate::store::{Kept, Reading, Store, Turn};

/// How often a view is taken anew because the process knew of a later one.
const TRIES: usize = 8;
/// After so many the process is taken to be wrong, and not the snapshot to be old.
const PATIENT: usize = 3;
/// Bytes of deltas that are decoded together.
const DELTA_BYTES: usize = 1 << 20;
/// More instances than these are read with all others: looking for each at each time would take longer.
const LISTED: usize = 16;

/// The dimensions whose values have ids in the database.
pub(super) fn dimensions_with_ids() -> impl Iterator<Item = Dimension> {
    std::iter::once(Dimension::Instance).chain(KEYS).filter(|dimension| *dimension != Dimension::Status)
}

/// A consistent view of the rollups and of the raw rows.
pub(crate) struct View {
    /// Everything is read from it.
    pub(crate) snapshot: Reading,
    /// The texts of ids as of the snapshot, or later: ids never change.
    pub(crate) values: Arc<Values>,
    /// What retention has left.
    pub(crate) kept: Kept,
    /// The version of the segments.
    pub(super) version: i64,
    /// What the plan asks for.
    pub(super) nodes: Vec<Node>,
    /// The segments of each quarter that the window cuts through, by its first microsecond, if it has any.
    pub(super) quarters: HashMap<i64, Vec<Piece>>,
    /// No other view of this process has the same.
    pub(super) answer: u64,
    wishes: Mutex<Wishes>,
}

/// What would have been of use to an answer.
#[derive(Debug, Default)]
pub(in crate::store) struct Wishes {
    pub(super) sections: HashSet<Wish>,
    /// Requests of quarters, by their first microsecond.
    pub(super) quarters: HashSet<i64>,
}

impl View {
    /// A panic while it is held leaves it as it was.
    pub(super) fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest version of a quarter that the window cuts through, if it has segments.
    pub(super) fn quarter(&self, start_us: i64) -> Option<i64> {
        self.quarters.get(&start_us)?.iter().map(|piece| piece.version).max()
    }

    /// Ends the snapshot, and says what would have been of use.
    pub(in crate::store) fn into_wishes(self) -> Wishes {
        self.wishes.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) place: Place,
    pub(super) version: i64,
}

/// A block of an instance's segments that an answer counts.
pub(super) struct Node {
    pub(super) bucket: usize,
    pub(super) instance: u32,
    pub(super) block: Block,
    /// Those that are there, rising; at least one.
    pub(super) pieces: Vec<Piece>,
}

/// What a snapshot is of.
pub(super) struct Version {
    /// The newest.
    pub(super) version: i64,
    /// Whether the one asked about is of the same history.
    remembered: bool,
    kept: Kept,
}

/// What the process knows when it asks what is new: all of one moment.
struct Basis {
    generation: u64,
    version: i64,
    lengths: Vec<(Dimension, u32)>,
}

/// What was sealed since a version.
struct Changes {
    spans: Vec<(Place, i64)>,
    values: Vec<(Dimension, u32, String)>,
}

impl Store {
    /// The snapshot of now, and which segments there are in it of these spans, each given with its bucket, and of the
    /// quarters that these moments are in.
    pub(crate) async fn view(&self, turn: Option<&Turn>, spans: &[(usize, Span)], cut_at: &[i64]) -> Result<View> {
        let blocks = blocks(spans);
        for attempt in 0..TRIES {
            let snapshot = self.reading(turn).await?;
            let Basis { generation, version: known, lengths } = self.rollup.known().basis();
            let Version { version, remembered, kept } = self.version(&snapshot, known).await?;
            if !remembered {
                // Another answer has seen a later snapshot than this one: take a new one. If that is not it, the
                // database has gone back behind what was known of it.
                if attempt >= PATIENT || version > known {
                    tracing::warn!(known, version, "the rollups in memory are of another history; read anew");
                    self.rollup.forget(generation);
                }
                continue;
            }
            if version != known {
                let changes = self.changes(&snapshot, known, &lengths).await?;
                if let Err(error) = self.rollup.take(generation, known, version, changes) {
                    self.rollup.forget(generation);
                    return Err(error);
                }
            }
            let mut known = self.rollup.known();
            if known.generation != generation || known.version != version {
                continue;
            }
            if known.pruned_to_us.is_some_and(|pruned| kept.rollups_from_us < pruned) {
                // The snapshot is older than what retention has removed, or the database has gone back behind it.
                drop(known);
                if attempt >= PATIENT {
                    self.rollup.forget(generation);
                }
                continue;
            }
            known.prune(kept.rollups_from_us);
            let nodes = known.nodes(&blocks);
            let quarters = known.quarters(cut_at);
            let values = Arc::clone(&known.values);
            drop(known);
            let answer = self.rollup.answers.fetch_add(1, Ordering::Relaxed);
            return Ok(View { snapshot, values, kept, version, nodes, quarters, answer, wishes: Mutex::default() });
        }
        Err(Error::storage_unavailable(anyhow::anyhow!("rollups changed {TRIES} times while they were looked at")))
    }

    /// The newest version, and whether `known` is of the same history.
    pub(super) async fn version(&self, snapshot: &DatabaseTransaction, known: i64) -> Result<Version> {
        let sql = "SELECT CAST((SELECT COALESCE(MAX(version), 0) FROM usage_rollup) AS BIGINT), \
                   CAST((SELECT COUNT(*) FROM usage_rollup WHERE version = $1) AS BIGINT), \
                   requests_before, rollups_before FROM usage_retention";
        let row = snapshot.query_one_raw(self.statement(sql, [known.into()])).await?;
        let row = row.ok_or_else(|| Error::internal(anyhow::anyhow!("no version of the rollups")))?;
        let remembered: i64 = row.try_get_by_index(1)?;
        Ok(Version {
            version: row.try_get_by_index(0)?,
            remembered: known == 0 || remembered == 1,
            kept: Kept { requests_from_us: row.try_get_by_index(2)?, rollups_from_us: row.try_get_by_index(3)? },
        })
    }

    async fn changes(
        &self,
        snapshot: &DatabaseTransaction,
        known: i64,
        lengths: &[(Dimension, u32)],
    ) -> Result<Changes> {
        let mut changes = Changes { spans: Vec::new(), values: Vec::new() };
        for (dimension, length) in lengths {
            let sql = "SELECT id, value FROM usage_values WHERE dimension = $1 AND id > $2 ORDER BY id";
            let statement = self.statement(sql, [dimension.number().into(), id_value(*length)]);
            let mut rows = snapshot.stream_raw(statement).await?;
            while let Some(row) = rows.try_next().await? {
                let id: i32 = row.try_get_by_index(0)?;
                changes.values.push((*dimension, id.unsigned_abs(), row.try_get_by_index(1)?));
            }
        }
        let sql = "SELECT level, start_us, instance, version FROM usage_spans WHERE version > $1";
        let mut rows = snapshot.stream_raw(self.statement(sql, [known.into()])).await?;
        while let Some(row) = rows.try_next().await? {
            let instance: i32 = row.try_get_by_index(2)?;
            let place = Place {
                level: level(row.try_get_by_index(0)?)?,
                start_us: row.try_get_by_index(1)?,
                instance: instance.unsigned_abs(),
            };
            changes.spans.push((place, row.try_get_by_index(3)?));
        }
        Ok(changes)
    }

    /// The statement that reads the sections of these spans; of some instances, or of all.
    pub(super) fn segments(&self, level: Level, cut: Cut, starts: &[i64], instances: Option<&[i64]>) -> Statement {
        let mut sql = format!(
            "SELECT start_us, instance, data FROM usage_segments WHERE level = $1 AND cut = $2 AND start_us {}",
            any_of(self.backend(), 3)
        );
        // Only stored cuts are read; nothing is stored under -1.
        let mut values = vec![level.number().into(), cut.number().unwrap_or(-1).into(), list(starts)];
        if let Some(instances) = instances.filter(|instances| instances.len() <= LISTED) {
            sql = format!("{sql} AND instance {}", any_of(self.backend(), 4));
            values.push(list(instances));
        }
        Statement::from_sql_and_values(self.backend(), sql, values)
    }

    /// Hands what is not in segments yet, of commits up to a number, to `add`, some of it at a time and on a thread for
    /// what takes long: however much there is, only what `add` keeps of it stays in memory.
    pub(crate) async fn each_delta<T: Send + 'static>(
        &self,
        snapshot: &DatabaseTransaction,
        until: i64,
        mut state: T,
        add: fn(&mut T, i64, Result<Delta>) -> Result<()>,
    ) -> Result<T> {
        let work = |mut state: T, deltas: Vec<(i64, Vec<u8>)>| async move {
            let work = move || {
                for (number, data) in deltas {
                    add(&mut state, number, decode_delta(number, &data))?;
                }
                Ok(state)
            };
            tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
        };
        let sql = "SELECT commit_number, data FROM usage_deltas WHERE commit_number <= $1";
        let mut rows = snapshot.stream_raw(self.statement(sql, [until.into()])).await?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await? {
            let data: Vec<u8> = row.try_get_by_index(1)?;
            bytes += data.len();
            batch.push((row.try_get_by_index(0)?, data));
            if bytes >= DELTA_BYTES {
                state = work(state, std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        match batch.is_empty() {
            true => Ok(state),
            false => work(state, batch).await,
        }
    }

    /// Memory that sections take.
    pub(crate) fn rollup_cache_bytes(&self) -> usize {
        self.rollup.cache().bytes()
    }

    pub(in crate::store) fn statement<const N: usize>(&self, sql: &str, values: [Value; N]) -> Statement {
        Statement::from_sql_and_values(self.backend(), sql, values)
    }
}

impl Known {
    fn basis(&self) -> Basis {
        let lengths = dimensions_with_ids().map(|dimension| (dimension, self.values.len(dimension))).collect();
        Basis { generation: self.generation, version: self.version, lengths }
    }

    /// Takes over what changed from one version to the next.
    fn apply(&mut self, to: i64, changes: Changes) -> Result<()> {
        if !changes.values.is_empty() {
            let values = Arc::make_mut(&mut self.values);
            for (dimension, id, text) in &changes.values {
                values.insert(*dimension, *id, text).map_err(Error::internal)?;
            }
        }
        self.spans.extend(changes.spans);
        self.version = to;
        Ok(())
    }

    /// Forgets what retention has removed. Nobody asks for it, before or after the rows are gone.
    fn prune(&mut self, rollups_from_us: i64) {
        if rollups_from_us > self.pruned_to_us.unwrap_or(i64::MIN) {
            self.spans.retain(|place, _| place.start_us >= rollups_from_us);
            self.pruned_to_us = Some(rollups_from_us);
        }
    }

    /// The segments of these blocks, of every instance.
    pub(super) fn nodes(&self, blocks: &[(usize, Block)]) -> Vec<Node> {
        let mut nodes = Vec::with_capacity(blocks.len());
        let mut found: Vec<Piece> = Vec::new();
        for (bucket, block) in blocks {
            let place = |start_us| Place { level: block.first.level, start_us, instance: 0 };
            let spans = self.spans.range(place(block.first.start_us)..place(block.end_us()));
            found.clear();
            found.extend(spans.map(|(place, version)| Piece { place: *place, version: *version }));
            // Those of an instance stay in the order of time.
            found.sort_by_key(|piece| piece.place.instance);
            for pieces in found.chunk_by(|left, right| left.place.instance == right.place.instance) {
                let instance = pieces[0].place.instance;
                nodes.push(Node { bucket: *bucket, instance, block: *block, pieces: pieces.to_vec() });
            }
        }
        nodes
    }

    /// The segments of each of the quarters that these moments are in.
    fn quarters(&self, moments: &[i64]) -> HashMap<i64, Vec<Piece>> {
        let pieces = |moment: &i64| {
            let start_us = Level::Quarter.start_of(*moment);
            let place = |instance| Place { level: Level::Quarter, start_us, instance };
            let spans = self.spans.range(place(0)..=place(u32::MAX));
            let pieces: Vec<Piece> = spans.map(|(place, version)| Piece { place: *place, version: *version }).collect();
            (!pieces.is_empty()).then_some((start_us, pieces))
        };
        moments.iter().filter_map(pieces).collect()
    }
}

impl Rollup {
    /// Takes over what changed, unless another answer was quicker: the changes are those since `from`.
    fn take(&self, generation: u64, from: i64, to: i64, changes: Changes) -> Result<()> {
        let mut known = self.known();
        if known.generation == generation && known.version == from {
            known.apply(to, changes)?;
            self.cache().leave(known.values.bytes());
        }
        Ok(())
    }

    /// The segments of a wish; none when they are known as of another version.
    pub(super) fn pieces_of(&self, version: i64, wish: &Wish) -> Option<Vec<Piece>> {
        let known = self.known();
        let nodes = (known.version == version).then(|| known.nodes(&[(0, wish.block)]))?;
        Some(nodes.into_iter().find(|node| node.instance == wish.instance).map_or_else(Vec::new, |node| node.pieces))
    }

    /// The segments that are there at these places; none when they are known as of another version.
    pub(super) fn pieces_at(&self, version: i64, places: &[Place]) -> Option<Vec<Piece>> {
        let known = self.known();
        let piece = |place: &Place| known.spans.get(place).map(|version| Piece { place: *place, version: *version });
        (known.version == version).then(|| places.iter().filter_map(piece).collect())
    }
}

pub(super) fn decode_delta(commit_number: i64, data: &[u8]) -> Result<Delta> {
    Delta::decode(data).map_err(|error| {
        Error::internal(anyhow::anyhow!(
            "delta of commit {commit_number}: {error}; `check --repair` makes segments without it"
        ))
    })
}

pub(super) fn level(number: i16) -> Result<Level> {
    Level::from_number(number).ok_or_else(|| Error::internal(anyhow::anyhow!("segments of level {number}")))
}

/// An id as both engines store it. Ids count from 1, one for each text there is.
pub(super) fn id_value(id: u32) -> Value {
    i32::try_from(id).unwrap_or(i32::MAX).into()
}

pub(super) fn damaged(place: Place, cut: Cut, what: impl std::fmt::Display) -> Error {
    Error::internal(anyhow::anyhow!("segment {place:?}, cut {cut:?}: {what}; `check --repair` makes it anew"))
}

/// "Is one of the numbers in parameter `index`".
pub(super) fn any_of(backend: DbBackend, index: usize) -> String {
    match backend {
        DbBackend::Postgres => {
            format!("= ANY (ARRAY(SELECT jsonb_array_elements_text(${index}::text::jsonb)::bigint))")
        }
        _ => format!("IN (SELECT value FROM json_each(${index}))"),
    }
}

/// The numbers for `any_of`.
pub(super) fn list(numbers: &[i64]) -> Value {
    serde_json::Value::from(numbers).to_string().into()
}
