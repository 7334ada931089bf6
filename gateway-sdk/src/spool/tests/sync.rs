//! What a sync is worth: to those who wait for it, and to those who come too late for it.

use std::sync::Arc;

use super::super::Spool;
use super::super::format::{body_crc, frame_crc};
use super::super::map::Reserved;
use super::disk::{Fault, Harness, Opened, body};
use super::soon;
use crate::queue::Refused;

/// Records an event, and waits until it is on the disk.
async fn record(spool: &Opened, n: u64) -> Result<(), Refused> {
    record_on(spool.arc(), n).await
}

async fn record_on(spool: Arc<Spool<u64>>, n: u64) -> Result<(), Refused> {
    let sequence = spool.push_waiting(&body(n), None, soon()).await?;
    spool.synced(sequence, soon()).await
}

/// Records events, and waits for none of them, until there is a new segment: their numbers.
async fn rotate(spool: &Opened) -> Vec<u64> {
    let segment = || spool.lock().entries.back().map(|entry| entry.number);
    let (from, mut numbers) = (segment(), Vec::new());
    while segment() == from {
        numbers.push(spool.push_waiting(&body(7), None, soon()).await.unwrap());
    }
    numbers
}

/// The thread that was stopped goes on.
fn write(spool: &Opened, place: Reserved, sequence: u64, body: &[u8]) {
    place.write(sequence, frame_crc(body_crc(spool.seed, body), body.len() as u32, sequence), body);
}

async fn until(condition: impl Fn() -> bool) {
    let since = std::time::Instant::now();
    while !condition() {
        assert!(since.elapsed() < super::LONG);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn audit_is_on_disk_before_it_is_recorded_and_one_sync_serves_many() {
    let harness = Harness::durable();
    let spool = harness.open();
    record(&spool, 0).await.unwrap();
    assert_eq!(harness.count(Fault::Sync), 1);
    // While one sync is under way, others come.
    let held = harness.hold_syncs();
    let first = tokio::spawn(record_on(spool.arc(), 1));
    until(|| harness.count(Fault::Sync) == 2).await;
    let many: Vec<_> = (2..200).map(|n| tokio::spawn(record_on(spool.arc(), n))).collect();
    until(|| spool.lock().sync_waiters.len() == 198).await;
    drop(held);
    for recorded in many.into_iter().chain([first]) {
        assert_eq!(recorded.await.unwrap(), Ok(()));
    }
    assert_eq!(harness.count(Fault::Sync), 3);
}

#[tokio::test]
async fn a_sync_that_fails_is_told_and_not_tried_again_on_its_file() {
    let harness = Harness::durable();
    let spool = harness.open();
    let number = spool.push_waiting(&body(0), None, soon()).await.unwrap();
    spool.synced(number, soon()).await.unwrap();
    harness.fail(Fault::Sync, 1);
    let number = spool.push_waiting(&body(1), None, soon()).await.unwrap();
    let refused = spool.synced(number, soon()).await.unwrap_err();
    assert!(matches!(&refused, Refused::Disk(why) if why.contains("sync")), "{refused:?}");
    // The next goes to another file, and that one is synced.
    let number = spool.push_waiting(&body(2), None, soon()).await.unwrap();
    spool.synced(number, soon()).await.unwrap();
    let live = harness.synced();
    assert_eq!(live.iter().filter(|number| **number == live[0]).count(), 2, "{live:?}");
    assert_ne!(live[0], live[2]);
    // What nobody knows of is sent all the same.
    assert_eq!(spool.take_all().await.bodies(), [0, 1, 2]);
    assert_eq!(spool.stats().disk_errors, 1);
}

#[tokio::test]
async fn an_event_that_was_not_written_when_the_sync_began_is_not_recorded_by_it() {
    let harness = Harness::durable();
    let spool = harness.open();
    record(&spool, 0).await.unwrap();
    let late = body(1);
    let (place, sequence) = spool.place_without_writing(late.len());
    // Its place is below the end of what this syncs.
    record(&spool, 2).await.unwrap();
    let syncs = harness.count(Fault::Sync);
    write(&spool, place, sequence, &late);
    spool.synced(sequence, soon()).await.unwrap();
    assert_eq!(harness.count(Fault::Sync), syncs + 1, "a sync of its own");
    // And now all is on the disk.
    spool.synced(sequence, soon()).await.unwrap();
    assert_eq!(harness.count(Fault::Sync), syncs + 1);
    assert_eq!(spool.take_all().await.bodies(), [0, 1, 2]);
}

#[test]
fn what_threads_that_are_stopped_anywhere_have_recorded_is_on_the_disk() {
    let harness = Harness::durable();
    let spool = harness.open();
    let record = |n: usize| {
        let body = vec![b'x'; 500 + n];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for _ in 0..300 {
                let sequence = match spool.try_place(body.len()) {
                    Some((place, sequence)) => {
                        std::thread::yield_now();
                        write(&spool, place, sequence, &body);
                        sequence
                    }
                    None => spool.push_waiting(&body, None, soon()).await.unwrap(),
                };
                spool.synced(sequence, soon()).await.unwrap();
                assert!(harness.is_on_disk(sequence), "{sequence}");
            }
        });
    };
    std::thread::scope(|scope| {
        for n in 0..6 {
            let record = &record;
            scope.spawn(move || record(n));
        }
    });
    assert!(harness.segments().len() > 10);
}

