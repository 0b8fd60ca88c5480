"""SwiReasoning's decoding loop on local models: prompts in, `SwiResult`s out.

Choosing tokens is that of local models: the same filters, random streams and stops, so that without
soft steps the result is plain decoding, token for token.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from outlay.budget import Budget
from outlay.cache.loop import kv_bytes, local
from outlay.decode import delimiters as tags
from outlay.decode.swireasoning import markers as marks
from outlay.decode.swireasoning.controller import Decision, Rules, SwiController
from outlay.decode.swireasoning.embeddings import Embeddings, entropies
from outlay.decode.swireasoning.method import SwiReasoning, SwiResult
from outlay.decode.swireasoning.rows import Rows, prefilled
from outlay.decode.swireasoning.setup import rules_of, signal
from outlay.errors import InputError
from outlay.ledger import Stage
from outlay.models.base import (
    Account,
    Branch,
    Finish,
    Gauges,
    Hold,
    Model,
    Prompt,
    SamplingParams,
    elapsed,
)
from outlay.models.booking import book_pass, given_back
from outlay.models.sampling import StopMatcher, pick, stream

if TYPE_CHECKING:
    from outlay.cache.base import CacheMethod
    from outlay.models.local import LocalModel

Plan = AbstractSet[int] | None


@dataclass
class _Run:
    """One sequence under way."""

    account: Account
    sampling: SamplingParams
    root: Branch
    rules: Rules
    want: int  # most steps, before the account's budget
    steps: int = 0  # most steps
    answer: int | None = None  # most sampled tokens of the answer, where the budget says so
    holds: tuple[tuple[Account, Hold], ...] = ()
    controller: SwiController = field(init=False)
    uniforms: np.ndarray = field(init=False)
    tokens: list[int] = field(default_factory=list)
    trace: list[Decision] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    closed: int | None = None  # index of the token that ended the thinking
    finish: Finish | None = None
    flops: float = 0.0
    seconds: float = 0.0
    began: float = 0.0
    first: float = 0.0
    kv: float = 0.0

    def matcher(self, network: LocalModel) -> StopMatcher:
        """Finds this sequence's stop strings."""
        return StopMatcher(network.tokenizer, self.sampling.stop)

    @property
    def thought(self) -> int:
        """Tokens up to the end of thinking; all, where it was not reached."""
        return len(self.tokens) if self.closed is None else self.closed + 1

    @property
    def answered(self) -> list[int]:
        """Tokens after the end of thinking."""
        return [] if self.closed is None else self.tokens[self.closed + 1 :]


