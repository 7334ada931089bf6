//! Clients that vanish, or fall silent, in the middle of anything: what they held is free within a second, and what
//! was acknowledged to them is there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::{
    ExportEntriesRequest, ExportFormat, ListEntriesRequest, RecordEventsRequest, StreamEventsRequest,
    TailEntriesRequest, export_entries_request,
};
use activity_proto::common::v1::{TimeRange, TimeRangePreset, time_range::Range};
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::{
    ExportFormat as UsageFormat, ExportShape, ExportUsageRequest, RecordUsageRequest, StreamUsageRequest,
};
use e2e::wire::{DATA, END_HEADERS, END_STREAM, HEADERS, Wire, call, frame, message};
use e2e::{Engine, Sandbox, Service, events};
use prost::Message;
use testkit::{eventually, open_files};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
const CLIENT: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// How far a client comes before it vanishes.
enum Until {
    /// The first bytes of its request, as many as given, of which the server has read the last.
    Bytes(usize),
    /// It has sent all, and a DATA frame of the answer has arrived.
    Answer,
    /// It has sent all, and waits for nothing.
    Sent,
}

struct Case {
    path: &'static str,
    request: Vec<u8>,
    /// Whether the request ends with this message.
    ends: bool,
    until: Until,
}

fn last_day() -> TimeRange {
    TimeRange { range: Some(Range::Preset(TimeRangePreset::Last24Hours.into())), time_zone: String::new() }
}

fn audit_cases(now: SystemTime) -> Vec<Case> {
    let batch = |from| (from..from + 200).map(|n| events::audit(now, n)).collect::<Vec<_>>();
    let unary = RecordEventsRequest { events: batch(10_000), ..Default::default() }.encode_to_vec();
    let stream = StreamEventsRequest { batch_id: 1, events: batch(20_000), ..Default::default() }.encode_to_vec();
    let export = ExportEntriesRequest {
        range: Some(export_entries_request::Range::TimeRange(last_day())),
        format: ExportFormat::Jsonl.into(),
        ..Default::default()
    };
    let tail = TailEntriesRequest { instance_id: "eu-1".into(), ..Default::default() }.encode_to_vec();
    let list = ListEntriesRequest { page_size: 1_000, ..Default::default() }.encode_to_vec();
    let ingest = "/activity.audit.v1.AuditIngestService/RecordEvents";
    let streamed = "/activity.audit.v1.AuditIngestService/StreamEvents";
    let query = |name: &'static str| match name {
        "export" => "/activity.audit.v1.AuditQueryService/ExportEntries",
        "tail" => "/activity.audit.v1.AuditQueryService/TailEntries",
        _ => "/activity.audit.v1.AuditQueryService/ListEntries",
    };
    vec![
        Case { path: ingest, request: unary.clone(), ends: true, until: Until::Bytes(5_000) },
        Case { path: ingest, request: unary, ends: true, until: Until::Sent },
        Case { path: streamed, request: stream.clone(), ends: false, until: Until::Bytes(5_000) },
        Case { path: streamed, request: stream, ends: false, until: Until::Answer },
        Case { path: query("export"), request: export.encode_to_vec(), ends: true, until: Until::Answer },
        Case { path: query("tail"), request: tail, ends: true, until: Until::Answer },
        Case { path: query("list"), request: list, ends: true, until: Until::Sent },
    ]
}

fn usage_cases(now: SystemTime) -> Vec<Case> {
    let batch = |from| (from..from + 200).map(|n| events::usage(now, n)).collect::<Vec<_>>();
    let unary = RecordUsageRequest { events: batch(10_000) }.encode_to_vec();
    let stream = StreamUsageRequest { batch_id: 1, events: batch(20_000), dropped: vec![] }.encode_to_vec();
    let export = ExportUsageRequest {
        time_range: Some(last_day()),
        shape: ExportShape::Requests.into(),
        format: UsageFormat::Csv.into(),
        ..Default::default()
    };
    let ingest = "/activity.usage.v1.UsageIngestService/RecordUsage";
    let streamed = "/activity.usage.v1.UsageIngestService/StreamUsage";
    vec![
        Case { path: ingest, request: unary, ends: true, until: Until::Bytes(5_000) },
        Case { path: streamed, request: stream.clone(), ends: false, until: Until::Bytes(5_000) },
        Case { path: streamed, request: stream, ends: false, until: Until::Answer },
        Case {
            path: "/activity.usage.v1.UsageQueryService/ExportUsage",
            request: export.encode_to_vec(),
            ends: true,
            until: Until::Answer,
        },
        Case {
            path: "/activity.usage.v1.UsageQueryService/ListRequests",
            request: Vec::new(),
            ends: true,
            until: Until::Sent,
        },
    ]
}

