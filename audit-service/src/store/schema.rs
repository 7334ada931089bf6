//! The tables, by migrations that are never changed once released.

use sea_orm::{ConnectionTrait as _, DbBackend};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, MigratorTrait, SchemaManager, async_trait};
use service_core::database::Grant;

mod archive;

pub(super) struct Migrator;

/// What the account that serves may do on PostgreSQL, where another one migrates: entries are only ever added.
pub(super) const GRANTS: &[Grant] = &[
    Grant { rights: "SELECT, INSERT", on: "audit_entries" },
    Grant { rights: "SELECT, INSERT, UPDATE", on: "audit_log_heads" },
    Grant { rights: "SELECT, INSERT", on: "audit_tiles" },
    Grant { rights: "SELECT, INSERT", on: "audit_checkpoints" },
    Grant { rights: "SELECT, INSERT, UPDATE", on: "audit_newest_checkpoints" },
    Grant { rights: "SELECT, INSERT, UPDATE", on: "audit_signing_keys" },
    Grant { rights: "SELECT, INSERT, UPDATE", on: "audit_producer_numbers" },
    Grant { rights: "SELECT, INSERT", on: "audit_dropped_ranges" },
    Grant { rights: "SELECT, INSERT, UPDATE", on: "audit_index_heads" },
    Grant { rights: "SELECT, INSERT, UPDATE, DELETE", on: "audit_index_runs" },
    Grant { rights: "SELECT, INSERT, UPDATE, DELETE", on: "audit_index" },
    Grant { rights: "SELECT, INSERT, UPDATE, DELETE", on: "audit_export_heads" },
    Grant { rights: "SELECT", on: "audit_archived" },
    Grant { rights: "SELECT, INSERT", on: "audit_segments" },
    Grant { rights: "SELECT, INSERT, UPDATE", on: "audit_sweeps" },
    Grant { rights: "SELECT, INSERT, UPDATE", on: "audit_legal_holds" },
];

/// What the account that removes may do: it deletes what lies below the horizon, which it cannot move.
pub(super) const RETENTION_GRANTS: &[Grant] = &[
    Grant { rights: "SELECT, DELETE", on: "audit_entries" },
    Grant { rights: "SELECT, INSERT", on: "audit_archived" },
    Grant { rights: "SELECT, UPDATE", on: "audit_sweeps" },
    Grant { rights: "SELECT", on: "audit_log_heads" },
    Grant { rights: "SELECT", on: "audit_legal_holds" },
];

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(Log),
            Box::new(ExportHeadsByAge),
            Box::new(Tree),
            Box::new(Checkpoints),
            Box::new(Archive),
            Box::new(Recorded),
            Box::new(Coverage),
            Box::new(HoldsTold),
        ]
    }
}

/// The log, the numbers of its producers, and the index.
struct Log;

