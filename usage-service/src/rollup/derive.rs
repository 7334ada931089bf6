//! Sections made of sections: with fewer keys, or of a longer time.
//!
//! Neither changes an answer. Sums are whole numbers and sets are sets, so it comes to the same whether rows are first
//! added up here or only by the answer; but here it is done once.

use std::cmp::Ordering;

use super::column::{Column, Rows};
use super::distinct::Distinct;
use super::index::Index;
use super::section::{Section, counts};
use super::sets::Sets;
use super::{Cut, KEYS, MODEL, USER};

impl Section {
    /// What a full section comes to by fewer keys.
    ///
    /// # Panics
    ///
    /// If `full` is not a full one.
    pub(crate) fn project(full: &Self, cut: Cut) -> Self {
        assert_eq!(full.cut(), Cut::FULL, "others are made of full sections");
        if cut == Cut::FULL {
            return full.clone();
        }
        let (keys, groups) = groups(full, cut);
        let all = Rows::Range(0..full.rows());
        let columns = cut.places().map(|place| {
            let ids: Vec<i64> = keys.iter().map(|keys| keys[place].into()).collect();
            Column::packed(&ids)
        });
        let measures = std::array::from_fn(|measure| summed(&[(full.measure(measure).0, &groups)], keys.len()));
        let sets = |of: usize| {
            let column = full.key(of).filter(|_| !cut.has(of))?;
            let mut sets = vec![Distinct::default(); keys.len()];
            column.each_id(&all, |row, id| {
                if counts(of, id) {
                    sets[groups[row] as usize].insert(id);
                }
            });
            let mut result = Sets::default();
            sets.into_iter().for_each(|set| result.push(&set.into_ids()));
            Some(result.finish())
        };
        Self::new(cut, columns.collect(), measures, sets(USER), sets(MODEL))
    }

    /// Two of the same cut as one: what an answer adds up of the one and of the other.
    ///
    /// # Panics
    ///
    /// If they are not of the same cut.
    pub(crate) fn unite(left: &Self, right: &Self) -> Self {
        let cut = left.cut();
        assert_eq!(cut, right.cut(), "sections of one cut are united");
        let joined = Joined::of(cut, left, right);
        let keys = cut.places().map(|place| {
            let id =
                |section: &Self, row: u32| section.key(place).map_or(0, |column| i64::from(column.id(row as usize)));
            let mut ids = vec![0; joined.count];
            for (section, places) in [(left, &joined.of_left), (right, &joined.of_right)] {
                (0..).zip(places).for_each(|(row, place)| ids[*place as usize] = id(section, row));
            }
            Column::packed(&ids)
        });
        let measures = std::array::from_fn(|measure| {
            let (left, right) = (left.measure(measure).0, right.measure(measure).0);
            summed(&[(left, &joined.of_left), (right, &joined.of_right)], joined.count)
        });
        let sets = |of: usize| Some(united(left.sets(of)?, right.sets(of)?, &joined));
        Self::new(cut, keys.collect(), measures, sets(USER), sets(MODEL))
    }
}

/// Adds up the numbers of columns in their rows' places, of which there are `count`.
fn summed(columns: &[(&Column, &[u32])], count: usize) -> Column {
    let mut sums = vec![0; count];
    if columns.iter().all(|(column, places)| column.add_to(places, &mut sums)) {
        return Column::packed(&sums);
    }
    // Hardly ever: sums of more than 64 bits.
    let mut sums = vec![0_i128; count];
    for (column, places) in columns {
        places.iter().enumerate().for_each(|(row, place)| sums[*place as usize] += column.get(row));
    }
    let mut result = Column::default();
    sums.into_iter().for_each(|sum| result.push(sum));
    result.shrink();
    result
}

/// Where the rows of two sections come to be in one: its rows are no more than theirs, which have numbers of 32 bits.
struct Joined {
    count: usize,
    of_left: Vec<u32>,
    of_right: Vec<u32>,
}

