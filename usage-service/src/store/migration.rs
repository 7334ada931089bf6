//! The schema, as migrations. A migration that was released is never changed.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

pub(super) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Requests)]
    }
}

/// The tables of the first version.
struct Requests;

impl MigrationName for Requests {
    fn name(&self) -> &str {
        "m0001_requests"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Requests {
    /// On SQLite it is not the default, and half a migration would refuse every
    /// later start.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let engine = match manager.get_database_backend() {
            DbBackend::Sqlite => [("{uuid}", "BLOB"), ("{bytes}", "BLOB")],
            _ => [("{uuid}", "UUID"), ("{bytes}", "BYTEA")],
        };
        let mut sql = REQUESTS.to_owned();
        for (name, column_type) in engine {
            sql = sql.replace(name, column_type);
        }
        db.execute_unprepared(&sql).await?;
        let numbers = match manager.get_database_backend() {
            DbBackend::Sqlite => COMMIT_NUMBERS_SQLITE,
            _ => COMMIT_NUMBERS_POSTGRES,
        };
        db.execute_unprepared(numbers).await?;
        Ok(())
    }
}

/// Absent text is '', so that groups have no nulls. Tokens of one request fit an
/// INTEGER, and PostgreSQL sums those without `numeric`. Times are microseconds
/// since the epoch, money is in nano-dollars, maps are JSON objects or ''.
///
/// The indexes: the key makes writing idempotent; time is how everything is read;
/// a user's requests are how most drill-downs end; a producer's numbers are unique.
const REQUESTS: &str = "
CREATE TABLE usage_charges (
    id BIGINT PRIMARY KEY NOT NULL,
    book_version TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    detail TEXT NOT NULL,
    unpriced_reason TEXT NOT NULL
);
CREATE TABLE usage_producers (
    id BIGINT PRIMARY KEY NOT NULL,
    producer_id TEXT NOT NULL,
    epoch BIGINT NOT NULL
);
CREATE TABLE usage_dropped (
    producer_ref BIGINT NOT NULL,
    first_sequence BIGINT NOT NULL,
    last_sequence BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    PRIMARY KEY (producer_ref, first_sequence, last_sequence)
);
CREATE TABLE usage_requests (
    id {uuid} PRIMARY KEY NOT NULL,
    occurred_at BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    commit_number BIGINT NOT NULL,
    instance_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    team_id TEXT NOT NULL,
    api_key_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    requested_model TEXT NOT NULL,
    model TEXT NOT NULL,
    status SMALLINT NOT NULL,
    operation TEXT NOT NULL,
    input_uncached INTEGER NOT NULL,
    input_cache_read INTEGER NOT NULL,
    input_cache_write INTEGER NOT NULL,
    input_cache_write_1h INTEGER NOT NULL,
    output INTEGER NOT NULL,
    output_reasoning INTEGER NOT NULL,
    other_units TEXT NOT NULL,
    latency_us BIGINT,
    time_to_first_token_us BIGINT,
    service_tier TEXT NOT NULL,
    processing TEXT NOT NULL,
    request_id TEXT NOT NULL,
    labels TEXT NOT NULL,
    price_conditions TEXT NOT NULL,
    cost_nanos BIGINT,
    charge_ref BIGINT NOT NULL,
    producer_ref BIGINT,
    producer_sequence BIGINT,
    content_hash {bytes} NOT NULL
);
CREATE INDEX usage_requests_time ON usage_requests (occurred_at, id);
CREATE INDEX usage_requests_user ON usage_requests (user_id, occurred_at, id);
CREATE UNIQUE INDEX usage_requests_producer ON usage_requests (producer_ref, producer_sequence)
    WHERE producer_ref IS NOT NULL;
";

/// One writer at a time: a row that each transaction counts up.
const COMMIT_NUMBERS_SQLITE: &str = "
CREATE TABLE usage_commits (last BIGINT NOT NULL);
INSERT INTO usage_commits (last) VALUES (0);
";

/// Many writers, that must not wait for each other.
const COMMIT_NUMBERS_POSTGRES: &str = "CREATE SEQUENCE usage_commit_number";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_is_whole_or_not_at_all() {
        for migration in Migrator::migrations() {
            assert_eq!(migration.use_transaction(), Some(true), "{}", migration.name());
        }
    }
}
