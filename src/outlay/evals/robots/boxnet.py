"""BoxNet1 and BoxNet2: robots in the cells of a grid pass coloured boxes to coloured targets.

"Scalable Multi-Robot Collaboration with Large Language Models: Centralized or Decentralized
Systems?" (arXiv 2309.15943), section IV. In BoxNet1 boxes lie in cells, any number in each, and
nothing collides. In BoxNet2 they lie on the corners of cells, each shared by up to four robots, and
two boxes on one corner are a collision.

Different from the official code: positions are compared as numbers, and malformed actions are
refused with a reason, never dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from outlay.evals.robots.base import Collision, Draw, Plan, check_whole
from outlay.evals.robots.grid import Cell, Corner, Grid, cell_text, corner_text

_AGENT = re.compile(r"Agent\[(\d+)\.5, (\d+)\.5\]: I am in [^\n]*? I can observe \[([^\]]*)\]")
_CORNER_ITEM = re.compile(r"box_([a-z]+)@\((\d+), (\d+)\)")


@dataclass(frozen=True)
class BoxNet1(Grid[tuple[tuple[str, ...], ...], tuple[int, int, str]]):
    """Boxes in cells. A state is, per cell, the sorted names of what lies there.

    Args:
        pairs: fewest and most box-target pairs of a colour.
    """

    pairs: tuple[int, int] = (1, 3)

    form = "move(box_COLOUR, square[ROW, COLUMN]) or move(box_COLOUR, target_COLOUR)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("pairs[0]", self.pairs[0], 1, 64)
        check_whole("pairs[1]", self.pairs[1], self.pairs[0], 64)

    @property
    def name(self) -> str:
        """ "boxnet1-2x2" and the like."""
        return f"boxnet1-{self.rows}x{self.columns}"

    def reset(self, seed: int) -> tuple[tuple[str, ...], ...]:
        """Every colour has `pairs` boxes and as many targets, each in a uniform cell."""
        draw = Draw(self.name, seed)
        cells: list[list[str]] = [[] for _ in self.cells]
        for colour in self.colours:
            for _ in range(draw.between(*self.pairs)):
                cells[draw.below(len(cells))].append(f"box_{colour}")
                cells[draw.below(len(cells))].append(f"target_{colour}")
        return tuple(tuple(sorted(items)) for items in cells)

    def solved(self, state: tuple[tuple[str, ...], ...]) -> bool:
        """True when no object is left."""
        return not any(state)

    def _cell_actions(self, cell: Cell, items: tuple[str, ...]) -> tuple[str, ...]:
        found = []
        for box in dict.fromkeys(item for item in items if item.startswith("box_")):
            target = "target_" + box[4:]
            if target in items:
                found.append(f"move({box}, {target})")
            found += [f"move({box}, square[{cell_text(to)}])" for to in self.neighbours(cell)]
        return tuple(found)

    def actions(self, state: tuple[tuple[str, ...], ...]) -> dict[str, tuple[str, ...]]:
        """Moves of the boxes in a robot's own cell."""
        return {
            agent: self._cell_actions(cell, items)
            for (agent, cell), items in zip(self.named_cells.items(), state, strict=True)
        }

    def table(self, agent: str) -> tuple[str, ...]:
        """Every colour to its target and to every neighbour."""
        cell = self.named_cells[agent]
        items = tuple(f"{kind}_{c}" for c in self.colours for kind in ("box", "target"))
        return self._cell_actions(cell, items)

    def encode(self, state: tuple[tuple[str, ...], ...]) -> tuple[int, ...]:
        """Per cell and colour: number of boxes, number of targets."""
        values: list[int] = []
        for items in state:
            for colour in self.colours:
                values += (items.count(f"box_{colour}"), items.count(f"target_{colour}"))
        return tuple(values)

    def bounds(self) -> tuple[tuple[int, int], ...]:
        """0 to the most pairs of a colour."""
        return ((0, self.pairs[1]),) * (2 * len(self.colours) * len(self.cells))

    def judge(
        self, state: tuple[tuple[str, ...], ...], key: str, action: str
    ) -> tuple[int, int, str] | str:
        """(cell, cell it goes to or -1 for its target, box) or a reason."""
        read = self.read_move(key, action)
        if isinstance(read, str):
            return read
        cell, box, kind, goal = read
        here = cell[0] * self.columns + cell[1]
        if box not in state[here]:
            return f"there is no {box} in square[{cell_text(cell)}]"
        if isinstance(goal, str):
            if goal[7:] != box[4:]:
                return f"{box} does not belong to {goal}"
            if goal not in state[here]:
                return f"there is no {goal} in square[{cell_text(cell)}]"
            return here, -1, box
        if kind != "square":
            return f"it is not written as {self.form}"
        for to in self.neighbours(cell):
            if (to[0] + 0.5, to[1] + 0.5) == goal:
                return here, to[0] * self.columns + to[1], box
        return f"square[{goal[0]}, {goal[1]}] does not share a side with square[{cell_text(cell)}]"

    def objects(self, effect: tuple[int, int, str]) -> tuple[str, ...]:
        """The robot alone, one action each: nobody else reaches what lies in its cell."""
        return (f"the hand of square {effect[0]}",)

    def put(
        self, state: tuple[tuple[str, ...], ...], effects: Sequence[tuple[int, int, str]]
    ) -> tuple[tuple[str, ...], ...]:
        """Boxes moved, matched pairs gone."""
        changed: dict[int, list[str]] = {}
        for here, there, box in effects:
            changed.setdefault(here, list(state[here])).remove(box)
            if there < 0:
                changed[here].remove("target_" + box[4:])
            else:
                changed.setdefault(there, list(state[there])).append(box)
        cells = list(state)
        for index, items in changed.items():
            cells[index] = tuple(sorted(items))
        return tuple(cells)

    def rules(self) -> str:
        """The task description."""
        return (
            "You direct robots on a grid. Each robot stands in one square and can only move boxes "
            "that lie in its own square: to a square that shares a side with it, or onto a target "
            "of the box's colour in the same square, which takes both away. A square may hold any "
            "number of boxes and targets. The task is done when every box has met a target of its "
            "colour. Use as few steps as possible."
        )

    def example(self) -> str:
        """Two robots."""
        return (
            '{"Agent[0.5, 0.5]": "move(box_blue, square[0.5, 1.5])", '
            '"Agent[1.5, 0.5]": "move(box_red, target_red)"}'
        )

    def shared_text(self, state: tuple[tuple[str, ...], ...]) -> str:
        """Nothing beyond what the robots see."""
        return ""

    def agent_lines(self, state: tuple[tuple[str, ...], ...]) -> dict[str, str]:
        """What lies in the robot's square and what it can do."""
        actions = self.actions(state)
        return {
            agent: f"{agent}: I am in square[{cell_text(cell)}], I can observe "
            f"[{', '.join(items)}], I can do [{'; '.join(actions[agent])}]"
            for (agent, cell), items in zip(self.named_cells.items(), state, strict=True)
        }

    def brief(self, state: tuple[tuple[str, ...], ...]) -> str:
        """Non-empty squares."""
        return "; ".join(
            f"[{cell_text(cell)}]: {', '.join(items)}"
            for cell, items in zip(self.cells, state, strict=True)
            if items
        )

    def read(self, text: str) -> tuple[tuple[str, ...], ...]:
        """The items of every robot's line."""
        cells: list[tuple[str, ...]] = [()] * len(self.cells)
        for i, j, items in _AGENT.findall(text):
            cells[int(i) * self.columns + int(j)] = tuple(filter(None, items.split(", ")))
        return tuple(cells)


