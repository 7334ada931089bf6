//! Signed checkpoints of real servers: soon after entries, again in silence, and how a database is found out that was put
//! back or rewritten.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::audit_trust_service_client::AuditTrustServiceClient;
use activity_proto::audit::v1::{
    GetCheckpointRequest, GetConsistencyProofRequest, GetEntryRequest, KeyKind, ListKeysRequest, LogPosition,
    RecordEventsRequest, get_entry_request::Key,
};
use audit_service::checkpoint::{Checkpoint, KeyKind as KeyKindOf, Note, SigningKey, VerifierKey};
use audit_service::merkle::{Hash, verify_consistency};
use e2e::sandbox::database_url;
use e2e::tools::grpcurl;
use e2e::{Engine, Service, events};
use gateway_sdk::{AuditExport, ExportFormat};
use sqlx::PgPool;
use tonic::Code;

const INSTANCE: &str = "eu-1";
const PATIENCE: Duration = Duration::from_secs(30);

async fn write(service: &Service, now: SystemTime, first: u64, count: u64) -> Result<(), tonic::Status> {
    let events = (first..first + count).map(|n| events::audit(now, n)).collect();
    let answer = AuditIngestServiceClient::new(service.channel())
        .record_events(RecordEventsRequest { events, ..Default::default() })
        .await?;
    assert_eq!(u64::from(answer.into_inner().accepted()), count);
    Ok(())
}

async fn note(service: &Service, min_size: Option<u64>) -> Result<Note, tonic::Status> {
    let request = GetCheckpointRequest { instance_id: INSTANCE.into(), min_size };
    let answer = AuditTrustServiceClient::new(service.channel()).get_checkpoint(request).await?.into_inner();
    let note: Note = answer.note.parse().unwrap();
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    assert_eq!((answer.tree_size, answer.root_hash), (Some(checkpoint.size), checkpoint.root.to_vec()));
    Ok(note)
}

/// Waits for a checkpoint over so many entries.
async fn signed(service: &Service, size: u64) -> Note {
    testkit::eventually(PATIENCE, async || note(service, Some(size)).await.is_ok()).await;
    note(service, Some(size)).await.unwrap()
}

async fn keys(service: &Service) -> Vec<VerifierKey> {
    let request = ListKeysRequest { instance_id: INSTANCE.into() };
    let answer = AuditTrustServiceClient::new(service.channel()).list_keys(request).await.unwrap().into_inner();
    assert!(answer.keys.iter().all(|key| key.current && key.kind() != KeyKind::Unspecified), "{answer:?}");
    answer.keys.iter().map(|key| key.verifier_key.parse().unwrap()).collect()
}

/// Asks a server whether one tree began as another, and checks the proof.
async fn assert_consistent(service: &Service, old: &Checkpoint, new: &Checkpoint) {
    let request =
        GetConsistencyProofRequest { instance_id: INSTANCE.into(), old_size: Some(old.size), new_size: Some(new.size) };
    let answer = AuditTrustServiceClient::new(service.channel()).get_consistency_proof(request).await.unwrap();
    let proof: Vec<Hash> = answer.into_inner().hashes.iter().map(|hash| hash.as_slice().try_into().unwrap()).collect();
    verify_consistency(old.size, new.size, &old.root, &new.root, &proof).unwrap();
}

fn health(service: &Service) -> String {
    let answer = grpcurl(service.address(), "grpc.health.v1.Health/Check", "{}");
    answer["status"].as_str().unwrap_or_default().to_owned()
}

async fn stop(service: &mut Service) {
    service.process().terminate();
    assert_eq!(service.process_mut().exited(PATIENCE).await.code(), Some(0));
}

