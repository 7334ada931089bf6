//! Durable ingest through SDK, stream and commit, with sealing going on, beside what the engine alone does with the
//! same rows; then acknowledgements at half that load.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use testkit::{Realm, rss_bytes};

use crate::load::Target;
use crate::machine::{Measured, cpu_seconds, median, mib, ms, peak_bytes};
use crate::place::{Engine, Places, bytes};
use crate::raw::{self, Way};
use crate::traffic::{HOUR_US, SPAN_US, Traffic};
use crate::{Kind, load, place};

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many events a service takes in, each round.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// How many of their rows the engine takes in alone, each round.
    #[arg(long, default_value_t = 200_000)]
    raw: u64,
    /// Rounds; ratios are the median's.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long events come at half the load.
    #[arg(long, default_value_t = 15)]
    paced_seconds: u64,
    /// Only this engine.
    #[arg(long)]
    engine: Option<Engine>,
    /// Only this service.
    #[arg(long)]
    service: Option<Kind>,
    /// Instead of the engine: the same behind TLS with a token on each stream, by turns with plain text.
    #[arg(long)]
    secured: bool,
    /// Put the data here.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Put PostgreSQL's data on this server: `postgres://USER@HOST:PORT`.
    #[arg(long)]
    postgres: Option<String>,
}

/// What one round found.
struct Round {
    rate: f64,
    ways: Vec<Way>,
}

pub(crate) async fn run(arguments: Arguments) {
    let mut places = Places::new(arguments.folder.as_deref(), arguments.postgres.as_deref());
    println!("{}", place::versions(&mut places, &Engine::ALL).await);
    for kind in [Kind::Usage, Kind::Audit] {
        for engine in Engine::ALL {
            let wanted =
                arguments.service.is_none_or(|only| only == kind) && arguments.engine.is_none_or(|only| only == engine);
            if !wanted {
                continue;
            }
            println!("\n{} on {}", kind.name(), engine.name());
            if arguments.secured {
                secured(&mut places, kind, engine, &arguments).await;
                continue;
            }
            let mut rounds = Vec::new();
            for number in 1..=arguments.rounds {
                rounds.push(round(&mut places, kind, engine, number, &arguments).await);
            }
            let ratios = rounds.iter().map(|round| round.rate / raw::best(&round.ways).per_second()).collect();
            println!(
                "  median of {} rounds: {:.0} events/s, {:.2} of the quickest way that deduplicates",
                rounds.len(),
                median(rounds.iter().map(|round| round.rate).collect()),
                median(ratios)
            );
        }
    }
}

/// What TLS and tokens leave of the rate without.
async fn secured(places: &mut Places, kind: Kind, engine: Engine, arguments: &Arguments) {
    let mut ratios = Vec::new();
    for number in 1..=arguments.rounds {
        let realm = Realm::new();
        // By turns first, so that what changes with time changes both.
        let mut rates = [0.0; 2];
        let mut cpu = [0.0; 2];
        for turn in [number % 2, (number + 1) % 2] {
            let with = (turn == 1).then_some(&realm);
            let (mut service, _, rate) = fill(places, kind, engine, with, arguments.events).await;
            rates[turn] = rate;
            cpu[turn] = cpu_seconds(service.pid()) * 1e6 / arguments.events as f64;
            service.stop().await;
        }
        places.remove(engine, FILLED).await;
        let [plain, secured] = rates;
        ratios.push(secured / plain);
        println!(
            "  round {number}: {plain:.0} events/s in plain text, {secured:.0} with TLS and tokens: {:.2}; \
             the service's processor time {:.2} and {:.2} µs an event",
            secured / plain,
            cpu[0],
            cpu[1]
        );
    }
    println!("  median of {} rounds: {:.2}", ratios.len(), median(ratios));
}

/// The database that a service fills.
const FILLED: &str = "ingest_filled";

/// A new service, filled through the SDK; its database, and how many events it took in a second.
async fn fill(
    places: &mut Places,
    kind: Kind,
    engine: Engine,
    realm: Option<&Realm>,
    events: u64,
) -> (Measured, String, f64) {
    places.remove(engine, FILLED).await;
    let url = places.url(engine, FILLED).await;
    let settings = realm.map(Realm::settings).unwrap_or_default();
    let settings: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let service = Measured::start(kind.name(), &url, &settings).await;
    let target = Target { address: service.service.address(), realm };
    let traffic = Arc::new(Traffic::new(load::start_us(), events));
    let begun = Instant::now();
    match kind {
        Kind::Usage => load::usage(&target, &traffic).await,
        Kind::Audit => load::audit(&target, events).await,
    }
    let rate = events as f64 / begun.elapsed().as_secs_f64();
    (service, url, rate)
}

