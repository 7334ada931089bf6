//! `standalone verify` over exports of real servers: what was signed is valid, and what the database's owner does to it is
//! found without a server.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::audit_trust_service_client::AuditTrustServiceClient;
use activity_proto::audit::v1::{AuditFilter, GetCheckpointRequest, KeyKind, ListKeysRequest, RecordEventsRequest};
use e2e::sandbox::database_url;
use e2e::{Engine, Service, events};
use gateway_sdk::{AuditExport, ExportFormat, GatewaySdk, TimeRange};

const INSTANCE: &str = "eu-1";
const PATIENCE: Duration = Duration::from_secs(30);

/// Writes the whole log and its end message into a folder.
async fn export(service: &Service, folder: &Path) {
    let sdk = GatewaySdk::builder().audit_endpoint(service.url()).build().unwrap();
    let mut lines = Vec::new();
    let export = AuditExport::sequences(INSTANCE, 0, None, ExportFormat::Jsonl);
    sdk.audit().export(export, &mut lines, |_| {}).await.unwrap();
    std::fs::write(folder.join("export.jsonl"), lines).unwrap();
    assert!(sdk.shutdown(PATIENCE).await.is_complete());
}

/// Exit status and output.
fn verify(export: &Path, checkpoints: &Path, keys: &[String]) -> (Option<i32>, String) {
    let mut command = Command::new(testkit::binary("standalone"));
    command.arg("verify").arg("--export").arg(export).arg("--checkpoints").arg(checkpoints);
    keys.iter().for_each(|key| {
        command.args(["--key", key]);
    });
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

async fn drill(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(engine, &folder, "audit").await;
    let place = |name: &str| folder.path().join(name);
    let beside = place("beside").display().to_string();
    let mut service = Service::start("audit", &url, &[("LOG__FOLDER", &beside)]).await;
    let now = SystemTime::now();
    let mut trust = AuditTrustServiceClient::new(service.channel());
    for round in 0..3 {
        let events = (round * 100..round * 100 + 100).map(|n| events::audit(now, n)).collect();
        let mut writer = AuditIngestServiceClient::new(service.channel());
        writer.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();
        let request = GetCheckpointRequest { instance_id: INSTANCE.into(), min_size: Some((round + 1) * 100) };
        testkit::eventually(PATIENCE, async || trust.clone().get_checkpoint(request.clone()).await.is_ok()).await;
    }
    let keys = trust.list_keys(ListKeysRequest { instance_id: INSTANCE.into() }).await.unwrap().into_inner().keys;
    let pinned: Vec<String> = keys.iter().map(|key| key.verifier_key.clone()).collect();
    assert!(keys.iter().any(|key| key.kind() == KeyKind::Log) && keys.len() == 2, "{keys:?}");
    export(&service, folder.path()).await;
    // What an auditor took away.
    let kept = place("kept");
    std::fs::copy(Path::new(&beside).join("checkpoints"), &kept).unwrap();
    let exported = place("export.jsonl");

    let (status, text) = verify(&exported, &kept, &pinned);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("the first 300 entries are as they were signed") && text.ends_with("valid\n"), "{text}");
    let (status, text) = verify(&exported, &kept, &[]);
    assert!(status == Some(3) && text.contains("no key was pinned"), "{text}");

    let lines: Vec<String> = std::fs::read_to_string(&exported).unwrap().lines().map(|l| format!("{l}\n")).collect();
    let cut = place("cut.jsonl");
    std::fs::write(&cut, lines[..290].concat()).unwrap();
    let (status, text) = verify(&cut, &kept, &pinned);
    assert!(status == Some(2) && text.contains("entries 290 to 299 are missing at its end"), "{text}");
    std::fs::write(&cut, [&lines[..150], &lines[151..]].concat().concat()).unwrap();
    let (status, text) = verify(&cut, &kept, &pinned);
    assert!(status == Some(2) && text.contains("entries 150 to 150 are missing"), "{text}");
    let (status, text) = verify(&place("nowhere"), &kept, &pinned);
    assert!(status == Some(64) && text.contains("cannot read"), "{text}");

    // The owner rewrites the database to match itself, and takes away what the service kept.
    service.process().terminate();
    service.process_mut().exited(PATIENCE).await;
    e2e::tree::rewrite(&url, INSTANCE, 142).await;
    std::fs::remove_file(Path::new(&beside).join("checkpoints")).unwrap();
    service.start_again().await;
    export(&service, folder.path()).await;
    let (status, text) = verify(&exported, &kept, &pinned);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("are not those that were signed") && text.ends_with("altered\n"), "{text}");
}

