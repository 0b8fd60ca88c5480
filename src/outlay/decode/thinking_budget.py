"""Thinking budgets: at most B tokens of thinking, at least some if asked, and always an answer.

"m1: Unleash the Potential of Test-Time Scaling for Medical Reasoning with Large Language Models"
(arXiv 2504.00869), section on inference; budget forcing follows s1 (arXiv 2501.19393). Phases:
*think* up to B tokens; *wait*, that is, append "Wait" where the model wanted to stop, and go on;
*close* by force where the model did not; *answer*. One tree of branches carries all phases, so
that a local model computes every token once.

Differences from the published code, which lets branches of a batch overrun B and does not count
its own "Wait"s: B bounds everything sampled and appended while thinking, end markers included, for
every branch in any batch. A natural close is kept as the model wrote it, so that without a limit
the result is plain generation, split at the marker. "Wait" is appended exactly as given, without a
guessed space. An unlimited wait needs no special case: it stops when no further "Wait" fits.

Servers that close the thinking themselves (`server="vllm"` or "llama.cpp") need one request instead
of one per phase, and cannot wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from outlay.budget import Budget
from outlay.decode import delimiters as tags
from outlay.decode.base import ThinkResult
from outlay.decode.batching import late, sample
from outlay.decode.delimiters import Delimiters
from outlay.decode.limits import thinking_limit
from outlay.decode.served import Server, served
from outlay.errors import BudgetError, InputError
from outlay.ledger import Stage
from outlay.models.base import (
    Account,
    Branch,
    Finish,
    Model,
    Prompt,
    SamplingParams,
)
from outlay.worst import Shape, Worst, growing

if TYPE_CHECKING:
    from outlay.decode.processor import ThinkingBudgetProcessor

MinBy = Literal["mask", "wait"]

_GREEDY = SamplingParams()
_ENDING = 64  # more tokens than any pair of tags with an answer's opening


@dataclass
class _Run:
    """One prompt on its way through the phases."""

    account: Account
    sampling: SamplingParams
    budget: Budget | None
    branch: Branch
    before: str
    limit: int
    used: int = 0  # tokens sampled and appended while thinking: what B bounds
    sampled: int = 0
    forced: int = 0
    waits: int = 0
    thinking: str = ""
    rest: str = ""  # text that the token of a natural close carries after the marker
    finish: Finish = "length"
    closed: bool = False  # by the model, with the marker still in the branch
    open: bool = True


@dataclass(frozen=True)
class ThinkingBudget:
    """Decode with a budget of thinking tokens.

    Args:
        max_think: B, the most tokens of thinking; None takes the budget's stage "think", else what
            the budget leaves after the answer: a quarter of an unsplit budget, at most
            `max_answer`, is kept for it.
        min_think: the least tokens of thinking.
        min_by: "mask" forbids the end markers until `min_think`; "wait" appends `wait` instead.
        n_wait: how often the end of thinking is replaced by `wait`; `math.inf` uses B up.
        wait: text appended to go on thinking, exactly as given.
        think_open, think_close: the delimiters; None detects them from the chat template or the
            vocabulary.
        answer_open: appended to a forced close; None takes what the chat template writes there.
        ends: further strings that end the thinking, for models that leave it without its marker.
        overthink_prefix: appended after that where thinking was cut at B; None is "Final Answer:"
            unless a tag opens the answer already.
        newline: written before a forced close and before the prefix, unless one is there; "" for
            none.
        max_answer: most tokens of the answer.
        server: "client" runs the phases as continuations; "vllm" and "llama.cpp" send B as the
            server's own parameter.

    Raises:
        InputError: for values out of range.
    """

    max_think: int | None = None
    min_think: int = 0
    min_by: MinBy = "mask"
    n_wait: float = 0
    wait: str = "Wait"
    think_open: str | None = None
    think_close: str | None = None
    answer_open: str | None = None
    ends: tuple[str, ...] = ()
    overthink_prefix: str | None = None
    newline: str = "\n"
    max_answer: int = 1024
    server: Server = "client"

    def __post_init__(self) -> None:
        if self.max_think is not None and self.max_think < 0:
            raise InputError(f"max_think={self.max_think}; must be >= 0, or None for the budget's")
        if self.min_think < 0:
            raise InputError(f"min_think={self.min_think}; must be >= 0")
        if self.max_think is not None and self.min_think > self.max_think:
            raise InputError(
                f"min_think={self.min_think} is more than max_think={self.max_think}; lower it"
            )
        if self.min_by not in get_args(MinBy):
            raise InputError(f"min_by={self.min_by!r}; choose mask or wait")
        if not self.n_wait >= 0 or (self.n_wait != math.inf and self.n_wait != int(self.n_wait)):
            raise InputError(f"n_wait={self.n_wait}; must be a whole number >= 0, or math.inf")
        if not self.wait and (self.n_wait or (self.min_think and self.min_by == "wait")):
            raise InputError('wait is empty: nothing would be appended; give wait="Wait"')
        if self.max_answer < 1:
            raise InputError(f"max_answer={self.max_answer}; must be >= 1")
        if (self.think_open is None) != (self.think_close is None):
            raise InputError("give both think_open= and think_close=, or neither to detect them")
        if self.think_close == "" or "" in self.ends:
            raise InputError("think_close or one of ends is empty; give text that ends thinking")
        if self.server not in get_args(Server):
            raise InputError(f"server={self.server!r}; choose client, vllm or llama.cpp")
        if self.server != "client" and (self.n_wait or self.min_think):
            raise InputError(
                f"server={self.server!r} closes the thinking but cannot lengthen it; use "
                "server='client' for n_wait and min_think"
            )

    # -- entries ----------------------------------------------------------------------------------

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> ThinkResult:
        """Think within the budget, then answer `prompt`.

        Args:
            model: local, embedded or behind an endpoint.
            prompt: raw text, a chat or token ids; thinking is opened unless the prompt does it.
            budget: its stages "think" and "answer" are honoured; with counts="think" it bounds the
                thinking alone. Where time runs out, the answer may stay empty
                (finish_reason "budget").
            sampling: `max_tokens` is ignored, `stop` and `min_tokens` apply to the answer.
            account: where tokens are booked; its meter governs, `budget` can only tighten it.

        Raises:
            BudgetError: if the budget cannot hold the forced parts and one token of the answer, or
                waits or min_think do not fit the thinking that it allows.
            CapabilityError: if the model cannot be continued, or lacks the server parameter.
            InputError: for delimiters that are unknown or do not survive the tokenizer.
        """
        accounts = None if account is None else [account]
        return self.generate_many(model, [prompt], budget, sampling, accounts=accounts)[0]

    def generate_many(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        budget: Budget | None = None,
        sampling: SamplingParams | Sequence[SamplingParams] = _GREEDY,
        *,
        accounts: Sequence[Account] | None = None,
    ) -> list[ThinkResult]:
        """`generate` for every prompt, with one batched call per phase; the same results.

        Args:
            model, prompts: as in `generate`.
            budget: of each prompt.
            sampling: one for all, or one per prompt (other seeds for equal prompts, say).
            accounts: one per prompt; None gives each result its own ledger.

        Raises:
            InputError: unless sampling and accounts match the prompts; and as `generate` does.
        """
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else [*sampling]
        if len(each) != len(prompts) or (accounts is not None and len(accounts) != len(prompts)):
            raise InputError(f"{len(prompts)} prompts need one sampling and one account each")
        given: Sequence[Account | None] = accounts or [None] * len(prompts)
        places = [self._place(budget, account) for account in given]
        meters = [place.meter for place in places if place.meter is not None]
        # Money, FLOPs and calls are known to the model alone, per call: such prompts go singly.
        hard = any(m.budget.usd or m.budget.flops or m.budget.calls for m in meters)
        if len(prompts) > 1 and (hard or self.server != "client"):
            return [
                self.generate(model, prompt, budget, params, account=place)
                for prompt, params, place in zip(prompts, each, places, strict=True)
            ]
        found = tags.resolve(
            tags.tokenizer_of(model),
            self.think_open,
            self.think_close,
            self.answer_open,
            self.overthink_prefix,
            name=model.name,
        )
        if self.server != "client":
            return [
                served(
                    model,
                    prompt,
                    budget,
                    params,
                    place,
                    server=self.server,
                    delimiters=found,
                    max_think=self.max_think,
                    max_answer=self.max_answer,
                )
                for prompt, params, place in zip(prompts, each, places, strict=True)
            ]
        self._check(model)
        runs = [
            self._start(model, found, prompt, budget, params, place)
            for prompt, params, place in zip(prompts, each, places, strict=True)
        ]
        while active := [run for run in runs if run.open]:
            self._think(model, found, active)
        for run in runs:
            self._close(model, found, run)
        return self._answer(model, runs)

    def processor(
        self, tokenizer: Any, max_think: int, *, prompt_length: int | None = None
    ) -> ThinkingBudgetProcessor:
        """These knobs as a transformers `LogitsProcessor` for `model.generate`.

        Args:
            tokenizer: of the model.
            max_think: B; given here, since a processor sees no budget.
            prompt_length: see `ThinkingBudgetProcessor`.
        """
        from outlay.decode.processor import ThinkingBudgetProcessor

        return ThinkingBudgetProcessor(
            tokenizer,
            max_think,
            min_think=self.min_think,
            n_wait=self.n_wait,
            wait=self.wait,
            think_open=self.think_open,
            think_close=self.think_close,
            answer_open=self.answer_open,
            overthink_prefix=self.overthink_prefix,
            newline=self.newline,
            prompt_length=prompt_length,
        )

    # -- phases -----------------------------------------------------------------------------------

    def _place(self, budget: Budget | None, account: Account | None) -> Account:
        account = account or Account(method="thinking_budget")
        if account.meter is None and budget is not None:
            account = replace(account, meter=budget.meter())
        return account

    def needs(self) -> tuple[str, ...]:
        """Continuing an answer that was begun, unless the server bounds the thinking itself."""
        if self.server != "client":
            return ()
        masked = self.min_think and self.min_by == "mask"
        return ("append", "stop", *(("min_tokens",) if masked else ()))

    def worst(self, shape: Shape) -> Worst:
        """Every round of thinking, and the answer, read the prompt and what was written before.

        Raises:
            BudgetError: for endless waits, which no reservation can cover.
        """
        if self.n_wait == math.inf:
            raise BudgetError("n_wait=inf has no worst case to reserve; give a number of waits")
        think, answer = self._shares(shape)
        texts = (self.newline * 2, self.overthink_prefix or "", *self.ends)
        given = (self.think_open or "", self.think_close or "", self.answer_open or "")
        forced = _ENDING + sum(map(shape.count, (*texts, *given)))
        if self.server != "client":
            return Worst(shape.prompt, think + forced + answer, 1)
        waits = int(self.n_wait)
        if self.min_by == "wait":  # a wait may be all that a round adds
            waits = max(waits, -(-self.min_think // max(1, shape.count(self.wait))))
        rounds = 1 + waits if think else 0
        thinking = Worst((shape.prompt + think + forced) * rounds, think, rounds)
        closing = growing(shape.prompt + think + forced, [answer or shape.answer])
        return thinking + Worst(closing.prompt, answer, 1)

    def room(self, shape: Shape) -> Budget:
        """Thinking beside the answer; within it, where `max_think` does not say how much."""
        think, answer = self._shares(shape)
        stages = {"think": think, "answer": answer} if answer else None
        return Budget(tokens=think + answer, stages=stages)

    def _shares(self, shape: Shape) -> tuple[int, int]:
        if self.max_think is None:
            return shape.answer, 0
        return self.max_think, min(self.max_answer, shape.answer)

    def _check(self, model: Model) -> None:
        model.capabilities.require(
            "a thinking budget on the client", *self.needs(), model=model.name
        )
        if (tokenizer := tags.tokenizer_of(model)) is not None:
            tags.check(tokenizer, "newline", self.newline, model.name)
            if self.n_wait or (self.min_think and self.min_by == "wait"):
                tags.check(tokenizer, "wait", self.wait, model.name)

    def _start(
        self,
        model: Model,
        found: Delimiters,
        prompt: Prompt,
        budget: Budget | None,
        sampling: SamplingParams,
        account: Account,
    ) -> _Run:
        opened, before = tags.opened_by(tags.tokenizer_of(model), prompt, found)
        prefix = "" if opened else found.open
        root = model.open(prompt, prefix, account=account.at("prompt"))
        size = len(root.path()) or model.count(root.text)
        ending = self._ending(found, "", cut=True)
        limit = thinking_limit(
            model,
            account,
            budget,
            prompt=size,
            forced=model.count(ending),
            max_think=self.max_think,
            max_answer=self.max_answer,
        )
        needs = model.count(self.wait) if self.n_wait else 0
        if self.n_wait and limit <= needs:
            raise BudgetError(
                f"{limit} tokens of thinking leave no room for wait={self.wait!r} ({needs} tokens);"
                " raise max_think or the budget, or set n_wait=0"
            )
        if self.min_think > limit:
            raise BudgetError(
                f"min_think={self.min_think} does not fit the {limit} tokens of thinking that the "
                "budget allows; lower it, or raise the budget"
            )
        extra = budget if account.meter is not None and account.meter.budget != budget else None
        return _Run(account, sampling, extra, root, before + prefix, limit, open=limit > 0)

    def _think(self, model: Model, found: Delimiters, runs: Sequence[_Run]) -> None:
        """One round: every open run samples until its marker or its limit, and may then wait."""
        wants = [self._thinking(model, found, run) for run in runs]
        for run, grown in zip(runs, _sample(model, runs, wants, "think"), strict=True):
            if grown is None:
                run.open = False
                continue
            child, sampled = grown
            run.used += sampled
            run.sampled += sampled
            run.finish = child.finish
            run.branch = _without_eos(model, child)
            head, marker, rest = child.text.partition(found.close)
            run.thinking += head
            if marker:
                run.rest, run.closed = rest, True
            run.open = not run.closed and self._wait(model, run)

    def _thinking(self, model: Model, found: Delimiters, run: _Run) -> SamplingParams:
        want = run.limit - run.used
        least = self.min_think - run.used
        # The last round keeps the model's own marker: what it writes is what stays. While a wait
        # may follow, the marker is dropped (tokens that only partly belong to it, too).
        last = (
            run.waits >= self.n_wait and not (self.min_by == "wait" and least > 0) and not self.ends
        )
        # Token ids are exact and quick, but few servers take them.
        local = model.capabilities.fork_kv
        ids: tuple[int, ...] = ()
        if local and found.close_id is not None:
            ids = (found.close_id,)
        if local and not last:
            ids += tuple(sorted(getattr(model, "eos_ids", ())))
        return replace(
            run.sampling,
            max_tokens=want,
            min_tokens=min(want, max(0, least)) if self.min_by == "mask" else 0,
            stop=self.ends if local and found.close_id is not None else (found.close, *self.ends),
            stop_token_ids=ids,
            include_stop=last,
        )

    def _wait(self, model: Model, run: _Run) -> bool:
        """Append a wait where one is due and fits; True if thinking goes on."""
        short = self.min_by == "wait" and run.used < self.min_think
        if run.finish not in ("stop", "eos") or not (run.waits < self.n_wait or short):
            return False
        cost = model.count(self.wait)
        if run.used + cost >= run.limit:
            return False
        if not _force(model, run, self.wait, "think"):
            return False
        run.used += cost
        run.waits += 1
        run.thinking += self.wait
        return True

    def _ending(self, found: Delimiters, written: str, *, cut: bool) -> str:
        """The text of a forced close after `written`; `cut` where the thinking was not finished."""
        text = "" if written.endswith(self.newline) else self.newline
        text += found.close + found.answer
        if cut and found.prefix:
            text += "" if text.endswith(self.newline) else self.newline
            text += found.prefix
        return text

    def _close(self, model: Model, found: Delimiters, run: _Run) -> None:
        if run.closed:
            return
        cut = run.finish not in ("stop", "eos")
        text = self._ending(found, run.before + run.thinking, cut=cut)
        _force(model, run, text, "answer")

    def _answer(self, model: Model, runs: Sequence[_Run]) -> list[ThinkResult]:
        funded: list[_Run] = []
        wants: list[SamplingParams] = []
        for run in runs:
            limit = self.max_answer
            if run.budget is not None and run.budget.tokens is not None:
                if run.budget.counts in ("generated", "all"):
                    limit = min(limit, run.budget.tokens - run.sampled)
                limit = min(limit, (run.budget.stages or {}).get("answer", limit))
            meter = run.account.meter
            counted = meter is not None and meter.budget.counts in ("generated", "all")
            none_left = counted and meter is not None and meter.remaining("answer") == 0
            if limit > 0 and not none_left and not late(run.account):
                funded.append(run)
                wants.append(replace(run.sampling, max_tokens=limit))
        answers = _sample(model, funded, wants, "answer")
        by_run = dict(zip(map(id, funded), answers, strict=True))
        return [self._result(run, by_run.get(id(run))) for run in runs]

    def _result(self, run: _Run, answer: tuple[Branch, int] | None) -> ThinkResult:
        branch, sampled = answer if answer is not None else (run.branch, 0)
        run.account.ledger.deliver(branch.ids())
        return ThinkResult(
            text=run.rest + (branch.text if answer is not None else ""),
            token_ids=branch.token_ids if answer is not None else (),
            finish_reason=branch.finish if answer is not None else "budget",
            ledger=run.account.ledger,
            logprobs=branch.logprobs if answer is not None else None,
            thinking=run.thinking,
            think_finish=run.finish,
            waits=run.waits,
            tokens={"thinking": run.sampled, "forced": run.forced, "answer": sampled},
        )


def _sample(
    model: Model, runs: Sequence[_Run], wants: Sequence[SamplingParams], stage: Stage
) -> list[tuple[Branch, int] | None]:
    branches, accounts = [run.branch for run in runs], [run.account for run in runs]
    return sample(model, branches, wants, accounts, stage)


def _force(model: Model, run: _Run, text: str, stage: Stage) -> bool:
    """Append `text`; False where time has run out."""
    try:
        run.branch = model.append(run.branch, text, account=run.account.at(stage))
    except BudgetError:
        if not late(run.account):
            raise
        return False
    run.forced += model.count(text)
    return True


def _without_eos(model: Model, branch: Branch) -> Branch:
    """The branch without its end-of-text token, so that text can follow."""
    if branch.finish != "eos" or not branch.token_ids:
        return branch
    tokenizer = tags.tokenizer_of(model)
    if tokenizer is None or branch.text.endswith(tags.decode(tokenizer, branch.token_ids[-1:])):
        return branch
    return replace(branch, token_ids=branch.token_ids[:-1], finish="stop")
