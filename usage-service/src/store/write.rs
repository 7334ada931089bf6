//! Writing: all batches of a group in one transaction.
//!
//! ```text
//! what rows refer to            in the order of their keys
//! lock the producers' numbers   in order
//! look up contested events      those whose number is taken, or wanted twice in the group
//! insert                        ON CONFLICT DO NOTHING, many a statement, in the order of the ids
//! look up what was skipped      mostly nothing: the count says so
//! numbers, delta, commit        of what was accepted
//! ```
//!
//! What becomes of an event:
//!
//! ```text
//! before the horizon of retention     known or not                 BeforeRetention
//! known, same content hash            it was there                 Duplicate
//! known, other content hash           its id was taken             IdConflict
//! new, and its number is not          another event's              ProducerConflict
//! new                                                              Accepted
//! ```
//!
//! A repeat takes its number too, if it is free: what is sent again under another
//! number is not missing. Of events with one id in one group the first is written; the others are compared with it, and
//! written in another round if it was not stored. Of new events with one producer's
//! number in one group, the one with the lowest id is kept.
//!
//! All replicas take locks in one order, whatever they write, so that two that write
//! the same wait for each other and don't deadlock: rows that are referred to, blocks
//! of numbers, then requests, each by its key.
//!
//! What rows refer to is written anew with every group, before the rows. To keep
//! in memory what is there already would outlive a database that goes back behind
//! it (a failover to a replica that lagged, a restored backup), and leave rows
//! whose charge never comes.

mod columns;
mod postgres;
mod sqlite;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use service_core::clock;
use service_core::database::Engine;
use service_core::error::{Error, Result};
use service_core::numbers::{Numbers, block_of};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::Store;
use crate::model::{Charge, DroppedRange, NewRequest, Outcome};
use crate::rollup::Summing;

/// Ids in one lookup.
const LOOKUP: usize = 1_000;

/// What one call or one message of a stream brings.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events that passed the checks.
    pub requests: Vec<NewRequest>,
    /// What producers say they have dropped.
    pub dropped: Vec<DroppedRange>,
    /// Who writes them: the name that was authenticated, if any was.
    pub recorded_by: String,
}

/// A row as it goes in.
struct Row<'a> {
    request: &'a NewRequest,
    recorded_by: &'a str,
    charge_ref: i64,
    producer_ref: Option<i64>,
}

/// A block of a producer's numbers: the reference of the producer, and which.
type NumberBlock = (i64, i64);

/// What all rows of a transaction share.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    recorded_at_us: i64,
    commit_number: i64,
    /// What happened before is removed, or is going to be.
    kept_from_us: i64,
}

/// What is known of an id.
struct Known {
    content_hash: Vec<u8>,
    commit_number: i64,
}

