//! Receipts that prove themselves: of single batches, on streams, through the SDK; of what was sent twice, archived or
//! changed. They are checked with a pinned key and nothing else.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, Instant, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::{AuditEvent, Receipt, RecordEventsRequest, RecordEventsResponse, StreamEventsRequest};
use e2e::sandbox::database_url;
use e2e::{Engine, Service, events};
use gateway_sdk::{
    Actor, AuditExport, Error, ExportFormat, GatewaySdk, NotProven, PinnedKey, ProvenReceipt, Resource, Stage,
};
use prost::Message as _;
use serde_json::json;
use service_core::clock::now_us;
use tempfile::TempDir;

const INSTANCE: &str = "eu-1";
const PATIENCE: Duration = Duration::from_secs(60);

/// A server whose logs are signed, and by which keys.
async fn signing(engine: Engine, folder: &TempDir, settings: &[(&str, &str)]) -> Service {
    let url = database_url(engine, folder, "audit").await;
    let beside = folder.path().join("beside").display().to_string();
    let all = [&[("LOG__FOLDER", beside.as_str())][..], settings].concat();
    Service::start("audit", &url, &all).await
}

/// What everybody who checks was told at the first start.
fn pinned(service: &Service) -> Vec<PinnedKey> {
    let log = service.process().log();
    let keys = log.lines().filter(|line| line.contains("made a key")).map(|line| {
        let (_, key) = line.split_once("key=").unwrap();
        key.split_whitespace().next().unwrap().parse().unwrap()
    });
    let keys: Vec<PinnedKey> = keys.collect();
    assert_eq!(keys.len(), 2, "{log}");
    keys
}

async fn record(service: &Service, events: Vec<AuditEvent>) -> RecordEventsResponse {
    let request = RecordEventsRequest { events, with_proofs: true };
    AuditIngestServiceClient::new(service.channel()).record_events(request).await.unwrap().into_inner()
}

fn proven(event: &AuditEvent, receipt: &Receipt) -> ProvenReceipt {
    ProvenReceipt::new(gateway_sdk::AuditEvent::from_proto(event.clone()), receipt.clone())
}

