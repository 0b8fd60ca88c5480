"""Baselines of RSD: single chains, independent drafts, and transformers' own assisted generation.

`Speculative` is speculative sampling (Leviathan et al., arXiv 2211.17192) and `MultiDraft` K
independent sequences with multi-round verification, close to SpecTr (arXiv 2310.15141), whose
optimal-transport selection it replaces by the recursive rejection of the RSD paper. Both run in
RSD's loop. `Assisted` and `PromptLookup` are thin wrappers around `generate` of transformers.

Shapes: B = 1 sequence, T tokens.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from outlay.budget import Budget
from outlay.decode.rsd.call import RSDResult
from outlay.decode.rsd.method import RSD
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

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

_GREEDY = SamplingParams()
_MOST_TOKENS = 64
_names = itertools.count()


@dataclass(frozen=True)
class AssistedResult(Generation):
    """A text of transformers' assisted generation.

    Args:
        passes: of the target, that over the prompt included.
        drafted: tokens that were proposed.
    """

    passes: int = 0
    drafted: int = 0

    @property
    def block_efficiency(self) -> float:
        """New tokens per pass of the target; 0 before the first pass."""
        return len(self.token_ids) / self.passes if self.passes else 0.0


class _InRSD(ABC):
    """A baseline that is RSD with other knobs."""

    _method: ClassVar[str]

    def __post_init__(self) -> None:
        self.decoder()

    @abstractmethod
    def decoder(self) -> RSD:
        """The RSD that this is."""

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> RSDResult:
        """Continue `prompt`; see `RSD.generate`."""
        account = account or Account.open(budget, method=self._method)
        return self.decoder().generate(model, prompt, budget, sampling, account=account)


@dataclass(frozen=True)
class Speculative(_InRSD):
    """Speculative decoding with one chain of draft tokens.

    Args:
        depth: draft tokens per pass of the target.
        draft: as in `RSD`.

    Raises:
        InputError: for depth < 1.
    """

    depth: int = 4
    draft: Any = None
    _method = "speculative"

    def decoder(self) -> RSD:
        """The RSD that this is."""
        return RSD(mode="chain", depth=self.depth, draft=self.draft)


@dataclass(frozen=True)
class MultiDraft(_InRSD):
    """Several draft sequences, drawn independently, verified together.

    Args:
        sequences: K; equal beginnings share their nodes.
        depth: draft tokens per sequence.
        draft: as in `RSD`.

    Raises:
        InputError: for sequences or depth < 1.
    """

    sequences: int = 4
    depth: int = 3
    draft: Any = None
    _method = "multi_draft"

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise InputError(f"depth={self.depth}; must be >= 1")
        if self.sequences < 1:
            raise InputError(f"sequences={self.sequences}; must be >= 1")
        super().__post_init__()

    def decoder(self) -> RSD:
        """The RSD that this is."""
        branching = (self.sequences, *[1] * (self.depth - 1))
        return RSD(mode="iid_tree", branching=branching, draft=self.draft)


@dataclass(frozen=True)
class Assisted:
    """transformers' assisted generation.

    Args:
        tokens: draft tokens per pass of the target.
        draft: a local model with the target's tokenizer; None is the draft that the package has.

    Raises:
        InputError: for tokens out of range.
    """

    tokens: int = 4
    draft: Any = None

    def __post_init__(self) -> None:
        _check_tokens(self.tokens)

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> AssistedResult:
        """Continue `prompt`; a budget caps the new tokens so that no drafting can overspend.

        Raises:
            CapabilityError: for a model that is not local.
            InputError: for a draft without a network, or sampling that `generate` has not.
        """
        from outlay.cache.loop import local
        from outlay.decode.rsd.drafts import resolve
        from outlay.decode.rsd.ngram import NGram

        network = local(model, "assisted generation")
        draft = resolve(self.draft, network)
        if isinstance(draft, NGram):
            raise InputError("draft='ngram' has no network; use PromptLookup, or give a model")
        account = account or Account.open(budget, method="assisted")
        with _configured(draft.model, self.tokens):
            call = _Call(network, sampling, account, self.tokens, draft)
            return call.run(prompt, assistant_model=draft.model)


@dataclass(frozen=True)
class PromptLookup:
    """transformers' prompt lookup: the draft is what followed the last n-gram before.

    Args:
        tokens: draft tokens per pass of the target.
        ngram: longest n-gram that is looked up.

    Raises:
        InputError: for tokens out of range or ngram < 1.
    """

    tokens: int = 8
    ngram: int = 2

    def __post_init__(self) -> None:
        _check_tokens(self.tokens)
        if self.ngram < 1:
            raise InputError(f"ngram={self.ngram}; must be >= 1")

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> AssistedResult:
        """Continue `prompt`; see `Assisted.generate`."""
        from outlay.cache.loop import local

        network = local(model, "prompt lookup")
        account = account or Account.open(budget, method="prompt_lookup")
        call = _Call(network, sampling, account, self.tokens, None)
        return call.run(
            prompt, prompt_lookup_num_tokens=self.tokens, max_matching_ngram_size=self.ngram
        )


def _check_tokens(tokens: int) -> None:
    if not 1 <= tokens <= _MOST_TOKENS:
        raise InputError(f"tokens={tokens} drafted per pass; choose 1 to {_MOST_TOKENS}")


@contextlib.contextmanager
def _configured(network: Any, tokens: int) -> Iterator[None]:
    """A draft network whose own configuration says how many tokens it proposes."""
    before = network.generation_config
    network.generation_config = copy.deepcopy(before)
    network.generation_config.num_assistant_tokens = tokens
    network.generation_config.num_assistant_tokens_schedule = "constant"
    network.generation_config.assistant_confidence_threshold = 0.0
    try:
        yield
    finally:
        network.generation_config = before


class _Passes:
    """Forward passes of a network, counted by a hook."""

    def __init__(self) -> None:
        self.rows = 0
        self.calls = 0

    @contextlib.contextmanager
    def of(self, network: Any) -> Iterator[None]:
        """Count while the context is open."""

        def hook(module: Any, args: Any, kwargs: Any) -> None:
            self.rows += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel()
            self.calls += 1

        handle = network.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@dataclass
class _Call:
    """One call of `generate` with its passes counted and booked."""

    model: LocalModel
    sampling: SamplingParams
    account: Account
    tokens: int
    draft: LocalModel | None

    def __post_init__(self) -> None:
        want = self.sampling
        if want.logprobs or want.ignore_eos or want.min_tokens or not want.include_stop:
            raise InputError(
                "logprobs=, ignore_eos=, min_tokens= and include_stop=False are not offered by "
                "this wrapper of transformers; use RSD(mode='chain')"
            )
        self.target, self.assistant = _Passes(), _Passes()

    def run(self, prompt: Prompt, **knobs: Any) -> AssistedResult:
        """Continue `prompt`."""
        began, model = time.perf_counter(), self.model
        ids = model.prompt_ids(prompt)
        want = min(self.sampling.max_tokens, model.context_length - len(ids))
        longest = len(ids) + want
        per_token = self._flops(model, 1, longest) + self._flops(self.draft, 1, longest)
        hold = self.account.hold([want * (self.tokens + 1)], flops_per_token=per_token)
        # A pass may sample all its drafts for one new token; the last token needs none.
        limit = min(want, max(1, hold.limits[0] // (self.tokens + 1)))
        new: list[int] = []
        try:
            if want:
                new = self._generate(ids, limit, knobs)
        finally:
            drafted = self._book(hold, len(ids), len(new), began)
        ends = {*model.eos_ids, *self.sampling.stop_token_ids}
        finish: Finish = "budget" if limit < want else "length"
        if new and new[-1] in ends:
            finish = "stop" if new[-1] in self.sampling.stop_token_ids else "eos"
        elif len(new) < limit:
            finish = "stop"
        said = new[:-1] if finish == "eos" else new
        root = Branch("prompt", None, tuple(ids), "", "open")
        text = model.tail_text(root, said) if said else ""
        gauges = Gauges(tbt=elapsed(began) / len(new) if new else None)
        return AssistedResult(
            text,
            tuple(new),
            finish,
            self.account.ledger,
            None,
            gauges,
            self.target.calls,
            drafted,
        )

    @staticmethod
    def _flops(model: LocalModel | None, rows: int, past: int) -> float:
        return 0.0 if model is None else model.flops(rows, past, logits_rows=rows)

    def _generate(self, ids: list[int], limit: int, knobs: dict[str, Any]) -> list[int]:
        import torch

        sampling, model = self.sampling, self.model
        settings: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            settings |= {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        if sampling.stop:
            settings |= {"stop_strings": list(sampling.stop), "tokenizer": model.tokenizer}
        ids_1T = torch.tensor([ids], device=model.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(sampling.seed)
            stack.enter_context(self.target.of(model.model))
            if self.draft is not None:
                stack.enter_context(self.assistant.of(self.draft.model))
            output_1T = model.model.generate(
                ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                max_new_tokens=limit,
                eos_token_id=sorted({*model.eos_ids, *sampling.stop_token_ids}),
                pad_token_id=0,
                **settings,
                **knobs,
            )
        return [int(token) for token in output_1T[0, len(ids) :]]

    def _book(self, hold: Hold, prompt: int, made: int, began: float) -> int:
        """Settle, and enter what was counted; returns the number of drafted tokens."""
        passes, account = self.target.calls, self.account
        drafted = max(0, self.target.rows - prompt - max(0, passes - 1))
        accepted = min(drafted, max(0, made - passes))
        flops = self._flops(self.model, self.target.rows, prompt)
        extra = self._flops(self.draft, self.assistant.rows, prompt)
        account.settle(hold, drafted + passes, flops=flops + extra)
        name = f"assisted{next(_names)}"
        place, draft = account, account.at(role="draft")
        place.ledger.record(
            place.stage,
            place.role,
            prompt_new=prompt,
            generated=made - accepted,
            branch=f"{name}/text",
            method=place.method,
            seconds=elapsed(began),
            flops=flops,
        )
        dropped = passes - (made - accepted)
        for at, part, tokens, work in (
            (place, "dropped", dropped, 0.0),
            (draft, "accepted", accepted, extra),
            (draft, "rejected", drafted - accepted, 0.0),
        ):
            if tokens > 0 or work:
                at.ledger.record(
                    at.stage,
                    at.role,
                    generated=max(0, tokens),
                    branch=f"{name}/{part}",
                    method=at.method,
                    flops=work,
                )
        account.ledger.deliver([f"{name}/text", f"{name}/accepted"])
        return drafted
