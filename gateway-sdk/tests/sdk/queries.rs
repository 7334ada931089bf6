//! Questions: pages, resumed exports and tails, typed errors.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt, TryStreamExt};
use gateway_sdk::proto::audit::v1 as audit;
use gateway_sdk::proto::audit::v1::audit_query_service_server::AuditQueryService;
use gateway_sdk::proto::common::v1::ProducerCoverage;
use gateway_sdk::proto::common::v1::time_range::Range;
use gateway_sdk::proto::usage::v1 as usage;
use gateway_sdk::proto::usage::v1::usage_query_service_server::UsageQueryService;
use gateway_sdk::{
    AuditExport, AuditFilter, AuditQuery, Bucket, Code, CoverageQuery, Dimension, Error, ErrorReason, ExportFormat,
    Grouping, Outcome, TailQuery, TimeRange, TimeRangePreset, UsageQuery, UsageShape,
};
use prost::Message;
use prost_types::FileDescriptorSet;
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status, async_trait};
use tonic_types::{ErrorDetails, StatusExt};

use crate::fake::{Fake, Memory, async_stream_of};

/// How the fake answers questions.
#[derive(Default)]
pub(crate) struct Answers {
    /// Calls of any kind.
    calls: AtomicU64,
    /// So many calls fail first.
    pub(crate) failures: AtomicU64,
    /// A stream ends after so many messages; 0 for never.
    pub(crate) break_after: AtomicU64,
    /// The end of an export names another hash.
    pub(crate) wrong_hash: AtomicU64,
    /// So many resume tokens are refused first.
    pub(crate) refused_tokens: AtomicU64,
    seen: Mutex<Vec<String>>,
}

impl Answers {
    fn answer<T>(&self, seen: String, answer: T) -> Result<Response<T>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.seen.lock().unwrap().push(seen);
        if take_one(&self.failures) {
            return Err(Status::unavailable("storage is away"));
        }
        Ok(Response::new(answer))
    }

    fn check_token(&self, token: &str) -> Result<(), Status> {
        if token.is_empty() || !take_one(&self.refused_tokens) {
            return Ok(());
        }
        let details = ErrorDetails::with_error_info("INVALID_PAGE_TOKEN", "activity", HashMap::new());
        Err(Status::with_error_details(Code::InvalidArgument, "resume_token is damaged", details))
    }

    /// The messages, up to the break that the test wants.
    fn broken<T: Send + 'static>(&self, messages: Vec<T>) -> Messages<T> {
        let limit = self.break_after.load(Ordering::SeqCst) as usize;
        let breaks = limit > 0 && messages.len() > limit;
        Box::pin(async_stream_of(move |answers| async move {
            for (n, message) in messages.into_iter().enumerate() {
                if breaks && n == limit {
                    let _ = answers.send(Err(Status::unavailable("broke off"))).await;
                    return;
                }
                if answers.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        }))
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// Whether there was one left.
fn take_one(left: &AtomicU64) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) const ROWS: u64 = 10;

pub(crate) fn row(n: u64) -> Vec<u8> {
    format!("{{\"n\":{n}}}\n").into_bytes()
}

fn entry(n: u64) -> audit::AuditEntry {
    audit::AuditEntry { sequence: Some(n), ..Default::default() }
}

fn hash(answers: &Answers) -> Vec<u8> {
    let mut hash = Sha256::new();
    (0..ROWS).for_each(|n| hash.update(row(n)));
    hash.update(vec![0; answers.wrong_hash.load(Ordering::SeqCst) as usize]);
    hash.finalize().to_vec()
}

pub(crate) struct AuditQueries(pub(crate) Arc<Memory>);