/// A checkpoint is seldom over exactly the entries that an export has: its end has what connects it with one.
#[tokio::test]
async fn exports_of_a_log_that_is_written_to_all_the_time_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let service = Service::start("audit", &url, &[]).await;
    let writing = tokio::spawn({
        let (channel, now) = (service.channel(), SystemTime::now());
        async move {
            for round in 0_u64.. {
                let events = (round * 7..round * 7 + 7).map(|n| events::audit(now, n)).collect();
                let mut writer = AuditIngestServiceClient::new(channel.clone());
                writer.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();
            }
        }
    });
    let mut trust = AuditTrustServiceClient::new(service.channel());
    let newest = GetCheckpointRequest { instance_id: INSTANCE.into(), min_size: None };
    testkit::eventually(PATIENCE, async || trust.clone().get_checkpoint(newest.clone()).await.is_ok()).await;
    let keys = trust.list_keys(ListKeysRequest { instance_id: INSTANCE.into() }).await.unwrap().into_inner().keys;
    let mut between = false;
    for round in 0..6 {
        let export = match round % 2 {
            0 => AuditExport::sequences(INSTANCE, 0, None, ExportFormat::Jsonl),
            _ => AuditExport::range(TimeRange::last_hour(), ExportFormat::Jsonl),
        };
        let end = e2e::verify::export(&service, export, folder.path(), "busy").await;
        let head = &end.heads[0];
        between |= !head.checkpoint.contains(&format!("\n{}\n", head.size.unwrap()));
        let place = |name: &str| folder.path().join(name).display().to_string();
        let (export, end, kept) = (place("busy.jsonl"), place("busy.json"), place("kept"));
        let pinned: Vec<&str> = keys.iter().flat_map(|key| ["--key", &key.verifier_key]).collect();
        let alone = [&["--export", &export, "--end", &end][..], &pinned].concat();
        let (status, text) = e2e::verify::verify(alone.iter().copied());
        assert_eq!(status, Some(0), "{text}");
        let whole = format!("the first {} entries are as they were signed", head.size.unwrap());
        assert!(text.contains(&whole) && text.ends_with("valid\n"), "{text}");
        // Nor is what an auditor keeps who looks later a cut.
        let request = GetCheckpointRequest { instance_id: INSTANCE.into(), min_size: Some(head.size.unwrap() + 1) };
        testkit::eventually(PATIENCE, async || trust.clone().get_checkpoint(request.clone()).await.is_ok()).await;
        let note = trust.get_checkpoint(newest.clone()).await.unwrap().into_inner().note;
        std::fs::write(&kept, serde_json::json!({ "note": note }).to_string()).unwrap();
        let (status, text) = e2e::verify::verify(alone.into_iter().chain(["--checkpoints", kept.as_str()]));
        assert_eq!(status, Some(0), "{text}");
        assert!(text.contains("this export says that it was opened before"), "{text}");
    }
    writing.abort();
    assert!(between, "no export was between two checkpoints");
}

