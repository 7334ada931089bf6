//! When to try again, and after how long: two pure functions.
//!
//! A status code alone misleads (a killed server shows as `UNKNOWN`, one that
//! drains as `CANCELLED`, a message too large as `OUT_OF_RANGE`), so [`classify`]
//! also looks at the details and at whether the transport caused it.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::ErrorReason;
use crate::error::reason_from_name;

/// What a failed call or stream means for what was sent on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is wrong with what was sent: send it again, not before `after`.
    Retry { after: Option<Duration> },
    /// The service refuses this client, whatever it sends: keep everything, ask
    /// again at the slowest pace.
    Hold,
    /// The service calls it its own defect: try again, but a batch that meets it
    /// every time, alone, is to blame and is taken apart.
    Defect,
    /// What was sent can never be taken.
    Permanent,
}

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
    // Only errors that this side's transport made have a source; no service sends one.
    if std::error::Error::source(status).is_some() {
        return retry;
    }
    let reason = details.error_info().and_then(|info| reason_from_name(&info.reason));
    // Both say something about the moment or the stream, not about the events.
    if let Some(ErrorReason::Overloaded | ErrorReason::BatchOutOfOrder) = reason {
        return retry;
    }
    match status.code() {
        Code::Ok | Code::Unavailable | Code::Aborted | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => {
            retry
        }
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::DataLoss => Verdict::Hold,
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
            Verdict::Hold => self.cap / 2 + (self.cap / 2).mul_f64(random.clamp(0.0, 1.0)),
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

    #[test]
    fn every_code_has_its_verdict() {
        let table = [
            (Code::Ok, RETRY),
            (Code::Cancelled, RETRY),
            (Code::Unknown, RETRY),
            (Code::InvalidArgument, Verdict::Permanent),
            (Code::DeadlineExceeded, RETRY),
            (Code::NotFound, Verdict::Hold),
            (Code::AlreadyExists, Verdict::Permanent),
            (Code::PermissionDenied, Verdict::Hold),
            (Code::ResourceExhausted, Verdict::Permanent),
            (Code::FailedPrecondition, Verdict::Hold),
            (Code::Aborted, RETRY),
            (Code::OutOfRange, Verdict::Permanent),
            (Code::Unimplemented, Verdict::Hold),
            (Code::Internal, Verdict::Defect),
            (Code::Unavailable, RETRY),
            (Code::DataLoss, Verdict::Hold),
            (Code::Unauthenticated, Verdict::Hold),
        ];
        for (number, (code, verdict)) in table.into_iter().enumerate() {
            assert_eq!(code as usize, number, "the table misses a code");
            assert_eq!(classify(&Status::new(code, "")), verdict, "{code:?}");
        }
    }

    #[test]
    fn transport_failures_are_retried_whatever_their_code() {
        for code in [Code::Unknown, Code::Internal, Code::ResourceExhausted] {
            let mut status = Status::new(code, "");
            status.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
            assert_eq!(classify(&status), RETRY, "{code:?}");
        }
    }

    #[test]
    fn retry_info_makes_any_code_retryable_up_to_a_bound() {
        let status = |delay| {
            let details = ErrorDetails::with_retry_info(Some(delay));
            Status::with_error_details(Code::ResourceExhausted, "", details)
        };
        let after = |delay| Verdict::Retry { after: Some(delay) };
        let second = Duration::from_secs(1);
        assert_eq!(classify(&status(second)), after(second));
        assert_eq!(classify(&status(Duration::from_secs(1 << 30))), after(MAX_RETRY_INFO));
    }

    #[test]
    fn overload_without_retry_info_is_not_held_against_the_events() {
        let details = ErrorDetails::with_error_info("OVERLOADED", "activity", HashMap::new());
        let status = Status::with_error_details(Code::ResourceExhausted, "", details);
        assert_eq!(classify(&status), RETRY);
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
