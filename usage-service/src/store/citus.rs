//! What a Citus cluster spreads over its workers, and what it leaves on its
//! coordinator.
//!
//! Requests are what grows, so they are spread, by their id: the one key that writing
//! needs, and that spreads every writer, user and moment evenly. What each request is
//! joined with is on every node. All else is small or is read as a whole, and stays on
//! the coordinator: there the transactions that move deltas into segments are local.
//!
//! What statements must look like for that, `tests/store/citus` checks.

use service_core::database::{Distributed, Spread};

/// In the order in which they are spread.
pub const DISTRIBUTED: &[Distributed] = &[
    Distributed { table: "usage_charges", spread: Spread::Everywhere },
    Distributed { table: "usage_producers", spread: Spread::Everywhere },
    Distributed { table: "usage_requests", spread: Spread::By("id") },
];
