//! By which of their values the requests of a resource are told.
//!
//! | resource | a request's | its value is |
//! | --- | --- | --- |
//! | `model` | provider and served model | the id as `provider/model`, or the model alone by id or name |
//! | `provider`, `team`, `user`, `api_key` | the same | the id, or the name |
//! | `instance` | instance | the same |
//! | any other | | nothing: requests are not told apart by it |
//!
//! A platform names things in its own way, and a model's name may hold a slash itself: `openai/gpt-4o` is
//! the model `gpt-4o` of `openai`, or a model of that name of another provider. Which it is, is seen by
//! what the requests have: all readings are looked up together, and the first that any request has is
//! taken, in the order above.

use activity_proto::audit::v1::Resource;

use crate::{Dimension, UsageFilter};

/// Values that a request must have, all of them.
pub(super) type Values = Vec<(Dimension, String)>;

/// A resource that requests are told apart by.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub(super) resource: &'a Resource,
    /// What to look it up by; the last is what its names are of.
    pub(super) dimensions: &'static [Dimension],
}

impl<'a> Subject<'a> {
    pub(super) fn of(resource: &'a Resource) -> Option<Self> {
        let dimensions: &[Dimension] = match resource.r#type.as_str() {
            "model" => &[Dimension::Provider, Dimension::Model],
            "provider" => &[Dimension::Provider],
            "team" => &[Dimension::Team],
            "user" => &[Dimension::User],
            "api_key" => &[Dimension::ApiKey],
            "instance" => &[Dimension::Instance],
            _ => return None,
        };
        Some(Self { resource, dimensions })
    }

    /// All that requests may call it.
    pub(super) fn names(&self) -> Vec<&'a str> {
        let Resource { id, name, .. } = self.resource;
        let mut names = vec![id.as_str()];
        for other in [Some(name.as_str()), self.behind_slash()].into_iter().flatten() {
            if !other.is_empty() && !names.contains(&other) {
                names.push(other);
            }
        }
        names
    }

    /// Requests that have any of its names.
    pub(super) fn any(&self, scope: UsageFilter) -> UsageFilter {
        let last = self.dimensions.last().copied().unwrap_or_default();
        self.names().into_iter().fold(self.scoped(scope), |filter, name| with(filter, last, name))
    }

    /// Requests that have these values.
    pub(super) fn exactly(&self, values: &Values, scope: UsageFilter) -> UsageFilter {
        values.iter().fold(self.scoped(scope), |filter, (dimension, value)| with(filter, *dimension, value))
    }

    /// An instance is asked for by itself, wherever its entry is.
    fn scoped(&self, scope: UsageFilter) -> UsageFilter {
        if self.dimensions == [Dimension::Instance] { UsageFilter::new() } else { scope }
    }

    /// Of a model's id, what would be its name if the rest were its provider's.
    fn behind_slash(&self) -> Option<&'a str> {
        self.resource.id.split_once('/').filter(|_| self.is_model()).map(|(_, model)| model)
    }

    fn is_model(&self) -> bool {
        self.dimensions.len() == 2
    }

    /// Whether it takes the requests to know what they call it.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.is_model() || self.names().len() > 1
    }

    /// Which of its readings the requests have, whose groups these are.
    pub(super) fn choose(&self, groups: &[Vec<String>]) -> Values {
        let readings = self.readings(groups);
        let fits = |values: &&Values| groups.iter().any(|group| self.has(group, values));
        readings.iter().find(fits).or(readings.first()).cloned().unwrap_or_default()
    }

    fn has(&self, group: &[String], values: &Values) -> bool {
        let value = |dimension| self.dimensions.iter().zip(group).find(|(of, _)| **of == dimension).map(|(_, v)| v);
        values.iter().all(|(dimension, expected)| value(*dimension) == Some(expected))
    }

    /// The first first.
    fn readings(&self, groups: &[Vec<String>]) -> Vec<Values> {
        let last = self.dimensions.last().copied().unwrap_or_default();
        let alone = |name: &str| vec![(last, name.to_owned())];
        let Resource { id, name, .. } = self.resource;
        let mut readings = Vec::new();
        if self.is_model() {
            let of = |provider: &str, model: &str| {
                vec![(Dimension::Provider, provider.to_owned()), (Dimension::Model, model.to_owned())]
            };
            // A provider's name may have a slash, too.
            let by_group = groups.iter().filter_map(|group| match group.as_slice() {
                [provider, model] if format!("{provider}/{model}") == *id => Some(of(provider, model)),
                _ => None,
            });
            readings.extend(by_group);
            if let Some((provider, model)) = id.split_once('/') {
                readings.push(of(provider, model));
                readings.push(alone(id));
                readings.push(of(provider, name));
            }
        }
        readings.push(alone(id));
        // A provider's model is not another provider's.
        if self.behind_slash() != Some(name.as_str()) {
            readings.push(alone(name));
        }
        readings.retain(|values| values.iter().all(|(_, value)| !value.is_empty()));
        readings
    }

    /// What entries may call it beside its id and name, which the requests have told.
    pub(super) fn also_known_as(&self, values: &Values, groups: &[Vec<String>]) -> Vec<String> {
        /// Of one model that many providers serve.
        const MOST: usize = 20;
        if !self.is_model() {
            return Vec::new();
        }
        let of_it = groups.iter().filter(|group| self.has(group, values));
        of_it.take(MOST).map(|group| group.join("/")).collect()
    }
}

