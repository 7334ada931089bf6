//! One GET, bounded in time and size, without redirects: for keys from an address.
//!
//! hyper alone, which tonic brings, over tokio-rustls: reqwest and ureq bring a pool,
//! proxies, redirects and cookies that a read every few minutes has no use for.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::ConfigError;
use crate::tls;

/// Key sets are a few KiB.
const MAX_BYTES: usize = 256 * 1024;

/// Where to read, and whom to believe.
pub(super) struct Fetcher {
    uri: Uri,
    host: String,
    port: u16,
    /// `None` for plain HTTP.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
}

impl Fetcher {
    /// `ca_file` empty: the roots of Mozilla.
    pub(super) fn new(key: &str, url: &str, ca_file: &Path, timeout: Duration) -> Result<Self, ConfigError> {
        Self::checked(url, ca_file, timeout).map_err(|error| ConfigError::Refused(format!("{key}: {error:#}")))
    }

    fn checked(url: &str, ca_file: &Path, timeout: Duration) -> anyhow::Result<Self> {
        // The address is not repeated: somebody may have put a password into it.
        let uri: Uri = url.parse().ok().context("not an address such as https://login.example.com/keys")?;
        let authority = uri.authority().context("an address without a host")?;
        ensure!(!authority.as_str().contains('@'), "an address with a user in it");
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let (port, tls) = match uri.scheme_str() {
            Some("https") => {
                let roots = if ca_file.as_os_str().is_empty() {
                    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
                } else {
                    tls::roots(ca_file)?
                };
                let config = ClientConfig::builder_with_provider(tls::provider())
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let name = ServerName::try_from(host.clone()).context("the host of the address")?;
                (443, Some((TlsConnector::from(Arc::new(config)), name)))
            }
            Some("http") if host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) => (80, None),
            Some("http") => {
                bail!("http:// to another machine, allowed is https://: whoever changes the answer makes tokens")
            }
            _ => bail!("allowed are https:// addresses"),
        };
        let port = authority.port_u16().unwrap_or(port);
        Ok(Self { host, port, tls, uri, timeout })
    }

    /// The body of a 200.
    pub(super) async fn get(&self) -> anyhow::Result<Bytes> {
        let fetched = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.context("cannot connect")?;
            match &self.tls {
                None => self.ask(tcp).await,
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), tcp).await.context("TLS hand-shake")?;
                    self.ask(stream).await
                }
            }
        };
        tokio::time::timeout(self.timeout, fetched).await.context("no answer in time")?
    }

    async fn ask<S>(&self, stream: S) -> anyhow::Result<Bytes>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(header::HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let answered = async {
            let response = sender.send_request(request).await?;
            ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
            let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
            Ok(body.map_err(|error| anyhow::anyhow!("the body: {error}"))?.to_bytes())
        };
        // Polled here rather than in a task: nothing outlives the time-out.
        let mut connection = std::pin::pin!(connection);
        tokio::pin!(answered);
        tokio::select! {
            answer = &mut answered => answer,
            ended = &mut connection => {
                ended?;
                answered.await
            }
        }
    }
}
