//! What a segment file holds, and how any bytes are read as one. No files here.
//!
//! ```text
//! 0       header: magic, version, number, salt, boot, epoch, producer, CRC
//! 384     seal:   events, end, first and next number, CRC; zeros until nothing is written any more
//! 416     start:  first number, CRC; zeros until it is written to
//! 4096    frames, each at a multiple of 8:
//!         length u32 │ CRC u32 │ number u64 │ event … │ zeros to the next 8
//! ```
//!
//! Integers are little endian, every CRC is CRC-32C. **The length is the commit**: it is
//! written last, so a frame whose length is zero is one that nobody was told of. The CRC
//! begins with the file's salt, a random number: an event whose strings spell a frame is
//! none, as whoever wrote them does not know it.

/// Where frames begin.
pub(super) const FRAMES: usize = 4096;
/// What goes before an event.
pub(super) const FRAME_HEADER: usize = 16;
/// Where the seal is.
pub(super) const SEAL: usize = 384;
/// Where the start is.
pub(super) const START: usize = 416;
/// The largest segment that is written, or looked at.
pub(super) const MAX_SEGMENT: usize = 8 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"ACTSPOOL";
const VERSION: u32 = 1;
const MAX_PRODUCER: usize = 256;
const HEADER_CRC: usize = 56 + MAX_PRODUCER;
/// More numbers than a segment has places for are no gap between two of its frames.
const MAX_GAP: u64 = (MAX_SEGMENT / FRAME_HEADER) as u64;

/// Who wrote a segment, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Segments are read in the order of their numbers.
    pub(super) number: u64,
    pub(super) salt: u64,
    /// Which run of the machine it was written in; 0 where that is unknown.
    pub(super) boot: u64,
    pub(super) epoch: u64,
    pub(super) producer: String,
}

/// What a segment holds, known once nothing more is written to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) events: u32,
    /// Where its last frame ends.
    pub(super) end: u32,
    /// The number of its first event.
    pub(super) first: u64,
    /// One more than the number of its last.
    pub(super) next: u64,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Header {
    /// The first page of the file, unsealed.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; FRAMES];
        page[..8].copy_from_slice(MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let longs = [self.number, self.salt, self.boot, self.epoch];
        for (at, value) in (16..).step_by(8).zip(longs) {
            page[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        // The builder refuses longer names.
        let producer = &self.producer.as_bytes()[..self.producer.len().min(MAX_PRODUCER)];
        page[48..52].copy_from_slice(&(producer.len() as u32).to_le_bytes());
        page[56..56 + producer.len()].copy_from_slice(producer);
        let crc = crc32c::crc32c(&page[..HEADER_CRC]);
        page[HEADER_CRC..HEADER_CRC + 4].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// `None` where the page is not a header that this version wrote.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let page = bytes.get(..FRAMES)?;
        let sound = &page[..8] == MAGIC
            && word(page, 8)? == VERSION
            && word(page, HEADER_CRC)? == crc32c::crc32c(&page[..HEADER_CRC]);
        let len = word(page, 48)? as usize;
        if !sound || len > MAX_PRODUCER {
            return None;
        }
        Some(Self {
            number: long(page, 16)?,
            salt: long(page, 24)?,
            boot: long(page, 32)?,
            epoch: long(page, 40)?,
            producer: String::from_utf8(page[56..56 + len].to_vec()).ok()?,
        })
    }
}

impl Seal {
    pub(super) const LEN: usize = 28;

    pub(super) fn encode(&self, salt: u64) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.events.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.end.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.next.to_le_bytes());
        let crc = crc32c::crc32c_append(seed(salt), &bytes[..24]);
        bytes[24..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` where the segment was not sealed.
    pub(super) fn decode(page: &[u8], salt: u64) -> Option<Self> {
        let bytes = page.get(SEAL..SEAL + Self::LEN)?;
        if word(bytes, 24)? != crc32c::crc32c_append(seed(salt), &bytes[..24]) {
            return None;
        }
        let seal =
            Self { events: word(bytes, 0)?, end: word(bytes, 4)?, first: long(bytes, 8)?, next: long(bytes, 16)? };
        (seal.first <= seal.next && seal.end as usize >= FRAMES).then_some(seal)
    }
}

/// The number that the first place of a segment was given with. Known before there is a frame,
/// for whoever has that place may die before it has written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start(pub(super) u64);

impl Start {
    pub(super) const LEN: usize = 12;

    pub(super) fn encode(self, salt: u64) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        let crc = crc32c::crc32c_append(seed(salt), &bytes[..8]);
        bytes[8..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` where nothing was written to the segment, or by a version that did not say.
    pub(super) fn decode(page: &[u8], salt: u64) -> Option<Self> {
        let bytes = page.get(START..START + Self::LEN)?;
        (word(bytes, 8)? == crc32c::crc32c_append(seed(salt), &bytes[..8])).then_some(Self(long(bytes, 0)?))
    }
}

/// What the CRCs of a segment begin with.
pub(super) fn seed(salt: u64) -> u32 {
    crc32c::crc32c(&salt.to_le_bytes())
}

/// The part of a frame's CRC that needs no number.
pub(super) fn body_crc(seed: u32, body: &[u8]) -> u32 {
    crc32c::crc32c_append(seed, body)
}

/// A frame's CRC, from that of its body.
pub(super) fn frame_crc(body_crc: u32, len: u32, sequence: u64) -> u32 {
    let mut rest = [0; 12];
    rest[..4].copy_from_slice(&len.to_le_bytes());
    rest[4..].copy_from_slice(&sequence.to_le_bytes());
    crc32c::crc32c_append(body_crc, &rest)
}

/// How much room the frame of an event takes.
pub(super) fn frame_len(body_len: usize) -> usize {
    (FRAME_HEADER + body_len).next_multiple_of(8)
}

/// What is found in a segment, from front to back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    Event {
        sequence: u64,
        body: &'a [u8],
    },
    /// Bytes that are no frame, and frames behind them.
    Gap {
        /// The numbers that are missing there, the second not included; none where the gap
        /// is at the front and nobody has said which number is first.
        numbers: (u64, u64),
        /// Whether its first length was never written: no event was ever there, if the segment
        /// was not sealed and the machine has not lost pages.
        unfinished: bool,
    },
}

