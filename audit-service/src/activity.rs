//! The service's own activity, as entries of the log that the configuration names: starts and stops with the
//! configuration that counts for the log, exports with who asked what, and reads of pages where that is configured.
//!
//! ```text
//! start, export, page, stop ─▶ tell (never waits) ─▶ queue of bounded length ─▶ writer ─▶ ingest
//! ```
//!
//! What is told faster than it is recorded is counted, and the count is in the next entry: reading is not slowed by it, and
//! no flood of reads fills the log. What retention and holds do is recorded by themselves, in the log that they are of.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use service_core::auth::{Caller, CredentialKind};
use service_core::clock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::denials::write;
use crate::event::{Actor, ActorKind, Event, Outcome, Resource};
use crate::ingest::Ingest;
use crate::retention::RECORDED_BY;

/// Entries that wait to be recorded.
const QUEUE: usize = 1_024;
/// Entries that are recorded at once, and how many a second after them.
const BURST: f64 = 100.0;
const A_SECOND: f64 = 10.0;
/// How long a stop waits for what is not recorded yet.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// A query is told up to so many bytes.
const QUERY_BYTES: usize = 8 * 1024;

/// Who asked for something, of whom the entry is.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    subject: String,
    kind: Option<CredentialKind>,
    peer: String,
}

impl Asker {
    /// The caller of a request.
    pub(crate) fn new(caller: &Caller) -> Self {
        let peer = caller.peer().map(|peer| peer.to_string()).unwrap_or_default();
        Self { subject: caller.subject().to_owned(), kind: caller.kind(), peer }
    }
}

/// Where activity is told. Cheap to clone; told to nobody where no log is configured for it.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    to: Option<Arc<To>>,
    pages: bool,
}

#[derive(Debug)]
struct To {
    instance_id: String,
    queue: mpsc::Sender<Event>,
    budget: Mutex<(f64, Instant)>,
    left_out: Arc<AtomicU64>,
}

/// What waits to be recorded, and how much is not.
#[derive(Debug)]
pub(crate) struct Told(Option<(mpsc::Receiver<Event>, Arc<AtomicU64>)>);

impl Activity {
    /// Of a service whose activity is in the log of this instance; of none, it is in none.
    pub(crate) fn new(instance_id: &str, pages: bool) -> (Self, Told) {
        if instance_id.is_empty() {
            return (Self { to: None, pages: false }, Told(None));
        }
        let (queue, told) = mpsc::channel(QUEUE);
        let budget = Mutex::new((BURST, Instant::now()));
        let left_out = Arc::new(AtomicU64::new(0));
        let to = To { instance_id: instance_id.to_owned(), queue, budget, left_out: left_out.clone() };
        (Self { to: Some(Arc::new(to)), pages }, Told(Some((told, left_out))))
    }

    /// The service itself did something.
    pub(crate) fn of_service(&self, action: &str, name: &str, details: Value) {
        let actor = Actor { id: RECORDED_BY.to_owned(), kind: Some(ActorKind::System), ..Actor::default() };
        let resource = Resource { kind: "service".into(), id: RECORDED_BY.into(), name: name.into() };
        self.tell(action, actor, resource, Outcome::Success, details, true);
    }

    /// Somebody has read a log, or those that it may.
    pub(crate) fn read(
        &self,
        action: &str,
        asker: &Asker,
        instance_id: Option<&str>,
        outcome: Outcome,
        details: Value,
    ) {
        let named = !asker.subject.is_empty();
        let actor = Actor {
            id: if named { asker.subject.clone() } else { "anonymous".to_owned() },
            // A token does not say whether a person or a program has it.
            kind: asker.kind.filter(|kind| *kind == CredentialKind::Certificate).map(|_| ActorKind::ServiceAccount),
            ip_address: asker.peer.clone(),
            ..Actor::default()
        };
        let resource =
            Resource { kind: "audit_log".into(), id: instance_id.unwrap_or("*").into(), name: String::new() };
        self.tell(action, actor, resource, outcome, details, false);
    }

