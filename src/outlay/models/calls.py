"""Calls to a server as values: sent one by one or side by side, never lost when they fail.

A `Call` is what to ask, an `Outcome` everything that came of it, the failure included. Whatever
happened, `Caller.book` puts it into the ledger: tokens received before a cut, tokens of attempts
that may have been billed, and usage that does not add up.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from outlay.cost import Price
from outlay.errors import EndpointError, OutlayError
from outlay.models.base import Account, SamplingParams
from outlay.models.billing import Charge, charges
from outlay.models.retry import OutOfTimeError, RefusedError, Tries
from outlay.models.tokens import ClientTokenizer, Count
from outlay.models.transport import DONE, Wire
from outlay.models.wire import PATHS, Api, Reply

# Fields that a server may refuse without making the answer useless: left out after a refusal.
_OPTIONAL = ("stream_options", "logprobs", "n", "seed", "return_token_ids")


@dataclass(frozen=True)
class Call:
    """One request.

    Args:
        api: which of the two APIs.
        fields: the body.
        sampling: what the body was made from.
        limit: max_tokens per choice.
        n: choices asked for.
        prompt: our own count of the prompt.
        rendered: True where that count can be held against the server's.
    """

    api: Api
    fields: Mapping[str, Any]
    sampling: SamplingParams
    limit: int
    n: int
    prompt: Count
    rendered: bool = False


@dataclass
class Outcome:
    """What came of a `Call`. `cut`: the budget's time ran out. `ended`: the stream said so."""

    reply: Reply = field(default_factory=Reply)
    tries: Tries = field(default_factory=Tries)
    seconds: float = 0.0
    error: OutlayError | None = None
    cut: bool = False
    ended: bool = False
    note: str = ""


@dataclass(frozen=True)
class Bill:
    """What a call is charged to the budget: tokens sampled, tokens of the prompt, dollars."""

    generated: int = 0
    prompt: int = 0
    usd: float = 0.0

    def __add__(self, other: Bill) -> Bill:
        return Bill(
            self.generated + other.generated, self.prompt + other.prompt, self.usd + other.usd
        )


