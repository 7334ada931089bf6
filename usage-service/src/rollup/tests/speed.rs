//! What folding costs. Not a test: prints, for `--release -- --ignored --nocapture`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use super::super::{
    Cut, Delta, FullRow, IdFilter, KEYS, Level, MEASURES, Overlay, Question, Ranker, Section, Tally, Values,
    encode_delta,
};
use super::delta::event;
use crate::model::{Dimension, Event, Filter, Metric, Tokens};

const USERS: u32 = 5_000;

/// Numbers without a pattern, the same every time (Marsaglia, "Xorshift RNGs").
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// More often low than high.
    fn skewed(&mut self, bound: u64) -> u64 {
        let first = self.below(bound);
        self.below(first + 1)
    }

    fn row(&mut self) -> FullRow {
        let user = self.skewed(u64::from(USERS));
        let model = (user * 7 + self.below(4) * 3) % 40;
        let mut measures = [0; MEASURES];
        measures[0] = 1 + self.below(20) as i64;
        measures[1] = i64::from(self.below(30) == 0);
        for tokens in &mut measures[2..8] {
            *tokens = self.below(40_000) as i64;
        }
        measures[8] = self.below(9_000_000_000) as i64;
        let keys =
            [user + 1, user % 200 + 1, user * 2 + self.below(3) + 1, model % 8 + 1, model + 1, 1 + self.below(50) / 46];
        FullRow { keys: keys.map(|key| key as u32), measures }
    }
}

fn sections(count: usize, rows: usize) -> Vec<Section> {
    let mut random = Random(0x1234_5678_9abc_def1);
    (0..count).map(|_| Section::merge(None, (0..rows).map(|_| random.row()).collect())).collect()
}

fn overlay() -> Overlay {
    let mut values = Values::new();
    let sizes = [
        (Dimension::User, USERS),
        (Dimension::Team, 200),
        (Dimension::ApiKey, 3 * USERS),
        (Dimension::Provider, 8),
        (Dimension::Model, 40),
        (Dimension::Instance, 1),
    ];
    for (dimension, size) in sizes {
        for id in 1..=size {
            values.insert(dimension, id, &format!("{}-{id}", dimension.name())).expect("ids rise");
        }
    }
    Overlay::new(Arc::new(values))
}

/// The quickest of many, in milliseconds, and the one in the middle.
fn time(name: &str, mut run: impl FnMut()) {
    let mut times: Vec<f64> = (0..21)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:<64} {:>8.2} ms, at best {:>8.2} ms", times[10], times[0]);
}

fn fold(name: &str, sections: &[Section], question: &Question, overlay: &Overlay) {
    let rank = || {
        let mut ranker = Ranker::new(question, Metric::Cost, overlay);
        for section in sections {
            ranker.add_section(1, section).expect("it has the keys");
        }
        ranker.finish(overlay, 10)
    };
    let ranking = rank();
    time(&format!("{name}: ranker, {} groups", ranking.groups), || {
        black_box(rank());
    });
    time(&format!("{name}: tally"), || {
        let mut tally = Tally::new(question, Some(&ranking.chosen));
        for (at, section) in sections.iter().enumerate() {
            tally.add_section(at % question.buckets, 1, section).expect("it has the keys");
        }
        black_box(tally.finish(overlay, ranking.groups).expect("few requests"));
    });
}

