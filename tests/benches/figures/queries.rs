//! What questions cost: over gRPC from the real service, in each engine, beside DuckDB over the same rows; every
//! answer of the one is compared with the other's.

mod duckdb;
mod question;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use testkit::rss_bytes;
use tokio::time::sleep;
use tonic::transport::Channel;

use self::duckdb::Peer;
use self::question::{Answer, Ask, QUESTIONS, Question};
use crate::machine::{Measured, Times, mib, ms, peak_bytes};
use crate::place::{Engine, Places, bytes, number};
use crate::traffic::Traffic;
use crate::{load, place};

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many requests; several sizes say how answers grow.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 10_000_000])]
    events: Vec<u64>,
    /// How often each question is asked.
    #[arg(long, default_value_t = 200)]
    runs: usize,
    /// How often DuckDB is asked.
    #[arg(long, default_value_t = 15)]
    peer_runs: usize,
    /// How often the service is started anew for each question.
    #[arg(long, default_value_t = 3)]
    cold_runs: usize,
    /// Only this engine.
    #[arg(long)]
    engine: Option<Engine>,
    /// Keep the data here, and use what is there.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Keep PostgreSQL's data on this server: `postgres://USER@HOST:PORT`.
    #[arg(long)]
    postgres: Option<String>,
}