impl Joined {
    fn of(cut: Cut, left: &Section, right: &Section) -> Self {
        let mut joined = Self { count: 0, of_left: Vec::new(), of_right: Vec::new() };
        joined.of_left.reserve_exact(left.rows());
        joined.of_right.reserve_exact(right.rows());
        while joined.of_left.len() < left.rows() || joined.of_right.len() < right.rows() {
            let (at, other) = (joined.of_left.len(), joined.of_right.len());
            let order = match (at < left.rows(), other < right.rows()) {
                (true, true) => compare(cut, left, at, right, other),
                (true, false) => Ordering::Less,
                _ => Ordering::Greater,
            };
            // Both where their keys are the same.
            if order.is_le() {
                joined.of_left.push(joined.count as u32);
            }
            if order.is_ge() {
                joined.of_right.push(joined.count as u32);
            }
            joined.count += 1;
        }
        joined
    }
}

/// The sets of the rows as they come to be.
fn united(left: &Sets, right: &Sets, joined: &Joined) -> Sets {
    let mut result = Sets::default();
    let (mut both, mut all) = (Vec::new(), Vec::new());
    let (mut at, mut other) = (0, 0);
    for place in 0..joined.count as u32 {
        let here = joined.of_left.get(at) == Some(&place);
        let there = joined.of_right.get(other) == Some(&place);
        both.clear();
        if here {
            left.append(at, &mut both);
        }
        let from = both.len();
        if there {
            right.append(other, &mut both);
        }
        if here && there {
            all.clear();
            merge(&both[..from], &both[from..], &mut all);
            result.push(&all);
        } else {
            result.push(&both);
        }
        at += usize::from(here);
        other += usize::from(there);
    }
    result.finish()
}
/// The keys of a cut's groups, rising (0 where it tells nothing apart), and the group of each row.
fn groups(full: &Section, cut: Cut) -> (Vec<[u32; KEYS.len()]>, Vec<u32>) {
    let mut places = cut.places();
    if let (Some(place), None) = (places.next(), places.next())
        && let Some(column) = full.key(place)
    {
        return groups_of_one(place, column, full.rows());
    }
    let mut keys = vec![[0; KEYS.len()]; full.rows()];
    for place in cut.places() {
        if let Some(column) = full.key(place) {
            column.each_id(&Rows::Range(0..full.rows()), |row, id| keys[row][place] = id);
        }
    }
    // Rows of a section have numbers of 32 bits, and groups are no more.
    let mut order: Vec<u32> = (0..full.rows() as u32).collect();
    order.sort_unstable_by_key(|row| keys[*row as usize]);
    let mut found: Vec<[u32; KEYS.len()]> = Vec::new();
    let mut groups = vec![0; full.rows()];
    for row in order {
        let key = keys[row as usize];
        if found.last() != Some(&key) {
            found.push(key);
        }
        groups[row as usize] = found.len() as u32 - 1;
    }
    (found, groups)
}

/// The same for one key, without sorting rows.
fn groups_of_one(place: usize, column: &Column, rows: usize) -> (Vec<[u32; KEYS.len()]>, Vec<u32>) {
    let all = Rows::Range(0..rows);
    let mut ids = Distinct::default();
    column.each_id(&all, |_, id| ids.insert(id));
    let ids = ids.into_ids();
    let mut index = Index::new([ids.last().map_or(1, |last| last.saturating_add(1)), 1, 1]);
    for (group, id) in ids.iter().enumerate() {
        index.get_or_insert([*id, 0, 0], group as u32);
    }
    let mut groups = vec![0; rows];
    // Every id was just given a group.
    column.each_id(&all, |row, id| groups[row] = index.get([id, 0, 0]).unwrap_or(0));
    let key = |id: u32| std::array::from_fn(|at| if at == place { id } else { 0 });
    (ids.into_iter().map(key).collect(), groups)
}

fn compare(cut: Cut, left: &Section, at: usize, right: &Section, other: usize) -> Ordering {
    let compare = |place| {
        let id = |section: &Section, row| section.key(place).map_or(0, |column| column.id(row));
        match id(left, at).cmp(&id(right, other)) {
            Ordering::Equal => None,
            order => Some(order),
        }
    };
    cut.places().find_map(compare).unwrap_or(Ordering::Equal)
}

/// The union of two lists that rise.
fn merge(left: &[u32], right: &[u32], into: &mut Vec<u32>) {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    while let (Some(here), Some(there)) = (left.peek(), right.peek()) {
        let (here, there) = (**here, **there);
        into.push(here.min(there));
        left.next_if(|_| here <= there);
        right.next_if(|_| there <= here);
    }
    into.extend(left);
    into.extend(right);
}
