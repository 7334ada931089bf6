//! Entries for those who read.

use activity_proto::audit::v1 as proto;
use activity_proto::common::v1 as common;
use service_core::clock;

use crate::event::{Entry, Producer};

/// An entry as it is answered.
pub(crate) fn entry(entry: Entry, leaf_hash: Vec<u8>) -> proto::AuditEntry {
    let event = entry.event;
    proto::AuditEntry {
        id: event.id.to_string(),
        occurred_at: Some(clock::to_timestamp(event.occurred_at_us)),
        instance_id: event.instance_id,
        actor: Some(proto::Actor {
            id: event.actor.id,
            kind: event.actor.kind.map_or(0, |kind| kind.number()),
            display_name: event.actor.display_name,
            ip_address: event.actor.ip_address,
            user_agent: event.actor.user_agent,
            on_behalf_of: event.actor.on_behalf_of,
        }),
        action: event.action,
        resources: event
            .resources
            .into_iter()
            .map(|resource| proto::Resource { r#type: resource.kind, id: resource.id, name: resource.name })
            .collect(),
        outcome: event.outcome.number(),
        reason: event.reason,
        changes: event
            .changes
            .into_iter()
            .map(|change| proto::Change { path: change.path, old_value: change.old_value, new_value: change.new_value })
            .collect(),
        details_json: event.details_json,
        request_id: event.request_id,
        operation: event
            .operation
            .map(|operation| proto::Operation { id: operation.id, stage: operation.stage.number() }),
        producer: event.producer.map(producer),
        sequence: Some(entry.sequence),
        recorded_at: Some(clock::to_timestamp(entry.recorded_at_us)),
        recorded_by: entry.recorded_by,
        leaf_hash,
    }
}

/// An intent whose outcome has not come.
pub(crate) fn open_intent(entry: Entry) -> proto::OpenIntent {
    let event = entry.event;
    proto::OpenIntent {
        instance_id: event.instance_id,
        sequence: Some(entry.sequence),
        id: event.id.to_string(),
        operation_id: event.operation.map(|operation| operation.id).unwrap_or_default(),
        occurred_at: Some(clock::to_timestamp(event.occurred_at_us)),
        recorded_at: Some(clock::to_timestamp(entry.recorded_at_us)),
        action: event.action,
        actor_id: event.actor.id,
        producer: event.producer.map(producer),
    }
}

fn producer(producer: Producer) -> common::Producer {
    common::Producer { id: producer.id, epoch: producer.epoch, sequence: Some(producer.sequence) }
}

/// The interval that a range was resolved to.
pub(crate) fn interval(start_us: i64, end_us: i64) -> common::Interval {
    common::Interval { start: Some(clock::to_timestamp(start_us)), end: Some(clock::to_timestamp(end_us)) }
}

/// The server's clock for a heartbeat.
pub(crate) fn micros(us: i64) -> prost_types::Timestamp {
    clock::to_timestamp(us)
}
