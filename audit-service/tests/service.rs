//! The service as its clients see it: a real server on port 0, real clients, SQLite.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod support;

use std::num::NonZeroU64;
use std::time::Duration;

use activity_proto::audit::v1 as proto;
use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::common::v1 as common;
use audit_service::Config;
use prost::Message as _;
use proto::export_entries_request::Range;
use proto::export_entries_response::Part;
use proto::tail_entries_response::Event as Told;
use service_core::clock::{now_us, to_timestamp};
use service_core::config::DatabaseUrl;
use sha2::{Digest as _, Sha256};
use sqlx::Connection as _;
use support::id_at;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A running service and its clients.
struct Service {
    ingest: AuditIngestServiceClient<Channel>,
    query: AuditQueryServiceClient<Channel>,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Service {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database_url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
        Self::start_on(database_url, folder).await
    }

    async fn start_on(database_url: DatabaseUrl, folder: tempfile::TempDir) -> Self {
        let mut config =
            Config { listen: "127.0.0.1:0".parse().unwrap(), metrics_listen: None, database_url, ..Config::default() };
        config.log.folder = Some(folder.path().to_owned());
        config.tail.heartbeat_ms = NonZeroU64::new(100).unwrap();
        config.activity.instance = String::new();
        let server = audit_service::bind(config).await.unwrap();
        let address = format!("http://{}", server.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(shutdown.clone()));
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        Self {
            ingest: AuditIngestServiceClient::new(channel.clone()),
            query: AuditQueryServiceClient::new(channel).max_decoding_message_size(8 << 20),
            shutdown,
            serving,
            _folder: folder,
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
    }

    async fn record(&mut self, events: Vec<proto::AuditEvent>) -> proto::RecordEventsResponse {
        self.ingest
            .record_events(proto::RecordEventsRequest { events, ..Default::default() })
            .await
            .unwrap()
            .into_inner()
    }

    async fn export(&mut self, request: proto::ExportEntriesRequest) -> Exported {
        let mut stream = self.query.export_entries(request).await.unwrap().into_inner();
        let mut exported = Exported::default();
        while let Some(response) = stream.message().await.unwrap() {
            match response.part.unwrap() {
                Part::Chunk(chunk) => exported.chunks.push(chunk),
                Part::End(end) => exported.end = Some(end),
            }
        }
        exported
    }
}

#[derive(Default)]
struct Exported {
    chunks: Vec<proto::ExportChunk>,
    end: Option<proto::ExportEnd>,
}

impl Exported {
    fn data(&self) -> Vec<u8> {
        self.chunks.iter().flat_map(|chunk| chunk.data.clone()).collect()
    }
}

fn event(us: i64) -> proto::AuditEvent {
    proto::AuditEvent {
        id: id_at(us).to_string(),
        occurred_at: Some(to_timestamp(us)),
        instance_id: "prod".into(),
        actor: Some(proto::Actor { id: "u-1".into(), ..Default::default() }),
        action: "model.enabled".into(),
        resources: vec![proto::Resource { r#type: "model".into(), id: "m-1".into(), name: "GPT-4o".into() }],
        outcome: proto::Outcome::Success.into(),
        ..Default::default()
    }
}

fn last_days(days: i64) -> common::TimeRange {
    let start = now_us() - days * 86_400_000_000;
    let interval = common::Interval { start: Some(to_timestamp(start)), end: None };
    common::TimeRange { range: Some(common::time_range::Range::Interval(interval)), time_zone: String::new() }
}

/// The bare reason of an error, which every error has.
fn reason(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    let details = status.get_error_details();
    let info = details.error_info().expect("ErrorInfo");
    assert_eq!(info.domain, "activity");
    info.reason.clone()
}

#[tokio::test]
async fn a_batch_is_answered_event_by_event() {
    let mut service = Service::start().await;
    let now = now_us();
    let good = event(now);
    let bad = proto::AuditEvent { action: "Enable Model".into(), ..event(now) };
    let answer = service.record(vec![bad, good.clone(), good.clone(), event(now)]).await;
    assert_eq!((answer.accepted, answer.duplicate), (Some(2), Some(1)));
    let rejected = &answer.rejected[0];
    assert_eq!(
        (rejected.index, rejected.reason(), rejected.field.as_str()),
        (Some(0), common::ErrorReason::InvalidAction, "action")
    );
    let receipts: Vec<_> =
        answer.receipts.iter().map(|receipt| (receipt.index, receipt.sequence, receipt.duplicate)).collect();
    assert_eq!(receipts, [(Some(1), Some(0), false), (Some(2), Some(0), true), (Some(3), Some(1), false)]);

    use proto::get_entry_request::Key;
    let position = proto::LogPosition { instance_id: "prod".into(), sequence: Some(0) };
    for key in [Key::Id(good.id.clone()), Key::Position(position)] {
        let request = proto::GetEntryRequest { key: Some(key) };
        let entry = service.query.get_entry(request).await.unwrap().into_inner().entry.unwrap();
        assert_eq!(entry.leaf_hash, answer.receipts[0].leaf_hash);
        // An entry is the event and more, on the wire too.
        assert_eq!(proto::AuditEvent::decode(entry.encode_to_vec().as_slice()).unwrap(), good);
        assert_eq!((entry.sequence, entry.recorded_by.as_str()), (Some(0), ""));
    }
    service.stop().await;
}

#[tokio::test]
async fn a_stream_is_answered_in_the_order_of_its_batches() {
    let mut service = Service::start().await;
    let now = now_us();
    let dropped = common::DroppedRange { producer: None, first_sequence: None, last_sequence: None };
    let batches: Vec<_> = (1..=20)
        .map(|batch_id| proto::StreamEventsRequest {
            batch_id,
            events: (0..batch_id % 4).map(|_| event(now)).collect(),
            // A bad one is named; the batch is stored all the same.
            dropped: vec![dropped.clone()],
            ..Default::default()
        })
        .collect();
    let mut answers = service.ingest.stream_events(futures::stream::iter(batches)).await.unwrap().into_inner();
    let mut next = 0;
    for batch_id in 1..=20 {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.batch_id, answer.accepted), (batch_id, Some((batch_id % 4) as u32)));
        let refused: Vec<_> = answer.rejected.iter().map(|range| (range.index, range.field.as_str())).collect();
        assert_eq!(refused, [(None, "dropped[0].producer")]);
        for receipt in answer.receipts {
            assert_eq!(receipt.sequence, Some(next));
            next += 1;
        }
    }
    assert!(answers.message().await.unwrap().is_none());

    let jump =
        [1, 3].map(|batch_id| proto::StreamEventsRequest { batch_id, events: vec![event(now)], ..Default::default() });
    let mut answers = service.ingest.stream_events(futures::stream::iter(jump)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().batch_id, 1);
    let status = answers.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "BATCH_OUT_OF_ORDER"));
    service.stop().await;
}

