//! Text that means something to a database, a spreadsheet or a terminal is text here: found by its own letters only,
//! written so that it does nothing, and still readable.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::{
    AuditFilter, ExportEntriesRequest, ExportFormat, ListEntriesRequest, RecordEventsRequest, Resource,
    export_entries_request, export_entries_response::Part,
};
use activity_proto::common::v1::{TimeRange, TimeRangePreset, time_range::Range};
use activity_proto::usage::v1::export_usage_response::Part as UsagePart;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{
    ExportFormat as UsageFormat, ExportShape, ExportUsageRequest, GetSummaryRequest, ListRequestsRequest,
    RecordUsageRequest, UsageFilter,
};
use e2e::{Engine, Sandbox, Service, events};
use testkit::ChildProcess;
use tonic::{Code, Request};
use tonic_types::StatusExt;

/// Each is the name of one actor, resource, user, key and model.
const TEXTS: [&str; 28] = [
    "plain",
    "plain2",
    "PLAIN",
    "' OR '1'='1",
    "'; DROP TABLE audit_entries; --",
    "'; DELETE FROM usage_requests; --",
    "\") OR 1=1 --",
    "1; SELECT pg_sleep(10)",
    "%",
    "_",
    "pl%",
    "plai_",
    "\\",
    "\\%",
    "*",
    "$1",
    "?",
    ":name",
    "NULL",
    "{\"a\":1}",
    "=1+1",
    "+SUM(A1:A9)",
    "-2+3",
    "@cmd|' /C calc'!A0",
    "=HYPERLINK(\"http://example.com\";\"x\")",
    "evil\u{202e}gpj.exe",
    "zero\u{200b}width",
    "größe – 模型 – 🚀",
];

fn last_day() -> TimeRange {
    TimeRange { range: Some(Range::Preset(TimeRangePreset::Last24Hours.into())), time_zone: String::new() }
}