/// Reads go on, writes do not, and the reason is in the log.
async fn assert_found_out(service: &Service, now: SystemTime, there: u64, why: &str) {
    assert_eq!(health(service), "NOT_SERVING");
    assert_eq!(write(service, now, 10_000, 1).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(note(service, None).await.unwrap_err().code(), Code::Unavailable);
    let log = service.process().log();
    assert!(log.contains("does not fit what was signed") && log.contains(why), "{log}");
    let position = LogPosition { instance_id: INSTANCE.into(), sequence: Some(there - 1) };
    let request = GetEntryRequest { key: Some(Key::Position(position)) };
    AuditQueryServiceClient::new(service.channel()).get_entry(request).await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_comes_soon_after_entries_and_is_signed_by_the_keys_beside_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let service = Service::start("audit", &url, &[]).await;
    let (now, mut last) = (SystemTime::now(), None::<Checkpoint>);
    assert_eq!(note(&service, None).await.unwrap_err().code(), Code::NotFound);
    for round in 0..3 {
        write(&service, now, round * 100, 100).await.unwrap();
        let size = (round + 1) * 100;
        let note = signed(&service, size).await;
        let keys = keys(&service).await;
        assert_eq!(keys.len(), 2);
        let verified = note.verify(&keys).unwrap();
        assert_eq!(verified.iter().filter(|signed| signed.at_s.is_none()).count(), 1);
        let checkpoint = Checkpoint::parse(note.text()).unwrap();
        assert_eq!((checkpoint.origin.as_str(), checkpoint.size), ("localhost/audit/eu-1", size));
        // It is on disk outside before it is shown.
        let kept = std::fs::read_to_string(folder.path().join("audit.db.checkpoints/checkpoints")).unwrap();
        assert!(kept.contains(&format!("\\n{size}\\n")), "{kept}");
        if let Some(last) = last {
            assert_consistent(&service, &last, &checkpoint).await;
        }
        last = Some(checkpoint);
    }
    // The oldest one that covers an entry.
    let first = note(&service, Some(1)).await.unwrap();
    assert!(Checkpoint::parse(first.text()).unwrap().size <= 100);
}

#[tokio::test]
async fn silence_is_cosigned_again_and_the_logs_own_signature_stays_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let service = Service::start("audit", &url, &[("LOG__SILENCE_INTERVAL_MS", "1000")]).await;
    write(&service, SystemTime::now(), 0, 3).await.unwrap();
    let first = signed(&service, 3).await;
    testkit::eventually(PATIENCE, async || {
        let newest = note(&service, None).await.unwrap();
        newest.text() == first.text() && newest.signatures()[1] != first.signatures()[1]
    })
    .await;
    let newest = note(&service, None).await.unwrap();
    assert_eq!(newest.signatures()[0], first.signatures()[0]);
    let times = |note: &Note, keys: &[VerifierKey]| note.verify(keys).unwrap().iter().filter_map(|s| s.at_s).max();
    let keys = keys(&service).await;
    assert!(times(&newest, &keys) > times(&first, &keys));
}

#[tokio::test]
async fn an_old_backup_that_is_put_back_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let mut service = Service::start("audit", &url, &[]).await;
    let now = SystemTime::now();
    write(&service, now, 0, 10).await.unwrap();
    signed(&service, 10).await;
    stop(&mut service).await;
    let (database, backup) = (folder.path().join("audit.db"), folder.path().join("backup"));
    std::fs::copy(&database, &backup).unwrap();

    service.start_again().await;
    write(&service, now, 10, 10).await.unwrap();
    signed(&service, 20).await;
    stop(&mut service).await;
    std::fs::copy(&backup, &database).unwrap();

    service.start_again().await;
    assert_found_out(&service, now, 10, "was signed with 20 entries, and the database has 10 entries").await;
    // To accept the loss is a deed of somebody who can reach the folder.
    stop(&mut service).await;
    std::fs::remove_file(folder.path().join("audit.db.checkpoints/checkpoints")).unwrap();
    service.start_again().await;
    assert_eq!(health(&service), "SERVING");
    write(&service, now, 20, 1).await.unwrap();
    signed(&service, 11).await;
}

/// The database's owner changes an entry and its hash, and lets the whole tree be built anew: nothing in the database
/// tells.
async fn rewritten(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(engine, &folder, "audit").await;
    let beside = folder.path().join("beside").display().to_string();
    let mut service = Service::start("audit", &url, &[("LOG__FOLDER", &beside)]).await;
    let now = SystemTime::now();
    write(&service, now, 0, 300).await.unwrap();
    signed(&service, 300).await;
    stop(&mut service).await;
    e2e::tree::rewrite(&url, INSTANCE, 7).await;
    assert_eq!(e2e::tree::assert_whole(&url, INSTANCE).await, 300);

    service.start_again().await;
    assert_found_out(&service, now, 300, "has 300 entries that do not begin with those").await;
    assert!(Path::new(&beside).join("log.key").exists());
}

