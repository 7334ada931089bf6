//! A segment that is being written: a file in memory, shared with the kernel.
//!
//! All of the crate's `unsafe` is here. What it rests on:
//!
//! - **The mapping is as long as the file.** The file was made in full before (its blocks are
//!   there, not only its length), nobody else opens it (the folder is locked, and private to
//!   this user), and it is never shortened while it is mapped. So no access leaves it, and
//!   none finds a hole that a full disk could not fill (`SIGBUS`). What is left is a disk
//!   that fails under a page which the kernel has given back, a file system that copies on
//!   write and is full (ZFS, bcachefs, Btrfs after a snapshot), and somebody who shortens the
//!   file against our lock: each ends the process, as it would end any program with a mapped
//!   file.
//! - **Every byte has one writer.** [`Live::reserve`] hands out ranges that never overlap
//!   (an atomic add), and a [`Reserved`] is used up by its one write.
//! - **Nobody reads what is being written.** A frame's length is stored last, with `Release`;
//!   readers load it with `Acquire` and look at the rest only if it is there. After that
//!   nothing writes to the frame again.

#![allow(unsafe_code, reason = "mapped memory; the invariants are above")]

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use super::format::{FRAME_HEADER, FRAMES, SEAL, START, Seal, Start, frame_len};

const PAGE: usize = 4096;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Live {
    base: NonNull<u8>,
    len: usize,
    file: Arc<File>,
    /// Where the next frame begins.
    tail: AtomicUsize,
    /// Frames that have a place, and those of them that are written.
    reserved: AtomicU32,
    committed: AtomicU32,
    begun: AtomicBool,
    sealed: AtomicBool,
}

// SAFETY: the pointer is to memory that lives as long as the value; access to it from several
// threads is as the module's documentation says.
unsafe impl Send for Live {}
// SAFETY: as above.
unsafe impl Sync for Live {}

/// A place for one frame, and the duty to write it.
#[derive(Debug)]
#[must_use]
pub(super) struct Reserved {
    live: Arc<Live>,
    at: usize,
    body_len: usize,
}

impl Live {
    /// Maps a file that is `len` bytes long and has all its blocks, and faults it in, so that
    /// writing to it later costs no visit to the kernel. The file's first page is its header.
    pub(super) fn map(file: Arc<File>, len: usize) -> io::Result<Self> {
        if len <= FRAMES || !len.is_multiple_of(PAGE) || file.metadata()?.len() != len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a segment of another length than its file's"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base =
            unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)? };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        let live = Self {
            base,
            len,
            file,
            tail: AtomicUsize::new(FRAMES),
            reserved: AtomicU32::new(0),
            committed: AtomicU32::new(0),
            begun: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
        };
        for at in std::iter::once(START).chain((FRAMES..len).step_by(PAGE)) {
            // SAFETY: within the mapping, aligned, and nobody else has it yet. It is zero, and
            // stays zero; the access must happen, so it is volatile.
            unsafe { live.base.add(at).cast::<u32>().write_volatile(0) };
        }
        Ok(live)
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the next frame would begin.
    pub(super) fn tail(&self) -> usize {
        self.tail.load(Acquire)
    }

    /// How many frames have a place.
    pub(super) fn events(&self) -> u32 {
        self.reserved.load(Acquire)
    }

    /// A place for the frame of an event, if there is room.
    pub(super) fn reserve(self: &Arc<Self>, body_len: usize) -> Option<Reserved> {
        let len = frame_len(body_len);
        let add = |tail: usize| tail.checked_add(len).filter(|end| *end <= self.len);
        let at = self.tail.fetch_update(AcqRel, Acquire, add).ok()?;
        self.reserved.fetch_add(1, Relaxed);
        Some(Reserved { live: Arc::clone(self), at, body_len })
    }

    /// Whether every frame that has a place is written. Asked while none is given out: under the
    /// lock, or once the segment was left.
    pub(super) fn is_quiet(&self) -> bool {
        self.committed.load(Acquire) == self.reserved.load(Acquire)
    }

    /// The frame at an offset that is a frame's, once it is written: its number, its event,
    /// and where the next one begins.
    pub(super) fn frame(&self, at: usize) -> Option<(u64, &[u8], usize)> {
        if at < FRAMES || !at.is_multiple_of(8) || at + FRAME_HEADER > self.len {
            return None;
        }
        // SAFETY: within the mapping and aligned; this word is only ever accessed atomically
        // once the segment is shared.
        let len = unsafe { AtomicU32::from_ptr(self.base.add(at).cast().as_ptr()) }.load(Acquire);
        let len = u32::from_le(len) as usize;
        let start = at + FRAME_HEADER;
        if len == 0 || start + len > self.len {
            return None;
        }
        // SAFETY: within the mapping; the length is there, so all of the frame was written
        // before, and nothing writes to it again while the mapping lives.
        let (sequence, body) = unsafe {
            let sequence = self.base.add(at + 8).cast::<u64>().read();
            (u64::from_le(sequence), std::slice::from_raw_parts(self.base.add(start).as_ptr(), len))
        };
        Some((sequence, body, at + frame_len(len)))
    }

    /// Says in the file with which number it begins, before a place in it is given. Only the
    /// first call does anything.
    pub(super) fn begin(&self, start: Start, salt: u64) {
        if self.begun.swap(true, AcqRel) {
            return;
        }
        let bytes = start.encode(salt);
        // SAFETY: as in `seal`, beside it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(START).as_ptr(), bytes.len()) };
    }

    /// Says in the file what it holds. Only the first call does anything.
    pub(super) fn seal(&self, seal: &Seal, salt: u64) {
        if self.sealed.swap(true, AcqRel) {
            return;
        }
        let bytes = seal.encode(salt);
        // SAFETY: within the first page, where no frame is and nothing is read through the
        // mapping; the flag above lets one thread through, once.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(SEAL).as_ptr(), bytes.len()) };
    }

    /// Waits until everything below `to` is on the disk. Only whole pages up to there are
    /// written, so that those behind stay ready to be written to.
    pub(super) fn sync(&self, to: usize) -> io::Result<()> {
        let len = to.next_multiple_of(PAGE).min(self.len);
        // SAFETY: the range is part of the mapping; nothing is changed by it.
        unsafe { msync(self.base.as_ptr().cast(), len, MsyncFlags::SYNC) }?;
        Ok(())
    }
}

