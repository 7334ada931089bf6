//! Pages, single entries, heads and facets.

use std::cmp::Reverse;
use std::collections::HashMap;

use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};
use service_core::error::Result;
use uuid::Uuid;

use super::entities::{entry, head};
use super::search::Search;
use super::{Heads, Order, Range, Row, Store, TimeWalk, signed, unsigned};
use crate::event::{Entry, Key};
use crate::filter::{Filter, Stages};

/// Instances of one lookup: bounds the statement.
const LOOKUP: usize = 500;

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// The entries in order, each with its leaf hash.
    pub entries: Vec<(Entry, Vec<u8>)>,
    /// Where the next page begins, unless this is the last.
    pub next: Option<Key>,
}

impl Page {
    /// An empty last page.
    fn new() -> Self {
        Self { entries: Vec::new(), next: None }
    }
}

/// A page in the making: full when the next entry has no room.
pub(super) struct PageBuilder {
    page: Page,
    limit: usize,
    room: usize,
}

impl PageBuilder {
    /// A page of at most `limit` entries and `bytes` of canonical JSON, which is longer than the entry's message;
    /// one entry has room in any case.
    pub(super) fn new(limit: usize, bytes: usize) -> Self {
        Self { page: Page::new(), limit, room: bytes }
    }

    /// Adds an entry; false when it has no room, and the page is done.
    pub(super) fn push(&mut self, row: Row, entry: Entry) -> bool {
        let bytes = row.canonical.len();
        if self.page.entries.len() == self.limit || (bytes > self.room && !self.page.entries.is_empty()) {
            self.page.next = self.page.entries.last().map(|(entry, _)| entry.key());
            return false;
        }
        self.room = self.room.saturating_sub(bytes);
        self.page.entries.push((entry, row.leaf_hash));
        true
    }

    pub(super) fn finish(self) -> Page {
        self.page
    }
}

/// One value of a facet and how many entries have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facet {
    /// The value.
    pub value: String,
    /// Entries.
    pub count: u64,
}

/// What a range holds; most entries first, ties by value.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl Store {
    /// A page of the entries that match, behind `after` or from the range's beginning.
    pub async fn list(
        &self,
        filter: &Filter,
        range: Range,
        order: Order,
        after: Option<Key>,
        limit: usize,
        bytes: usize,
    ) -> Result<Page> {
        let mut page = PageBuilder::new(limit, bytes);
        let mut rows = self.matching(filter, range, order, after, Some(limit + 1)).await?;
        while let Some((row, entry)) = rows.next(self).await? {
            if !page.push(row, entry) {
                break;
            }
        }
        Ok(page.finish())
    }

    /// Counts what a range holds. Reads every entry that matches, a bounded number at a time.
    pub async fn facets(&self, filter: &Filter, range: Range, limit: usize) -> Result<Facets> {
        let mut counts = Counts::default();
        if filter.narrows() {
            let mut rows = self.matching(filter, range, Order::OldestFirst, None, None).await?;
            while let Some((row, _)) = rows.next(self).await? {
                counts.add(&row)?;
            }
        } else {
            let settled = filter.stages == Stages::Settled;
            let mut walk = TimeWalk::new(range, Order::OldestFirst, settled, None, usize::MAX);
            loop {
                let rows = walk.next(self).await?;
                if rows.is_empty() {
                    break;
                }
                rows.iter().try_for_each(|row| counts.add(row))?;
            }
        }
        let [actors, actions, resource_types, instances] = counts.0.map(|counts| ranked(counts, limit));
        Ok(Facets { actors, actions, resource_types, instances })
    }

    /// The entry with an id.
    pub async fn by_id(&self, id: Uuid) -> Result<Option<Row>> {
        let model = entry::Entity::find_by_id(id).one(self.reader()).await?;
        model.map(Row::try_from).transpose()
    }

    /// The entry at a place.
    pub async fn by_place(&self, instance_id: &str, sequence: u64) -> Result<Option<Row>> {
        let model = entry::Entity::find()
            .filter(entry::Column::InstanceId.eq(instance_id))
            .filter(entry::Column::Sequence.eq(signed(sequence)))
            .one(self.reader())
            .await?;
        model.map(Row::try_from).transpose()
    }

    /// The heads of these logs; those without an entry are left out.
    pub async fn heads(&self, instances: &[String]) -> Result<Heads> {
        let mut heads = Heads::new();
        for instances in instances.chunks(LOOKUP) {
            let find = head::Entity::find().filter(head::Column::InstanceId.is_in(instances));
            for model in find.all(self.reader()).await? {
                heads.insert(model.instance_id, unsigned(model.next_sequence)?);
            }
        }
        heads.retain(|_, next| *next > 0);
        Ok(heads)
    }

    /// The heads of all logs, a consistent cut: read in one statement.
    pub async fn all_heads(&self) -> Result<Heads> {
        let models = head::Entity::find()
            .filter(head::Column::NextSequence.gt(0))
            .order_by_asc(head::Column::InstanceId)
            .limit(None)
            .all(self.reader())
            .await?;
        models.into_iter().map(|model| Ok((model.instance_id, unsigned(model.next_sequence)?))).collect()
    }

    /// The entries that match, by the index where that helps. `wanted` is how many are; none for all.
    async fn matching<'a>(
        &self,
        filter: &'a Filter,
        range: Range,
        order: Order,
        after: Option<Key>,
        wanted: Option<usize>,
    ) -> Result<Matching<'a>> {
        let settled = filter.stages == Stages::Settled;
        if let Some(search) = Search::new(self, filter, range, order, after, settled).await? {
            // Who reads all reads faster in the order of the log than entry by entry.
            if wanted.is_some() || !search.is_dense(self).await? {
                return Ok(Matching::Search(Box::new(search)));
            }
        }
        let walk = TimeWalk::new(range, order, settled, after, wanted.unwrap_or(usize::MAX));
        Ok(Matching::Walk { filter, walk, rows: Vec::new().into_iter() })
    }
}

