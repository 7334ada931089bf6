//! What retention lets go of, in the database: how far each log is archived, which segments there are, and removing, in
//! small steps, what is in them.
//!
//! ```text
//! sequences   0 ─────────── swept_through ──────── archived_through ─────── planned_through ──── head
//! here          only what is held  │ being removed │  all of it    │ a segment in the making │
//! archive     ═══════════════════════════════════▶│  maybe, not counted        │
//! ```
//!
//! - `archived_through`, the horizon, moves in the transaction of the entry that tells of it, from segment to segment.
//! - A step of removing moves some entries' ids and hashes into `audit_archived`, deletes the entries and moves
//!   `swept_through`, in one transaction: nothing is ever in neither place. It holds no head, so writers go on.
//! - Placing a hold waits for the step that is under way, and every later step sees it.

use std::ops::Range;

use sea_orm::{ConnectionTrait as _, DatabaseTransaction, QueryResult, Value};
use service_core::auth::Access;
use service_core::database::{Engine, begin};
use service_core::error::{Error, Result};
use uuid::Uuid;

use super::tree::Head;
use super::{Hold, Store, TreeHead, hash, placeholders, signed, unsigned};
use crate::canonical;
use crate::filter::Filter;
use crate::merkle::Hash;
use crate::time::rfc3339;

/// Entries that are removed in one transaction: a few milliseconds.
const STEP: u64 = 500;
/// Logs of one lookup.
const LOOKUP: usize = 500;
/// Holds and held entries that an error counts out.
const TOLD: usize = 5;
const COUNTED: u64 = 1_000;

/// How much of a log is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Entries below are in the archive; here are only those that are held, or not removed yet.
    pub archived_through: u64,
    /// What occurred before may have been removed; 0 where nothing was.
    pub kept_from_us: i64,
    /// Where the segment ends that is being made.
    pub(crate) planned_through: u64,
    /// The log.
    pub(crate) head: TreeHead,
}

/// A segment of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its sequences.
    pub sequences: Range<u64>,
    /// The entry that tells of it.
    pub recorded_sequence: u64,
    /// When that was.
    pub archived_at_us: i64,
    /// When its first and last entries occurred.
    pub occurred_us: (i64, i64),
    /// Its name in the archive, without what tells lines and manifest apart.
    pub place: String,
    /// Bytes of the object with the lines.
    pub data_bytes: u64,
    /// SHA-256 of that object.
    pub data_sha256: Hash,
    /// SHA-256 of the lines.
    pub lines_sha256: Hash,
    /// SHA-256 of the manifest.
    pub manifest_sha256: Hash,
}

/// What a step of removing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Swept {
    /// Entries that are only in the archive now.
    pub(crate) removed: u64,
    /// Entries that stay because they are held.
    pub(crate) held: u64,
    /// Whether nothing is left to do.
    pub(crate) done: bool,
}

/// Entries that are not here any more.
#[derive(Debug)]
pub(crate) struct Gone {
    /// Whose.
    pub(crate) instance_id: String,
    /// Which.
    pub(crate) sequence: u64,
    /// Where.
    pub(crate) place: String,
}

impl From<Gone> for Error {
    fn from(Gone { instance_id, sequence, place }: Gone) -> Self {
        Self::OutOfRange(format!(
            "entry {sequence} of instance {instance_id:?} is in the archive, in segment {place}; ExportEntries with a \
             sequence_range reads it"
        ))
    }
}

const COLUMNS: &str = "first_sequence, end_sequence, recorded_sequence, archived_at, first_occurred_at, \
     last_occurred_at, place, data_bytes, data_sha256, lines_sha256, manifest_sha256";

