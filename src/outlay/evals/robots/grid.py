"""What BoxNet1 and BoxNet2 share: a grid of cells with one robot each, and the form of a move.

Cells are named by their centres (row + 0.5, column + 0.5), corners by whole coordinates. Positions
are compared as numbers; a malformed action is refused with a reason, never dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from outlay.errors import InputError
from outlay.evals.robots.base import Apply, World, check_apply, check_grid

COLOURS = ("blue", "green", "orange", "purple", "red")
Cell = tuple[int, int]
Corner = tuple[int, int]

_MOVE = re.compile(
    r"\s*move\(\s*(box_[a-z]+)\s*,\s*(?:(square|position)\s*\[\s*(-?\d+(?:\.\d+)?)\s*,"
    r"\s*(-?\d+(?:\.\d+)?)\s*\]|(target_[a-z]+))\s*\)\s*"
)
S = TypeVar("S")
E = TypeVar("E")


def cell_text(cell: Cell) -> str:
    """ "0.5, 1.5" for row 0, column 1."""
    return f"{cell[0]}.5, {cell[1]}.5"


def corner_text(corner: Corner) -> str:
    """ "position[0.0, 1.0]"."""
    return f"position[{corner[0]}.0, {corner[1]}.0]"


@dataclass(frozen=True)
class Grid(World[S, E]):
    """What both worlds share: the grid, its robots and the form of an action.

    Args:
        rows: rows of cells; one robot per cell.
        columns: columns of cells.
        colours: colours of boxes and targets.
        apply: see `base`.
        force: allow more than 64 cells.

    Raises:
        InputError: for sizes out of range or unusable colours.
    """

    rows: int = 2
    columns: int = 2
    colours: tuple[str, ...] = COLOURS
    apply: Apply = "simultaneous"
    force: bool = False

    def __post_init__(self) -> None:
        check_grid(self.rows, self.columns, self.force)
        check_apply(self.apply)
        if not self.colours or len(self.colours) > 32:
            raise InputError(f"{len(self.colours)} colours; give 1 to 32")
        if len(set(self.colours)) != len(self.colours):
            raise InputError(f"colours={self.colours} has duplicates; name each colour once")
        if bad := [c for c in self.colours if not re.fullmatch("[a-z]{1,20}", c)]:
            raise InputError(f"colours {bad} are unusable; use lower-case letters only")

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, row by row."""
        return tuple((i, j) for i in range(self.rows) for j in range(self.columns))

    @cached_property
    def named_cells(self) -> dict[str, Cell]:
        """Every robot's cell."""
        return {f"Agent[{cell_text(cell)}]": cell for cell in self.cells}

    @property
    def agents(self) -> tuple[str, ...]:
        """One robot per cell, named by its centre."""
        return tuple(self.named_cells)

    @property
    def step_limit(self) -> int:
        """30 steps, 40 on grids of more than 16 cells."""
        return 40 if len(self.cells) > 16 else 30

    @property
    def history_tokens(self) -> int:
        """3000 tokens."""
        return 3000

    def canonical(self, key: str) -> str:
        """The robot's name with white space as this world writes it."""
        return re.sub(r"\s*,\s*", ", ", re.sub(r"\s*([\[\]])\s*", r"\1", key.strip()))

    def neighbours(self, cell: Cell) -> list[Cell]:
        """The up to four cells that share a side."""
        i, j = cell
        around = ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
        return [(a, b) for a, b in around if 0 <= a < self.rows and 0 <= b < self.columns]

    def read_move(
        self, key: str, action: str
    ) -> tuple[Cell, str, str, tuple[float, float] | str] | str:
        """(the robot's cell, box, kind of destination, destination) or a reason."""
        cell = self.named_cells.get(self.canonical(key))
        if cell is None:
            return "there is no such robot"
        found = _MOVE.fullmatch(action)
        if found is None:
            return f"it is not written as {self.form}"
        box, kind, x, y, target = found.groups()
        if target:
            return cell, box, "target", target
        return cell, box, kind, (float(x), float(y))

    form = "move(box_COLOUR, DESTINATION)"
