//! Endpoints that change while everything goes on.

use std::time::Duration;

use gateway_sdk::{CoverageQuery, Credentials, Error, GatewaySdk};

use crate::delivery::{assert_balanced, audit, usage};
use crate::fake::{Action, Fake, LONG};

const SHORT: Duration = Duration::from_millis(200);

fn record(sdk: &GatewaySdk, from: u64, to: u64) {
    for n in from..to {
        sdk.usage().record(usage(format!("u{n:05}")));
    }
}

/// What both have stored, and how much of it the new one.
fn stored(old: &Fake, new: &Fake) -> (Vec<u64>, usize) {
    let mut all = old.memory.look(|memory| memory.sequences());
    let new = new.memory.look(|memory| memory.sequences());
    all.extend(&new);
    all.sort_unstable();
    (all, new.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_moves_gets_each_event_once_at_one_address_or_the_other() {
    let (old, new) = (Fake::start(), Fake::start());
    let sdk = old.sdk().batch(10, 1 << 20).build().unwrap();
    record(&sdk, 0, 500);
    old.memory.until("a batch", |memory| memory.batches > 2).await;
    sdk.usage().set_endpoint(&new.address.to_string()).unwrap();
    sdk.audit().set_endpoint(&format!("http://{}", new.address)).unwrap();
    record(&sdk, 500, 1_000);
    assert!(sdk.flush(LONG).await.is_complete());
    let (all, moved) = stored(&old, &new);
    assert_eq!(all, (0..1_000).collect::<Vec<_>>(), "none lost, none twice");
    assert!(moved >= 400, "{moved}");
    assert_eq!((old.memory.look(|m| m.streams), new.memory.look(|m| m.streams)), (1, 1));
    let recorded = sdk.audit().record(audit("a")).await.unwrap();
    assert_eq!(recorded.receipt().await.unwrap().sequence, new.memory.look(|memory| memory.stored.len() as u64 - 1));
    assert_balanced(&sdk.stats().usage);
}

#[tokio::test]
async fn a_service_that_is_gone_is_not_waited_for_once_it_is_elsewhere() {
    let (old, new) = (Fake::down(), Fake::start());
    let hour = Duration::from_secs(3_600);
    let sdk = old.sdk().backoff(hour, hour).build().unwrap();
    record(&sdk, 0, 10);
    // It has failed, and waits: for half an hour, by chance.
    while sdk.stats().usage.last_error.is_none() {
        tokio::task::yield_now().await;
    }
    sdk.usage().set_endpoint(&new.address.to_string()).unwrap();
    new.memory.until("all of it", |memory| memory.stored.len() == 10).await;
}

#[tokio::test]
async fn a_service_that_answers_no_more_has_its_time_and_then_the_new_one_gets_the_rest() {
    let (old, new) = (Fake::start(), Fake::start());
    let sdk = old.sdk().ack_timeout(SHORT).build().unwrap();
    old.memory.script(|_| Action::Stall);
    record(&sdk, 0, 10);
    old.memory.until("a batch", |memory| memory.batches > 0).await;
    sdk.usage().set_endpoint(&new.address.to_string()).unwrap();
    assert!(sdk.flush(LONG).await.is_complete());
    assert_eq!(stored(&old, &new), ((0..10).collect(), 10));
}

#[tokio::test]
async fn questions_go_to_the_new_address() {
    let (mut old, new) = (Fake::start(), Fake::start());
    let sdk = old.sdk().query_timeout(SHORT * 10).build().unwrap();
    sdk.usage().coverage_page(&CoverageQuery::new(), None).await.unwrap();
    old.kill();
    sdk.usage().set_endpoint(&new.address.to_string()).unwrap();
    sdk.usage().coverage_page(&CoverageQuery::new(), None).await.unwrap();
}

#[tokio::test]
async fn what_is_no_address_changes_nothing() {
    let fake = Fake::start();
    let sdk = fake.sdk().credentials(Credentials::token("secret")).build().unwrap();
    for (address, why) in
        [("ftp://x", "not usable"), ("http://a b", "not an address"), ("http://10.0.0.1:1", "plain text")]
    {
        let error = sdk.usage().set_endpoint(address).unwrap_err();
        assert!(matches!(error, Error::Config { setting: "usage_endpoint", .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    record(&sdk, 0, 10);
    assert!(sdk.flush(LONG).await.is_complete());
    assert_eq!(fake.memory.look(|memory| memory.stored.len()), 10);
    let bare = GatewaySdk::builder().build().unwrap();
    let error = bare.audit().set_endpoint("127.0.0.1:1").unwrap_err();
    assert!(matches!(error, Error::NotConfigured { service: "audit" }), "{error}");
}
