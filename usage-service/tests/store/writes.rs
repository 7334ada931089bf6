//! Writing.

use usage_service::model::{Charge, DroppedRange, NewRequest, Outcome, Status, StoredRequest, Tokens};
use usage_service::store::{Batch, Order};

use crate::Bench;
use crate::events::{NOON, SECOND, always, batch, changed, numbered, priced, request, sealed, write, write_new};

pub(crate) async fn everything_is_given_back_as_it_was_stored(bench: Bench) {
    let full = changed(&numbered(&request(NOON, 1), 3, 0), |event| {
        event.team_id = "team".into();
        event.model = "served".into();
        event.status = Status::RateLimited;
        event.operation = "chat".into();
        event.tokens = Tokens {
            input_uncached: 1,
            input_cache_read: 2,
            input_cache_write: 1_000_000_000,
            input_cache_write_1h: 4,
            output: 5,
            output_reasoning: 5,
        };
        event.other_units = (0..32).map(|n| (format!("unit {n} \"é\""), 1_000_000_000)).collect();
        event.latency_us = Some(604_800_000_000);
        event.time_to_first_token_us = Some(0);
        event.service_tier = "flex".into();
        event.processing = "batch".into();
        event.request_id = "req".into();
        event.labels = (0..16).map(|n| (format!("{n}\\\"{{,"), "ü".repeat(128))).collect();
        event.price_conditions = [("speed".to_owned(), "fast".to_owned())].into();
    });
    let full = sealed(full.event, priced(i64::MAX));
    let plain = sealed(request(NOON + 1, 2).event, Charge::Unpriced("no such model".into()));
    let by = |recorded_by: &str, new: &NewRequest| Batch { recorded_by: recorded_by.into(), ..batch([new.clone()]) };
    bench.store.write(&[by("gateway ü", &full), by("", &plain)]).await.unwrap();
    // Told again by another writer: it is the first one's.
    let again = bench.store.write(&[by("another", &full)]).await.unwrap();
    assert_eq!(again, [[Outcome::Duplicate]]);

    let stored = bench.store.requests(&always(), Order::OldestFirst, None, 10).await.unwrap();
    let recorded_at_us = stored[0].recorded_at_us;
    assert!(recorded_at_us > NOON);
    let expected = [(full, "gateway ü"), (plain, "")].map(|(new, by)| StoredRequest {
        event: new.event,
        recorded_at_us,
        recorded_by: by.into(),
        charge: new.charge,
    });
    assert_eq!(stored, expected);
}

pub(crate) async fn repeats_and_conflicts_are_told_apart_in_one_group_and_across(bench: Bench) {
    use Outcome::{Accepted, Duplicate, IdConflict};
    let (a, b) = (request(NOON, 1), request(NOON, 2));
    let other = changed(&a, |event| event.user_id = "else".into());
    let group = [batch([a.clone(), b.clone(), a.clone()]), batch([]), batch([other.clone(), a.clone()])];
    let outcomes = bench.store.write(&group).await.unwrap();
    assert_eq!(outcomes, [vec![Accepted, Accepted, Duplicate], vec![], vec![IdConflict, Duplicate]]);

    let c = request(NOON, 3);
    assert_eq!(write(&bench.store, [other, c, b]).await, [IdConflict, Accepted, Duplicate]);
    let stored = bench.store.requests(&always(), Order::OldestFirst, None, 10).await.unwrap();
    assert_eq!(stored.len(), 3);
    assert_eq!(stored[0].event, a.event, "the first stays");
}

pub(crate) async fn a_producers_number_belongs_to_one_event(bench: Bench) {
    use Outcome::{Accepted, Duplicate, ProducerConflict};
    let event = |n| request(NOON, n);
    let first = [numbered(&event(1), 1, 7), numbered(&event(2), 1, i64::MAX), numbered(&event(3), 2, 7)];
    write_new(&bench.store, first).await;
    let next = [
        numbered(&event(4), 1, 7),
        numbered(&event(5), 1, 8),
        numbered(&event(6), 1, 8),
        // Known: it is no conflict, and its number is taken.
        numbered(&event(1), 1, 9),
        // Refused with one number, then taken with another, in one group.
        numbered(&event(4), 1, 10),
    ];
    assert_eq!(write(&bench.store, next).await, [ProducerConflict, Accepted, ProducerConflict, Duplicate, Accepted]);
}

