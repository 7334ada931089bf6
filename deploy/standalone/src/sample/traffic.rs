//! The requests of the sample.

use std::collections::BTreeMap;

use activity_proto::usage::v1::{RequestStatus, Tokens, UsageEvent};
use prost_types::Duration;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::models::{self, Model};
use super::people::{People, SPIKE_TEAM};
use super::{PRODUCTION, Plan, STAGING, Spike, fitted};
use crate::time::{DAY_US, HOUR_US, MINUTE_US, day_of_week, timestamp, uuid_v7};

/// How busy each hour of a working day is, UTC: people in Europe, some in America.
const HOURS: [f64; 24] = [
    0.18, 0.14, 0.12, 0.11, 0.12, 0.18, 0.35, 0.70, 1.20, 1.60, 1.75, 1.60, 1.30, 1.55, 1.80, 1.75, 1.50, 1.20, 0.90,
    0.75, 0.62, 0.50, 0.38, 0.26,
];
/// What is left of it on Saturday and Sunday.
const WEEKEND: f64 = 0.28;

/// How busy a minute is, by day and week.
fn rhythm(us: i64) -> f64 {
    let hour = us.rem_euclid(DAY_US) / HOUR_US;
    // 0 to 23.
    let hourly = HOURS[hour as usize];
    if day_of_week(us) > 4 { hourly * WEEKEND } else { hourly }
}

/// The requests in the order of time, made as they are asked for: only their
/// times are held.
#[derive(Debug)]
pub struct Traffic {
    people: People,
    times: std::vec::IntoIter<i64>,
    spike: Spike,
    rng: ChaCha8Rng,
}

impl Traffic {
    /// Draws the users and the arrivals.
    pub fn new(plan: &Plan) -> Self {
        let start_us = plan.start_us();
        let times = fitted::arrivals(&mut plan.rng(1), plan.days as usize * 86_400, plan.events, |minute| {
            rhythm(start_us + minute as i64 * MINUTE_US)
        });
        let times: Vec<i64> = times.into_iter().map(|us| start_us + us).collect();
        Self {
            people: People::new(&mut plan.rng(2), plan.users),
            times: times.into_iter(),
            spike: plan.spike(),
            rng: plan.rng(3),
        }
    }

    fn event(&mut self, us: i64) -> UsageEvent {
        let rng = &mut self.rng;
        let (user, key) = self.people.draw(rng);
        let instance = if rng.random_bool(0.88) { PRODUCTION } else { STAGING };
        let (input, visible) = fitted::sizes(rng);

        let by_alias = user.team == SPIKE_TEAM && rng.random_bool(0.8);
        let in_spike = instance == PRODUCTION && (self.spike.start_us..self.spike.end_us).contains(&us);
        let model = match (by_alias, in_spike) {
            (true, true) => models::by_name(models::ALIAS_SPIKE),
            (true, false) => models::by_name(models::ALIAS_USUAL),
            (false, _) => models::draw(rng),
        };

        let status = status(rng, model);
        let tokens = tokens(rng, model, status, input, visible);
        let (latency, first) = latency(rng, model, status, &tokens);
        let (service_tier, processing) = variant(rng, model, by_alias);
        let mut bits = [0; 10];
        rng.fill(&mut bits);
        UsageEvent {
            id: uuid_v7(us, bits).to_string(),
            occurred_at: Some(timestamp(us)),
            instance_id: instance.into(),
            user_id: user.id.clone(),
            team_id: user.team.into(),
            api_key_id: key.into(),
            provider: model.provider.into(),
            requested_model: if by_alias { models::ALIAS } else { model.name }.into(),
            model: model.name.into(),
            status: status.into(),
            operation: "chat".into(),
            tokens: Some(tokens),
            other_units: BTreeMap::new(),
            latency: Some(millis(latency)),
            time_to_first_token: first.map(millis),
            service_tier: service_tier.into(),
            processing: processing.into(),
            request_id: format!("req_{:016x}", rng.random::<u64>()),
            labels: BTreeMap::from([("app".into(), if by_alias { "agent-runner" } else { "assistant" }.into())]),
            producer: None,
            price_conditions: BTreeMap::new(),
        }
    }
}

