//! The questions that the demo asks, all through the SDK as an admin backend would.

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::AuditEntry;
use activity_proto::usage::v1::{GetSummaryResponse, GetTimeSeriesResponse, ListBreakdownResponse};
use anyhow::Result;
use futures::TryStreamExt;
use gateway_sdk::{
    AuditFilter, AuditQuery, Bucket, Dimension, GatewaySdk, Grouping, Impact, Investigation, Resource, TimeRange,
    UsageFilter, UsageQuery,
};

use super::show;
use crate::time::{MINUTE_US, micros};

/// As many groups as the services give at once.
const ALL_GROUPS: u16 = 1_000;

/// `start_us` ≤ t < `end_us`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// From.
    pub start_us: i64,
    /// Until, exclusive.
    pub end_us: i64,
}

impl Range {
    fn time_range(self) -> TimeRange {
        // The demo's times are after 1970.
        let at = |us: i64| SystemTime::UNIX_EPOCH + Duration::from_micros(us.max(0).unsigned_abs());
        TimeRange::between(at(self.start_us), at(self.end_us))
    }

    fn usage(self) -> UsageQuery {
        UsageQuery::new().range(self.time_range())
    }
}

/// Asks both services.
#[derive(Clone, Debug)]
pub struct Ask {
    sdk: GatewaySdk,
}

impl Ask {
    /// Through an SDK with both endpoints.
    pub fn new(sdk: &GatewaySdk) -> Self {
        Self { sdk: sdk.clone() }
    }

    /// The totals, and those of the range before.
    pub async fn summary(&self, range: Range) -> Result<GetSummaryResponse> {
        Ok(self.sdk.usage().summary_compared(&range.usage()).await?)
    }

    /// The most expensive groups of one dimension.
    pub async fn breakdown(&self, range: Range, by: Dimension, limit: u16) -> Result<ListBreakdownResponse> {
        Ok(self.sdk.usage().breakdown(&range.usage(), &Grouping::by([by]).limit(limit)).await?)
    }

    /// Totals over time, by cost.
    pub async fn series(&self, range: Range, bucket: Bucket, by: Option<Dimension>) -> Result<GetTimeSeriesResponse> {
        let grouping = Grouping::by(by).limit(5);
        Ok(self.sdk.usage().series(&range.usage(), bucket, &grouping).await?)
    }

    /// What everything cost, in nano-dollars.
    pub async fn cost(&self, range: Range) -> Result<i128> {
        let answer = self.sdk.usage().summary(&range.usage()).await?;
        Ok(answer.summary.map_or(0, |metrics| show::nanos(metrics.cost())))
    }

    /// What each group cost, in nano-dollars.
    pub async fn costs_by(&self, range: Range, by: &[Dimension]) -> Result<Vec<(Vec<String>, i128)>> {
        let grouping = Grouping::by(by.iter().copied()).limit(ALL_GROUPS);
        let answer = self.sdk.usage().breakdown(&range.usage(), &grouping).await?;
        Ok(answer
            .rows
            .into_iter()
            .map(|row| (row.keys, row.metrics.map_or(0, |metrics| show::nanos(metrics.cost()))))
            .collect())
    }

    /// How many requests a model served.
    pub async fn requests_of_model(&self, range: Range, model: &str) -> Result<u64> {
        let query = range.usage().filter(UsageFilter::new().model(model));
        let answer = self.sdk.usage().summary(&query).await?;
        Ok(answer.summary.map_or(0, |metrics| metrics.requests()))
    }

    /// When a model served its first request of the range: the first minute that has
    /// any, then the oldest of its requests.
    pub async fn first_request_of_model(&self, range: Range, model: &str) -> Result<Option<i64>> {
        let of_model = || UsageFilter::new().model(model);
        let query = range.usage().filter(of_model());
        let answer = self.sdk.usage().series(&query, Bucket::Minute, &Grouping::none()).await?;
        let minute = answer
            .series
            .iter()
            .flat_map(|series| &series.points)
            .find(|point| point.metrics.as_ref().is_some_and(|metrics| metrics.requests() > 0));
        let Some(start) = minute.and_then(|point| point.interval.as_ref()?.start.as_ref()) else {
            return Ok(None);
        };
        let start_us = micros(start);
        let minute = Range { start_us, end_us: start_us + MINUTE_US };
        let mut requests = self.sdk.usage().requests(minute.usage().filter(of_model()));
        let mut first_us = None;
        while let Some(request) = requests.try_next().await? {
            let time = request.occurred_at;
            first_us = time.as_ref().map(micros).or(first_us);
        }
        Ok(first_us)
    }

    /// The traffic of a model, how it changed, and what was done to it.
    pub async fn investigate(&self, range: Range, model: &str) -> Result<Investigation> {
        Ok(self.sdk.investigate(range.time_range(), Resource::new("model", model)).await?)
    }

    /// The traffic of what an entry touched, so long before and after it.
    pub async fn impact(&self, entry: &AuditEntry, window_us: i64) -> Result<Impact> {
        let window = Duration::from_micros(window_us.max(0).unsigned_abs());
        Ok(self.sdk.impact(entry).window(window).await?)
    }

    /// The newest entries that match, or the oldest.
    pub async fn entries(&self, range: Range, filter: AuditFilter, most: u16, newest: bool) -> Result<Vec<AuditEntry>> {
        let mut query = AuditQuery::new().range(range.time_range()).filter(filter).page_size(most);
        if !newest {
            query = query.oldest_first();
        }
        Ok(self.sdk.audit().entries_page(&query, None).await?.items)
    }
}
