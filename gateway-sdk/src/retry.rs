//! When to try again, and after how long: two pure functions.
//!
//! A status code alone misleads (a killed server shows as `UNKNOWN`, one that
//! drains as `CANCELLED`, a message too large as `OUT_OF_RANGE`), so [`classify`]
//! also looks at the details and at whether the transport caused it:
//!
//! | what came | verdict |
//! | --- | --- |
//! | a delay (`RetryInfo`), whatever the code | again, not before it |
//! | a cause in this side's transport, whatever the code | again |
//! | `UNAUTHENTICATED` | again with new credentials, once at once, then slowly |
//! | `OVERLOADED`, `BATCH_OUT_OF_ORDER` | again: they say nothing of the events |
//! | `RESOURCE_EXHAUSTED` that the service did not send: a proxy's quota | again |
//! | `UNAVAILABLE`, `ABORTED`, `CANCELLED`, `UNKNOWN`, `DEADLINE_EXCEEDED` | again |
//! | `PERMISSION_DENIED`, `UNIMPLEMENTED` and their kin | held: kept, asked again slowly |
//! | `INTERNAL` | again, and to blame alone when it comes every time |
//! | `INVALID_ARGUMENT`, `OUT_OF_RANGE`, the service's own `TOO_LARGE` | never again |
//!
//! **Why a denial is not permanent.** It says what the table of roles allows this writer at
//! the moment. A role that is taken away by mistake for ten minutes must not cost ten
//! minutes of events: they stay queued, loudly. Only an event of an instance that the
//! writer may not write is rejected alone, by the service.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::ErrorReason;
use crate::error::{AccessProblem, reason_from_name};

/// What a failed call or stream means for what was sent on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is wrong with what was sent: send it again, not before `after`.
    Retry { after: Option<Duration> },
    /// The service does not take the credentials: keep everything, ask again with new
    /// ones, and at the slowest pace when those are refused too.
    Refresh,
    /// The service refuses this client, whatever it sends: keep everything, ask
    /// again at the slowest pace.
    Hold,
    /// The service calls it its own defect: try again, but a batch that meets it
    /// every time, alone, is to blame and is taken apart.
    Defect,
    /// What was sent can never be taken.
    Permanent,
}

/// Whose reasons are ours, in `ErrorInfo`.
const DOMAIN: &str = "activity";

/// The longest time that a service may ask us to wait; a larger or hostile value
/// must not silence the sender.
const MAX_RETRY_INFO: Duration = Duration::from_secs(300);

/// Reads a status.
pub(crate) fn classify(status: &Status) -> Verdict {
    let details = status.get_error_details();
    if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
        let after = Some(delay.min(MAX_RETRY_INFO));
        return Verdict::Retry { after };
    }
    let retry = Verdict::Retry { after: None };
    if let Some(AccessProblem::Missing | AccessProblem::Refused | AccessProblem::Expired) = AccessProblem::of(status) {
        return Verdict::Refresh;
    }
    // Only errors that this side's transport made have a source; no service sends one.
    if std::error::Error::source(status).is_some() {
        return retry;
    }
    // A proxy has reasons of its own, whose names may be like ours.
    let ours = details.error_info().filter(|info| info.domain == DOMAIN);
    let reason = ours.and_then(|info| reason_from_name(&info.reason));
    // Both say something about the moment or the stream, not about the events.
    if let Some(ErrorReason::Overloaded | ErrorReason::BatchOutOfOrder) = reason {
        return retry;
    }
    match status.code() {
        Code::Ok | Code::Unavailable | Code::Aborted | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => {
            retry
        }
        Code::Unauthenticated => Verdict::Refresh,
        Code::PermissionDenied | Code::Unimplemented | Code::FailedPrecondition | Code::NotFound | Code::DataLoss => {
            Verdict::Hold
        }
        Code::Internal => Verdict::Defect,
        // The service says which of its limits it was. Whoever says nothing is between, and takes no events for too
        // large: they would be given up, all of them, while a quota lasts.
        Code::ResourceExhausted if reason.is_none() => retry,
        Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted | Code::AlreadyExists => Verdict::Permanent,
    }
}

