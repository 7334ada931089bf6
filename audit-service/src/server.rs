//! The service put together: storage, writer, indexer, tails, and the gRPC server over them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use service_core::auth::Denials;
use service_core::error::Error;
use service_core::ingest_stream::StreamOptions;
use service_core::page::Sealer;
use service_core::server::{self as core, HealthCheck, Security};
use service_core::telemetry::{Metrics, serve_metrics};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::{self, Activity};
use crate::archive::Archive;
use crate::checker::{Checker, Trusted};
use crate::grpc::{self, GovernanceService, IngestService, QueryService, TrustService};
use crate::ingest::{Followers, Ingest};
use crate::prover::Prover;
use crate::retention::{self, Retention, Surroundings};
use crate::signer::Signer;
use crate::store::{Indexer, Store};
use crate::tail::Tails;
use crate::{Config, ENV_PREFIX, ROLES, denials};

/// A server that is ready: its ports are open, its schema is up to date.
#[derive(Debug)]
pub struct Server {
    config: Config,
    listener: TcpListener,
    metrics_listener: Option<TcpListener>,
    security: Security,
    store: Store,
    sealer: Sealer,
    signer: Option<Signer>,
    surroundings: Arc<dyn Surroundings>,
}

/// Opens the ports and the database. Clients that connect from now on wait until [`Server::serve`].
///
/// # Errors
/// A configuration that is refused is a [`service_core::config::ConfigError`].
pub async fn bind(config: Config) -> anyhow::Result<Server> {
    config.check()?;
    let security = Security::load(&config.tls, &config.auth, ROLES)?.limited(&config.limits)?;
    let listener = core::bind(ENV_PREFIX, "listen", config.listen, &security).await?;
    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(core::bind_metrics(ENV_PREFIX, address).await?),
        None => None,
    };
    let store = open_store(&config).await?;
    let sealer = Sealer::new(store.seal_key().await?);
    let signer = Signer::open(&config.log, &config.database_url, store.clone()).await?;
    let surroundings = Arc::new(retention::Real);
    let server = Server { config, listener, metrics_listener, security, store, sealer, signer, surroundings };
    let metrics = server.metrics_addr()?.map_or_else(|| "none".to_owned(), |at| format!("http://{at}/metrics"));
    let listen = server.local_addr()?;
    tracing::info!(%listen, metrics, database = %server.config.database_url, "audit-service is ready to serve");
    Ok(server)
}

/// Opens the database, and the archive.
///
/// # Errors
/// As [`bind`].
pub async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let archive = config.retention.archive(&config.database_url);
    // A folder that is not there and not needed is not made.
    let is_there = |place: &String| place.contains("://") || std::path::Path::new(place).exists();
    let archive = archive.filter(|place| config.retention.days.is_some() || is_there(place));
    let archive = archive.map(|place| Archive::open(&place, &config.retention.cloud)).transpose()?;
    let remover = config.retention.database_url.as_ref();
    Ok(Store::open_with(&config.database_url, &config.database, remover).await?.with_archive(archive))
}

/// What was signed, and by which keys, as is known in the folder of the configuration; nothing where there is none.
///
/// # Errors
/// A file there that cannot be read.
pub fn trusted(config: &Config) -> anyhow::Result<Trusted> {
    Signer::trusted_beside(&config.log, &config.database_url)
}

