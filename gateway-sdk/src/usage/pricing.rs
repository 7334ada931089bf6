//! Questions to the price book.

use std::time::SystemTime;

use activity_proto::usage::v1 as proto;
use activity_proto::usage::v1::pricing_service_client::PricingServiceClient;
use futures::stream::BoxStream;
use tonic::transport::Channel;

use super::Usage;
use super::event::Tokens;
use crate::error::Error;
use crate::query::{MAX_ANSWER_BYTES, Page, over_pages};

/// Which prices.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct PriceQuery {
    providers: Vec<String>,
    model_contains: String,
    page_size: u16,
}

impl PriceQuery {
    /// The whole price book.
    pub fn new() -> Self {
        Self::default()
    }

    /// A provider of the book, exact; several are alternatives.
    pub fn provider(mut self, provider: impl Into<String>) -> Self {
        self.providers.push(provider.into());
        self
    }

    /// A part of the model's name, in any case.
    pub fn model_contains(mut self, part: impl Into<String>) -> Self {
        self.model_contains = part.into();
        self
    }

    /// How many models a page, up to 1,000. Default: 50 for a page, and 500 for a stream
    /// over pages.
    pub fn page_size(mut self, size: u16) -> Self {
        self.page_size = size;
        self
    }
}

/// A request to price without recording it.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct CostQuery(proto::EstimateCostRequest);

impl CostQuery {
    /// A request, now. It needs its tokens or other units.
    pub fn new(provider: impl Into<String>, model: impl Into<String>) -> Self {
        Self(proto::EstimateCostRequest { provider: provider.into(), model: model.into(), ..Default::default() })
    }

    /// When. Default: now.
    pub fn occurred_at(mut self, at: impl Into<SystemTime>) -> Self {
        self.0.occurred_at = Some(at.into().into());
        self
    }

    /// Its tokens.
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.0.tokens = Some(tokens.into());
        self
    }

    /// What else the book charges for, by its own unit name.
    pub fn unit(mut self, name: impl Into<String>, count: u64) -> Self {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.0.other_units.insert(name.into(), count);
        self
    }

    /// The provider's service tier.
    pub fn service_tier(mut self, tier: impl Into<String>) -> Self {
        self.0.service_tier = tier.into();
        self
    }

    /// Run by a batch interface.
    pub fn batch(mut self) -> Self {
        self.0.processing = "batch".into();
        self
    }

    /// A further condition on which the book prices variants.
    pub fn price_condition(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.price_conditions.insert(name.into(), value.into());
        self
    }
}

impl Usage {
    /// The models that have prices, by provider, then model, over all pages.
    pub fn prices(&self, query: PriceQuery) -> BoxStream<'static, Result<proto::ModelPrices, Error>> {
        let usage = self.clone();
        let mut query = query;
        if query.page_size == 0 {
            query.page_size = 500;
        }
        over_pages(move |token| {
            let (usage, query) = (usage.clone(), query.clone());
            async move {
                let page = usage.prices_page(&query, token).await?;
                Ok(Page::new(page.models, page.next_page_token, None))
            }
        })
    }

    /// One page of prices, with the book's version and currency; `token` is the
    /// `next_page_token` of the page before.
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn prices_page(
        &self,
        query: &PriceQuery,
        token: Option<String>,
    ) -> Result<proto::ListPricesResponse, Error> {
        let question = proto::ListPricesRequest {
            providers: query.providers.clone(),
            model_contains: query.model_contains.clone(),
            page_size: query.page_size.into(),
            page_token: token.unwrap_or_default(),
        };
        let ask = |channel, request| async { client(channel).list_prices(request).await };
        self.reader.call(question, ask).await
    }

    /// What a request would cost, line by line.
    ///
    /// # Errors
    ///
    /// As all queries.
    pub async fn estimate_cost(&self, query: &CostQuery) -> Result<proto::EstimateCostResponse, Error> {
        let ask = |channel, request| async { client(channel).estimate_cost(request).await };
        self.reader.call(query.0.clone(), ask).await
    }
}

fn client(channel: Channel) -> PricingServiceClient<Channel> {
    PricingServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}
