//! The spool's guarantees, over a disk that fails when it is told to.

mod disk;
mod fair;
mod model;
mod numbers;
mod refused;
mod sync;

use std::time::Duration;

use tokio::time::Instant;

use self::disk::{Fault, Harness, body};
use super::*;

const LONG: Duration = Duration::from_secs(20);

fn soon() -> Instant {
    Instant::now() + LONG
}

fn sorted(mut numbers: Vec<u64>) -> Vec<u64> {
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn what_was_recorded_is_there_after_the_process_died() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..100 {
        spool.push_dropping(&body(n)).unwrap();
    }
    // Nothing was synced, closed or told: the files are as a killed process leaves them.
    let again = harness.crash().open();
    assert_eq!(again.stats().recovered, 100);
    let taken = again.take_all().await;
    assert_eq!(taken.bodies(), (0..100).collect::<Vec<_>>());
    // With the numbers that they had, of the epoch that they had.
    assert_eq!(taken.numbers(), (0..100).map(|n| (1, n)).collect::<Vec<_>>());
    assert!(taken.dropped.is_empty());
}

#[tokio::test]
async fn damage_costs_what_is_damaged_and_its_segment_is_kept() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..50 {
        spool.push_dropping(&body(n)).unwrap();
    }
    spool.shutdown().await;
    let crashed = harness.crash();
    crashed.edit(1, |bytes| bytes[6_000] ^= 4);
    let again = crashed.open();
    let taken = again.take_all().await;
    assert_eq!(taken.bodies().len(), 49);
    assert_eq!(again.stats().damaged, 1);
    again.settle_all(taken).await;
    again.until_files(|files| files.damaged == 1).await;
    let stats = again.stats();
    assert_eq!(stats.recovered, stats.acknowledged + stats.damaged);
}

#[tokio::test]
async fn a_segment_that_cannot_be_read_for_now_is_read_later() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..50 {
        spool.push_dropping(&body(n)).unwrap();
    }
    spool.shutdown().await;
    // Not at the start, where the application can be told: it is what it was then.
    harness.fail(Fault::Read, 1);
    let refused = harness.try_open().map(|_| ()).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("00000000000000000001.segment") && text.contains("os error 5"), "{text}");
    let again = harness.open();
    harness.fail(Fault::Read, 2);
    let taken = again.take_all().await;
    assert_eq!(taken.bodies(), (0..50).collect::<Vec<_>>());
    again.settle_all(taken).await;
    let stats = again.stats();
    assert_eq!((stats.damaged, again.files().damaged, stats.disk_errors), (0, 0, 1), "told once: {stats:?}");
}

#[tokio::test]
async fn a_segment_on_a_broken_part_of_the_disk_holds_nothing_up_for_ever() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..50 {
        spool.push_dropping(&body(n)).unwrap();
    }
    spool.shutdown().await;
    let again = harness.open();
    harness.fail(Fault::Read, u32::MAX);
    again.push_dropping(&body(50)).unwrap();
    let taken = again.take_all().await;
    assert_eq!(taken.bodies(), [50]);
    again.settle_all(taken).await;
    assert_eq!(again.stats().damaged, 50);
    again.until_files(|files| files.damaged == 1).await;
}

#[tokio::test]
async fn files_that_are_no_segments_are_set_aside_and_hold_nothing_up() {
    let harness = Harness::new();
    let spool = harness.open();
    spool.push_dropping(&body(1)).unwrap();
    let crashed = harness.crash();
    crashed.write("00000000000000000007.segment", &[7; 9_000]);
    crashed.write("00000000000000000008.segment", &[]);
    crashed.write("00000000000000000009.segment", &[0; 9_000]);
    crashed.write("notes.txt", b"not ours");
    let again = crashed.open();
    let taken = again.take_all().await;
    assert_eq!(taken.bodies(), [1]);
    assert_eq!(again.files().damaged, 1);
    again.push_dropping(&body(2)).unwrap();
    assert_eq!(again.take_all().await.bodies(), [2]);
}

