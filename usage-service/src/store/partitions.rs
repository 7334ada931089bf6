//! Partitions of `usage_requests` on PostgreSQL: one for each day (UTC) of the time
//! in the ids, and the default partition for what is very old.
//!
//! ```text
//! ahead        yesterday .. a week from now      at start and hourly, in the background
//! on demand    any day of the last 400           before the first insert that meets it
//! never        days before that                  the default partition takes them
//! ```
//!
//! A writer makes what it needs in a transaction of its own, before it begins the one
//! that inserts. Replicas that race for a day wait for each other in the function that
//! makes it (`usage_add_partition`, of the schema's owner), and find it made.
//!
//! A day that can't be made on demand, for whatever reason (mostly: somebody reads
//! from the default partition all the time), stops nobody. It is tried again with
//! later groups, not with each of them: one try may take as long as `PATIENCE`.
//!
//! A day that is in memory as made may have been removed since: then its rows go into
//! the default partition, where they are found all the same.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use service_core::clock;
use service_core::database::{Engine, begin_postgres};
use service_core::error::{Error, Result};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Store;

/// Days before and after today that are made without being asked for.
const AHEAD: std::ops::RangeInclusive<i64> = -1..=7;
/// Days before today that are made on demand. An id's time is at most a day ahead of
/// its request's, so nothing is asked for beyond what is made ahead.
const ON_DEMAND: std::ops::RangeInclusive<i64> = -400..=7;

const DAY_US: i64 = 86_400 * clock::MICROS_PER_SECOND;
/// How far the time of an id may be from that of its request.
const ID_SKEW_US: i64 = DAY_US;

/// Time between two looks at the days ahead, and after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(3_600), Duration::from_secs(60));
/// Tries to make a day, when others use the default partition all the time.
const TRIES: u32 = 3;
/// How long a group waits for a day at most.
const PATIENCE: &str = "5s";
/// After a failure: before a writer tries another day, and before one tries that day again.
const LATER: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// What is known of partitions.
#[derive(Debug)]
pub(super) struct Partitions {
    days: Mutex<Days>,
    failures: IntCounter,
}

/// Days since the epoch.
#[derive(Debug, Default)]
struct Days {
    /// Nothing is left to make.
    made: HashSet<i64>,
    /// Could not be made, and when that was.
    failed: HashMap<i64, Instant>,
}

impl Days {
    /// Whether a writer should try to make this day now.
    fn is_due(&self, day: i64, now: Instant) -> bool {
        let ago = |failed: &Instant| now.saturating_duration_since(*failed);
        !self.made.contains(&day)
            && self.failed.values().all(|failed| ago(failed) >= LATER.0)
            && self.failed.get(&day).is_none_or(|failed| ago(failed) >= LATER.1)
    }
}

impl Partitions {
    pub(super) fn new() -> Self {
        #[expect(clippy::expect_used, reason = "the name and the help are well-formed")]
        let failures = IntCounter::new(
            "activity_usage_partitions_not_made_total",
            "days that a writer could not make the partition of",
        )
        .expect("a counter");
        Self { days: Mutex::default(), failures }
    }

    /// A panic while it is held leaves it as it was: each use is one lookup or one insertion.
    fn days(&self) -> MutexGuard<'_, Days> {
        self.days.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Makes the partitions of the coming days; again whether they are known or not.
    pub async fn make_partitions_ahead(&self) -> Result<()> {
        if self.db.engine == Engine::Sqlite {
            return Ok(());
        }
        let today = day_of(clock::now_us());
        for day in AHEAD {
            let mut tries = 1;
            // Somebody read from the default partition for too long: it has no turn to wait for, or all who come
            // after would wait too.
            while let Err(error) = self.make_partition(today + day, None).await {
                if tries == TRIES || !matches!(error, Error::Contention(_)) {
                    return Err(error);
                }
                tries += 1;
            }
        }
        Ok(())
    }

    /// Counts the days that writers could not make a partition of.
    pub fn partitions_not_made(&self) -> IntCounter {
        self.partitions.failures.clone()
    }

