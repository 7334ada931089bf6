//! A section of a segment: sums by key in packed columns.
//!
//! The blob, numbers in little endian:
//!
//! ```text
//! format 1 byte │ CRC-32 of all that follows │ length of the body, 4 bytes │ zstd frame of the body
//! body: cut 1 byte │ rows 4 bytes │ a column for each key │ 11 columns of sums │ sets
//! column: width 1 byte (0, 1, 2, 4, 8, 16) │ rows × width bytes
//! set of users, then of models (single cuts, but not of the key itself):
//!       listed ids of each row, a column │ words of bits of each row, a column │
//!       ids in the order of the rows, a column │ words, 8 bytes each
//! ```
//!
//! Rows are sorted by their keys, which occur once; ids of a set rise, and how many
//! there are says whether they are listed or bits. So the same sums are the same
//! bytes, however they came about.

use super::bytes::Reader;
use super::column::{Column, Rows};
use super::sets::Sets;
use super::{Cut, FullRow, KEYS, MEASURES, MODEL, Malformed, Measures, STATUS, USER, Values};
use crate::model::Status;

/// The format that is written, and the only one so far.
const FORMAT: u8 = 1;
/// Where what the CRC covers begins: after the format and itself.
const CHECKED: usize = 5;
/// The largest body that is written or believed: some 25 million rows.
const MAX_BODY: usize = 1 << 30;
/// The quickest. Packed columns leave little to gain beyond it.
const COMPRESSION: i32 = 1;

/// A section that is too large for a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a rollup has {0} bytes, at most {MAX_BODY} can be stored")]
pub(crate) struct TooLarge(pub(crate) usize);

/// Sums by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    cut: Cut,
    rows: usize,
    /// Those of the cut.
    keys: Vec<Column>,
    measures: [Column; MEASURES],
    /// What no sum over rows passes, by measure; none beyond 63 bits.
    bounds: [Option<i64>; MEASURES],
    users: Option<Sets>,
    models: Option<Sets>,
}

/// A full section as it is built, row by row in the order of the keys.
#[derive(Debug)]
struct Builder {
    keys: Vec<Column>,
    measures: [Column; MEASURES],
}

impl Builder {
    fn new() -> Self {
        Self { keys: vec![Column::default(); KEYS.len()], measures: Default::default() }
    }

    fn push(&mut self, keys: [u32; KEYS.len()], sums: &[i128; MEASURES]) {
        for (column, id) in self.keys.iter_mut().zip(keys) {
            column.push(id.into());
        }
        for (column, sum) in self.measures.iter_mut().zip(sums) {
            column.push(*sum);
        }
    }

    fn finish(mut self) -> Section {
        self.keys.iter_mut().chain(&mut self.measures).for_each(Column::shrink);
        Section::new(Cut::FULL, self.keys, self.measures, None, None)
    }
}

fn add(sums: &mut [i128; MEASURES], measures: &Measures) {
    for (sum, measure) in sums.iter_mut().zip(measures) {
        *sum += i128::from(*measure);
    }
}

impl Section {
    pub(super) fn new(
        cut: Cut,
        keys: Vec<Column>,
        measures: [Column; MEASURES],
        users: Option<Sets>,
        models: Option<Sets>,
    ) -> Self {
        let bounds = std::array::from_fn(|measure| measures[measure].bound());
        Self { cut, rows: measures[0].len(), keys, measures, bounds, users, models }
    }

