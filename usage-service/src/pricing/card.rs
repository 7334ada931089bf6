//! The rates that one request is charged, and the charging.
//!
//! What is counted in several units is paid for once. Lines go from the most specific unit to the
//! least, and each is charged for what no more specific line has taken:
//!
//! ```text
//! counted                  priced at              charged for
//! cache_read_tokens  600   cache_read_mtok        600
//! input_tokens     1,000   input_mtok             1,000 - 600 = 400
//! output_tokens       50   output_mtok            50       (reasoning has no rate: it stays in here)
//! ```

use super::decimal::{Amount, Price};
use super::model::{ListPrice, Model, Rate, Variant};
use super::quantities::Quantities;
use super::unit::{INPUT, Join, OUTPUT, Set, Units, bit, members};
use super::unpriced::Unpriced;

/// Most lines that a card may have.
const MAX_LINES: usize = 32;

#[derive(Debug)]
pub(super) struct Card {
    /// The most specific units first.
    lines: Vec<Line>,
    priced: Set,
    /// Sizes of input at which any rate changes, rising.
    thresholds: Vec<i64>,
    /// What is in force below the first threshold, above it, above the second …
    labels: Vec<Box<str>>,
}

#[derive(Debug)]
pub(super) struct Line {
    rate: Rate,
    /// The lines before this one whose units are parts of this one's, one bit each.
    parts: u32,
}

/// What one line of a card charges.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charge<'c> {
    pub(super) rate: &'c Rate,
    pub(super) quantity: i64,
    pub(super) price: Price,
    pub(super) above_input_tokens: Option<i64>,
    pub(super) amount: Amount,
}

impl Card {
    pub(super) fn new(units: &Units, price: &ListPrice, variants: &[&Variant]) -> Result<Self, String> {
        let mut rates: Vec<&Rate> = Vec::new();
        let mut label = format!("standard{}", price.window);
        for variant in variants {
            let known = rates.len();
            for rate in &variant.rates {
                if rates.iter().all(|r| r.unit.number != rate.unit.number) {
                    rates.push(rate);
                }
            }
            if rates.len() > known {
                let when: Vec<_> = variant.when.iter().map(|(k, v)| format!("{k}={v}")).collect();
                label.push_str(&format!(" + {}{}", when.join(" "), variant.window));
            }
        }
        let overridden: Set = rates.iter().fold(0, |set, rate| set | bit(rate.unit.number));
        rates.extend(price.rates.iter().filter(|rate| overridden & bit(rate.unit.number) == 0));
        let priced = rates.iter().fold(0, |set, rate| set | bit(rate.unit.number));
        if rates.len() > MAX_LINES {
            return Err(format!("{} units have a price, at most {MAX_LINES} are allowed", rates.len()));
        }
        units.check_priced(priced)?;

        rates.sort_by_key(|rate| (std::cmp::Reverse(rate.unit.dimensions.len()), rate.unit.number));
        let line = |(i, rate): (usize, &&Rate)| {
            let is_part = |part: &&Rate| units.contains(rate.unit.number, part.unit.number);
            let before = rates.iter().take(i).enumerate().filter(|(_, part)| is_part(part));
            let parts = before.fold(0, |set, (j, _)| set | (1 << j));
            Line { rate: Rate::clone(rate), parts }
        };
        let lines: Vec<Line> = rates.iter().enumerate().map(line).collect();
        let tiers = lines.iter().flat_map(|line| &line.rate.tiers);
        let mut thresholds: Vec<i64> = tiers.map(|tier| tier.above_input_tokens).collect();
        thresholds.sort_unstable();
        thresholds.dedup();
        let above = thresholds.iter().map(|size| format!("{label} + input above {size}").into());
        let labels = std::iter::once(label.as_str().into()).chain(above).collect();
        Ok(Self { lines, priced, thresholds, labels })
    }

    /// What is in force for a request with so much input, in words.
    pub(super) fn label(&self, quantities: &Quantities) -> &str {
        let input = quantities.of(INPUT);
        let passed = self.thresholds.iter().take_while(|size| input > **size).count();
        &self.labels[passed]
    }

