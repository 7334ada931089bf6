//! Any serde value as a [`Node`], by the conventions of serde_json.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::ser::{self, Serialize};

use super::Secrets;
use super::node::Node;
use super::secrets::{MARK, is_marked};

/// The contract's limit is 128 for a value.
const MAX_DEPTH: usize = 100;
/// What a value may hold, roughly: each node counts, and its text.
const MAX_BYTES: usize = 16 * 1024 * 1024;
const NODE_BYTES: usize = 8;

/// How serde_json hands on a number, where it keeps them as texts.
const NUMBER: &str = "$serde_json::private::Number";
/// How it hands on a JSON text.
const RAW: &str = "$serde_json::private::RawValue";

pub(super) fn node(value: &impl Serialize, secrets: &Secrets) -> Result<Node, Unreadable> {
    let left = Cell::new(MAX_BYTES);
    value.serialize(Reader { secrets, depth: 0, left: &left })
}

/// Why a value can't be compared.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// By the application's own `Serialize`: what it says may hold the value.
    Own,
    Key,
    Deep,
    Large,
}

impl Unreadable {
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Own => "a value can't be serialized".to_owned(),
            Self::Key => "a key of a map is no text, number or boolean".to_owned(),
            Self::Deep => format!("a value is more than {MAX_DEPTH} deep"),
            Self::Large => format!("a value has more than {MAX_BYTES} bytes"),
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl std::error::Error for Unreadable {}

impl ser::Error for Unreadable {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Own
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    secrets: &'a Secrets,
    depth: usize,
    left: &'a Cell<usize>,
}

impl<'a> Reader<'a> {
    fn count(self, bytes: usize) -> Result<(), Unreadable> {
        let left = self.left.get().checked_sub(bytes + NODE_BYTES).ok_or(Unreadable::Large)?;
        self.left.set(left);
        Ok(())
    }

    fn deeper(self) -> Result<Self, Unreadable> {
        self.count(0)?;
        if self.depth == MAX_DEPTH {
            return Err(Unreadable::Deep);
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }

    fn text(self, text: &str) -> Result<Node, Unreadable> {
        self.count(text.len())?;
        Ok(Node::Text(text.to_owned()))
    }

    fn number(self, number: impl fmt::Display) -> Result<Node, Unreadable> {
        self.count(0)?;
        Ok(Node::Number(number.to_string()))
    }

    /// Of integers `to_string` is JSON; of floats it is serde_json that knows, and makes `null`
    /// of those that JSON has not.
    fn float(self, text: serde_json::Result<String>) -> Result<Node, Unreadable> {
        self.count(0)?;
        match text {
            Ok(text) if text != "null" => Ok(Node::Number(text)),
            _ => Ok(Node::Null),
        }
    }

    fn member(self, map: &mut BTreeMap<String, Node>, name: String, node: Node) -> Result<(), Unreadable> {
        self.count(name.len())?;
        let node = match node {
            Node::Secret(_) => node,
            open if is_marked() || self.secrets.covers(&name) => Node::Secret(Box::new(open)),
            open => open,
        };
        map.insert(name, node);
        Ok(())
    }

    /// `{variant: node}`.
    fn variant(self, variant: &str, node: Node) -> Result<Node, Unreadable> {
        let mut map = BTreeMap::new();
        self.member(&mut map, variant.to_owned(), node)?;
        Ok(Node::Map(map))
    }

    fn items(self, variant: Option<&'static str>) -> Result<Items<'a>, Unreadable> {
        Ok(Items { inside: self.deeper()?, list: Vec::new(), variant })
    }

    fn members(self, kind: Kind) -> Result<Members<'a>, Unreadable> {
        Ok(Members { inside: self.deeper()?, map: BTreeMap::new(), key: None, kind })
    }
}

struct Items<'a> {
    inside: Reader<'a>,
    list: Vec<Node>,
    variant: Option<&'static str>,
}

impl Items<'_> {
    fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unreadable> {
        self.list.push(value.serialize(self.inside)?);
        Ok(())
    }

    fn done(self) -> Result<Node, Unreadable> {
        match self.variant {
            None => Ok(Node::List(self.list)),
            Some(variant) => self.inside.variant(variant, Node::List(self.list)),
        }
    }
}

enum Kind {
    Map,
    Variant(&'static str),
    Number,
    Raw,
}

struct Members<'a> {
    inside: Reader<'a>,
    map: BTreeMap<String, Node>,
    key: Option<String>,
    kind: Kind,
}

