//! Writing on PostgreSQL: each column of all rows as one array, one statement a
//! group.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::OnceLock;

use sea_orm::DatabaseConnection;
use service_core::database::begin_postgres;
use service_core::error::{Error, Result};
use service_core::numbers::Numbers;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments as _, Postgres, Row as _, Transaction};
use uuid::Uuid;

use super::columns::{COLUMNS, POSTGRES_TYPES, count, map};
use super::{Known, NumberBlock, References, Row, Stamp, charge_texts};
use crate::model::{Event, Tokens};
use crate::rollup::Summing;
use crate::store::partitions::time_of;
use crate::store::watermark::COMMIT_LOCK;

/// Takes the lock that watermarks respect, and only then a commit number and the
/// horizon of retention: who moves that waits for those who may have read it before.
pub(super) async fn begin(writer: &DatabaseConnection) -> Result<(Transaction<'static, Postgres>, i64, i64)> {
    let mut transaction = begin_postgres(writer).await?;
    sqlx::query("SELECT pg_advisory_xact_lock_shared($1)").bind(COMMIT_LOCK).execute(&mut *transaction).await?;
    let number = sqlx::query_scalar("SELECT nextval('usage_commit_number')").fetch_one(&mut *transaction).await?;
    let kept_from_us =
        sqlx::query_scalar("SELECT requests_before FROM usage_retention").fetch_one(&mut *transaction).await?;
    Ok((transaction, number, kept_from_us))
}

