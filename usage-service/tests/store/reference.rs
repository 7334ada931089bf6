//! What the answers must be: computed from a list of requests, one by one, with
//! nothing of the service's own aggregation.

use std::collections::{BTreeMap, BTreeSet};

use usage_service::answer::{Group, Metrics, Totals};
use usage_service::model::{Dimension, Filter, Metric, NewRequest, Scope, Status, Tokens};

pub(crate) fn within<'a>(all: &'a [NewRequest], scope: &Scope) -> Vec<&'a NewRequest> {
    all.iter().filter(|request| is_in(request, scope)).collect()
}

fn is_in(request: &NewRequest, scope: &Scope) -> bool {
    let event = &request.event;
    let Filter { instance_ids, user_ids, team_ids, api_key_ids, providers, models, statuses, labels } = &scope.filter;
    let one_of = |list: &[String], value: &str| list.is_empty() || list.iter().any(|wanted| wanted == value);
    let access = &scope.access;
    access.has_instance(&event.instance_id)
        && access.has_user(&event.user_id)
        && scope.start_us <= event.occurred_at_us
        && event.occurred_at_us < scope.end_us
        && one_of(instance_ids, &event.instance_id)
        && one_of(user_ids, &event.user_id)
        && one_of(team_ids, &event.team_id)
        && one_of(api_key_ids, &event.api_key_id)
        && one_of(providers, &event.provider)
        && one_of(models, &event.model)
        && (statuses.is_empty() || statuses.contains(&event.status))
        && labels.iter().all(|(key, value)| event.labels.get(key) == Some(value))
}

pub(crate) fn metrics<'a>(requests: impl IntoIterator<Item = &'a NewRequest>) -> Metrics {
    let mut totals = Totals::default();
    let mut users = BTreeSet::new();
    let mut models = BTreeSet::new();
    for request in requests {
        let event = &request.event;
        totals.requests += 1;
        totals.failed_requests += u64::from(event.status != Status::Ok);
        let Tokens {
            input_uncached,
            input_cache_read,
            input_cache_write,
            input_cache_write_1h,
            output,
            output_reasoning,
        } = event.tokens;
        totals.tokens.input_uncached += input_uncached;
        totals.tokens.input_cache_read += input_cache_read;
        totals.tokens.input_cache_write += input_cache_write;
        totals.tokens.input_cache_write_1h += input_cache_write_1h;
        totals.tokens.output += output;
        totals.tokens.output_reasoning += output_reasoning;
        match request.charge.cost_nanos() {
            Some(nanos) => totals.cost_nanos += i128::from(nanos),
            None => {
                totals.unpriced_requests += 1;
                totals.unpriced_tokens += input_uncached + input_cache_read + input_cache_write + output;
            }
        }
        if !event.user_id.is_empty() {
            users.insert(event.user_id.as_str());
        }
        models.insert(event.model.as_str());
    }
    Metrics { totals, unique_users: users.len() as u64, unique_models: models.len() as u64 }
}

pub(crate) fn key(request: &NewRequest, dimension: Dimension) -> String {
    let event = &request.event;
    match dimension {
        Dimension::User => event.user_id.clone(),
        Dimension::Team => event.team_id.clone(),
        Dimension::Model => event.model.clone(),
        Dimension::Provider => event.provider.clone(),
        Dimension::ApiKey => event.api_key_id.clone(),
        Dimension::Instance => event.instance_id.clone(),
        Dimension::Status => event.status.name().to_owned(),
    }
}

/// What an answer of groups over buckets must be.
#[derive(Debug, PartialEq)]
pub(crate) struct Expected {
    pub(crate) rows: Vec<Group>,
    pub(crate) other: Option<Vec<Metrics>>,
    pub(crate) groups: u64,
}

pub(crate) fn ranked(
    requests: &[&NewRequest],
    keys: &[Dimension],
    order_by: Metric,
    limit: usize,
    edges: &[i64],
) -> Expected {
    let mut groups: BTreeMap<Vec<String>, Vec<&NewRequest>> = BTreeMap::new();
    for request in requests {
        let keys = keys.iter().map(|dimension| key(request, *dimension)).collect();
        groups.entry(keys).or_default().push(request);
    }
    let rank = |requests: &[&NewRequest]| {
        let totals = metrics(requests.iter().copied()).totals;
        match order_by {
            Metric::Requests => i128::from(totals.requests),
            Metric::Tokens => i128::from(
                totals.tokens.input_uncached
                    + totals.tokens.input_cache_read
                    + totals.tokens.input_cache_write
                    + totals.tokens.output,
            ),
            Metric::Cost => totals.cost_nanos,
        }
    };
    // In the order of the keys; a stable sort keeps it for ties.
    let mut sorted: Vec<_> = groups.into_iter().collect();
    sorted.sort_by_key(|(_, requests)| std::cmp::Reverse(rank(requests)));
    let count = sorted.len() as u64;
    let rest = sorted.split_off(limit.min(sorted.len()));
    let others: Vec<&NewRequest> = rest.into_iter().flat_map(|(_, requests)| requests).collect();
    Expected {
        rows: sorted.into_iter().map(|(keys, requests)| Group { keys, buckets: buckets(&requests, edges) }).collect(),
        other: (!others.is_empty()).then(|| buckets(&others, edges)),
        groups: count,
    }
}

/// One for each two edges.
pub(crate) fn buckets(requests: &[&NewRequest], edges: &[i64]) -> Vec<Metrics> {
    edges
        .windows(2)
        .map(|edge| {
            let inside = requests.iter().filter(|request| (edge[0]..edge[1]).contains(&request.event.occurred_at_us));
            metrics(inside.copied())
        })
        .collect()
}
