//! Sections in memory, and requests of the ends of windows: the most recently used ones, bounded in bytes.

use std::sync::Arc;

use hashlink::LruCache;

use super::ends::Requests;
use crate::rollup::{Block, Cut, Section};

/// What an entry takes beside what it holds.
const ENTRY_BYTES: usize = 128;
/// The part of the bound that is always for sections: a fourth.
const LEAST: usize = 4;

/// What is kept never changes: what changes gets a new version, and so a new key. A block has the newest version of its
/// segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Section(SectionKey),
    Requests(QuarterKey),
}

/// The key of the requests of a quarter of an hour, of all instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct QuarterKey {
    pub(super) start_us: i64,
    pub(super) version: i64,
}

/// The key of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SectionKey {
    pub(super) block: Block,
    pub(super) instance: u32,
    pub(super) cut: Cut,
    pub(super) version: i64,
}

/// What there is under a key.
#[derive(Debug)]
enum Entry {
    Section(Arc<Section>),
    Requests(Arc<Requests>),
    /// Not made yet, but this answer has asked for it.
    Asked(u64),
}

/// Whether what need not be there is.
#[derive(Debug)]
pub(super) enum Found<T> {
    There(Arc<T>),
    /// Another answer has asked for it: it is worth being made.
    Again,
    /// Nobody else has asked for it.
    First,
}

#[derive(Debug)]
pub(super) struct Cache {
    entries: LruCache<Key, Entry>,
    bytes: usize,
    capacity: usize,
    /// Memory of the same bound that something else takes.
    taken: usize,
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: LruCache::new_unbounded(), bytes: 0, capacity, taken: 0 }
    }

    pub(super) fn get(&mut self, key: &SectionKey) -> Option<Arc<Section>> {
        match self.entries.get(&Key::Section(*key))? {
            Entry::Section(section) => Some(Arc::clone(section)),
            _ => None,
        }
    }

    /// The same of what can be made of others, and that this answer asks for it.
    pub(super) fn ask(&mut self, key: &SectionKey, answer: u64) -> Found<Section> {
        let key = Key::Section(*key);
        match self.entries.get(&key) {
            Some(Entry::Section(section)) => Found::There(Arc::clone(section)),
            _ => self.asked(key, answer),
        }
    }

    /// The requests of a quarter, and that this answer asks for them.
    pub(super) fn ask_requests(&mut self, key: &QuarterKey, answer: u64) -> Found<Requests> {
        let key = Key::Requests(*key);
        match self.entries.get(&key) {
            Some(Entry::Requests(requests)) => Found::There(Arc::clone(requests)),
            _ => self.asked(key, answer),
        }
    }

    fn asked<T>(&mut self, key: Key, answer: u64) -> Found<T> {
        match self.entries.get(&key) {
            Some(Entry::Asked(by)) if *by != answer => return Found::Again,
            Some(_) => {}
            None => self.put(key, Entry::Asked(answer)),
        }
        Found::First
    }

    pub(super) fn insert(&mut self, key: SectionKey, section: Arc<Section>) {
        self.keep(Key::Section(key), Entry::Section(section));
    }

    pub(super) fn insert_requests(&mut self, key: QuarterKey, requests: Arc<Requests>) {
        self.keep(Key::Requests(key), Entry::Requests(requests));
    }

    /// Keeps it, and lets go of what was not used for longest. What is larger than all there is room for is not kept.
    fn keep(&mut self, key: Key, entry: Entry) {
        if entry.weight() <= self.room() {
            self.put(key, entry);
        }
    }

    fn put(&mut self, key: Key, entry: Entry) {
        self.bytes += entry.weight();
        if let Some(old) = self.entries.insert(key, entry) {
            self.bytes -= old.weight();
        }
        self.shrink();
    }

    /// Leaves so much of the bound to the texts of ids, but for a part that sections keep.
    pub(super) fn leave(&mut self, taken: usize) {
        self.taken = taken;
        self.shrink();
    }

    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.taken).max(self.capacity / LEAST)
    }

    fn shrink(&mut self) {
        while self.bytes > self.room()
            && let Some((_, oldest)) = self.entries.remove_lru()
        {
            self.bytes -= oldest.weight();
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Entry {
    fn weight(&self) -> usize {
        match self {
            Self::Section(section) => section.bytes() + ENTRY_BYTES,
            Self::Requests(requests) => requests.bytes() + ENTRY_BYTES,
            Self::Asked(_) => ENTRY_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollup::{FullRow, Level, Span};

    fn key(version: i64) -> SectionKey {
        let block = Block::one(Span { level: Level::Day, start_us: 0 });
        SectionKey { block, instance: 1, cut: Cut::FULL, version }
    }

    fn section() -> Arc<Section> {
        let rows = (0..100).map(|id| FullRow { keys: [id; 6], measures: [1; _] }).collect();
        Arc::new(Section::merge(None, rows))
    }

    #[test]
    fn what_was_used_last_stays_within_the_bound() {
        let section = section();
        let weight = section.bytes() + ENTRY_BYTES;
        let mut cache = Cache::new(4 * weight);
        for version in 0..4 {
            cache.insert(key(version), Arc::clone(&section));
        }
        assert!(cache.get(&key(0)).is_some());
        cache.insert(key(4), Arc::clone(&section));
        assert_eq!([0, 1, 2, 3, 4].map(|version| cache.get(&key(version)).is_some()), [true, false, true, true, true]);
        assert_eq!(cache.bytes(), 4 * weight);

        cache.leave(2 * weight);
        assert_eq!(cache.bytes(), 2 * weight);
        cache.leave(usize::MAX);
        assert_eq!(cache.bytes(), weight, "a fourth is left to sections");
        cache.insert(key(4), Arc::clone(&section));
        assert_eq!(cache.bytes(), weight, "the same once more takes no more room");
        cache.clear();
        assert_eq!((cache.bytes(), cache.get(&key(4)).is_some()), (0, false));
    }

    #[test]
    fn what_two_answers_ask_for_is_worth_being_made() {
        let mut cache = Cache::new(1 << 20);
        for answer in [7, 7] {
            assert!(matches!(cache.ask(&key(1), answer), Found::First), "one answer may ask more than once");
        }
        assert!(matches!(cache.ask(&key(1), 8), Found::Again));
        assert!(cache.get(&key(1)).is_none());
        assert_eq!(cache.bytes(), ENTRY_BYTES);
        let section = section();
        cache.insert(key(1), Arc::clone(&section));
        assert!(matches!(cache.ask(&key(1), 9), Found::There(found) if found == section));
        assert_eq!(cache.bytes(), section.bytes() + ENTRY_BYTES);
    }
}
