//! The administration of a platform over HTTP, in which nothing changes without a record:
//! `cargo run -p gateway-sdk --example axum --features layer`, with the audit-service on its
//! default address. Then
//! `curl -X POST -H 'authorization: Bearer alice' 127.0.0.1:8080/models/gpt-4o/enable`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{Method, StatusCode, Uri, header, request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use axum::{Extension, Router};
use gateway_sdk::layer::{AuditHandle, AuditLayer};
use gateway_sdk::{Actor, Audit, GatewaySdk, Resource};
use serde_json::{Map, Value, json};

/// One route: its handler and what it does stand side by side, so that neither is forgotten.
pub(crate) struct Entry {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    /// What of it is recorded, and of what kind of resource. None: it only reads.
    pub(crate) action: Option<(&'static str, &'static str)>,
    change: Change,
}

/// Makes the new value of the old one and of the request.
type Change = fn(Option<&Value>, Value) -> Result<Option<Value>, StatusCode>;

const fn entry(method: Method, path: &'static str, action: (&'static str, &'static str), change: Change) -> Entry {
    Entry { method, path, action: Some(action), change }
}

const fn get(path: &'static str) -> Entry {
    Entry { method: Method::GET, path, action: None, change: |old, _| Ok(old.cloned()) }
}

/// All that there is: the router is made of it, and so is what the layer knows.
pub(crate) const ROUTES: &[Entry] = &[
    get("/models/{id}"),
    get("/providers/{id}"),
    entry(Method::POST, "/models/{id}/enable", ("model.enabled", "model"), |old, _| set(old, "enabled", true.into())),
    entry(Method::POST, "/models/{id}/disable", ("model.disabled", "model"), |old, _| {
        set(old, "enabled", false.into())
    }),
    entry(Method::POST, "/providers/{id}", ("provider.created", "provider"), create),
    entry(Method::PUT, "/providers/{id}", ("provider.updated", "provider"), update),
    entry(Method::DELETE, "/providers/{id}", ("provider.deleted", "provider"), delete),
    entry(Method::POST, "/users/{id}/role", ("user.role_changed", "user"), |old, new| set(old, "role", new)),
    entry(Method::POST, "/api-keys/{id}/revoke", ("api_key.revoked", "api_key"), |old, _| {
        set(old, "revoked", true.into())
    }),
    entry(Method::POST, "/announcements/{id}", ("announcement.created", "announcement"), create),
    entry(Method::POST, "/announcements/{id}/archive", ("announcement.archived", "announcement"), |old, _| {
        set(old, "archived", true.into())
    }),
    entry(Method::PUT, "/sso", ("sso.configured", "sso"), |old, new| set(old, "settings", new)),
    entry(Method::POST, "/sso/enable", ("sso.enabled", "sso"), |old, _| set(old, "enabled", true.into())),
    entry(Method::POST, "/sso/disable", ("sso.disabled", "sso"), |old, _| set(old, "enabled", false.into())),
    entry(Method::POST, "/mcp-servers/{id}", ("mcp_server.created", "mcp_server"), create),
    entry(Method::PUT, "/mcp-servers/{id}", ("mcp_server.updated", "mcp_server"), update),
    entry(Method::DELETE, "/mcp-servers/{id}", ("mcp_server.deleted", "mcp_server"), delete),
    entry(Method::POST, "/mcp-oauth-clients/{id}", ("mcp_oauth_client.created", "mcp_oauth_client"), create),
    entry(Method::PUT, "/mcp-oauth-clients/{id}", ("mcp_oauth_client.updated", "mcp_oauth_client"), update),
    entry(
        Method::POST,
        "/mcp-oauth-clients/{id}/rotate",
        ("mcp_oauth_client.secret_rotated", "mcp_oauth_client"),
        |old, new| set(old, "client_secret", new),
    ),
    entry(Method::DELETE, "/mcp-oauth-clients/{id}", ("mcp_oauth_client.deleted", "mcp_oauth_client"), delete),
];

fn set(old: Option<&Value>, name: &str, value: Value) -> Result<Option<Value>, StatusCode> {
    let mut new = old.and_then(Value::as_object).cloned().unwrap_or_default();
    new.insert(name.to_owned(), value);
    Ok(Some(new.into()))
}

fn create(old: Option<&Value>, new: Value) -> Result<Option<Value>, StatusCode> {
    if old.is_some() { Err(StatusCode::CONFLICT) } else { Ok(Some(new)) }
}

