//! The statements of a write on SQLite: one writer, so nothing needs a lock of its own.
//!
//! Lists come in a few fixed sizes, so that the statements stay prepared. The parameters of lists have no numbers:
//! numbered ones have names, which the driver asks for one by one and SQLite looks for in a list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use sea_orm::DatabaseConnection;
use service_core::error::{Error, Result};
use service_core::numbers::Numbers;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, Row as _, Sqlite};
use uuid::Uuid;

use super::{Bind, Known, NewRow, Settling};
use crate::event::Dropped;
use crate::merkle::Hash;
use crate::numbers::NumberBlock;
use crate::store::tree::{FullTile, Head, LEAVES};
use crate::store::{hash, signed, unsigned};

const INSERT_COLUMNS: usize = 9;

/// INSERT statements by their number of rows, the largest first. What a larger one needs of memory no longer fits the
/// processor's caches: 512 rows take half as long again.
static INSERTS: LazyLock<[(usize, String); 3]> = LazyLock::new(|| [64, 8, 1].map(|rows| (rows, insert_sql(rows))));
/// Rows that are made at once.
const PIECE: usize = 64;

/// SELECT statements by their number of ids, the largest first. Each id is bound once for what is
/// here, and once for what is archived.
static KNOWN: LazyLock<[(usize, String); 3]> = LazyLock::new(|| {
    [256, 16, 1].map(|ids| {
        let list = vec!["?"; ids].join(",");
        let of = |table| format!("SELECT id, content_hash, sequence, leaf_hash FROM {table} WHERE id IN ({list})");
        (ids, format!("{} UNION ALL {}", of("audit_entries"), of("audit_archived")))
    })
});

fn insert_sql(rows: usize) -> String {
    let row = format!("({})", ["?"; INSERT_COLUMNS].join(","));
    format!(
        "INSERT INTO audit_entries (instance_id, sequence, id, occurred_at, stage, operation_id, content_hash, \
         leaf_hash, canonical) VALUES {}",
        vec![row; rows].join(",")
    )
}

/// Cuts a list into pieces for which a statement is at hand.
fn pieces<'a, T>(
    mut list: &'a [T],
    statements: &'static [(usize, String)],
) -> impl Iterator<Item = (&'a [T], &'static str)> {
    std::iter::from_fn(move || {
        let (size, sql) = statements.iter().find(|(size, _)| *size <= list.len())?;
        let (piece, rest) = list.split_at(*size);
        list = rest;
        Some((piece, sql.as_str()))
    })
}

