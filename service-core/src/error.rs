//! The errors that leave a server: one closed set, one match to a gRPC status.
//!
//! Storage detail (SQL, file names, driver texts) is for the log. A client sees
//! the code, a short text, and the `google.rpc` details that say what to do
//! next: `ErrorInfo` always, `BadRequest` for a field that is wrong, `RetryInfo`
//! for what may be tried again.

mod database;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub use activity_proto::common::v1::ErrorReason as Reason;

/// `google.rpc.ErrorInfo.domain` of every error of both services.
pub const ERROR_DOMAIN: &str = "activity";

/// How long a client is asked to wait before it tries again.
pub const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Result with the [`Error`] of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with one field: of a request, or of one event in a batch.
///
/// The message begins in lower case, has no full stop, and says which value was
/// given and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Why, from the closed list of the contract.
    pub reason: Reason,
    /// Path of the field in the request or event, as in `actor.id`.
    pub field: String,
    /// What was wrong with which value, and what is allowed.
    pub message: String,
}

impl Violation {
    /// A violation with its reason.
    pub fn new(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason, field: field.into(), message: message.into() }
    }

    /// A value that is not allowed (`INVALID_ARGUMENT`).
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidArgument, field, message)
    }

    /// A required field that is absent (`REQUIRED`).
    pub fn required(field: impl Into<String>) -> Self {
        let field = field.into();
        let message = format!("{field} is required");
        Self::new(Reason::Required, field, message)
    }

    /// The same violation with `prefix.` before the field, also where its message begins with that, for nested messages.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        let field = format!("{prefix}.{}", self.field);
        if let Some(rest) = self.message.strip_prefix(&self.field) {
            self.message = format!("{field}{rest}");
        }
        self.field = field;
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Everything a call can fail with.
///
/// Clone, because one failed commit answers every batch of its group.
#[derive(Debug, Clone)]
pub enum Error {
    /// A field is wrong. Trying again does not help. `INVALID_ARGUMENT`.
    Invalid(Violation),
    /// A message, batch or event over its limit; trying again does not help.
    /// `RESOURCE_EXHAUSTED` without RetryInfo.
    TooLarge(String),
    /// No such thing, or none the caller may know of. `NOT_FOUND`.
    NotFound(String),
    /// Retention has removed the range; the text says from when data is there.
    /// `OUT_OF_RANGE`.
    OutOfRange(String),
    /// No credential, or none that holds; says only which kind. `UNAUTHENTICATED`.
    Unauthenticated(&'static str),
    /// A caller who is known and may not. `PERMISSION_DENIED`.
    PermissionDenied(String),
    /// Too many at once. `RESOURCE_EXHAUSTED` with RetryInfo.
    Overloaded(String),
    /// Storage is away; nothing was stored. `UNAVAILABLE` with RetryInfo.
    StorageUnavailable(Arc<anyhow::Error>),
    /// The server is stopping. `UNAVAILABLE` with RetryInfo.
    ShuttingDown,
    /// The database ended the transaction to settle a conflict. Worth trying
    /// inside the server first; `ABORTED` with RetryInfo when that did not help.
    Contention(Arc<anyhow::Error>),
    /// It took longer than it may. `DEADLINE_EXCEEDED`.
    DeadlineExceeded(String),
    /// What is stored is not what was stored; the text says what of it. `DATA_LOSS`.
    DataLoss(String),
    /// A defect. Logged with its cause, which the client does not see. `INTERNAL`.
    Internal(Arc<anyhow::Error>),
}

impl Error {
    /// A value that is not allowed (`INVALID_ARGUMENT`).
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(Violation::invalid(field, message))
    }

    /// A required field that is absent (`REQUIRED`).
    pub fn required(field: impl Into<String>) -> Self {
        Self::Invalid(Violation::required(field))
    }

    /// A bad field with a reason of its own.
    pub fn invalid_because(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(Violation::new(reason, field, message))
    }

