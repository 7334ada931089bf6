//! Nothing shines through: random usage of several instances and users, random callers,
//! random questions, over TLS with real tokens.
//!
//! ```text
//! one world      what the caller may see + what it may not        ┐ the same answers, codes,
//! another world  what the caller may see + something else instead ┘ texts and sizes
//!                └── and they are those of the naive reference ──┘
//! ```

use std::collections::BTreeSet;

use activity_proto::common::v1::Producer;
use activity_proto::usage::v1 as proto;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use prost_types::Timestamp;
use proto::{Dimension, ExportFormat, ExportShape, RequestStatus};
use serde_json::Value;
use tonic::Status;

use crate::harness::{NOON, at, id, range};
use crate::secured::{Authorized, Client, Secured};

const INSTANCES: [&str; 3] = ["eu", "us", "lab"];
const USERS: [&str; 4] = ["ada", "bob", "eve", ""];
const SPAN: i64 = 40_000;

/// A caller, and what it may see.
#[derive(Debug, Clone, Copy)]
struct Principal {
    subject: &'static str,
    role: &'static str,
    instances: &'static [&'static str],
}

const PRINCIPALS: [Principal; 6] = [
    Principal { subject: "ada", role: "member", instances: &["eu"] },
    Principal { subject: "bob", role: "member", instances: &["eu", "us"] },
    // Of whom there is nothing.
    Principal { subject: "new", role: "member", instances: &["*"] },
    Principal { subject: "root", role: "billing_admin", instances: &["us"] },
    Principal { subject: "root", role: "super_admin", instances: &["eu", "us"] },
    Principal { subject: "root", role: "billing_admin", instances: &[] },
];

impl Principal {
    fn sees(&self, event: &proto::UsageEvent) -> bool {
        let instance = self.instances.iter().any(|own| *own == "*" || *own == event.instance_id);
        instance && (self.role != "member" || event.user_id == self.subject)
    }
}

fn events() -> impl Strategy<Value = Vec<proto::UsageEvent>> {
    let names = |names: &'static [&'static str]| select(names).prop_map(str::to_owned);
    let event = (
        names(&INSTANCES),
        names(&USERS),
        names(&["key-1", "key-2", "key-3"]),
        // The last has no price.
        names(&["gpt-4o", "gpt-4o-mini", "no-such-model"]),
        1..=5_i32,
        -SPAN..SPAN,
        (0..5_000_i64, 0..500_i64),
        names(&["", "prod", "test"]),
    )
        .prop_map(|(instance_id, user_id, api_key_id, requested_model, status, seconds, tokens, label)| {
            let tokens = proto::Tokens { input_uncached: Some(tokens.0), output: Some(tokens.1), ..Default::default() };
            proto::UsageEvent {
                occurred_at: Some(Timestamp::from(at(NOON + seconds))),
                instance_id,
                user_id,
                team_id: "team".into(),
                api_key_id,
                provider: "openai".into(),
                requested_model,
                status,
                tokens: Some(tokens),
                labels: (!label.is_empty()).then(|| ("env".to_owned(), label)).into_iter().collect(),
                ..Default::default()
            }
        });
    prop::collection::vec(event, 120..200)
}

/// Ids of their own, counted from `first`.
fn with_ids(events: Vec<proto::UsageEvent>, first: u64) -> Vec<proto::UsageEvent> {
    let seconds = |event: &proto::UsageEvent| event.occurred_at.unwrap().seconds;
    events
        .into_iter()
        .zip(first..)
        .map(|(event, n)| proto::UsageEvent { id: id(seconds(&event), n), ..event })
        .collect()
}

/// A service that holds these, numbered by one producer.
async fn world(events: &[proto::UsageEvent]) -> Secured {
    let service = Secured::start(|config| {
        // Some of it is in rollups before it is asked for.
        config.rollup.seal_interval_ms = 5.try_into().unwrap();
    })
    .await;
    let mut writer = service.client(&service.realm.token("w", &["writer"], &["*"])).await;
    for (first, events) in (0_u64..).step_by(40).zip(events.chunks(40)) {
        let numbered = (first..).zip(events.iter().cloned()).map(|(sequence, event)| {
            let producer = Producer { id: "sdk".into(), epoch: 1, sequence: Some(sequence) };
            proto::UsageEvent { producer: Some(producer), ..event }
        });
        let request = proto::RecordUsageRequest { events: numbered.collect() };
        let answer = writer.ingest.record_usage(request).await.unwrap().into_inner();
        assert_eq!((answer.accepted, answer.rejected.len()), (Some(events.len() as u32), 0), "{answer:?}");
    }
    service
}

