//! The traffic of a resource over a span of time, and over the one before.

use std::time::Duration;

use activity_proto::common::v1::Interval;
use activity_proto::usage::v1 as proto;

use super::subject::Subject;
use super::{Failed, Unanswered, ends, told};
use crate::error::Error;
use crate::{Bucket, Dimension, Grouping, TimeRange, Usage, UsageFilter, UsageQuery};

/// As many groups as the names of one resource can be in.
const GROUPS: u16 = 100;

/// The requests of a resource, in two spans of time of which one ends where the other begins.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Traffic {
    /// By which of their values requests were taken for those of the resource; they have all.
    pub by: Vec<(Dimension, String)>,
    /// The span before; not there where retention has removed it.
    pub before: Result<Window, Unanswered>,
    /// The span that is asked about.
    pub after: Window,
    /// From the one to the other, where both are there. They are of one moment.
    pub change: Option<Changes>,
    /// ISO 4217.
    pub currency_code: String,
    /// How finely the oldest part is kept, in seconds: 900 where that is sums over quarters of an
    /// hour, to which the spans are then moved outward; 0 where it is single requests.
    pub resolution_seconds: i32,
}

/// One span of time.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Window {
    /// Which.
    pub interval: Interval,
    /// The totals.
    pub totals: proto::Metrics,
    /// How wide a point is.
    pub bucket: Bucket,
    /// The totals over time, every bucket present. They are read after the totals: what came in
    /// between is in them alone.
    pub points: Vec<proto::Point>,
}

/// How the totals changed. Money is in whole nano-units of the currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// All requests.
    pub requests: Change,
    /// Those that did not end well.
    pub failed_requests: Change,
    /// All tokens.
    pub total_tokens: Change,
    /// The cost of all priced requests, in nano-units.
    pub cost_nanos: Change,
    /// Distinct users.
    pub unique_users: Change,
    /// Requests without a known price, which no cost includes.
    pub unpriced_requests: Change,
}

/// A figure before and after; exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// What it was.
    pub before: i128,
    /// What it is.
    pub after: i128,
}

impl Change {
    /// By how much it rose.
    #[must_use]
    pub fn difference(self) -> i128 {
        self.after - self.before
    }

    /// By how many thousandths of what it was it rose, rounded towards zero; `None` where it
    /// was nothing.
    #[must_use]
    pub fn per_mille(self) -> Option<i128> {
        self.difference().saturating_mul(1_000).checked_div(self.before)
    }
}

impl Changes {
    fn between(before: &proto::Metrics, after: &proto::Metrics) -> Result<Self, Error> {
        let count =
            |pick: fn(&proto::Metrics) -> u64| Change { before: pick(before).into(), after: pick(after).into() };
        Ok(Self {
            requests: count(proto::Metrics::requests),
            failed_requests: count(proto::Metrics::failed_requests),
            total_tokens: count(proto::Metrics::total_tokens),
            cost_nanos: Change { before: nanos(before.cost())?, after: nanos(after.cost())? },
            unique_users: count(proto::Metrics::unique_users),
            unpriced_requests: count(proto::Metrics::unpriced_requests),
        })
    }
}

/// A decimal text of money in nano-units: exact, or not money.
fn nanos(money: &str) -> Result<i128, Error> {
    let no_money = || Error::Protocol(format!("{money:?} is no sum of money"));
    let (negative, digits) = money.strip_prefix('-').map_or((false, money), |digits| (true, digits));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(part) || part.len() > 9 {
        return Err(no_money());
    }
    let part: i128 = format!("{part:0<9}").parse().map_err(|_| no_money())?;
    let whole: i128 = whole.parse().map_err(|_| no_money())?;
    let nanos = whole.checked_mul(1_000_000_000).and_then(|nanos| nanos.checked_add(part)).ok_or_else(no_money)?;
    Ok(if negative { -nanos } else { nanos })
}

/// What to ask.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) usage: &'a Usage,
    pub(super) subject: &'a Subject<'a>,
    pub(super) range: TimeRange,
    /// What requests must have beside the resource: an instance.
    pub(super) scope: UsageFilter,
    pub(super) bucket: Option<Bucket>,
}

/// The traffic, and what entries may call the resource.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) traffic: Traffic,
    pub(super) also_known_as: Vec<String>,
}

/// The totals of both spans, and why the one before has none.
struct Totals {
    answer: proto::GetSummaryResponse,
    removed: Option<Unanswered>,
}