    /// A defect: what was expected to hold and did not.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self::Internal(Arc::new(cause.into()))
    }

    /// Storage cannot be reached or cannot write.
    pub fn storage_unavailable(cause: impl Into<anyhow::Error>) -> Self {
        Self::StorageUnavailable(Arc::new(cause.into()))
    }

    /// The name of the error in error details, metric labels and documentation.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Invalid(violation) => violation.reason,
            Self::TooLarge(_) => Reason::TooLarge,
            Self::NotFound(_) => Reason::NotFound,
            Self::OutOfRange(_) => Reason::OutOfRange,
            Self::Unauthenticated(_) => Reason::Unauthenticated,
            Self::PermissionDenied(_) => Reason::PermissionDenied,
            Self::Overloaded(_) => Reason::Overloaded,
            Self::StorageUnavailable(_) => Reason::StorageUnavailable,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::Contention(_) => Reason::Contention,
            Self::DeadlineExceeded(_) => Reason::DeadlineExceeded,
            Self::DataLoss(_) => Reason::DataLoss,
            Self::Internal(_) => Reason::Internal,
        }
    }

    /// Whether the same call may succeed later, unchanged.
    pub fn is_retryable(&self) -> bool {
        retry_delay(self.reason()).is_some()
    }
}

/// What a reason means on the wire: its status code, and whether RetryInfo goes
/// with it. The one table, for our own errors and for those that tonic makes.
pub(crate) fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidArgument
        | Reason::Required
        | Reason::InvalidId
        | Reason::IdConflict
        | Reason::ProducerConflict
        | Reason::TimeOutOfBounds
        | Reason::BeforeRetention
        | Reason::InvalidAction
        | Reason::InvalidJsonPointer
        | Reason::InvalidJson
        | Reason::UnknownTimeZone
        | Reason::InvalidPageToken
        | Reason::BatchOutOfOrder
        | Reason::MalformedMessage
        | Reason::TooManyPoints => Code::InvalidArgument,
        Reason::TooLarge | Reason::Overloaded => Code::ResourceExhausted,
        Reason::NotFound => Code::NotFound,
        Reason::OutOfRange => Code::OutOfRange,
        Reason::Unauthenticated => Code::Unauthenticated,
        Reason::PermissionDenied => Code::PermissionDenied,
        Reason::StorageUnavailable | Reason::ShuttingDown => Code::Unavailable,
        Reason::Contention => Code::Aborted,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::DataLoss => Code::DataLoss,
        Reason::Unspecified | Reason::Internal => Code::Internal,
    }
}

fn retry_delay(reason: Reason) -> Option<Duration> {
    matches!(reason, Reason::Overloaded | Reason::StorageUnavailable | Reason::ShuttingDown | Reason::Contention)
        .then_some(RETRY_DELAY)
}

/// The bare name of a reason, as in `INVALID_ARGUMENT`.
pub fn reason_name(reason: Reason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

/// A status with `ErrorInfo`, and `RetryInfo` where the reason allows a retry.
pub(crate) fn status(reason: Reason, message: &str) -> Status {
    status_with(reason, message, ErrorDetails::new())
}

fn status_with(reason: Reason, message: &str, mut details: ErrorDetails) -> Status {
    details.set_error_info(reason_name(reason), ERROR_DOMAIN, HashMap::new());
    if let Some(delay) = retry_delay(reason) {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code(reason), message, details)
}

impl fmt::Display for Error {
    /// What the client reads. Causes are left out on purpose.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(violation) => violation.fmt(f),
            Self::TooLarge(message)
            | Self::NotFound(message)
            | Self::OutOfRange(message)
            | Self::PermissionDenied(message)
            | Self::Overloaded(message)
            | Self::DeadlineExceeded(message)
            | Self::DataLoss(message) => f.write_str(message),
            Self::Unauthenticated(message) => f.write_str(message),
            Self::StorageUnavailable(_) => f.write_str("storage is not available; nothing was changed; try again"),
            Self::ShuttingDown => f.write_str("the server is stopping; connect again"),
            Self::Contention(_) => f.write_str("the transaction met a conflict several times; try again"),
            Self::Internal(_) => f.write_str("internal error; the server's log has the cause"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::StorageUnavailable(cause) | Self::Contention(cause) | Self::Internal(cause) => Some(&***cause),
            _ => None,
        }
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Self::Invalid(violation)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let reason = error.reason();
        let message = error.to_string();
        let mut details = ErrorDetails::new();
        match error {
            Error::Invalid(violation) => {
                details.add_bad_request_violation(violation.field, violation.message);
            }
            Error::StorageUnavailable(cause) => {
                // One failure answers many batches, and an outage lasts: the metric
                // counts them all, the log says it once a second.
                static LOGGED_AT: AtomicI64 = AtomicI64::new(0);
                let second = crate::clock::now_us() / crate::clock::MICROS_PER_SECOND;
                if LOGGED_AT.swap(second, Ordering::Relaxed) != second {
                    tracing::warn!(cause = %chain(&cause), "storage is not available");
                }
            }
            Error::Contention(cause) => {
                tracing::warn!(cause = %chain(&cause), "transaction conflict");
            }
            Error::Internal(cause) => {
                tracing::error!(cause = %chain(&cause), "internal error");
            }
            Error::TooLarge(_)
            | Error::NotFound(_)
            | Error::OutOfRange(_)
            | Error::Unauthenticated(_)
            | Error::PermissionDenied(_)
            | Error::Overloaded(_)
            | Error::ShuttingDown
            | Error::DeadlineExceeded(_)
            | Error::DataLoss(_) => {}
        }
        status_with(reason, &message, details)
    }
}

