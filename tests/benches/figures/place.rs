//! Where a run keeps its data: a file or a database, of its own or of one that stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row, SqliteConnection};
use testkit::Postgres;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, ValueEnum)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    pub(crate) const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// A folder, and a server of PostgreSQL, for a run.
pub(crate) struct Places {
    folder: PathBuf,
    /// The folder goes with the run, unless it was given.
    _temporary: Option<tempfile::TempDir>,
    server: Option<Postgres>,
    url: Option<String>,
}

impl Places {
    /// `folder` and `postgres`, the URL of a server without a database, are kept; without them the run makes its own.
    pub(crate) fn new(folder: Option<&Path>, postgres: Option<&str>) -> Self {
        let temporary = folder.is_none().then(|| tempfile::tempdir().unwrap());
        let folder = folder.map_or_else(|| temporary.as_ref().unwrap().path().to_owned(), Path::to_owned);
        fs::create_dir_all(&folder).unwrap();
        Self { folder, _temporary: temporary, server: None, url: postgres.map(str::to_owned) }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The URL of a database of this name, which is there already or is made.
    pub(crate) async fn url(&mut self, engine: Engine, name: &str) -> String {
        if engine == Engine::Sqlite {
            return format!("sqlite://{}", self.file(&format!("{name}.db")).display());
        }
        let server = self.server().await;
        let url = format!("{server}/{name}");
        if PgConnection::connect(&url).await.is_err() {
            let mut connection = PgConnection::connect(&format!("{server}/postgres")).await.unwrap();
            connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        }
        url
    }

    /// A database that is a copy of `of`, to which nobody is connected.
    pub(crate) async fn copy(&mut self, engine: Engine, of: &str, name: &str) -> String {
        if engine == Engine::Sqlite {
            for ending in ["db", "db-wal", "db-shm"] {
                let _ = fs::remove_file(self.file(&format!("{name}.{ending}")));
            }
            fs::copy(self.file(&format!("{of}.db")), self.file(&format!("{name}.db"))).unwrap();
            return self.url(engine, name).await;
        }
        let server = self.server().await;
        let mut connection = PgConnection::connect(&format!("{server}/postgres")).await.unwrap();
        for statement in [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name} TEMPLATE {of}")] {
            connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
        }
        format!("{server}/{name}")
    }

    /// Removes a database.
    pub(crate) async fn remove(&mut self, engine: Engine, name: &str) {
        match engine {
            Engine::Sqlite => {
                for ending in ["db", "db-wal", "db-shm", "db.lock"] {
                    let _ = fs::remove_file(self.file(&format!("{name}.{ending}")));
                }
                // What was signed of it is found missing otherwise, and rightly so.
                let _ = fs::remove_dir_all(self.file(&format!("{name}.db.checkpoints")));
            }
            Engine::Postgres => {
                let server = self.server().await;
                let mut connection = PgConnection::connect(&format!("{server}/postgres")).await.unwrap();
                let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
            }
        }
    }

    /// A server with fsync, unlike the tests' shared one.
    async fn server(&mut self) -> String {
        if self.url.is_none() {
            let server = Postgres::start().await;
            self.url = Some(format!("postgres://postgres@127.0.0.1:{}", server.port()));
            self.server = Some(server);
        }
        self.url.clone().unwrap()
    }
}

/// The file of a SQLite URL.
pub(crate) fn file_of(url: &str) -> PathBuf {
    PathBuf::from(url.strip_prefix("sqlite://").unwrap())
}

/// One number that a statement gives, the same on both engines.
pub(crate) async fn number(url: &str, sql: &str) -> i64 {
    match url.starts_with("sqlite") {
        true => sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&mut sqlite(url).await).await.unwrap().get(0),
        false => {
            let mut connection = PgConnection::connect(url).await.unwrap();
            sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap().get(0)
        }
    }
}

async fn sqlite(url: &str) -> SqliteConnection {
    SqliteConnection::connect(url).await.unwrap()
}

/// Has PostgreSQL write what it has taken: left to itself it does so in the middle of what is measured next.
pub(crate) async fn checkpoint(url: &str) {
    if !url.starts_with("sqlite") {
        let mut connection = PgConnection::connect(url).await.unwrap();
        connection.execute("CHECKPOINT").await.unwrap();
    }
}

/// What the database takes on disk.
pub(crate) async fn bytes(url: &str) -> u64 {
    match url.starts_with("sqlite") {
        true => {
            let file = file_of(url);
            let log = fs::metadata(file.with_extension("db-wal")).map_or(0, |log| log.len());
            fs::metadata(file).unwrap().len() + log
        }
        false => number(url, "SELECT pg_database_size(current_database())").await.unsigned_abs(),
    }
}

/// The versions of both engines.
pub(crate) async fn versions(places: &mut Places, engines: &[Engine]) -> String {
    let mut versions = Vec::new();
    for engine in engines {
        versions.push(match engine {
            Engine::Sqlite => {
                let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
                let row = sqlx::query("SELECT sqlite_version()").fetch_one(&mut connection).await.unwrap();
                format!("SQLite {}", row.get::<String, _>(0))
            }
            Engine::Postgres => {
                let url = format!("{}/postgres", places.server().await);
                let mut connection = PgConnection::connect(&url).await.unwrap();
                let row = sqlx::query("SHOW server_version").fetch_one(&mut connection).await.unwrap();
                format!("PostgreSQL {}", row.get::<String, _>(0))
            }
        });
    }
    versions.join(", ")
}

/// The rows of a query as CSV without a header, by the engine's own program or protocol.
pub(crate) async fn csv(url: &str, sql: &str, into: &mut (impl std::io::Write + Send)) -> u64 {
    use futures::TryStreamExt;
    if url.starts_with("sqlite") {
        let mut child = Command::new("sqlite3")
            .args(["-readonly", "-csv"])
            .arg(file_of(url))
            .arg(sql)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap_or_else(|why| panic!("sqlite3: {why}; `tests/install --benchmarks` installs it"));
        let bytes = std::io::copy(&mut child.stdout.take().unwrap(), into).unwrap();
        assert!(child.wait().unwrap().success());
        return bytes;
    }
    let options: PgConnectOptions = url.parse().unwrap();
    let mut connection = options.connect().await.unwrap();
    let copy = format!("COPY ({sql}) TO STDOUT (FORMAT csv)");
    let mut rows = connection.copy_out_raw(&copy).await.unwrap();
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await.unwrap() {
        bytes += row.len() as u64;
        into.write_all(&row).unwrap();
    }
    bytes
}
