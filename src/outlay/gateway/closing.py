"""Closing a reservation: what goes upstream under it, what is charged, exactly once.

What is reserved is settled whatever happens to the caller or the upstream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial
from typing import Any

from outlay.gateway.answering import Answer
from outlay.gateway.bounds import LIMITS, Wanted, counter
from outlay.gateway.config import ModelTable, Upstream
from outlay.gateway.state import Gateway
from outlay.gateway.store.batch import Outcome, Release, Settle, Settled
from outlay.gateway.store.books import Charge, Grant
from outlay.gateway.usage import Tally, Usage
from outlay.gateway.wire import JSON

log = logging.getLogger("outlay.gateway")


class Closer:
    """Closes one reservation exactly once.

    Args:
        gateway: with the store.
        answer: what the caller gets.
        grant: the reservation.
        wanted: the request.
        table: its model.
        upstream: where it is sent.
        sent: whether the reservation counts as sent already.
    """

    def __init__(
        self,
        gateway: Gateway,
        answer: Answer,
        grant: Grant,
        wanted: Wanted,
        table: ModelTable,
        upstream: Upstream,
        *,
        sent: bool,
    ) -> None:
        self.gateway, self.answer, self.grant = gateway, answer, grant
        self.wanted, self.table, self.sent = wanted, table, sent
        self.upstream = table.upstream
        self._settings = upstream
        self.limit = grant.output
        self.relayed = False  # whether the request itself was sent, beside a policy's own calls
        self.began = time.perf_counter()
        self.closed = False
        count = None if table.tokenizer is None else counter(table.tokenizer)
        self.tally = Tally(wanted.endpoint, count)

    def charges_failures(self) -> bool:
        """Whether a failure of the upstream is charged in full."""
        return self._settings.charge_failures == "full"

    def forwarded(self) -> dict[str, Any]:
        """The body for the upstream: its own model name, the limit that was reserved."""
        wanted, table = self.wanted, self.table
        fields = {name: value for name, value in wanted.fields.items() if name not in LIMITS}
        fields["model"] = table.name or wanted.model
        if wanted.endpoint == "responses":
            fields["max_output_tokens"] = self.limit
        elif wanted.endpoint == "chat":
            fields[table.limit_field] = self.limit
        elif wanted.endpoint == "completions":
            fields["max_tokens"] = self.limit
        else:  # embeddings have no stream, whatever was asked for
            fields.pop("stream", None)
            fields.pop("stream_options", None)
        if wanted.stream and wanted.endpoint in ("chat", "completions"):
            fields["stream_options"] = {
                **(wanted.fields.get("stream_options") or {}),
                "include_usage": True,
            }
        return fields

    def charge(self, status: int, note: str = "") -> Charge:
        """What was used: the larger of what was reported and what was counted, else all."""
        common: dict[str, Any] = {
            "status": status,
            "seconds": time.perf_counter() - self.began,
            "ttft": self.answer.ttft,
            "note": note,
        }
        if self.answer.books is not None:
            return self._planned_charge(common)
        used = self._used()
        return Charge(full=True, **common) if used is None else self._charge(used, common)

    def _used(self) -> Usage | None:
        """What the request itself used; None if that is not known."""
        tally, usage = self.tally, self.tally.usage
        if usage is not None:
            return replace(usage, output=max(tally.output(), usage.output))
        if tally.count is None or not tally.ended:
            return None
        return Usage(self.wanted.prompt, 0, tally.output(), 0)

    def _charge(self, used: Usage, common: dict[str, Any], requests: int = 1) -> Charge:
        price = self.table.price
        cost = 0
        if price is not None:
            cost = price.cost(used.prompt, used.cached, used.output, requests)
        return Charge(
            prompt=used.prompt,
            cached=used.cached,
            output=used.output,
            reasoning=used.reasoning,
            nanousd=cost,
            **common,
        )

    def _planned_charge(self, common: dict[str, Any]) -> Charge:
        """A policy's calls, and the request itself where it was sent."""
        books = self.answer.books
        assert books is not None
        used, unknown = books.spent()
        requests = books.requests + int(self.relayed)
        if self.relayed:
            most = Usage(self.wanted.prompt, 0, self.limit * self.wanted.choices, 0)
            plain = self._used()
            unknown = unknown or plain is None
            books.plain(plain or most)
            used = used + (plain or most)
        told = {**common, "unknown": unknown, "stages": books.stages()}
        return self._charge(used, told, requests)

    def amend(self, payload: dict[str, Any]) -> bool:
        """Tell in an answer's usage what its policy took; False where there was none."""
        books, used = self.answer.books, self.tally.usage
        if books is None or used is None or not isinstance(payload.get("usage"), dict):
            return False
        books.plain(used)
        payload["usage"]["outlay"] = books.report()
        return True

    def _outcome(self, status: int, media: str) -> Outcome | None:
        kept = self.answer.kept
        if kept is None:
            return None
        if not media:  # charged, and not to be repeated
            return Outcome(502, JSON, b"")
        fits = len(kept) <= self.gateway.config.store.max_outcome
        return Outcome(status, media, bytes(kept) if fits else b"")

    async def settle(self, status: int, *, note: str = "", media: str = "") -> Settled | None:
        """Charge what was used."""
        if self.closed:
            return None
        self.closed = True
        charge = self.charge(status, note)
        outcome = self._outcome(status, media)
        self.answer.resolved = outcome is not None
        settled: Settled | None
        settled = await self.gateway.persist(Settle(self.grant.id, charge, outcome))
        self._counted(charge, settled)
        return settled

    def book(self, status: int) -> Settled:
        """Charge what was used and do not wait: the answer need not be later than its account.

        The reservation stays until this is committed, so nothing is admitted on what it frees
        before; a process that dies meanwhile leaves a reservation that is charged in full. What is
        queued later in this process finds it done.
        """
        assert not self.closed
        assert self.answer.kept is None, "an outcome is stored before it is answered"
        self.closed = True
        charge, grant = self.charge(status), self.grant
        self.gateway.book(Settle(grant.id, charge)).add_done_callback(partial(self._booked, charge))
        tokens = grant.tokens if charge.full else charge.tokens
        nanousd = grant.nanousd if charge.full else charge.nanousd
        freed = {"tokens": grant.tokens - tokens, "nanousd": grant.nanousd - nanousd}
        left = tuple(
            replace(each, left=min(each.amount, max(0, each.left + freed[each.unit])))
            for each in grant.left
        )
        return Settled(tokens, nanousd, left)

    def _booked(self, charge: Charge, done: asyncio.Future[Settled]) -> None:
        failed = done.cancelled() or done.exception() is not None
        self._counted(charge, None if failed else done.result())

    def _counted(self, charge: Charge, settled: Settled | None) -> None:
        metrics = self.gateway.metrics
        metrics.charged(self.wanted.model, charge, self.grant)
        if settled is not None and settled.overrun:
            metrics.overruns.labels(self.upstream).inc()
            log.error("%s used more than it was allowed; suspended", self.upstream)

    async def release(self, status: int, note: str) -> None:
        """Charge nothing, but for the calls that a policy had made before."""
        if self.closed:
            return
        if self.answer.books is not None:
            used, unknown = self.answer.books.spent()
            if unknown or used.prompt or used.output:
                self.relayed = False
                await self.settle(status, note=note)
                return
        self.closed = True
        await self.gateway.persist(Release(self.grant.id, status, note))

    async def abandon(self, error: BaseException) -> None:
        """Whatever was not closed on the way: in full if it was sent."""
        if self.closed:
            return
        if not self.sent:
            await self.release(0, "given up before it was sent")
        else:
            note = "the caller went away" if isinstance(error, asyncio.CancelledError) else "failed"
            await self.settle(499, note=note)
