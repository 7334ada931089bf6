//! What of the audit log is kept, where the rest is, and what is held.

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_governance_service_client::AuditGovernanceServiceClient;
use futures::stream::BoxStream;
use tonic::transport::Channel;

use super::Audit;
use crate::error::Error;
use crate::query::{MAX_ANSWER_BYTES, Page, over_pages};

/// Segments or holds a page.
const PAGE_SIZE: i32 = 500;

impl Audit {
    /// How long entries of a log stay in the database, and from when they are there.
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn retention(&self, instance: impl Into<String>) -> Result<proto::GetRetentionResponse, Error> {
        let question = proto::GetRetentionRequest { instance_id: instance.into() };
        let ask = |channel, request| async { client(channel).get_retention(request).await };
        self.reader.call(question, ask).await
    }

    /// The archived segments of a log, in the order of their sequences, over all pages.
    pub fn archives(&self, instance: impl Into<String>) -> BoxStream<'static, Result<proto::ArchiveSegment, Error>> {
        let (audit, instance_id) = (self.clone(), instance.into());
        over_pages(move |token| {
            let (audit, instance_id) = (audit.clone(), instance_id.clone());
            async move {
                let page_token = token.unwrap_or_default();
                let question = proto::ListArchivesRequest { instance_id, page_size: PAGE_SIZE, page_token };
                let ask = |channel, request| async { client(channel).list_archives(request).await };
                let page = audit.reader.call(question, ask).await?;
                Ok(Page::new(page.segments, page.next_page_token, None))
            }
        })
    }

    /// The legal holds of a log, over all pages: those that stand, or with those that were
    /// released.
    pub fn legal_holds(
        &self,
        instance: impl Into<String>,
        include_released: bool,
    ) -> BoxStream<'static, Result<proto::LegalHold, Error>> {
        let (audit, instance_id) = (self.clone(), instance.into());
        over_pages(move |token| {
            let (audit, instance_id) = (audit.clone(), instance_id.clone());
            async move {
                let question = proto::ListLegalHoldsRequest {
                    instance_id,
                    include_released,
                    page_size: PAGE_SIZE,
                    page_token: token.unwrap_or_default(),
                };
                let ask = |channel, request| async { client(channel).list_legal_holds(request).await };
                let page = audit.reader.call(question, ask).await?;
                Ok(Page::new(page.holds, page.next_page_token, None))
            }
        })
    }
}

fn client(channel: Channel) -> AuditGovernanceServiceClient<Channel> {
    AuditGovernanceServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}
