//! Rollups against their requests: what somebody changed behind the store's back is found, all of it and nothing
//! else, and made anew.

use std::num::NonZeroU64;
use std::time::Instant;

use service_core::config::DatabaseConfig;
use usage_service::model::{Dimension, Metric, NewRequest};
use usage_service::store::{Checked, Store};

use crate::events::{NOON, SECOND, always, changed, request, scope, seal_all, write_new};
use crate::{Bench, reference};

const QUARTER: i64 = 900 * SECOND;
const DAY: i64 = 86_400 * SECOND;
/// 2026-01-05T00:00:00Z.
const MIDNIGHT: i64 = NOON - DAY / 2;

/// What all days together have: segments, and those that differ.
async fn check(store: &Store, repair: bool) -> (usize, usize) {
    let mut found = (0, 0);
    let mut day = store.day_from(i64::MIN).await.unwrap();
    while let Some(start) = day {
        let Checked { segments, differing, repaired, .. } = store.check_day(start, repair).await.unwrap();
        assert_eq!(repaired, repair && differing > 0);
        found = (found.0 + segments, found.1 + differing);
        day = store.day_from(start + DAY).await.unwrap();
    }
    found
}

/// Two requests in each of three quarters of two days; users, models and instances among them.
fn requests() -> Vec<NewRequest> {
    let at = |day: i64, quarter: i64, second: i64| MIDNIGHT - day * DAY + quarter * QUARTER + second * SECOND;
    let mut all = Vec::new();
    for day in 0..2 {
        // Two of one hour, and one of another.
        for quarter in [40, 41, 60] {
            for second in 0..2 {
                let n = all.len() as u64;
                all.push(changed(&request(at(day, quarter, second), n + 1), |event| {
                    event.user_id = format!("user-{}", n % 3);
                    event.model = format!("model-{}", n % 2);
                }));
            }
        }
    }
    all
}

#[tokio::test]
async fn a_check_of_a_busy_day_may_take_longer_than_a_statement_on_sqlite() {
    let bench = Bench::sqlite().await;
    for hour in 0..24 {
        let start = MIDNIGHT + hour * 4 * QUARTER;
        write_new(&bench.store, (0..400).map(|n| request(start + n * SECOND, n as u64))).await;
    }
    seal_all(&bench.store).await;
    let begun = Instant::now();
    let checked = bench.store.check_day(MIDNIGHT, false).await.unwrap();
    assert_eq!((checked.segments, checked.differing), (24 + 24 + 1, 0));

    // All hours together take four times what a statement may.
    let quarter = u64::try_from(begun.elapsed().as_millis() / 4).unwrap();
    let limit = NonZeroU64::new(quarter).unwrap();
    let bench = bench.reopened_as(DatabaseConfig { statement_timeout_ms: limit, ..DatabaseConfig::default() }).await;
    assert_eq!(bench.store.check_day(MIDNIGHT, false).await.unwrap(), checked);
}

async fn assert_answers(store: &Store, all: &[NewRequest]) {
    let edges = [MIDNIGHT - DAY, MIDNIGHT, MIDNIGHT + DAY];
    let all: Vec<&NewRequest> = all.iter().collect();
    let window = scope(edges[0], edges[2]);
    assert_eq!(store.totals(&window, &edges).await.unwrap(), reference::buckets(&all, &edges));
    for keys in [&[Dimension::User][..], &[Dimension::Model, Dimension::User, Dimension::Instance]] {
        let ranked = store.breakdown(&window, keys, Metric::Cost, 9).await.unwrap();
        let expected = reference::ranked(&all, keys, Metric::Cost, 9, &[edges[0], edges[2]]);
        assert_eq!((ranked.rows, ranked.groups), (expected.rows, expected.groups));
    }
}

