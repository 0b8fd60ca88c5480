"""The table of labels: how well the generalist does on each input with 0..K demonstrations.

One table pays for everything that follows: targets, both training stages, the oracle and every
baseline read it. It is collected once, input by input, and kept on disk, so that a stopped run goes
on where it ended.

Shapes: N inputs, K1 = K + 1 numbers of demonstrations, D draws.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError, ModelError, ResultsError
from outlay.prompt.base import CountTokens
from outlay.prompt.dynaicl.prompts import (
    Example,
    Ladder,
    Pools,
    Template,
    check_examples,
    ladder,
)
from outlay.prompt.dynaicl.selection import Selector, rank

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Generalist = Callable[[Sequence[str]], Sequence[str]]  # prompts in, completions out
Metric = Callable[[str, Example], float]  # completion, example -> [0, 1]
CELLS, CONFIG = "cells.jsonl", "config.json"
MAX_K, MAX_DRAWS = 64, 64
_BLOCK = 64  # inputs whose prompts go out together


def exact_match(completion: str, example: Example) -> float:
    """1 if the completion is the answer, spaces at its ends aside."""
    return float(completion.strip() == example.answer.strip())


@dataclass(frozen=True, eq=False)
class Table:
    """Quality and prompt tokens of every input, number of demonstrations and draw.

    Args:
        ids: (N,) names of the inputs.
        inputs: (N,) their texts, after their task's instruction if it has one: all that a
            controller is trained on.
        quality_NKD: (N, K1, D) in [0, 1].
        tokens_NKD: (N, K1, D) tokens of the whole prompt, not falling in k.
        warnings: what the reader should know, such as prompts cut to the window.

    Raises:
        InputError: for shapes that differ, a quality that is NaN or outside [0, 1], or tokens that
            fall.
    """

    ids: tuple[str, ...]
    inputs: tuple[str, ...]
    quality_NKD: FloatArray
    tokens_NKD: IntArray
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = self.quality_NKD.shape
        if len(shape) != 3 or self.tokens_NKD.shape != shape or min(shape) < 1 or shape[1] < 2:
            raise InputError(
                f"qualities of shape {shape} and tokens of shape {self.tokens_NKD.shape}; need one "
                "shape (inputs, K+1, draws) with K >= 1"
            )
        if not len(self.ids) == len(self.inputs) == shape[0]:
            raise InputError(
                f"{len(self.ids)} ids and {len(self.inputs)} texts for {shape[0]} rows"
            )
        bad = ~((self.quality_NKD >= 0) & (self.quality_NKD <= 1))  # NaN is neither
        if bad.any():
            row, k, draw = (int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"the quality of input {self.ids[row]!r} at k={k} (draw {draw}) is "
                f"{self.quality_NKD[row, k, draw]}; it must be in [0, 1], so repair the metric"
            )
        if (np.diff(self.tokens_NKD, axis=1) < 0).any() or (self.tokens_NKD < 0).any():
            raise InputError("prompt tokens are negative or fall with k; count whole prompts")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def K(self) -> int:  # noqa: N802
        """Most demonstrations."""
        return int(self.quality_NKD.shape[1]) - 1

    @property
    def accuracy_NK(self) -> FloatArray:  # noqa: N802
        """(N, K1) mean quality over draws."""
        return np.asarray(self.quality_NKD.mean(axis=2))

    @property
    def costs_NK(self) -> FloatArray:  # noqa: N802
        """(N, K1) mean tokens of the demonstrations alone: 0 at k=0."""
        return np.asarray((self.tokens_NKD - self.tokens_NKD[:, :1]).mean(axis=2))

    def rows(self, which: Sequence[int] | npt.NDArray[np.int64]) -> Table:
        """Some of the inputs."""
        index = [int(i) for i in which]
        return Table(
            tuple(self.ids[i] for i in index),
            tuple(self.inputs[i] for i in index),
            self.quality_NKD[index],
            self.tokens_NKD[index],
            self.warnings,
        )

    def draws(self, which: Sequence[int]) -> Table:
        """Some of the draws."""
        index = list(which)
        return Table(
            self.ids,
            self.inputs,
            self.quality_NKD[:, :, index],
            self.tokens_NKD[:, :, index],
            self.warnings,
        )


@dataclass(frozen=True, eq=False)
class Targets:
    """What the supervised stage learns.

    Args:
        needed_N: (N,) fewest demonstrations that are enough.
        hopeless_N: (N,) True where every accuracy is 0: demonstrations are wasted there.
    """

    needed_N: IntArray
    hopeless_N: npt.NDArray[np.bool_]


def targets(table: Table, t: float = 0.7, margin: float = 0.0) -> Targets:
    """`k*(x) = min{k : acc(x, k) > t}`; where none is, the smallest k of the highest accuracy.

    Args:
        table: of labels.
        t: the threshold.
        margin: standard errors that an accuracy must exceed t by. Few draws make accuracies noisy,
            and the smallest k that passes by luck is too small; a margin corrects that. The error
            is that of a Bernoulli share with one success and one failure added.

    Raises:
        InputError: for a threshold outside (0, 1) or a negative margin.
    """
    if not 0 < t < 1:
        raise InputError(f"t={t} is outside (0, 1); 0.7 is usual")
    if not margin >= 0:
        raise InputError(f"margin={margin}; must be >= 0")
    acc_NK = table.accuracy_NK
    draws = table.quality_NKD.shape[2]
    shrunk_NK = (acc_NK * draws + 1) / (draws + 2)
    error_NK = np.sqrt(shrunk_NK * (1 - shrunk_NK) / draws)
    enough_NK = acc_NK - margin * error_NK > t
    needed_N = np.where(enough_NK.any(axis=1), enough_NK.argmax(axis=1), acc_NK.argmax(axis=1))
    return Targets(needed_N.astype(np.int64), (acc_NK == 0).all(axis=1))


@dataclass(frozen=True)
class Recipe:
    """How a table is collected.

    Args:
        K: most demonstrations.
        n_s: draws per input.
        selector: how demonstrations are chosen.
        balanced: see `rank`.
        encoder: of `knn` and `votek`.
        seed: of the draws.
        template: how prompts are written.
        max_context: tokens of the generalist's window; None for no limit.

    Raises:
        InputError: for K or n_s out of range, or a window without a token.
    """

    K: int = 8
    n_s: int = 4
    selector: Selector = "random"
    balanced: bool = False
    encoder: str = "minilm"
    seed: int = 0
    template: Template = field(default_factory=Template)
    max_context: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.K <= MAX_K:
            raise InputError(f"K={self.K}; need 1 <= K <= {MAX_K}")
        if not 1 <= self.n_s <= MAX_DRAWS:
            raise InputError(f"n_s={self.n_s}; need 1 <= n_s <= {MAX_DRAWS}")
        if self.max_context is not None and self.max_context < 1:
            raise InputError(f"max_context={self.max_context}; give a positive number, or None")

    def ladder(self, x: Example, pools: Pools, count: CountTokens, draw: int = 0) -> Ladder:
        """The prompts of one input with 0..K demonstrations."""
        demos = rank(
            x,
            pools[x.task],
            self.K,
            selector=self.selector,
            seed=self.seed,
            draw=draw,
            encoder=self.encoder,
            balanced=self.balanced,
        )
        return ladder(self.template, x, demos, count, self.max_context)


def collect(
    generalist: Generalist,
    inputs: Sequence[Example],
    pools: Pools,
    recipe: Recipe,
    *,
    count: CountTokens,
    metric: Metric = exact_match,
    name: str = "generalist",
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Ask the generalist about every input with 0..K demonstrations, `n_s` times.

    Args:
        generalist: text in, text out; a black box.
        inputs: with gold answers.
        pools: labelled demonstrations by task.
        recipe: how.
        count: tokens of a prompt.
        metric: of a completion.
        name: of the generalist, which tells tables on disk apart.
        folder: where the table is kept; inputs that it holds are not asked again.
        progress: called with (inputs done, inputs).

    Raises:
        InputError: for inputs or pools that cannot be used (see `check_examples`).
        ModelError: if the generalist does not give one text per prompt.
        ResultsError: if the folder holds another table.
    """
    check_examples(inputs, pools, recipe.K)
    store = _Store(folder, _config(inputs, pools, recipe, name, metric))
    todo = [x for x in inputs if _key(x) not in store.cells]
    for start in range(0, len(todo), _BLOCK):
        block = todo[start : start + _BLOCK]
        ladders = [
            [recipe.ladder(x, pools, count, draw) for draw in range(recipe.n_s)] for x in block
        ]
        prompts = [text for each in ladders for made in each for text in made.prompts]
        distinct = list(dict.fromkeys(prompts))  # k=0 is the same in every draw
        answers = list(generalist(distinct))
        if len(answers) != len(distinct) or not all(isinstance(a, str) for a in answers):
            raise ModelError(
                f"{name} gave {len(answers)} answers for {len(distinct)} prompts; it must give one "
                "text per prompt"
            )
        said = dict(zip(distinct, answers, strict=True))
        for x, each in zip(block, ladders, strict=True):
            quality = [[float(metric(said[p], x)) for p in made.prompts] for made in each]
            tokens = [list(made.tokens) for made in each]
            store.add(_key(x), quality, tokens, sum(made.fits < recipe.K for made in each))
        if progress is not None:
            progress(len(inputs) - len(todo) + start + len(block), len(inputs))
    cut = sum(store.cells[_key(x)]["cut"] for x in inputs)
    notes: tuple[str, ...] = ()
    if cut:
        notes = (
            f"{cut} of {len(inputs) * recipe.n_s} ladders of prompts do not fit "
            f"max_context={recipe.max_context} with K={recipe.K} demonstrations; "
            "their last prompts have fewer",
        )
    rows = [store.cells[_key(x)] for x in inputs]
    return Table(
        tuple(x.id for x in inputs),
        tuple(x.read for x in inputs),
        np.array([row["quality"] for row in rows], dtype=np.float64).transpose(0, 2, 1),
        np.array([row["tokens"] for row in rows], dtype=np.int64).transpose(0, 2, 1),
        notes,
    )


