"""An upstream that costs next to nothing: one fixed answer with its usage, after a fixed wait.

python benchmarks/gateway_upstream.py PORT [SECONDS]
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import orjson
import uvicorn

USAGE = {"prompt_tokens": 30, "completion_tokens": 8, "total_tokens": 38}
SHARED = {"id": "chatcmpl-1", "created": 1, "model": "bench"}
MESSAGE = {"role": "assistant", "content": "The answer is forty-two."}
CHOICES = [{"index": 0, "finish_reason": "stop", "message": MESSAGE}]
ANSWER = orjson.dumps({**SHARED, "object": "chat.completion", "choices": CHOICES, "usage": USAGE})
HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(ANSWER)).encode()),
    ],
}
BODY = {"type": "http.response.body", "body": ANSWER}


class App:
    """Answers every request alike, after `wait` seconds."""

    def __init__(self, wait: float) -> None:
        self.wait = wait

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if self.wait:
            await asyncio.sleep(self.wait)
        await send(HEAD)
        await send(BODY)


def main(port: int, wait: float = 0.0) -> None:
    uvicorn.run(
        App(wait),
        host="127.0.0.1",
        port=port,
        log_level="error",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(float, sys.argv[2:3]))
