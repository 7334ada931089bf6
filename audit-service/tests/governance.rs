//! What is kept, what goes, and what must stay, as clients are told of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod secured;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use activity_proto::audit::v1 as proto;
use activity_proto::common::v1 as common;
use audit_service::retention::{Step, Surroundings};
use proto::get_entry_request::Key;
use secured::{Client, Service, event, reason};
use service_core::clock::{now_us, to_timestamp};
use testkit::eventually;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(30);
const LOG: &str = "own";

/// A clock that a test puts forward.
#[derive(Debug, Default)]
struct Clock(AtomicI64);

impl Surroundings for Clock {
    fn now_us(&self) -> i64 {
        now_us() + self.0.load(Ordering::Relaxed)
    }

    fn reached(&self, _: Step) {}
}

fn hold(actor: &str, hold_id: &str) -> proto::PlaceLegalHoldRequest {
    proto::PlaceLegalHoldRequest {
        instance_id: LOG.into(),
        reason: "case 17".into(),
        filter: Some(proto::AuditFilter { actors: vec![actor.into()], ..Default::default() }),
        hold_id: hold_id.into(),
        ..Default::default()
    }
}

async fn entry_at(client: &mut Client, sequence: u64) -> Result<proto::AuditEntry, Status> {
    let position = proto::LogPosition { instance_id: LOG.into(), sequence: Some(sequence) };
    let request = proto::GetEntryRequest { key: Some(Key::Position(position)) };
    Ok(client.query.get_entry(request).await?.into_inner().entry.unwrap())
}

async fn export(client: &mut Client) -> (Vec<u8>, proto::ExportEnd) {
    let range = proto::SequenceRange { instance_id: LOG.into(), from: None, to: None };
    let request = proto::ExportEntriesRequest {
        range: Some(proto::export_entries_request::Range::SequenceRange(range)),
        format: proto::ExportFormat::Jsonl.into(),
        ..Default::default()
    };
    let mut parts = client.query.export_entries(request).await.unwrap().into_inner();
    let mut lines = Vec::new();
    loop {
        match parts.message().await.unwrap().unwrap().part.unwrap() {
            proto::export_entries_response::Part::Chunk(chunk) => lines.extend(chunk.data),
            proto::export_entries_response::Part::End(end) => return (lines, end),
        }
    }
}

