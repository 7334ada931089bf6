//! Exports into files over everything that breaks off: a network that cuts connections, servers and clients that are killed.
//! What is there in the end is byte for byte what an export without any of it is.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_trust_service_client::AuditTrustServiceClient;
use activity_proto::audit::v1::{GetCheckpointRequest, KeyKind, ListKeysRequest, RecordEventsRequest};
use activity_proto::usage::v1::RecordUsageRequest;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use e2e::sandbox::database_url;
use e2e::{Engine, Sandbox, Service, events};
use gateway_sdk::{
    AuditExport, AuditFilter, Bucket, Dimension, ExportFormat, GatewaySdk, Grouping, TimeRange, UsageQuery, UsageShape,
};
use testkit::ChildProcess;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};

const PATIENCE: Duration = Duration::from_secs(120);
/// Of each kind: some 5 MiB of lines, 20 chunks and more.
const ROWS: u64 = 8_000;
const INSTANCE: &str = "eu-1";

/// A network between a client and a server. So many connections break when this many bytes have come back over each.
struct Network {
    address: SocketAddr,
    cuts: Arc<AtomicUsize>,
}

impl Network {
    async fn before(server: &str, cuts: usize, bytes: usize, pace: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, server) = (Arc::new(AtomicUsize::new(cuts)), server.to_owned());
        let left = cuts.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A server that is not there is one that does not answer.
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                tokio::spawn(carry(client, server, left.clone(), bytes, pace));
            }
        });
        Self { address, cuts }
    }

    fn cuts_left(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

async fn carry(client: TcpStream, server: TcpStream, cuts: Arc<AtomicUsize>, bytes: usize, pace: Duration) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let asking = tokio::io::copy(&mut from_client, &mut to_server);
    let answering = async {
        let (mut buffer, mut carried) = (vec![0; 16 * 1024], 0);
        loop {
            let read = from_server.read(&mut buffer).await.unwrap_or(0);
            if read == 0 || to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
            carried += read;
            let left = |left: usize| left.checked_sub(1);
            if carried > bytes && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
                return;
            }
            tokio::time::sleep(pace).await;
        }
    };
    // The first to end ends both.
    tokio::select! { _ = asking => {}, () = answering => {} }
}

fn sdk(address: impl std::fmt::Display) -> GatewaySdk {
    let url = format!("http://{address}");
    // A server takes its time to start again.
    let backoff = (Duration::from_secs(1), Duration::from_secs(4));
    GatewaySdk::builder().audit_endpoint(&url).usage_endpoint(&url).backoff(backoff.0, backoff.1).build().unwrap()
}

async fn fill_audit(service: &Service, now: SystemTime) {
    let mut client = AuditIngestServiceClient::new(service.channel());
    for first in (0..ROWS).step_by(1_000) {
        let events = (first..first + 1_000).map(|n| events::audit(now, n)).collect();
        let answer = client
            .record_events(RecordEventsRequest { events, ..RecordEventsRequest::default() })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.accepted(), 1_000);
    }
}

async fn fill_usage(service: &Service, now: SystemTime) {
    let mut client = UsageIngestServiceClient::new(service.channel());
    for first in (0..ROWS).step_by(1_000) {
        let events = (first..first + 1_000).map(|n| events::usage(now, n)).collect();
        let answer = client.record_usage(RecordUsageRequest { events }).await.unwrap().into_inner();
        assert_eq!(answer.accepted(), 1_000);
    }
}

/// What is in a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// A day that ends with the last event, so that it is the same however late it is asked for.
fn day(now: SystemTime) -> TimeRange {
    TimeRange::between(now - Duration::from_secs(24 * 3600), now + Duration::from_secs(1))
}

