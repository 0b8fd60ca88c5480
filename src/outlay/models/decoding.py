"""The decoding loop of local models: one batched run of sampled children.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from outlay.errors import InputError
from outlay.models import pending
from outlay.models.base import Account, Branch, Finish, Gauges, Hold, SamplingParams, Trail
from outlay.models.kv import Segment, branch_name, columns, segment
from outlay.models.sampling import StopMatcher, pick, stream
from outlay.models.trail import Pace, Walk, walk_of

if TYPE_CHECKING:
    from outlay.models.local import LocalModel


class _Row:
    """One child being sampled."""

    def __init__(
        self,
        parent: Branch,
        sampling: SamplingParams,
        child: int,
        limit: int,
        cut: bool,
        walk: Walk | None,
    ) -> None:
        self.parent, self.sampling, self.limit, self.cut = parent, sampling, limit, cut
        self.path = parent.lineage()
        self.past = sum(len(branch.token_ids) for branch in self.path)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.finish: Finish | None = None
        self.segment = Segment(walk=walk)
        self.uniforms = (
            stream(sampling.seed, parent, child, max(1, limit))
            if sampling.temperature > 0
            else np.zeros(max(1, limit))
        )


class Run:
    """Samples n children of every branch; iterate to advance one token at a time.

    After the iteration, `children[branch][child]` holds the results, and the account is settled.
    A run that is abandoned half way settles what it had sampled.
    """

    def __init__(
        self,
        model: LocalModel,
        branches: Sequence[Branch],
        sampling: SamplingParams | Sequence[SamplingParams],
        n: int,
        account: Account,
        *,
        ceiling: int | None = None,
        trail: Trail | None = None,
    ) -> None:
        if n < 1:
            raise InputError(f"n={n}; at least one child per branch")
        if isinstance(sampling, SamplingParams):
            each = [sampling] * len(branches)
        else:
            each = list(sampling)
        if len(each) != len(branches):
            raise InputError(f"{len(each)} sampling parameters for {len(branches)} branches")
        for branch in branches:
            model._check(branch)
        self.trail = trail
        if trail is not None:
            for want in each:
                if not want.include_stop and (want.stop or want.stop_token_ids):
                    raise InputError(
                        "a trail cannot take back the tokens of a stop; use include_stop=True"
                    )
            for branch in branches:
                model.walk(branch, trail)
        self.model, self.branches, self.each, self.n = model, branches, each, n
        self.account = account
        self.ceiling = ceiling  # a budget's own limit per child, on top of the account's
        self.children: list[list[Branch]] = []
        self._prefilled = 0.0
        self._first: float | None = None  # when the first token was chosen, and the last one
        self._last = 0.0
        self._matchers: dict[tuple[str, ...], StopMatcher] = {}

    def __iter__(self) -> Generator[list[_Row], None, None]:
        if not self.branches:
            return
        start = time.perf_counter()
        model, account = self.model, self.account
        wants = [self._want(b, s) for b, s in zip(self.branches, self.each, strict=True)]
        spread = [want for want in wants for _ in range(self.n)]
        longest = max(sum(len(x.token_ids) for x in b.lineage()) for b in self.branches)
        capped = spread if self.ceiling is None else [min(w, self.ceiling) for w in spread]
        hold = account.hold(
            capped,
            flops_fixed=pending.most_flops(model, self.branches),
            flops_per_token=model.flops(1, longest + max(wants, default=0)),
        )
        rows = []
        for i, (b, s) in enumerate(zip(self.branches, self.each, strict=True)):
            for child in range(self.n):
                limit, want = hold.limits[i * self.n + child], spread[i * self.n + child]
                rows.append(_Row(b, s, child, limit, limit < want, model.walk(b, self.trail)))
        try:
            self._prefilled = model.materialise(self.branches)
            for row in rows:
                if row.segment.walk is not None:
                    row.segment.walk.begin(walk_of(row.parent))
            width = max(row.past + row.limit for row in rows)
            step = max(1, model.max_batch_tokens // max(1, width))
            for at in range(0, len(rows), step):
                chunk = rows[at : at + step]
                with contextlib.ExitStack() as stack:
                    yield from self._decode(chunk, hold, self._pace(chunk, stack))
        finally:
            self._finish(rows, hold, time.perf_counter() - start)

    def gauges(self, began: float, row_bytes: int) -> Gauges:
        """Clock and cache of a run of one row: called at `began`, `row_bytes` a cached token."""
        (child,) = self.children[0]
        gaps = len(child.token_ids) - 1
        if self._first is None:
            return Gauges()
        return Gauges(
            ttft=self._first - began,
            tbt=(self._last - self._first) / gaps if gaps > 0 else None,
            kv_bytes=float(row_bytes * (len(child.path()) - 1)),
        )

    def texts(self) -> Generator[str, None, None]:
        """Advance a run of one row, yielding its text as it becomes final.

        Nothing is yielded that a stop string or an unfinished character may still change.
        """
        shown = ""
        steps = iter(self)
        try:
            for rows in steps:
                row = rows[0]
                text = self._text(row)
                safe = text if row.finish else self._safe(row, text)
                if len(safe) > len(shown) and not safe.endswith("\ufffd"):
                    yield safe[len(shown) :]
                    shown = safe
        finally:
            steps.close()
        (child,) = self.children[0]
        if len(child.text) > len(shown):
            yield child.text[len(shown) :]

    def _safe(self, row: _Row, text: str) -> str:
        """The part of an unfinished row's text that no stop string can take back."""
        held = _held(text, row.sampling.stop)
        if not held or row.sampling.include_stop:
            return text[: len(text) - held]
        # A stop that is not included takes whole tokens with it.
        for width in range(1, len(row.tokens)):
            safe = self.model.tail_text(row.parent, row.tokens[:-width])
            if len(safe) <= len(text) - held:
                return safe
        return ""

    def _want(self, branch: Branch, sampling: SamplingParams) -> int:
        used = sum(len(b.token_ids) for b in branch.lineage())
        return max(0, min(sampling.max_tokens, self.model.context_length - used))

    def _pace(self, rows: list[_Row], stack: contextlib.ExitStack) -> Pace | None:
        """What advances the rows' trails while `stack` is open; None where none is kept."""
        walks = [row.segment.walk for row in rows if row.limit > 0]
        kept = [walk for walk in walks if walk is not None]
        if not kept:
            return None
        return Pace(kept, stack.enter_context(self.model.watch(kept[0].layers)))

    @torch.inference_mode()
    def _decode(
        self, rows: list[_Row], hold: Hold, pace: Pace | None
    ) -> Generator[list[_Row], None, None]:
        model = self.model
        for row in rows:
            if row.limit == 0:
                row.finish = "budget" if row.cut else "length"
        active = [row for row in rows if row.finish is None]
        if not active:
            return
        cache, _ = model.gather([row.path for row in active], max(r.limit for r in active))
        filled = cache.get_seq_length()
        logits_BV = torch.stack([_logits(row.parent).to(torch.float32) for row in active])
        slots = list(range(len(active)))  # cache row of each active row
        while True:
            self._step(active, logits_BV)
            self._last = time.perf_counter()
            self._first = self._first or self._last
            if hold.deadline is not None and time.monotonic() >= hold.deadline:
                for row in active:
                    row.finish = row.finish or "budget"
            for row, slot in zip(active, slots, strict=True):
                if row.finish is not None and (done := len(row.tokens) - 1) > 0:
                    row.segment.append(*columns(cache, slot, filled, filled + done))
                    if pace is not None:
                        pace.settle(slot)
            yield rows
            keep = [i for i, row in enumerate(active) if row.finish is None]
            if not keep:
                return
            if len(keep) < len(active):
                index = torch.tensor([slots[i] for i in keep], device=model.device)
                cache.batch_select_indices(index)
                if pace is not None:
                    pace.keep(keep)
                active = [active[i] for i in keep]
                slots = list(range(len(active)))
            model.computed_tokens += len(active)
            ids_B1 = torch.tensor([[row.tokens[-1]] for row in active], device=model.device)
            past = [row.past + len(row.tokens) - 1 for row in active]
            last_B = torch.zeros(len(active), dtype=torch.long, device=model.device)
            logits_BV = model.logits(ids_B1, cache, past, last_B).to(torch.float32)
            if pace is not None:
                pace.step()

    def _step(self, active: list[_Row], logits_BV: torch.Tensor) -> None:
        """Sample one token for every active row and see which rows end."""
        groups: dict[SamplingParams, list[int]] = {}
        for i, row in enumerate(active):
            groups.setdefault(row.sampling, []).append(i)
        for sampling, members in groups.items():
            chosen_BV = logits_BV if len(members) == len(active) else logits_BV[members]
            raw_BV = chosen_BV
            early = [
                k for k, i in enumerate(members) if len(active[i].tokens) < sampling.min_tokens
            ]
            if early or sampling.ignore_eos:
                chosen_BV = self._mask_ends(chosen_BV, early, sampling)
            uniforms = [float(active[i].uniforms[len(active[i].tokens)]) for i in members]
            picked = pick(chosen_BV, sampling, uniforms).tolist()
            for k in early:
                picked[k] = self._avoid_stop(
                    active[members[k]], picked[k], chosen_BV[k], uniforms[k]
                )
            if sampling.logprobs:
                logprobs_BV = raw_BV.log_softmax(-1)
                for k, i in enumerate(members):
                    active[i].logprobs.append(float(logprobs_BV[k, picked[k]]))
            for k, i in enumerate(members):
                self._take(active[i], picked[k])

    def _mask_ends(
        self, logits_BV: torch.Tensor, early: list[int], sampling: SamplingParams
    ) -> torch.Tensor:
        masked_BV = logits_BV.clone()
        if sampling.ignore_eos:
            masked_BV[:, sorted(self.model.eos_ids)] = -torch.inf
        ends = sorted({*self.model.eos_ids, *sampling.stop_token_ids})
        for k in early:
            masked_BV[k, ends] = -torch.inf
        return masked_BV

    def _avoid_stop(self, row: _Row, token: int, logits_V: torch.Tensor, uniform: float) -> int:
        """Before `min_tokens`: another token where `token` would complete a stop string."""
        matcher = self._matcher(row.sampling)
        scores_V = logits_V.clone()
        while matcher.completes([*row.tokens, token]):
            scores_V[token] = -torch.inf
            token = int(pick(scores_V[None], row.sampling, [uniform]))
        return token

    def _take(self, row: _Row, token: int) -> None:
        sampling = row.sampling
        row.tokens.append(token)
        if token in self.model.eos_ids and not sampling.ignore_eos:
            row.finish = "stop" if token in sampling.stop_token_ids else "eos"
        elif token in sampling.stop_token_ids or self._matcher(sampling).completes(row.tokens):
            row.finish = "stop"
        elif len(row.tokens) >= row.limit:
            row.finish = "budget" if row.cut else "length"

    def _matcher(self, sampling: SamplingParams) -> StopMatcher:
        if sampling.stop not in self._matchers:
            self._matchers[sampling.stop] = StopMatcher(self.model.tokenizer, sampling.stop)
        return self._matchers[sampling.stop]

    def _text(self, row: _Row) -> str:
        kept = self._kept(row)
        if kept and kept[-1] in self.model.eos_ids and row.finish == "eos":
            kept = kept[:-1]
        return self.model.tail_text(row.parent, kept) if kept else ""

    def _kept(self, row: _Row) -> list[int]:
        """The row's tokens without the stop, where the stop is not to be included."""
        if row.finish != "stop" or row.sampling.include_stop:
            return row.tokens
        if row.tokens[-1] in row.sampling.stop_token_ids:
            return row.tokens[:-1]
        return row.tokens[: len(row.tokens) - self._matcher(row.sampling).overlap(row.tokens)]

    def _finish(self, rows: list[_Row], hold: Hold, seconds: float) -> None:
        sampled = sum(len(row.tokens) for row in rows)
        spent, extra = 0.0, self._prefilled
        made: list[Branch] = []
        for row in rows:
            kept = self._kept(row)
            segment_ = row.segment
            # The last kept token stays pending, so that its next logits can be computed.
            segment_.cut(max(0, len(kept) - 1))
            if not kept:  # nothing follows the parent: its next logits are this branch's
                segment_.next_logits_V = segment(row.parent).next_logits_V
            child = Branch(
                branch_name(),
                row.parent,
                tuple(kept),
                self._text(row),
                row.finish or "budget",
                tuple(row.logprobs[: len(kept)]) if row.sampling.logprobs else None,
                row.parent.depth + 1,
                segment_,
            )
            # The first token comes from logits that the parent's own bill includes.
            fed = max(0, len(row.tokens) - 1)
            flops = 0.0
            if row.tokens and (shape := self.model.shape) is not None:
                flops = float(
                    shape.flops_generate(row.past, fed + 1) - shape.flops(row.past, logits_rows=1)
                )
            flops, extra = flops + extra, 0.0  # the batch's prefill is booked on its first row
            spent += flops
            made.append(child)
            self.account.ledger.record(
                self.account.stage,
                self.account.role,
                generated=len(row.tokens),
                branch=child.id,
                method=self.account.method,
                seconds=seconds * len(row.tokens) / sampled if sampled else 0.0,
                flops=flops,
            )
        self.account.settle(hold, sampled, flops=spent)
        self.children = [made[i : i + self.n] for i in range(0, len(made), self.n)]


def _logits(branch: Branch) -> torch.Tensor:
    logits_V = segment(branch).next_logits_V
    assert logits_V is not None
    return logits_V


def _held(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that may be the beginning of a stop string."""
    for size in range(max((len(s) for s in stops), default=0), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops if len(text) >= size):
            return size
    return 0
