//! `PricingService`: the price book as it is, and what a request would cost.

use activity_proto::usage::v1 as proto;
use prost::Message as _;
use proto::pricing_service_server::PricingService;
use service_core::clock;
use service_core::error::{Error, Result};
use service_core::page::{self, MAX_PAGE_BYTES};
use tonic::{Request, Response, Status};

use super::Shared;
use crate::convert;
use crate::pricing::PriceBook;

/// Kind of the tokens of `ListPrices`.
const PAGE_KIND: &str = "usage.list_prices";
/// Providers in one query.
const MAX_PROVIDERS: usize = 1_000;

#[derive(Debug)]
pub(super) struct Pricing(pub(super) Shared);

#[tonic::async_trait]
impl PricingService for Pricing {
    async fn list_prices(
        &self,
        request: Request<proto::ListPricesRequest>,
    ) -> Result<Response<proto::ListPricesResponse>, Status> {
        let mut request = request.into_inner();
        let page_size = page::page_size(request.page_size)?;
        convert::at_most("providers", request.providers.len(), MAX_PROVIDERS).map_err(Error::from)?;
        convert::text("model_contains", &request.model_contains).map_err(Error::from)?;
        let page_token = std::mem::take(&mut request.page_token);
        request.page_size = 0;
        let book = &*self.0.book;
        // A new book starts a new list.
        let query = request.encode_to_vec();
        let query_hash = page::query_hash([query.as_slice(), book.version().as_bytes()]);
        let after = match page_token.is_empty() {
            true => None,
            false => Some(self.0.sealer.open(PAGE_KIND, &query_hash, &page_token)?),
        };

        let needle = request.model_contains.to_lowercase();
        let mut models = Vec::new();
        let mut bytes = 0;
        let mut next_page_token = String::new();
        for (provider, model) in listed(book) {
            let wanted = (request.providers.is_empty() || request.providers.iter().any(|name| **name == *provider.id))
                && model.id.to_lowercase().contains(&needle);
            let key = [provider.id.as_bytes(), b"\0", model.id.as_bytes()].concat();
            if !wanted || after.as_ref().is_some_and(|after| key <= *after) {
                continue;
            }
            let message = convert::model_prices(provider, model);
            bytes += message.encoded_len() + 8;
            if models.len() == page_size || (bytes > MAX_PAGE_BYTES && !models.is_empty()) {
                next_page_token = self.0.sealer.seal(PAGE_KIND, &query_hash, &last_key(&models));
                break;
            }
            models.push(message);
        }
        Ok(Response::new(proto::ListPricesResponse {
            models,
            next_page_token,
            book_version: book.version().to_owned(),
            currency_code: convert::currency(),
        }))
    }

    async fn estimate_cost(
        &self,
        request: Request<proto::EstimateCostRequest>,
    ) -> Result<Response<proto::EstimateCostResponse>, Status> {
        let request = request.into_inner();
        let book = &*self.0.book;
        let usage = convert::estimate_usage(&request, clock::now_us())?;
        let estimate =
            book.estimate(&usage, request.other_units.iter().map(|(unit, count)| (unit.as_str(), *count)), |name| {
                request.price_conditions.get(name).map(String::as_str)
            });
        Ok(Response::new(convert::estimate(estimate)))
    }
}

/// By provider, then model.
fn listed(book: &PriceBook) -> impl Iterator<Item = (&crate::pricing::Provider, &crate::pricing::Model)> {
    let mut listed: Vec<_> = book
        .providers()
        .iter()
        .flat_map(|provider| provider.models.iter().map(move |model| (provider, model)))
        .collect();
    listed.sort_by(|a, b| (&a.0.id, &a.1.id).cmp(&(&b.0.id, &b.1.id)));
    listed.into_iter()
}

fn last_key(models: &[proto::ModelPrices]) -> Vec<u8> {
    models.last().map_or_else(Vec::new, |last| [last.provider.as_bytes(), b"\0", last.model.as_bytes()].concat())
}
