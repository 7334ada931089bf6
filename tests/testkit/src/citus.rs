//! A real Citus cluster, where there is one: databases of a test's own on it, and workers that go away.
//!
//! `TEST_CITUS_URL` is a superuser's URL of the coordinator, of a database in which `pg_dist_node` knows the workers.
//! The tests reach those under the same names and with the same account. Nothing in that database changes.
//!
//! A worker that goes away is a proxy's doing, for no test may end a server that it has not started: the database
//! knows its workers by ports of this process, which the coordinator must be able to reach.

use std::io::Write as _;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const VARIABLE: &str = "TEST_CITUS_URL";

/// A database on the cluster, with nothing in it but the extension and the nodes.
#[derive(Debug)]
pub struct Citus {
    /// The superuser's connection to the coordinator's database.
    coordinator: PgConnectOptions,
    /// The same to those of the workers, not by way of proxies.
    workers: Vec<PgConnectOptions>,
    name: String,
    proxies: Vec<Proxy>,
}

impl Citus {
    /// Whether to go without, said loudly when so.
    pub fn skipped() -> bool {
        let skipped = std::env::var_os(VARIABLE).is_none();
        if skipped {
            let thread = thread::current();
            let test = thread.name().unwrap_or("a test").to_owned();
            // Not eprintln!: the test harness would keep it to itself.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED on Citus: {test} ({VARIABLE} is not set: a superuser's URL of a coordinator)"
            );
        }
        skipped
    }

    /// Makes a database.
    ///
    /// # Panics
    /// When `TEST_CITUS_URL` is not set or is no coordinator's, or a node does not answer.
    pub async fn create() -> Self {
        Self::create_with(false).await
    }

    /// Makes a database that reaches its workers by way of [`Self::cut`] and [`Self::mend`].
    ///
    /// # Panics
    /// As `create` does.
    pub async fn create_behind_proxies() -> Self {
        Self::create_with(true).await
    }

    async fn create_with(proxies: bool) -> Self {
        static DATABASES: AtomicU32 = AtomicU32::new(0);
        let url = std::env::var(VARIABLE).unwrap_or_else(|_| panic!("{VARIABLE} is not set"));
        let given = PgConnectOptions::from_str(&url).expect("TEST_CITUS_URL is a PostgreSQL URL");
        let given = reachable(given.disable_statement_logging()).await;
        let name = format!("test_{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed));
        let mut connection = connect(&given).await;
        // As whom the coordinator sees us, and so where it finds our proxies.
        let (host, port, here): (String, i32, String) = sqlx::query_as(
            "SELECT COALESCE(host(inet_server_addr()), '127.0.0.1'), current_setting('port')::int, \
             COALESCE(host(inet_client_addr()), '127.0.0.1')",
        )
        .fetch_one(&mut connection)
        .await
        .expect("the coordinator's address");
        let nodes: Vec<(String, i32)> =
            sqlx::query_as("SELECT node_name, node_port::int FROM citus_get_active_worker_nodes() ORDER BY 1, 2")
                .fetch_all(&mut connection)
                .await
                .expect("the workers that the coordinator knows");
        assert!(!nodes.is_empty(), "{VARIABLE}: the cluster has no workers");
        let workers: Vec<PgConnectOptions> = nodes
            .iter()
            .map(|(host, port)| given.clone().host(host).port(u16::try_from(*port).expect("a port")))
            .collect();
        let coordinator = given.clone().database(&name);
        for node in std::iter::once(&given).chain(&workers) {
            let create = format!("CREATE DATABASE {name}");
            execute(&mut connect(node).await, &create).await;
            execute(&mut connect(&node.clone().database(&name)).await, "CREATE EXTENSION citus").await;
        }
        let mut this = Self { coordinator, workers, name, proxies: Vec::new() };
        let mut own = connect(&this.coordinator).await;
        execute(&mut own, &format!("SELECT citus_set_coordinator_host('{host}', {port})")).await;
        for (host, port) in nodes {
            let (host, port) = match proxies {
                true => {
                    let proxy = Proxy::start(&here, format!("{host}:{port}")).await;
                    let port = proxy.port;
                    this.proxies.push(proxy);
                    (here.clone(), i32::from(port))
                }
                false => (host, port),
            };
            execute(&mut own, &format!("SELECT citus_add_node('{host}', {port})")).await;
        }
        this
    }

    /// The superuser's URL of the database, at the coordinator.
    pub fn url(&self) -> String {
        self.coordinator.to_url_lossy().to_string()
    }

    /// The same URL for another account, which needs no password.
    pub fn url_as(&self, user: &str) -> String {
        self.coordinator.clone().username(user).to_url_lossy().to_string()
    }

    /// The same URL, and account, at a worker.
    pub fn worker_url(&self, worker: usize) -> String {
        self.workers[worker].clone().database(&self.name).to_url_lossy().to_string()
    }

    /// The name of an account that is removed with the database.
    pub fn role(&self, name: &str) -> String {
        format!("{}_{name}", self.name)
    }

    /// A worker goes away: what is open breaks, and nothing more is accepted.
    ///
    /// # Panics
    /// When the database was not made with proxies.
    pub fn cut(&self, worker: usize) {
        self.proxies[worker].open.send_replace(false);
    }

    /// It is back.
    ///
    /// # Panics
    /// As `cut` does.
    pub fn mend(&self, worker: usize) {
        self.proxies[worker].open.send_replace(true);
    }

    /// Runs statements as the superuser, at the coordinator.
    ///
    /// # Panics
    /// When one fails.
    pub async fn execute(&self, sql: &str) {
        execute(&mut connect(&self.coordinator).await, sql).await;
    }

    /// The texts that a query gives the superuser, at the coordinator.
    ///
    /// # Panics
    /// When it fails.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let mut connection = connect(&self.coordinator).await;
        match sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut connection).await {
            Ok(texts) => texts,
            Err(why) => panic!("{sql}: {why}"),
        }
    }

    /// Removes the database and its accounts from all nodes: on each it keeps a process of Citus' busy.
    ///
    /// # Panics
    /// When a node does not answer.
    pub async fn drop_database(self) {
        for node in std::iter::once(&self.coordinator).chain(&self.workers) {
            let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
            let mut node = connect(&node.clone().database("postgres")).await;
            execute(&mut node, &drop).await;
            let roles: Vec<String> =
                sqlx::query_scalar("SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1)")
                    .bind(format!("{}_", self.name))
                    .fetch_all(&mut node)
                    .await
                    .expect("the accounts of a node");
            for role in roles {
                execute(&mut node, &format!("DROP ROLE {role}")).await;
            }
        }
    }
}

