//! Questions about usage.

use activity_proto::usage::v1 as proto;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use futures::stream::BoxStream;
use tonic::transport::Channel;

use super::Usage;
use crate::error::Error;
use crate::query::{MAX_ANSWER_BYTES, Page, TimeRange, over_pages};
use crate::{Bucket, Dimension, Metric, RequestStatus};

/// Narrows requests: values of one kind are alternatives, kinds narrow each other. An
/// empty value stands for requests that have none.
///
/// ```
/// use gateway_sdk::UsageFilter;
///
/// let filter = UsageFilter::new().provider("openai").provider("anthropic").user("alice");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct UsageFilter(proto::UsageFilter);

impl UsageFilter {
    /// Everything that the caller may see.
    pub fn new() -> Self {
        Self::default()
    }

    /// An instance.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.0.instance_ids.push(id.into());
        self
    }

    /// A user.
    pub fn user(mut self, id: impl Into<String>) -> Self {
        self.0.user_ids.push(id.into());
        self
    }

    /// A team.
    pub fn team(mut self, id: impl Into<String>) -> Self {
        self.0.team_ids.push(id.into());
        self
    }

    /// An API key.
    pub fn api_key(mut self, id: impl Into<String>) -> Self {
        self.0.api_key_ids.push(id.into());
        self
    }

    /// A provider.
    pub fn provider(mut self, provider: impl Into<String>) -> Self {
        self.0.providers.push(provider.into());
        self
    }

    /// A served model.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.0.models.push(model.into());
        self
    }

    /// A status.
    pub fn status(mut self, status: RequestStatus) -> Self {
        self.0.statuses.push(status.into());
        self
    }

    /// A label that requests must have; all of those given.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.labels.insert(key.into(), value.into());
        self
    }
}

impl From<UsageFilter> for proto::UsageFilter {
    fn from(filter: UsageFilter) -> Self {
        filter.0
    }
}

/// Which requests: a range and a filter.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct UsageQuery {
    range: Option<TimeRange>,
    filter: UsageFilter,
    page_size: u16,
}

impl UsageQuery {
    /// All requests of the last 24 hours.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of this range, by when they ended.
    pub fn range(mut self, range: TimeRange) -> Self {
        self.range = Some(range);
        self
    }

    /// Only those.
    pub fn filter(mut self, filter: UsageFilter) -> Self {
        self.filter = filter;
        self
    }

    /// For lists of requests: how many a page, up to 1,000. Default: 50 for a page, and
    /// 500 for a stream over pages.
    pub fn page_size(mut self, size: u16) -> Self {
        self.page_size = size;
        self
    }

    pub(super) fn time_range(&self) -> Option<activity_proto::common::v1::TimeRange> {
        self.range.clone().map(Into::into)
    }

    pub(super) fn usage_filter(&self) -> Option<proto::UsageFilter> {
        Some(self.filter.clone().into())
    }
}

/// How totals are grouped and ranked.
///
/// ```
/// use gateway_sdk::{Dimension, Grouping, Metric};
///
/// let top = Grouping::by([Dimension::Provider, Dimension::Model])
///     .order_by(Metric::Requests)
///     .limit(20);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct Grouping {
    dimensions: Vec<Dimension>,
    pub(super) order_by: Metric,
    pub(super) limit: u16,
}

impl Grouping {
    /// One group of everything; for series.
    pub fn none() -> Self {
        Self::default()
    }

    /// By up to three dimensions, each once.
    pub fn by(dimensions: impl IntoIterator<Item = Dimension>) -> Self {
        Self { dimensions: dimensions.into_iter().collect(), ..Self::default() }
    }

    /// What ranks groups. Default: the cost.
    pub fn order_by(mut self, metric: Metric) -> Self {
        self.order_by = metric;
        self
    }

    /// How many groups stand for themselves; all others are one. Default: 50 rows of a
    /// breakdown, 10 series.
    pub fn limit(mut self, groups: u16) -> Self {
        self.limit = groups;
        self
    }

    pub(super) fn group_by(&self) -> Vec<i32> {
        self.dimensions.iter().map(|&d| d.into()).collect()
    }
}

