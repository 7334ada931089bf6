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

use super::caller::From as CallFrom;
use super::limits::{self, Limits, Place};
use super::room::Metered;
use super::{Access, Authenticator, Caller, Denial, Denials, Instances, Principal, RoleTable, Sees, Why};
use crate::clock::now_us;
use crate::config::LimitsConfig;
use crate::error::{Error, Result};
use crate::server::connection::ConnectionInfo;
use crate::server::methods::{self, Kind};
use crate::telemetry::Metrics;

/// Attaches `Arc<Caller>` to requests; also `TcpConnectInfo` and
/// [`PeerCertificate`](crate::tls::PeerCertificate).
#[derive(Clone)]
pub(crate) struct AuthLayer {
    /// `None`: everybody may do everything, on loopback.
    auth: Option<Arc<Authenticator>>,
    roles: Option<RoleTable>,
    limits: Arc<Limits>,
    metrics: Metrics,
    denials: Denials,
}

impl AuthLayer {
    pub(crate) fn new(
        auth: Option<Arc<Authenticator>>,
        roles: Option<RoleTable>,
        limits: LimitsConfig,
        metrics: Metrics,
        denials: Option<Denials>,
    ) -> Self {
        let denials = denials.unwrap_or_else(|| Denials::counted(metrics.clone()));
        let limits = Arc::new(Limits::new(limits, metrics.clone()));
        Self { auth, roles, limits, metrics, denials }
    }

    /// The caller; `None` for what is open to everybody.
    async fn admit(&self, request: &Parts) -> Result<Option<Caller>, Status> {
        let from =
            CallFrom::new(request.extensions.get::<ConnectionInfo>().and_then(ConnectionInfo::peer), &request.headers);
        let method = methods::lookup(request.uri.path());
        let caller =
            |identified, access| Caller::new(identified, access, &method.path, from.clone(), self.denials.clone());
        let Some(auth) = &self.auth else {
            return Ok(Some(caller(None, Access::unrestricted())));
        };
        let path = request.uri.path();
        let is_of = |service: &str| method.infrastructure && path.starts_with(service);
        let is_reflection = is_of("/grpc.reflection.");
        if is_of("/grpc.health.v1.Health/") || is_reflection && auth.open_reflection {
            return Ok(None);
        }
        let certificate = request.extensions.get::<ConnectionInfo>().and_then(|info| info.certificate.as_ref());
        let refuse = |why, principal: Option<&Principal>, error: Error| {
            self.denials.record(Denial::new(why, principal, &method.path, &from, error.to_string()));
            Status::from(error)
        };
        let identified = match auth.authenticate(&request.headers, certificate, &self.metrics).await {
            Ok(identified) => identified,
            Err(error @ Error::Unauthenticated(_)) => return Err(refuse(Why::Credential, None, error)),
            Err(error) => return Err(error.into()),
        };
        // Of no descriptor: it is not asked whether there is such a thing all the same.
        if method.path != path {
            return Err(Status::unimplemented(""));
        }
        let principal = identified.principal.clone();
        let access = Access::of(&principal);
        if is_reflection {
            return Ok(Some(caller(Some(identified), access)));
        }
        if matches!(access.instances(), Instances::Only(instances) if instances.is_empty()) {
            let error = Error::PermissionDenied("the caller's credential names no instances".to_owned());
            return Err(refuse(Why::Instance, Some(&principal), error));
        }
        let access = match (self.roles.and_then(|roles| roles.sees(path, principal.roles)), &principal.user_id) {
            (Some(Sees::All), _) => access,
            (Some(Sees::Own), Some(user)) => access.to_user(user),
            (Some(Sees::Own), None) => {
                let error =
                    Error::PermissionDenied(format!("the caller sees its own usage only, and is no user: {path}"));
                return Err(refuse(Why::User, Some(&principal), error));
            }
            (None, _) => {
                let error = Error::PermissionDenied(format!("none of the caller's roles may call {path}"));
                return Err(refuse(Why::Role, Some(&principal), error));
            }
        };
        Ok(Some(caller(Some(identified), access)))
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
        // The clone that takes our place may not be ready; we, who were polled, are.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let layer = self.layer.clone();
        Box::pin(async move {
            let method = methods::lookup(request.uri().path());
            let (mut head, body) = request.into_parts();
            let caller = match layer.admit(&head).await {
                Ok(caller) => caller,
                Err(status) => return Ok(status.into_http()),
            };
            let key = match &caller {
                Some(caller) => caller.key(),
                None => limits::key(None, head.extensions.get::<ConnectionInfo>().and_then(ConnectionInfo::peer)),
            };
            let place = match layer.limits.admit(key, method) {
                Ok(place) => place,
                Err(error) => return Ok(Status::from(error).into_http()),
            };
            let expires_at_us = caller.as_ref().and_then(Caller::expires_at_us);
            if let Some(caller) = caller {
                head.extensions.insert(Arc::new(caller));
            }
            let body = match &place.room {
                None => body,
                Some(room) => {
                    head.extensions.insert(room.clone());
                    Body::new(Metered::new(body, room.clone()))
                }
            };
            let response = inner.call(Request::from_parts(head, body)).await?;
            if method.kind == Kind::Call {
                return Ok(response);
            }
            // Streams of events end by themselves, with their last answers.
            let lifetime = (!method.ingest).then(|| layer.limits.stream_lifetime());
            Ok(response.map(|body| Body::new(Bounded::new(body, place, expires_at_us, lifetime))))
        })
    }
}

/// A stream that keeps its caller's place, and ends with UNAUTHENTICATED when the
/// caller's credential expires, or with DEADLINE_EXCEEDED when it was open long enough.
struct Bounded {
    inner: Option<Body>,
    end: Option<(Pin<Box<Sleep>>, Error)>,
    _place: Place,
}

impl Bounded {
    fn new(inner: Body, place: Place, expires_at_us: Option<i64>, lifetime: Option<Duration>) -> Self {
        let expiry = expires_at_us.map(|at| {
            let left = u64::try_from(at.saturating_sub(now_us())).unwrap_or(0);
            (Duration::from_micros(left), Error::Unauthenticated("the caller's credential has expired"))
        });
        let lifetime = lifetime.map(|lifetime| {
            let text =
                format!("the stream was open for {} s, which is all it may; go on in a new one", lifetime.as_secs());
            (lifetime, Error::DeadlineExceeded(text))
        });
        let first = expiry.into_iter().chain(lifetime).min_by_key(|(left, _)| *left);
        let end = first.map(|(left, error)| (Box::pin(sleep(left)), error));
        Self { inner: Some(inner), end, _place: place }
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let ended = this.end.as_mut().is_some_and(|(end, _)| end.as_mut().poll(cx).is_ready());
        let Some((_, error)) = this.end.take_if(|_| ended) else {
            return Pin::new(inner).poll_frame(cx);
        };
        this.inner = None;
        let mut trailers = HeaderMap::new();
        let status = Status::from(error);
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}
