//! Totals, breakdowns, series and facets against the naive reference.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use service_core::auth::Access;
use usage_service::model::{Charge, Dimension, Event, Filter, Metric, NewRequest, Position, Scope, Status, Tokens};
use usage_service::store::{Order, Store};

use crate::events::{NOON, always, id, priced, request, scope, seal_all, sealed, write_new};
use crate::{Bench, reference};

// `B` is before `a` in bytes, and behind it in most locales.
const NAMES: [&str; 4] = ["", "a", "B", "ü"];
const METRICS: [Metric; 3] = [Metric::Requests, Metric::Tokens, Metric::Cost];

fn tokens() -> impl Strategy<Value = Tokens> {
    let count = || prop_oneof![Just(0), 0..100_i64, Just(1_000_000_000)];
    (count(), count(), count(), count()).prop_map(|(input_uncached, input_cache_read, write, output)| Tokens {
        input_uncached,
        input_cache_read,
        input_cache_write: write,
        input_cache_write_1h: write / 2,
        output,
        output_reasoning: output / 3,
    })
}

fn charge() -> impl Strategy<Value = Charge> {
    prop_oneof![Just(Charge::Unpriced("unknown".into())), (0..5_i64).prop_map(priced), (0..=i64::MAX).prop_map(priced),]
}

/// Steps between moments, in microseconds: within a quarter of an hour; at its edges; and over hours and days, as the
/// spans of rollups.
const STEPS: [i64; 4] = [7_000_001, 900_000_000, 3_333_333_333, 30_000_000_000];

/// Few names and moments, so that ties and shared groups are common.
fn requests(step: i64) -> impl Strategy<Value = Vec<NewRequest>> {
    let names = || select(NAMES.to_vec()).prop_map(str::to_owned);
    let named = || select(NAMES[1..].to_vec()).prop_map(str::to_owned);
    let labels = prop::collection::btree_map(named(), names(), 0..3);
    let one = (
        (-20..20_i64, names(), names(), names(), named()),
        (named(), named(), select(Status::ALL.to_vec()), labels, tokens(), charge()),
    );
    prop::collection::vec(one, 0..80).prop_map(move |rows| {
        rows.into_iter()
            .zip(0..)
            .map(|(((moment, user_id, team_id, api_key_id, provider), rest), n)| {
                let (model, instance_id, status, labels, tokens, charge) = rest;
                let occurred_at_us = NOON + moment * step;
                let event = Event {
                    id: id(occurred_at_us, n),
                    occurred_at_us,
                    instance_id,
                    user_id,
                    team_id,
                    api_key_id,
                    provider,
                    model,
                    status,
                    labels,
                    tokens,
                    ..request(NOON, 0).event
                };
                sealed(event, charge)
            })
            .collect()
    })
}

#[derive(Debug, Clone)]
struct Question {
    scope: Scope,
    keys: Vec<Dimension>,
    order_by: Metric,
    limit: usize,
    edges: Vec<i64>,
}

fn question(step: i64) -> impl Strategy<Value = Question> {
    let list = || {
        let values = subsequence(NAMES.to_vec(), 0..=3);
        prop_oneof![3 => Just(Vec::new()), 1 => values].prop_map(|list| list.into_iter().map(str::to_owned).collect())
    };
    let statuses = prop_oneof![3 => Just(Vec::new()), 1 => subsequence(Status::ALL.to_vec(), 0..=3)];
    let labels = prop_oneof![
        3 => Just(BTreeMap::new()),
        1 => (select(NAMES.to_vec()), select(NAMES.to_vec())).prop_map(|(k, v)| [(k.to_owned(), v.to_owned())].into()),
    ];
    let filter = (list(), list(), list(), list(), list(), list(), statuses, labels).prop_map(
        |(instance_ids, user_ids, team_ids, api_key_ids, providers, models, statuses, labels)| Filter {
            instance_ids,
            user_ids,
            team_ids,
            api_key_ids,
            providers,
            models,
            statuses,
            labels,
        },
    );
    let keys = subsequence(Dimension::ALL.to_vec(), 1..=3).prop_shuffle();
    // Edges of any width, among them those at which requests lie.
    let edges = prop::collection::btree_set(
        prop_oneof![(-20..20_i64).prop_map(move |m| m * step), -20 * step..20 * step],
        2..12,
    );
    // Half of the callers see everything, others some instances (maybe none), and maybe one user.
    let names = |most: usize| subsequence(NAMES.to_vec(), 0..=most);
    let access = prop_oneof![Just((None, None)), (names(3), names(1)).prop_map(|(i, u)| (Some(i), u.first().copied()))]
        .prop_map(|(instances, user)| {
            let access = Access::unrestricted();
            let access = instances.map_or(access.clone(), |instances| access.to_instances(instances));
            user.map_or(access.clone(), |user| access.to_user(user))
        });
    (access, filter, keys, select(METRICS.to_vec()), 1..6_usize, edges).prop_map(
        move |(access, filter, keys, order_by, limit, edges)| {
            let edges: Vec<i64> = edges.into_iter().map(|edge| NOON + edge).collect();
            let scope = Scope { access, filter, ..scope(edges[0], *edges.last().unwrap()) };
            Question { scope, keys, order_by, limit, edges }
        },
    )
}