#[derive(Debug, Clone)]
struct Question {
    rpc: &'static str,
    start: i64,
    end: i64,
    filter: proto::UsageFilter,
    group_by: Vec<i32>,
    order_by: i32,
    limit: i32,
    bucket: i32,
    shape: i32,
}

fn questions() -> impl Strategy<Value = Question> {
    let rpcs =
        ["GetSummary", "ListBreakdown", "GetTimeSeries", "ListRequests", "ListFacets", "ExportUsage", "ExportUsage"];
    let some = |names: Vec<&'static str>| {
        let list = subsequence(names, 0..=2).prop_map(|l| l.into_iter().map(str::to_owned).collect::<Vec<String>>());
        prop_oneof![3 => Just(Vec::new()), 1 => list]
    };
    let labels = prop_oneof![4 => Just(""), 1 => Just("prod")]
        .prop_map(|label| (!label.is_empty()).then(|| ("env".to_owned(), label.to_owned())).into_iter().collect());
    let statuses = prop_oneof![3 => Just(Vec::new()), 1 => Just(vec![RequestStatus::Ok.into()])];
    let filter = (
        some([&INSTANCES[..], &["nowhere"]].concat()),
        some([&USERS[..3], &["nobody"]].concat()),
        some(vec!["key-1", "key-2", "no-key"]),
        some(vec!["gpt-4o", "no-such-model"]),
        statuses,
        labels,
    )
        .prop_map(|(instance_ids, user_ids, api_key_ids, models, statuses, labels)| proto::UsageFilter {
            instance_ids,
            user_ids,
            api_key_ids,
            models,
            statuses,
            labels,
            ..Default::default()
        });
    let dimension = prop_oneof![
        2 => select(vec![Dimension::Model, Dimension::ApiKey]),
        1 => select(vec![Dimension::User, Dimension::Instance, Dimension::Status, Dimension::Team]),
    ];
    let group_by = prop::collection::btree_set(dimension.prop_map(i32::from), 1..=2).prop_map(Vec::from_iter);
    // Whole quarters, and others.
    let edge = prop_oneof![(-40..40_i64).prop_map(|quarter| quarter * 900), -SPAN..SPAN];
    (select(rpcs.to_vec()), edge.clone(), edge, filter, group_by, 0..=3_i32, 1..4_i32, 2..=3_i32, 1..=3_i32).prop_map(
        |(rpc, one, other, filter, group_by, order_by, limit, bucket, shape)| Question {
            rpc,
            start: NOON + one.min(other),
            end: NOON + one.max(other) + 1,
            filter,
            group_by,
            order_by,
            limit,
            bucket,
            shape,
        },
    )
}

/// What somebody hears: everything but the moment of recording, which is the world's own.
async fn ask(client: &mut Client, question: &Question) -> Result<Vec<String>, Status> {
    let Question { rpc, start, end, filter, group_by, order_by, limit, bucket, shape } = question.clone();
    let (time_range, filter) = (range(start, end), Some(filter));
    let query = &mut client.query;
    Ok(match rpc {
        "GetSummary" => {
            let request = proto::GetSummaryRequest { time_range, filter, compare_to_previous: true };
            vec![format!("{:?}", query.get_summary(request).await?.into_inner())]
        }
        "ListBreakdown" => {
            let request = proto::ListBreakdownRequest { time_range, filter, group_by, order_by, limit };
            vec![format!("{:?}", query.list_breakdown(request).await?.into_inner())]
        }
        "GetTimeSeries" => {
            let request = proto::GetTimeSeriesRequest { time_range, filter, bucket, group_by, limit, order_by };
            vec![format!("{:?}", query.get_time_series(request).await?.into_inner())]
        }
        "ListFacets" => {
            let request = proto::ListFacetsRequest { time_range, filter, limit };
            let mut answer = query.list_facets(request).await?.into_inner();
            answer.facets.iter_mut().for_each(|facet| facet.values.truncate(100));
            vec![format!("{answer:?}")]
        }
        "ListRequests" => pages(query, time_range, filter, limit * 10).await?.0,
        _ => {
            let shape = ExportShape::try_from(shape).unwrap();
            let (group_by, order_by, limit) = match shape {
                ExportShape::Requests => Default::default(),
                _ => (group_by, order_by, limit),
            };
            let request = proto::ExportUsageRequest {
                time_range,
                filter,
                shape: shape.into(),
                format: ExportFormat::Jsonl.into(),
                group_by,
                order_by,
                limit,
                bucket: if shape == ExportShape::TimeSeries { bucket } else { 0 },
                ..Default::default()
            };
            export(query.export_usage(request).await?.into_inner()).await?
        }
    })
}

