"""A local model as an upstream: OpenAI's answers from `LocalModel.stream`, one request at a time.

Runs in a thread of its own. A caller that goes away stops it at the next token, and what it had
generated is reported as usage, since here nothing is unknown.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import orjson

from outlay.errors import OutlayError
from outlay.gateway import sse
from outlay.gateway.config import Endpoint, Upstream
from outlay.gateway.problems import error_body
from outlay.gateway.upstream import Reply
from outlay.models.base import Generation, Message, Prompt, SamplingParams

if TYPE_CHECKING:
    from outlay.models.base import Model

_FINISH = {"eos": "stop", "stop": "stop", "length": "length", "budget": "length"}


@runtime_checkable
class Holder(Protocol):
    """What holds a model in this process."""

    def model(self) -> Model:
        """The model, loaded on first use."""
        ...


@dataclass
class LocalUpstream:
    """A model in this process.

    Args:
        name: in the configuration.
        table: its configuration.
    """

    name: str
    table: Upstream
    _one: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    _model: Model | None = None
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def model(self) -> Model:
        """The model, loaded on first use."""
        with self._loading:
            if self._model is None:
                from outlay import models

                assert self.table.local is not None
                self._model = models.load(self.table.local)
            return self._model

    def ready(self) -> bool:
        """Always: a model in memory has no circuit to open."""
        return True

    def retry_after(self) -> int:
        """Never needed."""
        return 1

    def busy(self) -> bool:
        """Whether the model is generating."""
        return self._one.locked()

    def slot(self) -> asyncio.Semaphore:
        """The model's turn."""
        return self._one

    async def close(self) -> None:
        """Forget the model."""
        self._model = None

    @asynccontextmanager
    async def send(
        self, endpoint: Endpoint, fields: Mapping[str, Any], body: bytes, request: str
    ) -> AsyncIterator[Reply]:
        """Generate an answer."""
        stop = threading.Event()
        try:
            job = _Job(endpoint, fields, request)
        except OutlayError as error:
            yield _error(400, str(error))
            return
        streamed = fields.get("stream") is True
        pieces = self._pieces(job, stop)
        try:
            first = await anext(pieces)
            if isinstance(first, OutlayError):
                yield _error(400, str(first))
                return
            if streamed:
                yield Reply(200, "text/event-stream", {}, _events(job, first, pieces))
            else:
                yield Reply(200, "application/json", {}, _whole(job, first, pieces))
        finally:
            stop.set()
            await pieces.aclose()

    async def _pieces(
        self, job: _Job, stop: threading.Event
    ) -> AsyncGenerator[str | Generation | OutlayError, None]:
        """Text as it comes, then the generation (or the error) of every choice."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | Generation | OutlayError | None] = asyncio.Queue()

        def put(item: str | Generation | OutlayError | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                for item in job.run(self.model(), stop):
                    put(item)
            except OutlayError as error:
                put(error)
            finally:
                put(None)

        running = loop.run_in_executor(None, work)
        try:
            while (item := await queue.get()) is not None:
                yield item
        finally:
            stop.set()
            await asyncio.shield(running)


class _Job:
    """One request as the model understands it."""

    def __init__(self, endpoint: Endpoint, fields: Mapping[str, Any], request: str) -> None:
        if endpoint not in ("chat", "completions"):
            raise _unsupported(f"a local model does not serve {endpoint}; use chat or completions")
        self.endpoint, self.fields, self.request = endpoint, fields, request
        self.choices = fields.get("n") or 1
        self.created = int(time.time())
        self.done: list[Generation] = []
        stop = fields.get("stop") or ()
        limit = fields.get("max_completion_tokens", fields.get("max_tokens"))
        temperature = fields.get("temperature")
        top_p = fields.get("top_p")
        self.sampling = SamplingParams(
            max_tokens=int(limit or 0),
            temperature=1.0 if temperature is None else float(temperature),
            top_p=1.0 if top_p is None else float(top_p),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=int(fields.get("seed") or 0),
            include_stop=False,
        )

    def prompt(self, model: Model) -> Prompt:
        """The prompt; chat content as text."""
        if self.endpoint == "completions":
            given = self.fields.get("prompt", "")
            if isinstance(given, str) or (given and isinstance(given[0], int)):
                return cast(Prompt, given)
            if len(given) == 1:
                return cast(Prompt, given[0])
            raise _unsupported("a local model takes one prompt a request")
        messages = [
            Message(role=str(each.get("role", "user")), content=_text(each.get("content")))
            for each in self.fields["messages"]
        ]
        if model.takes_chat:
            return messages
        return "\n\n".join(message["content"] for message in messages)

    def run(self, model: Model, stop: threading.Event) -> Iterator[str | Generation]:
        """Generate the choices, one after another."""
        prompt = self.prompt(model)
        for choice in range(self.choices):
            sampling = self.sampling if not choice else _reseeded(self.sampling, choice)
            pieces = model.stream(prompt, None, sampling)
            for chunk in pieces:
                if chunk.generation is not None:
                    yield chunk.generation
                elif chunk.text:
                    yield chunk.text
                if stop.is_set():
                    pieces.close()  # type: ignore[attr-defined]
                    return

    def usage(self) -> dict[str, int]:
        """Tokens of all choices, the prompt once."""
        prompt = max((g.ledger.totals().prompt_new for g in self.done), default=0)
        output = sum(g.ledger.totals().generated for g in self.done)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        }

    def frame(self, piece: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An object on the wire."""
        kind = "chat.completion" if self.endpoint == "chat" else "text_completion"
        return {
            "id": self.request,
            "object": kind + piece if self.endpoint == "chat" else kind,
            "created": self.created,
            "model": self.fields["model"],
            "choices": choices,
            **more,
        }