#[async_trait]
impl AuditQueryService for AuditQueries {
    async fn list_entries(
        &self,
        request: Request<audit::ListEntriesRequest>,
    ) -> Result<Response<audit::ListEntriesResponse>, Status> {
        let request = request.into_inner();
        if request.page_size > 1_000 {
            let mut details = ErrorDetails::with_error_info("INVALID_ARGUMENT", "activity", HashMap::new());
            details.add_bad_request_violation("page_size", "from 1 to 1000");
            return Err(Status::with_error_details(Code::InvalidArgument, "page_size", details));
        }
        let from: u64 = request.page_token.parse().unwrap_or(0);
        let to = (from + 4).min(ROWS);
        let next_page_token = if to < ROWS { to.to_string() } else { String::new() };
        let page =
            audit::ListEntriesResponse { entries: (from..to).map(entry).collect(), next_page_token, interval: None };
        self.0.answers.answer(format!("{request:?}"), page)
    }

    async fn get_entry(
        &self,
        request: Request<audit::GetEntryRequest>,
    ) -> Result<Response<audit::GetEntryResponse>, Status> {
        match request.into_inner().key {
            Some(audit::get_entry_request::Key::Position(position)) => {
                let entry = Some(entry(position.sequence.unwrap()));
                self.0.answers.answer(String::new(), audit::GetEntryResponse { entry })
            }
            _ => {
                let details = ErrorDetails::with_error_info("NOT_FOUND", "activity", HashMap::new());
                Err(Status::with_error_details(Code::NotFound, "no such entry", details))
            }
        }
    }

    async fn list_facets(
        &self,
        request: Request<audit::ListFacetsRequest>,
    ) -> Result<Response<audit::ListFacetsResponse>, Status> {
        let seen = format!("{:?}", request.into_inner());
        self.0.answers.answer(seen, audit::ListFacetsResponse::default())
    }

    type TailEntriesStream = Messages<audit::TailEntriesResponse>;

    async fn tail_entries(
        &self,
        request: Request<audit::TailEntriesRequest>,
    ) -> Result<Response<Self::TailEntriesStream>, Status> {
        use audit::tail_entries_response::Event;
        let from = request.into_inner().from_sequence.unwrap_or(5);
        if from >= ROWS {
            return Err(Status::permission_denied("enough"));
        }
        let beat = audit::Heartbeat { next_sequence: Some(from), time: None };
        let events = std::iter::once(Event::Heartbeat(beat)).chain((from..ROWS).map(|n| Event::Entry(entry(n))));
        let messages = events.map(|event| audit::TailEntriesResponse { event: Some(event) });
        let messages = self.0.answers.broken(messages.collect());
        self.0.answers.answer(format!("from {from}"), messages)
    }

    type ExportEntriesStream = Messages<audit::ExportEntriesResponse>;

    async fn export_entries(
        &self,
        request: Request<audit::ExportEntriesRequest>,
    ) -> Result<Response<Self::ExportEntriesStream>, Status> {
        use audit::export_entries_response::Part;
        let request = request.into_inner();
        self.0.answers.check_token(&request.resume_token)?;
        let from: u64 = request.resume_token.parse().unwrap_or(0);
        let chunks = (from..ROWS).map(|n| {
            Part::Chunk(audit::ExportChunk {
                data: row(n),
                resume_token: (n + 1).to_string(),
                entries_so_far: Some(n + 1),
                proofs: if request.with_proofs { format!("proof {n}\n").into_bytes() } else { Vec::new() },
            })
        });
        let end =
            Part::End(audit::ExportEnd { entries: Some(ROWS), sha256: hash(&self.0.answers), ..Default::default() });
        let parts = chunks.chain(std::iter::once(end));
        let messages = parts.map(|part| audit::ExportEntriesResponse { part: Some(part) });
        let messages = self.0.answers.broken(messages.collect());
        self.0.answers.answer(format!("from {from}"), messages)
    }
}

pub(crate) struct UsageQueries(pub(crate) Arc<Memory>);

