//! From a checked batch to its answer: what can be done before the writer is done here, in the caller's task.
//!
//! ```text
//! caller's task:  check → canonical form and hashes of each event ──submit──┐            ┌──▶ answer
//! writer's task:                                                  group commit → store → tails, indexer
//! ```

use std::sync::Arc;

use service_core::config::IngestConfig;
use service_core::error::{Result, Violation};
use service_core::group_commit::{GroupCommit, Options, Pending};
use service_core::server::HealthCheck;
use service_core::telemetry::Metrics;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::canonical::Prefix;
use crate::event::{Dropped, Event, Producer, Stage};
use crate::signer::Signer;
use crate::store::{EventResult, Heads, Store};
use crate::tail::Tails;

/// Bytes that count as one event where the queue and the groups are bounded: larger events count as several, so
/// that the bounds hold in memory too.
const ITEM_BYTES: usize = 1_024;

/// An event on its way: what the writer needs of it, and nothing else.
#[derive(Debug)]
pub struct Prepared {
    /// Its id.
    pub id: Uuid,
    /// When it happened.
    pub occurred_at_us: i64,
    /// Its log.
    pub instance_id: String,
    /// Which part of an operation it tells.
    pub stage: Stage,
    /// The operation, or empty.
    pub operation_id: String,
    /// Its number at its producer.
    pub producer: Option<Producer>,
    /// Its canonical form, but for what the writer adds.
    pub prefix: Prefix,
}

impl From<Event> for Prepared {
    fn from(event: Event) -> Self {
        let prefix = Prefix::new(&event);
        Self {
            id: event.id,
            occurred_at_us: event.occurred_at_us,
            stage: event.stage(),
            instance_id: event.instance_id,
            operation_id: event.operation.map(|operation| operation.id).unwrap_or_default(),
            producer: event.producer,
            prefix,
        }
    }
}

/// A batch on its way.
#[derive(Debug, Default)]
pub struct Batch {
    /// Those of its events that were found good.
    pub events: Vec<Prepared>,
    /// What its producer dropped.
    pub dropped: Vec<Dropped>,
    /// The authenticated writer; empty where nobody is authenticated.
    pub recorded_by: String,
}

impl Batch {
    fn items(&self) -> usize {
        let events: usize = self.events.iter().map(|event| event.prefix.len().div_ceil(ITEM_BYTES)).sum();
        let dropped: usize = self.dropped.iter().map(|range| size_of::<Dropped>() + range.producer_id.len()).sum();
        events + dropped.div_ceil(ITEM_BYTES)
    }
}

/// A batch whose events have each been found good or bad, in the order in which they came.
#[derive(Debug, Default)]
pub struct Checked {
    /// What is to be written.
    pub batch: Batch,
    /// For each event that came: nothing, or why it is refused.
    pub refused: Vec<Option<Violation>>,
}

impl Checked {
    /// Adds the next event, or why it is refused.
    pub fn push(&mut self, event: Result<Event, Violation>) {
        match event {
            Ok(event) => {
                self.batch.events.push(event.into());
                self.refused.push(None);
            }
            Err(violation) => self.refused.push(Some(violation)),
        }
    }
}

/// The answer to a batch that is on its way.
#[derive(Debug)]
pub struct Settling {
    written: Pending<Result<Vec<EventResult>>>,
    refused: Vec<Option<Violation>>,
}

impl Settling {
    /// Waits for the commit; then, for each event that came, what became of it.
    pub async fn settled(self) -> Result<Vec<EventResult>> {
        let mut written = self.written.await??.into_iter();
        let result = |refused: Option<Violation>| match refused {
            Some(violation) => Some(EventResult::Rejected(violation)),
            None => written.next(),
        };
        Ok(self.refused.into_iter().filter_map(result).collect())
    }
}

/// Who is told which heads have moved. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Followers {
    tails: Tails,
    indexer: Arc<Notify>,
    signer: Option<Signer>,
}

impl Followers {
    /// Tells the tails and the signer, and wakes the indexer.
    pub fn new(tails: Tails, indexer: Arc<Notify>, signer: Option<Signer>) -> Self {
        Self { tails, indexer, signer }
    }

    /// Nobody.
    pub(crate) fn nobody() -> Self {
        Self { tails: Tails::default(), indexer: Arc::default(), signer: None }
    }

    /// What signs, if anything does.
    pub(crate) fn signer(&self) -> Option<&Signer> {
        self.signer.as_ref()
    }

    /// Refuses while the signer finds that the database does not fit what was signed.
    pub(crate) fn check(&self) -> Result<()> {
        self.signer.as_ref().map_or(Ok(()), Signer::check)
    }

    pub(crate) fn moved(&self, heads: &Heads) {
        if let Some(signer) = &self.signer {
            signer.grown(heads);
        }
        self.tails.publish(heads);
        self.indexer.notify_one();
    }
}

/// The way into the log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ingest {
    commits: GroupCommit<Batch, Result<Vec<EventResult>>>,
}

impl Ingest {
    /// Starts the writer. After each commit it tells which heads moved. Nothing is written while the signer finds that
    /// the database does not fit what was signed.
    pub fn spawn(metrics: &Metrics, config: &IngestConfig, store: Store, followers: Followers) -> Self {
        let commit = move |batches: Arc<Vec<Batch>>| {
            let (store, followers) = (store.clone(), followers.clone());
            async move {
                followers.check()?;
                let (results, heads) = store.write_sound(&batches).await?;
                followers.moved(&heads);
                Ok(results)
            }
        };
        Self { commits: GroupCommit::spawn(metrics, Options::from(config), commit) }
    }

    /// Hands a batch to the writer; waits while its queue is full.
    pub async fn submit(&self, checked: Checked) -> Result<Settling> {
        let items = checked.batch.items();
        let written = self.commits.submit(checked.batch, items).await?;
        Ok(Settling { written, refused: checked.refused })
    }

    /// How the health of the service that takes events in is known: from the writer itself.
    pub fn health(&self, service: &'static str, store: &Store) -> HealthCheck {
        HealthCheck::writer(service, &self.commits, store.database().clone())
    }

    /// Takes no more, and waits until all that was taken is answered.
    pub async fn close(&self) {
        self.commits.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_weighs_what_its_dropped_ranges_hold() {
        let range = Dropped { producer_id: "p".repeat(256), epoch: 0, first: 0, last: 0 };
        let of = |count| Batch { dropped: vec![range.clone(); count], ..Batch::default() };
        assert_eq!((of(0).items(), of(1).items()), (0, 1));
        assert!(of(1_000).items() > 256, "{}", of(1_000).items());
    }
}
