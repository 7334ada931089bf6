//! A backlog and what is fresh: neither waits for all of the other. All figures are of events, and none of time.

use super::disk::{Opened, TakenAll};
use super::*;

const SEGMENTS: usize = 20;
/// Of the harness.
const BATCH: u64 = 100;

/// Records, with nobody reading, until there are so many segments. Gives how many events that took.
fn pile_up(spool: &Opened) -> u64 {
    let mut n = 0;
    while spool.files().segments.len() < SEGMENTS {
        spool.push_dropping(&body(n)).unwrap();
        n += 1;
    }
    n
}

/// With a backlog of the process before; how many events it has.
async fn behind() -> (Harness, Opened, u64) {
    let harness = Harness::with_limit(1 << 30);
    let before = harness.open();
    let backlog = pile_up(&before);
    before.shutdown().await;
    let spool = harness.open();
    assert_eq!(spool.stats().recovered, backlog);
    (harness, spool, backlog)
}

#[tokio::test]
async fn an_event_behind_a_backlog_is_in_the_second_batch() {
    let (_harness, spool, _) = behind().await;
    spool.push_dropping(&body(0)).unwrap();
    let first = spool.next().await.unwrap();
    let second = spool.next().await.unwrap();
    let mut epochs = [first.who.epoch(), second.who.epoch()];
    epochs.sort_unstable();
    assert_eq!(epochs, [1, 2]);
}

#[tokio::test]
async fn however_much_is_fresh_a_backlog_has_every_second_batch_and_so_has_what_is_fresh() {
    let (_harness, spool, backlog) = behind().await;
    let (mut recorded, mut taken) = (0, TakenAll::default());
    let mut of_backlog = 0;
    while of_backlog < backlog {
        // Twice as many as it could have.
        for _ in 0..2 * BATCH {
            spool.push_dropping(&body(recorded)).unwrap();
            recorded += 1;
        }
        // Not while it is being read back: that is no turn.
        spool.until_loaded().await;
        let two = [spool.next().await.unwrap(), spool.next().await.unwrap()];
        let epochs = [two[0].who.epoch(), two[1].who.epoch()];
        assert!(epochs.contains(&2), "what is fresh has its turn: {epochs:?}");
        of_backlog += two.iter().filter(|batch| batch.who.epoch() == 1).map(|b| b.events.len() as u64).sum::<u64>();
        taken.batches.extend(two);
        // A batch ends with its segment, of which there are 20, and the first turn of each may be the other's.
        let turns = taken.batches.len() as u64 / 2;
        assert!(of_backlog + SEGMENTS as u64 * 2 * BATCH >= turns * BATCH, "{of_backlog} after {turns} turns");
    }
    let rest = spool.take_all().await;
    taken.batches.extend(rest.batches);
    let mut numbers = taken.numbers();
    let in_order: Vec<_> = numbers.iter().filter(|(epoch, _)| *epoch == 1).map(|(_, number)| *number).collect();
    assert_eq!(in_order, (0..backlog).collect::<Vec<_>>(), "a backlog in its order");
    numbers.sort_unstable();
    let all = (0..backlog).map(|number| (1, number)).chain((0..recorded).map(|number| (2, number)));
    assert_eq!(numbers, all.collect::<Vec<_>>(), "and everything once");
}

#[tokio::test]
async fn the_newest_of_a_backlog_of_this_process_wait_for_two_segments_at_most() {
    let harness = Harness::with_limit(1 << 30);
    let spool = harness.open();
    let recorded = pile_up(&spool);
    spool.until_idle().await;
    let mapped = spool.lock().entries.iter().filter(|entry| matches!(entry.source, Source::Live(_))).count();
    assert!(mapped <= 3, "{mapped} segments of a backlog are in memory");
    let bodies = spool.take_all().await.bodies();
    let newest = bodies.iter().position(|body| *body == recorded - 1).unwrap() as u64;
    // Two segments by turns with as many of the oldest.
    let most = 4 * recorded / (SEGMENTS as u64 - 2) + BATCH;
    assert!(newest < most, "{newest} of {recorded} came before it, and {most} may");
    assert_eq!(sorted(bodies), (0..recorded).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_left_behind_is_backlog_and_a_flush_waits_for_all_of_it() {
    let (_harness, spool, backlog) = behind().await;
    let recorded = pile_up(&spool);
    let taken = spool.take_all().await;
    assert_eq!(taken.bodies().len() as u64, backlog + recorded);
    let target = spool.flush(Instant::now()).await;
    assert_eq!((target.queued, target.in_flight), (0, backlog + recorded));
    spool.settle_all(taken).await;
    spool.until_files(|files| files.segments.len() <= 2).await;
}

#[tokio::test]
async fn audit_is_read_in_order_whatever_waits() {
    let harness = Harness::durable();
    let spool = harness.open();
    let mut n = 0;
    while spool.files().segments.len() < 6 {
        spool.push_waiting(&body(n), None, soon()).await.unwrap();
        n += 1;
    }
    assert_eq!(spool.take_all().await.bodies(), (0..n).collect::<Vec<_>>());
}