#[tokio::test]
async fn pages_are_bound_to_their_query_and_range() {
    let mut service = Service::start().await;
    let now = now_us();
    service.record((0..10).map(|at| event(now - at * 1_000)).collect()).await;
    let request = proto::ListEntriesRequest { page_size: 4, ..Default::default() };
    let first = service.query.list_entries(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.entries.len(), 4);
    // Newer than the range that the first page settled, though it would match "the last 24 hours" of now.
    service.record(vec![event(now_us() + 1_000_000)]).await;
    let mut seen: Vec<_> = first.entries.iter().map(|entry| entry.sequence.unwrap()).collect();
    let mut token = first.next_page_token.clone();
    while !token.is_empty() {
        let request = proto::ListEntriesRequest { page_token: token, ..request.clone() };
        let page = service.query.list_entries(request).await.unwrap().into_inner();
        assert_eq!(page.interval, first.interval);
        seen.extend(page.entries.iter().map(|entry| entry.sequence.unwrap()));
        token = page.next_page_token;
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());

    let other = proto::ListEntriesRequest {
        page_token: first.next_page_token,
        filter: Some(proto::AuditFilter { actors: vec!["u-2".into()], ..Default::default() }),
        ..request
    };
    let status = service.query.list_entries(other).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_PAGE_TOKEN"));
    service.stop().await;
}

