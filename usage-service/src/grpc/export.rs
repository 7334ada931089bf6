//! `ExportUsage`: the list query walked in one stream.
//!
//! The stream is pulled by its reader: a page is fetched whole, its connection is
//! given back, and only then are chunks handed out, while the next page is fetched by a
//! task that ends with the stream. A reader that stops holds two pages in memory and
//! nothing else.

use activity_proto::usage::v1 as proto;
use futures::Stream;
use proto::export_usage_response::Part;
use service_core::auth::Caller;
use service_core::error::{Error, Result};
use service_core::time_range::{Resolved, WhenMissing};
use sha2::{Digest as _, Sha256};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::Shared;
use super::query::{
    Answered, Seen, SeriesQuery, breakdown_limit, group_by, query_hash, resolve, scope, sees_producers, series_limit,
};
use crate::answer::Metrics;
use crate::convert;
use crate::export::{self, Format, Lines, Progress, Shape};
use crate::model::Scope;
use crate::store::{Next, Page};

/// Rows of the first page; how many the next ones have depends on their size.
const PAGE_ROWS: usize = 1_000;
/// A chunk goes out when it has reached this size.
const CHUNK_BYTES: usize = 256 * 1024;
/// Kind of the resume tokens.
const RESUME_KIND: &str = "usage.export_requests";

pub(super) type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<proto::ExportUsageResponse, Status>> + Send>>;

impl Shared {
    pub(super) async fn export(&self, caller: &Caller, mut request: proto::ExportUsageRequest) -> Result<Chunks> {
        let range = resolve(request.time_range.as_ref(), WhenMissing::Refuse)?;
        let seen = Seen::new(caller, request.filter.as_ref())?;
        let shape = convert::shape(request.shape)?;
        let format = convert::format(request.format)?;
        fits(shape, &request)?;
        let order_by = convert::metric(request.order_by)?;
        match shape {
            Shape::Requests => {
                let token = std::mem::take(&mut request.resume_token);
                let query_hash = query_hash(caller, &request);
                let progress = if token.is_empty() {
                    let watermark = self.store.watermark().await?;
                    Progress::new(range.start_us, range.end_us, watermark)
                } else {
                    let payload = self.sealer.open_field("resume_token", RESUME_KIND, &query_hash, &token)?;
                    Progress::from_bytes(&payload)?
                };
                let range = Resolved { start_us: progress.start_us, end_us: progress.end_us, ..range };
                let scope = Scope { watermark: Some(progress.watermark), ..scope(&range, &seen) };
                let shared = Self { store: self.store.for_export().await, ..self.clone() };
                let export = Requests { shared, query_hash, scope, format, progress, fresh: token.is_empty() };
                Ok(Box::pin(export.run()))
            }
            Shape::Breakdown => {
                let keys = group_by(caller, &request.group_by, true)?;
                let limit = breakdown_limit(request.limit)?;
                let answered = self.breakdown(range, &seen, &keys, order_by, limit).await?;
                let lines = export::breakdown(format, &keys, &answered.answer)?;
                let total = answered.answer.overall;
                Ok(Box::pin(small(lines, total, answered.range, answered.resolution_seconds)))
            }
            Shape::TimeSeries => {
                let query = SeriesQuery {
                    bucket: convert::bucket(request.bucket)?,
                    keys: group_by(caller, &request.group_by, false)?,
                    order_by,
                    limit: series_limit(request.limit)?,
                    seen,
                    range,
                };
                let Answered { range, resolution_seconds, answer: (ranked, edges) } = self.series(&query).await?;
                let lines = export::time_series(format, &query.keys, &ranked, &edges)?;
                Ok(Box::pin(small(lines, ranked.overall, range, resolution_seconds)))
            }
        }
    }
}

/// Refuses what another shape would need: who sets it expects it to count.
fn fits(shape: Shape, request: &proto::ExportUsageRequest) -> Result<()> {
    let is_single = shape == Shape::Requests;
    let fields = [
        ("resume_token", !is_single && !request.resume_token.is_empty(), "EXPORT_SHAPE_REQUESTS"),
        ("group_by", is_single && !request.group_by.is_empty(), "other shapes than EXPORT_SHAPE_REQUESTS"),
        ("order_by", is_single && request.order_by != 0, "other shapes than EXPORT_SHAPE_REQUESTS"),
        ("limit", is_single && request.limit != 0, "other shapes than EXPORT_SHAPE_REQUESTS"),
        ("bucket", shape != Shape::TimeSeries && request.bucket != 0, "EXPORT_SHAPE_TIME_SERIES"),
    ];
    match fields.into_iter().find(|(_, is_odd, _)| *is_odd) {
        None => Ok(()),
        Some((field, _, allowed)) => {
            Err(Error::invalid(field, format!("{field} is set, allowed is that with {allowed} only")))
        }
    }
}

/// An export of requests under way.
struct Requests {
    shared: Shared,
    query_hash: [u8; 32],
    scope: Scope,
    format: Format,
    progress: Progress,
    /// Whether it starts here: then the header comes first.
    fresh: bool,
}

