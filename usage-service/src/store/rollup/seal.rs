//! Sealing: deltas become segments.
//!
//! ```text
//! PostgreSQL   try the lock ── snapshot: deltas, sections ── add up ── version, segments, deltas removed ── commit
//! SQLite                       snapshot: deltas, sections ── add up ── the same, in one short write ── commit
//! ```
//!
//! Killed anywhere before the commit, nothing happened; after it, all of it did. Two that overlap build on the same
//! version, which only one of them may name as its predecessor: the other one's work is thrown away. The lock is there
//! to spare that work.
//!
//! A step is bounded in what it reads and in the segments it touches, so that it is short whatever came late. Spans are
//! worked on a few at a time, in the order of their places.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sea_orm::sea_query::{Expr, OnConflict, Query};
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbErr, SqlErr};
use service_core::clock;
use service_core::database::{Engine, begin};
use service_core::error::{Error, Result};
use uuid::Uuid;

use super::entity::{segment, span, value};
use super::fold::stored_key;
use super::read::{Piece, any_of, decode_delta, id_value, list};
use super::{Place, VERSIONS_KEPT_US};
use crate::model::Dimension;
use crate::rollup::{Cut, Delta, DeltaRow, Level, Overlay, Section};
use crate::store::Store;

/// Key of the advisory lock: "usagesea" in ASCII.
const SEAL_LOCK: i64 = 0x7573_6167_6573_6561;
/// Bytes of deltas in one step; about 30 a request.
const STEP_BYTES: i64 = 2 << 20;
/// Deltas that are looked at for one step.
const STEP_DELTAS: u64 = 8_192;
/// Segments that one step touches, but for those of a single day: some megabytes to write, in a fraction of a second.
const STEP_SEGMENTS: usize = 256;
/// Segments that are added up together.
const CHUNK: usize = 64;
/// Bytes of new sections that wait for the end of the step. Few steps have more; those write before it.
const WRITE_BYTES: usize = 64 << 20;
/// Rows in one statement.
const STATEMENT_ROWS: usize = 64;
/// Segments of one step that are worth keeping in memory: the newest days, which dashboards ask for.
const KEPT: usize = 16;

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// There was nothing to do.
    Nothing,
    /// Another replica is at it, or was quicker.
    Elsewhere,
    /// So many deltas went into so many segments.
    Deltas {
        /// Deltas that were removed.
        deltas: usize,
        /// Segments that changed.
        segments: usize,
        /// Whether there are more.
        more: bool,
    },
}

/// What waits to be sealed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// How many groups.
    pub deltas: i64,
    /// Their size.
    pub bytes: i64,
}

/// A segment made anew.
pub(super) struct Made {
    pub(super) place: Place,
    pub(super) sections: Vec<(Cut, Section, Vec<u8>)>,
}

/// The transaction that a step writes.
pub(super) struct Writing {
    pub(super) transaction: DatabaseTransaction,
    pub(super) version: i64,
}

impl Store {
    /// How much waits.
    pub async fn backlog(&self) -> Result<Backlog> {
        let sql = "SELECT CAST(COUNT(*) AS BIGINT), CAST(COALESCE(SUM(LENGTH(data)), 0) AS BIGINT) FROM usage_deltas";
        let row = self.db.reader.query_one_raw(self.statement(sql, [])).await?;
        let row = row.ok_or_else(|| Error::internal(anyhow::anyhow!("no count of deltas")))?;
        Ok(Backlog { deltas: row.try_get_by_index(0)?, bytes: row.try_get_by_index(1)? })
    }

