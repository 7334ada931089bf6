//! Tables of retention, and what each database itself sees to:
//!
//! - an entry is deleted only below its log's horizon, and only when what must stay of it (`audit_archived`) is there;
//! - the horizon moves only to the end of the next segment, and only with the entry that tells of it.

/// `kept_from` is 0 where nothing was removed; times are microseconds, and no entry is from before 2000. Of what was
/// removed the ids and hashes stay: an event that comes again is known, and every proof is made as before.
pub(super) const TABLES: &str = r"
ALTER TABLE audit_log_heads ADD COLUMN archived_through {int} NOT NULL DEFAULT 0;
ALTER TABLE audit_log_heads ADD COLUMN planned_through {int} NOT NULL DEFAULT 0;
ALTER TABLE audit_log_heads ADD COLUMN kept_from {int} NOT NULL DEFAULT 0;
CREATE INDEX audit_log_heads_kept ON audit_log_heads (kept_from) WHERE kept_from > 0;

CREATE TABLE audit_archived (
    instance_id {name},
    sequence {int} NOT NULL,
    id {uuid} NOT NULL,
    stage SMALLINT NOT NULL,
    operation_id {name},
    content_hash {bytes} NOT NULL,
    leaf_hash {bytes} NOT NULL
);
CREATE UNIQUE INDEX audit_archived_place ON audit_archived (instance_id, sequence);
CREATE UNIQUE INDEX audit_archived_id ON audit_archived (id);
CREATE INDEX audit_archived_outcome ON audit_archived (instance_id, operation_id) WHERE stage = 3;

CREATE TABLE audit_segments (
    instance_id {name},
    first_sequence {int} NOT NULL,
    end_sequence {int} NOT NULL,
    recorded_sequence {int} NOT NULL,
    archived_at {int} NOT NULL,
    first_occurred_at {int} NOT NULL,
    last_occurred_at {int} NOT NULL,
    place {name},
    data_bytes {int} NOT NULL,
    data_sha256 {bytes} NOT NULL,
    lines_sha256 {bytes} NOT NULL,
    manifest_sha256 {bytes} NOT NULL,
    PRIMARY KEY (instance_id, first_sequence)
);

CREATE TABLE audit_sweeps (
    instance_id {name} PRIMARY KEY,
    swept_through {int} NOT NULL
);

CREATE TABLE audit_legal_holds (
    hold_id {uuid} PRIMARY KEY,
    instance_id {name},
    first_sequence {int} NOT NULL,
    end_sequence {int} NOT NULL,
    start_us {int} NOT NULL,
    end_us {int} NOT NULL,
    filter TEXT NOT NULL,
    reason TEXT NOT NULL,
    placed_at {int} NOT NULL,
    placed_by {name},
    placed_sequence {int} NOT NULL,
    released_at {int},
    released_by TEXT,
    released_sequence {int},
    release_reason TEXT
);
CREATE INDEX audit_legal_holds_log ON audit_legal_holds (instance_id, hold_id);
";

