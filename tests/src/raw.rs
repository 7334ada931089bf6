//! A client that sends whatever bytes it is given as its message, compressed or not.

use prost::bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

#[derive(Debug, Default, Clone, Copy)]
struct RawCodec;

impl Codec for RawCodec {
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

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Calls a method with one message; the first message of its answer, none where there is none.
pub async fn call(
    channel: Channel,
    path: &str,
    message: Bytes,
    compression: Option<CompressionEncoding>,
) -> Result<Option<Bytes>, Status> {
    answers(channel, path, Request::new(message), compression).await?.message().await
}

/// Calls a method with one message; all messages of its answer, as they come.
pub async fn answers(
    channel: Channel,
    path: &str,
    request: Request<Bytes>,
    compression: Option<CompressionEncoding>,
) -> Result<Streaming<Bytes>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(16 << 20);
    if let Some(encoding) = compression {
        grpc = grpc.send_compressed(encoding);
    }
    grpc.ready().await.map_err(|why| Status::unknown(why.to_string()))?;
    let path = PathAndQuery::try_from(path).map_err(|why| Status::unknown(why.to_string()))?;
    let request = request.map(|message| tokio_stream::iter([message]));
    Ok(grpc.streaming(request, path, RawCodec).await?.into_inner())
}