#[tokio::test]
async fn bad_questions_are_told_what_is_wrong() {
    let mut service = Service::start().await;
    let filter = |filter: proto::AuditFilter| proto::ListEntriesRequest { filter: Some(filter), ..Default::default() };
    let zone = common::TimeRange { time_zone: "Mars/Olympus".into(), ..Default::default() };
    for (request, expected) in [
        (proto::ListEntriesRequest { page_size: 1_001, ..Default::default() }, "INVALID_ARGUMENT"),
        (proto::ListEntriesRequest { page_size: -1, ..Default::default() }, "INVALID_ARGUMENT"),
        (proto::ListEntriesRequest { order: 9, ..Default::default() }, "INVALID_ARGUMENT"),
        (proto::ListEntriesRequest { page_token: "x".into(), ..Default::default() }, "INVALID_PAGE_TOKEN"),
        (proto::ListEntriesRequest { time_range: Some(zone), ..Default::default() }, "UNKNOWN_TIME_ZONE"),
        (filter(proto::AuditFilter { actions: vec!["model*".into()], ..Default::default() }), "INVALID_ACTION"),
        (filter(proto::AuditFilter { changed_paths: vec!["a".into()], ..Default::default() }), "INVALID_JSON_POINTER"),
        (filter(proto::AuditFilter { outcomes: vec![0], ..Default::default() }), "INVALID_ARGUMENT"),
        (filter(proto::AuditFilter { stages: vec![7], ..Default::default() }), "INVALID_ARGUMENT"),
        (filter(proto::AuditFilter { actors: vec!["a".into(); 1_001], ..Default::default() }), "INVALID_ARGUMENT"),
        (filter(proto::AuditFilter { actors: vec![String::new()], ..Default::default() }), "REQUIRED"),
        (filter(proto::AuditFilter { text: "!!!".into(), ..Default::default() }), "INVALID_ARGUMENT"),
    ] {
        let status = service.query.list_entries(request.clone()).await.expect_err("refused");
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, expected), "{request:?}");
    }
    let status = service.query.get_entry(proto::GetEntryRequest { key: None }).await.unwrap_err();
    assert_eq!(reason(&status), "REQUIRED");
    let key = |id: String| proto::GetEntryRequest { key: Some(proto::get_entry_request::Key::Id(id)) };
    let status = service.query.get_entry(key(id_at(1).to_string())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "NOT_FOUND"));
    let status = service.query.get_entry(key("42".into())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_ID"));
    let many = proto::RecordEventsRequest { events: vec![proto::AuditEvent::default(); 1_001], ..Default::default() };
    let status = service.ingest.record_events(many).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "TOO_LARGE"));
    let status = service.query.tail_entries(proto::TailEntriesRequest::default()).await.unwrap_err();
    assert_eq!(reason(&status), "REQUIRED");
    let status = service.query.export_entries(proto::ExportEntriesRequest::default()).await.unwrap_err();
    assert_eq!(reason(&status), "REQUIRED");
    assert_eq!(service.record(vec![]).await.accepted, Some(0));
    service.stop().await;
}

