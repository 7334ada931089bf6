//! What a stop does to what is open.

use futures::channel::mpsc;

use super::*;

/// A stream held open by its sender, with one batch arrived and held.
async fn with_a_batch_in_progress(
    server: &Running,
) -> (mpsc::Sender<StreamUsageRequest>, Streaming<StreamUsageResponse>) {
    let (mut sender, receiver) = mpsc::channel(8);
    sender.try_send(batch(1)).expect("room");
    let answers = server.client().stream_usage(told(receiver, "hold")).await.expect("begun");
    server.arrived(1).await;
    (sender, answers.into_inner())
}

#[tokio::test]
async fn a_stop_answers_what_is_in_progress_and_then_ends() {
    let server = start(|_| {}).await;
    let (_sender, mut answers) = with_a_batch_in_progress(&server).await;
    let call = tokio::spawn({
        let mut client = server.client();
        async move { client.record_usage(told(RecordUsageRequest::default(), "hold")).await }
    });
    server.arrived(2).await;

    server.shutdown.cancel();
    let mut late = server.client();
    let status = late.record_usage(RecordUsageRequest::default()).await.expect_err("stopping");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!server.serving.is_finished());

    server.open_gate();
    let answer = answers.message().await.expect("no error").expect("the last answer");
    assert_eq!(answer.batch_id, 1);
    let status = answers.message().await.expect_err("told why");
    assert_reason(&status, Code::Unavailable, "SHUTTING_DOWN");
    call.await.expect("no panic").expect("answered");
    tokio::time::timeout(PATIENCE, server.serving).await.expect("in time").expect("no panic").expect("served");
}

#[tokio::test]
async fn calls_on_open_connections_are_refused_while_draining() {
    let server = start(|_| {}).await;
    let mut client = server.client();
    let held = tokio::spawn({
        let mut client = client.clone();
        async move { client.record_usage(told(RecordUsageRequest::default(), "hold")).await }
    });
    server.arrived(1).await;
    server.shutdown.cancel();
    let status = client.record_usage(RecordUsageRequest::default()).await.expect_err("stopping");
    assert_eq!(status.code(), Code::Unavailable);
    server.open_gate();
    held.await.expect("no panic").expect("answered");
    server.stop().await;
}

#[tokio::test]
async fn what_does_not_end_is_cut_after_the_drain_time() {
    let server = start(|config| config.drain_timeout_ms = 100.try_into().expect("not zero")).await;
    let request = told(futures::stream::pending(), "ignore shutdown");
    let mut stream = server.client().stream_usage(request).await.expect("begun").into_inner();
    assert_eq!(server.open_streams(), 1);
    server.shutdown.cancel();
    stream.message().await.expect_err("cut");
    testkit::eventually(PATIENCE, async || server.open_streams() == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_health_watch_sees_the_stop_and_does_not_delay_it() {
    let server = start(|config| config.drain_timeout_ms = 60_000.try_into().expect("not zero")).await;
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let mut watch = HealthClient::new(server.channel()).watch(request).await.expect("begun").into_inner();
    let first = watch.message().await.expect("no error").expect("a status");
    assert_eq!(first.status(), ServingStatus::Serving);
    server.shutdown.cancel();
    let mut seen = Vec::new();
    let end = loop {
        match watch.message().await {
            Ok(Some(status)) => seen.push(status.status()),
            Ok(None) => break None,
            Err(status) => break Some(status),
        }
    };
    assert!(seen.iter().all(|status| *status == ServingStatus::NotServing), "{seen:?}");
    assert_eq!(end.expect("told why").code(), Code::Unavailable);
    tokio::time::timeout(PATIENCE, server.stop()).await.expect("in time");
}
