//! Compares rollups with their requests, in the background: a day at a time, all
//! days in turn, for ever. Segments that differ are named in the log and made anew.
//!
//! They never should: the segments of a day and its requests change in the same
//! transactions. What is found here is a defect, or damage to the database.

use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use service_core::error::{Error, Result};
use service_core::telemetry::Metrics;
use service_core::time_range::rfc3339;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::RollupConfig;
use crate::sealer::made;
use crate::store::{Checked, Store};

const DAY_US: i64 = 86_400_000_000;

/// Checks until `shutdown`.
pub(crate) async fn run(store: Store, config: RollupConfig, metrics: Metrics, shutdown: CancellationToken) {
    let interval = Duration::from_millis(config.check_interval_ms.get());
    let checker = Checker { store, interval, counters: Counters::new(metrics.registry()) };
    // A repair that is dropped has done nothing, or all of it.
    let _ = shutdown.run_until_cancelled(checker.run()).await;
}

struct Checker {
    store: Store,
    interval: Duration,
    counters: Counters,
}

impl Checker {
    async fn run(&self) {
        let mut from_us = i64::MIN;
        loop {
            sleep(self.interval).await;
            from_us = match self.store.day_from(from_us).await {
                Ok(Some(day_us)) => {
                    // Whatever came of it: the others get their turn.
                    self.look(day_us).await;
                    day_us.saturating_add(DAY_US)
                }
                // Round again.
                Ok(None) => i64::MIN,
                Err(error) => {
                    tracing::warn!(%error, "no day to compare with its requests could be read");
                    from_us
                }
            };
        }
    }

    async fn look(&self, day_us: i64) {
        let day = rfc3339(day_us);
        let outcome = match check(&self.store, day_us, true).await {
            Ok(checked) => {
                self.counters.segments.inc_by(checked.segments as u64);
                let outcome = match checked.differing {
                    0 => "equal",
                    _ if checked.repaired => "repaired",
                    _ => "differing",
                };
                tracing::debug!(day, segments = checked.segments, outcome, "rollups were compared");
                if !checked.damaged.is_empty() {
                    self.mend().await;
                }
                outcome
            }
            Err(error) => {
                tracing::warn!(day, %error, "rollups could not be compared with their requests");
                "failed"
            }
        };
        self.counters.days.with_label_values(&[outcome]).inc();
    }

    /// Without what is in a damaged delta there are no answers: all days are gone through at once.
    async fn mend(&self) {
        match check_all(&self.store, true, |_, _| {}).await {
            Ok(summary) if summary.is_well() => tracing::warn!("damaged deltas were made up for by their requests"),
            Ok(_) => tracing::error!("damaged deltas could not be made up for yet: some days were not made anew"),
            Err(error) => tracing::error!(%error, "damaged deltas could not be made up for yet"),
        }
    }
}

/// Compares a day, and only then, if there is something to make anew, keeps others
/// from sealing while it is compared once more and repaired.
pub(crate) async fn check(store: &Store, day_us: i64, repair: bool) -> Result<Checked> {
    let checked = store.check_day(day_us, false).await?;
    if checked.differing == 0 {
        return Ok(checked);
    }
    tracing::error!(
        day = rfc3339(day_us),
        segments = checked.segments,
        differing = checked.differing,
        "rollups are not what their requests add up to"
    );
    if repair { store.check_day(day_us, true).await } else { Ok(checked) }
}

/// What a check of all days found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Days with requests or rollups.
    pub days: usize,
    /// Segments that were compared.
    pub segments: usize,
    /// Those that were not what the requests add up to.
    pub differing: usize,
    /// Whether all of those were made anew.
    pub repaired: bool,
    /// Days that could not be compared, or made anew.
    pub failed: usize,
    /// Groups of requests that wait to be sealed and cannot be read.
    pub damaged: usize,
    /// Whether those were made up for.
    pub mended: bool,
}

impl Summary {
    /// Whether all is what it should be now.
    pub fn is_well(&self) -> bool {
        self.failed == 0 && (self.differing == 0 || self.repaired) && (self.damaged == 0 || self.mended)
    }
}

/// Checks all days once, in their order; hands each that differs, or could not be checked, to `report`. What is wrong
/// with one day keeps no other from being checked.
///
/// What is in a damaged delta is lacking in the days of its requests: once all of these are made anew it is not needed.
///
/// # Errors
///
/// Which days there are cannot be read.
pub async fn check_all(
    store: &Store,
    repair: bool,
    mut report: impl FnMut(i64, std::result::Result<&Checked, &Error>),
) -> Result<Summary> {
    let mut summary = Summary { repaired: repair, ..Summary::default() };
    let damaged = store.damaged_deltas().await?;
    let mut day = store.day_from(i64::MIN).await?;
    while let Some(day_us) = day {
        summary.days += 1;
        match check(store, day_us, repair).await {
            Ok(checked) => {
                summary.segments += checked.segments;
                summary.differing += checked.differing;
                if checked.differing > 0 {
                    summary.repaired &= checked.repaired;
                    report(day_us, Ok(&checked));
                }
            }
            Err(error) => {
                summary.failed += 1;
                report(day_us, Err(&error));
            }
        }
        day = store.day_from(day_us.saturating_add(DAY_US)).await?;
    }
    summary.damaged = damaged.len();
    if repair && !damaged.is_empty() && summary.failed == 0 && (summary.differing == 0 || summary.repaired) {
        store.remove_deltas(&damaged).await?;
        summary.mended = true;
    }
    Ok(summary)
}

/// | name | labels | what |
/// | --- | --- | --- |
/// | `activity_rollup_check_days_total` | outcome: equal, repaired, differing, failed | days that were compared |
/// | `activity_rollup_check_segments_total` | | segments that were compared |
struct Counters {
    days: IntCounterVec,
    segments: IntCounter,
}

impl Counters {
    fn new(registry: &Registry) -> Self {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("service", "usage");
        let counters = Self {
            days: made(IntCounterVec::new(
                opts("activity_rollup_check_days_total", "days whose rollups were compared with their requests"),
                &["outcome"],
            )),
            segments: made(IntCounter::with_opts(opts(
                "activity_rollup_check_segments_total",
                "segments that were compared with their requests",
            ))),
        };
        // There from the start, so that an alert on them can be told from silence.
        for outcome in ["equal", "repaired", "differing", "failed"] {
            counters.days.with_label_values(&[outcome]);
        }
        made(registry.register(Box::new(counters.days.clone())));
        made(registry.register(Box::new(counters.segments.clone())));
        counters
    }
}
