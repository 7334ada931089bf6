//! Any request, as any client may send it, and what every answer must be.

use std::collections::BTreeMap;
use std::time::Duration;

use activity_proto::audit::v1 as audit;
use activity_proto::usage::v1 as usage;
use prost::Message as _;
use prost::bytes::Bytes;
use testkit::{Messages, Method, assert_harmless, assert_refusal};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::raw;

/// A page is ended before it passes 1 MiB, by one item of up to 64 KiB and what both are wrapped in; sums and series are
/// bounded by their points.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Answers of a stream that is not waited for to its end.
const SOME: usize = 50;
const PATIENCE: Duration = Duration::from_secs(30);

/// The RPCs of a server, and how each was answered.
#[derive(Debug)]
pub struct Requests {
    channel: Channel,
    messages: Messages,
    methods: Vec<Method>,
    /// By path: answered, refused.
    answers: BTreeMap<String, (u32, u32)>,
}

impl Requests {
    /// For the services of a package (`activity.audit.v1`) behind a channel.
    pub fn new(channel: Channel, package: &str, now_s: i64) -> Self {
        let messages = Messages::new(activity_proto::FILE_DESCRIPTOR_SET, now_s);
        let of_it = |method: &&Method| method.path.starts_with(&format!("/{package}."));
        let methods: Vec<Method> = messages.methods().iter().filter(of_it).cloned().collect();
        assert!(!methods.is_empty(), "no methods in {package}");
        Self { channel, messages, methods, answers: BTreeMap::new() }
    }

    /// How often each RPC was answered, and refused.
    pub fn answers(&self) -> &BTreeMap<String, (u32, u32)> {
        &self.answers
    }

    /// The call that these bytes stand for: which RPC, and a message made of the rest, the same with one byte changed,
    /// or just the rest.
    ///
    /// # Panics
    /// When the answer is none that the contract has.
    pub async fn ask(&mut self, choices: &[u8]) {
        let [which, how, rest @ ..] = choices else { return };
        let method = self.methods[usize::from(*which) % self.methods.len()].clone();
        let mut message = match how {
            0..=229 => self.messages.message(&method.request, rest),
            _ => rest.to_vec(),
        };
        if (200..=229).contains(how) && !message.is_empty() {
            let at = usize::from(rest.first().copied().unwrap_or(0)) * message.len() / 256;
            message[at] ^= how;
        }
        let answered = timeout(PATIENCE, self.call(&method, Bytes::from(message))).await.expect("answered in time");
        let counts = self.answers.entry(method.path.clone()).or_default();
        match answered {
            Ok(()) => counts.0 += 1,
            Err(status) => {
                counts.1 += 1;
                assert_status(&method.path, &status);
            }
        }
    }

    async fn call(&self, method: &Method, message: Bytes) -> Result<(), Status> {
        let mut answers = raw::answers(self.channel.clone(), &method.path, Request::new(message), None).await?;
        // What ends is read to the end.
        let most = if method.path.ends_with("/TailEntries") { 1 } else { SOME };
        for _ in 0..most {
            let Some(answer) = answers.message().await? else { return Ok(()) };
            assert!(answer.len() <= MAX_ANSWER_BYTES, "{}: {} bytes", method.path, answer.len());
            for (field, message) in rejections(&method.path, &answer) {
                match field.is_empty() {
                    // Of an event as a whole: its size.
                    true => assert_harmless(&message),
                    false => assert_refusal(&field, &message),
                }
            }
        }
        Ok(())
    }
}

/// Field and message of each event that an answer rejects.
fn rejections(path: &str, answer: &[u8]) -> Vec<(String, String)> {
    let audit =
        |rejected: Vec<audit::RejectedEvent>| rejected.into_iter().map(|one| (one.field, one.message)).collect();
    let usage =
        |rejected: Vec<usage::RejectedEvent>| rejected.into_iter().map(|one| (one.field, one.message)).collect();
    match path.rsplit('/').next() {
        Some("RecordEvents") => audit(audit::RecordEventsResponse::decode(answer).unwrap().rejected),
        Some("StreamEvents") => audit(audit::StreamEventsResponse::decode(answer).unwrap().rejected),
        Some("RecordUsage") => usage(usage::RecordUsageResponse::decode(answer).unwrap().rejected),
        Some("StreamUsage") => usage(usage::StreamUsageResponse::decode(answer).unwrap().rejected),
        _ => Vec::new(),
    }
}

/// A refusal is one of those that a caller's own request can bring about, and says what to do.
fn assert_status(path: &str, status: &Status) {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| (info.domain.as_str(), info.reason.as_str()));
    let Some(("activity", reason)) = reason else { panic!("{path}: without a reason: {status:?}") };
    let message = status.message();
    assert_harmless(message);
    let fields = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
    match status.code() {
        // Not decoded, so no field is known.
        Code::InvalidArgument if reason == "MALFORMED_MESSAGE" => assert!(message.len() < 200, "{path}: {message}"),
        Code::InvalidArgument => {
            let [violation] = fields else { panic!("{path}: no field: {status:?}") };
            assert_refusal(&violation.field, &violation.description);
        }
        Code::NotFound | Code::OutOfRange | Code::ResourceExhausted => {}
        _ => panic!("{path}: {status:?}"),
    }
}
