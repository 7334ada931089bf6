//! No request changes state without a record of it.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::MatchedPath;
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use gateway_sdk::layer::{AuditHandle, AuditLayer, What};
use gateway_sdk::proto::audit::v1::AuditEvent as Stored;
use gateway_sdk::{Actor, Diff, GatewaySdk, Outcome, Resource, Stage};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tower::{Layer, ServiceExt, service_fn};

use crate::delivery::audit;
use crate::fake::{Fake, LONG};

const SHORT: Duration = Duration::from_millis(100);

fn who(request: &Parts) -> Option<Actor> {
    let name = request.headers.get("x-admin")?.to_str().ok()?;
    let agent = request.headers.get("user-agent").map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned());
    Some(Actor::user(name).user_agent(agent.unwrap_or_default()))
}

fn http(sdk: &GatewaySdk) -> AuditLayer {
    AuditLayer::http(sdk.audit(), who)
        .route(|request| Some(request.extensions.get::<MatchedPath>()?.as_str().to_owned()))
        .action(("POST", "/models/{id}/enable"), "model.enabled", "model")
}

fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path).header("x-admin", "alice")
}

async fn send(app: &Router, request: http::request::Builder) -> (StatusCode, String) {
    let answer = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = answer.status();
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(text.to_vec()).unwrap())
}

fn stored(fake: &Fake) -> Vec<Stored> {
    fake.memory.look(|memory| memory.audited.clone())
}

/// The outcomes, in order; each with the intent right before it.
fn outcomes(fake: &Fake) -> Vec<Stored> {
    let events = stored(fake);
    for pair in events.chunks(2) {
        let [intent, outcome] = pair else { panic!("an intent stands open: {pair:?}") };
        let operation = |event: &Stored| event.operation.clone().unwrap();
        assert_eq!((operation(intent).stage(), intent.outcome()), (Stage::Intent, Outcome::Unknown));
        assert_eq!((operation(outcome).stage(), operation(outcome).id), (Stage::Outcome, operation(intent).id));
        assert_eq!((&intent.action, &intent.actor), (&outcome.action, &outcome.actor));
    }
    events.into_iter().skip(1).step_by(2).collect()
}

fn told(event: &Stored) -> (&str, &str, &str, Outcome) {
    (&event.action, &event.resources[0].r#type, &event.resources[0].id, event.outcome())
}

#[tokio::test]
async fn the_intent_is_durable_when_the_handler_runs_and_the_outcome_when_the_client_is_answered() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let memory = Arc::clone(&fake.memory);
    let handler = async move |Extension(audit): Extension<AuditHandle>| {
        assert_eq!(memory.look(|memory| memory.audited.len()), 1);
        audit.diff(Diff::between(&json!({"enabled": false}), &json!({"enabled": true})));
        audit.diff(Diff::between(&json!({"token": 1}), &json!({"token": 2})));
        audit.acted_on(Resource::new("model", "gpt-4o").name("GPT-4o"));
        audit.resource(Resource::new("team", "t-1"));
        audit.details(json!({"note": "x"}));
        "done"
    };
    let layer = http(&sdk).reason(|request| Some(request.headers.get("x-reason")?.to_str().ok()?.to_owned()));
    let app = Router::new().route("/models/{id}/enable", post(handler)).layer(layer);
    let call = request("POST", "/models/gpt-4o/enable").header("x-request-id", "r-1").header("x-reason", "OPS-1");
    assert_eq!(send(&app, call).await, (StatusCode::OK, "done".to_owned()));
    let outcome = &outcomes(&fake)[0];
    assert_eq!(told(outcome), ("model.enabled", "model", "gpt-4o", Outcome::Success));
    assert_eq!((outcome.resources[0].name.as_str(), outcome.resources[1].id.as_str()), ("GPT-4o", "t-1"));
    assert_eq!((outcome.reason.as_str(), outcome.request_id.as_str()), ("OPS-1", "r-1"));
    let changes: Vec<_> = outcome.changes.iter().map(|change| (change.path.as_str(), change.new_value())).collect();
    assert_eq!(changes, [("/enabled", "true"), ("/token", "\"[secret]\"")]);
    let details: Value = serde_json::from_str(&outcome.details_json).unwrap();
    assert_eq!(details, json!({"request": "POST /models/{id}/enable", "status": 200, "note": "x"}));
}

