//! What has come of an export, in files beside its target, so that another process can go on.
//!
//! ```text
//! audit.jsonl.part         the lines so far
//! audit.jsonl.proofs.part  their proofs, where they are asked for
//! audit.jsonl.part.json    the mark: how long both are, their hashes, and the token to go on behind them
//!
//! audit.jsonl              once all is there and verified: renamed, and never anything else
//! audit.jsonl.proofs       the same, before it
//! audit.jsonl.end.json     how it ended, of the audit log, before it
//! ```
//!
//! **Write**: append to the parts; sync them; then replace the mark by renaming. So a mark never says
//! more than the disk has, and what is behind it (a torn tail, chunks since) is cut and comes again.
//!
//! **Go on**: the parts must have the bytes that the mark says, by length and hash. If not, somebody or
//! the disk changed them: an error, and not mended, for what did that does it to other files too. A
//! mark that can't be read, is of another export, or is over a day old (as long as the service
//! promises to know where it was frozen) is none, and the export begins anew.
//!
//! **One at a time**: the lines' file is locked while it is written.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Chunk, hex};
use crate::error::Error;

/// Bytes between two marks: what a killed process fetches again at most.
const MARK_BYTES: u64 = 1024 * 1024;
/// How old a mark may be.
const MARK_AGE: Duration = Duration::from_secs(24 * 3600);
/// Larger ones are none of ours.
const MAX_MARK: u64 = 64 * 1024;
/// How long another writer is waited for: one whose call was dropped still ends a write.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What is to be written, and where.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: PathBuf,
    /// Hash of the question: what is left of another one is no part of this.
    pub(crate) question: [u8; 32],
    pub(crate) resumable: bool,
    pub(crate) with_proofs: bool,
}

impl Plan {
    /// The target with something behind its name.
    fn beside(&self, suffix: &str) -> PathBuf {
        with_suffix(&self.target, suffix)
    }

    fn error(&self, message: String) -> Error {
        Error::ExportFile { target: self.target.clone(), message }
    }

    fn failed(&self, doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let (target, path) = (self.target.clone(), path.to_owned());
        move |error| Error::ExportFile { target, message: format!("{doing} {}: {error}", path.display()) }
    }
}

/// The mark, as it is in its file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Mark {
    question: String,
    /// Seconds since 1970.
    begun: u64,
    token: String,
    rows: u64,
    lines: Extent,
    proofs: Option<Extent>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Extent {
    bytes: u64,
    sha256: String,
}

/// A file that is appended to.
#[derive(Debug)]
struct Growing {
    path: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Growing {
    fn new(path: PathBuf, file: File) -> Self {
        Self { path, file, hash: Sha256::new(), bytes: 0 }
    }

    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)?;
        self.hash.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }

    fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        (self.hash, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }

    fn extent(&self) -> Extent {
        Extent { bytes: self.bytes, sha256: hex(&self.hash.clone().finalize()) }
    }

    /// Reads back what a mark says is there.
    fn read_back(&mut self, bytes: u64) -> io::Result<Extent> {
        let mut buffer = vec![0; 256 * 1024];
        while self.bytes < bytes {
            let most = buffer.len().min(usize::try_from(bytes - self.bytes).unwrap_or(usize::MAX));
            let read = self.file.read(&mut buffer[..most])?;
            if read == 0 {
                break;
            }
            self.hash.update(&buffer[..read]);
            self.bytes += read as u64;
        }
        Ok(self.extent())
    }

    /// Cuts what is behind it.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.file.seek(SeekFrom::End(0)).map(|_| ())
    }
}

/// An export that is not whole yet. All of it blocks.
#[derive(Debug)]
pub(crate) struct Partial {
    plan: Plan,
    lines: Growing,
    proofs: Option<Growing>,
    begun: u64,
    rows: u64,
    token: String,
    /// Bytes since the last mark.
    unmarked: u64,
}

impl Partial {
    /// Goes on where an earlier call has left off, or begins.
    pub(crate) fn open(plan: Plan) -> Result<Self, Error> {
        if plan.target.file_name().is_none() {
            return Err(plan.error("it names no file".into()));
        }
        let path = plan.beside(".part");
        let lines = Growing::new(path.clone(), locked(&path).map_err(plan.failed("open", &path))?);
        let proofs = match plan.with_proofs {
            false => None,
            true => {
                let path = plan.beside(".proofs.part");
                let file = appendable(&path).map_err(plan.failed("open", &path))?;
                Some(Growing::new(path, file))
            }
        };
        let (begun, rows, token) = (now(), 0, String::new());
        let mut partial = Self { plan, lines, proofs, begun, rows, token, unmarked: 0 };
        match partial.mark()? {
            Some(mark) => partial.go_on(mark)?,
            None => partial.begin_anew()?,
        }
        Ok(partial)
    }

