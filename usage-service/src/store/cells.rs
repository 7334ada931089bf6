//! Cells: what raw rows add to an answer. One SQL text for every total there is.
//!
//! Requests are grouped by what an answer tells apart: bucket, the dimensions it
//! needs, user and model (for distinct counts), and whether they have a price.
//! Money is summed as whole dollars and nano-dollars apart, so that no sum leaves
//! 64 bits.

mod slots;

use futures::TryStreamExt as _;
use sea_orm::sea_query::{Expr, Order, Query};
use sea_orm::{DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement, StreamTrait as _};
use service_core::error::{Error, Result};

use super::entity::request;
use super::rollup::OneRequest;
use super::totals::Facet;
use super::{Store, scope};
use crate::model::{Dimension, Metric, Scope, Status};
use crate::rollup::{FullRow, Measures, Overlay, Ranking, measure, place};

const NANOS: i128 = 1_000_000_000;

/// What distinct counts need, whatever is asked.
const DISTINCT: [Dimension; 2] = [Dimension::User, Dimension::Model];

/// The sums of the statement, in the order of its columns.
const SUMS: [usize; 8] = [
    measure::REQUESTS,
    measure::FAILED_REQUESTS,
    measure::INPUT_UNCACHED,
    measure::INPUT_CACHE_READ,
    measure::INPUT_CACHE_WRITE,
    measure::INPUT_CACHE_WRITE_1H,
    measure::OUTPUT,
    measure::OUTPUT_REASONING,
];

/// Whether a request has no price.
const UNPRICED: &str = "CASE WHEN cost_nanos IS NULL THEN 1 ELSE 0 END";

/// What is summed up of a request: as in [`SUMS`], then the cost in dollars and what is left in nano-dollars.
const SUMMED: [&str; 10] = [
    "1",
    "CASE WHEN status <> 1 THEN 1 ELSE 0 END",
    "input_uncached",
    "input_cache_read",
    "input_cache_write",
    "input_cache_write_1h",
    "output",
    "output_reasoning",
    "COALESCE(cost_nanos / 1000000000, 0)",
    "COALESCE(cost_nanos % 1000000000, 0)",
];

/// What to tell apart.
pub(super) struct Cut<'a> {
    pub(super) scope: &'a Scope,
    pub(super) dimensions: &'a [Dimension],
    /// Edges of buckets; fewer than three are one bucket.
    pub(super) edges: &'a [i64],
}

/// Requests that agree in everything an answer tells apart. What it doesn't is 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub(super) bucket: usize,
    pub(super) instance: u32,
    pub(super) row: FullRow,
}

impl Store {
    /// Which groups rank highest among raw rows, and how many there are. The
    /// database sorts: it has files for that, and there may be as many groups as
    /// requests.
    pub(super) async fn rank_cells(
        &self,
        snapshot: &DatabaseTransaction,
        scope: &Scope,
        keys: &[Dimension],
        order_by: Metric,
        limit: usize,
        overlay: &mut Overlay,
    ) -> Result<Ranking> {
        let mut select = Query::select();
        for dimension in keys {
            select.expr(column(*dimension));
        }
        select
            .expr(integer("COUNT(*) OVER ()"))
            .from(request::Entity)
            .cond_where(scope::condition(scope, self.backend()));
        group_by_first(&mut select, keys.len());
        for part in metric(order_by) {
            select.order_by_expr(Expr::cust(*part), Order::Desc);
        }
        for dimension in keys {
            select.order_by_expr(self.text_order(*dimension), Order::Asc);
        }
        select.limit(limit as u64);

        let mut ranking = Ranking { chosen: Vec::new(), groups: 0 };
        let mut rows = snapshot.stream_raw(self.backend().build(&select)).await?;
        while let Some(row) = rows.try_next().await? {
            let row = Row::new(&row);
            let mut group = [0; 3];
            for (index, dimension) in keys.iter().enumerate() {
                group[index] = overlay.intern(*dimension, row.key(index, *dimension)?);
            }
            ranking.chosen.push(group);
            ranking.groups = row.unsigned(keys.len())?;
        }
        Ok(ranking)
    }

    /// A dimension's values in the order of their bytes, whatever the database's
    /// locale; a status by its name.
    fn text_order(&self, dimension: Dimension) -> Expr {
        match (dimension, self.backend()) {
            (Dimension::Status, _) => {
                let names = Status::ALL.map(|status| format!("WHEN {} THEN '{}'", status.number(), status.name()));
                Expr::cust(format!("CASE CAST(status AS BIGINT) {} END", names.join(" ")))
            }
            (_, DbBackend::Postgres) => Expr::cust(format!("{} COLLATE \"C\"", dimension.name())),
            _ => column(dimension),
        }
    }

