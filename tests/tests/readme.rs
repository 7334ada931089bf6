//! Every command of the README's recipes, as it stands there, with the real grpcurl against the running demo.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::tools::root;
use serde_json::json;
use testkit::{AUDIENCE, ChildProcess, ISSUER, Realm, binary};

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
        ("GetRetention", "\"archivedThrough\""),
        ("ListArchives", "{"),
        ("PlaceLegalHold", "\"placedSequence\""),
        ("ListLegalHolds", "\"case 17\""),
        ("GetCoverage", "\"missing\": \"0\""),
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

/// The first block of the README in a language that holds a text.
fn block(language: &str, with: &str) -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let fence = format!("```{language}\n");
    let mut blocks = readme.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.find(|block| block.contains(with)).unwrap_or_else(|| panic!("no {with}")).to_owned()
}

/// As the provider of the README's configuration puts them.
fn token(realm: &Realm, subject: &str, role: &str) -> String {
    let claims = json!({ "roles": null, "realm_access": { "roles": [role] }, "email": "ada@example.com" });
    realm.token_with(subject, &[], &["prod", "activity"], &claims)
}

/// Runs a command of the README against a server on a network: its files, its address, its token.
fn on_a_network(command: &str, realm: &Realm, ports: [&str; 2], token: &str) -> (bool, String) {
    let shown = r#"-cacert ca.pem -H "Authorization: Bearer $TOKEN""#;
    let command = command
        .replace("-plaintext", shown)
        .replace("ca.pem", &realm.path("clients.pem"))
        .replace("audit.example.com:50051", &format!("localhost:{}", ports[0]))
        .replace("127.0.0.1:50051", &format!("localhost:{}", ports[0]))
        .replace("127.0.0.1:50052", &format!("localhost:{}", ports[1]));
    assert!(command.contains("-cacert") && command.contains("localhost:"), "{command}");
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &command]).env("TOKEN", token).stdin(Stdio::null());
    let output = shell.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn who_gets_what(realm: &Realm, ports: [&str; 2]) {
    let recipes = recipes();
    let recipe = |with: &str| recipes.iter().find(|recipe| recipe.contains(with)).unwrap();
    let run = |command: &str, subject, role| on_a_network(command, realm, ports, &token(realm, subject, role));
    for write in ["RecordEvents", "RecordUsage"] {
        let (ok, text) = run(recipe(write), "gateway", "writer");
        assert!(ok && text.contains("\"accepted\": 1"), "{text}");
        let (ok, text) = run(recipe(write), "root", "super_admin");
        assert!(!ok && text.contains("PermissionDenied"), "{text}");
    }
    let read = block("sh", "-cacert ca.pem");
    let (ok, text) = run(&read, "dave", "auditor");
    assert!(ok && text.contains("model.disabled") && text.contains("\"recordedBy\": \"gateway\""), "{text}");
    for (subject, role) in [("ada", "member"), ("carol", "billing_admin")] {
        let (ok, text) = run(&read, subject, role);
        assert!(!ok && text.contains("PermissionDenied") && !text.contains("model.disabled"), "{text}");
    }
    let (ok, text) = on_a_network(&read, realm, ports, "none");
    assert!(!ok && text.contains("Unauthenticated") && !text.contains("model.disabled"), "{text}");

    let summary = recipe("UsageQueryService/GetSummary");
    let requests = |subject, role| {
        let (ok, text) = run(summary, subject, role);
        assert!(ok, "{text}");
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        answer["summary"]["requests"].as_str().unwrap().to_owned()
    };
    assert_eq!(requests("carol", "billing_admin"), "1");
    // It was alice's, and this is ada by her e-mail address.
    assert_eq!(requests("ada", "member"), "0");
}

#[tokio::test]
async fn services_with_the_readmes_configuration_give_everybody_what_is_theirs() {
    let realm = Realm::new();
    let jwks = r#"jwks_url = "https://login.example.com/.well-known/jwks.json""#;
    let shown = block("toml", "jwks_url");
    assert!(shown.contains(jwks) && shown.contains(&format!("audiences = [{AUDIENCE:?}]")), "{shown}");
    let config = shown
        .replace("0.0.0.0:50051", "127.0.0.1:0")
        .replace("/etc/activity", realm.folder.path().to_str().unwrap())
        .replace("https://login.example.com/\"", &format!("{ISSUER}\""))
        .replace(jwks, &format!("jwks_file = {:?}", realm.path("jwks.json")));
    let file = realm.folder.path().join("service.toml");
    fs::write(&file, config).unwrap();
    let mut ports = Vec::new();
    let mut processes = Vec::new();
    for name in ["audit", "usage"] {
        let prefix = name.to_uppercase();
        let database = format!("sqlite://{}", realm.path(&format!("{name}.db")));
        let process =
            ChildProcess::start(Command::new(binary(&format!("{name}-service"))).arg("--config").arg(&file).envs([
                (format!("{prefix}_METRICS_LISTEN"), String::new()),
                (format!("{prefix}_DATABASE_URL"), database),
            ]));
        let ready = process.line("ready ", Duration::from_secs(60)).await;
        ports.push(ready.rsplit(':').next().unwrap().to_owned());
        processes.push(process);
    }
    who_gets_what(&realm, [&ports[0], &ports[1]]);
}

#[tokio::test]
async fn the_standalone_pair_behind_tls_gives_everybody_what_is_theirs() {
    let realm = Realm::new();
    let tell = realm.folder.path().join("usage.token");
    fs::write(&tell, token(&realm, "usage-service", "writer")).unwrap();
    let audit_port = testkit::free_port();
    let both = ["AUDIT", "USAGE"].into_iter().flat_map(|prefix| {
        let claims = [("AUTH__CLAIMS__ROLES", "realm_access.roles"), ("AUTH__CLAIMS__USER", "email")];
        let claims = claims.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let settings = realm.settings().into_iter().chain(claims);
        settings.map(move |(key, value)| (format!("{prefix}_{key}"), value)).collect::<Vec<_>>()
    });
    let process = ChildProcess::start(
        Command::new(binary("standalone"))
            .args(["--usage-listen", "127.0.0.1:0", "--audit-listen", &format!("127.0.0.1:{audit_port}"), "--data-dir"])
            .arg(realm.folder.path().join("data"))
            .envs(both)
            .envs([("AUDIT_METRICS_LISTEN", ""), ("USAGE_METRICS_LISTEN", "")])
            .env("USAGE_AUDIT__ENDPOINT", format!("https://localhost:{audit_port}"))
            .env("USAGE_AUDIT__CA_FILE", realm.path("clients.pem"))
            .env("USAGE_AUDIT__TOKEN_FILE", tell),
    );
    let ready = process.line("ready ", Duration::from_secs(60)).await;
    let usage_port = ready.rsplit(':').next().unwrap();
    let ports = [&audit_port.to_string(), usage_port];
    who_gets_what(&realm, ports);
    // What either refused is in the one log, under its own name.
    let read = block("sh", "-cacert ca.pem");
    testkit::eventually(Duration::from_secs(30), async || {
        let (_, text) = on_a_network(&read, &realm, ports, &token(&realm, "dave", "auditor"));
        let told = text.contains("access.denied") && text.contains("\"recordedBy\": \"usage-service\"");
        if told { Ok(()) } else { Err(text) }
    })
    .await;
    assert!(!process.log().contains("eyJ"), "{}", process.log());
}
