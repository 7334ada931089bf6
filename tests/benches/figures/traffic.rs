//! The traffic of a gateway over 30 days: the same at every run, whatever its size.
//!
//! 5,000 users by a Zipf law, each with one to three keys and a leaning to one to four of 40 models at 8 providers; more
//! by day than by night, and on working days than at weekends; in the order of time, but for one in 200 that is up to
//! a day late. All but the self-hosted models are in the shipped price book.

use activity_proto::usage::v1::{RequestStatus, Tokens, UsageEvent};
use prost_types::{Duration, Timestamp};
use uuid::Uuid;

pub(crate) const SPAN_US: i64 = 30 * DAY_US;
pub(crate) const DAY_US: i64 = 24 * HOUR_US;
pub(crate) const HOUR_US: i64 = 3_600_000_000;
const USERS: usize = 5_000;
const TEAMS: u64 = 40;
const MODELS: [(&str, [&str; 5]); 8] = [
    ("openai", ["gpt-5.2", "gpt-5-mini", "gpt-4.1", "gpt-4o", "gpt-4o-mini"]),
    ("anthropic", ["claude-sonnet-4-5", "claude-opus-4-5", "claude-haiku-4-5", "claude-sonnet-4-6", "claude-opus-4-1"]),
    (
        "google",
        ["gemini-2.5-flash", "gemini-2.5-pro", "gemini-3-flash-preview", "gemini-3-pro-preview", "gemini-2.0-flash"],
    ),
    (
        "mistral",
        ["codestral-2508", "mistral-large-2512", "mistral-small-2603", "magistral-medium", "ministral-8b-2512"],
    ),
    (
        "groq",
        [
            "llama-3.3-70b-versatile",
            "llama-3.1-8b-instant",
            "openai/gpt-oss-120b",
            "openai/gpt-oss-20b",
            "qwen/qwen3-32b",
        ],
    ),
    ("x-ai", ["grok-4-0709", "grok-3", "grok-3-mini", "grok-code-fast-1", "grok-4.3"]),
    ("deepseek", ["deepseek-chat", "deepseek-reasoner", "deepseek-v3.2", "deepseek-v4-flash", "deepseek-v4-pro"]),
    ("self-hosted", ["llama-3.3-70b-instruct", "qwen3-32b", "mistral-nemo", "phi-4", "gemma-3-27b"]),
];

/// Bits that look drawn, the same at every run (SplitMix64).
pub(crate) fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// From 0 to below 1.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// A request's worth of numbers, one after the other.
struct Draw(u64);

impl Draw {
    fn bits(&mut self) -> u64 {
        self.0 = mixed(self.0);
        self.0
    }

    fn unit(&mut self) -> f64 {
        unit(self.bits())
    }

    fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// Between two numbers, each order of magnitude as often as the others.
    fn magnitude(&mut self, least: f64, most: f64) -> i64 {
        (least * (most / least).powf(self.unit())) as i64
    }
}

struct User {
    keys: u64,
    /// Models, and how many of 15 requests go to the first so many of them.
    leaning: Vec<(usize, u64)>,
}

/// `events` requests from `start_us` on.
pub(crate) struct Traffic {
    pub(crate) start_us: i64,
    pub(crate) events: u64,
    users: Vec<User>,
    /// The share of requests of all users up to each.
    ranks: Vec<f64>,
    /// The share of requests before each hour, and all of them after the last.
    hours: Vec<f64>,
}

fn model_of(bits: u64) -> usize {
    // Some models are everybody's: the square of a uniform number leans to the first ones.
    (unit(bits).powi(2) * 40.0) as usize
}

fn running(weights: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sums: Vec<f64> = weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect();
    let all = sums.last().copied().unwrap_or(1.0);
    sums.iter_mut().for_each(|sum| *sum /= all);
    sums
}

impl Traffic {
    /// `events` requests of the 30 days from `start_us` on.
    pub(crate) fn new(start_us: i64, events: u64) -> Self {
        Self::over(SPAN_US, start_us, events)
    }

    /// `events` requests of the day from `start_us` on.
    pub(crate) fn day(start_us: i64, events: u64) -> Self {
        Self::over(DAY_US, start_us, events)
    }

    /// `events` requests of the hour from `start_us` on.
    pub(crate) fn hour(start_us: i64, events: u64) -> Self {
        Self::over(HOUR_US, start_us, events)
    }

    fn over(span_us: i64, start_us: i64, events: u64) -> Self {
        let user = |number: u64| {
            let mut draw = Draw(number ^ 0x75_7365_7273);
            let keys = 1 + draw.below(3);
            let models = 1 + draw.below(4);
            let leaning = (0..models).map(|model| (model_of(draw.bits()), 16 - (16 >> (model + 1)))).collect();
            User { keys, leaning }
        };
        let hour = |hour: i64| {
            let at = start_us.div_euclid(HOUR_US) + hour;
            let by_day = 0.2 + (std::f64::consts::PI * (at.rem_euclid(24) as f64 - 6.0) / 14.0).sin().max(0.0);
            // The epoch began on a Thursday.
            let weekend = (at.div_euclid(24) + 4).rem_euclid(7) % 6 == 0;
            by_day * if weekend { 0.3 } else { 1.0 }
        };
        let mut hours = vec![0.0];
        hours.extend(running((0..span_us / HOUR_US).map(hour)));
        Self {
            start_us,
            events,
            users: (0..USERS as u64).map(user).collect(),
            ranks: running((0..USERS).map(|rank| 1.0 / (rank + 1) as f64)),
            hours,
        }
    }

