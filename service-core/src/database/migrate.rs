//! Migration at start: one replica migrates, the others wait; a schema that a
//! newer version made is refused.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, SqlxPostgresConnector};
use sea_orm_migration::MigratorTrait;
use sqlx::postgres::PgPoolOptions;

use super::{Database, Engine, postgres_options};

/// Key of the advisory lock: "activity" in ASCII. All services and versions use
/// the same, so that nobody migrates a database while another does.
const MIGRATION_LOCK: i64 = 0x6163_7469_7669_7479;

impl Database {
    /// Brings the schema up to date, or refuses if it is newer than this binary.
    ///
    /// Refuses a migration that doesn't say `use_transaction() -> Some(true)`: by
    /// default it runs outside a transaction on SQLite, and a crash leaves it half
    /// done, so that no later start gets past it.
    ///
    /// Also makes the table `service_state (key, value)` that this crate uses.
    pub async fn migrate<M: MigratorTrait>(&self) -> anyhow::Result<()> {
        let migrated = match self.engine {
            // The file's lock keeps other processes away.
            Engine::Sqlite => up::<M>(&self.writer, "BLOB").await,
            Engine::Postgres => self.migrate_postgres::<M>().await,
        };
        migrated.with_context(|| format!("cannot migrate database {}", self.url))
    }

    async fn migrate_postgres<M: MigratorTrait>(&self) -> anyhow::Result<()> {
        // Connections of its own, without statement time-out: waiting for the
        // lock, and building an index, may take long.
        let pool = PgPoolOptions::new().max_connections(2).connect_with(postgres_options(&self.url, 0)?).await?;
        let mut lock = pool.acquire().await?;
        sqlx::query("SELECT pg_advisory_lock($1)").bind(MIGRATION_LOCK).execute(&mut *lock).await?;
        let migrated = up::<M>(&SqlxPostgresConnector::from_sqlx_postgres_pool(pool.clone()), "BYTEA").await;
        // The lock is the session's: it goes with the connection, come what may.
        drop(lock);
        pool.close().await;
        migrated
    }
}

async fn up<M: MigratorTrait>(db: &DatabaseConnection, bytes: &str) -> anyhow::Result<()> {
    let migrations = M::migrations();
    if let Some(bare) = migrations.iter().find(|migration| migration.use_transaction() != Some(true)) {
        bail!("migration {} does not say use_transaction() -> Some(true)", bare.name());
    }
    let known: BTreeSet<String> = migrations.iter().map(|migration| migration.name().to_owned()).collect();
    let applied = M::get_migration_models(db).await?;
    let newer: Vec<String> =
        applied.into_iter().map(|migration| migration.version).filter(|version| !known.contains(version)).collect();
    if !newer.is_empty() {
        bail!(
            "it holds migration {} that this version does not know: a newer version wrote it, run that one or a later one",
            newer.join(", ")
        );
    }
    M::up(db, None).await?;
    db.execute_unprepared(&format!(
        "CREATE TABLE IF NOT EXISTS service_state (key TEXT PRIMARY KEY, value {bytes} NOT NULL)"
    ))
    .await?;
    Ok(())
}
