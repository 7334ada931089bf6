//! The tree over each log: grown with the entries, in the transaction that stores them.
//!
//! ```text
//! audit_log_heads.frontier   the peaks of the tree over the log's first tree_size entries; the root is over them
//! audit_tiles                full tiles, each with the root over it; never changed
//! partial tiles              are no rows: at level 0 the entries' leaf hashes, above the roots of the tiles below
//! ```
//!
//! What a commit adds is thus a few hundred bytes of frontier, and 32 bytes an entry when a tile is full.
//!
//! A tree that is behind its log (`tree_size` < `next_sequence`) was written by a program that knew of no trees. It is
//! built before anything is served or written, in steps that are transactions of their own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::PoisonError;

use sea_orm::ConnectionTrait;
use service_core::auth::Access;
use service_core::error::{Error, Result};

use super::{LogWalk, Store, hash, signed, unsigned};
use crate::canonical;
use crate::merkle::{Frontier, Hash, Plan, Tile, TileId, TileSet, WIDTH};

/// Entries of a step of building.
const STEP: u64 = 4_096;
/// Leaf hashes of a piece of a log, whether its entries are here or in the archive.
pub(super) const LEAVES: &str = "SELECT leaf_hash FROM (SELECT sequence, leaf_hash FROM audit_entries \
         WHERE instance_id = $1 AND sequence >= $2 AND sequence < $3 \
         UNION ALL SELECT sequence, leaf_hash FROM audit_archived \
         WHERE instance_id = $1 AND sequence >= $2 AND sequence < $3) leaves ORDER BY sequence";
/// Logs that are looked up at once.
const LOOKUP: u32 = 500;

/// A row of `audit_log_heads`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) next_sequence: u64,
    pub(super) tree_size: u64,
    pub(super) frontier: Vec<u8>,
    /// What occurred before was let go of; 0 where nothing was.
    pub(super) kept_from_us: i64,
    /// When its last entry was recorded; 0 where that is not known.
    pub(super) recorded_us: i64,
}

impl Head {
    pub(super) fn new(next_sequence: i64, tree_size: i64, frontier: Vec<u8>) -> Result<Self> {
        let (next_sequence, tree_size) = (unsigned(next_sequence)?, unsigned(tree_size)?);
        Ok(Self { next_sequence, tree_size, frontier, kept_from_us: 0, recorded_us: 0 })
    }

    /// The same with its times.
    pub(super) fn with(self, kept_from_us: i64, recorded_us: i64) -> Self {
        Self { kept_from_us, recorded_us, ..self }
    }

    /// Of a log without entries.
    pub(super) fn empty() -> Self {
        Self { next_sequence: 0, tree_size: 0, frontier: Vec::new(), kept_from_us: 0, recorded_us: 0 }
    }

    fn tree(&self, instance_id: &str) -> Result<Frontier> {
        if self.tree_size > self.next_sequence {
            let (size, head) = (self.tree_size, self.next_sequence);
            return Err(damaged(instance_id, &format!("its tree is over {size} entries, and it has {head}")));
        }
        Frontier::from_bytes(self.tree_size, &self.frontier)
            .ok_or_else(|| damaged(instance_id, "the peaks of its tree do not fit its size"))
    }

    /// Where the log stands.
    pub(super) fn tree_head(&self, instance_id: &str) -> Result<TreeHead> {
        Ok(TreeHead { size: self.tree_size, root: self.tree(instance_id)?.root() })
    }
}

/// A tile that is full.
#[derive(Debug)]
pub(super) struct FullTile {
    pub(super) id: TileId,
    pub(super) tile: Tile,
    /// Over the tile.
    pub(super) root: Hash,
}

/// A tree that grows.
#[derive(Debug)]
pub(super) struct Growth {
    frontier: Frontier,
    grown_from: u64,
    recorded_us: i64,
    /// Leaves behind the last full tile, where another one may get full; nobody needs them otherwise.
    partial: Option<Vec<Hash>>,
    full: Vec<FullTile>,
}

