//! A tower layer for the routes that administer a platform: no request changes state without a
//! record of it.
//!
//! ```text
//! request ─ `what` names nothing, and the list says read only ──▶ handler ─▶ answer
//!              │ anything else
//!              ▼
//!           who? ─ nobody ────────────────▶ 401, UNAUTHENTICATED
//!              ▼
//!           intent, durable? ─ no ────────▶ 503, UNAVAILABLE: the handler did not run
//!              ▼
//!           handler ─▶ answer, its status ─▶ outcome, durable ─▶ answer to the client
//!              ├─ panics ─▶ FAILURE, and the panic goes on
//!              └─ the client is gone: UNKNOWN
//! ```

mod body;
mod guard;
mod policy;
mod service;

use std::sync::Arc;

use http::request::Parts;

pub use self::body::AuditBody;
pub use self::guard::AuditHandle;
use self::policy::{Policy, Protocol, Rule};
pub use self::policy::{Route, What};
pub use self::service::AuditService;
use crate::{Actor, Audit};

/// Records each request that may change state: its intent before the handler runs, its outcome
/// when the handler has answered. What can't be recorded is not let through. Feature `layer`.
///
/// Put it around the whole router of the administration, **inside** what authenticates (which it
/// asks who it is). Routes that are added to an axum router after its `.layer(…)` are outside of it;
/// a table that both are made of, as in `examples/axum.rs`, forgets none:
///
/// ```
/// # use gateway_sdk::{Actor, Audit, Diff};
/// # use serde_json::json;
/// use gateway_sdk::layer::{AuditHandle, AuditLayer};
/// use axum::extract::MatchedPath;
/// use axum::routing::{get, post};
/// use axum::{Extension, Router};
///
/// # #[derive(Clone)] struct Admin { id: String }
/// # fn admin_of(_: &http::request::Parts) -> Option<Admin> { None }
/// # fn router(audit: &Audit) -> Router {
/// async fn enable(Extension(audit): Extension<AuditHandle>) {
///     audit.diff(Diff::between(&json!({"enabled": false}), &json!({"enabled": true})));
/// }
///
/// let layer = AuditLayer::http(audit, |request| admin_of(request).map(|admin| Actor::user(admin.id)))
///     .route(|request| Some(request.extensions.get::<MatchedPath>()?.as_str().to_owned()))
///     .action(("POST", "/models/{id}/enable"), "model.enabled", "model")
///     .read_only(("GET", "/models"));
/// Router::new()
///     .route("/models", get(async || "[]"))
///     .route("/models/{id}/enable", post(enable))
///     .layer(layer)
/// # }
/// ```
///
/// With tonic: [`AuditLayer::grpc`] in `Server::builder().layer(…)`, with a method's full path as
/// the route, such as `/admin.v1.Models/EnableModel`.
///
/// # What is recorded
///
/// What [`what`](Self::what) names, and everything that [`read_only`](Self::read_only) does not
/// list: also what is listed nowhere, with the action `unlisted_route.called`, and what no route
/// takes. So a new route is recorded before anybody has thought of it.
///
/// | the handler | outcome |
/// | --- | --- |
/// | answers 2xx or 3xx, gRPC `OK` | `SUCCESS` |
/// | answers 401 or 403, `UNAUTHENTICATED`, `PERMISSION_DENIED` | `DENIED` |
/// | answers anything else | `FAILURE` |
/// | panics, or its service fails | `FAILURE`, and the panic or the error goes on |
/// | is dropped before its answer, since the client went away; ends a gRPC answer without a status | `UNKNOWN`: what it had done by then it has done |
/// | dies with the process | none: the intent stands open |
///
/// Of gRPC the status is read where it is: in the head or in the trailers, which wait for the
/// record. A handler adds to the outcome through [`AuditHandle`], an extension of its request.
///
/// # What the client is told
///
/// | | HTTP | gRPC |
/// | --- | --- | --- |
/// | nobody is known to have made the request | 401 | `UNAUTHENTICATED` |
/// | the intent can't be made durable now: the spool is full, its disk fails; without a spool, the service is away | 503 | `UNAVAILABLE` |
/// | the intent can't be recorded at all, such as for an action that is none | 500 | `INTERNAL` |
///
/// In each case the handler did not run. Where the *outcome* can't be recorded, the answer goes
/// out as it is: the change stands, and so does its intent, open; see
/// [`Builder::on_abandoned`](crate::Builder::on_abandoned).
#[derive(Clone, Debug)]
#[must_use = "put it around a router"]
pub struct AuditLayer {
    policy: Arc<Policy>,
}

