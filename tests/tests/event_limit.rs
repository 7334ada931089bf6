//! What the SDK takes, the service takes: an event is measured with everything that goes out with it.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use e2e::sandbox::database_url;
use e2e::{Engine, Service};
use gateway_sdk::{Actor, AuditEvent, Error, GatewaySdk, Resource};
use prost::Message as _;

/// The contract's limit.
const LIMIT: usize = 64 * 1024;

/// An event that has so many bytes encoded, without its instance and its number.
fn event(bytes: usize) -> AuditEvent {
    let with = |details: usize| {
        let event = AuditEvent::builder(Actor::user("ada"), "model.enabled", Resource::new("model", "gpt-4o"));
        event.details_json(format!("\"{}\"", "x".repeat(details))).build()
    };
    let rest = with(60_000).as_proto().encoded_len() - 60_000;
    let event = with(bytes - rest);
    assert_eq!(event.as_proto().encoded_len(), bytes);
    event
}

#[tokio::test]
async fn what_the_sdk_takes_of_the_largest_events_the_service_takes() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start("audit", &database_url(Engine::Sqlite, &folder, "audit").await, &[]).await;
    let spool = folder.path().join("spool");
    for (producer, spooled) in [("p".to_owned(), false), ("p".repeat(250), false), ("q".repeat(250), true)] {
        let builder = GatewaySdk::builder().audit_endpoint(service.url()).instance("eu-1").producer_id(&producer);
        let builder = if spooled { builder.spool(&spool) } else { builder };
        let sdk = builder.build().unwrap();
        // Instance, producer's id, epoch and number, and what each is wrapped in.
        let own = "eu-1".len() + 2 + producer.len() + 8 + 1 + 10;
        let (mut taken, mut refused) = (0, 0);
        for bytes in (LIMIT - own - 24..=LIMIT).rev().step_by(4) {
            match sdk.audit().record(event(bytes)).await {
                Ok(recorded) => {
                    let receipt = recorded.receipt().await;
                    assert!(receipt.is_ok(), "{bytes} bytes: {receipt:?}");
                    taken += 1;
                }
                Err(Error::TooLarge { bytes, limit }) => {
                    assert!(bytes > limit && limit == LIMIT);
                    refused += 1;
                }
                Err(error) => panic!("{bytes} bytes: {error}"),
            }
        }
        // Of those that would fit, all but what the number may still grow by.
        assert!((2..=10).contains(&taken) && refused > 3, "{taken} taken, {refused} refused");
        assert!(sdk.shutdown(Duration::from_secs(30)).await.is_complete());
    }
}