def _key(x: Example) -> str:
    """Name of an input's cells: another text under the same id is another input."""
    told = (x.task, x.input, x.answer, *([x.instruction] if x.instruction else []))
    digest = hashlib.blake2b(repr(told).encode(), digest_size=8)
    return f"{x.id} {digest.hexdigest()}"


def _config(
    inputs: Sequence[Example], pools: Pools, recipe: Recipe, name: str, metric: Metric
) -> dict[str, Any]:
    """What decides the cells; the set of inputs does not, each cell stands for itself."""
    digest = hashlib.blake2b(digest_size=16)
    for task in sorted(pools):
        for demo in pools[task]:
            digest.update(repr((task, demo.id, demo.input, demo.answer)).encode())
    return {
        "generalist": name,
        "recipe": repr(recipe),
        "pools": digest.hexdigest(),
        "metric": getattr(metric, "__qualname__", type(metric).__qualname__),
    }


class _Store:
    """Cells on disk, one line an input; in memory only where there is no folder."""

    def __init__(self, folder: str | Path | None, config: Mapping[str, Any]) -> None:
        self.cells: dict[str, dict[str, Any]] = {}
        self._path: Path | None = None
        if folder is None:
            return
        base = Path(folder)
        try:
            base.mkdir(parents=True, exist_ok=True)
            known = base / CONFIG
            if known.exists():
                if json.loads(known.read_text(encoding="utf-8")) != config:
                    raise ResultsError(
                        f"{base} holds a table of another generalist, pool, recipe or metric; "
                        "give another folder"
                    )
            else:
                known.write_text(json.dumps(config, indent=1), encoding="utf-8")
            self._path = base / CELLS
            if self._path.exists():
                self._read()
        except (OSError, ValueError) as error:
            raise ResultsError(
                f"the table in {base} cannot be read or written ({error})"
            ) from error

    def _read(self) -> None:
        assert self._path is not None
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]  # a last line without an end was cut off
        if len(whole) < len(raw):
            os.truncate(self._path, len(whole))
        for line in whole.decode("utf-8").splitlines():
            row = json.loads(line)
            self.cells[row["key"]] = row

    def add(
        self,
        key: str,
        quality: Sequence[Sequence[float]],
        tokens: Sequence[Sequence[int]],
        cut: int,
    ) -> None:
        row = {"key": key, "quality": quality, "tokens": tokens, "cut": cut}
        self.cells[key] = row
        if self._path is not None:
            with self._path.open("ab") as out:
                out.write(json.dumps(row).encode("ascii") + b"\n")
