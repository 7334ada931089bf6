//! Memory is bounded whatever clients do: messages that swell, a hundred exports at once, a thousand idle tails.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::export_entries_response::Part as AuditPart;
use activity_proto::audit::v1::tail_entries_response::Event as Tailed;
use activity_proto::audit::v1::{
    ExportEntriesRequest, ExportFormat, RecordEventsRequest, TailEntriesRequest, export_entries_request,
};
use activity_proto::common::v1::{TimeRange, TimeRangePreset, time_range::Range};
use activity_proto::usage::v1::export_usage_response::Part as UsagePart;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{ExportFormat as UsageFormat, ExportShape, ExportUsageRequest, RecordUsageRequest};
use e2e::{Engine, Sandbox, Service, events, raw};
use futures::future::join_all;
use prost::bytes::Bytes;
use testkit::{eventually, rss_bytes};
use tokio::time::timeout;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic_types::StatusExt;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn rss(service: &Service) -> u64 {
    rss_bytes(service.process().pid())
}

fn last_day() -> TimeRange {
    TimeRange { range: Some(Range::Preset(TimeRangePreset::Last24Hours.into())), time_zone: String::new() }
}

async fn fill(sandbox: &Sandbox, thousands: u64) {
    let now = SystemTime::now();
    let mut audit = AuditIngestServiceClient::new(sandbox.audit.channel());
    let mut usage = UsageIngestServiceClient::new(sandbox.usage.channel());
    for part in 0..thousands {
        let range = part * 1_000..(part + 1) * 1_000;
        let events = range.clone().map(|n| events::audit(now, n)).collect();
        audit.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();
        let events = range.map(|n| events::usage(now, n)).collect();
        usage.record_usage(RecordUsageRequest { events }).await.unwrap();
    }
}

#[tokio::test]
async fn a_message_that_swells_is_stopped_at_the_limit_and_memory_stays_flat() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    // A field that nobody knows, of 256 MiB; as sent it takes some 20 to 260 KiB.
    let bytes = 256 << 20;
    let mut bomb = vec![0; bytes + 8];
    bomb[..6].copy_from_slice(&[0xfa, 0x7f, 0x80, 0x80, 0x80, 0x80]);
    bomb[6] = 1;
    let bomb = Bytes::from(bomb);
    let paths = [
        (&sandbox.audit, "/activity.audit.v1.AuditIngestService/RecordEvents"),
        (&sandbox.audit, "/activity.audit.v1.AuditIngestService/StreamEvents"),
        (&sandbox.audit, "/activity.audit.v1.AuditQueryService/ListEntries"),
        (&sandbox.usage, "/activity.usage.v1.UsageIngestService/RecordUsage"),
        (&sandbox.usage, "/activity.usage.v1.UsageQueryService/GetSummary"),
        (&sandbox.usage, "/activity.usage.v1.PricingService/ListPrices"),
    ];
    for (service, path) in paths {
        for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
            let before = rss(service);
            let status = raw::call(service.channel(), path, bomb.clone(), Some(encoding)).await.expect_err("refused");
            let info = status.get_details_error_info().expect("ErrorInfo");
            assert_eq!((status.code(), info.reason.as_str()), (Code::ResourceExhausted, "TOO_LARGE"), "{path}");
            assert!(status.get_details_retry_info().is_none(), "{path}: it is too large for good");
            let after = rss(service);
            // The first call also makes buffers and threads that stay: what must not be there is the message.
            assert!(after < before + 64 * MIB, "{path}, {encoding:?}: {} MiB, then {}", before / MIB, after / MIB);
        }
    }
}

