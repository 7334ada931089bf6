//! Messages of the contract made out of bytes: any bytes make a message, bytes that are changed a little make one that
//! is a little different, and none make an empty one. So the same bodies run under proptest and under a fuzzer.
//!
//! Half of the messages are what checks want, by the names and types of their fields, and so get through to the end;
//! the other half has in some fields what has broken other services: controls, U+0000, lengths over a limit, numbers at
//! the ends, wildcards, quotes, formulas.

use std::collections::HashMap;

use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// Messages within messages; deeper ones are left empty.
const MAX_DEPTH: usize = 6;
/// What a message may grow to.
const MAX_BYTES: usize = 256 * 1024;

/// An RPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method {
    /// As `/package.Service/Method`.
    pub path: String,
    /// Its request, as `.package.Message`.
    pub request: String,
    /// Whether it takes a stream of them.
    pub client_streaming: bool,
    /// Whether it answers with one.
    pub server_streaming: bool,
}

/// What messages there are.
#[derive(Debug)]
pub struct Messages {
    types: HashMap<String, DescriptorProto>,
    /// The values of each enum.
    enums: HashMap<String, Vec<i32>>,
    methods: Vec<Method>,
    /// Near which times and ids lie, in seconds since the epoch.
    now_s: i64,
}

impl Messages {
    /// Those of an encoded `FileDescriptorSet`, told at a time.
    pub fn new(descriptors: &[u8], now_s: i64) -> Self {
        let set = FileDescriptorSet::decode(descriptors).expect("descriptors");
        let (mut types, mut enums, mut methods) = (HashMap::new(), HashMap::new(), Vec::new());
        for file in &set.file {
            for message in &file.message_type {
                collect(&mut types, &format!(".{}", file.package()), message);
            }
            for of in &file.enum_type {
                let numbers = of.value.iter().map(prost_types::EnumValueDescriptorProto::number).collect();
                enums.insert(format!(".{}.{}", file.package(), of.name()), numbers);
            }
            for service in &file.service {
                methods.extend(service.method.iter().map(|method| Method {
                    path: format!("/{}.{}/{}", file.package(), service.name(), method.name()),
                    request: method.input_type().to_owned(),
                    client_streaming: method.client_streaming(),
                    server_streaming: method.server_streaming(),
                }));
            }
        }
        Self { types, enums, methods, now_s }
    }

    /// All RPCs.
    pub fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// The bytes of a message of a type (`.package.Message`) that these bytes stand for.
    ///
    /// # Panics
    /// When there is no such type.
    pub fn message(&self, name: &str, choices: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut choices = Choices { left: choices, wild: false };
        choices.wild = choices.byte() >= 128;
        self.write(&mut out, name, &mut choices, 0);
        out
    }

    fn write(&self, out: &mut Vec<u8>, name: &str, choices: &mut Choices<'_>, depth: usize) {
        let message = self.types.get(name).unwrap_or_else(|| panic!("no message {name}"));
        match name {
            ".google.protobuf.Timestamp" => return self.timestamp(out, choices),
            ".google.protobuf.Duration" => return duration(out, choices),
            _ => {}
        }
        let is_event = message.field.iter().any(|field| field.name() == "occurred_at");
        let is_map = message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry);
        for field in &message.field {
            let times = match field.label() {
                _ if is_map => 1,
                Label::Repeated => match choices.byte() {
                    0..=31 => 0,
                    32..=191 => 1,
                    254 if choices.wild => 101,
                    255 if choices.wild => 1_001,
                    _ => 1 + usize::from(choices.byte() % 5),
                },
                // Mostly there, for checks mostly want it; of alternatives the last one counts.
                _ => usize::from(choices.byte() >= if choices.wild { 32 } else { 4 }),
            };
            for _ in 0..times {
                if out.len() < MAX_BYTES && !choices.left.is_empty() {
                    self.field(out, field, is_event, choices, depth);
                }
            }
        }
    }

    fn field(
        &self,
        out: &mut Vec<u8>,
        field: &FieldDescriptorProto,
        of_event: bool,
        choices: &mut Choices<'_>,
        depth: usize,
    ) {
        let tag = u32::try_from(field.number()).expect("a field's number");
        match field.r#type() {
            Type::Message => {
                let mut inner = Vec::new();
                if depth < MAX_DEPTH {
                    self.write(&mut inner, field.type_name(), choices, depth + 1);
                }
                bytes(out, tag, &inner);
            }
            Type::String if of_event && field.name() == "id" && choices.byte() < 250 => {
                bytes(out, tag, self.uuid(choices).as_bytes());
            }
            Type::String => bytes(out, tag, text(field.name(), choices).as_bytes()),
            Type::Bytes => {
                let length = usize::from(choices.byte()).min(choices.left.len());
                bytes(out, tag, choices.take(length));
            }
            Type::Bool => number(out, tag, u64::from(choices.byte() & 1)),
            Type::Enum => {
                let known = &self.enums[field.type_name()];
                let value = match choices.byte() {
                    240..=247 if choices.wild => 99,
                    248.. if choices.wild => -1,
                    // Zero is refused by most.
                    byte if byte > 10 && known.len() > 1 => known[1 + usize::from(byte) % (known.len() - 1)],
                    _ => 0,
                };
                number(out, tag, i64::from(value).cast_unsigned());
            }
            Type::Double => {
                encode_key(tag, WireType::SixtyFourBit, out);
                out.extend_from_slice(&choices.u64().to_le_bytes());
            }
            _ => number(out, tag, integer(choices)),
        }
    }

    fn timestamp(&self, out: &mut Vec<u8>, choices: &mut Choices<'_>) {
        let wild = if choices.wild { choices.byte() } else { 0 };
        let seconds = match wild {
            0..=219 => self.now_s - i64::from(choices.byte()) * 300,
            220..=229 => self.now_s + 10_000,
            230..=239 => -62_135_596_800,
            240..=249 => 253_402_300_799,
            _ => choices.u64().cast_signed(),
        };
        number(out, 1, seconds.cast_unsigned());
        let nanos = if wild == 255 { -1 } else { i64::from(choices.byte()) * 3_921_001 };
        number(out, 2, nanos.cast_unsigned());
    }

    /// A UUIDv7 of about the time that timestamps have.
    fn uuid(&self, choices: &mut Choices<'_>) -> String {
        let millis = u128::from((self.now_s.unsigned_abs() * 1_000).wrapping_add(choices.u64() % 1_000));
        let random = u128::from(choices.u64());
        let hex = format!("{:032x}", (millis << 80) | (7 << 76) | (2 << 62) | (random >> 2));
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }
}

