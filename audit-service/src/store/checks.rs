//! What of a log is not as it was written, read from the entries up: for who checks it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::PoisonError;

use sea_orm::QueryResult;
use service_core::auth::Access;
use service_core::error::{Error, Result};
use uuid::Uuid;

use super::tree::damaged;
use super::{Store, hash, signed, unsigned};
use crate::canonical::{self, Prefix};
use crate::merkle::{Hash, Tile, TileId, WIDTH};

/// Logs of one look.
const LOOKUP: usize = 1_000;
/// Entries that are read at once: of the largest, some megabytes.
const PAGE: u64 = 64;

/// Where a log ends, by its head, by its entries, and by what was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogEnd {
    pub(crate) instance_id: String,
    /// Entries by its head.
    pub(crate) entries: u64,
    /// Behind its last entry, here or archived.
    pub(crate) behind_last: u64,
    /// Entries under its newest checkpoint in the database.
    pub(crate) signed: u64,
    /// When that was cosigned: seconds since 1970.
    pub(crate) cosigned_at_s: u64,
}

/// Entries that are not as they were written, or may not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub sequences: Range<u64>,
    /// A sentence that names them.
    pub what: String,
}

impl Found {
    pub(crate) fn new(sequences: Range<u64>, what: impl Into<String>) -> Self {
        Self { sequences, what: what.into() }
    }

    fn entry(sequence: u64, what: &str) -> Self {
        Self::new(sequence..sequence + 1, format!("entry {sequence} {what}"))
    }
}

/// Which check found something: each clears only what it found itself, or a larger one what a smaller one did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CheckKind {
    /// The look at where logs end.
    End,
    /// Of some tiles.
    Sample,
    /// Of everything in the database.
    Whole,
    /// Of a segment of the archive, until that segment is as it was.
    Archive,
}

impl CheckKind {
    /// Whether a log of which it found something takes no more. A copy that is bad does not make the log bad.
    pub(crate) fn stops_writers(self) -> bool {
        self != Self::Archive
    }
}

/// What is damaged of which logs.
pub(crate) type Damages = BTreeMap<(String, CheckKind), String>;

impl Store {
    /// Says what a check has found of a log, or that it is well. A damaged log takes no more, and keeps no other from it;
    /// one whose archive is damaged goes on.
    pub(crate) fn checked(&self, instance_id: &str, kind: CheckKind, found: Option<&str>) {
        let mut damages = self.damages.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |kind| (instance_id.to_owned(), kind);
        match found {
            Some(what) => {
                if damages.insert(key(kind), what.to_owned()).as_deref() != Some(what) {
                    match kind.stops_writers() {
                        true => {
                            tracing::error!(instance_id, what, "the log is damaged: nothing is written to it any more")
                        }
                        false => tracing::error!(instance_id, what, "what was archived of the log is damaged"),
                    }
                }
            }
            None => {
                let mut cleared = damages.remove(&key(kind)).is_some();
                if kind == CheckKind::Whole {
                    cleared |= damages.remove(&key(CheckKind::Sample)).is_some();
                }
                if cleared {
                    tracing::info!(instance_id, "what was damaged of the log is as it was again");
                }
            }
        }
    }

    /// What is damaged.
    pub(crate) fn damages(&self) -> Damages {
        self.damages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses logs that were found damaged.
    pub(super) fn refuse_damaged<'a>(&self, mut instances: impl Iterator<Item = &'a String>) -> Result<()> {
        let damages = self.damages.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |instance: &String| damages.iter().find(|((log, kind), _)| log == instance && kind.stops_writers());
        match instances.find_map(of) {
            Some(((instance, _), what)) => Err(damaged(instance, what)),
            None => Ok(()),
        }
    }

    /// Where logs end, a page in the order of their names.
    pub(crate) async fn log_ends(&self, after: &str) -> Result<Vec<LogEnd>> {
        self.log_ends_where("h.instance_id > $1", after).await
    }

    /// Where one log ends.
    pub(crate) async fn log_end(&self, instance_id: &str) -> Result<Option<LogEnd>> {
        Ok(self.log_ends_where("h.instance_id = $1", instance_id).await?.into_iter().next())
    }

