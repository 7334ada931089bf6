//! `cargo bench -p e2e`: what the whole does, beside the limit measured in the same run.
//!
//! For each service and engine: durable ingest of events through the SDK, the stream and the commit; the engine's
//! own bulk insert of the same rows; memory of the service; then the questions and an export over what was stored.
//! Everything runs on this machine's loopback, so that client, service and engine share its cores.
#![allow(clippy::unwrap_used, reason = "a benchmark: a panic is its failure")]

mod load;
mod queries;
mod raw;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use e2e::Service;
use testkit::{Postgres, rss_bytes};

#[derive(Parser)]
struct Arguments {
    /// How many events each service takes in.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// How many of their rows the raw engine takes in for comparison.
    #[arg(long, default_value_t = 300_000)]
    raw: u64,
    /// Only this engine.
    #[arg(long)]
    engine: Option<Engine>,
    /// Only this service.
    #[arg(long)]
    service: Option<Kind>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Engine {
    Sqlite,
    Postgres,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    Usage,
    Audit,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    println!("{} events a service and engine; {}", arguments.events, machine());
    for kind in [Kind::Usage, Kind::Audit] {
        for engine in [Engine::Sqlite, Engine::Postgres] {
            let wanted =
                arguments.service.is_none_or(|only| only == kind) && arguments.engine.is_none_or(|only| only == engine);
            if wanted {
                figures(kind, engine, &arguments).await;
            }
        }
    }
}

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, {model}")
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// The most memory the process has had: `VmHWM`.
fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

async fn figures(kind: Kind, engine: Engine, arguments: &Arguments) {
    let (name, table) = match kind {
        Kind::Usage => ("usage", "usage_requests"),
        Kind::Audit => ("audit", "audit_entries"),
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data.db");
    let mut postgres = None;
    let url = match engine {
        Engine::Sqlite => format!("sqlite://{}", file.display()),
        Engine::Postgres => {
            // One with fsync, unlike the tests' shared one.
            let server = Postgres::start().await;
            let url = server.create_database().await;
            postgres = Some(server);
            url
        }
    };
    let service = Service::start(name, &url, &[]).await;
    let pid = service.process().pid();
    println!("\n{name} on {}", if engine == Engine::Sqlite { "SQLite" } else { "PostgreSQL" });

    let start = Instant::now();
    match kind {
        Kind::Usage => load::usage(&service.url(), arguments.events).await,
        Kind::Audit => load::audit(&service.url(), arguments.events).await,
    }
    let time = start.elapsed();
    let rate = arguments.events as f64 / time.as_secs_f64();
    println!("  ingest: {rate:.0} events/s, each acknowledged after its commit ({time:.1?})");
    println!(
        "  memory of the service: {} MiB at the end, {} MiB at its peak",
        mib(rss_bytes(pid)),
        mib(peak_bytes(pid))
    );

    match engine {
        Engine::Sqlite => {
            let raw = raw::sqlite(&file, table, arguments.raw, false).await;
            against("multi-row INSERT", raw, rate);
            if kind == Kind::Audit {
                let raw = raw::sqlite(&file, table, arguments.raw, true).await;
                against("multi-row INSERT under the table's guards", raw, rate);
            }
        }
        Engine::Postgres => {
            let (plain, dedup) = raw::postgres(&url, table, arguments.raw).await;
            against("COPY", plain, rate);
            against("COPY to staging, INSERT … ON CONFLICT DO NOTHING", dedup, rate);
        }
    }

    if kind == Kind::Usage {
        let times = load::record_times(&service.url()).await;
        let at = |share: usize| times[times.len() * share / 1000];
        println!("  SDK's record, one thread: median {:?}, p99 {:?}, p99.9 {:?}", at(500), at(990), at(999));
    }
    let export = match kind {
        Kind::Usage => {
            queries::usage(service.channel()).await;
            queries::usage_export(service.channel()).await
        }
        Kind::Audit => {
            queries::audit(service.channel()).await;
            queries::audit_export(service.channel()).await
        }
    };
    let seconds = export.time.as_secs_f64();
    println!(
        "  export as CSV: {} rows, {} MiB, {:.0} rows/s; memory of the service at its peak {} MiB",
        export.rows,
        export.bytes >> 20,
        export.rows as f64 / seconds,
        mib(peak_bytes(pid)),
    );
    println!("  database: {} bytes a row", size(&file, &url).await / arguments.events);
    drop(service);
    drop(postgres);
}

fn against(what: &str, raw: raw::Rate, rate: f64) {
    println!(
        "  raw engine, {what}, groups of {}: {:.0} rows/s; ingest is {:.2} of it",
        raw::GROUP,
        raw.per_second(),
        rate / raw.per_second()
    );
}

async fn size(file: &Path, url: &str) -> u64 {
    if let Ok(metadata) = fs::metadata(file) {
        return metadata.len();
    }
    raw::database_bytes(url).await
}

/// How long a load may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(600);
