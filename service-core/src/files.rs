//! Files that others replace while we run: told apart without reading them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What changes when a file is replaced or written: inode, size, time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(u64, u64, i64, i64);

/// The stamp of a file; `None` while there is none. Links are followed, so that a
/// link that is moved over (as Kubernetes does) is a change.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp(metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}
