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
    cells: Cells,
    /// The quarter that the window's end cuts, if what waits of it counts too, by all keys.
    end_us: Option<i64>,
    of_end: Cells,
    /// All quarters that deltas have rows of.
    pub(in crate::store) touched: HashSet<i64>,
}

/// Cells that are added up once there are many.
struct Cells {
    cells: Vec<Cell>,
    /// How many are looked over next.
    limit: usize,
}

impl Cells {
    fn new() -> Self {
        Self { cells: Vec::new(), limit: FEW }
    }

    fn add_up(&mut self) {
        if self.cells.len() >= self.limit {
            add_up(&mut self.cells);
            self.limit = FEW.max(2 * self.cells.len());
        }
    }
}

impl Waiting {
    /// For an answer that tells these dimensions apart, of a window that ends in a quarter, if it is answered by that.
    pub(in crate::store) fn new(
        plan: Plan,
        filter: IdFilter,
        overlay: Overlay,
        dimensions: &[Dimension],
        end_us: Option<i64>,
    ) -> Self {
        let mut needed = [false; KEYS.len()];
        let places = dimensions.iter().filter_map(|dimension| place(*dimension));
        places.chain([USER, MODEL]).for_each(|place| needed[place] = true);
        let (cells, of_end) = (Cells::new(), Cells::new());
        Self { plan, needed, filter, overlay, cells, end_us, of_end, touched: HashSet::new() }
    }

    pub(in crate::store) fn add(&mut self, _commit_number: i64, delta: Result<Delta>) -> Result<()> {
        for row in delta?.resolve(&mut self.overlay) {
            self.touched.insert(row.quarter_us);
            let instance = row.instance;
            if !self.filter.admits(Dimension::Instance, instance) {
                continue;
            }
            if self.end_us == Some(row.quarter_us) {
                self.of_end.cells.push(Cell { bucket: 0, instance, row: row.row });
            } else if let Some(bucket) = self.plan.bucket_of(row.quarter_us) {
                let mut keys = row.row.keys;
                keys.iter_mut().zip(self.needed).filter(|(_, needed)| !needed).for_each(|(id, _)| *id = 0);
                self.cells.cells.push(Cell { bucket, instance, row: FullRow { keys, ..row.row } });
            }
        }
        self.cells.add_up();
        self.of_end.add_up();
        Ok(())
    }

    /// What waits of spans, and of the quarter of the end.
    pub(in crate::store) fn take_cells(&mut self) -> (Vec<Cell>, Vec<Cell>) {
        (std::mem::take(&mut self.cells.cells), std::mem::take(&mut self.of_end.cells))
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
