//! Keys that are believed, because they were told another way than by the log: each for some sizes, of some log.
//!
//! ```text
//! size   0 ─────────── 4,000 ─────────── 5,000 ──────────▶
//! old    ├──── good for 1 to 5,000 ────────┤ refused
//! new    refused         ├──── good from 4,000 on ───────▶
//! ```

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::checkpoint::{Checkpoint, KeyKind, Note, Untrusted, VerifierKey, WrongKey};

/// A key that is believed, for trees of these sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedKey {
    /// The key.
    pub key: VerifierKey,
    /// Of which log: the instance. `None` for all.
    pub log: Option<String>,
    /// What it may have signed. A key that was replaced is believed up to the size at which it was, the one in its place
    /// from there on.
    pub sizes: RangeInclusive<u64>,
}

impl PinnedKey {
    /// Whether it is for the log of this instance.
    fn is_of(&self, instance: &str) -> bool {
        self.log.as_ref().is_none_or(|log| log == instance)
    }

    /// Its sizes, as they are written behind a key.
    fn good_for(&self) -> String {
        match (self.sizes.start(), self.sizes.end()) {
            (first, &u64::MAX) => format!("{first}-"),
            (first, last) => format!("{first}-{last}"),
        }
    }
}

impl From<VerifierKey> for PinnedKey {
    fn from(key: VerifierKey) -> Self {
        Self { key, log: None, sizes: 0..=u64::MAX }
    }
}

impl fmt::Display for PinnedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.log {
            None if self.sizes == (0..=u64::MAX) => self.key.fmt(f),
            None => write!(f, "{}@{}", self.key, self.good_for()),
            Some(log) => write!(f, "{}@{log}:{}", self.key, self.good_for()),
        }
    }
}

/// Text that is no pinned key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrongPin {
    /// The key.
    #[error(transparent)]
    Key(#[from] WrongKey),
    /// The sizes.
    #[error(
        "behind a key are the sizes that it is good for, @FIRST-LAST or of one log @INSTANCE:FIRST-LAST; FIRST or LAST may \
         be left out, as in @prod:-5000"
    )]
    Sizes,
}

impl FromStr for PinnedKey {
    type Err = WrongPin;

    /// `NAME+ID+BASE64`, with `@FIRST-LAST` or `@INSTANCE:FIRST-LAST` behind it where it is not believed for everything.
    fn from_str(text: &str) -> Result<Self, WrongPin> {
        // Names and instances may have an `@`; base64 has none, and stands behind the second `+`.
        let base64 = text.match_indices('+').nth(1).map_or(0, |(at, _)| at);
        let Some(at) = text[base64..].find('@').map(|at| base64 + at) else {
            return Ok(Self::from(text.parse::<VerifierKey>()?));
        };
        let key = text[..at].parse()?;
        let (log, range) = match text[at + 1..].rsplit_once(':') {
            Some((log, range)) if !log.is_empty() => (Some(log.to_owned()), range),
            Some(_) => return Err(WrongPin::Sizes),
            None => (None, &text[at + 1..]),
        };
        let number = |text: &str, none| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true if text.is_empty() => Some(none),
            true => text.parse().ok(),
            false => None,
        };
        let range = range.split_once('-').and_then(|(first, last)| Some(number(first, 0)?..=number(last, u64::MAX)?));
        Ok(Self { key, log, sizes: range.filter(|range| !range.is_empty()).ok_or(WrongPin::Sizes)? })
    }
}

/// Who signed a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signers {
    /// Whose log it is, by the key that signed it.
    pub instance: String,
    /// When a witness did, the newest time: seconds since 1970.
    pub at_s: Option<u64>,
}

/// Why a checkpoint is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotBelieved {
    /// No pinned key of its log has signed it.
    #[error("no key that is pinned for its log has signed it")]
    Nobody,
    /// A signature does not hold.
    #[error(transparent)]
    Signature(Untrusted),
    /// Only a key that is not good for its size has signed it.
    #[error(
        "it is over {size} entries, and the key that has signed it, {} with id {:08x}, is good for {}: a key that was \
         replaced signs nothing later, and the one in its place nothing before",
        .pin.key.name(), .pin.key.id(), .pin.good_for()
    )]
    Sizes {
        /// The key.
        pin: Box<PinnedKey>,
        /// Entries of the checkpoint.
        size: u64,
    },
}

