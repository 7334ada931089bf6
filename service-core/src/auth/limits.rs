//! What one caller may have at once: calls, streams, exports, tails, calls a second, and
//! bytes of batches on their way.
//!
//! A caller is a name; where nobody is authenticated, and for what is open to
//! everybody, an address (IPv6: its /64). What is over a limit is refused at once with
//! `OVERLOADED`, whose RetryInfo says when to try again; bytes are waited for a while
//! (see [`super::room`]).

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hashlink::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::room::Room;
use crate::config::{ConfigError, LimitsConfig, millis};
use crate::error::{Error, Result};
use crate::server::MAX_INGEST_MESSAGE_BYTES;
use crate::server::connection::network;
use crate::server::methods::{Kind, Method};
use crate::telemetry::Metrics;

/// Callers that are remembered; of more, those who called last. Far more than there are
/// connections.
const MAX_CALLERS: usize = 10_000;

/// Who is counted together.
pub(super) fn key(subject: Option<&str>, peer: Option<IpAddr>) -> String {
    match (subject, peer) {
        (Some(subject), _) => format!("subject {subject}"),
        (None, Some(peer)) => format!("peer {}", network(peer)),
        (None, None) => String::new(),
    }
}

/// The limits of all callers of a server.
pub(crate) struct Limits {
    config: LimitsConfig,
    callers: Mutex<LruCache<String, Arc<OfCaller>>>,
    bytes: Arc<Semaphore>,
    metrics: Metrics,
}

/// What one caller has.
struct OfCaller {
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    exports: Arc<Semaphore>,
    tails: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// When its calls so far will have had their share of time: ahead of now by a second
    /// at most (GCRA).
    due: Mutex<Instant>,
}

/// A place that a call or stream occupies until this is dropped.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    /// For a method that brings events: where its bytes are counted.
    pub(super) room: Option<Arc<Room>>,
}

/// Refuses what no batch would fit in.
pub(crate) fn check(config: &LimitsConfig) -> Result<(), ConfigError> {
    let least = MAX_INGEST_MESSAGE_BYTES * 2;
    let keys = [
        ("limits.ingest_bytes", config.ingest_bytes.get()),
        ("limits.ingest_bytes_per_caller", config.ingest_bytes_per_caller.get()),
    ];
    match keys.into_iter().find(|(_, bytes)| *bytes < least || u32::try_from(*bytes).is_err()) {
        None => Ok(()),
        Some((key, bytes)) => {
            Err(ConfigError::Refused(format!("{key} is {bytes}, allowed are {least} to {}", u32::MAX)))
        }
    }
}

impl Limits {
    pub(crate) fn new(config: LimitsConfig, metrics: Metrics) -> Self {
        let bytes = Arc::new(Semaphore::new(config.ingest_bytes.get()));
        Self { config, callers: Mutex::new(LruCache::new(MAX_CALLERS)), bytes, metrics }
    }

    /// Time after which a stream of answers ends.
    pub(super) fn stream_lifetime(&self) -> Duration {
        millis(self.config.stream_lifetime_ms)
    }

    /// A place for a call or stream of a caller.
    pub(super) fn admit(&self, caller: String, method: &Method) -> Result<Place> {
        let of = self.of(caller);
        let refused = |limit: &str, text: String| {
            self.metrics.limited(limit);
            Error::Overloaded(text)
        };
        let rate = self.config.calls_per_second_per_caller.get();
        if !of.has_turn(rate) {
            let text = format!("the caller makes more than {rate} calls a second; try again");
            return Err(refused("calls_per_second", text));
        }
        let (room, limit, allowed) = match method.kind {
            Kind::Call => (&of.calls, "calls", self.config.calls_per_caller),
            Kind::IngestStream => (&of.streams, "streams", self.config.streams_per_caller),
            Kind::Export => (&of.exports, "exports", self.config.exports_per_caller),
            Kind::Tail => (&of.tails, "tails", self.config.tails_per_caller),
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            let text = format!("the caller has {allowed} {limit} open, which is all it may; try again");
            return Err(refused(limit, text));
        };
        let patience = millis(self.config.room_timeout_ms);
        let room =
            method.ingest.then(|| Room::new([of.bytes.clone(), self.bytes.clone()], patience, self.metrics.clone()));
        Ok(Place { _permit: permit, room })
    }

