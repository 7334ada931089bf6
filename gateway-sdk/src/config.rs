//! The builder: every setting, its default, and what is allowed.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::GatewaySdk;
use crate::audit::event::AuditEvent;
use crate::audit::operation::{Abandoned, Operations};
use crate::audit::{Audit, AuditLane, Waiter};
use crate::credentials::{Access, Credentials};
use crate::diff::Secrets;
use crate::endpoint::{Connections, Line, Lines};
use crate::error::{Error, Rejection};
use crate::feed::{Feed, MAX_EVENT_BYTES, Own};
use crate::id;
use crate::outbox::Outbox;
use crate::query::Reader;
use crate::queue::frame::Numbering;
use crate::queue::{Limits, Queue};
use crate::retry::Backoff;
use crate::runtime::Runtime;
use crate::sender::{Lane, Options};
use crate::spool::{Folder, Settings};
use crate::tls::Tls;
use crate::usage::event::UsageEvent;
use crate::usage::{Usage, UsageLane};

/// The contract's limit is 4 MiB a batch; the rest is for the batch's own fields, 1,000
/// reports of dropped events among them.
const MAX_BATCH_BYTES: usize = 3 * 1024 * 1024;
/// The contract's limit.
const MAX_BATCH_EVENTS: usize = 1_000;
/// The contract's limit for ids and names.
const MAX_NAME_BYTES: usize = 256;

/// How large the spool's files are: four of each service's are mapped into memory, and the
/// oldest are dropped by the file.
const USAGE_SEGMENT: usize = 2 * 1024 * 1024;
const AUDIT_SEGMENT: usize = 1024 * 1024;

fn memory<T>(limits: Limits, numbering: Numbering) -> Outbox<T> {
    Outbox::Memory(Box::new(Queue::new(limits, numbering)))
}

struct Outboxes {
    usage: Outbox<()>,
    audit: Outbox<Waiter>,
    producer_id: String,
}

/// An event that was refused for good, as handed to
/// [`Builder::on_rejected`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RejectedEvent {
    /// The event.
    pub event: Rejected,
    /// Why.
    pub rejection: Rejection,
}

/// Which event was refused.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Rejected {
    /// A usage event.
    Usage(UsageEvent),
    /// An audit event.
    Audit(AuditEvent),
}

/// The application's callback for refused events.
#[derive(Clone, Default)]
pub(crate) struct OnRejected(Option<Arc<dyn Fn(RejectedEvent) + Send + Sync>>);

impl OnRejected {
    /// A callback that panics must not end the sender.
    pub(crate) fn call(&self, rejected: RejectedEvent) {
        tracing::debug!(rejection = %rejected.rejection, "event refused");
        if let Some(callback) = &self.0
            && catch_unwind(AssertUnwindSafe(|| callback(rejected))).is_err()
        {
            tracing::error!("the on_rejected callback panicked");
        }
    }
}

impl fmt::Debug for OnRejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Some(..)" } else { "None" })
    }
}

/// A spool that is nearly full, as handed to [`Builder::on_spool_pressure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpoolPressure {
    /// `audit` or `usage`.
    pub service: &'static str,
    /// Events that wait in it.
    pub events: u64,
    /// Bytes of its segments on disk.
    pub bytes: u64,
    /// What they may be.
    pub limit: u64,
}

/// The application's callback for spools that are nearly full.
#[derive(Clone, Default)]
pub(crate) struct OnPressure(Option<Arc<dyn Fn(SpoolPressure) + Send + Sync>>);

impl OnPressure {
    pub(crate) fn new(callback: impl Fn(SpoolPressure) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(callback)))
    }

    /// A callback that panics must not end who calls it.
    pub(crate) fn call(&self, pressure: SpoolPressure) {
        if let Some(callback) = &self.0
            && catch_unwind(AssertUnwindSafe(|| callback(pressure))).is_err()
        {
            tracing::error!("the on_spool_pressure callback panicked");
        }
    }
}