@dataclass(frozen=True)
class CornerState:
    """Of BoxNet2: boxes (colour, corner) and targets (colour, cell), sorted by colour."""

    boxes: tuple[tuple[str, Corner], ...]
    targets: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True)
class BoxNet2(Grid[CornerState, tuple[str, str, Corner | None]]):
    """Boxes on corners of cells, one pair a colour; two boxes on one corner collide.

    A colour whose box finds all four corners of its cell taken is left out, as in the official
    code.
    """

    form = "move(box_COLOUR, position[X, Y]) or move(box_COLOUR, target_COLOUR)"

    @property
    def name(self) -> str:
        """ "boxnet2-2x2" and the like."""
        return f"boxnet2-{self.rows}x{self.columns}"

    @staticmethod
    def corners(cell: Cell) -> tuple[Corner, ...]:
        """The four corners of a cell."""
        i, j = cell
        return ((i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1))

    def reset(self, seed: int) -> CornerState:
        """A random free corner of a random cell per box, a random cell per target."""
        draw = Draw(self.name, seed)
        taken: set[Corner] = set()
        boxes, targets = [], []
        for colour in sorted(self.colours):
            cell = self.cells[draw.below(len(self.cells))]
            goal = self.cells[draw.below(len(self.cells))]
            free = [corner for corner in self.corners(cell) if corner not in taken]
            if not free:
                continue
            corner = free[draw.below(len(free))]
            taken.add(corner)
            boxes.append((colour, corner))
            targets.append((colour, goal))
        return CornerState(tuple(boxes), tuple(targets))

    def solved(self, state: CornerState) -> bool:
        """True when no box is left."""
        return not state.boxes

    def _reach(
        self, cell: Cell, boxes: Sequence[tuple[str, Corner]], goals: dict[str, Cell]
    ) -> tuple[str, ...]:
        found = []
        corners = self.corners(cell)
        for colour, corner in boxes:
            if corner not in corners:
                continue
            if goals.get(colour) == cell:
                found.append(f"move(box_{colour}, target_{colour})")
            found += [f"move(box_{colour}, {corner_text(c)})" for c in corners if c != corner]
        return tuple(found)

    def actions(self, state: CornerState) -> dict[str, tuple[str, ...]]:
        """Moves of the boxes on the corners of a robot's cell."""
        goals = dict(state.targets)
        return {a: self._reach(cell, state.boxes, goals) for a, cell in self.named_cells.items()}

    def table(self, agent: str) -> tuple[str, ...]:
        """Every colour to the target and to every corner of the robot's cell."""
        corners = self.corners(self.named_cells[agent])
        found = []
        for colour in sorted(self.colours):
            found.append(f"move(box_{colour}, target_{colour})")
            found += [f"move(box_{colour}, {corner_text(corner)})" for corner in corners]
        return tuple(found)

    def encode(self, state: CornerState) -> tuple[int, ...]:
        """Per colour: the box's corner (2), the target's cell (2); -1 where there is none."""
        boxes, targets = dict(state.boxes), dict(state.targets)
        values: list[int] = []
        for colour in sorted(self.colours):
            values += (*boxes.get(colour, (-1, -1)), *targets.get(colour, (-1, -1)))
        return tuple(values)

    def bounds(self) -> tuple[tuple[int, int], ...]:
        """-1 to the last corner or cell."""
        one = ((-1, self.rows), (-1, self.columns), (-1, self.rows - 1), (-1, self.columns - 1))
        return one * len(self.colours)

    def judge(
        self, state: CornerState, key: str, action: str
    ) -> tuple[str, str, Corner | None] | str:
        """(robot, colour, corner it goes to or None for its target) or a reason."""
        read = self.read_move(key, action)
        if isinstance(read, str):
            return read
        cell, box, kind, goal = read
        agent = f"Agent[{cell_text(cell)}]"
        colour = box[4:]
        at = dict(state.boxes).get(colour)
        if at is None or at not in self.corners(cell):
            return f"there is no {box} on a corner of square[{cell_text(cell)}]"
        if isinstance(goal, str):
            if goal[7:] != colour:
                return f"{box} does not belong to {goal}"
            if dict(state.targets)[colour] != cell:
                return f"there is no {goal} in square[{cell_text(cell)}]"
            return agent, colour, None
        if kind != "position":
            return f"it is not written as {self.form}"
        for corner in self.corners(cell):
            if goal == corner:
                return (agent, colour, corner) if corner != at else f"{box} is there already"
        return f"position[{goal[0]}, {goal[1]}] is no corner of square[{cell_text(cell)}]"

    def objects(self, effect: tuple[str, str, Corner | None]) -> tuple[str, ...]:
        """The box and the robot: one action each."""
        return (f"box_{effect[1]}", f"the hand of {effect[0]}")

    def put(
        self, state: CornerState, effects: Sequence[tuple[str, str, Corner | None]]
    ) -> CornerState:
        """Boxes moved, matched pairs gone."""
        boxes, targets = dict(state.boxes), dict(state.targets)
        for _, colour, corner in effects:
            if corner is None:
                del boxes[colour], targets[colour]
            else:
                boxes[colour] = corner
        return CornerState(tuple(boxes.items()), tuple(targets.items()))

    def collisions(
        self, before: CornerState, after: CornerState, plan: Plan
    ) -> tuple[Collision, ...]:
        """Corners with two boxes; its robots are those that moved one of them there."""
        counts = Counter(corner for _, corner in after.boxes)
        found = []
        for corner, count in counts.items():
            if count < 2:
                continue
            colours = {colour for colour, at in after.boxes if at == corner}
            movers = tuple(
                agent
                for agent, action in self.split(plan).items()
                if any(f"(box_{colour}," in action.replace(" ", "") for colour in colours)
            )
            found.append(Collision(movers, corner_text(corner)))
        return tuple(found)

    def rules(self) -> str:
        """The task description."""
        return (
            "You direct robots on a grid. Each robot stands in one square and can only move boxes "
            "that lie on a corner of its own square: to another corner of the square, or onto the "
            "target of the box's colour in the square, which takes both away. A corner is shared "
            "by up to four robots, and it holds one box only: two boxes on one corner collide and "
            "the task has failed. Two robots cannot move one box in the same step. The task is "
            "done when every box has met its target. Use as few steps as possible."
        )

    def example(self) -> str:
        """Two robots."""
        return (
            '{"Agent[0.5, 0.5]": "move(box_blue, position[0.0, 1.0])", '
            '"Agent[1.5, 0.5]": "move(box_red, target_red)"}'
        )

    def shared_text(self, state: CornerState) -> str:
        """Nothing beyond what the robots see."""
        return ""

    def agent_lines(self, state: CornerState) -> dict[str, str]:
        """Boxes on the square's corners, targets in it, and what the robot can do."""
        actions = self.actions(state)
        lines = {}
        for agent, cell in self.named_cells.items():
            corners = self.corners(cell)
            items = [f"box_{c}@({at[0]}, {at[1]})" for c, at in state.boxes if at in corners]
            items += [f"target_{c}" for c, goal in state.targets if goal == cell]
            lines[agent] = (
                f"{agent}: I am in square[{cell_text(cell)}], I can observe "
                f"[{', '.join(items)}], I can do [{'; '.join(actions[agent])}]"
            )
        return lines

    def brief(self, state: CornerState) -> str:
        """Every box with its corner and its target's square."""
        goals = dict(state.targets)
        return "; ".join(
            f"box_{colour} at ({at[0]}, {at[1]}) for [{cell_text(goals[colour])}]"
            for colour, at in state.boxes
        )

    def read(self, text: str) -> CornerState:
        """The boxes and targets of all robots' lines."""
        boxes: dict[str, Corner] = {}
        targets: dict[str, Cell] = {}
        for i, j, items in _AGENT.findall(text):
            for colour, x, y in _CORNER_ITEM.findall(items):
                boxes[colour] = (int(x), int(y))
            for colour in re.findall(r"target_([a-z]+)", items):
                targets[colour] = (int(i), int(j))
        return CornerState(tuple(sorted(boxes.items())), tuple(sorted(targets.items())))
