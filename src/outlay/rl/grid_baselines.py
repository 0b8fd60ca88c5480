"""Baselines that the ablation grid knows by name, beside plain GRPO: other people's length rewards.

`grpo-length` discounts right answers by their length (`rewards.GatedLength`). `grpo-cosine` is
TRL's cosine-scaled reward (appendix C.1 of arXiv 2502.03373) over our verifier's verdict instead of
math-verify's. `grpo-overlong` is 0/1 plus TRL's soft punishment of overlong answers (equation 13 of
arXiv 2503.14476).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from outlay import registry
from outlay.errors import InputError
from outlay.rl.base import Judgement, Method, Plain, RewardFunction
from outlay.rl.rewards import GatedLength, accuracy

SFT = "sft"
"""The name of the policy before training."""


@dataclass(frozen=True)
class CosineLength:
    """TRL's cosine-scaled reward; see `trl.rewards.get_cosine_scaled_reward`.

    Args:
        max_len: tokens at which the long end is reached.
        min_value_wrong: pay of the shortest wrong completion.
        max_value_wrong: of the longest wrong one.
        min_value_correct: of the longest right one.
        max_value_correct: of the shortest right one.

    Raises:
        InputError: for a length below 1.
    """

    max_len: int
    min_value_wrong: float = -1.0
    max_value_wrong: float = -0.5
    min_value_correct: float = 0.5
    max_value_correct: float = 1.0

    def __post_init__(self) -> None:
        if self.max_len < 1:
            raise InputError(f"max_len={self.max_len}; must be at least 1 token")

    @property
    def __name__(self) -> str:
        """In TRL's logs."""
        return "cosine_length"

    def __call__(self, judgement: Sequence[Judgement], **_: object) -> list[float]:
        """One reward a completion."""
        rewards = []
        for one in judgement:
            at_end, at_start = (
                (self.min_value_correct, self.max_value_correct)
                if one.correct
                else (self.max_value_wrong, self.min_value_wrong)
            )
            wave = (1 + math.cos(math.pi * one.tokens / self.max_len)) / 2
            rewards.append(at_end + (at_start - at_end) * wave)
        return rewards


@dataclass(frozen=True)
class LengthGRPO(Method):
    """GRPO with `GatedLength`: the plain length reward.

    Args:
        scale: tokens at which the full discount is reached.
        slope: discount there.
    """

    scale: float = 100
    slope: float = 0.5

    def __post_init__(self) -> None:
        GatedLength(self.scale, self.slope)

    def reward_functions(self) -> list[RewardFunction]:
        """`correct * (1 - slope * min(n, scale) / scale)`."""
        return [GatedLength(self.scale, self.slope)]


@dataclass(frozen=True)
class CosineGRPO(Method):
    """GRPO with `CosineLength`.

    Args:
        max_len: tokens at which the long end is reached.
    """

    max_len: int = 112

    def __post_init__(self) -> None:
        CosineLength(self.max_len)

    def reward_functions(self) -> list[RewardFunction]:
        """The cosine-scaled reward."""
        return [CosineLength(self.max_len)]


@dataclass(frozen=True)
class OverlongGRPO(Method):
    """GRPO with 0/1 and TRL's soft overlong punishment.

    Args:
        max_len: tokens at which the punishment is full.
        cache: tokens before that over which it grows.

    Raises:
        InputError: for a cache that is not in 1..max_len.
    """

    max_len: int = 112
    cache: int = 56

    def __post_init__(self) -> None:
        if not 1 <= self.cache <= self.max_len:
            raise InputError(f"cache={self.cache}; must be in 1..max_len={self.max_len}")

    def reward_functions(self) -> list[RewardFunction]:
        """Right or wrong, and the punishment."""
        from trl.rewards import get_soft_overlong_punishment

        return [accuracy, get_soft_overlong_punishment(self.max_len, self.cache)]


BASELINES: dict[str, type[Method]] = {
    "grpo": Plain,
    "grpo-length": LengthGRPO,
    "grpo-cosine": CosineGRPO,
    "grpo-overlong": OverlongGRPO,
}


def method_of(spec: str) -> Method | None:
    """The method that a spec names: a baseline, or one of the registry; None for "sft".

    Args:
        spec: `name` or `name:knob=value,...`.

    Raises:
        InputError: for an unknown name, a registered method that is not of this room, or a knob
            that it does not have.
    """
    name, raw = registry.parse_spec(spec)
    if name == SFT:
        if raw:
            raise InputError(f"{SFT} is the policy before training and has no knobs")
        return None
    if name not in BASELINES:
        known = {entry.slug for entry in registry.methods() if entry.room == "rl"}
        if name not in known:
            names = ", ".join((SFT, *BASELINES, *sorted(known)))
            raise InputError(f"unknown training method {name!r}; known are: {names}")
        made: Method = registry.create("methods", spec)
        return made
    cls = BASELINES[name]
    fields = [f.name for f in dataclasses.fields(cls) if f.name not in ("rewards", "weights")]  # type: ignore[arg-type]
    if unknown := sorted(set(raw) - set(fields)):
        raise InputError(f"{name} has no knob {', '.join(unknown)}; it has: {', '.join(fields)}")
    try:
        return cls(**{knob: json.loads(text) for knob, text in raw.items()})
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(
            f"{spec!r} is not usable ({error}); knobs of {name} are numbers"
        ) from error