async fn round(places: &mut Places, kind: Kind, engine: Engine, number: usize, arguments: &Arguments) -> Round {
    let empty = "ingest_empty";
    places.remove(engine, empty).await;
    let (mut service, url, rate) = fill(places, kind, engine, None, arguments.events).await;
    let count = |name: &'static str| service.metric(name, "");
    let groups = count("activity_group_commit_events_count").await.unwrap();
    let group = (count("activity_group_commit_events_sum").await.unwrap() / groups).round().max(1.0) as usize;
    println!("  round {number}: {rate:.0} events/s, each acknowledged after its commit, in groups of {group}");
    let cache = count("activity_rollup_cache_bytes").await.unwrap_or(0.0) as u64;
    let sealings = service.metric("activity_rollup_steps_total", "outcome=\"sealed\"").await;
    println!(
        "    memory of the service: {} MiB, {} MiB at its peak, {} MiB of it sections in its cache{}; {} bytes a row on disk",
        mib(rss_bytes(service.pid())),
        mib(peak_bytes(service.pid())),
        mib(cache),
        sealings.map_or_else(String::new, |steps| format!("; {steps} sealings meanwhile")),
        bytes(&url).await / arguments.events,
    );

    let ways = alone(places, kind, engine, &url, empty, arguments.raw, group).await;
    for way in &ways {
        println!(
            "    the engine alone, {}: {:.0} rows/s; ingest is {:.2} of it",
            way.name,
            way.per_second(),
            rate / way.per_second()
        );
    }
    // What the engine alone has left to write is no part of what follows.
    places.remove(engine, empty).await;
    place::checkpoint(&url).await;
    if number == arguments.rounds {
        let address = service.service.address().to_owned();
        let target = Target { address: &address, realm: None };
        paced(&service, &target, kind, rate / 2.0, arguments.paced_seconds).await;
    }
    service.stop().await;
    for name in [FILLED, empty] {
        places.remove(engine, name).await;
    }
    Round { rate, ways }
}

/// What the engine does without us, in databases that the service has made.
async fn alone(
    places: &mut Places,
    kind: Kind,
    engine: Engine,
    filled: &str,
    empty: &str,
    most: u64,
    group: usize,
) -> Vec<Way> {
    let url = places.url(engine, empty).await;
    Measured::start(kind.name(), &url, &[]).await.stop().await;
    match engine {
        Engine::Sqlite => {
            raw::sqlite::ways(places, filled, empty, kind.table(), most, group, kind == Kind::Audit).await
        }
        Engine::Postgres => {
            if kind == Kind::Usage {
                let partitions = "SELECT COUNT(usage_add_partition(day::date)) \
                                  FROM generate_series(now() - interval '32 days', now(), interval '1 day') AS day";
                place::number(&url, partitions).await;
            }
            raw::postgres::ways(places, filled, empty, kind.table(), most, group).await
        }
    }
}

async fn paced(service: &Measured, target: &Target<'_>, kind: Kind, per_second: f64, seconds: u64) {
    let events = (per_second * seconds as f64) as u64;
    let times = match kind {
        Kind::Usage => {
            // As it comes from a gateway that is up: of the last hour.
            let traffic = Arc::new(Traffic::hour(load::start_us() + SPAN_US - HOUR_US, events));
            let record = Traffic::new(load::start_us(), 50_000);
            let times = load::usage_acknowledgements(service.service.channel(), traffic, per_second).await;
            let calls = load::record_times(target, &record).await;
            println!(
                "  SDK's record, one thread: median {:?}, p99 {:?}, p99.9 {:?}",
                calls.median(),
                calls.p99(),
                calls.at(999)
            );
            times
        }
        Kind::Audit => load::audit_acknowledgements(target, events, per_second).await,
    };
    println!(
        "  acknowledgement at {per_second:.0} events/s for {seconds} s: median {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, \
         at most {:.0} ms",
        ms(times.median()),
        ms(times.p99()),
        ms(times.at(999)),
        ms(times.max())
    );
}
