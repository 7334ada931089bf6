//! The keys that sign: read from their files, or made at the first start.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use service_core::error::{Error, Result};

use super::{own_file, sync_folder};
use crate::checkpoint::{Checkpoint, KeyKind, Note, SigningKey, VerifierKey};
use crate::config::LogConfig;
use crate::store::{NewCheckpoint, TreeHead};

const LOG_KEY: &str = "log.key";
const WITNESS_KEY: &str = "witness.key";

/// The log's key, the one that is retired if there is one, and the witness's.
#[derive(Debug)]
pub(super) struct Keys {
    origin: String,
    log: Vec<SigningKey>,
    witness: SigningKey,
}

impl Keys {
    /// Reads the files that the configuration names; those that it does not name are in the folder, and made there if
    /// they are missing.
    pub(super) fn load(config: &LogConfig, folder: &Path) -> anyhow::Result<Self> {
        let origin = config.origin.clone();
        std::fs::create_dir_all(folder)?;
        let mut log = vec![match &config.key_file {
            Some(path) => read(path, KeyKind::Log)?,
            None => read_or_make(&folder.join(LOG_KEY), &origin, KeyKind::Log)?,
        }];
        if let Some(path) = &config.retiring_key_file {
            log.push(read(path, KeyKind::Log)?);
        }
        let witness = match &config.witness_key_file {
            Some(path) => read(path, KeyKind::Witness)?,
            None => read_or_make(&folder.join(WITNESS_KEY), &format!("{origin}/witness"), KeyKind::Witness)?,
        };
        if let Some(other) = log.iter().find(|key| key.verifier().name() != origin) {
            bail!("the log's key has the name {:?}, allowed is log.origin, {origin:?}", other.verifier().name());
        }
        Ok(Self { origin, log, witness })
    }

    pub(super) fn verifiers(&self) -> Vec<VerifierKey> {
        self.log.iter().chain([&self.witness]).map(|key| key.verifier().clone()).collect()
    }

    fn origin_of(&self, instance_id: &str) -> String {
        format!("{}/{instance_id}", self.origin)
    }

    /// What a note says of a log, if it is this log's and one of the log's keys has signed it.
    pub(super) fn read(&self, instance_id: &str, note: &str) -> anyhow::Result<Checkpoint> {
        let note: Note = note.parse()?;
        let checkpoint = Checkpoint::parse(note.text())?;
        if checkpoint.origin != self.origin_of(instance_id) {
            bail!("its origin is {:?}", checkpoint.origin);
        }
        let keys: Vec<VerifierKey> = self.log.iter().map(|key| key.verifier().clone()).collect();
        note.verify(&keys)?;
        Ok(checkpoint)
    }

    /// A checkpoint of a log, signed by all, at a time.
    pub(super) fn checkpoint(&self, instance_id: &str, head: TreeHead, at_s: u64) -> Result<NewCheckpoint> {
        let checkpoint = Checkpoint { origin: self.origin_of(instance_id), size: head.size, root: head.root };
        let text = checkpoint.text();
        let signatures = self.log.iter().chain([&self.witness]).map(|key| key.sign(&text, at_s)).collect();
        let note = Note::new(text, signatures).map_err(Error::internal)?;
        Ok(NewCheckpoint { instance_id: instance_id.to_owned(), head, at_s, note: note.to_string() })
    }
}

/// The file is named, its text is not: it is the key.
fn read(path: &Path, kind: KeyKind) -> anyhow::Result<SigningKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mode = std::fs::metadata(path)?.mode();
    if mode & 0o077 != 0 {
        tracing::warn!(file = %path.display(), "a key that signs can be read by others: give its file the mode 600");
    }
    let key: SigningKey = text.trim().parse().with_context(|| format!("{} holds no key", path.display()))?;
    if key.verifier().kind() != kind {
        bail!("{} holds a key of another kind: a log's is of kind 1, a witness's of kind 4", path.display());
    }
    Ok(key)
}

fn read_or_make(path: &Path, name: &str, kind: KeyKind) -> anyhow::Result<SigningKey> {
    if !path.exists() {
        let (key, text) = SigningKey::generate(name, kind)?;
        // Whole or not there: a start that is killed here makes another one.
        let new = path.with_added_extension("new");
        let mut file = own_file(&new).with_context(|| format!("cannot make {}", new.display()))?;
        file.set_len(0)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        if let Some(folder) = path.parent() {
            sync_folder(folder)?;
        }
        tracing::info!(file = %path.display(), key = %key.verifier(), "made a key; who checks the log pins its public part");
    }
    read(path, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_only_their_owner_may_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("beside");
        let config = LogConfig::default();
        let keys = Keys::load(&config, &folder).unwrap();
        let again = Keys::load(&config, &folder).unwrap();
        assert_eq!(keys.verifiers(), again.verifiers());
        assert_eq!(
            keys.verifiers().iter().map(VerifierKey::name).collect::<Vec<_>>(),
            ["localhost/audit", "localhost/audit/witness"]
        );
        for name in [LOG_KEY, WITNESS_KEY] {
            let mode = std::fs::metadata(folder.join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
            let secret = std::fs::read_to_string(folder.join(name)).unwrap();
            assert!(!format!("{keys:?}").contains(secret.trim().splitn(5, '+').last().unwrap()));
        }
    }

    #[test]
    fn a_retiring_key_signs_too_and_a_wrong_one_is_refused_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, key: &str, kind| {
            let (signing, text) = SigningKey::generate(key, kind).unwrap();
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            (path, signing.verifier().clone())
        };
        let (old, old_key) = file("old", "localhost/audit", KeyKind::Log);
        let config = LogConfig { retiring_key_file: Some(old), ..LogConfig::default() };
        let keys = Keys::load(&config, folder.path()).unwrap();
        let head = TreeHead { size: 3, root: [9; 32] };
        let note: Note = keys.checkpoint("eu 1", head, 77).unwrap().note.parse().unwrap();
        assert!(note.text().starts_with("localhost/audit/eu 1\n3\n"));
        assert_eq!(note.verify(&keys.verifiers()).unwrap().len(), 3);
        assert_eq!(note.verify(&[old_key]).unwrap().len(), 1);

        let (other, _) = file("other", "other", KeyKind::Log);
        let (kind, _) = file("kind", "localhost/audit", KeyKind::Witness);
        for (wrong, why) in
            [(other, "\"other\", allowed is log.origin"), (kind, "of another kind"), ("/nowhere".into(), "cannot read")]
        {
            let config = LogConfig { key_file: Some(wrong), ..LogConfig::default() };
            let refused = format!("{:#}", Keys::load(&config, folder.path()).unwrap_err());
            assert!(refused.contains(why), "{refused}");
        }
    }
}
