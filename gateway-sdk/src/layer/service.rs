//! The service that a layer makes of a router.

use std::mem;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response, StatusCode};
use http_body::Body;
use serde_json::Value;
use tower_service::Service;

use super::body::{AuditBody, grpc_outcome};
use super::guard::{AuditHandle, Guard};
use super::policy::{Decision, Policy, Protocol, Refusal};
use crate::Outcome;
use crate::audit::operation::Begin;

/// A service around which there is an [`AuditLayer`](super::AuditLayer).
#[derive(Clone, Debug)]
pub struct AuditService<S> {
    inner: S,
    policy: Arc<Policy>,
}

impl<S> AuditService<S> {
    pub(super) fn new(inner: S, policy: Arc<Policy>) -> Self {
        Self { inner, policy }
    }
}

impl<S, Q, B> Service<Request<Q>> for AuditService<S>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    Q: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<AuditBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let protocol = self.policy.protocol;
        let (parts, body) = request.into_parts();
        match self.policy.decide(&parts) {
            Decision::Pass => {
                let answer = self.inner.call(Request::from_parts(parts, body));
                Box::pin(async move { Ok(answer.await?.map(AuditBody::plain)) })
            }
            Decision::Refuse(refusal) => {
                let answer = refusal.answer(protocol);
                Box::pin(async move { Ok(answer) })
            }
            Decision::Record { begin, request } => {
                // The one that said it was ready.
                let again = self.inner.clone();
                let inner = mem::replace(&mut self.inner, again);
                Box::pin(recorded(inner, Request::from_parts(parts, body), protocol, *begin, request))
            }
        }
    }
}

async fn recorded<S, Q, B>(
    mut inner: S,
    mut request: Request<Q>,
    protocol: Protocol,
    begin: Begin,
    called: String,
) -> Result<Response<AuditBody<B>>, S::Error>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    let operation = match begin.await {
        Ok(operation) => operation,
        Err(error) => return Ok(Refusal::of(&error).answer(protocol)),
    };
    let handle = AuditHandle::default();
    request.extensions_mut().insert(handle.clone());
    let guard = Guard::new(operation, handle, called);
    // Whatever the handler leaves broken, nobody looks at it after a panic but the panic's
    // own receiver, as without this layer.
    let answer = AssertUnwindSafe(async { inner.call(request).await }).catch_unwind().await;
    let response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            guard.end(Outcome::Failure, Value::Null, "the handler's service failed").await;
            return Err(error);
        }
        Err(panic) => {
            guard.end(Outcome::Failure, Value::Null, "the handler panicked").await;
            resume_unwind(panic);
        }
    };
    let status = response.status();
    if protocol == Protocol::Grpc && status == StatusCode::OK {
        return Ok(match grpc_outcome(response.headers().get("grpc-status")) {
            Some((outcome, status)) => {
                guard.end(outcome, status, "").await;
                response.map(AuditBody::plain)
            }
            None => response.map(|body| AuditBody::ending(body, guard)),
        });
    }
    let outcome = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Outcome::Denied,
        status if status.is_success() || status.is_redirection() => Outcome::Success,
        _ => Outcome::Failure,
    };
    guard.end(outcome, status.as_u16().into(), "").await;
    Ok(response.map(AuditBody::plain))
}