fn update(old: Option<&Value>, new: Value) -> Result<Option<Value>, StatusCode> {
    if old.is_none() { Err(StatusCode::NOT_FOUND) } else { Ok(Some(new)) }
}

fn delete(old: Option<&Value>, _: Value) -> Result<Option<Value>, StatusCode> {
    if old.is_none() { Err(StatusCode::NOT_FOUND) } else { Ok(None) }
}

/// What is administered: a value for each resource.
#[derive(Default)]
pub(crate) struct Platform {
    state: Mutex<BTreeMap<String, Value>>,
    /// Runs after each change and before its answer.
    pub(crate) after_change: Option<fn()>,
}

impl Platform {
    pub(crate) fn state(&self) -> MutexGuard<'_, BTreeMap<String, Value>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who was authenticated.
#[derive(Clone)]
struct Admin(String);

/// Stands for what authenticates: whoever has a token is who it names.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let token = request.headers().get(header::AUTHORIZATION).and_then(|header| header.to_str().ok());
    if let Some(name) = token.and_then(|token| token.strip_prefix("Bearer ")).map(str::to_owned) {
        request.extensions_mut().insert(Admin(name));
    }
    next.run(request).await
}

fn who(request: &request::Parts) -> Option<Actor> {
    let Admin(name) = request.extensions.get()?;
    let agent = request.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    Some(Actor::user(name).user_agent(agent.unwrap_or_default()))
}

/// The administration: every route of the table, behind the layer.
pub(crate) fn app(platform: Arc<Platform>, audit: &Audit) -> Router {
    let mut layer = AuditLayer::http(audit, who)
        .route(|request| Some(request.extensions.get::<MatchedPath>()?.as_str().to_owned()));
    let mut router = Router::new();
    for Entry { method, path, action, change } in ROUTES {
        layer = match action {
            Some((action, kind)) => layer.action((method.as_str(), *path), *action, *kind),
            None => layer.read_only((method.as_str(), *path)),
        };
        // Every method of the table has a filter.
        let Ok(filter) = MethodFilter::try_from(method.clone()) else { continue };
        router = router.route(path, on(filter, handle).layer(Extension((*action, *change))));
    }
    // The audit handle is there where a request is recorded.
    router.with_state((platform, audit.clone())).layer(layer).layer(from_fn(authenticate))
}

async fn handle(
    State((platform, audit)): State<(Arc<Platform>, Audit)>,
    Extension((action, change)): Extension<(Option<(&'static str, &'static str)>, Change)>,
    Extension(Admin(admin)): Extension<Admin>,
    handle: Option<Extension<AuditHandle>>,
    id: Option<Path<String>>,
    uri: Uri,
    body: Bytes,
) -> Response {
    let Some((_, kind)) = action else {
        let id = id.map(|Path(id)| id).unwrap_or_default();
        let kind = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
        return match platform.state().get(&format!("{}/{id}", kind.trim_end_matches('s'))) {
            Some(value) => value.to_string().into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        };
    };
    if admin == "viewer" {
        return StatusCode::FORBIDDEN.into_response();
    }
    let Ok(body) = (if body.is_empty() { Ok(json!({})) } else { serde_json::from_slice(&body) }) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let id = id.map_or_else(|| "sso".to_owned(), |Path(id)| id);
    let key = format!("{kind}/{id}");
    let (old, new) = {
        let mut state = platform.state();
        let old = state.get(&key).cloned();
        let new = match change(old.as_ref(), body) {
            Ok(new) => new,
            Err(status) => return status.into_response(),
        };
        match &new {
            Some(new) => state.insert(key, new.clone()),
            None => state.remove(&key),
        };
        (old, new)
    };
    if let Some(after_change) = platform.after_change {
        after_change();
    }
    if let Some(Extension(handle)) = handle {
        let nothing = Value::Object(Map::new());
        handle.diff(audit.diff(old.as_ref().unwrap_or(&nothing), new.as_ref().unwrap_or(&nothing)));
        handle.acted_on(Resource::new(kind, id));
    }
    StatusCode::NO_CONTENT.into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sdk = GatewaySdk::builder()
        .audit_endpoint("http://127.0.0.1:50051")
        .instance("example")
        .spool(std::env::temp_dir().join("activity-example-axum"))
        .on_abandoned(|abandoned| eprintln!("stands open: {:?}", abandoned.intent))
        .build()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    axum::serve(listener, app(Arc::default(), sdk.audit())).await?;
    Ok(())
}