impl Growth {
    /// The tree of a head, to which at most so many leaves will be added.
    pub(super) fn new(instance_id: &str, head: &Head, most: u64) -> Result<Self> {
        let frontier = head.tree(instance_id)?;
        let grown_from = frontier.size();
        let in_tile = grown_from % WIDTH;
        let partial = match in_tile {
            _ if in_tile + most < WIDTH => None,
            _ => Some(Vec::with_capacity(WIDTH as usize)),
        };
        Ok(Self { frontier, grown_from, recorded_us: head.recorded_us, partial, full: Vec::new() })
    }

    /// Sequences of the leaves that must be [loaded](Self::load) first.
    pub(super) fn missing(&self) -> Option<Range<u64>> {
        let first = self.grown_from - self.grown_from % WIDTH;
        (self.partial.is_some() && first < self.grown_from).then_some(first..self.grown_from)
    }

    /// Takes these leaves, if they are those of the tree.
    pub(super) fn load(&mut self, instance_id: &str, leaves: Vec<Hash>) -> Result<()> {
        let found: Frontier = leaves.iter().copied().collect();
        if found.size() != self.grown_from % WIDTH || !self.frontier.ends_with(&found) {
            let last = self.grown_from % WIDTH;
            return Err(damaged(
                instance_id,
                &format!("the leaf hashes of its last {last} entries are not its tree's"),
            ));
        }
        self.partial = Some(leaves);
        Ok(())
    }

    /// When the next entry is recorded: now, or where a clock was stepped back, or another replica's is behind, when the
    /// last one was. So the times of a log are in its order.
    pub(super) fn recorded_us(&mut self, now_us: i64) -> i64 {
        self.recorded_us = self.recorded_us.max(now_us);
        self.recorded_us
    }

    /// Adds an entry's leaf.
    pub(super) fn push(&mut self, leaf: Hash) -> Result<()> {
        let root = self.frontier.push(leaf);
        if let Some(partial) = &mut self.partial {
            partial.push(leaf);
        }
        if let Some(root) = root {
            let id = TileId { level: 0, index: self.frontier.size() / WIDTH - 1 };
            let hashes = self.partial.replace(Vec::with_capacity(WIDTH as usize)).unwrap_or_default();
            let tile = Tile::new(hashes).ok().filter(Tile::is_full).ok_or_else(|| {
                Error::internal(anyhow::anyhow!("a tile got full for which {} leaves are there", WIDTH))
            })?;
            self.full.push(FullTile { id, tile, root });
        }
        Ok(())
    }

    /// Entries below it: the sequence of the next one.
    pub(super) fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Whether it has grown.
    pub(super) fn has_grown(&self) -> bool {
        self.size() > self.grown_from
    }

    /// Tiles of leaves that got full.
    pub(super) fn full(&self) -> &[FullTile] {
        &self.full
    }

    /// Tiles of a level above the leaves that got full.
    pub(super) fn completed(&self, level: u8) -> Range<u64> {
        TileId::completed(level, self.grown_from, self.size())
    }

    /// The head with this tree.
    pub(super) fn head(&self, next_sequence: u64) -> Head {
        let (tree_size, frontier) = (self.size(), self.frontier.to_bytes());
        Head { next_sequence, tree_size, frontier, kept_from_us: 0, recorded_us: self.recorded_us }
    }
}

/// A tile over the roots of the tiles below it.
pub(super) fn tile_above(instance_id: &str, id: TileId, roots: Vec<Hash>) -> Result<FullTile> {
    let tile = Tile::new(roots).ok().filter(Tile::is_full);
    let tile = tile.ok_or_else(|| damaged(instance_id, &format!("tiles of level {} are missing", id.level - 1)))?;
    Ok(FullTile { id, root: tile.root(), tile })
}

/// What a database says that it cannot have been told by us. Nothing is written on top of it: the client keeps what it
/// has, until somebody has looked.
pub(crate) fn damaged(instance_id: &str, how: &str) -> Error {
    Error::storage_unavailable(Damaged { instance_id: instance_id.to_owned(), how: how.to_owned() })
}

