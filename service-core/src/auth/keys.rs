//! The keys that tokens are checked with: from a JWKS file or address, read by one
//! task only, so that no caller can cause a flood.
//!
//! ```text
//! every jwks_refresh ───────────────┐
//! a key id nobody knows ─▶ wanted ──┴─▶ the task: read, at most once in jwks_retry for
//!   waits for the read that it asked     those who ask; parse; a new set, a new generation
//! ```
//!
//! A read that fails leaves the keys as they are, until they are `jwks_stale` old.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Refusal;
use super::fetch::Fetcher;
use crate::config::{AuthConfig, ConfigError, millis};
use crate::files::{Stamp, stamp};
use crate::telemetry::Metrics;

/// More than any provider has at once.
const MAX_KEYS: usize = 64;
/// Callers that wait for one read; more are told to try again.
const MAX_WAITING: usize = 64;
/// Time between looks at a file.
const LOOK: Duration = Duration::from_secs(10);
/// RSA keys below 2,048 bits are not used (ring refuses them as well).
const MIN_MODULUS_BYTES: usize = 256;
const MIN_SECRET_BYTES: usize = 32;

/// A key and the one algorithm that it is for: what a token's header says chooses
/// among keys, never the algorithm of a key.
#[derive(Clone)]
pub(super) struct Key {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

enum Source {
    None,
    File(PathBuf),
    Address(Fetcher),
}

pub(super) struct KeyStore {
    source: Source,
    secret: Option<Key>,
    refresh: Duration,
    retry: Duration,
    stale: Duration,
    patience: Duration,
    set: RwLock<Arc<Set>>,
    reads: Mutex<Reads>,
    wanted: Notify,
    done: watch::Sender<u64>,
    waiting: Semaphore,
}

#[derive(Default)]
struct Set {
    keys: Vec<Key>,
    text: Bytes,
    /// The last read that worked.
    read_at: Option<Instant>,
    /// Changes with the keys.
    generation: u64,
}

#[derive(Default)]
struct Reads {
    last: Option<Instant>,
    running: bool,
    file: Option<Stamp>,
}

impl KeyStore {
    /// A file is read at once, an address by [`KeyStore::run`].
    pub(super) fn new(config: &AuthConfig) -> Result<Self, ConfigError> {
        let refused = |why: &str| Err(ConfigError::Refused(why.to_owned()));
        let source = match (config.jwks_file.as_os_str().is_empty(), config.jwks_url.as_str()) {
            (true, "") => Source::None,
            (false, "") => Source::File(config.jwks_file.clone()),
            (true, url) => {
                let timeout = millis(config.jwks_timeout_ms);
                Source::Address(Fetcher::new("auth.jwks_url", url, &config.jwks_ca_file, timeout)?)
            }
            (false, _) => return refused("auth.jwks_file and auth.jwks_url are both there, allowed is one"),
        };
        let secret = match config.hs256_secret.as_ref().map(|secret| secret.expose().as_bytes()) {
            None | Some([]) => None,
            Some(secret) if secret.len() < MIN_SECRET_BYTES => {
                return refused("auth.hs256_secret is too short, allowed are 32 bytes and more");
            }
            Some(secret) => Some(Key { id: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) }),
        };
        let store = Self {
            source,
            secret,
            refresh: millis(config.jwks_refresh_ms),
            retry: millis(config.jwks_retry_ms),
            stale: millis(config.jwks_stale_ms),
            patience: millis(config.jwks_timeout_ms) + Duration::from_secs(1),
            set: RwLock::default(),
            reads: Mutex::default(),
            wanted: Notify::new(),
            done: watch::Sender::new(0),
            waiting: Semaphore::new(MAX_WAITING),
        };
        if let Source::File(path) = &store.source {
            store.reads().file = stamp(path);
            let taken = std::fs::read(path).map_err(anyhow::Error::new).and_then(|text| store.take(text.into()));
            taken.map_err(|error| ConfigError::Refused(format!("auth.jwks_file {}: {error:#}", path.display())))?;
        }
        Ok(store)
    }

    /// Whether there is anything to check tokens with.
    pub(super) fn is_configured(&self) -> bool {
        self.secret.is_some() || !matches!(self.source, Source::None)
    }

    /// Of the keys that may be used now; `None` where they are too old.
    pub(super) fn generation(&self) -> Option<u64> {
        let set = self.set();
        self.is_fresh(&set).then_some(set.generation)
    }

    /// The keys that a token with this header may have been made with, and the
    /// generation that they are of (none: the secret).
    pub(super) async fn find(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> Result<(Option<u64>, Vec<Key>), Refusal> {
        if algorithm == Algorithm::HS256 {
            return Ok((None, self.secret.iter().cloned().collect()));
        }
        let found = self.known(algorithm, id);
        // What no key can be for is not worth a read.
        let is_possible = matches!(algorithm, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA);
        if !found.1.is_empty() || !is_possible || matches!(self.source, Source::None) {
            return Ok(found);
        }
        self.read_again().await?;
        let found = self.known(algorithm, id);
        // Without keys nobody can say whether the token is good.
        if found.0.is_none() { Err(Refusal::Busy) } else { Ok(found) }
    }

    fn known(&self, algorithm: Algorithm, id: Option<&str>) -> (Option<u64>, Vec<Key>) {
        let set = self.set();
        if !self.is_fresh(&set) {
            return (None, Vec::new());
        }
        let fits = |key: &&Key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id);
        (Some(set.generation), set.keys.iter().filter(fits).cloned().collect())
    }

