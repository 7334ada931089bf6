//! The limit: what the engine alone does with the same rows, the same table and indexes, committed in groups of the
//! same size, from a client that has them ready in memory.

use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Column, Connection, Executor, PgConnection, QueryBuilder, Row, SqliteConnection, TypeInfo, ValueRef};

/// Rows in one transaction, as many as a service's group at most.
pub(crate) const GROUP: usize = 2_000;
const SQLITE_PARAMETERS: usize = 32_766;

/// What inserting took, without reading or preparing the rows.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) rows: u64,
    pub(crate) time: Duration,
}

impl Rate {
    pub(crate) fn per_second(self) -> f64 {
        self.rows as f64 / self.time.as_secs_f64()
    }
}

enum Cell {
    Null,
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
}

fn cells(row: &sqlx::sqlite::SqliteRow) -> Vec<Cell> {
    (0..row.len())
        .map(|n| {
            let value = row.try_get_raw(n).unwrap();
            if value.is_null() {
                return Cell::Null;
            }
            match value.type_info().name() {
                "INTEGER" => Cell::Integer(row.get_unchecked(n)),
                "BLOB" => Cell::Blob(row.get_unchecked(n)),
                "TEXT" => Cell::Text(row.get_unchecked(n)),
                other => panic!("{}: {other}", row.column(n).name()),
            }
        })
        .collect()
}

/// Multi-row inserts into a new file with the schema of `filled`, durable as the services are; with or without the
/// triggers that guard the table.
pub(crate) async fn sqlite(filled: &Path, table: &str, most: u64, guarded: bool) -> Rate {
    let folder = tempfile::tempdir().unwrap();
    let source = SqliteConnectOptions::from_str(&format!("sqlite://{}", filled.display())).unwrap().read_only(true);
    let mut source = SqliteConnection::connect_with(&source).await.unwrap();
    let target = SqliteConnectOptions::new()
        .filename(folder.path().join("raw.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut target = SqliteConnection::connect_with(&target).await.unwrap();
    let schema = "SELECT sql FROM sqlite_master WHERE tbl_name = ?1 AND sql IS NOT NULL \
                  AND (?2 OR type <> 'trigger') ORDER BY type = 'trigger', type DESC";
    let schema = sqlx::query(schema).bind(table).bind(guarded).fetch_all(&mut source).await.unwrap();
    for row in schema {
        let statement: String = row.get(0);
        target.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    }

    let mut rate = Rate::default();
    let select = format!("SELECT * FROM {table} ORDER BY rowid LIMIT {most}");
    let mut rows = sqlx::query(sqlx::AssertSqlSafe(select)).fetch(&mut source);
    let mut group = Vec::with_capacity(GROUP);
    let mut done = false;
    while !done {
        match rows.try_next().await.unwrap() {
            Some(row) => group.push(cells(&row)),
            None => done = true,
        }
        if group.is_empty() || group.len() < GROUP && !done {
            continue;
        }
        let per_statement = SQLITE_PARAMETERS / group[0].len();
        let start = Instant::now();
        rate.rows += group.len() as u64;
        let mut transaction = target.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let mut left = std::mem::take(&mut group).into_iter().peekable();
        while left.peek().is_some() {
            let mut insert = QueryBuilder::new(format!("INSERT INTO {table} "));
            insert.push_values(left.by_ref().take(per_statement), |mut bound, row| {
                for cell in row {
                    match cell {
                        Cell::Null => bound.push_bind(None::<i64>),
                        Cell::Integer(value) => bound.push_bind(value),
                        Cell::Text(value) => bound.push_bind(value),
                        Cell::Blob(value) => bound.push_bind(value),
                    };
                }
            });
            insert.build().execute(&mut *transaction).await.unwrap();
        }
        transaction.commit().await.unwrap();
        rate.time += start.elapsed();
    }
    rate
}

/// `(plain COPY, COPY to a staging table and INSERT … ON CONFLICT DO NOTHING)` into copies of the table.
pub(crate) async fn postgres(url: &str, table: &str, most: u64) -> (Rate, Rate) {
    let mut source = PgConnection::connect(url).await.unwrap();
    let mut target = PgConnection::connect(url).await.unwrap();
    for statement in [
        "DROP TABLE IF EXISTS raw_plain, raw_dedup".to_owned(),
        format!("CREATE TABLE raw_plain (LIKE {table} INCLUDING ALL)"),
        format!("CREATE TABLE raw_dedup (LIKE {table} INCLUDING ALL)"),
        format!("CREATE TEMPORARY TABLE staging (LIKE {table}) ON COMMIT DELETE ROWS"),
    ] {
        target.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    }
    let (mut plain, mut dedup) = (Rate::default(), Rate::default());
    let copy = format!("COPY (SELECT * FROM {table} LIMIT {most}) TO STDOUT");
    let mut rows = source.copy_out_raw(&copy).await.unwrap();
    let mut group = Vec::new();
    let mut lines = 0;
    let mut done = false;
    while !done {
        match rows.try_next().await.unwrap() {
            Some(row) => {
                lines += row.iter().filter(|byte| **byte == b'\n').count();
                group.extend_from_slice(&row);
            }
            None => done = true,
        }
        if lines == 0 || lines < GROUP && !done {
            continue;
        }
        for (name, rate) in [("raw_plain", &mut plain), ("raw_dedup", &mut dedup)] {
            let start = Instant::now();
            let mut transaction = target.begin().await.unwrap();
            let into = if name == "raw_plain" { name } else { "staging" };
            let mut sink = transaction.copy_in_raw(&format!("COPY {into} FROM STDIN")).await.unwrap();
            sink.send(group.as_slice()).await.unwrap();
            sink.finish().await.unwrap();
            if into == "staging" {
                let insert = format!("INSERT INTO {name} SELECT * FROM staging ON CONFLICT DO NOTHING");
                transaction.execute(sqlx::AssertSqlSafe(insert)).await.unwrap();
            }
            transaction.commit().await.unwrap();
            rate.rows += lines as u64;
            rate.time += start.elapsed();
        }
        group.clear();
        lines = 0;
    }
    (plain, dedup)
}

/// What the database takes on disk, the raw copies aside.
pub(crate) async fn database_bytes(url: &str) -> u64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    connection.execute("DROP TABLE IF EXISTS raw_plain, raw_dedup").await.unwrap();
    let row = sqlx::query("SELECT pg_database_size(current_database())").fetch_one(&mut connection).await.unwrap();
    u64::try_from(row.get::<i64, _>(0)).unwrap()
}
