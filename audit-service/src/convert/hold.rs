//! Legal holds: as they are asked for, and as they are told.

use activity_proto::audit::v1 as proto;
use activity_proto::common::v1 as common;
use service_core::clock;
use service_core::error::{Error, Reason, Result};
use uuid::Uuid;

use super::{MAX_TEXT_BYTES, filter, micros, required};
use crate::filter::{ActionPattern, Filter, OneOf, Stages};
use crate::store::{Hold, NewHold, Range};
use crate::time::rfc3339;

/// Every time, and every sequence that a log can have.
const EVER: Range = Range { start_us: i64::MIN, end_us: i64::MAX };
const NO_END: u64 = i64::MAX.cast_unsigned();

/// Checks why something is done.
pub(crate) fn reason(value: &str) -> Result<()> {
    Ok(required(|| "reason".to_owned(), value, MAX_TEXT_BYTES)?)
}

/// Checks the id of a hold.
pub(crate) fn hold_id(value: &str) -> Result<Uuid> {
    let message = "hold_id is not a UUID, allowed is the id of a legal hold";
    let id = Uuid::try_parse(value).ok().filter(|id| !id.is_nil());
    id.ok_or_else(|| Error::invalid_because(Reason::InvalidId, "hold_id", message))
}

/// Checks a hold that is to be placed. Whose log, and whether that may be seen, is checked already.
pub(crate) fn new_hold(wire: proto::PlaceLegalHoldRequest, placed_by: &str) -> Result<NewHold> {
    reason(&wire.reason)?;
    let filter = filter(wire.filter, Stages::All)?;
    if filter.instance_ids.values().iter().any(|other| *other != wire.instance_id) {
        let message = "filter.instance_ids names another instance than instance_id, allowed is just that or none";
        return Err(Error::invalid("filter.instance_ids", message));
    }
    let occurred_us = match wire.interval {
        None => EVER,
        Some(interval) => {
            let start = interval.start.ok_or_else(|| Error::required("interval.start"))?;
            let start_us = clock::from_timestamp("interval.start", &start)?;
            let end = interval.end.map(|end| clock::from_timestamp("interval.end", &end)).transpose()?;
            Range { start_us, end_us: end.unwrap_or(EVER.end_us) }
        }
    };
    if occurred_us.end_us <= occurred_us.start_us {
        let (start, end) = (rfc3339(occurred_us.start_us), rfc3339(occurred_us.end_us));
        return Err(Error::invalid("interval.end", format!("interval.end is {end}, allowed is what is after {start}")));
    }
    let (from, to) = (wire.from_sequence.unwrap_or(0), wire.to_sequence.unwrap_or(NO_END).min(NO_END));
    if to <= from {
        return Err(Error::invalid("to_sequence", format!("to_sequence is {to}, allowed is what is above {from}")));
    }
    let hold_id = if wire.hold_id.is_empty() { Uuid::now_v7() } else { hold_id(&wire.hold_id)? };
    Ok(NewHold {
        hold_id,
        instance_id: wire.instance_id,
        sequences: from..to,
        occurred_us,
        filter,
        reason: wire.reason,
        placed_by: placed_by.to_owned(),
    })
}

/// A hold as it is answered.
pub(crate) fn hold(Hold { placed, placed_at_us, placed_sequence, released }: Hold) -> proto::LegalHold {
    let (released_at, released_sequence, release) = match released {
        None => (None, None, None),
        Some((at_us, sequence, release)) => (Some(micros(at_us)), Some(sequence), Some(release)),
    };
    proto::LegalHold {
        hold_id: placed.hold_id.to_string(),
        filter: Some(message(&placed.filter)),
        interval: interval(placed.occurred_us),
        from_sequence: Some(placed.sequences.start),
        to_sequence: Some(placed.sequences.end).filter(|end| *end < NO_END),
        instance_id: placed.instance_id,
        reason: placed.reason,
        placed_at: Some(micros(placed_at_us)),
        placed_by: placed.placed_by,
        placed_sequence: Some(placed_sequence),
        released_at,
        released_sequence,
        released_by: release.as_ref().map(|release| release.released_by.clone()).unwrap_or_default(),
        release_reason: release.map(|release| release.reason).unwrap_or_default(),
    }
}

/// What is held, as the entry that tells of it has it.
pub(crate) fn hold_details(hold: &NewHold) -> serde_json::Value {
    let end = Some(hold.sequences.end).filter(|end| *end < NO_END);
    serde_json::json!({
        "filter": hold.filter,
        "from_sequence": hold.sequences.start.to_string(),
        "to_sequence": end.map(|end| end.to_string()),
        "from": (hold.occurred_us != EVER).then(|| rfc3339(hold.occurred_us.start_us)),
        "to": (hold.occurred_us.end_us != EVER.end_us).then(|| rfc3339(hold.occurred_us.end_us)),
    })
}