    /// Somebody has read a page, where that is to be recorded.
    pub(crate) fn page(&self, rpc: &str, caller: &Caller, query: impl FnOnce() -> Value, entries: usize) {
        if self.pages {
            let details = json!({ "rpc": rpc, "query": query(), "entries": entries });
            self.read("audit_log.read", &Asker::new(caller), None, Outcome::Success, details);
        }
    }

    fn tell(
        &self,
        action: &str,
        actor: Actor,
        resource: Resource,
        outcome: Outcome,
        mut details: Value,
        whatever_the_rate: bool,
    ) {
        let Some(to) = &self.to else { return };
        if !whatever_the_rate && !to.has_room() {
            to.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let left_out = to.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            details["left_out"] = json!(left_out.to_string());
        }
        let event = Event {
            id: Uuid::now_v7(),
            occurred_at_us: clock::now_us(),
            instance_id: to.instance_id.clone(),
            actor,
            action: action.to_owned(),
            resources: vec![resource],
            outcome,
            reason: String::new(),
            changes: Vec::new(),
            details_json: details.to_string(),
            request_id: String::new(),
            operation: None,
            producer: None,
        };
        if to.queue.try_send(event).is_err() {
            to.left_out.fetch_add(left_out + 1, Ordering::Relaxed);
        }
    }
}

impl To {
    /// Takes one of the entries that may be recorded now.
    fn has_room(&self) -> bool {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, at) = *budget;
        let left = (left + at.elapsed().as_secs_f64() * A_SECOND).min(BURST);
        let room = left >= 1.0;
        *budget = (if room { left - 1.0 } else { left }, Instant::now());
        room
    }
}

impl Told {
    /// Records what is told, until `stop` and then what is left. What cannot be stored now is tried again, however long the
    /// database is away, but for as long as a stop waits.
    pub(crate) async fn record(self, ingest: Ingest, stop: CancellationToken) {
        let Some((mut told, left_out)) = self.0 else { return };
        loop {
            let event = tokio::select! {
                biased;
                event = told.recv() => event,
                () = stop.cancelled(), if !told.is_closed() => {
                    told.close();
                    continue;
                }
            };
            let Some(event) = event else { return };
            let mut tries = PATIENCE.as_secs();
            while let Err(error) = write(&ingest, event.clone()).await {
                if stop.is_cancelled() {
                    tries = tries.saturating_sub(1);
                }
                if !error.is_retryable() || tries == 0 {
                    tracing::error!(%error, action = event.action, "activity of the service is not recorded");
                    left_out.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Waits until what was told is recorded, but not for long: a database that is away does not hold up a stop.
pub(crate) async fn recorded(recording: tokio::task::JoinHandle<()>) {
    if tokio::time::timeout(PATIENCE, recording).await.is_err() {
        tracing::error!("activity of the service was not recorded to the end");
    }
}

/// A query, as far as it is told.
pub(crate) fn query(text: String) -> Value {
    match text.char_indices().nth(QUERY_BYTES) {
        None => json!(text),
        Some((at, _)) => json!(format!("{}…", &text[..at])),
    }
}

/// An export that is under way: told when it ends, and when it is left off.
#[derive(Debug)]
pub(crate) struct Exporting {
    activity: Activity,
    asker: Asker,
    instance_id: Option<String>,
    details: Value,
    outcome: Outcome,
}

impl Exporting {
    pub(crate) fn new(activity: &Activity, caller: &Caller, instance_id: Option<String>, details: Value) -> Self {
        let (activity, asker) = (activity.clone(), Asker::new(caller));
        Self { activity, asker, instance_id, details, outcome: Outcome::Failure }
    }

    /// So many entries so far, from the start of the export.
    pub(crate) fn entries(&mut self, entries: u64) {
        self.details["entries"] = json!(entries.to_string());
    }

    /// All of it was sent.
    pub(crate) fn ended(&mut self, sha256: &str, from_archive: bool) {
        self.outcome = Outcome::Success;
        self.details["sha256"] = json!(sha256);
        self.details["from_archive"] = json!(from_archive);
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        let details = std::mem::take(&mut self.details);
        self.activity.read("audit_log.exported", &self.asker, self.instance_id.as_deref(), self.outcome, details);
    }
}
