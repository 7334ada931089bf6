//! The body of an answer: the handler's, one of our own, or one whose trailers say how it went.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use serde_json::Value;
use tonic::Code;

use super::guard::Guard;
use crate::Outcome;

/// The body of an answer that has passed an [`AuditLayer`](super::AuditLayer).
pub struct AuditBody<B> {
    kind: Kind<B>,
}

type Recording = Pin<Box<dyn Future<Output = ()> + Send>>;

enum Kind<B> {
    /// Of our own, until it was read.
    Own(Option<Bytes>),
    /// The handler's.
    Plain(Pin<Box<B>>),
    /// Its trailers say how it went. They go out when that is recorded.
    Ending {
        inner: Pin<Box<B>>,
        guard: Option<Box<Guard>>,
    },
    Recording {
        inner: Pin<Box<B>>,
        recording: Recording,
        then: Option<HeaderMap>,
    },
}

impl<B> AuditBody<B> {
    pub(super) fn of(text: &'static str) -> Self {
        Self { kind: Kind::Own(Some(Bytes::from_static(text.as_bytes()))) }
    }

    pub(super) fn plain(inner: B) -> Self {
        Self { kind: Kind::Plain(Box::pin(inner)) }
    }

    pub(super) fn ending(inner: B, guard: Guard) -> Self {
        Self { kind: Kind::Ending { inner: Box::pin(inner), guard: Some(Box::new(guard)) } }
    }
}

/// Of an answer that has none.
impl<B> Default for AuditBody<B> {
    fn default() -> Self {
        Self { kind: Kind::Own(None) }
    }
}

impl<B> fmt::Debug for AuditBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditBody").finish_non_exhaustive()
    }
}

/// What a gRPC status stands for, by the header that carries it.
pub(super) fn grpc_outcome(status: Option<&http::HeaderValue>) -> Option<(Outcome, Value)> {
    let code = Code::from_bytes(status?.as_bytes());
    let outcome = match code {
        Code::Ok => Outcome::Success,
        Code::PermissionDenied | Code::Unauthenticated => Outcome::Denied,
        _ => Outcome::Failure,
    };
    Some((outcome, format!("{code:?}").into()))
}

impl<B: Body<Data = Bytes>> Body for AuditBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        loop {
            match &mut self.kind {
                Kind::Own(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
                Kind::Plain(inner) => return inner.as_mut().poll_frame(cx),
                Kind::Ending { inner, guard } => {
                    let (trailers, said) = match ready!(inner.as_mut().poll_frame(cx)) {
                        Some(Ok(frame)) => match frame.into_trailers() {
                            Ok(trailers) => {
                                let said = grpc_outcome(trailers.get("grpc-status"));
                                (Some(trailers), said)
                            }
                            Err(frame) => return Poll::Ready(Some(Ok(frame))),
                        },
                        Some(Err(error)) => {
                            // The guard goes with this, and records that nobody knows.
                            return Poll::Ready(Some(Err(error)));
                        }
                        None => (None, None),
                    };
                    let (outcome, status) = said.unwrap_or((Outcome::Unknown, Value::Null));
                    let reason = if outcome == Outcome::Unknown { "the answer ended without a status" } else { "" };
                    let guard = guard.take();
                    let recording: Recording = Box::pin(async move {
                        if let Some(guard) = guard {
                            guard.end(outcome, status, reason).await;
                        }
                    });
                    let Kind::Ending { inner, .. } = std::mem::replace(&mut self.kind, Kind::Own(None)) else {
                        return Poll::Ready(None);
                    };
                    self.kind = Kind::Recording { inner, recording, then: trailers };
                }
                Kind::Recording { recording, then, .. } => {
                    ready!(recording.as_mut().poll(cx));
                    let then = then.take();
                    let Kind::Recording { inner, .. } = std::mem::replace(&mut self.kind, Kind::Own(None)) else {
                        return Poll::Ready(None);
                    };
                    self.kind = Kind::Plain(inner);
                    return Poll::Ready(then.map(|trailers| Ok(Frame::trailers(trailers))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(text) => text.is_none(),
            Kind::Plain(inner) => inner.is_end_stream(),
            // Nobody may stop asking before it is recorded.
            Kind::Ending { .. } | Kind::Recording { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Kind::Plain(inner) | Kind::Ending { inner, .. } | Kind::Recording { inner, .. } => inner.size_hint(),
        }
    }
}
