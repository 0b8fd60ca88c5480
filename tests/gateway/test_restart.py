"""Workers replaced one by one while callers are served: no request gets lost silently."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from processes import Processes, gateway
from sqlalchemy import create_engine, text

CALLERS, WORKERS = 24, 2


async def restart(running: Processes) -> int:
    """Ask every worker to stop, one by one, each after its successor is there; how many."""
    replaced = 0
    for worker in running.workers():
        known = {each.pid for each in running.workers()}
        worker.send_signal(signal.SIGTERM)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            alive = running.workers()
            fresh = [each for each in alive if each.pid not in known]
            if fresh and not worker.is_running():
                replaced += 1
                break
            if fresh and worker.status() == psutil.STATUS_ZOMBIE:
                replaced += 1
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
    return replaced


async def load(running: Processes, token: str, done: asyncio.Event) -> dict[str, str]:
    """What every request's caller saw, by the id that the gateway gave it."""
    seen: dict[str, str] = {}
    broken = Counter[str]()
    timeout = aiohttp.ClientTimeout(total=60)

    async def caller(number: int, session: aiohttp.ClientSession) -> None:
        rng = random.Random(number)
        while not done.is_set():
            body = {
                "model": rng.choice(["plain", "slow", "drip"]),
                "messages": [{"role": "user", "content": "hi you"}],
                "max_tokens": 8,
                "stream": rng.random() < 0.5,
            }
            url = f"{running.url}/v1/chat/completions"
            identity = ""
            try:
                headers = {"authorization": f"Bearer {token}"}
                async with session.post(url, json=body, headers=headers) as answer:
                    identity = answer.headers["x-request-id"]
                    content = await answer.read()
                    whole = not body["stream"] or content.endswith(b"data: [DONE]\n\n")
                    seen[identity] = "done" if answer.status == 200 and whole else "failed"
            except (aiohttp.ClientError, TimeoutError) as error:
                broken[type(error).__name__] += 1
                if identity:
                    seen[identity] = "failed"
                await asyncio.sleep(0.1)

    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(caller(number, session) for number in range(CALLERS)))
    return seen


def ask(running: Processes, query: str) -> list[Any]:
    engine = create_engine(running.database.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            return list(connection.execute(text(query)))
    finally:
        engine.dispose()


def test_a_rolling_restart_loses_no_request_silently(database: str, tmp_path: Path) -> None:
    async def work(running: Processes, token: str) -> tuple[dict[str, str], int]:
        done = asyncio.Event()
        callers = asyncio.create_task(load(running, token, done))
        await asyncio.sleep(2)
        replaced = await restart(running)
        done.set()
        return await callers, replaced

    with gateway(tmp_path, database, workers=WORKERS, lease=3.0) as running:
        made = running.admin("POST", "keys", {"name": "caller"})
        form = {"name": "all", "amount": 10**9, "window": "total", "key_id": made["id"]}
        running.admin("POST", "budgets", form)
        seen, replaced = asyncio.run(work(running, made["token"]))
        assert replaced == WORKERS
        until = time.monotonic() + 60
        while ask(running, "SELECT id FROM reservations") and time.monotonic() < until:
            time.sleep(0.3)
        assert ask(running, "SELECT id FROM reservations") == []
        kinds = dict(ask(running, "SELECT request, kind FROM ledger"))
        succeeded = [request for request, how in seen.items() if how == "done"]
        assert len(succeeded) > CALLERS
        assert {kinds[request] for request in succeeded} == {"settled"}
        assert set(kinds.values()) <= {"settled", "unknown", "released"}
        served = {row["request"] for row in running.served()}
        assert served <= {request for request, kind in kinds.items() if kind != "released"}
        (reserved,) = ask(running, "SELECT SUM(reserved) FROM counters")
        assert reserved[0] == 0