/// Who of these has signed a checkpoint: a key of its log that is good for its size, or it is not believed.
pub fn signed_by(keys: &[PinnedKey], note: &Note, checkpoint: &Checkpoint) -> Result<Signers, NotBelieved> {
    let all: Vec<VerifierKey> = keys.iter().map(|pin| pin.key.clone()).collect();
    let signed = note.verify(&all).map_err(|why| match why {
        Untrusted::Nobody => NotBelieved::Nobody,
        Untrusted::Signature { .. } => NotBelieved::Signature(why),
    })?;
    let instance_by = |pin: &PinnedKey| {
        let instance = checkpoint.origin.strip_prefix(pin.key.name())?.strip_prefix('/')?;
        (pin.key.kind() == KeyKind::Log && pin.is_of(instance)).then(|| instance.to_owned())
    };
    let of_log = || signed.iter().filter_map(|signed| Some((&keys[signed.key], instance_by(&keys[signed.key])?)));
    let size = checkpoint.size;
    match of_log().find(|(pin, _)| pin.sizes.contains(&size)) {
        Some((_, instance)) => {
            let good = |pin: &PinnedKey| pin.is_of(&instance) && pin.sizes.contains(&size);
            let at_s = signed.iter().filter(|signed| good(&keys[signed.key])).filter_map(|signed| signed.at_s).max();
            Ok(Signers { instance, at_s })
        }
        None => Err(match of_log().next() {
            Some((pin, _)) => NotBelieved::Sizes { pin: Box::new(pin.clone()), size },
            None => NotBelieved::Nobody,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::SigningKey;

    fn key(kind: KeyKind) -> SigningKey {
        let name = if kind == KeyKind::Log { "o@x" } else { "o@x/witness" };
        SigningKey::generate(name, kind).unwrap().0
    }

    fn checkpoint(instance: &str, size: u64) -> Checkpoint {
        Checkpoint { origin: format!("o@x/{instance}"), size, root: [7; 32] }
    }

    fn note(checkpoint: &Checkpoint, keys: &[&SigningKey]) -> Note {
        let text = checkpoint.text();
        Note::new(text.clone(), keys.iter().map(|key| key.sign(&text, 77)).collect()).unwrap()
    }

    fn pin(key: &SigningKey, sizes: &str) -> PinnedKey {
        format!("{}{sizes}", key.verifier()).parse().unwrap()
    }

    #[test]
    fn pins_are_read_as_they_are_written() {
        let key = key(KeyKind::Log);
        for (sizes, log, range) in [
            ("", None, 0..=u64::MAX),
            ("@0-5000", None, 0..=5_000),
            ("@7-", None, 7..=u64::MAX),
            ("@eu@1: a:3-9", Some("eu@1: a"), 3..=9),
            ("@prod:0-", Some("prod"), 0..=u64::MAX),
        ] {
            let pinned = pin(&key, sizes);
            assert_eq!((pinned.log.as_deref(), &pinned.sizes), (log, &range), "{sizes}");
            assert_eq!(pinned.to_string(), format!("{}{sizes}", key.verifier()));
        }
        assert_eq!(pin(&key, "@-5000"), pin(&key, "@0-5000"));
        for sizes in ["@", "@5", "@9-3", "@a-b", "@+1-2", "@1-+2", "@:1-2", "@prod:", "@18446744073709551616-"] {
            assert_eq!(format!("{}{sizes}", key.verifier()).parse::<PinnedKey>(), Err(WrongPin::Sizes), "{sizes}");
        }
        assert_eq!("o@x+12@1-2".parse::<PinnedKey>(), Err(WrongPin::Key(WrongKey::Public)));
    }

    #[test]
    fn a_key_is_believed_within_its_sizes_only() {
        let (old, new) = (key(KeyKind::Log), key(KeyKind::Log));
        let pins = [pin(&old, "@1-5000"), pin(&new, "@4000-")];
        for (size, by, believed) in [
            (1, &old, true),
            (3_999, &new, false),
            (4_000, &old, true),
            (4_000, &new, true),
            (5_000, &old, true),
            (5_001, &old, false),
            (5_001, &new, true),
            (0, &old, false),
        ] {
            let checkpoint = checkpoint("prod", size);
            let alone = signed_by(&pins, &note(&checkpoint, &[by]), &checkpoint);
            match believed {
                true => assert_eq!(alone.unwrap().instance, "prod", "{size}"),
                false => {
                    let why = alone.unwrap_err().to_string();
                    let (id, size) = (format!("{:08x}", by.verifier().id()), format!("over {size} entries"));
                    assert!(why.contains(&id) && why.contains(&size) && why.contains("is good for"), "{why}");
                }
            }
            // Beside one that is good for the size, the other does no harm.
            assert!(size == 0 || signed_by(&pins, &note(&checkpoint, &[&old, &new]), &checkpoint).is_ok(), "{size}");
        }
    }

    #[test]
    fn a_key_is_believed_for_its_log_only() {
        let key = key(KeyKind::Log);
        let pins = [pin(&key, "@prod:1-10"), pin(&key, "@test:1-20")];
        let by = |instance: &str, size| {
            let checkpoint = checkpoint(instance, size);
            signed_by(&pins, &note(&checkpoint, &[&key]), &checkpoint)
        };
        assert_eq!(by("prod", 10).unwrap().instance, "prod");
        assert_eq!(by("test", 20).unwrap().instance, "test");
        assert!(matches!(by("prod", 11), Err(NotBelieved::Sizes { size: 11, .. })));
        assert_eq!(by("other", 1), Err(NotBelieved::Nobody));
    }

    #[test]
    fn a_time_is_believed_of_a_pinned_witness_only() {
        let (log, witness) = (key(KeyKind::Log), key(KeyKind::Witness));
        let checkpoint = checkpoint("prod", 3);
        let note = note(&checkpoint, &[&log, &witness]);
        let at = |pins: &[PinnedKey]| signed_by(pins, &note, &checkpoint).unwrap().at_s;
        assert_eq!(at(&[pin(&log, ""), pin(&witness, "")]), Some(77));
        assert_eq!(at(&[pin(&log, ""), pin(&witness, "@4-")]), None);
        assert_eq!(at(&[pin(&log, "")]), None);
        assert_eq!(signed_by(&[pin(&witness, "")], &note, &checkpoint), Err(NotBelieved::Nobody));
    }

    #[test]
    fn a_signature_that_does_not_hold_is_told() {
        let (log, other) = (key(KeyKind::Log), checkpoint("prod", 4));
        let signature = note(&checkpoint("prod", 3), &[&log]).signatures()[0].clone();
        let forged = Note::new(other.text(), vec![signature]).unwrap();
        assert!(matches!(signed_by(&[pin(&log, "")], &forged, &other), Err(NotBelieved::Signature(_))));
    }
}
