//! What waits to be sealed, as an answer needs it: added up as it is read, so that however much waits, no more is held
//! than there are groups.

use std::collections::HashSet;

use service_core::error::Result;

use crate::model::Dimension;
use crate::rollup::{Delta, FullRow, IdFilter, KEYS, MEASURES, MODEL, Overlay, Plan, USER, place};
use crate::store::cells::Cell;

/// So many rows are looked over for equal ones for the first time.
const FEW: usize = 1 << 16;

/// The rows of deltas that count.
pub(in crate::store) struct Waiting {
    plan: Plan,
    /// Which keys the answer tells apart; distinct counts need users and models.
    needed: [bool; KEYS.len()],
    pub(in crate::store) filter: IdFilter,
    pub(in crate::store) overlay: Overlay,
    pub(in crate::store) cells: Vec<Cell>,
    /// All quarters that deltas have rows of.
    pub(in crate::store) touched: HashSet<i64>,
    /// How many rows are looked over next.
    limit: usize,
}

impl Waiting {
    /// For an answer that tells these dimensions apart.
    pub(in crate::store) fn new(plan: Plan, filter: IdFilter, overlay: Overlay, dimensions: &[Dimension]) -> Self {
        let mut needed = [false; KEYS.len()];
        let places = dimensions.iter().filter_map(|dimension| place(*dimension));
        places.chain([USER, MODEL]).for_each(|place| needed[place] = true);
        let (cells, touched) = (Vec::new(), HashSet::new());
        Self { plan, needed, filter, overlay, cells, touched, limit: FEW }
    }

    pub(in crate::store) fn add(&mut self, _commit_number: i64, delta: Result<Delta>) -> Result<()> {
        for row in delta?.resolve(&mut self.overlay) {
            self.touched.insert(row.quarter_us);
            if let Some(bucket) = self.plan.bucket_of(row.quarter_us)
                && self.filter.admits(Dimension::Instance, row.instance)
            {
                let mut keys = row.row.keys;
                keys.iter_mut().zip(self.needed).filter(|(_, needed)| !needed).for_each(|(id, _)| *id = 0);
                let row_of = FullRow { keys, ..row.row };
                self.cells.push(Cell { bucket, instance: row.instance, row: row_of });
            }
        }
        if self.cells.len() >= self.limit {
            add_up(&mut self.cells);
            self.limit = FEW.max(2 * self.cells.len());
        }
        Ok(())
    }
}

/// Makes one of those that agree. A sum that would leave 64 bits goes on in another.
fn add_up(cells: &mut Vec<Cell>) {
    let key = |cell: &Cell| (cell.bucket, cell.instance, cell.row.keys);
    cells.sort_unstable_by_key(key);
    cells.dedup_by(|next, first| {
        if key(next) != key(first) {
            return false;
        }
        let mut sums = [0; MEASURES];
        for (at, sum) in sums.iter_mut().enumerate() {
            let Some(both) = first.row.measures[at].checked_add(next.row.measures[at]) else { return false };
            *sum = both;
        }
        first.row.measures = sums;
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_are_one_unless_their_sum_is_too_large() {
        let cell = |user: u32, cost: i64| {
            let mut measures = [1; MEASURES];
            measures[8] = cost;
            Cell { bucket: 0, instance: 1, row: FullRow { keys: [user, 0, 0, 0, 1, 0], measures } }
        };
        let mut cells = vec![cell(2, 5), cell(1, i64::MAX), cell(2, 7), cell(1, 1), cell(2, -2)];
        add_up(&mut cells);
        let found: Vec<_> = cells.iter().map(|cell| (cell.row.keys[0], cell.row.measures[0])).collect();
        assert_eq!(found, [(1, 1), (1, 1), (2, 3)]);
        let cost: i128 = cells.iter().map(|cell| i128::from(cell.row.measures[8])).sum();
        assert_eq!(cost, i128::from(i64::MAX) + 1 + 10);
    }
}
