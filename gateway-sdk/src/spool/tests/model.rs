//! The spool against a model: whatever fails and whenever it stops, every event that was
//! recorded is sent, or its number is told as dropped, or it is counted as damaged; and what is
//! refused is written down, or sent again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::disk::{Fault, Harness, Opened, bodies, body};
use crate::queue::Taken;

#[derive(Clone, Debug)]
enum Step {
    Record(u16),
    Wait(u8),
    Take,
    Settle(u8),
    /// The oldest batch is settled, and an event in it refused for good.
    Refuse(prop::sample::Index),
    Fail(Fault, u8),
    /// The process is killed, and the next one opens what it leaves.
    Crash,
    /// The same, and a bit of a segment turns.
    Flip(prop::sample::Index, prop::sample::Index, u8),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fault = prop_oneof![
        Just(Fault::Create),
        Just(Fault::Sync),
        Just(Fault::Ledger),
        Just(Fault::Read),
        Just(Fault::Remove),
        Just(Fault::Reject)
    ];
    let flip = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_u8..8);
    let step = prop_oneof![
        6 => (1_u16..900).prop_map(Step::Record),
        2 => any::<u8>().prop_map(Step::Wait),
        8 => Just(Step::Take),
        6 => (1_u8..6).prop_map(Step::Settle),
        2 => any::<prop::sample::Index>().prop_map(Step::Refuse),
        2 => (fault, 1_u8..4).prop_map(|(fault, times)| Step::Fail(fault, times)),
        2 => Just(Step::Crash),
        1 => flip.prop_map(|(segment, at, bit)| Step::Flip(segment, at, bit)),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

/// What is known from outside.
#[derive(Default)]
struct Model {
    recorded: u64,
    sent: BTreeSet<u64>,
    /// Which event a number was given to, by epoch and number.
    numbers: BTreeMap<(u64, u64), u64>,
    dropped: BTreeSet<(u64, u64)>,
    /// Refused for good, and not sent again.
    refused: BTreeSet<u64>,
    /// By what the test broke.
    may_be_lost: u64,
    /// What was refused and not written down may be lost by that too.
    damaged: bool,
}

impl Model {
    fn took(&mut self, batch: &Taken<u64>) {
        let epoch = batch.who.epoch();
        for (event, n) in batch.events.iter().zip(bodies(batch)) {
            let known = *self.numbers.entry((epoch, event.sequence)).or_insert(n);
            assert_eq!(known, n, "number {} of epoch {epoch} was given twice", event.sequence);
            self.sent.insert(n);
            self.refused.remove(&n);
        }
        for range in &batch.dropped {
            self.dropped.extend((range.first..=range.last).map(|number| (range.who.epoch(), number)));
        }
    }

    /// What a life that is over has lost by what was broken in it.
    fn ended(&mut self, harness: &Harness, spool: &Opened) {
        let stats = spool.stats();
        self.may_be_lost += stats.damaged;
        self.damaged |= stats.damaged > 0;
        // The ledger may not have said in time what was dropped, for a full disk too.
        if [Fault::Ledger, Fault::Create, Fault::Reject].into_iter().any(|fault| harness.was_broken(fault)) {
            self.may_be_lost += stats.dropped;
        }
    }
}

async fn run(steps: Vec<Step>) {
    let mut harness = Harness::new();
    let mut spool = harness.open();
    let mut model = Model::default();
    let mut in_flight: VecDeque<Taken<u64>> = VecDeque::new();
    for step in steps {
        match step {
            Step::Record(count) => {
                for _ in 0..count {
                    spool.push_dropping(&body(model.recorded)).unwrap();
                    model.recorded += 1;
                }
            }
            Step::Wait(ms) => {
                let deadline = Instant::now() + Duration::from_millis(u64::from(ms / 16));
                if spool.push_waiting(&body(model.recorded), None, deadline).await.is_ok() {
                    model.recorded += 1;
                }
            }
            Step::Take => {
                if let Ok(Some(batch)) = tokio::time::timeout(Duration::from_millis(20), spool.next()).await {
                    model.took(&batch);
                    in_flight.push_back(batch);
                }
            }
            Step::Settle(count) => {
                for batch in in_flight.drain(..usize::from(count).min(in_flight.len())) {
                    spool.settle_batch(&batch);
                }
            }
            Step::Refuse(index) => {
                if let Some(batch) = in_flight.pop_front_if(|batch| !batch.events.is_empty()) {
                    let index = index.index(batch.events.len());
                    model.refused.insert(bodies(&batch)[index]);
                    spool.refuse(&batch, index);
                }
            }
            Step::Fail(fault, times) => harness.fail(fault, u32::from(times)),
            Step::Crash | Step::Flip(..) => {
                let crashed = harness.crash();
                model.ended(&harness, &spool);
                drop(std::mem::replace(&mut harness, crashed));
                let segments = harness.segments();
                if let Step::Flip(segment, at, bit) = step
                    && !segments.is_empty()
                {
                    let number = segments[segment.index(segments.len())];
                    let bytes = harness.flip(number, at, bit);
                    model.damaged = true;
                    // In the header it costs all of the segment.
                    model.may_be_lost += if bytes { 1 } else { 10_000 };
                }
                in_flight.clear();
                spool = harness.open();
            }
            Step::Restart => {
                spool.shutdown().await;
                // A folder that can't be read is an error then; one that is full is none.
                harness.fail(Fault::Read, 0);
                harness.fail(Fault::Remove, 0);
                model.ended(&harness, &spool);
                in_flight.clear();
                spool = harness.open();
            }
        }
        let stats = spool.stats();
        assert_eq!(
            stats.recorded + stats.recovered,
            stats.queued + stats.in_flight + stats.acknowledged + stats.rejected + stats.dropped + stats.damaged,
            "{stats:?}"
        );
    }
    for fault in [Fault::Create, Fault::Sync, Fault::Ledger, Fault::Read, Fault::Remove, Fault::Reject] {
        harness.fail(fault, 0);
    }
    for batch in in_flight.drain(..) {
        spool.settle_batch(&batch);
    }
    let rest = spool.take_all().await;
    for batch in &rest.batches {
        model.took(batch);
    }
    spool.settle_all(rest).await;
    model.ended(&harness, &spool);
    spool.shutdown().await;
    let written: BTreeSet<u64> = harness.rejected().into_iter().collect();
    assert!(model.damaged || model.refused.is_subset(&written), "{:?} are not in {written:?}", model.refused);

    // A number that was dropped need not be one that an event is known for.
    let sent = model.sent.len() as u64;
    assert!(sent <= model.recorded);
    let gone = model.recorded - sent;
    let told = model.dropped.iter().filter(|number| !model.numbers.contains_key(*number)).count() as u64;
    assert!(gone <= told + model.may_be_lost, "{gone} gone, {told} told, {} may be lost", model.may_be_lost);
    if model.may_be_lost == 0 {
        assert_eq!(gone, told);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_event_is_sent_or_told(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
