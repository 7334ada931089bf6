//! What a figure is worth nothing without: the machine and its load, versions, memory, and how times are summed up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::Service;
use e2e::tools::root;

/// Cores, processor, memory and what else keeps the machine busy.
pub(crate) fn machine() -> String {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (text("/proc/cpuinfo"), text("/proc/meminfo"));
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_matches([' ', '\t', ':']);
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let gib = kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = text("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("");
    format!("{cores} cores, {model}, {gib} GiB; load before the run {load}")
}

/// The versions of the programs that a run compares with, as they give them themselves.
pub(crate) fn version(program: &Path, argument: &str) -> String {
    match Command::new(program).arg(argument).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            text.lines().next().unwrap_or("").chars().take(60).collect()
        }
        Err(_) => format!("no {}", program.display()),
    }
}

/// The Python that `tests/install --benchmarks` puts DuckDB into.
pub(crate) fn python() -> PathBuf {
    let python = root().join("target/test-tools/bin/python");
    let has = Command::new(&python).args(["-c", "import duckdb"]).output().is_ok_and(|output| output.status.success());
    assert!(has, "no DuckDB for {}: `tests/install --benchmarks` installs it", python.display());
    python
}

pub(crate) fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// The most memory that a process has had since it started, or since `forget_peak`.
pub(crate) fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Processor time that a process has used, its own and the kernel's for it.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may hold blanks: field 3 comes first; 14 and 15 are ticks, a hundredth of a second each.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |at: usize| fields[at - 3].parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / 100.0
}

/// Makes the peak what the process has now.
pub(crate) fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// A service that shows its metrics.
pub(crate) struct Measured {
    pub(crate) service: Service,
    metrics: String,
}

impl Measured {
    pub(crate) async fn start(name: &'static str, url: &str, settings: &[(&str, &str)]) -> Self {
        let metrics = format!("127.0.0.1:{}", testkit::free_port());
        let settings: Vec<_> = settings.iter().copied().chain([("METRICS_LISTEN", metrics.as_str())]).collect();
        let measured = Self { service: Service::start(name, url, &settings).await, metrics };
        // It has begun to serve, and to heed signals, when this is answered.
        measured.metric("activity_healthy", "").await;
        measured
    }

    pub(crate) fn pid(&self) -> u32 {
        self.service.process().pid()
    }

    /// Stops it as an operator does.
    pub(crate) async fn stop(&mut self) {
        let process = self.service.process_mut();
        process.terminate();
        let status = process.exited(Duration::from_secs(60)).await;
        assert!(status.success(), "{status}");
    }

    /// The sum of a metric over its labels that `has` names, or nothing where it is not there.
    pub(crate) async fn metric(&self, name: &str, has: &str) -> Option<f64> {
        e2e::metrics::metric(&self.metrics, name, has).await
    }
}

/// Measured times, sorted.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    pub(crate) fn at(&self, per_mille: usize) -> Duration {
        self.0[(self.0.len() * per_mille / 1000).min(self.0.len() - 1)]
    }

    pub(crate) fn median(&self) -> Duration {
        self.at(500)
    }

    pub(crate) fn p99(&self) -> Duration {
        self.at(990)
    }

    pub(crate) fn max(&self) -> Duration {
        self.at(1000)
    }
}

/// The middle one of a few ratios or rates.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
