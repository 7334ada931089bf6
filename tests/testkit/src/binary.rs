//! The workspace's own programs, built in the profile of the running test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of one of the workspace's programs (`audit-service`, `standalone`, …). The first call in a process
/// builds them all, unless `BINARIES_BUILT` says that it has just been done (`tests/run`).
///
/// # Panics
/// When the build fails or makes no program of that name.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(build).join(name);
    assert!(path.is_file(), "no program {name} at {}", path.display());
    path
}

fn build() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running test");
    let (folder, profile) = folder_and_profile(&test);
    if std::env::var_os("BINARIES_BUILT").is_none() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--workspace", "--bins", "--profile", &profile])
            .arg("--target-dir")
            .arg(folder.parent().expect("a profile's folder is inside target"))
            .current_dir(root)
            .status()
            .expect("run cargo");
        assert!(status.success(), "cargo build --bins: {status}");
    }
    folder
}

/// A test lies in `target/<folder of its profile>/deps/`, the programs one level up. The folder bears the name of
/// the profile, but for the two that cargo names otherwise: `dev` is in `debug`, `bench` in `release`.
fn folder_and_profile(test: &Path) -> (PathBuf, String) {
    let folder = test.ancestors().nth(2).expect("a test is two folders deep in target");
    let name = folder.file_name().expect("a profile's folder has a name").to_string_lossy();
    let profile = if name == "debug" { "dev".into() } else { name.into_owned() };
    (folder.to_owned(), profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_lie_beside_the_tests_of_their_profile() {
        for (test, folder, profile) in [
            ("/x/target/debug/deps/e2e-1", "/x/target/debug", "dev"),
            ("/x/target/release/deps/e2e-1", "/x/target/release", "release"),
            ("/x/target/quick/examples/e2e", "/x/target/quick", "quick"),
        ] {
            assert_eq!(folder_and_profile(Path::new(test)), (PathBuf::from(folder), profile.to_owned()));
        }
    }
}
