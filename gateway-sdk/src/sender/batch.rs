//! A batch on its way, and how it is taken apart when the service can't take it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::codec::{Outbound, Payload};
use crate::queue::frame::{self, Dropped, Numbering};
use crate::queue::{Item, Taken};

/// What was taken from the queue and is not settled.
#[derive(Debug)]
pub(crate) struct Batch<T> {
    pub(crate) payload: Arc<Payload>,
    /// One for each event.
    pub(crate) events: VecDeque<Item<T>>,
    /// Whose numbers the events have.
    pub(crate) who: Arc<Numbering>,
    pub(crate) segment: u64,
    pub(crate) dropped: Vec<Dropped>,
    /// How often the service called it its own defect while nothing else was under way.
    pub(crate) defects: u32,
    /// Whether the service has taken another batch since the last of them.
    pub(crate) vouched: bool,
}

impl<T> From<Taken<T>> for Batch<T> {
    fn from(taken: Taken<T>) -> Self {
        Self {
            payload: Arc::new(Payload { frames: taken.frames, start: taken.start }),
            events: taken.events,
            who: taken.who,
            segment: taken.segment,
            dropped: taken.dropped,
            defects: 0,
            vouched: false,
        }
    }
}

impl<T> Batch<T> {
    /// The request that sends it; the frames are shared, not copied.
    pub(crate) fn outbound(&self, batch_id: u64) -> Outbound {
        let mut dropped = Vec::new();
        for range in &self.dropped {
            range.put(&mut dropped);
        }
        Outbound { batch_id, payload: Arc::clone(&self.payload), dropped }
    }

    /// The encoded event at `index`.
    pub(crate) fn event(&self, index: usize) -> Option<&[u8]> {
        let frames = self.payload.frames();
        let frames = frames.get(frame::frame_start(frames, index)..)?;
        frames.get(frame::first_event(frames)?)
    }

    /// Whether it is one event, or reports alone: what can't be taken apart.
    pub(crate) fn is_single(&self) -> bool {
        self.events.len() + usize::from(!self.dropped.is_empty()) <= 1
    }

    /// Whether a defect that it met may as well be the service's own: nothing that can be taken
    /// apart, and nothing else has got through since.
    pub(crate) fn is_doubted(&self) -> bool {
        self.is_single() && self.defects > 0 && !self.vouched
    }

    /// Two batches in its place, in order: the reports and the events, or two halves
    /// of the events.
    pub(crate) fn split(mut self) -> (Self, Self) {
        let half = if self.dropped.is_empty() { self.events.len() / 2 } else { 0 };
        let frames = self.payload.frames();
        let at = frame::frame_start(frames, half);
        let part = |frames: &[u8]| Arc::new(Payload { frames: frames.to_vec(), start: 0 });
        let (head, tail) = (part(&frames[..at]), part(&frames[at..]));
        let rest = Self {
            payload: tail,
            events: self.events.split_off(half),
            who: Arc::clone(&self.who),
            segment: self.segment,
            dropped: Vec::new(),
            defects: 0,
            vouched: false,
        };
        self.payload = head;
        self.defects = 0;
        (self, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(bodies: &[Vec<u8>], dropped: Vec<(u64, u64)>) -> Batch<usize> {
        let numbering = Arc::new(Numbering::new(13, "p", 1));
        let mut frames = vec![0; 7];
        for (n, body) in bodies.iter().enumerate() {
            numbering.put_event(&mut frames, body, 10 + n as u64);
        }
        let dropped = dropped.into_iter().map(|(first, last)| Dropped { who: Arc::clone(&numbering), first, last });
        Batch {
            payload: Arc::new(Payload { frames, start: 7 }),
            events: (0..bodies.len()).map(|n| Item { sequence: 10 + n as u64, extra: Some(n) }).collect(),
            dropped: dropped.collect(),
            who: numbering,
            segment: 0,
            defects: 0,
            vouched: false,
        }
    }

    proptest! {
        /// However it is taken apart, every event stays once, in order, with its own
        /// number and companion.
        #[test]
        fn splitting_keeps_every_event(
            bodies in prop::collection::vec(prop::collection::vec(0_u8.., 0..200), 0..40),
            dropped in prop::collection::vec((0_u64..9, 0_u64..9), 0..3),
        ) {
            let whole = batch(&bodies, dropped.clone());
            let events: Vec<Vec<u8>> =
                (0..bodies.len()).map(|n| whole.event(n).unwrap().to_vec()).collect();
            let mut waiting = VecDeque::from([whole]);
            let (mut singles, mut reports) = (Vec::new(), Vec::new());
            while let Some(batch) = waiting.pop_front() {
                if batch.is_single() {
                    reports.extend(batch.dropped.clone());
                    for (n, event) in batch.events.iter().enumerate() {
                        prop_assert_eq!(event.sequence, 10 + event.extra.unwrap() as u64);
                        singles.push(batch.event(n).unwrap().to_vec());
                    }
                } else {
                    let (head, rest) = batch.split();
                    waiting.push_front(rest);
                    waiting.push_front(head);
                }
            }
            prop_assert_eq!(singles, events);
            let reports: Vec<_> = reports.into_iter().map(|range| (range.first, range.last)).collect();
            prop_assert_eq!(reports, dropped);
        }
    }
}
