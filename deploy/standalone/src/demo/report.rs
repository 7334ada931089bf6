//! What the demo prints: the answers of the two screens, and the investigation.

use activity_proto::audit::v1::{AuditEntry, Change, Outcome, Stage};
use activity_proto::usage::v1::{Bucket, Dimension, Metrics};
use anyhow::Result;
use comfy_table::Table;
use gateway_sdk::{AuditFilter, Impact, Investigation};

use super::ask::{Ask, Range};
use super::investigate::Finding;
use super::{chart, show};
use crate::time::{DAY_US, HOUR_US, MINUTE_US, SECOND_US, micros, rfc3339, text};

const TIME: &str = "%Y-%m-%d %H:%M:%S";
const MINUTE: &str = "%a %Y-%m-%d %H:%M";

/// The totals of the range, and for comparison those of its last part (a week, a day
/// or a half) beside the part before that.
pub async fn totals(ask: &Ask, range: Range) -> Result<String> {
    let whole = ask.summary(range).await?;
    let span_us = range.end_us - range.start_us;
    let (part_us, name) = match span_us / DAY_US {
        14.. => (7 * DAY_US, "7 days"),
        2.. => (DAY_US, "24 hours"),
        _ => (span_us / 2, "half"),
    };
    let part = ask.summary(Range { start_us: range.end_us - part_us, ..range }).await?;
    let all = whole.summary.unwrap_or_default();
    let now = part.summary.unwrap_or_default();
    let before = part.previous.unwrap_or_default();
    let (last, previous) = (format!(">last {name}"), format!(">{name} before"));
    let mut table = show::table(&["metric", ">all", &last, &previous, ">change"]);
    let mut row = |name: &str, pick: fn(&Metrics) -> u64| {
        table.add_row(vec![
            name.to_owned(),
            show::count(pick(&all)),
            show::count(pick(&now)),
            show::count(pick(&before)),
            show::change(pick(&before).into(), pick(&now).into()),
        ]);
    };
    row("requests", |m| m.requests());
    row("  of which failed", |m| m.failed_requests());
    row("tokens", |m| m.total_tokens());
    row("  input, uncached", |m| kind(m, |t| t.input_uncached));
    row("  input, read from cache", |m| kind(m, |t| t.input_cache_read));
    row("  input, written to cache", |m| kind(m, |t| t.input_cache_write));
    row("  output", |m| kind(m, |t| t.output));
    row("    of which reasoning", |m| kind(m, |t| t.output_reasoning));
    row("users", |m| m.unique_users());
    row("models", |m| m.unique_models());
    row("requests without a price", |m| m.unpriced_requests());
    row("tokens without a price", |m| m.unpriced_tokens());
    table.add_row(vec![
        format!("cost, {}", show::inert(&whole.currency_code)),
        show::exact(all.cost()),
        show::exact(now.cost()),
        show::exact(before.cost()),
        show::change(show::nanos(before.cost()), show::nanos(now.cost())),
    ]);
    Ok(section(
        &format!("Usage analytics, {} to {}", rfc3339(range.start_us), rfc3339(range.end_us)),
        &table.to_string(),
    ))
}

fn kind(metrics: &Metrics, pick: fn(&activity_proto::usage::v1::Tokens) -> Option<i64>) -> u64 {
    let tokens = metrics.tokens.as_ref().and_then(pick).unwrap_or(0);
    u64::try_from(tokens).unwrap_or(0)
}

/// One breakdown by cost, with the others and the total below.
pub async fn breakdown(ask: &Ask, range: Range, dimension: Dimension) -> Result<String> {
    let (one, many) = match dimension {
        Dimension::User => ("user", "users"),
        Dimension::Model => ("model", "models"),
        Dimension::Provider => ("provider", "providers"),
        _ => ("API key", "API keys"),
    };
    let answer = ask.breakdown(range, dimension, 8).await?;
    let total = answer.total.unwrap_or_default();
    let whole = show::nanos(total.cost());
    let mut table = show::table(&[one, ">requests", ">failed", ">tokens", ">unpriced", ">cost", ">share"]);
    let add = |table: &mut Table, name: String, metrics: &Metrics| {
        let cost = show::nanos(metrics.cost());
        table.add_row(vec![
            name,
            show::count(metrics.requests()),
            show::count(metrics.failed_requests()),
            show::count(metrics.total_tokens()),
            show::count(metrics.unpriced_requests()),
            // Never taken for free.
            if metrics.requests() > 0 && metrics.unpriced_requests() == metrics.requests() {
                "no price".into()
            } else {
                show::money(cost)
            },
            show::share(cost, whole),
        ]);
    };
    for row in &answer.rows {
        let name = show::key(row.keys.first().map_or("", String::as_str));
        add(&mut table, name, row.metrics.as_ref().unwrap_or(&Metrics::default()));
    }
    if let Some(other) = &answer.other {
        let others = answer.groups.unwrap_or(0).saturating_sub(answer.rows.len() as u64);
        add(&mut table, format!("{} other {many}", show::count(others)), other);
    }
    add(&mut table, "total".into(), &total);
    Ok(section(&format!("By {one}, most expensive first"), &table.to_string()))
}

