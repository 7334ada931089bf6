//! Which block of which producer's numbers an event's own is in.

use service_core::numbers::block_of;

use crate::event::Producer;

/// Which part of which set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NumberBlock {
    /// Who numbers.
    pub producer_id: String,
    /// In which epoch.
    pub epoch: u64,
    /// Which of the blocks.
    pub block: u64,
}

impl NumberBlock {
    /// The block that holds an event's number.
    pub(crate) fn of(producer: &Producer) -> Self {
        Self { producer_id: producer.id.clone(), epoch: producer.epoch, block: block_of(producer.sequence) }
    }

    /// Whether it is the block that holds an event's number.
    pub(crate) fn holds(&self, producer: &Producer) -> bool {
        self.producer_id == producer.id && self.epoch == producer.epoch && self.block == block_of(producer.sequence)
    }
}
