//! What stands between a `record` call and a service: encoding, the size limit, the
//! queue, and the task that empties it.

use std::cell::RefCell;
use std::sync::Arc;

use prost::Message;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::Error;
use crate::credentials::Access;
use crate::queue::frame::{Numbering, put_varint};
use crate::queue::{Limits, Queue};
use crate::sender::{Lane, Options, Sender};
use crate::stats::{ServiceStats, Waiting};

/// The contract's limit for an audit event; a usage event within its own limits stays
/// far below it.
pub(crate) const MAX_EVENT_BYTES: usize = 64 * 1024;

/// A scratch buffer that grew beyond this is not kept.
const MAX_SCRATCH: usize = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// See the module's documentation. Dropping it orphans the queue.
#[derive(Debug)]
pub(crate) struct Feed<T> {
    pub(crate) queue: Arc<Queue<T>>,
    /// The encoded `instance_id` for events without one.
    instance: Vec<u8>,
    /// Absent where no endpoint was given.
    task: Option<AbortHandle>,
}

impl<T: Send + 'static> Feed<T> {
    /// With a sender where there is a channel; without one the queue is closed.
    #[allow(clippy::too_many_arguments, reason = "each is a setting of its own")]
    pub(crate) fn start<L: Lane<Extra = T>>(
        lane: L,
        runtime: &Handle,
        channel: Option<Channel>,
        access: Access,
        limits: Limits,
        options: Options,
        producer: (&str, u64),
        instance: &str,
    ) -> Self {
        let numbering = Numbering::new(L::PRODUCER_FIELD, producer.0, producer.1);
        let queue = Arc::new(Queue::new(limits, numbering));
        let task = channel.map(|channel| {
            let sender = Sender::new(lane, Arc::clone(&queue), channel, access, options);
            runtime.spawn(sender.run()).abort_handle()
        });
        if task.is_none() {
            queue.close();
        }
        let mut field = Vec::new();
        if !instance.is_empty() {
            // `instance_id` is field 3 of both events.
            field.push(0x1A);
            put_varint(&mut field, instance.len() as u64);
            field.extend_from_slice(instance.as_bytes());
        }
        Self { queue, instance: field, task }
    }
}

impl<T> Feed<T> {
    pub(crate) fn is_configured(&self) -> bool {
        self.task.is_some()
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
        let result = if buf.len() > MAX_EVENT_BYTES {
            Err(Error::TooLarge { bytes: buf.len(), limit: MAX_EVENT_BYTES })
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
        self.queue.flush(deadline).await
    }

    /// Closes, waits for what is queued, and ends the sender.
    pub(crate) async fn shutdown(&self, deadline: Instant) -> Waiting {
        self.queue.close();
        let waiting = self.flush(deadline).await;
        if let Some(task) = &self.task {
            task.abort();
        }
        self.queue.abandon();
        waiting
    }

    pub(crate) fn stats(&self) -> ServiceStats {
        self.queue.stats()
    }
}

impl<T> Drop for Feed<T> {
    fn drop(&mut self) {
        self.queue.orphan();
    }
}
