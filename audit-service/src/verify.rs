//! Verifying an export without a server: what it holds against what was signed, by a key that was told another way.
//!
//! ```text
//! notes ─▶ signatures by pinned keys ─▶ checkpoints ─┐
//! end ─▶ heads, each with a proof up to a checkpoint ┴▶ sizes and roots ─┐
//! lines ─▶ leaf hashes ─▶ by log and sequence ─▶ roots at those sizes ───┴─▶ findings ─▶ verdict
//! ```
//!
//! It says what it found and how far the evidence reaches; what nobody signed, it does not call valid. Evidence is taken
//! before the lines, so that of the lines only roots are held: memory is the same for ten entries and for ten million.

mod archived;
mod end;
mod forest;
mod log;
mod producers;
mod report;
mod rows;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _};

use audit_proof::{NotBelieved, Signers, signed_by};
use sha2::{Digest as _, Sha256};

use crate::archive::Manifest;
use crate::canonical;
use crate::checkpoint::{Checkpoint, KeyKind, Note, VerifierKey};
use crate::event::Entry;
use crate::merkle::verify_consistency;

use forest::Subtree;
use log::{Log, Root};

pub use audit_proof::{PinnedKey, WrongPin};
pub use end::{End, Head};
pub use report::{Report, Verdict};

/// A line is an entry, whose event has 64 KiB at most.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Keys of logs with different names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("keys of the logs {one:?} and {other:?}: an export is of one deployment, allowed are the keys of one name")]
pub struct SeveralLogs {
    one: String,
    other: String,
}

/// An export that is being verified.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<PinnedKey>,
    logs: BTreeMap<String, Log>,
    lines: u64,
    sha256: Sha256,
    end: Option<End>,
    unbelieved: u64,
    filtered: bool,
    report: Report,
}

impl Verifier {
    /// Believes these keys and no others. Without any, nothing is established.
    ///
    /// Lines do not say of which deployment they are, only of which instance: a key of another deployment, which may
    /// have an instance of the same name, would vouch for them too.
    pub fn new(keys: impl IntoIterator<Item = impl Into<PinnedKey>>) -> Result<Self, SeveralLogs> {
        let keys: Vec<PinnedKey> = keys.into_iter().map(Into::into).collect();
        let mut names = keys.iter().map(|pinned| &pinned.key).filter(|key| key.kind() == KeyKind::Log);
        if let Some(one) = names.next().map(VerifierKey::name)
            && let Some(other) = names.map(VerifierKey::name).find(|name| *name != one)
        {
            return Err(SeveralLogs { one: one.to_owned(), other: other.to_owned() });
        }
        Ok(Self {
            keys,
            logs: BTreeMap::new(),
            lines: 0,
            sha256: Sha256::new(),
            end: None,
            unbelieved: 0,
            filtered: false,
            report: Report::default(),
        })
    }

    fn log(&mut self, instance: &str) -> &mut Log {
        // Looked up for every line: a name is copied for the first of a log alone.
        if !self.logs.contains_key(instance) {
            self.logs.insert(instance.to_owned(), Log::default());
        }
        self.logs.entry(instance.to_owned()).or_default()
    }

    /// Takes a checkpoint's note. Before the lines, whose roots are then made over as many as it is.
    pub fn checkpoint(&mut self, note: &str) {
        if let Some((instance, checkpoint, at_s)) = self.believed(note) {
            self.signed(&instance, &checkpoint, Root { at_s, ..Root::of(&checkpoint) });
        }
    }

