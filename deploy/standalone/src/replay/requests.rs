//! The Azure LLM inference trace (`TIMESTAMP,ContextTokens,GeneratedTokens`) as
//! usage events.
//!
//! For the data row `i` (from 0) the key text is
//! `<i>|<TIMESTAMP>|<ContextTokens>|<GeneratedTokens>`, the fields as the file has
//! them, and `h(name)` is the first eight bytes, big-endian, of
//! SHA-256 over the UTF-8 text `<name>|<key text>`. Then
//!
//! | field | rule |
//! | --- | --- |
//! | `occurred_at` | `TIMESTAMP` cut to microseconds, plus the shift that brings the file's latest one to `until` |
//! | `id` | UUIDv7: 48 bits of milliseconds of `occurred_at`, then the first ten bytes of SHA-256 over `id|<key text>` with version and variant set |
//! | `instance_id` | `replay` |
//! | `user_id` | `user-%03d` of `u = ((h("user") >> 32) % 300) * (h("user") % 300) / 300`, whole numbers |
//! | `team_id` | `team-%02d` of `u % 12` |
//! | `api_key_id` | `key-%03d-%d` of `u` and `h("key") % 2` |
//! | `provider`, `model` | [`MODELS`]`[h("model") % 10]`; requested is the same |
//! | `status` | `OK`: the trace has no failures |
//! | `operation` | `chat` |
//! | `tokens` | `input_uncached` = `ContextTokens`, `output` = `GeneratedTokens`, the others 0 |
//! | `request_id` | `replay-<i>` |
//!
//! All other fields are absent. Two replays with the same `until` are the same
//! events: the second one stores nothing.

use activity_proto::usage::v1::{RequestStatus, Tokens, UsageEvent};
use chrono::NaiveDateTime;

use super::{ReplayError, bits, number};
use crate::time::{timestamp, uuid_v7};

/// Provider and model by `h("model") % 10`.
pub const MODELS: [(&str, &str); 10] = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-4.1-mini"),
    ("openai", "gpt-5.4-mini"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-4-5"),
    ("google", "gemini-2.5-flash"),
    ("google", "gemini-2.5-pro"),
    ("mistral", "codestral-2508"),
    ("deepseek", "deepseek-chat"),
    ("self-hosted", "llama-3.3-70b-instruct"),
];

/// The instance of replayed requests.
pub const INSTANCE: &str = "replay";

struct Row {
    us: i64,
    key: String,
    input: i64,
    output: i64,
}

/// All requests of the file, in its order, the latest at `until_us`.
pub fn requests(csv: impl std::io::Read, until_us: i64) -> Result<Vec<UsageEvent>, ReplayError> {
    let rows = rows(csv)?;
    let latest = rows.iter().map(|row| row.us).max().unwrap_or(0);
    Ok(rows.into_iter().enumerate().map(|(index, row)| event(index, &row, row.us - latest + until_us)).collect())
}

fn rows(csv: impl std::io::Read) -> Result<Vec<Row>, ReplayError> {
    let mut reader = csv::Reader::from_reader(csv);
    let wanted = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];
    let headers = reader.headers().map_err(|error| ReplayError { line: 1, message: error.to_string() })?;
    if headers.iter().ne(wanted) {
        return Err(ReplayError { line: 1, message: format!("the columns must be {}", wanted.join(",")) });
    }
    let mut rows = Vec::new();
    for (index, record) in reader.into_records().enumerate() {
        let refuse = |message: String| ReplayError { line: index + 2, message };
        let record = record.map_err(|error| refuse(error.to_string()))?;
        let field = |column: usize| record.get(column).unwrap_or_default();
        let tokens = |column: usize| {
            field(column).parse::<i64>().ok().filter(|count| (0..=1_000_000_000).contains(count)).ok_or_else(|| {
                refuse(format!(
                    "{} is {:?}, allowed are whole numbers from 0 to 1000000000",
                    wanted[column],
                    field(column)
                ))
            })
        };
        // chrono keeps the nanoseconds, and cutting to microseconds is ours.
        let time = NaiveDateTime::parse_from_str(field(0), "%Y-%m-%d %H:%M:%S%.f")
            .map_err(|_| refuse(format!("TIMESTAMP is {:?}, allowed is YYYY-MM-DD HH:MM:SS.fffffff", field(0))))?;
        rows.push(Row {
            us: time.and_utc().timestamp_micros(),
            key: format!("{index}|{}|{}|{}", field(0), field(1), field(2)),
            input: tokens(1)?,
            output: tokens(2)?,
        });
    }
    Ok(rows)
}

fn event(index: usize, row: &Row, us: i64) -> UsageEvent {
    let h = |name: &str| number(&format!("{name}|{}", row.key));
    let user = ((h("user") >> 32) % 300) * (h("user") % 300) / 300;
    // Below 10.
    let (provider, model) = MODELS[(h("model") % 10) as usize];
    UsageEvent {
        id: uuid_v7(us, bits(&format!("id|{}", row.key))).to_string(),
        occurred_at: Some(timestamp(us)),
        instance_id: INSTANCE.into(),
        user_id: format!("user-{user:03}"),
        team_id: format!("team-{:02}", user % 12),
        api_key_id: format!("key-{user:03}-{}", h("key") % 2),
        provider: provider.into(),
        requested_model: model.into(),
        model: model.into(),
        status: RequestStatus::Ok.into(),
        operation: "chat".into(),
        tokens: Some(Tokens { input_uncached: Some(row.input), output: Some(row.output), ..Tokens::default() }),
        request_id: format!("replay-{index}"),
        ..UsageEvent::default()
    }
}