/// Goes as far as the case says, and vanishes.
async fn vanish_in(service: &Service, case: &Case) {
    let mut wire = Wire::open(service.address(), CLIENT).await.unwrap();
    wire.send(&frame(HEADERS, END_HEADERS, 1, &call(case.path))).await.unwrap();
    let bytes = message(&case.request);
    let sent = match case.until {
        Until::Bytes(count) => &bytes[..count],
        Until::Answer | Until::Sent => &bytes,
    };
    let whole = sent.len() == bytes.len();
    // No frame is larger than was agreed.
    let mut frames = sent.chunks(16_000).peekable();
    while let Some(data) = frames.next() {
        let last = if frames.peek().is_none() && whole && case.ends { END_STREAM } else { 0 };
        wire.send(&frame(DATA, last, 1, data)).await.unwrap();
    }
    match case.until {
        Until::Bytes(_) => {
            wire.ping().await.unwrap();
            is_open(service).await;
        }
        Until::Answer => loop {
            let next = timeout(PATIENCE, wire.reader.next()).await.expect("an answer").unwrap();
            if next.kind == DATA {
                break;
            }
        },
        Until::Sent => {}
    }
    wire.vanish();
}

/// Waits until a call has begun.
async fn is_open(service: &Service) {
    eventually(PATIENCE, async || service.metric("activity_rpc_in_progress").await == 1.0).await;
}

/// How long it takes until nothing of anybody is open.
async fn all_is_free(service: &Service, what: &str) -> Duration {
    let begun = Instant::now();
    eventually(PATIENCE, async || {
        let calls = service.metric("activity_rpc_in_progress").await;
        let connections = service.metric("activity_connections").await;
        if (calls, connections) == (0.0, 0.0) { Ok(()) } else { Err(format!("{what}: {calls} calls, {connections}")) }
    })
    .await;
    begun.elapsed()
}

async fn frees_what_it_held(service: &Service, cases: &[Case]) {
    all_is_free(service, "before").await;
    let files = open_files(service.process().pid());
    for case in cases {
        // The best of a few: the machine may be busy with something else for a second.
        let mut quickest = Duration::MAX;
        for _ in 0..3 {
            vanish_in(service, case).await;
            quickest = quickest.min(all_is_free(service, case.path).await);
        }
        assert!(quickest < Duration::from_secs(1), "{}: {quickest:?}", case.path);
    }
    // Readers of the database come and go, connections do not.
    let after = open_files(service.process().pid());
    assert!(after <= files + 16, "{files} files open, then {after}");
}

async fn a_client_that_vanishes_frees_all_it_held(engine: Engine) {
    let sandbox = Sandbox::start(engine).await;
    let now = SystemTime::now();
    {
        let mut audit = AuditIngestServiceClient::new(sandbox.audit.channel());
        let mut usage = UsageIngestServiceClient::new(sandbox.usage.channel());
        for part in 0..5 {
            let range = part * 1_000..(part + 1) * 1_000;
            let events = range.clone().map(|n| events::audit(now, n)).collect();
            audit.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();
            let events = range.map(|n| events::usage(now, n)).collect();
            usage.record_usage(RecordUsageRequest { events }).await.unwrap();
        }
    }
    frees_what_it_held(&sandbox.audit, &audit_cases(now)).await;
    frees_what_it_held(&sandbox.usage, &usage_cases(now)).await;

    // What was answered is there, what was cut off in the middle is not, and the rest is there once or not at all.
    let mut audit = AuditIngestServiceClient::new(sandbox.audit.channel());
    let mut again = async |from: u64| {
        let events = (from..from + 200).map(|n| events::audit(now, n)).collect();
        let answer =
            audit.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap().into_inner();
        (answer.accepted.unwrap(), answer.duplicate.unwrap())
    };
    assert_eq!(again(20_000).await, (0, 200));
    assert!([(0, 200), (200, 0)].contains(&again(10_000).await));
}

#[tokio::test]
async fn a_client_that_vanishes_frees_all_it_held_on_sqlite() {
    a_client_that_vanishes_frees_all_it_held(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_client_that_vanishes_frees_all_it_held_on_postgres() {
    a_client_that_vanishes_frees_all_it_held(Engine::Postgres).await;
}

/// A machine that loses its network says nothing at all: it is pinged, and given up.
#[tokio::test]
async fn a_client_that_falls_silent_is_given_up() {
    let settings = [("SERVER__KEEPALIVE_INTERVAL_MS", "200"), ("SERVER__KEEPALIVE_TIMEOUT_MS", "300")];
    let sandbox = Sandbox::start_with(Engine::Sqlite, &settings).await;
    let tail = TailEntriesRequest { instance_id: "eu-1".into(), ..Default::default() }.encode_to_vec();
    let mut wire = Wire::open(sandbox.audit.address(), CLIENT).await.unwrap();
    let path = "/activity.audit.v1.AuditQueryService/TailEntries";
    wire.send(&frame(HEADERS, END_HEADERS, 1, &call(path))).await.unwrap();
    wire.send(&frame(DATA, END_STREAM, 1, &message(&tail))).await.unwrap();
    is_open(&sandbox.audit).await;
    // From here on it neither reads nor writes; its socket stays open.
    all_is_free(&sandbox.audit, "silent").await;
    drop(wire);
}
