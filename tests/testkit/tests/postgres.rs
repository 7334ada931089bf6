//! The PostgreSQL of the kit: databases, restarts, and its end with the test process however that ends.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use testkit::{ChildProcess, Durability, Postgres, eventually, rss_bytes};

const TIMEOUT: Duration = Duration::from_secs(60);
const NEVER_ENDS: &str = "TESTKIT_NEVER_ENDS";

/// What `psql` prints for a statement, or why it failed. The client comes with the server's package.
fn ask(url: &str, sql: &str) -> Result<String, String> {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "-c", sql, url])
        .output()
        .expect("run psql");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn ok(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

#[tokio::test]
async fn every_database_is_new_and_empty() {
    if Postgres::skipped() {
        return;
    }
    let server = Postgres::shared().await;
    let (first, second) = tokio::join!(server.create_database(), server.create_database());
    assert_ne!(first, second);
    assert_eq!(ask(&first, "create table t (n int)"), ok(""));
    assert_eq!(ask(&second, "select to_regclass('t') is null"), ok("t"));
}

#[tokio::test]
async fn one_server_is_shared_and_it_is_not_a_friendly_one() {
    if Postgres::skipped() {
        return;
    }
    let server = Postgres::shared().await;
    assert_eq!(server.pid(), Postgres::shared().await.pid());
    assert!(rss_bytes(server.pid().unwrap()) > 1 << 20);
    let url = server.create_database().await;
    assert_eq!(ask(&url, "show fsync"), ok("off"));
    assert_eq!(ask(&url, "show timezone"), ok("Asia/Kathmandu"));
    // By bytes it is the other way round.
    assert_eq!(ask(&url, "select 'a' < 'B'"), ok("t"));
}

#[tokio::test]
async fn committed_rows_outlive_a_stop_and_a_crash() {
    if Postgres::skipped() {
        return;
    }
    let server = Postgres::start().await;
    let url = server.create_database().await;
    assert_eq!(ask(&url, "show fsync"), ok("on"));
    assert_eq!(ask(&url, "create table t (n int); insert into t values (1)"), ok(""));
    let port = server.port();

    server.stop().await;
    assert_eq!(server.pid(), None);
    assert!(ask(&url, "select 1").is_err());
    server.start_again().await;
    assert_eq!(ask(&url, "insert into t values (2)"), ok(""));

    server.crash().await;
    assert!(ask(&url, "select 1").is_err());
    server.start_again().await;
    assert_eq!(ask(&url, "select sum(n) from t"), ok("3"));
    assert_eq!(server.port(), port);
}

#[tokio::test]
async fn a_dropped_server_leaves_nothing_behind() {
    if Postgres::skipped() {
        return;
    }
    let server = Postgres::start_with(Durability::Relaxed).await;
    let pid = server.pid().unwrap();
    let folder = data_folder(pid);
    assert!(Path::new(&folder).is_dir());
    drop(server);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!Path::new(&folder).exists());
}

#[tokio::test]
async fn a_killed_test_process_takes_its_server_along() {
    if Postgres::skipped() {
        return;
    }
    let this = std::env::current_exe().unwrap();
    let mut test = ChildProcess::start(Command::new(this).env(NEVER_ENDS, "1").args([
        "--nocapture",
        "--exact",
        "a_test_that_never_ends",
    ]));
    let line = test.line("server ", TIMEOUT).await;
    let pid: u32 = line.strip_prefix("server ").unwrap().parse().unwrap();
    let folder = data_folder(pid);
    assert!(Path::new(&folder).is_dir());

    test.kill();
    eventually(TIMEOUT, async || !running(pid) && !Path::new(&folder).exists()).await;
}

/// The other half of the test above, which runs it by name and kills it; without the variable it does nothing.
#[tokio::test]
async fn a_test_that_never_ends() {
    if std::env::var_os(NEVER_ENDS).is_none() {
        return;
    }
    let server = Postgres::shared().await;
    // On a line of its own: the test harness has begun one.
    println!("\nserver {}", server.pid().unwrap());
    std::future::pending::<()>().await;
}

/// An orphan that has ended may stay as a zombie where nothing reaps it.
fn running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn data_folder(pid: u32) -> String {
    let command_line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let mut arguments = command_line.split('\0').skip_while(|argument| *argument != "-D");
    arguments.nth(1).unwrap().to_owned()
}
