//! Retention over the wire: answers that say how finely they are kept, refusals that say from when data are there.

use std::num::NonZeroU32;
use std::time::Duration;

use activity_proto::common::v1::{ErrorReason, TimeRange};
use activity_proto::usage::v1::{
    Bucket, Dimension, ExportEnd, ExportFormat, ExportShape, ExportUsageRequest, GetSummaryRequest,
    GetTimeSeriesRequest, ListBreakdownRequest, ListFacetsRequest, ListRequestsRequest, Metrics, UsageEvent,
    UsageFilter, export_usage_response::Part,
};
use prost_types::Timestamp;
use service_core::config::DatabaseUrl;
use service_core::time_range::rfc3339;
use testkit::eventually;
use tonic::Code;
use usage_service::Config;
use usage_service::config::RetentionConfig;

use crate::export::export;
use crate::harness::{Service, config, event, id, range, refusal};

const DAY: i64 = 86_400;

/// The start of today, so that a horizon is a number of days before it.
fn today() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    now.as_secs() as i64 / DAY * DAY
}

fn at(seconds: i64, n: u64) -> UsageEvent {
    UsageEvent { id: id(seconds, n), occurred_at: Some(Timestamp { seconds, nanos: 0 }), ..event(n) }
}

fn retention(requests: u32, rollups: u32) -> RetentionConfig {
    RetentionConfig { requests_days: NonZeroU32::new(requests), rollups_days: NonZeroU32::new(rollups) }
}

/// Starts anew with this retention, and waits until it is in force.
async fn restarted(service: Service, config: Config, range: Option<TimeRange>) -> Service {
    let service = service.restart_as(config).await;
    eventually(Duration::from_secs(20), async || {
        let request = ListRequestsRequest { time_range: range.clone(), ..Default::default() };
        service.query.clone().list_requests(request).await.is_err()
    })
    .await;
    service
}

async fn removed_requests_leave_their_sums(mut config: Config, folder: tempfile::TempDir) {
    let today = today();
    let old = today - 10 * DAY;
    let service = Service::start_as(config.clone(), folder).await;
    // One in each minute of an hour, ten days ago, and some today.
    service.record_new((0..60).map(|n| at(old + 60 * n as i64, n)).collect()).await;
    service.record_new((0..5).map(|n| at(today + n as i64 - 60, 100 + n)).collect()).await;
    // The newest is what days are counted from.
    service.record_new(vec![at(today, 200)]).await;
    let ragged = range(old + 600, old + 1_500);
    let exact = service.query.clone().get_summary(summary(&ragged)).await.unwrap().into_inner();
    assert_eq!((exact.summary.unwrap().requests, exact.resolution_seconds), (Some(15), 0));

    config.retention = retention(5, 0);
    let service = restarted(service, config.clone(), ragged.clone()).await;

    // From 10 to 25 minutes: the two quarters that it touches.
    let answer = service.query.clone().get_summary(summary(&ragged)).await.unwrap().into_inner();
    assert_eq!(answer.summary.as_ref().unwrap().requests, Some(30));
    assert_eq!((answer.interval, answer.resolution_seconds), (interval(old, old + 1_800), 900));
    let request = GetSummaryRequest { compare_to_previous: true, ..summary(&range(old + 1_000, today)) };
    let compared = service.query.clone().get_summary(request).await.unwrap().into_inner();
    assert_eq!(compared.interval, interval(old + 900, today));
    assert_eq!(compared.previous_interval, interval(2 * (old + 900) - today, old + 900));
    assert_eq!(compared.previous.unwrap().requests, Some(15));
    assert_eq!(compared.summary.unwrap().requests, Some(45 + 5));

    let request = ListBreakdownRequest {
        time_range: ragged.clone(),
        group_by: vec![Dimension::User.into()],
        ..Default::default()
    };
    let answer = service.query.clone().list_breakdown(request).await.unwrap().into_inner();
    assert_eq!(answer.total.unwrap().requests, Some(30));
    assert_eq!((answer.interval, answer.resolution_seconds), (interval(old, old + 1_800), 900));
    let request = ListFacetsRequest { time_range: ragged.clone(), ..Default::default() };
    let answer = service.query.clone().list_facets(request).await.unwrap().into_inner();
    assert_eq!((answer.interval, answer.resolution_seconds), (interval(old, old + 1_800), 900));
    let mut series = GetTimeSeriesRequest {
        time_range: range(old + 600, old + DAY + 5),
        bucket: Bucket::Hour.into(),
        ..Default::default()
    };
    let answer = service.query.clone().get_time_series(series.clone()).await.unwrap().into_inner();
    assert_eq!((answer.interval, answer.resolution_seconds), (interval(old, old + DAY + 900), 900));
    let points = &answer.series[0].points;
    assert_eq!((points.len(), points[0].metrics.as_ref().unwrap().requests), (25, Some(60)));
    let mut export = ExportUsageRequest {
        time_range: ragged.clone(),
        shape: ExportShape::Breakdown.into(),
        format: ExportFormat::Csv.into(),
        group_by: vec![Dimension::Model.into()],
        ..Default::default()
    };
    let mut parts = service.query.clone().export_usage(export.clone()).await.unwrap().into_inner();
    let mut end = None;
    while let Some(part) = parts.message().await.unwrap() {
        if let Some(Part::End(last)) = part.part {
            end = Some(last);
        }
    }
    let end = end.unwrap();
    assert_eq!((end.interval, end.resolution_seconds), (interval(old, old + 1_800), 900));
    assert_eq!(end.total.unwrap().requests, Some(30));

    // What sums don't tell apart says from when there is more.
    let from = format!("raw requests are kept from {}", rfc3339((today - 5 * DAY) * 1_000_000));
    let mut refused = Vec::new();
    let labelled = UsageFilter { labels: [("a".to_owned(), "b".to_owned())].into(), ..Default::default() };
    let request = GetSummaryRequest { filter: Some(labelled), ..summary(&ragged) };
    refused.push(service.query.clone().get_summary(request).await.unwrap_err());
    series.bucket = Bucket::Minute.into();
    refused.push(service.query.clone().get_time_series(series).await.unwrap_err());
    let request = ListRequestsRequest { time_range: ragged.clone(), ..Default::default() };
    refused.push(service.query.clone().list_requests(request).await.unwrap_err());
    (export.shape, export.group_by) = (ExportShape::Requests.into(), Vec::new());
    let mut parts = service.query.clone().export_usage(export).await.unwrap().into_inner();
    refused.push(parts.message().await.unwrap_err());
    for status in refused {
        assert_eq!((status.code(), refusal(&status).0.as_str()), (Code::OutOfRange, "OUT_OF_RANGE"));
        assert!(status.message().contains(&from), "{}", status.message());
    }

    // A late event is refused alone, and so is one that is known already.
    let answer = service.record(vec![at(old, 500), at(today - DAY, 501), at(old, 0)]).await;
    assert_eq!((answer.accepted, answer.duplicate), (Some(1), Some(0)));
    let rejected: Vec<_> = answer.rejected.iter().map(|rejected| (rejected.index, rejected.reason())).collect();
    assert_eq!(rejected, [(Some(0), ErrorReason::BeforeRetention), (Some(2), ErrorReason::BeforeRetention)]);
    assert_eq!(answer.rejected[0].field, "occurred_at");
    let kept_from = rfc3339((today - 5 * DAY) * 1_000_000);
    assert!(answer.rejected[0].message.contains(&kept_from), "{}", answer.rejected[0].message);

    // Sums go too, later.
    config.retention = retention(5, 7);
    let service = service.restart_as(config).await;
    let gone =
        eventually(Duration::from_secs(20), async || service.query.clone().get_summary(summary(&ragged)).await.err());
    let status = gone.await;
    assert_eq!((status.code(), refusal(&status).0.as_str()), (Code::OutOfRange, "OUT_OF_RANGE"));
    let from = format!("usage is kept from {}", rfc3339((today - 7 * DAY) * 1_000_000));
    assert!(status.message().contains(&from), "{}", status.message());
    let answer = service.query.clone().get_summary(summary(&range(today - 7 * DAY, today))).await.unwrap();
    assert_eq!(answer.into_inner().summary.unwrap().requests, Some(6));
}

