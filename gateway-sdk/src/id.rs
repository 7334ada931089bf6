//! Event ids: UUIDv7 (RFC 9562) whose time is the event's own, in the order made.
//!
//! ```text
//! | 48 bits: ms since the epoch | 12: fraction of the ms | 30: counter | 32: random |
//! ```
//!
//! The contract wants an id's time within 24 hours of `occurred_at`, so the time
//! comes from there and not from a clock of the generator's; a generator that never
//! steps back, as `uuid`'s own, could not number a replay of old events.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::{Builder, Uuid};

use crate::random;

/// Starts at random, so that two processes which number the same microsecond
/// differ in 62 bits.
static COUNTER: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(random::bits()));

/// The latest time that [`new_id`] gave, to hold ids in order over small steps back
/// of the clock.
static LATEST_US: AtomicU64 = AtomicU64::new(0);

/// A step back further than this is followed: an id too far from `occurred_at`
/// would be refused.
const MAX_STEP_BACK: Duration = Duration::from_secs(3600);

/// An id for an event that happened at `at`. Ids made one after the other for the
/// same or later times sort in the order made.
fn id_at(at: SystemTime) -> Uuid {
    from_micros(micros(at))
}

/// An id for an event that happens now, and sorts after all that were made before.
fn new_id(now: SystemTime) -> Uuid {
    let now_us = micros(now);
    let latest = LATEST_US.fetch_max(now_us, Relaxed);
    let ahead = Duration::from_micros(latest.saturating_sub(now_us));
    if ahead > MAX_STEP_BACK {
        LATEST_US.store(now_us, Relaxed);
        return from_micros(now_us);
    }
    from_micros(now_us.max(latest))
}

/// The id and the time of an event for which both, either or none was given.
pub(crate) fn fix(id: Option<Uuid>, at: Option<SystemTime>) -> (Uuid, SystemTime) {
    match (id, at) {
        (Some(id), Some(at)) => (id, at),
        (None, Some(at)) => (id_at(at), at),
        (id, None) => {
            let now = SystemTime::now();
            (id.unwrap_or_else(|| new_id(now)), now)
        }
    }
}

/// The clock, in microseconds since the epoch.
pub(crate) fn now_micros() -> u64 {
    micros(SystemTime::now())
}

/// Whole microseconds since the epoch, 0 for earlier times.
fn micros(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn from_micros(us: u64) -> Uuid {
    let (ms, rest) = (us / 1000, us % 1000);
    let fraction = (rest * 4096 / 1000) as u16;
    let counter = COUNTER.fetch_add(1, Relaxed) & ((1 << 30) - 1);
    let tail = (counter << 32) | (random::bits() >> 32);
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&fraction.to_be_bytes());
    bytes[2..].copy_from_slice(&tail.to_be_bytes());
    Builder::from_unix_timestamp_millis(ms, &bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // One test: both halves look at the latest time, of which a process has one.
    #[test]
    fn ids_sort_in_the_order_made_until_the_clock_is_set_back_far() {
        // One wrap of the counter in 2^30 would break the order within a microsecond.
        COUNTER.store(0, Relaxed);
        let ids: Vec<Uuid> = (0..10_000).map(|_| new_id(SystemTime::now())).collect();
        assert!(ids.is_sorted());
        let step_back = SystemTime::now() - Duration::from_secs(60);
        assert!(new_id(step_back) > ids[9_999]);

        let day_ago = SystemTime::now() - Duration::from_secs(25 * 3600);
        let id = new_id(day_ago);
        assert_eq!(id.get_timestamp().unwrap().to_unix().0, micros(day_ago) / 1_000_000);
    }

    proptest! {
        #[test]
        fn id_carries_the_time_of_its_event(us in 0_u64..4_000_000_000_000_000) {
            let id = id_at(UNIX_EPOCH + Duration::from_micros(us));
            prop_assert_eq!(id.get_version_num(), 7);
            prop_assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
            let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
            prop_assert_eq!(seconds * 1000 + u64::from(nanos) / 1_000_000, us / 1000);
        }
    }
}
