//! Measurements, run by hand:
//! `cargo test --release -p gateway-sdk --test sdk -- --ignored --nocapture measure`.

use std::time::{Duration, Instant};

use gateway_sdk::{Tokens, UsageEvent};

use crate::fake::{Fake, LONG};

fn event(n: u64) -> UsageEvent {
    UsageEvent::builder("openai", "gpt-4o-2024-08-06")
        .user(format!("user-{}", n % 300))
        .team("team-7")
        .api_key(format!("key-{}", n % 40))
        .operation("chat")
        .tokens(Tokens { input_uncached: 1_000 + n % 900, output: 200 + n % 50, ..Tokens::default() })
        .latency(Duration::from_millis(700))
        .request_id(format!("req-{n:012}"))
        .build()
}

/// Seconds of processor time that this thread has used.
fn thread_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos: f64 = stat.split(' ').next().unwrap_or("0").parse().unwrap_or(0.0);
    nanos / 1e9
}

#[test]
#[ignore = "a measurement"]
fn measure_record_and_delivery() {
    const COUNT: u64 = 400_000;
    let fake = Fake::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guard = runtime.enter();
    let sdk = fake.sdk().usage_queue(1 << 20, 1 << 30).build().unwrap();
    drop(guard);
    let events: Vec<UsageEvent> = (0..COUNT).map(event).collect();

    let mut nanos = Vec::with_capacity(events.len());
    let since = Instant::now();
    for event in events {
        let one = Instant::now();
        sdk.usage().record(event);
        nanos.push(one.elapsed().as_nanos());
    }
    let recorded = since.elapsed();
    nanos.sort_unstable();
    let at = |share: usize| nanos[nanos.len() * share / 1000];
    println!(
        "record, one thread: {:.0} ns an event; median {} ns, p99 {} ns, p99.9 {} ns",
        recorded.as_nanos() as f64 / COUNT as f64,
        at(500),
        at(990),
        at(999),
    );

    let (since, used) = (Instant::now(), thread_seconds());
    assert!(runtime.block_on(sdk.flush(LONG * 4)).is_complete());
    let (took, used) = (since.elapsed().as_secs_f64(), thread_seconds() - used);
    println!(
        "deliver to a fake service: {:.0} events/s, {:.2} of a core at 60,000 events/s",
        COUNT as f64 / took,
        60_000.0 * used / COUNT as f64,
    );
    assert_eq!(sdk.stats().usage.acknowledged, COUNT);
}
