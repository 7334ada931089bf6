//! The worked investigation: from a rise in spend to the action behind it.
//!
//! ```text
//! cost an hour ─ where does it rise most? ─┬─ cost by dimension, before and after ─ what explains it?
//!                                          └─ audit entries before it, that name it ─ who did it?
//! ```
//!
//! It knows nothing but what the services answer, so it works on replayed data,
//! where there may be no cause to be found, and then says so.

use activity_proto::audit::v1::{AuditEntry, Outcome};
use activity_proto::usage::v1::{Bucket, Dimension, GetTimeSeriesResponse};
use anyhow::Result;
use gateway_sdk::{AuditFilter, Impact, Investigation};

use super::ask::{Ask, Range};
use super::show;
use crate::time::{DAY_US, HOUR_US, MINUTE_US, micros};

/// How long before a rise a cause is looked for.
pub const LOOK_BACK_US: i64 = DAY_US;

/// One span of time and what it cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Its start.
    pub start_us: i64,
    /// In nano-dollars.
    pub nanos: i128,
}

/// The value of a dimension that rose most.
#[derive(Clone, Debug)]
pub struct Part {
    /// `team`, or two joined by ` × `.
    pub dimension: &'static str,
    /// The value.
    pub keys: Vec<String>,
    /// Nano-dollars in the window before.
    pub before: i128,
    /// Nano-dollars in the window after.
    pub after: i128,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The day on which the dearest days begin, and the median day, where there are
    /// many.
    pub peak_day: Option<(Cost, i128)>,
    /// How wide the buckets were in which the rise was looked for.
    pub bucket_us: i64,
    /// When the cost rises, as exactly as it could be told.
    pub onset_us: i64,
    /// Whether the onset is the first request of what explains it.
    pub exact: bool,
    /// What is compared: so long before the onset and so long after.
    pub window_us: i64,
    /// Nano-dollars before and after.
    pub total: (i128, i128),
    /// The value that rose most, of each dimension.
    pub parts: Vec<Part>,
    /// Of team and model together.
    pub pair: Option<Part>,
    /// The model whose cost rose most.
    pub model: Option<String>,
    /// Entries that name the model, up to the onset, newest first.
    pub before: Vec<AuditEntry>,
    /// Entries that name it, after the onset, oldest first.
    pub after: Vec<AuditEntry>,
    /// All entries of the time before the onset, newest first, where none names it.
    pub around: Vec<AuditEntry>,
    /// The model's traffic, and all that was done to it, of the time before the onset and after.
    pub of_model: Option<Investigation>,
    /// What became of everything that the suspect touched.
    pub impact: Option<Impact>,
}

impl Finding {
    /// The last thing that was done to the model before the rise.
    pub fn suspect(&self) -> Option<&AuditEntry> {
        self.before.iter().find(|entry| entry.outcome() == Outcome::Success)
    }
}

/// Looks for the sharpest rise of cost in the range; `None` where nothing cost
/// anything, or nothing rose.
pub async fn investigate(ask: &Ask, range: Range) -> Result<Option<Finding>> {
    let hours = costs(&ask.series(range, Bucket::Hour, None).await?);
    let paid = |cost: &Cost| cost.nanos > 0;
    let (Some(first), Some(last)) = (hours.iter().position(paid), hours.iter().rposition(paid)) else {
        return Ok(None);
    };
    let span = last + 1 - first;

    // Many days: where the dearest ones begin, then the sharpest hour there.
    // Otherwise all there is.
    let mut peak_day = None;
    let mut region =
        Range { start_us: hours[first].start_us, end_us: (hours[last].start_us + HOUR_US).min(range.end_us) };
    let (bucket_us, side, window_us) = match span {
        240.. => {
            let days = costs(&ask.series(range, Bucket::Day, None).await?);
            if let Some(peak) = outbreak(&days) {
                peak_day = Some((peak, median(&days)));
                region = Range {
                    start_us: (peak.start_us - DAY_US).max(range.start_us),
                    end_us: (peak.start_us + DAY_US).min(range.end_us),
                };
            }
            (HOUR_US, 6, DAY_US)
        }
        12.. => (HOUR_US, 3, 6 * HOUR_US),
        _ => (MINUTE_US, 10, 10 * MINUTE_US),
    };
    let fine = if bucket_us == HOUR_US { Bucket::Hour } else { Bucket::Minute };
    let series = costs(&ask.series(region, fine, None).await?);
    let Some(onset) = sharpest_rise(&series, side) else {
        return Ok(None);
    };
    let onset_us = series[onset].start_us;

    let windows = |onset_us: i64| {
        let before = Range { start_us: onset_us - window_us, end_us: onset_us };
        let after = Range { start_us: onset_us, end_us: onset_us + window_us };
        (before, after)
    };
    let (before, after) = windows(onset_us);
    let models = rise(ask, before, after, &[Dimension::Model]).await?;
    let model = models.filter(|part| part.after > part.before).and_then(|part| part.keys.into_iter().next());

    // The bucket says roughly when; the first request of a model that was not used
    // before says it to the microsecond, and may have come a while earlier.
    let mut exact = false;
    let mut onset_us = onset_us;
    if let Some(model) = &model {
        let near = Range { start_us: onset_us - window_us, end_us: onset_us + i64::from(side) * bucket_us };
        let earlier = Range { start_us: near.start_us - window_us, end_us: near.start_us };
        let used_before = ask.requests_of_model(earlier, model).await?;
        if used_before == 0
            && let Some(first_us) = ask.first_request_of_model(near, model).await?
        {
            onset_us = first_us;
            exact = true;
        }
    }

    let (before, after) = windows(onset_us);
    let mut parts = Vec::new();
    for dimension in [Dimension::Team, Dimension::User, Dimension::Model, Dimension::Provider, Dimension::ApiKey] {
        parts.extend(rise(ask, before, after, &[dimension]).await?);
    }
    let pair = rise(ask, before, after, &[Dimension::Team, Dimension::Model]).await?;
    let total = (ask.cost(before).await?, ask.cost(after).await?);

    // What is known to the bucket only may have its cause within the bucket.
    let slack_us = if exact { 0 } else { bucket_us };
    let earlier = Range { start_us: onset_us - LOOK_BACK_US, end_us: onset_us + slack_us };
    let later = Range { start_us: earlier.end_us, end_us: range.end_us.max(earlier.end_us) };
    let (mut entries, mut afterwards, mut around) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(model) = &model {
        let named = AuditFilter::new().resource(model);
        entries = ask.entries(earlier, named.clone(), 20, true).await?;
        afterwards = ask.entries(later, named, 5, false).await?;
    }
    if entries.is_empty() {
        around = ask.entries(earlier, AuditFilter::new(), 5, true).await?;
    }
    let of_model = match &model {
        Some(model) => Some(ask.investigate(after, model).await?),
        None => None,
    };
    let mut finding = Finding {
        peak_day,
        bucket_us,
        onset_us,
        exact,
        window_us,
        total,
        parts,
        pair,
        model,
        before: entries,
        after: afterwards,
        around,
        of_model,
        impact: None,
    };
    if let Some(entry) = finding.suspect() {
        // Up to where the range ends, so that it is the same however late it is asked.
        let left_us = range.end_us - entry.occurred_at.as_ref().map_or(0, micros);
        finding.impact = Some(ask.impact(entry, window_us.min(left_us)).await?);
    }
    Ok(Some(finding))
}

