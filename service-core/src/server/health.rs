//! `grpc.health.v1`, from a real probe of storage for each service, again and
//! again. The empty name stands for the whole server: all services together.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::config::{ServerConfig, millis};
use crate::database::Database;
use crate::error::{Error, Result};
use crate::group_commit::{GroupCommit, Witness};
use crate::telemetry::Metrics;

/// How one service is probed.
#[derive(Clone)]
pub struct HealthCheck {
    service: &'static str,
    probe: Arc<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>,
    /// Knows without a probe whether writing works.
    witness: Option<Arc<Witness>>,
    /// What must hold besides.
    condition: Option<Arc<dyn Fn() -> Result<()> + Send + Sync>>,
}

impl HealthCheck {
    /// `service` is the full gRPC name, as in `activity.audit.v1.AuditQueryService`.
    pub fn new<F, Fut>(service: &'static str, probe: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        Self { service, probe: Arc::new(move || Box::pin(probe())), witness: None, condition: None }
    }

    /// A service that writes through `commits`: while the writer vouches for the
    /// database nothing is probed, for a probe would wait behind its transactions
    /// and take load for an outage. An idle or failed writer is probed by a write.
    pub fn writer<B, R>(service: &'static str, commits: &GroupCommit<B, R>, database: Database) -> Self
    where
        B: Send + Sync + 'static,
        R: Send + 'static,
    {
        let probe = move || {
            let database = database.clone();
            async move { database.probe_writer().await }
        };
        Self { witness: Some(commits.witness()), ..Self::new(service, probe) }
    }

    /// The same, and not healthy where `condition` fails, whatever storage says.
    #[must_use]
    pub fn only_if(self, condition: impl Fn() -> Result<()> + Send + Sync + 'static) -> Self {
        Self { condition: Some(Arc::new(condition)), ..self }
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

    let mut prober = Prober { checks, reporter, metrics, probe_timeout, every, unwell: BTreeSet::new() };
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
    probe_timeout: Duration,
    every: Duration,
    /// Those that were told of in the log.
    unwell: BTreeSet<&'static str>,
}

impl Prober {
    async fn probe_all(&mut self) {
        let outcomes =
            join_all(self.checks.iter().map(|check| async { (check.service, self.probe(check).await) })).await;
        let mut all = true;
        for (service, outcome) in outcomes {
            let healthy = outcome.is_ok();
            // A line when it changes: an outage would fill the log otherwise.
            match outcome {
                Err(error) if self.unwell.insert(service) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(service, %error, cause, "not healthy");
                }
                Ok(()) if self.unwell.remove(service) => tracing::info!(service, "healthy again"),
                _ => {}
            }
            all &= healthy;
            self.metrics.probed(service, healthy);
            self.reporter.set_service_status(service, serving(healthy)).await;
        }
        self.reporter.set_service_status("", serving(all)).await;
    }

    async fn probe(&self, check: &HealthCheck) -> Result<()> {
        if let Some(condition) = &check.condition {
            condition()?;
        }
        let vouched = || check.witness.as_ref().is_some_and(|witness| witness.vouches(self.every));
        if vouched() {
            return Ok(());
        }
        match timeout(self.probe_timeout, (check.probe)()).await {
            Ok(outcome) => outcome,
            // A transaction that began after the probe did is what it waits for.
            Err(_) if vouched() => Ok(()),
            Err(_) => Err(Error::DeadlineExceeded(format!("no answer within {:?}", self.probe_timeout))),
        }
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

#[cfg(test)]
mod tests {
    use sea_orm::TransactionTrait as _;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::config::{DatabaseConfig, DatabaseUrl};
    use crate::group_commit::Options;

    struct Migrations;

    impl sea_orm_migration::MigratorTrait for Migrations {
        fn migrations() -> Vec<Box<dyn sea_orm_migration::MigrationTrait>> {
            vec![]
        }
    }

    #[tokio::test]
    async fn a_writer_that_works_is_healthy_though_a_probe_would_wait_behind_it() {
        let folder = tempfile::tempdir().expect("folder");
        let url = DatabaseUrl::sqlite(folder.path().join("sample.db"));
        let database = crate::database::connect(&url, &DatabaseConfig::default()).await.expect("connected");
        database.migrate::<Migrations>(&[]).await.expect("migrated");

        let metrics = Metrics::new("test");
        let gate = Arc::new(Semaphore::new(0));
        let shut = gate.clone();
        let options = Options {
            max_items: 1,
            max_delay: Duration::ZERO,
            max_queued_items: 10,
            commit_timeout: Duration::from_secs(60),
        };
        let commits: GroupCommit<bool, ()> = GroupCommit::spawn(&metrics, options, move |batches| {
            let shut = shut.clone();
            async move {
                shut.acquire().await.map_err(|_| Error::ShuttingDown)?.forget();
                if batches[0] { Ok(vec![()]) } else { Err(Error::ShuttingDown) }
            }
        });
        let check = HealthCheck::writer("ingest", &commits, database.clone());
        let prober = Prober {
            checks: vec![],
            reporter: HealthReporter::new(),
            metrics,
            probe_timeout: Duration::from_secs(1),
            every: Duration::from_secs(60),
            unwell: BTreeSet::new(),
        };
        prober.probe(&check).await.expect("idle: a write works");

        let held = database.writer.begin().await.expect("the only writer of SQLite");
        prober.probe(&check).await.expect_err("idle, and a write does not get through");
        let running = commits.submit(true, 1).await.expect("room");
        // Waits behind `held`; by its time-out the transaction is known to run.
        prober.probe(&check).await.expect("a transaction runs");
        gate.add_permits(2);
        running.await.expect("stored");
        prober.probe(&check).await.expect("stored a moment ago");

        commits.commit(false, 1).await.expect_err("fails");
        prober.probe(&check).await.expect_err("a writer that failed is probed by a write");
        held.rollback().await.expect("given back");
        prober.probe(&check).await.expect("and is healthy once that works");
        gate.add_permits(1);
        commits.commit(true, 1).await.expect("stored");
        let check = check.only_if(|| Err(Error::ShuttingDown));
        prober.probe(&check).await.expect_err("a condition fails, whatever the writer says");
    }
}
