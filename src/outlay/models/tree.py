"""The token tree of a remote model: what a branch is, and how its children are asked for.

A branch is text (or token ids, or a chat and the answer so far) on the client; a request carries
all of it. Growing a set of branches is one reservation of the budget, requests side by side, and
one settlement with what the server says it sampled, failed requests included.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from outlay.errors import BudgetError, CapabilityError, InputError, OutlayError
from outlay.models.base import Account, Branch, Hold, Message, SamplingParams
from outlay.models.billing import Charge
from outlay.models.calls import Bill, Call, Caller, Outcome
from outlay.models.tokens import ClientTokenizer, Count
from outlay.models.transport import ServerInfo
from outlay.models.wire import Api, Choice, body, settle_text

NUMBER = itertools.count()


def branch_name() -> str:
    """A name that no other branch of this process has."""
    return f"e{next(NUMBER)}"


@dataclass
class State:
    """A branch's own state: the root's kind of prompt, and where the branch is in the tree."""

    kind: Literal["chat", "text", "ids"]
    messages: tuple[Message, ...] = ()
    path: tuple[int, ...] = ()
    exact: bool = False  # token_ids are the very tokens that the server saw or sampled
    released: bool = False


@dataclass(frozen=True)
class Task:
    """Children `children` (their numbers) of `branch` still to be sampled."""

    branch: Branch
    sampling: SamplingParams
    children: tuple[int, ...]


@dataclass(frozen=True)
class Payload:
    """What a branch is to the server: the prompt, our count of it (`firm` where the server's must
    agree), and the fields that go with it."""

    api: Api
    prompt: Any
    count: Count
    firm: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A task's request for the children that were granted tokens; None where none was."""

    task: Task
    funded: tuple[int, ...]
    call: Call | None


