//! Verifying an export without a server: what it holds against what was signed, by a key that was told another way.
//!
//! ```text
//! lines ─▶ leaf hashes ─▶ by log and sequence ─▶ roots at the sizes of checkpoints ─┐
//! notes ─▶ signatures by pinned keys ─▶ checkpoints ────────────────────────────────┴─▶ findings ─▶ verdict
//! ```
//!
//! It says what it found and how far the evidence reaches; what nobody signed, it does not call valid.

mod archived;

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::canonical;
use crate::checkpoint::{Checkpoint, KeyKind, Note, Untrusted, VerifierKey};
use crate::merkle::{Frontier, Hash};

/// Findings of one kind that are kept with their words; of more, the number.
const TOLD: usize = 100;

/// What came of it, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Every entry is as it was signed, and none of those that were signed is missing.
    Valid,
    /// Nothing contradicts it, but no key was pinned, or entries, or all there is, are under no checkpoint by one.
    NotEstablished,
    /// Entries are missing.
    Incomplete,
    /// Something is not as it was signed.
    Altered,
}

impl Verdict {
    /// The exit status of a command.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Valid => 0,
            Self::Altered => 1,
            Self::Incomplete => 2,
            Self::NotEstablished => 3,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::NotEstablished => "not established",
            Self::Incomplete => "incomplete",
            Self::Altered => "altered",
        })
    }
}

/// The end message of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Entries in it.
    pub entries: u64,
    /// SHA-256 over its bytes.
    pub sha256: Vec<u8>,
    /// Entries in each log when it was opened.
    pub heads: BTreeMap<String, u64>,
}

impl End {
    /// From protobuf's JSON, where numbers of 64 bits are strings.
    pub fn from_json(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
        let heads = value["heads"].as_array().map(Vec::as_slice).unwrap_or_default();
        let head = |head: &Value| Some((head["instanceId"].as_str()?.to_owned(), number(&head["size"])?));
        Some(Self {
            entries: number(&value["entries"])?,
            sha256: BASE64.decode(value["sha256"].as_str()?).ok()?,
            heads: heads.iter().map(head).collect::<Option<_>>()?,
        })
    }
}

/// What is known of one log.
#[derive(Debug, Default)]
struct Log {
    leaves: Vec<(u64, Hash)>,
    producers: BTreeMap<(String, u64), Vec<u64>>,
    /// By size: the root, and the newest time of a cosignature.
    checkpoints: BTreeMap<u64, (Hash, Option<u64>)>,
    /// By where a segment of the archive ends: which entry tells of it, and the frontier there.
    told: BTreeMap<u64, (u64, Frontier)>,
    /// What segments have, and which of it no line has.
    archived: Vec<(u64, Hash)>,
    from_archive: Vec<(u64, Hash)>,
    segments: Vec<archived::Verified>,
}

/// An export that is being verified.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<VerifierKey>,
    logs: BTreeMap<String, Log>,
    lines: u64,
    sha256: Sha256,
    end: Option<End>,
    unbelieved: u64,
    report: Report,
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// What came of it.
    pub verdict: Verdict,
    /// Sentences, the most important at the end of each log.
    pub findings: Vec<String>,
    left_out: u64,
}

impl Report {
    fn found(&mut self, verdict: Verdict, what: String) {
        self.verdict = self.verdict.max(verdict);
        if self.findings.len() < TOLD {
            self.findings.push(what);
        } else {
            self.left_out += 1;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        if self.left_out > 0 {
            writeln!(f, "and {} findings more", self.left_out)?;
        }
        write!(f, "{}", self.verdict)
    }
}

/// Keys of logs with different names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("keys of the logs {one:?} and {other:?}: an export is of one deployment, allowed are the keys of one name")]
pub struct SeveralLogs {
    one: String,
    other: String,
}

impl Verifier {
    /// Believes these keys and no others. Without any, nothing is established.
    ///
    /// Lines do not say of which deployment they are, only of which instance: a key of another deployment, which may
    /// have an instance of the same name, would vouch for them too.
    pub fn new(keys: Vec<VerifierKey>) -> Result<Self, SeveralLogs> {
        let mut names = keys.iter().filter(|key| key.kind() == KeyKind::Log).map(VerifierKey::name);
        if let Some(one) = names.next()
            && let Some(other) = names.find(|name| *name != one)
        {
            return Err(SeveralLogs { one: one.to_owned(), other: other.to_owned() });
        }
        let report = Report { verdict: Verdict::Valid, findings: Vec::new(), left_out: 0 };
        let (logs, sha256) = (BTreeMap::new(), Sha256::new());
        Ok(Self { keys, logs, lines: 0, sha256, end: None, unbelieved: 0, report })
    }

