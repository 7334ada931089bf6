//! Canonical JSON back into an entry.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use uuid::Uuid;

use crate::event::{Actor, ActorKind, Change, Entry, Event, Operation, Outcome, Producer, Resource, Stage};
use crate::time::parse_rfc3339;

/// A stored line that is not canonical JSON of a schema that we know: a defect, or somebody changed the database.
#[derive(Debug)]
pub struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unreadable entry: {}", self.0)
    }
}

impl std::error::Error for Unreadable {}

/// The entry that a line of canonical JSON tells.
pub fn parse(line: &str) -> Result<Entry, Unreadable> {
    let json: EntryJson<'_> = serde_json::from_str(line).map_err(|error| Unreadable(error.to_string()))?;
    if json.schema != 1 {
        return Err(Unreadable(format!("schema is {}, known is 1", json.schema)));
    }
    json.into_entry().ok_or_else(|| Unreadable("a member has a value that is not allowed".into()))
}

/// What facets count, without the cost of the rest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counted<'a> {
    /// The action.
    #[serde(borrow)]
    pub action: Cow<'a, str>,
    /// Who did it.
    #[serde(borrow)]
    pub actor: CountedActor<'a>,
    /// The instance.
    #[serde(borrow)]
    pub instance_id: Cow<'a, str>,
    /// What was affected.
    #[serde(borrow, default)]
    pub resources: Vec<CountedResource<'a>>,
}

/// The part of an actor that is counted.
#[derive(Debug, Deserialize)]
pub struct CountedActor<'a> {
    /// Its id.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
}

/// The part of a resource that is counted.
#[derive(Debug, Deserialize)]
pub struct CountedResource<'a> {
    /// Its type.
    #[serde(borrow, rename = "type")]
    pub kind: Cow<'a, str>,
}

/// What facets count of a line of canonical JSON.
pub fn counted(line: &str) -> Result<Counted<'_>, Unreadable> {
    serde_json::from_str(line).map_err(|error| Unreadable(error.to_string()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryJson<'a> {
    action: String,
    #[serde(borrow)]
    actor: ActorJson<'a>,
    #[serde(default)]
    changes: Vec<ChangeJson>,
    #[serde(default)]
    details_json: String,
    #[serde(borrow)]
    id: Cow<'a, str>,
    instance_id: String,
    #[serde(borrow)]
    occurred_at: Cow<'a, str>,
    #[serde(borrow)]
    operation: Option<OperationJson<'a>>,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
    #[serde(borrow)]
    producer: Option<ProducerJson<'a>>,
    #[serde(default)]
    reason: String,
    #[serde(borrow)]
    recorded_at: Cow<'a, str>,
    #[serde(default)]
    recorded_by: String,
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    resources: Vec<ResourceJson>,
    schema: u32,
    #[serde(borrow)]
    sequence: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct ActorJson<'a> {
    display_name: String,
    id: String,
    ip_address: String,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    on_behalf_of: String,
    user_agent: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChangeJson {
    new_value: Option<String>,
    old_value: Option<String>,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
struct OperationJson<'a> {
    id: String,
    #[serde(borrow)]
    stage: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct ProducerJson<'a> {
    #[serde(borrow)]
    epoch: Option<Cow<'a, str>>,
    id: String,
    #[serde(borrow)]
    sequence: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ResourceJson {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl EntryJson<'_> {
    fn into_entry(self) -> Option<Entry> {
        let kind = match self.actor.kind {
            Some(name) => Some(ActorKind::from_name(&name)?),
            None => None,
        };
        let operation = match self.operation {
            Some(json) => Some(Operation {
                id: json.id,
                stage: json.stage.map_or(Some(Stage::Single), |name| Stage::from_name(&name))?,
            }),
            None => None,
        };
        let producer = match self.producer {
            Some(json) => Some(Producer {
                id: json.id,
                epoch: json.epoch.map_or(Some(0), |epoch| epoch.parse().ok())?,
                sequence: json.sequence.parse().ok()?,
            }),
            None => None,
        };
        let event = Event {
            id: Uuid::try_parse(&self.id).ok()?,
            occurred_at_us: parse_rfc3339(&self.occurred_at)?,
            instance_id: self.instance_id,
            actor: Actor {
                id: self.actor.id,
                kind,
                display_name: self.actor.display_name,
                ip_address: self.actor.ip_address,
                user_agent: self.actor.user_agent,
                on_behalf_of: self.actor.on_behalf_of,
            },
            action: self.action,
            resources: self
                .resources
                .into_iter()
                .map(|json| Resource { kind: json.kind, id: json.id, name: json.name })
                .collect(),
            outcome: Outcome::from_name(&self.outcome)?,
            reason: self.reason,
            changes: self
                .changes
                .into_iter()
                .map(|json| Change { path: json.path, old_value: json.old_value, new_value: json.new_value })
                .collect(),
            details_json: self.details_json,
            request_id: self.request_id,
            operation,
            producer,
        };
        Some(Entry {
            event,
            sequence: self.sequence.parse().ok()?,
            recorded_at_us: parse_rfc3339(&self.recorded_at)?,
            recorded_by: self.recorded_by,
        })
    }
}
