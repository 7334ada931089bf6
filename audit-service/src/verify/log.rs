//! One log of an export: its leaves against the roots that were signed.

use std::collections::BTreeMap;

use super::archived::Verified;
use super::forest::{Forest, Subtree};
use super::producers::Producers;
use super::{Report, Verdict, archived};
use crate::checkpoint::Checkpoint;
use crate::event::Entry;
use crate::merkle::{Frontier, Hash};

/// Subtrees of a log at most: a log with more has half as many gaps, and is not compared any further.
const SUBTREES: usize = 1 << 20;
/// Segments of which entries tell that are kept.
const SEGMENTS: usize = 1_024;
/// An entry that was recorded so long after it occurred is counted.
const LATE_US: i64 = 24 * 3_600 * 1_000_000;

/// What was signed over so many entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pub(super) root: Hash,
    /// The newest time of a cosignature.
    pub(super) at_s: Option<u64>,
    /// The oldest one: so many entries were there by then.
    pub(super) first_s: Option<u64>,
    /// Only the export's own end has it, and it is over more than the export.
    pub(super) beyond: bool,
}

impl Root {
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        Self { root: checkpoint.root, at_s: None, first_s: None, beyond: false }
    }
}

/// Entries that were recorded long after they occurred.
#[derive(Debug, Default)]
struct Late {
    count: u64,
    most_us: i64,
    sequence: u64,
}

/// What is known of one log.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) forest: Forest,
    lines: u64,
    /// Of a filtered export, lines that were proven by themselves.
    pub(super) rows: u64,
    overfull: bool,
    producers: Producers,
    late: Late,
    roots: BTreeMap<u64, Root>,
    /// By where a segment of the archive ends: which entry tells of it, and the frontier there.
    pub(super) told: BTreeMap<u64, (u64, Frontier)>,
    pub(super) segments: Vec<Verified>,
}

impl Log {
    /// Will want the root over so many entries.
    pub(super) fn cut(&mut self, size: u64) {
        self.forest.cut(size);
    }

    /// Takes a root that was signed; false if another one was.
    pub(super) fn know(&mut self, size: u64, root: Root) -> bool {
        self.cut(size);
        let known = self.roots.entry(size).or_insert(root);
        known.first_s = [known.first_s, root.at_s].into_iter().flatten().min();
        known.at_s = known.at_s.max(root.at_s);
        known.beyond &= root.beyond;
        known.root == root.root
    }

    pub(super) fn has_lines(&self) -> bool {
        self.lines > 0
    }

    /// Takes an entry of a line; whether it was not there yet.
    pub(super) fn take(&mut self, entry: &Entry, leaf: Subtree) -> bool {
        self.count(entry);
        self.overfull |= self.forest.len() > SUBTREES;
        let is_new = self.overfull || self.forest.insert(entry.sequence, leaf);
        if let Some((end, frontier)) = archived::told(entry) {
            self.told.insert(end, (entry.sequence, frontier));
            // Wanted is the one at the first entry that is there, behind which none can be.
            let first = self.forest.first().unwrap_or(u64::MAX);
            self.told.retain(|end, _| *end <= first);
            if self.told.len() > SEGMENTS {
                self.told.pop_first();
            }
        }
        is_new
    }

    /// What was signed over so many entries.
    pub(super) fn root(&self, size: u64) -> Option<Hash> {
        self.roots.get(&size).map(|root| root.root)
    }

    /// Counts an entry of a line.
    pub(super) fn count(&mut self, entry: &Entry) {
        self.lines += 1;
        let late_us = entry.recorded_at_us.saturating_sub(entry.event.occurred_at_us);
        if late_us > LATE_US {
            self.late.count += 1;
            if late_us > self.late.most_us {
                (self.late.most_us, self.late.sequence) = (late_us, entry.sequence);
            }
        }
        if let Some(producer) = &entry.event.producer {
            self.producers.insert(&producer.id, producer.epoch, producer.sequence);
        }
    }

    /// Of a filtered export: how many of its lines are as they were signed.
    pub(super) fn finish_rows(
        &mut self,
        instance: &str,
        head: Option<u64>,
        frozen_at_s: Option<u64>,
        report: &mut Report,
    ) -> u64 {
        self.times(instance, report);
        if let Some(head) = head {
            self.missing_at_end(instance, head, Some(head), frozen_at_s, report);
            let others = self.roots.iter().filter(|(size, root)| **size != head && !root.beyond).count();
            if others > 0 {
                report.say(&format!(
                    "log {instance:?}: {others} checkpoints over other than its {head} entries were not compared: what a \
                     filter has left is no tree"
                ));
            }
        }
        if self.rows > 0 {
            let (rows, size) = (self.rows, head.unwrap_or_default());
            let at_s = self.roots.get(&size).and_then(|root| root.at_s);
            let when = at_s.map_or_else(
                || "signed, not cosigned".to_owned(),
                |at_s| format!("signed, and cosigned at {at_s} s since 1970"),
            );
            report.say(&format!(
                "log {instance:?}: {rows} of its {size} entries are in this export, each as it was signed and in its place \
                 ({when}); what the filter left out is not seen"
            ));
        }
        self.rows
    }

