//! Writing on SQLite: rows as `VALUES`, in a few sizes of statement, so that each
//! is prepared once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::OnceLock;

use serde_json::json;
use service_core::error::{Error, Result};
use service_core::numbers::Numbers;
use sqlx::sqlite::{SqliteArguments, SqlitePool};
use sqlx::{Arguments as _, AssertSqlSafe, Row as _, Sqlite, Transaction};
use uuid::Uuid;

use super::columns::{COLUMNS, count, map};
use super::{Known, NumberBlock, References, Row, Stamp, charge_texts};

/// Rows in one statement. The largest stays below the 32,766 parameters that
/// SQLite allows.
const SIZES: [usize; 4] = [512, 64, 8, 1];

/// Takes the write lock and the next commit number, and reads the horizon of retention.
pub(super) async fn begin(pool: &SqlitePool) -> Result<(Transaction<'static, Sqlite>, i64, i64)> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let number = sqlx::query_scalar("UPDATE usage_commits SET last = last + 1 RETURNING last")
        .fetch_one(&mut *transaction)
        .await?;
    let kept_from_us =
        sqlx::query_scalar("SELECT requests_before FROM usage_retention").fetch_one(&mut *transaction).await?;
    Ok((transaction, number, kept_from_us))
}

/// Rows that are referred to: few, and mostly there. One statement a table,
/// whatever their number.
pub(super) async fn references(
    transaction: &mut Transaction<'static, Sqlite>,
    references: &References<'_>,
    stamp: Stamp,
) -> Result<()> {
    let charges = references.charges.iter().map(|(id, charge)| {
        let [book_version, provider, model, detail, reason] = charge_texts(charge);
        json!([id, book_version, provider, model, detail, reason])
    });
    let producers = references.producers.iter().map(|(id, (producer_id, epoch))| json!([id, producer_id, epoch]));
    let dropped =
        references.dropped.iter().map(|(producer, first, last)| json!([producer, first, last, stamp.recorded_at_us]));
    upsert(transaction, "usage_charges", 6, charges.collect()).await?;
    upsert(transaction, "usage_producers", 3, producers.collect()).await?;
    upsert(transaction, "usage_dropped", 4, dropped.collect()).await
}

async fn upsert(
    transaction: &mut Transaction<'static, Sqlite>,
    table: &'static str,
    columns: usize,
    rows: Vec<serde_json::Value>,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let columns: Vec<String> = (0..columns).map(|column| format!("value ->> {column}")).collect();
    // Without WHERE, ON would be read as a part of the join.
    let sql = format!(
        "INSERT INTO {table} SELECT {} FROM json_each(?) WHERE TRUE ON CONFLICT DO NOTHING",
        columns.join(", ")
    );
    sqlx::query(AssertSqlSafe(sql)).bind(serde_json::Value::from(rows).to_string()).execute(&mut **transaction).await?;
    Ok(())
}

/// How many went in.
pub(super) async fn insert(
    transaction: &mut Transaction<'static, Sqlite>,
    mut rows: &[&Row<'_>],
    stamp: Stamp,
) -> Result<u64> {
    let mut inserted = 0;
    while !rows.is_empty() {
        let size = SIZES.into_iter().find(|size| *size <= rows.len()).unwrap_or(1);
        let (now, later) = rows.split_at(size);
        rows = later;
        inserted += sqlx::query_with(statement(size), arguments(now, stamp)?)
            .execute(&mut **transaction)
            .await?
            .rows_affected();
    }
    Ok(inserted)
}

/// The statement for so many rows, one of `SIZES`.
///
/// Its parameters have no numbers: numbered ones have names, which the driver asks for one by one and SQLite looks
/// for in a list, so that binding 15,000 of them took half a second.
fn statement(rows: usize) -> &'static str {
    static STATEMENTS: OnceLock<Vec<(usize, String)>> = OnceLock::new();
    let statements = STATEMENTS.get_or_init(|| {
        let columns = COLUMNS.join(", ");
        let row = format!("({})", vec!["?"; 2 + COLUMNS.len()].join(", "));
        let build = |rows: usize| {
            let rows = vec![row.as_str(); rows];
            format!(
                "INSERT INTO usage_requests (recorded_at, commit_number, {columns}) VALUES {} \
                 ON CONFLICT DO NOTHING",
                rows.join(", ")
            )
        };
        SIZES.into_iter().map(|size| (size, build(size))).collect()
    });
    statements.iter().find(|(size, _)| *size == rows).map_or("", |(_, sql)| sql)
}

