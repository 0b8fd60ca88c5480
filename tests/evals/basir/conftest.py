"""An OpenAI-compatible server on loopback that answers by script and reports its own usage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from outlay.models.endpoint import EndpointModel


class Spaces:
    """A tokenizer of words, as the server counts."""

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join("w" * size for size in ids)


class Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send({"object": "list", "data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        reply = self.server.answer(text)
        used = {
            "prompt_tokens": len(text.split()),
            "completion_tokens": len(reply.split()),
            "total_tokens": len(text.split()) + len(reply.split()),
        }
        self.server.prompts.append(text)
        self.server.usage.append(used)
        message = {"role": "assistant", "content": reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.send({"choices": [choice], "usage": used})

    def send(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def serving() -> Any:
    """`with serving(answer) as (server, model)`: `answer` makes the reply from the request."""

    @contextmanager
    def start(answer: Any) -> Iterator[tuple[Any, EndpointModel]]:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.answer, server.prompts, server.usage = answer, [], []
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/v1"
            yield server, EndpointModel(url, "tiny", api="chat", tokenizer=Spaces())
        finally:
            server.shutdown()
            server.server_close()

    return start
