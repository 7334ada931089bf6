//! The server's side of TLS 1.2 and 1.3: its certificate, whom it takes for a client,
//! and both taken over again when the files change.
//!
//! ```text
//! files ──every reload_interval──▶ changed? ──▶ read, check ──▶ new hand-shakes use it
//!                                                  └─▶ not valid: the old one stays, error, metric
//! ```
//!
//! A connection keeps what it began with, until its client's certificate expires. Sessions are resumed only under the
//! configuration that made them, so a root that was taken out of the file lets nobody
//! in again.

mod validity;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection};
use tokio_util::sync::CancellationToken;

use crate::config::{ClientCertificates, ConfigError, TlsConfig, millis};
use crate::files::{Stamp, stamp};
use crate::telemetry::Metrics;

/// The names (SANs) in a client's certificate that TLS has checked, as in
/// `dns:gateway-1.example.com` and `uri:spiffe://example.com/gateway`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// In the order of the certificate, DNS names first.
    pub names: Arc<[String]>,
    /// From when on it does not hold.
    pub(crate) expires_at_us: i64,
}

impl PeerCertificate {
    /// The certificate of a connection whose hand-shake has ended.
    pub(crate) fn of(connection: &ServerConnection) -> Option<Self> {
        let certificate = connection.peer_certificates()?.first()?;
        // What cannot be read has ended.
        let expires_at_us = validity::ends_at_us(certificate).unwrap_or(0);
        let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
        let dns = certificate.valid_dns_names().map(|name| format!("dns:{}", name.to_ascii_lowercase()));
        let uris = certificate.valid_uri_names().map(|name| format!("uri:{name}"));
        Some(Self { names: dns.chain(uris).collect(), expires_at_us })
    }
}

/// What new connections are answered with.
pub(crate) struct ServerTls {
    config: TlsConfig,
    current: RwLock<Arc<ServerConfig>>,
    /// Of the files that `current` was first made of.
    first: Vec<Option<Stamp>>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("config", &self.config).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files; `None` if there is no certificate to be shown.
    pub(crate) fn load(config: &TlsConfig) -> Result<Option<Arc<Self>>, ConfigError> {
        let empty = |path: &Path| path.as_os_str().is_empty();
        let refused = |why: &str| Err(ConfigError::Refused(why.to_owned()));
        if empty(&config.certificate_file) {
            if !empty(&config.key_file) || config.client_certificates != ClientCertificates::Off {
                return refused(
                    "tls.certificate_file is empty, required where tls.key_file or client certificates are configured",
                );
            }
            return Ok(None);
        }
        if empty(&config.key_file) {
            return refused("tls.key_file is empty, required beside tls.certificate_file");
        }
        if empty(&config.client_ca_file) != (config.client_certificates == ClientCertificates::Off) {
            return refused(
                "tls.client_ca_file and tls.client_certificates (optional, required) are configured together or not at all",
            );
        }
        let first = stamps(config);
        let current = read(config).map_err(|error| ConfigError::Refused(format!("tls: {error:#}")))?;
        Ok(Some(Arc::new(Self { config: config.clone(), current: RwLock::new(current), first })))
    }

    /// For a new hand-shake.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes new files over until `shutdown`.
    pub(crate) async fn watch(self: Arc<Self>, metrics: Metrics, shutdown: CancellationToken) {
        let every: Duration = millis(self.config.reload_interval_ms);
        let mut seen = self.first.clone();
        // What is wrong is told once.
        let mut told = String::new();
        while shutdown.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            // Before reading: what changes meanwhile is seen the next time.
            let now = stamps(&self.config);
            if now == seen {
                continue;
            }
            match read(&self.config) {
                Ok(config) => {
                    seen = now;
                    told.clear();
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                    metrics.reloaded("tls", true);
                    tracing::info!("the certificate was read again");
                }
                // They are tried again: who may read a file changes without a trace in its stamp.
                Err(error) => {
                    metrics.reloaded("tls", false);
                    let error = format!("{error:#}");
                    if error != told {
                        tracing::error!(error, "new TLS files are not usable; the old ones stay");
                    }
                    told = error;
                }
            }
        }
    }
}

fn paths(config: &TlsConfig) -> [&PathBuf; 3] {
    [&config.certificate_file, &config.key_file, &config.client_ca_file]
}

fn stamps(config: &TlsConfig) -> Vec<Option<Stamp>> {
    paths(config).into_iter().map(|path| stamp(path)).collect()
}

/// Ours by name: a process may have several providers compiled in.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificates of a PEM file, at least one.
pub(crate) fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let unreadable = || format!("certificates of {}", path.display());
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(anyhow::Error::new)
        .with_context(unreadable)?;
    ensure!(!certificates.is_empty(), "{} holds no certificate", path.display());
    Ok(certificates)
}

/// The private key of a PEM file.
fn private_key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    let text = std::fs::read(path).with_context(|| format!("private key of {}", path.display()))?;
    // What the parser says of a key is not repeated.
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| anyhow::anyhow!("{} holds no private key", path.display()))
}

/// The roots of a PEM file.
pub(crate) fn roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("a certificate of {}", path.display()))?;
    }
    Ok(roots)
}

fn read(config: &TlsConfig) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = certificates(&config.certificate_file)?;
    let key = private_key(&config.key_file)?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = if config.client_certificates == ClientCertificates::Off {
        builder.with_no_client_auth()
    } else {
        let roots = Arc::new(roots(&config.client_ca_file)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let verifier = match config.client_certificates {
            ClientCertificates::Required => verifier,
            _ => verifier.allow_unauthenticated(),
        };
        builder.with_client_cert_verifier(verifier.build().context("client certificates")?)
    };
    let mut made = builder.with_single_cert(chain, key).with_context(|| {
        format!("{} and {} do not fit each other", config.certificate_file.display(), config.key_file.display())
    })?;
    made.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(made))
}
