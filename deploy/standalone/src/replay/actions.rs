//! CloudTrail records, one a line, as audit events.
//!
//! | field | rule |
//! | --- | --- |
//! | `occurred_at` | `eventTime`, plus the shift that brings the file's latest one to `until` |
//! | `id` | UUIDv7: milliseconds of `occurred_at`, then the first ten bytes of SHA-256 over the line (without its end) with version and variant set |
//! | `instance_id` | `aws-<recipientAccountId>`, or `aws` |
//! | `action` | `<service>.<verb>`: `eventSource` up to its first dot, and `eventName` without a trailing API version (`\d{8}(v\d+)?`), each in snake case |
//! | `actor.id` | the first of `userIdentity`'s `arn`, `principalId`, `invokedBy`; or `unknown` |
//! | `actor.kind` | `USER` for types `IAMUser`, `Root`; `SERVICE_ACCOUNT` for `AssumedRole`, `Role`, `FederatedUser`; `SYSTEM` where there is `invokedBy`; else not known |
//! | `actor.display_name` | the first of `userName`, `sessionContext.sessionIssuer.userName`, the `arn` after its last `/`, `invokedBy`; or empty |
//! | `actor.ip_address` | `sourceIPAddress` where it is an IP address |
//! | `actor.user_agent` | `userAgent` |
//! | `resources` | the top-level members of `requestParameters` with a text that is not empty and a name that ends in `Name`, `name`, `Id`, `Identifier`, `Arn`: type = the name without that ending in snake case (or the service), id = the text; first those whose type without `_` is within the lower-cased `eventName`, then by the member's name; at most 20. None: the service, with `recipientAccountId` or `unknown` as id |
//! | `outcome` | no `errorCode`: `SUCCESS`; one that holds `AccessDenied` or `Unauthorized`: `DENIED`; else `FAILURE` |
//! | `reason` | `<errorCode>: <errorMessage>`, or `errorCode` alone; empty on success |
//! | `changes` | a change for each top-level member of `requestParameters` (path `/requestParameters/<name>`), then of `responseElements` (`/responseElements/<name>`), by name: the value is the new one, but for `requestParameters` of calls that take away (`Delete`, `Remove`, `Detach`, `Disassociate`, `Revoke`, `Release`, `Terminate` at the start of `eventName`) the old one. Values are JSON without spaces, members sorted by name. Once the values of an event pass 32,768 bytes, each further one is the text `sha256:<hex>` over it; at most 100 changes |
//! | `details_json` | those of `awsRegion`, `eventID`, `eventName`, `eventSource`, `eventType`, `sourceIPAddress` that are texts, likewise written |
//! | `request_id` | `requestID` |
//!
//! **Snake case**: a `_` before each upper-case letter that follows a lower-case
//! letter or a digit, or that follows an upper-case letter and is followed by a
//! lower-case one; lower-cased; all but `a-z0-9_` to `_`; leading `_` cut; where it
//! does not begin with a letter, `x_` before it (`CreateDBInstance` is
//! `create_db_instance`). Text that is stored has its control characters replaced
//! by spaces and is cut at 256 bytes (user agent and reason 1,024), at a
//! character's edge.

use std::collections::BTreeMap;
use std::net::IpAddr;

use activity_proto::audit::v1::{Actor, ActorKind, AuditEvent, Change, Outcome, Resource};
use chrono::DateTime;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{ReplayError, bits, hex};
use crate::time::{timestamp, uuid_v7};

const NAME_BYTES: usize = 256;
const TEXT_BYTES: usize = 1_024;
const VALUES_BYTES: usize = 32_768;
const MOST_RESOURCES: usize = 20;
const MOST_CHANGES: usize = 100;
const TAKE_AWAY: [&str; 7] = ["Delete", "Remove", "Detach", "Disassociate", "Revoke", "Release", "Terminate"];
const DETAILS: [&str; 6] = ["awsRegion", "eventID", "eventName", "eventSource", "eventType", "sourceIPAddress"];

