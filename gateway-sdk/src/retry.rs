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
//! | `UNAVAILABLE`, `ABORTED`, `CANCELLED`, `UNKNOWN`, `DEADLINE_EXCEEDED` | again |
//! | `PERMISSION_DENIED`, `UNIMPLEMENTED` and their kin | held: kept, asked again slowly |
//! | any other that is without the service's `ErrorInfo` | again: somebody between has made it |
//! | `INTERNAL` of the service | again, and to blame alone when it comes every time, and others get through |
//! | `INVALID_ARGUMENT`, `OUT_OF_RANGE`, `TOO_LARGE` of the service | never again |
//!
//! **Only the service may blame an event**, and it says so in each of its statuses. A proxy
//! whose service is away answers with a page of HTML; tonic takes its `<` for the head of a
//! message and says `INTERNAL`. Its quota is a `RESOURCE_EXHAUSTED`, HTTP 400 an `INTERNAL`.
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
    /// The service calls it its own defect: try again, but a batch that meets it every time,
    /// alone, is taken apart, and an event is to blame where others get through.
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
        // What is left blames what was sent.
        _ if ours.is_none() => retry,
        Code::Internal => Verdict::Defect,
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

    /// A code of somebody between, of a service with a reason that is newer than this crate, and
    /// with a cause in the transport, for all codes there are.
    #[test]
    fn every_code_has_its_verdict() {
        let table = [
            (Code::Ok, RETRY, RETRY),
            // A call while the server drains; a proxy's time-out.
            (Code::Cancelled, RETRY, RETRY),
            // A server that was killed; what a proxy made of a status that it didn't know.
            (Code::Unknown, RETRY, RETRY),
            (Code::InvalidArgument, RETRY, Verdict::Permanent),
            (Code::DeadlineExceeded, RETRY, RETRY),
            (Code::NotFound, Verdict::Hold, Verdict::Hold),
            (Code::AlreadyExists, RETRY, Verdict::Permanent),
            (Code::PermissionDenied, Verdict::Hold, Verdict::Hold),
            (Code::ResourceExhausted, RETRY, Verdict::Permanent),
            (Code::FailedPrecondition, Verdict::Hold, Verdict::Hold),
            (Code::Aborted, RETRY, RETRY),
            (Code::OutOfRange, RETRY, Verdict::Permanent),
            (Code::Unimplemented, Verdict::Hold, Verdict::Hold),
            (Code::Internal, RETRY, Verdict::Defect),
            (Code::Unavailable, RETRY, RETRY),
            (Code::DataLoss, Verdict::Hold, Verdict::Hold),
            (Code::Unauthenticated, Verdict::Refresh, Verdict::Refresh),
        ];
        for (number, (code, between, ours)) in table.into_iter().enumerate() {
            assert_eq!(code as usize, number, "the table misses a code");
            let mut status = Status::new(code, "");
            assert_eq!(classify(&status), between, "{code:?} of somebody between");
            let details = ErrorDetails::with_error_info("A_REASON_TO_COME", DOMAIN, HashMap::new());
            assert_eq!(classify(&Status::with_error_details(code, "", details)), ours, "{code:?} of the service");
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
            for code in [Code::ResourceExhausted, Code::InvalidArgument, Code::Internal] {
                let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
                assert_eq!(classify(&Status::with_error_details(code, "", details)), RETRY, "{reason} of {domain}");
            }
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