class RemoteTree:
    """Grows branches through one server; the part of `EndpointModel` below its protocol.

    Args:
        name: the model's name on the server.
        caller: sends and books.
        tokenizer: counts.
        context_length: tokens of prompt and answer together; None asks the server.
        continue_final_message: whether the chat API can continue an assistant message.
        limit_field: name of the token limit in chat requests.
        extra_body: further fields for every request.
    """

    def __init__(
        self,
        name: str,
        caller: Caller,
        tokenizer: ClientTokenizer,
        *,
        context_length: int | None,
        continue_final_message: bool,
        limit_field: str,
        extra_body: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.continue_final_message = continue_final_message
        self.limit_field = limit_field
        self.extra_body = dict(extra_body)
        self._caller = caller
        self._context = context_length
        self._info: ServerInfo | None = None
        self._lock = threading.RLock()
        self._n_works = True  # until the server gives fewer choices than it was asked for
        self._takes_ids = False  # until probing shows that it does

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._caller.transport.shown!r}, {self.name!r})"

    @property
    def info(self) -> ServerInfo:
        """What the server says of its models; asked once."""
        with self._lock:
            if self._info is None:
                self._info = self._caller.transport.models()
            return self._info

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together; `sys.maxsize` where nobody says."""
        if self._context is None:
            row = (self.info.rows or {}).get(self.name, {})
            meta = row.get("meta")
            known = [row.get("max_model_len"), row.get("context_length")]
            known += [meta.get("n_ctx"), meta.get("n_ctx_train")] if isinstance(meta, dict) else []
            self._context = next((n for n in known if isinstance(n, int) and n > 0), sys.maxsize)
        return self._context

    @context_length.setter
    def context_length(self, tokens: int) -> None:
        self._context = tokens

    def _encode(self, text: str) -> tuple[int, ...]:
        if text and not self.tokenizer.present:
            raise CapabilityError(
                "continuing token ids with text needs the model's tokenizer; give tokenizer="
            )
        return self.tokenizer.ids(text)

    def _root(self, state: State, text: str, ids: tuple[int, ...] = ()) -> Branch:
        ids = ids or self.tokenizer.ids(text, start=True)
        if state.kind == "text":
            state.exact = self.tokenizer.present
        return Branch(branch_name(), None, ids, text, "open", handle=state)

    def _child(self, parent: Branch, number: int, *, exact: bool, **fields: Any) -> Branch:
        state: State = parent.handle
        handle = State(state.kind, state.messages, (*state.path, number), state.exact and exact)
        return Branch(parent=parent, depth=parent.depth + 1, handle=handle, **fields)

    def _alive(self, branch: Branch, what: str) -> State:
        state = branch.handle
        if not isinstance(state, State):
            raise InputError(f"branch {branch.id} is not of {self!r}; open the prompt here")
        if state.released:
            raise InputError(f"branch {branch.id} was released; {what} its parent instead")
        return state

    def _cannot_continue(self) -> CapabilityError:
        return CapabilityError(
            f"{self!r} cannot continue an assistant message over the chat API; give a tokenizer "
            "with a chat template (and a server with /completions), or continue_final_message=True "
            "where the server takes it (vLLM)"
        )

    def _round(self, tasks: Sequence[Task], account: Account) -> list[dict[int, Branch]]:
        """One reservation, one request a task; children by number, fewer where n was ignored."""
        plans, hold = self._plan(tasks, account)
        calls = [plan.call for plan in plans if plan.call is not None]
        try:
            outcomes = iter(self._caller.run_all(calls, hold.deadline))
        except BaseException:  # interrupted: all of it may have been sampled
            account.settle(hold, sum(hold.limits))
            raise
        total = Bill()
        sampled: list[tuple[Plan, Outcome, list[str], list[Charge]]] = []
        for plan in plans:
            if plan.call is None:
                sampled.append((plan, Outcome(), [], []))
                continue
            outcome = next(outcomes)
            names = [branch_name() for _ in plan.funded]
            charges, bill = self._caller.book(account, plan.call, outcome, names)
            sampled.append((plan, outcome, names, charges))
            total += bill
        self._settle(account, hold, total)
        for _, outcome, _, _ in sampled:
            if outcome.error is not None:
                raise outcome.error
        return [self._children(*row) for row in sampled]

    def _children(
        self, plan: Plan, outcome: Outcome, names: Sequence[str], charges: Sequence[Charge]
    ) -> dict[int, Branch]:
        choices = outcome.reply.ordered()
        if outcome.cut or plan.call is None:  # time ran out before every choice had begun
            choices += [Choice()] * (len(plan.funded) - len(choices))
        if len(choices) < len(plan.funded):
            self._n_works = False
            self._caller.warn(
                f"{self!r} gave {len(choices)} of n={len(plan.funded)} choices; asking for the "
                "rest one by one, which bills the prompt each time"
            )
        children = {
            number: self._branch(
                plan, number, names[k], choice, outcome, charges[k].generated if charges else 0
            )
            for k, (number, choice) in enumerate(zip(plan.funded, choices, strict=False))
        }
        for number in plan.task.children:
            if number not in plan.funded:
                children[number] = self._empty(plan.task, number)
        return children

    def _plan(self, tasks: Sequence[Task], account: Account) -> tuple[list[Plan], Hold]:
        """Reserve room for every task and make its request, except where no token was granted."""
        payloads = [self._payload(task.branch) for task in tasks]
        meter = account.meter
        if meter is not None and meter.budget.usd is not None and self._caller.price is None:
            raise BudgetError("a budget in usd needs the model's prices; give price=Price(...)")
        prompt = sum(payload.count.tokens for payload in payloads)
        hold = account.hold(
            [task.sampling.max_tokens for task in tasks for _ in task.children],
            prompt=prompt,
            usd_fixed=self._caller.usd(prompt, 0, 0),
            usd_per_token=self._caller.usd(0, 0, 1),
        )
        limits = iter(hold.limits)
        try:
            return [
                self._planned(task, payload, {number: next(limits) for number in task.children})
                for task, payload in zip(tasks, payloads, strict=True)
            ], hold
        except OutlayError:
            account.settle(hold, 0)
            raise

    def _planned(self, task: Task, payload: Payload, limits: Mapping[int, int]) -> Plan:
        funded = tuple(number for number, limit in limits.items() if limit)
        if not funded:
            return Plan(task, (), None)
        # One request has one limit: the least of its children's shares.
        limit = min(limits[number] for number in funded)
        self._fits(payload.count, limit)
        return Plan(task, funded, self._call(task, payload, funded, limit))

    def _call(self, task: Task, payload: Payload, children: tuple[int, ...], limit: int) -> Call:
        state: State = task.branch.handle
        made = body(
            payload.api,
            model=self.name,
            prompt=payload.prompt,
            sampling=task.sampling,
            limit=limit,
            n=len(children),
            seed=_seed(task.sampling.seed, (*state.path, children[0])),
            limit_field=self.limit_field,
        )
        if self._info is not None and self._served_by("vllm"):
            made["return_token_ids"] = True
        return Call(
            payload.api,
            {**made, **payload.extra, **self.extra_body},
            task.sampling,
            limit,
            len(children),
            payload.count,
            payload.firm,
        )

    def _served_by(self, kind: str) -> bool:
        return (self.info.rows or {}).get(self.name, {}).get("owned_by") == kind

    def _fits(self, prompt: Count, limit: int) -> None:
        if prompt.source != "tokenizer":
            return  # an estimate refuses nothing: the server judges
        if prompt.tokens + limit > self.context_length:
            raise InputError(
                f"a prompt of {prompt.tokens} tokens and max_tokens={limit} exceed the context of "
                f"{self.context_length} tokens; shorten the prompt or lower max_tokens"
            )

    def _payload(self, branch: Branch) -> Payload:
        state: State = branch.handle
        if state.kind == "chat":
            messages: list[Message] = [*state.messages]
            extra: dict[str, Any] = {}
            if text := branch.completion():
                if not self.continue_final_message:
                    raise self._cannot_continue()
                messages.append({"role": "assistant", "content": text})
                extra = {"continue_final_message": True, "add_generation_prompt": False}
            if self.tokenizer.template:
                count = self.tokenizer.count(self.tokenizer.render(state.messages) + text)
            else:
                count = self.tokenizer.count("\n".join(m["content"] for m in messages))
            return Payload("chat", messages, count, extra=extra)
        ids = branch.path()
        if state.kind == "ids" or (state.exact and self._takes_ids):
            if len(ids) == 0 or (branch.depth and not branch.token_ids and branch.text):
                raise CapabilityError(
                    "continuing token ids needs the ids of sampled text; give tokenizer= or open "
                    "the prompt as text"
                )
            return Payload("completions", ids, Count(len(ids), "tokenizer"), firm=True)
        text = "".join(part.text for part in branch.lineage())
        count = self.tokenizer.count(text, start=True)
        return Payload("completions", text, count, firm=True)

    def _settle(self, account: Account, hold: Hold, bill: Bill) -> None:
        # Under counts="all" the reservation held our count of the prompt; the bill has the true one
        surplus = bill.prompt - hold.fixed if hold.fixed else 0
        account.settle(hold, max(bill.generated + surplus, -hold.fixed), usd=bill.usd)

    def _branch(
        self,
        plan: Plan,
        number: int,
        name: str,
        choice: Choice,
        outcome: Outcome,
        generated: int,
    ) -> Branch:
        sampling = plan.task.sampling
        short = plan.call is not None and plan.call.limit < sampling.max_tokens
        text, finish, note = settle_text(choice, sampling, cut=outcome.cut, truncated=short)
        if sampling.logprobs and not choice.logprobs:
            note = "log-probabilities were asked for, the server gave none"
        elif generated < sampling.min_tokens and finish in ("eos", "stop"):
            note = f"server ignored min_tokens={sampling.min_tokens} ({generated} generated)"
        if note:
            self._caller.warn(f"{self!r}: {note}")
        exact = bool(choice.token_ids)
        if finish == "stop" and not sampling.include_stop:
            kept = _before_stop(text, sampling.stop)
            exact, text = exact and kept == text, kept
        return self._child(
            plan.task.branch,
            number,
            id=name,
            token_ids=tuple(choice.token_ids) if exact else self.tokenizer.ids(text),
            text=text,
            finish=finish,
            logprobs=tuple(choice.logprobs) if sampling.logprobs and choice.logprobs else None,
            exact=exact,
        )

    def _empty(self, task: Task, number: int) -> Branch:
        return self._child(
            task.branch,
            number,
            id=branch_name(),
            token_ids=(),
            text="",
            finish="budget" if task.sampling.max_tokens else "length",
            exact=True,
        )


def _before_stop(text: str, stops: Sequence[str]) -> str:
    """`text` without the stop string that it ends in, if any."""
    return next((text.removesuffix(stop) for stop in stops if text.endswith(stop)), text)


def _seed(seed: int, path: tuple[int, ...]) -> int:
    """The seed of the child at `path`; the first child of a prompt has the caller's own."""
    if not any(path):
        return seed
    digest = hashlib.blake2b(repr((seed, path)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF
