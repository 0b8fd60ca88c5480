"""Curriculum GRPO watched closely: a tiny run on the testbed, and a few steps on a real chat model.

The tiny run checks the way from the schedule to prompts, rewards and lengths. The steps on the real
model ask whether it trains there, not whether it learns: three steps of four rollouts teach
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from outlay.proofs import rl_real
from outlay.proofs.base import Check
from outlay.rl.base import Judgement
from outlay.rl.curriculum import CurriculumGRPO

# The tiny run: the budget halves in the middle.
TINY_STEPS, TINY_B0, TINY_LAST = 14, 12, 6
TINY_WEIGHTS = (0.1, 1.0, 0.1)  # lengths must move within a few steps
TINY_MOVE = 0.9  # mean |l - B| / B at the end, at most this share of that after the drop

# The real model: stages of two steps and one.
STEPS, GROUP = 3, 4
B0, B_FINAL = 40, 20


@dataclass(frozen=True)
class Seen:
    """One step's rollouts, as rewards saw them."""

    prompts: list[Any]
    judgement: list[Judgement]
    budget: list[float]


@dataclass(frozen=True)
class Watched(CurriculumGRPO):
    """Writes down every step's rollouts; pays nothing for it."""

    seen: list[Seen] = field(default_factory=list)

    def reward_functions(self) -> list[Any]:
        """One more, which only watches."""

        def watched(
            prompts: Sequence[Any],
            judgement: Sequence[Judgement],
            budget: Sequence[float],
            **_: object,
        ) -> list[float]:
            self.seen.append(Seen(list(prompts), list(judgement), list(budget)))
            return [0.0] * len(prompts)

        return [*super().reward_functions(), watched]

    def reward_weights(self) -> list[float]:
        """Nothing for what only watches."""
        return [*super().reward_weights(), 0.0]


def tiny(seed: int) -> list[Check]:
    """Schedule, prompts, rewards and lengths of one tiny run on ChainArith-RL."""
    import torch

    from outlay.rl.verifiers import ChainArithVerifier
    from outlay.testbeds.chainarith_rl import dataset, load

    torch.set_num_threads(1)
    model, tokenizer = load()
    method = Watched(
        b0=TINY_B0,
        b_final=TINY_LAST,
        n_decays=1,
        total_steps=TINY_STEPS,
        weights=TINY_WEIGHTS,
        hard_cap_factor=None,
        fmt="verifier",
        template="{budget}{question}",
        save_per_stage=False,
    )
    settings = {
        "max_steps": TINY_STEPS,
        "per_device_train_batch_size": 32,
        "max_completion_length": 24,
        "learning_rate": 5e-4,
        "seed": seed,
    }
    data, verifier = dataset(64, seed, ops=(1, 2)), ChainArithVerifier()
    with rl_real.short_run(model, tokenizer, method, data, verifier, settings) as trainer:
        trainer.train()
    half = TINY_STEPS // 2
    due = [TINY_B0] * half + [TINY_LAST] * (TINY_STEPS - half)
    told = [
        set(seen.budget) == {budget} and all(p.startswith(f"{budget}<user>") for p in seen.prompts)
        for seen, budget in zip(method.seen, due, strict=True)
    ]
    paid = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    by_hand = [fmean(map(_by_hand, seen.judgement, seen.budget)) for seen in method.seen]
    off = max(abs(a - b) for a, b in zip(paid, by_hand, strict=True))
    gaps = [
        fmean(abs(one.tokens - b) / b for one, b in zip(seen.judgement, seen.budget, strict=True))
        for seen in method.seen
    ]
    few = TINY_STEPS // 4
    before, after = fmean(gaps[half : half + few]), fmean(gaps[-few:])
    return [
        Check(
            "budgets follow the schedule and prompts name them, step by step",
            "the prompt asks for the current budget",
            f"{sum(told)} of {TINY_STEPS} steps",
            all(told),
            None,
            f"{TINY_B0} for {half} steps, then {TINY_LAST}; target: all",
        ),
        Check(
            "rewards are the paper's sum",
            "right, length and format, weighted",
            off,
            off < 1e-5,
            None,
            "largest difference of a step's mean reward from the formula by hand; target: 1e-5",
        ),
        Check(
            "lengths move towards the budget",
            "final lengths within about 5 % of the target",
            after / before,
            after / before < TINY_MOVE,
            None,
            f"mean |l - B| / B after the drop, last {few} steps by first {few}: "
            f"{after:.2f} by {before:.2f}; target: below {TINY_MOVE}",
        ),
    ]


def _by_hand(one: Judgement, budget: float) -> float:
    """The reward as the formula is printed."""
    n = one.tokens
    length = n / budget if n <= budget else 1 - (n - budget) / budget if n <= 2 * budget else 0.0
    right, middle, form = TINY_WEIGHTS
    return right * one.correct + middle * length + form * one.format_ok


def few_steps() -> list[Check]:
    """Train the embedded chat model for `STEPS` steps."""
    from outlay.rl.verifiers import MathVerifier, Reading

    model, tokenizer = rl_real.policy()
    method = Watched(
        b0=B0,
        b_final=B_FINAL,
        n_decays=1,
        total_steps=STEPS,
        answer_slack=4,
        save_per_stage=False,
        tokenizer=tokenizer,
    )
    before = rl_real.weights(model)
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": GROUP,
        "num_generations": GROUP,
        "max_completion_length": 2 * B0 + 4,
        "learning_rate": rl_real.LEARNING_RATE,
    }
    verifier = MathVerifier(Reading(tokenizer, forced_open=False), workers=1)
    data = rl_real.chats()
    with rl_real.short_run(model, tokenizer, method, data, verifier, settings) as trainer:
        trainer.train()
    steps = [line for line in trainer.state.log_history if "grad_norm" in line]
    norms = [line["grad_norm"] for line in steps]
    alike = [line["frac_reward_zero_std"] == 1 for line in steps]  # nothing to learn from
    alive = len(norms) == STEPS and all(
        math.isfinite(norm) and (norm > 0 or equal)
        for norm, equal in zip(norms, alike, strict=True)
    )
    budgets = [method.budget_at(step, STEPS) for step in range(STEPS)]
    kept = [
        all(f"exactly {round(budget)} tokens" in prompt[-1]["content"] for prompt in seen.prompts)
        and max(one.tokens for one in seen.judgement) <= (method.cap_at(budget) or 0)
        for budget, seen in zip(budgets, method.seen, strict=True)
    ]
    moved = rl_real.moved(before, trainer.model)
    return [
        Check(
            f"{rl_real.NAME} trains for a few steps through its own chat template",
            "a 7B chat model trains",
            f"{moved} of {len(before)} tensors moved",
            alive and moved == len(before) and all(kept),
            None,
            f"{STEPS} steps of {GROUP} rollouts, budgets "
            f"{', '.join(f'{b:g}' for b in budgets)}; gradient norms {rl_real.shown(norms)}; "
            "target: all tensors move, norms are finite and 0 only where all rewards are equal, "
            "every prompt names its budget, no completion goes beyond its cap. A first run asked "
            "for positive norms at every step, and the rewards of one step were all equal",
        )
    ]
