//! Writing: many batches in one transaction, gapless sequences, every event once.
//!
//! ```text
//! lock the heads of all instances      in order, so that two replicas never wait for each other in a ring; with
//!                                      the head comes the tree that stands below it
//! look the ids up                      known with the same content: a duplicate; with other content: a conflict
//! lock the producers' numbers          a number that is there came with another id: a conflict; that of a duplicate is
//!                                      taken too, or what was sent again under another number would be missing
//! give sequences, finish the hashes,┐  only to what is stored, so that no number is lost
//! grow the trees                    │
//! insert                            ┘  piece by piece: while the database takes one, the next is made
//! insert the tiles that got full
//! move the heads, commit               on a failure nothing is stored and the group is tried again
//! ```
//!
//! A writer that holds a head is the only one that gives that instance's numbers, and a head that can be read is
//! committed: every entry below it is there, and none below it will ever come.
//!
//! The same id on two replicas at once: both have the instance's head to wait for, so the second finds the first's
//! entry. With two instances (a conflict) the unique index refuses the second, whose whole transaction is tried again
//! and then finds it.

mod postgres;
mod sqlite;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use service_core::clock;
use service_core::database::Engine;
use service_core::error::{Error, Reason, Result, Violation};
use service_core::numbers::Numbers;
use uuid::Uuid;

use super::told::Told;
use super::tree::{FullTile, Growth, Head, damaged_log, tile_above};
use super::{Heads, Store};
use crate::event::{Dropped, Event, Producer};
use crate::ingest::{Batch, Prepared};
use crate::merkle::{Hash, TileId};
use crate::numbers::NumberBlock;
use crate::time::rfc3339;

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventResult {
    /// It is in the log.
    Stored {
        /// Where.
        sequence: u64,
        /// Its leaf hash.
        leaf_hash: Hash,
        /// Whether it was there already.
        duplicate: bool,
    },
    /// It is not, and trying again does not help.
    Rejected(Violation),
}

/// What became of a group.
#[derive(Debug)]
pub struct Written {
    /// For each batch, for each of its events.
    pub results: Vec<Vec<EventResult>>,
    /// The heads that moved.
    pub heads: Heads,
}

/// An id that is in the log already.
#[derive(Debug, Clone)]
struct Known {
    content_hash: [u8; 32],
    sequence: u64,
    leaf_hash: Hash,
}

/// A row to insert.
struct NewRow<'a> {
    event: &'a Prepared,
    sequence: u64,
    leaf_hash: Hash,
    canonical: String,
}

/// The events of a group in their order, as they are settled.
struct Settling<'a> {
    group: Group,
    now_us: i64,
    events: Box<dyn Iterator<Item = (&'a Prepared, &'a str)> + Send + 'a>,
    results: Vec<EventResult>,
}

impl<'a> Settling<'a> {
    /// The next rows, up to so many; none when every event is settled.
    fn rows(&mut self, most: usize) -> Result<Vec<NewRow<'a>>> {
        let mut rows = Vec::with_capacity(most);
        while rows.len() < most
            && let Some((event, recorded_by)) = self.events.next()
        {
            let (result, row) = self.group.settle(event, recorded_by, self.now_us)?;
            self.results.push(result);
            rows.extend(row);
        }
        Ok(rows)
    }
}

