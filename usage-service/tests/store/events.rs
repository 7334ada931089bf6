//! Requests to store.

use std::collections::BTreeMap;

use service_core::auth::Access;
use sha2::{Digest as _, Sha256};
use usage_service::model::{AppliedPrice, Charge, Event, Filter, NewRequest, Outcome, Producer, Scope, Status, Tokens};
use usage_service::store::{Batch, Sealed, Store};
use uuid::Uuid;

/// 2026-01-05T12:00:00Z.
pub(crate) const NOON: i64 = 1_767_614_400_000_000;
pub(crate) const SECOND: i64 = 1_000_000;

/// A UUIDv7 of that moment whose other bits are `n`.
pub(crate) fn id(at_us: i64, n: u64) -> Uuid {
    let millis = u128::from((at_us / 1_000).unsigned_abs());
    Uuid::from_u128((millis << 80) | (7 << 76) | (2 << 62) | u128::from(n))
}

/// The `n`th request, at a moment; it costs `n` nano-dollars.
pub(crate) fn request(at_us: i64, n: u64) -> NewRequest {
    let event = Event {
        id: id(at_us, n),
        occurred_at_us: at_us,
        instance_id: "eu".into(),
        user_id: format!("user-{}", n % 5),
        team_id: String::new(),
        api_key_id: format!("key-{}", n % 2),
        provider: "openai".into(),
        requested_model: "gpt-4o".into(),
        model: "gpt-4o".into(),
        status: Status::Ok,
        operation: String::new(),
        tokens: Tokens { input_uncached: 100, output: 10, ..Tokens::default() },
        other_units: BTreeMap::new(),
        latency_us: None,
        time_to_first_token_us: None,
        service_tier: String::new(),
        processing: String::new(),
        request_id: String::new(),
        labels: BTreeMap::new(),
        price_conditions: BTreeMap::new(),
        producer: None,
    };
    sealed(event, priced(n as i64))
}

pub(crate) fn priced(cost_nanos: i64) -> Charge {
    let price = AppliedPrice {
        book_version: "book-1".into(),
        provider: "openai".into(),
        model: "gpt-4o".into(),
        detail: "standard".into(),
    };
    Charge::Priced { cost_nanos, price }
}

/// With the hash of its content.
pub(crate) fn sealed(event: Event, charge: Charge) -> NewRequest {
    let content = Event { producer: None, ..event.clone() };
    let content_hash = Sha256::digest(format!("{content:?}")).into();
    NewRequest { event, content_hash, charge }
}

/// The same with something changed.
pub(crate) fn changed(request: &NewRequest, change: impl FnOnce(&mut Event)) -> NewRequest {
    let mut event = request.event.clone();
    change(&mut event);
    sealed(event, request.charge.clone())
}

pub(crate) fn numbered(request: &NewRequest, epoch: i64, sequence: i64) -> NewRequest {
    changed(request, |event| event.producer = Some(Producer { id: "sdk".into(), epoch, sequence }))
}

pub(crate) fn batch(requests: impl IntoIterator<Item = NewRequest>) -> Batch {
    Batch { requests: requests.into_iter().collect(), ..Batch::default() }
}

/// Stores one batch.
pub(crate) async fn write(store: &Store, requests: impl IntoIterator<Item = NewRequest>) -> Vec<Outcome> {
    store.write(&[batch(requests)]).await.unwrap().remove(0)
}

/// Stores requests of which each must be new.
pub(crate) async fn write_new(store: &Store, requests: impl IntoIterator<Item = NewRequest>) {
    let outcomes = write(store, requests).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Accepted), "{outcomes:?}");
}

/// Takes all that was written into the rollups.
pub(crate) async fn seal_all(store: &Store) {
    while store.seal().await.unwrap() != Sealed::Nothing {}
    assert_eq!(store.backlog().await.unwrap().deltas, 0);
}

pub(crate) fn scope(start_us: i64, end_us: i64) -> Scope {
    let (access, filter) = (Access::unrestricted(), Filter::default());
    Scope { start_us, end_us, access, filter, watermark: None, caller: "caller".into() }
}

pub(crate) fn always() -> Scope {
    scope(0, i64::MAX)
}
