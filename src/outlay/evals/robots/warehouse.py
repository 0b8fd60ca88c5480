"""Warehouse: robots on parallel tracks fetch boxes from shelves and bring them to one depot.

"Scalable Multi-Robot Collaboration with Large Language Models: Centralized or Decentralized
Systems?" (arXiv 2309.15943), section IV. Shelves lie between neighbouring tracks; a robot beside a
box picks it, carries it to the left end of its track and from there to the depot ("target"), which
holds any number of robots and is the only way from one track to another. Two robots on one place
are a collision.

Different from the official code: every track is offered and accepted, moves from the depot are
judged like others, and positions are compared as numbers. As there, two robots that exchange places
pass each other; `swap_is_collision=True` makes that a collision too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from outlay.errors import InputError
from outlay.evals.robots.base import (
    MAX_AGENTS,
    Apply,
    Collision,
    Draw,
    Plan,
    World,
    check_apply,
    check_grid,
    check_whole,
)

SIZES = ((3, 5, 4), (3, 6, 6), (4, 6, 8), (4, 8, 10))
DEPOT = (-1, -1)
Place = tuple[int, int]
Robot = tuple[int, int, bool]

_PICK = re.compile(r"pick box_(\d+)\.5_(\d+)")
_TRACK = re.compile(r"move to track_(\d+)")
_BOX = re.compile(r"box_(\d+)\.5_(\d+)")
_AGENT = re.compile(r"agent(\d+): I am (at target|on track_(\d+) at column_(\d+)), I carry (\w+)")


@dataclass(frozen=True)
class HouseState:
    """Boxes on shelves and robots.

    Args:
        boxes: (track above, column) of every box on a shelf, sorted; it lies at track + 0.5.
        robots: (track, column, carrying) of every robot; (-1, -1) is the depot.
    """

    boxes: tuple[Place, ...]
    robots: tuple[Robot, ...]


@dataclass(frozen=True)
class Warehouse(World[HouseState, tuple[int, Robot, Place | None]]):
    """Robots fetch boxes to a depot.

    Args:
        tracks: number of tracks; shelves lie between neighbours, so at least 2.
        columns: places of a track.
        robots: number of robots; they start on different places.
        occupancy: share of shelf places that hold a box at the start, in [0, 1]; at least one does.
        swap_is_collision: robots that exchange places collide.
        apply: see `base`.
        force: allow more than 64 places.

    Raises:
        InputError: for sizes out of range, or more robots than places.
    """

    tracks: int = 3
    columns: int = 5
    robots: int = 4
    occupancy: float = 0.5
    swap_is_collision: bool = False
    apply: Apply = "simultaneous"
    force: bool = False

    def __post_init__(self) -> None:
        check_grid(self.tracks, self.columns, self.force)
        check_apply(self.apply)
        if self.tracks < 2:
            raise InputError(f"tracks={self.tracks}; shelves lie between tracks: give at least 2")
        check_whole("robots", self.robots, 1, MAX_AGENTS)
        if self.robots > self.tracks * self.columns:
            raise InputError(
                f"robots={self.robots} do not fit on {self.tracks * self.columns} places; "
                "take fewer robots, or more tracks or columns"
            )
        if not 0 <= self.occupancy <= 1:
            raise InputError(f"occupancy={self.occupancy}; give a share in [0, 1]")

    @property
    def name(self) -> str:
        """ "warehouse-3x5x4" and the like."""
        return f"warehouse-{self.tracks}x{self.columns}x{self.robots}"

    @property
    def agents(self) -> tuple[str, ...]:
        """ "agent0", "agent1", ..."""
        return tuple(f"agent{i}" for i in range(self.robots))

    @property
    def step_limit(self) -> int:
        """30 steps, 40 for 8 robots or more."""
        return 40 if self.robots >= 8 else 30

    @property
    def history_tokens(self) -> int:
        """4000 tokens."""
        return 4000

    def reset(self, seed: int) -> HouseState:
        """Each shelf place holds a box with the chance `occupancy`; robots start anywhere."""
        draw = Draw(f"{self.name}-{self.occupancy}", seed)
        shelves = [(i, j) for i in range(self.tracks - 1) for j in range(self.columns)]
        boxes = [place for place in shelves if draw.share() < self.occupancy]
        if not boxes:
            boxes = [shelves[draw.below(len(shelves))]]
        free = [(i, j) for i in range(self.tracks) for j in range(self.columns)]
        robots = [(*free.pop(draw.below(len(free))), False) for _ in range(self.robots)]
        return HouseState(tuple(boxes), tuple(robots))

    def solved(self, state: HouseState) -> bool:
        """True when no box is on a shelf or on a robot."""
        return not state.boxes and not any(carrying for _, _, carrying in state.robots)

    def _reach(self, boxes: Sequence[Place], robot: Robot) -> tuple[str, ...]:
        track, column, carrying = robot
        if track < 0:
            return tuple(f"move to track_{i}" for i in range(self.tracks))
        found = []
        if not carrying:
            near = [(track - 1, column), (track, column)]
            found += [f"pick box_{i}.5_{j}" for i, j in near if (i, j) in boxes]
        if column > 0:
            found.append("move left")
        if column < self.columns - 1:
            found.append("move right")
        if column == 0:
            found.append("move to target")
        return tuple(found)

    def actions(self, state: HouseState) -> dict[str, tuple[str, ...]]:
        """What every robot can do from its place."""
        return {
            agent: self._reach(state.boxes, robot)
            for agent, robot in zip(self.agents, state.robots, strict=True)
        }

    def table(self, agent: str) -> tuple[str, ...]:
        """Moves, tracks, and picking from every shelf place."""
        shelves = [(i, j) for i in range(self.tracks - 1) for j in range(self.columns)]
        return (
            "move left",
            "move right",
            "move to target",
            *(f"move to track_{i}" for i in range(self.tracks)),
            *(f"pick box_{i}.5_{j}" for i, j in shelves),
        )

    def encode(self, state: HouseState) -> tuple[int, ...]:
        """Shelf places (1 with a box), then track, column and load of every robot."""
        shelves = [
            int((i, j) in state.boxes) for i in range(self.tracks - 1) for j in range(self.columns)
        ]
        return (*shelves, *(int(value) for robot in state.robots for value in robot))

    def bounds(self) -> tuple[tuple[int, int], ...]:
        """-1, -1 is the depot."""
        shelves = ((0, 1),) * ((self.tracks - 1) * self.columns)
        return shelves + ((-1, self.tracks - 1), (-1, self.columns - 1), (0, 1)) * self.robots

    def judge(
        self, state: HouseState, key: str, action: str
    ) -> tuple[int, Robot, Place | None] | str:
        """(robot, robot after, box taken) or a reason."""
        if key.strip() not in self.agents:
            return "there is no such robot"
        number = int(key.strip()[5:])
        track, column, carrying = state.robots[number]
        words = " ".join(action.split())
        at = "at target" if track < 0 else f"on track_{track} at column_{column}"
        if words in ("move left", "move right"):
            there = column + (1 if words.endswith("right") else -1)
            if track < 0 or not 0 <= there < self.columns:
                return f"the robot is {at}"
            return number, (track, there, carrying), None
        if words == "move to target":
            return (number, (*DEPOT, False), None) if column == 0 else f"the robot is {at}"
        if found := _TRACK.fullmatch(words):
            to = int(found[1])
            if track >= 0:
                return f"the robot is {at}; tracks are entered from the target"
            if to >= self.tracks:
                return f"there is no track_{to}"
            return number, (to, 0, carrying), None
        if found := _PICK.fullmatch(words):
            box = int(found[1]), int(found[2])
            if carrying:
                return "the robot carries a box already"
            if box not in state.boxes:
                return f"there is no box_{found[1]}.5_{found[2]}"
            if column != box[1] or track not in (box[0], box[0] + 1):
                return f"the robot is {at}, not beside box_{found[1]}.5_{found[2]}"
            return number, (track, column, True), box
        return (
            "it is not one of 'move left', 'move right', 'move to target', 'move to track_N', "
            "'pick box_ROW_COLUMN'"
        )

    def objects(self, effect: tuple[int, Robot, Place | None]) -> tuple[str, ...]:
        """The box that is picked."""
        box = effect[2]
        return () if box is None else (f"box_{box[0]}.5_{box[1]}",)

    def put(
        self, state: HouseState, effects: Sequence[tuple[int, Robot, Place | None]]
    ) -> HouseState:
        """Robots moved, picked boxes off the shelves."""
        robots = list(state.robots)
        taken = set()
        for number, robot, box in effects:
            robots[number] = robot
            taken.add(box)
        return HouseState(tuple(b for b in state.boxes if b not in taken), tuple(robots))

    def collisions(
        self, before: HouseState, after: HouseState, plan: Plan
    ) -> tuple[Collision, ...]:
        """Places with two robots; with `swap_is_collision`, exchanged places."""
        places: dict[Place, list[int]] = {}
        for number, (track, column, _) in enumerate(after.robots):
            if track >= 0:
                places.setdefault((track, column), []).append(number)
        found = [
            Collision(tuple(f"agent{n}" for n in numbers), f"track_{track} column_{column}")
            for (track, column), numbers in places.items()
            if len(numbers) > 1
        ]
        if self.swap_is_collision:
            found += self._swaps(before, after)
        return tuple(found)

    def _swaps(self, before: HouseState, after: HouseState) -> list[Collision]:
        was = {robot[:2]: n for n, robot in enumerate(before.robots) if robot[0] >= 0}
        found = []
        for n, (old, new) in enumerate(zip(before.robots, after.robots, strict=True)):
            other = was.get(new[:2])
            if other is None or other <= n or new[:2] == old[:2]:
                continue
            if after.robots[other][:2] == old[:2]:
                where = f"track_{old[0]} between columns {old[1]} and {new[1]}"
                found.append(Collision((f"agent{n}", f"agent{other}"), where))
        return found

    def rules(self) -> str:
        """The task description."""
        return (
            "You direct robots in a warehouse. Robots move on parallel tracks, one column a step. "
            "Boxes lie on shelves between neighbouring tracks: box_0.5_2 lies between track_0 and "
            "track_1 at column_2. A robot that carries nothing can pick a box beside it, and "
            "carries one box at a time. From column_0 a robot moves to the target, where it drops "
            "its box; from the target it moves to column_0 of any track. Two robots on the same "
            "track and column collide and the task has failed; the target holds any number. The "
            "task is done when all boxes are at the target. Use as few steps as possible."
        )

    def example(self) -> str:
        """Three robots."""
        return '{"agent0": "move left", "agent1": "pick box_0.5_2", "agent2": "move to target"}'

    def shared_text(self, state: HouseState) -> str:
        """The boxes on shelves."""
        return "Boxes on shelves: " + ", ".join(f"box_{i}.5_{j}" for i, j in state.boxes)

    def agent_lines(self, state: HouseState) -> dict[str, str]:
        """Place, load and actions of every robot."""
        actions = self.actions(state)
        lines = {}
        for agent, (track, column, carrying) in zip(self.agents, state.robots, strict=True):
            place = "at target" if track < 0 else f"on track_{track} at column_{column}"
            load = "one box" if carrying else "nothing"
            can = "; ".join(actions[agent])
            lines[agent] = f"{agent}: I am {place}, I carry {load}, I can do [{can}]"
        return lines

    def brief(self, state: HouseState) -> str:
        """Boxes, and every robot's place with * for a load."""
        boxes = ", ".join(f"box_{i}.5_{j}" for i, j in state.boxes)
        robots = ", ".join(
            f"{agent} {'target' if t < 0 else f'({t}, {c})'}{'*' if carrying else ''}"
            for agent, (t, c, carrying) in zip(self.agents, state.robots, strict=True)
        )
        return f"{boxes or 'no boxes on shelves'}; {robots}"

    def read(self, text: str) -> HouseState:
        """Boxes of the shared text and places of all robots' lines."""
        line = next((row for row in text.splitlines() if row.startswith("Boxes on")), "")
        boxes = tuple((int(i), int(j)) for i, j in _BOX.findall(line))
        robots = {
            int(n): (int(t) if t else -1, int(c) if c else -1, load == "one")
            for n, _, t, c, load in _AGENT.findall(text)
        }
        return HouseState(boxes, tuple(robots[n] for n in sorted(robots)))
