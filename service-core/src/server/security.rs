//! TLS and authentication of one server, made of its configuration.

use std::sync::Arc;

use crate::auth::{Authenticator, RoleTable};
use crate::config::{AuthConfig, ClientCertificates, ConfigError, TlsConfig};
use crate::tls::ServerTls;

/// What [`serve_secured`](super::serve_secured) guards a server with.
#[derive(Debug, Clone)]
pub struct Security {
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) auth: Option<Arc<Authenticator>>,
    pub(super) roles: RoleTable,
}

impl Security {
    /// Neither TLS nor authentication: everybody may do everything, on loopback.
    pub fn none() -> Self {
        Self { tls: None, auth: None, roles: RoleTable::new(&[]) }
    }

    /// Reads certificates and keys; refuses what is there by half. `roles` counts only
    /// where authentication is configured.
    pub fn load(tls: &TlsConfig, auth: &AuthConfig, roles: RoleTable) -> Result<Self, ConfigError> {
        if !auth.certificates.is_empty() && tls.client_certificates == ClientCertificates::Off {
            return Err(ConfigError::Refused(
                "tls.client_certificates is off, required beside auth.certificates is optional or required".to_owned(),
            ));
        }
        Ok(Self { tls: ServerTls::load(tls)?, auth: Authenticator::new(auth)?, roles })
    }

    /// Whether calls may come from other machines: with TLS and authentication, both.
    pub fn is_complete(&self) -> bool {
        self.tls.is_some() && self.auth.is_some()
    }
}
