//! PostgreSQL goes away under both services while gateways stream to them, and comes back: nothing that was
//! acknowledged is lost, nothing is there twice, and nobody had to do anything.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use activity_proto::usage::v1::GetSummaryRequest;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use e2e::{Service, events};
use gateway_sdk::{AuditEvent, Error, GatewaySdk, UsageEvent};
use sqlx::PgPool;
use testkit::{Postgres, eventually};

const AUDITORS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(120);

/// What was recorded, and goes on being recorded until it is told to stop.
#[derive(Default)]
struct Traffic {
    stop: AtomicBool,
    usage: AtomicU64,
    audit: AtomicU64,
}

impl Traffic {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_database_that_crashes_and_comes_back_costs_nothing_that_was_acknowledged() {
    if Postgres::skipped() {
        return;
    }
    let away = Duration::from_secs(if std::env::var_os("FULL").is_some() { 30 } else { 3 });
    let postgres = Postgres::start().await;
    let (audit_url, usage_url) = (postgres.create_database().await, postgres.create_database().await);
    let audit = Service::start("audit", &audit_url, &[]).await;
    let usage = Service::start("usage", &usage_url, &[]).await;
    let sdk = GatewaySdk::builder()
        .audit_endpoint(audit.url())
        .usage_endpoint(usage.url())
        .backoff(Duration::from_millis(50), Duration::from_secs(1))
        // Small, so that what is recorded follows what is stored.
        .usage_queue(5_000, 8 << 20)
        .build()
        .unwrap();

    let now = SystemTime::now();
    let traffic = Arc::new(Traffic::default());
    let requests = tokio::spawn({
        let (sdk, traffic) = (sdk.clone(), Arc::clone(&traffic));
        async move {
            while traffic.goes_on() {
                let n = traffic.usage.fetch_add(1, Ordering::Relaxed);
                // Waits for room while the database is away, instead of dropping the oldest.
                sdk.usage().record_wait(UsageEvent::from_proto(events::usage(now, n)), PATIENCE).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let auditors: Vec<_> = (0..AUDITORS)
        .map(|_| {
            let (sdk, traffic) = (sdk.clone(), Arc::clone(&traffic));
            tokio::spawn(async move {
                let mut recorded = Vec::new();
                while traffic.goes_on() {
                    let n = traffic.audit.fetch_add(1, Ordering::Relaxed);
                    let event = AuditEvent::from_proto(events::audit(now, n));
                    loop {
                        match sdk.audit().record(event.clone()).await {
                            Ok(done) => break recorded.push(done.id()),
                            // Still queued: the same event again.
                            Err(Error::NotAcknowledged { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
                recorded
            })
        })
        .collect();
    let settled = || (sdk.stats().usage.acknowledged, sdk.stats().audit.acknowledged);
    let more_than = async |(usage, audit): (u64, u64)| {
        eventually(PATIENCE, async || {
            let now = settled();
            if now.0 > usage + 2_000 && now.1 > audit + 100 { Ok(()) } else { Err((now, sdk.stats())) }
        })
        .await;
    };

    more_than((0, 0)).await;
    postgres.crash().await;
    // How long it is away is the drill.
    tokio::time::sleep(away).await;
    let before = settled();
    postgres.start_again().await;
    more_than(before).await;

    traffic.stop.store(true, Ordering::Relaxed);
    requests.await.unwrap();
    let mut recorded = BTreeSet::new();
    for auditor in auditors {
        recorded.extend(auditor.await.unwrap());
    }
    let left = sdk.shutdown(PATIENCE).await;
    assert!(left.is_complete(), "{left:?}");
    let stats = sdk.stats();
    assert_eq!((stats.usage.dropped, stats.usage.rejected, stats.audit.rejected), (0, 0, 0), "{stats:?}");

    let requests = traffic.usage.load(Ordering::Relaxed);
    let mut client = UsageQueryServiceClient::new(usage.channel());
    let summary = client.get_summary(GetSummaryRequest::default()).await.unwrap().into_inner().summary.unwrap();
    assert_eq!(summary.requests(), requests, "each request once, in every answer");
    let pool = PgPool::connect(&usage_url).await.unwrap();
    let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM usage_requests").fetch_one(&pool).await.unwrap();
    assert_eq!(stored.unsigned_abs(), requests);

    let pool = PgPool::connect(&audit_url).await.unwrap();
    let entries: Vec<(i64, uuid::Uuid)> =
        sqlx::query_as("SELECT sequence, id FROM audit_entries ORDER BY sequence").fetch_all(&pool).await.unwrap();
    assert!(entries.iter().map(|(sequence, _)| *sequence).eq(0..entries.len() as i64), "no gap");
    let ids: BTreeSet<uuid::Uuid> = entries.iter().map(|(_, id)| *id).collect();
    assert_eq!(ids, recorded, "each action once");
}
