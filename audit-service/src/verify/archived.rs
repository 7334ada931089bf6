//! What an export has not because it is in the archive: told from what is missing, and verified where the segments are.
//!
//! An entry that tells of a segment has the frontier behind it. With that the roots over what is left are made as if all
//! were there: had somebody else put such an entry there, or another frontier, no signed root would come of it.

use audit_proof::{NotBelieved, signed_by};
use serde_json::Value;

use super::forest::Subtree;
use super::log::Log;
use super::{Report, Verdict, Verifier};
use crate::archive::Manifest;
use crate::canonical;
use crate::checkpoint::{Checkpoint, Note};
use crate::event::Entry;
use crate::merkle::{Frontier, Hash};
use crate::retention::{ARCHIVED, RECORDED_BY};

/// A segment that was verified.
#[derive(Debug)]
pub(super) struct Verified {
    first: u64,
    end: u64,
    /// Whether a pinned key has signed the root that it is under.
    signed: bool,
}

/// What an entry tells: the first sequence behind its segment, and the frontier there.
pub(super) fn told(entry: &Entry) -> Option<(u64, Frontier)> {
    if entry.event.action != ARCHIVED || entry.recorded_by != RECORDED_BY {
        return None;
    }
    let details: Value = serde_json::from_str(&entry.event.details_json).ok()?;
    let end: u64 = details["end_sequence"].as_str()?.parse().ok()?;
    let peaks = details["frontier"].as_array()?.iter().map(|peak| unhex(peak.as_str()?)).collect::<Option<_>>()?;
    Some((end, Frontier::new(end, peaks)?))
}

fn unhex(text: &str) -> Option<Hash> {
    let pair = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    let bytes: Vec<u8> = (0..64).step_by(2).map(pair).collect::<Option<_>>()?;
    (text.len() == 64).then(|| bytes.try_into().ok()).flatten()
}

impl Verifier {
    /// Takes a segment of the archive: its manifest, and the object with its lines. Behind the lines, and
    /// [expected](Verifier::expect_segment) before them.
    pub fn segment(&mut self, manifest: &Manifest, data: Vec<u8>) {
        let (instance, first, end) = (&manifest.instance_id, manifest.first_sequence, manifest.end_sequence);
        let mut leaves = Vec::new();
        let verified = manifest.verify(data, |line, entry| {
            leaves.push(Subtree::leaf(canonical::leaf_hash(line), entry.recorded_at_us));
        });
        let signed = match verified {
            Ok(()) => self.vouched(manifest),
            Err(why) => Err(why.to_string()),
        };
        match signed {
            Ok(signed) => {
                let signed = signed.is_some();
                let log = self.log(instance);
                let others = log.forest.fill(first, &leaves);
                log.segments.push(Verified { first, end, signed });
                for range in others {
                    let (one, last) = (range.start, range.end - 1);
                    let which =
                        if one == last { format!("entry {one}") } else { format!("one of entries {one} to {last}") };
                    let what = format!("log {instance:?}: {which} is another one in the archive");
                    self.report.found(Verdict::Altered, what);
                }
            }
            Err(why) => {
                let what = format!("log {instance:?}: the segment of entries {first} to {}: {why}", end - 1);
                self.report.found(Verdict::Altered, what);
            }
        }
    }

    /// The checkpoint of a segment, if a pinned key of its log has signed it, and when it was cosigned.
    pub(super) fn vouched(&self, manifest: &Manifest) -> Result<Option<(Checkpoint, Option<u64>)>, String> {
        let Some(checkpoint) = manifest.signed().map_err(|why| why.to_string())? else { return Ok(None) };
        let note = manifest.checkpoint.as_ref().and_then(|note| note.parse::<Note>().ok());
        let Some(note) = note else { return Ok(None) };
        match signed_by(&self.keys, &note, &checkpoint) {
            Ok(signers) => Ok((signers.instance == manifest.instance_id).then_some((checkpoint, signers.at_s))),
            Err(NotBelieved::Nobody) => Ok(None),
            Err(why) => Err(why.to_string()),
        }
    }
}

impl Log {
    /// Says how far the segments of a log reach of which there is nothing else; entries that are as they were signed.
    ///
    /// Each is under a checkpoint of its own. That all of them, and what else was signed, are of one history, is seen by
    /// the roots as far as none is missing.
    pub(super) fn only_segments(&mut self, instance: &str, report: &mut Report) -> u64 {
        self.compare(instance, Frontier::default(), report);
        self.segments.sort_unstable_by_key(|segment| segment.first);
        let mut proven = 0;
        for segment in &self.segments {
            let last = segment.end - 1;
            if segment.signed {
                proven += segment.end - segment.first;
            } else {
                let what = format!(
                    "log {instance:?}: the segment of entries {} to {last} is under no checkpoint by a pinned key",
                    segment.first
                );
                report.found(Verdict::NotEstablished, what);
            }
        }
        let segments = self.segments.len();
        report.say(&format!(
            "log {instance:?}: {proven} entries of {segments} segments of the archive are as they were signed, each in its \
             place"
        ));
        proven
    }

    /// Where the lines begin, if what is before is archived by what one of them says.
    pub(super) fn begin(&self, instance: &str, report: &mut Report) -> Frontier {
        let Some(first) = self.forest.first().filter(|first| *first > 0) else { return Frontier::default() };
        let Some((sequence, frontier)) = self.told.get(&first) else { return Frontier::default() };
        report.say(&format!(
            "log {instance:?}: entries 0 to {} were archived by policy, as entry {sequence} tells; they are not in this \
             export (--archive verifies them)",
            first - 1
        ));
        frontier.clone()
    }
}
