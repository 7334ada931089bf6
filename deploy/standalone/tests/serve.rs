//! `standalone serve`: one line when ready, data that survive a restart, a graceful
//! end, and refusals with their exit status.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use activity_proto::common::v1::{TimeRange, TimeRangePreset, time_range};
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{GetSummaryRequest, RecordUsageRequest, RequestStatus, UsageEvent};
use standalone::time::{now_us, timestamp, uuid_v7};
use testkit::ChildProcess;
use tonic::transport::{Channel, Endpoint};

const PATIENCE: Duration = Duration::from_secs(60);

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standalone"));
    command.envs([("AUDIT_METRICS_LISTEN", ""), ("USAGE_METRICS_LISTEN", "")]);
    command
}

/// Starts it on free ports; gives the process and a channel to the usage service.
async fn start(folder: &Path, arguments: &[&str]) -> (ChildProcess, Channel) {
    let process = ChildProcess::start(
        command()
            .args(arguments)
            .args(["--audit-listen", "127.0.0.1:0", "--usage-listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder),
    );
    let ready = process.line("ready audit=127.0.0.1:", PATIENCE).await;
    let usage = ready.split(" usage=").nth(1).unwrap();
    let channel = Endpoint::from_shared(format!("http://{usage}")).unwrap().connect().await.unwrap();
    (process, channel)
}

async fn requests(channel: Channel) -> u64 {
    let range = time_range::Range::Preset(TimeRangePreset::LastHour.into());
    let answer = UsageQueryServiceClient::new(channel)
        .get_summary(GetSummaryRequest {
            time_range: Some(TimeRange { range: Some(range), time_zone: String::new() }),
            ..GetSummaryRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    answer.summary.unwrap().requests()
}

#[tokio::test]
async fn data_survive_a_restart_and_sigterm_ends_gracefully() {
    let folder = tempfile::tempdir().unwrap();
    // A folder that is not there yet.
    let data = folder.path().join("a/b");
    let (mut process, channel) = start(&data, &[]).await;
    let now = now_us();
    let event = UsageEvent {
        id: uuid_v7(now, [7; 10]).to_string(),
        occurred_at: Some(timestamp(now)),
        instance_id: "prod".into(),
        provider: "openai".into(),
        requested_model: "gpt-4o".into(),
        status: RequestStatus::Ok.into(),
        ..UsageEvent::default()
    };
    let answer = UsageIngestServiceClient::new(channel.clone())
        .record_usage(RecordUsageRequest { events: vec![event] })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.accepted, Some(1), "{answer:?}");
    assert_eq!(requests(channel).await, 1);
    process.terminate();
    assert_eq!(process.exited(PATIENCE).await.code(), Some(0));
    assert_eq!(process.lines().len(), 1, "{:?}", process.lines());

    let (mut process, channel) = start(&data, &["serve"]).await;
    assert_eq!(requests(channel).await, 1);
    process.kill();
    let (_process, channel) = start(&data, &["serve"]).await;
    assert_eq!(requests(channel).await, 1);
}

#[test]
fn refused_configuration_ends_with_64_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    for (arguments, variables, word) in [
        (vec!["serve"], vec![], "--data-dir"),
        (vec![], vec![], "--data-dir"),
        (vec!["--data-dir", folder, "--audit-listen", "192.0.2.1:0"], vec![], "authentication"),
        (vec!["--data-dir", folder, "--usage-listen", "nowhere"], vec![], "nowhere"),
        (vec!["--data-dir", folder], vec![("USAGE_LISTEN", "0.0.0.0:0"), ("AUDIT_LISTEN", "127.0.0.1:0")], "0.0.0.0"),
        (vec!["--data-dir", folder], vec![("AUDIT_DATABASE_URL", "mysql://x")], "AUDIT_DATABASE_URL"),
        (vec!["--data-dir", folder, "--usage-listen", "localhost:1"], vec![], "such as 127.0.0.1:50051"),
        (
            vec!["--data-dir", folder],
            vec![
                ("USAGE_METRICS_LISTEN", "0.0.0.0:1"),
                ("AUDIT_LISTEN", "127.0.0.1:0"),
                ("USAGE_LISTEN", "127.0.0.1:0"),
            ],
            "metrics_listen (USAGE_METRICS_LISTEN)",
        ),
        (vec!["--data-dir", folder], vec![("AUDIT_TELEMETRY__LOG", "shouty")], "telemetry.log is \"shouty\""),
        (vec!["demo", "--days", "0"], vec![], "days"),
        (vec!["demo", "--until", "yesterday"], vec![], "RFC 3339, such as 2026-"),
        (vec!["demo", "--until", "2999-01-01T00:00:00Z"], vec![], "to now"),
        (vec!["demo", "--until", "1999-01-01T00:00:00Z"], vec![], "from 2001-01-01T00:00:00Z"),
        (vec!["demo", "--users", "1"], vec![], "users"),
    ] {
        let output = command().args(&arguments).envs(variables).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {stderr}");
        assert!(stderr.contains(word), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn variables_that_do_nothing_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let process = ChildProcess::start(
        command()
            .args(["--audit-listen", "127.0.0.1:0", "--usage-listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder.path())
            .envs([
                ("AUDIT_LISTN", "127.0.0.1:1"),
                ("USAGE_TELEMETRY__LOG", "debug"),
                ("AUDIT_TELEMETRY__LOG", "info"),
            ]),
    );
    process.line("ready audit=", PATIENCE).await;
    let log = process.log();
    for name in ["AUDIT_LISTN", "USAGE_TELEMETRY__LOG"] {
        assert!(log.lines().any(|line| line.contains("WARN") && line.contains(name)), "{name} is not in\n{log}");
    }
    assert!(!log.contains("\"AUDIT_TELEMETRY__LOG\"") && !log.contains("sea_orm_migration"), "{log}");
}

#[test]
fn a_file_that_is_no_database_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("audit.db"), "no database at all".repeat(100)).unwrap();
    let output = command()
        .args(["--audit-listen", "127.0.0.1:0", "--usage-listen", "127.0.0.1:0", "--data-dir"])
        .arg(folder.path())
        .env("AUDIT_TELEMETRY__LOG", "off")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.matches("not a database").count(), 1, "{stderr}");
}
