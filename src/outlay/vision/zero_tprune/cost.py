"""Multiply-adds of a ViT whose patches leave, the pruning layers included.

Norms, activations and softmax are not counted, as in `torch.utils.flop_counter` (whose FLOPs are
twice these under eager attention).

N tokens, P patches, d width, H heads, T votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outlay.errors import CapabilityError, InputError
from outlay.vision.zero_tprune.baselines import PatchRanking
from outlay.vision.zero_tprune.method import ZeroTPrune
from outlay.vision.zero_tprune.schedule import Stage, counts, placed


@dataclass(frozen=True)
class Shape:
    """What a ViT's cost depends on.

    Args:
        width, mlp, heads, depth: d, hidden width of the MLP, H, blocks.
        patches, special: tokens of an image.
        patch: side of a patch in pixels.
        channels: of the image.
        classes: outputs of the head; 0 for none.
    """

    width: int
    mlp: int
    heads: int
    depth: int
    patches: int
    special: int
    patch: int
    channels: int = 3
    classes: int = 0

    @classmethod
    def of(cls, model: Any, depth: int | None = None) -> Shape:
        """Of a transformers ViT, classifier or tower.

        Args:
            model: whose config is read.
            depth: blocks that count; None for all.

        Raises:
            CapabilityError: for a config without the fields of a ViT.
        """
        from outlay.vision.towers import find_tower

        tower = find_tower(model)
        head = getattr(model, "classifier", None)
        try:
            config = tower.module.config
            side = config.image_size // config.patch_size
            return cls(
                config.hidden_size,
                config.intermediate_size,
                config.num_attention_heads,
                tower.depth if depth is None else depth,
                side * side,
                tower.special,
                config.patch_size,
                config.num_channels,
                int(getattr(head, "out_features", 0)),
            )
        except (AttributeError, TypeError) as error:
            raise CapabilityError(f"no closed form for this tower: {error}") from error

    def block(self, tokens: int, after: int | None = None) -> int:
        """One block over so many tokens; `after` is what its MLP sees, where that is fewer."""
        d, later = self.width, tokens if after is None else after
        return tokens * 4 * d * d + later * 2 * d * self.mlp + 2 * tokens * tokens * d

    @property
    def ends(self) -> int:
        """Patch embedding and head."""
        pixels = self.channels * self.patch**2
        return self.patches * pixels * self.width + self.width * self.classes


def blocks_macs(shape: Shape, seen: Sequence[int]) -> int:
    """Of a model whose blocks see so many patches each.

    Raises:
        InputError: for another number of blocks.
    """
    if len(seen) != shape.depth:
        raise InputError(f"{len(seen)} counts for {shape.depth} blocks")
    return shape.ends + sum(shape.block(count + shape.special) for count in seen)


def layer_macs(
    shape: Shape, method: ZeroTPrune | PatchRanking, stage: Stage, patches: int, fixed: int = 0
) -> int:
    """Of one pruning layer that sees so many patches, attention read again included.

    Args:
        shape: of the model.
        method: what prunes.
        stage: of the layer.
        patches: that may go.
        fixed: patches that may not, beside special tokens.
    """
    d, heads = shape.width, shape.heads
    tokens = patches + fixed + shape.special
    if isinstance(method, PatchRanking):
        # The class row alone, or all rows.
        return {"cls": tokens * d, "column": tokens * tokens * d}.get(method.ranking, 0)
    cost = tokens * tokens * d
    count = stage.similar(patches)
    if method.order == "i-s":
        kept = stage.left(patches, "i-s")
        compared = kept + stage.similar(int(stage.rate * patches + 1e-9))
        cost += heads * stage.votes * tokens * tokens
        return cost + (_pairs(method, compared, d, heads) if compared > kept else 0)
    if not count:
        return cost + heads * stage.votes * tokens * tokens
    left = tokens - count
    cost += heads * stage.votes * left * left
    if method.ranks_first:
        cost += heads * tokens * tokens
    return cost + _pairs(method, patches, d, heads)


def _pairs(method: ZeroTPrune, patches: int, width: int, heads: int) -> int:
    """Comparing the two groups; sums of absolute differences count as multiply-adds."""
    if method.key_reduce == "mean" and method.s_feature != "x":
        width //= heads
    half = patches // 2
    each = patches * patches if method.s_partition == "full" else half * (patches - half)
    return each * width


def macs(shape: Shape, method: ZeroTPrune | PatchRanking | None = None) -> int:
    """Of one image: the blocks over what is alive, and the pruning layers.

    Args:
        shape: of the model.
        method: None for the whole model.
    """
    if method is None:
        return blocks_macs(shape, [shape.patches] * shape.depth)
    seen, fixed = _alive(shape, method)
    return blocks_macs(shape, [count + fixed for count in seen]) + overhead(shape, method)


def tower_flops(model: Any, method: ZeroTPrune | PatchRanking) -> int | None:
    """FLOPs of one image in a vision-language model's tower, blocks behind the one that makes the
    feature included; None where there is no closed form."""
    from outlay.vision.towers import find_tower

    tower = find_tower(model)
    try:
        shape = Shape.of(model)
    except CapabilityError:
        return None
    seen, fixed = _alive(shape, method)
    behind = len(tower.blocks) - tower.depth
    return 2 * (macs(shape, method) + behind * shape.block(seen[-1] + fixed + shape.special))


def _alive(shape: Shape, method: ZeroTPrune | PatchRanking) -> tuple[Sequence[int], int]:
    """Patches that may go and are there in every block, and patches that may not."""
    order = method.order if isinstance(method, ZeroTPrune) else "i-s-i"
    fixed = len({n for n in method.protect if n >= shape.special})
    return counts(method.stages, shape.patches - fixed, shape.depth, order), fixed


def overhead(shape: Shape, method: ZeroTPrune | PatchRanking) -> int:
    """Of the pruning layers alone."""
    seen, fixed = _alive(shape, method)
    return sum(
        layer_macs(shape, method, stage, seen[block - 1], fixed)
        for block, stage in placed(method.stages, shape.depth).items()
        if not stage.idle
    )
