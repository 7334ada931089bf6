//! The store, stamped on both engines: what holds on one holds on the other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[path = "store/coverage.rs"]
mod coverage;
#[macro_use]
mod support;

use audit_service::canonical;
use audit_service::event::{Dropped, Event, Outcome, Stage};
use audit_service::filter::{Filter, OneOf, Stages};
use audit_service::ingest::Batch;
use audit_service::store::{EventResult, Heads, LogWalk, Order, Range, Store, TimeWalk};
use coverage::{
    a_coverage_that_would_take_long_stops_and_says_where, coverage_is_walked_page_by_page,
    coverage_tells_received_missing_and_dropped, intents_are_open_until_their_outcome_comes,
    what_is_sent_again_under_another_number_is_not_missing,
};
use sea_orm::{ConnectionTrait as _, Database};
use service_core::error::Reason;
use support::{
    ALL, Engine, Home, T0, accepted, batch, event, event_with, found, full, id_at, ids, numbered, staged, write,
};
use uuid::Uuid;

on_both_engines! {
    an_entry_is_read_as_it_was_written,
    sequences_have_no_gaps_within_an_instance,
    an_event_written_again_is_a_duplicate,
    the_same_id_with_other_content_is_a_conflict,
    duplicates_and_conflicts_are_found_within_a_batch_and_a_group,
    a_producers_number_is_for_one_event,
    numbers_of_a_producer_come_in_any_order,
    refused_events_leave_no_gap,
    what_producers_dropped_is_kept,
    coverage_tells_received_missing_and_dropped,
    coverage_is_walked_page_by_page,
    what_is_sent_again_under_another_number_is_not_missing,
    a_coverage_that_would_take_long_stops_and_says_where,
    intents_are_open_until_their_outcome_comes,
    an_empty_group_is_fine,
    writers_at_once_leave_no_gap_and_no_double,
    entries_survive_a_restart,
    ties_of_time_are_in_the_order_of_ids,
    late_events_are_listed_where_they_belong,
    pages_stay_good_while_entries_arrive,
    a_page_ends_early_rather_than_grow,
    empty_ranges_hold_nothing,
    the_range_is_half_open,
    an_intent_is_listed_until_its_outcome_comes,
    facets_count_what_is_listed,
    unicode_survives,
    names_are_told_apart_by_their_bytes,
    the_log_is_walked_by_sequence,
    pages_of_a_walk_are_bounded_in_bytes,
    the_database_refuses_to_change_entries,
    times_of_recording_never_go_back,
    large_batches_are_stored_whole,
}

fn everything() -> Filter {
    Filter::default()
}

async fn newest(store: &Store, page: usize) -> Vec<Uuid> {
    ids(store, &everything(), ALL, Order::NewestFirst, page).await
}

async fn an_entry_is_read_as_it_was_written(home: &Home) {
    let store = home.open().await;
    let event = numbered(T0, "p", u64::MAX, 7);
    let before = service_core::clock::now_us();
    let EventResult::Stored { sequence: 0, leaf_hash, duplicate: false } = write(&store, [event.clone()]).await[0]
    else {
        panic!("not stored as the first");
    };
    let row = found(&store, event.id).await.unwrap();
    assert_eq!(row.leaf_hash, leaf_hash);
    assert_eq!(canonical::leaf_hash(&row.canonical), leaf_hash);
    let entry = row.entry().unwrap();
    assert_eq!(entry.event, event);
    assert!((before..=service_core::clock::now_us()).contains(&entry.recorded_at_us));
    assert_eq!(canonical::to_string(&entry), row.canonical);
    assert_eq!(store.by_place(&full(), "prod", 0).await.unwrap(), Some(row));
    assert_eq!(store.by_place(&full(), "prod", 1).await.unwrap(), None);
    assert_eq!(store.by_place(&full(), "prod", u64::MAX).await.unwrap(), None);
    assert_eq!(store.by_place(&full(), "other", 0).await.unwrap(), None);
    assert_eq!(found(&store, id_at(T0)).await, None);
}

fn in_instance(us: i64, instance: &str) -> Event {
    event_with(us, |event| event.instance_id = instance.into())
}

