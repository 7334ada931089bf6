//! Time-outs, caps, and clients that stop in the middle.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn a_call_ends_at_the_clients_deadline_or_the_servers() {
    for (own, clients) in [(PATIENCE, Some(Duration::from_millis(100))), (Duration::from_millis(100), None)] {
        let server = start(|config| {
            config.call_timeout_ms = u64::try_from(own.as_millis()).expect("small").try_into().expect("not zero");
        })
        .await;
        let mut request = told(RecordUsageRequest::default(), "hold");
        if let Some(timeout) = clients {
            let value = format!("{}m", timeout.as_millis()).parse().expect("header");
            request.metadata_mut().insert("grpc-timeout", value);
        }
        let status = server.client_without_timers().record_usage(request).await.expect_err("too late");
        assert_reason(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_stream_ends_at_the_clients_deadline_silent_or_busy() {
    let server = start(|_| {}).await;
    for order in ["ignore shutdown", "flood"] {
        let mut request = told(futures::stream::pending(), order);
        request.metadata_mut().insert("grpc-timeout", "100m".parse().expect("header"));
        let mut stream = server.client_without_timers().stream_usage(request).await.expect("begun").into_inner();
        let status = loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "the stream ended well"),
                Err(status) => break status,
            }
        };
        assert_reason(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
    server.stop().await;
}

#[tokio::test]
async fn calls_and_streams_over_their_caps_are_told_to_try_again() {
    let server = start(|config| {
        config.max_calls = 1.try_into().expect("not zero");
        config.max_streams = 1.try_into().expect("not zero");
    })
    .await;
    let held = tokio::spawn({
        let mut client = server.client();
        async move { client.record_usage(told(RecordUsageRequest::default(), "hold")).await }
    });
    server.arrived(1).await;
    let mut client = server.client();
    let status = client.record_usage(RecordUsageRequest::default()).await.expect_err("over");
    assert_reason(&status, Code::ResourceExhausted, "OVERLOADED");
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(health(server.channel(), "").await, Ok(ServingStatus::Serving));

    let first = client.stream_usage(told(futures::stream::empty(), "ignore shutdown")).await;
    let first = first.expect("streams are apart from calls");
    let status = client.stream_usage(futures::stream::pending()).await.expect_err("over");
    assert_reason(&status, Code::ResourceExhausted, "OVERLOADED");
    // A stream that ends frees its place.
    drop(first);
    testkit::eventually(PATIENCE, async || client.stream_usage(futures::stream::pending()).await.is_ok()).await;

    server.open_gate();
    held.await.expect("no panic").expect("answered");
    client.record_usage(RecordUsageRequest::default()).await.expect("room again");
    server.stop().await;
}

#[tokio::test]
async fn a_reader_that_stops_loses_its_stream_and_is_told_so() {
    let server = start(|config| config.stalled_stream_ms = 100.try_into().expect("not zero")).await;
    let request = told(futures::stream::pending(), "flood");
    let mut stream = server.client().stream_usage(request).await.expect("begun").into_inner();
    stream.message().await.expect("no error").expect("a message");
    assert_eq!(server.open_streams(), 1);
    // Not reading: what the service holds for the stream is dropped.
    testkit::eventually(PATIENCE, async || server.open_streams() == 0).await;
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "the stream ended well"),
            Err(status) => break status,
        }
    };
    assert_reason(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_frees_its_stream() {
    let server = start(|_| {}).await;
    // A runtime of its own stands for a process that is killed.
    let process = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let (answered, first_answer) = tokio::sync::oneshot::channel();
    let uri = format!("http://{}", server.address);
    process.spawn(async move {
        let channel = Endpoint::from_shared(uri).expect("URI").connect_lazy();
        let batches = futures::stream::iter([batch(1)]).chain(futures::stream::pending());
        let mut client = UsageIngestServiceClient::new(channel);
        let mut stream = client.stream_usage(batches).await.expect("begun").into_inner();
        answered.send(stream.message().await).expect("awaited");
        std::future::pending::<()>().await;
    });
    let answer = first_answer.await.expect("sent").expect("no error").expect("an answer");
    assert_eq!((answer.batch_id, server.open_streams()), (1, 1));
    process.shutdown_background();
    testkit::eventually(PATIENCE, async || server.open_streams() == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_cancels_frees_its_stream() {
    let server = start(|_| {}).await;
    let mut client = server.client();
    let request = told(futures::stream::empty(), "ignore shutdown");
    let stream = client.stream_usage(request).await.expect("begun");
    assert_eq!(server.open_streams(), 1);
    drop(stream);
    testkit::eventually(PATIENCE, async || server.open_streams() == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn half_a_preface_is_not_waited_for() {
    let server = start(|config| config.handshake_timeout_ms = 100.try_into().expect("not zero")).await;
    for beginning in ["", "PRI * HTTP/2.0\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.expect("connected");
        stream.write_all(beginning.as_bytes()).await.expect("sent");
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        // Closed or reset: either way it is gone.
        let _ = closed.expect("closed in time");
    }
    server.client().record_usage(RecordUsageRequest::default()).await.expect("others are served");
    server.stop().await;
}

#[tokio::test]
async fn connections_over_the_cap_wait_their_turn() {
    let server = start(|config| config.max_connections = 1.try_into().expect("not zero")).await;
    let mut first = server.client();
    first.record_usage(RecordUsageRequest::default()).await.expect("answered");
    let second = tokio::spawn({
        let mut client = server.client();
        async move { client.record_usage(RecordUsageRequest::default()).await }
    });
    first.record_usage(RecordUsageRequest::default()).await.expect("answered");
    assert!(!second.is_finished());
    drop(first);
    second.await.expect("no panic").expect("answered");
    server.stop().await;
}
