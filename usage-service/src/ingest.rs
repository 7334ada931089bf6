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

/// Bytes that count as one event where the queue and the groups are bounded: larger events count as several, so that
/// the bounds hold in memory too.
const ITEM_BYTES: usize = 1_024;

fn items(batch: &Batch) -> usize {
    let events = batch.requests.iter().map(|request| bytes(&request.event).div_ceil(ITEM_BYTES));
    // The one text of a range is short.
    events.sum::<usize>() + batch.dropped.len()
}

/// Roughly what an event takes: its texts, and numbers.
fn bytes(event: &Event) -> usize {
    const NUMBERS: usize = 256;
    let texts = [
        &event.instance_id,
        &event.user_id,
        &event.team_id,
        &event.api_key_id,
        &event.provider,
        &event.requested_model,
        &event.model,
        &event.operation,
        &event.service_tier,
        &event.processing,
        &event.request_id,
    ];
    let maps = event.labels.iter().chain(&event.price_conditions).map(|(key, value)| key.len() + value.len());
    let units = event.other_units.keys().map(|unit| unit.len() + size_of::<i64>());
    let producer = event.producer.as_ref().map_or(0, |producer| producer.id.len());
    NUMBERS + texts.map(String::len).iter().sum::<usize>() + maps.sum::<usize>() + units.sum::<usize>() + producer
}

/// Hands a batch to the writer; resolves twice: when the writer has it, and when
/// it is durable.
pub(crate) async fn submit(
    writer: &Writer,
    batch: Batch,
) -> Result<impl Future<Output = Result<Vec<Outcome>>> + use<>> {
    let items = items(&batch);
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
        Err(unpriced) => Charge::Unpriced(unpriced.kept()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DroppedRange, Status};

    fn request(labels: usize) -> NewRequest {
        let event = Event {
            id: uuid::Uuid::nil(),
            occurred_at_us: 0,
            instance_id: "eu".into(),
            user_id: "user".into(),
            team_id: String::new(),
            api_key_id: String::new(),
            provider: "openai".into(),
            requested_model: "gpt-4o".into(),
            model: "gpt-4o".into(),
            status: Status::Ok,
            operation: String::new(),
            tokens: Tokens::default(),
            other_units: Default::default(),
            latency_us: None,
            time_to_first_token_us: None,
            service_tier: String::new(),
            processing: String::new(),
            request_id: String::new(),
            labels: (0..labels).map(|n| (format!("{n:0>256}"), "x".repeat(256))).collect(),
            price_conditions: Default::default(),
            producer: None,
        };
        NewRequest { event, content_hash: [0; 32], charge: Charge::Unpriced("unknown".into()) }
    }

    #[test]
    fn the_queue_counts_bytes_and_ranges() {
        let range = DroppedRange { producer_id: "sdk".into(), epoch: 1, first_sequence: 1, last_sequence: 2 };
        assert_eq!(items(&Batch { requests: vec![request(0), request(0)], ..Batch::default() }), 2);
        assert_eq!(items(&Batch { requests: vec![request(16)], ..Batch::default() }), 9);
        assert_eq!(items(&Batch { dropped: vec![range; 3], ..Batch::default() }), 3);
    }
}
