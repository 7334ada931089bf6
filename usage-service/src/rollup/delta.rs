//! What a transaction adds, as a small blob with its own texts.
//!
//! It is written in the writers' way, so it is summed up and written quickly,
//! without compression and without looking anything up in the database:
//!
//! ```text
//! format 1 byte │ CRC-32 of all that follows, 4 bytes │
//! texts of each of seven dimensions: count, then length and bytes of each │
//! rows: count, then quarter (since the epoch, less that of the row before),
//!       place of each text (0 for none), status, 11 sums
//! ```
//!
//! Numbers are varints of seven bits a byte; quarters and sums carry a sign.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::bytes::{Reader, put_signed, put_varint};
use super::index::Mixer;
use super::{FullRow, KEYS, Level, MEASURES, Malformed, Measures, Overlay, STATUS};
use crate::model::{Dimension, Event, Status};

const FORMAT: u8 = 1;
/// Format and CRC.
const HEADER: usize = 5;

/// The dimensions that are texts: the keys before the status, and the instance.
const TEXTS: [Dimension; KEYS.len()] = [KEYS[0], KEYS[1], KEYS[2], KEYS[3], KEYS[4], Dimension::Instance];

/// A row of a delta, with ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeltaRow {
    /// First microsecond of its quarter.
    pub(crate) quarter_us: i64,
    /// The instance's id.
    pub(crate) instance: u32,
    /// Keys and sums.
    pub(crate) row: FullRow,
}

/// What rows of a delta are told apart by: the quarter, and the places of the
/// texts and the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    quarter: i64,
    places: [u32; TEXTS.len()],
    status: u32,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let pair = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
        let [user, team, api_key, provider, model, instance] = self.places;
        state.write_u64(self.quarter.cast_unsigned().rotate_left(32) ^ pair(user, api_key));
        state.write_u64(pair(team, provider));
        state.write_u64(pair(model, instance << 3 ^ self.status));
    }
}

/// The texts of one dimension as they come: places from 1 up.
#[derive(Debug, Default)]
struct Texts<'a> {
    places: HashMap<&'a str, u32>,
    texts: Vec<&'a str>,
    /// The last one: events of one gateway come in runs.
    last: (&'a str, u32),
}

impl<'a> Texts<'a> {
    #[inline]
    fn place(&mut self, text: &'a str) -> u32 {
        if self.last.0 == text {
            return self.last.1;
        }
        if text.is_empty() {
            return 0;
        }
        // A transaction has no thousands of millions of events.
        let next = self.texts.len() as u32 + 1;
        let place = *self.places.entry(text).or_insert(next);
        if place == next {
            self.texts.push(text);
        }
        self.last = (text, place);
        place
    }
}

/// The sums of one event. Without a price it has no cost, and counts as unpriced.
pub(crate) fn measures(event: &Event, cost_nanos: Option<i64>) -> Measures {
    let tokens = &event.tokens;
    [
        1,
        i64::from(event.status != Status::Ok),
        tokens.input_uncached,
        tokens.input_cache_read,
        tokens.input_cache_write,
        tokens.input_cache_write_1h,
        tokens.output,
        tokens.output_reasoning,
        cost_nanos.unwrap_or(0),
        i64::from(cost_nanos.is_none()),
        if cost_nanos.is_none() { tokens.total() } else { 0 },
    ]
}

fn add(sums: &Measures, more: &Measures) -> Option<Measures> {
    let mut result = *sums;
    for (sum, more) in result.iter_mut().zip(more) {
        *sum = sum.checked_add(*more)?;
    }
    Some(result)
}

/// Sums up what a transaction accepted, event by event.
#[derive(Debug, Default)]
pub(crate) struct Summing<'a> {
    texts: [Texts<'a>; TEXTS.len()],
    /// Where the sums of a key are.
    index: HashMap<Key, usize, BuildHasherDefault<Mixer>>,
    sums: Vec<(Key, Measures)>,
}

impl<'a> Summing<'a> {
    /// Adds an event with its cost, none where it has no price.
    pub(crate) fn add(&mut self, event: &'a Event, cost_nanos: Option<i64>) {
        let fields =
            [&event.user_id, &event.team_id, &event.api_key_id, &event.provider, &event.model, &event.instance_id];
        let mut places = [0; TEXTS.len()];
        for ((place, texts), text) in places.iter_mut().zip(&mut self.texts).zip(fields) {
            *place = texts.place(text);
        }
        let key = Key {
            quarter: event.occurred_at_us.div_euclid(Level::Quarter.width_us()),
            places,
            status: event.status.number().unsigned_abs().into(),
        };
        let measures = measures(event, cost_nanos);
        let next = self.sums.len();
        let at = self.index.entry(key).or_insert(next);
        // A sum that would leave 64 bits goes on in another row of the same keys.
        match self.sums.get(*at).map(|(_, sum)| add(sum, &measures)) {
            Some(Some(sum)) => self.sums[*at].1 = sum,
            _ => {
                *at = next;
                self.sums.push((key, measures));
            }
        }
    }

    /// The delta.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        write(&self.texts.map(|texts| texts.texts), &mut self.sums)
    }
}

/// The delta of so many events.
#[cfg(test)]
pub(crate) fn encode<'a>(rows: impl IntoIterator<Item = (&'a Event, Option<i64>)>) -> Vec<u8> {
    let mut summing = Summing::default();
    rows.into_iter().for_each(|(event, cost_nanos)| summing.add(event, cost_nanos));
    summing.finish()
}

