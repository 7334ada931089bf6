//! The SDK against a service that does what a test tells it to.

#![allow(clippy::unwrap_used, reason = "a test")]

mod access;
mod bounds;
mod delivery;
mod fake;
mod queries;
mod spool;
