//! What of the data a caller may see: every query of a store is given one, and answers
//! nothing beyond it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Instances, Principal};

/// Which instances; and whose usage, where only one's own is open.
///
/// The server makes it of an authenticated caller (see [`Caller`](super::Caller)).
/// There is no other way to one but [`Access::unrestricted`], which says what it is,
/// and narrowing what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    instances: Arc<Instances>,
    user: Option<Arc<str>>,
}

impl Access {
    /// Everything: where no authentication is configured, and for what a service does
    /// by itself. Never for the answer to a caller.
    pub fn unrestricted() -> Self {
        Self { instances: Arc::new(Instances::All), user: None }
    }

    pub(super) fn of(principal: &Principal) -> Self {
        Self { instances: principal.instances.clone(), user: None }
    }

    /// Nothing but these instances of it.
    #[must_use]
    pub fn to_instances<T: Into<String>>(self, instances: impl IntoIterator<Item = T>) -> Self {
        let wanted: BTreeSet<String> = instances.into_iter().map(Into::into).collect();
        let kept = wanted.into_iter().filter(|instance| self.instances.contains(instance)).collect();
        Self { instances: Arc::new(Instances::Only(kept)), ..self }
    }

    /// Nothing but the usage of this user. Who is held to one already stays so.
    #[must_use]
    pub fn to_user(self, user: &str) -> Self {
        match self.user {
            None => Self { user: Some(user.into()), ..self },
            Some(_) => self,
        }
    }

    /// Which instances.
    pub fn instances(&self) -> &Instances {
        &self.instances
    }

    /// Whose usage, if not everybody's.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Whether nothing is kept from it.
    pub fn is_everything(&self) -> bool {
        *self.instances == Instances::All && self.user.is_none()
    }

    /// Whether an instance is among them.
    pub fn has_instance(&self, instance: &str) -> bool {
        self.instances.contains(instance)
    }

    /// Whether a user's usage is.
    pub fn has_user(&self, user: &str) -> bool {
        self.user().is_none_or(|own| own == user)
    }

    /// Bytes that are the same for the same access only: part of what a token is bound
    /// to that continues a query (see [`query_hash`](crate::page::query_hash)).
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |text: &str| {
            bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        match &*self.instances {
            Instances::All => put("all"),
            Instances::Only(instances) => {
                put("only");
                instances.iter().for_each(|instance| put(instance));
            }
        }
        match self.user() {
            None => put("everybody"),
            Some(user) => ["own", user].into_iter().for_each(put),
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_only_gets_narrower() {
        let some = Access::unrestricted().to_instances(["a", "b"]);
        assert!(some.has_instance("a") && !some.has_instance("c") && some.has_user("anybody"));
        let less = some.clone().to_instances(["b", "c"]);
        assert_eq!(less, Access::unrestricted().to_instances(["b"]));
        let own = less.to_user("ada").to_user("eve");
        assert!(own.has_user("ada") && !own.has_user("eve"));
    }

    #[test]
    fn fingerprints_are_the_same_for_the_same_access_only() {
        let all = Access::unrestricted;
        let different = [
            all(),
            all().to_user("ada"),
            all().to_instances([""; 0]),
            all().to_instances(["a", "b"]),
            all().to_instances(["ab"]),
            all().to_instances(["a"]).to_user("b"),
            all().to_instances(["a", "own", "b"]),
        ];
        for (at, one) in different.iter().enumerate() {
            assert_eq!(one.fingerprint(), one.clone().fingerprint());
            for other in &different[at + 1..] {
                assert_ne!(one.fingerprint(), other.fingerprint(), "{one:?} {other:?}");
            }
        }
    }
}
