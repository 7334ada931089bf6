//! Logs to standard error, traces to a collector, metrics for Prometheus.

pub mod metrics;

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, filter, fmt};

pub use metrics::{Metrics, serve_metrics};

use crate::config::{ConfigError, LogFormat, TelemetryConfig};

/// How long the last spans may take on their way out when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Those who say more than is worth a line, and from where on they are heard: two tell of
/// every migration that there is nothing to do, one of every connection that it cut off,
/// so that whoever floods a server would flood its log.
const QUIET: [(&str, &str); 3] = [("sea_orm_migration", "warn"), ("sqlx::postgres::notice", "warn"), ("h2", "error")];

/// Keeps traces flowing; dropping it sends what is left, in bounded time.
#[derive(Debug)]
#[must_use = "dropping the guard stops tracing"]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            // At the end of the process, with nobody left to act on a failure.
            let _ = provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Sets up logging to standard error and, where an endpoint is configured, OTLP
/// traces. Once a process, inside the runtime.
pub fn init(config: &TelemetryConfig, service_name: &str) -> anyhow::Result<TelemetryGuard> {
    let log_filter = log_filter(&config.log)?;
    let stderr = fmt::layer().with_writer(std::io::stderr);
    let log = match config.log_format {
        LogFormat::Text => stderr.with_ansi(std::io::stderr().is_terminal()).with_filter(log_filter).boxed(),
        LogFormat::Json => stderr.json().with_filter(log_filter).boxed(),
    };

    let provider = tracer_provider(config, service_name)?;
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("activity"))
            // Our own spans only: the exporter uses h2 and tonic itself, and would
            // otherwise trace its own sending.
            .with_filter(filter::filter_fn(|metadata| {
                let target = metadata.target();
                ["service_core", "audit_service", "usage_service", "standalone"]
                    .iter()
                    .any(|ours| target.starts_with(ours))
            }))
    });
    tracing_subscriber::registry().with(log).with(traces).try_init().context("telemetry is set up already")?;
    Ok(TelemetryGuard { provider })
}

/// The filter as it is written, and those of [`QUIET`] unless it names them or is not the
/// usual one.
fn log_filter(text: &str) -> Result<EnvFilter, ConfigError> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let refused = || {
        ConfigError::Refused(format!(
            "telemetry.log is {text:?}, allowed is a level ({}), or targets with theirs as in info,sqlx=warn",
            LEVELS.join(", ")
        ))
    };
    // A bare word counts as a target for the library, of which there is nothing to log:
    // a level with a typing error would silence everything.
    let is_level = |word: &str| LEVELS.contains(&word.to_lowercase().as_str());
    let directives: Vec<&str> = text.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    if !directives.iter().all(|directive| directive.contains(['=', '[', ']']) || is_level(directive)) {
        return Err(refused());
    }
    let is_usual = directives.iter().any(|directive| ["info", "warn"].contains(&directive.to_lowercase().as_str()));
    let quiet = QUIET.iter().filter(|(target, _)| is_usual && !text.contains(target));
    let quiet = quiet.map(|(target, level)| format!("{target}={level}"));
    let all: Vec<String> = directives.into_iter().map(str::to_owned).chain(quiet).collect();
    EnvFilter::builder().parse(all.join(",")).map_err(|_| refused())
}

fn tracer_provider(config: &TelemetryConfig, service_name: &str) -> anyhow::Result<Option<SdkTracerProvider>> {
    if config.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&config.otlp_endpoint)
        .build()
        .with_context(|| {
            format!(
                "telemetry.otlp_endpoint is {:?}, wanted is a URL such as http://127.0.0.1:4317",
                config.otlp_endpoint
            )
        })?;
    let resource = Resource::builder().with_service_name(service_name.to_owned()).build();
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_targets_with_theirs() {
        for text in ["", "info", "WARN", "info,sqlx=warn", "warn, h2=off", "sea_orm_migration=info", "[rpc]=debug"] {
            log_filter(text).expect(text);
        }
        for text in ["shouty", "info,sqlx", "inof,sqlx=warn", "info=shouty"] {
            let why = log_filter(text).expect_err(text).to_string();
            assert!(why.starts_with(&format!("telemetry.log is {text:?}, allowed is a level (off, ")), "{why}");
        }
        let said = |text: &str, what: &str| log_filter(text).expect(text).to_string().contains(what);
        for (text, quiet) in [("info", true), ("debug", false), ("off", false), ("info,sea_orm_migration=info", false)]
        {
            assert_eq!(said(text, "sea_orm_migration=warn"), quiet, "{text}");
        }
        for (text, quiet) in [("info", true), ("Warn", true), ("debug", false), ("info,h2=debug", false)] {
            assert_eq!(said(text, "h2=error"), quiet, "{text}");
        }
    }
}
