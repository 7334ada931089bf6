//! The parts that the configurations of both services share, with their
//! defaults, and values that must not be printed.

use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use sqlx::postgres::PgConnectOptions;

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// `sqlite://PATH` or `postgres://…`. Prints without password and parameters.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// Checks the scheme.
    pub fn new(url: impl Into<String>) -> Result<Self, String> {
        let url = url.into();
        let url = Self(url);
        let ok = match url.0.split_once("://") {
            Some(("sqlite", path)) => !path.is_empty() && !path.starts_with('?'),
            Some(("postgres" | "postgresql", _)) => true,
            _ => false,
        };
        // The value is not repeated: it may hold a password in an odd place.
        ok.then_some(url)
            .ok_or_else(|| "a database's URL must be sqlite://PATH or postgres://USER@HOST/DATABASE".to_owned())
    }

    /// A SQLite file.
    pub fn sqlite(path: impl Into<PathBuf>) -> Self {
        Self(format!("sqlite://{}", path.into().display()))
    }

    /// The URL itself, with its password.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The path, if this is SQLite. Parameters after `?` are not part of it.
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        let path = self.0.strip_prefix("sqlite://")?;
        Some(PathBuf::from(path.split('?').next().unwrap_or(path)))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = self.sqlite_path() {
            return write!(f, "sqlite://{}", path.display());
        }
        // Only what the driver itself takes for user, host and database: cutting
        // the text by hand would show parts of a password with odd characters.
        match PgConnectOptions::from_str(&self.0) {
            Ok(options) => write!(
                f,
                "postgres://{}@{}:{}/{}",
                options.get_username(),
                options.get_host(),
                options.get_port(),
                options.get_database().unwrap_or_default()
            ),
            Err(_) => f.write_str("postgres://[unreadable]"),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let url = String::deserialize(deserializer)?;
        Self::new(url).map_err(de::Error::custom)
    }
}

/// For `#[serde(deserialize_with)]`: an address, or empty text for none.
pub fn optional_listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        de::Error::custom(format!("{text:?} is not an address such as 127.0.0.1:9464, nor empty for none"))
    })
}

/// For `#[serde(deserialize_with)]`: a URL, or empty text for none.
fn optional_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DatabaseUrl>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    DatabaseUrl::new(text).map(Some).map_err(de::Error::custom)
}

/// Table `[server]`: limits and time-outs of the gRPC server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerConfig {
    /// Connections open at once; more wait in the listen queue. Default 1,024.
    pub max_connections: NonZeroUsize,
    /// Of these from one address (IPv6: one /64); more are closed. Default 512.
    pub max_connections_per_peer: NonZeroUsize,
    /// Calls in progress at once, streams not counted, for ingest and for queries
    /// each; more are refused with `OVERLOADED`. Default 1,024.
    pub max_calls: NonZeroUsize,
    /// Streams open at once, for ingest and for queries each; more are refused with
    /// `OVERLOADED`. Default 2,048.
    pub max_streams: NonZeroUsize,
    /// Streams and calls at once on one connection. Default 256.
    pub max_streams_per_connection: NonZeroU32,
    /// Time until a call must have answered, or a stream begun; and then for the client
    /// of a call to take the answer. Default 30,000.
    pub call_timeout_ms: NonZeroU64,
    /// Time for a new connection to finish the TLS handshake and the HTTP/2 preface.
    /// Default 10,000.
    pub handshake_timeout_ms: NonZeroU64,
    /// Time after which a stream ends whose client takes nothing of what waits
    /// for it. Default 300,000.
    pub stalled_stream_ms: NonZeroU64,
    /// Silence after which a connection is pinged. Default 30,000.
    pub keepalive_interval_ms: NonZeroU64,
    /// Time for the answer to a ping. Default 20,000.
    pub keepalive_timeout_ms: NonZeroU64,
    /// Time for open calls and streams to end after a stop is asked for; then
    /// they are cut. Default 10,000.
    pub drain_timeout_ms: NonZeroU64,
    /// Time between probes of storage for health. Default 2,000.
    pub health_interval_ms: NonZeroU64,
    /// Time for one probe. Default 2,000.
    pub health_timeout_ms: NonZeroU64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: nonzero_usize(1_024),
            max_connections_per_peer: nonzero_usize(512),
            max_calls: nonzero_usize(1_024),
            max_streams: nonzero_usize(2_048),
            max_streams_per_connection: nonzero_u32(256),
            call_timeout_ms: nonzero(30_000),
            handshake_timeout_ms: nonzero(10_000),
            stalled_stream_ms: nonzero(300_000),
            keepalive_interval_ms: nonzero(30_000),
            keepalive_timeout_ms: nonzero(20_000),
            drain_timeout_ms: nonzero(10_000),
            health_interval_ms: nonzero(2_000),
            health_timeout_ms: nonzero(2_000),
        }
    }
}