pub(super) const SQLITE: &[&str] = &[
    "DROP TRIGGER audit_entries_no_delete",
    "CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries
     WHEN NOT EXISTS (SELECT 1 FROM audit_log_heads h
                      WHERE h.instance_id = OLD.instance_id AND OLD.sequence < h.archived_through)
       OR NOT EXISTS (SELECT 1 FROM audit_archived a
                      WHERE a.instance_id = OLD.instance_id AND a.sequence = OLD.sequence AND a.id = OLD.id
                        AND a.content_hash = OLD.content_hash AND a.leaf_hash = OLD.leaf_hash)
     BEGIN SELECT RAISE(ABORT, 'audit entries are immutable: DELETE is refused'); END",
    "CREATE TRIGGER audit_log_heads_no_horizon BEFORE INSERT ON audit_log_heads WHEN NEW.archived_through <> 0
     BEGIN SELECT RAISE(ABORT, 'the horizon of an audit log moves only with the entry that tells of it'); END",
    "CREATE TRIGGER audit_log_heads_horizon BEFORE UPDATE OF archived_through ON audit_log_heads
     WHEN NEW.archived_through <> OLD.archived_through AND NOT EXISTS (
        SELECT 1 FROM audit_segments s
        JOIN audit_entries e ON e.instance_id = s.instance_id AND e.sequence = s.recorded_sequence
        WHERE s.instance_id = NEW.instance_id AND s.first_sequence = OLD.archived_through
          AND s.end_sequence = NEW.archived_through AND s.first_sequence < s.end_sequence
          AND s.end_sequence <= s.recorded_sequence
          AND substr(e.canonical, 1, 39) = '{\"action\":\"audit_log.entries_archived\",')
     BEGIN SELECT RAISE(ABORT, 'the horizon of an audit log moves only with the entry that tells of it'); END",
    "CREATE TRIGGER audit_archived_of_entries BEFORE INSERT ON audit_archived
     WHEN EXISTS (SELECT 1 FROM audit_archived WHERE id = NEW.id)
       OR NOT EXISTS (SELECT 1 FROM audit_entries e
                      WHERE e.instance_id = NEW.instance_id AND e.sequence = NEW.sequence AND e.id = NEW.id
                        AND e.content_hash = NEW.content_hash AND e.leaf_hash = NEW.leaf_hash)
     BEGIN SELECT RAISE(ABORT, 'what is archived of the audit log is of its entries'); END",
    "CREATE TRIGGER audit_archived_no_update BEFORE UPDATE ON audit_archived
     BEGIN SELECT RAISE(ABORT, 'hashes of the audit log are immutable: UPDATE is refused'); END",
    "CREATE TRIGGER audit_archived_no_delete BEFORE DELETE ON audit_archived
     BEGIN SELECT RAISE(ABORT, 'hashes of the audit log are immutable: DELETE is refused'); END",
    "CREATE TRIGGER audit_segments_no_update BEFORE UPDATE ON audit_segments
     BEGIN SELECT RAISE(ABORT, 'segments of the audit log are immutable: UPDATE is refused'); END",
    "CREATE TRIGGER audit_segments_no_delete BEFORE DELETE ON audit_segments
     BEGIN SELECT RAISE(ABORT, 'segments of the audit log are immutable: DELETE is refused'); END",
    "CREATE TRIGGER audit_segments_no_replace BEFORE INSERT ON audit_segments
     WHEN EXISTS (SELECT 1 FROM audit_segments
                  WHERE instance_id = NEW.instance_id AND first_sequence = NEW.first_sequence)
     BEGIN SELECT RAISE(ABORT, 'segments of the audit log are immutable: REPLACE is refused'); END",
    "CREATE TRIGGER audit_legal_holds_no_delete BEFORE DELETE ON audit_legal_holds
     BEGIN SELECT RAISE(ABORT, 'legal holds are released, not removed: DELETE is refused'); END",
    "CREATE TRIGGER audit_legal_holds_no_update BEFORE UPDATE OF hold_id, instance_id, first_sequence, end_sequence,
        start_us, end_us, filter, reason, placed_at, placed_by, placed_sequence ON audit_legal_holds
     BEGIN SELECT RAISE(ABORT, 'legal holds are released, not changed: UPDATE is refused'); END",
    "CREATE TRIGGER audit_legal_holds_released_once BEFORE UPDATE ON audit_legal_holds WHEN OLD.released_at IS NOT NULL
     BEGIN SELECT RAISE(ABORT, 'a legal hold is released once: UPDATE is refused'); END",
];

