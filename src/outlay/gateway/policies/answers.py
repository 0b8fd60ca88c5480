"""The answer that a policy's methods found, in the API's own form."""

from __future__ import annotations

import time
from typing import Any

import orjson

from outlay.gateway import sse
from outlay.gateway.answering import Answer
from outlay.gateway.closing import Closer
from outlay.gateway.policies.running import Solved
from outlay.gateway.store.books import Charge
from outlay.gateway.wire import EVENTS, JSON

_FINISH = {"length": "length", "budget": "length"}


async def reply(answer: Answer, closer: Closer, solved: Solved) -> None:
    """Settle, and answer the caller: whole, or as a stream in one piece."""
    charge = closer.charge(200)
    answer.ttft = answer.seconds()
    body = _stream(answer, closer, solved, charge)
    if not closer.wanted.stream:
        body = orjson.dumps(_whole(answer, closer, solved, charge))
    media = EVENTS if closer.wanted.stream else JSON
    if answer.kept is not None:
        answer.kept += body
    settled = await closer.settle(200, media=media)
    await answer.start(200, {"content-type": media, **answer.accounts(settled)})
    await answer.write(body, last=True)


def _message(solved: Solved) -> dict[str, Any]:
    message = {"role": "assistant", "content": solved.text}
    if solved.thinking:
        message["reasoning_content"] = solved.thinking
    return message


def _usage(answer: Answer, charge: Charge) -> dict[str, Any]:
    assert answer.books is not None
    return {
        "prompt_tokens": charge.prompt,
        "completion_tokens": charge.output,
        "total_tokens": charge.tokens,
        "prompt_tokens_details": {"cached_tokens": charge.cached},
        "completion_tokens_details": {"reasoning_tokens": charge.reasoning},
        "outlay": answer.books.report(),
    }


def _frame(answer: Answer, closer: Closer, kind: str) -> dict[str, Any]:
    model = closer.wanted.model
    return {"id": answer.id, "object": kind, "created": int(time.time()), "model": model}


def _whole(answer: Answer, closer: Closer, solved: Solved, charge: Charge) -> dict[str, Any]:
    finish = _FINISH.get(solved.finish, "stop")
    choice = {"index": 0, "message": _message(solved), "finish_reason": finish}
    frame = _frame(answer, closer, "chat.completion")
    return {**frame, "choices": [choice], "usage": _usage(answer, charge)}


def _stream(answer: Answer, closer: Closer, solved: Solved, charge: Charge) -> bytes:
    frame = _frame(answer, closer, "chat.completion.chunk")
    finish = _FINISH.get(solved.finish, "stop")
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": _message(solved), "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
    ]
    if closer.wanted.usage:
        events.append({"choices": [], "usage": _usage(answer, charge)})
    framed = [sse.event(orjson.dumps({**frame, **event})) for event in events]
    return b"".join(framed) + sse.event(sse.DONE)
