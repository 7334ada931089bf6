//! Everything arrives once, whatever happens on the way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use gateway_sdk::{Actor, AuditEvent, Error, ErrorReason, GatewaySdk, Rejected, Resource, ServiceStats, UsageEvent};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::fake::{Action, Arrived, Fake, LONG};

pub(crate) fn usage(user: impl Into<String>) -> UsageEvent {
    UsageEvent::builder("openai", "gpt-4o").user(user).build()
}

pub(crate) fn audit(actor: impl Into<String>) -> AuditEvent {
    let model = Resource::new("model", "gpt-4o");
    AuditEvent::builder(Actor::user(actor), "model.enabled", model).build()
}

pub(crate) fn assert_balanced(stats: &ServiceStats) {
    let settled = stats.acknowledged + stats.rejected + stats.dropped;
    assert_eq!(stats.recorded, stats.queued + stats.in_flight + settled);
}

/// Records `count` usage events tagged with their number, in order.
fn record(sdk: &GatewaySdk, count: u64) {
    for n in 0..count {
        sdk.usage().record(usage(format!("u{n:05}")));
    }
}

fn ended(code: Code) -> Status {
    Status::new(code, "as the test wants it")
}

/// As the service ends a stream for what was sent: it says why.
pub(crate) fn refused(code: Code) -> Status {
    let reason = match code {
        Code::ResourceExhausted => "TOO_LARGE",
        Code::Internal => "INTERNAL",
        _ => "MALFORMED_MESSAGE",
    };
    let details = ErrorDetails::with_error_info(reason, "activity", HashMap::new());
    Status::with_error_details(code, "as the test wants it", details)
}

#[tokio::test]
async fn what_somebody_between_says_costs_no_event() {
    for code in [Code::ResourceExhausted, Code::InvalidArgument, Code::OutOfRange, Code::Internal] {
        let fake = Fake::start();
        let sdk = fake.sdk().batch(64, 1 << 20).build().unwrap();
        fake.memory.script(move |arrived| match arrived.stream {
            0..9 => Action::End(ended(code)),
            _ => Action::Ack,
        });
        record(&sdk, 10);
        assert!(sdk.flush(LONG).await.is_complete());
        fake.memory.look(|memory| assert_eq!(memory.sequences_as_stored(), (0..10).collect::<Vec<_>>()));
        let stats = sdk.stats().usage;
        assert_eq!((stats.acknowledged, stats.rejected, stats.dropped), (10, 0, 0), "{code:?}");
    }
}

