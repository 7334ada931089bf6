//! TLS and credentials, by real clients.

use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use testkit::{Authority, Signer};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::*;
use crate::auth::tests::{claims, config_with};
use crate::auth::{Denials, Record, Role, RoleRow, RoleTable, Why};
use crate::config::{AuthConfig, CertificateRule, ClientCertificates, DenialsConfig, LimitsConfig, TlsConfig};

const TABLE: RoleTable = RoleTable::new(&[
    RoleRow::new("/activity.usage.v1.UsageIngestService/RecordUsage", &[Role::Writer]),
    RoleRow::new("/activity.usage.v1.UsageIngestService/StreamUsage", &[Role::Writer]),
]);

fn tls_config(folder: &Path) -> TlsConfig {
    TlsConfig {
        certificate_file: folder.join("certificate.pem"),
        key_file: folder.join("key.pem"),
        reload_interval_ms: 10.try_into().expect("not zero"),
        ..TlsConfig::default()
    }
}

struct Secured {
    running: Running,
    authority: Authority,
    signer: Signer,
    folder: tempfile::TempDir,
    _keys: tempfile::TempDir,
}

async fn start_with(
    change: impl FnOnce(&mut ServerConfig),
    secure: impl FnOnce(&mut TlsConfig, &mut AuthConfig, &Authority),
) -> Secured {
    start_telling(change, secure, None).await
}

async fn start_telling(
    change: impl FnOnce(&mut ServerConfig),
    secure: impl FnOnce(&mut TlsConfig, &mut AuthConfig, &Authority),
    denials: Option<Denials>,
) -> Secured {
    start_altered(change, secure, |security| match denials {
        Some(denials) => security.telling(denials),
        None => security,
    })
    .await
}

async fn start_limited(limit: impl FnOnce(&mut LimitsConfig)) -> Secured {
    let mut limits = LimitsConfig::default();
    limit(&mut limits);
    start_altered(|_| {}, |_, _, _| {}, |security| security.limited(&limits).expect("accepted")).await
}

async fn start_altered(
    change: impl FnOnce(&mut ServerConfig),
    secure: impl FnOnce(&mut TlsConfig, &mut AuthConfig, &Authority),
    alter: impl FnOnce(Security) -> Security,
) -> Secured {
    let (authority, signer) = (Authority::new("root"), Signer::ed());
    let folder = tempfile::tempdir().expect("folder");
    authority.write(folder.path());
    std::fs::write(folder.path().join("clients.pem"), authority.pem()).expect("written");
    let mut tls = tls_config(folder.path());
    let (keys, mut auth) = config_with(&[signer.jwk("1")]);
    secure(&mut tls, &mut auth, &authority);
    let security = Security::load(&tls, &auth, TABLE).expect("accepted");
    assert!(security.is_complete());
    let security = alter(security);
    Secured { running: start_secured(change, security).await, authority, signer, folder, _keys: keys }
}

impl Secured {
    async fn channel_to(&self, authority: &Authority, identity: Option<(String, String)>) -> Result<Channel, String> {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem())).domain_name("localhost");
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.running.address)).expect("URI");
        endpoint.tls_config(tls).expect("TLS").connect().await.map_err(|error| error.to_string())
    }

    async fn client(&self) -> UsageIngestServiceClient<Channel> {
        UsageIngestServiceClient::new(self.channel_to(&self.authority, None).await.expect("connected"))
    }

    fn token(&self, changes: serde_json::Value) -> String {
        self.signer.token("1", &claims(changes))
    }
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("header"));
    request
}

async fn record(client: &mut UsageIngestServiceClient<Channel>, token: &str) -> Result<(), Status> {
    client.record_usage(with_token(RecordUsageRequest::default(), token)).await.map(|_| ())
}

