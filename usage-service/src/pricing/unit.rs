//! The units that prices are for, and how they contain one another.
//!
//! A unit is a point in a space of dimensions: `input_tokens` is {family: tokens, direction: input},
//! `cache_read_tokens` adds {token_type: cache_read}. A unit whose dimensions are a subset of
//! another's contains it: those tokens are counted in both, and are paid for once, at the price of
//! the most specific unit that has one. Two units that overlap without either containing the other
//! (audio, cache reads) meet in a third, their join (cached audio).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::decimal::COMMON_PER;

/// The units of the six counters that each event carries, in this order the first six of any book.
pub(super) const TOKEN_UNITS: [&str; 6] = [
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_reasoning_tokens",
];
pub(super) const INPUT: usize = 0;
pub(super) const OUTPUT: usize = 1;
pub(super) const CACHE_READ: usize = 2;
pub(super) const CACHE_WRITE: usize = 3;
pub(super) const CACHE_WRITE_1H: usize = 4;
pub(super) const REASONING: usize = 5;

/// The unit of which each event has exactly one.
const REQUESTS: &str = "requests";

/// A set of units, one bit each.
pub(super) type Set = u128;
pub(super) const MAX_UNITS: usize = Set::BITS as usize;

pub(super) const fn bit(unit: usize) -> Set {
    1 << unit
}

/// The members of a set, in the order of their numbers.
pub(super) fn members(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (set != 0).then(|| {
            let unit = set.trailing_zeros() as usize;
            set &= set - 1;
            unit
        })
    })
}

/// One unit of the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// What counts of it are called in an event's `other_units`: `web_searches`.
    pub name: Box<str>,
    /// What its price is called in the book: `web_searches_kcount`.
    pub price_key: Box<str>,
    /// How many of it the price is for: 1,000.
    pub per: i64,
    pub(super) number: usize,
    /// `COMMON_PER / per`.
    pub(super) factor: i64,
    pub(super) dimensions: BTreeMap<String, String>,
}

impl Unit {
    fn contains(&self, other: &Self) -> bool {
        self.dimensions.iter().all(|(key, value)| other.dimensions.get(key) == Some(value))
    }

    fn overlaps(&self, other: &Self) -> bool {
        let agrees = |(key, value)| other.dimensions.get(key).is_none_or(|theirs| theirs == value);
        self.dimensions.iter().all(agrees)
    }
}

/// A unit as a file defines it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    pub(super) per: i64,
    pub(super) price_key: String,
    pub(super) dimensions: BTreeMap<String, String>,
}

/// Where two units meet that overlap without one containing the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// They do not meet, or one contains the other.
    None,
    At(usize),
    /// They meet in a unit that the book does not define: not to be priced together.
    Undefined,
}

/// All units of a book and their relations, worked out once.
#[derive(Debug)]
pub(super) struct Units {
    all: Vec<Arc<Unit>>,
    by_name: HashMap<Box<str>, usize>,
    by_price_key: HashMap<Box<str>, usize>,
    /// For each unit those that contain it.
    containers: Vec<Set>,
    joins: Vec<Vec<Join>>,
    requests: Option<usize>,
}

impl Units {
    /// `definitions` has each name once.
    pub(super) fn new(definitions: &[(String, Definition)]) -> Result<Self, String> {
        let mut ordered = Vec::with_capacity(definitions.len());
        for name in TOKEN_UNITS {
            let found = definitions.iter().find(|(n, _)| n == name);
            ordered.push(found.ok_or_else(|| format!("the unit {name} is not defined"))?);
        }
        ordered.extend(definitions.iter().filter(|(n, _)| !TOKEN_UNITS.contains(&n.as_str())));
        if ordered.len() > MAX_UNITS {
            return Err(format!("{} units are defined, at most {MAX_UNITS} are allowed", ordered.len()));
        }
        let mut units = Self {
            all: Vec::new(),
            by_name: HashMap::new(),
            by_price_key: HashMap::new(),
            containers: Vec::new(),
            joins: Vec::new(),
            requests: None,
        };
        for (number, (name, definition)) in ordered.into_iter().enumerate() {
            units.define(number, name, definition)?;
        }
        units.requests = units.by_name(REQUESTS);
        units.relate();
        Ok(units)
    }

