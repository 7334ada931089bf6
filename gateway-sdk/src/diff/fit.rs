//! What an event has room for.

use activity_proto::audit::v1 as proto;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Diff;

/// Of the 64 KiB that an event may have; the rest is for what else is in it.
pub(super) const MAX_BYTES: usize = 40 * 1024;
/// The contract's limit.
pub(super) const MAX_CHANGES: usize = 1_000;
/// A change's own tags and lengths, and more.
const FRAME_BYTES: usize = 16;
/// What the last change takes that tells of missing ones.
const REST_BYTES: usize = 128;

/// Leaves out what there is no room for, the largest values first, and says so.
pub(super) fn fit(mut changes: Vec<proto::Change>) -> Diff {
    let complete = changes.len() <= MAX_CHANGES && total(&changes) <= MAX_BYTES;
    if !complete {
        leave_out_values(&mut changes);
    }
    if changes.len() > MAX_CHANGES || total(&changes) > MAX_BYTES {
        leave_out_changes(&mut changes);
    }
    Diff { changes, complete }
}

pub(crate) fn omitted(what: &Value) -> String {
    json!({ "$omitted": what }).to_string()
}

/// Says of a JSON text that is left out how long it is, and which it was.
pub(crate) fn omitted_text(text: &str) -> String {
    let digest: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    omitted(&json!({"bytes": text.len(), "sha256": digest}))
}

fn size(change: &proto::Change) -> usize {
    let value = |value: &Option<String>| value.as_ref().map_or(0, String::len);
    change.path.len() + value(&change.old_value) + value(&change.new_value) + FRAME_BYTES
}

fn total(changes: &[proto::Change]) -> usize {
    changes.iter().map(size).sum()
}

fn leave_out_values(changes: &mut [proto::Change]) {
    let mut left = total(changes);
    let mut values: Vec<&mut String> =
        changes.iter_mut().flat_map(|change| [&mut change.old_value, &mut change.new_value]).flatten().collect();
    // Stable: of equal ones the first goes first.
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in values {
        if left <= MAX_BYTES {
            return;
        }
        let instead = omitted_text(value);
        if instead.len() >= value.len() {
            return;
        }
        left -= value.len() - instead.len();
        *value = instead;
    }
}

fn leave_out_changes(changes: &mut Vec<proto::Change>) {
    let mut used = REST_BYTES;
    let fits = |change: &&proto::Change| {
        used += size(change);
        used <= MAX_BYTES
    };
    let kept = changes.iter().take(MAX_CHANGES - 1).take_while(fits).count();
    let missing = changes.len() - kept;
    changes.truncate(kept);
    changes.extend(Diff::omitted(&json!({ "changes": missing })).changes);
}
