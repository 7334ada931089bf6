//! What was signed, outside the database: a file of lines, each a log and the note of a checkpoint of it.
//!
//! Lines are added and synced before a checkpoint is shown. A line that was torn off by a crash was shown to nobody, and
//! is cut. When the file has grown to several times what its newest lines take, it is written anew beside itself and
//! put in its own place; so it is after a failure too, for what a failed sync has left in a file is not known.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::{own_file, sync_folder};
use crate::checkpoint::{Checkpoint, Note};

const NAME: &str = "checkpoints";
/// A file that is smaller is left as it is.
const SMALL: u64 = 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    instance_id: std::borrow::Cow<'a, str>,
    note: std::borrow::Cow<'a, str>,
}

/// The last checkpoint of a log.
#[derive(Debug)]
struct Kept {
    checkpoint: Checkpoint,
    /// Its line.
    line: String,
}

/// The open file.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    origin: String,
    file: File,
    /// Bytes of the file, all whole lines.
    len: u64,
    kept: BTreeMap<String, Kept>,
    failed: bool,
    /// Held as long as this: one process for each file.
    _lock: Lock,
}

/// A lock that is let go of at once: a file that is merely closed stays locked while a child process that is being
/// started still has it.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // What cannot be unlocked is closed.
        let _ = self.0.unlock();
    }
}

impl State {
    /// Opens the file, or makes it. One that another process uses, or with a line that cannot be read, is refused.
    pub(super) fn open(folder: &Path, origin: &str) -> anyhow::Result<Self> {
        let lock = own_file(&folder.join("lock"))?;
        lock.try_lock()
            .map_err(|_| anyhow!("another process signs with it; each replica has a log.folder of its own"))?;
        let lock = Lock(lock);
        let path = folder.join(NAME);
        let mut file = own_file(&path)?;
        let text = std::fs::read(&path)?;
        let (kept, whole) = read_all(&text, origin, &path)?;
        if whole < text.len() {
            tracing::warn!(file = %path.display(), "cut off the beginning of a line that a crash had left");
            file.set_len(whole as u64)?;
            file.sync_all()?;
        }
        sync_folder(folder)?;
        file.seek(SeekFrom::End(0))?;
        let mut state =
            Self { path, origin: origin.to_owned(), file, len: whole as u64, kept, failed: false, _lock: lock };
        if state.is_wasteful() {
            state.rewrite()?;
        }
        Ok(state)
    }

    /// The last checkpoint of a log.
    pub(super) fn last(&self, instance_id: &str) -> Option<&Checkpoint> {
        self.kept.get(instance_id).map(|kept| &kept.checkpoint)
    }

    /// Whether nothing was signed.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The last ones of all.
    pub(super) fn all(&self) -> Vec<(String, Checkpoint)> {
        self.kept.iter().map(|(instance, kept)| (instance.clone(), kept.checkpoint.clone())).collect()
    }

    /// Adds notes; when it returns, they are on disk. Of a note of another log, none is added.
    pub(super) fn append(&mut self, notes: &[(String, String)]) -> anyhow::Result<()> {
        if notes.is_empty() {
            return Ok(());
        }
        if self.failed {
            self.rewrite()?;
            self.failed = false;
        }
        let mut text = String::new();
        let mut added = Vec::new();
        for (instance_id, note) in notes {
            let mut line = serde_json::to_string(&Line { instance_id: instance_id.into(), note: note.into() })?;
            line.push('\n');
            text.push_str(&line);
            added.push(read(line.as_bytes(), &self.origin)?);
        }
        if let Err(error) = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()) {
            self.failed = true;
            return Err(error.into());
        }
        self.len += text.len() as u64;
        added.into_iter().for_each(|(instance_id, line)| put(&mut self.kept, instance_id, line));
        if self.is_wasteful()
            && let Err(error) = self.rewrite()
        {
            // What was asked for is on disk; the next one tries again.
            self.failed = true;
            tracing::warn!(%error, file = %self.path.display(), "cannot be written anew");
        }
        Ok(())
    }

    fn is_wasteful(&self) -> bool {
        let needed: usize = self.kept.values().map(|kept| kept.line.len()).sum();
        self.len > SMALL.max(4 * needed as u64)
    }

    fn rewrite(&mut self) -> anyhow::Result<()> {
        let new = self.path.with_added_extension("new");
        let text: String = self.kept.values().map(|kept| kept.line.as_str()).collect();
        let mut file = own_file(&new)?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent() {
            sync_folder(folder)?;
        }
        (self.file, self.len) = (file, text.len() as u64);
        Ok(())
    }
}

/// The last of each log, and the bytes of whole lines.
fn read_all(text: &[u8], origin: &str, path: &Path) -> anyhow::Result<(BTreeMap<String, Kept>, usize)> {
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut kept = BTreeMap::new();
    for (number, line) in (1..).zip(text[..whole].split_inclusive(|byte| *byte == b'\n')) {
        let unreadable = || format!("line {number} of {} is no checkpoint of {origin}", path.display());
        let (instance_id, line) = read(line, origin).with_context(unreadable)?;
        put(&mut kept, instance_id, line);
    }
    Ok((kept, whole))
}

/// The last of each log in a folder that nobody may be using; none where there is no file.
pub(super) fn there(folder: &Path, origin: &str) -> anyhow::Result<Vec<(String, Checkpoint)>> {
    let path = folder.join(NAME);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let (kept, _) = read_all(&text, origin, &path)?;
    Ok(kept.into_iter().map(|(instance, kept)| (instance, kept.checkpoint)).collect())
}

