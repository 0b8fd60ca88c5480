"""The runs behind the DynaICL proof: tables, controllers, allocations at equal tokens.

Shapes: N inputs, K1 = K + 1 numbers of demonstrations, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from outlay.budget import Budget
from outlay.ledger import Ledger
from outlay.prompt.dynaicl import baselines
from outlay.prompt.dynaicl.allocation import proportional, spent, utility
from outlay.prompt.dynaicl.config import Training
from outlay.prompt.dynaicl.controller import Head
from outlay.prompt.dynaicl.method import DynaICL
from outlay.prompt.dynaicl.table import Table, targets
from outlay.proofs.base import Progress
from outlay.records import Record
from outlay.stats import percentiles, resample_means
from outlay.testbeds.icl.answers import Answerer
from outlay.testbeds.icl.labels import METHOD, labels
from outlay.testbeds.icl.tasks import Batch, workload
from outlay.testbeds.icl.world import FAMILIES

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Split = Callable[[IntArray, int], IntArray]  # costs of one draw, budget -> demonstrations
TRAINING = Training()

UNIFORM, ORACLE, LUCKY = "uniform", "oracle", "oracle with luck"
PROPORTIONAL, UTILITY, SEQ2SEQ = "proportional", "utility", "seq2seq"
SHUFFLED = {name: f"{name}, shuffled" for name in (PROPORTIONAL, UTILITY, SEQ2SEQ)}
GUESSES = ("random k", "input length", "zero-shot entropy", "label entropy", "similarity")


@dataclass(frozen=True)
class World:
    """One seed: labels for training and testing, and the controllers of all heads."""

    seed: int
    train: Table
    test: Table
    batch: Batch
    train_families: tuple[str, ...]
    methods: Mapping[str, DynaICL]
    shuffled: Mapping[str, DynaICL]
    guesses: Mapping[str, FloatArray]
    entropy_tokens: int

    def family_rows(self, family: str) -> list[int]:
        """Test inputs of one family."""
        return [i for i, name in enumerate(self.batch.families) if name == family]


@dataclass(frozen=True)
class Outcome:
    """One method at one budget: per input, means over draws."""

    quality_N: FloatArray
    tokens_N: FloatArray
    k_N: FloatArray
    over: int  # draws in which the budget was exceeded

    @property
    def accuracy(self) -> float:
        """Mean quality."""
        return float(self.quality_N.mean())

    @property
    def tokens(self) -> float:
        """Mean tokens of demonstrations per input."""
        return float(self.tokens_N.mean())


def costs_of(table: Table, draw: int) -> IntArray:
    """(N, K1) tokens of the demonstrations of one draw."""
    return np.asarray(table.tokens_NKD[:, :, draw] - table.tokens_NKD[:, :1, draw])


def make_world(
    ask: Answerer,
    seed: int,
    train: int,
    test: int,
    n_s: int,
    progress: Progress,
    folder: Path | None,
    writer: Training = TRAINING,
) -> World:
    """Collect the labels of one seed and train all heads, on inputs and on shuffled inputs."""
    method = replace(METHOD, n_s=n_s, seed=seed, training=TRAINING)
    tables, batches = [], []
    for name, n in (("train", train), ("test", test)):
        progress(f"seed {seed}: labels of {n} {name} inputs")
        batch = workload(seed, n, name=name)
        place = None if folder is None else folder / f"{name}-{seed}-{n}-{n_s}"
        tables.append(labels(ask, batch, method, folder=place))
        batches.append(batch)
    progress(f"seed {seed}: controllers")
    heads: dict[str, tuple[Head, str]] = {
        PROPORTIONAL: ("ordinal", method.controller),
        UTILITY: ("curve", method.controller),
        SEQ2SEQ: ("seq2seq", "bytes"),
    }
    order = np.random.default_rng(seed).permutation(train)
    texts = tuple(tables[0].inputs[i] for i in order)
    mixed = replace(tables[0], inputs=texts)
    methods, shuffled = {}, {}
    for name, (head, encoder) in heads.items():
        training = writer if name == SEQ2SEQ else TRAINING
        each = replace(method, head=head, controller=encoder, training=training)
        methods[name] = each.fit(tables[0])
        shuffled[name] = each.fit(mixed)
    batch = batches[1]
    before = ask.tokens
    prompts = [method.template().prompt(x, []) for x in batch.inputs]
    entropies = ask.entropies(prompts)
    guesses = {
        "random k": baselines.random_k(test, seed),
        "input length": baselines.by_length(batch.inputs),
        "zero-shot entropy": baselines.by_entropy(entropies),
        "label entropy": baselines.by_label_entropy(batch.inputs, batch.pools, encoder="hash"),
        "similarity": baselines.by_similarity(
            batch.inputs, batch.pools, threshold=0.3, encoder="hash"
        ),
    }
    return World(
        seed,
        tables[0],
        tables[1],
        batch,
        batches[0].families,
        methods,
        shuffled,
        guesses,
        ask.tokens - before,
    )


def run_split(
    table: Table, budgets_D: Sequence[int], split: Callable[[int, int], IntArray]
) -> Outcome:
    """Apply `split(draw, budget)` to every draw and look the qualities up."""
    n, draws = len(table), table.quality_NKD.shape[2]
    quality_N, tokens_N, k_N, over = np.zeros(n), np.zeros(n), np.zeros(n), 0
    rows = np.arange(n)
    for draw in range(draws):
        costs_NK = costs_of(table, draw)
        chosen_N = split(draw, budgets_D[draw])
        quality_N += table.quality_NKD[rows, chosen_N, draw] / draws
        tokens_N += costs_NK[rows, chosen_N] / draws
        k_N += chosen_N / draws
        over += spent(costs_NK, chosen_N) > budgets_D[draw]
    return Outcome(quality_N, tokens_N, k_N, over)


def budgets_at(table: Table, mean_k: int) -> list[int]:
    """Per draw, the tokens of `mean_k` demonstrations for everybody."""
    return [
        int(costs_of(table, draw)[:, mean_k].sum()) for draw in range(table.quality_NKD.shape[2])
    ]


def by_controller(table: Table, method: DynaICL, name: str, mean_k: int) -> Outcome:
    """A controller's split at the tokens of uniform `mean_k`: `UTILITY`, or in proportion."""
    found = method.predict(table.inputs)
    if name == UTILITY:
        return best_of(table, found.curves_NK, mean_k)
    return in_proportion(table, found.needed_N, mean_k)


