//! Which requests are recorded, and as what.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;
use tonic::Status;

use super::body::AuditBody;
use crate::audit::check::{MAX_NAME_BYTES, MAX_TEXT_BYTES, fit_actor, fit_resource, fit_text};
use crate::audit::operation::Begin;
use crate::{Actor, Audit, Error, Resource};

const UNLISTED: &str = "unlisted_route.called";

type Extract<T> = Arc<dyn Fn(&Parts) -> Option<T> + Send + Sync>;

/// How requests name what they want, and how answers tell how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Grpc,
}

/// A route: `("POST", "/models/{id}")`, or `"/admin.v1.Models/EnableModel"`, by any method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    method: Option<String>,
    path: String,
}

impl From<(&str, &str)> for Route {
    fn from((method, path): (&str, &str)) -> Self {
        Self { method: Some(method.to_uppercase()), path: path.to_owned() }
    }
}

impl From<&str> for Route {
    fn from(path: &str) -> Self {
        Self { method: None, path: path.to_owned() }
    }
}

/// What a request does; see [`AuditLayer::what`](super::AuditLayer::what).
#[derive(Clone, Debug, PartialEq)]
pub struct What {
    action: String,
    resource: Resource,
}

impl What {
    /// An action (`model.enabled`), and the resource acted on.
    #[must_use]
    pub fn new(action: impl Into<String>, resource: Resource) -> Self {
        Self { action: action.into(), resource }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Rule {
    ReadOnly,
    Action { action: String, resource: String },
}

#[derive(Clone)]
pub(super) struct Policy {
    pub(super) protocol: Protocol,
    audit: Audit,
    who: Extract<Actor>,
    pub(super) what: Option<Extract<What>>,
    pub(super) route: Extract<String>,
    pub(super) request_id: Extract<String>,
    pub(super) reason: Option<Extract<String>>,
    pub(super) safe_methods: bool,
    /// By path.
    rules: HashMap<String, Vec<(Option<String>, Rule)>>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("protocol", &self.protocol)
            .field("safe_methods", &self.safe_methods)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// What is done with a request.
pub(super) enum Decision {
    Pass,
    Record { begin: Box<Begin>, request: String },
    Refuse(Refusal),
}

impl Policy {
    pub(super) fn new(protocol: Protocol, audit: Audit, who: Extract<Actor>) -> Self {
        Self {
            protocol,
            audit,
            who,
            what: None,
            route: Arc::new(|request| Some(request.uri.path().to_owned())),
            request_id: Arc::new(|request| Some(request.headers.get("x-request-id")?.to_str().ok()?.to_owned())),
            reason: None,
            safe_methods: false,
            rules: HashMap::new(),
        }
    }

    pub(super) fn list(&mut self, route: Route, rule: Rule) {
        self.rules.entry(route.path).or_default().push((route.method, rule));
    }

    pub(super) fn decide(&self, request: &Parts) -> Decision {
        let route = (self.route)(request);
        let rule = route.as_deref().and_then(|route| self.rule(&request.method, route));
        let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(&request.method);
        let reads = match rule {
            Some(Rule::ReadOnly) => true,
            Some(Rule::Action { .. }) => false,
            None => self.protocol == Protocol::Http && self.safe_methods && safe,
        };
        // Asked first: a query may make an action of what its route alone would let pass.
        let what = self.what.as_ref().and_then(|what| what(request));
        if reads && what.is_none() {
            return Decision::Pass;
        }
        let Some(actor) = (self.who)(request) else { return Decision::Refuse(Refusal::Nobody) };
        let path = request.uri.path();
        let name = |path: &str| match self.protocol {
            Protocol::Http => format!("{} {path}", request.method),
            Protocol::Grpc => path.to_owned(),
        };
        let what = what.unwrap_or_else(|| match (rule, &route) {
            (Some(Rule::Action { action, resource }), Some(route)) => {
                let id = parameter(route, path).unwrap_or_default();
                What::new(action, Resource::new(resource, id))
            }
            _ => What::new(UNLISTED, Resource::new("route", name(path))),
        });
        let called = fit_text(&name(route.as_deref().unwrap_or(path)), MAX_TEXT_BYTES);
        // Whatever a client puts into its request, the service takes the record of it.
        let mut begin = self
            .audit
            .begin(fit_actor(actor), what.action, what.resource.map(fit_resource))
            .details(&json!({ "request": called }));
        if let Some(id) = (self.request_id)(request) {
            begin = begin.request_id(fit_text(&id, MAX_NAME_BYTES));
        }
        if let Some(reason) = self.reason.as_ref().and_then(|reason| reason(request)) {
            begin = begin.reason(fit_text(&reason, MAX_TEXT_BYTES));
        }
        Decision::Record { begin: Box::new(begin), request: called }
    }

    /// An action before what is read only, so that a contradiction is recorded.
    fn rule(&self, method: &Method, route: &str) -> Option<&Rule> {
        let method = method.as_str();
        let covers = |listed: &Option<String>, head: bool| match listed.as_deref() {
            None => true,
            Some("GET") if head => method == "GET" || method == "HEAD",
            Some(listed) => listed == method,
        };
        let rules = self.rules.get(route)?;
        let of = |action: bool| {
            let found = rules
                .iter()
                .find(|(listed, rule)| matches!(rule, Rule::Action { .. }) == action && covers(listed, true));
            found.map(|(_, rule)| rule)
        };
        of(true).or_else(|| of(false))
    }
}

/// The value of the last parameter of a route, as axum writes routes: `/models/{id}/enable`. From
/// behind, for a nested router sees the end of the path alone.
fn parameter(route: &str, path: &str) -> Option<String> {
    if route.contains("{*") {
        return None;
    }
    route.rsplit('/').zip(path.rsplit('/')).find_map(|(name, value)| {
        let is_parameter = name.starts_with('{') && name.ends_with('}') && !name.starts_with("{{");
        is_parameter.then(|| decoded(value))
    })
}

/// Without percent-encoding, where what it stands for is text.
fn decoded(value: &str) -> String {
    let hex = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let bytes = value.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                // Two digits of 16.
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| value.to_owned())
}

/// Why a request is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Nobody,
    NotNow,
    Never,
}

impl Refusal {
    /// Of an intent that is not recorded.
    pub(super) fn of(error: &Error) -> Self {
        let refusal = match error {
            Error::Rejected(_) | Error::TooLarge { .. } | Error::NotConfigured { .. } => Self::Never,
            _ => Self::NotNow,
        };
        tracing::error!(%error, "a request is refused: its intent can't be recorded");
        refusal
    }

