//! The sample: the same from the same seed, like the trace it was fitted to, and
//! with every action that the product knows.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};

use activity_proto::audit::v1::{AuditEvent, Outcome, Stage};
use activity_proto::usage::v1::{RequestStatus, UsageEvent};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use standalone::sample::actions::actions;
use standalone::sample::models::{ALIAS, ALIAS_SPIKE, ALIAS_USUAL};
use standalone::sample::people::SPIKE_TEAM;
use standalone::sample::traffic::Traffic;
use standalone::sample::{Plan, fitted};
use standalone::time::{DAY_US, micros};
use uuid::Uuid;

/// Monday, 23 November 2026, noon.
const UNTIL_US: i64 = 1_795_435_200_000_000;

fn plan(seed: u64, events: usize) -> Plan {
    Plan { seed, days: 30, users: 300, events, until_us: UNTIL_US }
}

fn requests(plan: &Plan) -> Vec<UsageEvent> {
    Traffic::new(plan).collect()
}

fn time_of(event: &UsageEvent) -> i64 {
    micros(event.occurred_at.as_ref().unwrap())
}

#[test]
fn same_seed_makes_the_same_events_and_another_seed_others() {
    let small = |seed| Plan { days: 3, ..plan(seed, 500) };
    assert_eq!(requests(&small(7)), requests(&small(7)));
    assert_eq!(actions(&small(7)), actions(&small(7)));
    assert_ne!(requests(&small(7)), requests(&small(8)));
    assert_ne!(actions(&small(7)), actions(&small(8)));
}

#[test]
fn requests_are_as_many_as_asked_for_in_order_within_the_range() {
    let plan = plan(1, 20_000);
    let events = requests(&plan);
    assert_eq!(events.len(), 20_000);
    let times: Vec<i64> = events.iter().map(time_of).collect();
    assert!(times.is_sorted());
    assert!(times[0] >= plan.start_us() && *times.last().unwrap() < UNTIL_US);
    let ids: BTreeSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids.len(), events.len());
    for event in &events {
        let id: Uuid = event.id.parse().unwrap();
        assert_eq!(id.get_version_num(), 7);
        let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
        assert_eq!(seconds as i64 * 1_000 + i64::from(nanos / 1_000_000), time_of(event) / 1_000);
    }
}

/// The trace's quantiles (5, 10, 25, 50, 75, 90, 95, 99 %) and how far the sample
/// may be from them: an eighth, and at the thin left end of the input a third.
#[test]
fn sizes_have_the_quantiles_of_the_trace() {
    let shares = [0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99];
    let input = [75.0, 147.0, 578.0, 1469.0, 2744.0, 5188.0, 7303.0, 7436.0];
    let output = [6.0, 7.0, 9.0, 13.0, 24.0, 55.0, 90.0, 251.0];
    let mut inputs = Vec::new();
    let mut outputs = Vec::new();
    for event in requests(&plan(1, 60_000)) {
        // Other requests lost some or all of their tokens.
        if event.status() == RequestStatus::Ok {
            let tokens = event.tokens.unwrap();
            inputs.push(tokens.input_uncached() + tokens.input_cache_read() + tokens.input_cache_write());
            outputs.push(tokens.output() - tokens.output_reasoning());
        }
    }
    inputs.sort_unstable();
    outputs.sort_unstable();
    for (index, share) in shares.iter().enumerate() {
        let at = |sorted: &[i64]| sorted[(share * (sorted.len() - 1) as f64) as usize] as f64;
        let band = if index < 2 { 1.34 } else { 1.125 };
        let (is, was) = (at(&inputs), input[index]);
        assert!(is <= was * band && is >= was / band, "input {share}: {is}, trace {was}");
        let (is, was) = (at(&outputs), output[index]);
        let band = if index == 7 { 1.25 } else { 1.125 };
        assert!(is <= was * band + 1.0 && is >= was / band - 1.0, "output {share}: {is}, trace {was}");
    }
}

#[test]
fn arrivals_are_as_bursty_as_the_trace_at_three_scales() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    // As dense as the trace, and far longer: 2,400 minutes.
    let seconds = 2_400 * 60;
    let times = fitted::arrivals(&mut rng, seconds, 365_000, |_| 1.0);
    for (width, trace) in [(1, 4.748), (10, 2.763), (60, 1.077)] {
        let mut counts = vec![0.0; seconds / width];
        for us in &times {
            counts[*us as usize / 1_000_000 / width] += 1.0;
        }
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64;
        let excess = (variance - mean) / (mean * mean);
        assert!((excess / trace - 1.0).abs() < 0.15, "{width} s: {excess}, trace {trace}");
    }
}