#[tokio::test]
async fn every_call_but_health_needs_a_caller_with_a_role() {
    let server = start_with(|_| {}, |_, _, _| {}).await;
    let mut client = server.client().await;
    record(&mut client, &server.token(json!({}))).await.expect("a writer");

    let status = client.record_usage(RecordUsageRequest::default()).await.expect_err("nobody");
    assert_reason(&status, Code::Unauthenticated, "UNAUTHENTICATED");
    assert_eq!(status.message(), "a bearer token or a client certificate is required");
    let status = record(&mut client, "made.up.token").await.expect_err("bad");
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the bearer token is not accepted"));
    let status = record(&mut client, &server.token(json!({ "exp": 1 }))).await.expect_err("old");
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the bearer token has expired"));
    let status = record(&mut client, &server.token(json!({ "roles": ["auditor"] }))).await.expect_err("no writer");
    assert_reason(&status, Code::PermissionDenied, "PERMISSION_DENIED");
    // Nobody takes the emptiness of all answers for an empty platform.
    let status = record(&mut client, &server.token(json!({ "instances": [] }))).await.expect_err("nowhere");
    assert_reason(&status, Code::PermissionDenied, "PERMISSION_DENIED");
    assert_eq!(status.message(), "the caller's credential names no instances");

    let channel = server.channel_to(&server.authority, None).await.expect("connected");
    assert_eq!(health(channel.clone(), SERVICE).await, Ok(ServingStatus::Serving));
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let status = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(futures::stream::empty())
        .await
        .expect_err("closed");
    assert_eq!(status.code(), Code::Unauthenticated);

    let mut grpc = tonic::client::Grpc::new(channel);
    let codec = tonic_prost::ProstCodec::<RecordUsageRequest, RecordUsageResponse>::default;
    for (token, code) in [(None, Code::Unauthenticated), (Some(server.token(json!({}))), Code::Unimplemented)] {
        grpc.ready().await.expect("connected");
        let request = match token {
            None => Request::new(RecordUsageRequest::default()),
            Some(token) => with_token(RecordUsageRequest::default(), &token),
        };
        let path = format!("/{SERVICE}/EraseUsage").parse().expect("path");
        assert_eq!(grpc.unary(request, path, codec()).await.expect_err("not served").code(), code);
    }
    server.running.stop().await;
}

#[tokio::test]
async fn refused_calls_are_told_without_their_credentials() {
    let (denials, mut queue) = Denials::queue(&DenialsConfig::default(), &Metrics::new("test"));
    let server = start_telling(|_| {}, |_, _, _| {}, Some(denials)).await;
    let mut client = server.client().await;
    let auditor = server.token(json!({ "sub": "ada", "roles": ["auditor"] }));
    let old = server.token(json!({ "exp": 1 }));
    record(&mut client, &auditor).await.expect_err("no writer");
    record(&mut client, &old).await.expect_err("old");
    client.record_usage(RecordUsageRequest::default()).await.expect_err("nobody");
    record(&mut client, &server.token(json!({}))).await.expect("a writer");
    queue.close();
    let mut told = Vec::new();
    while let Some(record) = queue.next().await {
        let text = format!("{record:?}");
        assert!(!text.contains(&auditor) && !text.contains(&old) && !text.contains("eyJ"), "{text}");
        let Record::Denial(denial) = record else { panic!("{record:?}") };
        assert_eq!(denial.method, "/activity.usage.v1.UsageIngestService/RecordUsage");
        assert_eq!(denial.peer.map(|peer| peer.to_string()).as_deref(), Some("127.0.0.1"));
        assert!(denial.user_agent.starts_with("tonic/"), "{}", denial.user_agent);
        told.push((denial.why, denial.subject, denial.message));
    }
    let text = str::to_owned;
    assert_eq!(
        told,
        [
            (
                Why::Role,
                Some(text("ada")),
                text("none of the caller's roles may call /activity.usage.v1.UsageIngestService/RecordUsage")
            ),
            (Why::Credential, None, text("the bearer token has expired")),
            (Why::Credential, None, text("a bearer token or a client certificate is required")),
        ]
    );
    server.running.stop().await;
}

#[tokio::test]
async fn one_caller_at_its_limit_is_told_to_try_again_and_others_are_served() {
    let server = start_limited(|limits| limits.streams_per_caller = 2.try_into().expect("not zero")).await;
    let mut client = server.client().await;
    let (eve, ada) = (server.token(json!({ "sub": "eve" })), server.token(json!({ "sub": "ada" })));
    let mut open = async |token: &str| {
        let mut request = with_token(futures::stream::empty(), token);
        request.metadata_mut().insert("do", "ignore shutdown".parse().expect("header"));
        client.stream_usage(request).await
    };
    let (first, second) = (open(&eve).await.expect("one"), open(&eve).await.expect("two"));
    let status = open(&eve).await.expect_err("three");
    assert_reason(&status, Code::ResourceExhausted, "OVERLOADED");
    assert!(status.get_error_details().retry_info().is_some());
    open(&ada).await.expect("another caller");
    drop(first);
    let again = async {
        loop {
            if let Ok(stream) = open(&eve).await {
                return stream;
            }
        }
    };
    drop((tokio::time::timeout(PATIENCE, again).await.expect("a place is free again"), second, client));
    server.running.stop().await;
}

