//! What sends committed rows, and removes them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{join_all, select};
use futures::pin_mut;
use gateway_sdk::proto::audit::v1::AuditEvent as Message;
use gateway_sdk::{Audit, AuditEvent, Error as SdkError, Recorded};
use prost::Message as _;
use sea_orm::sea_query::{Expr, LockBehavior, LockType};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    TransactionTrait,
};
use uuid::Uuid;

use crate::Error;
use crate::entity::{Column, Entity, Model};

/// The longest wait after failures.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relayed {
    /// Rows whose events the service has, and which were removed.
    pub delivered: usize,
    /// Rows that were put aside: the service refuses them for good.
    pub rejected: usize,
}

/// Sends committed rows, oldest first; see the crate's documentation.
///
/// ```text
/// row ─▶ handed over ─▶ the SDK's queue ─▶ service
///            │                               │ receipt
///            └─▶ under way ─ the next round asks again, and hands nothing over twice
/// ```
#[derive(Clone, Debug)]
#[must_use = "call `run`"]
pub struct Relay {
    db: DatabaseConnection,
    audit: Audit,
    batch: u64,
    interval: Duration,
    under_way: Arc<Mutex<HashMap<Uuid, Recorded>>>,
}

impl Relay {
    /// From the database of the table to the service of an SDK.
    pub fn new(db: DatabaseConnection, audit: Audit) -> Self {
        Self { db, audit, batch: 100, interval: Duration::from_millis(500), under_way: Arc::default() }
    }

    /// How many rows are taken at once, from 1. Default: 100, of up to 64 KiB each.
    pub fn batch(mut self, rows: u64) -> Self {
        self.batch = rows.max(1);
        self
    }

    /// How long to wait for new rows where there are none. Default: 500 ms.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Relays until `stop` is done. Failures are logged and tried again, after up to 30 s.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let relaying = async {
            let mut wait = self.interval;
            loop {
                match self.round().await {
                    // There may be more.
                    Ok(relayed) if relayed != Relayed::default() => {
                        wait = self.interval;
                        continue;
                    }
                    Ok(_) => wait = self.interval,
                    Err(error) => {
                        tracing::warn!(%error, "the outbox is not relayed; tried again in {wait:?}");
                        wait = (wait * 2).clamp(Duration::from_millis(10), MAX_WAIT);
                    }
                }
                tokio::time::sleep(wait).await;
            }
        };
        pin_mut!(relaying, stop);
        // A round that is cut off leaves its rows, for the next relay.
        select(relaying, stop).await;
    }

    /// Sends the oldest rows that no other relay has, and removes those that were acknowledged.
    ///
    /// ```text
    /// rows locked ─▶ sent ─▶ receipts ─▶ removed ─▶ committed
    ///    └────────────┴─────────┴── dies here: the rows are there, and are sent again
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotDelivered`] where some stay, after those before them were removed;
    /// [`Error::Database`].
    pub async fn round(&self) -> Result<Relayed, Error> {
        // Locks of rows end with the transaction, however that ends. SQLite has none, and a
        // transaction would shut out its writers meanwhile.
        if self.db.get_database_backend() != DbBackend::Postgres {
            return self.relay(&self.db).await;
        }
        let transaction = self.db.begin().await?;
        let relayed = self.relay(&transaction).await;
        match relayed {
            Err(Error::Database(_)) => transaction.rollback().await?,
            _ => transaction.commit().await?,
        }
        relayed
    }

    async fn relay(&self, db: &impl ConnectionTrait) -> Result<Relayed, Error> {
        let rows = Entity::find()
            .filter(Column::Rejected.is_null())
            .order_by_asc(Column::Position)
            .limit(self.batch)
            .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked)
            .all(db)
            .await?;
        self.forget_settled(&rows);
        // All are handed over, in order, before any is waited for.
        let ends = join_all(rows.iter().map(|row| self.send(row))).await;
        let (mut delivered, mut rejected, mut left) = (Vec::new(), 0, Vec::new());
        for (row, end) in rows.iter().zip(ends) {
            match end {
                Ok(()) => delivered.push(row.position),
                Err(Undelivered::ForGood(why)) => {
                    tracing::error!(position = row.position, event = %row.event_id, why, "an event is put aside");
                    Entity::update_many()
                        .col_expr(Column::Rejected, Expr::value(why))
                        .filter(Column::Position.eq(row.position))
                        .exec(db)
                        .await?;
                    rejected += 1;
                }
                Err(Undelivered::Yet(error)) => left.push(error),
            }
        }
        let relayed = Relayed { delivered: delivered.len(), rejected };
        if !delivered.is_empty() {
            Entity::delete_many().filter(Column::Position.is_in(delivered)).exec(db).await?;
        }
        let waiting = left.len();
        match left.into_iter().next() {
            None => Ok(relayed),
            Some(error) => Err(Error::NotDelivered { waiting, error }),
        }
    }

    /// Rows that another relay has sent meanwhile are nobody's any more.
    fn forget_settled(&self, rows: &[Model]) {
        let is_asked_for = |id: &Uuid| rows.iter().any(|row| row.event_id == *id);
        self.under_way().retain(|id, recorded| is_asked_for(id) || recorded.receipt().now_or_never().is_none());
    }

    async fn send(&self, row: &Model) -> Result<(), Undelivered> {
        let known = self.under_way().get(&row.event_id).cloned();
        let recorded = match known {
            Some(recorded) => recorded,
            None => self.hand_over(row).await?,
        };
        let receipt = recorded.receipt().await;
        if !matches!(receipt, Err(SdkError::NotAcknowledged { .. })) {
            self.under_way().remove(&row.event_id);
        }
        receipt.map(drop).map_err(Undelivered::from)
    }

    async fn hand_over(&self, row: &Model) -> Result<Recorded, Undelivered> {
        let message = Message::decode(row.event.as_slice())
            .map_err(|_| Undelivered::ForGood("the row is no event".to_owned()))?;
        let recorded = self.audit.hand_over(AuditEvent::from_proto(message)).await?;
        self.under_way().insert(row.event_id, recorded.clone());
        Ok(recorded)
    }

    /// Handed over, and not acknowledged.
    fn under_way(&self) -> MutexGuard<'_, HashMap<Uuid, Recorded>> {
        // Nothing that can panic midway runs under it.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<SdkError> for Undelivered {
    fn from(error: SdkError) -> Self {
        match error {
            SdkError::Rejected(_) | SdkError::TooLarge { .. } => Self::ForGood(error.to_string()),
            error => Self::Yet(error),
        }
    }
}

/// Why a row stays.
enum Undelivered {
    Yet(SdkError),
    ForGood(String),
}
