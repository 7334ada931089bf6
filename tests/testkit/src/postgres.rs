//! A PostgreSQL server of the test's own: Debian's binaries, a temporary folder, a free port of 127.0.0.1.
//!
//! The server is set up to catch what a friendly one would hide: a linguistic collation (SQLite compares bytes) and
//! a time zone that is not UTC.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::guard::Guard;
use crate::process::{free_port, lock, send, tail};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

const SETTINGS: &[&str] =
    &["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=300", "timezone=Asia/Kathmandu"];

/// Whether what PostgreSQL acknowledges survives a power cut. Either survives `crash`: the kernel keeps the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// PostgreSQL's defaults: for benchmarks, and whenever in doubt.
    Full,
    /// No fsync: quicker, for tests of behaviour.
    Relaxed,
}

/// A running server; dropped, it ends and its folder goes.
#[derive(Debug)]
pub struct Postgres {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    programs: PathBuf,
    /// User and group to run as, where we are root: PostgreSQL refuses root.
    user: Option<(u32, u32)>,
    durability: Durability,
    port: u16,
    databases: AtomicU32,
    server: Mutex<Server>,
    folder: TempDir,
}

#[derive(Debug)]
struct Server {
    child: Option<Child>,
    guard: Guard,
}

enum Failure {
    /// Worth another try: something else has the port, or the last server's processes are not all gone.
    Taken,
    Fatal(String),
}

impl Postgres {
    /// A server with PostgreSQL's own durable defaults.
    ///
    /// # Panics
    /// When PostgreSQL is not installed, with the command that installs it, or does not start.
    pub async fn start() -> Self {
        Self::start_with(Durability::Full).await
    }

    /// # Panics
    /// As `start` does.
    pub async fn start_with(durability: Durability) -> Self {
        let inner = blocking(move || Inner::start(durability, None)).await;
        Self { inner: Arc::new(inner) }
    }

    /// A streaming replica of another server, which must run: all of its databases, for reading.
    ///
    /// # Panics
    /// As `start` does, or when the other server cannot be copied.
    pub async fn start_replica_of(primary: &Self) -> Self {
        let (durability, port) = (primary.inner.durability, primary.inner.port);
        let inner = blocking(move || Inner::start(durability, Some(port))).await;
        Self { inner: Arc::new(inner) }
    }

    /// The URL of the copy of a database here whose URL at the primary is `url`.
    pub fn replica_url(&self, url: &str) -> String {
        let (before, database) = url.rsplit_once('/').expect("a URL with a database");
        let (before, _port) = before.rsplit_once(':').expect("a URL with a port");
        format!("{before}:{}/{database}", self.inner.port)
    }

    /// The one server of this test process, for tests that want no more than a database of their own. It runs
    /// without fsync and until the process ends, whichever way: starting one takes about a second, and handing it
    /// from the last test to the next would start it anew whenever no two of them overlap.
    ///
    /// # Panics
    /// As `start` does.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_init(|| Self::start_with(Durability::Relaxed)).await
    }

    /// Whether to go without PostgreSQL, said loudly when so: it is not installed and `SKIP_POSTGRES=1` allows it.
    /// `REQUIRE_PEERS=1`, which `tests/run` sets, forbids it again.
    ///
    /// ```no_run
    /// if testkit::Postgres::skipped() {
    ///     return;
    /// }
    /// ```
    pub fn skipped() -> bool {
        use std::io::Write;
        let is_set = |name| std::env::var(name).is_ok_and(|value| value == "1");
        let skipped = is_set("SKIP_POSTGRES") && !is_set("REQUIRE_PEERS") && programs().is_none();
        if skipped {
            let thread = thread::current();
            let test = thread.name().unwrap_or("a test").to_owned();
            // Not eprintln!: the test harness would keep it to itself.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED on PostgreSQL: {test} (not installed, SKIP_POSTGRES=1; tests/install installs it)"
            );
        }
        skipped
    }

    /// Makes an empty database and gives its URL.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn create_database(&self) -> String {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.create_database()).await
    }

    /// The port it listens on, the same after it was stopped and started again.
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// The server's process id, while it runs: its memory can be measured by it.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.inner.server).child.as_ref().map(Child::id)
    }

    /// What the server has written to its log since it was last started.
    pub fn log(&self) -> String {
        fs::read(self.inner.log()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Ends the server as an operator does: connections are cut, everything is written out.
    pub async fn stop(&self) {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.end(Signal::INT)).await;
    }

    /// Ends the server as a crash does: at once, nothing written out; the next start recovers from its log.
    pub async fn crash(&self) {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.end(Signal::QUIT)).await;
    }

    /// Starts it again after `stop` or `crash`, with the same data on the same port, and waits until it accepts.
    ///
    /// # Panics
    /// When it runs already or does not start.
    pub async fn start_again(&self) {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.run()).await;
    }
}