#[tokio::test]
async fn the_status_is_the_outcome_and_a_handler_can_only_make_it_worse() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let status = async |Extension(audit): Extension<AuditHandle>, request: Request<Body>| {
        let mut words = request.uri().path().rsplit('/');
        match words.next().unwrap() {
            "failed" => audit.failed(),
            "denied" => audit.denied(),
            _ => {}
        }
        StatusCode::from_u16(words.next().unwrap().parse().unwrap()).unwrap()
    };
    let app = Router::new().route("/{status}/{word}", post(status)).layer(http(&sdk));
    let cases = [
        ("/200/x", Outcome::Success),
        ("/204/x", Outcome::Success),
        ("/303/x", Outcome::Success),
        ("/401/x", Outcome::Denied),
        ("/403/x", Outcome::Denied),
        ("/404/x", Outcome::Failure),
        ("/409/x", Outcome::Failure),
        ("/500/x", Outcome::Failure),
        ("/200/failed", Outcome::Failure),
        ("/200/denied", Outcome::Denied),
        ("/403/failed", Outcome::Denied),
        ("/500/denied", Outcome::Failure),
    ];
    for (path, _) in cases {
        send(&app, request("POST", path)).await;
    }
    let outcomes: Vec<_> = outcomes(&fake).iter().map(Stored::outcome).collect();
    assert_eq!(outcomes, cases.map(|(_, outcome)| outcome));
}

#[tokio::test]
async fn only_what_is_listed_as_read_only_is_not_recorded() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let nothing = || async {};
    let router = Router::new()
        .route("/models", get(nothing).post(nothing))
        .route("/models/{id}", get(nothing))
        .route("/both", get(nothing))
        .route("/new", get(nothing).delete(nothing));
    let app = router.clone().layer(http(&sdk).read_only(("GET", "/models")).read_only(("get", "/both")).action(
        ("GET", "/both"),
        "report.made",
        "report",
    ));
    for path in ["/models", "/models?page=2"] {
        for method in ["GET", "HEAD"] {
            assert_eq!(send(&app, request(method, path)).await.0, StatusCode::OK);
        }
    }
    assert_eq!(stored(&fake), [], "read only, and listed");
    let cases = [
        ("GET", "/both", ("report.made", "report", "unknown", Outcome::Success)),
        ("POST", "/models", ("unlisted_route.called", "route", "POST /models", Outcome::Success)),
        ("GET", "/models/x", ("unlisted_route.called", "route", "GET /models/x", Outcome::Success)),
        ("DELETE", "/new", ("unlisted_route.called", "route", "DELETE /new", Outcome::Success)),
        ("PATCH", "/new", ("unlisted_route.called", "route", "PATCH /new", Outcome::Failure)),
        ("GET", "/none?secret=1", ("unlisted_route.called", "route", "GET /none", Outcome::Failure)),
        ("GET", "/models/", ("unlisted_route.called", "route", "GET /models/", Outcome::Failure)),
    ];
    for (method, path, _) in cases {
        send(&app, request(method, path)).await;
    }
    let recorded = outcomes(&fake);
    assert_eq!(recorded.iter().map(told).collect::<Vec<_>>(), cases.map(|(_, _, told)| told));

    let before = stored(&fake).len();
    let app = router.layer(http(&sdk).safe_methods_are_read_only().action(("GET", "/both"), "report.made", "report"));
    for (method, path) in
        [("GET", "/new"), ("HEAD", "/none"), ("OPTIONS", "/models"), ("GET", "/both"), ("PUT", "/new")]
    {
        send(&app, request(method, path)).await;
    }
    let recorded = outcomes(&fake);
    let recorded: Vec<_> = recorded.iter().skip(before / 2).map(|event| event.action.as_str()).collect();
    assert_eq!(recorded, ["report.made", "unlisted_route.called"]);
}