    /// The values of each dimension with their counts among raw rows.
    pub(super) async fn facets_of_cells(
        &self,
        snapshot: &DatabaseTransaction,
        scope: &Scope,
        limit: usize,
    ) -> Result<Vec<Facet>> {
        let mut facets = Vec::with_capacity(Dimension::ALL.len());
        // One by one: all sets of values that come together may be any number.
        for dimension in Dimension::ALL {
            let mut select = Query::select();
            select
                .expr(column(dimension))
                .expr(integer("COUNT(*)"))
                .expr(integer("COUNT(*) OVER ()"))
                .from(request::Entity)
                .cond_where(scope::condition(scope, self.backend()))
                .order_by_expr(Expr::cust("COUNT(*)"), Order::Desc)
                .order_by_expr(self.text_order(dimension), Order::Asc)
                .limit(limit as u64);
            group_by_first(&mut select, 1);
            let mut values = Vec::new();
            let mut distinct = 0;
            let mut rows = snapshot.stream_raw(self.backend().build(&select)).await?;
            while let Some(row) = rows.try_next().await? {
                let row = Row::new(&row);
                values.push((row.key(0, dimension)?.to_owned(), row.unsigned(1)?));
                distinct = row.unsigned(2)?;
            }
            facets.push((dimension, values, distinct));
        }
        Ok(facets)
    }

    /// Hands the cells of raw rows to `sink`.
    pub(super) async fn cells(
        &self,
        snapshot: &DatabaseTransaction,
        cut: &Cut<'_>,
        overlay: &mut Overlay,
        mut sink: impl FnMut(Cell) + Send,
    ) -> Result<()> {
        let statement = self.cells_statement(cut);
        let slotted = usize::from(cut.edges.len() > 2);
        let distinct_at = slotted + cut.dimensions.len();
        let mut rows = snapshot.stream_raw(statement).await?;
        while let Some(row) = rows.try_next().await? {
            let row = Row::new(&row);
            let bucket = match slotted {
                0 => 0,
                _ => row.unsigned(0)? as usize,
            };
            let mut cell = Cell { bucket, instance: 0, row: FullRow { keys: [0; _], measures: [0; _] } };
            for (index, dimension) in cut.dimensions.iter().enumerate() {
                cell.set(*dimension, overlay.intern(*dimension, row.key(slotted + index, *dimension)?));
            }
            for (index, dimension) in DISTINCT.into_iter().enumerate() {
                cell.set(dimension, overlay.intern(dimension, row.text(distinct_at + index)?));
            }
            let mut cost_nanos = row.measures(distinct_at + DISTINCT.len(), &mut cell.row.measures)?;
            // A sum beyond 64 bits goes out in parts: sums of sums are wider.
            while i64::try_from(cost_nanos).is_err() {
                let mut part = Cell { row: FullRow { measures: [0; _], ..cell.row }, ..cell };
                part.row.measures[measure::COST_NANOS] = i64::MAX;
                cost_nanos -= i128::from(i64::MAX);
                sink(part);
            }
            // It fits: the loop has ended.
            cell.row.measures[measure::COST_NANOS] = cost_nanos as i64;
            sink(cell);
        }
        Ok(())
    }

    /// The requests of a window one by one, in the order of time, of all dimensions; none if there are more than `most`.
    pub(super) async fn single_requests(
        &self,
        snapshot: &DatabaseTransaction,
        scope: &Scope,
        most: usize,
        overlay: &mut Overlay,
    ) -> Result<Option<Vec<OneRequest>>> {
        let mut select = Query::select();
        select.expr(integer("occurred_at"));
        for dimension in Dimension::ALL {
            select.expr(column(dimension));
        }
        select.expr(integer(UNPRICED));
        for value in SUMMED {
            select.expr(integer(value));
        }
        select
            .from(request::Entity)
            .cond_where(scope::condition(scope, self.backend()))
            .order_by_expr(Expr::cust("occurred_at"), Order::Asc)
            .limit(most as u64 + 1);
        let mut requests = Vec::new();
        let mut rows = snapshot.stream_raw(self.backend().build(&select)).await?;
        while let Some(row) = rows.try_next().await? {
            if requests.len() == most {
                return Ok(None);
            }
            let row = Row::new(&row);
            let mut cell = Cell { bucket: 0, instance: 0, row: FullRow { keys: [0; _], measures: [0; _] } };
            for (index, dimension) in (1..).zip(Dimension::ALL) {
                cell.set(dimension, overlay.intern(dimension, row.key(index, dimension)?));
            }
            let cost_nanos = row.measures(1 + Dimension::ALL.len(), &mut cell.row.measures)?;
            // The cost of one request is stored in 64 bits.
            cell.row.measures[measure::COST_NANOS] = cost_nanos as i64;
            requests.push(OneRequest { at_us: row.integer(0)?, instance: cell.instance, row: cell.row });
        }
        requests.shrink_to_fit();
        Ok(Some(requests))
    }

