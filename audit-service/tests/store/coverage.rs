//! What each producer sent: received, missing, dropped; and intents without an outcome.

use audit_service::event::{Dropped, Event, Producer, Stage};
use audit_service::ingest::Batch;
use audit_service::store::Store;
use service_core::auth::Access;
use service_core::clock;
use service_core::coverage::{Epoch, MAX_BLOCKS, Wanted};
use service_core::numbers::Covered;
use service_core::time_range::Resolved;

use super::support::{Home, T0, event, numbered, staged, write};

fn wanted() -> Wanted {
    let mut wanted = Wanted::new(None, Vec::new(), None, None).unwrap();
    (wanted.range.start_us, wanted.range.end_us) = (0, i64::MAX);
    wanted
}

async fn heard(store: &Store, wanted: &Wanted) -> Vec<Epoch> {
    store.heard(&Access::unrestricted(), wanted, None, 100).await.unwrap()
}

async fn covered(store: &Store, wanted: &Wanted) -> Vec<(String, u64, Covered)> {
    let mut all = Vec::new();
    for epoch in heard(store, wanted).await {
        let (covered, _) = store.covered(&Access::unrestricted(), &epoch, wanted, MAX_BLOCKS).await.unwrap();
        all.push((epoch.producer_id, epoch.epoch, covered));
    }
    all
}

async fn drop_range(store: &Store, producer: &str, epoch: u64, first: u64, last: u64) {
    let dropped = vec![Dropped { producer_id: producer.into(), epoch, first, last }];
    store.write(&[Batch { dropped, ..Batch::default() }]).await.unwrap();
}

pub(crate) async fn coverage_tells_received_missing_and_dropped(home: &Home) {
    let store = home.open().await;
    assert_eq!(heard(&store, &wanted()).await, []);
    let before = clock::now_us();
    let numbers = [0, 1, 2, 5, 65_536, 65_537, 200_000];
    write(&store, numbers.map(|number| numbered(T0, "a", 7, number))).await;
    write(&store, [numbered(T0, "a", u64::MAX, 3), numbered(T0, "B", 1, 0)]).await;
    drop_range(&store, "a", 7, 4, 5).await;
    drop_range(&store, "a", 7, 199_000, 300_000).await;
    drop_range(&store, "silent", 1, 0, u64::MAX).await;
    // Every event with its number; nothing of it is an epoch on either engine.
    let conflict = numbered(T0, "refused", 1, 9);
    write(&store, [Event { id: conflict.id, reason: "other".into(), ..event(T0) }]).await;
    write(&store, [conflict]).await;

    let all = covered(&store, &wanted()).await;
    let names: Vec<(&str, u64)> = all.iter().map(|(id, epoch, _)| (id.as_str(), *epoch)).collect();
    assert_eq!(names, [("B", 1), ("a", 7), ("a", u64::MAX), ("silent", 1)], "in order, by bytes");
    let of_a = &all[1].2;
    assert_eq!(of_a.received.shown, [(0, 2), (5, 5), (65_536, 65_537), (200_000, 200_000)]);
    assert_eq!(of_a.dropped.shown, [(4, 4), (199_000, 199_999), (200_001, 300_000)]);
    assert_eq!(of_a.missing.shown, [(3, 3), (6, 65_535), (65_538, 198_999)]);
    let counts = (of_a.received.count, of_a.dropped.count, of_a.missing.count);
    assert_eq!(counts, (7, 1 + 1_000 + 100_000, 1 + 65_530 + 133_462));
    assert_eq!((of_a.received.ends, of_a.through), (Some((0, 200_000)), Some(300_000)));
    assert_eq!((all[2].2.missing.shown.clone(), all[3].2.dropped.shown.clone()), (vec![(0, 2)], vec![(0, u64::MAX)]));

    let part = Wanted { producer_ids: vec!["a".into()], first: 5, last: Some(65_536), ..wanted() };
    let [(_, 7, part), (_, u64::MAX, none)] = &covered(&store, &part).await[..] else { panic!("both epochs of a") };
    assert_eq!((part.received.shown.clone(), part.through), (vec![(5, 5), (65_536, 65_536)], Some(65_536)));
    assert_eq!((part.missing.shown.clone(), part.dropped.count), (vec![(6, 65_535)], 0));
    assert_eq!(*none, Covered::default());

    // When they were heard.
    let epochs = heard(&store, &wanted()).await;
    assert!(epochs.iter().all(|epoch| before <= epoch.first_heard_us && epoch.last_heard_us <= clock::now_us()));
    assert!(epochs[1].first_heard_us < epochs[1].last_heard_us, "{:?}", epochs[1]);
    let at = |start_us, end_us| Wanted { range: Resolved { start_us, end_us, ..wanted().range }, ..wanted() };
    assert_eq!(heard(&store, &at(0, before)).await, []);
    assert_eq!(heard(&store, &at(epochs[3].last_heard_us, i64::MAX)).await, epochs[3..]);
    assert_eq!(heard(&store, &at(epochs[3].last_heard_us + 1, i64::MAX)).await, []);
}

