//! Tally and ranker, against maps of texts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::super::{
    Cut, FullRow, IdFilter, KEYS, MEASURES, MODEL, OutOfRange, Overlay, Question, Ranker, Section, Tally, USER, Values,
    tally::totals,
};
use super::{SIZES, overlay, row, text};
use crate::answer::{Group, Metrics, Ranked};
use crate::model::{Dimension, Filter, Metric, Status};

const INSTANCES: u32 = 3;
const BUCKETS: usize = 4;

#[derive(Debug, Clone)]
struct Placed {
    bucket: usize,
    instance: u32,
    row: FullRow,
    /// Else it comes alone.
    sealed: bool,
}

fn placed() -> impl Strategy<Value = Vec<Placed>> {
    let placed = (0..BUCKETS, 1..=INSTANCES, row(), prop::bool::weighted(0.9));
    let placed = placed.prop_map(|(bucket, instance, row, sealed)| Placed { bucket, instance, row, sealed });
    prop::collection::vec(placed, 0..120)
}

fn texts(dimension: Dimension) -> impl Strategy<Value = Vec<String>> {
    let size = KEYS.iter().position(|key| *key == dimension).map_or(INSTANCES, |place| SIZES[place]);
    let some = prop::collection::vec(
        prop_oneof![4 => (1..=size).prop_map(move |id| text(dimension, id)), 1 => Just("unheard of".to_owned())],
        1..=size as usize,
    );
    prop_oneof![3 => Just(Vec::new()), 1 => some]
}

fn filter() -> impl Strategy<Value = Filter> {
    let texts = (
        texts(Dimension::Instance),
        texts(Dimension::User),
        texts(Dimension::Team),
        texts(Dimension::ApiKey),
        texts(Dimension::Provider),
        texts(Dimension::Model),
    );
    let statuses =
        prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(prop::sample::select(&Status::ALL[..]), 1..4)];
    (texts, statuses).prop_map(|((instance_ids, user_ids, team_ids, api_key_ids, providers, models), statuses)| {
        Filter { instance_ids, user_ids, team_ids, api_key_ids, providers, models, statuses, labels: BTreeMap::new() }
    })
}

fn keys() -> impl Strategy<Value = Vec<Dimension>> {
    let dimension = prop::sample::select(&Dimension::ALL[..]);
    prop::collection::btree_set(dimension, 0..=3).prop_map(|keys| keys.into_iter().collect::<Vec<_>>()).prop_shuffle()
}

fn metric() -> impl Strategy<Value = Metric> {
    prop::sample::select(&[Metric::Requests, Metric::Tokens, Metric::Cost][..])
}

fn value(overlay: &Overlay, placed: &Placed, dimension: Dimension) -> String {
    let id = match KEYS.iter().position(|key| *key == dimension) {
        Some(place) => placed.row.keys[place],
        None => placed.instance,
    };
    overlay.text(dimension, id).to_owned()
}

#[derive(Debug, Clone, Default)]
struct Cell {
    sums: [i128; MEASURES],
    users: BTreeSet<u32>,
    models: BTreeSet<u32>,
}

impl Cell {
    fn add(&mut self, row: &FullRow) {
        for (sum, measure) in self.sums.iter_mut().zip(row.measures) {
            *sum += i128::from(measure);
        }
        if row.keys[USER] != 0 {
            self.users.insert(row.keys[USER]);
        }
        self.models.insert(row.keys[MODEL]);
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            totals: totals(&self.sums).expect("few requests"),
            unique_users: self.users.len() as u64,
            unique_models: self.models.len() as u64,
        }
    }
}