fn with(filter: UsageFilter, dimension: Dimension, value: &str) -> UsageFilter {
    match dimension {
        Dimension::Provider => filter.provider(value),
        Dimension::Model => filter.model(value),
        Dimension::Team => filter.team(value),
        Dimension::User => filter.user(value),
        Dimension::ApiKey => filter.api_key(value),
        Dimension::Instance => filter.instance(value),
        // No resource is told by these.
        Dimension::Status | Dimension::Unspecified => filter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(kind: &str, id: &str, name: &str) -> Resource {
        Resource { r#type: kind.into(), id: id.into(), name: name.into() }
    }

    fn chosen(resource: &Resource, groups: &[&[&str]]) -> String {
        let groups: Vec<Vec<String>> =
            groups.iter().map(|group| group.iter().map(|value| (*value).to_owned()).collect()).collect();
        let values = Subject::of(resource).unwrap().choose(&groups);
        let text = |(dimension, value): &(Dimension, String)| format!("{dimension:?}={value}");
        values.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn model_is_read_as_the_requests_have_it() {
        let gpt = resource("model", "openai/gpt-4o", "GPT-4o");
        let both = [&["azure", "gpt-4o"][..], &["openai", "gpt-4o"], &["router", "openai/gpt-4o"]];
        assert_eq!(chosen(&gpt, &both), "Provider=openai Model=gpt-4o");
        assert_eq!(chosen(&gpt, &[&["router", "openai/gpt-4o"]]), "Model=openai/gpt-4o");
        assert_eq!(chosen(&gpt, &[&["openai", "GPT-4o"]]), "Provider=openai Model=GPT-4o");
        assert_eq!(chosen(&gpt, &[&["azure", "GPT-4o"]]), "Model=GPT-4o");
        // Another provider's model of that name is another model.
        assert_eq!(chosen(&gpt, &[&["azure", "gpt-4o"]]), "Provider=openai Model=gpt-4o");
        let azure = resource("model", "azure/gpt-4o", "gpt-4o");
        assert_eq!(chosen(&azure, &[&["openai", "gpt-4o"]]), "Provider=azure Model=gpt-4o");
        assert_eq!(chosen(&gpt, &[]), "Provider=openai Model=gpt-4o");
        let llama = resource("model", "self/hosted/meta/llama", "");
        assert_eq!(chosen(&llama, &[&["self/hosted", "meta/llama"]]), "Provider=self/hosted Model=meta/llama");
        let plain = resource("model", "m-17", "gpt-4o");
        assert_eq!(chosen(&plain, &[&["openai", "gpt-4o"], &["azure", "gpt-4o"]]), "Model=gpt-4o");
        assert_eq!(chosen(&plain, &[]), "Model=m-17");
    }

    #[test]
    fn others_go_by_their_id_and_then_their_name() {
        let user = resource("user", "usr_1", "ada@example.com");
        assert_eq!(chosen(&user, &[&["ada@example.com"], &["usr_1"]]), "User=usr_1");
        assert_eq!(chosen(&user, &[&["ada@example.com"]]), "User=ada@example.com");
        assert_eq!(chosen(&user, &[]), "User=usr_1");
        assert_eq!(chosen(&resource("api_key", "k/1", ""), &[]), "ApiKey=k/1");
        assert!(Subject::of(&resource("sso", "okta", "")).is_none());
    }

    #[test]
    fn entries_are_looked_for_by_what_requests_call_it() {
        let model = resource("model", "gpt-4o", "");
        let subject = Subject::of(&model).unwrap();
        let groups = [["azure", "gpt-4o"], ["openai", "gpt-4o"], ["openai", "gpt-4o-mini"]];
        let groups = groups.map(|group| group.map(str::to_owned).to_vec());
        assert_eq!(subject.also_known_as(&subject.choose(&groups), &groups), ["azure/gpt-4o", "openai/gpt-4o"]);
    }
}
