//! What the service keeps and what it is asked for, in its own words: no wire
//! types and no SQL. Times are microseconds since the epoch, UTC; absent text is
//! empty; money is in nano-dollars.

use std::collections::BTreeMap;
use std::sync::Arc;

use service_core::auth::Access;
use service_core::error::Error;
use uuid::Uuid;

/// How a request ended. The numbers are those of the contract, and are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
pub enum Status {
    /// It was answered.
    Ok = 1,
    /// The client's fault.
    ClientError = 2,
    /// The provider's fault.
    ProviderError = 3,
    /// Refused for the number of requests.
    RateLimited = 4,
    /// The client went away.
    Cancelled = 5,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ok, Self::ClientError, Self::ProviderError, Self::RateLimited, Self::Cancelled];

    /// The stored number.
    pub fn number(self) -> i16 {
        self as i16
    }

    /// The status of a stored number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|status| i64::from(status.number()) == number)
    }

    /// The full name of the contract, as it stands in keys and exports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "REQUEST_STATUS_OK",
            Self::ClientError => "REQUEST_STATUS_CLIENT_ERROR",
            Self::ProviderError => "REQUEST_STATUS_PROVIDER_ERROR",
            Self::RateLimited => "REQUEST_STATUS_RATE_LIMITED",
            Self::Cancelled => "REQUEST_STATUS_CANCELLED",
        }
    }
}

/// Tokens of one request, by kind; each from 0 to 1,000,000,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Input neither read from nor written to a cache.
    pub input_uncached: i64,
    /// Input read from a cache.
    pub input_cache_read: i64,
    /// Input written to a cache.
    pub input_cache_write: i64,
    /// The part of `input_cache_write` kept for an hour.
    pub input_cache_write_1h: i64,
    /// Output, reasoning included.
    pub output: i64,
    /// The part of `output` that was reasoning.
    pub output_reasoning: i64,
}

impl Tokens {
    /// All input and output; the parts within them count once.
    pub fn total(&self) -> i64 {
        self.input_uncached + self.input_cache_read + self.input_cache_write + self.output
    }
}

/// A number that an SDK instance gave to an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    /// The SDK instance.
    pub id: String,
    /// Rises when it starts numbering anew.
    pub epoch: i64,
    /// The event's number in the epoch.
    pub sequence: i64,
}

/// Numbers that a producer gave to events it then dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedRange {
    /// The SDK instance.
    pub producer_id: String,
    /// Its epoch.
    pub epoch: i64,
    /// The first dropped number.
    pub first_sequence: i64,
    /// The last dropped number.
    pub last_sequence: i64,
}

/// A model request as the gateway told it, checked and made canonical.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The writer's UUIDv7.
    pub id: Uuid,
    /// When the request ended.
    pub occurred_at_us: i64,
    /// The platform instance.
    pub instance_id: String,
    /// Who asked.
    pub user_id: String,
    /// The user's team.
    pub team_id: String,
    /// The API key's id.
    pub api_key_id: String,
    /// Who served it.
    pub provider: String,
    /// The model that was asked for.
    pub requested_model: String,
    /// The model that served; never empty.
    pub model: String,
    /// How it ended.
    pub status: Status,
    /// What kind of call.
    pub operation: String,
    /// Tokens by kind.
    pub tokens: Tokens,
    /// What else the price book charges for, by its unit names.
    pub other_units: BTreeMap<String, i64>,
    /// From arrival to end, in microseconds.
    pub latency_us: Option<i64>,
    /// From arrival to the first token, in microseconds.
    pub time_to_first_token_us: Option<i64>,
    /// The provider's service tier.
    pub service_tier: String,
    /// `batch` for requests that a batch interface ran.
    pub processing: String,
    /// Joins with traces and logs.
    pub request_id: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Further conditions of the price book.
    pub price_conditions: BTreeMap<String, String>,
    /// The writer's numbering.
    pub producer: Option<Producer>,
}

/// Which price made a cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct AppliedPrice {
    /// The version of the price book.
    pub book_version: String,
    /// The book's provider.
    pub provider: String,
    /// The book's model.
    pub model: String,
    /// Effective date, daily window, variant and tier, as one text.
    pub detail: String,
}

/// What a request costs, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charge {
    /// A price was known.
    Priced {
        /// The cost.
        cost_nanos: i64,
        /// The price that made it.
        price: AppliedPrice,
    },
    /// No price is known, for this reason. Not the same as free.
    Unpriced(String),
}

impl Charge {
    /// The cost, where there is one.
    pub fn cost_nanos(&self) -> Option<i64> {
        match self {
            Self::Priced { cost_nanos, .. } => Some(*cost_nanos),
            Self::Unpriced(_) => None,
        }
    }
}

/// An event on its way into storage.
#[derive(Debug, Clone)]
pub struct NewRequest {
    /// The event.
    pub event: Event,
    /// SHA-256 over everything but the producer: tells a repeat from a conflict.
    pub content_hash: [u8; 32],
    /// Its cost, worked out once.
    pub charge: Charge,
}

/// What became of one event of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Stored.
    Accepted,
    /// Known already, with the same content.
    Duplicate,
    /// The id is known with other content.
    IdConflict,
    /// The producer's number is known with another id.
    ProducerConflict,
    /// It lies in what retention has removed.
    BeforeRetention {
        /// From when requests are kept.
        kept_from_us: i64,
    },
}

/// A request as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// The event.
    pub event: Event,
    /// When the service stored it.
    pub recorded_at_us: i64,
    /// The writer that was authenticated, if any was.
    pub recorded_by: String,
    /// Its cost.
    pub charge: Charge,
}

