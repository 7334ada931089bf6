//! Refused calls as entries of the log that the configuration names: who was refused what, and from where.

use std::time::Duration;

use service_core::auth::{CredentialKind, Denial, DenialQueue, Record};
use service_core::clock;
use service_core::error::Result;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::event::{Actor, ActorKind, Event, Outcome, Resource};
use crate::ingest::{Checked, Ingest};
use crate::store::EventResult;

const ACTION: &str = "access.denied";
/// Who records them, and who was refused when nobody has said its name.
const RECORDED_BY: &str = "audit-service";
const NOBODY: &str = "anonymous";
/// Between two tries to record one.
const PAUSE: Duration = Duration::from_secs(1);

/// Records what is refused, until `stop` and then what is left.
pub(crate) async fn record(mut refused: DenialQueue, instance_id: String, ingest: Ingest, stop: CancellationToken) {
    let mut stopped = false;
    loop {
        let record = tokio::select! {
            () = stop.cancelled(), if !stopped => {
                stopped = true;
                refused.close();
                continue;
            }
            record = refused.next() => record,
        };
        let Some(record) = record else { return };
        let event = event(&instance_id, record);
        while let Err(error) = write(&ingest, event.clone()).await {
            if !error.is_retryable() || stop.is_cancelled() {
                tracing::error!(%error, "a refused call is not recorded");
                break;
            }
            // What comes meanwhile waits in a queue of bounded length, or is counted.
            let _ = stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
        }
    }
}

/// Writes an entry of the service's own.
pub(crate) async fn write(ingest: &Ingest, event: Event) -> Result<()> {
    let mut checked = Checked::default();
    checked.batch.recorded_by = RECORDED_BY.to_owned();
    checked.push(Ok(event));
    for result in ingest.submit(checked).await?.settled().await? {
        if let EventResult::Rejected(violation) = result {
            return Err(violation.into());
        }
    }
    Ok(())
}

fn event(instance_id: &str, record: Record) -> Event {
    let base = Event {
        id: Uuid::now_v7(),
        occurred_at_us: clock::now_us(),
        instance_id: instance_id.to_owned(),
        actor: Actor { id: RECORDED_BY.to_owned(), kind: Some(ActorKind::System), ..Actor::default() },
        action: ACTION.to_owned(),
        resources: Vec::new(),
        outcome: Outcome::Denied,
        reason: String::new(),
        changes: Vec::new(),
        details_json: String::new(),
        request_id: String::new(),
        operation: None,
        producer: None,
    };
    let resource = |kind: &str, id: String| Resource { kind: kind.to_owned(), id, name: String::new() };
    match record {
        Record::LeftOut(count) => Event {
            resources: vec![resource("service", RECORDED_BY.to_owned())],
            reason: format!("{count} more calls were refused and not recorded one by one"),
            details_json: serde_json::json!({ "left_out": count }).to_string(),
            ..base
        },
        Record::Denial(denial) => {
            let Denial { at_us, subject, kind, method, why, message, instance, user, peer, user_agent } = *denial;
            let mut resources = vec![resource("rpc", method.to_owned())];
            resources.extend(instance.map(|instance| resource("instance", instance)));
            resources.extend(user.map(|user| resource("user", user)));
            resources.retain(|resource| !resource.id.is_empty());
            Event {
                occurred_at_us: at_us,
                actor: Actor {
                    id: subject.unwrap_or_else(|| NOBODY.to_owned()),
                    // A token does not say whether a person or a program has it.
                    kind: kind.filter(|kind| *kind == CredentialKind::Certificate).map(|_| ActorKind::ServiceAccount),
                    ip_address: peer.map(|peer| peer.to_string()).unwrap_or_default(),
                    user_agent,
                    ..Actor::default()
                },
                resources,
                reason: message,
                details_json: serde_json::json!({ "why": why.name() }).to_string(),
                ..base
            }
        }
    }
}
