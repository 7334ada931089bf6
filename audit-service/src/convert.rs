//! Between the messages of the contract and our own types. What the contract allows is checked here, and only here.

mod entry;
mod event;
mod hold;
mod query;

pub(crate) use entry::{entry, interval, micros, open_intent};
pub(crate) use event::{dropped, event};
pub(crate) use hold::{hold, hold_details, hold_id, new_hold, reason};
pub(crate) use query::{filter, instance_id, order};

use service_core::error::{Reason, Violation};

/// Bytes of an id or a name.
pub(crate) const MAX_NAME_BYTES: usize = 256;
/// Bytes of a user agent, a reason or a path.
pub(crate) const MAX_TEXT_BYTES: usize = 1_024;

/// Checks an optional text: its length, and that it holds no control characters.
fn text(field: impl Fn() -> String, value: &str, max_bytes: usize) -> Result<(), Violation> {
    if value.len() > max_bytes {
        let field = field();
        let message = format!("{field} has {} bytes, allowed are {max_bytes}", value.len());
        return Err(Violation::invalid(field, message));
    }
    match value.chars().find(|char| char.is_control()) {
        None => Ok(()),
        Some(control) => {
            let field = field();
            let message = format!("{field} holds the control character U+{:04X}, allowed are none", u32::from(control));
            Err(Violation::invalid(field, message))
        }
    }
}

/// Checks a text that must be there.
fn required(field: impl Fn() -> String, value: &str, max_bytes: usize) -> Result<(), Violation> {
    if value.is_empty() {
        return Err(Violation::required(field()));
    }
    text(field, value, max_bytes)
}

/// Whether a text is a part of an action: `[a-z][a-z0-9_]*`.
fn is_action_part(part: &str) -> bool {
    part.starts_with(|first: char| first.is_ascii_lowercase())
        && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Checks a JSON Pointer (RFC 6901): empty, or `/` before each step, with `~` only in `~0` and `~1`.
fn json_pointer(field: impl Fn() -> String, pointer: &str) -> Result<(), Violation> {
    text(&field, pointer, MAX_TEXT_BYTES)?;
    let well_formed = (pointer.is_empty() || pointer.starts_with('/'))
        && pointer.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
    if well_formed {
        return Ok(());
    }
    let field = field();
    let message = format!(
        "{field} is {:?}, allowed is a JSON Pointer (RFC 6901): empty, or starting with /, with ~ only as ~0 or ~1",
        shown(pointer)
    );
    Err(Violation::new(Reason::InvalidJsonPointer, field, message))
}

/// The beginning of a value, for messages: the client knows the rest, the log need not hold it.
fn shown(value: &str) -> &str {
    let end = (0..=value.len().min(64)).rev().find(|end| value.is_char_boundary(*end));
    end.map_or("", |end| &value[..end])
}
