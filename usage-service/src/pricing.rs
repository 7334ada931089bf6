//! Prices and costs: from what a request used to nano-dollars.
//!
//! ```text
//! PriceBook ── find (provider, model) ──> Model ── time, service tier, processing … ──> Card
//!   the shipped book,                      its prices        the rates of this request
//!   a deployment's own over it                                        │
//! Usage ── counts by unit ────────────────────────────────────────> charge ──> Cost | Unpriced
//! ```
//!
//! Pure: it reads one file when it is told to, knows nothing of the wire or the database, and is
//! the same for the same book and usage for ever. Rules, format and where costs differ from those
//! of the package that the shipped prices are from: `docs/prices.md`.
//!
//! | module | job |
//! | --- | --- |
//! | `decimal` | exact money, rounding once |
//! | `unit`, `quantities` | what is counted, and how units contain one another |
//! | `matching`, `book` | whose price it is |
//! | `window`, `model` | which price is in force |
//! | `card` | what it comes to |
//! | `file` | the book's format |

mod book;
mod card;
mod decimal;
mod file;
mod matching;
mod model;
mod quantities;
mod unit;
mod unpriced;
mod window;

use std::path::Path;
use std::sync::Arc;

use book::{Catalogue, Source, assemble};
use card::Card;
use quantities::Quantities;

pub use book::Provider;
pub use decimal::{Amount, Price};
pub use file::{BookError, CURRENCY};
pub use model::{ListPrice, Model, Rate, Tier, Variant};
pub use quantities::Tokens;
pub use unit::Unit;
pub use unpriced::Unpriced;
pub use window::{Daily, Window};

const SHIPPED: Source<'static> =
    Source { name: "genai-prices.json (shipped)", text: include_str!("../prices/genai-prices.json") };

/// All known prices. Made once, then shared: finding and charging take `&self`.
#[derive(Debug)]
pub struct PriceBook {
    version: Box<str>,
    catalogue: Catalogue,
}

/// What decides a request's price, beside its counts of other units and its price conditions.
#[derive(Debug, Clone, Copy)]
pub struct Usage<'a> {
    pub provider: &'a str,
    /// The model that served the request.
    pub model: &'a str,
    /// Microseconds since the epoch.
    pub occurred_at_us: i64,
    /// Empty when there is none.
    pub service_tier: &'a str,
    /// Empty when there is none.
    pub processing: &'a str,
    pub tokens: Tokens,
}

/// A cost and where it comes from, to be kept on the row beside the book's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost<'b> {
    pub nanos: i64,
    /// `provider/model` of the price: for a fallback's, not those of the request.
    pub price_id: &'b str,
    /// What was in force: `standard from 2026-09-10 + processing=batch + input above 200000`.
    pub tier: &'b str,
}

/// A cost with its lines.
#[derive(Debug)]
pub struct Estimate {
    pub lines: Vec<EstimateLine>,
    /// Of the lines, before rounding.
    pub amount: Amount,
    /// The amount rounded half to even: what is stored for such a request.
    pub total_nanos: i64,
    pub book_version: Box<str>,
    pub price_id: Box<str>,
    pub tier: Box<str>,
}

/// What a request pays for one unit.
#[derive(Debug, Clone)]
pub struct EstimateLine {
    pub unit: Arc<Unit>,
    /// What no line of a more specific unit has taken.
    pub quantity: i64,
    /// For `unit.per` of it. None: the list price does not charge for this unit.
    pub price: Option<Price>,
    /// The tier that priced it, none below the first.
    pub above_input_tokens: Option<i64>,
    /// Exact: quantity × price / per.
    pub amount: Amount,
}

impl PriceBook {
    /// The shipped book, with a deployment's own file over it.
    pub fn load(own: Option<&Path>) -> Result<Self, BookError> {
        let Some(path) = own else { return Self::from_texts(SHIPPED, None) };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|cause| BookError::new(&name, cause))?;
        Self::from_texts(SHIPPED, Some(Source { name: &name, text: &text }))
    }

    fn from_texts(shipped: Source<'_>, own: Option<Source<'_>>) -> Result<Self, BookError> {
        let (version, catalogue) = assemble(shipped, own)?;
        Ok(Self { version, catalogue })
    }

    /// Which prices these are: `genai-prices-0.2.3`, with `+name-hash` when there is an own file.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Every provider in the order in which names are tried.
    pub fn providers(&self) -> &[Provider] {
        &self.catalogue.providers
    }

    /// Every unit that prices are for.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.catalogue.units.iter().map(|unit| &**unit)
    }

    /// Whether `other_units` may count a unit of this name.
    pub fn has_unit(&self, name: &str) -> bool {
        self.catalogue.units.by_name(name).is_some()
    }

    /// The cost of a request. `attribute` answers for what else a price may ask of it (`route`,
    /// `speed`, `search_type`): its price conditions. Does not allocate for a model seen before.
    pub fn cost<'u>(
        &self,
        usage: &Usage<'u>,
        other_units: impl IntoIterator<Item = (&'u str, i64)>,
        attribute: impl Fn(&str) -> Option<&'u str>,
    ) -> Result<Cost<'_>, Unpriced> {
        let quantities = Quantities::new(&self.catalogue.units, &usage.tokens, other_units)?;
        let (model, card) = self.card(usage, attribute)?;
        let amount = card.charge(&self.catalogue.units, model, &quantities, |_| {})?;
        let nanos = amount.to_nanos().ok_or(Unpriced::TooLarge)?;
        Ok(Cost { nanos, price_id: &model.price_id, tier: card.label(&quantities) })
    }

    /// The same, with its lines.
    pub fn estimate<'u>(
        &self,
        usage: &Usage<'u>,
        other_units: impl IntoIterator<Item = (&'u str, i64)>,
        attribute: impl Fn(&str) -> Option<&'u str>,
    ) -> Result<Estimate, Unpriced> {
        let units = &self.catalogue.units;
        let quantities = Quantities::new(units, &usage.tokens, other_units)?;
        let (model, card) = self.card(usage, attribute)?;
        let mut lines = Vec::new();
        let amount = card.charge(units, model, &quantities, |charge| {
            lines.push(EstimateLine {
                unit: charge.rate.unit.clone(),
                quantity: charge.quantity,
                price: Some(charge.price),
                above_input_tokens: charge.above_input_tokens,
                amount: charge.amount,
            });
        })?;
        let free = card.uncharged().filter(|unit| quantities.of(*unit) > 0);
        lines.extend(free.map(|unit| EstimateLine {
            unit: units.get(unit).clone(),
            quantity: quantities.of(unit),
            price: None,
            above_input_tokens: None,
            amount: Amount::default(),
        }));
        Ok(Estimate {
            lines,
            amount,
            total_nanos: amount.to_nanos().ok_or(Unpriced::TooLarge)?,
            book_version: self.version.clone(),
            price_id: model.price_id.clone(),
            tier: card.label(&quantities).into(),
        })
    }

    fn card<'u>(
        &self,
        usage: &Usage<'u>,
        attribute: impl Fn(&str) -> Option<&'u str>,
    ) -> Result<(&Model, &Card), Unpriced> {
        let found = self.catalogue.find(usage.provider, usage.model)?;
        let model = &self.catalogue.providers[found.provider].models[found.model];
        let given = |text: &'u str| (!text.is_empty()).then_some(text);
        let attribute = |name: &str| match name {
            "service_tier" => given(usage.service_tier),
            "processing" => given(usage.processing),
            other => attribute(other),
        };
        Ok((model, model.card(usage.occurred_at_us, found.own.then_some(attribute))))
    }
}

#[cfg(test)]
mod tests;
