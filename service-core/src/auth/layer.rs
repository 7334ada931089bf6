//! The layer that lets no call through without its caller: closed unless the table
//! of roles opens it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Authenticator, Principal, Refusal, RoleTable};
use crate::clock::now_us;
use crate::error::{Error, Result};
use crate::server::connection::ConnectionInfo;
use crate::server::methods;
use crate::telemetry::Metrics;

/// Attaches `Arc<Principal>` to requests; also `TcpConnectInfo` and
/// [`PeerCertificate`](crate::tls::PeerCertificate), with or without authentication.
#[derive(Clone)]
pub(crate) struct AuthLayer {
    /// `None`: everybody may do everything, on loopback.
    auth: Option<Arc<Authenticator>>,
    roles: RoleTable,
    metrics: Metrics,
}

impl AuthLayer {
    pub(crate) fn new(auth: Option<Arc<Authenticator>>, roles: RoleTable, metrics: Metrics) -> Self {
        Self { auth, roles, metrics }
    }

    /// The caller; `None` where anybody may call.
    async fn admit(&self, auth: &Authenticator, request: &Parts) -> Result<Option<Arc<Principal>>, Status> {
        let path = request.uri.path();
        let method = methods::lookup(path);
        let is_of = |service: &str| method.infrastructure && path.starts_with(service);
        let is_reflection = is_of("/grpc.reflection.");
        if is_of("/grpc.health.v1.Health/") || is_reflection && auth.open_reflection {
            return Ok(None);
        }
        let certificate = request.extensions.get::<ConnectionInfo>().and_then(|info| info.certificate.as_ref());
        let principal = auth.authenticate(&request.headers, certificate, &self.metrics).await?;
        // Of no descriptor: it is not asked whether there is such a thing all the same.
        if method.path != path {
            return Err(Status::unimplemented(""));
        }
        if !is_reflection && !self.roles.allows(path, principal.roles) {
            return Err(Error::PermissionDenied(format!("none of the caller's roles may call {path}")).into());
        }
        Ok(Some(principal))
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
pub(crate) struct Auth<S> {
    inner: S,
    layer: AuthLayer,
}

impl<S> Service<Request<Body>> for Auth<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(info) = request.extensions().get::<ConnectionInfo>().cloned() {
            request.extensions_mut().insert(info.tcp);
            if let Some(certificate) = info.certificate {
                request.extensions_mut().insert(certificate);
            }
        }
        let Some(auth) = self.layer.auth.clone() else {
            return Box::pin(self.inner.call(request));
        };
        // The clone that takes our place may not be ready; we, who were polled, are.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let layer = self.layer.clone();
        Box::pin(async move {
            let streaming = methods::lookup(request.uri().path()).streaming;
            let (mut head, body) = request.into_parts();
            let principal = match layer.admit(&auth, &head).await {
                Ok(principal) => principal,
                Err(status) => return Ok(status.into_http()),
            };
            let expires_at_us = principal.as_ref().and_then(|principal| principal.expires_at_us);
            if let Some(principal) = principal {
                head.extensions.insert(principal);
            }
            let response = inner.call(Request::from_parts(head, body)).await?;
            Ok(match expires_at_us {
                Some(at) if streaming => response.map(|body| Body::new(UntilExpiry::new(body, at))),
                _ => response,
            })
        })
    }
}

/// A stream that ends with UNAUTHENTICATED when its caller's token expires.
struct UntilExpiry {
    inner: Option<Body>,
    expiry: Pin<Box<Sleep>>,
}

impl UntilExpiry {
    fn new(inner: Body, expires_at_us: i64) -> Self {
        let left = u64::try_from(expires_at_us.saturating_sub(now_us())).unwrap_or(0);
        Self { inner: Some(inner), expiry: Box::pin(sleep(Duration::from_micros(left))) }
    }
}

impl HttpBody for UntilExpiry {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let expired = self.expiry.as_mut().poll(cx).is_ready();
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        if !expired {
            return Pin::new(inner).poll_frame(cx);
        }
        self.inner = None;
        let mut trailers = HeaderMap::new();
        let status = Status::from(Error::from(Refusal::Expired));
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}
