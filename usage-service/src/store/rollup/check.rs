//! Checking: a day's segments against its raw rows, in one snapshot, and making them anew where they differ.
//!
//! What a segment must hold is what raw rows add up to, less what is still in deltas. Each cut of each span of the
//! day is compared, key by key, sum by sum and set by set, and whether an answer would find it: its texts, and that it
//! is listed. What is in memory plays no part. Where the rows are gone (retention), there is nothing to compare with.
//!
//! A segment is only made anew of rows that are there. Where fewer rows are left than deltas tell of, or some of a
//! cluster's may be on their way back, the difference is reported and segments stay as they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, StreamTrait as _};
use service_core::auth::Access;
use service_core::error::{Error, Result};
use service_core::time_range::rfc3339;
use tokio::time::{Instant, sleep};

use super::Place;
use super::read::{any_of, dimensions_with_ids, level, list};
use super::seal::{Made, make};
use crate::model::{Dimension, Filter, Scope};
use crate::rollup::{Cut, Delta, FullRow, Level, MEASURES, Overlay, Section, Span, Values};
use crate::store::Store;
use crate::store::cells::{Cell, Cut as CellCut};

/// How long workers may take to finish what was committed; and the pause between two looks.
const UNFINISHED_PATIENCE: Duration = Duration::from_secs(5);
const UNFINISHED_PAUSE: Duration = Duration::from_millis(20);

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Segments that were compared.
    pub segments: usize,
    /// Those that were not what the raw rows say.
    pub differing: usize,
    /// Whether those were made anew.
    pub repaired: bool,
    /// Deltas, by their commits, that cannot be read. A segment is compared as if they were not there, so that one made
    /// anew holds what is in them.
    pub damaged: Vec<i64>,
}

/// A day's work.
struct Day {
    snapshot: DatabaseTransaction,
    /// The last commit that counts.
    until: Option<i64>,
    /// The texts that the database knows.
    values: Arc<Values>,
    overlay: Overlay,
    /// What is in deltas, by segment, taken away.
    less: HashMap<Place, Vec<FullRow>>,
    checked: Checked,
    differing: Vec<Made>,
    /// There are fewer rows than in deltas.
    rows_missing: bool,
    day: BTreeMap<u32, Section>,
}

/// What is in deltas of a day, taken away from each of its segments.
struct Less {
    day_us: i64,
    overlay: Overlay,
    rows: HashMap<Place, Vec<FullRow>>,
    damaged: Vec<i64>,
}

impl Less {
    fn add(&mut self, commit_number: i64, delta: Result<Delta>) -> Result<()> {
        let delta = match delta {
            Ok(delta) => delta,
            Err(error) => {
                tracing::error!(%error, "what waits to be sealed cannot be read");
                self.damaged.push(commit_number);
                return Ok(());
            }
        };
        for row in delta.resolve(&mut self.overlay) {
            if Level::Day.start_of(row.quarter_us) != self.day_us {
                continue;
            }
            for level in Level::ALL {
                let place = Place { level, start_us: level.start_of(row.quarter_us), instance: row.instance };
                self.rows.entry(place).or_default().push(negative(&row.row));
            }
        }
        Ok(())
    }
}

impl Store {
    /// The first day (UTC) at or after a moment that has rows or segments, by its first microsecond.
    ///
    /// Days whose rows retention has removed are none.
    pub async fn day_from(&self, from_us: i64) -> Result<Option<i64>> {
        let from_us = self.kept().await?.requests_from_us.max(from_us);
        let requests = "SELECT CAST(MIN(occurred_at) AS BIGINT) FROM usage_requests WHERE occurred_at >= $1";
        let mut statements = vec![self.statement(requests, [from_us.into()])];
        for level in Level::ALL {
            let spans = "SELECT CAST(MIN(start_us) AS BIGINT) FROM usage_spans WHERE level = $1 AND start_us >= $2";
            statements.push(self.statement(spans, [level.number().into(), from_us.into()]));
        }
        let mut earliest = None;
        for statement in statements {
            let row = self.db.reader.query_one_raw(statement).await?;
            let found: Option<i64> = row.map_or(Ok(None), |row| row.try_get_by_index(0))?;
            earliest = [earliest, found].into_iter().flatten().min();
        }
        Ok(earliest.map(|us| Level::Day.start_of(us)))
    }