/// The log that an error says is [`damaged`].
pub(crate) fn damaged_log(error: &Error) -> Option<&str> {
    match error {
        Error::StorageUnavailable(cause) => cause.downcast_ref::<Damaged>().map(|damaged| damaged.instance_id.as_str()),
        _ => None,
    }
}

/// The same for whoever reads: what is missing or changed does not come back by trying again.
pub(crate) fn lost(error: Error) -> Error {
    match &error {
        Error::StorageUnavailable(cause) if cause.is::<Damaged>() => {
            tracing::error!(cause = %cause, "what is stored cannot be answered with");
            Error::DataLoss(cause.to_string())
        }
        _ => error,
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the log of instance {instance_id:?} is damaged: {how}")]
struct Damaged {
    instance_id: String,
    how: String,
}

/// Where a log stands: how many entries, and the root over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeHead {
    /// Entries.
    pub size: u64,
    /// The root of their tree.
    pub root: Hash,
}

impl Store {
    /// Builds the trees that are behind their logs.
    pub(super) async fn build_trees(&self) -> Result<()> {
        loop {
            let sql = format!(
                "SELECT instance_id, next_sequence - tree_size FROM audit_log_heads WHERE tree_size < next_sequence \
                 ORDER BY instance_id LIMIT {LOOKUP}"
            );
            let rows = self.read(sql, Vec::new()).await?;
            if rows.is_empty() {
                return Ok(());
            }
            for row in rows {
                let (instance_id, entries): (String, i64) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
                tracing::info!(instance_id, entries, "building the tree over a log that has none");
                self.build_tree(&instance_id).await?;
            }
        }
    }

    /// Tells the heads of logs from before they knew it when their last entries were recorded.
    pub(super) async fn know_recorded(&self) -> Result<()> {
        let mut after = String::new();
        loop {
            let sql = format!(
                "SELECT h.instance_id, e.canonical FROM audit_log_heads h JOIN audit_entries e \
                 ON e.instance_id = h.instance_id AND e.sequence = h.next_sequence - 1 \
                 WHERE h.last_recorded_at = 0 AND h.instance_id > $1 ORDER BY h.instance_id LIMIT {LOOKUP}"
            );
            let rows = self.read(sql, vec![after.as_str().into()]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.try_get_by_index(0)?;
            for row in rows {
                let (instance_id, line): (String, String) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
                // One that cannot be read is found by who checks the log.
                let Ok(entry) = canonical::parse(&line) else { continue };
                let sql =
                    "UPDATE audit_log_heads SET last_recorded_at = $2 WHERE instance_id = $1 AND last_recorded_at = 0";
                let values = [instance_id.into(), entry.recorded_at_us.into()];
                self.db.writer.execute_raw(self.statement(sql, values)).await?;
            }
        }
    }

    /// Refuses heads below what was signed, as a server has that is failed over to and lagged; and logs in which something
    /// was found.
    pub(super) fn refuse_lost(&self, heads: &BTreeMap<String, Head>) -> Result<()> {
        self.refuse_damaged(heads.keys())?;
        let signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = |(instance, head): &(&String, &Head)| signed.get(*instance).is_some_and(|s| *s > head.next_sequence);
        match heads.iter().find(lost) {
            None => Ok(()),
            Some((instance, head)) => {
                let has = head.next_sequence;
                Err(damaged(instance, &format!("it has {has} entries, and more than that were signed")))
            }
        }
    }

    /// Builds the tree of one log up to its head, step by step. Several may do so at once.
    pub(super) async fn build_tree(&self, instance_id: &str) -> Result<()> {
        loop {
            let Some(head) = self.head_of(instance_id).await? else { return Ok(()) };
            if head.tree_size >= head.next_sequence {
                return Ok(());
            }
            let to = head.next_sequence.min(head.tree_size + STEP);
            let leaves = self.recomputed_leaves(instance_id, head.tree_size..to).await?;
            self.grow(instance_id, &head, leaves).await?;
        }
    }

    async fn head_of(&self, instance_id: &str) -> Result<Option<Head>> {
        let sql = "SELECT next_sequence, tree_size, frontier FROM audit_log_heads WHERE instance_id = $1";
        let rows = self.read(sql, vec![instance_id.into()]).await?;
        let head = rows.first().map(|row| {
            Head::new(row.try_get_by_index(0)?, row.try_get_by_index(1)?, row.try_get_by_index::<Vec<u8>>(2)?)
        });
        head.transpose()
    }

    /// Leaf hashes of entries that are committed, from the entries themselves.
    async fn recomputed_leaves(&self, instance_id: &str, sequences: Range<u64>) -> Result<Vec<Hash>> {
        let mut leaves = Vec::new();
        let mut walk = LogWalk::new(&Access::unrestricted(), instance_id, sequences.start, sequences.end);
        let mut next = sequences.start;
        loop {
            let rows = walk.next(self).await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                let leaf = canonical::leaf_hash(&row.canonical);
                if row.sequence != next || row.leaf_hash != leaf {
                    return Err(damaged(instance_id, &format!("entry {next} is missing or was changed")));
                }
                leaves.push(leaf);
                next += 1;
            }
        }
        if next != sequences.end {
            return Err(damaged(instance_id, &format!("entry {next} is missing")));
        }
        Ok(leaves)
    }

    /// The tree that a reader sees of a log; `None` of a log without entries.
    pub async fn tree_head(&self, access: &Access, instance_id: &str) -> Result<Option<TreeHead>> {
        if !access.has_instance(instance_id) {
            return Ok(None);
        }
        let head = self.head_of(instance_id).await?.filter(|head| head.tree_size > 0);
        head.map(|head| head.tree_head(instance_id)).transpose()
    }

    /// The first `width` hashes of a tile; `None` where it has fewer.
    pub async fn tile(&self, access: &Access, instance_id: &str, id: TileId, width: u64) -> Result<Option<Tile>> {
        if !access.has_instance(instance_id) || !(1..=WIDTH).contains(&width) {
            return Ok(None);
        }
        self.tile_by(self.reader(), instance_id, id, width).await
    }

    async fn tile_by(
        &self,
        db: &impl ConnectionTrait,
        instance_id: &str,
        id: TileId,
        width: u64,
    ) -> Result<Option<Tile>> {
        let sql = "SELECT hashes FROM audit_tiles WHERE instance_id = $1 AND level = $2 AND tile = $3";
        let values = vec![instance_id.into(), i16::from(id.level).into(), signed(id.index).into()];
        let mut hashes = match db.query_one_raw(self.statement(sql, values)).await? {
            Some(row) => {
                let tile = Tile::from_bytes(&row.try_get_by_index::<Vec<u8>>(0)?);
                let full = tile.ok().filter(Tile::is_full);
                let full = full.ok_or_else(|| damaged(instance_id, &format!("{id:?} has not 256 hashes")))?;
                full.hashes().to_vec()
            }
            None => self.partial_tile(db, instance_id, id, width).await?,
        };
        if (hashes.len() as u64) < width {
            return Ok(None);
        }
        hashes.truncate(width as usize);
        Tile::new(hashes).map(Some).map_err(Error::internal)
    }

    async fn partial_tile(
        &self,
        db: &impl ConnectionTrait,
        instance_id: &str,
        id: TileId,
        width: u64,
    ) -> Result<Vec<Hash>> {
        let places = id.places();
        let (first, end) = (signed(places.start), signed(places.start.saturating_add(width)));
        let (sql, values) = match id.level.checked_sub(1) {
            None => (LEAVES, vec![instance_id.into(), first.into(), end.into()]),
            Some(below) => (
                "SELECT root FROM audit_tiles WHERE instance_id = $1 AND tile >= $2 AND tile < $3 AND level = $4 \
                 ORDER BY tile",
                vec![instance_id.into(), first.into(), end.into(), i16::from(below).into()],
            ),
        };
        let rows = db.query_all_raw(self.statement(sql, values)).await?;
        rows.iter()
            .map(|row| {
                let wrong = |_| damaged(instance_id, &format!("a hash of {id:?} has not 32 bytes"));
                hash(row.try_get_by_index(0)?).map_err(wrong)
            })
            .collect()
    }

    /// The tiles that a proof needs; those that are not there are left out, and missed by the proof.
    pub async fn tiles(&self, access: &Access, instance_id: &str, plan: &Plan) -> Result<TileSet> {
        match access.has_instance(instance_id) {
            true => self.tiles_by(self.reader(), instance_id, plan).await,
            false => Ok(TileSet::default()),
        }
    }

    pub(super) async fn tiles_by(&self, db: &impl ConnectionTrait, instance_id: &str, plan: &Plan) -> Result<TileSet> {
        let mut tiles = TileSet::default();
        for id in plan.tiles() {
            let width = id.width(plan.size());
            if (1..=WIDTH).contains(&width)
                && let Some(tile) = self.tile_by(db, instance_id, id, width).await?
            {
                tiles.insert(id, tile);
            }
        }
        Ok(tiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(from: u64, to: u64) -> Vec<Hash> {
        (from..to).map(|at| crate::merkle::leaf_hash(&at.to_be_bytes())).collect()
    }

    fn head(size: u64) -> Head {
        let frontier: Frontier = leaves(0, size).into_iter().collect();
        Head { next_sequence: size, tree_size: size, frontier: frontier.to_bytes(), kept_from_us: 0, recorded_us: 0 }
    }

    #[test]
    fn leaves_are_asked_for_only_where_a_tile_may_get_full() {
        for (size, most, missing) in [
            (0, 255, None),
            (0, 256, None),
            (3, 252, None),
            (3, 253, Some(0..3)),
            (256, 1_000, None),
            (600, 100, None),
            (600, 168, Some(512..600)),
        ] {
            assert_eq!(Growth::new("i", &head(size), most).unwrap().missing(), missing, "{size} and {most}");
        }
    }

    #[test]
    fn a_tree_grows_to_the_same_whatever_the_steps() {
        let mut tiles = Vec::new();
        let mut now = head(0);
        for step in [1, 254, 1, 1, 300, 0, 900, 255, 256] {
            let from = now.tree_size;
            let mut tree = Growth::new("i", &now, step).unwrap();
            if let Some(missing) = tree.missing() {
                tree.load("i", leaves(missing.start, missing.end)).unwrap();
            }
            leaves(from, from + step).into_iter().for_each(|leaf| tree.push(leaf).unwrap());
            assert_eq!(tree.has_grown(), step > 0);
            tiles.extend(tree.full().iter().map(|full| (full.id.index, full.tile.clone(), full.root)));
            now = tree.head(tree.size());
            assert_eq!(now, head(from + step));
        }
        let tile = |index: u64| Tile::new(leaves(index * 256, index * 256 + 256)).unwrap();
        let expected: Vec<_> = (0..now.tree_size / 256).map(|index| (index, tile(index), tile(index).root())).collect();
        assert_eq!(tiles, expected);
    }

    #[test]
    fn nothing_is_written_on_top_of_what_does_not_fit() {
        let mut tree = Growth::new("i", &head(600), 1_000).unwrap();
        assert!(tree.load("i", leaves(512, 599)).is_err());
        assert!(tree.load("i", leaves(511, 599)).is_err());
        let mut changed = leaves(512, 600);
        changed[0][0] ^= 1;
        let error = tree.load("i", changed).unwrap_err();
        assert!(format!("{error:?}").contains("last 88 entries"), "{error:?}");
        for wrong in [
            Head { frontier: Vec::new(), ..head(600) },
            Head { tree_size: 601, ..head(600) },
            Head { next_sequence: 599, ..head(600) },
        ] {
            assert!(Growth::new("i", &wrong, 1).is_err(), "{wrong:?}");
        }
    }
}