/// A value in a statement that is the same on both engines.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bind<'a> {
    Text(&'a str),
    Int(i64),
    Bytes(&'a [u8]),
    Id(Uuid),
}

/// The statements of one transaction.
pub(super) enum Transaction {
    Sqlite(sqlite::Transaction),
    Postgres(postgres::Transaction),
}

/// Calls the same statement on whichever engine it is.
macro_rules! on_engine {
    ($transaction:expr, $inner:ident => $call:expr) => {
        match $transaction {
            Transaction::Sqlite($inner) => $call,
            Transaction::Postgres($inner) => $call,
        }
    };
}

impl Store {
    /// Writes a group in one transaction; when it returns, all that it reports as stored is durable.
    ///
    /// Writing the same again changes nothing, so a group whose outcome is not known may be tried again.
    pub async fn write(&self, batches: &[Batch]) -> Result<Written> {
        self.write_all(&batches.iter().collect::<Vec<_>>(), None).await
    }

    /// Writes an entry of the service's own, and in the same transaction what the entry tells of. Where that is not so
    /// any more, nothing is written: [`Error::Contention`].
    pub async fn write_told(&self, event: Event, recorded_by: &str, told: &Told<'_>) -> Result<(u64, Heads)> {
        let batch = Batch { events: vec![event.into()], recorded_by: recorded_by.to_owned(), ..Batch::default() };
        let written = self.write_all(&[&batch], Some(told)).await?;
        match written.results.first().and_then(|results| results.first()) {
            Some(EventResult::Stored { sequence, .. }) => Ok((*sequence, written.heads)),
            other => Err(Error::internal(anyhow::anyhow!("an entry of our own was not stored: {other:?}"))),
        }
    }

    /// The same, but batches with events of a log that is damaged are answered with that, and keep no others from being
    /// stored. Where all are, none is written.
    pub async fn write_sound(&self, batches: &[Batch]) -> Result<(Vec<Result<Vec<EventResult>>>, Heads)> {
        let mut damaged: Vec<Option<Error>> = vec![None; batches.len()];
        loop {
            let sound = batches.iter().zip(&damaged).filter(|(_, damaged)| damaged.is_none());
            let sound: Vec<&Batch> = sound.map(|(batch, _)| batch).collect();
            let error = match self.write_all(&sound, None).await {
                Ok(Written { results, heads }) => {
                    let mut results = results.into_iter();
                    let result = |damaged: Option<Error>| match damaged {
                        Some(error) => Err(error),
                        None => Ok(results.next().unwrap_or_default()),
                    };
                    return Ok((damaged.into_iter().map(result).collect(), heads));
                }
                Err(error) => error,
            };
            let of_log = |batch: &Batch| {
                let log = damaged_log(&error);
                log.is_some_and(|log| batch.events.iter().any(|event| event.instance_id == log))
            };
            let before = damaged.iter().flatten().count();
            for (batch, damaged) in batches.iter().zip(&mut damaged) {
                if damaged.is_none() && of_log(batch) {
                    *damaged = Some(error.clone());
                }
            }
            let now = damaged.iter().flatten().count();
            if now == before || now == batches.len() {
                return Err(error);
            }
            tracing::error!(%error, cause = ?std::error::Error::source(&error), "events are refused; those of other logs are stored");
        }
    }

    async fn write_all<'a>(&self, batches: &'a [&'a Batch], told: Option<&Told<'_>>) -> Result<Written> {
        let events = || batches.iter().flat_map(|batch| &batch.events);
        let instances: BTreeSet<&str> = events().map(|event| event.instance_id.as_str()).collect();
        let dropped: Vec<&Dropped> = batches.iter().flat_map(|batch| &batch.dropped).collect();
        if instances.is_empty() && dropped.is_empty() {
            return Ok(Written { results: batches.iter().map(|_| Vec::new()).collect(), heads: Heads::new() });
        }

        let (mut transaction, heads) = self.begin_at(&instances).await?;
        let now_us = clock::now_us();
        let mut group = Group::default();
        if !instances.is_empty() {
            let ids: Vec<Uuid> = events().map(|event| event.id).collect();
            let blocks: BTreeSet<NumberBlock> = blocks_of(events());
            // An entry of our own is of now, wherever a clock was that stepped.
            let kept_from = heads.iter().filter(|(_, head)| head.kept_from_us > 0 && told.is_none());
            group.kept_from = kept_from.map(|(instance, head)| (instance.clone(), head.kept_from_us)).collect();
            group.trees = transaction.trees(&heads, events()).await?;
            group.known = on_engine!(&mut transaction, inner => inner.known(&ids).await)?;
            group.numbers = on_engine!(&mut transaction, inner => inner.lock_numbers(&blocks).await)?;
        }
        let by_writer = |batch: &'a Batch| batch.events.iter().map(|event| (event, batch.recorded_by.as_str()));
        let events = Box::new(batches.iter().copied().flat_map(by_writer));
        let mut settling = Settling { group, now_us, events, results: Vec::new() };
        on_engine!(&mut transaction, inner => inner.insert(&mut settling).await)?;

        let Settling { group: Group { trees, numbers, counted, .. }, results, .. } = settling;
        let heads = transaction.save_trees(&trees).await?;
        let numbers: Vec<(&NumberBlock, Vec<u8>)> = numbers
            .iter()
            .filter(|(block, _)| counted.contains(*block))
            .map(|(block, numbers)| (block, numbers.to_bytes()))
            .collect();
        on_engine!(&mut transaction, inner => {
            if !numbers.is_empty() {
                inner.save_numbers(&numbers, now_us).await?;
            }
            if !dropped.is_empty() {
                inner.save_dropped(&dropped, now_us).await?;
            }
        });
        if let Some(told) = told
            && let Some(EventResult::Stored { sequence, .. }) = results.first()
            && !transaction.tell(told, *sequence, now_us).await?
        {
            on_engine!(transaction, inner => inner.rollback().await)?;
            return Err(Error::Contention(Arc::new(anyhow::anyhow!("what an entry would tell was done meanwhile"))));
        }
        on_engine!(transaction, inner => inner.commit().await)?;
        let mut results = results.into_iter();
        let results = batches.iter().map(|batch| results.by_ref().take(batch.events.len()).collect()).collect();
        Ok(Written { results, heads })
    }

    async fn begin(&self) -> Result<Transaction> {
        Ok(match self.db.engine {
            Engine::Sqlite => Transaction::Sqlite(sqlite::Transaction::begin(&self.db.writer).await?),
            Engine::Postgres => Transaction::Postgres(postgres::Transaction::begin(&self.db.writer).await?),
        })
    }

    /// A transaction that holds the heads of these logs. A tree that is behind its log is built first: while this
    /// program begins to serve, one that knows of no trees may still write.
    async fn begin_at(&self, instances: &BTreeSet<&str>) -> Result<(Transaction, BTreeMap<String, Head>)> {
        loop {
            let mut transaction = self.begin().await?;
            if instances.is_empty() {
                return Ok((transaction, BTreeMap::new()));
            }
            let heads = on_engine!(&mut transaction, inner => inner.lock_heads(instances).await)?;
            self.refuse_lost(&heads)?;
            let Some(behind) = heads.iter().find(|(_, head)| head.tree_size < head.next_sequence) else {
                return Ok((transaction, heads));
            };
            on_engine!(transaction, inner => inner.rollback().await)?;
            self.build_tree(behind.0).await?;
        }
    }

    /// Adds leaves to a tree that is behind its log, unless somebody else has.
    pub(super) async fn grow(&self, instance_id: &str, seen: &Head, leaves: Vec<Hash>) -> Result<()> {
        let mut transaction = self.begin().await?;
        let instances = BTreeSet::from([instance_id]);
        let heads = on_engine!(&mut transaction, inner => inner.lock_heads(&instances).await)?;
        match heads.get(instance_id) {
            Some(head) if head.tree_size == seen.tree_size => {
                let next_sequence = head.next_sequence;
                let mut tree = Growth::new(instance_id, head, leaves.len() as u64)?;
                transaction.load(std::iter::once((instance_id, &mut tree))).await?;
                leaves.into_iter().try_for_each(|leaf| tree.push(leaf))?;
                transaction.save_tiles(&[(instance_id, &tree)]).await?;
                let head = tree.head(next_sequence);
                on_engine!(&mut transaction, inner => inner.save_heads(&[(instance_id, head)]).await)?;
                on_engine!(transaction, inner => inner.commit().await)
            }
            _ => on_engine!(transaction, inner => inner.rollback().await),
        }
    }
}

impl Transaction {
    /// Runs a statement that is the same on both engines; how many rows it changed.
    pub(super) async fn run(&mut self, sql: &'static str, values: &[Bind<'_>]) -> Result<u64> {
        on_engine!(self, inner => inner.run(sql, values).await)
    }

    /// The trees of these heads, ready to take the events.
    async fn trees<'a>(
        &mut self,
        heads: &BTreeMap<String, Head>,
        events: impl Iterator<Item = &'a Prepared>,
    ) -> Result<BTreeMap<String, Growth>> {
        let mut most: HashMap<&str, u64> = HashMap::new();
        for event in events {
            *most.entry(&event.instance_id).or_default() += 1;
        }
        let tree = |(instance, head): (&String, &Head)| {
            let most = most.get(instance.as_str()).copied().unwrap_or(0);
            Ok((instance.clone(), Growth::new(instance, head, most)?))
        };
        let mut trees = heads.iter().map(tree).collect::<Result<BTreeMap<_, _>>>()?;
        self.load(trees.iter_mut().map(|(instance, tree)| (instance.as_str(), tree))).await?;
        Ok(trees)
    }

    /// Gives trees the leaves that they must have before they take others.
    async fn load<'a>(&mut self, trees: impl Iterator<Item = (&'a str, &'a mut Growth)>) -> Result<()> {
        let mut missing = Vec::new();
        let mut trees: Vec<(&str, &mut Growth)> = trees
            .filter_map(|(instance, tree)| {
                missing.push((instance, tree.missing()?));
                Some((instance, tree))
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut leaves = on_engine!(self, inner => inner.leaves(&missing).await)?;
        trees
            .iter_mut()
            .try_for_each(|(instance, tree)| tree.load(instance, leaves.remove(*instance).unwrap_or_default()))
    }

    /// Stores what has grown; the heads that moved.
    async fn save_trees(&mut self, trees: &BTreeMap<String, Growth>) -> Result<Heads> {
        let grown: Vec<(&str, &Growth)> = trees
            .iter()
            .filter(|(_, tree)| tree.has_grown())
            .map(|(instance, tree)| (instance.as_str(), tree))
            .collect();
        if grown.is_empty() {
            return Ok(Heads::new());
        }
        self.save_tiles(&grown).await?;
        let heads: Vec<(&str, Head)> =
            grown.iter().map(|(instance, tree)| (*instance, tree.head(tree.size()))).collect();
        on_engine!(self, inner => inner.save_heads(&heads).await)?;
        Ok(grown.into_iter().map(|(instance, tree)| (instance.to_owned(), tree.size())).collect())
    }

    /// Inserts the tiles that got full, level by level: those above the leaves are made of what is stored below.
    async fn save_tiles(&mut self, grown: &[(&str, &Growth)]) -> Result<()> {
        let of_leaves: Vec<(&str, &FullTile)> =
            grown.iter().flat_map(|(instance, tree)| tree.full().iter().map(|full| (*instance, full))).collect();
        if of_leaves.is_empty() {
            return Ok(());
        }
        on_engine!(self, inner => inner.insert_tiles(&of_leaves).await)?;
        for (instance, tree) in grown {
            let ids = (1..).map(|level| (level, tree.completed(level))).take_while(|(_, tiles)| !tiles.is_empty());
            for id in ids.flat_map(|(level, tiles)| tiles.map(move |index| TileId { level, index })) {
                let below = id.level - 1;
                let roots = on_engine!(self, inner => inner.roots(instance, below, id.places()).await)?;
                let full = tile_above(instance, id, roots)?;
                on_engine!(self, inner => inner.insert_tiles(&[(instance, &full)]).await)?;
            }
        }
        Ok(())
    }
}