impl Inner {
    /// A new server, or a replica of the one on a port.
    fn start(durability: Durability, primary: Option<u16>) -> Self {
        let programs = programs().unwrap_or_else(|| {
            panic!(
                "PostgreSQL is not installed: run tests/install, or set SKIP_POSTGRES=1 to go without the tests on it"
            )
        });
        let folder = tempfile::Builder::new().prefix("testkit-postgres-").tempdir().expect("a folder for PostgreSQL");
        let user = geteuid().is_root().then(|| {
            system_user("postgres").unwrap_or_else(|| {
                panic!("root cannot run PostgreSQL and there is no user postgres: run tests/install")
            })
        });
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).expect("give the folder to PostgreSQL's user");
        }
        let guard = Guard::new("QUIT", folder.path());
        let server = Mutex::new(Server { child: None, guard });
        let databases = AtomicU32::new(0);
        let port = free_port();
        let inner = Self { programs, user, durability, port, databases, server, folder };
        match primary {
            Some(primary) => inner.copy(primary),
            None => inner.initialize(),
        }
        inner.run();
        inner
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command
            .current_dir(self.folder.path())
            // Its messages are read.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn initialize(&self) {
        let output = self
            .program("initdb")
            .arg("--pgdata")
            .arg(self.data())
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"])
            .args(["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"])
            .output();
        succeeded("initdb", output);
    }

    /// Copies a running server, and sets the copy up to follow it.
    fn copy(&self, primary: u16) {
        let output = self
            .program("pg_basebackup")
            .arg("--pgdata")
            .arg(self.data())
            .args(["--host=127.0.0.1", "--username=postgres", &format!("--port={primary}")])
            .args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"])
            .output();
        succeeded("pg_basebackup", output);
    }

    /// Starts the server and waits until it accepts connections.
    fn run(&self) {
        let mut server = lock(&self.server);
        assert!(server.child.is_none(), "PostgreSQL runs already");
        let end = Instant::now() + START_TIMEOUT;
        loop {
            match self.try_run(&mut server, end) {
                Ok(()) => return,
                Err(Failure::Taken) if Instant::now() < end => thread::sleep(PAUSE),
                Err(Failure::Taken) => {
                    panic!("PostgreSQL: port {} or its memory stays taken", self.port)
                }
                Err(Failure::Fatal(log)) => panic!("PostgreSQL does not start:\n{}", tail(&log)),
            }
        }
    }

    fn try_run(&self, server: &mut Server, end: Instant) -> Result<(), Failure> {
        let log = self.log();
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        if self.durability == Durability::Relaxed {
            command.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("PostgreSQL's log"))
            .spawn()
            .expect("start postgres");
        server.guard.watch(child.id());
        while !accepts(&self.data(), child.id()) {
            let ended = child.try_wait().expect("ask for PostgreSQL's status").is_some();
            if ended || Instant::now() >= end {
                finish(&mut server.guard, child, Signal::KILL);
                let text = fs::read_to_string(&log).unwrap_or_default();
                let taken = text.contains("in use");
                return Err(if ended && taken { Failure::Taken } else { Failure::Fatal(text) });
            }
            thread::sleep(PAUSE);
        }
        server.child = Some(child);
        Ok(())
    }

    fn end(&self, signal: Signal) {
        let mut server = lock(&self.server);
        if let Some(child) = server.child.take() {
            finish(&mut server.guard, child, signal);
        }
    }

    fn create_database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let port = self.port;
        let output = self
            .program("createdb")
            .args(["--host=127.0.0.1", "--username=postgres"])
            .arg(format!("--port={port}"))
            .arg(&name)
            .output();
        succeeded("createdb", output);
        format!("postgres://postgres@127.0.0.1:{port}/{name}")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Its folder goes as well: nothing is worth a last checkpoint, which takes seconds on a busy disk.
        self.end(Signal::QUIT);
    }
}

/// Ends a server with the signal, or by force when that takes too long.
fn finish(guard: &mut Guard, mut child: Child, signal: Signal) {
    let end = Instant::now() + STOP_TIMEOUT;
    let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
    if !ended(&mut child) {
        send(&child, signal);
    }
    while !ended(&mut child) {
        if Instant::now() >= end {
            send(&child, Signal::KILL);
        }
        thread::sleep(PAUSE);
    }
    guard.release();
}

/// The server notes its state in the eighth line of this file, below its own process id in the first: a crashed
/// one leaves its file behind.
fn accepts(data: &Path, pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else {
        return false;
    };
    let mut lines = text.lines().map(str::trim);
    lines.next() == Some(pid.to_string().as_str()) && lines.nth(6) == Some("ready")
}

/// The folder with the newest version's programs: where Debian puts them, or else on the path.
fn programs() -> Option<PathBuf> {
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |folder: &PathBuf| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let mut installed: Vec<_> = debian.map(|entry| entry.path()).filter(|folder| version(folder).is_some()).collect();
    installed.sort_by_key(version);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let needed = ["initdb", "postgres", "createdb", "pg_basebackup"];
    installed
        .into_iter()
        .rev()
        .map(|folder| folder.join("bin"))
        .chain(std::env::split_paths(&path))
        .find(|folder| needed.iter().all(|name| folder.join(name).is_file()))
}

/// User and group ids of a local user.
fn system_user(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2).map(|id| id.parse().ok());
    Some((fields.next()??, fields.next()??))
}

fn succeeded(program: &str, output: std::io::Result<Output>) {
    let output = output.unwrap_or_else(|why| panic!("start {program}: {why}"));
    assert!(output.status.success(), "{program}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Off the runtime's threads, so that a server under test in this process goes on meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
