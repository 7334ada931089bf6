//! Both services in one process, and a demo of them.
//!
//! ```text
//! serve ── audit-service + usage-service on SQLite in a data folder
//!   ▲
//! demo ─── sample (made from a seed) or replay (real files)
//!          ─▶ stream (gateway-sdk) ─▶ the services ─▶ ask (gateway-sdk) ─▶ report, investigate, recipes
//! ```
//!
//! - [`serve`]: configuration and life of both services.
//! - [`check`]: compares rollups with their requests, on demand.
//! - [`verify`]: an export of the audit log against what was signed, without any server.
//! - [`sample`]: a platform made from a seed, fitted to a real trace.
//! - [`replay`]: real files instead.
//! - [`demo`]: streams either to the services, asks them, and prints what they say.

pub mod check;
pub mod demo;
pub mod replay;
pub mod sample;
pub mod serve;
pub mod time;
pub mod verify;

use service_core::config::{ConfigError, EXIT_CONFIG};

/// A refusal of what the command line or the environment says: exit status 64.
pub fn refused(why: impl Into<String>) -> anyhow::Error {
    ConfigError::Refused(why.into()).into()
}

/// Exit status of a process that ends with an error: 64 for a configuration that is
/// refused, 1 for everything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let refused = error.chain().any(|cause| cause.is::<ConfigError>());
    if refused { EXIT_CONFIG } else { 1 }
}
