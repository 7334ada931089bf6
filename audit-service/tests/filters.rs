//! All filters against a naive reference, on both engines, whatever the index has caught up with.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use audit_service::event::{Change, Event, Operation, Outcome, Resource, Stage};
use audit_service::export::{Export, Format, Scope};
use audit_service::filter::{ActionPattern, Filter, OneOf, Stages};
use audit_service::store::{Heads, Order, Range, Sought, Store};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use service_core::auth::Access;
use support::{ALL, Engine, Home, T0, event_with, full, reference, write};
use uuid::Uuid;

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

/// Events, at which of them the index is made, how many entries a run has at first, and questions.
type Case = (Vec<Event>, Vec<Index>, u64, Vec<(Access, Filter, Range, Order, usize)>);

/// What somebody may see: everything, or some instances, among them none and one that is not there.
fn an_access() -> impl Strategy<Value = Access> {
    let some = prop::collection::vec(select(&["prod", "PROD", "dev", "nowhere"][..]), 0..3);
    prop_oneof![Just(Access::unrestricted()), some.prop_map(|instances| Access::unrestricted().to_instances(instances)),]
}

fn a_case() -> impl Strategy<Value = Case> {
    let range = prop_oneof![
        Just(ALL),
        (0..40_i64, 0..40_i64).prop_map(|(start, length)| Range { start_us: T0 + start, end_us: T0 + start + length }),
    ];
    let question = (
        an_access(),
        a_filter(),
        range,
        select(&[Order::NewestFirst, Order::OldestFirst][..]),
        select(&[1, 7, 1_000][..]),
    );
    (
        prop::collection::vec(an_event(), 0..400),
        prop::collection::vec(any::<Index>(), 0..4),
        select(&[2, 5, 16, 100, 4_096][..]),
        prop::collection::vec(question, 12),
    )
}

async fn holds(home: &Home, store: Store, (events, indexed, block_entries, questions): Case) {
    let store = store.with_block_entries(block_entries);
    let mut stops: Vec<usize> = indexed.iter().map(|at| at.index(events.len() + 1)).collect();
    stops.sort_unstable();
    let mut begin = 0;
    for end in stops.into_iter().chain([events.len()]) {
        for events in events[begin..end].chunks(50) {
            write(&store, events.to_vec()).await;
        }
        begin = end;
        if end < events.len() {
            store.index_all().await.unwrap();
        }
    }
    for (access, filter, range, order, page) in questions {
        let what = format!("{:?} {access:?} {filter:?} {range:?} {order:?}", home.engine);
        let seen: Vec<Event> = events.iter().filter(|event| access.has_instance(&event.instance_id)).cloned().collect();
        let expected = reference::list(&seen, &filter, range, order);
        let found = support::ids_within(&store, &access, &filter, range, order, page).await;
        assert_eq!(found, expected, "{what}");
        for limit in [1, 3, 1_000] {
            let facets = store.facets(&access, &filter, range, limit).await.unwrap();
            assert_eq!(facets, reference::facets(&seen, &expected, limit), "{what}");
        }
        exports_what_is_seen(&store, &access, &filter, range, &seen, &what).await;
        for event in events.iter().take(5) {
            let found = store.by_id(&access, event.id).await.unwrap();
            assert_eq!(matches!(found, Sought::Found(_)), access.has_instance(&event.instance_id), "{what}");
        }
    }
}

/// Whole and resumed, an export has what the list has, and tells the heads of the logs that may be seen.
async fn exports_what_is_seen(
    store: &Store,
    access: &Access,
    filter: &Filter,
    range: Range,
    seen: &[Event],
    what: &str,
) {
    // What an intent has become counts for lists only.
    let stages = if filter.stages == Stages::Settled { Stages::All } else { filter.stages.clone() };
    let filter = Filter { stages, ..filter.clone() };
    let expected = reference::list(seen, &filter, range, Order::OldestFirst);
    let scope = Scope::Time { start_us: range.start_us, end_us: range.end_us };
    let open = Export::open(store.clone(), access, filter.clone(), Format::Jsonl, scope);
    let mut export = open.await.unwrap();
    let mut data = Vec::new();
    while let Some(chunk) = export.chunk().await.unwrap() {
        data.extend(chunk);
        let saved = export.save().unwrap();
        export = Export::resume(store.clone(), access, filter.clone(), Format::Jsonl, &saved).await.unwrap();
    }
    let ids: Vec<Uuid> = String::from_utf8(data)
        .unwrap()
        .lines()
        .map(|line| audit_service::canonical::parse(line).unwrap().event.id)
        .collect();
    assert_eq!(ids, expected, "{what}");
    let asked = filter.instance_ids.values();
    let mut heads = Heads::new();
    for event in seen.iter().filter(|event| asked.is_empty() || asked.contains(&event.instance_id)) {
        *heads.entry(event.instance_id.clone()).or_default() += 1;
    }
    assert_eq!(export.end().heads, heads, "{what}");
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
    run(Engine::Sqlite, 32);
}