impl fmt::Debug for OnPressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Some(..)" } else { "None" })
    }
}

/// The application's callback for operations without an outcome.
#[derive(Clone, Default)]
pub(crate) struct OnAbandoned(Option<Arc<dyn Fn(Abandoned) + Send + Sync>>);

impl OnAbandoned {
    /// Called where an operation is dropped, which must not panic.
    pub(crate) fn call(&self, abandoned: Abandoned) {
        tracing::warn!(action = abandoned.intent.as_proto().action, "an operation has no recorded outcome");
        if let Some(callback) = &self.0
            && catch_unwind(AssertUnwindSafe(|| callback(abandoned))).is_err()
        {
            tracing::error!("the on_abandoned callback panicked");
        }
    }
}

impl fmt::Debug for OnAbandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Some(..)" } else { "None" })
    }
}

/// Settings of a [`GatewaySdk`]; see [`GatewaySdk::builder`]. Every one has a default.
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct Builder {
    audit_endpoint: Option<String>,
    usage_endpoint: Option<String>,
    credentials: Option<Credentials>,
    tls: Option<Tls>,
    instance: String,
    producer_id: Option<String>,
    usage: Limits,
    audit: Limits,
    window: usize,
    connect_timeout: Duration,
    ack_timeout: Duration,
    audit_timeout: Duration,
    query_timeout: Duration,
    keep_alive: (Duration, Duration),
    drop_grace: Duration,
    backoff: Backoff,
    own_thread: bool,
    on_rejected: OnRejected,
    spool: Option<PathBuf>,
    usage_spool: u64,
    audit_spool: u64,
    spool_sync: Duration,
    on_pressure: OnPressure,
    secrets: Secrets,
    on_abandoned: OnAbandoned,
}

impl Default for Builder {
    fn default() -> Self {
        let limits = Limits {
            events: 65_536,
            bytes: 32 * 1024 * 1024,
            batch_events: MAX_BATCH_EVENTS,
            batch_bytes: 1024 * 1024,
            linger: Duration::from_millis(10),
        };
        Self {
            audit_endpoint: None,
            usage_endpoint: None,
            credentials: None,
            tls: None,
            instance: String::new(),
            producer_id: None,
            usage: limits,
            audit: Limits { events: 16_384, linger: Duration::from_millis(1), ..limits },
            window: 8,
            connect_timeout: Duration::from_secs(5),
            ack_timeout: Duration::from_secs(30),
            audit_timeout: Duration::from_secs(10),
            query_timeout: Duration::from_secs(60),
            keep_alive: (Duration::from_secs(10), Duration::from_secs(10)),
            drop_grace: Duration::from_secs(5),
            backoff: Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(30) },
            own_thread: false,
            on_rejected: OnRejected::default(),
            spool: None,
            usage_spool: 1024 * 1024 * 1024,
            audit_spool: 1024 * 1024 * 1024,
            spool_sync: Duration::from_secs(1),
            on_pressure: OnPressure::default(),
            secrets: Secrets::default(),
            on_abandoned: OnAbandoned::default(),
        }
    }
}

