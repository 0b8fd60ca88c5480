"""Choosing the shape of trees for a budget of nodes, from a measured acceptance profile.

The profile says how likely one of the first k children of a node is accepted. A tree with b_l
children a node on level l then emits about 1 + A(b_0) + A(b_0) A(b_1) + ... tokens a pass. For
beams, whose children are shared out by likelihood, level l counts as ceil(W / (l + 1)) children a
node on the accepted path: our rule of thumb, not the paper's.

Shapes: N positions, V vocabulary, K children.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from operator import mul
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outlay.decode.rsd.trees import Shape, gumbel
from outlay.decode.rsd.verify import accept
from outlay.errors import InputError
from outlay.models.base import SamplingParams

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

MOST_BUDGET = 256
_DEEPEST = 32


def check_profile(profile: Sequence[float]) -> None:
    """Raise `InputError` unless the profile is a non-decreasing row of probabilities."""
    rising = all(a <= b for a, b in pairwise(profile))
    if not profile or not rising or not all(0 <= a <= 1 for a in profile):
        raise InputError(
            f"profile={tuple(profile)}; give P(one of the first k children is accepted) for "
            "k = 1, 2, ...: probabilities that do not fall"
        )


def choose_shape(shape: Shape, budget: int, profile: Sequence[float]) -> Shape:
    """The shape of `shape`'s mode with at most `budget` nodes that should emit most.

    Raises:
        InputError: for a budget without room for one node, or too large.
    """
    if not 1 <= budget <= MOST_BUDGET:
        raise InputError(
            f"budget={budget} nodes a tree; the smallest tree has 1, the largest {MOST_BUDGET}"
        )
    check_profile(profile)
    if shape.mode == "chain":
        return replace(shape, depth=min(budget, _DEEPEST))
    if shape.mode == "rsd_s":
        pairs = [(budget // depth, depth) for depth in range(1, min(budget, _DEEPEST) + 1)]
        beam, depth = max(pairs, key=lambda pair: _beams(pair[0], pair[1], profile))
        return replace(shape, beam=beam, depth=depth)
    best = max(_branchings(budget, len(profile)), key=lambda b: _expected(b, profile))
    return replace(shape, branching=best)


def _expected(children: Sequence[int], profile: Sequence[float]) -> float:
    chances = [profile[min(b, len(profile)) - 1] for b in children]
    return 1 + sum(accumulate(chances, mul))


def _beams(beam: int, depth: int, profile: Sequence[float]) -> float:
    return _expected([math.ceil(beam / (level + 1)) for level in range(depth)], profile)


def _branchings(budget: int, widest: int) -> Iterator[tuple[int, ...]]:
    """Non-increasing branchings with at most `budget` nodes."""

    def extend(chosen: tuple[int, ...], width: int, left: int) -> Iterator[tuple[int, ...]]:
        if chosen:
            yield chosen
        if len(chosen) < _DEEPEST:
            for b in range(1, min(left // width, chosen[-1] if chosen else widest) + 1):
                yield from extend((*chosen, b), width * b, left - width * b)

    return extend((), 1, budget)


@torch.inference_mode()
def acceptance_profile(
    target: LocalModel,
    draft: Any,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    *,
    children: int = 8,
    sampling: SamplingParams = SamplingParams(temperature=1.0),  # noqa: B008 - frozen
    seed: int = 0,
) -> tuple[float, ...]:
    """P(one of the first k children drawn without replacement is accepted), k = 1..children.

    Args:
        target: the model whose law is kept.
        draft: a network with the same tokens.
        prompts: token ids that are given.
        texts: token ids that follow each; best the target's own, since it is these that a draft
            must guess. Their positions count.
        children: K.
        sampling: filters of both; temperature 0 has no profile of its own: use a small one.
        seed: of the draws.

    Raises:
        InputError: for children < 1 or temperature 0.
    """
    from outlay.models.sampling import filters

    if children < 1:
        raise InputError(f"children={children}; must be >= 1")
    if sampling.temperature == 0:
        raise InputError("temperature=0 draws nothing; measure the profile at a small temperature")
    uniforms = np.random.default_rng(seed)
    noise = torch.Generator(device=target.device).manual_seed(seed)
    hits, positions = np.zeros(children), 0
    warp: Any = filters(sampling)
    for prompt, text in zip(prompts, texts, strict=True):
        ids_1T = torch.tensor([[*prompt, *text]], device=target.device)
        own = slice(len(prompt) - 1, len(prompt) + len(text) - 1)
        laws = [
            warp(ids_1T, model(ids_1T, use_cache=False).logits[0, own].float())
            .double()
            .log_softmax(-1)
            for model in (target.model, draft)
        ]
        for q_V, p_V in zip(*laws, strict=True):
            top = (p_V + gumbel(p_V, noise)).topk(min(children, len(p_V)))
            kept = top.indices[top.values > -torch.inf].tolist()
            place, _ = accept(
                q_V.exp().cpu().numpy(),
                p_V.exp().cpu().numpy(),
                kept,
                lambda: float(uniforms.random()),
            )
            positions += 1
            if place is not None:
                hits[place:] += 1
    return tuple(float(h) for h in hits / max(1, positions))
