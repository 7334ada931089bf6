"""Prints random usages, one JSON object a line, with what the package genai-prices says they cost.

    prices_peer.py COUNT SEED

Every model of the package has its turn (with 4,660 usages or more); dates, hours, tiers, variants and units are drawn near the
edges of what that model's prices ask about. Money is exact: the package's decimals are given 80
digits. `error` stands where the package refuses: `lookup` (no such provider or model) or `value`.

Exit status 3: the package is not there in the version whose prices the service ships.
"""

import json
import random
import re
import sys
from datetime import UTC, datetime, timedelta
from decimal import getcontext
from importlib.metadata import PackageNotFoundError, version

WANTED = "0.2.3"
try:
    found = version("genai-prices")
except PackageNotFoundError:
    found = None
if found != WANTED:
    print(f"genai-prices {WANTED} is wanted, {found} is installed", file=sys.stderr)
    sys.exit(3)

from genai_prices import Usage, calc_price, types  # noqa: E402
from genai_prices.data import providers  # noqa: E402
from genai_prices.data_units import unit_data  # noqa: E402

getcontext().prec = 80
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TOKEN_UNITS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_reasoning_tokens",
)
BY_PRICE_KEY = {unit["price_key"]: name for name, unit in unit_data.items()}
BY_ID = {p.id: p for p in providers}
ALL = [(p, m) for p in providers for m in p.models]


def is_rich(model):
    """Whether a price depends on more than the six counters of every event."""
    return (
        model.price_variants
        or not isinstance(model.prices, types.ModelPrice)
        or any(isinstance(v, types.TieredPrices) for v in vars(model.prices).values())
        or any(BY_PRICE_KEY[key] not in TOKEN_UNITS for key in vars(model.prices))
    )


RICH = [(p, m) for p, m in ALL if is_rich(m)]

# Who falls back to whom.
SELLERS = {}
for seller in providers:
    for owner in seller.fallback_model_providers or ():
        SELLERS.setdefault(owner, []).append(seller.id)


def names(clause):
    """Names that a matching rule is likely to take."""
    match clause:
        case types.ClauseOr():
            return [name for c in clause.or_ for name in names(c)]
        case types.ClauseAnd():
            return [name for c in clause.and_ for name in names(c)]
        case types.ClauseEquals():
            return [clause.equals]
        case types.ClauseStartsWith():
            start = clause.starts_with
            return [start, start + "-x", start + "-20251211", start + "-2026-02-30", start + "-tts"]
        case types.ClauseEndsWith():
            return [clause.ends_with, "eu/" + clause.ends_with]
        case types.ClauseContains():
            return [clause.contains, f"eu.{clause.contains}-v1:0"]
        case types.ClauseRegex():
            text = clause.regex.strip("^$")
            for pattern, sample in (
                (r"(-\d{8})?", "-20260115"),
                ("(typesafe/)?", ""),
                (r"\d{8}", "20260115"),
                (r"\d{4}-\d{2}-\d{2}", "20260115"),
                (r"\d", "7"),
                ("[-@]", "@"),
                ("\\", ""),
            ):
                text = text.replace(pattern, sample)
            return [text]
    return []


def spelled(rng, name):
    return rng.choice((name.upper(), name.title())) if rng.random() < 0.1 else name


def provider_name(rng, provider):
    draw = rng.random()
    if draw < 0.85:
        return provider.id
    if draw < 0.9 or provider.provider_match is None:
        return rng.choice((provider.id.upper(), f" {provider.id} "))
    return spelled(rng, rng.choice(names(provider.provider_match) or [provider.id]))


def price_list(model):
    if isinstance(model.prices, types.ModelPrice):
        return [(None, model.prices)]
    return [(p.constraint, p.prices) for p in model.prices]


def moment(rng, model):
    constraints = [c for c, _ in price_list(model)] + [v.constraint for v in model.price_variants or ()]
    at = datetime(2023, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(5 * 365 * 86_400_000_000))
    edge = timedelta(microseconds=rng.choice((-1, 0, 1)))
    match rng.choice(constraints or [None]):
        case types.StartDateConstraint(start_date=day) if rng.random() < 0.8:
            at = datetime(day.year, day.month, day.day, tzinfo=UTC)
            at += rng.choice((edge, timedelta(days=rng.randrange(400)), -timedelta(hours=rng.randrange(48))))
        case types.TimeOfDateConstraint(start_time=start, end_time=end) if rng.random() < 0.7:
            clock = rng.choice((start, end)).replace(tzinfo=None)
            at = datetime.combine(at.date(), clock, tzinfo=UTC) + edge
        case _ if rng.random() < 0.4:
            at = datetime(2026, 10, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(120 * 86_400))
    return at


