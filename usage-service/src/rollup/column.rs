//! A column of integers, packed at the smallest width that holds them all, in
//! memory as in the blob. Loops over it are made per width, so that folding reads
//! as few bytes as there are.

use std::ops::Range;

use super::Malformed;
use super::bytes::Reader;

/// Numbers at one width. Sums almost always fit 64 bits; the widest is there so
/// that none ever needs to be refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Column {
    /// So many zeros.
    Zero(usize),
    /// From 0 to 255.
    Byte(Vec<u8>),
    /// From 0 to 65,535.
    Short(Vec<u16>),
    /// From 0 to 4,294,967,295.
    Word(Vec<u32>),
    /// Any of 64 bits, also negative.
    Long(Vec<i64>),
    /// Any.
    Wide(Vec<i128>),
}

/// No sum of four thousand million numbers of 64 bits is larger, and so many rows
/// of such sums still add up in 128 bits.
const MAX_WIDE: u128 = 1 << 95;

/// Which rows of a section are looked at.
#[derive(Debug, Clone)]
pub(super) enum Rows<'a> {
    /// All of a stretch.
    Range(Range<usize>),
    /// These, rising.
    Picked(&'a [u32]),
}

impl Rows<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Range(range) => range.len(),
            Self::Picked(rows) => rows.len(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let (range, picked) = match self {
            Self::Range(range) => (range.clone(), &[][..]),
            Self::Picked(rows) => (0..0, *rows),
        };
        // A section's rows have numbers of 32 bits.
        range.map(|row| row as u32).chain(picked.iter().copied())
    }
}

impl Default for Column {
    fn default() -> Self {
        Self::Zero(0)
    }
}

/// Bytes a number takes, as the blob says it.
fn width(value: i128) -> usize {
    match value {
        0 => 0,
        1..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ if i64::try_from(value).is_ok() => 8,
        _ => 16,
    }
}