    /// The exact cost. `each` sees every line that charges for something.
    pub(super) fn charge<'c>(
        &'c self,
        units: &Units,
        model: &Model,
        quantities: &Quantities,
        mut each: impl FnMut(Charge<'c>),
    ) -> Result<Amount, Unpriced> {
        // The counters that every event has cannot contradict one another or leave one out: what
        // needs checking comes with other units.
        if quantities.has_other_units() {
            self.check_other_units(units, quantities)?;
        }
        let input = quantities.of(INPUT);
        let mut left = [0i64; MAX_LINES];
        let mut total = Amount::default();
        let mut charged = self.lines.is_empty();
        for (i, line) in self.lines.iter().enumerate() {
            let unit = &line.rate.unit;
            let mut quantity = quantities.of(unit.number);
            if let Some((_, least)) = model.minimum.iter().find(|(number, _)| *number == unit.number) {
                quantity = if quantity > 0 { quantity.max(*least) } else { 0 };
            }
            for part in members(line.parts.into()) {
                // Stays negative once it is: no sum of parts can wrap around.
                quantity = quantity.saturating_sub(left[part]);
            }
            if quantity < 0 {
                return Err(Unpriced::PartsExceedWhole { whole: unit.name.clone() });
            }
            left[i] = quantity;
            if quantity == 0 {
                continue;
            }
            charged = true;
            let passed = line.rate.tiers.iter().rfind(|tier| input > tier.above_input_tokens);
            let price = passed.map_or(line.rate.base, |tier| tier.price);
            let amount = Amount::of(price, quantity, unit.factor).ok_or(Unpriced::TooLarge)?;
            total = total.checked_add(amount).ok_or(Unpriced::TooLarge)?;
            let above_input_tokens = passed.map(|tier| tier.above_input_tokens);
            each(Charge { rate: &line.rate, quantity, price, above_input_tokens, amount });
        }
        // Tokens alone of a model that is charged by the hour: its cost is not known, and not zero.
        if !charged && quantities.any() {
            return Err(Unpriced::NothingCharged { units: self.unit_names() });
        }
        Ok(total)
    }

    /// The totals of tokens that the list price has no rate for: they are not charged.
    pub(super) fn uncharged(&self) -> impl Iterator<Item = usize> {
        [INPUT, OUTPUT].into_iter().filter(|unit| self.priced & bit(*unit) == 0)
    }

    fn unit_names(&self) -> Box<str> {
        let names: Vec<&str> = self.lines.iter().map(|line| &*line.rate.unit.name).collect();
        names.join(", ").into()
    }

    fn check_other_units(&self, units: &Units, quantities: &Quantities) -> Result<(), Unpriced> {
        for (part, count) in quantities.others() {
            let unit = units.get(part);
            let containers = units.containers(part);
            // Parts of the input and the output go with those when they have no rate of their own.
            let covered = self.priced | bit(INPUT) | bit(OUTPUT);
            if count > 0 && (containers | bit(part)) & covered == 0 {
                return Err(Unpriced::UnitNotPriced { unit: unit.name.clone() });
            }
            for whole in members(containers & quantities.reported()) {
                if count > quantities.of(whole) {
                    return Err(Unpriced::PartsExceedWhole { whole: units.get(whole).name.clone() });
                }
            }
        }
        // A unit with a rate, not counted, though parts of it were, or both units that meet in it:
        // its count would have to be guessed.
        let counted = quantities.counted();
        for line in &self.lines {
            let unit = &line.rate.unit;
            if quantities.reported() & bit(unit.number) != 0 {
                continue;
            }
            let part = members(counted).find(|part| units.contains(unit.number, *part));
            let meets = |a: usize| members(counted).any(|b| units.join(a, b) == Join::At(unit.number));
            if part.is_some() || members(counted).any(meets) {
                return Err(Unpriced::UnitMissing { unit: unit.name.clone() });
            }
        }
        Ok(())
    }
}
