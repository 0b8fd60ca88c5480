"""An upstream that misbehaves on cue: a real HTTP server on loopback with scripted answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any

from json_server import JsonHandler, JsonServer, running

Reaction = Callable[["Handler", dict[str, Any]], None]
MODEL = "tiny"


class Words:
    """A tokenizer: one token a word, with the space before it."""

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join("w" * size for size in ids)


class Handler(JsonHandler):
    server: Upstream

    def do_GET(self) -> None:
        if self.path != f"{self.server.prefix}/models":
            self.json({"error": {"message": "no such page"}}, 404)
        else:
            self.json({"object": "list", "data": self.server.rows})

    def do_POST(self) -> None:
        body = self.body()
        with self.server.lock:
            self.server.requests.append(body)
            self.server.paths.append(self.path)
            script = self.server.script
            reaction = script.pop(0) if len(script) > 1 else script[0]
        reaction(self, body)

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.raw(json.dumps(value).encode(), status, "application/json", **headers)

    def raw(self, data: bytes, status: int, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", headers.pop("length", str(len(data))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def open_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def event(self, value: Any) -> None:
        data = value if isinstance(value, str) else json.dumps(value)
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()


class Upstream(JsonServer):
    def __init__(self, script: Sequence[Reaction]) -> None:
        super().__init__(Handler)
        self.script = list(script)
        self.lock = Lock()
        self.stopped = Event()
        self.paths: list[str] = []
        self.prefix = "/v1"
        self.rows: list[dict[str, Any]] = [{"id": MODEL}, {"id": "other"}]

    def handle_error(self, *_: object) -> None:
        pass  # clients that hang up are the point

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.root}{self.prefix}"


@contextmanager
def upstream(*script: Reaction) -> Iterator[Upstream]:
    """A server that reacts to the k-th POST with script[k], and with the last one from then on."""
    with running(Upstream(script)) as server:
        try:
            yield server
        finally:
            server.stopped.set()


def usage(prompt: int, generated: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        **more,
    }


def answer(*texts: str, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """A whole answer; every choice has both APIs' fields."""
    rows = [
        {
            "index": index,
            "text": text,
            "message": {"role": "assistant", "content": text},
            "finish_reason": finish,
        }
        for index, text in enumerate(texts)
    ]
    return {"choices": rows, **fields}


def says(*texts: str, **fields: Any) -> Reaction:
    return lambda handler, body: handler.json(answer(*texts, **fields))


def fails(status: int, message: str = "broken", **headers: str) -> Reaction:
    return lambda handler, body: handler.json({"error": {"message": message}}, status, **headers)


def sends(data: bytes, kind: str = "application/json", **headers: str) -> Reaction:
    return lambda handler, body: handler.raw(data, 200, kind, **headers)


def streams(*events: Any, pause: float = 0.0) -> Reaction:
    def react(handler: Handler, body: dict[str, Any]) -> None:
        handler.open_stream()
        for event in events:
            handler.event(event)
            handler.server.stopped.wait(pause)

    return react


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


def hangs(seconds: float) -> Reaction:
    def react(handler: Handler, body: dict[str, Any]) -> None:
        handler.server.stopped.wait(seconds)
        handler.json(answer("late"))

    return react


def drips(seconds: float, every: float = 0.05) -> Reaction:
    """Headers at once, then one blank at a time: no single read is slow."""

    def react(handler: Handler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        end = time.monotonic() + seconds
        while time.monotonic() < end and not handler.server.stopped.is_set():
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(every)

    return react
