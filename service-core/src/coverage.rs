//! `GetCoverage` of both services: what is asked for, and a page of the answer. What is stored each service reads by
//! itself.

use activity_proto::common::v1 as proto;
use prost::Message as _;

use crate::auth::{Access, Caller};
use crate::clock;
use crate::error::{Error, Reason, Result, Violation};
use crate::numbers::{Covered, Ranges};
use crate::page::MAX_PAGE_BYTES;
use crate::time_range::{self, Resolved, WhenMissing};

/// Blocks of numbers that one answer is made of: a billion numbers, where none is missing.
pub const MAX_BLOCKS: usize = 16_384;
/// Reports of dropped numbers that are read of one epoch.
pub const MAX_DROPPED: usize = 10_000;

const MAX_PRODUCERS: usize = 100;
const MAX_NAME_BYTES: usize = 256;

/// Which producers, and which of their numbers.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Heard of when.
    pub range: Resolved,
    /// None: all of them.
    pub producer_ids: Vec<String>,
    /// The first number.
    pub first: u64,
    /// The last number; none: the last that was heard of.
    pub last: Option<u64>,
}

impl Wanted {
    /// Checks what is asked for.
    pub fn new(
        range: Option<&proto::TimeRange>,
        producer_ids: Vec<String>,
        first: Option<u64>,
        last: Option<u64>,
    ) -> Result<Self> {
        let range = time_range::resolve(range, clock::now_us(), WhenMissing::Last24Hours)?;
        let given = producer_ids.len();
        if given > MAX_PRODUCERS {
            let message = format!("producer_ids has {given} values, allowed are {MAX_PRODUCERS}");
            return Err(Error::invalid("producer_ids", message));
        }
        for (at, id) in producer_ids.iter().enumerate() {
            let field = format!("producer_ids[{at}]");
            if id.is_empty() {
                return Err(Violation::required(field).into());
            }
            if id.len() > MAX_NAME_BYTES || id.chars().any(char::is_control) {
                let message = format!(
                    "{field} is no producer's name, allowed are {MAX_NAME_BYTES} bytes without control characters"
                );
                return Err(Error::invalid(field, message));
            }
        }
        let first = first.unwrap_or(0);
        if let Some(last) = last.filter(|last| *last < first) {
            let message = format!("last_sequence is {last}, allowed is first_sequence and above: {first}");
            return Err(Error::invalid("last_sequence", message));
        }
        Ok(Self { range, producer_ids, first, last })
    }

    /// Where a page ends, for its token. With the range, which for a preset would have moved by the next page.
    pub fn position(&self, last: &Epoch) -> Vec<u8> {
        let range = [self.range.start_us, self.range.end_us].map(i64::to_be_bytes).concat();
        [&range[..], &last.epoch.to_be_bytes(), last.producer_id.as_bytes()].concat()
    }

    /// Goes on where a token says: after this producer and epoch.
    pub fn go_on(&mut self, payload: &[u8]) -> Result<(String, u64)> {
        let read = || {
            let (start, rest) = payload.split_first_chunk()?;
            let (end, rest) = rest.split_first_chunk()?;
            let (epoch, producer_id) = rest.split_first_chunk()?;
            let after = (String::from_utf8(producer_id.to_vec()).ok()?, u64::from_be_bytes(*epoch));
            Some((i64::from_be_bytes(*start), i64::from_be_bytes(*end), after))
        };
        let message = "page_token cannot be continued any more; repeat the query without it";
        let (start_us, end_us, after) =
            read().ok_or_else(|| Error::invalid_because(Reason::InvalidPageToken, "page_token", message))?;
        (self.range.start_us, self.range.end_us) = (start_us, end_us);
        Ok(after)
    }

    /// Whether a producer is among them.
    pub fn has(&self, producer_id: &str) -> bool {
        self.producer_ids.is_empty() || self.producer_ids.iter().any(|id| id == producer_id)
    }
}

/// Refuses who does not see everything: a producer numbers what it records of all instances and users together, and
/// what lies between two numbers tells of all of them.
pub fn allow(caller: &Caller) -> Result<()> {
    if caller.access().is_everything() {
        return Ok(());
    }
    let message = "a producer's numbers are of all instances together, allowed are callers who see every instance";
    Err(caller.refuse(message.to_owned()))
}

/// The same for a store, which believes nobody.
pub fn check(access: &Access) -> Result<()> {
    if access.is_everything() {
        return Ok(());
    }
    Err(Error::PermissionDenied("a producer's numbers are of all instances together".to_owned()))
}

/// One epoch of one producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// Who numbers.
    pub producer_id: String,
    /// In which epoch.
    pub epoch: u64,
    /// When the first of its numbers came; 0 where that is not known.
    pub first_heard_us: i64,
    /// When the last one did.
    pub last_heard_us: i64,
}

/// A page as it is made: of one epoch after the other, until there are enough. It ends early when it is large, or when
/// enough blocks were read for it.
#[derive(Debug)]
pub struct Page {
    /// In order.
    pub producers: Vec<proto::ProducerCoverage>,
    /// The last of them, where others follow.
    pub next: Option<Epoch>,
    size: usize,
    last: Option<Epoch>,
    bytes: usize,
    blocks: usize,
}

impl Page {
    /// An empty page of up to so many epochs.
    pub fn new(size: usize) -> Self {
        Self { producers: Vec::new(), next: None, size, last: None, bytes: 0, blocks: 0 }
    }

    /// Whether another epoch, which there is, has room on it. If not, the page is finished.
    pub fn has_room(&mut self) -> bool {
        let is_full = self.producers.len() == self.size || self.bytes > MAX_PAGE_BYTES || self.blocks >= MAX_BLOCKS;
        if is_full {
            self.next = self.last.take();
        }
        !is_full
    }

    /// Adds what was found of an epoch, in so many blocks.
    pub fn push(&mut self, epoch: Epoch, covered: Covered, blocks: usize) {
        let message = message(&epoch, covered);
        // With tag and length, each takes some bytes more.
        self.bytes += message.encoded_len() + 8;
        self.blocks += blocks;
        self.producers.push(message);
        self.last = Some(epoch);
    }
}

fn message(epoch: &Epoch, covered: Covered) -> proto::ProducerCoverage {
    let at = |us: i64| (us > 0).then(|| clock::to_timestamp(us));
    let ranges = |ranges: &Ranges| {
        ranges.shown.iter().map(|(first, last)| proto::NumberRange { first: Some(*first), last: Some(*last) }).collect()
    };
    let Covered { received, missing, dropped, through } = covered;
    proto::ProducerCoverage {
        producer_id: epoch.producer_id.clone(),
        epoch: epoch.epoch,
        first_heard_at: at(epoch.first_heard_us),
        last_heard_at: at(epoch.last_heard_us),
        first_sequence: received.ends.map(|(first, _)| first),
        last_sequence: received.ends.map(|(_, last)| last),
        received: Some(received.count),
        missing: Some(missing.count),
        dropped: Some(dropped.count),
        received_ranges: ranges(&received),
        missing_ranges: ranges(&missing),
        dropped_ranges: ranges(&dropped),
        more_ranges: received.more || missing.more || dropped.more,
        through_sequence: through,
    }
}
