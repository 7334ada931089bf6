//! Cells: the sums that the fold adds up. One SQL text for every total there is.
//!
//! Requests are grouped by what an answer tells apart: bucket, group keys, user
//! and model (for distinct counts), and whether they have a price. Money is summed
//! as whole dollars and nano-dollars apart, so that no sum leaves 64 bits.

mod slots;

use futures::TryStreamExt as _;
use sea_orm::sea_query::{Expr, Order, Query};
use sea_orm::{DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement, StreamTrait as _};
use service_core::error::{Error, Result};

use super::entity::request;
use super::{Store, scope};
use crate::fold::{Cell, Fold, Group, Metrics, Ranked, Totals};
use crate::model::{Dimension, Metric, Scope, Status, Tokens};

const NANOS: i128 = 1_000_000_000;

/// What to tell apart.
struct Cut<'a> {
    scope: &'a Scope,
    keys: &'a [Dimension],
    /// Edges of buckets; fewer than three are one bucket.
    edges: &'a [i64],
}

/// The groups that rank highest, best first.
struct Ranking {
    chosen: Vec<Vec<String>>,
    /// How many there are in all.
    groups: u64,
}

impl Store {
    /// The totals of a window cut at `edges`, one for each part.
    pub async fn totals(&self, scope: &Scope, edges: &[i64]) -> Result<Vec<Metrics>> {
        let _turn = self.turn().await?;
        let mut fold = Fold::new(edges.len().saturating_sub(1), 0);
        let cut = Cut { scope, keys: &[], edges };
        self.add_cells(&self.snapshot().await?, &cut, &mut fold).await?;
        Ok(fold.totals())
    }

    /// The groups that rank highest, the others, and the total.
    pub async fn breakdown(&self, scope: &Scope, keys: &[Dimension], order_by: Metric, limit: usize) -> Result<Ranked> {
        let _turn = self.turn().await?;
        let snapshot = self.snapshot().await?;
        let ranking = self.ranking(&snapshot, scope, keys, order_by, limit).await?;
        self.ranked(&snapshot, &Cut { scope, keys, edges: &[] }, ranking, order_by).await
    }

    /// The groups that rank highest over the whole window, and the others, in
    /// every bucket.
    ///
    /// `fits` is asked, with the number of series, before the buckets are filled.
    /// Without keys there is one series, also where nothing happened.
    pub async fn series(
        &self,
        scope: &Scope,
        keys: &[Dimension],
        order_by: Metric,
        limit: usize,
        edges: &[i64],
        fits: impl Fn(usize) -> Result<()> + Send,
    ) -> Result<Ranked> {
        let _turn = self.turn().await?;
        let buckets = edges.len().saturating_sub(1);
        if keys.is_empty() {
            let mut fold = Fold::new(buckets, 0);
            let cut = Cut { scope, keys, edges };
            self.add_cells(&self.snapshot().await?, &cut, &mut fold).await?;
            let mut ranked = fold.rank(order_by, 1);
            if ranked.rows.is_empty() {
                ranked.rows.push(Group { keys: Vec::new(), buckets: ranked.total.clone() });
            }
            return Ok(ranked);
        }
        let snapshot = self.snapshot().await?;
        let ranking = self.ranking(&snapshot, scope, keys, order_by, limit).await?;
        let chosen = ranking.chosen.len();
        fits(chosen + usize::from(ranking.groups > chosen as u64))?;
        self.ranked(&snapshot, &Cut { scope, keys, edges }, ranking, order_by).await
    }