pub(crate) async fn a_check_finds_what_was_changed_and_repairs_it(mut bench: Bench) {
    let mut all = requests();
    write_new(&bench.store, all.clone()).await;
    seal_all(&bench.store).await;
    // Three quarters, two hours and the day, of two days.
    assert_eq!(check(&bench.store, true).await, (12, 0));

    let quarter = |n: i64| MIDNIGHT + n * QUARTER;
    let first = quarter(40);
    let at = |level: i16, start: i64| format!("level = {level} AND start_us = {start}");
    let hour = at(1, quarter(40));
    let raw = all[0].event.occurred_at_us;
    let table = [
        // A section is another's.
        (
            format!(
                "UPDATE usage_segments SET data = (SELECT data FROM usage_segments WHERE cut = 1 AND {}) \
                 WHERE cut = 1 AND {}",
                at(0, quarter(41)),
                at(0, first)
            ),
            1,
        ),
        // Torn off, or empty.
        (format!("UPDATE usage_segments SET data = substr(data, 1, 9) WHERE cut = 0 AND {hour}"), 1),
        (format!("UPDATE usage_segments SET data = substr(data, 1, 0) WHERE cut = 6 AND {}", at(2, MIDNIGHT)), 1),
        // Sections, all of them, and all of a level.
        (format!("DELETE FROM usage_segments WHERE cut = 4 AND {}", at(0, first)), 1),
        (format!("DELETE FROM usage_segments WHERE {hour}"), 1),
        ("DELETE FROM usage_segments WHERE level = 0".to_owned(), 6),
        // Nobody would find them.
        (format!("DELETE FROM usage_spans WHERE {}", at(2, MIDNIGHT)), 1),
        ("DELETE FROM usage_spans".to_owned(), 12),
        ("DELETE FROM usage_segments; DELETE FROM usage_spans".to_owned(), 12),
        // There is nothing in that quarter, nor in that one.
        (
            format!(
                "INSERT INTO usage_spans SELECT level, {0}, instance, version FROM usage_spans WHERE {1}; \
                 INSERT INTO usage_segments SELECT level, {0}, instance, cut, data FROM usage_segments WHERE {1}",
                quarter(3),
                at(0, first)
            ),
            1,
        ),
        (format!("INSERT INTO usage_spans SELECT 0, {}, 1, MAX(version) FROM usage_rollup", quarter(4)), 1),
        // Texts: of another id, and away. That user is in two quarters and hours of each day.
        ("UPDATE usage_values SET value = 'somebody' WHERE value = 'user-1'".to_owned(), 10),
        ("DELETE FROM usage_values WHERE value = 'model-1'".to_owned(), 12),
        ("DELETE FROM usage_values".to_owned(), 12),
        // Requests.
        (format!("UPDATE usage_requests SET output = output + 1 WHERE occurred_at = {raw}"), 3),
        (format!("UPDATE usage_requests SET output = output - 1 WHERE occurred_at = {raw}"), 3),
        (format!("DELETE FROM usage_requests WHERE occurred_at = {raw}"), 3),
    ];
    for (tampering, differing) in table {
        bench.execute(&tampering).await;
        if tampering.starts_with("DELETE FROM usage_requests") {
            all.remove(0);
        }
        // A process that knows nothing, and has nothing in memory.
        bench = bench.reopened().await;
        let found = check(&bench.store, false).await;
        assert_eq!(found.1, differing, "{tampering}");
        let repaired = check(&bench.store, true).await;
        // The repair of one day brings texts back, and what of the others they are the only fault of.
        let least = if tampering.starts_with("DELETE FROM usage_values") { found.1 / 2 } else { found.1 };
        assert!((least..=found.1).contains(&repaired.1), "{tampering}: {repaired:?} of {found:?}");
        assert_eq!(check(&bench.store, true).await.1, 0, "{tampering}");
        if !tampering.starts_with("UPDATE usage_requests") {
            assert_answers(&bench.store, &all).await;
            bench = bench.reopened().await;
            assert_answers(&bench.store, &all).await;
        }
    }
}

pub(crate) async fn what_waits_to_be_sealed_is_no_difference(bench: Bench) {
    let store = &bench.store;
    let all = requests();
    write_new(store, all.iter().step_by(2).cloned()).await;
    assert_eq!(check(store, true).await, (0, 0), "there are no segments");
    seal_all(store).await;
    // Of the same spans, of others, and of users and models that nobody has seen.
    write_new(store, all.iter().skip(1).step_by(2).cloned()).await;
    let stranger = changed(&request(MIDNIGHT + DAY - 1, 99), |event| {
        event.user_id = "stranger".into();
        event.model = "new".into();
    });
    write_new(store, [stranger]).await;
    let (segments, differing) = check(store, true).await;
    assert_eq!((segments, differing), (12, 0));
    seal_all(store).await;
    assert_eq!(check(store, true).await, (14, 0));
}

