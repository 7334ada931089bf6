//! The library inside a gateway and a platform's services: it streams **usage events**
//! and **audit events** out to their two services, and asks them typed questions.
//!
//! ```text
//!  usage().record ──┐                                             ┌▶ usage-service ─┐
//!                   ├▶ encode ▶ spool or queue ▶ sender ═ stream ═▶│                 │ queries
//!  audit().record ──┘            │         ▲        ▲             └▶ audit-service ─┤
//!        ▲                       │     read back    │                       │       │
//!        │                 full: drop    after      └── acknowledgements ◀──┘       │
//!        │                oldest / fail  a break              │                     │
//!        └────────────────── receipt ─────────────────────────┘    your backend ◀───┘
//! ```
//!
//! | to read | for |
//! | --- | --- |
//! | [`GatewaySdk`], [`Builder`] | building, flushing, shutting down, counters |
//! | [`Usage`] | recording requests; summaries, breakdowns, series, exports, prices |
//! | [`Audit`] | recording administrative actions; entries, tail, export |
//! | [`GatewaySdk::investigate`], [`GatewaySdk::impact`] | both services at once: what was done while traffic changed, and what an action did to it |
//! | [`Audit::begin`], [`Operation`] | actions in two entries: the intent before the change, the outcome after it |
//! | [`Stats::samples`] | the counters for any metrics system; with the feature `opentelemetry`, for a meter |
//! | `layer` | with the feature `layer`: a tower layer that lets nothing through without a record |
//! | [`Diff`], [`Secrets`] | what a change has changed, without what nobody may read |
//! | `spool` | the design of the files that events wait in, and what each crash leaves |
//! | `partial` | the files of an export that is not whole yet, and how the next call goes on |
//! | `queue` | the bounded queue in memory, where no folder for a spool was given |
//! | `sender` | batches, acknowledgements, reconnecting, the one bad event |
//! | [`Credentials`], [`Tls`] | tokens that are renewed, certificates, mutual TLS |
//! | [`Usage::set_endpoint`], [`Audit::set_endpoint`] | services that move, without a restart |
//! | `retry` | what may be tried again, and when: pure functions |
//!
//! # What is promised
//!
//! - **Usage never slows a request.** [`Usage::record`] does not wait, whatever state the
//!   service is in.
//! - **Audit fails closed.** [`Audit::record`] returns `Ok` only when the event is durable:
//!   synced to the local disk with a [`spool`](Builder::spool), stored by the service without.
//! - **No change without a trace**: [`Audit::begin`] makes the intent durable before the change, so
//!   that whatever dies in the middle leaves an intent that stands open; the `layer` does so for
//!   every route that is not listed as read only.
//! - **Delivered once.** What was sent without an answer is sent again, after any break,
//!   and the event's id, fixed when it was built, makes the service store it once.
//! - **A backlog holds up nothing fresh**: while a spooled day of usage is delivered, what is
//!   recorded has every second batch, and so has the day.
//! - **Nothing is lost silently.** What is dropped is counted, and reported to the service
//!   as such; what is refused is counted, handed to [`Builder::on_rejected`], and kept in the
//!   spool's `rejected.jsonl`.
//! - **An export's file is whole or not there**: it has its name when all of it is on disk, and its
//!   count and hash are what the service says; a break, or the death of either side, is gone on
//!   from ([`Audit::export_file`], [`Usage::export_file`]).
//! - **Bounded**: memory by the queues or four mapped files a service, disk by the spool's
//!   limits, and both by the batches under way; [`GatewaySdk::flush`] and
//!   [`GatewaySdk::shutdown`] by their time-outs, with an honest answer.
//! - **No secret** goes over plain text to another machine, or into a log, an error or a
//!   `Debug`. What a service refuses for want of credentials or rights stays queued.
//! - **No panic** leaves this crate. It starts one task a service and, with a spool, two
//!   threads a service. The tasks run on the tokio runtime in which it is built; outside of one, or
//!   with [`own_thread`](Builder::own_thread), on a thread of its own, and
//!   [`GatewaySdk::block_on`] waits for what is asynchronous.
//!
//! # What a crash loses
//!
//! | | with a [`spool`](Builder::spool) | without, in memory |
//! | --- | --- | --- |
//! | the process is killed | nothing that `record` returned for: the next process with the same folder delivers it | of usage what was not acknowledged: about the last linger and round trip while the service is well, up to the whole queue (65,536 events) while it is away, and its producer's numbers end there; of audit nothing for which `record` returned `Ok` |
//! | the machine dies | of usage at most the last [`spool_sync`](Builder::spool_sync) (1 s); of audit nothing | the same |
//! | the services are away for a day | nothing, as long as the limits of the spool last; beyond them the oldest usage, reported as dropped, and audit fails | what the queue does not hold: likewise |
//!
//! A spool's folder holds what was recorded, in the clear, and is readable by its user alone;
//! so is `rejected.jsonl` in it, a line of JSON for each event that was refused for good, with
//! the encoded event in base64.
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
//! `examples/record.rs`, `examples/query.rs` and `examples/investigate.rs` are whole programs.

#![deny(missing_docs)]

