//! What a change has changed: two values in, the paths that differ out, without their secrets.
//!
//! ```text
//! old ─serialize─▶ Node ─┐
//!                        ├─ compare ─▶ paths, with both texts ─ fit ─▶ Diff ─▶ changes of an event
//! new ─serialize─▶ Node ─┘     ▲                 secrets are tokens from here on
//!                         names, markers
//! ```
//!
//! A serializer of our own, for three things that `serde_json::Value` can't do without features
//! that would change it for every crate of the application: numbers stay texts, so that no
//! integer or decimal is rounded; a marked field is known as such; and maps are in order.

mod compare;
mod fit;
mod node;
mod read;
mod secrets;
#[cfg(test)]
mod tests;

use activity_proto::audit::v1 as proto;
use serde::Serialize;

pub(crate) use self::fit::{omitted, omitted_text};
use self::node::Node;
pub use self::secrets::{Secrets, secret};

/// What an action changed: for each path (a JSON Pointer, RFC 6901) the value before and after,
/// as JSON texts.
///
/// ```
/// use gateway_sdk::Diff;
/// use serde_json::json;
///
/// let old = json!({"enabled": false, "limits": {"rpm": 60}, "api_key": "sk-1"});
/// let new = json!({"enabled": true, "limits": {"rpm": 60}, "api_key": "sk-2"});
/// let diff = Diff::between(&old, &new);
/// let shown = |at: usize| {
///     let change = &diff.changes()[at];
///     (change.path.as_str(), change.old_value.as_deref(), change.new_value.as_deref())
/// };
/// assert_eq!(shown(0), ("/api_key", Some("\"[secret]\""), Some("\"[secret]\"")));
/// assert_eq!(shown(1), ("/enabled", Some("false"), Some("true")));
/// assert_eq!(diff.changes().len(), 2);
/// ```
///
/// - **Nothing that is equal is in it.** Objects are compared member by member, in the order of
///   their names; of an array the elements that were removed, added and edited, the fewest that
///   do (arrays that differ in more than 65,536 pairs of elements: place by place).
/// - **In order the changes are a JSON Patch** (RFC 6902): with both values a replacement, with
///   the old one alone a removal, with the new one alone an addition. So in an array the removed
///   elements come first, from behind, by their places in the old array; then the added ones and
///   those that were edited, by their places in the new one.
/// - **Numbers are exact**: 64 and 128 bit integers, and floats by the shortest text that is
///   theirs. `1` and `1.0` are two values.
/// - **Secrets are tokens**; see [`Secrets`]. Where either value is a secret, both are.
/// - **Never cut in silence.** It takes at most 40 KiB and 1,000 changes of an event. Beyond that
///   the largest values become `{"$omitted":{"bytes":…,"sha256":…}}`; where that is not enough,
///   the last change has the empty path and `{"$omitted":{"changes":…}}`, how many are missing.
///   A value that can't be compared (its `Serialize` fails, it is more than 100 deep, or has more
///   than 16 MiB) makes one change with the empty path and `{"$omitted":{"error":…}}`: an outcome
///   is recorded all the same. [`is_complete`](Self::is_complete) tells.
///
/// What `Serialize` leaves out (`#[serde(skip)]`) is not compared.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "hand it to an event or an operation"]
pub struct Diff {
    changes: Vec<proto::Change>,
    complete: bool,
}

impl Diff {
    /// With the secrets that [`Secrets::default`] knows, and no key. With a key and names of
    /// your own: [`Audit::diff`](crate::Audit::diff), or [`Secrets::diff`].
    pub fn between(old: &impl Serialize, new: &impl Serialize) -> Self {
        Secrets::default().diff(old, new)
    }

    /// Of something that was not there: every member is new.
    pub fn created(new: &impl Serialize) -> Self {
        Secrets::default().created(new)
    }

    /// Of something that is no more: every member is gone.
    pub fn deleted(old: &impl Serialize) -> Self {
        Secrets::default().deleted(old)
    }

    /// The changes, in order.
    #[must_use]
    pub fn changes(&self) -> &[proto::Change] {
        &self.changes
    }

    /// The changes, owned.
    #[must_use]
    pub fn into_changes(self) -> Vec<proto::Change> {
        self.changes
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether every change is there with its values, secrets aside.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete || self.changes.is_empty()
    }

    /// With further changes, within the same bounds.
    #[cfg(feature = "layer")]
    pub(crate) fn append(&mut self, other: Self) {
        let complete = self.is_complete() && other.is_complete();
        let mut changes = std::mem::take(&mut self.changes);
        changes.extend(other.changes);
        *self = fit::fit(changes);
        self.complete &= complete;
    }

    /// Stands for a diff that there is none of, and says so.
    pub(crate) fn omitted(what: &serde_json::Value) -> Self {
        let new_value = Some(fit::omitted(what));
        Self { changes: vec![proto::Change { path: String::new(), old_value: None, new_value }], complete: false }
    }
}

impl Secrets {
    /// What differs between two values. `Option`s are `null` where there is none.
    pub fn diff(&self, old: &impl Serialize, new: &impl Serialize) -> Diff {
        self.compared(self.read(old), self.read(new))
    }

    /// As [`Diff::created`].
    pub fn created(&self, new: &impl Serialize) -> Diff {
        self.compared(Ok(None), self.read(new))
    }

    /// As [`Diff::deleted`].
    pub fn deleted(&self, old: &impl Serialize) -> Diff {
        self.compared(self.read(old), Ok(None))
    }

    fn read(&self, value: &impl Serialize) -> Result<Option<Node>, read::Unreadable> {
        read::node(value, self).map(Some)
    }

    fn compared(
        &self,
        old: Result<Option<Node>, read::Unreadable>,
        new: Result<Option<Node>, read::Unreadable>,
    ) -> Diff {
        match (old, new) {
            (Ok(old), Ok(new)) => fit::fit(compare::compare(old, new, self)),
            (Err(why), _) | (_, Err(why)) => Diff::omitted(&serde_json::json!({"error": why.shown()})),
        }
    }
}
