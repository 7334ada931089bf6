//! What proves an audit log, without the log: whoever has an entry's line, a proof and a pinned key needs nothing else.
//!
//! ```text
//! line ─▶ leaf hash ─┐
//! proof ─────────────┴─▶ root ─ is it the checkpoint's? ─▶ signature ─ by a key that is pinned for its size? ─▶ proven
//! ```
//!
//! - [`merkle`]: the tree over a log, its tiles and its proofs.
//! - [`checkpoint`]: what is signed of it, and the keys.
//! - [`PinnedKey`]: a key that is believed, for which logs and sizes.
//! - [`receipt`]: an entry against all three, as its writer has them.
//!
//! The service that keeps the log makes its proofs with this, and who checks them does so with the same: the verifier of
//! exports, and gateway-sdk, which must not know the service.

pub mod checkpoint;
pub mod merkle;
mod pinned;
pub mod receipt;

pub use pinned::{NotBelieved, PinnedKey, Signers, WrongPin, signed_by};