async fn fill(sandbox: &Sandbox) {
    let now = SystemTime::now();
    let numbered = || (0_u64..).zip(TEXTS);
    let audit = numbered().map(|(n, text)| {
        let mut event = events::audit(now, n);
        let actor = event.actor.as_mut().unwrap();
        (actor.id, actor.display_name) = (text.to_owned(), text.to_owned());
        event.resources = vec![Resource { r#type: text.into(), id: text.into(), name: text.into() }];
        event.reason = text.into();
        event.details_json = serde_json::to_string(text).unwrap();
        event
    });
    let request = RecordEventsRequest { events: audit.collect(), ..Default::default() };
    let answer = AuditIngestServiceClient::new(sandbox.audit.channel()).record_events(request).await.unwrap();
    assert_eq!(answer.into_inner().accepted, Some(28));
    let usage = numbered().map(|(n, text)| {
        let mut event = events::usage(now, n);
        event.user_id = text.into();
        event.api_key_id = text.into();
        event.team_id = text.into();
        event.requested_model = text.into();
        event.labels = [(text.to_owned(), text.to_owned())].into();
        event
    });
    let request = RecordUsageRequest { events: usage.collect() };
    let answer = UsageIngestServiceClient::new(sandbox.usage.channel()).record_usage(request).await.unwrap();
    assert_eq!(answer.into_inner().accepted, Some(28));
}

async fn a_name_is_found_by_its_own_letters_only(engine: Engine) {
    let sandbox = Sandbox::start(engine).await;
    fill(&sandbox).await;
    let mut audit = AuditQueryServiceClient::new(sandbox.audit.channel());
    let mut usage = UsageQueryServiceClient::new(sandbox.usage.channel());
    for text in TEXTS {
        let one = || vec![text.to_owned()];
        let filters = [
            AuditFilter { actors: one(), ..Default::default() },
            AuditFilter { resources: one(), ..Default::default() },
            AuditFilter { resource_types: one(), ..Default::default() },
        ];
        for filter in filters {
            let request = ListEntriesRequest { filter: Some(filter.clone()), ..Default::default() };
            let entries = audit.list_entries(request).await.unwrap().into_inner().entries;
            let found: Vec<_> = entries.iter().map(|entry| entry.actor.as_ref().unwrap().id.as_str()).collect();
            assert_eq!(found, [text], "{filter:?}");
        }
        let filters = [
            UsageFilter { user_ids: one(), ..Default::default() },
            UsageFilter { api_key_ids: one(), ..Default::default() },
            UsageFilter { models: one(), ..Default::default() },
            UsageFilter { labels: [(text.to_owned(), text.to_owned())].into(), ..Default::default() },
        ];
        for filter in filters {
            let request = ListRequestsRequest { filter: Some(filter.clone()), ..Default::default() };
            let requests = usage.list_requests(request).await.unwrap().into_inner().requests;
            let found: Vec<_> = requests.iter().map(|request| request.user_id.as_str()).collect();
            assert_eq!(found, [text], "{filter:?}");
            let request = GetSummaryRequest { filter: Some(filter.clone()), ..Default::default() };
            let summary = usage.get_summary(request).await.unwrap().into_inner().summary.unwrap();
            assert_eq!(summary.requests, Some(1), "{filter:?}");
        }
    }
    // An instance nobody has, however it is spelt, has nothing; everything is still there.
    for text in ["%", "eu-_", "eu-1' OR '1'='1"] {
        let filter = AuditFilter { instance_ids: vec![text.into()], ..Default::default() };
        let request = ListEntriesRequest { filter: Some(filter), ..Default::default() };
        assert_eq!(audit.list_entries(request).await.unwrap().into_inner().entries.len(), 0);
    }
    assert_eq!(audit.list_entries(ListEntriesRequest::default()).await.unwrap().into_inner().entries.len(), 28);
    let all = usage.get_summary(GetSummaryRequest::default()).await.unwrap().into_inner().summary.unwrap();
    assert_eq!((all.requests, all.unique_users), (Some(28), Some(28)));

    // Long lists are answered up to their cap, and refused beyond it.
    let many = |count: usize| (0..count - 1).map(|n| format!("none-{n}")).chain(["plain".to_owned()]).collect();
    let filter = AuditFilter { actors: many(1_000), resources: many(1_000), ..Default::default() };
    let request = ListEntriesRequest { filter: Some(filter), ..Default::default() };
    assert_eq!(audit.list_entries(request).await.unwrap().into_inner().entries.len(), 1);
    let filter = UsageFilter { user_ids: many(1_000), models: many(1_000), ..Default::default() };
    let request = ListRequestsRequest { filter: Some(filter), ..Default::default() };
    assert_eq!(usage.list_requests(request).await.unwrap().into_inner().requests.len(), 1);
    let filter = AuditFilter { actors: many(1_001), ..Default::default() };
    let request = ListEntriesRequest { filter: Some(filter), ..Default::default() };
    let status = audit.list_entries(request).await.unwrap_err();
    let field = |status: &tonic::Status| status.get_details_bad_request().unwrap().field_violations[0].field.clone();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "filter.actors"));
    let filter = UsageFilter { user_ids: many(1_001), ..Default::default() };
    let request = ListRequestsRequest { filter: Some(filter), ..Default::default() };
    let status = usage.list_requests(request).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "filter.user_ids"));
}

#[tokio::test]
async fn a_name_is_found_by_its_own_letters_only_on_sqlite() {
    a_name_is_found_by_its_own_letters_only(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_name_is_found_by_its_own_letters_only_on_postgres() {
    a_name_is_found_by_its_own_letters_only(Engine::Postgres).await;
}

async fn audit_export(service: &Service, format: ExportFormat) -> Vec<u8> {
    let request = ExportEntriesRequest {
        range: Some(export_entries_request::Range::TimeRange(last_day())),
        format: format.into(),
        ..Default::default()
    };
    let mut stream =
        AuditQueryServiceClient::new(service.channel()).export_entries(request).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        if let Part::Chunk(chunk) = message.part.unwrap() {
            bytes.extend(chunk.data);
        }
    }
    bytes
}

async fn usage_export(service: &Service, shape: ExportShape, format: UsageFormat) -> Vec<u8> {
    let request = ExportUsageRequest {
        time_range: Some(last_day()),
        shape: shape.into(),
        format: format.into(),
        group_by: match shape {
            ExportShape::Requests => vec![],
            _ => vec![activity_proto::usage::v1::Dimension::User.into()],
        },
        limit: if shape == ExportShape::Requests { 0 } else { 100 },
        ..Default::default()
    };
    let mut stream = UsageQueryServiceClient::new(service.channel()).export_usage(request).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        if let UsagePart::Chunk(chunk) = message.part.unwrap() {
            bytes.extend(chunk.data);
        }
    }
    bytes
}

