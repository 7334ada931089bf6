//! What can be configured, and the defaults that make an empty file work.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use service_core::config::{
    AuthConfig, ConfigError, DatabaseConfig, DatabaseUrl, DenialsConfig, IngestConfig, LimitsConfig, ServerConfig,
    TelemetryConfig, TlsConfig, listen, optional_listen,
};

mod retention;

use crate::checkpoint::is_key_name;
use crate::convert;

pub use retention::{Profile, RetentionConfig};

/// Prefix of the environment variables that override the file: `AUDIT_LISTEN`, `AUDIT_TELEMETRY__LOG`.
pub const ENV_PREFIX: &str = "AUDIT";

/// The configuration of the service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where gRPC is served; port 0 takes a free one. Default `127.0.0.1:50051`.
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
    /// Where Prometheus metrics are served; empty for none. Default `127.0.0.1:9464`.
    #[serde(deserialize_with = "optional_listen")]
    pub metrics_listen: Option<SocketAddr>,
    /// `sqlite://PATH` or `postgres://…`. Default `sqlite://data/audit.db`.
    pub database_url: DatabaseUrl,
    /// Limits and time-outs of the server.
    pub server: ServerConfig,
    /// The server's certificate, and clients' certificates.
    pub tls: TlsConfig,
    /// Who may call.
    pub auth: AuthConfig,
    /// What one caller may have at once.
    pub limits: LimitsConfig,
    /// Refused calls as entries.
    pub denials: DenialsConfig,
    /// The service's own activity as entries.
    pub activity: ActivityConfig,
    /// Pools.
    pub database: DatabaseConfig,
    /// Group commit and streams of events.
    pub ingest: IngestConfig,
    /// Tails.
    pub tail: TailConfig,
    /// Signed checkpoints of the log.
    pub log: LogConfig,
    /// How long entries stay, and where they go then.
    pub retention: RetentionConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

impl Default for Config {
    fn default() -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            listen: local(50051),
            metrics_listen: Some(local(9464)),
            database_url: DatabaseUrl::sqlite("data/audit.db"),
            server: ServerConfig::default(),
            tls: TlsConfig::default(),
            auth: AuthConfig::default(),
            limits: LimitsConfig::default(),
            denials: DenialsConfig::default(),
            activity: ActivityConfig::default(),
            database: DatabaseConfig::default(),
            ingest: IngestConfig::default(),
            tail: TailConfig::default(),
            log: LogConfig::default(),
            retention: RetentionConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Config {
    /// Refuses what both services can be told, and only the other can do; and a name that no log can have.
    pub fn check(&self) -> Result<(), ConfigError> {
        convert::instance_id("denials.instance", &self.denials.instance)
            .map_err(|error| ConfigError::Refused(error.to_string()))?;
        if !self.activity.instance.is_empty() {
            convert::instance_id("activity.instance", &self.activity.instance)
                .map_err(|error| ConfigError::Refused(error.to_string()))?;
        }
        if !is_key_name(&self.log.origin) {
            return Err(ConfigError::Refused(format!(
                "log.origin is {:?}, allowed are 1 to 256 bytes without spaces, control characters and plus signs",
                self.log.origin
            )));
        }
        self.retention.check(&self.database_url, &self.database)?;
        match self.database.citus_shards {
            None => Ok(()),
            Some(shards) => Err(ConfigError::Refused(format!(
                "database.citus_shards is {shards}, allowed is none: the log of an instance is one chain, on one machine"
            ))),
        }
    }
}

/// Table `[activity]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ActivityConfig {
    /// The instance in whose log starts, stops and exports are recorded, and who asked for these; empty for none. Default
    /// `activity`.
    pub instance: String,
    /// Record pages too: each list, entry, facet and tail that is asked for. Default false.
    pub pages: bool,
}

impl Default for ActivityConfig {
    fn default() -> Self {
        Self { instance: "activity".to_owned(), pages: false }
    }
}

/// Table `[tail]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TailConfig {
    /// Time without an entry after which a tail gets a heartbeat. Default 10,000.
    pub heartbeat_ms: NonZeroU64,
}

impl Default for TailConfig {
    fn default() -> Self {
        // Ten thousand is not zero.
        Self { heartbeat_ms: NonZeroU64::MIN.saturating_add(9_999) }
    }
}