#[tokio::test]
async fn a_segment_that_was_left_before_an_event_in_it_was_written_is_synced_again() {
    let harness = Harness::durable();
    let spool = harness.open();
    record(&spool, 0).await.unwrap();
    let segment = harness.synced()[0];
    let late = body(1);
    let (place, sequence) = spool.place_without_writing(late.len());
    let others = rotate(&spool).await;
    spool.synced(others[0], soon()).await.unwrap();
    let before = harness.synced();
    assert!(before[1..].contains(&segment), "{before:?}");
    write(&spool, place, sequence, &late);
    spool.synced(sequence, soon()).await.unwrap();
    assert_eq!(harness.synced()[before.len()..], [segment], "a sync of its own");
    spool.synced(sequence, soon()).await.unwrap();
    assert_eq!(harness.synced().len(), before.len() + 1);
}

#[tokio::test]
async fn whoever_asks_during_a_sync_that_fails_is_told_too() {
    let harness = Harness::durable();
    let spool = harness.open();
    record(&spool, 0).await.unwrap();
    let held = harness.hold_syncs();
    let first = tokio::spawn(record_on(spool.arc(), 1));
    until(|| harness.count(Fault::Sync) == 2).await;
    // In the segment whose pages the kernel is about to throw away.
    let second = tokio::spawn(record_on(spool.arc(), 2));
    until(|| spool.lock().sync_waiters.len() == 1).await;
    let third = spool.push_waiting(&body(3), None, soon()).await.unwrap();
    harness.fail(Fault::Sync, 1);
    drop(held);
    for told in [first.await.unwrap(), second.await.unwrap(), spool.synced(third, soon()).await] {
        assert!(matches!(&told, Err(Refused::Disk(why)) if why.contains("a sync failed")), "{told:?}");
    }
    // In another file.
    record(&spool, 4).await.unwrap();
    assert_eq!(spool.take_all().await.bodies(), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_segment_that_is_left_during_a_sync_that_fails_is_not_synced_again() {
    let harness = Harness::durable();
    let spool = harness.open();
    record(&spool, 0).await.unwrap();
    let segment = harness.synced()[0];
    let held = harness.hold_syncs();
    let first = tokio::spawn(record_on(spool.arc(), 1));
    until(|| harness.count(Fault::Sync) == 2).await;
    let mut numbers = rotate(&spool).await;
    let next = numbers.pop().unwrap();
    harness.fail(Fault::Sync, 1);
    drop(held);
    assert!(matches!(first.await.unwrap(), Err(Refused::Disk(_))));
    for number in numbers {
        let told = spool.synced(number, soon()).await;
        assert!(matches!(told, Err(Refused::Disk(_))), "{told:?}");
    }
    spool.synced(next, soon()).await.unwrap();
    let synced = harness.synced();
    assert_eq!(synced.iter().filter(|number| **number == segment).count(), 2, "{synced:?}");
}

#[tokio::test]
async fn a_sync_that_fails_is_nothing_to_the_segments_behind_it() {
    let harness = Harness::durable();
    let spool = harness.open();
    let first = spool.push_waiting(&body(0), None, soon()).await.unwrap();
    let mut behind = vec![rotate(&spool).await.pop().unwrap()];
    behind.append(&mut rotate(&spool).await);
    harness.fail(Fault::Sync, 1);
    let told = spool.synced(first, soon()).await;
    assert!(matches!(&told, Err(Refused::Disk(why)) if why.contains("a sync failed")), "{told:?}");
    for number in behind {
        spool.synced(number, soon()).await.unwrap();
    }
    let mut synced = harness.synced();
    synced.dedup();
    assert_eq!((synced.len(), harness.count(Fault::Sync)), (3, 3), "each once: {synced:?}");
}
