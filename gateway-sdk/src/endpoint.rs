//! From an address to a connection: plain or TLS, and never a secret over plain text to
//! another machine; and to another one, while everything goes on.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use crate::runtime::Runtime;
use crate::tls::{Connector, Tls};

/// What is common to all connections.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pub(crate) tls: Option<Tls>,
    /// Whether calls bring a token.
    pub(crate) secret: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) keep_alive: (Duration, Duration),
    /// Drives them.
    pub(crate) runtime: Runtime,
}

/// A connection to a service that can be led elsewhere while it is used; all clones are led
/// together.
#[derive(Clone)]
pub(crate) struct Line {
    channel: Arc<watch::Sender<Channel>>,
    runtime: Runtime,
}

impl Line {
    fn new(target: &Target, runtime: &Runtime) -> Self {
        let channel = Arc::new(watch::Sender::new(target.connect(runtime)));
        Self { channel, runtime: runtime.clone() }
    }

    fn lead(&self, target: &Target) {
        self.channel.send_replace(target.connect(&self.runtime));
    }

    /// The connection as it is now.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.borrow().clone()
    }

    /// The connection, and word when it is led elsewhere.
    pub(crate) fn follow(&self) -> watch::Receiver<Channel> {
        self.channel.subscribe()
    }
}

/// Both connections to a service. A stream has one of its own: an export that fills the pipe
/// must not hold up acknowledgements.
pub(crate) struct Lines {
    with: Connections,
    pub(crate) stream: Line,
    pub(crate) questions: Line,
}

impl Lines {
    pub(crate) fn new(address: &str, with: &Connections) -> Result<Self, String> {
        let target = Target::new(address, with)?;
        let line = || Line::new(&target, &with.runtime);
        Ok(Self { with: with.clone(), stream: line(), questions: line() })
    }

    /// To another address, on the same terms. What is wrong with it changes nothing.
    pub(crate) fn lead(&self, address: &str) -> Result<(), String> {
        let target = Target::new(address, &self.with)?;
        self.stream.lead(&target);
        self.questions.lead(&target);
        Ok(())
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("with", &self.with).finish_non_exhaustive()
    }
}

/// Where a service is.
struct Target {
    endpoint: Endpoint,
    connector: Option<Connector>,
}

impl Target {
    /// Checks an address and what goes with it.
    fn new(address: &str, with: &Connections) -> Result<Self, String> {
        let default = if with.tls.is_some() { "https" } else { "http" };
        let address = if address.contains("://") { address.to_owned() } else { format!("{default}://{address}") };
        // Somebody may have put a password into it.
        let uri: Uri = address.parse().map_err(|error| format!("not an address: {error}"))?;
        let authority = uri.authority().ok_or("an address without a host")?;
        if authority.as_str().contains('@') {
            return Err("an address with a user in it".to_owned());
        }
        let shown = format!("{}://{authority}", uri.scheme_str().unwrap_or_default());
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let connector = match uri.scheme_str() {
            Some("https") => {
                let tls = with.tls.clone().unwrap_or_default();
                Some(Connector::new(&tls, host, authority.port_u16().unwrap_or(443))?)
            }
            Some("http") => {
                let is_here =
                    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback());
                if with.secret && !is_here {
                    return Err(format!(
                        "`{shown}` is plain text, and a token would be read on the way; `https://` is allowed, or `http://` to this machine"
                    ));
                }
                if with.tls.is_some() && !is_here {
                    return Err(format!(
                        "`{shown}` is plain text although `tls` is set; `https://` is allowed, or `http://` to this machine"
                    ));
                }
                None
            }
            _ => return Err(format!("`{shown}` is not usable; `https://HOST:PORT` and `http://HOST:PORT` are")),
        };
        let endpoint = match connector {
            // The connector is ours, and tonic refuses to do TLS with its own: it is told of
            // another scheme, and of the true one for the requests.
            Some(_) => {
                Endpoint::from_shared(format!("http://{authority}")).map(|endpoint| endpoint.origin(uri.clone()))
            }
            None => Endpoint::from_shared(address),
        };
        let endpoint = endpoint
            .and_then(|endpoint| endpoint.user_agent(concat!("gateway-sdk/", env!("CARGO_PKG_VERSION"))))
            .map_err(|error| format!("`{shown}` is not an address: {error}"))?
            .connect_timeout(with.connect_timeout)
            .http2_keep_alive_interval(with.keep_alive.0)
            .keep_alive_timeout(with.keep_alive.1)
            .keep_alive_while_idle(true);
        Ok(Self { endpoint, connector })
    }

    /// A connection that is made when it is needed, and made again when it broke.
    fn connect(&self, runtime: &Runtime) -> Channel {
        let _entered = runtime.enter();
        match &self.connector {
            Some(connector) => self.endpoint.connect_with_connector_lazy(connector.clone()),
            None => self.endpoint.connect_lazy(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(address: &str, tls: Option<&Tls>, secret: bool) -> Result<Target, String> {
        let second = Duration::from_secs(1);
        let tls = tls.cloned();
        let runtime = Runtime::here(false).unwrap_or_else(|error| panic!("{error}"));
        let with = Connections { tls, secret, connect_timeout: second, keep_alive: (second, second), runtime };
        Target::new(address, &with)
    }

    #[tokio::test]
    async fn secrets_go_over_plain_text_to_this_machine_only() {
        let tls = Tls::new();
        for address in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "http://[::ffff:127.0.0.1]:1"] {
            for tls in [None, Some(&tls)] {
                target(address, tls, true).unwrap_or_else(|why| panic!("{address}: {why}"));
            }
        }
        for address in
            ["http://10.0.0.1:1", "usage.internal:1", "http://localhost.example.com", "http://127.0.0.1.nip.io"]
        {
            let why = target(address, None, true).map(|_| ()).expect_err(address);
            assert!(why.contains("plain text"), "{why}");
            target(address, None, false).unwrap_or_else(|why| panic!("{address}: {why}"));
        }
        let why = target("http://10.0.0.1:1", Some(&tls), false).map(|_| ()).expect_err("TLS is set");
        assert!(why.contains("although `tls` is set"), "{why}");
        // Without a scheme it is the one that was set.
        let secured = target("10.0.0.1:1", Some(&tls), true).unwrap_or_else(|why| panic!("{why}"));
        assert!(secured.connector.is_some());
    }

    #[test]
    fn what_is_no_address_is_said_without_its_password() {
        for address in
            ["ftp://x", "http://a b", "http://me:hunter2@usage:1", "https://me:hunter2@usage:1", "https://-:1", ""]
        {
            let why = target(address, None, false).map(|_| ()).expect_err(address);
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