impl Builder {
    /// Where the audit-service is, until [`Audit::set_endpoint`]: `https://audit.internal:50051`, `http://127.0.0.1:50051`,
    /// or `127.0.0.1:50051`, which is `https` where [`tls`](Self::tls) is set, else `http`.
    /// Default: none, and `audit()` answers [`Error::NotConfigured`].
    pub fn audit_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.audit_endpoint = Some(endpoint.into());
        self
    }

    /// Where the usage-service is, until [`Usage::set_endpoint`], in the same way: `https://usage.internal:50052`.
    /// Default: none, and what `usage()` records is counted as dropped.
    pub fn usage_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.usage_endpoint = Some(endpoint.into());
        self
    }

    /// The bearer token that goes with every call and stream, for both services. Over plain
    /// text it goes to this machine only: [`build`](Self::build) refuses anything else.
    /// Default: none.
    ///
    /// A token is renewed before it expires, without a break: a stream takes no new batches,
    /// gets its last answers, and the next one begins with the new token. Where a service
    /// refuses one all the same, a new one is taken and tried once at once, and from then on
    /// at the pace of the [`backoff`](Self::backoff); nothing that was recorded is lost by it.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Whom to believe, and which certificate to show, at `https://` endpoints. Default: the
    /// roots of Mozilla, and none.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The platform instance of events that name none. Default: none, and every event
    /// has to name its own.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.instance = id.into();
        self
    }

    /// Under which name this SDK numbers its events, so that the services can show that
    /// nothing is missing: one that no other running SDK has. Default: a random one.
    /// The epoch is the time of the build.
    pub fn producer_id(mut self, id: impl Into<String>) -> Self {
        self.producer_id = Some(id.into());
        self
    }

    /// How many usage events, and how many encoded bytes of them, wait at most.
    /// Default: 65,536 and 32 MiB. Beyond it the oldest are dropped.
    pub fn usage_queue(mut self, events: usize, bytes: usize) -> Self {
        (self.usage.events, self.usage.bytes) = (events, bytes);
        self
    }

    /// How many audit events, and how many encoded bytes of them, wait at most.
    /// Default: 16,384 and 32 MiB. Beyond it `record` fails.
    pub fn audit_queue(mut self, events: usize, bytes: usize) -> Self {
        (self.audit.events, self.audit.bytes) = (events, bytes);
        self
    }

    /// How large a batch gets, in events (1 to 1,000) and encoded bytes (128 KiB to
    /// 3 MiB). Default: 1,000 and 1 MiB.
    pub fn batch(mut self, events: usize, bytes: usize) -> Self {
        for limits in [&mut self.usage, &mut self.audit] {
            (limits.batch_events, limits.batch_bytes) = (events, bytes);
        }
        self
    }

    /// How long a usage event waits at most for others to fill its batch. Default:
    /// 10 ms.
    pub fn usage_linger(mut self, linger: Duration) -> Self {
        self.usage.linger = linger;
        self
    }

    /// How long an audit event waits at most for others to fill its batch. Default:
    /// 1 ms, for somebody waits for it.
    pub fn audit_linger(mut self, linger: Duration) -> Self {
        self.audit.linger = linger;
        self
    }

    /// How many batches may be under way at once for each service, 1 to 1,000. Default: 8.
    /// Their memory comes on top of the queue's.
    pub fn window(mut self, batches: usize) -> Self {
        self.window = batches;
        self
    }

    /// How long connecting takes at most. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a stream may leave a batch without an answer before it is given up and
    /// the batch is sent again. Default: 30 s.
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.ack_timeout = timeout;
        self
    }

    /// How long `audit().record` waits at most. Default: 10 s.
    pub fn audit_timeout(mut self, timeout: Duration) -> Self {
        self.audit_timeout = timeout;
        self
    }

    /// How long a query takes at most, its retries included; for an export or a tail,
    /// how long it may be silent before it is resumed. Default: 60 s.
    pub fn query_timeout(mut self, timeout: Duration) -> Self {
        self.query_timeout = timeout;
        self
    }

    /// HTTP/2 keep-alive: a ping after `interval` without traffic, and the connection is
    /// given up when it is not answered within `timeout`. Default: 10 s and 10 s.
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keep_alive = (interval, timeout);
        self
    }

    /// How long the SDK goes on sending in the background when it is dropped without
    /// [`shutdown`](GatewaySdk::shutdown). Default: 5 s.
    pub fn drop_grace(mut self, grace: Duration) -> Self {
        self.drop_grace = grace;
        self
    }

    /// Waits between attempts: evenly random up to `base`, doubled at each failure, up
    /// to `cap`. Default: 100 ms and 30 s.
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.backoff = Backoff { base, cap };
        self
    }

    /// Called for each event that was refused for good, on the task that sends (so it
    /// must not block), or in `usage().record` for one that is too large.
    pub fn on_rejected(mut self, callback: impl Fn(RejectedEvent) + Send + Sync + 'static) -> Self {
        self.on_rejected = OnRejected(Some(Arc::new(callback)));
        self
    }

    /// Keeps what is recorded in files of this folder until the services have acknowledged
    /// it, over restarts: usage survives the death of the process from the moment `record`
    /// returns, audit that of the machine. Each process needs a folder of its own, on a local
    /// file system that writes in place, such as ext4 or XFS: its files are mapped, and on one that
    /// copies on write (ZFS, bcachefs, Btrfs with snapshots) a full disk ends the process with
    /// `SIGBUS`. The next process with the same folder delivers what the last has left. It is made
    /// if it is missing, and readable by this user alone. Default: none, and events wait in memory;
    /// the crate's documentation says what a crash then loses.
    pub fn spool(mut self, folder: impl Into<PathBuf>) -> Self {
        self.spool = Some(folder.into());
        self
    }

    /// How many bytes of disk usage events may take in the [`spool`](Self::spool), from
    /// 16 MiB. Default: 1 GiB, some four million requests. Beyond it the oldest are dropped.
    pub fn usage_spool(mut self, bytes: u64) -> Self {
        self.usage_spool = bytes;
        self
    }

    /// How many bytes of disk audit events may take in the [`spool`](Self::spool), from
    /// 8 MiB. Default: 1 GiB. Beyond it `record` fails.
    pub fn audit_spool(mut self, bytes: u64) -> Self {
        self.audit_spool = bytes;
        self
    }

    /// How often spooled usage is synced to the disk: what a machine that dies takes with it
    /// at most. (Of a process that dies alone nothing is lost.) Default: 1 s.
    pub fn spool_sync(mut self, interval: Duration) -> Self {
        self.spool_sync = interval;
        self
    }

    /// Called on a thread of the spool when it is nearly full: above 80 % of its limit, once
    /// until it has been below 70 %.
    pub fn on_spool_pressure(mut self, callback: impl Fn(SpoolPressure) + Send + Sync + 'static) -> Self {
        self.on_pressure = OnPressure::new(callback);
        self
    }

    /// What [`Audit::diff`] takes for a secret, and the key of the tokens that it shows instead.
    /// Default: the names of [`Secrets::default`], and no key.
    pub fn secrets(mut self, secrets: Secrets) -> Self {
        self.secrets = secrets;
        self
    }

    /// Called for each operation ([`Audit::begin`]) that was dropped without a recorded outcome,
    /// where it was dropped (so it must not block): its intent stands open in the log.
    pub fn on_abandoned(mut self, callback: impl Fn(Abandoned) + Send + Sync + 'static) -> Self {
        self.on_abandoned = OnAbandoned(Some(Arc::new(callback)));
        self
    }

    /// A thread of the SDK's own for its tasks, also where it is built in a tokio runtime: one that is busy then holds up
    /// no delivery. The thread ends with the last handle and with what that leaves to be sent.
    pub fn own_thread(mut self) -> Self {
        self.own_thread = true;
        self
    }

    /// Starts the SDK on the tokio runtime it is called in; outside of one, on a
    /// [thread of its own](Self::own_thread). Connects when there is something to send or to ask; either
    /// service may be away.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a setting out of bounds, [`Error::Runtime`],
    /// [`Error::SpoolInUse`], and [`Error::Spool`] for a folder that can't be written to or read
    /// at the moment. No error are a disk that is full where the folder was used before, for what
    /// an earlier process has left there can be delivered; and what is damaged of that, which is
    /// counted ([`ServiceStats::damaged`](crate::ServiceStats::damaged)).
    pub fn build(self) -> Result<GatewaySdk, Error> {
        self.check()?;
        let runtime = Runtime::here(self.own_thread)?;
        let usage_lines = self.lines("usage_endpoint", self.usage_endpoint.as_deref(), &runtime)?;
        let audit_lines = self.lines("audit_endpoint", self.audit_endpoint.as_deref(), &runtime)?;
        let access = Access::new(self.credentials.clone(), self.backoff);

        let outboxes = self.outboxes(usage_lines.is_some(), audit_lines.is_some())?;
        let options = Options {
            window: self.window,
            ack_timeout: self.ack_timeout,
            backoff: self.backoff,
            drop_grace: self.drop_grace,
        };
        let (query_timeout, backoff) = (self.query_timeout, self.backoff);
        let own = Own { instance: &self.instance, producer_id: &outboxes.producer_id };
        let reader = |service, lines: &Option<Lines>| {
            let line: Option<Line> = lines.as_ref().map(|lines| lines.questions.clone());
            Reader::new(service, line, access.clone(), query_timeout, backoff)
        };
        let usage = Usage {
            reader: reader(UsageLane::NAME, &usage_lines),
            feed: Arc::new(Feed::start(
                UsageLane { on_rejected: self.on_rejected.clone() },
                &runtime,
                usage_lines,
                access.clone(),
                outboxes.usage,
                options,
                own,
            )),
            on_rejected: self.on_rejected.clone(),
        };
        let audit = Audit {
            reader: reader(AuditLane::NAME, &audit_lines),
            feed: Arc::new(Feed::start(
                AuditLane { on_rejected: self.on_rejected },
                &runtime,
                audit_lines,
                access.clone(),
                outboxes.audit,
                options,
                own,
            )),
            timeout: self.audit_timeout,
            secrets: Arc::new(self.secrets),
            operations: Arc::new(Operations::new(self.on_abandoned)),
        };
        Ok(GatewaySdk { usage, audit, producer_id: outboxes.producer_id.into() })
    }

    /// In memory, or in the spool. A service without an endpoint has nothing to spool.
    fn outboxes(&self, usage: bool, audit: bool) -> Result<Outboxes, Error> {
        let Some(folder) = &self.spool else {
            let producer_id = self.producer_id.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
            let epoch = id::now_micros();
            let numbering = |field| Numbering::new(field, &producer_id, epoch);
            return Ok(Outboxes {
                usage: memory(self.usage, numbering(UsageLane::PRODUCER_FIELD)),
                audit: memory(self.audit, numbering(AuditLane::PRODUCER_FIELD)),
                producer_id,
            });
        };
        let folder = Folder::open(folder, self.producer_id.as_deref())?;
        let numbering = |field| Numbering::new(field, &folder.producer_id, folder.epoch);
        let settings = |lane: (&'static str, u32), limits: Limits, limit, segment, durable| Settings {
            service: lane.0,
            producer_field: lane.1,
            limit,
            segment,
            durable,
            sync: self.spool_sync,
            batch_events: limits.batch_events,
            batch_bytes: limits.batch_bytes,
            linger: limits.linger,
            max_body: MAX_EVENT_BYTES,
            on_pressure: self.on_pressure.clone(),
        };
        let lane = (UsageLane::NAME, UsageLane::PRODUCER_FIELD);
        let usage = match usage {
            true => Outbox::Disk(folder.spool(settings(lane, self.usage, self.usage_spool, USAGE_SEGMENT, false))?),
            false => memory(self.usage, numbering(lane.1)),
        };
        let lane = (AuditLane::NAME, AuditLane::PRODUCER_FIELD);
        let opened = match audit {
            true => folder.spool(settings(lane, self.audit, self.audit_spool, AUDIT_SEGMENT, true)).map(Outbox::Disk),
            false => Ok(memory(self.audit, numbering(lane.1))),
        };
        match opened {
            Ok(audit) => Ok(Outboxes { usage, audit, producer_id: folder.producer_id }),
            Err(error) => {
                // Its threads have begun.
                usage.end();
                Err(error)
            }
        }
    }

    fn lines(&self, setting: &'static str, address: Option<&str>, runtime: &Runtime) -> Result<Option<Lines>, Error> {
        let with = Connections {
            tls: self.tls.clone(),
            secret: self.credentials.is_some(),
            connect_timeout: self.connect_timeout,
            keep_alive: self.keep_alive,
            runtime: runtime.clone(),
        };
        let lines = address.map(|address| Lines::new(address, &with)).transpose();
        lines.map_err(|message| Error::Config { setting, message })
    }

    fn check(&self) -> Result<(), Error> {
        if let Some(Err(message)) = self.tls.as_ref().map(Tls::check) {
            return Err(Error::Config { setting: "tls", message });
        }
        let batch = &self.usage;
        let duration = |d: Duration| usize::try_from(d.as_millis()).unwrap_or(usize::MAX);
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        // At least one event of the largest size, framed.
        let least_bytes = 2 * MAX_EVENT_BYTES;
        let day = 24 * 3600 * 1000;
        let table = [
            ("usage_queue", "events", self.usage.events, 1, usize::MAX),
            ("usage_queue", "bytes", self.usage.bytes, least_bytes, usize::MAX),
            ("audit_queue", "events", self.audit.events, 1, usize::MAX),
            ("audit_queue", "bytes", self.audit.bytes, least_bytes, usize::MAX),
            ("batch", "events", batch.batch_events, 1, MAX_BATCH_EVENTS),
            ("batch", "bytes", batch.batch_bytes, least_bytes, MAX_BATCH_BYTES),
            ("window", "batches", self.window, 1, 1_000),
            ("usage_linger", "ms", duration(self.usage.linger), 0, 60_000),
            ("audit_linger", "ms", duration(self.audit.linger), 0, 60_000),
            ("connect_timeout", "ms", duration(self.connect_timeout), 1, day),
            ("ack_timeout", "ms", duration(self.ack_timeout), 1, day),
            ("audit_timeout", "ms", duration(self.audit_timeout), 1, day),
            ("query_timeout", "ms", duration(self.query_timeout), 1, day),
            ("keep_alive", "ms", duration(self.keep_alive.0), 1, day),
            ("keep_alive", "ms", duration(self.keep_alive.1), 1, day),
            ("drop_grace", "ms", duration(self.drop_grace), 0, day),
            ("backoff", "ms", duration(self.backoff.base), 1, day),
            ("backoff", "ms", duration(self.backoff.cap), 1, day),
            ("usage_spool", "bytes", bytes(self.usage_spool), 8 * USAGE_SEGMENT, usize::MAX),
            ("audit_spool", "bytes", bytes(self.audit_spool), 8 * AUDIT_SEGMENT, usize::MAX),
            ("spool_sync", "ms", duration(self.spool_sync), 1, day),
        ];
        for (setting, unit, value, least, most) in table {
            if value < least || value > most {
                let message = format!("{value} {unit}; from {least} to {most} are allowed");
                return Err(Error::Config { setting, message });
            }
        }
        let names = [("instance", Some(&self.instance), 0), ("producer_id", self.producer_id.as_ref(), 1)];
        for (setting, name, least) in names {
            let Some(name) = name else { continue };
            if name.len() < least || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
                let message =
                    format!("{name:?}; from {least} to {MAX_NAME_BYTES} bytes without control characters are allowed");
                return Err(Error::Config { setting, message });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_bounds_are_named() {
        let wrong = |builder: Builder| match builder.build() {
            Err(Error::Config { setting, message }) => format!("{setting}: {message}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            wrong(GatewaySdk::builder().batch(1_001, 1 << 20)),
            "batch: 1001 events; from 1 to 1000 are allowed"
        );
        assert!(wrong(GatewaySdk::builder().instance("a\nb")).starts_with("instance: \"a\\nb\""));
        assert!(wrong(GatewaySdk::builder().window(0)).starts_with("window: 0"));
    }

    #[tokio::test]
    async fn endpoints_that_are_none_are_named() {
        for address in ["ftp://x", "http://a b"] {
            let error = GatewaySdk::builder().usage_endpoint(address).build();
            assert!(matches!(error, Err(Error::Config { setting: "usage_endpoint", .. })), "{address}: {error:?}");
        }
    }
}
