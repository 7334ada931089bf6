//! Following a log: who waits is told when its head moves, and then reads the store.
//!
//! ```text
//! writer ──commit──▶ head of the log ──wakes──▶ tail ──reads from its position──▶ store
//! ```
//!
//! A tail reads entries only from the store, by sequence, so what it delivers is complete and in order whatever was
//! missed, and whoever wrote it. Where other replicas write to the same database, the heads that somebody waits for
//! are also looked up every second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Heads, Store};

/// How often the heads are looked up that other replicas may have moved.
const POLL: Duration = Duration::from_secs(1);

/// The heads that somebody waits for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tails {
    heads: Arc<Mutex<HashMap<String, watch::Sender<u64>>>>,
}

impl Tails {
    /// Waits on an instance. The value is a head that was seen; the first is 0, whatever the log holds.
    pub fn subscribe(&self, instance_id: &str) -> watch::Receiver<u64> {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.retain(|_, head| head.receiver_count() > 0);
        heads.entry(instance_id.to_owned()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Tells who waits that heads have moved. An older head than the last is no news.
    pub fn publish(&self, moved: &Heads) {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        if heads.is_empty() {
            return;
        }
        for (instance, next) in moved {
            if let Some(head) = heads.get(instance) {
                head.send_if_modified(|head| {
                    let news = *next > *head;
                    *head = (*head).max(*next);
                    news
                });
            }
        }
    }

    fn waited_for(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.iter().filter(|(_, head)| head.receiver_count() > 0).map(|(instance, _)| instance.clone()).collect()
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
            match store.heads(&instances).await {
                Ok(heads) => self.publish(&heads),
                Err(error) => tracing::warn!(%error, "the heads of the logs cannot be read; tails wait"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_hears_of_its_own_log_only() {
        let tails = Tails::default();
        let mut a = tails.subscribe("a");
        let b = tails.subscribe("b");
        tails.publish(&Heads::from([("a".to_owned(), 3), ("c".to_owned(), 1)]));
        a.changed().await.unwrap();
        assert_eq!(*a.borrow_and_update(), 3);
        assert!(!b.has_changed().unwrap());
        tails.publish(&Heads::from([("a".to_owned(), 2)]));
        assert!(!a.has_changed().unwrap());
    }

    #[test]
    fn logs_that_nobody_follows_are_forgotten() {
        let tails = Tails::default();
        drop(tails.subscribe("a"));
        let _b = tails.subscribe("b");
        assert_eq!(tails.waited_for(), ["b"]);
        assert_eq!(tails.heads.lock().unwrap().len(), 1);
    }
}
