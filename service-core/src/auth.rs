//! Who calls: a bearer token or a client's certificate becomes a [`Principal`].
//!
//! ```text
//! authorization: Bearer … ─▶ token (remembered?) ─▶ keys (JWKS file or address) ─┐
//! client certificate (TLS) ─▶ rules of the configuration ────────────────────────┴▶ Principal
//!                                                                                     │
//! layer: health open; reflection if configured; else the table of roles ◀─────────────┘
//!   │ limits of one caller                                └─ refused ─▶ Denials ─▶ an audit log
//!   └─▶ Caller, in the request's extensions ─▶ handler ─▶ Access ─▶ store
//! ```
//!
//! A token that does not hold is refused even beside a good certificate. The caller
//! reads which kind of credential is missing or expired and nothing else; the log has
//! no token either.

mod access;
mod caller;
mod crypto;
mod denials;
mod fetch;
mod keys;
mod layer;
mod limits;
mod roles;
mod room;
mod token;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokio_util::sync::CancellationToken;

pub use access::Access;
pub use caller::Caller;
pub use denials::{Denial, DenialQueue, Denials, Record, Why};
pub(crate) use layer::AuthLayer;
pub(crate) use limits::check as check_limits;
pub use roles::{RoleRow, RoleTable, Sees};
pub(crate) use room::Room;

use crate::clock::now_us;
use crate::config::{AuthConfig, ConfigError};
use crate::error::{Error, Result};
use crate::telemetry::Metrics;
use crate::tls::PeerCertificate;
use token::{Cached, Tokens};

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads everything.
    SuperAdmin,
    /// Reads usage.
    BillingAdmin,
    /// Reads and verifies the audit log.
    Auditor,
    /// Reads its own usage.
    Member,
    /// Records, and reads nothing.
    Writer,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::SuperAdmin, Self::BillingAdmin, Self::Auditor, Self::Member, Self::Writer];

    /// As it is written in tokens and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::SuperAdmin => "super_admin",
            Self::BillingAdmin => "billing_admin",
            Self::Auditor => "auditor",
            Self::Member => "member",
            Self::Writer => "writer",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("{text:?} is not a role, allowed are {names}"))
    }
}

/// A set of roles.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u8);

impl Roles {
    /// The roles among these names; others, which are for other systems, are passed
    /// over.
    fn named(names: &[String]) -> Self {
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Whether it is among them.
    pub fn has(self, role: Role) -> bool {
        self.0 & Self::bit(role) != 0
    }

    fn bit(role: Role) -> u8 {
        1 << role as u8
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().fold(0, |bits, role| bits | Self::bit(role)))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Role::ALL.into_iter().filter(|role| self.has(*role))).finish()
    }
}

/// The instances whose data a caller may write or see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instances {
    /// Every one: `*` was said. Nobody gets this by leaving something out.
    All,
    /// These; maybe none.
    Only(BTreeSet<String>),
}

impl Instances {
    /// Whether this one is among them.
    pub fn contains(&self, instance: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(instances) => instances.contains(instance),
        }
    }
}

/// How a caller has shown who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    /// A bearer token.
    Token,
    /// A client's certificate.
    Certificate,
}

/// Somebody who has shown who it is. Nobody else makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Principal {
    /// The name that records are made under.
    pub subject: String,
    /// What it may do.
    pub roles: Roles,
    /// Where.
    pub instances: Arc<Instances>,
    /// Whose own usage a member sees.
    pub user_id: Option<String>,
    /// How it has shown who it is.
    pub kind: CredentialKind,
    /// From when on the token does not hold, leeway included.
    pub expires_at_us: Option<i64>,
}

impl Principal {
    /// Whether the token has expired, for work that goes on after its call has begun.
    pub fn is_expired(&self, now_us: i64) -> bool {
        self.expires_at_us.is_some_and(|at| at <= now_us)
    }
}

/// Why a credential is not accepted. What exactly is wrong with it is nobody's
/// business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Missing,
    Token,
    Expired,
    Certificate,
    /// There are no keys to check it with at the moment.
    Busy,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing => Self::Unauthenticated("a bearer token or a client certificate is required"),
            Refusal::Token => Self::Unauthenticated("the bearer token is not accepted"),
            Refusal::Expired => Self::Unauthenticated("the bearer token has expired"),
            Refusal::Certificate => Self::Unauthenticated("the client certificate is not accepted"),
            Refusal::Busy => Self::Overloaded("tokens cannot be checked at the moment; try again".to_owned()),
        }
    }
}