#[tokio::test]
async fn an_export_resumes_at_every_chunk_byte_for_byte() {
    let users = proto::AuditFilter { actions: vec!["user.*".into()], ..Default::default() };
    let log = |from, to| Range::SequenceRange(proto::SequenceRange { instance_id: "prod".into(), from, to });
    for (range, filter, entries) in [
        (Range::TimeRange(last_days(1)), None, 500),
        (log(Some(5), None), None, 495),
        (Range::TimeRange(last_days(1)), Some(users.clone()), 200),
        (log(None, Some(310)), Some(users), 10),
    ] {
        for format in [proto::ExportFormat::Jsonl, proto::ExportFormat::Csv] {
            let request = proto::ExportEntriesRequest {
                range: Some(range.clone()),
                filter: filter.clone(),
                format: format.into(),
                resume_token: String::new(),
                ..Default::default()
            };
            resumes(request, entries).await;
        }
    }
}

async fn resumes(request: proto::ExportEntriesRequest, entries: u64) {
    let mut service = Service::start().await;
    let now = now_us();
    let sized = |us, action: &str| proto::AuditEvent {
        action: action.into(),
        details_json: format!("\"{}\"", "x".repeat(3_000)),
        ..event(us)
    };
    service.record((0..300).map(|at| sized(now - at * 7_777, "model.enabled")).collect()).await;
    service.record((0..200).map(|at| sized(now - at * 9_999, "user.created")).collect()).await;

    let whole = service.export(request.clone()).await;
    let end = whole.end.as_ref().expect("an end");
    let data = whole.data();
    assert_eq!(end.entries, Some(entries));
    assert_eq!(end.sha256, Sha256::digest(&data).to_vec());
    assert!(entries < 100 || whole.chunks.len() > 1);
    assert!(whole.chunks.iter().all(|chunk| chunk.data.ends_with(b"\n")));

    // Written meanwhile, and late: in none of the rests.
    service.record(vec![sized(now - 500_000, "user.created")]).await;
    let mut had = 0;
    for chunk in &whole.chunks {
        had += chunk.data.len();
        let token = chunk.resume_token.clone();
        let rest = service.export(proto::ExportEntriesRequest { resume_token: token, ..request.clone() }).await;
        assert!(rest.data() == data[had..], "the rest differs");
        assert_eq!(rest.end.as_ref(), Some(end));
    }

    let lines = String::from_utf8(data).unwrap();
    let records = match proto::ExportFormat::try_from(request.format).unwrap() {
        proto::ExportFormat::Jsonl => lines.lines().count(),
        _ => csv::Reader::from_reader(lines.as_bytes()).records().count(),
    };
    assert_eq!(records as u64, entries);

    let stolen = proto::ExportEntriesRequest {
        resume_token: whole.chunks[0].resume_token.clone(),
        filter: Some(proto::AuditFilter { actors: vec!["other".into()], ..Default::default() }),
        ..request
    };
    let status = service.query.export_entries(stolen).await.unwrap_err();
    assert_eq!(reason(&status), "INVALID_PAGE_TOKEN");
    service.stop().await;
}

#[tokio::test]
async fn an_empty_export_is_whole() {
    let mut service = Service::start().await;
    for (format, lines) in [(proto::ExportFormat::Jsonl, 0), (proto::ExportFormat::Csv, 1)] {
        let request = proto::ExportEntriesRequest {
            range: Some(Range::TimeRange(last_days(1))),
            format: format.into(),
            ..Default::default()
        };
        let exported = service.export(request).await;
        let end = exported.end.as_ref().unwrap();
        assert_eq!(end.entries, Some(0));
        assert_eq!(end.sha256, Sha256::digest(exported.data()).to_vec());
        assert_eq!(String::from_utf8(exported.data()).unwrap().lines().count(), lines);
    }
    service.stop().await;
}

