"""Running a plan: texts shortened in the scoring processes, methods solving in threads.

Whatever fails or takes too long, the request goes on as it was sent.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from outlay import registry
from outlay.budget import Budget
from outlay.errors import BudgetError, EndpointError, OutlayError
from outlay.gateway.bounds import Wanted, bound, counter, load_tokenizer
from outlay.gateway.config import Config, ModelTable, Route
from outlay.gateway.local import Holder
from outlay.gateway.policies import texts
from outlay.gateway.policies.judging import Judge
from outlay.gateway.policies.methods import Catalogue, Prepared
from outlay.gateway.policies.plan import PASSED, Plan
from outlay.gateway.policies.purse import Purse
from outlay.gateway.policies.scoring import Scorers, ScoringError
from outlay.gateway.policies.through import Through
from outlay.gateway.problems import RequestError
from outlay.gateway.upstream import Server
from outlay.gateway.usage import Usage
from outlay.ledger import Ledger
from outlay.models.base import Account, Capabilities, Message, Model, Prompt, SamplingParams
from outlay.reason.base import Question
from outlay.reason.decoded import Decoded

log = logging.getLogger("outlay.gateway")
_THREADS = 64  # methods under way; each mostly waits for its upstream
_LEAVE = 10.0  # seconds that a stopped method gets to end
_TEMPERATURE = 0.8  # of samples that are voted on, where the request names none


@dataclass(frozen=True)
class Solved:
    """What methods answered."""

    text: str
    thinking: str
    finish: str


class FailedError(Exception):
    """Methods that did not answer.

    Args:
        reason: one word.
        message: what happened.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Runner:
    """What runs the policies of one worker.

    Args:
        catalogue: the policies, checked.
    """

    catalogue: Catalogue
    scorers: Scorers = field(init=False)
    _threads: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        config = self.catalogue.config
        named = (table.api_key_env for table in config.upstreams.values())
        hidden = frozenset(name for name in (*named, "OPENAI_API_KEY") if name)
        self.scorers = Scorers(config.scoring, hidden)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="policy")

    async def start(self) -> None:
        """Load in the background what the policies of some route need."""
        config = self.catalogue.config
        names = {name for route in config.routes.values() for name in (route.policy, *route.choose)}
        jobs: list[Mapping[str, Any]] = []
        for name, policy in config.policies.items():
            if name not in names:
                continue
            if policy.prompt is not None:
                jobs.append({"do": "load", "method": policy.prompt, "scorer": policy.scorer})
            if policy.verifier is not None:
                jobs.append({"do": "load", "verifier": policy.verifier, "scorer": policy.scorer})
        if jobs:
            await self.scorers.warm(jobs)

    async def close(self) -> None:
        """Stop the processes."""
        await self.scorers.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- the prompt -------------------------------------------------------------------------------

    async def shorten(self, plan: Plan, table: ModelTable, route: Route) -> Wanted:
        """The request with its long texts shortened, or as it was."""
        wanted, policy = plan.wanted, plan.policy
        if policy is None or policy.table.prompt is None:
            return wanted
        count = counter(table.tokenizer)
        question, pieces = texts.find(wanted.endpoint, wanted.fields, plan.question)
        config = self.catalogue.config
        changes = []
        for piece in pieces:
            if len(piece.text) > config.scoring.max_chars:
                plan.books.reason = "too long to score"
                continue
            if (most := policy.table.kept(count(piece.text))) is None:
                continue
            try:
                made = await self._compress(policy, piece.text, question, most, table, plan)
            except ScoringError as error:
                detail = error.detail if config.server.log_prompts else ""
                log.warning("request goes on unshortened: %s %s", error, detail)
                if not policy.solves:
                    plan.books.status = "fallback"
                plan.books.reason = f"scorer {error.why}"
                return wanted
            if made is None:
                plan.books.reason = "longer"
            else:
                changes.append((piece, made))
        shorter = wanted
        if changes:
            fields = texts.replaced(wanted.fields, changes)
            shorter = bound(replace(wanted, fields=fields), table, route, config.server.max_tokens)
        if shorter.prompt >= wanted.prompt:
            if not policy.solves:
                plan.books.status = "skipped"
                plan.books.reason = plan.books.reason or "short"
            return wanted
        plan.books.saved = wanted.prompt - shorter.prompt
        return shorter

    async def _compress(
        self,
        policy: Prepared,
        text: str,
        question: str,
        most: int,
        table: ModelTable,
        plan: Plan,
    ) -> str | None:
        spec = policy.table.prompt
        assert spec is not None
        job = {
            "do": "compress",
            "method": spec,
            "scorer": policy.table.scorer,
            "text": text,
            "question": question,
            "tokens": most,
            "tokenizer": None if table.tokenizer is None else str(table.tokenizer),
        }
        began = time.perf_counter()
        made = await self.scorers.run(job)
        took = time.perf_counter() - began
        ledger, method = plan.books.ledger, registry.parse_spec(spec)[0]
        scored = Ledger.from_dict(made["ledger"])
        for entry in scored.entries:
            ledger.extend(Ledger([replace(entry, stage="prompt", role="scorer", method=method)]))
        used = made["tokens"] < made["original"]  # a longer text never is
        ledger.record(
            "prompt",
            "scorer",
            method=method,
            seconds=max(0.0, took - scored.totals().seconds),  # what the entries above do not say
            note=f"{made['original']} tokens became {made['tokens']}"
            + ("" if used else ": not used"),
        )
        if not used:
            return None
        shorter: str = made["text"]
        return shorter + "\n" if text.endswith("\n") and not shorter.endswith("\n") else shorter

    # -- reason and decode ------------------------------------------------------------------------

    async def solve(
        self, plan: Plan, wanted: Wanted, table: ModelTable, server: Server, request: str
    ) -> Solved:
        """Let the methods answer, within what was reserved for them.

        Raises:
            FailedError: if they do not.
        """
        policy, loop = plan.policy, asyncio.get_running_loop()
        config = self.catalogue.config
        assert policy is not None
        local = config.upstreams[table.upstream].local is not None
        plan.books.local = local
        budget = Budget(
            tokens=max(1, plan.worst.output), seconds=policy.table.seconds if local else None
        )
        meter = budget.meter()
        wire: Through | None = None
        if not local:
            plan.books.purse = Purse(plan.worst.prompt, plan.worst.output, plan.worst.calls)
            name = table.name or wanted.model
            wire = self._wire(plan.books.purse, table, name, server, request, loop)

        def work() -> Solved:
            model: Model
            if isinstance(server, Holder):
                model = server.model()
            else:
                model = _remote(config, policy, wanted, table, wire)
            account = Account(plan.books.ledger, meter)
            judge = Judge(self.scorers, loop, policy.table)
            return answer(plan, policy, wanted, model, account, judge)

        async with _Turn(server if local else None) as turn:
            job = self._threads.submit(work)
            running = turn.running = asyncio.wrap_future(job)
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                async with asyncio.timeout(policy.table.seconds):
                    return await asyncio.shield(running)
            except TimeoutError:
                raise FailedError("timeout", f"not done in {policy.table.seconds:g} s") from None
            except BudgetError as error:
                raise FailedError("budget", str(error)) from error
            except EndpointError as error:
                raise FailedError("upstream", str(error)) from error
            except ScoringError as error:
                raise FailedError(f"scorer {error.why}", str(error)) from error
            except OutlayError as error:
                raise FailedError("failed", str(error)) from error
            except Exception as error:
                # Its message is left out: it may quote the prompt.
                where = "".join(traceback.format_tb(error.__traceback__))
                log.error("a policy's method failed: %s\n%s", type(error).__name__, where)
                raise FailedError("failed", type(error).__name__) from error
            finally:
                if not running.done():  # out of time, or the caller is gone
                    if plan.books.purse is not None:
                        plan.books.purse.close()
                    if wire is not None:
                        wire.close()
                    meter.budget = replace(meter.budget, calls=1)  # no further call of the model
                    try:
                        if not job.cancel():  # no thread has taken it
                            await asyncio.wait({running}, timeout=_LEAVE)
                    finally:
                        if local and not job.done():
                            plan.books.unended = Usage(plan.worst.prompt, 0, plan.worst.output, 0)

    def _wire(
        self,
        purse: Purse,
        table: ModelTable,
        model: str,
        server: Server,
        request: str,
        loop: asyncio.AbstractEventLoop,
    ) -> Through:
        config = self.catalogue.config
        upstream = config.upstreams[table.upstream]
        return Through(
            config,
            table,
            model,
            server,
            purse,
            loop,
            request,
            upstream.charge_failures,
            upstream.served_by,
        )