impl Server {
    /// Where gRPC is served.
    pub fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        self.listener.local_addr().context("the address of the listener")
    }

    /// The same server, whose retention has another clock, and is told where it stands: for tests.
    #[must_use]
    pub fn with_retention_in(self, surroundings: Arc<dyn Surroundings>) -> Self {
        Self { surroundings, ..self }
    }

    /// Where metrics are served, if they are.
    pub fn metrics_addr(&self) -> anyhow::Result<Option<SocketAddr>> {
        let address = self.metrics_listener.as_ref().map(TcpListener::local_addr).transpose();
        address.context("the address of the metrics listener")
    }

    /// Serves until `shutdown` is cancelled, and then until what is open has ended or the drain time is over.
    ///
    /// ```text
    /// shutdown ─▶ streams get their last answers ─▶ writer commits what it has ─▶ background tasks end ─▶ pools close
    /// ```
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { config, listener, metrics_listener, security, store, sealer, signer, surroundings } = self;
        let metrics = Metrics::new("audit");
        let tails = Tails::default();
        let behind = Arc::new(Notify::new());
        let followers = Followers::new(tails.clone(), behind.clone(), signer.clone());
        let ingest = Ingest::spawn(&metrics, &config.ingest, store.clone(), followers.clone());

        let prover = Prover::new(store.clone(), signer.clone());
        // Stopped after the server: metrics tell about the drain, and tails follow until they are ended.
        let stop = CancellationToken::new();
        let _stop_whatever_happens = stop.clone().drop_guard();
        let tasks = TaskTracker::new();
        tasks.spawn(Indexer::new(store.clone(), behind).run(stop.clone()));
        if let Some(signer) = signer.clone() {
            tasks.spawn(signer.run(stop.clone()));
        }
        let checker = Checker::new(store.clone(), signer.clone(), prover.clone(), &metrics);
        tasks.spawn(checker.run(stop.clone()));
        let released = Arc::new(Notify::new());
        let retention = Retention::new(
            &config.retention,
            &config.log.origin,
            store.clone(),
            followers.clone(),
            surroundings,
            released.clone(),
        );
        tasks.spawn(retention.run(&metrics, stop.clone()));
        if store.is_shared() {
            tasks.spawn(tails.clone().poll(store.clone(), stop.clone()));
        }
        if let Some(listener) = metrics_listener {
            let serving = serve_metrics(listener, metrics.clone(), stop.clone());
            tasks.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "metrics are not served any more");
                }
            });
        }

        let options = StreamOptions::from(&config.ingest);
        let ingest_service =
            IngestService::new(ingest.clone(), prover.clone(), options, metrics.clone(), shutdown.clone());
        let heartbeat = Duration::from_millis(config.tail.heartbeat_ms.get());
        let (activity, told) = Activity::new(&config.activity.instance, config.activity.pages);
        let query_service = QueryService::new(
            store.clone(),
            tails,
            sealer.clone(),
            prover.clone(),
            activity.clone(),
            heartbeat,
            shutdown.clone(),
        );
        let trust_service = TrustService::new(store.clone(), prover.clone());
        let governance_service =
            GovernanceService::new(store.clone(), followers, sealer, config.retention.clone(), released);
        let routes = grpc::routes(ingest_service, query_service, trust_service, governance_service);
        let name = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
        activity.of_service("audit_log.service_started", &name, configured(&config, &store, signer.as_ref()));
        let health = health(&store, &ingest, signer);
        let (denials, refused) = Denials::queue(&config.denials, &metrics);
        let (security, all_told) = (security.telling(denials), CancellationToken::new());
        let recording = denials::record(refused, config.denials.instance, ingest.clone(), all_told.clone());
        let recording = tokio::spawn(recording);
        let telling = tokio::spawn(told.record(ingest.clone(), all_told.clone()));
        let served = core::serve(listener, routes, health, &config.server, security, &metrics, shutdown).await;

        let outcome = if served.is_ok() { "asked to" } else { "failed" };
        activity.of_service("audit_log.service_stopped", &name, serde_json::json!({ "why": outcome }));
        all_told.cancel();
        if let Err(error) = recording.await {
            tracing::error!(%error, "refused calls were not recorded to the end");
        }

        activity::recorded(telling).await;

        ingest.close().await;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        store.close().await;
        served
    }
}

/// Of the configuration, what counts for whoever checks the log.
fn configured(config: &Config, store: &Store, signer: Option<&Signer>) -> serde_json::Value {
    let keys = signer.map(Signer::verifiers).unwrap_or_default();
    let retention = &config.retention;
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "origin": config.log.origin,
        "keys": keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "checkpoint_interval_ms": config.log.checkpoint_interval_ms.to_string(),
        "silence_interval_ms": config.log.silence_interval_ms.to_string(),
        "retention_days": retention.days.map(|days| days.to_string()),
        "retention_profile": retention.profile.map(|profile| profile.name()),
        "archive": store.archive().map(Archive::shown),
        "pages_are_recorded": config.activity.pages,
    })
}

/// Taking events in is healthy while a write becomes durable and no log is damaged, answering and proving while reading
/// works; and nothing is while the database does not fit what was signed.
fn health(store: &Store, ingest: &Ingest, signer: Option<Signer>) -> Vec<HealthCheck> {
    let reads = |service| {
        let db = store.database().clone();
        HealthCheck::new(service, move || {
            let db = db.clone();
            async move { db.probe_reader().await }
        })
    };
    let fits = {
        let signer = signer.clone();
        move || signer.as_ref().map_or(Ok(()), Signer::check)
    };
    let takes = {
        let (store, fits) = (store.clone(), fits.clone());
        move || {
            let mut damages = store.damages().into_iter();
            let damaged = damages.find(|((_, kind), _)| kind.stops_writers()).map(|((instance, _), what)| {
                Error::DataLoss(format!("the log of instance {instance:?} is damaged: {what}"))
            });
            fits().and(damaged.map_or(Ok(()), Err))
        }
    };
    let mut checks = vec![ingest.health(grpc::INGEST_SERVICE, store).only_if(takes)];
    checks.extend(
        [reads(grpc::QUERY_SERVICE), reads(grpc::TRUST_SERVICE), reads(grpc::GOVERNANCE_SERVICE)]
            .map(|check| check.only_if(fits.clone())),
    );
    checks
}
