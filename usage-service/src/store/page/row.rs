//! A row of a page, from either engine, with as little work as it takes: an export reads a million.
//!
//! PostgreSQL sends columns as they are, and they are read where they lie. SQLite's driver makes a copy of every value
//! on its way from SQLite's own thread, so there all but the id come as one text, with zero bytes between them, which no
//! text of ours has.

use sea_orm::sea_query::{Expr, SelectStatement};
use sea_orm::{DbBackend, IdenStatic as _, QueryResult};
use service_core::error::{Error, Result};
use sqlx::postgres::PgRow;
use sqlx::{Row as _, ValueRef as _};
use uuid::Uuid;

use super::{Page, References};
use crate::model::{Position, RequestRow, Status, Tokens};
use crate::store::entity::request::Column;

/// What is read of a request beside its id, in the order in which [`read`] takes it: first what rows refer to, and how
/// they are ordered.
const COLUMNS: [Column; 30] = [
    Column::OccurredAt,
    Column::ChargeRef,
    Column::ProducerRef,
    Column::ProducerSequence,
    Column::RecordedAt,
    Column::RecordedBy,
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
    Column::LatencyUs,
    Column::TimeToFirstTokenUs,
    Column::ServiceTier,
    Column::Processing,
    Column::RequestId,
    Column::CostNanos,
    Column::OtherUnits,
    Column::Labels,
    Column::PriceConditions,
];
/// The last of them may be large.
const MAPS: usize = 3;

/// What of [`COLUMNS`] may be null.
const NULLABLE: [Column; 5] =
    [Column::ProducerRef, Column::ProducerSequence, Column::LatencyUs, Column::TimeToFirstTokenUs, Column::CostNanos];

/// Selects what the other functions read.
pub(super) fn select(query: &mut SelectStatement, backend: DbBackend) {
    query.column(Column::Id);
    if backend != DbBackend::Sqlite {
        query.columns(COLUMNS);
        return;
    }
    let columns = COLUMNS.map(|column| match NULLABLE.iter().any(|other| other.as_str() == column.as_str()) {
        true => format!("COALESCE({}, '')", column.as_str()),
        false => column.as_str().to_owned(),
    });
    query.expr(Expr::cust(format!("concat_ws(char(0), {})", columns.join(", "))));
}

/// The columns of a row one after the other.
enum Fields<'a> {
    Packed(std::str::Split<'a, char>),
    Columns(&'a PgRow, usize),
}

impl<'a> Fields<'a> {
    fn of(row: &'a QueryResult) -> Result<(Uuid, Self)> {
        if let Some(row) = row.try_as_sqlite_row() {
            let packed: &str = row.try_get(1)?;
            Ok((row.try_get(0)?, Self::Packed(packed.split('\0'))))
        } else if let Some(row) = row.try_as_pg_row() {
            Ok((row.try_get(0)?, Self::Columns(row, 1)))
        } else {
            Err(damaged("another engine's"))
        }
    }

    fn text(&mut self) -> Result<&'a str> {
        match self {
            Self::Packed(fields) => fields.next().ok_or_else(|| damaged("fewer columns than asked for")),
            Self::Columns(row, at) => {
                let value = row.try_get_raw(*at)?;
                *at += 1;
                value.as_str().map_err(|error| Error::from(sqlx::Error::Decode(error)))
            }
        }
    }

    /// A number of any width, if there is one.
    fn optional(&mut self) -> Result<Option<i64>> {
        match self {
            Self::Packed(_) => match self.text()? {
                "" => Ok(None),
                digits => digits.parse().map(Some).map_err(|_| damaged("text where a number belongs")),
            },
            Self::Columns(row, at) => {
                let value = row.try_get_raw(*at)?;
                *at += 1;
                if value.is_null() {
                    return Ok(None);
                }
                let bytes = value.as_bytes().map_err(|error| Error::from(sqlx::Error::Decode(error)))?;
                if let Ok(bytes) = bytes.try_into() {
                    Ok(Some(i64::from_be_bytes(bytes)))
                } else if let Ok(bytes) = bytes.try_into() {
                    Ok(Some(i32::from_be_bytes(bytes).into()))
                } else if let Ok(bytes) = bytes.try_into() {
                    Ok(Some(i16::from_be_bytes(bytes).into()))
                } else {
                    Err(damaged("a number of unknown width"))
                }
            }
        }
    }

    fn number(&mut self) -> Result<i64> {
        self.optional()?.ok_or_else(|| damaged("no number where one belongs"))
    }
}