#[tokio::test]
async fn pages_of_a_proxy_whose_service_is_away_cost_no_event() {
    for status in [400, 401, 403, 404, 413, 429, 500, 502, 503, 504, 200] {
        let fake = Fake::start();
        let sdk = fake.sdk().build().unwrap();
        fake.memory.page(status);
        let waiting = tokio::spawn({
            let sdk = sdk.clone();
            async move { sdk.audit().record(audit("a")).await }
        });
        sdk.usage().record(usage("u"));
        // More often than a defect of the service is put up with.
        fake.memory.until("asked again and again", |memory| memory.streams > 20).await;
        let stats = sdk.stats();
        assert_eq!((stats.usage.rejected, stats.audit.rejected), (0, 0), "{status}: {stats:?}");
        fake.memory.page(0);
        assert!(sdk.flush(LONG).await.is_complete());
        waiting.await.unwrap().unwrap();
        fake.memory.look(|memory| assert_eq!((memory.tags(), memory.dropped.len()), (vec!["a", "u"], 0), "{status}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_many_threads_arrive_once_with_gapless_numbers() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let sdk = sdk.clone();
            std::thread::spawn(move || record(&sdk, 2_500))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        assert_eq!(memory.sequences_as_stored(), (0..10_000).collect::<Vec<_>>());
        assert!(memory.largest_batch <= 1_000);
        assert_eq!(memory.duplicates, 0);
    });
    let stats = sdk.stats().usage;
    assert_eq!((stats.recorded, stats.acknowledged), (10_000, 10_000));
    assert!(stats.connected && stats.last_error.is_none());
    assert_balanced(&stats);
}

#[tokio::test]
async fn receipts_are_those_of_the_service() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let event = audit("a");
    let recorded = sdk.audit().record(event.clone()).await.unwrap();
    assert_eq!(recorded.id(), event.id());
    let receipt = recorded.receipt().await.unwrap();
    assert_eq!((receipt.sequence, receipt.duplicate), (0, false));
    assert_eq!(receipt.leaf_hash, [7; 32]);
    let again = sdk.audit().record(event).await.unwrap();
    let again = again.receipt().await.unwrap();
    assert_eq!((again.sequence, again.duplicate), (0, true));
    assert_eq!(sdk.stats().audit.duplicates, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_audit_records_at_once_share_batches() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let records =
        futures::stream::iter(0..5_000).map(|n| sdk.audit().record(audit(format!("a{n}")))).buffer_unordered(2_000);
    let places: Vec<u64> =
        records.then(|recorded| async { recorded.unwrap().receipt().await.unwrap().sequence }).collect().await;
    let mut sorted = places;
    sorted.sort_unstable();
    assert_eq!(sorted, (0..5_000).collect::<Vec<_>>());
    assert!(fake.memory.look(|memory| memory.batches) < 2_500);
}

#[tokio::test]
async fn streams_that_break_deliver_once_and_in_order() {
    let fake = Fake::start();
    let sdk = fake.sdk().batch(10, 1 << 20).build().unwrap();
    fake.memory.script(|arrived| match arrived.batch % 7 {
        // Stored, and the answer lost: the next stream brings it again.
        2 => Action::StoreAndEnd(ended(Code::Unavailable)),
        4 => Action::End(ended(Code::Unknown)),
        6 => Action::Misnumber,
        _ => Action::Ack,
    });
    record(&sdk, 1_000);
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        assert_eq!(memory.sequences_as_stored(), (0..1_000).collect::<Vec<_>>());
        assert!(memory.duplicates > 0 && memory.streams > 1);
        let stats = sdk.stats().usage;
        assert_eq!(stats.reconnects + 1, memory.streams as u64);
        assert_eq!(stats.acknowledged, 1_000);
        assert!(stats.duplicates > 0 && stats.duplicates <= memory.duplicates);
        assert_balanced(&stats);
    });
}

#[tokio::test]
async fn killed_service_gets_the_rest_when_it_is_back() {
    let mut fake = Fake::start();
    fake.memory.script(|arrived| match arrived.batch {
        0..5 => Action::Ack,
        _ => Action::Hold,
    });
    let sdk = fake.sdk().batch(10, 1 << 20).build().unwrap();
    let waiting = tokio::spawn({
        let sdk = sdk.clone();
        async move { sdk.audit().record(audit("a")).await }
    });
    record(&sdk, 500);
    fake.memory.until("batches held", |m| m.batches > 5).await;
    fake.kill();
    fake.memory.script(|_| Action::Ack);
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    waiting.await.unwrap().unwrap();
    fake.memory.look(|memory| {
        assert_eq!(memory.stored.len(), 501);
        let users = memory.tags().len();
        assert_eq!(users, 501);
    });
}

#[tokio::test]
async fn service_that_is_unavailable_for_a_while_loses_nothing() {
    let fake = Fake::start();
    let sdk = fake.sdk().batch(100, 1 << 20).build().unwrap();
    fake.memory.script(|arrived| match arrived.stream {
        0..6 => Action::End(ended(Code::Unavailable)),
        _ => Action::Ack,
    });
    record(&sdk, 1_000);
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|m| assert_eq!(m.sequences(), (0..1_000).collect::<Vec<_>>()));
}

#[tokio::test]
async fn refused_credentials_keep_everything() {
    for code in [Code::Unauthenticated, Code::PermissionDenied, Code::Unimplemented] {
        let fake = Fake::start();
        let sdk = fake.sdk().build().unwrap();
        fake.memory.script(move |arrived| match arrived.stream {
            0..3 => Action::End(ended(code)),
            _ => Action::Ack,
        });
        record(&sdk, 10);
        assert!(sdk.flush(LONG).await.is_complete());
        let stats = sdk.stats().usage;
        assert_eq!((stats.acknowledged, stats.rejected), (10, 0), "{code:?}");
        assert_eq!(stats.refused, 3, "{code:?}");
    }
}

