//! Pages: their size, their limit in bytes, and the tokens that continue them.
//!
//! A token is `base64url(tag ‖ payload)`. The tag is an HMAC-SHA256 under the
//! deployment's key over the token's kind, a hash of the query and the payload,
//! so that a client can neither forge a position nor carry it to another query.
//! The payload is veiled by a stream that is made of key and tag (as in RFC 5297, the
//! tag is the nonce): beside positions it may hold counts that are of all instances,
//! and they are nobody's business.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::error::{Error, Reason, Result};

/// Rows on a page when the request does not say.
pub const DEFAULT_PAGE_SIZE: usize = 50;
/// The largest page that may be asked for.
pub const MAX_PAGE_SIZE: usize = 1_000;
/// A page ends early rather than pass this many encoded bytes.
pub const MAX_PAGE_BYTES: usize = 1024 * 1024;
/// Longer tokens are not ours and are not decoded.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

const TAG_BYTES: usize = 32;

/// The page size to use: zero (absent) is [`DEFAULT_PAGE_SIZE`], 1 to
/// [`MAX_PAGE_SIZE`] as given, everything else is refused.
pub fn page_size(requested: impl Into<i64>) -> Result<usize> {
    let requested = requested.into();
    match usize::try_from(requested) {
        Ok(0) => Ok(DEFAULT_PAGE_SIZE),
        Ok(size) if size <= MAX_PAGE_SIZE => Ok(size),
        _ => Err(Error::invalid(
            "page_size",
            format!("page_size is {requested}, allowed are 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}"),
        )),
    }
}

/// A hash that identifies a query: of its parts, each with its length, so that
/// `["ab", "c"]` and `["a", "bc"]` differ. Give it everything that decides which
/// rows come and in which order, and nothing that may change between pages.
pub fn query_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Makes and opens tokens under one key.
#[derive(Clone)]
pub struct Sealer {
    key: [u8; 32],
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer([redacted])")
    }
}

impl Sealer {
    /// A sealer under the deployment's key ([`crate::database::Database::seal_key`]).
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// A token for `payload` that opens only for the same kind and query.
    ///
    /// `kind` keeps the tokens of different RPCs apart, as in `list_entries.page`.
    pub fn seal(&self, kind: &str, query_hash: &[u8; 32], payload: &[u8]) -> String {
        let tag = self.mac(kind, query_hash, payload).finalize().into_bytes();
        let mut token = Vec::with_capacity(TAG_BYTES + payload.len());
        token.extend_from_slice(&tag);
        token.extend_from_slice(payload);
        self.veil(&tag, &mut token[TAG_BYTES..]);
        URL_SAFE_NO_PAD.encode(token)
    }

    /// The payload of a token in the request field `page_token`.
    ///
    /// Fails with `INVALID_PAGE_TOKEN` if the token is damaged, of another
    /// deployment, of another kind, or of another query.
    pub fn open(&self, kind: &str, query_hash: &[u8; 32], token: &str) -> Result<Vec<u8>> {
        self.open_field("page_token", kind, query_hash, token)
    }

