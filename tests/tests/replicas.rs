//! Four replicas of each service on one PostgreSQL, and eight writers that send the same events through all of
//! them: everything is stored once, no log has a gap, and nobody waits for anybody in a ring.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::{AuditEvent, RecordEventsRequest};
use activity_proto::common::v1::{ErrorReason, Producer};
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{GetSummaryRequest, RecordUsageRequest, UsageEvent};
use e2e::{Service, events};
use sqlx::PgPool;
use testkit::{Durability, Postgres};

const REPLICAS: usize = 4;
const WRITERS: u64 = 8;
const ROUNDS: u64 = 12;
const BATCH: u64 = 200;
/// Each batch begins this many events after the one before: half of it comes again.
const STEP: u64 = BATCH / 2;
const EVENTS: u64 = (ROUNDS - 1) * STEP + BATCH;

/// Three producers, whose numbers are spread over two blocks each.
fn producer(n: u64) -> Option<Producer> {
    Some(Producer { id: format!("sdk-{}", n % 3), epoch: 1, sequence: Some(65_000 + n) })
}

fn usage(now: SystemTime, n: u64) -> UsageEvent {
    UsageEvent { producer: producer(n), ..events::usage(now, n) }
}

fn audit(now: SystemTime, n: u64) -> AuditEvent {
    AuditEvent { producer: producer(n), instance_id: format!("eu-{}", n % 3), ..events::audit(now, n) }
}

/// What a writer sends in a round: each in an order of its own.
fn numbers(writer: u64, round: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (round * STEP..round * STEP + BATCH).collect();
    if writer % 2 == 1 {
        numbers.reverse();
    }
    numbers.rotate_left((writer * 17 % BATCH) as usize);
    numbers
}

async fn replicas(name: &'static str, url: &str) -> Vec<Service> {
    // All at once: one of them migrates.
    futures::future::join_all((0..REPLICAS).map(|_| Service::start(name, url, &[]))).await
}

/// Deadlocks are counted when a session ends.
async fn no_deadlock(pool: &PgPool, services: Vec<Service>) {
    drop(services);
    let others =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'activity'";
    testkit::eventually(Duration::from_secs(60), async || {
        sqlx::query_scalar::<_, i64>(others).fetch_one(pool).await.unwrap() == 0
    })
    .await;
    let deadlocks: i64 =
        sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!(deadlocks, 0);
}

#[tokio::test]
async fn usage_is_stored_once_by_four_replicas_and_eight_writers() {
    if Postgres::skipped() {
        return;
    }
    let postgres = Postgres::start_with(Durability::Relaxed).await;
    let url = postgres.create_database().await;
    let services = replicas("usage", &url).await;
    let now = SystemTime::now();
    let writers = (0..WRITERS).map(|writer| {
        let mut client = UsageIngestServiceClient::new(services[writer as usize % REPLICAS].channel());
        tokio::spawn(async move {
            let mut accepted = 0;
            for round in 0..ROUNDS {
                let events = numbers(writer, round).into_iter().map(|n| usage(now, n)).collect();
                let request = RecordUsageRequest { events };
                let answer = client.record_usage(request).await.unwrap().into_inner();
                assert_eq!(answer.rejected, []);
                assert_eq!(u64::from(answer.accepted() + answer.duplicate()), BATCH);
                accepted += u64::from(answer.accepted());
            }
            accepted
        })
    });
    let accepted: Vec<u64> = futures::future::try_join_all(writers).await.unwrap();
    assert_eq!(accepted.iter().sum::<u64>(), EVENTS, "{accepted:?}");

    let pool = PgPool::connect(&url).await.unwrap();
    let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM usage_requests").fetch_one(&pool).await.unwrap();
    assert_eq!(stored.unsigned_abs(), EVENTS);
    for service in &services {
        let mut client = UsageQueryServiceClient::new(service.channel());
        let summary = client.get_summary(GetSummaryRequest::default()).await.unwrap().into_inner().summary.unwrap();
        assert_eq!(summary.requests(), EVENTS, "every replica answers for all");
    }
    // A number that one replica has stored is taken at another.
    let stranger = UsageEvent { producer: producer(7), ..events::usage(now, EVENTS + 1) };
    let request = RecordUsageRequest { events: vec![stranger, usage(now, 7)] };
    for service in &services {
        let mut client = UsageIngestServiceClient::new(service.channel());
        let answer = client.record_usage(request.clone()).await.unwrap().into_inner();
        assert_eq!((answer.accepted(), answer.duplicate(), answer.rejected.len()), (0, 1, 1));
        assert_eq!(answer.rejected[0].reason(), ErrorReason::ProducerConflict);
    }
    no_deadlock(&pool, services).await;
}

#[tokio::test]
async fn audit_logs_are_gapless_through_four_replicas_and_eight_writers() {
    if Postgres::skipped() {
        return;
    }
    let postgres = Postgres::start_with(Durability::Relaxed).await;
    let url = postgres.create_database().await;
    let services = replicas("audit", &url).await;
    let now = SystemTime::now();
    let writers = (0..WRITERS).map(|writer| {
        let mut client = AuditIngestServiceClient::new(services[writer as usize % REPLICAS].channel());
        tokio::spawn(async move {
            let mut accepted = 0;
            for round in 0..ROUNDS {
                let events = numbers(writer, round).into_iter().map(|n| audit(now, n)).collect();
                let request = RecordEventsRequest { events, ..Default::default() };
                let answer = client.record_events(request).await.unwrap().into_inner();
                assert_eq!(answer.rejected, []);
                assert_eq!(answer.receipts.len() as u64, BATCH);
                accepted += u64::from(answer.accepted());
            }
            accepted
        })
    });
    let accepted: Vec<u64> = futures::future::try_join_all(writers).await.unwrap();
    assert_eq!(accepted.iter().sum::<u64>(), EVENTS, "{accepted:?}");

    let pool = PgPool::connect(&url).await.unwrap();
    for instance in 0..3_u64 {
        let rows: Vec<(i64, uuid::Uuid)> =
            sqlx::query_as("SELECT sequence, id FROM audit_entries WHERE instance_id = $1 ORDER BY sequence")
                .bind(format!("eu-{instance}"))
                .fetch_all(&pool)
                .await
                .unwrap();
        let expected: BTreeSet<String> =
            (0..EVENTS).filter(|n| n % 3 == instance).map(|n| events::id(now - Duration::from_millis(n), n)).collect();
        assert!(rows.iter().map(|(sequence, _)| *sequence).eq(0..expected.len() as i64), "no gap");
        let ids: BTreeSet<String> = rows.iter().map(|(_, id)| id.to_string()).collect();
        assert_eq!(ids, expected);
        assert_eq!(e2e::tree::assert_whole(&url, &format!("eu-{instance}")).await, expected.len() as u64);
    }
    no_deadlock(&pool, services).await;
}
