//! Bad input: a clear code and reason each time, alone, and nothing accepted before it is lost.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::{
    AuditEvent, AuditFilter, ExportEntriesRequest, GetEntryRequest, ListEntriesRequest, Operation, RecordEventsRequest,
    Stage, StreamEventsRequest,
};
use activity_proto::common::v1::{ErrorReason, Interval, TimeRange, time_range::Range};
use activity_proto::usage::v1::usage_ingest_service_client::UsageIngestServiceClient;
use activity_proto::usage::v1::usage_query_service_client::UsageQueryServiceClient;
use activity_proto::usage::v1::{
    Bucket, Dimension, GetTimeSeriesRequest, ListBreakdownRequest, ListRequestsRequest, RecordUsageRequest,
    StreamUsageRequest, UsageEvent, UsageFilter,
};
use e2e::{Engine, Sandbox, events, raw};
use prost::Message;
use prost_types::Timestamp;
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The code, the `ErrorInfo` reason and the first field of a refusal.
fn refusal(status: &Status) -> (Code, String, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "activity");
    let field = details
        .bad_request()
        .and_then(|bad| bad.field_violations.first())
        .map(|violation| violation.field.clone())
        .unwrap_or_default();
    (status.code(), info.reason.clone(), field)
}

/// An event is spoilt one way.
type Spoil<E> = fn(&mut E);

