//! Usage analytics: one event for every model request, and exact answers for
//! traffic, tokens and cost.
//!
//! ```text
//! write   gateway ─▶ grpc ─▶ convert ─▶ ingest (cost, group commit) ─▶ store
//! read    client  ─▶ grpc ─▶ store ─▶ rollup ─▶ convert ─▶ client
//! export  client  ─▶ grpc ─▶ store, page by page ─▶ export ─▶ client
//! ```
//!
//! - [`config`]: keys and defaults.
//! - `grpc`, `convert`: the wire; nothing else names generated types.
//! - `model`: events, filters, dimensions, in our own words.
//! - `ingest`: cost, then many streams into one writer.
//! - `pricing`: the price book and the arithmetic of a cost.
//! - `store`: SQLite or PostgreSQL; nothing else names SQL.
//! - [`answer`]: what an answer is made of.
//! - `rollup`: sums made ahead, and the one fold behind every total.
//! - `sealer`: takes what writers left into the rollups, in the background.
//! - [`checker`]: compares rollups with their requests, in the background and on demand.
//! - `retention`: removes what is not to be kept, in the background.
//! - [`ROLES`]: who may call what. What a caller may see is part of every scope.
//! - `denials`: refused calls, recorded by the audit-service.
//! - `export`: rows as bytes, and how an export resumes.
//!
//! [`bind`] opens everything and fails early; [`Server::serve`] runs until it is
//! told to stop:
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let server = usage_service::bind(usage_service::Config::default()).await?;
//! println!("ready usage={}", server.local_addr());
//! server.serve(tokio_util::sync::CancellationToken::new()).await
//! # }
//! ```

pub mod answer;
pub mod checker;
pub mod config;
mod convert;
mod denials;
mod export;
mod grpc;
mod ingest;
pub mod model;
mod money;
pub mod pricing;
mod retention;
mod roles;
mod rollup;
mod sealer;
mod server;
pub mod store;

pub use config::{Config, ENV_PREFIX};
#[cfg(any(test, feature = "fuzzing"))]
pub use grpc::fuzz;
pub use roles::ROLES;
pub use server::{Server, bind};
