//! What a handler says of its operation, and the outcome that follows whatever becomes of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::audit::operation::{Ending, Operation};
use crate::{Diff, Outcome, Resource};

/// Through which a handler adds to its request's outcome: an extension of each request that is
/// recorded, to be had with axum's `Extension<AuditHandle>` or from `tonic::Request::extensions`.
/// What is said after the handler has answered is lost.
#[derive(Clone, Debug, Default)]
pub struct AuditHandle {
    notes: Arc<Mutex<Notes>>,
}

#[derive(Debug, Default)]
struct Notes {
    diff: Diff,
    acted_on: Option<Resource>,
    resources: Vec<Resource>,
    details: Option<Value>,
    reason: String,
    /// In spite of a status of success.
    outcome: Option<Outcome>,
}

impl AuditHandle {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Each note is one assignment, whole or not there.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was changed; see [`Audit::diff`](crate::Audit::diff). Several are added up.
    pub fn diff(&self, diff: Diff) {
        self.notes().diff.append(diff);
    }

    /// What was acted on, where the route does not tell: the id of what was created, the name.
    pub fn acted_on(&self, resource: Resource) {
        self.notes().acted_on = Some(resource);
    }

    /// What else was affected.
    pub fn resource(&self, resource: Resource) {
        self.notes().resources.push(resource);
    }

    /// What else belongs to the outcome. The members of an object are put beside those of the
    /// layer (`request`, `status`).
    pub fn details(&self, details: Value) {
        self.notes().details = Some(details);
    }

    /// The ticket or the comment that says why.
    pub fn reason(&self, reason: impl Into<String>) {
        self.notes().reason = reason.into();
    }

    /// It failed, whatever the status says.
    pub fn failed(&self) {
        self.notes().outcome = Some(Outcome::Failure);
    }

    /// It was refused to the actor, whatever the status says.
    pub fn denied(&self) {
        self.notes().outcome = Some(Outcome::Denied);
    }
}

/// An operation whose outcome is recorded even when nobody waits for its answer any more.
#[derive(Debug)]
pub(super) struct Guard {
    operation: Option<Operation>,
    handle: AuditHandle,
    request: String,
}

impl Guard {
    pub(super) fn new(operation: Operation, handle: AuditHandle, request: String) -> Self {
        Self { operation: Some(operation), handle, request }
    }

    /// Records the outcome; what can't be is counted by the operation.
    pub(super) async fn end(mut self, outcome: Outcome, status: Value, reason: &str) {
        let ending = self.ending(outcome, status, reason);
        if let Some(operation) = self.operation.take() {
            record(operation, ending).await;
        }
    }

    fn ending(&self, outcome: Outcome, status: Value, reason: &str) -> Ending {
        let notes = std::mem::take(&mut *self.handle.notes());
        let mut details = json!({ "request": self.request });
        if !status.is_null() {
            details["status"] = status;
        }
        match notes.details {
            Some(Value::Object(own)) => own.into_iter().for_each(|(name, value)| details[name] = value),
            Some(other) => details["details"] = other,
            None => {}
        }
        Ending {
            // A failure can't be made a success.
            outcome: notes.outcome.filter(|_| outcome == Outcome::Success).unwrap_or(outcome),
            reason: if notes.reason.is_empty() { reason.to_owned() } else { notes.reason },
            diff: notes.diff,
            acted_on: notes.acted_on,
            resources: notes.resources,
            details: Some(details),
        }
    }
}

async fn record(operation: Operation, ending: Ending) {
    let id = operation.id();
    if let Err(unrecorded) = operation.end(ending).await {
        tracing::error!(operation = %id, error = %unrecorded.error, "an outcome is not known to be recorded");
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(operation) = self.operation.take() else { return };
        let ending = if std::thread::panicking() {
            self.ending(Outcome::Failure, Value::Null, "the answer's body panicked")
        } else {
            self.ending(Outcome::Unknown, Value::Null, "the client went away before the answer")
        };
        // Without a runtime nothing more is sent: the operation is dropped, and counts as such.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(record(operation, ending));
        }
    }
}