class _Turn:
    """The turn of a local model, until what runs on it has ended.

    Args:
        server: of the model; None: each call of the wire takes a slot by itself.
    """

    def __init__(self, server: Server | None) -> None:
        self._slot = None if server is None else server.slot()
        self.running: asyncio.Future[Any] | None = None

    async def __aenter__(self) -> _Turn:
        if self._slot is not None:
            await self._slot.acquire()
        return self

    async def __aexit__(self, *error: object) -> None:
        slot, running = self._slot, self.running
        if slot is None:
            return
        if running is None or running.done():
            slot.release()
        else:  # it did not stop in time, and works on the model still
            running.add_done_callback(lambda done: slot.release())


def answer(
    plan: Plan, policy: Prepared, wanted: Wanted, model: Model, account: Account, judge: Judge
) -> Solved:
    """The methods' answer; runs in a thread."""
    messages = [
        Message(role=str(each.get("role", "user")), content=_content(each.get("content")))
        for each in wanted.fields["messages"]
    ]
    prompt: Prompt = messages
    if not model.takes_chat:
        prompt = "\n\n".join(message["content"] for message in messages)
    sampling = _sampling(wanted, policy)
    table = policy.table
    if policy.reason is None:
        assert policy.decode is not None
        assert table.decode is not None
        place = replace(account, method=registry.parse_spec(table.decode)[0])
        made = policy.decode.generate(  # type: ignore[attr-defined]
            model, prompt, policy.decode.room(plan.shape), sampling, account=place
        )
        return _said(Solved(made.text, getattr(made, "thinking", ""), made.finish_reason))
    assert table.reason is not None
    place = replace(account, method=registry.parse_spec(table.reason)[0])
    reasoner: Any = policy.reason
    if policy.judged:
        reasoner = registry.create("methods", table.reason, given={"verifier": judge})
    if policy.decode is not None:
        decoder: Any = policy.decode
        model = Decoded(model, decoder, policy.decode.room(plan.shape))
    users = [message["content"] for message in messages if message["role"] == "user"]
    text = plan.question or (users[-1] if users else "")
    question = Question(prompt, text=text, kind=table.answer)
    found = reasoner.solve(model, question, sampling=sampling, account=place)
    if found.chosen is None:
        raise BudgetError("the methods found no answer within what was reserved")
    thinking = getattr(found.chosen.handle, "thinking", "")
    return _said(Solved(found.text, thinking, found.chosen.finish))