    /// Keeps partitions made ahead until `stop` is cancelled. A failure is logged, and
    /// tried again; as long as it lasts, writers make what they need.
    pub async fn keep_partitions_ahead(self, stop: CancellationToken) {
        while self.db.engine == Engine::Postgres && !stop.is_cancelled() {
            let pause = match self.make_partitions_ahead().await {
                Ok(()) => PAUSES.0,
                Err(error) => {
                    tracing::error!(%error, "partitions of the coming days cannot be made");
                    PAUSES.1
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Makes the partitions that these ids belong to, as far as that can be done now.
    pub(super) async fn make_partitions_of(&self, ids: impl Iterator<Item = Uuid>) {
        if self.db.engine == Engine::Sqlite {
            return;
        }
        let today = day_of(clock::now_us());
        let mut days: Vec<i64> = ids.map(|id| day_of(time_of(id))).collect();
        days.sort_unstable();
        days.dedup();
        days.retain(|day| ON_DEMAND.contains(&(day - today)));
        for day in days {
            if !self.partitions.days().is_due(day, Instant::now()) {
                continue;
            }
            if let Err(error) = self.make_partition(day, Some(PATIENCE)).await {
                tracing::warn!(day, %error, "a partition cannot be made, the default partition takes its requests");
                self.partitions.failures.inc();
                self.partitions.days().failed.insert(day, Instant::now());
            }
        }
    }

    async fn make_partition(&self, day: i64, patience: Option<&str>) -> Result<()> {
        let mut transaction = begin_postgres(&self.db.writer).await?;
        if let Some(patience) = patience {
            let sql = "SELECT set_config('statement_timeout', $1, true)";
            sqlx::query(sql).bind(patience).execute(&mut *transaction).await?;
        }
        let made: bool = sqlx::query_scalar("SELECT usage_add_partition(date '1970-01-01' + $1)")
            .bind(i32::try_from(day).map_err(Error::internal)?)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        if !made {
            tracing::debug!(day, "requests of a day stay in the default partition");
        }
        let mut days = self.partitions.days();
        days.failed.remove(&day);
        days.made.insert(day);
        Ok(())
    }
}

fn day_of(us: i64) -> i64 {
    us.div_euclid(DAY_US)
}

/// The time in a UUIDv7: its first 48 bits are milliseconds.
pub(super) fn time_of(id: Uuid) -> i64 {
    // 48 bits of milliseconds fit an i64 of microseconds.
    (id.as_u128() >> 80) as i64 * 1_000
}

/// Where the ids of requests in `start_us..end_us` lie: from the first, to before the
/// second. None is no bound.
pub(super) fn id_bounds(start_us: i64, end_us: i64) -> (Option<Uuid>, Option<Uuid>) {
    let least = |millis: i64| {
        let millis = u64::try_from(millis).ok().filter(|millis| *millis > 0 && *millis < 1 << 48)?;
        Some(Uuid::from_u128(u128::from(millis) << 80))
    };
    let first = start_us.saturating_sub(ID_SKEW_US).div_euclid(1_000);
    let last = end_us.saturating_sub(1).saturating_add(ID_SKEW_US).div_euclid(1_000);
    (least(first), least(last + 1))
}

#[cfg(test)]
mod tests {
    use service_core::auth::Access;
    use service_core::config::{DatabaseConfig, DatabaseUrl};

    use super::*;
    use crate::model::{Filter, Position, Scope};
    use crate::store::Order;

    #[test]
    fn ids_of_a_range_are_within_its_bounds() {
        let noon = 1_767_614_400_000_000;
        let (low, high) = id_bounds(noon, noon + 1);
        let (low, high) = (low.expect("a bound"), high.expect("a bound"));
        for skew in [-DAY_US, 0, DAY_US] {
            let id = Uuid::from_u128(((((noon + skew) / 1_000) as u128) << 80) | (u128::MAX >> 48));
            assert!(low <= id && id < high, "{skew}");
            assert_eq!(time_of(id), noon + skew);
        }
        for skew in [-DAY_US - 1_000, DAY_US + 1_000] {
            let id = Uuid::from_u128((((noon + skew) / 1_000) as u128) << 80);
            assert!(!(low <= id && id < high), "{skew}");
        }
        assert_eq!(id_bounds(0, i64::MAX), (None, None));
        assert_eq!(id_bounds(i64::MIN, 0).0, None);
    }

    async fn postgres() -> Option<(Store, DatabaseUrl)> {
        if testkit::Postgres::skipped() {
            return None;
        }
        let url = DatabaseUrl::new(testkit::Postgres::shared().await.create_database().await).expect("valid");
        Some((Store::open(&url, &DatabaseConfig::default(), 1 << 20).await.expect("opens"), url))
    }

    fn at(us: i64, n: u64) -> Uuid {
        Uuid::from_u128(((us / 1_000) as u128) << 80 | (7 << 76) | (2 << 62) | u128::from(n))
    }

    async fn partitions(store: &Store) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'usage_requests'::regclass ORDER BY 1",
        )
        .fetch_all(store.db.writer.get_postgres_connection_pool())
        .await
        .expect("answered")
    }

    #[tokio::test]
    async fn partitions_are_made_ahead_and_on_demand_and_by_replicas_at_once() {
        let Some((store, url)) = postgres().await else { return };
        store.make_partitions_ahead().await.expect("made");
        assert_eq!(partitions(&store).await.len(), 1 + 9);
        store.make_partitions_ahead().await.expect("made again");

        let now = clock::now_us();
        let other = Store::open(&url, &DatabaseConfig::default(), 1 << 20).await.expect("opens");
        let days: Vec<Uuid> = (0..30).map(|day| at(now - (20 + day) * DAY_US, 1)).collect();
        let ids = || days.iter().copied().chain([at(now - 500 * DAY_US, 1), Uuid::nil(), Uuid::max()]);
        tokio::join!(store.make_partitions_of(ids()), other.make_partitions_of(ids().rev()));
        assert_eq!(partitions(&store).await.len(), 1 + 9 + 30, "very old and impossible days have none");
    }

    #[tokio::test]
    async fn a_day_whose_requests_are_in_the_default_partition_stays_there() {
        let Some((store, _)) = postgres().await else { return };
        let id = at(clock::now_us() - 30 * DAY_US, 1);
        let columns = "recorded_at, commit_number, instance_id, user_id, team_id, api_key_id, provider, \
             requested_model, model, status, operation, input_uncached, input_cache_read, input_cache_write, \
             input_cache_write_1h, output, output_reasoning, other_units, service_tier, processing, request_id, \
             labels, price_conditions, charge_ref, content_hash";
        let sql = format!(
            "INSERT INTO usage_requests (id, occurred_at, {columns}) VALUES \
             ('{id}', 0, 0, 0, '', '', '', '', '', '', '', 1, '', 0, 0, 0, 0, 0, 0, '', '', '', '', '', '', 0, '')"
        );
        let pool = store.db.writer.get_postgres_connection_pool();
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(pool).await.expect("inserted");
        store.make_partitions_of([id].into_iter()).await;
        assert_eq!(partitions(&store).await, ["usage_requests_default"]);
        store.make_partitions_of([at(clock::now_us() - 31 * DAY_US, 1)].into_iter()).await;
        assert_eq!(partitions(&store).await.len(), 2, "its neighbour is made");
    }

    #[tokio::test]
    async fn a_day_that_cannot_be_made_stops_nobody_and_is_made_later() {
        let Some((store, _)) = postgres().await else { return };
        let id = |n: u64| at(clock::now_us() - 30 * DAY_US, n);
        let day = day_of(time_of(id(0)));
        let pool = store.db.reader.get_postgres_connection_pool();
        let mut reader = pool.begin().await.expect("begun");
        sqlx::query("SELECT 1 FROM usage_requests_default").execute(&mut *reader).await.expect("read");
        for n in 0..9 {
            store.make_partitions_of([id(n)].into_iter()).await;
        }
        assert_eq!(partitions(&store).await, ["usage_requests_default"]);
        assert_eq!(store.partitions_not_made().get(), 1, "it is not tried for each group");
        reader.rollback().await.expect("ended");

        let now = Instant::now();
        {
            let days = store.partitions.days();
            let due = |day, later| days.is_due(day, now + later);
            assert_eq!((due(day, LATER.0), due(day, LATER.1)), (false, true));
            assert_eq!((due(day - 1, Duration::ZERO), due(day - 1, LATER.0)), (false, true));
        }
        store.partitions.days().failed.clear();
        store.make_partitions_of([id(1)].into_iter()).await;
        assert_eq!(partitions(&store).await.len(), 2);
        assert!(!store.partitions.days().is_due(day, now + LATER.1));
    }

    #[tokio::test]
    async fn what_is_read_by_time_reads_the_days_that_may_hold_it() {
        use sea_orm::{ConnectionTrait as _, Statement};
        let Some((store, _)) = postgres().await else { return };
        let midnight = day_of(clock::now_us()) * DAY_US;
        store.make_partitions_of((0..30).map(|day| at(midnight - day * DAY_US, 1))).await;
        let day = |back: i64| midnight - back * DAY_US;
        let plan = async |scope: &Scope, order, after| {
            let page = store.page(scope, order, after, 50);
            let explained = Statement { sql: format!("EXPLAIN {}", page.sql), ..page };
            let rows = store.db.reader.query_all_raw(explained).await.expect("explained");
            let text: Vec<String> = rows.iter().map(|row| row.try_get_by_index(0).expect("text")).collect();
            let text = text.join("\n");
            let read: HashSet<&str> =
                text.match_indices("usage_requests_p2").map(|(at, _)| &text[at..at + 24]).collect();
            let rest = text.contains("usage_requests_default");
            (read.len(), rest)
        };
        let scope = |start_us, end_us| Scope {
            start_us,
            end_us,
            access: Access::unrestricted(),
            filter: Filter::default(),
            watermark: None,
            caller: "".into(),
        };
        // A day's requests, and one to each side.
        let one = scope(day(10), day(9));
        assert_eq!(plan(&one, Order::NewestFirst, None).await, (3, false));
        let noon = scope(day(10) + DAY_US / 2 - 1, day(10) + DAY_US / 2);
        assert_eq!(plan(&noon, Order::NewestFirst, None).await, (3, false));
        // A page leaves out what is behind it.
        let ten = scope(day(20), day(10));
        assert_eq!(plan(&ten, Order::NewestFirst, None).await, (12, false));
        let after = Some(Position { occurred_at_us: day(18) + DAY_US / 2, id: Uuid::nil() });
        assert_eq!(plan(&ten, Order::NewestFirst, after).await, (5, false));
        assert_eq!(plan(&ten, Order::OldestFirst, after).await, (10, false));
        // Beyond the days that there are, the default partition.
        assert_eq!(plan(&scope(day(400), day(399)), Order::NewestFirst, None).await, (0, true));
    }

    #[test]
    fn days_begin_at_midnight_on_both_sides_of_the_epoch() {
        assert_eq!([-1, 0, DAY_US - 1, DAY_US].map(day_of), [-1, 0, 0, 1]);
    }
}
