//! Credentials and certificates, at a service that really wants them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use gateway_sdk::{
    AccessProblem, Builder, Credentials, Error, ExportFormat, GatewaySdk, TailQuery, TimeRange, Tls, Token, UsageQuery,
    UsageShape,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tonic::Status;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::delivery::{audit, usage};
use crate::fake::{Action, Fake, LONG};

/// A root, and files of what is made under it.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// For the gateway, in files.
    fn identity(&self) -> (PathBuf, PathBuf) {
        let paths = (self.path("gateway.pem"), self.path("gateway.key"));
        self.identity_at(&paths.0, &paths.1);
        paths
    }

    fn identity_at(&self, certificate: &Path, key: &Path) {
        let (pem, secret) = self.issue("gateway-1", |_| ());
        std::fs::write(certificate, pem).unwrap();
        std::fs::write(key, secret).unwrap();
    }

    fn server(&self, name: &str) -> ServerTlsConfig {
        let (certificate, key) = self.issue(name, |_| ());
        ServerTlsConfig::new().identity(Identity::from_pem(certificate, key))
    }

    fn mutual(&self) -> ServerTlsConfig {
        self.server("localhost").client_ca_root(Certificate::from_pem(self.issuer.pem()))
    }

    /// Believes this root.
    fn tls(&self) -> Tls {
        Tls::new().roots_file(self.path("ca.pem"))
    }
}

fn start(tls: ServerTlsConfig) -> Fake {
    let mut fake = Fake::down();
    fake.tls = Some(tls);
    fake.restart();
    fake
}

fn secured(fake: &Fake, tls: Tls) -> Builder {
    let address = format!("https://localhost:{}", fake.address.port());
    fake.sdk().usage_endpoint(&address).audit_endpoint(&address).tls(tls).query_timeout(LONG)
}

fn bearer(wanted: &'static str) -> impl Fn(Option<&str>) -> Result<(), Status> + Send + Sync + 'static {
    move |header| match header {
        Some(header) if header.strip_prefix("Bearer ") == Some(wanted) => Ok(()),
        _ => Err(Status::unauthenticated("no")),
    }
}

/// Tokens t1, t2, …
fn numbered(valid_for: Option<Duration>) -> (Credentials, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let credentials = Credentials::callback(move || {
        let token = Token::new(format!("t{}", counted.fetch_add(1, Ordering::SeqCst) + 1));
        let token = valid_for.map_or(token.clone(), |lifetime| token.valid_for(lifetime));
        async move { Ok::<_, Error>(token) }
    });
    (credentials, calls)
}

async fn problem(sdk: &GatewaySdk) -> (Option<AccessProblem>, String) {
    let error = sdk.usage().summary(&UsageQuery::new()).await.unwrap_err();
    (error.access(), error.to_string())
}

#[tokio::test]
async fn token_goes_with_streams_queries_exports_and_tails_over_tls() {
    let authority = Authority::new();
    let fake = start(authority.server("localhost"));
    fake.memory.guard(bearer("good"));
    let sdk = secured(&fake, authority.tls()).credentials(Credentials::token("good")).build().unwrap();
    sdk.usage().record(usage("a"));
    sdk.audit().record(audit("b")).await.unwrap();
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| assert_eq!(memory.tags(), ["a", "b"]));
    // Questions are let in too: what the service then lacks is an answer.
    for (sdk, let_in) in [(&sdk, true), (&secured(&fake, authority.tls()).build().unwrap(), false)] {
        let query = UsageQuery::new().range(TimeRange::last_hour());
        let summary = sdk.usage().summary(&query).await.map(|_| ());
        let export = sdk.usage().export(&query, UsageShape::Requests, ExportFormat::Csv, &mut Vec::new(), |_| ()).await;
        let tail = sdk.audit().tail(TailQuery::new("test")).next().await.unwrap().map(|_| ());
        for (asked, answer) in [("summary", summary), ("export", export.map(|_| ())), ("tail", tail)] {
            let missing = matches!(&answer, Err(error) if error.access() == Some(AccessProblem::Missing));
            assert_eq!(missing, !let_in, "{asked}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn token_that_expires_during_a_stream_is_renewed_and_nothing_lost_or_doubled() {
    let fake = Fake::start();
    let (credentials, calls) = numbered(None);
    // Every third batch of a stream its token expires: before, or after it was stored.
    fake.memory.script(|arrived| match arrived.batch % 3 {
        1 => Action::End(Status::unauthenticated("the bearer token has expired")),
        2 if arrived.batch % 2 == 0 => Action::StoreAndEnd(Status::unauthenticated("the bearer token has expired")),
        _ => Action::Ack,
    });
    let sdk = fake.sdk().credentials(credentials).batch(10, 1 << 20).build().unwrap();
    for n in 0..300 {
        sdk.usage().record(usage(format!("{n}")));
    }
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| {
        assert_eq!(memory.sequences_as_stored(), (0..300).collect::<Vec<_>>());
        assert!(memory.streams > 3);
    });
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.rejected, stats.dropped), (300, 0, 0));
    assert!(stats.refused > 0 && calls.load(Ordering::SeqCst) > 1);
}

