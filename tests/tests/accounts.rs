//! The accounts of `deploy/postgres`: with them both services do all of their work, and what was stored is kept
//! from change by PostgreSQL itself.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::audit_trust_service_client::AuditTrustServiceClient;
use activity_proto::audit::v1::{
    ExportEntriesRequest, ExportFormat, GetCheckpointRequest, RecordEventsRequest, SequenceRange,
    export_entries_request::Range,
};
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{GetSummaryRequest, RecordUsageRequest};
use e2e::tools::root;
use e2e::{Service, events};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use testkit::Postgres;
use tokio_stream::StreamExt as _;

const EVENTS: u64 = 100;

struct Accounts {
    writer: String,
    migrator: String,
    reader: String,
    retention: String,
}

/// Roles are the server's, and not of one database: who makes them twice at once fails.
static ROLES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A new database after `roles.sql`, which may be run again.
async fn database() -> Accounts {
    let owner = Postgres::shared().await.create_database().await;
    let roles = std::fs::read_to_string(root().join("deploy/postgres/roles.sql")).unwrap();
    let mut connection = PgConnection::connect(&owner).await.unwrap();
    let _alone = ROLES.lock().await;
    for _ in 0..2 {
        sqlx::raw_sql(AssertSqlSafe(roles.clone())).execute(&mut connection).await.unwrap();
    }
    let url = |name: &str| owner.replacen("postgres@", &format!("activity_{name}@"), 1);
    Accounts { writer: url("writer"), migrator: url("migrator"), reader: url("reader"), retention: url("retention") }
}

/// Why PostgreSQL refuses a statement: its state.
async fn refused(connection: &mut PgConnection, sql: &str) -> String {
    let error = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.err();
    let error = error.unwrap_or_else(|| panic!("{sql}"));
    error.as_database_error().unwrap().code().unwrap().into_owned()
}

const NOT_ALLOWED: &str = "42501";

async fn refuses_all(url: &str, statements: &[&str]) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    for sql in statements {
        assert_eq!(refused(&mut connection, sql).await, NOT_ALLOWED, "{sql}");
    }
}

