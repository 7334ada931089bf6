//! What the book knows of one model, and which of its prices a request is charged.
//!
//! ```text
//! prices[]    the last whose window holds; the first if none does
//!    +
//! variants[]  each whose window holds and whose `when` the request has, the first to price a unit wins
//!    =
//! Card        the rates of one request, laid out for adding up; one for each combination, made on loading
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use super::card::Card;
use super::decimal::Price;
use super::matching::Matcher;
use super::unit::{Unit, Units};
use super::window::Window;

/// Combinations of variants that one request could have, at most.
const MAX_CARDS: usize = 1_024;

/// The price of one unit.
#[derive(Debug, Clone)]
pub struct Rate {
    pub unit: Arc<Unit>,
    pub base: Price,
    /// By rising threshold. The highest one passed prices the whole request.
    pub tiers: Vec<Tier>,
}

/// The price from a size on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// Requests with more tokens of input than this, of all kinds, are charged this price.
    pub above_input_tokens: i64,
    pub price: Price,
}

/// A list price and when it is in force.
#[derive(Debug)]
pub struct ListPrice {
    pub window: Window,
    /// In the order of the file. None at all: the model is free.
    pub rates: Vec<Rate>,
}

/// Rates that replace some of the list price's for requests of a kind.
#[derive(Debug)]
pub struct Variant {
    /// What the request must have, such as `processing` = `batch`.
    pub when: BTreeMap<String, String>,
    pub window: Window,
    pub rates: Vec<Rate>,
}

/// A model and its prices.
#[derive(Debug)]
pub struct Model {
    pub id: Box<str>,
    /// `provider/id`: what a priced row refers to.
    pub price_id: Box<str>,
    /// From the deployment's own file, not from the shipped book.
    pub is_own: bool,
    pub context_window: Option<i64>,
    pub prices: Vec<ListPrice>,
    pub variants: Vec<Variant>,
    pub(super) matcher: Matcher,
    /// Counts above zero and below these are charged as these.
    pub(super) minimum: Vec<(usize, i64)>,
    /// For each of `prices`, by set of variants.
    cards: Vec<Vec<(u32, Card)>>,
}

/// A model as it was read, before its cards are made.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) id: Box<str>,
    pub(super) price_id: Box<str>,
    pub(super) is_own: bool,
    pub(super) context_window: Option<i64>,
    pub(super) matcher: Matcher,
    pub(super) minimum: Vec<(usize, i64)>,
    pub(super) prices: Vec<ListPrice>,
    pub(super) variants: Vec<Variant>,
}

impl Model {
    pub(super) fn new(units: &Units, parts: Parts) -> Result<Self, String> {
        let Parts { id, price_id, is_own, context_window, matcher, minimum, prices, variants } = parts;
        let sets = compatible_sets(&variants)?;
        let cards_of = |price: &ListPrice| -> Result<Vec<(u32, Card)>, String> {
            let card_of = |set: u32| {
                let chosen = variants.iter().enumerate().filter(|(i, _)| set & (1 << i) != 0);
                let chosen: Vec<_> = chosen.map(|(_, variant)| variant).collect();
                Card::new(units, price, &chosen).map(|card| (set, card))
            };
            sets.iter().copied().map(card_of).collect()
        };
        let cards = prices.iter().map(cards_of).collect::<Result<_, _>>()?;
        Ok(Self { id, price_id, is_own, context_window, prices, variants, matcher, minimum, cards })
    }

    /// The rates of a request. `attribute` is None where a model is charged for another provider's
    /// name, whose variants are not those of this one.
    pub(super) fn card<'a>(&self, at_us: i64, attribute: Option<impl Fn(&str) -> Option<&'a str>>) -> &Card {
        let price = self.prices.iter().rposition(|p| p.window.contains(at_us)).unwrap_or(0);
        let cards = &self.cards[price];
        let Some(attribute) = attribute else { return &cards[0].1 };
        let mut set = 0;
        for (i, variant) in self.variants.iter().enumerate() {
            let asked = || variant.when.iter().all(|(k, v)| attribute(k) == Some(v.as_str()));
            if variant.window.contains(at_us) && asked() {
                set |= 1 << i;
            }
        }
        // Every set of variants that one request can have is there (`compatible_sets`), the empty
        // one first.
        cards.iter().find(|(s, _)| *s == set).map_or(&cards[0].1, |(_, card)| card)
    }
}

/// The sets of variants whose conditions one request can meet at once, the empty one first.
fn compatible_sets(variants: &[Variant]) -> Result<Vec<u32>, String> {
    let mut sets = vec![0u32];
    for (i, variant) in variants.iter().enumerate() {
        let agrees =
            |other: &Variant| variant.when.iter().all(|(k, v)| other.when.get(k).is_none_or(|theirs| theirs == v));
        let with_this: Vec<u32> = sets
            .iter()
            .filter(|set| variants.iter().take(i).enumerate().all(|(j, v)| *set & (1 << j) == 0 || agrees(v)))
            .map(|set| set | (1 << i))
            .collect();
        sets.extend(with_this);
        if i >= 31 || sets.len() > MAX_CARDS {
            return Err(format!("variants[{i}]: more than {MAX_CARDS} combinations of variants are possible"));
        }
    }
    Ok(sets)
}
