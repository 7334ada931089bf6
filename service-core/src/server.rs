//! A gRPC server from accept to drain, the same for every service.
//!
//! ```text
//! listener ─▶ connection ─▶ HTTP/2 ─▶ rpc layer ─▶ auth layer ─▶ router ─▶ service
//!             caps, hand-   keep-     drain, limits, time-    health, reflection,
//!             shakes, TLS   alive     outs, panics, status,   ours
//!                                     traces, metrics
//! ```
//!
//! What a stop looks like, with `shutdown` cancelled at 0:
//!
//! ```text
//! 0            health says NOT_SERVING; no new connections; new calls get
//!              UNAVAILABLE; streams see the same token, send their last answers
//!              and end; calls in progress go on
//! all done     serve returns, or
//! drain time   what is still open is cut, and serve returns
//! ```

pub(crate) mod connection;
mod health;
pub(crate) mod methods;
mod rpc;
mod security;
mod status;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};

pub use health::HealthCheck;
pub use security::Security;

use crate::auth::AuthLayer;
use crate::config::{ConfigError, EXIT_CONFIG, ServerConfig, millis};
use crate::telemetry::Metrics;

/// Largest batch of events that is accepted, in bytes as sent (contract).
pub const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// What services set as `max_decoding_message_size` where batches arrive: a full
/// batch and the fields around it.
pub const MAX_INGEST_MESSAGE_BYTES: usize = MAX_BATCH_BYTES + 64 * 1024;
/// The same where only queries arrive.
pub const MAX_QUERY_MESSAGE_BYTES: usize = 1024 * 1024;
/// What services set as `max_encoding_message_size`: a page (1 MiB and its last
/// row) or an export chunk, with room.
pub const MAX_RESPONSE_BYTES: usize = 8 * 1024 * 1024;

/// Streams of one connection that may fail for what the client sent, until it is cut
/// off; tonic's own default is no end of them (CVE-2025-8671, "made you reset").
const MAX_FAILED_STREAMS: usize = 1024;
/// Largest header list of a request; tonic's own default is 16 MiB.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// What a client may send on one stream before it is read.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// What a client may send on one connection before it is read.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How long connections have to notice that they were cut.
const CUT_PATIENCE: Duration = Duration::from_secs(1);

/// Opens a listener, or refuses an address that is not of this machine: without TLS
/// and authentication, both, anyone who can connect may read and write everything.
///
/// `prefix` and `key` name the variable and the key of the configuration, for the
/// message. The refusal is a [`ConfigError`] (exit status 64, see [`exit_code`]).
pub async fn bind(prefix: &str, key: &str, address: SocketAddr, security: &Security) -> anyhow::Result<TcpListener> {
    let why = match (&security.auth, security.is_complete()) {
        (_, true) => None,
        (Some(_), false) => Some("as long as TLS is not configured"),
        (None, false) => Some("as long as authentication is not configured"),
    };
    listen(prefix, key, address, why).await
}

/// Opens the listener for metrics, which have neither TLS nor authentication.
pub async fn bind_metrics(prefix: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    listen(prefix, "metrics_listen", address, Some("for metrics, which are open to whoever can connect")).await
}

/// With a reason why it has to be loopback, if it has to.
async fn listen(
    prefix: &str,
    key: &str,
    address: SocketAddr,
    loopback: Option<&'static str>,
) -> anyhow::Result<TcpListener> {
    let variable = format!("{prefix}_{}", key.to_uppercase());
    if let Some(why) = loopback.filter(|_| !address.ip().to_canonical().is_loopback()) {
        return Err(ConfigError::Refused(format!(
            "{key} ({variable}) is {address}, allowed are loopback addresses such as 127.0.0.1:{} {why}",
            address.port()
        ))
        .into());
    }
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}, which {key} ({variable}) says"))
}

/// An error and its causes in a line, without what was said already: drivers repeat
/// their causes.
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Exit status of a process that ends with an error: 64 for a configuration that
/// is refused, 1 for everything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ConfigError>() {
        Some(_) => EXIT_CONFIG,
        None => 1,
    }
}

