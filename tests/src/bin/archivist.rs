//! audit-service for retention drills: the same server, for whose retention it is a day after `ARCHIVIST_DUE_BEFORE_US`, so
//! that with a period of one day just what was recorded before is due; and which kills itself, as kill -9 does, when that
//! has reached a step for the nth time: `ARCHIVIST_DIES_AT=Swept:3`.
#![expect(clippy::expect_used, reason = "a program of the tests: a panic is its failure")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use audit_service::archive::CloudVariables;
use audit_service::retention::{Step, Surroundings};
use audit_service::{Config, ENV_PREFIX};
use service_core::{clock, config, server, telemetry};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct World {
    now_us: i64,
    dies_at: Option<(String, u32)>,
    reached: AtomicU32,
}

impl Surroundings for World {
    fn now_us(&self) -> i64 {
        self.now_us
    }

    fn reached(&self, step: Step) {
        let step = format!("{step:?}");
        if let Some((at, times)) = &self.dies_at
            && *at == step
            && self.reached.fetch_add(1, Ordering::SeqCst) + 1 == *times
        {
            eprintln!("dies at {step}");
            let own = std::process::id().to_string();
            std::process::Command::new("kill").args(["-9", &own]).status().expect("kill");
            // It takes effect before anything else is done here.
            loop {
                std::thread::park();
            }
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).ok();
    let due_before = variable("ARCHIVIST_DUE_BEFORE_US").map(|us| us.parse().expect("microseconds"));
    let now_us = due_before.map_or_else(clock::now_us, |us: i64| us + 86_400_000_000);
    let dies_at = variable("ARCHIVIST_DIES_AT").filter(|at| !at.is_empty()).map(|at| {
        let (step, times) = at.split_once(':').expect("STEP:TIMES");
        (step.to_owned(), times.parse().expect("a number"))
    });
    let world = World { now_us, dies_at, reached: AtomicU32::new(0) };
    let mut config: Config = config::load(ENV_PREFIX, None, std::env::vars())?;
    config.retention.cloud = CloudVariables::of(std::env::vars());
    let _telemetry = telemetry::init(&config.telemetry, "audit-service")?;
    let stop = CancellationToken::new();
    let server = audit_service::bind(config).await?.with_retention_in(Arc::new(world));
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
