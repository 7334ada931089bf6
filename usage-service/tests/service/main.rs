//! The whole service in this process, spoken to over gRPC.
#![allow(clippy::unwrap_used, reason = "a test")]

mod access;
mod export;
mod harness;
mod ingest;
mod prices;
mod query;
mod retention;
mod secured;
mod worlds;
