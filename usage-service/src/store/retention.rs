//! Retention: what is kept, and removing what is not.
//!
//! Single requests and their sums each have a horizon, the start of a day (UTC) that only moves forward. What lies
//! before it counts as removed from the commit that moves it, wherever the rows still are:
//!
//! ```text
//! horizon   moves in one transaction; from here on reads refuse, and writers reject, what is before it
//! writers   those that may have read the old horizon are waited for
//! deltas    all of them up to here go into segments
//! rows      partitions are dropped (PostgreSQL), rows deleted in small steps (SQLite), segments likewise
//! space     SQLite's free pages are given back, in small steps
//! ```
//!
//! - **Nothing slips in behind a removal.** A writer reads the horizon inside its transaction: on SQLite nobody else
//!   writes meanwhile; on PostgreSQL it holds the lock of commit numbers already, and whoever holds that when the
//!   horizon has moved is waited for. So an event whose first telling is removed is never taken for a new one.
//! - **Nothing is read that is half gone.** A snapshot reads the horizon with the rows. On PostgreSQL a partition
//!   that is dropped is gone from older snapshots too: who has read rows looks at the horizon once more.
//! - **Killed anywhere**, the next start goes through all the steps again; each of them finds what is left.

use std::time::{Duration, Instant};

use sea_orm::ConnectionTrait;
use service_core::database::{Engine, begin};
use service_core::error::{Error, Result};
use service_core::time_range::rfc3339;
use sqlx::AssertSqlSafe;
use tokio::time::sleep;

use super::{Sealed, Store};
use crate::rollup::Level;

/// What a step that holds SQLite's writer should take: half of what is bearable.
const STEP: Duration = Duration::from_millis(10);
/// Pauses after a step, as a multiple of its time.
const PAUSE: u32 = 2;
/// Rows or pages of a first step, and of the largest.
const STEP_ROWS: (u64, u64) = (100, 5_000);
/// Free pages that are not worth giving back: writers will use them.
const FREE_PAGES: i64 = 256;
/// The pause before a partition that is in use, or a seal that another replica does, is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// How often it is tried.
const TRIES: usize = 50;
/// PostgreSQL's code for a lock that was not to be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

const DAY_US: i64 = Level::Day.width_us();
const QUARTER_US: i64 = Level::Quarter.width_us();

/// From when data are kept; the earliest time there is where nothing was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Single requests.
    pub requests_from_us: i64,
    /// Sums of requests; never later.
    pub rollups_from_us: i64,
}

/// A window as it can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First microsecond inside.
    pub start_us: i64,
    /// First microsecond after.
    pub end_us: i64,
    /// How finely its oldest part is kept, in seconds; 0 where that is single requests.
    pub resolution_seconds: i32,
}

impl Kept {
    /// What can be said of a window: where it begins before single requests are kept, its ends that lie there are
    /// moved outward to whole quarters of an hour.
    pub fn fit(&self, start_us: i64, end_us: i64, needs_requests: bool) -> Result<Window> {
        if start_us >= end_us || start_us >= self.requests_from_us {
            return Ok(Window { start_us, end_us, resolution_seconds: 0 });
        }
        self.rollups(start_us)?;
        if needs_requests {
            self.requests(start_us)?;
        }
        let start_us = Level::Quarter.start_of(start_us);
        let end_us = match Level::Quarter.start_of(end_us) {
            whole if whole == end_us || end_us >= self.requests_from_us => end_us,
            before => before + QUARTER_US,
        };
        // A quarter of an hour has few seconds.
        Ok(Window { start_us, end_us, resolution_seconds: (QUARTER_US / 1_000_000) as i32 })
    }

    /// Refuses what begins before sums are kept.
    pub(super) fn rollups(&self, start_us: i64) -> Result<()> {
        if start_us >= self.rollups_from_us {
            return Ok(());
        }
        Err(Error::OutOfRange(format!(
            "time_range begins at {}, usage is kept from {}",
            rfc3339(start_us),
            rfc3339(self.rollups_from_us)
        )))
    }