/// What is to be answered, the plain way.
fn reference(
    placed: &[Placed],
    filter: &Filter,
    keys: &[Dimension],
    order_by: Metric,
    limit: usize,
    overlay: &Overlay,
) -> Ranked {
    let admits = |placed: &&Placed| {
        let lists = [
            (Dimension::Instance, &filter.instance_ids),
            (Dimension::User, &filter.user_ids),
            (Dimension::Team, &filter.team_ids),
            (Dimension::ApiKey, &filter.api_key_ids),
            (Dimension::Provider, &filter.providers),
            (Dimension::Model, &filter.models),
        ];
        let status = placed.row.keys[5];
        lists.iter().all(|(dimension, list)| list.is_empty() || list.contains(&value(overlay, placed, *dimension)))
            && (filter.statuses.is_empty() || filter.statuses.iter().any(|known| known.number() as u32 == status))
    };
    let mut groups: BTreeMap<Vec<String>, Vec<&Placed>> = BTreeMap::new();
    for placed in placed.iter().filter(admits) {
        groups.entry(keys.iter().map(|key| value(overlay, placed, *key)).collect()).or_default().push(placed);
    }
    let cells = |placed: &[&Placed]| {
        let mut cells = vec![Cell::default(); BUCKETS];
        placed.iter().for_each(|placed| cells[placed.bucket].add(&placed.row));
        cells.iter().map(Cell::metrics).collect::<Vec<_>>()
    };
    let everything: Vec<&Placed> = groups.values().flatten().copied().collect();
    let mut ranked: Vec<_> = groups
        .into_iter()
        .map(|(keys, placed)| {
            let mut cell = Cell::default();
            placed.iter().for_each(|placed| cell.add(&placed.row));
            (cell.metrics().totals.metric(order_by), keys, placed)
        })
        .collect();
    // Stable, and the map is in the order of the keys.
    ranked.sort_by_key(|(metric, _, _)| std::cmp::Reverse(*metric));
    let groups = ranked.len() as u64;
    let others: Vec<&Placed> = ranked.iter().skip(limit).flat_map(|(_, _, placed)| placed).copied().collect();
    let rows = ranked.into_iter().take(limit).map(|(_, keys, placed)| Group { keys, buckets: cells(&placed) });
    let mut overall = Cell::default();
    everything.iter().for_each(|placed| overall.add(&placed.row));
    Ranked {
        rows: rows.collect(),
        other: (!others.is_empty()).then(|| cells(&others)),
        total: cells(&everything),
        overall: overall.metrics(),
        groups,
    }
}

/// The same by sections of a cut, and rows.
fn answer(
    placed: &[Placed],
    question: &Question,
    cut: Cut,
    order_by: Metric,
    limit: usize,
    overlay: &Overlay,
) -> Ranked {
    let mut segments: BTreeMap<(usize, u32), Vec<FullRow>> = BTreeMap::new();
    for placed in placed.iter().filter(|placed| placed.sealed) {
        segments.entry((placed.bucket, placed.instance)).or_default().push(placed.row);
    }
    let sections: Vec<_> =
        segments.into_iter().map(|(at, rows)| (at, Section::project(&Section::merge(None, rows), cut))).collect();
    let alone = || placed.iter().filter(|placed| !placed.sealed);

    let mut ranker = Ranker::new(question, order_by, overlay);
    alone().for_each(|placed| ranker.add_row(placed.instance, &placed.row));
    for ((_, instance), section) in &sections {
        ranker.add_section(*instance, section).expect("it has the keys");
    }
    let ranking = ranker.finish(overlay, limit);
    let mut tally = Tally::new(question, Some(&ranking.chosen));
    for ((bucket, instance), section) in &sections {
        tally.add_section(*bucket, *instance, section).expect("it has the keys");
    }
    alone().for_each(|placed| tally.add_row(placed.bucket, placed.instance, &placed.row));
    tally.finish(overlay, ranking.groups).expect("few requests")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_answer_is_that_of_the_rows(
        placed in placed(),
        filter in filter(),
        keys in keys(),
        order_by in metric(),
        limit in prop_oneof![0..4_usize, Just(1_000)],
    ) {
        let mut overlay = overlay();
        let filter_by_id = IdFilter::new(&filter, &mut overlay);
        let question = Question { keys, filter: filter_by_id, buckets: BUCKETS };
        let expected = reference(&placed, &filter, &question.keys, order_by, limit, &overlay);
        for cut in [question.cut(), Cut::FULL] {
            let found = answer(&placed, &question, cut, order_by, limit, &overlay);
            prop_assert_eq!(&found, &expected);
        }

        let mut total = Tally::new(&question, None);
        for placed in &placed {
            total.add_row(placed.bucket, placed.instance, &placed.row);
        }
        let total = total.finish(&overlay, 0).expect("few requests");
        prop_assert_eq!((&total.total, &total.overall), (&expected.total, &expected.overall));
        prop_assert!(total.rows.is_empty() && total.other.is_none(), "nothing is told apart");
    }
}

