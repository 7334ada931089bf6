//! Pages, single entries and heads.

use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};
use service_core::auth::Access;
use service_core::error::Result;
use uuid::Uuid;

use super::candidates::Query;
use super::entities::{entry, head};
use super::search::Search;
use super::settle::Intent;
use super::{Heads, Order, Range, Row, Store, TimeWalk, signed, unsigned};
use crate::event::{Entry, Key};
use crate::filter::{Filter, Stages};

/// Entries in no run above which a page is first looked for among the nearest entries, and how many of these: what is
/// frequent needs no scan of all that lies behind.
const MAX_BEHIND: u64 = 4_096;
const NEAREST: usize = 2_000;
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

impl Store {
    /// A page of the entries that match, behind `after` or from the range's beginning.
    #[expect(clippy::too_many_arguments, reason = "each decides which entries come")]
    pub async fn list(
        &self,
        access: &Access,
        filter: &Filter,
        range: Range,
        order: Order,
        after: Option<Key>,
        limit: usize,
        bytes: usize,
    ) -> Result<Page> {
        let mut page = PageBuilder::new(limit, bytes);
        let Some(filter) = &filter.within(access) else {
            return Ok(page.finish());
        };
        let mut walk = TimeWalk::new(access, range, order, after, limit + 1);
        let mut after = after;
        // Without a filter the nearest entries are it, but for intents that may have to be skipped.
        let unfiltered = filter.terms().is_empty();
        if unfiltered {
            match self.walk(filter, &mut walk, &mut page).await? {
                Walked::Done => return Ok(page.finish()),
                Walked::Until(key) => after = Some(key),
            }
        }
        let snapshot = self.index_snapshot().await?;
        if !unfiltered && snapshot.entries_behind() > MAX_BEHIND {
            match self.walk(filter, &mut walk, &mut page).await? {
                Walked::Done => return Ok(page.finish()),
                Walked::Until(key) => after = Some(key),
            }
        }
        let query = Query::new(filter, range, order, after);
        let mut rows = Search::new(self, query, snapshot, limit + 1).await?;
        while let Some((row, entry)) = rows.next(self).await? {
            if !page.push(row, entry) {
                break;
            }
        }
        Ok(page.finish())
    }

    /// Puts what matches on a page, until it is full, or the walk ends, or enough rows were read.
    async fn walk(&self, filter: &Filter, walk: &mut TimeWalk, page: &mut PageBuilder) -> Result<Walked> {
        let mut read = 0;
        while read < NEAREST {
            let Some(rows) = walk.next(self).await? else {
                return Ok(Walked::Done);
            };
            read += rows.read;
            let mut found: Vec<Option<(Row, Entry)>> = Vec::new();
            let mut intents = Vec::new();
            for row in rows.seen {
                let entry = row.entry()?;
                if filter.matches(&entry.event) {
                    intents.extend(Intent::of(&entry.event, found.len()));
                    found.push(Some((row, entry)));
                }
            }
            if filter.stages == Stages::Settled {
                for at in self.settled_of(&intents).await? {
                    found[at] = None;
                }
            }
            for (row, entry) in found.into_iter().flatten() {
                if !page.push(row, entry) {
                    return Ok(Walked::Done);
                }
            }
        }
        Ok(Walked::Until(walk.position()))
    }

    /// The entry with an id.
    pub async fn by_id(&self, access: &Access, id: Uuid) -> Result<Sought> {
        Ok(match entry::Entity::find_by_id(id).one(self.reader()).await? {
            None => match self.archived_id(id).await? {
                None => Sought::Nowhere,
                Some((instance_id, sequence)) if access.has_instance(&instance_id) => {
                    Sought::Archived { instance_id, sequence }
                }
                Some((instance_id, _)) => Sought::Hidden { instance_id },
            },
            Some(model) if access.has_instance(&model.instance_id) => Sought::Found(Box::new(model.try_into()?)),
            Some(model) => Sought::Hidden { instance_id: model.instance_id },
        })
    }

    /// The entry at a place.
    pub async fn by_place(&self, access: &Access, instance_id: &str, sequence: u64) -> Result<Option<Row>> {
        if !access.has_instance(instance_id) {
            return Ok(None);
        }
        let model = entry::Entity::find()
            .filter(entry::Column::InstanceId.eq(instance_id))
            .filter(entry::Column::Sequence.eq(signed(sequence)))
            .one(self.reader())
            .await?;
        model.map(Row::try_from).transpose()
    }

    /// The heads of these logs; those without an entry are left out.
    pub async fn heads(&self, access: &Access, instances: &[String]) -> Result<Heads> {
        let mut heads = Heads::new();
        let instances: Vec<&String> = instances.iter().filter(|instance| access.has_instance(instance)).collect();
        for instances in instances.chunks(LOOKUP) {
            let find = head::Entity::find().filter(head::Column::InstanceId.is_in(instances.iter().copied()));
            for model in find.all(self.reader()).await? {
                heads.insert(model.instance_id, unsigned(model.next_sequence)?);
            }
        }
        heads.retain(|_, next| *next > 0);
        Ok(heads)
    }

    /// The heads of all logs, a consistent cut: read in one statement.
    pub async fn all_heads(&self, access: &Access) -> Result<Heads> {
        let models = head::Entity::find()
            .filter(head::Column::NextSequence.gt(0))
            .order_by_asc(head::Column::InstanceId)
            .limit(None)
            .all(self.reader())
            .await?;
        models
            .into_iter()
            .filter(|model| access.has_instance(&model.instance_id))
            .map(|model| Ok((model.instance_id, unsigned(model.next_sequence)?)))
            .collect()
    }
}

/// What was found of an id.
#[derive(Debug, PartialEq, Eq)]
pub enum Sought {
    /// The entry.
    Found(Box<Row>),
    /// There is one that the caller may not know of: it hears what it would hear of none.
    Hidden {
        /// Whose it is.
        instance_id: String,
    },
    /// It is in the archive alone.
    Archived {
        /// Whose it is.
        instance_id: String,
        /// Where in that log.
        sequence: u64,
    },
    /// There is none.
    Nowhere,
}

/// How a walk ended.
enum Walked {
    /// The page is full, or there is no more.
    Done,
    /// There may be more behind this.
    Until(Key),
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
