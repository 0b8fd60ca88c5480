"""A soak of one worker: does anything grow, leak or get lost over half an hour of mixed load?

Whole answers and streams, callers that hang up, failing upstreams, keys that are made, used and
revoked, budgets that run out. The upstream is the tests' recording one, a process that logs every
token it served. Every few seconds the worker's memory and connections and the database's
reservations are sampled; at the end every request of the upstream's log must have its ledger row.

    python benchmarks/gateway_soak.py [--minutes 30]

Writes `results/benchmarks/gateway-soak.json`. Checks, set beforehand: memory of the last fifth of
the time at most 10 % above that of the second fifth; nothing reserved at the end; no more open
connections after the load than before it; no request of the log without a row, none charged less
than the log says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from sqlalchemy import create_engine, text

from common import RESULTS, warn_if_busy
from gateway_servers import HERE, Side, free_port, outlay, running
from outlay.machine import commit, machine, today

CALLERS = 24
EVERY = 5.0
GROWTH = 1.10
MODELS = ("plain", "plain", "plain", "slow", "drip", "cut", "garbage", "silent")
FAILING = ("status500", "status503", "html", "error200")
RECORDER = HERE.parent / "tests" / "gateway" / "recording_upstream.py"


@dataclass
class Soak:
    """What callers saw."""

    side: Side
    until: float
    statuses: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)


async def caller(soak: Soak, number: int) -> None:
    """One caller: a fresh key now and then, requests of every kind, some given up half-way."""
    rng = random.Random(number)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        identity, token = await _key(soak, session, number)
        while time.monotonic() < soak.until:
            if rng.random() < 0.01:
                await _revoke(soak, session, identity, token)
                identity, token = await _key(soak, session, number)
            soak.statuses[await _request(soak, session, rng, token)] += 1
            await asyncio.sleep(rng.random() * 0.2)


async def _request(
    soak: Soak, session: aiohttp.ClientSession, rng: random.Random, token: str
) -> str:
    failing = rng.random() < 0.05
    body = {
        "model": rng.choice(FAILING if failing else MODELS),
        "messages": [{"role": "user", "content": "hi you " * rng.randint(1, 50)}],
        "max_tokens": rng.randint(1, 40),
        "stream": rng.random() < 0.5,
    }
    headers = {"authorization": f"Bearer {token}"}
    url = f"{soak.side.url}/v1/chat/completions"
    try:
        async with session.post(url, json=body, headers=headers) as answer:
            if rng.random() < 0.1:
                await answer.content.readany()
                answer.close()  # hang up
                return "hung up"
            await answer.read()
            return str(answer.status)
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__


async def _admin(
    soak: Soak, session: aiohttp.ClientSession, method: str, path: str, body: Any
) -> Any:
    headers = {"authorization": f"Bearer {soak.side.root}"}
    url = f"{soak.side.url}/admin/v1/{path}"
    async with session.request(method, url, json=body, headers=headers) as answer:
        answer.raise_for_status()
        return await answer.json()


async def _key(soak: Soak, session: aiohttp.ClientSession, number: int) -> tuple[str, str]:
    made = await _admin(soak, session, "POST", "keys", {"name": f"caller{number}"})
    budget = {"name": "small", "amount": 20_000, "window": "hour", "key_id": made["id"]}
    await _admin(soak, session, "POST", "budgets", budget)
    return made["id"], made["token"]


async def _revoke(soak: Soak, session: aiohttp.ClientSession, identity: str, token: str) -> None:
    await _admin(soak, session, "DELETE", f"keys/{identity}", None)
    headers = {"authorization": f"Bearer {token}"}
    async with session.get(f"{soak.side.url}/v1/models", headers=headers) as answer:
        soak.statuses["revoked key refused" if answer.status == 401 else "REVOKED KEY SERVED"] += 1


async def watch(soak: Soak, database: str, began: float) -> None:
    """Sample the worker until the load ends."""
    assert soak.side.process is not None
    process = psutil.Process(soak.side.process.pid)
    while time.monotonic() < soak.until:
        soak.samples.append({"at": round(time.monotonic() - began, 1), **sample(process, database)})
        await asyncio.sleep(EVERY)


def row(check: dict[str, Any]) -> dict[str, Any]:
    """A check as a row of the results' table."""
    return {
        "case": f"{check['claim']} (at most {check['at_most']})",
        "unit": "holds" if check["holds"] else "does not hold",
        "ours": check["measured"],
        "theirs": None,
        "peer": "",
        "ratio": None,
        "spread": None,
    }


def sample(process: psutil.Process, database: str) -> dict[str, int]:
    """Memory, connections and files of a process; rows of its database."""
    engine = create_engine(database)
    with engine.connect() as connection:
        counts = {
            name: int(connection.execute(text(f"SELECT COUNT(*) FROM {name}")).scalar_one())
            for name in ("reservations", "ledger")
        }
    engine.dispose()
    open_ = [each for each in process.net_connections("tcp") if each.status == "ESTABLISHED"]
    return {
        "rss_kb": process.memory_info().rss // 1024,
        "connections": len(open_),
        "files": process.num_fds(),
        "threads": process.num_threads(),
        **counts,
    }


