//! Every command of the README's recipes, as it stands there, with the real grpcurl against the running demo.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::tools::root;
use testkit::{ChildProcess, binary};

/// The shell blocks of the README that hold a grpcurl command.
fn recipes() -> Vec<String> {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    readme
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .filter(|block| block.contains("grpcurl -plaintext"))
        .collect()
}

/// What an answer to a recipe holds at least.
fn expected(recipe: &str) -> &'static str {
    for (part, text) in [
        ("ListEntries", "\"entries\""),
        ("GetEntry", "\"leafHash\""),
        ("AuditQueryService/ListFacets", "\"resourceTypes\""),
        ("TailEntries", "\"sequence\": \"0\""),
        ("ExportEntries", "{\"action\":\""),
        ("GetCheckpoint", "localhost/audit/prod\\n"),
        ("ListKeys", "\"KEY_KIND_WITNESS\""),
        ("GetInclusionProof", "\"rootHash\""),
        ("GetConsistencyProof", "\"newRootHash\""),
        ("ReadTile", "\"tile/0/000.p/8\""),
        ("RecordEvents", "\"accepted\": 1"),
        ("RecordUsage", "\"accepted\": 1"),
        ("describe activity.audit.v1.AuditFilter", "changed_paths"),
        ("describe activity.common.v1.TimeRangePreset", "TIME_RANGE_PRESET_LAST_HOUR"),
        ("GetSummary", "\"previous\""),
        ("ListBreakdown", "\"rows\""),
        ("GetTimeSeries", "\"points\""),
        ("ListRequests", "\"bookVersion\""),
        ("UsageQueryService/ListFacets", "\"DIMENSION_API_KEY\""),
        ("ExportUsage", "total"),
        ("ListPrices", "\"input_mtok\""),
        ("EstimateCost", "\"cost\""),
        ("Health/Check", "\"SERVING\""),
    ] {
        if recipe.contains(part) {
            return text;
        }
    }
    panic!("a recipe that this test does not know:\n{recipe}")
}

async fn demo() -> (ChildProcess, String, String) {
    let audit = format!("127.0.0.1:{}", testkit::free_port());
    let usage = format!("127.0.0.1:{}", testkit::free_port());
    // Fewer requests than a person gets, the same platform.
    let demo = ChildProcess::start(
        Command::new(binary("standalone"))
            .args(["demo", "--events", "4000", "--audit-listen", &audit, "--usage-listen", &usage])
            .envs([("AUDIT_METRICS_LISTEN", ""), ("USAGE_METRICS_LISTEN", "")]),
    );
    testkit::eventually(Duration::from_secs(120), async || demo.lines().iter().any(|l| l.contains("EstimateCost")))
        .await;
    (demo, audit, usage)
}

#[tokio::test]
async fn every_recipe_of_the_readme_answers() {
    let (demo, audit, usage) = demo().await;
    let recipes = recipes();
    assert!(recipes.len() >= 20, "{}", recipes.len());
    for recipe in &recipes {
        let expected = expected(recipe);
        let command = recipe.replace("127.0.0.1:50051", &audit).replace("127.0.0.1:50052", &usage);
        if command.contains("TailEntries") {
            let tail = ChildProcess::start(Command::new("bash").args(["-c", &format!("exec {}", command.trim())]));
            testkit::eventually(Duration::from_secs(20), async || {
                tail.lines().iter().any(|line| line.contains(expected))
            })
            .await;
            continue;
        }
        let output =
            Command::new("bash").args(["-euo", "pipefail", "-c", &command]).stdin(Stdio::null()).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{stderr}");
        assert!(stdout.contains(expected), "{command}\nwithout {expected}:\n{stdout}");
    }
    drop(demo);
}

#[tokio::test]
async fn the_commands_that_the_demo_prints_answer() {
    let (demo, _, _) = demo().await;
    let printed: Vec<_> = demo.lines().into_iter().filter(|line| line.trim().starts_with("grpcurl ")).collect();
    assert!(printed.len() >= 6, "{printed:?}");
    for command in printed.iter().filter(|command| !command.contains("TailEntries")) {
        let output = Command::new("bash").args(["-c", command]).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(stdout.len() > 20, "{command}\n{stdout}");
    }
}
