//! The services of the contract: a request in, checked; a call of the store or the writer; the answer out.

mod ingest;
mod query;

pub(crate) use ingest::IngestService;
pub(crate) use query::QueryService;
