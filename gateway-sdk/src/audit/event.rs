//! Audit events as an application makes them.

use std::net::IpAddr;
use std::time::SystemTime;

use activity_proto::audit::v1 as proto;
use prost::Message;
use serde_json::Value;
use uuid::Uuid;

use super::check::check;
use crate::feed::MAX_EVENT_BYTES;
use crate::{ActorKind, Diff, Error, Outcome, Stage, id};

/// What the SDK adds to an event, at most: its instance, and its producer's number.
const OWN_BYTES: usize = 1_024;

/// One administrative action, ready to be recorded.
///
/// Its id is fixed when it is built: recording the same event again, as after
/// [`Error::NotAcknowledged`](crate::Error::NotAcknowledged), stores it once.
///
/// ```
/// use gateway_sdk::{Actor, AuditEvent, Outcome, Resource};
/// use serde_json::json;
///
/// let event = AuditEvent::builder(
///     Actor::user("u-17").display_name("alice@example.com"),
///     "model.enabled",
///     Resource::new("model", "gpt-4o").name("GPT-4o"),
/// )
/// .outcome(Outcome::Success)
/// .reason("OPS-1234")
/// .change("/enabled", Some(json!(false)), Some(json!(true)))
/// .build();
/// assert_eq!(event.as_proto().changes[0].new_value.as_deref(), Some("true"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEvent {
    id: Uuid,
    message: proto::AuditEvent,
}

/// Who did it.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Actor(proto::Actor);

impl Actor {
    #[cfg(feature = "layer")]
    pub(crate) fn map(self, change: impl FnOnce(proto::Actor) -> proto::Actor) -> Self {
        Self(change(self.0))
    }

    /// A person, by a stable id.
    pub fn user(id: impl Into<String>) -> Self {
        Self::of_kind(ActorKind::User, id)
    }

    /// A program with an account of its own.
    pub fn service_account(id: impl Into<String>) -> Self {
        Self::of_kind(ActorKind::ServiceAccount, id)
    }

    /// The platform itself.
    pub fn system(id: impl Into<String>) -> Self {
        Self::of_kind(ActorKind::System, id)
    }

    /// An actor of a kind known at run time.
    pub fn of_kind(kind: ActorKind, id: impl Into<String>) -> Self {
        Self(proto::Actor { id: id.into(), kind: kind.into(), ..Default::default() })
    }

    /// A name or an email address for people to read.
    pub fn display_name(mut self, name: impl Into<String>) -> Self {
        self.0.display_name = name.into();
        self
    }

    /// From where.
    pub fn ip_address(mut self, address: IpAddr) -> Self {
        self.0.ip_address = address.to_string();
        self
    }

    /// With what program.
    pub fn user_agent(mut self, agent: impl Into<String>) -> Self {
        self.0.user_agent = agent.into();
        self
    }

    /// The id of the person for whom a service account or an impersonating
    /// administrator acted.
    pub fn on_behalf_of(mut self, id: impl Into<String>) -> Self {
        self.0.on_behalf_of = id.into();
        self
    }
}

/// What an action affected.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Resource(proto::Resource);

impl Resource {
    /// A resource by its type (`api_key`) and a stable id.
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self(proto::Resource { r#type: kind.into(), id: id.into(), name: String::new() })
    }

    /// A name for people to read.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.0.name = name.into();
        self
    }
}

impl Resource {
    pub(crate) fn map(self, change: impl FnOnce(proto::Resource) -> proto::Resource) -> Self {
        Self(change(self.0))
    }

    pub(crate) fn into_proto(self) -> proto::Resource {
        self.0
    }
}

impl AuditEvent {
    /// Starts an event: who did what (`<resource>.<verb>`, lower snake case) to which
    /// resource.
    pub fn builder(actor: Actor, action: impl Into<String>, resource: Resource) -> AuditEventBuilder {
        AuditEventBuilder {
            id: None,
            occurred_at: None,
            message: proto::AuditEvent {
                actor: Some(actor.0),
                action: action.into(),
                resources: vec![resource.0],
                outcome: Outcome::Success.into(),
                ..Default::default()
            },
        }
    }

    /// The event's id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The event as the contract has it. `instance_id` is empty where the SDK's own is
    /// to be used.
    #[must_use]
    pub fn as_proto(&self) -> &proto::AuditEvent {
        &self.message
    }

    /// As [`as_proto`](Self::as_proto), owned.
    #[must_use]
    pub fn into_proto(self) -> proto::AuditEvent {
        self.message
    }

    /// Whether the service would take it, as far as can be told without it: for those that keep
    /// events elsewhere, such as in a database, before it is too late to say no.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`] with the field, [`Error::TooLarge`].
    pub fn check(&self) -> Result<(), Error> {
        self.check_with(true)
    }

    /// Whether an event without an instance gets one.
    pub(crate) fn check_with(&self, has_instance: bool) -> Result<(), Error> {
        let bytes = self.message.encoded_len();
        if bytes > MAX_EVENT_BYTES - OWN_BYTES {
            return Err(Error::TooLarge { bytes, limit: MAX_EVENT_BYTES - OWN_BYTES });
        }
        check(&self.message, has_instance).map_err(Error::Rejected)
    }

    /// From a message of the contract: a replay, an event from another process. An id
    /// or a time that is missing is made; an id that is no UUID is replaced.
    #[must_use]
    pub fn from_proto(mut message: proto::AuditEvent) -> Self {
        message.producer = None;
        let occurred_at = message.occurred_at.take();
        AuditEventBuilder {
            id: Uuid::parse_str(&message.id).ok(),
            occurred_at: occurred_at.and_then(|at| SystemTime::try_from(at).ok()),
            message,
        }
        .build()
    }
}

