//! Receipts that prove themselves: what the service answers, against a key that does not come from it.

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use audit_proof::receipt::{self, Proof, ProvenEntry};
use audit_proof::{PinnedKey, receipt::NotProven as Unproven};
use prost::Message as _;
use prost_types::Timestamp;
use serde_json::{Map, Value, json};
use tonic::transport::Channel;

use super::Audit;
use super::event::AuditEvent;
use crate::error::{Error, Rejection};
use crate::query::MAX_ANSWER_BYTES;

/// Members of an entry that the service adds, and the numbers of who sent it: of the event they are no part.
const ADDED: [&str; 4] = ["producer", "recordedAt", "recordedBy", "sequence"];

impl Audit {
    /// The receipt of an event with the proof that it is in the log, under a signed checkpoint:
    /// evidence that stays good without the service. See [`ProvenReceipt::verify`].
    ///
    /// The event is sent once more, as the duplicate that it is; one that was not recorded yet is
    /// recorded by it. It waits for the checkpoint, up to a second or so, on a call of its own, so
    /// that no acknowledgement waits with it.
    ///
    /// # Errors
    ///
    /// [`Error::NoProof`] where none was made in time, or the service signs none: the event is
    /// recorded; [`Error::Rejected`]; as all queries.
    pub async fn prove(&self, event: &AuditEvent) -> Result<ProvenReceipt, Error> {
        let message = event.as_proto();
        let sent = self.feed.encoded(message, &message.instance_id, |body| proto::AuditEvent::decode(body))?;
        let sent = sent.map_err(|error| Error::Protocol(error.to_string()))?;
        let question = proto::RecordEventsRequest { events: vec![sent.clone()], with_proofs: true };
        let ask = |channel, request| async { client(channel).record_events(request).await };
        let answer = self.reader.call(question, ask).await?;
        if let Some(rejected) = answer.rejected.into_iter().next() {
            let rejection = Rejection { reason: rejected.reason(), message: rejected.message, field: rejected.field };
            return Err(Error::Rejected(rejection));
        }
        let receipt = answer.receipts.into_iter().next();
        let receipt = receipt.ok_or_else(|| Error::Protocol(format!("no receipt for event {}", event.id())))?;
        if receipt.proof.is_none() {
            return Err(Error::NoProof { id: event.id().to_string() });
        }
        Ok(ProvenReceipt::new(AuditEvent::from_proto(sent), receipt))
    }
}

/// An event and the receipt that proves it. Keep both, and the service need not be believed; the
/// receipt as a message of the contract, in protobuf or as JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct ProvenReceipt {
    event: AuditEvent,
    receipt: proto::Receipt,
}

impl ProvenReceipt {
    /// An event that was sent, and what came of it. One without an instance is not proven: it is
    /// sent with that of the SDK.
    #[must_use]
    pub fn new(event: AuditEvent, receipt: proto::Receipt) -> Self {
        Self { event, receipt }
    }

    /// The event, with its instance.
    #[must_use]
    pub fn event(&self) -> &AuditEvent {
        &self.event
    }

    /// The receipt, to be kept.
    #[must_use]
    pub fn receipt(&self) -> &proto::Receipt {
        &self.receipt
    }

    /// Checks, without asking anybody, that the entry says what was sent, and that it is in the
    /// log which its checkpoint signs, at the receipt's place. `keys` were told another way than
    /// by the service: `NAME+ID+BASE64`, with `@FIRST-LAST` behind it where one was replaced; a
    /// witness's makes the time count.
    ///
    /// An entry that retention has removed is not in its receipt. Take its line from the
    /// archive, put it into `proof.entry_json`, and check it then.
    ///
    /// # Errors
    ///
    /// What does not fit.
    pub fn verify(&self, keys: &[PinnedKey]) -> Result<ProvenEntry, NotProven> {
        let proof = self.receipt.proof.as_ref().ok_or(NotProven::NoProof)?;
        if proof.entry_json.is_empty() {
            return Err(NotProven::Archived);
        }
        let proof = Proof { entry_json: &proof.entry_json, checkpoint: &proof.checkpoint, hashes: &proof.hashes };
        let proven = receipt::verify(keys, proof)?;
        same_event(self.event.as_proto(), &proven)?;
        if self.receipt.sequence != Some(proven.sequence) {
            return Err(NotProven::Differs { member: "sequence".to_owned() });
        }
        if self.receipt.leaf_hash != proven.leaf_hash {
            return Err(NotProven::Differs { member: "leaf hash".to_owned() });
        }
        Ok(proven)
    }
}

