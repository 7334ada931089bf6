//! Two real traces through the whole: every total, breakdown, series, facet and exported row equals, to the unit and
//! the nano-dollar, what `traces_peer.py` works out from the files alone.
//!
//! The traces are not part of the repository. A clone that has none beside it says so and takes generated files of
//! the same form.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use activity_proto::audit::v1 as audit;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::common::v1::{Interval, TimeRange, time_range::Range};
use activity_proto::usage::v1 as usage;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use e2e::tools::{root, run, shared_data};
use prost_types::Timestamp;
use serde_json::{Value, json};
use testkit::{ChildProcess, binary};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

const US: i64 = 1_000_000;

fn peer(arguments: &[&str]) -> String {
    let script = root().join("tests/tests/traces_peer.py");
    run(Command::new("python3").arg(script).args(arguments))
}

fn file_or_generated(name: &str, what: &str, folder: &Path) -> PathBuf {
    shared_data(name).unwrap_or_else(|| {
        let path = folder.join(name);
        fs::write(&path, peer(&[&format!("generate-{what}")])).unwrap();
        path
    })
}

/// What a trace's files hold, replayed so that they end at `until`, and the services that answer for it.
struct Replayed {
    until_us: i64,
    requests: Value,
    actions: Value,
    _standalone: ChildProcess,
    audit: AuditQueryServiceClient<Channel>,
    usage: UsageQueryServiceClient<Channel>,
    _folder: tempfile::TempDir,
}

async fn replay() -> Replayed {
    let folder = tempfile::tempdir().unwrap();
    let requests = file_or_generated("azure-llm-2023-code.csv", "requests", folder.path());
    let actions = file_or_generated("cloudtrail.jsonl", "actions", folder.path());
    // A whole second, an hour ago.
    let until = chrono::Utc::now() - chrono::TimeDelta::hours(1);
    let until_us = until.timestamp() * US;
    let data = folder.path().join("data");
    run(Command::new(binary("standalone"))
        .args(["demo", "--exit", "--until", &until.format("%Y-%m-%dT%H:%M:%SZ").to_string()])
        .args(["--audit-listen", "127.0.0.1:0", "--usage-listen", "127.0.0.1:0"])
        .arg("--requests")
        .arg(&requests)
        .arg("--actions")
        .arg(&actions)
        .arg("--data-dir")
        .arg(&data)
        .envs([("AUDIT_METRICS_LISTEN", ""), ("USAGE_METRICS_LISTEN", "")]));
    let standalone = ChildProcess::start(
        Command::new(binary("standalone"))
            .args(["--audit-listen", "127.0.0.1:0", "--usage-listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(&data)
            .envs([("AUDIT_METRICS_LISTEN", ""), ("USAGE_METRICS_LISTEN", "")]),
    );
    let ready = standalone.line("ready ", Duration::from_secs(60)).await;
    let channel = |name: &str| {
        let address = ready.split(&format!("{name}=")).nth(1).unwrap().split(' ').next().unwrap();
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
    };
    let answer = |what: &str, path: &Path| {
        let text = peer(&[what, path.to_str().unwrap(), &until_us.to_string()]);
        serde_json::from_str::<Value>(&text).unwrap()
    };
    Replayed {
        until_us,
        requests: answer("requests", &requests),
        actions: answer("actions", &actions),
        audit: AuditQueryServiceClient::new(channel("audit")).max_decoding_message_size(64 << 20),
        usage: UsageQueryServiceClient::new(channel("usage")).max_decoding_message_size(64 << 20),
        _standalone: standalone,
        _folder: folder,
    }
}

impl Replayed {
    /// From three days before the end of the replay until an hour after.
    fn range(&self, time_zone: &str) -> Option<TimeRange> {
        let stamp = |us: i64| Some(Timestamp { seconds: us.div_euclid(US), nanos: 0 });
        Some(TimeRange {
            range: Some(Range::Interval(Interval {
                start: stamp(self.until_us - 72 * 3600 * US),
                end: stamp(self.until_us + 1800 * US),
            })),
            time_zone: time_zone.into(),
        })
    }
}

fn shown(metrics: &usage::Metrics) -> Value {
    let tokens = metrics.tokens.as_ref().unwrap();
    json!({
        "requests": metrics.requests.unwrap(),
        "total_tokens": metrics.total_tokens.unwrap(),
        "input_uncached": tokens.input_uncached.unwrap(),
        "output": tokens.output.unwrap(),
        "cost": metrics.cost.as_ref().unwrap(),
        "unique_users": metrics.unique_users.unwrap(),
        "unique_models": metrics.unique_models.unwrap(),
        "unpriced_requests": metrics.unpriced_requests.unwrap(),
        "unpriced_tokens": metrics.unpriced_tokens.unwrap(),
    })
}

#[tokio::test]
async fn answers_over_real_traces_equal_an_independent_computation() {
    let replayed = replay().await;
    summary_and_breakdowns(&replayed).await;
    series(&replayed).await;
    exported_requests(&replayed).await;
    exported_actions(&replayed).await;
    facets(&replayed).await;
}

async fn summary_and_breakdowns(replayed: &Replayed) {
    let request = usage::GetSummaryRequest { time_range: replayed.range(""), ..Default::default() };
    let answer = replayed.usage.clone().get_summary(request).await.unwrap().into_inner();
    assert_eq!(shown(answer.summary.as_ref().unwrap()), replayed.requests["summary"]);

    for dimension in [
        usage::Dimension::User,
        usage::Dimension::Team,
        usage::Dimension::Model,
        usage::Dimension::Provider,
        usage::Dimension::ApiKey,
    ] {
        let request = usage::ListBreakdownRequest {
            time_range: replayed.range(""),
            group_by: vec![dimension.into()],
            limit: 1000,
            ..Default::default()
        };
        let answer = replayed.usage.clone().list_breakdown(request).await.unwrap().into_inner();
        let rows: BTreeMap<_, _> =
            answer.rows.iter().map(|row| (row.keys[0].clone(), shown(row.metrics.as_ref().unwrap()))).collect();
        assert_eq!(json!(rows), replayed.requests["breakdowns"][dimension.as_str_name()]);
        assert_eq!(answer.other, None);
        assert_eq!(shown(answer.total.as_ref().unwrap()), replayed.requests["summary"]);
    }
}

async fn series(replayed: &Replayed) {
    let request = usage::GetTimeSeriesRequest {
        time_range: replayed.range(replayed.requests["zone"].as_str().unwrap()),
        bucket: usage::Bucket::Hour.into(),
        group_by: vec![usage::Dimension::Provider.into()],
        limit: 20,
        ..Default::default()
    };
    let answer = replayed.usage.clone().get_time_series(request).await.unwrap().into_inner();
    let mut points = BTreeMap::new();
    for series in &answer.series {
        for point in &series.points {
            let metrics = point.metrics.as_ref().unwrap();
            let start = point.interval.as_ref().unwrap().start.as_ref().unwrap();
            if metrics.requests != Some(0) {
                let start_us = start.seconds * US + i64::from(start.nanos / 1000);
                points.insert(format!("{start_us}|{}", series.keys[0]), shown(metrics));
            }
        }
    }
    assert_eq!(json!(points), replayed.requests["series"]);
}

async fn exported_requests(replayed: &Replayed) {
    let request = usage::ExportUsageRequest {
        time_range: replayed.range(""),
        shape: usage::ExportShape::Requests.into(),
        format: usage::ExportFormat::Jsonl.into(),
        ..Default::default()
    };
    let mut stream = replayed.usage.clone().export_usage(request).await.unwrap().into_inner();
    let (mut bytes, mut total) = (Vec::new(), None);
    while let Some(message) = stream.next().await {
        match message.unwrap().part.unwrap() {
            usage::export_usage_response::Part::Chunk(chunk) => bytes.extend(chunk.data),
            usage::export_usage_response::Part::End(end) => total = end.total,
        }
    }
    assert_eq!(shown(&total.unwrap()), replayed.requests["summary"]);
    let rows: Vec<Value> = String::from_utf8(bytes)
        .unwrap()
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            json!({
                "id": row["id"],
                "occurredAt": row["occurredAt"],
                "userId": row["userId"],
                "model": row["model"],
                "cost": row["cost"],
            })
        })
        .collect();
    assert_eq!(rows, *replayed.requests["exported"].as_array().unwrap());
}

