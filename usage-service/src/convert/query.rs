//! What a query asks for: filters, dimensions, metrics, limits.

use activity_proto::common::v1 as common;
use activity_proto::usage::v1 as proto;
use service_core::error::{Error, Result, Violation};
use service_core::time_range;

use super::event;
use crate::export::{Format, Shape};
use crate::model::{Dimension, DroppedRange, Filter, Metric, Status};

/// Values in one list of a filter.
const MAX_VALUES: usize = 1_000;
/// Labels of a filter: as many as an event may have.
const MAX_LABELS: usize = 16;
/// Dimensions at once.
const MAX_DIMENSIONS: usize = 3;

/// A filter; absent is everything.
pub(crate) fn filter(message: Option<&proto::UsageFilter>) -> Result<Filter> {
    let Some(message) = message else {
        return Ok(Filter::default());
    };
    let list = |field: &str, values: &[String]| -> Result<Vec<String>> {
        let field = format!("filter.{field}");
        event::at_most(&field, values.len(), MAX_VALUES)?;
        for (index, value) in values.iter().enumerate() {
            event::text(&format!("{field}[{index}]"), value)?;
        }
        Ok(values.to_vec())
    };
    event::at_most("filter.statuses", message.statuses.len(), MAX_VALUES)?;
    let statuses = message.statuses.iter().enumerate().map(|(index, number)| {
        Status::from_number(i64::from(*number)).ok_or_else(|| {
            let field = format!("filter.statuses[{index}]");
            let message = format!("{field} is {number}, allowed are the values of RequestStatus, 1 to 5");
            Error::invalid(field, message)
        })
    });
    event::at_most("filter.labels", message.labels.len(), MAX_LABELS)?;
    for (key, value) in &message.labels {
        event::text("filter.labels", key)?;
        event::text("filter.labels", value)?;
    }
    Ok(Filter {
        instance_ids: list("instance_ids", &message.instance_ids)?,
        user_ids: list("user_ids", &message.user_ids)?,
        team_ids: list("team_ids", &message.team_ids)?,
        api_key_ids: list("api_key_ids", &message.api_key_ids)?,
        providers: list("providers", &message.providers)?,
        models: list("models", &message.models)?,
        statuses: statuses.collect::<Result<_>>()?,
        labels: message.labels.clone(),
    })
}

/// Up to three dimensions, each once; `required` refuses none.
pub(crate) fn dimensions(numbers: &[i32], required: bool) -> Result<Vec<Dimension>> {
    if required && numbers.is_empty() {
        return Err(Error::required("group_by"));
    }
    event::at_most("group_by", numbers.len(), MAX_DIMENSIONS)?;
    let mut dimensions = Vec::with_capacity(numbers.len());
    for (index, number) in numbers.iter().enumerate() {
        let field = format!("group_by[{index}]");
        let dimension = match proto::Dimension::try_from(*number) {
            Ok(proto::Dimension::User) => Dimension::User,
            Ok(proto::Dimension::Team) => Dimension::Team,
            Ok(proto::Dimension::Model) => Dimension::Model,
            Ok(proto::Dimension::Provider) => Dimension::Provider,
            Ok(proto::Dimension::ApiKey) => Dimension::ApiKey,
            Ok(proto::Dimension::Instance) => Dimension::Instance,
            Ok(proto::Dimension::Status) => Dimension::Status,
            Ok(proto::Dimension::Unspecified) | Err(_) => {
                let message = format!("{field} is {number}, allowed are the values of Dimension, 1 to 7");
                return Err(Error::invalid(field, message));
            }
        };
        if dimensions.contains(&dimension) {
            let message = format!("{field} is {} again, allowed is each dimension once", dimension.name());
            return Err(Error::invalid(field, message));
        }
        dimensions.push(dimension);
    }
    Ok(dimensions)
}

