//! The one classifier of database errors, for both engines.
//!
//! SQLite: <https://www.sqlite.org/rescode.html>, PostgreSQL:
//! <https://www.postgresql.org/docs/current/errcodes-appendix.html>.

use std::sync::Arc;

use sea_orm::{DbErr, RuntimeErr, SqlxError};
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

use super::Error;
use crate::telemetry::metrics;

/// What a database error means for the call that met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Away, busy, full, read-only or closed to us: nothing was stored, later it may work.
    Unavailable,
    /// The transaction lost a conflict: the same again at once may work.
    Contention,
    /// A statement ran into the time limit.
    TimedOut,
    /// Anything else is a defect of ours.
    Defect,
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let fault = classify(&error);
        build(fault, anyhow::Error::new(error))
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let fault = match &error {
            DbErr::ConnectionAcquire(_) => Fault::Unavailable,
            DbErr::Conn(inner) | DbErr::Exec(inner) | DbErr::Query(inner) => match inner {
                RuntimeErr::SqlxError(inner) => classify(inner),
                _ => Fault::Defect,
            },
            _ => Fault::Defect,
        };
        build(fault, anyhow::Error::new(error))
    }
}

fn build(fault: Fault, cause: anyhow::Error) -> Error {
    metrics::storage_error(match fault {
        Fault::Unavailable => "unavailable",
        Fault::Contention => "contention",
        Fault::TimedOut => "timed_out",
        Fault::Defect => "defect",
    });
    let cause = Arc::new(cause);
    match fault {
        Fault::Unavailable => Error::StorageUnavailable(cause),
        Fault::Contention => Error::Contention(cause),
        Fault::TimedOut => {
            tracing::warn!(cause = %super::chain(&cause), "statement timed out");
            Error::DeadlineExceeded("the database took too long to answer".into())
        }
        Fault::Defect => Error::Internal(cause),
    }
}

fn classify(error: &SqlxError) -> Fault {
    match error {
        SqlxError::Database(inner) => {
            let code = inner.code();
            if inner.try_downcast_ref::<SqliteError>().is_some() {
                // sqlx gives the extended code as decimal digits.
                sqlite(code.and_then(|code| code.parse().ok()).unwrap_or(0))
            } else if inner.try_downcast_ref::<PgDatabaseError>().is_some() {
                postgres(&code.unwrap_or_default(), inner.message())
            } else {
                Fault::Defect
            }
        }
        SqlxError::Io(_)
        | SqlxError::Tls(_)
        | SqlxError::PoolTimedOut
        | SqlxError::PoolClosed
        | SqlxError::WorkerCrashed
        // A connection cut in the middle of a message reads as a bad message.
        | SqlxError::Protocol(_) => Fault::Unavailable,
        _ => Fault::Defect,
    }
}

fn sqlite(extended: i32) -> Fault {
    const BUSY_SNAPSHOT: i32 = 5 | (2 << 8);
    if extended == BUSY_SNAPSHOT {
        return Fault::Contention;
    }
    match extended & 0xff {
        // LOCKED: a conflict inside this process.
        6 => Fault::Contention,
        // INTERRUPT: the time limit of a reader.
        9 => Fault::TimedOut,
        // BUSY, NOMEM, READONLY, IOERR, FULL, CANTOPEN
        5 | 7 | 8 | 10 | 13 | 14 => Fault::Unavailable,
        _ => Fault::Defect,
    }
}

/// What Citus says, as an internal error, when a worker goes away in the middle of
/// something: its own words, and those of its client library. Once it knows, it says so
/// properly (08006).
const WORKER_LOST: [&str; 9] = [
    "failure on connection marked as essential",
    "server closed the connection unexpectedly",
    "SSL connection has been closed unexpectedly",
    "SSL SYSCALL error",
    "SSL error",
    "could not receive data from server",
    "could not send data to server",
    "no connection to the server",
    "connection not open",
];

fn postgres(state: &str, message: &str) -> Fault {
    match state {
        "XX000" if WORKER_LOST.iter().any(|lost| message.starts_with(lost)) => Fault::Unavailable,
        // serialization_failure, deadlock_detected, lock_not_available
        "40001" | "40P01" | "55P03" => Fault::Contention,
        // query_canceled is what statement_timeout raises
        "57014" => Fault::TimedOut,
        // read_only_sql_transaction: a failover left us on a standby;
        // idle_in_transaction_session_timeout: we stood still, and nothing is stored
        "25006" | "25P03" => Fault::Unavailable,
        // insufficient_privilege: a grant is missing, and somebody will put it right
        "42501" => Fault::Unavailable,
        _ => match state.get(..3) {
            // operator intervention: shutdown, crash recovery, cannot connect
            Some("57P") => Fault::Unavailable,
            _ => match state.get(..2) {
                // connection, insufficient resources, system (I/O) errors; a password that was
                // changed, a database that is not there
                Some("08" | "53" | "58" | "28" | "3D") => Fault::Unavailable,
                _ => Fault::Defect,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_codes_are_classified() {
        let table = [
            (5, Fault::Unavailable),             // BUSY
            (5 | (1 << 8), Fault::Unavailable),  // BUSY_RECOVERY
            (5 | (2 << 8), Fault::Contention),   // BUSY_SNAPSHOT
            (6, Fault::Contention),              // LOCKED
            (8 | (1 << 8), Fault::Unavailable),  // READONLY_RECOVERY
            (9, Fault::TimedOut),                // INTERRUPT
            (10 | (4 << 8), Fault::Unavailable), // IOERR_FSYNC
            (13, Fault::Unavailable),            // FULL
            (14, Fault::Unavailable),            // CANTOPEN
            (11, Fault::Defect),                 // CORRUPT
            (19 | (8 << 8), Fault::Defect),      // CONSTRAINT_UNIQUE
            (1, Fault::Defect),                  // ERROR
        ];
        for (code, fault) in table {
            assert_eq!(sqlite(code), fault, "{code}");
        }
    }

    #[test]
    fn postgres_states_are_classified() {
        let table = [
            ("40001", Fault::Contention),
            ("40P01", Fault::Contention),
            ("55P03", Fault::Contention),
            ("57014", Fault::TimedOut),
            ("57P01", Fault::Unavailable),
            ("57P03", Fault::Unavailable),
            ("53300", Fault::Unavailable),
            ("53100", Fault::Unavailable),
            ("08006", Fault::Unavailable),
            ("58030", Fault::Unavailable),
            ("25006", Fault::Unavailable),
            ("25P03", Fault::Unavailable),
            ("28P01", Fault::Unavailable),
            ("28000", Fault::Unavailable),
            ("3D000", Fault::Unavailable),
            ("42501", Fault::Unavailable),
            ("23505", Fault::Defect),
            ("42P01", Fault::Defect),
            ("", Fault::Defect),
        ];
        for (state, fault) in table {
            assert_eq!(postgres(state, ""), fault, "{state}");
        }
        for lost in WORKER_LOST {
            assert_eq!(postgres("XX000", &format!("{lost}: worker-1:5432")), Fault::Unavailable);
        }
        assert_eq!(postgres("XX000", "cache lookup failed for relation 7"), Fault::Defect);
    }

    #[test]
    fn pool_and_connection_errors_are_unavailable() {
        for error in [
            SqlxError::PoolTimedOut,
            SqlxError::PoolClosed,
            SqlxError::WorkerCrashed,
            SqlxError::Io(std::io::Error::other("gone")),
        ] {
            assert!(matches!(Error::from(error), Error::StorageUnavailable(_)));
        }
        assert!(matches!(Error::from(SqlxError::RowNotFound), Error::Internal(_)));
    }
}
