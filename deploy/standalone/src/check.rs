//! `standalone check`: compares the rollups of the usage service with their requests,
//! all days once.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use service_core::time_range::rfc3339;
use usage_service::checker::{Summary, check_all};
use usage_service::store::Store;

use crate::refused;

/// Prints a line for each day that differs and one for all of them; whether all is well now.
///
/// # Errors
///
/// A database that is not there, cannot be opened, or is in use by a service (SQLite).
pub async fn run(config: &usage_service::Config, repair: bool) -> Result<bool> {
    let url = &config.database_url;
    if let Some(path) = url.sqlite_path()
        && !path.try_exists().unwrap_or(false)
    {
        return Err(refused(format!("there is no database {}, allowed is one that is there", path.display())));
    }
    let advice = match url.sqlite_path() {
        Some(_) => "cannot check; a service that uses the file must be stopped before",
        None => "cannot check",
    };
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

/// `1 day`, `2 days`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// If standard output is closed there is nobody to tell; the exit status says it too.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
