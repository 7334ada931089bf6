//! Signed notes: a text, a blank line, and a line for each signature.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::key::{VerifierKey, is_key_name};

/// Signatures that are read; of more, the note is refused.
const MAX_SIGNATURES: usize = 64;

/// A text and who has signed it. What it says is not to be believed before [`verify`](Self::verify).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

/// A line of a note: whose key, and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    /// Name of the key.
    pub name: String,
    /// Its id: a number that goes with the name, see [`VerifierKey::id`].
    pub id: u32,
    /// As its kind of key signs.
    pub signature: Vec<u8>,
}

/// A signature that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    /// Which of the keys that were given.
    pub key: usize,
    /// When, if it is a cosignature: seconds since 1970.
    pub at_s: Option<u64>,
}

impl Note {
    /// A text, which ends with a line feed and has no other control characters, and those who signed it.
    pub fn new(text: String, signatures: Vec<NoteSignature>) -> Result<Self, WrongNote> {
        let control = |text: &str| text.chars().any(|c| c < ' ' && c != '\n');
        if !text.ends_with('\n') || control(&text) || !(1..=MAX_SIGNATURES).contains(&signatures.len()) {
            return Err(WrongNote);
        }
        Ok(Self { text, signatures })
    }

    /// What was signed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// By whom.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Which of these keys have signed it: at least one. A signature that names one of them and does not hold spoils
    /// the note; those of others are passed over.
    pub fn verify(&self, keys: &[VerifierKey]) -> Result<Vec<Signed>, Untrusted> {
        let mut signed = Vec::new();
        for line in &self.signatures {
            let known = |key: &&VerifierKey| key.name() == line.name && key.id() == line.id;
            for (key, known) in keys.iter().enumerate().filter(|(_, key)| known(key)) {
                let at_s = known
                    .verify(&self.text, &line.signature)
                    .ok_or_else(|| Untrusted::Signature { name: line.name.clone(), id: line.id })?;
                signed.push(Signed { key, at_s });
            }
        }
        if signed.is_empty() { Err(Untrusted::Nobody) } else { Ok(signed) }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| writeln!(f, "{signature}"))
    }
}

impl FromStr for Note {
    type Err = WrongNote;

    fn from_str(note: &str) -> Result<Self, WrongNote> {
        let (text, lines) = note.rsplit_once("\n\n").ok_or(WrongNote)?;
        let lines = lines.strip_suffix('\n').ok_or(WrongNote)?;
        let signatures = lines.split('\n').take(MAX_SIGNATURES + 1).map(str::parse).collect::<Result<_, _>>()?;
        Self::new(format!("{text}\n"), signatures)
    }
}

impl fmt::Display for NoteSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.id.to_be_bytes()[..], &self.signature].concat();
        write!(f, "\u{2014} {} {}", self.name, BASE64.encode(bytes))
    }
}

impl FromStr for NoteSignature {
    type Err = WrongNote;

    fn from_str(line: &str) -> Result<Self, WrongNote> {
        let parse = || {
            let (name, signature) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
            let bytes = BASE64.decode(signature).ok()?;
            let (id, signature) = bytes.split_first_chunk::<4>()?;
            let whole = is_key_name(name) && !signature.is_empty();
            whole.then(|| Self { name: name.to_owned(), id: u32::from_be_bytes(*id), signature: signature.to_vec() })
        };
        parse().ok_or(WrongNote)
    }
}

/// Text that is no signed note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a signed note: text, an empty line, and a line \"\u{2014} NAME SIGNATURE\" for each of 1 to 64 signatures"
)]
pub struct WrongNote;

/// Why a note is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// A signature by a key that is known does not hold.
    #[error("the signature of {name} with key id {id:08x} does not hold")]
    Signature {
        /// The key's name.
        name: String,
        /// The key's id.
        id: u32,
    },
    /// No key that is known has signed.
    #[error("no key that is trusted has signed it")]
    Nobody,
}