def _said(solved: Solved) -> Solved:
    """The answer, if there was room for one."""
    if solved.finish == "budget" and not solved.text:
        raise BudgetError("nothing was left of what was reserved when the answer was due")
    return solved


def _sampling(wanted: Wanted, policy: Prepared) -> SamplingParams:
    fields = wanted.fields
    given, top_p, stop = fields.get("temperature"), fields.get("top_p"), fields.get("stop") or ()
    given_seed = fields.get("seed")
    plain = _TEMPERATURE if policy.reason is not None else 1.0
    return SamplingParams(
        max_tokens=wanted.output,
        temperature=plain if given is None else float(given),
        top_p=1.0 if top_p is None else float(top_p),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=secrets.randbelow(2**30) if given_seed is None else int(given_seed),
        include_stop=False,
    )


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(str(part["text"]) for part in content)


def _remote(
    config: Config, policy: Prepared, wanted: Wanted, table: ModelTable, wire: Any
) -> Model:
    """The upstream's model as methods see it."""
    from outlay.models.endpoint import EndpointModel

    upstream = config.upstreams[table.upstream]
    assert table.tokenizer is not None
    continues = "append" in policy.needs()
    speaks = "continue_final_message" in upstream.offers
    template = continues and not speaks
    tokenizer: Any = load_tokenizer(table.tokenizer)
    if template and table.tokenizer_config is not None:
        tokenizer = templated(table.tokenizer, table.tokenizer_config)
    model = EndpointModel(
        upstream.url or "",
        table.name or wanted.model,
        api="auto" if template else "chat",
        tokenizer=tokenizer,
        context_length=table.context or sys.maxsize,
        continue_final_message=speaks,
        limit_field=table.limit_field,
        max_concurrency=min(8, upstream.max_connections),
        extra_body={k: wanted.fields[k] for k in PASSED if wanted.fields.get(k) is not None},
        wire=wire,
    )
    model.capabilities = Capabilities(
        stop=True,
        seed=True,
        n=True,
        append=continues,
        logprobs="logprobs" in upstream.offers,
        min_tokens="min_tokens" in upstream.offers,
    )
    return model


@cache
def templated(tokenizer: Path, config: Path) -> Any:
    """A tokenizer with its chat template."""
    import json

    from transformers import PreTrainedTokenizerFast

    told = json.loads(config.read_text("utf-8"))
    special = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in told.items()
        if name in ("bos_token", "eos_token", "pad_token", "unk_token") and value
    }
    return PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), chat_template=told.get("chat_template"), **special
    )


def failed(policy: str, error: FailedError) -> RequestError:
    """What the caller is told of methods that failed and may not fall back."""
    status = 504 if error.reason == "timeout" else 502
    return RequestError(
        status, f"policy {policy!r} failed: {error}"[:1000], "api_error", "policy_failed"
    )