    /// One step: the oldest deltas into segments.
    pub async fn seal(&self) -> Result<Sealed> {
        let Some(mut lock) = self.seal_lock().await? else {
            return Ok(Sealed::Elsewhere);
        };
        let view = self.view(None, &[], &[]).await?;
        let base = self.version(&view.snapshot, 0).await?.version;
        let (numbers, more) = self.oldest_deltas(&view.snapshot).await?;
        if numbers.is_empty() {
            return Ok(Sealed::Nothing);
        }
        let overlay = Overlay::new(Arc::clone(&view.values));
        let deltas = self.read_deltas(&view.snapshot, &numbers).await?;
        let step = tokio::task::spawn_blocking(move || Step::of(deltas, overlay)).await.map_err(Error::internal)?;
        let Step { rows, left, overlay } = step;
        if left.is_empty() {
            return Ok(Sealed::Nothing);
        }
        let deltas = left.len();
        let more = more || left.iter().any(|(_, left)| left.is_some());
        let mut spans = by_place(&rows);
        // What retention has removed is never made anew.
        spans.retain(|place, _| place.start_us >= view.kept.rollups_from_us);
        let rows = Arc::new(rows);

        let mut writing = None;
        let mut pending: Vec<Made> = Vec::new();
        let mut keep = Vec::new();
        let segments = spans.len();
        let spans: Vec<(Place, Vec<u32>)> = spans.into_iter().collect();
        for chunk in spans.chunks(CHUNK) {
            let places: Vec<Place> = chunk.iter().map(|(place, _)| *place).collect();
            let Some(existing) = self.full_sections(&view.snapshot, base, &places).await? else {
                return Ok(Sealed::Elsewhere);
            };
            let chunk = chunk.to_vec();
            let rows = Arc::clone(&rows);
            let made = tokio::task::spawn_blocking(move || {
                let segment = |(place, rows_of): &(Place, Vec<u32>)| {
                    let new = rows_of.iter().map(|index| rows[*index as usize].row).collect();
                    make(*place, Section::merge(existing.get(place).map(Arc::as_ref), new))
                };
                chunk.iter().map(segment).collect::<Result<Vec<_>>>()
            })
            .await
            .map_err(Error::internal)??;
            pending.extend(made);
            if bytes(&pending) >= WRITE_BYTES {
                let Some(into) = self.begin_sealing(writing.take(), &mut lock, base).await? else {
                    return Ok(Sealed::Elsewhere);
                };
                self.write_segments(&into, std::mem::take(&mut pending), &mut keep, segments).await?;
                writing = Some(into);
            }
        }
        let Some(into) = self.begin_sealing(writing, &mut lock, base).await? else {
            return Ok(Sealed::Elsewhere);
        };
        self.write_segments(&into, pending, &mut keep, segments).await?;
        self.write_values(&into, &overlay).await?;
        self.leave_deltas(&into, left).await?;
        let version = into.version;
        into.transaction.commit().await?;

        let mut cache = self.rollup.cache();
        for (place, cut, section) in keep {
            cache.insert(stored_key(&Piece { place, version }, cut), section);
        }
        Ok(Sealed::Deltas { deltas, segments, more })
    }

    /// On PostgreSQL a transaction that holds the lock; none when another one does. On SQLite there is one process.
    pub(super) async fn seal_lock(&self) -> Result<Option<Option<DatabaseTransaction>>> {
        if self.db.engine == Engine::Sqlite {
            return Ok(Some(None));
        }
        let transaction = begin(&self.db.writer).await?;
        // It stands still while the work is done.
        transaction.execute_unprepared("SET LOCAL idle_in_transaction_session_timeout = 0").await?;
        let row = transaction
            .query_one_raw(self.statement("SELECT pg_try_advisory_xact_lock($1)", [SEAL_LOCK.into()]))
            .await?
            .ok_or_else(|| Error::internal(anyhow::anyhow!("no answer about the lock")))?;
        Ok(if row.try_get_by_index(0)? { Some(Some(transaction)) } else { None })
    }

