//! The body of a response, while the call still counts: it holds the call's
//! place, ends it at its deadline, turns a panic into a status, and sets the
//! trailers right.
//!
//! A body whose client takes nothing is not polled at all: HTTP/2 waits for
//! window, also before the first frame. So no timer inside the body can end it,
//! and a second task, the watch, takes its content away instead; of single
//! answers too, or a client with a window of zero could hold every place:
//!
//! ```text
//! client stops reading ──▶ not polled ──stalled_stream──▶ watch drops the inner body
//!                                                          (its cursor, its place)
//! client reads on       ──▶ what was in flight, then DEADLINE_EXCEEDED
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::Span;

use super::{Observation, too_late};
use crate::error::{Error, panic_error};
use crate::server::status;

pub(super) struct RpcBody {
    shared: Arc<Mutex<State>>,
    /// Ends with the body.
    _watch: Option<AbortOnDropHandle<()>>,
}

struct State {
    /// Gone once the body has ended, or the watch has ended it.
    live: Option<Live>,
    /// What the watch wants the client to be told.
    ending: Option<Status>,
    /// Since when the headers or a frame lie with HTTP/2 and nobody asked for the next.
    delivered: Option<Instant>,
    waker: Option<Waker>,
}

struct Live {
    inner: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    observation: Observation,
    span: Span,
    _permit: Option<OwnedSemaphorePermit>,
}

impl RpcBody {
    pub(super) fn new(
        inner: Body,
        observation: Observation,
        permit: Option<OwnedSemaphorePermit>,
        deadline: Option<Instant>,
    ) -> Self {
        let live = Live {
            inner,
            deadline: deadline.map(|at| Box::pin(sleep_until(at))),
            observation,
            span: Span::current(),
            _permit: permit,
        };
        Self {
            shared: Arc::new(Mutex::new(State {
                live: Some(live),
                ending: None,
                // The headers.
                delivered: Some(Instant::now()),
                waker: None,
            })),
            _watch: None,
        }
    }

    /// Ends the answer after `stalled` without anything taken, and with the
    /// server if `shutdown` is given (for streams that don't watch it themselves).
    pub(super) fn watched(mut self, stalled: Duration, shutdown: Option<CancellationToken>) -> Self {
        let shared = Arc::downgrade(&self.shared);
        let watch = tokio::spawn(async move {
            let stopping = async {
                match shutdown {
                    Some(token) => token.cancelled_owned().await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(stopping);
            let mut check_at = Instant::now() + stalled;
            loop {
                let stopped = tokio::select! {
                    () = &mut stopping => true,
                    () = sleep_until(check_at) => false,
                };
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                let mut state = lock(&shared);
                let due = state.delivered.map(|since| since + stalled);
                let ending = if stopped {
                    Error::ShuttingDown
                } else if due.is_some_and(|due| due <= Instant::now()) {
                    Error::DeadlineExceeded(format!("nothing was read for {} s", stalled.as_secs()))
                } else {
                    check_at = due.unwrap_or_else(|| Instant::now() + stalled);
                    continue;
                };
                let status = Status::from(ending);
                let live = state.live.take();
                state.ending = Some(status.clone());
                let waker = state.waker.take();
                drop(state);
                if let Some(mut live) = live {
                    live.observation.end(status.code());
                }
                if let Some(waker) = waker {
                    waker.wake();
                }
                return;
            }
        });
        self._watch = Some(AbortOnDropHandle::new(watch));
        self
    }
}

/// A panic while the lock is held is caught within it, so a poisoned state is
/// whole all the same.
fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpBody for RpcBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = lock(&self.shared);
        state.delivered = None;
        let Some(live) = state.live.as_mut() else {
            let ending = state.ending.take();
            return Poll::Ready(ending.map(|status| Ok(trailers(&status).0)));
        };
        let span = live.span.clone();
        let _entered = span.enter();
        // First, because a stream that always has more would never come to it.
        let late = live.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        if late {
            let (frame, code) = trailers(&too_late());
            live.observation.end(code);
            state.live = None;
            return Poll::Ready(Some(Ok(frame)));
        }
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut live.inner).poll_frame(cx)));
        let (frame, code) = match polled {
            Ok(Poll::Ready(Some(Ok(frame)))) => match frame.into_trailers() {
                Ok(mut headers) => {
                    let code = status::settle(&mut headers).unwrap_or(Code::Unknown);
                    (Some(Ok(Frame::trailers(headers))), Some(code))
                }
                Err(frame) => (Some(Ok(frame)), None),
            },
            Ok(Poll::Ready(Some(Err(status)))) => {
                let code = status.code();
                (Some(Err(status)), Some(code))
            }
            Ok(Poll::Ready(None)) => (None, Some(Code::Ok)),
            Ok(Poll::Pending) => {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Err(panic) => {
                let place = &live.observation.method.path;
                let error = Error::internal(panic_error(place, &*panic));
                let (frame, code) = trailers(&error.into());
                (Some(Ok(frame)), Some(code))
            }
        };
        match code {
            Some(code) => {
                live.observation.end(code);
                state.live = None;
            }
            None => state.delivered = Some(Instant::now()),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.shared);
        state.live.is_none() && state.ending.is_none()
    }
}

fn trailers(status: &Status) -> (Frame<Bytes>, Code) {
    let mut headers = HeaderMap::new();
    let code = status::put(&mut headers, status);
    (Frame::trailers(headers), code)
}
