//! Exports into files: what each way of breaking off leaves, and how the next call goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use gateway_sdk::proto::audit::v1::ExportEnd;
use gateway_sdk::{
    AuditExport, AuditFilter, Dimension, Error, ErrorReason, ExportFormat, Exported, GatewaySdk, Grouping, TimeRange,
    UsageQuery, UsageShape,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::fake::Fake;
use crate::queries::{ROWS, row};

/// A service, an SDK, and a folder with the target.
struct Place {
    fake: Fake,
    sdk: GatewaySdk,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let fake = Fake::start();
        let sdk = fake.sdk().build().unwrap();
        Self { fake, sdk, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// All names in the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn export(&self, export: AuditExport) -> Result<Exported<ExportEnd>, Error> {
        self.sdk.audit().export_file(export, self.path("log"), |_| ()).await
    }

    /// An export that is given up behind the fourth row, for the service is away.
    async fn broken_off(&self, export: AuditExport) {
        let answers = &self.fake.memory.answers;
        answers.break_after.store(4, Ordering::SeqCst);
        let away = |rows| answers.failures.store(if rows == 4 { 1_000 } else { 0 }, Ordering::SeqCst);
        let error = self.sdk.audit().export_file(export, self.path("log"), |at| away(at.rows)).await.unwrap_err();
        assert!(error.is_retryable() && error.to_string().starts_with("audit: "), "{error}");
        answers.failures.store(0, Ordering::SeqCst);
        answers.break_after.store(0, Ordering::SeqCst);
        assert!(!self.path("log").exists());
    }

    /// From which rows the service was asked for an export, the last times.
    fn asked(&self, last: usize) -> Vec<String> {
        let seen = self.fake.memory.answers.seen();
        seen[seen.len() - last..].to_vec()
    }
}

fn jsonl() -> AuditExport {
    AuditExport::range(TimeRange::last_30_days(), ExportFormat::Jsonl)
}

fn rows(range: std::ops::Range<u64>) -> String {
    range.map(|n| String::from_utf8(row(n)).unwrap()).collect()
}

fn message(result: Result<Exported<ExportEnd>, Error>) -> String {
    match result.unwrap_err() {
        Error::ExportFile { message, .. } => message,
        other => panic!("{other}"),
    }
}

/// Changes a text of the mark.
fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[tokio::test]
async fn nothing_has_the_name_before_all_is_there() {
    let place = Place::new();
    place.fake.memory.answers.break_after.store(4, Ordering::SeqCst);
    let mut progress = Vec::new();
    let watched = |at: gateway_sdk::ExportProgress| {
        assert_eq!(place.names(), ["log.part"]);
        progress.push((at.rows, at.bytes, at.resumed));
    };
    let done = place.sdk.audit().export_file(jsonl(), place.path("log"), watched).await.unwrap();
    let whole = rows(0..ROWS);
    assert_eq!(place.read("log"), whole);
    assert_eq!((done.rows, done.bytes, done.continued, done.resumed), (ROWS, whole.len() as u64, 0, 2));
    assert_eq!(done.sha256[..], Sha256::digest(&whole)[..]);
    let per_row = row(0).len() as u64;
    let expected: Vec<_> = (1..=ROWS).map(|n| (n, n * per_row, (n - 1) / 4)).collect();
    assert_eq!(progress, expected);
    // And then nothing else has any but the end.
    assert_eq!(place.names(), ["log", "log.end.json"]);
    let end: serde_json::Value = serde_json::from_str(&place.read("log.end.json")).unwrap();
    assert_eq!(end["entries"], ROWS.to_string());
}

#[tokio::test]
async fn what_was_given_up_is_gone_on_with() {
    let place = Place::new();
    place.broken_off(jsonl()).await;
    assert_eq!(place.names(), ["log.part", "log.part.json"]);
    // A process that dies leaves more than it has marked, and the half of a mark.
    fs::write(place.path("log.part"), rows(0..4) + "{\"n\":4}\n{\"n").unwrap();
    fs::write(place.path("log.part.json.new"), "{\"ques").unwrap();
    let done = place.export(jsonl()).await.unwrap();
    assert_eq!((place.read("log"), place.asked(1)), (rows(0..ROWS), vec!["from 4".to_owned()]));
    assert_eq!((done.rows, done.continued), (ROWS, 4 * row(0).len() as u64));
    assert_eq!(place.names(), ["log", "log.end.json"]);
}

#[tokio::test]
async fn proofs_go_on_with_their_lines() {
    let place = Place::new();
    let proven = || jsonl().with_proofs();
    place.broken_off(proven()).await;
    assert_eq!(place.names(), ["log.part", "log.part.json", "log.proofs.part"]);
    let proofs = |range: std::ops::Range<u64>| range.map(|n| format!("proof {n}\n")).collect::<String>();
    fs::write(place.path("log.proofs.part"), proofs(0..4) + "pro").unwrap();
    place.export(proven()).await.unwrap();
    assert_eq!((place.read("log"), place.read("log.proofs")), (rows(0..ROWS), proofs(0..ROWS)));
    assert_eq!(place.names(), ["log", "log.end.json", "log.proofs"]);
    assert_eq!(place.asked(1), ["from 4"]);

    // Into one writer there is nowhere to put them.
    let error = place.sdk.audit().export(proven(), &mut Vec::new(), |_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Config { setting: "with_proofs", .. }), "{error}");
}

