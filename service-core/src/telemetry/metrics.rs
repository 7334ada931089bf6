//! Prometheus metrics: what is measured, and the page that shows it.
//!
//! | name | labels | what |
//! | --- | --- | --- |
//! | `activity_rpc_total` | method, code | calls and streams that have ended |
//! | `activity_rpc_seconds` | method | how long they took (streams: were open) |
//! | `activity_rpc_in_progress` | | calls and streams open now |
//! | `activity_group_commit_batches` | | batches in one transaction |
//! | `activity_group_commit_events` | | events in one transaction |
//! | `activity_group_commit_seconds` | | time of one transaction |
//! | `activity_group_commit_queue_events` | | events that wait for the writer |
//! | `activity_events_total` | result | events that were answered: `accepted`, `duplicate`, or the reason why not |
//! | `activity_events_ahead_total` | | accepted events that happened later than this server's clock: clocks differ |
//! | `activity_storage_errors_total` | kind | database errors, of the whole process |
//! | `activity_connections` | | connections open now, handshakes included |
//! | `activity_connections_refused_total` | why | closed before a call: `peer_cap`, `handshake` |
//! | `activity_auth_total` | outcome | checks of credentials: `cached`, `verified`, `refused`, `busy` |
//! | `activity_denied_total` | why | what was refused to callers: `credential`, `role`, `instance`, `user`, `hidden` |
//! | `activity_denials_left_out_total` | | of these, those that were not recorded, for there were too many |
//! | `activity_limited_total` | limit | calls and streams refused to one caller: `calls`, `calls_per_second`, `streams`, `exports`, `tails`, `ingest_bytes` |
//! | `activity_ingest_bytes` | | bytes of batches on their way, as sent; compressed ones count as the largest |
//! | `activity_reloads_total` | what, outcome | certificates and keys read again |
//! | `activity_healthy` | probe | 1 while the probe of storage succeeds |
//!
//! All but the storage errors also carry `service`.

use std::sync::LazyLock;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::{Reason, reason_name};

/// From a call that finds everything in memory to one at its time limit.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
const BATCHES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];
const EVENTS: [f64; 10] = [1.0, 4.0, 16.0, 64.0, 250.0, 500.0, 1_000.0, 2_000.0, 4_000.0, 10_000.0];

/// Counted where errors are classified, which knows no service.
static STORAGE_ERRORS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    made(IntCounterVec::new(Opts::new("activity_storage_errors_total", "database errors by kind"), &["kind"]))
});

/// Counts a database error.
pub(crate) fn storage_error(kind: &str) {
    STORAGE_ERRORS.with_label_values(&[kind]).inc();
}

/// The metrics of one service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    rpcs: IntCounterVec,
    rpc_seconds: HistogramVec,
    rpcs_in_progress: IntGauge,
    healthy: IntGaugeVec,
    group: GroupMetrics,
    events: IntCounterVec,
    events_ahead: IntCounter,
    connections: IntGauge,
    connections_refused: IntCounterVec,
    auth: IntCounterVec,
    denied: IntCounterVec,
    denials_left_out: IntCounter,
    limited: IntCounterVec,
    ingest_bytes: IntGauge,
    reloads: IntCounterVec,
}

/// The part that [`crate::group_commit`] feeds.
#[derive(Debug, Clone)]
pub struct GroupMetrics {
    batches: Histogram,
    events: Histogram,
    seconds: Histogram,
    queue_events: IntGauge,
}