impl Requests {
    fn run(mut self) -> impl Stream<Item = Result<proto::ExportUsageResponse, Status>> + Send {
        async_stream::try_stream! {
            let mut buffer = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
            if self.fresh {
                export::requests_header(self.format, &mut buffer);
            }
            let sees_producers = sees_producers(&self.scope.access);
            let mut ahead = Some(self.fetch(Next { after: self.progress.after, limit: PAGE_ROWS }));
            while let Some(fetching) = ahead {
                // A page of rare rows may be long in coming: a stop does not wait for it, the client resumes from its
                // last token, here or at a replica.
                let page = tokio::select! {
                    biased;
                    () = self.shared.shutdown.cancelled() => Err(Error::ShuttingDown),
                    page = fetching => page.map_err(Error::internal).flatten(),
                }?;
                ahead = page.next.map(|next| self.fetch(next));
                for row in page.rows() {
                    let mut row = row?;
                    row.producer = row.producer.filter(|_| sees_producers);
                    export::request(self.format, &row, &mut buffer)?;
                    self.progress.row(&row);
                    if buffer.len() >= CHUNK_BYTES {
                        yield self.chunk(&mut buffer);
                    }
                }
            }
            if !buffer.is_empty() {
                yield self.chunk(&mut buffer);
            }
            yield self.end().await?;
        }
    }

    /// Fetches a page beside whatever goes on; not if nobody waits for it any more.
    fn fetch(&self, next: Next) -> AbortOnDropHandle<Result<Page>> {
        let (store, scope) = (self.shared.store.clone(), self.scope.clone());
        AbortOnDropHandle::new(tokio::spawn(async move { store.export_page(&scope, next).await }))
    }

    fn chunk(&mut self, buffer: &mut Vec<u8>) -> proto::ExportUsageResponse {
        let capacity = buffer.capacity();
        let data = std::mem::replace(buffer, Vec::with_capacity(capacity));
        self.progress.bytes(&data);
        let payload = self.progress.to_bytes();
        message(Part::Chunk(proto::ExportChunk {
            data,
            resume_token: self.shared.sealer.seal(RESUME_KIND, &self.query_hash, &payload),
            rows_so_far: Some(self.progress.totals.requests),
        }))
    }

    /// Sums are those of the rows that went out; who is distinct among them is
    /// asked once, of the same frozen set.
    async fn end(self) -> Result<proto::ExportUsageResponse> {
        let edges = [self.scope.start_us, self.scope.end_us];
        let distinct = if_countable(self.shared.store.totals(&self.scope, &edges).await)?;
        let total = Metrics { totals: self.progress.totals, ..distinct.unwrap_or_default() };
        let mut total = convert::metrics(&total);
        if distinct.is_none() {
            (total.unique_users, total.unique_models) = (None, None);
        }
        Ok(message(Part::End(proto::ExportEnd {
            rows: Some(self.progress.totals.requests),
            sha256: self.progress.sha256(),
            total: Some(total),
            currency_code: convert::currency(),
            interval: Some(convert::interval(self.scope.start_us, self.scope.end_us)),
            // Single requests went out.
            resolution_seconds: 0,
        })))
    }
}

/// The totals of all rows together, unless retention has begun to remove these rows, or counting them takes longer than
/// a statement may. Neither would be otherwise the next time, so a whole export ends without.
fn if_countable(found: Result<Vec<Metrics>>) -> Result<Option<Metrics>> {
    match found {
        Ok(found) => Ok(Some(found.first().copied().unwrap_or_default())),
        Err(Error::OutOfRange(_) | Error::DeadlineExceeded(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An export that is in memory.
fn small(
    lines: Lines,
    total: Metrics,
    range: Resolved,
    resolution_seconds: i32,
) -> impl Stream<Item = Result<proto::ExportUsageResponse, Status>> + Send {
    async_stream::try_stream! {
        let rows = (lines.lines.len() - lines.header) as u64;
        let mut hash = Sha256::new();
        let mut buffer = Vec::new();
        let mut so_far = 0_u64;
        let mut header = lines.header;
        for line in lines.lines {
            buffer.extend_from_slice(&line);
            so_far += u64::from(header == 0);
            header = header.saturating_sub(1);
            if buffer.len() >= CHUNK_BYTES || (so_far == rows && !buffer.is_empty()) {
                hash.update(&buffer);
                yield message(Part::Chunk(proto::ExportChunk {
                    data: std::mem::take(&mut buffer),
                    resume_token: String::new(),
                    rows_so_far: Some(so_far),
                }));
            }
        }
        yield message(Part::End(proto::ExportEnd {
            rows: Some(rows),
            sha256: hash.finalize().to_vec(),
            total: Some(convert::metrics(&total)),
            currency_code: convert::currency(),
            interval: Some(range.to_interval()),
            resolution_seconds,
        }));
    }
}

fn message(part: Part) -> proto::ExportUsageResponse {
    proto::ExportUsageResponse { part: Some(part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_ends_without_what_could_never_be_counted_and_not_without_what_may_be_later() {
        let counted = Metrics { unique_users: 3, ..Metrics::default() };
        assert_eq!(if_countable(Ok(vec![counted])).ok(), Some(Some(counted)));
        for lost in [Error::OutOfRange("removed".into()), Error::DeadlineExceeded("too long".into())] {
            assert_eq!(if_countable(Err(lost)).ok(), Some(None));
        }
        for later in [Error::ShuttingDown, Error::storage_unavailable(anyhow::anyhow!("away"))] {
            assert!(if_countable(Err(later)).is_err_and(|error| error.is_retryable()));
        }
    }
}