async fn sequences_have_no_gaps_within_an_instance(home: &Home) {
    let store = home.open().await;
    let results = write(&store, ["a", "b", "a", "a", "b"].map(|instance| in_instance(T0, instance))).await;
    assert_eq!(results.iter().map(accepted).collect::<Vec<_>>(), [0, 0, 1, 2, 1]);
    let written = store.write(&[batch([in_instance(T0, "b")]), batch([in_instance(T0, "c")])]).await.unwrap();
    assert_eq!(written.results.iter().flatten().map(accepted).collect::<Vec<_>>(), [2, 0]);
    assert_eq!(written.heads, Heads::from([("b".into(), 3), ("c".into(), 1)]));
    let heads = Heads::from([("a".into(), 3), ("b".into(), 3), ("c".into(), 1)]);
    assert_eq!(store.all_heads(&full()).await.unwrap(), heads);
    assert_eq!(store.heads(&full(), &["a".into(), "x".into()]).await.unwrap(), Heads::from([("a".into(), 3)]));
}

async fn an_event_written_again_is_a_duplicate(home: &Home) {
    let store = home.open().await;
    let event = event(T0);
    let first = write(&store, [event.clone()]).await.remove(0);
    let EventResult::Stored { sequence, leaf_hash, .. } = first else { panic!("{first:?}") };
    let again = EventResult::Stored { sequence, leaf_hash, duplicate: true };
    assert_eq!(write(&store, [event.clone()]).await[0], again);
    // The producer is no part of the content.
    let resent = Event { producer: numbered(T0, "p", 1, 1).producer, ..event };
    assert_eq!(write(&store, [resent]).await, [again]);
    assert_eq!(store.all_heads(&full()).await.unwrap()["prod"], 1);
}

#[track_caller]
fn assert_rejected(result: &EventResult, reason: Reason) {
    match result {
        EventResult::Rejected(violation) => assert_eq!(violation.reason, reason, "{violation}"),
        EventResult::Stored { .. } => panic!("stored: {result:?}"),
    }
}

async fn the_same_id_with_other_content_is_a_conflict(home: &Home) {
    let store = home.open().await;
    let first = event(T0);
    write(&store, [first.clone()]).await;
    for other in [
        Event { reason: "other".into(), ..first.clone() },
        Event { instance_id: "other".into(), ..first.clone() },
        Event { occurred_at_us: T0 + 1, ..first.clone() },
    ] {
        assert_rejected(&write(&store, [other]).await[0], Reason::IdConflict);
    }
    assert_eq!(found(&store, first.id).await.unwrap().entry().unwrap().event, first);
    assert_eq!(store.all_heads(&full()).await.unwrap(), Heads::from([("prod".into(), 1)]));
}

async fn duplicates_and_conflicts_are_found_within_a_batch_and_a_group(home: &Home) {
    let store = home.open().await;
    let one = event(T0);
    let other = Event { reason: "other".into(), ..one.clone() };
    let last = event(T0);
    let group = [batch([one.clone(), one.clone(), other.clone(), last.clone()]), batch([other, one, last])];
    let results: Vec<_> = store.write(&group).await.unwrap().results.into_iter().flatten().collect();
    let brief = |result: &EventResult| match result {
        EventResult::Stored { sequence, duplicate, .. } => Ok((*sequence, *duplicate)),
        EventResult::Rejected(violation) => Err(violation.reason),
    };
    let conflict = Err(Reason::IdConflict);
    assert_eq!(
        results.iter().map(brief).collect::<Vec<_>>(),
        [Ok((0, false)), Ok((0, true)), conflict, Ok((1, false)), conflict, Ok((0, true)), Ok((1, true))]
    );
}

async fn a_producers_number_is_for_one_event(home: &Home) {
    let store = home.open().await;
    let first = numbered(T0, "p", 1, 5);
    write(&store, [first.clone()]).await;
    assert_rejected(&write(&store, [numbered(T0, "p", 1, 5)]).await[0], Reason::ProducerConflict);
    let results = write(&store, [numbered(T0, "q", 1, 5), numbered(T0, "p", 2, 5), numbered(T0, "p", 2, 5)]).await;
    assert_eq!(results[..2].iter().map(accepted).collect::<Vec<_>>(), [1, 2]);
    assert_rejected(&results[2], Reason::ProducerConflict);
    // What is known by its id is a duplicate, not a conflict with itself.
    assert!(matches!(write(&store, [first]).await[0], EventResult::Stored { duplicate: true, .. }));
}

