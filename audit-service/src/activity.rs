//! The service's own activity, as entries of the log that the configuration names: starts and stops with the
//! configuration that counts for the log, exports with who asked what, and reads of pages where that is configured.
//!
//! ```text
//! start, export, page, stop ─▶ tell (never waits) ─▶ queue of bounded length ─▶ writer ─▶ ingest
//! ```
//!
//! What is told faster than it is recorded is counted, and the count is in the next entry: reading is not slowed by it, and
//! no flood of reads fills the log. What retention and holds do is recorded by themselves, in the log that they are of.
//!
//! An export is the one that waits: its intent is recorded before the first entry leaves, and its outcome when it ends. One
//! that ends with the service, however suddenly, leaves an intent that stands open.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use service_core::auth::{Caller, CredentialKind};
use service_core::clock;
use service_core::error::{Error, Result};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::denials::write;
use crate::event::{Actor, ActorKind, Event, Operation, Outcome, Resource, Stage};
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

    fn actor(&self) -> Actor {
        let named = !self.subject.is_empty();
        Actor {
            id: if named { self.subject.clone() } else { "anonymous".to_owned() },
            // A token does not say whether a person or a program has it.
            kind: self.kind.filter(|kind| *kind == CredentialKind::Certificate).map(|_| ActorKind::ServiceAccount),
            ip_address: self.peer.clone(),
            ..Actor::default()
        }
    }
}

/// The log of an instance, or those that a caller may see.
fn audit_log(instance_id: Option<&str>) -> Resource {
    Resource { kind: "audit_log".into(), id: instance_id.unwrap_or("*").into(), name: String::new() }
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
    queue: mpsc::Sender<Telling>,
    budget: Mutex<(f64, Instant)>,
    left_out: Arc<AtomicU64>,
}

/// An entry on its way, and who waits for it, if anybody does.
#[derive(Debug)]
struct Telling {
    event: Event,
    recorded: Option<oneshot::Sender<()>>,
}

