//! The sample: a platform of a few hundred users over some weeks, made from a
//! seed. The same plan makes the same events, to the byte, on one platform.
//!
//! ```text
//! Plan ─┬─ fitted::arrivals ── traffic (people, models, the spike) ── UsageEvent…
//!       └─ actions (who changed what, among it the spike's cause) ─── AuditEvent…
//! ```

pub mod actions;
pub mod fitted;
pub mod models;
pub mod people;
pub mod traffic;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::time::{DAY_US, HOUR_US, MINUTE_US, day_of_week};

/// The fewest users, so that every team has one.
pub const FEWEST_USERS: usize = 8;
/// The most users there are names for.
pub const MOST_USERS: usize = 600;
/// The longest sample in days: what the arrivals are drawn from is held in
/// memory, 8 bytes a second.
pub const MOST_DAYS: u32 = 90;

/// The instance that most of the traffic goes to, and all of the story is about.
pub const PRODUCTION: &str = "prod";
/// The other instance.
pub const STAGING: &str = "staging";

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything that is drawn.
    pub seed: u64,
    /// How many days before `until_us`.
    pub days: u32,
    /// How many users.
    pub users: usize,
    /// How many requests, exactly.
    pub events: usize,
    /// The end, exclusive: microseconds since the epoch.
    pub until_us: i64,
}

/// When the expensive model serves the alias: `start` ≤ t < `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spike {
    /// The change is done.
    pub start_us: i64,
    /// The change is taken back.
    pub end_us: i64,
}

impl Plan {
    /// The first moment of the sample.
    pub fn start_us(&self) -> i64 {
        self.until_us - i64::from(self.days) * DAY_US
    }

    /// When the spike is: about a fifth of the range before its end, 26 hours
    /// from 09:14 UTC of a working day; in samples of less than ten days a tenth
    /// of the range from its middle.
    pub fn spike(&self) -> Spike {
        if self.days < 10 {
            let span = i64::from(self.days) * DAY_US;
            let start_us = (self.until_us - span / 2) / MINUTE_US * MINUTE_US;
            return Spike { start_us, end_us: start_us + span / 10 };
        }
        let mut day = (self.until_us - i64::from(self.days) * DAY_US / 5).div_euclid(DAY_US);
        // Tuesday to Thursday: the days before and after are working days too.
        while !(1..=3).contains(&day_of_week(day * DAY_US)) {
            day -= 1;
        }
        let start_us = day * DAY_US + 9 * HOUR_US + 14 * MINUTE_US;
        Spike { start_us, end_us: start_us + 26 * HOUR_US }
    }

    /// A generator of its own for each purpose, so that more of one does not
    /// shift the others.
    fn rng(&self, purpose: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(purpose);
        rng
    }
}
