//! Totals, groups and series: from rollups where they can, from raw rows where
//! they must, and the same answer from both.
//!
//! Raw rows alone answer what rollups don't tell apart: labels, exports frozen at
//! a commit, buckets and windows finer than a quarter of an hour. Everything else
//! is segments, deltas, and the ends of the window, in one snapshot.

use std::sync::Arc;

use service_core::clock;
use service_core::error::{Error, Result};

use super::cells::{Cell, Cut};
use super::rollup::{EndSection, Sections, View, Waiting, Wishes};
use super::{Kept, Store, Turn};
use crate::answer::{Group, Metrics, Ranked};
use crate::model::{Dimension, Metric, Scope};
use crate::rollup::{IdFilter, Level, OutOfRange, Overlay, Plan, Question, Ranker, Ranking, Tally, Values, plan};

/// No request is earlier: 2000-01-01.
const EARLIEST_US: i64 = 946_684_800_000_000;
/// None is later than the clock by more than minutes; a year is for a clock that was put back.
const LEAD_US: i64 = 366 * 86_400_000_000;

/// A dimension, its most frequent values with their counts, and how many values there are in all.
pub type Facet = (Dimension, Vec<(String, u64)>, u64);

/// What is asked of a window.
#[derive(Clone, Copy)]
struct Ask<'a> {
    scope: &'a Scope,
    keys: &'a [Dimension],
    order_by: Metric,
    limit: usize,
    edges: &'a [i64],
}

impl Ask<'_> {
    /// How rollups answer it, if they do.
    fn plan(&self) -> Option<Plan> {
        if !self.scope.filter.labels.is_empty() || self.scope.watermark.is_some() {
            return None;
        }
        // "Everything until the year 9999" has no more days than there can be requests.
        let latest = Level::Day.start_of(clock::now_us()) + LEAD_US;
        let edges: Vec<i64> = self.edges.iter().map(|edge| (*edge).min(latest).max(EARLIEST_US)).collect();
        let plan = plan(&edges);
        (!plan.spans.is_empty()).then_some(plan)
    }

    /// The earliest time that single requests are read from; none where none are read.
    fn requests_from(&self, plan: Option<&Plan>) -> Option<i64> {
        let start_us = match plan {
            Some(plan) => plan.raw.first()?.start_us,
            None => self.scope.start_us.max(EARLIEST_US),
        };
        (start_us < self.scope.end_us).then_some(start_us)
    }

    /// Refuses what reaches back behind retention.
    fn within(&self, kept: Kept, plan: Option<&Plan>) -> Result<()> {
        if self.scope.start_us < self.scope.end_us {
            kept.rollups(self.scope.start_us.max(EARLIEST_US))?;
        }
        self.requests_from(plan).map_or(Ok(()), |start_us| kept.requests(start_us))
    }

    fn buckets(&self) -> usize {
        self.edges.len().saturating_sub(1)
    }
}

/// What counts beside segments: deltas and the ends of the window.
struct Gathered {
    filter: IdFilter,
    overlay: Overlay,
    cells: Vec<Cell>,
    ends: Vec<EndSection>,
}

/// Ranks the groups of sections and of what counts beside them.
fn rank(question: &Question, order_by: Metric, beside: &Gathered, sections: Sections) -> Result<Ranker> {
    let mut ranker = Ranker::new(question, order_by, &beside.overlay);
    for section in sections {
        let (_, instance, section) = section?;
        ranker.add_section(instance, &section).map_err(Error::internal)?;
    }
    for EndSection { instance, section, .. } in &beside.ends {
        ranker.add_section(*instance, section).map_err(Error::internal)?;
    }
    for cell in &beside.cells {
        ranker.add_row(cell.instance, &cell.row);
    }
    Ok(ranker)
}

impl Store {
    /// The totals of a window cut at `edges`, one for each part.
    pub async fn totals(&self, scope: &Scope, edges: &[i64]) -> Result<Vec<Metrics>> {
        let ask = Ask { scope, keys: &[], order_by: Metric::Requests, limit: 1, edges };
        Ok(self.answer(&ask, |_| Ok(())).await?.total)
    }

    /// The groups that rank highest, the others, and the total.
    pub async fn breakdown(&self, scope: &Scope, keys: &[Dimension], order_by: Metric, limit: usize) -> Result<Ranked> {
        let edges = [scope.start_us, scope.end_us];
        self.answer(&Ask { scope, keys, order_by, limit, edges: &edges }, |_| Ok(())).await
    }

