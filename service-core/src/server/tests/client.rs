//! Messages as no generated client would send them.

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::*;

/// Sends bytes as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

async fn send(server: &Running, method: &str, message: Bytes) -> Status {
    let mut grpc = tonic::client::Grpc::new(server.channel());
    grpc.ready().await.expect("connected");
    let path = format!("/{SERVICE}/{method}").parse().expect("path");
    let answers = grpc.streaming(Request::new(futures::stream::iter([message])), path, Raw).await;
    match answers {
        Err(status) => status,
        Ok(answers) => answers.into_inner().message().await.expect_err("refused"),
    }
}

#[tokio::test]
async fn garbage_is_an_invalid_argument_and_is_not_repeated() {
    let server = start(|_| {}).await;
    let garbage = [
        Bytes::from_static(b"\xff\xff\xff secret"),
        // Field 1, 200 bytes long, which are not there.
        Bytes::from_static(b"\x0a\xc8\x01secret"),
        // events[0].id (field 1 of field 1): not UTF-8.
        Bytes::from_static(b"\x0a\x04\x0a\x02\xff\xfe"),
        // Groups within groups within groups.
        Bytes::from(vec![0x0b; 100_000]),
    ];
    for message in garbage {
        let status = send(&server, "RecordUsage", message).await;
        assert_reason(&status, Code::InvalidArgument, "MALFORMED_MESSAGE");
        assert_eq!(status.message(), "the message could not be decoded");
    }
    let status = send(&server, "StreamUsage", Bytes::from_static(b"\xff\xff\xff")).await;
    assert_reason(&status, Code::InvalidArgument, "MALFORMED_MESSAGE");
    server.stop().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_for_good() {
    let server = start(|_| {}).await;
    let message = Bytes::from(vec![0; MAX_INGEST_MESSAGE_BYTES + 1]);
    for method in ["RecordUsage", "StreamUsage"] {
        let status = send(&server, method, message.clone()).await;
        assert_reason(&status, Code::ResourceExhausted, "TOO_LARGE");
        assert!(status.get_details_retry_info().is_none());
    }
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let server = start(|_| {}).await;
    let status = send(&server, "EraseUsage", Bytes::new()).await;
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(!server.metrics.encode().contains("EraseUsage"));
    server.stop().await;
}