impl Metrics {
    /// Metrics with the label `service`.
    pub fn new(service: &str) -> Self {
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("service", service);
        let histogram =
            |name: &str, help: &str, buckets: &[f64]| HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        let metrics = Self {
            rpcs: made(IntCounterVec::new(
                opts("activity_rpc_total", "calls and streams that have ended"),
                &["method", "code"],
            )),
            rpc_seconds: made(HistogramVec::new(
                histogram("activity_rpc_seconds", "duration of calls and streams", &SECONDS),
                &["method"],
            )),
            rpcs_in_progress: made(IntGauge::with_opts(opts("activity_rpc_in_progress", "calls and streams open now"))),
            healthy: made(IntGaugeVec::new(
                opts("activity_healthy", "1 while the probe of storage succeeds"),
                &["probe"],
            )),
            events: made(IntCounterVec::new(opts("activity_events_total", "events that were answered"), &["result"])),
            events_ahead: made(IntCounter::with_opts(opts(
                "activity_events_ahead_total",
                "accepted events that happened later than this server's clock",
            ))),
            connections: made(IntGauge::with_opts(opts("activity_connections", "connections open now"))),
            connections_refused: made(IntCounterVec::new(
                opts("activity_connections_refused_total", "connections closed before a call"),
                &["why"],
            )),
            auth: made(IntCounterVec::new(opts("activity_auth_total", "checks of credentials"), &["outcome"])),
            denied: made(IntCounterVec::new(opts("activity_denied_total", "what was refused to callers"), &["why"])),
            denials_left_out: made(IntCounter::with_opts(opts(
                "activity_denials_left_out_total",
                "refusals that were not recorded, for there were too many",
            ))),
            limited: made(IntCounterVec::new(
                opts("activity_limited_total", "calls and streams refused to one caller"),
                &["limit"],
            )),
            ingest_bytes: made(IntGauge::with_opts(opts("activity_ingest_bytes", "bytes of batches on their way"))),
            reloads: made(IntCounterVec::new(
                opts("activity_reloads_total", "certificates and keys read again"),
                &["what", "outcome"],
            )),
            group: GroupMetrics {
                batches: made(Histogram::with_opts(histogram(
                    "activity_group_commit_batches",
                    "batches in one transaction",
                    &BATCHES,
                ))),
                events: made(Histogram::with_opts(histogram(
                    "activity_group_commit_events",
                    "events in one transaction",
                    &EVENTS,
                ))),
                seconds: made(Histogram::with_opts(histogram(
                    "activity_group_commit_seconds",
                    "time of one transaction",
                    &SECONDS,
                ))),
                queue_events: made(IntGauge::with_opts(opts(
                    "activity_group_commit_queue_events",
                    "events that wait for the writer",
                ))),
            },
            registry,
        };
        let collectors: [Box<dyn Collector>; 19] = [
            Box::new(STORAGE_ERRORS.clone()),
            Box::new(metrics.rpcs.clone()),
            Box::new(metrics.rpc_seconds.clone()),
            Box::new(metrics.rpcs_in_progress.clone()),
            Box::new(metrics.healthy.clone()),
            Box::new(metrics.events.clone()),
            Box::new(metrics.events_ahead.clone()),
            Box::new(metrics.connections.clone()),
            Box::new(metrics.connections_refused.clone()),
            Box::new(metrics.auth.clone()),
            Box::new(metrics.denied.clone()),
            Box::new(metrics.denials_left_out.clone()),
            Box::new(metrics.limited.clone()),
            Box::new(metrics.ingest_bytes.clone()),
            Box::new(metrics.reloads.clone()),
            Box::new(metrics.group.batches.clone()),
            Box::new(metrics.group.events.clone()),
            Box::new(metrics.group.seconds.clone()),
            Box::new(metrics.group.queue_events.clone()),
        ];
        for collector in collectors {
            made(metrics.registry.register(collector));
        }
        metrics
    }

