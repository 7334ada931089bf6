//! The tampering drill: what the owner of the database does to a log, with all guards switched off, is found by the
//! service's own checks and in an export, and named.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_trust_service_client::AuditTrustServiceClient;
use activity_proto::audit::v1::{AuditEvent, GetCheckpointRequest, KeyKind, ListKeysRequest, RecordEventsRequest};
use audit_service::canonical::{self, Prefix};
use e2e::sandbox::database_url;
use e2e::tools::grpcurl;
use e2e::tree::{guards_off, tamper};
use e2e::{Engine, Service, events};
use sea_orm::{ConnectionTrait as _, Database, DatabaseConnection, Statement};
use tempfile::TempDir;
use tonic::Code;

const INSTANCE: &str = "eu-1";
const ENTRIES: u64 = 600;
const PATIENCE: Duration = Duration::from_secs(30);

async fn write(service: &Service, events: Vec<AuditEvent>) -> Result<(), tonic::Status> {
    AuditIngestServiceClient::new(service.channel())
        .record_events(RecordEventsRequest { events, ..Default::default() })
        .await
        .map(drop)
}

/// A log of some hundred entries that nobody serves any more, and what an auditor has kept: a checkpoint after every
/// hundred of them, and the key.
struct Scene {
    folder: TempDir,
    engine: Engine,
    url: String,
    kept: String,
    key: String,
    db: DatabaseConnection,
}

