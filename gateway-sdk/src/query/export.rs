//! Exports: a file in chunks, resumed after a break, verified at its end.
//!
//! ```text
//! open(token) ─▶ chunk {data, token, rows} ─▶ … ─▶ end {rows, sha256}
//!      ▲                     │ break
//!      └── last token ◀──────┘
//! ```
//!
//! A chunk is written before its token is taken over, so the bytes in the writer always
//! end where the export is resumed, and the hash over them is that of the whole.

use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tonic::Status;

use super::{Opened, Reader};
use crate::error::Error;

/// Breaks in a row without a chunk in between, after which an export is given up.
const MAX_BREAKS: u32 = 8;

/// How an export is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExportFormat {
    /// A JSON object a line. Of audit entries: their canonical JSON, the very bytes
    /// that are hashed.
    Jsonl,
    /// RFC 4180 with a header; cells that a spreadsheet would run as a formula are made
    /// inert.
    Csv,
}

/// How far an export has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportProgress {
    /// Rows written.
    pub rows: u64,
    /// Bytes written.
    pub bytes: u64,
    /// How often it was resumed.
    pub resumed: u64,
}

/// What a whole, verified export held.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Exported<E> {
    /// Rows in all, without a header.
    pub rows: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// SHA-256 over all bytes; computed here, and equal to what the service says.
    pub sha256: [u8; 32],
    /// How often it was resumed.
    pub resumed: u64,
    /// The end message as the contract has it: the heads of the logs, or the totals.
    pub end: E,
}

/// A message of an export, the same for both services.
#[derive(Debug)]
pub(crate) enum Part<E> {
    Chunk { data: Vec<u8>, token: String, rows: u64 },
    End { rows: u64, sha256: Vec<u8>, end: E },
}

/// Runs an export to its end. `open` asks for it, from a resume token on if it is not
/// empty; `resumable` is false for the small shapes that start over: they are held in
/// memory until they are whole.
pub(crate) async fn run<A, E, S, F>(
    reader: &Reader,
    writer: &mut (impl AsyncWrite + Unpin),
    mut progress: impl FnMut(ExportProgress),
    resumable: bool,
    open: impl Fn(String) -> F,
    part: impl Fn(A) -> Option<Part<E>>,
) -> Result<Exported<E>, Error>
where
    S: futures::Stream<Item = Result<A, Status>> + Unpin,
    F: Future<Output = Result<Opened<S>, Status>>,
{
    reader.channel()?;
    let mut hash = Sha256::new();
    let mut held = Vec::new();
    let mut token = String::new();
    let mut at = ExportProgress::default();
    let mut breaks = 0;
    loop {
        let status = 'stream: {
            let mut answers = match open(token.clone()).await {
                Ok(answers) => answers,
                Err(status) => break 'stream status,
            };
            loop {
                let answer = match reader.next(&mut answers).await {
                    Ok(Some(answer)) => answer,
                    Ok(None) => break 'stream Status::unavailable("the export has no end"),
                    Err(status) => break 'stream status,
                };
                match part(answer) {
                    Some(Part::Chunk { data, token: next, rows }) => {
                        hash.update(&data);
                        at.bytes += data.len() as u64;
                        at.rows = rows;
                        if resumable {
                            writer.write_all(&data).await?;
                        } else {
                            held.extend_from_slice(&data);
                        }
                        token = next;
                        breaks = 0;
                        progress(at);
                    }
                    Some(Part::End { rows, sha256, end }) => {
                        writer.write_all(&held).await?;
                        writer.flush().await?;
                        return verify(at, rows, &sha256, hash, end);
                    }
                    // From a newer service; not ours to judge.
                    None => {}
                }
            }
        };
        breaks += 1;
        let Some(delay) = reader.again(&status, breaks - 1).filter(|_| breaks <= MAX_BREAKS) else {
            return Err(status.into());
        };
        if resumable && token.is_empty() && at.bytes > 0 {
            return Err(Error::Protocol("a chunk came without a resume token".into()));
        }
        tracing::debug!(rows = at.rows, %status, "export broke off and is resumed");
        at.resumed += 1;
        if !resumable {
            held.clear();
            token.clear();
            hash = Sha256::new();
            (at.rows, at.bytes) = (0, 0);
        }
        tokio::time::sleep(delay).await;
    }
}

fn verify<E>(at: ExportProgress, rows: u64, sha256: &[u8], hash: Sha256, end: E) -> Result<Exported<E>, Error> {
    let computed: [u8; 32] = hash.finalize().into();
    if sha256 != computed {
        return Err(Error::Protocol(format!(
            "the export's {} bytes do not have the hash that its end names",
            at.bytes
        )));
    }
    if rows != at.rows {
        return Err(Error::Protocol(format!("the export's end names {rows} rows, its chunks {}", at.rows)));
    }
    Ok(Exported { rows, bytes: at.bytes, sha256: computed, resumed: at.resumed, end })
}