#[tokio::test]
async fn clients_are_told_what_is_kept_what_is_archived_and_what_is_held() {
    let clock = Arc::new(Clock::default());
    let service = Service::start_as(
        |config| config.retention.days = 1.try_into().ok(),
        |server| server.with_retention_in(clock.clone()),
    )
    .await;
    let mut writer = service.client(&service.realm.token("gateway", &["writer"], &[LOG])).await;
    let mut auditor = service.client(&service.realm.token("ada", &["auditor"], &[LOG])).await;
    let mut admin = service.client(&service.realm.token("root", &["super_admin"], &[LOG])).await;
    // Nothing is there, so nothing can be held.
    let error = auditor.governance.place_legal_hold(hold("eve", "")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);

    let begun = now_us() - 1_000_000;
    let by = |n: i64, actor: &str| {
        let mut event = event(begun + n, LOG);
        event.actor.as_mut().unwrap().id = actor.into();
        event
    };
    let events = (0..40).map(|n| by(n, if n % 10 == 3 { "eve" } else { "bob" })).collect();
    let request = proto::RecordEventsRequest { events, ..Default::default() };
    assert_eq!(writer.ingest.record_events(request).await.unwrap().into_inner().accepted(), 40);
    // What the service alone says of itself, nobody else does.
    let mut own = by(50, "mallory");
    own.action = "audit_log.entries_archived".into();
    let answer = writer
        .ingest
        .record_events(proto::RecordEventsRequest { events: vec![own], ..Default::default() })
        .await
        .unwrap();
    assert_eq!(answer.into_inner().rejected[0].reason(), common::ErrorReason::InvalidAction);
    let (before, _) = export(&mut auditor).await;

    // An id of the caller's makes it safe to call again.
    let id = uuid::Uuid::now_v7().to_string();
    let placed = auditor.governance.place_legal_hold(hold("eve", &id)).await.unwrap().into_inner();
    let again = auditor.governance.place_legal_hold(hold("eve", &id)).await.unwrap().into_inner();
    assert_eq!(placed, again);
    let eve = placed.hold.unwrap();
    assert_eq!((eve.hold_id.as_str(), eve.placed_by.as_str(), eve.placed_sequence), (id.as_str(), "ada", Some(40)));
    let error = auditor.governance.place_legal_hold(hold("bob", &id)).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::InvalidArgument, "ID_CONFLICT"));
    let bob = auditor.governance.place_legal_hold(hold("bob", "")).await.unwrap().into_inner().hold.unwrap();
    let told = entry_at(&mut auditor, 41).await.unwrap();
    assert_eq!((told.action.as_str(), told.reason.as_str()), ("audit_log.legal_hold_placed", "case 17"));
    assert_eq!(told.actor.unwrap().id, "ada");
    assert_eq!(told.resources[0].id, bob.hold_id);

    // A day later; whoever releases a hold wakes retention.
    let request = proto::GetCheckpointRequest { instance_id: LOG.into(), min_size: Some(42) };
    eventually(PATIENCE, async || auditor.trust.get_checkpoint(request.clone()).await.is_ok()).await;
    clock.0.store(2 * 86_400_000_000, Ordering::Relaxed);
    let release = proto::ReleaseLegalHoldRequest { hold_id: bob.hold_id.clone(), reason: "closed".into() };
    let error = auditor.governance.release_legal_hold(release.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    let released = admin.governance.release_legal_hold(release.clone()).await.unwrap().into_inner();
    let bob = released.hold.clone().unwrap();
    assert_eq!((bob.released_by.as_str(), bob.release_reason.as_str()), ("root", "closed"));
    assert_eq!(admin.governance.release_legal_hold(release).await.unwrap().into_inner(), released);
    let asked = proto::GetRetentionRequest { instance_id: LOG.into() };
    eventually(PATIENCE, async || {
        let answer = auditor.governance.get_retention(asked.clone()).await.unwrap().into_inner();
        answer.archived_through() >= 42 && entry_at(&mut auditor, 39).await.is_err()
    })
    .await;

    let answer = auditor.governance.get_retention(asked).await.unwrap().into_inner();
    assert_eq!((answer.days, answer.legal_holds), (Some(1), Some(1)));
    assert!(answer.archive.ends_with("audit.db.archive") && answer.kept_from.is_some(), "{answer:?}");
    let listed = proto::ListArchivesRequest { instance_id: LOG.into(), ..Default::default() };
    let segments = auditor.governance.list_archives(listed).await.unwrap().into_inner().segments;
    assert_eq!((segments[0].first_sequence, segments[0].end_sequence), (Some(0), answer.archived_through));
    let gone = entry_at(&mut auditor, 0).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone).as_str()), (Code::OutOfRange, "OUT_OF_RANGE"));
    let segment = segments[0].lines.trim_end_matches(".jsonl.zst");
    assert!(gone.message().contains(segment), "{gone:?}");
    assert_eq!(entry_at(&mut auditor, 13).await.unwrap().actor.unwrap().id, "eve");
    let interval = common::Interval { start: Some(to_timestamp(begun)), end: None };
    let range = common::TimeRange { range: Some(common::time_range::Range::Interval(interval)), ..Default::default() };
    let request = proto::ListEntriesRequest { time_range: Some(range.clone()), ..Default::default() };
    let error = auditor.query.list_entries(request).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
    assert!(error.message().contains("4 of them are held here too") && error.message().contains(&id), "{error:?}");
    let request = proto::ListFacetsRequest { time_range: Some(range), ..Default::default() };
    assert_eq!(auditor.query.list_facets(request).await.unwrap_err().code(), Code::OutOfRange);
    let request = proto::TailEntriesRequest { instance_id: LOG.into(), from_sequence: Some(0), ..Default::default() };
    assert_eq!(auditor.query.tail_entries(request).await.unwrap_err().code(), Code::OutOfRange);
    let late = proto::RecordEventsRequest { events: vec![by(60, "bob")], ..Default::default() };
    let answer = writer.ingest.record_events(late).await.unwrap().into_inner();
    assert_eq!(answer.rejected[0].reason(), common::ErrorReason::BeforeRetention);
    let request = proto::GetInclusionProofRequest { instance_id: LOG.into(), sequence: Some(0), tree_size: None };
    auditor.trust.get_inclusion_proof(request).await.unwrap();
    let (lines, end) = export(&mut auditor).await;
    assert!(lines.starts_with(&before));
    assert_eq!((end.archived_through, end.legal_hold_ids.as_slice()), (segments[0].end_sequence, [id].as_slice()));

    let list = |include_released, page_size, page_token| proto::ListLegalHoldsRequest {
        instance_id: LOG.into(),
        include_released,
        page_size,
        page_token,
    };
    let standing = auditor.governance.list_legal_holds(list(false, 0, String::new())).await.unwrap().into_inner();
    assert_eq!(standing.holds, std::slice::from_ref(&eve));
    let first = auditor.governance.list_legal_holds(list(true, 1, String::new())).await.unwrap().into_inner();
    let rest = auditor.governance.list_legal_holds(list(true, 1, first.next_page_token)).await.unwrap().into_inner();
    assert_eq!([first.holds, rest.holds].concat(), [eve, bob]);
    assert_eq!(rest.next_page_token, "");
}
