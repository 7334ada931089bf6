//! Single requests, a page at a time, by (`occurred_at`, `id`).

mod row;

use std::collections::HashMap;
use std::pin::pin;

use futures::TryStreamExt as _;
use sea_orm::sea_query::{Expr, ExprTrait as _, Query};
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryResult, Statement, StreamTrait};
use service_core::auth::Instances;
use service_core::error::Result;

use super::entity::request::Column;
use super::entity::{charge, producer, request};
use super::{Store, scope};
use crate::model::{AppliedPrice, Filter, Position, Producer, RequestRow, Scope, StoredRequest};

/// The order of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they happened.
    OldestFirst,
    /// The newest at the top.
    NewestFirst,
}

/// A page that takes more than this ends with the row that passes it.
const PAGE_BYTES: usize = 1 << 20;
/// What a row takes beside its maps, at most and about.
const ROW_BYTES: usize = 1_024;

/// Rows as the engine gave them, with what they refer to.
#[derive(Debug)]
pub(crate) struct Page {
    rows: Vec<QueryResult>,
    charges: HashMap<i64, Charged>,
    producers: HashMap<i64, Producer>,
    /// Where the next page begins; nothing behind the last.
    pub(crate) next: Option<Next>,
}

/// Where a page begins, and how many rows it is to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Next {
    pub(crate) after: Option<Position>,
    pub(crate) limit: usize,
}

/// The price that made a cost, and why there is none: one of them.
#[derive(Debug)]
struct Charged {
    price: AppliedPrice,
    unpriced_reason: String,
}

/// What rows refer to, sorted, each once.
#[derive(Debug, Default)]
struct References {
    charges: Vec<i64>,
    producers: Vec<i64>,
}

/// What the statement of a page has read.
#[derive(Default)]
struct Read {
    rows: Vec<QueryResult>,
    references: References,
    bytes: usize,
}

impl Read {
    /// Rows until they take so many bytes.
    async fn of(connection: &impl StreamTrait, statement: Statement, most_bytes: usize) -> Result<Self> {
        let mut read = Self::default();
        let mut rows = pin!(connection.stream_raw(statement).await?);
        while read.bytes < most_bytes
            && let Some(row) = rows.try_next().await?
        {
            read.bytes += ROW_BYTES + row::refer(&row, &mut read.references)?;
            read.rows.push(row);
        }
        Ok(read)
    }
}

/// Whether an index has the rows of a page one after the other: everybody's, or those of one user. Whatever else
/// narrows them is looked for in row after row, however rare it is.
fn is_indexed(scope: &Scope) -> bool {
    let Filter { instance_ids, user_ids, team_ids, api_key_ids, providers, models, statuses, labels } = &scope.filter;
    let lists = [instance_ids, team_ids, api_key_ids, providers, models];
    *scope.access.instances() == Instances::All
        && lists.iter().all(|list| list.is_empty())
        && statuses.is_empty()
        && labels.is_empty()
        && user_ids.len() <= 1
        && scope.watermark.is_none()
}

impl Page {
    /// The rows in their order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Result<RequestRow<'_>>> {
        self.rows.iter().map(|row| row::read(row, self))
    }
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
        let page = self.request_page(scope, order, Next { after, limit }, usize::MAX).await?;
        page.rows().map(|row| StoredRequest::try_from(&row?)).collect()
    }

    /// The requests of an export behind a position, in the order of time: as many as are wanted, or fewer that are
    /// large.
    pub(crate) async fn export_page(&self, scope: &Scope, next: Next) -> Result<Page> {
        self.request_page(scope, Order::OldestFirst, next, PAGE_BYTES).await
    }

    async fn request_page(&self, scope: &Scope, order: Order, next: Next, most_bytes: usize) -> Result<Page> {
        let Next { after, limit } = next;
        let statement = self.page(scope, order, after, limit);
        let Read { rows, references, bytes } = if is_indexed(scope) {
            Read::of(&self.db.reader, statement, most_bytes).await?
        } else {
            let turn = self.turns.requests(&scope.caller).await?;
            let snapshot = self.reading(Some(&turn)).await?;
            Read::of(&*snapshot, statement, most_bytes).await?
        };
        // Rows first: what the horizon lets through after them was there all the time.
        let from_us = match (order, after) {
            (Order::OldestFirst, Some(after)) => Ord::max(scope.start_us, after.occurred_at_us),
            _ => scope.start_us,
        };
        if from_us < scope.end_us {
            self.kept().await?.requests(from_us)?;
        }
        // These were stored with the rows, or before, and never change.
        let charges = self.charges(references.charges).await?;
        let producers = self.producers(references.producers).await?;
        let mut page = Page { rows, charges, producers, next: None };
        if let Some(last) = page.rows.last()
            && (page.rows.len() == limit || bytes >= most_bytes)
        {
            // As many as had room, so that the engine does not make rows that nobody takes.
            let limit = (most_bytes / (bytes / page.rows.len()).max(1)).clamp(1, MAX_ROWS);
            page.next = Some(Next { after: Some(row::position(last)?), limit });
        }
        Ok(page)
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
        row::select(&mut query, self.backend());
        query.from(request::Entity).cond_where(scope::condition(&window, self.backend())).limit(limit as u64);
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
    async fn charges(&self, wanted: Vec<i64>) -> Result<HashMap<i64, Charged>> {
        let mut charges = HashMap::with_capacity(wanted.len());
        for wanted in wanted.chunks(REFERENCES) {
            let chosen = charge::Entity::find().filter(charge::Column::Id.is_in(wanted.iter().copied()));
            for row in chosen.all(&self.db.reader).await? {
                let charge::Model { id, book_version, provider, model, detail, unpriced_reason } = row;
                let price = AppliedPrice { book_version, provider, model, detail };
                charges.insert(id, Charged { price, unpriced_reason });
            }
        }
        Ok(charges)
    }

    /// The same for producers, without the number.
    async fn producers(&self, wanted: Vec<i64>) -> Result<HashMap<i64, Producer>> {
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
/// Rows of a page of an export, at most.
const MAX_ROWS: usize = 4_000;
