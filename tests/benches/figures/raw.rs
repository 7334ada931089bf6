//! The limit: what the engine alone does with the same rows, the same table and indexes, committed in groups of the
//! same size, from a client that has them ready in memory. Every way is tried on a database of its own that the
//! service has made, and all of them take the same group in turn, so that a busy moment of the machine is everybody's.

pub(crate) mod postgres;
pub(crate) mod sqlite;

use std::time::Duration;

/// A way to insert, and what it took without reading or preparing the rows.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) name: String,
    /// Whether rows that are there already are left out, as the service does.
    pub(crate) deduplicates: bool,
    pub(crate) rows: u64,
    pub(crate) time: Duration,
}

impl Way {
    fn new(name: impl Into<String>, deduplicates: bool) -> Self {
        Self { name: name.into(), deduplicates, rows: 0, time: Duration::ZERO }
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.rows as f64 / self.time.as_secs_f64()
    }
}

/// The quickest that deduplicates.
pub(crate) fn best(ways: &[Way]) -> &Way {
    let deduplicating = ways.iter().filter(|way| way.deduplicates);
    deduplicating.max_by(|a, b| a.per_second().total_cmp(&b.per_second())).unwrap()
}
