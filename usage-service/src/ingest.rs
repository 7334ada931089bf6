//! From a checked event to a durable row: its cost, and the group commit that many
//! streams share.

use service_core::config::IngestConfig;
use service_core::error::Result;
use service_core::group_commit::{GroupCommit, Options};
use service_core::telemetry::Metrics;

use crate::model::{AppliedPrice, Charge, Event, NewRequest, Outcome, Tokens};
use crate::pricing::{self, PriceBook, Usage};
use crate::store::{Batch, Store};

/// The handle of the one writer.
pub(crate) type Writer = GroupCommit<Batch, Vec<Outcome>>;

/// Starts the writer.
pub(crate) fn start(store: Store, config: &IngestConfig, metrics: &Metrics) -> Writer {
    GroupCommit::spawn(metrics, Options::from(config), move |batches| {
        let store = store.clone();
        async move { store.write(&batches).await }
    })
}

/// The event with its cost: worked out here, once, and kept.
pub(crate) fn priced(event: Event, content_hash: [u8; 32], book: &PriceBook) -> NewRequest {
    let charge = charge(&event, book);
    NewRequest { event, content_hash, charge }
}

/// Hands a batch to the writer; resolves twice: when the writer has it, and when
/// it is durable.
pub(crate) async fn submit(
    writer: &Writer,
    batch: Batch,
) -> Result<impl Future<Output = Result<Vec<Outcome>>> + use<>> {
    let items = batch.requests.len() + batch.dropped.len();
    let pending = match items {
        // Nothing to store, and nothing to wait for.
        0 => None,
        _ => Some(writer.submit(batch, items).await?),
    };
    Ok(async move {
        match pending {
            Some(pending) => pending.await,
            None => Ok(Vec::new()),
        }
    })
}

fn charge(event: &Event, book: &PriceBook) -> Charge {
    let conditions = &event.price_conditions;
    let cost =
        book.cost(&usage(event), event.other_units.iter().map(|(unit, count)| (unit.as_str(), *count)), |name| {
            conditions.get(name).map(String::as_str)
        });
    match cost {
        Ok(cost) => {
            let (provider, model) = price_names(cost.price_id);
            Charge::Priced {
                cost_nanos: cost.nanos,
                price: AppliedPrice {
                    book_version: book.version().to_owned(),
                    provider: provider.to_owned(),
                    model: model.to_owned(),
                    detail: cost.tier.to_owned(),
                },
            }
        }
        Err(unpriced) => Charge::Unpriced(unpriced.to_string()),
    }
}

/// A price's id is `provider/model`; a provider's name has no slash.
pub(crate) fn price_names(price_id: &str) -> (&str, &str) {
    price_id.split_once('/').unwrap_or(("", price_id))
}

fn usage(event: &Event) -> Usage<'_> {
    Usage {
        provider: &event.provider,
        model: &event.model,
        occurred_at_us: event.occurred_at_us,
        service_tier: &event.service_tier,
        processing: &event.processing,
        tokens: book_tokens(&event.tokens),
    }
}

/// An event's tokens as the book counts them.
pub(crate) fn book_tokens(tokens: &Tokens) -> pricing::Tokens {
    pricing::Tokens {
        input_uncached: tokens.input_uncached,
        input_cache_read: tokens.input_cache_read,
        input_cache_write: tokens.input_cache_write,
        input_cache_write_1h: tokens.input_cache_write_1h,
        output: tokens.output,
        output_reasoning: tokens.output_reasoning,
    }
}
