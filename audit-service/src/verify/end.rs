//! The end message of an export, as protobuf's JSON has it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::merkle::Hash;
use crate::time::parse_rfc3339;

/// The end message of an export.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct End {
    /// Entries in it.
    pub entries: u64,
    /// SHA-256 over its bytes.
    pub sha256: Vec<u8>,
    /// Each log when it was opened.
    pub heads: BTreeMap<String, Head>,
    /// When that was, by its own word: seconds since 1970.
    pub frozen_at_s: Option<u64>,
}

/// Where a log stood, and what connects that with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// Entries.
    pub size: u64,
    /// The root over them.
    pub root: Vec<u8>,
    /// A signed note over as many entries or more.
    pub checkpoint: Option<String>,
    /// The proof that the checkpoint's tree began as this one.
    pub consistency: Vec<Hash>,
}

impl End {
    /// From protobuf's JSON, where numbers of 64 bits are strings.
    pub fn from_json(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let heads = value["heads"].as_array().map(Vec::as_slice).unwrap_or_default();
        let frozen_at = value["frozenAt"].as_str();
        Some(Self {
            entries: number(&value["entries"])?,
            sha256: BASE64.decode(value["sha256"].as_str()?).ok()?,
            heads: heads.iter().map(head).collect::<Option<_>>()?,
            frozen_at_s: frozen_at.and_then(seconds),
        })
    }
}

/// Protobuf's JSON has as many digits behind a second as it needs; here none is.
fn seconds(time: &str) -> Option<u64> {
    let us = time.strip_suffix('Z').and_then(|time| parse_rfc3339(&format!("{}.000000Z", time.get(..19)?)))?;
    u64::try_from(us / 1_000_000).ok()
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn head(head: &Value) -> Option<(String, Head)> {
    let hashes = head["consistencyHashes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let hash = |hash: &Value| BASE64.decode(hash.as_str()?).ok()?.try_into().ok();
    let parsed = Head {
        size: number(&head["size"])?,
        root: BASE64.decode(head["rootHash"].as_str().unwrap_or_default()).ok()?,
        checkpoint: head["checkpoint"].as_str().filter(|note| !note.is_empty()).map(str::to_owned),
        consistency: hashes.iter().map(hash).collect::<Option<_>>()?,
    };
    Some((head["instanceId"].as_str()?.to_owned(), parsed))
}
