//! Calls that were refused, on their way into an audit log.
//!
//! ```text
//! a refusal ─▶ counted ─▶ few enough, of this caller and in all? ─▶ queue ─▶ the service records it
//!                           └─▶ no, or the queue is full: counted as left out ──every minute──▶ one record of how many
//! ```
//!
//! Who is refused never waits for any of it, and nobody fills a log by being refused:
//! the queue is bounded, and so is what is kept of callers (a count each, for a
//! minute, of those that were recorded). What is recorded holds names and addresses,
//! and no credential.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::caller::From;
use super::limits::key;
use super::{CredentialKind, Principal};
use crate::clock::now_us;
use crate::config::DenialsConfig;
use crate::telemetry::Metrics;

/// How long counts are kept, and between two records of what was left out.
const MINUTE: Duration = Duration::from_secs(60);
/// Waiting for the service; each is under 2 KiB.
const QUEUE: usize = 256;
/// As everywhere in the contract.
const MAX_NAME_BYTES: usize = 256;

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// No credential, or none that holds.
    Credential,
    /// No role that may.
    Role,
    /// An instance that is not the caller's.
    Instance,
    /// A user who is not the caller.
    User,
    /// Something asked for by its id, which the caller may not know of.
    Hidden,
}

impl Why {
    /// In records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::Role => "role",
            Self::Instance => "instance",
            Self::User => "user",
            Self::Hidden => "hidden",
        }
    }
}

/// A call that was refused, or something within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// When.
    pub at_us: i64,
    /// To whom, if that was known.
    pub subject: Option<String>,
    /// How it had shown who it is.
    pub kind: Option<CredentialKind>,
    /// The RPC as `/package.Service/Method`, or `unknown`.
    pub method: &'static str,
    /// What was wrong.
    pub why: Why,
    /// What the caller was told.
    pub message: String,
    /// The instance that was asked for, if one was.
    pub instance: Option<String>,
    /// The user that was asked for, if one was.
    pub user: Option<String>,
    /// From where.
    pub peer: Option<IpAddr>,
    /// With what, as the caller says.
    pub user_agent: String,
}

impl Denial {
    pub(super) fn new(
        why: Why,
        principal: Option<&Principal>,
        method: &'static str,
        from: &From,
        message: String,
    ) -> Self {
        Self {
            at_us: now_us(),
            subject: principal.map(|principal| principal.subject.clone()),
            kind: principal.map(|principal| principal.kind),
            method,
            why,
            message,
            instance: None,
            user: None,
            peer: from.peer,
            user_agent: from.user_agent.clone(),
        }
    }
}

/// What is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A refusal.
    Denial(Box<Denial>),
    /// So many were left out since the last such record.
    LeftOut(u64),
}

/// Where refusals are told. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Denials {
    metrics: Metrics,
    /// `None`: counted, and not recorded.
    queue: Option<Arc<Queue>>,
}

#[derive(Debug)]
struct Queue {
    of_caller: u32,
    of_all: u32,
    minute: Mutex<Minute>,
    left_out: AtomicU64,
    sender: mpsc::Sender<Denial>,
}

/// What was recorded in the current minute.
#[derive(Debug)]
struct Minute {
    began: Instant,
    recorded: u32,
    of: HashMap<String, u32>,
}

/// Where a service takes refusals from, to record them.
#[derive(Debug)]
pub struct DenialQueue {
    receiver: mpsc::Receiver<Denial>,
    queue: Arc<Queue>,
    told_at: Instant,
}

impl Denials {
    /// Only counts.
    pub(crate) fn counted(metrics: Metrics) -> Self {
        Self { metrics, queue: None }
    }

    /// Counts, and hands to a service what it should record.
    pub fn queue(config: &DenialsConfig, metrics: &Metrics) -> (Self, DenialQueue) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let minute = Minute { began: Instant::now(), recorded: 0, of: HashMap::new() };
        let queue = Arc::new(Queue {
            of_caller: config.per_caller_per_minute.get(),
            of_all: config.per_minute.get(),
            minute: Mutex::new(minute),
            left_out: AtomicU64::new(0),
            sender,
        });
        let denials = Self { metrics: metrics.clone(), queue: Some(queue.clone()) };
        (denials, DenialQueue { receiver, queue, told_at: Instant::now() })
    }

    pub(super) fn record(&self, denial: Denial) {
        self.metrics.denied(denial.why.name());
        let Some(queue) = &self.queue else { return };
        if !(queue.has_room_for(&denial) && queue.sender.try_send(denial).is_ok()) {
            queue.left_out.fetch_add(1, Ordering::Relaxed);
            self.metrics.denial_left_out();
        }
    }
}

impl Queue {
    fn has_room_for(&self, denial: &Denial) -> bool {
        let caller = key(denial.subject.as_deref(), denial.peer);
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.began.elapsed() >= MINUTE {
            *minute = Minute { began: Instant::now(), recorded: 0, of: HashMap::new() };
        }
        let so_far = minute.of.get(&caller).copied().unwrap_or(0);
        if minute.recorded >= self.of_all || so_far >= self.of_caller {
            return false;
        }
        minute.recorded += 1;
        minute.of.insert(caller, so_far + 1);
        true
    }
}

