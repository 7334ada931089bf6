//! The frozen format: golden files, and a second opinion on order and escapes.

use super::fixtures::{escapes, full, minimal, unicode};
use super::*;

type Golden = (fn() -> Entry, &'static str, &'static str);

/// The files hold one line each, without a line feed at the end: the very bytes that are hashed. Never change one;
/// what they freeze is in the logs of others.
const GOLDEN: &[Golden] = &[
    (minimal, include_str!("../../tests/golden/minimal.json"), include_str!("../../tests/golden/minimal.sha256")),
    (full, include_str!("../../tests/golden/full.json"), include_str!("../../tests/golden/full.sha256")),
    (unicode, include_str!("../../tests/golden/unicode.json"), include_str!("../../tests/golden/unicode.sha256")),
    (escapes, include_str!("../../tests/golden/escapes.json"), include_str!("../../tests/golden/escapes.sha256")),
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_format_is_frozen() {
    for (entry, line, hash) in GOLDEN {
        let canonical = to_string(&entry());
        assert_eq!(canonical, *line);
        assert_eq!(hex(&leaf_hash(&canonical)), *hash);
    }
}

#[test]
fn what_is_written_is_read_back() {
    for (entry, line, _) in GOLDEN {
        assert_eq!(parse(line).unwrap(), entry());
    }
}

/// RFC 8785 sorts names as UTF-16; all names here are ASCII, where that is the order of bytes, in which a
/// `serde_json::Map` keeps them. Its strings are escaped by the same rules, and there are no numbers but `schema`.
#[test]
fn another_serializer_agrees_on_order_and_escapes() {
    for entry in [minimal(), full(), unicode(), escapes()] {
        let canonical = to_string(&entry);
        let value: serde_json::Value = serde_json::from_str(&canonical).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), canonical);
    }
}

#[test]
fn every_control_character_is_escaped_as_the_rfc_says() {
    for code in 0_u32..0x80 {
        let text = format!("a{}b", char::from_u32(code).unwrap());
        let mut out = String::new();
        push_string(&mut out, &text);
        assert_eq!(out, serde_json::to_string(&text).unwrap());
    }
}

#[test]
fn the_tail_is_hashed_as_if_all_were_written_at_once() {
    let entry = full();
    let (canonical, hash) = Prefix::new(&entry.event).finish(7, 8, "w");
    assert_eq!(hash, leaf_hash(&canonical));
}

#[test]
fn content_is_the_event_without_its_producer() {
    let content = |entry: &Entry| Prefix::new(&entry.event).content_hash;
    let one = full();
    let mut other = one.clone();
    other.event.producer = None;
    assert_eq!(content(&one), content(&other));
    let mut event: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&to_string(&other)).unwrap();
    for added in ["recordedAt", "recordedBy", "schema", "sequence"] {
        assert!(event.remove(added).is_some());
    }
    assert_eq!(hex(&content(&one)), hex(&Sha256::digest(serde_json::to_string(&event).unwrap())));
    other.event.reason.push('!');
    assert_ne!(content(&one), content(&other));
}

#[test]
fn a_line_that_is_not_ours_is_refused() {
    let line = to_string(&minimal());
    for bad in [
        line.replace("\"schema\":1", "\"schema\":2"),
        line.replace("OUTCOME_SUCCESS", "OUTCOME_SPLENDID"),
        line.replace("2024-11-23T00:00:00.000000Z", "2024-11-23"),
        line[..line.len() - 1].to_owned(),
    ] {
        assert_ne!(bad, line);
        assert!(parse(&bad).is_err(), "{bad}");
    }
}