def decode_many(
    method: SwiReasoning,
    model: Model,
    prompts: Sequence[Prompt],
    budget: Budget | None,
    sampling: SamplingParams | Sequence[SamplingParams],
    *,
    accounts: Sequence[Account] | None = None,
    plans: Sequence[Plan] | None = None,
    cache: CacheMethod | None = None,
) -> list[SwiResult]:
    """Decode prompts in batches; see `SwiReasoning.generate_many`.

    Args:
        method, model, prompts, budget, sampling, accounts: as there.
        plans: steps at which each sequence switches instead of by its entropy; None for its own.
        cache: reads the prompts; they then go one by one.
    """
    network = local(model, "SwiReasoning")
    each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else [*sampling]
    plans = [None] * len(prompts) if plans is None else plans
    if not len(each) == len(plans) == len(prompts) or (
        accounts is not None and len(accounts) != len(prompts)
    ):
        raise InputError(f"{len(prompts)} prompts need one sampling and one account each")
    places = accounts or [Account(method="swireasoning") for _ in prompts]
    if budget is not None:
        places = [p if p.meter is not None else replace(p, meter=budget.meter()) for p in places]
    found = marks.resolve(network.tokenizer, method.think_token, method.end_think_token, model.name)
    rules, anchors = rules_of(method, network.tokenizer, network.name, found)
    embeddings = Embeddings(network.model, anchors, method.top_k_soft)
    runs = [
        _open(network, found, replace(rules, plan=plan), prompt, budget, params, place)
        for prompt, params, place, plan in zip(prompts, each, places, plans, strict=True)
    ]
    longest = max((len(run.root.token_ids) + run.want for run in runs), default=1)
    width = 1 if cache is not None else max(1, network.max_batch_tokens // longest)
    for at in range(0, len(runs), width):
        _decode(network, method, embeddings, runs[at : at + width], cache)
    return [_result(network, method, run) for run in runs]


def _open(
    network: LocalModel,
    found: marks.Markers,
    rules: Rules,
    prompt: Prompt,
    budget: Budget | None,
    sampling: SamplingParams,
    account: Account,
) -> _Run:
    opened, _ = tags.opened_by(network.tokenizer, prompt, found.delimiters)
    ids = network.prompt_ids(prompt)
    if not opened:
        ids = [*ids, found.think_id]
    want = min(sampling.max_tokens, network.context_length - len(ids))
    if want < 1:
        raise InputError(
            f"nothing to generate: max_tokens={sampling.max_tokens}, and the prompt of {len(ids)} "
            f"tokens leaves {network.context_length - len(ids)} of {network.name}'s window"
        )
    if budget is not None and budget.tokens is not None and budget.counts in ("generated", "all"):
        want = min(want, budget.tokens)
    root = Branch("prompt", None, tuple(ids), "", "open")
    return _Run(account, sampling, root, replace(rules, steps=want), want)


def _grant(network: LocalModel, method: SwiReasoning, run: _Run) -> None:
    """Reserve room for a sequence: of the whole, or of its thinking and its answer."""
    account, want = run.account, run.want
    limits = None if account.meter is None else account.meter.budget
    stages = {} if limits is None else dict(limits.stages or {})
    flops = network.flops(1, len(run.root.token_ids) + want)
    if limits is None or not (limits.counts == "think" or {"think", "answer"} & set(stages)):
        hold = account.hold([want], flops_per_token=flops)
        run.holds, run.steps = ((account, hold),), hold.limits[0]
    else:
        if not run.rules.termination_ids:
            end = run.rules.end_think_id
            ids = signal(method, "termination", network.tokenizer, end, network.name)
            run.rules = replace(run.rules, termination_ids=ids, answer_budget=None)
        # The stage that is named goes first: the other gets what is left.
        order: tuple[Stage, Stage] = ("think", "answer")
        granted: dict[Stage, int] = {}
        for stage in order[::-1] if "answer" in stages else order:
            place = account.at(stage)
            hold = place.hold([want], flops_per_token=flops)
            run.holds += ((place, hold),)
            granted[stage] = hold.limits[0]
        run.answer = granted["answer"]
        room = granted["think"] + len(run.rules.termination_ids) + run.answer
        run.steps = min(want, room)
        run.rules = replace(run.rules, think_limit=granted["think"])
    run.controller = SwiController(run.rules)
    run.uniforms = stream(run.sampling.seed, run.root, 0, max(1, run.steps))


def _settle(run: _Run) -> None:
    """Book what was sampled and injected, the thinking apart from the answer."""
    forced = [each.injected for each in run.trace]
    parts: list[tuple[Stage, list[bool]]] = [
        ("think", forced[: run.thought]),
        ("answer", forced[run.thought :]),
    ]
    counts = {stage: part.count(False) for stage, part in parts}
    whole = len(run.holds) == 1
    for account, hold in run.holds:
        part = 1.0 if whole else counts[account.stage] / max(1, sum(counts.values()))
        used = sum(counts.values()) if whole else counts[account.stage]
        account.settle(hold, used, flops=run.flops * part)
    for stage, part_ in parts:
        share = len(part_) / max(1, len(forced))
        if part_:
            run.account.ledger.record(
                stage,
                run.account.role,
                generated=part_.count(False),
                forced=part_.count(True),
                branch="0",
                method=run.account.method,
                seconds=run.seconds * share,
                flops=run.flops * share,
            )
    run.account.ledger.deliver(["0"])


def _read(network: LocalModel, embeddings: Embeddings, runs: Sequence[_Run]) -> Rows:
    """Read the prompts in one pass, each booked on its own account."""
    start = time.perf_counter()
    prompts = [run.root.token_ids for run in runs]
    places = [run.account.at("prompt") for run in runs]
    work = [network.flops(len(ids), logits_rows=1) for ids in prompts]
    holds: list[Hold] = []
    with contextlib.ExitStack() as stack:
        for place, ids, flops in zip(places, prompts, work, strict=True):
            holds.append(place.hold([], prompt=len(ids), flops_fixed=flops))
            stack.enter_context(given_back(place, holds[-1]))
        rows = Rows(network.model, embeddings, *prefilled(network.model, prompts, network.device))
    for place, hold, ids, flops in zip(places, holds, prompts, work, strict=True):
        seconds = elapsed(start) / len(runs)
        book_pass(place, hold, seconds=seconds, flops=flops, prompt=len(ids))
    return rows


def _decode(
    network: LocalModel,
    method: SwiReasoning,
    embeddings: Embeddings,
    runs: Sequence[_Run],
    cache: CacheMethod | None,
) -> None:
    began = time.perf_counter()
    if cache is None:
        rows = _read(network, embeddings, runs)
    else:
        (run,) = runs
        ids_BT = torch.tensor([run.root.token_ids], device=network.device)
        read = cache.prefill(network, ids_BT, account=run.account.at("prompt"))
        rows = Rows(network.model, embeddings, read.cache, read.logits_BV)
    granted: list[_Run] = []
    decoding = time.perf_counter()
    try:
        for run in runs:
            run.began = began
            _grant(network, method, run)
            granted.append(run)
        _loop(network, rows, list(runs), decoding)
    finally:
        for run in granted:
            _settle(run)


@torch.inference_mode()
def _loop(network: LocalModel, rows: Rows, active: list[_Run], start: float) -> None:
    while active:
        probs_BV = rows.probs()
        picked = _pick(network, rows.logits_BV, active)
        decisions = []
        held = kv_bytes(rows.cache) / len(active)
        for run, token, entropy in zip(active, picked, entropies(probs_BV), strict=True):
            decision = run.controller.step(entropy, token, len(run.tokens))
            decisions.append(decision)
            _take(network, run, decision)
            run.first = run.first or elapsed(run.began)
            run.kv = max(run.kv, held)
        for run, logits_V in zip(active, rows.logits_BV, strict=True):
            if run.sampling.logprobs:
                run.logprobs.append(float(logits_V.log_softmax(-1)[run.tokens[-1]]))
        keep = [row for row, run in enumerate(active) if run.finish is None]
        past = rows.cache.get_seq_length()
        for row in keep:
            active[row].flops += network.flops(1, past)
            if decisions[row].soft > 0:
                active[row].flops += 2.0 * probs_BV.shape[-1] * rows.width
        if keep:
            rows.feed(decisions, probs_BV, keep)
            network.computed_tokens += len(keep)
        for row, run in enumerate(active):
            if row not in keep:
                run.seconds = elapsed(start)
        active = [active[row] for row in keep]


def _pick(network: LocalModel, logits_BV: torch.Tensor, active: Sequence[_Run]) -> list[int]:
    """One token per row, by each row's own sampling."""
    groups: dict[SamplingParams, list[int]] = {}
    for row, run in enumerate(active):
        groups.setdefault(replace(run.sampling, seed=0), []).append(row)
    tokens = [0] * len(active)
    for sampling, members in groups.items():
        chosen_BV = logits_BV[members].clone()
        eos = sorted(network.eos_ids)
        for k, row in enumerate(members):
            if sampling.ignore_eos or len(active[row].tokens) < sampling.min_tokens:
                chosen_BV[k, eos] = -torch.inf
        uniforms = [float(active[row].uniforms[len(active[row].tokens)]) for row in members]
        for row, token in zip(members, pick(chosen_BV, sampling, uniforms).tolist(), strict=True):
            tokens[row] = token
    return tokens


def _take(network: LocalModel, run: _Run, decision: Decision) -> None:
    """Append a token and see whether the sequence ends."""
    sampling, token = run.sampling, decision.token
    run.tokens.append(token)
    run.trace.append(decision)
    if run.closed is None and token == run.rules.end_think_id:
        run.closed = len(run.tokens) - 1
    elif run.closed is not None and token in sampling.stop_token_ids:
        run.finish = "stop"
    if token in network.eos_ids and not sampling.ignore_eos:
        run.finish = "eos"
    elif run.finish is None and sampling.stop and run.matcher(network).completes(run.answered):
        run.finish = "stop"
    elif run.finish is None:
        run.finish = _over(run, decision)


def _over(run: _Run, decision: Decision) -> Finish | None:
    cut: Finish = "budget" if run.steps < run.sampling.max_tokens else "length"
    if decision.stop:
        return "length"
    if len(run.tokens) >= run.steps:
        return cut
    if run.answer is not None and run.closed is not None:
        sampled = sum(not each.injected for each in run.trace[run.closed + 1 :])
        if sampled >= run.answer:
            return "budget"
    deadline = run.holds[0][1].deadline
    return "budget" if deadline is not None and time.monotonic() > deadline else None


def _result(network: LocalModel, method: SwiReasoning, run: _Run) -> SwiResult:
    closed = run.closed
    said = run.tokens[:-1] if run.finish == "eos" else run.tokens
    # Ended without a mark: it answered at once.
    begin = 0 if closed is None and run.finish == "eos" else run.thought
    thought = said[: begin if closed is None else closed]
    answer, kept = said[begin:], run.tokens[begin:]
    if run.finish == "stop" and not run.sampling.include_stop:
        drop = 1
        if answer[-1] not in run.sampling.stop_token_ids:
            drop = run.matcher(network).overlap(answer)
        answer = kept = answer[: len(answer) - drop]
    think_finish: Finish = run.finish or "budget"
    if closed is not None:
        think_finish = "forced" if run.trace[closed].injected else "stop"
    forced = sum(each.injected for each in run.trace)
    sampled = sum(not each.injected for each in run.trace[: run.thought])
    before = replace(run.root, token_ids=(*run.root.token_ids, *run.tokens[:begin]))
    gaps = len(run.tokens) - 1
    return SwiResult(
        text=network.tail_text(before, answer) if answer else "",
        token_ids=tuple(kept),
        finish_reason=run.finish or "budget",
        ledger=run.account.ledger,
        logprobs=tuple(run.logprobs[begin : begin + len(kept)]) if run.logprobs else None,
        gauges=Gauges(
            ttft=run.first, tbt=run.seconds / gaps if gaps > 0 else None, kv_bytes=run.kv
        ),
        thinking=network.tail_text(run.root, thought) if thought else "",
        think_finish=think_finish,
        tokens={
            "thinking": sampled,
            "forced": forced,
            "answer": len(run.tokens) - forced - sampled,
        },
        switches=run.trace[-1].switches if run.trace else 0,
        soft_steps=sum(each.soft > 0 for each in run.trace),
        trace=tuple(run.trace) if method.trace else (),
    )
