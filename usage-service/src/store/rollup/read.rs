//! One answer's view of the segments: everything in it is of one snapshot.
//!
//! Which segments there are, the process knows in memory as of a version; a view asks the snapshot for its version,
//! and for what changed since. Their sections come from the cache, or in a few statements from the snapshot. The
//! deltas come from the snapshot always: they are small and short-lived.

use std::collections::HashMap;
use std::sync::Arc;

use futures::TryStreamExt as _;
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbBackend, Statement, StreamTrait as _, Value};
use service_core::error::{Error, Result};
use tokio::sync::mpsc;

use super::cache::Key;
use super::{Known, Place, Rollup};
use crate::model::Dimension;
use crate::rollup::{Cut, Delta, KEYS, Level, Section, Span, Values};
use crate::store::{Kept, Store};

/// How often a view is taken anew because the process knew of a later one.
const TRIES: usize = 8;
/// After so many the process is taken to be wrong, and not the snapshot to be old.
const PATIENT: usize = 3;
/// Sections that are fetched, folded and let go of together.
const CHUNK: usize = 128;
/// Chunks that are read ahead of the fold.
const AHEAD: usize = 2;

/// The dimensions whose values have ids in the database.
pub(super) fn dimensions_with_ids() -> impl Iterator<Item = Dimension> {
    std::iter::once(Dimension::Instance).chain(KEYS).filter(|dimension| *dimension != Dimension::Status)
}

/// A consistent view of the rollups and of the raw rows.
pub(crate) struct View {
    /// Everything is read from it.
    pub(crate) snapshot: DatabaseTransaction,
    /// The texts of ids as of the snapshot, or later: ids never change.
    pub(crate) values: Arc<Values>,
    /// What retention has left.
    pub(crate) kept: Kept,
    /// The segments that the plan asks for.
    pieces: Vec<Piece>,
}

/// A segment that an answer counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) bucket: usize,
    pub(super) place: Place,
    version: i64,
}