impl Segment {
    fn from_result(row: &QueryResult) -> Result<Self> {
        Ok(Self {
            sequences: unsigned(row.try_get_by_index(0)?)?..unsigned(row.try_get_by_index(1)?)?,
            recorded_sequence: unsigned(row.try_get_by_index(2)?)?,
            archived_at_us: row.try_get_by_index(3)?,
            occurred_us: (row.try_get_by_index(4)?, row.try_get_by_index(5)?),
            place: row.try_get_by_index(6)?,
            data_bytes: unsigned(row.try_get_by_index(7)?)?,
            data_sha256: hash(row.try_get_by_index(8)?)?,
            lines_sha256: hash(row.try_get_by_index(9)?)?,
            manifest_sha256: hash(row.try_get_by_index(10)?)?,
        })
    }
}

impl Store {
    /// How much of a log is here; `None` of a log without entries, or one that may not be seen.
    pub async fn kept(&self, access: &Access, instance_id: &str) -> Result<Option<Kept>> {
        if !access.has_instance(instance_id) {
            return Ok(None);
        }
        let sql = "SELECT archived_through, kept_from, planned_through, next_sequence, tree_size, frontier \
                   FROM audit_log_heads WHERE instance_id = $1 AND tree_size > 0";
        let rows = self.read(sql, vec![instance_id.into()]).await?;
        let kept = |row: &QueryResult| {
            let frontier: Vec<u8> = row.try_get_by_index(5)?;
            let head = Head::new(row.try_get_by_index(3)?, row.try_get_by_index(4)?, frontier)?;
            Ok(Kept {
                archived_through: unsigned(row.try_get_by_index(0)?)?,
                kept_from_us: row.try_get_by_index(1)?,
                planned_through: unsigned(row.try_get_by_index(2)?)?,
                head: head.tree_head(instance_id)?,
            })
        };
        rows.first().map(kept).transpose()
    }

    /// Says where the segment that is made next ends, so that whoever makes it again makes the same.
    pub(crate) async fn plan_segment(&self, instance_id: &str, first: u64, end: u64) -> Result<bool> {
        let sql = "UPDATE audit_log_heads SET planned_through = $3 \
                   WHERE instance_id = $1 AND archived_through = $2 AND planned_through <= $2";
        let values = [instance_id.into(), signed(first).into(), signed(end).into()];
        Ok(self.db.writer.execute_raw(self.statement(sql, values)).await?.rows_affected() == 1)
    }

