//! What each producer sent, asked of either service.

use activity_proto::audit::v1 as audit;
use activity_proto::audit::v1::audit_governance_service_client::AuditGovernanceServiceClient;
use activity_proto::common::v1::ProducerCoverage;
use activity_proto::usage::v1 as usage;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use futures::stream::BoxStream;

use super::{MAX_ANSWER_BYTES, Page, TimeRange, over_pages};
use crate::audit::Audit;
use crate::error::Error;
use crate::usage::Usage;

/// Which producers, and which of their numbers. The service answers callers alone who see
/// every instance.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct CoverageQuery {
    range: Option<TimeRange>,
    producers: Vec<String>,
    first: Option<u64>,
    last: Option<u64>,
    page_size: u16,
}

impl CoverageQuery {
    /// All producers that were heard of in the last 24 hours.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those that were heard of in this range.
    pub fn range(mut self, range: TimeRange) -> Self {
        self.range = Some(range);
        self
    }

    /// A producer, by [`GatewaySdk::producer_id`](crate::GatewaySdk::producer_id); several are
    /// alternatives.
    pub fn producer(mut self, id: impl Into<String>) -> Self {
        self.producers.push(id.into());
        self
    }

    /// Numbers from this one on: goes on where an answer has said
    /// `through_sequence` or `more_ranges`.
    pub fn from_sequence(mut self, first: u64) -> Self {
        self.first = Some(first);
        self
    }

    /// Numbers up to this one.
    pub fn to_sequence(mut self, last: u64) -> Self {
        self.last = Some(last);
        self
    }

    /// How many epochs a page, up to 1,000. Default: 50 for a page, and 500 for a stream over
    /// pages.
    pub fn page_size(mut self, size: u16) -> Self {
        self.page_size = size;
        self
    }

    fn for_a_stream(mut self) -> Self {
        if self.page_size == 0 {
            self.page_size = 500;
        }
        self
    }
}

/// The same fields in both services' requests.
macro_rules! request {
    ($package:ident, $query:expr, $token:expr) => {
        $package::GetCoverageRequest {
            time_range: $query.range.clone().map(Into::into),
            producer_ids: $query.producers.clone(),
            first_sequence: $query.first,
            last_sequence: $query.last,
            page_size: $query.page_size.into(),
            page_token: $token.unwrap_or_default(),
        }
    };
}

impl Audit {
    /// What each producer sent of audit events: received, missing, dropped; over all pages.
    pub fn coverage(&self, query: CoverageQuery) -> BoxStream<'static, Result<ProducerCoverage, Error>> {
        let (audit, query) = (self.clone(), query.for_a_stream());
        over_pages(move |token| {
            let (audit, query) = (audit.clone(), query.clone());
            async move {
                let page = audit.coverage_page(&query, token).await?;
                Ok(Page::new(page.producers, page.next_page_token, page.interval))
            }
        })
    }

    /// One page of it, and with the first one the intents whose outcome has not come; `token`
    /// is the `next_page_token` of the page before.
    ///
    /// # Errors
    ///
    /// As all queries; [`Error::access`] where the caller does not see every instance.
    pub async fn coverage_page(
        &self,
        query: &CoverageQuery,
        token: Option<String>,
    ) -> Result<audit::GetCoverageResponse, Error> {
        let ask = |channel, request| async {
            let client = AuditGovernanceServiceClient::new(channel);
            client.max_decoding_message_size(MAX_ANSWER_BYTES).get_coverage(request).await
        };
        self.reader.call(request!(audit, query, token), ask).await
    }
}

impl Usage {
    /// What each producer sent of usage events: received, missing, dropped; over all pages.
    pub fn coverage(&self, query: CoverageQuery) -> BoxStream<'static, Result<ProducerCoverage, Error>> {
        let (usage, query) = (self.clone(), query.for_a_stream());
        over_pages(move |token| {
            let (usage, query) = (usage.clone(), query.clone());
            async move {
                let page = usage.coverage_page(&query, token).await?;
                Ok(Page::new(page.producers, page.next_page_token, page.interval))
            }
        })
    }

    /// One page of it; `token` is the `next_page_token` of the page before.
    ///
    /// # Errors
    ///
    /// As all queries; [`Error::access`] where the caller does not see every instance.
    pub async fn coverage_page(
        &self,
        query: &CoverageQuery,
        token: Option<String>,
    ) -> Result<usage::GetCoverageResponse, Error> {
        let ask = |channel, request| async {
            let client = UsageQueryServiceClient::new(channel);
            client.max_decoding_message_size(MAX_ANSWER_BYTES).get_coverage(request).await
        };
        self.reader.call(request!(usage, query, token), ask).await
    }
}
