"""The runs behind SwiReasoning's proof: the searcher under every way of decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from outlay.budget import Budget
from outlay.decode.plain import PlainDecoder
from outlay.decode.swireasoning import RandomSwitching, SoftThinking, SwiReasoning, SwiResult
from outlay.decode.swireasoning.decoding import decode_many
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.evals.base import Problem
from outlay.ledger import Ledger
from outlay.models.base import Generation, SamplingParams
from outlay.models.local import LocalModel
from outlay.records import Record
from outlay.stats import FloatArray
from outlay.testbeds.searcher import HiddenLeaf

TASK = HiddenLeaf()
LONGEST = 160  # no search of these trees needs more
ANSWER = 3  # tokens: the leaf, the end of the text, and one to spare
SAMPLING = SamplingParams(max_tokens=LONGEST, temperature=0.6, top_p=0.95, top_k=20)
WINDOW = 8  # searches take some 30 tokens, so the paper's 512 would allow one switch at most
SWIR = SwiReasoning(
    window=WINDOW,
    math_tokens="none",  # every name is a letter
    termination_text="</think>",
    answer_budget=ANSWER + 2,
    lock_on_injected=True,
)
FORCING = ThinkingBudget(overthink_prefix="", newline="", max_answer=ANSWER)

COT, GREEDY, SOFT, RANDOM = "CoT, sampled", "CoT, greedy", "Soft Thinking", "random switching"
CUT, FORCED, OURS = "hard truncation", "budget forcing", "SwiReasoning"


@dataclass(frozen=True)
class Cell:
    """One way of decoding: every problem once a seed.

    Args:
        name: of the method.
        limit: C_max, B or N; None for none.
        records: of all problems and seeds.
        results: in the same order.
    """

    name: str
    limit: int | None
    records: list[Record]
    results: Sequence[Generation]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(np.mean([record.quality for record in self.records]))

    @property
    def tokens(self) -> float:
        """Mean tokens an example, sampled and injected."""
        return float(self.costs.mean())

    @property
    def costs(self) -> FloatArray:
        """Tokens of every record, sampled and injected."""
        return np.array([record.cost("generated+forced") for record in self.records])

    @property
    def switches(self) -> FloatArray:
        """C of every record."""
        return np.array([getattr(each, "switches", 0) for each in self.results], dtype=float)


Made = Callable[[list[str], list[SamplingParams]], Sequence[Generation]]


@dataclass(frozen=True)
class Bench:
    """The searcher and its problems.

    Args:
        model: the searcher.
        problems: held out.
        seeds: of sampling; a greedy method runs once.
        begun: the prompt gives the first token of the thinking, which is always the root.
    """

    model: LocalModel
    problems: Sequence[Problem]
    seeds: Sequence[int]
    begun: bool = False

    def swir(self, limit: int | None, method: SwiReasoning = SWIR, name: str = OURS) -> Cell:
        """Ours under C_max."""
        ours = replace(method, c_max=limit)
        return self._cell(
            name, limit, lambda prompts, each: ours.generate_many(self.model, prompts, None, each)
        )

    def soft(self) -> Cell:
        """Never switching."""
        soft = SoftThinking()
        return self._cell(
            SOFT, None, lambda prompts, each: soft.generate_many(self.model, prompts, None, each)
        )

    def random(self, ours: Cell) -> Cell:
        """As many switches as `ours` made on the same problem and seed, anywhere in its trace."""
        traces = [each.trace for each in ours.results if isinstance(each, SwiResult)]

        def run(prompts: list[str], each: list[SamplingParams]) -> Sequence[Generation]:
            plans = []
            for i, trace in enumerate(traces):
                made = sum(step.switched for step in trace)
                within = max(len(trace), made + 1)
                plans.append(RandomSwitching(made, within).plan(i))
            return decode_many(SWIR, self.model, prompts, None, each, plans=plans)

        return self._cell(RANDOM, None, run)

    def chain(self, *, greedy: bool = False) -> Cell:
        """Plain thinking to its end."""
        plain = PlainDecoder(max_tokens=LONGEST)

        def run(prompts: list[str], each: list[SamplingParams]) -> Sequence[Generation]:
            made: list[Generation] = []
            size = len(self.problems)
            for start in range(0, len(prompts), size):
                part = prompts[start : start + size]
                made += plain.generate_many(self.model, part, None, each[start])
            return made

        return self._cell(GREEDY if greedy else COT, None, run, greedy=greedy)

    def forced(self, limit: int) -> Cell:
        """Plain thinking, closed by force after `limit` tokens."""
        budget = Budget(tokens=limit + ANSWER, stages={"think": limit, "answer": ANSWER})
        return self._cell(
            FORCED,
            limit,
            lambda prompts, each: FORCING.generate_many(self.model, prompts, budget, each),
        )

    def _prompt(self, problem: Problem) -> str:
        root = TASK.puzzle(problem).root if self.begun else ""
        return TASK.prompt(problem, "") + root

    def _cell(self, name: str, limit: int | None, made: Made, *, greedy: bool = False) -> Cell:
        seeds = self.seeds[:1] if greedy else self.seeds
        prompts = [self._prompt(problem) for problem in self.problems] * len(seeds)
        size = len(self.problems)
        base = replace(SAMPLING, temperature=0.0) if greedy else SAMPLING
        # A stream of random numbers depends on the prompt too, so one seed serves all of them.
        each = [replace(base, seed=seeds[i // size]) for i in range(len(prompts))]
        results = made(prompts, each)
        records = []
        label = name if limit is None else f"{name} {limit}"
        for i, result in enumerate(results):
            problem = self.problems[i % size]
            quality = TASK.verify(problem, result.text)
            records.append(
                Record(
                    TASK.name,
                    problem.id,
                    label,
                    Budget(tokens=LONGEST),
                    seeds[i // size],
                    quality,
                    result.ledger,
                )
            )
        return Cell(name, limit, records, results)


def truncated(chain: Cell, limit: int) -> Cell:
    """What plain decoding gives when it is cut at `limit` tokens, with nothing forced.

    Random streams do not depend on the limit, so the shorter run is the beginning of the longer:
    an answer is there if the leaf was written, which only the end of the text follows.
    """
    records = []
    for record, cost in zip(chain.records, chain.costs, strict=True):
        ledger = Ledger()
        ledger.record("answer", "target", generated=int(min(cost, limit)), branch="0", method=CUT)
        quality = record.quality if cost - 1 <= limit else 0.0
        records.append(
            replace(record, method_stack=f"{CUT} {limit}", quality=quality, ledger=ledger)
        )
    return Cell(CUT, limit, records, chain.results)


def truncated_at(chain: Cell, tokens: float) -> Cell:
    """`truncated` at the fewest tokens whose mean is at least `tokens`."""
    return truncated(chain, _least(lambda limit: np.minimum(chain.costs, limit).mean(), tokens))


def forced_at(bench: Bench, chain: Cell, tokens: float) -> Cell:
    """Budget forcing at the least B that is expected to cost `tokens`, by the chain's lengths."""

    def expected(limit: int) -> float:
        ends = chain.costs - 2  # the leaf and the end of the text follow the thinking
        return float(np.where(ends <= limit, chain.costs, limit + 3).mean())

    return bench.forced(_least(expected, tokens))


def _least(mean: Callable[[int], float], tokens: float) -> int:
    return next((limit for limit in range(LONGEST) if mean(limit) >= tokens), LONGEST)


def area_gain(ours: Sequence[Cell], theirs: Sequence[Cell]) -> float | None:
    """The paper's mean efficiency gain: the area between both accuracy curves over that of
    theirs, on the tokens that both cover; None where there are none."""

    def curve(cells: Sequence[Cell]) -> tuple[FloatArray, FloatArray]:
        order = sorted(cells, key=lambda cell: cell.tokens)
        return (
            np.array([cell.tokens for cell in order]),
            np.array([cell.accuracy for cell in order]),
        )

    (x, y), (u, v) = curve(ours), curve(theirs)
    grid = np.linspace(max(x[0], u[0]), min(x[-1], u[-1]), 200)
    below = np.interp(grid, u, v)
    if grid[0] >= grid[-1] or not below.sum():
        return None
    return float((np.interp(grid, x, y) - below).sum() / below.sum())