impl Scene {
    async fn new(engine: Engine) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = database_url(engine, &folder, "audit").await;
        let beside = folder.path().join("beside").display().to_string();
        let mut service = Service::start("audit", &url, &[("LOG__FOLDER", &beside)]).await;
        let (now, mut notes) = (SystemTime::now(), String::new());
        let mut trust = AuditTrustServiceClient::new(service.channel());
        for first in (0..ENTRIES).step_by(100) {
            write(&service, (first..first + 100).map(|n| events::audit(now, n)).collect()).await.unwrap();
            let request = GetCheckpointRequest { instance_id: INSTANCE.into(), min_size: Some(first + 100) };
            testkit::eventually(PATIENCE, async || trust.clone().get_checkpoint(request.clone()).await.is_ok()).await;
            let note = trust.get_checkpoint(request).await.unwrap().into_inner().note;
            notes += &format!("{}\n", serde_json::json!({ "note": note }));
        }
        let keys = trust.list_keys(ListKeysRequest { instance_id: INSTANCE.into() }).await.unwrap().into_inner().keys;
        let key = keys.into_iter().find(|key| key.kind() == KeyKind::Log).unwrap().verifier_key;
        service.process().terminate();
        service.process_mut().exited(PATIENCE).await;
        let kept = folder.path().join("kept").display().to_string();
        std::fs::write(&kept, notes).unwrap();
        tamper(&url, guards_off(engine)).await;
        tamper(
            &url,
            &[
                "CREATE TABLE kept_entries AS SELECT * FROM audit_entries",
                "CREATE TABLE kept_tiles AS SELECT * FROM audit_tiles",
                "CREATE TABLE kept_heads AS SELECT * FROM audit_log_heads",
            ],
        )
        .await;
        let db = Database::connect(&url).await.unwrap();
        Self { folder, engine, url, kept, key, db }
    }

    async fn run(&self, statements: &[&str]) {
        for statement in statements {
            self.db.execute_unprepared(statement).await.unwrap_or_else(|why| panic!("{statement}: {why}"));
        }
    }

    /// The log as it was.
    async fn restore(&self) {
        self.run(&[
            "DELETE FROM audit_entries",
            "INSERT INTO audit_entries SELECT * FROM kept_entries",
            "DELETE FROM audit_tiles",
            "INSERT INTO audit_tiles SELECT * FROM kept_tiles",
            "UPDATE audit_log_heads SET next_sequence = (SELECT next_sequence FROM kept_heads k WHERE k.instance_id = \
             audit_log_heads.instance_id), tree_size = (SELECT tree_size FROM kept_heads k WHERE k.instance_id = \
             audit_log_heads.instance_id)",
        ])
        .await;
    }

    async fn line(&self, sequence: u64) -> String {
        let sql = "SELECT canonical FROM audit_entries WHERE instance_id = $1 AND sequence = $2";
        let values = [INSTANCE.into(), sequence.cast_signed().into()];
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values);
        self.db.query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }

    /// Puts a line in place of an entry's, and its hashes too if told so.
    async fn put(&self, sequence: u64, line: &str, hashes: bool) {
        let (instance, sequence) = (INSTANCE.into(), sequence.cast_signed().into());
        let (sql, values) = if hashes {
            let event = canonical::parse(line).unwrap().event;
            let hashes =
                [canonical::leaf_hash(line), Prefix::new(&event).content_hash].map(|hash| hash.to_vec().into());
            let [leaf, content] = hashes;
            let sql = "UPDATE audit_entries SET canonical = $1, leaf_hash = $2, content_hash = $3 \
                       WHERE instance_id = $4 AND sequence = $5";
            (sql, vec![line.into(), leaf, content, instance, sequence])
        } else {
            let sql = "UPDATE audit_entries SET canonical = $1 WHERE instance_id = $2 AND sequence = $3";
            (sql, vec![line.into(), instance, sequence])
        };
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values);
        assert_eq!(self.db.execute_raw(statement).await.unwrap().rows_affected(), 1);
    }

    async fn edit(&self, sequence: u64, from: &str, to: &str, hashes: bool) {
        let line = self.line(sequence).await;
        let changed = line.replacen(from, to, 1);
        assert_ne!(changed, line);
        self.put(sequence, &changed, hashes).await;
    }

    /// The service's own check of everything.
    fn check(&self) -> (Option<i32>, String) {
        let output = Command::new(testkit::binary("standalone"))
            .args(["check", "audit", "--checkpoints", &self.kept, "--key", &self.key])
            .env("AUDIT_DATABASE_URL", &self.url)
            .env("AUDIT_LOG__FOLDER", self.folder.path().join("beside"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    }

    /// What an auditor finds in the lines that the database has.
    async fn verify(&self) -> (Option<i32>, String) {
        let sql = "SELECT canonical FROM audit_entries WHERE instance_id = 'eu-1' ORDER BY sequence";
        let rows = self.db.query_all_raw(Statement::from_string(self.db.get_database_backend(), sql)).await.unwrap();
        let lines: String = rows.iter().map(|row| row.try_get_by_index::<String>(0).unwrap() + "\n").collect();
        let export: PathBuf = self.folder.path().join("export.jsonl");
        std::fs::write(&export, lines).unwrap();
        let export = export.display().to_string();
        e2e::verify::verify(["--export", &export, "--checkpoints", &self.kept, "--key", &self.key])
    }

    /// What was done is found by both, and then undone.
    async fn assert_found(&self, deed: &str, by_check: &str, status: i32, by_verify: &str) {
        let (found, text) = self.check();
        assert!(found == Some(1) && text.contains(&format!("log \"eu-1\": {by_check}")), "{deed}: {found:?} {text}");
        let (found, text) = self.verify().await;
        assert!(found == Some(status) && text.contains(by_verify), "{deed}: {found:?} {text}");
        self.restore().await;
    }
}

async fn drill(engine: Engine) {
    let scene = Scene::new(engine).await;
    let (found, text) = scene.check();
    assert_eq!(found, Some(0), "{text}");
    assert!(
        text.contains("log \"eu-1\": 600 entries, ") && text.contains("1 log: all are as they were written\n"),
        "{text}"
    );
    let (found, text) = scene.verify().await;
    assert!(found == Some(0) && text.contains("the first 600 entries are as they were signed"), "{text}");

    scene.edit(37, "\"reason\":\"ticket OPS-", "\"reason\":\"ticket OPS-1", false).await;
    scene.assert_found("a value", "entry 37 was changed", 1, "entries 0 to 99 are not those").await;
    scene.edit(300, "\"recordedAt\":\"2", "\"recordedAt\":\"1", true).await;
    scene.assert_found("a time", "entry 300 is not the one that its tile has", 1, "back-dated: 300").await;
    scene.edit(555, "\"displayName\":\"admin", "\"displayName\":\"somebody", false).await;
    scene.assert_found("an actor's name", "entry 555 was changed", 1, "entries 500 to 599 are not those").await;
    // Of the last tile, which is no row, the hashes are the entries' own: the head tells.
    scene.edit(555, "\"displayName\":\"admin", "\"displayName\":\"somebody", true).await;
    scene
        .assert_found("with its hashes", "entries 500 to 599 are not those", 1, "entries 500 to 599 are not those")
        .await;

    for (sequence, range) in [(0, "entries 0 to 0"), (311, "entries 311 to 311")] {
        scene.run(&[&format!("DELETE FROM audit_entries WHERE sequence = {sequence}")]).await;
        let named = format!("entry {sequence} is missing");
        scene.assert_found("a deletion", &named, 2, &format!("{range} are missing")).await;
    }
    scene.run(&["DELETE FROM audit_entries WHERE sequence = 599"]).await;
    scene.assert_found("the last", "entry 599 is missing", 2, "entries 599 to 599 are missing at its end").await;

    // Two change places, with what says where they are.
    let (one, two) = (scene.line(40).await, scene.line(41).await);
    let moved = |line: &str, from: u64, to: u64| {
        line.replacen(&format!("\"sequence\":\"{from}\""), &format!("\"sequence\":\"{to}\""), 1)
    };
    scene.put(40, &moved(&two, 41, 40), true).await;
    scene.put(41, &moved(&one, 40, 41), true).await;
    scene.assert_found("two swapped", "entry 40 was changed", 1, "entries 0 to 99 are not those").await;
    scene.run(&["UPDATE audit_entries SET sequence = -1 WHERE sequence = 40"]).await;
    scene.run(&["UPDATE audit_entries SET sequence = 40 WHERE sequence = 41"]).await;
    scene.run(&["UPDATE audit_entries SET sequence = 41 WHERE sequence = -1"]).await;
    // Each line still says where it belongs.
    scene
        .assert_found("rows swapped", "entry 40 was changed", 0, "the first 600 entries are as they were signed")
        .await;

    // One more among the others, which all move on; and one behind the end.
    let mut inserted = scene.line(480).await;
    for sequence in 480..ENTRIES - 1 {
        let next = scene.line(sequence + 1).await;
        scene.put(sequence + 1, &moved(&inserted, sequence, sequence + 1), true).await;
        inserted = next;
    }
    scene.edit(480, "\"reason\":\"", "\"reason\":\"new ", true).await;
    scene
        .assert_found("one inserted", "entry 480 is not the one that its tile has", 1, "entries 400 to 499 are not")
        .await;
    let copy = "INSERT INTO audit_entries SELECT instance_id, 600, $ID, occurred_at, stage, operation_id, content_hash, \
                leaf_hash, canonical FROM audit_entries WHERE sequence = 599";
    let id = match scene.engine {
        Engine::Sqlite => "randomblob(16)",
        Engine::Postgres => "gen_random_uuid()",
    };
    scene.run(&[&copy.replace("$ID", id)]).await;
    scene
        .assert_found("one behind", "entries 600 to 600 were put behind its end", 1, "sequence 599 is there twice")
        .await;

    scene
        .run(&["UPDATE audit_tiles SET hashes = (SELECT hashes FROM kept_tiles WHERE tile = 0 AND level = 0) \
                 WHERE tile = 1 AND level = 0"])
        .await;
    scene.assert_found("a tile", "entry 256 is not the one that its tile has", 0, "valid").await;

    // All of it rewritten to match, and the trees built anew: what was signed tells, and was kept elsewhere.
    e2e::tree::rewrite(&scene.url, INSTANCE, 142).await;
    let (found, text) = scene.check();
    assert!(found == Some(1) && text.contains("entries 100 to 199 are not those that were signed"), "{text}");
    let (found, text) = scene.verify().await;
    assert!(found == Some(1) && text.contains("entries 100 to 199 are not those that were signed"), "{text}");
    scene.db.close().await.unwrap();
}

#[tokio::test]
async fn everything_that_is_done_to_a_log_is_found_and_named_on_sqlite() {
    drill(Engine::Sqlite).await;
}

#[tokio::test]
async fn everything_that_is_done_to_a_log_is_found_and_named_on_postgres() {
    if !testkit::Postgres::skipped() {
        drill(Engine::Postgres).await;
    }
}

/// Cut off and grown again, tiles and all.
async fn cut_and_grown_again(engine: Engine) {
    let scene = Scene::new(engine).await;
    for sequence in 550..ENTRIES {
        scene.edit(sequence, "\"reason\":\"", "\"reason\":\"another ", true).await;
    }
    e2e::tree::rewrite(&scene.url, INSTANCE, 551).await;
    let (found, text) = scene.check();
    assert!(found == Some(1) && text.contains("entries 500 to 599 are not those that were signed"), "{text}");
    let (found, text) = scene.verify().await;
    assert!(found == Some(1) && text.contains("entries 500 to 599 are not those that were signed"), "{text}");
    scene.db.close().await.unwrap();
}

#[tokio::test]
async fn a_log_that_was_cut_and_grown_again_is_found_between_two_checkpoints_on_sqlite() {
    cut_and_grown_again(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_log_that_was_cut_and_grown_again_is_found_between_two_checkpoints_on_postgres() {
    if !testkit::Postgres::skipped() {
        cut_and_grown_again(Engine::Postgres).await;
    }
}

fn health(service: &Service, of: &str) -> String {
    let request = format!("{{\"service\": \"activity.audit.v1.{of}\"}}");
    let answer = grpcurl(service.address(), "grpc.health.v1.Health/Check", &request);
    answer["status"].as_str().unwrap_or_default().to_owned()
}

/// While it serves, a log whose end is taken away takes no more within seconds, and others do.
async fn found_while_serving(engine: Engine, deed: &str, why: &str) {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(engine, &folder, "audit").await;
    let beside = folder.path().join("beside").display().to_string();
    let service = Service::start("audit", &url, &[("LOG__FOLDER", &beside)]).await;
    let now = SystemTime::now();
    write(&service, (0..20).map(|n| events::audit(now, n)).collect()).await.unwrap();
    tamper(&url, guards_off(engine)).await;
    assert_eq!(health(&service, "AuditIngestService"), "SERVING");
    tamper(&url, &[deed]).await;
    let lost = SystemTime::now();
    testkit::eventually(PATIENCE, async || health(&service, "AuditIngestService") == "NOT_SERVING").await;
    assert!(lost.elapsed().unwrap() < Duration::from_secs(15), "{:?}", lost.elapsed());
    let log = service.process().log();
    assert!(log.contains("the log is damaged") && log.contains(why), "{log}");
    assert_eq!(health(&service, "AuditQueryService"), "SERVING");
    assert_eq!(service.metric("activity_log_damaged").await, 1.0);
    let refused = write(&service, vec![events::audit(now, 99)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    write(&service, vec![AuditEvent { instance_id: "other".into(), ..events::audit(now, 98) }]).await.unwrap();
}

#[tokio::test]
async fn newest_entries_that_are_deleted_while_it_serves_are_missed_in_seconds_on_sqlite() {
    let deed = "DELETE FROM audit_entries WHERE sequence >= 17";
    found_while_serving(Engine::Sqlite, deed, "entries 17 to 19 are missing at its end").await;
}

#[tokio::test]
async fn newest_entries_that_are_deleted_while_it_serves_are_missed_in_seconds_on_postgres() {
    if !testkit::Postgres::skipped() {
        let deed = "DELETE FROM audit_entries WHERE sequence >= 17";
        found_while_serving(Engine::Postgres, deed, "entries 17 to 19 are missing at its end").await;
    }
}

#[tokio::test]
async fn a_change_of_a_new_entry_is_found_at_the_start() {
    let scene = Scene::new(Engine::Sqlite).await;
    scene.edit(590, "\"displayName\":\"admin", "\"displayName\":\"somebody", false).await;
    scene.db.close().await.unwrap();
    let beside = scene.folder.path().join("beside").display().to_string();
    let service = Service::start("audit", &scene.url, &[("LOG__FOLDER", &beside)]).await;
    testkit::eventually(PATIENCE, async || health(&service, "AuditIngestService") == "NOT_SERVING").await;
    let log = service.process().log();
    assert!(log.contains("entry 590 was changed"), "{log}");
    assert!(Path::new(&beside).join("checkpoints").exists());
}
