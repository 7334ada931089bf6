//! Reading: pages, comparison, limits, refusals.

use activity_proto::common::v1::{Interval, TimeRange, TimeRangePreset, time_range::Range};
use activity_proto::usage::v1::{
    Bucket, Dimension, GetSummaryRequest, GetTimeSeriesRequest, ListBreakdownRequest, ListFacetsRequest,
    ListRequestsRequest, Metric, RequestStatus, Tokens, UsageEvent, UsageFilter,
};
use prost::Message as _;
use prost_types::{Duration, Timestamp};

use crate::harness::{NOON, Service, day, event, id, range, refusal};

/// Walks all pages, with something between each two.
async fn walk(service: &Service, mut request: ListRequestsRequest, mut between: impl AsyncFnMut(usize)) -> Vec<String> {
    let mut ids = Vec::new();
    for page in 0.. {
        let answer = service.query.clone().list_requests(request.clone()).await.unwrap().into_inner();
        ids.extend(answer.requests.into_iter().map(|request| request.id));
        if answer.next_page_token.is_empty() {
            break;
        }
        request.page_token = answer.next_page_token;
        between(page).await;
    }
    ids
}

#[tokio::test]
async fn pages_join_up_whatever_arrives_between_them() {
    let service = Service::start().await;
    // Ties: five requests in each second.
    let tied =
        |n: u64| UsageEvent { id: id(NOON - (n / 5) as i64, n), occurred_at: event(n / 5).occurred_at, ..event(n) };
    service.record_new((0..50).map(tied).collect()).await;
    let mut expected: Vec<_> = (0..50).map(|n| (tied(n).occurred_at.unwrap().seconds, tied(n).id)).collect();
    expected.sort();
    expected.reverse();
    let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();

    let request = ListRequestsRequest { time_range: day(), page_size: 7, ..Default::default() };
    let newer = async |page: usize| {
        // Above what the reader has seen: no page shows it, none is disturbed.
        service
            .record_new(vec![UsageEvent {
                occurred_at: Some(Timestamp { seconds: NOON + 60, nanos: 0 }),
                ..event(1_000 + page as u64)
            }])
            .await;
    };
    assert_eq!(walk(&service, request, newer).await, expected);
}

#[tokio::test]
async fn a_page_keeps_the_window_of_the_first_one() {
    let service = Service::start().await;
    let now = std::time::SystemTime::now();
    let seconds = now.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    let recent = |n: u64| UsageEvent {
        id: id(seconds - 10 - n as i64, n),
        occurred_at: Some(Timestamp { seconds: seconds - 10 - n as i64, nanos: 0 }),
        ..event(n)
    };
    service.record_new((0..4).map(recent).collect()).await;
    let time_range =
        Some(TimeRange { range: Some(Range::Preset(TimeRangePreset::LastHour.into())), time_zone: String::new() });
    let mut request = ListRequestsRequest { time_range, page_size: 2, ..Default::default() };
    let first = service.query.clone().list_requests(request.clone()).await.unwrap().into_inner();
    request.page_token = first.next_page_token;
    let second = service.query.clone().list_requests(request).await.unwrap().into_inner();
    assert_eq!(first.interval, second.interval);
    assert_eq!((first.requests.len(), second.requests.len()), (2, 2));
}

#[tokio::test]
async fn a_page_ends_before_a_mebibyte() {
    let service = Service::start().await;
    let large = |n| {
        let mut event = event(n);
        event.labels = (0..16).map(|k| (format!("{k:0256}"), "x".repeat(256))).collect();
        event
    };
    service.record_new((0..300).map(large).collect()).await;
    let request = ListRequestsRequest { time_range: day(), page_size: 1_000, ..Default::default() };
    let first = service.query.clone().list_requests(request.clone()).await.unwrap().into_inner();
    let size = prost::Message::encoded_len(&first);
    assert!((900_000..1_048_576 + 4_096).contains(&size), "{size}");
    assert!(!first.next_page_token.is_empty());
    assert_eq!(walk(&service, request, async |_| ()).await.len(), 300);
}

