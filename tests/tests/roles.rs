//! Every RPC that there is × every role × own and foreign instances and users, through a real client over TLS against
//! both services. The table here is written apart from those in the services: an RPC without a row fails.
//!
//! What is foreign has names of its own ("elsewhere-", and for members "bobs-"), and no byte of any answer may hold them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use activity_proto::audit::v1 as audit;
use activity_proto::common::v1::{ErrorReason, TimeRange, TimeRangePreset, time_range::Range};
use activity_proto::usage::v1 as usage;
use e2e::{Engine, Service, events, raw, sandbox};
use prost::Message;
use prost::bytes::Bytes;
use prost_types::FileDescriptorSet;
use testkit::Realm;
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

const PATIENCE: Duration = Duration::from_secs(30);
const OWN: &str = "mine";
const FOREIGN: &str = "elsewhere-instance";
const ADA: &str = "ada";
const BOB: &str = "bobs-name";

const ROLES: [&str; 6] = ["super_admin", "billing_admin", "auditor", "member", "writer", "janitor"];

/// What a request names.
#[derive(Debug, Clone, Copy)]
struct Named {
    instance: Option<&'static str>,
    user: Option<&'static str>,
    now: SystemTime,
}

impl Named {
    fn instances(self) -> Vec<String> {
        self.instance.into_iter().map(str::to_owned).collect()
    }

    fn users(self) -> Vec<String> {
        self.user.into_iter().map(str::to_owned).collect()
    }

    fn audit_filter(self) -> Option<audit::AuditFilter> {
        Some(audit::AuditFilter { instance_ids: self.instances(), ..Default::default() })
    }

    fn usage_filter(self) -> Option<usage::UsageFilter> {
        Some(usage::UsageFilter { instance_ids: self.instances(), user_ids: self.users(), ..Default::default() })
    }
}

/// What naming a foreign instance gets who may call at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foreign {
    /// The call is refused.
    Denied,
    /// What is asked for by id does not exist.
    NotFound,
    /// The event is rejected, the call succeeds.
    Rejected,
    /// There is nothing of anybody in it.
    Nothing,
    /// The call is refused to whom any instance is foreign, whatever it names.
    Undivided,
}

/// An RPC, asked one way.
struct Row {
    path: &'static str,
    all: &'static [&'static str],
    own: &'static [&'static str],
    foreign: Foreign,
    request: fn(Named) -> Vec<u8>,
}

fn last_day() -> TimeRange {
    TimeRange { range: Some(Range::Preset(TimeRangePreset::Last24Hours.into())), time_zone: String::new() }
}

/// The instance that must be named, where one must.
fn instance(named: Named) -> String {
    named.instance.unwrap_or(OWN).to_owned()
}

/// The entry of an instance that is there from the beginning.
fn entry_id(instance: &str, now: SystemTime) -> String {
    events::id(now, if instance == OWN { 1 } else { 2 })
}

