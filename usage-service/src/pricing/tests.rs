//! The book's rules, each by a small example; costs over the whole book are in `tests/prices.rs`.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

fn shipped() -> &'static PriceBook {
    static BOOK: LazyLock<PriceBook> = LazyLock::new(|| PriceBook::load(None).unwrap());
    &BOOK
}

/// A book with the models of `LAMP`.
fn lamp() -> &'static PriceBook {
    static BOOK: LazyLock<PriceBook> = LazyLock::new(|| with_own(LAMP).unwrap());
    &BOOK
}

fn with_own(text: &str) -> Result<PriceBook, String> {
    PriceBook::from_texts(SHIPPED, Some(Source { name: "own.json", text })).map_err(|e| e.to_string())
}

fn at(text: &str) -> i64 {
    chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
}

fn usage<'a>(provider: &'a str, model: &'a str, tokens: Tokens) -> Usage<'a> {
    let occurred_at_us = at("2026-11-20T12:00:00Z");
    Usage { provider, model, occurred_at_us, service_tier: "", processing: "", tokens }
}

fn tokens(input_uncached: i64, output: i64) -> Tokens {
    Tokens { input_uncached, output, ..Tokens::default() }
}

fn cost<'b>(book: &'b PriceBook, usage: &Usage<'_>) -> Result<Cost<'b>, Unpriced> {
    book.cost(usage, [], |_| None)
}

const LAMP: &str = r#"{"providers":[{"provider":"acme","models":[
  {"id":"lamp","prices":[
    {"per":{"input_mtok":{"base":"1","tiers":[{"above_input_tokens":100,"price":"2"},{"above_input_tokens":1000,"price":"3"}]},
            "cache_read_mtok":"0.1","cache_write_mtok":"1.25","cache_write_1h_mtok":"2","output_mtok":"10","output_reasoning_mtok":"5","web_searches_kcount":"10"}},
    {"effective_from":"2026-06-01","per":{"input_mtok":"7","output_mtok":"70"}},
    {"daily_from":"22:00","daily_until":"02:00","per":{"input_mtok":"4","output_mtok":"40"}}],
   "variants":[
    {"when":{"processing":"batch"},"per":{"input_mtok":"0.5"}},
    {"when":{"processing":"batch","service_tier":"flex"},"per":{"input_mtok":"0.3","output_mtok":"6"}},
    {"when":{"route":"eu"},"effective_from":"2026-01-01","per":{"output_mtok":"99"}}]},
  {"id":"gpu","prices":[{"per":{"gpu_hours":"3.6"}}]},
  {"id":"call","prices":[{"per":{"requests_kcount":"5"}}]},
  {"id":"free","prices":[{"per":{}}]},
  {"id":"gift","prices":[{"per":{"input_mtok":"0","output_mtok":"0"}}]},
  {"id":"ear","prices":[{"per":{"input_mtok":"1","output_mtok":"2","cache_read_mtok":"0.5","input_audio_mtok":"4","cache_audio_read_mtok":"3"}}]}
 ]}],
 "units":{"gpu_seconds":{"per":3600,"price_key":"gpu_hours","dimensions":{"family":"gpu"}}}}"#;

#[test]
fn the_shipped_book_loads_whole() {
    let book = shipped();
    assert_eq!(book.version(), "genai-prices-0.2.3");
    assert_eq!(book.providers().len(), 47);
    assert_eq!(book.providers().iter().map(|p| p.models.len()).sum::<usize>(), 2_330);
    assert!(book.has_unit("web_searches") && !book.has_unit("web_searches_kcount"));
}

