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
//! keys ([`Cut::FULL`]), and one for each single key with the sets of users and
//! models, so that most answers read little. Merging adds integers and unites
//! sets: its result doesn't depend on order or cut, and is the same bytes always.
//!
//! Answers ask for the same keys of the same weeks over and over. So sections with
//! other keys, and those of a [`Block`] of spans, are made in memory of what is
//! stored, and kept there.
//!
//! - [`values`]: texts as small numbers.
//! - [`delta`]: what a transaction adds.
//! - [`section`], [`sets`], [`column`]: sums by key, packed.
//! - [`derive`]: sections made of sections.
//! - [`plan`], [`block`]: which spans answer for which buckets, and what stays raw.
//! - [`question`], [`index`], [`distinct`], [`tally`]: the one fold behind every
//!   total.

mod block;
mod bytes;
mod column;
mod delta;
mod derive;
mod distinct;
mod index;
mod plan;
mod question;
mod section;
mod sets;
mod tally;
mod values;

#[cfg(test)]
mod tests;

pub(crate) use block::{Block, blocks};
#[cfg(test)]
pub(crate) use delta::encode as encode_delta;
pub(crate) use delta::{Delta, DeltaRow, Summing};
pub(crate) use plan::{Plan, RawPart, plan};
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

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quarter => "quarter of an hour",
            Self::Hour => "hour",
            Self::Day => "day",
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

/// Which keys a section tells apart: a bit for each place in [`KEYS`]. Those of all keys and of a single one are stored;
/// others are made of the full one when they are asked for, and kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cut(u8);

impl Cut {
    /// All of them.
    pub(crate) const FULL: Self = Self((1 << KEYS.len()) - 1);
    pub(crate) const USER: Self = Self::single(0);
    pub(crate) const TEAM: Self = Self::single(1);
    pub(crate) const API_KEY: Self = Self::single(2);
    pub(crate) const PROVIDER: Self = Self::single(3);
    pub(crate) const MODEL: Self = Self::single(4);
    pub(crate) const STATUS: Self = Self::single(5);

    /// Those with one key, in the order of [`KEYS`].
    pub(crate) const SINGLES: [Self; KEYS.len()] =
        [Self::USER, Self::TEAM, Self::API_KEY, Self::PROVIDER, Self::MODEL, Self::STATUS];

    /// Those that are stored, in the order of their numbers.
    pub(crate) const STORED: [Self; 7] =
        [Self::FULL, Self::USER, Self::TEAM, Self::API_KEY, Self::PROVIDER, Self::MODEL, Self::STATUS];

    const fn single(place: usize) -> Self {
        Self(1 << place)
    }

    /// The one that tells these places apart.
    pub(crate) fn of(places: impl IntoIterator<Item = usize>) -> Self {
        Self(places.into_iter().fold(0, |bits, place| bits | 1 << place))
    }

    /// The number it is stored under; none for one that isn't.
    pub(crate) fn number(self) -> Option<i16> {
        Self::STORED.iter().position(|cut| *cut == self).map(|place| place as i16)
    }

    /// The cut of a stored number.
    pub(crate) fn from_number(number: i16) -> Option<Self> {
        usize::try_from(number).ok().and_then(|number| Self::STORED.get(number).copied())
    }

    /// The places of its keys, rising.
    pub(crate) fn places(self) -> impl Iterator<Item = usize> + Clone {
        (0..KEYS.len()).filter(move |place| self.has(*place))
    }

    /// Whether it tells the key of a place apart.
    pub(crate) fn has(self, place: usize) -> bool {
        self.0 >> place & 1 == 1
    }

    /// How many keys it tells apart.
    pub(crate) fn keys(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Which of its columns is the key's of a place.
    fn column(self, place: usize) -> Option<usize> {
        self.has(place).then(|| (self.0 & ((1 << place) - 1)).count_ones() as usize)
    }
}