#[tokio::test]
async fn exports_are_inert_in_a_spreadsheet_and_say_what_was_said() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    fill(&sandbox).await;
    let files = [
        audit_export(&sandbox.audit, ExportFormat::Csv).await,
        usage_export(&sandbox.usage, ExportShape::Requests, UsageFormat::Csv).await,
        usage_export(&sandbox.usage, ExportShape::Breakdown, UsageFormat::Csv).await,
    ];
    for file in files {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(file.as_slice());
        let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
        let columns = rows[0].len();
        assert!(rows.len() >= 29 && rows.iter().all(|row| row.len() == columns), "{} rows", rows.len());
        let cells: Vec<&str> = rows.iter().flatten().collect();
        for cell in &cells {
            let number = cell.parse::<f64>().is_ok();
            assert!(number || !cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']), "{cell:?} runs");
        }
        for text in TEXTS {
            let inert = format!("'{text}");
            let runs = text.starts_with(['=', '+', '-', '@']);
            let expected = if runs { inert.as_str() } else { text };
            assert!(cells.contains(&expected), "{expected:?} is not there");
        }
    }
    for file in [
        audit_export(&sandbox.audit, ExportFormat::Jsonl).await,
        usage_export(&sandbox.usage, ExportShape::Requests, UsageFormat::Jsonl).await,
    ] {
        let lines = String::from_utf8(file).unwrap();
        let said: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names = |value: &serde_json::Value| {
            value["actor"]["id"].as_str().or(value["userId"].as_str()).or(value["user_id"].as_str()).unwrap().to_owned()
        };
        let mut names: Vec<String> = said.iter().map(names).collect();
        names.sort_unstable();
        let mut expected = TEXTS;
        expected.sort_unstable();
        assert_eq!(names, expected);
    }
}

/// Whether a line of a log could act on a terminal, hide what it says, or pass for another line.
fn acts(process: &ChildProcess) -> Option<String> {
    let hidden =
        |letter: char| letter.is_control() || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}');
    let log = process.log();
    log.lines().find(|line| line.contains(hidden) || !line.starts_with("20")).map(str::to_owned)
}

#[tokio::test]
async fn what_clients_say_does_nothing_in_the_log() {
    // Ours say all they can; those below us at debug would write down every header.
    let log = "warn,audit_service=trace,usage_service=trace,service_core=trace";
    let sandbox = Sandbox::start_with(Engine::Sqlite, &[("TELEMETRY__LOG", log)]).await;
    fill(&sandbox).await;
    let mut audit = AuditQueryServiceClient::new(sandbox.audit.channel());
    let mut usage = UsageQueryServiceClient::new(sandbox.usage.channel());
    for text in TEXTS.into_iter().chain(["\u{1b}[2Jgone", "two\nlines", "nul\0", "\u{9b}31m", "2026-11-25 ERROR\r"]) {
        let filter = AuditFilter { actors: vec![text.into()], text: text.into(), ..Default::default() };
        let request = ListEntriesRequest { filter: Some(filter), page_token: text.into(), ..Default::default() };
        let status = audit.list_entries(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(!status.message().contains(char::is_control), "{:?}", status.message());
        let filter = UsageFilter { user_ids: vec![text.into()], ..Default::default() };
        let time_range = TimeRange { time_zone: text.into(), ..last_day() };
        let mut request = Request::new(GetSummaryRequest {
            filter: Some(filter),
            time_range: Some(time_range),
            ..Default::default()
        });
        if let Ok(value) = text.parse() {
            request.metadata_mut().insert("traceparent", value);
        }
        let status = usage.get_summary(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(!status.message().contains(char::is_control), "{:?}", status.message());
    }
    tokio::time::timeout(Duration::from_secs(20), audit.list_entries(ListEntriesRequest::default()))
        .await
        .expect("in time")
        .unwrap();
    assert_eq!(acts(sandbox.audit.process()), None);
    assert_eq!(acts(sandbox.usage.process()), None);
}
