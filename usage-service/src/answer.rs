//! What an answer is made of: totals, and groups of them.
//!
//! Counts and money are integers (money in `i128`): sums are exact whatever the
//! order and the cut of what was added up.

use crate::model::{Metric, Tokens};

/// The sums of a set of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// All requests.
    pub requests: u64,
    /// Those with another status than OK.
    pub failed_requests: u64,
    /// Tokens by kind. A sum stays in range for 9,000,000,000 requests of the
    /// largest size.
    pub tokens: Tokens,
    /// The cost of all priced requests.
    pub cost_nanos: i128,
    /// Requests without a known price.
    pub unpriced_requests: u64,
    /// Their tokens.
    pub unpriced_tokens: i64,
}

impl Totals {
    /// Adds the sums of other requests.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed_requests += other.failed_requests;
        self.tokens.input_uncached += other.tokens.input_uncached;
        self.tokens.input_cache_read += other.tokens.input_cache_read;
        self.tokens.input_cache_write += other.tokens.input_cache_write;
        self.tokens.input_cache_write_1h += other.tokens.input_cache_write_1h;
        self.tokens.output += other.tokens.output;
        self.tokens.output_reasoning += other.tokens.output_reasoning;
        self.cost_nanos += other.cost_nanos;
        self.unpriced_requests += other.unpriced_requests;
        self.unpriced_tokens += other.unpriced_tokens;
    }

    /// What a ranking compares.
    pub fn metric(&self, metric: Metric) -> i128 {
        match metric {
            Metric::Requests => i128::from(self.requests),
            Metric::Tokens => i128::from(self.tokens.total()),
            Metric::Cost => self.cost_nanos,
        }
    }
}

/// The totals of a set of requests, as they are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metrics {
    /// The sums.
    pub totals: Totals,
    /// Distinct users; requests without a user count for none.
    pub unique_users: u64,
    /// Distinct served models.
    pub unique_models: u64,
}

/// A group with its totals in every bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// A value for each dimension.
    pub keys: Vec<String>,
    /// One a bucket.
    pub buckets: Vec<Metrics>,
}

/// The groups that rank highest, all others, and everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranked {
    /// The groups that rank highest, best first.
    pub rows: Vec<Group>,
    /// All others together; none when there are none.
    pub other: Option<Vec<Metrics>>,
    /// Everything, one a bucket.
    pub total: Vec<Metrics>,
    /// Everything, all buckets together.
    pub overall: Metrics,
    /// How many groups there are in all.
    pub groups: u64,
}
