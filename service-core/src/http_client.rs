//! One HTTP request on a connection of its own, bounded in time and in what is read of the answer, without redirects.
//!
//! hyper alone, which tonic brings, over tokio-rustls: reqwest and ureq bring a pool, proxies, redirects and cookies that a
//! read every few minutes, or an object of an archive, has no use for.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::tls;

/// Where clouds tell the machines of theirs what they may; it is beside the machine, and has no certificate.
const GOOGLE_METADATA: &str = "metadata.google.internal";

/// Asks servers. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    tls: TlsConnector,
    timeout: Duration,
    max_bytes: usize,
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// What came of a request that was not answered.
#[derive(Debug)]
pub enum Unanswered {
    /// Nothing was sent.
    NotSent(anyhow::Error),
    /// It was sent, or a part of it, and the answer broke off or is too large.
    Broken(anyhow::Error),
    /// No answer in time.
    Late,
}

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent(cause) | Self::Broken(cause) => write!(f, "{cause:#}"),
            Self::Late => f.write_str("no answer in time"),
        }
    }
}

impl std::error::Error for Unanswered {}

/// A host as it is connected to: without the brackets of an IPv6 address.
pub fn host(uri: &Uri) -> Option<&str> {
    uri.host().map(|host| host.trim_start_matches('[').trim_end_matches(']'))
}

/// Whether a host may be asked in plain text: it is this machine, or the cloud beside it.
fn is_beside(host: &str) -> bool {
    let beside = |ip: IpAddr| ip.is_loopback() || matches!(ip, IpAddr::V4(ip) if ip.is_link_local());
    host == "localhost" || host == GOOGLE_METADATA || host.parse().is_ok_and(beside)
}

impl HttpClient {
    /// Believes the certificates of a file; of none, the roots of Mozilla.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn new(ca_file: &Path, timeout: Duration, max_bytes: usize) -> anyhow::Result<Self> {
        let roots = if ca_file.as_os_str().is_empty() {
            RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
        } else {
            tls::roots(ca_file)?
        };
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), timeout, max_bytes })
    }

    /// The answer, whatever its status.
    ///
    /// # Errors
    /// There is none, or not all of it. Plain text to another machine is not sent.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Response<Bytes>, Unanswered>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        tokio::time::timeout(self.timeout, self.exchange(request)).await.unwrap_or(Err(Unanswered::Late))
    }

    async fn exchange<B>(&self, request: Request<B>) -> Result<Response<Bytes>, Unanswered>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let uri = request.uri().clone();
        let host = host(&uri).ok_or_else(|| Unanswered::NotSent(anyhow!("an address without a host")))?;
        match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.to_owned()).context("the host of the address");
                let name = name.map_err(Unanswered::NotSent)?;
                let stream = connect(host, uri.port_u16().unwrap_or(443)).await?;
                let stream = self.tls.connect(name, stream).await.context("TLS hand-shake");
                self.ask(stream.map_err(Unanswered::NotSent)?, request).await
            }
            Some("http") if is_beside(host) => {
                let stream = connect(host, uri.port_u16().unwrap_or(80)).await?;
                self.ask(stream, request).await
            }
            _ => Err(Unanswered::NotSent(anyhow!("allowed are https:// addresses, and http:// to this machine"))),
        }
    }

    async fn ask<S, B>(&self, stream: S, request: Request<B>) -> Result<Response<Bytes>, Unanswered>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let broken = |error: hyper::Error| Unanswered::Broken(error.into());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = to_origin(request).map_err(Unanswered::NotSent)?;
        let answered = async {
            let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
            let body = Limited::new(body, self.max_bytes).collect().await;
            let body = body.map_err(|error| Unanswered::Broken(anyhow!("the body: {error}")))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        // Polled here rather than in a task: nothing outlives the time-out.
        let mut connection = std::pin::pin!(connection);
        tokio::pin!(answered);
        tokio::select! {
            answer = &mut answered => answer,
            ended = &mut connection => {
                ended.map_err(broken)?;
                answered.await
            }
        }
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, Unanswered> {
    TcpStream::connect((host, port)).await.context("cannot connect").map_err(Unanswered::NotSent)
}

/// As a server is asked on a connection of its own: the host is a header, and no second request follows.
fn to_origin<B>(request: Request<B>) -> anyhow::Result<Request<B>> {
    let (mut head, body) = request.into_parts();
    let host = head.uri.authority().map_or("", |authority| authority.as_str());
    let host = HeaderValue::from_str(host).context("the host of the address")?;
    head.headers.insert(header::HOST, host);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    head.uri = head.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    Ok(Request::from_parts(head, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_goes_no_further_than_beside() {
        for host in ["127.0.0.1", "::1", "localhost", "169.254.169.254", GOOGLE_METADATA] {
            assert!(is_beside(host), "{host}");
        }
        for host in ["10.0.0.1", "example.com", "localhost.example.com", "fe80::1", "170.254.0.1"] {
            assert!(!is_beside(host), "{host}");
        }
    }

    #[tokio::test]
    async fn other_addresses_are_asked_nothing() {
        let client = HttpClient::new(Path::new(""), Duration::from_secs(5), 10).unwrap();
        for (uri, why) in [
            ("http://10.0.0.1/a", "allowed are https://"),
            ("ftp://127.0.0.1/", "allowed are"),
            ("/a", "without a host"),
        ] {
            let request = Request::get(uri).body(http_body_util::Empty::<Bytes>::new()).unwrap();
            let answer = client.send(request).await.unwrap_err();
            assert!(matches!(&answer, Unanswered::NotSent(_)) && answer.to_string().contains(why), "{answer}");
        }
    }
}
