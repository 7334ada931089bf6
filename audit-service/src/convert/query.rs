//! What is asked for.

use activity_proto::audit::v1 as proto;
use service_core::error::{Error, Reason, Result, Violation};

use super::{MAX_NAME_BYTES, MAX_TEXT_BYTES, is_action_part, json_pointer, required, shown, text};
use crate::event::{Outcome, Stage};
use crate::filter::{ActionPattern, Filter, MAX_WORDS, OneOf, Stages};
use crate::store::Order;
use crate::words;

const MAX_VALUES: usize = 1_000;

/// Checks a filter. `stages` is what no stages mean.
pub(crate) fn filter(wire: Option<proto::AuditFilter>, stages: Stages) -> Result<Filter> {
    let wire = wire.unwrap_or_default();
    Ok(Filter {
        actors: names("filter.actors", wire.actors)?,
        actions: list("filter.actions", wire.actions, action)?,
        resources: names("filter.resources", wire.resources)?,
        resource_types: names("filter.resource_types", wire.resource_types)?,
        instance_ids: names("filter.instance_ids", wire.instance_ids)?,
        outcomes: list("filter.outcomes", wire.outcomes, |field, number| {
            Outcome::from_number(number).ok_or_else(|| unknown(field, number, "Outcome"))
        })?,
        changed_paths: list("filter.changed_paths", wire.changed_paths, changed_path)?,
        stages: stages_or(wire.stages, stages)?,
        words: filter_words(&wire.text)?,
    })
}

/// Checks the name of the one log that is asked for. One that no event can have is refused before a database sees it.
pub(crate) fn instance_id(field: &str, value: &str) -> Result<()> {
    Ok(required(|| field.to_owned(), value, MAX_NAME_BYTES)?)
}

/// The stages asked for, or those that none mean.
fn stages_or(wire: Vec<i32>, none: Stages) -> Result<Stages> {
    if wire.is_empty() {
        return Ok(none);
    }
    let stages = list("filter.stages", wire, |field, number| {
        Stage::from_number(number).ok_or_else(|| unknown(field, number, "Stage but UNSPECIFIED"))
    })?;
    Ok(Stages::Of(stages))
}

/// The order of a list.
pub(crate) fn order(wire: i32) -> Result<Order> {
    match proto::Order::try_from(wire) {
        Ok(proto::Order::Unspecified | proto::Order::NewestFirst) => Ok(Order::NewestFirst),
        Ok(proto::Order::OldestFirst) => Ok(Order::OldestFirst),
        Err(_) => Err(unknown("order".into(), wire, "Order").into()),
    }
}

fn names(field: &str, values: Vec<String>) -> Result<OneOf<String>> {
    list(field, values, |field, value| required(|| field.clone(), &value, MAX_NAME_BYTES).map(|()| value))
}

fn list<T, U: Ord>(field: &str, values: Vec<T>, check: impl Fn(String, T) -> Result<U, Violation>) -> Result<OneOf<U>> {
    if values.len() > MAX_VALUES {
        let message = format!("{field} has {} values, allowed are {MAX_VALUES}", values.len());
        return Err(Error::invalid(field, message));
    }
    values
        .into_iter()
        .enumerate()
        .map(|(at, value)| check(format!("{field}[{at}]"), value).map_err(Error::from))
        .collect()
}

fn action(field: String, value: String) -> Result<ActionPattern, Violation> {
    required(|| field.clone(), &value, MAX_NAME_BYTES)?;
    match value.split_once('.') {
        Some((resource, "*")) if is_action_part(resource) => Ok(ActionPattern::Of(resource.to_owned())),
        Some((resource, verb)) if is_action_part(resource) && is_action_part(verb) => Ok(ActionPattern::Exact(value)),
        _ => {
            let message = format!(
                "{field} is {:?}, allowed is an action such as model.enabled, or all of a resource such as model.*",
                shown(&value)
            );
            Err(Violation::new(Reason::InvalidAction, field, message))
        }
    }
}

/// A changed path. The wildcard of actions would be a key named `*` here, and find nothing.
fn changed_path(field: String, path: String) -> Result<String, Violation> {
    json_pointer(|| field.clone(), &path)?;
    if !path.ends_with("/*") {
        return Ok(path);
    }
    let message = format!("{field} is {:?}, allowed are exact paths such as /routing/default/model", shown(&path));
    Err(Violation::new(Reason::InvalidJsonPointer, field, message))
}

fn filter_words(wire: &str) -> Result<Vec<String>> {
    text(|| "filter.text".into(), wire, MAX_TEXT_BYTES)?;
    let mut words: Vec<String> = Vec::new();
    words::of_text(wire, &mut |word| words.push(word.to_owned()));
    words.sort_unstable();
    words.dedup();
    if words.len() > MAX_WORDS {
        let message = format!("filter.text has {} words, allowed are {MAX_WORDS}", words.len());
        return Err(Error::invalid("filter.text", message));
    }
    if words.is_empty() && !wire.is_empty() {
        // Answering everything to somebody who asked for something would mislead.
        let message = format!(
            "filter.text is {:?}, allowed are words of letters and digits, or no text for everything",
            shown(wire)
        );
        return Err(Error::invalid("filter.text", message));
    }
    Ok(words)
}

fn unknown(field: String, number: i32, name: &str) -> Violation {
    let message = format!("{field} is {number}, allowed are the values of {name}");
    Violation::invalid(field, message)
}
