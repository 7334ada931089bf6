//! Exports: three shapes, two formats, resumed at every chunk.

use activity_proto::usage::v1::export_usage_response::Part;
use activity_proto::usage::v1::{
    Bucket, Dimension, ExportChunk, ExportEnd, ExportFormat, ExportShape, ExportUsageRequest, GetSummaryRequest,
    Metric, UsageEvent,
};
use sha2::{Digest as _, Sha256};
use tokio_stream::StreamExt as _;

use crate::harness::{Service, day, event, refusal};

pub(crate) async fn export(service: &Service, request: &ExportUsageRequest) -> (Vec<ExportChunk>, ExportEnd) {
    let mut stream = service.query.clone().export_usage(request.clone()).await.unwrap().into_inner();
    let mut chunks = Vec::new();
    let mut end = None;
    while let Some(message) = stream.next().await {
        match message.unwrap().part.unwrap() {
            Part::Chunk(chunk) => {
                assert!(end.is_none() && chunk.data.ends_with(b"\n"), "whole lines, and the end last");
                chunks.push(chunk);
            }
            Part::End(last) => end = Some(last),
        }
    }
    (chunks, end.unwrap())
}

fn bytes(chunks: &[ExportChunk]) -> Vec<u8> {
    chunks.iter().flat_map(|chunk| chunk.data.iter().copied()).collect()
}

fn requests(format: ExportFormat) -> ExportUsageRequest {
    ExportUsageRequest {
        time_range: day(),
        shape: ExportShape::Requests.into(),
        format: format.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_export_resumes_byte_for_byte_at_every_chunk() {
    let service = Service::start().await;
    let unknown = |n| UsageEvent { provider: "nobody".into(), ..event(n) };
    service.record_new((0..3_500).map(event).collect()).await;
    service.record_new((10_000..10_100).map(unknown).collect()).await;
    for (format, rows) in [(ExportFormat::Csv, 3_600), (ExportFormat::Jsonl, 3_601)] {
        let mut request = requests(format);
        let (chunks, end) = export(&service, &request).await;
        assert!(chunks.len() > 3, "{}", chunks.len());
        let whole = bytes(&chunks);
        assert_eq!(end.sha256, Sha256::digest(&whole).to_vec());
        assert_eq!(end.rows, Some(rows));
        let summary = GetSummaryRequest { time_range: day(), ..Default::default() };
        let summary = service.query.clone().get_summary(summary).await.unwrap().into_inner().summary;
        assert_eq!(end.total, summary);

        // What comes later is in none of them, wherever it belongs.
        let late = UsageEvent { user_id: "late".into(), ..event(20_000 + rows) };
        service.record_new(vec![late]).await;
        for cut in 0..chunks.len() {
            request.resume_token.clone_from(&chunks[cut].resume_token);
            let (rest, resumed_end) = export(&service, &request).await;
            let joined = [bytes(&chunks[..=cut]), bytes(&rest)].concat();
            assert!(joined == whole, "cut after chunk {cut}");
            assert_eq!(resumed_end, end);
        }

        // A token of another query.
        request.time_range = crate::harness::range(0, 1);
        let status = service.query.clone().export_usage(request).await.unwrap_err();
        assert_eq!(refusal(&status), ("INVALID_PAGE_TOKEN".into(), "resume_token".into()));
    }
}

#[tokio::test]
async fn rows_are_ascending_and_complete_in_both_formats() {
    let service = Service::start().await;
    let mut odd = event(1);
    odd.user_id = "=1+1,\"x\"".into();
    odd.labels = [("k".to_owned(), "v".to_owned())].into();
    service.record_new(vec![odd, event(2), event(0)]).await;
    let (chunks, _) = export(&service, &requests(ExportFormat::Csv)).await;
    let text = String::from_utf8(bytes(&chunks)).unwrap();
    let lines: Vec<_> = text.split_terminator("\r\n").collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with("id,occurred_at,recorded_at,instance_id,user_id,"));
    assert!(lines[1].starts_with(&event(2).id) && lines[3].starts_with(&event(0).id));
    assert!(lines[2].contains(",\"'=1+1,\"\"x\"\"\",") && lines[2].contains("\"{\"\"k\"\":\"\"v\"\"}\""));
    assert!(lines[1].contains(",0.0026,USD,"));

    let (chunks, _) = export(&service, &requests(ExportFormat::Jsonl)).await;
    let text = String::from_utf8(bytes(&chunks)).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows[1]["userId"], "=1+1,\"x\"");
    assert_eq!(rows[1]["labels"]["k"], "v");
    assert_eq!(rows[0]["tokens"]["inputUncached"], "1000");
    assert_eq!(rows[0]["status"], "REQUEST_STATUS_OK");
    assert_eq!(rows[0]["occurredAt"], "2026-01-05T11:59:58.000000Z");
    assert_eq!(rows[0]["cost"], "0.0026");
}