    /// Takes a checkpoint's note.
    pub fn checkpoint(&mut self, note: &str) {
        let parsed = note.parse::<Note>().map_err(|error| error.to_string());
        let parsed = parsed.and_then(|note| match Checkpoint::parse(note.text()) {
            Ok(checkpoint) => Ok((note, checkpoint)),
            Err(error) => Err(error.to_string()),
        });
        let (note, checkpoint) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return self.report.found(Verdict::Altered, format!("a checkpoint cannot be read: {error}")),
        };
        let signed = match note.verify(&self.keys) {
            Ok(signed) => signed,
            Err(Untrusted::Nobody) => return self.unbelieved += 1,
            Err(error) => {
                let what = format!("the checkpoint of {} over {} entries: {error}", checkpoint.origin, checkpoint.size);
                return self.report.found(Verdict::Altered, what);
            }
        };
        let log = signed.iter().map(|signed| &self.keys[signed.key]).find_map(|key| {
            let instance = checkpoint.origin.strip_prefix(key.name())?.strip_prefix('/')?;
            (key.kind() == KeyKind::Log).then(|| instance.to_owned())
        });
        let Some(instance) = log else { return self.unbelieved += 1 };
        let cosigned = signed.iter().filter_map(|signed| signed.at_s).max();
        let log = self.logs.entry(instance.clone()).or_default();
        let known = log.checkpoints.entry(checkpoint.size).or_insert((checkpoint.root, cosigned));
        known.1 = known.1.max(cosigned);
        if known.0 != checkpoint.root {
            let size = checkpoint.size;
            let what = format!("log {instance:?}: two roots were signed over {size} entries, so two histories were");
            self.report.found(Verdict::Altered, what);
        }
    }

    /// Takes a line, without its line feed.
    pub fn line(&mut self, line: &str) {
        self.lines += 1;
        self.sha256.update(line.as_bytes());
        self.sha256.update(b"\n");
        let number = self.lines;
        let entry = match canonical::parse(line) {
            Ok(entry) if canonical::to_string(&entry) == line => entry,
            Ok(_) => return self.report.found(Verdict::Altered, format!("line {number} is not in canonical form")),
            Err(error) => return self.report.found(Verdict::Altered, format!("line {number}: {error}")),
        };
        let told = archived::told(&entry);
        let log = self.logs.entry(entry.event.instance_id).or_default();
        log.leaves.push((entry.sequence, canonical::leaf_hash(line)));
        if let Some((end, frontier)) = told {
            log.told.insert(end, (entry.sequence, frontier));
        }
        if let Some(producer) = entry.event.producer {
            log.producers.entry((producer.id, producer.epoch)).or_default().push(producer.sequence);
        }
    }

    /// Takes the export's end message.
    pub fn end(&mut self, end: End) {
        self.end = Some(end);
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
            // Of a log in which there were entries, no line may be left.
            end.heads.keys().for_each(|instance| {
                self.logs.entry(instance.clone()).or_default();
            });
        } else if self.logs.values().any(|log| !log.leaves.is_empty()) {
            let what =
                "without the export's end message, entries behind a log's newest checkpoint can be gone unnoticed";
            report.findings.push(what.to_owned());
        }
        let mut proven = 0;
        for (instance, log) in &mut self.logs {
            let head = self.end.as_ref().and_then(|end| end.heads.get(instance)).copied();
            proven += log.finish(instance, head, report);
        }
        if proven == 0 {
            let what = "nothing in it is under a checkpoint by a pinned key".to_owned();
            report.found(Verdict::NotEstablished, what);
        }
        let logs = self.logs.values().filter(|log| !log.leaves.is_empty()).count();
        let trusted = match self.keys.as_slice() {
            [] => {
                report.found(Verdict::NotEstablished, "no key was pinned: nothing that is signed is believed".into());
                "none".to_owned()
            }
            keys => keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        if self.unbelieved > 0 {
            report.findings.push(format!("{} checkpoints by no key that is pinned were passed over", self.unbelieved));
        }
        report.findings.push(format!("{} entries of {logs} logs; keys trusted: {trusted}", self.lines));
        self.report
    }
}