    /// Segments of a log in order, from the one on that has a sequence.
    pub async fn segments(&self, access: &Access, instance_id: &str, from: u64, limit: usize) -> Result<Vec<Segment>> {
        if !access.has_instance(instance_id) {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT {COLUMNS} FROM audit_segments WHERE instance_id = $1 AND first_sequence >= \
             COALESCE((SELECT MAX(first_sequence) FROM audit_segments WHERE instance_id = $1 AND first_sequence <= $2), 0) \
             AND end_sequence > $2 ORDER BY first_sequence LIMIT $3"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = vec![instance_id.into(), signed(from).into(), limit.into()];
        self.read(sql, values).await?.iter().map(Segment::from_result).collect()
    }

    /// The segment that has a sequence, if that is archived.
    pub(crate) async fn segment_of(
        &self,
        access: &Access,
        instance_id: &str,
        sequence: u64,
    ) -> Result<Option<Segment>> {
        let segments = self.segments(access, instance_id, sequence, 1).await?;
        Ok(segments.into_iter().next().filter(|segment| segment.sequences.contains(&sequence)))
    }

    /// Whether an entry is in the archive, whether or not it is here too.
    pub(crate) async fn gone(&self, access: &Access, instance_id: &str, sequence: u64) -> Result<Option<Gone>> {
        let segment = self.segment_of(access, instance_id, sequence).await?;
        let gone = |segment: Segment| Gone { instance_id: instance_id.to_owned(), sequence, place: segment.place };
        Ok(segment.map(gone))
    }

    /// The place of an entry that is in the archive alone.
    pub(super) async fn archived_id(&self, id: Uuid) -> Result<Option<(String, u64)>> {
        let sql = "SELECT instance_id, sequence FROM audit_archived WHERE id = $1";
        let rows = self.read(sql, vec![id.into()]).await?;
        rows.first().map(|row| Ok((row.try_get_by_index(0)?, unsigned(row.try_get_by_index(1)?)?))).transpose()
    }

    /// An entry's leaf hash, wherever the entry is.
    pub(crate) async fn leaf_at(&self, access: &Access, instance_id: &str, sequence: u64) -> Result<Option<Hash>> {
        if !access.has_instance(instance_id) {
            return Ok(None);
        }
        let end = signed(sequence.saturating_add(1));
        let rows =
            self.read(super::tree::LEAVES, vec![instance_id.into(), signed(sequence).into(), end.into()]).await?;
        rows.first().map(|row| hash(row.try_get_by_index(0)?)).transpose()
    }

    /// Refuses a range of time that begins before what is here of the logs that a filter asks for. Asked after reading:
    /// a log's horizon moves before anything is removed, so what was read is whole if this says so.
    pub(crate) async fn refuse_removed(&self, access: &Access, filter: &Filter, start_us: i64) -> Result<()> {
        let Some(filter) = filter.within(access) else { return Ok(()) };
        let instances = filter.instance_ids.values();
        let lookups: Vec<&[String]> = if instances.is_empty() { vec![&[]] } else { instances.chunks(LOOKUP).collect() };
        for instances in lookups {
            let only = match instances.len() {
                0 => String::new(),
                some => format!("AND instance_id IN ({})", placeholders(2, some)),
            };
            let sql = format!(
                "SELECT instance_id, kept_from, archived_through FROM audit_log_heads \
                 WHERE kept_from > 0 AND kept_from > $1 {only} ORDER BY kept_from DESC LIMIT 1"
            );
            let values = [Value::from(start_us)].into_iter().chain(instances.iter().map(|name| name.as_str().into()));
            if let Some(row) = self.read(sql, values.collect()).await?.first() {
                let (instance_id, kept_from): (String, i64) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
                let archived_through = unsigned(row.try_get_by_index(2)?)?;
                return Err(self.removed(access, &instance_id, kept_from, archived_through).await?);
            }
        }
        Ok(())
    }

    async fn removed(&self, access: &Access, instance_id: &str, kept_from: i64, through: u64) -> Result<Error> {
        let held = self.held_text(access, instance_id, through).await?;
        Ok(Error::OutOfRange(format!(
            "data of instance {instance_id:?} are there from {}: allowed is a range that begins then or later. The \
             entries 0 to {} are in the archive, and ExportEntries with a sequence_range reads them{held}",
            rfc3339(kept_from),
            through.saturating_sub(1),
        )))
    }

    /// What is held of what is archived, as the end of a sentence.
    pub(crate) async fn held_text(&self, access: &Access, instance_id: &str, through: u64) -> Result<String> {
        let holds = self.holds(access, instance_id, false, None, TOLD).await?;
        if holds.is_empty() {
            return Ok(String::new());
        }
        let sql = format!(
            "SELECT COUNT(*) FROM (SELECT 1 FROM audit_entries WHERE instance_id = $1 AND sequence < $2 AND sequence < \
             COALESCE((SELECT swept_through FROM audit_sweeps WHERE instance_id = $1), 0) LIMIT {}) held",
            COUNTED + 1
        );
        let rows = self.read(sql, vec![instance_id.into(), signed(through).into()]).await?;
        let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get_by_index(0))?;
        let count = if count > signed(COUNTED) { format!("over {COUNTED}") } else { count.to_string() };
        let ids: Vec<String> = holds.iter().map(|hold| hold.placed.hold_id.to_string()).collect();
        Ok(format!("; {count} of them are held here too, by legal holds {}", ids.join(", ")))
    }