    /// Which log a note is of, and what it says of it, if pinned keys have signed it.
    fn believed(&mut self, note: &str) -> Option<(String, Checkpoint, Option<u64>)> {
        let parsed = note.parse::<Note>().map_err(|error| error.to_string());
        let parsed = parsed.and_then(|note| match Checkpoint::parse(note.text()) {
            Ok(checkpoint) => Ok((note, checkpoint)),
            Err(error) => Err(error.to_string()),
        });
        let (note, checkpoint) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                self.report.found(Verdict::Altered, format!("a checkpoint cannot be read: {error}"));
                return None;
            }
        };
        match signed_by(&self.keys, &note, &checkpoint) {
            Ok(Signers { instance, at_s }) => Some((instance, checkpoint, at_s)),
            Err(NotBelieved::Nobody) => {
                self.unbelieved += 1;
                None
            }
            Err(error) => {
                let what = format!("the checkpoint of {} over {} entries: {error}", checkpoint.origin, checkpoint.size);
                self.report.found(Verdict::Altered, what);
                None
            }
        }
    }

    /// Takes what was signed of a log.
    fn signed(&mut self, instance: &str, checkpoint: &Checkpoint, root: Root) {
        let size = checkpoint.size;
        if !self.log(instance).know(size, root) {
            let what = format!("log {instance:?}: two roots were signed over {size} entries, so two histories were");
            self.report.found(Verdict::Altered, what);
        }
    }

    /// Takes the export's end message, with what connects it with a checkpoint. Before the lines.
    pub fn end(&mut self, end: End) {
        for (instance, head) in &end.heads {
            // Of a log in which there were entries, no line may be left.
            self.log(instance).cut(head.size);
            let Some(note) = &head.checkpoint else { continue };
            let Some((of, checkpoint, at_s)) = self.believed(note) else { continue };
            let root = head.root.as_slice().try_into().ok().filter(|_| of == *instance);
            let goes_on = root.filter(|root| {
                verify_consistency(head.size, checkpoint.size, root, &checkpoint.root, &head.consistency).is_ok()
            });
            match goes_on {
                Some(root) => {
                    let at_end = Checkpoint { size: head.size, root, ..checkpoint.clone() };
                    self.signed(instance, &checkpoint, Root { at_s, beyond: true, ..Root::of(&checkpoint) });
                    self.signed(instance, &at_end, Root { at_s, ..Root::of(&at_end) });
                }
                None => {
                    let what = format!(
                        "log {instance:?}: what was signed over {} entries does not begin with the {} of the export",
                        checkpoint.size, head.size
                    );
                    self.report.found(Verdict::Altered, what);
                }
            }
        }
        self.end = Some(end);
    }

    /// Is told of a segment of the archive that comes behind the lines.
    pub fn expect_segment(&mut self, manifest: &Manifest) {
        let log = self.log(&manifest.instance_id);
        log.cut(manifest.first_sequence);
        log.cut(manifest.end_sequence);
        // What is wrong with it is told with its lines.
        if let Ok(Some((checkpoint, at_s))) = self.vouched(manifest) {
            self.signed(&manifest.instance_id, &checkpoint, Root { at_s, beyond: true, ..Root::of(&checkpoint) });
        }
    }

    /// Takes the lines.
    ///
    /// # Errors
    /// What the reader says.
    pub fn export(&mut self, reader: impl BufRead) -> io::Result<()> {
        self.each_line(reader, |verifier, line| {
            verifier.line(line);
            Ok(())
        })
    }

    fn each_line(
        &mut self,
        mut reader: impl BufRead,
        mut each: impl FnMut(&mut Self, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            self.sha256.update(&line);
            match line.split_last() {
                Some((b'\n', line)) => each(self, line)?,
                _ if line.len() <= MAX_LINE_BYTES => each(self, &line)?,
                _ => {
                    self.lines += 1;
                    let what = format!("line {} is longer than {MAX_LINE_BYTES} bytes, which no entry is", self.lines);
                    self.report.found(Verdict::Altered, what);
                    self.pass_over_line(&mut reader)?;
                }
            }
        }
    }

    fn pass_over_line(&mut self, reader: &mut impl BufRead) -> io::Result<()> {
        loop {
            let rest = reader.fill_buf()?;
            let end = rest.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(rest.len(), |end| end + 1);
            self.sha256.update(&rest[..taken]);
            reader.consume(taken);
            if end.is_some() || taken == 0 {
                return Ok(());
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        if let Some((line, entry)) = self.parsed(line) {
            self.entry(line, &entry);
        }
    }

    /// A line and its entry; one that has none is counted and told.
    fn parsed<'a>(&mut self, line: &'a [u8]) -> Option<(&'a str, Entry)> {
        let number = self.lines + 1;
        let parsed = std::str::from_utf8(line).map_err(|_| "is not UTF-8".to_owned()).and_then(|line| {
            let entry = canonical::parse(line).map_err(|error| format!("cannot be read: {error}"))?;
            let canonical = canonical::to_string(&entry) == line;
            if canonical { Ok((line, entry)) } else { Err("is not in canonical form".to_owned()) }
        });
        match parsed {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.lines += 1;
                self.report.found(Verdict::Altered, format!("line {number} {error}"));
                None
            }
        }
    }

    /// Takes an entry that was parsed of a line in canonical form, without its line feed, which no hash of the whole
    /// export is made of.
    pub fn entry(&mut self, line: &str, entry: &Entry) {
        self.lines += 1;
        let instance = &entry.event.instance_id;
        let leaf = Subtree::leaf(canonical::leaf_hash(line), entry.recorded_at_us);
        if !self.log(instance).take(entry, leaf) {
            let what = format!("log {instance:?}: sequence {} is there twice", entry.sequence);
            self.report.found(Verdict::Altered, what);
        }
    }

    /// What all of it comes to.
    pub fn finish(mut self) -> Report {
        let report = &mut self.report;
        if let Some(end) = &self.end {
            if end.entries != self.lines {
                let what = format!("the export has {} entries, and its end says {}", self.lines, end.entries);
                report.found(Verdict::Incomplete, what);
            } else if end.sha256 != self.sha256.finalize().as_slice() {
                report.found(Verdict::Altered, "the export is not the one that its end says: another SHA-256".into());
            }
        } else if self.lines > 0 {
            report.say(
                "without the export's end message, entries behind a log's newest checkpoint can be gone unnoticed",
            );
        }
        let mut proven = 0;
        for (instance, log) in &mut self.logs {
            let head = self.end.as_ref().and_then(|end| end.heads.get(instance)).map(|head| head.size);
            let frozen_at_s = self.end.as_ref().and_then(|end| end.frozen_at_s);
            proven += match self.filtered {
                true => log.finish_rows(instance, head, frozen_at_s, report),
                false => log.finish(instance, head, frozen_at_s, report),
            };
        }
        if proven == 0 {
            let what = "nothing in it is under a checkpoint by a pinned key".to_owned();
            report.found(Verdict::NotEstablished, what);
        }
        let logs = self.logs.values().filter(|log| log.has_lines()).count();
        let trusted = match self.keys.as_slice() {
            [] => {
                report.found(Verdict::NotEstablished, "no key was pinned: nothing that is signed is believed".into());
                "none".to_owned()
            }
            keys => keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        if self.unbelieved > 0 {
            report.say(&format!("{} checkpoints by no key that is pinned were passed over", self.unbelieved));
        }
        report.say(&format!("{} entries of {logs} logs; keys trusted: {trusted}", self.lines));
        self.report
    }
}

#[cfg(test)]
mod tests;
