"""A month in the life of a gateway, made up: keys, budgets, a ledger, a comparison."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, update

from outlay.budget import Budget
from outlay.comparison import Comparison
from outlay.example import Outcome
from outlay.gateway.store import admin, catalogue, schema
from outlay.gateway.store.books import BudgetRow, Key
from outlay.gateway.windows import Window
from outlay.ledger import Ledger
from outlay.records import Record
from outlay.report import View

DAY = 86_400.0
MODELS = {  # name: route, nano-dollars a token, share of requests
    "gpt-4o-mini": ("default", 350, 0.45),
    "gpt-4o": ("premium", 5_000, 0.2),
    "llama-3.3-70b": ("default", 700, 0.2),
    "qwen3-32b": ("batch", 300, 0.15),
}
KEYS = (  # name, owner, team, role, share of requests
    ("support-bot", "support", "customers", "caller", 0.45),
    ("search", "search", "product", "caller", 0.3),
    ("nightly-eval", "research", "research", "caller", 0.2),
    ("ada", "research", "research", "owner", 0.05),
    ("wallboard", "ops", "", "viewer", 0.0),
)


def fill(connection: Connection, now: float, steps: int = 4000) -> dict[str, str]:
    """Write it, with about half as many ledger rows as `steps`; the tokens of its keys by name."""
    dice = random.Random(7)
    tokens, keys = {}, {}
    for name, owner, team, role, _ in KEYS:
        made = admin.create_key(
            connection, now, actor="seed", name=name, owner=owner, team=team, role=role
        )
        tokens[name], keys[name] = made.token, made.key
    old = admin.create_key(connection, now, actor="seed", name="prototype", owner="search")
    admin.revoke_key(connection, now, actor="seed", identity=old.key.id)
    rows = [_row(dice, now, keys, at) for at in _times(dice, now, steps)]
    connection.execute(insert(schema.ledger), rows)
    budgets = _budgets(connection, now, keys, rows)
    _count(connection, budgets, rows)
    _fly(connection, dice, now, keys, budgets[0])
    hour = int(now // 3600) * 3600
    connection.execute(
        insert(schema.refusals),
        [
            {"hour": hour - 3600 * ago, "key_id": keys[name].id, "kind": kind, "number": number}
            | {"owner": keys[name].owner}
            for ago, name, kind, number in (
                (0, "search", "busy", 2),
                (1, "search", "exhausted", 14),
                (5, "support-bot", "exhausted", 31),
                (8, "nightly-eval", "suspended", 9),
                (80, "nightly-eval", "spent", 120),
            )
        ],
    )
    connection.execute(
        insert(schema.alerts).values(
            at=now - 4 * 3600,
            kind="overrun",
            message="local-vllm used 812 tokens for qwen3-32b where 540 were allowed "
            "(request req_5d1f0a2b7c3e4f5061728394); it is suspended for this model",
        )
    )
    connection.execute(
        insert(schema.suspensions).values(
            upstream="local-vllm",
            model="qwen3-32b",
            at=now - 4 * 3600,
            reason="local-vllm used 812 tokens for qwen3-32b where 540 were allowed "
            "(request req_5d1f0a2b7c3e4f5061728394); it is suspended for this model",
        )
    )
    return tokens


def _times(dice: random.Random, now: float, steps: int) -> list[float]:
    """More by day than by night, more on working days."""
    found = []
    for step in range(steps):
        at = now - step / steps * 30 * DAY - dice.random() * 600
        hour, day = at / 3600 % 24, int(at // DAY) % 7
        busy = (0.55 - 0.45 * math.cos((hour - 3) / 24 * 2 * math.pi)) * (0.35 if day > 4 else 1)
        if dice.random() < busy:
            found.append(at)
    return sorted(found + [now - 3500 * dice.random() for _ in range(6)])


def _row(dice: random.Random, now: float, keys: Mapping[str, Key], at: float) -> dict[str, Any]:
    name = dice.choices([k[0] for k in KEYS], [k[4] for k in KEYS])[0]
    model = dice.choices(list(MODELS), [m[2] for m in MODELS.values()])[0]
    route, rate, _ = MODELS[model]
    prompt, output = int(dice.lognormvariate(7.2, 0.7)), int(dice.lognormvariate(5.4, 0.6))
    kind = dice.choices(("settled", "unknown", "released"), (0.96, 0.02, 0.02))[0]
    status = {"settled": 200, "unknown": 504, "released": 503}[kind]
    note = {"unknown": "the upstream stopped answering", "released": "upstream answered 503"}
    if kind == "released":
        prompt = output = 0
    stages = _stack(dice, prompt, output) if route == "batch" and kind == "settled" else ""
    seconds = output / 70 + 0.3
    return {
        "reservation": f"{dice.getrandbits(128):032x}",
        "kind": kind,
        "at": min(at + seconds, now),
        "admitted_at": at,
        "key_id": keys[name].id,
        "owner": keys[name].owner,
        "team": keys[name].team,
        "model": model,
        "route": route,
        "endpoint": "chat",
        "upstream": "local-vllm" if model.startswith("qwen") else "openai",
        "request": f"req_{dice.getrandbits(96):024x}",
        "attempt": 1,
        "reserved_tokens": prompt + 4 * output + 400,
        "reserved_nanousd": (prompt + 4 * output + 400) * rate,
        "prompt": prompt,
        "cached": prompt // 3,
        "output": output,
        "reasoning": 0,
        "nanousd": (prompt + output * 3) * rate,
        "status": status,
        "seconds": seconds,
        "ttft": 0.21 if status == 200 else None,
        "stages": stages,
        "note": note.get(kind, ""),
    }


def _stack(dice: random.Random, prompt: int, output: int) -> str:
    """The ledger that a stack left."""
    ledger = Ledger()
    think = output * 2 // 3
    ledger.record("prompt", "scorer", prompt_new=prompt, method="longcodezip", seconds=0.08)
    ledger.record(
        "think", "target", prompt_new=prompt // 2, generated=think, branch="t", method="m1"
    )
    ledger.record("answer", "target", generated=output - think, branch="a", method="m1")
    ledger.deliver(["a", "t"] if dice.random() < 0.8 else ["a"])
    return json.dumps(ledger.to_dict())


def _budgets(
    connection: Connection, now: float, keys: Mapping[str, Key], rows: list[dict[str, Any]]
) -> list[BudgetRow]:
    """Budgets that are nearly spent, comfortable, rolling, and one that never renews."""

    def spent(unit: str, days: float, **wanted: str) -> int:
        mine = [
            row
            for row in rows
            if row["at"] > now - days * DAY and all(row[k] == v for k, v in wanted.items())
        ]
        return max(
            10_000,
            sum(r["nanousd"] if unit == "nanousd" else r["prompt"] + r["output"] for r in mine),
        )

    month = now - Window("month").since(now)
    wanted: list[dict[str, Any]] = [
        {
            "name": "company, monthly",
            "unit": "nanousd",
            "amount": _round(max(10**9, spent("nanousd", month / DAY) * 1.35)),
            "window": Window("month"),
        },
        {
            "name": "support, weekly",
            "unit": "tokens",
            "amount": _round(spent("tokens", 4, owner="support") * 1.4),
            "window": Window("week", "Europe/Berlin"),
            "owner": "support",
            "mode": "shrink",
        },
        {
            "name": "gpt-4o, any 24 h",
            "unit": "nanousd",
            "amount": _round(spent("nanousd", 1, model="gpt-4o") * 1.5),
            "window": Window("rolling", "UTC", 86_400),
            "model": "gpt-4o",
        },
        {
            "name": "research grant",
            "unit": "tokens",
            "amount": _round(spent("tokens", 30, team="research") * 1.3),
            "window": Window("total"),
            "team": "research",
        },
        {
            "name": "search, daily",
            "unit": "tokens",
            "amount": _round(spent("tokens", 1, owner="search") * 1.02),
            "window": Window("day"),
            "key_id": keys["search"].id,
        },
    ]
    made = [admin.create_budget(connection, now, actor="seed", **fields) for fields in wanted]
    connection.execute(update(schema.budgets).values(created_at=now - 30 * DAY))
    catalogue.touch(connection)
    return made


def _round(value: float) -> int:
    """To two digits, as people set limits."""
    scale = 10 ** (len(str(int(value))) - 2)
    return int(value) // scale * scale


def _count(connection: Connection, budgets: list[BudgetRow], rows: list[dict[str, Any]]) -> None:
    """The counters that the ledger implies."""
    sums: Counter[tuple[str, int]] = Counter()
    for row in rows:
        for budget in budgets:
            names = ("key_id", "owner", "team", "model", "route")
            if all(getattr(budget, n) in (None, row[n]) for n in names):
                used = row["prompt"] + row["output"]
                used = row["nanousd"] if budget.unit == "nanousd" else used
                sums[budget.id, budget.window.bucket(row["admitted_at"])] += used
    connection.execute(
        insert(schema.counters),
        [
            {"budget_id": budget, "bucket": bucket, "settled": used, "reserved": 0}
            for (budget, bucket), used in sums.items()
        ],
    )


def _fly(
    connection: Connection,
    dice: random.Random,
    now: float,
    keys: Mapping[str, Key],
    budget: BudgetRow,
) -> None:
    """Three requests in flight, held on `budget`."""
    bucket = budget.window.bucket(now)
    held = 0
    for index, name in enumerate(("support-bot", "search", "nightly-eval")):
        prompt, output = 900 + 400 * index, 1024
        nanousd = (prompt + output) * 5_000
        held += nanousd
        connection.execute(
            insert(schema.reservations).values(
                id=f"{dice.getrandbits(128):032x}",
                state="held" if index == 2 else "sent",
                worker="another",
                admitted_at=now - 3 - 4 * index,
                lease_until=now + 3600,
                key_id=keys[name].id,
                owner=keys[name].owner,
                team=keys[name].team,
                model="gpt-4o",
                route="premium",
                endpoint="chat",
                upstream="openai",
                request=f"req_{dice.getrandbits(96):024x}",
                attempt=1 + index // 2,
                prompt=prompt,
                output=output,
                nanousd=nanousd,
                lines=json.dumps([[budget.id, bucket, budget.unit, nanousd]]),
                idempotency=None,
            )
        )
    table = schema.counters
    where = (table.c.budget_id == budget.id, table.c.bucket == bucket)
    connection.execute(table.update().where(*where).values(reserved=held))


def comparison() -> dict[str, Any]:
    """What `outlay compare --json` prints, of three methods at four budgets."""
    dice = random.Random(3)
    outcomes = []
    for task, easy in (("repo-qa", 0.0), ("grade-school-math", 0.12)):
        for stack, good in (("full", 0.62), ("longcodezip", 0.58), ("longcodezip+m1", 0.66)):
            for budget in (64, 128, 256, 512):
                for example in range(60):
                    ledger = Ledger()
                    ledger.record("answer", "target", prompt_new=1500, generated=budget - 3)
                    chance = good + easy - 9 / budget
                    outcomes.append(
                        Outcome(
                            Record(
                                task=task,
                                example=str(example),
                                method_stack=stack,
                                budget=Budget(tokens=budget),
                                seed=0,
                                quality=float(dice.random() < chance),
                                ledger=ledger,
                            ),
                            {},
                        )
                    )
    views = {name: View("accuracy") for name in ("repo-qa", "grade-school-math")}
    meta = {"model": "SmolLM2-135M-Instruct", "examples": 60, "seed": 0}
    return Comparison("Which way to spend 512 tokens", outcomes, views, meta=meta).to_dict()
