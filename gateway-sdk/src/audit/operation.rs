//! An action in two entries: what is about to be done, and how it ended.
//!
//! ```text
//! begin ─▶ intent durable ─▶ the change ─▶ succeeded │ failed │ denied │ unknown ─▶ outcome durable
//!    │                          │ dropped, panicked, killed
//!    └─ given up: the change    └─▶ the intent stands open: it is listed, counted, and the callback is told
//!       never began, and the
//!       log is told so
//! ```

use std::fmt;
use std::future::IntoFuture;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use activity_proto::audit::v1 as proto;
use futures::FutureExt;
use prost::Message;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::check::{MAX_TEXT_BYTES, fit_resource, fit_text, is_json};
use super::{Audit, Recorded};
use crate::config::OnAbandoned;
use crate::diff::{Diff, omitted, omitted_text};
use crate::error::Error;
use crate::feed::MAX_EVENT_BYTES;
use crate::{Actor, AuditEvent, AuditEventBuilder, Outcome, Resource, Stage};

/// The contract's limit for an event, less what the SDK adds to it.
const MAX_BYTES: usize = MAX_EVENT_BYTES - 1_024;
/// Details that take more of an outcome are left out, and it says so.
const MAX_DETAILS_BYTES: usize = 16 * 1024;
/// The contract's limit.
const MAX_RESOURCES: usize = 100;

/// Counters of operations since the SDK was built: `begun = open + ended + abandoned`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OperationStats {
    /// Operations whose intent was recorded.
    pub begun: u64,
    /// Those that are under way.
    pub open: u64,
    /// Those whose outcome was recorded.
    pub ended: u64,
    /// Those that were dropped without an outcome, or whose outcome could not be recorded:
    /// their intents stand open in the log, unless an outcome that was said to be lost has
    /// arrived after all.
    pub abandoned: u64,
}

/// What all operations of an SDK share.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    begun: AtomicU64,
    ended: AtomicU64,
    abandoned: AtomicU64,
    on_abandoned: OnAbandoned,
}

impl Operations {
    pub(crate) fn new(on_abandoned: OnAbandoned) -> Self {
        Self { on_abandoned, ..Self::default() }
    }

    pub(crate) fn stats(&self) -> OperationStats {
        // In this order: what ends meanwhile makes `open` no less than it was.
        let (ended, abandoned) = (self.ended.load(Ordering::Acquire), self.abandoned.load(Ordering::Acquire));
        let begun = self.begun.load(Ordering::Acquire);
        OperationStats { begun, open: begun - ended - abandoned, ended, abandoned }
    }
}

/// An operation that is about to begin; see [`Audit::begin`]. Await it.
#[derive(Clone, Debug)]
#[must_use = "await it: nothing is recorded before"]
pub struct Begin {
    audit: Audit,
    event: AuditEventBuilder,
}

impl Audit {
    /// Begins an action in two entries: its intent is durable, as [`record`](Self::record) has
    /// it, when this returns `Ok`. Make the change **then**, and say how it ended.
    ///
    /// ```no_run
    /// # use gateway_sdk::{Actor, Audit, Diff, Resource};
    /// # #[derive(serde::Serialize, Clone)] struct Model { enabled: bool }
    /// # async fn store(_: &Model) -> Result<(), String> { Ok(()) }
    /// # async fn example(audit: &Audit, old: Model) -> Result<(), Box<dyn std::error::Error>> {
    /// let operation = audit
    ///     .begin(Actor::user("u-17"), "model.enabled", Resource::new("model", "gpt-4o"))
    ///     .reason("OPS-1234")
    ///     .await?;
    /// let new = Model { enabled: true };
    /// match store(&new).await {
    ///     Ok(()) => operation.succeeded(audit.diff(&old, &new)).await?,
    ///     Err(error) => operation.failed(error).await?,
    /// };
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Whatever becomes of it, the log shows it: an operation that is dropped without an outcome,
    /// or whose process dies, is an intent that stands open, which `ListEntries` shows; the
    /// former also count in [`Stats::operations`](crate::Stats::operations) and go to
    /// [`Builder::on_abandoned`](crate::Builder::on_abandoned).
    ///
    /// # Errors
    ///
    /// Those of [`record`](Self::record): make no change then. [`Error::Rejected`] also for what
    /// the service would refuse: what is spooled is not seen by it at once. Where the intent may
    /// arrive all the same, or this future was dropped, an outcome that says that the change did
    /// not begin follows it, if there is room.
    pub fn begin(&self, actor: Actor, action: impl Into<String>, resource: Resource) -> Begin {
        Begin { audit: self.clone(), event: AuditEvent::builder(actor, action, resource) }
    }
}

