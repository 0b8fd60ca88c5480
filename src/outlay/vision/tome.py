"""ToMe: similar tokens of a ViT are merged inside every block, without training.

"Token Merging: Your ViT But Faster", arXiv 2210.09461. Between attention and MLP, tokens are split
into two sets by turns; the r tokens of the first set that are most like some token of the second
(cosine of keys, mean over heads) are merged into it, as means weighted by how many patches each
stands for. Attention is proportional: log sizes are added to the scores, so that a merged token
counts as often as its patches did. Written anew from the paper; a baseline of Zero-TPrune. It
differs from the paper in nothing that is known; tokens keep their order, which a ViT does not see.

Shapes: B images, N tokens, K tokens after merging, D width, F features, P patches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import true_places
from outlay.vision.towers import (
    Reader,
    Tower,
    claim,
    find_tower,
    need_free,
    release,
)

if TYPE_CHECKING:
    from outlay.vision.zero_tprune.cost import Shape

_LAYOUTS = (
    ("layernorm_before", "attention", "layernorm_after"),
    ("layer_norm1", "self_attn", "layer_norm2"),
)
MOST = 10_000


@dataclass
class Merged:
    """What was merged in the last forward pass.

    Args:
        owner_BP: of every patch, the place of the token that it is in now, special ones counted.
        sizes_BK: patches that every token stands for.
        seen: tokens that each block's attention saw.
        seconds: spent on matching and merging since the context opened.
    """

    owner_BP: Tensor | None = None
    sizes_BK: Tensor | None = None
    seen: list[int] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class ToMe:
    """Token merging for a vision tower.

        with ToMe(r=8)(model) as merged:
            logits = model(pixel_values=pixels).logits

    Args:
        r: tokens merged in every block, or a number for each block; never more than half of the
            patches there are.
        proportional: add log sizes to attention scores.

    Raises:
        InputError: for a negative or absurd r.
    """

    r: int | Sequence[int] = 8
    proportional: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.r, (int, Sequence)) or isinstance(self.r, str):
            raise InputError(f"r={self.r!r}; need an int, or one for each block")
        values = [self.r] if isinstance(self.r, int) else list(self.r)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
                raise InputError(f"r={self.r!r}; need ints from 0 to {MOST}")
        if not isinstance(self.r, int):
            object.__setattr__(self, "r", tuple(values))

    def merges(self, patches: int, special: int, depth: int) -> list[int]:
        """Tokens merged in each block.

        Raises:
            InputError: for another number of blocks.
        """
        wanted = [self.r] * depth if isinstance(self.r, int) else list(self.r)
        if len(wanted) != depth:
            raise InputError(f"r has {len(wanted)} numbers for {depth} blocks")
        done = []
        for r in wanted:
            done.append(min(r, mergeable(patches + special, special)))
            patches -= done[-1]
        return done

    def macs(self, shape: Shape) -> int:
        """Multiply-adds of one image, matching included."""
        patches, cost = shape.patches, shape.ends
        for r in self.merges(patches, shape.special, shape.depth):
            tokens = patches + shape.special
            cost += shape.block(tokens, tokens - r)
            if r:
                cost += (tokens + 1) // 2 * (tokens // 2) * (shape.width // shape.heads)
            patches -= r
        return cost

    def __call__(self, model: Any) -> Merging:
        """A context in which `model` merges tokens; see `Merging` for what it raises."""
        return Merging(model, self)


def tome_for(shape: Shape, budget: int) -> ToMe:
    """The smallest r whose cost is at most `budget` multiply-adds.

    Raises:
        InputError: if no r is that cheap.
    """
    for r in range(shape.patches + 1):
        if (found := ToMe(r)).macs(shape) <= budget:
            return found
    raise InputError(f"no r merges down to {budget} multiply-adds; raise the budget")


def mergeable(tokens: int, special: int) -> int:
    """Tokens that one step can merge: the first set, special tokens left out, given a partner."""
    first, second = (tokens + 1) // 2, tokens // 2
    first -= (special + 1) // 2
    second -= special // 2
    return first if second > 0 else 0


class Merging:
    """A context in which a tower's blocks merge tokens.

    Args:
        model: a ViT-like classifier or tower.
        method: how many.

    Raises:
        CapabilityError: for blocks that are not those of a ViT or CLIP, inside a vision-language
            model, or where tokens are merged already.
    """

    def __init__(self, model: Any, method: ToMe) -> None:
        self.tower: Tower = find_tower(model)
        self.method = method
        need_free(self.tower)
        if self.tower.inside:
            raise CapabilityError(
                "ToMe here merges in classifiers and plain towers; merged tokens have no place in "
                "a prompt"
            )
        config = getattr(self.tower.module, "config", None)
        kind = getattr(config, "_attn_implementation", "eager")
        if method.proportional and kind not in ("eager", "sdpa"):
            raise CapabilityError(
                f"proportional attention needs a mask of numbers, which {kind} does not take; load "
                "the model with attn_implementation='sdpa'"
            )
        self.merged = Merged()
        self._blocks = [_Block(block, index, self) for index, block in enumerate(self.tower.blocks)]
        self._merges: list[int] = []

    def __enter__(self) -> Merged:
        claim(self.tower)
        blocks: Any = self.tower.blocks
        for index, block in enumerate(self._blocks):
            block.reader.open()
            blocks[index] = block
        return self.merged

    def __exit__(self, *_: object) -> None:
        blocks: Any = self.tower.blocks
        for index, block in enumerate(self._blocks):
            block.reader.close()
            blocks[index] = block.inner
        release(self.tower)

    def begin(self, hidden_BND: Tensor) -> None:
        """Before the first block: every token stands for itself."""
        size, tokens = hidden_BND.shape[:2]
        special = self.tower.special
        self._merges = self.method.merges(tokens - special, special, len(self._blocks))
        # At least fp32, whatever the model has: 256 + 1 is 256 in bf16.
        kind = torch.promote_types(hidden_BND.dtype, torch.float32)
        self.sizes_BN = torch.ones(size, tokens, device=hidden_BND.device, dtype=kind)
        self.owner_BN = torch.arange(tokens, device=hidden_BND.device).expand(size, -1)
        self.merged.seen = []

    def step(self, index: int, hidden_BND: Tensor, keys_BNF: Tensor) -> Tensor:
        """Merge in block `index`."""
        r = self._merges[index]
        self.merged.seen.append(hidden_BND.shape[1])
        if r:
            started = time.perf_counter()
            target_BN, stay_BK = match(keys_BNF, r, self.tower.special)
            hidden_BND, self.sizes_BN = merge(hidden_BND, self.sizes_BN, target_BN, stay_BK)
            place_BN = torch.searchsorted(stay_BK, target_BN)
            self.owner_BN = place_BN.gather(1, self.owner_BN)
            self.merged.seconds += time.perf_counter() - started
        self.merged.owner_BP = self.owner_BN[:, self.tower.special :]
        self.merged.sizes_BK = self.sizes_BN
        return hidden_BND


class _Block(nn.Module):
    """A ViT block with a merge between attention and MLP; stands in for `inner`."""

    def __init__(self, inner: nn.Module, index: int, merging: Merging) -> None:
        super().__init__()
        layout = next((n for n in _LAYOUTS if all(hasattr(inner, name) for name in n)), None)
        if layout is None or not hasattr(inner, "mlp"):
            raise CapabilityError(
                f"{type(inner).__name__} is no block of a ViT, DeiT or CLIP: its parts are unknown"
            )
        self.inner, self.index, self.layout = inner, index, layout
        self.reader = Reader(inner, f"block {index + 1}")
        self.merging = [merging]  # in a list: no part of the module
        self.training = inner.training

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        merging = self.merging[0]
        if attention_mask is not None:
            raise CapabilityError("this tower gives its blocks a mask, which merging would break")
        if self.index == 0:
            merging.begin(hidden_states)
        before, attention, after = (getattr(self.inner, name) for name in self.layout)
        bias_B11N = None
        if merging.method.proportional and bool((merging.sizes_BN > 1).any()):
            bias_B11N = merging.sizes_BN.log()[:, None, None].to(hidden_states.dtype)
            bias_B11N = bias_B11N.expand(-1, -1, hidden_states.shape[1], -1)
        seen, _ = attention(hidden_states=before(hidden_states), attention_mask=bias_B11N, **kwargs)
        hidden = hidden_states + seen
        hidden = merging.step(self.index, hidden, self.reader.feature("key", "mean"))
        self.reader.forget()
        mlp: Any = self.inner.mlp
        out: Tensor = hidden + mlp(after(hidden))
        return out


def match(keys_BNF: Tensor, r: int, special: int) -> tuple[Tensor, Tensor]:
    """Which tokens merge (section 3 of the paper).

    Args:
        keys_BNF: what is compared.
        r: tokens that go.
        special: first tokens, which neither go nor receive.

    Returns:
        (B, N) the token that each token is in afterwards (itself where it stays), and (B, N - r)
        the tokens that stay, ascending.

    Raises:
        InputError: for NaN, or more than can merge.
    """
    size, tokens = keys_BNF.shape[:2]
    if bool(keys_BNF.isnan().any()):
        raise InputError("keys hold NaN; the model's activations overflowed")
    if not 0 <= r <= mergeable(tokens, special):
        raise InputError(f"r={r}; {mergeable(tokens, special)} of {tokens} tokens can merge")
    unit = torch.nn.functional.normalize(keys_BNF.float(), dim=-1)
    alike = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    alike[:, : (special + 1) // 2] = -torch.inf
    alike[:, :, : special // 2] = -torch.inf
    best = alike.max(-1)
    gone = best.values.sort(dim=1, descending=True, stable=True).indices[:, :r]
    itself = torch.arange(tokens, device=keys_BNF.device).expand(size, -1)
    target_BN = itself.scatter(1, 2 * gone, 2 * best.indices.gather(1, gone) + 1)
    return target_BN, true_places(target_BN == itself, tokens - r)


def merge(
    hidden_BND: Tensor, sizes_BN: Tensor, target_BN: Tensor, stay_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """Means of merged tokens weighted by size, (B, K, D), and their sizes, (B, K).

    Summed in fp32 at least: half precision overflows, and forgets one token beside many.
    """
    kind = torch.promote_types(hidden_BND.dtype, torch.float32)
    weighted = hidden_BND.to(kind) * sizes_BN[..., None]
    index = target_BN[..., None].expand(-1, -1, hidden_BND.shape[-1])
    summed = torch.zeros_like(weighted).scatter_add(1, index, weighted)
    sizes = torch.zeros_like(sizes_BN).scatter_add(1, target_BN, sizes_BN).gather(1, stay_BK)
    picked = summed.gather(1, stay_BK[..., None].expand(-1, -1, hidden_BND.shape[-1]))
    return (picked / sizes[..., None]).to(hidden_BND.dtype), sizes


def merge_to(tokens_ND: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the most alike, in as many rounds as it takes, until n tokens are left.

    Args:
        tokens_ND: in raster order, none of them special.
        n: to leave, from 1 to N.

    Returns:
        (n, D) weighted means, (n,) how many tokens each stands for, and (n,) the places of the
        tokens that stay, ascending.
    """
    merged_1nD, sizes_1n, at_1n = merge_all(tokens_ND[None], n)
    return merged_1nD[0], sizes_1n[0], at_1n[0]


def merge_all(tokens_BND: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """`merge_to` of several images at once: (B, n, D), (B, n) and (B, n)."""
    x_BMD = tokens_BND.float()
    sizes_BM = torch.ones(x_BMD.shape[:2], device=x_BMD.device)
    at_BM = torch.arange(x_BMD.shape[1], device=x_BMD.device).expand(len(x_BMD), -1)
    while (left := x_BMD.shape[1]) > n:
        target_BM, stay_BK = match(x_BMD, min(left - n, mergeable(left, 0)), 0)
        x_BMD, sizes_BM = merge(x_BMD, sizes_BM, target_BM, stay_BK)
        at_BM = at_BM.gather(1, stay_BK)
    return x_BMD.to(tokens_BND.dtype), sizes_BM.long(), at_BM