    /// The commit numbers of a step, and whether there are more deltas than these.
    async fn oldest_deltas(&self, snapshot: &DatabaseTransaction) -> Result<(Vec<i64>, bool)> {
        let sql = format!(
            "SELECT commit_number, CAST(LENGTH(data) AS BIGINT) FROM usage_deltas ORDER BY commit_number LIMIT {STEP_DELTAS}"
        );
        let rows = snapshot.query_all_raw(self.statement(&sql, [])).await?;
        let mut numbers = Vec::new();
        let mut bytes = 0;
        for row in &rows {
            bytes += row.try_get_by_index::<i64>(1)?;
            if bytes > STEP_BYTES && !numbers.is_empty() {
                break;
            }
            numbers.push(row.try_get_by_index(0)?);
        }
        let more = numbers.len() < rows.len() || rows.len() as u64 == STEP_DELTAS;
        Ok((numbers, more))
    }

    async fn read_deltas(&self, snapshot: &DatabaseTransaction, numbers: &[i64]) -> Result<Vec<(i64, Vec<u8>)>> {
        let mut deltas = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(CHUNK) {
            let any = any_of(self.backend(), 1);
            let sql = format!("SELECT commit_number, data FROM usage_deltas WHERE commit_number {any}");
            for row in snapshot.query_all_raw(self.statement(&sql, [list(numbers)])).await? {
                deltas.push((row.try_get_by_index(0)?, row.try_get_by_index(1)?));
            }
        }
        Ok(deltas)
    }

    /// What there is at these places already; none when another sealing came between.
    async fn full_sections(
        &self,
        snapshot: &DatabaseTransaction,
        base: i64,
        places: &[Place],
    ) -> Result<Option<BTreeMap<Place, Arc<Section>>>> {
        let Some(pieces) = self.rollup.pieces_at(base, places) else {
            return Ok(None);
        };
        let sections = self.sections(snapshot, &pieces, Cut::FULL).await?;
        Ok(Some(sections.into_iter().map(|(piece, section)| (piece.place, section)).collect()))
    }