fn interval(range: Range) -> Option<common::Interval> {
    (range != EVER).then(|| common::Interval {
        start: Some(micros(range.start_us)),
        end: (range.end_us != EVER.end_us).then(|| micros(range.end_us)),
    })
}

/// A filter as it is asked for.
fn message(filter: &Filter) -> proto::AuditFilter {
    let names = |list: &OneOf<String>| list.values().to_vec();
    let action = |pattern: &ActionPattern| match pattern {
        ActionPattern::Exact(action) => action.clone(),
        ActionPattern::Of(resource) => format!("{resource}.*"),
    };
    proto::AuditFilter {
        actors: names(&filter.actors),
        actions: filter.actions.values().iter().map(action).collect(),
        resources: names(&filter.resources),
        resource_types: names(&filter.resource_types),
        instance_ids: names(&filter.instance_ids),
        outcomes: filter.outcomes.values().iter().map(|outcome| outcome.number()).collect(),
        changed_paths: names(&filter.changed_paths),
        stages: match &filter.stages {
            Stages::Settled | Stages::All => Vec::new(),
            Stages::Of(stages) => stages.values().iter().map(|stage| stage.number()).collect(),
        },
        text: filter.words.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> proto::PlaceLegalHoldRequest {
        proto::PlaceLegalHoldRequest {
            instance_id: "prod".into(),
            reason: "case 17".into(),
            ..proto::PlaceLegalHoldRequest::default()
        }
    }

    #[test]
    fn a_hold_is_told_as_it_was_asked_for() {
        let filter = proto::AuditFilter {
            actors: vec!["ada".into(), "bob".into()],
            actions: vec!["model.enabled".into(), "mcp_server.*".into()],
            outcomes: vec![1, 3],
            stages: vec![2],
            text: "4o gpt".into(),
            ..proto::AuditFilter::default()
        };
        let interval = common::Interval { start: Some(micros(5_000_000)), end: None };
        let wire = proto::PlaceLegalHoldRequest {
            filter: Some(filter.clone()),
            interval: Some(interval),
            from_sequence: Some(3),
            ..request()
        };
        let placed = new_hold(wire, "auditor-1").unwrap();
        let stored: Filter = serde_json::from_str(&serde_json::to_string(&placed.filter).unwrap()).unwrap();
        assert_eq!(stored, placed.filter);
        let told = hold(Hold { placed, placed_at_us: 7, placed_sequence: 9, released: None });
        // Lists come back in their own order, each value once.
        let sorted = proto::AuditFilter { actions: vec!["model.enabled".into(), "mcp_server.*".into()], ..filter };
        assert_eq!(told.filter, Some(sorted));
        assert_eq!((told.from_sequence, told.to_sequence), (Some(3), None));
        assert_eq!((told.interval, told.placed_by.as_str()), (Some(interval), "auditor-1"));
        let everything = hold(Hold {
            placed: new_hold(request(), "").unwrap(),
            placed_at_us: 7,
            placed_sequence: 9,
            released: None,
        });
        assert_eq!((everything.interval, everything.to_sequence), (None, None));
    }

    #[test]
    fn what_would_hold_nothing_is_refused() {
        let refused = |wire: proto::PlaceLegalHoldRequest| new_hold(wire, "").unwrap_err().to_string();
        for (wire, word) in [
            (proto::PlaceLegalHoldRequest { reason: String::new(), ..request() }, "reason is required"),
            (proto::PlaceLegalHoldRequest { to_sequence: Some(0), ..request() }, "to_sequence is 0"),
            (
                proto::PlaceLegalHoldRequest { from_sequence: Some(4), to_sequence: Some(4), ..request() },
                "what is above 4",
            ),
            (
                proto::PlaceLegalHoldRequest { interval: Some(common::Interval::default()), ..request() },
                "interval.start is required",
            ),
            (
                proto::PlaceLegalHoldRequest {
                    interval: Some(common::Interval { start: Some(micros(5)), end: Some(micros(5)) }),
                    ..request()
                },
                "interval.end is",
            ),
            (
                proto::PlaceLegalHoldRequest {
                    filter: Some(proto::AuditFilter { instance_ids: vec!["other".into()], ..Default::default() }),
                    ..request()
                },
                "another instance",
            ),
        ] {
            assert!(refused(wire.clone()).contains(word), "{word}: {}", refused(wire));
        }
    }
}