/// Walks a segment's frames. Reads nothing outside of `bytes`, allocates nothing, and ends.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    bytes: &'a [u8],
    /// Where the next frame is looked for.
    pub(super) at: usize,
    seed: u32,
    max_body: usize,
    /// The number that the next frame has at least.
    next: Option<u64>,
}

impl<'a> Frames<'a> {
    /// Over a whole segment file; or from where another walk stopped, with the number that it
    /// would have looked for.
    pub(super) fn new(bytes: &'a [u8], salt: u64, from: Option<(usize, u64)>, max_body: usize) -> Self {
        let (at, next) = from.unzip();
        Self { bytes, at: at.unwrap_or(FRAMES), seed: seed(salt), max_body, next }
    }

    /// The frame at an offset, if there is one: its number, its event and its end.
    fn frame(&self, at: usize) -> Option<(u64, &'a [u8], usize)> {
        let len = word(self.bytes, at)?;
        if len == 0 || len as usize > self.max_body {
            return None;
        }
        let sequence = long(self.bytes, at + 8)?;
        if let Some(next) = self.next
            && (sequence < next || sequence - next > MAX_GAP)
        {
            return None;
        }
        let start = at + FRAME_HEADER;
        let body = self.bytes.get(start..start + len as usize)?;
        let crc = frame_crc(body_crc(self.seed, body), len, sequence);
        (word(self.bytes, at + 4)? == crc).then_some((sequence, body, at + frame_len(body.len())))
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        let at = self.at;
        if let Some((sequence, body, end)) = self.frame(at) {
            self.at = end;
            self.next = sequence.checked_add(1);
            return Some(Item::Event { sequence, body });
        }
        // A torn tail has no frame behind it, and is cut by that.
        let mut found = at.saturating_add(8);
        let sequence = loop {
            if found > self.bytes.len().saturating_sub(FRAME_HEADER) {
                return None;
            }
            if let Some((sequence, ..)) = self.frame(found) {
                break sequence;
            }
            found += 8;
        };
        let unfinished = word(self.bytes, at) == Some(0);
        self.at = found;
        let first = self.next.replace(sequence).unwrap_or(sequence);
        Some(Item::Gap { numbers: (first, sequence), unfinished })
    }
}

#[cfg(test)]
mod tests;