/// All actions of the file, in its order, the latest at `until_us`.
pub fn actions(jsonl: &str, until_us: i64) -> Result<Vec<AuditEvent>, ReplayError> {
    let mut records = Vec::new();
    for (index, line) in jsonl.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let refuse = |message: String| ReplayError { line: index + 1, message };
        let record: Value = serde_json::from_str(line).map_err(|error| refuse(format!("no JSON: {error}")))?;
        let time = record["eventTime"]
            .as_str()
            .and_then(|time| DateTime::parse_from_rfc3339(time).ok())
            .ok_or_else(|| refuse("eventTime is not an RFC 3339 time".into()))?;
        for required in ["eventSource", "eventName"] {
            if text(&record[required]).is_empty() {
                return Err(refuse(format!("{required} is not a text")));
            }
        }
        records.push((time.timestamp_micros(), line, record));
    }
    let latest = records.iter().map(|(us, ..)| *us).max().unwrap_or(0);
    Ok(records.into_iter().map(|(us, line, record)| event(us - latest + until_us, line, &record)).collect())
}

fn event(us: i64, line: &str, record: &Value) -> AuditEvent {
    let name = text(&record["eventName"]);
    let service = snake(text(&record["eventSource"]).split('.').next().unwrap_or_default());
    let account = text(&record["recipientAccountId"]);
    let error = text(&record["errorCode"]);
    let message = text(&record["errorMessage"]);
    let details: BTreeMap<&str, &Value> =
        DETAILS.into_iter().filter(|name| record[*name].is_string()).map(|name| (name, &record[name])).collect();
    AuditEvent {
        id: uuid_v7(us, bits(line)).to_string(),
        occurred_at: Some(timestamp(us)),
        instance_id: match account {
            "" => "aws".into(),
            account => cut(&format!("aws-{account}"), NAME_BYTES),
        },
        actor: Some(actor(record)),
        action: format!("{service}.{}", snake(without_version(name))),
        resources: resources(record, name, &service),
        outcome: outcome(error).into(),
        reason: match (error, message) {
            ("", _) => String::new(),
            (error, "") => cut(error, TEXT_BYTES),
            (error, message) => cut(&format!("{error}: {message}"), TEXT_BYTES),
        },
        changes: changes(record, name),
        details_json: serde_json::to_string(&details).unwrap_or_default(),
        request_id: cut(text(&record["requestID"]), NAME_BYTES),
        operation: None,
        producer: None,
    }
}

fn actor(record: &Value) -> Actor {
    let who = &record["userIdentity"];
    let first = |candidates: &[&str]| {
        candidates.iter().find(|candidate| !candidate.is_empty()).map(|candidate| cut(candidate, NAME_BYTES))
    };
    let arn = text(&who["arn"]);
    let invoked_by = text(&who["invokedBy"]);
    let kind = match text(&who["type"]) {
        "IAMUser" | "Root" => ActorKind::User,
        "AssumedRole" | "Role" | "FederatedUser" => ActorKind::ServiceAccount,
        _ if !invoked_by.is_empty() => ActorKind::System,
        _ => ActorKind::Unspecified,
    };
    let address = text(&record["sourceIPAddress"]);
    Actor {
        id: first(&[arn, text(&who["principalId"]), invoked_by]).unwrap_or_else(|| "unknown".into()),
        kind: kind.into(),
        display_name: first(&[
            text(&who["userName"]),
            text(&who["sessionContext"]["sessionIssuer"]["userName"]),
            arn.rsplit('/').next().unwrap_or_default(),
            invoked_by,
        ])
        .unwrap_or_default(),
        ip_address: address.parse::<IpAddr>().map_or_else(|_| String::new(), |address| address.to_string()),
        user_agent: cut(text(&record["userAgent"]), TEXT_BYTES),
        on_behalf_of: String::new(),
    }
}

fn outcome(error: &str) -> Outcome {
    if error.is_empty() {
        Outcome::Success
    } else if error.contains("AccessDenied") || error.contains("Unauthorized") {
        Outcome::Denied
    } else {
        Outcome::Failure
    }
}