fn table() -> Vec<Row> {
    const LOG: &[&str] = &["super_admin", "auditor"];
    const RELEASE: &[&str] = &["super_admin"];
    const WRITE: &[&str] = &["writer"];
    const USAGE: &[&str] = &["super_admin", "billing_admin"];
    const OWN_USAGE: &[&str] = &["member"];
    const PRICES: &[&str] = &["super_admin", "billing_admin", "member"];
    let row = |path, all, own, foreign, request| Row { path, all, own, foreign, request };
    vec![
        row("/activity.audit.v1.AuditIngestService/RecordEvents", WRITE, &[], Foreign::Rejected, |named| {
            audit::RecordEventsRequest { events: vec![new_entry(named, 1_000)], ..Default::default() }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditIngestService/StreamEvents", WRITE, &[], Foreign::Rejected, |named| {
            audit::StreamEventsRequest { batch_id: 1, events: vec![new_entry(named, 2_000)], ..Default::default() }
                .encode_to_vec()
        }),
        row("/activity.audit.v1.AuditQueryService/ListEntries", LOG, &[], Foreign::Denied, |named| {
            audit::ListEntriesRequest { filter: named.audit_filter(), page_size: 1_000, ..Default::default() }
                .encode_to_vec()
        }),
        row("/activity.audit.v1.AuditQueryService/GetEntry", LOG, &[], Foreign::NotFound, |named| {
            let key = audit::get_entry_request::Key::Id(entry_id(&instance(named), named.now));
            audit::GetEntryRequest { key: Some(key) }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditQueryService/GetEntry", LOG, &[], Foreign::Denied, |named| {
            let position = audit::LogPosition { instance_id: instance(named), sequence: Some(0) };
            let key = audit::get_entry_request::Key::Position(position);
            audit::GetEntryRequest { key: Some(key) }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditQueryService/ListFacets", LOG, &[], Foreign::Denied, |named| {
            audit::ListFacetsRequest { filter: named.audit_filter(), ..Default::default() }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditQueryService/TailEntries", LOG, &[], Foreign::Denied, |named| {
            audit::TailEntriesRequest { instance_id: instance(named), from_sequence: Some(0), ..Default::default() }
                .encode_to_vec()
        }),
        row("/activity.audit.v1.AuditQueryService/ExportEntries", LOG, &[], Foreign::Denied, |named| {
            audit::ExportEntriesRequest {
                range: Some(audit::export_entries_request::Range::TimeRange(last_day())),
                filter: named.audit_filter(),
                format: audit::ExportFormat::Jsonl.into(),
                ..Default::default()
            }
            .encode_to_vec()
        }),
        row("/activity.audit.v1.AuditQueryService/ExportEntries", LOG, &[], Foreign::Denied, |named| {
            let range = audit::SequenceRange { instance_id: instance(named), ..Default::default() };
            audit::ExportEntriesRequest {
                range: Some(audit::export_entries_request::Range::SequenceRange(range)),
                format: audit::ExportFormat::Csv.into(),
                ..Default::default()
            }
            .encode_to_vec()
        }),
        row("/activity.audit.v1.AuditGovernanceService/GetCoverage", LOG, &[], Foreign::Undivided, |_| {
            audit::GetCoverageRequest::default().encode_to_vec()
        }),
        row("/activity.usage.v1.UsageQueryService/GetCoverage", USAGE, &[], Foreign::Undivided, |_| {
            usage::GetCoverageRequest::default().encode_to_vec()
        }),
        row("/activity.audit.v1.AuditTrustService/GetCheckpoint", LOG, &[], Foreign::Denied, |named| {
            audit::GetCheckpointRequest { instance_id: instance(named), min_size: None }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditTrustService/ListKeys", LOG, &[], Foreign::Denied, |named| {
            audit::ListKeysRequest { instance_id: instance(named) }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditTrustService/GetInclusionProof", LOG, &[], Foreign::Denied, |named| {
            let instance_id = instance(named);
            audit::GetInclusionProofRequest { instance_id, sequence: Some(0), tree_size: None }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditTrustService/GetConsistencyProof", LOG, &[], Foreign::Denied, |named| {
            let instance_id = instance(named);
            audit::GetConsistencyProofRequest { instance_id, old_size: Some(1), new_size: None }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditTrustService/ReadTile", LOG, &[], Foreign::Denied, |named| {
            audit::ReadTileRequest { instance_id: instance(named), level: 0, index: 0, width: 1 }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditGovernanceService/GetRetention", LOG, &[], Foreign::Denied, |named| {
            audit::GetRetentionRequest { instance_id: instance(named) }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditGovernanceService/ListArchives", LOG, &[], Foreign::Denied, |named| {
            audit::ListArchivesRequest { instance_id: instance(named), ..Default::default() }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditGovernanceService/PlaceLegalHold", LOG, &[], Foreign::Denied, |named| {
            let (instance_id, reason) = (instance(named), "case 17".to_owned());
            audit::PlaceLegalHoldRequest { instance_id, reason, ..Default::default() }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditGovernanceService/ReleaseLegalHold", RELEASE, &[], Foreign::NotFound, |named| {
            // Placed at the start, under the id of the entry.
            let (hold_id, reason) = (entry_id(&instance(named), named.now), "closed".to_owned());
            audit::ReleaseLegalHoldRequest { hold_id, reason }.encode_to_vec()
        }),
        row("/activity.audit.v1.AuditGovernanceService/ListLegalHolds", LOG, &[], Foreign::Denied, |named| {
            audit::ListLegalHoldsRequest { instance_id: instance(named), ..Default::default() }.encode_to_vec()
        }),
        row("/activity.usage.v1.UsageIngestService/RecordUsage", WRITE, &[], Foreign::Rejected, |named| {
            usage::RecordUsageRequest { events: vec![new_request(named, 1_000)] }.encode_to_vec()
        }),
        row("/activity.usage.v1.UsageIngestService/StreamUsage", WRITE, &[], Foreign::Rejected, |named| {
            usage::StreamUsageRequest { batch_id: 1, events: vec![new_request(named, 2_000)], ..Default::default() }
                .encode_to_vec()
        }),
        row("/activity.usage.v1.UsageQueryService/GetSummary", USAGE, OWN_USAGE, Foreign::Denied, |named| {
            usage::GetSummaryRequest { filter: named.usage_filter(), ..Default::default() }.encode_to_vec()
        }),
        row("/activity.usage.v1.UsageQueryService/ListBreakdown", USAGE, OWN_USAGE, Foreign::Denied, |named| {
            let group_by = vec![usage::Dimension::Model.into(), usage::Dimension::ApiKey.into()];
            usage::ListBreakdownRequest { filter: named.usage_filter(), group_by, ..Default::default() }.encode_to_vec()
        }),
        row("/activity.usage.v1.UsageQueryService/GetTimeSeries", USAGE, OWN_USAGE, Foreign::Denied, |named| {
            usage::GetTimeSeriesRequest {
                filter: named.usage_filter(),
                bucket: usage::Bucket::Hour.into(),
                group_by: vec![usage::Dimension::Model.into()],
                ..Default::default()
            }
            .encode_to_vec()
        }),
        row("/activity.usage.v1.UsageQueryService/ListRequests", USAGE, OWN_USAGE, Foreign::Denied, |named| {
            usage::ListRequestsRequest { filter: named.usage_filter(), page_size: 1_000, ..Default::default() }
                .encode_to_vec()
        }),
        row("/activity.usage.v1.UsageQueryService/ListFacets", USAGE, OWN_USAGE, Foreign::Denied, |named| {
            usage::ListFacetsRequest { filter: named.usage_filter(), ..Default::default() }.encode_to_vec()
        }),
        row("/activity.usage.v1.UsageQueryService/ExportUsage", USAGE, OWN_USAGE, Foreign::Denied, |named| {
            usage::ExportUsageRequest {
                time_range: Some(last_day()),
                filter: named.usage_filter(),
                shape: usage::ExportShape::Requests.into(),
                format: usage::ExportFormat::Csv.into(),
                ..Default::default()
            }
            .encode_to_vec()
        }),
        row("/activity.usage.v1.PricingService/ListPrices", PRICES, &[], Foreign::Nothing, |_| {
            usage::ListPricesRequest { page_size: 1, ..Default::default() }.encode_to_vec()
        }),
        row("/activity.usage.v1.PricingService/EstimateCost", PRICES, &[], Foreign::Nothing, |_| {
            let tokens = usage::Tokens { input_uncached: Some(10), ..Default::default() };
            usage::EstimateCostRequest {
                provider: "openai".into(),
                model: "gpt-4o".into(),
                tokens: Some(tokens),
                ..Default::default()
            }
            .encode_to_vec()
        }),
    ]
}

