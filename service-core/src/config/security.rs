//! Tables `[tls]`, `[auth]`, `[limits]` and `[denials]`: how a server shows who it is,
//! learns who calls, what one caller may have, and records what it refuses.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use serde::Deserialize;

use super::Secret;
use super::shared::{nonzero, nonzero_u32, nonzero_usize};

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// Nobody is asked for one.
    #[default]
    Off,
    /// Who has one shows it; who has none brings a token.
    Optional,
    /// A connection without one is refused.
    Required,
}

/// Table `[tls]`. Files are PEM, looked at again and again, and taken over when they
/// have changed; connections that are open stay.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TlsConfig {
    /// The server's certificate and those between it and its root. Default empty: no
    /// TLS.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// The roots under which clients' certificates are accepted.
    pub client_ca_file: PathBuf,
    /// `off`, `optional` or `required`. Default `off`.
    pub client_certificates: ClientCertificates,
    /// Time between looks at the files. Default 10,000.
    pub reload_interval_ms: NonZeroU64,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            certificate_file: PathBuf::new(),
            key_file: PathBuf::new(),
            client_ca_file: PathBuf::new(),
            client_certificates: ClientCertificates::default(),
            reload_interval_ms: nonzero(10_000),
        }
    }
}

/// Table `[auth]`: bearer tokens (JWT), and what a client's certificate stands for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    /// What the claim `iss` must be. Required for tokens.
    pub issuer: String,
    /// What the claim `aud` must hold one of. Required for tokens.
    pub audiences: Vec<String>,
    /// Public keys as a JWKS file, read again when it has changed.
    pub jwks_file: PathBuf,
    /// Public keys from an `https://` address (`http://` only of this machine). One of
    /// the two.
    pub jwks_url: String,
    /// Roots for that address. Default empty: those of Mozilla.
    pub jwks_ca_file: PathBuf,
    /// Time between reads of the address, and between looks at the file. Default
    /// 300,000.
    pub jwks_refresh_ms: NonZeroU64,
    /// Time between reads of it for a key id that is not known, and after a failure,
    /// whoever asks. Default 30,000.
    pub jwks_retry_ms: NonZeroU64,
    /// Time that keys are used after the last read that worked. Default 86,400,000.
    pub jwks_stale_ms: NonZeroU64,
    /// Time for one read. Default 5,000.
    pub jwks_timeout_ms: NonZeroU64,
    /// A secret of at least 32 bytes; HS256 is accepted only if there is one.
    pub hs256_secret: Option<Secret>,
    /// By how many seconds clocks may differ. Default 5.
    pub leeway_s: u64,
    /// Tokens whose check is remembered until they expire. Default 10,000.
    pub cached_tokens: NonZeroUsize,
    /// Names of the claims.
    pub claims: ClaimsConfig,
    /// What clients' certificates stand for; the first that fits holds.
    pub certificates: Vec<CertificateRule>,
    /// Reflection without credentials. Default false.
    pub open_reflection: bool,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audiences: Vec::new(),
            jwks_file: PathBuf::new(),
            jwks_url: String::new(),
            jwks_ca_file: PathBuf::new(),
            jwks_refresh_ms: nonzero(300_000),
            jwks_retry_ms: nonzero(30_000),
            jwks_stale_ms: nonzero(86_400_000),
            jwks_timeout_ms: nonzero(5_000),
            hs256_secret: None,
            leeway_s: 5,
            cached_tokens: nonzero_usize(10_000),
            claims: ClaimsConfig::default(),
            certificates: Vec::new(),
            open_reflection: false,
        }
    }
}

/// Table `[auth.claims]`. A dot goes into an object, as in `realm_access.roles`,
/// unless there is a claim of the whole name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimsConfig {
    /// Who calls. Default `sub`.
    pub subject: String,
    /// A list of roles, or a text of them with spaces between. Default `roles`.
    pub roles: String,
    /// A list of instances in the same way; `*` stands for all of them. Default
    /// `instances`.
    pub instances: String,
    /// The user that a member's own usage is recorded under. Default `sub`.
    pub user: String,
}

impl Default for ClaimsConfig {
    fn default() -> Self {
        let text = str::to_owned;
        Self { subject: text("sub"), roles: text("roles"), instances: text("instances"), user: text("sub") }
    }
}

/// A table of `[[auth.certificates]]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct CertificateRule {
    /// A name in the certificate (SAN): `dns:gateway-1.example.com` or
    /// `uri:spiffe://example.com/gateway`.
    pub san: String,
    /// Who that is. Default: the name.
    pub subject: String,
    /// Its roles, mostly `writer`.
    pub roles: Vec<String>,
    /// Its instances; `*` stands for all of them.
    pub instances: Vec<String>,
}

/// Table `[denials]`: refused calls as entries `access.denied` of an audit log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DenialsConfig {
    /// The instance whose log has them. Default `activity`.
    pub instance: String,
    /// Recorded of one caller (without a name: of one address) in a minute; the rest is
    /// counted. Default 20.
    pub per_caller_per_minute: NonZeroU32,
    /// Recorded in a minute in all. Default 300.
    pub per_minute: NonZeroU32,
}

impl Default for DenialsConfig {
    fn default() -> Self {
        Self { instance: "activity".to_owned(), per_caller_per_minute: nonzero_u32(20), per_minute: nonzero_u32(300) }
    }
}

/// Table `[limits]`: what one caller may have at once; without authentication one
/// address (IPv6: one /64). More is refused with `OVERLOADED`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LimitsConfig {
    /// Calls in progress, streams not counted. Default 512.
    pub calls_per_caller: NonZeroUsize,
    /// Calls and streams begun in a second. Default 10,000.
    pub calls_per_second_per_caller: NonZeroU32,
    /// Streams of events. Default 1,024.
    pub streams_per_caller: NonZeroUsize,
    /// Exports. Default 128.
    pub exports_per_caller: NonZeroUsize,
    /// Tails and other streams of answers. Default 1,024.
    pub tails_per_caller: NonZeroUsize,
    /// Bytes of batches on their way, from their first byte to their answer. Default
    /// 134,217,728 (128 MiB).
    pub ingest_bytes_per_caller: NonZeroUsize,
    /// The same of all callers together. Default 268,435,456 (256 MiB).
    pub ingest_bytes: NonZeroUsize,
    /// Time that a batch waits for room within these, and then time that it may take to
    /// come. Default 30,000.
    pub room_timeout_ms: NonZeroU64,
    /// Time after which a tail or an export ends, to be gone on with in a new stream.
    /// Default 86,400,000.
    pub stream_lifetime_ms: NonZeroU64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            calls_per_caller: nonzero_usize(512),
            calls_per_second_per_caller: nonzero_u32(10_000),
            streams_per_caller: nonzero_usize(1_024),
            exports_per_caller: nonzero_usize(128),
            tails_per_caller: nonzero_usize(1_024),
            ingest_bytes_per_caller: nonzero_usize(128 << 20),
            ingest_bytes: nonzero_usize(256 << 20),
            room_timeout_ms: nonzero(30_000),
            stream_lifetime_ms: nonzero(86_400_000),
        }
    }
}
