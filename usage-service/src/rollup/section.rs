//! A section of a segment: sums by key in packed columns, and as a blob.
use super::{Cut, FullRow, Malformed, Values};

/// A section with more rows or bytes than a blob may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a rollup of {0} bytes is larger than may be stored")]
pub(crate) struct TooLarge(pub(crate) usize);

/// A section: sorted by its keys, which occur once each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {}

impl Section {
    pub(crate) fn merge(_existing: Option<&Self>, _rows: Vec<FullRow>) -> Self {
        unimplemented!()
    }
    pub(crate) fn single(_full: &Self, _cut: Cut) -> Self {
        unimplemented!()
    }
    pub(crate) fn encode(&self) -> Result<Vec<u8>, TooLarge> {
        unimplemented!()
    }
    /// Fails also where the blob is of another cut.
    pub(crate) fn decode(_cut: Cut, _bytes: &[u8]) -> Result<Self, Malformed> {
        unimplemented!()
    }
    pub(crate) fn cut(&self) -> Cut {
        unimplemented!()
    }
    pub(crate) fn rows(&self) -> usize {
        unimplemented!()
    }
    pub(crate) fn bytes(&self) -> usize {
        unimplemented!()
    }
    /// Whether all ids are known texts.
    pub(crate) fn knows(&self, _values: &Values) -> bool {
        unimplemented!()
    }
    /// Sums over all rows (for the reconciler).
    pub(crate) fn sums(&self) -> [i128; super::MEASURES] {
        unimplemented!()
    }
}
