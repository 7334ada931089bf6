//! kill -9 of a gateway at any instant, and of the services beside it: whatever `record` had returned for is stored, once,
//! and no number is missing. Twelve lives by default, two hundred with FULL.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use activity_proto::audit::v1::ListEntriesRequest;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::common::v1::{Interval, Producer, TimeRange, time_range};
use activity_proto::usage::v1::ListRequestsRequest;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use e2e::{Engine, Sandbox, Service};
use prost_types::Timestamp;
use testkit::ChildProcess;

const PATIENCE: Duration = Duration::from_secs(120);

/// Numbers that differ at every run; a failure prints them.
fn random(most: u64) -> u64 {
    RandomState::new().hash_one(0) % most
}

fn recorder(folder: &Path, sandbox: &Sandbox, mode: &[&str]) -> ChildProcess {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recorder"));
    command.arg(folder).arg(sandbox.audit.address()).arg(sandbox.usage.address()).args(mode);
    ChildProcess::start(&mut command)
}

/// The ids that it printed in full, by kind.
fn printed(child: &ChildProcess, kind: &str) -> BTreeSet<String> {
    let ids = child.lines().into_iter().filter_map(|line| line.strip_prefix(kind).map(|id| id.trim().to_owned()));
    // The last line may be cut off with its process.
    ids.filter(|id| id.len() == 36).collect()
}

fn everything() -> TimeRange {
    let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
    let interval = Interval { start: at(1_577_836_800), end: at(4_102_444_800) };
    TimeRange { range: Some(time_range::Range::Interval(interval)), time_zone: String::new() }
}

type Stored = Vec<(String, Producer)>;

async fn stored_usage(service: &Service) -> Stored {
    let mut client = UsageQueryServiceClient::new(service.channel());
    let mut request =
        ListRequestsRequest { time_range: Some(everything()), page_size: 1_000, ..ListRequestsRequest::default() };
    let mut stored = Vec::new();
    loop {
        let answer = client.list_requests(request.clone()).await.unwrap().into_inner();
        stored.extend(answer.requests.into_iter().map(|request| (request.id, request.producer.unwrap())));
        if answer.next_page_token.is_empty() {
            return stored;
        }
        request.page_token = answer.next_page_token;
    }
}

async fn stored_audit(service: &Service) -> Stored {
    let mut client = AuditQueryServiceClient::new(service.channel());
    let mut request =
        ListEntriesRequest { time_range: Some(everything()), page_size: 1_000, ..ListEntriesRequest::default() };
    let mut stored = Vec::new();
    loop {
        let answer = client.list_entries(request.clone()).await.unwrap().into_inner();
        stored.extend(answer.entries.into_iter().map(|entry| (entry.id, entry.producer.unwrap())));
        if answer.next_page_token.is_empty() {
            return stored;
        }
        request.page_token = answer.next_page_token;
    }
}

/// The ranges that a service was told of as dropped: epoch, first, last.
async fn dropped(folder: &Path, name: &str) -> Vec<(u64, u64, u64)> {
    let query = match name {
        "usage" => {
            "SELECT p.epoch, d.first_sequence, d.last_sequence FROM usage_dropped d \
             JOIN usage_producers p ON p.id = d.producer_ref"
        }
        _ => "SELECT epoch, first_sequence, last_sequence FROM audit_dropped_ranges",
    };
    let url = format!("sqlite://{}?mode=ro", folder.join(format!("{name}.db")).display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let rows: Vec<(i64, i64, i64)> = sqlx::query_as(query).fetch_all(&pool).await.unwrap();
    rows.into_iter().map(|(epoch, first, last)| (epoch as u64, first as u64, last as u64)).collect()
}

fn assert_all_there_once(kind: &str, printed: &BTreeSet<String>, stored: &Stored, dropped: &[(u64, u64, u64)]) {
    let ids: BTreeSet<&String> = stored.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), stored.len(), "{kind}: each event once");
    let lost: Vec<_> = printed.iter().filter(|id| !ids.contains(id)).collect();
    assert!(lost.is_empty(), "{kind}: {} of {} are lost: {lost:?}", lost.len(), printed.len());
    // Of each life no number is missing.
    let mut epochs: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for (_, producer) in stored {
        let new = epochs.entry(producer.epoch).or_default().insert(producer.sequence.unwrap());
        assert!(new, "{kind}: {producer:?} twice");
    }
    for (epoch, first, last) in dropped {
        epochs.entry(*epoch).or_default().extend(*first..=*last);
    }
    for (epoch, numbers) in epochs {
        let last = numbers.last().copied().unwrap();
        let missing: Vec<u64> = (0..=last).filter(|number| !numbers.contains(number)).collect();
        assert!(missing.is_empty(), "{kind}: of epoch {epoch} are missing {missing:?}");
    }
}

async fn drill(lives: u64) {
    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    let spool = sandbox.folder.path().join("spool");
    let (mut usage, mut audit) = (BTreeSet::new(), BTreeSet::new());
    for life in 0..lives {
        // Some lives begin while a service is away, some see one go, some see one come back.
        let away = match life % 4 {
            1 => Some(&mut sandbox.usage),
            2 => Some(&mut sandbox.audit),
            _ => None,
        };
        if let Some(service) = away
            && random(2) == 0
        {
            service.kill();
        }
        let mut child = recorder(&spool, &sandbox, &[]);
        child.line("begins", PATIENCE).await;
        let enough = usize::try_from(random(4_000)).unwrap();
        let meanwhile = enough / 2;
        testkit::eventually(PATIENCE, async || child.lines().len() > meanwhile).await;
        match life % 4 {
            1 => {
                sandbox.usage.kill();
                sandbox.usage.start_again().await;
            }
            2 => {
                sandbox.audit.kill();
                sandbox.audit.start_again().await;
            }
            3 => {
                sandbox.usage.kill();
                sandbox.audit.kill();
            }
            _ => {}
        }
        testkit::eventually(PATIENCE, async || child.lines().len() > enough).await;
        child.kill();
        // What it had printed has arrived then.
        child.exited(PATIENCE).await;
        usage.append(&mut printed(&child, "usage "));
        audit.append(&mut printed(&child, "audit "));
        if life % 4 == 3 {
            sandbox.usage.start_again().await;
            sandbox.audit.start_again().await;
        }
    }
    let drain = recorder(&spool, &sandbox, &["drain"]);
    let line = drain.line("drained ", PATIENCE).await;
    assert_eq!(line, "drained 0 0", "nothing was damaged");
    assert!(usage.len() > 1_000 && audit.len() > 20, "{} and {}", usage.len(), audit.len());
    let folder = sandbox.folder.path();
    assert_all_there_once("usage", &usage, &stored_usage(&sandbox.usage).await, &dropped(folder, "usage").await);
    assert_all_there_once("audit", &audit, &stored_audit(&sandbox.audit).await, &dropped(folder, "audit").await);
}

#[tokio::test]
async fn what_a_killed_gateway_had_recorded_is_stored_once_and_no_number_is_missing() {
    let lives = if std::env::var_os("FULL").is_some() { 200 } else { 12 };
    tokio::time::timeout(Duration::from_secs(3_000), drill(lives)).await.unwrap();
}