pub(crate) async fn coverage_is_walked_page_by_page(home: &Home) {
    let store = home.open().await;
    let epochs = [("a", 0), ("a", 5), ("a", 1 << 63), ("a", u64::MAX), ("b", 1), ("é", 2)];
    write(&store, epochs.map(|(producer, epoch)| numbered(T0, producer, epoch, 0))).await;
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.heard(&Access::unrestricted(), &wanted(), after.take(), 1).await.unwrap();
        let Some(epoch) = page.first() else { break };
        after = Some((epoch.producer_id.clone(), epoch.epoch));
        seen.push((epoch.producer_id.clone(), epoch.epoch));
    }
    assert_eq!(seen, epochs.map(|(producer, epoch)| (producer.to_owned(), epoch)));
    // Who does not see everything sees nothing of it.
    let some = Access::unrestricted().to_instances(["prod"]);
    assert!(store.heard(&some, &wanted(), None, 1).await.is_err());
    assert!(store.open_intents(&some, &wanted()).await.is_err());
}

pub(crate) async fn what_is_sent_again_under_another_number_is_not_missing(home: &Home) {
    let store = home.open().await;
    let first = numbered(T0, "p", 1, 0);
    let again = |epoch, sequence| {
        let producer = Some(Producer { id: "p".into(), epoch, sequence });
        Event { producer, ..first.clone() }
    };
    // In a group of its own, in the same group, and where the number is somebody else's.
    write(&store, [first.clone()]).await;
    write(&store, [again(1, 1), again(2, 0)]).await;
    write(&store, [numbered(T0, "p", 1, 3), again(1, 2), again(1, 3)]).await;
    let all = covered(&store, &wanted()).await;
    let shown: Vec<_> =
        all.iter().map(|(_, _, covered)| (&covered.received.shown[..], covered.missing.count)).collect();
    assert_eq!(shown, [(&[(0, 3)][..], 0), (&[(0, 0)][..], 0)]);
}

pub(crate) async fn a_coverage_that_would_take_long_stops_and_says_where(home: &Home) {
    let store = home.open().await;
    write(&store, [0, 65_536, 131_072].map(|number| numbered(T0, "p", 1, number))).await;
    let epoch = heard(&store, &wanted()).await.remove(0);
    let (covered, read) = store.covered(&Access::unrestricted(), &epoch, &wanted(), 2).await.unwrap();
    assert_eq!((read, covered.through, covered.received.count), (2, Some(131_071), 2));
    let rest = Wanted { first: 131_072, ..wanted() };
    let (covered, read) = store.covered(&Access::unrestricted(), &epoch, &rest, 2).await.unwrap();
    assert_eq!((read, covered.through, covered.received.shown), (1, Some(131_072), vec![(131_072, 131_072)]));
}

pub(crate) async fn intents_are_open_until_their_outcome_comes(home: &Home) {
    let store = home.open().await;
    let of =
        |event: Event, id: &str| Event { producer: Some(Producer { id: id.into(), epoch: 1, sequence: 0 }), ..event };
    let events = [
        of(staged(T0, "one", Stage::Intent), "a"),
        of(staged(T0 + 1, "two", Stage::Intent), "b"),
        staged(T0 + 2, "three", Stage::Intent),
        staged(T0 + 3, "three", Stage::Outcome),
        event(T0 + 4),
    ];
    write(&store, events).await;
    let open = async |wanted: Wanted| {
        let (entries, more) = store.open_intents(&Access::unrestricted(), &wanted).await.unwrap();
        assert!(!more);
        entries.into_iter().map(|entry| entry.event.operation.unwrap().id).collect::<Vec<_>>()
    };
    assert_eq!(open(wanted()).await, ["two", "one"], "newest first");
    assert_eq!(open(Wanted { producer_ids: vec!["a".into()], ..wanted() }).await, ["one"]);
    let range = Resolved { start_us: T0 + 1, ..wanted().range };
    assert_eq!(open(Wanted { range, ..wanted() }).await, ["two"]);
    write(&store, [staged(T0 + 5, "two", Stage::Outcome)]).await;
    assert_eq!(open(wanted()).await, ["one"]);

    let many = (0..120).map(|n| of(staged(T0 + 10 + n, &format!("many-{n}"), Stage::Intent), "c"));
    // Their numbers are of no matter here.
    write(&store, many.map(|event| Event { producer: None, ..event })).await;
    let (entries, more) = store.open_intents(&Access::unrestricted(), &wanted()).await.unwrap();
    assert_eq!((entries.len(), more), (100, true));
    let (entries, more) = store
        .open_intents(&Access::unrestricted(), &Wanted { producer_ids: vec!["a".into()], ..wanted() })
        .await
        .unwrap();
    assert_eq!((entries.len(), more), (1, false), "behind a page of others'");
}