/// Cost by provider, a bar a day; where all cost lies within two days, a bar an hour,
/// and within two hours, a bar a minute.
pub async fn cost_chart(ask: &Ask, range: Range) -> Result<String> {
    const ENOUGH: usize = 3;
    let mut range = range;
    for (bucket, name, format, is_finest) in [
        (Bucket::Day, "day", "%a %b %d", false),
        (Bucket::Hour, "hour", "%b %d %H:00", false),
        (Bucket::Minute, "minute", "%b %d %H:%M", true),
    ] {
        let answer = ask.series(range, bucket, Some(Dimension::Provider)).await?;
        let Some(paid) = chart::paid(&answer) else { break };
        if is_finest || paid.buckets.len() >= ENOUGH {
            return Ok(section(&format!("Cost by provider, a {name} (UTC)"), &chart::bars(&answer, format)));
        }
        range = Range { start_us: paid.start_us, end_us: paid.end_us };
    }
    Ok(section("Cost by provider", "  nothing in this range"))
}

/// The latest entries of all instances, and what the newest diff among them changed.
pub async fn latest_entries(ask: &Ask, range: Range) -> Result<String> {
    let entries = ask.entries(range, AuditFilter::new(), 10, true).await?;
    if entries.is_empty() {
        return Ok(section("Audit log", "  no entries in this range"));
    }
    let mut out = table_of(&entries).to_string();
    let has = |entry: &&AuditEntry, is_wanted: fn(&Change) -> bool| entry.changes.iter().any(is_wanted);
    // Replayed entries tell what came and not what was there.
    let changed = entries
        .iter()
        .find(|entry| has(entry, |change| change.old_value.is_some() && change.new_value.is_some()))
        .or_else(|| entries.iter().find(|entry| has(entry, |change| change.new_value.is_some())));
    if let Some(entry) = changed {
        out.push_str("\n\n  The newest with a diff:\n");
        out.push_str(&diff(entry));
    }
    Ok(section("Audit log, latest entries", &out))
}

fn table_of(entries: &[AuditEntry]) -> Table {
    let mut table = show::table(&["when (UTC)", "instance", "#", "who", "action", "resource", "outcome"]);
    for entry in entries {
        let stage = entry.operation.as_ref().map(|operation| operation.stage());
        let outcome = match (entry.outcome(), stage) {
            (Outcome::Unknown, Some(Stage::Intent)) => "open intent".to_owned(),
            (outcome, _) => outcome.as_str_name().trim_start_matches("OUTCOME_").to_lowercase(),
        };
        table.add_row(vec![
            text(time(entry), TIME),
            show::short(&entry.instance_id, 18),
            entry.sequence.map_or_else(String::new, show::count),
            who(entry),
            show::short(&entry.action, 34),
            resource(entry),
            outcome,
        ]);
    }
    table
}

fn time(entry: &AuditEntry) -> i64 {
    entry.occurred_at.as_ref().map_or(0, micros)
}

fn who(entry: &AuditEntry) -> String {
    let actor = entry.actor.clone().unwrap_or_default();
    let name = if actor.display_name.is_empty() { &actor.id } else { &actor.display_name };
    show::short(name, 30)
}

