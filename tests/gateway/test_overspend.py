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
from processes import Processes, gateway
from sqlalchemy import create_engine, text

KEYS, REQUESTS, OUTPUT = 50, 1000, 20
EACH = 420  # tokens of a key's budget: about a third of what its twenty requests would reserve
ALL_USD = 20_000_000  # nano-dollars of the budget that all keys share


async def load(running: Processes, tokens: list[str], kills: int) -> dict[int, int]:
    """Send everything at once while workers die; how often each status came (0: broke off).

    Callers do what callers do: they try again where the connection broke or the budget was busy.
    """
    rng = random.Random(7)
    counts: dict[int, int] = defaultdict(int)
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def once(index: int) -> int:
            body = {
                "model": rng.choice(["plain", "slow", "drip"]),
                "messages": [{"role": "user", "content": "hi you"}],
                "max_tokens": OUTPUT,
                "stream": rng.random() < 0.5,
                "user": f"key{index % KEYS}",
            }
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


def test_the_upstreams_own_log_never_exceeds_a_budget(database: str, tmp_path: Path) -> None:
    with gateway(tmp_path, database, workers=3, lease=4.0) as running:
        tokens, budgets = [], {}
        for index in range(KEYS):
            made = running.admin("POST", "keys", {"name": f"key{index}"})
            tokens.append(made["token"])
            form = {"name": f"key{index}", "amount": EACH, "window": "total", "key_id": made["id"]}
            budgets[f"key{index}"] = running.admin("POST", "budgets", form)["id"]
        shared = {"name": "all", "unit": "nanousd", "amount": ALL_USD, "window": "total"}
        running.admin("POST", "budgets", shared)
        counts = asyncio.run(load(running, tokens, kills=4))
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
            assert used <= EACH, user
        assert money <= ALL_USD

        counters = {b: (s, r) for b, s, r in ask(running, _COUNTERS)}
        for user, budget in budgets.items():
            settled, reserved = counters.get(budget, (0, 0))
            assert reserved == 0
            assert served[user] <= settled <= EACH
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
