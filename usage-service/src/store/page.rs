//! Single requests, a page at a time, by (`occurred_at`, `id`).

use std::collections::HashMap;

use futures::TryStreamExt as _;
use sea_orm::sea_query::{Expr, ExprTrait as _, Query};
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, Statement, StreamTrait as _};
use service_core::error::{Error, Result};
use uuid::Uuid;

use super::cells::Row;
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

/// What is read of a request, in the order in which [`stored`] takes it.
const COLUMNS: [Column; 30] = [
    Column::Id,
    Column::OccurredAt,
    Column::RecordedAt,
    Column::InstanceId,
    Column::UserId,
    Column::TeamId,
    Column::ApiKeyId,
    Column::Provider,
    Column::RequestedModel,
    Column::Model,
    Column::Status,
    Column::Operation,
    Column::InputUncached,
    Column::InputCacheRead,
    Column::InputCacheWrite,
    Column::InputCacheWrite1h,
    Column::Output,
    Column::OutputReasoning,
    Column::OtherUnits,
    Column::LatencyUs,
    Column::TimeToFirstTokenUs,
    Column::ServiceTier,
    Column::Processing,
    Column::RequestId,
    Column::Labels,
    Column::PriceConditions,
    Column::CostNanos,
    Column::ChargeRef,
    Column::ProducerRef,
    Column::ProducerSequence,
];

/// What a request refers to beside what it holds.
#[derive(Debug, Clone, Copy)]
struct References {
    cost_nanos: Option<i64>,
    charge: i64,
    producer: Option<(i64, i64)>,
}