/// What waits to be recorded, and how much is not.
#[derive(Debug)]
pub(crate) struct Told(Option<(mpsc::Receiver<Telling>, Arc<AtomicU64>)>);

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
    pub(crate) fn of_service(&self, action: &'static str, name: &str, details: Value) {
        let actor = Actor { id: RECORDED_BY.to_owned(), kind: Some(ActorKind::System), ..Actor::default() };
        let resource = Resource { kind: "service".into(), id: RECORDED_BY.into(), name: name.into() };
        self.tell(Entry { action, actor, resource, outcome: Outcome::Success, operation: None, details }, true);
    }

    /// Somebody has read a page, where that is to be recorded.
    pub(crate) fn page(&self, rpc: &str, caller: &Caller, query: impl FnOnce() -> Value, entries: usize) {
        if self.pages {
            let details = json!({ "rpc": rpc, "query": query(), "entries": entries });
            let (actor, resource) = (Asker::new(caller).actor(), audit_log(None));
            let (action, outcome) = ("audit_log.read", Outcome::Success);
            self.tell(Entry { action, actor, resource, outcome, operation: None, details }, false);
        }
    }

    /// Tells an entry, unless there are too many of them.
    fn tell(&self, entry: Entry, whatever_the_rate: bool) {
        let Some(to) = &self.to else { return };
        if whatever_the_rate || to.has_room() {
            to.send(entry, None);
        } else {
            to.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells an intent; resolves when it is recorded. None where nobody is told, or there are too many of them.
    fn intend(&self, entry: Entry) -> Option<oneshot::Receiver<()>> {
        let to = self.to.as_ref()?;
        if !to.has_room() {
            to.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let (recorded, done) = oneshot::channel();
        to.send(entry, Some(recorded)).then_some(done)
    }
}

/// What an entry says of its own; the rest is the same for all of them.
#[derive(Debug)]
struct Entry {
    action: &'static str,
    actor: Actor,
    resource: Resource,
    outcome: Outcome,
    operation: Option<Operation>,
    details: Value,
}

impl To {
    /// Whether there was room in the queue.
    fn send(&self, entry: Entry, recorded: Option<oneshot::Sender<()>>) -> bool {
        let Entry { action, actor, resource, outcome, operation, mut details } = entry;
        // An intent is not listed once its outcome is.
        let is_intent = operation.as_ref().is_some_and(|operation| operation.stage == Stage::Intent);
        let left_out = if is_intent { 0 } else { self.left_out.swap(0, Ordering::Relaxed) };
        if left_out > 0 {
            details["left_out"] = json!(left_out.to_string());
        }
        let event = Event {
            id: Uuid::now_v7(),
            occurred_at_us: clock::now_us(),
            instance_id: self.instance_id.clone(),
            actor,
            action: action.to_owned(),
            resources: vec![resource],
            outcome,
            reason: String::new(),
            changes: Vec::new(),
            details_json: details.to_string(),
            request_id: String::new(),
            operation,
            producer: None,
        };
        let sent = self.queue.try_send(Telling { event, recorded }).is_ok();
        if !sent {
            self.left_out.fetch_add(left_out + 1, Ordering::Relaxed);
        }
        sent
    }

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
            let telling = tokio::select! {
                biased;
                telling = told.recv() => telling,
                () = stop.cancelled(), if !told.is_closed() => {
                    told.close();
                    continue;
                }
            };
            let Some(Telling { event, recorded }) = telling else { return };
            let mut tries = PATIENCE.as_secs();
            let stored = loop {
                let Err(error) = write(&ingest, event.clone()).await else { break true };
                if stop.is_cancelled() {
                    tries = tries.saturating_sub(1);
                }
                if !error.is_retryable() || tries == 0 {
                    tracing::error!(%error, action = event.action, "activity of the service is not recorded");
                    left_out.fetch_add(1, Ordering::Relaxed);
                    break false;
                }
                tokio::time::sleep(PAUSE).await;
            };
            if let Some(recorded) = recorded.filter(|_| stored) {
                // Who waited may be gone.
                let _ = recorded.send(());
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

/// An export, told when it is refused, and from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Exporting {
    activity: Activity,
    asker: Asker,
    instance_id: Option<String>,
    details: Value,
    outcome: Outcome,
    told: Begun,
}

/// What was told of an export's beginning.
#[derive(Debug)]
enum Begun {
    /// It has not begun.
    No,
    /// Its intent, under this id.
    As(Uuid),
    /// Only that there was one more.
    Counted,
}

impl Exporting {
    pub(crate) fn new(activity: &Activity, caller: &Caller, instance_id: Option<String>, details: Value) -> Self {
        let (activity, asker) = (activity.clone(), Asker::new(caller));
        Self { activity, asker, instance_id, details, outcome: Outcome::Failure, told: Begun::No }
    }

    /// It begins: from here on entries leave.
    ///
    /// # Errors
    /// Where its intent is told and not recorded, nobody must get an entry.
    pub(crate) async fn begin(&mut self) -> Result<()> {
        let id = Uuid::now_v7();
        let intent = self.entry(Outcome::Unknown, Some((id, Stage::Intent)), self.details.clone());
        let Some(recorded) = self.activity.intend(intent) else {
            self.told = Begun::Counted;
            return Ok(());
        };
        // It may be recorded later than somebody waits for it.
        self.told = Begun::As(id);
        match tokio::time::timeout(PATIENCE, recorded).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Error::storage_unavailable(anyhow::anyhow!("that there is an export could not be recorded"))),
        }
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

    fn entry(&self, outcome: Outcome, operation: Option<(Uuid, Stage)>, details: Value) -> Entry {
        Entry {
            action: "audit_log.exported",
            actor: self.asker.actor(),
            resource: audit_log(self.instance_id.as_deref()),
            outcome,
            operation: operation.map(|(id, stage)| Operation { id: id.to_string(), stage }),
            details,
        }
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        let details = std::mem::take(&mut self.details);
        match self.told {
            Begun::No => self.activity.tell(self.entry(self.outcome, None, details), false),
            // Whoever has told the beginning tells the end.
            Begun::As(id) => {
                self.activity.tell(self.entry(self.outcome, Some((id, Stage::Outcome)), details), true);
            }
            Begun::Counted => {}
        }
    }
}
