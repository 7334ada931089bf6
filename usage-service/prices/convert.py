#!/usr/bin/env python3
"""Writes genai-prices.json, the shipped price book, from the PyPI package genai-prices.

    pip install genai-prices==0.2.3
    python3 usage-service/prices/convert.py

One unit, one provider and one model a line, so that the diff of an update reads well. What the
format cannot say stops the conversion: nothing is left out in silence.
"""

import json
import pathlib
import sys
from importlib.metadata import version

from genai_prices import types
from genai_prices.data import providers
from genai_prices.data_units import unit_data

PACKAGE_VERSION = "0.2.3"

# Look-around needs a backtracking engine, which a hostile model name could keep busy. The one
# pattern that has any is said with a `not` clause instead.
LOOKAHEADS = {
    r"^(?!.*-[tT][tT][sS](?:$|-))": {"not": {"regex": r"-[tT][tT][sS](?:$|-)"}},
}

# Rules that the package has in its code rather than in its data.
MINIMUMS = {
    ("groq", "whisper-large-v3"): {"audio_seconds": 10, "input_audio_seconds": 10},
    ("groq", "whisper-large-v3-turbo"): {"audio_seconds": 10, "input_audio_seconds": 10},
}


def clause(c):
    match c:
        case types.ClauseOr():
            return {"any_of": [clause(x) for x in c.or_]}
        case types.ClauseAnd():
            return {"all_of": [clause(x) for x in c.and_]}
        case types.ClauseRegex():
            if c.regex in LOOKAHEADS:
                return LOOKAHEADS[c.regex]
            if "(?=" in c.regex or "(?!" in c.regex or "(?<" in c.regex:
                sys.exit(f"no rule for the look-around in {c.regex!r}")
            return {"regex": c.regex}
        case types.ClauseEquals():
            return {"equals": c.equals}
        case types.ClauseStartsWith():
            return {"starts_with": c.starts_with}
        case types.ClauseEndsWith():
            return {"ends_with": c.ends_with}
        case types.ClauseContains():
            return {"contains": c.contains}
    sys.exit(f"no rule for the clause {c!r}")


def money(value):
    if isinstance(value, types.TieredPrices):
        tiers = [{"above_input_tokens": t.start, "price": f"{t.price:f}"} for t in value.tiers]
        return {"base": f"{value.base:f}", "tiers": tiers}
    return f"{value:f}"


def per(prices):
    return {key: money(value) for key, value in vars(prices).items() if value is not None}


def window(constraint):
    match constraint:
        case None:
            return {}
        case types.StartDateConstraint():
            return {"effective_from": constraint.start_date.isoformat()}
        case types.TimeOfDateConstraint():
            return {
                "daily_from": constraint.start_time.isoformat(),
                "daily_until": constraint.end_time.isoformat(),
            }
    sys.exit(f"no rule for the constraint {constraint!r}")


def model(provider, m):
    entry = {"id": m.id, "match": clause(m.match)}
    if m.context_window:
        entry["context_window"] = m.context_window
    if minimum := MINIMUMS.get((provider.id, m.id)):
        entry["minimum"] = minimum
    if isinstance(m.prices, types.ModelPrice):
        entry["prices"] = [{"per": per(m.prices)}]
    else:
        entry["prices"] = [{**window(p.constraint), "per": per(p.prices)} for p in m.prices]
    if m.price_variants:
        entry["variants"] = [
            {"when": v.when, **window(v.constraint), "per": per(v.prices)} for v in m.price_variants
        ]
    return entry


def line(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main():
    if version("genai-prices") != PACKAGE_VERSION:
        sys.exit(f"genai-prices {version('genai-prices')} is installed, {PACKAGE_VERSION} is wanted")
    out = ["{"]
    out.append(f'"version":{line("genai-prices-" + PACKAGE_VERSION)},')
    out.append(f'"source":{line("PyPI package genai-prices " + PACKAGE_VERSION)},')
    out.append(f'"licence":{line("MIT, Copyright (c) Pydantic Services Inc.")},')
    out.append('"currency":"USD",')
    out.append('"units":{')
    units = [f"{line(name)}:{line(unit)}" for name, unit in unit_data.items()]
    out.append(",\n".join(units))
    out.append('},\n"providers":[')
    entries = []
    for p in providers:
        head = {"provider": p.id, "name": p.name}
        if p.provider_match:
            head["match"] = clause(p.provider_match)
        if p.fallback_model_providers:
            head["fallbacks"] = p.fallback_model_providers
        models = ",\n".join(line(model(p, m)) for m in p.models)
        entries.append(line(head)[:-1] + f',"models":[\n{models}\n]}}')
    out.append(",\n".join(entries))
    out.append("]\n}\n")
    target = pathlib.Path(__file__).with_name("genai-prices.json")
    target.write_text("\n".join(out), encoding="utf-8")


main()
