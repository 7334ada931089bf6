//! Beginning a transaction, whole.
//!
//! In sqlx 0.9 a PostgreSQL connection knows of its transaction once `BEGIN` is answered: a future that is dropped before,
//! by a client that has left or a time-out, may leave it open and unknown, and whoever is given the connection next is
//! inside it. A soak that cut clients off at random met such a connection. So each `BEGIN` runs in a task of its own, to its
//! end: a transaction that nobody waits for any more is dropped whole, and so rolled back.
//!
//! ```text
//! caller   begin ──────── dropped
//! task           BEGIN ─────────── answer ─ Transaction, dropped ─ ROLLBACK ─ idle
//! ```

use sea_orm::{AccessMode, DatabaseConnection, DatabaseTransaction, IsolationLevel, TransactionTrait as _};
use sqlx::{Postgres, Transaction};
use tracing::Instrument as _;

use crate::error::{Error, Result};

/// A transaction of either engine.
pub async fn begin(connection: &DatabaseConnection) -> Result<DatabaseTransaction> {
    let connection = connection.clone();
    whole(async move { connection.begin().await }).await
}

/// A transaction of PostgreSQL that only reads, and sees one snapshot.
pub async fn begin_snapshot(connection: &DatabaseConnection) -> Result<DatabaseTransaction> {
    let connection = connection.clone();
    let snapshot = (Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly));
    whole(async move { connection.begin_with_config(snapshot.0, snapshot.1).await }).await
}

/// A transaction of PostgreSQL's own driver.
pub async fn begin_postgres(connection: &DatabaseConnection) -> Result<Transaction<'static, Postgres>> {
    let pool = connection.get_postgres_connection_pool().clone();
    whole(async move { pool.begin().await }).await
}

async fn whole<T, E>(begin: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    E: Into<Error> + Send + 'static,
{
    tokio::spawn(begin.in_current_span()).await.map_err(Error::internal)?.map_err(Into::into)
}
