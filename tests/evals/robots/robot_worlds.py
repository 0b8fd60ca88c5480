"""Small and middle-sized worlds, and plain slow judges of them, for the tests of this folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from outlay.evals.robots.base import World
from outlay.evals.robots.boxlift import BoxLift
from outlay.evals.robots.boxnet import BoxNet1, BoxNet2
from outlay.evals.robots.calls import Caller
from outlay.evals.robots.episode import EpisodeLog, run_episode
from outlay.evals.robots.frameworks import Framework
from outlay.evals.robots.warehouse import Warehouse
from outlay.models.base import Account, SamplingParams

SMALL: tuple[World[Any, Any], ...] = (
    BoxNet1(1, 2, ("blue", "red"), pairs=(1, 1)),
    BoxNet2(1, 2, ("blue", "red")),
    BoxLift(2, 3),
    Warehouse(2, 3, 2),
)
MIDDLE: tuple[World[Any, Any], ...] = (
    BoxNet1(2, 2),
    BoxNet1(4, 4),
    BoxNet2(2, 4),
    BoxLift(4, 10),
    Warehouse(3, 5, 4),
    Warehouse(4, 8, 10, swap_is_collision=True),
)
NONSENSE = (
    "",
    "dance",
    "move(box_mauve, target_mauve)",
    "move(box_red, target_blue)",
    "move(box_blue, square[-0.5, 0.5])",
    "move(box_blue, position[9.0, 9.0])",
    "move(box_blue, square[0.5])",
    "move left right",
    "move to track_9",
    "move to track_-1",
    "pick box_7.5_7",
    "lift box0",
)


def ids(world: World[Any, Any]) -> str:
    return world.name


def all_single(world: World[Any, Any]) -> Iterator[tuple[str, str]]:
    """Every conceivable robot and action, sensible or not."""
    tables = sorted({action for agent in world.agents for action in world.table(agent)})
    yield from itertools.product(world.agents, (*tables, *NONSENSE))


def things(action: str) -> set[str]:
    """What an action takes hold of, read from its text."""
    return set(re.findall(r"box_?[\w.]+", action))


def play(
    world: World[Any, Any],
    seed: int,
    framework: Framework,
    model: Any,
    *,
    account: Account | None = None,
    caller: dict[str, Any] | None = None,
    **knobs: Any,
) -> EpisodeLog:
    """One episode."""
    asks = Caller(model, account or Account(), SamplingParams(), **(caller or {}))
    return run_episode(world, world.reset(seed), framework, asks, **knobs)
