//! Writing: all batches of a group in one transaction.
//!
//! Rows go in with `ON CONFLICT DO NOTHING`, many a statement. Mostly all of them
//! are new, and the count says so. If some were skipped, they are looked up by id:
//!
//! ```text
//! found, this transaction's number    it was inserted just now     Accepted
//! found, same content hash            it was there                 Duplicate
//! found, other content hash           its id was taken             IdConflict
//! not found                           its producer's number was    ProducerConflict
//! ```
//!
//! Of events with one id in one group the first is written; the others are looked
//! up after it, and written in another round if it was not stored. Of new events
//! with one producer's number in one group, the one with the lowest id is kept.
//!
//! Rows are inserted in the order of their ids: close together in the index, and
//! in one order in all replicas, so that two that write the same events wait for
//! each other and don't deadlock.
//!
//! What rows refer to is written anew with every group, before the rows. To keep
//! in memory what is there already would outlive a database that goes back behind
//! it (a failover to a replica that lagged, a restored backup), and leave rows
//! whose charge never comes.

mod columns;
mod postgres;
mod sqlite;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use service_core::clock;
use service_core::database::Engine;
use service_core::error::{Error, Result};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::Store;
use crate::model::{Charge, DroppedRange, NewRequest, Outcome};

/// Ids in one lookup.
const LOOKUP: usize = 1_000;

/// What one call or one message of a stream brings.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events that passed the checks.
    pub requests: Vec<NewRequest>,
    /// What producers say they have dropped.
    pub dropped: Vec<DroppedRange>,
}

/// A row as it goes in.
struct Row<'a> {
    request: &'a NewRequest,
    charge_ref: i64,
    producer_ref: Option<i64>,
}

/// What all rows of a transaction share.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    recorded_at_us: i64,
    commit_number: i64,
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
        let rows: Vec<Row<'_>> =
            batches.iter().flat_map(|batch| &batch.requests).map(|request| references.row(request)).collect();
        for range in batches.iter().flat_map(|batch| &batch.dropped) {
            references.dropped(range);
        }
        let mut outcomes = Vec::new();
        if !rows.is_empty() || !references.dropped.is_empty() {
            let (mut transaction, stamp) = self.begin().await?;
            transaction.write_references(&references, stamp).await?;
            outcomes = transaction.write_rows(&rows, stamp).await?;
            transaction.commit().await?;
        }
        let mut outcomes = outcomes.into_iter();
        Ok(batches.iter().map(|batch| outcomes.by_ref().take(batch.requests.len()).collect()).collect())
    }

    async fn begin(&self) -> Result<(Transaction, Stamp)> {
        let (transaction, commit_number) = match self.db.engine {
            Engine::Sqlite => {
                let pool = self.db.writer.get_sqlite_connection_pool();
                let (transaction, number) = sqlite::begin(pool).await?;
                (Transaction::Sqlite(transaction), number)
            }
            Engine::Postgres => {
                let pool = self.db.writer.get_postgres_connection_pool();
                let (transaction, number) = postgres::begin(pool).await?;
                (Transaction::Postgres(transaction), number)
            }
        };
        let stamp = Stamp { recorded_at_us: clock::now_us(), commit_number };
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

    /// How many of these rows went in.
    async fn insert(&mut self, rows: &[&Row<'_>], stamp: Stamp) -> Result<u64> {
        match self {
            Self::Sqlite(transaction) => sqlite::insert(transaction, rows, stamp).await,
            Self::Postgres(transaction) => postgres::insert(transaction, rows, stamp).await,
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

    async fn write_rows(&mut self, rows: &[Row<'_>], stamp: Stamp) -> Result<Vec<Outcome>> {
        let mut outcomes = vec![Outcome::Accepted; rows.len()];
        let id = |index: usize| rows[index].request.event.id;
        let mut pending: Vec<usize> = (0..rows.len()).collect();
        // Stable: of one id, the first that came stays the first.
        pending.sort_by_key(|index| id(*index));
        while !pending.is_empty() {
            let mut again = Vec::new();
            let mut first: Vec<usize> = Vec::with_capacity(pending.len());
            for index in pending {
                match first.last() {
                    Some(last) if id(*last) == id(index) => again.push(index),
                    _ => first.push(index),
                }
            }
            let batch: Vec<&Row<'_>> = first.iter().map(|index| &rows[*index]).collect();
            let inserted = self.insert(&batch, stamp).await?;
            if inserted == batch.len() as u64 && again.is_empty() {
                break;
            }
            let mut known = HashMap::new();
            let ids: Vec<Uuid> = first.iter().map(|index| id(*index)).collect();
            for ids in ids.chunks(LOOKUP) {
                self.lookup(ids, &mut known).await?;
            }
            for index in first {
                outcomes[index] = match known.get(&id(index)) {
                    Some(row) if row.commit_number == stamp.commit_number => Outcome::Accepted,
                    Some(row) => repeated(row, &rows[index]),
                    None if rows[index].producer_ref.is_some() => Outcome::ProducerConflict,
                    None => {
                        return Err(Error::internal(anyhow::anyhow!(
                            "event {} was skipped and is not there",
                            id(index)
                        )));
                    }
                };
            }
            again.retain(|index| match known.get(&id(*index)) {
                Some(row) => {
                    outcomes[*index] = repeated(row, &rows[*index]);
                    false
                }
                None => true,
            });
            pending = again;
        }
        Ok(outcomes)
    }
}

fn repeated(known: &Known, row: &Row<'_>) -> Outcome {
    if known.content_hash == row.request.content_hash { Outcome::Duplicate } else { Outcome::IdConflict }
}

impl<'a> References<'a> {
    fn row(&mut self, request: &'a NewRequest) -> Row<'a> {
        let charge_ref = charge_reference(&request.charge);
        self.charges.insert(charge_ref, &request.charge);
        let producer_ref = request.event.producer.as_ref().map(|producer| self.producer(&producer.id, producer.epoch));
        Row { request, charge_ref, producer_ref }
    }

    fn producer(&mut self, id: &'a str, epoch: i64) -> i64 {
        let reference = reference([id.as_bytes(), &epoch.to_be_bytes()[..]]);
        self.producers.insert(reference, (id, epoch));
        reference
    }

    fn dropped(&mut self, range: &'a DroppedRange) {
        let producer = self.producer(&range.producer_id, range.epoch);
        self.dropped.insert((producer, range.first_sequence, range.last_sequence));
    }
}

fn charge_reference(charge: &Charge) -> i64 {
    reference(charge_texts(charge).map(str::as_bytes))
}

/// The columns of `usage_charges` beside its key: the price, or why there is none.
fn charge_texts(charge: &Charge) -> [&str; 5] {
    match charge {
        Charge::Priced { price, .. } => [&price.book_version, &price.provider, &price.model, &price.detail, ""],
        Charge::Unpriced(reason) => ["", "", "", "", reason],
    }
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
