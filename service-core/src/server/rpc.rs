//! The layer around every call: whether it is admitted, how long it may take,
//! what becomes of a panic, which status goes out, and what is measured.
//!
//! tonic's own time-out and limits end with the response's headers and so don't
//! reach streams; these hold until the body has ended (see [`super::rpc::body`]).

mod body;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use self::body::RpcBody;
use super::methods::{self, Method};
use super::status;
use crate::config::{ServerConfig, millis};
use crate::error::{Error, Reason, panic_error};
use crate::telemetry::Metrics;

/// tonic ends a call at the client's deadline too, with a code that misleads; we
/// are there first by this much.
const DEADLINE_LEAD: Duration = Duration::from_millis(5);

#[derive(Clone)]
pub(super) struct RpcLayer(Arc<Limits>);

struct Limits {
    ingest: Rooms,
    queries: Rooms,
    call_timeout: Duration,
    stalled_stream: Duration,
    metrics: Metrics,
    shutdown: CancellationToken,
    /// Told to whoever calls what is not served.
    not_here: String,
}

/// Places of one kind of method. Ingest and queries have each their own, so that
/// no number of readers shuts events out.
struct Rooms {
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Rooms {
    fn new(config: &ServerConfig) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self { calls: semaphore(config.max_calls.get()), streams: semaphore(config.max_streams.get()) }
    }
}

impl RpcLayer {
    pub(super) fn new(config: &ServerConfig, services: &[&str], metrics: Metrics, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Limits {
            ingest: Rooms::new(config),
            queries: Rooms::new(config),
            call_timeout: millis(config.call_timeout_ms),
            stalled_stream: millis(config.stalled_stream_ms),
            metrics,
            shutdown,
            not_here: format!("no such method on this server; its services are {}", services.join(", ")),
        }))
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = Rpc<S>;

    fn layer(&self, inner: S) -> Rpc<S> {
        Rpc { inner, limits: self.0.clone() }
    }
}

#[derive(Clone)]
pub(super) struct Rpc<S> {
    inner: S,
    limits: Arc<Limits>,
}

impl<S> Service<Request<Body>> for Rpc<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone that takes our place may not be ready; we, who were polled, are.
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        let limits = self.limits.clone();
        let method = methods::lookup(request.uri().path());
        let span = span(method, request.headers());
        Box::pin(async move { Ok(answer(inner, request, method, &limits).await) }.instrument(span))
    }
}

async fn answer<S>(mut inner: S, request: Request<Body>, method: &'static Method, limits: &Limits) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let mut observation = Observation::begin(&limits.metrics, method);
    let permit = match admit(method, limits) {
        Ok(permit) => permit,
        Err(error) => return observation.refuse(error.into()),
    };
    let now = Instant::now();
    let client_deadline =
        client_timeout(request.headers()).and_then(|timeout| now.checked_add(timeout.saturating_sub(DEADLINE_LEAD)));
    let own_deadline = now + limits.call_timeout;
    let deadline = client_deadline.map_or(own_deadline, |client| client.min(own_deadline));

    let calling = AssertUnwindSafe(async { inner.call(request).await }).catch_unwind();
    let mut response = match timeout_at(deadline, calling).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Err(panic)) => {
            let error = Error::internal(panic_error(&method.path, &*panic));
            return observation.refuse(error.into());
        }
        Err(_) => return observation.refuse(too_late()),
    };
    if let Some(code) = status::settle(response.headers_mut()) {
        if code == Code::Unimplemented {
            status::name_services(response.headers_mut(), &limits.not_here);
        }
        observation.end(code);
        return response;
    }
    response.map(|inner| {
        let shutdown = (method.streaming && method.infrastructure).then(|| limits.shutdown.clone());
        // One answer is taken at once or not at all; a stream may stand for a while.
        let stalled = if method.streaming { limits.stalled_stream } else { limits.call_timeout };
        let body = RpcBody::new(inner, observation, permit, client_deadline);
        Body::new(body.watched(stalled, shutdown))
    })
}

/// A place among the calls or streams, kept until the body has ended.
fn admit(method: &Method, limits: &Limits) -> Result<Option<OwnedSemaphorePermit>, Error> {
    if method.infrastructure {
        return Ok(None);
    }
    if limits.shutdown.is_cancelled() {
        return Err(Error::ShuttingDown);
    }
    let rooms = if method.ingest { &limits.ingest } else { &limits.queries };
    let (room, what) = if method.streaming { (&rooms.streams, "streams") } else { (&rooms.calls, "calls") };
    match room.clone().try_acquire_owned() {
        Ok(permit) => Ok(Some(permit)),
        Err(_) => Err(Error::Overloaded(format!("too many {what} at once; try again"))),
    }
}

fn too_late() -> Status {
    crate::error::status(Reason::DeadlineExceeded, "the call took longer than it may")
}

/// The span of a call, a child of the caller's where `traceparent` says so.
fn span(method: &Method, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!("rpc", otel.name = method.path, otel.kind = "server", method = method.path);
    if headers.contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&Headers(headers));
        // Without a collector there is no trace to join, and that is fine.
        let _ = span.set_parent(parent);
    }
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The header `grpc-timeout`: up to eight digits and a unit; others are ignored.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn client_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3_600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Counts a call once, however it ends; one that is dropped was cancelled.
struct Observation {
    metrics: Metrics,
    method: &'static Method,
    begun: Instant,
    ended: bool,
}

impl Observation {
    fn begin(metrics: &Metrics, method: &'static Method) -> Self {
        metrics.rpc_begun();
        Self { metrics: metrics.clone(), method, begun: Instant::now(), ended: false }
    }

    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            self.metrics.rpc_ended(&self.method.path, code_name(code), self.begun.elapsed());
        }
    }

    fn refuse(&mut self, status: Status) -> Response<Body> {
        self.end(status.code());
        status.into_http()
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The code as it is written in documentation, for labels.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_timeout_is_read() {
        let table = [
            ("1H", Some(Duration::from_secs(3_600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("100m", Some(Duration::from_millis(100))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("123456789m", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1x", None),
        ];
        for (text, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("header"));
            assert_eq!(client_timeout(&headers), expected, "{text}");
        }
        assert_eq!(client_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn readers_at_their_caps_leave_room_for_events_and_the_other_way_round() {
        let one = 1.try_into().expect("not zero");
        let config = ServerConfig { max_calls: one, max_streams: one, ..ServerConfig::default() };
        let ingest =
            ["/activity.audit.v1.AuditIngestService/StreamEvents", "/activity.usage.v1.UsageIngestService/RecordUsage"];
        let queries =
            ["/activity.audit.v1.AuditQueryService/TailEntries", "/activity.audit.v1.AuditQueryService/ListEntries"];
        for (first, then) in [(ingest, queries), (queries, ingest)] {
            let layer = RpcLayer::new(&config, &[], Metrics::new("test"), CancellationToken::new());
            let mut held = Vec::new();
            for path in first.into_iter().chain(then) {
                let method = methods::lookup(path);
                assert_eq!(method.path, path);
                held.push(admit(method, &layer.0).expect(path));
                assert!(matches!(admit(method, &layer.0), Err(Error::Overloaded(_))), "{path}");
            }
        }
    }
}