fn new_entry(named: Named, n: u64) -> audit::AuditEvent {
    audit::AuditEvent { instance_id: instance(named), ..events::audit(named.now, n) }
}

fn new_request(named: Named, n: u64) -> usage::UsageEvent {
    usage::UsageEvent { instance_id: instance(named), ..events::usage(named.now, n) }
}

/// Both services behind TLS, with data of two instances and two users.
struct Platform {
    realm: Realm,
    audit: Service,
    usage: Service,
    now: SystemTime,
    _folder: tempfile::TempDir,
}

impl Platform {
    async fn start() -> Self {
        let (realm, folder) = (Realm::new(), tempfile::tempdir().unwrap());
        let settings = realm.settings();
        let settings: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let url = async |name| sandbox::database_url(Engine::Sqlite, &folder, name).await;
        let audit = Service::start("audit", &url("audit").await, &settings).await;
        let usage = Service::start("usage", &url("usage").await, &settings).await;
        let platform = Self { realm, audit, usage, now: SystemTime::now(), _folder: folder };
        platform.fill().await;
        platform.hold().await;
        platform
    }

    async fn fill(&self) {
        let token = self.realm.token("filler", &["writer"], &[OWN, FOREIGN]);
        let entries = [(OWN, "mine", 1), (FOREIGN, "elsewhere", 2)].map(|(instance, name, n)| {
            let mut event = events::audit(self.now, n);
            event.id = entry_id(instance, self.now);
            event.instance_id = instance.into();
            event.actor.as_mut().unwrap().id = format!("{name}-actor");
            event.resources[0].id = format!("{name}-resource");
            event.reason = format!("{name}-reason");
            event
        });
        let requests = [(OWN, ADA, "adas", 1), (OWN, BOB, "bobs", 2), (FOREIGN, ADA, "elsewhere", 3)];
        let requests = requests.map(|(instance, user, name, n)| {
            let mut event = events::usage(self.now, n);
            event.instance_id = instance.into();
            event.user_id = user.into();
            event.team_id = format!("{name}-team");
            event.api_key_id = format!("{name}-key");
            event.requested_model = format!("{name}-model");
            event.provider = format!("{name}-provider");
            event
        });
        let entries = audit::RecordEventsRequest { events: entries.into(), ..Default::default() }.encode_to_vec();
        let requests = usage::RecordUsageRequest { events: requests.into() }.encode_to_vec();
        for (path, message) in [
            ("/activity.audit.v1.AuditIngestService/RecordEvents", entries),
            ("/activity.usage.v1.UsageIngestService/RecordUsage", requests),
        ] {
            let answers = self.ask(path, message, Some(&token)).await.unwrap();
            assert_eq!(outcome(path, &answers), Outcome::Stored);
        }
    }