    /// Entries that are as they were signed.
    pub(super) fn finish(
        &mut self,
        instance: &str,
        head: Option<u64>,
        frozen_at_s: Option<u64>,
        report: &mut Report,
    ) -> u64 {
        if !self.has_lines() && !self.segments.is_empty() && head.is_none() {
            return self.only_segments(instance, report);
        }
        if self.overfull {
            let what = format!("log {instance:?}: it has over {} gaps, and was not compared further", SUBTREES / 2);
            report.found(Verdict::Incomplete, what);
        }
        self.times(instance, report);
        let begin = self.begin(instance, report);
        let (proven, next) = self.compare(instance, begin.clone(), report);
        self.missing_at_end(instance, next, head, frozen_at_s, report);
        self.producers.report(instance, report);
        self.reach(instance, begin.size(), proven, next, report);
        proven.map_or(0, |proven| proven - begin.size())
    }

    /// Compares the roots of what is whole from the beginning with what was signed. How many are proven, unless some are
    /// not as they were signed, and the first sequence behind all.
    pub(super) fn compare(&self, instance: &str, begin: Frontier, report: &mut Report) -> (Option<u64>, u64) {
        // Roots over less than what is archived are others' to compare.
        let mut roots = self.roots.range(begin.size()..).peekable();
        let (mut proven, mut next) = (begin.size(), begin.size());
        let (mut frontier, mut whole, mut altered) = (begin, true, false);
        let nothing = std::iter::once((next..next, 0, Hash::default()));
        for (range, height, root) in nothing.chain(self.forest.subtrees()) {
            if range.start < next {
                continue;
            }
            if range.start > next {
                whole = false;
                let what = format!("log {instance:?}: entries {next} to {} are missing", range.start - 1);
                report.found(Verdict::Incomplete, what);
            }
            next = range.end;
            if !whole || altered {
                continue;
            }
            if !range.is_empty() {
                frontier.push_subtree(height, root);
            }
            while let Some((size, signed)) = roots.next_if(|(size, _)| **size <= frontier.size()) {
                if *size < frontier.size() {
                    // It came behind the lines.
                    continue;
                }
                if frontier.root() != signed.root {
                    altered = true;
                    let what = format!(
                        "log {instance:?}: entries {proven} to {} are not those that were signed: one of them was \
                         changed, moved, or put in place of another",
                        size.saturating_sub(1)
                    );
                    report.found(Verdict::Altered, what);
                    break;
                }
                proven = *size;
            }
        }
        ((!altered).then_some(proven), next)
    }

    /// Tells what is not there of what was there when the export was opened.
    fn missing_at_end(
        &self,
        instance: &str,
        next: u64,
        head: Option<u64>,
        frozen_at_s: Option<u64>,
        report: &mut Report,
    ) {
        // What was signed when the export was frozen, or later, by its own word, was written later.
        let later = |root: &Root| head.is_some() && frozen_at_s.is_some() && root.first_s >= frozen_at_s;
        let given = || self.roots.iter().filter(|(_, root)| !root.beyond);
        let signed = given().filter(|(_, root)| !later(root)).map(|(size, _)| *size).next_back().unwrap_or(0);
        let there = head.unwrap_or(0).max(signed);
        if next < there {
            let what = format!("log {instance:?}: entries {next} to {} are missing at its end", there - 1);
            report.found(Verdict::Incomplete, what);
        }
        if let Some((size, root)) = given().rfind(|(size, root)| **size > there && later(root)) {
            report.say(&format!(
                "log {instance:?}: at {} s since 1970 it was signed with {size} entries; this export says that it was \
                 opened before, at {} s, with {there}",
                root.first_s.unwrap_or_default(),
                frozen_at_s.unwrap_or_default()
            ));
        }
    }

    /// Tells how far the evidence reaches.
    fn reach(&self, instance: &str, first: u64, proven: Option<u64>, entries: u64, report: &mut Report) {
        let Some(proven) = proven else { return };
        if proven < entries {
            let what = match proven - first {
                0 => format!("log {instance:?}: no checkpoint by a pinned key is over its entries"),
                _ => format!("log {instance:?}: entries {proven} to {} are under no checkpoint", entries - 1),
            };
            report.found(Verdict::NotEstablished, what);
        }
        if proven > first {
            let cosigned = self.roots.range(first..=proven).rev().find_map(|(size, root)| Some((size, root.at_s?)));
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
            report.say(&format!("log {instance:?}: {which} are as they were signed ({when})"));
        }
    }

    /// Tells what was recorded out of order, and what long after it occurred.
    fn times(&mut self, instance: &str, report: &mut Report) {
        self.forest.check_order();
        let back_dated = &self.forest.back_dated;
        if back_dated.count > 0 {
            let named: Vec<String> = back_dated.first.iter().map(ToString::to_string).collect();
            let what = format!(
                "log {instance:?}: {} entries say that they were recorded before the one before them, so they were \
                 back-dated: {}",
                back_dated.count,
                named.join(", ")
            );
            report.found(Verdict::Altered, what);
        }
        let Late { count, most_us, sequence } = self.late;
        if count > 0 {
            let hours = most_us / 3_600_000_000;
            report.say(&format!(
                "log {instance:?}: {count} entries were recorded more than a day after they occurred, as their writers \
                 said it; the longest, {hours} hours, is entry {sequence}"
            ));
        }
    }
}