/// Medians by question and engine, a size after the other.
type Growth = HashMap<(Engine, &'static str), Vec<(u64, Duration)>>;

pub(crate) async fn run(arguments: Arguments) {
    let mut places = Places::new(arguments.folder.as_deref(), arguments.postgres.as_deref());
    let engines: Vec<_> =
        Engine::ALL.into_iter().filter(|engine| arguments.engine.is_none_or(|only| only == *engine)).collect();
    println!("{}", place::versions(&mut places, &engines).await);
    let mut growth = Growth::new();
    for events in &arguments.events {
        let name = format!("usage_{events}");
        let traffic = Arc::new(Traffic::new(start_us(&places, &name), *events));
        let mut peers = None;
        for engine in &engines {
            println!("\n{events} requests over 30 days, {}", engine.name());
            let url = places.url(*engine, &name).await;
            let mut service = filled(&url, &traffic).await;
            if peers.is_none() {
                let runs = arguments.peer_runs;
                peers = Some(duckdb::ask(&places, &name, &url, traffic.start_us, *events, runs).await);
            }
            for (question, median) in ask(&mut service, &traffic, peers.as_ref().unwrap(), &arguments).await {
                growth.entry((*engine, question)).or_default().push((*events, median));
            }
            service.stop().await;
        }
    }
    grown(&growth, &engines);
}

/// When the traffic begins: 30 days ago, or as it did when the data that is there was made.
fn start_us(places: &Places, name: &str) -> i64 {
    let file = places.file(&format!("{name}.start"));
    if let Ok(text) = std::fs::read_to_string(&file) {
        return text.trim().parse().unwrap();
    }
    let start_us = load::start_us();
    std::fs::write(&file, start_us.to_string()).unwrap();
    start_us
}

/// A service on a database that holds the traffic, and nothing that is still to be sealed.
async fn filled(url: &str, traffic: &Arc<Traffic>) -> Measured {
    let settings = [("ROLLUP__SEAL_INTERVAL_MS", "1000")];
    let service = Measured::start("usage", url, &settings).await;
    if number(url, "SELECT COUNT(*) FROM usage_requests").await.unsigned_abs() != traffic.events {
        let begun = Instant::now();
        load::fill(service.service.channel(), traffic).await;
        let took = begun.elapsed();
        println!(
            "  filled in {took:.1?}, {:.0} requests/s; the service's memory at its peak {} MiB",
            traffic.events as f64 / took.as_secs_f64(),
            mib(peak_bytes(service.pid()))
        );
    }
    let begun = Instant::now();
    while number(url, "SELECT COUNT(*) FROM usage_deltas").await != 0 {
        assert!(begun.elapsed() < load::PATIENCE, "not sealed:\n{}", service.service.process().log());
        sleep(Duration::from_millis(100)).await;
    }
    let segments = "SELECT CAST(COALESCE(SUM(LENGTH(data)), 0) AS BIGINT) FROM usage_segments";
    println!(
        "  all sealed after another {:.1?}; segments take {} of the database's {} bytes a request",
        begun.elapsed(),
        number(url, segments).await.unsigned_abs() / traffic.events,
        bytes(url).await / traffic.events
    );
    service
}

/// The first connection, so that no question pays for it.
async fn connected(service: &Measured, start_us: i64) -> Channel {
    let channel = service.service.channel();
    let page = QUESTIONS.last().unwrap();
    page.call(&channel, start_us).await;
    channel
}

async fn ask(
    service: &mut Measured,
    traffic: &Traffic,
    peers: &[Peer],
    arguments: &Arguments,
) -> Vec<(&'static str, Duration)> {
    let start_us = traffic.start_us;
    // What filled it has had its own memory.
    service.stop().await;
    service.service.start_again().await;
    let channel = connected(service, start_us).await;
    println!(
        "  {:<42} {:>9} {:>9} | {:>12} {:>6} | {:>12} {:>6} | {:>9}",
        "", "median", "p99", "DuckDB", "×", "sums only", "×", "cold, max"
    );
    let mut medians = Vec::new();
    for (question, peer) in QUESTIONS.iter().zip(peers) {
        equal(question, &peer.rows, question.call(&channel, start_us).await);
        let mut times = Vec::with_capacity(arguments.runs);
        for _ in 0..arguments.runs {
            let begun = Instant::now();
            question.call(&channel, start_us).await;
            times.push(begun.elapsed());
        }
        let times = Times::new(times);
        medians.push((question.name, times));
    }
    let mixed = mixed(&channel, start_us, arguments.runs).await;
    let (rss, peak) = (rss_bytes(service.pid()), peak_bytes(service.pid()));
    let cache = service.metric("activity_rollup_cache_bytes", "").await.unwrap_or(0.0);
    let mut result = Vec::new();
    for ((question, peer), (_, times)) in QUESTIONS.iter().zip(peers).zip(medians) {
        let cold = cold(service, question, start_us, arguments.cold_runs).await;
        let median = times.median();
        println!(
            "  {:<42} {:>6.2} ms {:>6.2} ms | {:>9.1} ms {:>6.1} | {:>9.1} ms {:>6.1} | {:>6.0} ms",
            question.name,
            ms(median),
            ms(times.p99()),
            ms(peer.times.median()),
            ms(peer.times.median()) / ms(median),
            ms(peer.sums.median()),
            ms(peer.sums.median()) / ms(median),
            ms(cold.max()),
        );
        result.push((question.name, median));
    }
    println!(
        "  {:<42} {:>6.2} ms {:>6.2} ms, at most {:.0} ms",
        "all of them by turns",
        ms(mixed.median()),
        ms(mixed.p99()),
        ms(mixed.max())
    );
    println!(
        "  memory of the service: {} MiB, {} MiB at its peak; sections in its cache {} MiB",
        mib(rss),
        mib(peak),
        mib(cache as u64)
    );
    result
}

/// All questions one after the other, over and over: what they keep in memory is not one question's.
async fn mixed(channel: &Channel, start_us: i64, runs: usize) -> Times {
    let mut times = Vec::new();
    for _ in 0..runs.div_ceil(10) {
        for question in QUESTIONS {
            let begun = Instant::now();
            question.call(channel, start_us).await;
            times.push(begun.elapsed());
        }
    }
    Times::new(times)
}

/// The first question after a start, its connection included.
async fn cold(service: &mut Measured, question: &Question, start_us: i64, runs: usize) -> Times {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs.max(1) {
        service.stop().await;
        service.service.start_again().await;
        let channel = service.service.channel();
        let begun = Instant::now();
        question.call(&channel, start_us).await;
        times.push(begun.elapsed());
    }
    Times::new(times)
}

fn equal(question: &Question, peer: &Answer, ours: Answer) {
    let (mut peer, mut ours) = (peer.clone(), ours);
    if question.unordered() {
        peer.sort();
        ours.sort();
    }
    let differs = peer.iter().zip(&ours).find(|(peer, ours)| peer != ours);
    assert!(
        peer.len() == ours.len() && differs.is_none(),
        "{}: DuckDB has {} rows and we {}; the first that differ: {differs:?}",
        question.name,
        peer.len(),
        ours.len()
    );
    assert!(!ours.is_empty() || matches!(question.ask, Ask::Page), "{}: no rows", question.name);
}

fn grown(growth: &Growth, engines: &[Engine]) {
    for engine in engines {
        let mut lines = Vec::new();
        for question in QUESTIONS {
            let medians = &growth[&(*engine, question.name)];
            let (Some((from, first)), Some((to, last))) = (medians.first(), medians.last()) else { continue };
            if from < to {
                let times = last.as_secs_f64() / first.as_secs_f64();
                lines.push(format!("  {:<42} {times:.2}", question.name));
            }
        }
        if !lines.is_empty() {
            println!("\n{}: median at the largest size by that at the smallest\n{}", engine.name(), lines.join("\n"));
        }
    }
}
