"""An OpenAI-compatible server that logs every token it serves, and misbehaves on demand.

Run as a process (`python recording_upstream.py PORT LOG`) or in a thread (`Upstream`). What it does
is chosen by the model's name, so that one server has every behaviour:

- `plain`, `slow` (.2 s), `drip` (a stream with pauses), `gate` (waits until `Handler.gate` opens)
- `liar` (reports a tenth), `greedy` (serves more than it was asked for), `silent` (no usage)
- `html`, `error200` (200 with an error), `stall` (never answers), `cut` (breaks off mid-stream)
- `garbage` (events that are no JSON), `fat` (one endless event): these too wait at the gate
- `status500`, `status503`, `status400`, `redirect`, `flaky` (fails every other time)

A prompt costs one token a word, an answer is `max_tokens` times "word".
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from aiohttp import web


@dataclass
class Log:
    """What was served: one line a token bundle, flushed at once."""

    file: TextIO | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, request: str, user: str, model: str, prompt: int, output: int) -> None:
        """Note tokens that were served."""
        row = {"request": request, "user": user, "model": model, "prompt": prompt, "output": output}
        self.rows.append(row)
        if self.file is not None:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()


class Handler:
    """Answers requests."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.calls = 0
        self.cancelled = 0
        self.gate = threading.Event()
        self.gate.set()

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(client_max_size=2**27)
        for path in ("chat/completions", "completions", "responses", "embeddings"):
            app.router.add_post(f"/v1/{path}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        self.calls += 1
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        model = body["model"]
        endpoint = request.path.rsplit("/v1/", 1)[1]
        if model == "html":
            return web.Response(text="<html>welcome</html>", content_type="text/html")
        if model == "redirect":
            raise web.HTTPFound("http://127.0.0.1:1/v1/elsewhere")
        if model.startswith("status") or (model == "flaky" and self.calls % 2):
            status = int(model.removeprefix("status")) if model != "flaky" else 503
            error = {"error": {"message": "no", "type": "x", "code": "c"}}
            return web.json_response(error, status=status)
        if model == "stall":
            await asyncio.sleep(3600)
        if model == "slow":
            await asyncio.sleep(0.2)
        if model == "gate":
            await self._opened()
        if model == "error200":
            return web.json_response({"error": {"message": "something broke"}})
        try:
            if body.get("stream"):
                return await self._stream(request, body, endpoint)
            return self._whole(request, body, endpoint)
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled += 1
            raise

    def _sizes(self, body: dict[str, Any]) -> tuple[int, int, int]:
        text = json.dumps(body.get("messages") or body.get("prompt") or body.get("input"))
        names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
        limit = next((body[name] for name in names if name in body), 0)
        if body["model"] == "greedy":
            limit *= 10
        return len(text.split()), limit, body.get("n") or 1

    def _note(self, request: web.Request, body: dict[str, Any], prompt: int, output: int) -> None:
        name = request.headers.get("x-request-id", "")
        self.log.add(name, body.get("user", ""), body["model"], prompt, output)

    @staticmethod
    def _usage(body: dict[str, Any], endpoint: str, prompt: int, output: int) -> dict[str, Any]:
        if body["model"] == "liar":
            prompt, output = prompt // 10, output // 10
        if endpoint == "responses":
            return {
                "input_tokens": prompt,
                "output_tokens": output,
                "total_tokens": prompt + output,
            }
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        }

    def _whole(self, request: web.Request, body: dict[str, Any], endpoint: str) -> web.Response:
        prompt, limit, n = self._sizes(body)
        self._note(request, body, prompt, limit * n)
        usage = (
            {}
            if body["model"] == "silent"
            else {"usage": self._usage(body, endpoint, prompt, limit * n)}
        )
        text = " ".join(["word"] * limit)
        if endpoint == "embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
            return web.json_response({"object": "list", "data": data, "model": "m", **usage})
        if endpoint == "responses":
            content = [{"type": "output_text", "text": text, "annotations": []}]
            output = [
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "content": content,
                }
            ]
            return web.json_response({**_response(body, output), **usage})
        choices = [
            {
                "index": i,
                "finish_reason": "length",
                **(
                    {"message": {"role": "assistant", "content": text}}
                    if endpoint == "chat/completions"
                    else {"text": text}
                ),
            }
            for i in range(n)
        ]
        kind = "chat.completion" if endpoint == "chat/completions" else "text_completion"
        shared = {"id": "x", "object": kind, "created": 1, "model": body["model"]}
        return web.json_response({**shared, "choices": choices, **usage})

    async def _stream(
        self, request: web.Request, body: dict[str, Any], endpoint: str
    ) -> web.StreamResponse:
        prompt, limit, n = self._sizes(body)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        self._note(request, body, prompt, 0)
        model = body["model"]
        for at in range(limit):
            for choice in range(n):
                self._note(request, body, 0, 1)
                await self._send(response, _piece(endpoint, model, choice, "word "))
            if model == "drip":
                await asyncio.sleep(0.05)
            if model in ("cut", "garbage", "fat") and at == 2:
                await self._opened()
            if model == "cut" and at == 2:
                assert request.transport is not None
                request.transport.close()
                return response
            if model == "garbage" and at == 2:
                await response.write(b"data: {not json\n\n")
            if model == "fat" and at == 2:
                await response.write(b"data: " + b"x" * 6_000_000)
        if endpoint == "responses":
            usage = self._usage(body, endpoint, prompt, limit)
            done = {
                "type": "response.completed",
                "response": {**_response(body, []), "usage": usage},
            }
            await self._send(response, done)
            return response
        for choice in range(n):
            await self._send(response, _piece(endpoint, model, choice, "", "length"))
        if model != "silent" and (body.get("stream_options") or {}).get("include_usage"):
            usage = self._usage(body, endpoint, prompt, limit * n)
            shared = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model}
            await self._send(response, {**shared, "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _opened(self) -> None:
        while not self.gate.is_set():
            await asyncio.sleep(0.01)

    @staticmethod
    async def _send(response: web.StreamResponse, payload: dict[str, Any]) -> None:
        head = f"event: {payload['type']}\n" if "type" in payload else ""
        await response.write(f"{head}data: {json.dumps(payload)}\n\n".encode())


def _piece(
    endpoint: str, model: str, choice: int, text: str, finish: str | None = None
) -> dict[str, Any]:
    if endpoint == "responses":
        return {
            "type": "response.output_text.delta",
            "delta": text,
            "output_index": 0,
            "content_index": 0,
            "item_id": "msg_1",
            "sequence_number": 1,
        }
    row: dict[str, Any] = {"index": choice, "finish_reason": finish}
    if endpoint == "chat/completions":
        row["delta"] = {"role": "assistant", "content": text} if text else {}
        kind = "chat.completion.chunk"
    else:
        row["text"] = text
        kind = "text_completion"
    return {"id": "x", "object": kind, "created": 1, "model": model, "choices": [row]}


def _response(body: dict[str, Any], output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": body["model"],
        "output": output,
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }


@dataclass
class Running:
    """A server in a thread."""

    url: str
    handler: Handler

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was served."""
        return self.handler.log.rows


@contextmanager
def upstream() -> Iterator[Running]:
    """A server in a thread, on a free port of loopback."""
    handler = Handler(Log())
    loop = asyncio.new_event_loop()
    started: list[int] = []
    ready = threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(handler.app(), handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.addresses
        started.append(runner.addresses[0][1])
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield Running(f"http://127.0.0.1:{started[0]}/v1", handler)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def main(port: int, log: Path) -> None:
    """Serve until killed."""
    with log.open("a", encoding="utf-8") as file:
        handler = Handler(Log(file))
        web.run_app(
            handler.app(),
            host="127.0.0.1",
            port=port,
            print=None,
            handler_cancellation=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
