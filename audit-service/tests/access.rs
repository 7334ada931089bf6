//! Who may do what, by real clients over TLS with real tokens: every RPC, every role, own and foreign instances.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod secured;
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use activity_proto::audit::v1 as proto;
use activity_proto::common::v1 as common;
use audit_service::ROLES;
use futures::stream;
use proto::get_entry_request::Key;
use secured::{Client, Service, event, last_hour, reason};
use serde_json::json;
use service_core::auth::Role;
use service_core::clock::now_us;
use testkit::eventually;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(20);

/// Calls an RPC about an instance: how it ends, a stream by its first message.
async fn call(client: &mut Client, rpc: &str, instance: &str) -> Result<(), Status> {
    let filter = Some(proto::AuditFilter { instance_ids: vec![instance.into()], ..Default::default() });
    let time_range = Some(last_hour());
    match rpc {
        "RecordEvents" => {
            let events = vec![event(now_us(), instance)];
            let answer = client
                .ingest
                .record_events(proto::RecordEventsRequest { events, ..Default::default() })
                .await?
                .into_inner();
            settled(&answer.rejected)
        }
        "StreamEvents" => {
            let events = vec![event(now_us(), instance)];
            let batch = proto::StreamEventsRequest { batch_id: 1, events, ..Default::default() };
            let mut stream = client.ingest.stream_events(stream::iter([batch])).await?.into_inner();
            settled(&stream.message().await?.unwrap().rejected)
        }
        "ListEntries" => {
            let request = proto::ListEntriesRequest { time_range, filter, ..Default::default() };
            client.query.list_entries(request).await.map(drop)
        }
        "ListFacets" => {
            let request = proto::ListFacetsRequest { time_range, filter, ..Default::default() };
            client.query.list_facets(request).await.map(drop)
        }
        "GetEntry" => {
            let position = proto::LogPosition { instance_id: instance.into(), sequence: Some(0) };
            let request = proto::GetEntryRequest { key: Some(Key::Position(position)) };
            client.query.get_entry(request).await.map(drop)
        }
        "TailEntries" => {
            let request = proto::TailEntriesRequest { instance_id: instance.into(), ..Default::default() };
            client.query.tail_entries(request).await?.into_inner().message().await.map(drop)
        }
        "ExportEntries" => {
            let range = Some(proto::export_entries_request::Range::TimeRange(last_hour()));
            let format = proto::ExportFormat::Jsonl.into();
            let request = proto::ExportEntriesRequest { range, filter, format, ..Default::default() };
            client.query.export_entries(request).await?.into_inner().message().await.map(drop)
        }
        "GetCheckpoint" => {
            let request = proto::GetCheckpointRequest { instance_id: instance.into(), min_size: None };
            client.trust.get_checkpoint(request).await.map(drop)
        }
        "ListKeys" => client.trust.list_keys(proto::ListKeysRequest { instance_id: instance.into() }).await.map(drop),
        "GetInclusionProof" => {
            let instance_id = instance.into();
            let request = proto::GetInclusionProofRequest { instance_id, sequence: Some(0), tree_size: None };
            client.trust.get_inclusion_proof(request).await.map(drop)
        }
        "GetConsistencyProof" => {
            let instance_id = instance.into();
            let request = proto::GetConsistencyProofRequest { instance_id, old_size: Some(0), new_size: None };
            client.trust.get_consistency_proof(request).await.map(drop)
        }
        "ReadTile" => {
            let request = proto::ReadTileRequest { instance_id: instance.into(), level: 0, index: 0, width: 1 };
            client.trust.read_tile(request).await.map(drop)
        }
        "GetRetention" => {
            let request = proto::GetRetentionRequest { instance_id: instance.into() };
            client.governance.get_retention(request).await.map(drop)
        }
        "ListArchives" => {
            let request = proto::ListArchivesRequest { instance_id: instance.into(), ..Default::default() };
            client.governance.list_archives(request).await.map(drop)
        }
        "PlaceLegalHold" => {
            let (instance_id, reason) = (instance.into(), "case 17".into());
            let request = proto::PlaceLegalHoldRequest { instance_id, reason, ..Default::default() };
            client.governance.place_legal_hold(request).await.map(drop)
        }
        // Whoever may release one finds none of this id, whatever the instance.
        "ReleaseLegalHold" => {
            let (hold_id, reason) = (uuid::Uuid::now_v7().to_string(), "closed".into());
            let released = client.governance.release_legal_hold(proto::ReleaseLegalHoldRequest { hold_id, reason });
            match released.await.map(drop) {
                Err(status) if status.code() == Code::NotFound && instance != "own" => {
                    Err(Status::permission_denied("what is not there"))
                }
                Err(status) if status.code() == Code::NotFound => Ok(()),
                other => other,
            }
        }
        "ListLegalHolds" => {
            let request = proto::ListLegalHoldsRequest { instance_id: instance.into(), ..Default::default() };
            client.governance.list_legal_holds(request).await.map(drop)
        }
        "GetCoverage" => client.governance.get_coverage(proto::GetCoverageRequest::default()).await.map(drop),
        other => panic!("{other} is not tried; add it"),
    }
}