/// What to rank by; absent is the cost.
pub(crate) fn metric(number: i32) -> Result<Metric> {
    match proto::Metric::try_from(number) {
        Ok(proto::Metric::Requests) => Ok(Metric::Requests),
        Ok(proto::Metric::Tokens) => Ok(Metric::Tokens),
        Ok(proto::Metric::Cost | proto::Metric::Unspecified) => Ok(Metric::Cost),
        Err(_) => {
            Err(Error::invalid("order_by", format!("order_by is {number}, allowed are the values of Metric, 0 to 3")))
        }
    }
}

/// The width of a bucket; required.
pub(crate) fn bucket(number: i32) -> Result<time_range::Bucket> {
    match proto::Bucket::try_from(number) {
        Ok(proto::Bucket::Minute) => Ok(time_range::Bucket::Minute),
        Ok(proto::Bucket::Hour) => Ok(time_range::Bucket::Hour),
        Ok(proto::Bucket::Day) => Ok(time_range::Bucket::Day),
        Ok(proto::Bucket::Week) => Ok(time_range::Bucket::Week),
        Ok(proto::Bucket::Month) => Ok(time_range::Bucket::Month),
        Ok(proto::Bucket::Unspecified) => Err(Error::required("bucket")),
        Err(_) => {
            Err(Error::invalid("bucket", format!("bucket is {number}, allowed are the values of Bucket, 1 to 5")))
        }
    }
}

/// What an export's rows are; required.
pub(crate) fn shape(number: i32) -> Result<Shape> {
    match proto::ExportShape::try_from(number) {
        Ok(proto::ExportShape::Requests) => Ok(Shape::Requests),
        Ok(proto::ExportShape::Breakdown) => Ok(Shape::Breakdown),
        Ok(proto::ExportShape::TimeSeries) => Ok(Shape::TimeSeries),
        Ok(proto::ExportShape::Unspecified) => Err(Error::required("shape")),
        Err(_) => {
            Err(Error::invalid("shape", format!("shape is {number}, allowed are the values of ExportShape, 1 to 3")))
        }
    }
}

/// How an export is written; required.
pub(crate) fn format(number: i32) -> Result<Format> {
    match proto::ExportFormat::try_from(number) {
        Ok(proto::ExportFormat::Jsonl) => Ok(Format::Jsonl),
        Ok(proto::ExportFormat::Csv) => Ok(Format::Csv),
        Ok(proto::ExportFormat::Unspecified) => Err(Error::required("format")),
        Err(_) => {
            Err(Error::invalid("format", format!("format is {number}, allowed are the values of ExportFormat, 1 to 2")))
        }
    }
}

/// `limit`: 0 is the default.
pub(crate) fn limit(given: i32, default: usize, max: usize) -> Result<usize> {
    match usize::try_from(given) {
        Ok(0) => Ok(default),
        Ok(limit) if limit <= max => Ok(limit),
        _ => Err(Error::invalid("limit", format!("limit is {given}, allowed are 1 to {max}, or 0 for {default}"))),
    }
}

/// What a producer says it has dropped.
pub(crate) fn dropped(message: common::DroppedRange) -> Result<DroppedRange, Violation> {
    let required = |field, value: Option<u64>| match value {
        Some(value) => event::number(field, value),
        None => Err(Violation::required(field)),
    };
    let producer = message.producer.ok_or_else(|| Violation::required("producer"))?;
    event::producer_name(&producer.id, "producer.id")?;
    let first_sequence = required("first_sequence", message.first_sequence)?;
    let last_sequence = required("last_sequence", message.last_sequence)?;
    if last_sequence < first_sequence {
        return Err(Violation::invalid(
            "last_sequence",
            format!("last_sequence is {last_sequence}, allowed is first_sequence and above: {first_sequence}"),
        ));
    }
    Ok(DroppedRange {
        producer_id: producer.id,
        epoch: event::number("producer.epoch", producer.epoch)?,
        first_sequence,
        last_sequence,
    })
}
