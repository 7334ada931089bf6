//! Real data instead of the sample: the Azure trace's columns become requests,
//! CloudTrail records become administrative actions. What the files don't tell is
//! worked out from each row alone, by rules that are stated at each function so
//! that anybody can work them out again.

pub mod actions;
pub mod requests;

use sha2::{Digest, Sha256};

/// Why a file cannot be replayed.
#[derive(Debug)]
pub struct ReplayError {
    /// The line, from 1; 0 where none is to blame.
    pub line: usize,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl std::fmt::Display for ReplayError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

impl std::error::Error for ReplayError {}

/// The first ten bytes of SHA-256, for an id's bits.
fn bits(text: &str) -> [u8; 10] {
    let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    std::array::from_fn(|index| hash[index])
}

/// The first eight bytes of SHA-256 as a big-endian number.
fn number(text: &str) -> u64 {
    let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    hash[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Bytes as lower-case digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
