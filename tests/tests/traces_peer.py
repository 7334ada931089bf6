"""What the answers over the two real traces must be, worked out from the files alone.

Follows the rules that `standalone demo --help` and the replay's documentation state,
and nothing of the services' own code; costs are those of the package genai-prices.

    traces_peer.py requests FILE.csv UNTIL_US   > JSON
    traces_peer.py actions  FILE.jsonl UNTIL_US > JSON
    traces_peer.py generate-requests > FILE.csv    for a clone without the traces
    traces_peer.py generate-actions  > FILE.jsonl
"""

import collections
import csv
import datetime
import decimal
import hashlib
import ipaddress
import json
import random
import re
import sys
import uuid
from zoneinfo import ZoneInfo

MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-4.1-mini"),
    ("openai", "gpt-5.4-mini"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-4-5"),
    ("google", "gemini-2.5-flash"),
    ("google", "gemini-2.5-pro"),
    ("mistral", "codestral-2508"),
    ("deepseek", "deepseek-chat"),
    ("self-hosted", "llama-3.3-70b-instruct"),
]
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
MICROSECOND = datetime.timedelta(microseconds=1)
NANO = decimal.Decimal("1e-9")
ZONE = "Asia/Kathmandu"


def micros(text):
    """Microseconds since the epoch of `YYYY-MM-DD HH:MM:SS[.f…]`, cut."""
    whole, _, fraction = text.partition(".")
    at = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.timezone.utc)
    return (at - EPOCH) // MICROSECOND + int((fraction + "000000")[:6])