impl AuditLayer {
    /// For HTTP. `who` tells who makes a request, from what was authenticated: an extension, a
    /// header that a proxy vouches for. Without an answer the request is refused.
    pub fn http(audit: &Audit, who: impl Fn(&Parts) -> Option<Actor> + Send + Sync + 'static) -> Self {
        Self { policy: Arc::new(Policy::new(Protocol::Http, audit.clone(), Arc::new(who))) }
    }

    /// For gRPC; as [`http`](Self::http).
    pub fn grpc(audit: &Audit, who: impl Fn(&Parts) -> Option<Actor> + Send + Sync + 'static) -> Self {
        Self { policy: Arc::new(Policy::new(Protocol::Grpc, audit.clone(), Arc::new(who))) }
    }

    /// Which route a request takes, in the router's own words, so that the lists here can be
    /// exact: axum's `MatchedPath`. Default: the request's path, which is right for gRPC and for
    /// routes without parameters.
    pub fn route(self, route: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.with(|policy| policy.route = Arc::new(route))
    }

    /// What a route does, and to what kind of resource. The resource's id is that of the last
    /// parameter of the route (`{id}`), else `unknown`, until the handler tells it
    /// ([`AuditHandle::acted_on`]).
    pub fn action(self, route: impl Into<Route>, action: impl Into<String>, resource_type: impl Into<String>) -> Self {
        let rule = Rule::Action { action: action.into(), resource: resource_type.into() };
        self.with(|policy| policy.list(route.into(), rule))
    }

    /// What a request does, where that takes more than its route; asked first, of every request.
    /// What it names is recorded, also on a route that is read only; `None` leaves it to the list.
    pub fn what(self, what: impl Fn(&Parts) -> Option<What> + Send + Sync + 'static) -> Self {
        self.with(|policy| policy.what = Some(Arc::new(what)))
    }

    /// A route that changes nothing, and is not recorded. `GET` includes `HEAD`. A route that is
    /// listed as an action too is recorded.
    pub fn read_only(self, route: impl Into<Route>) -> Self {
        self.with(|policy| policy.list(route.into(), Rule::ReadOnly))
    }

    /// Everything by `GET`, `HEAD` or `OPTIONS` that is not listed as an action changes nothing,
    /// and is not recorded: for a platform that keeps to RFC 9110, section 9.2.1. Of no meaning
    /// for gRPC.
    pub fn safe_methods_are_read_only(self) -> Self {
        self.with(|policy| policy.safe_methods = true)
    }

    /// The id of a request. Default: the header `x-request-id`.
    pub fn request_id(self, id: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.with(|policy| policy.request_id = Arc::new(id))
    }

    /// Why a request is made: the ticket, the comment. Default: nothing.
    pub fn reason(self, reason: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.with(|policy| policy.reason = Some(Arc::new(reason)))
    }

    fn with(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(Arc::make_mut(&mut self.policy));
        self
    }
}

impl<S> tower_layer::Layer<S> for AuditLayer {
    type Service = AuditService<S>;

    fn layer(&self, inner: S) -> AuditService<S> {
        AuditService::new(inner, Arc::clone(&self.policy))
    }
}
