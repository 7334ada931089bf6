//! The files of one service's spool: the trait that tests put faults under, and the real ones.
//!
//! ```text
//! FOLDER/lock                     held by the one process whose spool this is
//! FOLDER/producer                 under which name and epoch it numbers
//! FOLDER/usage/, FOLDER/audit/    a spool each:
//!     00000000000000000042.segment
//!     ledger                      how far it is acknowledged, and what it dropped
//!     rejected.jsonl              what the service refused, and why
//!     damaged/                    segments in which something could not be read
//! ```

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, IFlags, fallocate, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use super::format::{FRAMES, Header, MAX_SEGMENT};
use super::ledger;
use super::map::Live;

/// Beyond it the file of rejected events is put aside once, in place of the one before.
const MAX_REJECTED: u64 = 16 * 1024 * 1024;
/// How many damaged segments are kept; the oldest goes first.
const MAX_DAMAGED: usize = 8;

/// What a spool does with files, so that a test can let any of it fail.
pub(super) trait Files: Send + Sync + fmt::Debug {
    /// Numbers and lengths of the segments that are there, ascending.
    fn segments(&self) -> io::Result<Vec<(u64, u64)>>;
    /// A new segment with all its blocks, mapped; on disk already where that is wanted.
    /// Nothing is left of it when this fails.
    fn create(&self, header: &Header, len: usize, durable: bool) -> io::Result<Live>;
    /// At most `most` bytes of a segment, from its front.
    fn read(&self, number: u64, most: usize) -> io::Result<Vec<u8>>;
    /// Removes a segment; that it is gone already is fine.
    fn remove(&self, number: u64) -> io::Result<()>;
    /// Moves a segment to where damaged ones are kept; that it is gone already is fine.
    fn set_aside(&self, number: u64) -> io::Result<()>;
    /// Waits until the front of a mapped segment is on the disk.
    fn sync_live(&self, live: &Live, to: usize) -> io::Result<()>;
    /// Waits until all of a segment is.
    fn sync_file(&self, file: &File) -> io::Result<()>;
    /// Waits until names are.
    fn sync_folder(&self) -> io::Result<()>;
    fn read_ledger(&self) -> io::Result<Vec<u8>>;
    fn write_ledger(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Appends lines to the file of rejected events.
    fn append_rejected(&self, lines: &[u8]) -> io::Result<()>;
}

/// Files in a folder.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    ledger: File,
}

/// Makes a folder that only this user can look into, with all above it, such that they survive a power cut. One that is
/// there is closed to others, if it is this user's.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    let missing = folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    let missing: Vec<&Path> = missing.collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    for made in missing {
        let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    let mode = fs::metadata(folder)?.permissions().mode();
    if mode & 0o077 != 0
        && let Err(error) = fs::set_permissions(folder, Permissions::from_mode(mode & 0o7700))
    {
        // The files in it are this user's alone in any case.
        tracing::warn!(folder = %folder.display(), %error, "others can look into the spool's folder");
    }
    Ok(())
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Has an empty file written in place by Btrfs, which else puts every page that is written to
/// somewhere new. File systems that know nothing of it say so, and are left as they are.
fn write_in_place(file: &File) {
    if let Ok(flags) = ioctl_getflags(file) {
        let _ = ioctl_setflags(file, flags | IFlags::NOCOW);
    }
}

/// Gives a file its blocks and fills them with zeros. Both: reserved space may be given up to
/// others until something is written to it, and zeros alone may be put where nothing was reserved.
/// On a file system that copies on write neither helps: a page that is written to again takes
/// new room, and there is none on a full disk.
fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, to) {
        // A file system that can't: the zeros must do.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = [0; 64 * 1024];
    let mut at = from;
    while at < to {
        let len = zeros.len().min((to - at) as usize);
        file.write_all_at(&zeros[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

impl Disk {
    /// Makes what is missing.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        make_folder(&folder)?;
        make_folder(&folder.join("damaged"))?;
        let ledger = options().create(true).truncate(false).open(folder.join("ledger"))?;
        let have = ledger.metadata()?.len();
        // Once it has its room, it can be written on a full disk.
        fill(&ledger, have.min(ledger::LEN), ledger::LEN)?;
        ledger.sync_all()?;
        File::open(&folder)?.sync_all()?;
        Ok(Self { folder, ledger })
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(name(number))
    }
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether an error of reading says that what was there is lost. Any other, such as no
/// descriptor or no memory, is of the moment.
pub(super) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound)
}

/// Whether the disk itself could not read.
pub(super) fn is_disk(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// Whether there is no room, as opposed to a disk that does not work.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

pub(super) fn name(number: u64) -> String {
    format!("{number:020}.segment")
}

fn number(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_suffix(".segment")?.parse().ok()
}

impl Files for Disk {
    fn segments(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Some(number) = number(&entry.file_name()) {
                found.push((number, entry.metadata()?.len()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn create(&self, header: &Header, len: usize, durable: bool) -> io::Result<Live> {
        let path = self.path(header.number);
        let made = (|| {
            let file = options().create_new(true).open(&path)?;
            write_in_place(&file);
            file.write_all_at(&header.encode(), 0)?;
            fill(&file, FRAMES as u64, len as u64)?;
            if durable {
                // With its blocks written once, a later sync writes data and no metadata.
                file.sync_all()?;
                self.sync_folder()?;
            }
            Live::map(Arc::new(file), len)
        })();
        if made.is_err() {
            let _ = fs::remove_file(&path);
        }
        made
    }

    fn read(&self, number: u64, most: usize) -> io::Result<Vec<u8>> {
        let file = File::open(self.path(number))?;
        let len = file.metadata()?.len();
        if len > MAX_SEGMENT as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a segment of {len} bytes")));
        }
        let mut bytes = Vec::with_capacity(most.min(len as usize));
        file.take(most as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        unless_gone(fs::remove_file(self.path(number)))
    }

    fn set_aside(&self, number: u64) -> io::Result<()> {
        let folder = self.folder.join("damaged");
        let mut kept: Vec<PathBuf> =
            fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
        kept.sort_unstable();
        for oldest in kept.iter().take((kept.len() + 1).saturating_sub(MAX_DAMAGED)) {
            fs::remove_file(oldest)?;
        }
        unless_gone(fs::rename(self.path(number), folder.join(name(number))))
    }

    fn sync_live(&self, live: &Live, to: usize) -> io::Result<()> {
        live.sync(to)
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn read_ledger(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; ledger::LEN as usize];
        self.ledger.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write_ledger(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.ledger.write_all_at(bytes, at)
    }

    fn append_rejected(&self, lines: &[u8]) -> io::Result<()> {
        let path = self.folder.join("rejected.jsonl");
        if fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_REJECTED) {
            fs::rename(&path, self.folder.join("rejected.old.jsonl"))?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        // What a full disk, or a death in the middle, has left of a line is a line of its own.
        let mut last = [b'\n'];
        if let Some(at) = file.metadata()?.len().checked_sub(1) {
            file.read_exact_at(&mut last, at)?;
        }
        if last != [b'\n'] {
            file.write_all(b"\n")?;
        }
        file.write_all(lines)?;
        file.sync_data()
    }
}
