//! Citus: tables that are spread over the workers of a cluster.
//!
//! Every connection goes to the coordinator. What is not said to be spread stays a
//! table of the coordinator alone; so do sequences and advisory locks, and with them
//! what they promise.
//!
//! ```text
//! migrate ─ lock ─ schema ─ unlock       as on any PostgreSQL
//! distribute ─ lock ─ for each table: spread as it should be? ─ spread ─ unlock
//! ```
//!
//! A table is spread once, by the first start that says how many shards; what is in
//! it moves with it, in one transaction. Later starts find it done.

use std::num::NonZeroU32;

use anyhow::Context as _;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};

use super::migrate::MIGRATION_LOCK;
use super::{Database, postgres_options};
use crate::config::{ConfigError, DatabaseConfig, DatabaseUrl};

/// What sessions set on a cluster. Without it, Citus lets two statements that insert
/// several rows into one table wait for each other until the other commits, whatever
/// rows they are. We need no such order: rows are only inserted, whoever comes second
/// with the same key is told so by the key.
const SESSION: &[(&str, &str)] = &[("citus.all_modifications_commutative", "on")];

/// A table of a cluster's, and where its rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distributed {
    /// The table's name.
    pub table: &'static str,
    /// Where its rows are.
    pub spread: Spread,
}

/// Where the rows of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Each in the shard that the hash of this column says.
    By(&'static str),
    /// All of them on every node: for small tables that others refer to.
    Everywhere,
}

impl Spread {
    /// As `citus_tables` tells it: the kind, and the column.
    fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::By(column) => ("distributed", column),
            Self::Everywhere => ("reference", "<none>"),
        }
    }
}

/// What a session sets for this configuration.
pub(super) fn session(config: &DatabaseConfig) -> &'static [(&'static str, &'static str)] {
    match config.citus_shards {
        Some(_) => SESSION,
        None => &[],
    }
}

impl Database {
    /// Spreads these tables over the workers, those first that others refer to. Does
    /// nothing where `citus_shards` is not set, and for tables that are spread already.
    ///
    /// Call it after [`Database::migrate`]. Done by the account that migrates.
    pub async fn distribute(&self, tables: &[Distributed]) -> anyhow::Result<()> {
        let Some(shards) = self.citus_shards else {
            return Ok(());
        };
        let url = self.migrator_url.as_ref().unwrap_or(&self.url);
        // Connections of its own, without statement time-out: rows that are there move.
        let pool = PgPoolOptions::new().max_connections(2).connect_with(postgres_options(url, 0, self.tls)?).await?;
        let mut lock = pool.acquire().await?;
        sqlx::query("SELECT pg_advisory_lock($1)").bind(MIGRATION_LOCK).execute(&mut *lock).await?;
        let spread = async {
            let mut connection = pool.acquire().await?;
            for table in tables {
                distribute(&mut connection, *table, shards)
                    .await
                    .with_context(|| format!("cannot spread table {} over the workers of {url}", table.table))?;
            }
            anyhow::Ok(())
        };
        let spread = spread.await;
        // The lock is the session's: it goes with the connection, come what may.
        drop(lock);
        pool.close().await;
        spread
    }
}

/// Refuses what is not a cluster's coordinator, where it is said to be one: before
/// anything is made there.
pub(super) async fn check(pool: &PgPool, url: &DatabaseUrl, config: &DatabaseConfig) -> anyhow::Result<()> {
    let Some(shards) = config.citus_shards else {
        return Ok(());
    };
    let refused = |why: &str| {
        let why = format!("database.citus_shards is {shards}, and {url} {why}");
        anyhow::Error::from(ConfigError::Refused(why))
    };
    let extension: Option<i32> =
        sqlx::query_scalar("SELECT 1 FROM pg_extension WHERE extname = 'citus'").fetch_optional(pool).await?;
    if extension.is_none() {
        return Err(refused("has no extension citus, allowed is a database that has, or no citus_shards"));
    }
    let coordinator: bool = sqlx::query_scalar("SELECT citus_is_coordinator()").fetch_one(pool).await?;
    if !coordinator {
        return Err(refused("is a worker, allowed is the coordinator of the cluster"));
    }
    Ok(())
}

async fn distribute(connection: &mut PgConnection, table: Distributed, shards: NonZeroU32) -> anyhow::Result<()> {
    let Distributed { table, spread } = table;
    let mut transaction = connection.begin().await?;
    let told: Option<(String, String)> = sqlx::query_as(
        "SELECT citus_table_type, distribution_column FROM citus_tables WHERE table_name = to_regclass($1)",
    )
    .bind(table)
    .fetch_optional(&mut *transaction)
    .await?;
    match told {
        Some((kind, column)) if (kind.as_str(), column.as_str()) == spread.told() => return Ok(()),
        // One of the coordinator's that Citus knows of: it can become any other.
        Some((kind, _)) if kind == "local" => {}
        Some((kind, column)) => {
            let (wanted, by) = spread.told();
            let why = format!("table {table} is {kind} (column {column}), allowed is {wanted} (column {by})");
            return Err(ConfigError::Refused(why).into());
        }
        None => {}
    }
    match spread {
        Spread::By(column) => {
            sqlx::query("SELECT create_distributed_table($1::regclass, $2, shard_count => $3)")
                .bind(table)
                .bind(column)
                .bind(i32::try_from(shards.get()).context("the number of shards")?)
                .execute(&mut *transaction)
                .await?;
        }
        Spread::Everywhere => {
            sqlx::query("SELECT create_reference_table($1::regclass)").bind(table).execute(&mut *transaction).await?;
        }
    }
    // What was copied is still where it was, where nobody sees it.
    sqlx::query("SELECT truncate_local_data_after_distributing_table($1::regclass)")
        .bind(table)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    tracing::info!(table, ?spread, shards, "spread over the workers");
    Ok(())
}
