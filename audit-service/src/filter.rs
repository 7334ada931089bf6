//! Which entries a query wants: one exact predicate, and the index terms that can narrow the search for them.
//!
//! Lists, tails and exports all decide by [`Filter::matches`]. The index behind the store only ever narrows: every
//! term that a matching entry must have is among the `terms` of its line, and what the index finds is checked again.

mod needles;

use serde::{Deserialize, Serialize};
use service_core::auth::{Access, Instances};

use crate::canonical::Line;
use crate::event::{Event, Outcome, Stage};
use crate::words;

pub(crate) use needles::Needles;

/// Values in one list are alternatives, lists narrow each other, an empty list narrows nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Actor ids or display names.
    pub actors: OneOf<String>,
    /// Actions.
    pub actions: OneOf<ActionPattern>,
    /// Ids or names of any affected resource.
    pub resources: OneOf<String>,
    /// Types of any affected resource.
    pub resource_types: OneOf<String>,
    /// Instances.
    pub instance_ids: OneOf<String>,
    /// Outcomes.
    pub outcomes: OneOf<Outcome>,
    /// Changed paths.
    pub changed_paths: OneOf<String>,
    /// Stages.
    pub stages: Stages,
    /// Words that must all occur; at most [`MAX_WORDS`].
    pub words: Vec<String>,
}

/// Words that a filter may ask for.
pub const MAX_WORDS: usize = 32;

/// Alternatives, sorted so that long lists cost little.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneOf<T>(Vec<T>);

impl<T> Default for OneOf<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> FromIterator<T> for OneOf<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values: Vec<T> = values.into_iter().collect();
        values.sort_unstable();
        values.dedup();
        Self(values)
    }
}

impl<T> OneOf<T> {
    /// Whether it narrows nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The alternatives, in order and each once.
    pub fn values(&self) -> &[T] {
        &self.0
    }
}

impl<T: Ord> OneOf<T> {
    fn has(&self, value: &T) -> bool {
        self.0.is_empty() || self.0.binary_search(value).is_ok()
    }
}

impl OneOf<String> {
    fn has_any<'a>(&self, values: impl IntoIterator<Item = &'a str>) -> bool {
        self.0.is_empty()
            || values.into_iter().any(|value| self.0.binary_search_by(|own| own.as_str().cmp(value)).is_ok())
    }
}

/// Which actions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ActionPattern {
    /// One action.
    Exact(String),
    /// All actions of a resource: `api_key` for `api_key.*`.
    Of(String),
}

/// Which stages.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Stages {
    /// What an operator wants to see: single entries, outcomes, and intents whose outcome has not come. The last
    /// cannot be told from the entry; the store decides it when it reads, for an outcome may come at any time.
    #[default]
    Settled,
    /// Every entry: what tails and exports tell.
    All,
    /// These.
    Of(OneOf<Stage>),
}

impl Filter {
    /// Every entry, whatever its stage.
    pub fn everything() -> Self {
        Self { stages: Stages::All, ..Self::default() }
    }

