//! A codec that sends batches which are encoded already.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::BufMut;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::queue::frame::put_varint;

/// The frames of a batch, shared between the stream that sends them and the sender,
/// which may have to send them again.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) frames: Vec<u8>,
    /// Where the first frame begins.
    pub(crate) start: usize,
}

impl Payload {
    pub(crate) fn frames(&self) -> &[u8] {
        self.frames.get(self.start..).unwrap_or_default()
    }
}

/// One request of a stream, without its number.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) batch_id: u64,
    pub(crate) payload: Arc<Payload>,
    /// The encoded `dropped` field.
    pub(crate) dropped: Vec<u8>,
}

/// Sends [`Outbound`], receives `A`.
#[derive(Debug)]
pub(crate) struct BatchCodec<A>(pub(crate) PhantomData<A>);

#[derive(Debug)]
pub(crate) struct BatchEncoder;

#[derive(Debug)]
pub(crate) struct AnswerDecoder<A>(PhantomData<A>);

impl<A: Message + Default + 'static> Codec for BatchCodec<A> {
    type Encode = Outbound;
    type Decode = A;
    type Encoder = BatchEncoder;
    type Decoder = AnswerDecoder<A>;

    fn encoder(&mut self) -> BatchEncoder {
        BatchEncoder
    }

    fn decoder(&mut self) -> AnswerDecoder<A> {
        AnswerDecoder(PhantomData)
    }
}

impl Encoder for BatchEncoder {
    type Item = Outbound;
    type Error = Status;

    fn encode(&mut self, item: Outbound, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let frames = item.payload.frames();
        let mut number = vec![0x08];
        put_varint(&mut number, item.batch_id);
        dst.reserve(number.len() + frames.len() + item.dropped.len());
        dst.put_slice(&number);
        dst.put_slice(frames);
        dst.put_slice(&item.dropped);
        Ok(())
    }
}

impl<A: Message + Default> Decoder for AnswerDecoder<A> {
    type Item = A;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<A>, Status> {
        match A::decode(src) {
            Ok(answer) => Ok(Some(answer)),
            // As from a connection that garbles: nothing is wrong with what was sent.
            Err(error) => Err(Status::unavailable(format!("an answer could not be decoded: {error}"))),
        }
    }
}
