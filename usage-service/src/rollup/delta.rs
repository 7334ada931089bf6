//! What a transaction adds, as a small blob with its own texts.
use super::{FullRow, Malformed, Overlay};
use crate::model::Event;

/// A row of a delta, with ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeltaRow {
    /// First microsecond of its quarter.
    pub(crate) quarter_us: i64,
    /// The instance's id.
    pub(crate) instance: u32,
    /// Keys and sums.
    pub(crate) row: FullRow,
}

/// What a transaction added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delta {}

/// Sums up what a transaction accepted: events with their costs.
pub(crate) fn encode<'a>(_rows: impl IntoIterator<Item = (&'a Event, Option<i64>)>) -> Vec<u8> {
    unimplemented!()
}

impl Delta {
    pub(crate) fn decode(_bytes: &[u8]) -> Result<Self, Malformed> {
        unimplemented!()
    }
    pub(crate) fn resolve(&self, _overlay: &mut Overlay) -> Vec<DeltaRow> {
        unimplemented!()
    }
    pub(crate) fn bytes(&self) -> usize {
        unimplemented!()
    }
}