fn costly(user: u32, cost: i64) -> FullRow {
    let mut measures = [0; MEASURES];
    (measures[0], measures[8]) = (1, cost);
    FullRow { keys: [user, 0, 0, 1, 1, 1], measures }
}

fn question(keys: &[Dimension]) -> Question {
    Question { keys: keys.to_vec(), filter: IdFilter::default(), buckets: 1 }
}

fn nothing() -> Overlay {
    Overlay::new(Arc::new(Values::new()))
}

#[test]
fn money_beyond_64_bits_is_exact() {
    let question = question(&[Dimension::Team]);
    let mut tally = Tally::new(&question, Some(&[[0; 3]]));
    let mut ranker = Ranker::new(&question, Metric::Cost, &nothing());
    let mut expected = 0;
    for round in 0..100_i64 {
        let cost = i64::MAX - round;
        // Users enough that a section's own sum passes 64 bits every other time.
        let rows: Vec<_> = (0..=round % 2).map(|user| costly(user as u32 + 1, cost)).collect();
        expected += i128::from(cost) * rows.len() as i128;
        let section = Section::project(&Section::merge(None, rows), Cut::TEAM);
        tally.add_section(0, 1, &section).expect("it has the key");
        ranker.add_section(1, &section).expect("it has the key");
        for cost in [cost, i64::MIN, -1, i64::MAX] {
            tally.add_row(0, 1, &costly(1, cost));
            expected += i128::from(cost);
        }
    }
    let ranked = tally.finish(&nothing(), 1).expect("few requests");
    assert_eq!(ranked.overall.totals.cost_nanos, expected);
    assert_eq!(ranked.rows[0].buckets[0].totals.cost_nanos, expected);
    assert_eq!((ranked.overall.unique_users, ranked.overall.totals.requests), (2, 550));
    assert_eq!(ranker.finish(&nothing(), 5).chosen, [[0; 3]]);
}

#[test]
fn a_count_below_zero_is_no_answer() {
    let question = question(&[]);
    let mut tally = Tally::new(&question, None);
    let mut row = costly(1, 1);
    row.measures[0] = -1;
    tally.add_row(0, 1, &row);
    assert_eq!(tally.finish(&nothing(), 0), Err(OutOfRange));
}

#[test]
fn a_section_without_the_key_is_refused() {
    let full = Section::merge(None, vec![costly(1, 1)]);
    let by_team = Section::project(&full, Cut::TEAM);
    let grouped = question(&[Dimension::User]);
    let mut overlay = nothing();
    let filter = Filter { user_ids: vec!["a".to_owned()], providers: vec!["b".to_owned()], ..Filter::default() };
    let filtered = Question { filter: IdFilter::new(&filter, &mut overlay), ..question(&[]) };
    assert_eq!((grouped.cut(), filtered.cut(), question(&[]).cut()), (Cut::USER, Cut::of([0, 3]), Cut::STATUS));
    for question in [grouped, filtered] {
        assert!(Tally::new(&question, None).add_section(0, 1, &by_team).is_err());
        assert!(Ranker::new(&question, Metric::Cost, &overlay).add_section(1, &by_team).is_err());
        assert_eq!(Tally::new(&question, None).add_section(0, 1, &full), Ok(()));
    }
}

#[test]
fn nothing_at_all_is_zeros() {
    let question = question(&[Dimension::User]);
    let ranking = Ranker::new(&question, Metric::Cost, &nothing()).finish(&nothing(), 10);
    assert_eq!((ranking.chosen.len(), ranking.groups), (0, 0));
    let ranked = Tally::new(&question, Some(&ranking.chosen)).finish(&nothing(), 0).expect("nothing");
    assert_eq!((ranked.total, ranked.overall), (vec![Metrics::default()], Metrics::default()));
    assert!(ranked.rows.is_empty() && ranked.other.is_none());
}
