//! Rollups: sums made ahead, exact at every moment. No SQL, no wire, no waiting.
//!
//! ```text
//! write   group of events ─▶ delta (with the rows, in one transaction)
//! seal    all deltas ─▶ merged into segments ─▶ the deltas go, in one transaction
//! read    segments + deltas that are left + raw rows of the ragged ends ─▶ tally
//! ```
//!
//! A *delta* is what one transaction accepted, summed up by quarter of an hour,
//! instance and the six [`KEYS`]. A *segment* holds the same sums for a [`Span`]
//! (a quarter, an hour or a day, in UTC) of one instance. In every snapshot of
//! the database segments and deltas together are all the raw rows there are:
//! events may come late, twice or in any order, nothing is ever open or dirty, and
//! an event is in every answer from the moment it is acknowledged.
//!
//! A segment is kept as *sections*, each a blob of packed columns: one with all
//! keys ([`Cut::Full`]), and one for each single key with the sets of users and
//! models, so that most answers read little. Merging adds integers and unites
//! sets: its result doesn't depend on order or cut, and is the same bytes always.
//!
//! - [`values`]: texts as small numbers.
//! - [`delta`]: what a transaction adds.
//! - [`section`], [`column`]: sums by key, packed.
//! - [`plan`]: which spans answer for which buckets, and what stays raw.
//! - [`question`], [`index`], [`distinct`], [`tally`]: the one fold behind every
//!   total.

mod bytes;
mod column;
mod delta;
mod distinct;
mod index;
mod plan;
mod question;
mod section;
mod tally;
mod values;

#[cfg(test)]
mod tests;

pub(crate) use delta::{Delta, DeltaRow, encode as encode_delta};
pub(crate) use plan::{Plan, plan};
pub(crate) use question::{IdFilter, Question};
pub(crate) use section::Section;
pub(crate) use tally::{Ranker, Ranking, Tally};
pub(crate) use values::{Overlay, Values};

use crate::model::Dimension;

/// Bytes that are not what they should be: a defect, or damage to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed rollup: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A sum that the answer has no room for. No set of real requests comes near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sum of rollups is out of range")]
pub(crate) struct OutOfRange;

/// How wide a span is. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Level {
    /// 15 minutes: every zone's hours and days begin on one.
    Quarter = 0,
    /// An hour.
    Hour = 1,
    /// A day in UTC.
    Day = 2,
}

impl Level {
    /// All, finest first. Each is a multiple of the one before.
    pub(crate) const ALL: [Self; 3] = [Self::Quarter, Self::Hour, Self::Day];

    /// How long a span is, in microseconds.
    pub(crate) const fn width_us(self) -> i64 {
        const MINUTE_US: i64 = 60_000_000;
        match self {
            Self::Quarter => 15 * MINUTE_US,
            Self::Hour => 60 * MINUTE_US,
            Self::Day => 24 * 60 * MINUTE_US,
        }
    }

    /// The stored number.
    pub(crate) fn number(self) -> i16 {
        self as i16
    }

    /// The level of a stored number.
    pub(crate) fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.number() == number)
    }

    /// Where the span begins that a time is in. Also right before 1970; times
    /// within a day of the ends of 64 bits have no span and none ask for them.
    pub(crate) fn start_of(self, us: i64) -> i64 {
        us.saturating_sub(us.rem_euclid(self.width_us()))
    }
}

/// A stretch of time that has segments: half open, aligned in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    /// How wide.
    pub(crate) level: Level,
    /// Its first microsecond, a multiple of the width.
    pub(crate) start_us: i64,
}

impl Span {
    /// The span of a level that a time is in.
    pub(crate) fn at(level: Level, us: i64) -> Self {
        Self { level, start_us: level.start_of(us) }
    }

    /// The first microsecond after.
    pub(crate) fn end_us(self) -> i64 {
        self.start_us.saturating_add(self.level.width_us())
    }
}

/// What the rows of a segment are told apart by, in their order. The instance is
/// the segment's own key.
pub(crate) const KEYS: [Dimension; 6] =
    [Dimension::User, Dimension::Team, Dimension::ApiKey, Dimension::Provider, Dimension::Model, Dimension::Status];

/// The places of some keys in [`KEYS`].
pub(crate) const USER: usize = 0;
pub(crate) const MODEL: usize = 4;
pub(crate) const STATUS: usize = 5;

/// The place of a dimension in [`KEYS`]; none for the instance.
pub(crate) fn place(dimension: Dimension) -> Option<usize> {
    KEYS.iter().position(|key| *key == dimension)
}

/// How many sums a row has.
pub(crate) const MEASURES: usize = 11;

/// The sums of a row, in this order: requests, failed requests, tokens
/// (input uncached, cache read, cache write, cache write for an hour, output,
/// output reasoning), cost in nano-dollars, unpriced requests, unpriced tokens.
/// A row that takes back (a new price) has negative ones.
pub(crate) type Measures = [i64; MEASURES];

/// Places in [`Measures`].
pub(crate) mod measure {
    pub(crate) const REQUESTS: usize = 0;
    pub(crate) const FAILED_REQUESTS: usize = 1;
    pub(crate) const INPUT_UNCACHED: usize = 2;
    pub(crate) const INPUT_CACHE_READ: usize = 3;
    pub(crate) const INPUT_CACHE_WRITE: usize = 4;
    pub(crate) const INPUT_CACHE_WRITE_1H: usize = 5;
    pub(crate) const OUTPUT: usize = 6;
    pub(crate) const OUTPUT_REASONING: usize = 7;
    pub(crate) const COST_NANOS: usize = 8;
    pub(crate) const UNPRICED_REQUESTS: usize = 9;
    pub(crate) const UNPRICED_TOKENS: usize = 10;
}

/// Sums of requests that agree in all keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FullRow {
    /// The id of each key, in the order of [`KEYS`]; 0 for none.
    pub(crate) keys: [u32; KEYS.len()],
    /// Their sums.
    pub(crate) measures: Measures,
}

/// Which keys a section tells apart. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cut {
    /// All of them.
    Full = 0,
    /// One, with the sets of users and models.
    User,
    Team,
    ApiKey,
    Provider,
    Model,
    Status,
}

impl Cut {
    /// All of them.
    pub(crate) const ALL: [Self; 7] =
        [Self::Full, Self::User, Self::Team, Self::ApiKey, Self::Provider, Self::Model, Self::Status];

    /// The cuts by one key: functions of the full one.
    pub(crate) const SINGLES: [Self; 6] =
        [Self::User, Self::Team, Self::ApiKey, Self::Provider, Self::Model, Self::Status];

    /// The stored number.
    pub(crate) fn number(self) -> i16 {
        self as i16
    }

    /// The cut of a stored number.
    pub(crate) fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|cut| cut.number() == number)
    }

    /// The one key; none for the full cut.
    #[cfg(test)]
    pub(crate) fn dimension(self) -> Option<Dimension> {
        self.key_place().map(|place| KEYS[place])
    }

    /// The place of the one key in [`KEYS`].
    fn key_place(self) -> Option<usize> {
        Self::SINGLES.iter().position(|single| *single == self)
    }
}