fn resource(entry: &AuditEntry) -> String {
    let first = entry.resources.first().cloned().unwrap_or_default();
    let name = if first.name.is_empty() { &first.id } else { &first.name };
    show::short(&format!("{} {name}", first.r#type), 40)
}

/// Who, from where, why, and the changed values.
fn diff(entry: &AuditEntry) -> String {
    let actor = entry.actor.clone().unwrap_or_default();
    let mut out = format!("  {}  {}  by {}", text(time(entry), TIME), show::short(&entry.action, 60), who(entry));
    if !actor.ip_address.is_empty() {
        out.push_str(&format!(" from {}", show::short(&actor.ip_address, 45)));
    }
    if !actor.on_behalf_of.is_empty() {
        out.push_str(&format!(" for {}", show::short(&actor.on_behalf_of, 40)));
    }
    out.push('\n');
    if !entry.reason.is_empty() {
        out.push_str(&format!("    reason: {}\n", show::short(&entry.reason, 100)));
    }
    const MOST: usize = 8;
    for change in entry.changes.iter().take(MOST) {
        out.push_str(&format!("    {}\n", show::short(&change.path, 100)));
        for (sign, value) in [("-", &change.old_value), ("+", &change.new_value)] {
            if let Some(value) = value {
                out.push_str(&format!("      {sign} {}\n", show::short(value, 100)));
            }
        }
    }
    if entry.changes.len() > MOST {
        out.push_str(&format!("    … and {} more\n", entry.changes.len() - MOST));
    }
    out
}

/// The investigation, step by step.
pub fn investigation(finding: Option<&Finding>) -> String {
    let Some(finding) = finding else {
        return section("Investigation", "  no rise in cost to look into");
    };
    let mut out = String::new();
    if let Some((peak, median)) = finding.peak_day {
        out.push_str(&format!(
            "  1. {} cost {}; the median day costs {}.\n",
            text(peak.start_us, "%A %Y-%m-%d"),
            show::money(peak.nanos),
            show::money(median)
        ));
    } else {
        out.push_str("  1. There are too few days to compare; the sharpest rise counts.\n");
    }
    let bucket = if finding.bucket_us == HOUR_US { "hour" } else { "minute" };
    out.push_str(&format!(
        "  2. The cost rises at {} UTC ({}).\n",
        text(finding.onset_us, if finding.exact { TIME } else { MINUTE }),
        if finding.exact { "the first request of the model below".to_owned() } else { format!("to the {bucket}") }
    ));
    let (before, after) = finding.total;
    out.push_str(&format!(
        "     The {} before it cost {}, the same time after it {}. What rose most:\n\n",
        span(finding.window_us),
        show::money(before),
        show::money(after)
    ));
    let mut table = show::table(&["dimension", "value", ">before", ">after", ">of the rise"]);
    for part in finding.parts.iter().chain(&finding.pair) {
        let keys: Vec<String> = part.keys.iter().map(|key| show::key(key)).collect();
        table.add_row(vec![
            part.dimension.to_owned(),
            keys.join(" × "),
            show::money(part.before),
            show::money(part.after),
            show::share(part.after - part.before, after - before),
        ]);
    }
    out.push_str(&format!("{table}\n\n"));
    if let Some(found) = &finding.of_model {
        out.push_str(&of_model(found));
    }
    out.push_str(&cause(finding));
    section("Investigation: where did the money go, and why?", &out)
}

/// One line about the model, of both services.
fn of_model(found: &Investigation) -> String {
    let Some(change) = found.traffic.as_ref().ok().and_then(|traffic| traffic.change) else {
        return String::new();
    };
    let entries = found.entries.as_ref().map_or(0, |entries| entries.items.len());
    format!(
        "     {} alone: {} requests for {} became {} for {}, and {} entries of that time name it.\n\n",
        show::key(&found.resource.id),
        show::grouped(change.requests.before),
        show::money(change.cost_nanos.before),
        show::grouped(change.requests.after),
        show::money(change.cost_nanos.after),
        entries
    )
}

/// The traffic of everything that an entry touched, before it and after.
fn impact_of(impact: &Impact) -> Table {
    let mut table = show::table(&["touched", ">requests before", ">after", ">cost before", ">after", ">change"]);
    for touched in &impact.touched {
        let resource = &touched.resource;
        let name = if resource.name.is_empty() { &resource.id } else { &resource.name };
        let name = show::short(&format!("{} {name}", resource.r#type), 40);
        let change = touched.traffic.as_ref().map(|traffic| traffic.change);
        table.add_row(match change {
            Ok(Some(change)) => vec![
                name,
                show::grouped(change.requests.before),
                show::grouped(change.requests.after),
                show::money(change.cost_nanos.before),
                show::money(change.cost_nanos.after),
                show::change(change.cost_nanos.before, change.cost_nanos.after),
            ],
            Ok(None) => vec![name, "not kept".to_owned()],
            Err(why) => vec![name, show::short(&why.to_string(), 60)],
        });
    }
    table
}

fn cause(finding: &Finding) -> String {
    let mut out = String::new();
    let model = finding.model.as_deref().map_or_else(|| "the model".into(), show::key);
    if finding.before.is_empty() {
        out.push_str(&format!(
            "  3. No administrative action of the day before names {model}: the cause is not in the audit log.\n"
        ));
        if !finding.around.is_empty() {
            out.push_str("     The last ones before the rise:\n\n");
            out.push_str(&format!("{}\n", table_of(&finding.around)));
        }
        return out;
    }
    out.push_str(&format!("  3. What administrators did to {model} in the day before, newest first:\n\n"));
    out.push_str(&format!("{}\n\n", table_of(&finding.before)));
    if let Some(entry) = finding.suspect() {
        out.push_str(&format!(
            "  4. The last of them came {} before the rise. {} did it:\n\n",
            span((finding.onset_us - time(entry)).max(0)),
            who(entry)
        ));
        out.push_str(&diff(entry));
        if let Some(impact) = &finding.impact {
            let window = span(i64::try_from(impact.window.as_micros()).unwrap_or(i64::MAX));
            out.push_str(&format!("\n     What it touched, {window} before it and {window} after:\n\n"));
            out.push_str(&format!("{}\n", impact_of(impact)));
        }
    }
    if let Some(entry) = finding.after.first() {
        out.push_str("\n  5. The next thing done to it:\n\n");
        out.push_str(&diff(entry));
    }
    out
}

fn span(us: i64) -> String {
    let (number, unit) = if us < MINUTE_US {
        (us / SECOND_US, "second")
    } else if us < 2 * HOUR_US {
        (us / MINUTE_US, "minute")
    } else {
        (us / HOUR_US, "hour")
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

fn section(title: &str, body: &str) -> String {
    format!("\n{title}\n\n{}\n", body.trim_end())
}
