//! The one error type of the crate, and what a service says when it refuses.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::ErrorReason;
use crate::retry::{Verdict, classify};

/// Everything that can go wrong in a call of this crate.
///
/// `usage().record` is not among the calls that return it: it never fails
/// towards its caller, it counts (see [`Stats`](crate::Stats)).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting of a builder is not usable.
    #[error("{setting}: {message}")]
    Config {
        /// The builder's method.
        setting: &'static str,
        /// What is wrong, and what is allowed.
        message: String,
    },
    /// The thread on which the SDK was to run could not be started.
    #[error("the SDK's own thread could not be started: {0}")]
    Runtime(String),
    /// [`GatewaySdk::block_on`](crate::GatewaySdk::block_on) was called in a tokio runtime.
    #[error("this thread is in a tokio runtime: await here instead of waiting")]
    InRuntime,
    /// The call needs a service for which no endpoint was given.
    #[error("no {service} endpoint was configured")]
    NotConfigured {
        /// `audit` or `usage`.
        service: &'static str,
    },
    /// The queue is full: the event was **not** taken.
    #[error("the {service} queue is full ({events} events, {bytes} bytes wait); the event was not taken")]
    QueueFull {
        /// `audit` or `usage`.
        service: &'static str,
        /// Events that wait.
        events: usize,
        /// Their encoded bytes.
        bytes: usize,
    },
    /// The spool's folder or its disk does not do what it should: there is no room on it, it
    /// can't be written to, a sync failed. Of an event it means that it is not known to be
    /// recorded; if it reached the file it may still arrive, so record the **same** event
    /// again, and it is stored once.
    #[error("the spool in {}: {message}", folder.display())]
    Spool {
        /// The spool's folder.
        folder: PathBuf,
        /// What failed, by the words of the operating system.
        message: String,
    },
    /// Another SDK has this folder as its spool, in this process or another.
    #[error("the spool in {} is in use{}; each process needs a folder of its own", folder.display(), by(process))]
    SpoolInUse {
        /// The spool's folder.
        folder: PathBuf,
        /// The process that has it, where it has said so.
        process: Option<u32>,
    },
    /// The event alone is over the limit: it was **not** taken.
    #[error("the event has {bytes} bytes encoded, at most {limit} are allowed")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// No acknowledgement within the time allowed. The event **stays queued** and
    /// is still delivered if the process lives: record the same event (the same
    /// id) again rather than a new one; it is stored once.
    #[error("event {id} was not acknowledged within {waited:?} and is still queued; {}", last(cause))]
    NotAcknowledged {
        /// The event's id.
        id: String,
        /// How long the call waited.
        waited: Duration,
        /// What ended the last stream or attempt, where one has failed since the last
        /// acknowledgement: a connection that was refused, a service that is not there.
        cause: Option<String>,
    },
    /// The SDK was shut down. An event that was waiting may have been stored or
    /// not; recording it again with the same id is safe.
    #[error("the SDK has been shut down")]
    ShutDown,
    /// The service refused this event for good; sending it again does not help.
    #[error("the event was refused: {0}")]
    Rejected(Rejection),
    /// The event is recorded, and there is no proof of it yet: no checkpoint was signed in time,
    /// or the service signs none. Ask again.
    #[error("event {id} is recorded, and no checkpoint is over it yet")]
    NoProof {
        /// The event's id.
        id: String,
    },
    /// A call failed at the service or on the way to it.
    #[error("{0}")]
    Service(Box<ServiceError>),
    /// An answer broke the contract, such as an export whose hash does not match.
    #[error("the service's answer broke the contract: {0}")]
    Protocol(String),
    /// The writer of an export failed.
    #[error("writing the export failed: {0}")]
    Io(#[from] std::io::Error),
    /// The files of an export can't be read or written, are not as they were written, or are
    /// those of another export that is under way.
    #[error("the export to {}: {message}", target.display())]
    ExportFile {
        /// Where the export was to be.
        target: PathBuf,
        /// Which file, and what is wrong with it.
        message: String,
    },
}

