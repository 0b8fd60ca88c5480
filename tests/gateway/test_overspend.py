"""Nothing can overspend: a thousand requests at once, several workers, workers killed with -9.

The judge is the upstream's own log, written by another process: it must never exceed any budget.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from counting import word_tokenizer
from processes import Processes, gateway
from sqlalchemy import create_engine, text

KEYS, REQUESTS, OUTPUT = 50, 1000, 20
EACH = 420  # tokens of a key's budget: about a third of what its twenty requests would reserve
VOTES = 1200  # the same, where most of them may become votes
ALL_USD = 20_000_000  # nano-dollars of the budget that all keys share


POLICIES = """
[policies.vote]
reason = "self-consistency:n=2"
seconds = 20

[policies.cut]
prompt = "head"
above = 8
keep = 0.5

[routes.all]
policy = "vote"
choose = ["cut", "none"]
"""
LONG = "look\n\n" + "word " * 12 + "\n\nwhat?"


async def load(
    running: Processes, tokens: list[str], kills: int, chosen: tuple[str, ...] = ()
) -> dict[int, int]:
    """Send everything at once while workers die; how often each status came (0: broke off).

    Callers do what callers do: they try again where the connection broke or the budget was busy.
    """
    rng = random.Random(7)
    counts: dict[int, int] = defaultdict(int)
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def once(index: int, policy: str = "") -> int:
            body = {
                "model": rng.choice(["plain", "slow", "drip"]),
                "messages": [{"role": "user", "content": "hi you"}],
                "max_tokens": OUTPUT,
                "stream": rng.random() < 0.5,
                "user": f"key{index % KEYS}",
            }
            if chosen:
                body["outlay"] = {"policy": policy or rng.choice(chosen)}
                body["messages"] = [{"role": "user", "content": rng.choice(["hi you", LONG])}]
            headers = {"authorization": f"Bearer {tokens[index % KEYS]}"}
            url = f"{running.url}/v1/chat/completions"
            try:
                async with session.post(url, json=body, headers=headers) as answer:
                    await answer.read()
                    counts[answer.status] += 1
                    return answer.status if "retry-after" in answer.headers else 200
            except (aiohttp.ClientError, TimeoutError):
                counts[0] += 1
                return 0

        async def one(index: int) -> None:
            for attempt in range(4):
                if await once(index) == 200:
                    return
                await asyncio.sleep((attempt + 1) * rng.random())

        if chosen:  # room for some votes before everyone comes
            for index in range(KEYS):
                await once(index, "vote")
        everything = asyncio.gather(*(one(index) for index in range(REQUESTS)))
        for number in range(kills):
            while not everything.done() and counts[200] < 10 + 15 * number:
                await asyncio.sleep(0.05)
            workers = running.workers()
            if not everything.done() and workers:
                running.kill(rng.choice(workers))
        await everything
    return counts


def ask(running: Processes, query: str) -> list[Any]:
    url = running.database.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return list(connection.execute(text(query)))
    finally:
        engine.dispose()


@pytest.mark.parametrize("policies", [False, True], ids=["plain", "policies"])
def test_the_upstreams_own_log_never_exceeds_a_budget(
    database: str, tmp_path: Path, policies: bool
) -> None:
    tokenizer = str(word_tokenizer(tmp_path)) if policies else ""
    each = VOTES if policies else EACH
    more, chosen = (POLICIES, ("vote", "cut", "none")) if policies else ("", ())
    with gateway(
        tmp_path, database, workers=3, lease=4.0, models=more, tokenizer=tokenizer
    ) as running:
        tokens, budgets = [], {}
        for index in range(KEYS):
            made = running.admin("POST", "keys", {"name": f"key{index}"})
            tokens.append(made["token"])
            form = {"name": f"key{index}", "amount": each, "window": "total", "key_id": made["id"]}
            budgets[f"key{index}"] = running.admin("POST", "budgets", form)["id"]
        money_limit = ALL_USD * (4 if policies else 1)
        shared = {"name": "all", "unit": "nanousd", "amount": money_limit, "window": "total"}
        running.admin("POST", "budgets", shared)
        counts = asyncio.run(load(running, tokens, kills=4, chosen=chosen))
        assert counts[200] > KEYS, dict(counts)
        assert counts[0] > 0, dict(counts)  # workers died with requests in their hands
        assert counts[429] + counts[402] > 100, dict(counts)

        until = time.monotonic() + 90  # leases of dead workers run out and are swept
        while ask(running, "SELECT id FROM reservations") and time.monotonic() < until:
            time.sleep(0.5)
        assert ask(running, "SELECT id FROM reservations") == []

        served: dict[str, int] = defaultdict(int)
        by_request: dict[str, int] = defaultdict(int)
        money = 0
        for row in running.served():
            served[row["user"]] += row["prompt"] + row["output"]
            by_request[row["request"]] += row["prompt"] + row["output"]
            money += row["prompt"] * 1000 + row["output"] * 2000
        assert served
        for user, used in served.items():
            assert used <= each, user
        assert money <= money_limit

        counters = {b: (s, r) for b, s, r in ask(running, _COUNTERS)}
        for user, budget in budgets.items():
            settled, reserved = counters.get(budget, (0, 0))
            assert reserved == 0
            assert served[user] <= settled <= each
        voted = [row for (row,) in ask(running, _STAGES) if "self-consistency" in row]
        assert len(voted) > KEYS // 2 if policies else not voted, len(voted)
        charged = {
            request: (kind, prompt + output)
            for request, kind, prompt, output in ask(running, _LEDGER)
        }
        for request, used in by_request.items():
            kind, amount = charged[request]
            assert amount >= used
            if amount > used:
                assert kind == "unknown"


_COUNTERS = "SELECT budget_id, SUM(settled), SUM(reserved) FROM counters GROUP BY budget_id"
_LEDGER = "SELECT request, kind, prompt, output FROM ledger WHERE kind IN ('settled', 'unknown')"
_STAGES = "SELECT stages FROM ledger WHERE kind IN ('settled', 'unknown')"
