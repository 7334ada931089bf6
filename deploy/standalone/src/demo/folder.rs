//! What the data of a folder were made with, kept beside the databases. The same plan
//! makes the same events with the same ids, so that a demo on its own data adds nothing;
//! another one would be added to them, and is refused.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::refused;
use crate::sample::{FEWEST_USERS, MOST_DAYS, MOST_USERS, Plan};
use crate::serve::DATABASES;
use crate::time::rfc3339;

/// Beside the databases.
const FILE: &str = "demo.json";

/// What the command line says of the plan; the rest is as the folder says, or usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Usually 1.
    pub seed: Option<u64>,
    /// Usually 30.
    pub days: Option<u32>,
    /// Usually 300.
    pub users: Option<usize>,
    /// Usually 90,000.
    pub events: Option<usize>,
    /// Usually now.
    pub until_us: Option<i64>,
}

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// The plan.
    pub plan: Plan,
    /// Whether the folder has had it already.
    pub again: bool,
}

/// Settles what is made in a folder, and writes it down there.
///
/// # Errors
///
/// A folder that holds other data, and files that cannot be read or written.
pub fn settle(folder: &Path, wish: &Wish, files: [(&str, Option<&Path>); 2], now_us: i64) -> Result<Settled> {
    let kept = folder.join(FILE);
    let mut sources = Map::new();
    for (flag, file) in files {
        let digest = file.map(|file| fingerprint(file).with_context(|| format!("cannot replay {}", file.display())));
        sources.insert(flag.to_owned(), digest.transpose()?.into());
    }
    let holds_data = DATABASES.into_iter().find(|name| folder.join(name).exists());
    match (holds_data, kept.exists()) {
        (Some(_), true) => {
            let made = fs::read_to_string(&kept).with_context(|| format!("cannot read {}", kept.display()))?;
            let unreadable = || refused(format!("{} is not what a demo writes; take another folder", kept.display()));
            let made: Map<String, Value> = serde_json::from_str(&made).map_err(|_| unreadable())?;
            let plan = plan_of(&made).ok_or_else(unreadable)?;
            compare(folder, &made, sources.into_iter().chain(wish.said()))?;
            Ok(Settled { plan, again: true })
        }
        (Some(database), false) => Err(refused(format!(
            "{} holds data that no demo made ({database}); take another folder, or look at them with \
             standalone serve --data-dir {0}",
            folder.display()
        ))),
        (None, _) => {
            let plan = wish.or_usual(now_us);
            let mut made = sources;
            made.extend(described(&plan));
            write(folder, &kept, &Value::from(made)).with_context(|| format!("cannot write {}", kept.display()))?;
            Ok(Settled { plan, again: false })
        }
    }
}

impl Wish {
    fn or_usual(&self, now_us: i64) -> Plan {
        Plan {
            seed: self.seed.unwrap_or(1),
            days: self.days.unwrap_or(30),
            users: self.users.unwrap_or(300),
            events: self.events.unwrap_or(90_000),
            until_us: self.until_us.unwrap_or(now_us),
        }
    }

    /// The flags that were given.
    fn said(&self) -> impl Iterator<Item = (String, Value)> {
        [
            ("seed", self.seed.map(Value::from)),
            ("days", self.days.map(Value::from)),
            ("users", self.users.map(Value::from)),
            ("events", self.events.map(Value::from)),
            ("until", self.until_us.map(|us| Value::from(rfc3339(us)))),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some((flag.to_owned(), value?)))
    }
}

/// A plan by its flags.
fn described(plan: &Plan) -> impl Iterator<Item = (String, Value)> {
    let Plan { seed, days, users, events, until_us } = *plan;
    let wish =
        Wish { seed: Some(seed), days: Some(days), users: Some(users), events: Some(events), until_us: Some(until_us) };
    wish.said().collect::<Vec<_>>().into_iter()
}