def context(rng, model):
    given = {}
    if model.price_variants and rng.random() < 0.75:
        for variant in rng.sample(model.price_variants, rng.choice((1, 1, 2)) if len(model.price_variants) > 1 else 1):
            given.update(variant.when)
    if rng.random() < 0.1:
        noise = (("service_tier", "standard"), ("processing", "Batch"), ("processing", "batch"), ("colour", "red"))
        given.update(dict([rng.choice(noise)]))
    return given


def size(rng):
    return rng.choice((0, 0, 1, rng.randrange(10), rng.randrange(2_000), rng.randrange(60_000), rng.randrange(2_000_000)))


def part(rng, whole):
    return rng.choice((0, whole, rng.randint(0, whole)))


def usage(rng, model):
    prices = [p for _, p in price_list(model)] + [v.prices for v in model.price_variants or ()]
    kinds = {"uncached": size(rng), "read": size(rng), "write": size(rng) if rng.random() < 0.5 else 0}
    tiers = [t.start for p in prices for v in vars(p).values() if isinstance(v, types.TieredPrices) for t in v.tiers]
    if tiers and rng.random() < 0.6:
        total = max(0, rng.choice(tiers) + rng.choice((-1, 0, 1, 1)))
        kinds["read"] = part(rng, total)
        kinds["write"] = part(rng, total - kinds["read"])
        kinds["uncached"] = total - kinds["read"] - kinds["write"]
    output = size(rng)
    used = {
        "input_tokens": sum(kinds.values()),
        "output_tokens": output,
        "cache_read_tokens": kinds["read"],
        "cache_write_tokens": kinds["write"],
        "cache_write_1h_tokens": part(rng, kinds["write"]),
        "output_reasoning_tokens": part(rng, output),
    }
    priced = {BY_PRICE_KEY[key] for p in prices for key, v in vars(p).items() if v is not None}
    others = {}
    # Fewer dimensions first: a whole is drawn before its parts.
    for name in sorted(priced - used.keys() - {"requests"}, key=lambda n: (len(unit_data[n]["dimensions"]), n)):
        if rng.random() < 0.15:
            continue
        dimensions = unit_data[name]["dimensions"].items()
        wholes = [
            count
            for other, count in (used | others).items()
            if unit_data[other]["dimensions"].items() < dimensions
        ]
        room = min(wholes, default=rng.choice((0, 1, 9, 11, 3_599, rng.randrange(100_000))))
        # Mostly leaves room for the other parts of the same whole.
        others[name] = rng.randint(0, room if rng.random() < 0.2 else room // 4) if wholes else room
    if rng.random() < 0.02:
        name = rng.choice([n for n in unit_data if n not in used and n != "requests"])
        others[name] = rng.randrange(5)
    return used, others


def case(rng, turn):
    # Every other one in turn; most models have a plain price, so the rest are drawn from the others.
    provider, model = ALL[turn // 2 % len(ALL)] if turn % 2 else rng.choice(RICH)
    name = spelled(rng, rng.choice(names(model.match) + [model.id]))
    asked = provider_name(rng, provider)
    draw = rng.random()
    if draw < 0.02:
        # Another provider's name for it, mostly nobody's.
        asked = rng.choice(("azure", "google", "openai", "vertex_ai", "nobody"))
    elif draw < 0.25 and (sellers := SELLERS.get(provider.id)):
        asked = rng.choice(sellers)
    at = moment(rng, model)
    given = context(rng, model)
    used, others = usage(rng, model)
    line = {
        "provider": asked,
        "model": name,
        "occurred_at_us": (at - EPOCH) // timedelta(microseconds=1),
        "context": given,
        "tokens": used,
        "other_units": others,
    }
    try:
        priced = calc_price(
            Usage(**used, **others),
            name,
            provider_id=asked,
            genai_request_timestamp=at,
            price_context=given,
        )
        line["cost"] = f"{priced.total_price:f}"
        line["price_id"] = priced.model.id
    except LookupError:
        line["error"] = "lookup"
    except ValueError:
        line["error"] = "value"
    return line


def main():
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed)
    for turn in range(count):
        print(json.dumps(case(rng, turn)))


main()
