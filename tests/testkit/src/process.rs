//! Any program as a child of a test: wait for a line of its output, signal it, wait for its end.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::guard::Guard;

const PAUSE: Duration = Duration::from_millis(5);

/// A running program. Dropped, it is killed; when the test is failing, its log is printed first.
#[derive(Debug)]
pub struct ChildProcess {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    output: Arc<Mutex<Output>>,
    guard: Guard,
    folder: TempDir,
}

#[derive(Debug, Default)]
struct Output {
    lines: Vec<String>,
    ended: bool,
}

impl ChildProcess {
    /// Starts the command; its standard output is kept as lines, its standard error as a log.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let folder = tempfile::tempdir().expect("a folder for a child's log");
        let log = File::create(folder.path().join("log")).expect("a child's log");
        let mut guard = Guard::new("KILL", folder.path());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|why| panic!("start {name}: {why}"));
        guard.watch(child.id());
        let stdout = child.stdout.take().expect("standard output is piped");
        let output = Arc::<Mutex<Output>>::default();
        let reader = Arc::clone(&output);
        // A thread and not a task: the child may outlive the runtime of the test that started it.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                lock(&reader).lines.push(line);
            }
            lock(&reader).ended = true;
        });
        Self { name, child, status: None, output, guard, folder }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed until now.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.output).lines.clone()
    }

    /// What it has written to standard error until now.
    pub fn log(&self) -> String {
        fs::read(self.folder.path().join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The first line printed that begins with `prefix`, waited for if need be.
    ///
    /// # Panics
    /// When none comes within `timeout`, or the output ends without one.
    pub async fn line(&self, prefix: &str, timeout: Duration) -> String {
        let end = Instant::now() + timeout;
        loop {
            let ended = {
                let output = lock(&self.output);
                if let Some(line) = output.lines.iter().find(|line| line.starts_with(prefix)) {
                    return line.clone();
                }
                output.ended
            };
            assert!(!ended, "{} ended without a line that begins with {prefix:?}", self.name);
            assert!(
                Instant::now() < end,
                "{} printed no line that begins with {prefix:?} within {timeout:?}",
                self.name
            );
            sleep(PAUSE).await;
        }
    }

    /// Sends a signal (`Signal::TERM`, `Signal::STOP`, …) unless the process is known to have ended.
    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            send(&self.child, signal);
        }
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// `kill -9`: returns when the process is gone.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            self.signal(Signal::KILL);
            self.guard.release();
            self.status = self.child.wait().ok();
        }
    }

    /// Waits for the end and gives its status; all that it printed has then arrived.
    ///
    /// # Panics
    /// When the process still runs after `timeout`.
    pub async fn exited(&mut self, timeout: Duration) -> ExitStatus {
        let end = Instant::now() + timeout;
        let status = loop {
            if self.status.is_none() {
                self.status = self.child.try_wait().expect("ask for a child's status");
            }
            if let Some(status) = self.status {
                break status;
            }
            assert!(Instant::now() < end, "{} still runs after {timeout:?}", self.name);
            sleep(PAUSE).await;
        };
        self.guard.release();
        // The last lines may still be on their way. Not for ever: a grandchild can keep the pipe open.
        while !lock(&self.output).ended && Instant::now() < end {
            sleep(PAUSE).await;
        }
        status
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} printed:\n{}", self.name, tail(&self.lines().join("\n")));
            eprintln!("--- {} logged:\n{}\n---", self.name, tail(&self.log()));
        }
        self.kill();
    }
}

/// The last lines of a long text.
pub(crate) fn tail(text: &str) -> &str {
    const LINES: usize = 200;
    match text.trim_end().rmatch_indices('\n').nth(LINES - 1) {
        Some((end, _)) => &text[end + 1..],
        None => text,
    }
}

/// The caller has not waited for the child, so that its id is still its own.
pub(crate) fn send(child: &Child, signal: Signal) {
    // The only error left is that it has just ended, which is what most signals are for.
    let _ = kill_process(Pid::from_child(child), signal);
}

/// A failed test must not make the next one fail for its poison.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A port of 127.0.0.1 that nobody listens on, below those the kernel hands out by itself (from 32768): neither a
/// test that binds port 0 nor an outgoing connection takes it before it is used, or while its server is stopped.
/// It is asked for by connecting: a socket bound to find out would live on for a moment in a child started meanwhile.
///
/// # Panics
/// When a hundred ports in a row are taken.
pub fn free_port() -> u16 {
    const FIRST: u64 = 20_000;
    const COUNT: u64 = 12_000;
    (0..100)
        .filter_map(|_| u16::try_from(FIRST + RandomState::new().hash_one(()) % COUNT).ok())
        .find(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_err())
        .expect("a free port")
}

/// The physical memory that a process holds at this moment, in bytes.
///
/// # Panics
/// When there is no such process.
pub fn rss_bytes(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).unwrap_or_else(|why| panic!("{path}: {why}"));
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|kibibytes| kibibytes.parse::<u64>().ok())
        .map(|kibibytes| kibibytes * 1024)
        .unwrap_or_else(|| panic!("{path} has no VmRSS: the process has ended"))
}

/// How many files, sockets among them, a process holds open at this moment.
///
/// # Panics
/// When there is no such process.
pub fn open_files(pid: u32) -> usize {
    let path = format!("/proc/{pid}/fd");
    fs::read_dir(&path).unwrap_or_else(|why| panic!("{path}: {why}")).count()
}
