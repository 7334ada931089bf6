//! The library inside a gateway and a platform's services: it streams **usage events**
//! and **audit events** out to their two services, and asks them typed questions.
//!
//! ```text
//!  usage().record ──┐                                      ┌▶ usage-service ─┐
//!                   ├▶ encode ▶ queue ▶ sender ═ stream ═▶ │                 │ queries
//!  audit().record ──┘            │        ▲                └▶ audit-service ─┤
//!        ▲                       │        │                         │        │
//!        │                 full: drop     └── acknowledgements ◀────┘        │
//!        │                 oldest / fail            │                        │
//!        └───────────── receipt ────────────────────┘      your backend ◀────┘
//! ```
//!
//! | to read | for |
//! | --- | --- |
//! | [`GatewaySdk`], [`Builder`] | building, flushing, shutting down, counters |
//! | [`Usage`] | recording requests; summaries, breakdowns, series, exports, prices |
//! | [`Audit`] | recording administrative actions; entries, tail, export |
//! | `queue` | the bounded queue and what happens when it is full |
//! | `sender` | batches, acknowledgements, reconnecting, the one bad event |
//! | [`Credentials`], [`Tls`] | tokens that are renewed, certificates, mutual TLS |
//! | `retry` | what may be tried again, and when: pure functions |
//!
//! # What is promised
//!
//! - **Usage never slows a request.** [`Usage::record`] does not wait, whatever state the
//!   service is in.
//! - **Audit fails closed.** [`Audit::record`] returns `Ok` only when the entry is durable;
//!   what it could not have acknowledged in time stays queued ([`Error::NotAcknowledged`]).
//! - **Delivered once.** What was sent without an answer is sent again, after any break,
//!   and the event's id, fixed when it was built, makes the service store it once.
//! - **Nothing is lost silently.** What is dropped is counted, and reported to the service
//!   as such; what is refused is counted and handed to [`Builder::on_rejected`].
//! - **Bounded**: memory by the queues and the batches under way; [`GatewaySdk::flush`] and
//!   [`GatewaySdk::shutdown`] by their time-outs, with an honest answer.
//! - **No secret** goes over plain text to another machine, or into a log, an error or a
//!   `Debug`. What a service refuses for want of credentials or rights stays queued.
//! - **No panic** leaves this crate, and it starts nothing but one task a service.
//!
//! # What a crash loses
//!
//! **The queue is in memory.** If the process is killed, or its runtime ends, everything
//! that was not acknowledged is gone: of usage, what was recorded within about the last
//! linger and round trip while the service is well, and up to the whole queue (by default
//! 65,536 events) while it is away. Its producer's numbers end there, so that the loss of
//! the last ones can't be seen from the numbers alone. Of audit nothing is lost for which
//! `record` returned `Ok`. A durable spool will close the gap for usage.
//!
//! # Example
//!
//! ```no_run
//! use gateway_sdk::{Actor, AuditEvent, GatewaySdk, Resource, Tokens, UsageEvent};
//! use std::time::Duration;
//!
//! # async fn example() -> Result<(), gateway_sdk::Error> {
//! let sdk = GatewaySdk::builder()
//!     .usage_endpoint("http://127.0.0.1:50052")
//!     .audit_endpoint("http://127.0.0.1:50051")
//!     .instance("production")
//!     .build()?;
//!
//! sdk.usage().record(
//!     UsageEvent::builder("openai", "gpt-4o")
//!         .user("alice")
//!         .tokens(Tokens { input_uncached: 1_200, output: 85, ..Tokens::default() }),
//! );
//!
//! let recorded = sdk
//!     .audit()
//!     .record(AuditEvent::builder(
//!         Actor::user("u-17").display_name("alice@example.com"),
//!         "model.enabled",
//!         Resource::new("model", "gpt-4o"),
//!     ))
//!     .await;
//! match recorded {
//!     Ok(recorded) => println!("stored as number {}", recorded.receipt().await?.sequence),
//!     // Not acknowledged is not refused: it may still be queued, and arrive later.
//!     Err(error) => eprintln!("not known to be recorded: {error}"),
//! }
//!
//! let left = sdk.shutdown(Duration::from_secs(10)).await;
//! if !left.is_complete() {
//!     eprintln!("not delivered: {left:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `examples/record.rs` and `examples/query.rs` are whole programs.

