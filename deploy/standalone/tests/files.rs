//! The files of `deploy`: sample configurations are the defaults and complete, and
//! what the unit files and the image name is there.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use service_core::config::load;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Each key of a configuration has its line in the sample: with its default, or
/// commented out where there is none. `cloud` is no key: it is read from the environment, by the clouds' own names.
fn holds_every_key(sample: &Path, config: &impl Debug) {
    let text = fs::read_to_string(sample).unwrap();
    let names = |line: &str| line.trim_start_matches("# ").split_once(" = ").map(|(key, _)| key.to_owned());
    let written: Vec<String> = text.lines().filter_map(names).collect();
    let mut keys = 0;
    for line in format!("{config:#?}").lines() {
        let Some((key, value)) = line.trim().split_once(": ") else { continue };
        if key == "cloud" {
            continue;
        }
        let is_table = value.ends_with("Config {");
        if key.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_' || letter.is_ascii_digit()) {
            // A table's heading may name the one around it; a list of tables has headings and no line.
            let headed = [format!("[{key}]"), format!(".{key}]")].iter().any(|heading| text.contains(heading));
            let found = headed || !is_table && written.iter().any(|name| name == key);
            assert!(found, "{key} is not in {}", sample.display());
            keys += 1;
        }
    }
    assert!(keys > 20);
}

#[test]
fn sample_configurations_are_the_defaults_and_complete() {
    let audit = deploy().join("config/audit-service.toml");
    let config: audit_service::Config = load("AUDIT", Some(&audit), []).unwrap();
    assert_eq!(config, audit_service::Config::default());
    holds_every_key(&audit, &config);

    let usage = deploy().join("config/usage-service.toml");
    let config: usage_service::Config = load("USAGE", Some(&usage), []).unwrap();
    assert_eq!(config, usage_service::Config::default());
    holds_every_key(&usage, &config);
}

/// What the README shows of a configuration is one that is taken.
#[test]
fn configuration_in_the_readme_is_accepted() {
    let readme = fs::read_to_string(deploy().parent().unwrap().join("README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("service.toml");
    let (mut of_audit, mut of_usage) = (0, 0);
    for block in readme.split("```toml\n").skip(1).filter(|block| !block.starts_with("[dependencies]")) {
        fs::write(&file, block.split("```").next().unwrap()).unwrap();
        // What only audit-service knows is for it; the rest usage-service takes.
        match load::<usage_service::Config>("USAGE", Some(&file), []) {
            Ok(config) => {
                config.retention.check().unwrap();
                of_usage += 1;
            }
            Err(_) => {
                load::<audit_service::Config>("AUDIT", Some(&file), []).unwrap().check().unwrap();
                of_audit += 1;
            }
        }
    }
    assert!(of_audit > 0 && of_usage > 0);
}

#[test]
fn unit_files_start_programs_that_there_are_with_variables_that_there_are() {
    for name in ["audit", "usage"] {
        let unit = fs::read_to_string(deploy().join(format!("systemd/{name}-service.service"))).unwrap();
        let exec = format!("ExecStart=/usr/local/bin/{name}-service --config /etc/activity/{name}-service.toml");
        assert!(unit.lines().any(|line| line == exec));
        let variable = unit.lines().find_map(|line| line.strip_prefix("Environment=")).unwrap();
        let (key, value) = variable.split_once('=').unwrap();
        let env = [(key.to_owned(), value.to_owned())];
        let path = match name {
            "audit" => load::<audit_service::Config>("AUDIT", None, env).unwrap().database_url.sqlite_path(),
            _ => load::<usage_service::Config>("USAGE", None, env).unwrap().database_url.sqlite_path(),
        };
        assert_eq!(path.unwrap(), PathBuf::from(format!("/var/lib/{name}-service/{name}.db")));
    }
}

#[test]
fn image_builds_the_packages_that_there_are() {
    let image = fs::read_to_string(deploy().join("container/Dockerfile")).unwrap();
    for package in ["audit-service", "usage-service", "standalone"] {
        assert!(image.contains(&format!("-p {package}")));
        assert!(image.contains(&format!("/src/target/release/{package}")));
    }
}
