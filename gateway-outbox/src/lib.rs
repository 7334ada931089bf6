//! A transactional outbox for audit events, for platforms whose state is in SQL: the event is
//! written in the transaction of the change, and sent once that is committed.
//!
//! ```text
//! begin ─▶ the change ─▶ enqueue ─▶ commit         relay ─ oldest rows ─▶ audit-service
//!                           │          │             ▲                        │ receipt
//!                           ▼          ▼             │                        ▼
//!                       audit_outbox (a table beside your own) ◀──── rows are removed
//! ```
//!
//! - **Both or neither.** What is rolled back is never sent; what is committed is sent, whatever
//!   dies in between. [`enqueue`] takes a transaction and nothing else.
//! - **Stored once.** A row goes when the service has acknowledged it, and not before: after a
//!   crash it is sent again, under the same id.
//! - **In the order of the rows**, by one relay. Several relays on PostgreSQL, one a replica, share
//!   the work (`FOR UPDATE SKIP LOCKED`): each row is sent by one of them, and order holds within
//!   what one has taken. On SQLite run one; a second one sends everything twice, for nothing.
//! - **Bounded.** A relay reads at most [`Relay::batch`] rows at a time, and does not hand an event
//!   to its SDK again before that has settled it, however often it comes by. So while the service is
//!   away it holds as many events, times the number of relays that share the table. A transaction is
//!   open on PostgreSQL no longer than
//!   [`Builder::audit_timeout`](gateway_sdk::Builder::audit_timeout). The table grows while the
//!   service is away: that is its purpose.
//! - **One bad event holds up no other.** What the service refuses for good stays in the table
//!   with the reason in its column `rejected`, and is not tried again, and so does a row that is no event. What can be told to be
//!   refused is refused by [`enqueue`], before the commit.
//!
//! This is a crate of its own, for the SDK has no database: features of a crate are those that
//! anybody in a build has asked for, and an SDK that *may* bring a database brings it.
//!
//! Give the relay an SDK without a spool: the table is its spool.
//!
//! ```no_run
//! use gateway_outbox::{Relay, enqueue};
//! use gateway_sdk::{Actor, AuditEvent, Diff, GatewaySdk, Resource};
//! use sea_orm::{ConnectionTrait, Database, TransactionTrait};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let db = Database::connect("postgres://platform@db/platform").await?;
//! gateway_outbox::create_table(&db).await?;
//!
//! let transaction = db.begin().await?;
//! transaction.execute_unprepared("UPDATE models SET enabled = true WHERE id = 'gpt-4o'").await?;
//! let event = AuditEvent::builder(Actor::user("u-17"), "model.enabled", Resource::new("model", "gpt-4o"))
//!     .diff(Diff::between(&Some(false), &Some(true)));
//! enqueue(&transaction, event).await?;
//! transaction.commit().await?;
//!
//! let sdk = GatewaySdk::builder().audit_endpoint("http://127.0.0.1:50051").instance("eu-1").build()?;
//! let relay = Relay::new(db, sdk.audit().clone());
//! tokio::spawn(relay.run(std::future::pending()));
//! # Ok(())
//! # }
//! ```

#![deny(missing_docs)]

mod entity;
mod relay;

use gateway_sdk::AuditEvent;
use prost::Message as _;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, Schema, Set};
use uuid::Uuid;

pub use crate::relay::{Relay, Relayed};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database failed.
    #[error("the outbox: {0}")]
    Database(#[from] DbErr),
    /// The service would refuse the event, so it was not taken: roll back.
    #[error("the event was not taken: {0}")]
    Event(#[source] gateway_sdk::Error),
    /// Rows wait, for the service did not acknowledge them.
    #[error("{waiting} events were not acknowledged, and stay: {error}")]
    NotDelivered {
        /// How many of those that were tried.
        waiting: usize,
        /// Why the first of them was not.
        #[source]
        error: gateway_sdk::Error,
    },
}

/// Makes the table `audit_outbox`, unless it is there: call it in a migration of yours, or at
/// start.
///
/// | column | |
/// | --- | --- |
/// | `position` | 64 bits, rising |
/// | `event_id` | the event's UUID, once |
/// | `event` | the event, as the contract encodes it |
/// | `rejected` | why the service refused it for good; absent while it waits |
///
/// # Errors
///
/// Those of the database.
pub async fn create_table(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    let mut table = Schema::new(db.get_database_backend()).create_table_from_entity(entity::Entity);
    db.execute(table.if_not_exists()).await?;
    Ok(())
}

/// Takes an event in the transaction of the change that it tells. It is sent after the commit,
/// and never without. The same event again is taken once.
///
/// # Errors
///
/// [`Error::Event`] for what the service would refuse, [`Error::Database`]: roll back in both
/// cases.
pub async fn enqueue(transaction: &DatabaseTransaction, event: impl Into<AuditEvent>) -> Result<Uuid, Error> {
    let event = event.into();
    event.check().map_err(Error::Event)?;
    let id = event.id();
    let row = entity::ActiveModel {
        event_id: Set(id),
        event: Set(event.as_proto().encode_to_vec()),
        ..entity::ActiveModel::default()
    };
    entity::Entity::insert(row)
        .on_conflict_do_nothing_on([entity::Column::EventId])
        .exec_without_returning(transaction)
        .await?;
    Ok(id)
}