def _reseeded(sampling: SamplingParams, choice: int) -> SamplingParams:
    from dataclasses import replace

    return replace(sampling, seed=sampling.seed + choice)


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    if len(texts) != len(content) or any(not isinstance(text, str) for text in texts):
        raise _unsupported("a local model reads text only")
    return "".join(str(text) for text in texts)


def _unsupported(message: str) -> OutlayError:
    from outlay.errors import InputError

    return InputError(message)


async def _events(
    job: _Job, first: Any, pieces: AsyncIterator[str | Generation | OutlayError]
) -> AsyncIterator[bytes]:
    async for item in _chain(first, pieces):
        index = len(job.done)
        if isinstance(item, OutlayError):
            yield sse.event(error_body(str(item), "api_error"))
            return
        if isinstance(item, str):
            yield _event(job, index, item, None)
        else:
            job.done.append(item)
            yield _event(job, index, "", _FINISH.get(item.finish_reason, "stop"))
    yield sse.event(orjson.dumps(job.frame(".chunk", [], usage=job.usage())))
    yield sse.event(sse.DONE)


def _event(job: _Job, index: int, text: str, finish: str | None) -> bytes:
    choice: dict[str, Any] = {"index": index, "finish_reason": finish}
    if job.endpoint == "chat":
        choice["delta"] = {"role": "assistant", "content": text} if text else {}
    else:
        choice["text"] = text
    return sse.event(orjson.dumps(job.frame(".chunk", [choice])))


async def _whole(
    job: _Job, first: Any, pieces: AsyncIterator[str | Generation | OutlayError]
) -> AsyncIterator[bytes]:
    async for item in _chain(first, pieces):
        if isinstance(item, OutlayError):
            yield error_body(str(item), "api_error")
            return
        if not isinstance(item, str):
            job.done.append(item)
    choices = []
    for index, each in enumerate(job.done):
        choice: dict[str, Any] = {
            "index": index,
            "finish_reason": _FINISH.get(each.finish_reason, "stop"),
        }
        if job.endpoint == "chat":
            choice["message"] = {"role": "assistant", "content": each.text}
        else:
            choice["text"] = each.text
        choices.append(choice)
    yield orjson.dumps(job.frame("", choices, usage=job.usage()))


async def _chain(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in rest:
        yield item


def _error(status: int, message: str) -> Reply:
    async def body() -> AsyncIterator[bytes]:
        yield error_body(message, "invalid_request_error")

    return Reply(status, "application/json", {}, body())
