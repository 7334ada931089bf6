//! What the service itself did, and who exported what, as entries of the log that the configuration names.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::{
    AuditEntry, ExportEntriesRequest, Outcome, RecordEventsRequest, SequenceRange, Stage, export_entries_request,
};
use e2e::sandbox::database_url;
use e2e::{Engine, Service, events};
use futures::TryStreamExt as _;
use gateway_sdk::{AuditExport, AuditFilter, AuditQuery, ExportFormat, GatewaySdk, TimeRange};
use serde_json::Value;
use testkit::Postgres;

const PATIENCE: Duration = Duration::from_secs(30);

fn sdk(service: &Service) -> GatewaySdk {
    GatewaySdk::builder().audit_endpoint(service.url()).build().unwrap()
}

/// Entries of the service's own log with an action, the oldest first.
async fn told(sdk: &GatewaySdk, action: &str) -> Vec<(AuditEntry, Value)> {
    let filter = AuditFilter::new().instance("own").action(action);
    let query = AuditQuery::new().range(TimeRange::last_hour()).filter(filter).oldest_first();
    let entries: Vec<AuditEntry> = sdk.audit().entries(query).try_collect().await.unwrap();
    let details = |entry: AuditEntry| {
        let details = serde_json::from_str(&entry.details_json).unwrap();
        (entry, details)
    };
    entries.into_iter().map(details).collect()
}

