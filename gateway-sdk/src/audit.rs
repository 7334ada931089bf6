//! Audit: one event for every administrative action, and the questions about them.

pub(crate) mod event;
pub(crate) mod query;
pub(crate) mod tail;

use std::sync::Arc;
use std::time::Duration;

use activity_proto::audit::v1 as proto;
use prost::Message;
use tokio::sync::oneshot;
use uuid::Uuid;

use self::event::AuditEvent;
use crate::config::{OnRejected, Rejected, RejectedEvent};
use crate::error::{Error, Rejection};
use crate::feed::Feed;
use crate::query::Reader;
use crate::sender::{Answer, Lane};

/// Records and reads administrative actions; cheap to clone. See
/// [`GatewaySdk::audit`](crate::GatewaySdk::audit).
#[derive(Clone, Debug)]
pub struct Audit {
    pub(crate) feed: Arc<Feed<Waiter>>,
    pub(crate) reader: Reader,
    pub(crate) timeout: Duration,
}

/// Who waits for an event's receipt.
pub(crate) type Waiter = oneshot::Sender<Result<Receipt, Rejection>>;

/// Proof that an event is safe with the SDK; see [`Audit::record`].
#[derive(Clone, Debug)]
pub struct Recorded {
    id: Uuid,
    receipt: Receipt,
}

impl Recorded {
    /// The event's id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The service's own receipt, once it has stored the event. In this form of the SDK
    /// it is there at once; with a spool it comes when the event has been sent.
    ///
    /// # Errors
    ///
    /// With a spool, as [`Audit::record`]; none here.
    pub async fn receipt(&self) -> Result<Receipt, Error> {
        Ok(self.receipt.clone())
    }
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
    /// Records one action, and returns once it is safe: here, once the service has it on
    /// its disk; when the SDK has a spool, once it is on the local disk.
    ///
    /// **It fails closed**: only `Ok` means recorded. An error means that it is not, or,
    /// for [`Error::NotAcknowledged`] and [`Error::ShutDown`], that nobody knows yet. A
    /// future that is dropped leaves the event queued. Many calls at once share batches; make them
    /// together (`buffer_unordered`) to record many events fast.
    ///
    /// # Errors
    ///
    /// - [`Error::Rejected`]: the service refused it, with reason and field;
    /// - [`Error::QueueFull`]: the queue is full, and nothing is dropped from it;
    /// - [`Error::NotAcknowledged`]: no answer within
    ///   [`audit_timeout`](crate::Builder::audit_timeout), with the last failure; the event
    ///   **stays queued** and is delivered once the service is back, so record the
    ///   **same** event again, not a new one;
    /// - [`Error::TooLarge`] over 64 KiB, [`Error::ShutDown`], [`Error::NotConfigured`].
    pub async fn record(&self, event: impl Into<AuditEvent>) -> Result<Recorded, Error> {
        let service = AuditLane::NAME;
        if !self.feed.is_configured() {
            return Err(Error::NotConfigured { service });
        }
        let event = event.into();
        let message = event.as_proto();
        let (waiter, receipt) = oneshot::channel();
        self.feed
            .encoded(message, &message.instance_id, |body| self.feed.queue.push(body, waiter))?
            .map_err(|refused| Error::from_refused(refused, service))?;
        match tokio::time::timeout(self.timeout, receipt).await {
            Ok(Ok(Ok(receipt))) => Ok(Recorded { id: event.id(), receipt }),
            Ok(Ok(Err(rejection))) => Err(Error::Rejected(rejection)),
            Ok(Err(_)) if self.feed.queue.is_closed() => Err(Error::ShutDown),
            Ok(Err(_)) => Err(Error::Protocol(format!("no receipt for event {}", event.id()))),
            Err(_) => Err(Error::NotAcknowledged {
                id: event.id().to_string(),
                waited: self.timeout,
                cause: self.feed.stats().last_error,
            }),
        }
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
        let _ = waiter.send(outcome);
    }

    fn on_rejected(&self, event: &[u8], rejection: Rejection) {
        // The bytes are this crate's own encoding.
        if let Ok(message) = proto::AuditEvent::decode(event) {
            self.on_rejected.call(RejectedEvent { event: Rejected::Audit(AuditEvent::from_proto(message)), rejection });
        }
    }
}
