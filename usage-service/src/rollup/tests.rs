//! The algebra of rollups, against plain references.

mod delta;
mod derive;
mod plan;
mod section;
mod speed;
mod tally;

use std::sync::Arc;

use proptest::prelude::*;

use super::{FullRow, KEYS, MEASURES, Measures, Overlay, Values};
use crate::model::Dimension;

/// How many values each dimension has, in the order of [`KEYS`].
const SIZES: [u32; KEYS.len()] = [40, 4, 60, 3, 7, 5];

/// Sums as real rows have them, some at the ends of what can be stored.
fn measures() -> impl Strategy<Value = Measures> {
    let tokens = || prop_oneof![Just(0), 0..300_i64, 0..1_000_000_000_i64];
    let cost = prop_oneof![Just(0), 0..1_000_000_i64, 0..=i64::MAX, Just(i64::MAX)];
    (1..4_i64, 0..2_i64, prop::array::uniform6(tokens()), cost, 0..2_i64, tokens()).prop_map(
        |(requests, failed, tokens, cost, unpriced, unpriced_tokens)| {
            let mut measures = [0; MEASURES];
            (measures[0], measures[1]) = (requests, failed);
            measures[2..8].copy_from_slice(&tokens);
            (measures[8], measures[9], measures[10]) = (cost, unpriced, unpriced_tokens);
            measures
        },
    )
}

fn keys() -> impl Strategy<Value = [u32; KEYS.len()]> {
    let [users, teams, api_keys, providers, models, statuses] = SIZES;
    (0..=users, 0..=teams, 0..=api_keys, 1..=providers, 1..=models, 1..=statuses)
        .prop_map(|(user, team, api_key, provider, model, status)| [user, team, api_key, provider, model, status])
}

fn row() -> impl Strategy<Value = FullRow> {
    (keys(), measures()).prop_map(|(keys, measures)| FullRow { keys, measures })
}

/// Texts whose order is not that of their ids.
fn text(dimension: Dimension, id: u32) -> String {
    format!("{}-{:03}", dimension.name(), id * 389 % 997)
}

/// Texts of all ids that [`row`] makes, and of three instances; of some only an
/// overlay knows.
fn overlay() -> Overlay {
    let mut values = Values::new();
    let mut later = Vec::new();
    let sizes = KEYS.into_iter().zip(SIZES).filter(|(dimension, _)| *dimension != Dimension::Status);
    for (dimension, size) in sizes.chain([(Dimension::Instance, 3)]) {
        for id in 1..=size {
            if id <= size / 2 {
                values.insert(dimension, id, &text(dimension, id)).expect("ids are new and rise");
            } else {
                later.push((dimension, id));
            }
        }
    }
    let mut overlay = Overlay::new(Arc::new(values));
    for (dimension, id) in later {
        assert_eq!(overlay.intern(dimension, &text(dimension, id)), id);
    }
    overlay
}

#[test]
fn an_overlay_continues_where_the_values_end() {
    let overlay = overlay();
    let added: Vec<_> = overlay.added().filter(|(dimension, _, _)| *dimension == Dimension::Team).collect();
    let texts = [3, 4].map(|id| text(Dimension::Team, id));
    assert_eq!(added, [(Dimension::Team, 3, texts[0].as_str()), (Dimension::Team, 4, texts[1].as_str())]);
    for id in 1..=4 {
        assert_eq!(overlay.text(Dimension::Team, id), text(Dimension::Team, id));
    }
    for unknown in [0, 5, u32::MAX] {
        assert_eq!(overlay.text(Dimension::Team, unknown), "");
    }
    assert_eq!(overlay.text(Dimension::Status, 2), "REQUEST_STATUS_CLIENT_ERROR");
    assert_eq!(overlay.len(Dimension::Team), 4);
}

#[test]
fn values_refuse_what_cannot_be() {
    let mut values = Values::new();
    assert_eq!(values.insert(Dimension::Team, 2, "b"), Ok(()));
    assert_eq!(values.insert(Dimension::Team, 1, "a"), Ok(()));
    assert_eq!(values.insert(Dimension::Team, 1, "a"), Ok(()), "the same once more");
    let empty_or_zero = [(0, "c"), (3, "")];
    let taken = [(1, "c"), (3, "a")];
    for (id, text) in empty_or_zero.into_iter().chain(taken).chain([(u32::MAX, "c")]) {
        assert!(values.insert(Dimension::Team, id, text).is_err(), "{id} {text:?}");
    }
    assert!(values.insert(Dimension::Status, 1, "c").is_err());
    assert_eq!((values.len(Dimension::Team), values.text(Dimension::Team, 2)), (2, Some("b")));
    assert_eq!((values.id(Dimension::Team, "b"), values.id(Dimension::Team, "")), (Some(2), Some(0)));
    assert_eq!((values.id(Dimension::Team, "c"), values.text(Dimension::Team, 3)), (None, None));
    assert!(values.bytes() > 0);
}
