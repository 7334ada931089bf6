//! Putting a book together from its files, and finding a model in it.
//!
//! ```text
//! provider   the id, lower-case and trimmed; else the first provider whose `match` takes it
//! model      lower-case: the first model of the provider that matches, in the order of the book;
//!            else the same among each of its `fallbacks`, in their order (and no further);
//!            else all of that again with compact dates in the name written apart
//! ```

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{PoisonError, RwLock};

use sha2::{Digest, Sha256};

use super::file::{BookError, BuiltModel, BuiltProvider, Entries, File, build};
use super::matching::{Matcher, with_dashed_dates};
use super::model::Model;
use super::unit::{Definition, Units};
use super::unpriced::Unpriced;

/// Names that are remembered with what was found for them. A power of two.
const CACHE_SLOTS: usize = 4_096;

/// A provider and its models.
#[derive(Debug)]
pub struct Provider {
    pub id: Box<str>,
    pub name: Box<str>,
    /// In the order in which they are tried.
    pub models: Vec<Model>,
    matcher: Option<Matcher>,
    fallbacks: Vec<usize>,
    /// By name, the first model that matches it literally.
    literals: HashMap<Box<str>, usize>,
    /// The models that match more than literally, in order.
    patterns: Vec<usize>,
}

/// A model that was found: its place, and whether it is the provider's own or a fallback's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) provider: usize,
    pub(super) model: usize,
    pub(super) own: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Miss {
    Provider,
    Model,
}

impl From<Miss> for Unpriced {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Provider => Self::UnknownProvider,
            Miss::Model => Self::UnknownModel,
        }
    }
}

/// All providers, and what was found of late.
#[derive(Debug)]
pub(super) struct Catalogue {
    pub(super) units: Units,
    pub(super) providers: Vec<Provider>,
    by_id: HashMap<Box<str>, usize>,
    cache: Cache,
}

impl Catalogue {
    pub(super) fn find(&self, provider: &str, model: &str) -> Result<Found, Unpriced> {
        let answer = self.cache.get(provider, model, || self.resolve(provider, model));
        answer.map_err(Unpriced::from)
    }

    fn resolve(&self, provider: &str, model: &str) -> Result<Found, Miss> {
        let provider = provider.to_lowercase();
        let provider = provider.trim();
        let matches = |p: &Provider| p.matcher.as_ref().is_some_and(|m| m.is_match(provider));
        let by_rule = || self.providers.iter().position(matches);
        let provider = self.by_id.get(provider).copied().or_else(by_rule).ok_or(Miss::Provider)?;
        let name = model.to_lowercase();
        let found = self.search(provider, &name);
        let found = found.or_else(|| self.search(provider, &with_dashed_dates(&name)?));
        found.ok_or(Miss::Model)
    }

    fn search(&self, provider: usize, name: &str) -> Option<Found> {
        let within = |i: usize| Some((i, self.providers[i].first_match(name)?));
        let (owner, model) =
            within(provider).or_else(|| self.providers[provider].fallbacks.iter().copied().find_map(within))?;
        Some(Found { provider: owner, model, own: owner == provider })
    }
}

impl Provider {
    /// The first model that matches. Only those with patterns, before the first literal match, have
    /// to be asked one by one.
    fn first_match(&self, name: &str) -> Option<usize> {
        let literal = self.literals.get(name).copied();
        let before = self.patterns.iter().copied().take_while(|i| literal.is_none_or(|l| *i < l));
        before.into_iter().find(|i| self.models[*i].matcher.is_match(name)).or(literal)
    }

    fn index(&mut self) {
        for (i, model) in self.models.iter().enumerate() {
            let mut exact = |name: &str| {
                self.literals.entry(name.into()).or_insert(i);
            };
            if model.matcher.literals(&mut exact) {
                self.patterns.push(i);
            }
        }
    }
}

/// Direct-mapped: each pair of names has one slot, the last one seen there stays. So it cannot grow
/// whatever names clients make up, and readers rarely meet at one lock. The hash is keyed at
/// random: nobody can choose names that push others out.
#[derive(Debug)]
struct Cache {
    hasher: RandomState,
    slots: Box<[RwLock<Option<Slot>>]>,
}

#[derive(Debug)]
struct Slot {
    provider: Box<str>,
    model: Box<str>,
    answer: Result<Found, Miss>,
}

impl Cache {
    fn new() -> Self {
        let slots = (0..CACHE_SLOTS).map(|_| RwLock::new(None)).collect();
        Self { hasher: RandomState::new(), slots }
    }

    fn get(&self, provider: &str, model: &str, resolve: impl FnOnce() -> Result<Found, Miss>) -> Result<Found, Miss> {
        let at = self.hasher.hash_one((provider, model)) as usize % CACHE_SLOTS;
        let slot = &self.slots[at];
        // A slot is replaced whole: a panic elsewhere cannot have left half of one.
        if let Some(known) = &*slot.read().unwrap_or_else(PoisonError::into_inner)
            && *known.model == *model
            && *known.provider == *provider
        {
            return known.answer;
        }
        let answer = resolve();
        let new = Slot { provider: provider.into(), model: model.into(), answer };
        *slot.write().unwrap_or_else(PoisonError::into_inner) = Some(new);
        answer
    }
}

