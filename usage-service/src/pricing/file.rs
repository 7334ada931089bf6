//! The format of a price book's file: JSON, see `docs/prices.md`.
//!
//! Reading has two steps. serde takes the text apart and refuses what does not have the shape (its
//! errors carry line and column); `build` then checks what the parts say and names the place as a
//! path: `providers[3] (openai), models[7] (gpt-5), prices[0].per.input_mtok`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};

use super::decimal::Price;
use super::matching::{Clause, Matcher};
use super::model::{ListPrice, Parts, Rate, Tier, Variant};
use super::unit::{Definition, Units};
use super::window::Window;

/// The only currency there are prices in.
pub const CURRENCY: &str = "USD";

/// Why a price book was refused, and where in it.
#[derive(Debug, thiserror::Error)]
#[error("price book {file}: {at}{problem}")]
pub struct BookError {
    file: String,
    /// Empty, or a path and a colon.
    at: String,
    problem: String,
}

impl BookError {
    pub(super) fn new(file: &str, problem: impl fmt::Display) -> Self {
        Self { file: file.to_owned(), at: String::new(), problem: problem.to_string() }
    }

    pub(super) fn at(file: &str, at: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self { file: file.to_owned(), at: format!("{at}: "), problem: problem.to_string() }
    }
}

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) version: Option<String>,
    /// Where the prices are from; for the reader of the file.
    #[serde(rename = "source")]
    _source: Option<String>,
    #[serde(rename = "licence")]
    _licence: Option<String>,
    currency: Option<String>,
    #[serde(default)]
    pub(super) units: Entries<Definition>,
    #[serde(default)]
    pub(super) providers: Vec<FileProvider>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileProvider {
    provider: String,
    name: Option<String>,
    #[serde(rename = "match")]
    clause: Option<Clause>,
    fallbacks: Option<Vec<String>>,
    #[serde(default)]
    models: Vec<FileModel>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModel {
    id: String,
    #[serde(rename = "match")]
    clause: Option<Clause>,
    context_window: Option<i64>,
    #[serde(default)]
    minimum: Entries<i64>,
    prices: Vec<FilePrice>,
    #[serde(default)]
    variants: Vec<FileVariant>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePrice {
    effective_from: Option<String>,
    daily_from: Option<String>,
    daily_until: Option<String>,
    per: Entries<FileRate>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileVariant {
    when: BTreeMap<String, String>,
    effective_from: Option<String>,
    daily_from: Option<String>,
    daily_until: Option<String>,
    per: Entries<FileRate>,
}

#[derive(Debug)]
enum FileRate {
    Flat(String),
    Tiered(FileTiers),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTiers {
    base: String,
    tiers: Vec<FileTier>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTier {
    above_input_tokens: i64,
    price: String,
}

/// By hand, since an untagged enum's error would not say what is wrong.
impl<'de> Deserialize<'de> for FileRate {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RateVisitor;
        impl<'de> Visitor<'de> for RateVisitor {
            type Value = FileRate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a price as a string such as \"0.075\", or {\"base\", \"tiers\"}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<FileRate, E> {
                Ok(FileRate::Flat(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FileRate, A::Error> {
                FileTiers::deserialize(MapAccessDeserializer::new(map)).map(FileRate::Tiered)
            }
        }
        deserializer.deserialize_any(RateVisitor)
    }
}

/// The members of a JSON object in their order. A name that comes twice is refused: taking either
/// value would be a guess.
#[derive(Debug)]
pub(super) struct Entries<V>(pub(super) Vec<(String, V)>);

impl<V> Default for Entries<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for EntriesVisitor<V> {
            type Value = Entries<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<V>, A::Error> {
                let mut entries: Vec<(String, V)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if entries.iter().any(|(known, _)| *known == name) {
                        return Err(de::Error::custom(format!("{name:?} is there twice")));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

impl File {
    /// `name` is what errors call the file.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, BookError> {
        let file: Self = serde_json::from_str(text).map_err(|cause| BookError::new(name, cause))?;
        match file.currency.as_deref() {
            None | Some(CURRENCY) => Ok(file),
            Some(other) => Err(BookError::at(name, "currency", format!("{other:?} is not {CURRENCY:?}"))),
        }
    }
}

/// A provider as one file has it, checked.
#[derive(Debug)]
pub(super) struct BuiltProvider {
    pub(super) id: Box<str>,
    pub(super) name: Option<String>,
    pub(super) matcher: Option<Matcher>,
    pub(super) fallbacks: Option<Vec<String>>,
    pub(super) models: Vec<BuiltModel>,
    /// Where it is in the file.
    pub(super) place: String,
}

#[derive(Debug)]
pub(super) struct BuiltModel {
    pub(super) parts: Parts,
    /// Whether the file says which names are this model's; otherwise `parts` has those that equal
    /// its id.
    pub(super) has_own_match: bool,
    /// Where it is in the file.
    pub(super) place: String,
}

/// Checks the providers of a file against the units of the book.
pub(super) fn build(name: &str, units: &Units, providers: Vec<FileProvider>) -> Result<Vec<BuiltProvider>, BookError> {
    let mut seen = HashSet::new();
    let mut built = Vec::with_capacity(providers.len());
    for (i, provider) in providers.into_iter().enumerate() {
        let place = format!("providers[{i}] ({})", provider.provider);
        let id = provider.provider.as_str();
        if id.is_empty() || id != id.trim().to_lowercase() {
            return Err(BookError::at(name, place, "provider must be a name in lower case without spaces around it"));
        }
        if !seen.insert(provider.provider.clone()) {
            return Err(BookError::at(name, place, "the provider is there twice"));
        }
        let matcher = provider.clause.as_ref().map(Matcher::compile).transpose();
        let matcher = matcher.map_err(|problem| BookError::at(name, format!("{place}, match"), problem))?;
        let mut ids = HashSet::new();
        let mut models = Vec::with_capacity(provider.models.len());
        for (j, model) in provider.models.into_iter().enumerate() {
            let place = format!("{place}, models[{j}] ({})", model.id);
            if model.id.is_empty() || !ids.insert(model.id.clone()) {
                return Err(BookError::at(name, place, "the id is empty, or there twice"));
            }
            let has_own_match = model.clause.is_some();
            let parts = parts(units, &provider.provider, model)
                .map_err(|(at, problem)| BookError::at(name, format!("{place}, {at}"), problem))?;
            models.push(BuiltModel { parts, has_own_match, place });
        }
        built.push(BuiltProvider {
            id: provider.provider.into(),
            name: provider.name,
            matcher,
            fallbacks: provider.fallbacks,
            models,
            place,
        });
    }
    Ok(built)
}

/// Where and what is wrong.
type Problem = (String, String);

fn parts(units: &Units, provider: &str, model: FileModel) -> Result<Parts, Problem> {
    let clause = model.clause.unwrap_or_else(|| Clause::Equals(model.id.clone()));
    let matcher = Matcher::compile(&clause).map_err(|problem| ("match".to_owned(), problem))?;
    let mut minimum = Vec::new();
    for (unit, least) in &model.minimum.0 {
        let at = || format!("minimum.{unit}");
        let number = units.by_name(unit).ok_or_else(|| (at(), "is not a unit of the book".to_owned()))?;
        if *least < 1 {
            return Err((at(), format!("{least} is not above zero")));
        }
        minimum.push((number, *least));
    }
    if model.prices.is_empty() {
        return Err(("prices".to_owned(), "is empty; a free model has one price with an empty \"per\"".to_owned()));
    }
    let mut prices = Vec::with_capacity(model.prices.len());
    for (i, price) in model.prices.iter().enumerate() {
        let FilePrice { effective_from, daily_from, daily_until, per } = price;
        let window = Window::parse(effective_from.as_deref(), daily_from.as_deref(), daily_until.as_deref())
            .map_err(|problem| (format!("prices[{i}]"), problem))?;
        prices.push(ListPrice { window, rates: rates(units, &format!("prices[{i}]"), per)? });
    }
    let mut variants = Vec::with_capacity(model.variants.len());
    for (i, variant) in model.variants.into_iter().enumerate() {
        let FileVariant { when, effective_from, daily_from, daily_until, per } = variant;
        let at = format!("variants[{i}]");
        if when.is_empty() || when.iter().any(|(key, value)| key.is_empty() || value.is_empty()) {
            return Err((format!("{at}.when"), "is empty, or a name or value in it is".to_owned()));
        }
        let window = Window::parse(effective_from.as_deref(), daily_from.as_deref(), daily_until.as_deref())
            .map_err(|problem| (at.clone(), problem))?;
        variants.push(Variant { when, window, rates: rates(units, &at, &per)? });
    }
    Ok(Parts {
        price_id: format!("{provider}/{}", model.id).into(),
        id: model.id.into(),
        context_window: model.context_window,
        matcher,
        is_own: false,
        minimum,
        prices,
        variants,
    })
}

fn rates(units: &Units, at: &str, per: &Entries<FileRate>) -> Result<Vec<Rate>, Problem> {
    let rate = |(key, rate): &(String, FileRate)| -> Result<Rate, Problem> {
        let problem = |problem| (format!("{at}.per.{key}"), problem);
        let unit =
            units.by_price_key(key).ok_or_else(|| problem("no unit of the book has this price_key".to_owned()))?;
        let (base, tiers) = match rate {
            FileRate::Flat(price) => (price, &[][..]),
            FileRate::Tiered(tiered) => (&tiered.base, &tiered.tiers[..]),
        };
        let base = Price::parse(base).map_err(problem)?;
        let mut built: Vec<Tier> = Vec::with_capacity(tiers.len());
        for tier in tiers {
            let above = tier.above_input_tokens;
            if above < built.last().map_or(0, |last| last.above_input_tokens + 1) {
                return Err(problem(format!(
                    "above_input_tokens {above} is negative, or not above the tier before it"
                )));
            }
            built.push(Tier { above_input_tokens: above, price: Price::parse(&tier.price).map_err(problem)? });
        }
        Ok(Rate { unit: unit.clone(), base, tiers: built })
    };
    per.0.iter().map(rate).collect()
}
