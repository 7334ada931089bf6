//! `standalone check`: equal, damaged, made anew, refused.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::{RecordUsageRequest, RequestStatus, UsageEvent};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Executor as _};
use standalone::time::{now_us, timestamp, uuid_v7};
use testkit::ChildProcess;
use tonic::transport::Endpoint;

const PATIENCE: Duration = Duration::from_secs(60);

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standalone"));
    command.envs([("AUDIT_METRICS_LISTEN", ""), ("USAGE_METRICS_LISTEN", "")]);
    command
}

fn check(folder: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        command().args(["check", "usage", "--data-dir"]).arg(folder).args(more).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

async fn connection(folder: &Path) -> SqliteConnection {
    SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(folder.join("usage.db"))).await.unwrap()
}

#[tokio::test]
async fn rollups_that_were_damaged_are_found_and_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let process = ChildProcess::start(
        command()
            .args(["serve", "--audit-listen", "127.0.0.1:0", "--usage-listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder)
            // As soon as there is something.
            .env("USAGE_ROLLUP__SEAL_INTERVAL_MS", "1"),
    );
    let ready = process.line("ready audit=127.0.0.1:", PATIENCE).await;
    let usage = format!("http://{}", ready.split(" usage=").nth(1).unwrap());
    let now = now_us();
    let events = (0..10).map(|n| UsageEvent {
        id: uuid_v7(now, [n; 10]).to_string(),
        occurred_at: Some(timestamp(now)),
        instance_id: "prod".into(),
        provider: "openai".into(),
        requested_model: "gpt-4o".into(),
        status: RequestStatus::Ok.into(),
        ..UsageEvent::default()
    });
    let request = RecordUsageRequest { events: events.collect() };
    let channel = Endpoint::from_shared(usage).unwrap().connect().await.unwrap();
    let answer = UsageIngestServiceClient::new(channel).record_usage(request).await.unwrap();
    assert_eq!(answer.into_inner().accepted, Some(10));
    let mut database = connection(folder).await;
    testkit::eventually(PATIENCE, async || {
        let sealed = "SELECT (SELECT COUNT(*) FROM usage_segments) > 0 AND (SELECT COUNT(*) FROM usage_deltas) = 0";
        sqlx::query_scalar::<_, bool>(sealed).fetch_one(&mut database).await.unwrap()
    })
    .await;

    // While the service has the file.
    let (status, out, err) = check(folder, &[]);
    assert_eq!((status, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("must be stopped before"), "{err}");
    let mut process = process;
    process.terminate();
    assert_eq!(process.exited(PATIENCE).await.code(), Some(0));

    let equal = "1 day, 3 segments: all are what their requests add up to\n";
    let (status, out, err) = check(folder, &[]);
    assert_eq!((status, out.as_str()), (Some(0), equal), "{err}");

    database.execute("DELETE FROM usage_segments WHERE level = 1 AND cut = 2").await.unwrap();
    database.execute("UPDATE usage_segments SET data = x'' WHERE level = 2").await.unwrap();
    let (status, out, err) = check(folder, &[]);
    assert_eq!(status, Some(1), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.len() == 2 && lines[0].ends_with(": 2 of 3 segments differ"), "{out}");
    assert_eq!(lines[1], "1 day, 3 segments: 2 differ; --repair makes them anew");
    let (status, out, err) = check(folder, &["--repair"]);
    assert_eq!(status, Some(0), "{err}");
    assert!(out.ends_with("1 day, 3 segments: 2 differed and were made anew\n"), "{out}");
    let (status, out, err) = check(folder, &[]);
    assert_eq!((status, out.as_str()), (Some(0), equal), "{err}");
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (status, out, err) = check(folder.path(), &[]);
    assert_eq!((status, out.as_str()), (Some(64), ""), "{err}");
    assert!(err.contains("usage.db"), "{err}");
    assert!(!folder.path().join("usage.db").exists(), "a check makes no database");
    let output = command().arg("check").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    // The database alone says where it is.
    let url = format!("sqlite://{}", folder.path().join("elsewhere.db").display());
    let output = command().arg("check").env("USAGE_DATABASE_URL", url).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(64) && told.contains("elsewhere.db"), "{told}");
    let output = command()
        .args(["check", "--data-dir"])
        .arg(folder.path())
        .env("USAGE_DATABASE_URL", "mysql://x")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
}
