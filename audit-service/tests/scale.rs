//! Millions of entries, and how long pages of them take. Not run with the other tests:
//!
//! ```sh
//! SCALE_ENTRIES=10000000 SCALE_ENGINE=sqlite cargo test --release -p audit-service --test scale -- --ignored --nocapture
//! ```
//!
//! `SCALE_ENGINE` is `sqlite` (default) or `postgres`; `SCALE_FOLDER` is where the database of SQLite is kept, and
//! one that is there is measured as it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a measurement")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_service::event::{Change, Event, Operation, Outcome, Resource, Stage};
use audit_service::filter::{ActionPattern, Filter, OneOf, Stages};
use audit_service::store::{Indexer, Order, Range, Store};
use service_core::config::{DatabaseConfig, DatabaseUrl};
use support::{T0, batch, event_with, full};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const DAYS: i64 = 30;
const SPAN_US: i64 = DAYS * 86_400_000_000;
const ACTORS: u64 = 5_000;
const ACTIONS: [&str; 16] = [
    "model.enabled",
    "model.disabled",
    "model.updated",
    "user.created",
    "user.updated",
    "user.deleted",
    "api_key.created",
    "api_key.revoked",
    "team.updated",
    "budget.updated",
    "provider.updated",
    "mcp_server.added",
    "mcp_server.removed",
    "prompt.published",
    "policy.updated",
    "session.ended",
];
const KINDS: [&str; 8] = ["model", "user", "api_key", "team", "budget", "provider", "mcp_server", "prompt"];
const PATHS: [&str; 6] = ["/enabled", "/role", "/limits/rpm", "/limits/tpm", "/name", "/owner"];

/// A number that looks random: the same for the same question.
fn hash(number: u64, salt: u64) -> u64 {
    let mut bits = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xd1b5_4a32_d192_ed03);
    bits ^= bits >> 29;
    bits = bits.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits ^ (bits >> 32)
}

/// Few of `most` often, most of them seldom.
fn skewed(number: u64, salt: u64, most: u64) -> u64 {
    let unit = (hash(number, salt) >> 11) as f64 / (1_u64 << 53) as f64;
    (((most as f64 + 1.0).powf(unit) - 1.0) as u64).min(most - 1)
}

fn made(number: u64, entries: u64) -> Event {
    let late =
        if hash(number, 1).is_multiple_of(50) { hash(number, 2) % 86_400_000_000 } else { hash(number, 2) % 1_000_000 };
    let us = T0 + (SPAN_US as i128 * i128::from(number) / i128::from(entries)) as i64 - late as i64;
    event_with(us, |event| {
        event.instance_id = ["prod-eu", "prod-us", "staging"][skewed(number, 3, 3) as usize].to_owned();
        let actor = skewed(number, 4, ACTORS);
        event.actor.id = format!("user-{actor:05}");
        event.actor.display_name = format!("Person {actor}");
        event.actor.ip_address = format!("10.0.{}.{}", actor / 256, actor % 256);
        let action = skewed(number, 5, ACTIONS.len() as u64) as usize;
        event.action = ACTIONS[action].to_owned();
        let resource = skewed(number, 6, 100_000);
        event.resources = vec![Resource {
            kind: KINDS[action % KINDS.len()].to_owned(),
            id: format!("r-{resource}"),
            name: format!("Resource {resource}"),
        }];
        event.outcome = match hash(number, 7) % 200 {
            0 => Outcome::Unknown,
            1..4 => Outcome::Denied,
            4..12 => Outcome::Failure,
            _ => Outcome::Success,
        };
        // Words: two that never meet, one that only one entry has, some of a vocabulary.
        let half = if number.is_multiple_of(2) { "even" } else { "odd" };
        let words: Vec<String> = (0..5).map(|at| format!("w{}", skewed(number, 10 + at, 20_000))).collect();
        event.reason = format!("TICKET-x{number} {half} {}", words.join(" "));
        event.changes = vec![Change {
            path: PATHS[skewed(number, 20, 6) as usize].to_owned(),
            old_value: Some(format!("{}", hash(number, 21) % 1_000)),
            new_value: Some(format!("{}", hash(number, 22) % 1_000)),
        }];
        if hash(number, 23).is_multiple_of(5_000) {
            event.changes[0].path = "/secrets/rotation".to_owned();
        }
        event.details_json = format!("{{\"region\":\"eu-{}\",\"retry\":false}}", number % 4);
        // A tenth are intents of a robot and their outcomes by another, the outcome a while later; a few stay open.
        if number % 20 == 3 && number % 2_000 != 3 {
            event.actor.id = "planner".to_owned();
            event.operation = Some(Operation { id: format!("o-{}", number / 20), stage: Stage::Intent });
            event.instance_id = "prod-eu".to_owned();
        } else if number % 20 == 13 && number > 5_000 {
            event.operation = Some(Operation { id: format!("o-{}", number / 20 - 200), stage: Stage::Outcome });
            event.instance_id = "prod-eu".to_owned();
        }
    })
}