#[tokio::test]
async fn a_bad_audit_event_is_refused_alone_with_its_field_and_reason() {
    use ErrorReason as R;
    let cases: &[(Spoil<AuditEvent>, R, &str)] = &[
        (|e| e.id = "42".into(), R::InvalidId, "id"),
        (|e| e.id.clear(), R::Required, "id"),
        (|e| e.id = "6f1d4c1e-3b0a-4f5e-9d3c-2a1b0c9d8e7f".into(), R::InvalidId, "id"),
        (|e| e.id = events::id(SystemTime::now() - Duration::from_secs(90_000), 1), R::InvalidId, "id"),
        (|e| e.occurred_at = None, R::Required, "occurred_at"),
        (
            |e| e.occurred_at = Some(Timestamp { seconds: 946_684_799, nanos: 999_999_999 }),
            R::TimeOutOfBounds,
            "occurred_at",
        ),
        (
            |e| e.occurred_at = Some((SystemTime::now() + Duration::from_secs(400)).into()),
            R::TimeOutOfBounds,
            "occurred_at",
        ),
        (|e| e.occurred_at = Some(Timestamp { seconds: i64::MAX, nanos: -1 }), R::InvalidArgument, "occurred_at"),
        (|e| e.instance_id.clear(), R::Required, "instance_id"),
        (|e| e.instance_id = "x".repeat(257), R::InvalidArgument, "instance_id"),
        (|e| e.actor = None, R::Required, "actor"),
        (|e| e.actor.as_mut().unwrap().id.clear(), R::Required, "actor.id"),
        (|e| e.actor.as_mut().unwrap().kind = 99, R::InvalidArgument, "actor.kind"),
        (|e| e.actor.as_mut().unwrap().ip_address = "300.1.1.1".into(), R::InvalidArgument, "actor.ip_address"),
        (|e| e.actor.as_mut().unwrap().display_name = "a\u{0}b".into(), R::InvalidArgument, "actor.display_name"),
        (|e| e.actor.as_mut().unwrap().display_name = "a\u{1b}[2J".into(), R::InvalidArgument, "actor.display_name"),
        (|e| e.action = "Enable Model".into(), R::InvalidAction, "action"),
        (|e| e.action = "model.enabled.twice".into(), R::InvalidAction, "action"),
        (|e| e.action.clear(), R::Required, "action"),
        (|e| e.resources.clear(), R::Required, "resources"),
        (|e| e.resources[0].r#type.clear(), R::Required, "resources[0].type"),
        (|e| e.outcome = 0, R::Required, "outcome"),
        (|e| e.outcome = 77, R::InvalidArgument, "outcome"),
        (|e| e.reason = "r".repeat(1025), R::InvalidArgument, "reason"),
        (|e| e.changes[0].path = "limits.rpm".into(), R::InvalidJsonPointer, "changes[0].path"),
        (|e| e.changes[0].path = "/a~2b".into(), R::InvalidJsonPointer, "changes[0].path"),
        (|e| e.changes[0].new_value = Some("on".into()), R::InvalidJson, "changes[0].new_value"),
        (|e| e.changes[0].old_value = Some("{\"a\":".into()), R::InvalidJson, "changes[0].old_value"),
        (|e| e.details_json = "{'a': 1}".into(), R::InvalidJson, "details_json"),
        (|e| e.details_json = "[".repeat(10_000) + &"]".repeat(10_000), R::InvalidJson, "details_json"),
        (|e| e.details_json = format!("\"{}\"", "x".repeat(65_536)), R::TooLarge, ""),
        (
            |e| e.operation = Some(Operation { id: String::new(), stage: Stage::Intent.into() }),
            R::Required,
            "operation.id",
        ),
    ];
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let mut client = AuditIngestServiceClient::new(sandbox.audit.channel());
    let now = SystemTime::now();

    // Good and bad take turns in one batch: the bad ones are told by their index, the good ones stored.
    let mut batch = Vec::new();
    for (n, (spoil, _, _)) in cases.iter().enumerate() {
        let n = u64::try_from(n).unwrap();
        let mut bad = events::audit(now, 2 * n);
        spoil(&mut bad);
        batch.push(bad);
        batch.push(events::audit(now, 2 * n + 1));
    }
    let answer =
        client.record_events(RecordEventsRequest { events: batch, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(answer.duplicate, Some(0));
    let told: Vec<_> = answer
        .rejected
        .iter()
        .map(|rejected| (rejected.index.unwrap(), rejected.reason(), rejected.field.as_str()))
        .collect();
    let expected: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(n, (_, reason, field))| (u32::try_from(2 * n).unwrap(), *reason, *field))
        .collect();
    assert_eq!(told, expected);
    assert_eq!(answer.accepted, Some(u32::try_from(cases.len()).unwrap()));
    for rejected in &answer.rejected {
        assert!(!rejected.message.is_empty());
        assert!(rejected.message.len() < 512, "{}", rejected.message.len());
        assert!(!rejected.message.chars().any(char::is_control), "{:?}", rejected.message);
    }
}

#[tokio::test]
async fn a_bad_usage_event_is_refused_alone_with_its_field_and_reason() {
    use ErrorReason as R;
    let cases: &[(Spoil<UsageEvent>, R, &str)] = &[
        (|e| e.id = "not-a-uuid".into(), R::InvalidId, "id"),
        (|e| e.occurred_at = None, R::Required, "occurred_at"),
        (|e| e.instance_id.clear(), R::Required, "instance_id"),
        (|e| e.provider.clear(), R::Required, "provider"),
        (|e| e.requested_model.clear(), R::Required, "requested_model"),
        (|e| e.status = 0, R::Required, "status"),
        (|e| e.status = -3, R::InvalidArgument, "status"),
        (|e| e.user_id = "u\u{0}".into(), R::InvalidArgument, "user_id"),
        (|e| e.tokens.as_mut().unwrap().output = Some(-1), R::InvalidArgument, "tokens.output"),
        (|e| e.tokens.as_mut().unwrap().input_uncached = Some(i64::MAX), R::InvalidArgument, "tokens.input_uncached"),
        (|e| e.tokens.as_mut().unwrap().output_reasoning = Some(11), R::InvalidArgument, "tokens.output_reasoning"),
        (
            |e| e.tokens.as_mut().unwrap().input_cache_write_1h = Some(1),
            R::InvalidArgument,
            "tokens.input_cache_write_1h",
        ),
        (|e| e.latency = Some(prost_types::Duration { seconds: -1, nanos: 0 }), R::InvalidArgument, "latency"),
        (|e| e.labels = (0..17).map(|n| (format!("k{n}"), String::new())).collect(), R::InvalidArgument, "labels"),
    ];
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let mut client = UsageIngestServiceClient::new(sandbox.usage.channel());
    let now = SystemTime::now();
    let mut batch = Vec::new();
    for (n, (spoil, _, _)) in cases.iter().enumerate() {
        let n = u64::try_from(n).unwrap();
        let mut bad = events::usage(now, 2 * n);
        spoil(&mut bad);
        batch.push(bad);
        batch.push(events::usage(now, 2 * n + 1));
    }
    let answer = client.record_usage(RecordUsageRequest { events: batch }).await.unwrap().into_inner();
    let told: Vec<_> = answer
        .rejected
        .iter()
        .map(|rejected| (rejected.index.unwrap(), rejected.reason(), rejected.field.as_str()))
        .collect();
    let expected: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(n, (_, reason, field))| (u32::try_from(2 * n).unwrap(), *reason, *field))
        .collect();
    assert_eq!(told, expected);
    assert_eq!(answer.accepted, Some(u32::try_from(cases.len()).unwrap()));
}

#[tokio::test]
async fn the_same_id_with_other_content_is_a_conflict_and_the_first_stays() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let mut client = AuditIngestServiceClient::new(sandbox.audit.channel());
    let mut first = events::audit(SystemTime::now(), 1);
    // Kept to the microsecond.
    first.occurred_at.as_mut().unwrap().nanos -= first.occurred_at.as_ref().unwrap().nanos % 1000;
    let mut second = first.clone();
    second.reason = "another".into();
    let request = RecordEventsRequest { events: vec![first.clone(), second, first.clone()], ..Default::default() };
    let answer = client.record_events(request).await.unwrap().into_inner();
    assert_eq!((answer.accepted, answer.duplicate), (Some(1), Some(1)));
    assert_eq!(answer.rejected.len(), 1);
    assert_eq!(answer.rejected[0].index, Some(1));
    assert_eq!(answer.rejected[0].reason(), ErrorReason::IdConflict);
    let key = activity_proto::audit::v1::get_entry_request::Key::Id(first.id.clone());
    let entry = AuditQueryServiceClient::new(sandbox.audit.channel())
        .get_entry(GetEntryRequest { key: Some(key) })
        .await
        .unwrap()
        .into_inner()
        .entry
        .unwrap();
    // An entry is the event and more, on the wire too.
    assert_eq!(AuditEvent::decode(entry.encode_to_vec().as_slice()).unwrap(), first);
}