/// The blocks of numbers that events have, each once. Most events of a group have the producer of the one before.
fn blocks_of<'a>(events: impl Iterator<Item = &'a Prepared>) -> BTreeSet<NumberBlock> {
    let mut blocks = BTreeSet::new();
    let mut last: Option<NumberBlock> = None;
    for producer in events.filter_map(|event| event.producer.as_ref()) {
        if !last.as_ref().is_some_and(|last| last.holds(producer)) {
            let block = NumberBlock::of(producer);
            blocks.insert(block.clone());
            last = Some(block);
        }
    }
    blocks
}

/// What the group knows while it decides, event by event, in order.
#[derive(Default)]
struct Group {
    /// Of logs of which something was let go: what occurred before.
    kept_from: BTreeMap<String, i64>,
    /// Of each log of the group.
    trees: BTreeMap<String, Growth>,
    /// Ids that were there before, and those that the group has stored.
    known: HashMap<Uuid, Known>,
    numbers: BTreeMap<NumberBlock, Numbers>,
    /// Blocks to which numbers were added.
    counted: BTreeSet<NumberBlock>,
}

impl Group {
    /// What becomes of an event, and the row that it makes if it is new.
    fn settle<'a>(
        &mut self,
        event: &'a Prepared,
        recorded_by: &str,
        now_us: i64,
    ) -> Result<(EventResult, Option<NewRow<'a>>)> {
        if let Some(known) = self.known.get(&event.id) {
            if known.content_hash == event.prefix.content_hash {
                let (sequence, leaf_hash) = (known.sequence, known.leaf_hash);
                // Its number here may be another than before: of that one too it is known what became. If it is
                // somebody else's, theirs it stays.
                if let Some(producer) = &event.producer {
                    self.count(producer);
                }
                return Ok((EventResult::Stored { sequence, leaf_hash, duplicate: true }, None));
            }
            let message = format!("id {} is known with other content, which stays; an id is for one event", event.id);
            return Ok((EventResult::Rejected(Violation::new(Reason::IdConflict, "id", message)), None));
        }
        if let Some(kept_from_us) = self.kept_from.get(&event.instance_id).filter(|us| event.occurred_at_us < **us) {
            let message = format!(
                "occurred_at is {}, and of this log what occurred before {} was archived; allowed is that time or later",
                rfc3339(event.occurred_at_us),
                rfc3339(*kept_from_us)
            );
            let violation = Violation::new(Reason::BeforeRetention, "occurred_at", message);
            return Ok((EventResult::Rejected(violation), None));
        }
        if let Some(producer) = &event.producer
            && !self.count(producer)
        {
            let message = format!(
                "producer.sequence {} of producer {:?}, epoch {}, came with another id; a number is for one event",
                producer.sequence, producer.id, producer.epoch
            );
            let violation = Violation::new(Reason::ProducerConflict, "producer.sequence", message);
            return Ok((EventResult::Rejected(violation), None));
        }
        let tree = self
            .trees
            .get_mut(&event.instance_id)
            .ok_or_else(|| Error::internal(anyhow::anyhow!("no head was locked for an instance of the group")))?;
        let sequence = tree.size();
        let (canonical, leaf_hash) = event.prefix.finish(sequence, tree.recorded_us(now_us), recorded_by);
        tree.push(leaf_hash)?;
        let content_hash = event.prefix.content_hash;
        self.known.insert(event.id, Known { content_hash, sequence, leaf_hash });
        let result = EventResult::Stored { sequence, leaf_hash, duplicate: false };
        Ok((result, Some(NewRow { event, sequence, leaf_hash, canonical })))
    }

    /// Takes a producer's number; whether it was free.
    fn count(&mut self, producer: &Producer) -> bool {
        let block = NumberBlock::of(producer);
        if !self.numbers.entry(block.clone()).or_default().insert(producer.sequence) {
            return false;
        }
        self.counted.insert(block);
        true
    }
}
