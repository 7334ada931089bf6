//! Writing on SQLite: rows as `VALUES`, in a few sizes of statement, so that each
//! is prepared once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use serde_json::json;
use service_core::error::{Error, Result};
use service_core::numbers::Numbers;
use sqlx::sqlite::{SqliteArguments, SqlitePool};
use sqlx::{Arguments as _, AssertSqlSafe, Row as _, Sqlite, Transaction};
use uuid::Uuid;

use super::columns::{COLUMNS, count, map};
use super::{Known, NumberBlock, References, Row, Stamp, charge_texts};
use crate::rollup::Summing;

/// Rows in one statement. What a larger one needs of memory no longer fits the processor's caches: 512 rows take half
/// as long again.
const SIZES: [usize; 3] = [64, 8, 1];

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

/// How many went in. While SQLite's own thread works on one statement, the next one is made ready here.
pub(super) async fn insert<'a>(
    transaction: &mut Transaction<'static, Sqlite>,
    mut rows: &[&'a Row<'a>],
    stamp: Stamp,
    sums: &mut Summing<'a>,
) -> Result<u64> {
    let mut inserted = 0;
    let mut ready = take(&mut rows, stamp)?;
    while let Some((now, arguments)) = ready {
        let executing = sqlx::query_with(statement(now.len()), arguments).execute(&mut **transaction);
        let preparing = async {
            now.iter().for_each(|row| row.sum_up(sums));
            take(&mut rows, stamp)
        };
        // In this order: the first hands its work over, and then waits.
        let (executed, next) = futures::join!(executing, preparing);
        inserted += executed?.rows_affected();
        ready = next?;
    }
    Ok(inserted)
}

/// Takes as many rows as there is a statement for, with the arguments for it; none when no row is left.
fn take<'r, 'a>(rows: &mut &'r [&'a Row<'a>], stamp: Stamp) -> Result<Option<(&'r [&'a Row<'a>], SqliteArguments)>> {
    let Some(size) = SIZES.into_iter().find(|size| *size <= rows.len()) else {
        return Ok(None);
    };
    let (now, later) = rows.split_at(size);
    *rows = later;
    Ok(Some((now, arguments(now, stamp)?)))
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
    let mut texts = Texts::default();
    for row in rows {
        let arguments = &mut arguments;
        bind(arguments, stamp.recorded_at_us)?;
        bind(arguments, stamp.commit_number)?;
        let event = &row.request.event;
        let tokens = &event.tokens;
        bind(arguments, event.id)?;
        bind(arguments, event.occurred_at_us)?;
        texts.bind(
            arguments,
            0,
            [
                &event.instance_id,
                &event.user_id,
                &event.team_id,
                &event.api_key_id,
                &event.provider,
                &event.requested_model,
                &event.model,
            ],
        )?;
        bind(arguments, event.status.number())?;
        texts.bind(arguments, 7, [&event.operation])?;
        for value in [
            tokens.input_uncached,
            tokens.input_cache_read,
            tokens.input_cache_write,
            tokens.input_cache_write_1h,
            tokens.output,
            tokens.output_reasoning,
        ] {
            bind(arguments, count(value))?;
        }
        texts.bind(arguments, 8, [&map(&event.other_units).map_err(Error::internal)?])?;
        bind(arguments, event.latency_us)?;
        bind(arguments, event.time_to_first_token_us)?;
        texts.bind(arguments, 9, [&event.service_tier, &event.processing, &event.request_id])?;
        texts.bind(arguments, 12, [&map(&event.labels).map_err(Error::internal)?])?;
        texts.bind(arguments, 13, [&map(&event.price_conditions).map_err(Error::internal)?])?;
        bind(arguments, row.request.charge.cost_nanos())?;
        bind(arguments, row.charge_ref)?;
        bind(arguments, row.producer_ref)?;
        bind(arguments, event.producer.as_ref().map(|producer| producer.sequence))?;
        bind(arguments, row.request.content_hash.as_slice())?;
        texts.bind(arguments, 14, [row.recorded_by])?;
    }
    Ok(arguments)
}

/// The last text of each column: many are that of the row before, and are not copied again.
#[derive(Default)]
struct Texts([Option<Arc<str>>; 15]);

impl Texts {
    /// Binds the texts of columns that follow each other, the first of them the `first` that is a text.
    fn bind<const N: usize>(&mut self, arguments: &mut SqliteArguments, first: usize, texts: [&str; N]) -> Result<()> {
        for (last, text) in self.0[first..].iter_mut().zip(texts) {
            let text = match last {
                Some(last) if **last == *text => Arc::clone(last),
                _ => Arc::clone(last.insert(Arc::from(text))),
            };
            bind(arguments, text)?;
        }
        Ok(())
    }
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
    stamp: Stamp,
) -> Result<()> {
    for ((producer, block), numbers) in blocks {
        sqlx::query(
            "INSERT INTO usage_producer_numbers (producer_ref, block, numbers, since, heard_at) \
             VALUES (?1, ?2, ?3, ?4, ?4) ON CONFLICT (producer_ref, block) \
             DO UPDATE SET numbers = excluded.numbers, heard_at = excluded.heard_at",
        )
        .bind(producer)
        .bind(block)
        .bind(numbers.as_slice())
        .bind(stamp.recorded_at_us)
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