    /// Refuses what needs single requests from before they are kept.
    pub(super) fn requests(&self, start_us: i64) -> Result<()> {
        if start_us >= self.requests_from_us {
            return Ok(());
        }
        Err(Error::OutOfRange(format!(
            "time_range begins at {}, raw requests are kept from {}; before that there are sums over quarters of an \
             hour, without labels",
            rfc3339(start_us),
            rfc3339(self.requests_from_us)
        )))
    }
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Requests, but for those of partitions.
    pub requests: u64,
    /// Days of requests, as partitions.
    pub partitions: u64,
    /// Segments.
    pub segments: u64,
    /// Pages of SQLite's file that were given back.
    pub pages: u64,
    /// Partitions that were in use all the time: they are left for the next time.
    pub busy: u64,
}

/// What a step removes.
#[derive(Debug, Clone, Copy)]
enum What {
    Requests,
    Segments(Level),
    Pages,
}

impl Store {
    /// From when data are kept, now.
    pub async fn kept(&self) -> Result<Kept> {
        self.kept_in(&self.db.reader).await
    }

    /// The same as of a snapshot.
    pub(super) async fn kept_in(&self, connection: &impl ConnectionTrait) -> Result<Kept> {
        let sql = "SELECT requests_before, rollups_before FROM usage_retention";
        let row = connection.query_one_raw(self.statement(sql, [])).await?;
        let row = row.ok_or_else(|| Error::internal(anyhow::anyhow!("no row about retention")))?;
        Ok(Kept { requests_from_us: row.try_get_by_index(0)?, rollups_from_us: row.try_get_by_index(1)? })
    }

    /// After rows from `start_us` on were read: whether they were all there.
    pub(super) async fn still_kept(&self, start_us: i64) -> Result<()> {
        match self.db.engine {
            // A snapshot keeps what is deleted behind it.
            Engine::Sqlite => Ok(()),
            Engine::Postgres => self.kept().await?.requests(start_us),
        }
    }

    /// When the newest request happened.
    pub async fn newest_request(&self) -> Result<Option<i64>> {
        let sql = "SELECT CAST(MAX(occurred_at) AS BIGINT) FROM usage_requests";
        let row = self.db.reader.query_one_raw(self.statement(sql, [])).await?;
        Ok(row.map_or(Ok(None), |row| row.try_get_by_index(0))?)
    }

    /// Moves the horizons forward, to the start of the day (UTC); from now on what is before them counts as removed.
    /// A horizon that is further already stays. That of sums is never behind that of requests.
    pub async fn retain(&self, requests_from_us: i64, rollups_from_us: Option<i64>) -> Result<Kept> {
        let requests = Level::Day.start_of(requests_from_us);
        // Lower than any horizon: it stays where it is.
        let rollups = rollups_from_us.map_or(i64::MIN, |rollups| Level::Day.start_of(rollups).min(requests));
        let sql = match self.db.engine {
            Engine::Sqlite => {
                "UPDATE usage_retention \
                 SET requests_before = MAX(requests_before, $1), rollups_before = MAX(rollups_before, $2)"
            }
            // It refuses what is no day old.
            Engine::Postgres => "SELECT usage_retain($1, $2)",
        };
        self.db.writer.execute_raw(self.statement(sql, [requests.into(), rollups.into()])).await?;
        // On the writer's side: a replica for reading may be behind.
        self.kept_in(&self.db.writer).await
    }

    /// Removes what is before the horizons, and gives the space back. Others write and read meanwhile.
    pub async fn sweep(&self) -> Result<Swept> {
        let kept = self.kept_in(&self.db.writer).await?;
        let mut swept = Swept::default();
        if kept.requests_from_us == i64::MIN {
            return Ok(swept);
        }
        // Waits for the writers who may have read an earlier horizon.
        let committed = self.watermark().await?;
        self.seal_up_to(committed).await?;
        if self.db.engine == Engine::Postgres {
            self.drop_partitions(kept, &mut swept).await?;
        }
        swept.requests = self.remove_all(kept, What::Requests).await?;
        for level in Level::ALL {
            swept.segments += self.remove_all(kept, What::Segments(level)).await?;
        }
        if self.db.engine == Engine::Sqlite && self.free_pages().await? > FREE_PAGES {
            swept.pages = self.remove_all(kept, What::Pages).await?;
        }
        Ok(swept)
    }