    /// Adds rows, in any order, to a full section or to nothing. Sums are exact
    /// whatever they come to: a column is widened as it needs. Rows whose sums all
    /// come to zero are gone, as if they had never been.
    ///
    /// Memory beside the rows is that of the packed result.
    ///
    /// # Panics
    ///
    /// If the section is not a full one.
    pub(crate) fn merge(existing: Option<&Self>, mut rows: Vec<FullRow>) -> Self {
        rows.sort_unstable_by_key(|row| row.keys);
        let mut builder = Builder::new();
        let known = existing.map_or(0, |section| section.rows);
        let mut at = 0;
        let mut rows = rows.iter().peekable();
        loop {
            let old = existing.filter(|_| at < known).map(|section| section.full_keys(at));
            let keys = match (old, rows.peek()) {
                (None, None) => break,
                (Some(old), Some(row)) => old.min(row.keys),
                (Some(old), None) => old,
                (None, Some(row)) => row.keys,
            };
            let mut sums = [0; MEASURES];
            if let (Some(section), true) = (existing, old == Some(keys)) {
                sums = std::array::from_fn(|measure| section.measures[measure].get(at));
                at += 1;
            }
            while let Some(row) = rows.next_if(|row| row.keys == keys) {
                add(&mut sums, &row.measures);
            }
            if sums != [0; MEASURES] {
                builder.push(keys, &sums);
            }
        }
        builder.finish()
    }

