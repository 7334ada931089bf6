//! The loop by itself, without a network.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::channel::mpsc;
use futures::stream;
use tokio::sync::Semaphore;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;

fn options() -> StreamOptions {
    StreamOptions {
        max_batches: 3,
        per_second: 5_000,
        idle: Duration::from_secs(60),
        lifetime: Duration::from_secs(3_600),
    }
}

type Body = std::pin::Pin<Box<dyn Stream<Item = Result<u64, Status>> + Send>>;

/// Answers each batch with its number, once `gate` lets it.
fn gated(
    requests: impl Stream<Item = Result<u64, Status>> + Send + Unpin + 'static,
    shutdown: CancellationToken,
    gate: Arc<Semaphore>,
    submitted: Arc<AtomicUsize>,
) -> Body {
    Box::pin(run(
        tonic::Request::new(requests),
        options(),
        shutdown,
        |batch| *batch,
        move |batch| {
            let gate = gate.clone();
            submitted.fetch_add(1, Ordering::SeqCst);
            async move {
                Ok(async move {
                    gate.acquire().await.expect("open").forget();
                    Ok(batch)
                })
            }
        },
    ))
}

/// Answers each batch at once.
fn open(
    requests: impl Stream<Item = Result<u64, Status>> + Send + Unpin + 'static,
    shutdown: CancellationToken,
) -> Body {
    gated(requests, shutdown, Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)), Arc::default())
}

fn batches(ids: impl IntoIterator<Item = u64>) -> impl Stream<Item = Result<u64, Status>> + Unpin {
    stream::iter(ids.into_iter().map(Ok).collect::<Vec<_>>())
}

async fn all(body: Body) -> (Vec<u64>, Option<Status>) {
    let mut answers = Vec::new();
    let mut body = body;
    while let Some(item) = body.next().await {
        match item {
            Ok(answer) => answers.push(answer),
            Err(status) => return (answers, Some(status)),
        }
    }
    (answers, None)
}

#[tokio::test]
async fn every_batch_is_answered_in_order() {
    let (answers, end) = all(open(batches(1..=100), CancellationToken::new())).await;
    assert_eq!(answers, (1..=100).collect::<Vec<_>>());
    assert!(end.is_none());
}

#[tokio::test]
async fn batch_ids_out_of_order_end_the_stream_after_earlier_answers() {
    for (ids, answered) in [(vec![2], 0), (vec![0], 0), (vec![1, 2, 2], 2), (vec![1, 3], 1)] {
        let (answers, end) = all(open(batches(ids), CancellationToken::new())).await;
        assert_eq!(answers.len(), answered);
        let status = end.expect("refused");
        assert_eq!(status.code(), Code::InvalidArgument);
        let info = status.get_details_error_info().expect("ErrorInfo");
        assert_eq!(info.reason, "BATCH_OUT_OF_ORDER");
    }
}

#[tokio::test]
async fn batches_in_progress_are_bounded() {
    let (gate, submitted) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut body = gated(batches(1..=10), CancellationToken::new(), gate.clone(), submitted.clone());
    for _ in 0..20 {
        assert!(futures::poll!(body.next()).is_pending());
    }
    assert_eq!(submitted.load(Ordering::SeqCst), 3);
    gate.add_permits(10);
    assert_eq!(all(body).await.0, (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stop_answers_what_was_read_and_reads_no_further() {
    let (mut sender, receiver) = mpsc::channel(10);
    let (gate, submitted) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let shutdown = CancellationToken::new();
    let mut body = gated(receiver, shutdown.clone(), gate.clone(), submitted.clone());
    for id in 1..=2 {
        sender.try_send(Ok(id)).expect("room");
    }
    while submitted.load(Ordering::SeqCst) < 2 {
        assert!(futures::poll!(body.next()).is_pending());
    }
    shutdown.cancel();
    assert!(futures::poll!(body.next()).is_pending());
    sender.try_send(Ok(3)).expect("room");
    gate.add_permits(10);
    let (answers, end) = all(body).await;
    assert_eq!(answers, [1, 2]);
    let status = end.expect("told why");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.get_details_retry_info().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_ends_with_deadline_exceeded() {
    let (_sender, receiver) = mpsc::channel(1);
    let begun = Instant::now();
    let (answers, end) = all(open(receiver, CancellationToken::new())).await;
    assert!(answers.is_empty());
    assert_eq!(end.expect("told why").code(), Code::DeadlineExceeded);
    assert_eq!(begun.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_well_after_its_lifetime_however_busy() {
    let begun = Instant::now();
    let requests = Box::pin(stream::unfold(1, |id| async move {
        tokio::time::sleep(Duration::from_secs(30)).await;
        Some((Ok(id), id + 1))
    }));
    let (answers, end) = all(open(requests, CancellationToken::new())).await;
    assert!(end.is_none());
    assert!(answers.len() >= 118, "{}", answers.len());
    assert_eq!(begun.elapsed().as_secs(), 3_600);
}

#[tokio::test]
async fn an_error_of_the_writer_ends_the_stream_with_its_status() {
    let body = run(
        tonic::Request::new(batches(1..=5)),
        options(),
        CancellationToken::new(),
        |batch| *batch,
        |batch| async move {
            Ok(async move {
                if batch == 3 {
                    return Err(Error::storage_unavailable(anyhow::anyhow!("gone")));
                }
                Ok(batch)
            })
        },
    );
    let (answers, end) = all(Box::pin(body)).await;
    assert_eq!(answers, [1, 2]);
    assert_eq!(end.expect("told why").code(), Code::Unavailable);
}

#[tokio::test]
async fn an_undecodable_batch_ends_the_stream_after_earlier_answers() {
    let requests = stream::iter([Ok(1), Ok(2), Err(Status::internal("failed to decode")), Ok(3)]);
    let (answers, end) = all(open(requests, CancellationToken::new())).await;
    assert_eq!(answers, [1, 2]);
    assert_eq!(end.expect("told why").message(), "failed to decode");
}

#[tokio::test]
async fn nothing_is_answered_after_a_batch_that_failed() {
    // The failure shows while the stream reads, or while the second batch waits for room.
    for waits in [false, true] {
        let body = run(
            tonic::Request::new(batches(1..=2).chain(stream::pending())),
            options(),
            CancellationToken::new(),
            |batch| *batch,
            move |batch| async move {
                if waits && batch == 2 {
                    for _ in 0..20 {
                        tokio::task::yield_now().await;
                    }
                }
                Ok(async move {
                    if batch == 1 {
                        // The second has settled by then.
                        for _ in 0..10 {
                            tokio::task::yield_now().await;
                        }
                        return Err(Error::internal(anyhow::anyhow!("batch 1")));
                    }
                    Ok(batch)
                })
            },
        );
        let items: Vec<_> = body.collect().await;
        assert_eq!(items.len(), 1, "{items:?}");
        assert_eq!(items[0].as_ref().expect_err("the failure").code(), Code::Internal);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_faster_than_it_may_is_slowed_and_loses_nothing() {
    let begun = Instant::now();
    let options = StreamOptions { per_second: 100, ..options() };
    let answered = |batch| async move { Ok(async move { Ok(batch) }) };
    let body = run(tonic::Request::new(batches(1..=350)), options, CancellationToken::new(), |batch| *batch, answered);
    let (answers, end) = all(Box::pin(body)).await;
    assert_eq!(answers, (1..=350).collect::<Vec<_>>());
    assert!(end.is_none());
    // A second's worth at once, and then a hundred a second.
    let took = begun.elapsed();
    assert!((Duration::from_millis(2_400)..Duration::from_millis(2_700)).contains(&took), "{took:?}");
}
