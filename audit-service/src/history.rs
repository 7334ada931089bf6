//! A log from any sequence on, wherever its entries are: a walk through the database that goes through the archive where
//! an entry is not here any more, also where it goes while the walk is under way.
//!
//! What it holds is one page of the database, or one segment as it is packed.

use std::io;

use service_core::auth::Access;
use service_core::error::{Error, Result};

use crate::archive::{Lines, data_name, sha256};
use crate::store::{LogWalk, Row, Segment, Store, damaged, lost};

/// A walk along one log.
#[derive(Debug)]
pub(crate) struct History {
    access: Access,
    instance_id: String,
    next: u64,
    end: u64,
    here: LogWalk,
    /// A segment that is being read, and the sequence of its next line.
    there: Option<(Lines, u64)>,
}

impl History {
    /// A walk over `from` ≤ sequence < `to`.
    pub(crate) fn new(access: &Access, instance_id: &str, from: u64, to: u64) -> Self {
        let here = LogWalk::new(access, instance_id, from, to);
        let end = if access.has_instance(instance_id) { to } else { 0 };
        Self { access: access.clone(), instance_id: instance_id.to_owned(), next: from, end, here, there: None }
    }

    /// The next rows in order; empty where the log, or the range, ends for now.
    pub(crate) async fn next(&mut self, store: &Store) -> Result<Vec<Row>> {
        while self.next < self.end {
            if let Some((lines, sequence)) = &mut self.there {
                let page = lines.page().map_err(unreadable)?;
                let first = *sequence;
                *sequence += page.len() as u64;
                if page.is_empty() {
                    self.there = None;
                    self.here = LogWalk::new(&self.access, self.instance_id.as_str(), self.next, self.end);
                    continue;
                }
                let wanted = page.into_iter().zip(first..).filter(|(_, at)| (self.next..self.end).contains(at));
                let rows: Vec<Row> = wanted.map(|(line, _)| Row::archived(line)).collect::<Result<_>>()?;
                self.moved_behind(&rows);
                if !rows.is_empty() {
                    return Ok(rows);
                }
                continue;
            }
            let mut rows = self.here.next(store).await?;
            let read = rows.len();
            let whole = rows.iter().zip(self.next..).take_while(|(row, next)| row.sequence == *next).count();
            rows.truncate(whole);
            self.moved_behind(&rows);
            if whole < read {
                self.here = LogWalk::new(&self.access, self.instance_id.as_str(), self.next, self.end);
            }
            if whole > 0 {
                return Ok(rows);
            }
            match store.segment_of(&self.access, &self.instance_id, self.next).await? {
                Some(segment) => self.there = Some((self.open(store, &segment).await?, segment.sequences.start)),
                None if read == 0 => return Ok(Vec::new()),
                None => return Err(lost(damaged(&self.instance_id, &format!("entry {} is missing", self.next)))),
            }
        }
        Ok(Vec::new())
    }

    fn moved_behind(&mut self, rows: &[Row]) {
        if let Some(last) = rows.last() {
            self.next = last.sequence + 1;
        }
    }

    /// The lines of a segment, if it is the one that was archived.
    async fn open(&self, store: &Store, segment: &Segment) -> Result<Lines> {
        let Some(archive) = store.archive() else {
            return Err(Error::OutOfRange(format!(
                "entry {} of instance {:?} is in the archive, in segment {}, and this service has no archive",
                self.next, self.instance_id, segment.place
            )));
        };
        let name = data_name(&segment.place);
        let lost = |how: &str| lost(damaged(&self.instance_id, &format!("the archive's object {name} {how}")));
        let data = archive.get(&name).await?.ok_or_else(|| lost("is missing"))?;
        if sha256(&data) != segment.data_sha256 {
            return Err(lost("is not the one that was archived: another SHA-256"));
        }
        Lines::new(data).map_err(unreadable)
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::internal(anyhow::Error::new(error).context("a segment of the archive cannot be read"))
}
