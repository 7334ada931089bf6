//! What each producer sent, read from the numbers that are stored; and the intents whose outcome has not come.

use sea_orm::Value;
use service_core::auth::Access;
use service_core::coverage::{self, Epoch, MAX_DROPPED, Wanted};
use service_core::error::{Error, Result};
use service_core::numbers::{Covered, Covering, Numbers};

use super::settle::OPEN_INTENT;
use super::{Row, Store, placeholders, signed, unsigned};
use crate::event::Entry;

/// Blocks that are read at once: two megabytes at most.
const BLOCKS: usize = 256;
/// Intents that are read at once.
const INTENTS: usize = 100;
/// Intents that are read for one answer.
const MAX_INTENTS: usize = 1_000;

/// Numbers are stored as what has the same bits: those from 2⁶³ on are negative, and come last all the same.
const IN_ORDER: &str = "producer_id, epoch < 0, epoch";

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
        let mut values: Vec<Value> = vec![wanted.range.end_us.into(), wanted.range.start_us.into()];
        let mut which = String::from("TRUE");
        if let Some((producer_id, epoch)) = after {
            let epoch = epoch.cast_signed();
            let later = if epoch < 0 { "epoch < 0 AND epoch > $4" } else { "(epoch > $4 OR epoch < 0)" };
            which.push_str(&format!(" AND (producer_id > $3 OR (producer_id = $3 AND {later}))"));
            values.extend([producer_id.into(), epoch.into()]);
        }
        if !wanted.producer_ids.is_empty() {
            let ids = placeholders(values.len() + 1, wanted.producer_ids.len());
            which.push_str(&format!(" AND producer_id IN ({ids})"));
            values.extend(wanted.producer_ids.iter().map(Value::from));
        }
        // A block that was only ever locked has no bytes.
        let sql = format!(
            "SELECT producer_id, epoch, MIN(since), MAX(heard_at) FROM (\
             SELECT producer_id, epoch, since, heard_at FROM audit_producer_numbers WHERE length(numbers) > 0 \
             UNION ALL SELECT producer_id, epoch, reported_at, reported_at FROM audit_dropped_ranges) heard \
             WHERE {which} GROUP BY producer_id, epoch HAVING MIN(since) < $1 AND MAX(heard_at) >= $2 \
             ORDER BY {IN_ORDER} LIMIT {limit}"
        );
        let epoch = |row: sea_orm::QueryResult| {
            Ok(Epoch {
                producer_id: row.try_get_by_index(0)?,
                epoch: row.try_get_by_index::<i64>(1)?.cast_unsigned(),
                first_heard_us: row.try_get_by_index(2)?,
                last_heard_us: row.try_get_by_index(3)?,
            })
        };
        self.read(sql, values).await?.into_iter().map(epoch).collect()
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
        let Some(mut last) = self.highest(epoch).await?.map(|highest| highest.min(wanted.last.unwrap_or(u64::MAX)))
        else {
            return Ok((Covered::default(), 0));
        };
        let mut dropped = self.dropped_of(epoch, wanted.first).await?;
        if dropped.len() > MAX_DROPPED {
            // Of what follows not all is known.
            last = last.min(dropped[MAX_DROPPED].0.saturating_sub(1));
            dropped.truncate(MAX_DROPPED);
        }
        let mut covering = Covering::new(wanted.first, last, dropped);
        let (mut read, mut from) = (0, wanted.first >> 16);
        while covering.is_open() {
            let blocks = self.blocks(epoch, from, last >> 16).await?;
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
    async fn highest(&self, epoch: &Epoch) -> Result<Option<u64>> {
        let sql = "SELECT block, numbers FROM audit_producer_numbers \
                   WHERE producer_id = $1 AND epoch = $2 AND length(numbers) > 0 ORDER BY block DESC LIMIT 1";
        let received = match self.read(sql, key(epoch)).await?.first() {
            Some(row) => block(row).map(|(block, numbers)| numbers.highest(block))?,
            None => None,
        };
        let sql = "SELECT last_sequence FROM audit_dropped_ranges WHERE producer_id = $1 AND epoch = $2 \
                   ORDER BY last_sequence < 0 DESC, last_sequence DESC LIMIT 1";
        let dropped = match self.read(sql, key(epoch)).await?.first() {
            Some(row) => Some(row.try_get_by_index::<i64>(0)?.cast_unsigned()),
            None => None,
        };
        Ok(received.max(dropped))
    }

    /// Reports of dropped numbers from one on, in their order: one more than are looked at, where there are more.
    async fn dropped_of(&self, epoch: &Epoch, first: u64) -> Result<Vec<(u64, u64)>> {
        let first = first.cast_signed();
        let from = if first < 0 {
            "last_sequence < 0 AND last_sequence >= $3"
        } else {
            "(last_sequence >= $3 OR last_sequence < 0)"
        };
        let sql = format!(
            "SELECT first_sequence, last_sequence FROM audit_dropped_ranges \
             WHERE producer_id = $1 AND epoch = $2 AND {from} \
             ORDER BY first_sequence < 0, first_sequence, last_sequence LIMIT {}",
            MAX_DROPPED + 1
        );
        let values = key(epoch).into_iter().chain([first.into()]).collect();
        let range = |row: sea_orm::QueryResult| {
            let number = |column| row.try_get_by_index::<i64>(column).map(i64::cast_unsigned);
            Ok((number(0)?, number(1)?))
        };
        self.read(sql, values).await?.into_iter().map(range).collect()
    }

    async fn blocks(&self, epoch: &Epoch, first: u64, last: u64) -> Result<Vec<(u64, Numbers)>> {
        let sql = format!(
            "SELECT block, numbers FROM audit_producer_numbers \
             WHERE producer_id = $1 AND epoch = $2 AND block >= $3 AND block <= $4 ORDER BY block LIMIT {BLOCKS}"
        );
        let values = key(epoch).into_iter().chain([signed(first).into(), signed(last).into()]).collect();
        self.read(sql, values).await?.iter().map(block).collect()
    }

    /// Intents of a range whose outcome has not come, newest first; and whether there may be others.
    pub async fn open_intents(&self, access: &Access, wanted: &Wanted) -> Result<(Vec<Entry>, bool)> {
        coverage::check(access)?;
        let mut found = Vec::new();
        let mut before: Option<(i64, Value)> = None;
        for _ in 0..MAX_INTENTS / INTENTS {
            let mut values: Vec<Value> = vec![wanted.range.start_us.into(), wanted.range.end_us.into()];
            let mut older = "";
            if let Some((us, id)) = before.take() {
                older = "AND (e.occurred_at, e.id) < ($3, $4)";
                values.extend([us.into(), id]);
            }
            let sql = format!(
                "SELECT {} FROM audit_entries e WHERE e.stage = 2 AND e.occurred_at >= $1 AND e.occurred_at < $2 \
                 {older} {OPEN_INTENT} ORDER BY e.occurred_at DESC, e.id DESC LIMIT {}",
                Row::COLUMNS,
                INTENTS + 1
            );
            let rows = self.read(sql, values).await?;
            let more = rows.len() > INTENTS;
            for row in rows.iter().take(INTENTS) {
                let row = Row::from_result(row)?;
                before = Some((row.key.occurred_at_us, row.key.id.into()));
                let entry = row.entry()?;
                if wanted.has(entry.event.producer.as_ref().map_or("", |producer| &producer.id)) {
                    found.push(entry);
                }
            }
            if !more || found.len() >= INTENTS {
                let more = more || found.len() > INTENTS;
                found.truncate(INTENTS);
                return Ok((found, more));
            }
        }
        Ok((found, true))
    }
}

fn key(epoch: &Epoch) -> Vec<Value> {
    vec![epoch.producer_id.as_str().into(), epoch.epoch.cast_signed().into()]
}

fn block(row: &sea_orm::QueryResult) -> Result<(u64, Numbers)> {
    let bytes: Vec<u8> = row.try_get_by_index(1)?;
    Ok((unsigned(row.try_get_by_index(0)?)?, Numbers::from_bytes(&bytes).map_err(Error::internal)?))
}
