//! The drill of everything at once: half-open connections, a rapid-reset flood and stopped export readers are held
//! against both services while a writer goes on. `cargo bench -p e2e -- siege` measures the same at a steady pace.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::RecordEventsRequest;
use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::usage::v1::RecordUsageRequest;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use e2e::siege::{self, Phase, Siege};
use e2e::{Engine, Sandbox, Service, events};
use testkit::{eventually, rss_bytes};
use tokio::time::timeout;

/// A well-behaved client's own: whatever takes longer counts as not served.
const IN_TIME: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

async fn a_writer_is_served(sandbox: &Sandbox, service: &Service, attacks: siege::Attacks) {
    let span = if std::env::var_os("FULL").is_some() { Duration::from_secs(60) } else { Duration::from_secs(4) };
    let now = SystemTime::now();
    let mut audit = AuditIngestServiceClient::new(sandbox.audit.channel());
    let mut usage = UsageIngestServiceClient::new(sandbox.usage.channel());
    let is_audit = std::ptr::eq(service, &raw const sandbox.audit);
    let mut next = 0;
    let mut write = async |count: u64| {
        let range = next..next + count;
        next += count;
        let accepted = if is_audit {
            let events = range.map(|n| events::audit(now, n)).collect();
            let call = audit.record_events(RecordEventsRequest { events, ..Default::default() });
            timeout(IN_TIME, call).await.expect("served in time").unwrap().into_inner().accepted
        } else {
            let events = range.map(|n| events::usage(now, n)).collect();
            let call = usage.record_usage(RecordUsageRequest { events });
            timeout(IN_TIME, call).await.expect("served in time").unwrap().into_inner().accepted
        };
        assert_eq!(accepted, Some(u32::try_from(count).unwrap()));
    };
    // What the exports are of.
    for _ in 0..3 {
        write(1_000).await;
    }
    let before = Phase::of(span, async || write(10).await).await;
    let memory = rss_bytes(service.process().pid());

    let address = service.address().parse().unwrap();
    let mut siege = Siege::default();
    siege.half_open(address, 500);
    siege.rapid_reset(address, attacks.path, 2_000);
    siege.stopped_readers(address, attacks.export, &attacks.request, 50);
    eventually(PATIENCE, async || {
        let now = (siege.half_open_now(), siege.stopped_now());
        if now == (500, 50) && siege.resets() > 0 { Ok(()) } else { Err(now) }
    })
    .await;
    let during = Phase::of(span, async || write(10).await).await;
    let held = (siege.half_open_now(), siege.stopped_now(), siege.resets(), siege.cut_off());
    let highest = rss_bytes(service.process().pid());
    siege.lift().await;
    // One is the writer's.
    eventually(PATIENCE, async || {
        let open = service.metric("activity_connections").await;
        if open <= 1.0 { Ok(()) } else { Err(open) }
    })
    .await;
    let after = Phase::of(span, async || write(10).await).await;

    eprintln!("before: {}\nduring: {}\nafter:  {}", before.figures(), during.figures(), after.figures());
    eprintln!("half open, stopped readers, resets, cut off: {held:?}; {} then {} MiB", memory / MIB, highest / MIB);
    assert!(held.0 >= 400 && held.1 == 50 && held.2 >= 1_000, "the siege was held: {held:?}");
    assert!(highest < memory + 200 * MIB, "{} MiB, then {} MiB", memory / MIB, highest / MIB);
    // Served throughout: every write was acknowledged in time, and there were many. As before: a tenth of the rate
    // would be a server that has not recovered; what other work on this machine takes away is not.
    assert!(during.count() >= 10, "{}", during.figures());
    assert!(after.count() * 10 >= before.count(), "{}, then {}", before.figures(), after.figures());
    let calls = service.metric("activity_rpc_in_progress").await;
    assert_eq!(calls, 0.0, "nothing of the siege is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_of_audit_is_served_throughout_a_siege() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    a_writer_is_served(&sandbox, &sandbox.audit, siege::audit()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_of_usage_is_served_throughout_a_siege() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    a_writer_is_served(&sandbox, &sandbox.usage, siege::usage()).await;
}
