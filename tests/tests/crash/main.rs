//! A gateway and all that is around it, at its worst: whatever `record` had returned for is stored, once, what the service
//! refuses is kept aside, and every gap report is empty.
//!
//! | here | what goes wrong |
//! | --- | --- |
//! | `kill` | the gateway is killed at any instant, the services too |
//! | `network` | it is cut between them, in all ways; a service answers UNAVAILABLE |
//! | `disk` | it is full, or read-only |
//!
//! Short by default, at full length with FULL.
#![allow(clippy::unwrap_used, reason = "a test")]

mod disk;
mod kill;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use activity_proto::audit::v1::audit_governance_service_client::AuditGovernanceServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::{self as audit, ListEntriesRequest};
use activity_proto::common::v1::{Interval, Producer, ProducerCoverage, TimeRange, time_range};
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{self as usage, ListRequestsRequest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use e2e::{Sandbox, Service};
use prost::Message as _;
use prost_types::Timestamp;
use testkit::ChildProcess;

const PATIENCE: Duration = Duration::from_secs(120);

/// Numbers that differ at every run; a failure prints them.
fn random(most: u64) -> u64 {
    RandomState::new().hash_one(0) % most
}

/// How often a drill goes round.
fn rounds(short: u64, full: u64) -> u64 {
    if std::env::var_os("FULL").is_some() { full } else { short }
}

/// The program `recorder`, in a mode, with its services at these addresses.
fn recorder(folder: &Path, audit: &str, usage: &str, mode: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recorder"));
    command.arg(folder).args([audit, usage, mode]);
    command
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

/// Ids with their producers' numbers.
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

async fn coverage_of_usage(service: &Service) -> Vec<ProducerCoverage> {
    let mut client = UsageQueryServiceClient::new(service.channel());
    let request = usage::GetCoverageRequest { page_size: 1_000, ..usage::GetCoverageRequest::default() };
    let answer = client.get_coverage(request).await.unwrap().into_inner();
    assert_eq!(answer.next_page_token, "");
    answer.producers
}

async fn coverage_of_audit(service: &Service) -> Vec<ProducerCoverage> {
    let mut client = AuditGovernanceServiceClient::new(service.channel());
    let request = audit::GetCoverageRequest { page_size: 1_000, ..audit::GetCoverageRequest::default() };
    let answer = client.get_coverage(request).await.unwrap().into_inner();
    assert_eq!((answer.next_page_token.as_str(), answer.open_intents.len()), ("", 0));
    answer.producers
}

/// Runs a gateway that delivers what is left in the spool.
async fn deliver_the_rest(drain: &mut Command) {
    let drain = ChildProcess::start(drain);
    assert_eq!(drain.line("drained ", PATIENCE).await, "drained 0 0", "nothing was damaged");
}

/// What gateways printed until they died.
#[derive(Default)]
struct Recorded {
    usage: BTreeSet<String>,
    audit: BTreeSet<String>,
    refused: BTreeSet<String>,
}

impl Recorded {
    /// Kills a gateway, and takes what it had printed.
    async fn take(&mut self, mut gateway: ChildProcess) {
        gateway.kill();
        // What it had printed has arrived then.
        gateway.exited(PATIENCE).await;
        assert!(!gateway.lines().iter().any(|line| line.starts_with("failed")), "{:?}", gateway.lines());
        self.usage.append(&mut printed(&gateway, "usage "));
        self.audit.append(&mut printed(&gateway, "audit "));
        self.refused.append(&mut printed(&gateway, "refused "));
    }

    /// Once nothing is left in the spool: all is where it belongs.
    async fn assert_kept(&self, sandbox: &Sandbox, spool: &Path) {
        let usage = stored_usage(&sandbox.usage).await;
        assert_stored_once("usage", &self.usage, &usage, &coverage_of_usage(&sandbox.usage).await);
        let audit = stored_audit(&sandbox.audit).await;
        assert_stored_once("audit", &self.audit, &audit, &coverage_of_audit(&sandbox.audit).await);
        let stored: BTreeSet<&String> = usage.iter().map(|(id, _)| id).collect();
        assert!(self.refused.iter().all(|id| !stored.contains(id)));
        if !self.refused.is_empty() {
            let kept = kept_aside(spool);
            let lost: Vec<_> = self.refused.difference(&kept).collect();
            assert!(lost.is_empty(), "of {} that were refused are not kept {lost:?}", self.refused.len());
        }
    }
}

/// The ids of usage events in `rejected.jsonl`.
fn kept_aside(spool: &Path) -> BTreeSet<String> {
    let lines = std::fs::read_to_string(spool.join("usage/rejected.jsonl")).unwrap();
    let id = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let event = BASE64_STANDARD.decode(line["event"].as_str().unwrap()).unwrap();
        usage::UsageEvent::decode(&event[..]).unwrap().id
    };
    lines.lines().map(id).collect()
}

/// Each of them once, and of each producer's numbers none is missing: by the service's own report, which is compared with
/// what it has stored.
fn assert_stored_once(kind: &str, printed: &BTreeSet<String>, stored: &Stored, coverage: &[ProducerCoverage]) {
    let ids: BTreeSet<&String> = stored.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), stored.len(), "{kind}: each event once");
    let lost: Vec<_> = printed.iter().filter(|id| !ids.contains(id)).collect();
    assert!(lost.is_empty(), "{kind}: {} of {} are lost: {lost:?}", lost.len(), printed.len());
    let mut epochs: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for (_, producer) in stored {
        let new = epochs.entry(producer.epoch).or_default().insert(producer.sequence.unwrap());
        assert!(new, "{kind}: {producer:?} twice");
    }
    for epoch in coverage {
        assert_eq!((epoch.missing(), &epoch.missing_ranges[..]), (0, &[][..]), "{kind}: {epoch:?}");
        // From its first number on.
        let numbers = epochs.remove(&epoch.epoch).unwrap_or_default();
        let last = epoch.through_sequence.unwrap();
        assert_eq!(
            (numbers.len() as u64, last + 1),
            (epoch.received(), epoch.received() + epoch.dropped()),
            "{kind}: {epoch:?}"
        );
    }
    assert!(epochs.is_empty(), "{kind}: no report of {:?}", epochs.keys());
}