impl Members<'_> {
    fn put<T: Serialize + ?Sized>(&mut self, name: String, value: &T) -> Result<(), Unreadable> {
        let node = value.serialize(self.inside)?;
        self.inside.member(&mut self.map, name, node)
    }

    fn done(self) -> Result<Node, Unreadable> {
        let only = |map: BTreeMap<String, Node>| map.into_values().next();
        match self.kind {
            Kind::Map => Ok(Node::Map(self.map)),
            Kind::Variant(variant) => self.inside.variant(variant, Node::Map(self.map)),
            Kind::Number => match only(self.map).map(Node::open) {
                Some(Node::Text(number)) => Ok(Node::Number(number)),
                _ => Err(Unreadable::Own),
            },
            // Nobody looks into it, so all of it is a secret.
            Kind::Raw => only(self.map).map(|text| Node::Secret(Box::new(text))).ok_or(Unreadable::Own),
        }
    }
}

macro_rules! numbers {
    ($($name:ident: $kind:ty),*) => {
        $(fn $name(self, value: $kind) -> Result<Node, Unreadable> {
            self.number(value)
        })*
    };
}

impl<'a> ser::Serializer for Reader<'a> {
    type Ok = Node;
    type Error = Unreadable;
    type SerializeSeq = Items<'a>;
    type SerializeTuple = Items<'a>;
    type SerializeTupleStruct = Items<'a>;
    type SerializeTupleVariant = Items<'a>;
    type SerializeMap = Members<'a>;
    type SerializeStruct = Members<'a>;
    type SerializeStructVariant = Members<'a>;

    numbers! {
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128
    }

    fn serialize_bool(self, value: bool) -> Result<Node, Unreadable> {
        self.count(0)?;
        Ok(Node::Bool(value))
    }

    fn serialize_f32(self, value: f32) -> Result<Node, Unreadable> {
        self.float(serde_json::to_string(&value))
    }

    fn serialize_f64(self, value: f64) -> Result<Node, Unreadable> {
        self.float(serde_json::to_string(&value))
    }

    fn serialize_char(self, value: char) -> Result<Node, Unreadable> {
        self.text(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<Node, Unreadable> {
        self.text(value)
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<Node, Unreadable> {
        value.iter().map(|byte| self.number(byte)).collect::<Result<_, _>>().map(Node::List)
    }

    fn serialize_none(self) -> Result<Node, Unreadable> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Node, Unreadable> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Node, Unreadable> {
        self.count(0)?;
        Ok(Node::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Node, Unreadable> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Node, Unreadable> {
        self.text(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Node, Unreadable> {
        // Of types within each other there may be as many as of values.
        let node = value.serialize(self.deeper()?)?;
        Ok(if name == MARK { Node::Secret(Box::new(node)) } else { node })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Node, Unreadable> {
        let node = value.serialize(self.deeper()?)?;
        self.variant(variant, node)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items<'a>, Unreadable> {
        self.items(None)
    }

    fn serialize_tuple(self, _: usize) -> Result<Items<'a>, Unreadable> {
        self.items(None)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Items<'a>, Unreadable> {
        self.items(None)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items<'a>, Unreadable> {
        self.deeper()?.items(Some(variant))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Members<'a>, Unreadable> {
        self.members(Kind::Map)
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Members<'a>, Unreadable> {
        self.members(match name {
            NUMBER => Kind::Number,
            RAW => Kind::Raw,
            _ => Kind::Map,
        })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Members<'a>, Unreadable> {
        self.deeper()?.members(Kind::Variant(variant))
    }
}

macro_rules! items {
    ($($name:ident: $call:ident),*) => {
        $(impl ser::$name for Items<'_> {
            type Ok = Node;
            type Error = Unreadable;

            fn $call<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unreadable> {
                self.push(value)
            }

            fn end(self) -> Result<Node, Unreadable> {
                self.done()
            }
        })*
    };
}

items! {
    SerializeSeq: serialize_element, SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field, SerializeTupleVariant: serialize_field
}

macro_rules! fields {
    ($($name:ident),*) => {
        $(impl ser::$name for Members<'_> {
            type Ok = Node;
            type Error = Unreadable;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Unreadable> {
                self.put(name.to_owned(), value)
            }

            fn end(self) -> Result<Node, Unreadable> {
                self.done()
            }
        })*
    };
}

fields! { SerializeStruct, SerializeStructVariant }

impl ser::SerializeMap for Members<'_> {
    type Ok = Node;
    type Error = Unreadable;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unreadable> {
        self.key = Some(match key.serialize(self.inside)? {
            Node::Text(text) | Node::Number(text) => text,
            Node::Bool(value) => value.to_string(),
            // A marked key among them: a name would show it.
            _ => return Err(Unreadable::Key),
        });
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unreadable> {
        let key = self.key.take().ok_or(Unreadable::Own)?;
        self.put(key, value)
    }

    fn end(self) -> Result<Node, Unreadable> {
        self.done()
    }
}