#[test]
fn every_kind_of_token_is_paid_for_once_at_its_own_price() {
    let book = lamp();
    let tokens = Tokens {
        input_uncached: 10,
        input_cache_read: 20,
        input_cache_write: 30,
        input_cache_write_1h: 12,
        output: 40,
        output_reasoning: 15,
    };
    let usage = Usage { occurred_at_us: at("2026-05-31T12:00:00Z"), ..usage("acme", "lamp", tokens) };
    let estimate = book.estimate(&usage, [("web_searches", 3)], |_| None).unwrap();
    let lines: Vec<_> = estimate
        .lines
        .iter()
        .map(|l| (&*l.unit.name, l.quantity, l.price.unwrap().to_string(), l.amount.to_string()))
        .collect();
    let expected = [
        ("cache_write_1h_tokens", 12, "2", "0.000024"),
        ("cache_read_tokens", 20, "0.1", "0.000002"),
        ("cache_write_tokens", 18, "1.25", "0.0000225"),
        ("output_reasoning_tokens", 15, "5", "0.000075"),
        ("input_tokens", 10, "1", "0.00001"),
        ("output_tokens", 25, "10", "0.00025"),
        ("web_searches", 3, "10", "0.03"),
    ];
    assert_eq!(lines.len(), expected.len());
    for (unit, quantity, price, amount) in expected {
        assert!(lines.contains(&(unit, quantity, price.to_owned(), amount.to_owned())), "{unit} in {lines:?}");
    }
    assert_eq!(estimate.total_nanos, 30_383_500);
    assert_eq!(estimate.amount.to_string(), "0.0303835");
    assert_eq!(book.cost(&usage, [("web_searches", 3)], |_| None).unwrap().nanos, 30_383_500);
}

#[test]
fn a_kind_without_a_price_is_paid_for_with_what_contains_it() {
    let book = lamp();
    let all = Tokens {
        input_uncached: 1,
        input_cache_read: 2,
        input_cache_write: 3,
        input_cache_write_1h: 1,
        output: 4,
        output_reasoning: 3,
    };
    // From 2026-06-01 on only input and output have a price.
    assert_eq!(cost(book, &usage("acme", "lamp", all)).unwrap().nanos, 6 * 7_000 + 4 * 70_000);
}

#[test]
fn a_tier_prices_the_whole_request_from_one_token_above_its_size() {
    let book = lamp();
    let before = at("2026-05-31T12:00:00Z");
    for (input, per_token, tier) in [
        (1, 1_000, "standard"),
        (100, 1_000, "standard"),
        (101, 2_000, "standard + input above 100"),
        (1_000, 2_000, "standard + input above 100"),
        (1_001, 3_000, "standard + input above 1000"),
    ] {
        let usage = Usage { occurred_at_us: before, ..usage("acme", "lamp", tokens(input, 0)) };
        let cost = cost(book, &usage).unwrap();
        assert_eq!((cost.nanos, cost.tier), (input * per_token, tier), "{input}");
    }
    // Cached input counts towards the size.
    let cached = Tokens { input_uncached: 1, input_cache_read: 100, ..Tokens::default() };
    let usage = Usage { occurred_at_us: before, ..usage("acme", "lamp", cached) };
    assert_eq!(cost(book, &usage).unwrap().nanos, 2_000 + 100 * 100);
}

#[test]
fn the_last_price_in_force_counts_and_says_so() {
    let book = lamp();
    for (time, per_token, tier) in [
        ("2000-01-01T12:00:00Z", 1_000, "standard"),
        ("2026-05-31T21:59:59.999999Z", 1_000, "standard"),
        ("2026-05-31T22:00:00Z", 4_000, "standard daily 22:00:00-02:00:00"),
        ("2026-06-01T01:59:59Z", 4_000, "standard daily 22:00:00-02:00:00"),
        ("2026-06-01T02:00:00Z", 7_000, "standard from 2026-06-01"),
    ] {
        let usage = Usage { occurred_at_us: at(time), ..usage("acme", "lamp", tokens(1, 0)) };
        let cost = cost(book, &usage).unwrap();
        assert_eq!((cost.nanos, cost.tier), (per_token, tier), "{time}");
    }
}

