//! The administrative actions of the sample: every action that `prod` and
//! `staging` know, the story of the spike, and the routine in between.

mod admins;
mod story;

use activity_proto::audit::v1::{Actor, AuditEvent, Change, Operation, Outcome, Resource, Stage};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use self::admins::Admin;
use super::{PRODUCTION, Plan};
use crate::time::{DAY_US, HOUR_US, MINUTE_US, SECOND_US, day_of_week, timestamp, uuid_v7};

/// All actions in the order of time. The same plan makes the same ones.
pub fn actions(plan: &Plan) -> Vec<AuditEvent> {
    let mut script = Script { plan, rng: plan.rng(4), events: Vec::new() };
    story::platform(&mut script);
    story::spike(&mut script);
    story::routine(&mut script);
    let mut events = script.events;
    events.sort_by(|a, b| (order(a), &a.id).cmp(&(order(b), &b.id)));
    events
}

fn order(event: &AuditEvent) -> (i64, i32) {
    event.occurred_at.as_ref().map_or((0, 0), |time| (time.seconds, time.nanos))
}

/// What writes the actions down.
struct Script<'a> {
    plan: &'a Plan,
    rng: ChaCha8Rng,
    events: Vec<AuditEvent>,
}

impl Script<'_> {
    /// A time in the sample: 0 is its start and 1 its end. In samples that are
    /// long enough it is moved into the working hours of a working day.
    fn at(&mut self, fraction: f64) -> i64 {
        let start_us = self.plan.start_us();
        let span = self.plan.until_us - start_us;
        let us = start_us + (span as f64 * fraction) as i64 / SECOND_US * SECOND_US;
        if self.plan.days < 10 {
            return us;
        }
        let mut day = us.div_euclid(DAY_US);
        while day_of_week(day * DAY_US) > 4 {
            day -= 1;
        }
        let moved = day * DAY_US
            + 8 * HOUR_US
            + self.rng.random_range(0..9 * 60) * MINUTE_US
            + self.rng.random_range(0..60) * SECOND_US;
        if (start_us..self.plan.until_us).contains(&moved) { moved } else { us }
    }

    /// One action in production that succeeded; what is different the caller
    /// changes in what comes back.
    fn act(
        &mut self,
        us: i64,
        admin: &Admin,
        action: &str,
        resources: &[(&str, &str, &str)],
        changes: &[(&str, Value, Value)],
    ) -> &mut AuditEvent {
        // Nothing of the sample happens at a whole second.
        let us = us + self.rng.random_range(1_000..999_000);
        let mut bits = [0; 10];
        self.rng.fill(&mut bits);
        let event = AuditEvent {
            id: uuid_v7(us, bits).to_string(),
            occurred_at: Some(timestamp(us)),
            instance_id: PRODUCTION.into(),
            actor: Some(Actor {
                id: admin.id.into(),
                kind: admin.kind.into(),
                display_name: admin.name.into(),
                ip_address: admin.ip.into(),
                user_agent: admin.agent.into(),
                on_behalf_of: String::new(),
            }),
            action: action.into(),
            resources: resources
                .iter()
                .map(|(kind, id, name)| Resource { r#type: (*kind).into(), id: (*id).into(), name: (*name).into() })
                .collect(),
            outcome: Outcome::Success.into(),
            reason: String::new(),
            changes: changes
                .iter()
                .map(|(path, old, new)| Change { path: (*path).into(), old_value: text(old), new_value: text(new) })
                .collect(),
            details_json: String::new(),
            request_id: format!("req_{:016x}", self.rng.random::<u64>()),
            operation: None,
            producer: None,
        };
        self.events.push(event);
        let last = self.events.len() - 1;
        &mut self.events[last]
    }

    /// The same action in two entries: the intent, and two seconds later the
    /// outcome.
    fn act_in_two(
        &mut self,
        us: i64,
        admin: &Admin,
        action: &str,
        resources: &[(&str, &str, &str)],
        changes: &[(&str, Value, Value)],
        reason: &str,
    ) {
        let operation = format!("op_{:012x}", self.rng.random::<u64>() >> 16);
        for (delay, stage, outcome) in
            [(0, Stage::Intent, Outcome::Unknown), (2 * SECOND_US, Stage::Outcome, Outcome::Success)]
        {
            let event = self.act(us + delay, admin, action, resources, changes);
            event.outcome = outcome.into();
            event.reason = reason.into();
            event.operation = Some(Operation { id: operation.clone(), stage: stage.into() });
        }
    }
}

/// A value as a JSON text; JSON's null stands for "there was none".
fn text(value: &Value) -> Option<String> {
    (!value.is_null()).then(|| value.to_string())
}
