//! What the SDK costs whoever builds with it: how many crates, which Rust, and whether its packages are whole.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::process::Command;

use e2e::tools::{root, run};
use serde_json::Value;

/// Crates that are compiled with the SDK, at most: all the way down, on Linux, those that only run in the compiler
/// among them. What makes it grow has to be worth it to everybody.
const MOST_BY_DEFAULT: usize = 97;
/// With every feature.
const MOST: usize = 98;

/// Those to publish, each after what it depends on.
const PACKAGES: [&str; 4] = ["activity-proto", "audit-proof", "gateway-sdk", "gateway-outbox"];

fn cargo(arguments: &[&str]) -> String {
    run(Command::new(env!("CARGO")).current_dir(root()).args(arguments))
}

/// Names and versions of what the SDK is built of, but for itself.
fn crates(features: &[&str]) -> BTreeSet<String> {
    let tree = ["tree", "--locked", "--package", "gateway-sdk", "--edges", "normal", "--prefix", "none", "--no-dedupe"];
    let tree = cargo(&[&tree, &["--format", "{p}", "--target", "x86_64-unknown-linux-gnu"][..], features].concat());
    let names = tree.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
    names.filter(|name| !name.starts_with("gateway-sdk ")).collect()
}

#[test]
fn the_sdk_brings_few_crates() {
    for (features, most) in [(&[][..], MOST_BY_DEFAULT), (&["--all-features"], MOST)] {
        let crates = crates(features);
        assert!(crates.len() <= most, "{} crates, and at most {most} are allowed: {crates:?}", crates.len());
        // A bound that is not reached bounds nothing.
        assert_eq!(crates.len(), most, "fewer than the bound: lower it");
    }
}

/// One compiles C, for TLS; another one would be slow to build and hard to cross-compile.
#[test]
fn the_sdk_brings_one_crate_of_c() {
    let foreign = crates(&["--all-features"]).into_iter().filter(|name| {
        let name = name.split(' ').next().unwrap();
        name.ends_with("-sys") && name != "linux-raw-sys" || ["ring", "aws-lc-rs"].contains(&name)
    });
    let foreign: Vec<String> = foreign.collect();
    assert!(matches!(&foreign[..], [ring] if ring.starts_with("ring ")), "{foreign:?}");
}

fn minor(version: &str) -> u64 {
    version.split('.').nth(1).unwrap().parse().unwrap()
}

/// That they compile with it is shown by a compiler of that version: `.ci/oldest-rust`.
#[test]
fn no_crate_wants_a_newer_rust_than_is_stated() {
    let metadata: Value = serde_json::from_str(&cargo(&["metadata", "--locked", "--format-version", "1"])).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let stated = packages.iter().find(|package| package["name"] == "gateway-sdk").unwrap()["rust_version"].as_str();
    let newer = |package: &&Value| package["rust_version"].as_str().is_some_and(|v| minor(v) > minor(stated.unwrap()));
    let newer: Vec<_> = packages.iter().filter(newer).map(|p| (&p["name"], &p["rust_version"])).collect();
    assert!(newer.is_empty(), "{stated:?} is stated, but: {newer:?}");
}

/// That they build is shown by `.ci/packages`.
#[test]
fn packages_have_all_that_they_need_and_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().to_str().unwrap();
    let mut arguments = vec!["package", "--locked", "--no-verify", "--allow-dirty", "--target-dir", target];
    arguments.extend(PACKAGES.iter().flat_map(|name| ["--package", name]));
    cargo(&arguments);
    for name in PACKAGES {
        let package = format!("{name}-{}", env!("CARGO_PKG_VERSION"));
        let file = folder.path().join("package").join(format!("{package}.crate"));
        run(Command::new("tar").arg("xzf").arg(file).arg("-C").arg(folder.path()));
        let package = folder.path().join(package);
        for file in ["LICENSE", "README.md", "src/lib.rs"] {
            assert!(package.join(file).is_file(), "{name} has no {file}");
        }
        let manifest = std::fs::read_to_string(package.join("Cargo.toml")).unwrap();
        for key in ["description", "documentation", "keywords", "categories", "license", "readme", "rust-version"] {
            assert!(manifest.contains(&format!("\n{key} = ")), "{name} has no {key}: {manifest}");
        }
        // Neither a tool nor a neighbour is needed.
        assert!(manifest.contains("\nbuild = false\n"), "{name} has a build script");
        let own_paths = manifest.lines().filter(|line| line.starts_with("path = ") && line.contains(".."));
        assert_eq!(own_paths.count(), 0, "{manifest}");
    }
}