pub(crate) async fn writing_the_same_batches_again_stores_nothing(bench: Bench) {
    let group: Vec<Batch> = (0..3)
        .map(|b| batch((0..700).map(|n| numbered(&request(NOON + n, b * 1_000 + n as u64), 1, (b * 1_000) as i64 + n))))
        .collect();
    let outcomes = bench.store.write(&group).await.unwrap();
    assert!(outcomes.iter().flatten().all(|outcome| *outcome == Outcome::Accepted));
    let before = bench.store.totals(&always(), &[0, i64::MAX]).await.unwrap();
    let outcomes = bench.store.write(&group).await.unwrap();
    assert!(outcomes.iter().flatten().all(|outcome| *outcome == Outcome::Duplicate));
    assert_eq!(bench.store.totals(&always(), &[0, i64::MAX]).await.unwrap(), before);
    assert_eq!(before[0].totals.requests, 2_100);
}

pub(crate) async fn large_groups_are_stored_whole(bench: Bench) {
    // Every size of statement, and its neighbours.
    let mut stored = 0;
    for size in [1, 7, 8, 9, 63, 64, 65, 511, 512, 513, 1_000, 2_500_u64] {
        write_new(&bench.store, (0..size).map(|n| request(NOON, 10_000 * size + n))).await;
        stored += size;
    }
    let totals = bench.store.totals(&always(), &[0, i64::MAX]).await.unwrap();
    assert_eq!(totals[0].totals.requests, stored);
}

pub(crate) async fn replicas_that_write_the_same_events_agree(bench: Bench) {
    let events = |start: u64| (start..start + 600).map(|n| numbered(&request(NOON - n as i64, n), 1, n as i64));
    let mut writers = Vec::new();
    for replica in 0..4 {
        let store = bench.replica().await;
        writers.push(tokio::spawn(async move {
            let mut accepted = 0;
            for round in 0..4 {
                // Overlapping, in different orders.
                let mut group: Vec<_> = events(round * 300).collect();
                if replica % 2 == 0 {
                    group.reverse();
                }
                let outcomes = write(&store, group).await;
                accepted += outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
                let known = outcomes.iter().all(|o| matches!(o, Outcome::Accepted | Outcome::Duplicate));
                assert!(known, "{outcomes:?}");
            }
            accepted
        }));
    }
    let mut accepted = 0;
    for writer in writers {
        accepted += writer.await.unwrap();
    }
    let totals = bench.store.totals(&always(), &[0, i64::MAX]).await.unwrap();
    assert_eq!((accepted, totals[0].totals.requests), (1_500, 1_500));
}

pub(crate) async fn dropped_ranges_are_taken(bench: Bench) {
    let dropped = |first_sequence, last_sequence| DroppedRange {
        producer_id: "sdk".into(),
        epoch: 1,
        first_sequence,
        last_sequence,
    };
    let only = Batch { dropped: vec![dropped(0, 5), dropped(0, 5), dropped(9, 9)], ..Batch::default() };
    let both = Batch { dropped: vec![dropped(0, 5)], ..batch([request(NOON + SECOND, 1)]) };
    let outcomes = bench.store.write(&[only, both]).await.unwrap();
    assert_eq!(outcomes, [vec![], vec![Outcome::Accepted]]);
    // Told again after an answer that was lost.
    let again = Batch { dropped: vec![dropped(0, 5)], ..Batch::default() };
    bench.store.write(&[again]).await.unwrap();
}

pub(crate) async fn references_that_the_database_lost_are_written_again(bench: Bench) {
    write_new(&bench.store, [numbered(&request(NOON, 1), 1, 1)]).await;
    bench.execute("DELETE FROM usage_charges").await;
    bench.execute("DELETE FROM usage_producers").await;
    write_new(&bench.store, [numbered(&request(NOON, 2), 1, 2)]).await;
    let stored = bench.store.requests(&always(), Order::OldestFirst, None, 10).await.unwrap();
    assert_eq!(stored.len(), 2);
}