async fn export(service: &Service) -> Vec<String> {
    let sdk = GatewaySdk::builder().audit_endpoint(service.url()).build().unwrap();
    let mut lines = Vec::new();
    let export = AuditExport::sequences(INSTANCE, 0, None, ExportFormat::Jsonl);
    sdk.audit().export(export, &mut lines, |_| {}).await.unwrap();
    String::from_utf8(lines).unwrap().lines().map(str::to_owned).collect()
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

/// No bit of a receipt, nor a word of its event, can be another one.
fn assert_nothing_else_is_proven(event: &AuditEvent, receipt: &Receipt, keys: &[PinnedKey]) {
    let refused = |change: &dyn Fn(&mut Receipt)| {
        let mut receipt = receipt.clone();
        change(&mut receipt);
        proven(event, &receipt).verify(keys).unwrap_err()
    };
    let proof = receipt.proof.as_ref().unwrap();
    for bit in (0..proof.entry_json.len() * 8).step_by(3) {
        let Ok(text) = String::from_utf8(flipped(proof.entry_json.as_bytes(), bit)) else { continue };
        refused(&|receipt| receipt.proof.as_mut().unwrap().entry_json = text.clone());
    }
    for bit in (0..proof.checkpoint.len() * 8).step_by(3) {
        let Ok(text) = String::from_utf8(flipped(proof.checkpoint.as_bytes(), bit)) else { continue };
        // A witness that is not known by its name any more vouches for no time, and spoils nothing.
        let mut changed = receipt.clone();
        changed.proof.as_mut().unwrap().checkpoint = text;
        if let Ok(still) = proven(event, &changed).verify(keys) {
            assert_eq!(still.cosigned_at_s, None);
        }
    }
    for bit in (0..proof.hashes.len() * 256).step_by(7) {
        refused(&|receipt| {
            let hash = &mut receipt.proof.as_mut().unwrap().hashes[bit / 256];
            *hash = flipped(hash, bit % 256);
        });
    }
    assert_eq!(refused(&|receipt| receipt.leaf_hash[7] ^= 1), NotProven::Differs { member: "leaf hash".into() });
    assert_eq!(refused(&|receipt| receipt.sequence = Some(9_999)), NotProven::Differs { member: "sequence".into() });
    assert_eq!(refused(&|receipt| receipt.proof = None), NotProven::NoProof);

    type Change = fn(&mut AuditEvent);
    let changes: [(&str, Change); 9] = [
        ("action", |event| event.action = "model.removed".into()),
        ("actor", |event| event.actor.as_mut().unwrap().display_name.push('x')),
        ("changes", |event| event.changes.clear()),
        ("id", |event| event.id = events::id(SystemTime::UNIX_EPOCH, 1)),
        ("instanceId", |event| event.instance_id = "eu-2".into()),
        ("occurredAt", |event| event.occurred_at.as_mut().unwrap().seconds -= 1),
        ("outcome", |event| event.outcome = 2),
        ("reason", |event| event.reason.clear()),
        ("requestId", |event| event.request_id = "other".into()),
    ];
    for (member, change) in changes {
        let mut other = event.clone();
        change(&mut other);
        let why = proven(&other, receipt).verify(keys).unwrap_err();
        assert_eq!(why, NotProven::Differs { member: member.into() });
    }
}

async fn of_a_batch(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive").display().to_string();
    let settings = [("PROGRAM", "archivist"), ("RETENTION__DAYS", "1"), ("RETENTION__ARCHIVE", archive.as_str())];
    let mut service = signing(engine, &folder, &settings).await;
    let keys = pinned(&service);
    let now = SystemTime::now();
    let sent: Vec<AuditEvent> = (0..300).map(|n| events::audit(now, n)).collect();
    let begun = Instant::now();
    let answer = record(&service, sent.clone()).await;
    eprintln!("300 proven receipts after {:?}", begun.elapsed());
    assert_eq!((answer.accepted(), answer.receipts.len()), (300, 300));
    let lines = export(&service).await;
    for (event, receipt) in sent.iter().zip(&answer.receipts) {
        let entry = proven(event, receipt).verify(&keys).unwrap();
        assert_eq!((entry.sequence, entry.instance.as_str()), (receipt.sequence(), INSTANCE));
        assert!(entry.tree_size >= 300 && entry.cosigned_at_s.is_some());
        // The event's own canonical bytes, as everybody else has them.
        assert_eq!(receipt.proof.as_ref().unwrap().entry_json, lines[receipt.sequence() as usize]);
    }
    assert_nothing_else_is_proven(&sent[17], &answer.receipts[17], &keys);
    let other = PinnedKey { sizes: 0..=299, ..keys[0].clone() };
    let why = proven(&sent[0], &answer.receipts[0]).verify(&[other]).unwrap_err().to_string();
    assert!(why.contains("is good for 0-299"), "{why}");

    // Some of them again, twice in one batch, with a new one and one that is refused between.
    let bad = AuditEvent { action: "nonsense".into(), ..events::audit(now, 400) };
    let again = vec![sent[7].clone(), events::audit(now, 301), bad, sent[200].clone(), sent[7].clone()];
    let answer = record(&service, again.clone()).await;
    assert_eq!((answer.accepted(), answer.duplicate(), answer.rejected.len()), (1, 3, 1));
    for receipt in &answer.receipts {
        let entry = proven(&again[receipt.index() as usize], receipt).verify(&keys).unwrap();
        assert_eq!(entry.sequence, receipt.sequence());
    }

    // What retention has removed is known by its hashes, and is proven by them.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let due_before = now_us();
    tokio::time::sleep(Duration::from_millis(5)).await;
    service.kill();
    service.archivist(due_before, "");
    service.start_again().await;
    testkit::eventually(PATIENCE, async || {
        let receipt = record(&service, vec![sent[7].clone()]).await.receipts.remove(0);
        receipt.proof.is_some_and(|proof| proof.entry_json.is_empty())
    })
    .await;
    let receipt = record(&service, vec![sent[7].clone()]).await.receipts.remove(0);
    assert!(receipt.duplicate);
    assert_eq!(proven(&sent[7], &receipt).verify(&keys), Err(NotProven::Archived));
    // With its line from the archive it is proven as before.
    let lines = export(&service).await;
    let mut whole = receipt.clone();
    whole.proof.as_mut().unwrap().entry_json = lines[receipt.sequence() as usize].clone();
    assert_eq!(proven(&sent[7], &whole).verify(&keys).unwrap().sequence, receipt.sequence());
}

#[tokio::test]
async fn receipts_of_a_batch_carry_proofs_on_sqlite() {
    of_a_batch(Engine::Sqlite).await;
}

#[tokio::test]
async fn receipts_of_a_batch_carry_proofs_on_postgres() {
    if !testkit::Postgres::skipped() {
        of_a_batch(Engine::Postgres).await;
    }
}

/// The acknowledgement does not wait for the signature, and no batch behind it does.
#[tokio::test]
async fn proofs_on_a_stream_come_after_the_answers() {
    let folder = tempfile::tempdir().unwrap();
    let service = signing(Engine::Sqlite, &folder, &[("LOG__CHECKPOINT_INTERVAL_MS", "1000")]).await;
    let keys = pinned(&service);
    let now = SystemTime::now();
    // The first is signed at once, what comes behind it after the interval.
    record(&service, vec![events::audit(now, 0)]).await;
    let batch = |batch_id: u64| StreamEventsRequest {
        batch_id,
        events: (0..10).map(|n| events::audit(now, batch_id * 100 + n)).collect(),
        with_proofs: batch_id % 2 == 1,
        ..Default::default()
    };
    let batches: Vec<_> = (1..=40).map(batch).collect();
    let stream = tokio_stream::iter(batches.clone());
    let mut answers =
        AuditIngestServiceClient::new(service.channel()).stream_events(stream).await.unwrap().into_inner();
    let (mut settled, mut proven_of) = (Vec::new(), Vec::new());
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.receipts.len(), 10);
        match answer.accepted {
            Some(accepted) => {
                assert_eq!(accepted, 10);
                assert!(answer.receipts.iter().all(|receipt| receipt.proof.is_none()));
                settled.push(answer.batch_id);
            }
            None => {
                assert!(settled.contains(&answer.batch_id) && (answer.duplicate, answer.rejected.len()) == (None, 0));
                for (event, receipt) in batches[answer.batch_id as usize - 1].events.iter().zip(&answer.receipts) {
                    proven(event, receipt).verify(&keys).unwrap();
                }
                proven_of.push(answer.batch_id);
            }
        }
    }
    assert_eq!(settled, (1..=40).collect::<Vec<_>>());
    proven_of.sort_unstable();
    assert_eq!(proven_of, (1..=40).step_by(2).collect::<Vec<_>>());
}

