//! SQLite: rows as `VALUES`, one or many a statement, each prepared once; durable, cached and checkpointed as the
//! service does it.

use std::path::Path;
use std::time::Instant;

use futures::TryStreamExt;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{Arguments, AssertSqlSafe, Column, Connection, Executor, Row, SqliteConnection, TypeInfo, ValueRef};

use super::Way;
use crate::place::{Engine, Places, file_of};

const PARAMETERS: usize = 32_766;

#[derive(Clone)]
enum Cell {
    Null,
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// Rows in one statement, and whether the triggers that guard the table stay.
struct Shape {
    rows: usize,
    guarded: bool,
}

/// Every way, over `most` rows of `filled`, in databases that are copies of `empty`.
pub(crate) async fn ways(
    places: &mut Places,
    filled: &str,
    empty: &str,
    table: &str,
    most: u64,
    group: usize,
    guards: bool,
) -> Vec<Way> {
    let mut source = open(&file_of(filled), true).await;
    let columns =
        sqlx::query("SELECT name FROM pragma_table_info(?)").bind(table).fetch_all(&mut source).await.unwrap();
    let columns: Vec<String> = columns.iter().map(|row| row.get(0)).collect();
    let widest = PARAMETERS / columns.len();
    let mut targets = Vec::new();
    for rows in [1, 8, 64, 256, widest] {
        for guarded in [false, true] {
            if guarded && (!guards || rows != 64) {
                continue;
            }
            let name = match (rows, guarded) {
                (1, _) => "one row a statement".to_owned(),
                (rows, false) => format!("{rows} rows a statement"),
                (rows, true) => format!("{rows} rows a statement, under the table's guards"),
            };
            let url = places.copy(Engine::Sqlite, empty, &format!("raw_{rows}_{guarded}")).await;
            let mut connection = open(&file_of(&url), false).await;
            if !guarded {
                drop_triggers(&mut connection).await;
            }
            targets.push((connection, Shape { rows, guarded }, Way::new(name, true)));
        }
    }

    let select = format!("SELECT * FROM {table} ORDER BY rowid LIMIT {most}");
    let mut rows = sqlx::query(AssertSqlSafe(select)).fetch(&mut source);
    let mut waiting = Vec::with_capacity(group);
    let mut done = false;
    let mut turn = 0;
    while !done {
        match rows.try_next().await.unwrap() {
            Some(row) => waiting.push(cells(&row)),
            None => done = true,
        }
        if waiting.is_empty() || waiting.len() < group && !done {
            continue;
        }
        turn += 1;
        let ways = targets.len();
        for index in 0..ways {
            let (connection, shape, way) = &mut targets[(index + turn) % ways];
            insert(connection, table, &columns, &waiting, shape.rows, way).await;
        }
        waiting.clear();
    }
    drop(rows);
    let mut ways = Vec::new();
    for (connection, shape, way) in targets {
        connection.close().await.unwrap();
        places.remove(Engine::Sqlite, &format!("raw_{}_{}", shape.rows, shape.guarded)).await;
        ways.push(way);
    }
    ways
}

async fn open(file: &Path, read_only: bool) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(file).read_only(read_only);
    let options = match read_only {
        true => options,
        false => options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", "-16384")
            .pragma("wal_autocheckpoint", "4096"),
    };
    SqliteConnection::connect_with(&options).await.unwrap()
}

async fn drop_triggers(connection: &mut SqliteConnection) {
    let rows = sqlx::query("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetch_all(&mut *connection).await;
    for row in rows.unwrap() {
        let name: String = row.get(0);
        connection.execute(AssertSqlSafe(format!("DROP TRIGGER {name}"))).await.unwrap();
    }
}

fn cells(row: &SqliteRow) -> Vec<Cell> {
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

async fn insert(
    connection: &mut SqliteConnection,
    table: &str,
    columns: &[String],
    group: &[Vec<Cell>],
    rows: usize,
    way: &mut Way,
) {
    let statement = |rows: usize| {
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        let values = vec![row.as_str(); rows].join(", ");
        format!("INSERT INTO {table} ({}) VALUES {values} ON CONFLICT DO NOTHING", columns.join(", "))
    };
    // What remains is inserted row by row, so that two statements do, however long the last group is.
    let (many, one) = (statement(rows), statement(1));
    let mut batches: Vec<(&str, SqliteArguments)> = Vec::new();
    let chunks = group.chunks_exact(rows);
    let rest = chunks.remainder();
    batches.extend(chunks.map(|chunk| (many.as_str(), arguments(chunk))));
    batches.extend(rest.chunks(1).map(|chunk| (one.as_str(), arguments(chunk))));
    let start = Instant::now();
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
    for (sql, arguments) in batches {
        sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    way.time += start.elapsed();
    way.rows += group.len() as u64;
}

fn arguments(rows: &[Vec<Cell>]) -> SqliteArguments {
    let mut arguments = SqliteArguments::default();
    for cell in rows.iter().flatten().cloned() {
        match cell {
            Cell::Null => arguments.add(None::<i64>),
            Cell::Integer(value) => arguments.add(value),
            Cell::Text(value) => arguments.add(value),
            Cell::Blob(value) => arguments.add(value),
        }
        .unwrap();
    }
    arguments
}
