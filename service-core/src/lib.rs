//! What both servers need, with no word of their domains.
//!
//! ```text
//!          ┌───────────────────────── server ─────────────────────────┐
//! client ─▶│ accept ─▶ limits, time-outs, status, traces ─▶ a service │
//!          └──────────────────────────────┬───────────────────────────┘
//!            ingest_stream ◀──────────────┤ writes
//!                 │                       └─────────────▶ reads
//!            group_commit                       time_range, page
//!                 │                                    │
//!                 └────────────▶ database ◀────────────┘
//! ```
//!
//! - [`config`]: a TOML file and the environment into a struct; secrets that
//!   don't print.
//! - [`telemetry`]: logs, traces, [`telemetry::Metrics`].
//! - [`database`]: SQLite or PostgreSQL: pools, migration, seal key, probes.
//! - [`error`]: the closed list of errors, one match to `tonic::Status`.
//! - [`time_range`]: presets, intervals, zones, bucket edges.
//! - [`page`]: page sizes and sealed tokens.
//! - [`group_commit`]: many streams, one writer, an answer after the commit.
//! - [`ingest_stream`]: the loop of a bidirectional ingest stream.
//! - [`server`]: from accept to drain, with health and reflection.
//! - [`auth`]: who calls, and the table of who may call what.
//! - [`tls`]: certificates that are read again when they change.
//! - [`http_client`]: one request, for keys and for objects of an archive.
//! - [`csv`]: a cell that no spreadsheet runs.
//! - [`numbers`]: which numbers a producer has given; [`coverage`]: which of them came, as an answer.
//! - [`clock`]: microseconds since the epoch.

pub mod auth;
pub mod clock;
pub mod config;
pub mod coverage;
pub mod csv;
pub mod database;
pub mod error;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod group_commit;
pub mod http_client;
pub mod ingest_stream;
pub mod numbers;
pub mod page;
pub mod server;
pub mod telemetry;
pub mod time_range;
pub mod tls;