/// Without TLS where it is merely preferred and cannot be had: nodes of Citus offer it with a certificate that rustls
/// does not read.
async fn reachable(given: PgConnectOptions) -> PgConnectOptions {
    let preferred = matches!(given.get_ssl_mode(), PgSslMode::Prefer);
    match preferred && PgConnection::connect_with(&given).await.is_err() {
        true => given.ssl_mode(PgSslMode::Disable),
        false => given,
    }
}

async fn connect(options: &PgConnectOptions) -> PgConnection {
    match PgConnection::connect_with(options).await {
        Ok(connection) => connection,
        Err(why) => panic!("{}:{} of the cluster: {why}", options.get_host(), options.get_port()),
    }
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    if let Err(why) = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await {
        panic!("{sql}: {why}");
    }
}

/// Hands connections on to a worker, while it is open.
#[derive(Debug)]
struct Proxy {
    port: u16,
    open: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens where the coordinator sees this process, and nowhere else.
    async fn start(here: &str, worker: String) -> Self {
        let listener = TcpListener::bind((here, 0)).await.expect("a port for a proxy");
        let port = listener.local_addr().expect("the proxy's port").port();
        let (open, is_open) = watch::channel(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(proxy(listener, Arc::from(worker), is_open));
        Self { port, open, _tasks: tasks }
    }
}

async fn proxy(listener: TcpListener, worker: Arc<str>, mut is_open: watch::Receiver<bool>) {
    let address = listener.local_addr().expect("the proxy's port");
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let open = *is_open.borrow_and_update();
        if !open {
            // Refused is what a server that is gone looks like.
            listener = None;
            connections.shutdown().await;
            if is_open.changed().await.is_err() {
                return;
            }
            continue;
        }
        let accepting = match listener.take() {
            Some(listener) => listener,
            None => match TcpListener::bind(address).await {
                Ok(listener) => listener,
                Err(why) => panic!("{address}, a proxy's, is gone: {why}"),
            },
        };
        tokio::select! {
            accepted = accepting.accept() => {
                if let Ok((from, _)) = accepted {
                    connections.spawn(hand_on(from, Arc::clone(&worker)));
                }
            }
            changed = is_open.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        listener = Some(accepting);
        while connections.try_join_next().is_some() {}
    }
}

async fn hand_on(mut from: TcpStream, worker: Arc<str>) {
    if let Ok(mut to) = TcpStream::connect(&*worker).await {
        let _ = (from.set_nodelay(true), to.set_nodelay(true));
        // Whichever way it ends, both ends are told.
        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
    }
}
