//! The guarantees of a diff, by name.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Serialize;
use serde::ser::SerializeStruct as _;
use serde_json::{Map, Value, json};

use super::*;

fn secrets() -> Secrets {
    Secrets::with_key("k1", [7; 32]).unwrap()
}

type Shown<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

fn shown(diff: &Diff) -> Vec<Shown<'_>> {
    diff.changes().iter().map(|c| (c.path.as_str(), c.old_value.as_deref(), c.new_value.as_deref())).collect()
}

/// As RFC 6902 has it, each change after the other.
fn apply(document: &mut Value, diff: &Diff) {
    for change in diff.changes() {
        let value = |text: &Option<String>| text.as_ref().map(|text| serde_json::from_str::<Value>(text).unwrap());
        let (old, new) = (value(&change.old_value), value(&change.new_value));
        let Some((parent, last)) = change.path.rsplit_once('/') else {
            assert_eq!(old.as_ref(), Some(&*document));
            *document = new.unwrap();
            continue;
        };
        let name = last.replace("~1", "/").replace("~0", "~");
        match document.pointer_mut(parent).unwrap() {
            Value::Object(map) => {
                assert_eq!(map.get(&name), old.as_ref(), "{}", change.path);
                match new {
                    Some(new) => drop(map.insert(name, new)),
                    None => drop(map.remove(&name)),
                }
            }
            Value::Array(list) => {
                let at: usize = name.parse().unwrap();
                match (old, new) {
                    (Some(old), Some(new)) => assert_eq!(std::mem::replace(&mut list[at], new), old),
                    (Some(old), None) => assert_eq!(list.remove(at), old),
                    (None, Some(new)) => list.insert(at, new),
                    (None, None) => panic!("{} changes nothing", change.path),
                }
            }
            other => panic!("{} leads into {other}", change.path),
        }
    }
}

