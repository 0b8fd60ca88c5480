"""One call of RSD on a batch of prompts: room in the budgets, the engine, the books, the results.

What is booked per prompt: both models' reading of it; draft nodes under the role "draft", those in
the text on a delivered branch and the others on one that is not; one token of the target per pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outlay.cache.base import CacheMethod
from outlay.cache.loop import booked, local
from outlay.decode.rsd.attention import TreeCache, check_network
from outlay.decode.rsd.drafts import drafter, resolve
from outlay.decode.rsd.engine import Engine, Lane, Stats
from outlay.decode.rsd.ngram import NGram
from outlay.decode.rsd.trees import Shape
from outlay.errors import InputError
from outlay.models.base import (
    Account,
    Branch,
    Finish,
    Gauges,
    Generation,
    Hold,
    Model,
    Prompt,
    SamplingParams,
    elapsed,
)
from outlay.models.sampling import StopMatcher, filters

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

_names = itertools.count()


@dataclass(frozen=True)
class RSDResult(Generation):
    """A text and what its passes brought.

    Args:
        stats: tokens and draft nodes of every pass of the target, and seconds of both models.
        shape: of the draft trees.
    """

    stats: Stats = field(default_factory=Stats)
    shape: Shape = field(default_factory=Shape)


class Filters:
    """The filters of every lane's sampling, and its masks of end tokens; an `engine.Warp`."""

    def __init__(self, each: Mapping[int, SamplingParams], eos: frozenset[int]) -> None:
        self._each, self._eos = each, eos
        self._chains: dict[int, Any] = {key: filters(s) for key, s in each.items()}

    def __call__(
        self, lane: Lane, ahead: Sequence[Sequence[int]], logits_NV: torch.Tensor
    ) -> torch.Tensor:
        """Filtered logits_NV."""
        sampling = self._each[id(lane)]
        scores_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        if sampling.ignore_eos or sampling.min_tokens:
            scores_NV = scores_NV.clone()
            for n, words in enumerate(ahead):
                if len(lane.tokens) + len(words) < sampling.min_tokens:
                    scores_NV[n, sorted({*self._eos, *sampling.stop_token_ids})] = -torch.inf
                elif sampling.ignore_eos:
                    scores_NV[n, sorted(self._eos)] = -torch.inf
        filtered_NV: torch.Tensor = self._chains[id(lane)](
            scores_NV.new_empty((0,), dtype=torch.long), scores_NV
        )
        return filtered_NV


