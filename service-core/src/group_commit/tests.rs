//! Group commit under many submitters, and under everything that goes wrong.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use tokio::sync::Notify;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(20);

fn options() -> Options {
    Options { max_items: 100, max_delay: Duration::from_millis(2), max_queued_items: 1_000, commit_timeout: TIMEOUT }
}

/// A store that remembers its groups, and can be held shut.
#[derive(Clone, Default)]
struct Store {
    groups: Arc<Mutex<Vec<Vec<u64>>>>,
    gate: Option<Arc<Semaphore>>,
    entered: Arc<Notify>,
}

impl Store {
    fn shut() -> Self {
        Self { gate: Some(Arc::new(Semaphore::new(0))), ..Self::default() }
    }

    fn open(&self) {
        self.gate.as_ref().expect("a gate").add_permits(1_000_000);
    }

    fn spawn(&self, options: Options) -> GroupCommit<u64, u64> {
        let store = self.clone();
        GroupCommit::spawn(&Metrics::new("test"), options, move |batches| {
            let store = store.clone();
            async move {
                store.entered.notify_one();
                if let Some(gate) = &store.gate {
                    gate.acquire().await.expect("open").forget();
                }
                let answers = batches.iter().map(|batch| batch * 10).collect();
                store.groups.lock().expect("lock").push(batches.to_vec());
                Ok(answers)
            }
        })
    }

    fn groups(&self) -> Vec<Vec<u64>> {
        self.groups.lock().expect("lock").clone()
    }
}