#[tokio::test]
async fn an_empty_export_is_a_header_and_an_end() {
    let service = Service::start().await;
    let (chunks, end) = export(&service, &requests(ExportFormat::Csv)).await;
    assert_eq!(bytes(&chunks).iter().filter(|byte| **byte == b'\n').count(), 1);
    assert_eq!((end.rows, end.sha256), (Some(0), Sha256::digest(bytes(&chunks)).to_vec()));
    let (chunks, end) = export(&service, &requests(ExportFormat::Jsonl)).await;
    assert_eq!((chunks.len(), end.rows), (0, Some(0)));
}

#[tokio::test]
async fn what_another_shape_would_need_is_refused_by_its_name() {
    let service = Service::start().await;
    let ask = |shape: ExportShape| ExportUsageRequest { shape: shape.into(), ..requests(ExportFormat::Csv) };
    let (single, groups) = (ask(ExportShape::Requests), ask(ExportShape::Breakdown));
    let by_user = vec![Dimension::User.into()];
    let odd = [
        ("group_by", ExportUsageRequest { group_by: by_user.clone(), ..single.clone() }),
        ("order_by", ExportUsageRequest { order_by: Metric::Cost.into(), ..single.clone() }),
        ("limit", ExportUsageRequest { limit: 5, ..single.clone() }),
        ("bucket", ExportUsageRequest { bucket: Bucket::Day.into(), ..single }),
        ("bucket", ExportUsageRequest { bucket: Bucket::Day.into(), group_by: by_user, ..groups.clone() }),
        ("resume_token", ExportUsageRequest { resume_token: "x".into(), ..groups }),
    ];
    for (field, request) in odd {
        let status = service.query.clone().export_usage(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().starts_with(&format!("{field} is set, allowed is that with ")), "{status}");
    }
}

#[tokio::test]
async fn groups_and_series_are_exported_as_they_are_answered() {
    let service = Service::start().await;
    service.record_new((0..9).map(event).collect()).await;
    let breakdown = ExportUsageRequest {
        shape: ExportShape::Breakdown.into(),
        group_by: vec![Dimension::User.into(), Dimension::ApiKey.into()],
        limit: 2,
        ..requests(ExportFormat::Csv)
    };
    let (chunks, end) = export(&service, &breakdown).await;
    let text = String::from_utf8(bytes(&chunks)).unwrap();
    let lines: Vec<_> = text.split_terminator("\r\n").collect();
    assert!(lines[0].starts_with("row,user_id,api_key_id,requests,"));
    assert!(lines[1].starts_with("GROUP,user-0,key-0,2,"), "{text}");
    assert!(lines[3].starts_with("OTHER,,,") && lines[4].starts_with("TOTAL,,,9,0,9090,"), "{text}");
    assert_eq!((lines.len(), end.rows), (5, Some(4)));
    assert_eq!(end.sha256, Sha256::digest(bytes(&chunks)).to_vec());
    assert_eq!(end.total.as_ref().unwrap().unique_users, Some(3));
    assert!(chunks.iter().all(|chunk| chunk.resume_token.is_empty()));

    let series = ExportUsageRequest {
        shape: ExportShape::TimeSeries.into(),
        format: ExportFormat::Jsonl.into(),
        bucket: Bucket::Hour.into(),
        limit: 1,
        ..breakdown
    };
    let (chunks, end) = export(&service, &series).await;
    let text = String::from_utf8(bytes(&chunks)).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), end.rows), (48, Some(48)));
    assert_eq!(rows[11]["keys"][0], "user-0");
    assert_eq!(rows[24]["row"], "OTHER");
    assert_eq!(end.total.unwrap().requests, Some(9));

    let resumed = ExportUsageRequest { resume_token: "AAAA".into(), ..series };
    let status = service.query.clone().export_usage(resumed).await.unwrap_err();
    assert_eq!(refusal(&status), ("INVALID_ARGUMENT".into(), "resume_token".into()));
    let status = service.query.clone().export_usage(ExportUsageRequest::default()).await.unwrap_err();
    assert_eq!(refusal(&status), ("REQUIRED".into(), "time_range".into()));
}
