//! Actions in two entries: whatever becomes of one, the log shows it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway_sdk::proto::audit::v1::AuditEvent as Stored;
use gateway_sdk::{
    Actor, AuditEvent, Begin, Diff, Error, ErrorReason, GatewaySdk, OperationStats, Outcome, Resource, Stage,
};
use prost::Message;
use serde_json::{Value, json};

use crate::fake::{Action, Fake, LONG};

const SHORT: Duration = Duration::from_millis(100);

fn begin(sdk: &GatewaySdk) -> Begin {
    sdk.audit().begin(Actor::user("alice"), "model.enabled", Resource::new("model", "gpt-4o"))
}

fn stored(fake: &Fake) -> Vec<Stored> {
    fake.memory.look(|memory| memory.audited.clone())
}

fn stage(event: &Stored) -> (Stage, Outcome) {
    (event.operation.as_ref().unwrap().stage(), event.outcome())
}

/// Begun, open, ended, abandoned.
fn counts(sdk: &GatewaySdk) -> (u64, u64, u64, u64) {
    let OperationStats { begun, open, ended, abandoned, .. } = sdk.stats().operations;
    (begun, open, ended, abandoned)
}

#[tokio::test]
async fn the_intent_is_stored_before_the_change_and_the_outcome_after_it() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let mut operation = begin(&sdk).reason("OPS-1").request_id("r-1").details(&json!({"n": 1})).await.unwrap();
    let intent = &stored(&fake)[0];
    assert_eq!(stage(intent), (Stage::Intent, Outcome::Unknown));
    assert_eq!(counts(&sdk), (1, 1, 0, 0));

    operation.resource(Resource::new("user", "u-2"));
    let id = operation.id().to_string();
    let diff = sdk.audit().diff(&json!({"enabled": false}), &json!({"enabled": true}));
    operation.succeeded(diff).await.unwrap();
    let events = stored(&fake);
    let outcome = &events[1];
    assert_eq!((events.len(), stage(outcome)), (2, (Stage::Outcome, Outcome::Success)));
    assert_ne!(outcome.id, intent.id);
    for event in &events {
        assert_eq!(event.operation.as_ref().unwrap().id, id);
        assert_eq!((event.reason.as_str(), event.request_id.as_str()), ("OPS-1", "r-1"));
        assert_eq!((event.action.as_str(), event.details_json.as_str()), ("model.enabled", r#"{"n":1}"#));
        assert_eq!(event.actor.as_ref().unwrap().id, "alice");
    }
    let resources: Vec<_> = outcome.resources.iter().map(|resource| resource.id.as_str()).collect();
    assert_eq!(resources, ["gpt-4o", "u-2"]);
    assert_eq!((outcome.changes[0].path.as_str(), outcome.changes[0].new_value()), ("/enabled", "true"));
    assert_eq!(counts(&sdk), (1, 0, 1, 0));
}

#[tokio::test]
async fn every_other_end_has_its_outcome_and_says_why() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    begin(&sdk).reason("OPS-1").await.unwrap().failed("no\nsuch model").await.unwrap();
    begin(&sdk).await.unwrap().denied("y".repeat(2_000)).await.unwrap();
    begin(&sdk).await.unwrap().unknown("timed out").await.unwrap();
    let outcomes: Vec<_> = stored(&fake).into_iter().filter(|event| stage(event).0 == Stage::Outcome).collect();
    let said: Vec<_> = outcomes.iter().map(|event| (event.outcome(), event.reason.as_str())).collect();
    let cut = format!("{}…", "y".repeat(1_021));
    assert_eq!(
        said,
        [
            (Outcome::Failure, "OPS-1; no\u{FFFD}such model"),
            (Outcome::Denied, cut.as_str()),
            (Outcome::Unknown, "timed out")
        ]
    );
}

