//! What is asked, by ids, and which rows of a section it is about.

use super::column::{Column, Rows};
use super::index::GroupKey;
use super::section::Section;
use super::{Cut, FullRow, KEYS, Malformed, Overlay, USER, place};
use crate::model::{Dimension, Filter};
use service_core::auth::{Access, Instances};

/// So many rows are looked at together: their groups stay in the nearest cache.
pub(super) const BATCH: usize = 1024;
/// Sections with more keys are as good as full ones.
const MAX_KEYS: usize = 3;

/// A filter by ids: of each dimension those that are let through, rising; none
/// lets all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdFilter {
    lists: [Option<Vec<u32>>; Dimension::ALL.len()],
}

impl IdFilter {
    /// The filter by ids. Texts that nobody knows yet get ids in the overlay, so
    /// that what comes with them later matches. Labels are not looked at: they
    /// need raw rows.
    pub(crate) fn new(filter: &Filter, overlay: &mut Overlay) -> Self {
        let mut lists: [Option<Vec<u32>>; Dimension::ALL.len()] = Default::default();
        for (dimension, texts) in [
            (Dimension::Instance, &filter.instance_ids),
            (Dimension::User, &filter.user_ids),
            (Dimension::Team, &filter.team_ids),
            (Dimension::ApiKey, &filter.api_key_ids),
            (Dimension::Provider, &filter.providers),
            (Dimension::Model, &filter.models),
        ] {
            lists[dimension as usize] = sorted(texts.iter().map(|text| overlay.intern(dimension, text)));
        }
        let statuses = filter.statuses.iter().map(|status| status.number().unsigned_abs().into());
        lists[Dimension::Status as usize] = sorted(statuses);
        Self { lists }
    }

    /// The same of what a caller may see only; maybe nothing.
    pub(crate) fn within(mut self, access: &Access, overlay: &mut Overlay) -> Self {
        if let Instances::Only(instances) = access.instances() {
            self.narrow(Dimension::Instance, instances.iter().map(|text| overlay.intern(Dimension::Instance, text)));
        }
        if let Some(user) = access.user() {
            self.narrow(Dimension::User, [overlay.intern(Dimension::User, user)].into_iter());
        }
        self
    }

    fn narrow(&mut self, dimension: Dimension, ids: impl Iterator<Item = u32>) {
        let mut ids: Vec<u32> = ids.filter(|id| self.admits(dimension, *id)).collect();
        ids.sort_unstable();
        ids.dedup();
        // An empty list lets nothing through.
        self.lists[dimension as usize] = Some(ids);
    }

    /// What is let through; none for all.
    pub(crate) fn list(&self, dimension: Dimension) -> Option<&[u32]> {
        self.lists[dimension as usize].as_deref()
    }

    /// Whether an id is let through. A segment whose instance isn't need not be
    /// read at all.
    pub(crate) fn admits(&self, dimension: Dimension, id: u32) -> bool {
        self.list(dimension).is_none_or(|list| list.binary_search(&id).is_ok())
    }
}

fn sorted(ids: impl Iterator<Item = u32>) -> Option<Vec<u32>> {
    let mut ids: Vec<u32> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    (!ids.is_empty()).then_some(ids)
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// What groups are told apart by: at most three.
    pub(crate) keys: Vec<Dimension>,
    /// Which rows count.
    pub(crate) filter: IdFilter,
    /// How many buckets there are; at least one.
    pub(crate) buckets: usize,
}

impl Question {
    /// The sections that answer it: those of the keys that are grouped by or filtered; the smallest ones where there are
    /// none, and full ones for more than a group can have.
    pub(crate) fn cut(&self) -> Cut {
        let filtered = Dimension::ALL.into_iter().filter(|dimension| self.filter.list(*dimension).is_some());
        let needed = Cut::of(self.keys.iter().copied().chain(filtered).filter_map(place));
        match needed.keys() {
            0 => Cut::STATUS,
            1..=MAX_KEYS => needed,
            _ => Cut::FULL,
        }
    }
}

/// Where a key of a group comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// The segment.
    Instance,
    /// A column, by its place in [`KEYS`].
    Row(usize),
}

/// A question made ready for many rows.
#[derive(Debug)]
pub(super) struct Sieve {
    sources: Vec<Source>,
    instances: Option<Vec<u32>>,
    /// The users let through: found by halving, as rows are sorted by user.
    users: Option<Vec<u32>>,
    /// Of other keys what is let through, a bit for each id.
    allowed: Vec<(usize, Bits)>,
}

impl Sieve {
    pub(super) fn new(question: &Question) -> Self {
        debug_assert!(question.keys.len() <= 3, "groups have at most three keys");
        let source = |dimension: &Dimension| place(*dimension).map_or(Source::Instance, Source::Row);
        let list = |dimension| question.filter.list(dimension);
        let allowed = (0..KEYS.len()).filter(|place| *place != USER);
        Self {
            sources: question.keys.iter().take(3).map(source).collect(),
            instances: list(Dimension::Instance).map(<[u32]>::to_vec),
            users: list(Dimension::User).map(<[u32]>::to_vec),
            allowed: allowed.filter_map(|place| Some((place, Bits::new(list(KEYS[place])?)))).collect(),
        }
    }

