//! Takes what writers left into the rollups, in the background.
//!
//! Answers are exact whenever this happens; how soon it does is a matter of cost. A
//! group of requests is quickly added up by each answer, and a segment is written
//! anew for every sealing: so a little waits a while, and much does not.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};
use service_core::error::Result;
use service_core::telemetry::Metrics;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::RollupConfig;
use crate::store::{Backlog, Sealed, Store};

/// Time between two looks at what waits.
const LOOK: Duration = Duration::from_secs(1);
/// How much waits for the interval at most: what an answer adds up in milliseconds.
const PATIENT: Backlog = Backlog { deltas: 512, bytes: 1 << 20 };
/// A pause after each step, as a multiple of its time, while less than so many bytes wait:
/// sealing leaves most of the machine to writers and answers. Beyond the last it takes no
/// pause, since every answer reads all that waits.
const PAUSES: [(i64, u32); 2] = [(8 << 20, 3), (32 << 20, 1)];
/// From a few segments to a backlog of days.
const SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Seals until `shutdown`.
pub(crate) async fn run(store: Store, config: RollupConfig, metrics: Metrics, shutdown: CancellationToken) {
    let interval = Duration::from_millis(config.seal_interval_ms.get());
    let sealer = Sealer { store, interval, gauges: Gauges::new(metrics.registry()) };
    // A step that is dropped has done nothing, or all of it.
    let _ = shutdown.run_until_cancelled(sealer.run()).await;
}

struct Sealer {
    store: Store,
    interval: Duration,
    gauges: Gauges,
}

impl Sealer {
    async fn run(&self) {
        let mut waiting_since = None;
        loop {
            sleep(LOOK).await;
            if let Err(error) = self.look(&mut waiting_since).await {
                self.gauges.steps.with_label_values(&["failed"]).inc();
                tracing::warn!(%error, "rollups are behind: sealing failed and will be tried again");
            }
        }
    }

    /// Seals all there is, once it is time.
    async fn look(&self, waiting_since: &mut Option<Instant>) -> Result<()> {
        let backlog = self.store.backlog().await?;
        self.gauges.show(&backlog, self.store.rollup_cache_bytes());
        if backlog.deltas == 0 {
            *waiting_since = None;
            return Ok(());
        }
        let since = *waiting_since.get_or_insert_with(Instant::now);
        if backlog.deltas < PATIENT.deltas && backlog.bytes < PATIENT.bytes && since.elapsed() < self.interval {
            return Ok(());
        }
        *waiting_since = None;
        loop {
            let begun = Instant::now();
            let sealed = self.store.seal().await?;
            self.gauges.steps.with_label_values(&[outcome(&sealed)]).inc();
            let Sealed::Deltas { deltas, segments, more } = sealed else {
                return Ok(());
            };
            let elapsed = begun.elapsed();
            self.gauges.seconds.observe(elapsed.as_secs_f64());
            tracing::debug!(deltas, segments, more, ?elapsed, "sealed");
            let backlog = self.store.backlog().await?;
            self.gauges.show(&backlog, self.store.rollup_cache_bytes());
            sleep(elapsed * pause(backlog.bytes)).await;
            if !more {
                return Ok(());
            }
        }
    }
}

fn pause(waiting_bytes: i64) -> u32 {
    PAUSES.iter().find(|(most, _)| waiting_bytes < *most).map_or(0, |(_, pause)| *pause)
}

fn outcome(sealed: &Sealed) -> &'static str {
    match sealed {
        Sealed::Nothing => "nothing",
        Sealed::Elsewhere => "elsewhere",
        Sealed::Deltas { .. } => "sealed",
    }
}

/// | name | labels | what |
/// | --- | --- | --- |
/// | `activity_rollup_steps_total` | outcome | steps of sealing |
/// | `activity_rollup_seal_seconds` | | time of one step |
/// | `activity_rollup_backlog_deltas` | | groups that are not in segments yet |
/// | `activity_rollup_backlog_bytes` | | their size |
/// | `activity_rollup_cache_bytes` | | sections of segments in memory |
struct Gauges {
    steps: IntCounterVec,
    seconds: Histogram,
    deltas: IntGauge,
    bytes: IntGauge,
    cache: IntGauge,
}

impl Gauges {
    fn new(registry: &Registry) -> Self {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("service", "usage");
        let gauge = |name: &str, help: &str| made(IntGauge::with_opts(opts(name, help)));
        let gauges = Self {
            steps: made(IntCounterVec::new(opts("activity_rollup_steps_total", "steps of sealing"), &["outcome"])),
            seconds: made(Histogram::with_opts(
                HistogramOpts::from(opts("activity_rollup_seal_seconds", "time of one step of sealing"))
                    .buckets(SECONDS.to_vec()),
            )),
            deltas: gauge("activity_rollup_backlog_deltas", "groups of requests that are not in segments yet"),
            bytes: gauge("activity_rollup_backlog_bytes", "size of what is not in segments yet"),
            cache: gauge("activity_rollup_cache_bytes", "sections of segments in memory"),
        };
        made(registry.register(Box::new(gauges.steps.clone())));
        made(registry.register(Box::new(gauges.seconds.clone())));
        for gauge in [&gauges.deltas, &gauges.bytes, &gauges.cache] {
            made(registry.register(Box::new(gauge.clone())));
        }
        gauges
    }

    fn show(&self, backlog: &Backlog, cache_bytes: usize) {
        self.deltas.set(backlog.deltas);
        self.bytes.set(backlog.bytes);
        self.cache.set(cache_bytes as i64);
    }
}

/// Names, labels and buckets are constants: that they are accepted, each test that
/// starts a server shows.
#[expect(clippy::expect_used, reason = "the arguments are constants, and well-formed")]
pub(crate) fn made<T>(made: prometheus::Result<T>) -> T {
    made.expect("metrics are well-formed and registered once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_waits_the_shorter_the_pause() {
        assert_eq!([0, 8 << 20, 32 << 20, i64::MAX].map(pause), [3, 1, 0, 0]);
    }
}
