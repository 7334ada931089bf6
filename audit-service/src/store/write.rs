//! Writing: many batches in one transaction, gapless sequences, every event once.
//!
//! ```text
//! lock the heads of all instances      in order, so that two replicas never wait for each other in a ring
//! look the ids up                      known with the same content: a duplicate; with other content: a conflict
//! lock the producers' numbers          a number that is there came with another id: a conflict
//! give sequences, finish the hashes ┐  only to what is stored, so that no number is lost
//! insert                            ┘  piece by piece: while the database takes one, the next is made
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

use service_core::clock;
use service_core::database::Engine;
use service_core::error::{Error, Reason, Result, Violation};
use service_core::numbers::Numbers;
use uuid::Uuid;

use super::{Heads, Store};
use crate::event::{Dropped, Producer};
use crate::ingest::{Batch, Prepared};
use crate::numbers::NumberBlock;

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventResult {
    /// It is in the log.
    Stored {
        /// Where.
        sequence: u64,
        /// Its leaf hash.
        leaf_hash: [u8; 32],
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
    leaf_hash: [u8; 32],
}

/// A row to insert.
struct NewRow<'a> {
    event: &'a Prepared,
    sequence: u64,
    leaf_hash: [u8; 32],
    canonical: String,
}

/// The events of a group in their order, as they are settled.
struct Settling<'a> {
    group: Group<'a>,
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

/// The statements of one transaction.
enum Transaction {
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
    pub async fn write<'a>(&self, batches: &'a [Batch]) -> Result<Written> {
        let events = || batches.iter().flat_map(|batch| &batch.events);
        let instances: BTreeSet<&str> = events().map(|event| event.instance_id.as_str()).collect();
        let dropped: Vec<&Dropped> = batches.iter().flat_map(|batch| &batch.dropped).collect();
        if instances.is_empty() && dropped.is_empty() {
            return Ok(Written { results: batches.iter().map(|_| Vec::new()).collect(), heads: Heads::new() });
        }

        let mut transaction = self.begin().await?;
        let now_us = clock::now_us();
        let mut group = Group::default();
        if !instances.is_empty() {
            let ids: Vec<Uuid> = events().map(|event| event.id).collect();
            let blocks: BTreeSet<NumberBlock> = blocks_of(events());
            group.heads = on_engine!(&mut transaction, inner => inner.lock_heads(&instances).await)?;
            group.known = on_engine!(&mut transaction, inner => inner.known(&ids).await)?;
            group.numbers = on_engine!(&mut transaction, inner => inner.lock_numbers(&blocks).await)?;
        }
        let by_writer = |batch: &'a Batch| batch.events.iter().map(|event| (event, batch.recorded_by.as_str()));
        let events = Box::new(batches.iter().flat_map(by_writer));
        let mut settling = Settling { group, now_us, events, results: Vec::new() };
        on_engine!(&mut transaction, inner => inner.insert(&mut settling).await)?;

        let Settling { group: Group { heads, numbers, moved, counted, .. }, results, .. } = settling;
        let heads: Heads = heads.into_iter().filter(|(instance, _)| moved.contains(instance.as_str())).collect();
        let numbers: Vec<(&NumberBlock, Vec<u8>)> = numbers
            .iter()
            .filter(|(block, _)| counted.contains(*block))
            .map(|(block, numbers)| (block, numbers.to_bytes()))
            .collect();
        on_engine!(&mut transaction, inner => {
            if !heads.is_empty() {
                inner.save_heads(&heads).await?;
                inner.save_numbers(&numbers).await?;
            }
            if !dropped.is_empty() {
                inner.save_dropped(&dropped, now_us).await?;
            }
        });
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
struct Group<'a> {
    heads: BTreeMap<String, u64>,
    /// Ids that were there before, and those that the group has stored.
    known: HashMap<Uuid, Known>,
    numbers: BTreeMap<NumberBlock, Numbers>,
    /// Instances whose heads moved.
    moved: BTreeSet<&'a str>,
    /// Blocks to which numbers were added.
    counted: BTreeSet<NumberBlock>,
}

impl<'a> Group<'a> {
    /// What becomes of an event, and the row that it makes if it is new.
    fn settle(
        &mut self,
        event: &'a Prepared,
        recorded_by: &str,
        now_us: i64,
    ) -> Result<(EventResult, Option<NewRow<'a>>)> {
        if let Some(known) = self.known.get(&event.id) {
            if known.content_hash == event.prefix.content_hash {
                let (sequence, leaf_hash) = (known.sequence, known.leaf_hash);
                return Ok((EventResult::Stored { sequence, leaf_hash, duplicate: true }, None));
            }
            let message = format!("id {} is known with other content, which stays; an id is for one event", event.id);
            return Ok((EventResult::Rejected(Violation::new(Reason::IdConflict, "id", message)), None));
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
        let head = self
            .heads
            .get_mut(&event.instance_id)
            .ok_or_else(|| Error::internal(anyhow::anyhow!("no head was locked for an instance of the group")))?;
        let sequence = *head;
        *head += 1;
        self.moved.insert(&event.instance_id);
        let (canonical, leaf_hash) = event.prefix.finish(sequence, now_us, recorded_by);
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

/// A hash column, which has 32 bytes unless somebody changed the database.
fn hash(bytes: Vec<u8>) -> Result<[u8; 32]> {
    <[u8; 32]>::try_from(bytes)
        .map_err(|bytes| Error::internal(anyhow::anyhow!("a stored hash has {} bytes, not 32", bytes.len())))
}
