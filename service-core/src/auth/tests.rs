//! Real tokens of every algorithm, and what must not pass for one.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use testkit::{AUDIENCE, ISSUER, Signer, base64url, eventually};

use super::*;
use crate::clock::{MICROS_PER_SECOND, now_us};
use crate::config::{ClaimsConfig, Secret};

const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "correct horse battery staple, twice over";

fn now_s() -> i64 {
    now_us() / MICROS_PER_SECOND
}

/// Claims that are accepted, with some of them changed; null takes one out.
pub(crate) fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": [AUDIENCE, "other"], "exp": now_s() + 600, "nbf": now_s() - 10, "sub": "gateway-1",
        "roles": ["writer", "no_role_of_ours"], "instances": ["prod", "staging"],
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn jwks(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

pub(crate) fn config() -> AuthConfig {
    AuthConfig { issuer: ISSUER.to_owned(), audiences: vec![AUDIENCE.to_owned()], ..AuthConfig::default() }
}

fn millis(value: u64) -> std::num::NonZeroU64 {
    value.try_into().unwrap()
}

/// With these keys in a file that stays.
pub(crate) fn config_with(keys: &[Value]) -> (tempfile::TempDir, AuthConfig) {
    let folder = tempfile::tempdir().unwrap();
    let jwks_file: PathBuf = folder.path().join("jwks.json");
    std::fs::write(&jwks_file, jwks(keys)).unwrap();
    (folder, AuthConfig { jwks_file, ..config() })
}

fn made(config: &AuthConfig) -> Arc<Authenticator> {
    Authenticator::new(config).unwrap().unwrap()
}

async fn ask(auth: &Authenticator, token: &str) -> Result<Arc<Principal>, Refusal> {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    auth.check(&headers, None).await.map(|(identified, _)| identified.principal)
}

#[tokio::test]
async fn a_token_of_every_algorithm_says_who_calls() {
    let signers = [Signer::rsa(), Signer::ec(), Signer::ed()];
    let (_folder, mut config) = config_with(&signers.each_ref().map(|signer| signer.jwk(signer.algorithm())));
    config.hs256_secret = Some(Secret::new(SECRET));
    let auth = made(&config);
    for signer in signers.into_iter().chain([Signer::Hs256(SECRET.into())]) {
        let claims = claims(json!({}));
        let token = signer.token(signer.algorithm(), &claims);
        for _ in 0..2 {
            let principal = ask(&auth, &token).await.unwrap();
            let expected = Principal {
                subject: "gateway-1".to_owned(),
                roles: [Role::Writer].into_iter().collect(),
                instances: Arc::new(Instances::Only(["prod", "staging"].map(str::to_owned).into())),
                user_id: Some("gateway-1".to_owned()),
                kind: CredentialKind::Token,
                expires_at_us: Some((claims["exp"].as_i64().unwrap() + 5) * MICROS_PER_SECOND),
            };
            assert_eq!(*principal, expected);
        }
        let without_id = signer.signed(&json!({ "alg": signer.algorithm() }), &claims);
        ask(&auth, &without_id).await.expect("a key id is not required");
    }
}

#[tokio::test]
async fn nothing_else_passes_for_a_token() {
    let (rsa, ed, other) = (Signer::rsa(), Signer::ed(), Signer::ed());
    let (_folder, config) = config_with(&[rsa.jwk("rsa"), ed.jwk("ed"), Signer::Hs256(SECRET.into()).jwk("oct")]);
    let (auth, stop) = (made(&config), CancellationToken::new());
    auth.start(&Metrics::new("test"), &stop);
    let good = ed.token("ed", &claims(json!({})));
    ask(&auth, &good).await.expect("good");
    let public = rsa.jwk("rsa")["n"].as_str().unwrap().to_owned();
    let header = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
    let with = |changes| ed.token("ed", &claims(changes));
    let none = format!("{}.{}.", base64url(header("none", "ed").to_string()), base64url(claims(json!({})).to_string()));
    let table = [
        ("alg none", none),
        ("no signature", good.rsplit_once('.').unwrap().0.to_owned() + "."),
        ("another key", other.token("ed", &claims(json!({})))),
        ("a key of another algorithm", ed.signed(&header("RS256", "rsa"), &claims(json!({})))),
        ("the key's id, another algorithm", ed.signed(&header("EdDSA", "rsa"), &claims(json!({})))),
        (
            "a public key as secret",
            Signer::Hs256(URL_SAFE_NO_PAD.decode(&public).unwrap()).token("rsa", &claims(json!({}))),
        ),
        ("a secret of the set", Signer::Hs256(SECRET.into()).token("oct", &claims(json!({})))),
        (
            "critical header",
            ed.signed(&json!({ "alg": "EdDSA", "kid": "ed", "crit": ["x"], "x": 1 }), &claims(json!({}))),
        ),
        ("another issuer", with(json!({ "iss": "https://evil.example.com" }))),
        ("no issuer", with(json!({ "iss": null }))),
        ("another audience", with(json!({ "aud": "elsewhere" }))),
        ("no audience", with(json!({ "aud": null }))),
        ("no expiry", with(json!({ "exp": null }))),
        ("expiry as text", with(json!({ "exp": (now_s() + 600).to_string() }))),
        ("not valid yet", with(json!({ "nbf": now_s() + 60 }))),
        ("no subject", with(json!({ "sub": null }))),
        ("a subject with a line feed", with(json!({ "sub": "a\nb" }))),
        ("too long", with(json!({ "padding": "x".repeat(20_000) }))),
        ("not a token", "secret".to_owned()),
        ("nothing", String::new()),
    ];
    for (what, token) in table {
        assert_eq!(ask(&auth, &token).await, Err(Refusal::Token), "{what}");
    }
    assert_eq!(ask(&auth, &with(json!({ "exp": now_s() - 6 }))).await, Err(Refusal::Expired));
    ask(&auth, &with(json!({ "exp": now_s() - 2 }))).await.expect("within the leeway");
    assert_eq!(auth.check(&HeaderMap::new(), None).await.err(), Some(Refusal::Missing));
    let mut basic = HeaderMap::new();
    basic.insert(AUTHORIZATION, "Basic c2VjcmV0".parse().unwrap());
    assert_eq!(auth.check(&basic, None).await.err(), Some(Refusal::Token));
    let mut twice = HeaderMap::new();
    twice.append(AUTHORIZATION, format!("Bearer {good}").parse().unwrap());
    twice.append(AUTHORIZATION, format!("Bearer {good}").parse().unwrap());
    assert_eq!(auth.check(&twice, None).await.err(), Some(Refusal::Token));
    stop.cancel();
}

#[tokio::test]
async fn claims_are_found_where_the_provider_puts_them() {
    let ed = Signer::ed();
    let (_folder, mut config) = config_with(&[ed.jwk("1")]);
    config.claims = ClaimsConfig {
        subject: "client_id".to_owned(),
        roles: "realm_access.roles".to_owned(),
        instances: "https://example.com/instances".to_owned(),
        user: "email".to_owned(),
    };
    let auth = made(&config);
    let token = ed.token(
        "1",
        &claims(json!({
            "client_id": "dashboard", "realm_access": { "roles": "auditor member" },
            "https://example.com/instances": "*", "email": "ada@example.com",
        })),
    );
    let principal = ask(&auth, &token).await.unwrap();
    assert_eq!(principal.roles, [Role::Auditor, Role::Member].into_iter().collect());
    assert_eq!((principal.subject.as_str(), &*principal.instances), ("dashboard", &Instances::All));
    assert_eq!(principal.user_id.as_deref(), Some("ada@example.com"));
    let nothing = ask(&auth, &ed.token("1", &claims(json!({ "client_id": "x" })))).await.unwrap();
    assert_eq!((nothing.roles, &*nothing.instances), (Roles::default(), &Instances::Only(BTreeSet::new())));
}

#[tokio::test]
async fn keys_taken_out_of_the_file_hold_no_more_even_for_tokens_seen_before() {
    let (old, new) = (Signer::ed(), Signer::ed());
    let (_folder, mut config) = config_with(&[old.jwk("old")]);
    config.jwks_refresh_ms = millis(10);
    config.jwks_stale_ms = millis(3_000);
    let (auth, stop) = (made(&config), CancellationToken::new());
    let metrics = Metrics::new("test");
    auth.start(&metrics, &stop);
    let (with_old, with_new) = (old.token("old", &claims(json!({}))), new.token("new", &claims(json!({}))));
    ask(&auth, &with_old).await.expect("in the file");
    assert_eq!(ask(&auth, &with_new).await, Err(Refusal::Token));
    std::fs::write(&config.jwks_file, "half a fi").unwrap();
    eventually(PATIENCE, async || metrics.encode().contains(r#"outcome="failed""#)).await;
    ask(&auth, &with_old).await.expect("a bad file changes nothing");
    // But not for ever: a key may be among those that were taken out of it.
    eventually(PATIENCE, async || ask(&auth, &with_old).await == Err(Refusal::Busy)).await;
    std::fs::write(&config.jwks_file, jwks(&[new.jwk("new")])).unwrap();
    eventually(PATIENCE, async || ask(&auth, &with_new).await.is_ok()).await;
    assert_eq!(ask(&auth, &with_old).await, Err(Refusal::Token));
    stop.cancel();
}

/// Answers with a key set, and counts.
#[derive(Clone)]
struct Provider {
    keys: Arc<std::sync::Mutex<String>>,
    asked: Arc<AtomicUsize>,
    is_up: Arc<AtomicBool>,
}

impl Provider {
    async fn start(keys: &[Value]) -> (Self, String) {
        let keys = Arc::new(std::sync::Mutex::new(jwks(keys)));
        let provider = Self { keys, asked: Arc::default(), is_up: Arc::new(AtomicBool::new(true)) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let answering = provider.clone();
        let page = axum::routing::get(move || async move {
            answering.asked.fetch_add(1, Ordering::SeqCst);
            let is_up = answering.is_up.load(Ordering::SeqCst);
            let status = if is_up { http::StatusCode::OK } else { http::StatusCode::BAD_GATEWAY };
            (status, answering.keys.lock().unwrap().clone())
        });
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/keys", page)).await });
        (provider, url)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_flood_of_unknown_key_ids_asks_the_provider_once() {
    let (old, new) = (Signer::ed(), Signer::ed());
    let (provider, jwks_url) = Provider::start(&[old.jwk("old")]).await;
    let config = AuthConfig { jwks_url, jwks_retry_ms: millis(600_000), ..config() };
    let (auth, stop) = (made(&config), CancellationToken::new());
    auth.start(&Metrics::new("test"), &stop);
    // Before the first read has ended: waited for.
    ask(&auth, &old.token("old", &claims(json!({})))).await.expect("known");
    let floods = (0..1_000).map(|n| ask_owned(auth.clone(), new.token(&format!("made-up-{n}"), &claims(json!({})))));
    for outcome in futures::future::join_all(floods).await {
        assert_eq!(outcome, Err(Refusal::Token));
    }
    assert_eq!(provider.asked(), 1);
    stop.cancel();
}

async fn ask_owned(auth: Arc<Authenticator>, token: String) -> Result<Arc<Principal>, Refusal> {
    ask(&auth, &token).await
}

#[tokio::test]
async fn a_new_key_is_asked_for_and_old_ones_serve_while_the_provider_is_away_but_not_for_ever() {
    let (old, new) = (Signer::ed(), Signer::ed());
    let (provider, jwks_url) = Provider::start(&[old.jwk("old")]).await;
    let config = AuthConfig { jwks_url, jwks_retry_ms: millis(1), jwks_stale_ms: millis(1_500), ..config() };
    let (auth, stop) = (made(&config), CancellationToken::new());
    auth.start(&Metrics::new("test"), &stop);
    let (with_old, with_new) = (old.token("old", &claims(json!({}))), new.token("new", &claims(json!({}))));
    ask(&auth, &with_old).await.expect("known");
    *provider.keys.lock().unwrap() = jwks(&[old.jwk("old"), new.jwk("new")]);
    eventually(PATIENCE, async || ask(&auth, &with_new).await.is_ok()).await;
    provider.is_up.store(false, Ordering::SeqCst);
    ask(&auth, &with_old).await.expect("the provider is away");
    eventually(PATIENCE, async || ask(&auth, &with_old).await == Err(Refusal::Busy)).await;
    provider.is_up.store(true, Ordering::SeqCst);
    eventually(PATIENCE, async || ask(&auth, &with_old).await.is_ok()).await;
    stop.cancel();
}

#[test]
fn what_is_configured_by_half_is_refused() {
    let (_folder, whole) = config_with(&[Signer::ed().jwk("1")]);
    let rule = |san: &str, role: &str| crate::config::CertificateRule {
        san: san.to_owned(),
        roles: vec![role.to_owned()],
        ..Default::default()
    };
    let table = [
        ("auth.issuer", AuthConfig { issuer: String::new(), ..whole.clone() }),
        ("auth.audiences", AuthConfig { audiences: vec![], ..whole.clone() }),
        ("auth.jwks_file", config()),
        ("allowed is one", AuthConfig { jwks_url: "https://login.example.com/keys".to_owned(), ..whole.clone() }),
        ("32 bytes", AuthConfig { hs256_secret: Some(Secret::new("short")), ..whole.clone() }),
        ("https://", AuthConfig { jwks_url: "http://192.0.2.1/keys".to_owned(), ..config() }),
        ("with a user", AuthConfig { jwks_url: "https://me:hunter2@login.example.com/keys".to_owned(), ..config() }),
        ("leeway_s", AuthConfig { leeway_s: 61, ..whole.clone() }),
        ("not a role", AuthConfig { certificates: vec![rule("dns:a", "root")], ..whole.clone() }),
        ("no instances", AuthConfig { certificates: vec![rule("dns:a", "writer")], ..whole.clone() }),
        ("dns:NAME", AuthConfig { certificates: vec![rule("a", "writer")], ..whole.clone() }),
    ];
    for (expected, config) in table {
        let why = Authenticator::new(&config).expect_err(expected).to_string();
        assert!(why.contains(expected), "{expected}: {why}");
        assert!(!why.contains("hunter2"));
    }
    let with_secret = AuthConfig { hs256_secret: Some(Secret::new(SECRET)), ..whole };
    assert!(!format!("{with_secret:?} {:?}", made(&with_secret)).contains("horse"));
    assert!(Authenticator::new(&AuthConfig::default()).unwrap().is_none());
}

#[test]
fn a_table_of_roles_forgets_no_rpc() {
    const SERVICE: &str = "activity.usage.v1.UsageIngestService";
    const RECORD: RoleRow = RoleRow::new("/activity.usage.v1.UsageIngestService/RecordUsage", &[Role::Writer]);
    const STREAM: RoleRow = RoleRow::new("/activity.usage.v1.UsageIngestService/StreamUsage", &[Role::Writer]);
    const MADE_UP: RoleRow = RoleRow::new("/made.Up/Rpc", &[Role::Writer]);
    let faults = |rows| RoleTable::new(rows).faults(&[SERVICE], activity_proto::FILE_DESCRIPTOR_SET);
    assert_eq!(faults(const { &[RECORD, STREAM] }), [""; 0]);
    assert_eq!(faults(const { &[RECORD] }).len(), 1);
    assert_eq!(faults(const { &[RECORD, STREAM, STREAM] }).len(), 1);
    assert_eq!(faults(const { &[RECORD, STREAM, MADE_UP] }).len(), 1);
    assert_eq!(faults(const { &[RECORD, RoleRow::new(STREAM.path, &[])] }).len(), 1);
    assert_eq!(faults(const { &[RECORD, STREAM.own(&[Role::Writer])] }).len(), 1);
    let table = RoleTable::new(const { &[RECORD.own(&[Role::Member]), STREAM] });
    let sees = |path, roles: &[Role]| table.sees(path, roles.iter().copied().collect());
    assert_eq!(sees(RECORD.path, &[Role::Writer]), Some(Sees::All));
    assert_eq!(sees(RECORD.path, &[Role::Member]), Some(Sees::Own));
    assert_eq!(sees(RECORD.path, &[Role::Member, Role::Writer]), Some(Sees::All));
    assert_eq!(sees(RECORD.path, &[Role::SuperAdmin, Role::Auditor]), None);
    assert_eq!(sees(MADE_UP.path, &Role::ALL), None);
}

/// Run by hand: `cargo test -p service-core --release checked_again -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn a_token_is_checked_again_in_less_than_20_microseconds() {
    for signer in [Signer::rsa(), Signer::ec(), Signer::ed()] {
        let (_folder, config) = config_with(&[signer.jwk("1")]);
        let auth = made(&config);
        let token = signer.token("1", &claims(json!({})));
        let begun = Instant::now();
        ask(&auth, &token).await.unwrap();
        let first = begun.elapsed();
        const CHECKS: u32 = 20_000;
        let begun = Instant::now();
        for _ in 0..CHECKS {
            ask(&auth, &token).await.unwrap();
        }
        let cached = begun.elapsed() / CHECKS;
        println!("{}: first {first:?}, remembered {cached:?}", signer.algorithm());
        assert!(cached < Duration::from_micros(20), "{cached:?}");
    }
}
