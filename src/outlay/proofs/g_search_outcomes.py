"""Answers of several methods to the same questions, and what they say about one another.

Shapes: N questions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from outlay.budget import Budget
from outlay.ledger import Ledger
from outlay.paired import Difference, paired
from outlay.proofs.g_search_runs import Bed, Way, decoder_flops
from outlay.records import Record
from outlay.stats import percentiles, resample_means
from outlay.vision.gsearch.schedule import Rates, mean_rate

Cell = tuple[str, float]
"""A method and its budget; 1 for one without."""


@dataclass(frozen=True)
class Growth:
    """A difference of differences, with its bootstrap interval over questions."""

    mean: float
    lo: float
    hi: float


@dataclass
class Outcomes:
    """Answers of every method, budget and seed.

    Args:
        asked: the questions.
        right: (N,) 1 where an answer is exact; by method and budget, then by seed.
        rates: keep rates, by the same.
    """

    asked: Bed
    right: dict[Cell, dict[int, np.ndarray]] = field(default_factory=dict)
    rates: dict[Cell, dict[int, Rates]] = field(default_factory=dict)

    def run(self, name: str, budget: float, seed: int, way: Way) -> None:
        """Answer all questions."""
        self.right.setdefault((name, budget), {})[seed] = self.asked.right(way.method)
        self.rates.setdefault((name, budget), {})[seed] = way.rates

    def each(self, name: str, budget: float) -> np.ndarray:
        """(N,) mean of the seeds."""
        return np.mean(list(self.right[name, budget].values()), axis=0)

    def accuracy(self, name: str, budget: float) -> float:
        """Mean over questions and seeds."""
        return float(self.each(name, budget).mean())

    def flops(self, name: str, budget: float) -> float:
        """Of the decoder's prefill, ranking included; mean over questions and seeds."""
        found = self.rates[name, budget].values()
        return float(np.mean([decoder_flops(self.asked, rates) for rates in found]))

    def gap(self, ours: Cell, theirs: Cell) -> Difference:
        """Accuracy of one less another's, paired by question, seeds averaged first."""
        return paired(self.records(ours), self.records(theirs), match_budget=False)

    def growth(self, ours: str, theirs: str, small: float, large: float) -> Growth:
        """How much more `ours` is ahead at the small budget than at the large one."""
        change_N = self.each(ours, small) - self.each(theirs, small)
        change_N = change_N - self.each(ours, large) + self.each(theirs, large)
        lo, hi = percentiles(resample_means(change_N[:, None], 1000, 0)[:, 0], 0.95)
        return Growth(float(change_N.mean()), lo, hi)

    def records(self, cell: Cell) -> list[Record]:
        """One for each question and seed."""
        name, budget = cell
        tokens = self.asked.seer.size.tokens
        limit = Budget(tokens=round(budget * tokens), counts="vision")
        made = []
        for seed, right_N in self.right[cell].items():
            ledger = Ledger()
            rates = self.rates[cell][seed]
            cost = decoder_flops(self.asked, rates)
            ledger.record(
                "vision", "target", prompt_new=round(mean_rate(rates) * tokens), flops=cost
            )
            made += [
                Record("seer", str(index), name, limit, seed, float(right), ledger)
                for index, right in enumerate(right_N)
            ]
        return made
