//! The queue against a model: whatever happens, every number is somewhere, once.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Drop(usize),
    Refuse(usize),
    Take,
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_usize..300).prop_map(Step::Drop),
        2 => (0_usize..300).prop_map(Step::Refuse),
        2 => Just(Step::Take),
        1 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 0..200)
}

fn take(queue: &Queue<u64>) -> Option<Taken<u64>> {
    // Linger is zero, so what is there is due.
    match queue.try_take() {
        Take::Now(taken) => Some(taken),
        _ => None,
    }
}

fn lowest(in_flight: &VecDeque<Taken<u64>>) -> Option<u64> {
    in_flight.iter().find_map(|taken| taken.events.front()).map(|event| event.sequence)
}

proptest! {
    #[test]
    fn every_number_is_taken_or_reported_once(
        steps in steps(), events in 1_usize..40, bytes in 400_usize..4_000,
        batch_events in 1_usize..12, batch_bytes in 400_usize..2_000,
    ) {
        let limits = Limits { events, bytes, batch_events, batch_bytes, linger: Duration::ZERO };
        let numbering = Numbering::new(20, "p", 1);
        let queue = Queue::new(limits, numbering.clone());
        let mut recorded = 0;
        let mut in_flight: VecDeque<Taken<u64>> = VecDeque::new();
        let (mut arrived, mut reported) = (Vec::new(), Vec::new());
        let mut settle = |taken: Taken<u64>, from| {
            arrived.extend(taken.events.iter().filter_map(|event| event.extra));
            reported.extend(taken.dropped.iter().flat_map(|range| range.first..=range.last));
            let settled = Settled {
                acknowledged: taken.events.len(),
                reports: taken.dropped.len(),
                buffer: Some(taken.frames),
                ..Settled::default()
            };
            queue.settle(settled, from);
        };
        for step in steps {
            match step {
                Step::Drop(len) => {
                    // The companion of an event is its number, to be compared with the
                    // one that the chunk implies.
                    prop_assert_eq!(queue.push_dropping(&vec![1; len], recorded), Ok(()));
                    recorded += 1;
                }
                Step::Refuse(len) => {
                    let before = queue.stats();
                    let room = before.queued < events as u64
                        && before.queued_bytes as usize + numbering.frame_len(len) <= bytes;
                    let pushed = queue.push(&vec![1; len], recorded);
                    prop_assert_eq!(pushed.is_ok(), room);
                    recorded += u64::from(room);
                }
                Step::Take => in_flight.extend(take(&queue)),
                Step::Settle => if let Some(taken) = in_flight.pop_front() {
                    settle(taken, lowest(&in_flight));
                },
            }
            for taken in &in_flight {
                prop_assert!(taken.events.len() <= batch_events);
                prop_assert!(taken.events.iter().all(|event| event.extra == Some(event.sequence)));
            }
            let stats = queue.stats();
            prop_assert!(stats.queued <= events as u64 && stats.queued_bytes <= bytes as u64);
            prop_assert_eq!(stats.recorded, recorded);
            prop_assert_eq!(
                stats.recorded,
                stats.queued + stats.in_flight + stats.acknowledged + stats.dropped
            );
            let held: usize = queue.lock().chunks.iter().map(|c| c.frames.len()).sum();
            prop_assert!(held <= bytes + batch_bytes, "{held} bytes held");
        }
        while let Some(taken) = in_flight.pop_front().or_else(|| take(&queue)) {
            settle(taken, lowest(&in_flight));
        }
        prop_assert!(queue.waiting().is_empty());
        prop_assert!(queue.lock().is_settled(recorded));
        prop_assert!(arrived.is_sorted());
        prop_assert_eq!(reported.len() as u64, queue.stats().dropped);
        prop_assert_eq!((arrived.len() + reported.len()) as u64, recorded);
        let all: BTreeSet<u64> = arrived.into_iter().chain(reported).collect();
        prop_assert!(all.into_iter().eq(0..recorded));
    }
}
