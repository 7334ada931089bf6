//! Proofs through the SDK from a real server, checked against roots that are made from an export alone.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, SystemTime};

use activity_proto::audit::v1::RecordEventsRequest;
use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use audit_service::canonical;
use audit_service::merkle::{Frontier, Hash, Tile, verify_consistency, verify_inclusion};
use e2e::sandbox::database_url;
use e2e::{Engine, Service, events};
use gateway_sdk::{AuditExport, Code, Error, ErrorReason, ExportFormat, GatewaySdk};

const INSTANCE: &str = "eu-1";

fn hashes(hashes: &[Vec<u8>]) -> Vec<Hash> {
    hashes.iter().map(|hash| Hash::try_from(hash.as_slice()).unwrap()).collect()
}

fn root(leaves: &[Hash]) -> Hash {
    leaves.iter().copied().collect::<Frontier>().root()
}

/// Why a call was refused, and which field was named.
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> (Code, ErrorReason, String) {
    match answer.unwrap_err() {
        Error::Service(error) => (error.code, error.reason.unwrap(), error.message),
        other => panic!("{other:?}"),
    }
}

async fn proofs_hold(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(engine, &folder, "audit").await;
    let service = Service::start("audit", &url, &[]).await;
    let now = SystemTime::now();
    let mut writer = AuditIngestServiceClient::new(service.channel());
    for first in [0, 300] {
        let events = (first..first + 300).map(|n| events::audit(now, n)).collect();
        writer.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();
    }

    let sdk = GatewaySdk::builder().audit_endpoint(service.url()).build().unwrap();
    let audit = sdk.audit();
    let mut lines = Vec::new();
    let export = AuditExport::sequences(INSTANCE, 0, None, ExportFormat::Jsonl);
    audit.export(export, &mut lines, |_| {}).await.unwrap();
    let text = String::from_utf8(lines).unwrap();
    let leaves: Vec<Hash> = text.lines().map(canonical::leaf_hash).collect();
    assert_eq!(leaves.len(), 600);

    for (sequence, size) in [(0, Some(1)), (0, None), (255, Some(256)), (256, Some(257)), (599, None), (311, Some(512))]
    {
        let answer = audit.inclusion_proof(INSTANCE, sequence, size).await.unwrap();
        let size = size.unwrap_or(600);
        assert_eq!((answer.sequence, answer.tree_size), (Some(sequence), Some(size)));
        assert_eq!(answer.leaf_hash, leaves[sequence as usize]);
        let root = root(&leaves[..size as usize]);
        assert_eq!(answer.root_hash, root);
        verify_inclusion(sequence, size, &leaves[sequence as usize], &hashes(&answer.hashes), &root).unwrap();
    }
    for (old, new) in [(0, None), (1, None), (256, Some(257)), (299, Some(512)), (600, None)] {
        let answer = audit.consistency_proof(INSTANCE, old, new).await.unwrap();
        let new = new.unwrap_or(600);
        assert_eq!((answer.old_size, answer.new_size), (Some(old), Some(new)));
        let (old_root, new_root) = (root(&leaves[..old as usize]), root(&leaves[..new as usize]));
        assert_eq!(answer.new_root_hash, new_root);
        verify_consistency(old, new, &old_root, &new_root, &hashes(&answer.hashes)).unwrap();
    }
    for (level, index, width, path, expected) in [
        (0, 0, 0, "tile/0/000", leaves[..256].to_vec()),
        (0, 2, 88, "tile/0/002.p/88", leaves[512..].to_vec()),
        (0, 1, 3, "tile/0/001.p/3", leaves[256..259].to_vec()),
        (1, 0, 2, "tile/1/000.p/2", leaves[..512].chunks(256).map(root).collect()),
    ] {
        let answer = audit.tile(INSTANCE, level, index, width).await.unwrap();
        assert_eq!((answer.path.as_str(), Tile::from_bytes(&answer.hashes)), (path, Tile::new(expected)));
    }

    let not_found = (Code::NotFound, ErrorReason::NotFound);
    let invalid = (Code::InvalidArgument, ErrorReason::InvalidArgument);
    for (answer, why, part) in [
        (refused(audit.inclusion_proof(INSTANCE, 600, None).await), not_found, "which has 600"),
        (refused(audit.inclusion_proof("nowhere", 0, None).await), not_found, "which has 0"),
        (refused(audit.inclusion_proof(INSTANCE, 7, Some(7)).await), invalid, "tree_size is 7, allowed are 8 to 600"),
        (refused(audit.inclusion_proof(INSTANCE, 7, Some(601)).await), invalid, "tree_size is 601"),
        (refused(audit.consistency_proof(INSTANCE, 601, None).await), invalid, "old_size is 601, allowed are 0 to 600"),
        (refused(audit.consistency_proof(INSTANCE, 9, Some(8)).await), invalid, "new_size is 8, allowed are 9 to 600"),
        (refused(audit.tile(INSTANCE, 0, 2, 89).await), not_found, "tile/0/002.p/89"),
        (refused(audit.tile(INSTANCE, 0, u64::MAX, 0).await), not_found, "no tile/0/x018/"),
        (refused(audit.tile(INSTANCE, 8, 0, 0).await), invalid, "level is 8, allowed are 0 to 7"),
        (refused(audit.tile(INSTANCE, 0, 0, 257).await), invalid, "width is 257, allowed are 1 to 256"),
    ] {
        assert_eq!((answer.0, answer.1), why, "{}", answer.2);
        assert!(answer.2.contains(part), "{}", answer.2);
    }
    assert!(sdk.shutdown(Duration::from_secs(10)).await.is_complete());
}