fn plan_of(made: &Map<String, Value>) -> Option<Plan> {
    let until: DateTime<Utc> = made.get("until")?.as_str()?.parse().ok()?;
    let plan = Plan {
        seed: made.get("seed")?.as_u64()?,
        days: made.get("days")?.as_u64()?.try_into().ok()?,
        users: made.get("users")?.as_u64()?.try_into().ok()?,
        events: made.get("events")?.as_u64()?.try_into().ok()?,
        until_us: until.timestamp_micros(),
    };
    let is_possible = (1..=MOST_DAYS).contains(&plan.days) && (FEWEST_USERS..=MOST_USERS).contains(&plan.users);
    is_possible.then_some(plan)
}

/// Refuses what was asked for and is not what the folder was made with.
fn compare(folder: &Path, made: &Map<String, Value>, said: impl Iterator<Item = (String, Value)>) -> Result<()> {
    for (flag, value) in said {
        let before = made.get(&flag).unwrap_or(&Value::Null);
        if *before == value {
            continue;
        }
        let before = match before {
            Value::Null => format!("without --{flag}"),
            before if flag == "requests" || flag == "actions" => format!("with another --{flag} ({before})"),
            before => format!("with --{flag} {}", before.as_str().map_or_else(|| before.to_string(), str::to_owned)),
        };
        return Err(refused(format!(
            "{} holds a demo that was made {before}, and another one would be added to it; \
             repeat that (without --seed, --days, --users, --events and --until), or take another folder",
            folder.display()
        )));
    }
    Ok(())
}

/// SHA-256 of a file: the same rows have the same ids wherever the file is.
fn fingerprint(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(format!("sha256:{}", crate::replay::hex(&hash.finalize())))
}

/// At once or not at all: half a file would be in the way of the next run.
fn write(folder: &Path, path: &Path, made: &Value) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let new = path.with_extension("json.new");
    fs::write(&new, format!("{made:#}\n"))?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    const NOW_US: i64 = 1_780_000_000_123_456;

    fn settled(folder: &Path, wish: Wish) -> Result<Settled> {
        settle(folder, &wish, [("requests", None), ("actions", None)], NOW_US)
    }

    /// As a first run leaves it.
    fn made(wish: Wish) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        assert!(!settled(folder.path(), wish).unwrap().again);
        File::create(folder.path().join("usage.db")).unwrap();
        folder
    }

    #[test]
    fn a_folder_repeats_what_it_was_made_with() {
        let folder = made(Wish { seed: Some(7), events: Some(100), ..Wish::default() });
        let wish = Wish { seed: Some(7), ..Wish::default() };
        let again = settle(folder.path(), &wish, [("requests", None), ("actions", None)], NOW_US + 1).unwrap();
        assert!(again.again);
        let Plan { seed, days, users, events, until_us } = again.plan;
        assert_eq!((seed, days, users, events, until_us), (7, 30, 300, 100, NOW_US));
    }

    #[test]
    fn another_demo_is_refused_with_what_the_first_one_was() {
        let folder = made(Wish::default());
        let why = settled(folder.path(), Wish { seed: Some(2), ..Wish::default() }).unwrap_err().to_string();
        assert!(why.contains("with --seed 1,") && why.contains("another folder"), "{why}");
        let why = settled(folder.path(), Wish { until_us: Some(NOW_US + 1), ..Wish::default() }).unwrap_err();
        assert!(why.to_string().contains("with --until 2026-05-28T20:26:40.123456Z"), "{why}");
        let file = folder.path().join("usage.db");
        let files = [("requests", Some(file.as_path())), ("actions", None)];
        let why = settle(folder.path(), &Wish::default(), files, NOW_US).unwrap_err().to_string();
        assert!(why.contains("without --requests"), "{why}");
    }

    #[test]
    fn data_of_a_service_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("audit.db")).unwrap();
        let why = settled(folder.path(), Wish::default()).unwrap_err().to_string();
        assert!(why.contains("no demo made (audit.db)") && why.contains("standalone serve"), "{why}");
        assert!(!folder.path().join(FILE).exists());
    }

    #[test]
    fn a_run_that_made_nothing_does_not_bind_the_next() {
        let folder = tempfile::tempdir().unwrap();
        settled(folder.path(), Wish { seed: Some(1), ..Wish::default() }).unwrap();
        assert_eq!(settled(folder.path(), Wish { seed: Some(2), ..Wish::default() }).unwrap().plan.seed, 2);
    }
}
