//! The models of the sample platform: real names at real providers, which the
//! shipped price book knows, and one that runs in-house and has no price.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// A model, and how it behaves.
#[derive(Debug)]
pub struct Model {
    /// The price book's provider, or `self-hosted`.
    pub provider: &'static str,
    /// The model's name.
    pub name: &'static str,
    /// The share of requests, of all that name their model themselves.
    pub share: f64,
    /// Whether its answers tell input read from a cache.
    pub cache_read: bool,
    /// Whether writing to the cache is told (and charged) apart.
    pub cache_write: bool,
    /// Reasoning tokens for each visible one, on average; 0 for none.
    pub reasoning: f64,
    /// Milliseconds to the first token, and for each one.
    pub pace_ms: (f64, f64),
}

const fn model(
    provider: &'static str,
    name: &'static str,
    share: f64,
    (cache_read, cache_write): (bool, bool),
    reasoning: f64,
    pace_ms: (f64, f64),
) -> Model {
    Model { provider, name, share, cache_read, cache_write, reasoning, pace_ms }
}

/// All models; shares sum to 1.
pub const MODELS: [Model; 12] = [
    model("openai", "gpt-4.1-mini", 0.17, (true, false), 0.0, (260.0, 7.0)),
    model("openai", "gpt-5.4-mini", 0.10, (true, false), 3.0, (420.0, 6.0)),
    model("openai", "gpt-5.4", 0.07, (true, false), 6.0, (800.0, 12.0)),
    model("openai", "gpt-4o", 0.08, (true, false), 0.0, (340.0, 11.0)),
    model("anthropic", "claude-sonnet-4-5", 0.17, (true, true), 0.0, (620.0, 14.0)),
    model("anthropic", "claude-haiku-4-5", 0.10, (true, true), 0.0, (300.0, 6.0)),
    model("google", "gemini-2.5-flash", 0.10, (true, false), 1.5, (280.0, 5.0)),
    model("google", "gemini-2.5-pro", 0.05, (true, false), 5.0, (900.0, 11.0)),
    model("mistral", "codestral-2508", 0.06, (false, false), 0.0, (210.0, 6.0)),
    model("deepseek", "deepseek-chat", 0.04, (true, false), 0.0, (700.0, 20.0)),
    model("self-hosted", "llama-3.3-70b-instruct", 0.06, (false, false), 0.0, (380.0, 18.0)),
    // Nobody names it: it is only reached through the alias below.
    model("openai", "gpt-5.4-pro", 0.0, (false, false), 12.0, (4_000.0, 24.0)),
];

/// The name that the spike's team asks for; configuration decides who serves it.
pub const ALIAS: &str = "agents-default";
/// Who serves the alias as a rule.
pub const ALIAS_USUAL: &str = "gpt-5.4-mini";
/// Who serves it during the spike.
pub const ALIAS_SPIKE: &str = "gpt-5.4-pro";

/// The model of that name; the first one for a name that there is not.
pub fn by_name(name: &str) -> &'static Model {
    MODELS.iter().find(|model| model.name == name).unwrap_or(&MODELS[0])
}

/// A model by its share.
pub fn draw(rng: &mut ChaCha8Rng) -> &'static Model {
    let mut point: f64 = rng.random();
    for model in &MODELS {
        point -= model.share;
        if point < 0.0 {
            return model;
        }
    }
    &MODELS[0]
}
