//! Canonical JSON (RFC 8785) of an entry: the bytes that are hashed, stored and exported.
//!
//! ```text
//! {"action" … "outcome" "producer"? "reason"  "recordedAt" "recordedBy"?  "requestId" "resources"  "schema":1,"sequence"}
//! └────── head: made and hashed once, ─────┘ └── made by the writer ────┘ └ rest: made once ─────┘ └ made by the writer ┘
//!         in the caller's task
//! content hash: head and rest without the producer       leaf hash: SHA-256(0x00 ‖ all of it), RFC 6962
//! ```
//!
//! RFC 8785 sorts object members; the text is written in that order straight from the structs. What only the writer
//! knows sorts late, so that the long part is made and hashed before the group commit and the writer adds little to
//! both. The format is frozen by `tests/golden`; a later one is `"schema":2` beside it.

use sha2::{Digest, Sha256};

use crate::event::{Change, Entry, Event, Producer, Stage};
use crate::merkle::{self, LEAF};
use crate::time::push_rfc3339;

mod read;

pub use read::{Counted, CountedActor, CountedResource, Unreadable, counted, parse};
pub(crate) use read::{Line, LineChange, LineResource, Text};

/// Room for what the writer adds, so that the text is not moved.
const WRITER_BYTES: usize = 128;

/// An event's canonical form, with a gap for what the writer knows.
#[derive(Debug, Clone)]
pub struct Prefix {
    head: String,
    rest: String,
    /// Over the leaf byte and `head`.
    leaf: Sha256,
    /// SHA-256 over the event's canonical JSON without `producer`: the same id with another is a conflict.
    pub content_hash: [u8; 32],
}

impl Prefix {
    /// Writes all of an event, and hashes what can be hashed of it.
    pub fn new(event: &Event) -> Self {
        let mut head = String::with_capacity(estimate(event));
        push_event_to_outcome(&mut head, event);
        let producer = head.len();
        if let Some(numbers) = &event.producer {
            push_producer(&mut head, numbers);
        }
        let reason = head.len();
        push_text(&mut head, "reason", &event.reason);
        let mut rest = String::new();
        push_event_from_request_id(&mut rest, event);

        let mut content = Sha256::new();
        content.update(&head.as_bytes()[..producer]);
        content.update(&head.as_bytes()[reason..]);
        content.update(rest.as_bytes());
        content.update(b"}");
        let mut leaf = Sha256::new();
        leaf.update(LEAF);
        leaf.update(head.as_bytes());
        Self { head, rest, leaf, content_hash: content.finalize().into() }
    }

    /// Bytes of the text so far.
    pub fn len(&self) -> usize {
        self.head.len() + self.rest.len()
    }

    /// Never: an event has at least its braces.
    pub fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// The entry's whole canonical JSON and its leaf hash.
    pub fn finish(&self, sequence: u64, recorded_at_us: i64, recorded_by: &str) -> (String, [u8; 32]) {
        let mut text = String::with_capacity(self.len() + WRITER_BYTES + recorded_by.len());
        text.push_str(&self.head);
        text.push_str(",\"recordedAt\":\"");
        push_rfc3339(&mut text, recorded_at_us);
        text.push('"');
        push_text(&mut text, "recordedBy", recorded_by);
        text.push_str(&self.rest);
        text.push_str(",\"schema\":1,\"sequence\":\"");
        push_number(&mut text, sequence);
        text.push_str("\"}");
        let mut leaf = self.leaf.clone();
        leaf.update(&text.as_bytes()[self.head.len()..]);
        (text, leaf.finalize().into())
    }
}

/// The canonical JSON of an entry.
pub fn to_string(entry: &Entry) -> String {
    Prefix::new(&entry.event).finish(entry.sequence, entry.recorded_at_us, &entry.recorded_by).0
}

/// The leaf hash of an entry, from its canonical JSON.
pub fn leaf_hash(canonical: &str) -> [u8; 32] {
    merkle::leaf_hash(canonical.as_bytes())
}

/// About how long the text gets; escapes may make it longer.
fn estimate(event: &Event) -> usize {
    let changes = |change: &Change| {
        let value = |value: &Option<String>| value.as_ref().map_or(0, |value| value.len() + value.len() / 8 + 16);
        48 + change.path.len() + value(&change.old_value) + value(&change.new_value)
    };
    let resources: usize =
        event.resources.iter().map(|resource| 32 + resource.id.len() + resource.name.len() + resource.kind.len()).sum();
    480 + event.actor.display_name.len()
        + event.actor.user_agent.len()
        + event.reason.len()
        + event.details_json.len() * 9 / 8
        + resources
        + event.changes.iter().map(changes).sum::<usize>()
}

