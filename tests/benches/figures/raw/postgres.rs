//! PostgreSQL: COPY as text and as binary, straight and through a staging table; UNNEST; rows as VALUES.

use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use futures::TryStreamExt;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments, AssertSqlSafe, Connection, Executor, PgConnection, Row};
use uuid::Uuid;

use super::Way;
use crate::place::{Engine, Places};

/// Signature, flags and no extension.
const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const PARAMETERS: usize = 65_535;

#[derive(Clone, Copy)]
enum How {
    Copy { binary: bool, staged: bool },
    Unnest,
    Values,
}

const WAYS: [(&str, How); 6] = [
    ("COPY", How::Copy { binary: false, staged: false }),
    ("COPY binary", How::Copy { binary: true, staged: false }),
    ("COPY to staging, INSERT … ON CONFLICT", How::Copy { binary: false, staged: true }),
    ("COPY binary to staging, INSERT … ON CONFLICT", How::Copy { binary: true, staged: true }),
    ("UNNEST … ON CONFLICT", How::Unnest),
    ("VALUES … ON CONFLICT", How::Values),
];

/// A group as each way wants it.
struct Group {
    rows: usize,
    text: Vec<u8>,
    binary: Vec<u8>,
    fields: Vec<Vec<Option<Bytes>>>,
}

/// Every way, over `most` rows of `filled`, in databases that are copies of `empty`.
pub(crate) async fn ways(
    places: &mut Places,
    filled: &str,
    empty: &str,
    table: &str,
    most: u64,
    group: usize,
) -> Vec<Way> {
    let mut source = [PgConnection::connect(filled).await.unwrap(), PgConnection::connect(filled).await.unwrap()];
    let columns = sqlx::query(
        "SELECT column_name::text, data_type::text FROM information_schema.columns \
         WHERE table_name = $1 ORDER BY ordinal_position",
    )
    .bind(table)
    .fetch_all(&mut source[0])
    .await
    .unwrap();
    let columns: Vec<(String, String)> = columns.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut targets = Vec::new();
    for (index, (name, how)) in WAYS.into_iter().enumerate() {
        let url = places.copy(Engine::Postgres, empty, &format!("raw_{index}")).await;
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let staging = format!("CREATE TEMPORARY TABLE staging (LIKE {table}) ON COMMIT DELETE ROWS");
        connection.execute(AssertSqlSafe(staging)).await.unwrap();
        let plain = matches!(how, How::Copy { staged: false, .. });
        targets.push((connection, how, Way::new(name, !plain)));
    }

    let [text, binary] = &mut source;
    let select = format!("SELECT * FROM {table} LIMIT {most}");
    let text = text.copy_out_raw(&format!("COPY ({select}) TO STDOUT")).await.unwrap();
    let binary = binary.copy_out_raw(&format!("COPY ({select}) TO STDOUT (FORMAT binary)")).await.unwrap();
    let (mut text, mut binary) = (text, Tuples { stream: binary, buffer: BytesMut::new(), begun: false });
    let mut waiting = Group { rows: 0, text: Vec::new(), binary: BINARY_HEADER.to_vec(), fields: Vec::new() };
    let mut turn = 0;
    loop {
        // The server sends a row a message, as text; both have the same number of rows.
        let line = text.try_next().await.unwrap();
        if let Some(line) = &line {
            let (tuple, fields) = binary.next().await;
            waiting.rows += 1;
            waiting.text.extend_from_slice(line);
            waiting.binary.extend_from_slice(&tuple);
            waiting.fields.push(fields);
        }
        if waiting.rows == 0 {
            break;
        }
        if waiting.rows < group && line.is_some() {
            continue;
        }
        waiting.binary.extend_from_slice(&(-1_i16).to_be_bytes());
        turn += 1;
        let ways = targets.len();
        for index in 0..ways {
            let (connection, how, way) = &mut targets[(index + turn) % ways];
            match *how {
                How::Copy { binary, staged } => copy(connection, table, &waiting, binary, staged, way).await,
                How::Unnest => unnest(connection, table, &columns, &waiting, way).await,
                How::Values => values(connection, table, &columns, &waiting, way).await,
            }
        }
        waiting = Group { rows: 0, text: Vec::new(), binary: BINARY_HEADER.to_vec(), fields: Vec::new() };
        if line.is_none() {
            break;
        }
    }
    drop((text, binary));
    let mut ways = Vec::new();
    for (index, (connection, _, way)) in targets.into_iter().enumerate() {
        connection.close().await.unwrap();
        places.remove(Engine::Postgres, &format!("raw_{index}")).await;
        ways.push(way);
    }
    ways
}

/// The tuples of a binary COPY.
struct Tuples<'c> {
    stream: futures::stream::BoxStream<'c, sqlx::Result<Bytes>>,
    buffer: BytesMut,
    begun: bool,
}

impl Tuples<'_> {
    /// The next one, whole and by field. The caller knows that there is one.
    async fn next(&mut self) -> (Bytes, Vec<Option<Bytes>>) {
        loop {
            if !self.begun && self.buffer.len() >= BINARY_HEADER.len() {
                self.buffer.advance(BINARY_HEADER.len());
                self.begun = true;
            }
            if self.begun
                && let Some(length) = tuple_length(&self.buffer)
            {
                let tuple = self.buffer.split_to(length).freeze();
                return (tuple.clone(), fields(tuple));
            }
            let more = self.stream.try_next().await.unwrap().unwrap();
            self.buffer.extend_from_slice(&more);
        }
    }
}

