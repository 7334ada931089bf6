//! Blocks: spans of one width side by side, whose sums answers take together.
//!
//! ```text
//! a month from the 3rd on, of days:  │3│4       7│8               15│16                              31│
//! ```
//!
//! A block is as many spans as a power of two, and begins at a multiple of it: it is made of its two halves, and a run
//! of any length is a few blocks. When a span changes, one block of each size is made anew, not all of them.

use super::Span;

/// The largest block has 2⁵ spans: about a month of days.
const MAX_POWER: u32 = 5;

/// Spans side by side; a single one mostly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Block {
    /// The first of them.
    pub(crate) first: Span,
    /// How many there are, as a power of two.
    power: u32,
}

impl Block {
    /// One span.
    pub(crate) fn one(span: Span) -> Self {
        Self { first: span, power: 0 }
    }

    /// The first microsecond after.
    pub(crate) fn end_us(self) -> i64 {
        self.first.start_us.saturating_add(self.first.level.width_us() << self.power)
    }

    /// The first and the second half; none of a single span.
    pub(crate) fn halves(self) -> Option<[Self; 2]> {
        let first = Self { power: self.power.checked_sub(1)?, ..self };
        let second = Self { first: Span { start_us: first.end_us(), ..self.first }, ..first };
        Some([first, second])
    }
}

/// Spans with their buckets, rising, as the fewest blocks: none reaches over the edge of a bucket or over a gap.
pub(crate) fn blocks(spans: &[(usize, Span)]) -> Vec<(usize, Block)> {
    let mut blocks = Vec::new();
    let follows = |left: &(usize, Span), right: &(usize, Span)| {
        left.0 == right.0 && left.1.level == right.1.level && left.1.end_us() == right.1.start_us
    };
    for run in spans.chunk_by(follows) {
        let mut run = run;
        while let Some((bucket, span)) = run.first() {
            let number = span.start_us.div_euclid(span.level.width_us());
            let power = run.len().ilog2().min(number.trailing_zeros()).min(MAX_POWER);
            blocks.push((*bucket, Block { first: *span, power }));
            run = &run[1 << power..];
        }
    }
    blocks
}
