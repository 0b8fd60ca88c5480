"""Explicit trees to search, and a slow search that follows the sheet line by line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

from outlay.models.base import Account, Branch, Capabilities, Model, SamplingParams
from outlay.reason.astar import AStarDecoding
from outlay.reason.base import Answer, Extend, Open, Question, Score, Session
from outlay.reason.voting import aggregate

Path = tuple[str, ...]


class Policy:
    """What a search needs of a model besides being extended."""

    name = "tree"
    context_length = 1000
    capabilities = Capabilities(stop=True, logprobs=True)

    def __init__(self) -> None:
        self.released: list[str] = []

    def release(self, branch: Branch) -> None:
        self.released.append(branch.completion())


def number(*parts: object) -> float:
    """A reproducible number in [0, 1)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


@dataclass
class Tree:
    """A tree of steps: texts, rewards and log-probabilities are functions of the path.

    Args:
        seed: which tree.
        depth: where every path has ended.
        texts: distinct steps of a state; fewer than k make duplicates.
        levels: distinct rewards; few make ties.
        ends: share of steps that end a path early.
        reward: replaces the random rewards.
        shuffle: order of siblings.
    """

    seed: int = 0
    depth: int = 4
    texts: int = 4
    levels: int = 4
    ends: float = 0.1
    reward: Callable[[Path], float] | None = None
    shuffle: int = 0
    expanded: list[Path] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)  # steps of a path, known scores

    def step(self, path: Path, i: int) -> tuple[str, bool]:
        """Text of child i of a path, and whether it ends there."""
        i = (i + self.shuffle) % self.texts
        if len(path) + 1 == self.depth or number(self.seed, path, i, "end") < self.ends:
            return f"A{i}", True
        return f"{i};", False

    def score(self, path: Path) -> float:
        """The verifier's score of the last step."""
        if self.reward is not None:
            return self.reward(path)
        return round(number(self.seed, path, "r") * self.levels) / self.levels

    def logprob(self, path: Path) -> float:
        """Of the last step."""
        return -number(self.seed, path, "p")

    def question(self, refused: Sequence[str] = ()) -> Question:
        """What is asked: the last character is the answer, unless the path is refused."""

        def read(text: str) -> str | None:
            return None if text in refused or "A" not in text else text[-1]

        return Question("q", kind="custom", read=read, delimiter=";", id="tree")

    def search(self, method: AStarDecoding, refused: Sequence[str] = ()) -> Answer:
        """Run the strategy, serving its requests from this tree."""
        policy = cast(Model, Policy())
        sampling = SamplingParams(temperature=1.0)
        session = Session(policy, self.question(refused), Account(), sampling)
        strategy = method.plan(session)
        result: Any = None
        try:
            while True:
                request = strategy.send(result)
                if isinstance(request, Open):
                    result = Branch("root", None, (0,), "", "open")
                elif isinstance(request, Score):
                    pairs = zip(request.paths, request.known, strict=True)
                    self.asked += [(len(path), len(known)) for path, known in pairs]
                    result = [
                        [self.score(tuple(path[:n])) for n in range(1, len(path) + 1)]
                        for path in request.paths
                    ]
                else:
                    result = [self._children(branch, request) for branch in request.branches]
        except StopIteration as end:
            answer: Answer = end.value
            return answer

    def _children(self, branch: Branch, request: Extend) -> list[Branch]:
        path = tuple(b.text for b in branch.lineage()[1:])
        self.expanded.append(path)
        made = []
        for i in range(request.n):
            text, ends = self.step(path, i)
            lp = (self.logprob((*path, text)),)
            made.append(
                Branch(
                    f"{path}{i}",
                    branch,
                    (1,),
                    text,
                    "eos" if ends else "stop",
                    lp,
                    branch.depth + 1,
                )
            )
        return made


def slow_search(tree: Tree, method: AStarDecoding) -> tuple[list[Path], str | None]:
    """Paths in the order in which they are expanded, and the text of the first goal."""
    queue: list[tuple[Path, bool, int]] = [((), False, 0)]
    expanded: list[Path] = []
    made = 0

    def heuristic(path: Path) -> float:
        scores = [tree.score(path[:n]) for n in range(1, len(path) + 1)]
        return 1 - aggregate(scores, method.agg) if path else 1.0

    def cost(path: Path) -> float:
        hs = [heuristic(path[:n]) for n in range(1, len(path) + 1)]
        if method.cost == "increase":
            return sum(max(0.0, b - a) for a, b in pairwise(hs))
        if method.cost == "decrease":
            return sum(max(0.0, a - b) for a, b in pairwise(hs))
        if method.cost == "length":
            return sum(method.lam for _ in path)
        if method.cost == "logprob":
            steps = range(1, len(path) + 1)
            return sum(-method.lam * tree.logprob(path[:n]) for n in steps)
        return 0.0

    def order(entry: tuple[Path, bool, int]) -> tuple[float, float, int, int]:
        path, _, age = entry
        return cost(path) + heuristic(path), heuristic(path), -len(path), age

    while queue:
        queue.sort(key=order)
        if queue[0][1]:
            return expanded, "".join(queue[0][0])
        batch = [entry for entry in queue[: method.width] if not entry[1]]
        for entry in batch:
            queue.remove(entry)
        batch = [entry for entry in batch if len(entry[0]) < method.max_steps]
        for path, _, _ in batch:
            expanded.append(path)
            seen = set()
            for i in range(method.k):
                made += 1
                text, ends = tree.step(path, i)
                new = (*path, text)
                if (text in seen and method.merge_duplicates) or (
                    1 - heuristic(new) < method.r_min
                ):
                    continue
                seen.add(text)
                queue.append((new, ends, made))
        queue.sort(key=order)
        if method.frontier_cap is not None:
            del queue[method.frontier_cap :]
    return expanded, None
