//! What each producer sent: received, missing, dropped.

use service_core::auth::Access;
use service_core::clock;
use service_core::coverage::{Epoch, MAX_BLOCKS, Wanted};
use service_core::numbers::Covered;
use service_core::time_range::Resolved;
use usage_service::model::{DroppedRange, Outcome};
use usage_service::store::{Batch, Store};

use crate::Bench;
use crate::events::{NOON, numbered, request, write, write_new};

fn wanted() -> Wanted {
    let mut wanted = Wanted::new(None, Vec::new(), None, None).unwrap();
    (wanted.range.start_us, wanted.range.end_us) = (0, i64::MAX);
    wanted
}

async fn heard(store: &Store, wanted: &Wanted) -> Vec<Epoch> {
    store.heard(&Access::unrestricted(), wanted, None, 100).await.unwrap()
}

async fn covered(store: &Store, wanted: &Wanted) -> Vec<(u64, Covered)> {
    let mut all = Vec::new();
    for epoch in heard(store, wanted).await {
        let (covered, _) = store.covered(&Access::unrestricted(), &epoch, wanted, MAX_BLOCKS).await.unwrap();
        all.push((epoch.epoch, covered));
    }
    all
}

async fn drop_range(store: &Store, producer: &str, first_sequence: i64, last_sequence: i64) {
    let dropped = vec![DroppedRange { producer_id: producer.into(), epoch: 1, first_sequence, last_sequence }];
    store.write(&[Batch { dropped, ..Batch::default() }]).await.unwrap();
}

pub(crate) async fn coverage_tells_received_missing_and_dropped(bench: Bench) {
    let store = &bench.store;
    assert_eq!(heard(store, &wanted()).await, []);
    let before = clock::now_us();
    let numbers = [0, 1, 2, 5, 65_536, 200_000];
    write_new(store, numbers.map(|n: i64| numbered(&request(NOON, n.unsigned_abs()), 1, n))).await;
    write_new(store, [numbered(&request(NOON, 7), i64::MAX, 3)]).await;
    drop_range(store, "sdk", 4, 5).await;
    drop_range(store, "sdk", 199_000, 300_000).await;
    drop_range(store, "Silent", 0, i64::MAX).await;
    // What was refused leaves no epoch on either engine.
    assert_eq!(write(store, [numbered(&request(NOON + 1, 9_999), 9, 0)]).await, [Outcome::Accepted]);
    let conflict = crate::events::changed(&request(NOON, 1), |event| event.user_id = "other".into());
    assert_eq!(write(store, [numbered(&conflict, 8, 0)]).await, [Outcome::IdConflict]);

    let all = covered(store, &wanted()).await;
    let epochs = heard(store, &wanted()).await;
    let names: Vec<(&str, u64)> = epochs.iter().map(|epoch| (epoch.producer_id.as_str(), epoch.epoch)).collect();
    let last = i64::MAX.unsigned_abs();
    assert_eq!(names, [("Silent", 1), ("sdk", 1), ("sdk", 9), ("sdk", last)], "in order, by bytes");
    let first = &all[1].1;
    assert_eq!(first.received.shown, [(0, 2), (5, 5), (65_536, 65_536), (200_000, 200_000)]);
    assert_eq!(first.dropped.shown, [(4, 4), (199_000, 199_999), (200_001, 300_000)]);
    assert_eq!(first.missing.shown, [(3, 3), (6, 65_535), (65_537, 198_999)]);
    assert_eq!((first.received.count, first.dropped.count, first.through), (6, 101_001, Some(300_000)));
    assert_eq!((all[0].1.dropped.shown.clone(), all[3].1.missing.shown.clone()), (vec![(0, last)], vec![(0, 2)]));

    let part = Wanted { producer_ids: vec!["sdk".into()], first: 5, last: Some(65_536), ..wanted() };
    let part = &covered(store, &part).await[0].1;
    assert_eq!((part.missing.shown.clone(), part.through), (vec![(6, 65_535)], Some(65_536)));

    assert!(epochs.iter().all(|epoch| before <= epoch.first_heard_us && epoch.last_heard_us <= clock::now_us()));
    let range = Resolved { end_us: before, ..wanted().range };
    assert_eq!(heard(store, &Wanted { range, ..wanted() }).await, []);
    let range = Resolved { start_us: epochs[2].last_heard_us, ..wanted().range };
    assert_eq!(heard(store, &Wanted { range, ..wanted() }).await, epochs[2..3]);

    let (mut seen, mut after) = (Vec::new(), None);
    while let [epoch] = &store.heard(&Access::unrestricted(), &wanted(), after.take(), 1).await.unwrap()[..] {
        after = Some((epoch.producer_id.clone(), epoch.epoch));
        seen.push(epoch.clone());
    }
    assert_eq!(seen, epochs);
    // Who does not see everything sees nothing of it.
    for some in [Access::unrestricted().to_instances(["eu"]), Access::unrestricted().to_user("user-1")] {
        assert!(store.heard(&some, &wanted(), None, 1).await.is_err());
        assert!(store.covered(&some, &epochs[0], &wanted(), 1).await.is_err());
    }
}

pub(crate) async fn what_is_sent_again_under_another_number_is_not_missing(bench: Bench) {
    let store = &bench.store;
    let event = request(NOON, 1);
    write_new(store, [numbered(&event, 1, 0)]).await;
    // In a group of its own, in the same group, and where the number is somebody else's.
    assert_eq!(write(store, [numbered(&event, 1, 1)]).await, [Outcome::Duplicate]);
    let outcomes =
        write(store, [numbered(&request(NOON, 2), 1, 3), numbered(&event, 1, 2), numbered(&event, 1, 3)]).await;
    assert_eq!(outcomes, [Outcome::Accepted, Outcome::Duplicate, Outcome::Duplicate]);
    let other = request(NOON, 3);
    assert_eq!(
        write(store, [numbered(&other, 2, 0), numbered(&other, 2, 1)]).await,
        [Outcome::Accepted, Outcome::Duplicate]
    );
    let all = covered(store, &wanted()).await;
    let shown: Vec<_> = all.iter().map(|(_, covered)| (&covered.received.shown[..], covered.missing.count)).collect();
    assert_eq!(shown, [(&[(0, 3)][..], 0), (&[(0, 1)][..], 0)]);
    // The number is taken: it is nobody else's any more.
    assert_eq!(write(store, [numbered(&request(NOON, 4), 1, 1)]).await, [Outcome::ProducerConflict]);
}