impl Store {
    /// Up to `limit` requests behind a position.
    pub async fn requests(
        &self,
        scope: &Scope,
        order: Order,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<StoredRequest>> {
        let statement = self.page(scope, order, after, limit);
        let mut found: Vec<(Event, i64, References)> = Vec::new();
        {
            let mut rows = self.db.reader.stream_raw(statement).await?;
            while let Some(row) = rows.try_next().await? {
                found.push(read(&Row::new(&row))?);
            }
        }
        // Rows first: what the horizon lets through after them was there all the time.
        let from_us = match (order, after) {
            (Order::OldestFirst, Some(after)) => Ord::max(scope.start_us, after.occurred_at_us),
            _ => scope.start_us,
        };
        if from_us < scope.end_us {
            self.kept().await?.requests(from_us)?;
        }
        // These were stored with the rows, or before, and never change.
        let charges = self.charges(&found).await?;
        let producers = self.producers(&found).await?;
        found.into_iter().map(|found| stored(found, &charges, &producers)).collect()
    }

    pub(super) fn page(&self, scope: &Scope, order: Order, after: Option<Position>, limit: usize) -> Statement {
        let mut window = scope.clone();
        if let Some(Position { occurred_at_us, .. }) = after {
            // What the position leaves, ties included: where an engine starts in the
            // index, and which partitions it needs.
            match order {
                Order::OldestFirst => window.start_us = Ord::max(window.start_us, occurred_at_us),
                Order::NewestFirst => window.end_us = Ord::min(window.end_us, occurred_at_us.saturating_add(1)),
            }
        }
        let mut query = Query::select();
        query
            .columns(COLUMNS)
            .from(request::Entity)
            .cond_where(scope::condition(&window, self.backend()))
            .limit(limit as u64);
        if let Some(after) = after {
            let key = Expr::tuple([Expr::col(Column::OccurredAt), Expr::col(Column::Id)]);
            let position = Expr::tuple([Expr::value(after.occurred_at_us), Expr::value(after.id)]);
            query.and_where(match order {
                Order::OldestFirst => key.gt(position),
                Order::NewestFirst => key.lt(position),
            });
        }
        let direction = match order {
            Order::OldestFirst => sea_orm::Order::Asc,
            Order::NewestFirst => sea_orm::Order::Desc,
        };
        query.order_by(Column::OccurredAt, direction.clone()).order_by(Column::Id, direction);
        self.backend().build(&query)
    }

    /// The charges that rows refer to: a page has few.
    async fn charges(&self, found: &[(Event, i64, References)]) -> Result<HashMap<i64, charge::Model>> {
        let wanted = distinct(found.iter().map(|(_, _, references)| references.charge));
        let mut charges = HashMap::with_capacity(wanted.len());
        for wanted in wanted.chunks(REFERENCES) {
            let chosen = charge::Entity::find().filter(charge::Column::Id.is_in(wanted.iter().copied()));
            for charge in chosen.all(&self.db.reader).await? {
                charges.insert(charge.id, charge);
            }
        }
        Ok(charges)
    }

    /// The same for producers, without the number.
    async fn producers(&self, found: &[(Event, i64, References)]) -> Result<HashMap<i64, Producer>> {
        let wanted = distinct(found.iter().filter_map(|(_, _, references)| Some(references.producer?.0)));
        let mut producers = HashMap::with_capacity(wanted.len());
        for wanted in wanted.chunks(REFERENCES) {
            let chosen = producer::Entity::find().filter(producer::Column::Id.is_in(wanted.iter().copied()));
            for row in chosen.all(&self.db.reader).await? {
                producers.insert(row.id, Producer { id: row.producer_id, epoch: row.epoch, sequence: 0 });
            }
        }
        Ok(producers)
    }
}

/// References that one statement looks up.
const REFERENCES: usize = 1_000;

fn distinct(references: impl Iterator<Item = i64>) -> Vec<i64> {
    let mut references: Vec<i64> = references.collect();
    references.sort_unstable();
    references.dedup();
    references
}

/// A row of [`COLUMNS`]: the event, when it was recorded, and what it refers to. By place: looking each column up by its
/// name would take longer than all else.
fn read(row: &Row<'_>) -> Result<(Event, i64, References)> {
    let id: Uuid = row.get(0)?;
    let defect = |what: &str| Error::internal(anyhow::anyhow!("request {id}: {what}"));
    let text = |index: usize| row.text(index).map(str::to_owned);
    let tokens = |index: usize| Ok::<_, Error>(i64::from(row.get::<i32>(index)?));
    let event = Event {
        id,
        occurred_at_us: row.get(1)?,
        instance_id: text(3)?,
        user_id: text(4)?,
        team_id: text(5)?,
        api_key_id: text(6)?,
        provider: text(7)?,
        requested_model: text(8)?,
        model: text(9)?,
        status: Status::from_number(i64::from(row.get::<i16>(10)?)).ok_or_else(|| defect("unknown status"))?,
        operation: text(11)?,
        tokens: Tokens {
            input_uncached: tokens(12)?,
            input_cache_read: tokens(13)?,
            input_cache_write: tokens(14)?,
            input_cache_write_1h: tokens(15)?,
            output: tokens(16)?,
            output_reasoning: tokens(17)?,
        },
        other_units: map(row.text(18)?)?,
        latency_us: row.get(19)?,
        time_to_first_token_us: row.get(20)?,
        service_tier: text(21)?,
        processing: text(22)?,
        request_id: text(23)?,
        labels: map(row.text(24)?)?,
        price_conditions: map(row.text(25)?)?,
        producer: None,
    };
    let producer = match (row.get::<Option<i64>>(28)?, row.get::<Option<i64>>(29)?) {
        (None, _) => None,
        (Some(producer), Some(sequence)) => Some((producer, sequence)),
        (Some(_), None) => return Err(defect("its producer's number is missing")),
    };
    let references = References { cost_nanos: row.get(26)?, charge: row.get(27)?, producer };
    Ok((event, row.get(2)?, references))
}

fn stored(
    (mut event, recorded_at_us, references): (Event, i64, References),
    charges: &HashMap<i64, charge::Model>,
    producers: &HashMap<i64, Producer>,
) -> Result<StoredRequest> {
    let defect = |what: &str| Error::internal(anyhow::anyhow!("request {}: {what}", event.id));
    let charge = charges.get(&references.charge).ok_or_else(|| defect("its charge is missing"))?;
    let charge = match references.cost_nanos {
        Some(cost_nanos) => Charge::Priced {
            cost_nanos,
            price: AppliedPrice {
                book_version: charge.book_version.clone(),
                provider: charge.provider.clone(),
                model: charge.model.clone(),
                detail: charge.detail.clone(),
            },
        },
        None => Charge::Unpriced(charge.unpriced_reason.clone()),
    };
    if let Some((producer, sequence)) = references.producer {
        let producer = producers.get(&producer).ok_or_else(|| defect("its producer is missing"))?;
        event.producer = Some(Producer { sequence, ..producer.clone() });
    }
    Ok(StoredRequest { event, recorded_at_us, charge })
}

/// A map as it was written: a JSON object, or nothing for an empty one.
fn map<T: serde::de::DeserializeOwned + Default>(text: &str) -> Result<T> {
    if text.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_str(text).map_err(Error::internal)
}