async fn exported_actions(replayed: &Replayed) {
    let range = replayed.range("").map(audit::export_entries_request::Range::TimeRange);
    let request =
        audit::ExportEntriesRequest { range, format: audit::ExportFormat::Jsonl.into(), ..Default::default() };
    let mut stream = replayed.audit.clone().export_entries(request).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.next().await {
        if let audit::export_entries_response::Part::Chunk(chunk) = message.unwrap().part.unwrap() {
            bytes.extend(chunk.data);
        }
    }
    let entries: Vec<Value> = String::from_utf8(bytes)
        .unwrap()
        .lines()
        .map(|line| {
            let mut entry: Value = serde_json::from_str(line).unwrap();
            // What the service and the SDK add.
            let members = entry.as_object_mut().unwrap();
            assert_eq!(members.remove("schema"), Some(json!(1)));
            assert!(members.remove("sequence").is_some_and(|sequence| sequence.is_string()));
            assert!(members.remove("recordedAt").is_some());
            members.remove("producer");
            entry
        })
        .collect();
    let expected = replayed.actions["exported"].as_array().unwrap();
    assert_eq!(entries.len(), expected.len());
    for (entry, expected) in entries.iter().zip(expected) {
        assert_eq!(entry, expected);
    }
}

async fn facets(replayed: &Replayed) {
    let request = audit::ListFacetsRequest { time_range: replayed.range(""), limit: 1000, ..Default::default() };
    let answer = replayed.audit.clone().list_facets(request).await.unwrap().into_inner();
    for (name, facets) in [
        ("actors", &answer.actors),
        ("actions", &answer.actions),
        ("resource_types", &answer.resource_types),
        ("instances", &answer.instances),
    ] {
        let counts: BTreeMap<_, _> = facets.iter().map(|facet| (&facet.value, facet.count.unwrap())).collect();
        assert_eq!(json!(counts), replayed.actions[name], "{name}");
    }
}