/// Rows that others refer to, by their reference.
#[derive(Default)]
struct References<'a> {
    charges: BTreeMap<i64, &'a Charge>,
    /// The references of those charges: a hash of a few texts is far quicker than theirs.
    by_texts: HashMap<[&'a str; 5], i64>,
    /// The last producer, and its reference.
    producer: Option<((&'a str, i64), i64)>,
    producers: BTreeMap<i64, (&'a str, i64)>,
    dropped: BTreeSet<(i64, i64, i64)>,
}

/// One open transaction, of either engine.
enum Transaction {
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
}

impl Store {
    /// Stores all batches in one transaction; when this returns they are durable.
    /// One outcome for each event. Writing the same batches again stores nothing.
    pub async fn write(&self, batches: &[Batch]) -> Result<Vec<Vec<Outcome>>> {
        let mut references = References::default();
        let mut rows: Vec<Row<'_>> = Vec::with_capacity(batches.iter().map(|batch| batch.requests.len()).sum());
        for batch in batches {
            rows.extend(batch.requests.iter().map(|request| references.row(request, &batch.recorded_by)));
        }
        for range in batches.iter().flat_map(|batch| &batch.dropped) {
            references.dropped(range);
        }
        let mut outcomes = Vec::new();
        if !rows.is_empty() || !references.dropped.is_empty() {
            self.make_partitions_of(rows.iter().map(|row| row.request.event.id)).await;
            let (mut transaction, stamp) = self.begin().await?;
            transaction.write_references(&references, stamp).await?;
            let blocks = rows.iter().filter_map(|row| row.number().map(|(block, _)| block)).collect();
            let numbers = transaction.lock_numbers(&blocks).await?;
            let mut group = Group::new(&rows, numbers, stamp.kept_from_us);
            transaction.write_rows(&mut group, stamp).await?;
            group.count_repeats();
            transaction.save_numbers(&group.counted(), stamp).await?;
            if let Some(delta) = group.delta() {
                transaction.insert_delta(stamp.commit_number, delta).await?;
            }
            outcomes = group.outcomes;
            transaction.commit().await?;
        }
        let mut outcomes = outcomes.into_iter();
        Ok(batches.iter().map(|batch| outcomes.by_ref().take(batch.requests.len()).collect()).collect())
    }

    async fn begin(&self) -> Result<(Transaction, Stamp)> {
        let (transaction, commit_number, kept_from_us) = match self.db.engine {
            Engine::Sqlite => {
                let pool = self.db.writer.get_sqlite_connection_pool();
                let (transaction, number, kept_from_us) = sqlite::begin(pool).await?;
                (Transaction::Sqlite(transaction), number, kept_from_us)
            }
            Engine::Postgres => {
                let (transaction, number, kept_from_us) = postgres::begin(&self.db.writer).await?;
                (Transaction::Postgres(transaction), number, kept_from_us)
            }
        };
        let stamp = Stamp { recorded_at_us: clock::now_us(), commit_number, kept_from_us };
        Ok((transaction, stamp))
    }
}

impl Transaction {
    async fn write_references(&mut self, references: &References<'_>, stamp: Stamp) -> Result<()> {
        match self {
            Self::Sqlite(transaction) => sqlite::references(transaction, references, stamp).await,
            Self::Postgres(transaction) => postgres::references(transaction, references, stamp).await,
        }
    }

    /// How many of these rows went in. They are summed up while the database is at work.
    async fn insert<'a>(&mut self, rows: &[&'a Row<'a>], stamp: Stamp, sums: &mut Summing<'a>) -> Result<u64> {
        match self {
            Self::Sqlite(transaction) => sqlite::insert(transaction, rows, stamp, sums).await,
            Self::Postgres(transaction) => postgres::insert(transaction, rows, stamp, sums).await,
        }
    }

    async fn lookup(&mut self, ids: &[Uuid], known: &mut HashMap<Uuid, Known>) -> Result<()> {
        match self {
            Self::Sqlite(transaction) => sqlite::lookup(transaction, ids, known).await,
            Self::Postgres(transaction) => postgres::lookup(transaction, ids, known).await,
        }
    }

    async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await?,
            Self::Postgres(transaction) => transaction.commit().await?,
        }
        Ok(())
    }

    /// The numbers that these blocks hold, locked until the transaction ends.
    async fn lock_numbers(&mut self, blocks: &BTreeSet<NumberBlock>) -> Result<BTreeMap<NumberBlock, Numbers>> {
        match self {
            _ if blocks.is_empty() => Ok(BTreeMap::new()),
            Self::Sqlite(transaction) => sqlite::lock_numbers(transaction, blocks).await,
            Self::Postgres(transaction) => postgres::lock_numbers(transaction, blocks).await,
        }
    }

    async fn save_numbers(&mut self, blocks: &[(NumberBlock, Vec<u8>)], stamp: Stamp) -> Result<()> {
        match self {
            _ if blocks.is_empty() => Ok(()),
            Self::Sqlite(transaction) => sqlite::save_numbers(transaction, blocks, stamp).await,
            Self::Postgres(transaction) => postgres::save_numbers(transaction, blocks, stamp).await,
        }
    }

    async fn insert_delta(&mut self, commit_number: i64, delta: Vec<u8>) -> Result<()> {
        let sql = "INSERT INTO usage_deltas (commit_number, data) VALUES ($1, $2)";
        match self {
            Self::Sqlite(transaction) => {
                sqlx::query(sql).bind(commit_number).bind(delta).execute(&mut **transaction).await?;
            }
            Self::Postgres(transaction) => {
                sqlx::query(sql).bind(commit_number).bind(delta).execute(&mut **transaction).await?;
            }
        }
        Ok(())
    }

    async fn write_rows<'a>(&mut self, group: &mut Group<'a>, stamp: Stamp) -> Result<()> {
        let mut pending: Vec<usize> =
            (0..group.rows.len()).filter(|index| group.outcomes[*index] == Outcome::Accepted).collect();
        // Stable: of one id, the first that came stays the first.
        pending.sort_by_key(|index| group.id(*index));
        while !pending.is_empty() {
            let mut again = Vec::new();
            let mut first: Vec<usize> = Vec::with_capacity(pending.len());
            for index in pending {
                match first.last() {
                    Some(last) if group.id(*last) == group.id(index) => again.push(index),
                    _ => first.push(index),
                }
            }
            let mut known = HashMap::new();
            let contested = group.contested(&first);
            if !contested.is_empty() {
                self.lookup_all(&group.ids(&contested), &mut known).await?;
                group.settle_contested(&contested, &known);
                first.retain(|index| group.outcomes[*index] == Outcome::Accepted);
            }

            let rows = group.rows;
            let batch: Vec<&Row<'_>> = first.iter().map(|index| &rows[*index]).collect();
            let inserted = self.insert(&batch, stamp, &mut group.sums).await?;
            group.summed += batch.len();
            if inserted < batch.len() as u64 || !again.is_empty() {
                self.lookup_all(&group.ids(&first), &mut known).await?;
                for index in &first {
                    match known.get(&group.id(*index)) {
                        Some(row) if row.commit_number == stamp.commit_number => {}
                        Some(row) => group.outcomes[*index] = repeated(row, &group.rows[*index]),
                        None => {
                            let id = group.id(*index);
                            return Err(Error::internal(anyhow::anyhow!("event {id} was skipped and is not there")));
                        }
                    }
                }
            }
            group.accept(&first);
            again.retain(|index| match known.get(&group.id(*index)) {
                Some(row) => {
                    group.outcomes[*index] = repeated(row, &group.rows[*index]);
                    false
                }
                None => true,
            });
            pending = again;
        }
        Ok(())
    }

    async fn lookup_all(&mut self, ids: &[Uuid], known: &mut HashMap<Uuid, Known>) -> Result<()> {
        for ids in ids.chunks(LOOKUP) {
            self.lookup(ids, known).await?;
        }
        Ok(())
    }
}