/// Resolves when the process is asked to stop (SIGTERM or SIGINT).
///
/// It listens from this call on, not from the first poll: who has said that it is ready is stopped gracefully.
pub fn shutdown_signal() -> impl Future<Output = ()> + use<> {
    use tokio::signal::unix::{SignalKind, signal};
    let received = |kind: SignalKind| {
        let signals = signal(kind);
        async move {
            match signals {
                Ok(mut signals) => {
                    signals.recv().await;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot listen for a signal");
                    std::future::pending().await
                }
            }
        }
    };
    let (terminated, interrupted) = (received(SignalKind::terminate()), received(SignalKind::interrupt()));
    async move {
        tokio::select! {
            () = terminated => tracing::info!("SIGTERM: stopping"),
            () = interrupted => tracing::info!("SIGINT: stopping"),
        }
    }
}

/// Serves until `shutdown` is cancelled and everything open has ended or been cut.
///
/// `routes` holds the service's own generated servers, each with its message
/// limits set; health, reflection and the layers are added here. `health` has one
/// entry for each of them. Streams of the services must watch `shutdown`. A table of
/// roles that does not fit what is served is refused.
pub async fn serve(
    listener: TcpListener,
    mut routes: RoutesBuilder,
    health: Vec<HealthCheck>,
    config: &ServerConfig,
    security: Security,
    metrics: &Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let services: Vec<&'static str> = health.iter().map(HealthCheck::service).collect();
    if let Some(roles) = &security.roles {
        roles.check(&services)?;
    }
    if let Some(auth) = &security.auth {
        auth.start(metrics, &shutdown);
    }
    if let Some(tls) = &security.tls {
        tokio::spawn(tls.clone().watch(metrics.clone(), shutdown.clone()));
    }
    let (health_service, reporter) = health::start(health, config, metrics.clone(), shutdown.clone()).await;
    routes.add_service(health_service);
    let routes = add_reflection(routes, &services)?;

    let cut = CancellationToken::new();
    let incoming = connection::incoming(listener, config, security.tls, metrics.clone(), cut.clone());
    let auth = AuthLayer::new(security.auth, security.roles, security.limits, metrics.clone(), security.denials);
    let layer = rpc::RpcLayer::new(config, &services, metrics.clone(), shutdown.clone());
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(millis(config.keepalive_interval_ms)))
        .http2_keepalive_timeout(Some(millis(config.keepalive_timeout_ms)))
        .max_concurrent_streams(config.max_streams_per_connection.get())
        .http2_max_local_error_reset_streams(Some(MAX_FAILED_STREAMS))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .layer(layer)
        .layer(auth)
        .serve_with_incoming_shutdown(routes, incoming, shutdown.clone().cancelled_owned());
    tokio::pin!(serving);

    let drain_time = millis(config.drain_timeout_ms);
    let drained = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain_time).await;
    };
    let served = tokio::select! {
        served = &mut serving => served,
        () = drained => {
            tracing::warn!(?drain_time, "cutting what is still open");
            cut.cancel();
            // A connection that doesn't notice ends with the process.
            tokio::time::timeout(CUT_PATIENCE, serving).await.unwrap_or(Ok(()))
        }
    };
    reporter.abort();
    served.context("the server failed")
}

/// Reflection in both versions, listing what this server serves and nothing else
/// of the shared descriptor set.
fn add_reflection(mut routes: RoutesBuilder, services: &[&str]) -> anyhow::Result<Routes> {
    let infrastructure =
        ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
    let builder = || {
        let mut builder = tonic_reflection::server::Builder::configure();
        for descriptors in methods::DESCRIPTORS {
            builder = builder.register_encoded_file_descriptor_set(descriptors);
        }
        for service in services.iter().copied().chain(infrastructure) {
            builder = builder.with_service_name(service);
        }
        builder.include_reflection_service(false)
    };
    routes.add_service(builder().build_v1().context("reflection")?);
    routes.add_service(builder().build_v1alpha().context("reflection")?);
    Ok(routes.routes())
}

#[cfg(test)]
mod tests;
