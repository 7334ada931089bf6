//! Following a log: who waits is told when its head moves, and then reads the store.
//!
//! ```text
//! writer ──commit──▶ head of the log ──wakes──▶ tails ──one reads for all──▶ store
//! ```
//!
//! A tail reads entries only from the store, by sequence, so what it delivers is complete and in order whatever was
//! missed, and whoever wrote it. Where other replicas write to the same database, the heads that somebody waits for
//! are also looked up every second.
//!
//! However many follow a log, a commit costs one read: the first that wakes reads, the others find its rows. All
//! tails together read with a few connections at most, so that they never take the readers from other queries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use service_core::auth::Access;
use service_core::error::{Error, Result};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::store::{Heads, LogWalk, Row, Store};

/// How often the heads are looked up that other replicas may have moved.
const POLL: Duration = Duration::from_secs(1);
/// Reads of all tails at once.
const READS: usize = 2;

/// The rows that were read last at the end of a log.
type Latest = Arc<tokio::sync::Mutex<Arc<[Row]>>>;

/// A log that somebody follows.
#[derive(Debug)]
struct Followed {
    head: watch::Sender<u64>,
    latest: Latest,
}

/// The logs that somebody follows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tails {
    heads: Arc<Mutex<HashMap<String, Followed>>>,
    reads: Arc<Semaphore>,
}

impl Default for Tails {
    fn default() -> Self {
        Self { heads: Arc::default(), reads: Arc::new(Semaphore::new(READS)) }
    }
}

/// One who follows a log.
#[derive(Debug)]
pub struct Tail {
    access: Access,
    instance_id: String,
    head: watch::Receiver<u64>,
    latest: Latest,
    reads: Arc<Semaphore>,
}

impl Tail {
    /// Rows from a sequence on; empty where the log ends for now. Those at the log's end are shared by all who follow
    /// it, and may begin with rows from before.
    pub async fn rows(&self, store: &Store, from: u64) -> Result<Arc<[Row]>> {
        {
            let mut latest = self.latest.lock().await;
            match (latest.first(), latest.last()) {
                // Far behind the others: it reads for itself, and keeps nobody waiting.
                (Some(first), _) if from < first.sequence => {}
                (_, Some(last)) if from <= last.sequence => return Ok(latest.clone()),
                _ => {
                    // Held while it reads: who wants the same waits for it.
                    let rows = self.read(store, from).await?;
                    if !rows.is_empty() {
                        *latest = rows.clone();
                    }
                    return Ok(rows);
                }
            }
        }
        self.read(store, from).await
    }

    async fn read(&self, store: &Store, from: u64) -> Result<Arc<[Row]>> {
        let _turn = self.reads.acquire().await.map_err(Error::internal)?;
        Ok(LogWalk::new(&self.access, self.instance_id.as_str(), from, u64::MAX).next(store).await?.into())
    }

    /// Whether nothing from `next` on is known to be there.
    pub fn has_read_all(&self, next: u64) -> bool {
        // 0 is no news yet, whatever the log holds.
        (1..=next).contains(&*self.head.borrow())
    }

    /// Waits until the log has an entry with the sequence `next`.
    pub async fn moved_beyond(&mut self, next: u64) {
        // An error says that the sender is gone, which lives as long as we listen.
        let _ = self.head.wait_for(|head| *head > next).await;
    }
}

impl Tails {
    /// Follows an instance. The first head is 0, whatever the log holds; and so it stays where the log may not be seen.
    pub fn follow(&self, access: &Access, instance_id: &str) -> Tail {
        if !access.has_instance(instance_id) {
            let (head, latest) = (watch::Sender::new(0).subscribe(), Latest::default());
            return Tail {
                access: access.clone(),
                instance_id: instance_id.to_owned(),
                head,
                latest,
                reads: self.reads.clone(),
            };
        }
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.retain(|_, followed| followed.head.receiver_count() > 0);
        let new = || Followed { head: watch::Sender::new(0), latest: Latest::default() };
        let followed = heads.entry(instance_id.to_owned()).or_insert_with(new);
        Tail {
            access: access.clone(),
            instance_id: instance_id.to_owned(),
            head: followed.head.subscribe(),
            latest: followed.latest.clone(),
            reads: self.reads.clone(),
        }
    }