    /// The blob.
    ///
    /// # Errors
    ///
    /// A section of more than a gigabyte.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, TooLarge> {
        let body = self.body();
        // Under this bound rows and lengths also fit their four bytes: a row has
        // at least the byte of its status or key, but for one.
        if body.len() > MAX_BODY {
            return Err(TooLarge(body.len()));
        }
        // Compressing into memory fails only when memory or the level is wrong.
        let frame = zstd::bulk::compress(&body, COMPRESSION).map_err(|_| TooLarge(body.len()))?;
        let mut blob = vec![FORMAT, 0, 0, 0, 0];
        blob.extend_from_slice(&(body.len() as u32).to_le_bytes());
        blob.extend_from_slice(&frame);
        let crc = crc32fast::hash(&blob[CHECKED..]);
        blob[1..CHECKED].copy_from_slice(&crc.to_le_bytes());
        Ok(blob)
    }

    pub(super) fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.bytes() + 64);
        // Only cuts that have a number are stored; no other is read as one.
        body.push(self.cut.number().map_or(u8::MAX, |number| number as u8));
        body.extend_from_slice(&(self.rows as u32).to_le_bytes());
        self.keys.iter().chain(&self.measures).for_each(|column| column.write(&mut body));
        self.users.iter().chain(&self.models).for_each(|sets| sets.write(&mut body));
        body
    }

    /// The section of a blob that is kept as this cut.
    ///
    /// # Errors
    ///
    /// Anything that [`Section::encode`] would not have written. Ids may still be
    /// unknown: see [`Section::knows`].
    pub(crate) fn decode(cut: Cut, blob: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(blob);
        if reader.byte()? != FORMAT {
            return Err(Malformed("no such format of a section"));
        }
        if reader.u32()? != crc32fast::hash(reader.rest()) {
            return Err(Malformed("a section's checksum is wrong"));
        }
        let length = reader.u32()? as usize;
        if length > MAX_BODY {
            return Err(Malformed("a section is too long"));
        }
        let body = zstd::bulk::decompress(reader.rest(), length).map_err(|_| Malformed("a section is not zstd"))?;
        if body.len() != length {
            return Err(Malformed("a section has another length than it says"));
        }
        let section = Self::decode_body(&body)?;
        if section.cut != cut {
            return Err(Malformed("a section is of another cut"));
        }
        Ok(section)
    }

    pub(super) fn decode_body(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let cut = Cut::from_number(reader.byte()?.into()).ok_or(Malformed("no such cut"))?;
        let rows = reader.u32()? as usize;
        let mut keys = Vec::with_capacity(cut.keys());
        for _ in 0..cut.keys() {
            keys.push(Column::read_ids(&mut reader, rows)?);
        }
        // First of all: after this the rows are really there, but for one.
        check_order(&keys, rows)?;
        let mut measures: [Column; MEASURES] = Default::default();
        for column in &mut measures {
            *column = Column::read(&mut reader, rows)?;
        }
        let mut sets = |of: usize| (!cut.has(of)).then(|| Sets::read(&mut reader, rows)).transpose();
        let (users, models) = (sets(USER)?, sets(MODEL)?);
        reader.end()?;
        let mut nobody = false;
        users.iter().for_each(|users: &Sets| users.each_id(|id| nobody |= id == 0));
        if nobody {
            return Err(Malformed("no user is counted as a user"));
        }
        let section = Self::new(cut, keys, measures, users, models);
        if let Some(statuses) = section.key(STATUS)
            && (0..rows).any(|row| Status::from_number(statuses.id(row).into()).is_none())
        {
            return Err(Malformed("no such status"));
        }
        Ok(section)
    }

    /// Which keys it tells apart.
    pub(crate) fn cut(&self) -> Cut {
        self.cut
    }

    /// How many rows it has.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Memory taken, about.
    pub(crate) fn bytes(&self) -> usize {
        let columns = self.keys.iter().chain(&self.measures).map(Column::bytes);
        let sets = self.users.iter().chain(&self.models).map(Sets::bytes);
        size_of::<Self>() + columns.chain(sets).sum::<usize>()
    }

    /// Whether all its ids are of known texts. A section that is newer than the
    /// values would be answered with empty texts.
    pub(crate) fn knows(&self, values: &Values) -> bool {
        let mut known = true;
        for (place, key) in KEYS.into_iter().enumerate() {
            let len = values.len(key);
            if let Some(column) = self.key(place) {
                column.each_id(&Rows::Range(0..self.rows), |_, id| known &= id <= len);
            }
            if let Some(sets) = [USER, MODEL].contains(&place).then(|| self.sets(place)).flatten() {
                sets.each_id(|id| known &= id <= len);
            }
        }
        known
    }

    /// The sums of all rows.
    #[cfg(test)]
    pub(crate) fn sums(&self) -> [i128; MEASURES] {
        std::array::from_fn(|measure| {
            let mut sum = 0;
            self.measures[measure].each_wide(&Rows::Range(0..self.rows), |_, value| sum += value);
            sum
        })
    }

    /// The ids of a key; none when this cut doesn't tell it apart.
    pub(super) fn key(&self, place: usize) -> Option<&Column> {
        self.keys.get(self.cut.column(place)?)
    }

    /// The numbers of a measure, with what no sum of them passes.
    pub(super) fn measure(&self, measure: usize) -> (&Column, Option<i64>) {
        (&self.measures[measure], self.bounds[measure])
    }

    /// The set of users or models of each row, where the cut doesn't tell them apart.
    pub(super) fn sets(&self, of: usize) -> Option<&Sets> {
        if of == USER { self.users.as_ref() } else { self.models.as_ref() }
    }

    /// The rows of a user, in a section that is sorted by users.
    pub(super) fn rows_of_user(&self, user: u32) -> std::ops::Range<usize> {
        let Some(users) = self.key(USER) else {
            return 0..0;
        };
        let first_from = |id: u64| {
            let (mut low, mut high) = (0, self.rows);
            while low < high {
                let middle = low + (high - low) / 2;
                if u64::from(users.id(middle)) < id {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            low
        };
        first_from(user.into())..first_from(u64::from(user) + 1)
    }

    fn full_keys(&self, row: usize) -> [u32; KEYS.len()] {
        std::array::from_fn(|place| self.keys[place].id(row))
    }
}

/// Whether an id counts as distinct: no user is nobody.
pub(super) fn counts(of: usize, id: u32) -> bool {
    of != USER || id != 0
}

/// That rows rise by their keys. Stops at the first that doesn't: of columns
/// without bytes at the second row.
fn check_order(keys: &[Column], rows: usize) -> Result<(), Malformed> {
    for row in 1..rows {
        let rising = keys.iter().find_map(|column| match (column.id(row - 1), column.id(row)) {
            (before, id) if before == id => None,
            (before, id) => Some(before < id),
        });
        if rising != Some(true) {
            return Err(Malformed("the rows of a section don't rise"));
        }
    }
    Ok(())
}