#[tokio::test]
async fn what_is_named_is_recorded_also_where_its_route_is_read_only() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let router = Router::new().route("/models/{id}", get(async || "")).route("/models", get(async || ""));
    let resets = |request: &Parts| {
        let named = || What::new("model.reset", Resource::new("model", request.uri.path()));
        (request.uri.query() == Some("action=reset")).then(named)
    };
    let by_method = http(&sdk).safe_methods_are_read_only().what(resets);
    let by_list = http(&sdk).read_only(("GET", "/models")).read_only(("GET", "/models/{id}")).what(resets);
    for (number, layer) in (1..).zip([by_method, by_list]) {
        let app = router.clone().layer(layer);
        for path in ["/models/1", "/models?action=reset", "/models", "/models?action=show"] {
            assert_eq!(send(&app, request("GET", path)).await.0, StatusCode::OK);
        }
        let recorded = outcomes(&fake);
        assert_eq!(recorded.len(), number, "one of the four");
        assert_eq!(told(&recorded[number - 1]), ("model.reset", "model", "/models", Outcome::Success));
    }
}

#[tokio::test]
async fn what_can_not_be_recorded_is_not_let_through() {
    let (mut fake, folder) = (Fake::down(), tempfile::tempdir().unwrap());
    let ran = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ran);
    let router = Router::new()
        .route("/models/{id}/enable", post(async move || count.fetch_add(1, Ordering::SeqCst).to_string()));
    let enable = || request("POST", "/models/gpt-4o/enable");
    let ran = || ran.load(Ordering::SeqCst);

    // Without a spool it takes the service.
    let sdk = fake.sdk().audit_timeout(SHORT).build().unwrap();
    let app = router.clone().layer(http(&sdk));
    let (status, text) = send(&app, enable()).await;
    assert_eq!((status, ran()), (StatusCode::SERVICE_UNAVAILABLE, 0));
    assert!(text.contains("nothing was done") && text.contains("try again later"), "{text}");

    // Nobody, and an action that is none.
    let (status, text) = send(&app, Request::builder().method("POST").uri("/models/x/enable")).await;
    assert_eq!((status, ran()), (StatusCode::UNAUTHORIZED, 0), "{text}");
    let bad = http(&sdk).what(|_| Some(What::new("Enable!", Resource::new("model", "x"))));
    assert_eq!(send(&router.clone().layer(bad), enable()).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(ran(), 0);

    // The spool takes it, until it is full.
    let spooled = fake.sdk().spool(folder.path()).audit_spool(8 << 20).audit_timeout(SHORT).build().unwrap();
    let app = router.layer(http(&spooled));
    assert_eq!((send(&app, enable()).await.0, ran()), (StatusCode::OK, 1));
    assert_eq!(spooled.stats().audit.recorded, 2);
    let mut large = audit("filler").into_proto();
    large.details_json = format!("\"{}\"", "x".repeat(60_000));
    let full = stream::iter(0..400)
        .map(|_| {
            large.id = String::new();
            spooled.audit().record(gateway_sdk::AuditEvent::from_proto(large.clone()))
        })
        .buffer_unordered(16)
        .any(async |recorded| recorded.is_err());
    assert!(full.await, "the spool has a limit");
    // What fits is smaller than the filler; soon nothing does.
    let mut through = 0;
    let refused = loop {
        match send(&app, enable()).await {
            (StatusCode::OK, _) => through += 1,
            refused => break refused,
        }
        assert!(through < 2_000);
    };
    assert_eq!((refused.0, ran()), (StatusCode::SERVICE_UNAVAILABLE, 1 + through));
    // A request that got through may have had no room for its outcome: its intent stands open.
    let operations = spooled.stats().operations;
    assert_eq!((operations.open, operations.begun), (0, operations.ended + operations.abandoned));
    assert!(operations.abandoned <= 1, "{operations:?}");
    fake.restart();
    assert!(spooled.flush(LONG).await.is_complete());
    assert_eq!(send(&app, enable()).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_handler_that_panics_has_failed_and_the_panic_goes_on() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let handler = async || -> () { panic!("hunter2") };
    let app = Router::new().route("/models/{id}/enable", post(handler)).layer(http(&sdk));
    let panic = AssertUnwindSafe(send(&app, request("POST", "/models/x/enable"))).catch_unwind().await.unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"hunter2"));
    let outcome = &outcomes(&fake)[0];
    assert_eq!((outcome.outcome(), outcome.reason.as_str()), (Outcome::Failure, "the handler panicked"));
    assert_eq!(sdk.stats().operations.ended, 1);
}