    async fn log_ends_where(&self, which: &str, name: &str) -> Result<Vec<LogEnd>> {
        let last =
            |table| format!("COALESCE((SELECT MAX(sequence) FROM {table} t WHERE t.instance_id = h.instance_id), -1)");
        let sql = format!(
            "SELECT h.instance_id, h.next_sequence, {}, {}, COALESCE(c.size, 0), COALESCE(c.cosigned_at, 0) \
             FROM audit_log_heads h LEFT JOIN audit_newest_checkpoints c ON c.instance_id = h.instance_id \
             WHERE {which} ORDER BY h.instance_id LIMIT {LOOKUP}",
            last("audit_entries"),
            last("audit_archived")
        );
        let end = |row: &QueryResult| {
            let (here, archived): (i64, i64) = (row.try_get_by_index(2)?, row.try_get_by_index(3)?);
            Ok(LogEnd {
                instance_id: row.try_get_by_index(0)?,
                entries: unsigned(row.try_get_by_index(1)?)?,
                behind_last: unsigned(here.max(archived).saturating_add(1))?,
                signed: unsigned(row.try_get_by_index(4)?)?,
                cosigned_at_s: row.try_get_by_index::<i64>(5)?.max(0).unsigned_abs(),
            })
        };
        self.read(sql, vec![name.into()]).await?.iter().map(end).collect()
    }

    /// The leaves of one tile, or of the part of it below `end`, made anew of the entries where they are here; and what
    /// is not as it was written. Where a stored tile has other hashes, these are the leaves: what comes behind can still
    /// be compared.
    pub(crate) async fn check_tile(
        &self,
        instance_id: &str,
        index: u64,
        end: u64,
        found: &mut Vec<Found>,
    ) -> Result<Vec<Hash>> {
        let places = TileId { level: 0, index }.places();
        let sequences = places.start..places.end.min(end);
        let mut leaves = self.leaves_of_entries(instance_id, &sequences, found).await?;
        if sequences.end < places.end {
            return Ok(leaves.into_values().collect());
        }
        let Some((stored, root)) = self.stored_tile(instance_id, TileId { level: 0, index }).await? else {
            found.push(Found::new(
                sequences,
                format!("the tile over entries {} to {} is missing", places.start, places.end - 1),
            ));
            return Ok(leaves.into_values().collect());
        };
        for (sequence, hash) in sequences.clone().zip(stored.hashes()) {
            match leaves.insert(sequence, *hash) {
                Some(leaf) if leaf != *hash && !found.iter().any(|found| found.sequences.contains(&sequence)) => {
                    found.push(Found::entry(sequence, "is not the one that its tile has: one of them was changed"));
                }
                _ => {}
            }
        }
        if stored.root() != root {
            found.push(Found::new(
                sequences,
                format!("the tile over entries {} to {} was changed", places.start, places.end - 1),
            ));
        }
        Ok(leaves.into_values().collect())
    }

    /// The hashes of a full tile, and the root that is beside them.
    pub(crate) async fn stored_tile(&self, instance_id: &str, id: TileId) -> Result<Option<(Tile, Hash)>> {
        let sql = "SELECT hashes, root FROM audit_tiles WHERE instance_id = $1 AND level = $2 AND tile = $3";
        let values = vec![instance_id.into(), i16::from(id.level).into(), signed(id.index).into()];
        let rows = self.read(sql, values).await?;
        let tile = |row: &QueryResult| {
            let tile = Tile::from_bytes(&row.try_get_by_index::<Vec<u8>>(0)?).ok().filter(Tile::is_full);
            Ok::<_, Error>(tile.zip(hash(row.try_get_by_index(1)?).ok()))
        };
        // One that is no tile is none.
        Ok(rows.first().map(tile).transpose()?.flatten())
    }

