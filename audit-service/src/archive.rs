//! The archive: where entries go that retention lets go of, in a folder or a bucket.
//!
//! ```text
//! <origin>/<instance>/<first>-<end>.jsonl.zst   canonical lines of consecutive sequences: what an export prints
//! <origin>/<instance>/<first>-<end>.json        the manifest: range, hashes, tiles, checkpoint
//! ```
//!
//! An object is made once and never written over: what is there already under a name must be what would be written.
//! Neither reading nor verifying a segment needs the database.

mod bucket;
mod manifest;
mod segment;

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use service_core::error::{Error, Result};
use sha2::{Digest as _, Sha256};

pub use bucket::CloudVariables;
pub use manifest::{Broken, Manifest};
pub(crate) use manifest::{Proof, needed_tiles};
pub(crate) use segment::{Built, Lines, SegmentBuilder};

/// A segment is full with this many entries, or this many bytes of lines; the last line may pass them.
pub(crate) const SEGMENT_ENTRIES: u64 = 65_536;
pub(crate) const SEGMENT_BYTES: u64 = 32 * 1024 * 1024;
/// Bytes of an encoded name above which it is cut and told apart by its hash: file names have 255.
const NAME_BYTES: usize = 120;

/// Where segments are. Cheap to clone.
#[derive(Clone)]
pub struct Archive {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    shown: String,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("at", &self.shown).finish()
    }
}

impl Archive {
    /// Opens what the configuration names: a folder, which is made if it is not there, or the URL of a bucket, with the
    /// variables that its cloud knows.
    pub(crate) fn open(place: &str, variables: &CloudVariables) -> anyhow::Result<Self> {
        match place.split_once("://") {
            None => Self::folder(FilePath::new(place)),
            Some(("file", path)) => Self::folder(FilePath::new(path)),
            Some(_) => {
                let (objects, root) = bucket::open(place, variables)?;
                Ok(Self { objects, root, shown: place.to_owned() })
            }
        }
    }

    /// The archive in a folder. What is written there is on disk before it counts as written.
    pub fn folder(folder: &FilePath) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make the archive's folder {}", folder.display()))?;
        let folder: PathBuf = folder.canonicalize().with_context(|| format!("cannot open {}", folder.display()))?;
        let objects = LocalFileSystem::new_with_prefix(&folder)
            .with_context(|| format!("cannot open the archive in {}", folder.display()))?;
        let objects = Arc::new(objects.with_fsync(true));
        Ok(Self { objects, root: Path::default(), shown: folder.display().to_string() })
    }

    /// Where it is, for people; no secret is in it.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Writes an object, unless there is one of this name, and reads back what is there.
    pub(crate) async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(&self.at(name)?, bytes.into(), options).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(unavailable(name, error.into())),
        }
        self.get(name).await?.ok_or_else(|| unavailable(name, anyhow::anyhow!("it was written, and is not there")))
    }

    /// Reads an object, if there is one of this name.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let at = self.at(name)?;
        match async { self.objects.get(&at).await?.bytes().await }.await {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(unavailable(name, error.into())),
        }
    }

    fn at(&self, name: &str) -> Result<Path> {
        let path = if self.root.as_ref().is_empty() { name.to_owned() } else { format!("{}/{name}", self.root) };
        Path::parse(path).map_err(Error::internal)
    }
}

/// Trying again may help, and nothing was removed.
fn unavailable(name: &str, error: anyhow::Error) -> Error {
    Error::storage_unavailable(error.context(format!("the archive's object {name}")))
}

/// The name of a segment, without what tells lines and manifest apart.
pub(crate) fn segment_name(origin: &str, instance_id: &str, first: u64, end: u64) -> String {
    format!("{}/{}/{first:020}-{end:020}", encoded(origin), encoded(instance_id))
}

/// The object of a segment's lines.
pub(crate) fn data_name(segment: &str) -> String {
    format!("{segment}.jsonl.zst")
}

/// The object of a segment's manifest.
pub(crate) fn manifest_name(segment: &str) -> String {
    format!("{segment}.json")
}

/// A name as a part of a path on any system: two names never have the same.
fn encoded(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => out.push(char::from(byte)),
            _ => out.push_str(&format!("_{byte:02x}")),
        }
    }
    if out.len() > NAME_BYTES {
        out.truncate(NAME_BYTES - 70);
        // What was cut inside an escape is no escape any more; the hash tells names apart all the same.
        out.push_str(&format!("-_-{}", hex(&Sha256::digest(name.as_bytes()))));
    }
    out
}

/// Bytes for people.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parts_of_paths_and_told_apart() {
        assert_eq!(encoded("eu-1"), "eu-1");
        assert_eq!(encoded("../a b_"), "_2e_2e_2fa_20b_5f");
        let long = |end: char| format!("{}{end}", "ä".repeat(127));
        assert!(encoded(&long('a')).len() <= NAME_BYTES && encoded(&long('a')) != encoded(&long('b')));
        assert_eq!(
            manifest_name(&segment_name("localhost/audit", "eu-1", 0, 256)),
            "localhost_2faudit/eu-1/00000000000000000000-00000000000000000256.json"
        );
    }

    #[tokio::test]
    async fn an_object_is_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::folder(folder.path()).unwrap();
        assert_eq!(archive.put("a/b", b"one".to_vec()).await.unwrap(), b"one");
        assert_eq!(archive.put("a/b", b"two".to_vec()).await.unwrap(), b"one");
        assert_eq!(archive.get("a/b").await.unwrap().as_deref(), Some(&b"one"[..]));
        // That it is not there is for good; that it cannot be read is not.
        assert_eq!(archive.get("a/c").await.unwrap(), None);
        assert!(archive.get("a/b/c").await.unwrap_err().is_retryable());
    }

    #[test]
    fn a_scheme_that_nobody_knows_is_refused() {
        let error = Archive::open("ftp://somewhere", &CloudVariables::default()).unwrap_err();
        assert!(error.is::<service_core::config::ConfigError>() && error.to_string().contains("ftp://"), "{error}");
    }
}
