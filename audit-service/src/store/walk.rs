//! Walking the log, by time or by sequence, in pages of rows that fit into memory whatever their size.
//!
//! Between two pages no connection is held. What lies behind the position cannot change: entries are never changed
//! or removed, and an entry that comes late either sorts behind the position, where nobody looks again, or before
//! it, where it will be met.

use futures::TryStreamExt as _;
use sea_orm::{StreamTrait as _, Value};
use service_core::auth::{Access, Instances};
use service_core::database::Engine;
use service_core::error::Result;
use uuid::Uuid;

use super::{Order, Range, Row, Store, signed};
use crate::event::Key;

/// A page of rows ends with the row that reaches these bytes.
const PAGE_BYTES: usize = 512 * 1024;
const FIRST_ROWS: usize = 64;
const MAX_ROWS: usize = 2_000;

/// How many rows to ask for, so that small ones don't cost a query each, and the database doesn't look at many that
/// a page has no room for. A guess from the last page; what bounds a page is `PAGE_BYTES`.
#[derive(Debug, Clone)]
struct Pace(usize);

impl Pace {
    fn new(wanted: usize) -> Self {
        Self(wanted.clamp(1, FIRST_ROWS))
    }

    fn learn(&mut self, rows: &[Row]) {
        if let Some(average) = rows.iter().map(|row| row.canonical.len()).sum::<usize>().checked_div(rows.len()) {
            self.0 = (PAGE_BYTES / average.max(1)).min(self.0 * 2).clamp(FIRST_ROWS / 4, MAX_ROWS);
        }
    }
}

/// Rows that were read at once.
struct Page {
    rows: Vec<Row>,
    /// Whether the bytes ended it: there may be more rows, however few these are.
    full: bool,
}

impl Store {
    /// The first rows of a query, as far as a page has room. `sql` gives the columns of [`Row`] in the order `by`.
    ///
    /// SQLite makes rows as they are taken, so we stop taking them. PostgreSQL sends all that it was asked for, so
    /// it is told where to stop; there the length of a long text is known without reading it.
    async fn read_page(&self, sql: String, by: &str, values: Vec<Value>) -> Result<Page> {
        let sql = match self.db.engine {
            Engine::Sqlite => sql,
            Engine::Postgres => {
                let columns = Row::COLUMNS;
                format!(
                    "SELECT {columns} FROM (SELECT e.*, SUM(octet_length(e.canonical)) OVER (ORDER BY {by} ROWS \
                     UNBOUNDED PRECEDING) - octet_length(e.canonical) AS bytes_before FROM ({sql}) e) e \
                     WHERE e.bytes_before < {PAGE_BYTES} ORDER BY {by}"
                )
            }
        };
        let mut found = self.reader().stream_raw(self.statement(sql, values)).await?;
        let mut page = Page { rows: Vec::new(), full: false };
        let mut bytes = 0;
        while let Some(row) = found.try_next().await? {
            let row = Row::from_result(&row)?;
            bytes += row.canonical.len();
            page.rows.push(row);
            if bytes >= PAGE_BYTES {
                page.full = true;
                break;
            }
        }
        Ok(page)
    }
}

/// Rows of a walk over time.
#[derive(Debug)]
pub struct Rows {
    /// Those that may be seen, maybe none.
    pub seen: Vec<Row>,
    /// How many were read.
    pub read: usize,
}

/// A walk over a range of time, in either order.
#[derive(Debug, Clone)]
pub struct TimeWalk {
    access: Access,
    range: Range,
    order: Order,
    after: Key,
    pace: Pace,
    done: bool,
}

impl TimeWalk {
    /// A walk that begins behind `after`, or at the range's beginning, for somebody who wants about `wanted` rows.
    pub fn new(access: &Access, range: Range, order: Order, after: Option<Key>, wanted: usize) -> Self {
        let edge = match order {
            Order::NewestFirst => Key { occurred_at_us: range.end_us, id: Uuid::nil() },
            Order::OldestFirst => Key { occurred_at_us: range.start_us.saturating_sub(1), id: Uuid::max() },
        };
        let nothing = matches!(access.instances(), Instances::Only(instances) if instances.is_empty());
        let done = range.start_us >= range.end_us || nothing;
        Self { access: access.clone(), range, order, after: after.unwrap_or(edge), pace: Pace::new(wanted), done }
    }

    /// Behind which key it goes on.
    pub(super) fn position(&self) -> Key {
        self.after
    }

    /// The next rows in order; `None` at the end.
    pub async fn next(&mut self, store: &Store) -> Result<Option<Rows>> {
        if self.done {
            return Ok(None);
        }
        let (beyond, bound, edge, direction) = match self.order {
            Order::NewestFirst => ("<", "e.occurred_at >= $3", self.range.start_us, "DESC"),
            Order::OldestFirst => (">", "e.occurred_at < $3", self.range.end_us, "ASC"),
        };
        let columns = Row::COLUMNS;
        let sql = format!(
            "SELECT {columns} FROM audit_entries e WHERE (e.occurred_at, e.id) {beyond} ($1, $2) AND {bound} \
             ORDER BY e.occurred_at {direction}, e.id {direction} LIMIT $4"
        );
        let limit = self.pace.0;
        let values: Vec<Value> =
            vec![self.after.occurred_at_us.into(), self.after.id.into(), edge.into(), (limit as i64).into()];
        let by = format!("e.occurred_at {direction}, e.id {direction}");
        let Page { mut rows, full } = store.read_page(sql, &by, values).await?;
        self.done = rows.len() < limit && !full;
        if let Some(last) = rows.last() {
            self.after = last.key;
        }
        self.pace.learn(&rows);
        let read = rows.len();
        rows.retain(|row| self.access.has_instance(&row.instance_id));
        Ok((read > 0).then_some(Rows { seen: rows, read }))
    }
}

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
    pub fn new(access: &Access, instance_id: impl Into<String>, from: u64, to: u64) -> Self {
        let instance_id = instance_id.into();
        let end = if access.has_instance(&instance_id) { to } else { 0 };
        Self { instance_id, next: from, end, pace: Pace::new(FIRST_ROWS) }
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
        let Page { rows, .. } = store.read_page(sql, "e.sequence", values).await?;
        if let Some(last) = rows.last() {
            self.next = last.sequence + 1;
        }
        self.pace.learn(&rows);
        Ok(rows)
    }
}