fn collect(types: &mut HashMap<String, DescriptorProto>, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(types, &name, nested);
    }
    types.insert(name, message.clone());
}

/// Bytes that decide; when none are left, always zero.
struct Choices<'a> {
    left: &'a [u8],
    /// Whether what breaks things is among them.
    wild: bool,
}

impl<'a> Choices<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (head, tail) = self.left.split_at(length.min(self.left.len()));
        self.left = tail;
        head
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u64(&mut self) -> u64 {
        self.take(8).iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::from(self.byte()) % values.len()]
    }
}

fn text(field: &str, choices: &mut Choices<'_>) -> String {
    if choices.wild && choices.byte() > 200 {
        return hostile(choices);
    }
    let one_of = |choices: &mut Choices<'_>, texts: &[&str]| choices.of(texts).to_owned();
    match field {
        "action" => one_of(choices, &["model.enabled", "key.rotated", "provider.updated", "a.b"]),
        "actions" => one_of(choices, &["model.enabled", "model.*", "key.rotated", "*", "a.*"]),
        "path" | "changed_paths" => one_of(choices, &["", "/a", "/a/b~1c", "/limits/rpm", "/a/*", "~2"]),
        "details_json" | "old_value" | "new_value" => one_of(
            choices,
            &["null", "1e400", r#"{"a":[1,"x",{"b":null}]}"#, r#""\u0000\ud83d\ude00""#, " [ ]\n", "-0.0", "[[[[]]]]"],
        ),
        "ip_address" => one_of(choices, &["127.0.0.1", "2001:db8::1", "::ffff:1.2.3.4", ""]),
        "time_zone" => one_of(choices, &["", "UTC", "Europe/Berlin", "asia/kathmandu", "America/Havana", "Etc/GMT+12"]),
        "page_token" | "resume_token" if !choices.wild => String::new(),
        _ => one_of(
            choices,
            &["prod", "lab", "ada", "openai", "gpt-4o", "team-1", "=1+1", "ü 東京", "a b", "", "%", "x_y"],
        ),
    }
}

fn hostile(choices: &mut Choices<'_>) -> String {
    let long = |text: &str, length: usize| text.repeat(length / text.len());
    match choices.byte() % 14 {
        0 => String::new(),
        1 => "\0".into(),
        2 => "a\u{1b}[31m\r\nb".into(),
        3 => long("x", 257),
        4 => long("é", 256),
        5 => long("y", 1_025),
        6 => long("z ", 70_000),
        7 => "'; DROP TABLE audit_entries; --".into(),
        8 => "\u{202e}\u{feff}\u{2028}\u{fffd}".into(),
        9 => "\"a\",\"b\"".into(),
        10 => long("[", 300),
        11 => format!("{}{}", long("[", 200), long("]", 200)),
        12 => "\t=cmd|' /C calc'!A0".into(),
        _ => {
            let length = usize::from(choices.byte());
            String::from_utf8_lossy(choices.take(length)).into_owned()
        }
    }
}

fn integer(choices: &mut Choices<'_>) -> u64 {
    match choices.byte() {
        byte if byte < 200 || !choices.wild => u64::from(byte),
        200..=219 => choices.u64(),
        220..=229 => u64::MAX,
        230..=239 => u64::from(u32::MAX),
        240..=249 => i64::MAX.cast_unsigned(),
        _ => i64::MIN.cast_unsigned(),
    }
}

fn duration(out: &mut Vec<u8>, choices: &mut Choices<'_>) {
    number(out, 1, integer(choices));
    number(out, 2, u64::from(choices.byte()) * 3_921_001);
}

fn number(out: &mut Vec<u8>, tag: u32, value: u64) {
    encode_key(tag, WireType::Varint, out);
    encode_varint(value, out);
}

fn bytes(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}