#[test]
fn a_few_users_make_most_requests() {
    let mut by_user: BTreeMap<String, usize> = BTreeMap::new();
    for event in requests(&plan(1, 30_000)) {
        *by_user.entry(event.user_id).or_default() += 1;
    }
    assert!(by_user.len() > 290);
    let mut counts: Vec<usize> = by_user.into_values().collect();
    counts.sort_unstable();
    let top: usize = counts.iter().rev().take(30).sum();
    assert!((0.55..0.80).contains(&(top as f64 / 30_000.0)), "{top}");
}

#[test]
fn working_days_are_busier_than_weekends_and_noon_than_night() {
    let mut by_day = [0; 7];
    let mut by_hour = [0; 24];
    for event in requests(&Plan { days: 28, ..plan(1, 40_000) }) {
        let us = time_of(&event);
        // 1970-01-01 was a Thursday.
        by_day[((us / DAY_US + 3) % 7) as usize] += 1;
        by_hour[(us % DAY_US / 3_600_000_000) as usize] += 1;
    }
    assert!(by_day[..5].iter().min() > by_day[5..].iter().max().map(|most| most * 2).as_ref());
    assert!(by_hour[14] > by_hour[3] * 8);
}

#[test]
fn spike_is_the_team_that_got_the_expensive_model() {
    let plan = plan(1, 60_000);
    let spike = plan.spike();
    let events = requests(&plan);
    let expensive: Vec<&UsageEvent> = events.iter().filter(|event| event.model == ALIAS_SPIKE).collect();
    assert!(expensive.len() > 100);
    for event in expensive {
        assert!((spike.start_us..spike.end_us).contains(&time_of(event)));
        assert_eq!((event.team_id.as_str(), event.requested_model.as_str()), (SPIKE_TEAM, ALIAS));
    }
    assert!(events.iter().any(|event| event.requested_model == ALIAS && event.model == ALIAS_USUAL));
}

/// From `product.md`; `mcp_oauth_client.*` stands for any verb.
const ACTIONS: [&str; 16] = [
    "model.enabled",
    "model.disabled",
    "provider.created",
    "provider.updated",
    "provider.deleted",
    "user.role_changed",
    "api_key.revoked",
    "announcement.created",
    "announcement.archived",
    "sso.configured",
    "sso.enabled",
    "sso.disabled",
    "mcp_server.created",
    "mcp_server.updated",
    "mcp_server.deleted",
    "mcp_oauth_client.*",
];

#[test]
fn every_action_of_the_product_appears() {
    for days in [1, 30] {
        let done: BTreeSet<String> =
            actions(&Plan { days, ..plan(3, 0) }).into_iter().map(|event| event.action).collect();
        for action in ACTIONS {
            let found = match action.strip_suffix('*') {
                Some(prefix) => done.iter().any(|done| done.starts_with(prefix)),
                None => done.contains(action),
            };
            assert!(found, "{action}");
        }
    }
}

#[test]
fn actions_are_within_the_range_in_order_and_of_all_kinds() {
    let plan = plan(3, 0);
    let events = actions(&plan);
    let time = |event: &AuditEvent| micros(event.occurred_at.as_ref().unwrap());
    assert!(events.is_sorted_by_key(time));
    assert!(time(&events[0]) >= plan.start_us() && time(events.last().unwrap()) < plan.until_us);
    let outcomes: BTreeSet<i32> = events.iter().map(|event| event.outcome).collect();
    for outcome in [Outcome::Success, Outcome::Failure, Outcome::Denied, Outcome::Unknown] {
        assert!(outcomes.contains(&outcome.into()), "{outcome:?}");
    }
    let mut stages: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for event in &events {
        if let Some(operation) = &event.operation {
            stages.entry(operation.id.clone()).or_default().insert(operation.stage);
        }
    }
    let pair = BTreeSet::from([Stage::Intent.into(), Stage::Outcome.into()]);
    assert!(stages.values().filter(|stages| **stages == pair).count() >= 2);
    assert_eq!(stages.values().filter(|stages| **stages != pair).count(), 1, "one intent is open");
    let values = events
        .iter()
        .flat_map(|event| &event.changes)
        .flat_map(|change| change.old_value.iter().chain(&change.new_value));
    for value in values {
        serde_json::from_str::<serde_json::Value>(value).unwrap();
    }
}

#[test]
fn cause_of_the_spike_is_in_the_audit_log_before_it() {
    for days in [3, 30] {
        let plan = Plan { days, ..plan(3, 0) };
        let spike = plan.spike();
        let change = actions(&plan)
            .into_iter()
            .filter(|event| event.action == "provider.updated")
            .filter(|event| event.resources.iter().any(|resource| resource.name == ALIAS_SPIKE))
            .map(|event| micros(event.occurred_at.as_ref().unwrap()))
            .min()
            .unwrap();
        assert!(change < spike.start_us && spike.start_us - change < 5_000_000);
    }
}