/// Members that sort before `producer`. The first and the last are always there, so commas need no thought.
fn push_event_to_outcome(out: &mut String, event: &Event) {
    out.push_str("{\"action\":");
    push_string(out, &event.action);
    out.push_str(",\"actor\":{");
    let actor = &event.actor;
    push_text(out, "displayName", &actor.display_name);
    push_text(out, "id", &actor.id);
    push_text(out, "ipAddress", &actor.ip_address);
    if let Some(kind) = actor.kind {
        push_text(out, "kind", kind.name());
    }
    push_text(out, "onBehalfOf", &actor.on_behalf_of);
    push_text(out, "userAgent", &actor.user_agent);
    out.push('}');
    push_list(out, "changes", &event.changes, |out, change| {
        push_optional(out, "newValue", change.new_value.as_deref());
        push_optional(out, "oldValue", change.old_value.as_deref());
        push_text(out, "path", &change.path);
    });
    push_text(out, "detailsJson", &event.details_json);
    out.push_str(",\"id\":\"");
    out.push_str(event.id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
    out.push('"');
    push_text(out, "instanceId", &event.instance_id);
    out.push_str(",\"occurredAt\":\"");
    push_rfc3339(out, event.occurred_at_us);
    out.push('"');
    if let Some(operation) = &event.operation {
        out.push_str(",\"operation\":{");
        push_text(out, "id", &operation.id);
        if operation.stage != Stage::Single {
            push_text(out, "stage", operation.stage.name());
        }
        out.push('}');
    }
    push_text(out, "outcome", event.outcome.name());
}

fn push_producer(out: &mut String, producer: &Producer) {
    out.push_str(",\"producer\":{");
    if producer.epoch != 0 {
        out.push_str("\"epoch\":\"");
        push_number(out, producer.epoch);
        out.push('"');
    }
    push_text(out, "id", &producer.id);
    out.push_str(",\"sequence\":\"");
    push_number(out, producer.sequence);
    out.push_str("\"}");
}

/// Members that sort behind what the writer adds.
fn push_event_from_request_id(out: &mut String, event: &Event) {
    push_text(out, "requestId", &event.request_id);
    push_list(out, "resources", &event.resources, |out, resource| {
        push_text(out, "id", &resource.id);
        push_text(out, "name", &resource.name);
        push_text(out, "type", &resource.kind);
    });
}

fn push_list<T>(out: &mut String, name: &str, items: &[T], push_item: impl Fn(&mut String, &T)) {
    if items.is_empty() {
        return;
    }
    push_name(out, name);
    out.push('[');
    for (at, item) in items.iter().enumerate() {
        out.push_str(if at == 0 { "{" } else { ",{" });
        push_item(out, item);
        out.push('}');
    }
    out.push(']');
}

/// A member with text, unless the text is empty.
fn push_text(out: &mut String, name: &str, value: &str) {
    push_optional(out, name, (!value.is_empty()).then_some(value));
}

fn push_optional(out: &mut String, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        push_name(out, name);
        push_string(out, value);
    }
}

/// A member's name, behind a comma unless it is the first of its object.
fn push_name(out: &mut String, name: &str) {
    if !out.ends_with('{') {
        out.push(',');
    }
    out.push('"');
    out.push_str(name);
    out.push_str("\":");
}

fn push_number(out: &mut String, number: u64) {
    use std::fmt::Write as _;
    // Writing to a String cannot fail.
    let _ = write!(out, "{number}");
}

/// A string by RFC 8785, section 3.2.2.2: the two-character escapes where JSON has them, lower-case `\u00xx` for
/// the other controls below U+0020, everything else as it is.
fn push_string(out: &mut String, text: &str) {
    out.push('"');
    let mut clean = 0;
    for (at, byte) in text.bytes().enumerate() {
        // Bytes of longer characters are above, so each cut is between characters.
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[clean..at]);
        clean = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            0x08 => out.push_str("\\b"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            0x0c => out.push_str("\\f"),
            b'\r' => out.push_str("\\r"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.push_str("\\u00");
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    out.push_str(&text[clean..]);
    out.push('"');
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