/// A file's text and what errors call it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

/// Reads the shipped book and a deployment's own over it. Gives the version too.
pub(super) fn assemble(shipped: Source<'_>, own: Option<Source<'_>>) -> Result<(Box<str>, Catalogue), BookError> {
    let mut base = File::parse(shipped.name, shipped.text)?;
    let mut version = base.version.take().unwrap_or_default();
    let mut own_file = own.map(|own| File::parse(own.name, own.text)).transpose()?;
    if let (Some(own), Some(file)) = (own, &mut own_file) {
        let label = file.version.take();
        version.push_str(&format!("+{}-{}", label.as_deref().unwrap_or("own"), short_hash(own.text)));
        add_units(own.name, &mut base.units, std::mem::take(&mut file.units))?;
    }
    let unit_error = |problem| BookError::at(own.map_or(shipped.name, |own| own.name), "units", problem);
    let units = Units::new(&base.units.0).map_err(unit_error)?;

    let mut providers = build(shipped.name, &units, base.providers)?;
    if let (Some(own), Some(file)) = (own, own_file) {
        let mut added = build(own.name, &units, file.providers)?;
        added.iter_mut().flat_map(|provider| &mut provider.models).for_each(|model| model.parts.is_own = true);
        merge(&mut providers, added);
    }
    let name = own.map_or(shipped.name, |own| own.name);
    let catalogue = catalogue(name, units, providers)?;
    Ok((version.into(), catalogue))
}

/// Eight hexadecimal digits that change whenever the file does, whatever its `version` says.
fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn add_units(name: &str, units: &mut Entries<Definition>, added: Entries<Definition>) -> Result<(), BookError> {
    for (unit, definition) in added.0 {
        match units.0.iter().find(|(known, _)| *known == unit) {
            Some((_, known)) if *known == definition => {}
            Some(_) => {
                return Err(BookError::at(name, format!("units.{unit}"), "is defined otherwise in the shipped book"));
            }
            None => units.0.push((unit, definition)),
        }
    }
    Ok(())
}

/// Lays a deployment's providers over the shipped ones. Its models are tried first, in its order; a
/// shipped model of the same id goes. A model without `match` replaces the prices of the shipped
/// one in its place, with its rule.
fn merge(providers: &mut Vec<BuiltProvider>, added: Vec<BuiltProvider>) {
    let mut new_providers = Vec::new();
    for own in added {
        let Some(known) = providers.iter_mut().find(|p| p.id == own.id) else {
            new_providers.push(own);
            continue;
        };
        known.name = own.name.or(known.name.take());
        known.matcher = own.matcher.or(known.matcher.take());
        known.fallbacks = own.fallbacks.or(known.fallbacks.take());
        known.place = own.place;
        let mut first: Vec<BuiltModel> = Vec::new();
        for mut model in own.models {
            let same = known.models.iter().position(|m| m.parts.id == model.parts.id);
            match same {
                Some(i) if !model.has_own_match => {
                    std::mem::swap(&mut model.parts.matcher, &mut known.models[i].parts.matcher);
                    known.models[i] = model;
                    continue;
                }
                Some(i) => {
                    known.models.remove(i);
                }
                None => {}
            }
            first.push(model);
        }
        known.models.splice(0..0, first);
    }
    providers.splice(0..0, new_providers);
}

fn catalogue(name: &str, units: Units, built: Vec<BuiltProvider>) -> Result<Catalogue, BookError> {
    let by_id: HashMap<Box<str>, usize> = built.iter().enumerate().map(|(i, p)| (p.id.clone(), i)).collect();
    let mut providers = Vec::with_capacity(built.len());
    for provider in built {
        let place = provider.place;
        let fallback = |id: &String| {
            by_id.get(id.as_str()).copied().ok_or_else(|| {
                BookError::at(name, format!("{place}, fallbacks"), format!("{id:?} is not a provider of the book"))
            })
        };
        let fallbacks = provider.fallbacks.unwrap_or_default();
        let fallbacks = fallbacks.iter().map(fallback).collect::<Result<_, _>>()?;
        let model = |model: BuiltModel| {
            Model::new(&units, model.parts).map_err(|problem| BookError::at(name, model.place, problem))
        };
        let mut provider = Provider {
            name: provider.name.map_or_else(|| provider.id.clone(), Into::into),
            id: provider.id,
            models: provider.models.into_iter().map(model).collect::<Result<_, _>>()?,
            matcher: provider.matcher,
            fallbacks,
            literals: HashMap::new(),
            patterns: Vec::new(),
        };
        provider.index();
        providers.push(provider);
    }
    Ok(Catalogue { units, providers, by_id, cache: Cache::new() })
}
