//! Which spans answer for which buckets, and what is left to raw rows.

use super::{Level, Span};

/// A stretch that no span covers: read from raw rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawPart {
    /// First microsecond inside.
    pub(crate) start_us: i64,
    /// First microsecond after.
    pub(crate) end_us: i64,
    /// The bucket that the part begins in.
    pub(crate) first_bucket: usize,
    /// Edges of the buckets in it, rising: the first is `start_us`, the last
    /// `end_us`. What is between the nth two belongs to `first_bucket` + n.
    pub(crate) edges: Vec<i64>,
}

/// How a window is answered: spans and raw parts cover every bucket exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Spans and the buckets they count in, rising.
    pub(crate) spans: Vec<(usize, Span)>,
    /// The rest, rising.
    pub(crate) raw: Vec<RawPart>,
    edges: Vec<i64>,
}

impl Plan {
    /// A moment in each quarter that the window cuts through.
    pub(crate) fn cut_at(&self) -> Vec<i64> {
        self.raw.iter().map(|part| part.start_us).collect()
    }

    /// The bucket of a quarter that spans cover, for deltas; none where it is out
    /// of the window or a bucket's edge cuts through it: there raw rows count.
    pub(crate) fn bucket_of(&self, quarter_us: i64) -> Option<usize> {
        let quarter = Span { level: Level::Quarter, start_us: quarter_us };
        // The last edge at or before the start opens the bucket.
        let bucket = self.edges.partition_point(|edge| *edge <= quarter_us).checked_sub(1)?;
        (quarter.end_us() <= *self.edges.get(bucket + 1)?).then_some(bucket)
    }
}

/// Plans a window cut at `edges`: the coarsest spans that fit into each bucket,
/// and raw rows for ragged ends. Each level is a multiple of the finer, so taking
/// the coarsest at every step is also the fewest. A bucket without width gets
/// nothing; fewer than two edges are no window.
pub(crate) fn plan(edges: &[i64]) -> Plan {
    let mut plan = Plan { spans: Vec::new(), raw: Vec::new(), edges: edges.to_vec() };
    for (bucket, pair) in edges.windows(2).enumerate() {
        let (start, end) = (pair[0], pair[1]);
        let first = match Level::Quarter.start_of(start) {
            aligned if aligned == start => start,
            before => before.saturating_add(Level::Quarter.width_us()),
        };
        let last = Level::Quarter.start_of(end);
        if first >= last {
            add_raw(&mut plan.raw, bucket, start, end);
            continue;
        }
        add_raw(&mut plan.raw, bucket, start, first);
        let mut at = first;
        while at < last {
            let span = coarsest(at, last);
            plan.spans.push((bucket, span));
            at = span.end_us();
        }
        add_raw(&mut plan.raw, bucket, last, end);
    }
    plan
}

/// The coarsest span that begins here and ends in time. `at` and `end` are on
/// quarters, `at` before `end`: a quarter always fits.
fn coarsest(at: i64, end: i64) -> Span {
    let fits = |level: &Level| {
        let span = Span { level: *level, start_us: at };
        level.start_of(at) == at && span.end_us() <= end
    };
    let level = Level::ALL.into_iter().rev().find(fits).unwrap_or(Level::Quarter);
    Span { level, start_us: at }
}

/// Adds a stretch of a bucket. Where it follows the one before, through a
/// bucket's edge, both are one part: one statement reads them.
fn add_raw(raw: &mut Vec<RawPart>, bucket: usize, start_us: i64, end_us: i64) {
    if start_us >= end_us {
        return;
    }
    match raw.last_mut() {
        Some(part) if part.end_us == start_us && part.first_bucket + part.edges.len() - 1 == bucket => {
            part.end_us = end_us;
            part.edges.push(end_us);
        }
        _ => raw.push(RawPart { start_us, end_us, first_bucket: bucket, edges: vec![start_us, end_us] }),
    }
}