/// Bounds of the waits between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// Upper bound of the first wait.
    pub(crate) base: Duration,
    /// Upper bound of every wait.
    pub(crate) cap: Duration,
}

impl Backoff {
    /// Exponential with full jitter: evenly between nothing and
    /// `min(cap, base * 2^attempt)`. `random` is from 0 to 1; `attempt` counts
    /// from 0.
    /// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
    pub(crate) fn delay(&self, attempt: u32, random: f64) -> Duration {
        let factor = 1_u32.checked_shl(attempt).unwrap_or(u32::MAX);
        let ceiling = self.base.saturating_mul(factor).min(self.cap);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }

    /// The wait after a failure: never before the time that the service asked for,
    /// and then spread, so that its clients don't come back all at once.
    pub(crate) fn after(&self, verdict: Verdict, attempt: u32, random: f64) -> Duration {
        match verdict {
            Verdict::Retry { after: None } | Verdict::Defect => self.delay(attempt, random),
            Verdict::Retry { after: Some(after) } => after + self.delay(0, random),
            // New credentials are worth one attempt at once.
            Verdict::Refresh if attempt == 0 => self.delay(0, random),
            Verdict::Refresh | Verdict::Hold => self.cap / 2 + (self.cap / 2).mul_f64(random.clamp(0.0, 1.0)),
            // Each attempt takes the culprit further apart: no reason to slow down.
            Verdict::Permanent => self.delay(0, random),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    const RETRY: Verdict = Verdict::Retry { after: None };

    /// A code without and with a cause in the transport, for all codes there are.
    #[test]
    fn every_code_has_its_verdict() {
        let table = [
            (Code::Ok, RETRY),
            // A call while the server drains; a proxy's time-out.
            (Code::Cancelled, RETRY),
            // A server that was killed; what a proxy made of a status that it didn't know.
            (Code::Unknown, RETRY),
            (Code::InvalidArgument, Verdict::Permanent),
            (Code::DeadlineExceeded, RETRY),
            (Code::NotFound, Verdict::Hold),
            (Code::AlreadyExists, Verdict::Permanent),
            (Code::PermissionDenied, Verdict::Hold),
            // Of the service's own it says why.
            (Code::ResourceExhausted, RETRY),
            (Code::FailedPrecondition, Verdict::Hold),
            (Code::Aborted, RETRY),
            // tonic's own word for a message over the limit.
            (Code::OutOfRange, Verdict::Permanent),
            (Code::Unimplemented, Verdict::Hold),
            (Code::Internal, Verdict::Defect),
            (Code::Unavailable, RETRY),
            (Code::DataLoss, Verdict::Hold),
            (Code::Unauthenticated, Verdict::Refresh),
        ];
        for (number, (code, verdict)) in table.into_iter().enumerate() {
            assert_eq!(code as usize, number, "the table misses a code");
            let mut status = Status::new(code, "");
            assert_eq!(classify(&status), verdict, "{code:?}");
            status.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
            assert_eq!(classify(&status), RETRY, "{code:?} of the transport");
        }
    }

    #[test]
    fn every_reason_of_the_contract_has_its_verdict() {
        use ErrorReason as R;
        // With the code that the services send it under.
        let table = [
            (R::InvalidArgument, Code::InvalidArgument, Verdict::Permanent),
            (R::MalformedMessage, Code::InvalidArgument, Verdict::Permanent),
            // The stream was at fault: the next one counts from 1.
            (R::BatchOutOfOrder, Code::InvalidArgument, RETRY),
            (R::TooLarge, Code::ResourceExhausted, Verdict::Permanent),
            (R::Overloaded, Code::ResourceExhausted, RETRY),
            (R::Unauthenticated, Code::Unauthenticated, Verdict::Refresh),
            (R::PermissionDenied, Code::PermissionDenied, Verdict::Hold),
            (R::StorageUnavailable, Code::Unavailable, RETRY),
            (R::ShuttingDown, Code::Unavailable, RETRY),
            (R::Contention, Code::Aborted, RETRY),
            (R::DeadlineExceeded, Code::DeadlineExceeded, RETRY),
            (R::Internal, Code::Internal, Verdict::Defect),
        ];
        for (reason, code, verdict) in table {
            let name = reason.as_str_name().trim_start_matches("ERROR_REASON_");
            let details = ErrorDetails::with_error_info(name, "activity", HashMap::new());
            let status = Status::with_error_details(code, "", details);
            assert_eq!(classify(&status), verdict, "{name}");
        }
    }

    #[test]
    fn what_a_proxy_refuses_is_kept() {
        let reasons = [("TOO_LARGE", "gateway.example.com"), ("RATE_LIMIT_EXCEEDED", "googleapis.com")];
        for (reason, domain) in reasons {
            let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
            let status = Status::with_error_details(Code::ResourceExhausted, "", details);
            assert_eq!(classify(&status), RETRY, "{reason} of {domain}");
        }
    }

    #[test]
    fn what_is_wrong_with_credentials_decides_before_its_being_a_cause() {
        use AccessProblem as P;
        for (problem, verdict) in [
            (P::Missing, Verdict::Refresh),
            (P::Refused, Verdict::Refresh),
            (P::Expired, Verdict::Refresh),
            // File or callback may work the next time; so may a connection.
            (P::NoToken, RETRY),
            (P::UnknownServer, RETRY),
            (P::ClientCertificate, RETRY),
        ] {
            let mut status = Status::unauthenticated("");
            status.set_source(std::sync::Arc::new(problem));
            assert_eq!(classify(&status), verdict, "{problem:?}");
        }
    }

    #[test]
    fn retry_info_makes_any_code_retryable_up_to_a_bound() {
        let status = |code, delay| {
            let details = ErrorDetails::with_retry_info(Some(delay));
            Status::with_error_details(code, "", details)
        };
        let after = |delay| Verdict::Retry { after: Some(delay) };
        let second = Duration::from_secs(1);
        for code in 0..=16 {
            let code = Code::from(code);
            assert_eq!(classify(&status(code, second)), after(second), "{code:?}");
            assert_eq!(classify(&status(code, Duration::from_secs(1 << 30))), after(MAX_RETRY_INFO), "{code:?}");
        }
    }

    #[test]
    fn new_credentials_are_tried_at_once_and_then_slowly() {
        let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(30) };
        assert!(backoff.after(Verdict::Refresh, 0, 1.0) <= backoff.base);
        for attempt in 1..100 {
            assert!(backoff.after(Verdict::Refresh, attempt, 0.0) >= backoff.cap / 2);
        }
    }

    proptest! {
        #[test]
        fn delay_is_within_its_bounds(
            base in 0_u64..10_000, cap in 0_u64..100_000, attempt: u32, random in 0.0..=1.0,
        ) {
            let backoff = Backoff {
                base: Duration::from_millis(base),
                cap: Duration::from_millis(cap),
            };
            let delay = backoff.delay(attempt, random);
            prop_assert!(delay <= backoff.cap);
            if attempt < 31 {
                prop_assert!(delay <= backoff.base * (1 << attempt));
            }
            prop_assert_eq!(backoff.delay(attempt, 0.0), Duration::ZERO);
        }

        #[test]
        fn service_is_never_asked_before_it_said(after in 0_u64..300_000, attempt: u32, random in 0.0..=1.0) {
            let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(30) };
            let after = Duration::from_millis(after);
            let delay = backoff.after(Verdict::Retry { after: Some(after) }, attempt, random);
            prop_assert!(delay >= after && delay <= after + backoff.base);
        }

        #[test]
        fn jitter_grows_with_the_random_number(attempt in 0_u32..64, a in 0.0..=1.0, b in 0.0..=1.0) {
            let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(30) };
            let (low, high) = if a <= b { (a, b) } else { (b, a) };
            prop_assert!(backoff.delay(attempt, low) <= backoff.delay(attempt, high));
        }
    }
}
