//! The one fold behind every total.
use super::{Cut, FullRow, Malformed, OutOfRange, Overlay, Section};
use crate::fold::Ranked;
use crate::model::{Dimension, Filter, Metric};

/// A filter by ids: of each dimension what is let through, sorted; none lets all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdFilter {
    lists: [Option<Vec<u32>>; Dimension::ALL.len()],
}

impl IdFilter {
    /// Labels are not looked at: they need raw rows.
    pub(crate) fn new(_filter: &Filter, _overlay: &mut Overlay) -> Self {
        unimplemented!()
    }
    pub(crate) fn list(&self, dimension: Dimension) -> Option<&[u32]> {
        self.lists[dimension as usize].as_deref()
    }
    /// Whether a segment of an instance counts.
    pub(crate) fn admits(&self, _dimension: Dimension, _id: u32) -> bool {
        unimplemented!()
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) keys: Vec<Dimension>,
    pub(crate) filter: IdFilter,
    pub(crate) buckets: usize,
}

impl Question {
    /// The sections that answer it.
    pub(crate) fn cut(&self) -> Cut {
        unimplemented!()
    }
}

/// The groups that rank highest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranking {
    pub(crate) chosen: Vec<[u32; 3]>,
    pub(crate) groups: u64,
}

/// Finds the groups that rank highest.
#[derive(Debug)]
pub(crate) struct Ranker<'a> {
    _question: &'a Question,
}

impl<'a> Ranker<'a> {
    pub(crate) fn new(_question: &'a Question, _order_by: Metric, _overlay: &Overlay) -> Self {
        unimplemented!()
    }
    /// Fails when the section lacks a key that the question needs.
    pub(crate) fn add_section(&mut self, _instance: u32, _section: &Section) -> Result<(), Malformed> {
        unimplemented!()
    }
    pub(crate) fn add_row(&mut self, _instance: u32, _row: &FullRow) {
        unimplemented!()
    }
    pub(crate) fn finish(self, _overlay: &Overlay, _limit: usize) -> Ranking {
        unimplemented!()
    }
}

/// Adds up.
#[derive(Debug)]
pub(crate) struct Tally<'a> {
    _question: &'a Question,
}

impl<'a> Tally<'a> {
    /// Without `chosen` no groups are told apart: all is the total. A question without keys has one group, `[0; 3]`.
    pub(crate) fn new(_question: &'a Question, _chosen: Option<&[[u32; 3]]>) -> Self {
        unimplemented!()
    }
    pub(crate) fn add_section(&mut self, _bucket: usize, _instance: u32, _section: &Section) -> Result<(), Malformed> {
        unimplemented!()
    }
    pub(crate) fn add_row(&mut self, _bucket: usize, _instance: u32, _row: &FullRow) {
        unimplemented!()
    }
    pub(crate) fn finish(self, _overlay: &Overlay, _groups: u64) -> Result<Ranked, OutOfRange> {
        unimplemented!()
    }
}