#[tokio::test]
async fn a_request_is_given_back_as_it_was_told() {
    let service = Service::start().await;
    let mut told = event(1);
    told.user_id = "Zoë 🦀 \u{202e}x".into();
    told.model = "gpt-4o-2024-08-06".into();
    told.operation = "chat".into();
    told.tokens = Some(Tokens {
        input_uncached: Some(1),
        input_cache_read: Some(2),
        input_cache_write: Some(3),
        input_cache_write_1h: Some(0),
        output: Some(1_000_000_000),
        output_reasoning: Some(6),
    });
    told.latency = Some(Duration { seconds: 1, nanos: 500_000_000 });
    told.time_to_first_token = Some(Duration { seconds: 0, nanos: 0 });
    told.request_id = "req".into();
    told.labels = [("a\"b".to_owned(), "c,\\d".to_owned()), ("env".to_owned(), String::new())].into();
    told.producer = Some(activity_proto::common::v1::Producer { id: "sdk".into(), epoch: 3, sequence: Some(0) });
    service.record_new(vec![told.clone()]).await;
    let request = ListRequestsRequest { time_range: day(), ..Default::default() };
    let answer = service.query.clone().list_requests(request).await.unwrap().into_inner();
    let stored = &answer.requests[0];
    // A request is the event and more, on the wire too.
    assert_eq!(UsageEvent::decode(stored.encode_to_vec().as_slice()).unwrap(), told);
    assert_eq!(stored.total_tokens, Some(1_000_000_006));
    assert!(stored.cost.is_some() && stored.price.is_some(), "{stored:?}");
    assert_eq!(answer.currency_code, "USD");
}

#[tokio::test]
async fn unpriced_requests_are_counted_and_not_free() {
    let service = Service::start().await;
    let unknown = UsageEvent { requested_model: "no-such-model".into(), ..event(2) };
    service.record_new(vec![event(1), unknown]).await;
    let request = GetSummaryRequest { time_range: day(), ..Default::default() };
    let summary = service.query.clone().get_summary(request).await.unwrap().into_inner().summary.unwrap();
    assert_eq!((summary.unpriced_requests, summary.unpriced_tokens), (Some(1), Some(1_010)));
    assert_eq!(summary.requests, Some(2));
    // 1,000 tokens at 2.5 and 10 at 10 dollars a million.
    assert_eq!(summary.cost.as_deref(), Some("0.0026"));
    let request = ListRequestsRequest { time_range: day(), ..Default::default() };
    let answer = service.query.clone().list_requests(request).await.unwrap().into_inner();
    let unpriced = answer.requests.iter().find(|request| request.cost.is_none()).unwrap();
    assert!(unpriced.price.is_none() && !unpriced.unpriced_reason.is_empty());
}

#[tokio::test]
async fn a_summary_is_compared_with_the_window_before() {
    let service = Service::start().await;
    service.record_new((0..10).map(event).collect()).await;
    // Requests are at noon and each second before it; the end is not part of a window.
    let time_range = range(NOON - 3, NOON);
    let request = GetSummaryRequest { time_range, compare_to_previous: true, ..Default::default() };
    let answer = service.query.clone().get_summary(request).await.unwrap().into_inner();
    assert_eq!(answer.summary.unwrap().requests, Some(3));
    assert_eq!(answer.previous.unwrap().requests, Some(3));
    let stamp = |seconds| Some(Timestamp { seconds, nanos: 0 });
    assert_eq!(answer.previous_interval, Some(Interval { start: stamp(NOON - 6), end: stamp(NOON - 3) }));

    // An empty window holds nothing, and its answer is zeros.
    let request = GetSummaryRequest { time_range: range(NOON, NOON), compare_to_previous: true, ..Default::default() };
    let answer = service.query.clone().get_summary(request).await.unwrap().into_inner();
    let (summary, previous) = (answer.summary.unwrap(), answer.previous.unwrap());
    assert_eq!((summary.requests, summary.cost.as_deref()), (Some(0), Some("0")));
    assert_eq!(previous.requests, Some(0));
}

#[tokio::test]
async fn series_have_every_bucket_and_refuse_too_many() {
    let service = Service::start().await;
    service.record_new((0..6).map(event).collect()).await;
    let request = GetTimeSeriesRequest { time_range: day(), bucket: Bucket::Hour.into(), ..Default::default() };
    let answer = service.query.clone().get_time_series(request.clone()).await.unwrap().into_inner();
    let [series] = answer.series.as_slice() else { panic!("one series") };
    let counts: Vec<_> = series.points.iter().map(|p| p.metrics.as_ref().unwrap().requests.unwrap()).collect();
    let mut expected = vec![0; 24];
    (expected[11], expected[12]) = (5, 1);
    assert_eq!(counts, expected);
    assert_eq!(answer.other, None);

    // Three users of 5,760 minutes are too many; what fits is named.
    let four_days = range(NOON - 345_600, NOON + 1);
    let request = GetTimeSeriesRequest {
        time_range: four_days,
        bucket: Bucket::Minute.into(),
        group_by: vec![Dimension::User.into()],
        ..Default::default()
    };
    let status = service.query.clone().get_time_series(request.clone()).await.unwrap_err();
    assert_eq!(refusal(&status), ("TOO_MANY_POINTS".into(), "bucket".into()));
    assert!(status.message().starts_with("bucket BUCKET_"), "{}", status.message());
    assert!(status.message().contains("BUCKET_HOUR would fit"), "{}", status.message());
    let fitting = GetTimeSeriesRequest { bucket: Bucket::Hour.into(), limit: 2, ..request };
    let answer = service.query.clone().get_time_series(fitting).await.unwrap().into_inner();
    assert_eq!((answer.series.len(), answer.other.unwrap().points.len()), (2, 97));
}