def rfc3339(us):
    return (EPOCH + us * MICROSECOND).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def uuid7(us, bits):
    value = (us // 1000) << 80 | int.from_bytes(bits, "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return str(uuid.UUID(int=value))


def sha(text):
    return hashlib.sha256(text.encode()).digest()


def money(nanos):
    """A decimal string without trailing zeros."""
    text = format(decimal.Decimal(nanos) * NANO, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def cost_nanos(provider, model, us, tokens_in, tokens_out):
    """Nano-dollars, half to even; None where the package knows no price."""
    from genai_prices import Usage, calc_price

    try:
        price = calc_price(
            Usage(input_tokens=tokens_in, output_tokens=tokens_out),
            model_ref=model,
            provider_id=provider,
            genai_request_timestamp=EPOCH + us * MICROSECOND,
        )
    except LookupError:
        return None
    return int((price.total_price / NANO).quantize(decimal.Decimal(1), decimal.ROUND_HALF_EVEN))


class Totals:
    def __init__(self):
        self.requests = self.input = self.output = self.nanos = self.unpriced = self.unpriced_tokens = 0
        self.users, self.models = set(), set()

    def add(self, row):
        self.requests += 1
        self.input += row["input"]
        self.output += row["output"]
        self.users.add(row["user"])
        self.models.add(row["model"])
        if row["nanos"] is None:
            self.unpriced += 1
            self.unpriced_tokens += row["input"] + row["output"]
        else:
            self.nanos += row["nanos"]

    def shown(self):
        return {
            "requests": self.requests,
            "total_tokens": self.input + self.output,
            "input_uncached": self.input,
            "output": self.output,
            "cost": money(self.nanos),
            "unique_users": len(self.users),
            "unique_models": len(self.models),
            "unpriced_requests": self.unpriced,
            "unpriced_tokens": self.unpriced_tokens,
        }


def requests(path, until):
    rows = []
    with open(path, newline="") as file:
        for index, record in enumerate(csv.DictReader(file)):
            fields = [record[name] for name in ("TIMESTAMP", "ContextTokens", "GeneratedTokens")]
            rows.append((index, fields, micros(fields[0])))
    latest = max(us for _, _, us in rows)
    events = []
    for index, (stamp, tokens_in, tokens_out), us in rows:
        key = "|".join([str(index), stamp, tokens_in, tokens_out])

        def h(name):
            return int.from_bytes(sha(f"{name}|{key}")[:8], "big")

        us = us - latest + until
        user = ((h("user") >> 32) % 300) * (h("user") % 300) // 300
        provider, model = MODELS[h("model") % 10]
        events.append(
            {
                "id": uuid7(us, sha(f"id|{key}")[:10]),
                "us": us,
                "user": f"user-{user:03}",
                "team": f"team-{user % 12:02}",
                "key": f"key-{user:03}-{h('key') % 2}",
                "provider": provider,
                "model": model,
                "input": int(tokens_in),
                "output": int(tokens_out),
                "nanos": cost_nanos(provider, model, us, int(tokens_in), int(tokens_out)),
            }
        )

    def grouped(key):
        groups = collections.defaultdict(Totals)
        for event in events:
            groups[key(event)].add(event)
        return {name: totals.shown() for name, totals in groups.items()}

    total = Totals()
    for event in events:
        total.add(event)

    def hour(event):
        """The start of the hour by the clock of ZONE, in microseconds."""
        local = (EPOCH + event["us"] * MICROSECOND).astimezone(ZoneInfo(ZONE))
        start = local.replace(minute=0, second=0, microsecond=0)
        return (start.astimezone(datetime.timezone.utc) - EPOCH) // MICROSECOND

    exported = [
        {
            "id": event["id"],
            "occurredAt": rfc3339(event["us"]),
            "userId": event["user"],
            "model": event["model"],
            "cost": None if event["nanos"] is None else money(event["nanos"]),
        }
        for event in sorted(events, key=lambda event: (event["us"], event["id"]))
    ]
    return {
        "zone": ZONE,
        "first_us": min(event["us"] for event in events),
        "summary": total.shown(),
        "breakdowns": {
            dimension: grouped(lambda event: event[name])
            for dimension, name in [
                ("DIMENSION_USER", "user"),
                ("DIMENSION_TEAM", "team"),
                ("DIMENSION_MODEL", "model"),
                ("DIMENSION_PROVIDER", "provider"),
                ("DIMENSION_API_KEY", "key"),
            ]
        },
        "series": grouped(lambda event: f"{hour(event)}|{event['provider']}"),
        "exported": exported,
    }


TAKE_AWAY = ("Delete", "Remove", "Detach", "Disassociate", "Revoke", "Release", "Terminate")


def snake(name):
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    words = re.sub(r"[^a-z0-9_]", "_", words).lstrip("_")
    return words if words[:1].isalpha() else "x_" + words


def cut(text, size):
    text = "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in text)
    return text.encode()[:size].decode(errors="ignore")


def compact(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def text_of(value):
    return value if isinstance(value, str) else ""


def members(value):
    return sorted(value.items()) if isinstance(value, dict) else []


def action_resources(record, service):
    name = record["eventName"].lower()
    found = []
    for member, value in members(record.get("requestParameters")):
        ending = next((e for e in ("Identifier", "Name", "name", "Arn", "Id") if member.endswith(e)), None)
        if not isinstance(value, str) or not value or ending is None:
            continue
        stem = member[: -len(ending)]
        kind = snake(stem) if stem else service
        found.append((kind.replace("_", "") not in name, member, {"type": cut(kind, 256), "id": cut(value, 256)}))
    found.sort(key=lambda item: item[:2])
    if found:
        return [resource for _, _, resource in found[:20]]
    return [{"type": service, "id": cut(text_of(record.get("recipientAccountId")), 256) or "unknown"}]


def action_changes(record):
    size, changes = 0, []
    for part in ("requestParameters", "responseElements"):
        old = part == "requestParameters" and record["eventName"].startswith(TAKE_AWAY)
        for member, value in members(record.get(part)):
            value = compact(value)
            size += len(value.encode())
            if size > 32768:
                value = compact("sha256:" + hashlib.sha256(value.encode()).hexdigest())
            pointer = member.replace("~", "~0").replace("/", "~1")
            changes.append({"path": cut(f"/{part}/{pointer}", 256), "oldValue" if old else "newValue": value})
    return changes[:100]


def action(line, record, us):
    who = record.get("userIdentity") or {}
    service = snake(record["eventSource"].split(".")[0])
    verb = snake(re.sub(r"\d{8}(v\d+)?$", "", record["eventName"]))
    arn, invoked_by = text_of(who.get("arn")), text_of(who.get("invokedBy"))
    issuer = ((who.get("sessionContext") or {}).get("sessionIssuer") or {}).get("userName")
    kind = {
        "IAMUser": "ACTOR_KIND_USER",
        "Root": "ACTOR_KIND_USER",
        "AssumedRole": "ACTOR_KIND_SERVICE_ACCOUNT",
        "Role": "ACTOR_KIND_SERVICE_ACCOUNT",
        "FederatedUser": "ACTOR_KIND_SERVICE_ACCOUNT",
    }.get(who.get("type"), "ACTOR_KIND_SYSTEM" if invoked_by else None)
    try:
        address = str(ipaddress.ip_address(text_of(record.get("sourceIPAddress"))))
    except ValueError:
        address = ""
    actor = {
        "id": cut(arn or text_of(who.get("principalId")) or invoked_by or "unknown", 256),
        "kind": kind,
        "displayName": cut(
            text_of(who.get("userName")) or text_of(issuer) or arn.rsplit("/")[-1] or invoked_by, 256
        ),
        "ipAddress": address,
        "userAgent": cut(text_of(record.get("userAgent")), 1024),
    }
    error, message = text_of(record.get("errorCode")), text_of(record.get("errorMessage"))
    if not error:
        outcome = "OUTCOME_SUCCESS"
    elif "AccessDenied" in error or "Unauthorized" in error:
        outcome = "OUTCOME_DENIED"
    else:
        outcome = "OUTCOME_FAILURE"
    names = ("awsRegion", "eventID", "eventName", "eventSource", "eventType", "sourceIPAddress")
    account = text_of(record.get("recipientAccountId"))
    event = {
        "id": uuid7(us, hashlib.sha256(line.encode()).digest()[:10]),
        "occurredAt": rfc3339(us),
        "instanceId": cut(f"aws-{account}", 256) if account else "aws",
        "actor": {name: value for name, value in actor.items() if value},
        "action": f"{service}.{verb}",
        "resources": action_resources(record, service),
        "outcome": outcome,
        "reason": cut(": ".join(part for part in (error, message if error else "") if part), 1024),
        "changes": action_changes(record),
        "detailsJson": compact({name: record[name] for name in names if isinstance(record.get(name), str)}),
        "requestId": cut(text_of(record.get("requestID")), 256),
    }
    return {name: value for name, value in event.items() if value}


def actions(path, until):
    with open(path, encoding="utf-8") as file:
        lines = [line.rstrip("\r\n") for line in file if line.strip()]
    records = [json.loads(line) for line in lines]
    times = [micros(record["eventTime"].replace("T", " ").rstrip("Z")) for record in records]
    latest = max(times)
    events = [action(line, record, us - latest + until) for line, record, us in zip(lines, records, times)]
    events.sort(key=lambda event: (event["occurredAt"], event["id"]))

    def counts(values):
        return dict(collections.Counter(values))

    return {
        "exported": events,
        "actors": counts(event["actor"]["id"] for event in events),
        "actions": counts(event["action"] for event in events),
        "resource_types": counts(kind for event in events for kind in {r["type"] for r in event["resources"]}),
        "instances": counts(event["instanceId"] for event in events),
    }


def generate_requests():
    draw, at = random.Random(1), datetime.datetime(2023, 11, 16, 18, 17, 3, 979960)
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    for _ in range(3000):
        at += datetime.timedelta(microseconds=int(draw.expovariate(2.5) * 1e6))
        sizes = int(draw.lognormvariate(7.3, 0.9)) + 1, int(draw.lognormvariate(2.8, 0.9)) + 1
        yield f"{at:%Y-%m-%d %H:%M:%S.%f}0,{sizes[0]},{sizes[1]}"


def generate_actions():
    draw, at = random.Random(2), datetime.datetime(2023, 7, 10, 11, 54, 39)
    for number in range(200):
        at += datetime.timedelta(seconds=draw.randrange(40))
        verb, thing = draw.choice(["Create", "Update", "Delete", "Put"]), draw.choice(["Role", "DBInstance", "Bucket"])
        record = {
            "userIdentity": {"type": "IAMUser", "arn": f"arn:aws:iam::1:user/ada-{draw.randrange(5)}"},
            "eventTime": f"{at:%Y-%m-%dT%H:%M:%S}Z",
            "eventSource": draw.choice(["iam", "rds", "s3"]) + ".amazonaws.com",
            "eventName": verb + thing + draw.choice(["", "20150331", "20150331v2"]),
            "sourceIPAddress": draw.choice(["192.0.2.7", "2001:db8::7", "cloudformation.amazonaws.com"]),
            "requestParameters": {f"{thing[0].lower()}{thing[1:]}Name": f"Größe/{number}", "size": number, "on": True},
            "responseElements": draw.choice([None, {"made": {"b": [1, None], "a": "~/"}}]),
            "requestID": f"request-{number}",
            "recipientAccountId": draw.choice(["1", "2"]),
        }
        if draw.random() < 0.2:
            record["errorCode"] = draw.choice(["AccessDenied", "Client.UnauthorizedOperation", "ValidationError"])
            record["errorMessage"] = "no\tway"
        yield json.dumps(record, ensure_ascii=False)


if __name__ == "__main__":
    if sys.argv[1].startswith("generate-"):
        lines = {"generate-requests": generate_requests, "generate-actions": generate_actions}[sys.argv[1]]()
        print("\n".join(lines))
    else:
        what, path, until = sys.argv[1], sys.argv[2], int(sys.argv[3])
        json.dump({"requests": requests, "actions": actions}[what](path, until), sys.stdout)
