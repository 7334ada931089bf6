//! What a log says of itself, signed: its origin, its size and its root, as C2SP checkpoints and signed notes.
//!
//! ```text
//! audit.example.com/prod                            origin: the log's name, a slash, the instance
//! 20852163                                          entries
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=      root of their tree
//!
//! — audit.example.com Az3grlgt…                     the log's signature: the same bytes for the same tree
//! — audit.example.com/witness jWbPPwAA…             a cosignature: the same, and when
//! ```
//!
//! The name in a signature is the key's, which is one for the logs of all instances; which log it is, the origin says,
//! which is signed.
//!
//! Sources: [tlog-checkpoint], [signed-note], [tlog-cosignature].
//!
//! [tlog-checkpoint]: https://c2sp.org/tlog-checkpoint
//! [signed-note]: https://c2sp.org/signed-note
//! [tlog-cosignature]: https://c2sp.org/tlog-cosignature

mod key;
mod note;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::merkle::Hash;

pub use key::is_key_name;
pub use key::{KeyKind, SigningKey, VerifierKey, WrongKey};
pub use note::{Note, NoteSignature, Signed, Untrusted, WrongNote};

/// A tree head: which log, how many entries, and the root over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// Entries in it.
    pub size: u64,
    /// The root of their tree.
    pub root: Hash,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root))
    }

    /// The same from the text. Lines of extensions, which a log of ours never has, are passed over: signatures are over
    /// them too.
    pub fn parse(text: &str) -> Result<Self, WrongCheckpoint> {
        let parse = || {
            let mut lines = text.strip_suffix('\n')?.split('\n');
            let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
            if origin.is_empty() || lines.any(str::is_empty) {
                return None;
            }
            let number: u64 = size.parse().ok()?;
            // One text for each number: no sign, no leading zero.
            let size = (number.to_string() == size).then_some(number)?;
            let root = BASE64.decode(root).ok()?.try_into().ok()?;
            Some(Self { origin: origin.to_owned(), size, root })
        };
        parse().ok_or(WrongCheckpoint)
    }
}

/// Text that is no checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint: three lines, the origin, the number of entries, and 32 bytes in base64")]
pub struct WrongCheckpoint;

#[cfg(test)]
mod tests;
