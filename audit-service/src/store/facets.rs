//! What a range holds, counted from postings: no entry is read but those in no run yet, and one for each name.
//!
//! The index knows values by their terms only. So terms are counted, and the names of those that are told are read
//! from one entry each.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use service_core::auth::Access;
use service_core::error::{Error, Result};
use uuid::Uuid;

use super::candidates::Query;
use super::lines::Lines;
use super::postings::{Places, Posting, Shard, own_part, shard_groups, shards_of};
use super::runs::{Behind, Run, damaged};
use super::settle::Intent;
use super::{Order, Range, Store};
use crate::canonical::{self, Counted};
use crate::event::Key;
use crate::filter::{Filter, Kind, Needles, intents, term};

/// Runs that are counted at once, and entries that are read at once.
const RUNS: usize = 4;
const ROWS: usize = 64;
/// Groups of shards that are read at once: a run of a million has some hundred rows of a kind.
const GROUPS: u64 = 8;

/// One value of a facet and how many entries have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facet {
    /// The value.
    pub value: String,
    /// Entries.
    pub count: u64,
}

/// What a range holds; most entries first, ties by value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facets {
    /// Actor ids.
    pub actors: Vec<Facet>,
    /// Actions.
    pub actions: Vec<Facet>,
    /// Types of affected resources; an entry counts once a type.
    pub resource_types: Vec<Facet>,
    /// Instances.
    pub instances: Vec<Facet>,
}

/// What is counted.
const KINDS: [Kind; 4] = [Kind::ActorId, Kind::Action, Kind::ResourceType, Kind::Instance];

/// Where a value's name is.
#[derive(Debug, Clone)]
enum Name {
    Text(String),
    /// In an entry of a run.
    At(i64, u64),
}

/// Of each kind, for each term.
type Counts = [HashMap<u64, (u64, Name)>; 4];

impl Store {
    /// Counts what a range holds.
    pub async fn facets(&self, access: &Access, filter: &Filter, range: Range, limit: usize) -> Result<Facets> {
        let Some(filter) = &filter.within(access) else {
            return Ok(Facets::default());
        };
        let query = Query::new(filter, range, Order::OldestFirst, None);
        let snapshot = self.index_snapshot().await?;
        let mut counts = Counts::default();
        let runs: Vec<Run> = snapshot.runs.iter().filter(|run| query.overlaps(run)).cloned().collect();
        for runs in runs.chunks(RUNS) {
            snapshot.still_holds()?;
            let places = self.candidates(&query, runs, true).await?;
            for (run, mut places) in runs.iter().zip(places).filter(|(_, places)| !places.is_empty()) {
                if query.settled && run.unsettled > 0 {
                    self.leave_out_late(run, &mut places).await?;
                }
                self.count_run(run, &places, &mut counts).await?;
            }
        }
        self.count_behind(&query, &snapshot.behind, &mut counts).await?;
        let [actors, actions, resource_types, instances] = counts;
        let facets = Facets {
            actors: self.ranked(Kind::ActorId, actors, limit).await?,
            actions: self.ranked(Kind::Action, actions, limit).await?,
            resource_types: self.ranked(Kind::ResourceType, resource_types, limit).await?,
            instances: self.ranked(Kind::Instance, instances, limit).await?,
        };
        snapshot.still_holds()?;
        Ok(facets)
    }

    /// Leaves out intents whose outcome came after the run was made.
    async fn leave_out_late(&self, run: &Run, places: &mut Places) -> Result<()> {
        let Some(mut open) = self.places_of(run, intents()).await? else { return Ok(()) };
        open.and(places);
        let open: Vec<u64> = open.iter().collect();
        for rank in self.settled_ranks(run, &open).await? {
            places.remove(rank);
        }
        Ok(())
    }