#[tokio::test]
async fn a_hundred_exports_at_once_take_bounded_memory_and_each_is_whole() {
    let thousands = if std::env::var_os("FULL").is_some() { 20 } else { 2 };
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    fill(&sandbox, thousands).await;
    let audit_export = || {
        let mut client = AuditQueryServiceClient::new(sandbox.audit.channel());
        async move {
            let request = ExportEntriesRequest {
                range: Some(export_entries_request::Range::TimeRange(last_day())),
                format: ExportFormat::Jsonl.into(),
                ..Default::default()
            };
            let mut stream = client.export_entries(request).await.unwrap().into_inner();
            loop {
                match stream.message().await.unwrap().expect("an end").part.unwrap() {
                    AuditPart::Chunk(_) => {}
                    AuditPart::End(end) => return end.entries.unwrap(),
                }
            }
        }
    };
    let usage_export = || {
        let mut client = UsageQueryServiceClient::new(sandbox.usage.channel());
        async move {
            let request = ExportUsageRequest {
                time_range: Some(last_day()),
                shape: ExportShape::Requests.into(),
                format: UsageFormat::Csv.into(),
                ..Default::default()
            };
            let mut stream = client.export_usage(request).await.unwrap().into_inner();
            loop {
                match stream.message().await.unwrap().expect("an end").part.unwrap() {
                    UsagePart::Chunk(_) => {}
                    UsagePart::End(end) => return end.rows.unwrap(),
                }
            }
        }
    };
    // The first warms caches.
    assert_eq!((audit_export().await, usage_export().await), (thousands * 1_000, thousands * 1_000));
    let before = (rss(&sandbox.audit), rss(&sandbox.usage));
    let mut highest = before;
    let exports = async {
        let audit = join_all((0..100).map(|_| audit_export())).await;
        let usage = join_all((0..100).map(|_| usage_export())).await;
        audit.into_iter().chain(usage).collect::<Vec<_>>()
    };
    tokio::pin!(exports);
    let counts = loop {
        tokio::select! {
            counts = &mut exports => break counts,
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                highest = (highest.0.max(rss(&sandbox.audit)), highest.1.max(rss(&sandbox.usage)));
            }
        }
    };
    assert!(counts.iter().all(|count| *count == thousands * 1_000), "{counts:?}");
    for (name, before, highest) in [("audit", before.0, highest.0), ("usage", before.1, highest.1)] {
        eprintln!("100 exports at once, {name}: {} MiB before, {} MiB at most", before / MIB, highest / MIB);
        // Two MiB each: a page of rows, a chunk of 256 KiB, and what lies with HTTP/2.
        assert!(highest < before + 200 * MIB, "{name}: {} MiB, then {} MiB", before / MIB, highest / MIB);
    }
}

#[tokio::test]
async fn a_thousand_idle_tails_take_little_memory_and_all_are_told() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    fill(&sandbox, 1).await;
    let before = rss(&sandbox.audit);
    let mut tails = Vec::new();
    for _ in 0..5 {
        let client = AuditQueryServiceClient::new(sandbox.audit.channel());
        for _ in 0..200 {
            let mut client = client.clone();
            let request = TailEntriesRequest { instance_id: "eu-1".into(), ..Default::default() };
            let mut tail = client.tail_entries(request).await.unwrap().into_inner();
            // It says at once where it begins.
            let first = tail.message().await.unwrap().unwrap().event.unwrap();
            assert!(matches!(first, Tailed::Heartbeat(_)));
            tails.push(tail);
        }
    }
    let with = rss(&sandbox.audit);
    eprintln!("1,000 idle tails: {} MiB before, {} MiB with them", before / MIB, with / MIB);
    assert!(with < before + 64 * MIB, "{} MiB, then {} MiB", before / MIB, with / MIB);

    let event = events::audit(SystemTime::now(), 5_000_000);
    let request = RecordEventsRequest { events: vec![event.clone()], ..Default::default() };
    AuditIngestServiceClient::new(sandbox.audit.channel()).record_events(request).await.unwrap();
    let told = tails.iter_mut().map(|tail| async {
        loop {
            let next = timeout(PATIENCE, tail.message()).await.expect("in time").unwrap().unwrap();
            if let Some(Tailed::Entry(entry)) = next.event {
                break entry.id;
            }
        }
    });
    assert!(join_all(told).await.iter().all(|id| *id == event.id));
    drop(tails);
    eventually(PATIENCE, async || sandbox.audit.metric("activity_rpc_in_progress").await == 0.0).await;
}