/// Table `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// Name of the log and of its key: with a slash and the instance behind it, the origin of checkpoints. What was
    /// signed is of this name for good. Default `localhost/audit`.
    pub origin: String,
    /// Where keys that no file is named for, and the last checkpoints are kept, outside the database. Empty, the
    /// default: beside SQLite's file (`audit.db.checkpoints`); on PostgreSQL nothing is signed.
    #[serde(deserialize_with = "optional_path")]
    pub folder: Option<PathBuf>,
    /// The log's key. Empty, the default: `log.key` in the folder, made at the first start.
    #[serde(deserialize_with = "optional_path")]
    pub key_file: Option<PathBuf>,
    /// The key before it, which signs as well while those who check learn the new one. Empty, the default: none.
    #[serde(deserialize_with = "optional_path")]
    pub retiring_key_file: Option<PathBuf>,
    /// The key of cosignatures. Empty, the default: `witness.key` in the folder, made at the first start.
    #[serde(deserialize_with = "optional_path")]
    pub witness_key_file: Option<PathBuf>,
    /// Make keys that are missing in the folder although others have signed the log: for one start, where those are lost.
    /// Who checks the log must pin the new ones. Default false.
    pub new_key: bool,
    /// Time between checkpoints of a log that grows. Default 500.
    pub checkpoint_interval_ms: NonZeroU64,
    /// Time without entries after which the newest checkpoint is cosigned again. Default 600,000.
    pub silence_interval_ms: NonZeroU64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            origin: "localhost/audit".to_owned(),
            folder: None,
            key_file: None,
            retiring_key_file: None,
            witness_key_file: None,
            new_key: false,
            // Neither is zero.
            checkpoint_interval_ms: NonZeroU64::MIN.saturating_add(499),
            silence_interval_ms: NonZeroU64::MIN.saturating_add(599_999),
        }
    }
}

impl LogConfig {
    /// A key of this table that is set and does nothing without a folder.
    pub(crate) fn only_with_a_folder(&self) -> Option<&'static str> {
        [
            ("key_file", &self.key_file),
            ("retiring_key_file", &self.retiring_key_file),
            ("witness_key_file", &self.witness_key_file),
        ]
        .into_iter()
        .find_map(|(key, path)| path.is_some().then_some(key))
    }
}

fn optional_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(Some(PathBuf::deserialize(deserializer)?).filter(|path| !path.as_os_str().is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_configuration_has_the_defaults_of_the_contract() {
        let config: Config = service_core::config::load(ENV_PREFIX, None, []).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.listen.to_string(), "127.0.0.1:50051");
        assert_eq!(config.metrics_listen.unwrap().to_string(), "127.0.0.1:9464");
        assert_eq!(config.database_url, DatabaseUrl::sqlite("data/audit.db"));
        assert_eq!(config.tail.heartbeat_ms.get(), 10_000);
    }

    #[test]
    fn the_sample_configuration_has_the_defaults() {
        let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/audit-service.toml");
        let config: Config = service_core::config::load(ENV_PREFIX, Some(&sample), []).unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn a_log_is_not_spread_over_machines() {
        let env = [("AUDIT_DATABASE__CITUS_SHARDS".to_owned(), "4".to_owned())];
        let config: Config = service_core::config::load(ENV_PREFIX, None, env).unwrap();
        let why = config.check().unwrap_err().to_string();
        assert!(why.contains("citus_shards is 4") && why.contains("allowed is none"), "{why}");
        Config::default().check().unwrap();
    }

    #[test]
    fn the_environment_overrides() {
        let env = [
            ("AUDIT_LISTEN", "127.0.0.1:0"),
            ("AUDIT_METRICS_LISTEN", ""),
            ("AUDIT_DATABASE_URL", "sqlite:///tmp/a.db"),
            ("AUDIT_TAIL__HEARTBEAT_MS", "50"),
            ("AUDIT_SOMETHING_ELSE", "left alone"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config: Config = service_core::config::load(ENV_PREFIX, None, env).unwrap();
        assert_eq!(config.listen.port(), 0);
        assert_eq!(config.metrics_listen, None);
        assert_eq!(config.database_url, DatabaseUrl::sqlite("/tmp/a.db"));
        assert_eq!(config.tail.heartbeat_ms.get(), 50);
    }
}
