//! Both services in one process, on databases in one folder.
//!
//! The settings are those of the two programs: their environment variables, over
//! which the command line goes, and under which lies a database in the data folder.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use audit_service::archive::CloudVariables;
use service_core::config::{self, ConfigError, DatabaseUrl};
use tokio_util::sync::CancellationToken;

/// The names of both databases in the folder.
pub const DATABASES: [&str; 2] = ["audit.db", "usage.db"];

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where the databases are.
    pub data_dir: PathBuf,
    /// Where the audit service listens, if not where its own settings say.
    pub audit_listen: Option<SocketAddr>,
    /// Where the usage service listens, if not where its own settings say.
    pub usage_listen: Option<SocketAddr>,
}

/// The configuration of each service.
#[derive(Clone, Debug)]
pub struct Configs {
    /// Of the audit service.
    pub audit: audit_service::Config,
    /// Of the usage service.
    pub usage: usage_service::Config,
}

/// Both services, bound and migrated, not yet serving.
#[derive(Debug)]
pub struct Pair {
    audit: audit_service::Server,
    usage: usage_service::Server,
}

/// Reads the configuration of both services.
///
/// # Errors
///
/// A [`ConfigError`] for what is refused.
pub fn configs(settings: &Settings, env: impl IntoIterator<Item = (String, String)>) -> Result<Configs, ConfigError> {
    let mut variables = BTreeMap::new();
    let prefixes = [audit_service::ENV_PREFIX, usage_service::config::ENV_PREFIX];
    for (prefix, file) in prefixes.into_iter().zip(DATABASES) {
        variables.insert(format!("{prefix}_DATABASE_URL"), database(&settings.data_dir, file)?);
    }
    variables.extend(env);
    let listen = [
        (audit_service::ENV_PREFIX, settings.audit_listen),
        (usage_service::config::ENV_PREFIX, settings.usage_listen),
    ];
    for (prefix, listen) in listen {
        if let Some(listen) = listen {
            variables.insert(format!("{prefix}_LISTEN"), listen.to_string());
        }
    }
    Ok(Configs {
        audit: audit(variables.clone())?,
        usage: config::load(usage_service::config::ENV_PREFIX, None, variables)?,
    })
}

/// Reads the configuration of the audit service alone.
///
/// # Errors
///
/// A [`ConfigError`] for what is refused.
pub fn audit(env: impl IntoIterator<Item = (String, String)>) -> Result<audit_service::Config, ConfigError> {
    let env: Vec<(String, String)> = env.into_iter().collect();
    let mut audit: audit_service::Config = config::load(audit_service::ENV_PREFIX, None, env.clone())?;
    audit.retention.cloud = CloudVariables::of(env);
    Ok(audit)
}

/// Logs a warning for each variable that looks like ours and does nothing.
pub fn warn_of_unknown(env: impl IntoIterator<Item = (String, String)>) {
    let env: Vec<(String, String)> = env.into_iter().collect();
    for (variable, _) in env.iter().filter(|(name, _)| name.starts_with("USAGE_TELEMETRY__")) {
        tracing::warn!(variable, "one process has one log, which AUDIT_TELEMETRY__… is for; it is left alone");
    }
    config::warn_of_unknown::<audit_service::Config>(audit_service::ENV_PREFIX, env.clone());
    config::warn_of_unknown::<usage_service::Config>(usage_service::config::ENV_PREFIX, env);
}

fn database(folder: &Path, file: &str) -> Result<String, ConfigError> {
    let path = folder.join(file);
    match path.to_str() {
        // A `?` would begin the URL's parameters.
        Some(text) if !text.contains('?') => Ok(DatabaseUrl::sqlite(text).expose().to_owned()),
        _ => Err(ConfigError::Refused(format!(
            "data folder {} is not usable; allowed are paths in UTF-8 without a question mark",
            folder.display()
        ))),
    }
}

/// Makes the data folder if there is none, opens both databases, and listens.
///
/// # Errors
///
/// What the services' own `bind` refuses, and a folder that cannot be made.
pub async fn bind(settings: &Settings, configs: Configs) -> Result<Pair> {
    std::fs::DirBuilder::new()
        .recursive(true)
        // What the platform did is nobody else's on this machine.
        .mode(0o700)
        .create(&settings.data_dir)
        .with_context(|| format!("cannot make the data folder {}", settings.data_dir.display()))?;
    Ok(Pair {
        audit: audit_service::bind(configs.audit).await.context("audit")?,
        usage: usage_service::bind(configs.usage).await.context("usage")?,
    })
}

impl Pair {
    /// Where the audit and the usage service listen.
    ///
    /// # Errors
    ///
    /// What the operating system says of its own socket.
    pub fn addresses(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.audit.local_addr()?, self.usage.local_addr()))
    }

    /// Serves until `shutdown`, and then until both have drained. Where one of them
    /// ends early the other one is stopped too: half a platform is no platform.
    ///
    /// # Errors
    ///
    /// The first service's that failed.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let audit = self.audit.serve(shutdown.clone());
        let usage = self.usage.serve(shutdown.clone());
        let (audit, usage) = tokio::join!(ended(audit, &shutdown), ended(usage, &shutdown));
        audit.context("audit")?;
        usage.context("usage")
    }
}

async fn ended(service: impl Future<Output = Result<()>>, shutdown: &CancellationToken) -> Result<()> {
    let outcome = service.await;
    shutdown.cancel();
    outcome
}
