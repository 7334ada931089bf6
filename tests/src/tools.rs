//! The programs that a user has beside ours, and the data that a clone may have beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A file of the shared data beside the clone; `None`, said aloud, where there is none.
pub fn shared_data(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared/data").join(name);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("no {name} in ../shared/data: this test goes without the real data and uses the generator");
    None
}

/// Runs a program to its end and gives its standard output; anything but success is a failure of the test.
pub fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|why| panic!("{command:?}: {why}; `tests/install` installs what tests need"));
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{stderr}");
    String::from_utf8(stdout).unwrap()
}

/// `grpcurl -plaintext -d DATA ADDRESS METHOD`.
pub fn grpcurl(address: &str, method: &str, data: &str) -> serde_json::Value {
    let answer = run(Command::new("grpcurl").args(["-plaintext", "-d", data, address, method]));
    serde_json::from_str(&answer).unwrap_or_else(|why| panic!("{method}: {why} in {answer}"))
}