/// A request as it lies in a page that was read: what an export writes a million of. Maps are in the form in which they
/// are stored: a JSON object, or nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestRow<'a> {
    pub(crate) id: Uuid,
    pub(crate) occurred_at_us: i64,
    pub(crate) recorded_at_us: i64,
    pub(crate) recorded_by: &'a str,
    pub(crate) instance_id: &'a str,
    pub(crate) user_id: &'a str,
    pub(crate) team_id: &'a str,
    pub(crate) api_key_id: &'a str,
    pub(crate) provider: &'a str,
    pub(crate) requested_model: &'a str,
    pub(crate) model: &'a str,
    pub(crate) status: Status,
    pub(crate) operation: &'a str,
    pub(crate) tokens: Tokens,
    pub(crate) other_units: &'a str,
    pub(crate) latency_us: Option<i64>,
    pub(crate) time_to_first_token_us: Option<i64>,
    pub(crate) service_tier: &'a str,
    pub(crate) processing: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) labels: &'a str,
    pub(crate) price_conditions: &'a str,
    /// The cost with the price that made it, or why there is none.
    pub(crate) charge: Result<(i64, &'a AppliedPrice), &'a str>,
    /// Who numbered it, and its number there.
    pub(crate) producer: Option<(&'a Producer, i64)>,
}

impl TryFrom<&RequestRow<'_>> for StoredRequest {
    type Error = Error;

    fn try_from(row: &RequestRow<'_>) -> Result<Self, Error> {
        let text = str::to_owned;
        let event = Event {
            id: row.id,
            occurred_at_us: row.occurred_at_us,
            instance_id: text(row.instance_id),
            user_id: text(row.user_id),
            team_id: text(row.team_id),
            api_key_id: text(row.api_key_id),
            provider: text(row.provider),
            requested_model: text(row.requested_model),
            model: text(row.model),
            status: row.status,
            operation: text(row.operation),
            tokens: row.tokens,
            other_units: map(row.other_units)?,
            latency_us: row.latency_us,
            time_to_first_token_us: row.time_to_first_token_us,
            service_tier: text(row.service_tier),
            processing: text(row.processing),
            request_id: text(row.request_id),
            labels: map(row.labels)?,
            price_conditions: map(row.price_conditions)?,
            producer: row.producer.map(|(producer, sequence)| Producer { sequence, ..producer.clone() }),
        };
        let charge = match row.charge {
            Ok((cost_nanos, price)) => Charge::Priced { cost_nanos, price: price.clone() },
            Err(reason) => Charge::Unpriced(text(reason)),
        };
        Ok(Self { event, recorded_at_us: row.recorded_at_us, recorded_by: text(row.recorded_by), charge })
    }
}

/// A map as it was written: a JSON object, or nothing for an empty one.
fn map<T: serde::de::DeserializeOwned + Default>(text: &str) -> Result<T, Error> {
    if text.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_str(text).map_err(Error::internal)
}

/// A place in the order of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// First by time,
    pub occurred_at_us: i64,
    /// then by id.
    pub id: Uuid,
}

/// Narrows requests: values of a list are alternatives, lists narrow each other,
/// an empty list narrows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Instances.
    pub instance_ids: Vec<String>,
    /// Users.
    pub user_ids: Vec<String>,
    /// Teams.
    pub team_ids: Vec<String>,
    /// API keys.
    pub api_key_ids: Vec<String>,
    /// Providers.
    pub providers: Vec<String>,
    /// Served models.
    pub models: Vec<String>,
    /// Statuses.
    pub statuses: Vec<Status>,
    /// Labels that a request must all have.
    pub labels: BTreeMap<String, String>,
}

/// The requests that an answer is about: what the caller may see of a window of time,
/// narrowed, and for an export frozen at a commit. Every query of the store is given one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// First microsecond inside.
    pub start_us: i64,
    /// First microsecond after.
    pub end_us: i64,
    /// What may be seen at all.
    pub access: Access,
    /// Narrows.
    pub filter: Filter,
    /// Only what was committed up to here.
    pub watermark: Option<i64>,
    /// Who asks: callers share what reads that take long may use.
    pub caller: Arc<str>,
}

/// What to group by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// `user_id`.
    User,
    /// `team_id`.
    Team,
    /// The served model.
    Model,
    /// `provider`.
    Provider,
    /// `api_key_id`.
    ApiKey,
    /// `instance_id`.
    Instance,
    /// The status, by its full name.
    Status,
}

impl Dimension {
    /// All, in the order of the contract.
    pub const ALL: [Self; 7] =
        [Self::User, Self::Team, Self::Model, Self::Provider, Self::ApiKey, Self::Instance, Self::Status];

    /// The name of the event's field, which is also the column's.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user_id",
            Self::Team => "team_id",
            Self::Model => "model",
            Self::Provider => "provider",
            Self::ApiKey => "api_key_id",
            Self::Instance => "instance_id",
            Self::Status => "status",
        }
    }

    /// The number of the contract, which is also stored.
    pub fn number(self) -> i16 {
        match self {
            Self::User => 1,
            Self::Team => 2,
            Self::Model => 3,
            Self::Provider => 4,
            Self::ApiKey => 5,
            Self::Instance => 6,
            Self::Status => 7,
        }
    }

    /// The dimension of a stored number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|dimension| i64::from(dimension.number()) == number)
    }
}

/// What to rank by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// The number of requests.
    Requests,
    /// All tokens.
    Tokens,
    /// The cost.
    Cost,
}