    /// As [`Sealer::open`], for a token in another request field.
    pub fn open_field(&self, field: &str, kind: &str, query_hash: &[u8; 32], token: &str) -> Result<Vec<u8>> {
        let refused = || {
            Error::invalid_because(
                Reason::InvalidPageToken,
                field,
                format!("{field} is damaged or belongs to another query; repeat the query without it"),
            )
        };
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused());
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
        if bytes.len() < TAG_BYTES {
            return Err(refused());
        }
        let mut payload = bytes.split_off(TAG_BYTES);
        self.veil(&bytes, &mut payload);
        self.mac(kind, query_hash, &payload).verify_slice(&bytes).map_err(|_| refused())?;
        Ok(payload)
    }

    /// Makes a payload unreadable, or readable again.
    fn veil(&self, tag: &[u8], payload: &mut [u8]) {
        for (number, block) in (0_u64..).zip(payload.chunks_mut(TAG_BYTES)) {
            let mut mac = self.hmac();
            // No kind is so long: a veil is no tag.
            mac.update(&u64::MAX.to_be_bytes());
            mac.update(tag);
            mac.update(&number.to_be_bytes());
            block.iter_mut().zip(mac.finalize().into_bytes()).for_each(|(byte, veil)| *byte ^= veil);
        }
    }

    fn hmac(&self) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        Hmac::<Sha256>::new_from_slice(&self.key).expect("any key length")
    }

    fn mac(&self, kind: &str, query_hash: &[u8; 32], payload: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.hmac();
        mac.update(&(kind.len() as u64).to_be_bytes());
        mac.update(kind.as_bytes());
        mac.update(query_hash);
        mac.update(payload);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: [u8; 32] = [1; 32];

    fn sealer() -> Sealer {
        Sealer::new([7; 32])
    }

    fn assert_refused(result: Result<Vec<u8>>) {
        let error = result.expect_err("refused");
        assert_eq!(error.reason(), Reason::InvalidPageToken);
    }

    #[test]
    fn a_token_opens_for_its_own_query() {
        let token = sealer().seal("list", &QUERY, b"position");
        assert_eq!(sealer().open("list", &QUERY, &token).expect("opens"), b"position");
        let empty = sealer().seal("list", &QUERY, b"");
        assert_eq!(sealer().open("list", &QUERY, &empty).expect("opens"), b"");
    }

    #[test]
    fn a_payload_cannot_be_read_and_says_nothing_by_being_like_another() {
        let seal = |payload: &[u8]| URL_SAFE_NO_PAD.decode(sealer().seal("list", &QUERY, payload)).expect("ours");
        for length in [1, 31, 32, 33, 64, 200] {
            let (one, other) = (vec![0; length], [vec![0; length - 1], vec![1]].concat());
            let (one_sealed, other_sealed) = (seal(&one), seal(&other));
            assert_eq!(one_sealed.len(), TAG_BYTES + length);
            assert_ne!(one_sealed[TAG_BYTES..], one);
            if length > 16 {
                let same = |at: &usize| one_sealed[*at] == other_sealed[*at];
                assert!((TAG_BYTES..TAG_BYTES + length).filter(same).count() < length / 2);
            }
            assert_eq!(sealer().open("list", &QUERY, &URL_SAFE_NO_PAD.encode(one_sealed)).expect("opens"), one);
        }
    }

    #[test]
    fn a_token_of_another_query_kind_or_key_is_refused() {
        let token = sealer().seal("list", &QUERY, b"position");
        assert_refused(sealer().open("list", &[2; 32], &token));
        assert_refused(sealer().open("export", &QUERY, &token));
        assert_refused(Sealer::new([8; 32]).open("list", &QUERY, &token));
    }

    #[test]
    fn a_token_with_any_byte_changed_is_refused() {
        let token = sealer().seal("list", &QUERY, b"position");
        let bytes = URL_SAFE_NO_PAD.decode(&token).expect("ours");
        for at in 0..bytes.len() {
            let mut tampered = bytes.clone();
            tampered[at] ^= 1;
            assert_refused(sealer().open("list", &QUERY, &URL_SAFE_NO_PAD.encode(tampered)));
        }
        for cut in 0..bytes.len() {
            assert_refused(sealer().open("list", &QUERY, &URL_SAFE_NO_PAD.encode(&bytes[..cut])));
        }
        for garbage in ["", "!", "ä", &"A".repeat(MAX_TOKEN_BYTES + 1)] {
            assert_refused(sealer().open("list", &QUERY, garbage));
        }
    }

    #[test]
    fn page_sizes_are_bounded() {
        assert_eq!(page_size(0_u32).expect("default"), 50);
        assert_eq!(page_size(1_u32).expect("smallest"), 1);
        assert_eq!(page_size(1_000_i32).expect("largest"), 1_000);
        for bad in [-1_i64, 1_001, i64::MAX] {
            let error = page_size(bad).expect_err("refused");
            assert!(error.to_string().contains(&bad.to_string()), "{error}");
        }
    }

    #[test]
    fn query_parts_do_not_run_together() {
        let parts = |parts: &[&'static [u8]]| query_hash(parts.iter().copied());
        assert_ne!(parts(&[b"ab", b"c"]), parts(&[b"a", b"bc"]));
        assert_ne!(parts(&[b""]), parts(&[]));
        assert_eq!(parts(&[b"a", b"b"]), parts(&[b"a", b"b"]));
    }
}