type Query = proto::usage_query_service_client::UsageQueryServiceClient<Authorized>;

/// All pages, and what is on them.
async fn pages(
    query: &mut Query,
    time_range: Option<activity_proto::common::v1::TimeRange>,
    filter: Option<proto::UsageFilter>,
    page_size: i32,
) -> Result<(Vec<String>, Vec<proto::UsageRequest>), Status> {
    let (mut heard, mut found) = (Vec::new(), Vec::new());
    let mut page_token = String::new();
    loop {
        let (time_range, filter) = (time_range.clone(), filter.clone());
        let request = proto::ListRequestsRequest { time_range, filter, page_size, page_token };
        let mut page = query.list_requests(request).await?.into_inner();
        page.requests.iter_mut().for_each(|request| request.recorded_at = None);
        page_token = std::mem::take(&mut page.next_page_token);
        heard.push(format!("{page:?}, {} bytes of token", page_token.len()));
        found.extend(page.requests);
        if page_token.is_empty() {
            return Ok((heard, found));
        }
    }
}

async fn export(mut chunks: tonic::Streaming<proto::ExportUsageResponse>) -> Result<Vec<String>, Status> {
    use proto::export_usage_response::Part;
    let mut heard = Vec::new();
    while let Some(message) = chunks.message().await? {
        match message.part.unwrap() {
            Part::Chunk(chunk) => {
                heard.push(format!("{} bytes, {} of token", chunk.data.len(), chunk.resume_token.len()));
                for line in chunk.data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let mut line: Value = serde_json::from_slice(line).unwrap();
                    line.as_object_mut().unwrap().remove("recordedAt");
                    heard.push(line.to_string());
                }
            }
            Part::End(end) => {
                // Over the moments of recording too.
                assert_eq!(end.sha256.len(), 32);
                heard.push(format!("{:?}", proto::ExportEnd { sha256: Vec::new(), ..end }));
            }
        }
    }
    Ok(heard)
}

fn ended(heard: Result<Vec<String>, Status>) -> Result<Vec<String>, String> {
    heard.map_err(|status| format!("{:?} {} {:?}", status.code(), status.message(), status.details()))
}

fn is_asked(request: &proto::UsageRequest, question: &Question) -> bool {
    let filter = &question.filter;
    let one_of = |list: &[String], value: &String| list.is_empty() || list.contains(value);
    let at = request.occurred_at.unwrap().seconds;
    (question.start..question.end).contains(&at)
        && one_of(&filter.instance_ids, &request.instance_id)
        && one_of(&filter.user_ids, &request.user_id)
        && one_of(&filter.api_key_ids, &request.api_key_id)
        && one_of(&filter.models, &request.model)
        && (filter.statuses.is_empty() || filter.statuses.contains(&request.status))
        && filter.labels.iter().all(|(key, value)| request.labels.get(key) == Some(value))
}

/// Whole nano-dollars.
fn nanos(cost: &str) -> i128 {
    let (whole, part) = cost.split_once('.').unwrap_or((cost, ""));
    format!("{whole}{part:0<9}").parse().unwrap()
}