fn tuple_length(mut bytes: &[u8]) -> Option<usize> {
    let all = bytes.len();
    let count = bytes.try_get_i16().ok()?;
    for _ in 0..count {
        let length = usize::try_from(bytes.try_get_i32().ok()?).unwrap_or(0);
        bytes = bytes.get(length..)?;
    }
    Some(all - bytes.len())
}

fn fields(mut tuple: Bytes) -> Vec<Option<Bytes>> {
    let count = tuple.get_i16();
    (0..count).map(|_| usize::try_from(tuple.get_i32()).ok().map(|length| tuple.split_to(length))).collect()
}

async fn copy(connection: &mut PgConnection, table: &str, group: &Group, binary: bool, staged: bool, way: &mut Way) {
    let start = Instant::now();
    let mut transaction = connection.begin().await.unwrap();
    let into = if staged { "staging" } else { table };
    let (data, format) = if binary { (&group.binary, " (FORMAT binary)") } else { (&group.text, "") };
    let mut sink = transaction.copy_in_raw(&format!("COPY {into} FROM STDIN{format}")).await.unwrap();
    sink.send(data.as_slice()).await.unwrap();
    sink.finish().await.unwrap();
    if staged {
        let insert = format!("INSERT INTO {table} SELECT * FROM staging ON CONFLICT DO NOTHING");
        transaction.execute(AssertSqlSafe(insert)).await.unwrap();
    }
    transaction.commit().await.unwrap();
    way.time += start.elapsed();
    way.rows += group.rows as u64;
}

/// Each column as one array.
async fn unnest(
    connection: &mut PgConnection,
    table: &str,
    columns: &[(String, String)],
    group: &Group,
    way: &mut Way,
) {
    let arrays: Vec<_> =
        columns.iter().enumerate().map(|(index, (_, kind))| format!("${}::{kind}[]", index + 1)).collect();
    let sql = format!("INSERT INTO {table} SELECT * FROM UNNEST({}) ON CONFLICT DO NOTHING", arrays.join(", "));
    let mut arguments = PgArguments::default();
    for (index, (_, kind)) in columns.iter().enumerate() {
        let cells = group.fields.iter().map(|row| row[index].as_ref());
        match kind.as_str() {
            "bigint" => arguments.add(cells.map(|cell| cell.map(|cell| cell.as_ref().get_i64())).collect::<Vec<_>>()),
            "integer" => arguments.add(cells.map(|cell| cell.map(|cell| cell.as_ref().get_i32())).collect::<Vec<_>>()),
            "smallint" => arguments.add(cells.map(|cell| cell.map(|cell| cell.as_ref().get_i16())).collect::<Vec<_>>()),
            "text" => arguments.add(cells.map(|cell| cell.map(|cell| text(cell))).collect::<Vec<_>>()),
            "uuid" => arguments.add(cells.map(|cell| cell.map(|cell| uuid(cell))).collect::<Vec<_>>()),
            "bytea" => arguments.add(cells.map(|cell| cell.map(Bytes::as_ref)).collect::<Vec<_>>()),
            other => panic!("a column of type {other}"),
        }
        .unwrap();
    }
    let start = Instant::now();
    let mut transaction = connection.begin().await.unwrap();
    sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    way.time += start.elapsed();
    way.rows += group.rows as u64;
}

/// As many rows a statement as there may be parameters.
async fn values(
    connection: &mut PgConnection,
    table: &str,
    columns: &[(String, String)],
    group: &Group,
    way: &mut Way,
) {
    let statements: Vec<_> = group
        .fields
        .chunks(PARAMETERS / columns.len())
        .map(|rows| {
            let row = |index: usize| {
                let first = index * columns.len();
                let places: Vec<_> = (1..=columns.len()).map(|column| format!("${}", first + column)).collect();
                format!("({})", places.join(", "))
            };
            let all: Vec<_> = (0..rows.len()).map(row).collect();
            let mut arguments = PgArguments::default();
            for (cell, (_, kind)) in rows.iter().flat_map(|row| row.iter().zip(columns)) {
                let cell = cell.as_ref();
                match kind.as_str() {
                    "bigint" => arguments.add(cell.map(|cell| cell.as_ref().get_i64())),
                    "integer" => arguments.add(cell.map(|cell| cell.as_ref().get_i32())),
                    "smallint" => arguments.add(cell.map(|cell| cell.as_ref().get_i16())),
                    "text" => arguments.add(cell.map(|cell| text(cell))),
                    "uuid" => arguments.add(cell.map(|cell| uuid(cell))),
                    _ => arguments.add(cell.map(Bytes::as_ref)),
                }
                .unwrap();
            }
            (format!("INSERT INTO {table} VALUES {} ON CONFLICT DO NOTHING", all.join(", ")), arguments)
        })
        .collect();
    let start = Instant::now();
    let mut transaction = connection.begin().await.unwrap();
    for (sql, arguments) in statements {
        sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    way.time += start.elapsed();
    way.rows += group.rows as u64;
}

fn text(cell: &[u8]) -> &str {
    std::str::from_utf8(cell).unwrap()
}

fn uuid(cell: &[u8]) -> Uuid {
    Uuid::from_slice(cell).unwrap()
}
