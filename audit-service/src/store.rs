//! The log in the database: SQLite or PostgreSQL, one SQL text for both wherever they agree.
//!
//! ```text
//! audit_entries            the log: an entry's canonical JSON, its keys and hashes; UPDATE and DELETE are refused
//! audit_log_heads          the next sequence of each instance, and the peaks of its tree; locked by whoever writes
//! audit_tiles              the tree's full tiles; UPDATE and DELETE are refused
//! audit_checkpoints        what was signed of each log; UPDATE and DELETE are refused
//! audit_newest_checkpoints the newest of these, with the newest cosignature; audit_signing_keys: by whom
//! audit_producer_numbers   which numbers of a producer's epoch are there, as bitmaps
//! audit_dropped_ranges     which numbers a producer says it dropped
//! audit_index, _runs, _heads  the inverted index, made behind the writers from the entries alone
//! audit_archived           of entries that are in the archive alone: ids, hashes and places; never changed
//! audit_segments           the archive's segments; never changed. audit_sweeps: what of them was removed here
//! audit_legal_holds        what is not removed, by whom and why
//! audit_export_heads       heads at which an export is frozen, where they are too many for its resume token
//! ```
//!
//! Writing is `write`; everything else reads, through the pool of readers, a bounded number of rows at a time. Whatever
//! reads entries is given an [`Access`](service_core::auth::Access), and finds nothing beyond it.

mod archive;
mod candidates;
mod checkpoints;
mod checks;
mod coverage;
mod entities;
mod facets;
mod frozen;
mod holds;
mod index;
mod lines;
mod merge;
mod postings;
mod read;
mod runs;
mod schema;
mod search;
mod settle;
mod told;
mod tree;
mod walk;
mod write;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, QueryResult, Statement, Value};
use service_core::config::{DatabaseConfig, DatabaseUrl};
use service_core::database::{self, Database, Engine};
use service_core::error::{Error, Result};

use crate::archive::Archive;
use crate::canonical::{self, Counted, Line, Unreadable};
use crate::event::{Entry, Key};
use crate::merkle::Hash;

pub use archive::{Kept, Segment};
pub use checkpoints::SignedBy;
pub(crate) use checkpoints::{NewCheckpoint, Signable, Signing};
pub use checks::Found;
pub(crate) use checks::{CheckKind, LogEnd, tiles_of};
pub use facets::{Facet, Facets};
pub use holds::{Hold, MAX_HOLDS, NewHold, Release};
pub use index::{BLOCK_ENTRIES, Indexer};
pub use read::{Page, Sought};
pub use told::{NewSegment, Told};
pub use tree::TreeHead;
pub(crate) use tree::{damaged, damaged_log, lost};
pub use walk::{LogWalk, TimeWalk};
pub use write::{EventResult, Written};

/// Where each instance's log stands: the sequence that its next entry gets.
pub type Heads = BTreeMap<String, u64>;

/// In which order a list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Descending by (`occurred_at`, `id`).
    NewestFirst,
    /// Ascending by (`occurred_at`, `id`).
    OldestFirst,
}

/// The window of a query, half open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First microsecond inside.
    pub start_us: i64,
    /// First microsecond after.
    pub end_us: i64,
}

impl Range {
    /// Whether a time lies inside.
    pub fn contains(&self, us: i64) -> bool {
        (self.start_us..self.end_us).contains(&us)
    }
}

/// An entry as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place in the order of lists.
    pub key: Key,
    /// Its log.
    pub instance_id: String,
    /// Its place in its log.
    pub sequence: u64,
    /// SHA-256 over a zero byte and `canonical`.
    pub leaf_hash: Vec<u8>,
    /// Canonical JSON: all of the entry.
    pub canonical: String,
}

impl Row {
    /// The columns of a row, in the order that `from_result` reads.
    const COLUMNS: &str = "e.occurred_at, e.id, e.instance_id, e.sequence, e.leaf_hash, e.canonical";

    fn from_result(row: &QueryResult) -> Result<Self> {
        Ok(Self {
            key: Key { occurred_at_us: row.try_get_by_index(0)?, id: row.try_get_by_index(1)? },
            instance_id: row.try_get_by_index(2)?,
            sequence: unsigned(row.try_get_by_index(3)?)?,
            leaf_hash: row.try_get_by_index(4)?,
            canonical: row.try_get_by_index(5)?,
        })
    }

    /// An archived entry, as it was stored.
    pub(crate) fn archived(canonical: String) -> Result<Self> {
        let entry = canonical::parse(&canonical).map_err(Error::internal)?;
        Ok(Self {
            key: entry.key(),
            sequence: entry.sequence,
            leaf_hash: canonical::leaf_hash(&canonical).to_vec(),
            instance_id: entry.event.instance_id,
            canonical,
        })
    }

    /// The entry that the row tells.
    pub fn entry(&self) -> Result<Entry> {
        canonical::parse(&self.canonical).map_err(|error| self.unreadable(error))
    }

    /// The same with texts where they lie.
    pub(crate) fn line(&self) -> Result<Line<'_>> {
        Line::new(&self.canonical).map_err(|error| self.unreadable(error))
    }

    fn counted(&self) -> Result<Counted<'_>> {
        canonical::counted(&self.canonical).map_err(|error| self.unreadable(error))
    }

    fn unreadable(&self, error: Unreadable) -> Error {
        let place = format!("instance {:?}, sequence {}", self.instance_id, self.sequence);
        Error::internal(anyhow::Error::new(error).context(place))
    }
}