    /// What an event says of itself, in every list, and as many of its words as may be asked for.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of(event: &Event) -> Self {
        let mut words = Vec::new();
        texts_of(event).for_each(|text| text.words(&mut |word| words.push(word.to_owned())));
        words.truncate(MAX_WORDS);
        Self {
            actors: OneOf::from_iter([event.actor.id.clone()]),
            actions: OneOf::from_iter([ActionPattern::Exact(event.action.clone())]),
            resources: event.resources.iter().map(|resource| resource.name.clone()).collect(),
            resource_types: event.resources.iter().map(|resource| resource.kind.clone()).collect(),
            instance_ids: OneOf::from_iter([event.instance_id.clone()]),
            outcomes: OneOf::from_iter([event.outcome]),
            changed_paths: event.changes.iter().map(|change| change.path.clone()).collect(),
            stages: Stages::Of(OneOf::from_iter([event.stage()])),
            words,
        }
    }

    /// The same of what a caller may see only; `None` where that is nothing.
    pub fn within(&self, access: &Access) -> Option<Self> {
        let Instances::Only(seen) = access.instances() else {
            return Some(self.clone());
        };
        let instance_ids: OneOf<String> =
            seen.iter().filter(|instance| self.instance_ids.has(instance)).cloned().collect();
        (!instance_ids.is_empty()).then(|| Self { instance_ids, ..self.clone() })
    }

    /// Whether it looks at more than the stage that no stages mean.
    pub fn narrows(&self) -> bool {
        !self.terms().is_empty()
    }

    /// Whether an entry is wanted, but for the question whether an intent still stands open ([`Stages::Settled`]).
    pub fn matches(&self, event: &Event) -> bool {
        self.instance_ids.has_any([event.instance_id.as_str()])
            && self.outcomes.has(&event.outcome)
            && self.has_action(&event.action)
            && self.actors.has_any([event.actor.id.as_str(), event.actor.display_name.as_str()])
            && match &self.stages {
                Stages::Settled | Stages::All => true,
                Stages::Of(stages) => stages.has(&event.stage()),
            }
            && self.resource_types.has_any(event.resources.iter().map(|resource| resource.kind.as_str()))
            && self
                .resources
                .has_any(event.resources.iter().flat_map(|resource| [resource.id.as_str(), resource.name.as_str()]))
            && self.changed_paths.has_any(event.changes.iter().map(|change| change.path.as_str()))
            && self.has_words(event)
    }

    fn has_action(&self, action: &str) -> bool {
        self.actions.is_empty()
            || self.actions.values().iter().any(|pattern| match pattern {
                ActionPattern::Exact(exact) => exact == action,
                ActionPattern::Of(resource) => resource_of(action) == resource,
            })
    }

    fn has_words(&self, event: &Event) -> bool {
        let mut missing: Vec<&str> = self.words.iter().map(String::as_str).collect();
        if !missing.is_empty() {
            texts_of(event).for_each(|text| text.words(&mut |word| missing.retain(|wanted| *wanted != word)));
        }
        missing.is_empty()
    }

    /// What an entry must have in the index to be wanted: at least one term of each list. Empty where the index
    /// has nothing to say.
    pub fn terms(&self) -> Vec<Vec<u64>> {
        let texts = |kind, list: &OneOf<String>| list.values().iter().map(|value| term(kind, value)).collect();
        let mut lists: Vec<Vec<u64>> = vec![
            texts(Kind::Actor, &self.actors),
            self.actions
                .values()
                .iter()
                .map(|pattern| match pattern {
                    ActionPattern::Exact(action) => term(Kind::Action, action),
                    ActionPattern::Of(resource) => term(Kind::ActionOf, resource),
                })
                .collect(),
            texts(Kind::Resource, &self.resources),
            texts(Kind::ResourceType, &self.resource_types),
            self.outcomes.values().iter().map(|outcome| term(Kind::Outcome, outcome.name())).collect(),
            texts(Kind::ChangedPath, &self.changed_paths),
            texts(Kind::Instance, &self.instance_ids),
        ];
        if let Stages::Of(stages) = &self.stages {
            lists.push(stages.values().iter().map(|stage| term(Kind::Stage, stage.name())).collect());
        }
        lists.extend(self.words.iter().map(|word| vec![term(Kind::Word, word)]));
        lists.retain(|list| !list.is_empty());
        lists
    }
}

/// Gives each term of an entry to `sink`, some more than once: a pure function, so that an index can be made anew from
/// the entries.
pub(crate) fn terms(line: &Line<'_>, sink: &mut impl FnMut(u64)) {
    sink(term(Kind::Instance, &line.instance_id));
    sink(term(Kind::ActorId, &line.actor.id));
    sink(term(Kind::Actor, &line.actor.id));
    sink(term(Kind::Actor, &line.actor.display_name));
    sink(term(Kind::Action, &line.action));
    sink(term(Kind::ActionOf, resource_of(&line.action)));
    sink(term(Kind::Outcome, &line.outcome));
    sink(term(Kind::Stage, line.stage()));
    for resource in &line.resources {
        sink(term(Kind::ResourceType, &resource.kind));
        sink(term(Kind::Resource, &resource.id));
        sink(term(Kind::Resource, &resource.name));
    }
    line.changes.iter().for_each(|change| sink(term(Kind::ChangedPath, &change.path)));
    texts_of_line(line).for_each(|text| text.words(&mut |word| sink(term(Kind::Word, word))));
}

