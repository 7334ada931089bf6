//! The process: reads its configuration, serves, stops when it is told to.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use service_core::{config, server, telemetry};
use tokio_util::sync::CancellationToken;
use usage_service::Config;
use usage_service::config::ENV_PREFIX;

/// Millions of small texts come and go: this allocator gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Usage analytics over gRPC.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// TOML file; every key has a default, and USAGE_<KEY> in the environment
    /// overrides it.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("usage-service: {}", server::explain(&error));
            ExitCode::from(server::exit_code(&error))
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // What is not Unicode is not ours.
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let config: Config = config::load(ENV_PREFIX, arguments.config.as_deref(), environment.clone())?;
    let _telemetry = telemetry::init(&config.telemetry, "usage-service")?;
    config::warn_of_unknown::<Config>(ENV_PREFIX, environment);
    let server = usage_service::bind(config).await?;

    let shutdown = CancellationToken::new();
    let signal = server::shutdown_signal();
    let ready = format!("ready usage={}", server.local_addr());
    let serving = tokio::spawn(server.serve(shutdown.clone()));
    println!("{ready}");
    let stop = shutdown.clone();
    tokio::spawn(async move {
        signal.await;
        stop.cancel();
    });
    serving.await?
}
