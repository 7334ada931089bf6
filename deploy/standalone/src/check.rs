//! `standalone check`: compares the rollups of the usage service with their requests,
//! all days once, and the logs of the audit service with their trees and with what
//! was signed.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use audit_service::checker::check_all as check_logs;
use audit_service::verify::PinnedKey;
use service_core::config::DatabaseUrl;
use service_core::time_range::rfc3339;
use usage_service::checker::{Summary, check_all};
use usage_service::store::Store;

use crate::refused;

/// Prints a line for each day that differs and one for all of them; whether all is well now.
///
/// # Errors
///
/// A database that is not there, cannot be opened, or is in use by a service (SQLite).
pub async fn usage(config: &usage_service::Config, repair: bool) -> Result<bool> {
    let url = &config.database_url;
    let advice = there(url)?;
    let store = Store::open(url, &config.database, config.rollup.cache_bytes()).await.context(advice)?;
    let checked = check_all(&store, repair, |day_us, checked| {
        let day = rfc3339(day_us);
        let day = day.split('T').next().unwrap_or(&day);
        let line = match checked {
            Ok(checked) => {
                let outcome = if checked.repaired { "differed and were made anew" } else { "differ" };
                format!("{} of {} segments {outcome}", checked.differing, checked.segments)
            }
            Err(error) => format!("could not be checked: {error}"),
        };
        say(&format!("{day}: {line}\n"));
    })
    .await;
    store.close().await;
    let summary = checked?;
    let Summary { days, segments, differing, repaired, failed, damaged, mended } = summary;
    let outcome = match differing {
        0 if failed == 0 => "all are what their requests add up to".to_owned(),
        0 => "all that were checked are what their requests add up to".to_owned(),
        _ if repaired => format!("{differing} differed and were made anew"),
        _ if repair => format!("{differing} differ, not all of them were made anew: the log says why"),
        _ => format!("{differing} differ; --repair makes them anew"),
    };
    say(&format!("{}, {}: {outcome}\n", counted(days, "day"), counted(segments, "segment")));
    if failed > 0 {
        say(&format!("{failed} of {days} days could not be checked\n"));
    }
    if damaged > 0 {
        let outcome = match (mended, repair) {
            (true, _) => "were made up for by their requests",
            (false, true) => "stay until every day is made anew",
            (false, false) => "cannot be read; --repair makes up for them by their requests",
        };
        say(&format!("{damaged} groups of requests that waited to be sealed {outcome}\n"));
    }
    Ok(summary.is_well())
}

/// Prints a line for each log, the findings of damaged ones before it, and one for all
/// of them; whether all is well.
///
/// # Errors
///
/// A database that is not there, cannot be opened, or is in use by a service (SQLite); a
/// file of checkpoints that cannot be read, or that no key is given for.
pub async fn audit(config: &audit_service::Config, checkpoints: &[PathBuf], keys: Vec<PinnedKey>) -> Result<bool> {
    let advice = there(&config.database_url)?;
    let mut trusted = audit_service::trusted(config)?;
    // What is said of a key goes before what is known of it in the folder, which is no sizes.
    trusted.keys.retain(|own| keys.iter().all(|given| given.key != own.key));
    trusted.keys.extend(keys);
    for file in checkpoints {
        let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            let note = value["note"].as_str();
            let note = note.ok_or_else(|| refused(format!("{} has a line without \"note\"", file.display())))?;
            let signed = trusted.keep(note).map_err(|why| refused(format!("{}: {why}", file.display())))?;
            if !signed {
                let why = "a checkpoint is signed by none of the keys that are given, or in the service's folder";
                return Err(refused(format!("{}: {why}", file.display())));
            }
        }
    }
    let store = audit_service::open_store(config).await.context(advice)?;
    let (mut logs, mut damaged, mut failed) = (0, 0, 0);
    let checked = check_logs(&store, &trusted, |instance, checked| {
        logs += 1;
        match checked {
            Ok(checked) => {
                damaged += usize::from(checked.count > 0);
                for found in &checked.found {
                    say(&format!("log {instance:?}: {}\n", found.what));
                }
                let more = checked.count - checked.found.len() as u64;
                if more > 0 {
                    say(&format!("log {instance:?}: {more} findings more\n"));
                }
                let outcome = if checked.count == 0 { "as they were written" } else { "not all as they were written" };
                let (entries, checkpoints) = (checked.entries, checked.checkpoints);
                say(&format!("log {instance:?}: {entries} entries, {checkpoints} checkpoints: {outcome}\n"));
            }
            Err(error) => {
                failed += 1;
                say(&format!("log {instance:?}: could not be checked: {error}\n"));
            }
        }
    })
    .await;
    store.close().await;
    let well = checked?;
    if trusted.keys.is_empty() {
        say("no key is given, and none is in the service's folder: no checkpoint was compared\n");
    }
    let outcome = match (damaged, failed) {
        (0, 0) => "all are as they were written".to_owned(),
        (0, failed) => format!("{failed} could not be checked"),
        (damaged, 0) => format!("{damaged} are damaged"),
        (damaged, failed) => format!("{damaged} are damaged, {failed} could not be checked"),
    };
    say(&format!("{}: {outcome}\n", counted(logs, "log")));
    Ok(well)
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    refused(format!("cannot read {}: {error}", file.display()))
}

/// What to say if a database that is there cannot be opened.
fn there(url: &DatabaseUrl) -> Result<&'static str> {
    match url.sqlite_path() {
        Some(path) if !path.try_exists().unwrap_or(false) => {
            Err(refused(format!("there is no database {}, allowed is one that is there", path.display())))
        }
        Some(_) => Ok("cannot check; a service that uses the file must be stopped before"),
        None => Ok("cannot check"),
    }
}

/// `1 day`, `2 days`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// If standard output is closed there is nobody to tell; the exit status says it too.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
