//! Putting the service together, and running it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use service_core::auth::Denials;
use service_core::page::Sealer;
use service_core::server::{self, Security};
use service_core::telemetry::{Metrics, serve_metrics};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::ROLES;
use crate::checker;
use crate::config::{Config, ENV_PREFIX};
use crate::denials::Auditor;
use crate::grpc::Shared;
use crate::ingest;
use crate::pricing::PriceBook;
use crate::retention;
use crate::sealer;
use crate::store::Store;

/// A server that listens, with its store open and its schema up to date.
#[derive(Debug)]
pub struct Server {
    config: Config,
    listener: TcpListener,
    local_addr: SocketAddr,
    metrics_listener: Option<TcpListener>,
    security: Security,
    auditor: Auditor,
    store: Store,
    book: Arc<PriceBook>,
    seal_key: [u8; 32],
}

/// Reads the prices, opens the store, listens. What is refused is a
/// [`service_core::config::ConfigError`].
pub async fn bind(config: Config) -> anyhow::Result<Server> {
    config.retention.check()?;
    let security = Security::load(&config.tls, &config.auth, ROLES)?.limited(&config.limits)?;
    let auditor = Auditor::new(&config.audit, &config.denials)?;
    if security.authenticates() && !auditor.has_audit_log() {
        tracing::warn!("audit.endpoint is empty: refused calls are lines of this log, not entries of the audit log");
    }
    let listener = server::bind(ENV_PREFIX, "listen", config.listen, &security).await?;
    let local_addr = listener.local_addr().context("the address of the listener")?;
    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(server::bind_metrics(ENV_PREFIX, address).await?),
        None => None,
    };
    let book = PriceBook::load(config.prices_file.as_deref())
        .map_err(|error| service_core::config::ConfigError::Refused(error.to_string()))?;
    let store = Store::open(&config.database_url, &config.database, config.rollup.cache_bytes()).await?;
    let seal_key = store.seal_key().await?;
    let server = Server {
        config,
        listener,
        local_addr,
        metrics_listener,
        security,
        auditor,
        store,
        book: Arc::new(book),
        seal_key,
    };
    let metrics = server.metrics_addr().map_or_else(|| "none".to_owned(), |at| format!("http://{at}/metrics"));
    tracing::info!(listen = %local_addr, metrics, database = %server.config.database_url, "usage-service is ready to serve");
    Ok(server)
}

impl Server {
    /// Where gRPC is served; tells the port where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where metrics are served, if anywhere.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_listener.as_ref()?.local_addr().ok()
    }

    /// Serves until `shutdown` is cancelled; then drains, settles what was handed
    /// to the writer, and closes the store.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let metrics = Metrics::new("usage");
        sealer::made(metrics.registry().register(Box::new(self.store.partitions_not_made())));
        let stop_partitions = CancellationToken::new();
        let partitions = tokio::spawn(self.store.clone().keep_partitions_ahead(stop_partitions.clone()));
        let writer = ingest::start(self.store.clone(), &self.config.ingest, &metrics);
        let shared = Shared::new(
            self.store.clone(),
            self.book,
            Sealer::new(self.seal_key),
            writer.clone(),
            &self.config.ingest,
            metrics.clone(),
            shutdown.clone(),
        );
        let stop = CancellationToken::new();
        let (store, config) = (&self.store, &self.config);
        let background = [
            ("sealer", tokio::spawn(sealer::run(store.clone(), config.rollup.clone(), metrics.clone(), stop.clone()))),
            (
                "checker",
                tokio::spawn(checker::run(store.clone(), config.rollup.clone(), metrics.clone(), stop.clone())),
            ),
            (
                "retention",
                tokio::spawn(retention::run(store.clone(), config.retention.clone(), metrics.clone(), stop.clone())),
            ),
        ];
        let (routes, health) = shared.routes();
        let (denials, refused) = Denials::queue(&self.config.denials, &metrics);
        let (security, all_told) = (self.security.telling(denials), CancellationToken::new());
        let telling = tokio::spawn(self.auditor.record(refused, metrics.clone(), all_told.clone()));
        let stop_metrics = CancellationToken::new();
        let metrics_task = self
            .metrics_listener
            .map(|listener| tokio::spawn(serve_metrics(listener, metrics.clone(), stop_metrics.clone())));
        let served =
            server::serve(self.listener, routes, health, &self.config.server, security, &metrics, shutdown).await;
        all_told.cancel();
        if let Err(error) = telling.await {
            tracing::error!(%error, "refused calls were not recorded to the end");
        }
        // After the last stream: what it handed over is committed all the same.
        writer.close().await;
        stop.cancel();
        for (task, ended) in background {
            if let Err(error) = ended.await {
                tracing::warn!(task, %error, "a task in the background failed");
            }
        }
        stop_partitions.cancel();
        if let Err(error) = partitions.await {
            tracing::error!(%error, "the task that makes partitions failed");
        }
        stop_metrics.cancel();
        if let Some(task) = metrics_task
            && let Err(error) = task.await
        {
            tracing::warn!(%error, "the metrics listener failed");
        }
        self.store.close().await;
        served
    }
}
