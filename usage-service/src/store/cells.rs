//! Cells: the sums that the fold adds up. One SQL text for every total there is.
//!
//! Requests are grouped by what an answer tells apart: bucket, group keys, user
//! and model (for distinct counts), and whether they have a price. Money is summed
//! as whole dollars and nano-dollars apart, so that no sum leaves 64 bits.

mod slots;

use futures::TryStreamExt as _;
use sea_orm::sea_query::{Expr, Query};
use sea_orm::{DatabaseTransaction, DbErr, QueryResult, Statement, StreamTrait as _};
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
    /// Whether users and models are wanted: a ranking needs none.
    distinct: bool,
}

impl Store {
    /// The totals of a window cut at `edges`, one for each part.
    pub async fn totals(&self, scope: &Scope, edges: &[i64]) -> Result<Vec<Metrics>> {
        let mut fold = Fold::new(edges.len().saturating_sub(1), 0);
        let cut = Cut { scope, keys: &[], edges, distinct: true };
        self.add_cells(&self.snapshot().await?, &cut, &mut fold).await?;
        Ok(fold.totals())
    }

    /// The groups that rank highest, the others, and the total.
    pub async fn breakdown(&self, scope: &Scope, keys: &[Dimension], order_by: Metric, limit: usize) -> Result<Ranked> {
        let mut fold = Fold::new(1, keys.len());
        let cut = Cut { scope, keys, edges: &[], distinct: true };
        self.add_cells(&self.snapshot().await?, &cut, &mut fold).await?;
        Ok(fold.rank(order_by, limit))
    }

    /// The groups that rank highest over the whole window, and the others, in
    /// every bucket.
    ///
    /// Which groups those are is found first, in the same snapshot: to keep all
    /// groups in all buckets until the ranking is known could take any amount of
    /// memory. `fits` is asked, with the number of series, before the buckets are
    /// filled. Without keys there is one series, also where nothing happened.
    pub async fn series(
        &self,
        scope: &Scope,
        keys: &[Dimension],
        order_by: Metric,
        limit: usize,
        edges: &[i64],
        fits: impl Fn(usize) -> Result<()> + Send,
    ) -> Result<Ranked> {
        let buckets = edges.len().saturating_sub(1);
        if keys.is_empty() {
            let mut fold = Fold::new(buckets, 0);
            let cut = Cut { scope, keys, edges, distinct: true };
            self.add_cells(&self.snapshot().await?, &cut, &mut fold).await?;
            let mut ranked = fold.rank(order_by, 1);
            if ranked.rows.is_empty() {
                ranked.rows.push(Group { keys: Vec::new(), buckets: ranked.total.clone() });
            }
            return Ok(ranked);
        }
        let snapshot = self.snapshot().await?;
        let mut ranking = Fold::new(1, keys.len());
        let mut cut = Cut { scope, keys, edges: &[], distinct: false };
        self.add_cells(&snapshot, &cut, &mut ranking).await?;
        let ranking = ranking.rank(order_by, limit);
        fits(ranking.rows.len() + usize::from(ranking.other.is_some()))?;

        let chosen: Vec<Group> = ranking.rows;
        let mut fold = Fold::of_groups(buckets, &chosen);
        cut.edges = edges;
        cut.distinct = true;
        self.add_cells(&snapshot, &cut, &mut fold).await?;
        Ok(fold.rank(order_by, limit))
    }

    /// The values of each dimension with their counts: the most frequent `limit`,
    /// and how many there are in all.
    pub async fn facets(&self, scope: &Scope, limit: usize) -> Result<Vec<(Dimension, Vec<(String, u64)>, u64)>> {
        let mut select = Query::select();
        for dimension in Dimension::ALL {
            select.expr(column(dimension));
        }
        select.expr(integer("COUNT(*)")).from(request::Entity).cond_where(scope::condition(scope, self.backend()));
        group_by_first(&mut select, Dimension::ALL.len());

        let mut facets: [crate::fold::Counts; Dimension::ALL.len()] = Default::default();
        let mut rows = self.db.reader.stream_raw(self.backend().build(&select)).await?;
        while let Some(row) = rows.try_next().await? {
            let row = Row::new(&row);
            let count = row.unsigned(Dimension::ALL.len())?;
            for (index, dimension) in Dimension::ALL.into_iter().enumerate() {
                facets[index].add(row.key(index, dimension)?, count);
            }
        }
        Ok(Dimension::ALL
            .into_iter()
            .zip(facets)
            .map(|(dimension, counts)| {
                let (values, distinct) = counts.top(limit);
                (dimension, values, distinct)
            })
            .collect())
    }

    async fn add_cells(&self, snapshot: &DatabaseTransaction, cut: &Cut<'_>, fold: &mut Fold) -> Result<()> {
        let statement = self.statement(cut);
        let slotted = usize::from(cut.edges.len() > 2);
        let distinct_at = slotted + cut.keys.len();
        let sums_at = distinct_at + if cut.distinct { 2 } else { 0 };
        let mut rows = snapshot.stream_raw(statement).await?;
        while let Some(row) = rows.try_next().await? {
            let row = Row::new(&row);
            let mut keys = [""; 3];
            for (index, dimension) in cut.keys.iter().enumerate() {
                keys[index] = row.key(slotted + index, *dimension)?;
            }
            let (user, model) = match cut.distinct {
                true => (row.text(distinct_at)?, row.text(distinct_at + 1)?),
                false => ("", ""),
            };
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
        if cut.distinct {
            expr(column(Dimension::User), &mut select);
            expr(column(Dimension::Model), &mut select);
        }
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