impl Usage {
    /// The totals of a range.
    ///
    /// # Errors
    ///
    /// [`Error::Service`], [`Error::NotConfigured`]; so have all queries.
    pub async fn summary(&self, query: &UsageQuery) -> Result<proto::GetSummaryResponse, Error> {
        self.get_summary(query, false).await
    }

    /// The totals of a range, and of the range before it, as long as this one.
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn summary_compared(&self, query: &UsageQuery) -> Result<proto::GetSummaryResponse, Error> {
        self.get_summary(query, true).await
    }

    async fn get_summary(
        &self,
        query: &UsageQuery,
        compare_to_previous: bool,
    ) -> Result<proto::GetSummaryResponse, Error> {
        let question = proto::GetSummaryRequest {
            time_range: query.time_range(),
            filter: query.usage_filter(),
            compare_to_previous,
        };
        let ask = |channel, request| async { client(channel).get_summary(request).await };
        self.reader.call(question, ask).await
    }

    /// The totals by group, the highest first, with all other groups as one.
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn breakdown(
        &self,
        query: &UsageQuery,
        grouping: &Grouping,
    ) -> Result<proto::ListBreakdownResponse, Error> {
        let question = proto::ListBreakdownRequest {
            time_range: query.time_range(),
            filter: query.usage_filter(),
            group_by: grouping.group_by(),
            order_by: grouping.order_by.into(),
            limit: grouping.limit.into(),
        };
        let ask = |channel, request| async { client(channel).list_breakdown(request).await };
        self.reader.call(question, ask).await
    }

    /// The totals over time: a series a group, a point for every bucket.
    ///
    /// # Errors
    ///
    /// As all queries; with the reason `TooManyPoints` over 10,000 of them.
    pub async fn series(
        &self,
        query: &UsageQuery,
        bucket: Bucket,
        grouping: &Grouping,
    ) -> Result<proto::GetTimeSeriesResponse, Error> {
        let question = proto::GetTimeSeriesRequest {
            time_range: query.time_range(),
            filter: query.usage_filter(),
            bucket: bucket.into(),
            group_by: grouping.group_by(),
            limit: grouping.limit.into(),
            order_by: grouping.order_by.into(),
        };
        let ask = |channel, request| async { client(channel).get_time_series(request).await };
        self.reader.call(question, ask).await
    }

    /// Single requests, newest first, over all pages, asked for as they are read.
    pub fn requests(&self, query: UsageQuery) -> BoxStream<'static, Result<proto::UsageRequest, Error>> {
        let usage = self.clone();
        let mut query = query;
        if query.page_size == 0 {
            query.page_size = 500;
        }
        over_pages(move |token| {
            let (usage, query) = (usage.clone(), query.clone());
            async move { usage.requests_page(&query, token).await }
        })
    }

    /// One page of requests; `token` is [`Page::next`] of the page before.
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn requests_page(
        &self,
        query: &UsageQuery,
        token: Option<String>,
    ) -> Result<Page<proto::UsageRequest>, Error> {
        let question = proto::ListRequestsRequest {
            time_range: query.time_range(),
            filter: query.usage_filter(),
            page_size: query.page_size.into(),
            page_token: token.unwrap_or_default(),
        };
        let ask = |channel, request| async { client(channel).list_requests(request).await };
        let page = self.reader.call(question, ask).await?;
        Ok(Page::new(page.requests, page.next_page_token, page.interval))
    }

    /// What a range holds, for a screen's filter boxes; up to `limit` values a facet (0
    /// for 100).
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn facets(&self, query: &UsageQuery, limit: u16) -> Result<proto::ListFacetsResponse, Error> {
        let question = proto::ListFacetsRequest {
            time_range: query.time_range(),
            filter: query.usage_filter(),
            limit: limit.into(),
        };
        let ask = |channel, request| async { client(channel).list_facets(request).await };
        self.reader.call(question, ask).await
    }
}

pub(super) fn client(channel: Channel) -> UsageQueryServiceClient<Channel> {
    UsageQueryServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}