    async fn leaves_of_entries(
        &self,
        instance_id: &str,
        sequences: &Range<u64>,
        found: &mut Vec<Found>,
    ) -> Result<BTreeMap<u64, Hash>> {
        let mut leaves = BTreeMap::new();
        for first in sequences.clone().step_by(PAGE as usize) {
            let end = (first + PAGE).min(sequences.end);
            let sql = "SELECT sequence, id, occurred_at, stage, operation_id, content_hash, leaf_hash, canonical \
                       FROM audit_entries WHERE instance_id = $1 AND sequence >= $2 AND sequence < $3 ORDER BY sequence";
            for row in self.read(sql, vec![instance_id.into(), signed(first).into(), signed(end).into()]).await? {
                let sequence = unsigned(row.try_get_by_index(0)?)?;
                let line: String = row.try_get_by_index(7)?;
                let leaf = canonical::leaf_hash(&line);
                if !as_written(instance_id, sequence, &line, &row)? || row.try_get_by_index::<Vec<u8>>(6)? != leaf {
                    found.push(Found::entry(sequence, "was changed"));
                }
                leaves.insert(sequence, leaf);
            }
        }
        let missing = |leaves: &BTreeMap<u64, Hash>| leaves.len() as u64 != sequences.end - sequences.start;
        // Asked for behind the entries: what is moved meanwhile is found there.
        if missing(&leaves) {
            let sql = "SELECT sequence, leaf_hash FROM audit_archived \
                       WHERE instance_id = $1 AND sequence >= $2 AND sequence < $3 ORDER BY sequence";
            let values = vec![instance_id.into(), signed(sequences.start).into(), signed(sequences.end).into()];
            for row in self.read(sql, values).await? {
                let sequence = unsigned(row.try_get_by_index(0)?)?;
                match hash(row.try_get_by_index(1)?) {
                    Ok(leaf) => {
                        leaves.entry(sequence).or_insert(leaf);
                    }
                    Err(_) => {
                        found.push(Found::entry(sequence, "was changed: its hash in the archive's place is none"))
                    }
                }
            }
        }
        if missing(&leaves) {
            for sequence in sequences.clone().filter(|sequence| !leaves.contains_key(sequence)).collect::<Vec<_>>() {
                found.push(Found::entry(sequence, "is missing"));
                // As long as the others: where each lies stays known.
                leaves.insert(sequence, [0; 32]);
            }
        }
        Ok(leaves)
    }

    /// Notes of checkpoints over more than so many entries, the smallest first.
    pub(crate) async fn checkpoints_above(&self, instance_id: &str, size: u64, limit: u64) -> Result<Vec<String>> {
        let sql = "SELECT size, note FROM audit_checkpoints WHERE instance_id = $1 AND size > $2 \
                   UNION SELECT size, note FROM audit_newest_checkpoints WHERE instance_id = $1 AND size > $2 \
                   ORDER BY size LIMIT $3";
        let values = vec![instance_id.into(), signed(size).into(), signed(limit).into()];
        self.read(sql, values).await?.iter().map(|row| Ok(row.try_get_by_index(1)?)).collect()
    }

    /// Whether an archive's objects of a log can be read, as it was archived; what is not.
    pub(crate) async fn check_segment(&self, instance_id: &str, sequence: u64) -> Result<Option<Found>> {
        let segment = self.segment_of(&Access::unrestricted(), instance_id, sequence).await?;
        let (Some(segment), Some(archive)) = (segment, self.archive()) else { return Ok(None) };
        let wrong = |what: String| {
            let (first, last) = (segment.sequences.start, segment.sequences.end - 1);
            let what = format!("the archive's segment of entries {first} to {last}, {}, {what}", segment.place);
            Ok(Some(Found::new(segment.sequences.clone(), what)))
        };
        let manifest = match archive.get(&crate::archive::manifest_name(&segment.place)).await? {
            Some(bytes) if crate::archive::sha256(&bytes) == segment.manifest_sha256 => bytes,
            Some(_) => return wrong("has another manifest".into()),
            None => return wrong("has no manifest: it is missing".into()),
        };
        let Some(data) = archive.get(&crate::archive::data_name(&segment.place)).await? else {
            return wrong("is missing".into());
        };
        let verified = tokio::task::spawn_blocking(move || {
            let manifest = crate::archive::Manifest::parse(&manifest)?;
            manifest.verify(data, |_, _| ())
        });
        match verified.await.map_err(Error::internal)? {
            Ok(()) => Ok(None),
            Err(why) => wrong(format!("cannot be verified: {why}")),
        }
    }
}

/// Whether a row is of the entry that its line tells, in all columns that are looked for.
fn as_written(instance_id: &str, sequence: u64, line: &str, row: &QueryResult) -> Result<bool> {
    let Ok(entry) = canonical::parse(line) else { return Ok(false) };
    let event = &entry.event;
    let operation = event.operation.as_ref().map_or("", |operation| operation.id.as_str());
    Ok(entry.sequence == sequence
        && event.instance_id == instance_id
        && row.try_get_by_index::<Uuid>(1)? == event.id
        && row.try_get_by_index::<i64>(2)? == event.occurred_at_us
        && i32::from(row.try_get_by_index::<i16>(3)?) == event.stage().number()
        && row.try_get_by_index::<String>(4)? == operation
        && row.try_get_by_index::<Vec<u8>>(5)? == Prefix::new(event).content_hash
        && canonical::to_string(&entry) == line)
}

/// How many tiles of leaves a log has, the last one maybe not full.
pub(crate) fn tiles_of(entries: u64) -> u64 {
    entries.div_ceil(WIDTH)
}