def compare(database: str, log: Path) -> dict[str, int]:
    """The ledger against the upstream's own log."""
    served: dict[str, int] = defaultdict(int)
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        served[row["request"]] += row["prompt"] + row["output"]
    engine = create_engine(database)
    query = (
        "SELECT request, SUM(prompt + output) FROM ledger WHERE kind <> 'overrun' GROUP BY request"
    )
    with engine.connect() as connection:
        charged = {request: int(used) for request, used in connection.execute(text(query))}
        reserved = connection.execute(text("SELECT COALESCE(SUM(reserved), 0) FROM counters"))
        held = int(reserved.scalar_one())
        kinds = connection.execute(text("SELECT kind, COUNT(*) FROM ledger GROUP BY kind"))
        rows = {f"ledger_{kind}": int(count) for kind, count in kinds}
        doubled = connection.execute(
            text(
                "SELECT COUNT(*) FROM (SELECT reservation FROM ledger WHERE kind <> 'overrun' "
                "GROUP BY reservation HAVING COUNT(*) > 1) AS twice"
            )
        ).scalar_one()
    engine.dispose()
    return {
        "requests_served": len(served),
        "lost_rows": sum(request not in charged for request in served),
        "undercharged": sum(charged.get(each, 0) < used for each, used in served.items()),
        "doubled_rows": int(doubled),
        "reserved": held,
        **rows,
    }


def checks(soak: Soak, after: dict[str, int], books: dict[str, int]) -> list[dict[str, Any]]:
    """The claims, each with what was measured."""
    sizes = [each["rss_kb"] for each in soak.samples]
    fifth = max(1, len(sizes) // 5)
    early = statistics.median(sizes[fifth : 2 * fifth] or sizes)
    late = statistics.median(sizes[-fifth:])
    before = soak.samples[0]
    found = (
        ("memory is flat: last fifth over second fifth", round(late / early, 4), GROWTH),
        ("nothing is reserved at the end", books["reserved"] + after["reservations"], 0),
        ("connections more than before the load", after["connections"] - before["connections"], 0),
        ("open files more than before the load", after["files"] - before["files"], 4),
        ("requests of the upstream's log without a ledger row", books["lost_rows"], 0),
        ("requests charged less than the log says", books["undercharged"], 0),
        ("reservations that were closed twice", books["doubled_rows"], 0),
        ("revoked keys that were served", soak.statuses["REVOKED KEY SERVED"], 0),
    )
    return [
        {"claim": claim, "measured": measured, "at_most": most, "holds": measured <= most}
        for claim, measured, most in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes = parser.parse_args().minutes
    warn_if_busy()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        up, log = free_port(), folder / "served.jsonl"
        command = [sys.executable, str(RECORDER), str(up), str(log)]
        url = f"http://127.0.0.1:{up}"
        stack.enter_context(running(command, url, output=folder / "upstream.log", status=404))
        names = dict.fromkeys((*MODELS, *FAILING), url)
        side = stack.enter_context(
            outlay(folder, names, name="soak", knobs="breaker_failures = 1000000\n")
        )
        database = f"sqlite:///{folder / 'soak'}.db"
        began = time.monotonic()
        soak = Soak(side, began + minutes * 60)
        assert side.process is not None
        process = psutil.Process(side.process.pid)
        soak.samples.append({"at": 0.0, **sample(process, database)})
        asyncio.run(_all(soak, database, began))
        after = sample(process, database)
        for _ in range(20):  # idle connections to the upstreams close after a minute
            if after["connections"] <= soak.samples[0]["connections"]:
                break
            time.sleep(5)
            after = sample(process, database)
        books = compare(database, log)
    write(minutes, soak, after, books)


async def _all(soak: Soak, database: str, began: float) -> None:
    await asyncio.gather(
        watch(soak, database, began), *(caller(soak, number) for number in range(CALLERS))
    )


def write(minutes: float, soak: Soak, after: dict[str, int], books: dict[str, int]) -> None:
    found = checks(soak, after, books)
    data = {
        "name": "gateway-soak",
        "date": today(),
        "commit": commit(),
        "machine": machine(),
        "minutes": minutes,
        "callers": CALLERS,
        "answers": dict(soak.statuses.most_common()),
        "books": books,
        "after": after,
        "checks": found,
        "rows": [row(each) for each in found],
        "samples": soak.samples[:: max(1, len(soak.samples) // 60)],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "gateway-soak.json"
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for each in found:
        print("holds " if each["holds"] else "FAILS ", each["claim"], each["measured"])
    print(f"answers: {dict(soak.statuses)}\nwrote {path}")


if __name__ == "__main__":
    main()
