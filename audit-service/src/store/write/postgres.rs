//! The statements of a write on PostgreSQL: arrays in, one round trip each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use sea_orm::DatabaseConnection;
use service_core::database::begin_postgres;
use service_core::error::{Error, Result};
use service_core::numbers::Numbers;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row as _};
use uuid::Uuid;

use super::{Bind, Known, NewRow, Settling};
use crate::event::Dropped;
use crate::merkle::Hash;
use crate::numbers::NumberBlock;
use crate::store::tree::{FullTile, Head};
use crate::store::{hash, signed, unsigned};

/// Rows that are sent at once: while the server takes them in, the next ones are made.
const PIECE: usize = 128;
/// First bytes of a COPY: signature, no flags, no extension.
const COPY_BEGIN: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Its last ones.
const COPY_END: [u8; 2] = (-1_i16).to_be_bytes();

pub(in crate::store) struct Transaction(sqlx::Transaction<'static, Postgres>);

impl Transaction {
    pub(super) async fn begin(writer: &DatabaseConnection) -> Result<Self> {
        Ok(Self(begin_postgres(writer).await?))
    }

    pub(super) async fn commit(self) -> Result<()> {
        Ok(self.0.commit().await?)
    }

    pub(super) async fn rollback(self) -> Result<()> {
        Ok(self.0.rollback().await?)
    }

    pub(super) async fn run(&mut self, sql: &'static str, values: &[Bind<'_>]) -> Result<u64> {
        let query = values.iter().fold(sqlx::query(sql), |query, value| match *value {
            Bind::Text(text) => query.bind(text.to_owned()),
            Bind::Int(number) => query.bind(number),
            Bind::Bytes(bytes) => query.bind(bytes.to_vec()),
            Bind::Id(id) => query.bind(id),
        });
        Ok(query.execute(&mut *self.0).await?.rows_affected())
    }

    /// Makes heads that are not there, locks those that are, one by one in the order of the names: with two passes,
    /// one could hold a head and wait for another that is being made.
    pub(super) async fn lock_heads(&mut self, instances: &BTreeSet<&str>) -> Result<BTreeMap<String, Head>> {
        let names: Vec<&str> = instances.iter().copied().collect();
        let rows = sqlx::query(
            "INSERT INTO audit_log_heads AS kept (instance_id, next_sequence) \
             SELECT instance, 0 FROM unnest($1::text[]) AS new (instance) ORDER BY instance COLLATE \"C\" \
             ON CONFLICT (instance_id) DO UPDATE SET next_sequence = kept.next_sequence \
             RETURNING instance_id, next_sequence, tree_size, frontier, kept_from, last_recorded_at",
        )
        .bind(names)
        .fetch_all(&mut *self.0)
        .await?;
        rows.iter()
            .map(|row| {
                let head = Head::new(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)?;
                Ok((row.try_get(0)?, head.with(row.try_get(4)?, row.try_get(5)?)))
            })
            .collect()
    }

    /// Leaf hashes of pieces of logs. One by one inside, so that the index is asked however many are wanted.
    pub(super) async fn leaves(&mut self, wanted: &[(&str, Range<u64>)]) -> Result<HashMap<String, Vec<Hash>>> {
        let names: Vec<&str> = wanted.iter().map(|(instance, _)| *instance).collect();
        let first: Vec<i64> = wanted.iter().map(|(_, range)| signed(range.start)).collect();
        let end: Vec<i64> = wanted.iter().map(|(_, range)| signed(range.end)).collect();
        let rows = sqlx::query(
            "SELECT wanted.instance, found.hashes \
             FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS wanted (instance, first, after) \
             CROSS JOIN LATERAL (SELECT array_agg(leaf_hash ORDER BY sequence) AS hashes FROM ( \
                 SELECT sequence, leaf_hash FROM audit_entries \
                 WHERE instance_id = wanted.instance AND sequence >= wanted.first AND sequence < wanted.after \
                 UNION ALL SELECT sequence, leaf_hash FROM audit_archived \
                 WHERE instance_id = wanted.instance AND sequence >= wanted.first AND sequence < wanted.after) e) found",
        )
        .bind(names)
        .bind(first)
        .bind(end)
        .fetch_all(&mut *self.0)
        .await?;
        let leaves = |row: &PgRow| {
            let hashes: Option<Vec<Vec<u8>>> = row.try_get(1)?;
            Ok((row.try_get(0)?, hashes.unwrap_or_default().into_iter().map(hash).collect::<Result<_>>()?))
        };
        rows.iter().map(leaves).collect()
    }

    /// Roots of tiles of one level.
    pub(super) async fn roots(&mut self, instance: &str, level: u8, tiles: Range<u64>) -> Result<Vec<Hash>> {
        let roots: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT root FROM audit_tiles WHERE instance_id = $1 AND level = $2 AND tile >= $3 AND tile < $4 \
             ORDER BY tile",
        )
        .bind(instance)
        .bind(i16::from(level))
        .bind(signed(tiles.start))
        .bind(signed(tiles.end))
        .fetch_all(&mut *self.0)
        .await?;
        roots.into_iter().map(hash).collect()
    }

    pub(super) async fn insert_tiles(&mut self, tiles: &[(&str, &FullTile)]) -> Result<()> {
        let names: Vec<&str> = tiles.iter().map(|(instance, _)| *instance).collect();
        let levels: Vec<i16> = tiles.iter().map(|(_, full)| i16::from(full.id.level)).collect();
        let indexes: Vec<i64> = tiles.iter().map(|(_, full)| signed(full.id.index)).collect();
        let roots: Vec<&[u8]> = tiles.iter().map(|(_, full)| &full.root[..]).collect();
        let hashes: Vec<Vec<u8>> = tiles.iter().map(|(_, full)| full.tile.to_bytes()).collect();
        sqlx::query(
            "INSERT INTO audit_tiles (instance_id, level, tile, root, hashes) \
             SELECT * FROM unnest($1::text[], $2::smallint[], $3::bigint[], $4::bytea[], $5::bytea[])",
        )
        .bind(names)
        .bind(levels)
        .bind(indexes)
        .bind(roots)
        .bind(hashes)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub(super) async fn known(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, Known>> {
        let rows = sqlx::query(
            "SELECT id, content_hash, sequence, leaf_hash FROM audit_entries WHERE id = ANY($1) \
             UNION ALL SELECT id, content_hash, sequence, leaf_hash FROM audit_archived WHERE id = ANY($1)",
        )
        .bind(ids)
        .fetch_all(&mut *self.0)
        .await?;
        let known = |row: &PgRow| {
            let known = Known {
                content_hash: hash(row.try_get(1)?)?,
                sequence: unsigned(row.try_get(2)?)?,
                leaf_hash: hash(row.try_get(3)?)?,
            };
            Ok((row.try_get(0)?, known))
        };
        rows.iter().map(known).collect()
    }

    /// As with the heads.
    pub(super) async fn lock_numbers(
        &mut self,
        blocks: &BTreeSet<NumberBlock>,
    ) -> Result<BTreeMap<NumberBlock, Numbers>> {
        if blocks.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (producers, epochs, numbers) = columns(blocks.iter());
        let rows = sqlx::query(
            "INSERT INTO audit_producer_numbers AS kept (producer_id, epoch, block, numbers) \
             SELECT producer, epoch, block, ''::bytea \
             FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS new (producer, epoch, block) \
             ORDER BY producer COLLATE \"C\", epoch, block \
             ON CONFLICT (producer_id, epoch, block) DO UPDATE SET numbers = kept.numbers \
             RETURNING producer_id, epoch, block, numbers",
        )
        .bind(producers)
        .bind(epochs)
        .bind(numbers)
        .fetch_all(&mut *self.0)
        .await?;
        let numbers = |row: &PgRow| {
            let block = NumberBlock {
                producer_id: row.try_get(0)?,
                epoch: row.try_get::<i64, _>(1)?.cast_unsigned(),
                block: unsigned(row.try_get(2)?)?,
            };
            Ok((block, Numbers::from_bytes(row.try_get(3)?).map_err(Error::internal)?))
        };
        rows.iter().map(numbers).collect()
    }

    /// By COPY, which takes rows faster than any INSERT: what would be a duplicate has been left out already.
    pub(super) async fn insert(&mut self, settling: &mut Settling<'_>) -> Result<()> {
        let mut rows = settling.rows(PIECE)?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut copy = self
            .0
            .copy_in_raw(
                "COPY audit_entries (instance_id, sequence, id, occurred_at, stage, operation_id, content_hash, \
                 leaf_hash, canonical) FROM STDIN (FORMAT binary)",
            )
            .await?;
        let mut data = COPY_BEGIN.to_vec();
        while !rows.is_empty() {
            rows.iter().for_each(|row| put_row(&mut data, row));
            copy.send(std::mem::take(&mut data)).await.map_err(taken_meanwhile)?;
            rows = match settling.rows(PIECE) {
                Ok(rows) => rows,
                Err(error) => {
                    copy.abort("the group cannot be settled").await?;
                    return Err(error);
                }
            };
        }
        copy.send(&COPY_END[..]).await.map_err(taken_meanwhile)?;
        copy.finish().await.map_err(taken_meanwhile)?;
        Ok(())
    }

    pub(super) async fn save_heads(&mut self, heads: &[(&str, Head)]) -> Result<()> {
        let names: Vec<&str> = heads.iter().map(|(instance, _)| *instance).collect();
        let next: Vec<i64> = heads.iter().map(|(_, head)| signed(head.next_sequence)).collect();
        let sizes: Vec<i64> = heads.iter().map(|(_, head)| signed(head.tree_size)).collect();
        let recorded: Vec<i64> = heads.iter().map(|(_, head)| head.recorded_us).collect();
        let frontiers: Vec<&[u8]> = heads.iter().map(|(_, head)| head.frontier.as_slice()).collect();
        sqlx::query(
            "UPDATE audit_log_heads SET next_sequence = new.next, tree_size = new.size, frontier = new.frontier, \
             last_recorded_at = new.recorded \
             FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[]) \
             AS new (instance, next, size, frontier, recorded) WHERE instance_id = new.instance",
        )
        .bind(names)
        .bind(next)
        .bind(sizes)
        .bind(frontiers)
        .bind(recorded)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub(super) async fn save_numbers(&mut self, numbers: &[(&NumberBlock, Vec<u8>)], now_us: i64) -> Result<()> {
        let (producers, epochs, blocks) = columns(numbers.iter().map(|(block, _)| *block));
        let sets: Vec<&[u8]> = numbers.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        sqlx::query(
            "UPDATE audit_producer_numbers p SET numbers = new.numbers, heard_at = $5, \
             since = CASE WHEN length(p.numbers) = 0 THEN $5 ELSE p.since END \
             FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[]) AS new (producer, epoch, block, numbers) \
             WHERE p.producer_id = new.producer AND p.epoch = new.epoch AND p.block = new.block",
        )
        .bind(producers)
        .bind(epochs)
        .bind(blocks)
        .bind(sets)
        .bind(now_us)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    pub(super) async fn save_dropped(&mut self, dropped: &[&Dropped], now_us: i64) -> Result<()> {
        let column =
            |of: fn(&Dropped) -> u64| dropped.iter().map(|range| of(range).cast_signed()).collect::<Vec<i64>>();
        let producers: Vec<&str> = dropped.iter().map(|range| range.producer_id.as_str()).collect();
        sqlx::query(
            "INSERT INTO audit_dropped_ranges (producer_id, epoch, first_sequence, last_sequence, reported_at) \
             SELECT producer, epoch, first, last, $5 \
             FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS new (producer, epoch, first, last) \
             ORDER BY producer COLLATE \"C\", epoch, first, last ON CONFLICT DO NOTHING",
        )
        .bind(producers)
        .bind(column(|range| range.epoch))
        .bind(column(|range| range.first))
        .bind(column(|range| range.last))
        .bind(now_us)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}

/// Appends a row in PostgreSQL's binary format of COPY (section "Binary Format" of its documentation).
fn put_row(data: &mut Vec<u8>, row: &NewRow<'_>) {
    let event = row.event;
    let columns: [&[u8]; 9] = [
        event.instance_id.as_bytes(),
        &signed(row.sequence).to_be_bytes(),
        event.id.as_bytes(),
        &event.occurred_at_us.to_be_bytes(),
        &(event.stage.number() as i16).to_be_bytes(),
        event.operation_id.as_bytes(),
        &event.prefix.content_hash,
        &row.leaf_hash,
        row.canonical.as_bytes(),
    ];
    data.extend_from_slice(&(columns.len() as i16).to_be_bytes());
    for column in columns {
        // Entries are far below 2 GiB.
        data.extend_from_slice(&(column.len() as i32).to_be_bytes());
        data.extend_from_slice(column);
    }
}

/// The columns of blocks, for `unnest`.
fn columns<'a>(blocks: impl Iterator<Item = &'a NumberBlock>) -> (Vec<&'a str>, Vec<i64>, Vec<i64>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        columns.0.push(block.producer_id.as_str());
        columns.1.push(block.epoch.cast_signed());
        columns.2.push(signed(block.block));
    }
    columns
}

/// An id that another replica stored, for another instance, after we had looked: the next try finds it.
fn taken_meanwhile(error: sqlx::Error) -> Error {
    match error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation) {
        true => Error::Contention(std::sync::Arc::new(anyhow::Error::new(error))),
        false => error.into(),
    }
}