impl Column {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Zero(rows) => *rows,
            Self::Byte(values) => values.len(),
            Self::Short(values) => values.len(),
            Self::Word(values) => values.len(),
            Self::Long(values) => values.len(),
            Self::Wide(values) => values.len(),
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        matches!(self, Self::Zero(_))
    }

    fn width(&self) -> usize {
        match self {
            Self::Zero(_) => 0,
            Self::Byte(_) => 1,
            Self::Short(_) => 2,
            Self::Word(_) => 4,
            Self::Long(_) => 8,
            Self::Wide(_) => 16,
        }
    }

    /// Memory taken by the numbers.
    pub(super) fn bytes(&self) -> usize {
        if self.is_zero() { 0 } else { self.len() * self.width() }
    }

    /// Adds a number at the end; all are widened when it doesn't fit. The width
    /// is that of the widest number, whatever the order.
    pub(super) fn push(&mut self, value: i128) {
        if width(value) > self.width() {
            self.widen(width(value));
        }
        // The numbers fit: the width was just made so.
        match self {
            Self::Zero(rows) => *rows += 1,
            Self::Byte(values) => values.push(value as u8),
            Self::Short(values) => values.push(value as u16),
            Self::Word(values) => values.push(value as u32),
            Self::Long(values) => values.push(value as i64),
            Self::Wide(values) => values.push(value),
        }
    }

    /// The numbers of 64 bits, packed.
    pub(super) fn packed(values: &[i64]) -> Self {
        let (least, most) = values.iter().fold((0, 0), |(least, most), value| (*value.min(&least), *value.max(&most)));
        match width(i128::from(if least < 0 { least } else { most })) {
            0 => Self::Zero(values.len()),
            1 => Self::Byte(values.iter().map(|value| *value as u8).collect()),
            2 => Self::Short(values.iter().map(|value| *value as u16).collect()),
            4 => Self::Word(values.iter().map(|value| *value as u32).collect()),
            _ => Self::Long(values.to_vec()),
        }
    }

    /// Adds the number of each of these rows to the sum in its place; false, and what was added is of no use, where that
    /// needs more than 64 bits.
    pub(super) fn add_to(&self, places: &[u32], sums: &mut [i64]) -> bool {
        fn add<T: Copy + Into<i64>>(values: &[T], places: &[u32], sums: &mut [i64]) -> bool {
            let mut fits = true;
            for (value, place) in values.iter().zip(places) {
                let sum = &mut sums[*place as usize];
                let (both, beyond) = sum.overflowing_add((*value).into());
                *sum = both;
                fits &= !beyond;
            }
            fits
        }
        match self {
            Self::Zero(_) => true,
            Self::Byte(values) => add(values, places, sums),
            Self::Short(values) => add(values, places, sums),
            Self::Word(values) => add(values, places, sums),
            Self::Long(values) => add(values, places, sums),
            Self::Wide(_) => false,
        }
    }

    fn widen(&mut self, width: usize) {
        let values = (0..self.len()).map(|row| self.get(row));
        *self = match width {
            1 => Self::Byte(values.map(|value| value as u8).collect()),
            2 => Self::Short(values.map(|value| value as u16).collect()),
            4 => Self::Word(values.map(|value| value as u32).collect()),
            8 => Self::Long(values.map(|value| value as i64).collect()),
            _ => Self::Wide(values.collect()),
        };
    }

    /// Gives back memory that isn't needed.
    pub(super) fn shrink(&mut self) {
        match self {
            Self::Zero(_) => {}
            Self::Byte(values) => values.shrink_to_fit(),
            Self::Short(values) => values.shrink_to_fit(),
            Self::Word(values) => values.shrink_to_fit(),
            Self::Long(values) => values.shrink_to_fit(),
            Self::Wide(values) => values.shrink_to_fit(),
        }
    }

    pub(super) fn get(&self, row: usize) -> i128 {
        match self {
            Self::Zero(_) => 0,
            Self::Byte(values) => values[row].into(),
            Self::Short(values) => values[row].into(),
            Self::Word(values) => values[row].into(),
            Self::Long(values) => values[row].into(),
            Self::Wide(values) => values[row],
        }
    }

    /// Of a column of ids: those are at most 32 bits wide.
    pub(super) fn id(&self, row: usize) -> u32 {
        match self {
            Self::Byte(values) => values[row].into(),
            Self::Short(values) => values[row].into(),
            Self::Word(values) => values[row],
            _ => 0,
        }
    }

    /// Calls with each number, and its place among the rows. Not for [`Self::Wide`].
    #[inline]
    pub(super) fn each(&self, rows: &Rows<'_>, mut call: impl FnMut(usize, i64)) {
        match self {
            Self::Zero(_) => (0..rows.len()).for_each(|place| call(place, 0)),
            Self::Byte(values) => each(values, rows, |place, value| call(place, value.into())),
            Self::Short(values) => each(values, rows, |place, value| call(place, value.into())),
            Self::Word(values) => each(values, rows, |place, value| call(place, value.into())),
            Self::Long(values) => each(values, rows, call),
            Self::Wide(_) => debug_assert!(false, "wide columns have no bound"),
        }
    }

    /// Calls with each id, and its place among the rows.
    #[inline]
    pub(super) fn each_id(&self, rows: &Rows<'_>, mut call: impl FnMut(usize, u32)) {
        match self {
            Self::Byte(values) => each(values, rows, |place, value| call(place, value.into())),
            Self::Short(values) => each(values, rows, |place, value| call(place, value.into())),
            Self::Word(values) => each(values, rows, call),
            _ => (0..rows.len()).for_each(|place| call(place, 0)),
        }
    }

    /// Calls with each number, and its place among the rows.
    pub(super) fn each_wide(&self, rows: &Rows<'_>, mut call: impl FnMut(usize, i128)) {
        match self {
            Self::Wide(values) => each(values, rows, call),
            _ => self.each(rows, |place, value| call(place, value.into())),
        }
    }

    /// What no sum of any of the numbers passes, up or down; none when that is
    /// more than 63 bits.
    pub(super) fn bound(&self) -> Option<i64> {
        match self {
            Self::Wide(_) => None,
            Self::Long(values) => values.iter().try_fold(0_i64, |sum, value| sum.checked_add(value.checked_abs()?)),
            _ => {
                let largest = (1_i64 << (8 * self.width())) - 1;
                i64::try_from(self.len()).ok()?.checked_mul(largest)
            }
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        // At most 16.
        out.push(self.width() as u8);
        match self {
            Self::Zero(_) => {}
            Self::Byte(values) => out.extend_from_slice(values),
            Self::Short(values) => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
            Self::Word(values) => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
            Self::Long(values) => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
            Self::Wide(values) => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        }
    }

    /// Reads so many numbers. Room is made only for bytes that are there.
    pub(super) fn read(reader: &mut Reader<'_>, rows: usize) -> Result<Self, Malformed> {
        let width = reader.byte()?;
        let bytes = reader.take(rows.checked_mul(width.into()).ok_or(Malformed("a column is too long"))?)?;
        // `as_chunks` leaves nothing over: the length is a multiple of the width.
        Ok(match width {
            0 => Self::Zero(rows),
            1 => Self::Byte(bytes.to_vec()),
            2 => Self::Short(bytes.as_chunks().0.iter().map(|value| u16::from_le_bytes(*value)).collect()),
            4 => Self::Word(bytes.as_chunks().0.iter().map(|value| u32::from_le_bytes(*value)).collect()),
            8 => Self::Long(bytes.as_chunks().0.iter().map(|value| i64::from_le_bytes(*value)).collect()),
            16 => {
                let values: Vec<_> = bytes.as_chunks().0.iter().map(|value| i128::from_le_bytes(*value)).collect();
                if values.iter().any(|value| value.unsigned_abs() > MAX_WIDE) {
                    return Err(Malformed("a sum is out of range"));
                }
                Self::Wide(values)
            }
            _ => return Err(Malformed("no such width of a column")),
        })
    }

    /// Reads so many ids.
    pub(super) fn read_ids(reader: &mut Reader<'_>, rows: usize) -> Result<Self, Malformed> {
        let column = Self::read(reader, rows)?;
        if column.width() > 4 {
            return Err(Malformed("ids have at most 32 bits"));
        }
        Ok(column)
    }
}

#[inline]
fn each<T: Copy>(values: &[T], rows: &Rows<'_>, mut call: impl FnMut(usize, T)) {
    match rows {
        Rows::Range(range) => {
            for (place, value) in values[range.clone()].iter().enumerate() {
                call(place, *value);
            }
        }
        Rows::Picked(picked) => {
            for (place, row) in picked.iter().enumerate() {
                call(place, values[*row as usize]);
            }
        }
    }
}
