//! A filter by the words of the contract, over events in memory, without our own code for any of it.

use std::collections::{BTreeMap, BTreeSet};

use audit_service::event::{Event, Stage};
use audit_service::filter::{ActionPattern, Filter, Stages};
use audit_service::store::{Facet, Facets, Order, Range};
use serde_json::Value;
use uuid::Uuid;

/// What a list must hold, in its order.
pub fn list(events: &[Event], filter: &Filter, range: Range, order: Order) -> Vec<Uuid> {
    let mut wanted: Vec<(i64, Uuid)> = events
        .iter()
        .filter(|event| range.start_us <= event.occurred_at_us && event.occurred_at_us < range.end_us)
        .filter(|event| matches(event, filter) && stage_wanted(event, filter, events))
        .map(|event| (event.occurred_at_us, event.id))
        .collect();
    wanted.sort();
    if order == Order::NewestFirst {
        wanted.reverse();
    }
    wanted.into_iter().map(|(_, id)| id).collect()
}

/// What the entries of a list hold.
pub fn facets(events: &[Event], listed: &[Uuid], limit: usize) -> Facets {
    let listed: BTreeSet<&Uuid> = listed.iter().collect();
    let ranked = |values: fn(&Event) -> BTreeSet<&String>| {
        let mut counts: BTreeMap<&String, u64> = BTreeMap::new();
        for value in events.iter().filter(|event| listed.contains(&event.id)).flat_map(values) {
            *counts.entry(value).or_default() += 1;
        }
        let mut facets: Vec<Facet> =
            counts.into_iter().map(|(value, count)| Facet { value: value.clone(), count }).collect();
        // By value already; the sort is stable.
        facets.sort_by_key(|facet| std::cmp::Reverse(facet.count));
        facets.truncate(limit);
        facets
    };
    Facets {
        actors: ranked(|event| BTreeSet::from([&event.actor.id])),
        actions: ranked(|event| BTreeSet::from([&event.action])),
        resource_types: ranked(|event| event.resources.iter().map(|resource| &resource.kind).collect()),
        instances: ranked(|event| BTreeSet::from([&event.instance_id])),
    }
}

fn stage_wanted(event: &Event, filter: &Filter, events: &[Event]) -> bool {
    let Some(operation) = &event.operation else {
        return match &filter.stages {
            Stages::Of(stages) => stages.values().contains(&Stage::Single),
            _ => true,
        };
    };
    match &filter.stages {
        Stages::All => true,
        Stages::Of(stages) => stages.values().contains(&operation.stage),
        Stages::Settled if operation.stage == Stage::Intent => !events.iter().any(|other| {
            other.instance_id == event.instance_id
                && other.operation.as_ref().is_some_and(|end| end.id == operation.id && end.stage == Stage::Outcome)
        }),
        Stages::Settled => true,
    }
}

fn matches(event: &Event, filter: &Filter) -> bool {
    let one_of = |list: &[String], have: &[&String]| list.is_empty() || list.iter().any(|value| have.contains(&value));
    let texts = |of: fn(&audit_service::event::Resource) -> [&String; 2]| -> Vec<&String> {
        event.resources.iter().flat_map(of).collect()
    };
    let actions = filter.actions.values();
    let action = actions.is_empty()
        || actions.iter().any(|pattern| match pattern {
            ActionPattern::Exact(action) => *action == event.action,
            ActionPattern::Of(resource) => event.action.starts_with(&format!("{resource}.")),
        });
    let outcomes = filter.outcomes.values();
    let paths: Vec<&String> = event.changes.iter().map(|change| &change.path).collect();
    let have = words(event);
    one_of(filter.actors.values(), &[&event.actor.id, &event.actor.display_name])
        && action
        && one_of(filter.resources.values(), &texts(|resource| [&resource.id, &resource.name]))
        && one_of(filter.resource_types.values(), &texts(|resource| [&resource.kind, &resource.kind]))
        && one_of(filter.instance_ids.values(), &[&event.instance_id])
        && (outcomes.is_empty() || outcomes.contains(&event.outcome))
        && one_of(filter.changed_paths.values(), &paths)
        && filter.words.iter().all(|word| have.contains(word))
}

fn words(event: &Event) -> BTreeSet<String> {
    let mut texts = vec![event.actor.display_name.clone(), event.reason.clone()];
    texts.extend(event.resources.iter().map(|resource| resource.name.clone()));
    let values = event.changes.iter().flat_map(|change| [change.old_value.as_deref(), change.new_value.as_deref()]);
    for json in values.flatten().chain(Some(event.details_json.as_str()).filter(|json| !json.is_empty())) {
        leaves(&serde_json::from_str(json).unwrap(), &mut texts);
    }
    texts
        .iter()
        .flat_map(|text| text.split(|char: char| !char.is_alphanumeric()).map(str::to_lowercase).collect::<Vec<_>>())
        .filter(|word| !word.is_empty())
        .collect()
}

fn leaves(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| leaves(value, texts)),
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            texts.push(name.clone());
            leaves(value, texts);
        }),
        Value::String(text) => texts.push(text.clone()),
        bare => texts.push(bare.to_string()),
    }
}