/// Who calls, and until when that holds on this connection.
pub(crate) struct Identified {
    pub(crate) principal: Arc<Principal>,
    pub(crate) expires_at_us: Option<i64>,
}

/// Checks the credentials of calls.
pub(crate) struct Authenticator {
    tokens: Option<Tokens>,
    certificates: Vec<(String, Arc<Principal>)>,
    open_reflection: bool,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").finish_non_exhaustive()
    }
}

impl Authenticator {
    /// `None` if neither tokens nor certificates are configured.
    pub(crate) fn new(config: &AuthConfig) -> Result<Option<Arc<Self>>, ConfigError> {
        let tokens = Tokens::new(config)?;
        let mut certificates = Vec::new();
        for rule in &config.certificates {
            let refused = |why: String| ConfigError::Refused(format!("auth.certificates: {why}"));
            let known = ["dns:", "uri:"].iter().any(|kind| rule.san.len() > kind.len() && rule.san.starts_with(kind));
            if !known {
                return Err(refused(format!("san is {:?}, allowed are dns:NAME and uri:URI", rule.san)));
            }
            let roles =
                rule.roles.iter().map(|role| role.parse()).collect::<Result<Roles, String>>().map_err(refused)?;
            if rule.instances.is_empty() {
                return Err(refused(format!("{} has no instances, allowed are their names, and * for all", rule.san)));
            }
            let instances = if rule.instances.iter().any(|instance| instance == "*") {
                Instances::All
            } else {
                Instances::Only(rule.instances.iter().cloned().collect())
            };
            let subject = if rule.subject.is_empty() { &rule.san } else { &rule.subject };
            let principal = Principal {
                subject: subject.clone(),
                roles,
                instances: Arc::new(instances),
                user_id: None,
                kind: CredentialKind::Certificate,
                expires_at_us: None,
            };
            // Names of hosts are the same in either case; those of certificates are told in lower case.
            let san = match rule.san.strip_prefix("dns:") {
                Some(name) => format!("dns:{}", name.to_ascii_lowercase()),
                None => rule.san.clone(),
            };
            certificates.push((san, Arc::new(principal)));
        }
        if tokens.is_none() && certificates.is_empty() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self { tokens, certificates, open_reflection: config.open_reflection })))
    }

    /// Keeps the keys as they should be.
    pub(crate) fn start(&self, metrics: &Metrics, shutdown: &CancellationToken) {
        if let Some(tokens) = &self.tokens {
            tokio::spawn(tokens.keys.clone().run(metrics.clone(), shutdown.clone()));
        }
    }

    /// Who calls, from the headers and the connection.
    pub(crate) async fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&PeerCertificate>,
        metrics: &Metrics,
    ) -> Result<Identified> {
        let outcome = self.check(headers, certificate).await;
        metrics.authenticated(match &outcome {
            Ok((_, Cached::Yes)) => "cached",
            Ok((_, Cached::No)) => "verified",
            Err(Refusal::Busy) => "busy",
            Err(_) => "refused",
        });
        Ok(outcome?.0)
    }

    async fn check(
        &self,
        headers: &HeaderMap,
        certificate: Option<&PeerCertificate>,
    ) -> Result<(Identified, Cached), Refusal> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        if let Some(value) = values.next() {
            let token = value.to_str().ok().and_then(|value| value.split_once(' '));
            let token =
                token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
            return match (token, &self.tokens, values.next()) {
                (Some(token), Some(tokens), None) => {
                    let (principal, cached) = tokens.check(token).await?;
                    Ok((Identified { expires_at_us: principal.expires_at_us, principal }, cached))
                }
                _ => Err(Refusal::Token),
            };
        }
        let Some(certificate) = certificate else {
            return Err(Refusal::Missing);
        };
        let fits = |(san, _): &&(String, Arc<Principal>)| certificate.names.contains(san);
        let expires_at_us = Some(certificate.expires_at_us).filter(|at| *at > now_us());
        match (self.certificates.iter().find(fits), expires_at_us) {
            (Some((_, principal)), Some(_)) => {
                Ok((Identified { principal: principal.clone(), expires_at_us }, Cached::No))
            }
            _ => Err(Refusal::Certificate),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
