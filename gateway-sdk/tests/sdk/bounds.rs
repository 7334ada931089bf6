//! Memory, time and loss are bounded, and what is lost is told.

use std::time::{Duration, Instant};

use futures::FutureExt;
use gateway_sdk::{Credentials, Error, GatewaySdk, Token};

use crate::delivery::{assert_balanced, audit, usage};
use crate::fake::{Action, Fake, LONG};

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn record_returns_at_once_while_the_service_is_away() {
    let fake = Fake::down();
    let limits = (5_000, 1 << 20);
    let sdk = fake.sdk().usage_queue(limits.0, limits.1).build().unwrap();
    for n in 0..50_000 {
        sdk.usage().record(usage(format!("{n}")));
    }
    let stats = sdk.stats().usage;
    assert_eq!(stats.recorded, 50_000);
    assert!(stats.queued <= limits.0 as u64 && stats.queued_bytes <= limits.1 as u64);
    assert_eq!(stats.in_flight, 0, "nothing is taken without a chance to send it");
    assert!(stats.dropped >= 45_000);
    assert_balanced(&stats);
}

#[tokio::test]
async fn oldest_are_dropped_and_their_numbers_reported() {
    let mut fake = Fake::down();
    let sdk = fake.sdk().usage_queue(100, 1 << 20).build().unwrap();
    for n in 0..250 {
        sdk.usage().record(usage(format!("{n}")));
    }
    assert_eq!(sdk.stats().usage.dropped, 150);
    // The first report is lost with its stream: it is made again.
    fake.memory.script(|arrived| match arrived.batch {
        0 => Action::End(tonic::Status::unavailable("")),
        _ => Action::Ack,
    });
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        assert_eq!(memory.sequences_as_stored(), (150..250).collect::<Vec<_>>());
        assert_eq!(memory.dropped, [(0, 149)]);
    });
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.dropped), (100, 150));
    assert_balanced(&stats);
}

#[tokio::test]
async fn drops_between_batches_are_reported_as_ranges_of_their_own() {
    let fake = Fake::start();
    fake.memory.script(|_| Action::Hold);
    let sdk = fake.sdk().usage_queue(10, 1 << 20).batch(10, 1 << 20).window(1).build().unwrap();
    let fill = |from: u64, to: u64| {
        for n in from..to {
            sdk.usage().record(usage(format!("{n}")));
        }
    };
    fill(0, 10);
    fake.memory.until("the first batch is held", |m| m.batches == 1).await;
    fill(10, 25);
    fake.memory.open_gate();
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        let stored: Vec<u64> = (0..10).chain(15..25).collect();
        assert_eq!(memory.sequences(), stored);
        assert_eq!(memory.dropped, [(10, 14)]);
    });
}

#[tokio::test]
async fn record_wait_waits_for_room_and_not_for_ever() {
    let fake = Fake::start();
    fake.memory.script(|_| Action::Hold);
    let sdk = fake.sdk().usage_queue(5, 1 << 20).batch(5, 1 << 20).window(1).build().unwrap();
    let wait = |timeout| sdk.usage().record_wait(usage("u"), timeout);
    for _ in 0..5 {
        wait(LONG).await.unwrap();
    }
    fake.memory.until("a batch is held", |m| m.batches == 1).await;
    for _ in 0..5 {
        wait(LONG).await.unwrap();
    }
    let error = wait(SHORT).await.unwrap_err();
    assert!(matches!(error, Error::QueueFull { events: 5, .. }), "{error}");
    assert!(error.is_retryable());
    let waiting = tokio::spawn({
        let sdk = sdk.clone();
        async move { sdk.usage().record_wait(usage("late"), LONG).await }
    });
    fake.memory.open_gate();
    waiting.await.unwrap().unwrap();
    assert!(sdk.flush(LONG).await.is_complete());
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.dropped), (11, 0));
}

#[tokio::test]
async fn audit_fails_closed_when_its_queue_is_full() {
    let mut fake = Fake::down();
    let sdk = fake.sdk().audit_queue(3, 1 << 20).build().unwrap();
    let mut waiting: Vec<_> = (0..3).map(|n| Box::pin(sdk.audit().record(audit(format!("{n}"))))).collect();
    for record in &mut waiting {
        assert!(record.now_or_never().is_none());
    }
    let error = sdk.audit().record(audit("late")).await.unwrap_err();
    assert!(matches!(error, Error::QueueFull { events: 3, .. }), "{error}");
    fake.restart();
    for record in waiting {
        record.await.unwrap();
    }
    assert_eq!(sdk.stats().audit.dropped, 0);
}

