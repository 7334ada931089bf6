//! Walking the log, by time or by sequence, in pages of rows that fit into memory whatever their size.
//!
//! Between two pages no connection is held. What lies behind the position cannot change: entries are never changed
//! or removed, and an entry that comes late either sorts behind the position, where nobody looks again, or before
//! it, where it will be met.

use sea_orm::Value;
use service_core::error::Result;
use uuid::Uuid;

use super::{Order, Range, Row, Store, signed};
use crate::event::Key;

/// Bytes that a page of rows aims at.
const PAGE_BYTES: usize = 512 * 1024;
const FIRST_ROWS: usize = 64;
const MAX_ROWS: usize = 2_000;

/// How many rows to ask for, so that large entries don't fill the memory and small ones don't cost a query each.
#[derive(Debug, Clone)]
struct Pace(usize);

impl Pace {
    fn new(wanted: usize) -> Self {
        Self(wanted.clamp(1, FIRST_ROWS))
    }

    fn learn(&mut self, rows: &[Row]) {
        if let Some(average) = rows.iter().map(|row| row.canonical.len()).sum::<usize>().checked_div(rows.len()) {
            // At most doubled: the next rows may be larger.
            self.0 = (PAGE_BYTES / average.max(1)).min(self.0 * 2).clamp(FIRST_ROWS / 4, MAX_ROWS);
        }
    }
}

/// A walk over a range of time, in either order.
#[derive(Debug, Clone)]
pub struct TimeWalk {
    range: Range,
    order: Order,
    /// Leave out intents whose outcome is there.
    settled: bool,
    after: Key,
    pace: Pace,
    done: bool,
}

impl TimeWalk {
    /// A walk that begins behind `after`, or at the range's beginning, for somebody who wants about `wanted` rows.
    pub fn new(range: Range, order: Order, settled: bool, after: Option<Key>, wanted: usize) -> Self {
        let edge = match order {
            Order::NewestFirst => Key { occurred_at_us: range.end_us, id: Uuid::nil() },
            Order::OldestFirst => Key { occurred_at_us: range.start_us.saturating_sub(1), id: Uuid::max() },
        };
        let done = range.start_us >= range.end_us;
        Self { range, order, settled, after: after.unwrap_or(edge), pace: Pace::new(wanted), done }
    }

    /// The next rows in order; empty at the end.
    pub async fn next(&mut self, store: &Store) -> Result<Vec<Row>> {
        if self.done {
            return Ok(Vec::new());
        }
        let (beyond, bound, edge, direction) = match self.order {
            Order::NewestFirst => ("<", "e.occurred_at >= $3", self.range.start_us, "DESC"),
            Order::OldestFirst => (">", "e.occurred_at < $3", self.range.end_us, "ASC"),
        };
        let open = if self.settled { OPEN_INTENT } else { "" };
        let columns = Row::COLUMNS;
        let sql = format!(
            "SELECT {columns} FROM audit_entries e WHERE (e.occurred_at, e.id) {beyond} ($1, $2) AND {bound} {open} \
             ORDER BY e.occurred_at {direction}, e.id {direction} LIMIT $4"
        );
        let limit = self.pace.0;
        let values: Vec<Value> =
            vec![self.after.occurred_at_us.into(), self.after.id.into(), edge.into(), (limit as i64).into()];
        let rows = store.read(sql, values).await?;
        self.done = rows.len() < limit;
        let rows = rows.iter().map(Row::from_result).collect::<Result<Vec<Row>>>()?;
        if let Some(last) = rows.last() {
            self.after = last.key;
        }
        self.pace.learn(&rows);
        Ok(rows)
    }
}

/// Keeps an intent only while no outcome of its operation is there. Asked when rows are read, because the outcome
/// may come at any time; 2 and 3 are the numbers of `Stage::Intent` and `Stage::Outcome`.
pub(super) const OPEN_INTENT: &str = "AND NOT (e.stage = 2 AND EXISTS (SELECT 1 FROM audit_entries o \
     WHERE o.instance_id = e.instance_id AND o.operation_id = e.operation_id AND o.stage = 3))";

/// A walk along one instance's log.
#[derive(Debug, Clone)]
pub struct LogWalk {
    instance_id: String,
    next: u64,
    end: u64,
    pace: Pace,
}

impl LogWalk {
    /// A walk over `from` ≤ sequence < `to`.
    pub fn new(instance_id: impl Into<String>, from: u64, to: u64) -> Self {
        Self { instance_id: instance_id.into(), next: from, end: to, pace: Pace::new(FIRST_ROWS) }
    }

    /// The next rows in order; empty where the log, or the range, ends for now.
    pub async fn next(&mut self, store: &Store) -> Result<Vec<Row>> {
        if self.next >= self.end {
            return Ok(Vec::new());
        }
        let columns = Row::COLUMNS;
        let sql = format!(
            "SELECT {columns} FROM audit_entries e WHERE e.instance_id = $1 AND e.sequence >= $2 AND e.sequence < $3 \
             ORDER BY e.sequence LIMIT $4"
        );
        let values: Vec<Value> = vec![
            self.instance_id.as_str().into(),
            signed(self.next).into(),
            signed(self.end).into(),
            (self.pace.0 as i64).into(),
        ];
        let rows = store.read(sql, values).await?;
        let rows = rows.iter().map(Row::from_result).collect::<Result<Vec<Row>>>()?;
        if let Some(last) = rows.last() {
            self.next = last.sequence + 1;
        }
        self.pace.learn(&rows);
        Ok(rows)
    }
}
