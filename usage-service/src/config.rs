//! The service's configuration; every key has a default, so that an empty file
//! works.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use serde::Deserialize;
use service_core::config::{
    AuthConfig, ConfigError, DatabaseConfig, DatabaseUrl, DenialsConfig, IngestConfig, LimitsConfig, ServerConfig,
    TelemetryConfig, TlsConfig, listen, optional_listen,
};

/// Prefix of the environment variables: `USAGE_LISTEN`, `USAGE_TELEMETRY__LOG`.
pub const ENV_PREFIX: &str = "USAGE";

/// See the fields for keys and defaults.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where gRPC is served. Default `127.0.0.1:50052`; port 0 takes a free one.
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
    /// Where Prometheus metrics are served, empty for nowhere. Default
    /// `127.0.0.1:9465`.
    #[serde(deserialize_with = "optional_listen")]
    pub metrics_listen: Option<SocketAddr>,
    /// `sqlite://PATH` or `postgres://…`. Default `sqlite://data/usage.db`.
    pub database_url: DatabaseUrl,
    /// A file of prices that add to, or override, the shipped ones. Default none.
    pub prices_file: Option<PathBuf>,
    /// Table `[server]`.
    pub server: ServerConfig,
    /// Table `[tls]`.
    pub tls: TlsConfig,
    /// Table `[auth]`.
    pub auth: AuthConfig,
    /// Table `[limits]`.
    pub limits: LimitsConfig,
    /// Table `[denials]`.
    pub denials: DenialsConfig,
    /// Table `[audit]`.
    pub audit: AuditConfig,
    /// Table `[database]`.
    pub database: DatabaseConfig,
    /// Table `[ingest]`.
    pub ingest: IngestConfig,
    /// Table `[rollup]`.
    pub rollup: RollupConfig,
    /// Table `[retention]`.
    pub retention: RetentionConfig,
    /// Table `[telemetry]`.
    pub telemetry: TelemetryConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 50_052)),
            metrics_listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9_465))),
            database_url: DatabaseUrl::sqlite("data/usage.db"),
            prices_file: None,
            server: ServerConfig::default(),
            tls: TlsConfig::default(),
            auth: AuthConfig::default(),
            limits: LimitsConfig::default(),
            denials: DenialsConfig::default(),
            audit: AuditConfig::default(),
            database: DatabaseConfig::default(),
            ingest: IngestConfig::default(),
            rollup: RollupConfig::default(),
            retention: RetentionConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// Table `[audit]`: the audit-service that refused calls are recorded by, and how this
/// service shows there who it is. It needs the role `writer` for `denials.instance`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AuditConfig {
    /// `https://HOST:PORT`; `http://` of this machine only where a token goes with it.
    /// Default empty: refused calls are logged.
    pub endpoint: String,
    /// Roots under which it is believed (PEM). Default empty: those of Mozilla.
    pub ca_file: PathBuf,
    /// A certificate to show (PEM). Default none.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// A file with a bearer token, read again before that expires. Default none.
    pub token_file: PathBuf,
}

/// Table `[rollup]`: sums made ahead.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RollupConfig {
    /// Memory for sums that were read, in MiB; more are read again when they are
    /// needed. Default 128.
    pub cache_mib: NonZeroU32,
    /// Time after which what was written goes into rollups at the latest; a great
    /// deal goes there sooner. Answers are exact whenever that is. Default 60,000.
    pub seal_interval_ms: NonZeroU64,
    /// Time between two days whose sums are compared with their requests, day after
    /// day, for ever. Default 300,000.
    pub check_interval_ms: NonZeroU64,
}

impl RollupConfig {
    /// The bound of the cache.
    pub fn cache_bytes(&self) -> usize {
        (self.cache_mib.get() as usize) << 20
    }
}

impl Default for RollupConfig {
    fn default() -> Self {
        Self {
            cache_mib: DEFAULT_CACHE_MIB,
            seal_interval_ms: DEFAULT_SEAL_INTERVAL_MS,
            check_interval_ms: DEFAULT_CHECK_INTERVAL_MS,
        }
    }
}

/// Table `[retention]`: how long what is kept. By default nothing is removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RetentionConfig {
    /// Days (UTC) that single requests are kept, beside today; what they add up to
    /// stays. Default none: for ever.
    pub requests_days: Option<NonZeroU32>,
    /// Days that sums are kept: at least `requests_days`, and not without them.
    /// Default none: for ever.
    pub rollups_days: Option<NonZeroU32>,
}

impl RetentionConfig {
    /// Refuses what doesn't go together: sums are what is left of requests.
    pub fn check(&self) -> Result<(), ConfigError> {
        let allowed = match (self.requests_days, self.rollups_days) {
            (_, None) => return Ok(()),
            (Some(requests), Some(rollups)) if requests <= rollups => return Ok(()),
            (Some(requests), Some(_)) => format!("allowed is retention.requests_days and above: {requests}"),
            (None, Some(_)) => "allowed is that with retention.requests_days only".to_owned(),
        };
        // There is one: the first arm has returned.
        let given = self.rollups_days.map_or(0, NonZeroU32::get);
        Err(ConfigError::Refused(format!("retention.rollups_days is {given}, {allowed}")))
    }
}

const DEFAULT_CACHE_MIB: NonZeroU32 = NonZeroU32::new(128).unwrap();
const DEFAULT_SEAL_INTERVAL_MS: NonZeroU64 = NonZeroU64::new(60_000).unwrap();
const DEFAULT_CHECK_INTERVAL_MS: NonZeroU64 = NonZeroU64::new(300_000).unwrap();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_configuration_has_the_defaults() {
        let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/usage-service.toml");
        let config: Config = service_core::config::load(ENV_PREFIX, Some(&sample), []).expect("a configuration");
        assert_eq!(config, Config::default());
    }

    #[test]
    fn sums_are_kept_at_least_as_long_as_requests() {
        let days = |requests, rollups| RetentionConfig {
            requests_days: NonZeroU32::new(requests),
            rollups_days: NonZeroU32::new(rollups),
        };
        for allowed in [days(0, 0), days(30, 0), days(30, 30), days(30, 400)] {
            allowed.check().expect("allowed");
        }
        for (refused, word) in [(days(30, 29), "and above: 30"), (days(0, 29), "retention.requests_days only")] {
            let why = refused.check().expect_err("refused").to_string();
            assert!(why.contains(word) && why.contains("rollups_days is 29"), "{why}");
        }
    }
}
