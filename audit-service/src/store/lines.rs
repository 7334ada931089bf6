//! Pieces of logs as canonical lines, many at once: for the index, and for what it does not hold yet.
//!
//! One row brings many entries, for a row costs more than the text in it. Canonical JSON has no line feed in it.

use std::collections::VecDeque;

use sea_orm::Value;
use service_core::database::Engine;
use service_core::error::Result;

use super::runs::Behind;
use super::{Order, Store, signed};

/// Entries that are read at once; each is bounded.
const ENTRIES: u64 = 512;
/// Pieces of logs that are read at once.
const PIECES: usize = 32;

/// A reader of pieces of logs.
#[derive(Debug)]
pub(super) struct Lines {
    rest: VecDeque<Behind>,
    /// Whether a log is read from its head down.
    backwards: bool,
    /// The first and the last time that is wanted.
    times: (i64, i64),
}

impl Lines {
    /// Reads what lies behind, log by log.
    pub(super) fn new(logs: &[Behind]) -> Self {
        Self { rest: logs.iter().cloned().collect(), backwards: false, times: (i64::MIN, i64::MAX) }
    }

    /// Reads what lies behind and occurred between these times, each inside; first what is probably the nearest.
    pub(super) fn between(logs: &[Behind], first_us: i64, last_us: i64, order: Order) -> Self {
        Self { backwards: order == Order::NewestFirst, times: (first_us, last_us), ..Self::new(logs) }
    }

    /// Leaves out what occurred before or after, from now on.
    pub(super) fn narrow(&mut self, first_us: i64, last_us: i64) {
        self.times = (first_us, last_us);
    }

    /// The next lines, with a line feed between them, in no order, and perhaps none; `None` at the end.
    pub(super) async fn next(&mut self, store: &Store) -> Result<Option<String>> {
        let mut pieces: Vec<Behind> = Vec::new();
        let mut room = ENTRIES;
        while let Some(log) = self.rest.front_mut().filter(|_| room > 0 && pieces.len() < PIECES) {
            let count = room.min(log.head - log.through);
            room -= count;
            if self.backwards {
                pieces.push(Behind { through: log.head - count, ..log.clone() });
                log.head -= count;
            } else {
                pieces.push(Behind { head: log.through + count, ..log.clone() });
                log.through += count;
            }
            if log.through >= log.head {
                self.rest.pop_front();
            }
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        // Few sizes, so that the statements stay prepared.
        let size = pieces.len().next_power_of_two();
        let empty = Behind { instance_id: String::new(), through: 0, head: 0 };
        pieces.resize(size, empty);
        // The sum keeps the database from asking the index by time, which would be far more work.
        let piece = |at: usize| {
            format!(
                "SELECT canonical FROM audit_entries WHERE instance_id = ${} AND sequence >= ${} AND sequence < ${} \
                 AND occurred_at + 0 BETWEEN $1 AND $2",
                at * 3 + 3,
                at * 3 + 4,
                at * 3 + 5
            )
        };
        let joined = match store.db.engine {
            Engine::Sqlite => "group_concat(canonical, char(10))",
            Engine::Postgres => "string_agg(canonical, chr(10))",
        };
        let all: Vec<String> = (0..size).map(piece).collect();
        let sql = format!("SELECT COALESCE({joined}, '') FROM ({}) e", all.join(" UNION ALL "));
        let bounds = pieces.iter().flat_map(|piece| {
            [Value::from(piece.instance_id.as_str()), signed(piece.through).into(), signed(piece.head).into()]
        });
        let values = [self.times.0.into(), self.times.1.into()].into_iter().chain(bounds);
        let rows = store.read(sql, values.collect()).await?;
        rows.first().map(|row| Ok(row.try_get_by_index(0)?)).transpose()
    }
}
