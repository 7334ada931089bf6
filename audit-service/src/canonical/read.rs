//! Canonical JSON back into an entry.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use uuid::Uuid;

use crate::event::{Actor, ActorKind, Change, Entry, Event, Key, Operation, Outcome, Producer, Resource, Stage};
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
    Line::new(line)?.into_entry().ok_or_else(not_allowed)
}

fn not_allowed() -> Unreadable {
    Unreadable("a member has a value that is not allowed".into())
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

/// An entry as its line tells it, texts borrowed where they hold no escapes. What is absent is empty.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line<'a> {
    #[serde(borrow)]
    pub(crate) action: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) actor: LineActor<'a>,
    #[serde(borrow, default)]
    pub(crate) changes: Vec<LineChange<'a>>,
    #[serde(borrow, default)]
    pub(crate) details_json: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) instance_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) occurred_at: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) operation: Option<LineOperation<'a>>,
    #[serde(borrow)]
    pub(crate) outcome: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) producer: Option<LineProducer<'a>>,
    #[serde(borrow, default)]
    pub(crate) reason: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) recorded_at: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) recorded_by: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) request_id: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) resources: Vec<LineResource<'a>>,
    schema: u32,
    #[serde(borrow)]
    pub(crate) sequence: Cow<'a, str>,
}

/// Who did it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LineActor<'a> {
    #[serde(borrow, default)]
    pub(crate) display_name: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) ip_address: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) on_behalf_of: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) user_agent: Cow<'a, str>,
}

/// One changed value.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LineChange<'a> {
    #[serde(borrow)]
    pub(crate) new_value: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) old_value: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(crate) path: Cow<'a, str>,
}

/// A text that may be absent: in an option, serde borrows none that is not wrapped.
#[derive(Debug, Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// What ties entries together; without a stage it is single.
#[derive(Debug, Deserialize)]
pub(crate) struct LineOperation<'a> {
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(borrow, default = "single")]
    pub(crate) stage: Cow<'a, str>,
}

fn single() -> Cow<'static, str> {
    Cow::Borrowed(Stage::Single.name())
}

/// The writer's numbering; without an epoch it is the first.
#[derive(Debug, Deserialize)]
pub(crate) struct LineProducer<'a> {
    #[serde(borrow, default = "first")]
    pub(crate) epoch: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) sequence: Cow<'a, str>,
}

fn first() -> Cow<'static, str> {
    Cow::Borrowed("0")
}

/// What was affected.
#[derive(Debug, Deserialize)]
pub(crate) struct LineResource<'a> {
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    pub(crate) kind: Cow<'a, str>,
}

impl<'a> Line<'a> {
    /// Reads a line of canonical JSON; texts only, of which none is looked into.
    pub(crate) fn new(line: &'a str) -> Result<Self, Unreadable> {
        let read: Self = serde_json::from_str(line).map_err(|error| Unreadable(error.to_string()))?;
        match read.schema {
            1 => Ok(read),
            schema => Err(Unreadable(format!("schema is {schema}, known is 1"))),
        }
    }

    /// Its place in the order of every list.
    pub(crate) fn key(&self) -> Result<Key, Unreadable> {
        let key =
            || Some(Key { occurred_at_us: parse_rfc3339(&self.occurred_at)?, id: Uuid::try_parse(&self.id).ok()? });
        key().ok_or_else(not_allowed)
    }

    /// The name of its stage.
    pub(crate) fn stage(&self) -> &str {
        self.operation.as_ref().map_or(Stage::Single.name(), |operation| &operation.stage)
    }

    fn into_entry(self) -> Option<Entry> {
        let kind = match &*self.actor.kind {
            "" => None,
            name => Some(ActorKind::from_name(name)?),
        };
        let operation = match self.operation {
            Some(read) => Some(Operation { id: read.id.into(), stage: Stage::from_name(&read.stage)? }),
            None => None,
        };
        let producer = match self.producer {
            Some(read) => Some(Producer {
                id: read.id.into(),
                epoch: read.epoch.parse().ok()?,
                sequence: read.sequence.parse().ok()?,
            }),
            None => None,
        };
        let event = Event {
            id: Uuid::try_parse(&self.id).ok()?,
            occurred_at_us: parse_rfc3339(&self.occurred_at)?,
            instance_id: self.instance_id.into(),
            actor: Actor {
                id: self.actor.id.into(),
                kind,
                display_name: self.actor.display_name.into(),
                ip_address: self.actor.ip_address.into(),
                user_agent: self.actor.user_agent.into(),
                on_behalf_of: self.actor.on_behalf_of.into(),
            },
            action: self.action.into(),
            resources: self
                .resources
                .into_iter()
                .map(|read| Resource { kind: read.kind.into(), id: read.id.into(), name: read.name.into() })
                .collect(),
            outcome: Outcome::from_name(&self.outcome)?,
            reason: self.reason.into(),
            changes: self
                .changes
                .into_iter()
                .map(|read| Change {
                    path: read.path.into(),
                    old_value: read.old_value.map(|text| text.0.into()),
                    new_value: read.new_value.map(|text| text.0.into()),
                })
                .collect(),
            details_json: self.details_json.into(),
            request_id: self.request_id.into(),
            operation,
            producer,
        };
        Some(Entry {
            event,
            sequence: self.sequence.parse().ok()?,
            recorded_at_us: parse_rfc3339(&self.recorded_at)?,
            recorded_by: self.recorded_by.into(),
        })
    }
}