/// Rows that are referred to: few, and mostly there. One statement a table,
/// whatever their number.
pub(super) async fn references(
    transaction: &mut Transaction<'static, Postgres>,
    references: &References<'_>,
    stamp: Stamp,
) -> Result<()> {
    if !references.charges.is_empty() {
        let texts: Vec<[&str; 5]> = references.charges.values().map(|charge| charge_texts(charge)).collect();
        let column = |index: usize| texts.iter().map(|texts| texts[index]).collect::<Vec<_>>();
        sqlx::query(
            "INSERT INTO usage_charges \
             SELECT * FROM UNNEST($1::int8[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) \
             ON CONFLICT DO NOTHING",
        )
        .bind(references.charges.keys().copied().collect::<Vec<_>>())
        .bind(column(0))
        .bind(column(1))
        .bind(column(2))
        .bind(column(3))
        .bind(column(4))
        .execute(&mut **transaction)
        .await?;
    }
    if !references.producers.is_empty() {
        sqlx::query(
            "INSERT INTO usage_producers SELECT * FROM UNNEST($1::int8[], $2::text[], $3::int8[]) \
             ON CONFLICT DO NOTHING",
        )
        .bind(references.producers.keys().copied().collect::<Vec<_>>())
        .bind(references.producers.values().map(|(producer_id, _)| *producer_id).collect::<Vec<_>>())
        .bind(references.producers.values().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
        .execute(&mut **transaction)
        .await?;
    }
    if !references.dropped.is_empty() {
        sqlx::query(
            "INSERT INTO usage_dropped \
             SELECT ranges.*, $4 FROM UNNEST($1::int8[], $2::int8[], $3::int8[]) AS ranges ON CONFLICT DO NOTHING",
        )
        .bind(references.dropped.iter().map(|(producer, _, _)| *producer).collect::<Vec<_>>())
        .bind(references.dropped.iter().map(|(_, first, _)| *first).collect::<Vec<_>>())
        .bind(references.dropped.iter().map(|(_, _, last)| *last).collect::<Vec<_>>())
        .bind(stamp.recorded_at_us)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Rows in one statement: enough that the statement itself costs little, and few enough that some are made ready while
/// others go in.
const ROWS: usize = 512;

fn statement() -> &'static str {
    static STATEMENT: OnceLock<String> = OnceLock::new();
    STATEMENT.get_or_init(|| {
        let columns = COLUMNS.join(", ");
        let arrays: Vec<String> =
            POSTGRES_TYPES.iter().enumerate().map(|(index, array)| format!("${}::{array}[]", index + 3)).collect();
        // Counted by what comes back: Citus takes what was skipped for inserted.
        format!(
            "WITH stored AS (\
             INSERT INTO usage_requests (recorded_at, commit_number, {columns}) \
             SELECT $1, $2, rows.* FROM UNNEST({}) AS rows ON CONFLICT DO NOTHING RETURNING 1) \
             SELECT COUNT(*) FROM stored",
            arrays.join(", ")
        )
    })
}

/// How many went in. While the server works on a statement, the next one is made ready here.
pub(super) async fn insert<'a>(
    transaction: &mut Transaction<'static, Postgres>,
    rows: &[&'a Row<'a>],
    stamp: Stamp,
    sums: &mut Summing<'a>,
) -> Result<u64> {
    let mut inserted = 0;
    let mut pieces = rows.chunks(ROWS);
    let mut ready = pieces.next().map(|rows| arguments(rows, stamp).map(|arguments| (rows, arguments))).transpose()?;
    while let Some((now, arguments_now)) = ready {
        let executing = sqlx::query_scalar_with(statement(), arguments_now).fetch_one(&mut **transaction);
        let preparing = async {
            now.iter().for_each(|row| row.sum_up(sums));
            pieces.next().map(|rows| arguments(rows, stamp).map(|arguments| (rows, arguments))).transpose()
        };
        // In this order: the first hands its work over, and then waits.
        let (executed, next): (sqlx::Result<i64>, _) = futures::join!(executing, preparing);
        inserted += executed?.unsigned_abs();
        ready = next?;
    }
    Ok(inserted)
}

fn arguments(rows: &[&Row<'_>], stamp: Stamp) -> Result<PgArguments> {
    fn column<'a, T>(rows: &[&Row<'a>], value: impl Fn(&'a Event) -> T) -> Vec<T> {
        rows.iter().map(|row| value(&row.request.event)).collect()
    }
    let tokens = |value: fn(&Tokens) -> i64| column(rows, |event| count(value(&event.tokens)));
    let maps = |value: &dyn Fn(&Event) -> Result<String, serde_json::Error>| {
        rows.iter().map(|row| value(&row.request.event).map_err(Error::internal)).collect::<Result<Vec<String>>>()
    };
    let mut arguments = PgArguments::default();
    bind(&mut arguments, stamp.recorded_at_us)?;
    bind(&mut arguments, stamp.commit_number)?;
    bind(&mut arguments, column(rows, |event| event.id))?;
    bind(&mut arguments, column(rows, |event| event.occurred_at_us))?;
    bind(&mut arguments, column(rows, |event| event.instance_id.as_str()))?;
    bind(&mut arguments, column(rows, |event| event.user_id.as_str()))?;
    bind(&mut arguments, column(rows, |event| event.team_id.as_str()))?;
    bind(&mut arguments, column(rows, |event| event.api_key_id.as_str()))?;
    bind(&mut arguments, column(rows, |event| event.provider.as_str()))?;
    bind(&mut arguments, column(rows, |event| event.requested_model.as_str()))?;
    bind(&mut arguments, column(rows, |event| event.model.as_str()))?;
    bind(&mut arguments, column(rows, |event| event.status.number()))?;
    bind(&mut arguments, column(rows, |event| event.operation.as_str()))?;
    bind(&mut arguments, tokens(|tokens| tokens.input_uncached))?;
    bind(&mut arguments, tokens(|tokens| tokens.input_cache_read))?;
    bind(&mut arguments, tokens(|tokens| tokens.input_cache_write))?;
    bind(&mut arguments, tokens(|tokens| tokens.input_cache_write_1h))?;
    bind(&mut arguments, tokens(|tokens| tokens.output))?;
    bind(&mut arguments, tokens(|tokens| tokens.output_reasoning))?;
    bind(&mut arguments, maps(&|event| map(&event.other_units))?)?;
    bind(&mut arguments, column(rows, |event| event.latency_us))?;
    bind(&mut arguments, column(rows, |event| event.time_to_first_token_us))?;
    bind(&mut arguments, column(rows, |event| event.service_tier.as_str()))?;
    bind(&mut arguments, column(rows, |event| event.processing.as_str()))?;
    bind(&mut arguments, column(rows, |event| event.request_id.as_str()))?;
    bind(&mut arguments, maps(&|event| map(&event.labels))?)?;
    bind(&mut arguments, maps(&|event| map(&event.price_conditions))?)?;
    bind(&mut arguments, rows.iter().map(|row| row.request.charge.cost_nanos()).collect::<Vec<_>>())?;
    bind(&mut arguments, rows.iter().map(|row| row.charge_ref).collect::<Vec<_>>())?;
    bind(&mut arguments, rows.iter().map(|row| row.producer_ref).collect::<Vec<_>>())?;
    bind(&mut arguments, column(rows, |event| event.producer.as_ref().map(|producer| producer.sequence)))?;
    bind(&mut arguments, rows.iter().map(|row| row.request.content_hash.as_slice()).collect::<Vec<_>>())?;
    bind(&mut arguments, rows.iter().map(|row| row.recorded_by).collect::<Vec<_>>())?;
    Ok(arguments)
}

fn bind<'q>(arguments: &mut PgArguments, value: impl sqlx::Encode<'q, Postgres> + sqlx::Type<Postgres>) -> Result<()> {
    arguments.add(value).map_err(|error| Error::from(sqlx::Error::Encode(error)))
}

