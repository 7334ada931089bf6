//! Single requests, a page at a time, by (`occurred_at`, `id`).

use sea_orm::sea_query::{Expr, ExprTrait as _};
use sea_orm::{EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, SelectThree, TopologyStar};
use service_core::error::{Error, Result};

use super::entity::request::Column;
use super::entity::{charge, producer, request};
use super::{Store, scope};
use crate::model::{AppliedPrice, Charge, Event, Position, Producer, Scope, Status, StoredRequest, Tokens};

/// The order of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they happened.
    OldestFirst,
    /// The newest at the top.
    NewestFirst,
}

/// Requests, each with its charge and its producer.
type Page = SelectThree<request::Entity, charge::Entity, producer::Entity, TopologyStar>;

impl Store {
    /// Up to `limit` requests behind a position.
    pub async fn requests(
        &self,
        scope: &Scope,
        order: Order,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<StoredRequest>> {
        let found = self.page(scope, order, after, limit).all(&self.db.reader).await?;
        // Rows first: what the horizon lets through after them was there all the time.
        let from_us = match (order, after) {
            (Order::OldestFirst, Some(after)) => Ord::max(scope.start_us, after.occurred_at_us),
            _ => scope.start_us,
        };
        if from_us < scope.end_us {
            self.kept().await?.requests(from_us)?;
        }
        found.into_iter().map(|(row, charge, producer)| stored(row, charge, producer)).collect()
    }

    pub(super) fn page(&self, scope: &Scope, order: Order, after: Option<Position>, limit: usize) -> Page {
        let mut window = scope.clone();
        if let Some(Position { occurred_at_us, .. }) = after {
            // What the position leaves, ties included: where an engine starts in the
            // index, and which partitions it needs.
            match order {
                Order::OldestFirst => window.start_us = Ord::max(window.start_us, occurred_at_us),
                Order::NewestFirst => window.end_us = Ord::min(window.end_us, occurred_at_us.saturating_add(1)),
            }
        }
        let mut query = request::Entity::find()
            .find_also_related(charge::Entity)
            .find_also(request::Entity, producer::Entity)
            .filter(scope::condition(&window, self.backend()))
            .limit(limit as u64);
        if let Some(after) = after {
            let column = |column: Column| Expr::col((request::Entity, column));
            let key = Expr::tuple([column(Column::OccurredAt), column(Column::Id)]);
            let position = Expr::tuple([Expr::value(after.occurred_at_us), Expr::value(after.id)]);
            query = query.filter(match order {
                Order::OldestFirst => key.gt(position),
                Order::NewestFirst => key.lt(position),
            });
        }
        match order {
            Order::OldestFirst => query.order_by_asc(Column::OccurredAt).order_by_asc(Column::Id),
            Order::NewestFirst => query.order_by_desc(Column::OccurredAt).order_by_desc(Column::Id),
        }
    }
}

fn stored(
    row: request::Model,
    charge: Option<charge::Model>,
    producer: Option<producer::Model>,
) -> Result<StoredRequest> {
    let defect = |what: &str| Error::internal(anyhow::anyhow!("request {}: {what}", row.id));
    let status = Status::from_number(i64::from(row.status)).ok_or_else(|| defect("unknown status"))?;
    let charge = charge.ok_or_else(|| defect("its charge is missing"))?;
    let producer = match (row.producer_ref, producer, row.producer_sequence) {
        (None, _, _) => None,
        (Some(_), Some(producer), Some(sequence)) => {
            Some(Producer { id: producer.producer_id, epoch: producer.epoch, sequence })
        }
        (Some(_), _, _) => return Err(defect("its producer is missing")),
    };
    let charge = match row.cost_nanos {
        Some(cost_nanos) => Charge::Priced {
            cost_nanos,
            price: AppliedPrice {
                book_version: charge.book_version,
                provider: charge.provider,
                model: charge.model,
                detail: charge.detail,
            },
        },
        None => Charge::Unpriced(charge.unpriced_reason),
    };
    let event = Event {
        other_units: map(&row.other_units)?,
        labels: map(&row.labels)?,
        price_conditions: map(&row.price_conditions)?,
        id: row.id,
        occurred_at_us: row.occurred_at,
        instance_id: row.instance_id,
        user_id: row.user_id,
        team_id: row.team_id,
        api_key_id: row.api_key_id,
        provider: row.provider,
        requested_model: row.requested_model,
        model: row.model,
        status,
        operation: row.operation,
        tokens: Tokens {
            input_uncached: row.input_uncached.into(),
            input_cache_read: row.input_cache_read.into(),
            input_cache_write: row.input_cache_write.into(),
            input_cache_write_1h: row.input_cache_write_1h.into(),
            output: row.output.into(),
            output_reasoning: row.output_reasoning.into(),
        },
        latency_us: row.latency_us,
        time_to_first_token_us: row.time_to_first_token_us,
        service_tier: row.service_tier,
        processing: row.processing,
        request_id: row.request_id,
        producer,
    };
    Ok(StoredRequest { event, recorded_at_us: row.recorded_at, charge })
}

/// A map as it was written: a JSON object, or nothing for an empty one.
fn map<T: serde::de::DeserializeOwned + Default>(text: &str) -> Result<T> {
    if text.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_str(text).map_err(Error::internal)
}
