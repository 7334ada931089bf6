//! Real processes for tests. Imports no member of the workspace, so every member may use it.
//!
//! ```text
//! Postgres       a PostgreSQL server of its own: databases, stop, crash, start again
//! Citus          a database on a Citus cluster, if one is given
//! ChildProcess   any program: wait for a line, signal it, wait for its end; its log shows when a test fails
//! binary         the path of one of the workspace's own programs, built first
//! Bucket         a bucket that speaks S3, in memory
//! Realm          certificates and tokens, and the settings of a server that believes them
//! Messages       requests made out of any bytes, for tests and fuzzers
//! assert_…       what holds of every answer and file
//! eventually     wait for a condition instead of sleeping
//! free_port      a port nobody listens on
//! rss_bytes      the memory a process holds
//! open_files     how many files and sockets it holds
//! ```
//!
//! Whatever is started here ends with the value that stands for it, and also when the test process is
//! killed: a small shell waits for the end of a pipe that only the test process holds open (`guard.rs`).

#![expect(clippy::expect_used, reason = "a failure of the kit is a failed test, and the panic is its report")]

mod binary;
mod bucket;
mod citus;
mod claims;
mod guard;
mod identity;
mod messages;
mod postgres;
mod process;
mod wait;

pub use binary::binary;
pub use bucket::{Bucket, SECRET_KEY};
pub use citus::Citus;
pub use claims::{assert_cell, assert_harmless, assert_refusal, csv_rows};
pub use identity::{AUDIENCE, Authority, ISSUER, Realm, Signer, base64url};
pub use messages::{Messages, Method};
pub use postgres::{Durability, Postgres};
pub use process::{ChildProcess, Signal, free_port, open_files, rss_bytes};
pub use wait::{Condition, eventually};