    /// Compares the segments of a day with its raw rows, and makes those that differ anew if told to: nobody else
    /// seals meanwhile. A day whose rows retention has removed has nothing to compare.
    pub async fn check_day(&self, day_us: i64, repair: bool) -> Result<Checked> {
        let lock = match repair {
            true => match self.seal_lock().await? {
                Some(lock) => lock,
                None => return Err(Error::storage_unavailable(anyhow::anyhow!("another replica is sealing"))),
            },
            false => None,
        };
        // On a cluster a snapshot is not one moment of all nodes: a group that commits now may be there with its rows
        // and without its delta. What is up to a watermark is there with both; and while nobody seals, segments hold
        // nothing beyond it.
        let until = match &lock {
            Some(_) => {
                let until = self.watermark().await?;
                self.all_finished().await?;
                Some(until)
            }
            None => None,
        };
        let snapshot = self.snapshot(&self.db.checker).await?;
        let base = self.version(&snapshot, 0).await?.version;
        let span = Span::at(Level::Day, day_us);
        let values = Arc::new(self.stored_values(&snapshot).await?);
        let less = Less {
            day_us: span.start_us,
            overlay: Overlay::new(Arc::clone(&values)),
            rows: HashMap::new(),
            damaged: Vec::new(),
        };
        let less = self.each_delta(&snapshot, until.unwrap_or(i64::MAX), less, Less::add).await?;
        let Less { overlay, rows: less, damaged, .. } = less;
        let mut day = Day {
            snapshot,
            until,
            values,
            overlay,
            less,
            checked: Checked { damaged, ..Checked::default() },
            differing: Vec::new(),
            rows_missing: false,
            day: BTreeMap::new(),
        };
        let mut hour = Span::at(Level::Hour, span.start_us);
        while hour.start_us < span.end_us() {
            self.check_hour(&mut day, hour).await?;
            hour = Span::at(Level::Hour, hour.end_us());
        }
        let expected = std::mem::take(&mut day.day).into_iter();
        let expected =
            expected.map(|(instance, full)| (Place { level: Level::Day, start_us: span.start_us, instance }, full));
        self.compare(&mut day, Level::Day, &[span.start_us], expected.collect()).await?;

        let Day { snapshot, overlay, differing, rows_missing, mut checked, .. } = day;
        snapshot.rollback().await?;
        // On PostgreSQL rows are gone from older snapshots too, once they are removed: what was read is then no
        // measure. Whoever removes rows has moved the horizon before.
        let removed = span.start_us < self.kept().await?.requests_from_us;
        if repair && rows_missing && !removed {
            tracing::error!(
                day = rfc3339(span.start_us),
                "requests are missing that were acknowledged: nothing is made anew from what is left"
            );
        }
        if removed || !repair || rows_missing || differing.is_empty() {
            if let Some(lock) = lock {
                lock.rollback().await?;
            }
            return Ok(if removed { Checked { damaged: checked.damaged, ..Checked::default() } } else { checked });
        }
        self.repair(differing, &overlay, lock, base).await?;
        checked.repaired = true;
        Ok(checked)
    }

    /// The deltas, by their commits, that cannot be read.
    pub async fn damaged_deltas(&self) -> Result<Vec<i64>> {
        let add = |damaged: &mut Vec<i64>, commit_number, delta: Result<Delta>| {
            if delta.is_err() {
                damaged.push(commit_number);
            }
            Ok(())
        };
        let snapshot = self.snapshot(&self.db.checker).await?;
        self.each_delta(&snapshot, i64::MAX, Vec::new(), add).await
    }

    /// Removes deltas that nobody could read, once segments hold what was in them.
    pub async fn remove_deltas(&self, commit_numbers: &[i64]) -> Result<()> {
        let Some(lock) = self.seal_lock().await? else {
            return Err(Error::storage_unavailable(anyhow::anyhow!("another replica is sealing")));
        };
        let sql = format!("DELETE FROM usage_deltas WHERE commit_number {}", any_of(self.backend(), 1));
        let statement = self.statement(&sql, [list(commit_numbers)]);
        match lock {
            Some(transaction) => {
                transaction.execute_raw(statement).await?;
                transaction.commit().await?;
            }
            None => {
                self.db.writer.execute_raw(statement).await?;
            }
        }
        tracing::warn!(?commit_numbers, "deltas that could not be read were removed: segments hold their requests");
        Ok(())
    }

    /// Waits until the workers of a cluster have finished what was committed when this began; refuses if they don't soon.
    /// Of a worker that died between the two phases of a commit, and is back, rows are missing until Citus has looked
    /// after it: until then they are prepared there.
    async fn all_finished(&self) -> Result<()> {
        if !self.spread {
            return Ok(());
        }
        let deadline = Instant::now() + UNFINISHED_PATIENCE;
        let mut waited_for = self.unfinished().await?;
        while !waited_for.is_empty() {
            if Instant::now() > deadline {
                return Err(Error::storage_unavailable(anyhow::anyhow!(
                    "nothing is repaired while workers have prepared transactions that nobody finishes \
                     (pg_prepared_xacts): {}; Citus looks after them (citus.recover_2pc_interval)",
                    waited_for.into_iter().take(5).collect::<Vec<_>>().join(", ")
                )));
            }
            sleep(UNFINISHED_PAUSE).await;
            let now = self.unfinished().await?;
            waited_for.retain(|name| now.contains(name));
        }
        Ok(())
    }

