"""A workload with its prompts, its answers, and what it saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError, ModelError
from outlay.ledger import Ledger
from outlay.prompt.base import CountTokens
from outlay.prompt.dynaicl.prompts import Example, Ladder
from outlay.prompt.dynaicl.table import Generalist, Metric
from outlay.stats import first_crossing

if TYPE_CHECKING:
    from outlay.models.base import Model, SamplingParams

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Workload:
    """A batch with its prompts.

    Args:
        inputs: (N,) the batch.
        k_N: (N,) demonstrations of each.
        prompts: (N,) texts to send.
        tokens_N: (N,) tokens of each prompt.
        demo_tokens_N: (N,) those of its demonstrations.
        controller_tokens: what the controller read, counted with the generalist's tokenizer.
        seconds: that predicting and allocating took.
        warnings: prompts that the window cut.
    """

    inputs: tuple[Example, ...]
    k_N: IntArray
    prompts: tuple[str, ...]
    tokens_N: IntArray
    demo_tokens_N: IntArray
    controller_tokens: int
    seconds: float
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        inputs: Sequence[Example],
        ladders: Sequence[Ladder],
        k_N: IntArray,
        instruction: str,
        count: CountTokens,
        seconds: float,
    ) -> Workload:
        """The workload in which input i has `k_N[i]` demonstrations."""
        chosen = [min(int(k), made.fits) for k, made in zip(k_N, ladders, strict=True)]
        tokens_N = np.array([made.tokens[k] for k, made in zip(chosen, ladders, strict=True)])
        bare_N = np.array([made.tokens[0] for made in ladders])
        cut = sum(made.fits < len(made.prompts) - 1 for made in ladders)
        note = f"{cut} inputs leave no room for all demonstrations in the window"
        return cls(
            tuple(inputs),
            np.array(chosen, dtype=np.int64),
            tuple(made.prompts[k] for k, made in zip(chosen, ladders, strict=True)),
            tokens_N,
            tokens_N - bare_N,
            sum(count(x.read) for x in inputs) + len(inputs) * count(instruction),
            seconds,
            (note,) if cut else (),
        )


@dataclass(frozen=True, eq=False)
class Served:
    """A workload with its answers.

    Args:
        workload: what was asked.
        answers: (N,) completions.
        quality_N: (N,) their qualities.
        ledger: what was spent; the controller is a scorer.
    """

    workload: Workload
    answers: tuple[str, ...]
    quality_N: FloatArray
    ledger: Ledger

    @property
    def accuracy(self) -> float:
        """Mean quality."""
        return float(self.quality_N.mean())


def serve(workload: Workload, generalist: Generalist, metric: Metric, count: CountTokens) -> Served:
    """Ask the generalist and judge its answers.

    Raises:
        ModelError: if the generalist does not give one text per prompt.
    """
    answers = tuple(generalist(workload.prompts))
    if len(answers) != len(workload.prompts):
        raise ModelError(f"{len(answers)} answers for {len(workload.prompts)} prompts")
    ledger = Ledger()
    ledger.record(
        "prompt",
        "scorer",
        prompt_new=workload.controller_tokens,
        method="dynaicl",
        seconds=workload.seconds,
        estimated=True,
    )
    ledger.record(
        "answer",
        "target",
        prompt_new=int(workload.tokens_N.sum()),
        generated=sum(count(answer) for answer in answers),
        method="dynaicl",
        estimated=True,  # a black box gives text; its own count may differ by stop tokens
    )
    pairs = zip(answers, workload.inputs, strict=True)
    quality_N = np.array([metric(answer, x) for answer, x in pairs])
    return Served(workload, answers, quality_N, ledger)


@dataclass
class ModelGeneralist:
    """Any model of outlay as a black box: prompts in, completions out, batched where it can be.

    Args:
        model: local, embedded or an endpoint.
        sampling: of the answers.
        ledger: what was spent so far.
    """

    model: Model
    sampling: SamplingParams
    ledger: Ledger = field(default_factory=Ledger)

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Completions, in order."""
        from outlay.decode.plain import PlainDecoder

        made = PlainDecoder().generate_many(self.model, list(prompts), sampling=self.sampling)
        for one in made:
            self.ledger.extend(one.ledger)
        return [one.text for one in made]


@dataclass(frozen=True)
class Saving:
    """Tokens against a uniform number of demonstrations at the same accuracy.

    Args:
        tokens: spent.
        uniform: tokens at which the uniform curve first reaches the accuracy; None if never.
    """

    tokens: float
    uniform: float | None

    @property
    def normalised(self) -> float | None:
        """`1 - tokens / uniform`; None where uniform never gets there or needs none."""
        return None if not self.uniform else 1 - self.tokens / self.uniform


def saving(
    tokens: float,
    accuracy: float,
    uniform_tokens: Sequence[float],
    uniform_accuracy: Sequence[float],
) -> Saving:
    """What a method saved.

    Args:
        tokens: that it spent.
        accuracy: that it reached.
        uniform_tokens: of uniform k = 0, 1, ..., K.
        uniform_accuracy: its accuracies; between them the curve is straight.

    Raises:
        InputError: for curves of different lengths.
    """
    if len(uniform_tokens) != len(uniform_accuracy) or not len(uniform_tokens):
        raise InputError("the uniform curve needs one accuracy per number of tokens")
    cost = np.array([uniform_tokens], dtype=np.float64)
    reached = np.array([uniform_accuracy], dtype=np.float64)
    if accuracy <= reached[0, 0]:
        return Saving(tokens, float(cost[0, 0]))
    found = float(first_crossing(cost, reached, accuracy, False, True)[0])
    return Saving(tokens, None if np.isnan(found) else found)


def break_even(controller_tokens: float, saved_tokens: float) -> float:
    """How many times dearer a token of the generalist must be than one of the controller.

    Returns:
        Infinity where nothing is saved: the controller then never pays.

    Raises:
        InputError: for negative controller tokens.
    """
    if not controller_tokens >= 0:
        raise InputError(f"controller_tokens={controller_tokens}; must be >= 0")
    return controller_tokens / saved_tokens if saved_tokens > 0 else float("inf")


def prefix_cached(prompts: Sequence[Sequence[int]]) -> int:
    """Prompt tokens that a prefix cache that forgets nothing would not compute again.

    Args:
        prompts: token ids of every prompt.
    """
    ordered = sorted(map(tuple, prompts))
    total = 0
    for left, right in pairwise(ordered):
        shared = 0
        for a, b in zip(left, right, strict=False):
            if a != b:
                break
            shared += 1
        total += shared
    return total
