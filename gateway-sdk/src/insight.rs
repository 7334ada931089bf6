//! What one service alone can't answer: from traffic to what was done, and back.
//!
//! ```text
//! investigate(range, resource)   traffic of the resource ─ how it changed ─ what was done to it meanwhile
//! impact(entry)                  what an entry touched ─ traffic of each before and after ─ what else was done to it
//! ```
//!
//! The answers hold all that a page prints, so that it needs no more calls. What can't be answered is said
//! where the answer would be ([`Unanswered`]), and what is refused is the error of the service that
//! refused it ([`ServiceError::service`](crate::ServiceError::service)): whoever may read only one of
//! them asks that one.

mod entries;
mod impact;
mod investigate;
mod subject;
mod traffic;

use std::time::SystemTime;

use activity_proto::common::v1::Interval;

pub use self::entries::Entries;
pub use self::impact::{Impact, ImpactQuery, Touched};
pub use self::investigate::{Investigation, InvestigationQuery};
pub use self::traffic::{Change, Changes, Traffic, Window};
use crate::error::Error;
use crate::{ErrorReason, UsageFilter};

/// Why a part of an answer is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unanswered {
    /// Requests carry nothing by which those of such a resource could be told.
    #[error("requests are not told apart by {resource_type}")]
    NoDimension {
        /// The resource's type.
        resource_type: String,
    },
    /// Retention has removed what is asked for, or what it would take to tell.
    #[error("{service}: {message}")]
    Removed {
        /// `audit` or `usage`.
        service: &'static str,
        /// From when data are there.
        message: String,
    },
    /// The entry touches more than is asked for at once.
    #[error("the traffic of the first {asked} resources is told")]
    TooMany {
        /// How many are.
        asked: usize,
    },
}

/// Why a question has no answer: to be told in its place, or to its caller.
#[derive(Debug)]
enum Failed {
    Unanswered(Unanswered),
    Error(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error {
            Error::Service(error) if error.reason == Some(ErrorReason::OutOfRange) => {
                let service = error.service.unwrap_or_default();
                Self::Unanswered(Unanswered::Removed { service, message: error.message })
            }
            error => Self::Error(error),
        }
    }
}

/// The answer, or why there is none; what failed is the caller's.
fn told<T>(result: Result<T, Failed>) -> Result<Result<T, Unanswered>, Error> {
    match result {
        Ok(answer) => Ok(Ok(answer)),
        Err(Failed::Unanswered(why)) => Ok(Err(why)),
        Err(Failed::Error(error)) => Err(error),
    }
}

/// Requests of this instance alone.
fn scope(instance: Option<&str>) -> UsageFilter {
    instance.filter(|id| !id.is_empty()).into_iter().fold(UsageFilter::new(), UsageFilter::instance)
}

/// An interval's ends; an answer has both.
fn ends(interval: Option<&Interval>) -> Result<(SystemTime, SystemTime), Error> {
    let time = |time: Option<prost_types::Timestamp>| time.and_then(|time| SystemTime::try_from(time).ok());
    let ends = interval.and_then(|interval| Some((time(interval.start)?, time(interval.end)?)));
    ends.ok_or_else(|| Error::Protocol("an answer without its interval".into()))
}
