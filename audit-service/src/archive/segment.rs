//! Lines of a segment, written and read: zstd over canonical JSON, a line an entry.

use std::io::{self, BufRead as _, BufReader, Cursor, Read as _, Write as _};

use sha2::{Digest as _, Sha256};

use crate::canonical;
use crate::event::Entry;
use crate::merkle::Hash;

use super::{SEGMENT_BYTES, SEGMENT_ENTRIES};

/// Packs events of gateways to about a tenth, as fast as a disk takes them.
const LEVEL: i32 = 9;
/// A line is an entry, which is far below this.
const MAX_LINE_BYTES: u64 = 1024 * 1024;
/// Lines that are read at once.
const PAGE_BYTES: usize = 512 * 1024;

/// A segment in the making.
pub(crate) struct SegmentBuilder {
    lines: zstd::stream::write::Encoder<'static, Vec<u8>>,
    sha256: Sha256,
    bytes: u64,
    built: Built,
}

/// A segment's lines, and what is in them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Built {
    /// The object.
    pub(crate) data: Vec<u8>,
    /// Over the lines.
    pub(crate) lines_sha256: [u8; 32],
    /// Of each entry.
    pub(crate) leaves: Vec<Hash>,
    /// The first and the last time, of recording and of occurrence.
    pub(crate) recorded_us: Option<(i64, i64)>,
    pub(crate) occurred_us: Option<(i64, i64)>,
}

impl SegmentBuilder {
    pub(crate) fn new() -> io::Result<Self> {
        let mut lines = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
        lines.include_checksum(true)?;
        Ok(Self { lines, sha256: Sha256::new(), bytes: 0, built: Built::default() })
    }

    /// Adds the next entry.
    pub(crate) fn push(&mut self, line: &str, entry: &Entry) -> io::Result<()> {
        for part in [line, "\n"] {
            self.lines.write_all(part.as_bytes())?;
            self.sha256.update(part.as_bytes());
            self.bytes += part.len() as u64;
        }
        self.built.leaves.push(canonical::leaf_hash(line));
        for (times, us) in [
            (&mut self.built.recorded_us, entry.recorded_at_us),
            (&mut self.built.occurred_us, entry.event.occurred_at_us),
        ] {
            let (first, last) = times.unwrap_or((us, us));
            *times = Some((first.min(us), last.max(us)));
        }
        Ok(())
    }

    pub(crate) fn entries(&self) -> u64 {
        self.built.leaves.len() as u64
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries() >= SEGMENT_ENTRIES || self.bytes >= SEGMENT_BYTES
    }

    pub(crate) fn finish(self) -> io::Result<Built> {
        Ok(Built { data: self.lines.finish()?, lines_sha256: self.sha256.finalize().into(), ..self.built })
    }
}

/// The lines of a segment, one after another.
pub(crate) struct Lines {
    lines: BufReader<zstd::stream::read::Decoder<'static, BufReader<Cursor<Vec<u8>>>>>,
}

impl Lines {
    pub(crate) fn new(data: Vec<u8>) -> io::Result<Self> {
        Ok(Self { lines: BufReader::new(zstd::stream::read::Decoder::new(Cursor::new(data))?) })
    }

    /// The next line, without its line feed; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        self.lines.by_ref().take(MAX_LINE_BYTES).read_line(&mut line)?;
        match line.pop() {
            None => Ok(None),
            Some('\n') => Ok(Some(line)),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a line has no end, or is too long")),
        }
    }

    /// The next lines; none at the end.
    pub(crate) fn page(&mut self) -> io::Result<Vec<String>> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        while bytes < PAGE_BYTES
            && let Some(line) = self.next()?
        {
            bytes += line.len();
            page.push(line);
        }
        Ok(page)
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}
