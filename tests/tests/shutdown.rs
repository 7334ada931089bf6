//! SIGTERM: no new work, the last acknowledgements, and out within the grace period with status 0.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::{RecordEventsRequest, TailEntriesRequest};
use activity_proto::usage::v1::StreamUsageRequest;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use e2e::{Engine, Sandbox, events};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test]
async fn an_open_stream_gets_its_last_acknowledgements_and_ends() {
    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    let now = SystemTime::now();
    let (send, requests) = tokio::sync::mpsc::channel(64);
    for batch_id in 1..=20_u64 {
        let events = (0..100).map(|n| events::usage(now, batch_id * 100 + n)).collect();
        send.send(StreamUsageRequest { batch_id, events, dropped: vec![] }).await.unwrap();
    }
    let mut answers = UsageIngestServiceClient::new(sandbox.usage.channel())
        .stream_usage(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    let mut settled = answers.next().await.unwrap().unwrap().batch_id;
    sandbox.usage.process().terminate();
    let mut last = None;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => {
                assert_eq!(answer.batch_id, settled + 1);
                settled = answer.batch_id;
            }
            Err(status) => last = Some(status.code()),
        }
    }
    // `send` is still open: the server ended the stream by itself.
    assert!(matches!(last, None | Some(tonic::Code::Unavailable)), "{last:?}");
    let status = sandbox.usage.process_mut().exited(Duration::from_secs(30)).await;
    assert_eq!(status.code(), Some(0));
    drop(send);

    sandbox.usage.start_again().await;
    let summary = e2e::tools::grpcurl(
        sandbox.usage.address(),
        "activity.usage.v1.UsageQueryService/GetSummary",
        r#"{"time_range": {"preset": "TIME_RANGE_PRESET_LAST_HOUR"}}"#,
    );
    let stored: u64 = summary["summary"]["requests"].as_str().unwrap().parse().unwrap();
    assert!(stored >= settled * 100, "{stored} stored, {settled} batches acknowledged");
}

#[tokio::test]
async fn an_idle_tail_does_not_hold_the_server_up() {
    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    let request = TailEntriesRequest { instance_id: "eu-1".into(), ..TailEntriesRequest::default() };
    let mut tail =
        AuditQueryServiceClient::new(sandbox.audit.channel()).tail_entries(request).await.unwrap().into_inner();
    assert!(tail.next().await.unwrap().is_ok(), "a heartbeat at the start");
    sandbox.audit.process().terminate();
    while let Some(Ok(_)) = tail.next().await {}
    let status = sandbox.audit.process_mut().exited(Duration::from_secs(30)).await;
    assert_eq!(status.code(), Some(0));
}

/// A checkpoint that is left to the last connection's own thread is cut off by the end of the process.
#[tokio::test]
async fn a_stop_leaves_the_whole_database_in_its_one_file() {
    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    for stop in 0..20 {
        let events = (0..1_000).map(|n| events::audit(SystemTime::now(), stop * 1_000 + n)).collect();
        let mut client = AuditIngestServiceClient::new(sandbox.audit.channel());
        client.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();
        sandbox.audit.process().terminate();
        let status = sandbox.audit.process_mut().exited(Duration::from_secs(30)).await;
        assert_eq!(status.code(), Some(0));
        let log = sandbox.folder.path().join("audit.db-wal");
        let left = std::fs::metadata(&log).map_or(0, |log| log.len());
        assert_eq!(left, 0, "stop {stop} leaves {}", log.display());
        let told = sandbox.audit.process().log();
        assert!(!told.contains("the log stays beside"), "{told}");
        sandbox.audit.start_again().await;
    }
}
