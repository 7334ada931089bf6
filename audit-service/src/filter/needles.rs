//! A cheap look at an entry's canonical JSON that tells most of what a filter does not want, before it is parsed.
//!
//! What a list asks for is a whole JSON string of the text, so an entry without that string is not wanted. What is
//! found is still checked by [`Filter::matches`]: a needle may be met in another member.

use super::{ActionPattern, Filter, OneOf};

/// A longer list is not looked for: parsing costs less.
const MAX_NEEDLES: usize = 8;

/// Of each list one must be in the text, and all words.
#[derive(Debug)]
pub(crate) struct Needles {
    lists: Vec<Vec<String>>,
    words: Vec<String>,
    /// The text in lower case.
    lower: String,
}

impl Needles {
    /// The needles of a filter.
    pub(crate) fn new(filter: &Filter) -> Self {
        let texts = |list: &OneOf<String>| list.values().iter().map(|value| quoted(value)).collect();
        let mut lists: Vec<Vec<String>> = vec![
            texts(&filter.actors),
            texts(&filter.resources),
            texts(&filter.resource_types),
            texts(&filter.instance_ids),
            texts(&filter.changed_paths),
            filter.outcomes.values().iter().map(|outcome| quoted(outcome.name())).collect(),
            filter
                .actions
                .values()
                .iter()
                .map(|pattern| match pattern {
                    ActionPattern::Exact(action) => quoted(action),
                    ActionPattern::Of(resource) => format!("\"{resource}."),
                })
                .collect(),
        ];
        // Absent text is not in the JSON. An action without a dot is its own resource, but there is none.
        let empty = quoted("");
        lists.retain(|list| !list.is_empty() && list.len() <= MAX_NEEDLES && !list.contains(&empty));
        let words = filter.words.iter().filter(|word| word.is_ascii()).cloned().collect();
        Self { lists, words, lower: String::new() }
    }

    /// Whether an entry may be wanted; false only if it is not.
    pub(crate) fn may_match(&mut self, canonical: &str) -> bool {
        self.lists.iter().all(|list| list.iter().any(|needle| canonical.contains(needle.as_str())))
            && self.may_have_words(canonical)
    }

    fn may_have_words(&mut self, canonical: &str) -> bool {
        // Some other characters have ASCII letters as their lower case, and escapes may tell any character.
        if self.words.is_empty() || !canonical.is_ascii() || canonical.contains("\\u") {
            return true;
        }
        self.lower.clear();
        self.lower.push_str(canonical);
        self.lower.make_ascii_lowercase();
        self.words.iter().all(|word| self.lower.contains(word.as_str()))
    }
}

/// The JSON string of a text, as canonical JSON has it. One that could not be made would be met everywhere.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical;
    use crate::event::Outcome;

    fn may_match(filter: &Filter) -> bool {
        let mut entry = canonical::fixtures::full();
        entry.event.actor.id = "a \"quoted\\\" actor".into();
        entry.event.reason = "By TICKET 7".into();
        Needles::new(filter).may_match(&canonical::to_string(&entry))
    }

    #[test]
    fn what_is_not_in_the_text_is_not_wanted() {
        let actors = |id: &str| Filter { actors: OneOf::from_iter([id.to_owned()]), ..Filter::default() };
        assert!(may_match(&actors("a \"quoted\\\" actor")));
        assert!(!may_match(&actors("a \"quoted\\\" acto")));
        let outcomes = |outcome| Filter { outcomes: OneOf::from_iter([outcome]), ..Filter::default() };
        let own = canonical::fixtures::full().event.outcome;
        for outcome in Outcome::ALL {
            assert_eq!(may_match(&outcomes(*outcome)), *outcome == own);
        }
        let paths = Filter { changed_paths: OneOf::from_iter([String::new()]), ..Filter::default() };
        assert!(may_match(&paths));
        let words = |word: &str| Filter { words: vec![word.to_owned()], ..Filter::default() };
        assert!(may_match(&words("ticket")));
        assert!(may_match(&words("zoë")));
    }
}
