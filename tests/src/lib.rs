//! Behaviours of the whole: real servers as child processes, real clients, real databases.
//!
//! | here | what |
//! | --- | --- |
//! | `sandbox` | starts, kills and restarts `audit-service` and `usage-service` on free ports |
//! | `events` | well-formed events to write, and ids for them |
//! | `proxy` | a bad network between a client and a server: slow, stalled, mute, half open, reset |
//! | `raw` | a gRPC client that sends any bytes as its message |
//! | `requests` | any request, and what every answer must be |
//! | `wire` | HTTP/2 by hand, for what no library sends |
//! | `siege` | attackers that are held against a server for as long as a test wants |
//! | `metrics` | a service's metrics page |
//! | `tools` | `grpcurl` and `python3` as a user would run them, and where the real traces are |
//! | `tree` | whether a log's tree is over its entries, and what its database's owner can do to it |
//! | `verify` | `standalone verify`, and the end of an export as a file |
//! | `../tests/` | one file a behaviour |
//! | `../benches/` | `cargo bench -p e2e -- queries`: figures beside their limits |
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test support: a panic is a failed test")]

pub mod events;
pub mod metrics;
pub mod proxy;
pub mod raw;
pub mod requests;
pub mod sandbox;
pub mod siege;
pub mod tools;
pub mod tree;
pub mod verify;
pub mod wire;

pub use sandbox::{Engine, Sandbox, Service};

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
