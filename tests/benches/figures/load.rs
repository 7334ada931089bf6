//! Events on their way into the services: as fast as they go, or at a steady pace with each acknowledgement timed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use activity_proto::usage::v1 as usage;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use futures::StreamExt;
use gateway_sdk::{Actor, AuditEvent, Credentials, GatewaySdk, Resource, Tls, UsageEvent};
use serde_json::json;
use testkit::Realm;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tonic::transport::Channel;

use crate::machine::Times;
use crate::traffic::{SPAN_US, Traffic, mixed};

/// How long a load may take before it counts as stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1_800);
/// Events in a batch at a steady pace, and streams that they come by.
const PACED_BATCH: usize = 100;
const PACED_STREAMS: u32 = 4;

/// Thirty days ago.
pub(crate) fn start_us() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_micros()).unwrap() - SPAN_US
}

/// A service, and what it wants to be shown.
pub(crate) struct Target<'a> {
    /// Where it listens.
    pub(crate) address: &'a str,
    /// Who it believes, if it asks.
    pub(crate) realm: Option<&'a Realm>,
}

impl Target<'_> {
    fn url(&self) -> String {
        let scheme = if self.realm.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    fn sdk(&self) -> gateway_sdk::Builder {
        let sdk = GatewaySdk::builder().instance("prod").on_rejected(|refused| panic!("refused: {refused:?}"));
        match self.realm {
            None => sdk,
            Some(realm) => {
                let token = realm.token_with("gateway", &["writer"], &["prod"], &json!({ "exp": 32_503_680_000_u64 }));
                sdk.credentials(Credentials::token(token))
                    .tls(Tls::new().roots_file(realm.path("clients.pem")).server_name("localhost"))
            }
        }
    }
}

/// All of the traffic as large batches, several at once: the quickest way to fill a database through the contract.
pub(crate) async fn fill(channel: Channel, traffic: &Arc<Traffic>) {
    const BATCH: u64 = 1_000;
    const AT_ONCE: usize = 12;
    let accepted = futures::stream::iter((0..traffic.events).step_by(BATCH as usize))
        .map(|first| {
            let (channel, traffic) = (channel.clone(), Arc::clone(traffic));
            let work = async move {
                let events: Vec<_> = (first..traffic.events.min(first + BATCH)).map(|n| traffic.event(n)).collect();
                let request = usage::RecordUsageRequest { events };
                let answer = UsageIngestServiceClient::new(channel).record_usage(request).await.unwrap().into_inner();
                assert_eq!(answer.rejected, []);
                u64::from(answer.accepted.unwrap())
            };
            async { tokio::spawn(work).await.unwrap() }
        })
        .buffered(AT_ONCE)
        .fold(0, async |sum, accepted| sum + accepted)
        .await;
    assert_eq!(accepted, traffic.events);
}

/// All of the traffic through one SDK; returns when each event is acknowledged.
pub(crate) async fn usage(target: &Target<'_>, traffic: &Traffic) {
    let sdk = target.sdk().usage_endpoint(target.url()).build().unwrap();
    for n in 0..traffic.events {
        sdk.usage().record_wait(UsageEvent::from_proto(traffic.event(n)), PATIENCE).await.unwrap();
    }
    let left = sdk.shutdown(PATIENCE).await;
    assert!(left.is_complete(), "{left:?}");
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.rejected, stats.dropped), (traffic.events, 0, 0));
}

/// What `record` costs its caller, one call at a time, while the service takes the events.
pub(crate) async fn record_times(target: &Target<'_>, traffic: &Traffic) -> Times {
    let sdk = target.sdk().usage_endpoint(target.url()).build().unwrap();
    let events: Vec<_> = (0..traffic.events).map(|n| UsageEvent::from_proto(traffic.event(n))).collect();
    let mut times = Vec::with_capacity(events.len());
    for event in events {
        let call = Instant::now();
        sdk.usage().record(event);
        times.push(call.elapsed());
    }
    assert!(sdk.shutdown(PATIENCE).await.is_complete());
    assert_eq!(sdk.stats().usage.acknowledged, traffic.events);
    Times::new(times)
}