fn write(texts: &[Vec<&str>; TEXTS.len()], rows: &mut [(Key, Measures)]) -> Vec<u8> {
    // In the order of time quarters take a byte.
    rows.sort_unstable();
    let length: usize = texts.iter().flatten().map(|text| text.len() + 2).sum();
    let mut blob = Vec::with_capacity(HEADER + length + rows.len() * 40 + 64);
    blob.extend_from_slice(&[FORMAT, 0, 0, 0, 0]);
    for texts in texts {
        put_varint(&mut blob, texts.len() as u64);
        for text in texts {
            put_varint(&mut blob, text.len() as u64);
            blob.extend_from_slice(text.as_bytes());
        }
    }
    put_varint(&mut blob, rows.len() as u64);
    let mut before = 0;
    for (key, measures) in rows {
        put_signed(&mut blob, key.quarter - before);
        before = key.quarter;
        for place in key.places.iter().chain([&key.status]) {
            put_varint(&mut blob, (*place).into());
        }
        for measure in measures {
            put_signed(&mut blob, *measure);
        }
    }
    let crc = crc32fast::hash(&blob[HEADER..]);
    blob[1..HEADER].copy_from_slice(&crc.to_le_bytes());
    blob
}

/// What a transaction added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delta {
    texts: [Vec<Box<str>>; TEXTS.len()],
    rows: Vec<(Key, Measures)>,
}

impl Delta {
    /// Reads what [`encode`] wrote.
    ///
    /// # Errors
    ///
    /// Anything else. What is made room for is in proportion to the bytes there.
    pub(crate) fn decode(blob: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(blob);
        if reader.byte()? != FORMAT {
            return Err(Malformed("no such format of a delta"));
        }
        if reader.u32()? != crc32fast::hash(reader.rest()) {
            return Err(Malformed("a delta's checksum is wrong"));
        }
        Self::decode_body(&mut reader)
    }

    fn decode_body(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut texts: [Vec<Box<str>>; TEXTS.len()] = Default::default();
        for texts in &mut texts {
            for _ in 0..reader.count()? {
                let length = reader.count()?;
                let text = str::from_utf8(reader.take(length)?).map_err(|_| Malformed("a text is not UTF-8"))?;
                if text.is_empty() {
                    return Err(Malformed("the empty text is not written"));
                }
                texts.push(text.into());
            }
        }
        let count = reader.count()?;
        let mut rows = Vec::new();
        let mut quarter = 0_i64;
        for _ in 0..count {
            quarter = quarter.checked_add(reader.signed()?).ok_or(Malformed("a quarter is out of range"))?;
            // All of it within 64 bits of microseconds.
            quarter.checked_add(1).and_then(|next| next.checked_mul(Level::Quarter.width_us())).ok_or(OUT_OF_TIME)?;
            quarter.checked_mul(Level::Quarter.width_us()).ok_or(OUT_OF_TIME)?;
            let mut key = Key { quarter, places: [0; TEXTS.len()], status: 0 };
            for (place, texts) in key.places.iter_mut().zip(&texts) {
                *place = reader.small()?;
                if *place as usize > texts.len() {
                    return Err(Malformed("a text is not there"));
                }
            }
            key.status = reader.small()?;
            if Status::from_number(key.status.into()).is_none() {
                return Err(Malformed("no such status"));
            }
            let mut measures = [0; MEASURES];
            for measure in &mut measures {
                *measure = reader.signed()?;
            }
            rows.push((key, measures));
        }
        reader.end()?;
        Ok(Self { texts, rows })
    }

    /// Its rows, with texts as ids. Rows may have equal keys.
    pub(crate) fn resolve(&self, overlay: &mut Overlay) -> Vec<DeltaRow> {
        let mut ids: [Vec<u32>; TEXTS.len()] = Default::default();
        for ((ids, texts), dimension) in ids.iter_mut().zip(&self.texts).zip(TEXTS) {
            ids.push(0);
            ids.extend(texts.iter().map(|text| overlay.intern(dimension, text)));
        }
        let row = |(key, measures): &(Key, Measures)| {
            // Places were checked when it was read.
            let id = |text: usize| ids[text][key.places[text] as usize];
            let mut keys = [0; KEYS.len()];
            (0..STATUS).for_each(|place| keys[place] = id(place));
            keys[STATUS] = key.status;
            DeltaRow {
                quarter_us: key.quarter * Level::Quarter.width_us(),
                instance: id(INSTANCE),
                row: FullRow { keys, measures: *measures },
            }
        };
        self.rows.iter().map(row).collect()
    }

    /// The same without the rows of some quarters and instances; none when no row
    /// is left.
    pub(crate) fn without(&self, taken: impl Fn(i64, &str) -> bool) -> Option<Vec<u8>> {
        let stays = |(key, _): &&(Key, Measures)| {
            let instance =
                (key.places[INSTANCE] as usize).checked_sub(1).map_or("", |place| &self.texts[INSTANCE][place]);
            !taken(key.quarter * Level::Quarter.width_us(), instance)
        };
        let mut rows: Vec<(Key, Measures)> = self.rows.iter().filter(stays).copied().collect();
        let texts = self.texts.each_ref().map(|texts| texts.iter().map(|text| &**text).collect());
        (!rows.is_empty()).then(|| write(&texts, &mut rows))
    }

    /// Memory taken, about.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let texts: usize = self.texts.iter().flatten().map(|text| text.len() + size_of::<Box<str>>()).sum();
        size_of::<Self>() + texts + self.rows.len() * size_of::<(Key, Measures)>()
    }
}

/// The place of the instance in [`TEXTS`]; those before are as in [`KEYS`].
const INSTANCE: usize = TEXTS.len() - 1;

const OUT_OF_TIME: Malformed = Malformed("a quarter is out of range");