#[tokio::test]
async fn a_history_that_was_rewritten_to_match_is_found_out_on_sqlite() {
    rewritten(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_history_that_was_rewritten_to_match_is_found_out_on_postgres() {
    if !testkit::Postgres::skipped() {
        rewritten(Engine::Postgres).await;
    }
}

/// As a server has it that lagged and is failed over to.
#[tokio::test]
async fn a_database_that_loses_its_end_while_it_is_served_takes_no_more() {
    if testkit::Postgres::skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Postgres, &folder, "audit").await;
    let beside = folder.path().display().to_string();
    let service = Service::start("audit", &url, &[("LOG__FOLDER", &beside)]).await;
    let now = SystemTime::now();
    let pool = PgPool::connect(&url).await.unwrap();
    write(&service, now, 0, 3).await.unwrap();
    sqlx::query("CREATE TABLE before AS SELECT * FROM audit_log_heads").execute(&pool).await.unwrap();
    write(&service, now, 3, 4).await.unwrap();
    signed(&service, 7).await;
    for lose in [
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "DELETE FROM audit_entries WHERE sequence >= 3",
        "UPDATE audit_log_heads SET next_sequence = 3, tree_size = 3, frontier = (SELECT frontier FROM before)",
    ] {
        sqlx::query(lose).execute(&pool).await.unwrap();
    }
    assert_eq!(write(&service, now, 7, 1).await.unwrap_err().code(), Code::Unavailable);
    let log = service.process().log();
    assert!(log.contains("it has 3 entries, and more than that were signed"), "{log}");
}

#[tokio::test]
async fn replicas_sign_one_history_with_one_key() {
    if testkit::Postgres::skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Postgres, &folder, "audit").await;
    let place = |name: &str| folder.path().join(name).display().to_string();
    let (one, other) = (place("one"), place("other"));
    let first = Service::start("audit", &url, &[("LOG__FOLDER", &one)]).await;
    let (key, witness) = (format!("{one}/log.key"), format!("{one}/witness.key"));
    let settings = [("LOG__FOLDER", other.as_str()), ("LOG__KEY_FILE", &key), ("LOG__WITNESS_KEY_FILE", &witness)];
    let second = Service::start("audit", &url, &settings).await;
    let now = SystemTime::now();
    let mut notes = Vec::new();
    for round in 0..6 {
        let (writer, reader) = if round % 2 == 0 { (&first, &second) } else { (&second, &first) };
        write(writer, now, round * 50, 50).await.unwrap();
        // The other one shows it too, and has it in its own folder by then.
        notes.push(signed(reader, (round + 1) * 50).await);
    }
    let keys = keys(&first).await;
    assert_eq!(keys.len(), 2, "one key of each kind");
    let checkpoints: Vec<Checkpoint> = notes
        .iter()
        .map(|note| {
            note.verify(&keys).unwrap();
            Checkpoint::parse(note.text()).unwrap()
        })
        .collect();
    for pair in checkpoints.windows(2) {
        assert_consistent(&second, &pair[0], &pair[1]).await;
    }
    for place in [&one, &other] {
        let kept = std::fs::read_to_string(Path::new(place).join("checkpoints")).unwrap();
        assert!(kept.contains("\\n250\\n") && kept.contains("\\n300\\n"), "{kept}");
    }
}

/// The keys of the log by their pins, the one that signed first before the other, and which of them sign.
async fn pins(service: &Service) -> Vec<(String, bool)> {
    let request = ListKeysRequest { instance_id: INSTANCE.into() };
    let answer = AuditTrustServiceClient::new(service.channel()).list_keys(request).await.unwrap().into_inner();
    let of_log = answer.keys.into_iter().filter(|key| key.kind() == KeyKind::Log);
    of_log.map(|key| (key.pin, key.current)).collect()
}

