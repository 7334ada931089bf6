//! Configuration: a TOML file (which may be empty or absent), overridden by the
//! environment.
//!
//! A key of the file that nobody reads is refused, because it is a typing error
//! that would otherwise go unnoticed. A variable of the environment that nobody
//! reads is left alone, because the environment is shared with others; one with our
//! prefix is named in a warning ([`warn_of_unknown`]).

mod security;
mod shared;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Deserializer, de};

pub use security::{
    AuthConfig, CertificateRule, ClaimsConfig, ClientCertificates, DenialsConfig, LimitsConfig, TlsConfig,
};
pub(crate) use shared::millis;
pub use shared::{
    DatabaseConfig, DatabaseUrl, IngestConfig, LogFormat, Secret, ServerConfig, TelemetryConfig, optional_listen,
};

/// Exit status of a process whose configuration is refused (`EX_USAGE` of
/// `sysexits.h`).
pub const EXIT_CONFIG: u8 = 64;

/// Why a configuration is refused. Names the file or variable, never a secret.
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable(PathBuf, std::io::Error),
    /// The file is not TOML (in which line, if that is known), or a value has the wrong type.
    Malformed(PathBuf, Option<usize>, Box<toml::de::Error>),
    /// A key that does not exist.
    UnknownKeys(PathBuf, Vec<String>),
    /// A variable whose value does not fit.
    Variable(String, Box<toml::de::Error>),
    /// Values that are well formed and not allowed.
    Refused(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(path, error) => {
                write!(f, "configuration {}: {error}", path.display())
            }
            Self::Malformed(path, line, error) => {
                write!(f, "configuration {}: ", path.display())?;
                if let Some(line) = line {
                    write!(f, "line {line}: ")?;
                }
                write!(f, "{}", wanted(error))?;
                // Of its text only the key: the rest may quote a secret.
                let text = error.to_string();
                match text.lines().find_map(|line| line.strip_prefix("in ")) {
                    Some(key) => write!(f, " in {key}"),
                    None => Ok(()),
                }
            }
            Self::UnknownKeys(path, keys) => {
                write!(f, "configuration {}: unknown key {}", path.display(), keys.join(", "))
            }
            Self::Variable(name, error) => write!(f, "environment {name}: {}", wanted(error)),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

/// As it is shown: what the parser's own error has is the whole file, secrets and all.
impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigError({self})")
    }
}

impl std::error::Error for ConfigError {}

/// What is wrong with a value, in the words of whoever writes TOML.
fn wanted(error: &toml::de::Error) -> String {
    let text = error.message().replace("expected a sequence", r#"expected a list such as ["a", "b"]"#);
    match text.split_once("expected a nonzero ") {
        // What follows is a type of Rust.
        Some((given, _)) => format!("{given}expected a positive whole number"),
        None => text,
    }
}

/// Reads `T` from a file and the environment.
///
/// `T` must give every key a default, so that an empty file works, and must use
/// neither `deny_unknown_fields` nor `flatten` (unknown keys are found here).
/// The variable `PREFIX_KEY` overrides the key `key`, and `PREFIX_TABLE__KEY` the
/// key of a table; values are text, or TOML where the key wants a number, a
/// boolean or a list. Where `file` is given it must exist.
pub fn load<T: DeserializeOwned>(
    prefix: &str,
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let text = match file {
        None => None,
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable(path.to_owned(), error))?;
            Some((path, text))
        }
    };
    read_all(prefix, text.as_ref().map(|(path, text)| (*path, text.as_str())), env)
}

