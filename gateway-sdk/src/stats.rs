//! Counters: what became of everything that was recorded.

use crate::audit::operation::OperationStats;
use crate::queue::Settled;

/// A snapshot of both services' counters; see [`GatewaySdk::stats`](crate::GatewaySdk::stats).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Usage events.
    pub usage: ServiceStats,
    /// Audit events.
    pub audit: ServiceStats,
    /// Actions in two entries.
    pub operations: OperationStats,
}

/// One service's counters since the SDK was built.
///
/// At every moment `recorded + recovered = queued + in_flight + acknowledged + rejected +
/// dropped + damaged`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceStats {
    /// Events that were handed to the SDK.
    pub recorded: u64,
    /// Events that an earlier run had left in the spool.
    pub recovered: u64,
    /// Events that wait to be sent, in memory or in the spool.
    pub queued: u64,
    /// Their encoded bytes in memory; of a spool see `spool_bytes`.
    pub queued_bytes: u64,
    /// Events that were sent, or taken to be sent, and not yet answered for.
    pub in_flight: u64,
    /// Events that the service has on its disk, duplicates among them.
    pub acknowledged: u64,
    /// Those of them that it had already.
    pub duplicates: u64,
    /// Events that the service refused for good, or that are over the size limit.
    pub rejected: u64,
    /// Events given up: pushed out of a full queue, or recorded after shutdown or
    /// without an endpoint.
    pub dropped: u64,
    /// Events in the spool that could not be read any more: their segments are kept in its
    /// folder `damaged`. The service sees their numbers missing.
    pub damaged: u64,
    /// Bytes on disk of the spool's segments, and what they may be.
    pub spool_bytes: u64,
    /// As the builder was told; 0 without a spool.
    pub spool_limit: u64,
    /// Times that the spool's disk failed to write or to sync, each with an error in the log.
    pub disk_errors: u64,
    /// Streams opened after the first.
    pub reconnects: u64,
    /// Streams that the service refused or ended for want of credentials or rights, each
    /// with an error in the log when there was something to send. The events stay queued.
    pub refused: u64,
    /// Whether a stream to the service is open.
    pub connected: bool,
    /// What ended the last stream or attempt; cleared by the next acknowledgement.
    pub last_error: Option<String>,
}

impl ServiceStats {
    /// A stream that opened, and whether again; or why one ended, and whether this client
    /// was refused.
    pub(crate) fn note_stream(&mut self, opened: Result<bool, (String, bool)>) {
        self.connected = opened.is_ok();
        match opened {
            Ok(again) => self.reconnects += u64::from(again),
            Err((reason, refused)) => {
                self.refused += u64::from(refused);
                self.last_error = Some(reason);
            }
        }
    }

    pub(crate) fn note_settled(&mut self, settled: &Settled) {
        let done = settled.acknowledged + settled.rejected;
        self.in_flight = self.in_flight.saturating_sub(done as u64);
        self.acknowledged += settled.acknowledged as u64;
        self.duplicates += settled.duplicates as u64;
        self.rejected += settled.rejected as u64;
        self.last_error = None;
    }
}

/// What still waits for one service at the end of a flush or shutdown; with a
/// [`spool`](crate::Builder::spool) it is kept for the next process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// Events not yet sent.
    pub queued: u64,
    /// Events sent without an answer: the service may have them or not.
    pub in_flight: u64,
    /// Reports of dropped events that the service has not acknowledged.
    pub dropped_reports: u64,
}

impl Waiting {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The honest answer of a flush or shutdown: what still waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a flush that ran out of time has not sent everything"]
#[non_exhaustive]
pub struct Flushed {
    /// For the usage-service.
    pub usage: Waiting,
    /// For the audit-service.
    pub audit: Waiting,
}

impl Flushed {
    /// Whether everything was acknowledged, refused, or reported as dropped.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.usage.is_empty() && self.audit.is_empty()
    }
}