/// What is archived is removed by an account that does nothing else, and cannot do it alone.
#[tokio::test]
async fn archived_entries_are_removed_by_an_account_of_their_own() {
    if Postgres::skipped() {
        return;
    }
    let accounts = database().await;
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().display().to_string();
    let settings = [
        ("DATABASE__MIGRATOR_URL", accounts.migrator.as_str()),
        ("RETENTION__DAYS", "1"),
        ("RETENTION__ARCHIVE", &archive),
        ("RETENTION__DATABASE_URL", &accounts.retention),
        ("PROGRAM", "archivist"),
    ];
    let mut service = Service::start("audit", &accounts.writer, &settings).await;
    let now = SystemTime::now();
    let request =
        RecordEventsRequest { events: (0..EVENTS).map(|n| events::audit(now, n)).collect(), ..Default::default() };
    AuditIngestServiceClient::new(service.channel()).record_events(request).await.unwrap();
    service.kill();
    service.archivist(service_core::clock::now_us(), "");
    service.start_again().await;
    let mut owner = PgConnection::connect(&accounts.migrator).await.unwrap();
    let mut count = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut owner).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while count("SELECT COUNT(*) FROM audit_archived").await < EVENTS.cast_signed() {
        assert!(tokio::time::Instant::now() < deadline, "nothing is removed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The entry that tells of it is left.
    assert_eq!(count("SELECT COUNT(*) FROM audit_entries").await, 1);

    refuses_all(&accounts.writer, &["DELETE FROM audit_entries", "INSERT INTO audit_archived SELECT 1"]).await;
    let others = [
        "UPDATE audit_log_heads SET archived_through = 101",
        "INSERT INTO audit_segments SELECT * FROM audit_segments",
        "UPDATE audit_legal_holds SET released_at = 1",
        "UPDATE audit_entries SET canonical = ''",
        "DELETE FROM audit_archived",
        "DELETE FROM audit_tiles",
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
    ];
    refuses_all(&accounts.retention, &others).await;
    let mut retention = PgConnection::connect(&accounts.retention).await.unwrap();
    const RAISED: &str = "P0001";
    assert_eq!(refused(&mut retention, "DELETE FROM audit_entries").await, RAISED, "above the horizon");
}

#[tokio::test]
async fn audit_serves_with_an_account_that_cannot_change_entries() {
    if Postgres::skipped() {
        return;
    }
    let accounts = database().await;
    let settings =
        [("DATABASE__MIGRATOR_URL", accounts.migrator.as_str()), ("DATABASE__READER_URL", accounts.reader.as_str())];
    let with_all = Service::start("audit", &accounts.writer, &settings).await;
    // The schema is there: another replica needs nobody else's rights.
    let folder = tempfile::tempdir().unwrap();
    let beside = folder.path().display().to_string();
    let alone = Service::start("audit", &accounts.writer, &[("LOG__FOLDER", &beside)]).await;
    let now = SystemTime::now();
    for (service, first) in [(&with_all, 0), (&alone, EVENTS)] {
        let events = (first..first + EVENTS).map(|n| events::audit(now, n)).collect();
        let request = RecordEventsRequest { events, ..Default::default() };
        let answer = AuditIngestServiceClient::new(service.channel()).record_events(request).await.unwrap();
        assert_eq!(u64::from(answer.into_inner().accepted()), EVENTS);
    }
    let range = SequenceRange { instance_id: "eu-1".into(), from: Some(0), to: None };
    let request = ExportEntriesRequest {
        range: Some(Range::SequenceRange(range)),
        format: ExportFormat::Jsonl.into(),
        ..ExportEntriesRequest::default()
    };
    let mut export =
        AuditQueryServiceClient::new(with_all.channel()).export_entries(request).await.unwrap().into_inner();
    while let Some(part) = export.next().await {
        part.unwrap();
    }

    // Signing needs no other rights.
    let request = GetCheckpointRequest { instance_id: "eu-1".into(), min_size: Some(2 * EVENTS) };
    testkit::eventually(Duration::from_secs(30), async || {
        AuditTrustServiceClient::new(alone.channel()).get_checkpoint(request.clone()).await.is_ok()
    })
    .await;

    let changes = [
        "UPDATE audit_entries SET canonical = ''",
        "DELETE FROM audit_entries",
        "TRUNCATE audit_entries",
        "UPDATE audit_tiles SET hashes = root",
        "DELETE FROM audit_tiles",
        "TRUNCATE audit_tiles",
        "UPDATE audit_checkpoints SET note = ''",
        "DELETE FROM audit_checkpoints",
        "TRUNCATE audit_checkpoints",
        "DROP TABLE audit_entries",
        "ALTER TABLE audit_entries DROP COLUMN canonical",
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_immutable",
        "DROP TRIGGER audit_entries_immutable ON audit_entries",
        "CREATE OR REPLACE FUNCTION audit_entries_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE RULE rewrite AS ON INSERT TO audit_entries DO INSTEAD NOTHING",
        "SET session_replication_role = replica",
        "DELETE FROM audit_log_heads",
        "DELETE FROM audit_producer_numbers",
        "UPDATE audit_dropped_ranges SET last_sequence = 0",
        "DELETE FROM seaql_migrations",
        "CREATE TABLE another (id int)",
        "SET ROLE activity_migrator",
    ];
    refuses_all(&accounts.writer, &changes).await;
    refuses_all(&accounts.reader, &changes).await;
    refuses_all(&accounts.reader, &["SELECT * FROM service_state", "INSERT INTO audit_log_heads VALUES ('eu-2', 7)"])
        .await;
    // The triggers hold for the owner too.
    let mut owner = PgConnection::connect(&accounts.migrator).await.unwrap();
    for sql in &changes[..9] {
        assert_eq!(refused(&mut owner, sql).await, "P0001", "{sql}");
    }
    let mut reader = PgConnection::connect(&accounts.reader).await.unwrap();
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_entries").fetch_one(&mut reader).await.unwrap();
    assert_eq!(seen.unsigned_abs(), 2 * EVENTS);
}

#[tokio::test]
async fn usage_serves_with_an_account_that_cannot_change_requests() {
    if Postgres::skipped() {
        return;
    }
    let accounts = database().await;
    let settings =
        [("DATABASE__MIGRATOR_URL", accounts.migrator.as_str()), ("DATABASE__READER_URL", accounts.reader.as_str())];
    let with_all = Service::start("usage", &accounts.writer, &settings).await;
    let alone = Service::start("usage", &accounts.writer, &[]).await;
    let now = SystemTime::now();
    for (service, first) in [(&with_all, 0), (&alone, EVENTS)] {
        let events = (first..first + EVENTS).map(|n| events::usage(now, n)).collect();
        let request = RecordUsageRequest { events };
        let answer = UsageIngestServiceClient::new(service.channel()).record_usage(request).await.unwrap();
        assert_eq!(u64::from(answer.into_inner().accepted()), EVENTS);
    }
    let mut client = UsageQueryServiceClient::new(alone.channel());
    let summary = client.get_summary(GetSummaryRequest::default()).await.unwrap().into_inner().summary.unwrap();
    assert_eq!(summary.requests(), 2 * EVENTS);

    let mut owner = PgConnection::connect(&accounts.migrator).await.unwrap();
    let partition: String = sqlx::query_scalar("SELECT tableoid::regclass::text FROM usage_requests LIMIT 1")
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert!(partition.starts_with("usage_requests_p"), "{partition}");
    let mut changes = Vec::new();
    for table in ["usage_requests", "usage_requests_default", &partition] {
        changes.extend([
            format!("UPDATE {table} SET cost_nanos = 0"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
            format!("DROP TABLE {table}"),
            format!("ALTER TABLE {table} DROP COLUMN cost_nanos"),
        ]);
    }
    changes.extend([
        format!("ALTER TABLE usage_requests DETACH PARTITION {partition}"),
        "UPDATE usage_charges SET detail = ''".to_owned(),
        "DELETE FROM usage_producers".to_owned(),
        "UPDATE usage_retention SET requests_before = 9000000000000000000".to_owned(),
        "DROP FUNCTION usage_drop_partition(date)".to_owned(),
        "CREATE TABLE another (id int)".to_owned(),
        "SET ROLE activity_migrator".to_owned(),
    ]);
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    refuses_all(&accounts.writer, &changes).await;
    refuses_all(&accounts.reader, &changes).await;
    let calls = [
        "SELECT usage_add_partition(current_date)",
        "SELECT usage_drop_partition(current_date)",
        "SELECT usage_retain(0, 0)",
    ];
    refuses_all(&accounts.reader, &calls).await;
    let mut writer = PgConnection::connect(&accounts.writer).await.unwrap();
    let kept = refused(&mut writer, "SELECT usage_drop_partition(current_date)").await;
    assert_eq!(kept, "P0001", "retention has not let it go");
    // The horizon goes forward, and never over the last 24 hours.
    let ago = |hours: u32| format!("(extract(epoch FROM now() - interval '{hours} hours') * 1000000)::bigint");
    for sql in [format!("SELECT usage_retain({}, 0)", ago(23)), format!("SELECT usage_retain(0, {})", ago(23))] {
        assert_eq!(refused(&mut writer, &sql).await, "P0001", "{sql}");
    }
    let moves = [format!("SELECT usage_retain({}, 7)", ago(25)), "SELECT usage_retain(5, 5)".to_owned()];
    for sql in moves {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut writer).await.unwrap();
    }
    let moved = format!("SELECT requests_before > {} AND rollups_before = 7 FROM usage_retention", ago(26));
    assert!(sqlx::query_scalar::<_, bool>(AssertSqlSafe(moved)).fetch_one(&mut writer).await.unwrap());
}

#[tokio::test]
async fn a_schema_without_rights_to_make_it_is_refused_at_start() {
    if Postgres::skipped() {
        return;
    }
    let accounts = database().await;
    for name in ["audit", "usage"] {
        let prefix = name.to_uppercase();
        let output = std::process::Command::new(testkit::binary(&format!("{name}-service")))
            .env(format!("{prefix}_DATABASE_URL"), &accounts.writer)
            .env(format!("{prefix}_LISTEN"), "127.0.0.1:0")
            .env(format!("{prefix}_METRICS_LISTEN"), "")
            .output()
            .unwrap();
        assert!(!output.status.success());
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(why.contains("cannot migrate database") && why.contains("permission denied"), "{why}");
    }
}