/// Makes the rows of blocks that are not there, locks those that are, one by one in
/// their order; so two replicas never wait for each other in a ring.
pub(super) async fn lock_numbers(
    transaction: &mut Transaction<'static, Postgres>,
    blocks: &BTreeSet<NumberBlock>,
) -> Result<BTreeMap<NumberBlock, Numbers>> {
    let rows = sqlx::query(
        "INSERT INTO usage_producer_numbers AS kept (producer_ref, block, numbers) \
         SELECT new.*, ''::bytea FROM UNNEST($1::int8[], $2::int8[]) AS new (producer_ref, block) \
         ORDER BY producer_ref, block \
         ON CONFLICT (producer_ref, block) DO UPDATE SET numbers = kept.numbers \
         RETURNING producer_ref, block, numbers",
    )
    .bind(blocks.iter().map(|(producer, _)| *producer).collect::<Vec<_>>())
    .bind(blocks.iter().map(|(_, block)| *block).collect::<Vec<_>>())
    .fetch_all(&mut **transaction)
    .await?;
    rows.iter()
        .map(|row| {
            let numbers = Numbers::from_bytes(row.try_get(2)?).map_err(Error::internal)?;
            Ok(((row.try_get(0)?, row.try_get(1)?), numbers))
        })
        .collect()
}

/// Stores blocks that are locked.
pub(super) async fn save_numbers(
    transaction: &mut Transaction<'static, Postgres>,
    blocks: &[(NumberBlock, Vec<u8>)],
    stamp: Stamp,
) -> Result<()> {
    sqlx::query(
        "UPDATE usage_producer_numbers AS kept SET numbers = new.numbers, heard_at = $4, \
         since = CASE WHEN length(kept.numbers) = 0 THEN $4 ELSE kept.since END \
         FROM UNNEST($1::int8[], $2::int8[], $3::bytea[]) AS new (producer_ref, block, numbers) \
         WHERE kept.producer_ref = new.producer_ref AND kept.block = new.block",
    )
    .bind(blocks.iter().map(|((producer, _), _)| *producer).collect::<Vec<_>>())
    .bind(blocks.iter().map(|((_, block), _)| *block).collect::<Vec<_>>())
    .bind(blocks.iter().map(|(_, numbers)| numbers.as_slice()).collect::<Vec<_>>())
    .bind(stamp.recorded_at_us)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// The bounds leave out all partitions that hold none of these ids: without them the
/// planner counts with a look into each partition for each id, and rather reads all
/// of the table.
const LOOKUP: &str = "
SELECT kept.id, kept.content_hash, kept.commit_number
FROM UNNEST($1::uuid[]) AS wanted (id) JOIN usage_requests AS kept ON kept.id = wanted.id
WHERE kept.id BETWEEN $2 AND $3";
/// Ids whose times are further apart than this are looked up apart, in microseconds:
/// what lies between them is of no interest.
const APART_US: i64 = 7 * 86_400_000_000;

/// Finds what is known of some ids. A join, of which each row looks into its own
/// partition; a list would look for all of them in all partitions.
pub(super) async fn lookup(
    transaction: &mut Transaction<'static, Postgres>,
    ids: &[Uuid],
    known: &mut HashMap<Uuid, Known>,
) -> Result<()> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    for ids in ids.chunk_by(|one, next| time_of(*next) - time_of(*one) <= APART_US) {
        let rows =
            sqlx::query(LOOKUP).bind(ids).bind(ids.first()).bind(ids.last()).fetch_all(&mut **transaction).await?;
        for row in rows {
            let found = Known { content_hash: row.try_get(1)?, commit_number: row.try_get(2)? };
            known.insert(row.try_get(0)?, found);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use service_core::clock;
    use service_core::config::{DatabaseConfig, DatabaseUrl};

    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn ids_are_looked_up_in_their_own_partitions() {
        if testkit::Postgres::skipped() {
            return;
        }
        let url = DatabaseUrl::new(testkit::Postgres::shared().await.create_database().await).expect("valid");
        let store = Store::open(&url, &DatabaseConfig::default(), 1 << 20).await.expect("opens");
        let now_ms = clock::now_us() / 1_000;
        let id = |day: i64, n: u128| Uuid::from_u128((((now_ms - day * 86_400_000) as u128) << 80) | n);
        store.make_partitions_of((0..40).map(|day| id(day, 1))).await;
        let ids: Vec<Uuid> = (0..500).flat_map(|n| [id(21, n), id(20, n)]).collect();
        let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("EXPLAIN {LOOKUP}")))
            .bind(&ids)
            .bind(ids.iter().min())
            .bind(ids.iter().max())
            .fetch_all(store.db.writer.get_postgres_connection_pool())
            .await
            .expect("explained");
        let on = |name: &str| plan.iter().filter(|line| line.contains(&format!(" on {name}"))).count();
        assert_eq!((on("usage_requests_p2"), on("usage_requests_default")), (2, 0), "{plan:#?}");
    }
}
