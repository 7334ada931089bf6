//! The chart of the usage screen: cost by provider a day, as bars of text.

use std::ops::Range;

use activity_proto::usage::v1::{GetTimeSeriesResponse, Series};

use super::show;
use crate::time::{micros, text};

/// One glyph a series, in their order.
const GLYPHS: [char; 6] = ['█', '▓', '▒', '░', '▚', '◦'];
/// For `other`.
const OTHERS: char = '·';
const WIDTH: usize = 64;

/// From the first bucket that cost something to the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paid {
    /// Which buckets.
    pub buckets: Range<usize>,
    /// The start of the first.
    pub start_us: i64,
    /// The end of the last.
    pub end_us: i64,
}

/// Where the cost lies; `None` where there is none.
pub fn paid(answer: &GetTimeSeriesResponse) -> Option<Paid> {
    let totals = totals(answer);
    let first = totals.iter().position(|total| *total > 0)?;
    let last = totals.iter().rposition(|total| *total > 0)?;
    let points = &answer.series.first()?.points;
    let interval = |bucket: usize| points.get(bucket)?.interval.as_ref();
    Some(Paid {
        buckets: first..last + 1,
        start_us: micros(interval(first)?.start.as_ref()?),
        end_us: micros(interval(last)?.end.as_ref()?),
    })
}

/// A line a bucket, with a bar whose parts are the series; empty buckets at either
/// end are left out.
pub fn bars(answer: &GetTimeSeriesResponse, date_format: &str) -> String {
    let series: Vec<(char, String, &Series)> = answer
        .series
        .iter()
        .zip(GLYPHS)
        .map(|(series, glyph)| (glyph, show::key(&series.keys.join(" · ")), series))
        .chain(answer.other.iter().map(|series| (OTHERS, "all others".to_owned(), series)))
        .collect();
    let (Some(paid), Some((.., first))) = (paid(answer), series.first()) else {
        return "  nothing in this range\n".into();
    };
    let totals = totals(answer);
    let most = totals.iter().copied().max().unwrap_or(0).max(1);

    let legend: Vec<String> = series.iter().map(|(glyph, name, _)| format!("{glyph} {name}")).collect();
    let mut out = format!("  {}\n\n", legend.join("   "));
    for bucket in paid.buckets {
        let start = first.points[bucket].interval.as_ref().and_then(|interval| interval.start.as_ref());
        let label = start.map_or_else(String::new, |start| text(micros(start), date_format));
        let mut bar = String::new();
        let mut sum = 0;
        for (glyph, _, series) in &series {
            sum += cost(series, bucket);
            // Edges are rounded, not lengths: the bar is as long as its total says.
            let edge = (sum * WIDTH as i128 + most / 2) / most;
            while (bar.chars().count() as i128) < edge {
                bar.push(*glyph);
            }
        }
        out.push_str(&format!("  {label} {:>12}  {bar}\n", show::money(totals[bucket])));
    }
    out
}

fn totals(answer: &GetTimeSeriesResponse) -> Vec<i128> {
    let buckets = answer.series.first().map_or(0, |series| series.points.len());
    (0..buckets)
        .map(|bucket| answer.series.iter().chain(&answer.other).map(|series| cost(series, bucket)).sum())
        .collect()
}

fn cost(series: &Series, bucket: usize) -> i128 {
    let metrics = series.points.get(bucket).and_then(|point| point.metrics.as_ref());
    metrics.map_or(0, |metrics| show::nanos(metrics.cost()))
}

#[cfg(test)]
mod tests {
    use activity_proto::common::v1::Interval;
    use activity_proto::usage::v1::{Metrics, Point};

    use super::*;
    use crate::time::{DAY_US, timestamp};

    fn series(name: &str, costs: &[&str]) -> Series {
        let day = |index: usize| Some(timestamp(index as i64 * DAY_US));
        Series {
            keys: vec![name.into()],
            points: costs
                .iter()
                .enumerate()
                .map(|(index, cost)| Point {
                    interval: Some(Interval { start: day(index), end: day(index + 1) }),
                    metrics: Some(Metrics { cost: Some((*cost).into()), ..Metrics::default() }),
                })
                .collect(),
        }
    }

    #[test]
    fn bars_are_in_proportion() {
        let answer = GetTimeSeriesResponse {
            series: vec![series("a", &["3", "0"]), series("b", &["1", "2"])],
            ..GetTimeSeriesResponse::default()
        };
        let chart = bars(&answer, "%d");
        let lines: Vec<&str> = chart.lines().skip(2).collect();
        assert_eq!(lines[0].matches('█').count(), 48);
        assert_eq!(lines[0].matches('▓').count(), 16);
        assert_eq!(lines[1].matches('█').count(), 0);
        assert_eq!(lines[1].matches('▓').count(), 32);
    }

    #[test]
    fn empty_ends_are_left_out() {
        let answer = GetTimeSeriesResponse {
            series: vec![series("a", &["0", "1", "0", "2", "0"])],
            ..GetTimeSeriesResponse::default()
        };
        let expected = Paid { buckets: 1..4, start_us: DAY_US, end_us: 4 * DAY_US };
        assert_eq!(paid(&answer), Some(expected));
        assert_eq!(bars(&answer, "%d").lines().skip(2).count(), 3);
    }

    #[test]
    fn empty_answer_says_so() {
        let chart = bars(&GetTimeSeriesResponse::default(), "%d");
        assert!(chart.contains("nothing in this range"));
    }
}
