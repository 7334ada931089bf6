//! Sections in memory, the most recently used ones, bounded in bytes.

use std::sync::Arc;

use hashlink::LruCache;

use super::Place;
use crate::rollup::{Cut, Section};

/// What an entry takes beside its section.
const ENTRY_BYTES: usize = 128;

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
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { sections: LruCache::new_unbounded(), bytes: 0, capacity }
    }

    pub(super) fn get(&mut self, key: &Key) -> Option<Arc<Section>> {
        self.sections.get(key).cloned()
    }

    /// Keeps it, and lets go of what was not used for longest. One that is larger than all there is room for is not
    /// kept.
    pub(super) fn insert(&mut self, key: Key, section: Arc<Section>) {
        if weight(&section) > self.capacity {
            return;
        }
        self.bytes += weight(&section);
        if let Some(old) = self.sections.insert(key, section) {
            self.bytes -= weight(&old);
        }
        while self.bytes > self.capacity
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
