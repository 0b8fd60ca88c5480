"""A load generator in a process of its own: as many requests as fit in some seconds.

    python gateway_load.py URL TOKEN MODEL SECONDS CONNECTIONS PAUSE

Every connection sends its next request when the last one was answered, after a random pause of at
most PAUSE seconds: against an upstream with a fixed wait they would march in step without. Prints
one JSON object: requests, failures, seconds, the median and 99th percentile of the latencies in
milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from typing import Any

import aiohttp

PROMPT = "A farmer has six boxes with seven eggs each. How many eggs does the farmer have in all?"


async def load(
    url: str, token: str, model: str, seconds: float, connections: int, pause: float
) -> Any:
    """Send requests for `seconds`."""
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64}
    ).encode()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    latencies: list[float] = []
    failed = 0
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers
    ) as session:
        start = time.perf_counter()
        until = start + seconds

        async def one(number: int) -> None:
            nonlocal failed
            rng = random.Random(number)
            await asyncio.sleep(number / connections * min(seconds, 0.2))
            while (began := time.perf_counter()) < until:
                async with session.post(f"{url}/v1/chat/completions", data=body) as answer:
                    await answer.read()
                    failed += answer.status != 200
                latencies.append((time.perf_counter() - began) * 1000)
                if pause:
                    await asyncio.sleep(rng.random() * pause)

        await asyncio.gather(*(one(number) for number in range(connections)))
        taken = time.perf_counter() - start
    cuts = statistics.quantiles(latencies, n=100)
    return {
        "requests": len(latencies),
        "failed": failed,
        "seconds": taken,
        "p50": cuts[49],
        "p99": cuts[98],
    }


def main(url: str, token: str, model: str, seconds: str, connections: str, pause: str) -> None:
    work = load(url, token, model, float(seconds), int(connections), float(pause))
    try:
        import uvloop

        print(json.dumps(uvloop.run(work)))
    except ImportError:
        print(json.dumps(asyncio.run(work)))


if __name__ == "__main__":
    main(*sys.argv[1:])