async fn check(store: &Store, all: &[NewRequest], question: &Question) {
    let Question { scope, keys, order_by, limit, edges } = question;
    let inside = reference::within(all, scope);
    let total = reference::metrics(inside.iter().copied());
    let whole = [scope.start_us, scope.end_us];

    assert_eq!(store.totals(scope, &whole).await.unwrap(), [total], "{question:?}");
    assert_eq!(store.totals(scope, edges).await.unwrap(), reference::buckets(&inside, edges), "{question:?}");

    // From what is stored, for the first and for the second who asks; then from what was made of it for others.
    // Every other question is asked so often.
    for time in 1..=if limit % 2 == 0 { 3 } else { 1 } {
        store.prepared().await;
        let ranked = store.breakdown(scope, keys, *order_by, *limit).await.unwrap();
        let expected = reference::ranked(&inside, keys, *order_by, *limit, &whole);
        assert_eq!(
            (&ranked.rows, &ranked.other, ranked.groups),
            (&expected.rows, &expected.other, expected.groups),
            "{question:?} for the {time}th time"
        );
        assert_eq!(ranked.total, [total], "{question:?} for the {time}th time");

        let series = store.series(scope, keys, *order_by, *limit, edges, |_| Ok(())).await.unwrap();
        let expected = reference::ranked(&inside, keys, *order_by, *limit, edges);
        assert_eq!((&series.rows, &series.other), (&expected.rows, &expected.other), "{question:?}");
        assert_eq!(series.overall, total, "{question:?} for the {time}th time");

        // Rows and other are the total, to the nano-dollar.
        let rows = ranked.rows.iter().flat_map(|row| &row.buckets).chain(ranked.other.iter().flatten());
        let mut sum = usage_service::answer::Totals::default();
        rows.for_each(|row| sum.add(&row.totals));
        assert_eq!(sum, total.totals, "{question:?}");
    }

    for (dimension, values, distinct) in store.facets(scope, *limit).await.unwrap() {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for request in &inside {
            *counts.entry(reference::key(request, dimension)).or_default() += 1;
        }
        assert_eq!(distinct, counts.len() as u64, "{question:?}");
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts.truncate(*limit);
        assert_eq!(values, counts, "{question:?}");
    }

    let mut expected: Vec<_> = inside.iter().map(|r| (r.event.occurred_at_us, r.event.id)).collect();
    expected.sort();
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = store.requests(scope, Order::OldestFirst, after, *limit).await.unwrap();
        found.extend(page.iter().map(|r| (r.event.occurred_at_us, r.event.id)));
        let Some((occurred_at_us, id)) = found.last().copied().filter(|_| page.len() == *limit) else { break };
        after = Some(Position { occurred_at_us, id });
    }
    assert_eq!(found, expected, "{question:?}");
}

pub(crate) async fn random_questions_equal_the_reference(bench: Bench) {
    // The generator of the library, driven by hand: its own loop is not async. A
    // failure names the question, and the seed is fixed.
    let mut runner = TestRunner::deterministic();
    let mut all: Vec<NewRequest> = Vec::new();
    for round in 0..12_u64 {
        let step = STEPS[round as usize % STEPS.len()];
        let more = requests(step).new_tree(&mut runner).unwrap().current();
        // Ids of their own in every round.
        let more: Vec<_> = more
            .into_iter()
            .zip(round * 1_000..)
            .map(|(new, n)| {
                let event = Event { id: id(new.event.occurred_at_us, n), ..new.event };
                sealed(event, new.charge)
            })
            .collect();
        write_new(&bench.store, more.clone()).await;
        all.extend(more);
        // Some of what was written is in rollups, some is not yet, and some of it is late.
        if round % 3 == 1 {
            seal_all(&bench.store).await;
        }
        for index in 0..16 {
            let question = question(STEPS[index % STEPS.len()]).new_tree(&mut runner).unwrap().current();
            check(&bench.store, &all, &question).await;
        }
    }
}

pub(crate) async fn every_set_of_dimensions_equals_the_reference(bench: Bench) {
    let mut runner = TestRunner::deterministic();
    let all = loop {
        let all = requests(STEPS[2]).new_tree(&mut runner).unwrap().current();
        if all.len() > 60 {
            break all;
        }
    };
    let (sealed, left) = all.split_at(30);
    write_new(&bench.store, sealed.to_vec()).await;
    seal_all(&bench.store).await;
    write_new(&bench.store, left.to_vec()).await;
    let scope = always();
    let inside = reference::within(&all, &scope);
    let edges = [0, i64::MAX];
    let mut asked = 0;
    for a in Dimension::ALL {
        for b in Dimension::ALL {
            for c in Dimension::ALL {
                // Equal neighbours stand for fewer dimensions.
                let mut keys = vec![a, b, c];
                keys.dedup();
                if keys.len() == 2 && a != b || keys.len() == 3 && a == c {
                    continue;
                }
                let order_by = METRICS[asked % 3];
                let limit = asked % 7 + 1;
                let ranked = bench.store.breakdown(&scope, &keys, order_by, limit).await.unwrap();
                let expected = reference::ranked(&inside, &keys, order_by, limit, &edges);
                assert_eq!(
                    (ranked.rows, ranked.other, ranked.groups),
                    (expected.rows, expected.other, expected.groups),
                    "{keys:?}"
                );
                asked += 1;
            }
        }
    }
    assert_eq!(asked, 7 + 42 + 210);
}