/// What the group knows while it decides.
struct Group<'a> {
    rows: &'a [Row<'a>],
    /// `Accepted` until it is known better; what retention has removed is not looked at further.
    outcomes: Vec<Outcome>,
    /// Which rows went in.
    accepted: Vec<usize>,
    numbers: BTreeMap<NumberBlock, Numbers>,
    /// Blocks to which numbers were added.
    counted: BTreeSet<NumberBlock>,
    /// Sums of what was inserted, and perhaps of what was there, and of how many rows.
    sums: Summing<'a>,
    summed: usize,
}

impl<'a> Group<'a> {
    fn new(rows: &'a [Row<'a>], numbers: BTreeMap<NumberBlock, Numbers>, kept_from_us: i64) -> Self {
        let outcome = |row: &Row<'_>| match row.request.event.occurred_at_us < kept_from_us {
            true => Outcome::BeforeRetention { kept_from_us },
            false => Outcome::Accepted,
        };
        let outcomes = rows.iter().map(outcome).collect();
        let accepted = Vec::with_capacity(rows.len());
        Self { rows, outcomes, accepted, numbers, counted: BTreeSet::new(), sums: Summing::default(), summed: 0 }
    }

    fn id(&self, index: usize) -> Uuid {
        self.rows[index].request.event.id
    }

    fn ids(&self, indexes: &[usize]) -> Vec<Uuid> {
        indexes.iter().map(|index| self.id(*index)).collect()
    }

    /// Those of these rows whose number is taken, or wanted by another of them: new
    /// or not decides, so they are looked up first.
    fn contested(&self, indexes: &[usize]) -> Vec<usize> {
        let mut numbers = self.numbers.clone();
        let wanted = || indexes.iter().filter_map(|index| Some((*index, self.rows[*index].number()?)));
        let taken: HashSet<(NumberBlock, u64)> = wanted()
            .map(|(_, number)| number)
            .filter(|(block, number)| !numbers.entry(*block).or_default().insert(*number))
            .collect();
        if taken.is_empty() {
            return Vec::new();
        }
        wanted().filter(|(_, number)| taken.contains(number)).map(|(index, _)| index).collect()
    }

    fn settle_contested(&mut self, contested: &[usize], known: &HashMap<Uuid, Known>) {
        let mut numbers = self.numbers.clone();
        for index in contested {
            let row = &self.rows[*index];
            self.outcomes[*index] = match (known.get(&self.id(*index)), row.number()) {
                (Some(known), _) => repeated(known, row),
                (None, Some((block, number))) if !numbers.entry(block).or_default().insert(number) => {
                    Outcome::ProducerConflict
                }
                (None, _) => Outcome::Accepted,
            };
        }
    }

    /// Takes the numbers of those rows that went in.
    fn accept(&mut self, indexes: &[usize]) {
        for index in indexes.iter().filter(|index| self.outcomes[**index] == Outcome::Accepted) {
            self.accepted.push(*index);
            if let Some((block, number)) = self.rows[*index].number() {
                self.numbers.entry(block).or_default().insert(number);
                self.counted.insert(block);
            }
        }
    }

    /// Takes the numbers of those that were there already. One that is another event's stays that one's.
    fn count_repeats(&mut self) {
        for (row, outcome) in self.rows.iter().zip(&self.outcomes) {
            if let (Outcome::Duplicate, Some((block, number))) = (outcome, row.number())
                && self.numbers.entry(block).or_default().insert(number)
            {
                self.counted.insert(block);
            }
        }
    }

    /// What rollups have to add: the rows that went in, and nothing of the others.
    fn delta(&mut self) -> Option<Vec<u8>> {
        let mut sums = std::mem::take(&mut self.sums);
        // Only rows that were inserted are accepted, so that equal numbers mean the same rows.
        if self.summed != self.accepted.len() {
            sums = Summing::default();
            self.accepted.iter().for_each(|index| self.rows[*index].sum_up(&mut sums));
        }
        (!self.accepted.is_empty()).then(|| sums.finish())
    }

    /// The blocks to store.
    fn counted(&self) -> Vec<(NumberBlock, Vec<u8>)> {
        let counted = self.numbers.iter().filter(|(block, _)| self.counted.contains(*block));
        counted.map(|(block, numbers)| (*block, numbers.to_bytes())).collect()
    }
}