async fn cut(engine: Engine) {
    let sandbox = Sandbox::start(engine).await;
    let now = SystemTime::now();
    fill_audit(&sandbox.audit, now).await;
    fill_usage(&sandbox.usage, now).await;

    let direct = sdk(sandbox.audit.address());
    let exports = [
        AuditExport::range(day(now), ExportFormat::Jsonl),
        AuditExport::range(day(now), ExportFormat::Csv).filter(AuditFilter::new().action("model.enabled")),
        AuditExport::sequences(INSTANCE, 17, Some(4_000), ExportFormat::Jsonl).with_proofs(),
    ];
    for (n, export) in exports.into_iter().enumerate() {
        let folders = ["whole", "cut"].map(|name| sandbox.folder.path().join(format!("{n}-{name}")));
        folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
        let whole = direct.audit().export_file(export.clone(), folders[0].join("log"), |_| ()).await.unwrap();
        assert_eq!(whole.resumed, 0);
        let network = Network::before(sandbox.audit.address(), 3, 400_000, Duration::ZERO).await;
        let broken = sdk(network.address);
        let done = broken.audit().export_file(export, folders[1].join("log"), |_| ()).await.unwrap();
        assert!(done.resumed >= 3 && network.cuts_left() == 0, "{done:?}");
        assert_eq!((done.rows, done.sha256), (whole.rows, whole.sha256));
        let [mut whole, mut cut] = folders.map(|folder| files(&folder));
        // When it was opened is told in the end.
        assert!(whole.remove("log.end.json").is_some() && cut.remove("log.end.json").is_some());
        assert!(whole == cut, "{:?} and {:?}", whole.keys(), cut.keys());
    }

    let direct = sdk(sandbox.usage.address());
    let query = UsageQuery::new().range(day(now));
    let by = || Grouping::by([Dimension::User, Dimension::ApiKey]).limit(1_000);
    for (shape, format, bytes, cuts) in [
        (UsageShape::Requests, ExportFormat::Csv, 400_000, 3),
        (UsageShape::Requests, ExportFormat::Jsonl, 400_000, 3),
        (UsageShape::Breakdown(by()), ExportFormat::Csv, 10_000, 2),
        (UsageShape::TimeSeries(Bucket::Hour, by().limit(100)), ExportFormat::Jsonl, 10_000, 2),
    ] {
        let mut whole = Vec::new();
        direct.usage().export(&query, shape.clone(), format, &mut whole, |_| ()).await.unwrap();
        let network = Network::before(sandbox.usage.address(), cuts, bytes, Duration::ZERO).await;
        let (broken, target) = (sdk(network.address), sandbox.folder.path().join("usage"));
        let done = broken.usage().export_file(&query, shape, format, &target, |_| ()).await.unwrap();
        assert!(done.resumed >= cuts as u64 && network.cuts_left() == 0, "{done:?}");
        assert!(fs::read(&target).unwrap() == whole);
    }
}

/// The server dies in the middle of an export, and another one is there a while later.
async fn server_killed(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    for name in ["audit", "usage"] {
        let service = Service::start(name, &database_url(engine, &folder, name).await, &[]).await;
        let (whole, target) = (folder.path().join("whole"), folder.path().join("target"));
        let address = service.address().to_owned();
        let export = async |target: &Path, mut each: Box<dyn FnMut()>| {
            let sdk = sdk(&address);
            let query = UsageQuery::new().range(day(now));
            let (shape, format) = (UsageShape::Requests, ExportFormat::Jsonl);
            let done = match name {
                "audit" => {
                    let export = AuditExport::range(day(now), format);
                    sdk.audit().export_file(export, target, |_| each()).await.map(|done| (done.resumed, done.sha256))
                }
                _ => {
                    let exported = sdk.usage().export_file(&query, shape, format, target, |_| each()).await;
                    exported.map(|done| (done.resumed, done.sha256))
                }
            };
            done.unwrap()
        };
        match name {
            "audit" => fill_audit(&service, now).await,
            _ => fill_usage(&service, now).await,
        }
        let (_, expected) = export(&whole, Box::new(|| ())).await;

        let service = Arc::new(Mutex::new(service));
        let (killed, mut is_killed) = mpsc::channel(1);
        let dying = service.clone();
        let mut chunks = 0;
        let each = move || {
            chunks += 1;
            // Much more is to come than what is on its way.
            if chunks == 3 {
                dying.try_lock().unwrap().kill();
                killed.try_send(()).unwrap();
            }
        };
        let starting = async {
            is_killed.recv().await.unwrap();
            service.lock().await.start_again().await;
        };
        let ((resumed, sha256), ()) = tokio::join!(export(&target, Box::new(each)), starting);
        assert!(resumed > 0 && sha256 == expected, "{name}: {resumed}");
        assert!(fs::read(&target).unwrap() == fs::read(&whole).unwrap());
    }
}

/// The exporting process is killed again and again.
#[tokio::test]
async fn a_killed_process_is_gone_on_with_by_the_next() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let now = SystemTime::now();
    fill_audit(&sandbox.audit, now).await;
    fill_usage(&sandbox.usage, now).await;
    for (name, service) in [("audit", &sandbox.audit), ("usage", &sandbox.usage)] {
        let folder = sandbox.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        let target = folder.join("target");
        // Slow enough to be killed in the middle.
        let network = Network::before(service.address(), 0, 0, Duration::from_millis(5)).await;
        let url = format!("http://{}", network.address);
        let start = || {
            let mut command = Command::new(testkit::binary("exporter"));
            ChildProcess::start(command.args([name, &url]).arg(&target))
        };
        let mark = folder.join("target.part.json");
        let mut marks = Vec::new();
        for _ in 0..3 {
            let mut process = start();
            testkit::eventually(PATIENCE, async || {
                fs::read(&mark).is_ok_and(|mark| !marks.contains(&mark)) || target.exists()
            })
            .await;
            process.kill();
            assert!(!target.exists(), "{name} is over before it was killed {} times", marks.len() + 1);
            marks.push(fs::read(&mark).unwrap());
        }
        let marked: serde_json::Value = serde_json::from_slice(marks.last().unwrap()).unwrap();
        let mut process = start();
        assert!(process.exited(PATIENCE).await.success(), "{}", process.log());
        assert_eq!(process.lines(), [format!("continued {}", marked["lines"]["bytes"])]);

        let sdk = sdk(service.address());
        let (mut whole, mut found) = (Vec::new(), files(&folder));
        if name == "audit" {
            let export = AuditExport::range(day(now), ExportFormat::Jsonl);
            sdk.audit().export(export, &mut whole, |_| ()).await.unwrap();
            assert!(found.remove("target.end.json").is_some());
            let proofs = found.remove("target.proofs").unwrap();
            assert_eq!(proofs.iter().filter(|byte| **byte == b'\n').count() as u64, ROWS);
        } else {
            let query = UsageQuery::new().range(day(now));
            sdk.usage().export(&query, UsageShape::Requests, ExportFormat::Jsonl, &mut whole, |_| ()).await.unwrap();
        }
        assert!(found == BTreeMap::from([("target".to_owned(), whole)]), "{name}: {:?}", found.keys());
    }
}