fn damaged(what: &str) -> Error {
    Error::internal(anyhow::anyhow!("a row of usage_requests: {what}"))
}

/// Notes what a row refers to; bytes of its maps.
pub(super) fn refer(row: &QueryResult, references: &mut References) -> Result<usize> {
    let (_, mut fields) = Fields::of(row)?;
    let _occurred_at = fields.number()?;
    note(&mut references.charges, fields.number()?);
    if let Some(producer) = fields.optional()? {
        note(&mut references.producers, producer);
    }
    Ok(match fields {
        Fields::Packed(_) => row.try_as_sqlite_row().map_or(Ok(""), |row| row.try_get(1))?.len(),
        Fields::Columns(row, _) => {
            let mut maps = Fields::Columns(row, 1 + COLUMNS.len() - MAPS);
            maps.text()?.len() + maps.text()?.len() + maps.text()?.len()
        }
    })
}

fn note(sorted: &mut Vec<i64>, reference: i64) {
    if let Err(place) = sorted.binary_search(&reference) {
        sorted.insert(place, reference);
    }
}

/// Where a row stands in the order.
pub(super) fn position(row: &QueryResult) -> Result<Position> {
    let (id, mut fields) = Fields::of(row)?;
    Ok(Position { occurred_at_us: fields.number()?, id })
}

/// A row with what it refers to.
pub(super) fn read<'a>(row: &'a QueryResult, page: &'a Page) -> Result<RequestRow<'a>> {
    let (id, mut fields) = Fields::of(row)?;
    let fields = &mut fields;
    let defect = |what: &str| Error::internal(anyhow::anyhow!("request {id}: {what}"));
    let occurred_at_us = fields.number()?;
    let charge = page.charges.get(&fields.number()?).ok_or_else(|| defect("its charge is missing"))?;
    let producer = match (fields.optional()?, fields.optional()?) {
        (None, _) => None,
        (Some(producer), Some(sequence)) => {
            let producer = page.producers.get(&producer).ok_or_else(|| defect("its producer is missing"))?;
            Some((producer, sequence))
        }
        (Some(_), None) => return Err(defect("its producer's number is missing")),
    };
    // In the order of the columns: fields of a struct are made in the order in which they stand here.
    Ok(RequestRow {
        id,
        occurred_at_us,
        producer,
        recorded_at_us: fields.number()?,
        recorded_by: fields.text()?,
        instance_id: fields.text()?,
        user_id: fields.text()?,
        team_id: fields.text()?,
        api_key_id: fields.text()?,
        provider: fields.text()?,
        requested_model: fields.text()?,
        model: fields.text()?,
        status: Status::from_number(fields.number()?).ok_or_else(|| defect("unknown status"))?,
        operation: fields.text()?,
        tokens: Tokens {
            input_uncached: fields.number()?,
            input_cache_read: fields.number()?,
            input_cache_write: fields.number()?,
            input_cache_write_1h: fields.number()?,
            output: fields.number()?,
            output_reasoning: fields.number()?,
        },
        latency_us: fields.optional()?,
        time_to_first_token_us: fields.optional()?,
        service_tier: fields.text()?,
        processing: fields.text()?,
        request_id: fields.text()?,
        charge: match fields.optional()? {
            Some(cost_nanos) => Ok((cost_nanos, &charge.price)),
            None => Err(charge.unpriced_reason.as_str()),
        },
        other_units: fields.text()?,
        labels: fields.text()?,
        price_conditions: fields.text()?,
    })
}