/// An answer stays below what clients take; who missed a proof asks again.
#[tokio::test]
async fn proofs_take_no_more_room_than_an_answer_has() {
    let folder = tempfile::tempdir().unwrap();
    let service = signing(Engine::Sqlite, &folder, &[]).await;
    let keys = pinned(&service);
    let now = SystemTime::now();
    let details = format!("\"{}\"", "x".repeat(60_000));
    let large = |n| AuditEvent { details_json: details.clone(), ..events::audit(now, n) };
    let sent: Vec<AuditEvent> = (0..65).map(large).collect();
    let answer = record(&service, sent.clone()).await;
    assert_eq!((answer.accepted(), answer.receipts.len()), (65, 65));
    assert!(answer.encoded_len() < 4 * 1024 * 1024, "{}", answer.encoded_len());
    let has_none = |receipt: &&Receipt| receipt.proof.is_none();
    let missed: Vec<usize> = answer.receipts.iter().filter(has_none).map(|receipt| receipt.index() as usize).collect();
    assert!((10..20).contains(&missed.len()), "{missed:?}");
    let again = record(&service, missed.iter().map(|at| sent[*at].clone()).collect()).await;
    for (at, receipt) in missed.iter().zip(&again.receipts) {
        proven(&sent[*at], receipt).verify(&keys).unwrap();
    }
}

