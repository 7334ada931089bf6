//! Exports: chunks of whole lines, resumed after a break, verified at the end.
//!
//! ```text
//! open(token) ─▶ chunk {data, token, rows} ─▶ … ─▶ end {rows, sha256}
//!      ▲                     │ break
//!      └── last token ◀──────┘
//! ```
//!
//! Whoever writes pulls a [`Walk`]: into a writer ([`to_writer`]), or into a file that another
//! process can go on with ([`file`]). A chunk is written before the next one is asked for, so
//! what is there always ends where the export is resumed, and the hash over it is that of the
//! whole.

pub(crate) mod file;
mod partial;

use futures::Stream;
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
    /// Those of the bytes that an earlier call had written to the file.
    pub continued: u64,
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
    /// Those of the bytes that an earlier call had written to the file.
    pub continued: u64,
    /// SHA-256 over all bytes; computed here, and equal to what the service says.
    pub sha256: [u8; 32],
    /// How often it was resumed.
    pub resumed: u64,
    /// The end message as the contract has it: the heads of the logs, or the totals.
    pub end: E,
}

/// Whole lines, and how to go on behind them.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) data: Vec<u8>,
    /// A line for each line of data, where they were asked for.
    pub(crate) proofs: Vec<u8>,
    pub(crate) token: String,
    pub(crate) rows: u64,
}

/// The last message of a whole export.
#[derive(Debug)]
pub(crate) struct End<E> {
    pub(crate) rows: u64,
    pub(crate) sha256: Vec<u8>,
    pub(crate) end: E,
}

/// A message of an export, the same for both services.
#[derive(Debug)]
pub(crate) enum Part<E> {
    Chunk(Chunk),
    End(End<E>),
}

/// What a [`Walk`] comes to.
#[derive(Debug)]
pub(crate) enum Step<E> {
    Chunk(Chunk),
    /// The export starts over: what was given until now is no part of it.
    Anew,
    End(End<E>),
}

/// An export under way, over breaks of the connection.
pub(crate) struct Walk<'a, A, E, S, O> {
    reader: &'a Reader,
    /// Asks for the export, behind a token if it is not empty.
    open: O,
    part: fn(A) -> Option<Part<E>>,
    /// The small shapes of usage are not: they start over.
    resumable: bool,
    answers: Option<Opened<S>>,
    token: String,
    /// Whether a chunk was given since the start.
    given: bool,
    breaks: u32,
    resumed: u64,
}

impl<'a, A, E, S, O, F> Walk<'a, A, E, S, O>
where
    S: Stream<Item = Result<A, Status>> + Unpin,
    O: Fn(String) -> F,
    F: Future<Output = Result<Opened<S>, Status>>,
{
    pub(crate) fn new(reader: &'a Reader, resumable: bool, open: O, part: fn(A) -> Option<Part<E>>) -> Self {
        let (answers, token) = (None, String::new());
        Self { reader, open, part, resumable, answers, token, given: false, breaks: 0, resumed: 0 }
    }

    /// Goes on behind a token, or from the start where it is empty.
    fn go_on(&mut self, token: String) {
        (self.answers, self.token, self.given) = (None, token, false);
    }

    async fn next(&mut self) -> Result<Step<E>, Error> {
        loop {
            let status = match self.part().await {
                Ok(Some(Part::Chunk(chunk))) => {
                    (self.breaks, self.given) = (0, true);
                    self.token.clone_from(&chunk.token);
                    return Ok(Step::Chunk(chunk));
                }
                Ok(Some(Part::End(end))) => return Ok(Step::End(end)),
                // From a newer service; not ours to judge.
                Ok(None) => continue,
                Err(status) => status,
            };
            self.answers = None;
            self.breaks += 1;
            let delay = self.reader.again(&status, self.breaks - 1).filter(|_| self.breaks <= MAX_BREAKS);
            let Some(delay) = delay else {
                return Err(self.reader.failed(status));
            };
            if self.resumable && self.given && self.token.is_empty() {
                return Err(Error::Protocol("a chunk came without a resume token".into()));
            }
            tracing::debug!(%status, "export broke off and is resumed");
            self.resumed += 1;
            tokio::time::sleep(delay).await;
            if !self.resumable && self.given {
                self.go_on(String::new());
                return Ok(Step::Anew);
            }
        }
    }

    async fn part(&mut self) -> Result<Option<Part<E>>, Status> {
        let answers = match &mut self.answers {
            Some(answers) => answers,
            None => self.answers.insert((self.open)(self.token.clone()).await?),
        };
        match self.reader.next(answers).await? {
            Some(answer) => Ok((self.part)(answer)),
            None => Err(Status::unavailable("the export has no end")),
        }
    }
}

/// Writes an export into a writer. What starts over is held in memory until it is whole: what
/// a writer has taken can't be taken back.
pub(crate) async fn to_writer<A, E, S, O, F>(
    mut walk: Walk<'_, A, E, S, O>,
    writer: &mut (impl AsyncWrite + Unpin),
    mut progress: impl FnMut(ExportProgress),
) -> Result<Exported<E>, Error>
where
    S: Stream<Item = Result<A, Status>> + Unpin,
    O: Fn(String) -> F,
    F: Future<Output = Result<Opened<S>, Status>>,
{
    walk.reader.channel()?;
    let (mut hash, mut held) = (Sha256::new(), Vec::new());
    let mut at = ExportProgress::default();
    loop {
        match walk.next().await? {
            Step::Chunk(chunk) => {
                hash.update(&chunk.data);
                match walk.resumable {
                    true => writer.write_all(&chunk.data).await?,
                    false => held.extend_from_slice(&chunk.data),
                }
                let bytes = at.bytes + chunk.data.len() as u64;
                at = ExportProgress { rows: chunk.rows, bytes, resumed: walk.resumed, ..at };
                progress(at);
            }
            Step::Anew => {
                (hash, at) = (Sha256::new(), ExportProgress::default());
                held.clear();
            }
            Step::End(end) => {
                at.resumed = walk.resumed;
                let exported = verified(at, hash.finalize().into(), end)?;
                writer.write_all(&held).await?;
                writer.flush().await?;
                return Ok(exported);
            }
        }
    }
}

/// What was written, if it is what the end says.
fn verified<E>(at: ExportProgress, sha256: [u8; 32], end: End<E>) -> Result<Exported<E>, Error> {
    let ExportProgress { rows, bytes, continued, resumed } = at;
    if end.sha256 != sha256 {
        let (is, said) = (hex(&sha256), hex(&end.sha256));
        return Err(Error::Protocol(format!("the export's {bytes} bytes have the SHA-256 {is}, its end says {said}")));
    }
    if end.rows != rows {
        return Err(Error::Protocol(format!("the export's chunks have {rows} rows, its end says {}", end.rows)));
    }
    Ok(Exported { rows, bytes, continued, sha256, resumed, end: end.end })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