impl Error {
    /// What about credentials or certificates is to blame, where they are.
    #[must_use]
    pub fn access(&self) -> Option<AccessProblem> {
        match self {
            Self::Service(error) => error.access,
            _ => None,
        }
    }

    /// The service's reason, where it gave one.
    #[must_use]
    pub fn reason(&self) -> Option<ErrorReason> {
        match self {
            Self::Rejected(rejection) => Some(rejection.reason),
            Self::Service(error) => error.reason,
            _ => None,
        }
    }

    /// Whether the same call may succeed later, unchanged.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::QueueFull { .. } | Self::NotAcknowledged { .. } | Self::Spool { .. } | Self::NoProof { .. } => true,
            Self::Service(error) => error.retryable,
            _ => false,
        }
    }
}

fn by(process: &Option<u32>) -> String {
    process.map_or_else(String::new, |id| format!(" by process {id}"))
}

fn last(cause: &Option<String>) -> String {
    cause.as_ref().map_or_else(|| "the service is silent".to_owned(), |cause| format!("the last failure: {cause}"))
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Service(Box::new(ServiceError::from(&status)))
    }
}

/// Why a service refused one event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejection {
    /// The reason, from the contract's closed list; `Unspecified` where the
    /// service is newer than this crate.
    pub reason: ErrorReason,
    /// For people: which value, and what is allowed.
    pub message: String,
    /// The field, as a path from the event (`changes[0].path`); empty where no
    /// single one is to blame.
    pub field: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", reason_name(self.reason))?;
        if !self.field.is_empty() {
            write!(f, " in {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl Rejection {
    /// For an event that this side refuses.
    pub(crate) fn too_large(error: &Error) -> Self {
        Self { reason: ErrorReason::TooLarge, message: error.to_string(), field: String::new() }
    }

    /// For an event that a service won't even read, told by the status of its stream.
    pub(crate) fn from_status(status: &Status) -> Self {
        let error = ServiceError::from(status);
        let field = error.violations.first().map(|v| v.field.clone());
        Self {
            reason: error.reason.unwrap_or(match error.code {
                Code::ResourceExhausted | Code::OutOfRange => ErrorReason::TooLarge,
                Code::Internal => ErrorReason::Internal,
                Code::DataLoss => ErrorReason::DataLoss,
                _ => ErrorReason::InvalidArgument,
            }),
            message: error.message,
            field: field.unwrap_or_default(),
        }
    }
}

/// What is wrong with how client and service know each other; see
/// [`ServiceError::access`]. Recorded events stay queued through all of them, and are
/// counted in [`ServiceStats::refused`](crate::ServiceStats::refused).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessProblem {
    /// The service wants credentials, and the SDK has none.
    #[error("no credentials are configured, and the service wants some")]
    Missing,
    /// The token holds by its own word, and the service does not take it.
    #[error("the token is refused")]
    Refused,
    /// The token has expired.
    #[error("the token has expired")]
    Expired,
    /// File or callback gave no token.
    #[error("there is no token")]
    NoToken,
    /// The service knows who asks, and that is not allowed to them.
    #[error("the caller has no right to this")]
    NotAllowed,
    /// The server's certificate is under none of the roots that are configured.
    #[error("the server's certificate is of an unknown issuer")]
    UnknownServer,
    /// The server's certificate is for another name.
    #[error("the server's certificate is for another name")]
    ServerName,
    /// The server's certificate has expired, or is no good in another way.
    #[error("the server's certificate is not valid")]
    ServerCertificate,
    /// The server wants a client certificate, or not this one.
    #[error("the client certificate is missing or refused")]
    ClientCertificate,
    /// The files that [`Tls`](crate::Tls) names can't be read or used.
    #[error("the files for TLS are not usable")]
    TlsFiles,
    /// Who answers speaks no TLS, or no HTTP/2 in it.
    #[error("the server does not speak TLS with HTTP/2")]
    NotTls,
}

