//! Usage events as an application makes them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use activity_proto::usage::v1 as proto;
use uuid::Uuid;

use crate::RequestStatus;
use crate::id;

/// One model request, ready to be recorded.
///
/// Its id is fixed when it is built: recording the same event again, also after a
/// restart of anything, stores it once.
///
/// ```
/// use gateway_sdk::{RequestStatus, Tokens, UsageEvent};
/// use std::time::Duration;
///
/// let event = UsageEvent::builder("openai", "gpt-4o")
///     .user("alice")
///     .api_key("key-7")
///     .status(RequestStatus::Ok)
///     .tokens(Tokens { input_uncached: 1_200, output: 85, ..Tokens::default() })
///     .latency(Duration::from_millis(840))
///     .label("feature", "search")
///     .build();
/// assert_eq!(event.id().get_version_num(), 7);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct UsageEvent {
    id: Uuid,
    message: proto::UsageEvent,
}

/// Tokens by kind; what is not given is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Input that was neither read from nor written to a cache.
    pub input_uncached: u64,
    /// Input read from a cache.
    pub input_cache_read: u64,
    /// Input written to a cache.
    pub input_cache_write: u64,
    /// The part of `input_cache_write` that is kept for an hour.
    pub input_cache_write_1h: u64,
    /// Output, reasoning included.
    pub output: u64,
    /// The part of `output` that was reasoning.
    pub output_reasoning: u64,
}

impl From<Tokens> for proto::Tokens {
    fn from(tokens: Tokens) -> Self {
        // What does not fit is out of the contract's bounds either way, and is
        // refused by the service with the field's name.
        let count = |n: u64| (n > 0).then(|| i64::try_from(n).unwrap_or(i64::MAX));
        Self {
            input_uncached: count(tokens.input_uncached),
            input_cache_read: count(tokens.input_cache_read),
            input_cache_write: count(tokens.input_cache_write),
            input_cache_write_1h: count(tokens.input_cache_write_1h),
            output: count(tokens.output),
            output_reasoning: count(tokens.output_reasoning),
        }
    }
}

impl UsageEvent {
    /// Starts an event. `provider` is who serves the request, by the price book's name
    /// where there is one; `requested_model` what was asked for.
    pub fn builder(provider: impl Into<String>, requested_model: impl Into<String>) -> UsageEventBuilder {
        UsageEventBuilder {
            id: None,
            occurred_at: None,
            message: proto::UsageEvent {
                provider: provider.into(),
                requested_model: requested_model.into(),
                status: RequestStatus::Ok.into(),
                ..Default::default()
            },
        }
    }

    /// The event's id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The event as the contract has it. `instance_id` is empty where the SDK's own is
    /// to be used.
    #[must_use]
    pub fn as_proto(&self) -> &proto::UsageEvent {
        &self.message
    }

    /// As [`as_proto`](Self::as_proto), owned.
    #[must_use]
    pub fn into_proto(self) -> proto::UsageEvent {
        self.message
    }

    /// From a message of the contract: a replay, an event from another process. An id
    /// or a time that is missing is made; an id that is no UUID is replaced.
    #[must_use]
    pub fn from_proto(mut message: proto::UsageEvent) -> Self {
        message.producer = None;
        let occurred_at = message.occurred_at.take();
        UsageEventBuilder {
            id: Uuid::parse_str(&message.id).ok(),
            occurred_at: occurred_at.and_then(|at| SystemTime::try_from(at).ok()),
            message,
        }
        .build()
    }
}

/// Makes a [`UsageEvent`]; see [`UsageEvent::builder`].
#[derive(Clone, Debug)]
#[must_use = "call `build`, or pass it to `record`"]
pub struct UsageEventBuilder {
    id: Option<Uuid>,
    occurred_at: Option<SystemTime>,
    message: proto::UsageEvent,
}

impl UsageEventBuilder {
    /// An id made before, to record the same event again. Default: a new one.
    pub fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// When the request ended. Default: now. Takes a `chrono::DateTime` as well.
    pub fn occurred_at(mut self, at: impl Into<SystemTime>) -> Self {
        self.occurred_at = Some(at.into());
        self
    }