async fn load(store: &Store, entries: u64, wake: &Notify) {
    let (send, mut batches) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        for begin in (0..entries).step_by(2_000) {
            let events = (begin..entries.min(begin + 2_000)).map(|number| made(number, entries));
            send.blocking_send(batch(events)).unwrap();
        }
    });
    while let Some(batch) = batches.recv().await {
        store.write(&[batch]).await.unwrap();
        wake.notify_one();
    }
}

fn one(value: impl Into<String>) -> OneOf<String> {
    OneOf::from_iter([value.into()])
}

fn many(prefix: &str, count: u64, step: u64) -> OneOf<String> {
    (0..count).map(|at| format!("{prefix}{}", at * step)).collect()
}

fn action(at: u64) -> OneOf<ActionPattern> {
    OneOf::from_iter([ActionPattern::Exact(ACTIONS[at as usize % ACTIONS.len()].to_owned())])
}

fn words(words: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    words.into_iter().map(Into::into).collect()
}

/// The n-th question of a kind.
type Question = fn(u64, u64) -> (Filter, Range, Order);

const WHOLE: Range = Range { start_us: T0 - 2 * 86_400_000_000, end_us: T0 + SPAN_US };

fn newest(filter: Filter) -> (Filter, Range, Order) {
    (filter, WHOLE, Order::NewestFirst)
}

/// The last days.
fn last(days: i64) -> Range {
    Range { start_us: T0 + SPAN_US - days * 86_400_000_000, end_us: T0 + SPAN_US }
}

const QUESTIONS: &[(&str, Question)] = &[
    ("no filter", |_, _| newest(Filter::default())),
    ("rare actor", |n, _| newest(Filter { actors: one(format!("user-{:05}", 2_000 + n)), ..Filter::default() })),
    ("frequent actor", |n, _| newest(Filter { actors: one(format!("user-{:05}", n % 5)), ..Filter::default() })),
    ("rare actor and action", |n, _| {
        newest(Filter { actors: one(format!("user-{:05}", 2_000 + n)), actions: action(n), ..Filter::default() })
    }),
    ("time, actor, action, resource: all frequent", |n, _| {
        let actors = one(format!("user-{:05}", n % 5));
        let filter =
            Filter { actors, actions: action(n % 3), resources: one(format!("r-{}", n % 4)), ..Filter::default() };
        (filter, last(7), Order::NewestFirst)
    }),
    ("time, actor, action, resource: rare resource", |n, _| {
        let actors = one(format!("user-{:05}", n % 5));
        let resources = one(format!("r-{}", 9_000 + n));
        (Filter { actors, actions: action(0), resources, ..Filter::default() }, last(30), Order::NewestFirst)
    }),
    ("frequent action and rare resource", |n, _| {
        newest(Filter { actions: action(n % 4), resources: one(format!("r-{}", 20_000 + n)), ..Filter::default() })
    }),
    ("rare resource by name, oldest first", |n, _| {
        (Filter { resources: one(format!("Resource {}", 5_000 + n)), ..Filter::default() }, WHOLE, Order::OldestFirst)
    }),
    ("actions by prefix", |_, _| {
        newest(Filter { actions: OneOf::from_iter([ActionPattern::Of("api_key".into())]), ..Filter::default() })
    }),
    ("hour, long ago, and actor", |n, _| {
        let start_us = T0 + SPAN_US / 3 + n as i64 * 3_600_000_000;
        let range = Range { start_us, end_us: start_us + 3_600_000_000 };
        (Filter { actors: one(format!("user-{:05}", n)), ..Filter::default() }, range, Order::NewestFirst)
    }),
    ("word of one entry", |n, entries| {
        newest(Filter { words: words([format!("x{}", hash(n, 9) % entries)]), ..Filter::default() })
    }),
    ("word of none", |n, _| newest(Filter { words: words([format!("nowhere{n}")]), ..Filter::default() })),
    ("frequent word", |n, _| newest(Filter { words: words([format!("w{}", n % 3)]), ..Filter::default() })),
    ("two frequent words that never meet", |_, _| {
        newest(Filter { words: words(["even", "odd"]), ..Filter::default() })
    }),
    ("frequent actor without such a word", |_, _| {
        newest(Filter { actors: one("planner"), words: words(["even"]), ..Filter::default() })
    }),
    ("32 frequent words", |_, _| {
        newest(Filter { words: words((0..32).map(|at| format!("w{at}"))), ..Filter::default() })
    }),
    ("changed path, rare", |_, _| newest(Filter { changed_paths: one("/secrets/rotation"), ..Filter::default() })),
    ("denied or unknown, an actor", |n, _| {
        let outcomes = OneOf::from_iter([Outcome::Denied, Outcome::Unknown]);
        newest(Filter { outcomes, actors: one(format!("user-{:05}", n)), ..Filter::default() })
    }),
    ("intents", |_, _| newest(Filter { stages: Stages::Of(OneOf::from_iter([Stage::Intent])), ..Filter::default() })),
    ("intents, nearly all settled", |_, _| newest(Filter { actors: one("planner"), ..Filter::default() })),
    ("instance, action, outcome", |n, _| {
        let outcomes = OneOf::from_iter([Outcome::Failure]);
        newest(Filter { instance_ids: one("staging"), actions: action(n), outcomes, ..Filter::default() })
    }),
    ("1,000 actors and 1,000 resources that are nowhere", |_, _| {
        newest(Filter { actors: many("nobody-", 1_000, 1), resources: many("nothing-", 1_000, 1), ..Filter::default() })
    }),
    ("1,000 rare resources, 1,000 rare actors", |_, _| {
        let actors = (0..1_000).map(|at| format!("user-{:05}", 4_000 + at)).collect();
        newest(Filter { actors, resources: many("r-", 1_000, 97), ..Filter::default() })
    }),
    ("1,000 of each list that are frequent, 31 words and one of none", |_, _| {
        let mut all = words((0..31).map(|at| format!("w{at}")));
        all.push("nowhere".into());
        newest(Filter {
            actors: (0..1_000).map(|at| format!("user-{at:05}")).collect(),
            resources: many("r-", 1_000, 1),
            resource_types: many("model", 1_000, 1),
            changed_paths: many("/enable", 1_000, 1),
            words: all,
            ..Filter::default()
        })
    }),
    ("1,000 of each list, none of them anywhere", |_, _| {
        newest(Filter {
            actors: many("nobody-", 1_000, 1),
            resources: many("nothing-", 1_000, 1),
            resource_types: many("no-type-", 1_000, 1),
            changed_paths: many("/nowhere/", 1_000, 1),
            actions: (0..1_000).map(|at| ActionPattern::Exact(format!("none.a{at}"))).collect(),
            ..Filter::default()
        })
    }),
];