    /// Until every delta of a commit up to this one is in segments.
    async fn seal_up_to(&self, commit_number: i64) -> Result<()> {
        let sql = "SELECT CAST(COUNT(*) AS BIGINT) FROM usage_deltas WHERE commit_number <= $1";
        let mut tries = TRIES;
        loop {
            let row = self.db.reader.query_one_raw(self.statement(sql, [commit_number.into()])).await?;
            let left: i64 = row.map_or(Ok(0), |row| row.try_get_by_index(0))?;
            if left == 0 {
                return Ok(());
            }
            let begun = Instant::now();
            match self.seal().await? {
                Sealed::Deltas { .. } => sleep(begun.elapsed() * PAUSE).await,
                _ if tries == 0 => {
                    return Err(Error::storage_unavailable(anyhow::anyhow!(
                        "{left} deltas wait for another replica, nothing is removed before they are in rollups"
                    )));
                }
                _ => {
                    tries -= 1;
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Drops the days of ids that hold nothing but what is removed: an id's time is within a day of its request's.
    /// What lies before the horizon in the days that stay is not read, and goes with them.
    async fn drop_partitions(&self, kept: Kept, swept: &mut Swept) -> Result<()> {
        const DAYS: &str = "
            SELECT (to_date(right(partition.relname, 8), 'YYYYMMDD') - date '1970-01-01')::int8
            FROM pg_inherits JOIN pg_class AS partition ON partition.oid = inhrelid
            WHERE inhparent = to_regclass('usage_requests') AND partition.relname ~ '^usage_requests_p[0-9]{8}$'
            ORDER BY 1";
        let pool = self.db.writer.get_postgres_connection_pool();
        let days: Vec<i64> = sqlx::query_scalar(DAYS).fetch_all(pool).await?;
        for day in days.into_iter().filter(|day| (day + 2).saturating_mul(DAY_US) <= kept.requests_from_us) {
            let mut tries = TRIES;
            let dropped = loop {
                let drop = sqlx::query_scalar("SELECT usage_drop_partition(date '1970-01-01' + $1::int8::int4)");
                match drop.bind(day).fetch_one(pool).await {
                    Ok(dropped) => break dropped,
                    Err(error) if !is_lock_timeout(&error) => return Err(error.into()),
                    // Somebody reads there; whoever comes now would wait behind us, so we don't.
                    Err(_) if tries == 0 => {
                        swept.busy += 1;
                        break false;
                    }
                    Err(_) => {
                        tries -= 1;
                        sleep(AGAIN).await;
                    }
                }
            };
            swept.partitions += u64::from(dropped);
        }
        Ok(())
    }

    /// In steps that are as large as may be, with pauses.
    async fn remove_all(&self, kept: Kept, what: What) -> Result<u64> {
        let mut removed = 0;
        let mut at_most = STEP_ROWS.0;
        loop {
            let (done, took) = self.remove(kept, what, at_most).await?;
            if done == 0 {
                return Ok(removed);
            }
            removed += done;
            at_most = match took {
                _ if took > STEP => (at_most / 2).max(1),
                _ if took * 2 < STEP => (at_most * 2).min(STEP_ROWS.1),
                _ => at_most,
            };
            sleep(took * PAUSE).await;
        }
    }

    /// One step: how much it removed, and how long it held the writer.
    async fn remove(&self, kept: Kept, what: What, at_most: u64) -> Result<(u64, Duration)> {
        match (what, self.db.engine) {
            (What::Requests, Engine::Sqlite) => {
                let mut connection = self.db.writer.get_sqlite_connection_pool().acquire().await?;
                let begun = Instant::now();
                let done = sqlx::query(
                    "DELETE FROM usage_requests WHERE rowid IN (SELECT rowid FROM usage_requests \
                     WHERE occurred_at < ? ORDER BY occurred_at, id LIMIT ?)",
                )
                .bind(kept.requests_from_us)
                .bind(at_most.cast_signed())
                .execute(&mut *connection)
                .await?;
                Ok((done.rows_affected(), begun.elapsed()))
            }
            (What::Requests, Engine::Postgres) => {
                let begun = Instant::now();
                let done: i64 = sqlx::query_scalar("SELECT usage_remove_requests($1::int8::int4)")
                    .bind(at_most.cast_signed())
                    .fetch_one(self.db.writer.get_postgres_connection_pool())
                    .await?;
                Ok((done.unsigned_abs(), begun.elapsed()))
            }
            (What::Segments(level), _) => self.remove_segments(kept, level, at_most).await,
            (What::Pages, _) => {
                let before = self.free_pages().await?;
                let mut connection = self.db.writer.get_sqlite_connection_pool().acquire().await?;
                let begun = Instant::now();
                let sql = AssertSqlSafe(format!("PRAGMA incremental_vacuum({at_most})"));
                sqlx::query(sql).execute(&mut *connection).await?;
                let took = begun.elapsed();
                drop(connection);
                // Others may have used, or freed, pages meanwhile.
                let after = self.free_pages().await?;
                Ok((if after == 0 { 0 } else { (before - after).max(0).unsigned_abs() }, took))
            }
        }
    }

    /// Some of the oldest segments of a level, all their sections, and that they are there.
    async fn remove_segments(&self, kept: Kept, level: Level, at_most: u64) -> Result<(u64, Duration)> {
        let level = level.number();
        let oldest = "SELECT start_us FROM usage_spans WHERE level = $1 AND start_us < $2 ORDER BY start_us LIMIT $3";
        // A segment has many rows' worth of bytes.
        let limit = (at_most / 20).max(1).cast_signed();
        let parameters = [level.into(), kept.rollups_from_us.into(), limit.into()];
        let starts = self.db.reader.query_all_raw(self.statement(oldest, parameters)).await?;
        let Some(last) = starts.last() else {
            return Ok((0, Duration::ZERO));
        };
        let last: i64 = last.try_get_by_index(0)?;
        let transaction = begin(&self.db.writer).await?;
        let begun = Instant::now();
        let sections =
            "DELETE FROM usage_segments WHERE level = $1 AND cut IN (0, 1, 2, 3, 4, 5, 6) AND start_us <= $2";
        transaction.execute_raw(self.statement(sections, [level.into(), last.into()])).await?;
        let spans = "DELETE FROM usage_spans WHERE level = $1 AND start_us <= $2";
        let done = transaction.execute_raw(self.statement(spans, [level.into(), last.into()])).await?;
        transaction.commit().await?;
        Ok((done.rows_affected(), begun.elapsed()))
    }

    async fn free_pages(&self) -> Result<i64> {
        let pool = self.db.reader.get_sqlite_connection_pool();
        Ok(sqlx::query_scalar("SELECT freelist_count FROM pragma_freelist_count").fetch_one(pool).await?)
    }
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == LOCK_NOT_AVAILABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-05T00:00:00Z and 30 days before.
    const KEPT: Kept = Kept { requests_from_us: 1_767_571_200_000_000, rollups_from_us: 1_764_979_200_000_000 };
    const SECOND: i64 = 1_000_000;

    fn fit(start_us: i64, end_us: i64, needs_requests: bool) -> Result<(i64, i64, i32), String> {
        let window = KEPT.fit(start_us, end_us, needs_requests).map_err(|error| error.to_string())?;
        Ok((window.start_us, window.end_us, window.resolution_seconds))
    }

    #[test]
    fn windows_of_kept_requests_stay_as_they_are() {
        let from = KEPT.requests_from_us;
        for (start, end) in [(from, from + 1), (from + 7, from + 9), (from, i64::MAX), (from - 5, from - 5), (9, 3)] {
            assert_eq!(fit(start, end, true), Ok((start, end, 0)));
        }
    }

    #[test]
    fn ends_among_removed_requests_move_outward() {
        let from = KEPT.requests_from_us;
        let quarter = QUARTER_US;
        for (window, expected) in [
            ((from - 1, from + 7), (from - quarter, from + 7)),
            ((from - quarter, from), (from - quarter, from)),
            ((from - quarter + 1, from - 1), (from - quarter, from)),
            ((from - 3 * quarter - 1, from - 2 * quarter + 1), (from - 4 * quarter, from - quarter)),
            ((KEPT.rollups_from_us, from + SECOND), (KEPT.rollups_from_us, from + SECOND)),
        ] {
            assert_eq!(fit(window.0, window.1, false), Ok((expected.0, expected.1, 900)), "{window:?}");
            let why = fit(window.0, window.1, true).expect_err("needs requests");
            assert!(why.contains("raw requests are kept from 2026-01-05T00:00:00"), "{why}");
        }
    }

    #[test]
    fn what_begins_before_the_sums_is_refused_with_when_they_begin() {
        for needs_requests in [false, true] {
            let why = fit(KEPT.rollups_from_us - 1, i64::MAX, needs_requests).expect_err("removed");
            assert!(why.contains("usage is kept from 2025-12-06T00:00:00"), "{why}");
        }
    }
}