    /// The mark, where this export can go on from it.
    fn mark(&self) -> Result<Option<Mark>, Error> {
        let path = self.mark_path();
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_MARK).read_to_end(&mut text)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(self.plan.failed("read", &path))?,
        };
        let Ok(mark) = serde_json::from_slice::<Mark>(&text) else {
            tracing::warn!(file = %path.display(), "the mark of an export can't be read; it begins anew");
            return Ok(None);
        };
        let is_this = mark.question == hex(&self.plan.question) && mark.proofs.is_some() == self.proofs.is_some();
        let is_young = now().saturating_sub(mark.begun) < MARK_AGE.as_secs();
        // If not, it was renamed already, or taken away.
        let is_there = |part: &Growing| part.file.metadata().is_ok_and(|file| file.len() > 0);
        let are_there = is_there(&self.lines) && self.proofs.as_ref().is_none_or(is_there);
        Ok(Some(mark).filter(|_| self.plan.resumable && is_this && is_young && are_there))
    }

    fn go_on(&mut self, mark: Mark) -> Result<(), Error> {
        let files = [(Some(&mut self.lines), Some(&mark.lines)), (self.proofs.as_mut(), mark.proofs.as_ref())];
        for (part, marked) in files {
            let (Some(part), Some(marked)) = (part, marked) else { continue };
            let found = part.read_back(marked.bytes).map_err(self.plan.failed("read", &part.path))?;
            if found != *marked {
                return Err(self.plan.error(format!(
                    "{} is not as it was written: its first {} bytes had the SHA-256 {}, and its first {} have {}; \
                     remove it to begin anew",
                    part.path.display(),
                    marked.bytes,
                    marked.sha256,
                    found.bytes,
                    found.sha256
                )));
            }
            part.cut().map_err(self.plan.failed("cut", &part.path))?;
        }
        (self.begun, self.rows, self.token) = (mark.begun, mark.rows, mark.token);
        Ok(())
    }

    /// Forgets all that has come.
    pub(crate) fn begin_anew(&mut self) -> Result<(), Error> {
        self.forget()?;
        for part in [Some(&mut self.lines), self.proofs.as_mut()].into_iter().flatten() {
            part.empty().map_err(self.plan.failed("empty", &part.path))?;
        }
        (self.begun, self.rows, self.token, self.unmarked) = (now(), 0, String::new(), 0);
        Ok(())
    }

    /// No later call goes on from here.
    pub(crate) fn forget(&mut self) -> Result<(), Error> {
        let path = self.mark_path();
        unless_gone(fs::remove_file(&path)).map_err(self.plan.failed("remove", &path))
    }

    /// Appends a chunk.
    pub(crate) fn take(&mut self, chunk: Chunk) -> Result<(), Error> {
        if let Some(proofs) = &mut self.proofs {
            let [lines, proven] = [&chunk.data, &chunk.proofs].map(|text| text.iter().filter(|byte| **byte == b'\n'));
            let (lines, proven) = (lines.count(), proven.count());
            if lines != proven {
                return Err(Error::Protocol(format!("a chunk came with {lines} lines and {proven} proofs")));
            }
            proofs.append(&chunk.proofs).map_err(self.plan.failed("write", &proofs.path))?;
        }
        self.lines.append(&chunk.data).map_err(self.plan.failed("write", &self.lines.path))?;
        self.unmarked += (chunk.data.len() + chunk.proofs.len()) as u64;
        (self.rows, self.token) = (chunk.rows, chunk.token);
        if self.unmarked >= MARK_BYTES { self.keep() } else { Ok(()) }
    }

    /// Makes what has come durable, and marks it.
    pub(crate) fn keep(&mut self) -> Result<(), Error> {
        for part in [Some(&self.lines), self.proofs.as_ref()].into_iter().flatten() {
            part.file.sync_data().map_err(self.plan.failed("sync", &part.path))?;
        }
        self.unmarked = 0;
        if !self.plan.resumable || self.token.is_empty() {
            return Ok(());
        }
        let mark = Mark {
            question: hex(&self.plan.question),
            begun: self.begun,
            token: self.token.clone(),
            rows: self.rows,
            lines: self.lines.extent(),
            proofs: self.proofs.as_ref().map(Growing::extent),
        };
        let text = serde_json::to_vec(&mark).map_err(|error| self.plan.error(error.to_string()))?;
        self.replace(&self.mark_path(), &text)
    }

    /// Puts the verified export under its name.
    pub(crate) fn finish(mut self, end: Option<Vec<u8>>) -> Result<(), Error> {
        self.keep()?;
        let target = self.plan.target.clone();
        if end.is_some() || self.proofs.is_some() {
            // Three names can't be changed at once, and an export is never beside another one's end and proofs.
            unless_gone(fs::remove_file(&target)).map_err(self.plan.failed("replace", &target))?;
        }
        if let Some(proofs) = &self.proofs {
            self.rename(&proofs.path, &self.plan.beside(".proofs"))?;
        }
        if let Some(end) = end {
            self.replace(&self.plan.beside(".end.json"), &end)?;
        }
        self.rename(&self.lines.path, &target)?;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(self.plan.failed("sync", folder))?;
        self.forget()
    }

    /// Writes a small file whole or not at all.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let new = with_suffix(path, ".new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_data()
        };
        write().map_err(self.plan.failed("write", &new))?;
        self.rename(&new, path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        fs::rename(from, to).map_err(self.plan.failed("rename", from))
    }

    fn mark_path(&self) -> PathBuf {
        self.plan.beside(".part.json")
    }

    /// Behind which it goes on; empty at the start.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lines.bytes
    }

    pub(crate) fn sha256(&self) -> [u8; 32] {
        self.lines.hash.clone().finalize().into()
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

fn appendable(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// The file, for this one alone.
fn locked(path: &Path) -> io::Result<File> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        let file = appendable(path)?;
        match file.try_lock() {
            // If it has another name by now, it is a whole export.
            Ok(()) if is_at(&file, path)? => return Ok(file),
            Ok(()) | Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another export writes it"));
        }
        thread::sleep(LOCK_PAUSE);
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let file = file.metadata()?;
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        there => there.map(|there| (there.dev(), there.ino()) == (file.dev(), file.ino())),
    }
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
