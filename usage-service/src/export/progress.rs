//! How far an export of requests has come: all that its resume token carries.

use service_core::error::{Error, Result};
use sha2::digest::common::hazmat::SerializableState as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::answer::Totals;
use crate::model::{Position, RequestRow, Tokens};

/// The window, the watermark, the position, and what the end will say of
/// everything up to here: rows, hash and totals.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// First microsecond inside.
    pub(crate) start_us: i64,
    /// First microsecond after.
    pub(crate) end_us: i64,
    /// The commit at which the export is frozen.
    pub(crate) watermark: i64,
    /// The last row that was written.
    pub(crate) after: Option<Position>,
    /// Sums of the rows so far.
    pub(crate) totals: Totals,
    hash: Sha256,
}

/// Bytes of the state of SHA-256, as `sha2` serializes it: within 0.11 it stays.
const HASH_BYTES: usize = 32 + 8 + 64;
/// SHA-256 counts bits in 64 of them; a state that says it is further is none of ours.
const MAX_BLOCKS: u64 = (u64::MAX >> 9) - 2;

/// How many whole blocks a state is over.
fn blocks(state: &[u8; HASH_BYTES]) -> u64 {
    state[32..40].iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

impl Progress {
    /// The start of an export.
    pub(crate) fn new(start_us: i64, end_us: i64, watermark: i64) -> Self {
        Self { start_us, end_us, watermark, after: None, totals: Totals::default(), hash: Sha256::new() }
    }

    /// Counts a row.
    pub(crate) fn row(&mut self, row: &RequestRow<'_>) {
        let cost = row.charge.ok().map(|(cost_nanos, _)| cost_nanos);
        self.totals.add(&Totals {
            requests: 1,
            failed_requests: u64::from(row.status != crate::model::Status::Ok),
            tokens: row.tokens,
            cost_nanos: cost.unwrap_or(0).into(),
            unpriced_requests: u64::from(cost.is_none()),
            unpriced_tokens: if cost.is_none() { row.tokens.total() } else { 0 },
        });
        self.after = Some(Position { occurred_at_us: row.occurred_at_us, id: row.id });
    }

    /// Hashes bytes that go out.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    /// SHA-256 of all bytes so far.
    pub(crate) fn sha256(&self) -> Vec<u8> {
        self.hash.clone().finalize().to_vec()
    }

    /// For the token.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        for number in [self.start_us, self.end_us, self.watermark] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        // Without a row yet: the nil id, which no event has.
        let (at, id) = self.after.map_or((0, Uuid::nil()), |p| (p.occurred_at_us, p.id));
        out.extend_from_slice(&at.to_be_bytes());
        out.extend_from_slice(id.as_bytes());
        let Totals { requests, failed_requests, tokens, cost_nanos, unpriced_requests, unpriced_tokens } = self.totals;
        for count in [requests, failed_requests, unpriced_requests] {
            out.extend_from_slice(&count.to_be_bytes());
        }
        for count in [
            unpriced_tokens,
            tokens.input_uncached,
            tokens.input_cache_read,
            tokens.input_cache_write,
            tokens.input_cache_write_1h,
            tokens.output,
            tokens.output_reasoning,
        ] {
            out.extend_from_slice(&count.to_be_bytes());
        }
        out.extend_from_slice(&cost_nanos.to_be_bytes());
        out.extend_from_slice(&self.hash.serialize());
        out
    }

    /// From a token that was sealed by this service.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Reader(bytes).progress().ok_or_else(|| {
            // Sealed, so ours; but another version's.
            Error::invalid_because(
                service_core::error::Reason::InvalidPageToken,
                "resume_token",
                "resume_token is of another version of the service; start the export over",
            )
        })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn progress(mut self) -> Option<Progress> {
        let (start_us, end_us, watermark) = (self.i64()?, self.i64()?, self.i64()?);
        let position = Position { occurred_at_us: self.i64()?, id: Uuid::from_bytes(self.take()?) };
        let (requests, failed_requests, unpriced_requests) = (self.u64()?, self.u64()?, self.u64()?);
        let unpriced_tokens = self.i64()?;
        let tokens = Tokens {
            input_uncached: self.i64()?,
            input_cache_read: self.i64()?,
            input_cache_write: self.i64()?,
            input_cache_write_1h: self.i64()?,
            output: self.i64()?,
            output_reasoning: self.i64()?,
        };
        let cost_nanos = self.take().map(i128::from_be_bytes)?;
        let state: [u8; HASH_BYTES] = self.take()?;
        let hash = Sha256::deserialize(&state.into()).ok().filter(|_| blocks(&state) <= MAX_BLOCKS)?;
        self.0.is_empty().then_some(Progress {
            start_us,
            end_us,
            watermark,
            after: (!position.id.is_nil()).then_some(position),
            totals: Totals { requests, failed_requests, tokens, cost_nanos, unpriced_requests, unpriced_tokens },
            hash,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_goes_on_where_it_was_sealed() {
        let mut whole = Progress::new(1, 2, 3);
        whole.totals.cost_nanos = -5;
        whole.totals.tokens.output = 7;
        whole.after = Some(Position { occurred_at_us: 9, id: Uuid::from_u128(4) });
        for length in [0, 1, 63, 64, 65, 1_000] {
            whole.bytes(&vec![b'x'; length]);
            let sealed = whole.to_bytes();
            let mut resumed = Progress::from_bytes(&sealed).expect("its own");
            assert_eq!(resumed.sha256(), whole.sha256());
            assert_eq!((resumed.after, resumed.totals), (whole.after, whole.totals));
            resumed.bytes(b"tail");
            let mut straight = whole.clone();
            straight.bytes(b"tail");
            assert_eq!(resumed.sha256(), straight.sha256());
            assert!(Progress::from_bytes(&sealed[1..]).is_err());
        }
    }
}
