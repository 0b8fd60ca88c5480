"""DynaICL with a real language model: SmolLM2-135M on six small tasks, mixed into one workload.

The model chooses between options by likelihood. Controllers read instruction and input through a
sentence encoder. At this size of model demonstrations may help little; what is claimed is that
nothing is lost against the same number for everybody, at equal tokens. The rest is reported, also
how a controller that was trained on one set of tasks does on the other one.

Shapes: N inputs, K1 = K + 1 numbers of demonstrations, D draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from outlay.models.local import LocalModel
from outlay.prompt.dynaicl import baselines
from outlay.prompt.dynaicl.choices import Chooser
from outlay.prompt.dynaicl.controller import Head
from outlay.prompt.dynaicl.method import DynaICL
from outlay.prompt.dynaicl.prompts import Example, Pools
from outlay.prompt.dynaicl.serving import saving
from outlay.prompt.dynaicl.table import Table
from outlay.proofs.base import Check, Progress
from outlay.proofs.dynaicl_page import methods_data
from outlay.proofs.dynaicl_runs import (
    LUCKY,
    PROPORTIONAL,
    SEQ2SEQ,
    UNIFORM,
    UTILITY,
    FloatArray,
    Outcome,
    best_of,
    by_controller,
    everybody_alike,
    gap,
    in_proportion,
    with_luck,
)
from outlay.proofs.dynaicl_tasks import SETS, TASKS, Asked, TaskSet, asked

MEANS = (1, 2)  # mean demonstrations per input
ERRORS = 2.0  # standard errors by which a controller may be below uniform
HEADS: dict[str, Head] = {PROPORTIONAL: "ordinal", UTILITY: "curve", SEQ2SEQ: "seq2seq"}
METHOD = DynaICL(K=4, n_s=2)
TASK_LEVEL, TASK_CURVES = "task-level best k", "task-level curves"
_QUERY = "Input: "
ALL = "all"


@dataclass(frozen=True)
class RealSize:
    """Inputs of every task with labels for training and for testing, and draws."""

    train: int
    test: int
    n_s: int


SIZE = RealSize(20, 16, 2)


@dataclass(frozen=True)
class RealWorld:
    """Tables of a model on the tasks, and the zero-shot uncertainty of the test inputs.

    Args:
        train, test: labels.
        train_kinds, test_kinds: tasks of their inputs.
        inputs: of the test.
        pools: of both.
        entropies_N: (N,) of the model's choice without demonstrations.
        method: by which they were collected.
    """

    train: Table
    test: Table
    train_kinds: tuple[str, ...]
    test_kinds: tuple[str, ...]
    inputs: tuple[Example, ...]
    pools: Pools
    entropies_N: FloatArray
    method: DynaICL

    def rows(self, chosen: TaskSet | None, *, train: bool) -> list[int]:
        """Inputs of one set of tasks, or of both."""
        names = TASKS if chosen is None else SETS[chosen]
        kinds = self.train_kinds if train else self.test_kinds
        return [i for i, kind in enumerate(kinds) if kind in names]


def smollm() -> LocalModel:
    """The embedded model in bf16, which is all that choosing between options needs."""
    import torch

    from outlay.models import embedded

    exact = embedded.load()
    return LocalModel(exact.model.to(torch.bfloat16), exact.tokenizer, f"{exact.name} (bf16)")


def make_real(
    model: LocalModel, size: RealSize, seed: int, progress: Progress, folder: Path | None
) -> RealWorld:
    """Ask the model about all inputs of all tasks."""
    made = asked(seed, size.train + size.test)
    chooser = Chooser(model, lambda prompt: made.options[asked_text(prompt)])
    method = replace(METHOD, n_s=size.n_s, seed=seed)
    train, test = _parts(made, size.train)
    tables = []
    for name, rows in (("train", train), ("test", test)):
        progress(f"{model.name}: labels of {len(rows)} {name} inputs")
        place = None if folder is None else folder / f"real-{name}-{seed}-{size.n_s}"
        inputs = [made.inputs[i] for i in rows]
        tables.append(
            method.collect(
                chooser, inputs, made.pools, count=model.count, name=model.name, folder=place
            )
        )
    inputs = [made.inputs[i] for i in test]
    scores = chooser.scores([method.template().prompt(x, []) for x in inputs])
    return RealWorld(
        tables[0],
        tables[1],
        tuple(made.kinds[i] for i in train),
        tuple(made.kinds[i] for i in test),
        tuple(inputs),
        made.pools,
        np.array([_entropy(row) for row in scores]),
        method,
    )


def asked_text(prompt: str) -> str:
    """The input that a prompt asks about."""
    return prompt.rpartition(_QUERY)[2].removesuffix("\nOutput:")


def _parts(made: Asked, train: int) -> tuple[list[int], list[int]]:
    """The first `train` inputs of every task, and the others."""
    seen: Counter[str] = Counter()
    parts: tuple[list[int], list[int]] = ([], [])
    for i, kind in enumerate(made.kinds):
        parts[seen[kind] >= train].append(i)
        seen[kind] += 1
    return parts


def _entropy(scores: Sequence[float]) -> float:
    """In nats, of the softmax of scores."""
    shares = np.exp(np.array(scores) - max(scores))
    shares /= shares.sum()
    return float(-(shares * np.log(np.maximum(shares, 1e-300))).sum())


def fitted(world: RealWorld, chosen: TaskSet | None = None) -> dict[str, DynaICL]:
    """Controllers of all heads, trained on one set of tasks or on both."""
    table = world.train.rows(world.rows(chosen, train=True))
    return {name: replace(world.method, head=head).fit(table) for name, head in HEADS.items()}


def outcomes(table: Table, methods: Mapping[str, DynaICL], mean_k: int) -> dict[str, Outcome]:
    """Controllers, uniform and the lucky oracle at the tokens of uniform `mean_k`."""
    found = {UNIFORM: everybody_alike(table, mean_k), LUCKY: with_luck(table, mean_k)}
    for name, method in methods.items():
        found[name] = by_controller(table, method, name, mean_k)
    return found


def guesses(world: RealWorld, mean_k: int) -> dict[str, Outcome]:
    """The baselines on all test inputs, at the same tokens."""
    table, kinds = world.test, world.test_kinds
    known = _task_curves(world)
    needs = {
        TASK_LEVEL: baselines.by_task(kinds, world.train, world.train_kinds, world.method.t),
        "random k": baselines.random_k(len(table), world.method.seed),
        "input length": baselines.by_length(world.inputs),
        "zero-shot entropy": baselines.by_entropy(world.entropies_N.tolist()),
        "label entropy": baselines.by_label_entropy(world.inputs, world.pools),
        "similarity": baselines.by_similarity(world.inputs, world.pools, threshold=0.3),
    }
    found = {TASK_CURVES: best_of(table, np.array([known[kind] for kind in kinds]), mean_k)}
    for name, needed_N in needs.items():
        found[name] = in_proportion(table, needed_N, mean_k)
    return found


def _task_curves(world: RealWorld) -> dict[str, FloatArray]:
    """(K1,) mean training accuracy of every task."""
    found = {}
    for kind in TASKS:
        rows = [i for i, name in enumerate(world.train_kinds) if name == kind]
        found[kind] = world.train.accuracy_NK[rows].mean(axis=0)
    return found


# -- claims ---------------------------------------------------------------------------------------


def real_checks(
    model: LocalModel, size: RealSize, seed: int, progress: Progress, folder: Path | None
) -> tuple[list[Check], dict[str, Any]]:
    """The claims, and figures for the page.

    Args:
        model: the generalist.
        size: how much is asked.
        seed: of inputs and draws.
        progress: called with what is being done.
        folder: where tables are kept; None keeps none.
    """
    world = make_real(model, size, seed, progress, folder)
    progress(f"{model.name}: controllers")
    methods = {chosen: fitted(world, chosen) for chosen in (None, *SETS)}
    checks: list[Check] = []
    found = {}
    for mean_k in MEANS:
        found[mean_k] = outcomes(world.test, methods[None], mean_k) | guesses(world, mean_k)
        checks += _against_uniform(world, found[mean_k], mean_k, model.name)
    checks += _baselines(found[MEANS[0]])
    checks += _transfers(world, methods)
    data: dict[str, Any] = {
        "model": model.name,
        "inputs": {"train": len(world.train), "test": len(world.test)},
        "tasks": {
            kind: [round(float(a), 4) for a in _curve(world, kind)] for kind in (*TASKS, ALL)
        },
        "tokens": [round(float(t), 2) for t in world.test.costs_NK.mean(axis=0)],
        "methods": methods_data({k: {n: [o] for n, o in by.items()} for k, by in found.items()}),
    }
    return checks, data


def _curve(world: RealWorld, kind: str) -> FloatArray:
    """(K1,) mean test accuracy of a task, or of all."""
    rows = [i for i, name in enumerate(world.test_kinds) if kind in (ALL, name)]
    return np.asarray(world.test.accuracy_NK[rows].mean(axis=0))


def _against_uniform(
    world: RealWorld, by: Mapping[str, Outcome], mean_k: int, name: str
) -> list[Check]:
    checks = []
    base, lucky = by[UNIFORM], by[LUCKY]
    tokens_K = world.test.costs_NK.mean(axis=0).tolist()
    accuracy_K = world.test.accuracy_NK.mean(axis=0).tolist()
    for head in HEADS:
        mine = by[head]
        difference_N = mine.quality_N - base.quality_N
        error = float(difference_N.std(ddof=1)) / len(difference_N) ** 0.5
        gain, ci = gap([mine], [base])
        room = lucky.accuracy - base.accuracy
        made = saving(mine.tokens, mine.accuracy, tokens_K, accuracy_K).normalised
        saved = "not defined" if made is None else f"{made:.2f}"
        checks.append(
            Check(
                f"{name}, six tasks: {head} is not worse than uniform k={mean_k} at equal tokens",
                "a better trade-off than uniform",
                gain,
                gain >= -ERRORS * error,
                ci,
                f"{mine.accuracy:.3f} against {base.accuracy:.3f} on {len(difference_N)} inputs; "
                f"{gain / room if room else 0.0:.2f} of the gain of an oracle that sees the drawn "
                f"outcomes; saving at equal accuracy: {saved}; target: at least -{ERRORS:g} s.e. "
                f"({error:.3f})",
            )
        )
    return checks


def _baselines(by: Mapping[str, Outcome]) -> list[Check]:
    checks = []
    for name, outcome in by.items():
        if name in HEADS or name in (UNIFORM, LUCKY):
            continue
        gain, ci = gap([by[UTILITY]], [outcome])
        checks.append(
            Check(
                f"six tasks: {UTILITY} over {name} at equal tokens",
                "a baseline",
                gain,
                None,
                ci,
                f"mean k={MEANS[0]}; {name} reaches {outcome.accuracy:.3f}",
            )
        )
    return checks


def _transfers(
    world: RealWorld, methods: Mapping[TaskSet | None, Mapping[str, DynaICL]]
) -> list[Check]:
    """Trained on one set of tasks, tested on the other: the matrix, gains over uniform."""
    checks = []
    for trained in (None, *SETS):
        for tested in SETS:
            rows = world.rows(tested, train=False)
            by = outcomes(world.test.rows(rows), methods[trained], MEANS[0])
            for head in HEADS:
                gain, ci = gap([by[head]], [by[UNIFORM]])
                seen = "both sets" if trained is None else f"set {trained}"
                checks.append(
                    Check(
                        f"transfer, trained on {seen}, tested on set {tested}: {head} over uniform",
                        "a trained controller works on unseen tasks",
                        gain,
                        None,
                        ci,
                        f"mean k={MEANS[0]}; {by[head].accuracy:.3f} against "
                        f"{by[UNIFORM].accuracy:.3f}, {len(rows)} inputs of "
                        f"{', '.join(SETS[tested])}",
                    )
                )
    return checks
