//! A big export in flat memory, and a reader that stops reading: writers go on, and nothing piles up.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, Instant, SystemTime};

use activity_proto::common::v1::{TimeRange, TimeRangePreset, time_range::Range};
use activity_proto::usage::v1::export_usage_response::Part;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{
    ExportFormat, ExportShape, ExportUsageRequest, ExportUsageResponse, RecordUsageRequest, StreamUsageRequest,
};
use e2e::{Engine, Sandbox, Service, events};
use testkit::rss_bytes;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const MIB: u64 = 1 << 20;

/// A million rows and a reader that stops for a minute in the full run; less of both otherwise.
fn size() -> (u64, Duration) {
    if std::env::var_os("FULL").is_some() {
        (1_000_000, Duration::from_secs(60))
    } else {
        (60_000, Duration::from_secs(3))
    }
}

async fn fill(service: &Service, rows: u64) {
    let now = SystemTime::now();
    let (send, requests) = tokio::sync::mpsc::channel(4);
    let sender = tokio::spawn(async move {
        for batch_id in 1..=rows / 1000 {
            let events = (0..1000).map(|n| events::usage(now, batch_id * 1000 + n)).collect();
            send.send(StreamUsageRequest { batch_id, events, dropped: vec![] }).await.unwrap();
        }
    });
    let mut answers = UsageIngestServiceClient::new(service.channel())
        .stream_usage(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    let mut stored = 0;
    while let Some(answer) = answers.next().await {
        stored += u64::from(answer.unwrap().accepted.unwrap());
    }
    sender.await.unwrap();
    assert_eq!(stored, rows);
}

async fn export(service: &Service) -> Streaming<ExportUsageResponse> {
    let request = ExportUsageRequest {
        time_range: Some(TimeRange {
            range: Some(Range::Preset(TimeRangePreset::Last24Hours.into())),
            time_zone: String::new(),
        }),
        shape: ExportShape::Requests.into(),
        format: ExportFormat::Csv.into(),
        ..ExportUsageRequest::default()
    };
    UsageQueryServiceClient::new(service.channel()).export_usage(request).await.unwrap().into_inner()
}

async fn a_big_export_is_flat_and_holds_nobody_up(engine: Engine) {
    let (rows, pause) = size();
    let sandbox = Sandbox::start(engine).await;
    fill(&sandbox.usage, rows).await;
    let pid = sandbox.usage.process().pid();

    // The first export warms caches; the second is measured against it.
    let mut stream = export(&sandbox.usage).await;
    while let Some(message) = stream.next().await {
        message.unwrap();
    }
    let before = rss_bytes(pid);
    let mut highest = before;
    let mut stream = export(&sandbox.usage).await;
    let mut exported = None;
    let mut lines = 0_usize;
    while let Some(message) = stream.next().await {
        match message.unwrap().part.unwrap() {
            Part::Chunk(chunk) => lines += chunk.data.iter().filter(|byte| **byte == b'\n').count(),
            Part::End(end) => exported = end.rows,
        }
        highest = highest.max(rss_bytes(pid));
    }
    assert_eq!(exported, Some(rows));
    assert_eq!(lines as u64, rows + 1, "a header and a line a row");
    assert!(highest < before + 32 * MIB, "{} MiB, then {} MiB", before / MIB, highest / MIB);

    // One reader takes its first chunk and stops; a writer goes on meanwhile.
    let mut stopped = export(&sandbox.usage).await;
    stopped.next().await.unwrap().unwrap();
    let mut client = UsageIngestServiceClient::new(sandbox.usage.channel());
    let end = Instant::now() + pause;
    let later = SystemTime::now();
    let mut written = 0;
    let mut slowest = Duration::ZERO;
    while Instant::now() < end {
        let start = Instant::now();
        let events = (0..100).map(|n| events::usage(later, 5_000_000 + written + n)).collect();
        let answer = client.record_usage(RecordUsageRequest { events }).await.unwrap().into_inner();
        assert_eq!(answer.accepted, Some(100));
        slowest = slowest.max(start.elapsed());
        written += 100;
    }
    assert!(slowest < Duration::from_secs(5), "a writer waited {slowest:?}");
    assert!(rss_bytes(pid) < before + 64 * MIB, "{} MiB", rss_bytes(pid) / MIB);

    // The stopped reader goes on, and what was written meanwhile is not in its export.
    let mut exported = None;
    while let Some(message) = stopped.next().await {
        if let Part::End(end) = message.unwrap().part.unwrap() {
            exported = end.rows;
        }
    }
    assert_eq!(exported, Some(rows));
}

#[tokio::test]
async fn a_big_export_is_flat_and_holds_nobody_up_on_sqlite() {
    a_big_export_is_flat_and_holds_nobody_up(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_big_export_is_flat_and_holds_nobody_up_on_postgres() {
    a_big_export_is_flat_and_holds_nobody_up(Engine::Postgres).await;
}