/// The summary of requests, added up one by one.
fn assert_summary(summary: &proto::Metrics, of: &[&proto::UsageRequest], question: &Question) {
    let distinct = |key: fn(&proto::UsageRequest) -> &String| {
        of.iter().map(|request| key(request)).filter(|key| !key.is_empty()).collect::<BTreeSet<_>>().len() as u64
    };
    let count = |is: fn(&proto::UsageRequest) -> bool| of.iter().filter(|request| is(request)).count() as u64;
    let tokens: i64 = of.iter().map(|request| request.total_tokens.unwrap()).sum();
    let cost: i128 = of.iter().filter_map(|request| request.cost.as_deref()).map(nanos).sum();
    assert_eq!(summary.requests, Some(of.len() as u64), "{question:?}");
    assert_eq!(summary.failed_requests, Some(count(|r| r.status() != RequestStatus::Ok)), "{question:?}");
    assert_eq!(summary.total_tokens, Some(tokens as u64), "{question:?}");
    assert_eq!(nanos(summary.cost()), cost, "{question:?}");
    assert_eq!(summary.unpriced_requests, Some(count(|r| r.cost.is_none())), "{question:?}");
    assert_eq!(summary.unique_users, Some(distinct(|r| &r.user_id)), "{question:?}");
    assert_eq!(summary.unique_models, Some(distinct(|r| &r.model)), "{question:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worlds_that_differ_in_what_a_caller_may_not_see_are_the_same_to_it_and_as_the_reference_says() {
    let mut runner = TestRunner::deterministic();
    let (mut answered, mut refused) = (0, 0);
    for principal in PRINCIPALS {
        let drawn = with_ids(events().new_tree(&mut runner).unwrap().current(), 0);
        let others = with_ids(events().new_tree(&mut runner).unwrap().current(), 1_000);
        // The same where it sees, in the same order; something else, or nothing, where it doesn't.
        let mut others = others.into_iter().filter(|event| !principal.sees(event));
        let mut elsewhere = Vec::new();
        for event in &drawn {
            match principal.sees(event) {
                true => elsewhere.push(event.clone()),
                false => elsewhere.extend(others.next().filter(|_| !elsewhere.len().is_multiple_of(3))),
            }
        }
        elsewhere.extend(others);
        let (one, other) = tokio::join!(world(&drawn), world(&elsewhere));
        let token = |service: &Secured| service.realm.token(principal.subject, &[principal.role], principal.instances);
        let mut here = one.client(&token(&one)).await;
        let mut there = other.client(&token(&other)).await;

        let mut admin = one.client(&one.realm.token("admin", &["super_admin"], &["*"])).await;
        let everything = range(NOON - 86_400, NOON + 86_400);
        let (_, everything) = pages(&mut admin.query, everything, None, 1_000).await.unwrap();
        assert_eq!(everything.len(), drawn.len());
        assert!(everything.iter().all(|request| request.producer.is_some()));
        let visible: BTreeSet<&str> =
            drawn.iter().filter(|event| principal.sees(event)).map(|event| event.id.as_str()).collect();

        for _ in 0..60 {
            let question = questions().new_tree(&mut runner).unwrap().current();
            let heard = ended(ask(&mut here, &question).await);
            assert_eq!(heard, ended(ask(&mut there, &question).await), "{principal:?} {question:?}");
            match heard {
                Ok(_) => answered += 1,
                Err(status) => {
                    assert!(status.starts_with("PermissionDenied"), "{status}");
                    refused += 1;
                    continue;
                }
            }
            let (time_range, filter) = (range(question.start, question.end), Some(question.filter.clone()));
            let expected: Vec<&proto::UsageRequest> = everything
                .iter()
                .filter(|request| visible.contains(request.id.as_str()) && is_asked(request, &question))
                .collect();
            let summary = proto::GetSummaryRequest { time_range: time_range.clone(), filter, ..Default::default() };
            let answer = here.query.get_summary(summary).await.unwrap().into_inner();
            assert_summary(&answer.summary.unwrap(), &expected, &question);
            let (_, found) = pages(&mut here.query, time_range, Some(question.filter.clone()), 7).await.unwrap();
            let ids = |requests: &[&proto::UsageRequest]| requests.iter().map(|r| r.id.clone()).collect::<Vec<_>>();
            assert_eq!(ids(&found.iter().collect::<Vec<_>>()), ids(&expected), "{principal:?} {question:?}");
            assert!(found.iter().all(|request| request.producer.is_none()), "{question:?}");
        }
        tokio::join!(one.stop(), other.stop());
    }
    // Both happen often.
    assert!(answered > 100 && refused > 50, "{answered} {refused}");
}
