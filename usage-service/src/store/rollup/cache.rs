//! Sections in memory, the most recently used ones, bounded in bytes.

use std::sync::Arc;

use hashlink::LruCache;

use super::Place;
use crate::rollup::{Cut, Section};

/// What an entry takes beside its section.
const ENTRY_BYTES: usize = 128;
/// The part of the bound that is always for sections: a fourth.
const LEAST: usize = 4;

/// A section never changes: what changes gets a new version, and so a new key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) cut: Cut,
    pub(super) version: i64,
}

#[derive(Debug)]
pub(super) struct Cache {
    sections: LruCache<Key, Arc<Section>>,
    bytes: usize,
    capacity: usize,
    /// Memory of the same bound that something else takes.
    taken: usize,
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { sections: LruCache::new_unbounded(), bytes: 0, capacity, taken: 0 }
    }

    pub(super) fn get(&mut self, key: &Key) -> Option<Arc<Section>> {
        self.sections.get(key).cloned()
    }

    /// Keeps it, and lets go of what was not used for longest. One that is larger than all there is room for is not
    /// kept.
    pub(super) fn insert(&mut self, key: Key, section: Arc<Section>) {
        if weight(&section) > self.room() {
            return;
        }
        self.bytes += weight(&section);
        if let Some(old) = self.sections.insert(key, section) {
            self.bytes -= weight(&old);
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
            && let Some((_, oldest)) = self.sections.remove_lru()
        {
            self.bytes -= weight(&oldest);
        }
    }

    pub(super) fn clear(&mut self) {
        self.sections.clear();
        self.bytes = 0;
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn weight(section: &Section) -> usize {
    section.bytes() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollup::{FullRow, Level};

    fn key(version: i64) -> Key {
        let place = Place { level: Level::Day, start_us: 0, instance: 1 };
        Key { place, cut: Cut::Full, version }
    }

    #[test]
    fn what_was_used_last_stays_within_the_bound() {
        let rows = (0..100).map(|id| FullRow { keys: [id; 6], measures: [1; _] }).collect();
        let section = Arc::new(Section::merge(None, rows));
        let mut cache = Cache::new(4 * weight(&section));
        for version in 0..4 {
            cache.insert(key(version), Arc::clone(&section));
        }
        assert!(cache.get(&key(0)).is_some());
        cache.insert(key(4), Arc::clone(&section));
        assert_eq!([0, 1, 2, 3, 4].map(|version| cache.get(&key(version)).is_some()), [true, false, true, true, true]);
        assert_eq!(cache.bytes(), 4 * weight(&section));

        cache.leave(2 * weight(&section));
        assert_eq!(cache.bytes(), 2 * weight(&section));
        cache.leave(usize::MAX);
        assert_eq!(cache.bytes(), weight(&section), "a fourth is left to sections");
        cache.insert(key(4), Arc::clone(&section));
        assert_eq!(cache.bytes(), weight(&section), "the same once more takes no more room");
        cache.clear();
        assert_eq!((cache.bytes(), cache.get(&key(4)).is_some()), (0, false));
    }
}