pub(in crate::store) struct Transaction(sqlx::Transaction<'static, Sqlite>);

impl Transaction {
    pub(super) async fn begin(writer: &DatabaseConnection) -> Result<Self> {
        Ok(Self(writer.get_sqlite_connection_pool().begin_with("BEGIN IMMEDIATE").await?))
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

    pub(super) async fn lock_heads(&mut self, instances: &BTreeSet<&str>) -> Result<BTreeMap<String, Head>> {
        let mut heads = BTreeMap::new();
        for instance in instances {
            let sql = "SELECT next_sequence, tree_size, frontier, kept_from, last_recorded_at FROM audit_log_heads \
                       WHERE instance_id = $1";
            let row = sqlx::query(sql).bind(*instance).fetch_optional(&mut *self.0).await?;
            let head = row.map(|row| {
                let head = Head::new(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)?;
                Ok::<_, Error>(head.with(row.try_get(3)?, row.try_get(4)?))
            });
            let head = head.transpose()?;
            heads.insert((*instance).to_owned(), head.unwrap_or_else(Head::empty));
        }
        Ok(heads)
    }

    /// Leaf hashes of pieces of logs.
    pub(super) async fn leaves(&mut self, wanted: &[(&str, Range<u64>)]) -> Result<HashMap<String, Vec<Hash>>> {
        let mut leaves = HashMap::new();
        for (instance, range) in wanted {
            let hashes: Vec<Vec<u8>> = sqlx::query_scalar(LEAVES)
                .bind(*instance)
                .bind(signed(range.start))
                .bind(signed(range.end))
                .fetch_all(&mut *self.0)
                .await?;
            leaves.insert((*instance).to_owned(), hashes.into_iter().map(hash).collect::<Result<_>>()?);
        }
        Ok(leaves)
    }

    /// Roots of tiles of one level.
    pub(super) async fn roots(&mut self, instance: &str, level: u8, tiles: Range<u64>) -> Result<Vec<Hash>> {
        let roots: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT root FROM audit_tiles WHERE instance_id = $1 AND level = $2 AND tile >= $3 AND tile < $4 \
             ORDER BY tile",
        )
        .bind(instance)
        .bind(i64::from(level))
        .bind(signed(tiles.start))
        .bind(signed(tiles.end))
        .fetch_all(&mut *self.0)
        .await?;
        roots.into_iter().map(hash).collect()
    }

    pub(super) async fn insert_tiles(&mut self, tiles: &[(&str, &FullTile)]) -> Result<()> {
        for (instance, full) in tiles {
            sqlx::query("INSERT INTO audit_tiles (instance_id, level, tile, root, hashes) VALUES ($1, $2, $3, $4, $5)")
                .bind(*instance)
                .bind(i64::from(full.id.level))
                .bind(signed(full.id.index))
                .bind(&full.root[..])
                .bind(full.tile.to_bytes())
                .execute(&mut *self.0)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn known(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, Known>> {
        let mut known = HashMap::new();
        for (ids, sql) in pieces(ids, &*KNOWN) {
            let query = ids.iter().chain(ids).fold(sqlx::query(sql), |query, id| query.bind(*id));
            for row in query.fetch_all(&mut *self.0).await? {
                let row: &SqliteRow = &row;
                let known_row = Known {
                    content_hash: hash(row.try_get(1)?)?,
                    sequence: unsigned(row.try_get(2)?)?,
                    leaf_hash: hash(row.try_get(3)?)?,
                };
                known.insert(row.try_get(0)?, known_row);
            }
        }
        Ok(known)
    }

    pub(super) async fn lock_numbers(
        &mut self,
        blocks: &BTreeSet<NumberBlock>,
    ) -> Result<BTreeMap<NumberBlock, Numbers>> {
        let mut numbers = BTreeMap::new();
        for block in blocks {
            let row = sqlx::query(
                "SELECT numbers FROM audit_producer_numbers WHERE producer_id = $1 AND epoch = $2 AND block = $3",
            )
            .bind(block.producer_id.as_str())
            .bind(block.epoch.cast_signed())
            .bind(signed(block.block))
            .fetch_optional(&mut *self.0)
            .await?;
            if let Some(row) = row {
                let bytes: Vec<u8> = row.try_get(0)?;
                numbers.insert(block.clone(), Numbers::from_bytes(&bytes).map_err(Error::internal)?);
            }
        }
        Ok(numbers)
    }

    /// While SQLite's own thread works on one piece, the next one is made here.
    pub(super) async fn insert(&mut self, settling: &mut Settling<'_>) -> Result<()> {
        let mut statements = statements_of(settling.rows(PIECE)?)?;
        while !statements.is_empty() {
            let executing = async {
                for (sql, arguments) in statements {
                    sqlx::query_with(sql, arguments).execute(&mut *self.0).await?;
                }
                Ok::<_, Error>(())
            };
            // In this order: the first hands its work over, and then waits.
            let (executed, next) = futures::join!(executing, async { statements_of(settling.rows(PIECE)?) });
            executed?;
            statements = next?;
        }
        Ok(())
    }

    pub(super) async fn save_heads(&mut self, heads: &[(&str, Head)]) -> Result<()> {
        for (instance, head) in heads {
            sqlx::query(
                "INSERT INTO audit_log_heads (instance_id, next_sequence, tree_size, frontier, last_recorded_at) \
                 VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT (instance_id) DO UPDATE SET next_sequence = excluded.next_sequence, \
                 tree_size = excluded.tree_size, frontier = excluded.frontier, \
                 last_recorded_at = excluded.last_recorded_at",
            )
            .bind(*instance)
            .bind(signed(head.next_sequence))
            .bind(signed(head.tree_size))
            .bind(head.frontier.as_slice())
            .bind(head.recorded_us)
            .execute(&mut *self.0)
            .await?;
        }
        Ok(())
    }

    pub(super) async fn save_numbers(&mut self, numbers: &[(&NumberBlock, Vec<u8>)], now_us: i64) -> Result<()> {
        for (block, bytes) in numbers {
            sqlx::query(
                "INSERT INTO audit_producer_numbers (producer_id, epoch, block, numbers, since, heard_at) \
                 VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT (producer_id, epoch, block) \
                 DO UPDATE SET numbers = excluded.numbers, heard_at = excluded.heard_at",
            )
            .bind(block.producer_id.as_str())
            .bind(block.epoch.cast_signed())
            .bind(signed(block.block))
            .bind(bytes.as_slice())
            .bind(now_us)
            .execute(&mut *self.0)
            .await?;
        }
        Ok(())
    }

    pub(super) async fn save_dropped(&mut self, dropped: &[&Dropped], now_us: i64) -> Result<()> {
        for range in dropped {
            sqlx::query(
                "INSERT INTO audit_dropped_ranges (producer_id, epoch, first_sequence, last_sequence, reported_at) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            )
            .bind(range.producer_id.as_str())
            .bind(range.epoch.cast_signed())
            .bind(range.first.cast_signed())
            .bind(range.last.cast_signed())
            .bind(now_us)
            .execute(&mut *self.0)
            .await?;
        }
        Ok(())
    }
}

/// The statements that insert these rows, with their arguments.
fn statements_of(mut rows: Vec<NewRow<'_>>) -> Result<Vec<(&'static str, SqliteArguments)>> {
    let mut statements = Vec::new();
    while let Some((size, sql)) = INSERTS.iter().find(|(size, _)| *size <= rows.len()) {
        let mut arguments = SqliteArguments::default();
        arguments.reserve(size * INSERT_COLUMNS, 0);
        // Most rows are of one instance, and of no operation: such a text is copied once.
        let mut instance: Arc<str> = Arc::from("");
        let mut operation = Arc::clone(&instance);
        for row in rows.drain(..size) {
            let event = row.event;
            for (last, text) in [(&mut instance, &event.instance_id), (&mut operation, &event.operation_id)] {
                if **last != **text {
                    *last = Arc::from(text.as_str());
                }
            }
            bind(&mut arguments, Arc::clone(&instance))?;
            bind(&mut arguments, signed(row.sequence))?;
            bind(&mut arguments, event.id)?;
            bind(&mut arguments, event.occurred_at_us)?;
            bind(&mut arguments, event.stage.number())?;
            bind(&mut arguments, Arc::clone(&operation))?;
            bind(&mut arguments, &event.prefix.content_hash[..])?;
            bind(&mut arguments, &row.leaf_hash[..])?;
            bind(&mut arguments, row.canonical)?;
        }
        statements.push((sql.as_str(), arguments));
    }
    Ok(statements)
}

fn bind<'q>(arguments: &mut SqliteArguments, value: impl sqlx::Encode<'q, Sqlite> + sqlx::Type<Sqlite>) -> Result<()> {
    arguments.add(value).map_err(|error| Error::from(sqlx::Error::Encode(error)))
}