    fn cells_statement(&self, cut: &Cut<'_>) -> Statement {
        let mut select = Query::select();
        let mut columns = 0;
        let mut expr = |expr: Expr, select: &mut sea_orm::sea_query::SelectStatement| {
            select.expr(expr);
            columns += 1;
        };
        if cut.edges.len() > 2 {
            expr(integer(&slots::expression("occurred_at", cut.edges)), &mut select);
        }
        for dimension in cut.dimensions.iter().copied().chain(DISTINCT) {
            expr(column(dimension), &mut select);
        }
        expr(integer(UNPRICED), &mut select);
        let grouped = columns;
        for value in SUMMED {
            select.expr(integer(&format!("SUM({value})")));
        }
        select.from(request::Entity).cond_where(scope::condition(cut.scope, self.backend()));
        group_by_first(&mut select, grouped);
        self.backend().build(&select)
    }
}

impl Cell {
    fn set(&mut self, dimension: Dimension, id: u32) {
        match place(dimension) {
            Some(place) => self.row.keys[place] = id,
            None => self.instance = id,
        }
    }
}

/// What a ranking compares, part by part. Dollars and nano-dollars are summed
/// apart, and carried over.
fn metric(metric: Metric) -> &'static [&'static str] {
    match metric {
        Metric::Requests => &["COUNT(*)"],
        Metric::Tokens => &["SUM(input_uncached) + SUM(input_cache_read) + SUM(input_cache_write) + SUM(output)"],
        Metric::Cost => &[
            "CAST(COALESCE(SUM(cost_nanos / 1000000000), 0) AS BIGINT) \
             + CAST(COALESCE(SUM(cost_nanos % 1000000000), 0) AS BIGINT) / 1000000000",
            "CAST(COALESCE(SUM(cost_nanos % 1000000000), 0) AS BIGINT) % 1000000000",
        ],
    }
}

/// The same type for every number, on both engines.
fn integer(sql: &str) -> Expr {
    Expr::cust(format!("CAST({sql} AS BIGINT)"))
}

fn column(dimension: Dimension) -> Expr {
    match dimension {
        Dimension::Status => integer("status"),
        _ => Expr::cust(dimension.name()),
    }
}

fn group_by_first(select: &mut sea_orm::sea_query::SelectStatement, columns: usize) {
    select.add_group_by((1..=columns).map(|column| Expr::cust(column.to_string())));
}

/// A row of either engine. Texts are borrowed: there may be a million rows.
pub(super) enum Row<'a> {
    Sqlite(&'a sqlx::sqlite::SqliteRow),
    Postgres(&'a sqlx::postgres::PgRow),
    Other,
}

impl<'a> Row<'a> {
    pub(super) fn new(row: &'a QueryResult) -> Self {
        if let Some(row) = row.try_as_sqlite_row() {
            Self::Sqlite(row)
        } else if let Some(row) = row.try_as_pg_row() {
            Self::Postgres(row)
        } else {
            Self::Other
        }
    }

    pub(super) fn text(&self, index: usize) -> Result<&'a str> {
        use sqlx::Row as _;
        Ok(match self {
            Self::Sqlite(row) => row.try_get(index)?,
            Self::Postgres(row) => row.try_get(index)?,
            Self::Other => return Err(no_engine()),
        })
    }

    fn integer(&self, index: usize) -> Result<i64> {
        use sqlx::Row as _;
        Ok(match self {
            Self::Sqlite(row) => row.try_get(index)?,
            Self::Postgres(row) => row.try_get(index)?,
            Self::Other => return Err(no_engine()),
        })
    }

    /// A count: never negative.
    fn unsigned(&self, index: usize) -> Result<u64> {
        Ok(self.integer(index)?.unsigned_abs())
    }

    fn key(&self, index: usize, dimension: Dimension) -> Result<&'a str> {
        if dimension != Dimension::Status {
            return self.text(index);
        }
        let number = self.integer(index)?;
        Status::from_number(number)
            .map(Status::name)
            .ok_or_else(|| Error::internal(anyhow::anyhow!("status {number} is stored")))
    }

    /// The sums from this column on, but for the cost, which is given back.
    fn measures(&self, from: usize, into: &mut Measures) -> Result<i128> {
        let unpriced = self.integer(from)? == 1;
        for (index, sum) in SUMS.into_iter().enumerate() {
            into[sum] = self.integer(from + 1 + index)?;
        }
        if unpriced {
            into[measure::UNPRICED_REQUESTS] = into[measure::REQUESTS];
            // The kinds of input, and the output.
            into[measure::UNPRICED_TOKENS] =
                [measure::INPUT_UNCACHED, measure::INPUT_CACHE_READ, measure::INPUT_CACHE_WRITE, measure::OUTPUT]
                    .into_iter()
                    .map(|kind| into[kind])
                    .sum();
        }
        let at = from + 1 + SUMS.len();
        Ok(i128::from(self.integer(at)?) * NANOS + i128::from(self.integer(at + 1)?))
    }
}

fn no_engine() -> Error {
    Error::from(DbErr::Custom("a row of another engine".to_owned()))
}