    fn text(self) -> &'static str {
        match self {
            Self::Nobody => "not let through: nobody is known to have made this request, and it has to be recorded",
            Self::NotNow => {
                "not let through: the record of this request can't be kept at the moment, and nothing was done; try again later"
            }
            Self::Never => {
                "not let through: this request can't be recorded, and nothing was done; the server's log says why"
            }
        }
    }

    pub(super) fn answer<B>(self, protocol: Protocol) -> Response<AuditBody<B>> {
        match protocol {
            Protocol::Http => {
                let status = match self {
                    Self::Nobody => StatusCode::UNAUTHORIZED,
                    Self::NotNow => StatusCode::SERVICE_UNAVAILABLE,
                    Self::Never => StatusCode::INTERNAL_SERVER_ERROR,
                };
                let mut headers = HeaderMap::new();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                if self == Self::NotNow {
                    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
                }
                let mut response = Response::new(AuditBody::of(self.text()));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                response
            }
            Protocol::Grpc => {
                let status = match self {
                    Self::Nobody => Status::unauthenticated(self.text()),
                    Self::NotNow => Status::unavailable(self.text()),
                    Self::Never => Status::internal(self.text()),
                };
                status.into_http()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_parameter_of_a_route_is_the_resource() {
        let of = |route, path| parameter(route, path);
        assert_eq!(of("/models/{id}", "/models/gpt-4o"), Some("gpt-4o".to_owned()));
        assert_eq!(of("/a/{x}/models/{id}/enable", "/a/1/models/gpt%2F4%C3%B6/enable"), Some("gpt/4ö".to_owned()));
        assert_eq!(of("/admin/models/{id}", "/models/gpt-4o"), Some("gpt-4o".to_owned()), "nested");
        assert_eq!(of("/models/{id}", "/models/%ff%4"), Some("%ff%4".to_owned()), "no text");
        assert_eq!(of("/models", "/models"), None);
        assert_eq!(of("/files/{*path}", "/files/a/b"), None);
    }
}
