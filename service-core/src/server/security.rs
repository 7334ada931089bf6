//! TLS and authentication of one server, made of its configuration.

use std::sync::Arc;

use crate::auth::{Authenticator, Denials, RoleTable, check_limits};
use crate::config::{AuthConfig, ClientCertificates, ConfigError, LimitsConfig, TlsConfig};
use crate::tls::ServerTls;

/// What [`serve`](super::serve) guards a server with.
#[derive(Debug, Clone)]
pub struct Security {
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) auth: Option<Arc<Authenticator>>,
    /// `None` only where nobody is asked who calls.
    pub(super) roles: Option<RoleTable>,
    pub(super) denials: Option<Denials>,
    pub(super) limits: LimitsConfig,
}

impl Security {
    /// Neither TLS nor authentication: everybody may do everything, on loopback.
    pub fn none() -> Self {
        Self { tls: None, auth: None, roles: None, denials: None, limits: LimitsConfig::default() }
    }

    /// Reads certificates and keys; refuses what is there by half. `roles` has to fit what
    /// is served, and counts where authentication is configured.
    pub fn load(tls: &TlsConfig, auth: &AuthConfig, roles: RoleTable) -> Result<Self, ConfigError> {
        if !auth.certificates.is_empty() && tls.client_certificates == ClientCertificates::Off {
            return Err(ConfigError::Refused(
                "tls.client_certificates is off, required beside auth.certificates is optional or required".to_owned(),
            ));
        }
        Ok(Self {
            tls: ServerTls::load(tls)?,
            auth: Authenticator::new(auth)?,
            roles: Some(roles),
            denials: None,
            limits: LimitsConfig::default(),
        })
    }

    /// With refused calls told here, for the service to record them.
    #[must_use]
    pub fn telling(self, denials: Denials) -> Self {
        Self { denials: Some(denials), ..self }
    }

    /// With other limits of one caller than the default.
    pub fn limited(self, limits: &LimitsConfig) -> Result<Self, ConfigError> {
        check_limits(limits)?;
        Ok(Self { limits: limits.clone(), ..self })
    }

    /// Whether callers are asked who they are.
    pub fn authenticates(&self) -> bool {
        self.auth.is_some()
    }

    /// Whether calls may come from other machines: with TLS and authentication, both.
    pub fn is_complete(&self) -> bool {
        self.tls.is_some() && self.auth.is_some()
    }
}
