//! One GET, bounded in time and size, without redirects: for keys from an address.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::ConfigError;
use crate::http_client::{HttpClient, host};

/// Key sets are a few KiB.
const MAX_BYTES: usize = 256 * 1024;

/// Where to read, and whom to believe.
pub(super) struct Fetcher {
    uri: Uri,
    client: HttpClient,
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
        let host = host(&uri).unwrap_or_default();
        match uri.scheme_str() {
            Some("https") => drop(ServerName::try_from(host).context("the host of the address")?),
            Some("http") if host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) => {}
            Some("http") => {
                bail!("http:// to another machine, allowed is https://: whoever changes the answer makes tokens")
            }
            _ => bail!("allowed are https:// addresses"),
        }
        let client = HttpClient::new(ca_file, timeout, MAX_BYTES)?;
        Ok(Self { uri, client })
    }

    /// The body of a 200.
    pub(super) async fn get(&self) -> anyhow::Result<Bytes> {
        let request = Request::get(&self.uri).header(header::ACCEPT, "application/json").body(Empty::<Bytes>::new())?;
        let response = self.client.send(request).await?;
        ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
        Ok(response.into_body())
    }
}
