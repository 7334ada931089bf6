//! Every statement that the store sends, caught in the server's own log.

use std::collections::{BTreeMap, BTreeSet};

use service_core::config::{DatabaseConfig, DatabaseUrl};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use testkit::{Durability, Postgres};

use super::rules::{Columns, changes_partitions, touches_workers, violations};
use crate::Bench;

/// What begins and ends the prefix of each line of the log; no statement of ours holds them.
const PREFIX: (char, char) = ('\u{1}', '\u{2}');
/// The application name of all connections of a service.
const SERVICE: &str = "activity";

/// A server that logs what the store sends to databases whose schema is made.
pub(crate) struct Listening {
    server: Postgres,
}

impl Listening {
    pub(crate) async fn start() -> Self {
        let server = Postgres::start_with(Durability::Relaxed).await;
        let this = Self { server };
        let url = this.server.create_database().await;
        let prefix = format!("ALTER SYSTEM SET log_line_prefix = '{}%p|%a{}'", PREFIX.0, PREFIX.1);
        for sql in [prefix.as_str(), "ALTER SYSTEM SET log_parameter_max_length = 0", "SELECT pg_reload_conf()"] {
            execute(&url, sql).await;
        }
        this
    }

    /// An empty store; of making its schema nothing is logged.
    pub(crate) async fn bench(&self) -> Bench {
        let url = self.server.create_database().await;
        let config = DatabaseConfig::default();
        let url = DatabaseUrl::new(url).unwrap();
        crate::open(&url, &config).await.close().await;
        let database = url.expose().rsplit('/').next().unwrap();
        execute(url.expose(), &format!("ALTER DATABASE {database} SET log_statement = 'all'")).await;
        Bench { store: crate::open(&url, &config).await, url, config, _folder: None }
    }

    /// What was sent, by the process that served it.
    pub(crate) fn sent(&self) -> Vec<(u32, String)> {
        let log = self.server.log();
        let records = log.split(PREFIX.0).filter_map(|record| record.split_once(PREFIX.1));
        records
            .filter_map(|(prefix, record)| {
                let (process, application) = prefix.split_once('|')?;
                let message = record.strip_prefix("LOG:  ")?;
                let sql = message
                    .strip_prefix("statement: ")
                    .or_else(|| message.strip_prefix("execute ")?.split_once(": ").map(|(_, sql)| sql))?;
                let sql = sql.trim_end_matches('\n').replace("\n\t", "\n");
                (application == SERVICE).then_some((process.parse().ok()?, sql))
            })
            .collect()
    }
}

/// The columns of all our tables.
pub(crate) async fn columns(url: &str) -> Columns {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT table_name::text, column_name::text FROM information_schema.columns WHERE table_schema = 'public'",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let mut columns = Columns::new();
    for (table, column) in rows {
        columns.entry(table).or_default().insert(column);
    }
    columns
}

/// Everything that is wrong with what was sent, with the statement.
pub(crate) fn wrong(sent: &[(u32, String)], columns: &Columns) -> Vec<String> {
    let distinct: BTreeSet<&str> = sent.iter().map(|(_, sql)| sql.as_str()).collect();
    let mut wrong: Vec<String> = distinct
        .into_iter()
        .flat_map(|sql| violations(sql, columns).into_iter().map(move |why| format!("{why}: {sql}")))
        .collect();
    // Citus refuses to change partitions as their owner in a transaction that has been to the workers.
    let mut been: BTreeMap<u32, bool> = BTreeMap::new();
    for (process, sql) in sent {
        let word = sql.split_whitespace().next().unwrap_or_default().to_uppercase();
        match word.as_str() {
            "BEGIN" | "START" => _ = been.insert(*process, false),
            "COMMIT" | "ROLLBACK" if !sql.to_uppercase().contains(" TO ") => _ = been.remove(process),
            _ => {
                let been = been.get_mut(process);
                if been.as_ref().is_some_and(|been| **been) && changes_partitions(sql) {
                    wrong.push(format!("changes partitions in a transaction that has been to the workers: {sql}"));
                }
                if let Some(been) = been {
                    *been |= touches_workers(sql);
                }
            }
        }
    }
    wrong
}

async fn execute(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
}
