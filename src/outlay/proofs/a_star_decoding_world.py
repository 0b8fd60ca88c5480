"""What every part of the A*-decoding proof runs on: sizes, questions, model, and the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.models.local import LocalModel
from outlay.proofs.a_star_decoding_runs import Group, Setting, searched
from outlay.proofs.base import Progress, Scale
from outlay.reason import Verifier
from outlay.reason.astar import AStarDecoding
from outlay.reason.astar_states import Cost

BEST_OF = 16  # of the first claim
ASTAR, BEST, NAIVE, MAJORITY = "A*", "best-of-N", "best-of-N, naive", "majority"
BEAM, PARTICLES = "beam search", "particle filter"
EXPANSIONS = 96  # most expansions of a search: eight times the longest chain
K = 4  # where one k is used


@dataclass(frozen=True)
class Size:
    """How much is run.

    Args:
        probe: questions that the temperature is chosen on.
        per_seed: questions of each of three seeds.
        part: of them, for what is run on fewer: baselines that search, costs, and the oracle.
        pool: samples a question.
        sizes: of best-of-N.
        successors: k of A*.
        populations: N of beam search and particle filtering.
        aucs: of the oracle.
        costs: rules beside "increase".
        wide: larger k, on the part.
        tried: questions of each seed for changes with fewer passes of the verifier; 0 tries no
            changes.
        sums: questions of the real model that judges itself; 0 asks none.
    """

    probe: int
    per_seed: int
    part: int
    pool: int
    sizes: tuple[int, ...]
    successors: tuple[int, ...]
    populations: tuple[int, ...]
    aucs: tuple[float, ...]
    costs: tuple[Cost, ...]
    wide: tuple[int, ...]
    tried: int
    sums: int


SIZES: Mapping[Scale, Size] = {
    "ci": Size(10, 4, 2, 4, (1, 4), (4,), (2,), (0.5, 1.0), (), (), 0, 0),
    "laptop": Size(
        40,
        167,
        25,
        16,
        (1, 2, 4, 8, 16),
        (2, 3, 4),
        (4, 8, 16),
        (0.5, 0.75, 0.9, 1.0),
        ("zero", "decrease", "length", "logprob"),
        (6,),
        40,
        12,
    ),
    "gpu": Size(
        200,
        500,
        500,
        64,
        (1, 2, 4, 8, 16, 32, 64),
        (2, 3, 4, 6),
        (4, 8, 16, 32),
        (0.5, 0.6, 0.75, 0.9, 1.0),
        ("zero", "decrease", "length", "logprob"),
        (8,),
        500,
        200,
    ),
}
SEEDS = 3


@dataclass
class World:
    """What every part of the proof runs on."""

    model: LocalModel
    temperature: float
    all: list[Group]
    part: list[Group]
    size: Size
    say: Progress

    def search(self, some: Sequence[Group], name: str, knob: int, method: Any) -> Setting:
        """One search, announced."""
        self.say(f"{name}, {knob}")
        return searched(self.model, some, self.temperature, name, knob, method)

    def astar(
        self, some: Sequence[Group], verifier: Verifier, k: int, *, name: str = "", **knobs: Any
    ) -> Setting:
        """One A* search, named after its knobs where it has no name."""
        name = ", ".join([ASTAR, *([name] if name else map(str, knobs.values()))])
        method = AStarDecoding(verifier, k, max_expansions=EXPANSIONS, **knobs)
        return self.search(some, name, k, method)


def places(whole: Sequence[Group], part: Sequence[Group]) -> list[int]:
    """Where the questions of the part stand among all."""
    places: list[int] = []
    start = 0
    for group, some in zip(whole, part, strict=True):
        places += range(start, start + len(some.asked))
        start += len(group.asked)
    return places


def only(setting: Setting, where: Sequence[int]) -> Setting:
    """The setting on some of its questions."""
    costs = {axis: cost_N[where] for axis, cost_N in setting.cost_N.items()}
    answers = [setting.answers[at] for at in where] if setting.answers else []
    return Setting(setting.method, setting.knob, setting.right_N[where], costs, answers)
