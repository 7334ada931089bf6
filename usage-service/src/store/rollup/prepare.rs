//! What two answers would have had use for is made behind them, so that the next ones have it.
//!
//! One of these works at a time, in a turn as answers have, and of a snapshot of its own: what has changed since is read
//! as it is now. If there is one already, the wishes are dropped: whoever asks next has the same.

use std::collections::HashSet;
use std::sync::Arc;

use service_core::error::{Error, Result};

use super::fold::{Part, Walk};
use super::read::{View, Wishes};
use crate::rollup::{Delta, Overlay};
use crate::store::Store;

/// So much is read together: see `Part::reads`.
const CHUNK: usize = 64;

/// The quarters that deltas have rows of.
struct Touched {
    overlay: Overlay,
    quarters: HashSet<i64>,
}

impl Touched {
    fn add(&mut self, _commit_number: i64, delta: Result<Delta>) -> Result<()> {
        self.quarters.extend(delta?.resolve(&mut self.overlay).iter().map(|row| row.quarter_us));
        Ok(())
    }
}

impl Store {
    /// Makes what an answer wished for, in the background.
    pub(in crate::store) fn prepare(&self, wishes: Wishes) {
        if wishes.sections.is_empty() && wishes.quarters.is_empty() {
            return;
        }
        let Ok(alone) = Arc::clone(&self.rollup.preparing).try_acquire_owned() else {
            return;
        };
        let store = self.clone();
        tokio::spawn(async move {
            if let Err(error) = store.fulfil(wishes).await {
                tracing::debug!(%error, "nothing was made ahead for later answers");
            }
            drop(alone);
        });
    }

    /// Waits until nothing is being made for later answers.
    pub async fn prepared(&self) {
        // Nobody closes it.
        let _ = self.rollup.preparing.acquire().await;
    }

    async fn fulfil(&self, wishes: Wishes) -> Result<()> {
        let turn = self.turns.sums().await?;
        let quarters: Vec<i64> = wishes.quarters.iter().copied().collect();
        let view = self.view(Some(&turn), &[], &quarters).await?;
        self.make_sections(&view, &wishes).await?;
        if quarters.is_empty() {
            return Ok(());
        }
        let touched = Touched { overlay: Overlay::new(Arc::clone(&view.values)), quarters: HashSet::new() };
        let touched = self.each_delta(&view.snapshot, i64::MAX, touched, Touched::add).await?;
        for quarter in quarters {
            self.keep_requests(&view, quarter, &touched.quarters).await?;
        }
        Ok(())
    }

    async fn make_sections(&self, view: &View, wishes: &Wishes) -> Result<()> {
        let mut wishes = wishes.sections.iter().peekable();
        while wishes.peek().is_some() {
            let mut parts: Vec<Part> = Vec::new();
            let mut reads = 0;
            while reads < CHUNK
                && let Some(wish) = wishes.next()
            {
                let Some(pieces) = self.rollup.pieces_of(view.version, wish) else {
                    // There is a later version already.
                    return Ok(());
                };
                let mut cache = self.rollup.cache();
                let mut walk = Walk { cache: &mut cache, cut: wish.cut, answer: view.answer, wishes: Vec::new() };
                if let Some(part) = walk.whole(wish.block, &pieces) {
                    reads += part.reads();
                    parts.push(part);
                }
            }
            let mut blobs = Vec::new();
            parts.iter_mut().for_each(|part| part.stored(&mut blobs));
            self.read_blobs(&view.snapshot, blobs).await?;
            let rollup = Arc::clone(&self.rollup);
            let make = move || parts.into_iter().try_for_each(|part| rollup.make(part).map(drop));
            tokio::task::spawn_blocking(make).await.map_err(Error::internal)??;
        }
        Ok(())
    }
}