def in_proportion(table: Table, needed_N: FloatArray, mean_k: int) -> Outcome:
    """A split in proportion to needs, at the tokens of uniform `mean_k`."""

    def split(draw: int, budget: int) -> IntArray:
        return proportional(needed_N, costs_of(table, draw), budget)

    return run_split(table, budgets_at(table, mean_k), split)


def best_of(table: Table, curves_NK: FloatArray, mean_k: int) -> Outcome:
    """The split that is best by these curves, at the tokens of uniform `mean_k`."""

    def split(draw: int, budget: int) -> IntArray:
        return utility(curves_NK, costs_of(table, draw), budget)

    return run_split(table, budgets_at(table, mean_k), split)


def everybody_alike(table: Table, mean_k: int) -> Outcome:
    """The same number for all: `mean_k`."""
    return in_proportion(table, np.ones(len(table)), mean_k)


def with_luck(table: Table, mean_k: int) -> Outcome:
    """The split of an oracle that sees the drawn outcomes."""

    def split(draw: int, budget: int) -> IntArray:
        return utility(table.quality_NKD[:, :, draw], costs_of(table, draw), budget)

    return run_split(table, budgets_at(table, mean_k), split)


def family_curves(world: World) -> FloatArray:
    """(N, K1) mean training accuracy of each test input's family: what can be known of it."""
    curves = {}
    for family in FAMILIES:
        rows = [i for i, name in enumerate(world.train_families) if name == family]
        curves[family] = world.train.accuracy_NK[rows].mean(axis=0)
    return np.array([curves[family] for family in world.batch.families])