    /// The transactions that are prepared on any node of the cluster and not finished.
    async fn unfinished(&self) -> Result<BTreeSet<String>> {
        let sql = "SELECT success, result FROM run_command_on_all_nodes($$ \
                   SELECT COALESCE(string_agg(gid, ' '), '') FROM pg_prepared_xacts \
                   WHERE database = current_database() AND starts_with(gid, 'citus_') $$)";
        let mut names = BTreeSet::new();
        for row in self.db.writer.query_all_raw(self.statement(sql, [])).await? {
            let result: String = row.try_get_by_index(1)?;
            if !row.try_get_by_index::<bool>(0)? {
                return Err(Error::storage_unavailable(anyhow::anyhow!("a node of the cluster: {result}")));
            }
            names.extend(result.split_whitespace().map(str::to_owned));
        }
        Ok(names)
    }

    /// The texts of ids as they are stored, with gaps where some are not.
    async fn stored_values(&self, snapshot: &DatabaseTransaction) -> Result<Values> {
        let mut values = Values::new();
        for dimension in dimensions_with_ids() {
            let sql = "SELECT id, value FROM usage_values WHERE dimension = $1 ORDER BY id";
            let mut rows = snapshot.stream_raw(self.statement(sql, [dimension.number().into()])).await?;
            while let Some(row) = rows.try_next().await? {
                let id: i32 = row.try_get_by_index(0)?;
                let text: String = row.try_get_by_index(1)?;
                values.insert(dimension, id.unsigned_abs(), &text).map_err(Error::internal)?;
            }
        }
        Ok(values)
    }

    /// The hour and its quarters; adds the hour to the day.
    async fn check_hour(&self, day: &mut Day, hour: Span) -> Result<()> {
        let width = Level::Quarter.width_us();
        let edges: Vec<i64> = (0..5).map(|quarter| hour.start_us + quarter * width).collect();
        let scope = Scope {
            start_us: hour.start_us,
            end_us: hour.end_us(),
            access: Access::unrestricted(),
            filter: Filter::default(),
            watermark: day.until,
            caller: "".into(),
        };
        let mut rows: BTreeMap<Place, Vec<FullRow>> = BTreeMap::new();
        let cut = CellCut { scope: &scope, dimensions: &Dimension::ALL, edges: &edges };
        let sink = |cell: Cell| {
            let quarter = Place { level: Level::Quarter, start_us: edges[cell.bucket], instance: cell.instance };
            rows.entry(quarter).or_default().push(cell.row);
        };
        self.cells(&day.snapshot, &cut, &mut day.overlay, sink).await?;
        for (place, less) in &day.less {
            if place.level == Level::Quarter && Level::Hour.start_of(place.start_us) == hour.start_us {
                let rows = rows.entry(*place).or_default();
                rows.extend(less);
                day.rows_missing |= any_negative(rows, less);
            }
        }
        let mut hours: BTreeMap<Place, Vec<FullRow>> = BTreeMap::new();
        for (quarter, rows) in &rows {
            let place = Place { level: Level::Hour, start_us: hour.start_us, ..*quarter };
            hours.entry(place).or_default().extend(rows);
        }
        let merged = |rows: BTreeMap<Place, Vec<FullRow>>| -> BTreeMap<Place, Section> {
            rows.into_iter().map(|(place, rows)| (place, Section::merge(None, rows))).collect()
        };
        for (place, rows) in &hours {
            let full = Section::merge(day.day.get(&place.instance), rows.clone());
            day.day.insert(place.instance, full);
        }
        self.compare(day, Level::Quarter, &edges[..4], merged(rows)).await?;
        self.compare(day, Level::Hour, &[hour.start_us], merged(hours)).await
    }

    /// Compares what is stored for these spans with what should be.
    async fn compare(
        &self,
        day: &mut Day,
        level: Level,
        starts: &[i64],
        expected: BTreeMap<Place, Section>,
    ) -> Result<()> {
        let mut blobs: Vec<(Place, Cut, Vec<u8>)> = Vec::new();
        for cut in Cut::STORED {
            let mut rows = day.snapshot.stream_raw(self.segments(level, cut, starts, None)).await?;
            while let Some(row) = rows.try_next().await? {
                let instance: i32 = row.try_get_by_index(1)?;
                let place = Place { level, start_us: row.try_get_by_index(0)?, instance: instance.unsigned_abs() };
                blobs.push((place, cut, row.try_get_by_index(2)?));
            }
        }
        let listed: BTreeSet<Place> = self.spans_at(&day.snapshot, level, starts).await?.into_iter().collect();
        let values = Arc::clone(&day.values);
        // Nobody who asks waits behind this.
        let compare = move || compared(blobs, &listed, expected, &values);
        let (segments, differing) = tokio::task::spawn_blocking(compare).await.map_err(Error::internal)??;
        day.checked.segments += segments;
        day.checked.differing += differing.len();
        day.differing.extend(differing);
        Ok(())
    }