    /// A hold in each instance.
    async fn hold(&self) {
        let token = self.realm.token("keeper", &["auditor"], &[OWN, FOREIGN]);
        for (instance, name) in [(OWN, "mine"), (FOREIGN, "elsewhere")] {
            let hold = audit::PlaceLegalHoldRequest {
                instance_id: instance.into(),
                reason: format!("{name}-case"),
                hold_id: entry_id(instance, self.now),
                ..Default::default()
            };
            let path = "/activity.audit.v1.AuditGovernanceService/PlaceLegalHold";
            self.ask(path, hold.encode_to_vec(), Some(&token)).await.unwrap();
        }
    }

    fn channel(&self, path: &str) -> Channel {
        let service = if path.starts_with("/activity.audit.") { &self.audit } else { &self.usage };
        let port = service.address().rsplit(':').next().unwrap();
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.realm.authority.pem()));
        let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).unwrap().tls_config(tls).unwrap();
        endpoint.connect_lazy()
    }

    /// All messages of an answer; of a tail those until it has told of an entry.
    async fn ask(&self, path: &str, message: Vec<u8>, token: Option<&str>) -> Result<Vec<Bytes>, Status> {
        let mut request = Request::new(Bytes::from(message));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let asking = async {
            let mut stream = raw::answers(self.channel(path), path, request, None).await?;
            let mut answers = Vec::new();
            while let Some(answer) = stream.message().await? {
                answers.push(answer);
                if path.ends_with("/TailEntries") && answers.len() == 2 {
                    break;
                }
            }
            Ok(answers)
        };
        timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{path} is not answered"))
    }
}

/// What came of a call that succeeded.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Stored,
    Rejected,
}

fn outcome(path: &str, answers: &[Bytes]) -> Outcome {
    let Some(first) = answers.first().cloned() else { panic!("{path} answers nothing") };
    // The four answers of writers have these fields in common.
    let (accepted, duplicate, reasons): (_, _, Vec<ErrorReason>) = match path.rsplit('/').next().unwrap() {
        "RecordEvents" => {
            let answer = audit::RecordEventsResponse::decode(first).unwrap();
            (answer.accepted, answer.duplicate, answer.rejected.iter().map(|one| one.reason()).collect())
        }
        "StreamEvents" => {
            let answer = audit::StreamEventsResponse::decode(first).unwrap();
            (answer.accepted, answer.duplicate, answer.rejected.iter().map(|one| one.reason()).collect())
        }
        "RecordUsage" => {
            let answer = usage::RecordUsageResponse::decode(first).unwrap();
            (answer.accepted, answer.duplicate, answer.rejected.iter().map(|one| one.reason()).collect())
        }
        "StreamUsage" => {
            let answer = usage::StreamUsageResponse::decode(first).unwrap();
            (answer.accepted, answer.duplicate, answer.rejected.iter().map(|one| one.reason()).collect())
        }
        _ => return Outcome::Answered,
    };
    match (accepted.unwrap() + duplicate.unwrap(), reasons.as_slice()) {
        (0, [ErrorReason::PermissionDenied]) => Outcome::Rejected,
        (stored, []) if stored > 0 => Outcome::Stored,
        other => panic!("{path}: {other:?}"),
    }
}

