//! DuckDB over the same rows: the table is made from what the service has stored.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::tools::root;
use serde_json::{Value, json};

use super::question::{Answer, QUESTIONS};
use crate::machine::{Times, python};
use crate::place::{Places, csv};

/// What DuckDB answered to a question.
pub(crate) struct Peer {
    pub(crate) rows: Answer,
    /// With all that our answer holds.
    pub(crate) times: Times,
    /// Without distinct users and models; the same where an answer has none.
    pub(crate) sums: Times,
}

/// The answers of DuckDB to all questions about the rows of a database.
pub(crate) async fn ask(places: &Places, name: &str, url: &str, start_us: i64, events: u64, runs: usize) -> Vec<Peer> {
    let database = places.file(&format!("{name}.duckdb"));
    let file = places.file(&format!("{name}.csv"));
    if !database.exists() {
        let id = if url.starts_with("sqlite") { "lower(hex(id))" } else { "id" };
        let select = format!(
            "SELECT {id}, occurred_at, instance_id, user_id, team_id, api_key_id, provider, model, status, \
             input_uncached, input_cache_read, input_cache_write, input_cache_write_1h, output, output_reasoning, \
             cost_nanos FROM usage_requests"
        );
        let mut out = BufWriter::new(File::create(&file).unwrap());
        csv(url, &select, &mut out).await;
        out.flush().unwrap();
    }
    let questions: Vec<Value> = QUESTIONS
        .iter()
        .map(|question| {
            let sums = if question.has_distinct() { question.sql(start_us, false) } else { Vec::new() };
            json!({ "sql": question.sql(start_us, true), "sums": sums })
        })
        .collect();
    let asked = json!({ "database": database, "csv": file, "runs": runs, "questions": questions });
    let mut child = Command::new(python())
        .arg(root().join("tests/benches/figures/queries/peer.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let _ = std::fs::remove_file(&file);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["count"], json!(events), "DuckDB has other rows");
    println!(
        "  DuckDB {}, 2 threads, a table on disk of its own; {} distinct (user, key, provider, model, day)",
        answer["version"].as_str().unwrap(),
        answer["groups"]
    );
    answer["answers"].as_array().unwrap().iter().map(peer).collect()
}

fn peer(answer: &Value) -> Peer {
    let row = |row: &Value| row.as_array().unwrap().iter().map(|cell| cell.as_str().unwrap().to_owned()).collect();
    let times = |name: &str| {
        let seconds = answer[name].as_array().unwrap().iter();
        seconds.map(|time| Duration::from_secs_f64(time.as_f64().unwrap())).collect::<Vec<_>>()
    };
    let sums = if times("sums").is_empty() { times("times") } else { times("sums") };
    Peer {
        rows: answer["rows"].as_array().unwrap().iter().map(row).collect(),
        times: Times::new(times("times")),
        sums: Times::new(sums),
    }
}