impl Iterator for Traffic {
    type Item = UsageEvent;

    fn next(&mut self) -> Option<UsageEvent> {
        let us = self.times.next()?;
        Some(self.event(us))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.times.size_hint()
    }
}

/// About one request in thirty fails; the slow expensive model is rationed.
fn status(rng: &mut ChaCha8Rng, model: &Model) -> RequestStatus {
    let rationed = if model.name == models::ALIAS_SPIKE { 0.06 } else { 0.0 };
    match rng.random::<f64>() - rationed {
        point if point < 0.006 => RequestStatus::RateLimited,
        point if point < 0.018 => RequestStatus::ClientError,
        point if point < 0.026 => RequestStatus::ProviderError,
        point if point < 0.036 => RequestStatus::Cancelled,
        _ => RequestStatus::Ok,
    }
}

/// The tokens by kind. A request that never ran has none; one that broke off has
/// its input and a part of its output.
fn tokens(rng: &mut ChaCha8Rng, model: &Model, status: RequestStatus, input: i64, visible: i64) -> Tokens {
    // Prompts are cached by whole blocks of 128 tokens, from 1,024 on.
    let cacheable = if input >= 1_024 { input / 128 * 128 } else { 0 };
    let mut read = 0;
    let mut write = 0;
    let mut write_1h = 0;
    if model.cache_read && cacheable > 0 && rng.random_bool(0.45) {
        read = cacheable * rng.random_range(4..=10) / 10 / 128 * 128;
    } else if model.cache_write && cacheable > 0 && rng.random_bool(0.5) {
        write = cacheable;
        if rng.random_bool(0.2) {
            write_1h = write;
        }
    }
    let mut reasoning = 0;
    if model.reasoning > 0.0 {
        let normal: f64 = StandardNormal.sample(rng);
        // A log-normal factor of mean 1: the mean of exp(0.6 Z - 0.18).
        let factor = model.reasoning * (0.6 * normal - 0.18).exp();
        reasoning = (visible as f64 * factor).round().min(30_000.0) as i64;
    }
    let mut output = visible + reasoning;
    match status {
        RequestStatus::Ok => {}
        RequestStatus::Cancelled => {
            output = output * rng.random_range(0..=9) / 10;
            reasoning = reasoning.min(output);
        }
        RequestStatus::ProviderError => (output, reasoning) = (0, 0),
        _ => return Tokens::default(),
    }
    Tokens {
        input_uncached: Some(input - read - write),
        input_cache_read: Some(read),
        input_cache_write: Some(write),
        input_cache_write_1h: Some(write_1h),
        output: Some(output),
        output_reasoning: Some(reasoning),
    }
}

/// Milliseconds to the end and, where there was output, to the first token.
fn latency(rng: &mut ChaCha8Rng, model: &Model, status: RequestStatus, tokens: &Tokens) -> (f64, Option<f64>) {
    let normal: f64 = StandardNormal.sample(rng);
    let (first, each) = model.pace_ms;
    let output = tokens.output.unwrap_or(0) as f64;
    let reasoning = tokens.output_reasoning.unwrap_or(0) as f64;
    let first = first * (0.35 * normal).exp() + reasoning * each;
    match status {
        RequestStatus::RateLimited | RequestStatus::ClientError => (20.0 + first / 20.0, None),
        _ if output > 0.0 => (first + (output - reasoning) * each, Some(first)),
        _ => (first, None),
    }
}

/// Service tier and processing, where a provider prices them.
fn variant(rng: &mut ChaCha8Rng, model: &Model, by_alias: bool) -> (&'static str, &'static str) {
    let point: f64 = rng.random();
    match model.provider {
        _ if by_alias => ("", ""),
        "openai" if model.reasoning > 0.0 && point < 0.12 => ("flex", ""),
        "openai" if point < 0.03 => ("priority", ""),
        "anthropic" if point < 0.05 => ("", "batch"),
        _ => ("", ""),
    }
}

fn millis(ms: f64) -> Duration {
    // Below a few minutes: both parts fit.
    let nanos = (ms.max(1.0) * 1_000.0).round() as i64 * 1_000;
    Duration { seconds: nanos / 1_000_000_000, nanos: (nanos % 1_000_000_000) as i32 }
}
