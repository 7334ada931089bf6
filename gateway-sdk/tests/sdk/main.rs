//! The SDK against a service that does what a test tells it to.

#![allow(clippy::unwrap_used, reason = "a test")]

mod access;
mod bounds;
mod delivery;
mod fake;
mod files;
#[cfg(feature = "layer")]
mod layer;
mod moves;
mod operations;
mod queries;
mod spool;
mod threads;
