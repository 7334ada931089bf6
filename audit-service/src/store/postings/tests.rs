//! What is stored is found, whatever its size, and damage is noticed.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn places(entries: u64, ranks: &[u32]) -> Places {
    let mut places = Places::none(entries);
    let mut posting = Vec::new();
    encode(ranks, &mut posting);
    places.add(&posting).unwrap();
    places
}

fn build(entries: u64, terms: &BTreeMap<u64, Vec<u32>>) -> BTreeMap<i64, Vec<u8>> {
    let mut builder = ShardBuilder::new(entries);
    terms.iter().for_each(|(term, ranks)| builder.push(*term, ranks));
    builder.finish().into_iter().collect()
}

fn find(parts: &BTreeMap<i64, Vec<u8>>, entries: u64, term: u64) -> Option<Places> {
    let shard = Shard::read(parts.get(&shard_part(term, entries))?).unwrap();
    let mut places = Places::none(entries);
    match shard.find(term).unwrap()? {
        Posting::Here(posting) => places.add(posting).unwrap(),
        Posting::Apart => places.add(&parts[&own_part(term)]).unwrap(),
    }
    Some(places)
}

/// The group in which a term is.
fn group_of(term: u64, groups: u64) -> u64 {
    (term & ((1 << TERM_BITS) - 1)) >> (TERM_BITS - groups.ilog2())
}

fn a_term() -> impl Strategy<Value = u64> {
    (1_u64..=12, 0_u64..1 << TERM_BITS).prop_map(|(kind, hash)| kind << TERM_BITS | hash)
}

proptest! {
    #[test]
    fn ranks_are_read_as_they_were_written(ranks in prop::collection::btree_set(0_u32..5_000, 0..600)) {
        let wanted: Vec<u32> = ranks.iter().copied().collect();
        let found = places(5_000, &wanted);
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), ranks.iter().map(|rank| u64::from(*rank)).collect::<Vec<_>>());
        let mut down: Vec<u64> =
            std::iter::successors(found.next_down(u64::MAX), |rank| found.next_down(*rank)).collect();
        down.reverse();
        prop_assert_eq!(down, found.iter().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_kept_lies_inside(
        ranks in prop::collection::btree_set(0_u32..300, 0..100), from in 0_u64..310, to in 0_u64..310,
    ) {
        let mut kept = places(300, &ranks.iter().copied().collect::<Vec<_>>());
        kept.keep(from, to);
        let expected: Vec<u64> = ranks.into_iter().map(u64::from).filter(|rank| (from..to).contains(rank)).collect();
        prop_assert_eq!(kept.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_stored_is_found(
        terms in prop::collection::btree_map(a_term(), prop::collection::btree_set(0_u32..70_000, 1..50), 1..60),
        others in prop::collection::vec(a_term(), 5),
        entries in prop_oneof![Just(70_000_u64), Just(2_000_000)],
    ) {
        let terms: BTreeMap<u64, Vec<u32>> =
            terms.into_iter().map(|(term, ranks)| (term, ranks.into_iter().collect())).collect();
        let parts = build(entries, &terms);
        for (term, ranks) in &terms {
            prop_assert_eq!(find(&parts, entries, *term), Some(places(entries, ranks)));
            let groups = 4;
            let kind = Kind::OF_ENTRIES.into_iter().find(|kind| *kind as u64 == term >> TERM_BITS);
            if let Some(kind) = kind.filter(|kind| shard_groups(*kind, [entries].into_iter()) >= groups) {
                let (begin, end) = shards_of(kind, entries, groups, group_of(*term, groups));
                prop_assert!((begin..end).contains(&shard_part(*term, entries)));
            }
        }
        for other in others.iter().filter(|other| !terms.contains_key(other)) {
            prop_assert_eq!(find(&parts, entries, *other), None);
        }
    }

    #[test]
    fn ranks_among_others_are_counted(
        some in prop::collection::btree_set(0_u32..900, 0..400), others in prop::collection::btree_set(0_u32..900, 0..400),
    ) {
        let mut posting = Vec::new();
        encode(&others.iter().copied().collect::<Vec<_>>(), &mut posting);
        let both: BTreeSet<u32> = some.intersection(&others).copied().collect();
        let (count, sample) = places(900, &some.into_iter().collect::<Vec<_>>()).count_of(&posting).unwrap();
        prop_assert_eq!(count, both.len() as u64);
        prop_assert!(both.is_empty() || both.contains(&(sample as u32)));
    }
}

#[test]
fn a_long_posting_has_a_part_of_its_own() {
    let entries = 400_000;
    let term = (Kind::Word as u64) << TERM_BITS | 7;
    let terms = BTreeMap::from([(term, (0..entries as u32).step_by(3).collect()), (term + 1, vec![5])]);
    let parts = build(entries, &terms);
    assert_eq!(
        parts.keys().filter(|part| part.unsigned_abs() > 1 << SHARD_BITS << 4).collect::<Vec<_>>(),
        [&own_part(term)]
    );
    for (term, ranks) in &terms {
        assert_eq!(find(&parts, entries, *term), Some(places(entries, ranks)));
    }
}

#[test]
fn damaged_bytes_are_not_read() {
    let term = (Kind::Word as u64) << TERM_BITS;
    let terms = BTreeMap::from([(term, vec![1, 300]), (term + 1, (0..100).collect())]);
    let bytes = build(301, &terms).remove(&shard_part(term, 301)).unwrap();
    for cut in 0..bytes.len() {
        let read =
            Shard::read(&bytes[..cut]).map(|shard| shard.iter().collect::<Option<Vec<_>>>().map(|all| all.len()));
        assert_ne!(read, Some(Some(2)), "{cut}");
    }
    let mut few = Places::none(64);
    assert_eq!(few.add(&[LIST, 0x80]), None);
    assert_eq!(few.add(&[LIST, 64]), None);
    assert_eq!(few.add(&[9]), None);
    assert_eq!(few.add(&[]), None);
}