    /// Logs of which archived entries may still be here, or are held.
    pub(crate) async fn unswept(&self) -> Result<Vec<String>> {
        let sql = "SELECT h.instance_id FROM audit_log_heads h JOIN audit_sweeps s ON s.instance_id = h.instance_id \
                   WHERE s.swept_through < h.archived_through ORDER BY h.instance_id";
        let rows = self.read(sql, Vec::new()).await?;
        rows.iter().map(|row| Ok(row.try_get_by_index(0)?)).collect()
    }

    /// Removes some of what is archived of a log and not held.
    pub(crate) async fn sweep(&self, instance_id: &str) -> Result<Swept> {
        let transaction = begin(&self.remover).await?;
        let swept = self.sweep_in(&transaction, instance_id).await;
        match &swept {
            Ok(_) => transaction.commit().await?,
            Err(_) => transaction.rollback().await?,
        }
        swept
    }

    async fn sweep_in(&self, transaction: &DatabaseTransaction, instance_id: &str) -> Result<Swept> {
        let lock = match self.db.engine {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR UPDATE OF s",
        };
        let sql = format!(
            "SELECT s.swept_through, h.archived_through FROM audit_sweeps s \
             JOIN audit_log_heads h ON h.instance_id = s.instance_id WHERE s.instance_id = $1 {lock}"
        );
        let row = transaction.query_one_raw(self.statement(sql, [instance_id.into()])).await?;
        let Some(row) = row else { return Ok(Swept { done: true, ..Swept::default() }) };
        let (from, to): (i64, i64) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        let holds = self.standing(transaction, instance_id).await?;
        let line = if holds.is_empty() { "''" } else { "canonical" };
        let sql = format!(
            "SELECT sequence, {line} FROM audit_entries WHERE instance_id = $1 AND sequence >= $2 AND sequence < $3 \
             ORDER BY sequence LIMIT $4"
        );
        let values = [instance_id.into(), from.into(), to.into(), signed(STEP).into()];
        let rows = transaction.query_all_raw(self.statement(sql, values)).await?;
        let mut swept = Swept { done: (rows.len() as u64) < STEP, ..Swept::default() };
        let mut pieces: Vec<Range<i64>> = Vec::new();
        let mut last = from;
        for row in &rows {
            let sequence: i64 = row.try_get_by_index(0)?;
            last = sequence + 1;
            if is_held(&holds, &row.try_get_by_index::<String>(1)?)? {
                swept.held += 1;
                continue;
            }
            swept.removed += 1;
            match pieces.last_mut().filter(|piece| piece.end == sequence) {
                Some(piece) => piece.end = last,
                None => pieces.push(sequence..last),
            }
        }
        for piece in pieces {
            let values = || [Value::from(instance_id), piece.start.into(), piece.end.into()];
            let stays = "INSERT INTO audit_archived (instance_id, sequence, id, stage, operation_id, content_hash, \
                 leaf_hash) SELECT instance_id, sequence, id, stage, operation_id, content_hash, leaf_hash \
                 FROM audit_entries WHERE instance_id = $1 AND sequence >= $2 AND sequence < $3";
            transaction.execute_raw(self.statement(stays, values())).await?;
            let goes = "DELETE FROM audit_entries WHERE instance_id = $1 AND sequence >= $2 AND sequence < $3";
            transaction.execute_raw(self.statement(goes, values())).await?;
        }
        let through = if swept.done { to } else { last };
        let sql = "UPDATE audit_sweeps SET swept_through = $2 WHERE instance_id = $1";
        transaction.execute_raw(self.statement(sql, [instance_id.into(), through.into()])).await?;
        Ok(swept)
    }
}

fn is_held(holds: &[Hold], line: &str) -> Result<bool> {
    if holds.is_empty() {
        return Ok(false);
    }
    let entry = canonical::parse(line).map_err(Error::internal)?;
    Ok(holds.iter().any(|hold| hold.placed.holds(&entry)))
}