#[tokio::test]
async fn streams_move_over_to_the_next_token_before_the_last_one_expires() {
    let fake = Fake::start();
    // Renewed after a second, a quarter of one before it expires.
    let (credentials, calls) = numbered(Some(Duration::from_millis(1_250)));
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    fake.memory.guard(move |header| {
        noted.lock().unwrap().push(header.unwrap_or_default().to_owned());
        Ok(())
    });
    let sdk = fake.sdk().credentials(credentials).build().unwrap();
    let mut recorded = 0;
    while fake.memory.look(|memory| memory.streams) < 3 {
        sdk.usage().record(usage(format!("{recorded}")));
        recorded += 1;
        assert!(sdk.flush(LONG).await.is_complete());
    }
    fake.memory.look(|memory| {
        assert_eq!(memory.sequences_as_stored(), (0..recorded).collect::<Vec<_>>());
        // Nothing was under way when a stream ended.
        assert_eq!(memory.duplicates, 0);
    });
    let stats = sdk.stats().usage;
    assert_eq!((stats.acknowledged, stats.refused, stats.last_error), (recorded, 0, None));
    assert_eq!(*seen.lock().unwrap(), ["Bearer t1", "Bearer t2", "Bearer t3"]);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn refused_token_is_replaced_once_for_a_query() {
    let fake = Fake::start();
    fake.memory.guard(bearer("t2"));
    let (credentials, calls) = numbered(None);
    let sdk = fake.sdk().credentials(credentials).build().unwrap();
    // Let in with the second token; what the service then answers is no refusal.
    let answer = sdk.usage().summary(&UsageQuery::new()).await;
    assert!(!matches!(&answer, Err(error) if error.access().is_some()), "{answer:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 2);

    fake.memory.guard(bearer("another"));
    let (found, text) = problem(&sdk).await;
    assert_eq!(found, Some(AccessProblem::Refused), "{text}");
    assert!(calls.load(Ordering::SeqCst) <= 4);
}

#[tokio::test]
async fn errors_say_what_is_wrong_with_the_credentials() {
    let fake = Fake::start();
    fake.memory.guard(bearer("good"));
    let with = |credentials| fake.sdk().credentials(credentials).build().unwrap();
    let (found, text) = problem(&fake.sdk().build().unwrap()).await;
    assert_eq!(found, Some(AccessProblem::Missing));
    assert!(text.contains("no credentials are configured"), "{text}");
    assert_eq!(problem(&with(Credentials::token("hunter2"))).await.0, Some(AccessProblem::Refused));
    let expired = Credentials::token(Token::new("hunter2").valid_for(Duration::ZERO));
    let (found, text) = problem(&with(expired)).await;
    assert_eq!(found, Some(AccessProblem::Expired));
    assert!(text.contains("the token has expired") && !text.contains("hunter2"), "{text}");
    let (found, text) = problem(&with(Credentials::file("/nonexistent/token"))).await;
    assert_eq!(found, Some(AccessProblem::NoToken));
    assert!(text.contains("/nonexistent/token"), "{text}");
    fake.memory.guard(|_| Err(Status::permission_denied("not with these roles")));
    assert_eq!(problem(&with(Credentials::token("good"))).await.0, Some(AccessProblem::NotAllowed));
    // What is recorded meanwhile is kept, and told loudly.
    let sdk = with(Credentials::token("good"));
    sdk.usage().record(usage("kept"));
    assert!(!sdk.flush(Duration::from_millis(100)).await.is_complete());
    let stats = sdk.stats().usage;
    assert_eq!((stats.recorded, stats.rejected, stats.dropped), (1, 0, 0));
    assert!(stats.refused > 0 && stats.last_error.is_some_and(|why| why.contains("not with these roles")));
    fake.memory.guard(|_| Ok(()));
    assert!(sdk.flush(LONG).await.is_complete());
    fake.memory.look(|memory| assert_eq!(memory.tags(), ["kept"]));
}

#[tokio::test]
async fn errors_say_what_is_wrong_with_the_certificates() {
    let (authority, other) = (Authority::new(), Authority::new());
    let fails = |fake: &Fake, tls: Tls| {
        let sdk = secured(fake, tls).build().unwrap();
        async move { problem(&sdk).await }
    };
    let fake = start(authority.server("localhost"));
    let (found, text) = fails(&fake, other.tls()).await;
    assert_eq!(found, Some(AccessProblem::UnknownServer), "{text}");
    let (found, text) = fails(&fake, Tls::new()).await;
    assert_eq!(found, Some(AccessProblem::UnknownServer), "{text}");
    let (found, text) = fails(&fake, authority.tls().server_name("usage.internal")).await;
    assert_eq!(found, Some(AccessProblem::ServerName), "{text}");
    assert!(text.contains("not for `usage.internal`"), "{text}");

    let (certificate, key) = authority.issue("localhost", |params| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    });
    let old = start(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)));
    let (found, text) = fails(&old, authority.tls()).await;
    assert_eq!(found, Some(AccessProblem::ServerCertificate), "{text}");

    let (found, text) = fails(&Fake::start(), authority.tls()).await;
    assert_eq!(found, Some(AccessProblem::NotTls), "{text}");

    let mutual = start(authority.mutual());
    let (found, text) = fails(&mutual, authority.tls()).await;
    assert_eq!(found, Some(AccessProblem::ClientCertificate), "{text}");
    let (certificate, key) = other.identity();
    let (found, text) = fails(&mutual, authority.tls().identity_files(certificate, key)).await;
    assert_eq!(found, Some(AccessProblem::ClientCertificate), "{text}");
}