    async fn count_run(&self, run: &Run, places: &Places, counts: &mut Counts) -> Result<()> {
        for (kind, counts) in KINDS.into_iter().zip(counts) {
            let shards = shard_groups(kind, [run.entries].into_iter());
            let groups = shards.min(GROUPS);
            for group in 0..groups {
                let (from, to) = shards_of(kind, run.entries, groups, group);
                let mut apart = Vec::new();
                for (_, bytes) in self.parts_between(run.id, from, to).await? {
                    for found in Shard::read(&bytes).ok_or_else(|| damaged("shards"))?.iter() {
                        match found.ok_or_else(|| damaged("shards"))? {
                            (term, Posting::Here(posting)) => count(counts, run, term, places, posting)?,
                            (term, Posting::Apart) => apart.push(term),
                        }
                    }
                }
                for terms in apart.chunks(ROWS) {
                    let pairs: Vec<(i64, i64)> = terms.iter().map(|term| (run.id, own_part(*term))).collect();
                    let parts = self.parts(&pairs).await?;
                    for (term, pair) in terms.iter().zip(&pairs) {
                        let posting = parts.get(pair).ok_or_else(|| damaged("postings"))?;
                        count(counts, run, *term, places, posting)?;
                    }
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Counts entries that are in no run.
    async fn count_behind(&self, query: &Query<'_>, behind: &[Behind], counts: &mut Counts) -> Result<()> {
        let mut needles = Needles::new(query.filter);
        let (from, to) = (query.from.occurred_at_us, query.to.occurred_at_us);
        let mut lines = Lines::between(behind, from, to, query.order);
        while let Some(text) = lines.next(self).await? {
            let mut wanted = Vec::new();
            let mut open = Vec::new();
            for line in text.lines().filter(|line| needles.may_match(line)) {
                let event = canonical::parse(line).map_err(Error::internal)?.event;
                let key = Key { occurred_at_us: event.occurred_at_us, id: event.id };
                if !query.contains(key) || !query.filter.matches(&event) {
                    continue;
                }
                open.extend(Intent::of(&event, wanted.len()));
                wanted.push(Some(line));
            }
            if query.settled {
                for at in self.settled_of(&open).await? {
                    wanted[at] = None;
                }
            }
            for line in wanted.into_iter().flatten() {
                let event = canonical::counted(line).map_err(Error::internal)?;
                for (kind, counts) in KINDS.into_iter().zip(counts.iter_mut()) {
                    for value in values(&event, kind) {
                        let of_term = counts.entry(term(kind, value));
                        of_term.or_insert_with(|| (0, Name::Text(value.to_owned()))).0 += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// The greatest of them, by their names.
    async fn ranked(&self, kind: Kind, counts: HashMap<u64, (u64, Name)>, limit: usize) -> Result<Vec<Facet>> {
        let mut counts: Vec<(u64, u64, Name)> =
            counts.into_iter().map(|(term, (count, name))| (count, term, name)).collect();
        counts.sort_unstable_by_key(|(count, term, _)| (Reverse(*count), *term));
        // Ties are told by value, so all that have the count of the last have to be named.
        let least = limit.checked_sub(1).and_then(|last| counts.get(last)).map_or(0, |(count, _, _)| *count);
        counts.truncate(counts.partition_point(|(count, _, _)| *count >= least));
        let mut facets = Vec::with_capacity(counts.len());
        for counts in counts.chunks(ROWS) {
            let mut unnamed: BTreeMap<u64, (i64, u64)> = BTreeMap::new();
            for (count, term, name) in counts {
                match name {
                    Name::Text(value) => facets.push(Facet { value: value.clone(), count: *count }),
                    Name::At(run, rank) => drop(unnamed.insert(*term, (*run, *rank))),
                }
            }
            let mut names = self.names(kind, &unnamed).await?;
            for (count, term, _) in counts.iter().filter(|(_, term, _)| unnamed.contains_key(term)) {
                let value = names.remove(term).ok_or_else(|| damaged("terms"))?;
                facets.push(Facet { value, count: *count });
            }
        }
        facets.sort_unstable_by(|a, b| (Reverse(a.count), &a.value).cmp(&(Reverse(b.count), &b.value)));
        facets.truncate(limit);
        Ok(facets)
    }

    /// The values of terms, each from an entry that has it.
    async fn names(&self, kind: Kind, terms: &BTreeMap<u64, (i64, u64)>) -> Result<HashMap<u64, String>> {
        let ranks: Vec<(i64, u64)> = terms.values().copied().collect();
        let ids: Vec<Uuid> = self.keys_at(&ranks).await?.into_iter().map(|key| key.id).collect();
        let mut names = HashMap::with_capacity(ids.len());
        for row in self.rows_of(&ids, "").await? {
            for value in values(&row.counted()?, kind) {
                let term = term(kind, value);
                if terms.contains_key(&term) {
                    names.insert(term, value.to_owned());
                }
            }
        }
        Ok(names)
    }
}

fn count(counts: &mut HashMap<u64, (u64, Name)>, run: &Run, term: u64, places: &Places, posting: &[u8]) -> Result<()> {
    let (count, sample) = places.count_of(posting).ok_or_else(|| damaged("postings"))?;
    if count > 0 {
        counts.entry(term).or_insert_with(|| (0, Name::At(run.id, sample))).0 += count;
    }
    Ok(())
}

/// An entry's values of a kind, each once.
fn values<'a>(event: &'a Counted<'_>, kind: Kind) -> Vec<&'a str> {
    match kind {
        Kind::ActorId => vec![&event.actor.id],
        Kind::Action => vec![&event.action],
        Kind::Instance => vec![&event.instance_id],
        _ => {
            let mut types: Vec<&str> = event.resources.iter().map(|resource| &*resource.kind).collect();
            types.sort_unstable();
            types.dedup();
            types
        }
    }
}
