//! Who may know whom: the rules of the layout, read off the manifests and the sources.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use e2e::tools::root;

/// A member's own dependencies on other members.
fn imports(member: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap();
    let dependencies = dependencies.split("\n[").next().unwrap();
    let members = [
        "activity-proto",
        "service-core",
        "audit-proof",
        "audit-service",
        "usage-service",
        "gateway-sdk",
        "gateway-outbox",
    ];
    dependencies
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| members.contains(name))
        .map(str::to_owned)
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Files of a member whose code (comments aside) holds `word`, but for those below the modules named.
fn files_naming(member: &str, word: &str, but_for: &[&str]) -> Vec<String> {
    let folder = root().join(member).join("src");
    let mut found = Vec::new();
    sources(&folder, &mut found);
    assert!(!found.is_empty(), "no sources in {member}");
    found
        .iter()
        .filter_map(|path| {
            let name = path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned();
            let module = name.split(['/', '.']).next().unwrap();
            let names_it = fs::read_to_string(path)
                .unwrap()
                .lines()
                .any(|line| !line.trim_start().starts_with("//") && line.contains(word));
            (names_it && !but_for.contains(&module)).then(|| format!("{member}/src/{name}"))
        })
        .collect()
}

#[test]
fn members_import_only_whom_they_may() {
    let only = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(imports("proto"), only(&[]));
    assert_eq!(imports("service-core"), only(&["activity-proto"]));
    // What the service proves with, the SDK checks with.
    assert_eq!(imports("audit-proof"), only(&[]));
    assert_eq!(imports("gateway-sdk"), only(&["activity-proto", "audit-proof"]));
    // The database that the SDK must not have.
    assert_eq!(imports("gateway-outbox"), only(&["gateway-sdk"]));
    assert_eq!(imports("audit-service"), only(&["activity-proto", "service-core", "audit-proof"]));
    // For one thing only: what it refuses is recorded as any service of the platform records.
    assert_eq!(imports("usage-service"), only(&["activity-proto", "service-core", "gateway-sdk"]));
    assert_eq!(files_naming("usage-service", "gateway_sdk", &["denials"]), [""; 0]);
}

#[test]
fn the_sdk_has_no_database_crate() {
    let manifest = fs::read_to_string(root().join("gateway-sdk/Cargo.toml")).unwrap();
    for word in ["sea-orm", "sqlx", "rusqlite", "libsqlite3"] {
        assert!(!manifest.contains(word), "gateway-sdk depends on {word}");
    }
}

#[test]
fn only_the_store_names_a_database() {
    for service in ["audit-service", "usage-service"] {
        for word in ["sea_orm", "sqlx"] {
            assert_eq!(files_naming(service, word, &["store"]), [""; 0], "{word}");
        }
    }
}

/// Whose caller leaves between BEGIN and its answer, leaves the transaction open: `service_core::database::begin`.
#[test]
fn transactions_of_services_are_begun_whole() {
    for service in ["audit-service", "usage-service"] {
        for word in
            ["writer.begin(", "reader.begin(", "reader().begin(", "remover.begin(", "postgres_connection_pool().begin("]
        {
            assert_eq!(files_naming(service, word, &[]), [""; 0], "{word}");
        }
    }
}

#[test]
fn only_grpc_and_convert_name_generated_types() {
    for service in ["audit-service", "usage-service"] {
        assert_eq!(files_naming(service, "activity_proto", &["grpc", "convert"]), [""; 0]);
    }
}

#[test]
fn only_main_reads_the_environment_and_exits() {
    for member in ["audit-proof", "audit-service", "usage-service", "service-core", "gateway-sdk", "gateway-outbox"] {
        for word in ["env::var", "process::exit"] {
            assert_eq!(files_naming(member, word, &["main"]), [""; 0], "{word}");
        }
    }
}

/// An access to everything, where what a caller may see is asked for, would answer everybody everything.
#[test]
fn only_these_see_everything_whoever_calls() {
    let mut who = Vec::new();
    for member in ["service-core", "audit-service", "usage-service", "deploy/standalone"] {
        let folder = root().join(member).join("src");
        let mut found = Vec::new();
        sources(&folder, &mut found);
        for path in found {
            let text = fs::read_to_string(&path).unwrap();
            let name = format!("{member}/src/{}", path.strip_prefix(&folder).unwrap().display());
            let is_test = name.ends_with("/tests.rs") || name.contains("/tests/");
            // Tests of a module stand at its end.
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let named = code.lines().filter(|line| {
                !line.trim_start().starts_with("//")
                    && line.contains("unrestricted()")
                    && !line.contains("fn unrestricted")
            });
            who.extend(named.filter(|_| !is_test).map(|_| name.clone()));
        }
    }
    who.sort();
    assert_eq!(
        who,
        [
            // Checks whole logs.
            "audit-service/src/checker.rs",
            "audit-service/src/checker.rs",
            "audit-service/src/checker.rs",
            "audit-service/src/checker.rs",
            "audit-service/src/checker.rs",
            "audit-service/src/checker.rs",
            // Archives whole logs, and removes what is archived.
            "audit-service/src/retention.rs",
            "audit-service/src/retention.rs",
            "audit-service/src/retention.rs",
            "audit-service/src/retention.rs",
            "audit-service/src/retention.rs",
            "audit-service/src/retention.rs",
            // Signs whole logs, and proves to itself that they only grew; follows what other replicas sign.
            "audit-service/src/signer.rs",
            "audit-service/src/signer.rs",
            "audit-service/src/signer.rs",
            // Builds the trees of logs that have none yet.
            // Reads a segment of the archive, to check it.
            "audit-service/src/store/checks.rs",
            "audit-service/src/store/tree.rs",
            // For where new entries are: a tail that is woken reads with its caller's own.
            "audit-service/src/tail.rs",
            // Where no authentication is configured, on loopback.
            "service-core/src/auth/layer.rs",
            // Sums against their requests, in the background.
            "usage-service/src/store/rollup/check.rs",
            // Kept for several answers, each of which lets through what its own caller may see.
            "usage-service/src/store/rollup/ends.rs",
        ]
    );
}

/// A list of faults that names tests which are gone shows nothing.
#[test]
fn every_test_that_a_list_of_faults_names_is_there() {
    let list = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    let named: Vec<(&str, &str)> = list.split('`').filter_map(|text| text.split_once(".rs::")).collect();
    assert!(named.len() > 40, "{named:?}");
    for (file, test) in named {
        let text = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap();
        assert!(text.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
    }
}
