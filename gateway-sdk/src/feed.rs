//! What stands between a `record` call and a service: encoding, the size limit, the
//! outbox, and the task that empties it.

use std::cell::RefCell;
use std::sync::Arc;

use crate::Error;
use crate::credentials::Access;
use crate::endpoint::Lines;
use crate::outbox::Outbox;
use crate::queue::Refused;
use crate::queue::frame::{put_varint, varint_len};
use crate::runtime::Runtime;
use crate::sender::{Lane, Options, Sender};
use crate::stats::{ServiceStats, Waiting};
use activity_proto::common::v1::Producer;
use prost::Message;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The contract's limit for an audit event; a usage event within its own limits stays
/// far below it.
pub(crate) const MAX_EVENT_BYTES: usize = 64 * 1024;

/// A scratch buffer that grew beyond this is not kept.
const MAX_SCRATCH: usize = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What goes out with every event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own<'a> {
    /// Of events that name none; may be empty.
    pub(crate) instance: &'a str,
    pub(crate) producer_id: &'a str,
}

impl Own<'_> {
    /// How many bytes of an event its number takes at most, in the event's field.
    fn number(self, field: u32) -> usize {
        let producer = Producer { id: self.producer_id.to_owned(), epoch: u64::MAX, sequence: Some(u64::MAX) };
        let len = producer.encoded_len();
        varint_len(u64::from(field) << 3) + varint_len(len as u64) + len
    }
}

/// See the module's documentation. Dropping it orphans the outbox.
#[derive(Debug)]
pub(crate) struct Feed<T: Send + 'static> {
    pub(crate) outbox: Arc<Outbox<T>>,
    /// The encoded `instance_id` for events without one.
    instance: Vec<u8>,
    /// What an event's number takes at most, which is put behind it and goes out with it.
    number: usize,
    /// Both absent where no endpoint was given.
    lines: Option<Lines>,
    task: Option<AbortHandle>,
    pub(crate) runtime: Runtime,
}

impl<T: Send + 'static> Feed<T> {
    /// With a sender where there is an endpoint; without one nothing is taken.
    pub(crate) fn start<L: Lane<Extra = T>>(
        lane: L,
        runtime: &Runtime,
        lines: Option<Lines>,
        access: Access,
        outbox: Outbox<T>,
        options: Options,
        own: Own<'_>,
    ) -> Self {
        let outbox = Arc::new(outbox);
        let task = lines.as_ref().map(|lines| {
            let sender = Sender::new(lane, Arc::clone(&outbox), lines.stream.follow(), access, options);
            runtime.spawn(sender.run())
        });
        if task.is_none() {
            outbox.close();
        }
        let mut instance = Vec::new();
        if !own.instance.is_empty() {
            // `instance_id` is field 3 of both events.
            instance.push(0x1A);
            put_varint(&mut instance, own.instance.len() as u64);
            instance.extend_from_slice(own.instance.as_bytes());
        }
        Self { outbox, instance, number: own.number(L::PRODUCER_FIELD), lines, task, runtime: runtime.clone() }
    }
}

impl<T: Send + 'static> Feed<T> {
    pub(crate) fn is_configured(&self) -> bool {
        self.task.is_some()
    }

    /// From now on to another address.
    pub(crate) fn lead(&self, service: &'static str, setting: &'static str, address: &str) -> Result<(), Error> {
        let lines = self.lines.as_ref().ok_or(Error::NotConfigured { service })?;
        lines.lead(address).map_err(|message| Error::Config { setting, message })
    }

    /// Whether events may come without an instance of their own.
    pub(crate) fn has_instance(&self) -> bool {
        !self.instance.is_empty()
    }

    /// Why an event was not taken, for its caller.
    pub(crate) fn refused(&self, refused: Refused, service: &'static str) -> Error {
        match refused {
            Refused::Full { events, bytes } => Error::QueueFull { service, events, bytes },
            Refused::Disk(message) => {
                Error::Spool { folder: self.outbox.folder().cloned().unwrap_or_default(), message }
            }
            Refused::Closed => Error::ShutDown,
        }
    }

    /// Encodes an event, gives it the SDK's instance if it has none, and hands the bytes
    /// on. They lie in a buffer of the thread: no allocation an event.
    pub(crate) fn encoded<R>(
        &self,
        event: &impl Message,
        instance: &str,
        take: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Error> {
        let mut buf = SCRATCH.try_with(|scratch| scratch.take()).unwrap_or_default();
        buf.clear();
        // A `Vec` grows as needed, so encoding into one has no error to give.
        let _ = event.encode(&mut buf);
        if instance.is_empty() {
            buf.extend_from_slice(&self.instance);
        }
        // With any number: what is taken once is taken again, whichever it then gets.
        let bytes = buf.len() + self.number;
        let result = if bytes > MAX_EVENT_BYTES {
            Err(Error::TooLarge { bytes, limit: MAX_EVENT_BYTES })
        } else {
            Ok(take(&buf))
        };
        if buf.capacity() <= MAX_SCRATCH {
            let _ = SCRATCH.try_with(|scratch| scratch.replace(buf));
        }
        result
    }

    pub(crate) async fn flush(&self, deadline: Instant) -> Waiting {
        if self.task.is_none() {
            return Waiting::default();
        }
        self.outbox.flush(deadline).await
    }

    /// Closes, waits for what is queued, and ends the sender.
    pub(crate) async fn shutdown(&self, deadline: Instant) -> Waiting {
        self.outbox.close();
        let waiting = self.flush(deadline).await;
        if let Some(task) = &self.task {
            task.abort();
        }
        self.outbox.abandon().await;
        waiting
    }

    pub(crate) fn stats(&self) -> ServiceStats {
        self.outbox.stats()
    }
}

impl<T: Send + 'static> Drop for Feed<T> {
    fn drop(&mut self) {
        self.outbox.orphan();
    }
}