/// Sections with the bucket and the instance they count for.
pub(crate) type Chunk = Vec<(usize, u32, Arc<Section>)>;

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
    /// The snapshot of now, and which segments there are in it of these spans, each given with its bucket.
    pub(crate) async fn view(&self, spans: &[(usize, Span)]) -> Result<View> {
        for attempt in 0..TRIES {
            let snapshot = self.snapshot().await?;
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
            let pieces = known.pieces(spans);
            let values = Arc::clone(&known.values);
            drop(known);
            return Ok(View { snapshot, values, kept, pieces });
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

    /// Hands the sections of the view to a thread of their own, which adds them up while more are read.
    pub(crate) async fn fold<T: Send + 'static>(
        &self,
        view: &View,
        cut: Cut,
        wants: impl Fn(u32) -> bool,
        work: impl FnOnce(mpsc::Receiver<Chunk>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (send, receive) = mpsc::channel(AHEAD);
        let worker = tokio::task::spawn_blocking(move || work(receive));
        let pieces: Vec<Piece> = view.pieces.iter().filter(|piece| wants(piece.place.instance)).copied().collect();
        let mut read = Ok(());
        for chunk in pieces.chunks(CHUNK) {
            match self.sections(&view.snapshot, chunk, cut).await {
                Ok(sections) => {
                    let chunk =
                        sections.into_iter().map(|(piece, section)| (piece.bucket, piece.place.instance, section));
                    if send.send(chunk.collect()).await.is_err() {
                        // The worker has failed, and says why.
                        break;
                    }
                }
                Err(error) => {
                    read = Err(error);
                    break;
                }
            }
        }
        drop(send);
        let done = worker.await.map_err(Error::internal)?;
        read.and(done)
    }

    /// The sections of these pieces: from memory, or from the snapshot.
    pub(super) async fn sections(
        &self,
        snapshot: &DatabaseTransaction,
        pieces: &[Piece],
        cut: Cut,
    ) -> Result<Vec<(Piece, Arc<Section>)>> {
        let mut found = Vec::with_capacity(pieces.len());
        let mut missing: HashMap<Place, Piece> = HashMap::new();
        {
            let mut cache = self.rollup.cache();
            for piece in pieces {
                match cache.get(&key(piece, cut)) {
                    Some(section) => found.push((*piece, section)),
                    None => {
                        missing.insert(piece.place, *piece);
                    }
                }
            }
        }
        for level in Level::ALL {
            let mut starts: Vec<i64> =
                missing.keys().filter(|place| place.level == level).map(|place| place.start_us).collect();
            starts.sort_unstable();
            starts.dedup();
            if starts.is_empty() {
                continue;
            }
            let mut rows = snapshot.stream_raw(self.segments(level, cut, &starts)).await?;
            while let Some(row) = rows.try_next().await? {
                let instance: i32 = row.try_get_by_index(1)?;
                let place = Place { level, start_us: row.try_get_by_index(0)?, instance: instance.unsigned_abs() };
                if let Some(piece) = missing.remove(&place) {
                    let data: Vec<u8> = row.try_get_by_index(2)?;
                    let section = Arc::new(Section::decode(cut, &data).map_err(|error| damaged(place, cut, error))?);
                    self.rollup.cache().insert(key(&piece, cut), Arc::clone(&section));
                    found.push((piece, section));
                }
            }
        }
        match missing.keys().next() {
            None => Ok(found),
            Some(place) => Err(damaged(*place, cut, "it is not there")),
        }
    }

    /// The statement that reads the sections of these spans.
    pub(super) fn segments(&self, level: Level, cut: Cut, starts: &[i64]) -> Statement {
        let any = any_of(self.backend(), 3);
        let sql = format!(
            "SELECT start_us, instance, data FROM usage_segments WHERE level = $1 AND cut = $2 AND start_us {any}"
        );
        self.statement(&sql, [level.number().into(), cut.number().into(), list(starts)])
    }

    /// What is not in segments yet, of commits up to a number.
    pub(crate) async fn deltas(&self, snapshot: &DatabaseTransaction, until: i64) -> Result<Vec<Delta>> {
        let mut deltas = Vec::new();
        let sql = "SELECT commit_number, data FROM usage_deltas WHERE commit_number <= $1";
        let mut rows = snapshot.stream_raw(self.statement(sql, [until.into()])).await?;
        while let Some(row) = rows.try_next().await? {
            let number: i64 = row.try_get_by_index(0)?;
            let data: Vec<u8> = row.try_get_by_index(1)?;
            deltas.push(decode_delta(number, &data)?);
        }
        Ok(deltas)
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

    /// The segments of these spans, of every instance.
    fn pieces(&self, spans: &[(usize, Span)]) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(spans.len());
        for (bucket, span) in spans {
            let place = |instance| Place { level: span.level, start_us: span.start_us, instance };
            for (place, version) in self.spans.range(place(0)..=place(u32::MAX)) {
                pieces.push(Piece { bucket: *bucket, place: *place, version: *version });
            }
        }
        pieces
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

    /// The segments that are there at these places; none when they are known as of another version.
    pub(super) fn pieces_at(&self, version: i64, places: &[Place]) -> Option<Vec<Piece>> {
        let known = self.known();
        let piece =
            |place: &Place| known.spans.get(place).map(|version| Piece { bucket: 0, place: *place, version: *version });
        (known.version == version).then(|| places.iter().filter_map(piece).collect())
    }
}

fn key(piece: &Piece, cut: Cut) -> Key {
    Key { place: piece.place, cut, version: piece.version }
}

pub(super) fn decode_delta(commit_number: i64, data: &[u8]) -> Result<Delta> {
    Delta::decode(data).map_err(|error| Error::internal(anyhow::anyhow!("delta of commit {commit_number}: {error}")))
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
