//! No action without a trace. A gateway that dies in the middle of one leaves an open intent; and of the sample
//! administrations, which are the SDK's examples, no route changes state without an entry, whatever fails beside it.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../gateway-sdk/examples/axum.rs"]
#[allow(dead_code, reason = "its `main` is not called, for it takes fixed ports")]
mod http_admin;

#[path = "../../gateway-sdk/examples/tonic.rs"]
#[allow(dead_code, reason = "as above")]
mod grpc_admin;

#[path = "../../gateway-sdk/examples/plain.rs"]
#[allow(dead_code, reason = "as above")]
mod plain_job;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use activity_proto::FILE_DESCRIPTOR_SET;
use activity_proto::audit::v1::audit_governance_service_client::AuditGovernanceServiceClient;
use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::{
    AuditEntry, AuditFilter, ListEntriesRequest, ListLegalHoldsRequest, Outcome, PlaceLegalHoldRequest,
    ReleaseLegalHoldRequest, Stage,
};
use axum::Router;
use axum::body::Body;
use e2e::{Engine, Sandbox};
use futures::{FutureExt as _, StreamExt as _, stream};
use gateway_sdk::{Actor, AuditEvent, Error, GatewaySdk, Resource, Secrets};
use grpc_admin::Holds;
use http::{Method, Request, StatusCode};
use http_admin::{Entry, Platform, ROUTES};
use prost::Message as _;
use testkit::ChildProcess;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt as _;

const PATIENCE: Duration = Duration::from_secs(60);

fn recorder(folder: &Path, sandbox: &Sandbox, mode: &str) -> ChildProcess {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recorder"));
    command.arg(folder).arg(sandbox.audit.address()).arg(sandbox.usage.address()).arg(mode);
    ChildProcess::start(&mut command)
}

/// What an operator sees by default.
async fn listed(sandbox: &Sandbox) -> Vec<AuditEntry> {
    let mut client = AuditQueryServiceClient::new(sandbox.audit.channel());
    client.list_entries(ListEntriesRequest::default()).await.unwrap().into_inner().entries
}

/// Intents and outcomes by the ids of their requests; newest first.
async fn entries(sandbox: &Sandbox) -> BTreeMap<String, Vec<AuditEntry>> {
    let mut client = AuditQueryServiceClient::new(sandbox.audit.channel());
    let filter = AuditFilter { stages: vec![Stage::Intent.into(), Stage::Outcome.into()], ..AuditFilter::default() };
    let request = ListEntriesRequest { filter: Some(filter), page_size: 1_000, ..ListEntriesRequest::default() };
    let answer = client.list_entries(request).await.unwrap().into_inner();
    assert_eq!(answer.next_page_token, "");
    let mut by_request: BTreeMap<String, Vec<AuditEntry>> = BTreeMap::new();
    for entry in answer.entries {
        by_request.entry(entry.request_id.clone()).or_default().push(entry);
    }
    by_request
}

fn sdk(sandbox: &Sandbox, spool: &str, patience: Duration) -> GatewaySdk {
    GatewaySdk::builder()
        .audit_endpoint(sandbox.audit.address())
        .instance("eu-1")
        .spool(sandbox.folder.path().join(spool))
        .audit_spool(8 << 20)
        .audit_timeout(patience)
        .backoff(Duration::from_millis(10), Duration::from_millis(100))
        .secrets(Secrets::with_key("k1", [7; 32]).unwrap())
        .build()
        .unwrap()
}

/// Until not even an intent has room.
async fn fill(sdk: &GatewaySdk) {
    for size in [60_000, 1] {
        let filler = |_| {
            let filler = AuditEvent::builder(Actor::system("filler"), "spool.filled", Resource::new("spool", "x"));
            sdk.audit().record(filler.details_json(format!("\"{}\"", "x".repeat(size))))
        };
        let recorded = stream::iter(0..20_000).map(filler).buffer_unordered(32);
        // A disk that is slow at the moment is not full.
        let full = recorded.any(async |recorded| matches!(recorded, Err(Error::QueueFull { .. }))).await;
        assert!(full, "the spool has a limit");
    }
}

