//! No action without a trace: a gateway that dies in the middle of one leaves an open intent.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use activity_proto::audit::v1::audit_query_service_client::AuditQueryServiceClient;
use activity_proto::audit::v1::{AuditEntry, ListEntriesRequest, Outcome, Stage};
use e2e::{Engine, Sandbox};
use testkit::ChildProcess;

const PATIENCE: Duration = Duration::from_secs(60);

fn recorder(folder: &Path, sandbox: &Sandbox, mode: &str) -> ChildProcess {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recorder"));
    command.arg(folder).arg(sandbox.audit.address()).arg(sandbox.usage.address()).arg(mode);
    ChildProcess::start(&mut command)
}

async fn listed(sandbox: &Sandbox) -> Vec<AuditEntry> {
    let mut client = AuditQueryServiceClient::new(sandbox.audit.channel());
    client.list_entries(ListEntriesRequest::default()).await.unwrap().into_inner().entries
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