/// Heads that don't fit into a token are kept in the database.
#[tokio::test]
async fn an_export_of_many_instances_resumes() {
    let mut service = Service::start().await;
    let now = now_us();
    let of = |at: i64| proto::AuditEvent {
        instance_id: format!("instance-{at:0>100}"),
        details_json: format!("\"{}\"", "x".repeat(5_000)),
        ..event(now - at)
    };
    service.record((0..200).map(of).collect()).await;
    let request = proto::ExportEntriesRequest {
        range: Some(Range::TimeRange(last_days(1))),
        format: proto::ExportFormat::Jsonl.into(),
        ..Default::default()
    };
    let whole = service.export(request.clone()).await;
    assert_eq!(whole.end.as_ref().unwrap().heads.len(), 200);
    assert!(whole.chunks.len() > 2);
    let token = whole.chunks[0].resume_token.clone();
    let rest = service.export(proto::ExportEntriesRequest { resume_token: token, ..request }).await;
    assert_eq!(rest.data(), whole.data()[whole.chunks[0].data.len()..]);
    assert_eq!(rest.end, whole.end);
    service.stop().await;
}

/// A lock on the table stands for entries without end among which none is asked for.
#[tokio::test]
async fn a_stop_ends_an_export_that_finds_nothing_on_its_way() {
    if testkit::Postgres::skipped() {
        return;
    }
    let url = testkit::Postgres::shared().await.create_database().await;
    let mut service = Service::start_on(DatabaseUrl::new(url.clone()).unwrap(), tempfile::tempdir().unwrap()).await;
    service.record(vec![event(now_us())]).await;
    let mut outside = sqlx::PgConnection::connect(&url).await.unwrap();
    let mut locked = outside.begin().await.unwrap();
    sqlx::query("LOCK TABLE audit_entries IN ACCESS EXCLUSIVE MODE").execute(&mut *locked).await.unwrap();
    let request = proto::ExportEntriesRequest {
        range: Some(Range::TimeRange(last_days(1))),
        format: proto::ExportFormat::Jsonl.into(),
        ..Default::default()
    };
    let mut export = service.query.export_entries(request).await.unwrap().into_inner();
    service.shutdown.cancel();
    let status = export.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    locked.rollback().await.unwrap();
    service.stop().await;
}

