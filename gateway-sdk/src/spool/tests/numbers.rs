//! Numbers without an event: which never were, and are reported as dropped, and which are a loss.

use super::super::format::FRAME_HEADER;
use super::disk::{Harness, body};

#[tokio::test]
async fn a_number_whose_event_was_never_whole_is_reported_and_its_neighbours_are_sent() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..5 {
        spool.push_dropping(&body(n)).unwrap();
    }
    // A thread is stopped between its place and its write, and others go on.
    let (place, sequence) = spool.place_without_writing(40);
    for n in 6..10 {
        spool.push_dropping(&body(n)).unwrap();
    }
    let again = harness.crash().open();
    let taken = again.take_all().await;
    assert_eq!(taken.bodies(), [0, 1, 2, 3, 4, 6, 7, 8, 9]);
    assert_eq!(taken.dropped, [(1, sequence, sequence)]);
    assert_eq!(again.stats().damaged, 0);
    drop(place);
}

#[tokio::test]
async fn a_number_is_reported_also_where_segments_meet() {
    // In the last place of a segment, and in the first; with the events before it sent, and not.
    for (last, settled) in [(true, false), (false, false), (true, true), (false, true)] {
        let harness = Harness::new();
        let spool = harness.open();
        for n in 0..5 {
            spool.push_dropping(&body(n)).unwrap();
        }
        let before = spool.next().await.unwrap();
        let place = if last {
            let place = spool.place_without_writing(40);
            spool.leave().await;
            place
        } else {
            spool.leave().await;
            spool.place_without_writing(40)
        };
        for n in 6..10 {
            spool.push_dropping(&body(n)).unwrap();
        }
        if settled {
            spool.settle_batch(&before);
            spool.until_idle().await;
        }
        assert_eq!(harness.segments().contains(&1), last || !settled);
        let mut left = harness.crash();
        for life in 0..2 {
            let again = left.open();
            let taken = again.take_all().await;
            let sent = (0..10).filter(|n| *n != 5 && !(settled && *n < 5));
            assert_eq!(taken.bodies(), sent.collect::<Vec<_>>(), "{last} {settled} {life}");
            assert_eq!(taken.dropped, [(1, place.1, place.1)], "{last} {settled} {life}");
            assert_eq!(again.stats().damaged, 0);
            // It is killed too, and has told nobody.
            left = left.crash();
        }
        // The machine may have lost it.
        let taken = harness.crash().reboot().open().take_all().await;
        assert!(taken.dropped.is_empty(), "{last} {settled}");
    }
}

#[tokio::test]
async fn an_event_that_was_damaged_where_segments_meet_is_not_passed_off_as_dropped() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..4 {
        spool.push_dropping(&body(n)).unwrap();
    }
    let at = spool.lock().current.as_ref().unwrap().tail();
    spool.push_dropping(&body(4)).unwrap();
    // It keeps the segment from being sealed.
    let place = spool.place_without_writing(40);
    spool.leave().await;
    spool.push_dropping(&body(6)).unwrap();
    let crashed = harness.crash();
    crashed.edit(1, |bytes| bytes[at + FRAME_HEADER] ^= 1);
    let taken = crashed.open().take_all().await;
    assert_eq!((taken.bodies(), taken.dropped), (vec![0, 1, 2, 3, 6], Vec::new()));
    drop(place);
}

#[tokio::test]
async fn after_the_machine_died_lost_numbers_are_not_passed_off_as_dropped() {
    let harness = Harness::new();
    let spool = harness.open();
    for n in 0..200 {
        spool.push_dropping(&body(n)).unwrap();
    }
    let crashed = harness.crash();
    // A page in the middle never reached the disk.
    crashed.edit(1, |bytes| bytes[8192..12_288].fill(0));
    let again = crashed.reboot().open();
    let taken = again.take_all().await;
    let bodies = taken.bodies();
    assert!(bodies.len() > 100 && bodies.len() < 200, "{}", bodies.len());
    assert!(bodies.starts_with(&[0, 1, 2]) && bodies.ends_with(&[198, 199]));
    assert!(taken.dropped.is_empty());
    again.settle_all(taken).await;
    assert_eq!(again.until_files(|files| files.damaged == 1).await.segments.len(), 1);
}

#[tokio::test]
async fn what_a_sealed_segment_has_lost_is_not_passed_off_as_dropped() {
    let harness = Harness::new();
    let spool = harness.open();
    let mut places = Vec::new();
    for n in 0..50 {
        places.extend(spool.lock().current.as_ref().map(|live| live.tail()));
        spool.push_dropping(&body(n)).unwrap();
    }
    spool.shutdown().await;
    let crashed = harness.crash();
    // In the same run of the machine: zeros where a frame begins.
    let at = places[20];
    crashed.edit(1, |bytes| bytes[at..at + 16].fill(0));
    let again = crashed.open();
    let taken = again.take_all().await;
    assert_eq!((taken.bodies().len(), taken.dropped.len(), again.stats().damaged), (49, 0, 1));
    again.settle_all(taken).await;
    again.until_files(|files| files.damaged == 1).await;
}