def all_methods(world: World, mean_k: int, rows: Sequence[int] | None = None) -> dict[str, Outcome]:
    """Every method at the tokens of uniform `mean_k`, on all test inputs or some."""
    index = list(range(len(world.test))) if rows is None else list(rows)
    table = world.test.rows(index)
    found = {
        UNIFORM: everybody_alike(table, mean_k),
        ORACLE: best_of(table, family_curves(world)[index], mean_k),
        LUCKY: with_luck(table, mean_k),
    }
    for name, method in world.methods.items():
        found[name] = by_controller(table, method, name, mean_k)
        found[SHUFFLED[name]] = by_controller(table, world.shuffled[name], name, mean_k)
    for name, score_N in world.guesses.items():
        found[name] = in_proportion(table, score_N[index], mean_k)
    return found


def gap(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> tuple[float, tuple[float, float]]:
    """Mean paired difference in accuracy over the inputs of all seeds, with its interval."""
    difference_N = np.concatenate(
        [a.quality_N - b.quality_N for a, b in zip(ours, theirs, strict=True)]
    )
    means_R = resample_means(difference_N[:, None], 1000, 0)[:, 0]
    return float(difference_N.mean()), percentiles(means_R, 0.95)


def gain_share(
    ours: Sequence[Outcome], uniform_: Sequence[Outcome], oracle: Sequence[Outcome]
) -> tuple[float, tuple[float, float]]:
    """Our gain over uniform as a share of the oracle's, with its interval."""
    pairs_N2 = np.concatenate(
        [
            np.stack([a.quality_N - u.quality_N, o.quality_N - u.quality_N], axis=1)
            for a, u, o in zip(ours, uniform_, oracle, strict=True)
        ]
    )
    means_R2 = resample_means(pairs_N2, 1000, 0)
    whole = pairs_N2.mean(axis=0)
    means_R2 = means_R2[means_R2[:, 1] != 0]  # a resample in which the oracle gains nothing
    return float(whole[0] / whole[1]), percentiles(means_R2[:, 0] / means_R2[:, 1], 0.95)


def needed_by_family(worlds: Sequence[World], t: float) -> dict[str, dict[str, object]]:
    """What each family needs: by its mean curve, and the histogram of k* of its inputs."""
    found: dict[str, dict[str, object]] = {}
    for family in FAMILIES:
        curves, counts = [], np.zeros(worlds[0].train.K + 1, dtype=int)
        for world in worlds:
            rows = [i for i, name in enumerate(world.train_families) if name == family]
            part = world.train.rows(rows)
            curves.append(part.accuracy_NK)
            counts += np.bincount(targets(part, t).needed_N, minlength=part.K + 1)
        mean_K = np.concatenate(curves).mean(axis=0)
        enough = np.flatnonzero(mean_K > t)
        found[family] = {
            "needed": int(enough[0]) if len(enough) else -1,
            "curve": [round(float(a), 4) for a in mean_K],
            "k_star": counts.tolist(),
        }
    return found


def records(
    worlds: Sequence[World], outcomes: Mapping[int, Mapping[str, Sequence[Outcome]]]
) -> list[Record]:
    """Frontier records: prompt tokens of the demonstrations alone, one an input."""
    made = []
    for mean_k, by_name in outcomes.items():
        for name in (UNIFORM, PROPORTIONAL, UTILITY, SEQ2SEQ, ORACLE):
            for world, outcome in zip(worlds, by_name[name], strict=True):
                tokens = max(1, round(float(outcome.tokens_N.mean())))
                for i, x in enumerate(world.batch.inputs):
                    ledger = Ledger()
                    used = round(float(outcome.tokens_N[i]))
                    ledger.record("answer", "target", prompt_new=used, method=name)
                    made.append(
                        Record(
                            "icl workload",
                            x.id,
                            f"{name}, mean k={mean_k}",
                            Budget(tokens=tokens, counts="prompt"),
                            world.seed,
                            float(outcome.quality_N[i]),
                            ledger,
                        )
                    )
    return made
