//! The schema, as migrations. A migration that was released is never changed.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;
use service_core::database::Grant;

pub(super) struct Migrator;

/// What the account that serves may do on PostgreSQL, where another one migrates:
/// requests are only ever added. Partitions come and go, and the horizon of retention
/// moves, by the owner's functions.
pub(super) const GRANTS: &[Grant] = &[
    Grant { rights: "SELECT, INSERT", on: "usage_requests" },
    Grant { rights: "SELECT, INSERT", on: "usage_charges" },
    Grant { rights: "SELECT, INSERT", on: "usage_producers" },
    Grant { rights: "SELECT, INSERT", on: "usage_dropped" },
    Grant { rights: "SELECT, INSERT, UPDATE", on: "usage_producer_numbers" },
    Grant { rights: "USAGE, SELECT", on: "SEQUENCE usage_commit_number" },
    Grant { rights: "SELECT, INSERT, UPDATE, DELETE", on: "usage_deltas" },
    Grant { rights: "SELECT, INSERT, UPDATE, DELETE", on: "usage_values" },
    Grant { rights: "SELECT, INSERT, UPDATE, DELETE", on: "usage_spans" },
    Grant { rights: "SELECT, INSERT, UPDATE, DELETE", on: "usage_segments" },
    Grant { rights: "SELECT, INSERT, DELETE", on: "usage_rollup" },
    Grant { rights: "SELECT", on: "usage_retention" },
    Grant { rights: "EXECUTE", on: "FUNCTION usage_partition_bound(date)" },
    Grant { rights: "EXECUTE", on: "FUNCTION usage_add_partition(date)" },
    Grant { rights: "EXECUTE", on: "FUNCTION usage_drop_partition(date)" },
    Grant { rights: "EXECUTE", on: "FUNCTION usage_remove_requests(integer)" },
    Grant { rights: "EXECUTE", on: "FUNCTION usage_retain(bigint, bigint)" },
];

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Requests), Box::new(Coverage), Box::new(Writers)]
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
        let (types, own) = match manager.get_database_backend() {
            DbBackend::Sqlite => (SQLITE_TYPES, SQLITE),
            _ => (POSTGRES_TYPES, POSTGRES),
        };
        let sql = types.iter().fold(TABLES.to_owned(), |sql, (name, own)| sql.replace(name, own));
        db.execute_unprepared(&sql).await?;
        for statement in own {
            db.execute_unprepared(statement).await?;
        }
        Ok(())
    }
}

/// When producers were heard.
struct Coverage;