#[tokio::test]
async fn acknowledged_segments_are_removed_and_nothing_is_sent_twice_after_a_stop() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..3_000 {
        spool.push_waiting(&body(n), None, soon()).await.unwrap();
    }
    // Of the oldest segments and of the newest.
    let mut sent = Vec::new();
    for _ in 0..20 {
        let batch = spool.next().await.unwrap();
        sent.extend(disk::bodies(&batch));
        spool.settle_batch(&batch);
    }
    spool.until_files(|files| files.segments[0] > 1).await;
    spool.shutdown().await;
    let again = harness.open();
    assert_eq!(again.stats().recovered as usize, 3_000 - sent.len());
    sent.extend(again.take_all().await.bodies());
    assert_eq!(sorted(sent), (0..3_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_segment_that_cannot_be_removed_is_removed_later_and_its_room_is_used_again() {
    let harness = Harness::new();
    let spool = harness.open();
    harness.fail(Fault::Remove, 3);
    let (mut n, mut removed) = (0, 0);
    // More than there is room for.
    while removed < 2 * disk::SEGMENTS as u64 {
        spool.push_waiting(&body(n), None, soon()).await.unwrap();
        n += 1;
        if n % 100 == 0 {
            let taken = spool.take_all().await;
            spool.settle_all(taken).await;
            removed = spool.lock().entries.back().map_or(0, |entry| entry.number);
        }
    }
    spool.until_files(|files| files.segments[0] >= removed).await;
    spool.until_idle().await;
    let stats = spool.stats();
    assert!(stats.spool_bytes <= 2 * disk::SEGMENT as u64, "{stats:?}");
    assert!(harness.count(Fault::Remove) > removed && stats.disk_errors > 0, "{stats:?}");
}

#[tokio::test]
async fn how_far_one_segment_was_acknowledged_is_never_taken_for_another() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..50 {
        spool.push_dropping(&body(n)).unwrap();
    }
    // The keeper has to be woken for the ledger.
    spool.until_idle().await;
    let taken = spool.take_all().await;
    spool.settle_all(taken).await;
    // The ledger has it, and then the file goes before the ledger says so.
    let since = std::time::Instant::now();
    while spool.lock().ledger_stale {
        assert!(since.elapsed() < LONG);
        tokio::task::yield_now().await;
    }
    let crashed = harness.crash();
    for number in crashed.segments() {
        std::fs::remove_file(crashed.path().join(format!("{number:020}.segment"))).unwrap();
    }
    let again = crashed.open();
    for n in 50..60 {
        again.push_dropping(&body(n)).unwrap();
    }
    let last = crashed.crash().open();
    assert_eq!(last.take_all().await.bodies(), (50..60).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_segment_that_is_being_made_is_not_one_that_is_acknowledged() {
    let harness = Harness::durable();
    let spool = harness.open();
    harness.fail(Fault::Create, u32::MAX);
    harness.fail(Fault::Sync, 1);
    let first = spool.push_waiting(&body(0), None, soon()).await.unwrap();
    spool.synced(first, soon()).await.unwrap_err();
    // Everything is acknowledged, and there is no segment at all.
    let taken = spool.take_all().await;
    spool.settle_all(taken).await;
    assert!(spool.lock().entries.is_empty());
    // The ledger is written in the same round in which the next one is made.
    harness.fail(Fault::Create, 0);
    spool.until_idle().await;
    spool.push_waiting(&body(1), None, soon()).await.unwrap();
    assert_eq!(harness.crash().open().take_all().await.bodies(), [1]);
}

#[tokio::test]
async fn what_is_in_flight_when_the_process_dies_is_sent_again() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..10 {
        spool.push_dropping(&body(n)).unwrap();
    }
    let batch = spool.next().await.unwrap();
    assert_eq!(batch.events.len(), 10);
    let again = harness.crash().open();
    assert_eq!(again.take_all().await.bodies(), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn beyond_the_limit_the_oldest_segment_is_dropped_and_told_also_after_a_crash() {
    let harness = Harness::new();
    let spool = harness.open();
    let mut n = 0;
    while spool.stats().dropped == 0 {
        spool.push_dropping(&body(n)).unwrap();
        n += 1;
    }
    spool.until_idle().await;
    let stats = spool.stats();
    assert_eq!(stats.recorded, stats.queued + stats.dropped);
    assert!(spool.until_files(|files| files.segments.len() <= disk::SEGMENTS).await.bytes <= disk::LIMIT);
    let crashed = harness.crash();
    let again = crashed.open();
    let taken = again.take_all().await;
    assert_eq!(taken.bodies(), (stats.dropped..n).collect::<Vec<_>>());
    assert_eq!(taken.dropped, [(1, 0, stats.dropped - 1)]);
    again.settle_all(taken).await;
    again.shutdown().await;
    // What was reported is not reported again.
    let last = crashed.open();
    assert_eq!(last.stats().recovered, 0);
    last.push_dropping(&body(n)).unwrap();
    assert!(last.take_all().await.dropped.is_empty());
}

#[tokio::test]
async fn a_reader_that_waits_for_a_segment_that_is_dropped_goes_on_with_the_next() {
    let harness = Harness::new();
    let spool = harness.open();
    let mut n = 0;
    while spool.files().segments.len() < disk::SEGMENTS {
        spool.push_dropping(&body(n)).unwrap();
        n += 1;
    }
    spool.shutdown().await;
    // From disk, while the oldest are dropped for what comes.
    let again = harness.open();
    let reader = tokio::spawn({
        let spool = again.arc();
        async move {
            let mut batches = Vec::new();
            while let Some(batch) = spool.next().await {
                batches.push(batch);
            }
            batches
        }
    });
    let from = n;
    while n < from + 20_000 {
        again.push_dropping(&body(n)).unwrap();
        n += 1;
        tokio::task::yield_now().await;
    }
    again.close();
    let batches = tokio::time::timeout(LONG, reader).await.expect("it comes to an end").unwrap();
    let seen: u64 = batches.iter().map(|batch| batch.events.len() as u64).sum();
    let ranges = batches.iter().flat_map(|batch| &batch.dropped);
    let dropped: u64 = ranges.map(|range| range.last - range.first + 1).sum();
    assert_eq!((seen + dropped, again.stats().dropped), (n, dropped));
}

#[tokio::test]
async fn what_is_in_flight_is_not_dropped() {
    let harness = Harness::new();
    let spool = harness.open();
    spool.push_dropping(&body(0)).unwrap();
    let first = spool.next().await.unwrap();
    let mut n = 1;
    while spool.stats().dropped == 0 {
        spool.push_dropping(&body(n)).unwrap();
        n += 1;
    }
    spool.settle_batch(&first);
    let taken = spool.take_all().await;
    let bodies = taken.bodies();
    let dropped: u64 = taken.dropped.iter().map(|(_, first, last)| last - first + 1).sum();
    assert!(bodies[0] == 1 && dropped == spool.stats().dropped, "the rest of the first segment was kept");
    assert_eq!(bodies.len() as u64 + dropped + 1, n);
}

#[tokio::test]
async fn waiting_callers_drop_nothing_and_are_told_in_time() {
    let harness = Harness::new();
    let spool = harness.open();
    let short = || Instant::now() + Duration::from_millis(300);
    let mut n = 0;
    let refused = loop {
        match spool.push_waiting(&body(n), None, short()).await {
            Ok(number) => assert_eq!(number, n),
            Err(refused) => break refused,
        }
        n += 1;
    };
    assert!(matches!(refused, Refused::Full { events, .. } if events as u64 == n), "{refused:?}");
    assert_eq!(spool.stats().dropped, 0);
    // Room is made by what is acknowledged.
    let waiting = tokio::spawn({
        let spool = spool.arc();
        async move { spool.push_waiting(&body(n), None, soon()).await }
    });
    let taken = spool.take_all().await;
    assert_eq!(sorted(taken.bodies()), (0..n).collect::<Vec<_>>());
    spool.settle_all(taken).await;
    assert_eq!(waiting.await.unwrap(), Ok(n));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_wait_keep_nobody_from_dropping_the_oldest() {
    let harness = Harness::new();
    let spool = harness.open();
    while spool.push_waiting(&body(0), None, Instant::now() + Duration::from_millis(100)).await.is_ok() {}
    let waiting = tokio::spawn({
        let spool = spool.arc();
        async move {
            while spool.push_waiting(&body(0), None, Instant::now()).await != Err(Refused::Closed) {
                tokio::task::yield_now().await;
            }
        }
    });
    let dropping = tokio::task::spawn_blocking({
        let spool = spool.arc();
        move || (1..=5_000).for_each(|n| spool.push_dropping(&body(n)).unwrap())
    });
    dropping.await.unwrap();
    spool.close();
    waiting.await.unwrap();
    // A call that waited in vain would have dropped its own event instead of the oldest.
    let mut bodies = sorted(spool.take_all().await.bodies());
    bodies.retain(|body| *body > 0);
    let kept = bodies.len() as u64;
    assert!(kept > 50, "{kept}");
    assert_eq!(bodies, (5_001 - kept..=5_000).collect::<Vec<_>>());
}

#[test]
fn a_folder_is_made_for_its_user_alone_and_closed_to_others_if_it_is_there() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let new = home.path().join("above/new");
    super::files::make_folder(&new).unwrap();
    assert_eq!((mode(&new), mode(new.parent().unwrap())), (0o700, 0o700));
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    super::files::make_folder(&new).unwrap();
    assert_eq!(mode(&new), 0o700);
}

#[tokio::test]
async fn a_full_disk_is_an_error_for_audit_until_there_is_room() {
    let harness = Harness::durable();
    let spool = harness.open();
    harness.fail(Fault::Create, u32::MAX);
    let mut n = 0;
    let refused = loop {
        match spool.push_waiting(&body(n), None, soon()).await {
            Ok(_) => n += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(&refused, Refused::Disk(why) if why.contains("space")), "{refused:?}");
    harness.fail(Fault::Create, 0);
    // The keeper asks again by itself.
    loop {
        let room = spool.room.notified();
        match spool.push_waiting(&body(n), None, soon()).await {
            Ok(_) => break,
            Err(_) => room.await,
        }
    }
    assert_eq!(spool.take_all().await.bodies(), (0..=n).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_spool_that_is_opened_on_a_full_disk_delivers_what_is_there_and_takes_events_once_there_is_room() {
    let harness = Harness::durable();
    let spool = harness.open();
    for n in 0..100 {
        spool.push_waiting(&body(n), None, soon()).await.unwrap();
    }
    let harness = harness.crash();
    harness.fail(Fault::Create, u32::MAX);
    let again = harness.open();
    assert_eq!((again.stats().recovered, again.stats().disk_errors), (100, 1));
    let refused = again.push_waiting(&body(100), None, soon()).await.unwrap_err();
    assert!(matches!(&refused, Refused::Disk(why) if why.contains("space")), "{refused:?}");
    let taken = again.take_all().await;
    assert_eq!(taken.bodies(), (0..100).collect::<Vec<_>>());
    again.settle_all(taken).await;
    again.until_files(|files| files.segments.is_empty()).await;
    harness.fail(Fault::Create, 0);
    loop {
        let room = again.room.notified();
        match again.push_waiting(&body(100), None, soon()).await {
            Ok(number) => break assert_eq!(number, 0, "of its own epoch"),
            Err(_) => room.await,
        }
    }
    assert_eq!(again.take_all().await.numbers(), [(2, 0)]);
}

#[tokio::test]
async fn on_a_full_disk_usage_drops_the_oldest_and_no_caller_waits_twice() {
    let harness = Harness::new();
    let spool = harness.open();
    let mut n = 0;
    while spool.files().segments.len() < 4 {
        spool.push_dropping(&body(n)).unwrap();
        n += 1;
    }
    harness.fail(Fault::Create, u32::MAX);
    let (since, from) = (std::time::Instant::now(), n);
    while spool.stats().recorded < from + 20_000 {
        spool.push_dropping(&body(n)).unwrap();
        n += 1;
    }
    assert!(since.elapsed() < LONG / 4, "{:?}", since.elapsed());
    let stats = spool.stats();
    assert_eq!(stats.recorded, stats.queued + stats.dropped);
    assert!(stats.dropped > 15_000 && stats.disk_errors > 0);
    // All of them have numbers, and are reported.
    let taken = spool.take_all().await;
    let dropped: u64 = taken.dropped.iter().map(|(_, first, last)| last - first + 1).sum();
    assert_eq!(dropped, stats.dropped);
    let numbers = taken.numbers().into_iter().map(|(_, number)| number);
    let mut all: Vec<u64> = taken.dropped.iter().flat_map(|(_, a, b)| *a..=*b).chain(numbers).collect();
    all.sort_unstable();
    assert_eq!(all, (0..n).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_second_opener_is_refused_until_the_first_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let first = Folder::open(folder.path(), None).unwrap();
    let error = Folder::open(folder.path(), None).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("is in use by process") && text.contains(&std::process::id().to_string()), "{text}");
    let (id, epoch) = (first.producer_id.clone(), first.epoch);
    drop(first);
    let second = Folder::open(folder.path(), None).unwrap();
    assert_eq!(second.producer_id, id, "the name stays with the folder");
    assert!(second.epoch > epoch);
}

#[test]
fn an_epoch_is_never_given_again_whatever_the_clock_says() {
    let folder = tempfile::tempdir().unwrap();
    let far = u64::MAX / 2;
    std::fs::write(folder.path().join("producer"), format!("{{\"id\": \"p\", \"epoch\": {far}}}")).unwrap();
    let opened = Folder::open(folder.path(), None).unwrap();
    assert_eq!((opened.producer_id.as_str(), opened.epoch), ("p", far + 1));
    drop(opened);
    std::fs::write(folder.path().join("producer"), "spoilt").unwrap();
    let opened = Folder::open(folder.path(), None).unwrap();
    assert_ne!(opened.producer_id, "p", "a new name");
}

#[tokio::test]
async fn pressure_is_told_once_and_a_panic_there_harms_nobody() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let harness = Harness::new().on_pressure({
        let told = Arc::clone(&told);
        move |pressure| {
            told.lock().unwrap().push(pressure);
            panic!("a callback");
        }
    });
    let spool = harness.open();
    let mut n = 0;
    while spool.stats().dropped < 1_000 {
        spool.push_dropping(&body(n)).unwrap();
        n += 1;
    }
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].bytes > disk::LIMIT / 2 && told[0].limit == disk::LIMIT && told[0].events > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_many_threads_are_read_while_they_are_written() {
    let harness = Harness::with_limit(1 << 30);
    let spool = harness.open();
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let spool = spool.arc();
            std::thread::spawn(move || {
                for n in 0..5_000 {
                    spool.push_dropping(&body(thread << 32 | n)).unwrap();
                }
            })
        })
        .collect();
    let (mut numbers, mut events) = (Vec::new(), Vec::new());
    while numbers.len() < 20_000 {
        let batch = spool.next().await.unwrap();
        numbers.extend(batch.events.iter().map(|item| item.sequence));
        events.extend(disk::bodies(&batch));
        spool.settle_batch(&batch);
    }
    assert_eq!(sorted(numbers), (0..20_000).collect::<Vec<_>>());
    let all = (0..4_u64).flat_map(|thread| (0..5_000).map(move |n| thread << 32 | n));
    assert_eq!(sorted(events), all.collect::<Vec<_>>());
    for thread in threads {
        thread.join().unwrap();
    }
    spool.until_files(|files| files.segments.len() <= 2).await;
}
