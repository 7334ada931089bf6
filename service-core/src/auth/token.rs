//! Checking a bearer token (JWT, RFC 7519, with the advice of RFC 8725), and
//! remembering that it was checked.
//!
//! What is remembered is the SHA-256 of a token that was good, until it expires or
//! the keys change: never the token itself, and never a refusal.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use hashlink::LruCache;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::keys::KeyStore;
use super::{CredentialKind, Instances, Principal, Refusal, Roles};
use crate::clock::{MICROS_PER_SECOND, now_us};
use crate::config::{AuthConfig, ClaimsConfig, ConfigError};

/// Headers are limited to 16 KiB in all.
const MAX_TOKEN_BYTES: usize = 12 * 1024;
/// As everywhere in the contract.
const MAX_NAME_BYTES: usize = 256;
const MAX_INSTANCES: usize = 1_024;

pub(super) struct Tokens {
    pub(super) keys: Arc<KeyStore>,
    issuer: String,
    audiences: Vec<String>,
    leeway_s: u64,
    claims: ClaimsConfig,
    checked: Mutex<LruCache<[u8; 32], Checked>>,
}

#[derive(Clone)]
struct Checked {
    principal: Arc<Principal>,
    /// Of the key set; `None` for the secret.
    generation: Option<u64>,
}

/// Whether a check was remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cached {
    Yes,
    No,
}

impl Tokens {
    /// `None` if tokens are not configured.
    pub(super) fn new(config: &AuthConfig) -> Result<Option<Self>, ConfigError> {
        let keys = KeyStore::new(config)?;
        let refused = |why: &str| Err(ConfigError::Refused(why.to_owned()));
        if !keys.is_configured() {
            if !config.issuer.is_empty() || !config.audiences.is_empty() {
                return refused(
                    "auth.jwks_file, auth.jwks_url or auth.hs256_secret is required beside auth.issuer and auth.audiences",
                );
            }
            return Ok(None);
        }
        if config.issuer.is_empty() || config.audiences.is_empty() || config.audiences.iter().any(String::is_empty) {
            return refused("auth.issuer and auth.audiences are required where tokens are accepted");
        }
        if config.leeway_s > 60 {
            return refused("auth.leeway_s is over 60, allowed are 0 to 60");
        }
        super::crypto::install();
        Ok(Some(Self {
            keys: Arc::new(keys),
            issuer: config.issuer.clone(),
            audiences: config.audiences.clone(),
            leeway_s: config.leeway_s,
            claims: config.claims.clone(),
            checked: Mutex::new(LruCache::new(NonZeroUsize::get(config.cached_tokens))),
        }))
    }

    /// Who a token stands for.
    pub(super) async fn check(&self, token: &str) -> Result<(Arc<Principal>, Cached), Refusal> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused("it is longer than 12 KiB"));
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let current = self.keys.generation();
        if let Some(checked) = self.lock().get(&hash).cloned() {
            if checked.principal.is_expired(now_us()) {
                return Err(Refusal::Expired);
            }
            if checked.generation.is_none() || checked.generation == current {
                return Ok((checked.principal, Cached::Yes));
            }
        }
        let header = decode_header(token).map_err(|error| refused(what_is_wrong(&error)))?;
        // None is understood, so none may be marked as one that must be (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(refused("its header has crit"));
        }
        let mut wrong = "no key is for its algorithm and key id";
        let (generation, keys) = self.keys.find(header.alg, header.kid.as_deref()).await?;
        for key in keys {
            let mut validation = Validation::new(key.algorithm);
            validation.leeway = self.leeway_s;
            validation.validate_nbf = true;
            validation.set_issuer(&[&self.issuer]);
            validation.set_audience(&self.audiences);
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
            match decode::<Map<String, Value>>(token, &key.key, &validation) {
                Ok(decoded) => {
                    let principal = Arc::new(
                        self.principal(&decoded.claims)
                            .ok_or_else(|| refused("its subject, or an instance, is none"))?,
                    );
                    self.lock().insert(hash, Checked { principal: principal.clone(), generation });
                    return Ok((principal, Cached::No));
                }
                Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => return Err(Refusal::Expired),
                Err(error) => wrong = what_is_wrong(&error),
            }
        }
        Err(refused(wrong))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<[u8; 32], Checked>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn principal(&self, claims: &Map<String, Value>) -> Option<Principal> {
        let expires_s = claims.get("exp").and_then(|exp| {
            // NumericDate may have a fraction (RFC 7519, 2); it is cut off.
            exp.as_i64().or_else(|| exp.as_f64().filter(|exp| exp.abs() < 1e12).map(|exp| exp as i64))
        })?;
        let expires_s = expires_s.checked_add(i64::try_from(self.leeway_s).ok()?)?;
        let instances = texts(claim(claims, &self.claims.instances));
        let instances = if instances.iter().any(|instance| instance == "*") {
            Instances::All
        } else {
            let named = instances.into_iter().filter_map(|instance| name(&instance)).collect::<BTreeSet<_>>();
            (named.len() <= MAX_INSTANCES).then_some(Instances::Only(named))?
        };
        Some(Principal {
            subject: name(claim(claims, &self.claims.subject)?.as_str()?)?,
            roles: Roles::named(&texts(claim(claims, &self.claims.roles))),
            instances: Arc::new(instances),
            user_id: claim(claims, &self.claims.user).and_then(|user| name(user.as_str()?)),
            kind: CredentialKind::Token,
            expires_at_us: Some(expires_s.saturating_mul(MICROS_PER_SECOND)),
        })
    }
}

/// Told to the operator alone, who asks for it; nothing that the token says is in it.
fn refused(why: &str) -> Refusal {
    tracing::debug!(why, "a bearer token is not accepted");
    Refusal::Token
}

fn what_is_wrong(error: &jsonwebtoken::errors::Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidSignature => "its signature is not of the key",
        ErrorKind::InvalidIssuer => "its iss is not auth.issuer",
        ErrorKind::InvalidAudience => "its aud is not among auth.audiences",
        ErrorKind::ImmatureSignature => "its nbf is to come",
        ErrorKind::MissingRequiredClaim(_) => "exp, iss or aud is missing",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => "its algorithm is not allowed",
        _ => "it is no JWT",
    }
}

/// A claim of the whole name, or along its dots.
fn claim<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(whole) = claims.get(path) {
        return Some(whole);
    }
    let mut parts = path.split('.');
    let first = claims.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// A list of texts, or one text with spaces between; whatever else it is, nothing.
fn texts(claim: Option<&Value>) -> Vec<String> {
    match claim {
        Some(Value::String(text)) => text.split_whitespace().map(str::to_owned).collect(),
        Some(Value::Array(items)) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

/// What may stand as a name in a record.
fn name(text: &str) -> Option<String> {
    let fits = !text.is_empty() && text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
}