    /// The segments that are said to be there.
    async fn spans_at(&self, snapshot: &DatabaseTransaction, of: Level, starts: &[i64]) -> Result<Vec<Place>> {
        let (Some(first), Some(last)) = (starts.first(), starts.last()) else {
            return Ok(Vec::new());
        };
        let sql = "SELECT level, start_us, instance FROM usage_spans \
                   WHERE level = $1 AND start_us >= $2 AND start_us <= $3";
        let statement = self.statement(sql, [of.number().into(), (*first).into(), (*last).into()]);
        let place = |row: sea_orm::QueryResult| -> Result<Place> {
            let instance: i32 = row.try_get_by_index(2)?;
            Ok(Place {
                level: level(row.try_get_by_index(0)?)?,
                start_us: row.try_get_by_index(1)?,
                instance: instance.unsigned_abs(),
            })
        };
        snapshot.query_all_raw(statement).await?.into_iter().map(place).collect()
    }

    async fn repair(
        &self,
        differing: Vec<Made>,
        overlay: &Overlay,
        mut lock: Option<DatabaseTransaction>,
        base: i64,
    ) -> Result<()> {
        let Some(into) = self.begin_sealing(None, &mut lock, base).await? else {
            return Err(Error::storage_unavailable(anyhow::anyhow!("a sealing came between; check again")));
        };
        let segments = differing.len();
        self.write_segments(&into, differing, &mut Vec::new(), usize::MAX).await?;
        self.write_values(&into, overlay).await?;
        // Nobody remembers a version: every process reads anew what there is, texts too.
        let forget = self.statement("DELETE FROM usage_rollup WHERE version <> $1", [into.version.into()]);
        into.transaction.execute_raw(forget).await?;
        into.transaction.commit().await?;
        tracing::warn!(segments, "segments were made anew from their requests");
        Ok(())
    }
}

/// How many segments there are or should be, and those that are not what they should be, as they should.
fn compared(
    blobs: Vec<(Place, Cut, Vec<u8>)>,
    listed: &BTreeSet<Place>,
    mut expected: BTreeMap<Place, Section>,
    values: &Values,
) -> Result<(usize, Vec<Made>)> {
    // What can't be read differs.
    let stored: HashMap<(Place, Cut), Option<Section>> =
        blobs.into_iter().map(|(place, cut, data)| ((place, cut), Section::decode(cut, &data).ok())).collect();
    for place in listed.iter().chain(stored.keys().map(|(place, _)| place)) {
        expected.entry(*place).or_insert_with(|| Section::merge(None, Vec::new()));
    }
    let (mut segments, mut differing) = (0, Vec::new());
    for (place, full) in expected {
        let there = listed.contains(&place) || Cut::STORED.iter().any(|cut| stored.contains_key(&(place, *cut)));
        if full.rows() == 0 && !there {
            continue;
        }
        let made = make(place, full)?;
        let same = |(cut, section, _): &(Cut, Section, Vec<u8>)| match stored.get(&(place, *cut)) {
            Some(Some(stored)) => stored == section && stored.knows(values),
            _ => false,
        };
        segments += 1;
        if !listed.contains(&place) || !made.sections.iter().all(same) {
            let (from, level) = (rfc3339(place.start_us), place.level.name());
            tracing::error!(from, level, "a segment is not what its requests add up to");
            differing.push(made);
        }
    }
    Ok((segments, differing))
}

/// Whether with what is taken away a sum is less than nothing.
fn any_negative(rows: &[FullRow], less: &[FullRow]) -> bool {
    // All others are of rows only.
    let mut sums: HashMap<_, [i128; MEASURES]> = less.iter().map(|row| (row.keys, [0; MEASURES])).collect();
    for row in rows {
        if let Some(sums) = sums.get_mut(&row.keys) {
            for (sum, measure) in sums.iter_mut().zip(row.measures) {
                *sum += i128::from(measure);
            }
        }
    }
    sums.values().flatten().any(|sum| *sum < 0)
}

fn negative(row: &FullRow) -> FullRow {
    FullRow { measures: row.measures.map(i64::wrapping_neg), ..*row }
}