    fn define(&mut self, number: usize, name: &str, definition: &Definition) -> Result<(), String> {
        let per = definition.per;
        if per < 1 || COMMON_PER % per != 0 {
            return Err(format!("{name}: per {per} does not divide {COMMON_PER}; use 1, 60, 1000, 3600, 1000000 …"));
        }
        if definition.dimensions.is_empty() {
            return Err(format!("{name}: dimensions are empty, at least {{\"family\": …}} is needed"));
        }
        if let Some(twin) = self.all.iter().find(|u| u.dimensions == definition.dimensions) {
            return Err(format!("{name}: has the same dimensions as {}", twin.name));
        }
        if self.by_price_key.insert(definition.price_key.as_str().into(), number).is_some() {
            return Err(format!("{name}: price_key {:?} is another unit's", definition.price_key));
        }
        self.by_name.insert(name.into(), number);
        self.all.push(Arc::new(Unit {
            name: name.into(),
            price_key: definition.price_key.as_str().into(),
            per,
            number,
            factor: COMMON_PER / per,
            dimensions: definition.dimensions.clone(),
        }));
        Ok(())
    }

    fn relate(&mut self) {
        let by_dimensions: HashMap<_, _> = self.all.iter().map(|u| (&u.dimensions, u.number)).collect();
        let contained_in = |unit: &Unit| {
            let others = self.all.iter().filter(|o| o.number != unit.number && o.contains(unit));
            others.fold(0, |set, other| set | bit(other.number))
        };
        self.containers = self.all.iter().map(|unit| contained_in(unit)).collect();
        let join = |a: &Unit, b: &Unit| {
            if !a.overlaps(b) || a.contains(b) || b.contains(a) {
                return Join::None;
            }
            let mut both = a.dimensions.clone();
            both.extend(b.dimensions.clone());
            by_dimensions.get(&both).map_or(Join::Undefined, |number| Join::At(*number))
        };
        let row = |a: &Arc<Unit>| self.all.iter().map(|b| join(a, b)).collect();
        self.joins = self.all.iter().map(row).collect();
    }

    pub(super) fn get(&self, number: usize) -> &Arc<Unit> {
        &self.all[number]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Unit>> {
        self.all.iter()
    }

    pub(super) fn by_name(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn by_price_key(&self, key: &str) -> Option<&Arc<Unit>> {
        self.by_price_key.get(key).map(|number| &self.all[*number])
    }

    /// The unit of which each event has exactly one.
    pub(super) fn requests(&self) -> Option<usize> {
        self.requests
    }

    /// The units that contain this one.
    pub(super) fn containers(&self, unit: usize) -> Set {
        self.containers[unit]
    }

    pub(super) fn contains(&self, whole: usize, part: usize) -> bool {
        self.containers[part] & bit(whole) != 0
    }

    pub(super) fn join(&self, a: usize, b: usize) -> Join {
        self.joins[a][b]
    }

    /// Whether these units may be priced together: each with all that contain it, and each pair that
    /// overlaps with its join. Otherwise some tokens would have two prices, or none.
    pub(super) fn check_priced(&self, priced: Set) -> Result<(), String> {
        for unit in members(priced) {
            if let Some(missing) = members(self.containers(unit) & !priced).next() {
                return Err(format!(
                    "{} has a price but {}, which contains it, has none",
                    self.all[unit].price_key, self.all[missing].price_key
                ));
            }
            for other in members(priced).filter(|other| *other > unit) {
                let (a, b) = (&self.all[unit].price_key, &self.all[other].price_key);
                match self.join(unit, other) {
                    Join::At(join) if priced & bit(join) == 0 => {
                        return Err(format!("{a} and {b} need a price for {} too", self.all[join].price_key));
                    }
                    Join::Undefined => {
                        return Err(format!("{a} and {b} overlap in a unit that the book does not define"));
                    }
                    Join::At(_) | Join::None => {}
                }
            }
        }
        Ok(())
    }
}