async fn numbers_of_a_producer_come_in_any_order(home: &Home) {
    let store = home.open().await;
    let numbers = [70_000, 3, u64::MAX, 65_535, 65_536, 0];
    let results = write(&store, numbers.map(|number| numbered(T0, "p", u64::MAX, number))).await;
    assert_eq!(results.iter().map(accepted).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    for number in numbers {
        assert_rejected(&write(&store, [numbered(T0, "p", u64::MAX, number)]).await[0], Reason::ProducerConflict);
    }
    accepted(&write(&store, [numbered(T0, "p", u64::MAX, 1)]).await[0]);
}

async fn refused_events_leave_no_gap(home: &Home) {
    let store = home.open().await;
    let first = event(T0);
    write(&store, [first.clone()]).await;
    let conflict = Event { reason: "other".into(), ..first };
    let results = write(&store, [event(T0), conflict, event(T0)]).await;
    assert_eq!((accepted(&results[0]), accepted(&results[2])), (1, 2));
}

async fn what_producers_dropped_is_kept(home: &Home) {
    let store = home.open().await;
    let dropped = Dropped { producer_id: "p".into(), epoch: u64::MAX, first: 3, last: u64::MAX };
    let group = [Batch { dropped: vec![dropped.clone(), dropped.clone()], ..Batch::default() }];
    store.write(&group).await.unwrap();
    store.write(&group).await.unwrap();
    let db = Database::connect(home.url.expose()).await.unwrap();
    let rows = db
        .query_all_raw(sea_orm::Statement::from_string(
            db.get_database_backend(),
            "SELECT producer_id, epoch, first_sequence, last_sequence FROM audit_dropped_ranges",
        ))
        .await
        .unwrap();
    assert_eq!(rows.len(), 1);
    let number = |column: usize| rows[0].try_get_by_index::<i64>(column).unwrap().cast_unsigned();
    assert_eq!(rows[0].try_get_by_index::<String>(0).unwrap(), "p");
    assert_eq!((number(1), number(2), number(3)), (u64::MAX, 3, u64::MAX));
}

async fn an_empty_group_is_fine(home: &Home) {
    let store = home.open().await;
    let written = store.write(&[Batch::default(), Batch::default()]).await.unwrap();
    assert_eq!(written.results, [vec![], vec![]]);
    assert!(written.heads.is_empty());
}

/// Two stores over one database are two replicas; SQLite has one.
async fn writers_at_once_leave_no_gap_and_no_double(home: &Home) {
    let first = home.open().await;
    let second = if home.engine == Engine::Postgres { home.open().await } else { first.clone() };
    let events: Vec<Event> = (0..60)
        .map(|number| event_with(T0 + number, |event| event.instance_id = ["a", "b"][number as usize % 2].into()))
        .collect();
    let mut backwards = events.clone();
    backwards.reverse();
    let write_all = async |store: &Store, events: Vec<Event>| {
        for event in events {
            // As the group commit does: a conflict is tried again.
            loop {
                match store.write(&[batch([event.clone()])]).await {
                    Ok(_) => break,
                    Err(service_core::error::Error::Contention(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    };
    tokio::join!(write_all(&first, events), write_all(&second, backwards));
    assert_eq!(first.all_heads(&full()).await.unwrap(), Heads::from([("a".into(), 30), ("b".into(), 30)]));
    for instance in ["a", "b"] {
        let log = log(&first, instance, 0, u64::MAX).await;
        assert_eq!(log.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), (0..30).collect::<Vec<_>>());
    }
    assert_eq!(newest(&first, 7).await.len(), 60);
}

async fn entries_survive_a_restart(home: &Home) {
    let store = home.open().await;
    let first = event(T0);
    write(&store, [first.clone()]).await;
    let key = store.seal_key().await.unwrap();
    store.close().await;

    let store = home.open().await;
    assert_eq!(store.seal_key().await.unwrap(), key);
    assert!(matches!(
        write(&store, [first.clone()]).await[0],
        EventResult::Stored { sequence: 0, duplicate: true, .. }
    ));
    assert_eq!(accepted(&write(&store, [event(T0 + 1)]).await[0]), 1);
    assert_eq!(newest(&store, 50).await.last(), Some(&first.id));
}

async fn ties_of_time_are_in_the_order_of_ids(home: &Home) {
    let store = home.open().await;
    let mut events: Vec<Event> = (0..25).map(|_| event(T0)).collect();
    events.reverse();
    write(&store, events.clone()).await;
    let mut ascending: Vec<Uuid> = events.iter().map(|event| event.id).collect();
    ascending.sort();
    for page in [1, 4, 25, 1_000] {
        assert_eq!(ids(&store, &everything(), ALL, Order::OldestFirst, page).await, ascending);
        let mut descending = newest(&store, page).await;
        descending.reverse();
        assert_eq!(descending, ascending);
    }
}

async fn late_events_are_listed_where_they_belong(home: &Home) {
    let store = home.open().await;
    let times = [T0 + 50, T0 + 10, T0 + 30, T0 + 20, T0 + 40];
    let events = times.map(event);
    for event in &events {
        write(&store, [event.clone()]).await;
    }
    let sorted = [3, 1, 2, 4, 0].map(|at: usize| match at {
        3 => events[1].id,
        1 => events[3].id,
        2 => events[2].id,
        4 => events[4].id,
        _ => events[0].id,
    });
    assert_eq!(ids(&store, &everything(), ALL, Order::OldestFirst, 2).await, sorted);
}

async fn pages_stay_good_while_entries_arrive(home: &Home) {
    let store = home.open().await;
    let events: Vec<Event> = (0..10).map(|at| event(T0 + at * 10)).collect();
    write(&store, events.clone()).await;
    for (order, sign) in [(Order::NewestFirst, -1), (Order::OldestFirst, 1)] {
        let page = store.list(&full(), &everything(), ALL, order, None, 4, 1 << 20).await.unwrap();
        let seen: Vec<_> = page.entries.iter().map(|(entry, _)| entry.event.id).collect();
        let at = page.next.unwrap();
        // One before the position, where nobody looks again, and one behind it.
        let before = event(at.occurred_at_us - sign * 5);
        let behind = event(at.occurred_at_us + sign * 5);
        write(&store, [before.clone(), behind.clone()]).await;
        let rest = store.list(&full(), &everything(), ALL, order, Some(at), 1_000, 1 << 20).await.unwrap();
        let rest: Vec<_> = rest.entries.iter().map(|(entry, _)| entry.event.id).collect();
        assert_eq!(rest[0], behind.id);
        assert!(!rest.contains(&before.id));
        assert!(events.iter().all(|event| seen.contains(&event.id) != rest.contains(&event.id)));
    }
}

async fn a_page_ends_early_rather_than_grow(home: &Home) {
    let store = home.open().await;
    let big = |us| event_with(us, |event| event.details_json = format!("\"{}\"", "x".repeat(10_000)));
    write(&store, (0..7).map(|at| big(T0 + at))).await;
    let page = store.list(&full(), &everything(), ALL, Order::NewestFirst, None, 50, 35_000).await.unwrap();
    assert_eq!(page.entries.len(), 3);
    let rest = store.list(&full(), &everything(), ALL, Order::NewestFirst, page.next, 50, 100_000).await.unwrap();
    assert_eq!((rest.entries.len(), rest.next), (4, None));
    // One entry has room in any case, or nobody could read on.
    let page = store.list(&full(), &everything(), ALL, Order::NewestFirst, None, 50, 10).await.unwrap();
    assert_eq!(page.entries.len(), 1);
    assert!(page.next.is_some());
}

async fn empty_ranges_hold_nothing(home: &Home) {
    let store = home.open().await;
    for range in [ALL, Range { start_us: T0, end_us: T0 }] {
        let page = store.list(&full(), &everything(), range, Order::NewestFirst, None, 50, 1 << 20).await.unwrap();
        assert!(page.entries.is_empty() && page.next.is_none());
        let facets = store.facets(&full(), &everything(), range, 10).await.unwrap();
        assert!(facets.actors.is_empty() && facets.instances.is_empty());
        write(&store, [event(T0)]).await;
    }
    assert_eq!(store.all_heads(&full()).await.unwrap()["prod"], 2);
}

async fn the_range_is_half_open(home: &Home) {
    let store = home.open().await;
    let events = [T0 - 1, T0, T0 + 9, T0 + 10].map(event);
    write(&store, events.clone()).await;
    let range = Range { start_us: T0, end_us: T0 + 10 };
    for order in [Order::NewestFirst, Order::OldestFirst] {
        let mut found = ids(&store, &everything(), range, order, 1).await;
        found.sort();
        assert_eq!(found, [events[1].id, events[2].id]);
    }
}

async fn an_intent_is_listed_until_its_outcome_comes(home: &Home) {
    let store = home.open().await;
    let intent = staged(T0, "op", Stage::Intent);
    let other = staged(T0 + 1, "other", Stage::Intent);
    let elsewhere = event_with(T0 + 2, |event| {
        event.instance_id = "elsewhere".into();
        event.operation = staged(T0, "op", Stage::Outcome).operation;
    });
    let single = staged(T0 + 3, "op", Stage::Single);
    write(&store, [intent.clone(), other.clone(), elsewhere.clone(), single.clone()]).await;
    let open = [single.id, elsewhere.id, other.id, intent.id];
    assert_eq!(newest(&store, 2).await, open);
    // The outcome may have another time, even an earlier one.
    let outcome = staged(T0 - 5, "op", Stage::Outcome);
    write(&store, [outcome.clone()]).await;
    assert_eq!(newest(&store, 2).await, [single.id, elsewhere.id, other.id, outcome.id]);
    let all = Filter::everything();
    assert_eq!(ids(&store, &all, ALL, Order::NewestFirst, 2).await.len(), 5);
    let intents = Filter { stages: Stages::Of(OneOf::from_iter([Stage::Intent])), ..Filter::default() };
    assert_eq!(ids(&store, &intents, ALL, Order::NewestFirst, 2).await, [other.id, intent.id]);
    let facets = store.facets(&full(), &everything(), ALL, 10).await.unwrap();
    assert_eq!(facets.actions[0].count, 4);
}

async fn facets_count_what_is_listed(home: &Home) {
    let store = home.open().await;
    let by = |actor: &str, action: &str, kinds: &[&str]| {
        event_with(T0, |event| {
            event.actor.id = actor.into();
            event.action = action.into();
            let resource = event.resources[0].clone();
            let of = |kind: &&str| audit_service::event::Resource { kind: (*kind).into(), ..resource.clone() };
            event.resources = kinds.iter().map(of).collect();
        })
    };
    write(
        &store,
        [
            by("u-2", "a.x", &["key", "model", "key"]),
            by("u-1", "a.x", &["model"]),
            by("u-1", "a.y", &["key"]),
            by("u-3", "b.x", &["user"]),
            event_with(T0, |event| event.outcome = Outcome::Denied),
        ],
    )
    .await;
    let filter = Filter { outcomes: OneOf::from_iter([Outcome::Success]), ..Filter::default() };
    let facets = store.facets(&full(), &filter, ALL, 3).await.unwrap();
    let brief = |facets: &[audit_service::store::Facet]| {
        facets.iter().map(|facet| (facet.value.clone(), facet.count)).collect::<Vec<_>>()
    };
    let pairs =
        |pairs: &[(&str, u64)]| pairs.iter().map(|(value, count)| ((*value).to_owned(), *count)).collect::<Vec<_>>();
    assert_eq!(brief(&facets.actors), pairs(&[("u-1", 2), ("u-2", 1), ("u-3", 1)]));
    assert_eq!(brief(&facets.actions), pairs(&[("a.x", 2), ("a.y", 1), ("b.x", 1)]));
    assert_eq!(brief(&facets.resource_types), pairs(&[("key", 2), ("model", 2), ("user", 1)]));
    assert_eq!(brief(&facets.instances), pairs(&[("prod", 4)]));
    let one = store.facets(&full(), &filter, ALL, 1).await.unwrap();
    assert_eq!(brief(&one.actors), pairs(&[("u-1", 2)]));
}

async fn unicode_survives(home: &Home) {
    let store = home.open().await;
    let event = event_with(T0, |event| {
        event.instance_id = "東京 👩‍🚀".into();
        event.actor.display_name = "Žofie \u{feff}\u{202e}x".into();
        event.details_json = "\"\\u0000 \u{7f}\u{10ffff}\"".into();
        event.reason = "'; DROP TABLE audit_entries; -- %_".into();
    });
    write(&store, [event.clone()]).await;
    let row = store.by_place(&full(), "東京 👩‍🚀", 0).await.unwrap().unwrap();
    assert_eq!(row.entry().unwrap().event, event);
    let filter = Filter { words: vec!["žofie".into()], ..Filter::default() };
    assert_eq!(ids(&store, &filter, ALL, Order::NewestFirst, 5).await, [event.id]);
    for words in [vec!["%".to_owned()], vec!["dro_".to_owned()]] {
        let filter = Filter { words, ..Filter::default() };
        assert!(ids(&store, &filter, ALL, Order::NewestFirst, 5).await.is_empty());
    }
}

/// A collation that takes names for equal, or sorts them otherwise, would mix logs up.
async fn names_are_told_apart_by_their_bytes(home: &Home) {
    let store = home.open().await;
    let names = ["a", "A", "á", "a\u{301}", "b", "B", "a-b", "ab", "a b"];
    let results = write(&store, names.map(|name| in_instance(T0, name))).await;
    assert!(results.iter().all(|result| accepted(result) == 0));
    let heads: Vec<String> = store.all_heads(&full()).await.unwrap().into_keys().collect();
    let mut sorted = names.to_vec();
    sorted.sort();
    assert_eq!(heads, sorted);
}

async fn log(store: &Store, instance: &str, from: u64, to: u64) -> Vec<(u64, Uuid)> {
    let mut walk = LogWalk::new(&full(), instance, from, to);
    let mut found = Vec::new();
    loop {
        let rows = walk.next(store).await.unwrap();
        if rows.is_empty() {
            return found;
        }
        found.extend(rows.iter().map(|row| (row.sequence, row.key.id)));
    }
}

async fn the_log_is_walked_by_sequence(home: &Home) {
    let store = home.open().await;
    let events: Vec<Event> = (0..200).map(|at| event(T0 - at)).collect();
    write(&store, events.clone()).await;
    write(&store, [in_instance(T0, "other")]).await;
    let all: Vec<(u64, Uuid)> = (0..).zip(events.iter().map(|event| event.id)).collect();
    assert_eq!(log(&store, "prod", 0, u64::MAX).await, all);
    assert_eq!(log(&store, "prod", 3, 190).await, all[3..190]);
    assert_eq!(log(&store, "prod", 200, u64::MAX).await, []);
    assert_eq!(log(&store, "nowhere", 0, u64::MAX).await, []);
    // A walk at the end goes on when entries come.
    let mut walk = LogWalk::new(&full(), "other", 1, u64::MAX);
    assert!(walk.next(&store).await.unwrap().is_empty());
    write(&store, [in_instance(T0, "other")]).await;
    assert_eq!(walk.next(&store).await.unwrap().len(), 1);
}

/// As the owner of the database, who may do anything but this.
/// Small rows let a walk ask for many; the large ones behind them must not all come at once.
async fn pages_of_a_walk_are_bounded_in_bytes(home: &Home) {
    let store = home.open().await;
    let large = format!("\"{}\"", "x".repeat(60_000));
    for (begin, count, details) in [(0, 400, ""), (400, 30, large.as_str()), (430, 400, "")] {
        let events = (begin..begin + count).map(|at| event_with(T0 + at, |event| event.details_json = details.into()));
        write(&store, events).await;
    }
    let time = |order| TimeWalk::new(&full(), ALL, order, None, usize::MAX);
    let mut walks = [time(Order::OldestFirst), time(Order::NewestFirst)];
    let mut log = LogWalk::new(&full(), "prod", 0, u64::MAX);
    for walk in 0..3 {
        let mut rows = 0;
        loop {
            let page = match walks.get_mut(walk) {
                Some(walk) => walk.next(&store).await.unwrap().map(|rows| rows.seen).unwrap_or_default(),
                None => log.next(&store).await.unwrap(),
            };
            if page.is_empty() {
                break;
            }
            rows += page.len();
            let bytes: usize = page.iter().map(|row| row.canonical.len()).sum();
            assert!(bytes < 512 * 1_024 + 64 * 1_024, "{bytes} bytes in walk {walk}");
        }
        assert_eq!(rows, 830, "walk {walk}");
    }
}

async fn times_of_recording_never_go_back(home: &Home) {
    let store = home.open().await;
    let recorded = async |event: Event| {
        let id = event.id;
        write(&store, [event]).await;
        found(&store, id).await.unwrap().entry().unwrap().recorded_at_us
    };
    let before = recorded(event(T0)).await;
    // A replica whose clock was an hour ahead has written, or this one's was and was stepped back.
    let db = Database::connect(home.url.expose()).await.unwrap();
    let ahead = before + 3_600_000_000;
    db.execute_unprepared(&format!("UPDATE audit_log_heads SET last_recorded_at = {ahead}")).await.unwrap();
    assert_eq!(recorded(event(T0)).await, ahead);
    assert_eq!(recorded(event(T0)).await, ahead);
    // Other logs have their own time.
    let other = event_with(T0, |event| event.instance_id = "other".into());
    assert!((before..ahead).contains(&recorded(other).await));
    // A database from before heads had that time.
    db.execute_unprepared("UPDATE audit_log_heads SET last_recorded_at = 0").await.unwrap();
    store.close().await;
    let store = home.open().await;
    let last = event(T0);
    write(&store, [last.clone()]).await;
    assert_eq!(found(&store, last.id).await.unwrap().entry().unwrap().recorded_at_us, ahead);
}

async fn the_database_refuses_to_change_entries(home: &Home) {
    let store = home.open().await;
    let first = event(T0);
    write(&store, [first.clone()]).await;
    let before = found(&store, first.id).await.unwrap();
    let mut statements = vec![
        "UPDATE audit_entries SET canonical = '{}'",
        "UPDATE audit_entries SET leaf_hash = leaf_hash WHERE sequence = 0",
        "DELETE FROM audit_entries",
        "DELETE FROM audit_entries WHERE sequence = 0",
    ];
    match home.engine {
        Engine::Sqlite => statements.extend([
            "INSERT OR REPLACE INTO audit_entries SELECT instance_id, sequence, id, occurred_at, stage, operation_id, \
             content_hash, leaf_hash, '{}' FROM audit_entries",
            "UPDATE OR REPLACE audit_entries SET sequence = 0",
            "INSERT INTO audit_entries SELECT * FROM audit_entries WHERE true ON CONFLICT DO UPDATE SET canonical = ''",
        ]),
        Engine::Postgres => statements.extend([
            "TRUNCATE audit_entries",
            "INSERT INTO audit_entries SELECT * FROM audit_entries ON CONFLICT (id) DO UPDATE SET canonical = ''",
            "SET session_replication_role = replica; DELETE FROM audit_entries",
        ]),
    }
    let db = Database::connect(home.url.expose()).await.unwrap();
    for statement in statements {
        let refused = db.execute_unprepared(statement).await.expect_err(statement).to_string();
        assert!(refused.contains("immutable"), "{statement}: {refused}");
    }
    assert_eq!(found(&store, first.id).await.unwrap(), before);
    assert_eq!(accepted(&write(&store, [event(T0)]).await[0]), 1);
}

/// More than one statement's worth, so that no size of statement is left out.
async fn large_batches_are_stored_whole(home: &Home) {
    let store = home.open().await;
    let group: Vec<Batch> = (0..5).map(|part| batch((0..431).map(|at| event(T0 + part * 1_000 + at)))).collect();
    let written = store.write(&group).await.unwrap();
    let sequences: Vec<u64> = written.results.iter().flatten().map(accepted).collect();
    assert_eq!(sequences, (0..2_155).collect::<Vec<_>>());
    let again = store.write(&group).await.unwrap();
    assert!(again.results.iter().flatten().all(|result| matches!(result, EventResult::Stored { duplicate: true, .. })));
    assert_eq!(newest(&store, 1_000).await.len(), 2_155);
}
