//! One suite, stamped over both engines and over a Citus cluster: what is stored, and what is answered.
#![allow(clippy::unwrap_used, reason = "a test")]

mod checks;
mod citus;
mod coverage;
mod events;
mod groups;
mod reads;
mod reference;
mod retention;
mod rollups;
mod turns;
mod writes;
mod zones;

use service_core::config::{DatabaseConfig, DatabaseUrl};
use tempfile::TempDir;
use usage_service::store::Store;

/// An empty store, and what must outlive it.
pub(crate) struct Bench {
    pub(crate) store: Store,
    pub(crate) url: DatabaseUrl,
    config: DatabaseConfig,
    _folder: Option<TempDir>,
}

impl Bench {
    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::sqlite(folder.path().join("usage.db"));
        let config = DatabaseConfig::default();
        Self { store: open(&url, &config).await, url, config, _folder: Some(folder) }
    }

    async fn postgres() -> Self {
        let url = testkit::Postgres::shared().await.create_database().await;
        let url = DatabaseUrl::new(url).unwrap();
        let config = DatabaseConfig::default();
        Self { store: open(&url, &config).await, url, config, _folder: None }
    }

    /// Shards of a table, if it is a cluster's.
    pub(crate) fn citus_shards(&self) -> Option<std::num::NonZeroU32> {
        self.config.citus_shards
    }

    /// Changes the database behind the store's back, as a failover does.
    pub(crate) async fn execute(&self, sql: &str) {
        let db = sea_orm::Database::connect(self.url.expose()).await.unwrap();
        sea_orm::ConnectionTrait::execute_unprepared(&db, sql).await.unwrap();
        db.close().await.unwrap();
    }

    /// One number of the database.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let db = sea_orm::Database::connect(self.url.expose()).await.unwrap();
        let statement = sea_orm::Statement::from_string(sea_orm::ConnectionTrait::get_database_backend(&db), sql);
        let row = sea_orm::ConnectionTrait::query_one_raw(&db, statement).await.unwrap().unwrap();
        db.close().await.unwrap();
        row.try_get_by_index(0).unwrap()
    }

    /// The same database, opened by a process that knows nothing of it yet.
    pub(crate) async fn reopened(self) -> Self {
        let Self { store, url, config, _folder } = self;
        store.close().await;
        Self { store: open(&url, &config).await, url, config, _folder }
    }

    /// The same, otherwise configured.
    pub(crate) async fn reopened_as(mut self, config: DatabaseConfig) -> Self {
        self.config = config;
        self.reopened().await
    }

    /// Another replica, where the engine allows it.
    pub(crate) async fn replica(&self) -> Store {
        match self.url.sqlite_path() {
            Some(_) => self.store.clone(),
            None => open(&self.url, &self.config).await,
        }
    }
}

async fn open(url: &DatabaseUrl, config: &DatabaseConfig) -> Store {
    Store::open(url, config, 16 << 20).await.unwrap()
}

/// Runs each of these on both engines, and on a Citus cluster if there is one.
macro_rules! on_all_engines {
    ($($module:ident :: $test:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                crate::$module::$test(crate::Bench::sqlite().await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $test() {
                if !testkit::Postgres::skipped() {
                    crate::$module::$test(crate::Bench::postgres().await).await;
                }
            })*
        }
        mod on_citus {
            $(#[tokio::test]
            async fn $test() {
                if !testkit::Citus::skipped() {
                    let (bench, citus) = crate::Bench::citus().await;
                    crate::$module::$test(bench).await;
                    citus.drop_database().await;
                }
            })*
        }
        /// One after the other.
        async fn every_behaviour(bench: impl AsyncFn() -> Bench) {
            $(Box::pin($module::$test(bench().await)).await;)*
        }
    };
}

on_all_engines!(
    checks::a_check_finds_what_was_changed_and_repairs_it,
    checks::what_waits_to_be_sealed_is_no_difference,
    checks::nothing_is_made_of_fewer_requests_than_none,
    checks::a_repair_reaches_every_replica,
    checks::a_damaged_delta_is_made_up_for_by_its_requests,
    retention::sums_of_removed_requests_stay,
    retention::events_before_the_horizon_are_refused,
    retention::what_is_accepted_is_counted_once_while_rows_are_removed,
    retention::a_removal_that_is_cut_off_is_finished_by_the_next,
    retention::sums_are_removed_after_their_time,
    retention::space_is_given_back,
    writes::everything_is_given_back_as_it_was_stored,
    writes::repeats_and_conflicts_are_told_apart_in_one_group_and_across,
    writes::a_producers_number_belongs_to_one_event,
    writes::writing_the_same_batches_again_stores_nothing,
    writes::large_groups_are_stored_whole,
    writes::replicas_that_write_the_same_events_agree,
    writes::dropped_ranges_are_taken,
    coverage::coverage_tells_received_missing_and_dropped,
    coverage::what_is_sent_again_under_another_number_is_not_missing,
    writes::references_that_the_database_lost_are_written_again,
    reads::pages_walk_through_ties_in_both_orders,
    reads::late_events_are_in_every_answer_at_once,
    reads::nothing_is_an_answer_too,
    reads::labels_match_exactly,
    reads::text_of_all_scripts_is_kept_apart,
    reads::sums_beyond_64_bits_are_exact,
    reads::a_watermark_holds_while_writers_go_on,
    reads::a_writer_that_hangs_holds_up_watermarks_and_no_writers,
    groups::every_set_of_dimensions_equals_the_reference,
    groups::random_questions_equal_the_reference,
    rollups::acknowledged_requests_are_counted_once_while_replicas_seal,
    rollups::a_sealing_that_is_cut_off_anywhere_has_happened_or_not,
    rollups::late_requests_of_many_days_are_sealed_in_short_steps,
    rollups::an_end_that_cuts_a_quarter_is_answered_without_the_requests_before_it,
    turns::quick_reads_wait_neither_for_long_ones_nor_for_those_that_were_left,
    zones::buckets_follow_the_clock_of_the_zone,
);
