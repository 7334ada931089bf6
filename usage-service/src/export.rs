//! Exports as bytes: rows of the three shapes in the two formats, the hash over
//! them, and where an export of requests goes on.
//!
//! Nothing here knows of the wire or of storage: the same rows give the same
//! bytes, which is what makes a resumed export equal to one that never broke off.

mod csv;
mod groups;
mod json;
mod progress;
mod requests;

pub(crate) use groups::{Lines, breakdown, time_series};
pub(crate) use progress::Progress;

use service_core::error::{Error, Result};

use crate::model::{RequestRow, StoredRequest};

/// What an export's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A row a request.
    Requests,
    /// A row a group.
    Breakdown,
    /// A row a group and bucket.
    TimeSeries,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A JSON object a line.
    Jsonl,
    /// RFC 4180 with a header.
    Csv,
}

/// What comes before the first request.
pub(crate) fn requests_header(format: Format, out: &mut Vec<u8>) {
    if format == Format::Csv {
        requests::header(out);
    }
}

/// One request.
pub(crate) fn request(format: Format, request: &RequestRow<'_>, out: &mut Vec<u8>) -> Result<()> {
    match format {
        Format::Csv => requests::line(request, out),
        Format::Jsonl => {
            let stored = StoredRequest::try_from(request)?;
            json::line(&json::Request::from(&stored), out).map_err(Error::internal)?;
        }
    }
    Ok(())
}