#[tokio::test]
async fn batches_beyond_the_bytes_on_their_way_wait_and_are_refused_after_a_while() {
    let server = start_limited(|limits| {
        limits.ingest_bytes_per_caller = (2 * MAX_INGEST_MESSAGE_BYTES).try_into().expect("not zero");
        limits.room_timeout_ms = 500.try_into().expect("not zero");
    })
    .await;
    let mut client = server.client().await;
    let token = server.token(json!({}));
    let large = |batch_id| {
        let event = activity_proto::usage::v1::UsageEvent { id: "x".repeat(3 << 20), ..Default::default() };
        StreamUsageRequest { batch_id, events: vec![event], ..Default::default() }
    };
    // Batches are held, so that the third has no room.
    let mut request = with_token(futures::stream::iter((1..=3).map(large)).chain(futures::stream::pending()), &token);
    request.metadata_mut().insert("do", "hold".parse().expect("header"));
    let mut held = client.stream_usage(request).await.expect("begun").into_inner();
    server.running.arrived(2).await;
    testkit::eventually(PATIENCE, async || server.running.metrics.encode().contains(r#"limit="ingest_bytes""#)).await;
    server.running.open_gate();
    // What was taken is answered before the refusal.
    for batch_id in 1..=2 {
        assert_eq!(held.message().await.expect("no error").expect("an answer").batch_id, batch_id);
    }
    let status = held.message().await.expect_err("no room");
    assert_reason(&status, Code::ResourceExhausted, "OVERLOADED");
    drop(held);
    let none = r#"activity_ingest_bytes{service="test"} 0"#;
    testkit::eventually(PATIENCE, async || server.running.metrics.encode().contains(none)).await;
    record(&mut client, &token).await.expect("room again");
    server.running.stop().await;
}

#[tokio::test]
async fn reflection_is_open_where_that_is_configured() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let server = start_with(|_| {}, |_, auth, _| auth.open_reflection = true).await;
    let channel = server.channel_to(&server.authority, None).await.expect("connected");
    ServerReflectionClient::new(channel).server_reflection_info(futures::stream::empty()).await.expect("open");
    server.running.stop().await;
}

#[tokio::test]
async fn a_clients_certificate_is_a_writer_by_its_name() {
    let name = "uri:spiffe://example.com/gateway";
    let server = start_with(
        |_| {},
        |tls, auth, _| {
            tls.client_ca_file = tls.certificate_file.with_file_name("clients.pem");
            tls.client_certificates = ClientCertificates::Optional;
            let roles = vec!["writer".to_owned()];
            auth.certificates = vec![CertificateRule {
                san: name.to_owned(),
                roles,
                instances: vec!["*".to_owned()],
                ..CertificateRule::default()
            }];
        },
    )
    .await;
    let own = &server.authority;
    let call = async |identity| {
        let channel = server.channel_to(own, identity).await?;
        let answer = UsageIngestServiceClient::new(channel).record_usage(RecordUsageRequest::default()).await;
        answer.map(|_| Code::Ok).or_else(|status| match std::error::Error::source(&status) {
            None => Ok(status.code()),
            // In TLS 1.3 a client learns with its first read that its certificate is refused.
            Some(_) => Err(status.to_string()),
        })
    };
    assert_eq!(call(Some(own.issue(name))).await, Ok(Code::Ok));
    assert_eq!(call(Some(own.issue("dns:somebody.example.com"))).await, Ok(Code::Unauthenticated));
    assert_eq!(call(None).await, Ok(Code::Unauthenticated));
    call(Some(Authority::new("another root").issue(name))).await.expect_err("the hand-shake fails");
    // A token that does not hold is not made good by a certificate.
    let channel = server.channel_to(own, Some(own.issue(name))).await.expect("connected");
    let status = record(&mut UsageIngestServiceClient::new(channel), "x").await.expect_err("bad token");
    assert_eq!(status.code(), Code::Unauthenticated);
    server.running.stop().await;
}

#[tokio::test]
async fn a_connection_is_worth_nothing_once_its_certificate_has_expired() {
    let name = "dns:gateway-1.example.com";
    let server = start_with(
        |_| {},
        |tls, auth, _| {
            tls.client_ca_file = tls.certificate_file.with_file_name("clients.pem");
            tls.client_certificates = ClientCertificates::Required;
            let roles = vec!["writer".to_owned()];
            auth.certificates = vec![CertificateRule {
                // Names of hosts are the same in either case.
                san: "dns:Gateway-1.Example.com".to_owned(),
                roles,
                instances: vec!["*".to_owned()],
                ..CertificateRule::default()
            }];
        },
    )
    .await;
    let now_s = u64::try_from(crate::clock::now_us() / crate::clock::MICROS_PER_SECOND).expect("after 1970");
    let identity = server.authority.issue_until(name, Some(now_s + 2));
    let channel = server.channel_to(&server.authority, Some(identity)).await.expect("connected");
    let mut client = UsageIngestServiceClient::new(channel);
    client.record_usage(RecordUsageRequest::default()).await.expect("it holds");
    let mut stream = client.stream_usage(futures::stream::pending()).await.expect("begun").into_inner();
    let status = stream.message().await.expect_err("expired");
    assert_reason(&status, Code::Unauthenticated, "UNAUTHENTICATED");
    let status = client.record_usage(RecordUsageRequest::default()).await.expect_err("on the same connection");
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the client certificate is not accepted"));
    server.running.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_over_while_streams_go_on() {
    let server = start_with(|_| {}, |_, _, _| {}).await;
    let (batches, sent) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream_of(sent);
    let mut client = server.client().await;
    let mut stream =
        client.stream_usage(with_token(requests, &server.token(json!({})))).await.expect("begun").into_inner();
    batches.send(batch(1)).await.expect("sent");
    assert_eq!(stream.message().await.expect("no error").expect("an answer").batch_id, 1);

    std::fs::write(server.folder.path().join("certificate.pem"), "half a fi").expect("written");
    let failed = r#"activity_reloads_total{outcome="failed",service="test",what="tls"}"#;
    testkit::eventually(PATIENCE, async || server.running.metrics.encode().contains(failed)).await;
    server.client().await;

    let next = Authority::new("next root");
    next.write(server.folder.path());
    testkit::eventually(PATIENCE, async || server.channel_to(&next, None).await.is_ok()).await;
    server.channel_to(&server.authority, None).await.expect_err("the old one is shown no more");
    batches.send(batch(2)).await.expect("sent");
    assert_eq!(stream.message().await.expect("no error").expect("an answer").batch_id, 2);
    drop((batches, stream, client));
    server.running.stop().await;
}

/// As when only who may read it was changed.
#[tokio::test]
async fn a_certificate_that_could_not_be_read_is_tried_again_though_its_stamp_stays() {
    let server = start_with(|_| {}, |tls, _, _| tls.reload_interval_ms = 200.try_into().expect("not zero")).await;
    let next = Authority::new("next root");
    let elsewhere = tempfile::tempdir().expect("folder");
    next.write(elsewhere.path());
    let of = |file: &str| std::fs::read_to_string(elsewhere.path().join(file)).expect("read");
    let put = |file: &str, text: String| {
        let path = server.folder.path().join(file);
        std::fs::write(&path, text).expect("written");
        let file = std::fs::File::options().write(true).open(&path).expect("opened");
        file.set_modified(std::time::UNIX_EPOCH).expect("set");
    };
    put("key.pem", of("key.pem"));
    put("certificate.pem", of("certificate.pem").replace("BEGIN", "BEGUN"));
    let failed = r#"activity_reloads_total{outcome="failed",service="test",what="tls"}"#;
    testkit::eventually(PATIENCE, async || server.running.metrics.encode().contains(failed)).await;
    put("certificate.pem", of("certificate.pem"));
    testkit::eventually(PATIENCE, async || server.channel_to(&next, None).await.is_ok()).await;
    server.running.stop().await;
}

fn tokio_stream_of<T: Send + 'static>(mut receiver: tokio::sync::mpsc::Receiver<T>) -> BoxStream<'static, T> {
    futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed()
}

#[tokio::test]
async fn a_stream_ends_when_its_token_expires() {
    let server = start_with(|_| {}, |_, auth, _| auth.leeway_s = 0).await;
    let exp = crate::clock::now_us() / crate::clock::MICROS_PER_SECOND + 2;
    let token = server.token(json!({ "exp": exp }));
    let request = with_token(futures::stream::pending(), &token);
    let mut stream = server.client().await.stream_usage(request).await.expect("begun").into_inner();
    let status = stream.message().await.expect_err("expired");
    assert_reason(&status, Code::Unauthenticated, "UNAUTHENTICATED");
    testkit::eventually(PATIENCE, async || server.running.open_streams() == 0).await;
    server.running.stop().await;
}

#[tokio::test]
async fn plain_text_and_half_a_handshake_are_not_waited_for() {
    let server =
        start_with(|config| config.handshake_timeout_ms = 300.try_into().expect("not zero"), |_, _, _| {}).await;
    for beginning in ["", "\x16\x03", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut held = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(server.running.address).await.expect("connected");
            tokio::io::AsyncWriteExt::write_all(&mut stream, beginning.as_bytes()).await.expect("sent");
            held.push(stream);
        }
        let mut client = server.client().await;
        record(&mut client, &server.token(json!({}))).await.expect("others are served meanwhile");
        for mut stream in held {
            let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
            // Closed or reset: either way it is gone.
            let _ = closed.expect("closed in time");
        }
    }
    server.running.stop().await;
}

#[tokio::test]
async fn connections_of_one_address_have_a_cap_of_their_own() {
    let server =
        start_with(|config| config.max_connections_per_peer = 2.try_into().expect("not zero"), |_, _, _| {}).await;
    let (first, second) = (server.client().await, server.client().await);
    server.channel_to(&server.authority, None).await.expect_err("a third");
    assert!(server.running.metrics.encode().contains(r#"{service="test",why="peer_cap"} 1"#));
    drop(second);
    testkit::eventually(PATIENCE, async || server.channel_to(&server.authority, None).await.is_ok()).await;
    drop(first);
    server.running.stop().await;
}

#[tokio::test]
async fn a_table_that_forgets_an_rpc_does_not_start() {
    let (_keys, auth) = config_with(&[Signer::ed().jwk("1")]);
    let security = Security::load(&TlsConfig::default(), &auth, RoleTable::new(&[])).expect("accepted");
    let server = start_secured(|_| {}, security).await;
    let error = server.serving.await.expect("no panic").expect_err("refused");
    assert!(error.to_string().contains("RecordUsage"), "{error}");
    assert_eq!(exit_code(&error), 64);
}

#[tokio::test]
async fn another_machine_may_call_only_with_tls_and_credentials() {
    let folder = tempfile::tempdir().expect("folder");
    Authority::new("root").write(folder.path());
    let (_keys, auth) = config_with(&[Signer::ed().jwk("1")]);
    let (tls, no_tls) = (tls_config(folder.path()), TlsConfig::default());
    let any: SocketAddr = "0.0.0.0:0".parse().expect("address");
    for (tls, auth, missing) in
        [(&no_tls, &auth, Some("TLS")), (&tls, &AuthConfig::default(), Some("authentication")), (&tls, &auth, None)]
    {
        let security = Security::load(tls, auth, TABLE).expect("accepted");
        let bound = bind("TEST", "listen", any, &security).await;
        match missing {
            None => drop(bound.expect("bound")),
            Some(what) => assert!(bound.expect_err("refused").to_string().contains(what)),
        }
    }
    for broken in [
        TlsConfig { key_file: Default::default(), ..tls.clone() },
        TlsConfig { certificate_file: Default::default(), ..tls.clone() },
        TlsConfig { client_certificates: ClientCertificates::Required, ..tls.clone() },
        TlsConfig { key_file: tls.certificate_file.clone(), ..tls.clone() },
        TlsConfig { certificate_file: folder.path().join("gone.pem"), ..tls },
    ] {
        Security::load(&broken, &auth, TABLE).expect_err("refused");
    }
}

/// The part that runs out of file descriptors, in a process of its own.
#[tokio::test]
#[ignore = "run by the test below, with few file descriptors"]
async fn out_of_file_descriptors() {
    let server = start(|_| {}).await;
    let mut client = server.client();
    client.record_usage(RecordUsageRequest::default()).await.expect("answered");
    let mut held = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect(server.address) {
        held.push(stream);
    }
    client.record_usage(RecordUsageRequest::default()).await.expect("who is connected is served");
    drop(held);
    testkit::eventually(PATIENCE, async || {
        server.client().record_usage(RecordUsageRequest::default()).await.map(|_| ())
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn accepting_goes_on_after_file_descriptors_ran_out() {
    let output = tokio::process::Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" --exact --ignored server::tests::secured::out_of_file_descriptors"])
        .arg(std::env::current_exe().expect("path"))
        .stdin(Stdio::null())
        .output()
        .await
        .expect("run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
