//! `cargo bench -p e2e -- ingest | queries | exports | retention | proofs | siege`: what the whole does, beside the limit that
//! the same run measures.
//!
//! - `ingest`: durable ingest through the SDK, beside the engine's own bulk insert into the same tables;
//!   acknowledgements at half that load. With `--secured` beside itself in plain text.
//! - `queries`: every question of a dashboard over 1 and 10 million requests, beside DuckDB over the same rows.
//! - `exports`: CSV through gRPC, beside the engine's own.
//! - `retention`: a day of requests goes, and what ingest notices of it.
//! - `proofs`: verifying, proving and signing the audit log, and what its tree costs ingest.
//! - `siege`: what a writer waits before, during and after attacks that are held against its service.
//!
//! Everything runs on this machine's loopback, so that client, service and engine share its cores.
#![allow(clippy::unwrap_used, reason = "a benchmark: a panic is its failure")]

mod exports;
mod ingest;
mod load;
mod machine;
mod place;
mod proofs;
mod queries;
mod raw;
mod retention;
mod siege;
mod traffic;

use std::time::Instant;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    figures: Figures,
    /// Given by cargo.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Figures {
    /// Durable ingest beside the engine's own.
    Ingest(ingest::Arguments),
    /// A dashboard's questions beside DuckDB.
    Queries(queries::Arguments),
    /// CSV exports beside the engine's own.
    Exports(exports::Arguments),
    /// A day of requests is let go while others come.
    Retention(retention::Arguments),
    /// What the audit log's proofs cost.
    Proofs(proofs::Arguments),
    /// A writer's waits before, during and after a siege.
    Siege(siege::Arguments),
}

/// A service.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Kind {
    Usage,
    Audit,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Audit => "audit",
        }
    }

    /// Where its events are.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::Usage => "usage_requests",
            Self::Audit => "audit_entries",
        }
    }
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    println!("{}", machine::machine());
    // Optimized and from cold that takes minutes: better said than met as a standstill in the first round.
    eprintln!("the services are built first, where they are not yet");
    testkit::binary("standalone");
    let begun = Instant::now();
    match arguments.figures {
        Figures::Ingest(arguments) => ingest::run(arguments).await,
        Figures::Queries(arguments) => queries::run(arguments).await,
        Figures::Exports(arguments) => exports::run(arguments).await,
        Figures::Retention(arguments) => retention::run(arguments).await,
        Figures::Proofs(arguments) => proofs::run(arguments).await,
        Figures::Siege(arguments) => siege::run(arguments).await,
    }
    println!("\n{:.0?} in all", begun.elapsed());
}