#[tokio::test]
async fn an_operation_without_an_outcome_stands_open_and_is_reported() {
    let fake = Fake::start();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let sdk = fake
        .sdk()
        .on_abandoned(move |abandoned| {
            tell.lock().unwrap().push(abandoned.intent);
            panic!("as a callback may");
        })
        .build()
        .unwrap();
    drop(begin(&sdk).await.unwrap());
    let panicking = begin(&sdk).await.unwrap();
    let panicked = tokio::spawn(async move {
        let _operation = panicking;
        panic!("as a handler may");
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert!(sdk.flush(LONG).await.is_complete());
    assert_eq!(counts(&sdk), (2, 0, 0, 2));
    let events = stored(&fake);
    assert!(events.iter().all(|event| stage(event).0 == Stage::Intent) && events.len() == 2);
    let told: Vec<_> = told.lock().unwrap().iter().map(|intent| intent.id().to_string()).collect();
    assert_eq!(told, [events[0].id.clone(), events[1].id.clone()]);
}

#[tokio::test]
async fn an_intent_that_may_still_arrive_is_followed_by_word_that_nothing_was_begun() {
    let mut fake = Fake::down();
    let sdk = fake.sdk().audit_timeout(SHORT).build().unwrap();
    let error = begin(&sdk).await.unwrap_err();
    assert!(matches!(error, Error::NotAcknowledged { .. }), "{error}");
    // And so when nobody waits any more.
    assert!(tokio::time::timeout(SHORT / 4, begin(&sdk).into_future()).await.is_err());
    assert_eq!(counts(&sdk), (0, 0, 0, 0), "nothing was begun");
    fake.restart();
    assert!(sdk.flush(LONG).await.is_complete());
    let events = stored(&fake);
    assert_eq!(events.len(), 4);
    for pair in events.chunks(2) {
        assert_eq!(pair[0].operation.as_ref().unwrap().id, pair[1].operation.as_ref().unwrap().id);
        assert_eq!(stage(&pair[0]), (Stage::Intent, Outcome::Unknown));
        assert_eq!(stage(&pair[1]), (Stage::Outcome, Outcome::Failure));
        assert!(pair[1].reason.starts_with("did not begin"), "{}", pair[1].reason);
    }
}

#[tokio::test]
async fn an_outcome_that_can_not_be_recorded_is_handed_back_and_the_same_again_is_stored_once() {
    let mut fake = Fake::start();
    let sdk = fake.sdk().audit_timeout(SHORT).build().unwrap();
    let operation = begin(&sdk).await.unwrap();
    fake.memory.script(|_| Action::Stall);
    fake.restart();
    let unrecorded = operation.succeeded(Diff::default()).await.unwrap_err();
    assert!(matches!(*unrecorded.error, Error::NotAcknowledged { .. }), "{unrecorded}");
    assert_eq!(counts(&sdk), (1, 0, 0, 1), "not known to be recorded is not recorded");
    fake.memory.script(|_| Action::Ack);
    fake.restart();
    let receipt = loop {
        match sdk.audit().record((*unrecorded.event).clone()).await {
            Ok(recorded) => break recorded.receipt().await.unwrap(),
            Err(Error::NotAcknowledged { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert!(receipt.sequence == 1 && sdk.flush(LONG).await.is_complete());
    let events = stored(&fake);
    assert_eq!((events.len(), stage(&events[1])), (2, (Stage::Outcome, Outcome::Success)));
}

#[tokio::test]
async fn what_the_service_would_refuse_is_refused_before_the_change() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let sdk = fake.sdk().spool(folder.path()).build().unwrap();
    let audit = sdk.audit();
    let model = || Resource::new("model", "gpt-4o");
    let name = "n".repeat(257);
    for (begin, field, reason) in [
        (audit.begin(Actor::user("a"), "Model.enabled", model()), "action", ErrorReason::InvalidAction),
        (audit.begin(Actor::user("a"), "model.enabled.now", model()), "action", ErrorReason::InvalidAction),
        (audit.begin(Actor::user("a"), "audit_log.purged", model()), "action", ErrorReason::InvalidAction),
        (audit.begin(Actor::user(""), "model.enabled", model()), "actor.id", ErrorReason::Required),
        (audit.begin(Actor::user(&name), "model.enabled", model()), "actor.id", ErrorReason::InvalidArgument),
        (
            audit.begin(Actor::user("a"), "model.enabled", Resource::new("", "b")),
            "resources[0].type",
            ErrorReason::Required,
        ),
        (begin(&sdk).reason("a\nb"), "reason", ErrorReason::InvalidArgument),
        (begin(&sdk).request_id(&name), "request_id", ErrorReason::InvalidArgument),
        (begin(&sdk).resource(Resource::new("user", "a\u{7}")), "resources[1].id", ErrorReason::InvalidArgument),
    ] {
        match begin.await {
            Err(Error::Rejected(rejection)) => {
                assert_eq!((rejection.field.as_str(), rejection.reason), (field, reason))
            }
            other => panic!("{field}: {other:?}"),
        }
    }
    let without = GatewaySdk::builder().audit_endpoint("http://127.0.0.1:1").build().unwrap();
    let error = begin(&without).await.unwrap_err();
    assert!(error.to_string().contains("instance_id is required"), "{error}");
    assert_eq!(sdk.stats().audit.recorded, 0);
}

#[tokio::test]
async fn an_outcome_fits_whatever_is_put_into_it() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let many = |count: usize, name: &'static str| {
        (0..count).map(move |n| Resource::new(format!("{name}{n}"), name.repeat(250)).name(name.repeat(250)))
    };
    let mut crowded = begin(&sdk);
    for resource in many(99, "a") {
        crowded = crowded.resource(resource);
    }
    let mut operation = crowded.await.unwrap();
    many(70, "b").for_each(|resource| operation.resource(resource));
    operation.resource(Resource::new("", ""));
    operation.details(json!({"text": "x".repeat(300_000)}));
    let large: Value =
        (0..999).map(|n| (n.to_string(), json!("y".repeat(100)))).collect::<serde_json::Map<_, _>>().into();
    operation.succeeded(Diff::created(&large)).await.unwrap();
    let mut deep = begin(&sdk).await.unwrap();
    deep.details((0..200).fold(json!(1), |inner, _| json!([inner])));
    deep.resource(Resource::new("", ""));
    deep.succeeded(Diff::created(&large)).await.unwrap();

    let outcomes: Vec<_> = stored(&fake).into_iter().filter(|event| stage(event).0 == Stage::Outcome).collect();
    let details: Vec<Value> = outcomes.iter().map(|event| serde_json::from_str(&event.details_json).unwrap()).collect();
    for event in &outcomes {
        assert!(event.encoded_len() <= 64 * 1024, "{}", event.encoded_len());
        assert!(event.resources.iter().all(|resource| !resource.id.is_empty() && resource.id.len() <= 256));
    }
    assert_eq!((outcomes[0].resources.len(), details[0]["$omitted"]["resources"].as_u64()), (100, Some(71)));
    assert_eq!((outcomes[0].changes.len(), outcomes[0].changes[0].path.as_str()), (1, ""));
    assert_eq!(details[1]["$omitted"]["bytes"], 401);
    assert_eq!(outcomes[1].resources[1].id, "unknown");
    for event in &outcomes {
        assert!(event.changes.iter().any(|change| change.new_value().contains("$omitted")));
    }
}

#[tokio::test]
async fn an_event_that_is_recorded_as_a_whole_takes_a_diff_too() {
    let fake = Fake::start();
    let sdk = fake.sdk().build().unwrap();
    let event = AuditEvent::builder(Actor::user("alice"), "model.enabled", Resource::new("model", "gpt-4o"))
        .diff(sdk.audit().created(&json!({"enabled": true, "token": 7})));
    sdk.audit().record(event).await.unwrap();
    let changes = stored(&fake)[0].changes.clone();
    let shown: Vec<_> = changes.iter().map(|change| (change.path.as_str(), change.new_value())).collect();
    assert_eq!(shown, [("/enabled", "true"), ("/token", "\"[secret]\"")]);
}
