"""The way of one request: read, bound, reserve, send, settle, answer.

Raw ASGI, since every caller's latency goes through here. What is reserved is settled whatever
happens to the caller or the upstream; if the database fails, settling is tried again in the
background, and a reservation that cannot be settled is charged in full when its lease runs out.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from outlay.gateway.answering import Answer
from outlay.gateway.bounds import Wanted, bound, parse
from outlay.gateway.closing import Closer
from outlay.gateway.config import Endpoint, ModelTable, Route, Upstream
from outlay.gateway.ids import reservation_id
from outlay.gateway.policies.answers import reply
from outlay.gateway.policies.plan import Plan, make
from outlay.gateway.policies.running import FailedError, Runner, failed
from outlay.gateway.problems import RequestError, invalid, refusal
from outlay.gateway.relaying import AgainError, relay
from outlay.gateway.state import Gateway
from outlay.gateway.store.batch import Forget, Stored
from outlay.gateway.store.books import Ask, Grant, Key, Refusal
from outlay.gateway.store.store import StoreError
from outlay.gateway.upstream import Server
from outlay.gateway.wire import Receive, Scope, Send, header, read_body

log = logging.getLogger("outlay.gateway")


@dataclass
class Serving:
    """An ASGI application for one endpoint."""

    gateway: Gateway
    endpoint: Endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        key = self.gateway.known(scope)
        if key is None and not self.gateway.looks(scope):
            await self.gateway.door.refuse(self.endpoint, send)
            return
        exchange = Exchange(self.gateway, self.endpoint, scope, receive, send)
        answer = exchange.answer
        try:
            await exchange.run(key)
        except RequestError as problem:
            await answer.fail(problem)
        except StoreError as error:
            self.gateway.metrics.store_errors.inc()
            headers = {"retry-after": "2"}
            await answer.fail(
                RequestError(503, str(error), "api_error", "store_unavailable", headers=headers)
            )
        except Exception:  # a mistake of ours: said as an error of the API, and logged
            log.exception("request %s failed", answer.id)
            await answer.fail(
                RequestError(500, "the gateway failed; see its log", "api_error", "internal_error")
            )
        finally:
            exchange.observe()


@dataclass(frozen=True)
class Job:
    """A request and where it goes.

    Args:
        wanted: the request, bounded.
        table, route: of its model.
        settings, server: of its upstream.
        plan: of its policy, None without one.
        runner: of policies, with the configuration that all of these are from.
    """

    wanted: Wanted
    table: ModelTable
    route: Route
    settings: Upstream
    server: Server
    plan: Plan | None
    runner: Runner


class Exchange:
    """One request of a caller, with all its attempts."""

    def __init__(
        self, gateway: Gateway, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.gateway, self.endpoint = gateway, endpoint
        self.scope, self.receive = scope, receive
        self.answer = Answer(endpoint, send)
        self.over = False
        self.stopped = ""
        self.model = self.route = ""
        self.claimed = False  # an idempotency key

    async def run(self, key: Key | None) -> None:
        """Serve it.

        Args:
            key: the caller's; None if another process may have made it just now.

        Raises:
            RequestError: for what the caller is told.
        """
        gateway = self.gateway
        if key is None:
            key = await gateway.key(self.scope)
        raw = await read_body(self.scope, self.receive, gateway.config.server.max_body)
        config = gateway.config  # no await from here to the look-up of the upstream's server
        wanted = parse(self.endpoint, raw, config.server.max_depth)
        table = config.models.get(wanted.model)
        if table is None:
            raise RequestError(
                404,
                f"the model {wanted.model[:100]!r} does not exist here; see /v1/models",
                code="model_not_found",
                param="model",
            )
        if not key.may_use(wanted.model):
            raise RequestError(
                403, f"this key may not use {wanted.model[:100]!r}", code="model_not_allowed"
            )
        if config.server.log_prompts:
            text = raw.decode("utf-8", "replace")
            log.info("prompt", extra={"request": self.answer.id, "body": text})
        found = config.route(wanted.model, self.endpoint)
        if found is None:
            raise RequestError(
                403, f"no route takes {wanted.model[:100]!r} at this endpoint", code="no_route"
            )
        self.model, self.route = wanted.model, found[0]
        wanted = bound(wanted, table, found[1], config.server.max_tokens)
        plan = None
        if wanted.chosen is not None or found[1].policy is not None:
            plan = make(gateway.runner.catalogue.policies, found[1], wanted, table)
            self.answer.books = None if plan is None else plan.books
        job = Job(
            wanted,
            table,
            found[1],
            config.upstreams[table.upstream],
            gateway.servers[table.upstream],
            plan,
            gateway.runner,
        )
        idempotency = header(self.scope, b"idempotency-key")
        if len(idempotency) > 255:
            raise invalid("an idempotency key has at most 255 characters")
        self.answer.kept = bytearray() if idempotency else None
        ask = Ask(
            id="",
            key=key,
            model=wanted.model,
            route=found[0],
            endpoint=self.endpoint,
            upstream=table.upstream,
            prompt=wanted.prompt,
            output=wanted.output,
            choices=wanted.choices,
            price=table.price,
            least=found[1].least_output,
            request=self.answer.id,
            idempotency=idempotency,
            fingerprint=wanted.fingerprint,
        )
        task = asyncio.current_task()
        assert task is not None
        watch = asyncio.create_task(self._gone(task))
        timer = asyncio.get_running_loop().call_later(
            config.server.timeout, self._stop, task, "timeout"
        )
        try:
            await self._claimed(ask, job)
        except asyncio.CancelledError:
            if not self.stopped or task.uncancel():
                raise  # the server stops
            if self.stopped == "timeout":
                raise RequestError(
                    504, "the request took too long", "api_error", "request_timeout"
                ) from None
            self.answer.status = self.answer.status or 499
        finally:
            self.over = True
            timer.cancel()
            watch.cancel()

    async def _gone(self, task: asyncio.Task[Any]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self._stop(task, "disconnect")

    def _stop(self, task: asyncio.Task[Any], why: str) -> None:
        """Cancel the request, once, while it is served."""
        if not self.over and not self.stopped:
            self.stopped = why
            task.cancel()

    async def _claimed(self, ask: Ask, job: Job) -> None:
        """All attempts; one that ends without an outcome gives up its idempotency key."""
        try:
            await self._attempts(ask, job)
        finally:
            if self.claimed and not self.answer.resolved:
                await self.gateway.persist(Forget(ask.key.id, ask.idempotency))

    async def _attempts(self, ask: Ask, job: Job) -> None:
        name, server = job.table.upstream, job.server
        attempt = 0
        while True:
            attempt += 1
            if attempt > 1 and job.plan is not None:
                job.plan.again()
            if not server.ready():
                raise RequestError(
                    503,
                    f"{name} is not answering; its circuit is open",
                    "api_error",
                    "upstream_unavailable",
                    headers={"retry-after": str(server.retry_after())},
                )
            try:
                await self._attempt(ask, attempt, job)
                return
            except AgainError as error:
                self.gateway.metrics.failures.labels(name).inc()
                if attempt > job.settings.retries:
                    raise error.problem from error
                await asyncio.sleep(job.settings.backoff * 2 ** (attempt - 1))

    async def _attempt(self, ask: Ask, attempt: int, job: Job) -> None:
        server, plan = job.server, job.plan
        # A policy works before anything is sent, and takes no place meanwhile.
        free = (plan is None or plan.policy is None) and not server.busy()
        slot = server.slot()
        if free:
            await slot.acquire()  # does not wait
        try:
            admitted = await self._admit(ask, attempt, job, free)
        except BaseException:
            if free:
                slot.release()
            raise
        if admitted is None:
            if free:
                slot.release()
            return
        closer = Closer(
            self.gateway, self.answer, admitted, job.wanted, job.table, job.settings, sent=free
        )
        try:
            if plan is not None and await self._planned(plan, closer, job):
                return
            if not free:
                await slot.acquire()
                free = True
                await self._send(closer)
            coin = self.gateway.coin
            with nullcontext() if coin is None else coin.following(ask.key.id, closer, server):
                await relay(self.answer, closer, server)
        except BaseException as error:
            await closer.abandon(error)
            raise
        finally:
            if free:
                slot.release()

    async def _admit(self, ask: Ask, attempt: int, job: Job, free: bool) -> Grant | None:
        """A reservation; None where a stored outcome was the answer."""
        plan = job.plan
        one = replace(ask, id=reservation_id(), attempt=attempt, sent=free)
        admitted = await self.gateway.store.admit(one if plan is None else plan.asking(one))
        if plan is not None and isinstance(admitted, Refusal) and plan.spares(admitted):
            plan.skip("budget")
            admitted = await self.gateway.store.admit(one)
        if isinstance(admitted, Grant):
            self.answer.left = admitted.left
            self.claimed = bool(ask.idempotency)
            return admitted
        if isinstance(admitted, Refusal):
            self.gateway.metrics.refusals.labels(admitted.kind).inc()
            self.gateway.refused(ask.key, admitted.kind)
            raise refusal(admitted)
        await self._replay(admitted)
        return None

    async def _send(self, closer: Closer) -> None:
        """From here on the reservation counts as sent."""
        if not closer.sent:
            if not await self.gateway.store.send(closer.grant.id):
                raise RequestError(503, "the reservation ran out while waiting", "api_error")
            closer.sent = True

    async def _planned(self, plan: Plan, closer: Closer, job: Job) -> bool:
        """Let the policy work on the request; True if its methods have answered."""
        if plan.policy is None:
            return False
        runner = job.runner
        closer.wanted = await runner.shorten(plan, job.table, job.route)
        if not plan.solves:
            return False
        closer.limit = job.wanted.output
        await self._send(closer)
        try:
            solved = await runner.solve(plan, closer.wanted, job.table, job.server, self.answer.id)
        except FailedError as error:
            # What a method says may quote the prompt.
            shown = str(error) if self.gateway.config.server.log_prompts else error.reason
            log.warning("request %s: its policy failed: %s", self.answer.id, shown)
            plan.books.status, plan.books.reason = "fallback", error.reason
            if not plan.policy.table.fallback:
                raise failed(plan.policy.name, error) from error
            return False
        await reply(self.answer, closer, solved)
        return True

    async def _replay(self, stored: Stored) -> None:
        if not stored.same:
            raise RequestError(
                422, "this idempotency key was used with another request", code="idempotency_reuse"
            )
        if stored.status == 0:
            raise RequestError(
                409,
                "a request with this idempotency key is in flight",
                code="idempotency_in_flight",
                headers={"retry-after": "1"},
            )
        if not stored.body:
            raise RequestError(
                409,
                "the outcome of the request with this idempotency key was not kept",
                code="idempotency_lost",
            )
        headers = {"content-type": stored.media, "x-outlay-replayed": "true"}
        await self.answer.start(stored.status, headers)
        await self.answer.write(stored.body, last=True)

    def observe(self) -> None:
        """Count the request."""
        answer = self.answer
        seconds, status = answer.seconds(), answer.status or 499
        self.gateway.metrics.request(self.endpoint, self.route, status, seconds)
        if answer.books is not None:
            self.gateway.metrics.policies.labels(answer.books.policy, answer.books.status).inc()
        if not log.isEnabledFor(logging.INFO):
            return
        log.info(
            "request",
            extra={
                "request": answer.id,
                "endpoint": self.endpoint,
                "model": self.model,
                "route": self.route,
                "status": status,
                "seconds": round(seconds, 4),
            },
        )
