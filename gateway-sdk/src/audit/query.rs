//! Questions to the audit log.

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use futures::stream::BoxStream;
use tonic::transport::Channel;
use uuid::Uuid;

use super::Audit;
use crate::error::Error;
use crate::query::{MAX_ANSWER_BYTES, Page, TimeRange, over_pages};
use crate::{AuditEntry, Order, Outcome, Stage};

/// Narrows entries: values of one kind are alternatives, kinds narrow each other.
///
/// ```
/// use gateway_sdk::{AuditFilter, Outcome};
///
/// let filter = AuditFilter::new()
///     .action("provider.*")
///     .action("model.disabled")
///     .outcome(Outcome::Success)
///     .text("gpt 4o");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct AuditFilter(proto::AuditFilter);

impl AuditFilter {
    /// Everything that the caller may see.
    pub fn new() -> Self {
        Self::default()
    }

    /// An actor, by id or display name.
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.0.actors.push(actor.into());
        self
    }

    /// An action: exact, or all of a resource (`mcp_oauth_client.*`).
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.0.actions.push(action.into());
        self
    }

    /// An affected resource, by id or name.
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.0.resources.push(resource.into());
        self
    }

    /// A type of affected resources.
    pub fn resource_type(mut self, kind: impl Into<String>) -> Self {
        self.0.resource_types.push(kind.into());
        self
    }

    /// An instance.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.0.instance_ids.push(id.into());
        self
    }

    /// An outcome.
    pub fn outcome(mut self, outcome: Outcome) -> Self {
        self.0.outcomes.push(outcome.into());
        self
    }

    /// A changed path, an exact JSON Pointer; there is no wildcard.
    pub fn changed_path(mut self, path: impl Into<String>) -> Self {
        self.0.changed_paths.push(path.into());
        self
    }

    /// A stage. Default: what an operator wants to see, single entries, outcomes and
    /// intents still open.
    pub fn stage(mut self, stage: Stage) -> Self {
        self.0.stages.push(stage.into());
        self
    }

    /// Words that must all occur in the entry's names, reason, values or details.
    pub fn text(mut self, words: impl Into<String>) -> Self {
        self.0.text = words.into();
        self
    }
}

impl From<AuditFilter> for proto::AuditFilter {
    fn from(filter: AuditFilter) -> Self {
        filter.0
    }
}

/// Which entries: a range, a filter, an order.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct AuditQuery {
    range: Option<TimeRange>,
    filter: AuditFilter,
    order: Order,
    page_size: u16,
}

impl AuditQuery {
    /// All entries of the last 24 hours, newest first.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of this range, by when they occurred.
    pub fn range(mut self, range: TimeRange) -> Self {
        self.range = Some(range);
        self
    }

    /// Only those.
    pub fn filter(mut self, filter: AuditFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Oldest first instead of newest first.
    pub fn oldest_first(mut self) -> Self {
        self.order = Order::OldestFirst;
        self
    }

    /// How many entries a page, up to 1,000. Default: 50 for a page, and 500 for a
    /// stream over pages.
    pub fn page_size(mut self, size: u16) -> Self {
        self.page_size = size;
        self
    }

    fn request(&self, page_token: Option<String>) -> proto::ListEntriesRequest {
        proto::ListEntriesRequest {
            time_range: self.range.clone().map(Into::into),
            filter: Some(self.filter.clone().into()),
            page_size: self.page_size.into(),
            page_token: page_token.unwrap_or_default(),
            order: self.order.into(),
        }
    }
}

impl Audit {
    /// Every entry that the query asks for, over all pages, asked for as it is read.
    pub fn entries(&self, query: AuditQuery) -> BoxStream<'static, Result<AuditEntry, Error>> {
        let audit = self.clone();
        let mut query = query;
        if query.page_size == 0 {
            query.page_size = 500;
        }
        over_pages(move |token| {
            let (audit, query) = (audit.clone(), query.clone());
            async move { audit.entries_page(&query, token).await }
        })
    }

    /// One page of entries; `token` is [`Page::next`] of the page before.
    ///
    /// # Errors
    ///
    /// [`Error::Service`], [`Error::NotConfigured`]; so have all queries.
    pub async fn entries_page(&self, query: &AuditQuery, token: Option<String>) -> Result<Page<AuditEntry>, Error> {
        let ask = |channel, request| async { client(channel).list_entries(request).await };
        let page = self.reader.call(query.request(token), ask).await?;
        Ok(Page::new(page.entries, page.next_page_token, page.interval))
    }

    /// The entry of an event's id.
    ///
    /// # Errors
    ///
    /// [`Error::Service`] with the reason `NotFound` where there is none.
    pub async fn entry(&self, id: Uuid) -> Result<AuditEntry, Error> {
        self.get_entry(proto::get_entry_request::Key::Id(id.to_string())).await
    }

    /// The entry at a place in an instance's log.
    ///
    /// # Errors
    ///
    /// [`Error::Service`] with the reason `NotFound` where there is none.
    pub async fn entry_at(&self, instance: impl Into<String>, sequence: u64) -> Result<AuditEntry, Error> {
        let position = proto::LogPosition { instance_id: instance.into(), sequence: Some(sequence) };
        self.get_entry(proto::get_entry_request::Key::Position(position)).await
    }

    async fn get_entry(&self, key: proto::get_entry_request::Key) -> Result<AuditEntry, Error> {
        let question = proto::GetEntryRequest { key: Some(key) };
        let ask = |channel, request| async { client(channel).get_entry(request).await };
        let answer = self.reader.call(question, ask).await?;
        answer.entry.ok_or_else(|| Error::Protocol("an answer without its entry".into()))
    }

    /// What a range holds, for a screen's filter boxes; up to `limit` values a facet (0
    /// for 100). Order and page size of the query have no meaning here.
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn facets(&self, query: &AuditQuery, limit: u16) -> Result<proto::ListFacetsResponse, Error> {
        let question = proto::ListFacetsRequest {
            time_range: query.range.clone().map(Into::into),
            filter: Some(query.filter.clone().into()),
            limit: limit.into(),
        };
        let ask = |channel, request| async { client(channel).list_facets(request).await };
        self.reader.call(question, ask).await
    }
}

pub(super) fn client(channel: Channel) -> AuditQueryServiceClient<Channel> {
    AuditQueryServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}
