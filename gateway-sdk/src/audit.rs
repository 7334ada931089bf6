//! Audit: one event for every administrative action, and the questions about them.

pub(crate) mod check;
pub(crate) mod event;
pub(crate) mod export;
mod governance;
pub(crate) mod operation;
pub(crate) mod proof;
pub(crate) mod query;
pub(crate) mod tail;
mod trust;

use std::sync::Arc;
use std::time::Duration;

use activity_proto::audit::v1 as proto;
use prost::Message;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use self::event::AuditEvent;
use self::operation::Operations;
use crate::config::{OnRejected, Rejected, RejectedEvent};
use crate::diff::{Diff, Secrets};
use crate::error::{Error, Rejection};
use crate::feed::Feed;
use crate::outbox::Outbox;
use crate::query::Reader;
use crate::sender::{Answer, Lane};

/// Records and reads administrative actions; cheap to clone. See
/// [`GatewaySdk::audit`](crate::GatewaySdk::audit).
#[derive(Clone, Debug)]
pub struct Audit {
    pub(crate) feed: Arc<Feed<Waiter>>,
    pub(crate) reader: Reader,
    pub(crate) timeout: Duration,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) operations: Arc<Operations>,
}

/// Who waits for an event's receipt.
pub(crate) type Waiter = watch::Sender<Option<Result<Receipt, Rejection>>>;
type Promise = watch::Receiver<Option<Result<Receipt, Rejection>>>;

/// Proof that an event is safe; see [`Audit::record`].
#[derive(Clone, Debug)]
pub struct Recorded {
    id: Uuid,
    promise: Promise,
    feed: Arc<Feed<Waiter>>,
    timeout: Duration,
    _interest: Option<Arc<Interest>>,
}

/// As long as somebody may ask for a receipt, the spool remembers that.
#[derive(Debug)]
struct Interest {
    feed: Arc<Feed<Waiter>>,
    sequence: u64,
}

impl Drop for Interest {
    fn drop(&mut self) {
        if let Outbox::Disk(spool) = &*self.feed.outbox {
            spool.forget(self.sequence);
        }
    }
}

impl Recorded {
    /// The event's id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The service's own receipt, once it has stored the event: without a
    /// [`spool`](crate::Builder::spool) at once, with one when the event has been sent.
    ///
    /// # Errors
    ///
    /// - [`Error::Rejected`]: the service refused it; the event is in the spool's file
    ///   `rejected.jsonl`, and [`on_rejected`](crate::Builder::on_rejected) was called;
    /// - [`Error::NotAcknowledged`]: no answer within
    ///   [`audit_timeout`](crate::Builder::audit_timeout). The event stays in the spool, over
    ///   restarts too; ask again, or leave it at that;
    /// - [`Error::ShutDown`]: the SDK was shut down; what it had not sent stays in the spool.
    pub async fn receipt(&self) -> Result<Receipt, Error> {
        let mut promise = self.promise.clone();
        let kept = promise.wait_for(Option::is_some);
        let outcome = match tokio::time::timeout(self.timeout, kept).await {
            Ok(Ok(outcome)) => outcome.clone(),
            Ok(Err(_)) => None,
            Err(_) => return Err(not_acknowledged(&self.feed, self.id, self.timeout)),
        };
        match outcome {
            Some(Ok(receipt)) => Ok(receipt),
            Some(Err(rejection)) => Err(Error::Rejected(rejection)),
            None if self.feed.outbox.is_closed() => Err(Error::ShutDown),
            None => Err(Error::Protocol(format!("no receipt for event {}", self.id))),
        }
    }
}

fn not_acknowledged(feed: &Feed<Waiter>, id: Uuid, waited: Duration) -> Error {
    Error::NotAcknowledged { id: id.to_string(), waited, cause: feed.stats().last_error }
}

/// The place in the log that an event has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Its place in its instance's log: from 0, without gaps.
    pub sequence: u64,
    /// The entry's RFC 6962 leaf hash, 32 bytes.
    pub leaf_hash: Vec<u8>,
    /// Whether the service had it already.
    pub duplicate: bool,
}

impl Audit {
    /// What an action changed, with the secrets that the SDK was told of
    /// ([`Builder::secrets`](crate::Builder::secrets)).
    pub fn diff(&self, old: &impl Serialize, new: &impl Serialize) -> Diff {
        self.secrets.diff(old, new)
    }

    /// As [`Diff::created`], with the SDK's secrets.
    pub fn created(&self, new: &impl Serialize) -> Diff {
        self.secrets.created(new)
    }

    /// As [`Diff::deleted`], with the SDK's secrets.
    pub fn deleted(&self, old: &impl Serialize) -> Diff {
        self.secrets.deleted(old)
    }