impl DenialQueue {
    /// The next to record; `None` when it was closed and all is told. May be dropped
    /// and called again.
    pub async fn next(&mut self) -> Option<Record> {
        loop {
            let denial = tokio::select! {
                denial = self.receiver.recv() => denial,
                () = tokio::time::sleep_until(self.told_at + MINUTE) => {
                    self.told_at = Instant::now();
                    match self.left_out() {
                        Some(record) => return Some(record),
                        None => continue,
                    }
                }
            };
            return denial.map(|denial| Record::Denial(Box::new(denial))).or_else(|| self.left_out());
        }
    }

    /// Takes no more; what is there is still told.
    pub fn close(&mut self) {
        self.receiver.close();
    }

    fn left_out(&self) -> Option<Record> {
        let count = self.queue.left_out.swap(0, Ordering::Relaxed);
        (count > 0).then_some(Record::LeftOut(count))
    }
}

/// What a caller says, fit for a record: short, in one line, and nothing that looks
/// like a token, wherever somebody put one.
pub(super) fn tame(text: &str) -> String {
    // How every JWT begins: `{"` in base64url.
    if text.contains("eyJ") {
        return "[withheld]".to_owned();
    }
    let end = text.floor_char_boundary(MAX_NAME_BYTES);
    text[..end].chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn denial(subject: Option<&str>, peer: u8) -> Denial {
        Denial {
            at_us: 0,
            subject: subject.map(str::to_owned),
            kind: None,
            method: "/a/B",
            why: Why::Role,
            message: String::new(),
            instance: None,
            user: None,
            peer: Some(Ipv4Addr::new(192, 0, 2, peer).into()),
            user_agent: String::new(),
        }
    }

    fn queue(per_caller: u32, per_minute: u32) -> (Denials, DenialQueue, Metrics) {
        let metrics = Metrics::new("test");
        let config = DenialsConfig {
            per_caller_per_minute: per_caller.try_into().unwrap(),
            per_minute: per_minute.try_into().unwrap(),
            ..DenialsConfig::default()
        };
        let (denials, queue) = Denials::queue(&config, &metrics);
        (denials, queue, metrics)
    }

    async fn all(mut queue: DenialQueue) -> (Vec<String>, u64) {
        queue.close();
        let (mut who, mut left_out) = (Vec::new(), 0);
        while let Some(record) = queue.next().await {
            match record {
                Record::Denial(denial) => who.push(denial.subject.unwrap_or_else(|| denial.peer.unwrap().to_string())),
                Record::LeftOut(count) => left_out += count,
            }
        }
        (who, left_out)
    }

    #[tokio::test]
    async fn one_who_is_refused_often_leaves_room_for_others_and_is_counted() {
        let (denials, queue, metrics) = queue(2, 5);
        for _ in 0..1_000 {
            denials.record(denial(Some("eve"), 1));
            denials.record(denial(None, 2));
        }
        denials.record(denial(Some("ada"), 1));
        denials.record(denial(Some("bob"), 1));
        let (who, left_out) = all(queue).await;
        assert_eq!(who, ["eve", "192.0.2.2", "eve", "192.0.2.2", "ada"]);
        assert_eq!(left_out, 2_002 - 5);
        let text = metrics.encode();
        assert!(text.contains(r#"activity_denied_total{service="test",why="role"} 2002"#), "{text}");
        assert!(text.contains(r#"activity_denials_left_out_total{service="test"} 1997"#), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_left_out_is_told_every_minute_and_the_next_minute_has_room_again() {
        let (denials, mut queue, _) = queue(1, 10);
        denials.record(denial(Some("eve"), 1));
        denials.record(denial(Some("eve"), 1));
        assert!(matches!(queue.next().await, Some(Record::Denial(_))));
        assert_eq!(queue.next().await, Some(Record::LeftOut(1)));
        denials.record(denial(Some("eve"), 1));
        assert!(matches!(queue.next().await, Some(Record::Denial(_))));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_service_that_does_not_record() {
        let (denials, queue, _) = queue(10_000, 10_000);
        for _ in 0..QUEUE + 7 {
            denials.record(denial(None, 1));
        }
        let (who, left_out) = all(queue).await;
        assert_eq!((who.len(), left_out), (QUEUE, 7));
    }

    #[test]
    fn what_a_caller_says_is_short_in_one_line_and_no_token() {
        assert_eq!(tame("grpc-rust/1.0"), "grpc-rust/1.0");
        assert_eq!(tame("a\nb\u{1b}[31m"), "a\u{fffd}b\u{fffd}[31m");
        assert_eq!(tame(&"ü".repeat(1_000)).len(), MAX_NAME_BYTES);
        assert_eq!(tame("curl Bearer eyJhbGciOiJSUzI1NiJ9.e30.c2ln"), "[withheld]");
    }
}
