//! Both services as an operator runs them: the built programs, with a configuration, on free ports.

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use testkit::{ChildProcess, Postgres, binary};
use tonic::transport::{Channel, Endpoint};

use crate::metrics::metric;

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Which database a sandbox's services keep their data in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// A folder and the services in it; dropped, they are killed and the folder goes.
#[derive(Debug)]
pub struct Sandbox {
    pub audit: Service,
    pub usage: Service,
    pub folder: TempDir,
}

impl Sandbox {
    pub async fn start(engine: Engine) -> Self {
        Self::start_with(engine, &[]).await
    }

    /// With environment variables for both, as [`Service::start`] takes them.
    pub async fn start_with(engine: Engine, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let audit = Service::start("audit", &database_url(engine, &folder, "audit").await, settings).await;
        let usage = Service::start("usage", &database_url(engine, &folder, "usage").await, settings).await;
        Self { audit, usage, folder }
    }
}

/// A database of its own for a service: a file in the folder, or one on this process's PostgreSQL.
pub async fn database_url(engine: Engine, folder: &TempDir, name: &str) -> String {
    match engine {
        Engine::Sqlite => format!("sqlite://{}", folder.path().join(format!("{name}.db")).display()),
        Engine::Postgres => Postgres::shared().await.create_database().await,
    }
}

/// One service's process. It keeps its address over restarts, as a deployed one does.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    settings: Vec<(String, String)>,
    address: String,
    process: ChildProcess,
}

impl Service {
    /// Starts `audit` or `usage` with environment variables without their prefix: `("METRICS_LISTEN", "")`; those of a
    /// cloud as they are.
    pub async fn start(name: &'static str, database_url: &str, settings: &[(&str, &str)]) -> Self {
        let prefix = name.to_uppercase();
        let name_of = |key: &str| if key.starts_with("AWS_") { key.to_owned() } else { format!("{prefix}_{key}") };
        let mut settings: Vec<_> = settings.iter().map(|(key, value)| (name_of(key), (*value).to_owned())).collect();
        settings.push((format!("{prefix}_DATABASE_URL"), database_url.to_owned()));
        if !settings.iter().any(|(key, _)| key.ends_with("_METRICS_LISTEN")) {
            settings.push((format!("{prefix}_METRICS_LISTEN"), "127.0.0.1:0".to_owned()));
        }
        // What the service records of itself is in no test's way that does not ask for it.
        if name == "audit" && !settings.iter().any(|(key, _)| key.ends_with("_ACTIVITY__INSTANCE")) {
            settings.push(("AUDIT_ACTIVITY__INSTANCE".to_owned(), String::new()));
        }
        let listen = format!("127.0.0.1:{}", testkit::free_port());
        let (process, address) = launch(name, &settings, &listen).await;
        Self { name, settings, address, process }
    }

    /// Where it listens: `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn process(&self) -> &ChildProcess {
        &self.process
    }

    pub fn process_mut(&mut self) -> &mut ChildProcess {
        &mut self.process
    }

    /// The sum of a metric over all its labels; zero where it has none yet.
    pub async fn metric(&self, name: &str) -> f64 {
        self.metric_of(name, "").await
    }

    /// The sum of a metric over those of its labels that `has` names, as `result="accepted"`.
    pub async fn metric_of(&self, name: &str, has: &str) -> f64 {
        let log = self.process.log();
        let page = log.rsplit_once("http://").and_then(|(_, rest)| rest.split_once("/metrics"));
        let (address, _) = page.expect("the log says where metrics are, unless a test wants none");
        metric(address, name, has).await.unwrap_or(0.0)
    }

    /// A connection made at its first call, and anew when it broke.
    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(self.url()).unwrap().connect_lazy()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Of the program `archivist`, from the next start on: what is due, and where it dies.
    pub fn archivist(&mut self, due_before_us: i64, dies_at: &str) {
        self.settings.retain(|(key, _)| !key.starts_with("ARCHIVIST_"));
        self.settings.push(("ARCHIVIST_DUE_BEFORE_US".to_owned(), due_before_us.to_string()));
        self.settings.push(("ARCHIVIST_DIES_AT".to_owned(), dies_at.to_owned()));
    }

    /// Starts it again on the same data and the same port.
    pub async fn start_again(&mut self) {
        let (process, address) = launch(self.name, &self.settings, &self.address).await;
        assert_eq!(address, self.address);
        self.process = process;
    }
}

async fn launch(name: &str, settings: &[(String, String)], listen: &str) -> (ChildProcess, String) {
    let program = format!("{name}-service");
    // Another program that serves the same way may stand in for it.
    let own = settings.iter().find(|(key, _)| key.ends_with("_PROGRAM")).map_or(&program, |(_, own)| own);
    let mut command = Command::new(binary(own));
    command
        .env(format!("{}_LISTEN", name.to_uppercase()), listen)
        .envs(settings.iter().map(|(key, value)| (key, value)));
    let process = ChildProcess::start(&mut command);
    let ready = process.line("ready ", READY_TIMEOUT).await;
    let address = ready
        .strip_prefix(&format!("ready {name}="))
        .unwrap_or_else(|| panic!("{program} printed {ready:?}"))
        .to_owned();
    (process, address)
}