#[test]
#[ignore = "prints figures; run by hand, in release, on a quiet machine"]
fn figures() {
    let mut overlay = overlay();
    let ask =
        |keys: &[Dimension], buckets: usize| Question { keys: keys.to_vec(), filter: IdFilter::default(), buckets };
    let days = sections(30, 21_500);
    let rows: usize = days.iter().map(Section::rows).sum();
    let bytes: usize = days.iter().map(Section::bytes).sum();
    println!("30 days, {rows} rows, {} kB in memory", bytes / 1000);
    fold("full, total", &days, &ask(&[], 1), &overlay);
    fold("full, by provider", &days, &ask(&[Dimension::Provider], 1), &overlay);
    fold("full, by provider, 30 buckets", &days, &ask(&[Dimension::Provider], 30), &overlay);
    fold("full, by model and status", &days, &ask(&[Dimension::Model, Dimension::Status], 1), &overlay);
    fold("full, by user and model", &days, &ask(&[Dimension::User, Dimension::Model], 1), &overlay);
    fold(
        "full, by user, key and model",
        &days,
        &ask(&[Dimension::User, Dimension::ApiKey, Dimension::Model], 1),
        &overlay,
    );
    let filter = Filter { providers: vec!["provider-3".to_owned()], ..Filter::default() };
    let filter = IdFilter::new(&filter, &mut overlay);
    fold("full, of a provider, by user", &days, &Question { filter, ..ask(&[Dimension::User], 1) }, &overlay);
    let filter = Filter { user_ids: vec!["user_id-77".to_owned()], ..Filter::default() };
    let filter = IdFilter::new(&filter, &mut overlay);
    fold("full, of a user, by model", &days, &Question { filter, ..ask(&[Dimension::Model], 1) }, &overlay);

    for cut in [Cut::USER, Cut::API_KEY, Cut::PROVIDER, Cut::STATUS] {
        let singles: Vec<_> = days.iter().map(|day| Section::project(day, cut)).collect();
        let keys: Vec<_> = cut.places().map(|place| KEYS[place]).collect();
        fold(&format!("30 days of {cut:?}"), &singles, &ask(&keys, 1), &overlay);
    }
    let hours = sections(690, 4_800);
    let singles: Vec<_> = hours.iter().map(|hour| Section::project(hour, Cut::PROVIDER)).collect();
    fold("690 hours by provider, 30 buckets", &singles, &ask(&[Dimension::Provider], 30), &overlay);

    let blobs = |sections: &[Section]| -> Vec<Vec<u8>> {
        sections.iter().map(|section| section.encode().expect("it is small")).collect()
    };
    for (name, sections) in [("30 full days", &days), ("690 hours by provider", &singles)] {
        let blobs = blobs(sections);
        let bytes: usize = blobs.iter().map(Vec::len).sum();
        time(&format!("{name}: decode {} kB", bytes / 1000), || {
            for blob in &blobs {
                black_box(Section::decode(sections[0].cut(), blob).expect("it was just written"));
            }
        });
    }
    let day = &days[0];
    time("a day: merge 1,000 rows", || {
        let mut random = Random(42);
        black_box(Section::merge(Some(day), (0..1_000).map(|_| random.row()).collect()));
    });
    time("a day: six singles", || {
        for cut in Cut::SINGLES {
            black_box(Section::project(day, cut));
        }
    });
    time("a day: encode", || {
        black_box(day.encode().expect("it is small"));
    });
    deltas();
}

fn deltas() {
    let mut random = Random(7);
    let events: Vec<Event> = (0..4_000)
        .map(|at| {
            let [user, team, api_key, provider, model, _] = random.row().keys;
            Event {
                user_id: format!("user-{user:05}"),
                team_id: format!("team-{team:03}"),
                api_key_id: format!("key-{api_key:05}"),
                provider: format!("provider-{provider}"),
                model: format!("some-large-model-{model}"),
                tokens: Tokens {
                    input_uncached: random.below(9_000) as i64,
                    output: random.below(900) as i64,
                    ..Tokens::default()
                },
                ..event(1_700_000_000_000_000 + at * 1_000)
            }
        })
        .collect();
    let encode = || encode_delta(events.iter().map(|event| (event, Some(12_345_678))));
    let blob = encode();
    println!("delta: {} bytes for each of {} events", blob.len() / events.len(), events.len());
    time("delta: encode 4,000 events", || {
        black_box(encode());
    });
    time("delta: decode 4,000 events", || {
        black_box(Delta::decode(&blob).expect("it was just written"));
    });
    let delta = Delta::decode(&blob).expect("it was just written");
    time("delta: resolve 4,000 events", || {
        black_box(delta.resolve(&mut Overlay::new(Arc::new(Values::new()))));
    });
    assert_eq!(Level::Quarter.width_us(), 900_000_000);
}