#[tokio::test]
async fn service_that_stops_answering_is_left_and_asked_again() {
    let fake = Fake::start();
    let sdk = fake.sdk().ack_timeout(Duration::from_millis(200)).build().unwrap();
    fake.memory.script(|arrived| match arrived.stream {
        0 => Action::Stall,
        _ => Action::Ack,
    });
    record(&sdk, 10);
    assert!(sdk.flush(LONG).await.is_complete());
    assert_eq!(fake.memory.look(|m| (m.streams, m.stored.len())), (2, 10));
}

#[tokio::test]
async fn service_is_not_asked_before_it_said() {
    let wait = Duration::from_millis(300);
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let ended_at = Arc::new(Mutex::new(None));
    let asked_again = Arc::new(Mutex::new(None));
    fake.memory.script({
        let (ended_at, asked_again) = (Arc::clone(&ended_at), Arc::clone(&asked_again));
        move |arrived| {
            let now = std::time::Instant::now();
            if arrived.stream == 0 {
                *ended_at.lock().unwrap() = Some(now);
                let details = ErrorDetails::with_retry_info(Some(wait));
                Action::End(Status::with_error_details(Code::ResourceExhausted, "", details))
            } else {
                asked_again.lock().unwrap().get_or_insert(now);
                Action::Ack
            }
        }
    });
    record(&sdk, 10);
    // A flush would cut the wait of any other failure short.
    assert!(sdk.flush(LONG).await.is_complete());
    let waited = asked_again.lock().unwrap().unwrap() - ended_at.lock().unwrap().unwrap();
    assert!(waited >= wait, "{waited:?}");
    assert_eq!(sdk.stats().usage.rejected, 0);
}

#[tokio::test]
async fn refused_event_is_told_and_not_sent_again() {
    let fake = Fake::start();
    let told = Arc::new(Mutex::new(Vec::new()));
    let sdk = fake
        .sdk()
        .on_rejected({
            let told = Arc::clone(&told);
            move |rejected| {
                told.lock().unwrap().push(rejected);
                panic!("a callback that panics harms nobody");
            }
        })
        .build()
        .unwrap();
    let bad = usage("bad");
    sdk.usage().record(usage("good"));
    sdk.usage().record(bad.clone());
    sdk.usage().record(usage("fine"));
    assert!(sdk.flush(LONG).await.is_complete());
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.rejected), (2, 1));
    assert_balanced(&stats);
    fake.memory.look(|m| assert_eq!(m.tags(), ["fine", "good"]));
    {
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 1);
        let Rejected::Usage(event) = &told[0].event else { panic!("{told:?}") };
        assert_eq!(event.id(), bad.id());
        assert_eq!(told[0].rejection.reason, ErrorReason::InvalidArgument);
        assert_eq!(told[0].rejection.field, "user_id");
    }

    let error = sdk.audit().record(audit("bad")).await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::InvalidAction));
    assert!(!error.is_retryable());
    assert_eq!(error.to_string(), "the event was refused: INVALID_ACTION in actor.id: bad actor");
    sdk.audit().record(audit("good")).await.unwrap();
}

fn poisoned(code: Code) -> impl Fn(&Arrived) -> Action + Send + Sync + 'static {
    move |arrived| {
        if arrived.has("poison") { Action::End(refused(code)) } else { Action::Ack }
    }
}

