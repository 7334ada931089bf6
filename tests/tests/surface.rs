//! What any gRPC client finds: health, reflection in both versions, and every RPC of the contract so far.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;
use std::time::Duration;

use e2e::tools::{grpcurl, run};
use e2e::{Engine, Sandbox};
use serde_json::json;
use testkit::eventually;

#[tokio::test]
async fn grpcurl_lists_and_describes_every_service() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    for (service, names) in [
        (
            &sandbox.audit,
            [
                "activity.audit.v1.AuditGovernanceService",
                "activity.audit.v1.AuditIngestService",
                "activity.audit.v1.AuditQueryService",
                "activity.audit.v1.AuditTrustService",
            ]
            .as_slice(),
        ),
        (
            &sandbox.usage,
            [
                "activity.usage.v1.PricingService",
                "activity.usage.v1.UsageIngestService",
                "activity.usage.v1.UsageQueryService",
            ]
            .as_slice(),
        ),
    ] {
        let list = run(Command::new("grpcurl").args(["-plaintext", service.address(), "list"]));
        let ours: Vec<_> = list.lines().filter(|name| name.starts_with("activity.")).collect();
        assert_eq!(ours, names);
        for name in names {
            let text = run(Command::new("grpcurl").args(["-plaintext", service.address(), "describe", name]));
            assert!(text.contains("rpc "), "{text}");
        }
    }
}

#[tokio::test]
async fn grpcurl_shows_why_a_request_is_refused() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    for (address, method, field) in [
        (sandbox.audit.address(), "activity.audit.v1.AuditQueryService/ListEntries", "page_size"),
        (sandbox.usage.address(), "activity.usage.v1.UsageQueryService/ListRequests", "page_size"),
    ] {
        let data = json!({ "page_size": 1_001 }).to_string();
        let output = Command::new("grpcurl").args(["-plaintext", "-d", &data, address, method]).output().unwrap();
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains("@error"), "{text}");
        for part in [
            "google.rpc.ErrorInfo",
            "google.rpc.BadRequest",
            "\"domain\"",
            "\"reason\"",
            "INVALID_ARGUMENT",
            "\"field\"",
            field,
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}

#[tokio::test]
async fn health_is_a_real_probe_of_storage() {
    let postgres = testkit::Postgres::start().await;
    let url = postgres.create_database().await;
    let service = e2e::Service::start("audit", &url, &[]).await;
    let status = |name: &str| {
        let request = json!({ "service": name }).to_string();
        let output = Command::new("grpcurl")
            .args(["-plaintext", "-d", &request, service.address(), "grpc.health.v1.Health/Check"])
            .output()
            .unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?["status"].as_str().map(str::to_owned)
    };
    let names = [
        "",
        "activity.audit.v1.AuditIngestService",
        "activity.audit.v1.AuditQueryService",
        "activity.audit.v1.AuditTrustService",
    ];
    for name in names {
        assert_eq!(status(name).as_deref(), Some("SERVING"), "{name}");
    }
    postgres.stop().await;
    for name in names {
        eventually(Duration::from_secs(30), async || status(name).as_deref() == Some("NOT_SERVING")).await;
    }
    postgres.start_again().await;
    for name in names {
        eventually(Duration::from_secs(30), async || status(name).as_deref() == Some("SERVING")).await;
    }
}

#[tokio::test]
async fn an_empty_database_answers_with_zeros_that_are_shown() {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let answer = grpcurl(sandbox.usage.address(), "activity.usage.v1.UsageQueryService/GetSummary", "{}");
    assert_eq!(answer["summary"]["requests"], "0");
    assert_eq!(answer["summary"]["cost"], "0");
    assert_eq!(answer["summary"]["tokens"]["output"], "0");
    assert_eq!(answer["currencyCode"], "USD");
    let answer = grpcurl(sandbox.audit.address(), "activity.audit.v1.AuditQueryService/ListEntries", "{}");
    assert_eq!(answer["entries"], serde_json::Value::Null);
    assert!(answer["interval"]["start"].is_string());
}
