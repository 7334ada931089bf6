//! usage-service on a Citus cluster, where there is one (`TEST_CITUS_URL`): three replicas that are sent the same
//! events, and workers that go away.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use activity_proto::common::v1::{TimeRange, TimeRangePreset, time_range::Range};
use activity_proto::usage::v1::export_usage_response::Part;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{
    Dimension, ExportFormat, ExportShape, ExportUsageRequest, GetSummaryRequest, ListBreakdownRequest, Metric,
    RecordUsageRequest,
};
use e2e::{Service, events};
use futures::StreamExt as _;
use testkit::{Citus, eventually};
use tonic::Code;
use tonic_types::StatusExt as _;

const BATCHES: u64 = 60;
const BATCH: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(120);

fn last_day() -> Option<TimeRange> {
    let range = Some(Range::Preset(TimeRangePreset::Last24Hours.into()));
    Some(TimeRange { range, time_zone: String::new() })
}

async fn requests(service: &Service) -> u64 {
    let request = GetSummaryRequest { time_range: last_day(), ..Default::default() };
    let answer = UsageQueryServiceClient::new(service.channel()).get_summary(request).await.unwrap().into_inner();
    answer.summary.unwrap().requests.unwrap()
}

/// The ids in an export, in its order.
async fn exported(service: &Service) -> Vec<String> {
    let request = ExportUsageRequest {
        time_range: last_day(),
        shape: ExportShape::Requests.into(),
        format: ExportFormat::Jsonl.into(),
        ..Default::default()
    };
    let mut stream = UsageQueryServiceClient::new(service.channel()).export_usage(request).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    let mut ended = false;
    while let Some(message) = stream.next().await {
        match message.unwrap().part.unwrap() {
            Part::Chunk(chunk) => bytes.extend(chunk.data),
            Part::End(_) => ended = true,
        }
    }
    assert!(ended);
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let id = |line| serde_json::from_slice::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    lines.map(id).collect()
}

/// What was acknowledged, and what was refused because a worker was away.
#[derive(Default)]
struct Told {
    batches: AtomicU64,
    accepted: AtomicU64,
    unavailable: AtomicU64,
}

/// Sends all batches, in an order of its own, each until it is acknowledged.
async fn send(service: &Service, now: SystemTime, sender: u64, told: &Told) {
    for turn in 0..BATCHES {
        let batch = (turn * 7 + sender * 20) % BATCHES;
        let events: Vec<_> = (batch * BATCH..(batch + 1) * BATCH).map(|n| events::usage(now, n)).collect();
        let answer = loop {
            let request = RecordUsageRequest { events: events.clone() };
            match UsageIngestServiceClient::new(service.channel()).record_usage(request).await {
                Ok(answer) => break answer.into_inner(),
                Err(status) => {
                    let allowed = matches!(status.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded);
                    assert!(allowed, "{status:?}");
                    if status.code() == Code::Unavailable {
                        told.unavailable.fetch_add(1, Ordering::SeqCst);
                        // As a client does that is told so.
                        let pause = status.get_details_retry_info().unwrap().retry_delay.unwrap();
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        };
        assert_eq!(answer.rejected, []);
        assert_eq!(u64::from(answer.accepted.unwrap() + answer.duplicate.unwrap()), BATCH);
        told.accepted.fetch_add(answer.accepted.unwrap().into(), Ordering::SeqCst);
        told.batches.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_store_each_event_once_though_workers_go_away() {
    if Citus::skipped() {
        return;
    }
    let citus = Citus::create_behind_proxies().await;
    let settings = [("DATABASE__CITUS_SHARDS", "4"), ("ROLLUP__SEAL_INTERVAL_MS", "1000")];
    let url = citus.url();
    let start = || Service::start("usage", &url, &settings);
    let (a, b, c) = tokio::join!(start(), start(), start());
    let services = [a, b, c];
    let now = SystemTime::now();
    let told = Told::default();
    let seen = |counter: &AtomicU64| counter.load(Ordering::SeqCst);

    let trouble = async {
        for worker in [0, 1] {
            let before = seen(&told.batches);
            eventually(PATIENCE, async || seen(&told.batches) > before + 10).await;
            assert!(requests(&services[worker]).await >= seen(&told.batches).min(10) * BATCH / 3);
            let refused = seen(&told.unavailable);
            citus.cut(worker);
            // For some seconds: each sender is refused again and again.
            eventually(PATIENCE, async || seen(&told.unavailable) >= refused + 9).await;
            citus.mend(worker);
        }
    };
    let all = async {
        tokio::join!(
            send(&services[0], now, 0, &told),
            send(&services[1], now, 1, &told),
            send(&services[2], now, 2, &told),
            trouble
        )
    };
    tokio::time::timeout(Duration::from_secs(400), all).await.unwrap();

    let expected: BTreeSet<String> = (0..BATCHES * BATCH).map(|n| events::usage(now, n).id).collect();
    // An acknowledgement that was lost is a duplicate the next time.
    assert!(seen(&told.accepted) <= expected.len() as u64, "{} were told as new", seen(&told.accepted));
    for service in &services {
        assert_eq!(requests(service).await, expected.len() as u64);
        let ids = exported(service).await;
        assert_eq!(ids.len(), expected.len());
        assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), expected);
        let request = ListBreakdownRequest {
            time_range: last_day(),
            group_by: vec![Dimension::User.into(), Dimension::Model.into()],
            order_by: Metric::Requests.into(),
            limit: 5,
            ..Default::default()
        };
        let answer =
            UsageQueryServiceClient::new(service.channel()).list_breakdown(request).await.unwrap().into_inner();
        let rows: u64 = answer.rows.iter().map(|row| row.metrics.as_ref().unwrap().requests.unwrap()).sum();
        assert_eq!(rows + answer.other.unwrap().requests.unwrap(), expected.len() as u64);
    }
    drop(services);
    citus.drop_database().await;
}

#[tokio::test]
async fn a_log_of_audit_is_refused() {
    let program = testkit::binary("audit-service");
    let output = std::process::Command::new(program).env("AUDIT_DATABASE__CITUS_SHARDS", "4").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("citus_shards is 4") && why.contains("allowed is none"), "{why}");
}