/// The cost of each bucket of a single series.
pub fn costs(answer: &GetTimeSeriesResponse) -> Vec<Cost> {
    answer
        .series
        .iter()
        .chain(&answer.other)
        .take(1)
        .flat_map(|series| &series.points)
        .filter_map(|point| {
            let start = point.interval.as_ref()?.start.as_ref()?;
            let metrics = point.metrics.as_ref()?;
            Some(Cost { start_us: micros(start), nanos: show::nanos(metrics.cost()) })
        })
        .collect()
}

/// The first day of those around the dearest one that cost at least half as much.
fn outbreak(days: &[Cost]) -> Option<Cost> {
    let (dearest, most) = days.iter().enumerate().max_by_key(|(_, day)| day.nanos)?;
    let dear = |day: &&Cost| day.nanos * 2 >= most.nanos;
    days[..=dearest].iter().rev().take_while(dear).last().copied()
}

fn median(costs: &[Cost]) -> i128 {
    let mut paid: Vec<i128> = costs.iter().map(|cost| cost.nanos).filter(|nanos| *nanos > 0).collect();
    paid.sort_unstable();
    paid.get(paid.len() / 2).copied().unwrap_or(0)
}

/// The bucket from which on `side` buckets cost the most above as many before it.
fn sharpest_rise(costs: &[Cost], side: u8) -> Option<usize> {
    let side = usize::from(side);
    let sum = |part: &[Cost]| part.iter().map(|cost| cost.nanos).sum::<i128>();
    (1..costs.len())
        .map(|at| {
            // As many on either side, fewer near the ends.
            let side = side.min(at).min(costs.len() - at);
            (sum(&costs[at..at + side]) - sum(&costs[at - side..at]), at)
        })
        // The first of equal ones.
        .max_by_key(|(rise, at)| (*rise, std::cmp::Reverse(*at)))
        .filter(|(rise, _)| *rise > 0)
        .map(|(_, at)| at)
}

/// The value of the dimensions whose cost rose most.
async fn rise(ask: &Ask, before: Range, after: Range, dimensions: &[Dimension]) -> Result<Option<Part>> {
    let was = ask.costs_by(before, dimensions).await?;
    let is = ask.costs_by(after, dimensions).await?;
    Ok(is
        .into_iter()
        .map(|(keys, after)| Part {
            dimension: name(dimensions),
            before: was.iter().find(|(others, _)| *others == keys).map_or(0, |(_, nanos)| *nanos),
            keys,
            after,
        })
        .max_by_key(|part| part.after - part.before))
}

fn name(dimensions: &[Dimension]) -> &'static str {
    match dimensions {
        [Dimension::Team] => "team",
        [Dimension::User] => "user",
        [Dimension::Model] => "model",
        [Dimension::Provider] => "provider",
        [Dimension::ApiKey] => "API key",
        _ => "team × model",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(nanos: &[i128]) -> Vec<Cost> {
        nanos.iter().enumerate().map(|(index, nanos)| Cost { start_us: index as i64, nanos: *nanos }).collect()
    }

    #[test]
    fn rise_is_found_where_it_begins() {
        assert_eq!(sharpest_rise(&series(&[1, 2, 1, 9, 8, 9, 1, 1]), 3), Some(3));
        assert_eq!(sharpest_rise(&series(&[5, 4, 3, 2]), 3), None);
        assert_eq!(sharpest_rise(&series(&[5]), 3), None);
        assert_eq!(sharpest_rise(&[], 3), None);
    }

    #[test]
    fn dear_days_begin_with_the_first_of_them() {
        let day = |nanos: &[i128]| outbreak(&series(nanos)).map(|day| day.start_us);
        assert_eq!(day(&[9, 1, 1, 8, 9, 10, 1]), Some(3));
        assert_eq!(day(&[1, 1, 5, 1]), Some(2));
        assert_eq!(day(&[]), None);
    }

    #[test]
    fn median_leaves_idle_days_out() {
        assert_eq!(median(&series(&[0, 0, 7, 3, 5])), 5);
        assert_eq!(median(&[]), 0);
    }
}