/// What deltas tell of is not there: nobody knows what is right, and the rows may come back.
pub(crate) async fn nothing_is_made_of_fewer_requests_than_none(bench: Bench) {
    let store = &bench.store;
    let mut all = requests();
    write_new(store, all.clone()).await;
    seal_all(store).await;
    let stranger = changed(&request(MIDNIGHT + 40 * QUARTER + 7, 99), |event| event.user_id = "stranger".into());
    write_new(store, [stranger.clone()]).await;
    bench.execute("DELETE FROM usage_requests WHERE user_id = 'stranger'").await;
    for repair in [false, true] {
        let checked = store.check_day(MIDNIGHT, repair).await.unwrap();
        assert_eq!((checked.differing, checked.repaired), (3, false));
    }
    all.push(stranger);
    assert_answers(store, &all).await;
}

pub(crate) async fn a_repair_reaches_every_replica(bench: Bench) {
    let all = requests();
    write_new(&bench.store, all.clone()).await;
    seal_all(&bench.store).await;
    let other = bench.replica().await;
    assert_answers(&other, &all).await;
    // What the other one has in memory of these texts is no longer what is stored.
    bench.execute("UPDATE usage_values SET value = 'somebody' WHERE value = 'user-1'").await;
    let (_, differing) = check(&bench.store, true).await;
    assert_eq!(differing, 10);
    for store in [&bench.store, &other] {
        assert_answers(store, &all).await;
    }
    // And both go on from there.
    let late = changed(&request(MIDNIGHT + 7, 77), |event| event.user_id = "user-1".into());
    write_new(&other, [late.clone()]).await;
    seal_all(&other).await;
    let all: Vec<NewRequest> = all.into_iter().chain([late]).collect();
    for store in [&bench.store, &other] {
        assert_eq!(store.totals(&always(), &[0, i64::MAX]).await.unwrap(), [reference::metrics(&all)]);
        assert_answers(store, &all).await;
    }
    assert_eq!(check(&bench.store, false).await.1, 0);
}

pub(crate) async fn a_damaged_delta_is_made_up_for_by_its_requests(bench: Bench) {
    use usage_service::checker::check_all;

    let mut all = requests();
    write_new(&bench.store, all[..6].to_vec()).await;
    seal_all(&bench.store).await;
    write_new(&bench.store, all[6..].to_vec()).await;
    let damaged = bench.number("SELECT CAST(MAX(commit_number) AS BIGINT) FROM usage_deltas").await;
    let zeros = match bench.url.sqlite_path() {
        Some(_) => "x'00ff00ff00ff'",
        None => "'\\x00ff00ff00ff'::bytea",
    };
    bench.execute(&format!("UPDATE usage_deltas SET data = {zeros} WHERE commit_number = {damaged}")).await;
    // What comes later is sealed all the same; answers are refused rather than wrong.
    let late = changed(&request(MIDNIGHT + QUARTER, 77), |event| event.user_id = "late".into());
    write_new(&bench.store, [late.clone()]).await;
    all.push(late);
    while bench.store.seal().await.unwrap() != usage_service::store::Sealed::Nothing {}
    assert_eq!(bench.store.backlog().await.unwrap().deltas, 1, "the damaged one is left");
    let window = always();
    let refused = bench.store.totals(&window, &[window.start_us, window.end_us]).await.unwrap_err();
    assert!(format!("{refused:?}").contains("check --repair"), "{refused:?}");

    let found = check_all(&bench.store, false, |_, _| {}).await.unwrap();
    assert_eq!((found.damaged, found.mended, found.is_well()), (1, false, false));
    assert!(found.differing > 0, "{found:?}");
    let mended = check_all(&bench.store, true, |_, checked| assert!(checked.is_ok())).await.unwrap();
    assert!(mended.mended && mended.is_well(), "{mended:?}");
    assert_eq!(bench.store.backlog().await.unwrap().deltas, 0);
    assert_answers(&bench.store, &all).await;
    let found = check_all(&bench.store, false, |_, _| {}).await.unwrap();
    assert_eq!((found.damaged, found.differing, found.failed, found.is_well()), (0, 0, 0, true));
}