    /// Which groups rank highest, and how many there are. The database sorts: it
    /// has files for that, and there may be as many groups as requests.
    async fn ranking(
        &self,
        snapshot: &DatabaseTransaction,
        scope: &Scope,
        keys: &[Dimension],
        order_by: Metric,
        limit: usize,
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
            let values = keys.iter().enumerate().map(|(index, dimension)| Ok(row.key(index, *dimension)?.to_owned()));
            ranking.chosen.push(values.collect::<Result<_>>()?);
            ranking.groups = row.unsigned(keys.len())?;
        }
        Ok(ranking)
    }

    /// The chosen groups, and all others as one: memory follows what is answered.
    async fn ranked(
        &self,
        snapshot: &DatabaseTransaction,
        cut: &Cut<'_>,
        ranking: Ranking,
        order_by: Metric,
    ) -> Result<Ranked> {
        let buckets = cut.edges.len().saturating_sub(1).max(1);
        let mut fold = Fold::of_groups(buckets, &ranking.chosen);
        self.add_cells(snapshot, cut, &mut fold).await?;
        Ok(Ranked { groups: ranking.groups, ..fold.rank(order_by, ranking.chosen.len()) })
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

    /// The values of each dimension with their counts: the most frequent `limit`,
    /// and how many there are in all.
    pub async fn facets(&self, scope: &Scope, limit: usize) -> Result<Vec<(Dimension, Vec<(String, u64)>, u64)>> {
        let _turn = self.turn().await?;
        let snapshot = self.snapshot().await?;
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

    async fn add_cells(&self, snapshot: &DatabaseTransaction, cut: &Cut<'_>, fold: &mut Fold) -> Result<()> {
        let statement = self.statement(cut);
        let slotted = usize::from(cut.edges.len() > 2);
        let distinct_at = slotted + cut.keys.len();
        let sums_at = distinct_at + 2;
        let mut rows = snapshot.stream_raw(statement).await?;
        while let Some(row) = rows.try_next().await? {
            let row = Row::new(&row);
            let mut keys = [""; 3];
            for (index, dimension) in cut.keys.iter().enumerate() {
                keys[index] = row.key(slotted + index, *dimension)?;
            }
            let (user, model) = (row.text(distinct_at)?, row.text(distinct_at + 1)?);
            let bucket = match slotted {
                0 => 0,
                _ => row.unsigned(0)? as usize,
            };
            fold.add(&Cell { bucket, keys: &keys[..cut.keys.len()], user, model, totals: row.totals(sums_at)? });
        }
        Ok(())
    }

    fn statement(&self, cut: &Cut<'_>) -> Statement {
        let mut select = Query::select();
        let mut columns = 0;
        let mut expr = |expr: Expr, select: &mut sea_orm::sea_query::SelectStatement| {
            select.expr(expr);
            columns += 1;
        };
        if cut.edges.len() > 2 {
            expr(integer(&slots::expression("occurred_at", cut.edges)), &mut select);
        }
        for dimension in cut.keys {
            expr(column(*dimension), &mut select);
        }
        expr(column(Dimension::User), &mut select);
        expr(column(Dimension::Model), &mut select);
        expr(integer("CASE WHEN cost_nanos IS NULL THEN 1 ELSE 0 END"), &mut select);
        let grouped = columns;
        for sum in [
            "COUNT(*)",
            "SUM(CASE WHEN status <> 1 THEN 1 ELSE 0 END)",
            "SUM(input_uncached)",
            "SUM(input_cache_read)",
            "SUM(input_cache_write)",
            "SUM(input_cache_write_1h)",
            "SUM(output)",
            "SUM(output_reasoning)",
            "COALESCE(SUM(cost_nanos / 1000000000), 0)",
            "COALESCE(SUM(cost_nanos % 1000000000), 0)",
        ] {
            select.expr(integer(sum));
        }
        select.from(request::Entity).cond_where(scope::condition(cut.scope, self.backend()));
        group_by_first(&mut select, grouped);
        self.backend().build(&select)
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
enum Row<'a> {
    Sqlite(&'a sqlx::sqlite::SqliteRow),
    Postgres(&'a sqlx::postgres::PgRow),
    Other,
}

impl<'a> Row<'a> {
    fn new(row: &'a QueryResult) -> Self {
        if let Some(row) = row.try_as_sqlite_row() {
            Self::Sqlite(row)
        } else if let Some(row) = row.try_as_pg_row() {
            Self::Postgres(row)
        } else {
            Self::Other
        }
    }

    fn text(&self, index: usize) -> Result<&'a str> {
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

    fn totals(&self, from: usize) -> Result<Totals> {
        let unpriced = self.integer(from)? == 1;
        let requests = self.unsigned(from + 1)?;
        let tokens = Tokens {
            input_uncached: self.integer(from + 3)?,
            input_cache_read: self.integer(from + 4)?,
            input_cache_write: self.integer(from + 5)?,
            input_cache_write_1h: self.integer(from + 6)?,
            output: self.integer(from + 7)?,
            output_reasoning: self.integer(from + 8)?,
        };
        let (dollars, nanos) = (self.integer(from + 9)?, self.integer(from + 10)?);
        Ok(Totals {
            requests,
            failed_requests: self.unsigned(from + 2)?,
            tokens,
            cost_nanos: i128::from(dollars) * NANOS + i128::from(nanos),
            unpriced_requests: if unpriced { requests } else { 0 },
            unpriced_tokens: if unpriced { tokens.total() } else { 0 },
        })
    }
}

fn no_engine() -> Error {
    Error::from(DbErr::Custom("a row of another engine".to_owned()))
}