#[tokio::test]
async fn what_becomes_of_events_is_counted() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let now = SystemTime::now();
    let soon = now + Duration::from_secs(120);

    let mut audit = AuditIngestServiceClient::new(sandbox.audit.channel());
    let (known, mut conflict, mut bad) = (events::audit(now, 1), events::audit(now, 1), events::audit(now, 3));
    conflict.reason = "another".into();
    bad.action = "Enable Model".into();
    let events = vec![known.clone(), known, conflict, events::audit(now, 2), bad, events::audit(soon, 4)];
    audit.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();

    let mut usage = UsageIngestServiceClient::new(sandbox.usage.channel());
    let (known, mut conflict, mut bad) = (events::usage(now, 1), events::usage(now, 1), events::usage(now, 3));
    conflict.user_id = "another".into();
    bad.provider.clear();
    let events = vec![known.clone(), known, conflict, events::usage(now, 2), bad, events::usage(soon, 4)];
    usage.record_usage(RecordUsageRequest { events }).await.unwrap();

    for (service, refused) in [(&sandbox.audit, "INVALID_ACTION"), (&sandbox.usage, "REQUIRED")] {
        for (result, events) in [("accepted", 3.0), ("duplicate", 1.0), ("ID_CONFLICT", 1.0), (refused, 1.0)] {
            let counted = service.metric_of("activity_events_total", &format!("result=\"{result}\"")).await;
            assert_eq!(counted, events, "{result} of {service:?}");
        }
        assert_eq!(service.metric("activity_events_total").await, 6.0);
        assert_eq!(service.metric("activity_events_ahead_total").await, 1.0);
    }
}

#[tokio::test]
async fn an_empty_batch_is_fine() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let answer = AuditIngestServiceClient::new(sandbox.audit.channel())
        .record_events(RecordEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((answer.accepted, answer.duplicate, answer.rejected.len()), (Some(0), Some(0), 0));
    let batches = tokio_stream::iter(vec![StreamUsageRequest { batch_id: 1, ..StreamUsageRequest::default() }]);
    let mut answers =
        UsageIngestServiceClient::new(sandbox.usage.channel()).stream_usage(batches).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap();
    assert_eq!((answer.batch_id, answer.accepted), (1, Some(0)));
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn batch_ids_out_of_order_end_the_stream_and_keep_what_was_accepted() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let now = SystemTime::now();
    let batch =
        |batch_id, n| StreamEventsRequest { batch_id, events: vec![events::audit(now, n)], ..Default::default() };
    let batches = tokio_stream::iter(vec![batch(1, 1), batch(2, 2), batch(4, 3), batch(5, 4)]);
    let mut answers =
        AuditIngestServiceClient::new(sandbox.audit.channel()).stream_events(batches).await.unwrap().into_inner();
    for batch_id in [1, 2] {
        let answer = answers.next().await.unwrap().unwrap();
        assert_eq!((answer.batch_id, answer.accepted), (batch_id, Some(1)));
    }
    let status = answers.next().await.unwrap().unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "BATCH_OUT_OF_ORDER".into(), "batch_id".into()));
    let list = AuditQueryServiceClient::new(sandbox.audit.channel())
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.entries.len(), 2);
}

