//! Table `[retention]`: how long entries stay in the database, and where they go then.

use std::num::NonZeroU32;

use serde::{Deserialize, Deserializer};
use service_core::config::{ConfigError, DatabaseConfig, DatabaseUrl};

use crate::archive::CloudVariables;

/// Table `[retention]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct RetentionConfig {
    /// Days that entries stay in the database after they were recorded. Default none: for ever.
    pub days: Option<NonZeroU32>,
    /// A rule that `days` must not fall short of. Empty, the default: none.
    #[serde(deserialize_with = "profile")]
    pub profile: Option<Profile>,
    /// Where entries go: a folder, or a bucket: `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, `az://CONTAINER/PATH`. Empty, the
    /// default: beside SQLite's file (`audit.db.archive`); on PostgreSQL there is none, and without one there are no
    /// `days`.
    pub archive: String,
    /// What the environment says of clouds, by the names that their own tools go by: whoever starts the service reads it.
    #[serde(skip)]
    pub cloud: CloudVariables,
    /// PostgreSQL: the account that removes what is archived, and does nothing else. Default none: that of
    /// `database_url`, which can only where it owns the schema.
    pub database_url: Option<DatabaseUrl>,
}

/// A rule on how long entries are to be at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// PCI DSS 4.0, requirement 10.5.1: twelve months.
    Pci,
    /// The EU's AI Act (Regulation 2024/1689), articles 19 and 26: six months.
    EuAiAct,
}

impl Profile {
    const ALL: [Self; 2] = [Self::Pci, Self::EuAiAct];

    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::EuAiAct => "eu-ai-act",
        }
    }

    /// The fewest days that it allows.
    pub fn floor_days(self) -> u32 {
        match self {
            Self::Pci => 365,
            Self::EuAiAct => 183,
        }
    }
}

fn profile<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Profile>, D::Error> {
    let name = String::deserialize(deserializer)?;
    match Profile::ALL.into_iter().find(|profile| profile.name() == name) {
        _ if name.is_empty() => Ok(None),
        Some(profile) => Ok(Some(profile)),
        None => {
            let allowed = Profile::ALL.map(Profile::name).join(", ");
            Err(serde::de::Error::custom(format!("retention.profile is {name:?}, allowed are {allowed}, or empty")))
        }
    }
}

impl RetentionConfig {
    /// Refuses a period under the floor, and one that could not be kept to.
    pub(crate) fn check(&self, url: &DatabaseUrl, database: &DatabaseConfig) -> Result<(), ConfigError> {
        let refused = |why: String| Err(ConfigError::Refused(why));
        let on_sqlite = url.sqlite_path().is_some();
        if on_sqlite && self.database_url.is_some() {
            return refused("retention.database_url is set, which is for PostgreSQL only".to_owned());
        }
        if self.database_url.as_ref().is_some_and(|url| url.sqlite_path().is_some()) {
            return refused(
                "retention.database_url is a SQLite file, allowed is postgres://USER@HOST/DATABASE".to_owned(),
            );
        }
        let Some(days) = self.days else { return Ok(()) };
        if let Some(profile) = self.profile.filter(|profile| days.get() < profile.floor_days()) {
            let (name, floor) = (profile.name(), profile.floor_days());
            return refused(format!("retention.days is {days}, allowed by profile {name} are {floor} and above"));
        }
        if self.archive(url).is_none() {
            return refused(format!(
                "retention.days is {days}, and retention.archive is empty: nothing is removed that is not in an archive"
            ));
        }
        if !on_sqlite && self.database_url.is_none() && database.migrator_url.is_some() {
            return refused(format!(
                "retention.days is {days}, and retention.database_url is not set: with database.migrator_url the account \
                 of database_url removes nothing"
            ));
        }
        Ok(())
    }

    /// Where entries go, if there is such a place.
    pub(crate) fn archive(&self, url: &DatabaseUrl) -> Option<String> {
        let beside =
            || url.sqlite_path().map(|path| path.with_added_extension("archive").to_string_lossy().into_owned());
        if self.archive.is_empty() { beside() } else { Some(self.archive.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, config: RetentionConfig) -> Result<(), String> {
        config.check(&DatabaseUrl::new(url).unwrap(), &DatabaseConfig::default()).map_err(|error| error.to_string())
    }

    fn days(days: u32, profile: Option<Profile>) -> RetentionConfig {
        RetentionConfig { days: NonZeroU32::new(days), profile, ..RetentionConfig::default() }
    }

    #[test]
    fn a_period_under_the_floor_is_refused_with_the_reason() {
        const SQLITE: &str = "sqlite://audit.db";
        for allowed in [days(1, None), days(365, Some(Profile::Pci)), days(183, Some(Profile::EuAiAct)), days(0, None)]
        {
            check(SQLITE, allowed).unwrap();
        }
        check(SQLITE, days(0, Some(Profile::Pci))).unwrap();
        let why = check(SQLITE, days(364, Some(Profile::Pci))).unwrap_err();
        assert!(why.contains("retention.days is 364") && why.contains("pci are 365 and above"), "{why}");
        let why = check(SQLITE, days(182, Some(Profile::EuAiAct))).unwrap_err();
        assert!(why.contains("eu-ai-act are 183 and above"), "{why}");
    }

    #[test]
    fn on_postgres_there_is_an_archive_and_an_account_that_removes() {
        const POSTGRES: &str = "postgres://a@localhost/audit";
        let why = check(POSTGRES, days(400, None)).unwrap_err();
        assert!(why.contains("retention.archive is empty"), "{why}");
        let config = RetentionConfig { archive: "/srv/archive".into(), ..days(400, None) };
        check(POSTGRES, config.clone()).unwrap();
        let url = DatabaseUrl::new(POSTGRES).unwrap();
        let database = DatabaseConfig { migrator_url: Some(url.clone()), ..DatabaseConfig::default() };
        let why = config.check(&url, &database).unwrap_err().to_string();
        assert!(why.contains("retention.database_url is not set"), "{why}");
        RetentionConfig { database_url: Some(url.clone()), ..config }.check(&url, &database).unwrap();
        let why = check("sqlite://a.db", RetentionConfig { database_url: Some(url), ..days(1, None) }).unwrap_err();
        assert!(why.contains("for PostgreSQL only"), "{why}");
    }

    #[test]
    fn the_table_is_read() {
        let env = [("AUDIT_RETENTION__DAYS", "400"), ("AUDIT_RETENTION__PROFILE", "pci")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config: crate::Config = service_core::config::load(crate::ENV_PREFIX, None, env).unwrap();
        assert_eq!(config.retention, days(400, Some(Profile::Pci)));
        let wrong = [("AUDIT_RETENTION__PROFILE".to_owned(), "hipaa".to_owned())];
        let why = service_core::config::load::<crate::Config>(crate::ENV_PREFIX, None, wrong).unwrap_err().to_string();
        assert!(why.contains("hipaa") && why.contains("allowed are pci, eu-ai-act"), "{why}");
    }
}
