//! TLS to a service: whom to believe, and what to show. Files are read at every
//! connection, so new ones count from the next one on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tonic::codegen::http::Uri;

use crate::error::AccessProblem;

/// Whom to believe, and what to show, in TLS 1.2 and 1.3. See
/// [`Builder::tls`](crate::Builder::tls).
///
/// ```
/// use gateway_sdk::Tls;
///
/// let tls = Tls::new()
///     .roots_file("/etc/activity/ca.pem")
///     .identity_files("/etc/activity/gateway.pem", "/etc/activity/gateway.key");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Tls {
    roots: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    server_name: Option<String>,
}

impl Tls {
    /// The roots of Mozilla, no certificate of one's own.
    pub fn new() -> Self {
        Self::default()
    }

    /// A PEM file of the roots under which servers are believed, instead of Mozilla's.
    pub fn roots_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.roots = Some(path.into());
        self
    }

    /// PEM files of the certificate (with those between it and its root) and of the private
    /// key that are shown to a server which asks for them.
    pub fn identity_files(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// The name that the server's certificate must have. Default: the host of the endpoint.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Whether the files can be used, so that what can't work is told where it is set.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.read().map(|_| ())
    }

    /// The configuration of one connection, from what the files hold.
    fn read(&self) -> Result<ClientConfig, String> {
        let roots = match &self.roots {
            None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
                }
                roots
            }
        };
        // Ours by name: the process may have several providers compiled in.
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                // What the parser says of a key is not repeated.
                let private = PrivateKeyDer::from_pem_file(key)
                    .map_err(|_| format!("{} holds no private key that can be read", key.display()))?;
                builder.with_client_auth_cert(certificates(certificate)?, private).map_err(|error| {
                    format!("{} and {} do not fit each other: {error}", certificate.display(), key.display())
                })?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let read = read.map_err(|error| format!("certificates of {}: {error}", path.display()))?;
    if read.is_empty() {
        return Err(format!("{} holds no certificate", path.display()));
    }
    Ok(read)
}

/// How long a server that says nothing is waited for: it may want us to speak first.
const FIRST_WORD: Duration = Duration::from_millis(500);

/// Connects to one endpoint.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: Arc<Tls>,
    host: Arc<str>,
    port: u16,
    name: ServerName<'static>,
}

impl Connector {
    pub(crate) fn new(tls: &Tls, host: &str, port: u16) -> Result<Self, String> {
        let name = tls.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| format!("`{name}` is no name of a server"))?;
        Ok(Self { tls: Arc::new(tls.clone()), host: host.into(), port, name })
    }

    async fn connect(self) -> Result<TokioIo<TlsStream<TcpStream>>, io::Error> {
        let tls = Arc::clone(&self.tls);
        let config = tokio::task::spawn_blocking(move || tls.read()).await.map_err(io::Error::other)?;
        let config = config.map_err(|why| io::Error::other(Failed { problem: AccessProblem::TlsFiles, why }))?;
        let tcp = TcpStream::connect((&*self.host, self.port)).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(config));
        let mut shaken = connector.connect(self.name.clone(), tcp).await.map_err(|error| self.told(error))?;
        if shaken.get_ref().1.alpn_protocol() != Some(b"h2") {
            let why = format!("{} does not speak HTTP/2", self.host);
            return Err(io::Error::other(Failed { problem: AccessProblem::NotTls, why }));
        }
        // In TLS 1.3 a server looks at our certificate after the hand-shake, from our side. What it says
        // then is heard here, before HTTP/2 makes a connection that was closed of it. A server that takes
        // us has its settings to send.
        if let Ok(Err(error)) = timeout(FIRST_WORD, shaken.fill_buf()).await {
            return Err(self.told(error));
        }
        Ok(TokioIo::new(shaken))
    }

    /// A hand-shake's failure, in words that say whose certificate is wrong, and how.
    fn told(&self, error: io::Error) -> io::Error {
        let Some(problem) = error.get_ref().and_then(|cause| cause.downcast_ref()).and_then(problem_of) else {
            return error;
        };
        let name = self.name.to_str();
        let why = match problem {
            AccessProblem::UnknownServer => {
                format!("the server's certificate is under none of the roots that are configured ({error})")
            }
            AccessProblem::ServerName => format!("the server's certificate is not for `{name}` ({error})"),
            AccessProblem::ServerCertificate => format!("the server's certificate is not valid ({error})"),
            AccessProblem::ClientCertificate => {
                format!("the server does not accept this client's certificate, or misses it ({error})")
            }
            _ => format!("{}:{} does not speak TLS as it should ({error})", self.host, self.port),
        };
        io::Error::new(error.kind(), Failed { problem, why })
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        self.clone().connect().boxed()
    }
}

/// Why there is no connection.
#[derive(Debug)]
struct Failed {
    problem: AccessProblem,
    why: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Failed {}

/// What rustls says, as far as it concerns certificates.
fn problem_of(error: &rustls::Error) -> Option<AccessProblem> {
    use CertificateError as Bad;
    Some(match error {
        // A bad signature: another root of the same name.
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => AccessProblem::UnknownServer,
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            AccessProblem::ServerName
        }
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            AccessProblem::ServerCertificate
        }
        rustls::Error::AlertReceived(alert) if CLIENT_ALERTS.contains(alert) => AccessProblem::ClientCertificate,
        rustls::Error::InvalidMessage(_) => AccessProblem::NotTls,
        _ => return None,
    })
}

/// How a server refuses a client's certificate, or the lack of one.
const CLIENT_ALERTS: [AlertDescription; 9] = [
    AlertDescription::CertificateRequired,
    AlertDescription::UnknownCA,
    AlertDescription::BadCertificate,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::AccessDenied,
    // A certificate of another root with the same name.
    AlertDescription::DecryptError,
];

/// What is wrong with a connection, found in the causes of an error. In TLS 1.3 a server
/// refuses a client after the hand-shake, and HTTP/2 keeps of it the text alone.
pub(crate) fn find_problem(error: &(dyn std::error::Error + 'static)) -> Option<AccessProblem> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && let Some(cause) = io.get_ref()
        {
            if let Some(failed) = cause.downcast_ref::<Failed>() {
                return Some(failed.problem);
            }
            if let Some(problem) = cause.downcast_ref().and_then(problem_of) {
                return Some(problem);
            }
        }
        if let Some(failed) = error.downcast_ref::<Failed>() {
            return Some(failed.problem);
        }
        next = error.source();
        if next.is_none() {
            let text = error.to_string();
            let refused = |alert: &AlertDescription| text.contains(&rustls::Error::AlertReceived(*alert).to_string());
            return CLIENT_ALERTS.iter().any(refused).then_some(AccessProblem::ClientCertificate);
        }
    }
    None
}