#[test]
fn a_variant_replaces_the_rates_it_has_and_the_first_one_wins() {
    let book = lamp();
    let priced = |processing, service_tier, route: Option<&'static str>| {
        let usage = Usage { processing, service_tier, ..usage("acme", "lamp", tokens(1, 1)) };
        let cost = book.cost(&usage, [], |name| route.filter(|_| name == "route")).unwrap();
        (cost.nanos, cost.tier.to_owned())
    };
    let standard = "standard from 2026-06-01".to_owned();
    assert_eq!(priced("", "", None), (77_000, standard.clone()));
    assert_eq!(priced("", "flex", None), (77_000, standard.clone()));
    assert_eq!(priced("Batch", "", None), (77_000, standard.clone()));
    assert_eq!(priced("batch", "", None), (70_500, format!("{standard} + processing=batch")));
    assert_eq!(
        priced("batch", "flex", None),
        (6_500, format!("{standard} + processing=batch + processing=batch service_tier=flex"))
    );
    assert_eq!(priced("", "", Some("eu")), (106_000, format!("{standard} + route=eu from 2026-01-01")));
    // The earlier variant has the output already: the third adds nothing and is not named.
    assert_eq!(priced("batch", "flex", Some("eu")).0, 6_500);
    assert_eq!(
        priced("batch", "", Some("eu")),
        (99_500, format!("{standard} + processing=batch + route=eu from 2026-01-01"))
    );
}

#[test]
fn variants_do_not_reach_through_a_fallback() {
    let book = shipped();
    let batch = |provider| {
        let usage = Usage { processing: "batch", ..usage(provider, "gpt-5", tokens(1_000, 0)) };
        let cost = cost(book, &usage).unwrap();
        (cost.price_id, cost.nanos)
    };
    assert_eq!(batch("openai"), ("openai/gpt-5", 625_000));
    assert_eq!(batch("azure"), ("openai/gpt-5", 1_250_000));
}

#[test]
fn units_of_a_deployment_are_priced_like_any_other() {
    let book = lamp();
    let cost = book.cost(&usage("acme", "gpu", tokens(0, 0)), [("gpu_seconds", 7)], |_| None).unwrap();
    assert_eq!(cost.nanos, 7_000_000);
    // A third of a nano-dollar's worth of an hour is rounded, not refused.
    let text = LAMP.replace("\"3.6\"", "\"0.000001\"");
    let book = &with_own(&text).unwrap();
    let usage = usage("acme", "gpu", tokens(0, 0));
    let estimate = book.estimate(&usage, [("gpu_seconds", 1)], |_| None).unwrap();
    assert_eq!((estimate.total_nanos, &*estimate.amount.to_string()), (0, "0.000000000277777778"));
    assert_eq!(book.cost(&usage, [("gpu_seconds", 2)], |_| None).unwrap().nanos, 1);
}

#[test]
fn each_request_is_one_request() {
    let book = lamp();
    assert_eq!(cost(book, &usage("acme", "call", tokens(9, 9))).unwrap().nanos, 5_000_000);
}

