//! The ends of windows, where one cuts through a quarter of an hour: from raw rows, from the same rows in memory, or by
//! what the quarter comes to without the few requests behind the end.
//!
//! "Until now" ends in a quarter that has all of the last minutes' traffic, and hardly anything behind the end: what
//! came in while the question was on its way. So its sums are taken as a whole, with all keys, and what is behind is
//! taken away: a group of which nothing is left is gone, as if it had never been, so distinct counts are exact too.
//! What that costs follows how many groups there are in a quarter, not how many requests.
//!
//! "The last 30 days" begins within a quarter that hardly ever changes, and is asked for over and over, each time a little
//! later. So after the second answer that cuts a quarter its requests are read as a whole, and later answers need none.
//!
//! What is kept is of a version, as all else: the requests of a quarter are what its segments and deltas come to. Where
//! no delta touches it, they are those they were when its segments were last written. On a cluster nothing is kept: there
//! a segment may be seen before all of its rows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use service_core::auth::Access;
use service_core::error::{Error, Result};

use super::cache::{Found, QuarterKey};
use super::read::{Piece, View};
use crate::model::{Dimension, Filter, Scope};
use crate::rollup::{Cut as SectionCut, FullRow, Level, Overlay, Plan, RawPart, Section, Span};
use crate::store::Store;
use crate::store::cells::{Cell, Cut};

/// Quarters with more requests are read from the database each time.
const MOST: usize = 20_000;
/// With more requests behind an end, those before it are read.
const BEHIND: usize = 1_000;

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

/// An end that cuts a quarter, of which all but a few requests are before it.
#[derive(Debug)]
pub(in crate::store) struct End {
    bucket: usize,
    pub(in crate::store) quarter_us: i64,
    behind: Vec<OneRequest>,
}

/// What an instance's quarter comes to before the end, with all keys.
#[derive(Debug)]
pub(in crate::store) struct EndSection {
    pub(in crate::store) bucket: usize,
    pub(in crate::store) instance: u32,
    pub(in crate::store) section: Arc<Section>,
}

impl Store {
    /// The end of a window, if it is answered by its quarter's sums.
    pub(in crate::store) async fn end_of(
        &self,
        view: &View,
        plan: &Plan,
        overlay: &mut Overlay,
    ) -> Result<Option<End>> {
        let Some(part) = plan.raw.last() else { return Ok(None) };
        let quarter = Span::at(Level::Quarter, part.start_us);
        let cuts = part.start_us == quarter.start_us && part.end_us < quarter.end_us() && part.edges.len() == 2;
        if self.spread || !cuts {
            return Ok(None);
        }
        let behind = self.everybodys(view, part.end_us, quarter.end_us(), BEHIND, overlay).await?;
        Ok(behind.map(|behind| End { bucket: part.first_bucket, quarter_us: quarter.start_us, behind }))
    }

    /// What the quarter of an end comes to without what is behind the end, with all keys: its segments and what waits of
    /// it, of each instance that is wanted.
    pub(in crate::store) async fn sums_before(
        &self,
        view: &View,
        end: End,
        waiting: Vec<Cell>,
        wants: impl Fn(u32) -> bool,
    ) -> Result<Vec<EndSection>> {
        let mut rows: HashMap<u32, Vec<FullRow>> = HashMap::new();
        waiting.into_iter().for_each(|cell| rows.entry(cell.instance).or_default().push(cell.row));
        for OneRequest { instance, row, .. } in end.behind.into_iter().filter(|request| wants(request.instance)) {
            let measures = row.measures.map(|measure| -measure);
            rows.entry(instance).or_default().push(FullRow { measures, ..row });
        }
        let pieces = view.quarters.get(&end.quarter_us).map_or(&[][..], Vec::as_slice);
        let pieces: Vec<Piece> = pieces.iter().filter(|piece| wants(piece.place.instance)).copied().collect();
        let stored = self.sections(&view.snapshot, &pieces, SectionCut::FULL).await?;
        let mut stored: HashMap<u32, Arc<Section>> =
            stored.into_iter().map(|(piece, section)| (piece.place.instance, section)).collect();
        let made = tokio::task::spawn_blocking(move || {
            for (instance, rows) in rows {
                let section = Section::merge(stored.get(&instance).map(Arc::as_ref), rows);
                stored.insert(instance, Arc::new(section));
            }
            let section = |(instance, section)| EndSection { bucket: end.bucket, instance, section };
            stored.into_iter().map(section).collect()
        });
        made.await.map_err(Error::internal)
    }

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
        Some(QuarterKey { start_us: quarter.start_us, version: view.quarter(quarter.start_us)? })
    }

    /// Reads the requests of a quarter of the view into memory, unless deltas touch it.
    pub(super) async fn keep_requests(&self, view: &View, start_us: i64, touched: &HashSet<i64>) -> Result<()> {
        let Some(version) = view.quarter(start_us).filter(|_| !touched.contains(&start_us)) else {
            return Ok(());
        };
        let mut overlay = Overlay::new(Arc::clone(&view.values));
        if let Some(requests) = self.requests_of(view, start_us, &mut overlay).await? {
            let key = QuarterKey { start_us, version };
            self.rollup.cache().insert_requests(key, Arc::new(requests));
        }
        Ok(())
    }

    /// Reads a quarter; nothing if it has texts that nobody knows.
    async fn requests_of(&self, view: &View, start_us: i64, overlay: &mut Overlay) -> Result<Option<Requests>> {
        let quarter = Span { level: Level::Quarter, start_us };
        let Some(requests) = self.everybodys(view, start_us, quarter.end_us(), MOST, overlay).await? else {
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

    /// The requests of a stretch of time, unless there are more than so many. Of everybody: whoever is answered from
    /// them, the answer's own filter lets through what they may see.
    async fn everybodys(
        &self,
        view: &View,
        start_us: i64,
        end_us: i64,
        most: usize,
        overlay: &mut Overlay,
    ) -> Result<Option<Vec<OneRequest>>> {
        let (access, filter) = (Access::unrestricted(), Filter::default());
        let scope = Scope { start_us, end_us, access, filter, watermark: None, caller: "".into() };
        self.single_requests(&view.snapshot, &scope, most, overlay).await
    }
}
