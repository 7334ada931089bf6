//! Where events wait for their sender: in memory, or in a spool on disk.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use crate::error::Rejection;
use crate::queue::frame::Numbering;
use crate::queue::{Queue, Refused, Settled, Taken};
use crate::spool::Spool;
use crate::stats::{ServiceStats, Waiting};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) enum Outbox<T> {
    Memory(Box<Queue<T>>),
    Disk(Arc<Spool<T>>),
}

/// The same call on either.
macro_rules! either {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self {
            Outbox::Memory($inner) => $call,
            Outbox::Disk($inner) => $call,
        }
    };
}

impl<T: Send + 'static> Outbox<T> {
    /// Whether what waits here outlives the process.
    pub(crate) fn is_durable(&self) -> bool {
        matches!(self, Self::Disk(_))
    }

    /// Takes an encoded event, dropping the oldest to make room.
    pub(crate) fn push_dropping(&self, body: &[u8]) -> Result<(), Refused>
    where
        T: Default,
    {
        match self {
            Self::Memory(queue) => queue.push_dropping(body, T::default()),
            Self::Disk(spool) => spool.push_dropping(body),
        }
    }

    /// Takes an encoded event once there is room.
    pub(crate) async fn push_waiting(&self, body: &[u8], deadline: Instant) -> Result<(), Refused>
    where
        T: Default,
    {
        match self {
            Self::Memory(queue) => queue.push_waiting(body, deadline).await,
            Self::Disk(spool) => spool.push_waiting(body, None, deadline).await.map(|_| ()),
        }
    }

    pub(crate) fn count_untaken(&self, rejected: bool) {
        either!(self, inner => inner.count_untaken(rejected));
    }

    /// The next batch; see [`Queue::next`].
    pub(crate) async fn next(&self) -> Option<Taken<T>> {
        either!(self, inner => inner.next().await)
    }

    /// Notes what became of a batch; `from` is the lowest number still unsettled.
    pub(crate) fn settle(&self, settled: Settled, from: Option<u64>) {
        match self {
            Self::Memory(queue) => queue.settle(settled, from),
            Self::Disk(spool) => spool.settle(settled),
        }
    }

    /// Keeps an event that was refused for good where somebody can look at it.
    pub(crate) fn keep_rejected(&self, segment: u64, event: &[u8], rejection: &Rejection) {
        if let Self::Disk(spool) = self {
            spool.keep_rejected(segment, event, rejection);
        }
    }

    pub(crate) fn report_dropped(&self, who: &Arc<Numbering>, sequence: u64) {
        match self {
            Self::Memory(queue) => queue.report_dropped(sequence),
            Self::Disk(spool) => spool.report_dropped(who, sequence),
        }
    }

    pub(crate) fn note_stream(&self, opened: Result<bool, (String, bool)>) {
        either!(self, inner => inner.note_stream(opened));
    }

    /// Waits until somebody wants things out now.
    pub(crate) async fn nudged(&self) {
        either!(self, inner => inner.nudge.notified().await);
    }

    /// Waits until the last handle is gone.
    pub(crate) async fn orphaned(&self) {
        either!(self, inner => {
            while !inner.is_orphaned() {
                inner.orphan.notified().await;
            }
        });
    }

    pub(crate) async fn flush(&self, deadline: Instant) -> Waiting {
        either!(self, inner => inner.flush(deadline).await)
    }

    pub(crate) fn close(&self) {
        either!(self, inner => inner.close());
    }

    /// Nothing more is sent. What is in memory is let go, once; what is on disk is brought in
    /// order, and the spool may be opened again when this is over.
    pub(crate) async fn abandon(&self) {
        match self {
            Self::Memory(queue) => queue.abandon(),
            Self::Disk(spool) => spool.ended().await,
        }
    }

    /// The sender has ended, and nobody else sends: whoever records is told so.
    pub(crate) fn end(&self) {
        match self {
            Self::Memory(queue) => queue.close(),
            Self::Disk(spool) => spool.end(),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        either!(self, inner => inner.is_closed())
    }

    pub(crate) fn waiting(&self) -> Waiting {
        either!(self, inner => inner.waiting())
    }

    pub(crate) fn stats(&self) -> ServiceStats {
        either!(self, inner => inner.stats())
    }

    /// The spool's folder.
    pub(crate) fn folder(&self) -> Option<&PathBuf> {
        match self {
            Self::Memory(_) => None,
            Self::Disk(spool) => Some(spool.folder()),
        }
    }
}

impl<T> Outbox<T> {
    pub(crate) fn orphan(&self) {
        either!(self, inner => inner.orphan());
    }
}
