//! Between the wire and the model: the only module beside `grpc` that names
//! generated types. What comes in is checked here, field by field, and leaves as
//! the model's own types; what goes out is put into messages.

mod answer;
mod event;
mod price;
mod query;

pub(crate) use answer::{breakdown_row, currency, facet, interval, metrics, request, series};
pub(crate) use event::{at_most, event, text};
pub(crate) use price::{estimate, estimate_usage, model_prices};
pub(crate) use query::{bucket, dimensions, dropped, filter, format, limit, metric, shape};
