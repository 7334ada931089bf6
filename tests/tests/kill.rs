//! kill -9 of a service in the middle of streaming: what was acknowledged is there, once, and the rest follows.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::{
    ExportEntriesRequest, ExportFormat, SequenceRange, StreamEventsRequest, export_entries_request::Range,
    export_entries_response::Part,
};
use e2e::sandbox::database_url;
use e2e::{Engine, Service, events};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Every line of the whole log.
async fn log(service: &Service) -> Vec<serde_json::Value> {
    let range = SequenceRange { instance_id: "eu-1".into(), from: Some(0), to: None };
    let request = ExportEntriesRequest {
        range: Some(Range::SequenceRange(range)),
        format: ExportFormat::Jsonl.into(),
        ..ExportEntriesRequest::default()
    };
    let mut stream =
        AuditQueryServiceClient::new(service.channel()).export_entries(request).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    let mut ended = false;
    while let Some(message) = stream.next().await {
        match message.unwrap().part.unwrap() {
            Part::Chunk(chunk) => bytes.extend(chunk.data),
            Part::End(_) => ended = true,
        }
    }
    assert!(ended);
    bytes
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

async fn acknowledged_survives(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(engine, &folder, "audit").await;
    let beside = folder.path().join("beside").display().to_string();
    let mut service = Service::start("audit", &url, &[("LOG__FOLDER", &beside)]).await;
    let now = SystemTime::now();
    let drills = if std::env::var_os("FULL").is_some() { 20 } else { 4 };
    let mut acknowledged = BTreeSet::new();
    let mut next = 0_u64;

    for drill in 0..drills {
        let (send, requests) = tokio::sync::mpsc::channel(8);
        let first = next;
        let sender = tokio::spawn(async move {
            for batch_id in 1..=200_u64 {
                let start = first + (batch_id - 1) * 50;
                let events = (start..start + 50).map(|n| events::audit(now, n)).collect();
                let request = StreamEventsRequest { batch_id, events, ..Default::default() };
                if send.send(request).await.is_err() {
                    break;
                }
            }
        });
        let mut answers = AuditIngestServiceClient::new(service.channel())
            .stream_events(ReceiverStream::new(requests))
            .await
            .unwrap()
            .into_inner();
        // A different moment of the stream at each drill.
        let kill_after = 3 + drill * 11 % 60;
        let mut settled = 0;
        while let Some(Ok(answer)) = answers.next().await {
            assert_eq!(answer.rejected, []);
            acknowledged.extend(answer.receipts.iter().map(|receipt| receipt.id.clone()));
            settled += 1;
            if settled == kill_after {
                service.kill();
            }
        }
        assert!(settled >= kill_after, "the service was killed in the middle");
        sender.abort();
        // The next drill sends the unacknowledged again, and so meets what was stored without an answer.
        next = first + settled * 50;
        service.start_again().await;
    }

    let entries = log(&service).await;
    let ids: Vec<_> = entries.iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect();
    let distinct: BTreeSet<_> = ids.iter().cloned().collect();
    assert_eq!(ids.len(), distinct.len(), "each event once");
    assert!(acknowledged.is_subset(&distinct), "every acknowledged event is there");
    let sequences: Vec<_> = entries.iter().map(|entry| entry["sequence"].as_str().unwrap().to_owned()).collect();
    let gapless: Vec<_> = (0..entries.len()).map(|n| n.to_string()).collect();
    assert_eq!(sequences, gapless);
    // What was signed before each kill is still how the log begins.
    let health = e2e::tools::grpcurl(service.address(), "grpc.health.v1.Health/Check", "{}");
    assert_eq!(health["status"], "SERVING");
    service.kill();
    assert_eq!(e2e::tree::assert_whole(&url, "eu-1").await, entries.len() as u64);
}

#[tokio::test]
async fn an_acknowledged_entry_survives_kill_9_on_sqlite() {
    tokio::time::timeout(Duration::from_secs(600), acknowledged_survives(Engine::Sqlite)).await.unwrap();
}

#[tokio::test]
async fn an_acknowledged_entry_survives_kill_9_on_postgres() {
    tokio::time::timeout(Duration::from_secs(600), acknowledged_survives(Engine::Postgres)).await.unwrap();
}