#![deny(missing_docs)]

mod audit;
mod config;
mod credentials;
mod endpoint;
mod error;
mod feed;
mod id;
mod query;
mod queue;
mod retry;
mod sender;
mod stats;
mod tls;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// The contract's messages, as answers carry them.
pub use activity_proto as proto;

pub use activity_proto::audit::v1::{ActorKind, AuditEntry, Order, Outcome, Stage};
pub use activity_proto::common::v1::{ErrorReason, Interval, TimeRangePreset};
pub use activity_proto::usage::v1::{Bucket, Dimension, Metric, RequestStatus, UsageRequest};
pub use tonic::Code;

pub use crate::audit::event::{Actor, AuditEvent, AuditEventBuilder, Resource};
pub use crate::audit::query::{AuditExport, AuditFilter, AuditQuery};
pub use crate::audit::tail::TailQuery;
pub use crate::audit::{Audit, Receipt, Recorded};
pub use crate::config::{Builder, Rejected, RejectedEvent};
pub use crate::credentials::{Credentials, Token};
pub use crate::error::{AccessProblem, Error, FieldViolation, Rejection, ServiceError};
pub use crate::query::export::{ExportFormat, ExportProgress, Exported};
pub use crate::query::{Page, TimeRange};
pub use crate::stats::{Flushed, ServiceStats, Stats, Waiting};
pub use crate::tls::Tls;
pub use crate::usage::Usage;
pub use crate::usage::event::{Tokens, UsageEvent, UsageEventBuilder};
pub use crate::usage::pricing::{CostQuery, PriceQuery};
pub use crate::usage::query::{Grouping, UsageFilter, UsageQuery, UsageShape};

/// The SDK: both services' handles; cheap to clone.
///
/// When the last clone (of it, of [`Usage`] or of [`Audit`]) is dropped without
/// [`shutdown`](Self::shutdown), it takes no more events and goes on sending in the
/// background for [`drop_grace`](Builder::drop_grace), as long as its runtime lives. What
/// is left then is lost, with a warning in the log. Shut down to know.
#[derive(Clone, Debug)]
pub struct GatewaySdk {
    usage: Usage,
    audit: Audit,
    producer_id: Arc<str>,
}

impl GatewaySdk {
    /// Settings, each with a default.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Usage events, and questions about them.
    #[must_use]
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Audit events, and questions about them.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Under which name this SDK numbers its events.
    #[must_use]
    pub fn producer_id(&self) -> &str {
        &self.producer_id
    }

    /// Counters of what became of everything that was recorded.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { usage: self.usage.feed.stats(), audit: self.audit.feed.stats() }
    }

    /// Sends what was recorded so far without waiting for full batches, and returns when
    /// it is settled, or at the latest after `timeout`, with what still waits.
    pub async fn flush(&self, timeout: Duration) -> Flushed {
        let deadline = Instant::now() + timeout;
        let (usage, audit) = futures::join!(self.usage.feed.flush(deadline), self.audit.feed.flush(deadline));
        Flushed { usage, audit }
    }

    /// Takes no more events, sends what was recorded, and ends, at the latest after
    /// `timeout`. What still waits then is lost with the process. Queries go on working.
    pub async fn shutdown(&self, timeout: Duration) -> Flushed {
        let deadline = Instant::now() + timeout;
        let (usage, audit) = futures::join!(self.usage.feed.shutdown(deadline), self.audit.feed.shutdown(deadline));
        Flushed { usage, audit }
    }
}
