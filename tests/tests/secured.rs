//! Both services behind TLS and authentication, and the SDK on all sides: a gateway with a certificate, backends with
//! tokens, and usage-service itself, which has its refusals recorded by audit-service.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::{Engine, Service, sandbox};
use futures::TryStreamExt as _;
use gateway_sdk::{
    AccessProblem, Actor, AuditEvent, AuditFilter, AuditQuery, Builder, Credentials, Dimension, GatewaySdk, Grouping,
    Resource, TimeRange, Tls, Tokens, UsageEvent, UsageFilter, UsageQuery,
};
use serde_json::json;
use tempfile::TempDir;
use testkit::{Realm, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
const GATEWAY: &str = "uri:spiffe://example.com/gateway";
const USAGE: &str = "uri:spiffe://example.com/usage-service";

struct Secured {
    realm: Realm,
    audit: Service,
    usage: Service,
    _folder: TempDir,
}

impl Secured {
    async fn start() -> Self {
        let (realm, folder) = (Realm::new(), tempfile::tempdir().unwrap());
        let rule = |san: &str, subject: &str, instance: &str| {
            format!(r#"{{ san = "{san}", subject = "{subject}", roles = ["writer"], instances = ["{instance}"] }}"#)
        };
        let rules = format!("[{}, {}]", rule(GATEWAY, "gateway", "prod"), rule(USAGE, "usage", "platform"));
        let mut settings = realm.settings();
        settings.extend(
            [
                ("TLS__CLIENT_CA_FILE", realm.path("clients.pem")),
                ("TLS__CLIENT_CERTIFICATES", "optional".to_owned()),
                ("AUTH__CERTIFICATES", rules),
                ("AUTH__LEEWAY_S", "0".to_owned()),
                ("DENIALS__INSTANCE", "platform".to_owned()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );

        let start = async |name: &'static str, settings: Vec<(String, String)>| {
            let url = sandbox::database_url(Engine::Sqlite, &folder, name).await;
            let settings: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            Service::start(name, &url, &settings).await
        };
        let audit = start("audit", settings.clone()).await;
        let (certificate, key) = issue(&realm, USAGE, "usage");
        let port = audit.address().rsplit(':').next().unwrap();
        let own = [
            ("AUDIT__ENDPOINT", format!("https://localhost:{port}")),
            ("AUDIT__CA_FILE", realm.path("clients.pem")),
            ("AUDIT__CERTIFICATE_FILE", certificate.to_str().unwrap().to_owned()),
            ("AUDIT__KEY_FILE", key.to_str().unwrap().to_owned()),
        ];
        settings.extend(own.map(|(key, value)| (key.to_owned(), value)));
        let usage = start("usage", settings).await;
        Self { realm, audit, usage, _folder: folder }
    }

    /// Believes the realm; how it shows who it is comes on top.
    fn sdk(&self) -> Builder {
        let at = |service: &Service| format!("https://localhost:{}", service.address().rsplit(':').next().unwrap());
        GatewaySdk::builder()
            .usage_endpoint(at(&self.usage))
            .audit_endpoint(at(&self.audit))
            .tls(self.tls())
            .instance("prod")
            .backoff(Duration::from_millis(2), Duration::from_millis(50))
            .audit_timeout(PATIENCE)
    }

    fn tls(&self) -> Tls {
        Tls::new().roots_file(self.realm.path("clients.pem"))
    }

    /// A gateway's.
    fn writer(&self) -> GatewaySdk {
        let (certificate, key) = issue(&self.realm, GATEWAY, "gateway");
        self.sdk().tls(self.tls().identity_files(certificate, key)).build().unwrap()
    }

    fn reader(&self, subject: &str, roles: &[&str]) -> GatewaySdk {
        let token = self.realm.token(subject, roles, &["prod", "platform"]);
        self.sdk().credentials(Credentials::token(token)).build().unwrap()
    }
}

/// Files of a client's certificate.
fn issue(realm: &Realm, san: &str, name: &str) -> (PathBuf, PathBuf) {
    let (certificate, key) = realm.authority.issue(san);
    let folder: &Path = realm.folder.path();
    let paths = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    std::fs::write(&paths.0, certificate).unwrap();
    std::fs::write(&paths.1, key).unwrap();
    paths
}

fn request(user: &str) -> UsageEvent {
    let tokens = Tokens { input_uncached: 100, output: 10, ..Tokens::default() };
    UsageEvent::builder("openai", "gpt-4o").user(user).tokens(tokens).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_a_certificate_writes_and_backends_with_tokens_read_what_is_theirs() {
    let services = Secured::start().await;
    let writer = services.writer();
    for n in 0..300 {
        writer.usage().record(request(["ada", "bob", "eve"][n % 3]));
    }
    for n in 0..5 {
        let action = AuditEvent::builder(Actor::user("u-1"), "model.enabled", Resource::new("model", format!("m-{n}")));
        writer.audit().record(action).await.unwrap();
    }
    // Of an instance that is not the gateway's: rejected alone.
    writer.usage().record(UsageEvent::builder("openai", "gpt-4o").user("ada").instance("lab"));
    let left = writer.shutdown(PATIENCE).await;
    assert!(left.is_complete(), "{left:?}: {:?}", writer.stats());
    let stats = writer.stats();
    assert_eq!((stats.usage.acknowledged, stats.usage.rejected, stats.usage.refused), (300, 1, 0));

    let hour = UsageQuery::new().range(TimeRange::last_hour());
    let requests = async |sdk: &GatewaySdk, query: &UsageQuery| {
        sdk.usage().summary(query).await.map(|answer| answer.summary.unwrap().requests())
    };
    let billing = services.reader("carol", &["billing_admin"]);
    assert_eq!(requests(&billing, &hour).await.unwrap(), 300);
    let member = services.reader("ada", &["member"]);
    assert_eq!(requests(&member, &hour).await.unwrap(), 100);
    let models = member.usage().breakdown(&hour, &Grouping::by([Dimension::Model, Dimension::ApiKey])).await.unwrap();
    assert_eq!((models.rows.len(), models.total.unwrap().unique_users()), (1, 1));
    let bobs = hour.clone().filter(UsageFilter::new().user("bob"));
    let refused = requests(&member, &bobs).await.unwrap_err();
    assert_eq!(refused.access(), Some(AccessProblem::NotAllowed), "{refused}");
    let by_user = member.usage().breakdown(&hour, &Grouping::by([Dimension::User])).await.unwrap_err();
    assert_eq!(by_user.access(), Some(AccessProblem::NotAllowed), "{by_user}");
    let auditor = services.reader("dave", &["auditor"]);
    assert_eq!(requests(&auditor, &hour).await.unwrap_err().access(), Some(AccessProblem::NotAllowed));
    assert_eq!(writer.usage().summary(&hour).await.unwrap_err().access(), Some(AccessProblem::NotAllowed));

    // What usage-service refused is in the audit log, by its own name.
    let denied = AuditFilter::new().action("access.denied").instance("platform");
    let denials = AuditQuery::new().range(TimeRange::last_hour()).filter(denied);
    let listed = async || auditor.audit().entries(denials.clone()).try_collect::<Vec<_>>().await.unwrap();
    eventually(PATIENCE, async || listed().await.iter().filter(|entry| entry.recorded_by == "usage").count() == 5)
        .await;
    let entries = listed().await;
    let told: BTreeSet<(String, String)> = entries
        .iter()
        .filter(|entry| entry.recorded_by == "usage")
        .map(|entry| (entry.actor.as_ref().unwrap().id.clone(), entry.details_json.clone()))
        .collect();
    let expected = [("ada", "user"), ("ada", "role"), ("dave", "role"), ("gateway", "role"), ("gateway", "instance")]
        .map(|(who, why)| (who.to_owned(), json!({ "why": why }).to_string()));
    assert_eq!(told, BTreeSet::from(expected));
    assert!(entries.iter().all(|entry| entry.actor.as_ref().unwrap().ip_address == "127.0.0.1"));
    assert!(!format!("{entries:?}").contains("eyJ"));

    let enabled = AuditQuery::new().range(TimeRange::last_hour()).filter(AuditFilter::new().action("model.enabled"));
    let entries: Vec<_> = auditor.audit().entries(enabled).try_collect().await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.recorded_by.as_str()).collect::<Vec<_>>(), ["gateway"; 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_during_a_stream_costs_and_doubles_nothing() {
    let services = Secured::start().await;
    let path = services.realm.folder.path().join("token");
    let in_seconds = |seconds: u64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        services.realm.token_with("w", &["writer"], &["prod"], &json!({ "exp": now + seconds }))
    };
    // Nobody replaces it in time.
    std::fs::write(&path, in_seconds(3)).unwrap();
    let sdk = services.sdk().credentials(Credentials::file(&path)).batch(20, 1 << 20).build().unwrap();
    let mut recorded = 0;
    let expired = async {
        while sdk.stats().usage.refused == 0 {
            sdk.usage().record(request("ada"));
            recorded += 1;
            tokio::task::yield_now().await;
            if recorded % 100 == 0 {
                // Until it is answered, or refused.
                let _ = sdk.flush(Duration::from_millis(200)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, expired).await.expect("the stream ends with its token");
    for _ in 0..500 {
        sdk.usage().record(request("ada"));
        recorded += 1;
    }
    let stats = sdk.stats().usage;
    assert!(stats.last_error.as_ref().is_some_and(|why| why.contains("expired")), "{stats:?}");
    std::fs::write(&path, in_seconds(600)).unwrap();
    assert!(sdk.shutdown(PATIENCE).await.is_complete());
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.rejected, stats.dropped), (recorded, 0, 0));
    let admin = services.reader("root", &["super_admin"]);
    let hour = UsageQuery::new().range(TimeRange::last_hour());
    let summary = admin.usage().summary(&hour).await.unwrap().summary.unwrap();
    assert_eq!(summary.requests(), recorded);
}
