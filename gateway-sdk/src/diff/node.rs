//! A value as JSON has it, with numbers as texts and secrets marked.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::Secrets;

#[derive(Clone, Debug, PartialEq, Hash)]
pub(super) enum Node {
    Null,
    Bool(bool),
    /// As JSON writes it.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(BTreeMap<String, Node>),
    /// By its name or a marker: shown as a token, whatever it is.
    Secret(Box<Node>),
}

impl Node {
    /// As a log may show it.
    pub(super) fn shown(&self, secrets: &Secrets) -> String {
        let mut text = String::new();
        self.write(&mut text, Some(secrets));
        text
    }

    /// As it is: for the token alone.
    pub(super) fn plain(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, None);
        text
    }

    /// Itself, whether it is known as a secret or not.
    pub(super) fn open(self) -> Self {
        match self {
            Self::Secret(node) => node.open(),
            node => node,
        }
    }

    /// Whether two are the same value, whichever of them is known as a secret.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Secret(one), other) | (other, Self::Secret(one)) => one.same(other),
            (Self::List(one), Self::List(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.same(other))
            }
            (Self::Map(one), Self::Map(other)) => {
                one.len() == other.len()
                    && one.iter().zip(other).all(|((a, one), (b, other))| a == b && one.same(other))
            }
            (one, other) => one == other,
        }
    }

    /// Differs where [`same`](Self::same) does, nearly always.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.plain().hash(&mut hasher);
        hasher.finish()
    }

    fn write(&self, text: &mut String, secrets: Option<&Secrets>) {
        match self {
            Self::Null => text.push_str("null"),
            Self::Bool(true) => text.push_str("true"),
            Self::Bool(false) => text.push_str("false"),
            Self::Number(number) => text.push_str(number),
            Self::Text(value) => quote(text, value),
            Self::List(list) => {
                text.push('[');
                for (at, node) in list.iter().enumerate() {
                    if at > 0 {
                        text.push(',');
                    }
                    node.write(text, secrets);
                }
                text.push(']');
            }
            Self::Map(map) => {
                text.push('{');
                for (at, (name, node)) in map.iter().enumerate() {
                    if at > 0 {
                        text.push(',');
                    }
                    quote(text, name);
                    text.push(':');
                    node.write(text, secrets);
                }
                text.push('}');
            }
            Self::Secret(node) => match secrets {
                Some(secrets) => quote(text, &secrets.token(&node.plain())),
                None => node.write(text, None),
            },
        }
    }
}

fn quote(text: &mut String, value: &str) {
    // The text of a `str` is no failure of serde_json's.
    text.push_str(&serde_json::to_string(value).unwrap_or_default());
}
