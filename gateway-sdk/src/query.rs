//! What the queries of both services share: time ranges, pages, and calls that are
//! tried again.

pub(crate) mod coverage;
pub(crate) mod export;

use std::fmt;
use std::time::{Duration, SystemTime};

use activity_proto::common::v1 as common;
use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::credentials::{Access, Ticket};
use crate::endpoint::Line;
use crate::error::{Error, ServiceError};
use crate::retry::{Backoff, Verdict, classify};
use crate::{Interval, TimeRangePreset};

/// Answers may be larger than tonic's 4 MiB: 10,000 points of a series.
pub(crate) const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// Of one call: a service that is away for longer is the caller's to judge.
const MAX_ATTEMPTS: u32 = 4;

/// A window of time, the same for both services: `start` ≤ t < `end`.
///
/// ```
/// use gateway_sdk::TimeRange;
/// use std::time::{Duration, SystemTime};
///
/// let week = TimeRange::last_7_days().in_zone("Europe/Berlin");
/// let start = SystemTime::now() - Duration::from_secs(3 * 3600);
/// let hour = TimeRange::between(start, start + Duration::from_secs(3600));
/// let until_now = TimeRange::since(start);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct TimeRange(common::TimeRange);

impl TimeRange {
    /// A window that ends now, by the service's clock.
    pub fn preset(preset: TimeRangePreset) -> Self {
        Self(common::TimeRange {
            range: Some(common::time_range::Range::Preset(preset.into())),
            time_zone: String::new(),
        })
    }

    /// The 60 minutes before now.
    pub fn last_hour() -> Self {
        Self::preset(TimeRangePreset::LastHour)
    }

    /// The 24 hours before now.
    pub fn last_24_hours() -> Self {
        Self::preset(TimeRangePreset::Last24Hours)
    }

    /// The 168 hours before now.
    pub fn last_7_days() -> Self {
        Self::preset(TimeRangePreset::Last7Days)
    }

    /// The 720 hours before now.
    pub fn last_30_days() -> Self {
        Self::preset(TimeRangePreset::Last30Days)
    }

    /// Since midnight in the range's time zone.
    pub fn today() -> Self {
        Self::preset(TimeRangePreset::Today)
    }

    /// Since the first of the month in the range's time zone.
    pub fn month_to_date() -> Self {
        Self::preset(TimeRangePreset::MonthToDate)
    }

    /// Since the first of the quarter in the range's time zone.
    pub fn quarter_to_date() -> Self {
        Self::preset(TimeRangePreset::QuarterToDate)
    }

    /// From `start` up to, and without, `end`. Takes `chrono::DateTime` as well.
    pub fn between(start: impl Into<SystemTime>, end: impl Into<SystemTime>) -> Self {
        Self::from_interval(Interval { start: Some(start.into().into()), end: Some(end.into().into()) })
    }

    /// From `start` up to now, by the service's clock.
    pub fn since(start: impl Into<SystemTime>) -> Self {
        Self::from_interval(Interval { start: Some(start.into().into()), end: None })
    }

    /// The window that an answer was for, to ask the other service about the same.
    pub fn from_interval(interval: Interval) -> Self {
        Self(common::TimeRange { range: Some(common::time_range::Range::Interval(interval)), time_zone: String::new() })
    }

    /// The same zone over other ends.
    pub(crate) fn with_ends(self, start: SystemTime, end: SystemTime) -> Self {
        Self::between(start, end).in_zone(self.0.time_zone)
    }

    /// Where days, weeks and months begin: an IANA name. Default: UTC.
    pub fn in_zone(mut self, name: impl Into<String>) -> Self {
        self.0.time_zone = name.into();
        self
    }
}