    /// The groups that rank highest over the whole window, and the others, in
    /// every bucket.
    ///
    /// `fits` is asked, with the number of series, before the buckets are filled.
    /// Without keys there is one series, also where nothing happened.
    pub async fn series(
        &self,
        scope: &Scope,
        keys: &[Dimension],
        order_by: Metric,
        limit: usize,
        edges: &[i64],
        fits: impl Fn(usize) -> Result<()> + Send + Sync,
    ) -> Result<Ranked> {
        let mut ranked = self.answer(&Ask { scope, keys, order_by, limit, edges }, fits).await?;
        if keys.is_empty() && ranked.rows.is_empty() {
            ranked.rows.push(Group { keys: Vec::new(), buckets: ranked.total.clone() });
        }
        Ok(ranked)
    }

    /// The values of each dimension with their counts: the most frequent `limit`,
    /// and how many there are in all.
    pub async fn facets(&self, scope: &Scope, limit: usize) -> Result<Vec<Facet>> {
        let edges = [scope.start_us, scope.end_us];
        let ask = Ask { scope, keys: &[], order_by: Metric::Requests, limit, edges: &edges };
        let plan = ask.plan();
        let turn = self.turn(&ask, plan.as_ref()).await?;
        let (facets, wishes) = match &plan {
            Some(plan) => self.facets_from_rollups(&ask, plan, &turn).await?,
            None => {
                let snapshot = self.reading(Some(&turn)).await?;
                ask.within(self.kept_in(&*snapshot).await?, None)?;
                (self.facets_of_cells(&snapshot, scope, limit).await?, Wishes::default())
            }
        };
        drop(turn);
        self.prepare(wishes);
        match ask.requests_from(plan.as_ref()) {
            Some(start_us) => self.still_kept(start_us).await.map(|()| facets),
            None => Ok(facets),
        }
    }

    async fn turn(&self, ask: &Ask<'_>, plan: Option<&Plan>) -> Result<Turn> {
        match plan {
            Some(_) => self.turns.sums().await,
            None => self.turns.requests(&ask.scope.caller).await,
        }
    }

    /// Counts need no second look, and no sets: a ranking by requests has them.
    async fn facets_from_rollups(&self, ask: &Ask<'_>, plan: &Plan, turn: &Turn) -> Result<(Vec<Facet>, Wishes)> {
        let view = self.view(Some(turn), &plan.spans, &plan.cut_at()).await?;
        ask.within(view.kept, Some(plan))?;
        let gathered = self.gather(&view, ask, plan, &Dimension::ALL).await?;
        let limit = ask.limit;
        let mut facets = Vec::with_capacity(Dimension::ALL.len());
        for dimension in Dimension::ALL {
            let question = Question { keys: vec![dimension], filter: gathered.filter.clone(), buckets: 1 };
            let rows = Arc::clone(&gathered);
            let wants = |instance: u32| gathered.filter.admits(Dimension::Instance, instance);
            let facet = self
                .fold(&view, question.cut(), wants, move |sections| {
                    let ranker = rank(&question, Metric::Requests, &rows, sections)?;
                    let (values, groups) = ranker.finish_with_sums(&rows.overlay, limit);
                    let value = |(count, key): (i128, [u32; 3])| {
                        let count = u64::try_from(count).map_err(|_| Error::internal(OutOfRange))?;
                        Ok((rows.overlay.text(dimension, key[0]).to_owned(), count))
                    };
                    Ok((dimension, values.into_iter().map(value).collect::<Result<_>>()?, groups))
                })
                .await?;
            facets.push(facet);
        }
        Ok((facets, view.into_wishes()))
    }

    async fn answer(&self, ask: &Ask<'_>, fits: impl Fn(usize) -> Result<()> + Send + Sync) -> Result<Ranked> {
        let plan = ask.plan();
        let turn = self.turn(ask, plan.as_ref()).await?;
        let fits = |ranking: &Ranking| {
            let chosen = ranking.chosen.len();
            fits(chosen + usize::from(ranking.groups > chosen as u64))
        };
        let (answer, wishes) = match &plan {
            Some(plan) => self.answer_from_rollups(ask, plan, &turn, fits).await?,
            None => (self.answer_from_raw_rows(ask, &turn, fits).await?, Wishes::default()),
        };
        drop(turn);
        self.prepare(wishes);
        match ask.requests_from(plan.as_ref()) {
            Some(start_us) => self.still_kept(start_us).await.map(|()| answer),
            None => Ok(answer),
        }
    }