/// A rejected event as the status that a call would have.
fn settled(rejected: &[proto::RejectedEvent]) -> Result<(), Status> {
    match rejected.first().map(proto::RejectedEvent::reason) {
        None => Ok(()),
        Some(common::ErrorReason::PermissionDenied) => Err(Status::permission_denied("of the event")),
        Some(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_role_gets_of_every_rpc_what_the_table_says_and_only_of_its_own_instances() {
    let service = Service::start(|_| {}).await;
    let mut writer = service.client(&service.realm.token("w", &["writer"], &["*"])).await;
    for instance in ["own", "foreign"] {
        call(&mut writer, "RecordEvents", instance).await.unwrap();
    }
    let mut reader = service.client(&service.realm.token("a", &["auditor"], &["own"])).await;
    eventually(PATIENCE, async || call(&mut reader, "GetCheckpoint", "own").await).await;
    let mut rpcs = BTreeSet::new();
    for row in ROLES.rows() {
        let rpc = row.path.rsplit('/').next().unwrap();
        rpcs.insert(rpc);
        for role in Role::ALL {
            let token = service.realm.token("somebody", &[role.name(), "of_another_system"], &["own", "empty"]);
            let mut client = service.client(&token).await;
            // Producers number what they send of all instances together: those of some are not shown them.
            let may = row.all.contains(&role) && rpc != "GetCoverage";
            for (instance, expected) in [
                ("own", if may { Code::Ok } else { Code::PermissionDenied }),
                ("foreign", Code::PermissionDenied),
                ("nowhere", Code::PermissionDenied),
            ] {
                let code = call(&mut client, rpc, instance).await.map_or_else(|status| status.code(), |()| Code::Ok);
                assert_eq!(code, expected, "{rpc} as {} about {instance}", role.name());
            }
        }
        for token in ["", "made.up.token"] {
            let status = call(&mut service.client(token).await, rpc, "own").await.unwrap_err();
            assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "UNAUTHENTICATED"), "{rpc}");
        }
        let nothing = service.realm.token("nobody", &[], &["*"]);
        let status = call(&mut service.client(&nothing).await, rpc, "own").await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{rpc}");
    }
    assert_eq!(rpcs.len(), ROLES.rows().len());
    service.stop().await;
}

#[test]
fn the_readme_shows_the_table() {
    let readme = include_str!("../../README.md");
    let shown: Vec<&str> = readme.lines().filter(|line| line.starts_with("| `Audit")).collect();
    assert_eq!(shown, ROLES.markdown());
}

#[tokio::test]
async fn a_foreign_event_is_rejected_alone_and_the_rest_is_recorded_under_the_writers_name() {
    let service = Service::start(|_| {}).await;
    let mut writer = service.client(&service.realm.token("gateway-1", &["writer"], &["own"])).await;
    let now = now_us();
    let events = vec![event(now, "own"), event(now, "foreign"), event(now, "own")];
    let answer = writer
        .ingest
        .record_events(proto::RecordEventsRequest { events, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((answer.accepted, answer.rejected.len()), (Some(2), 1));
    let rejected = &answer.rejected[0];
    assert_eq!(
        (rejected.index, rejected.reason(), rejected.field.as_str(), rejected.message.as_str()),
        (
            Some(1),
            common::ErrorReason::PermissionDenied,
            "instance_id",
            r#"instance_id is "foreign", which is not among the writer's instances"#
        )
    );
    let mut admin = service.client(&service.realm.token("root", &["super_admin"], &["*"])).await;
    let entries = admin.list(proto::AuditFilter { instance_ids: vec!["own".into()], ..Default::default() }).await;
    assert_eq!(entries.iter().map(|entry| entry.recorded_by.as_str()).collect::<Vec<_>>(), ["gateway-1", "gateway-1"]);
    assert!(
        admin.list(proto::AuditFilter { instance_ids: vec!["foreign".into()], ..Default::default() }).await.is_empty()
    );
    service.stop().await;
}

#[tokio::test]
async fn a_foreign_id_is_answered_like_one_that_does_not_exist_and_tokens_do_not_pass_between_callers() {
    let service = Service::start(|_| {}).await;
    let realm = &service.realm;
    let mut writer = service.client(&realm.token("w", &["writer"], &["*"])).await;
    let (foreign, now) = (event(now_us(), "foreign"), now_us());
    let mut events = vec![foreign.clone()];
    events.extend((0..4).map(|at| event(now - at, "own")));
    writer.ingest.record_events(proto::RecordEventsRequest { events, ..Default::default() }).await.unwrap();

    let mut auditor = service.client(&realm.token("a", &["auditor"], &["own"])).await;
    let mut texts = Vec::new();
    for id in [foreign.id.clone(), support::id_at(now).to_string()] {
        let request = proto::GetEntryRequest { key: Some(Key::Id(id.clone())) };
        let status = auditor.query.get_entry(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "NOT_FOUND"));
        texts.push((status.message().replace(&id, "ID"), status.details().len()));
    }
    assert_eq!(texts[0], texts[1]);

    let request = proto::ListEntriesRequest { time_range: Some(last_hour()), page_size: 2, ..Default::default() };
    let page = auditor.query.list_entries(request.clone()).await.unwrap().into_inner();
    assert_eq!(page.entries.len(), 2);
    let next = proto::ListEntriesRequest { page_token: page.next_page_token, ..request };
    let range = Some(proto::export_entries_request::Range::TimeRange(last_hour()));
    let export = proto::ExportEntriesRequest { range, format: proto::ExportFormat::Csv.into(), ..Default::default() };
    let mut chunks = auditor.query.export_entries(export.clone()).await.unwrap().into_inner();
    let Some(proto::export_entries_response::Part::Chunk(chunk)) = chunks.message().await.unwrap().unwrap().part else {
        panic!("a chunk")
    };
    let rest = proto::ExportEntriesRequest { resume_token: chunk.resume_token, ..export };
    for (instances, fits) in [(&["own"][..], true), (&["own", "foreign"], false), (&["*"], false), (&["no"], false)] {
        let mut other = service.client(&realm.token("b", &["auditor"], instances)).await;
        let paged = other.query.list_entries(next.clone()).await.map(drop);
        let resumed = other.query.export_entries(rest.clone()).await.map(drop);
        for outcome in [paged, resumed] {
            match outcome {
                Ok(()) => assert!(fits, "{instances:?}"),
                Err(status) => {
                    assert_eq!(reason(&status), "INVALID_PAGE_TOKEN");
                    assert!(!fits, "{instances:?}");
                }
            }
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn refused_calls_are_entries_without_a_token_and_a_flood_of_them_is_counted() {
    let service = Service::start(|config| {
        config.denials.instance = "platform".into();
        config.denials.per_caller_per_minute = 5.try_into().unwrap();
    })
    .await;
    let realm = &service.realm;
    let eve = realm.token("eve", &["auditor"], &["own"]);
    let mut client = service.client(&eve).await;
    for _ in 0..50 {
        call(&mut client, "ListEntries", "foreign").await.unwrap_err();
    }
    let old = realm.token_with("ada", &["auditor"], &["*"], &json!({ "exp": 1 }));
    call(&mut service.client(&old).await, "ListEntries", "own").await.unwrap_err();

    let mut admin = service.client(&realm.token("root", &["super_admin"], &["*"])).await;
    let of_platform = proto::AuditFilter { instance_ids: vec!["platform".into()], ..Default::default() };
    eventually(PATIENCE, async || {
        service.client(&realm.token("r", &["auditor"], &["*"])).await.list(of_platform.clone()).await.len() == 6
    })
    .await;
    let entries = admin.list(of_platform).await;
    let text = format!("{entries:?}");
    assert!(!text.contains("eyJ") && !text.contains(&eve[eve.len() - 20..]), "{text}");
    let by_eve: Vec<_> = entries.iter().filter(|entry| entry.actor.as_ref().unwrap().id == "eve").collect();
    assert_eq!(by_eve.len(), 5);
    for entry in by_eve {
        let actor = entry.actor.as_ref().unwrap();
        assert_eq!((entry.action.as_str(), entry.outcome()), ("access.denied", proto::Outcome::Denied));
        assert_eq!((entry.recorded_by.as_str(), actor.ip_address.as_str()), ("audit-service", "127.0.0.1"));
        assert!(actor.user_agent.starts_with("tonic/"), "{actor:?}");
        let resources: Vec<_> = entry.resources.iter().map(|r| (r.r#type.as_str(), r.id.as_str())).collect();
        assert_eq!(resources, [("rpc", "/activity.audit.v1.AuditQueryService/ListEntries"), ("instance", "foreign")]);
        assert_eq!(entry.details_json, r#"{"why":"instance"}"#);
    }
    let nobody = entries.iter().find(|entry| entry.actor.as_ref().unwrap().id == "anonymous").unwrap();
    assert_eq!(
        (nobody.reason.as_str(), nobody.details_json.as_str()),
        ("the bearer token has expired", r#"{"why":"credential"}"#)
    );
    // Those that were left out are one more entry, a minute later or at the end.
    let (store, _folder) = service.stop().await;
    let left_out = store
        .list(
            &support::full(),
            &Default::default(),
            support::EVER,
            audit_service::store::Order::NewestFirst,
            None,
            100,
            1 << 20,
        )
        .await
        .unwrap();
    let reasons: Vec<&str> = left_out.entries.iter().map(|(entry, _)| entry.event.reason.as_str()).collect();
    assert!(reasons.contains(&"45 more calls were refused and not recorded one by one"), "{reasons:?}");
}

#[tokio::test]
async fn a_tail_ends_when_its_token_expires_and_goes_on_with_a_new_one() {
    let service = Service::start(|config| config.auth.leeway_s = 0).await;
    let realm = &service.realm;
    let mut writer = service.client(&realm.token("w", &["writer"], &["own"])).await;
    let exp = now_us() / 1_000_000 + 2;
    let short = realm.token_with("a", &["auditor"], &["own"], &json!({ "exp": exp }));
    let request =
        |from| proto::TailEntriesRequest { instance_id: "own".into(), from_sequence: Some(from), ..Default::default() };
    let mut tail = service.client(&short).await.query.tail_entries(request(0)).await.unwrap().into_inner();
    call(&mut writer, "RecordEvents", "own").await.unwrap();
    let mut seen = 0;
    let status = loop {
        match tail.message().await {
            Ok(message) => {
                seen += u64::from(matches!(message.unwrap().event, Some(proto::tail_entries_response::Event::Entry(_))))
            }
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), reason(&status).as_str(), seen), (Code::Unauthenticated, "UNAUTHENTICATED", 1));
    call(&mut writer, "RecordEvents", "own").await.unwrap();
    let mut tail = service
        .client(&realm.token("a", &["auditor"], &["own"]))
        .await
        .query
        .tail_entries(request(1))
        .await
        .unwrap()
        .into_inner();
    loop {
        if let Some(proto::tail_entries_response::Event::Entry(entry)) = tail.message().await.unwrap().unwrap().event {
            assert_eq!(entry.sequence, Some(1));
            break;
        }
    }
    drop(tail);
    service.stop().await;
}

#[tokio::test]
async fn a_clients_certificate_writes_for_its_instances() {
    let name = "uri:spiffe://example.com/gateway";
    let service = Service::start(|config| {
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
    call(&mut writer, "RecordEvents", "own").await.unwrap();
    assert_eq!(call(&mut writer, "RecordEvents", "foreign").await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(call(&mut writer, "ListEntries", "own").await.unwrap_err().code(), Code::PermissionDenied);
    let mut stranger = service.client_with(Some(service.realm.authority.issue("dns:other.example.com")), "").await;
    assert_eq!(call(&mut stranger, "RecordEvents", "own").await.unwrap_err().code(), Code::Unauthenticated);
    let mut admin = service.client(&service.realm.token("root", &["super_admin"], &["*"])).await;
    let entries = admin.list(proto::AuditFilter { instance_ids: vec!["own".into()], ..Default::default() }).await;
    assert_eq!(entries.iter().map(|entry| entry.recorded_by.as_str()).collect::<Vec<_>>(), ["gateway"]);
    service.stop().await;
}
