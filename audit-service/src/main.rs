//! The process: reads its configuration, says where it is ready, serves until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use audit_service::archive::CloudVariables;
use audit_service::{Config, ENV_PREFIX};
use clap::Parser;
use service_core::{config, server, telemetry};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The audit log as a gRPC service.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration in TOML; may be empty or absent. Variables AUDIT_… override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to standard output; if that is closed there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { config::EXIT_CONFIG.into() } else { ExitCode::SUCCESS };
        }
    };
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("audit-service: {}", server::explain(&error));
            server::exit_code(&error).into()
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // A variable that is not text cannot be one of ours.
    let env: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let mut config: Config = config::load(ENV_PREFIX, arguments.config.as_deref(), env.clone())?;
    config.retention.cloud = CloudVariables::of(env.clone());
    let _telemetry = telemetry::init(&config.telemetry, "audit-service")?;
    config::warn_of_unknown::<Config>(ENV_PREFIX, env);
    let stop = CancellationToken::new();
    let server = audit_service::bind(config).await?;
    let signal = server::shutdown_signal();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            signal.await;
            stop.cancel();
        }
    });
    println!("ready audit={}", server.local_addr()?);
    server.serve(stop).await
}