#[tokio::test]
async fn a_gateway_killed_between_intent_and_outcome_leaves_an_open_intent() {
    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    let spool = sandbox.folder.path().join("spool");
    // The service being away as well, the intent is on the disk alone.
    sandbox.audit.kill();
    let mut child = recorder(&spool, &sandbox, "begin");
    let begun = child.line("begun ", PATIENCE).await;
    child.kill();
    child.exited(PATIENCE).await;
    sandbox.audit.start_again().await;
    assert_eq!(listed(&sandbox).await, []);

    let drain = recorder(&spool, &sandbox, "drain");
    assert_eq!(drain.line("drained ", PATIENCE).await, "drained 0 0");
    let entries = listed(&sandbox).await;
    let operation = entries[0].operation.as_ref().unwrap();
    assert_eq!((entries.len(), entries[0].action.as_str()), (1, "model.disabled"));
    assert_eq!((operation.stage(), entries[0].outcome()), (Stage::Intent, Outcome::Unknown));
    assert_eq!(begun, format!("begun {}", operation.id));
}

/// One request of a walk, and what became of it.
struct Walked {
    request: String,
    entry: &'static Entry,
    /// None: it panicked.
    status: Option<StatusCode>,
    changed: bool,
}

/// Calls every route that there is.
async fn walk(name: &str, app: &Router, platform: &Platform, admin: Option<&str>) -> Vec<Walked> {
    let mut walked = Vec::new();
    for (at, entry) in ROUTES.iter().enumerate() {
        let (before, request) = (platform.state().clone(), format!("{name}-{at}"));
        let mut call = Request::builder()
            .method(entry.method.clone())
            .uri(entry.path.replace("{id}", "x-1"))
            .header("x-request-id", &request);
        if let Some(admin) = admin {
            call = call.header("authorization", format!("Bearer {admin}"));
        }
        let body = match entry.method {
            Method::GET => String::new(),
            _ => format!(r#"{{"name": "n-{at}", "client_secret": "hunter2-{at}"}}"#),
        };
        let call = app.clone().oneshot(call.body(Body::from(body)).unwrap());
        let answer = AssertUnwindSafe(call).catch_unwind().await;
        let changed = *platform.state() != before;
        walked.push(Walked { request, entry, status: answer.ok().map(|answer| answer.unwrap().status()), changed });
    }
    walked
}

/// Of every request that changed something, and of every other that is listed as an action and was let through, there are
/// an intent and an outcome.
fn assert_covered(walked: &[Walked], entries: &BTreeMap<String, Vec<AuditEntry>>, outcome: Option<Outcome>) {
    for Walked { request, entry, changed, status } in walked {
        let about = format!("{request}: {} {}, {status:?}", entry.method, entry.path);
        let recorded = entries.get(request).map_or(&[][..], Vec::as_slice);
        match (entry.action, outcome) {
            (None, _) | (_, None) => {
                assert!(!changed && recorded.is_empty(), "{about}: {recorded:?}");
            }
            (Some((action, kind)), Some(outcome)) => {
                let mut stages: Vec<_> =
                    recorded.iter().map(|entry| (entry.operation.clone().unwrap(), entry.outcome())).collect();
                stages.sort_by_key(|(operation, _)| operation.stage);
                let [(intent, Outcome::Unknown), (ended, how)] = &stages[..] else { panic!("{about}: {stages:?}") };
                assert_eq!((intent.stage(), ended.stage(), *how), (Stage::Intent, Stage::Outcome, outcome), "{about}");
                assert_eq!(intent.id, ended.id);
                for entry in recorded {
                    assert_eq!((entry.action.as_str(), entry.actor.as_ref().unwrap().id.is_empty()), (action, false));
                    assert_eq!(entry.resources[0].r#type, kind, "{about}");
                    assert!(!format!("{entry:?}").contains("hunter2"), "{about}");
                }
            }
        }
    }
}

#[tokio::test]
async fn no_route_of_an_administration_changes_state_without_an_entry() {
    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    let recorded = sdk(&sandbox, "spool", PATIENCE);
    let platform = || Arc::new(Platform::default());
    let walk_new = async |name: &str, sdk: &GatewaySdk, platform: Arc<Platform>, admin: Option<&str>| {
        walk(name, &http_admin::app(Arc::clone(&platform), sdk.audit()), &platform, admin).await
    };
    let all = |walked: &[Walked], status: StatusCode| {
        let actions = walked.iter().filter(|walked| walked.entry.action.is_some());
        assert_eq!(
            actions.filter(|walked| walked.status != Some(status)).map(|w| w.entry.path).collect::<Vec<_>>(),
            [""; 0]
        );
    };

    let well = walk_new("well", &recorded, platform(), Some("alice")).await;
    all(&well, StatusCode::NO_CONTENT);
    assert!(well.iter().all(|walked| walked.changed == walked.entry.action.is_some()), "each does something");
    let viewed = walk_new("viewed", &recorded, platform(), Some("viewer")).await;
    all(&viewed, StatusCode::FORBIDDEN);
    let nobody = walk_new("nobody", &recorded, platform(), None).await;
    all(&nobody, StatusCode::UNAUTHORIZED);
    let mut panicking = Platform::default();
    panicking.after_change = Some(|| panic!("after the change"));
    let panicked = walk_new("panicked", &recorded, Arc::new(panicking), Some("alice")).await;
    assert!(panicked.iter().all(|walked| walked.status.is_none() == walked.entry.action.is_some()));
    assert!(panicked.iter().all(|walked| walked.changed == walked.entry.action.is_some()), "before it panicked");

    // Away, the spool takes it; then that is full as well.
    sandbox.audit.kill();
    let away = walk_new("away", &recorded, platform(), Some("alice")).await;
    all(&away, StatusCode::NO_CONTENT);
    let full = sdk(&sandbox, "full", Duration::from_millis(100));
    fill(&full).await;
    let refused = walk_new("refused", &full, platform(), Some("alice")).await;
    all(&refused, StatusCode::SERVICE_UNAVAILABLE);

    sandbox.audit.start_again().await;
    assert!(recorded.flush(PATIENCE).await.is_complete() && full.shutdown(PATIENCE).await.is_complete());
    let emptied = sdk(&sandbox, "full", PATIENCE);
    let again = walk_new("again", &emptied, platform(), Some("alice")).await;
    all(&again, StatusCode::NO_CONTENT);
    assert!(emptied.flush(PATIENCE).await.is_complete());
    let entries = entries(&sandbox).await;
    assert_covered(&well, &entries, Some(Outcome::Success));
    assert_covered(&viewed, &entries, Some(Outcome::Denied));
    assert_covered(&nobody, &entries, None);
    assert_covered(&panicked, &entries, Some(Outcome::Failure));
    assert_covered(&away, &entries, Some(Outcome::Success));
    assert_covered(&refused, &entries, None);
    assert_covered(&again, &entries, Some(Outcome::Success));
    // Every request that got through its layer, and no other.
    let actions = ROUTES.iter().filter(|entry| entry.action.is_some()).count();
    assert_eq!(entries.len(), 5 * actions);
}

#[test]
fn the_sample_has_every_action_of_the_platform() {
    let sample: BTreeSet<&str> = ROUTES.iter().filter_map(|entry| Some(entry.action?.0)).collect();
    let known = [
        "model.enabled",
        "model.disabled",
        "provider.created",
        "provider.updated",
        "provider.deleted",
        "user.role_changed",
        "api_key.revoked",
        "announcement.created",
        "announcement.archived",
        "sso.configured",
        "sso.enabled",
        "sso.disabled",
        "mcp_server.created",
        "mcp_server.updated",
        "mcp_server.deleted",
    ];
    let missing: Vec<_> = known.iter().filter(|action| !sample.contains(*action)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(sample.iter().any(|action| action.starts_with("mcp_oauth_client.")));
}

/// Serves the gRPC administration on a port of its own; gives a client's channel.
async fn serve(holds: &Arc<Holds>, sdk: &GatewaySdk) -> Channel {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (holds, audit) = (Arc::clone(holds), sdk.audit().clone());
    tokio::spawn(async move { grpc_admin::serve(listener, holds, &audit).await });
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

fn by<T>(admin: &str, request: &str, message: T) -> tonic::Request<T> {
    let mut call = tonic::Request::new(message);
    call.metadata_mut().insert("authorization", format!("Bearer {admin}").parse().unwrap());
    call.metadata_mut().insert("x-request-id", request.parse().unwrap());
    call
}

fn place(id: &str, reason: &str) -> PlaceLegalHoldRequest {
    PlaceLegalHoldRequest { hold_id: id.to_owned(), reason: reason.to_owned(), ..PlaceLegalHoldRequest::default() }
}

fn release(id: &str) -> ReleaseLegalHoldRequest {
    ReleaseLegalHoldRequest { hold_id: id.to_owned(), reason: "over".to_owned() }
}

#[tokio::test]
async fn no_method_of_a_grpc_administration_changes_state_without_an_entry() {
    let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    let service = services.into_iter().find(|service| service.name() == "AuditGovernanceService").unwrap();
    let methods = service.method.iter().map(|m| format!("/activity.audit.v1.AuditGovernanceService/{}", m.name()));
    let listed: BTreeSet<String> =
        grpc_admin::ACTIONS.iter().map(|(path, ..)| *path).chain(grpc_admin::READ_ONLY).map(str::to_owned).collect();
    assert_eq!(methods.collect::<BTreeSet<_>>(), listed, "of each method it is said what it does");

    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    let recorded = sdk(&sandbox, "spool", PATIENCE);
    let holds = Arc::new(Holds::default());
    let mut client = AuditGovernanceServiceClient::new(serve(&holds, &recorded).await);
    client.place_legal_hold(by("alice", "placed", place("h-1", "OPS-1"))).await.unwrap();
    assert_eq!(holds.placed().len(), 1);
    client.list_legal_holds(by("alice", "seen", ListLegalHoldsRequest::default())).await.unwrap();
    let code = client.place_legal_hold(by("viewer", "denied", place("h-2", "OPS-1"))).await.unwrap_err().code();
    assert_eq!(code, Code::PermissionDenied);
    let code = client.place_legal_hold(by("alice", "invalid", place("h-2", ""))).await.unwrap_err().code();
    assert_eq!(code, Code::InvalidArgument);
    let code = client.place_legal_hold(place("h-2", "OPS-1")).await.unwrap_err().code();
    assert_eq!((code, holds.placed().len()), (Code::Unauthenticated, 1), "nobody");

    let mut panicking = Holds::default();
    panicking.after_change = Some(|| panic!("after the change"));
    let panicking = Arc::new(panicking);
    let mut broken = AuditGovernanceServiceClient::new(serve(&panicking, &recorded).await);
    broken.place_legal_hold(by("alice", "panicked", place("h-3", "OPS-1"))).await.unwrap_err();
    assert_eq!(panicking.placed().len(), 1);

    sandbox.audit.kill();
    client.release_legal_hold(by("alice", "away", release("h-1"))).await.unwrap();
    let full = sdk(&sandbox, "full", Duration::from_millis(100));
    fill(&full).await;
    let mut refused = AuditGovernanceServiceClient::new(serve(&holds, &full).await);
    let status = refused.place_legal_hold(by("alice", "refused", place("h-4", "OPS-1"))).await.unwrap_err();
    assert_eq!((status.code(), holds.placed().len()), (Code::Unavailable, 0));
    assert!(status.message().contains("nothing was done"), "{status}");

    sandbox.audit.start_again().await;
    assert!(recorded.flush(PATIENCE).await.is_complete());
    let entries = entries(&sandbox).await;
    let told = |request: &str| {
        let [outcome, intent] = &entries[request][..] else { panic!("{request}: {:?}", entries[request]) };
        let stage = |entry: &AuditEntry| entry.operation.as_ref().unwrap().stage();
        assert_eq!((stage(intent), stage(outcome)), (Stage::Intent, Stage::Outcome));
        (outcome.action.clone(), outcome.resources[0].id.clone(), outcome.outcome(), outcome.changes.len())
    };
    let placed = |id: &str, outcome, changes| ("legal_hold.placed".to_owned(), id.to_owned(), outcome, changes);
    assert_eq!(told("placed"), placed("h-1", Outcome::Success, 1));
    assert_eq!(told("denied"), placed("unknown", Outcome::Denied, 0));
    assert_eq!(told("invalid"), placed("unknown", Outcome::Failure, 0));
    assert_eq!(told("panicked"), placed("unknown", Outcome::Failure, 0));
    assert_eq!(told("away"), ("legal_hold.released".to_owned(), "h-1".to_owned(), Outcome::Success, 1));
    assert_eq!(entries.len(), 5, "{:?}", entries.keys());
}

#[tokio::test]
async fn a_job_in_a_plain_loop_leaves_an_entry_of_each_change() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let sdk = sdk(&sandbox, "spool", PATIENCE);
    let mut keys = plain_job::keys();
    assert_eq!(plain_job::revoke(sdk.audit(), &mut keys).await.unwrap(), 2);
    assert!(sdk.flush(PATIENCE).await.is_complete());
    let entries = listed(&sandbox).await;
    let told = |at: usize| {
        let paths: Vec<_> = entries[at].changes.iter().map(|change| change.path.as_str()).collect();
        (entries[at].resources[0].id.as_str(), entries[at].outcome(), paths)
    };
    assert_eq!(told(0), ("k-3", Outcome::Success, vec!["/active", "/token"]));
    assert_eq!(told(1), ("k-2", Outcome::Failure, vec![]));
    assert_eq!(told(2), ("k-1", Outcome::Success, vec!["/active", "/token"]));
    assert_eq!(entries.len(), 3, "settled intents are not listed");
    let tokens: Vec<_> = [0, 2].iter().map(|at| &entries[*at].changes[1]).collect();
    assert_eq!(tokens[0].new_value, tokens[1].new_value, "both are empty now");
    assert_ne!(tokens[0].old_value, tokens[1].old_value, "they were two");
    assert!(tokens[0].old_value().starts_with("\"[secret k1:"));
    assert!(!format!("{entries:?}").contains("sk-very-secret"));
}
