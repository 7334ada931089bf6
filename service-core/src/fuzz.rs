//! What holds of any bytes: bodies that run under proptest in every run of the tests,
//! and under a fuzzer in `fuzz/`. None may panic but by its own assertions.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use testkit::{assert_cell, assert_harmless, csv_rows};

use crate::config;
use crate::csv::push_cell;
use crate::error::{Error, Reason};
use crate::page::{MAX_TOKEN_BYTES, Sealer};

/// Cells of one line: a reader gets as many, and of each its text.
pub fn cells(texts: &[&str]) {
    let mut line = String::new();
    for (at, text) in texts.iter().enumerate() {
        if at > 0 {
            line.push(',');
        }
        push_cell(&mut line, text);
    }
    line.push_str("\r\n");
    let rows = csv_rows(&line).unwrap_or_default();
    let [cells] = rows.as_slice() else { panic!("{} rows in {line:?}", rows.len()) };
    assert_eq!(cells.len(), texts.len().max(1), "{line:?}");
    cells.iter().zip(texts).for_each(|(cell, text)| assert_cell(cell, text));
    let given: usize = texts.iter().map(|text| text.len()).sum();
    assert!(line.len() <= 2 * given + 4 * texts.len() + 2, "{} bytes of {given}", line.len());
}

/// Any text as a token, and any payload in one: what was not sealed for a query does not
/// open for it, and what was is there again.
pub fn tokens(text: &str, payload: &[u8]) {
    let (sealer, query) = (Sealer::new([7; 32]), [1; 32]);
    let refused = |token: &str, query: &[u8; 32]| match sealer.open_field("resume_token", "list", query, token) {
        Ok(opened) => panic!("{token:?} opened, with {opened:?}"),
        Err(Error::Invalid(violation)) => {
            assert_eq!((violation.reason, violation.field.as_str()), (Reason::InvalidPageToken, "resume_token"));
            testkit::assert_refusal(&violation.field, &violation.message);
        }
        Err(error) => panic!("{error:?}"),
    };
    refused(text, &query);
    let token = sealer.seal("list", &query, payload);
    assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{token}");
    match sealer.open_field("resume_token", "list", &query, &token) {
        Ok(opened) => assert_eq!(opened, payload),
        // Longer ones are not read.
        Err(_) => assert!(token.len() > MAX_TOKEN_BYTES),
    }
    refused(&token, &[2; 32]);
    // Whatever is put in the place of a character: another token.
    if let Some((at, letter)) = text.char_indices().find(|(at, _)| *at < token.len()) {
        let changed = format!("{}{letter}{}", &token[..at], &token[at + 1..]);
        if changed != token {
            refused(&changed, &query);
        }
    }
}

/// A secret that stands in every configuration that a body reads.
const SECRET: &str = "hunter2-of-thirty-two-bytes-and-more";

/// Any text as a configuration's file, and any variable: understood, or refused in one
/// line that names where and holds no secret. Returns whether it was understood.
pub fn configuration<T: DeserializeOwned + Debug>(prefix: &str, text: &str, variable: (&str, &str)) -> bool {
    let variables = || {
        [
            (format!("{prefix}_{}", variable.0), variable.1.to_owned()),
            (format!("{prefix}_AUTH__HS256_SECRET"), SECRET.to_owned()),
            (format!("{prefix}_DATABASE_URL"), format!("postgres://me:{SECRET}@db/activity")),
        ]
    };
    let path = std::path::Path::new("service.toml");
    match config::read_all::<T>(prefix, Some((path, text)), variables()) {
        Ok(config) => {
            assert!(!format!("{config:?}").contains(SECRET), "a secret is shown");
            true
        }
        Err(error) => {
            let why = error.to_string();
            assert!(!why.contains(SECRET) && !format!("{error:?}").contains(SECRET), "a secret is told: {why}");
            assert!(["configuration", "environment"].iter().any(|begin| why.starts_with(begin)), "{why:?}");
            // As long as what the operator wrote, and no more lines than that.
            assert!(why.len() <= 1_024 + 4 * (text.len() + variable.0.len() + variable.1.len()), "{why}");
            assert_harmless(&why.chars().filter(|char| *char != '\n').take(200).collect::<String>());
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::config::{AuthConfig, DatabaseUrl, LimitsConfig, ServerConfig, TelemetryConfig};

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Config {
        database_url: Option<DatabaseUrl>,
        server: ServerConfig,
        auth: AuthConfig,
        limits: LimitsConfig,
        telemetry: TelemetryConfig,
    }

    const LINES: [&str; 14] = [
        "[server]",
        "[auth]",
        "[limits]",
        "[telemetry]",
        "max_calls = 5",
        "max_calls = -1",
        "max_calls = \"5\"",
        "issuer = \"https://login.example.com\"",
        "audiences = [\"a\"]",
        "hs256_secret = \"hunter2-of-thirty-two-bytes-and-more\"",
        "hs256_secret = { a = \"hunter2-of-thirty-two-bytes-and-more\" }",
        "database_url = \"postgres://me:hunter2-of-thirty-two-bytes-and-more@db/x\"",
        "nonsense = 1",
        "log = \"info\"",
    ];

    const NAMES: [&str; 8] = [
        "SERVER__MAX_CALLS",
        "SERVER",
        "AUTH__AUDIENCES",
        "TELEMETRY__LOG",
        "LIMITS__CALLS_PER_CALLER",
        "DATABASE_URL__X",
        "__",
        "AUTH__HS256_SECRET__X",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

        #[test]
        fn cells_come_back_and_are_inert(texts in proptest::collection::vec("[ =+@\"',;\t\r\n\u{feff}＝a-]{0,6}|\\PC{0,20}", 0..6)) {
            cells(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        }

        #[test]
        fn only_what_was_sealed_opens(text in "[A-Za-z0-9_-]{0,80}|.{0,40}", payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            tokens(&text, &payload);
        }

        #[test]
        fn configurations_are_understood_or_refused_without_their_secrets(
            lines in proptest::collection::vec(proptest::sample::select(&LINES[..]), 0..6),
            name in proptest::sample::select(&NAMES[..]),
            value in "[0-9]{0,3}|\\[\"a\"\\]|.{0,30}",
            rubbish in ".{0,30}",
        ) {
            configuration::<Config>("TEST", &lines.join("\n"), (name, &value));
            configuration::<Config>("TEST", &rubbish, (&rubbish, &value));
        }
    }

    #[test]
    fn a_configuration_can_be_understood() {
        assert!(configuration::<Config>("TEST", "[server]\nmax_calls = 5", ("LIMITS__CALLS_PER_CALLER", "7")));
        assert!(!configuration::<Config>("TEST", "[server]\nmax_calls = 0", ("X", "")));
    }
}
