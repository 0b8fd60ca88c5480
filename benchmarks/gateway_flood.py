"""A flood of requests with unknown keys, in a process of its own; every key is another one.

    python gateway_flood.py URL REQUESTS SECONDS CONNECTIONS RATE

Sends REQUESTS, or as many as fit in SECONDS, over kept connections with up to 8 requests waiting on
each: RATE a second, or with 0 as many as are answered. Prints one JSON object: requests sent, how
many were answered with 401 and with anything else, connections that were closed, and the seconds
from the first request to the last answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast
from urllib.parse import urlsplit

DEPTH = 8
BODY = b'{"model":"instant","messages":[{"role":"user","content":"Hello there"}],"max_tokens":64}'
TICK = 0.005


class Flood:
    """What all connections share."""

    def __init__(self, host: str, requests: int, rate: float) -> None:
        self.host, self.requests, self.rate = host, requests, rate
        self.sent = self.refused = self.other = self.closed = 0
        self.began = time.perf_counter()
        self.last = self.began
        self.over = False
        self.done = asyncio.Event()

    def room(self) -> int:
        """How many may be sent now."""
        if self.over:
            return 0
        due = self.requests
        if self.rate:
            due = min(due, round(self.rate * (time.perf_counter() - self.began)))
        return due - self.sent

    def request(self) -> bytes:
        """The next one."""
        self.sent += 1
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\n"
            f"authorization: Bearer olk_{self.sent:016x}_{self.sent:043d}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
        ).encode() + BODY

    def answered(self, refused: int, answers: int) -> None:
        """Count answers."""
        self.refused += refused
        self.other += answers - refused
        self.last = time.perf_counter()
        if (self.over or self.sent >= self.requests) and self.left() <= 0:
            self.done.set()

    def left(self) -> int:
        """Requests without an answer."""
        return self.sent - self.refused - self.other


class Connection(asyncio.Protocol):
    """Keeps up to `DEPTH` requests waiting."""

    def __init__(self, flood: Flood) -> None:
        self.flood = flood
        self.waiting = 0
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)
        self.fill()

    def fill(self) -> None:
        """Send what may be sent."""
        more = min(DEPTH - self.waiting, self.flood.room())
        if more > 0 and not self.transport.is_closing():
            self.waiting += more
            self.transport.write(b"".join(self.flood.request() for _ in range(more)))

    def data_received(self, data: bytes) -> None:
        """Count answers by their first lines; one may be cut in two."""
        data = self.tail + data
        answers, refused = data.count(b"HTTP/1.1 "), data.count(b"HTTP/1.1 401")
        self.tail = data[-11:]
        answers -= self.tail.count(b"HTTP/1.1 ")
        self.waiting -= answers
        self.flood.answered(refused, answers)
        self.fill()

    def connection_lost(self, error: Exception | None) -> None:
        """The server closed it."""
        self.flood.closed += not self.flood.done.is_set()


async def flood(
    url: str, requests: int, seconds: float, connections: int, rate: float
) -> dict[str, float]:
    """Send the requests, and wait for the answers of those that were sent."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    host, port = parts.hostname, parts.port
    shared = Flood(parts.netloc, requests, rate)
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Connection(shared), host, port))[1]
        for _ in range(connections)
    ]
    while not shared.done.is_set():
        shared.over = shared.over or time.perf_counter() - shared.began > seconds
        if shared.over and (shared.left() <= 0 or time.perf_counter() - shared.last > 30):
            break
        for each in made:
            each.fill()
        await asyncio.sleep(TICK)
    shared.done.set()
    for each in made:
        each.transport.close()
    return {
        "requests": shared.sent,
        "refused": shared.refused,
        "other": shared.other,
        "closed": shared.closed,
        "seconds": shared.last - shared.began,
    }


def main(url: str, requests: str, seconds: str, connections: str, rate: str) -> None:
    work = flood(url, int(requests), float(seconds), int(connections), float(rate))
    try:
        import uvloop

        print(json.dumps(uvloop.run(work)))
    except ImportError:
        print(json.dumps(asyncio.run(work)))


if __name__ == "__main__":
    main(*sys.argv[1:])
