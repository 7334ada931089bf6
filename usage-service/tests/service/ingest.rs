//! Writing: repeats, conflicts, refusals, order.

use activity_proto::common::v1::{DroppedRange, ErrorReason, Producer};
use activity_proto::usage::v1::{
    EstimateCostRequest, GetSummaryRequest, ListRequestsRequest, RecordUsageRequest, StreamUsageRequest, UsageEvent,
};
use service_core::server::MAX_INGEST_MESSAGE_BYTES;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::codec::CompressionEncoding;

use crate::harness::{Service, config, day, event, refusal};

#[tokio::test]
async fn repeats_are_counted_and_conflicts_are_told_apart() {
    let service = Service::start().await;
    let mut other = event(1);
    other.user_id = "someone else".into();
    let answer = service.record(vec![event(1), event(1), other.clone(), event(2)]).await;
    assert_eq!((answer.accepted, answer.duplicate), (Some(2), Some(1)));
    let rejected = &answer.rejected[0];
    assert_eq!((rejected.index, rejected.reason()), (Some(2), ErrorReason::IdConflict));
    assert_eq!(rejected.field, "id");

    // The same over several batches, and after a restart.
    let service = service.restart().await;
    let answer = service.record(vec![other, event(2), event(3)]).await;
    assert_eq!((answer.accepted, answer.duplicate), (Some(1), Some(1)));
    assert_eq!(answer.rejected[0].reason(), ErrorReason::IdConflict);
}

#[tokio::test]
async fn the_same_event_in_other_words_is_a_repeat() {
    let service = Service::start().await;
    service.record_new(vec![event(1)]).await;
    let mut same = event(1);
    same.id = same.id.to_uppercase();
    same.model = same.requested_model.clone();
    same.occurred_at.as_mut().unwrap().nanos = 999;
    same.tokens.as_mut().unwrap().input_cache_read = Some(0);
    same.producer = Some(Producer { id: "sdk".into(), epoch: 1, sequence: Some(0) });
    let answer = service.record(vec![same]).await;
    assert_eq!((answer.accepted, answer.duplicate, answer.rejected.len()), (Some(0), Some(1), 0));
}

#[tokio::test]
async fn a_producers_number_belongs_to_one_event() {
    let service = Service::start().await;
    let numbered = |n, epoch, sequence| {
        let mut event = event(n);
        event.producer = Some(Producer { id: "sdk".into(), epoch, sequence: Some(sequence) });
        event
    };
    service.record_new(vec![numbered(1, 1, 7), numbered(2, 1, 5), numbered(3, 2, 7)]).await;
    // Within a batch, and against what is stored; the neighbours are stored.
    let answer = service.record(vec![numbered(4, 1, 7), numbered(6, 1, 6), numbered(5, 1, 6)]).await;
    assert_eq!(answer.accepted, Some(1));
    let told: Vec<_> = answer.rejected.iter().map(|r| (r.index, r.reason())).collect();
    assert_eq!(told, [(Some(0), ErrorReason::ProducerConflict), (Some(2), ErrorReason::ProducerConflict)]);
    // The number of the first try was taken; the event may come again with another.
    service.record_new(vec![numbered(4, 1, 8)]).await;
}

#[tokio::test]
async fn units_that_writers_made_up_are_one_reason() {
    let mut service = Service::start().await;
    let made_up = |n: u64| UsageEvent { other_units: [(format!("unit-{n}"), 1)].into(), ..event(n) };
    service.record_new((0..3).map(made_up).collect()).await;
    let list = ListRequestsRequest { time_range: day(), ..Default::default() };
    let listed = service.query.list_requests(list).await.unwrap().into_inner().requests;
    let reasons: Vec<&str> = listed.iter().map(|request| request.unpriced_reason.as_str()).collect();
    assert_eq!(reasons, ["other_units: the price book has no such unit"; 3]);
    assert!(listed[0].other_units.contains_key("unit-0"), "the request has the name");

    let request = EstimateCostRequest {
        provider: "openai".into(),
        model: "gpt-4o".into(),
        other_units: [("unit-9".to_owned(), 1)].into(),
        ..Default::default()
    };
    let reason = service.prices.estimate_cost(request).await.unwrap().into_inner().unpriced_reason;
    assert!(reason.contains("unit-9"), "{reason}");
}