#[tokio::test]
async fn the_sdk_proves_what_it_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let service = signing(Engine::Sqlite, &folder, &[]).await;
    let keys = pinned(&service);
    let spool = folder.path().join("spool");
    let sdk = GatewaySdk::builder().audit_endpoint(service.url()).instance(INSTANCE).spool(spool).build().unwrap();
    let actor = Actor::service_account("sa-1")
        .display_name("Bot \"7\"\u{2028}é")
        .ip_address("::1".parse().unwrap())
        .user_agent("curl/8")
        .on_behalf_of("u-2");
    let event = gateway_sdk::AuditEvent::builder(actor, "model.enabled", Resource::new("model", "m-1").name("M"))
        .resource(Resource::new("user", "u-2"))
        .reason("OPS-1")
        .change("", None, Some(json!({"a": [1, "\n"]})))
        .change("/b~1c", Some(json!(null)), None)
        .details(&json!({"n": 1e3}))
        .request_id("r-1")
        .operation("op-1", Stage::Intent)
        .build();
    let plain = gateway_sdk::AuditEvent::builder(Actor::user("u-1"), "model.disabled", Resource::new("model", "m-1"));
    let plain = plain.instance("us-1").operation("op-2", Stage::Single).build();
    for event in [event, plain] {
        let recorded = sdk.audit().record(event.clone()).await.unwrap();
        let kept = sdk.audit().prove(&event).await.unwrap();
        let entry = kept.verify(&keys).unwrap();
        assert_eq!(entry.sequence, recorded.receipt().await.unwrap().sequence);
        assert_eq!(kept.event().id(), event.id());
        // It is kept as a message, and read again.
        let again = ProvenReceipt::new(kept.event().clone(), kept.receipt().clone());
        assert_eq!(again.verify(&keys), Ok(entry));
    }
    // Neither left a gap, or stored anything twice.
    assert_eq!(service.metric_of("activity_events_total", "result=\"accepted\"").await, 2.0);
    assert!(sdk.shutdown(PATIENCE).await.is_complete());
}

#[tokio::test]
async fn without_a_place_for_checkpoints_receipts_carry_none() {
    if testkit::Postgres::skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start("audit", &database_url(Engine::Postgres, &folder, "audit").await, &[]).await;
    let answer = record(&service, vec![events::audit(SystemTime::now(), 0)]).await;
    assert_eq!(answer.accepted(), 1);
    assert!(answer.receipts[0].proof.is_none());
    let sdk = GatewaySdk::builder().audit_endpoint(service.url()).instance(INSTANCE).build().unwrap();
    let event =
        gateway_sdk::AuditEvent::builder(Actor::user("u-1"), "model.enabled", Resource::new("model", "m-1")).build();
    let error = sdk.audit().prove(&event).await.unwrap_err();
    assert!(matches!(&error, Error::NoProof { id } if *id == event.id().to_string()), "{error:?}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn of_what_was_changed_there_is_a_receipt_and_no_proof() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let service = Service::start("audit", &url, &[]).await;
    let now = SystemTime::now();
    let sent: Vec<AuditEvent> = (0..20).map(|n| events::audit(now, n)).collect();
    record(&service, sent.clone()).await;
    e2e::tree::tamper(&url, e2e::tree::guards_off(Engine::Sqlite)).await;
    let change = "UPDATE audit_entries SET canonical = replace(canonical, 'OPS-', 'OPS+') WHERE sequence = 5";
    e2e::tree::tamper(&url, &[change]).await;
    for (n, has) in [(4, true), (5, false), (6, true)] {
        let receipt = record(&service, vec![sent[n].clone()]).await.receipts.remove(0);
        assert_eq!((receipt.duplicate, receipt.proof.is_some()), (true, has), "{n}");
    }
    assert!(service.process().log().contains("entry 5 is not as it was signed"));
}
