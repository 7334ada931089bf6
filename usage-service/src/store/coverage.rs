//! What each producer sent, read from the numbers that are stored.

use sea_orm::{ConnectionTrait as _, QueryResult, Statement, Value};
use service_core::auth::Access;
use service_core::coverage::{self, Epoch, MAX_DROPPED, Wanted};
use service_core::database::Engine;
use service_core::error::{Error, Result};
use service_core::numbers::{Covered, Covering, Numbers};

use super::Store;
use super::write::producer_ref;

/// Blocks that are read at once: two megabytes at most.
const BLOCKS: usize = 256;

impl Store {
    /// Producers' epochs that were heard of in a range, in their order, up to so many.
    pub async fn heard(
        &self,
        access: &Access,
        wanted: &Wanted,
        after: Option<(String, u64)>,
        limit: usize,
    ) -> Result<Vec<Epoch>> {
        coverage::check(access)?;
        // By its bytes on both engines.
        let id = match self.db.engine {
            Engine::Sqlite => "p.producer_id",
            Engine::Postgres => "p.producer_id COLLATE \"C\"",
        };
        let mut values: Vec<Value> = vec![wanted.range.end_us.into(), wanted.range.start_us.into()];
        let mut which = String::from("TRUE");
        if let Some((producer_id, epoch)) = after {
            which.push_str(&format!(" AND ({id} > $3 OR (p.producer_id = $3 AND p.epoch > $4))"));
            values.extend([producer_id.into(), epoch.cast_signed().into()]);
        }
        if !wanted.producer_ids.is_empty() {
            let first = values.len() + 1;
            let ids: Vec<String> = (0..wanted.producer_ids.len()).map(|at| format!("${}", first + at)).collect();
            which.push_str(&format!(" AND p.producer_id IN ({})", ids.join(",")));
            values.extend(wanted.producer_ids.iter().map(Value::from));
        }
        // A block that was only ever locked has no bytes.
        let sql = format!(
            "SELECT p.producer_id, p.epoch, heard.since, heard.heard_at FROM (\
             SELECT producer_ref, MIN(since) AS since, MAX(heard_at) AS heard_at FROM (\
             SELECT producer_ref, since, heard_at FROM usage_producer_numbers WHERE length(numbers) > 0 \
             UNION ALL SELECT producer_ref, recorded_at, recorded_at FROM usage_dropped) AS told \
             GROUP BY producer_ref HAVING MIN(since) < $1 AND MAX(heard_at) >= $2) AS heard \
             JOIN usage_producers AS p ON p.id = heard.producer_ref \
             WHERE {which} ORDER BY {id}, p.epoch LIMIT {limit}"
        );
        let epoch = |row: QueryResult| {
            Ok(Epoch {
                producer_id: row.try_get_by_index(0)?,
                epoch: row.try_get_by_index::<i64>(1)?.cast_unsigned(),
                first_heard_us: row.try_get_by_index(2)?,
                last_heard_us: row.try_get_by_index(3)?,
            })
        };
        self.rows(&sql, values).await?.into_iter().map(epoch).collect()
    }

    /// What became of an epoch's numbers, of up to so many blocks; and how many were read.
    pub async fn covered(
        &self,
        access: &Access,
        epoch: &Epoch,
        wanted: &Wanted,
        max_blocks: usize,
    ) -> Result<(Covered, usize)> {
        coverage::check(access)?;
        let producer = producer_ref(&epoch.producer_id, epoch.epoch.cast_signed());
        let Some(mut last) = self.highest(producer).await?.map(|highest| highest.min(wanted.last.unwrap_or(u64::MAX)))
        else {
            return Ok((Covered::default(), 0));
        };
        let mut dropped = self.dropped_of(producer, wanted.first).await?;
        if dropped.len() > MAX_DROPPED {
            // Of what follows not all is known.
            last = last.min(dropped[MAX_DROPPED].0.saturating_sub(1));
            dropped.truncate(MAX_DROPPED);
        }
        let mut covering = Covering::new(wanted.first, last, dropped);
        let (mut read, mut from) = (0, wanted.first >> 16);
        while covering.is_open() {
            let blocks = self.blocks(producer, from, last >> 16).await?;
            for (block, numbers) in &blocks {
                if read == max_blocks {
                    return Ok((covering.stop(), read));
                }
                covering.block(*block, numbers);
                read += 1;
                from = block + 1;
            }
            if blocks.len() < BLOCKS {
                break;
            }
        }
        Ok((covering.finish(), read))
    }

    /// The highest number of an epoch that was heard of.
    async fn highest(&self, producer: i64) -> Result<Option<u64>> {
        let sql = "SELECT block, numbers FROM usage_producer_numbers \
                   WHERE producer_ref = $1 AND length(numbers) > 0 ORDER BY block DESC LIMIT 1";
        let received = match self.rows(sql, vec![producer.into()]).await?.first() {
            Some(row) => block(row).map(|(block, numbers)| numbers.highest(block))?,
            None => None,
        };
        let sql = "SELECT MAX(last_sequence) FROM usage_dropped WHERE producer_ref = $1";
        let dropped = match self.rows(sql, vec![producer.into()]).await?.first() {
            Some(row) => row.try_get_by_index::<Option<i64>>(0)?.map(i64::cast_unsigned),
            None => None,
        };
        Ok(received.max(dropped))
    }

    /// Reports of dropped numbers from one on, in their order: one more than are looked at, where there are more.
    async fn dropped_of(&self, producer: i64, first: u64) -> Result<Vec<(u64, u64)>> {
        let sql = format!(
            "SELECT first_sequence, last_sequence FROM usage_dropped WHERE producer_ref = $1 AND last_sequence >= $2 \
             ORDER BY first_sequence, last_sequence LIMIT {}",
            MAX_DROPPED + 1
        );
        let range = |row: QueryResult| {
            let number = |column| row.try_get_by_index::<i64>(column).map(i64::cast_unsigned);
            Ok((number(0)?, number(1)?))
        };
        self.rows(&sql, vec![producer.into(), signed(first).into()]).await?.into_iter().map(range).collect()
    }

    async fn blocks(&self, producer: i64, first: u64, last: u64) -> Result<Vec<(u64, Numbers)>> {
        let sql = format!(
            "SELECT block, numbers FROM usage_producer_numbers \
             WHERE producer_ref = $1 AND block >= $2 AND block <= $3 ORDER BY block LIMIT {BLOCKS}"
        );
        let values = vec![producer.into(), signed(first).into(), signed(last).into()];
        self.rows(&sql, values).await?.iter().map(block).collect()
    }

    async fn rows(&self, sql: &str, values: Vec<Value>) -> Result<Vec<QueryResult>> {
        let statement = Statement::from_sql_and_values(self.backend(), sql, values);
        Ok(self.db.reader.query_all_raw(statement).await?)
    }
}

/// Numbers of this service end at 2⁶³; a larger one asks for what cannot be there.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn block(row: &QueryResult) -> Result<(u64, Numbers)> {
    let block: i64 = row.try_get_by_index(0)?;
    let bytes: Vec<u8> = row.try_get_by_index(1)?;
    Ok((block.cast_unsigned(), Numbers::from_bytes(&bytes).map_err(Error::internal)?))
}
