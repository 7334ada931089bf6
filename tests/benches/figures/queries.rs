//! What questions cost at the size that the load left: medians and 99th percentiles over repeated calls.

use std::time::{Duration, Instant};

use activity_proto::audit::v1 as audit;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::common::v1::{TimeRange, TimeRangePreset, time_range::Range};
use activity_proto::usage::v1 as usage;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

const CALLS: usize = 5;

fn range(time_zone: &str) -> Option<TimeRange> {
    Some(TimeRange { range: Some(Range::Preset(TimeRangePreset::Last30Days.into())), time_zone: time_zone.into() })
}

async fn timed<T>(what: &str, mut call: impl AsyncFnMut() -> T) {
    call().await;
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        call().await;
        times.push(start.elapsed());
    }
    times.sort();
    println!("  {what:<54} median {:>9.2?}  max {:>9.2?}", times[CALLS / 2], times[CALLS - 1]);
}

pub(crate) async fn usage(channel: Channel) {
    let client = UsageQueryServiceClient::new(channel).max_decoding_message_size(64 << 20);
    timed("summary, 30 days, with comparison", async || {
        let request =
            usage::GetSummaryRequest { time_range: range(""), compare_to_previous: true, ..Default::default() };
        client.clone().get_summary(request).await.unwrap()
    })
    .await;
    for dimension in
        [usage::Dimension::User, usage::Dimension::Model, usage::Dimension::Provider, usage::Dimension::ApiKey]
    {
        timed(&format!("breakdown by {}, 30 days", dimension.as_str_name()), async || {
            let request = usage::ListBreakdownRequest {
                time_range: range(""),
                group_by: vec![dimension.into()],
                ..Default::default()
            };
            client.clone().list_breakdown(request).await.unwrap()
        })
        .await;
    }
    timed("series by provider a day, 30 days, Asia/Kolkata", async || {
        let request = usage::GetTimeSeriesRequest {
            time_range: range("Asia/Kolkata"),
            bucket: usage::Bucket::Day.into(),
            group_by: vec![usage::Dimension::Provider.into()],
            ..Default::default()
        };
        client.clone().get_time_series(request).await.unwrap()
    })
    .await;
    for (what, user) in [("a page of requests", None), ("a page of one user's requests", Some("user-3"))] {
        timed(what, async || {
            let filter =
                usage::UsageFilter { user_ids: user.map(str::to_owned).into_iter().collect(), ..Default::default() };
            let request =
                usage::ListRequestsRequest { time_range: range(""), filter: Some(filter), ..Default::default() };
            client.clone().list_requests(request).await.unwrap()
        })
        .await;
    }
}

pub(crate) async fn audit(channel: Channel) {
    let client = AuditQueryServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let filters = [
        ("a page of entries", audit::AuditFilter::default()),
        ("a page by actor", audit::AuditFilter { actors: vec!["admin-3".into()], ..Default::default() }),
        (
            "a page by action and resource",
            audit::AuditFilter {
                actions: vec!["model.*".into()],
                resources: vec!["model-7".into()],
                ..Default::default()
            },
        ),
        ("a page by a word that one entry has", audit::AuditFilter { text: "OPS 4242".into(), ..Default::default() }),
        ("a page by a word that none has", audit::AuditFilter { text: "nowhere".into(), ..Default::default() }),
    ];
    for (what, filter) in filters {
        timed(what, async || {
            let request =
                audit::ListEntriesRequest { time_range: range(""), filter: Some(filter.clone()), ..Default::default() };
            client.clone().list_entries(request).await.unwrap()
        })
        .await;
    }
    timed("facets, 30 days", async || {
        let request = audit::ListFacetsRequest { time_range: range(""), ..Default::default() };
        client.clone().list_facets(request).await.unwrap()
    })
    .await;
}

/// Rows and bytes of a whole export, and how long it took.
pub(crate) struct Export {
    pub(crate) rows: u64,
    pub(crate) bytes: usize,
    pub(crate) time: Duration,
}

pub(crate) async fn usage_export(channel: Channel) -> Export {
    let request = usage::ExportUsageRequest {
        time_range: range(""),
        shape: usage::ExportShape::Requests.into(),
        format: usage::ExportFormat::Csv.into(),
        ..Default::default()
    };
    let start = Instant::now();
    let mut stream = UsageQueryServiceClient::new(channel).export_usage(request).await.unwrap().into_inner();
    let (mut rows, mut bytes) = (0, 0);
    while let Some(message) = stream.next().await {
        match message.unwrap().part.unwrap() {
            usage::export_usage_response::Part::Chunk(chunk) => bytes += chunk.data.len(),
            usage::export_usage_response::Part::End(end) => rows = end.rows.unwrap(),
        }
    }
    Export { rows, bytes, time: start.elapsed() }
}

pub(crate) async fn audit_export(channel: Channel) -> Export {
    let request = audit::ExportEntriesRequest {
        range: range("").map(audit::export_entries_request::Range::TimeRange),
        format: audit::ExportFormat::Csv.into(),
        ..Default::default()
    };
    let start = Instant::now();
    let mut stream = AuditQueryServiceClient::new(channel).export_entries(request).await.unwrap().into_inner();
    let (mut rows, mut bytes) = (0, 0);
    while let Some(message) = stream.next().await {
        match message.unwrap().part.unwrap() {
            audit::export_entries_response::Part::Chunk(chunk) => bytes += chunk.data.len(),
            audit::export_entries_response::Part::End(end) => rows = end.entries.unwrap(),
        }
    }
    Export { rows, bytes, time: start.elapsed() }
}
