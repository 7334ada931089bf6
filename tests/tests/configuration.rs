//! What an operator may configure, and what is refused before a port is opened.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::process::{Command, Output};

use e2e::tools::root;
use testkit::binary;

fn refused(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(64), "{stderr}");
    assert_eq!(stdout, b"");
    stderr
}

#[test]
fn an_address_that_others_reach_is_refused_without_authentication() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["audit", "usage"] {
        for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let why = refused(
                Command::new(binary(&format!("{name}-service")))
                    .env(format!("{}_LISTEN", name.to_uppercase()), listen)
                    .current_dir(folder.path()),
            );
            assert!(why.contains("authentication"), "{why}");
            assert!(why.contains(listen.trim_end_matches(":0")), "{why}");
        }
    }
}

#[test]
fn unknown_keys_of_the_file_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    for (text, key) in [("lisen = \"127.0.0.1:0\"", "lisen"), ("[telemetry]\nlogs = \"info\"", "logs")] {
        fs::write(&file, text).unwrap();
        for name in ["audit-service", "usage-service"] {
            let why = refused(Command::new(binary(name)).arg("--config").arg(&file).current_dir(folder.path()));
            assert!(why.contains(key), "{why}");
        }
    }
}

#[test]
fn a_password_is_in_no_refusal() {
    let folder = tempfile::tempdir().unwrap();
    for url in ["postgres://me:hunter2@127.0.0.1:1/x", "mysql://me:hunter2@127.0.0.1/x", "hunter2"] {
        for name in ["audit", "usage"] {
            let output = Command::new(binary(&format!("{name}-service")))
                .env(format!("{}_DATABASE_URL", name.to_uppercase()), url)
                .env(format!("{}_LISTEN", name.to_uppercase()), "0.0.0.0:0")
                .current_dir(folder.path())
                .output()
                .unwrap();
            assert!(!output.status.success());
            assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter2"));
        }
    }
}

#[test]
fn every_sample_configuration_is_accepted_as_it_stands() {
    let folder = root().join("deploy/config");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Accepted up to the one thing that the environment makes wrong here.
        let prefix = name.split('-').next().unwrap().to_uppercase();
        let why = refused(
            Command::new(binary(&name)).arg("--config").arg(&path).env(format!("{prefix}_LISTEN"), "192.0.2.1:0"),
        );
        assert!(why.contains("authentication"), "{}: {why}", path.display());
        seen += 1;
    }
    assert_eq!(seen, 2);
}
