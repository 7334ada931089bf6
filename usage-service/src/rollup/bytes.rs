//! Reading and writing of blobs. A reader believes no length that isn't there.

use super::Malformed;

/// A varint has at most so many bytes: seven bits of 64 in each.
const MAX_VARINT: u32 = 10;

/// What is left of a blob.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.bytes.split_at_checked(count).ok_or(Malformed("it ends too soon"))?;
        self.bytes = rest;
        Ok(head)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let (byte, rest) = self.bytes.split_first().ok_or(Malformed("it ends too soon"))?;
        self.bytes = rest;
        Ok(*byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        let mut number = [0; 4];
        number.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(number))
    }

    /// A number in seven bits a byte, low ones first.
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for place in 0..MAX_VARINT {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The last byte has room for one bit only.
            if bits.leading_zeros() < place * 7 {
                break;
            }
            number |= bits << (place * 7);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed("a number is too long"))
    }

    /// A number that is used as a count, an index or an id.
    pub(super) fn small(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed("a number is too large"))
    }

    /// A count of things that take at least a byte each.
    pub(super) fn count(&mut self) -> Result<usize, Malformed> {
        let count = self.small()? as usize;
        if count > self.bytes.len() {
            return Err(Malformed("it counts more than there is"));
        }
        Ok(count)
    }

    /// A number with a sign.
    pub(super) fn signed(&mut self) -> Result<i64, Malformed> {
        let zigzag = self.varint()?;
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    /// All that is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// That nothing follows.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Malformed("something follows its end")) }
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(super) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_varint(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let numbers = [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN];
        let mut bytes = Vec::new();
        for number in numbers {
            put_signed(&mut bytes, number);
        }
        let mut reader = Reader::new(&bytes);
        for number in numbers {
            assert_eq!(reader.signed(), Ok(number));
        }
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn endless_and_missing_numbers_are_refused() {
        assert!(Reader::new(&[0xff; 40]).varint().is_err());
        assert!(Reader::new(&[0x80]).varint().is_err());
        assert!(Reader::new(&[]).u32().is_err());
        assert!(Reader::new(&[200, 1, 0]).count().is_err(), "200 things in one byte");
    }
}