#[test]
fn what_has_no_known_price_is_unpriced_with_its_reason() {
    let book = lamp();
    let reason = |model, tokens, others: &[(&'static str, i64)]| {
        let answer = book.cost(&usage("acme", model, tokens), others.iter().copied(), |_| None);
        answer.map(|cost| cost.nanos).map_err(|unpriced| unpriced.reason())
    };
    let two = tokens(1, 1);
    assert_eq!(cost(book, &usage("nobody", "lamp", two)), Err(Unpriced::UnknownProvider));
    assert_eq!(reason("shade", two, &[]), Err("unknown_model"));
    assert_eq!(reason("lamp", two, &[("unicorns", 1)]), Err("unknown_unit"));
    assert_eq!(reason("lamp", two, &[("unicorns", 0)]), Err("unknown_unit"));
    assert_eq!(reason("lamp", two, &[("web_searches_kcount", 1)]), Err("unknown_unit"));
    assert_eq!(reason("lamp", two, &[("input_tokens", 1)]), Err("repeated_unit"));
    assert_eq!(reason("lamp", two, &[("requests", 1)]), Err("repeated_unit"));
    assert_eq!(reason("lamp", two, &[("rerank_searches", 1), ("rerank_searches", 1)]), Err("repeated_unit"));
    assert_eq!(reason("lamp", two, &[("rerank_searches", 1)]), Err("unit_not_priced"));
    assert_eq!(reason("lamp", two, &[("rerank_searches", 0)]), Ok(77_000));
    assert_eq!(reason("lamp", two, &[("rerank_searches", -1)]), Err("negative"));
    assert_eq!(reason("lamp", tokens(-1, 0), &[]), Err("negative"));
    assert_eq!(reason("gpu", two, &[]), Err("nothing_charged"));
    assert_eq!(reason("gpu", tokens(0, 0), &[]), Ok(0));
    assert_eq!(reason("lamp", tokens(i64::MAX, 0), &[]), Err("too_large"));
    assert_eq!(reason("lamp", Tokens { input_cache_read: 1, ..tokens(i64::MAX, 0) }, &[]), Err("too_large"));
    assert_eq!(reason("lamp", Tokens { output_reasoning: 2, ..two }, &[]), Err("parts_exceed_whole"));
    assert_eq!(reason("lamp", Tokens { input_cache_write_1h: 1, ..two }, &[]), Err("parts_exceed_whole"));
    assert_eq!(reason("lamp", two, &[("input_audio_tokens", 2)]), Err("parts_exceed_whole"));
}

#[test]
fn a_model_that_is_listed_as_free_costs_nothing() {
    let book = lamp();
    for model in ["free", "gift"] {
        assert_eq!(cost(book, &usage("acme", model, tokens(5, 5))).unwrap().nanos, 0);
        let audio = book.cost(&usage("acme", model, tokens(5, 5)), [("input_audio_tokens", 2)], |_| None);
        assert_eq!(audio.unwrap().nanos, 0);
        let searches = book.cost(&usage("acme", model, tokens(5, 5)), [("web_searches", 1)], |_| None);
        assert_eq!(searches.unwrap_err().reason(), "unit_not_priced");
    }
    let lines = book.estimate(&usage("acme", "free", tokens(5, 0)), [], |_| None).unwrap().lines;
    assert_eq!(lines.len(), 1);
    assert_eq!((&*lines[0].unit.name, lines[0].quantity, lines[0].price), ("input_tokens", 5, None));
}

#[test]
fn overlapping_parts_are_told_apart_or_asked_for() {
    let book = lamp();
    let tokens = Tokens { input_uncached: 60, input_cache_read: 40, ..Tokens::default() };
    let priced = |others: &[(&'static str, i64)]| {
        let answer = book.cost(&usage("acme", "ear", tokens), others.iter().copied(), |_| None);
        answer.map(|cost| cost.nanos).map_err(|unpriced| unpriced.to_string())
    };
    assert_eq!(priced(&[]), Ok(60 * 1_000 + 40 * 500));
    // Of 30 audio tokens 10 were cached.
    let both = [("input_audio_tokens", 30), ("cache_audio_read_tokens", 10)];
    assert_eq!(priced(&both), Ok(10 * 3_000 + 20 * 4_000 + 30 * 500 + 40 * 1_000));
    let apart = [("input_audio_tokens", 30), ("cache_audio_read_tokens", 0)];
    assert_eq!(priced(&apart), Ok(30 * 4_000 + 40 * 500 + 30 * 1_000));
    let missing = priced(&[("input_audio_tokens", 30)]).unwrap_err();
    assert!(missing.contains("cache_audio_read_tokens has its own price"), "{missing}");
    let missing = priced(&[("cache_audio_read_tokens", 10)]).unwrap_err();
    assert!(missing.contains("input_audio_tokens has its own price"), "{missing}");
    let too_many = priced(&[("input_audio_tokens", 70), ("cache_audio_read_tokens", 0)]).unwrap_err();
    assert!(too_many.contains("input_tokens is less than"), "{too_many}");
}

#[test]
fn names_are_found_as_routers_send_them() {
    let book = shipped();
    for (provider, model, price_id) in [
        ("openai", "gpt-4o", "openai/gpt-4o"),
        ("OpenAI", "GPT-4o", "openai/gpt-4o"),
        (" openai ", "gpt-4o", "openai/gpt-4o"),
        ("amazon-bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "aws/"),
        ("vertex_ai", "claude-3-haiku@20240307", "google/claude-3-haiku"),
        ("azure", "gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"),
        ("openrouter", "openai/gpt-4o", "openrouter/openai/gpt-4o"),
        ("openai", "gpt-5.2-20251211", "openai/gpt-5.2"),
        ("google", "gemini-2.5-pro-preview-05-06", "google/gemini-2.5-pro"),
    ] {
        let cost = cost(book, &usage(provider, model, tokens(1, 1)));
        let found = cost.unwrap_or_else(|unpriced| panic!("{provider} {model}: {unpriced}")).price_id;
        assert!(found.starts_with(price_id), "{provider} {model}: {found}");
    }
    assert_eq!(
        cost(book, &usage("openai", "gpt-4o", tokens(1, 1))),
        cost(book, &usage("openai", "gpt-4o", tokens(1, 1)))
    );
    assert_eq!(cost(book, &usage("openai", "", tokens(1, 1))), Err(Unpriced::UnknownModel));
    assert_eq!(cost(book, &usage("", "gpt-4o", tokens(1, 1))), Err(Unpriced::UnknownProvider));
}

#[test]
fn any_number_of_names_is_answered_rightly_through_the_bounded_memory() {
    let book = shipped();
    for _ in 0..2 {
        for i in 0..10_000 {
            let name = format!("no-such-model-{i}");
            assert_eq!(cost(book, &usage("openai", &name, tokens(1, 1))), Err(Unpriced::UnknownModel));
        }
        assert_eq!(cost(book, &usage("openai", "gpt-4o", tokens(1, 1))).unwrap().price_id, "openai/gpt-4o");
    }
}

#[test]
fn a_deployments_models_come_first_and_replace_their_like() {
    let book = &with_own(
        r#"{"version":"acme-7","source":"contract","currency":"USD","providers":[
          {"provider":"openai","models":[
            {"id":"gpt-4o","prices":[{"per":{"input_mtok":"1","output_mtok":"1"}}]},
            {"id":"house","match":{"starts_with":"gpt-4o-mini-acme"},"prices":[{"per":{"input_mtok":"2","output_mtok":"2"}}]}]},
          {"provider":"vllm","match":{"starts_with":"vllm"},"fallbacks":["openai"],"models":[
            {"id":"llama","prices":[{"per":{"input_mtok":"3","output_mtok":"3"}}]}]}]}"#,
    )
    .unwrap();
    let version = book.version().strip_prefix("genai-prices-0.2.3+acme-7-").unwrap();
    assert_eq!(version.len(), 8);
    for (provider, model, price_id, nanos) in [
        ("openai", "gpt-4o", "openai/gpt-4o", 2_000),
        // Without `match` the shipped rule stays: this one is a dated name of the same model.
        ("openai", "gpt-4o-2024-08-06", "openai/gpt-4o", 2_000),
        ("openai", "gpt-4o-mini-acme-3", "openai/house", 4_000),
        ("openai", "gpt-4o-mini", "openai/gpt-4o-mini", 750),
        ("vllm-eu", "LLAMA", "vllm/llama", 6_000),
        ("vllm", "gpt-4o", "openai/gpt-4o", 2_000),
    ] {
        let cost = cost(book, &usage(provider, model, tokens(1, 1))).unwrap();
        assert_eq!((cost.price_id, cost.nanos), (price_id, nanos), "{provider} {model}");
    }
}

#[test]
fn a_bad_file_is_refused_with_its_place() {
    let model = |body: &str| format!(r#"{{"providers":[{{"provider":"acme","models":[{{"id":"lamp",{body}}}]}}]}}"#);
    let price = |per: &str| model(&format!(r#""prices":[{{"per":{per}}}]"#));
    for (text, place) in [
        ("{".to_owned(), "own.json: EOF while parsing an object at line 1 column 1"),
        (r#"{"prices":[]}"#.to_owned(), "unknown field `prices`"),
        (r#"{"currency":"EUR"}"#.to_owned(), r#"own.json: currency: "EUR" is not "USD""#),
        (price(r#"{"input_mtok":0.5}"#), "expected a price as a string such as \"0.075\""),
        (
            price(r#"{"input_mtok":"-1"}"#),
            "providers[0] (acme), models[0] (lamp), prices[0].per.input_mtok: price \"-1\"",
        ),
        (price(r#"{"input_mtok":"1","input_mtok":"2"}"#), "\"input_mtok\" is there twice"),
        (price(r#"{"input":"1"}"#), "prices[0].per.input: no unit of the book has this price_key"),
        (
            price(r#"{"cache_read_mtok":"1"}"#),
            "models[0] (lamp): cache_read_mtok has a price but input_mtok, which contains it, has none",
        ),
        (
            price(r#"{"input_mtok":"1","cache_read_mtok":"1","input_audio_mtok":"1"}"#),
            "cache_read_mtok and input_audio_mtok need a price for cache_audio_read_mtok too",
        ),
        (
            price(
                r#"{"input_mtok":{"base":"1","tiers":[{"above_input_tokens":5,"price":"1"},{"above_input_tokens":5,"price":"2"}]}}"#,
            ),
            "above_input_tokens 5 is negative, or not above the tier before it",
        ),
        (price(r#"{"input_mtok":{"base":"1","steps":[]}}"#), "unknown field `steps`"),
        (model(r#""prices":[]"#), "prices: is empty; a free model"),
        (model(r#""match":{"regex":"^(?!x)"},"prices":[{"per":{}}]"#), "models[0] (lamp), match: regex"),
        (model(r#""minimum":{"hours":1},"prices":[{"per":{}}]"#), "minimum.hours: is not a unit"),
        (
            model(r#""prices":[{"daily_from":"01:00","per":{}}]"#),
            "prices[0]: daily_from and daily_until belong together",
        ),
        (model(r#""prices":[{"per":{}}],"variants":[{"when":{},"per":{}}]"#), "variants[0].when: is empty"),
        (
            r#"{"providers":[{"provider":"acme","fallbacks":["nobody"]}]}"#.to_owned(),
            "providers[0] (acme), fallbacks: \"nobody\" is not a provider of the book",
        ),
        (r#"{"providers":[{"provider":"Acme"}]}"#.to_owned(), "must be a name in lower case"),
        (
            r#"{"providers":[{"provider":"acme"},{"provider":"acme"}]}"#.to_owned(),
            "providers[1] (acme): the provider is there twice",
        ),
        (
            r#"{"units":{"input_tokens":{"per":1,"price_key":"x","dimensions":{"family":"y"}}}}"#.to_owned(),
            "units.input_tokens: is defined otherwise in the shipped book",
        ),
        (
            r#"{"units":{"naps":{"per":7,"price_key":"naps","dimensions":{"family":"naps"}}}}"#.to_owned(),
            "own.json: units: naps: per 7 does not divide",
        ),
    ] {
        let refusal = with_own(&text).map(|_| ()).unwrap_err();
        assert!(refusal.contains(place), "{text}\n  gave: {refusal}\n  not:  {place}");
    }
    let many: Vec<_> = (0..11).map(|i| format!(r#"{{"when":{{"k{i}":"x"}},"per":{{}}}}"#)).collect();
    let refusal =
        with_own(&model(&format!(r#""prices":[{{"per":{{}}}}],"variants":[{}]"#, many.join(",")))).map(|_| ());
    assert!(refusal.unwrap_err().contains("combinations of variants"));
}

#[test]
fn a_missing_file_is_refused_by_its_name() {
    let refusal = PriceBook::load(Some(Path::new("no/such/prices.json"))).map(|_| ()).unwrap_err().to_string();
    assert!(refusal.starts_with("price book no/such/prices.json: "), "{refusal}");
}

#[test]
fn a_groq_transcription_is_charged_ten_seconds_at_least() {
    let book = shipped();
    let seconds = |count| {
        let usage = usage("groq", "whisper-large-v3", tokens(0, 0));
        let others = [("audio_seconds", count), ("input_audio_seconds", count)];
        book.cost(&usage, others, |_| None).unwrap().nanos
    };
    assert_eq!(seconds(0), 0);
    assert_eq!(seconds(1), seconds(10));
    assert_eq!(seconds(36), 1_110_000);
}

fn any_tokens() -> impl Strategy<Value = Tokens> {
    let count = prop_oneof![0i64..5, 90i64..110, 990i64..1_010, 0i64..3_000_000];
    (count.clone(), count.clone(), count.clone(), 0.0..1.0f64, count, 0.0..1.0f64).prop_map(
        |(input_uncached, input_cache_read, input_cache_write, ttl, output, reasoning)| Tokens {
            input_uncached,
            input_cache_read,
            input_cache_write,
            input_cache_write_1h: (input_cache_write as f64 * ttl) as i64,
            output,
            output_reasoning: (output as f64 * reasoning) as i64,
        },
    )
}

/// The same with one price for every size.
static UNTIERED: LazyLock<PriceBook> = LazyLock::new(|| {
    let tiered =
        r#"{"base":"1","tiers":[{"above_input_tokens":100,"price":"2"},{"above_input_tokens":1000,"price":"3"}]}"#;
    with_own(&LAMP.replace(tiered, r#""1.000000001""#)).unwrap()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Without tiers the exact cost of two requests together is the sum of their costs.
    #[test]
    fn exact_costs_add_up(a in any_tokens(), b in any_tokens()) {
        let book = &*UNTIERED;
        let together = Tokens {
            input_uncached: a.input_uncached + b.input_uncached,
            input_cache_read: a.input_cache_read + b.input_cache_read,
            input_cache_write: a.input_cache_write + b.input_cache_write,
            input_cache_write_1h: a.input_cache_write_1h + b.input_cache_write_1h,
            output: a.output + b.output,
            output_reasoning: a.output_reasoning + b.output_reasoning,
        };
        let exact = |tokens| {
            let usage = Usage { occurred_at_us: at("2001-01-01T12:00:00Z"), ..usage("acme", "lamp", tokens) };
            book.estimate(&usage, [], |_| None).unwrap().amount
        };
        prop_assert_eq!(exact(a).checked_add(exact(b)), Some(exact(together)));
    }

    /// The fast way and the explained way agree, and the lines are the whole of it.
    #[test]
    fn the_lines_of_an_estimate_are_its_total(tokens in any_tokens(), searches in 0i64..50) {
        let book = lamp();
        let usage = Usage { occurred_at_us: at("2001-01-01T12:00:00Z"), ..usage("acme", "lamp", tokens) };
        let others = [("web_searches", searches)];
        let estimate = book.estimate(&usage, others, |_| None).unwrap();
        let sum = estimate.lines.iter().try_fold(Amount::default(), |sum, l| sum.checked_add(l.amount));
        prop_assert_eq!(sum, Some(estimate.amount));
        let cost = book.cost(&usage, others, |_| None).unwrap();
        prop_assert_eq!(cost.nanos, estimate.total_nanos);
        let quantity = |name: &str| estimate.lines.iter().filter(|l| &*l.unit.name == name).map(|l| l.quantity).sum::<i64>();
        prop_assert_eq!(quantity("input_tokens"), tokens.input_uncached);
        prop_assert_eq!(quantity("output_tokens") + quantity("output_reasoning_tokens"), tokens.output);
    }
}

#[test]
fn the_documented_example_is_a_file_that_loads() {
    let page = include_str!("../../../docs/prices.md");
    let example = page.split("```json").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let book = with_own(example).unwrap();
    assert!(book.version().starts_with("genai-prices-0.2.3+acme-2026-11-"));
    let usage = usage("vllm-eu", "house-70b-awq", tokens(1, 1));
    let batch = Usage { processing: "batch", ..usage };
    assert_eq!((cost(&book, &usage).unwrap().nanos, cost(&book, &batch).unwrap().nanos), (1_600, 1_000));
}
