//! Migration at start: one replica migrates, the others wait; a schema that a
//! newer version made is refused.
//!
//! Where the account that migrates is not the one that serves, the latter is given
//! what it needs, table by table, and nothing else: it owns nothing, so it cannot
//! alter or drop a table, nor switch a trigger off.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, SqlxPostgresConnector, Statement};
use sea_orm_migration::MigratorTrait;
use sqlx::postgres::PgPoolOptions;

use super::{Database, Engine, Tls, postgres_options};
use crate::config::DatabaseUrl;

/// Key of the advisory lock: "activity" in ASCII. All services and versions use
/// the same, so that nobody migrates a database while another does.
pub(super) const MIGRATION_LOCK: i64 = 0x6163_7469_7669_7479;

/// What the account that serves may do with one thing of the schema.
#[derive(Debug, Clone, Copy)]
pub struct Grant {
    /// `SELECT, INSERT` or the like.
    pub rights: &'static str,
    /// A table's name, or `SEQUENCE name`, or `FUNCTION name(types)`.
    pub on: &'static str,
}

/// Of what this crate makes itself, and what it reads to know of migrations.
const OWN_GRANTS: [Grant; 2] = [
    Grant { rights: "SELECT, INSERT, UPDATE", on: "service_state" },
    Grant { rights: "SELECT", on: "seaql_migrations" },
];

impl Database {
    /// Brings the schema up to date, or refuses if it is newer than this binary.
    ///
    /// Refuses a migration that doesn't say `use_transaction() -> Some(true)`: by
    /// default it runs outside a transaction on SQLite, and a crash leaves it half
    /// done, so that no later start gets past it.
    ///
    /// Also makes the table `service_state (key, value)` that this crate uses. `grants`
    /// are for the account of `database_url`, where `migrator_url` names another one.
    pub async fn migrate<M: MigratorTrait>(&self, grants: &[Grant]) -> anyhow::Result<()> {
        self.migrate_for::<M>(grants, &[]).await
    }

    /// The same, with further accounts and what each of them may do.
    pub async fn migrate_for<M: MigratorTrait>(
        &self,
        grants: &[Grant],
        others: &[(&DatabaseUrl, &[Grant])],
    ) -> anyhow::Result<()> {
        let url = self.migrator_url.as_ref().unwrap_or(&self.url);
        let migrated = match self.engine {
            // The file's lock keeps other processes away.
            Engine::Sqlite => up::<M>(&self.writer, "BLOB").await,
            Engine::Postgres => self.migrate_postgres::<M>(url, grants, others).await,
        };
        migrated.with_context(|| format!("cannot migrate database {url}"))
    }

    async fn migrate_postgres<M: MigratorTrait>(
        &self,
        url: &DatabaseUrl,
        grants: &[Grant],
        others: &[(&DatabaseUrl, &[Grant])],
    ) -> anyhow::Result<()> {
        // Connections of its own, without statement time-out: waiting for the
        // lock, and building an index, may take long.
        let pool = PgPoolOptions::new().max_connections(2).connect_with(postgres_options(url, 0, self.tls)?).await?;
        let mut lock = pool.acquire().await?;
        sqlx::query("SELECT pg_advisory_lock($1)").bind(MIGRATION_LOCK).execute(&mut *lock).await?;
        let db = SqlxPostgresConnector::from_sqlx_postgres_pool(pool.clone());
        let migrated = async {
            up::<M>(&db, "BYTEA").await?;
            if self.migrator_url.is_some() {
                self.grant(&db, grants).await?;
                for (url, grants) in others {
                    grant_to(&db, &account(url)?, grants).await?;
                }
            }
            anyhow::Ok(())
        };
        let migrated = migrated.await;
        // The lock is the session's: it goes with the connection, come what may.
        drop(lock);
        pool.close().await;
        migrated
    }

