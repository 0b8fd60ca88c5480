"""A model behind any OpenAI-compatible server: vLLM, llama.cpp, transformers serve, hosted APIs.

Implements the `Model` protocol over HTTP. Continuing a branch sends its whole text (or token ids)
again through /completions: the server may reuse KV (its `cached_tokens` say so), but the prompt is
billed each time. Chats are rendered here where `tokenizer` has a template; without one they go
through /chat/completions, where an answer can be continued only by servers that take
`continue_final_message` (vLLM).

What a server can do is found by looking at results (`capabilities`, probed once): servers answer
200 and ignore `n`, `logprobs`, `echo` or `stop`. Tokens are booked from the server's usage, checked
against what arrived (see billing.py).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, cast, get_args

from outlay.budget import Budget
from outlay.cost import Price
from outlay.errors import BudgetError, CapabilityError, EndpointError, InputError, OutlayError
from outlay.ledger import Ledger
from outlay.models.base import (
    Account,
    Branch,
    Capabilities,
    Chunk,
    Generation,
    Message,
    Prompt,
    SamplingParams,
)
from outlay.models.calls import Bill, Call, Caller, Outcome
from outlay.models.probe import PROMPT, Probe, covering, probe, prompt_scores
from outlay.models.retry import Retry, Timeouts
from outlay.models.tokens import ClientTokenizer, Count
from outlay.models.transport import Transport, Wire
from outlay.models.tree import RemoteTree, State, Task, branch_name
from outlay.models.wire import Api, Choice, Reply

_GREEDY = SamplingParams()
# The parameter by which a server closes the thinking of one request, by what GET /models says of
# the server: vLLM's applies to both APIs, llama.cpp's to chats.
_THINKING = {"vllm": "thinking_token_budget", "llamacpp": "thinking_budget_tokens"}


class EndpointModel(RemoteTree):
    """A remote model.

    Args:
        base_url: of the server, usually ending in /v1.
        model: the model's name on the server.
        api_key: bearer token; None takes OPENAI_API_KEY from the environment. Never shown.
        api: "completions" (raw text, branches), "chat" (messages only), or "auto": completions
            for text and for chats that `tokenizer` can render, chat for the rest.
        tokenizer: for counting and rendering: a transformers or tokenizers tokenizer, or any
            object with `encode` and `decode`. None estimates four bytes a token.
        context_length: tokens of prompt and answer together; None asks the server, and where it
            does not say either, `context_length` is `sys.maxsize` and the server judges.
        price: usd per million tokens; budgets in usd need it.
        timeouts: limits in seconds on one request.
        retry: when to try again.
        max_concurrency: requests in flight at once.
        continue_final_message: the server's chat API continues a last assistant message when told
            `continue_final_message=true, add_generation_prompt=false` (vLLM).
        limit_field: name of the token limit in chat requests; OpenAI's reasoning models want
            "max_completion_tokens".
        extra_body: further fields for every request, as the server knows them.
        wire: carries the requests instead of a connection pool of its own; `api_key`, `timeouts`
            and `retry` are then its business.

    Raises:
        InputError: for a base_url that is not one, or a knob out of range.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        api: Api | Literal["auto"] = "auto",
        tokenizer: Any = None,
        context_length: int | None = None,
        price: Price | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        retry: Retry = Retry(),  # noqa: B008 - frozen
        max_concurrency: int = 8,
        continue_final_message: bool = False,
        limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
        wire: Wire | None = None,
    ) -> None:
        if api not in ("auto", *get_args(Api)):
            raise InputError(f"api={api!r}; choose auto, chat or completions")
        if not model:
            raise InputError("model is empty; name the model as the server does")
        if max_concurrency < 1:
            raise InputError(f"max_concurrency={max_concurrency}; must be >= 1")
        if context_length is not None and context_length < 1:
            raise InputError(f"context_length={context_length}; must be >= 1")
        client = ClientTokenizer(tokenizer)
        transport = Transport(base_url, api_key, timeouts, retry) if wire is None else wire
        super().__init__(
            model,
            Caller(transport, client, price, max_concurrency),
            client,
            context_length=context_length,
            continue_final_message=continue_final_message,
            limit_field=limit_field,
            extra_body=extra_body or {},
        )
        self.api = api
        self.overhead = Ledger()  # what probing cost: no question's budget pays for it
        self._probe: Probe | None = None

    def __enter__(self) -> EndpointModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._caller.transport.close()

    @property
    def takes_chat(self) -> bool:
        """True unless the server is asked to continue text, and nothing here can render a chat."""
        return self.api != "completions" or self.tokenizer.template

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do; the first look probes it (about ten requests of 8 tokens).

        Raises:
            EndpointError: if the server cannot be reached or knows no such model.
        """
        return self._probed().capabilities

    @capabilities.setter
    def capabilities(self, known: Capabilities) -> None:
        self._learn(Probe(known, "echo" if known.prompt_logprobs else None, known.append))

    def _learn(self, found: Probe) -> Probe:
        self._probe = found
        self._n_works = found.capabilities.n
        self._takes_ids = found.capabilities.token_prompts
        return found

    def _probed(self) -> Probe:
        with self._lock:
            if self._probe is not None:
                return self._probe
            self.info  # noqa: B018 - tells vLLM, which can send token ids along
            found = probe(self._ask, model=self.name, api=self.api, limit_field=self.limit_field)
            append = self.continue_final_message or (
                found.completions and (self.api == "completions" or self.tokenizer.template)
            )
            return self._learn(
                replace(found, capabilities=replace(found.capabilities, append=append))
            )

    def _ask(
        self, api: Api, fields: Mapping[str, Any], sampling: SamplingParams, n: int, must: bool
    ) -> Reply | None:
        """One probe; None where the server refuses it, unless it `must` work."""
        limit, prompt = sampling.max_tokens, self.tokenizer.count(PROMPT)
        call = Call(api, {**fields, **self.extra_body}, sampling, limit, n, prompt)
        outcome = self._caller.run(call, None, attempts=None if must else 1)
        account = Account(self.overhead, method="probe")
        self._caller.book(account, call, outcome, [branch_name() for _ in range(n)])
        if outcome.error is not None and must:
            raise outcome.error
        return outcome.reply if outcome.error is None else None

    def with_thinking_budget(self, tokens: int) -> EndpointModel:
        """This model with the server's own limit on thinking tokens in every request.

        vLLM (`thinking_token_budget`) and llama.cpp's server (`thinking_budget_tokens`, chats
        only) close the thinking at the limit; neither can lengthen it.

        Raises:
            CapabilityError: if the server is neither.
        """
        if tokens < 0:
            raise InputError(f"thinking budget {tokens}; must be >= 0 tokens")
        row = (self.info.rows or {}).get(self.name, {})
        kind = str(row.get("owned_by", ""))
        if kind not in _THINKING:
            raise CapabilityError(
                f"{self!r} is served by {kind or 'an unknown server'}, which has no known limit on "
                "thinking; use vLLM or llama.cpp's server, extra_body= with your server's own "
                "field, or continuation requests (outlay.decode.thinking_budget)"
            )
        view = copy.copy(self)
        view.extra_body = {**self.extra_body, _THINKING[kind]: tokens}
        if kind == "llamacpp":
            view.api = "chat"
        return view

    def count(self, text: str) -> int:
        """Tokens of `text`; an estimate without a tokenizer."""
        return self.tokenizer.count(text).tokens

    def open(
        self, prompt: Prompt, assistant_prefix: str = "", *, account: Account | None = None
    ) -> Branch:
        """Start a tree; nothing is sent, and nothing booked, until it is extended.

        Raises:
            InputError: for an empty prompt.
            CapabilityError: if this server's API cannot take that kind of prompt.
        """
        if not prompt:
            raise InputError("the prompt is empty; give text, messages or token ids")
        if isinstance(prompt, str):
            self._needs_completions("raw text")
            return self._root(State("text"), prompt + assistant_prefix)
        if isinstance(prompt[0], int):
            self._needs_completions("token ids")
            ids = (*cast(Sequence[int], prompt), *self._encode(assistant_prefix))
            if self.tokenizer.present and not self._takes_ids:
                return self._root(State("text"), self.tokenizer.text(ids))
            return self._root(State("ids", exact=True), self.tokenizer.decode(ids), ids)
        messages = tuple(cast(Sequence[Message], prompt))
        if self.api == "completions" or (self.api == "auto" and self.tokenizer.template):
            text = self.tokenizer.render(messages)
            return self._root(State("text"), text + assistant_prefix)
        root = self._root(State("chat", messages), "")
        return self.append(root, assistant_prefix, account=account) if assistant_prefix else root

    def _needs_completions(self, what: str) -> None:
        if self.api == "chat":
            raise CapabilityError(
                f"{what} cannot be sent through a chat API; give messages, or api='completions' "
                "where the server has it"
            )

    def append(
        self, branch: Branch, tokens: str | Sequence[int], *, account: Account | None = None
    ) -> Branch:
        """A child with forced text; it travels, and is billed, with the next request.

        Raises:
            CapabilityError: if this is a chat that cannot be continued, or token ids are given
                without a tokenizer.
        """
        state = self._alive(branch, "append to")
        if state.kind == "chat" and not self.continue_final_message:
            raise self._cannot_continue()
        if isinstance(tokens, str):
            text = tokens
            ids = self._encode(text) if state.kind == "ids" else self.tokenizer.ids(text)
        else:
            ids = tuple(tokens)
            text = self.tokenizer.decode(ids)
            if state.kind != "ids" and not self.tokenizer.present:
                raise CapabilityError(
                    "appending token ids to text needs the model's tokenizer; give tokenizer= or "
                    "append text"
                )
        count = Count(len(ids), "tokenizer") if ids else self.tokenizer.count(text)
        account = account or Account()
        if account.meter is not None and account.meter.budget.counts == "all":
            account.settle(account.hold((), forced=count.tokens), 0)
        child = self._child(
            branch,
            0,
            id=branch_name(),
            token_ids=ids,
            text=text,
            finish="forced",
            exact=bool(ids),
        )
        account.ledger.record(
            account.stage,
            account.role,
            forced=count.tokens,
            estimated=count.source == "bytes",
            branch=child.id,
            method=account.method,
        )
        return child

    def release(self, branch: Branch) -> None:
        """Mark `branch` as done; extending it afterwards is an error. Nothing is kept remotely."""
        self._alive(branch, "release").released = True

    def generate(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Generation:
        """Continue one prompt within `budget` (or the account's own meter, and at most
        `budget.tokens`).

        A budget in seconds streams, and keeps what had arrived when time ran out
        (finish_reason "budget").

        Raises:
            EndpointError: if the server fails; what it may bill is in the account's ledger.
            BudgetError: if nothing is left of the budget.
            InputError: if the prompt does not fit the model's context.
        """
        task, account = self._start(prompt, budget, sampling, account)
        [[branch]] = self.extend([task.branch], task.sampling, account=account)
        return self._generation(branch, account)

    def stream(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Iterator[Chunk]:
        """As `generate`, piece by piece; the last chunk carries the `Generation`.

        Closing the iterator early closes the request and books what was received.

        Raises:
            EndpointError: also when the stream breaks off; what was received is booked.
        """
        return self._stream(*self._start(prompt, budget, sampling, account))

    def _stream(self, task: Task, account: Account) -> Iterator[Chunk]:
        [plan], hold = self._plan([task], account)
        outcome, name = Outcome(note="stream closed early"), branch_name()
        if plan.call is None:
            account.settle(hold, 0)
            yield Chunk("", self._generation(self._empty(task, 0), account))
            return
        sent = ""
        try:
            for text in self._caller.pieces(plan.call, outcome, hold.deadline):
                sent += text
                yield Chunk(text)
            outcome.note = ""
        except OutlayError as error:
            outcome.error, outcome.note = error, ""
            raise
        finally:
            charges, bill = self._caller.book(account, plan.call, outcome, [name])
            self._settle(account, hold, bill)
        choice = outcome.reply.choices.get(0, Choice())
        counted = charges[0].generated if charges else 0
        branch = self._branch(plan, 0, name, choice, outcome, counted)
        rest = branch.text[len(sent) :] if branch.text.startswith(sent) else ""
        yield Chunk(rest, self._generation(branch, account))

    def _start(
        self,
        prompt: Prompt,
        budget: Budget | None,
        sampling: SamplingParams,
        account: Account | None,
    ) -> tuple[Task, Account]:
        if account is None:
            account = Account.open(budget, method="plain")
        elif budget is not None and account.meter is None:
            account = replace(account, meter=budget.meter())
        elif budget is not None and budget.tokens is not None and not budget.shapes_prompt:
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, budget.tokens))
        return Task(self.open(prompt, account=account), sampling, (0,)), account

    def _generation(self, branch: Branch, account: Account) -> Generation:
        account.ledger.deliver(branch.ids())
        return Generation(
            branch.text, branch.token_ids, branch.finish, account.ledger, branch.logprobs
        )

    def extend(
        self,
        branches: Sequence[Branch],
        sampling: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        *,
        account: Account | None = None,
    ) -> list[list[Branch]]:
        """Sample n children of every branch, requests side by side; result [branch][child].

        Children that the server did not give (it ignored `n`) are asked for one by one.

        Raises:
            InputError: for a released branch or one that ended with end-of-text.
            EndpointError: if the server fails; what was received is booked all the same.
        """
        if n < 1:
            raise InputError(f"n={n}; must be >= 1")
        each = [sampling] * len(branches) if isinstance(sampling, SamplingParams) else [*sampling]
        if len(each) != len(branches):
            raise InputError(f"{len(each)} sampling params for {len(branches)} branches")
        account = account or Account()
        for branch in branches:
            self._alive(branch, "extend")
            if branch.finish == "eos":
                raise InputError(
                    f"branch {branch.id} ended with end-of-text; append text to it or extend its "
                    "parent"
                )
        done: list[dict[int, Branch]] = [{} for _ in branches]
        while any(len(children) < n for children in done):
            tasks = []
            for row, (branch, params) in enumerate(zip(branches, each, strict=True)):
                missing = [number for number in range(n) if number not in done[row]]
                groups = [missing] if self._n_works else [[number] for number in missing]
                tasks += [(row, Task(branch, params, tuple(g))) for g in groups if g]
            for (row, _), children in zip(
                tasks, self._round([task for _, task in tasks], account), strict=True
            ):
                done[row].update(children)
        return [[children[number] for number in range(n)] for children in done]

    def score(
        self,
        branch: Branch,
        continuations: Sequence[str | Sequence[int]],
        *,
        account: Account | None = None,
    ) -> list[tuple[float, ...]]:
        """Log-probability of every token of each continuation of `branch`.

        Tokens are the server's own of prompt and continuation together; one that straddles the
        seam counts as the continuation's. Servers sample one token per request here (0 means "no
        limit" to some), which is booked and thrown away.

        Raises:
            CapabilityError: if the server gives no log-probabilities of prompts.
        """
        state = self._alive(branch, "score")
        by = self._probed().score_by
        if state.kind == "chat" or by is None:
            raise CapabilityError(
                f"{self!r} cannot score given text: that needs /completions with prompt_logprobs "
                "(vLLM) or with echo and logprobs (llama-cpp-python with logits_all) that agree "
                "with the log-probabilities of sampling; use such a server, or a local model"
            )
        account = account or Account()
        silent = Account()  # the continuation is part of a prompt here, not forced text of a branch
        extended = [self.append(branch, text, account=silent) for text in continuations]
        if any(not b.text and not b.token_ids for b in extended):
            raise InputError("a continuation is empty; give at least one token to score")
        one = SamplingParams(max_tokens=1, logprobs=by == "echo")
        plans, hold = self._plan([Task(b, one, (0,)) for b in extended], account)
        ask = {"echo": True} if by == "echo" else {"prompt_logprobs": 0}
        calls = [plan.call for plan in plans if plan.call is not None]
        if len(calls) < len(plans):
            account.settle(hold, 0)
            raise BudgetError(
                f"scoring samples one token per continuation: {len(plans)} are needed, "
                f"{len(calls)} are left; raise tokens="
            )
        asked = [replace(call, fields={**call.fields, **ask}) for call in calls]
        outcomes = self._caller.run_all(asked, hold.deadline)
        total = Bill()
        for call, outcome in zip(asked, outcomes, strict=True):
            total += self._caller.book(account, call, outcome, [branch_name()])[1]
        self._settle(account, hold, total)
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        scores = []
        for call, child, outcome in zip(asked, extended, outcomes, strict=True):
            if outcome.cut:
                raise BudgetError("the budget's time limit passed while scoring; raise seconds=")
            tokens, values = prompt_scores(outcome.reply, by)
            whole = not isinstance(call.fields["prompt"], str)
            size = len(child.token_ids) if whole else covering(tokens, child.text)
            found = tuple(values[len(values) - size :])
            if len(found) < size or any(math.isnan(value) for value in found):
                raise EndpointError(
                    f"{self!r} gave {len(values)} prompt log-probabilities, {size} are needed"
                )
            scores.append(found)
        return scores
