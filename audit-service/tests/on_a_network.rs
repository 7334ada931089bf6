//! A service on a network, as an operator runs it: by its environment, asked with grpcurl, and what its log holds.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Output};
use std::time::Duration;

use testkit::{ChildProcess, Realm, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

const LIST: &str = "activity.audit.v1.AuditQueryService/ListEntries";

fn grpcurl(realm: &Realm, address: &str, token: Option<&str>, method: &[&str]) -> Command {
    let mut command = Command::new("grpcurl");
    command.args(["-cacert", &realm.path("clients.pem"), "-servername", "localhost"]);
    if let Some(token) = token {
        command.args(["-H", &format!("Authorization: Bearer {token}")]);
    }
    command.args(["-d", "{}", address]).args(method);
    command
}

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[tokio::test]
async fn grpcurl_asks_with_a_token_over_tls_and_no_token_is_in_the_log() {
    let (realm, folder) = (Realm::new(), tempfile::tempdir().unwrap());
    let service = ChildProcess::start(
        Command::new(env!("CARGO_BIN_EXE_audit-service"))
            .envs(realm.settings().into_iter().map(|(key, value)| (format!("AUDIT_{key}"), value)))
            // As much as there is: that is where a header would be.
            .envs([("AUDIT_LISTEN", "127.0.0.1:0"), ("AUDIT_METRICS_LISTEN", ""), ("AUDIT_TELEMETRY__LOG", "trace")])
            // grpcurl asks reflection first, with or without a token.
            .env("AUDIT_AUTH__OPEN_REFLECTION", "true")
            .current_dir(folder.path()),
    );
    let ready = service.line("ready audit=", PATIENCE).await;
    let address = ready.strip_prefix("ready audit=").unwrap();

    let auditor = realm.token("ada", &["auditor"], &["prod"]);
    let answer = run(&mut grpcurl(&realm, address, Some(&auditor), &[LIST]));
    assert!(answer.contains("\"interval\""), "{answer}");
    let refused = |token: Option<&str>, method: &[&str]| {
        let Output { status, stderr, .. } = grpcurl(&realm, address, token, method).output().unwrap();
        assert!(!status.success());
        String::from_utf8(stderr).unwrap()
    };
    let writer = realm.token("gateway", &["writer"], &["prod"]);
    let expired = realm.token_with("ada", &["auditor"], &["prod"], &serde_json::json!({ "exp": 1 }));
    assert!(refused(Some(&writer), &[LIST]).contains("none of the caller's roles may call"));
    assert!(refused(Some(&expired), &[LIST]).contains("the bearer token has expired"));
    assert!(refused(None, &[LIST]).contains("a bearer token or a client certificate is required"));
    let plain = Command::new("grpcurl").args(["-plaintext", "-d", "{}", address, LIST]).output().unwrap();
    assert!(!plain.status.success());

    // Health is open; and the service goes on after all of that.
    let health = ["grpc.health.v1.Health/Check"];
    assert!(run(&mut grpcurl(&realm, address, None, &health)).contains("SERVING"));
    let admin = realm.token("root", &["super_admin"], &["*"]);
    eventually(PATIENCE, async || {
        let answer = run(&mut grpcurl(&realm, address, Some(&admin), &[LIST]));
        answer.matches("\"access.denied\"").count() >= 3
    })
    .await;
    let log = service.log();
    assert!(log.contains("rpc"), "{log}");
    for token in [&auditor, &writer, &expired, &admin] {
        // The signature: no two tokens share it, and the rest is worth nothing without it.
        let signature = token.rsplit('.').next().unwrap();
        assert!(!log.contains(signature), "a token is in the log");
    }
}
