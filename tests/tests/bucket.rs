//! Retention into a bucket that speaks S3: nothing is removed while it is away, segments are never written over, and what
//! was archived is read back byte for byte. Its credentials come from the environment, and go nowhere.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_governance_service_client::AuditGovernanceServiceClient;
use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::{GetRetentionRequest, ListArchivesRequest, RecordEventsRequest};
use e2e::sandbox::database_url;
use e2e::{Engine, Service, events};
use gateway_sdk::{AuditExport, ExportFormat, GatewaySdk};
use service_core::clock::now_us;
use testkit::{Bucket, SECRET_KEY};

const INSTANCE: &str = "eu-1";
const PATIENCE: Duration = Duration::from_secs(60);
const FAILED: &str = "retention failed and will be tried again";

async fn write(service: &Service, now: SystemTime, first: u64, count: u64) {
    let events = (first..first + count).map(|n| events::audit(now, n)).collect();
    let request = RecordEventsRequest { events, ..Default::default() };
    AuditIngestServiceClient::new(service.channel()).record_events(request).await.unwrap();
}

async fn export(service: &Service) -> Vec<u8> {
    let sdk = GatewaySdk::builder().audit_endpoint(service.url()).build().unwrap();
    let mut lines = Vec::new();
    let export = AuditExport::sequences(INSTANCE, 0, None, ExportFormat::Jsonl);
    sdk.audit().export(export, &mut lines, |_| {}).await.unwrap();
    lines
}

async fn archived_through(service: &Service) -> u64 {
    let request = GetRetentionRequest { instance_id: INSTANCE.into() };
    let answer = AuditGovernanceServiceClient::new(service.channel()).get_retention(request).await.unwrap();
    answer.into_inner().archived_through()
}

async fn drill(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(engine, &folder, "audit").await;
    let beside = folder.path().join("beside").display().to_string();
    let bucket = Bucket::start().await;
    let variables = bucket.variables();
    let mut settings = vec![
        ("PROGRAM", "archivist"),
        ("LOG__FOLDER", beside.as_str()),
        ("RETENTION__DAYS", "1"),
        ("RETENTION__ARCHIVE", "s3://evidence/audit/eu%201"),
        ("TELEMETRY__LOG", "debug"),
    ];
    settings.extend(variables.iter().map(|(name, value)| (*name, value.as_str())));
    let mut service = Service::start("audit", &url, &settings).await;
    let now = SystemTime::now();
    write(&service, now, 0, 900).await;
    let before = export(&service).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let due_before = now_us();
    tokio::time::sleep(Duration::from_millis(5)).await;

    // While it is away nothing is removed, and writers go on.
    bucket.away(true);
    service.kill();
    service.archivist(due_before, "");
    service.start_again().await;
    testkit::eventually(PATIENCE, async || service.process().log().contains(FAILED)).await;
    write(&service, now, 900, 10).await;
    assert_eq!(archived_through(&service).await, 0);
    assert!(bucket.objects().is_empty() && export(&service).await.starts_with(&before));
    let mut logs = service.process().log();

    // Killed once its lines are there, it finds them under their name, and takes them for its own.
    bucket.away(false);
    service.kill();
    service.archivist(due_before, "LinesWritten:1");
    service.start_again().await;
    service.process_mut().exited(PATIENCE).await;
    logs.push_str(&service.process().log());
    assert_eq!(bucket.objects().len(), 1);
    service.archivist(due_before, "");
    service.start_again().await;
    testkit::eventually(PATIENCE, async || archived_through(&service).await == 900).await;
    let objects = bucket.objects();
    let names: Vec<&str> = objects.keys().map(String::as_str).collect();
    let segment = "/evidence/audit/eu%201/localhost_2faudit/eu-1/00000000000000000000-00000000000000000900";
    assert_eq!(names, [format!("{segment}.json"), format!("{segment}.jsonl.zst")]);
    assert!(bucket.served().contains(&format!("PUT {segment}.jsonl.zst 412")), "{:?}", bucket.served());

    // Read back through the service; and a copy is verified without it.
    testkit::eventually(PATIENCE, async || export(&service).await.starts_with(&before)).await;
    assert!(bucket.served().iter().filter(|asked| asked.starts_with("GET ")).count() > 2);
    let request = ListArchivesRequest { instance_id: INSTANCE.into(), ..Default::default() };
    let answer = AuditGovernanceServiceClient::new(service.channel()).list_archives(request).await.unwrap();
    assert_eq!(answer.into_inner().segments.len(), 1);
    for (name, bytes) in &objects {
        let copy = folder.path().join("copy").join(name.trim_start_matches('/'));
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::write(copy, bytes).unwrap();
    }
    let log = std::fs::read_to_string(format!("{beside}/log.key")).unwrap();
    let key: audit_service::checkpoint::SigningKey = log.trim().parse().unwrap();
    let output = Command::new(testkit::binary("standalone"))
        .args(["verify", "--key", &key.verifier().to_string(), "--archive"])
        .arg(folder.path().join("copy"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("900 entries of"), "{text}");

    logs.push_str(&service.process().log());
    assert!(!logs.contains(SECRET_KEY) && !logs.contains("AWS4-HMAC"), "a secret is in the log");
    assert!(bucket.served().iter().all(|asked| !asked.ends_with(" 403")), "{:?}", bucket.served());
}

#[tokio::test]
async fn entries_go_to_a_bucket_and_come_back_on_sqlite() {
    drill(Engine::Sqlite).await;
}

#[tokio::test]
async fn entries_go_to_a_bucket_and_come_back_on_postgres() {
    if !testkit::Postgres::skipped() {
        drill(Engine::Postgres).await;
    }
}

/// Who may not write to the bucket removes nothing, and says why.
#[tokio::test]
async fn a_bucket_that_refuses_keeps_everything_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let bucket = Bucket::start().await;
    let variables = bucket.variables();
    let mut settings: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.retain(|(name, _)| *name != "AWS_SECRET_ACCESS_KEY");
    settings.extend([("AWS_SECRET_ACCESS_KEY", "another-secret"), ("PROGRAM", "archivist")]);
    settings.extend([("RETENTION__DAYS", "1"), ("RETENTION__ARCHIVE", "s3://evidence")]);
    let mut service = Service::start("audit", &url, &settings).await;
    write(&service, SystemTime::now(), 0, 20).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    service.kill();
    service.archivist(now_us(), "");
    service.start_again().await;
    testkit::eventually(PATIENCE, async || service.process().log().contains(FAILED)).await;
    assert_eq!(archived_through(&service).await, 0);
    assert!(bucket.objects().is_empty() && bucket.served().iter().any(|asked| asked.ends_with(" 403")));
    let log = service.process().log();
    assert!(log.contains("SignatureDoesNotMatch") && !log.contains("another-secret"), "{log}");
}