impl MigrationName for Log {
    fn name(&self) -> &str {
        "audit_0001_log"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Log {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let backend = manager.get_database_backend();
        let rest = if backend == DbBackend::Postgres { POSTGRES } else { SQLITE };
        db.execute_unprepared(&with_types(backend, TABLES)).await?;
        for statement in rest {
            db.execute_unprepared(statement).await?;
        }
        Ok(())
    }
}

/// Finds the heads of old exports without reading the heads.
struct ExportHeadsByAge;

impl MigrationName for ExportHeadsByAge {
    fn name(&self) -> &str {
        "audit_0002_export_heads_by_age"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for ExportHeadsByAge {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let sql = "CREATE INDEX IF NOT EXISTS audit_export_heads_age ON audit_export_heads (opened_at)";
        manager.get_connection().execute_unprepared(sql).await.map(drop)
    }
}

/// The tree over each log. Logs that have entries get theirs when the store is opened.
struct Tree;

impl MigrationName for Tree {
    fn name(&self) -> &str {
        "audit_0003_tree"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Tree {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let backend = manager.get_database_backend();
        db.execute_unprepared(&with_types(backend, TREE)).await?;
        for statement in if backend == DbBackend::Postgres { POSTGRES_TREE } else { SQLITE_TREE } {
            db.execute_unprepared(statement).await?;
        }
        Ok(())
    }
}

/// What was signed.
struct Checkpoints;

impl MigrationName for Checkpoints {
    fn name(&self) -> &str {
        "audit_0004_checkpoints"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Checkpoints {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let backend = manager.get_database_backend();
        db.execute_unprepared(&with_types(backend, CHECKPOINTS)).await?;
        for statement in if backend == DbBackend::Postgres { POSTGRES_CHECKPOINTS } else { SQLITE_CHECKPOINTS } {
            db.execute_unprepared(statement).await?;
        }
        Ok(())
    }
}

/// What retention lets go of, and what it must not.
struct Archive;

impl MigrationName for Archive {
    fn name(&self) -> &str {
        "audit_0005_archive"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Archive {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let backend = manager.get_database_backend();
        db.execute_unprepared(&with_types(backend, archive::TABLES)).await?;
        for statement in if backend == DbBackend::Postgres { archive::POSTGRES } else { archive::SQLITE } {
            db.execute_unprepared(statement).await?;
        }
        Ok(())
    }
}

/// When the last entry of each log was recorded.
struct Recorded;

impl MigrationName for Recorded {
    fn name(&self) -> &str {
        "audit_0006_recorded"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Recorded {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let sql = "ALTER TABLE audit_log_heads ADD COLUMN last_recorded_at {int} NOT NULL DEFAULT 0";
        let sql = with_types(manager.get_database_backend(), sql);
        manager.get_connection().execute_unprepared(&sql).await.map(drop)
    }
}

/// When producers were heard, and the intents in the order of time.
struct Coverage;

impl MigrationName for Coverage {
    fn name(&self) -> &str {
        "audit_0007_coverage"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Coverage {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        db.execute_unprepared(&with_types(manager.get_database_backend(), COVERAGE)).await.map(drop)
    }
}

/// A hold stands, and is released, with the entry that tells of it.
struct HoldsTold;

impl MigrationName for HoldsTold {
    fn name(&self) -> &str {
        "audit_0008_holds_told"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for HoldsTold {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let is_postgres = manager.get_database_backend() == DbBackend::Postgres;
        for statement in if is_postgres { archive::POSTGRES_HOLDS_TOLD } else { archive::SQLITE_HOLDS_TOLD } {
            manager.get_connection().execute_unprepared(statement).await?;
        }
        Ok(())
    }
}

/// A text for both engines with the types of one.
fn with_types(backend: DbBackend, sql: &str) -> String {
    let types = if backend == DbBackend::Postgres { POSTGRES_TYPES } else { SQLITE_TYPES };
    types.iter().fold(sql.to_owned(), |sql, (name, own)| sql.replace(name, own))
}

/// Names compare by their bytes on both engines, or the same query would answer in two orders.
const POSTGRES_TYPES: &[(&str, &str)] = &[
    ("{name}", "TEXT COLLATE \"C\" NOT NULL"),
    ("{bytes}", "BYTEA"),
    ("{uuid}", "UUID"),
    ("{int}", "BIGINT"),
    ("{by_key}", ""),
    ("{no_bytes}", "''"),
];
const SQLITE_TYPES: &[(&str, &str)] = &[
    ("{name}", "TEXT NOT NULL"),
    ("{bytes}", "BLOB"),
    ("{uuid}", "BLOB"),
    ("{int}", "INTEGER"),
    ("{by_key}", " WITHOUT ROWID"),
    ("{no_bytes}", "x''"),
];

/// 0: before this was noted. The index has intents alone, which are few; 2 is the number of `Stage::Intent`.
const COVERAGE: &str = r"
ALTER TABLE audit_producer_numbers ADD COLUMN since {int} NOT NULL DEFAULT 0;
ALTER TABLE audit_producer_numbers ADD COLUMN heard_at {int} NOT NULL DEFAULT 0;
CREATE INDEX audit_entries_intents ON audit_entries (occurred_at, id) WHERE stage = 2;
";

/// Three indexes and a partial one on the entries: each further one is paid for with every event. IF NOT EXISTS, for
/// files whose migration was killed when it was not yet one transaction.
const TABLES: &str = r"
CREATE TABLE IF NOT EXISTS audit_entries (
    instance_id {name},
    sequence {int} NOT NULL,
    id {uuid} NOT NULL,
    occurred_at {int} NOT NULL,
    stage SMALLINT NOT NULL,
    operation_id {name},
    content_hash {bytes} NOT NULL,
    leaf_hash {bytes} NOT NULL,
    canonical TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS audit_entries_place ON audit_entries (instance_id, sequence);
CREATE UNIQUE INDEX IF NOT EXISTS audit_entries_id ON audit_entries (id);
CREATE INDEX IF NOT EXISTS audit_entries_time ON audit_entries (occurred_at, id);
CREATE INDEX IF NOT EXISTS audit_entries_outcome ON audit_entries (instance_id, operation_id) WHERE stage = 3;

CREATE TABLE IF NOT EXISTS audit_log_heads (
    instance_id {name} PRIMARY KEY,
    next_sequence {int} NOT NULL
);

CREATE TABLE IF NOT EXISTS audit_producer_numbers (
    producer_id {name},
    epoch {int} NOT NULL,
    block {int} NOT NULL,
    numbers {bytes} NOT NULL,
    PRIMARY KEY (producer_id, epoch, block)
);

CREATE TABLE IF NOT EXISTS audit_dropped_ranges (
    producer_id {name},
    epoch {int} NOT NULL,
    first_sequence {int} NOT NULL,
    last_sequence {int} NOT NULL,
    reported_at {int} NOT NULL,
    PRIMARY KEY (producer_id, epoch, first_sequence, last_sequence)
);

CREATE TABLE IF NOT EXISTS audit_index_heads (
    instance_id {name} PRIMARY KEY,
    indexed_through {int} NOT NULL
);

CREATE TABLE IF NOT EXISTS audit_index_runs (
    run {int} PRIMARY KEY,
    state SMALLINT NOT NULL,
    since {int} NOT NULL,
    entries {int} NOT NULL,
    first_occurred_at {int} NOT NULL,
    last_occurred_at {int} NOT NULL,
    unsettled {int} NOT NULL
);

CREATE TABLE IF NOT EXISTS audit_index (
    run {int} NOT NULL,
    part {int} NOT NULL,
    bytes {bytes} NOT NULL,
    PRIMARY KEY (run, part)
){by_key};

CREATE TABLE IF NOT EXISTS audit_export_heads (
    digest {bytes} PRIMARY KEY,
    heads {bytes} NOT NULL,
    opened_at {int} NOT NULL
);
";

/// `INSERT OR REPLACE` deletes without asking the trigger on DELETE, unless the connection says otherwise; so an
/// insert that would replace is refused as well.
const SQLITE: &[&str] = &[
    "CREATE TRIGGER IF NOT EXISTS audit_entries_no_update BEFORE UPDATE ON audit_entries
     BEGIN SELECT RAISE(ABORT, 'audit entries are immutable: UPDATE is refused'); END",
    "CREATE TRIGGER IF NOT EXISTS audit_entries_no_delete BEFORE DELETE ON audit_entries
     BEGIN SELECT RAISE(ABORT, 'audit entries are immutable: DELETE is refused'); END",
    "CREATE TRIGGER IF NOT EXISTS audit_entries_no_replace BEFORE INSERT ON audit_entries
     WHEN EXISTS (SELECT 1 FROM audit_entries WHERE id = NEW.id)
       OR EXISTS (SELECT 1 FROM audit_entries WHERE instance_id = NEW.instance_id AND sequence = NEW.sequence)
     BEGIN SELECT RAISE(ABORT, 'audit entries are immutable: REPLACE is refused'); END",
];

/// ENABLE ALWAYS: also for a session that says it is a replica. The blobs are compressed already.
const POSTGRES: &[&str] = &[
    "CREATE FUNCTION audit_entries_refuse() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN RAISE EXCEPTION 'audit entries are immutable: % is refused', TG_OP; END $$",
    "CREATE TRIGGER audit_entries_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
     FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_refuse()",
    "ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER audit_entries_immutable",
    "ALTER TABLE audit_index ALTER COLUMN bytes SET STORAGE EXTERNAL",
];

/// `frontier` has a hash for each bit of `tree_size` that is set. The root over a tile is read without its hashes.
const TREE: &str = r"
ALTER TABLE audit_log_heads ADD COLUMN tree_size {int} NOT NULL DEFAULT 0;
ALTER TABLE audit_log_heads ADD COLUMN frontier {bytes} NOT NULL DEFAULT {no_bytes};

CREATE TABLE audit_tiles (
    instance_id {name},
    level SMALLINT NOT NULL,
    tile {int} NOT NULL,
    root {bytes} NOT NULL,
    hashes {bytes} NOT NULL,
    PRIMARY KEY (instance_id, level, tile)
);
";

const SQLITE_TREE: &[&str] = &[
    "CREATE TRIGGER audit_tiles_no_update BEFORE UPDATE ON audit_tiles
     BEGIN SELECT RAISE(ABORT, 'tiles of the audit log are immutable: UPDATE is refused'); END",
    "CREATE TRIGGER audit_tiles_no_delete BEFORE DELETE ON audit_tiles
     BEGIN SELECT RAISE(ABORT, 'tiles of the audit log are immutable: DELETE is refused'); END",
    "CREATE TRIGGER audit_tiles_no_replace BEFORE INSERT ON audit_tiles
     WHEN EXISTS (SELECT 1 FROM audit_tiles
                  WHERE instance_id = NEW.instance_id AND level = NEW.level AND tile = NEW.tile)
     BEGIN SELECT RAISE(ABORT, 'tiles of the audit log are immutable: REPLACE is refused'); END",
];

/// Hashes do not get smaller.
const POSTGRES_TREE: &[&str] = &[
    "CREATE FUNCTION audit_tiles_refuse() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN RAISE EXCEPTION 'tiles of the audit log are immutable: % is refused', TG_OP; END $$",
    "CREATE TRIGGER audit_tiles_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_tiles
     FOR EACH STATEMENT EXECUTE FUNCTION audit_tiles_refuse()",
    "ALTER TABLE audit_tiles ENABLE ALWAYS TRIGGER audit_tiles_immutable",
    "ALTER TABLE audit_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL",
];

/// Times are seconds since 1970, as in cosignatures.
const CHECKPOINTS: &str = r"
CREATE TABLE audit_checkpoints (
    instance_id {name},
    size {int} NOT NULL,
    root {bytes} NOT NULL,
    signed_at {int} NOT NULL,
    note TEXT NOT NULL,
    PRIMARY KEY (instance_id, size)
);

CREATE TABLE audit_newest_checkpoints (
    instance_id {name} PRIMARY KEY,
    size {int} NOT NULL,
    cosigned_at {int} NOT NULL,
    note TEXT NOT NULL
);

CREATE TABLE audit_signing_keys (
    instance_id {name},
    verifier_key {name},
    first_size {int} NOT NULL,
    last_size {int} NOT NULL,
    PRIMARY KEY (instance_id, verifier_key)
);
";

const SQLITE_CHECKPOINTS: &[&str] = &[
    "CREATE TRIGGER audit_checkpoints_no_update BEFORE UPDATE ON audit_checkpoints
     BEGIN SELECT RAISE(ABORT, 'checkpoints of the audit log are immutable: UPDATE is refused'); END",
    "CREATE TRIGGER audit_checkpoints_no_delete BEFORE DELETE ON audit_checkpoints
     BEGIN SELECT RAISE(ABORT, 'checkpoints of the audit log are immutable: DELETE is refused'); END",
    "CREATE TRIGGER audit_checkpoints_no_replace BEFORE INSERT ON audit_checkpoints
     WHEN EXISTS (SELECT 1 FROM audit_checkpoints WHERE instance_id = NEW.instance_id AND size = NEW.size)
     BEGIN SELECT RAISE(ABORT, 'checkpoints of the audit log are immutable: REPLACE is refused'); END",
];

const POSTGRES_CHECKPOINTS: &[&str] = &[
    "CREATE FUNCTION audit_checkpoints_refuse() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN RAISE EXCEPTION 'checkpoints of the audit log are immutable: % is refused', TG_OP; END $$",
    "CREATE TRIGGER audit_checkpoints_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_checkpoints
     FOR EACH STATEMENT EXECUTE FUNCTION audit_checkpoints_refuse()",
    "ALTER TABLE audit_checkpoints ENABLE ALWAYS TRIGGER audit_checkpoints_immutable",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_that_is_killed_leaves_nothing() {
        for migration in Migrator::migrations() {
            assert_eq!(migration.use_transaction(), Some(true), "{}", migration.name());
        }
    }
}