/// The log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    db: Database,
    /// Removes what is archived: on PostgreSQL, an account of its own where there is one.
    remover: DatabaseConnection,
    /// Where archived entries are read.
    archive: Option<Archive>,
    /// Entries in a block of the index.
    block_entries: u64,
    /// Entries of each log that were signed, as is known outside the database.
    signed: Arc<Mutex<Heads>>,
    /// What checks have found.
    damages: Arc<Mutex<checks::Damages>>,
}

impl Store {
    /// Opens the database, brings its schema up to date, and builds the trees of logs that have none yet.
    pub async fn open(url: &DatabaseUrl, config: &DatabaseConfig) -> anyhow::Result<Self> {
        Self::open_with(url, config, None).await
    }

    /// The same, with the account that removes what is archived.
    pub async fn open_with(
        url: &DatabaseUrl,
        config: &DatabaseConfig,
        remover: Option<&DatabaseUrl>,
    ) -> anyhow::Result<Self> {
        let db = database::connect(url, config).await?;
        let others = remover.map(|url| (url, schema::RETENTION_GRANTS));
        db.migrate_for::<schema::Migrator>(schema::GRANTS, others.as_slice()).await?;
        let remover = match remover {
            Some(url) => db.connect_as(url, config).await?,
            None => db.writer.clone(),
        };
        let (signed, damages) = (Arc::default(), Arc::default());
        let store = Self { db, remover, archive: None, block_entries: BLOCK_ENTRIES, signed, damages };
        store.build_trees().await?;
        store.know_recorded().await?;
        Ok(store)
    }

    /// The same store with other index blocks: small ones let a test have many. A database is only ever used with
    /// blocks of one size.
    #[must_use]
    pub fn with_block_entries(mut self, entries: u64) -> Self {
        self.block_entries = entries.clamp(1, BLOCK_ENTRIES);
        self
    }

    /// The same store, with the archive of what is not in the database any more.
    #[must_use]
    pub fn with_archive(self, archive: Option<Archive>) -> Self {
        Self { archive, ..self }
    }

    /// Where archived entries are, if that is known.
    pub(crate) fn archive(&self) -> Option<&Archive> {
        self.archive.as_ref()
    }

    /// So many entries of a log were signed: a database that has fewer lost some, and takes no more.
    pub fn was_signed(&self, instance_id: &str, entries: u64) {
        // Poisoned, each number is whole all the same.
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = signed.entry(instance_id.to_owned()).or_default();
        *known = entries.max(*known);
    }

    /// The key under which page tokens are sealed.
    pub async fn seal_key(&self) -> Result<[u8; 32]> {
        self.db.seal_key().await
    }

    /// The database, for probes of its health.
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// Whether other processes may write to the same log.
    pub fn is_shared(&self) -> bool {
        self.db.engine == Engine::Postgres
    }

    /// The same log for an export that has just been frozen, or resumed: read from a replica, if there is one that
    /// has come so far.
    #[must_use]
    pub async fn for_export(&self) -> Self {
        Self { db: self.db.for_export().await, ..self.clone() }
    }

    /// Closes the pools.
    pub async fn close(self) {
        self.db.close().await;
        // That of the writer may be the same; closed twice is closed.
        let _ = self.remover.close().await;
    }

    /// Does what somebody does who has the database.
    #[cfg(test)]
    pub(crate) async fn tamper(&self, statement: &str) {
        self.db.writer.execute_unprepared(statement).await.unwrap();
    }

    /// The store as another replica has it, which knows nothing of what was signed.
    #[cfg(test)]
    pub(crate) fn as_replica(&self) -> Self {
        Self { signed: Arc::default(), damages: Arc::default(), ..self.clone() }
    }

    /// Takes every connection for reading.
    #[cfg(test)]
    pub(crate) async fn take_readers(&self) -> Vec<sea_orm::DatabaseTransaction> {
        let mut taken = Vec::new();
        for _ in 0..DatabaseConfig::default().readers.get() {
            taken.push(service_core::database::begin(self.reader()).await.unwrap());
        }
        taken
    }

    fn statement(&self, sql: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Statement {
        let backend = match self.db.engine {
            Engine::Sqlite => DbBackend::Sqlite,
            Engine::Postgres => DbBackend::Postgres,
        };
        Statement::from_sql_and_values(backend, sql, values)
    }

    /// Rows for reading. At most as many as `sql` limits itself to.
    async fn read(&self, sql: impl Into<String>, values: Vec<Value>) -> Result<Vec<QueryResult>> {
        Ok(self.reader().query_all_raw(self.statement(sql, values)).await?)
    }

    fn reader(&self) -> &DatabaseConnection {
        &self.db.reader
    }
}

/// Sequences and counts are never negative in the database; one that is was not written by us.
fn unsigned(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| Error::internal(anyhow::anyhow!("the database holds the negative number {value}")))
}

/// A hash column, which has 32 bytes unless somebody changed the database.
fn hash(bytes: Vec<u8>) -> Result<Hash> {
    Hash::try_from(bytes)
        .map_err(|bytes| Error::internal(anyhow::anyhow!("a stored hash has {} bytes, not 32", bytes.len())))
}

/// Sequences stay far below the end of the signed range; a larger one asks for what cannot be there.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `$first, $first+1, …` for a list in SQL.
fn placeholders(first: usize, count: usize) -> String {
    let mut out = String::with_capacity(count * 5);
    for number in first..first + count {
        if number > first {
            out.push(',');
        }
        out.push('$');
        out.push_str(&number.to_string());
    }
    out
}
