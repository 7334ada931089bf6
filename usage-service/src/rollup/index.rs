//! Places for groups: three ids to a number, by a table where that is small and
//! by hashing else.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Ids of a group's keys; 0 for those it doesn't have.
pub(crate) type GroupKey = [u32; 3];

/// Larger tables aren't made: 16 MiB, of which only what is touched takes memory.
const MAX_TABLE: usize = 1 << 22;

/// Groups by their keys.
#[derive(Debug)]
pub(super) struct Index {
    /// Ids below these are in the table.
    bounds: [u32; 3],
    /// The group's number plus one; 0 for none.
    table: Vec<u32>,
    others: HashMap<Key, u32, BuildHasherDefault<Mixer>>,
}

impl Index {
    /// An index for ids that mostly are below these bounds, at least 1 each.
    pub(super) fn new(bounds: [u32; 3]) -> Self {
        let size = bounds.iter().try_fold(1_usize, |size, bound| size.checked_mul(*bound as usize));
        match size {
            Some(size) if size <= MAX_TABLE => Self { bounds, table: vec![0; size], others: HashMap::default() },
            _ => Self { bounds: [0; 3], table: Vec::new(), others: HashMap::default() },
        }
    }

    #[inline]
    fn place(&self, key: GroupKey) -> Option<usize> {
        let [a, b, c] = self.bounds;
        let inside = key[0] < a && key[1] < b && key[2] < c;
        inside.then(|| (key[0] as usize * b as usize + key[1] as usize) * c as usize + key[2] as usize)
    }

    #[inline]
    pub(super) fn get(&self, key: GroupKey) -> Option<u32> {
        match self.place(key) {
            Some(place) => self.table[place].checked_sub(1),
            None if self.others.is_empty() => None,
            None => self.others.get(&Key::of(key)).copied(),
        }
    }

    /// The number of a group; `next` for a new one.
    #[inline]
    pub(super) fn get_or_insert(&mut self, key: GroupKey, next: u32) -> u32 {
        match self.place(key) {
            Some(place) => {
                let number = &mut self.table[place];
                if *number == 0 {
                    *number = next + 1;
                }
                *number - 1
            }
            None => *self.others.entry(Key::of(key)).or_insert(next),
        }
    }
}

/// Three ids in one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key(u128);

impl Key {
    fn of([a, b, c]: GroupKey) -> Self {
        Self(u128::from(a) << 64 | u128::from(b) << 32 | u128::from(c))
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0 as u64);
        state.write_u64((self.0 >> 64) as u64);
    }
}

/// A quick hash of whole numbers. They are ids, given by the database one after
/// the other: nobody outside can choose them so that they collide.
#[derive(Debug, Default)]
pub(super) struct Mixer(u64);

impl Hasher for Mixer {
    #[inline]
    fn write_u64(&mut self, number: u64) {
        // Multiplying into 128 bits and folding them spreads every bit.
        const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
        const FACTOR: u128 = 0xa5a3_564e_27f8_865b;
        let product = u128::from(self.0.rotate_left(23) ^ number ^ SEED) * FACTOR;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