mod audit;
mod config;
mod credentials;
mod diff;
mod endpoint;
mod error;
mod feed;
mod id;
mod insight;
#[cfg(feature = "layer")]
pub mod layer;
mod metrics;
mod outbox;
mod query;
mod queue;
mod random;
mod retry;
mod runtime;
mod sender;
mod spool;
mod stats;
mod tls;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Keys that are believed, and what they prove: the same that the verifier of exports goes by.
pub use audit_proof::{PinnedKey, receipt::ProvenEntry};

/// The contract's messages, as answers carry them.
pub use activity_proto as proto;

pub use activity_proto::audit::v1::{ActorKind, AuditEntry, Order, Outcome, Stage};
pub use activity_proto::common::v1::{ErrorReason, Interval, TimeRangePreset};
pub use activity_proto::usage::v1::{Bucket, Dimension, Metric, RequestStatus, UsageRequest};
pub use tonic::Code;

pub use crate::audit::event::{Actor, AuditEvent, AuditEventBuilder, Resource};
pub use crate::audit::export::AuditExport;
pub use crate::audit::operation::{Abandoned, Begin, Operation, OperationStats, Unrecorded};
pub use crate::audit::proof::{NotProven, ProvenReceipt};
pub use crate::audit::query::{AuditFilter, AuditQuery};
pub use crate::audit::tail::TailQuery;
pub use crate::audit::{Audit, Receipt, Recorded};
pub use crate::config::{Builder, Rejected, RejectedEvent, SpoolPressure};
pub use crate::credentials::{Credentials, Token};
pub use crate::diff::{Diff, Secrets, secret};
pub use crate::error::{AccessProblem, Error, FieldViolation, Rejection, ServiceError};
pub use crate::insight::{
    Change, Changes, Entries, Impact, ImpactQuery, Investigation, InvestigationQuery, Touched, Traffic, Unanswered,
    Window,
};
pub use crate::metrics::{Sample, SampleKind};
pub use crate::query::coverage::CoverageQuery;
pub use crate::query::export::{ExportFormat, ExportProgress, Exported};
pub use crate::query::{Page, TimeRange};
pub use crate::stats::{Flushed, ServiceStats, Stats, Waiting};
pub use crate::tls::Tls;
pub use crate::usage::Usage;
pub use crate::usage::event::{Tokens, UsageEvent, UsageEventBuilder};
pub use crate::usage::export::UsageShape;
pub use crate::usage::pricing::{CostQuery, PriceQuery};
pub use crate::usage::query::{Grouping, UsageFilter, UsageQuery};

/// As good as without an end, which is what `Duration::MAX` stands for: a clock goes as far.
pub(crate) const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// When a wait ends.
pub(crate) fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(FOREVER)
}

/// For fuzz targets: reads bytes as each of the spool's files, as opening one does.
#[doc(hidden)]
#[must_use]
pub fn fuzz_spool(bytes: &[u8]) -> usize {
    spool::read_any(bytes)
}

/// The SDK: both services' handles; cheap to clone.
///
/// When the last clone (of it, of [`Usage`] or of [`Audit`]) is dropped without
/// [`shutdown`](Self::shutdown), it takes no more events and goes on sending in the
/// background for [`drop_grace`](Builder::drop_grace), as long as its runtime lives. What
/// is left then is lost, or stays in the [`spool`](Builder::spool), with a warning in the
/// log. Shut down to know.
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

    /// Waits for what is asynchronous, on a thread that is in no tokio runtime: a program without one needs no other way.
    ///
    /// ```no_run
    /// # use gateway_sdk::{AuditEvent, Error, GatewaySdk};
    /// # fn example(sdk: GatewaySdk, event: AuditEvent) -> Result<(), Error> {
    /// let recorded = sdk.block_on(sdk.audit().record(event))??;
    /// println!("stored as number {}", sdk.block_on(recorded.receipt())??.sequence);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InRuntime`]: there, waiting would hold up others, and perhaps what it waits for. It is awaited there.
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output, Error> {
        self.usage.feed.runtime.block_on(future)
    }

    /// Counters of what became of everything that was recorded.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            usage: self.usage.feed.stats(),
            audit: self.audit.feed.stats(),
            operations: self.audit.operations.stats(),
        }
    }

    /// Sends what was recorded so far without waiting for full batches, and returns when
    /// it is settled, or at the latest after `timeout`, with what still waits. `Duration::MAX` sets no limit.
    pub async fn flush(&self, timeout: Duration) -> Flushed {
        let deadline = deadline(timeout);
        let (usage, audit) = futures::join!(self.usage.feed.flush(deadline), self.audit.feed.flush(deadline));
        Flushed { usage, audit }
    }

    /// Takes no more events, sends what was recorded, and ends, at the latest after
    /// `timeout` (`Duration::MAX`: no limit). What still waits then is lost with the process, or, with a
    /// [`spool`](Builder::spool), kept for the next one. Queries go on working.
    pub async fn shutdown(&self, timeout: Duration) -> Flushed {
        let deadline = deadline(timeout);
        let (usage, audit) = futures::join!(self.usage.feed.shutdown(deadline), self.audit.feed.shutdown(deadline));
        Flushed { usage, audit }
    }
}

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