impl AccessProblem {
    /// What a status says of it.
    pub(crate) fn of(status: &Status) -> Option<Self> {
        if let Some(cause) = std::error::Error::source(status) {
            return cause.downcast_ref().copied().or_else(|| crate::tls::find_problem(cause));
        }
        (status.code() == Code::PermissionDenied).then_some(Self::NotAllowed)
    }
}

/// What a service, or the way to it, answered to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceError {
    /// Which service was asked: `audit` or `usage`.
    pub service: Option<&'static str>,
    /// The gRPC status code.
    pub code: Code,
    /// The contract's reason; absent where the answer came from elsewhere (a
    /// connection that could not be made, a proxy).
    pub reason: Option<ErrorReason>,
    /// For people.
    pub message: String,
    /// Which fields of the request are wrong.
    pub violations: Vec<FieldViolation>,
    /// When the service wants to be asked again.
    pub retry_after: Option<Duration>,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// Where credentials or certificates are to blame: what about them.
    pub access: Option<AccessProblem>,
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(service) = self.service {
            write!(f, "{service}: ")?;
        }
        match self.reason {
            Some(reason) => write!(f, "{}", reason_name(reason))?,
            None => write!(f, "{:?}", self.code)?,
        }
        write!(f, ": {}", self.message)?;
        for violation in &self.violations {
            write!(f, "; {}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

/// A field of a request that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldViolation {
    /// The field's path in the request.
    pub field: String,
    /// What is wrong with it, and what is allowed.
    pub description: String,
}

impl From<&Status> for ServiceError {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().and_then(|info| reason_from_name(&info.reason));
        let violations = details.bad_request().map_or_else(Vec::new, |bad| {
            bad.field_violations
                .iter()
                .map(|v| FieldViolation { field: v.field.clone(), description: v.description.clone() })
                .collect()
        });
        Self {
            service: None,
            code: status.code(),
            reason,
            message: describe(status),
            violations,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            retryable: matches!(classify(status), Verdict::Retry { .. }),
            access: AccessProblem::of(status),
        }
    }
}

/// The status's message with the innermost cause, which says what really happened
/// (`connection refused`) where tonic's message does not (`tcp connect error`).
pub(crate) fn describe(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    while let Some(next) = cause.and_then(std::error::Error::source) {
        cause = Some(next);
    }
    match cause.map(ToString::to_string) {
        Some(cause) if !status.message().contains(&cause) => {
            format!("{} ({cause})", status.message())
        }
        _ => status.message().to_owned(),
    }
}

/// The bare name that the contract uses: `INVALID_ARGUMENT`.
fn reason_name(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

pub(crate) fn reason_from_name(name: &str) -> Option<ErrorReason> {
    ErrorReason::from_str_name(&format!("ERROR_REASON_{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn details_of_a_status_are_read() {
        let mut details =
            ErrorDetails::with_error_info("INVALID_ARGUMENT", "activity", std::collections::HashMap::new());
        details.add_bad_request_violation("page_size", "at most 1000");
        let status = Status::with_error_details(Code::InvalidArgument, "bad", details);
        let error = Error::from(status);
        assert_eq!(error.reason(), Some(ErrorReason::InvalidArgument));
        assert!(!error.is_retryable());
        assert_eq!(error.to_string(), "INVALID_ARGUMENT: bad; page_size: at most 1000");
    }

    #[test]
    fn rejection_names_field_and_reason() {
        let rejection = Rejection {
            reason: ErrorReason::InvalidAction,
            message: "not lower snake case".into(),
            field: "action".into(),
        };
        assert_eq!(
            Error::Rejected(rejection).to_string(),
            "the event was refused: INVALID_ACTION in action: not lower snake case"
        );
    }
}