    /// The platform instance. Default: that of the SDK.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.message.instance_id = id.into();
        self
    }

    /// Who asked.
    pub fn user(mut self, id: impl Into<String>) -> Self {
        self.message.user_id = id.into();
        self
    }

    /// The user's team.
    pub fn team(mut self, id: impl Into<String>) -> Self {
        self.message.team_id = id.into();
        self
    }

    /// The API key used: its id, never the key.
    pub fn api_key(mut self, id: impl Into<String>) -> Self {
        self.message.api_key_id = id.into();
        self
    }

    /// The model that served. Default: the requested one.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.message.model = model.into();
        self
    }

    /// How it ended. Default: [`RequestStatus::Ok`].
    pub fn status(mut self, status: RequestStatus) -> Self {
        self.message.status = status.into();
        self
    }

    /// What kind of call: `chat`, `embeddings`.
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.message.operation = operation.into();
        self
    }

    /// Tokens by kind. Default: none.
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.message.tokens = Some(tokens.into());
        self
    }

    /// What else the price book charges for, by its own unit name (`web_searches`).
    pub fn unit(mut self, name: impl Into<String>, count: u64) -> Self {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.message.other_units.insert(name.into(), count);
        self
    }

    /// From the request's arrival to its end.
    pub fn latency(mut self, latency: Duration) -> Self {
        self.message.latency = duration(latency);
        self
    }

    /// From the request's arrival to the first token of the answer.
    pub fn time_to_first_token(mut self, time: Duration) -> Self {
        self.message.time_to_first_token = duration(time);
        self
    }

    /// The provider's service tier, where its price depends on it: `flex`, `priority`.
    pub fn service_tier(mut self, tier: impl Into<String>) -> Self {
        self.message.service_tier = tier.into();
        self
    }

    /// The request was run by a batch interface.
    pub fn batch(mut self) -> Self {
        self.message.processing = "batch".into();
        self
    }

    /// The request's id, to join with traces and logs.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.message.request_id = id.into();
        self
    }

    /// A free label to filter by; up to 16.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.message.labels.insert(key.into(), value.into());
        self
    }

    /// All labels at once.
    pub fn labels(mut self, labels: BTreeMap<String, String>) -> Self {
        self.message.labels = labels;
        self
    }

    /// A further condition on which the price book prices variants; up to 8.
    pub fn price_condition(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.message.price_conditions.insert(name.into(), value.into());
        self
    }

    /// The event, with its id and time fixed.
    #[must_use]
    pub fn build(self) -> UsageEvent {
        let (id, at) = id::fix(self.id, self.occurred_at);
        let mut message = self.message;
        message.id = id.to_string();
        message.occurred_at = Some(at.into());
        UsageEvent { id, message }
    }
}

impl From<UsageEventBuilder> for UsageEvent {
    fn from(builder: UsageEventBuilder) -> Self {
        builder.build()
    }
}

/// As the contract has it; over its bounds for what does not fit, so that it is refused.
fn duration(duration: Duration) -> Option<prost_types::Duration> {
    Some(prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_keeps_id_and_time_over_the_contract() {
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_000);
        let event = UsageEvent::builder("anthropic", "claude-sonnet-4")
            .occurred_at(at)
            .tokens(Tokens { output: 3, ..Tokens::default() })
            .unit("web_searches", 2)
            .batch()
            .build();
        assert_eq!(event.as_proto().status, RequestStatus::Ok as i32);
        assert_eq!(event.as_proto().tokens.unwrap().output, Some(3));
        assert_eq!(event.id().get_timestamp().unwrap().to_unix().0, 1_700_000_000);
        let again = UsageEvent::from_proto(event.clone().into_proto());
        assert_eq!(again, event);
    }

    #[test]
    fn numbers_beyond_the_contract_do_not_panic() {
        let event = UsageEvent::builder("p", "m")
            .tokens(Tokens { output: u64::MAX, ..Tokens::default() })
            .latency(Duration::MAX)
            .occurred_at(SystemTime::UNIX_EPOCH - Duration::from_secs(1))
            .build();
        assert_eq!(event.as_proto().tokens.unwrap().output, Some(i64::MAX));
    }
}
