//! Usage: one event for every model request, and the questions about them.

pub(crate) mod event;
pub(crate) mod export;
pub(crate) mod pricing;
pub(crate) mod query;

use std::sync::Arc;
use std::time::Duration;

use activity_proto::usage::v1 as proto;
use prost::Message;

use self::event::UsageEvent;
use crate::config::{OnRejected, Rejected, RejectedEvent};
use crate::error::{Error, Rejection};
use crate::feed::Feed;
use crate::query::Reader;
use crate::queue::Refused;
use crate::sender::{Answer, Lane};

/// Records and reads usage; cheap to clone. See [`GatewaySdk::usage`](crate::GatewaySdk::usage).
#[derive(Clone, Debug)]
pub struct Usage {
    pub(crate) feed: Arc<Feed<()>>,
    pub(crate) reader: Reader,
    pub(crate) on_rejected: OnRejected,
}

impl Usage {
    /// Records one request. Never waits for the service or for a task: it encodes the event
    /// on the caller's thread and copies some 200 bytes, into memory or, with a
    /// [`spool`](crate::Builder::spool), into a mapped file.
    ///
    /// With a spool the event survives the death of this process from the moment this call
    /// returns. Where callers are faster than the disk, a call may wait for it. Where it fails,
    /// none waits; where it does not answer at all, calls wait once, at most a second, and not
    /// again until it does: their events are dropped.
    ///
    /// When there is no room the **oldest** events are dropped for this one, from a spool a
    /// segment at a time; that is counted ([`ServiceStats::dropped`](crate::ServiceStats::dropped))
    /// and reported to the service, which can then tell it from an event that was lost.
    /// Nothing that happens here is an error for the caller: a request is not refused because
    /// it could not be counted.
    pub fn record(&self, event: impl Into<UsageEvent>) {
        let event = event.into();
        let message = event.as_proto();
        let queued = self.feed.encoded(message, &message.instance_id, |body| self.feed.outbox.push_dropping(body));
        match queued {
            Ok(Ok(())) => {}
            Ok(Err(Refused::Full { .. } | Refused::Disk(_) | Refused::Closed)) => self.feed.outbox.count_untaken(false),
            Err(error) => {
                self.feed.outbox.count_untaken(true);
                self.on_rejected
                    .call(RejectedEvent { event: Rejected::Usage(event), rejection: Rejection::too_large(&error) });
            }
        }
    }

    /// As [`record`](Self::record), but where there is no room waits for it instead of
    /// dropping the oldest.
    ///
    /// # Errors
    ///
    /// [`Error::QueueFull`] when there was no room within `timeout`, [`Error::Spool`] when
    /// the disk under the spool failed for as long,
    /// [`Error::TooLarge`], [`Error::ShutDown`], [`Error::NotConfigured`]. The event was
    /// then not taken, and is not counted.
    pub async fn record_wait(&self, event: impl Into<UsageEvent>, timeout: Duration) -> Result<(), Error> {
        let service = UsageLane::NAME;
        if !self.feed.is_configured() {
            return Err(Error::NotConfigured { service });
        }
        let event = event.into();
        let message = event.as_proto();
        let body = self.feed.encoded(message, &message.instance_id, <[u8]>::to_vec)?;
        let pushed = self.feed.outbox.push_waiting(&body, crate::deadline(timeout)).await;
        pushed.map_err(|refused| self.feed.refused(refused, service))
    }

    /// From now on the usage-service is at another address, written as for
    /// [`Builder::usage_endpoint`](crate::Builder::usage_endpoint), on the same terms: TLS and
    /// credentials stay. The stream takes no new batches, gets its last answers where it was, as
    /// long as [`ack_timeout`](crate::Builder::ack_timeout) lets it, and goes on there; a wait
    /// after a failure ends at once. Queries that begin go there.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for what is no address, or one that a token or a certificate must not
    /// go to: nothing changes then. [`Error::NotConfigured`] where the SDK was built without one.
    pub fn set_endpoint(&self, endpoint: &str) -> Result<(), Error> {
        self.feed.lead(UsageLane::NAME, "usage_endpoint", endpoint)
    }
}

/// The stream of usage events.
#[derive(Debug)]
pub(crate) struct UsageLane {
    pub(crate) on_rejected: OnRejected,
}

impl Lane for UsageLane {
    const NAME: &'static str = "usage";
    const PATH: &'static str = "/activity.usage.v1.UsageIngestService/StreamUsage";
    const PRODUCER_FIELD: u32 = 20;
    type Extra = ();
    type Receipt = ();
    type Answer = proto::StreamUsageResponse;

    fn read(answer: Self::Answer) -> Answer<Self> {
        let rejected = answer.rejected.into_iter().filter_map(|rejected| {
            let rejection = Rejection { reason: rejected.reason(), message: rejected.message, field: rejected.field };
            // What has no index is no event: a dropped range, which is not told again.
            Some((rejected.index? as usize, rejection))
        });
        Answer {
            batch_id: answer.batch_id,
            duplicates: answer.duplicate.unwrap_or_default(),
            rejected: rejected.collect(),
            receipts: Vec::new(),
        }
    }

    fn settle((): (), _: Result<(), Rejection>) {}

    fn on_rejected(&self, event: &[u8], rejection: Rejection) {
        // The bytes are this crate's own encoding.
        if let Ok(message) = proto::UsageEvent::decode(event) {
            self.on_rejected.call(RejectedEvent { event: Rejected::Usage(UsageEvent::from_proto(message)), rejection });
        }
    }
}
