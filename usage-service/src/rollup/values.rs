//! Texts as small numbers: keys of rows are ids, and only answers hold texts.
//!
//! Ids are given by the database, from 1 up in each dimension, and never change.
//! 0 is the empty text. A status is no text: its stored number is its id.

use std::collections::HashMap;
use std::sync::Arc;

use super::Malformed;
use crate::model::{Dimension, Status};

/// Further ahead of the highest id no id is believed: a damaged one must not make
/// room for thousands of millions.
const MAX_GAP: usize = 1 << 20;

/// Texts and ids of one dimension.
#[derive(Debug, Clone, Default)]
struct Texts {
    /// By id less one. A gap is an id that is not known yet.
    texts: Vec<Option<Arc<str>>>,
    ids: HashMap<Arc<str>, u32>,
    bytes: usize,
}

impl Texts {
    fn text(&self, id: u32) -> Option<&str> {
        self.texts.get((id as usize).checked_sub(1)?)?.as_deref()
    }

    /// The highest id. At most as many as there are `u32`: see [`MAX_GAP`].
    fn len(&self) -> u32 {
        self.texts.len() as u32
    }

    fn insert(&mut self, id: u32, text: &str) -> Result<(), Malformed> {
        let Some(place) = (id as usize).checked_sub(1) else {
            return Err(Malformed("id 0 is the empty text's"));
        };
        if text.is_empty() {
            return Err(Malformed("the empty text has id 0 only"));
        }
        if place > self.texts.len() + MAX_GAP {
            return Err(Malformed("an id far beyond the others"));
        }
        match (self.text(id), self.ids.get(text)) {
            (None, None) => {}
            (Some(known), _) if known == text => return Ok(()),
            _ => return Err(Malformed("an id with two texts, or a text with two ids")),
        }
        if place >= self.texts.len() {
            self.texts.resize(place + 1, None);
        }
        let text: Arc<str> = text.into();
        self.bytes += text.len() + ENTRY_BYTES;
        self.texts[place] = Some(Arc::clone(&text));
        self.ids.insert(text, id);
        Ok(())
    }
}

/// What a text takes beside its bytes: two counters, an entry of the list and one
/// of the map, whose load is one half at worst.
const ENTRY_BYTES: usize = 2 * size_of::<usize>() + size_of::<Arc<str>>() + 2 * (size_of::<(Arc<str>, u32)>() + 1);

/// The texts that the database knows, by dimension.
#[derive(Debug, Clone, Default)]
pub(crate) struct Values {
    dimensions: [Texts; Dimension::ALL.len()],
}

/// Where a dimension's texts are.
fn slot(dimension: Dimension) -> usize {
    dimension as usize
}

impl Values {
    /// None.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a text; the same once more changes nothing. To be fed in the order of
    /// the ids, more or less.
    ///
    /// # Errors
    ///
    /// An id or a text that is known otherwise, 0, or an id more than a million
    /// beyond the highest.
    pub(crate) fn insert(&mut self, dimension: Dimension, id: u32, text: &str) -> Result<(), Malformed> {
        if dimension == Dimension::Status {
            return Err(Malformed("statuses are not kept as texts"));
        }
        self.dimensions[slot(dimension)].insert(id, text)
    }

    /// The id of a text; of a status by its full name.
    pub(crate) fn id(&self, dimension: Dimension, text: &str) -> Option<u32> {
        match dimension {
            Dimension::Status => status_id(text),
            _ if text.is_empty() => Some(0),
            _ => self.dimensions[slot(dimension)].ids.get(text).copied(),
        }
    }

    /// The text of an id; of a status its full name.
    pub(crate) fn text(&self, dimension: Dimension, id: u32) -> Option<&str> {
        match dimension {
            Dimension::Status => status_name(id),
            _ if id == 0 => Some(""),
            _ => self.dimensions[slot(dimension)].text(id),
        }
    }

    /// The highest id.
    pub(crate) fn len(&self, dimension: Dimension) -> u32 {
        match dimension {
            Dimension::Status => Status::ALL.len() as u32,
            _ => self.dimensions[slot(dimension)].len(),
        }
    }

    /// Memory taken, about.
    pub(crate) fn bytes(&self) -> usize {
        self.dimensions.iter().map(|texts| texts.bytes).sum()
    }
}

fn status_id(name: &str) -> Option<u32> {
    Status::ALL.into_iter().find(|status| status.name() == name).map(|status| status.number().unsigned_abs().into())
}

fn status_name(id: u32) -> Option<&'static str> {
    Status::from_number(id.into()).map(Status::name)
}

/// The known texts, and those that only one answer or one sealing has met. New
/// ones get the ids after the known ones.
#[derive(Debug)]
pub(crate) struct Overlay {
    base: Arc<Values>,
    added: [Vec<Arc<str>>; Dimension::ALL.len()],
    ids: [HashMap<Arc<str>, u32>; Dimension::ALL.len()],
}

impl Overlay {
    /// The known texts.
    pub(crate) fn new(base: Arc<Values>) -> Self {
        Self { base, added: Default::default(), ids: Default::default() }
    }

    /// The id of a text, a new one if need be. A status that does not exist is 0.
    pub(crate) fn intern(&mut self, dimension: Dimension, text: &str) -> u32 {
        if let Some(id) = self.base.id(dimension, text) {
            return id;
        }
        if dimension == Dimension::Status {
            return 0;
        }
        let slot = slot(dimension);
        if let Some(id) = self.ids[slot].get(text) {
            return *id;
        }
        let text: Arc<str> = text.into();
        self.added[slot].push(Arc::clone(&text));
        let id = self.len(dimension);
        self.ids[slot].insert(text, id);
        id
    }

    /// The text of an id; empty for one that was never given.
    pub(crate) fn text(&self, dimension: Dimension, id: u32) -> &str {
        if let Some(text) = self.base.text(dimension, id) {
            return text;
        }
        let place = id.checked_sub(self.base.len(dimension) + 1);
        place.and_then(|place| self.added[slot(dimension)].get(place as usize)).map_or("", |text| text)
    }

    /// The highest id.
    pub(crate) fn len(&self, dimension: Dimension) -> u32 {
        self.base.len(dimension) + self.added[slot(dimension)].len() as u32
    }

    /// What the database doesn't know yet, with the ids it gets: rising in each
    /// dimension.
    pub(crate) fn added(&self) -> impl Iterator<Item = (Dimension, u32, &str)> {
        Dimension::ALL.into_iter().flat_map(move |dimension| {
            let first = self.base.len(dimension) + 1;
            let texts = self.added[slot(dimension)].iter();
            texts.zip(first..).map(move |(text, id)| (dimension, id, &**text))
        })
    }
}