#[tokio::test]
async fn what_a_client_did_not_wait_for_is_not_known() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let (begin, mut began) = tokio::sync::mpsc::channel(1);
    let handler = async move || {
        begin.send(()).await.unwrap();
        std::future::pending::<()>().await
    };
    let app = Router::new().route("/models/{id}/enable", post(handler)).layer(http(&sdk));
    let call = tokio::spawn(async move { send(&app, request("POST", "/models/x/enable")).await });
    began.recv().await.unwrap();
    call.abort();
    fake.memory.until("the outcome", |memory| memory.audited.len() == 2).await;
    let outcome = &outcomes(&fake)[0];
    assert_eq!(
        (outcome.outcome(), outcome.reason.as_str()),
        (Outcome::Unknown, "the client went away before the answer")
    );
}

#[tokio::test]
async fn nothing_in_a_request_makes_the_service_refuse_its_record() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let app = Router::new().fallback(async || "").layer(http(&sdk).reason(|_| Some("a\nb".repeat(1_000))));
    let path = format!("/{}", "%00ö".repeat(500).replace('ö', "%C3%B6"));
    let call = Request::builder()
        .method(Method::from_bytes(&[b'X'; 300]).unwrap())
        .uri(&path)
        .header("x-admin", "a".repeat(400))
        .header("user-agent", HeaderValue::from_bytes(&[0xFF; 2_000]).unwrap())
        .header("x-request-id", "r\t".repeat(300));
    assert_eq!(send(&app, call).await.0, StatusCode::OK);
    let outcome = &outcomes(&fake)[0];
    let actor = outcome.actor.as_ref().unwrap();
    for (text, most) in [
        (&actor.id, 256),
        (&actor.user_agent, 1_024),
        (&outcome.resources[0].id, 256),
        (&outcome.request_id, 256),
        (&outcome.reason, 1_024),
    ] {
        assert!(text.len() <= most && text.ends_with('…') && !text.contains(char::is_control), "{text}");
    }
}

/// What a gRPC handler answers with, frame by frame; the last may never come.
enum Part {
    Data,
    Status(&'static str),
    Error,
    Panic,
    Never,
}

/// Calls a gRPC handler that answers so; gives the number of frames and the last status.
async fn call_grpc(layer: AuditLayer, head: Option<&'static str>, parts: &'static [Part]) -> (usize, Option<String>) {
    let handler = service_fn(move |_: Request<()>| async move {
        let frames = stream::iter(parts).then(async |part| match part {
            Part::Data => Ok(Frame::data(Bytes::from_static(b"data"))),
            Part::Status(status) => {
                let status = ("grpc-status".parse().unwrap(), HeaderValue::from_static(status));
                Ok(Frame::trailers(HeaderMap::from_iter([status])))
            }
            Part::Error => Err("broken"),
            Part::Panic => panic!("as a handler may"),
            Part::Never => std::future::pending().await,
        });
        let mut response = Response::new(StreamBody::new(frames));
        if let Some(status) = head {
            response.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
        }
        Ok::<_, Infallible>(response)
    });
    let call = request("POST", "/admin.v1.Models/EnableModel").body(()).unwrap();
    let response = layer.layer(handler).oneshot(call).await.unwrap();
    let mut status = response.headers().get("grpc-status").cloned();
    let mut body = Box::pin(response.into_body());
    let mut count = 0;
    loop {
        assert!(count == 0 || !body.is_end_stream() || matches!(parts.last(), Some(Part::Status(_))));
        // Where nothing more comes, the client goes away.
        match tokio::time::timeout(SHORT, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                count += 1;
                status = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status")).cloned().or(status);
            }
            _ => return (count, status.map(|status| status.to_str().unwrap().to_owned())),
        }
    }
}

