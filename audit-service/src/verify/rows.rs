//! Lines that are each proven by themselves: by the proofs that came beside an export, which may be filtered.
//!
//! ```text
//! line n ─▶ leaf hash ─┐
//! proof n ─────────────┴─▶ is it under the root that the export's end connects with a checkpoint? ─▶ named if not
//! ```

use std::io::{self, BufRead, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::{Verdict, Verifier};
use crate::canonical;
use crate::event::Entry;
use crate::merkle::{Hash, verify_inclusion};

/// A line of proofs has a hash for each doubling of the log, and a name.
const MAX_PROOF_BYTES: u64 = 64 * 1024;

/// A line of proofs.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RowProof {
    instance_id: String,
    sequence: String,
    hashes: Vec<String>,
}

impl RowProof {
    fn parse(line: &[u8]) -> Option<(String, u64, Vec<Hash>)> {
        let proof: Self = serde_json::from_slice(line).ok()?;
        let hash = |hash: &String| BASE64.decode(hash).ok()?.try_into().ok();
        Some((proof.instance_id, proof.sequence.parse().ok()?, proof.hashes.iter().map(hash).collect::<Option<_>>()?))
    }
}

impl Verifier {
    /// Takes the lines, and beside each its proof. Behind the end, which has the roots. Of a filtered export nothing
    /// else is asked for; another one is verified whole as well.
    ///
    /// # Errors
    /// What one of the readers says.
    pub fn proven_export(&mut self, reader: impl BufRead, mut proofs: impl BufRead, filtered: bool) -> io::Result<()> {
        self.filtered = filtered;
        let mut proof = Vec::new();
        self.each_line(reader, |verifier, line| {
            proof.clear();
            proofs.by_ref().take(MAX_PROOF_BYTES).read_until(b'\n', &mut proof)?;
            if let Some((line, entry)) = verifier.parsed(line) {
                verifier.row(line, &entry, &proof);
            }
            Ok(())
        })
    }

    fn row(&mut self, line: &str, entry: &Entry, proof: &[u8]) {
        let (number, instance, sequence) = (self.lines + 1, &entry.event.instance_id, entry.sequence);
        let size = self.end.as_ref().and_then(|end| end.heads.get(instance)).map(|head| head.size);
        let root = size.and_then(|size| Some((size, self.log(instance).root(size)?)));
        let proven = match (RowProof::parse(proof), root) {
            (None, _) => Err((Verdict::NotEstablished, "has no proof")),
            (_, None) => Err((Verdict::NotEstablished, "is of a log whose head no checkpoint by a pinned key is over")),
            (Some((of, at, _)), _) if of != *instance || at != sequence => {
                Err((Verdict::Altered, "has the proof of another entry: one of them was moved, or put in between"))
            }
            (Some((_, _, hashes)), Some((size, root))) => {
                verify_inclusion(sequence, size, &canonical::leaf_hash(line), &hashes, &root)
                    .map_err(|_| (Verdict::Altered, "is not the one that was signed: it was changed, or its proof was"))
            }
        };
        match proven {
            Ok(()) => self.log(instance).rows += 1,
            Err((verdict, why)) => {
                let what = format!("log {instance:?}: entry {sequence} (line {number}) {why}");
                self.report.found(verdict, what);
            }
        }
        if self.filtered {
            self.lines += 1;
            self.log(instance).count(entry);
        } else {
            self.entry(line, entry);
        }
    }
}