/// ENABLE ALWAYS: also for a session that says it is a replica. Of statements on no row PostgreSQL says nothing.
pub(super) const POSTGRES: &[&str] = &[
    "DROP TRIGGER audit_entries_immutable ON audit_entries",
    "CREATE TRIGGER audit_entries_immutable BEFORE UPDATE OR TRUNCATE ON audit_entries
     FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_refuse()",
    "ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER audit_entries_immutable",
    "CREATE FUNCTION audit_entries_delete() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN
        IF EXISTS (SELECT 1 FROM audit_log_heads h
                   WHERE h.instance_id = OLD.instance_id AND OLD.sequence < h.archived_through)
           AND EXISTS (SELECT 1 FROM audit_archived a
                       WHERE a.instance_id = OLD.instance_id AND a.sequence = OLD.sequence AND a.id = OLD.id
                         AND a.content_hash = OLD.content_hash AND a.leaf_hash = OLD.leaf_hash) THEN
            RETURN OLD;
        END IF;
        RAISE EXCEPTION 'audit entries are immutable: DELETE is refused';
     END $$",
    "CREATE TRIGGER audit_entries_delete BEFORE DELETE ON audit_entries
     FOR EACH ROW EXECUTE FUNCTION audit_entries_delete()",
    "ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER audit_entries_delete",
    "CREATE FUNCTION audit_log_heads_horizon() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN
        IF TG_OP = 'INSERT' AND NEW.archived_through = 0 THEN RETURN NEW; END IF;
        IF TG_OP = 'UPDATE' AND (NEW.archived_through = OLD.archived_through OR EXISTS (
            SELECT 1 FROM audit_segments s
            JOIN audit_entries e ON e.instance_id = s.instance_id AND e.sequence = s.recorded_sequence
            WHERE s.instance_id = NEW.instance_id AND s.first_sequence = OLD.archived_through
              AND s.end_sequence = NEW.archived_through AND s.first_sequence < s.end_sequence
              AND s.end_sequence <= s.recorded_sequence
              AND substr(e.canonical, 1, 39) = '{\"action\":\"audit_log.entries_archived\",')) THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'the horizon of an audit log moves only with the entry that tells of it';
     END $$",
    "CREATE TRIGGER audit_log_heads_horizon BEFORE INSERT OR UPDATE OF archived_through ON audit_log_heads
     FOR EACH ROW EXECUTE FUNCTION audit_log_heads_horizon()",
    "ALTER TABLE audit_log_heads ENABLE ALWAYS TRIGGER audit_log_heads_horizon",
    "CREATE FUNCTION audit_archived_of_entries() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN
        IF EXISTS (SELECT 1 FROM audit_entries e
                   WHERE e.instance_id = NEW.instance_id AND e.sequence = NEW.sequence AND e.id = NEW.id
                     AND e.content_hash = NEW.content_hash AND e.leaf_hash = NEW.leaf_hash) THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'what is archived of the audit log is of its entries';
     END $$",
    "CREATE TRIGGER audit_archived_of_entries BEFORE INSERT ON audit_archived
     FOR EACH ROW EXECUTE FUNCTION audit_archived_of_entries()",
    "ALTER TABLE audit_archived ENABLE ALWAYS TRIGGER audit_archived_of_entries",
    "CREATE FUNCTION audit_archive_refuse() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN RAISE EXCEPTION '% is immutable: % is refused', TG_TABLE_NAME, TG_OP; END $$",
    "CREATE TRIGGER audit_archived_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_archived
     FOR EACH STATEMENT EXECUTE FUNCTION audit_archive_refuse()",
    "ALTER TABLE audit_archived ENABLE ALWAYS TRIGGER audit_archived_immutable",
    "CREATE TRIGGER audit_segments_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_segments
     FOR EACH STATEMENT EXECUTE FUNCTION audit_archive_refuse()",
    "ALTER TABLE audit_segments ENABLE ALWAYS TRIGGER audit_segments_immutable",
    "CREATE TRIGGER audit_legal_holds_stay BEFORE DELETE OR TRUNCATE ON audit_legal_holds
     FOR EACH STATEMENT EXECUTE FUNCTION audit_archive_refuse()",
    "ALTER TABLE audit_legal_holds ENABLE ALWAYS TRIGGER audit_legal_holds_stay",
    "CREATE FUNCTION audit_legal_holds_release() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN
        IF OLD.released_at IS NULL AND NEW.released_at IS NOT NULL
           AND (NEW.hold_id, NEW.instance_id, NEW.first_sequence, NEW.end_sequence, NEW.start_us, NEW.end_us, NEW.filter,
                NEW.reason, NEW.placed_at, NEW.placed_by, NEW.placed_sequence)
             = (OLD.hold_id, OLD.instance_id, OLD.first_sequence, OLD.end_sequence, OLD.start_us, OLD.end_us, OLD.filter,
                OLD.reason, OLD.placed_at, OLD.placed_by, OLD.placed_sequence) THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'a legal hold is released once, and not changed: % is refused', TG_OP;
     END $$",
    "CREATE TRIGGER audit_legal_holds_release BEFORE UPDATE ON audit_legal_holds
     FOR EACH ROW EXECUTE FUNCTION audit_legal_holds_release()",
    "ALTER TABLE audit_legal_holds ENABLE ALWAYS TRIGGER audit_legal_holds_release",
];

