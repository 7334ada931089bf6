//! Bytes of batches on their way: a budget of each caller, and one of the process.
//!
//! ```text
//! client ──frames──▶ Metered ──a message begins: room for all of it?──▶ decoded ─▶ writer ─▶ settled
//!                      └─ no: reads no further, so HTTP/2 slows the client; after a while OVERLOADED     │
//!                      ◀──────────────────────────── room is free again ◀────────────────────────────────┘
//! ```
//!
//! Room is taken for a whole message before any more of it is read, so that messages
//! which are there by half never wait for one another. Of messages that come in one
//! frame each is handed on before there is room for the next, so that none waits for a
//! neighbour that nobody has seen. One that takes too long to come ends its stream: room
//! is not for holding.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
use tonic::Status;
use tonic::body::Body;

use crate::error::Error;
use crate::server::MAX_INGEST_MESSAGE_BYTES;
use crate::telemetry::Metrics;

/// What gRPC puts before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The room of one call or stream. In the extensions of its request.
pub(crate) struct Room {
    budgets: [Arc<Semaphore>; 2],
    patience: Duration,
    metrics: Metrics,
    /// Of messages that were not taken yet, in their order.
    reserved: Mutex<VecDeque<InFlight>>,
}

/// Room of a message, until this is dropped.
pub(crate) struct InFlight {
    _permits: Vec<OwnedSemaphorePermit>,
    bytes: u32,
    metrics: Metrics,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.ingest_bytes(-i64::from(self.bytes));
    }
}

impl Room {
    /// Room within budgets, the caller's first.
    pub(super) fn new(budgets: [Arc<Semaphore>; 2], patience: Duration, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { budgets, patience, metrics, reserved: Mutex::default() })
    }

    /// The room of the next message, to be kept until it is settled.
    pub(crate) fn take(&self) -> Option<InFlight> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn reserve(self: Arc<Self>, bytes: u32) -> BoxFuture<'static, Result<(), Status>> {
        async move {
            let acquiring = async {
                let mut permits = Vec::with_capacity(2);
                for budget in &self.budgets {
                    permits.push(budget.clone().acquire_many_owned(bytes).await?);
                }
                Ok::<_, tokio::sync::AcquireError>(permits)
            };
            // The semaphores are never closed.
            let Ok(Ok(permits)) = timeout(self.patience, acquiring).await else {
                self.metrics.limited("ingest_bytes");
                let text = "too many bytes of batches are on their way; try again";
                return Err(Error::Overloaded(text.to_owned()).into());
            };
            self.metrics.ingest_bytes(i64::from(bytes));
            let in_flight = InFlight { _permits: permits, bytes, metrics: self.metrics.clone() };
            self.reserved.lock().unwrap_or_else(PoisonError::into_inner).push_back(in_flight);
            Ok(())
        }
        .boxed()
    }
}

/// The body of a request that brings events.
pub(super) struct Metered {
    inner: Body,
    room: Arc<Room>,
    prefix: [u8; PREFIX_BYTES],
    /// How much of the prefix, and then of the message, is there or still to come.
    in_prefix: usize,
    to_come: u64,
    /// What is left of a frame.
    rest: Bytes,
    /// The beginning of a message that waits for room.
    waiting: Option<(Bytes, BoxFuture<'static, Result<(), Status>>)>,
    /// For a message that is there by half.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    pub(super) fn new(inner: Body, room: Arc<Room>) -> Self {
        let prefix = [0; PREFIX_BYTES];
        Self { inner, room, prefix, in_prefix: 0, to_come: 0, rest: Bytes::new(), waiting: None, deadline: None }
    }

    /// Takes from the frame what belongs to one message; and how much room it needs, if it begins with that.
    fn piece(&mut self) -> (Bytes, Option<u32>) {
        let (mut length, mut begins) = (0, None);
        if self.to_come == 0 {
            length = self.rest.len().min(PREFIX_BYTES - self.in_prefix);
            self.prefix[self.in_prefix..self.in_prefix + length].copy_from_slice(&self.rest[..length]);
            self.in_prefix += length;
            if self.in_prefix == PREFIX_BYTES {
                self.in_prefix = 0;
                let [compressed, bytes @ ..] = self.prefix;
                let bytes = u32::from_be_bytes(bytes);
                self.to_come = u64::from(bytes);
                // What a longer one would hold is not read; what a compressed one will hold is not known.
                let most = MAX_INGEST_MESSAGE_BYTES as u32;
                begins = Some(if compressed == 0 { bytes.clamp(1, most) } else { most });
            }
        }
        let here = (self.rest.len() - length).min(usize::try_from(self.to_come).unwrap_or(usize::MAX));
        self.to_come -= here as u64;
        (self.rest.split_to(length + here), begins)
    }

