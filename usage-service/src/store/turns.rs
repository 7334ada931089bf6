//! Turns: so many reads over many rows are at the database at once that a connection is always left for what is answered
//! quickly.
//!
//! ```text
//! readers   2 ───────────── pages that an index has in their order, horizons, watermarks: no turn
//!           the others ──── turns: sums that are made ahead
//!             half of them  … and any number of single requests: labels, rare rows, exports
//!               all but one … for one caller
//! ```
//!
//! A turn lasts as long as its connection is at work. A caller that leaves drops its read in the middle of a statement,
//! which the engine goes on with, to its end or to its time limit; the driver keeps the connection from all others
//! until then, and a [`Reading`] keeps the turn:
//!
//! ```text
//! caller       turn, snapshot, statement ── dropped
//! connection                   [statement ─────────────── end] rollback ─ free
//! turn         [─────────────────────────────────────────────────────────] free
//! ```

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sea_orm::DatabaseTransaction;
use service_core::error::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Readers that turns leave to what takes none.
const QUICK_READERS: u32 = 2;

/// The turns of a store.
#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    of_requests: Arc<Semaphore>,
    /// Of these, the turns of callers who have any, or wait for one.
    of_callers: Mutex<HashMap<Arc<str>, Weak<Semaphore>>>,
    per_caller: usize,
}

/// A turn, until the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    _permits: Arc<Vec<OwnedSemaphorePermit>>,
}

impl Turns {
    /// As many as there are readers for.
    pub(super) fn new(readers: u32) -> Self {
        let all = readers.saturating_sub(QUICK_READERS).max(1) as usize;
        let of_requests = (all / 2).max(1);
        Self {
            all: Arc::new(Semaphore::new(all)),
            of_requests: Arc::new(Semaphore::new(of_requests)),
            of_callers: Mutex::default(),
            per_caller: (of_requests - 1).max(1),
        }
    }

    /// Waits until sums may be read, with what few requests belong to them.
    pub(super) async fn sums(&self) -> Result<Turn> {
        Self::take([Arc::clone(&self.all)]).await
    }

    /// Waits until a caller may read any number of single requests.
    pub(super) async fn requests(&self, caller: &Arc<str>) -> Result<Turn> {
        // The narrower first: nobody waits for it with a turn in hand that others could use.
        Self::take([self.of_caller(caller), Arc::clone(&self.of_requests), Arc::clone(&self.all)]).await
    }

    async fn take<const N: usize>(of: [Arc<Semaphore>; N]) -> Result<Turn> {
        let mut permits = Vec::with_capacity(N);
        for turns in of {
            permits.push(turns.acquire_owned().await.map_err(|_| Error::ShuttingDown)?);
        }
        Ok(Turn { _permits: Arc::new(permits) })
    }

    fn of_caller(&self, caller: &Arc<str>) -> Arc<Semaphore> {
        let mut callers = self.of_callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = callers.get(caller).and_then(Weak::upgrade) {
            return turns;
        }
        callers.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(self.per_caller));
        callers.insert(Arc::clone(caller), Arc::downgrade(&turns));
        turns
    }
}

/// A snapshot, and the turn that it is read in; none for what the service reads by itself.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Until it is dropped.
    open: Option<(DatabaseTransaction, Option<Turn>)>,
}

impl Reading {
    pub(super) fn new(snapshot: DatabaseTransaction, turn: Option<Turn>) -> Self {
        Self { open: Some((snapshot, turn)) }
    }
}

impl Deref for Reading {
    type Target = DatabaseTransaction;

    #[expect(clippy::expect_used, reason = "it is taken by drop alone")]
    fn deref(&self) -> &DatabaseTransaction {
        &self.open.as_ref().expect("open until it is dropped").0
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let Some((snapshot, turn)) = self.open.take() else { return };
        tokio::spawn(async move {
            // Comes after what the connection is at. Where it fails, the driver gives the connection up.
            let _ = snapshot.rollback().await;
            drop(turn);
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn one_caller_leaves_turns_to_others_and_requests_leave_some_to_sums() {
        let turns = Turns::new(8);
        let all_of = |caller: &str| -> Vec<Turn> {
            let caller: Arc<str> = caller.into();
            std::iter::from_fn(|| turns.requests(&caller).now_or_never().transpose().expect("open")).collect()
        };
        let eve = all_of("eve");
        let (ada, bob) = (all_of("ada"), all_of("bob"));
        assert_eq!((eve.len(), ada.len(), bob.len()), (2, 1, 0));
        let sums: Vec<Turn> = std::iter::from_fn(|| turns.sums().now_or_never().transpose().expect("open")).collect();
        assert_eq!(sums.len(), 3);
        drop((eve, ada, sums));
        assert_eq!(all_of("bob").len(), 2);
        assert_eq!(turns.of_callers.lock().unwrap_or_else(PoisonError::into_inner).len(), 1, "callers are forgotten");
    }
}
