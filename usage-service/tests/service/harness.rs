//! A running service, and events to send.

use std::time::{Duration, SystemTime};

use activity_proto::common::v1::{Interval, TimeRange, time_range::Range};
use activity_proto::usage::v1::pricing_service_client::PricingServiceClient;
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{RecordUsageRequest, RecordUsageResponse, RequestStatus, Tokens, UsageEvent};
use prost_types::Timestamp;
use service_core::config::DatabaseUrl;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;
use usage_service::Config;
use uuid::Uuid;

pub(crate) struct Service {
    pub(crate) ingest: UsageIngestServiceClient<Channel>,
    pub(crate) query: UsageQueryServiceClient<Channel>,
    pub(crate) prices: PricingServiceClient<Channel>,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
    folder: TempDir,
}

pub(crate) fn config(folder: &TempDir) -> Config {
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics_listen: None,
        database_url: DatabaseUrl::sqlite(folder.path().join("usage.db")),
        ..Config::default()
    }
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(folder: TempDir) -> Self {
        Self::start_as(config(&folder), folder).await
    }

    pub(crate) async fn start_as(config: Config, folder: TempDir) -> Self {
        let server = usage_service::bind(config).await.unwrap();
        let address = format!("http://{}", server.local_addr());
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        Self {
            ingest: UsageIngestServiceClient::new(channel.clone()),
            query: UsageQueryServiceClient::new(channel.clone()),
            prices: PricingServiceClient::new(channel),
            shutdown,
            serving,
            folder,
        }
    }

    /// Stops it in order, and starts another on the same data.
    pub(crate) async fn restart(self) -> Self {
        let config = config(&self.folder);
        self.restart_as(config).await
    }

    /// The same, otherwise configured.
    pub(crate) async fn restart_as(self, config: Config) -> Self {
        self.shutdown.cancel();
        drop((self.ingest, self.query, self.prices));
        self.serving.await.unwrap().unwrap();
        Self::start_as(config, self.folder).await
    }

    pub(crate) async fn record(&self, events: Vec<UsageEvent>) -> RecordUsageResponse {
        let request = RecordUsageRequest { events };
        self.ingest.clone().record_usage(request).await.unwrap().into_inner()
    }

    /// Records events of which each must be new.
    pub(crate) async fn record_new(&self, events: Vec<UsageEvent>) {
        for events in events.chunks(1_000) {
            let answer = self.record(events.to_vec()).await;
            assert_eq!(answer.rejected, []);
            assert_eq!(answer.accepted, Some(events.len() as u32));
        }
    }
}

/// 2026-01-05T12:00:00Z, a Monday.
pub(crate) const NOON: i64 = 1_767_614_400;

pub(crate) fn at(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
}

/// A UUIDv7 of that time whose other bits are `n`.
pub(crate) fn id(seconds: i64, n: u64) -> String {
    let millis = u128::from(seconds.unsigned_abs()) * 1_000;
    Uuid::from_u128((millis << 80) | (7 << 76) | (2 << 62) | u128::from(n)).to_string()
}

/// The `n`th request, `n` seconds before noon.
pub(crate) fn event(n: u64) -> UsageEvent {
    let seconds = NOON - n as i64;
    UsageEvent {
        id: id(seconds, n),
        occurred_at: Some(Timestamp::from(at(seconds))),
        instance_id: "eu-1".into(),
        user_id: format!("user-{}", n % 3),
        team_id: "team".into(),
        api_key_id: format!("key-{}", n % 2),
        provider: "openai".into(),
        requested_model: "gpt-4o".into(),
        status: RequestStatus::Ok.into(),
        tokens: Some(Tokens { input_uncached: Some(1_000), output: Some(10), ..Tokens::default() }),
        ..UsageEvent::default()
    }
}

pub(crate) fn range(start: i64, end: i64) -> Option<TimeRange> {
    let stamp = |seconds| Some(Timestamp { seconds, nanos: 0 });
    Some(TimeRange {
        range: Some(Range::Interval(Interval { start: stamp(start), end: stamp(end) })),
        time_zone: String::new(),
    })
}

/// The day around noon.
pub(crate) fn day() -> Option<TimeRange> {
    range(NOON - 43_200, NOON + 43_200)
}

/// The reason of a refusal, and its first field.
pub(crate) fn refusal(status: &Status) -> (String, String) {
    let details = status.get_error_details();
    let reason = details.error_info().unwrap().reason.clone();
    let field = details.bad_request().and_then(|bad| bad.field_violations.first());
    (reason, field.map(|violation| violation.field.clone()).unwrap_or_default())
}