/// From when each batch was due to its acknowledgement, at a steady pace by several streams. A batch that goes out late
/// has waited all the same.
pub(crate) async fn usage_acknowledgements(channel: Channel, traffic: Arc<Traffic>, per_second: f64) -> Times {
    let start = Instant::now() + Duration::from_millis(100);
    let step = Duration::from_secs_f64(PACED_BATCH as f64 / per_second);
    let streams = (0..PACED_STREAMS).map(|stream| {
        let (mut client, traffic) = (UsageIngestServiceClient::new(channel.clone()), Arc::clone(&traffic));
        tokio::spawn(async move {
            let due: Arc<Mutex<HashMap<u64, Instant>>> = Arc::default();
            let waiting = Arc::clone(&due);
            let batches = u32::try_from(traffic.events).unwrap() / PACED_BATCH as u32;
            let requests = futures::stream::iter((stream..batches).step_by(PACED_STREAMS as usize).zip(1..)).then(
                move |(batch, batch_id)| {
                    let (traffic, due) = (Arc::clone(&traffic), Arc::clone(&due));
                    async move {
                        let at = start + step * batch;
                        let first = u64::from(batch) * PACED_BATCH as u64;
                        let events = (first..first + PACED_BATCH as u64).map(|n| traffic.event(n)).collect();
                        sleep_until(at.into()).await;
                        due.lock().unwrap().insert(batch_id, at);
                        usage::StreamUsageRequest { batch_id, events, dropped: Vec::new() }
                    }
                },
            );
            let mut answers = client.stream_usage(requests).await.unwrap().into_inner();
            let mut times = Vec::new();
            while let Some(answer) = answers.next().await {
                let answer = answer.unwrap();
                assert_eq!(answer.accepted, Some(PACED_BATCH as u32), "{answer:?}");
                times.push(waiting.lock().unwrap().remove(&answer.batch_id).unwrap().elapsed());
            }
            times
        })
    });
    let times = futures::future::join_all(streams).await;
    Times::new(times.into_iter().flat_map(Result::unwrap).collect())
}

/// A rank from 0 to 4,999, the low ones often.
fn rank(bits: u64) -> u64 {
    let unit = (bits >> 11) as f64 / (1_u64 << 53) as f64;
    (5_000_f64.powf(unit) as u64).min(4_999)
}

/// The `n`th of `events` administrative actions of the last 30 days.
fn action(n: u64, events: u64, start: SystemTime) -> gateway_sdk::AuditEventBuilder {
    let bits = mixed(n);
    let share = n as f64 / events as f64;
    AuditEvent::builder(
        Actor::user(format!("admin-{}", rank(bits) % 200)).display_name("somebody@example.com"),
        if bits.is_multiple_of(2) { "model.enabled" } else { "provider.updated" },
        Resource::new("model", format!("model-{}", mixed(bits) % 400)).name("A model"),
    )
    .occurred_at(start + Duration::from_micros(SPAN_US as u64).mul_f64(share))
    .reason(format!("OPS {n}"))
    .change("/limits/rpm", Some(json!(bits % 600)), Some(json!(bits % 900)))
    .request_id(format!("req-{n}"))
}

fn start() -> SystemTime {
    SystemTime::now() - Duration::from_micros(SPAN_US as u64)
}

/// Administrative actions by as many callers at once as a large platform has; each waits for its own acknowledgement.
pub(crate) async fn audit(target: &Target<'_>, events: u64) {
    let sdk = target.sdk().audit_endpoint(target.url()).build().unwrap();
    let start = start();
    futures::stream::iter(0..events)
        .map(|n| {
            let sdk = sdk.clone();
            async move { sdk.audit().record(action(n, events, start)).await.unwrap() }
        })
        .buffer_unordered(4_000)
        .for_each(|_| async {})
        .await;
    let left = sdk.shutdown(PATIENCE).await;
    assert!(left.is_complete(), "{left:?}");
}

/// The same at a steady pace: from when each action was due to its acknowledgement.
pub(crate) async fn audit_acknowledgements(target: &Target<'_>, events: u64, per_second: f64) -> Times {
    let sdk = target.sdk().audit_endpoint(target.url()).build().unwrap();
    let (first, begun) = (start(), Instant::now());
    let mut calls = JoinSet::new();
    for n in 0..events {
        let due = begun + Duration::from_secs_f64(n as f64 / per_second);
        sleep_until(due.into()).await;
        let sdk = sdk.clone();
        calls.spawn(async move {
            sdk.audit().record(action(n, events, first)).await.unwrap();
            due.elapsed()
        });
    }
    let times = calls.join_all().await;
    assert!(sdk.shutdown(PATIENCE).await.is_complete());
    Times::new(times)
}
