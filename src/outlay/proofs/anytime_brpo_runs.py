"""The runs behind the proof of AnytimeBRPO: cells of the ablation grid on ChainArith-RL.

All policies are judged on the same held-out questions: one thinking each at T = .6, cut at every
budget of a grid, where it then has to answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from outlay.proofs.rl_beside import RATE
from outlay.rl.anytime import AnytimeBRPO
from outlay.rl.anytime.outcomes import Outcome
from outlay.rl.grid import Cell, CellResult, ChainTask
from outlay.rl.verifiers import ChainArithVerifier
from outlay.stats import FloatArray
from outlay.testbeds.chainarith_rl import FORCED_TEXT

if TYPE_CHECKING:
    from torch import Tensor

OPS = (1, 5)  # operations of the questions: 2 to 6 terms
GRID = (4, 8, 12, 16, 24, 32, 48, 64)  # budgets of the anytime accuracy
TEMPERATURE = 0.6  # of evaluation
STEPS = 100
LONGER = 180  # steps, meant to even out tokens, answers included; the proof says what came of it
METHOD = AnytimeBRPO(
    budgets=(8, 16, 32, 64),
    prior="uniform",
    max_summary_tokens=6,
    forced=FORCED_TEXT + "</think>",
    heading="<answer>",
    reward_fn=ChainArithVerifier(),
    skip_flat=True,
)
TASK = ChainTask(
    test=400,
    ops=OPS,
    budget=GRID[-1],
    scales=tuple(budget / GRID[-1] for budget in GRID),
    temperatures=(TEMPERATURE,),
    longest=GRID[-1],
)
START = "untrained"
EQUAL_STEPS = "GRPO, equal steps"
MAIN = ("uniform", "GRPO")  # all seeds
SINGLE = ("linear", "coupled", "V2", EQUAL_STEPS)  # the first seed
EXTRA = ("base", "length", "progress")  # the first seed, where there is time


class LengthPenalty(AnytimeBRPO):
    """GRPO with a length penalty on right answers: 1 - .2 |z| / b_S."""

    def outcomes(self, *args: Any) -> list[Outcome]:
        """As usual, but long thinkings earn less."""
        found = []
        for one in super().outcomes(*args):
            worth = 1 - 0.2 * len(one.thinking) / self.budgets[-1]
            paid = tuple(tuple(worth * reward for reward in row) for row in one.rewards)
            found.append(replace(one, rewards=paid))
        return found


class ProgressReward(AnytimeBRPO):
    """MRT-like: a segment is paid what it adds to the reward, against the group's mean."""

    def of_thinkings(self, means_GS: Tensor) -> Tensor:
        """(G, S): the reward at a budget, less that at the one before."""
        gains_GS = means_GS.clone()
        gains_GS[:, 1:] -= means_GS[:, :-1]
        return gains_GS - gains_GS.mean(0, keepdim=True)


def methods() -> dict[str, tuple[AnytimeBRPO, int]]:
    """Every method of the proof, and its steps."""
    last = replace(
        METHOD,
        budgets=METHOD.budgets[-1:],
        prior="base",
        summary_mode="last",
        variance_reduction="v2",
    )
    return {
        "uniform": (METHOD, STEPS),
        "GRPO": (last, LONGER),
        EQUAL_STEPS: (last, STEPS),
        "linear": (replace(METHOD, prior="linear"), STEPS),
        "coupled": (replace(METHOD, prior="linear", decoupled=False), STEPS),
        "V2": (replace(METHOD, prior="linear", variance_reduction="v2"), STEPS),
        "base": (replace(METHOD, prior="base"), STEPS),
        "length": (LengthPenalty(**_knobs(last)), STEPS),
        "progress": (ProgressReward(**_knobs(METHOD)), STEPS),
    }


def _knobs(method: AnytimeBRPO) -> dict[str, Any]:
    return {name: getattr(method, name) for name in method.__dataclass_fields__}


def cell(name: str, seed: int) -> Cell:
    """A cell of the grid: a method of the proof, or the starting policy."""
    if name == START:
        return Cell(START, None, task=TASK)
    method, steps = methods()[name]
    return Cell(name, method, seed=seed, steps=steps, learning_rate=RATE, task=TASK)


def right_of(group: Sequence[CellResult]) -> FloatArray:
    """(questions, budgets): share of the seeds that answer right."""
    made: FloatArray = np.mean(
        [
            [
                np.mean([one.right for one in result.at(TEMPERATURE, scale)], axis=0)
                for scale in TASK.scales
            ]
            for result in group
        ],
        axis=0,
    ).T
    return made


def thinking_of(group: Sequence[CellResult]) -> FloatArray:
    """(questions,): mean tokens of thinking at the largest budget, over the seeds."""
    made: FloatArray = np.mean(
        [[one.thinking for one in result.at(TEMPERATURE)] for result in group], axis=(0, 1)
    )
    return made


def lengths_of(result: CellResult) -> list[float]:
    """Mean tokens of thinking of every step's rollouts."""
    return [float(value) for value in result.curve["tokens_mean"] if value is not None]