#[test]
fn filters_agree_with_a_naive_reference_on_postgres() {
    if !testkit::Postgres::skipped() {
        run(Engine::Postgres, 10);
    }
}

#[tokio::test]
async fn what_comes_while_the_index_is_made_is_found() {
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

/// Far more than a page is looked for by a walk before the rest is scanned, in logs that come out of order.
async fn an_index_far_behind_misses_nothing(engine: Engine) {
    let home = Home::new(engine).await;
    let store = home.open().await.with_block_entries(1_024);
    let event = |at: i64| {
        event_with(T0 + at * 7_919 % 26_000, |event| {
            event.instance_id = INSTANCES[at as usize % 3].to_owned();
            event.actor.id = format!("u-{}", at % 1_000);
            event.actor.display_name = String::new();
            event.reason = if at % 9_000 == 8_999 { "A rare Ticket".to_owned() } else { String::new() };
            event.operation = match at % 5 {
                0 => Some(Operation { id: format!("o-{}", at / 10), stage: Stage::Intent }),
                // The outcome of every second intent comes much later.
                1 if at >= 13_000 && at % 10 == 1 => {
                    Some(Operation { id: format!("o-{}", (at - 13_000) / 10), stage: Stage::Outcome })
                }
                _ => None,
            };
        })
    };
    let events: Vec<Event> = (0..26_000).map(event).collect();
    let (early, late) = events.split_at(5_000);
    for (part, index) in [(early, true), (late, false)] {
        for events in part.chunks(1_000) {
            write(&store, events.to_vec()).await;
        }
        if index {
            store.index_all().await.unwrap();
        }
    }
    let one_of = |value: &str| OneOf::from_iter([value.to_owned()]);
    let filters = [
        Filter { words: vec!["rare".into(), "ticket".into()], ..Filter::default() },
        Filter { words: vec!["nowhere".into()], ..Filter::default() },
        Filter { actors: one_of("u-5"), ..Filter::default() },
        Filter { actors: one_of("u-5"), stages: Stages::All, ..Filter::default() },
        Filter { actors: one_of("u-8"), instance_ids: one_of("PROD"), ..Filter::default() },
        Filter { instance_ids: one_of("dev"), outcomes: OneOf::from_iter([Outcome::Success]), ..Filter::default() },
        Filter { stages: Stages::Of(OneOf::from_iter([Stage::Outcome])), ..Filter::default() },
        // Intents, half of them settled: a page needs more than is kept of a first scan.
        Filter { actors: (0..100).map(|at| format!("u-{}", at * 10)).collect(), ..Filter::default() },
    ];
    let range = Range { start_us: T0 + 3_000, end_us: T0 + 22_000 };
    for again in [false, true] {
        for filter in &filters {
            let oldest = reference::list(&events, filter, range, Order::OldestFirst);
            let page = oldest.len().max(7).div_ceil(7);
            assert_eq!(support::ids(&store, filter, range, Order::OldestFirst, page).await, oldest, "{filter:?}");
            let expected = reference::list(&events, filter, range, Order::NewestFirst);
            assert_eq!(support::ids(&store, filter, range, Order::NewestFirst, page).await, expected, "{filter:?}");
            let facets = store.facets(&full(), filter, range, 10).await.unwrap();
            assert_eq!(facets, reference::facets(&events, &expected, 10), "{filter:?}");
        }
        if !again {
            store.index_all().await.unwrap();
        }
    }
    store.close().await;
}

#[tokio::test]
async fn an_index_far_behind_misses_nothing_on_sqlite() {
    an_index_far_behind_misses_nothing(Engine::Sqlite).await;
}

#[tokio::test]
async fn an_index_far_behind_misses_nothing_on_postgres() {
    if !testkit::Postgres::skipped() {
        an_index_far_behind_misses_nothing(Engine::Postgres).await;
    }
}