#[tokio::test]
async fn parts_that_are_not_as_they_were_written_are_found() {
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 0x10;
        fs::write(path, bytes).unwrap();
    };
    for name in ["log.part", "log.proofs.part"] {
        let place = Place::new();
        place.broken_off(jsonl().with_proofs()).await;
        let path = place.path(name);
        let len = fs::metadata(&path).unwrap().len();
        for at in [0, len as usize / 2, len as usize - 1] {
            flip(&path, at);
            let message = message(place.export(jsonl().with_proofs()).await);
            assert!(message.contains(name) && message.contains("is not as it was written"), "{message}");
            flip(&path, at);
        }
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len - 1).unwrap();
        let message = message(place.export(jsonl().with_proofs()).await);
        assert!(message.contains(&format!("its first {} have", len - 1)), "{message}");
        assert!(!place.path("log").exists());
        // The error says what to do.
        fs::remove_file(&path).unwrap();
        let done = place.export(jsonl().with_proofs()).await.unwrap();
        assert_eq!((place.read("log"), done.continued), (rows(0..ROWS), 0));
    }
}

#[tokio::test]
async fn what_is_left_of_another_export_is_no_part_of_this() {
    let others = [
        jsonl().filter(AuditFilter::new().actor("alice")),
        jsonl().with_proofs(),
        AuditExport::range(TimeRange::last_7_days(), ExportFormat::Jsonl),
        AuditExport::range(TimeRange::last_30_days(), ExportFormat::Csv),
    ];
    for other in others {
        let place = Place::new();
        place.broken_off(other).await;
        let done = place.export(jsonl()).await.unwrap();
        assert_eq!((place.read("log"), done.continued, place.asked(1)), (rows(0..ROWS), 0, vec!["from 0".to_owned()]));
    }
}

#[tokio::test]
async fn marks_that_say_nothing_any_more_begin_anew() {
    let begun = |place: &Place| {
        let mark: serde_json::Value = serde_json::from_str(&place.read("log.part.json")).unwrap();
        mark["begun"].as_u64().unwrap()
    };
    let damages: [&dyn Fn(&Place); 4] = [
        &|place| fs::write(place.path("log.part.json"), b"{\"question\":\"\xff").unwrap(),
        &|place| edit(&place.path("log.part.json"), "\"rows\":4", "\"rows\":-4"),
        &|place| fs::remove_file(place.path("log.part")).unwrap(),
        &|place| {
            let begun = begun(place);
            edit(&place.path("log.part.json"), &begun.to_string(), &(begun - 24 * 3600).to_string());
        },
    ];
    for damage in damages {
        let place = Place::new();
        place.broken_off(jsonl()).await;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(now - begun(&place) < 600);
        damage(&place);
        let done = place.export(jsonl()).await.unwrap();
        assert_eq!((place.read("log"), done.continued, place.asked(1)), (rows(0..ROWS), 0, vec!["from 0".to_owned()]));
        assert_eq!(place.names(), ["log", "log.end.json"]);
    }
}