/// The entries that match, in order.
enum Matching<'a> {
    /// All entries of the range, each checked.
    Walk { filter: &'a Filter, walk: TimeWalk, rows: std::vec::IntoIter<Row> },
    /// What the index finds.
    Search(Box<Search<'a>>),
}

impl Matching<'_> {
    async fn next(&mut self, store: &Store) -> Result<Option<(Row, Entry)>> {
        let (filter, walk, rows) = match self {
            Self::Walk { filter, walk, rows } => (filter, walk, rows),
            Self::Search(search) => return search.next(store).await,
        };
        loop {
            for row in rows.by_ref() {
                let entry = row.entry()?;
                if filter.matches(&entry.event) {
                    return Ok(Some((row, entry)));
                }
            }
            *rows = walk.next(store).await?.into_iter();
            if rows.len() == 0 {
                return Ok(None);
            }
        }
    }
}

impl TryFrom<entry::Model> for Row {
    type Error = service_core::error::Error;

    fn try_from(model: entry::Model) -> Result<Self> {
        Ok(Self {
            key: Key { occurred_at_us: model.occurred_at, id: model.id },
            instance_id: model.instance_id,
            sequence: unsigned(model.sequence)?,
            leaf_hash: model.leaf_hash,
            canonical: model.canonical,
        })
    }
}

/// Of actors, actions, resource types and instances, in this order.
#[derive(Default)]
struct Counts([HashMap<String, u64>; 4]);

impl Counts {
    fn add(&mut self, row: &Row) -> Result<()> {
        let event = row.counted()?;
        let mut count = |facet: usize, value: &str| match self.0[facet].get_mut(value) {
            Some(count) => *count += 1,
            None => drop(self.0[facet].insert(value.to_owned(), 1)),
        };
        count(0, &event.actor.id);
        count(1, &event.action);
        let mut types: Vec<&str> = event.resources.iter().map(|resource| &*resource.kind).collect();
        types.sort_unstable();
        types.dedup();
        types.into_iter().for_each(|kind| count(2, kind));
        count(3, &event.instance_id);
        Ok(())
    }
}

fn ranked(counts: HashMap<String, u64>, limit: usize) -> Vec<Facet> {
    let mut facets: Vec<Facet> = counts.into_iter().map(|(value, count)| Facet { value, count }).collect();
    facets.sort_unstable_by(|a, b| (Reverse(a.count), &a.value).cmp(&(Reverse(b.count), &b.value)));
    facets.truncate(limit);
    facets
}