impl Reserved {
    /// Writes the frame; from then on it is there, whatever becomes of this process.
    pub(super) fn write(self, sequence: u64, crc: u32, body: &[u8]) {
        let len = self.body_len.min(body.len());
        debug_assert_eq!(len, body.len());
        let live = &*self.live;
        // SAFETY: the range [at, at + frame_len) is within the mapping and belongs to this
        // value alone, which ends here; readers look at it only after the length is stored.
        unsafe {
            let at = live.base.add(self.at);
            at.add(4).cast::<u32>().write(crc.to_le());
            at.add(8).cast::<u64>().write(sequence.to_le());
            ptr::copy_nonoverlapping(body.as_ptr(), at.add(FRAME_HEADER).as_ptr(), len);
            AtomicU32::from_ptr(at.cast().as_ptr()).store((len as u32).to_le(), Release);
        }
        live.committed.fetch_add(1, Release);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no reference into it outlives it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{Frames, Header, Item, body_crc, frame_crc, seed};
    use super::*;
    use std::io::{Read, Seek, Write};

    const LEN: usize = 256 * 1024;

    fn live() -> Arc<Live> {
        let mut file = tempfile::tempfile().unwrap();
        let header = Header { number: 1, salt: 9, boot: 0, epoch: 1, producer: "p".into() };
        file.write_all(&header.encode()).unwrap();
        file.write_all(&vec![0; LEN - FRAMES]).unwrap();
        Arc::new(Live::map(Arc::new(file), LEN).unwrap())
    }

    fn put(live: &Arc<Live>, sequence: u64, body: &[u8]) -> bool {
        let crc = frame_crc(body_crc(seed(9), body), body.len() as u32, sequence);
        live.reserve(body.len()).map(|place| place.write(sequence, crc, body)).is_some()
    }

    #[test]
    fn frames_of_many_threads_are_in_the_file_once_written() {
        let live = live();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let live = &live;
                scope.spawn(move || {
                    for n in 0..500_u64 {
                        let n = thread * 500 + n;
                        assert!(put(live, n, &n.to_le_bytes()));
                    }
                });
            }
        });
        assert!(live.is_quiet());
        let (mut at, mut seen) = (FRAMES, 0);
        while let Some((sequence, body, next)) = live.frame(at) {
            assert_eq!(sequence.to_le_bytes(), body);
            (at, seen) = (next, seen + 1);
        }
        assert_eq!((seen, at), (2_000, live.tail()));
        // Not synced: the kernel has it all the same.
        let mut bytes = Vec::new();
        let mut file = &**live.file();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        // In the order of places, so the numbers jump; each frame is sound by itself.
        let mut at = FRAMES;
        for _ in 0..2_000 {
            let mut frames = Frames::new(&bytes, 9, Some((at, 0)), 64);
            assert!(matches!(frames.next(), Some(Item::Event { .. })));
            at = frames.at;
        }
    }

    #[test]
    fn a_full_segment_has_no_place_and_one_not_yet_written_is_not_read() {
        let live = live();
        let mut count = 0;
        while put(&live, count, &[1; 1_000]) {
            count += 1;
        }
        assert_eq!(count as usize, (LEN - FRAMES) / 1_016);
        // Smaller ones still fit.
        let place = live.reserve(8).unwrap();
        let at = place.at;
        assert!(live.frame(at).is_none() && !live.is_quiet());
        place.write(7, 0, &[2; 8]);
        assert_eq!(live.frame(at), Some((7, &[2; 8][..], at + 24)));
        assert!(live.is_quiet());
        live.sync(live.tail()).unwrap();
    }

    #[test]
    fn a_file_of_another_length_is_not_mapped() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(8192).unwrap();
        assert!(Live::map(Arc::clone(&file), 16_384).is_err());
        assert!(Live::map(file, 4_096).is_err());
    }
}