/// What its owner does to a database is not proven but told.
async fn changes_are_told(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let url = database_url(engine, &folder, "audit").await;
    let service = Service::start("audit", &url, &[]).await;
    let now = SystemTime::now();
    let mut writer = AuditIngestServiceClient::new(service.channel());
    let events = (0..600).map(|n| events::audit(now, n)).collect();
    writer.record_events(RecordEventsRequest { events, ..Default::default() }).await.unwrap();
    let sdk = GatewaySdk::builder().audit_endpoint(service.url()).build().unwrap();
    let audit = sdk.audit();
    e2e::tree::tamper(&url, e2e::tree::guards_off(engine)).await;
    let copied = |to: u64, column: &str| {
        let from = format!("(SELECT {column} FROM audit_entries WHERE sequence = 30)");
        format!("UPDATE audit_entries SET {column} = {from} WHERE sequence = {to}")
    };
    for (statements, sequence, told) in [
        (vec![copied(5, "canonical")], 5, "entry 5 was changed"),
        (vec![copied(7, "leaf_hash")], 7, "entry 7 was changed"),
        (vec![copied(9, "canonical"), copied(9, "leaf_hash")], 9, "its tree is not over entry 9 as it is"),
        (vec!["DELETE FROM audit_entries WHERE sequence = 11".to_owned()], 11, "entry 11 is missing"),
    ] {
        audit.inclusion_proof(INSTANCE, sequence, None).await.unwrap();
        e2e::tree::tamper(&url, &statements.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let answer = refused(audit.inclusion_proof(INSTANCE, sequence, None).await);
        assert_eq!((answer.0, answer.1), (Code::DataLoss, ErrorReason::DataLoss), "{}", answer.2);
        assert!(answer.2.contains(told), "{}", answer.2);
    }
    // An export says which one it is, too.
    let export = AuditExport::sequences(INSTANCE, 0, None, ExportFormat::Jsonl);
    let answer = refused(audit.export(export, &mut Vec::new(), |_| {}).await);
    assert!(answer.0 == Code::DataLoss && answer.2.contains("entry 11 is missing"), "{answer:?}");
    // Of what was not changed there are proofs, until the head itself is not led to.
    audit.inclusion_proof(INSTANCE, 100, Some(300)).await.unwrap();
    e2e::tree::tamper(&url, &[copied(599, "canonical").as_str(), copied(599, "leaf_hash").as_str()]).await;
    for answer in [
        refused(audit.inclusion_proof(INSTANCE, 100, Some(600)).await),
        refused(audit.consistency_proof(INSTANCE, 300, None).await),
    ] {
        assert_eq!(answer.0, Code::DataLoss, "{}", answer.2);
    }
    assert!(sdk.shutdown(Duration::from_secs(10)).await.is_complete());
}

#[tokio::test]
async fn what_was_changed_is_told_in_place_of_a_proof_on_sqlite() {
    changes_are_told(Engine::Sqlite).await;
}

#[tokio::test]
async fn what_was_changed_is_told_in_place_of_a_proof_on_postgres() {
    if !testkit::Postgres::skipped() {
        changes_are_told(Engine::Postgres).await;
    }
}

#[tokio::test]
async fn proofs_hold_against_the_entries_of_an_export_on_sqlite() {
    proofs_hold(Engine::Sqlite).await;
}

#[tokio::test]
async fn proofs_hold_against_the_entries_of_an_export_on_postgres() {
    if !testkit::Postgres::skipped() {
        proofs_hold(Engine::Postgres).await;
    }
}