fn resources(record: &Value, event_name: &str, service: &str) -> Vec<Resource> {
    let event_name = event_name.to_lowercase();
    let mut found: Vec<(bool, &str, Resource)> = members(&record["requestParameters"])
        .into_iter()
        .filter_map(|(name, value)| {
            let id = value.as_str().filter(|id| !id.is_empty())?;
            let stem =
                ["Identifier", "Name", "name", "Arn", "Id"].iter().find_map(|ending| name.strip_suffix(ending))?;
            let kind = if stem.is_empty() { service.into() } else { snake(stem) };
            let apart = !event_name.contains(&kind.replace('_', ""));
            let resource = Resource { r#type: cut(&kind, NAME_BYTES), id: cut(id, NAME_BYTES), name: String::new() };
            Some((apart, name, resource))
        })
        .collect();
    found.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    found.truncate(MOST_RESOURCES);
    if found.is_empty() {
        let account = text(&record["recipientAccountId"]);
        return vec![Resource {
            r#type: service.into(),
            id: if account.is_empty() { "unknown".into() } else { cut(account, NAME_BYTES) },
            name: String::new(),
        }];
    }
    found.into_iter().map(|(.., resource)| resource).collect()
}

fn changes(record: &Value, event_name: &str) -> Vec<Change> {
    let takes_away = TAKE_AWAY.iter().any(|verb| event_name.starts_with(verb));
    let mut bytes = 0;
    let mut changes = Vec::new();
    for part in ["requestParameters", "responseElements"] {
        for (name, value) in members(&record[part]) {
            let mut json = canonical(value);
            bytes += json.len();
            if bytes > VALUES_BYTES {
                json = format!("\"sha256:{}\"", hex(&Sha256::digest(json.as_bytes())));
            }
            let (old_value, new_value) =
                if takes_away && part == "requestParameters" { (Some(json), None) } else { (None, Some(json)) };
            let pointer = name.replace('~', "~0").replace('/', "~1");
            changes.push(Change { path: cut(&format!("/{part}/{pointer}"), NAME_BYTES), old_value, new_value });
        }
    }
    changes.truncate(MOST_CHANGES);
    changes
}

/// The members of an object by name; none of anything else.
fn members(value: &Value) -> BTreeMap<&str, &Value> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value)).collect()
}

/// JSON without spaces, members by name at every depth, whatever order serde_json
/// was built to keep.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(_) => {
            let inner: Vec<String> = members(value)
                .into_iter()
                .map(|(name, value)| format!("{}:{}", Value::from(name), canonical(value)))
                .collect();
            format!("{{{}}}", inner.join(","))
        }
        Value::Array(items) => {
            let inner: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", inner.join(","))
        }
        scalar => scalar.to_string(),
    }
}

/// A text, or the empty one.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// `CreateFunction20150331` and `AddPermission20150331v2` without their versions.
fn without_version(name: &str) -> &str {
    let digits = |text: &str| text.len() - text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let mut rest = name;
    let count = digits(rest);
    if count > 0 && rest[..rest.len() - count].ends_with('v') {
        let before = &rest[..rest.len() - count - 1];
        if digits(before) >= 8 {
            rest = before;
        }
    }
    if digits(rest) >= 8 { &rest[..rest.len() - 8] } else { name }
}

fn snake(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (index, letter) in letters.iter().enumerate() {
        let before = index.checked_sub(1).map(|index| letters[index]);
        let lower_follows = letters.get(index + 1).is_some_and(|next| next.is_ascii_lowercase());
        let starts_word = letter.is_ascii_uppercase()
            && before.is_some_and(|before| {
                before.is_ascii_lowercase() || before.is_ascii_digit() || (before.is_ascii_uppercase() && lower_follows)
            });
        if starts_word {
            out.push('_');
        }
        let letter = letter.to_ascii_lowercase();
        out.push(if letter.is_ascii_lowercase() || letter.is_ascii_digit() { letter } else { '_' });
    }
    let out = out.trim_start_matches('_');
    if out.starts_with(|first: char| first.is_ascii_lowercase()) { out.into() } else { format!("x_{out}") }
}

/// Control characters to spaces, at most so many bytes of whole characters.
fn cut(text: &str, bytes: usize) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        let letter = if letter.is_control() { ' ' } else { letter };
        if out.len() + letter.len_utf8() > bytes {
            break;
        }
        out.push(letter);
    }
    out
}