/// Any value, with names that need escapes and some that several values share.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-4_000_i32..4_000).prop_map(|n| json!(f64::from(n) / 4.0)),
        "[a-c]{0,2}".prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[ab/~]{0,2}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn applied_in_order_a_diff_makes_the_new_value_of_the_old(old in any_value(), new in any_value()) {
        let diff = Diff::between(&old, &new);
        let mut applied = old.clone();
        apply(&mut applied, &diff);
        prop_assert_eq!(&applied, &new);
        prop_assert_eq!(diff.is_empty(), old == new);
        prop_assert_eq!(&diff, &Diff::between(&old, &new));
    }

    #[test]
    fn no_change_is_needless(
        list in prop::collection::vec(0_u8..4, 0..7),
        other in prop::collection::vec(0_u8..4, 0..7),
    ) {
        let (diff, least) = (Diff::between(&list, &other), edit_distance(&list, &other));
        prop_assert_eq!(diff.changes().len(), least);
    }

    /// Nothing of a value under such a name comes out, whatever type it has and however deep it is.
    #[test]
    fn no_text_of_a_secret_is_shown(
        value in any_value(),
        other in any_value(),
        secret in "[a-z]{12}",
        number in 1_000_000_000_u64..,
        name in prop::sample::select(vec!["password", "apiKey", "X-Auth-Token", "client_secret", "Authorization"]),
        keyed in any::<bool>(),
    ) {
        let hidden = json!({name: {"a": [secret, number, {"b": value}]}, "c": [{name: number}, {"d": {name: secret}}]});
        let by = if keyed { secrets() } else { Secrets::default() };
        let pairs = [(&hidden, &other), (&other, &hidden), (&hidden, &json!({name: secret, "c": [1, {name: 1}]}))];
        for (old, new) in pairs {
            for change in by.diff(old, new).changes() {
                let text = format!("{:?}{:?}", change.old_value, change.new_value);
                prop_assert!(!text.contains(&secret) && !text.contains(&number.to_string()), "{}", text);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_diff_is_bounded_whatever_it_compares(
        values in prop::collection::vec(("\\PC{0,40}", 0_usize..30_000), 0..40),
        names in 0_usize..3_000,
    ) {
        let mut map: Map<String, Value> = values.into_iter().map(|(name, n)| (name, "x".repeat(n).into())).collect();
        map.extend((0..names).map(|n| (format!("name{n}"), n.into())));
        let diff = Diff::between(&json!({}), &map);
        let bytes: usize = diff.changes().iter().map(prost::Message::encoded_len).sum();
        prop_assert!(bytes <= fit::MAX_BYTES && diff.changes().len() <= fit::MAX_CHANGES);
        let mut applied = json!({});
        if diff.is_complete() {
            apply(&mut applied, &diff);
            prop_assert_eq!(applied, Value::Object(map));
        } else {
            prop_assert!(diff.changes().iter().any(|c| c.new_value.as_ref().unwrap().contains("$omitted")));
        }
    }
}

fn edit_distance(one: &[u8], other: &[u8]) -> usize {
    match (one.split_first(), other.split_first()) {
        (None, _) => other.len(),
        (_, None) => one.len(),
        (Some((a, one_rest)), Some((b, other_rest))) if a == b => edit_distance(one_rest, other_rest),
        (Some((_, one_rest)), Some((_, other_rest))) => {
            1 + edit_distance(one_rest, other_rest)
                .min(edit_distance(one_rest, other))
                .min(edit_distance(one, other_rest))
        }
    }
}

#[test]
fn paths_are_json_pointers_in_the_order_of_names() {
    let old = json!({"b": 1, "a/b": {"~x": 1}, "": 1, "same": [1, {"deep": null}]});
    let new = json!({"b": 2, "a/b": {"~x": 2}, "": 2, "same": [1, {"deep": null}]});
    let diff = Diff::between(&old, &new);
    let paths: Vec<_> = diff.changes().iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths, ["/", "/a~1b/~0x", "/b"]);
    assert_eq!(shown(&Diff::between(&json!("a"), &json!(1))), [("", Some("\"a\""), Some("1"))]);
}

#[test]
fn elements_of_an_array_are_told_apart_by_what_they_are() {
    let model = |id: u8, on: bool| json!({"id": id, "on": on});
    let old = json!([model(1, true), model(2, true), model(3, true)]);
    // Removed before what is edited.
    let new = json!([model(2, false), model(3, true)]);
    assert_eq!(
        shown(&Diff::between(&old, &new)),
        [("/0", Some(r#"{"id":1,"on":true}"#), None), ("/0/on", Some("true"), Some("false"))]
    );
    let new = json!([model(1, true), model(9, true), model(2, true), model(3, true)]);
    assert_eq!(shown(&Diff::between(&old, &new)), [("/1", None, Some(r#"{"id":9,"on":true}"#))]);
    let removed = Diff::between(&json!([1, 2, 3, 4, 5]), &json!([1, 5, 6]));
    assert_eq!(
        shown(&removed),
        [("/3", Some("4"), None), ("/2", Some("3"), None), ("/1", Some("2"), None), ("/2", None, Some("6"))]
    );
}

#[test]
fn arrays_too_different_for_the_fewest_changes_are_compared_place_by_place() {
    let (old, mut new): (Vec<u32>, Vec<u32>) = ((0..300).collect(), (1_000..1_300).collect());
    new[150] = 149;
    let diff = Diff::between(&old, &new);
    assert_eq!((diff.changes().len(), diff.is_complete()), (300, true));
    assert_eq!(shown(&diff)[150], ("/150", Some("150"), Some("149")));
}

#[test]
fn numbers_are_exact() {
    #[derive(Serialize)]
    struct Numbers {
        u64: u64,
        i128: i128,
        f32: f32,
        f64: f64,
    }
    let old = Numbers { u64: u64::MAX, i128: i128::MIN, f32: 0.1, f64: 0.1 };
    let new = Numbers { u64: u64::MAX - 1, i128: i128::MIN + 1, f32: 0.2, f64: f64::NAN };
    assert_eq!(
        shown(&Diff::between(&old, &new)),
        [
            ("/f32", Some("0.1"), Some("0.2")),
            ("/f64", Some("0.1"), Some("null")),
            (
                "/i128",
                Some("-170141183460469231731687303715884105728"),
                Some("-170141183460469231731687303715884105727")
            ),
            ("/u64", Some("18446744073709551615"), Some("18446744073709551614")),
        ]
    );
    // Two that are one as f64, and are not as the application has them.
    let diff = Diff::between(&9_007_199_254_740_993_u64, &9_007_199_254_740_992_u64);
    assert_eq!(shown(&diff), [("", Some("9007199254740993"), Some("9007199254740992"))]);
}

#[test]
fn every_shape_of_serde_reads_as_json_has_it() {
    #[derive(Serialize)]
    struct Unit;
    #[derive(Serialize)]
    struct New(u8);
    #[derive(Serialize)]
    struct Pair(u8, char);
    #[derive(Serialize)]
    enum Any {
        Unit,
        New(New),
        Tuple(u8, bool),
        Struct { a: Option<u8>, b: Unit },
    }
    #[derive(Serialize)]
    struct All {
        any: Vec<Any>,
        pair: Pair,
        keys: BTreeMap<i64, ()>,
        flags: BTreeMap<bool, f32>,
        bytes: [u8; 2],
        float: f64,
    }
    let all = All {
        any: vec![Any::Unit, Any::New(New(1)), Any::Tuple(2, true), Any::Struct { a: Some(3), b: Unit }],
        pair: Pair(4, '"'),
        keys: BTreeMap::from([(-5, ())]),
        flags: BTreeMap::from([(true, 1.5)]),
        bytes: [6, 7],
        float: 1e300,
    };
    let node = read::node(&all, &Secrets::default()).unwrap();
    let value: Value = serde_json::from_str(&node.plain()).unwrap();
    assert_eq!(value, serde_json::to_value(&all).unwrap());
}

#[test]
fn a_token_shows_whether_values_are_equal_and_nothing_else() {
    let hidden = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1.5),
        json!(""),
        json!("hunter2"),
        json!([]),
        json!({"user": "root", "pass": "x"}),
    ];
    let token = |by: &Secrets, path: &str, value: &Value| {
        by.created(&json!({path: value})).changes()[0].new_value.clone().unwrap()
    };
    let (by, other) = (secrets(), Secrets::with_key("k2", [8; 32]).unwrap());
    let tokens: Vec<String> = hidden.iter().map(|value| token(&by, "password", value)).collect();
    for (at, one) in tokens.iter().enumerate() {
        assert_eq!(one.len(), tokens[0].len(), "no length, no type");
        assert!(one.starts_with("\"[secret k1:"), "{one}");
        assert_eq!(tokens.iter().position(|other| other == one), Some(at), "another value, another token");
        assert_eq!(*one, token(&by, "api_key", &hidden[at]), "the same value, the same token");
        assert_ne!(one["\"[secret k1:".len()..], token(&other, "password", &hidden[at])["\"[secret k2:".len()..]);
        assert_eq!(token(&Secrets::default(), "password", &hidden[at]), "\"[secret]\"", "no key, no equality");
    }
}

#[test]
fn what_one_side_hides_the_other_does_not_show() {
    #[derive(Serialize)]
    struct Marked {
        #[serde(serialize_with = "secret")]
        value: &'static str,
    }
    let (marked, open) = (Marked { value: "one" }, json!({"value": "two"}));
    for diff in [Diff::between(&marked, &open), Diff::between(&open, &marked)] {
        assert_eq!(shown(&diff), [("/value", Some("\"[secret]\""), Some("\"[secret]\""))]);
    }
    assert!(Diff::between(&marked, &json!({"value": "one"})).is_empty());
}

#[test]
fn a_mark_counts_where_serde_takes_a_value_apart() {
    #[derive(Serialize)]
    struct Inner {
        host: &'static str,
        deep: BTreeMap<&'static str, u32>,
    }
    #[derive(Serialize)]
    struct Flat {
        id: u8,
        #[serde(flatten, serialize_with = "secret")]
        inner: Inner,
        last: u8,
    }
    #[derive(Serialize)]
    #[serde(tag = "kind")]
    enum Inside {
        One(#[serde(serialize_with = "secret")] Inner),
        Open(Inner),
    }
    #[derive(Serialize)]
    #[serde(tag = "kind", content = "of")]
    enum Beside {
        One(#[serde(serialize_with = "secret")] Inner),
    }
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Plain {
        One(#[serde(serialize_with = "secret")] Inner),
    }
    let inner = || Inner { host: "hunter2", deep: BTreeMap::from([("hunter3", 1_234_567)]) };
    let hidden = Some("\"[secret]\"");
    let flat = Diff::created(&Flat { id: 1, inner: inner(), last: 2 });
    assert_eq!(
        shown(&flat),
        [("/deep", None, hidden), ("/host", None, hidden), ("/id", None, Some("1")), ("/last", None, Some("2"))]
    );
    let inside = Diff::created(&Inside::One(inner()));
    assert_eq!(shown(&inside), [("/deep", None, hidden), ("/host", None, hidden), ("/kind", None, hidden)]);
    assert_eq!(shown(&Diff::created(&Beside::One(inner()))), [("/kind", None, Some("\"One\"")), ("/of", None, hidden)]);
    assert_eq!(shown(&Diff::created(&Plain::One(inner()))), [("", None, hidden)]);
    // Nothing is left of it for the next, nor where a `Serialize` within it panics.
    struct Panics;
    impl Serialize for Panics {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            panic!("as an application may")
        }
    }
    #[derive(Serialize)]
    struct Broken(#[serde(serialize_with = "secret")] Panics);
    std::panic::catch_unwind(|| Diff::created(&Broken(Panics))).unwrap_err();
    assert_eq!(shown(&Diff::created(&Inside::Open(inner())))[1], ("/host", None, Some("\"hunter2\"")));
    // Equal is equal, whichever side hides it.
    let open = json!({"id": 1, "host": "hunter2", "deep": {"hunter3": 1_234_567}, "last": 2});
    assert!(Diff::between(&Flat { id: 1, inner: inner(), last: 2 }, &open).is_empty());
}

#[test]
fn numbers_that_are_kept_as_texts_are_read_also_in_a_marked_value() {
    // As serde_json hands them on where it keeps them so.
    struct Exact;
    impl Serialize for Exact {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut number = serializer.serialize_struct("$serde_json::private::Number", 1)?;
            number.serialize_field("$serde_json::private::Number", "1.10")?;
            number.end()
        }
    }
    #[derive(Serialize)]
    struct Marked {
        #[serde(serialize_with = "secret")]
        value: Vec<Exact>,
    }
    let diff = secrets().created(&Marked { value: vec![Exact] });
    assert!(diff.is_complete());
    let plain = secrets().created(&json!({"password": [json!(1.5)]}));
    assert_ne!(diff.changes()[0].new_value, plain.changes()[0].new_value);
    let node = read::node(&Marked { value: vec![Exact] }, &secrets()).unwrap();
    assert_eq!(node.plain(), r#"{"value":[1.10]}"#);
}

#[test]
fn what_can_not_be_read_is_said_and_not_shown() {
    struct Failing;
    impl Serialize for Failing {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("hunter2"))
        }
    }
    let why = |diff: Diff| {
        assert!(!diff.is_complete() && !diff.is_empty());
        assert_eq!((diff.changes().len(), diff.changes()[0].path.as_str()), (1, ""));
        let value: Value = serde_json::from_str(diff.changes()[0].new_value.as_deref().unwrap()).unwrap();
        value["$omitted"]["error"].as_str().unwrap().to_owned()
    };
    assert_eq!(why(Diff::between(&1, &Failing)), "a value can't be serialized");
    let mut deep = json!(1);
    for _ in 0..101 {
        deep = json!([deep]);
    }
    assert_eq!(why(Diff::created(&deep)), "a value is more than 100 deep");
    assert_eq!(why(Diff::deleted(&vec![0_u8; 4 << 20])), "a value has more than 16777216 bytes");
    assert_eq!(why(Diff::deleted(&BTreeMap::from([([1], 2)]))), "a key of a map is no text, number or boolean");
}

#[test]
fn what_is_too_large_is_left_out_by_the_largest_and_told() {
    let new = json!({"a": "x".repeat(50_000), "b": "y".repeat(20_000), "c": 1});
    let diff = Diff::created(&new);
    assert!(!diff.is_complete());
    let text = format!("\"{}\"", "x".repeat(50_000));
    assert_eq!(
        shown(&diff),
        [
            ("/a", None, Some(fit::omitted_text(&text).as_str())),
            ("/b", None, Some(format!("\"{}\"", "y".repeat(20_000)).as_str())),
            ("/c", None, Some("1")),
        ]
    );
    let many: BTreeMap<String, u32> = (0..1_500).map(|n| (format!("{n:04}"), n)).collect();
    let diff = Diff::created(&many);
    let last = diff.changes().last().unwrap();
    assert_eq!((diff.changes().len(), diff.changes()[998].path.as_str()), (1_000, "/0998"));
    assert_eq!((last.path.as_str(), last.new_value.as_deref()), ("", Some(r#"{"$omitted":{"changes":501}}"#)));
}

#[test]
fn a_name_that_is_no_path_of_the_contract_makes_its_object_the_change() {
    for name in ["x".repeat(1_100), "a\nb".to_owned(), "~".repeat(520)] {
        let (old, new) = (json!({"deep": {&name: 1, "b": 1}}), json!({"deep": {&name: 2, "b": 1}}));
        let diff = Diff::between(&old, &new);
        assert_eq!((diff.changes().len(), diff.changes()[0].path.as_str()), (1, "/deep"));
        let mut applied = old;
        apply(&mut applied, &diff);
        assert_eq!(applied, new);
    }
}