    fn is_between(&self) -> bool {
        self.to_come == 0 && self.in_prefix == 0
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some((data, reserving)) = &mut this.waiting {
                let reserved = ready!(reserving.poll_unpin(cx));
                let data = std::mem::take(data);
                this.waiting = None;
                let patience = this.room.patience;
                this.deadline = (!this.is_between()).then(|| Box::pin(sleep(patience)));
                return Poll::Ready(Some(reserved.map(|()| Frame::data(data))));
            }
            if !this.rest.is_empty() {
                match this.piece() {
                    (data, Some(bytes)) => this.waiting = Some((data, this.room.clone().reserve(bytes))),
                    (data, None) => {
                        if this.is_between() {
                            this.deadline = None;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                continue;
            }
            let polled = Pin::new(&mut this.inner).poll_frame(cx);
            let Poll::Ready(frame) = polled else {
                if let Some(deadline) = &mut this.deadline {
                    ready!(deadline.as_mut().poll(cx));
                    let text = format!("a message took more than {} s to come", this.room.patience.as_secs());
                    return Poll::Ready(Some(Err(Error::DeadlineExceeded(text).into())));
                }
                return Poll::Pending;
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        bytes.resize(PREFIX_BYTES + length, 7);
        bytes
    }

    fn room(budget: usize, patience: Duration) -> (Arc<Room>, Arc<Semaphore>) {
        let all = Arc::new(Semaphore::new(budget));
        let own = Arc::new(Semaphore::new(budget));
        (Room::new([own, all.clone()], patience, Metrics::new("test")), all)
    }

    fn body(frames: Vec<Vec<u8>>, then_ends: bool) -> Body {
        let frames = frames.into_iter().map(|bytes| Ok::<_, Status>(Frame::data(Bytes::from(bytes))));
        let frames = futures::stream::iter(frames);
        match then_ends {
            true => Body::new(StreamBody::new(frames)),
            false => Body::new(StreamBody::new(futures::StreamExt::chain(frames, futures::stream::pending()))),
        }
    }

    #[tokio::test]
    async fn room_is_taken_for_each_message_however_it_is_cut_into_frames() {
        let all: Vec<u8> = [message(10), message(0), message(300)].concat();
        for size in [1, 4, 5, 6, 7, 100, 1_000] {
            let (room, budget) = room(1_000, Duration::from_secs(1));
            let frames = all.chunks(size).map(<[u8]>::to_vec).collect();
            let read = Metered::new(body(frames, true), room.clone()).collect().await.unwrap().to_bytes();
            assert_eq!(read, all, "frames of {size}");
            assert_eq!(budget.available_permits(), 1_000 - 311);
            let held: Vec<InFlight> = std::iter::from_fn(|| room.take()).collect();
            assert_eq!(held.iter().map(|held| held.bytes).collect::<Vec<_>>(), [10, 1, 300]);
            drop(held);
            assert_eq!(budget.available_permits(), 1_000);
        }
    }

    #[tokio::test]
    async fn a_message_waits_until_another_is_settled_and_not_for_ever() {
        let (room, _) = room(100, Duration::from_millis(50));
        let mut metered = Metered::new(body(vec![message(60), message(60)], false), room.clone());
        metered.frame().await.unwrap().unwrap();
        let first = room.take().unwrap();
        assert!(metered.frame().now_or_never().is_none());
        drop(first);
        metered.frame().await.unwrap().unwrap();

        let mut metered = Metered::new(body(vec![message(60)], false), room.clone());
        let status = metered.frame().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn messages_of_one_frame_do_not_wait_for_one_another() {
        let (room, budget) = room(100, Duration::from_millis(50));
        let half = message(60)[..20].to_vec();
        let mut metered = Metered::new(body(vec![[message(60), message(60), half].concat()], false), room.clone());
        for settled in 0..2 {
            let read = metered.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(read, message(60), "after {settled}");
            assert!(metered.frame().now_or_never().is_none(), "there is no room for the next");
            drop(room.take().unwrap());
        }
        assert_eq!(metered.frame().await.unwrap().unwrap().into_data().unwrap(), message(60)[..20]);
        assert_eq!(budget.available_permits(), 40);
    }

    #[tokio::test]
    async fn half_a_message_does_not_hold_its_room_for_ever() {
        let (room, budget) = room(100, Duration::from_millis(50));
        let mut metered = Metered::new(body(vec![message(60)[..20].to_vec()], false), room);
        metered.frame().await.unwrap().unwrap();
        assert_eq!(budget.available_permits(), 40);
        let status = metered.frame().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        drop(metered);
        assert_eq!(budget.available_permits(), 100);
    }
}