    /// Gives the account that serves what it needs, and takes what it had besides; and
    /// lets that of the replica read. In one transaction, so that those who serve
    /// meanwhile miss nothing.
    async fn grant(&self, db: &DatabaseConnection, grants: &[Grant]) -> anyhow::Result<()> {
        let writer = account(&self.url)?;
        let reader = self.replica.as_ref().map(|replica| account(replica.url())).transpose()?;
        let mut sql = granting(&writer, OWN_GRANTS.iter().chain(grants));
        // Not the first: the key that seals tokens is nobody else's.
        for Grant { on, .. } in grants.iter().filter(|grant| !grant.on.contains(' ')) {
            if let Some(reader) = reader.as_ref().filter(|reader| **reader != writer) {
                sql.push_str(&format!("REVOKE ALL ON {on} FROM {reader};\nGRANT SELECT ON {on} TO {reader};\n"));
            }
        }
        // Several statements of one message are one transaction.
        db.execute_unprepared(&sql).await.with_context(|| format!("cannot let account {writer} use the schema"))?;
        Ok(())
    }
}

/// Gives an account what it needs, and takes what it had besides.
async fn grant_to(db: &DatabaseConnection, account: &str, grants: &[Grant]) -> anyhow::Result<()> {
    let granted = db.execute_unprepared(&granting(account, grants.iter())).await;
    granted.map(drop).with_context(|| format!("cannot let account {account} use the schema"))
}

fn granting<'a>(account: &str, grants: impl Iterator<Item = &'a Grant>) -> String {
    let grant = |Grant { rights, on }: &Grant| {
        format!("REVOKE ALL ON {on} FROM {account};\nGRANT {rights} ON {on} TO {account};\n")
    };
    grants.map(grant).collect()
}

/// A URL's account, as SQL names it.
fn account(url: &DatabaseUrl) -> anyhow::Result<String> {
    let options = postgres_options(url, 0, Tls::AsSaid)?;
    Ok(format!("\"{}\"", options.get_username().replace('"', "\"\"")))
}

async fn up<M: MigratorTrait>(db: &DatabaseConnection, bytes: &str) -> anyhow::Result<()> {
    let migrations = M::migrations();
    if let Some(bare) = migrations.iter().find(|migration| migration.use_transaction() != Some(true)) {
        bail!("migration {} does not say use_transaction() -> Some(true)", bare.name());
    }
    let known: BTreeSet<String> = migrations.iter().map(|migration| migration.name().to_owned()).collect();
    let applied = applied(db).await?;
    let newer: Vec<&str> = applied.difference(&known).map(String::as_str).collect();
    if !newer.is_empty() {
        bail!(
            "it holds migration {} that this version does not know: a newer version wrote it, run that one or a later one",
            newer.join(", ")
        );
    }
    if applied == known && db.execute_unprepared("SELECT 1 FROM service_state LIMIT 1").await.is_ok() {
        // Nothing to do needs no right to do it: the account that serves may be the only one that is given.
        return Ok(());
    }
    M::up(db, None).await?;
    db.execute_unprepared(&format!(
        "CREATE TABLE IF NOT EXISTS service_state (key TEXT PRIMARY KEY, value {bytes} NOT NULL)"
    ))
    .await?;
    Ok(())
}

/// The migrations that were made; none where there is no table of them yet.
async fn applied(db: &DatabaseConnection) -> anyhow::Result<BTreeSet<String>> {
    let backend = db.get_database_backend();
    let there = match backend {
        DbBackend::Sqlite => "SELECT 1 FROM sqlite_master WHERE name = 'seaql_migrations'",
        _ => "SELECT 1 WHERE to_regclass('seaql_migrations') IS NOT NULL",
    };
    if db.query_one_raw(Statement::from_string(backend, there)).await?.is_none() {
        return Ok(BTreeSet::new());
    }
    let rows = db.query_all_raw(Statement::from_string(backend, "SELECT version FROM seaql_migrations")).await?;
    Ok(rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?)
}