#[tokio::test]
async fn facets_name_every_dimension() {
    let service = Service::start().await;
    let mut failed = event(9);
    failed.status = RequestStatus::Cancelled.into();
    failed.user_id = String::new();
    service.record_new((0..4).map(event).chain([failed]).collect()).await;
    let request = ListFacetsRequest { time_range: day(), limit: 2, ..Default::default() };
    let answer = service.query.clone().list_facets(request).await.unwrap().into_inner();
    assert_eq!(answer.facets.len(), 7);
    let users = &answer.facets[0];
    assert_eq!((users.dimension(), users.distinct), (Dimension::User, Some(4)));
    let values: Vec<_> = users.values.iter().map(|v| (v.value.as_str(), v.count.unwrap())).collect();
    assert_eq!(values, [("user-0", 2), ("", 1)], "ties are by value");
    let statuses: Vec<_> = answer.facets[6].values.iter().map(|v| v.value.as_str()).collect();
    assert_eq!(statuses, ["REQUEST_STATUS_OK", "REQUEST_STATUS_CANCELLED"]);
}

#[tokio::test]
async fn wrong_questions_name_the_field() {
    let service = Service::start().await;
    service.record_new((0..5).map(event).collect()).await;
    let breakdown = async |request: ListBreakdownRequest| {
        refusal(&service.query.clone().list_breakdown(request).await.unwrap_err())
    };
    let by_user = ListBreakdownRequest { group_by: vec![Dimension::User.into()], ..Default::default() };
    let table = [
        (ListBreakdownRequest::default(), ("REQUIRED", "group_by")),
        (ListBreakdownRequest { group_by: vec![1, 2, 3, 4], ..Default::default() }, ("INVALID_ARGUMENT", "group_by")),
        (ListBreakdownRequest { group_by: vec![1, 99], ..Default::default() }, ("INVALID_ARGUMENT", "group_by[1]")),
        (ListBreakdownRequest { group_by: vec![0], ..Default::default() }, ("INVALID_ARGUMENT", "group_by[0]")),
        (ListBreakdownRequest { order_by: 9, ..by_user.clone() }, ("INVALID_ARGUMENT", "order_by")),
        (ListBreakdownRequest { limit: -1, ..by_user.clone() }, ("INVALID_ARGUMENT", "limit")),
        (ListBreakdownRequest { limit: 1_001, ..by_user.clone() }, ("INVALID_ARGUMENT", "limit")),
        (
            ListBreakdownRequest {
                filter: Some(UsageFilter { statuses: vec![1, 9], ..Default::default() }),
                ..by_user.clone()
            },
            ("INVALID_ARGUMENT", "filter.statuses[1]"),
        ),
        (
            ListBreakdownRequest {
                filter: Some(UsageFilter { user_ids: vec![String::new(); 1_001], ..Default::default() }),
                ..by_user.clone()
            },
            ("INVALID_ARGUMENT", "filter.user_ids"),
        ),
        (
            ListBreakdownRequest {
                filter: Some(UsageFilter { models: vec!["a\u{0}".into()], ..Default::default() }),
                ..by_user.clone()
            },
            ("INVALID_ARGUMENT", "filter.models[0]"),
        ),
    ];
    for (request, (reason, field)) in table {
        assert_eq!(breakdown(request).await, (reason.to_owned(), field.to_owned()));
    }
    // A thousand values are fine, and so is the largest limit.
    let request = ListBreakdownRequest {
        time_range: day(),
        filter: Some(UsageFilter { user_ids: (0..1_000).map(|n| format!("user-{n}")).collect(), ..Default::default() }),
        limit: 1_000,
        order_by: Metric::Requests.into(),
        ..by_user
    };
    assert_eq!(service.query.clone().list_breakdown(request).await.unwrap().into_inner().rows.len(), 3);

    // A token of another query.
    let page = ListRequestsRequest { time_range: day(), page_size: 2, ..Default::default() };
    let token = service.query.clone().list_requests(page.clone()).await.unwrap().into_inner().next_page_token;
    let other = ListRequestsRequest {
        filter: Some(UsageFilter { user_ids: vec!["user-1".into()], ..Default::default() }),
        page_token: token,
        ..page
    };
    let status = service.query.clone().list_requests(other).await.unwrap_err();
    assert_eq!(refusal(&status), ("INVALID_PAGE_TOKEN".into(), "page_token".into()));
}
