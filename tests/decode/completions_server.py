"""A completions server on loopback that runs a real local model, with or without its own limit on
thinking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from outlay.decode.thinking_budget import ThinkingBudget
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel

MODEL = "tiny"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": MODEL, "owned_by": self.server.kind}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        model = self.server.model
        stop = tuple(body.get("stop", ()))
        limit = body["max_tokens"]
        sampling = SamplingParams(
            max_tokens=limit, stop=stop, min_tokens=body.get("min_tokens", 0), include_stop=False
        )
        think = body.get("thinking_token_budget")
        if think is None:
            made = model.generate(body["prompt"], None, sampling)
            text, finish, stopped = made.text, made.finish_reason, made.finish_reason == "stop"
        else:
            inner = ThinkingBudget(max_think=think, overthink_prefix="", newline="", max_answer=10)
            done = inner.generate(model, body["prompt"])
            text, finish, stopped = f"{done.thinking}</think>{done.text}", "eos", False
        prompt = len(model.prompt_ids(body["prompt"]))
        generated = model.count(text) + (finish in ("eos", "stop"))
        self.reply(
            {
                "choices": [
                    {
                        "index": 0,
                        "text": text,
                        "finish_reason": "length" if finish == "length" else "stop",
                        "stop_reason": stop[0] if stopped and self.server.kind == "vllm" else None,
                    }
                ],
                "usage": {
                    "prompt_tokens": prompt,
                    "completion_tokens": generated,
                    "total_tokens": prompt + generated,
                },
            }
        )

    def reply(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, model: LocalModel, kind: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.kind = model, kind
        self.requests: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving(model: LocalModel, kind: str = "someone") -> Iterator[Server]:
    """Serve `model`; kind "vllm" takes the stop string off and says which one it was."""
    server = Server(model, kind)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
