//! Events as they go over the wire: framed for the `events` field of a batch.
//!
//! ```text
//! frame = 0x12, length, event, producer { id, epoch, sequence }
//! ```
//!
//! `StreamUsageRequest.events` and `StreamEventsRequest.events` are both field 2, so a
//! run of frames *is* the encoded field, and a batch is sent, and sent again, without
//! touching an event. Protobuf lets fields come in any order: the producer's number
//! is put behind the event when it is queued, the event is encoded before.

use std::collections::VecDeque;
use std::sync::Arc;

/// Key of field 2, length-delimited.
const EVENTS: u8 = 0x12;
/// Key of field 3, length-delimited: `dropped`.
const DROPPED: u8 = 0x1A;

/// Appends a varint.
pub(crate) fn put_varint(buf: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buf.push(value as u8 | 0x80);
        value >>= 7;
    }
    buf.push(value as u8);
}

/// How many bytes a varint takes.
pub(crate) fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Reads a varint: its value and its length.
fn take_varint(buf: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (index, byte) in buf.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

/// Who numbers the events of one SDK, with what is the same for all of them encoded
/// once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Numbering {
    id: String,
    epoch: u64,
    /// Key of the event's `producer` field.
    key: Vec<u8>,
    /// Encoded `id` and `epoch`.
    who: Vec<u8>,
}

impl Numbering {
    pub(crate) fn new(producer_field: u32, id: &str, epoch: u64) -> Self {
        let mut key = Vec::new();
        put_varint(&mut key, u64::from(producer_field) << 3 | 2);
        let mut who = vec![0x0A];
        put_varint(&mut who, id.len() as u64);
        who.extend_from_slice(id.as_bytes());
        who.push(0x10);
        put_varint(&mut who, epoch);
        Self { id: id.to_owned(), epoch, key, who }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Length of an encoded producer with a sequence.
    fn producer_len(&self, sequence: u64) -> usize {
        self.who.len() + 1 + varint_len(sequence)
    }

    /// At most how long the frame of an event with `body_len` bytes is.
    pub(crate) fn frame_len(&self, body_len: usize) -> usize {
        let producer = self.producer_len(u64::MAX);
        let body = body_len + self.key.len() + varint_len(producer as u64) + producer;
        1 + varint_len(body as u64) + body
    }

    /// Appends the frame of an event.
    pub(crate) fn put_event(&self, buf: &mut Vec<u8>, body: &[u8], sequence: u64) {
        let producer = self.producer_len(sequence);
        let len = body.len() + self.key.len() + varint_len(producer as u64) + producer;
        buf.push(EVENTS);
        put_varint(buf, len as u64);
        buf.extend_from_slice(body);
        buf.extend_from_slice(&self.key);
        put_varint(buf, producer as u64);
        buf.extend_from_slice(&self.who);
        buf.push(0x18);
        put_varint(buf, sequence);
    }

    fn put_dropped(&self, buf: &mut Vec<u8>, first: u64, last: u64) {
        let who = self.who.len();
        let len = 1 + varint_len(who as u64) + who + 1 + varint_len(first) + 1 + varint_len(last);
        buf.push(DROPPED);
        put_varint(buf, len as u64);
        buf.push(0x0A);
        put_varint(buf, who as u64);
        buf.extend_from_slice(&self.who);
        buf.push(0x10);
        put_varint(buf, first);
        buf.push(0x18);
        put_varint(buf, last);
    }
}

/// Numbers that were given to events which are then not sent, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) who: Arc<Numbering>,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Dropped {
    /// Appends the range as a batch's `dropped` field has it.
    pub(crate) fn put(&self, buf: &mut Vec<u8>) {
        self.who.put_dropped(buf, self.first, self.last);
    }

    /// Adds numbers to ranges in the order in which they are dropped, joined where they adjoin.
    pub(crate) fn note(ranges: &mut VecDeque<Self>, who: &Arc<Numbering>, first: u64, last: u64) {
        match ranges.back_mut() {
            Some(range) if range.who == *who && range.last.checked_add(1) == Some(first) => range.last = last,
            _ => ranges.push_back(Self { who: Arc::clone(who), first, last }),
        }
    }
}

/// Where the first frame's event begins and ends in a run of frames. `None` at its end.
pub(crate) fn first_event(frames: &[u8]) -> Option<std::ops::Range<usize>> {
    let (len, len_len) = take_varint(frames.get(1..)?)?;
    let start = 1 + len_len;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= frames.len()).then_some(start..end)
}

/// Where the frame of the event at `index` begins.
pub(crate) fn frame_start(frames: &[u8], index: usize) -> usize {
    let mut at = 0;
    for _ in 0..index {
        match first_event(&frames[at..]) {
            Some(event) => at += event.end,
            None => break,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use activity_proto::common::v1::{DroppedRange, Producer};
    use activity_proto::usage::v1::{StreamUsageRequest, UsageEvent};
    use proptest::prelude::*;
    use prost::Message;

    proptest! {
        #[test]
        fn frames_are_the_encoding_of_the_contract(
            users in prop::collection::vec("[a-z]{0,300}", 0..20),
            first: u64, epoch: u64, id in "[a-z0-9-]{1,200}", ranges: Vec<(u64, u64)>,
        ) {
            let first = first / 2;
            let numbering = Numbering::new(20, &id, epoch);
            let producer = |sequence| Producer { id: id.clone(), epoch, sequence };
            let mut want = StreamUsageRequest::default();
            let mut frames = Vec::new();
            for (n, user) in users.iter().enumerate() {
                let mut event = UsageEvent { user_id: user.clone(), ..Default::default() };
                let body = event.encode_to_vec();
                let sequence = first + n as u64;
                let before = frames.len();
                numbering.put_event(&mut frames, &body, sequence);
                prop_assert!(frames.len() - before <= numbering.frame_len(body.len()));
                event.producer = Some(producer(Some(sequence)));
                want.events.push(event);
            }
            for (n, want) in want.events.iter().enumerate() {
                let frames = &frames[frame_start(&frames, n)..];
                let event = &frames[first_event(frames).unwrap()];
                prop_assert_eq!(&UsageEvent::decode(event).unwrap(), want);
            }
            prop_assert_eq!(frame_start(&frames, users.len()), frames.len());
            for (first, last) in ranges {
                Dropped { who: Arc::new(numbering.clone()), first, last }.put(&mut frames);
                want.dropped.push(DroppedRange {
                    producer: Some(producer(None)),
                    first_sequence: Some(first),
                    last_sequence: Some(last),
                });
            }
            prop_assert_eq!(StreamUsageRequest::decode(&frames[..]).unwrap(), want);
        }

        #[test]
        fn varints_read_back(value: u64) {
            let mut buf = Vec::new();
            put_varint(&mut buf, value);
            prop_assert_eq!(buf.len(), varint_len(value));
            prop_assert_eq!(take_varint(&buf), Some((value, buf.len())));
        }

        #[test]
        fn damaged_frames_end_the_run(bytes: Vec<u8>) {
            prop_assert!(frame_start(&bytes, 100) <= bytes.len());
        }
    }
}
