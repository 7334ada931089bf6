//! Sections: merging is an algebra, blobs are refused when they are damaged.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::{Cut, FullRow, KEYS, MEASURES, MODEL, Section, USER};
use super::{keys, overlay, row};

/// Rows that also take back, and that meet often.
fn any_row() -> impl Strategy<Value = FullRow> {
    let takes_back = (keys(), prop::array::uniform11(prop_oneof![Just(0), -5..5_i64, any::<i64>()]));
    prop_oneof![row(), takes_back.prop_map(|(keys, measures)| FullRow { keys, measures })]
}

fn rows() -> impl Strategy<Value = Vec<FullRow>> {
    prop::collection::vec(any_row(), 0..60)
}

fn blob(section: &Section) -> Vec<u8> {
    section.encode().expect("it is small")
}

proptest! {
    #[test]
    fn any_order_and_any_split_is_the_same_section(
        rows in prop::collection::vec((any_row(), 0..4_usize), 0..60),
        order in any::<prop::sample::Index>(),
    ) {
        let all = rows.iter().map(|(row, _)| *row).collect();
        let at_once = Section::merge(None, all);
        let mut parts = vec![Vec::new(); 4];
        for (row, part) in &rows {
            parts[*part].push(*row);
        }
        parts.rotate_left(order.index(4));
        let mut merged: Option<Section> = None;
        for part in parts {
            merged = Some(Section::merge(merged.as_ref(), part));
        }
        let merged = merged.expect("there are parts");
        prop_assert_eq!(&merged, &at_once);
        prop_assert_eq!(blob(&merged), blob(&at_once));
    }

    #[test]
    fn a_section_is_the_sums_by_key(rows in rows()) {
        let mut sums: BTreeMap<[u32; KEYS.len()], [i128; MEASURES]> = BTreeMap::new();
        for row in &rows {
            let sums = sums.entry(row.keys).or_default();
            for (sum, measure) in sums.iter_mut().zip(row.measures) {
                *sum += i128::from(measure);
            }
        }
        sums.retain(|_, sums| *sums != [0; MEASURES]);
        let section = Section::merge(None, rows);
        prop_assert_eq!(section.rows(), sums.len());
        for (at, (keys, sums)) in sums.iter().enumerate() {
            let found: [u32; KEYS.len()] = std::array::from_fn(|place| section.key(place).expect("full").id(at));
            prop_assert_eq!(&found, keys);
            let found: [i128; MEASURES] = std::array::from_fn(|measure| section.measure(measure).0.get(at));
            prop_assert_eq!(&found, sums);
        }
        let total: [i128; MEASURES] = std::array::from_fn(|measure| sums.values().map(|sums| sums[measure]).sum());
        prop_assert_eq!(section.sums(), total);
    }

    #[test]
    fn singles_are_sums_and_sets_by_one_key(rows in rows()) {
        let full = Section::merge(None, rows.clone());
        // Rows that came to nothing are in no set.
        let left: Vec<[u32; KEYS.len()]> = (0..full.rows())
            .map(|at| std::array::from_fn(|place| full.key(place).expect("full").id(at)))
            .collect();
        for cut in Cut::SINGLES {
            let single = Section::project(&full, cut);
            let place = cut.places().next().expect("a single has a key");
            let ids: BTreeSet<u32> = left.iter().map(|keys| keys[place]).collect();
            prop_assert_eq!(single.rows(), ids.len());
            prop_assert_eq!(single.sums(), full.sums());
            for (at, id) in ids.into_iter().enumerate() {
                prop_assert_eq!(single.key(place).expect("its key").id(at), id);
                let of_id = rows.iter().filter(|row| row.keys[place] == id);
                for measure in 0..MEASURES {
                    let sum: i128 = of_id.clone().map(|row| i128::from(row.measures[measure])).sum();
                    prop_assert_eq!(single.measure(measure).0.get(at), sum);
                }
                for of in [USER, MODEL] {
                    let Some(sets) = single.sets(of) else {
                        prop_assert_eq!(of, place, "only the key itself needs no set");
                        continue;
                    };
                    let mut set = super::super::distinct::Distinct::default();
                    sets.add_to(at, &mut set);
                    let of_id = left.iter().filter(|keys| keys[place] == id).map(|keys| keys[of]);
                    let expected: BTreeSet<u32> = of_id.filter(|id| of == MODEL || *id != 0).collect();
                    prop_assert_eq!(set.into_ids(), expected.into_iter().collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn blobs_come_back(rows in rows()) {
        let full = Section::merge(None, rows);
        for cut in Cut::STORED {
            let section = Section::project(&full, cut);
            let blob = blob(&section);
            prop_assert_eq!(&Section::decode(cut, &blob), &Ok(section));
            for other in Cut::STORED.into_iter().filter(|other| *other != cut) {
                prop_assert!(Section::decode(other, &blob).is_err());
            }
        }
    }

    #[test]
    fn damaged_blobs_are_refused(
        rows in rows(),
        cut in prop::sample::select(&Cut::STORED[..]),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 20),
    ) {
        let blob = blob(&Section::project(&Section::merge(None, rows), cut));
        for length in 0..blob.len() {
            prop_assert!(Section::decode(cut, &blob[..length]).is_err());
        }
        for flip in flips {
            let bit = flip.index(blob.len() * 8);
            let mut damaged = blob.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Section::decode(cut, &damaged).is_err());
        }
        let mut longer = blob;
        longer.push(0);
        prop_assert!(Section::decode(cut, &longer).is_err());
    }

    /// Behind the checksum: what is forged on purpose must not harm either.
    #[test]
    fn forged_bodies_never_panic(
        rows in rows(),
        cut in prop::sample::select(&Cut::STORED[..]),
        forgeries in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut_off in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut body = Section::project(&Section::merge(None, rows), cut).body();
        prop_assert!(Section::decode_body(&body[..cut_off.index(body.len())]).is_err());
        for (at, byte) in forgeries {
            let at = at.index(body.len());
            body[at] = byte;
        }
        for body in [body, noise] {
            if let Ok(section) = Section::decode_body(&body) {
                section.sums();
                section.encode().expect("it is small");
            }
        }
    }
}

#[test]
fn a_claim_of_many_rows_takes_no_room() {
    // Four thousand million rows of columns without bytes, and with one.
    for width in [0, 1] {
        let mut body = vec![1, 0xff, 0xff, 0xff, 0xff];
        body.extend([width; 40]);
        assert!(Section::decode_body(&body).is_err());
    }
}

#[test]
fn a_sum_beyond_64_bits_is_kept() {
    let mut measures = [1; MEASURES];
    measures[8] = i64::MAX;
    let row = FullRow { keys: [1, 1, 1, 1, 1, 1], measures };
    let section = Section::merge(None, vec![row; 3]);
    let section = Section::merge(Some(&section), vec![row; 2]);
    assert_eq!((section.rows(), section.sums()[8]), (1, 5 * i128::from(i64::MAX)));
    assert_eq!(Section::decode(Cut::FULL, &blob(&section)), Ok(section));
}

#[test]
fn what_is_taken_back_was_never_there() {
    let row = FullRow { keys: [1, 1, 1, 1, 1, 1], measures: [7; MEASURES] };
    let back = FullRow { measures: [-7; MEASURES], ..row };
    let section = Section::merge(Some(&Section::merge(None, vec![row])), vec![back]);
    assert_eq!(section, Section::merge(None, Vec::new()));
    assert_eq!(Section::decode(Cut::FULL, &blob(&section)), Ok(section));
}

#[test]
fn unknown_ids_are_noticed() {
    let values = super::super::Values::new();
    let row = FullRow { keys: [0, 0, 0, 0, 0, 1], measures: [1; MEASURES] };
    assert!(Section::merge(None, vec![row]).knows(&values));
    let full = Section::merge(None, vec![FullRow { keys: [0, 0, 0, 0, 1, 1], ..row }]);
    assert!(!full.knows(&values));
    assert!(!Section::project(&full, Cut::STATUS).knows(&values), "the model is in its set");
    assert_eq!(overlay().text(crate::model::Dimension::Model, 1), "model-389");
}