    fn is_fresh(&self, set: &Set) -> bool {
        matches!(self.source, Source::None) || set.read_at.is_some_and(|at| at.elapsed() < self.stale)
    }

    fn set(&self) -> Arc<Set> {
        self.set.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reads(&self) -> std::sync::MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a read and waits for it, unless there was one a short while ago.
    async fn read_again(&self) -> Result<(), Refusal> {
        let _waiting = self.waiting.try_acquire().map_err(|_| Refusal::Busy)?;
        // Before looking: a read that ends in between is not missed.
        let mut done = self.done.subscribe();
        {
            let reads = self.reads();
            if !reads.running && reads.last.is_some_and(|at| at.elapsed() < self.retry) {
                return Ok(());
            }
        }
        self.wanted.notify_one();
        match timeout(self.patience, done.changed()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::Busy),
        }
    }

    /// Keeps the keys as they should be until `shutdown`.
    pub(super) async fn run(self: Arc<Self>, metrics: Metrics, shutdown: CancellationToken) {
        let every = match &self.source {
            Source::None => return,
            Source::File(_) => self.refresh.min(LOOK),
            Source::Address(_) => self.refresh,
        };
        // What is wrong is told once.
        let mut told = String::new();
        let mut next = Instant::now() + if matches!(self.source, Source::File(_)) { every } else { Duration::ZERO };
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep_until(next) => {}
                () = self.wanted.notified() => {
                    if self.reads().last.is_some_and(|at| at.elapsed() < self.retry) {
                        continue;
                    }
                }
            }
            {
                let mut reads = self.reads();
                reads.last = Some(Instant::now());
                reads.running = true;
            }
            let read = tokio::select! {
                () = shutdown.cancelled() => return,
                read = self.read() => read,
            };
            self.reads().running = false;
            self.done.send_modify(|count| *count += 1);
            next = Instant::now() + if read.is_ok() { every } else { self.retry.min(every) };
            if read.is_ok() {
                told.clear();
            }
            match read {
                Ok(false) => {}
                Ok(true) => {
                    metrics.reloaded("jwks", true);
                    tracing::info!(keys = self.set().keys.len(), "the keys of tokens were read");
                }
                Err(error) => {
                    metrics.reloaded("jwks", false);
                    let error = format!("{error:#}");
                    match self.set().keys.len() {
                        _ if error == told => {}
                        0 => {
                            tracing::error!(error, "the keys of tokens cannot be read; until then no token is accepted")
                        }
                        _ => tracing::error!(
                            error,
                            "the keys of tokens cannot be read; the old ones stay until they are too old"
                        ),
                    }
                    told = error;
                }
            }
        }
    }

    /// Whether the keys are others now.
    async fn read(&self) -> anyhow::Result<bool> {
        match &self.source {
            Source::None => Ok(false),
            Source::Address(fetcher) => self.take(fetcher.get().await?),
            Source::File(path) => {
                let now = stamp(path);
                ensure!(now.is_some(), "{} is not there", path.display());
                if self.reads().file == now {
                    return self.take(self.set().text.clone());
                }
                let text = tokio::fs::read(path).await.with_context(|| format!("{}", path.display()))?;
                let is_new = self.take(text.into())?;
                // One that is not usable is read again, and the keys grow old meanwhile.
                self.reads().file = now;
                Ok(is_new)
            }
        }
    }

    fn take(&self, text: Bytes) -> anyhow::Result<bool> {
        let old = self.set();
        let is_new = old.read_at.is_none() || old.text != text;
        let keys = if is_new { parse(&text)? } else { old.keys.clone() };
        let generation = old.generation + u64::from(is_new);
        let set = Set { keys, text, read_at: Some(Instant::now()), generation };
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
        Ok(is_new)
    }
}

/// The usable keys of a JWKS (RFC 7517). Keys of other kinds are passed over;
/// symmetric ones always, because a set is public.
fn parse(text: &[u8]) -> anyhow::Result<Vec<Key>> {
    #[derive(serde::Deserialize)]
    struct Jwks {
        keys: Vec<serde_json::Value>,
    }
    let set: Jwks = serde_json::from_slice(text).context("not a JWKS")?;
    ensure!(set.keys.len() <= MAX_KEYS, "{} keys, allowed are {MAX_KEYS}", set.keys.len());
    let keys: Vec<Key> = set.keys.into_iter().filter_map(|key| usable(serde_json::from_value(key).ok()?)).collect();
    ensure!(!keys.is_empty(), "no key for RS256, ES256 or EdDSA among them");
    Ok(keys)
}

fn usable(jwk: Jwk) -> Option<Key> {
    let (algorithm, name) = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => {
            let modulus = URL_SAFE_NO_PAD.decode(&rsa.n).ok()?;
            let significant = modulus.iter().skip_while(|byte| **byte == 0).count();
            (significant >= MIN_MODULUS_BYTES).then_some((Algorithm::RS256, KeyAlgorithm::RS256))?
        }
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    let for_signing = jwk.common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let same = jwk.common.key_algorithm.as_ref().is_none_or(|own| *own == name);
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    (for_signing && same).then_some(Key { id: jwk.common.key_id, algorithm, key })
}
