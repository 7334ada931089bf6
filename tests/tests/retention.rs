//! Half of a log goes to the archive in two steps, with kill -9 at each step of the process, while somebody writes: then
//! every entry is in the database or in the archive, all of them are those that one checkpoint signed, and nobody who
//! wrote was ever stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use activity_proto::audit::v1::audit_governance_service_client::AuditGovernanceServiceClient;
use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::audit_trust_service_client::AuditTrustServiceClient;
use activity_proto::audit::v1::{
    AuditEvent, GetCheckpointRequest, GetEntryRequest, GetRetentionRequest, KeyKind, ListArchivesRequest,
    ListKeysRequest, LogPosition, RecordEventsRequest, get_entry_request::Key,
};
use audit_service::archive::Manifest;
use audit_service::checkpoint::{Note, VerifierKey};
use e2e::sandbox::database_url;
use e2e::{Engine, Service, events};
use gateway_sdk::{AuditExport, ExportFormat, GatewaySdk};
use sea_orm::{ConnectionTrait as _, Database, Statement};
use service_core::clock::now_us;
use tonic::Code;
use tonic::transport::Channel;

const INSTANCE: &str = "eu-1";
const PATIENCE: Duration = Duration::from_secs(120);
const BATCH: u64 = 1_000;
/// A writer that waits this long was stopped: far above what a step takes on a busy machine.
const STOPPED: Duration = Duration::from_secs(10);

/// New events, of now.
fn new_events(next: &AtomicU64, count: u64) -> Vec<AuditEvent> {
    let now = SystemTime::now();
    let event = |n| AuditEvent { id: events::id(now, n), occurred_at: Some(now.into()), ..events::audit(now, n) };
    let first = next.fetch_add(count, Ordering::Relaxed);
    (first..first + count).map(event).collect()
}