    /// Records one action, and returns once it is safe: with a
    /// [`spool`](crate::Builder::spool) once it is on the local disk, synced; without one once
    /// the service has it on its own.
    ///
    /// **It fails closed**: only `Ok` means recorded. An error means that it is not, or,
    /// for [`Error::NotAcknowledged`], [`Error::Spool`] and [`Error::ShutDown`], that nobody
    /// knows yet. A future that is dropped leaves the event queued. Many calls at once share
    /// batches and syncs; make them together (`buffer_unordered`) to record many events fast.
    ///
    /// For evidence that stays good without the service, ask for it afterwards:
    /// [`prove`](Self::prove).
    ///
    /// # Errors
    ///
    /// - [`Error::Rejected`]: the service refused it, with reason and field; with a spool it is
    ///   [`Recorded::receipt`] that says so;
    /// - [`Error::QueueFull`]: the queue or the spool is full, and nothing is dropped from it;
    /// - [`Error::Spool`]: the disk is full, can't be written to, or a sync on it failed;
    /// - [`Error::NotAcknowledged`], without a spool: no answer within
    ///   [`audit_timeout`](crate::Builder::audit_timeout), with the last failure; the event
    ///   **stays queued** and is delivered once the service is back, so record the
    ///   **same** event again, not a new one;
    /// - [`Error::TooLarge`] over 64 KiB with its number, [`Error::ShutDown`], [`Error::NotConfigured`].
    pub async fn record(&self, event: impl Into<AuditEvent>) -> Result<Recorded, Error> {
        let recorded = self.hand_over(event).await?;
        if !self.feed.outbox.is_durable() {
            recorded.receipt().await?;
        }
        Ok(recorded)
    }

    /// As [`record`](Self::record), but does not wait for the service: for `gateway-outbox`, which
    /// has the event in a table, and asks for its receipt again and again.
    #[doc(hidden)]
    pub async fn hand_over(&self, event: impl Into<AuditEvent>) -> Result<Recorded, Error> {
        let service = AuditLane::NAME;
        if !self.feed.is_configured() {
            return Err(Error::NotConfigured { service });
        }
        let event = event.into();
        let message = event.as_proto();
        let (waiter, promise) = watch::channel(None);
        let refused = |refused| self.feed.refused(refused, service);
        let interest = match &*self.feed.outbox {
            Outbox::Memory(queue) => {
                let push = |body: &[u8]| queue.push(body, waiter);
                self.feed.encoded(message, &message.instance_id, push)?.map_err(refused)?;
                None
            }
            Outbox::Disk(spool) => {
                let body = self.feed.encoded(message, &message.instance_id, <[u8]>::to_vec)?;
                let deadline = Instant::now() + self.timeout;
                let sequence = spool.push_waiting(&body, Some(waiter), deadline).await.map_err(refused)?;
                let interest = Arc::new(Interest { feed: Arc::clone(&self.feed), sequence });
                spool.synced(sequence, deadline).await.map_err(refused)?;
                Some(interest)
            }
        };
        Ok(Recorded {
            id: event.id(),
            promise,
            feed: Arc::clone(&self.feed),
            timeout: self.timeout,
            _interest: interest,
        })
    }

    /// From now on the audit-service is at another address, written as for
    /// [`Builder::audit_endpoint`](crate::Builder::audit_endpoint), on the same terms: TLS and
    /// credentials stay. The stream takes no new batches, gets its last answers where it was, as
    /// long as [`ack_timeout`](crate::Builder::ack_timeout) lets it, and goes on there; a wait
    /// after a failure ends at once. Queries that begin go there.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for what is no address, or one that a token or a certificate must not
    /// go to: nothing changes then. [`Error::NotConfigured`] where the SDK was built without one.
    pub fn set_endpoint(&self, endpoint: &str) -> Result<(), Error> {
        self.feed.lead(AuditLane::NAME, "audit_endpoint", endpoint)
    }
}

/// The stream of audit events.
#[derive(Debug)]
pub(crate) struct AuditLane {
    pub(crate) on_rejected: OnRejected,
}

impl Lane for AuditLane {
    const NAME: &'static str = "audit";
    const PATH: &'static str = "/activity.audit.v1.AuditIngestService/StreamEvents";
    const PRODUCER_FIELD: u32 = 13;
    type Extra = Waiter;
    type Receipt = Receipt;
    type Answer = proto::StreamEventsResponse;

    fn read(answer: Self::Answer) -> Answer<Self> {
        let rejected = answer.rejected.into_iter().filter_map(|rejected| {
            let rejection = Rejection { reason: rejected.reason(), message: rejected.message, field: rejected.field };
            // What has no index is no event: a dropped range, which is not told again.
            Some((rejected.index? as usize, rejection))
        });
        let receipts = answer.receipts.into_iter().filter_map(|receipt| {
            let place = Receipt {
                // A receipt without a place is none; whoever waits is told.
                sequence: receipt.sequence?,
                leaf_hash: receipt.leaf_hash,
                duplicate: receipt.duplicate,
            };
            Some((receipt.index.unwrap_or_default() as usize, place))
        });
        Answer {
            batch_id: answer.batch_id,
            duplicates: answer.duplicate.unwrap_or_default(),
            rejected: rejected.collect(),
            receipts: receipts.collect(),
        }
    }

    fn settle(waiter: Waiter, outcome: Result<Receipt, Rejection>) {
        // Nobody waits any more where `record` timed out or was dropped.
        let _ = waiter.send(Some(outcome));
    }

    fn on_rejected(&self, event: &[u8], rejection: Rejection) {
        // The bytes are this crate's own encoding.
        if let Ok(message) = proto::AuditEvent::decode(event) {
            self.on_rejected.call(RejectedEvent { event: Rejected::Audit(AuditEvent::from_proto(message)), rejection });
        }
    }
}