impl From<TimeRange> for common::TimeRange {
    fn from(range: TimeRange) -> Self {
        range.0
    }
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Page<T> {
    /// The items, in order.
    pub items: Vec<T>,
    /// Where the next page starts; `None` on the last. Good for the same query only, and
    /// while new items arrive.
    pub next: Option<String>,
    /// The interval that the query's range was resolved to; `None` for lists without.
    pub interval: Option<Interval>,
}

impl<T> Page<T> {
    pub(crate) fn new(items: Vec<T>, next: String, interval: Option<Interval>) -> Self {
        Self { items, next: (!next.is_empty()).then_some(next), interval }
    }
}

/// All items over all pages, asked for as the stream is read.
pub(crate) fn over_pages<T, F>(
    page: impl Fn(Option<String>) -> F + Send + Sync + 'static,
) -> BoxStream<'static, Result<T, Error>>
where
    T: Send + 'static,
    F: Future<Output = Result<Page<T>, Error>> + Send + 'static,
{
    enum At {
        Page(Option<String>),
        End,
    }
    let pages = stream::unfold((At::Page(None), page), |(at, page)| async move {
        let At::Page(token) = at else { return None };
        match page(token).await {
            Ok(Page { items, next, .. }) => {
                let at = next.map_or(At::End, |token| At::Page(Some(token)));
                let items: Vec<_> = items.into_iter().map(Ok).collect();
                Some((stream::iter(items), (at, page)))
            }
            Err(error) => Some((stream::iter(vec![Err(error)]), (At::End, page))),
        }
    });
    pages.flatten().boxed()
}

/// A stream of answers, and what it was opened with.
pub(crate) struct Opened<S> {
    answers: S,
    ticket: Ticket,
}

/// Makes calls to one service.
#[derive(Clone)]
pub(crate) struct Reader {
    service: &'static str,
    line: Option<Line>,
    access: Access,
    pub(crate) timeout: Duration,
    pub(crate) backoff: Backoff,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Reader {
    pub(crate) fn new(
        service: &'static str,
        line: Option<Line>,
        access: Access,
        timeout: Duration,
        backoff: Backoff,
    ) -> Self {
        Self { service, line, access, timeout, backoff }
    }

    pub(crate) fn channel(&self) -> Result<Channel, Error> {
        let service = self.service;
        self.line.as_ref().map(Line::channel).ok_or(Error::NotConfigured { service })
    }

    /// One question. Reads change nothing, so what may be tried again is, a few times
    /// within the time-out.
    pub(crate) async fn call<Q, A, F>(&self, question: Q, ask: impl Fn(Channel, Request<Q>) -> F) -> Result<A, Error>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let channel = self.channel()?;
        let deadline = Instant::now() + self.timeout;
        let mut attempt = 0;
        loop {
            let mut request = Request::new(question.clone());
            let answer = async {
                let ticket = self.access.attach(&mut request).await?;
                request.set_timeout(deadline.saturating_duration_since(Instant::now()));
                ask(channel.clone(), request).await.map_err(|status| self.access.judge(status, ticket))
            };
            let answer = tokio::time::timeout_at(deadline, answer).await;
            let status = match answer {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {:?}", self.timeout)),
            };
            attempt += 1;
            let delay = self.again(&status, attempt - 1);
            let delay = delay.filter(|delay| attempt < MAX_ATTEMPTS && Instant::now() + *delay < deadline);
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(self.failed(status)),
            }
        }
    }

    /// A failure, with the service that it is of.
    pub(crate) fn failed(&self, status: Status) -> Error {
        Error::Service(Box::new(ServiceError { service: Some(self.service), ..ServiceError::from(&status) }))
    }

    /// After how long a failure is worth another attempt: one with new credentials, if
    /// those were refused.
    pub(crate) fn again(&self, status: &Status, failures: u32) -> Option<Duration> {
        let verdict = classify(status);
        let worth = match verdict {
            Verdict::Retry { .. } => true,
            Verdict::Refresh => failures == 0 && self.access.renews(),
            _ => false,
        };
        worth.then(|| self.backoff.after(verdict, failures, crate::random::unit()))
    }

    /// Opens a stream of answers; one attempt, as its users resume by themselves.
    pub(crate) async fn open<Q, S, F>(
        &self,
        question: Q,
        ask: impl FnOnce(Channel, Request<Q>) -> F,
    ) -> Result<Opened<S>, Status>
    where
        F: Future<Output = Result<Response<S>, Status>>,
    {
        let channel = self.channel().map_err(|error| Status::failed_precondition(error.to_string()))?;
        let opening = async {
            let mut request = Request::new(question);
            let ticket = self.access.attach(&mut request).await?;
            let opened = ask(channel, request).await.map_err(|status| self.access.judge(status, ticket))?;
            Ok(Opened { answers: opened.into_inner(), ticket })
        };
        match tokio::time::timeout(self.timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(silence(self.timeout)),
        }
    }

    /// The next message of a stream; silence for too long is an error.
    pub(crate) async fn next<T>(
        &self,
        opened: &mut Opened<impl Stream<Item = Result<T, Status>> + Unpin>,
    ) -> Result<Option<T>, Status> {
        match tokio::time::timeout(self.timeout, opened.answers.next()).await {
            Ok(answer) => answer.transpose().map_err(|status| self.access.judge(status, opened.ticket)),
            Err(_) => Err(silence(self.timeout)),
        }
    }
}

fn silence(timeout: Duration) -> Status {
    Status::deadline_exceeded(format!("nothing was heard for {timeout:?}"))
}
