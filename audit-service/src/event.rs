//! What happened: an event as its writer tells it, and the entry that the log keeps of it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An administrative action, checked and with defaults settled. Absent text is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Made by the writer, once.
    pub id: Uuid,
    /// When it happened, in microseconds since the epoch.
    pub occurred_at_us: i64,
    /// Whose log it belongs to.
    pub instance_id: String,
    /// Who did it.
    pub actor: Actor,
    /// `<resource>.<verb>`.
    pub action: String,
    /// What was affected, at least one; the first is the one acted on.
    pub resources: Vec<Resource>,
    /// How it ended.
    pub outcome: Outcome,
    /// The ticket or comment that says why.
    pub reason: String,
    /// What changed, a path at a time.
    pub changes: Vec<Change>,
    /// One JSON text as it came, or empty.
    pub details_json: String,
    /// The request that caused it.
    pub request_id: String,
    /// Ties an intent to its outcome. Absent, the event stands alone.
    pub operation: Option<Operation>,
    /// The writer's numbering; no part of the content.
    pub producer: Option<Producer>,
}

impl Event {
    /// Which part of an operation it tells.
    pub fn stage(&self) -> Stage {
        self.operation.as_ref().map_or(Stage::Single, |operation| operation.stage)
    }
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actor {
    /// A stable id.
    pub id: String,
    /// What kind of actor, where that is known.
    pub kind: Option<ActorKind>,
    /// For people to read.
    pub display_name: String,
    /// IPv4 or IPv6, as it came.
    pub ip_address: String,
    /// As it came.
    pub user_agent: String,
    /// The id of the person for whom the actor acted.
    pub on_behalf_of: String,
}

/// What an action affected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// As in `model`.
    pub kind: String,
    /// A stable id.
    pub id: String,
    /// For people to read.
    pub name: String,
}

/// One changed value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// A JSON Pointer; empty is the whole resource.
    pub path: String,
    /// A JSON text, absent when there was none.
    pub old_value: Option<String>,
    /// A JSON text, absent when there is none any more.
    pub new_value: Option<String>,
}

/// Ties the entries of one operation together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The same for intent and outcome.
    pub id: String,
    /// Which of them this is.
    pub stage: Stage,
}

/// Numbers what one SDK instance recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Producer {
    /// Who numbers.
    pub id: String,
    /// Rises when the producer starts numbering anew.
    pub epoch: u64,
    /// The event's number in its epoch.
    pub sequence: u64,
}

/// Numbers that a producer gave to events it dropped by policy, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Who numbered.
    pub producer_id: String,
    /// In which epoch.
    pub epoch: u64,
    /// First dropped number.
    pub first: u64,
    /// Last dropped number.
    pub last: u64,
}

/// An entry of the log: the event, and what the service added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The event as it was written.
    pub event: Event,
    /// Its place in its instance's log, from 0 without gaps.
    pub sequence: u64,
    /// When it was stored.
    pub recorded_at_us: i64,
    /// The authenticated writer; empty where nobody is authenticated.
    pub recorded_by: String,
}

impl Entry {
    /// Its place in the order of every list.
    pub fn key(&self) -> Key {
        Key { occurred_at_us: self.event.occurred_at_us, id: self.event.id }
    }
}

/// The order of lists and exports by time. Ties of time are broken by the id, so it is total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// When it happened.
    pub occurred_at_us: i64,
    /// Which event.
    pub id: Uuid,
}

/// Gives an enum the numbers and names of the contract; the database holds the numbers, canonical JSON the names.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $number:literal $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$value_doc])* $value = $number,)+ }

        impl $name {
            /// All values.
            pub const ALL: &[Self] = &[$(Self::$value,)+];

            /// The value's number in the contract.
            pub fn number(self) -> i32 {
                self as i32
            }

            /// The value's full name in the contract.
            pub fn name(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }

            /// The value with a number, if there is one.
            pub fn from_number(number: i32) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.number() == number)
            }

            /// The value with a name, if there is one.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }
    };
}

named! {
    /// What kind of actor.
    ActorKind {
        /// A person.
        User = 1 "ACTOR_KIND_USER",
        /// A program with an account of its own.
        ServiceAccount = 2 "ACTOR_KIND_SERVICE_ACCOUNT",
        /// The platform itself.
        System = 3 "ACTOR_KIND_SYSTEM",
    }
}

named! {
    /// How an action ended.
    Outcome {
        /// It was done.
        Success = 1 "OUTCOME_SUCCESS",
        /// It was tried and failed.
        Failure = 2 "OUTCOME_FAILURE",
        /// It was refused to the actor.
        Denied = 3 "OUTCOME_DENIED",
        /// Not known, or not known yet.
        Unknown = 4 "OUTCOME_UNKNOWN",
    }
}

named! {
    /// Which part of an operation an entry tells.
    Stage {
        /// The whole action.
        Single = 1 "STAGE_SINGLE",
        /// What is about to be done.
        Intent = 2 "STAGE_INTENT",
        /// How it ended.
        Outcome = 3 "STAGE_OUTCOME",
    }
}
