//! What a well-behaved writer waits for its acknowledgements before, during and after everything at once: half-open
//! connections, a flood of streams that are reset as they open, and exports that nobody reads.

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::RecordEventsRequest;
use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::usage::v1::RecordUsageRequest;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use clap::Args;
use e2e::siege::{self, Phase, Siege};
use e2e::{Engine, Sandbox, events};
use testkit::{eventually, rss_bytes};

use crate::Kind;
use crate::machine::mib;

/// How long the attackers take to be in place, and to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Arguments {
    /// Connections that never finish their preface.
    #[arg(long, default_value_t = 500)]
    half_open: usize,
    /// Streams that are opened and reset in a second.
    #[arg(long, default_value_t = 2_000)]
    resets: u32,
    /// Exports whose readers have stopped.
    #[arg(long, default_value_t = 50)]
    stopped: usize,
    /// How long each phase is.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// The writer's batches in a second.
    #[arg(long, default_value_t = 50)]
    batches: u32,
    /// Events in each.
    #[arg(long, default_value_t = 20)]
    events: u64,
    /// Only this service.
    #[arg(long)]
    service: Option<Kind>,
}

pub(crate) async fn run(arguments: Arguments) {
    println!(
        "{} half-open connections, {} resets a second, {} stopped exports; a writer of {} batches of {} events a second",
        arguments.half_open, arguments.resets, arguments.stopped, arguments.batches, arguments.events
    );
    for kind in [Kind::Usage, Kind::Audit] {
        if arguments.service.is_none_or(|only| only == kind) {
            println!("\n{} on SQLite", kind.name());
            besiege(kind, &arguments).await;
        }
    }
}

async fn besiege(kind: Kind, arguments: &Arguments) {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let (service, attacks) = match kind {
        Kind::Usage => (&sandbox.usage, siege::usage()),
        Kind::Audit => (&sandbox.audit, siege::audit()),
    };
    let mut audit = AuditIngestServiceClient::new(sandbox.audit.channel());
    let mut usage = UsageIngestServiceClient::new(sandbox.usage.channel());
    let (now, mut next) = (SystemTime::now(), 0);
    let mut write = async |count: u64| {
        let range = next..next + count;
        next += count;
        let accepted = match kind {
            Kind::Usage => {
                let events = range.map(|n| events::usage(now, n)).collect();
                usage.record_usage(RecordUsageRequest { events }).await.unwrap().into_inner().accepted
            }
            Kind::Audit => {
                let events = range.map(|n| events::audit(now, n)).collect();
                audit
                    .record_events(RecordEventsRequest { events, ..Default::default() })
                    .await
                    .unwrap()
                    .into_inner()
                    .accepted
            }
        };
        assert_eq!(accepted.map(u64::from), Some(count));
    };
    // What the exports are of.
    for _ in 0..5 {
        write(1_000).await;
    }
    let span = Duration::from_secs(arguments.seconds);
    let mut phase = async || Phase::paced(span, arguments.batches, async || write(arguments.events).await).await;
    println!("  before: {}", phase().await.figures());

    let (address, memory) = (service.address().parse().unwrap(), rss_bytes(service.process().pid()));
    let mut siege = Siege::default();
    siege.half_open(address, arguments.half_open);
    siege.rapid_reset(address, attacks.path, arguments.resets);
    siege.stopped_readers(address, attacks.export, &attacks.request, arguments.stopped);
    let all = (arguments.half_open, arguments.stopped);
    eventually(PATIENCE, async || {
        let now = (siege.half_open_now(), siege.stopped_now());
        if now == all && siege.resets() > 0 { Ok(()) } else { Err(now) }
    })
    .await;
    let resets = siege.resets();
    println!("  during: {}", phase().await.figures());
    println!(
        "    held at its end: {} half open, {} stopped, {:.0} resets a second; cut off {} times; memory {} MiB, before {} MiB",
        siege.half_open_now(),
        siege.stopped_now(),
        (siege.resets() - resets) as f64 / span.as_secs_f64(),
        siege.cut_off(),
        mib(rss_bytes(service.process().pid())),
        mib(memory)
    );
    siege.lift().await;
    // One is the writer's.
    eventually(PATIENCE, async || {
        let open = service.metric("activity_connections").await;
        if open <= 1.0 { Ok(()) } else { Err(open) }
    })
    .await;
    println!("  after:  {}", phase().await.figures());
}