/// Why a receipt proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotProven {
    /// It carries no proof.
    #[error("the receipt carries no proof")]
    NoProof,
    /// The entry is not in it.
    #[error("retention has removed the entry: its line is in the archive")]
    Archived,
    /// The entry, the proof or the checkpoint do not fit, or no pinned key has signed it.
    #[error(transparent)]
    Unproven(#[from] Unproven),
    /// The log holds something else than was sent, or at another place than the receipt says.
    #[error("the entry in the log has another {member} than what was sent and received")]
    Differs {
        /// What of it, by its name in canonical JSON.
        member: String,
    },
}

/// Whether an entry says what was sent, all of it and nothing else.
fn same_event(sent: &proto::AuditEvent, entry: &ProvenEntry) -> Result<(), NotProven> {
    let differs = |member: &str| Err(NotProven::Differs { member: member.to_owned() });
    let at = entry.members.get("occurredAt").and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok());
    if micros(at.as_ref()) != micros(sent.occurred_at.as_ref()) {
        return differs("occurredAt");
    }
    let expected = members(sent);
    let added = |name: &str| ADDED.contains(&name) || name == "occurredAt";
    let there = entry.members.keys().filter(|name| !added(name));
    match expected.keys().chain(there).find(|name| expected.get(*name) != entry.members.get(*name)) {
        Some(member) => differs(member),
        None => Ok(()),
    }
}

/// The log keeps microseconds.
fn micros(at: Option<&Timestamp>) -> Option<(i64, i32)> {
    at.map(|at| (at.seconds, at.nanos / 1_000))
}

/// What canonical JSON has of an event, but for its time: what is absent or a default is left out.
fn members(event: &proto::AuditEvent) -> Map<String, Value> {
    let actor = event.actor.clone().unwrap_or_default();
    let kind = if actor.kind == 0 { "" } else { actor.kind().as_str_name() };
    let operation = event.operation.clone().unwrap_or_default();
    let stage = match operation.stage() {
        proto::Stage::Unspecified | proto::Stage::Single => "",
        stage => stage.as_str_name(),
    };
    let resources = event
        .resources
        .iter()
        .map(|resource| object([("id", resource.id.as_str()), ("name", &resource.name), ("type", &resource.r#type)]));
    let mut members = texts([
        ("action", event.action.as_str()),
        ("detailsJson", &event.details_json),
        ("id", &event.id),
        ("instanceId", &event.instance_id),
        ("outcome", event.outcome().as_str_name()),
        ("reason", &event.reason),
        ("requestId", &event.request_id),
    ]);
    let nested = [
        (
            "actor",
            object([
                ("displayName", actor.display_name.as_str()),
                ("id", &actor.id),
                ("ipAddress", &actor.ip_address),
                ("kind", kind),
                ("onBehalfOf", &actor.on_behalf_of),
                ("userAgent", &actor.user_agent),
            ]),
        ),
        ("operation", object([("id", operation.id.as_str()), ("stage", stage)])),
        ("changes", event.changes.iter().map(change).collect()),
        ("resources", resources.collect()),
    ];
    let empty = |value: &Value| *value == json!({}) || *value == json!([]);
    members.extend(nested.into_iter().filter(|(_, value)| !empty(value)).map(|(name, value)| (name.to_owned(), value)));
    members.insert("schema".to_owned(), json!(1));
    members
}

/// A value that is there is told, even an empty text.
fn change(change: &proto::Change) -> Value {
    let mut members = texts([("path", change.path.as_str())]);
    for (name, value) in [("newValue", &change.new_value), ("oldValue", &change.old_value)] {
        members.extend(value.as_ref().map(|value| (name.to_owned(), json!(value))));
    }
    Value::Object(members)
}

fn object<const N: usize>(members: [(&str, &str); N]) -> Value {
    Value::Object(texts(members))
}

fn texts<const N: usize>(members: [(&str, &str); N]) -> Map<String, Value> {
    let there = members.into_iter().filter(|(_, text)| !text.is_empty());
    there.map(|(name, text)| (name.to_owned(), json!(text))).collect()
}

fn client(channel: Channel) -> AuditIngestServiceClient<Channel> {
    AuditIngestServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}