impl Begin {
    /// The request that caused it, to join with traces and logs.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.event = self.event.request_id(id);
        self
    }

    /// The ticket or the comment that says why.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.event = self.event.reason(reason);
        self
    }

    /// What else belongs to it.
    pub fn details(mut self, details: &Value) -> Self {
        self.event = self.event.details(details);
        self
    }

    /// A further resource that will be affected.
    pub fn resource(mut self, resource: Resource) -> Self {
        self.event = self.event.resource(resource);
        self
    }

    /// The platform instance. Default: that of the SDK.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.event = self.event.instance(id);
        self
    }

    async fn start(self) -> Result<Operation, Error> {
        let id = Uuid::now_v7();
        let event = self.event.outcome(Outcome::Unknown).operation(id.to_string(), Stage::Intent).build();
        event.check_with(self.audit.feed.has_instance())?;
        let intent = event.into_proto();
        let mut starting = Starting(Some(Parts { audit: self.audit, id, intent }));
        let Some(parts) = &starting.0 else { return Err(Error::ShutDown) };
        match parts.audit.record(AuditEvent::from_proto(parts.intent.clone())).await {
            Ok(_) => {}
            // These may arrive all the same; the others were not taken.
            Err(error @ (Error::NotAcknowledged { .. } | Error::Spool { .. })) => return Err(error),
            Err(error) => {
                starting.0 = None;
                return Err(error);
            }
        }
        let parts = starting.0.take();
        if let Some(parts) = &parts {
            parts.audit.operations.begun.fetch_add(1, Ordering::AcqRel);
        }
        Ok(Operation { parts, resources: Vec::new(), details: None })
    }
}

impl IntoFuture for Begin {
    type Output = Result<Operation, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.start())
    }
}

#[derive(Debug)]
struct Parts {
    audit: Audit,
    id: Uuid,
    intent: proto::AuditEvent,
}

/// An intent that is being recorded. Dropped before it is known to be durable, nobody will make
/// its change.
struct Starting(Option<Parts>);

impl Drop for Starting {
    fn drop(&mut self) {
        let Some(parts) = self.0.take() else { return };
        // The first poll hands the event over, where there is room; timers need a runtime.
        let _entered = parts.audit.feed.runtime.enter_own();
        if Handle::try_current().is_ok() {
            let reason = "did not begin: its intent was not known to be durable";
            let ending = Ending { outcome: Outcome::Failure, reason: reason.to_owned(), ..Ending::default() };
            let event = outcome(&parts, ending);
            let _ = parts.audit.record(event).now_or_never();
        }
    }
}

/// How an operation ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) outcome: Outcome,
    pub(crate) reason: String,
    pub(crate) diff: Diff,
    /// What was acted on, where it is known better than before, and what else was affected.
    pub(crate) acted_on: Option<Resource>,
    pub(crate) resources: Vec<Resource>,
    pub(crate) details: Option<Value>,
}

impl Default for Ending {
    fn default() -> Self {
        Self {
            outcome: Outcome::Unknown,
            reason: String::new(),
            diff: Diff::default(),
            acted_on: None,
            resources: Vec::new(),
            details: None,
        }
    }
}

/// An action whose intent is recorded, and whose outcome is not; see [`Audit::begin`].
///
/// One of the methods that take it records the outcome, once. Dropped without, as when a
/// handler panics, the intent stands open.
#[derive(Debug)]
#[must_use = "dropped without an outcome, its intent stands open"]
pub struct Operation {
    /// Until the outcome is known to be durable.
    parts: Option<Parts>,
    resources: Vec<Resource>,
    details: Option<Value>,
}