    /// The group of a row; none when it doesn't count.
    pub(super) fn group(&self, instance: u32, row: &FullRow) -> Option<GroupKey> {
        let admitted = self.admits(instance)
            && self.users.as_ref().is_none_or(|users| users.binary_search(&row.keys[USER]).is_ok())
            && self.allowed.iter().all(|(place, allowed)| allowed.has(row.keys[*place]));
        let mut key = GroupKey::default();
        for (id, source) in key.iter_mut().zip(&self.sources) {
            *id = match source {
                Source::Instance => instance,
                Source::Row(place) => row.keys[*place],
            };
        }
        admitted.then_some(key)
    }

    fn admits(&self, instance: u32) -> bool {
        self.instances.as_ref().is_none_or(|list| list.binary_search(&instance).is_ok())
    }

    /// Calls with each batch of the section's rows that count.
    ///
    /// # Errors
    ///
    /// A section that doesn't tell apart what the question does.
    pub(super) fn each_batch(
        &self,
        instance: u32,
        section: &Section,
        mut call: impl FnMut(&Keys<'_>, &Rows<'_>),
    ) -> Result<(), Malformed> {
        const MISSING: Malformed = Malformed("a section lacks a key that is asked for");
        if !self.admits(instance) {
            return Ok(());
        }
        let mut keys = Keys { count: self.sources.len(), fixed: GroupKey::default(), columns: [None; 3] };
        for (at, source) in self.sources.iter().enumerate() {
            match source {
                Source::Instance => keys.fixed[at] = instance,
                Source::Row(place) => keys.columns[at] = Some(section.key(*place).ok_or(MISSING)?),
            }
        }
        let mut filters = Vec::with_capacity(self.allowed.len());
        for (place, allowed) in &self.allowed {
            filters.push((section.key(*place).ok_or(MISSING)?, allowed));
        }

        let mut picked = Vec::new();
        let mut rest = Vec::with_capacity(BATCH);
        if let Some(users) = &self.users {
            section.key(USER).ok_or(MISSING)?;
            for user in users {
                // Rows of a section have numbers of 32 bits.
                picked.extend(section.rows_of_user(*user).map(|row| row as u32));
            }
            for rows in picked.chunks(BATCH) {
                pick(&Rows::Picked(rows), &filters, &mut rest, |rows| call(&keys, rows));
            }
        } else {
            for start in (0..section.rows()).step_by(BATCH) {
                let rows = Rows::Range(start..section.rows().min(start + BATCH));
                pick(&rows, &filters, &mut rest, |rows| call(&keys, rows));
            }
        }
        Ok(())
    }
}

/// Calls with those of the rows that all filters let through, if any.
fn pick(rows: &Rows<'_>, filters: &[(&Column, &Bits)], rest: &mut Vec<u32>, call: impl FnOnce(&Rows<'_>)) {
    if filters.is_empty() {
        return call(rows);
    }
    let mut let_through = [true; BATCH];
    for (column, allowed) in filters {
        column.each_id(rows, |place, id| let_through[place] &= allowed.has(id));
    }
    rest.clear();
    for (place, row) in rows.iter().enumerate() {
        if let_through[place] {
            rest.push(row);
        }
    }
    match rest.len() {
        0 => {}
        all if all == rows.len() => call(rows),
        _ => call(&Rows::Picked(rest)),
    }
}

/// The keys of a section's groups.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    count: usize,
    fixed: GroupKey,
    columns: [Option<&'a Column>; 3],
}

impl Keys<'_> {
    /// The one group of all rows, where no column tells them apart.
    pub(super) fn single(&self) -> Option<GroupKey> {
        self.columns.iter().all(Option::is_none).then_some(self.fixed)
    }

    /// Calls with the place of each row and its group.
    pub(super) fn each(&self, rows: &Rows<'_>, mut call: impl FnMut(usize, GroupKey)) {
        if let (1, [Some(column), ..]) = (self.count, self.columns) {
            return column.each_id(rows, |place, id| call(place, [id, 0, 0]));
        }
        let mut keys = [self.fixed; BATCH];
        for (at, column) in self.columns.iter().enumerate() {
            if let Some(column) = column {
                column.each_id(rows, |place, id| keys[place][at] = id);
            }
        }
        keys[..rows.len()].iter().enumerate().for_each(|(place, key)| call(place, *key));
    }
}

/// A set of ids as bits.
#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    /// Of ids that rise. They are of texts in memory, so the bits take less.
    fn new(ids: &[u32]) -> Self {
        let mut bits = vec![0; ids.last().map_or(0, |last| *last as usize / 64 + 1)];
        ids.iter().for_each(|id| bits[*id as usize / 64] |= 1 << (id % 64));
        Self(bits)
    }

    #[inline]
    fn has(&self, id: u32) -> bool {
        self.0.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }
}
