//! What one request used, by unit of the book.

use super::unit::{CACHE_READ, CACHE_WRITE, CACHE_WRITE_1H, INPUT, OUTPUT, REASONING, Set, TOKEN_UNITS, Units, bit};
use super::unpriced::Unpriced;

/// The counters of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    pub input_uncached: i64,
    pub input_cache_read: i64,
    pub input_cache_write: i64,
    /// Part of the writes.
    pub input_cache_write_1h: i64,
    pub output: i64,
    /// Part of the output.
    pub output_reasoning: i64,
}

#[derive(Debug)]
pub(super) struct Quantities {
    /// By the numbers of `TOKEN_UNITS`.
    tokens: [i64; TOKEN_UNITS.len()],
    /// A handful at most: searched one by one. Empty for most events, and then not allocated.
    others: Vec<(usize, i64)>,
    requests: Option<usize>,
    reported: Set,
}

impl Quantities {
    pub(super) fn new<'u>(
        units: &Units,
        tokens: &Tokens,
        other_units: impl IntoIterator<Item = (&'u str, i64)>,
    ) -> Result<Self, Unpriced> {
        let mut quantities = Self {
            tokens: by_unit(tokens)?,
            others: Vec::new(),
            requests: units.requests(),
            reported: bit(TOKEN_UNITS.len()) - 1,
        };
        if let Some(requests) = quantities.requests {
            quantities.reported |= bit(requests);
        }
        for (name, count) in other_units {
            let unit = units.by_name(name).ok_or_else(|| Unpriced::UnknownUnit { unit: name.into() })?;
            if quantities.reported & bit(unit) != 0 {
                return Err(Unpriced::RepeatedUnit { unit: name.into() });
            }
            if count < 0 {
                return Err(Unpriced::Negative { unit: name.into() });
            }
            quantities.reported |= bit(unit);
            quantities.others.push((unit, count));
        }
        Ok(quantities)
    }

    /// How much of a unit there was; zero when it was not reported.
    pub(super) fn of(&self, unit: usize) -> i64 {
        if let Some(count) = self.tokens.get(unit) {
            return *count;
        }
        if self.requests == Some(unit) {
            return 1;
        }
        self.others.iter().find(|(number, _)| *number == unit).map_or(0, |(_, count)| *count)
    }

    pub(super) fn has_other_units(&self) -> bool {
        !self.others.is_empty()
    }

    pub(super) fn others(&self) -> impl Iterator<Item = (usize, i64)> {
        self.others.iter().copied()
    }

    /// The units that were reported, zero or not.
    pub(super) fn reported(&self) -> Set {
        self.reported
    }

    /// The units of which there was something, but `requests`.
    pub(super) fn counted(&self) -> Set {
        let tokens = self.tokens.iter().copied().enumerate();
        let some = tokens.chain(self.others()).filter(|(_, count)| *count > 0);
        some.fold(0, |set, (unit, _)| set | bit(unit))
    }

    /// Whether there was anything at all to charge for.
    pub(super) fn any(&self) -> bool {
        self.counted() != 0
    }
}

fn by_unit(tokens: &Tokens) -> Result<[i64; TOKEN_UNITS.len()], Unpriced> {
    let Tokens { input_uncached, input_cache_read, input_cache_write, input_cache_write_1h, output, output_reasoning } =
        *tokens;
    let counters = [
        ("input_uncached", input_uncached),
        ("input_cache_read", input_cache_read),
        ("input_cache_write", input_cache_write),
        ("input_cache_write_1h", input_cache_write_1h),
        ("output", output),
        ("output_reasoning", output_reasoning),
    ];
    if let Some((name, _)) = counters.iter().find(|(_, count)| *count < 0) {
        return Err(Unpriced::Negative { unit: (*name).into() });
    }
    if input_cache_write_1h > input_cache_write {
        return Err(Unpriced::PartsExceedWhole { whole: TOKEN_UNITS[CACHE_WRITE].into() });
    }
    if output_reasoning > output {
        return Err(Unpriced::PartsExceedWhole { whole: TOKEN_UNITS[OUTPUT].into() });
    }
    let input = input_uncached.checked_add(input_cache_read).and_then(|n| n.checked_add(input_cache_write));
    let mut by_unit = [0; TOKEN_UNITS.len()];
    by_unit[INPUT] = input.ok_or(Unpriced::TooLarge)?;
    by_unit[OUTPUT] = output;
    by_unit[CACHE_READ] = input_cache_read;
    by_unit[CACHE_WRITE] = input_cache_write;
    by_unit[CACHE_WRITE_1H] = input_cache_write_1h;
    by_unit[REASONING] = output_reasoning;
    Ok(by_unit)
}