/// Reads `T` from a file's text and the environment.
pub(crate) fn read_all<T: DeserializeOwned>(
    prefix: &str,
    file: Option<(&Path, &str)>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let mut table = toml::Table::new();
    if let Some((path, text)) = file {
        let malformed = |error: toml::de::Error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            ConfigError::Malformed(path.to_owned(), line, Box::new(error))
        };
        table = text.parse().map_err(malformed)?;
        let (_, unknown) = read::<T>(&table).map_err(malformed)?;
        if !unknown.is_empty() {
            return Err(ConfigError::UnknownKeys(path.to_owned(), unknown));
        }
    }

    let mut variables: Vec<(String, String)> = env.into_iter().collect();
    variables.sort();
    for (name, value) in variables {
        let Some(path) = path(prefix, &name) else { continue };
        if let Some(changed) = overlay::<T>(&table, &name, &path, &value)? {
            table = changed;
        }
    }

    match read(&table) {
        Ok((config, _)) => Ok(config),
        Err(error) => Err(ConfigError::Refused(format!("configuration: {}", error.message()))),
    }
}

/// Logs a warning for each variable with our prefix that is no key's: it may be another
/// program's, or a typing error. To be called once there is a log.
pub fn warn_of_unknown<T: DeserializeOwned>(prefix: &str, env: impl IntoIterator<Item = (String, String)>) {
    for variable in unknown_variables::<T>(prefix, env) {
        tracing::warn!(variable, "no key of the configuration has this name; it is left alone");
    }
}

fn unknown_variables<T: DeserializeOwned>(
    prefix: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Vec<String> {
    let is_unknown = |name: &str, value: &str| {
        path(prefix, name).is_some_and(|path| matches!(overlay::<T>(&toml::Table::new(), name, &path, value), Ok(None)))
    };
    let mut unknown: Vec<String> =
        env.into_iter().filter(|(name, value)| is_unknown(name, value)).map(|(name, _)| name).collect();
    unknown.sort();
    unknown
}

/// An address to listen on, with an example for whoever wrote something else.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "wanted is an IP address and a port, such as 127.0.0.1:50051".to_owned())
}

/// For `#[serde(deserialize_with)]`: an [`address`].
pub fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    address(&text).map_err(|wanted| de::Error::custom(format!("{text:?} is no address, {wanted}")))
}

/// The way to the key that a variable with the prefix stands for.
fn path(prefix: &str, name: &str) -> Option<Vec<String>> {
    let key = name.strip_prefix(prefix)?.strip_prefix('_')?;
    Some(key.to_lowercase().split("__").map(str::to_owned).collect())
}

/// The table with one variable laid over it; `None` if `T` has no such key.
fn overlay<T: DeserializeOwned>(
    table: &toml::Table,
    name: &str,
    path: &[String],
    value: &str,
) -> Result<Option<toml::Table>, ConfigError> {
    let dotted = path.join(".");
    let attempt = |value: toml::Value| {
        let mut changed = table.clone();
        set(&mut changed, path, value);
        // Of a table that nobody reads, only the table is told.
        let is_known = |unknown: &[String]| {
            !unknown
                .iter()
                .any(|other| dotted.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        };
        read::<T>(&changed).map(|(_, unknown)| is_known(&unknown).then_some(changed))
    };
    // Text first: a password of digits stays text where text is wanted.
    let error = match attempt(toml::Value::String(value.to_owned())) {
        Ok(outcome) => return Ok(outcome),
        Err(error) => error,
    };
    let literal = format!("value = {value}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    match literal {
        Some(literal) if !literal.is_str() => {
            attempt(literal).map_err(|error| ConfigError::Variable(name.into(), Box::new(error)))
        }
        _ => Err(ConfigError::Variable(name.into(), Box::new(error))),
    }
}

/// Deserializes, and names the keys that were not read.
fn read<T: DeserializeOwned>(table: &toml::Table) -> Result<(T, Vec<String>), toml::de::Error> {
    let mut unknown = Vec::new();
    let config = serde_ignored::deserialize(table.clone(), |path| unknown.push(path.to_string()))?;
    Ok((config, unknown))
}

fn set(table: &mut toml::Table, path: &[String], value: toml::Value) {
    let Some((key, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return;
    }
    let inner = table.entry(key.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if !inner.is_table() {
        *inner = toml::Value::Table(toml::Table::new());
    }
    if let toml::Value::Table(inner) = inner {
        set(inner, rest, value);
    }
}

#[cfg(test)]
mod tests;
