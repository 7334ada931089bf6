//! The audit log as a file, with what proves it beside it.

use std::path::PathBuf;

use activity_proto::audit::v1 as proto;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::AsyncWrite;
use tonic::{Status, Streaming};

use super::query::{AuditFilter, client};
use super::{Audit, AuditLane, Lane};
use crate::TimeRange;
use crate::error::Error;
use crate::query::Opened;
use crate::query::export::{self, Chunk, End, ExportFormat, ExportProgress, Exported, Part, Walk, file};

/// What to export; a range is required.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct AuditExport {
    range: proto::export_entries_request::Range,
    filter: AuditFilter,
    format: ExportFormat,
    with_proofs: bool,
}

impl AuditExport {
    /// A range of time, ascending by when entries occurred.
    pub fn range(range: TimeRange, format: ExportFormat) -> Self {
        Self::new(proto::export_entries_request::Range::TimeRange(range.into()), format)
    }

    /// A part of an instance's log, ascending by sequence: from `from`, up to and
    /// without `to`, or the head of the log.
    pub fn sequences(instance: impl Into<String>, from: u64, to: Option<u64>, format: ExportFormat) -> Self {
        let range = proto::SequenceRange { instance_id: instance.into(), from: Some(from), to };
        Self::new(proto::export_entries_request::Range::SequenceRange(range), format)
    }

    fn new(range: proto::export_entries_request::Range, format: ExportFormat) -> Self {
        Self { range, filter: AuditFilter::new(), format, with_proofs: false }
    }

    /// Only those. Without stages, all of them: an export is evidence.
    pub fn filter(mut self, filter: AuditFilter) -> Self {
        self.filter = filter;
        self
    }

    /// With the proof of each line in a file of their own, so that it is verifiable by itself,
    /// also where a filter left others out: for JSONL and [`Audit::export_file`].
    pub fn with_proofs(mut self) -> Self {
        self.with_proofs = true;
        self
    }

    fn question(&self) -> proto::ExportEntriesRequest {
        let format = match self.format {
            ExportFormat::Jsonl => proto::ExportFormat::Jsonl,
            ExportFormat::Csv => proto::ExportFormat::Csv,
        };
        proto::ExportEntriesRequest {
            range: Some(self.range.clone()),
            filter: Some(self.filter.clone().into()),
            format: format.into(),
            resume_token: String::new(),
            with_proofs: self.with_proofs,
        }
    }
}

impl Audit {
    /// Writes an export: resumed where it breaks off, verified at its end. The writer is
    /// flushed; `progress` is called after each chunk.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] where hash or count don't match, [`Error::Io`], and as all
    /// queries. What was written until then is not whole. [`Error::Config`] with proofs, for
    /// which there is no place.
    pub async fn export(
        &self,
        export: AuditExport,
        writer: &mut (impl AsyncWrite + Unpin),
        progress: impl FnMut(ExportProgress),
    ) -> Result<Exported<proto::ExportEnd>, Error> {
        if export.with_proofs {
            let message = "one writer has no place for them; export_file writes them beside the lines".to_owned();
            return Err(Error::Config { setting: "with_proofs", message });
        }
        let question = export.question();
        let walk = Walk::new(&self.reader, true, |token| self.open_export(&question, token), part);
        export::to_writer(walk, writer, progress).await
    }

    /// Writes an export into a file, and its end beside it, of which there is neither until the
    /// whole is on disk, verified and synced. What `standalone verify` takes:
    ///
    /// | file | what |
    /// | --- | --- |
    /// | `audit.jsonl`, the target | the lines, `--export` |
    /// | `audit.jsonl.end.json` | the end message as JSON, `--end` |
    /// | `audit.jsonl.proofs` | [`with_proofs`](AuditExport::with_proofs): a line for each line, `--proofs` |
    ///
    /// It is resumed where the connection breaks. Where this call ends before it is whole (it
    /// failed, was dropped, or the process died), what has come stays beside the target
    /// (`audit.jsonl.part`, `.part.json`, `.proofs.part`), and the same call goes on from there,
    /// but for up to a MiB that comes again: at the same frozen set, whatever was written
    /// meanwhile, and a range by a name (`last_24_hours`) is that of when it was begun; the end
    /// tells. Another export to the same target, or one that was begun a day ago, begins anew. What
    /// had the target's name before is replaced.
    ///
    /// `progress` is called after each chunk. Disk is waited for on tokio's threads for that.
    ///
    /// # Errors
    ///
    /// - [`Error::Protocol`] where hash or count don't match: the next call begins anew;
    /// - [`Error::ExportFile`]: a file can't be written or read, is not as it was written, or
    ///   another call is writing it;
    /// - as all queries. What may be tried again was, some eight times in a row.
    pub async fn export_file(
        &self,
        export: AuditExport,
        target: impl Into<PathBuf>,
        progress: impl FnMut(ExportProgress),
    ) -> Result<Exported<proto::ExportEnd>, Error> {
        let question = export.question();
        let encoded = question.encode_to_vec();
        let plan = file::plan(target.into(), AuditLane::NAME, &encoded, true, export.with_proofs);
        let walk = Walk::new(&self.reader, true, |token| self.open_export(&question, token), part);
        file::to_file(walk, plan, progress, |end| Some(end_json(end).to_string().into_bytes())).await
    }

    async fn open_export(
        &self,
        question: &proto::ExportEntriesRequest,
        resume_token: String,
    ) -> Result<Opened<Streaming<proto::ExportEntriesResponse>>, Status> {
        let question = proto::ExportEntriesRequest { resume_token, ..question.clone() };
        self.reader.open(question, |channel, request| async { client(channel).export_entries(request).await }).await
    }
}

/// The end as protobuf's JSON has it (and grpcurl prints it).
fn end_json(end: &proto::ExportEnd) -> Value {
    let time = |time: &prost_types::Timestamp| time.to_string();
    let head = |head: &proto::LogHead| {
        let hashes: Vec<String> = head.consistency_hashes.iter().map(|hash| BASE64.encode(hash)).collect();
        json!({
            "instanceId": head.instance_id,
            "size": head.size.unwrap_or_default().to_string(),
            "rootHash": BASE64.encode(&head.root_hash),
            "checkpoint": head.checkpoint,
            "consistencyHashes": hashes,
        })
    };
    json!({
        "entries": end.entries.unwrap_or_default().to_string(),
        "sha256": BASE64.encode(&end.sha256),
        "heads": end.heads.iter().map(head).collect::<Vec<_>>(),
        "interval": end.interval.as_ref().map(|interval| json!({
            "start": interval.start.as_ref().map(time),
            "end": interval.end.as_ref().map(time),
        })),
        "archivedThrough": end.archived_through.map(|through| through.to_string()),
        "legalHoldIds": end.legal_hold_ids,
        "frozenAt": end.frozen_at.as_ref().map(time),
    })
}

fn part(answer: proto::ExportEntriesResponse) -> Option<Part<proto::ExportEnd>> {
    Some(match answer.part? {
        proto::export_entries_response::Part::Chunk(chunk) => Part::Chunk(Chunk {
            data: chunk.data,
            proofs: chunk.proofs,
            token: chunk.resume_token,
            rows: chunk.entries_so_far.unwrap_or_default(),
        }),
        proto::export_entries_response::Part::End(end) => {
            Part::End(End { rows: end.entries.unwrap_or_default(), sha256: end.sha256.clone(), end })
        }
    })
}
