"""Patches leave between a tower's blocks: hooks, what is alive, and the way into a decoder.

Before the block that follows a stage, the hidden states are gathered; a ViT needs no mask, and
positions were added long ago. Every image of a batch keeps the same number, each its own patches.
In a vision-language model the kept patches' numbers leave the tower with the features: features are
spread over the grid behind the projector, and the room's dropper takes the empty places out of the
prompt, so that positions and newline tokens stay right.

Shapes: B images, H heads, N tokens alive, S special ones, P patches alive, K kept tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Choice, Kept, Positions, Seen, true_places
from outlay.vision.dropper import Dropper
from outlay.vision.towers import Reader, Tower, claim, find_tower, release
from outlay.vision.zero_tprune.schedule import Order, Stage, placed


@dataclass(frozen=True)
class Alive:
    """A tower's state between two blocks.

    Args:
        reader: of the block that just ran.
        hidden_BND: its output.
        patches_BP: places of the patches that may go, ascending.
        numbers_BP: the same patches' numbers in the image.
        total: patches of the image before any went.
        boosted: 1 where the first token is a class token that counts.
    """

    reader: Reader
    hidden_BND: Tensor
    patches_BP: Tensor
    numbers_BP: Tensor
    total: int
    boosted: int

    @property
    def tokens(self) -> int:
        """N."""
        return self.hidden_BND.shape[1]


class Chooser(Protocol):
    """Which patches stay."""

    def __call__(self, stage: Stage, alive: Alive) -> tuple[Tensor, Tensor]:
        """Positions within `patches_BP` that stay, (B, k) ascending, and scores of all, (B, P)."""
        ...


@dataclass
class KeptPatches(Kept):
    """`Kept`, and what lived where in the tower.

    Args:
        blocks: of each block, numbers of the patches that it saw, (B, n) ascending; special tokens
            are not counted, and patches are numbered row by row.
        stage_scores: of each stage, scores of the patches that it saw, (B, n).
        special: tokens that never go.
    """

    blocks: list[Tensor] = field(default_factory=list)
    stage_scores: list[Tensor] = field(default_factory=list)
    special: int = 0

    @property
    def indices(self) -> Tensor:
        """(B, k): numbers of the patches that left the tower.

        Raises:
            InputError: before the first image.
        """
        if not self.blocks:
            raise InputError("no image has run under this method yet")
        return self.blocks[-1]

    def seen(self) -> list[int]:
        """Patches that each block saw."""
        return [block.shape[1] for block in self.blocks]


class Pruning:
    """A context in which a model's vision tower loses patches.

    Args:
        model: a classifier, a tower, a CLIP, or a vision-language model.
        stages: where and how many.
        choose: which.
        order: of the stages' parts, which decides the counts.
        protect: numbers of tokens that never go, beside the special ones.
        values: whether `choose` reads values.
        positions: of visual tokens in a decoder.

    Raises:
        CapabilityError: for a tower that cannot be read, or one that is being pruned already.
        InputError: for a stage behind the last block that counts.
    """

    def __init__(
        self,
        model: Any,
        stages: Sequence[Stage],
        choose: Chooser,
        *,
        order: Order = "i-s-i",
        protect: Sequence[int] = (),
        values: bool = False,
        positions: Positions = "original",
    ) -> None:
        self.tower: Tower = find_tower(model)
        at = placed(stages, self.tower.depth)
        self.stages = {block: stage for block, stage in at.items() if not stage.idle}
        self.choose, self.order, self.protect = choose, order, tuple(protect)
        self.kept = KeptPatches(special=self.tower.special)
        blocks = self.tower.blocks
        self.readers = {
            block: Reader(blocks[block - 1], f"block {block}", values) for block in self.stages
        }
        self._alive_BN: Tensor | None = None
        self._handles: list[Any] = []
        self._dropper: Dropper | None = None
        self._projector: Any = None
        if self.tower.inside and self.stages:
            inner = getattr(model, "model", model)
            self._projector = getattr(inner, "multi_modal_projector", None)
            if self._projector is None:
                raise CapabilityError(
                    f"{type(model).__name__} has no multi_modal_projector; patches can leave the "
                    "towers of LLaVA-like models"
                )
            self._dropper = Dropper(model, choose=_present, positions=positions)
            self._dropper.kept = self.kept

    def __enter__(self) -> KeptPatches:
        claim(self.tower)
        blocks: Any = self.tower.blocks
        self._handles = [blocks[0].register_forward_pre_hook(self._begin, with_kwargs=True)]
        for block, reader in self.readers.items():
            reader.open()
            self._handles.append(
                blocks[block].register_forward_pre_hook(self._after(block), with_kwargs=True)
            )
        if self._dropper is not None:
            self._handles.append(self._projector.register_forward_hook(self._spread))
            self._dropper.__enter__()
        return self.kept

    def __exit__(self, *error: object) -> None:
        if self._dropper is not None:
            self._dropper.__exit__(*error)
        for handle in self._handles:
            handle.remove()
        for reader in self.readers.values():
            reader.close()
        self._handles, self._alive_BN = [], None
        release(self.tower)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the first block: everything is alive."""
        hidden_BND = args[0] if args else kwargs["hidden_states"]
        if not isinstance(hidden_BND, Tensor) or hidden_BND.ndim != 3:
            raise CapabilityError(
                f"blocks of {type(self.tower.module).__name__} do not see (images, tokens, width)"
            )
        size, tokens = hidden_BND.shape[:2]
        if not size:
            raise InputError("a batch of no images; give at least one")
        alive = torch.arange(tokens, device=hidden_BND.device)
        special = self.tower.special
        fixed = sorted({*range(special), *self.protect})
        if fixed and not 0 <= fixed[0] <= fixed[-1] < tokens:
            raise InputError(f"protect={self.protect}; the tower has tokens 0..{tokens - 1}")
        self._fixed = torch.tensor(fixed, device=hidden_BND.device, dtype=torch.long)
        self._total = tokens - special
        self._alive_BN = alive.expand(size, -1)
        everything = (alive[special:] - special).expand(size, -1)
        self.kept.blocks = [everything] * self.tower.depth
        self.kept.stage_scores = []
        if not self.tower.inside:
            self.kept.total = [self._total] * size
            self.kept.prefills += 1
            self.kept.sizes = list(self.kept.total)
            self.kept.entered = list(everything)

    def _after(self, block: int) -> Callable[..., Any]:
        """Before the block behind a stage: its patches go."""

        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
            if mask is not None or kwargs.get("position_embeddings") is not None:
                raise CapabilityError(
                    "this tower gives its blocks a mask or rotary positions; patches can leave "
                    "towers whose blocks see hidden states alone"
                )
            hidden_BND = args[0] if args else kwargs["hidden_states"]
            shorter = self._prune(block, hidden_BND)
            if args:
                return (shorter, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": shorter}

        return hook

    @torch.no_grad()
    def _stay(self, block: int, hidden_BND: Tensor) -> Tensor:
        """Places of the tokens that stay, (B, K) ascending."""
        alive_BN, stage, reader = self._alive_BN, self.stages[block], self.readers[block]
        assert alive_BN is not None
        fixed_BN = torch.isin(alive_BN, self._fixed)
        patches_BP = true_places(~fixed_BN, alive_BN.shape[1] - len(self._fixed))
        numbers_BP = alive_BN.gather(1, patches_BP) - self.tower.special
        boosted = int(self.tower.special > 0 and self.tower.classified)
        state = Alive(reader, hidden_BND, patches_BP, numbers_BP, self._total, boosted)
        wanted = stage.left(patches_BP.shape[1], self.order)
        chosen_Bk, scores_BP = self.choose(stage, state)
        if chosen_Bk.shape != (len(alive_BN), wanted):
            raise InputError(
                f"{tuple(chosen_Bk.shape)} patches chosen after block {block}; need {wanted} of "
                f"each of {len(alive_BN)} images"
            )
        self.kept.stage_scores.append(scores_BP)
        stay_BN = fixed_BN.scatter(1, patches_BP.gather(1, chosen_Bk), True)
        return true_places(stay_BN, len(self._fixed) + wanted)

    def _prune(self, block: int, hidden_BND: Tensor) -> Tensor:
        started = time.perf_counter()
        stay_BK = self._stay(block, hidden_BND)
        assert self._alive_BN is not None
        self._alive_BN = self._alive_BN.gather(1, stay_BK)
        self.readers[block].forget()
        special = self.tower.special
        numbers = self._alive_BN[:, special:] - special
        for later in range(block, self.tower.depth):
            self.kept.blocks[later] = numbers
        if not self.tower.inside:
            self.kept.entered = list(numbers)
        shorter = hidden_BND.gather(1, stay_BK[..., None].expand(-1, -1, hidden_BND.shape[-1]))
        self.kept.seconds += time.perf_counter() - started
        return shorter

    def _spread(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Behind the projector: features back to their places, NaN where patches are gone."""
        assert self._alive_BN is not None
        special = self.tower.special
        found = output.shape[-2]
        flat = output.reshape(-1, found, output.shape[-1])
        if found == self._alive_BN.shape[1]:
            at_BK, length = self._alive_BN, self._total + special
        else:
            at_BK, length = self._alive_BN[:, special:] - special, self._total
        if flat.shape[:2] != at_BK.shape:
            raise CapabilityError(
                f"the projector gave {tuple(flat.shape[:2])} features for "
                f"{tuple(at_BK.shape)} patches that live; it must keep their number"
            )
        full = flat.new_full((len(flat), length, flat.shape[-1]), float("nan"))
        full = full.scatter(1, at_BK[..., None].expand(-1, -1, flat.shape[-1]), flat)
        return full.reshape(*output.shape[:-2], length, output.shape[-1])


def _present(seen: Seen) -> Choice:
    """Visual tokens that have a feature enter the decoder."""
    empty_BT = seen.embeds_BTD[..., 0].isnan() & seen.visual_BT
    return Choice(~empty_BT)
