//! Sections made of sections, and blocks of spans: what they stand for is what they are made of.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::distinct::Distinct;
use super::super::{Block, Cut, FullRow, KEYS, Level, MEASURES, MODEL, Section, Span, USER, blocks};
use super::row;

fn cut() -> impl Strategy<Value = Cut> {
    prop::collection::btree_set(0..KEYS.len(), 0..=KEYS.len()).prop_map(Cut::of)
}

fn rows() -> impl Strategy<Value = Vec<FullRow>> {
    prop::collection::vec(row(), 0..80)
}

/// Sums, users and models by the keys of a cut; others are 0.
type Groups = BTreeMap<[u32; KEYS.len()], ([i128; MEASURES], BTreeSet<u32>, BTreeSet<u32>)>;

/// The plain way.
fn reference(rows: &[FullRow], cut: Cut) -> Groups {
    let mut groups = Groups::new();
    for row in rows {
        let key = std::array::from_fn(|place| if cut.has(place) { row.keys[place] } else { 0 });
        let (sums, users, models) = groups.entry(key).or_default();
        for (sum, measure) in sums.iter_mut().zip(row.measures) {
            *sum += i128::from(measure);
        }
        if row.keys[USER] != 0 {
            users.insert(row.keys[USER]);
        }
        models.insert(row.keys[MODEL]);
    }
    groups
}

fn found(section: &Section, cut: Cut) -> Groups {
    assert_eq!(section.cut(), cut);
    let mut groups = Groups::new();
    for at in 0..section.rows() {
        let key = std::array::from_fn(|place| section.key(place).map_or(0, |column| column.id(at)));
        let set = |of: usize| -> BTreeSet<u32> {
            match section.sets(of) {
                Some(sets) => {
                    let mut set = Distinct::default();
                    sets.add_to(at, &mut set);
                    set.into_ids().into_iter().collect()
                }
                None => [key[of]].into_iter().filter(|id| of == MODEL || *id != 0).collect(),
            }
        };
        let sums = std::array::from_fn(|measure| section.measure(measure).0.get(at));
        assert_eq!(groups.insert(key, (sums, set(USER), set(MODEL))), None, "keys occur once");
    }
    let keys: Vec<_> = groups.keys().collect();
    assert!(keys.is_sorted(), "rows rise by their keys");
    groups
}

proptest! {
    #[test]
    fn fewer_keys_are_the_same_rows_added_up(rows in rows(), cut in cut()) {
        let full = Section::merge(None, rows.clone());
        prop_assert_eq!(found(&Section::project(&full, cut), cut), reference(&rows, cut));
    }

    #[test]
    fn two_sections_as_one_are_all_their_rows(left in rows(), right in rows(), more in rows(), cut in cut()) {
        let section = |rows: &[FullRow]| Section::project(&Section::merge(None, rows.to_vec()), cut);
        let united = Section::unite(&section(&left), &section(&right));
        let all = [left, right].concat();
        prop_assert_eq!(found(&united, cut), reference(&all, cut));
        // In any order, and as often as need be.
        let united = Section::unite(&section(&more), &united);
        prop_assert_eq!(found(&united, cut), reference(&[all, more].concat(), cut));
    }

    #[test]
    fn blocks_are_the_spans_and_few(
        runs in prop::collection::vec((0..3_usize, 0..3_usize, -100..100_i64, 1..80_i64), 1..6),
    ) {
        let mut spans = Vec::new();
        for (bucket, level, first, count) in runs {
            let level = Level::ALL[level];
            let span = |number| (bucket, Span { level, start_us: number * level.width_us() });
            spans.extend((first..first + count).map(span));
        }
        let mut again = Vec::new();
        let blocks = blocks(&spans);
        for (bucket, block) in &blocks {
            let before = again.len();
            leaves(*bucket, *block, &mut again);
            let count = (again.len() - before) as i64;
            let number = block.first.start_us / block.first.level.width_us();
            prop_assert!(count.count_ones() == 1 && count <= 32 && number % count == 0, "{:?} of {}", block, count);
        }
        prop_assert_eq!(&again, &spans);
        // Of n spans two for each power of two at most, beside the largest.
        let follows = |left: &Span, right: &Span| left.level == right.level && left.end_us() == right.start_us;
        let runs = spans.chunk_by(|left, right| left.0 == right.0 && follows(&left.1, &right.1));
        let most: usize = runs.map(|run| 2 * run.len().ilog2() as usize + 1 + run.len() / 32).sum();
        prop_assert!(blocks.len() <= most, "{} blocks, at most {most}", blocks.len());
    }
}

/// The spans that a block comes to by halving.
fn leaves(bucket: usize, block: Block, into: &mut Vec<(usize, Span)>) {
    match block.halves() {
        Some(halves) => halves.into_iter().for_each(|half| leaves(bucket, half, into)),
        None => {
            assert_eq!(block, Block::one(block.first));
            into.push((bucket, block.first));
        }
    }
}