#[tokio::test]
async fn of_grpc_the_status_is_read_where_it_is_and_waits_for_the_record() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let layer = AuditLayer::grpc(sdk.audit(), who)
        .action("/admin.v1.Models/EnableModel", "model.enabled", "model")
        .read_only("/admin.v1.Models/ListModels");
    let ends: [(Option<&str>, &[Part], Outcome, &str); 9] = [
        (None, &[Part::Data, Part::Status("0")], Outcome::Success, "Ok"),
        (None, &[Part::Data, Part::Data, Part::Status("7")], Outcome::Denied, "PermissionDenied"),
        (None, &[Part::Status("16")], Outcome::Denied, "Unauthenticated"),
        (None, &[Part::Status("5")], Outcome::Failure, "NotFound"),
        // In the head, without a body.
        (Some("0"), &[], Outcome::Success, "Ok"),
        (Some("7"), &[], Outcome::Denied, "PermissionDenied"),
        (Some("13"), &[], Outcome::Failure, "Internal"),
        // Without any.
        (None, &[Part::Data], Outcome::Unknown, ""),
        (None, &[Part::Data, Part::Error], Outcome::Unknown, ""),
    ];
    for (at, (head, parts, outcome, status)) in ends.into_iter().enumerate() {
        call_grpc(layer.clone(), head, parts).await;
        if !status.is_empty() {
            assert_eq!(stored(&fake).len(), 2 * (at + 1), "recorded before the client has it");
        }
        fake.memory.until("the outcome", |memory| memory.audited.len() == 2 * (at + 1)).await;
        let recorded = &outcomes(&fake)[at];
        assert_eq!(told(recorded), ("model.enabled", "model", "unknown", outcome), "{at}");
        let details: Value = serde_json::from_str(&recorded.details_json).unwrap();
        assert_eq!(details["status"].as_str().unwrap_or_default(), status);
        assert_eq!(details["request"], "/admin.v1.Models/EnableModel");
    }
    let passed = call_grpc(layer.clone(), None, &[Part::Data, Part::Status("7")]).await;
    assert_eq!(passed, (2, Some("7".to_owned())), "the answer is the handler's");

    let panicked = AssertUnwindSafe(call_grpc(layer.clone(), None, &[Part::Data, Part::Panic])).catch_unwind().await;
    assert!(panicked.is_err());
    fake.memory.until("the outcome", |memory| memory.audited.len() == 22).await;
    call_grpc(layer.clone(), None, &[Part::Data, Part::Never]).await;
    fake.memory.until("the outcome", |memory| memory.audited.len() == 24).await;
    let ends: Vec<_> = outcomes(&fake).split_off(10).iter().map(Stored::outcome).collect();
    assert_eq!(ends, [Outcome::Failure, Outcome::Unknown]);

    let quiet = service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Body::empty())));
    let call = request("POST", "/admin.v1.Models/ListModels").body(()).unwrap();
    layer.layer(quiet).oneshot(call).await.unwrap();
    assert_eq!(stored(&fake).len(), 24, "read only");
}

#[tokio::test]
async fn a_grpc_client_is_refused_in_its_own_words() {
    let fake = Fake::down();
    let sdk = fake.sdk().audit_timeout(SHORT).build().unwrap();
    let nobody = AuditLayer::grpc(sdk.audit(), |_| None);
    let (_, status) = call_grpc(nobody, None, &[Part::Panic]).await;
    assert_eq!(status.as_deref(), Some("16"));
    let layer = AuditLayer::grpc(sdk.audit(), who);
    let (_, status) = call_grpc(layer.clone(), None, &[Part::Panic]).await;
    assert_eq!(status.as_deref(), Some("14"));
    let (_, status) =
        call_grpc(layer.action("/admin.v1.Models/EnableModel", "no action", "model"), None, &[Part::Panic]).await;
    assert_eq!(status.as_deref(), Some("13"));
}
