//! The ends of windows, where one cuts through a quarter of an hour: from raw rows, or from the same rows in memory.
//!
//! "The last 30 days" begins within a quarter that hardly ever changes, and is asked for over and over, each time a little
//! later. So after the second answer that cuts a quarter its requests are read as a whole, and later answers need none.
//!
//! What is kept is of a version, as all else: the requests of a quarter are what its segments and deltas come to. Where
//! no delta touches it, they are those they were when its segments were last written. On a cluster nothing is kept: there
//! a segment may be seen before all of its rows.

use std::collections::HashSet;
use std::sync::Arc;

use service_core::auth::Access;
use service_core::error::Result;

use super::cache::{Found, QuarterKey};
use super::read::View;
use crate::model::{Dimension, Filter, Scope};
use crate::rollup::{FullRow, Level, Overlay, RawPart, Span};
use crate::store::Store;
use crate::store::cells::{Cell, Cut};

/// Quarters with more requests are read from the database each time.
const MOST: usize = 20_000;

/// A request as sums know it, and when it happened.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct OneRequest {
    pub(in crate::store) at_us: i64,
    pub(in crate::store) instance: u32,
    pub(in crate::store) row: FullRow,
}

/// The requests of a quarter, in the order of time; none if there are too many to keep.
#[derive(Debug)]
pub(super) struct Requests(Option<Vec<OneRequest>>);

impl Requests {
    pub(super) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |requests| requests.capacity() * size_of::<OneRequest>())
    }
}

impl Store {
    /// Hands what raw rows of a part come to on to `sink`, with its buckets. Deltas have rows of `touched` quarters.
    pub(in crate::store) async fn end(
        &self,
        view: &View,
        part: &RawPart,
        cut: &Cut<'_>,
        touched: &HashSet<i64>,
        overlay: &mut Overlay,
        mut sink: impl FnMut(Cell) + Send,
    ) -> Result<()> {
        let Some(key) = self.quarter_of(view, part, touched) else {
            return self.cells(&view.snapshot, cut, overlay, sink).await;
        };
        let found = self.rollup.cache().ask_requests(&key, view.answer);
        if let Found::Again = found {
            view.wishes().quarters.insert(key.start_us);
        }
        let Found::There(kept) = found else {
            return self.cells(&view.snapshot, cut, overlay, sink).await;
        };
        let Some(requests) = &kept.0 else {
            return self.cells(&view.snapshot, cut, overlay, sink).await;
        };
        for (bucket, edges) in part.edges.windows(2).enumerate() {
            let from = requests.partition_point(|request| request.at_us < edges[0]);
            let inside = requests[from..].iter().take_while(|request| request.at_us < edges[1]);
            inside.for_each(|request| sink(Cell { bucket, instance: request.instance, row: request.row }));
        }
        Ok(())
    }

    /// The key of the one quarter that a part is in, if what is known of it holds.
    fn quarter_of(&self, view: &View, part: &RawPart, touched: &HashSet<i64>) -> Option<QuarterKey> {
        let quarter = Span::at(Level::Quarter, part.start_us);
        if self.spread || part.end_us > quarter.end_us() || touched.contains(&quarter.start_us) {
            return None;
        }
        let version = view.quarters.get(&quarter.start_us)?;
        Some(QuarterKey { start_us: quarter.start_us, version: *version })
    }

    /// Reads the requests of a quarter of the view into memory, unless deltas touch it.
    pub(super) async fn keep_requests(&self, view: &View, start_us: i64, touched: &HashSet<i64>) -> Result<()> {
        let Some(version) = view.quarters.get(&start_us).filter(|_| !touched.contains(&start_us)) else {
            return Ok(());
        };
        let mut overlay = Overlay::new(Arc::clone(&view.values));
        if let Some(requests) = self.requests_of(view, start_us, &mut overlay).await? {
            let key = QuarterKey { start_us, version: *version };
            self.rollup.cache().insert_requests(key, Arc::new(requests));
        }
        Ok(())
    }

    /// Reads a quarter; nothing if it has texts that nobody knows.
    async fn requests_of(&self, view: &View, start_us: i64, overlay: &mut Overlay) -> Result<Option<Requests>> {
        let quarter = Span { level: Level::Quarter, start_us };
        // Of everybody: whoever is answered from it, the answer's own filter lets through what they may see.
        let scope = Scope {
            start_us,
            end_us: quarter.end_us(),
            access: Access::unrestricted(),
            filter: Filter::default(),
            watermark: None,
            caller: "".into(),
        };
        let Some(requests) = self.single_requests(&view.snapshot, &scope, MOST, overlay).await? else {
            return Ok(Some(Requests(None)));
        };
        // Of what is in segments the texts are known. An id that only this answer has given must not outlive it.
        let known = |dimension: Dimension, id: u32| id <= view.values.len(dimension);
        let all_known = requests.iter().all(|request| {
            let keys = crate::rollup::KEYS.into_iter().zip(request.row.keys);
            known(Dimension::Instance, request.instance) && keys.into_iter().all(|(key, id)| known(key, id))
        });
        Ok(all_known.then_some(Requests(Some(requests))))
    }
}