#[tokio::test]
async fn a_key_that_was_replaced_is_good_for_the_sizes_that_it_signed() {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Sqlite, &folder, "audit").await;
    let (now, place) = (SystemTime::now(), |name: &str| folder.path().join(name).display().to_string());
    let old_file = place("audit.db.checkpoints/log.key");
    let (new, text) = SigningKey::generate("localhost/audit", KeyKindOf::Log).unwrap();
    std::fs::write(place("new.key"), text).unwrap();
    let new_file = place("new.key");
    let while_replaced = [("LOG__KEY_FILE", new_file.as_str()), ("LOG__RETIRING_KEY_FILE", &old_file)];
    let phases: [&[(&str, &str)]; 3] = [&[], &while_replaced, &while_replaced[..1]];
    let mut notes = Vec::new();
    for (at, settings) in phases.into_iter().enumerate() {
        let mut service = Service::start("audit", &url, settings).await;
        write(&service, now, at as u64 * 10, 10).await.unwrap();
        notes.push(signed(&service, (at as u64 + 1) * 10).await);
        let old: SigningKey = std::fs::read_to_string(&old_file).unwrap().trim().parse().unwrap();
        let pin = |key: &SigningKey, sizes: &str| format!("{}@{INSTANCE}:{sizes}", key.verifier());
        let expected = match at {
            0 => vec![(pin(&old, "10-"), true)],
            1 => vec![(pin(&old, "10-"), true), (pin(&new, "20-"), true)],
            _ => vec![(pin(&old, "10-20"), false), (pin(&new, "20-"), true)],
        };
        assert_eq!(pins(&service).await, expected);
        if at == 2 {
            let export = AuditExport::sequences(INSTANCE, 0, None, ExportFormat::Jsonl);
            e2e::verify::export(&service, export, folder.path(), "export").await;
        }
        stop(&mut service).await;
    }

    // Each by the keys that it was signed with, at any size for which these are good; both in between.
    let old: SigningKey = std::fs::read_to_string(&old_file).unwrap().trim().parse().unwrap();
    let pinned = [format!("{}@{INSTANCE}:10-20", old.verifier()), format!("{}@{INSTANCE}:20-", new.verifier())];
    let by = |checkpoint: &Note, key: &SigningKey| {
        Note::new(checkpoint.text().to_owned(), vec![key.sign(checkpoint.text(), 0)]).unwrap()
    };
    let (late, early) = (by(&notes[2], &old), by(&notes[0], &new));
    let check = |command: &str, given: &[&Note]| {
        let file = place("given");
        let lines = given.iter().map(|note| serde_json::json!({ "note": note.to_string() }).to_string() + "\n");
        std::fs::write(&file, lines.collect::<String>()).unwrap();
        let mut run = std::process::Command::new(testkit::binary("standalone"));
        match command {
            "verify" => run.args(["verify", "--export", &place("export.jsonl"), "--end", &place("export.json")]),
            _ => run.args(["check", "audit"]).env("AUDIT_DATABASE_URL", &url).env("AUDIT_LOG__KEY_FILE", &new_file),
        };
        let output = run.args(["--checkpoints", &file, "--key", &pinned[0], "--key", &pinned[1]]).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), text)
    };
    let all: Vec<&Note> = notes.iter().collect();
    for command in ["verify", "check"] {
        let (status, text) = check(command, &all);
        assert_eq!(status, Some(0), "{command}: {text}");
        // Whoever has come by the old key says nothing with it, nor does the new one of what was before it.
        for (forged, size, good_for) in [(&late, 30, "10-20"), (&early, 10, "20-")] {
            let (status, text) = check(command, &[forged]);
            assert_eq!(status, Some(if command == "verify" { 1 } else { 64 }), "{command}: {text}");
            let why = format!("over {size} entries, and the key that has signed it");
            assert!(text.contains(&why) && text.contains(&format!("is good for {good_for}:")), "{command}: {text}");
        }
    }
}

#[tokio::test]
async fn two_processes_do_not_share_a_folder() {
    if testkit::Postgres::skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(Engine::Postgres, &folder, "audit").await;
    let beside = folder.path().join("beside").display().to_string();
    let _first = Service::start("audit", &url, &[("LOG__FOLDER", &beside)]).await;
    let output = std::process::Command::new(testkit::binary("audit-service"))
        .envs([("AUDIT_DATABASE_URL", url.as_str()), ("AUDIT_LISTEN", "127.0.0.1:0"), ("AUDIT_METRICS_LISTEN", "")])
        .env("AUDIT_LOG__FOLDER", &beside)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("each replica has a log.folder of its own"), "{text}");
}