    /// For metrics that only one service has.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything in Prometheus' text format.
    pub fn encode(&self) -> String {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("# {error}\n"),
        }
    }

    pub(crate) fn group(&self) -> &GroupMetrics {
        &self.group
    }

    pub(crate) fn rpc_begun(&self) {
        self.rpcs_in_progress.inc();
    }

    pub(crate) fn rpc_ended(&self, method: &str, code: &str, took: Duration) {
        self.rpcs_in_progress.dec();
        self.rpcs.with_label_values(&[method, code]).inc();
        self.rpc_seconds.with_label_values(&[method]).observe(took.as_secs_f64());
    }

    /// What became of the events of a batch: how many are new, how many were known, and why each other was refused.
    pub fn answered(&self, accepted: u32, duplicate: u32, refused: impl IntoIterator<Item = Reason>) {
        self.events.with_label_values(&["accepted"]).inc_by(accepted.into());
        self.events.with_label_values(&["duplicate"]).inc_by(duplicate.into());
        for reason in refused {
            self.events.with_label_values(&[reason_name(reason)]).inc();
        }
    }

    /// Events of a batch that happened later than now by this server's clock, and were taken all the same.
    pub fn ahead(&self, events: usize) {
        self.events_ahead.inc_by(u64::try_from(events).unwrap_or(u64::MAX));
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.inc();
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.dec();
    }

    pub(crate) fn connection_refused(&self, why: &str) {
        self.connections_refused.with_label_values(&[why]).inc();
    }

    pub(crate) fn authenticated(&self, outcome: &str) {
        self.auth.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn denied(&self, why: &str) {
        self.denied.with_label_values(&[why]).inc();
    }

    /// A refusal that could not be recorded.
    pub fn denial_left_out(&self) {
        self.denials_left_out.inc();
    }

    pub(crate) fn limited(&self, limit: &str) {
        self.limited.with_label_values(&[limit]).inc();
    }

    pub(crate) fn ingest_bytes(&self, change: i64) {
        self.ingest_bytes.add(change);
    }

    pub(crate) fn reloaded(&self, what: &str, well: bool) {
        self.reloads.with_label_values(&[what, if well { "ok" } else { "failed" }]).inc();
    }

    pub(crate) fn probed(&self, probe: &str, healthy: bool) {
        self.healthy.with_label_values(&[probe]).set(i64::from(healthy));
    }
}

impl GroupMetrics {
    pub(crate) fn queued(&self, events: usize) {
        self.queue_events.add(signed(events));
    }

    pub(crate) fn taken(&self, events: usize) {
        self.queue_events.sub(signed(events));
    }

    pub(crate) fn committed(&self, batches: usize, events: usize, took: Duration) {
        self.batches.observe(batches as f64);
        self.events.observe(events as f64);
        self.seconds.observe(took.as_secs_f64());
    }
}

fn signed(events: usize) -> i64 {
    i64::try_from(events).unwrap_or(i64::MAX)
}

#[expect(
    clippy::expect_used,
    reason = "names and labels are literals of this file, each registered once; a test makes them all"
)]
fn made<T>(metric: Result<T, prometheus::Error>) -> T {
    metric.expect("metric names are valid and distinct")
}

/// Serves `GET /metrics` over plain HTTP until `shutdown`.
pub async fn serve_metrics(
    listener: TcpListener,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let page = get(move || {
        let metrics = metrics.clone();
        async move { ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics.encode()) }
    });
    let router = axum::Router::new().route("/metrics", page);
    tokio::select! {
        served = async { axum::serve(listener, router).await } => served,
        // A scrape that is cut off is repeated by the scraper.
        () = shutdown.cancelled() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn two_services_in_one_process_have_their_own_metrics() {
        let (audit, usage) = (Metrics::new("audit"), Metrics::new("usage"));
        audit.rpc_begun();
        audit.rpc_ended("/a/B", "OK", Duration::from_millis(3));
        audit.group().queued(5);
        audit.group().taken(2);
        storage_error("test_kind");
        let text = audit.encode();
        for line in [
            r#"activity_rpc_total{code="OK",method="/a/B",service="audit"} 1"#,
            r#"activity_rpc_seconds_bucket{method="/a/B",service="audit",le="0.005"} 1"#,
            r#"activity_group_commit_queue_events{service="audit"} 3"#,
            r#"activity_storage_errors_total{kind="test_kind"} 1"#,
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
        assert!(!usage.encode().contains("/a/B"));
    }

    #[tokio::test]
    async fn the_page_is_served_over_http_until_shutdown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve_metrics(listener, Metrics::new("x"), shutdown.clone()));
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("activity_rpc_in_progress{service=\"x\"} 0"), "{answer}");
        shutdown.cancel();
        serving.await.expect("joined").expect("served");
    }
}