    /// The transaction that is open, or a new one whose first statement is the link to the version before: none when
    /// another sealing has named it already.
    pub(super) async fn begin_sealing(
        &self,
        writing: Option<Writing>,
        lock: &mut Option<DatabaseTransaction>,
        base: i64,
    ) -> Result<Option<Writing>> {
        if writing.is_some() {
            return Ok(writing);
        }
        let transaction = match lock.take() {
            Some(transaction) => transaction,
            // A deferred transaction that writes first takes the write lock first.
            None => begin(&self.db.writer).await?,
        };
        // Two that follow one base never agree, whatever their clocks say: after a failover the one that was lost is not
        // taken for the one that was made again.
        let lead = i64::from(Uuid::new_v4().as_fields().1);
        let version = clock::now_us().max(base) + 1 + lead;
        let link = self.statement(
            "INSERT INTO usage_rollup (version, previous) SELECT CAST($1 AS BIGINT), CAST($2 AS BIGINT) \
             WHERE COALESCE((SELECT MAX(version) FROM usage_rollup), 0) = $3",
            [version.into(), base.into(), base.into()],
        );
        match transaction.execute_raw(link).await {
            Ok(linked) if linked.rows_affected() == 0 => return Ok(None),
            Ok(_) => {}
            Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let old = version - VERSIONS_KEPT_US;
        let forget =
            self.statement("DELETE FROM usage_rollup WHERE version < $1 AND version <> $2", [old.into(), base.into()]);
        transaction.execute_raw(forget).await?;
        Ok(Some(Writing { transaction, version }))
    }

    pub(super) async fn write_segments(
        &self,
        into: &Writing,
        made: Vec<Made>,
        keep: &mut Vec<(Place, Cut, Arc<Section>)>,
        segments: usize,
    ) -> Result<()> {
        for made in made.chunks(STATEMENT_ROWS) {
            let mut insert = Query::insert();
            insert.into_table(span::Entity).columns([
                span::Column::Level,
                span::Column::StartUs,
                span::Column::Instance,
                span::Column::Version,
            ]);
            for Made { place, .. } in made {
                insert.values_panic([
                    place.level.number().into(),
                    place.start_us.into(),
                    Expr::value(id_value(place.instance)),
                    into.version.into(),
                ]);
            }
            let key = [span::Column::Level, span::Column::StartUs, span::Column::Instance];
            insert.on_conflict(OnConflict::columns(key).update_column(span::Column::Version).to_owned());
            into.transaction.execute_raw(self.backend().build(&insert)).await?;
        }
        let sections: Vec<(Place, Cut, Section, Vec<u8>)> = made
            .into_iter()
            .flat_map(|made| {
                made.sections.into_iter().map(move |(cut, section, data)| (made.place, cut, section, data))
            })
            .collect();
        let mut sections = sections.into_iter().peekable();
        while sections.peek().is_some() {
            let mut insert = Query::insert();
            insert.into_table(segment::Entity).columns([
                segment::Column::Level,
                segment::Column::Cut,
                segment::Column::StartUs,
                segment::Column::Instance,
                segment::Column::Data,
            ]);
            for (place, cut, section, data) in sections.by_ref().take(STATEMENT_ROWS) {
                insert.values_panic([
                    place.level.number().into(),
                    // A segment has stored cuts only.
                    cut.number().unwrap_or(-1).into(),
                    place.start_us.into(),
                    Expr::value(id_value(place.instance)),
                    data.into(),
                ]);
                if segments <= KEPT {
                    keep.push((place, cut, Arc::new(section)));
                }
            }
            let key =
                [segment::Column::Level, segment::Column::Cut, segment::Column::StartUs, segment::Column::Instance];
            insert.on_conflict(OnConflict::columns(key).update_column(segment::Column::Data).to_owned());
            into.transaction.execute_raw(self.backend().build(&insert)).await?;
        }
        Ok(())
    }

    /// Texts that came with these deltas for the first time.
    pub(super) async fn write_values(&self, into: &Writing, overlay: &Overlay) -> Result<()> {
        let added: Vec<(Dimension, u32, &str)> = overlay.added().collect();
        for added in added.chunks(STATEMENT_ROWS) {
            let mut insert = Query::insert();
            insert.into_table(value::Entity).columns([
                value::Column::Dimension,
                value::Column::Id,
                value::Column::Value,
            ]);
            for (dimension, id, text) in added {
                insert.values_panic([dimension.number().into(), Expr::value(id_value(*id)), (*text).into()]);
            }
            into.transaction.execute_raw(self.backend().build(&insert)).await?;
        }
        Ok(())
    }

    /// Removes what went into segments, and leaves the rest of a delta under its number.
    async fn leave_deltas(&self, into: &Writing, left: Vec<(i64, Option<Vec<u8>>)>) -> Result<()> {
        let mut whole = Vec::with_capacity(left.len());
        for (number, rest) in left {
            let Some(rest) = rest else {
                whole.push(number);
                continue;
            };
            let sql = "UPDATE usage_deltas SET data = $1 WHERE commit_number = $2";
            let changed = into.transaction.execute_raw(self.statement(sql, [rest.into(), number.into()])).await?;
            still_there(1, changed.rows_affected())?;
        }
        let any = any_of(self.backend(), 1);
        let sql = format!("DELETE FROM usage_deltas WHERE commit_number {any}");
        let removed = into.transaction.execute_raw(self.statement(&sql, [list(&whole)])).await?;
        still_there(whole.len(), removed.rows_affected())
    }
}

/// Each delta of the step is there until its commit.
fn still_there(deltas: usize, found: u64) -> Result<()> {
    match found == deltas as u64 {
        true => Ok(()),
        false => Err(DbErr::Custom(format!("{deltas} deltas were read, and {found} are there")).into()),
    }
}

/// What a step does with its deltas.
struct Step {
    /// What goes into segments.
    rows: Vec<DeltaRow>,
    /// What is left of each delta.
    left: Vec<(i64, Option<Vec<u8>>)>,
    overlay: Overlay,
}

impl Step {
    /// One that cannot be read stays as it is, and holds up no other: a check makes up for it.
    fn of(blobs: Vec<(i64, Vec<u8>)>, mut overlay: Overlay) -> Self {
        let mut deltas: Vec<(i64, Delta)> = Vec::with_capacity(blobs.len());
        for (number, data) in blobs {
            match decode_delta(number, &data) {
                Ok(delta) => deltas.push((number, delta)),
                Err(error) => tracing::error!(%error, "what waits to be sealed cannot be read, and is left as it is"),
            }
        }
        let mut rows: Vec<DeltaRow> = deltas.iter().flat_map(|(_, delta)| delta.resolve(&mut overlay)).collect();
        let taken = Taken::of(&rows, &overlay);
        rows.retain(|row| taken.has(row.quarter_us, overlay.text(Dimension::Instance, row.instance)));
        let rest = |delta: Delta| delta.without(|quarter, instance| taken.has(quarter, instance));
        let left = deltas.into_iter().map(|(number, delta)| (number, rest(delta))).collect();
        Self { rows, left, overlay }
    }
}

/// What one step takes of its deltas: days of instances, whole. Late requests may be of any days, and a delta of a few
/// thousand of them would rewrite thousands of segments in one transaction: it is taken in several steps then.
struct Taken {
    days: HashMap<i64, HashSet<String>>,
}

impl Taken {
    /// Those with the most rows, until they touch enough segments; one day of one instance at least.
    fn of(rows: &[DeltaRow], overlay: &Overlay) -> Self {
        let mut quarters: BTreeMap<(i64, u32), (usize, BTreeSet<i64>)> = BTreeMap::new();
        for row in rows {
            let of_day = quarters.entry((Level::Day.start_of(row.quarter_us), row.instance)).or_default();
            of_day.0 += 1;
            of_day.1.insert(row.quarter_us);
        }
        let mut candidates: Vec<_> = quarters.into_iter().collect();
        candidates.sort_by_key(|(_, (rows, _))| std::cmp::Reverse(*rows));
        let mut days: HashMap<i64, HashSet<String>> = HashMap::new();
        let mut segments = 0;
        for ((day, instance), (_, quarters)) in candidates {
            let hours: BTreeSet<i64> = quarters.iter().map(|quarter| Level::Hour.start_of(*quarter)).collect();
            segments += quarters.len() + hours.len() + 1;
            if segments > STEP_SEGMENTS && !days.is_empty() {
                break;
            }
            days.entry(day).or_default().insert(overlay.text(Dimension::Instance, instance).to_owned());
        }
        Self { days }
    }