impl MigrationName for Coverage {
    fn name(&self) -> &str {
        "m0002_coverage"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Coverage {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(COVERAGE).await.map(drop)
    }
}

/// Who wrote each request.
struct Writers;

impl MigrationName for Writers {
    fn name(&self) -> &str {
        "m0003_writers"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Writers {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(WRITERS).await.map(drop)
    }
}

/// 0: before this was noted.
const COVERAGE: &str = "
ALTER TABLE usage_producer_numbers ADD COLUMN since BIGINT NOT NULL DEFAULT 0;
ALTER TABLE usage_producer_numbers ADD COLUMN heard_at BIGINT NOT NULL DEFAULT 0;
";

/// Empty: nobody was authenticated, or it was before this was noted.
const WRITERS: &str = "ALTER TABLE usage_requests ADD COLUMN recorded_by TEXT NOT NULL DEFAULT ''";

const SQLITE_TYPES: &[(&str, &str)] = &[("{uuid}", "BLOB"), ("{bytes}", "BLOB"), ("{partitioned}", "")];
const POSTGRES_TYPES: &[(&str, &str)] =
    &[("{uuid}", "UUID"), ("{bytes}", "BYTEA"), ("{partitioned}", "PARTITION BY RANGE (id)")];

/// Absent text is '', so that groups have no nulls. Tokens of one request fit an
/// INTEGER, and PostgreSQL sums those without `numeric`. Times are microseconds
/// since the epoch, money is in nano-dollars, maps are JSON objects or ''.
///
/// The indexes: the key makes writing idempotent; time is how everything is read;
/// a user's requests are how most drill-downs end. Numbers of producers are sets
/// (`usage_producer_numbers`), which cost a row a group and not an entry a request.
const TABLES: &str = "
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
CREATE TABLE usage_producer_numbers (
    producer_ref BIGINT NOT NULL,
    block BIGINT NOT NULL,
    numbers {bytes} NOT NULL,
    PRIMARY KEY (producer_ref, block)
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
) {partitioned};
CREATE INDEX usage_requests_time ON usage_requests (occurred_at, id);
CREATE INDEX usage_requests_user ON usage_requests (user_id, occurred_at, id);

CREATE TABLE usage_deltas (
    commit_number BIGINT PRIMARY KEY NOT NULL,
    data {bytes} NOT NULL
);
CREATE TABLE usage_values (
    dimension SMALLINT NOT NULL,
    id INTEGER NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (dimension, id),
    UNIQUE (dimension, value)
);
CREATE TABLE usage_spans (
    level SMALLINT NOT NULL,
    start_us BIGINT NOT NULL,
    instance INTEGER NOT NULL,
    version BIGINT NOT NULL,
    PRIMARY KEY (level, start_us, instance)
);
CREATE INDEX usage_spans_version ON usage_spans (version);
CREATE TABLE usage_segments (
    level SMALLINT NOT NULL,
    start_us BIGINT NOT NULL,
    instance INTEGER NOT NULL,
    cut SMALLINT NOT NULL,
    data {bytes} NOT NULL,
    PRIMARY KEY (level, cut, start_us, instance)
);
CREATE TABLE usage_rollup (
    version BIGINT PRIMARY KEY NOT NULL,
    previous BIGINT NOT NULL UNIQUE
);
CREATE TABLE usage_retention (requests_before BIGINT NOT NULL, rollups_before BIGINT NOT NULL);
INSERT INTO usage_retention (requests_before, rollups_before) VALUES (-9223372036854775808, -9223372036854775808);
";

/// One writer at a time: a row that each transaction counts up.
const SQLITE: &[&str] = &["
CREATE TABLE usage_commits (last BIGINT NOT NULL);
INSERT INTO usage_commits (last) VALUES (0);
"];

/// Many writers, that must not wait for each other, count by a sequence. Blobs are
/// compressed already. The rest is about partitions: see `partitions`.
const POSTGRES: &[&str] = &[
    "CREATE SEQUENCE usage_commit_number",
    "ALTER TABLE usage_deltas ALTER COLUMN data SET STORAGE EXTERNAL",
    "ALTER TABLE usage_segments ALTER COLUMN data SET STORAGE EXTERNAL",
    "ALTER TABLE usage_producer_numbers ALTER COLUMN numbers SET STORAGE EXTERNAL",
    "CREATE TABLE usage_requests_default PARTITION OF usage_requests DEFAULT",
    PARTITION_BOUND,
    ADD_PARTITION,
    DROP_PARTITION,
    REMOVE_REQUESTS,
    RETAIN,
    OWN_FUNCTIONS,
];

/// The least UUIDv7 of a day (UTC).
const PARTITION_BOUND: &str = "
CREATE FUNCTION usage_partition_bound(day date) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex((day - date '1970-01-01')::bigint * 86400000), 12, '0') || repeat('0', 20))::uuid
$$";

/// Makes the partition of a day; whether there is one afterwards. There is none of
/// a day that retention has removed, nor of one whose requests are in the default
/// partition already: those stay there.
///
/// ATTACH lets writers and readers go on where CREATE … PARTITION OF would stop
/// them; only who uses the default partition is waited for, and not for long.
const ADD_PARTITION: &str = "
CREATE FUNCTION usage_add_partition(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '1s' AS $$
DECLARE
    partition text := 'usage_requests_p' || to_char(day, 'YYYYMMDD');
BEGIN
    IF to_regclass(format('%I.%I', current_schema(), partition)) IS NOT NULL THEN
        RETURN true;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('usage_requests'), hashtext('partitions'));
    IF to_regclass(format('%I.%I', current_schema(), partition)) IS NOT NULL THEN
        RETURN true;
    END IF;
    IF EXISTS (SELECT 1 FROM usage_retention WHERE requests_before >= ((day - date '1970-01-01') + 2) * 86400000000) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE usage_requests INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition);
    EXECUTE format('ALTER TABLE usage_requests ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        partition, usage_partition_bound(day), usage_partition_bound(day + 1));
    RETURN true;
EXCEPTION
    WHEN check_violation THEN RETURN false;
    -- Made while we waited: a session learns of another's tables when it locks one.
    WHEN duplicate_table THEN RETURN true;
END $$";

/// Removes the partition of a day; whether there was one. The time in an id is
/// within 24 hours of its request's, so a day is over for retention when the day
/// after it is.
const DROP_PARTITION: &str = "
CREATE FUNCTION usage_drop_partition(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '100ms' AS $$
DECLARE
    partition text := 'usage_requests_p' || to_char(day, 'YYYYMMDD');
BEGIN
    IF NOT EXISTS (SELECT 1 FROM usage_retention
                   WHERE requests_before >= ((day - date '1970-01-01') + 2) * 86400000000) THEN
        RAISE EXCEPTION 'requests of % are not all before usage_retention.requests_before', day;
    END IF;
    IF to_regclass(format('%I.%I', current_schema(), partition)) IS NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE %I', partition);
    RETURN true;
END $$";

/// Removes some requests of the default partition that retention has let go; how
/// many. All other partitions go as a whole.
const REMOVE_REQUESTS: &str = "
CREATE FUNCTION usage_remove_requests(at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM usage_requests_default WHERE id IN (
        SELECT id FROM usage_requests_default
        WHERE occurred_at < (SELECT requests_before FROM usage_retention)
        ORDER BY occurred_at, id LIMIT at_most);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END $$";

/// Moves the horizons of requests and of sums, only ever forward, and never over the
/// last 24 hours: what those hold, nobody's retention lets go.
const RETAIN: &str = "
CREATE FUNCTION usage_retain(requests bigint, rollups bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF GREATEST(requests, rollups) > (extract(epoch FROM now()) * 1000000)::bigint - 86400000000 THEN
        RAISE EXCEPTION 'the horizons % and % are not all a day ago', requests, rollups;
    END IF;
    UPDATE usage_retention
    SET requests_before = GREATEST(requests_before, requests), rollups_before = GREATEST(rollups_before, rollups);
END $$";

/// Who calls a function that runs with its owner's rights must not choose what its
/// names mean; and nobody calls one whom the owner has not let.
const OWN_FUNCTIONS: &str = "
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['usage_partition_bound(date)', 'usage_add_partition(date)',
                                'usage_drop_partition(date)', 'usage_remove_requests(integer)',
                                'usage_retain(bigint, bigint)'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', name);
    END LOOP;
END $$";

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