#[tokio::test]
async fn token_that_the_service_refuses_begins_anew_once() {
    let place = Place::new();
    place.broken_off(jsonl()).await;
    let answers = &place.fake.memory.answers;
    answers.refused_tokens.store(1, Ordering::SeqCst);
    let done = place.export(jsonl()).await.unwrap();
    assert_eq!((place.read("log"), done.continued, done.resumed), (rows(0..ROWS), 0, 0));

    answers.break_after.store(4, Ordering::SeqCst);
    answers.refused_tokens.store(1_000, Ordering::SeqCst);
    let error = place.export(jsonl()).await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::InvalidPageToken));
    assert_eq!(place.asked(2), ["from 0", "from 0"]);
    // What was whole stays.
    assert_eq!(place.read("log"), rows(0..ROWS));
}

#[tokio::test]
async fn export_whose_end_says_otherwise_is_none() {
    let place = Place::new();
    place.fake.memory.answers.wrong_hash.store(1, Ordering::SeqCst);
    let error = place.export(jsonl()).await.unwrap_err();
    assert!(matches!(&error, Error::Protocol(why) if why.contains("SHA-256")), "{error}");
    assert_eq!(place.names(), ["log.part"]);
    // Nor is it ever gone on with: what is wrong would stay so.
    place.fake.memory.answers.wrong_hash.store(0, Ordering::SeqCst);
    let done = place.export(jsonl()).await.unwrap();
    assert_eq!((place.read("log"), done.continued), (rows(0..ROWS), 0));
}

#[tokio::test]
async fn one_export_at_a_time_writes_to_a_target() {
    let place = Place::new();
    let part = fs::File::create(place.path("log.part")).unwrap();
    part.lock().unwrap();
    let message = message(place.export(jsonl()).await);
    assert!(message.contains("another export writes it"), "{message}");
    // One that ends, as a call that was dropped does, is waited for.
    let releasing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(part);
    };
    // On another thread, as a server would.
    let (sdk, target) = (place.sdk.clone(), place.path("log"));
    let exporting = tokio::spawn(async move { sdk.audit().export_file(jsonl(), target, |_| ()).await });
    let (done, ()) = tokio::join!(exporting, releasing);
    assert_eq!((done.unwrap().unwrap().rows, place.read("log")), (ROWS, rows(0..ROWS)));
}

#[tokio::test]
async fn small_shapes_start_over_in_the_file() {
    let place = Place::new();
    place.fake.memory.answers.break_after.store(4, Ordering::SeqCst);
    let shape = UsageShape::Breakdown(Grouping::by([Dimension::User]));
    let query = UsageQuery::new().range(TimeRange::last_7_days());
    let mut seen = Vec::new();
    let target = place.path("users.csv");
    let export = place.sdk.usage().export_file(&query, shape, ExportFormat::Csv, &target, |at| seen.push(at.rows));
    let done = export.await.unwrap();
    assert_eq!((place.read("users.csv"), done.rows, done.resumed), (rows(0..ROWS), ROWS, 1));
    assert_eq!(seen, (1..=4).chain(1..=ROWS).collect::<Vec<_>>());
    assert_eq!(place.names(), ["users.csv"]);
}

#[tokio::test]
async fn files_that_cant_be_written_are_named() {
    let place = Place::new();
    for (target, part) in [("none/log", "open "), ("..", "names no file")] {
        let error = place.sdk.audit().export_file(jsonl(), place.path(target), |_| ()).await.unwrap_err();
        assert!(matches!(error, Error::ExportFile { .. }) && error.to_string().contains(part), "{error}");
    }
    // A folder of the target's name is found when all else is done, and nothing is lost by it.
    fs::create_dir(place.path("log")).unwrap();
    let message = message(place.export(jsonl()).await);
    assert!(message.starts_with("replace ") || message.starts_with("rename "), "{message}");
    fs::remove_dir(place.path("log")).unwrap();
    let done = place.export(jsonl()).await.unwrap();
    assert_eq!((place.read("log"), done.continued), (rows(0..ROWS), done.bytes));
}