impl Asked<'_> {
    /// Which requests are the resource's, then their totals, then both series.
    pub(super) async fn ask(&self) -> Result<Told, Failed> {
        let any = self.subject.any(self.scope.clone());
        let totals = self.totals(&self.range, any.clone()).await?;
        let groups = self.groups(&totals.answer).await?;
        let by = self.subject.choose(&groups);
        let filter = self.subject.exactly(&by, self.scope.clone());
        let Totals { answer, removed } = match filter == any {
            true => totals,
            false => {
                // A range by its name has come to its ends.
                let (start, end) = ends(totals.answer.interval.as_ref())?;
                self.totals(&self.range.clone().with_ends(start, end), filter.clone()).await?
            }
        };
        let proto::GetSummaryResponse { summary, previous, currency_code, .. } = answer;
        let before = async {
            match removed {
                Some(removed) => Err(Failed::Unanswered(removed)),
                None => self.window(answer.previous_interval.as_ref(), previous, &filter).await,
            }
        };
        let after = self.window(answer.interval.as_ref(), summary, &filter);
        let (before, after) = futures::join!(before, after);
        let (before, after) = (told(before)?, after?);
        let change = before.as_ref().ok().map(|before| Changes::between(&before.totals, &after.totals)).transpose()?;
        let also_known_as = self.subject.also_known_as(&by, &groups);
        let resolution_seconds = answer.resolution_seconds;
        Ok(Told { traffic: Traffic { by, before, after, change, currency_code, resolution_seconds }, also_known_as })
    }

    /// Of both spans, or where the one before is removed of the range alone.
    async fn totals(&self, range: &TimeRange, filter: UsageFilter) -> Result<Totals, Failed> {
        let query = UsageQuery::new().range(range.clone()).filter(filter);
        match told(self.usage.summary_compared(&query).await.map_err(Failed::from))? {
            Ok(answer) => Ok(Totals { answer, removed: None }),
            Err(removed) => Ok(Totals { answer: self.usage.summary(&query).await?, removed: Some(removed) }),
        }
    }

    /// What requests with any of the resource's names have in its dimensions, in both spans.
    async fn groups(&self, any: &proto::GetSummaryResponse) -> Result<Vec<Vec<String>>, Failed> {
        let requests = [&any.summary, &any.previous].into_iter().flatten().map(proto::Metrics::requests);
        if requests.sum::<u64>() == 0 || !self.subject.is_ambiguous() {
            return Ok(Vec::new());
        }
        let (start, end) = ends(any.interval.as_ref())?;
        let first = any.previous_interval.as_ref().map(|before| ends(Some(before))).transpose()?;
        let range = TimeRange::between(first.map_or(start, |(first, _)| first), end);
        let query = UsageQuery::new().range(range).filter(self.subject.any(self.scope.clone()));
        let grouping = Grouping::by(self.subject.dimensions.iter().copied()).limit(GROUPS);
        let answer = self.usage.breakdown(&query, &grouping).await?;
        Ok(answer.rows.into_iter().map(|row| row.keys).collect())
    }

    async fn series(&self, query: &UsageQuery, bucket: Bucket) -> Result<proto::GetTimeSeriesResponse, Failed> {
        Ok(self.usage.series(query, bucket, &Grouping::none()).await?)
    }

    async fn window(
        &self,
        interval: Option<&Interval>,
        totals: Option<proto::Metrics>,
        filter: &UsageFilter,
    ) -> Result<Window, Failed> {
        let (start, end) = ends(interval)?;
        let query = UsageQuery::new().range(self.range.clone().with_ends(start, end)).filter(filter.clone());
        let fits = fitting(end.duration_since(start).unwrap_or_default());
        let wanted = self.bucket.unwrap_or(fits);
        let (bucket, answer) = match self.series(&query, wanted).await {
            // Sums over quarters of an hour don't tell minutes apart.
            Err(Failed::Unanswered(_)) if self.bucket.is_none() && fits == Bucket::Minute => {
                (Bucket::Hour, self.series(&query, Bucket::Hour).await?)
            }
            answer => (wanted, answer?),
        };
        Ok(Window {
            interval: Interval { start: Some(start.into()), end: Some(end.into()) },
            totals: totals.unwrap_or_default(),
            bucket,
            points: answer.series.into_iter().next().map(|series| series.points).unwrap_or_default(),
        })
    }
}

/// The bucket that makes some tens to some hundreds of points.
fn fitting(span: Duration) -> Bucket {
    const HOUR: u64 = 3_600;
    const DAY: u64 = 24 * HOUR;
    match span.as_secs() {
        0..=10_800 => Bucket::Minute,
        span if span <= 8 * DAY => Bucket::Hour,
        span if span <= 200 * DAY => Bucket::Day,
        span if span <= 1_100 * DAY => Bucket::Week,
        _ => Bucket::Month,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact_or_none() {
        assert_eq!(nanos("12.345678901").unwrap(), 12_345_678_901);
        assert_eq!(nanos("-0.5").unwrap(), -500_000_000);
        assert_eq!(nanos("7").unwrap(), 7_000_000_000);
        for text in ["", "-", "1.", ".5", "1e3", "1.0000000001", "+1", "1 ", &"9".repeat(40)] {
            assert!(nanos(text).is_err(), "{text}");
        }
    }

    #[test]
    fn changes_are_exact_integers() {
        let change = |before, after| Change { before, after };
        assert_eq!(change(3, 4).per_mille(), Some(333));
        assert_eq!(change(4, 3).per_mille(), Some(-250));
        assert_eq!(change(0, 3).per_mille(), None);
        assert_eq!(change(2, -3).difference(), -5);
    }

    #[test]
    fn points_are_neither_few_nor_many() {
        let hours = |hours: u64| fitting(Duration::from_secs(hours * 3_600));
        assert_eq!(
            [1, 3, 4, 24, 7 * 24, 30 * 24, 365 * 24, 5 * 365 * 24].map(hours),
            [
                Bucket::Minute,
                Bucket::Minute,
                Bucket::Hour,
                Bucket::Hour,
                Bucket::Hour,
                Bucket::Day,
                Bucket::Week,
                Bucket::Month
            ]
        );
    }
}
