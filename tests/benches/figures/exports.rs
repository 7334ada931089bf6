//! Exports as CSV through gRPC, beside the engine's own: `COPY … TO STDOUT` on PostgreSQL, the sqlite3 shell on SQLite.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use activity_proto::audit::v1 as audit;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::common::v1::{Interval, TimeRange, time_range::Range};
use activity_proto::usage::v1 as usage;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use clap::Args;
use testkit::rss_bytes;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

use crate::machine::{Measured, forget_peak, median, mib, peak_bytes, version};
use crate::place::{Engine, Places, csv};
use crate::traffic::{DAY_US, Traffic, timestamp};
use crate::{Kind, load, place};

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many rows an export has.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// How often each is made.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only this engine.
    #[arg(long)]
    engine: Option<Engine>,
    /// Only this service.
    #[arg(long)]
    service: Option<Kind>,
    /// Put the data here.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Put PostgreSQL's data on this server: `postgres://USER@HOST:PORT`.
    #[arg(long)]
    postgres: Option<String>,
}

/// Rows and bytes of a whole export, and how long it took.
struct Export {
    rows: u64,
    bytes: usize,
    time: Duration,
}

pub(crate) async fn run(arguments: Arguments) {
    let mut places = Places::new(arguments.folder.as_deref(), arguments.postgres.as_deref());
    println!("{}", place::versions(&mut places, &Engine::ALL).await);
    println!("sqlite3 shell {}", version("sqlite3".as_ref(), "--version"));
    for kind in [Kind::Usage, Kind::Audit] {
        for engine in Engine::ALL {
            let wanted =
                arguments.service.is_none_or(|only| only == kind) && arguments.engine.is_none_or(|only| only == engine);
            if wanted {
                println!("\n{} on {}", kind.name(), engine.name());
                figures(&mut places, kind, engine, &arguments).await;
            }
        }
    }
}

async fn figures(places: &mut Places, kind: Kind, engine: Engine, arguments: &Arguments) {
    let name = "exports";
    places.remove(engine, name).await;
    let url = places.url(engine, name).await;
    let mut service = Measured::start(kind.name(), &url, &[]).await;
    match kind {
        Kind::Usage => {
            let traffic = Arc::new(Traffic::new(load::start_us(), arguments.events));
            load::fill(service.service.channel(), &traffic).await;
        }
        Kind::Audit => {
            load::audit(&load::Target { address: service.service.address(), realm: None }, arguments.events).await
        }
    }
    // What the load needed is given back.
    service.stop().await;
    service.service.start_again().await;

    let channel = service.service.channel();
    let (mut ratios, mut unsorted) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let before = rss_bytes(service.pid());
        forget_peak(service.pid());
        let export = match kind {
            Kind::Usage => usage_export(channel.clone()).await,
            Kind::Audit => audit_export(channel.clone()).await,
        };
        assert_eq!(export.rows, arguments.events);
        let peak = peak_bytes(service.pid());
        let rate = export.rows as f64 / export.time.as_secs_f64();
        println!(
            "  round {round}: {rate:.0} rows/s, {} MiB; memory of the service {} MiB before, {} MiB at its peak",
            export.bytes >> 20,
            mib(before),
            mib(peak)
        );
        for (what, order, ratios) in
            [("in the same order", " ORDER BY occurred_at, id", &mut ratios), ("in any order", "", &mut unsorted)]
        {
            let begun = Instant::now();
            let sql = format!("SELECT * FROM {}{order}", kind.table());
            let bytes = csv(&url, &sql, &mut std::io::sink()).await;
            let own = arguments.events as f64 / begun.elapsed().as_secs_f64();
            println!(
                "    the engine's own, {what}: {own:.0} rows/s, {} MiB; ours is {:.2} of it by rows, {:.2} by bytes",
                bytes >> 20,
                rate / own,
                rate / own * export.bytes as f64 / bytes as f64
            );
            ratios.push(rate / own);
        }
    }
    println!(
        "  median of {} rounds: {:.2} of the engine's own in the same order, {:.2} of that in any order",
        arguments.rounds,
        median(ratios),
        median(unsorted)
    );
    service.stop().await;
    places.remove(engine, name).await;
}

/// 31 days, in which all of the load is.
fn range() -> Option<TimeRange> {
    let start = timestamp(load::start_us() - DAY_US);
    let interval = Interval { start: Some(start), end: None };
    Some(TimeRange { range: Some(Range::Interval(interval)), time_zone: String::new() })
}

async fn usage_export(channel: Channel) -> Export {
    let request = usage::ExportUsageRequest {
        time_range: range(),
        shape: usage::ExportShape::Requests.into(),
        format: usage::ExportFormat::Csv.into(),
        ..Default::default()
    };
    let start = Instant::now();
    let mut stream = UsageQueryServiceClient::new(channel).export_usage(request).await.unwrap().into_inner();
    let (mut rows, mut bytes) = (0, 0);
    while let Some(message) = stream.next().await {
        match message.unwrap().part.unwrap() {
            usage::export_usage_response::Part::Chunk(chunk) => bytes += chunk.data.len(),
            usage::export_usage_response::Part::End(end) => rows = end.rows.unwrap(),
        }
    }
    Export { rows, bytes, time: start.elapsed() }
}

async fn audit_export(channel: Channel) -> Export {
    let request = audit::ExportEntriesRequest {
        range: range().map(audit::export_entries_request::Range::TimeRange),
        format: audit::ExportFormat::Csv.into(),
        ..Default::default()
    };
    let start = Instant::now();
    let mut stream = AuditQueryServiceClient::new(channel).export_entries(request).await.unwrap().into_inner();
    let (mut rows, mut bytes) = (0, 0);
    while let Some(message) = stream.next().await {
        match message.unwrap().part.unwrap() {
            audit::export_entries_response::Part::Chunk(chunk) => bytes += chunk.data.len(),
            audit::export_entries_response::Part::End(end) => rows = end.entries.unwrap(),
        }
    }
    Export { rows, bytes, time: start.elapsed() }
}