impl<'a> Row<'a> {
    fn sum_up(&self, sums: &mut Summing<'a>) {
        sums.add(&self.request.event, self.request.charge.cost_nanos());
    }

    /// The number that its producer gave it, and the block that holds it.
    fn number(&self) -> Option<(NumberBlock, u64)> {
        let number = self.request.event.producer.as_ref()?.sequence.cast_unsigned();
        // Without its lowest 16 bits it fits.
        Some(((self.producer_ref?, block_of(number).cast_signed()), number))
    }
}

fn repeated(known: &Known, row: &Row<'_>) -> Outcome {
    if known.content_hash == row.request.content_hash { Outcome::Duplicate } else { Outcome::IdConflict }
}

impl<'a> References<'a> {
    fn row(&mut self, request: &'a NewRequest, recorded_by: &'a str) -> Row<'a> {
        let charge_ref = *self.by_texts.entry(charge_texts(&request.charge)).or_insert_with_key(|texts| {
            let charge_ref = reference(texts.map(str::as_bytes));
            self.charges.insert(charge_ref, &request.charge);
            charge_ref
        });
        let producer_ref = request.event.producer.as_ref().map(|producer| self.producer(&producer.id, producer.epoch));
        Row { request, recorded_by, charge_ref, producer_ref }
    }

    fn producer(&mut self, id: &'a str, epoch: i64) -> i64 {
        match self.producer {
            Some((last, reference)) if last == (id, epoch) => reference,
            _ => {
                let reference = producer_ref(id, epoch);
                self.producers.insert(reference, (id, epoch));
                self.producer = Some(((id, epoch), reference));
                reference
            }
        }
    }

    fn dropped(&mut self, range: &'a DroppedRange) {
        let producer = self.producer(&range.producer_id, range.epoch);
        self.dropped.insert((producer, range.first_sequence, range.last_sequence));
    }
}

/// The columns of `usage_charges` beside its key: the price, or why there is none.
fn charge_texts(charge: &Charge) -> [&str; 5] {
    match charge {
        Charge::Priced { price, .. } => [&price.book_version, &price.provider, &price.model, &price.detail, ""],
        Charge::Unpriced(reason) => ["", "", "", "", reason],
    }
}

/// The key of a producer's epoch.
pub(super) fn producer_ref(id: &str, epoch: i64) -> i64 {
    reference([id.as_bytes(), &epoch.to_be_bytes()[..]])
}

/// The key of a row that others refer to: a hash of its content, so that all
/// replicas find the same one without asking each other.
fn reference<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> i64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(first)
}