/// Table `[database]`: pools and time-outs; on PostgreSQL also who migrates, and where
/// exports read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DatabaseConfig {
    /// Connections for reading. Default 8.
    pub readers: NonZeroU32,
    /// Connections for writing, PostgreSQL only; SQLite has one writer. Default 4.
    pub writers: NonZeroU32,
    /// Time to wait for a free connection. Default 5,000.
    pub acquire_timeout_ms: NonZeroU64,
    /// Time for one statement that reads, and on PostgreSQL for a transaction to stand
    /// idle; on SQLite time to read on one connection. Default 30,000.
    pub statement_timeout_ms: NonZeroU64,
    /// The same for those that write. PostgreSQL only. Default 30,000.
    pub write_timeout_ms: NonZeroU64,
    /// The account that makes the schema at start, and lets that of `database_url` use
    /// it. PostgreSQL only. Default empty: `database_url` is the owner.
    #[serde(deserialize_with = "optional_url")]
    pub migrator_url: Option<DatabaseUrl>,
    /// A streaming replica, from which exports are read once it has caught up with
    /// where they were frozen. PostgreSQL only. Default empty: the primary.
    #[serde(deserialize_with = "optional_url")]
    pub reader_url: Option<DatabaseUrl>,
    /// Connections to the replica. Default 4.
    pub exporters: NonZeroU32,
    /// Time for one statement at the replica: a page of an export. Default 30,000.
    pub export_timeout_ms: NonZeroU64,
    /// Time that an export waits for the replica; then the primary serves it. Default
    /// 3,000.
    pub replica_wait_ms: NonZeroU64,
    /// `database_url` is the coordinator of a Citus cluster, over which usage-service
    /// spreads its requests in so many shards; few are best, see `deploy/citus`.
    /// Default none: no Citus.
    pub citus_shards: Option<NonZeroU32>,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            readers: nonzero_u32(8),
            writers: nonzero_u32(4),
            acquire_timeout_ms: nonzero(5_000),
            statement_timeout_ms: nonzero(30_000),
            write_timeout_ms: nonzero(30_000),
            migrator_url: None,
            reader_url: None,
            exporters: nonzero_u32(4),
            export_timeout_ms: nonzero(30_000),
            replica_wait_ms: nonzero(3_000),
            citus_shards: None,
        }
    }
}

/// Table `[ingest]`: group commit and ingest streams.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IngestConfig {
    /// Events in one transaction; a single batch may be larger. Default 4,000.
    pub group_events: NonZeroUsize,
    /// Time that a busy writer waits for more batches. Default 2.
    pub group_delay_ms: u64,
    /// Events that wait for the writer; then submitters wait. Default 20,000.
    pub queue_events: NonZeroUsize,
    /// Time for one transaction. Default 30,000.
    pub commit_timeout_ms: NonZeroU64,
    /// Batches of one stream in progress at once. Default 8.
    pub stream_batches: NonZeroUsize,
    /// Batches of one stream in a second; a faster one is slowed. Default 5,000.
    pub stream_batches_per_second: NonZeroU32,
    /// Time without a batch after which a stream ends. Default 300,000.
    pub stream_idle_ms: NonZeroU64,
    /// Time after which a stream ends, so that clients spread over replicas
    /// again. Default 3,600,000.
    pub stream_lifetime_ms: NonZeroU64,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            group_events: nonzero_usize(4_000),
            group_delay_ms: 2,
            queue_events: nonzero_usize(20_000),
            commit_timeout_ms: nonzero(30_000),
            stream_batches: nonzero_usize(8),
            stream_batches_per_second: nonzero_u32(5_000),
            stream_idle_ms: nonzero(300_000),
            stream_lifetime_ms: nonzero(3_600_000),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Table `[telemetry]`: logs and traces.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TelemetryConfig {
    /// Filter as in `info` or `info,sqlx=warn`. Default `info`.
    pub log: String,
    /// `text` or `json`. Default `text`.
    pub log_format: LogFormat,
    /// OTLP/gRPC collector such as `http://127.0.0.1:4317`. Default empty: none.
    pub otlp_endpoint: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info".to_owned(), log_format: LogFormat::default(), otlp_endpoint: String::new() }
    }
}

/// Milliseconds of the configuration as a duration.
pub(crate) fn millis(value: NonZeroU64) -> Duration {
    Duration::from_millis(value.get())
}

pub(super) const fn nonzero(value: u64) -> NonZeroU64 {
    match NonZeroU64::new(value) {
        Some(value) => value,
        None => NonZeroU64::MIN,
    }
}

pub(super) const fn nonzero_u32(value: u32) -> NonZeroU32 {
    match NonZeroU32::new(value) {
        Some(value) => value,
        None => NonZeroU32::MIN,
    }
}

pub(super) const fn nonzero_usize(value: usize) -> NonZeroUsize {
    match NonZeroUsize::new(value) {
        Some(value) => value,
        None => NonZeroUsize::MIN,
    }
}