impl Log {
    /// Entries that are as they were signed.
    fn finish(&mut self, instance: &str, head: Option<u64>, report: &mut Report) -> u64 {
        self.leaves.sort_unstable_by_key(|(sequence, _)| *sequence);
        if self.leaves.is_empty() && !self.segments.is_empty() && head.is_none() {
            return self.only_segments(instance, report);
        }
        self.with_archived(instance, report);
        for pair in self.leaves.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            report.found(Verdict::Altered, format!("log {instance:?}: sequence {} is there twice", pair[0].0));
        }
        let begin = self.begin(instance, report);
        let mut next = begin.size();
        let mut whole = begin.size();
        let mut gaps = false;
        for (sequence, _) in &self.leaves {
            if *sequence > next {
                gaps = true;
                let what = format!("log {instance:?}: entries {next} to {} are missing", sequence - 1);
                report.found(Verdict::Incomplete, what);
            }
            next = sequence.saturating_add(1);
            if !gaps {
                whole = next;
            }
        }
        let signed = self.checkpoints.last_key_value().map_or(0, |(size, _)| *size);
        let there = head.unwrap_or(0).max(signed);
        if next < there {
            let what = format!("log {instance:?}: entries {next} to {} are missing at its end", there - 1);
            report.found(Verdict::Incomplete, what);
        }
        self.producers(instance, report);
        self.compare(instance, begin, whole, next, report)
    }

    /// Compares the roots of what is whole from the beginning with what was signed; entries of which that holds.
    fn compare(&self, instance: &str, begin: Frontier, whole: u64, entries: u64, report: &mut Report) -> u64 {
        let first = begin.size();
        let mut frontier = begin;
        let mut leaves = self.leaves.iter();
        let (mut proven, mut cosigned) = (first, None);
        // Roots over less than what is archived are others' to compare.
        for (size, (root, at_s)) in self.checkpoints.range(first..=whole) {
            leaves.by_ref().take((size - frontier.size()) as usize).for_each(|(_, leaf)| {
                frontier.push(*leaf);
            });
            if frontier.root() != *root {
                let what = format!(
                    "log {instance:?}: entries {proven} to {} are not those that were signed: one of them was changed, \
                     moved, or put in place of another",
                    size.saturating_sub(1)
                );
                report.found(Verdict::Altered, what);
                return proven - first;
            }
            proven = *size;
            cosigned = at_s.map(|at_s| (*size, at_s)).or(cosigned);
        }
        if proven < entries {
            let what = match proven - first {
                0 => format!("log {instance:?}: no checkpoint by a pinned key is over its entries"),
                _ => format!("log {instance:?}: entries {proven} to {} are under no checkpoint", entries - 1),
            };
            report.found(Verdict::NotEstablished, what);
        }
        if proven > first {
            let when = cosigned.map_or_else(
                || "signed, not cosigned".to_owned(),
                |(size, at_s)| {
                    format!("signed; the first {size} were there at {at_s} s since 1970, which was cosigned")
                },
            );
            let which = match first {
                0 => format!("the first {proven} entries"),
                _ => format!("entries {first} to {}", proven - 1),
            };
            report.findings.push(format!("log {instance:?}: {which} are as they were signed ({when})"));
        }
        proven - first
    }

    /// Numbers of producers that are not in the export. They may be in another log, or were dropped; that is for who knows
    /// to say.
    fn producers(&mut self, instance: &str, report: &mut Report) {
        for ((id, epoch), numbers) in &mut self.producers {
            numbers.sort_unstable();
            numbers.dedup();
            let starts = std::iter::once(0).chain(numbers.iter().map(|number| number.saturating_add(1)));
            let missing: Vec<String> = starts
                .zip(numbers.iter())
                .filter(|(start, number)| start < number)
                .map(|(start, number)| format!("{start} to {}", number - 1))
                .collect();
            if !missing.is_empty() {
                let shown = missing.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
                let more = missing.len().saturating_sub(5);
                let more = if more > 0 { format!(" and {more} ranges more") } else { String::new() };
                report.findings.push(format!(
                    "log {instance:?}: of producer {id:?}, epoch {epoch}, numbers {shown}{more} are not in this export"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests;
