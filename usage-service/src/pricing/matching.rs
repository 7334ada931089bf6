//! Which names a rule of the book is for.
//!
//! Names are compared in lower case. Regular expressions search, are not anchored by themselves and
//! see the lower-case name; `\d`, `\w` and `.` are ASCII. They run in time linear in the name: there is no
//! look-around, and `not` says what a negative one would.

use regex::bytes::{Regex, RegexBuilder};

/// A rule as a file states it: `{"any_of": [{"equals": "o3"}, {"starts_with": "o3-"}]}`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Clause {
    Equals(String),
    StartsWith(String),
    EndsWith(String),
    Contains(String),
    Regex(String),
    Not(Box<Clause>),
    AnyOf(Vec<Clause>),
    AllOf(Vec<Clause>),
}

/// A rule that is ready to be asked.
#[derive(Debug)]
pub(super) enum Matcher {
    Equals(Box<str>),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    Contains(Box<str>),
    Regex(Regex),
    Not(Box<Matcher>),
    AnyOf(Vec<Matcher>),
    AllOf(Vec<Matcher>),
}

impl Matcher {
    pub(super) fn compile(clause: &Clause) -> Result<Self, String> {
        let all = |clauses: &[Clause]| -> Result<Vec<Self>, String> {
            if clauses.is_empty() {
                return Err("a list of clauses is empty".to_owned());
            }
            clauses.iter().map(Self::compile).collect()
        };
        let lower = |text: &str| -> Result<Box<str>, String> {
            if text.is_empty() {
                return Err("the text to compare with is empty".to_owned());
            }
            Ok(text.to_lowercase().into())
        };
        Ok(match clause {
            Clause::Equals(text) => Self::Equals(lower(text)?),
            Clause::StartsWith(text) => Self::StartsWith(lower(text)?),
            Clause::EndsWith(text) => Self::EndsWith(lower(text)?),
            Clause::Contains(text) => Self::Contains(lower(text)?),
            Clause::Regex(pattern) => Self::Regex(compile_regex(pattern)?),
            Clause::Not(clause) => Self::Not(Box::new(Self::compile(clause)?)),
            Clause::AnyOf(clauses) => Self::AnyOf(all(clauses)?),
            Clause::AllOf(clauses) => Self::AllOf(all(clauses)?),
        })
    }

    /// `name` is in lower case.
    pub(super) fn is_match(&self, name: &str) -> bool {
        match self {
            Self::Equals(text) => name == &**text,
            Self::StartsWith(text) => name.starts_with(&**text),
            Self::EndsWith(text) => name.ends_with(&**text),
            Self::Contains(text) => name.contains(&**text),
            Self::Regex(regex) => regex.is_match(name.as_bytes()),
            Self::Not(clause) => !clause.is_match(name),
            Self::AnyOf(clauses) => clauses.iter().any(|c| c.is_match(name)),
            Self::AllOf(clauses) => clauses.iter().all(|c| c.is_match(name)),
        }
    }

    /// Gives `exact` each name that this rule matches literally. Returns whether it matches others
    /// too, so that it has to be asked.
    pub(super) fn literals<'a>(&'a self, exact: &mut impl FnMut(&'a str)) -> bool {
        match self {
            Self::Equals(text) => {
                exact(text);
                false
            }
            // Counted to the end: every clause has its literals to give.
            Self::AnyOf(clauses) => clauses.iter().filter(|clause| clause.literals(exact)).count() > 0,
            _ => true,
        }
    }
}

/// Without Unicode classes a pattern compiles some fifty times faster, and model names are ASCII.
fn compile_regex(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).unicode(false).size_limit(1 << 20).build();
    built.map_err(|cause| {
        // The parser's message draws a picture over several lines; its last line is the sentence.
        let cause = cause.to_string();
        let sentence = cause.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("regex {pattern:?}: {sentence} (look-around is said with a \"not\" clause)")
    })
}

/// Writes compact dates within a model's name apart, `gpt-5.2-20251211` as `gpt-5.2-2025-12-11`:
/// some routers send the former, some rules know only the latter. None when there is none.
pub(super) fn with_dashed_dates(name: &str) -> Option<String> {
    let mut changed: Option<String> = None;
    let mut copied = 0;
    for (at, _) in name.match_indices('-') {
        let Some((digits, rest)) = name.get(at + 1..).and_then(|tail| tail.split_at_checked(8)) else {
            continue;
        };
        if is_date(digits) && (rest.is_empty() || rest.starts_with(['-', ':'])) {
            let out = changed.get_or_insert_default();
            out.push_str(&name[copied..=at]);
            let (year, month_day) = digits.split_at(4);
            let (month, day) = month_day.split_at(2);
            out.push_str(&format!("{year}-{month}-{day}"));
            copied = at + 9;
        }
    }
    changed.map(|mut out| {
        out.push_str(&name[copied..]);
        out
    })
}

/// Whether eight characters are a day of this century, `YYYYMMDD`.
fn is_date(digits: &str) -> bool {
    digits.starts_with("20")
        && digits.bytes().all(|b| b.is_ascii_digit())
        && chrono::NaiveDate::parse_from_str(digits, "%Y%m%d").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(json: &str) -> Result<Matcher, String> {
        let clause: Clause = serde_json::from_str(json).map_err(|e| e.to_string())?;
        Matcher::compile(&clause)
    }

    #[test]
    fn clauses_combine() {
        let rule = matcher(
            r#"{"any_of":[{"equals":"GPT-4"},{"all_of":[{"starts_with":"gemini"},{"not":{"regex":"-[tT]ts(?:$|-)"}}]}]}"#,
        )
        .unwrap();
        for (name, expected) in [
            ("gpt-4", true),
            ("gpt-4o", false),
            ("gemini-2", true),
            ("gemini-2-tts", false),
            ("gemini-tts-x", false),
            ("gemini-ttsx", true),
        ] {
            assert_eq!(rule.is_match(name), expected, "{name}");
        }
    }

    #[test]
    fn a_rule_that_cannot_be_is_refused() {
        for (json, part) in [
            (r#"{"regex":"^(?!x)"}"#, "look-around"),
            (r#"{"regex":"("}"#, "unclosed group"),
            (r#"{"any_of":[]}"#, "empty"),
            (r#"{"equals":""}"#, "empty"),
            (r#"{"is":"x"}"#, "unknown variant"),
        ] {
            let refusal = matcher(json).unwrap_err();
            assert!(refusal.contains(part), "{json}: {refusal}");
        }
    }

    #[test]
    fn compact_dates_are_written_apart() {
        for (name, expected) in [
            ("gpt-5.2-20251211", Some("gpt-5.2-2025-12-11")),
            ("a-20251211-b-20240229:free", Some("a-2025-12-11-b-2024-02-29:free")),
            ("a-20230229", None),
            ("a-20251311", None),
            ("a-19991211", None),
            ("a-202512110", None),
            ("a20251211", None),
            ("a-2025-12-11", None),
            ("é-20251211", Some("é-2025-12-11")),
            ("a-2025121é", None),
            ("", None),
        ] {
            assert_eq!(with_dashed_dates(name).as_deref(), expected, "{name}");
        }
    }
}
