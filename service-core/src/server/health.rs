//! `grpc.health.v1`, from a real probe of storage for each service, again and
//! again. The empty name stands for the whole server: all services together.

use std::fmt;
use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::config::{ServerConfig, millis};
use crate::error::{Error, Result};
use crate::telemetry::Metrics;

/// How one service is probed.
#[derive(Clone)]
pub struct HealthCheck {
    service: &'static str,
    probe: Arc<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>,
}

impl HealthCheck {
    /// `service` is the full gRPC name, as in `activity.audit.v1.AuditQueryService`.
    pub fn new<F, Fut>(service: &'static str, probe: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        Self { service, probe: Arc::new(move || Box::pin(probe())) }
    }

    /// The full gRPC name.
    pub fn service(&self) -> &'static str {
        self.service
    }
}

impl fmt::Debug for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HealthCheck").field(&self.service).finish()
    }
}

/// The health service, and the task that keeps it true. The first probes have
/// ended when this returns, so that nothing is said before it is known.
pub(super) async fn start(
    checks: Vec<HealthCheck>,
    config: &ServerConfig,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> (HealthServer<HealthService>, JoinHandle<()>) {
    let reporter = HealthReporter::new();
    let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let probe_timeout = millis(config.health_timeout_ms);
    let every = millis(config.health_interval_ms);

    let prober = Prober { checks, reporter, metrics, probe_timeout };
    prober.probe_all().await;
    let task = tokio::spawn(async move {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = ticks.tick() => prober.probe_all().await,
            }
        }
        prober.set_all(ServingStatus::NotServing).await;
    });
    (service, task)
}

struct Prober {
    checks: Vec<HealthCheck>,
    reporter: HealthReporter,
    metrics: Metrics,
    probe_timeout: std::time::Duration,
}

impl Prober {
    async fn probe_all(&self) {
        let outcomes = join_all(self.checks.iter().map(|check| async {
            let outcome = timeout(self.probe_timeout, (check.probe)()).await.unwrap_or_else(|_| {
                let text = format!("no answer within {:?}", self.probe_timeout);
                Err(Error::DeadlineExceeded(text))
            });
            (check.service, outcome)
        }))
        .await;
        let mut all = true;
        for (service, outcome) in outcomes {
            let healthy = outcome.is_ok();
            if let Err(error) = outcome {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(service, %error, cause, "not healthy");
            }
            all &= healthy;
            self.metrics.probed(service, healthy);
            self.reporter.set_service_status(service, serving(healthy)).await;
        }
        self.reporter.set_service_status("", serving(all)).await;
    }

    async fn set_all(&self, status: ServingStatus) {
        for check in &self.checks {
            self.reporter.set_service_status(check.service, status).await;
        }
        self.reporter.set_service_status("", status).await;
    }
}

fn serving(healthy: bool) -> ServingStatus {
    if healthy { ServingStatus::Serving } else { ServingStatus::NotServing }
}