/// An error with its causes in one line, for the log.
fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

/// A caught panic as an error, for the log.
pub(crate) fn panic_error(place: &str, panic: &(dyn std::any::Any + Send)) -> anyhow::Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a text");
    anyhow::anyhow!("panic in {place}: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_code_reason_and_retry() {
        let cause = || Arc::new(anyhow::anyhow!("disk /secret/path is gone"));
        let table = [
            (Error::invalid("page_size", "no"), Code::InvalidArgument, "INVALID_ARGUMENT", false),
            (Error::required("id"), Code::InvalidArgument, "REQUIRED", false),
            (Error::TooLarge("x".into()), Code::ResourceExhausted, "TOO_LARGE", false),
            (Error::NotFound("x".into()), Code::NotFound, "NOT_FOUND", false),
            (Error::OutOfRange("x".into()), Code::OutOfRange, "OUT_OF_RANGE", false),
            (Error::Unauthenticated("x"), Code::Unauthenticated, "UNAUTHENTICATED", false),
            (Error::PermissionDenied("x".into()), Code::PermissionDenied, "PERMISSION_DENIED", false),
            (Error::Overloaded("x".into()), Code::ResourceExhausted, "OVERLOADED", true),
            (Error::StorageUnavailable(cause()), Code::Unavailable, "STORAGE_UNAVAILABLE", true),
            (Error::ShuttingDown, Code::Unavailable, "SHUTTING_DOWN", true),
            (Error::Contention(cause()), Code::Aborted, "CONTENTION", true),
            (Error::DeadlineExceeded("x".into()), Code::DeadlineExceeded, "DEADLINE_EXCEEDED", false),
            (Error::Internal(cause()), Code::Internal, "INTERNAL", false),
        ];
        for (error, code, reason, retry) in table {
            assert_eq!(error.is_retryable(), retry, "{reason}");
            let status = Status::from(error);
            let details = status.get_error_details();
            let info = details.error_info().expect("ErrorInfo is always there");
            assert_eq!(status.code(), code, "{reason}");
            assert_eq!((info.domain.as_str(), info.reason.as_str()), ("activity", reason));
            assert_eq!(details.retry_info().is_some(), retry, "{reason}");
            assert!(!status.message().contains("secret"), "{}", status.message());
        }
    }

    #[test]
    fn a_bad_field_is_named_in_the_details() {
        let status = Status::from(Error::from(Violation::required("id").within("actor")));
        let details = status.get_error_details();
        let violations = &details.bad_request().expect("BadRequest").field_violations;
        assert_eq!(violations[0].field, "actor.id");
        assert_eq!(violations[0].description, "actor.id is required");
    }
}