async fn ask(store: &Store, entries: u64, budget: Duration) {
    println!("{:64} {:>6} {:>5} {:>9} {:>9} {:>9}", "", "asked", "rows", "p50 ms", "p99 ms", "max ms");
    for (name, question) in QUESTIONS {
        let mut times = Vec::new();
        let mut rows = 0;
        let begun = Instant::now();
        for n in 0..100 {
            let (filter, range, order) = question(n, entries);
            let asked = Instant::now();
            let page = store.list(&full(), &filter, range, order, None, 50, 1 << 20).await.unwrap();
            times.push(asked.elapsed());
            rows = rows.max(page.entries.len());
            if begun.elapsed() > budget {
                break;
            }
        }
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
        println!("{name:64} {:6} {rows:5} {:9.2} {:9.2} {:9.2}", times.len(), at(50), at(99), at(100));
    }
    let mut after = None;
    let filter = Filter { actors: one("user-00000"), ..Filter::default() };
    let begun = Instant::now();
    for _ in 0..100 {
        after = store.list(&full(), &filter, WHOLE, Order::NewestFirst, after, 50, 1 << 20).await.unwrap().next;
    }
    println!("a hundred pages of a frequent actor, each: {:.2} ms", begun.elapsed().as_secs_f64() * 10.0);
    for (name, filter) in [("all", Filter::default()), ("of an actor", filter)] {
        for range in [WHOLE, last(1)] {
            let begun = Instant::now();
            let facets = store.facets(&full(), &filter, range, 100).await.unwrap();
            let total: u64 = facets.instances.iter().map(|facet| facet.count).sum();
            println!("facets, {name}, of {total}: {:?}", begun.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn pages_of_millions() {
    let variable = |name: &str| std::env::var(name).ok();
    let entries: u64 = variable("SCALE_ENTRIES").map_or(1_000_000, |entries| entries.parse().unwrap());
    let folder = variable("SCALE_FOLDER").map(PathBuf::from);
    let own = tempfile::tempdir().unwrap();
    let url = match variable("SCALE_ENGINE").as_deref() {
        Some("postgres") => DatabaseUrl::new(match variable("SCALE_URL") {
            Some(url) => url,
            None => testkit::Postgres::shared().await.create_database().await,
        })
        .unwrap(),
        _ => DatabaseUrl::sqlite(folder.unwrap_or(own.path().to_owned()).join("audit.db")),
    };
    let store = Store::open(&url, &DatabaseConfig::default()).await.unwrap();
    if store.all_heads(&full()).await.unwrap().is_empty() {
        let wake = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        if variable("SCALE_INDEXER").is_some_and(|indexer| indexer == "none") {
            stop.cancel();
        }
        let indexer = tokio::spawn(Indexer::new(store.clone(), wake.clone()).run(stop.clone()));
        let begun = Instant::now();
        load(&store, entries, &wake).await;
        println!("{entries} entries written in {:?}, the indexer at work", begun.elapsed());
        let rare = Filter { words: words(["nowhere"]), ..Filter::default() };
        for _ in 0..5 {
            let asked = Instant::now();
            store.list(&full(), &rare, WHOLE, Order::NewestFirst, None, 50, 1 << 20).await.unwrap();
            println!("{:?} after the load, a page by a word of none: {:?}", begun.elapsed(), asked.elapsed());
        }
        stop.cancel();
        indexer.await.unwrap();
    }
    let begun = Instant::now();
    store.index_all().await.unwrap();
    println!("the rest indexed in {:?}", begun.elapsed());
    ask(&store, entries, Duration::from_secs(4)).await;
    store.close().await;
}
