"""The worlds as gymnasium and PettingZoo environments.

`gym_env` is one agent that moves all robots: an action picks, per robot, nothing (0) or entry i - 1
of the robot's `table`. `parallel_env` gives every robot its own agent. Observations are
`World.encode`; `info` holds action masks. Reward: 1 on the step that solves the task, 0 otherwise;
a refused action counts as nothing done. Collisions end an episode (terminated), the step limit cuts
it off (truncated). Both libraries are imported on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.errors import DependencyError, InputError
from outlay.evals.robots.base import World

Mask = npt.NDArray[np.int8]


class _Game:
    """What both adapters share: the state, and robots' choices turned into a plan."""

    def __init__(self, world: World[Any, Any]) -> None:
        self.world = world
        self.tables = {agent: world.table(agent) for agent in world.agents}
        bounds = world.bounds()
        self.low = np.array([low for low, _ in bounds], dtype=np.int64)
        self.high = np.array([high for _, high in bounds], dtype=np.int64)
        self.state: Any = None
        self.steps = 0

    def reset(self, seed: int) -> None:
        self.state, self.steps = self.world.reset(seed), 0

    def observation(self) -> npt.NDArray[np.int64]:
        return np.array(self.world.encode(self.state), dtype=np.int64)

    def masks(self) -> dict[str, Mask]:
        """Per robot, (1 + table,) with 1 where an action can be done alone."""
        able = self.world.actions(self.state)
        return {
            agent: np.array([1, *(action in able[agent] for action in table)], dtype=np.int8)
            for agent, table in self.tables.items()
        }

    def play(self, picks: Mapping[str, int]) -> tuple[bool, bool, dict[str, Any]]:
        """(terminated, solved, info) after every possible choice was done; refused ones are not."""
        if self.state is None:
            raise InputError("the environment was not reset; call reset(seed=...) first")
        choices: dict[str, str] = {}
        refused: list[str] = []
        for agent, pick in picks.items():
            table = self.tables[agent]
            if not 0 <= int(pick) <= len(table):
                raise InputError(f"action {pick} of {agent}; give 0 to {len(table)}")
            if int(pick) == 0:
                continue
            wanted = {**choices, agent: table[int(pick) - 1]}
            if refusals := self.world.check(self.state, self.world.join(wanted)):
                refused += [refusal.text() for refusal in refusals]
            else:
                choices = wanted
        plan = self.world.join(choices)
        step = self.world.step(self.state, plan)
        self.state = step.state
        self.steps += 1
        solved = self.world.solved(self.state) and not step.collisions
        info = {
            "plan": plan,
            "refused": refused,
            "collisions": [collision.text() for collision in step.collisions],
            "feedback": list(step.feedback),
            "solved": solved,
        }
        return solved or bool(step.collisions), solved, info


def gym_env(world: World[Any, Any]) -> Any:
    """A `gymnasium.Env` that moves all robots of `world` at once.

    Raises:
        DependencyError: without gymnasium.
    """
    return _gym_class()(world)


def parallel_env(world: World[Any, Any]) -> Any:
    """A `pettingzoo.ParallelEnv` with one agent a robot.

    Raises:
        DependencyError: without pettingzoo.
    """
    return _parallel_class()(world)


def _seed(seed: int | None, random: np.random.Generator) -> int:
    return int(random.integers(2**31)) if seed is None else seed


@cache
def _gym_class() -> type:
    try:
        import gymnasium
    except ImportError as error:
        raise DependencyError("gym_env needs gymnasium; pip install 'outlay[eval]'") from error
    spaces = gymnasium.spaces

    class RobotsEnv(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
        """All robots as one agent."""

        metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - gymnasium's own

        def __init__(self, world: World[Any, Any]) -> None:
            self.game = _Game(world)
            sizes = [1 + len(table) for table in self.game.tables.values()]
            self.action_space = spaces.MultiDiscrete(sizes)
            self.observation_space = spaces.Box(self.game.low, self.game.high, dtype=np.int64)
            self.render_mode = "ansi"

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.game.reset(_seed(seed, self.np_random))
            return self.game.observation(), {"action_mask": self.game.masks()}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            picks = dict(zip(self.game.tables, action, strict=True))
            terminated, solved, info = self.game.play(picks)
            info["action_mask"] = self.game.masks()
            truncated = not terminated and self.game.steps >= self.game.world.step_limit
            return self.game.observation(), float(solved), terminated, truncated, info

        def render(self) -> str:
            return self.game.world.brief(self.game.state)

    return RobotsEnv


@cache
def _parallel_class() -> type:
    try:
        import gymnasium
        import pettingzoo
    except ImportError as error:
        raise DependencyError(
            "parallel_env needs pettingzoo; pip install pettingzoo gymnasium"
        ) from error
    spaces = gymnasium.spaces

    class ParallelRobots(pettingzoo.ParallelEnv):
        """One agent a robot; all see the whole state and share the reward."""

        def __init__(self, world: World[Any, Any]) -> None:
            self.game = _Game(world)
            self.metadata = {"name": world.name, "render_modes": ["ansi"]}
            self.possible_agents = list(world.agents)
            self.agents: list[str] = []
            self.render_mode = "ansi"
            self._observed = spaces.Box(self.game.low, self.game.high, dtype=np.int64)
            self._acts = {a: spaces.Discrete(1 + len(t)) for a, t in self.game.tables.items()}
            self._random = np.random.default_rng(0)

        def observation_space(self, agent: str) -> Any:
            return self._observed

        def action_space(self, agent: str) -> Any:
            return self._acts[agent]

        def reset(
            self, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[dict[str, Any], dict[str, Any]]:
            self.game.reset(_seed(seed, self._random))
            self.agents = list(self.possible_agents)
            return self._seen(), self._infos({})

        def step(self, actions: Mapping[str, int]) -> tuple[dict[str, Any], ...]:
            if unknown := sorted(set(actions) - set(self.agents)):
                raise InputError(f"no robots {unknown}; act for {', '.join(self.agents) or 'none'}")
            now = list(self.agents)
            picks = {agent: actions[agent] for agent in now if agent in actions}
            terminated, solved, info = self.game.play(picks)
            truncated = not terminated and self.game.steps >= self.game.world.step_limit
            seen, infos = self._seen(), self._infos(info)
            if terminated or truncated:
                self.agents = []
            return (
                seen,
                dict.fromkeys(now, float(solved)),
                dict.fromkeys(now, terminated),
                dict.fromkeys(now, truncated),
                infos,
            )

        def render(self) -> str:
            return self.game.world.brief(self.game.state)

        def _seen(self) -> dict[str, Any]:
            return {agent: self.game.observation() for agent in self.agents}

        def _infos(self, info: Mapping[str, Any]) -> dict[str, Any]:
            masks = self.game.masks()
            return {agent: {**info, "action_mask": masks[agent]} for agent in self.agents}

    return ParallelRobots