#[tokio::test]
async fn starts_stops_and_exports_are_entries_and_pages_where_it_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let settings = [("ACTIVITY__INSTANCE", "own"), ("ACTIVITY__PAGES", "true")];
    let mut service = Service::start("audit", &url, &settings).await;
    let now = SystemTime::now();
    let events = (0..20).map(|n| events::audit(now, n)).collect();
    AuditIngestServiceClient::new(service.channel())
        .record_events(RecordEventsRequest { events, ..Default::default() })
        .await
        .unwrap();
    let reader = sdk(&service);
    let mut lines = Vec::new();
    let export =
        AuditExport::sequences("eu-1", 5, None, ExportFormat::Jsonl).filter(AuditFilter::new().actor("admin-3"));
    let exported = reader.audit().export(export, &mut lines, |_| {}).await.unwrap();
    let refused = AuditExport::sequences("eu-1", 9, Some(3), ExportFormat::Csv);
    reader.audit().export(refused, &mut Vec::new(), |_| {}).await.unwrap_err();
    testkit::eventually(PATIENCE, async || told(&reader, "audit_log.exported").await.len() == 1).await;
    let (entry, details) = told(&reader, "audit_log.exported").await.remove(0);
    assert_eq!(entry.outcome(), Outcome::Success);
    assert_eq!((entry.actor.unwrap().id.as_str(), entry.recorded_by.as_str()), ("anonymous", "audit-service"));
    assert_eq!((entry.resources[0].r#type.as_str(), entry.resources[0].id.as_str()), ("audit_log", "eu-1"));
    assert_eq!(details["entries"], exported.rows.to_string());
    assert_eq!((&details["format"], &details["range"][0]), (&"jsonl".into(), &"5".into()));
    assert!(details["filter"].as_str().unwrap().contains("admin-3") && details["from_archive"] == false, "{details}");
    assert_eq!(details["sha256"].as_str().unwrap().len(), 64);

    // The lists that asked for these are told too.
    testkit::eventually(PATIENCE, async || told(&reader, "audit_log.read").await.len() > 1).await;
    let (_, details) = told(&reader, "audit_log.read").await.remove(0);
    assert_eq!(details["rpc"], "ListEntries");

    assert!(reader.shutdown(PATIENCE).await.is_complete());
    service.process().terminate();
    assert_eq!(service.process_mut().exited(PATIENCE).await.code(), Some(0));
    service.start_again().await;
    let reader = sdk(&service);
    testkit::eventually(PATIENCE, async || told(&reader, "audit_log.service_started").await.len() == 2).await;
    let started = told(&reader, "audit_log.service_started").await;
    let details = &started[0].1;
    assert!(details["keys"].as_array().unwrap().len() == 2 && details["retention_days"].is_null(), "{details}");
    assert_eq!(details["origin"], "localhost/audit");
    let stopped = told(&reader, "audit_log.service_stopped").await;
    assert_eq!((stopped.len(), &stopped[0].1["why"]), (1, &"asked to".into()));
    let order: Vec<Option<u64>> = [&started[0], &stopped[0], &started[1]].map(|(entry, _)| entry.sequence).to_vec();
    assert!(order.is_sorted(), "{order:?}");
    assert!(reader.shutdown(PATIENCE).await.is_complete());
}

#[tokio::test]
async fn an_export_is_in_the_log_before_its_first_entry_leaves_and_stands_open_where_the_service_dies() {
    const ENTRIES: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let mut service = Service::start("audit", &url, &[("ACTIVITY__INSTANCE", "own")]).await;
    let now = SystemTime::now();
    let mut writer = AuditIngestServiceClient::new(service.channel());
    for from in (0..ENTRIES).step_by(1_000) {
        let events = (from..from + 1_000).map(|n| events::audit(now, n)).collect();
        writer.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();
    }
    let range = SequenceRange { instance_id: "eu-1".into(), ..SequenceRange::default() };
    let request = ExportEntriesRequest {
        range: Some(export_entries_request::Range::SequenceRange(range)),
        format: activity_proto::audit::v1::ExportFormat::Jsonl.into(),
        ..ExportEntriesRequest::default()
    };
    let mut export =
        AuditQueryServiceClient::new(service.channel()).export_entries(request).await.unwrap().into_inner();
    export.message().await.unwrap().unwrap();
    // Its reader has one chunk, and never asks for the end.
    service.kill();
    drop(export);
    service.start_again().await;
    let reader = sdk(&service);
    let (entry, details) = told(&reader, "audit_log.exported").await.remove(0);
    assert_eq!((entry.outcome(), entry.operation.unwrap().stage()), (Outcome::Unknown, Stage::Intent));
    assert_eq!((entry.resources[0].id.as_str(), &details["format"]), ("eu-1", &"jsonl".into()));

    // One that ends has both, and is listed once.
    let whole = AuditExport::sequences("eu-1", 0, None, ExportFormat::Jsonl);
    reader.audit().export(whole, &mut Vec::new(), |_| {}).await.unwrap();
    testkit::eventually(PATIENCE, async || told(&reader, "audit_log.exported").await.len() == 2).await;
    let told = told(&reader, "audit_log.exported").await;
    let stages = told.iter().map(|(entry, _)| entry.operation.as_ref().unwrap().stage());
    assert!(stages.eq([Stage::Intent, Stage::Outcome]), "{told:?}");
    assert_eq!(told[1].1["entries"], ENTRIES.to_string());
    assert!(reader.shutdown(PATIENCE).await.is_complete());
}

#[tokio::test]
async fn a_flood_of_exports_does_not_fill_the_log() {
    const EXPORTS: u64 = 300;
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let service = Service::start("audit", &url, &[("ACTIVITY__INSTANCE", "own")]).await;
    let reader = sdk(&service);
    let begun = SystemTime::now();
    for _ in 0..EXPORTS {
        let export = AuditExport::sequences("nowhere", 0, None, ExportFormat::Csv);
        reader.audit().export(export, &mut Vec::new(), |_| {}).await.unwrap();
    }
    // What was left out is counted in the next one that is not.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let export = AuditExport::sequences("nowhere", 0, None, ExportFormat::Csv);
    reader.audit().export(export, &mut Vec::new(), |_| {}).await.unwrap();
    let counted = async || {
        let told = told(&reader, "audit_log.exported").await;
        let left_out = told.iter().map(|(_, details)| details["left_out"].as_str().map_or(0, |n| n.parse().unwrap()));
        (told.len() as u64, left_out.sum::<u64>())
    };
    testkit::eventually(PATIENCE, async || {
        let (told, left_out) = counted().await;
        told + left_out == EXPORTS + 1
    })
    .await;
    let (told, left_out) = counted().await;
    let most = 100 + 10 * (begun.elapsed().unwrap().as_secs() + 1);
    assert!(told <= most, "{told} of {most}, and {left_out} left out");
    assert!(reader.shutdown(PATIENCE).await.is_complete());
}

#[tokio::test]
async fn what_is_told_while_the_database_is_away_is_recorded_when_it_is_back() {
    if Postgres::skipped() {
        return;
    }
    let postgres = Postgres::start().await;
    let url = postgres.create_database().await;
    let service = Service::start("audit", &url, &[("ACTIVITY__INSTANCE", "own")]).await;
    let mut client = AuditQueryServiceClient::new(service.channel());
    let range = SequenceRange { instance_id: "nowhere".into(), ..SequenceRange::default() };
    let request = ExportEntriesRequest {
        range: Some(export_entries_request::Range::SequenceRange(range)),
        format: activity_proto::audit::v1::ExportFormat::Jsonl.into(),
        ..ExportEntriesRequest::default()
    };
    postgres.crash().await;
    client.export_entries(request).await.map(drop).unwrap_err();
    // Longer than a stop waits.
    tokio::time::sleep(Duration::from_secs(7)).await;
    postgres.start_again().await;
    let reader = sdk(&service);
    let filter = AuditFilter::new().instance("own").action("audit_log.exported");
    let query = AuditQuery::new().range(TimeRange::last_hour()).filter(filter);
    testkit::eventually(PATIENCE, async || {
        let told: Result<Vec<AuditEntry>, _> = reader.audit().entries(query.clone()).try_collect().await;
        told.is_ok_and(|told| told.len() == 1 && told[0].outcome() == Outcome::Failure)
    })
    .await;
    assert!(reader.shutdown(PATIENCE).await.is_complete());
}
