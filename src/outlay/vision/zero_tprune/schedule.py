"""Where patches go, how many, and after how many votes: a schedule is data.

N tokens, P patches (tokens that may be dropped).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from outlay.errors import InputError
from outlay.vision.zero_tprune.graph import MOST_STEPS

Order = Literal["i-s-i", "s-i", "i-s"]
MOST_STAGES = 1000


@dataclass(frozen=True)
class Stage:
    """One pruning layer.

    Args:
        block: after which it stands, counted from 1. Negative ones count places from the end: -1 is
            the last place, before the last block that counts.
        rate: share of the patches left by the S-stage that stays, in (0, 1].
        r: near copies that the S-stage drops.
        votes: T of the weighted PageRank.

    Raises:
        InputError: for values out of range.
    """

    block: int
    rate: float = 1.0
    r: int = 0
    votes: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block == 0:
            raise InputError(f"block={self.block!r}; count from 1, or from the end with -1")
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise InputError(f"rate={self.rate!r} after block {self.block}; must lie in (0, 1]")
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 0:
            raise InputError(f"r={self.r!r} after block {self.block}; need an int >= 0")
        if not isinstance(self.votes, int) or not 1 <= self.votes <= MOST_STEPS:
            raise InputError(f"votes={self.votes!r} (T) after block {self.block}; need an int >= 1")

    @property
    def idle(self) -> bool:
        """True where nothing goes."""
        return self.rate == 1 and self.r == 0

    def similar(self, patches: int) -> int:
        """Near copies that go of so many patches: r, which must stay below half of them.

        A larger r is cut down with a warning.
        """
        most = (patches - 1) // 2
        if self.r > most:
            warnings.warn(
                f"r={self.r} after block {self.block} is not below half of {patches} patches; "
                f"{most} go",
                stacklevel=3,
            )
        return min(self.r, most)

    def left(self, patches: int, order: Order = "i-s-i") -> int:
        """Patches that stay of so many; `rate` counts what the S-stage leaves.

        Raises:
            InputError: where no patch is left.
        """
        if order == "i-s":
            kept = math.floor(self.rate * patches + 1e-9)
            kept -= self.similar(kept)
        else:
            kept = math.floor(self.rate * (patches - self.similar(patches)) + 1e-9)
        if kept < 1:
            raise InputError(
                f"no patch of {patches} is left after block {self.block} (rate={self.rate}, "
                f"r={self.r}); raise rate"
            )
        return kept


def as_stages(schedule: Sequence[Stage | Sequence[float]]) -> tuple[Stage, ...]:
    """Stages of a schedule, checked; tuples are (block, rate, r, T).

    Raises:
        InputError: for blocks that do not rise, or an entry that is no stage.
    """
    if len(schedule) > MOST_STAGES:
        raise InputError(f"{len(schedule)} stages; at most {MOST_STAGES}")
    stages = []
    for entry in schedule:
        if isinstance(entry, Stage):
            stages.append(entry)
            continue
        values = tuple(entry)
        if not 2 <= len(values) <= 4:
            raise InputError(f"stage {values!r}; need (block, rate, r, T), the last two optional")
        whole = [
            int(value) if float(value).is_integer() else value  # refused by Stage otherwise
            for value in (values[0], *values[2:])
        ]
        stages.append(Stage(whole[0], values[1], *whole[1:]))  # type: ignore[arg-type]
    for sign in (1, -1):
        blocks = [stage.block for stage in stages if sign * stage.block > 0]
        _check_rising(blocks)
    return tuple(stages)


def placed(stages: Sequence[Stage], blocks: int) -> dict[int, Stage]:
    """Stages by the block that they stand after, from 1, in a tower of so many blocks.

    Raises:
        InputError: for a place that the tower does not have, or blocks that do not rise.
    """
    at = [stage.block if stage.block > 0 else blocks + stage.block for stage in stages]
    for stage, block in zip(stages, at, strict=True):
        if not 0 < block < blocks:
            raise InputError(
                f"a stage after block {stage.block} of {blocks}; the last place is after block "
                f"{blocks - 1}, for nothing would see fewer tokens"
            )
    _check_rising(at)
    return dict(zip(at, stages, strict=True))


def _check_rising(blocks: Sequence[int]) -> None:
    if list(blocks) != sorted(set(blocks)):
        raise InputError(f"schedule has stages after blocks {list(blocks)}; blocks must rise")


def counts(
    stages: Sequence[Stage], patches: int, blocks: int, order: Order = "i-s-i"
) -> tuple[int, ...]:
    """Patches that each block sees.

    Raises:
        InputError: for a stage after the last block or later, or where no patch is left.
    """
    at, seen = placed(stages, blocks), []
    for block in range(1, blocks + 1):
        seen.append(patches)
        if block in at:
            patches = at[block].left(patches, order)
    return tuple(seen)


def stages_for(stages: Sequence[Stage], left: int, patches: int) -> tuple[Stage, ...]:
    """The same stages, scaled so that `left` of so many patches come out.

    Every stage keeps its part of the way, on a logarithmic scale; near copies keep their share of
    what goes.

    Raises:
        InputError: for a schedule in which nothing goes, or a number out of range.
    """
    if not 1 <= left <= patches:
        raise InputError(f"{left} patches of {patches} are asked for; need 1 to {patches}")
    path, now = [], patches
    for stage in stages:
        path.append((stage, now, stage.left(now)))
        now = path[-1][2]
    if now == patches:
        raise InputError("nothing goes under this schedule, so it cannot be scaled to a budget")
    strength = math.log(left / patches) / math.log(now / patches)
    scaled, count = [], patches
    for index, (stage, before, after) in enumerate(path):
        if index == len(path) - 1:
            wanted = left
        else:
            wanted = max(left, round(patches * (after / patches) ** strength))
        gone = count - wanted
        copies = min(round(gone * stage.r / max(1, before - after)), (count - 1) // 2, gone)
        if gone:
            scaled.append(Stage(stage.block, wanted / (count - copies), copies, stage.votes))
            count = wanted
    return tuple(scaled)


_DEIT_S = ((1, 1.0, 10, 30), (3, 0.9, 10, 5), (6, 0.8, 10, 5), (9, 0.7, 10, 1), (11, 1.0, 10, 1))
PRESETS: Mapping[str, tuple[Stage, ...]] = MappingProxyType(
    {
        "deit_s_3g": as_stages([tuple(map(float, row)) for row in _DEIT_S]),
        "last": (Stage(-1, 0.25, 0, 5),),
    }
)
"""The published schedule of DeiT-S at 224 pixels, about 3.08 G multiply-adds; and a quarter of the
patches before the last block (ours), for towers of vision-language models."""