#[tokio::test]
async fn event_that_ends_every_stream_holds_up_no_other() {
    for code in [Code::InvalidArgument, Code::ResourceExhausted, Code::Internal] {
        let fake = Fake::start();
        let rejected = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&rejected);
        let sdk = fake
            .sdk()
            .batch(64, 1 << 20)
            .on_rejected(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
            })
            .build()
            .unwrap();
        fake.memory.script(poisoned(code));
        let expected: Vec<u64> = (0..300).filter(|n| ![0, 7, 150].contains(n)).collect();
        for n in 0..300 {
            let poison = !expected.contains(&n);
            sdk.usage().record(usage(if poison { "poison" } else { "u" }));
        }
        assert!(sdk.flush(LONG).await.is_complete());
        fake.memory.look(|memory| {
            assert_eq!(memory.sequences_as_stored(), expected, "{code:?}");
            // Their numbers are accounted for.
            assert_eq!(memory.dropped, [(0, 0), (7, 7), (150, 150)], "{code:?}");
        });
        let stats = sdk.stats().usage;
        assert_eq!((stats.acknowledged, stats.rejected, stats.dropped), (297, 3, 0));
        assert_eq!(rejected.load(Ordering::SeqCst), 3);
        assert_balanced(&stats);
    }
}

#[tokio::test]
async fn a_defect_that_every_event_meets_is_the_services_and_costs_none() {
    let fake = Fake::start();
    let sdk = fake.sdk().batch(16, 1 << 20).build().unwrap();
    fake.memory.script(|_| Action::End(refused(Code::Internal)));
    let waiting = tokio::spawn({
        let sdk = sdk.clone();
        async move { sdk.audit().record(audit("a")).await }
    });
    record(&sdk, 100);
    // For an hour, so to say: down to single events, and further.
    fake.memory.until("asked again and again", |memory| memory.streams > 100).await;
    assert!(!waiting.is_finished());
    fake.memory.script(|_| Action::Ack);
    assert!(sdk.flush(LONG).await.is_complete());
    waiting.await.unwrap().unwrap();
    fake.memory.look(|memory| assert_eq!((memory.stored.len(), memory.dropped.len()), (101, 0)));
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.rejected), (100, 0));
    assert_balanced(&stats);
}

#[tokio::test]
async fn an_event_alone_with_a_defect_is_kept_until_others_get_through() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    fake.memory.script(poisoned(Code::Internal));
    let record = |actor: &'static str| {
        let sdk = sdk.clone();
        tokio::spawn(async move { sdk.audit().record(audit(actor)).await })
    };
    let poison = [record("poison"), record("poison")];
    fake.memory.until("asked again and again", |memory| memory.streams > 20).await;
    assert_eq!(sdk.stats().audit.rejected, 0);
    record("a").await.unwrap().unwrap();
    for poison in poison {
        let error = poison.await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(ErrorReason::Internal), "{error}");
    }
    record("b").await.unwrap().unwrap();
    fake.memory.look(|memory| assert_eq!(memory.tags(), ["a", "b"]));
}

#[tokio::test]
async fn poisonous_audit_event_is_an_error_for_its_caller_alone() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    fake.memory.script(poisoned(Code::InvalidArgument));
    let results: Vec<Result<_, Error>> = futures::future::join_all((0..50).map(|n| {
        let actor = if n == 20 { "poison" } else { "a" };
        sdk.audit().record(audit(actor))
    }))
    .await;
    for (n, result) in results.into_iter().enumerate() {
        assert_eq!(result.is_err(), n == 20, "{n}: {result:?}");
    }
}

#[tokio::test]
async fn large_events_are_sent_in_batches_below_the_limit() {
    let fake = Fake::start();
    let sdk = fake.sdk().usage_queue(1_000, 64 << 20).build().unwrap();
    for _ in 0..300 {
        let mut event = UsageEvent::builder("p", "m");
        for label in 0..60 {
            event = event.label(format!("{label}"), "x".repeat(1_000));
        }
        sdk.usage().record(event);
    }
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        assert_eq!(memory.stored.len(), 300);
        assert!(memory.largest_bytes <= 1 << 20, "{}", memory.largest_bytes);
    });
    let huge = "x".repeat(70_000);
    sdk.usage().record(UsageEvent::builder("p", huge.clone()));
    assert_eq!(sdk.stats().usage.rejected, 1);
    let error = sdk.audit().record(audit(huge)).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 65_536, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_an_answer_finds_it_in_the_counters() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    for n in 1..=1_000 {
        sdk.audit().record(audit("a")).await.unwrap().receipt().await.unwrap();
        assert_eq!(sdk.stats().audit.acknowledged, n);
    }
}