fn summary(range: &Option<TimeRange>) -> GetSummaryRequest {
    GetSummaryRequest { time_range: range.clone(), ..Default::default() }
}

fn interval(start: i64, end: i64) -> Option<activity_proto::common::v1::Interval> {
    let stamp = |seconds| Some(Timestamp { seconds, nanos: 0 });
    Some(activity_proto::common::v1::Interval { start: stamp(start), end: stamp(end) })
}

#[tokio::test]
async fn removed_requests_leave_their_sums_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    removed_requests_leave_their_sums(config(&folder), folder).await;
}

#[tokio::test]
async fn removed_requests_leave_their_sums_on_postgres() {
    if testkit::Postgres::skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let url = testkit::Postgres::shared().await.create_database().await;
    let config = Config { database_url: DatabaseUrl::new(url).unwrap(), ..config(&folder) };
    removed_requests_leave_their_sums(config, folder).await;
}

#[tokio::test]
async fn an_export_that_retention_overtakes_ends_without_distinct_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    let today = today();
    let old = today - 10 * DAY;
    let service = Service::start_as(config.clone(), folder).await;
    service.record_new((0..60).map(|n| at(old + 60 * n as i64, n)).collect()).await;
    service.record_new((100..105).map(|n| at(today - n as i64, n)).collect()).await;
    let window = range(old, today);
    let request = ExportUsageRequest {
        time_range: window.clone(),
        shape: ExportShape::Requests.into(),
        format: ExportFormat::Csv.into(),
        ..Default::default()
    };
    let (chunks, end) = export(&service, &request).await;
    let total = end.total.clone().unwrap();
    assert_eq!((total.requests, total.unique_users, total.unique_models), (Some(65), Some(3), Some(1)));

    config.retention = retention(5, 0);
    let service = restarted(service, config, window).await;
    let resume_token = chunks.last().unwrap().resume_token.clone();
    let (rest, resumed) = export(&service, &ExportUsageRequest { resume_token, ..request }).await;
    assert_eq!(rest, []);
    let total = Metrics { unique_users: None, unique_models: None, ..total };
    assert_eq!(resumed, ExportEnd { total: Some(total), ..end });
}

#[tokio::test]
async fn sums_that_would_go_before_their_requests_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (requests, rollups) in [(30, 29), (0, 30)] {
        let refused = usage_service::bind(Config { retention: retention(requests, rollups), ..config(&folder) }).await;
        let why = refused.expect_err("refused");
        assert!(why.is::<service_core::config::ConfigError>(), "{why}");
        assert!(why.to_string().contains("retention.rollups_days"), "{why}");
    }
}
