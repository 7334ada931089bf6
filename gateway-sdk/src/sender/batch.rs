//! A batch on its way, and how it is taken apart when the service can't take it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::codec::{Outbound, Payload};
use crate::queue::Taken;
use crate::queue::frame::{self, Numbering};

/// What was taken from the queue and is not settled.
#[derive(Debug)]
pub(crate) struct Batch<T> {
    pub(crate) first_sequence: u64,
    pub(crate) payload: Arc<Payload>,
    /// One for each event.
    pub(crate) extras: VecDeque<T>,
    pub(crate) dropped: Vec<(u64, u64)>,
    /// How often the service called it its own defect while nothing else was under way.
    pub(crate) defects: u32,
}

impl<T> From<Taken<T>> for Batch<T> {
    fn from(Taken { chunk, dropped }: Taken<T>) -> Self {
        Self {
            first_sequence: chunk.first_sequence,
            payload: Arc::new(Payload { frames: chunk.frames, start: chunk.start }),
            extras: chunk.extras,
            dropped,
            defects: 0,
        }
    }
}

impl<T> Batch<T> {
    /// The request that sends it; the frames are shared, not copied.
    pub(crate) fn outbound(&self, batch_id: u64, numbering: &Numbering) -> Outbound {
        let mut dropped = Vec::new();
        for range in &self.dropped {
            numbering.put_dropped(&mut dropped, *range);
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
        self.extras.len() + usize::from(!self.dropped.is_empty()) <= 1
    }

    /// Two batches in its place, in order: the reports and the events, or two halves
    /// of the events.
    pub(crate) fn split(mut self) -> (Self, Self) {
        let half = if self.dropped.is_empty() { self.extras.len() / 2 } else { 0 };
        let frames = self.payload.frames();
        let at = frame::frame_start(frames, half);
        let part = |frames: &[u8]| Arc::new(Payload { frames: frames.to_vec(), start: 0 });
        let (head, tail) = (part(&frames[..at]), part(&frames[at..]));
        let rest = Self {
            first_sequence: self.first_sequence + half as u64,
            payload: tail,
            extras: self.extras.split_off(half),
            dropped: Vec::new(),
            defects: 0,
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
        let numbering = Numbering::new(13, "p", 1);
        let mut frames = vec![0; 7];
        for (n, body) in bodies.iter().enumerate() {
            numbering.put_event(&mut frames, body, 10 + n as u64);
        }
        Batch {
            first_sequence: 10,
            payload: Arc::new(Payload { frames, start: 7 }),
            extras: (0..bodies.len()).collect(),
            dropped,
            defects: 0,
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
                    for (n, extra) in batch.extras.iter().enumerate() {
                        prop_assert_eq!(batch.first_sequence + n as u64, 10 + *extra as u64);
                        singles.push(batch.event(n).unwrap().to_vec());
                    }
                } else {
                    let (head, rest) = batch.split();
                    waiting.push_front(rest);
                    waiting.push_front(head);
                }
            }
            prop_assert_eq!(singles, events);
            prop_assert_eq!(reports, dropped);
        }
    }
}
