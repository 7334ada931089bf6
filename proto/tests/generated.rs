//! The checked-in code equals what the `.proto` files generate.
//!
//! `UPDATE_GENERATED=1 cargo test -p activity-proto` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;

fn proto_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            proto_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "proto") {
            found.push(path);
        }
    }
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect()
}

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    proto_files(&root.join("activity"), &mut files);
    files.sort();
    assert!(!files.is_empty(), "no .proto files found");

    let descriptors = protox::compile(&files, [root]).unwrap();
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("descriptor_set.bin"), descriptors.encode_to_vec()).unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .btree_map(".")
        .build_transport(false)
        .compile_fds(descriptors)
        .unwrap();

    let fresh = contents(out.path());
    let checked_in = root.join("src/gen");
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        for (name, bytes) in &fresh {
            fs::write(checked_in.join(name), bytes).unwrap();
        }
    }
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    let kept = contents(&checked_in);
    assert_eq!(names(&kept), names(&fresh));
    for (name, bytes) in &fresh {
        assert!(kept[name] == *bytes, "{name} differs: run UPDATE_GENERATED=1 cargo test -p activity-proto");
    }
}
