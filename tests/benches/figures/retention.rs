//! Retention lets a day of requests go on PostgreSQL: how long that takes, and what writers notice of it.
//!
//! A replica takes events at a steady pace, twice. While it does so the second time, another replica starts that is
//! told to keep less, and removes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use sqlx::{Connection, PgConnection, Row};

use crate::machine::{Measured, Times, ms};
use crate::place::{self, Engine, Places};
use crate::traffic::{DAY_US, HOUR_US, Traffic};
use crate::{Kind, load};

/// How many days ago the day is, and how many are kept in the end.
const AGO: i64 = 20;
const KEPT: &str = "10";
/// How long the removal may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many requests the day has.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// How many come a second meanwhile.
    #[arg(long, default_value_t = 10_000)]
    per_second: u64,
    /// How long they come.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Put the data here.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Put PostgreSQL's data on this server: `postgres://USER@HOST:PORT`.
    #[arg(long)]
    postgres: Option<String>,
}

pub(crate) async fn run(arguments: Arguments) {
    let mut places = Places::new(arguments.folder.as_deref(), arguments.postgres.as_deref());
    println!("{}", place::versions(&mut places, &[Engine::Postgres]).await);
    let name = "retention";
    places.remove(Engine::Postgres, name).await;
    let url = places.url(Engine::Postgres, name).await;
    let now_us = i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros()).unwrap();
    let day_us = (now_us.div_euclid(DAY_US) - AGO) * DAY_US;

    let mut writer = Measured::start(Kind::Usage.name(), &url, &[]).await;
    load::fill(writer.service.channel(), &Arc::new(Traffic::day(day_us, arguments.events))).await;
    let table = partition(&url, day_us).await;
    let rows = place::number(&url, &format!("SELECT COUNT(*) FROM {table}")).await;
    println!("  {rows} requests of one day, in {table}");
    // What the fill left to be written is no part of what follows.
    place::checkpoint(&url).await;

    let before = paced(&writer, now_us - 3 * HOUR_US, &arguments).await;
    print("before", &before);
    let removing = async {
        tokio::time::sleep(Duration::from_secs(arguments.seconds) / 4).await;
        let watched = tokio::spawn(watch(url.clone(), table.clone()));
        let remover = Measured::start(Kind::Usage.name(), &url, &[("RETENTION__REQUESTS_DAYS", KEPT)]).await;
        (watched.await.unwrap(), remover)
    };
    let (meanwhile, (took, mut remover)) = tokio::join!(paced(&writer, now_us - 2 * HOUR_US, &arguments), removing);
    print("meanwhile", &meanwhile);
    println!(
        "  the day counted as removed, and {} ms later its {rows} requests were gone; ingest's p99 was {:.2} of that before",
        took.as_millis(),
        ms(meanwhile.p99()) / ms(before.p99())
    );
    remover.stop().await;
    writer.stop().await;
    places.remove(Engine::Postgres, name).await;
}

/// The partition that this time's requests are in.
async fn partition(url: &str, at_us: i64) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let sql = "SELECT 'usage_requests_p' || to_char(to_timestamp($1::float8 / 1000000) AT TIME ZONE 'UTC', 'YYYYMMDD')";
    sqlx::query(sql).bind(at_us as f64).fetch_one(&mut connection).await.unwrap().get(0)
}

/// How long after the horizon has moved the partition is gone.
async fn watch(url: String, table: String) -> Duration {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let begun = Instant::now();
    let mut moved = None;
    loop {
        let sql = "SELECT requests_before > 0, to_regclass($1) IS NULL FROM usage_retention";
        let row = sqlx::query(sql).bind(&table).fetch_one(&mut connection).await.unwrap();
        let (has_moved, gone): (bool, bool) = (row.get(0), row.get(1));
        if has_moved {
            let moved = *moved.get_or_insert_with(Instant::now);
            if gone {
                return moved.elapsed();
            }
        }
        assert!(begun.elapsed() < PATIENCE, "{table} is still there");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn paced(writer: &Measured, start_us: i64, arguments: &Arguments) -> Times {
    let traffic = Arc::new(Traffic::hour(start_us, arguments.per_second * arguments.seconds));
    load::usage_acknowledgements(writer.service.channel(), traffic, arguments.per_second as f64).await
}

fn print(when: &str, times: &Times) {
    println!(
        "  acknowledgements {when}: median {:.1} ms, p99 {:.1} ms, at most {:.0} ms",
        ms(times.median()),
        ms(times.p99()),
        ms(times.max())
    );
}
