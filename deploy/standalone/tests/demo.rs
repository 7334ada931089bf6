//! The demo as a user runs it: what it prints is what the generator made, a second
//! run over the same folder stores nothing twice, and the folder can be served.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use activity_proto::usage::v1::{RequestStatus, UsageEvent};
use standalone::demo::show;
use standalone::sample::Plan;
use standalone::sample::actions::actions;
use standalone::sample::traffic::Traffic;
use standalone::time::{SECOND_US, now_us, rfc3339};

/// A whole second, an hour ago.
fn until_us() -> i64 {
    now_us() / SECOND_US * SECOND_US - 3_600 * SECOND_US
}

fn demo(folder: &Path, until_us: Option<i64>, more: &[&str]) -> String {
    let until = until_us.map(|us| format!("--until={}", rfc3339(us)));
    let output = Command::new(env!("CARGO_BIN_EXE_standalone"))
        .args(["demo", "--exit"])
        .args(until)
        .args(["--audit-listen", "127.0.0.1:0", "--usage-listen", "127.0.0.1:0"])
        .arg("--data-dir")
        .arg(folder)
        .args(more)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// The number in the second column of the row of that name.
fn printed(output: &str, name: &str) -> String {
    let row =
        output.lines().map(str::trim).find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with("  ")));
    let row = row.unwrap_or_else(|| panic!("no row {name} in\n{output}"));
    row[name.len()..].split_whitespace().next().unwrap().to_owned()
}

fn tokens(event: &UsageEvent) -> i64 {
    let tokens = event.tokens.unwrap();
    tokens.input_uncached() + tokens.input_cache_read() + tokens.input_cache_write() + tokens.output()
}

#[test]
fn totals_are_those_of_the_generator_and_a_second_run_stores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let until_us = until_us();
    let arguments = ["--days", "12", "--events", "3000", "--users", "40", "--seed", "5"];
    let output = demo(folder.path(), Some(until_us), &arguments);
    assert!(output.starts_with(&format!("Data in {}.\n", folder.path().display())), "{output}");

    let plan = Plan { seed: 5, days: 12, users: 40, events: 3_000, until_us };
    let events: Vec<UsageEvent> = Traffic::new(&plan).collect();
    let distinct = |of: fn(&UsageEvent) -> &str| events.iter().map(of).collect::<BTreeSet<_>>().len();
    let failed = events.iter().filter(|event| event.status() != RequestStatus::Ok).count();
    let unpriced = events.iter().filter(|event| event.provider == "self-hosted").count();
    let total: i64 = events.iter().map(tokens).sum();
    for (name, expected) in [
        ("requests", 3_000),
        ("of which failed", failed),
        ("tokens", total as usize),
        ("users", distinct(|event| &event.user_id)),
        ("models", distinct(|event| &event.model)),
        ("requests without a price", unpriced),
    ] {
        assert_eq!(printed(&output, name), show::count(expected as u64), "{name}");
    }
    let acted = actions(&plan).len();
    assert!(output.contains(&format!("Streamed 3,000 requests and {acted} administrative actions")), "{output}");
    // The cause of the spike is found, by what the services say alone.
    assert!(output.contains("dana.whitfield@example.com did it"), "{output}");
    assert!(output.contains("+ \"gpt-5.4-pro\""), "{output}");
    // And what it did to everything that it touched: before, nobody used the model.
    let model = output
        .lines()
        .find(|line| line.trim_start().starts_with("model gpt-5.4-pro ") && line.trim_end().ends_with("new"));
    let cells: Vec<&str> = model.unwrap_or_else(|| panic!("{output}")).split_whitespace().collect();
    assert_eq!((cells[2], cells[4]), ("0", "$0.00"), "{output}");
    assert!(cells[3] != "0" && output.contains("gpt-5.4-pro alone: 0 requests for $0.00 became "), "{output}");

    // Without its flags it repeats exactly what the folder holds.
    let again = demo(folder.path(), None, &[]);
    let known = format!("The folder had {} of these events already", show::count(3_000 + acted as u64));
    assert!(again.contains(&known), "{again}");
    assert!(again.contains("which holds this demo already: --seed 5 --days 12 "), "{again}");
    let after_first_line = |text: &str| {
        let start = text.find("Usage analytics").unwrap();
        let end = text.find("Ask further").unwrap();
        text[start..end].to_owned()
    };
    assert_eq!(after_first_line(&again), after_first_line(&output));
}

#[test]
fn replayed_files_are_all_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("requests.csv");
    let rows: String = (0..200)
        .map(|row| format!("2023-11-16 18:{:02}:{:02}.1234567,{},{}\n", row / 60, row % 60, 100 + row, 10))
        .collect();
    std::fs::write(&csv, format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")).unwrap();
    let output = demo(&folder.path().join("data"), Some(until_us()), &["--requests", csv.to_str().unwrap()]);
    assert_eq!(printed(&output, "requests"), "200");
    assert_eq!(printed(&output, "tokens"), show::count((0..200).map(|row| 110 + row).sum()));
    assert!(output.contains("no entries in this range"), "{output}");
}

#[test]
fn reader_that_has_seen_enough_ends_the_demo_and_leaves_no_folder() {
    let temporary = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_standalone"))
        .args(["demo", "--events", "200", "--days", "3"])
        .args(["--audit-listen", "127.0.0.1:0", "--usage-listen", "127.0.0.1:0"])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn events_that_the_services_refuse_end_the_demo_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("requests.csv");
    // When the latest is now, the first is before the services' years.
    let rows = "1970-01-01 00:00:00,1,2\n2023-11-16 18:17:03,1,2\n";
    std::fs::write(&csv, format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_standalone"))
        .args(["demo", "--exit", "--requests"])
        .arg(&csv)
        .args(["--audit-listen", "127.0.0.1:0", "--usage-listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("TIME_OUT_OF_BOUNDS"), "{stderr}");
}

#[test]
fn file_that_cannot_be_replayed_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("requests.csv");
    std::fs::write(&csv, "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,many,2\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_standalone"))
        .args(["demo", "--exit", "--requests"])
        .arg(&csv)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("line 2") && stderr.contains("ContextTokens"), "{stderr}");
}