#[tokio::test]
async fn a_batch_that_finds_the_writer_idle_is_committed_alone() {
    let store = Store::default();
    let commit = store.spawn(options());
    assert_eq!(commit.commit(7, 1).await.expect("stored"), 70);
    assert_eq!(commit.commit(8, 1).await.expect("stored"), 80);
    assert_eq!(store.groups(), [vec![7], vec![8]]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_writer_does_not_wait_for_company() {
    let commit = Store::default().spawn(Options { max_delay: Duration::from_secs(3_600), ..options() });
    let begun = Instant::now();
    for batch in 0..10 {
        commit.commit(batch, 1).await.expect("stored");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_submitters_get_each_their_own_answer_once() {
    const SUBMITTERS: u64 = 64;
    const BATCHES: u64 = 100;
    let store = Store::default();
    let commit = store.spawn(options());
    let submitting = (0..SUBMITTERS).map(|submitter| {
        let commit = commit.clone();
        tokio::spawn(async move {
            for batch in submitter * BATCHES..(submitter + 1) * BATCHES {
                assert_eq!(commit.commit(batch, 3).await.expect("stored"), batch * 10);
            }
        })
    });
    for joined in join_all(submitting).await {
        joined.expect("no panic");
    }
    let groups = store.groups();
    let stored: BTreeSet<u64> = groups.iter().flatten().copied().collect();
    assert_eq!(groups.iter().map(Vec::len).sum::<usize>() as u64, SUBMITTERS * BATCHES);
    assert_eq!(stored, (0..SUBMITTERS * BATCHES).collect());
    assert!(groups.iter().all(|group| group.len() * 3 <= 100));
    assert!(groups.len() < (SUBMITTERS * BATCHES) as usize / 2, "{} groups", groups.len());
}

#[tokio::test]
async fn what_gathers_during_a_commit_is_one_group_in_order() {
    let store = Store::shut();
    let commit = store.spawn(options());
    let first = commit.submit(1, 1).await.expect("room");
    store.entered.notified().await;
    let mut rest = Vec::new();
    for batch in 2..=5 {
        rest.push(commit.submit(batch, 1).await.expect("room"));
    }
    store.open();
    assert_eq!(first.await.expect("stored"), 10);
    for (pending, batch) in rest.into_iter().zip(2..) {
        assert_eq!(pending.await.expect("stored"), batch * 10);
    }
    assert_eq!(store.groups(), [vec![1], vec![2, 3, 4, 5]]);
}

#[tokio::test]
async fn groups_stay_within_their_size_but_a_large_batch_goes_alone() {
    let store = Store::shut();
    let commit = store.spawn(options());
    let mut pending = vec![commit.submit(0, 1).await.expect("room")];
    store.entered.notified().await;
    for (batch, items) in [(1, 60), (2, 40), (3, 1), (4, 250), (5, 99), (6, 1)] {
        pending.push(commit.submit(batch, items).await.expect("room"));
    }
    store.open();
    for answer in join_all(pending).await {
        answer.expect("stored");
    }
    assert_eq!(store.groups(), [vec![0], vec![1, 2], vec![3], vec![4], vec![5, 6]]);
}

#[tokio::test]
async fn a_full_queue_makes_submitters_wait_and_a_huge_batch_still_passes() {
    let store = Store::shut();
    let commit = store.spawn(Options { max_queued_items: 10, ..options() });
    let running = commit.submit(1, 10).await.expect("room");
    store.entered.notified().await;
    let queued = commit.submit(2, 10).await.expect("room, the first is being committed");
    let mut third = Box::pin(commit.submit(3, 5_000));
    assert!(futures::poll!(&mut third).is_pending(), "no room");
    store.open();
    running.await.expect("stored");
    queued.await.expect("stored");
    let third = third.await.expect("room, though larger than the queue");
    assert_eq!(third.await.expect("stored"), 30);
}

#[tokio::test]
async fn a_submitter_that_vanishes_cancels_nothing() {
    let store = Store::shut();
    let commit = store.spawn(options());
    drop(commit.submit(1, 1).await.expect("room"));
    drop(commit.submit(2, 1).await.expect("room"));
    store.open();
    commit.close().await;
    let stored: BTreeSet<u64> = store.groups().into_iter().flatten().collect();
    assert_eq!(stored, BTreeSet::from([1, 2]));
}

/// A store that panics or fails for some batches.
fn spiteful(bad: u64, panics: bool) -> GroupCommit<u64, u64> {
    GroupCommit::spawn(&Metrics::new("test"), options(), move |batches: Arc<Vec<u64>>| async move {
        if batches.contains(&bad) {
            assert!(!panics, "batch {bad} is bad");
            return Err(Error::internal(anyhow::anyhow!("batch {bad} is bad")));
        }
        Ok(batches.to_vec())
    })
}

#[tokio::test]
async fn a_panic_fails_its_batch_and_neither_its_neighbours_nor_the_writer() {
    for panics in [true, false] {
        let commit = spiteful(3, panics);
        let mut pending = Vec::new();
        for batch in 0..6 {
            pending.push(commit.submit(batch, 1).await.expect("room"));
        }
        for (batch, answer) in join_all(pending).await.into_iter().enumerate() {
            match (batch, answer) {
                (3, answer) => assert!(matches!(answer, Err(Error::Internal(_)))),
                (_, answer) => assert_eq!(answer.expect("stored"), batch as u64),
            }
        }
        assert_eq!(commit.commit(9, 1).await.expect("the writer lives"), 9);
    }
}

#[tokio::test]
async fn a_storage_failure_answers_every_batch_of_its_group() {
    let commit: GroupCommit<u64, u64> = GroupCommit::spawn(&Metrics::new("test"), options(), |_| async {
        Err(Error::storage_unavailable(anyhow::anyhow!("disk full")))
    });
    let pending = join_all((0..4).map(|batch| commit.commit(batch, 1))).await;
    assert!(pending.iter().all(|answer| matches!(answer, Err(Error::StorageUnavailable(_)))));
}

#[tokio::test(start_paused = true)]
async fn conflicts_are_tried_again_a_few_times() {
    for (conflicts, stored) in [(4, true), (5, false)] {
        let tries = Arc::new(AtomicUsize::new(0));
        let counter = tries.clone();
        let commit: GroupCommit<u64, u64> = GroupCommit::spawn(&Metrics::new("test"), options(), move |batches| {
            let earlier = counter.fetch_add(1, Ordering::SeqCst);
            async move {
                if earlier < conflicts {
                    return Err(Error::Contention(Arc::new(anyhow::anyhow!("deadlock"))));
                }
                Ok(batches.to_vec())
            }
        });
        let answer = commit.commit(1, 1).await;
        assert_eq!(tries.load(Ordering::SeqCst), 5);
        assert_eq!(answer.is_ok(), stored);
        assert!(stored || matches!(answer, Err(Error::Contention(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_hangs_is_given_up() {
    let store = Store::shut();
    let commit = store.spawn(options());
    let answer = commit.commit(1, 1).await;
    assert!(matches!(answer, Err(Error::StorageUnavailable(_))));
    store.open();
    assert_eq!(commit.commit(2, 1).await.expect("the writer lives"), 20);
}

#[tokio::test]
async fn closing_answers_what_was_handed_over_and_refuses_the_rest() {
    let store = Store::shut();
    let commit = store.spawn(Options { max_queued_items: 5, ..options() });
    let mut pending = vec![commit.submit(0, 1).await.expect("room")];
    store.entered.notified().await;
    for batch in 1..=5 {
        pending.push(commit.submit(batch, 1).await.expect("room"));
    }
    let mut waiting = Box::pin(commit.submit(6, 1));
    assert!(futures::poll!(&mut waiting).is_pending());
    let mut closing = Box::pin(commit.close());
    assert!(futures::poll!(&mut closing).is_pending(), "a commit is running");
    assert!(matches!(waiting.await, Err(Error::ShuttingDown)));
    assert!(matches!(commit.submit(7, 1).await, Err(Error::ShuttingDown)));
    store.open();
    closing.await;
    for (batch, answer) in join_all(pending).await.into_iter().enumerate() {
        assert_eq!(answer.expect("stored"), batch as u64 * 10);
    }
    commit.close().await;
}

#[tokio::test]
async fn answers_that_are_too_few_are_a_defect() {
    let commit: GroupCommit<u64, u64> =
        GroupCommit::spawn(&Metrics::new("test"), options(), |_| async { Ok(Vec::new()) });
    assert!(matches!(commit.commit(1, 1).await, Err(Error::Internal(_))));
}

#[tokio::test(start_paused = true)]
async fn the_writer_vouches_while_it_works_and_not_when_idle_or_failed() {
    let within = Duration::from_secs(2);
    let store = Store::shut();
    let commit = store.spawn(options());
    assert!(!commit.vouches(within), "nothing is known yet");

    let pending = commit.submit(1, 1).await.expect("room");
    store.entered.notified().await;
    tokio::time::advance(TIMEOUT / 2).await;
    assert!(commit.vouches(within), "a transaction runs");
    store.open();
    pending.await.expect("stored");
    assert!(commit.vouches(within));
    tokio::time::advance(within).await;
    assert!(!commit.vouches(within), "idle");

    let failing: GroupCommit<u64, u64> = GroupCommit::spawn(&Metrics::new("test"), options(), |batches| async move {
        match batches[0] {
            0 => Ok(vec![0]),
            1 => Err(Error::storage_unavailable(anyhow::anyhow!("disk full"))),
            _ => std::future::pending().await,
        }
    });
    failing.commit(0, 1).await.expect("stored");
    assert!(failing.vouches(within));
    failing.commit(1, 1).await.expect_err("disk full");
    assert!(!failing.vouches(within), "failed, however young the last success");
    let _hangs = failing.submit(2, 1).await.expect("room");
    tokio::task::yield_now().await;
    assert!(!failing.vouches(within), "failed, whatever runs now");
}
