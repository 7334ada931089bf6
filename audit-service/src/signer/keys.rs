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
    /// they are missing: unless the log was signed by others, which are `known`, or are not, where there are checkpoints
    /// and no keys.
    pub(super) fn load(
        config: &LogConfig,
        folder: &Path,
        known: &[VerifierKey],
        nothing_signed: bool,
    ) -> anyhow::Result<Self> {
        let origin = config.origin.clone();
        std::fs::create_dir_all(folder)?;
        let read_or_make = |file: &str, name: &str, kind| {
            let path = folder.join(file);
            if !path.exists() && !config.new_key {
                refuse_another(&path, kind, known, nothing_signed)?;
            }
            read_or_make(&path, name, kind)
        };
        let mut log = vec![match &config.key_file {
            Some(path) => read(path, KeyKind::Log)?,
            None => read_or_make(LOG_KEY, &origin, KeyKind::Log)?,
        }];
        if let Some(path) = &config.retiring_key_file {
            log.push(read(path, KeyKind::Log)?);
        }
        let witness = match &config.witness_key_file {
            Some(path) => read(path, KeyKind::Witness)?,
            None => read_or_make(WITNESS_KEY, &format!("{origin}/witness"), KeyKind::Witness)?,
        };
        if let Some(other) = log.iter().find(|key| key.verifier().name() != origin) {
            bail!("the log's key has the name {:?}, allowed is log.origin, {origin:?}", other.verifier().name());
        }
        Ok(Self { origin, log, witness })
    }

    pub(super) fn verifiers(&self) -> Vec<VerifierKey> {
        self.log.iter().chain([&self.witness]).map(|key| key.verifier().clone()).collect()
    }

    /// The log's key that is not retiring.
    pub(super) fn primary(&self) -> &VerifierKey {
        self.log[0].verifier()
    }

    /// The log's keys.
    pub(super) fn logs(&self) -> Vec<VerifierKey> {
        self.log.iter().map(|key| key.verifier().clone()).collect()
    }

    fn origin_of(&self, instance_id: &str) -> String {
        format!("{}/{instance_id}", self.origin)
    }

    /// What a note says of a log, if it is this log's and one of the log's keys has signed it: the retiring one only below
    /// the size `since` which the other one signs.
    pub(super) fn read(&self, instance_id: &str, note: &str, since: Option<u64>) -> anyhow::Result<Checkpoint> {
        let note: Note = note.parse()?;
        let checkpoint = Checkpoint::parse(note.text())?;
        if checkpoint.origin != self.origin_of(instance_id) {
            bail!("its origin is {:?}", checkpoint.origin);
        }
        let signed = note.verify(&self.logs())?;
        if signed.iter().all(|signed| signed.key > 0) && since.is_some_and(|since| checkpoint.size >= since) {
            bail!("it is over {} entries, and the key that is retiring signs alone no more", checkpoint.size);
        }
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

/// Refuses to make a key where others have signed: who checks the log has pinned one of them.
fn refuse_another(path: &Path, kind: KeyKind, known: &[VerifierKey], nothing_signed: bool) -> anyhow::Result<()> {
    let known: Vec<String> = known.iter().filter(|key| key.kind() == kind).map(ToString::to_string).collect();
    if known.is_empty() && nothing_signed {
        return Ok(());
    }
    let by = if known.is_empty() { "another key".to_owned() } else { known.join(" and ") };
    bail!(
        "{} is missing, and the log was signed with {by}: put the file back; or, if it is lost for good, set log.new_key \
         for one start, and have everybody who checks the log pin the new key",
        path.display()
    )
}

/// The log's keys that are there, by their public parts.
pub(super) fn there(config: &LogConfig, folder: &Path) -> anyhow::Result<Vec<VerifierKey>> {
    let own = config.key_file.clone().unwrap_or_else(|| folder.join(LOG_KEY));
    let files = [Some(own), config.retiring_key_file.clone()];
    let there = files.into_iter().flatten().filter(|path| path.exists());
    there.map(|path| Ok(read(&path, KeyKind::Log)?.verifier().clone())).collect()
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
        let keys = Keys::load(&config, &folder, &[], true).unwrap();
        let again = Keys::load(&config, &folder, &keys.verifiers(), false).unwrap();
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
    fn no_key_is_made_where_another_has_signed() {
        let folder = tempfile::tempdir().unwrap();
        let config = LogConfig::default();
        let keys = Keys::load(&config, folder.path(), &[], true).unwrap().verifiers();
        for (name, key) in [(LOG_KEY, &keys[0]), (WITNESS_KEY, &keys[1])] {
            let path = folder.path().join(name);
            let kept = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let refused = |known: &[VerifierKey], nothing_signed| {
                Keys::load(&config, folder.path(), known, nothing_signed).unwrap_err().to_string()
            };
            let why = refused(&keys, true);
            assert!(why.contains(name) && why.contains(&key.to_string()) && why.contains("log.new_key"), "{why}");
            assert!(refused(&[], false).contains("with another key"));
            assert!(!path.exists());
            // Of the other kind only: this one has never signed.
            let other: Vec<VerifierKey> = keys.iter().filter(|other| *other != key).cloned().collect();
            assert!(Keys::load(&config, folder.path(), &other, true).is_ok());
            std::fs::write(&path, kept).unwrap();
        }
        std::fs::remove_file(folder.path().join(LOG_KEY)).unwrap();
        let accepted = LogConfig { new_key: true, ..config };
        assert_ne!(Keys::load(&accepted, folder.path(), &keys, false).unwrap().verifiers()[0], keys[0]);
    }

    #[test]
    fn a_retiring_key_signs_alone_only_below_the_new_keys_first_size() {
        let folder = tempfile::tempdir().unwrap();
        let (old, text) = SigningKey::generate("localhost/audit", KeyKind::Log).unwrap();
        std::fs::write(folder.path().join("old"), text).unwrap();
        let config = LogConfig { retiring_key_file: Some(folder.path().join("old")), ..LogConfig::default() };
        let keys = Keys::load(&config, folder.path(), &[], true).unwrap();
        let both = keys.checkpoint("eu 1", TreeHead { size: 9, root: [9; 32] }, 77).unwrap().note;
        let text = Checkpoint { origin: "localhost/audit/eu 1".into(), size: 9, root: [9; 32] }.text();
        let alone = Note::new(text.clone(), vec![old.sign(&text, 0)]).unwrap().to_string();
        for since in [None, Some(10), Some(9), Some(0)] {
            assert_eq!(keys.read("eu 1", &both, since).unwrap().size, 9);
            assert_eq!(keys.read("eu 1", &alone, since).is_ok(), since.is_none_or(|since| since == 10), "{since:?}");
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
        let keys = Keys::load(&config, folder.path(), &[], true).unwrap();
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
            let refused = format!("{:#}", Keys::load(&config, folder.path(), &[], true).unwrap_err());
            assert!(refused.contains(why), "{refused}");
        }
    }
}
