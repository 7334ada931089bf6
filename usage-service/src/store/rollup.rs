//! Rollups in the database: segments, and the deltas that are not in them yet.
//!
//! ```text
//! writer   group ─► one transaction: rows of usage_requests + one usage_deltas
//! sealer   deltas ─► one transaction: segments + deltas, deltas removed, a version     (seal)
//! answer   one snapshot: segments + what deltas are left + raw rows at ragged ends     (read)
//! check    one snapshot: raw rows of a span = segment + its share of the deltas        (check)
//! ```
//!
//! - **Always exact.** A request is in its delta from the commit that stores it, and moves from there into segments
//!   in one transaction; so in every snapshot each request is counted once, however late it came. Nothing is open,
//!   closed or dirty, and no clock is involved.
//! - **Never in a writer's way.** A writer adds one row of a table that nobody else writes; the sealer takes rows that
//!   are committed, in short steps. On SQLite, which has one writer, a step is read and worked out before the write lock
//!   is taken, unless a single day's segments come to more than is kept waiting in memory.
//! - **One chain of versions.** Each sealing names the version it builds on, which no other may name again: two
//!   sealers that overlap can't both commit. A version is a time in microseconds and a random lead, so that a database
//!   that went back behind us (a failover to a replica that lagged, a restored backup) hardly ever gives a number a
//!   second time: what a process has in memory is good as long as the database knows the version it is of.

mod cache;
mod check;
mod ends;
mod entity;
mod fold;
mod prepare;
mod read;
mod seal;
mod waiting;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use check::Checked;
pub(super) use ends::{EndSection, OneRequest};
pub(super) use fold::Sections;
pub(super) use read::{View, Wishes};
pub use seal::{Backlog, Sealed};
pub(super) use waiting::Waiting;

use cache::Cache;
use tokio::sync::Semaphore;

use crate::rollup::{Level, Span, Values};

/// How long a version is remembered at least, in microseconds: a day. A process that has looked at nothing for
/// longer than that begins anew.
const VERSIONS_KEPT_US: i64 = 86_400_000_000;

/// A segment's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    level: Level,
    start_us: i64,
    instance: u32,
}

impl Place {
    fn span(self) -> Span {
        Span { level: self.level, start_us: self.start_us }
    }
}

/// What this process knows of the segments.
#[derive(Debug)]
pub(super) struct Rollup {
    known: Mutex<Known>,
    cache: Mutex<Cache>,
    /// The number of the next view.
    answers: AtomicU64,
    /// For who makes what later answers have use for.
    preparing: Arc<Semaphore>,
}

/// Which segments there are, as of a version.
#[derive(Debug, Default)]
struct Known {
    /// 0 before the first sealing.
    version: i64,
    /// Each with the version that wrote it.
    spans: BTreeMap<Place, i64>,
    /// Before it there are none any more; none while nothing was removed.
    pruned_to_us: Option<i64>,
    /// Rises when all is forgotten: what was read for the time before is of no use.
    generation: u64,
    values: Arc<Values>,
}

impl Rollup {
    /// Sections in memory take at most `cache_bytes`.
    pub(super) fn new(cache_bytes: usize) -> Self {
        Self {
            known: Mutex::default(),
            cache: Mutex::new(Cache::new(cache_bytes)),
            answers: AtomicU64::new(1),
            preparing: Arc::new(Semaphore::new(1)),
        }
    }

    /// A panic while it is held leaves it as it was: each use is one lookup or one insertion.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything, unless somebody has since: it is of another history than the database's.
    fn forget(&self, generation: u64) {
        let mut known = self.known();
        if known.generation == generation {
            *known = Known { generation: generation + 1, ..Known::default() };
            self.cache().clear();
        }
    }
}