/// An export with the proof of each line; its files, without and with their extensions.
async fn proven_export(service: &Service, filter: AuditFilter, folder: &Path) -> [String; 3] {
    use activity_proto::audit::v1::export_entries_response::Part;
    use activity_proto::audit::v1::{ExportEntriesRequest, SequenceRange, export_entries_request::Range};
    let range = SequenceRange { instance_id: INSTANCE.into(), ..SequenceRange::default() };
    let request = ExportEntriesRequest {
        range: Some(Range::SequenceRange(range)),
        filter: Some(filter.clone()),
        format: activity_proto::audit::v1::ExportFormat::Jsonl.into(),
        with_proofs: true,
        ..ExportEntriesRequest::default()
    };
    let mut client = AuditQueryServiceClient::new(service.channel());
    let mut stream = client.export_entries(request).await.unwrap().into_inner();
    let (mut lines, mut proofs, mut end) = (Vec::new(), Vec::new(), None);
    while let Some(message) = stream.message().await.unwrap() {
        match message.part.unwrap() {
            Part::Chunk(chunk) => {
                lines.extend(chunk.data);
                proofs.extend(chunk.proofs);
            }
            Part::End(told) => end = Some(told),
        }
    }
    let end = e2e::verify::end_json(&end.unwrap()).to_string().into_bytes();
    [("proven.jsonl", lines), ("proofs", proofs), ("end.json", end)].map(|(name, bytes)| {
        std::fs::write(folder.join(name), bytes).unwrap();
        folder.join(name).display().to_string()
    })
}

async fn filtered(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(engine, &folder, "audit").await;
    let beside = folder.path().join("beside").display().to_string();
    let service = Service::start("audit", &url, &[("LOG__FOLDER", &beside)]).await;
    let now = SystemTime::now();
    let events = (0..700).map(|n| events::audit(now, n)).collect();
    AuditIngestServiceClient::new(service.channel())
        .record_events(RecordEventsRequest { events, ..Default::default() })
        .await
        .unwrap();
    let mut trust = AuditTrustServiceClient::new(service.channel());
    let request = GetCheckpointRequest { instance_id: INSTANCE.into(), min_size: Some(700) };
    testkit::eventually(PATIENCE, async || trust.clone().get_checkpoint(request.clone()).await.is_ok()).await;
    let keys = trust.list_keys(ListKeysRequest { instance_id: INSTANCE.into() }).await.unwrap().into_inner().keys;
    let key = keys.iter().find(|key| key.kind() == KeyKind::Log).unwrap().verifier_key.as_str();
    let of_three = AuditFilter { actors: vec!["admin-3".into()], ..AuditFilter::default() };
    let verify = |[export, proofs, end]: &[String; 3], more: &[&str]| {
        let files = ["--key", key, "--export", export, "--proofs", proofs, "--end", end];
        e2e::verify::verify(files.into_iter().chain(more.iter().copied()))
    };
    let files = proven_export(&service, of_three.clone(), folder.path()).await;
    let (status, text) = verify(&files, &["--filtered"]);
    assert!(status == Some(0) && text.contains("100 of its 700 entries are in this export"), "{text}");
    let (status, text) = verify(&files, &[]);
    assert!(status == Some(2) && text.contains("entries 0 to 2 are missing"), "{text}");

    // The owner edits an entry; filtered or not, it is named, and no other.
    e2e::tree::tamper(&url, e2e::tree::guards_off(engine)).await;
    let edit =
        "UPDATE audit_entries SET canonical = replace(canonical, 'ticket OPS-', 'ticket ABC-') WHERE sequence = 150";
    e2e::tree::tamper(&url, &[edit]).await;
    for (filter, more) in [(of_three, &["--filtered"][..]), (AuditFilter::default(), &[])] {
        let files = proven_export(&service, filter, folder.path()).await;
        let (status, text) = verify(&files, more);
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains("entry 150 (line "), "{text}");
        assert_eq!(text.matches("is not the one that was signed").count(), 1, "{text}");
    }
}

#[tokio::test]
async fn a_filtered_export_is_proven_line_by_line_on_sqlite() {
    filtered(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_filtered_export_is_proven_line_by_line_on_postgres() {
    if !testkit::Postgres::skipped() {
        filtered(Engine::Postgres).await;
    }
}

#[tokio::test]
async fn what_the_databases_owner_does_is_found_in_an_export_on_sqlite() {
    drill(Engine::Sqlite).await;
}

#[tokio::test]
async fn what_the_databases_owner_does_is_found_in_an_export_on_postgres() {
    if !testkit::Postgres::skipped() {
        drill(Engine::Postgres).await;
    }
}
