//! Deltas: what a transaction added, summed up as plainly as can be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::super::{Delta, DeltaRow, Level, MEASURES, Overlay, Values, delta::measures, encode_delta};
use crate::model::{Dimension, Event, Status, Tokens};

pub(super) fn event(occurred_at_us: i64) -> Event {
    Event {
        id: Uuid::nil(),
        occurred_at_us,
        instance_id: "instance".to_owned(),
        user_id: String::new(),
        team_id: String::new(),
        api_key_id: String::new(),
        provider: "provider".to_owned(),
        requested_model: "model".to_owned(),
        model: "model".to_owned(),
        status: Status::Ok,
        operation: String::new(),
        tokens: Tokens::default(),
        other_units: BTreeMap::new(),
        latency_us: None,
        time_to_first_token_us: None,
        service_tier: String::new(),
        processing: String::new(),
        request_id: String::new(),
        labels: BTreeMap::new(),
        price_conditions: BTreeMap::new(),
        producer: None,
    }
}

fn events() -> impl Strategy<Value = Vec<(Event, Option<i64>)>> {
    let time = prop_oneof![1_700_000_000_000_000..1_700_003_000_000_000_i64, -2_000_000_000..2_000_000_000_i64];
    let text = |texts: &'static [&'static str]| prop::sample::select(texts);
    let texts = (
        text(&["", "ann", "bob", "zoë"]),
        text(&["", "red"]),
        text(&["", "k1", "k2", "ann"]),
        text(&["p", "q"]),
        text(&["m1", "m2"]),
        text(&["one", "two"]),
    );
    let tokens = prop::array::uniform6(prop_oneof![Just(0), 0..500_i64, Just(1_000_000_000)]);
    let cost = prop_oneof![Just(None), (0..1_000_i64).prop_map(Some), Just(Some(i64::MAX)), Just(Some(i64::MIN))];
    let event = (time, texts, prop::sample::select(&Status::ALL[..]), tokens, cost).prop_map(
        |(time, (user, team, api_key, provider, model, instance), status, tokens, cost)| {
            let [input_uncached, input_cache_read, input_cache_write, input_cache_write_1h, output, output_reasoning] =
                tokens;
            let event = Event {
                user_id: user.to_owned(),
                team_id: team.to_owned(),
                api_key_id: api_key.to_owned(),
                provider: provider.to_owned(),
                model: model.to_owned(),
                instance_id: instance.to_owned(),
                status,
                tokens: Tokens {
                    input_uncached,
                    input_cache_read,
                    input_cache_write,
                    input_cache_write_1h,
                    output,
                    output_reasoning,
                },
                ..event(time)
            };
            (event, cost)
        },
    );
    prop::collection::vec(event, 0..50)
}

fn encode(events: &[(Event, Option<i64>)]) -> Vec<u8> {
    encode_delta(events.iter().map(|(event, cost)| (event, *cost)))
}

fn fresh() -> Overlay {
    Overlay::new(Arc::new(Values::new()))
}

/// By quarter and texts.
type Sums = BTreeMap<(i64, [String; 7]), [i128; MEASURES]>;

fn add(sums: &mut Sums, key: (i64, [String; 7]), measures: [i64; MEASURES]) {
    let sums = sums.entry(key).or_default();
    for (sum, measure) in sums.iter_mut().zip(measures) {
        *sum += i128::from(measure);
    }
}

fn of_rows(rows: &[DeltaRow], overlay: &Overlay) -> Sums {
    let mut sums = Sums::new();
    for row in rows {
        let text = |place: usize| overlay.text(super::super::KEYS[place], row.row.keys[place]).to_owned();
        let instance = overlay.text(Dimension::Instance, row.instance).to_owned();
        let texts = [text(0), text(1), text(2), text(3), text(4), text(5), instance];
        add(&mut sums, (row.quarter_us, texts), row.row.measures);
    }
    sums
}

fn of_events(events: &[(Event, Option<i64>)]) -> Sums {
    let mut sums = Sums::new();
    for (event, cost) in events {
        let texts = [
            event.user_id.clone(),
            event.team_id.clone(),
            event.api_key_id.clone(),
            event.provider.clone(),
            event.model.clone(),
            event.status.name().to_owned(),
            event.instance_id.clone(),
        ];
        add(&mut sums, (Level::Quarter.start_of(event.occurred_at_us), texts), measures(event, *cost));
    }
    sums
}

proptest! {
    #[test]
    fn a_delta_is_the_sums_of_its_events(events in events()) {
        let delta = Delta::decode(&encode(&events)).expect("it was just written");
        let mut overlay = fresh();
        let rows = delta.resolve(&mut overlay);
        prop_assert_eq!(of_rows(&rows, &overlay), of_events(&events));
        // Resolving once more gives no new texts.
        let count = overlay.added().count();
        prop_assert_eq!(delta.resolve(&mut overlay), rows);
        prop_assert_eq!(overlay.added().count(), count);
    }

    #[test]
    fn rows_are_few(events in events()) {
        let events: Vec<_> = events.into_iter().map(|(event, _)| (event, Some(1))).collect();
        let delta = Delta::decode(&encode(&events)).expect("it was just written");
        let rows = delta.resolve(&mut fresh());
        let keys: BTreeSet<_> = rows.iter().map(|row| (row.quarter_us, row.instance, row.row.keys)).collect();
        prop_assert_eq!(keys.len(), rows.len(), "each key once, where sums fit");
    }

    #[test]
    fn damaged_deltas_are_refused(events in events(), flips in prop::collection::vec(any::<prop::sample::Index>(), 50)) {
        let blob = encode(&events);
        for length in 0..blob.len() {
            prop_assert!(Delta::decode(&blob[..length]).is_err());
        }
        for flip in flips {
            let bit = flip.index(blob.len() * 8);
            let mut damaged = blob.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Delta::decode(&damaged).is_err());
        }
    }

    /// Behind the checksum: what is forged on purpose must not harm either.
    #[test]
    fn forged_deltas_never_panic(
        events in events(),
        forgeries in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut blob = encode(&events);
        for (at, byte) in forgeries {
            let at = 5 + at.index(blob.len() - 5);
            blob[at] = byte;
        }
        let noise = [vec![1, 0, 0, 0, 0], noise].concat();
        for mut blob in [blob, noise] {
            let crc = crc32fast::hash(&blob[5..]);
            blob[1..5].copy_from_slice(&crc.to_le_bytes());
            if let Ok(delta) = Delta::decode(&blob) {
                delta.resolve(&mut fresh());
            }
        }
    }
}

#[test]
fn nothing_is_a_small_delta() {
    let delta = Delta::decode(&encode(&[])).expect("it was just written");
    assert!(delta.resolve(&mut fresh()).is_empty());
    assert!(delta.bytes() > 0);
}
