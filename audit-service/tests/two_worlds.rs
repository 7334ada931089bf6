//! Nothing tells of what a caller may not see: two worlds that differ only in that give the same answers, codes, pages
//! and lengths of tokens, whatever is asked.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod secured;
mod support;

use activity_proto::audit::v1 as proto;
use activity_proto::common::v1 as common;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use proto::export_entries_request::Range as ExportRange;
use proto::get_entry_request::Key;
use secured::{Client, Service, reason};
use service_core::clock::{now_us, to_timestamp};
use tonic::Status;

const SEEN: [&str; 2] = ["own-1", "own-2"];
const HIDDEN: [&str; 3] = ["foreign-1", "foreign-2", "OWN-1"];
const ACTORS: [&str; 3] = ["u-1", "u-2", "shared"];
const ACTIONS: [&str; 3] = ["model.enabled", "model.disabled", "user.created"];

/// What an event is but for its time and id.
type Content = (&'static str, &'static str, &'static str, i64);

fn contents(instances: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<Content>> {
    let content = (select(instances), select(&ACTORS[..]), select(&ACTIONS[..]), 0..2_000_i64);
    prop::collection::vec(content, 0..most)
}

#[derive(Debug, Clone)]
enum Question {
    List { instances: Vec<&'static str>, actor: Option<&'static str>, page_size: u32 },
    Facets { instances: Vec<&'static str> },
    SeenId(Index),
    HiddenId(Index),
    Position { instance: &'static str, sequence: u64 },
    Tail { instance: &'static str, from: Option<u64> },
    Export { instances: Vec<&'static str>, format: proto::ExportFormat },
    Log { instance: &'static str },
}

fn a_question() -> impl Strategy<Value = Question> {
    let one = || select(&["own-1", "own-2", "foreign-1", "foreign-2", "OWN-1", "nowhere"][..]);
    let some = || prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(one(), 1..3)];
    prop_oneof![
        3 => (some(), prop::option::of(select(&ACTORS[..])), select(&[1_u32, 3, 1_000][..]))
            .prop_map(|(instances, actor, page_size)| Question::List { instances, actor, page_size }),
        2 => some().prop_map(|instances| Question::Facets { instances }),
        1 => any::<Index>().prop_map(Question::SeenId),
        2 => any::<Index>().prop_map(Question::HiddenId),
        1 => (one(), 0..4_u64).prop_map(|(instance, sequence)| Question::Position { instance, sequence }),
        1 => (one(), prop::option::of(0..4_u64)).prop_map(|(instance, from)| Question::Tail { instance, from }),
        1 => (some(), select(&[proto::ExportFormat::Jsonl, proto::ExportFormat::Csv][..]))
            .prop_map(|(instances, format)| Question::Export { instances, format }),
        1 => one().prop_map(|instance| Question::Log { instance }),
    ]
}

type Case = (Vec<Content>, Vec<Content>, Vec<Question>);

fn made(now: i64, (instance, actor, action, ago_ms): Content) -> proto::AuditEvent {
    let mut event = secured::event(now - ago_ms * 1_000, instance);
    event.actor = Some(proto::Actor { id: actor.into(), ..Default::default() });
    event.action = action.into();
    event
}

async fn write(service: &Service, events: Vec<proto::AuditEvent>) {
    let mut writer = service.client(&service.realm.token("w", &["writer"], &["*"])).await;
    for events in events.chunks(7) {
        let request = proto::RecordEventsRequest { events: events.to_vec(), ..Default::default() };
        assert_eq!(writer.ingest.record_events(request).await.unwrap().into_inner().rejected, []);
    }
}

/// Everything that an answer tells but when it was stored, which no two worlds share.
#[derive(Debug, PartialEq)]
enum Told {
    Refused { code: i32, reason: String, message: String, details: usize },
    Page { entries: Vec<proto::AuditEntry>, token: usize },
    Facets(proto::ListFacetsResponse),
    Entries { entries: Vec<Option<proto::AuditEntry>> },
    Export { chunks: Vec<(usize, usize)>, lines: Vec<String>, entries: u64, heads: Vec<(String, Option<u64>)> },
}

fn refused(status: &Status) -> Told {
    let message = status.message().to_owned();
    Told::Refused { code: status.code().into(), reason: reason(status), message, details: status.details().len() }
}

fn without_time(mut entry: proto::AuditEntry) -> proto::AuditEntry {
    entry.recorded_at = None;
    entry.leaf_hash.clear();
    entry
}

/// Lines without the times at which they were recorded, and what hangs on these.
fn lines_without_time(data: Vec<u8>) -> Vec<String> {
    let text = String::from_utf8(data).unwrap();
    text.lines()
        .map(|line| match serde_json::from_str::<serde_json::Value>(line) {
            Ok(mut entry) => {
                entry["recordedAt"] = serde_json::Value::Null;
                entry.to_string()
            }
            // CSV: the columns with letters only of hashes and times are left out by their length.
            Err(_) => line.split(',').filter(|cell| cell.len() != 64 && !cell.starts_with("20")).collect(),
        })
        .collect()
}

fn filter(instances: &[&str], actor: Option<&str>) -> Option<proto::AuditFilter> {
    Some(proto::AuditFilter {
        instance_ids: instances.iter().map(|&instance| instance.into()).collect(),
        actors: actor.into_iter().map(str::to_owned).collect(),
        ..Default::default()
    })
}

/// Answers to a question, one after another.
async fn ask(client: &mut Client, question: &Question, now: i64, ids: [&[String]; 2]) -> Vec<Told> {
    let mut told = Vec::new();
    if let Err(status) = tell(client, question, now, ids, &mut told).await {
        told.push(refused(&status));
    }
    told
}

async fn tell(
    client: &mut Client,
    question: &Question,
    now: i64,
    [seen, hidden]: [&[String]; 2],
    told: &mut Vec<Told>,
) -> Result<(), Status> {
    let interval = common::Interval { start: Some(to_timestamp(now - 10_000_000)), end: Some(to_timestamp(now + 1)) };
    let time_range =
        common::TimeRange { range: Some(common::time_range::Range::Interval(interval)), time_zone: String::new() };
    let nowhere = uuid::Uuid::nil().to_string();
    let mut by_key = async |key| {
        let request = proto::GetEntryRequest { key: Some(key) };
        let entry = client.query.get_entry(request).await?.into_inner().entry.map(without_time);
        told.push(Told::Entries { entries: vec![entry] });
        Ok::<_, Status>(())
    };
    match question {
        Question::SeenId(at) => {
            let id = if seen.is_empty() { &nowhere } else { at.get(seen) };
            by_key(Key::Id(id.clone())).await?;
        }
        Question::HiddenId(at) => {
            let id = if hidden.is_empty() { &nowhere } else { at.get(hidden) };
            by_key(Key::Id(id.clone())).await?;
        }
        Question::Position { instance, sequence } => {
            let position = proto::LogPosition { instance_id: (*instance).into(), sequence: Some(*sequence) };
            by_key(Key::Position(position)).await?;
        }
        Question::List { instances, actor, page_size } => {
            let mut request = proto::ListEntriesRequest {
                time_range: Some(time_range),
                filter: filter(instances, *actor),
                page_size: *page_size as _,
                ..Default::default()
            };
            loop {
                let page = client.query.list_entries(request.clone()).await?.into_inner();
                let entries = page.entries.into_iter().map(without_time).collect();
                told.push(Told::Page { entries, token: page.next_page_token.len() });
                if page.next_page_token.is_empty() {
                    break;
                }
                request.page_token = page.next_page_token;
            }
        }
        Question::Facets { instances } => {
            let filter = filter(instances, None);
            let request = proto::ListFacetsRequest { time_range: Some(time_range), filter, ..Default::default() };
            told.push(Told::Facets(client.query.list_facets(request).await?.into_inner()));
        }
        Question::Tail { instance, from } => {
            let request = proto::TailEntriesRequest {
                instance_id: (*instance).into(),
                from_sequence: *from,
                ..Default::default()
            };
            let mut tail = client.query.tail_entries(request).await?.into_inner();
            let mut entries = Vec::new();
            // Until the second heartbeat, which comes when all is told.
            let mut beats = 0;
            while beats < 2 {
                match tail.message().await?.unwrap().event.unwrap() {
                    proto::tail_entries_response::Event::Entry(entry) => entries.push(Some(without_time(entry))),
                    proto::tail_entries_response::Event::Heartbeat(_) => beats += 1,
                }
            }
            told.push(Told::Entries { entries });
        }
        Question::Export { .. } | Question::Log { .. } => {
            let (range, filter, format) = match question {
                Question::Export { instances, format } => {
                    (ExportRange::TimeRange(time_range), filter(instances, None), *format)
                }
                Question::Log { instance } => {
                    let range = proto::SequenceRange { instance_id: (*instance).into(), from: None, to: None };
                    (ExportRange::SequenceRange(range), None, proto::ExportFormat::Jsonl)
                }
                _ => unreachable!("of the outer match"),
            };
            let request =
                proto::ExportEntriesRequest { range: Some(range), filter, format: format.into(), ..Default::default() };
            let mut parts = client.query.export_entries(request).await?.into_inner();
            let (mut chunks, mut data) = (Vec::new(), Vec::new());
            while let Some(part) = parts.message().await? {
                match part.part.unwrap() {
                    proto::export_entries_response::Part::Chunk(chunk) => {
                        chunks.push((chunk.data.len(), chunk.resume_token.len()));
                        data.extend(chunk.data);
                    }
                    proto::export_entries_response::Part::End(end) => told.push(Told::Export {
                        chunks: std::mem::take(&mut chunks),
                        lines: lines_without_time(std::mem::take(&mut data)),
                        entries: end.entries.unwrap(),
                        // Roots and checkpoints are over the times of recording.
                        heads: end.heads.into_iter().map(|head| (head.instance_id, head.size)).collect(),
                    }),
                }
            }
        }
    }
    Ok(())
}

async fn holds((seen, hidden, questions): Case) {
    let now = now_us();
    let seen: Vec<_> = seen.into_iter().map(|content| made(now, content)).collect();
    let hidden: Vec<_> = hidden.into_iter().map(|content| made(now, content)).collect();
    let ids = |events: &[proto::AuditEvent]| events.iter().map(|event| event.id.clone()).collect::<Vec<_>>();
    let (one, other) = (Service::start(|_| {}).await, Service::start(|_| {}).await);
    write(&one, seen.clone()).await;
    // In the other world what is hidden comes before, between and after.
    let (before, after) = hidden.split_at(hidden.len() / 2);
    write(&other, before.to_vec()).await;
    write(&other, seen.clone()).await;
    write(&other, after.to_vec()).await;
    for instances in [&SEEN[..], &SEEN[..1], &["nowhere"], &[]] {
        let mut clients = Vec::new();
        for service in [&one, &other] {
            clients.push(service.client(&service.realm.token("a", &["auditor"], instances)).await);
        }
        for question in &questions {
            let mut told = Vec::new();
            for client in &mut clients {
                told.push(ask(client, question, now, [&ids(&seen), &ids(&hidden)]).await);
            }
            assert_eq!(told[0], told[1], "{instances:?} {question:?}");
            assert!(!told[0].is_empty());
        }
    }
    one.stop().await;
    other.stop().await;
}

#[test]
fn two_worlds_that_differ_in_what_a_caller_may_not_see_answer_alike() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() });
    let case = (contents(&SEEN, 40), contents(&HIDDEN, 60), prop::collection::vec(a_question(), 20));
    runner
        .run(&case, |case| {
            runtime.block_on(holds(case));
            Ok(())
        })
        .unwrap();
}