#[async_trait]
impl UsageQueryService for UsageQueries {
    async fn get_summary(
        &self,
        request: Request<usage::GetSummaryRequest>,
    ) -> Result<Response<usage::GetSummaryResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(
            request.time_range.as_ref().and_then(|range| range.range),
            Some(Range::Preset(TimeRangePreset::Last7Days.into()))
        );
        let zone = request.time_range.unwrap().time_zone;
        let answer = usage::GetSummaryResponse::default();
        self.0.answers.answer(format!("{zone} {}", request.compare_to_previous), answer)
    }

    async fn list_breakdown(
        &self,
        request: Request<usage::ListBreakdownRequest>,
    ) -> Result<Response<usage::ListBreakdownResponse>, Status> {
        let request = request.into_inner();
        let seen = format!("{:?} {:?}", request.group_by, request.limit);
        self.0.answers.answer(seen, usage::ListBreakdownResponse::default())
    }

    async fn get_time_series(
        &self,
        request: Request<usage::GetTimeSeriesRequest>,
    ) -> Result<Response<usage::GetTimeSeriesResponse>, Status> {
        let seen = format!("{:?}", request.into_inner().bucket());
        self.0.answers.answer(seen, usage::GetTimeSeriesResponse::default())
    }

    async fn list_requests(
        &self,
        request: Request<usage::ListRequestsRequest>,
    ) -> Result<Response<usage::ListRequestsResponse>, Status> {
        let seen = format!("{}", request.into_inner().page_size);
        let page =
            usage::ListRequestsResponse { requests: vec![usage::UsageRequest::default(); 3], ..Default::default() };
        self.0.answers.answer(seen, page)
    }

    async fn list_facets(
        &self,
        _: Request<usage::ListFacetsRequest>,
    ) -> Result<Response<usage::ListFacetsResponse>, Status> {
        self.0.answers.answer(String::new(), usage::ListFacetsResponse::default())
    }

    async fn get_coverage(
        &self,
        request: Request<usage::GetCoverageRequest>,
    ) -> Result<Response<usage::GetCoverageResponse>, Status> {
        let request = request.into_inner();
        let numbers = (request.first_sequence, request.last_sequence);
        let seen = format!("{:?} {numbers:?} {} {:?}", request.producer_ids, request.page_size, request.page_token);
        let next = if request.page_token.is_empty() { "second" } else { "" };
        let producers = vec![ProducerCoverage { missing: Some(1), ..Default::default() }];
        let page = usage::GetCoverageResponse { producers, next_page_token: next.into(), ..Default::default() };
        self.0.answers.answer(seen, page)
    }

    type ExportUsageStream = Messages<usage::ExportUsageResponse>;

    async fn export_usage(
        &self,
        request: Request<usage::ExportUsageRequest>,
    ) -> Result<Response<Self::ExportUsageStream>, Status> {
        use usage::export_usage_response::Part;
        let request = request.into_inner();
        let chunks = (0..ROWS).map(|n| {
            Part::Chunk(usage::ExportChunk { data: row(n), resume_token: String::new(), rows_so_far: Some(n + 1) })
        });
        let end = Part::End(usage::ExportEnd { rows: Some(ROWS), sha256: hash(&self.0.answers), ..Default::default() });
        let parts = chunks.chain(std::iter::once(end));
        let messages = parts.map(|part| usage::ExportUsageResponse { part: Some(part) });
        let answers = &self.0.answers;
        let broken = answers.broken(messages.collect());
        // These start over, so only the first breaks.
        answers.break_after.store(0, Ordering::SeqCst);
        answers.answer(format!("{:?}", request.shape()), broken)
    }
}

fn sequences(entries: &[audit::AuditEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.sequence.unwrap()).collect()
}

