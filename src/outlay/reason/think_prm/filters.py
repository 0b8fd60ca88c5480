"""Which chains a verifier is trained on, and what killed the others.

The process filter keeps a chain whose decision on every step, up to the first wrong one, is the
gold label: about one in five in the paper. The outcome filter (the paper's ablation) looks at the
last decision alone. Decisions after the first wrong step are ignored.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from outlay.errors import InputError
from outlay.reason.think_prm.data import Chain, Source, Teacher, sample
from outlay.reason.think_prm.format import Layout

Mode = Literal["process", "outcome", "none"]
CRITERIA = ("format", "process", "outcome", "unfinished", "length", "cap", "balance", "surplus")


@dataclass(frozen=True)
class Kept:
    """Chains that survived.

    Args:
        chains: cleaned, in random order.
        sampled: how many there were.
        killed: how many each criterion killed, in the order of the criteria.
    """

    chains: tuple[Chain, ...]
    sampled: int
    killed: Mapping[str, int]

    @property
    def passed(self) -> float:
        """Share of the sampled chains that no criterion killed; a surplus counts as passed."""
        return (len(self.chains) + self.killed["surplus"]) / self.sampled


@dataclass(frozen=True)
class ChainFilter:
    """The paper's filter, and its ablations.

    Args:
        mode: "process" matches decisions with labels step by step, "outcome" the last one only,
            "none" keeps everything that fits `max_chain_tokens`.
        max_chain_tokens: longest chain after cleaning.
        balance: as many chains on right as on wrong solutions, by dropping from the majority.
        per_solution: most chains of one solution; None keeps all. Chains that repeat another's
            text count as that one.
        num_samples: chains kept at most; None keeps all.
        seed: of the order.

    Raises:
        InputError: for values out of range.
    """

    mode: Mode = "process"
    max_chain_tokens: int = 4096
    balance: bool = True
    per_solution: int | None = None
    num_samples: int | None = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("process", "outcome", "none"):
            raise InputError(f"filter mode={self.mode!r}; choose process, outcome or none")
        for name in ("max_chain_tokens", "per_solution", "num_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}; must be at least 1")

    def verdict(self, chain: Chain, layout: Layout) -> str | None:
        """The first criterion on its decisions that kills a chain; None if it passes."""
        gold, source = chain.source.judged, chain.source
        labels = [decision.label for decision in layout.decisions(chain.text)]
        if self.mode == "process":
            if not labels or len(labels) not in (len(gold), len(source.steps)):
                return "format"
            return None if tuple(labels[: len(gold)]) == gold else "process"
        if self.mode == "outcome":
            if not chain.finished:
                return "unfinished"
            return None if labels and labels[-1] == source.labels[-1] else "outcome"
        return None

    def apply(self, chains: Sequence[Chain], layout: Layout, count: Callable[[str], int]) -> Kept:
        """Filter, clean, cap, balance, shuffle and cut to `num_samples`.

        Args:
            chains: of a teacher.
            layout: how decisions are read.
            count: tokens of a text.

        Raises:
            InputError: if no chain survives, with what each criterion killed.
        """
        if not chains:
            raise InputError("no chains to filter; sample some from a teacher first")
        killed: Counter[str] = Counter(dict.fromkeys(CRITERIA, 0))
        rng = random.Random(f"filter:{self.seed}")
        alive: list[Chain] = []
        solutions: dict[tuple[str, tuple[str, ...]], set[str]] = {}
        for chain in chains:
            reason = self.verdict(chain, layout)
            text = chain.text if reason else layout.clean(chain.text)
            if reason is None and count(text) > self.max_chain_tokens:
                reason = "length"
            if reason is None and self.per_solution is not None:
                same = solutions.setdefault((chain.source.question, chain.source.steps), set())
                if text in same or len(same) >= self.per_solution:
                    reason = "cap"
                same.add(text)
            if reason is None:
                alive.append(Chain(chain.source, text, chain.finished))
            else:
                killed[reason] += 1
        rng.shuffle(alive)
        if self.balance:
            groups = [[c for c in alive if c.source.bad == bad] for bad in (False, True)]
            size = min(map(len, groups))
            killed["balance"] = len(alive) - 2 * size
            alive = groups[0][:size] + groups[1][:size]
            rng.shuffle(alive)
        if self.num_samples is not None and len(alive) > self.num_samples:
            killed["surplus"] = len(alive) - self.num_samples
            alive = alive[: self.num_samples]
        if not alive:
            counts = ", ".join(f"{name} {n}" for name, n in killed.items() if n)
            raise InputError(
                f"no chain of {len(chains)} survives; killed by: {counts or 'nothing'}. Sample "
                "more, repair the teacher's format, or relax the filter (mode, max_chain_tokens, "
                "balance)"
            )
        return Kept(tuple(alive), len(chains), dict(killed))


def collect(
    sources: Sequence[Source],
    teacher: Teacher,
    chosen: ChainFilter,
    layout: Layout,
    count: Callable[[str], int],
    *,
    n: int = 4,
    batch: int = 64,
) -> Kept:
    """Sample `n` chains a solution, batch after batch, until `num_samples` of them survive.

    Args:
        sources: labelled solutions, in the order in which they are used.
        teacher: writes the chains.
        chosen: the filter.
        layout: how decisions are read.
        count: tokens of a text.
        n: chains per solution.
        batch: solutions between two looks at how many survive.

    Raises:
        InputError: for batch < 1, or if nothing survives once all solutions are used.
    """
    if batch < 1:
        raise InputError(f"batch={batch}; at least 1 solution at a time")
    chains: list[Chain] = []
    for at in range(0, len(sources), batch):
        chains += sample(sources[at : at + batch], teacher, n)
        alive = [chain for chain in chains if chosen.verdict(chain, layout) is None]
        if chosen.num_samples is not None and len(alive) >= chosen.num_samples:
            try:
                kept = chosen.apply(chains, layout, count)
            except InputError:  # one class only so far: balancing leaves nothing
                continue
            if len(kept.chains) == chosen.num_samples:
                return kept
    return chosen.apply(chains, layout, count)