/// Writes so many, and says when the last was there.
async fn fill(channel: &Channel, next: &AtomicU64, count: u64) -> i64 {
    let mut client = AuditIngestServiceClient::new(channel.clone());
    for _ in 0..count / BATCH {
        let request = RecordEventsRequest { events: new_events(next, BATCH), ..Default::default() };
        let answer = client.record_events(request).await.unwrap().into_inner();
        assert_eq!(u64::from(answer.accepted()), BATCH);
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    let when = now_us();
    tokio::time::sleep(Duration::from_millis(5)).await;
    when
}

/// What a writer saw.
#[derive(Debug, Default)]
struct Writer {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    slowest_us: AtomicU64,
}

/// Writes until it is told to stop; what is not acknowledged is sent again.
async fn write(writer: Arc<Writer>, channel: Channel, next: Arc<AtomicU64>) {
    let mut client = AuditIngestServiceClient::new(channel);
    while !writer.stop.load(Ordering::Relaxed) {
        let request = RecordEventsRequest { events: new_events(&next, 10), ..Default::default() };
        loop {
            let begun = Instant::now();
            // A server that dies, or is not there yet, is another test's.
            if let Ok(answer) = client.record_events(request.clone()).await {
                let answer = answer.into_inner();
                assert_eq!(answer.rejected, []);
                assert_eq!(answer.accepted() + answer.duplicate(), 10);
                writer.acknowledged.fetch_add(10, Ordering::Relaxed);
                let took = u64::try_from(begun.elapsed().as_micros()).unwrap();
                writer.slowest_us.fetch_max(took, Ordering::Relaxed);
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn archived_through(channel: &Channel) -> u64 {
    let request = GetRetentionRequest { instance_id: INSTANCE.into() };
    let answer = AuditGovernanceServiceClient::new(channel.clone()).get_retention(request).await;
    answer.map_or(0, |answer| answer.into_inner().archived_through())
}

/// The code with which an entry is answered.
async fn code_of(channel: &Channel, sequence: u64) -> Code {
    let position = LogPosition { instance_id: INSTANCE.into(), sequence: Some(sequence) };
    let request = GetEntryRequest { key: Some(Key::Position(position)) };
    let answer = AuditQueryServiceClient::new(channel.clone()).get_entry(request).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn export(service: &Service, from: u64) -> Vec<u8> {
    let sdk = GatewaySdk::builder().audit_endpoint(service.url()).build().unwrap();
    let mut lines = Vec::new();
    let export = AuditExport::sequences(INSTANCE, from, None, ExportFormat::Jsonl);
    sdk.audit().export(export, &mut lines, |_| {}).await.unwrap();
    assert!(sdk.shutdown(PATIENCE).await.is_complete());
    lines
}

/// The lines of all segments of a log, each verified by itself and by the key that signed its checkpoint.
async fn archived_lines(channel: &Channel, folder: &Path, key: &VerifierKey) -> Vec<u8> {
    let mut client = AuditGovernanceServiceClient::new(channel.clone());
    let (mut lines, mut next, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        // Pages of one, so that tokens are gone through too.
        let request = ListArchivesRequest { instance_id: INSTANCE.into(), page_size: 1, page_token };
        let answer = client.list_archives(request).await.unwrap().into_inner();
        for segment in answer.segments {
            assert_eq!(segment.first_sequence(), next);
            let manifest = Manifest::parse(&std::fs::read(folder.join(&segment.manifest)).unwrap()).unwrap();
            let data = std::fs::read(folder.join(&segment.lines)).unwrap();
            let verified = manifest.verify(data, |line, _| {
                lines.extend_from_slice(line.as_bytes());
                lines.push(b'\n');
            });
            verified.unwrap();
            let note: Note = manifest.checkpoint.as_ref().unwrap().parse().unwrap();
            assert!(!note.verify(std::slice::from_ref(key)).unwrap().is_empty());
            next = segment.end_sequence();
        }
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return lines;
        }
    }
}

async fn drill(engine: Engine) {
    let entries: u64 = if std::env::var_os("FULL").is_some() { 1_000_000 } else { 16_000 };
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(engine, &folder, "audit").await;
    let place = |name: &str| folder.path().join(name);
    let (beside, archive) = (place("beside").display().to_string(), place("archive").display().to_string());
    let settings = [
        ("PROGRAM", "archivist"),
        ("LOG__FOLDER", beside.as_str()),
        ("RETENTION__DAYS", "1"),
        ("RETENTION__ARCHIVE", archive.as_str()),
    ];
    let mut service = Service::start("audit", &url, &settings).await;
    let channel = service.channel();
    let next = Arc::new(AtomicU64::new(0));
    let quarter = fill(&channel, &next, entries / 4).await;
    let half = fill(&channel, &next, entries / 4).await;
    fill(&channel, &next, entries / 2).await;
    let before = export(&service, 0).await;
    assert_eq!(archived_through(&channel).await, 0, "nothing is due");

    let writer = Arc::new(Writer::default());
    let writing = tokio::spawn(write(writer.clone(), channel.clone(), next.clone()));
    for (due_before, through) in [(quarter, entries / 4), (half, entries / 2)] {
        for dies_at in ["Planned:1", "LinesWritten:1", "ManifestWritten:1", "Recorded:1", "Swept:1", "Swept:3", ""] {
            service.kill();
            service.archivist(due_before, dies_at);
            service.start_again().await;
            if !dies_at.is_empty() {
                service.process_mut().exited(PATIENCE).await;
                assert!(service.process().log().contains("dies at"), "{dies_at}");
            }
        }
        testkit::eventually(PATIENCE, async || archived_through(&channel).await == through).await;
        testkit::eventually(PATIENCE, async || code_of(&channel, through - 1).await == Code::OutOfRange).await;
        assert_eq!(code_of(&channel, through).await, Code::Ok);
        let known = writer.acknowledged.load(Ordering::Relaxed);
        testkit::eventually(PATIENCE, async || writer.acknowledged.load(Ordering::Relaxed) > known).await;
    }
    writer.stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    let slowest = Duration::from_micros(writer.slowest_us.load(Ordering::Relaxed));
    let acknowledged = writer.acknowledged.load(Ordering::Relaxed);
    eprintln!("{acknowledged} entries were written meanwhile, the slowest batch took {slowest:?}");
    assert!(slowest < STOPPED, "{slowest:?}");

    // Every number of the log is there, whoever is asked, in the same bytes as before.
    let whole = export(&service, 0).await;
    assert!(whole.starts_with(&before));
    let head = whole.iter().filter(|byte| **byte == b'\n').count() as u64;
    // What was acknowledged, and an entry for each segment.
    assert!(head > entries + acknowledged, "{head}");

    // One checkpoint signs what is in the archive and what is left, taken from where they are.
    let mut trust = AuditTrustServiceClient::new(channel.clone());
    let keys = trust.list_keys(ListKeysRequest { instance_id: INSTANCE.into() }).await.unwrap().into_inner().keys;
    let key = keys.iter().find(|key| key.kind() == KeyKind::Log).unwrap().verifier_key.clone();
    let request = GetCheckpointRequest { instance_id: INSTANCE.into(), min_size: Some(head) };
    testkit::eventually(PATIENCE, async || trust.clone().get_checkpoint(request.clone()).await.is_ok()).await;
    let note = trust.get_checkpoint(request).await.unwrap().into_inner().note;
    let (exported, checkpoint) = (place("export.jsonl"), place("checkpoint.json"));
    std::fs::write(&checkpoint, serde_json::json!({ "note": note }).to_string()).unwrap();
    let mut lines = archived_lines(&channel, Path::new(&archive), &key.parse().unwrap()).await;
    lines.extend(export(&service, entries / 2).await);
    assert!(lines == whole, "archive and database are the log");
    std::fs::write(&exported, lines).unwrap();
    let verify = |export: Option<&Path>, archive: Option<&Path>| {
        let mut command = Command::new(testkit::binary("standalone"));
        command.args(["verify", "--key", &key, "--checkpoints"]).arg(&checkpoint);
        export.map(|export| command.arg("--export").arg(export));
        archive.map(|archive| command.arg("--archive").arg(archive));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let valid = |(status, text): (Option<i32>, String), what: &str| {
        assert!(status == Some(0) && text.contains(what), "{status:?}, no {what:?} in {text}");
    };
    let (all, half) = (format!("the first {head} entries are as they were signed"), entries / 2);
    valid(verify(Some(&exported), None), &all);
    // What is left by itself says what is archived; with the archive, or the archive alone, all is there again.
    let left = place("left.jsonl");
    std::fs::write(&left, export(&service, half).await).unwrap();
    valid(verify(Some(&left), None), &format!("entries 0 to {} were archived by policy", half - 1));
    valid(verify(Some(&left), None), &format!("entries {half} to {} are as they were signed", head - 1));
    valid(verify(Some(&left), Some(Path::new(&archive))), &all);
    valid(verify(None, Some(Path::new(&archive))), &format!("{half} entries of"));

    // Nothing is in neither place, and nothing but its hashes in both.
    service.kill();
    let db = Database::connect(&url).await.unwrap();
    let count = async |sql: &str| {
        let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await.unwrap().unwrap();
        row.try_get_by_index::<i64>(0).unwrap().unsigned_abs()
    };
    assert_eq!(count("SELECT COUNT(*) FROM audit_archived").await, entries / 2);
    assert_eq!(count("SELECT COUNT(*) FROM audit_entries").await, head - entries / 2);
    let both = "SELECT COUNT(*) FROM audit_entries e JOIN audit_archived a ON a.id = e.id";
    assert_eq!(count(both).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_log_is_archived_through_kills_while_somebody_writes_on_sqlite() {
    drill(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_log_is_archived_through_kills_while_somebody_writes_on_postgres() {
    if !testkit::Postgres::skipped() {
        drill(Engine::Postgres).await;
    }
}