    fn of(&self, caller: String) -> Arc<OfCaller> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let config = &self.config;
        let new = || {
            Arc::new(OfCaller {
                calls: semaphore(config.calls_per_caller.get()),
                streams: semaphore(config.streams_per_caller.get()),
                exports: semaphore(config.exports_per_caller.get()),
                tails: semaphore(config.tails_per_caller.get()),
                bytes: semaphore(config.ingest_bytes_per_caller.get()),
                due: Mutex::new(Instant::now()),
            })
        };
        callers.entry(caller).or_insert_with(new).clone()
    }
}

fn semaphore(permits: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
}

impl OfCaller {
    /// Whether one more call is within the rate, a second's worth at once.
    fn has_turn(&self, rate: u32) -> bool {
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*due).max(now) + Duration::from_secs(1) / rate;
        let fits = next.duration_since(now) <= Duration::from_secs(1);
        if fits {
            *due = next;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::methods::lookup;

    const RECORD: &str = "/activity.audit.v1.AuditIngestService/RecordEvents";
    const STREAM: &str = "/activity.audit.v1.AuditIngestService/StreamEvents";
    const EXPORT: &str = "/activity.audit.v1.AuditQueryService/ExportEntries";
    const TAIL: &str = "/activity.audit.v1.AuditQueryService/TailEntries";

    #[test]
    fn one_caller_at_its_limits_leaves_room_for_others() {
        let two = 2.try_into().unwrap();
        let config = LimitsConfig {
            calls_per_caller: two,
            streams_per_caller: two,
            exports_per_caller: two,
            tails_per_caller: two,
            ..LimitsConfig::default()
        };
        let metrics = Metrics::new("test");
        let limits = Limits::new(config, metrics.clone());
        for path in [RECORD, STREAM, EXPORT, TAIL] {
            let (method, key) = (lookup(path), |name: &str| key(Some(name), None));
            let first = limits.admit(key("eve"), method).ok().unwrap();
            let _second = limits.admit(key("eve"), method).ok().unwrap();
            let error = limits.admit(key("eve"), method).err().unwrap();
            assert!(matches!(&error, Error::Overloaded(_)) && error.is_retryable(), "{path}: {error}");
            let _other = limits.admit(key("ada"), method).ok().unwrap();
            drop(first);
            limits.admit(key("eve"), method).ok().unwrap();
        }
        for limit in ["calls", "streams", "exports", "tails"] {
            let line = format!(r#"activity_limited_total{{limit="{limit}",service="test"}} 1"#);
            assert!(metrics.encode().contains(&line), "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_a_second_have_a_limit_of_their_own() {
        let config = LimitsConfig { calls_per_second_per_caller: 10.try_into().unwrap(), ..LimitsConfig::default() };
        let limits = Limits::new(config, Metrics::new("test"));
        let key = || key(None, Some("2001:db8::1".parse().unwrap()));
        let calls = |count| (0..count).filter(|_| limits.admit(key(), lookup(RECORD)).is_ok()).count();
        assert_eq!(calls(100), 10);
        tokio::time::advance(Duration::from_millis(300)).await;
        assert_eq!(calls(100), 3);
        // Another address of the same network is the same caller.
        assert!(limits.admit(super::key(None, Some("2001:db8::2".parse().unwrap())), lookup(RECORD)).is_err());
        assert!(limits.admit(super::key(None, Some("192.0.2.1".parse().unwrap())), lookup(RECORD)).is_ok());
    }
}