#[tokio::test]
async fn small_batches_that_come_compressed_and_together_do_not_wait_for_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder);
    // Room for two of those, however small they are.
    config.limits.ingest_bytes_per_caller = (2 * MAX_INGEST_MESSAGE_BYTES).try_into().unwrap();
    config.limits.room_timeout_ms = 2_000.try_into().unwrap();
    let service = Service::start_as(config, folder).await;
    let mut ingest = service.ingest.clone().send_compressed(CompressionEncoding::Gzip);
    let batch = |n: u64| StreamUsageRequest { batch_id: n, events: vec![event(n)], dropped: vec![] };
    let stream = ingest.stream_usage(tokio_stream::iter((1..=40).map(batch))).await.unwrap();
    let answers: Vec<_> = stream.into_inner().map(|answer| answer.map(|answer| answer.accepted)).collect().await;
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Ok(Some(1)))).count(), 40, "{answers:?}");
}

#[tokio::test]
async fn a_stream_answers_batches_in_order_and_ends_on_a_gap() {
    let mut service = Service::start().await;
    let batch = |batch_id, events| StreamUsageRequest { batch_id, events, dropped: vec![] };
    let mut dropped = batch(2, vec![]);
    dropped.dropped = vec![DroppedRange {
        producer: Some(Producer { id: "sdk".into(), epoch: 1, sequence: None }),
        first_sequence: Some(3),
        last_sequence: Some(9),
    }];
    let mut bad = event(3);
    bad.status = 0;
    let batches = [
        batch(1, vec![event(1), event(2)]),
        dropped,
        batch(3, vec![bad, event(1), event(4)]),
        batch(5, vec![event(5)]),
    ];
    let stream = service.ingest.stream_usage(tokio_stream::iter(batches)).await.unwrap();
    let answers: Vec<_> = stream.into_inner().collect().await;
    let told: Vec<_> = answers[..3]
        .iter()
        .map(|answer| answer.as_ref().unwrap())
        .map(|answer| (answer.batch_id, answer.accepted, answer.duplicate, answer.rejected.len()))
        .collect();
    assert_eq!(told, [(1, Some(2), Some(0), 0), (2, Some(0), Some(0), 0), (3, Some(1), Some(1), 1)]);
    let status = answers[3].as_ref().unwrap_err();
    assert_eq!(refusal(status), ("BATCH_OUT_OF_ORDER".into(), "batch_id".into()));
    assert_eq!(answers.len(), 4);

    // What was acknowledged is in every answer at once.
    let request = GetSummaryRequest { time_range: day(), ..Default::default() };
    let summary = service.query.get_summary(request).await.unwrap().into_inner().summary.unwrap();
    assert_eq!(summary.requests, Some(3));
}

#[tokio::test]
async fn a_batch_over_the_limit_is_refused_whole_and_for_good() {
    let mut service = Service::start().await;
    let request = RecordUsageRequest { events: (0..1_001).map(event).collect() };
    let status = service.ingest.record_usage(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(refusal(&status), ("TOO_LARGE".into(), "events".into()));
    service.record_new((0..1_000).map(event).collect()).await;
}

#[tokio::test]
async fn a_bad_dropped_range_is_named_and_the_rest_is_stored() {
    let mut service = Service::start().await;
    let range = |first, last| DroppedRange {
        producer: Some(Producer { id: "sdk".into(), epoch: 1, sequence: None }),
        first_sequence: Some(first),
        last_sequence: Some(last),
    };
    let batch = |batch_id, events, dropped| StreamUsageRequest { batch_id, events, dropped };
    let batches =
        [batch(1, vec![event(1)], vec![range(3, 9), range(9, 3)]), batch(2, vec![event(2)], vec![range(9, 10)])];
    let stream = service.ingest.stream_usage(tokio_stream::iter(batches)).await.unwrap();
    let answers: Vec<_> = stream.into_inner().map(Result::unwrap).collect().await;
    assert_eq!(answers.iter().map(|answer| answer.accepted).collect::<Vec<_>>(), [Some(1), Some(1)]);
    let rejected = &answers[0].rejected[0];
    assert_eq!(
        (rejected.reason(), rejected.field.as_str()),
        (ErrorReason::InvalidArgument, "dropped[1].last_sequence")
    );
    assert_eq!(rejected.index, None, "no event of the batch");
    assert_eq!((answers[0].rejected.len(), answers[1].rejected.len()), (1, 0));
}