#[tokio::test]
async fn sizes_over_the_limits_are_refused_for_good() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let now = SystemTime::now();
    let mut client = AuditIngestServiceClient::new(sandbox.audit.channel());
    let many = RecordEventsRequest { events: (0..1001).map(|n| events::audit(now, n)).collect(), ..Default::default() };
    let status = client.record_events(many).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "TOO_LARGE".into(), String::new()));
    assert!(status.get_error_details().retry_info().is_none());

    let mut large = events::audit(now, 1);
    large.details_json = format!("\"{}\"", "x".repeat(6 * 1024 * 1024));
    let status =
        client.record_events(RecordEventsRequest { events: vec![large], ..Default::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(refusal(&status).1, "TOO_LARGE");
    assert!(status.get_error_details().retry_info().is_none());

    // And the connection goes on.
    let answer = client
        .record_events(RecordEventsRequest { events: vec![events::audit(now, 2)], ..Default::default() })
        .await
        .unwrap();
    assert_eq!(answer.into_inner().accepted, Some(1));
}

#[tokio::test]
async fn what_cannot_be_decoded_is_refused_with_nothing_echoed() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    // `ListEntriesRequest.page_token`, field 4, with invalid UTF-8; a length beyond the end; groups within groups.
    let invalid_utf8 = b"\x22\x06secr\xff\xfe".to_vec();
    let beyond_the_end = b"\x22\x7fabc".to_vec();
    let nesting = [0x0b; 200].to_vec();
    for message in [invalid_utf8, beyond_the_end, nesting] {
        let channel = sandbox.audit.channel();
        let path = "/activity.audit.v1.AuditQueryService/ListEntries";
        let status = raw::call(channel, path, message.into(), None).await.unwrap_err();
        assert_eq!(refusal(&status).0, Code::InvalidArgument, "{status:?}");
        assert_eq!(refusal(&status).1, "MALFORMED_MESSAGE");
        assert!(status.message().len() < 120, "{}", status.message());
        assert!(!status.message().contains("secr"), "{}", status.message());
        assert!(!status.message().contains("page_token"), "{}", status.message());
    }
}

