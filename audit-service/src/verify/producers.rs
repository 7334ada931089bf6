//! Which of its numbers a producer's entries have, as ranges.

use std::collections::BTreeMap;

use super::Report;

/// Ranges of one log that are kept: more are no gaps in what was sent but numbers that went to other logs.
const RANGES: usize = 100_000;
/// Ranges that are named.
const NAMED: usize = 5;

/// By producer and epoch, by the first number of a range, the one behind its last.
#[derive(Debug, Default)]
pub(super) struct Producers {
    ranges: BTreeMap<(String, u64), BTreeMap<u64, u64>>,
    count: usize,
    too_many: bool,
}

impl Producers {
    pub(super) fn insert(&mut self, id: &str, epoch: u64, number: u64) {
        if self.too_many {
            return;
        }
        let key = (id.to_owned(), epoch);
        let ranges = self.ranges.entry(key).or_default();
        let behind = number.saturating_add(1);
        let before = ranges.range(..=number).next_back().map(|(first, end)| (*first, *end));
        if before.is_some_and(|(_, end)| end > number) {
            return;
        }
        let first = before.filter(|(_, end)| *end == number).map_or(number, |(first, _)| first);
        let end = ranges.remove(&behind).unwrap_or(behind);
        let merged = usize::from(first < number) + usize::from(end > behind);
        ranges.insert(first, end);
        self.count = self.count + 1 - merged;
        if self.count > RANGES {
            *self = Self { too_many: true, ..Self::default() };
        }
    }

    /// Says which numbers are not there. They may be in another log, or were dropped; that is for who knows to say.
    pub(super) fn report(&self, instance: &str, report: &mut Report) {
        if self.too_many {
            report.say(&format!(
                "log {instance:?}: the numbers of its producers are in more than {RANGES} ranges, which were not compared"
            ));
        }
        for ((id, epoch), ranges) in &self.ranges {
            let starts = std::iter::once(0).chain(ranges.values().copied());
            let missing: Vec<String> = starts
                .zip(ranges.keys())
                .filter(|(start, number)| start < number)
                .map(|(start, number)| format!("{start} to {}", number - 1))
                .collect();
            if !missing.is_empty() {
                let shown = missing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
                let more = missing.len().saturating_sub(NAMED);
                let more = if more > 0 { format!(" and {more} ranges more") } else { String::new() };
                report.say(&format!(
                    "log {instance:?}: of producer {id:?}, epoch {epoch}, numbers {shown}{more} are not in this export"
                ));
            }
        }
    }
}
