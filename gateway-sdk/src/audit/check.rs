//! What the service takes, checked here where nothing may be refused later, and texts made to fit.

use activity_proto::audit::v1 as proto;
use serde::de::IgnoredAny;

use crate::ErrorReason;
use crate::error::Rejection;

/// The contract's limits: of an id or a name, and of a user agent or a reason.
pub(crate) const MAX_NAME_BYTES: usize = 256;
pub(crate) const MAX_TEXT_BYTES: usize = 1_024;
const MAX_RESOURCES: usize = 100;
const MAX_CHANGES: usize = 1_000;
const MAX_DEPTH: usize = 128;
/// Its actions are those of the service alone.
const OWN: &str = "audit_log";

/// Whether the service would take this event, as far as can be told from here.
pub(super) fn check(event: &proto::AuditEvent, has_instance: bool) -> Result<(), Rejection> {
    if !event.instance_id.is_empty() || !has_instance {
        required("instance_id", &event.instance_id)?;
    }
    let actor = event.actor.as_ref().ok_or_else(|| missing("actor"))?;
    required("actor.id", &actor.id)?;
    text("actor.display_name", &actor.display_name, MAX_NAME_BYTES)?;
    text("actor.user_agent", &actor.user_agent, MAX_TEXT_BYTES)?;
    text("actor.on_behalf_of", &actor.on_behalf_of, MAX_NAME_BYTES)?;
    action(&event.action)?;
    if event.resources.is_empty() || event.resources.len() > MAX_RESOURCES {
        let message = format!("there are {} resources, allowed are 1 to {MAX_RESOURCES}", event.resources.len());
        return Err(rejection("resources", message));
    }
    for (at, resource) in event.resources.iter().enumerate() {
        required(&format!("resources[{at}].type"), &resource.r#type)?;
        required(&format!("resources[{at}].id"), &resource.id)?;
        text(&format!("resources[{at}].name"), &resource.name, MAX_NAME_BYTES)?;
    }
    text("reason", &event.reason, MAX_TEXT_BYTES)?;
    text("request_id", &event.request_id, MAX_NAME_BYTES)?;
    if !event.details_json.is_empty() && !is_json(&event.details_json) {
        let message = "details_json is no JSON text, or more than 128 deep".to_owned();
        return Err(Rejection { reason: ErrorReason::InvalidJson, message, field: "details_json".to_owned() });
    }
    if event.changes.len() > MAX_CHANGES {
        let message = format!("there are {} changes, allowed are {MAX_CHANGES}", event.changes.len());
        return Err(rejection("changes", message));
    }
    for (at, change) in event.changes.iter().enumerate() {
        let field = format!("changes[{at}].path");
        text(&field, &change.path, MAX_TEXT_BYTES)?;
        if !is_pointer(&change.path) {
            let message = format!("{field} is no JSON Pointer (RFC 6901)");
            return Err(Rejection { reason: ErrorReason::InvalidJsonPointer, message, field });
        }
        for (name, value) in [("old_value", &change.old_value), ("new_value", &change.new_value)] {
            if value.as_ref().is_some_and(|value| !is_json(value)) {
                let field = format!("changes[{at}].{name}");
                let message = format!("{field} is no JSON text, or more than {MAX_DEPTH} deep");
                return Err(Rejection { reason: ErrorReason::InvalidJson, message, field });
            }
        }
    }
    Ok(())
}

fn is_pointer(path: &str) -> bool {
    (path.is_empty() || path.starts_with('/')) && path.split('~').skip(1).all(|after| after.starts_with(['0', '1']))
}

/// Whether a text is one JSON text, no deeper than the contract allows.
pub(super) fn is_json(text: &str) -> bool {
    // It walks over what it ignores without a stack, and so without a limit.
    serde_json::from_str::<IgnoredAny>(text).is_ok() && depth(text) <= MAX_DEPTH
}

fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut inside, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = inside,
            b'"' => inside = !inside,
            b'[' | b'{' if !inside => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !inside => depth -= 1,
            _ => {}
        }
    }
    deepest
}

fn action(action: &str) -> Result<(), Rejection> {
    let part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_lowercase())
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    text("action", action, MAX_NAME_BYTES)?;
    match action.split_once('.') {
        Some((resource, verb)) if part(resource) && part(verb) && resource != OWN => Ok(()),
        _ => {
            let message = format!(
                "action is {action:?}, allowed is <resource>.<verb> in lower snake case, such as model.enabled, \
                 and none of {OWN}"
            );
            Err(Rejection { reason: ErrorReason::InvalidAction, message, field: "action".to_owned() })
        }
    }
}

fn rejection(field: &str, message: String) -> Rejection {
    Rejection { reason: ErrorReason::InvalidArgument, message, field: field.to_owned() }
}

fn missing(field: &str) -> Rejection {
    Rejection { reason: ErrorReason::Required, message: format!("{field} is required"), field: field.to_owned() }
}

fn required(field: &str, value: &str) -> Result<(), Rejection> {
    if value.is_empty() { Err(missing(field)) } else { text(field, value, MAX_NAME_BYTES) }
}

fn text(field: &str, value: &str, most: usize) -> Result<(), Rejection> {
    if value.len() > most {
        return Err(rejection(field, format!("{field} has {} bytes, allowed are {most}", value.len())));
    }
    if value.chars().any(char::is_control) {
        return Err(rejection(field, format!("{field} holds a control character, allowed are none")));
    }
    Ok(())
}

/// The same text, or where it is too long its beginning and `…`, with U+FFFD for control
/// characters.
pub(crate) fn fit_text(text: &str, most: usize) -> String {
    let text = text.replace(char::is_control, "\u{FFFD}");
    if text.len() <= most {
        return text;
    }
    let room = most - '…'.len_utf8();
    let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// As [`fit_text`], and `unknown` where there is none.
pub(crate) fn fit_name(text: &str) -> String {
    if text.is_empty() { "unknown".to_owned() } else { fit_text(text, MAX_NAME_BYTES) }
}

pub(crate) fn fit_resource(resource: proto::Resource) -> proto::Resource {
    proto::Resource {
        r#type: fit_name(&resource.r#type),
        id: fit_name(&resource.id),
        name: fit_text(&resource.name, MAX_NAME_BYTES),
    }
}

#[cfg(feature = "layer")]
pub(crate) fn fit_actor(actor: crate::Actor) -> crate::Actor {
    actor.map(|actor| proto::Actor {
        id: fit_name(&actor.id),
        display_name: fit_text(&actor.display_name, MAX_NAME_BYTES),
        user_agent: fit_text(&actor.user_agent, MAX_TEXT_BYTES),
        on_behalf_of: fit_text(&actor.on_behalf_of, MAX_NAME_BYTES),
        ..actor
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters_and_it_shows() {
        assert_eq!(fit_text("short", 256), "short");
        assert_eq!(fit_text("a\nb\u{7f}", 256), "a\u{FFFD}b\u{FFFD}");
        assert_eq!(fit_text(&"x".repeat(257), 256), format!("{}…", "x".repeat(253)));
        assert_eq!(fit_text(&"ö".repeat(129), 256), format!("{}…", "ö".repeat(126)));
        assert_eq!(fit_name(""), "unknown");
    }
}