fn read(line: &[u8], origin: &str) -> anyhow::Result<(String, Kept)> {
    let text = std::str::from_utf8(line)?;
    let line: Line<'_> = serde_json::from_str(text)?;
    let checkpoint = Checkpoint::parse(line.note.parse::<Note>()?.text())?;
    if checkpoint.origin != format!("{origin}/{}", line.instance_id) {
        bail!("its origin is {:?}", checkpoint.origin);
    }
    Ok((line.instance_id.into_owned(), Kept { checkpoint, line: text.to_owned() }))
}

/// The larger one stays; of the same size the newer one, which has the newer cosignature.
fn put(kept: &mut BTreeMap<String, Kept>, instance_id: String, line: Kept) {
    if kept.get(&instance_id).is_none_or(|old| old.checkpoint.size <= line.checkpoint.size) {
        kept.insert(instance_id, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{KeyKind, SigningKey};

    fn note(key: &SigningKey, instance: &str, size: u64) -> (String, String) {
        let text = Checkpoint { origin: format!("o/{instance}"), size, root: [size as u8; 32] }.text();
        (instance.to_owned(), Note::new(text.clone(), vec![key.sign(&text, 0)]).unwrap().to_string())
    }

    fn key() -> SigningKey {
        SigningKey::generate("o", KeyKind::Log).unwrap().0
    }

    fn sizes(state: &State) -> Vec<(String, u64)> {
        state.all().into_iter().map(|(instance, last)| (instance, last.size)).collect()
    }

    #[test]
    fn the_last_of_each_log_is_read_back_whatever_is_torn_off() {
        let (folder, key) = (tempfile::tempdir().unwrap(), key());
        let mut state = State::open(folder.path(), "o").unwrap();
        state.append(&[note(&key, "a", 1), note(&key, "b", 7)]).unwrap();
        let first = std::fs::metadata(folder.path().join(NAME)).unwrap().len();
        state.append(&[note(&key, "a", 5)]).unwrap();
        drop(state);
        let whole = std::fs::read(folder.path().join(NAME)).unwrap();
        for cut in first as usize..=whole.len() {
            std::fs::write(folder.path().join(NAME), &whole[..cut]).unwrap();
            let mut state = State::open(folder.path(), "o").unwrap();
            let a = if cut == whole.len() { 5 } else { 1 };
            assert_eq!(sizes(&state), [("a".to_owned(), a), ("b".to_owned(), 7)], "{cut}");
            // What comes behind a cut is whole again.
            state.append(&[note(&key, "b", 9)]).unwrap();
            drop(state);
            assert_eq!(sizes(&State::open(folder.path(), "o").unwrap())[1].1, 9);
        }
    }

    #[test]
    fn one_process_has_it_and_it_is_of_one_origin() {
        let (folder, key) = (tempfile::tempdir().unwrap(), key());
        let mut state = State::open(folder.path(), "o").unwrap();
        assert!(State::open(folder.path(), "o").unwrap_err().to_string().contains("another process"));
        state.append(&[note(&key, "a", 1)]).unwrap();
        let of_another = ("b".to_owned(), note(&key, "a", 2).1);
        assert!(state.append(&[note(&key, "a", 2), of_another]).unwrap_err().to_string().contains("\"o/a\""));
        assert_eq!(sizes(&state), [("a".to_owned(), 1)]);
        drop(state);
        let refused = format!("{:#}", State::open(folder.path(), "other").unwrap_err());
        assert!(refused.contains("line 1") && refused.contains("\"o/a\""), "{refused}");
    }

    #[test]
    fn a_line_in_the_middle_that_cannot_be_read_is_refused() {
        let (folder, key) = (tempfile::tempdir().unwrap(), key());
        let mut state = State::open(folder.path(), "o").unwrap();
        state.append(&[note(&key, "a", 1), note(&key, "b", 7)]).unwrap();
        drop(state);
        let text = std::fs::read_to_string(folder.path().join(NAME)).unwrap();
        std::fs::write(folder.path().join(NAME), text.replacen("\"note\"", "\"nose\"", 1)).unwrap();
        let refused = format!("{:#}", State::open(folder.path(), "o").unwrap_err());
        assert!(refused.contains("line 1"), "{refused}");
    }

    #[test]
    fn it_does_not_grow_with_what_is_superseded() {
        let (folder, key) = (tempfile::tempdir().unwrap(), key());
        let mut state = State::open(folder.path(), "o").unwrap();
        let batch = |first: u64| (first..first + 1_000).map(|size| note(&key, "a", size)).collect::<Vec<_>>();
        for first in 0..6 {
            state.append(&batch(first * 1_000)).unwrap();
        }
        let len = std::fs::metadata(folder.path().join(NAME)).unwrap().len();
        assert_eq!(len, state.len);
        assert!(len <= SMALL, "{len}");
        drop(state);
        assert_eq!(sizes(&State::open(folder.path(), "o").unwrap()), [("a".to_owned(), 5_999)]);
    }

    #[test]
    fn after_a_failure_the_file_is_written_anew() {
        let (folder, key) = (tempfile::tempdir().unwrap(), key());
        let mut state = State::open(folder.path(), "o").unwrap();
        state.append(&[note(&key, "a", 1)]).unwrap();
        // A file that takes no writes, as a full disk.
        state.file = File::open(folder.path().join(NAME)).unwrap();
        assert!(state.append(&[note(&key, "a", 2)]).is_err());
        assert_eq!(state.last("a").unwrap().size, 1);
        state.append(&[note(&key, "a", 3)]).unwrap();
        drop(state);
        assert_eq!(sizes(&State::open(folder.path(), "o").unwrap()), [("a".to_owned(), 3)]);
    }
}