/// Makes an [`AuditEvent`]; see [`AuditEvent::builder`].
#[derive(Clone, Debug)]
#[must_use = "call `build`, or pass it to `record`"]
pub struct AuditEventBuilder {
    id: Option<Uuid>,
    occurred_at: Option<SystemTime>,
    message: proto::AuditEvent,
}

impl AuditEventBuilder {
    /// An id made before, to record the same event again. Default: a new one.
    pub fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// When it happened. Default: now. Takes a `chrono::DateTime` as well.
    pub fn occurred_at(mut self, at: impl Into<SystemTime>) -> Self {
        self.occurred_at = Some(at.into());
        self
    }

    /// The platform instance. Default: that of the SDK.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.message.instance_id = id.into();
        self
    }

    /// A further resource that was affected; up to 100 in all.
    pub fn resource(mut self, resource: Resource) -> Self {
        self.message.resources.push(resource.0);
        self
    }

    /// How it ended. Default: [`Outcome::Success`].
    pub fn outcome(mut self, outcome: Outcome) -> Self {
        self.message.outcome = outcome.into();
        self
    }

    /// The ticket or the comment that says why.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.message.reason = reason.into();
        self
    }

    /// One changed value: where (a JSON Pointer), what it was, what it is. `None` where
    /// there was or is none. Never pass a secret; [`diff`](Self::diff) takes care of that.
    pub fn change(self, path: impl Into<String>, old: Option<Value>, new: Option<Value>) -> Self {
        let text = |value: Option<Value>| value.map(|value| value.to_string());
        self.change_json(path, text(old), text(new))
    }

    /// As [`change`](Self::change), with values that are JSON texts already and are
    /// kept as they are.
    pub fn change_json(mut self, path: impl Into<String>, old: Option<String>, new: Option<String>) -> Self {
        self.message.changes.push(proto::Change { path: path.into(), old_value: old, new_value: new });
        self
    }

    /// What it changed, after what was given before; see [`Diff`].
    pub fn diff(mut self, diff: Diff) -> Self {
        self.message.changes.extend(diff.into_changes());
        self
    }

    /// What else belongs to it.
    pub fn details(mut self, details: &Value) -> Self {
        self.message.details_json = details.to_string();
        self
    }

    /// As [`details`](Self::details), a JSON text that is kept as it is.
    pub fn details_json(mut self, details: impl Into<String>) -> Self {
        self.message.details_json = details.into();
        self
    }

    /// The request that caused it, to join with traces and logs.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.message.request_id = id.into();
        self
    }

    /// Ties the entry of an intent ([`Stage::Intent`]) to that of its outcome
    /// ([`Stage::Outcome`]): the same id in both.
    pub fn operation(mut self, id: impl Into<String>, stage: Stage) -> Self {
        self.message.operation = Some(proto::Operation { id: id.into(), stage: stage.into() });
        self
    }

    /// The event, with its id and time fixed.
    #[must_use]
    pub fn build(self) -> AuditEvent {
        let (id, at) = id::fix(self.id, self.occurred_at);
        let mut message = self.message;
        message.id = id.to_string();
        message.occurred_at = Some(at.into());
        AuditEvent { id, message }
    }
}

impl From<AuditEventBuilder> for AuditEvent {
    fn from(builder: AuditEventBuilder) -> Self {
        builder.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn event_keeps_everything_over_the_contract() {
        let event = AuditEvent::builder(
            Actor::service_account("sa-1").on_behalf_of("u-2"),
            "api_key.revoked",
            Resource::new("api_key", "k-1"),
        )
        .resource(Resource::new("user", "u-2").name("bob@example.com"))
        .change("/expires", None, Some(json!("2026-01-01")))
        .details(&json!({"n": 1}))
        .operation("op-1", Stage::Outcome)
        .build();
        assert_eq!(event.as_proto().resources.len(), 2);
        assert_eq!(event.as_proto().changes[0].old_value, None);
        assert_eq!(event.as_proto().changes[0].new_value.as_deref(), Some("\"2026-01-01\""));
        assert_eq!(AuditEvent::from_proto(event.clone().into_proto()), event);
    }

    #[test]
    fn what_the_service_would_refuse_is_known_before() {
        let event = || AuditEvent::builder(Actor::user("a"), "model.enabled", Resource::new("model", "m"));
        let large = "x".repeat(1_024);
        let many = (0..1_001).fold(event(), |event, n| event.change(format!("/{n}"), None, None));
        for (event, field) in [
            (event().change("a", None, None), "changes[0].path"),
            (event().change("/a~2", None, None), "changes[0].path"),
            (event().change(format!("/{large}"), None, None), "changes[0].path"),
            (event().change_json("/a", None, Some("{".to_owned())), "changes[0].new_value"),
            (event().change_json("/a", Some("[".repeat(129) + &"]".repeat(129)), None), "changes[0].old_value"),
            (many, "changes"),
            (event().details_json("{"), "details_json"),
            (event().reason(format!("{large}x")), "reason"),
        ] {
            match event.build().check() {
                Err(Error::Rejected(rejection)) => assert_eq!(rejection.field, field),
                other => panic!("{field}: {other:?}"),
            }
        }
        assert!(event().change_json("/a~1/~0", Some("[\"[[\\\"[\"]".to_owned()), None).build().check().is_ok());
        let error = event().details(&json!("x".repeat(64_600))).build().check();
        assert!(matches!(error, Err(Error::TooLarge { limit: 64_512, .. })), "{error:?}");
    }
}
