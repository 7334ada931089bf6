//! The audit log: who did what, kept for good.
//!
//! ```text
//! events ─▶ grpc::ingest ─▶ convert ─▶ ingest (group commit) ─▶ store ─▶ SQLite or PostgreSQL
//!                           checks     canonical form, hashes     │
//!                                                                 ├─▶ tail: who follows a log is woken
//!                                                                 ├─▶ index: made behind the writers
//!                                                                 └─▶ signer: checkpoints, kept outside too
//! answers ◀─ grpc::query ◀─ convert ◀─ filter, export, csv ◀─ store
//! ```
//!
//! - [`event`]: what an event and an entry are. [`canonical`]: the JSON that is hashed, stored and exported.
//! - [`filter`]: which entries a query wants; `words`: how a text is split.
//! - [`merkle`] and [`checkpoint`]: the tree over a log, its proofs, and what is signed of it. They are of a crate of their
//!   own, which needs no database; nor does [`verify`]: an export against what was signed. `prover`: proofs of what is stored.
//! - [`ROLES`]: who may call what; `denials`: what was refused, as entries; `activity`: what the service itself did, and who
//!   read it.
//! - [`retention`]: what is old goes to the [`archive`], with its proofs; `history`: a log read through both.
//! - [`checker`]: whether what is stored is as it was written, again and again.
//! - [`store`]: one log an instance, without gaps; the only place that knows SQL.
//!
//! Invariants: an entry is never changed, and never removed but into the archive; what is acknowledged is on disk; a sequence has no gaps; an
//! event is stored once; every answer is complete at once, whatever the index has caught up with.

mod activity;
pub mod archive;
pub mod canonical;
pub mod checker;
mod config;
mod convert;
mod csv;
mod denials;
pub mod event;
pub mod export;
pub mod filter;
mod grpc;
mod history;
pub mod ingest;
mod numbers;
mod prover;
pub mod retention;
mod roles;
mod server;
mod signer;
pub mod store;
mod tail;
mod time;
pub mod verify;
mod words;

pub use audit_proof::{checkpoint, merkle};
pub use config::{ActivityConfig, Config, ENV_PREFIX, LogConfig, Profile, RetentionConfig, TailConfig};
#[cfg(any(test, feature = "fuzzing"))]
pub use grpc::fuzz;
pub use roles::ROLES;
pub use server::{Server, bind, open_store, trusted};
