//! Counters: what became of everything that was recorded.

/// A snapshot of both services' counters; see [`GatewaySdk::stats`](crate::GatewaySdk::stats).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Usage events.
    pub usage: ServiceStats,
    /// Audit events.
    pub audit: ServiceStats,
}

/// One service's counters since the SDK was built.
///
/// At every moment `recorded = queued + in_flight + acknowledged + rejected + dropped`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceStats {
    /// Events that were handed to the SDK.
    pub recorded: u64,
    /// Events that wait in memory to be sent.
    pub queued: u64,
    /// Their encoded bytes.
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

/// What still waits for one service at the end of a flush or shutdown.
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
