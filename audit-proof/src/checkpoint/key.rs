//! Keys of notes: Ed25519, as texts that carry their name and their kind.
//!
//! ```text
//! for those who check    <name>+<id>+<base64(kind ‖ public key)>
//! for the one who signs  PRIVATE+KEY+<name>+<id>+<base64(kind ‖ seed)>      never in a log, an error or a Debug
//! ```

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

use super::note::NoteSignature;

const PRIVATE: &str = "PRIVATE+KEY+";
/// Names are texts of checkpoints and configurations; longer ones are no names.
const MAX_NAME: usize = 256;

/// What a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// The text.
    Log,
    /// The text of a checkpoint and the time: `cosignature/v1`.
    Witness,
}

impl KeyKind {
    /// Its number in [signed-note](https://c2sp.org/signed-note).
    fn number(self) -> u8 {
        match self {
            Self::Log => 1,
            Self::Witness => 4,
        }
    }

    fn of(number: u8) -> Option<Self> {
        [Self::Log, Self::Witness].into_iter().find(|kind| kind.number() == number)
    }

    /// What is signed of a text.
    fn message(self, text: &str, at_s: u64) -> String {
        match self {
            Self::Log => text.to_owned(),
            Self::Witness => format!("cosignature/v1\ntime {at_s}\n{text}"),
        }
    }
}

/// Whether a key may have this name: not empty, no spaces, no `+`, no control characters.
pub fn is_key_name(name: &str) -> bool {
    let other = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    !name.is_empty() && name.len() <= MAX_NAME && !name.contains(other)
}

/// A key for checking signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    kind: KeyKind,
    public: [u8; 32],
}

impl VerifierKey {
    /// A key with this name.
    pub fn new(name: impl Into<String>, kind: KeyKind, public: [u8; 32]) -> Result<Self, WrongKey> {
        let name = name.into();
        if is_key_name(&name) { Ok(Self { name, kind, public }) } else { Err(WrongKey::Name) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it signs.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The number that tells keys of one name apart: the first four bytes of a hash over name, kind and key.
    pub fn id(&self) -> u32 {
        let hash = Sha256::new()
            .chain_update(self.name.as_bytes())
            .chain_update([b'\n', self.kind.number()])
            .chain_update(self.public)
            .finalize();
        u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
    }

    /// Whether a signature holds; if so, when a cosignature was made.
    pub(super) fn verify(&self, text: &str, signature: &[u8]) -> Option<Option<u64>> {
        let (at_s, signature) = match self.kind {
            KeyKind::Log => (None, signature),
            KeyKind::Witness => {
                let (time, signature) = signature.split_first_chunk::<8>()?;
                let at_s = Some(u64::from_be_bytes(*time)).filter(|time| i64::try_from(*time).is_ok())?;
                (Some(at_s), signature)
            }
        };
        let message = self.kind.message(text, at_s.unwrap_or(0));
        UnparsedPublicKey::new(&ED25519, self.public).verify(message.as_bytes(), signature).ok().map(|()| at_s)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[self.kind.number()][..], &self.public].concat();
        write!(f, "{}+{:08x}+{}", self.name, self.id(), BASE64.encode(key))
    }
}

impl FromStr for VerifierKey {
    type Err = WrongKey;

    fn from_str(text: &str) -> Result<Self, WrongKey> {
        let (name, id, kind, public) = parts(text).ok_or(WrongKey::Public)?;
        let key = Self::new(name, kind, public)?;
        if key.id() == id { Ok(key) } else { Err(WrongKey::Id) }
    }
}

/// Name, id, kind and the 32 bytes of a key.
fn parts(text: &str) -> Option<(&str, u32, KeyKind, [u8; 32])> {
    // Base64 may have a `+` in it, names and ids may not.
    let (name, rest) = text.split_once('+')?;
    let (id, key) = rest.split_once('+')?;
    let hex = id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let id = hex.then(|| u32::from_str_radix(id, 16).ok())??;
    let bytes = BASE64.decode(key).ok()?;
    let (kind, bytes) = bytes.split_first()?;
    Some((name, id, KeyKind::of(*kind)?, bytes.try_into().ok()?))
}

/// A key for signing.
pub struct SigningKey {
    verifier: VerifierKey,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// A new key, and the text to keep it by.
    pub fn generate(name: &str, kind: KeyKind) -> Result<(Self, String), WrongKey> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| WrongKey::Random)?;
        let key = Self::from_seed(name, kind, &seed)?;
        let secret = BASE64.encode([&[kind.number()][..], &seed].concat());
        let text = format!("{PRIVATE}{}+{:08x}+{secret}", name, key.verifier.id());
        Ok((key, text))
    }

    fn from_seed(name: &str, kind: KeyKind, seed: &[u8; 32]) -> Result<Self, WrongKey> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| WrongKey::Private)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| WrongKey::Private)?;
        Ok(Self { verifier: VerifierKey::new(name, kind, public)?, pair })
    }

    /// The key for checking what this one signs.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Signs a text. A witness says when, in seconds since 1970; a log does not.
    pub fn sign(&self, text: &str, at_s: u64) -> NoteSignature {
        let signed = self.pair.sign(self.verifier.kind.message(text, at_s).as_bytes());
        let signature = match self.verifier.kind {
            KeyKind::Log => signed.as_ref().to_vec(),
            KeyKind::Witness => [&at_s.to_be_bytes()[..], signed.as_ref()].concat(),
        };
        NoteSignature { name: self.verifier.name.clone(), id: self.verifier.id(), signature }
    }
}

impl FromStr for SigningKey {
    type Err = WrongKey;

    fn from_str(text: &str) -> Result<Self, WrongKey> {
        let (name, id, kind, seed) = text.strip_prefix(PRIVATE).and_then(parts).ok_or(WrongKey::Private)?;
        let key = Self::from_seed(name, kind, &seed)?;
        if key.verifier.id() == id { Ok(key) } else { Err(WrongKey::Id) }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("verifier", &self.verifier.to_string()).finish_non_exhaustive()
    }
}

/// Text that is no key. It does not say the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrongKey {
    /// The name.
    #[error("a key's name has 1 to 256 bytes, no spaces, control characters or plus signs")]
    Name,
    /// The id is that of another key.
    #[error("the id does not belong to the name and the key")]
    Id,
    /// Not a key for checking.
    #[error("not a key, which is NAME+ID+BASE64 with an Ed25519 key of kind 1 or 4")]
    Public,
    /// Not a key for signing.
    #[error("not a key, which is PRIVATE+KEY+NAME+ID+BASE64 with an Ed25519 seed of kind 1 or 4")]
    Private,
    /// There was no randomness to be had.
    #[error("the system gave no random bytes")]
    Random,
}
