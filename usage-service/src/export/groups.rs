//! The rows of the shapes `BREAKDOWN` and `TIME_SERIES`.

use service_core::error::{Error, Result};
use service_core::time_range::rfc3339;

use super::csv::Line;
use super::{Format, json};
use crate::answer::{Metrics, Ranked};
use crate::model::Dimension;
use crate::money;

const METRICS: [&str; 15] = [
    "requests",
    "failed_requests",
    "total_tokens",
    "input_uncached",
    "input_cache_read",
    "input_cache_write",
    "input_cache_write_1h",
    "output",
    "output_reasoning",
    "cost",
    "currency_code",
    "unique_users",
    "unique_models",
    "unpriced_requests",
    "unpriced_tokens",
];

/// Whole lines, each on its own, and how many of them are a header.
#[derive(Debug)]
pub(crate) struct Lines {
    /// In their order.
    pub(crate) lines: Vec<Vec<u8>>,
    /// 0 or 1.
    pub(crate) header: usize,
}

/// A row a group, then the others, then the total.
pub(crate) fn breakdown(format: Format, keys: &[Dimension], ranked: &Ranked) -> Result<Lines> {
    let mut rows = Rows::new(format, keys, false);
    for group in &ranked.rows {
        rows.all("GROUP", &group.keys, &[], &group.buckets)?;
    }
    if let Some(other) = &ranked.other {
        rows.all("OTHER", &[], &[], other)?;
    }
    rows.all("TOTAL", &[], &[], &ranked.total)?;
    Ok(rows.finish())
}

/// A row a group and bucket, then the others' buckets.
pub(crate) fn time_series(format: Format, keys: &[Dimension], ranked: &Ranked, edges: &[i64]) -> Result<Lines> {
    let mut rows = Rows::new(format, keys, true);
    for group in &ranked.rows {
        rows.all("GROUP", &group.keys, edges, &group.buckets)?;
    }
    if let Some(other) = &ranked.other {
        rows.all("OTHER", &[], edges, other)?;
    }
    Ok(rows.finish())
}

/// What comes before the first row; all there is when there are no rows.
fn header(keys: &[Dimension], with_interval: bool, out: &mut Vec<u8>) {
    let mut line = Line::new(out);
    line.plain("row");
    for key in keys {
        line.plain(key.name());
    }
    if with_interval {
        line.plain("start").plain("end");
    }
    for metric in METRICS {
        line.plain(metric);
    }
    line.end();
}

struct Rows {
    format: Format,
    keys: usize,
    rows: Vec<Vec<u8>>,
}

impl Rows {
    fn new(format: Format, keys: &[Dimension], with_interval: bool) -> Self {
        let mut rows = Vec::new();
        if format == Format::Csv {
            let mut out = Vec::new();
            header(keys, with_interval, &mut out);
            rows.push(out);
        }
        Self { format, keys: keys.len(), rows }
    }

    fn finish(self) -> Lines {
        Lines { lines: self.rows, header: usize::from(self.format == Format::Csv) }
    }

    /// A row for each bucket; without edges there is one, the whole range.
    fn all(&mut self, row: &'static str, keys: &[String], edges: &[i64], buckets: &[Metrics]) -> Result<()> {
        for (index, bucket) in buckets.iter().enumerate() {
            let interval = match edges.get(index..index + 2) {
                Some([start_us, end_us]) => Some((*start_us, *end_us)),
                _ => None,
            };
            let mut out = Vec::new();
            match self.format {
                Format::Jsonl => {
                    let group = json::Group {
                        row,
                        keys,
                        interval: interval.map(|(start, end)| json::Interval::new(start, end)),
                        metrics: bucket.into(),
                    };
                    json::line(&group, &mut out).map_err(Error::internal)?;
                }
                Format::Csv => self.csv(row, keys, interval, bucket, &mut out),
            }
            self.rows.push(out);
        }
        Ok(())
    }

    fn csv(&self, row: &str, keys: &[String], interval: Option<(i64, i64)>, metrics: &Metrics, out: &mut Vec<u8>) {
        let totals = &metrics.totals;
        let mut line = Line::new(out);
        line.plain(row);
        for index in 0..self.keys {
            line.text(keys.get(index).map_or("", String::as_str));
        }
        if let Some((start, end)) = interval {
            line.plain(rfc3339(start)).plain(rfc3339(end));
        }
        line.plain(totals.requests)
            .plain(totals.failed_requests)
            .plain(totals.tokens.total())
            .plain(totals.tokens.input_uncached)
            .plain(totals.tokens.input_cache_read)
            .plain(totals.tokens.input_cache_write)
            .plain(totals.tokens.input_cache_write_1h)
            .plain(totals.tokens.output)
            .plain(totals.tokens.output_reasoning)
            .plain(money::text(totals.cost_nanos))
            .plain(money::CURRENCY)
            .plain(metrics.unique_users)
            .plain(metrics.unique_models)
            .plain(totals.unpriced_requests)
            .plain(totals.unpriced_tokens)
            .end();
    }
}