    /// The `n`th request.
    pub(crate) fn event(&self, n: u64) -> UsageEvent {
        let mut draw = Draw(n);
        let at_us = self.time(n, &mut draw);
        let rank = draw.unit();
        let number = self.ranks.partition_point(|sum| *sum <= rank).min(USERS - 1);
        let user = &self.users[number];
        let (provider, model) = user.model(&mut draw);
        let key = draw.below(user.keys);
        let status = match draw.below(1000) {
            0..970 => RequestStatus::Ok,
            970..982 => RequestStatus::RateLimited,
            982..990 => RequestStatus::ProviderError,
            990..997 => RequestStatus::ClientError,
            _ => RequestStatus::Cancelled,
        };
        let latency = draw.magnitude(2e5, 3e7);
        UsageEvent {
            id: id(at_us, draw.bits(), draw.bits()).to_string(),
            occurred_at: Some(timestamp(at_us)),
            instance_id: "prod".into(),
            user_id: format!("user-{number}"),
            team_id: format!("team-{}", number as u64 % TEAMS),
            api_key_id: format!("key-{number}-{key}"),
            provider: provider.into(),
            requested_model: model.into(),
            status: status.into(),
            operation: "chat".into(),
            tokens: Some(tokens(status, &mut draw)),
            latency: Some(duration(latency)),
            time_to_first_token: (status == RequestStatus::Ok).then(|| duration(latency / 5)),
            request_id: format!("req-{n}"),
            ..UsageEvent::default()
        }
    }

    /// The first is at the start; the others are spread by the hours' weights.
    fn time(&self, n: u64, draw: &mut Draw) -> i64 {
        if n == 0 {
            return self.start_us;
        }
        let share = (n as f64 + draw.unit()) / (self.events + 1) as f64;
        let hour = (self.hours.partition_point(|sum| *sum <= share)).clamp(1, self.hours.len() - 1);
        let (before, after) = (self.hours[hour - 1], self.hours[hour]);
        let within = ((share - before) / (after - before)).clamp(0.0, 1.0) * (HOUR_US - 1) as f64;
        let at_us = self.start_us + (hour as i64 - 1) * HOUR_US + within as i64;
        let late_us = if draw.below(200) == 0 { draw.below(DAY_US as u64) as i64 } else { 0 };
        (at_us - late_us).max(self.start_us)
    }
}

impl User {
    fn model(&self, draw: &mut Draw) -> (&'static str, &'static str) {
        let elsewhere = draw.below(100) == 0;
        let most = self.leaning.last().map_or(1, |(_, most)| *most);
        let wanted = draw.below(most);
        let model = match self.leaning.iter().find(|(_, upto)| wanted < *upto) {
            Some((model, _)) if !elsewhere => *model,
            _ => draw.below(40) as usize,
        };
        let (provider, models) = MODELS[model % MODELS.len()];
        (provider, models[model / MODELS.len()])
    }
}

/// What failed has no output, and mostly no input that is charged.
fn tokens(status: RequestStatus, draw: &mut Draw) -> Tokens {
    let input = draw.magnitude(20.0, 12_000.0);
    let cached = if draw.below(5) < 2 { draw.magnitude(1_024.0, 60_000.0) } else { 0 };
    let written = if draw.below(10) == 0 { draw.magnitude(1_024.0, 20_000.0) } else { 0 };
    let output = draw.magnitude(5.0, 4_000.0);
    let reasoning = if draw.below(4) == 0 { output / 2 } else { 0 };
    match status {
        RequestStatus::Ok => Tokens {
            input_uncached: Some(input),
            input_cache_read: Some(cached),
            input_cache_write: Some(written),
            input_cache_write_1h: Some(if written % 4 == 0 { written } else { 0 }),
            output: Some(output),
            output_reasoning: Some(reasoning),
        },
        RequestStatus::Cancelled => {
            Tokens { input_uncached: Some(input), output: Some(output / 3), ..Tokens::default() }
        }
        _ => Tokens::default(),
    }
}

/// A UUIDv7 of this time.
fn id(at_us: i64, first: u64, second: u64) -> Uuid {
    let millis = u128::from(at_us.unsigned_abs() / 1000) << 80;
    let variant = 2_u128 << 62 | u128::from(second >> 2);
    Uuid::from_u128(millis | 7 << 76 | u128::from(first >> 52) << 64 | variant)
}

pub(crate) fn timestamp(us: i64) -> Timestamp {
    let nanos = i32::try_from(us.rem_euclid(1_000_000) * 1000).unwrap();
    Timestamp { seconds: us.div_euclid(1_000_000), nanos }
}

pub(crate) fn micros(time: &Timestamp) -> i64 {
    time.seconds * 1_000_000 + i64::from(time.nanos) / 1000
}

fn duration(us: i64) -> Duration {
    let nanos = i32::try_from(us % 1_000_000 * 1000).unwrap();
    Duration { seconds: us / 1_000_000, nanos }
}
