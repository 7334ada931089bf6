//! What a spool knows beside its events: how far they are acknowledged, and which numbers it
//! has dropped and not yet reported.
//!
//! Two slots in one file that has its room from the start, written by turns, so that one of
//! them is whole whenever the process or the machine stops, and that a full disk does not
//! matter. The newer one that its CRC confirms counts. **It may be old**: then events are
//! sent again that were acknowledged, which stores nothing twice. It is never ahead.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::queue::frame::{Dropped, Numbering};

const SLOT: usize = 256 * 1024;
/// CRC, length, generation.
const SLOT_HEADER: usize = 16;
/// The file's length.
pub(super) const LEN: u64 = 2 * SLOT as u64;
/// How many ranges fit, with the longest names. Of more, the oldest are no longer kept over a
/// restart, and show as missing instead of as dropped.
const MAX_RANGES: usize = 256;
/// How many segments beyond the cursor may be acknowledged in part; of the others more is sent again.
const MAX_AHEAD: usize = 1_000;

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Ledger {
    generation: u64,
    /// Segments below the first number, and of that one events below the second, are
    /// acknowledged.
    pub(super) cursor: (u64, u64),
    /// Of segments above it, as what is fresh is sent before them: below which number.
    pub(super) ahead: Vec<(u64, u64)>,
    pub(super) dropped: Vec<Dropped>,
}

impl Ledger {
    /// From the file's bytes, whatever they are.
    pub(super) fn decode(bytes: &[u8], producer_field: u32) -> Self {
        let slots = bytes.chunks(SLOT).filter_map(|slot| slot_of(slot, producer_field));
        slots.max_by_key(|ledger| ledger.generation).unwrap_or_default()
    }

    /// Below which number a segment's events are acknowledged.
    pub(super) fn settled_in(&self, segment: u64) -> u64 {
        let mut known = self.ahead.iter().chain([&self.cursor]);
        known.find(|(number, _)| *number == segment).map_or(0, |(_, settled)| *settled)
    }

    /// The highest segment that it knows of. No other may get its number: how far it is
    /// acknowledged must never be taken for another's.
    pub(super) fn last_segment(&self) -> u64 {
        self.ahead.iter().map(|(number, _)| *number).fold(self.cursor.0, u64::max)
    }

    /// The next generation: where it goes in the file, and what.
    pub(super) fn encode(&mut self) -> (u64, Vec<u8>) {
        self.generation += 1;
        let ranges = &self.dropped[self.dropped.len().saturating_sub(MAX_RANGES)..];
        let ranges: Vec<Value> =
            ranges.iter().map(|range| json!([range.who.id(), range.who.epoch(), range.first, range.last])).collect();
        let ahead = &self.ahead[self.ahead.len().saturating_sub(MAX_AHEAD)..];
        let (segment, sequence) = self.cursor;
        let text = json!({ "segment": segment, "sequence": sequence, "ahead": ahead, "dropped": ranges }).to_string();
        let mut slot = vec![0; SLOT_HEADER];
        slot.extend_from_slice(text.as_bytes());
        slot[4..8].copy_from_slice(&(text.len() as u32).to_le_bytes());
        slot[8..16].copy_from_slice(&self.generation.to_le_bytes());
        let crc = crc32c::crc32c(&slot[4..]);
        slot[..4].copy_from_slice(&crc.to_le_bytes());
        ((self.generation % 2) * SLOT as u64, slot)
    }
}

fn slot_of(slot: &[u8], producer_field: u32) -> Option<Ledger> {
    let crc = u32::from_le_bytes(*slot.first_chunk()?);
    let len = u32::from_le_bytes(*slot.get(4..)?.first_chunk()?) as usize;
    let generation = u64::from_le_bytes(*slot.get(8..)?.first_chunk()?);
    let text = slot.get(SLOT_HEADER..)?.get(..len)?;
    if len == 0 || crc32c::crc32c(&slot[4..SLOT_HEADER + len]) != crc {
        return None;
    }
    let value: Value = serde_json::from_slice(text).ok()?;
    let dropped = value["dropped"].as_array()?.iter().map(|range| {
        let who = Numbering::new(producer_field, range[0].as_str()?, range[1].as_u64()?);
        Some(Dropped { who: Arc::new(who), first: range[2].as_u64()?, last: range[3].as_u64()? })
    });
    // Absent in one of before there was any.
    let ahead = value["ahead"].as_array().into_iter().flatten();
    let ahead = ahead.map(|pair| Some((pair[0].as_u64()?, pair[1].as_u64()?)));
    Some(Ledger {
        generation,
        ahead: ahead.collect::<Option<_>>()?,
        cursor: (value["segment"].as_u64()?, value["sequence"].as_u64()?),
        dropped: dropped.collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(count: u64, id: &str) -> Vec<Dropped> {
        let who = Arc::new(Numbering::new(20, id, u64::MAX));
        (0..count).map(|n| Dropped { who: Arc::clone(&who), first: n, last: u64::MAX - n }).collect()
    }

    fn write(file: &mut [u8], ledger: &mut Ledger) {
        let (at, slot) = ledger.encode();
        file[at as usize..at as usize + slot.len()].copy_from_slice(&slot);
    }

    proptest! {
        #[test]
        fn a_write_that_is_torn_leaves_the_one_before(
            cursors in prop::collection::vec((any::<u64>(), any::<u64>()), 1..6), tear: prop::sample::Index, noise: u8,
        ) {
            let mut file = vec![0; LEN as usize];
            let mut ledger = Ledger::default();
            let mut before = Ledger::default();
            for cursor in cursors {
                before = ledger.clone();
                ledger = Ledger { cursor, ahead: vec![cursor; 2], dropped: ranges(3, "p"), ..ledger };
                write(&mut file, &mut ledger);
                prop_assert_eq!(&Ledger::decode(&file, 20), &ledger);
            }
            let (at, slot) = ledger.clone().encode();
            // The same slot as the last write's.
            let at = SLOT as u64 - at;
            let hit = at as usize + tear.index(slot.len() - 1);
            file[hit] ^= noise | 1;
            prop_assert_eq!(Ledger::decode(&file, 20), before);
        }

        #[test]
        fn any_bytes_are_some_ledger(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            prop_assert_eq!(Ledger::decode(&bytes, 20), Ledger::default());
        }
    }

    #[test]
    fn the_longest_fits_its_slot_and_the_newest_ranges_are_kept() {
        let all = ranges(1_000, &"\u{1F600}".repeat(64));
        let most = (u64::MAX, u64::MAX);
        let mut ledger = Ledger { cursor: most, ahead: vec![most; 2_000], dropped: all.clone(), ..Ledger::default() };
        let mut file = vec![0; LEN as usize];
        assert!(ledger.encode().1.len() <= SLOT);
        write(&mut file, &mut ledger);
        let read = Ledger::decode(&file, 20);
        assert_eq!((read.dropped, read.ahead), (all[1_000 - MAX_RANGES..].to_vec(), vec![most; MAX_AHEAD]));
    }
}
