//! Who may do what, by real clients over TLS with real tokens: every RPC, every role, own
//! and foreign instances, own and foreign users.

use std::collections::BTreeSet;

use activity_proto::common::v1::ErrorReason;
use activity_proto::usage::v1 as proto;
use futures::stream;
use proto::{Bucket, Dimension, ExportFormat, ExportShape};
use service_core::auth::Role;
use tonic::{Code, Status};
use usage_service::ROLES;

use crate::harness::{day, event, refusal};
use crate::secured::{Client, Secured};

const INGEST: [&str; 2] = ["RecordUsage", "StreamUsage"];
const PRICES: [&str; 2] = ["ListPrices", "EstimateCost"];

fn event_of(n: u64, instance: &str, user: &str) -> proto::UsageEvent {
    proto::UsageEvent { instance_id: instance.into(), user_id: user.into(), ..event(n) }
}

fn of(instances: &[&str], users: &[&str]) -> Option<proto::UsageFilter> {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Some(proto::UsageFilter { instance_ids: list(instances), user_ids: list(users), ..Default::default() })
}

/// Calls an RPC about an instance and, if any, a user: how it ends, a stream by its first
/// message.
async fn call(client: &mut Client, rpc: &str, instances: &[&str], users: &[&str]) -> Result<(), Status> {
    let (time_range, filter) = (day(), of(instances, users));
    let group_by = vec![Dimension::Model.into(), Dimension::ApiKey.into()];
    match rpc {
        "RecordUsage" => {
            let events = instances.iter().map(|instance| event_of(500, instance, "ada")).collect();
            let answer = client.ingest.record_usage(proto::RecordUsageRequest { events }).await?.into_inner();
            settled(&answer.rejected)
        }
        "StreamUsage" => {
            let events = instances.iter().map(|instance| event_of(501, instance, "ada")).collect();
            let batch = proto::StreamUsageRequest { batch_id: 1, events, ..Default::default() };
            let mut stream = client.ingest.stream_usage(stream::iter([batch])).await?.into_inner();
            settled(&stream.message().await?.unwrap().rejected)
        }
        "GetSummary" => {
            let request = proto::GetSummaryRequest { time_range, filter, ..Default::default() };
            client.query.get_summary(request).await.map(drop)
        }
        "ListBreakdown" => {
            let request = proto::ListBreakdownRequest { time_range, filter, group_by, ..Default::default() };
            client.query.list_breakdown(request).await.map(drop)
        }
        "GetTimeSeries" => {
            let bucket = Bucket::Hour.into();
            let request = proto::GetTimeSeriesRequest { time_range, filter, bucket, group_by, ..Default::default() };
            client.query.get_time_series(request).await.map(drop)
        }
        "ListRequests" => {
            let request = proto::ListRequestsRequest { time_range, filter, ..Default::default() };
            client.query.list_requests(request).await.map(drop)
        }
        "ListFacets" => {
            let request = proto::ListFacetsRequest { time_range, filter, ..Default::default() };
            client.query.list_facets(request).await.map(drop)
        }
        "ExportUsage" => {
            let (shape, format) = (ExportShape::Requests.into(), ExportFormat::Csv.into());
            let request = proto::ExportUsageRequest { time_range, filter, shape, format, ..Default::default() };
            client.query.export_usage(request).await?.into_inner().message().await.map(drop)
        }
        "ListPrices" => client.prices.list_prices(proto::ListPricesRequest::default()).await.map(drop),
        "EstimateCost" => {
            let request = proto::EstimateCostRequest {
                provider: "openai".into(),
                model: "gpt-4o".into(),
                tokens: event(0).tokens,
                ..Default::default()
            };
            client.prices.estimate_cost(request).await.map(drop)
        }
        "GetCoverage" => client.query.get_coverage(proto::GetCoverageRequest::default()).await.map(drop),
        other => panic!("{other} is not tried; add it"),
    }
}

