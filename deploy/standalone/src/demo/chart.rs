//! The chart of the usage screen: cost by provider a day, as bars of text.

use activity_proto::usage::v1::{GetTimeSeriesResponse, Series};

use super::show;
use crate::time::{micros, text};

/// One glyph a series, in their order; the last one is for `other`.
const GLYPHS: [char; 7] = ['█', '▓', '▒', '░', '▚', '◦', '·'];
const WIDTH: usize = 64;

/// A line a bucket, with a bar whose parts are the series.
pub fn bars(answer: &GetTimeSeriesResponse, date_format: &str) -> String {
    let series: Vec<(char, String, &Series)> = answer
        .series
        .iter()
        .zip(GLYPHS)
        .map(|(series, glyph)| (glyph, show::key(&series.keys.join(" · ")), series))
        .chain(answer.other.iter().map(|series| ('·', "all others".to_owned(), series)))
        .collect();
    let Some((.., first)) = series.first() else {
        return "  nothing in this range\n".into();
    };
    let cost = |series: &Series, bucket: usize| {
        series
            .points
            .get(bucket)
            .and_then(|point| point.metrics.as_ref())
            .map_or(0, |metrics| show::nanos(metrics.cost()))
    };
    let totals: Vec<i128> =
        (0..first.points.len()).map(|bucket| series.iter().map(|(.., series)| cost(series, bucket)).sum()).collect();
    let most = totals.iter().copied().max().unwrap_or(0).max(1);

    let legend: Vec<String> = series.iter().map(|(glyph, name, _)| format!("{glyph} {name}")).collect();
    let mut out = format!("  {}\n\n", legend.join("   "));
    for (bucket, total) in totals.iter().enumerate() {
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
        out.push_str(&format!("  {label} {:>12}  {bar}\n", show::money(*total)));
    }
    out
}

#[cfg(test)]
mod tests {
    use activity_proto::usage::v1::{Metrics, Point};

    use super::*;

    fn series(name: &str, costs: &[&str]) -> Series {
        Series {
            keys: vec![name.into()],
            points: costs
                .iter()
                .map(|cost| Point {
                    interval: None,
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
    fn empty_answer_says_so() {
        let chart = bars(&GetTimeSeriesResponse::default(), "%d");
        assert!(chart.contains("nothing in this range"));
    }
}