    fn has(&self, quarter_us: i64, instance: &str) -> bool {
        self.days.get(&Level::Day.start_of(quarter_us)).is_some_and(|instances| instances.contains(instance))
    }
}

/// The rows of each segment, by their index: a row is in one of each level.
fn by_place(rows: &[DeltaRow]) -> BTreeMap<Place, Vec<u32>> {
    let mut places: BTreeMap<Place, Vec<u32>> = BTreeMap::new();
    for (index, row) in (0..).zip(rows) {
        for level in Level::ALL {
            let place = Place { level, start_us: level.start_of(row.quarter_us), instance: row.instance };
            places.entry(place).or_default().push(index);
        }
    }
    places
}

/// All sections of a segment: the others are functions of the full one.
pub(super) fn make(place: Place, full: Section) -> Result<Made> {
    let mut sections = Vec::with_capacity(Cut::STORED.len());
    for cut in Cut::SINGLES {
        let section = Section::project(&full, cut);
        let data = section.encode().map_err(Error::internal)?;
        sections.push((cut, section, data));
    }
    let data = full.encode().map_err(Error::internal)?;
    sections.push((Cut::FULL, full, data));
    Ok(Made { place, sections })
}

fn bytes(made: &[Made]) -> usize {
    made.iter().flat_map(|made| &made.sections).map(|(_, section, data)| section.bytes() + data.len()).sum()
}