/// What must come of a call, or its code.
fn expected(row: &Row, role: Option<&str>, named: Named) -> Result<Outcome, Code> {
    let Some(role) = role else { return Err(Code::Unauthenticated) };
    let (all, own) = (row.all.contains(&role), row.own.contains(&role));
    if !all && !own {
        return Err(Code::PermissionDenied);
    }
    if row.foreign == Foreign::Undivided {
        return Err(Code::PermissionDenied);
    }
    if named.instance == Some(FOREIGN) {
        match row.foreign {
            Foreign::Denied => return Err(Code::PermissionDenied),
            Foreign::NotFound => return Err(Code::NotFound),
            Foreign::Rejected => return Ok(Outcome::Rejected),
            Foreign::Nothing | Foreign::Undivided => {}
        }
    }
    if own && !all && named.user == Some(BOB) {
        return Err(Code::PermissionDenied);
    }
    Ok(if row.foreign == Foreign::Rejected { Outcome::Stored } else { Outcome::Answered })
}

fn holds(answers: &[Bytes], text: &str) -> bool {
    answers.iter().any(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_gives_every_role_what_is_its_own_and_nothing_else() {
    let table = table();
    let set = FileDescriptorSet::decode(activity_proto::FILE_DESCRIPTOR_SET).unwrap();
    let there_are: BTreeSet<String> = set
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(move |service| (file, service)))
        .flat_map(|(file, service)| {
            service.method.iter().map(move |method| format!("/{}.{}/{}", file.package(), service.name(), method.name()))
        })
        .collect();
    let expected_here: BTreeSet<String> = table.iter().map(|row| row.path.to_owned()).collect();
    assert_eq!(expected_here, there_are, "every RPC has a row here, and every row an RPC");

    let platform = Platform::start().await;
    let mut checked = 0;
    for row in &table {
        for role in [None].into_iter().chain(ROLES.map(Some)) {
            let token = role.map(|role| platform.realm.token(ADA, &[role], &[OWN]));
            for instance in [None, Some(OWN), Some(FOREIGN)] {
                for user in [None, Some(ADA), Some(BOB)] {
                    let named = Named { instance, user, now: platform.now };
                    let answer = platform.ask(row.path, (row.request)(named), token.as_deref()).await;
                    let what = format!("{} as {role:?}, {instance:?}, {user:?}", row.path);
                    match &answer {
                        Ok(answers) => {
                            assert_eq!(Ok(outcome(row.path, answers)), expected(row, role, named), "{what}");
                            // An answer may say "elsewhere-" only where the question did: in a rejection's own words.
                            if row.foreign != Foreign::Rejected {
                                assert!(!holds(answers, "elsewhere"), "{what} shows a foreign instance");
                            }
                            if role == Some("member") {
                                assert!(!holds(answers, "bobs"), "{what} shows another user");
                            }
                        }
                        Err(status) => {
                            assert_eq!(Err(status.code()), expected(row, role, named), "{what}: {status:?}");
                            assert!(!status.message().contains("elsewhere-a"), "{what}: {}", status.message());
                        }
                    }
                    checked += 1;
                }
            }
        }
    }
    eprintln!("{checked} calls to {} RPCs", there_are.len());
}

#[tokio::test]
async fn the_rows_hold_something_to_hide() {
    // What the test above looks for in answers is there for whom it is meant.
    let platform = Platform::start().await;
    let token = platform.realm.token("root", &["super_admin"], &["*"]);
    let all = Named { instance: None, user: None, now: platform.now };
    for row in table() {
        let shown = ["ListEntries", "ListFacets", "ExportEntries", "ListBreakdown", "GetTimeSeries", "ListRequests"];
        if !shown.iter().any(|name| row.path.ends_with(name)) {
            continue;
        }
        let answers = platform.ask(row.path, (row.request)(all), Some(&token)).await.unwrap();
        let by_sequence = holds(&answers, "mine-actor") && !holds(&answers, "elsewhere-actor");
        let export_of_one_log = row.path.ends_with("ExportEntries") && by_sequence;
        assert!(holds(&answers, "elsewhere-") || export_of_one_log, "{} shows nothing of elsewhere", row.path);
        assert!(row.path.contains("audit") || holds(&answers, "bobs-"), "{} shows nothing of Bob", row.path);
    }
}