#[tokio::test]
async fn new_certificate_files_count_from_the_next_connection_on() {
    let (authority, next) = (Authority::new(), Authority::new());
    let mut fake = start(authority.mutual());
    let (certificate, key) = authority.identity();
    let roots = authority.path("ca.pem");
    let tls = Tls::new().roots_file(&roots).identity_files(&certificate, &key);
    let sdk = secured(&fake, tls).build().unwrap();
    sdk.audit().record(audit("before")).await.unwrap();

    // Everything is of another root now.
    fake.kill();
    fake.tls = Some(next.mutual());
    fake.restart();
    let waiting = tokio::spawn({
        let sdk = sdk.clone();
        async move { sdk.audit().record(audit("after")).await }
    });
    let refused = async {
        while sdk.stats().audit.last_error.is_none_or(|why| !why.contains("none of the roots")) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, refused).await.expect("the old root does not do");
    next.identity_at(&certificate, &key);
    std::fs::write(&roots, next.issuer.pem()).unwrap();
    waiting.await.unwrap().unwrap();
    fake.memory.look(|memory| assert_eq!(memory.tags(), ["after", "before"]));
}

#[tokio::test]
async fn files_that_are_no_use_and_secrets_in_the_open_are_refused_at_build() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no.pem");
    let wrong = |builder: Builder| match builder.build() {
        Err(Error::Config { setting, message }) => (setting, message),
        other => panic!("{other:?}"),
    };
    let sdk = GatewaySdk::builder;
    let (setting, message) = wrong(sdk().tls(Tls::new().roots_file(&path)));
    assert!(setting == "tls" && message.contains("no.pem"), "{message}");
    std::fs::write(&path, "hunter2").unwrap();
    for tls in [Tls::new().roots_file(&path), Tls::new().identity_files(&path, &path)] {
        let (setting, message) = wrong(sdk().tls(tls));
        assert!(setting == "tls" && message.contains("no.pem") && !message.contains("hunter2"), "{message}");
    }
    let open = sdk().credentials(Credentials::token("hunter2")).usage_endpoint("http://10.0.0.1:50052");
    assert!(!format!("{open:?}").contains("hunter2"));
    let (setting, message) = wrong(open);
    assert!(setting == "usage_endpoint" && message.contains("plain text"), "{message}");
}