/// What a call that is dropped leaves, and a byte of it that turns.
#[tokio::test]
async fn a_dropped_call_is_gone_on_with_and_what_changed_since_is_found() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let now = SystemTime::now();
    fill_audit(&sandbox.audit, now).await;
    let sdk = sdk(sandbox.audit.address());
    let (whole, target) = (sandbox.folder.path().join("whole"), sandbox.folder.path().join("target"));
    let export = || AuditExport::range(day(now), ExportFormat::Jsonl).with_proofs();
    sdk.audit().export_file(export(), &whole, |_| ()).await.unwrap();

    let (came, mut has_come) = mpsc::unbounded_channel();
    let exporting = sdk.audit().export_file(export(), &target, |at| came.send(at.rows).unwrap());
    let enough = async { while has_come.recv().await.unwrap() < ROWS / 2 {} };
    tokio::select! { done = exporting => panic!("{done:?}"), () = enough => {} }
    let part = sandbox.folder.path().join("target.part");
    // It may still be at a write.
    fs::File::open(&part).unwrap().lock().unwrap();
    let mut bytes = fs::read(&part).unwrap();
    bytes[123_456] ^= 1;
    fs::write(&part, &bytes).unwrap();
    let error = sdk.audit().export_file(export(), &target, |_| ()).await.unwrap_err();
    assert!(error.to_string().contains("target.part is not as it was written"), "{error}");
    assert!(!target.exists());
    bytes[123_456] ^= 1;
    fs::write(&part, &bytes).unwrap();
    let done = sdk.audit().export_file(export(), &target, |_| ()).await.unwrap();
    assert!(done.continued >= 1 << 19 && done.rows == ROWS, "{done:?}");
    for suffix in ["", ".proofs"] {
        let [whole, target] = [&whole, &target].map(|path| fs::read(format!("{}{suffix}", path.display())).unwrap());
        assert!(whole == target, "{suffix}");
    }
}

/// What the SDK writes is what `standalone verify` reads.
#[tokio::test]
async fn the_files_of_an_export_are_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let service = Service::start("audit", &url, &[]).await;
    let now = SystemTime::now();
    fill_audit(&service, now).await;
    let mut trust = AuditTrustServiceClient::new(service.channel());
    let request = GetCheckpointRequest { instance_id: INSTANCE.into(), min_size: Some(ROWS) };
    testkit::eventually(PATIENCE, async || trust.clone().get_checkpoint(request.clone()).await.is_ok()).await;
    let keys = trust.list_keys(ListKeysRequest { instance_id: INSTANCE.into() }).await.unwrap().into_inner().keys;
    let key = keys.iter().find(|key| key.kind() == KeyKind::Log).unwrap().verifier_key.as_str();

    let target = folder.path().join("log.jsonl").display().to_string();
    let export =
        AuditExport::range(day(now), ExportFormat::Jsonl).filter(AuditFilter::new().actor("admin-3")).with_proofs();
    let done = sdk(service.address()).audit().export_file(export, &target, |_| ()).await.unwrap();
    let [end, proofs] = [".end.json", ".proofs"].map(|suffix| format!("{target}{suffix}"));
    let arguments = ["--key", key, "--export", &target, "--end", &end, "--proofs", &proofs, "--filtered"];
    let (status, text) = e2e::verify::verify(arguments);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains(&format!("{} of its {ROWS} entries are in this export", done.rows)), "{text}");
    // A line of another is none.
    let lines = fs::read_to_string(&target).unwrap();
    fs::write(&target, lines.replacen("ticket OPS-", "ticket ABC-", 1)).unwrap();
    let (status, text) = e2e::verify::verify(arguments);
    assert_eq!(status, Some(1), "{text}");
}

#[tokio::test]
async fn exports_that_are_cut_are_byte_for_byte_the_whole_on_sqlite() {
    cut(Engine::Sqlite).await;
}

#[tokio::test]
async fn exports_that_are_cut_are_byte_for_byte_the_whole_on_postgres() {
    if !testkit::Postgres::skipped() {
        cut(Engine::Postgres).await;
    }
}

#[tokio::test]
async fn exports_go_on_with_the_next_server_on_sqlite() {
    server_killed(Engine::Sqlite).await;
}

#[tokio::test]
async fn exports_go_on_with_the_next_server_on_postgres() {
    if !testkit::Postgres::skipped() {
        server_killed(Engine::Postgres).await;
    }
}