impl Operation {
    /// What ties its two entries together.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.parts.as_ref().map_or(Uuid::nil(), |parts| parts.id)
    }

    /// A further resource that turned out to be affected; up to 100 in all.
    pub fn resource(&mut self, resource: Resource) {
        self.resources.push(resource);
    }

    /// What else belongs to the outcome, in the place of the intent's.
    pub fn details(&mut self, details: Value) {
        self.details = Some(details);
    }

    /// The change was made.
    ///
    /// # Errors
    ///
    /// [`Unrecorded`], as for the other outcomes: the change stands, its intent is in the log,
    /// and its outcome is not known to be.
    pub async fn succeeded(self, diff: Diff) -> Result<Recorded, Unrecorded> {
        self.end(Ending { outcome: Outcome::Success, diff, ..Ending::default() }).await
    }

    /// It was tried and not done.
    ///
    /// # Errors
    ///
    /// As [`succeeded`](Self::succeeded).
    pub async fn failed(self, reason: impl fmt::Display) -> Result<Recorded, Unrecorded> {
        self.because(Outcome::Failure, &reason).await
    }

    /// It was refused to the actor.
    ///
    /// # Errors
    ///
    /// As [`succeeded`](Self::succeeded).
    pub async fn denied(self, reason: impl fmt::Display) -> Result<Recorded, Unrecorded> {
        self.because(Outcome::Denied, &reason).await
    }

    /// Nobody knows whether it was done.
    ///
    /// # Errors
    ///
    /// As [`succeeded`](Self::succeeded).
    pub async fn unknown(self, reason: impl fmt::Display) -> Result<Recorded, Unrecorded> {
        self.because(Outcome::Unknown, &reason).await
    }

    fn because(
        self,
        outcome: Outcome,
        reason: &dyn fmt::Display,
    ) -> impl Future<Output = Result<Recorded, Unrecorded>> {
        self.end(Ending { outcome, reason: reason.to_string(), ..Ending::default() })
    }

    pub(crate) async fn end(mut self, mut ending: Ending) -> Result<Recorded, Unrecorded> {
        let mut resources = mem::take(&mut self.resources);
        resources.append(&mut ending.resources);
        ending.resources = resources;
        ending.details = ending.details.or(self.details.take());
        // It is there until the outcome is durable.
        let Some(parts) = &self.parts else { unreachable!("an operation ends once, and takes itself") };
        let event = outcome(parts, ending);
        match parts.audit.record(event.clone()).await {
            Ok(recorded) => {
                parts.audit.operations.ended.fetch_add(1, Ordering::AcqRel);
                self.parts = None;
                Ok(recorded)
            }
            Err(error) => Err(Unrecorded { event: Box::new(event), error: Box::new(error) }),
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        let operations = Arc::clone(&parts.audit.operations);
        operations.abandoned.fetch_add(1, Ordering::AcqRel);
        operations.on_abandoned.call(Abandoned { intent: AuditEvent::from_proto(parts.intent) });
    }
}

/// An operation that was dropped without a recorded outcome, as handed to
/// [`Builder::on_abandoned`](crate::Builder::on_abandoned).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Abandoned {
    /// Its intent, as it is in the log.
    pub intent: AuditEvent,
}

/// An outcome that is not known to be recorded. The intent is, and stands open until it is.
#[derive(Debug, thiserror::Error)]
#[error("the outcome is not known to be recorded, and its intent stands open: {error}")]
#[non_exhaustive]
pub struct Unrecorded {
    /// The outcome: [`record`](Audit::record) this same event again, and it is stored once.
    pub event: Box<AuditEvent>,
    /// Why.
    #[source]
    pub error: Box<Error>,
}

/// The event of an outcome. Whatever is in it, the service takes it: a text that is too long is
/// cut, and what there is no room for is left out, all of it visibly.
fn outcome(parts: &Parts, ending: Ending) -> AuditEvent {
    let mut message = parts.intent.clone();
    (message.id, message.occurred_at) = (String::new(), None);
    message.outcome = ending.outcome.into();
    message.operation = Some(proto::Operation { id: parts.id.to_string(), stage: Stage::Outcome.into() });
    if !ending.reason.is_empty() {
        let before = if message.reason.is_empty() { "" } else { "; " };
        message.reason = fit_text(&format!("{}{before}{}", message.reason, ending.reason), MAX_TEXT_BYTES);
    }
    if let Some(resource) = ending.acted_on {
        message.resources[0] = resource.map(fit_resource).into_proto();
    }
    message.resources.extend(ending.resources.into_iter().map(|resource| resource.map(fit_resource).into_proto()));
    message.changes = ending.diff.into_changes();
    if let Some(details) = ending.details {
        message.details_json = fit_details(details.to_string());
    }
    if message.resources.len() > MAX_RESOURCES {
        leave_out_resources(&mut message, MAX_RESOURCES);
    }
    // What tells of missing ones is smaller.
    if message.encoded_len() > MAX_BYTES && message.details_json.len() > 1_024 {
        message.details_json = omitted_text(&message.details_json);
    }
    if message.encoded_len() > MAX_BYTES && !message.changes.is_empty() {
        let count = json!({"changes": message.changes.len()});
        message.changes = Diff::omitted(&count).into_changes();
    }
    if message.encoded_len() > MAX_BYTES {
        leave_out_resources(&mut message, 1);
    }
    AuditEvent::from_proto(message)
}

fn fit_details(text: String) -> String {
    if text.len() <= MAX_DETAILS_BYTES && is_json(&text) { text } else { omitted_text(&text) }
}

fn leave_out_resources(message: &mut proto::AuditEvent, left: usize) {
    let missing = message.resources.len() - left;
    message.resources.truncate(left);
    let mut what = json!({"resources": missing});
    if !message.details_json.is_empty() {
        what["details"] = serde_json::from_str(&omitted_text(&message.details_json)).unwrap_or_default();
    }
    message.details_json = omitted(&what);
}