pub(super) const SQLITE_HOLDS_TOLD: &[&str] = &[
    "CREATE TRIGGER audit_legal_holds_no_replace BEFORE INSERT ON audit_legal_holds
     WHEN EXISTS (SELECT 1 FROM audit_legal_holds WHERE hold_id = NEW.hold_id)
     BEGIN SELECT RAISE(ABORT, 'legal holds are released, not changed: REPLACE is refused'); END",
    "CREATE TRIGGER audit_legal_holds_placed BEFORE INSERT ON audit_legal_holds
     WHEN NEW.released_at IS NOT NULL OR NOT EXISTS (
        SELECT 1 FROM audit_entries e WHERE e.instance_id = NEW.instance_id AND e.sequence = NEW.placed_sequence
          AND substr(e.canonical, 1, 40) = '{\"action\":\"audit_log.legal_hold_placed\",')
     BEGIN SELECT RAISE(ABORT, 'a legal hold stands only with the entry that tells of it'); END",
    "CREATE TRIGGER audit_legal_holds_released BEFORE UPDATE OF released_at ON audit_legal_holds
     WHEN NOT EXISTS (
        SELECT 1 FROM audit_entries e WHERE e.instance_id = NEW.instance_id AND e.sequence = NEW.released_sequence
          AND substr(e.canonical, 1, 42) = '{\"action\":\"audit_log.legal_hold_released\",')
     BEGIN SELECT RAISE(ABORT, 'a legal hold is released only with the entry that tells of it'); END",
];

pub(super) const POSTGRES_HOLDS_TOLD: &[&str] = &[
    "CREATE FUNCTION audit_legal_holds_told() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN
        IF TG_OP = 'INSERT' AND NEW.released_at IS NULL AND EXISTS (
            SELECT 1 FROM audit_entries e WHERE e.instance_id = NEW.instance_id AND e.sequence = NEW.placed_sequence
              AND substr(e.canonical, 1, 40) = '{\"action\":\"audit_log.legal_hold_placed\",') THEN
            RETURN NEW;
        END IF;
        IF TG_OP = 'UPDATE' AND EXISTS (
            SELECT 1 FROM audit_entries e WHERE e.instance_id = NEW.instance_id AND e.sequence = NEW.released_sequence
              AND substr(e.canonical, 1, 42) = '{\"action\":\"audit_log.legal_hold_released\",') THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'a legal hold stands, and is released, only with the entry that tells of it';
     END $$",
    "CREATE TRIGGER audit_legal_holds_told BEFORE INSERT OR UPDATE ON audit_legal_holds
     FOR EACH ROW EXECUTE FUNCTION audit_legal_holds_told()",
    "ALTER TABLE audit_legal_holds ENABLE ALWAYS TRIGGER audit_legal_holds_told",
];
