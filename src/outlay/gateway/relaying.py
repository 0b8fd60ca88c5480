"""From the upstream to the caller: whole answers, streams, refusals, and what breaks off."""

from __future__ import annotations

import orjson

from outlay.gateway import sse
from outlay.gateway.answering import Answer
from outlay.gateway.closing import Closer
from outlay.gateway.problems import RequestError, upstream_failed
from outlay.gateway.store.batch import Settled
from outlay.gateway.upstream import Broken, NotSent, Reply, Server
from outlay.gateway.wire import EVENTS, JSON, as_object, gather

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_REFUSED = frozenset({429, 503})  # said before any work was done
_LONGEST_ERROR = 1_000_000


class AgainError(Exception):
    """An attempt failed before anything reached the caller; another may be made.

    Args:
        problem: what the caller is told if none is made.
    """

    def __init__(self, problem: RequestError) -> None:
        super().__init__(str(problem))
        self.problem = problem


async def relay(answer: Answer, closer: Closer, server: Server) -> None:
    """Send a reserved request, answer the caller, close the reservation.

    Raises:
        AgainError: if another attempt may be made.
        RequestError: for what the caller is told.
    """
    wanted = closer.wanted
    closer.relayed = True
    fields = closer.forwarded()
    body = orjson.dumps(fields)
    try:
        async with server.send(wanted.endpoint, fields, body, answer.id) as reply:
            if reply.status != 200:
                await _refused(closer, reply)
            elif wanted.stream and wanted.endpoint != "embeddings":
                await _stream(answer, closer, reply)
            else:
                await _whole(answer, closer, reply)
    except NotSent as error:
        await closer.release(0, str(error))
        raise AgainError(upstream_failed(str(error), 502, "upstream_unreachable")) from error
    except Broken as error:
        await closer.settle(error.status, note=str(error))
        if answer.started:
            await answer.break_off(str(error))
            return
        raise AgainError(upstream_failed(str(error), error.status)) from error


async def _refused(closer: Closer, reply: Reply) -> None:
    """Another status than 200."""
    raw = await gather(reply.pieces, _LONGEST_ERROR)
    note = f"{closer.upstream} answered {reply.status}"
    payload = as_object(raw)
    charged = reply.status >= 500 and reply.status not in _REFUSED
    if (charged and closer.charges_failures()) or 200 < reply.status < 400:
        closer.tally.whole(payload or {})
        await closer.settle(reply.status, note=note)
    else:
        await closer.release(reply.status, note)
    status = reply.status if 400 <= reply.status < 500 else 502
    message = note
    code: str | None = "upstream_error"
    error = (payload or {}).get("error")
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        message = f"{note}: {error['message'][:1000]}"
        code = error["code"] if isinstance(error.get("code"), str) else code
    if status in (401, 403):  # the operator's credentials, not the caller's
        status = 502
    headers = {name: reply.headers[name] for name in ("retry-after",) if name in reply.headers}
    kind = "api_error" if status >= 500 or status == 429 else "invalid_request_error"
    problem = RequestError(status, message, kind, code, headers=headers)
    if reply.status in _RETRIED:
        raise AgainError(problem)
    raise problem


async def _whole(answer: Answer, closer: Closer, reply: Reply) -> None:
    raw = await gather(reply.pieces, None)
    payload = as_object(raw)
    if payload is None:
        raise Broken(f"{closer.upstream} answered 200 with something that is no JSON object")
    closer.tally.whole(payload)
    answer.ttft = answer.seconds()
    if isinstance(payload.get("error"), dict):
        raise Broken(f"{closer.upstream} answered 200 with an error")
    if closer.amend(payload):
        raw = orjson.dumps(payload)
    if answer.kept is not None:
        answer.kept += raw
    settled: Settled | None
    settled = closer.book(200) if answer.kept is None else await closer.settle(200, media=JSON)
    headers = {"content-type": JSON, **answer.accounts(settled)}
    await answer.start(200, headers)
    await answer.write(raw, last=True)


async def _stream(answer: Answer, closer: Closer, reply: Reply) -> None:
    upstream = closer.upstream
    if reply.media != EVENTS:
        raise Broken(f"{upstream} answered a streamed request with {reply.media[:40]!r}")
    wanted, tally = closer.wanted, closer.tally
    named = wanted.endpoint == "responses"  # events have names, and the last one is no [DONE]
    splitter = sse.Splitter()
    done = False
    try:
        async for piece in reply.pieces:
            ready = bytearray()
            for data in splitter.feed(piece):
                if data == sse.DONE:
                    done = True
                    continue
                payload = as_object(data)
                if payload is None:
                    raise Broken(f"{upstream} sent an event that is no JSON object")
                if tally.piece(payload) and answer.ttft is None:
                    answer.ttft = answer.seconds()
                if payload.get("error") and "choices" not in payload:
                    raise Broken(f"{upstream} sent an error in its stream")
                bare = not payload.get("choices") and payload.get("usage") is not None
                if bare and not wanted.usage and not named:
                    continue
                if bare and closer.amend(payload):
                    data = orjson.dumps(payload)
                name = b""
                if named and isinstance(payload.get("type"), str):
                    name = payload["type"].encode()
                ready += sse.event(data, name)
            if ready:
                await answer.start_stream()
                await answer.write(bytes(ready))
    except sse.EventTooLong as error:
        raise Broken(f"{upstream} sent {error}") from error
    if splitter.open or not (done or tally.ended):
        raise Broken(f"{upstream} ended its stream too early")
    await answer.start_stream()
    last = b"" if named else sse.event(sse.DONE)
    if answer.kept is not None:
        answer.kept += last
    await closer.settle(200, media=EVENTS)
    await answer.write(last, last=True, keep=False)
