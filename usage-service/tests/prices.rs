//! Costs equal those of the package that the shipped prices are from, to the nano-dollar, for random
//! usages over all of its models; where they differ is a closed list, explained in `docs/prices.md`.
//!
//! The package is asked by `prices_peer.py`. Where it is not installed the test says so and passes,
//! unless `REQUIRE_PEERS=1`. `PRICES_CASES` and `PRICES_SEED` change what is drawn.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

use std::collections::{BTreeMap, HashSet};
use std::process::Command;

use serde::Deserialize;
use usage_service::pricing::{PriceBook, Tokens, Unpriced, Usage};

#[derive(Debug, Deserialize)]
struct Case {
    provider: String,
    model: String,
    occurred_at_us: i64,
    context: BTreeMap<String, String>,
    tokens: BTreeMap<String, i64>,
    other_units: BTreeMap<String, i64>,
    cost: Option<String>,
    price_id: Option<String>,
    error: Option<String>,
}

/// The ways in which our answer may differ from the package's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// A unit was sent that the model has no price for: the package takes it for free.
    UnitNotPriced,
    /// Only tokens were sent for a model that is charged by something else: the package says zero.
    NothingCharged,
    /// A part exceeds its whole, and has no price of its own: the package does not look.
    PartsExceedWhole,
    /// Groq's transcription without `audio_seconds`: the package fills it in for this provider alone.
    GroqSeconds,
}

/// The answer's difference from the package's, if it is one that is known and meant.
fn known_difference(case: &Case, ours: &Unpriced) -> Option<Difference> {
    case.cost.as_ref()?;
    match ours {
        Unpriced::UnitNotPriced { .. } => Some(Difference::UnitNotPriced),
        Unpriced::NothingCharged { .. } => Some(Difference::NothingCharged),
        Unpriced::PartsExceedWhole { .. } => Some(Difference::PartsExceedWhole),
        Unpriced::UnitMissing { unit } if &**unit == "audio_seconds" => {
            let model = case.model.to_lowercase();
            let groq = case.provider.trim().eq_ignore_ascii_case("groq");
            (groq && model.starts_with("whisper-large-v3")).then_some(Difference::GroqSeconds)
        }
        _ => None,
    }
}

/// Nano-dollars of a decimal text, half to even, digit by digit.
fn nanos(text: &str) -> i64 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = format!("{fraction:0<10}");
    let (kept, cut) = fraction.split_at(9);
    let kept: i64 = format!("{whole}{kept}").parse().unwrap();
    let half = format!("{:0<width$}", "5", width = cut.len());
    let up = cut > half.as_str() || (cut == half && kept % 2 == 1);
    kept + i64::from(up)
}

fn ask_the_peer(count: &str, seed: &str) -> Result<Vec<Case>, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/prices_peer.py");
    let output = Command::new("python3").args([script, count, seed]).output();
    let output = output.map_err(|cause| format!("python3 does not start: {cause}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => {}
        Some(3) => return Err(said.trim().to_owned()),
        _ => panic!("prices_peer.py failed:\n{said}"),
    }
    let text = String::from_utf8(output.stdout).unwrap();
    Ok(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn costs_equal_those_of_the_package_the_prices_are_from() {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let seed = setting("PRICES_SEED", "20261120");
    let cases = match ask_the_peer(&setting("PRICES_CASES", "10000"), &seed) {
        Ok(cases) => cases,
        Err(why) if setting("REQUIRE_PEERS", "") == "1" => panic!("REQUIRE_PEERS=1, but {why}"),
        Err(why) => {
            eprintln!("costs were not compared with their peer: {why}; pip install genai-prices==0.2.3");
            return;
        }
    };

    let book = PriceBook::load(None).unwrap();
    let mut differences: BTreeMap<Difference, usize> = BTreeMap::new();
    let (mut priced, mut refused, mut wrong) = (0, 0, Vec::new());
    let mut tiers = HashSet::new();
    let mut models = HashSet::new();
    for case in &cases {
        let tokens = |unit: &str| case.tokens[unit];
        let (read, write) = (tokens("cache_read_tokens"), tokens("cache_write_tokens"));
        let given = |name: &str| case.context.get(name).map(String::as_str);
        let usage = Usage {
            provider: &case.provider,
            model: &case.model,
            occurred_at_us: case.occurred_at_us,
            service_tier: given("service_tier").unwrap_or(""),
            processing: given("processing").unwrap_or(""),
            tokens: Tokens {
                input_uncached: tokens("input_tokens") - read - write,
                input_cache_read: read,
                input_cache_write: write,
                input_cache_write_1h: tokens("cache_write_1h_tokens"),
                output: tokens("output_tokens"),
                output_reasoning: tokens("output_reasoning_tokens"),
            },
        };
        let others = case.other_units.iter().map(|(name, count)| (name.as_str(), *count));
        match (book.cost(&usage, others, given), &case.cost, case.error.as_deref()) {
            (Ok(ours), Some(theirs), _) => {
                let price_id = case.price_id.as_ref().unwrap();
                if ours.nanos != nanos(theirs) || !ours.price_id.ends_with(price_id.as_str()) {
                    wrong.push(format!("{ours:?}, the package: {theirs} {price_id}: {case:?}"));
                }
                priced += 1;
                tiers.insert(ours.tier);
                models.insert(ours.price_id);
            }
            // Where both refuse, ours may have met another of a usage's faults first.
            (Err(Unpriced::UnknownProvider | Unpriced::UnknownModel), None, Some("lookup"))
            | (
                Err(
                    Unpriced::UnitMissing { .. }
                    | Unpriced::PartsExceedWhole { .. }
                    | Unpriced::UnitNotPriced { .. }
                    | Unpriced::NothingCharged { .. },
                ),
                None,
                Some("value"),
            ) => refused += 1,
            (Err(ours), ..) if known_difference(case, &ours).is_some() => {
                *differences.entry(known_difference(case, &ours).unwrap()).or_default() += 1;
            }
            (ours, ..) => wrong.push(format!("{ours:?}: {case:?}")),
        }
    }
    eprintln!(
        "seed {seed}: {} usages, {priced} costs equal over {} models and {} tiers, {refused} refused by both, \
         known differences {differences:?}",
        cases.len(),
        models.len(),
        tiers.len(),
    );
    let first: Vec<_> = wrong.iter().take(5).collect();
    assert!(wrong.is_empty(), "{} usages differ, such as {first:#?}", wrong.len());
    assert!(priced * 10 > cases.len() * 7, "only {priced} of {} usages were priced", cases.len());
}

#[test]
fn a_decimal_is_rounded_half_to_even() {
    for (text, expected) in [
        ("0", 0),
        ("12.5", 12_500_000_000),
        ("0.0000000005", 0),
        ("0.0000000015", 2),
        ("0.00000000250", 2),
        ("0.00000000250000000001", 3),
        ("0.0000000349999999", 35),
    ] {
        assert_eq!(nanos(text), expected, "{text}");
    }
}
