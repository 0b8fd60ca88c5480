"""Decoding over a cache method: one forward pass a token, the cache compacted in between.

transformers' `generate` numbers positions by the tokens seen, which is wrong once rows were
dropped; so this room has its own loop. Choosing tokens is that of local models: the same filters,
random streams and stops.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from outlay.budget import Budget
from outlay.cache.base import CacheMethod, Compacting, Prefilled
from outlay.errors import CapabilityError
from outlay.models.base import (
    Account,
    Branch,
    Chunk,
    Finish,
    Gauges,
    Generation,
    Model,
    Prompt,
    SamplingParams,
    elapsed,
)
from outlay.models.sampling import StopMatcher, pick, stream

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

_GREEDY = SamplingParams()


def local(model: Model, method: str) -> LocalModel:
    """`model`, if it is one whose caches are at hand.

    Raises:
        CapabilityError: for an endpoint.
    """
    from outlay.models.local import LocalModel

    if not isinstance(model, LocalModel):
        raise CapabilityError(
            f"{method} needs a model's network and cache, and {model.name} is served elsewhere; "
            "use a local model (embedded, or a folder)"
        )
    return model


def kv_bytes(cache: Any) -> int:
    """Bytes of keys and values that a transformers cache holds."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        if layer.get_seq_length()
        for tensor in (layer.keys, layer.values)
    )


@torch.inference_mode()
def forward(model: LocalModel, ids_BT: torch.Tensor, cache: Any) -> torch.Tensor:
    """Feed tokens behind a cache's rows and compact it; logits_BV after the last of them."""
    position_BT = (cache.get_seq_length() + torch.arange(ids_BT.shape[1], device=model.device))[
        None
    ].expand(ids_BT.shape)
    logits_BTV = model.model(
        ids_BT, cache=cache, position_ids=position_BT, use_cache=True, logits_to_keep=1
    ).logits
    if isinstance(cache, Compacting):
        cache.compact()
    return logits_BTV[:, -1]


@dataclass(frozen=True)
class FullCache:
    """The baseline: every row of every layer, from one forward pass over the prompt."""

    def prefill(
        self, model: LocalModel, ids_BT: torch.Tensor, *, account: Account | None = None
    ) -> Prefilled:
        """Read the prompts at once; see `CacheMethod.prefill`."""
        from transformers.cache_utils import DynamicCache

        account = account or Account()
        start = time.perf_counter()
        rows, width = ids_BT.shape
        flops = model.flops(width, logits_rows=1, batch=rows)
        with booked(account, rows * width, flops, start):
            cache = DynamicCache(config=model.model.config)
            logits_BV = forward(model, ids_BT, cache)
        return Prefilled(cache, logits_BV)


@contextlib.contextmanager
def booked(account: Account, tokens: int, flops: float, start: float) -> Iterator[None]:
    """Reserve, run and book the reading of a prompt."""
    hold = account.hold([], prompt=tokens, flops_fixed=flops)
    try:
        yield
    except BaseException:
        account.settle(hold, -hold.fixed)
        raise
    account.settle(hold, 0, flops=flops)
    account.ledger.record(
        account.stage,
        account.role,
        prompt_new=tokens,
        method=account.method,
        seconds=elapsed(start),
        flops=flops,
    )


@dataclass(frozen=True)
class CachedDecoder:
    """Plain decoding over a cache method.

    Args:
        cache: reads the prompt.
    """

    cache: CacheMethod

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Generation:
        """Continue `prompt`; at most `sampling.max_tokens` and `budget` tokens.

        Raises:
            CapabilityError: for a model that is not local, or whose cache cannot be treated so.
        """
        *_, last = self.stream(model, prompt, budget, sampling, account=account)
        assert last.generation is not None
        return last.generation

    def stream(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Iterator[Chunk]:
        """As `generate`, token by token; the last chunk carries the `Generation`."""
        network = local(model, type(self.cache).__name__)
        account = account or Account.open(budget, method=type(self.cache).__name__.lower())
        began = time.perf_counter()
        ids = network.prompt_ids(prompt)
        read = self.cache.prefill(
            network, torch.tensor([ids], device=network.device), account=account
        )
        want = sampling.max_tokens
        if budget is not None and not budget.shapes_prompt and budget.tokens is not None:
            want = min(want, budget.tokens)
        past = len(ids)
        hold = account.hold([want], flops_per_token=network.flops(1, past + want))
        limit, cut = hold.limits[0], hold.limits[0] < sampling.max_tokens
        root = Branch("prompt", None, tuple(ids), "", "open")
        uniforms = stream(sampling.seed, root, 0, max(1, limit))
        matcher = StopMatcher(network.tokenizer, sampling.stop)
        stops = (frozenset() if sampling.ignore_eos else network.eos_ids) | frozenset(
            sampling.stop_token_ids
        )
        tokens: list[int] = []

        def text_of(finish: Finish | None) -> str:
            said = tokens[:-1] if finish == "eos" else tokens
            return network.tail_text(root, said) if said else ""

        shown, finish, peak = "", None, kv_bytes(read.cache)
        first = 0.0
        flops = 0.0
        logits_BV = read.logits_BV
        decoding = time.perf_counter()
        try:
            while finish is None:
                token = int(pick(logits_BV, sampling, [float(uniforms[len(tokens)])])[0])
                tokens.append(token)
                first = first or elapsed(began)
                finish = _finish(tokens, token, stops, matcher, limit, cut, network.eos_ids)
                if finish is None and hold.deadline is not None:
                    finish = "budget" if time.monotonic() > hold.deadline else None
                text = text_of(finish)
                if not text.endswith("\ufffd") and len(text) > len(shown):
                    yield Chunk(text[len(shown) :])
                    shown = text
                if finish is None:
                    flops += network.flops(1, read.cache.get_seq_length())
                    logits_BV = forward(
                        network, torch.tensor([[token]], device=network.device), read.cache
                    )
                    peak = max(peak, kv_bytes(read.cache))
        finally:
            seconds = elapsed(decoding)
            account.settle(hold, len(tokens), flops=flops)
            account.ledger.record(
                account.stage,
                account.role,
                generated=len(tokens),
                branch="0",
                method=account.method,
                seconds=seconds,
                flops=flops,
            )
            account.ledger.deliver(["0"])
        tbt = seconds / (len(tokens) - 1) if len(tokens) > 1 else None
        yield Chunk(
            "",
            Generation(
                text_of(finish),
                tuple(tokens),
                finish,
                account.ledger,
                gauges=Gauges(ttft=first, tbt=tbt, kv_bytes=float(peak)),
            ),
        )


def _finish(
    tokens: Sequence[int],
    token: int,
    stops: frozenset[int],
    matcher: StopMatcher,
    limit: int,
    cut: bool,
    eos: frozenset[int],
) -> Finish | None:
    if token in stops:
        return "eos" if token in eos else "stop"
    if matcher.completes(tokens):
        return "stop"
    if len(tokens) >= limit:
        return "budget" if cut else "length"
    return None
