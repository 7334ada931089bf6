//! Usage as a file: single requests, or what is on screen.

use std::path::PathBuf;

use activity_proto::usage::v1 as proto;
use prost::Message;
use tokio::io::AsyncWrite;
use tonic::{Status, Streaming};

use super::query::client;
use super::{Lane, Usage, UsageLane};
use crate::error::Error;
use crate::query::Opened;
use crate::query::export::{self, Chunk, End, ExportFormat, ExportProgress, Exported, Part, Walk, file};
use crate::{Bucket, Grouping, UsageQuery};

/// What the rows of an export are.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum UsageShape {
    /// A row a request.
    Requests,
    /// A row a group, as [`Usage::breakdown`], then the others and the total.
    Breakdown(Grouping),
    /// A row a series and bucket, as [`Usage::series`].
    TimeSeries(Bucket, Grouping),
}

impl Usage {
    /// Writes an export, verified at its end. Requests are resumed where the stream
    /// breaks off; the other shapes are small, and are written once they are whole. The
    /// query needs a range.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] where hash or count don't match, [`Error::Io`], and as all
    /// queries. What was written until then is not whole.
    pub async fn export(
        &self,
        query: &UsageQuery,
        shape: UsageShape,
        format: ExportFormat,
        writer: &mut (impl AsyncWrite + Unpin),
        progress: impl FnMut(ExportProgress),
    ) -> Result<Exported<proto::ExportEnd>, Error> {
        let question = question(query, &shape, format);
        let resumable = shape == UsageShape::Requests;
        let walk = Walk::new(&self.reader, resumable, |token| self.open_export(&question, token), part);
        export::to_writer(walk, writer, progress).await
    }

    /// As [`export`](Self::export), into a file that another process can go on with: as
    /// [`Audit::export_file`](crate::Audit::export_file), but for the end, which is in the answer
    /// alone. Shapes other than requests start over.
    ///
    /// # Errors
    ///
    /// As [`Audit::export_file`](crate::Audit::export_file).
    pub async fn export_file(
        &self,
        query: &UsageQuery,
        shape: UsageShape,
        format: ExportFormat,
        target: impl Into<PathBuf>,
        progress: impl FnMut(ExportProgress),
    ) -> Result<Exported<proto::ExportEnd>, Error> {
        let question = question(query, &shape, format);
        let resumable = shape == UsageShape::Requests;
        let plan = file::plan(target.into(), UsageLane::NAME, &question.encode_to_vec(), resumable, false);
        let walk = Walk::new(&self.reader, resumable, |token| self.open_export(&question, token), part);
        file::to_file(walk, plan, progress, |_| None).await
    }

    async fn open_export(
        &self,
        question: &proto::ExportUsageRequest,
        resume_token: String,
    ) -> Result<Opened<Streaming<proto::ExportUsageResponse>>, Status> {
        let question = proto::ExportUsageRequest { resume_token, ..question.clone() };
        self.reader.open(question, |channel, request| async { client(channel).export_usage(request).await }).await
    }
}

fn question(query: &UsageQuery, shape: &UsageShape, format: ExportFormat) -> proto::ExportUsageRequest {
    let format = match format {
        ExportFormat::Jsonl => proto::ExportFormat::Jsonl,
        ExportFormat::Csv => proto::ExportFormat::Csv,
    };
    let none = Grouping::none();
    let (shape, bucket, grouping) = match shape {
        UsageShape::Requests => (proto::ExportShape::Requests, None, &none),
        UsageShape::Breakdown(by) => (proto::ExportShape::Breakdown, None, by),
        UsageShape::TimeSeries(bucket, by) => (proto::ExportShape::TimeSeries, Some(*bucket), by),
    };
    proto::ExportUsageRequest {
        time_range: query.time_range(),
        filter: query.usage_filter(),
        shape: shape.into(),
        format: format.into(),
        resume_token: String::new(),
        group_by: grouping.group_by(),
        order_by: grouping.order_by.into(),
        limit: grouping.limit.into(),
        bucket: bucket.unwrap_or_default().into(),
    }
}

fn part(answer: proto::ExportUsageResponse) -> Option<Part<proto::ExportEnd>> {
    Some(match answer.part? {
        proto::export_usage_response::Part::Chunk(chunk) => Part::Chunk(Chunk {
            data: chunk.data,
            proofs: Vec::new(),
            token: chunk.resume_token,
            rows: chunk.rows_so_far.unwrap_or_default(),
        }),
        proto::export_usage_response::Part::End(end) => {
            Part::End(End { rows: end.rows.unwrap_or_default(), sha256: end.sha256.clone(), end })
        }
    })
}
