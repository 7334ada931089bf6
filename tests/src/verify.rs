//! `standalone verify` as an auditor runs it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use activity_proto::audit::v1::{ExportEnd, LogHead};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gateway_sdk::{AuditExport, GatewaySdk};
use serde_json::{Value, json};

use crate::Service;

/// Writes an export, and its end beside it: `NAME.jsonl` and `NAME.json` in a folder.
pub async fn export(service: &Service, export: AuditExport, folder: &Path, name: &str) -> ExportEnd {
    let sdk = GatewaySdk::builder().audit_endpoint(service.url()).build().unwrap();
    let mut lines = Vec::new();
    let exported = sdk.audit().export(export, &mut lines, |_| {}).await.unwrap();
    assert!(sdk.shutdown(Duration::from_secs(30)).await.is_complete());
    std::fs::write(folder.join(format!("{name}.jsonl")), lines).unwrap();
    std::fs::write(folder.join(format!("{name}.json")), end_json(&exported.end).to_string()).unwrap();
    exported.end
}

/// The end of an export as grpcurl prints it.
pub fn end_json(end: &ExportEnd) -> Value {
    let head = |head: &LogHead| {
        json!({
            "instanceId": head.instance_id,
            "size": head.size.unwrap_or_default().to_string(),
            "rootHash": BASE64.encode(&head.root_hash),
            "checkpoint": head.checkpoint,
            "consistencyHashes": head.consistency_hashes.iter().map(|hash| BASE64.encode(hash)).collect::<Vec<_>>(),
        })
    };
    json!({
        "entries": end.entries.unwrap_or_default().to_string(),
        "sha256": BASE64.encode(&end.sha256),
        "heads": end.heads.iter().map(head).collect::<Vec<_>>(),
        "frozenAt": end.frozen_at.map(|at| at.to_string()),
    })
}

/// Exit status and output of `standalone verify`.
pub fn verify<'a>(arguments: impl IntoIterator<Item = &'a str>) -> (Option<i32>, String) {
    let output = Command::new(testkit::binary("standalone")).arg("verify").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}
