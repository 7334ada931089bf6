//! The load: a gateway with 5,000 users over 30 days, and administrators with as many actions.

use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use gateway_sdk::{Actor, AuditEvent, GatewaySdk, Resource, Tokens, UsageEvent};
use serde_json::json;

use crate::PATIENCE;

const DAYS_30: Duration = Duration::from_secs(30 * 24 * 3600);
const MODELS: [(&str, &str); 6] = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-4.1-mini"),
    ("anthropic", "claude-sonnet-4-5"),
    ("google", "gemini-2.5-flash"),
    ("mistral", "codestral-2508"),
    ("self-hosted", "llama-3.3-70b-instruct"),
];

/// Bits that look drawn, the same at every run (SplitMix64).
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A rank from 0 to 4,999, the low ones often.
fn rank(bits: u64) -> u64 {
    let unit = (bits >> 11) as f64 / (1_u64 << 53) as f64;
    (5_000_f64.powf(unit) as u64).min(4_999)
}

fn sdk() -> gateway_sdk::Builder {
    GatewaySdk::builder().instance("prod").on_rejected(|refused| panic!("refused: {refused:?}"))
}

/// The `n`th of `events` requests, the last of which ends now.
fn request(n: u64, events: u64, start: SystemTime) -> UsageEvent {
    let bits = mixed(n);
    let user = rank(bits);
    let (provider, model) = MODELS[(mixed(bits) % 6) as usize];
    UsageEvent::builder(provider, model)
        .occurred_at(start + Duration::from_secs_f64(DAYS_30.as_secs_f64() * n as f64 / events as f64))
        .user(format!("user-{user}"))
        .team(format!("team-{}", user % 40))
        .api_key(format!("key-{user}-{}", bits % 3))
        .operation("chat")
        .tokens(Tokens { input_uncached: bits % 4_000, output: bits % 700, ..Tokens::default() })
        .latency(Duration::from_millis(200 + bits % 3_000))
        .request_id(format!("req-{n}"))
        .build()
}

pub(crate) async fn usage(url: &str, events: u64) {
    let sdk = sdk().usage_endpoint(url).build().unwrap();
    let start = SystemTime::now() - DAYS_30;
    for n in 0..events {
        sdk.usage().record_wait(request(n, events, start), PATIENCE).await.unwrap();
    }
    let left = sdk.shutdown(PATIENCE).await;
    assert!(left.is_complete(), "{left:?}");
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.rejected, stats.dropped), (events, 0, 0));
}

/// What `record` costs its caller, one call at a time, while the service takes the events: sorted.
pub(crate) async fn record_times(url: &str) -> Vec<Duration> {
    const CALLS: u64 = 50_000;
    let sdk = sdk().usage_endpoint(url).build().unwrap();
    let start = SystemTime::now() - DAYS_30;
    let events: Vec<_> = (0..CALLS).map(|n| request(n, CALLS, start)).collect();
    let mut times = Vec::with_capacity(events.len());
    for event in events {
        let call = Instant::now();
        sdk.usage().record(event);
        times.push(call.elapsed());
    }
    assert!(sdk.shutdown(PATIENCE).await.is_complete());
    assert_eq!(sdk.stats().usage.acknowledged, CALLS);
    times.sort();
    times
}

pub(crate) async fn audit(url: &str, events: u64) {
    let sdk = sdk().audit_endpoint(url).build().unwrap();
    let start = SystemTime::now() - DAYS_30;
    // As many callers at once as a large platform has; each waits for its own acknowledgement.
    futures::stream::iter(0..events)
        .map(|n| {
            let sdk = sdk.clone();
            let bits = mixed(n);
            let at = start + Duration::from_secs_f64(DAYS_30.as_secs_f64() * n as f64 / events as f64);
            async move {
                let event = AuditEvent::builder(
                    Actor::user(format!("admin-{}", rank(bits) % 200)).display_name("somebody@example.com"),
                    if bits.is_multiple_of(2) { "model.enabled" } else { "provider.updated" },
                    Resource::new("model", format!("model-{}", mixed(bits) % 400)).name("A model"),
                )
                .occurred_at(at)
                .reason(format!("OPS {n}"))
                .change("/limits/rpm", Some(json!(bits % 600)), Some(json!(bits % 900)))
                .request_id(format!("req-{n}"));
                sdk.audit().record(event).await.unwrap();
            }
        })
        .buffer_unordered(4_000)
        .for_each(|()| async {})
        .await;
    let left = sdk.shutdown(PATIENCE).await;
    assert!(left.is_complete(), "{left:?}");
}