fn arguments(rows: &[&Row<'_>], stamp: Stamp) -> Result<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    arguments.reserve(rows.len() * (2 + COLUMNS.len()), 0);
    for row in rows {
        bind(&mut arguments, stamp.recorded_at_us)?;
        bind(&mut arguments, stamp.commit_number)?;
        let event = &row.request.event;
        let tokens = &event.tokens;
        bind(&mut arguments, event.id)?;
        bind(&mut arguments, event.occurred_at_us)?;
        bind(&mut arguments, event.instance_id.as_str())?;
        bind(&mut arguments, event.user_id.as_str())?;
        bind(&mut arguments, event.team_id.as_str())?;
        bind(&mut arguments, event.api_key_id.as_str())?;
        bind(&mut arguments, event.provider.as_str())?;
        bind(&mut arguments, event.requested_model.as_str())?;
        bind(&mut arguments, event.model.as_str())?;
        bind(&mut arguments, event.status.number())?;
        bind(&mut arguments, event.operation.as_str())?;
        for value in [
            tokens.input_uncached,
            tokens.input_cache_read,
            tokens.input_cache_write,
            tokens.input_cache_write_1h,
            tokens.output,
            tokens.output_reasoning,
        ] {
            bind(&mut arguments, count(value))?;
        }
        bind(&mut arguments, map(&event.other_units).map_err(Error::internal)?)?;
        bind(&mut arguments, event.latency_us)?;
        bind(&mut arguments, event.time_to_first_token_us)?;
        bind(&mut arguments, event.service_tier.as_str())?;
        bind(&mut arguments, event.processing.as_str())?;
        bind(&mut arguments, event.request_id.as_str())?;
        bind(&mut arguments, map(&event.labels).map_err(Error::internal)?)?;
        bind(&mut arguments, map(&event.price_conditions).map_err(Error::internal)?)?;
        bind(&mut arguments, row.request.charge.cost_nanos())?;
        bind(&mut arguments, row.charge_ref)?;
        bind(&mut arguments, row.producer_ref)?;
        bind(&mut arguments, event.producer.as_ref().map(|producer| producer.sequence))?;
        bind(&mut arguments, row.request.content_hash.as_slice())?;
    }
    Ok(arguments)
}

fn bind<'q>(arguments: &mut SqliteArguments, value: impl sqlx::Encode<'q, Sqlite> + sqlx::Type<Sqlite>) -> Result<()> {
    arguments.add(value).map_err(|error| Error::from(sqlx::Error::Encode(error)))
}

/// The numbers of blocks that are there: whoever writes holds the lock on everything.
pub(super) async fn lock_numbers(
    transaction: &mut Transaction<'static, Sqlite>,
    blocks: &BTreeSet<NumberBlock>,
) -> Result<BTreeMap<NumberBlock, Numbers>> {
    let mut found = BTreeMap::new();
    for (producer, block) in blocks {
        let row = sqlx::query("SELECT numbers FROM usage_producer_numbers WHERE producer_ref = ? AND block = ?")
            .bind(producer)
            .bind(block)
            .fetch_optional(&mut **transaction)
            .await?;
        if let Some(row) = row {
            found.insert((*producer, *block), Numbers::from_bytes(row.try_get(0)?).map_err(Error::internal)?);
        }
    }
    Ok(found)
}

pub(super) async fn save_numbers(
    transaction: &mut Transaction<'static, Sqlite>,
    blocks: &[(NumberBlock, Vec<u8>)],
) -> Result<()> {
    for ((producer, block), numbers) in blocks {
        sqlx::query(
            "INSERT INTO usage_producer_numbers (producer_ref, block, numbers) VALUES (?, ?, ?) \
             ON CONFLICT (producer_ref, block) DO UPDATE SET numbers = excluded.numbers",
        )
        .bind(producer)
        .bind(block)
        .bind(numbers.as_slice())
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Finds what is known of some ids.
pub(super) async fn lookup(
    transaction: &mut Transaction<'static, Sqlite>,
    ids: &[Uuid],
    known: &mut HashMap<Uuid, Known>,
) -> Result<()> {
    let places = vec!["?"; ids.len()].join(", ");
    let sql = format!("SELECT id, content_hash, commit_number FROM usage_requests WHERE id IN ({places})");
    let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
    for id in ids {
        query = query.bind(id);
    }
    for row in query.fetch_all(&mut **transaction).await? {
        let found = Known { content_hash: row.try_get(1)?, commit_number: row.try_get(2)? };
        known.insert(row.try_get(0)?, found);
    }
    Ok(())
}