#[tokio::test]
async fn entries_come_over_all_pages_with_range_and_filter() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let query = AuditQuery::new()
        .range(TimeRange::today().in_zone("Asia/Kathmandu"))
        .filter(AuditFilter::new().action("provider.*").outcome(Outcome::Denied));
    let entries: Vec<_> = sdk.audit().entries(query.clone()).try_collect().await.unwrap();
    assert_eq!(sequences(&entries), (0..ROWS).collect::<Vec<_>>());
    let seen = fake.memory.answers.seen();
    assert_eq!(seen.len(), 3);
    for part in ["Asia/Kathmandu", "provider.*", "Preset(Today)", "page_size: 500"] {
        assert!(seen.iter().all(|request| request.contains(part)), "{part}: {seen:?}");
    }
    let page = sdk.audit().entries_page(&query, Some("8".into())).await.unwrap();
    assert_eq!((sequences(&page.items), page.next), (vec![8, 9], None));
    let entry = sdk.audit().entry_at("test", 3).await.unwrap();
    assert_eq!(entry.sequence, Some(3));
    sdk.audit().facets(&query, 10).await.unwrap();
}

#[tokio::test]
async fn pages_are_asked_for_as_they_are_read() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let first: Vec<_> = sdk.audit().entries(AuditQuery::new()).take(2).collect().await;
    assert_eq!(first.len(), 2);
    assert_eq!(fake.memory.answers.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn errors_are_typed_and_name_the_field() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let query = AuditQuery::new().page_size(5_000);
    let error = sdk.audit().entries(query).try_next().await.unwrap_err();
    let Error::Service(service) = &error else { panic!("{error:?}") };
    assert_eq!(service.code, Code::InvalidArgument);
    assert_eq!(service.violations[0].field, "page_size");
    assert_eq!(error.reason(), Some(ErrorReason::InvalidArgument));
    assert!(!error.is_retryable());
    let event = crate::delivery::audit("a");
    let error = sdk.audit().entry(event.id()).await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::NotFound));
}

#[tokio::test]
async fn question_is_asked_again_while_storage_is_away_and_not_for_ever() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    fake.memory.answers.failures.store(2, Ordering::SeqCst);
    let query = UsageQuery::new().range(TimeRange::last_7_days().in_zone("UTC"));
    sdk.usage().summary_compared(&query).await.unwrap();
    sdk.usage().summary(&query).await.unwrap();
    assert_eq!(fake.memory.answers.calls.load(Ordering::SeqCst), 4);
    assert_eq!(fake.memory.answers.seen()[2..], ["UTC true", "UTC false"]);

    fake.memory.answers.failures.store(1_000, Ordering::SeqCst);
    let error = sdk.usage().summary(&query).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let down = Fake::down();
    let sdk = down.sdk().build().unwrap();
    let error = sdk.usage().summary(&query).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn usage_questions_reach_the_service() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let query = UsageQuery::new();
    let by = Grouping::by([Dimension::Provider, Dimension::Model]).limit(7);
    sdk.usage().breakdown(&query, &by).await.unwrap();
    sdk.usage().series(&query, Bucket::Day, &Grouping::none()).await.unwrap();
    sdk.usage().facets(&query, 0).await.unwrap();
    let requests: Vec<_> = sdk.usage().requests(query).try_collect().await.unwrap();
    assert_eq!(requests.len(), 3);
    assert_eq!(fake.memory.answers.seen(), ["[4, 3] 7", "Day", "", "500"]);
}

#[tokio::test]
async fn coverage_is_read_over_all_pages() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let query = CoverageQuery::new().producer("gateway-1").from_sequence(7).to_sequence(9).page_size(3);
    let producers: Vec<_> = sdk.usage().coverage(query.clone()).try_collect().await.unwrap();
    assert_eq!(producers.len(), 2);
    sdk.usage().coverage_page(&CoverageQuery::new(), None).await.unwrap();
    let numbers = r#"["gateway-1"] (Some(7), Some(9)) 3"#;
    assert_eq!(
        fake.memory.answers.seen(),
        [format!(r#"{numbers} """#), format!(r#"{numbers} "second""#), r#"[] (None, None) 0 """#.to_owned()]
    );
}

/// What writes, and is no question.
const WRITES: [&str; 6] =
    ["RecordEvents", "StreamEvents", "RecordUsage", "StreamUsage", "PlaceLegalHold", "ReleaseLegalHold"];

/// All of the SDK's source.
fn source(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        text += &if path.is_dir() { source(&path) } else { fs::read_to_string(&path).unwrap() };
    }
    text
}