class Call:
    """A batch of prompts on one decoder.

    Args:
        draft: as in `RSD`.
        shape: of the trees.
        model, prompts: what is continued.
        sampling: one for all, or one per prompt.
        accounts: one per prompt.
        cache: reads the one prompt; None reads all prompts in full.

    Raises:
        CapabilityError, InputError: as `RSD.generate` says.
    """

    def __init__(
        self,
        draft: Any,
        shape: Shape,
        model: Model,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams],
        accounts: Sequence[Account],
        cache: CacheMethod | None = None,
    ) -> None:
        self.model: LocalModel = local(model, "RSD")
        check_network(self.model.model, self.model.name)
        self.draft = resolve(draft, self.model)
        self.cache, self.accounts = cache, list(accounts)
        self.each: list[SamplingParams] = (
            [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else list(sampling)
        )
        if any(want.min_tokens and want.stop for want in self.each):
            raise InputError(
                "min_tokens= together with stop= strings is not supported by RSD; "
                "use stop_token_ids="
            )
        if shape.widest > self.model.vocabulary:
            warnings.warn(
                f"{shape.widest} children a node are more than the {self.model.vocabulary} tokens "
                "of the vocabulary; clipped",
                stacklevel=4,
            )
        self.shape = shape.clipped(self.model.vocabulary)
        self.ids = [self.model.prompt_ids(prompt) for prompt in prompts]
        self.window = self.model.context_length
        if not isinstance(self.draft, NGram):
            self.window = min(self.window, self.draft.context_length)
        for ids in self.ids:
            if len(ids) + self.shape.levels + 1 > self.window:
                raise InputError(
                    f"the prompt has {len(ids)} tokens and a tree {self.shape.levels} levels, but "
                    f"{self.model.name} and its draft have a window of {self.window}; shorten the "
                    "prompt, or lower depth="
                )
        self.lanes: list[Lane] = []
        self.results: list[RSDResult] = []

    def steps(self) -> Iterator[None]:
        """Decode, yielding after every pass; then `results` holds one result per prompt."""
        began = time.perf_counter()
        holds: list[Hold] = []
        first = [0.0] * len(self.ids)
        try:
            for i in range(len(self.ids)):
                holds.append(self._hold(i))
                self.lanes.append(self._lane(i, holds[i]))
            engine = self._engine()
            cache = self._read(engine)
            self._watch(holds)
            for _ in engine.run(self.lanes, cache):
                first = [at or elapsed(began) for at in first]
                self._watch(holds)
                yield
        finally:
            branches = [
                self._book(*each) for each in zip(self.accounts, self.lanes, holds, strict=False)
            ]
        seconds, peak = elapsed(began), engine.peak_bytes / len(self.lanes)
        for i, (lane, branch) in enumerate(zip(self.lanes, branches, strict=True)):
            self.accounts[i].ledger.deliver(branch)
            gaps = len(lane.tokens) - 1
            tbt = (seconds - first[i]) / gaps if gaps > 0 else None
            self.results.append(self._result(i, Gauges(first[i] or None, tbt, peak)))

    # -- before ---------------------------------------------------------------------------------

    def _hold(self, i: int) -> Hold:
        """Room for all that the call may sample: a whole tree and one more per new token."""
        want = self._want(i) * (self.shape.nodes + 1)
        longest = len(self.ids[i]) + self._want(i)
        per_token = self.model.flops(1, longest) + self._draft_flops(1, longest)
        return self.accounts[i].hold([want], flops_per_token=per_token)

    def _want(self, i: int) -> int:
        return min(self.each[i].max_tokens, self.model.context_length - len(self.ids[i]))

    def _draft_flops(self, rows: int, past: int) -> float:
        if isinstance(self.draft, NGram):
            return 0.0
        return self.draft.flops(rows, past, logits_rows=rows)

    def _target_flops(self, rows: int, past: int) -> float:
        return self.model.flops(rows, past, logits_rows=rows)

    def _lane(self, i: int, hold: Hold) -> Lane:
        sampling, ids = self.each[i], self.ids[i]
        name = hashlib.blake2b(digest_size=24)
        name.update(np.asarray([sampling.seed, *ids], dtype=np.int64).tobytes())
        # Drafting and verification must not share random numbers.
        first, second, third = (int(part) for part in np.frombuffer(name.digest(), dtype="<u8"))
        noise = None
        if sampling.temperature > 0:
            noise = torch.Generator(device=self.model.device).manual_seed(third >> 1)
        key = np.array([first, second], dtype=np.uint64)
        lane = Lane(
            prompt=ids,
            limit=self._want(i),
            room=hold.limits[0],
            uniforms=np.random.Generator(np.random.Philox(key=key)),
            noise=noise,
            wants_logprobs=sampling.logprobs,
        )
        if not lane.limit:
            lane.finish = "length"
        return lane

    def _engine(self) -> Engine:
        sampling = {id(lane): want for lane, want in zip(self.lanes, self.each, strict=True)}
        stops = {want.stop: StopMatcher(self.model.tokenizer, want.stop) for want in self.each}
        eos = self.model.eos_ids

        def ends(lane: Lane) -> Finish | None:
            want, token = sampling[id(lane)], lane.tokens[-1]
            if token in want.stop_token_ids:
                return "stop"
            if token in eos and not want.ignore_eos:
                return "eos"
            if stops[want.stop].completes(lane.tokens):
                return "stop"
            return "length" if len(lane.tokens) >= lane.limit else None

        return Engine(
            self.model.model,
            drafter(self.draft, self.model.vocabulary, self.model.device),
            self.shape,
            Filters(sampling, eos),
            ends,
            self.window,
            self._target_flops,
            self._draft_flops,
        )

    def _read(self, engine: Engine) -> TreeCache:
        """Read the prompts with both models, and book that."""
        if self.cache is None:
            with self._booked("target"):
                cache = engine.read_target(self.lanes)
            with self._booked("draft"):
                engine.read_draft(self.lanes)
            return cache
        ids_BT = torch.tensor(self.ids, device=self.model.device)
        read = self.cache.prefill(self.model, ids_BT, account=self.accounts[0])
        with self._booked("draft"):
            engine.read_draft(self.lanes)
        (lane,) = self.lanes
        if lane.finish is None:
            return engine.adopt(lane, read.cache, read.logits_BV[0])
        return TreeCache(self.model.model, 1, read.cache)

    @contextlib.contextmanager
    def _booked(self, role: str) -> Iterator[None]:
        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            for account, ids in zip(self.accounts, self.ids, strict=True):
                if role == "target":
                    stack.enter_context(
                        booked(account, len(ids), self.model.flops(len(ids)), start)
                    )
                elif not isinstance(self.draft, NGram):
                    flops = self.draft.flops(len(ids))
                    stack.enter_context(booked(account.at(role="draft"), len(ids), flops, start))
            yield

    def _watch(self, holds: Sequence[Hold]) -> None:
        """End lanes whose time is over."""
        now = time.monotonic()
        for lane, hold in zip(self.lanes, holds, strict=True):
            if lane.finish is None and hold.deadline is not None and now >= hold.deadline:
                lane.finish = "budget"

    # -- after ----------------------------------------------------------------------------------

    def _book(self, account: Account, lane: Lane, hold: Hold) -> list[str]:
        """Settle one lane and enter its tokens; the branches that are part of the text."""
        flops = lane.draft_flops + lane.target_flops
        account.settle(hold, lane.sampled, flops=flops)
        name = f"rsd{next(_names)}"
        drafted, passes = sum(lane.nodes), lane.begun + len(lane.nodes)
        parts = (
            ("draft", "accepted", lane.accepted, drafted, lane.draft_seconds, lane.draft_flops),
            (
                "draft",
                "rejected",
                drafted - lane.accepted,
                drafted,
                lane.draft_seconds,
                lane.draft_flops,
            ),
            ("target", "text", lane.bonus, passes, lane.target_seconds, lane.target_flops),
            (
                "target",
                "dropped",
                passes - lane.bonus,
                passes,
                lane.target_seconds,
                lane.target_flops,
            ),
        )
        for role, part, tokens, whole, seconds, work in parts:
            if tokens:
                at = account.at(role="draft") if role == "draft" else account
                at.ledger.record(
                    at.stage,
                    at.role,
                    generated=tokens,
                    branch=f"{name}/{part}",
                    method=at.method,
                    seconds=seconds * tokens / whole,
                    flops=work * tokens / whole,
                )
        return [f"{name}/accepted", f"{name}/text"]

    def _kept(self, i: int) -> list[int]:
        """The lane's tokens without the stop, where the stop is not to be included."""
        lane, want = self.lanes[i], self.each[i]
        if lane.finish != "stop" or want.include_stop:
            return lane.tokens
        if lane.tokens[-1] in want.stop_token_ids:
            return lane.tokens[:-1]
        overlap = StopMatcher(self.model.tokenizer, want.stop).overlap(lane.tokens)
        return lane.tokens[: len(lane.tokens) - overlap]

    def _text(self, i: int, tokens: Sequence[int]) -> str:
        root = Branch("prompt", None, tuple(self.ids[i]), "", "open")
        said = list(tokens)
        if said and self.lanes[i].finish == "eos" and said[-1] in self.model.eos_ids:
            said.pop()
        return self.model.tail_text(root, said) if said else ""

    def text_so_far(self) -> str:
        """Text of a call with one prompt that nothing can change any more."""
        want, lane = self.each[0], self.lanes[0]
        if want.stop and not want.include_stop and lane.finish is None:
            return ""
        text = self._text(0, self._kept(0))
        return "" if text.endswith("\ufffd") else text

    def _result(self, i: int, gauges: Gauges) -> RSDResult:
        lane, kept = self.lanes[i], self._kept(i)
        return RSDResult(
            self._text(i, kept),
            tuple(kept),
            lane.finish or "budget",
            self.accounts[i].ledger,
            tuple(lane.logprobs[: len(kept)]) if lane.wants_logprobs else None,
            gauges,
            lane.stats(),
            self.shape,
        )