#[tokio::test]
async fn a_tail_delivers_each_entry_once_and_resumes() {
    let mut service = Service::start().await;
    let now = now_us();
    service.record((0..5).map(|_| event(now)).collect()).await;
    let request = proto::TailEntriesRequest { instance_id: "prod".into(), from_sequence: Some(2), filter: None };
    let mut tail = service.query.tail_entries(request.clone()).await.unwrap().into_inner();
    let mut sequences = Vec::new();
    let mut beats = 0;
    while sequences.len() < 3 || beats < 2 {
        match tail.message().await.unwrap().unwrap().event.unwrap() {
            Told::Entry(entry) => sequences.push(entry.sequence.unwrap()),
            Told::Heartbeat(beat) => {
                assert_eq!(beat.next_sequence, Some(2 + sequences.len() as u64));
                beats += 1;
            }
        }
    }
    service.record(vec![event(now), proto::AuditEvent { instance_id: "other".into(), ..event(now) }]).await;
    service.record(vec![event(now)]).await;
    while sequences.len() < 5 {
        if let Told::Entry(entry) = tail.message().await.unwrap().unwrap().event.unwrap() {
            sequences.push(entry.sequence.unwrap());
        }
    }
    assert_eq!(sequences, [2, 3, 4, 5, 6]);
    drop(tail);

    // From now on, filtered: the first it hears of is what comes now.
    let filter = proto::AuditFilter { actions: vec!["user.*".into()], ..Default::default() };
    let request = proto::TailEntriesRequest { from_sequence: None, filter: Some(filter), ..request };
    let mut tail = service.query.tail_entries(request).await.unwrap().into_inner();
    let first = tail.message().await.unwrap().unwrap().event.unwrap();
    assert!(matches!(first, Told::Heartbeat(beat) if beat.next_sequence == Some(7)));
    service.record(vec![event(now), proto::AuditEvent { action: "user.created".into(), ..event(now) }]).await;
    loop {
        if let Told::Entry(entry) = tail.message().await.unwrap().unwrap().event.unwrap() {
            assert_eq!(entry.sequence, Some(8));
            break;
        }
    }

    service.shutdown.cancel();
    let status = loop {
        if let Err(status) = tail.message().await {
            break status;
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    tokio::time::timeout(Duration::from_secs(5), service.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn facets_tell_what_there_is() {
    let mut service = Service::start().await;
    service.record(vec![event(now_us()), event(now_us())]).await;
    let facets = service.query.list_facets(proto::ListFacetsRequest::default()).await.unwrap().into_inner();
    assert_eq!(facets.actors, [proto::Facet { value: "u-1".into(), count: Some(2) }]);
    assert_eq!(facets.instances[0].value, "prod");
    assert!(facets.interval.is_some());
    service.stop().await;
}

/// PostgreSQL cannot hold U+0000; no log has such a name, on either engine.
#[tokio::test]
async fn a_log_whose_name_no_event_can_have_is_refused() {
    let mut service = Service::start().await;
    let instance_id = "a\0".to_owned();
    let position = proto::LogPosition { instance_id: instance_id.clone(), sequence: Some(0) };
    let key = Some(proto::get_entry_request::Key::Position(position));
    let got = service.query.get_entry(proto::GetEntryRequest { key }).await.map(drop);
    let tail = proto::TailEntriesRequest { instance_id: instance_id.clone(), ..Default::default() };
    let tailed = service.query.tail_entries(tail).await.map(drop);
    let range = Some(Range::SequenceRange(proto::SequenceRange { instance_id, from: None, to: None }));
    let export = proto::ExportEntriesRequest { range, format: proto::ExportFormat::Jsonl.into(), ..Default::default() };
    let exported = service.query.export_entries(export).await.map(drop);
    for refused in [got, tailed, exported] {
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    }
    service.stop().await;
}

#[tokio::test]
async fn a_log_says_where_it_ends() {
    use proto::get_entry_request::Key;
    let mut service = Service::start().await;
    service.record((0..3).map(|_| event(now_us())).collect()).await;
    let at = |instance: &str, sequence| proto::GetEntryRequest {
        key: Some(Key::Position(proto::LogPosition { instance_id: instance.into(), sequence: Some(sequence) })),
    };
    for (request, text) in [
        (at("prod", 3), "there is no entry with sequence 3 in this log, which ends with 2"),
        (at("prud", 0), "the log of instance \"prud\" has no entries"),
    ] {
        let status = service.query.get_entry(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, text));
    }
    let status = service.query.get_entry(proto::GetEntryRequest { key: None }).await.unwrap_err();
    assert_eq!(status.message(), "key is required: id or position");

    let from = |instance: &str, from| proto::TailEntriesRequest {
        instance_id: instance.into(),
        from_sequence: Some(from),
        filter: None,
    };
    // Where the log ends the next entry comes, also the first one of all.
    for request in [from("prod", 3), from("new", 0)] {
        service.query.tail_entries(request).await.unwrap();
    }
    for (request, text) in [
        (from("prod", 4), "from_sequence is 4, allowed are 0 to 3, where the log of this instance ends"),
        (from("new", 1), "from_sequence is 1, allowed are 0 to 0, where the log of this instance ends"),
    ] {
        let status = service.query.tail_entries(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    }
    service.stop().await;
}

#[tokio::test]
async fn a_filter_that_could_find_nothing_is_refused_with_what_is_allowed() {
    let mut service = Service::start().await;
    for (filter, allowed) in [
        (
            proto::AuditFilter { changed_paths: vec!["/routing/*".into()], ..Default::default() },
            "allowed are exact paths such as /routing/default/model",
        ),
        (
            proto::AuditFilter { text: "  ".into(), ..Default::default() },
            "allowed are words of letters and digits, or no text for everything",
        ),
    ] {
        let request = proto::ListEntriesRequest { filter: Some(filter), ..Default::default() };
        let status = service.query.list_entries(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().ends_with(allowed), "{}", status.message());
    }
    service.stop().await;
}