/// What a term is about: the upper four bits of it. Stored, so the numbers never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An actor's id or display name: what a filter asks for.
    Actor = 1,
    /// An actor's id: what facets count.
    ActorId = 2,
    Action = 3,
    /// All actions of a resource.
    ActionOf = 4,
    /// An id or a name.
    Resource = 5,
    ResourceType = 6,
    Outcome = 7,
    Stage = 8,
    ChangedPath = 9,
    Word = 10,
    Instance = 11,
    /// Of no text: intents whose outcome is known to be there.
    Settled = 12,
}

impl Kind {
    /// Those that tell something of an entry by itself, in the order of their terms.
    pub(crate) const OF_ENTRIES: [Self; 11] = [
        Self::Actor,
        Self::ActorId,
        Self::Action,
        Self::ActionOf,
        Self::Resource,
        Self::ResourceType,
        Self::Outcome,
        Self::Stage,
        Self::ChangedPath,
        Self::Word,
        Self::Instance,
    ];
}

/// Bits of a term below its kind.
pub(crate) const TERM_BITS: u32 = 60;

/// Intents whose outcome is known to be there.
pub(crate) const SETTLED: u64 = (Kind::Settled as u64) << TERM_BITS;

/// Intents.
pub(crate) fn intents() -> u64 {
    term(Kind::Stage, Stage::Intent.name())
}

/// 64 bits that stand for a term: its kind, and FNV-1a of it, mixed so that all bits are good. Stored, so it never
/// changes; two terms with one hash only make the index narrow less.
pub(crate) fn term(kind: Kind, text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = text.bytes().fold(step(0xcbf2_9ce4_8422_2325, kind as u8), step);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    ((kind as u64) << TERM_BITS) | ((hash ^ (hash >> 33)) >> (u64::BITS - TERM_BITS))
}

/// The part before the dot.
fn resource_of(action: &str) -> &str {
    action.split_once('.').map_or(action, |(resource, _)| resource)
}

/// A text in which words are looked for.
enum Told<'a> {
    Plain(&'a str),
    Json(&'a str),
}

impl Told<'_> {
    fn words(&self, sink: &mut impl FnMut(&str)) {
        match self {
            Self::Plain(text) => words::of_text(text, sink),
            Self::Json(text) => words::of_json(text, sink),
        }
    }
}

/// Where words are looked for: the names, the reason, the values and the details.
fn told<'a>(
    names: impl Iterator<Item = &'a str>,
    reason: &'a str,
    values: impl Iterator<Item = &'a str>,
    details: &'a str,
) -> impl Iterator<Item = Told<'a>> {
    let plain = names.chain([reason]).map(Told::Plain);
    plain.chain(values.chain([details]).map(Told::Json))
}

fn texts_of(event: &Event) -> impl Iterator<Item = Told<'_>> {
    let names = event.resources.iter().map(|resource| resource.name.as_str());
    let values = event.changes.iter().flat_map(|change| [&change.old_value, &change.new_value]).flatten();
    told(
        std::iter::once(event.actor.display_name.as_str()).chain(names),
        &event.reason,
        values.map(String::as_str),
        &event.details_json,
    )
}

fn texts_of_line<'a>(line: &'a Line<'_>) -> impl Iterator<Item = Told<'a>> {
    let names = line.resources.iter().map(|resource| &*resource.name);
    let values = line.changes.iter().flat_map(|change| [&change.old_value, &change.new_value]).flatten();
    told(
        std::iter::once(&*line.actor.display_name).chain(names),
        &line.reason,
        values.map(|text| &*text.0),
        &line.details_json,
    )
}