    /// Tells who waits that heads have moved. An older head than the last is no news.
    pub fn publish(&self, moved: &Heads) {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        if heads.is_empty() {
            return;
        }
        for (instance, next) in moved {
            if let Some(followed) = heads.get(instance) {
                followed.head.send_if_modified(|head| {
                    let news = *next > *head;
                    *head = (*head).max(*next);
                    news
                });
            }
        }
    }

    fn waited_for(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = heads.iter().filter(|(_, followed)| followed.head.receiver_count() > 0);
        followed.map(|(instance, _)| instance.clone()).collect()
    }

    /// Looks the heads up that other replicas move, until the server stops.
    pub async fn poll(self, store: Store, shutdown: CancellationToken) {
        let mut timer = tokio::time::interval(POLL);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(timer.tick()).await.is_some() {
            let instances = self.waited_for();
            if instances.is_empty() {
                continue;
            }
            match store.heads(&Access::unrestricted(), &instances).await {
                Ok(heads) => self.publish(&heads),
                Err(error) => tracing::warn!(%error, "the heads of the logs cannot be read; tails wait"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use service_core::config::{DatabaseConfig, DatabaseUrl};
    use uuid::Uuid;

    use super::*;
    use crate::ingest::Batch;

    #[tokio::test]
    async fn who_waits_hears_of_its_own_log_only() {
        let tails = Tails::default();
        let mut a = tails.follow(&Access::unrestricted(), "a");
        let b = tails.follow(&Access::unrestricted(), "b");
        tails.publish(&Heads::from([("a".to_owned(), 3), ("c".to_owned(), 1)]));
        a.moved_beyond(2).await;
        assert!(a.has_read_all(3) && !a.has_read_all(2) && !b.has_read_all(3));
        assert!(!b.head.has_changed().unwrap());
        tails.publish(&Heads::from([("a".to_owned(), 2)]));
        assert!(!a.head.has_changed().unwrap());
    }

    #[test]
    fn logs_that_nobody_follows_are_forgotten() {
        let tails = Tails::default();
        drop(tails.follow(&Access::unrestricted(), "a"));
        let _b = tails.follow(&Access::unrestricted(), "b");
        assert_eq!(tails.waited_for(), ["b"]);
        assert_eq!(tails.heads.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn those_at_the_end_of_a_log_share_one_read_and_those_behind_read_for_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
        let store = Store::open(&url, &DatabaseConfig::default()).await.unwrap();
        let event = crate::canonical::fixtures::full().event;
        let instance = event.instance_id.clone();
        let events =
            (1..=10).map(|id| crate::event::Event { id: Uuid::from_u128(id), producer: None, ..event.clone() });
        let events = events.map(Into::into).collect();
        store.write(&[Batch { events, ..Batch::default() }]).await.unwrap();

        let tails = Tails::default();
        let follow = || tails.follow(&Access::unrestricted(), &instance);
        let (a, b) = (follow(), follow());
        let sequences = |rows: &[Row]| rows.iter().map(|row| row.sequence).collect::<Vec<_>>();
        let first = a.rows(&store, 6).await.unwrap();
        assert_eq!(sequences(&first), [6, 7, 8, 9]);
        assert!(Arc::ptr_eq(&first, &b.rows(&store, 6).await.unwrap()));
        assert!(Arc::ptr_eq(&first, &b.rows(&store, 8).await.unwrap()));
        assert_eq!(sequences(&b.rows(&store, 3).await.unwrap()), [3, 4, 5, 6, 7, 8, 9]);
        assert!(a.rows(&store, 10).await.unwrap().is_empty());
        // What came meanwhile did not take the place of the rows at the end.
        assert!(Arc::ptr_eq(&first, &a.rows(&store, 9).await.unwrap()));
    }
}