#[tokio::test]
async fn bad_queries_say_which_field_and_why() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let mut audit = AuditQueryServiceClient::new(sandbox.audit.channel());
    let mut usage = UsageQueryServiceClient::new(sandbox.usage.channel());
    let argument = |reason: &str, field: &str| (Code::InvalidArgument, reason.to_owned(), field.to_owned());
    let zone = |time_zone: &str| Some(TimeRange { range: None, time_zone: time_zone.into() });

    let list = |request: ListEntriesRequest| {
        let mut audit = audit.clone();
        async move { refusal(&audit.list_entries(request).await.unwrap_err()) }
    };
    let base = ListEntriesRequest::default;
    assert_eq!(
        list(ListEntriesRequest { time_range: zone("Mars/Olympus"), ..base() }).await,
        argument("UNKNOWN_TIME_ZONE", "time_range.time_zone")
    );
    assert_eq!(list(ListEntriesRequest { page_size: 1001, ..base() }).await, argument("INVALID_ARGUMENT", "page_size"));
    assert_eq!(list(ListEntriesRequest { page_size: -1, ..base() }).await, argument("INVALID_ARGUMENT", "page_size"));
    assert_eq!(list(ListEntriesRequest { order: 9, ..base() }).await, argument("INVALID_ARGUMENT", "order"));
    assert_eq!(
        list(ListEntriesRequest { page_token: "AAAA".into(), ..base() }).await,
        argument("INVALID_PAGE_TOKEN", "page_token")
    );
    let filter = AuditFilter { outcomes: vec![44], ..AuditFilter::default() };
    assert_eq!(
        list(ListEntriesRequest { filter: Some(filter), ..base() }).await,
        argument("INVALID_ARGUMENT", "filter.outcomes[0]")
    );
    let filter = AuditFilter { actions: vec!["model.*.x".into()], ..AuditFilter::default() };
    assert_eq!(
        list(ListEntriesRequest { filter: Some(filter), ..base() }).await,
        argument("INVALID_ACTION", "filter.actions[0]")
    );
    let filter = AuditFilter { actors: vec!["a".into(); 1001], ..AuditFilter::default() };
    assert_eq!(
        list(ListEntriesRequest { filter: Some(filter), ..base() }).await,
        argument("INVALID_ARGUMENT", "filter.actors")
    );
    let filter = UsageFilter { user_ids: vec!["u".into(); 1001], ..UsageFilter::default() };
    let status = usage.list_requests(ListRequestsRequest { filter: Some(filter), ..Default::default() }).await;
    assert_eq!(refusal(&status.unwrap_err()), argument("INVALID_ARGUMENT", "filter.user_ids"));
    let backwards = Interval {
        start: Some(Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        end: Some(Timestamp { seconds: 1_600_000_000, nanos: 0 }),
    };
    let range = TimeRange { range: Some(Range::Interval(backwards)), time_zone: String::new() };
    assert_eq!(
        list(ListEntriesRequest { time_range: Some(range), ..base() }).await,
        argument("INVALID_ARGUMENT", "time_range.interval")
    );
    let range = TimeRange { range: Some(Range::Preset(0)), time_zone: String::new() };
    assert_eq!(
        list(ListEntriesRequest { time_range: Some(range), ..base() }).await,
        argument("INVALID_ARGUMENT", "time_range.preset")
    );

    let status = audit.export_entries(ExportEntriesRequest { format: 1, ..ExportEntriesRequest::default() }).await;
    assert_eq!(refusal(&status.unwrap_err()), argument("INVALID_ARGUMENT", "time_range"));
    let status = audit.get_entry(GetEntryRequest::default()).await.unwrap_err();
    assert_eq!(refusal(&status), argument("REQUIRED", "key"));
    let key = activity_proto::audit::v1::get_entry_request::Key::Id(events::id(SystemTime::now(), 1));
    let status = audit.get_entry(GetEntryRequest { key: Some(key) }).await.unwrap_err();
    assert_eq!((status.code(), refusal(&status).1.as_str()), (Code::NotFound, "NOT_FOUND"));

    let status = usage.list_breakdown(ListBreakdownRequest::default()).await.unwrap_err();
    assert_eq!(refusal(&status), argument("REQUIRED", "group_by"));
    let group_by = vec![Dimension::User.into(), Dimension::User.into()];
    let status = usage.list_breakdown(ListBreakdownRequest { group_by, ..Default::default() }).await.unwrap_err();
    assert_eq!(refusal(&status), argument("INVALID_ARGUMENT", "group_by[1]"));
    let status = usage.get_time_series(GetTimeSeriesRequest::default()).await.unwrap_err();
    assert_eq!(refusal(&status), argument("REQUIRED", "bucket"));
    let range = TimeRange {
        range: Some(Range::Preset(activity_proto::common::v1::TimeRangePreset::Last30Days.into())),
        time_zone: String::new(),
    };
    let request = GetTimeSeriesRequest { time_range: Some(range), bucket: Bucket::Minute.into(), ..Default::default() };
    let status = usage.get_time_series(request).await.unwrap_err();
    assert_eq!(refusal(&status), argument("TOO_MANY_POINTS", "bucket"));
    assert!(status.message().contains("HOUR"), "{}", status.message());
}

#[tokio::test]
async fn a_page_token_serves_its_own_query_only() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let now = SystemTime::now();
    let events = (0..10).map(|n| events::usage(now, n)).collect();
    UsageIngestServiceClient::new(sandbox.usage.channel()).record_usage(RecordUsageRequest { events }).await.unwrap();
    let mut client = UsageQueryServiceClient::new(sandbox.usage.channel());
    let request = ListRequestsRequest { page_size: 3, ..ListRequestsRequest::default() };
    let page_token = client.list_requests(request.clone()).await.unwrap().into_inner().next_page_token;
    assert!(!page_token.is_empty());

    let mut other = ListRequestsRequest { page_token: page_token.clone(), ..request.clone() };
    other.filter = Some(UsageFilter { user_ids: vec!["user-1".into()], ..Default::default() });
    let status = client.list_requests(other).await.unwrap_err();
    assert_eq!(refusal(&status).1, "INVALID_PAGE_TOKEN");

    // Every single character is under the seal.
    for n in 0..page_token.len() {
        let mut tampered = page_token.clone().into_bytes();
        tampered[n] = if tampered[n] == b'A' { b'B' } else { b'A' };
        let page_token = String::from_utf8(tampered).unwrap();
        let status = client.list_requests(ListRequestsRequest { page_token, ..request.clone() }).await.unwrap_err();
        assert_eq!(refusal(&status).1, "INVALID_PAGE_TOKEN", "character {n}");
    }
    let page = client.list_requests(ListRequestsRequest { page_token, ..request }).await.unwrap().into_inner();
    assert_eq!(page.requests.len(), 3);
}