#[test]
fn every_rpc_that_reads_has_a_typed_query() {
    let set = FileDescriptorSet::decode(gateway_sdk::proto::FILE_DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    let rpcs: Vec<&str> = services.flat_map(|service| &service.method).map(|method| method.name()).collect();
    assert!(WRITES.iter().all(|write| rpcs.contains(write)), "{rpcs:?}");
    let source = source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let asked = |rpc: &str| {
        let words = rpc.chars().flat_map(|char| [char.is_uppercase().then_some('_'), Some(char.to_ascii_lowercase())]);
        let method: String = words.flatten().collect();
        // Names that both services have are asked for in both.
        source.matches(&format!(".{}(request)", &method[1..])).count()
    };
    let wanted = |rpc: &str| rpcs.iter().filter(|other| **other == rpc).count();
    let missing: Vec<&&str> = rpcs.iter().filter(|rpc| !WRITES.contains(rpc) && asked(rpc) < wanted(rpc)).collect();
    assert!(missing.is_empty(), "no typed query asks {missing:?}");
}

#[tokio::test]
async fn export_is_resumed_from_its_last_token_and_verified() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    fake.memory.answers.break_after.store(4, Ordering::SeqCst);
    let export = || AuditExport::range(TimeRange::last_30_days(), ExportFormat::Jsonl);
    let mut file = Vec::new();
    let mut progress = Vec::new();
    let done = sdk.audit().export(export(), &mut file, |at| progress.push(at.rows)).await.unwrap();
    let whole: Vec<u8> = (0..ROWS).flat_map(row).collect();
    assert_eq!(file, whole);
    assert_eq!((done.rows, done.bytes, done.resumed), (ROWS, whole.len() as u64, 2));
    assert_eq!(done.sha256[..], Sha256::digest(&whole)[..]);
    assert_eq!(progress, (1..=ROWS).collect::<Vec<_>>());
    assert_eq!(fake.memory.answers.seen(), ["from 0", "from 4", "from 8"]);

    fake.memory.answers.wrong_hash.store(1, Ordering::SeqCst);
    let error = sdk.audit().export(export(), &mut Vec::new(), |_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
}

#[tokio::test]
async fn small_export_starts_over_and_is_written_once() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    fake.memory.answers.break_after.store(4, Ordering::SeqCst);
    let mut file = Vec::new();
    let shape = UsageShape::Breakdown(Grouping::by([Dimension::User]));
    let query = UsageQuery::new().range(TimeRange::last_7_days());
    let done = sdk.usage().export(&query, shape, ExportFormat::Csv, &mut file, |_| ()).await.unwrap();
    assert_eq!(file, (0..ROWS).flat_map(row).collect::<Vec<u8>>());
    assert_eq!((done.rows, done.resumed), (ROWS, 1));
}

#[tokio::test]
async fn tail_goes_on_after_a_break_without_loss_or_repeat() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    // A heartbeat and two entries, again and again.
    fake.memory.answers.break_after.store(3, Ordering::SeqCst);
    let tail = sdk.audit().tail(TailQuery::new("test"));
    let items: Vec<_> = tail.collect().await;
    let (last, entries) = items.split_last().unwrap();
    let entries: Vec<_> = entries.iter().map(|item| item.as_ref().unwrap().clone()).collect();
    assert_eq!(sequences(&entries), (5..ROWS).collect::<Vec<_>>());
    // What trying again can't mend ends it.
    let error = last.as_ref().unwrap_err();
    assert!(matches!(error, Error::Service(e) if e.code == Code::PermissionDenied), "{error}");
    assert_eq!(fake.memory.answers.seen(), ["from 5", "from 7", "from 9"]);
}