class Caller:
    """Sends calls to one server and books them."""

    def __init__(
        self,
        transport: Wire,
        tokenizer: ClientTokenizer,
        price: Price | None,
        max_concurrency: int,
    ) -> None:
        self.transport = transport
        self.tokenizer = tokenizer
        self.price = price
        self.max_concurrency = max_concurrency
        self._refused: set[str] = set()
        self._warned: set[str] = set()

    def warn(self, message: str) -> None:
        """Warn once per message."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=4)

    def run_all(self, calls: Sequence[Call], deadline: float | None) -> list[Outcome]:
        """Outcomes in the order of `calls`, run side by side; after a failure no new one starts."""
        if len(calls) <= 1:
            return [self.run(call, deadline) for call in calls]
        with ThreadPoolExecutor(min(self.max_concurrency, len(calls))) as pool:
            futures = [pool.submit(self.run, call, deadline) for call in calls]
            for future in futures:
                future.add_done_callback(lambda done: _stop_after_failure(done, futures))
        return [Outcome() if future.cancelled() else future.result() for future in futures]

    def run(self, call: Call, deadline: float | None, *, attempts: int | None = None) -> Outcome:
        """Send one call; errors end up in the outcome. Streamed where a deadline may cut it."""
        outcome, start = Outcome(), time.perf_counter()
        try:
            if deadline is None:
                outcome.reply.add(self._post(call, outcome.tries, attempts))
            else:
                for _ in self.pieces(call, outcome, deadline):
                    pass
            if not outcome.reply.choices and not outcome.cut:
                raise EndpointError(
                    f"{self.transport.shown} answered without choices; check that "
                    f"{call.fields['model']!r} is a text model"
                )
        except OutlayError as error:
            outcome.error = error
        outcome.seconds = time.perf_counter() - start
        return outcome

    def pieces(self, call: Call, outcome: Outcome, deadline: float | None) -> Iterator[str]:
        """Stream one call into `outcome`; yields new text of choice 0.

        Raises:
            EndpointError: if the stream breaks off; `outcome` holds what came before.
        """
        try:
            events = self._events(call, outcome.tries, deadline)
        except OutOfTimeError as error:
            if not error.budget:
                raise
            outcome.cut = True
            return
        try:
            for event in events:
                if event is DONE:
                    outcome.ended = True
                elif fresh := outcome.reply.add(event):
                    yield fresh
            if not outcome.ended and not outcome.reply.finished:
                raise EndpointError(
                    f"{self.transport.shown} ended the stream before the answer was complete"
                )
        except EndpointError as error:
            if not outcome.reply.choices:
                outcome.tries.answers += 1  # opened, and perhaps billed, though nothing arrived
            if not isinstance(error, OutOfTimeError) or not error.budget:
                raise
            outcome.cut = True

    def _post(self, call: Call, tries: Tries, attempts: int | None) -> dict[str, Any]:
        path = PATHS[call.api]
        while True:
            fields = self._allowed(call.fields)
            try:
                return self.transport.post(path, fields, tries, attempts=attempts)
            except RefusedError as error:
                self._give_up_a_field(error, fields)

    def _events(
        self, call: Call, tries: Tries, deadline: float | None
    ) -> Iterator[Mapping[str, Any]]:
        extra = {"stream": True, "stream_options": {"include_usage": True}}
        while True:
            fields = self._allowed({**call.fields, **extra})
            try:
                return self.transport.events(PATHS[call.api], fields, tries, deadline=deadline)
            except RefusedError as error:
                self._give_up_a_field(error, fields)

    def _allowed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name not in self._refused}

    def _give_up_a_field(self, error: RefusedError, fields: Mapping[str, Any]) -> None:
        """Note the optional field that the server names in its refusal, or raise the refusal."""
        if error.status in (400, 422):
            for name in _OPTIONAL:
                if name in fields and re.search(rf"[\"'`.\s]{name}[\"'`.:\s]", f" {error.detail} "):
                    self._refused.add(name)
                    self.warn(f"{self.transport.shown} refuses {name}; going on without it")
                    return
        raise error

    def book(
        self, account: Account, call: Call, outcome: Outcome, branches: Sequence[str]
    ) -> tuple[list[Charge], Bill]:
        """Record one outcome, one entry per choice; choices beyond `branches` have no branch."""
        tries, prompt = outcome.tries, call.prompt.tokens
        retried = tries.prompts * prompt + tries.answers * (prompt + call.limit * call.n)
        notes = [outcome.note, f"failed: {outcome.error}" if outcome.error else ""]
        if outcome.cut:
            notes.append("cut by the budget's time limit")
        if not outcome.reply.choices:
            if retried:
                account.ledger.record(
                    account.stage,
                    account.role,
                    retried=retried,
                    estimated=True,
                    method=account.method,
                    seconds=outcome.seconds,
                    note="; ".join(filter(None, notes)),
                )
            return [], Bill()
        parts = charges(
            outcome.reply,
            call.sampling,
            self.tokenizer,
            prompt=call.prompt,
            limit=call.limit,
            rendered=call.rendered,
            echo=bool(call.fields.get("echo")),
        )
        bill = Bill()
        for index, part in enumerate(parts):
            unasked = "" if index < len(branches) else "a choice more than was asked for"
            account.ledger.record(
                account.stage,
                account.role,
                prompt_new=part.prompt_new,
                prompt_cached=part.prompt_cached,
                generated=part.generated,
                retried=retried if index == 0 else 0,
                estimated=part.estimated,
                branch=branches[index] if index < len(branches) else None,
                method=account.method,
                seconds=outcome.seconds if index == 0 else 0.0,
                note="; ".join(filter(None, [part.note, unasked, *notes])),
            )
            bill += Bill(
                part.enforced,
                part.prompt_new + part.prompt_cached,
                self.usd(part.prompt_new, part.prompt_cached, part.enforced),
            )
        return parts, bill

    def usd(self, prompt_new: int, prompt_cached: int, generated: int) -> float:
        """Dollars for these tokens; 0 without a price list."""
        return 0.0 if self.price is None else self.price.usd(prompt_new, prompt_cached, generated)


def _stop_after_failure(done: Future[Outcome], futures: Sequence[Future[Outcome]]) -> None:
    if not done.cancelled() and (done.exception() or done.result().error):
        for future in futures:
            future.cancel()
