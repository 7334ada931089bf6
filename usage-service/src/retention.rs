//! Lets go of what is older than it is to be kept, in the background: at the start,
//! and every hour. How is in `store::retention`.
//!
//! Time goes on with the requests: a clock that is far ahead removes nothing that is
//! to be kept as of the newest of them, and without requests nothing is let go.

use std::num::NonZeroU32;
use std::time::Duration;

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use service_core::clock;
use service_core::error::Result;
use service_core::telemetry::Metrics;
use service_core::time_range::rfc3339;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::RetentionConfig;
use crate::sealer::made;
use crate::store::{Kept, Store, Swept};

/// Time between two looks. A horizon moves once a day.
const INTERVAL: Duration = Duration::from_secs(3_600);
/// Before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);
const DAY_US: i64 = 86_400 * clock::MICROS_PER_SECOND;

/// Removes until `shutdown`.
pub(crate) async fn run(store: Store, config: RetentionConfig, metrics: Metrics, shutdown: CancellationToken) {
    let gauges = Gauges::new(metrics.registry());
    let retention = async {
        loop {
            let pause = match sweep(&store, &config, clock::now_us(), &gauges).await {
                Ok(swept) if swept.busy == 0 => INTERVAL,
                Ok(swept) => {
                    tracing::warn!(
                        partitions = swept.busy,
                        "partitions to remove were in use; they will be tried again"
                    );
                    AGAIN
                }
                Err(error) => {
                    tracing::warn!(%error, "removing what is not to be kept failed and will be tried again");
                    AGAIN
                }
            };
            sleep(pause).await;
        }
    };
    // Every step is whole or not at all, and what is left is found at the next start.
    let _ = shutdown.run_until_cancelled(retention).await;
}

async fn sweep(store: &Store, config: &RetentionConfig, now_us: i64, gauges: &Gauges) -> Result<Swept> {
    let before = store.kept().await?;
    let kept = match horizons(config, now_us, store.newest_request().await?) {
        Some((requests_us, rollups_us)) => store.retain(requests_us, rollups_us).await?,
        None => before,
    };
    if kept != before {
        let [requests, rollups] = [kept.requests_from_us, kept.rollups_from_us].map(shown);
        tracing::info!(requests, rollups, "what is before these times counts as removed");
    }
    gauges.horizons(kept);
    // Also where nothing is configured any more: what was begun is finished.
    let swept = store.sweep().await?;
    gauges.removed(&swept);
    if swept != Swept::default() {
        let Swept { requests, partitions, segments, pages, busy } = swept;
        tracing::info!(requests, partitions, segments, pages, busy, "removed what is not to be kept");
    }
    Ok(swept)
}

/// From when requests, and sums, are to be kept.
fn horizons(config: &RetentionConfig, now_us: i64, newest_us: Option<i64>) -> Option<(i64, Option<i64>)> {
    let now_us = now_us.min(newest_us?);
    Some((horizon(now_us, config.requests_days?), config.rollups_days.map(|days| horizon(now_us, days))))
}

/// Today and so many days before are kept.
fn horizon(now_us: i64, days: NonZeroU32) -> i64 {
    now_us.saturating_sub(i64::from(days.get()).saturating_mul(DAY_US)).div_euclid(DAY_US) * DAY_US
}

fn shown(from_us: i64) -> String {
    if from_us == i64::MIN { "none".to_owned() } else { rfc3339(from_us) }
}

/// | name | labels | what |
/// | --- | --- | --- |
/// | `activity_retention_from_seconds` | what: requests, rollups | since 1970: from when they are kept; 0 for ever |
/// | `activity_retention_removed_total` | what: requests, partitions, segments, pages | what was removed |
struct Gauges {
    from: IntGaugeVec,
    removed: IntCounterVec,
}

impl Gauges {
    fn new(registry: &Registry) -> Self {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_label("service", "usage");
        let from =
            opts("activity_retention_from_seconds", "from when data are kept, in seconds since 1970; 0 for ever");
        let removed = opts("activity_retention_removed_total", "what retention removed");
        let gauges = Self {
            from: made(IntGaugeVec::new(from, &["what"])),
            removed: made(IntCounterVec::new(removed, &["what"])),
        };
        made(registry.register(Box::new(gauges.from.clone())));
        made(registry.register(Box::new(gauges.removed.clone())));
        gauges
    }

    fn horizons(&self, kept: Kept) {
        for (what, from_us) in [("requests", kept.requests_from_us), ("rollups", kept.rollups_from_us)] {
            let seconds = if from_us == i64::MIN { 0 } else { from_us.div_euclid(clock::MICROS_PER_SECOND) };
            self.from.with_label_values(&[what]).set(seconds);
        }
    }

    fn removed(&self, swept: &Swept) {
        let Swept { requests, partitions, segments, pages, busy: _ } = *swept;
        for (what, count) in
            [("requests", requests), ("partitions", partitions), ("segments", segments), ("pages", pages)]
        {
            self.removed.with_label_values(&[what]).inc_by(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_horizon_is_the_start_of_a_day() {
        let days = |days| NonZeroU32::new(days).expect("not zero");
        // 2026-01-05T12:00:00Z.
        let noon = 1_767_614_400_000_000;
        assert_eq!(horizon(noon, days(1)), noon - DAY_US - DAY_US / 2);
        assert_eq!(horizon(noon, days(30)), noon - 30 * DAY_US - DAY_US / 2);
        assert_eq!(horizon(noon, days(u32::MAX)).rem_euclid(DAY_US), 0);
    }

    #[test]
    fn a_clock_that_is_ahead_removes_nothing() {
        let config = RetentionConfig { requests_days: NonZeroU32::new(30), rollups_days: NonZeroU32::new(90) };
        let noon = 1_767_614_400_000_000;
        let kept = Some((noon - 30 * DAY_US - DAY_US / 2, Some(noon - 90 * DAY_US - DAY_US / 2)));
        assert_eq!(horizons(&config, noon, Some(noon)), kept);
        assert_eq!(horizons(&config, noon + 365 * DAY_US, Some(noon)), kept);
        assert_eq!(horizons(&config, noon, Some(noon + 365 * DAY_US)), kept);
        assert_eq!(horizons(&config, noon, None), None);
        assert_eq!(horizons(&RetentionConfig { requests_days: None, ..config }, noon, Some(noon)), None);
    }
}