#[tokio::test]
async fn audit_event_that_was_not_acknowledged_in_time_is_safe_to_record_again() {
    let mut fake = Fake::down();
    // Long enough that a first attempt has failed, whatever else runs here.
    let sdk = fake.sdk().audit_timeout(SHORT * 10).build().unwrap();
    let event = audit("a");
    let error = sdk.audit().record(event.clone()).await.unwrap_err();
    assert!(matches!(error, Error::NotAcknowledged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("still queued; the last failure: Unavailable") && text.contains("refused"), "{text}");
    assert!(error.is_retryable());
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    let again = sdk.audit().record(event).await.unwrap();
    assert!(again.receipt().await.unwrap().duplicate);
    assert_eq!(fake.memory.look(|m| m.stored.len()), 1);
}

#[tokio::test]
async fn flush_and_shutdown_are_bounded_and_say_what_waits() {
    let fake = Fake::down();
    let sdk = fake.sdk().build().unwrap();
    for n in 0..20 {
        sdk.usage().record(usage(format!("{n}")));
    }
    let audit_waits = tokio::spawn({
        let sdk = sdk.clone();
        async move { sdk.audit().record(audit("a")).await }
    });
    tokio::task::yield_now().await;
    let since = Instant::now();
    let flushed = sdk.flush(SHORT).await;
    assert!(!flushed.is_complete());
    assert_eq!(flushed.usage.queued + flushed.usage.in_flight, 20);
    assert_eq!(flushed.audit.queued + flushed.audit.in_flight, 1);
    let left = sdk.shutdown(SHORT).await;
    assert_eq!(left.usage.queued + left.usage.in_flight, 20);
    assert!(since.elapsed() < LONG / 2);
    let error = audit_waits.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::ShutDown), "{error}");

    sdk.usage().record(usage("late"));
    let stats = sdk.stats().usage;
    assert_eq!((stats.recorded, stats.dropped), (21, 1));
    assert_balanced(&stats);
    let error = sdk.audit().record(audit("late")).await.unwrap_err();
    assert!(matches!(error, Error::ShutDown), "{error}");
    let error = sdk.usage().record_wait(usage("late"), LONG).await.unwrap_err();
    assert!(matches!(error, Error::ShutDown), "{error}");
}

#[tokio::test]
async fn waits_without_a_limit_end_when_all_is_done() {
    let fake = Fake::start();
    let folder = tempfile::tempdir().unwrap();
    for builder in [fake.sdk(), fake.sdk().spool(folder.path())] {
        let forever = Token::new("t").valid_for(Duration::MAX);
        let sdk = builder.credentials(Credentials::token(forever)).build().unwrap();
        sdk.usage().record_wait(usage("u"), Duration::MAX).await.unwrap();
        assert!(sdk.flush(Duration::MAX).await.is_complete());
        assert!(sdk.shutdown(Duration::MAX).await.is_complete());
    }
    assert_eq!(fake.memory.look(|memory| memory.stored.len()), 2);
}

#[test]
fn whoever_records_after_the_sender_has_ended_is_told_so() {
    let fake = Fake::down();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let sdk = first.block_on(async { fake.sdk().build().unwrap() });
    drop(first);
    let (audited, waited) = runtime().block_on(async {
        let waited = sdk.usage().record_wait(usage("late"), LONG).await;
        (tokio::time::timeout(LONG / 2, sdk.audit().record(audit("late"))).await, waited)
    });
    assert!(matches!(audited, Ok(Err(Error::ShutDown))), "{audited:?}");
    assert!(matches!(waited, Err(Error::ShutDown)), "{waited:?}");
    sdk.usage().record(usage("late"));
    assert_eq!(sdk.stats().usage.dropped, 1);
}

#[tokio::test]
async fn peer_that_accepts_and_says_nothing_holds_nobody_up() {
    let mut fake = Fake::down();
    let silent = std::net::TcpListener::bind(fake.address).unwrap();
    let sdk = fake.sdk().ack_timeout(SHORT).build().unwrap();
    sdk.usage().record(usage("u"));
    // Two time-outs: tried, given up, tried again.
    let flushed = sdk.flush(SHORT * 3).await;
    assert_eq!(flushed.usage.in_flight, 1);
    let error = sdk.stats().usage.last_error.unwrap();
    assert!(error.contains("did not open in time"), "{error}");
    drop(silent);
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    assert_eq!(sdk.stats().usage.acknowledged, 1);
}

#[tokio::test]
async fn shutdown_sends_everything_that_was_recorded() {
    let fake = Fake::start();
    let sdk = fake.sdk().usage_linger(LONG).build().unwrap();
    for n in 0..2_500 {
        sdk.usage().record(usage(format!("{n}")));
    }
    assert!(sdk.shutdown(LONG).await.is_complete());
    assert!(sdk.shutdown(LONG).await.is_complete(), "twice is fine");
    assert_eq!(fake.memory.look(|m| m.stored.len()), 2_500);
    assert_eq!(sdk.stats().usage.acknowledged, 2_500);
}

#[tokio::test]
async fn dropping_the_sdk_sends_on_in_the_background() {
    let fake = Fake::start();
    let sdk = fake.sdk().usage_linger(LONG).drop_grace(LONG).build().unwrap();
    for n in 0..10 {
        sdk.usage().record(usage(format!("{n}")));
    }
    drop(sdk);
    fake.memory.until("all stored", |m| m.stored.len() == 10).await;
}

#[tokio::test]
async fn without_endpoints_nothing_hangs() {
    let sdk = GatewaySdk::builder().build().unwrap();
    sdk.usage().record(usage("u"));
    assert_eq!(sdk.stats().usage.dropped, 1);
    let error = sdk.audit().record(audit("a")).await.unwrap_err();
    assert_eq!(error.to_string(), "no audit endpoint was configured");
    let error = sdk.usage().record_wait(usage("u"), LONG).await.unwrap_err();
    assert!(matches!(error, Error::NotConfigured { service: "usage" }));
    let error = sdk.usage().summary(&gateway_sdk::UsageQuery::new()).await;
    assert!(matches!(error, Err(Error::NotConfigured { service: "usage" })));
    assert!(sdk.flush(LONG).await.is_complete());
    assert!(sdk.shutdown(LONG).await.is_complete());
}