/// A rejected event as the status that a call would have.
fn settled(rejected: &[proto::RejectedEvent]) -> Result<(), Status> {
    match rejected.first().map(proto::RejectedEvent::reason) {
        None | Some(ErrorReason::IdConflict) => Ok(()),
        Some(ErrorReason::PermissionDenied) => Err(Status::permission_denied("of the event")),
        Some(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_role_gets_of_every_rpc_what_the_table_says_and_only_of_its_own_instances_and_users() {
    let service = Secured::start(|_| {}).await;
    let mut writer = service.client(&service.realm.token("w", &["writer"], &["*"])).await;
    for instance in ["own", "foreign"] {
        call(&mut writer, "RecordUsage", &[instance], &[]).await.unwrap();
    }
    let mut rpcs = BTreeSet::new();
    for row in ROLES.rows() {
        let rpc = row.path.rsplit('/').next().unwrap();
        rpcs.insert(rpc);
        for role in Role::ALL {
            let token = service.realm.token("ada", &[role.name(), "of_another_system"], &["own", "empty"]);
            let mut client = service.client(&token).await;
            let (all, own) = (row.all.contains(&role), row.own.contains(&role));
            // Prices are of no instance, and recording is of no user.
            let (by_instance, by_user) = (!PRICES.contains(&rpc), own && !INGEST.contains(&rpc));
            for (instance, is_own) in [("own", true), ("foreign", false), ("nowhere", false)] {
                for (users, is_self) in [
                    (&[][..], true),
                    (&["ada"], true),
                    (&["bob"], false),
                    (&["nobody"], false),
                    (&["ada", "bob"], false),
                ] {
                    let may = (all || own) && (is_own || !by_instance) && (is_self || !by_user);
                    // Producers number what they send of all instances together: those of some are not shown them.
                    let may = may && rpc != "GetCoverage";
                    let expected = if may { Code::Ok } else { Code::PermissionDenied };
                    let ended = call(&mut client, rpc, &[instance], users).await;
                    let code = ended.map_or_else(|status| status.code(), |()| Code::Ok);
                    assert_eq!(code, expected, "{rpc} as {} about {instance} {users:?}", role.name());
                }
            }
        }
        for token in ["", "made.up.token"] {
            let status = call(&mut service.client(token).await, rpc, &["own"], &[]).await.unwrap_err();
            assert_eq!(
                (status.code(), refusal(&status).0.as_str()),
                (Code::Unauthenticated, "UNAUTHENTICATED"),
                "{rpc}"
            );
        }
        let nothing = service.realm.token("nobody", &[], &["*"]);
        let status = call(&mut service.client(&nothing).await, rpc, &["own"], &[]).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{rpc}");
    }
    assert_eq!(rpcs.len(), ROLES.rows().len());
    service.stop().await;
}

#[test]
fn the_readme_shows_the_table() {
    let readme = include_str!("../../../README.md");
    let of_it = |line: &&str| ["| `Usage", "| `Pricing", "| `Budget"].iter().any(|begin| line.starts_with(begin));
    let shown: Vec<&str> = readme.lines().filter(of_it).collect();
    assert_eq!(shown, ROLES.markdown());
}

#[tokio::test]
async fn a_foreign_event_is_rejected_alone() {
    let service = Secured::start(|_| {}).await;
    let mut writer = service.client(&service.realm.token("gateway-1", &["writer"], &["own"])).await;
    let events = vec![event_of(1, "own", "ada"), event_of(2, "foreign", "ada"), event_of(3, "own", "ada")];
    let answer = writer.ingest.record_usage(proto::RecordUsageRequest { events }).await.unwrap().into_inner();
    assert_eq!((answer.accepted, answer.rejected.len()), (Some(2), 1));
    let rejected = &answer.rejected[0];
    assert_eq!(
        (rejected.index, rejected.reason(), rejected.field.as_str(), rejected.message.as_str()),
        (
            Some(1),
            ErrorReason::PermissionDenied,
            "instance_id",
            r#"instance_id is "foreign", which is not among the writer's instances"#
        )
    );
    service.stop().await;
}

#[tokio::test]
async fn a_member_groups_as_the_personal_page_does_and_by_nothing_else() {
    let service = Secured::start(|_| {}).await;
    let mut member = service.client(&service.realm.token("ada", &["member"], &["own"])).await;
    let mut admin = service.client(&service.realm.token("root", &["billing_admin"], &["own"])).await;
    for dimension in (1..=7).map(|number| Dimension::try_from(number).unwrap()) {
        let own = matches!(dimension, Dimension::Model | Dimension::ApiKey);
        for group_by in [vec![dimension.into()], vec![Dimension::Model.into(), dimension.into()]] {
            if group_by.len() == 2 && dimension == Dimension::Model {
                continue;
            }
            let breakdown =
                proto::ListBreakdownRequest { time_range: day(), group_by: group_by.clone(), ..Default::default() };
            let series = proto::GetTimeSeriesRequest {
                time_range: day(),
                bucket: Bucket::Day.into(),
                group_by: group_by.clone(),
                ..Default::default()
            };
            let export = |shape: ExportShape| proto::ExportUsageRequest {
                time_range: day(),
                shape: shape.into(),
                format: ExportFormat::Jsonl.into(),
                bucket: if shape == ExportShape::TimeSeries { Bucket::Day.into() } else { 0 },
                group_by: group_by.clone(),
                ..Default::default()
            };
            for (client, may) in [(&mut member, own), (&mut admin, true)] {
                let outcomes = [
                    client.query.list_breakdown(breakdown.clone()).await.map(drop),
                    client.query.get_time_series(series.clone()).await.map(drop),
                    client.query.export_usage(export(ExportShape::Breakdown)).await.map(drop),
                    client.query.export_usage(export(ExportShape::TimeSeries)).await.map(drop),
                ];
                for outcome in outcomes {
                    let code = outcome.map_or_else(|status| status.code(), |()| Code::Ok);
                    assert_eq!(code, if may { Code::Ok } else { Code::PermissionDenied }, "{group_by:?}");
                }
            }
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn a_member_without_a_user_sees_nothing_and_tokens_do_not_pass_between_callers() {
    let service = Secured::start(|_| {}).await;
    let realm = &service.realm;
    let mut writer = service.client(&realm.token("w", &["writer"], &["*"])).await;
    let events = (0..40).map(|n| event_of(n, "own", ["ada", "bob"][n as usize % 2])).collect();
    writer.ingest.record_usage(proto::RecordUsageRequest { events }).await.unwrap();

    // The claim that names the user is there, and is no name.
    let none = realm.token_with("", &["member"], &["own"], &serde_json::json!({}));
    let status = call(&mut service.client(&none).await, "GetSummary", &[], &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);

    let mut ada = service.client(&realm.token("ada", &["member"], &["own"])).await;
    let list = proto::ListRequestsRequest { time_range: day(), page_size: 5, ..Default::default() };
    let page = ada.query.list_requests(list.clone()).await.unwrap().into_inner();
    assert_eq!(page.requests.len(), 5);
    assert!(page.requests.iter().all(|request| request.user_id == "ada"));
    let next = proto::ListRequestsRequest { page_token: page.next_page_token, ..list };
    let export = proto::ExportUsageRequest {
        time_range: day(),
        shape: ExportShape::Requests.into(),
        format: ExportFormat::Csv.into(),
        ..Default::default()
    };
    let mut chunks = ada.query.export_usage(export.clone()).await.unwrap().into_inner();
    let Some(proto::export_usage_response::Part::Chunk(chunk)) = chunks.message().await.unwrap().unwrap().part else {
        panic!("a chunk")
    };
    assert_eq!(chunk.rows_so_far, Some(20));
    let rest = proto::ExportUsageRequest { resume_token: chunk.resume_token, ..export };
    for (subject, role, instances, fits) in [
        ("ada", "member", &["own"][..], true),
        ("bob", "member", &["own"], false),
        ("ada", "billing_admin", &["own"], false),
        ("ada", "member", &["own", "foreign"], false),
        ("ada", "member", &["*"], false),
    ] {
        let mut other = service.client(&realm.token(subject, &[role], instances)).await;
        let paged = other.query.list_requests(next.clone()).await.map(drop);
        let resumed = other.query.export_usage(rest.clone()).await.map(drop);
        for outcome in [paged, resumed] {
            match outcome {
                Ok(()) => assert!(fits, "{subject} {role} {instances:?}"),
                Err(status) => {
                    assert_eq!(refusal(&status).0, "INVALID_PAGE_TOKEN");
                    assert!(!fits, "{subject} {role} {instances:?}");
                }
            }
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn a_request_is_of_the_writer_that_recorded_it_first() {
    let service = Secured::start(|_| {}).await;
    for (writer, events) in [("gateway-1", [1, 2]), ("gateway-2", [2, 3])] {
        let mut client = service.client(&service.realm.token(writer, &["writer"], &["own"])).await;
        let events = events.iter().map(|n| event_of(*n, "own", "ada")).collect();
        let answer = client.ingest.record_usage(proto::RecordUsageRequest { events }).await.unwrap().into_inner();
        assert_eq!(answer.rejected, [], "another writer's repeat is no conflict");
    }
    // Oldest first.
    let writers = ["gateway-2", "gateway-1", "gateway-1"];
    for role in ["billing_admin", "member"] {
        let mut reader = service.client(&service.realm.token("ada", &[role], &["own"])).await;
        let list = proto::ListRequestsRequest { time_range: day(), ..Default::default() };
        let listed = reader.query.list_requests(list).await.unwrap().into_inner().requests;
        assert_eq!(listed.iter().rev().map(|request| request.recorded_by.as_str()).collect::<Vec<_>>(), writers);

        let csv = exported(&mut reader, ExportFormat::Csv).await;
        let last = csv.lines().map(|line| line.rsplit(',').next().unwrap_or_default());
        assert_eq!(last.collect::<Vec<_>>(), [&["recorded_by"][..], &writers].concat());
        let jsonl = exported(&mut reader, ExportFormat::Jsonl).await;
        let rows = jsonl.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let named: Vec<String> = rows.map(|row| row["recordedBy"].as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!(named, writers);
    }
    service.stop().await;
}

/// All requests of the day, as a file.
async fn exported(client: &mut Client, format: ExportFormat) -> String {
    let (shape, format) = (ExportShape::Requests.into(), format.into());
    let request = proto::ExportUsageRequest { time_range: day(), shape, format, ..Default::default() };
    let mut parts = client.query.export_usage(request).await.unwrap().into_inner();
    let mut file = Vec::new();
    while let Some(message) = parts.message().await.unwrap() {
        if let Some(proto::export_usage_response::Part::Chunk(chunk)) = message.part {
            file.extend(chunk.data);
        }
    }
    String::from_utf8(file).unwrap()
}

#[tokio::test]
async fn a_clients_certificate_writes_for_its_instances() {
    let name = "uri:spiffe://example.com/gateway";
    let service = Secured::start(|config| {
        config.tls.client_ca_file = config.tls.certificate_file.with_file_name("clients.pem");
        config.tls.client_certificates = service_core::config::ClientCertificates::Optional;
        config.auth.certificates = vec![service_core::config::CertificateRule {
            san: name.into(),
            subject: "gateway".into(),
            roles: vec!["writer".into()],
            instances: vec!["own".into()],
        }];
    })
    .await;
    let mut writer = service.client_with(Some(service.realm.authority.issue(name)), "").await;
    call(&mut writer, "RecordUsage", &["own"], &[]).await.unwrap();
    let refused = call(&mut writer, "StreamUsage", &["foreign"], &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(call(&mut writer, "GetSummary", &["own"], &[]).await.unwrap_err().code(), Code::PermissionDenied);
    let mut stranger = service.client_with(Some(service.realm.authority.issue("dns:other.example.com")), "").await;
    assert_eq!(call(&mut stranger, "RecordUsage", &["own"], &[]).await.unwrap_err().code(), Code::Unauthenticated);
    service.stop().await;
}