    /// Segments, deltas and raw ends.
    async fn answer_from_rollups(
        &self,
        ask: &Ask<'_>,
        plan: &Plan,
        turn: &Turn,
        fits: impl Fn(&Ranking) -> Result<()> + Send + Sync,
    ) -> Result<(Ranked, Wishes)> {
        let view = self.view(Some(turn), &plan.spans, &plan.cut_at()).await?;
        ask.within(view.kept, Some(plan))?;
        let question = Question { keys: ask.keys.to_vec(), filter: IdFilter::default(), buckets: ask.buckets() };
        let gathered = self.gather(&view, ask, plan, ask.keys).await?;
        let question = Arc::new(Question { filter: gathered.filter.clone(), ..question });
        let cut = question.cut();
        let wants = |instance: u32| gathered.filter.admits(Dimension::Instance, instance);
        let mut chosen = None;
        let mut groups = 0;
        if !ask.keys.is_empty() {
            let (order_by, limit) = (ask.order_by, ask.limit);
            let (question, rows) = (Arc::clone(&question), Arc::clone(&gathered));
            let ranking = self
                .fold(&view, cut, wants, move |sections| {
                    Ok(rank(&question, order_by, &rows, sections)?.finish(&rows.overlay, limit))
                })
                .await?;
            fits(&ranking)?;
            groups = ranking.groups;
            chosen = Some(ranking.chosen);
        }
        let rows = Arc::clone(&gathered);
        let tally = move |sections: Sections| {
            let mut tally = Tally::new(&question, chosen.as_deref());
            for section in sections {
                let (bucket, instance, section) = section?;
                tally.add_section(bucket, instance, &section).map_err(Error::internal)?;
            }
            for EndSection { bucket, instance, section } in &rows.ends {
                tally.add_section(*bucket, *instance, section).map_err(Error::internal)?;
            }
            for cell in &rows.cells {
                tally.add_row(cell.bucket, cell.instance, &cell.row);
            }
            tally.finish(&rows.overlay, groups).map_err(Error::internal)
        };
        let ranked = self.fold(&view, cut, wants, tally).await?;
        Ok((ranked, view.into_wishes()))
    }

    /// Deltas and ends of a view, by these keys and what is narrowed by.
    async fn gather(&self, view: &View, ask: &Ask<'_>, plan: &Plan, keys: &[Dimension]) -> Result<Arc<Gathered>> {
        let mut overlay = Overlay::new(Arc::clone(&view.values));
        let filter = IdFilter::new(&ask.scope.filter, &mut overlay).within(&ask.scope.access, &mut overlay);
        let asked = |dimension: &Dimension| keys.contains(dimension) || filter.list(*dimension).is_some();
        let dimensions: Vec<Dimension> = Dimension::ALL.into_iter().filter(asked).collect();
        let end = self.end_of(view, plan, &mut overlay).await?;
        let waiting = Waiting::new(plan.clone(), filter, overlay, &dimensions, end.as_ref().map(|end| end.quarter_us));
        let mut waiting = self.each_delta(&view.snapshot, i64::MAX, waiting, Waiting::add).await?;
        let (mut cells, of_end) = waiting.take_cells();
        let Waiting { filter, mut overlay, touched, .. } = waiting;
        let raw = &plan.raw[..plan.raw.len() - usize::from(end.is_some())];
        let ends = match end {
            Some(end) => {
                let wants = |instance: u32| filter.admits(Dimension::Instance, instance);
                self.sums_before(view, end, of_end, wants).await?
            }
            None => Vec::new(),
        };
        for part in raw {
            let scope = Scope { start_us: part.start_us, end_us: part.end_us, ..ask.scope.clone() };
            let cut = Cut { scope: &scope, dimensions: &dimensions, edges: &part.edges };
            let sink = |cell: Cell| cells.push(Cell { bucket: part.first_bucket + cell.bucket, ..cell });
            self.end(view, part, &cut, &touched, &mut overlay, sink).await?;
        }
        Ok(Arc::new(Gathered { filter, overlay, cells, ends }))
    }

    /// Memory follows what is answered, and the users and models there are.
    async fn answer_from_raw_rows(
        &self,
        ask: &Ask<'_>,
        turn: &Turn,
        fits: impl Fn(&Ranking) -> Result<()> + Send + Sync,
    ) -> Result<Ranked> {
        let snapshot = self.reading(Some(turn)).await?;
        ask.within(self.kept_in(&*snapshot).await?, None)?;
        let mut overlay = Overlay::new(Arc::new(Values::new()));
        // The statement narrows.
        let question = Question { keys: ask.keys.to_vec(), filter: IdFilter::default(), buckets: ask.buckets() };
        let mut chosen = None;
        let mut groups = 0;
        if !ask.keys.is_empty() {
            let (scope, keys) = (ask.scope, ask.keys);
            let ranking = self.rank_cells(&snapshot, scope, keys, ask.order_by, ask.limit, &mut overlay).await?;
            fits(&ranking)?;
            groups = ranking.groups;
            chosen = Some(ranking.chosen);
        }
        let mut tally = Tally::new(&question, chosen.as_deref());
        let cut = Cut { scope: ask.scope, dimensions: ask.keys, edges: ask.edges };
        self.cells(&snapshot, &cut, &mut overlay, |cell| tally.add_row(cell.bucket, cell.instance, &cell.row)).await?;
        tally.finish(&overlay, groups).map_err(Error::internal)
    }
}
