//! All filters against a naive reference, on both engines, whatever the index has caught up with.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use audit_service::event::{Change, Event, Operation, Outcome, Resource, Stage};
use audit_service::filter::{ActionPattern, Filter, OneOf, Stages};
use audit_service::store::{Order, Range, Store};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use support::{ALL, Engine, Home, T0, event_with, reference, write};

const ACTORS: [&str; 4] = ["u-1", "u-2", "Ada", "ada"];
const INSTANCES: [&str; 3] = ["prod", "PROD", "dev"];
const ACTIONS: [&str; 5] =
    ["model.enabled", "model.disabled", "user.created", "mcp_oauth_client.updated", "mcp.updated"];
const RESOURCES: [&str; 4] = ["m-1", "m-2", "GPT-4o", "sales team"];
const KINDS: [&str; 3] = ["model", "user", "team"];
const PATHS: [&str; 4] = ["", "/role", "/limits/rpm", "/Role"];
const VALUES: [&str; 6] =
    ["1500", "\"Sales\\nteam\"", "{\"note\":\"4\\u006f Zo\u{eb}\"}", "[true,null]", "\"gpt\"", " \"x/y\" "];
const WORDS: [&str; 11] = ["gpt", "4o", "sales", "team", "1500", "true", "note", "zoë", "ada", "missing", "y"];

fn text(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(values).prop_map(str::to_owned)
}

fn an_event() -> impl Strategy<Value = Event> {
    let resource = (text(&KINDS), text(&RESOURCES), prop::option::of(text(&RESOURCES)));
    let change = (text(&PATHS), prop::option::of(text(&VALUES)), prop::option::of(text(&VALUES)));
    let operation = (select(&["o-1", "o-2", "o-3"][..]), select(Stage::ALL));
    let content = (
        text(&ACTORS),
        prop::option::of(text(&ACTORS)),
        text(&ACTIONS),
        prop::collection::vec(resource, 1..3),
        prop::collection::vec(change, 0..3),
        select(Outcome::ALL),
    );
    // Few different times, so that there are ties.
    (0..40_i64, text(&INSTANCES), content, prop::option::weighted(0.4, operation), prop::option::of(text(&VALUES)))
        .prop_map(|(us, instance, (actor, name, action, resources, changes, outcome), operation, details)| {
            event_with(T0 + us, |event| {
                event.instance_id = instance;
                event.actor.id = actor;
                event.actor.display_name = name.unwrap_or_default();
                event.action = action;
                event.resources = resources
                    .into_iter()
                    .map(|(kind, id, name)| Resource { kind, id, name: name.unwrap_or_default() })
                    .collect();
                event.changes = changes
                    .into_iter()
                    .map(|(path, old_value, new_value)| Change { path, old_value, new_value })
                    .collect();
                event.outcome = outcome;
                event.operation = operation.map(|(id, stage)| Operation { id: id.to_owned(), stage });
                event.details_json = details.unwrap_or_default();
            })
        })
}

fn some<T: std::fmt::Debug + Ord + Clone>(values: impl Strategy<Value = T>) -> impl Strategy<Value = OneOf<T>> {
    prop_oneof![
        3 => Just(OneOf::default()),
        1 => prop::collection::vec(values, 1..3).prop_map(OneOf::from_iter),
    ]
}

fn a_filter() -> impl Strategy<Value = Filter> {
    let pattern = prop_oneof![
        text(&ACTIONS).prop_map(ActionPattern::Exact),
        text(&["model", "mcp", "mcp_oauth_client", "none"]).prop_map(ActionPattern::Of),
    ];
    let stages = prop_oneof![
        Just(Stages::Settled),
        Just(Stages::All),
        prop::collection::vec(select(Stage::ALL), 1..3).prop_map(|stages| Stages::Of(OneOf::from_iter(stages))),
    ];
    let words = prop_oneof![
        3 => Just(Vec::new()),
        2 => prop::collection::vec(text(&WORDS), 1..3),
    ];
    let lists = (some(text(&ACTORS)), some(pattern), some(text(&RESOURCES)), some(text(&KINDS)));
    let others = (some(text(&INSTANCES)), some(select(Outcome::ALL)), some(text(&PATHS)));
    (lists, others, stages, words).prop_map(
        |((actors, actions, resources, resource_types), (instance_ids, outcomes, changed_paths), stages, words)| {
            Filter { actors, actions, resources, resource_types, instance_ids, outcomes, changed_paths, stages, words }
        },
    )
}

/// Events, at which of them the index is made, the size of its blocks, and questions.
type Case = (Vec<Event>, Index, u64, Vec<(Filter, Range, Order, usize)>);

fn a_case() -> impl Strategy<Value = Case> {
    let range = prop_oneof![
        Just(ALL),
        (0..40_i64, 0..40_i64).prop_map(|(start, length)| Range { start_us: T0 + start, end_us: T0 + start + length }),
    ];
    let question =
        (a_filter(), range, select(&[Order::NewestFirst, Order::OldestFirst][..]), select(&[1, 7, 1_000][..]));
    (
        prop::collection::vec(an_event(), 0..160),
        any::<Index>(),
        select(&[1, 5, 16, 100, 4_096][..]),
        prop::collection::vec(question, 12),
    )
}

async fn holds(home: &Home, store: Store, (events, indexed, block_entries, questions): Case) {
    let store = store.with_block_entries(block_entries);
    let at = indexed.index(events.len() + 1);
    for part in [&events[..at], &events[at..]] {
        for events in part.chunks(50) {
            write(&store, events.to_vec()).await;
        }
        if part.len() == at {
            store.index_all().await.unwrap();
        }
    }
    for (filter, range, order, page) in questions {
        let expected = reference::list(&events, &filter, range, order);
        let found = support::ids(&store, &filter, range, order, page).await;
        assert_eq!(found, expected, "{:?} {filter:?} {range:?} {order:?}", home.engine);
        let facets = store.facets(&filter, range, 1_000).await.unwrap();
        assert_eq!(facets.actions.iter().map(|facet| facet.count).sum::<u64>(), expected.len() as u64);
    }
}

fn run(engine: Engine, cases: u32) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    runner
        .run(&a_case(), |case| {
            runtime.block_on(async {
                let home = Home::new(engine).await;
                let store = home.open().await;
                holds(&home, store.clone(), case).await;
                store.close().await;
            });
            Ok(())
        })
        .unwrap();
}

#[test]
fn filters_agree_with_a_naive_reference_on_sqlite() {
    run(Engine::Sqlite, 48);
}

#[test]
fn filters_agree_with_a_naive_reference_on_postgres() {
    if !testkit::Postgres::skipped() {
        run(Engine::Postgres, 12);
    }
}

/// A database of one part each: entries in the index, entries not in it, and a part of a block that grew.
#[tokio::test]
async fn a_part_of_a_block_grows() {
    let home = Home::new(Engine::Sqlite).await;
    let store = home.open().await;
    let by = |at: i64| event_with(T0 + at, |event| event.actor.id = format!("u-{}", at % 3));
    let mut events = Vec::new();
    for part in 0..6 {
        let more: Vec<Event> = (0..70).map(|at| by(part * 70 + at)).collect();
        write(&store, more.clone()).await;
        events.extend(more);
        store.index_all().await.unwrap();
        for order in [Order::NewestFirst, Order::OldestFirst] {
            let filter = Filter { actors: OneOf::from_iter(["u-1".to_owned()]), ..Filter::default() };
            let expected = reference::list(&events, &filter, ALL, order);
            assert_eq!(support::ids(&store, &filter, ALL, order, 9).await, expected);
        }
    }
}
